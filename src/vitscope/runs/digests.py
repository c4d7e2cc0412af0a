"""Digests of sets of images, saved so that only a run on the same images resumes."""

import os
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from vitscope.errors import ImageReadError
from vitscope.images.addresses import ImageAddress, size_of
from vitscope.images.image_set import ImageSet
from vitscope.images.in_memory import HeldImage
from vitscope.images.parquet_rows import ParquetRow
from vitscope.images.stores import Place, StoredObject, plain_read_errors, stored_version
from vitscope.images.tar_shards import TarMember
from vitscope.images.urls import is_web


def digest_sets(*, names: ImageSet | None = None, **sets: ImageSet | None) -> dict[str, Any]:
    """Digest images and masks by location, size and time, and a list of `names` by name and size.

    Images in memory share a name and go by all their pixels; None for a set that is not there.
    """
    hash_held = cache(attrgetter("version"))
    stamp_file = cache(_stamp_file)  # many images share an archive
    found: dict[str, Any] = dict.fromkeys(sets)
    for key, images in sets.items():
        if images is not None:
            addresses = chain(images.addresses, images.masks)
            found[key] = digest_lines(_stamp(one, stamp_file, hash_held) for one in addresses)
    if names is not None:
        told = (
            hash_held(one) if isinstance(one, HeldImage) else size_of(one)
            for one in names.addresses
        )
        named = (f"{names.name_image(index)} {one}" for index, one in enumerate(told))
        found["names"] = digest_lines(map(str.encode, named))
    return found


def digest_lines(lines: Iterable[bytes]) -> str:
    """Digest a list in its order."""
    digest = blake2b(digest_size=16)
    for line in lines:
        digest.update(line + b"\0")
    return digest.hexdigest()


def _stamp(
    address: ImageAddress | None,
    stamp_file: Callable[[Place], bytes],
    hash_held: Callable[[HeldImage], str],
) -> bytes:
    if isinstance(address, TarMember):
        place = f" {address.offset} {address.size}"
        return stamp_file(address.archive) + _encode(address.member + place)
    if isinstance(address, ParquetRow):
        group = address.group
        place = f"{group.column} {group.first_row + address.row} {group.version}"
        return stamp_file(group.file) + _encode(place)
    if isinstance(address, Path):
        return _stamp_path(address, with_number=False)
    if isinstance(address, HeldImage):
        return _encode(f"{address.name} {hash_held(address)}")
    return b"" if address is None else _stamp_object(address)


def _stamp_file(place: Place) -> bytes:
    # An archive or a table with many images.
    if isinstance(place, Path):
        return _stamp_path(place, with_number=True)
    try:
        with plain_read_errors(place):
            return _stamp_object(place) + _encode(stored_version(place))
    except ImageReadError:
        return _stamp_object(place)  # unreadable; the run will report it


def _stamp_path(path: Path, *, with_number: bool) -> bytes:
    name = os.fsencode(path.absolute())
    try:
        status = path.stat()
    except (OSError, ValueError):
        return name  # unreadable; the run will report it
    number = f" {status.st_ino}" if with_number else ""
    return name + f" {status.st_size} {status.st_mtime_ns}{number}".encode()


def _stamp_object(stored: StoredObject) -> bytes:
    # The query of a web address may select the image.
    query = stored.url.partition("?")[2] if is_web(stored.url) else ""
    return _encode(f"{stored.shown}\0{query}\0{stored.size}")


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
