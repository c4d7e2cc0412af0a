"""Everything that the bits of an audit depend on, saved so that only the same audit resumes."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from vitscope.config import AuditConfig
from vitscope.errors import ImageReadError
from vitscope.files.workspace import Plan
from vitscope.images.addresses import ImageAddress, size_of
from vitscope.images.image_set import ImageSet
from vitscope.images.in_memory import HeldImage
from vitscope.images.parquet_rows import ParquetRow
from vitscope.images.stores import Place, StoredObject, plain_read_errors, stored_version
from vitscope.images.tar_shards import TarMember
from vitscope.images.urls import is_web
from vitscope.results.manifest import Manifest
from vitscope.runs.resources import list_versions

_CHOICES = ("batch_size", "dtype", "shard_size")
"""Settings that `auto` chooses for the machine when a run begins."""

_SETTINGS = (*_CHOICES, "seed", "verified", "features", "gallery", "maps", "trace")


def make_plan(
    whole: ImageSet,
    images: ImageSet,
    config: AuditConfig,
    manifest: Manifest,
    *,
    device: torch.device,
    pass_size: int | None,
) -> Plan:
    """Collect all that the bits of a result depend on."""
    settings = {name: getattr(config, name) for name in _SETTINGS}
    versions = hash_held(whole)
    plan = {
        "num_images": len(images),
        "images": digest_files(images, versions),
        "names": digest_names(whole, versions),
        "num_repeated": images.num_repeated,
        "described": images.described,
        **settings,
        "shard": None if config.shard is None else "{}/{}".format(*config.shard),
        "result": asdict(manifest),
        "device": device.type,
        "pass_size": pass_size,
        "versions": list_versions(config.maps or ()),
    }
    found: dict[str, Any] = json.loads(json.dumps(plan))
    return found


def adopt_choices(config: AuditConfig, earlier: Plan | None) -> AuditConfig:
    """Reuse an earlier run's automatic choices: the machine might choose differently now."""
    if earlier is None:
        return config
    chosen = {
        name: earlier[name]
        for name in _CHOICES
        if getattr(config, name) == "auto" and name in earlier
    }
    return replace(config, **chosen)


def hash_held(*image_sets: ImageSet) -> dict[HeldImage, str]:
    """Hash images in memory, which are identified by all their pixels, once."""
    addresses = chain.from_iterable(images.addresses for images in image_sets)
    held = {address for address in addresses if isinstance(address, HeldImage)}
    return {address: address.version for address in held}


def digest_files(images: ImageSet, versions: Mapping[HeldImage, str]) -> str:
    """Digest images and masks by location, size and modification time."""
    digest = blake2b(digest_size=16)
    stamp_file = lru_cache(maxsize=None)(_stamp_file)  # many images share an archive
    for address in [*images.addresses, *images.masks]:
        digest.update(_stamp(address, stamp_file, versions) + b"\0")
    return digest.hexdigest()


def digest_names(images: ImageSet, versions: Mapping[HeldImage, str]) -> str:
    """Digest a list of images by names and sizes; those in memory share a name and go by pixels."""
    digest = blake2b(digest_size=16)
    for index, address in enumerate(images.addresses):
        told = versions[address] if isinstance(address, HeldImage) else size_of(address)
        digest.update(f"{images.name_image(index)} {told}".encode() + b"\0")
    return digest.hexdigest()


def _stamp(
    address: ImageAddress | None,
    stamp_file: Callable[[Place], bytes],
    versions: Mapping[HeldImage, str],
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
        return _encode(f"{address.name} {versions[address]}")
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
