"""Find images in user-given sources, in an order that does not depend on the file system.

Text files cannot name URLs. File names are arbitrary bytes, never decoded strictly or printed raw.
"""

import os
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from vitscope.errors import ImageReadError, UsageError
from vitscope.files.own_files import describe_skipped
from vitscope.images.addresses import ImageAddress, Images
from vitscope.images.folders import (
    PARQUET,
    TAR,
    choose_kind,
    describe_kinds,
    image_extensions,
    search_folder,
)
from vitscope.images.in_memory import IMAGE_KINDS, NOT_PREPROCESSED, hold_images
from vitscope.images.masks import note_masks
from vitscope.images.parquet_rows import list_rows
from vitscope.images.paths import check_exists, expand
from vitscope.images.stores import (
    StoredObject,
    check_parts,
    list_objects,
    read_file,
    suffix_of,
)
from vitscope.images.tar_shards import FoundMembers, list_members
from vitscope.images.urls import is_url, is_web, resembles_url, show_name, show_url

_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2|txz)$", re.IGNORECASE)
_MAX_LIST_BYTES = 2**28


class FoundImages(tuple[ImageAddress, ...]):
    """Result of a search; searching it again returns it unchanged, without any lookup."""

    notes: tuple[str, ...] = ()  # remarks about the search
    named: tuple[ImageAddress, ...] = ()  # with repeats, if any were named more than once
    skipped: tuple[Path, ...] = ()  # folders in which vitscope's own files were skipped


def find_images(sources: Images, *, preprocessed: bool = False) -> FoundImages:
    """Find the images in sources."""
    if isinstance(sources, FoundImages):
        return sources
    search = _Search(preprocessed)
    named = search.find_all(sources)
    if not named:
        raise UsageError(f"no images were given: expected {IMAGE_KINDS}")
    distinct = list(dict.fromkeys(named))
    looked_into = [_look_into(file) for file in _number_alike(distinct)]
    found = FoundImages(dict.fromkeys(chain.from_iterable(looked_into)))
    if len(named) > len(found):
        in_file = dict(zip(distinct, looked_into, strict=True))
        found.named = tuple(chain.from_iterable(in_file[file] for file in named))
    parts = sum(one.num_left_out for one in looked_into if isinstance(one, FoundMembers))
    if parts:
        found.notes = (
            f"{parts} members of the archives are called like images but were left out, as parts "
            "of samples that have another image or the same parts, such as key.seg.png",
        )
    if search.skipped:
        found.skipped = tuple(dict.fromkeys(search.skipped))
        found.notes += (describe_skipped(found.skipped),)
    found.notes += tuple(note_masks(found))
    return found


def find_files(sources: Images) -> tuple[Path, ...]:
    """Find the images in sources, all of which must be local files."""
    found = find_images(sources)
    files = tuple(address for address in found if isinstance(address, Path))
    if len(files) < len(found):
        raise UsageError(
            f"{len(found) - len(files)} of the images are in archives, tables, stores or memory: "
            "here give image files of this machine"
        )
    return files


class _Search:
    """A search, and what it comes upon besides images."""

    def __init__(self, preprocessed: bool) -> None:
        self._preprocessed = preprocessed
        self.skipped: list[Path] = []
        self._unreached: dict[Hashable, UsageError] = {}

    def find_all(self, sources: Images) -> list[ImageAddress]:
        held = hold_images(sources, "image", preprocessed=self._preprocessed)
        if held is not None:
            return [*held]
        named: list[ImageAddress] = []
        first: dict[Hashable, ImageAddress] = {}
        single = not isinstance(sources, Iterable) or isinstance(
            sources, (str, bytes, ImageAddress)
        )
        every: Iterable[Any] = [sources] if single else sources  # type: ignore[assignment]
        for number, source in enumerate(every):
            for name in expand(source):
                files = self._find(name, f"image[{number}]")
                named += [first.setdefault(_identify(file), file) for file in files]
        if self._unreached and first.keys() == self._unreached.keys():
            raise next(iter(self._unreached.values()))
        return named

    def _find(self, source: Images, place: str) -> Sequence[ImageAddress]:
        if isinstance(source, ImageAddress) and not isinstance(source, Path):
            return [source]
        held = hold_images(source, place, preprocessed=self._preprocessed)
        if held is not None:
            return held
        if not isinstance(source, (str, Path)):
            raise UsageError(
                f"an image was given as {type(source).__name__}: expected {IMAGE_KINDS}"
            )
        name = os.fspath(source)
        if self._preprocessed:
            raise UsageError(f"{show_name(name)} {NOT_PREPROCESSED}")
        return self._find_stored(name) if is_url(name) else self._find_local(Path(source), name)

    def _find_local(self, path: Path, name: str) -> Sequence[Path]:
        shown = show_name(name)
        found = [path]
        try:
            check_exists(name)
            if path.is_dir():
                found = search_folder(path, shown, self.skipped)
            elif path.suffix.lower() == ".txt":
                found = _read_list(path, shown)
        except (OSError, ImageReadError) as error:
            reason = getattr(error, "strerror", error)
            raise UsageError(f"{shown} cannot be searched for images: {reason}") from error
        _check_found(shown, found, "one path per line")
        return found

    def _find_stored(self, url: str) -> Sequence[StoredObject]:
        name, place = show_url(url), StoredObject(url)
        try:
            objects = list_objects(url)
        except ImageReadError as error:
            refusal = UsageError(
                f"{name} {error}; give the URL of a folder, an image, a .tar or a .parquet file"
            )
            if not _is_one_image(place):
                raise refusal from error
            # Among others, it alone fails.
            self._unreached[_identify(place)] = refusal
            return [place]
        single = [one.below for one in objects] == [""]
        found = objects if single else choose_kind(objects, suffix_of)
        _check_found(name, found, describe_kinds())
        return found


def _identify(address: ImageAddress) -> Hashable:
    if isinstance(address, Path):
        return address.absolute()
    if isinstance(address, StoredObject):
        return f"{address.url.rstrip('/')}/{address.below}" if address.below else address.url
    return address


def _number_alike(files: Sequence[ImageAddress]) -> Iterator[ImageAddress]:
    # URLs that differ only in hidden parts, such as their queries.
    names = Counter(file.name for file in files if isinstance(file, StoredObject))
    seen: Counter[str] = Counter()
    for file in files:
        if isinstance(file, StoredObject) and names[file.name] > 1:
            seen[file.name] += 1
            yield replace(file, number=seen[file.name])
        else:
            yield file


def _look_into(file: ImageAddress) -> Sequence[ImageAddress]:
    if not isinstance(file, (Path, StoredObject)):
        return [file]
    suffix = suffix_of(file)
    # A folder here is one that could not be searched; even checking for it may fail.
    if isinstance(file, Path) and os.path.isdir(file):  # noqa: PTH112
        return [file]
    if suffix in {TAR, PARQUET} and isinstance(file, StoredObject):
        check_parts(file)
    if suffix == TAR:
        return list_members(file)
    return list_rows(file) if suffix == PARQUET else [file]


def _is_one_image(place: StoredObject) -> bool:
    # The web has no folders; elsewhere a path without image extension could be a folder of
    # thousands.
    suffix = suffix_of(place)
    return suffix in image_extensions() or (is_web(place.url) and suffix not in {TAR, PARQUET})


def _check_found(name: str, files: Sequence[Path | StoredObject], expected: str) -> None:
    if not files:
        raise UsageError(f"{name} names no image: expected {expected}")
    for file in files:
        called = file.name if isinstance(file, Path) else PurePosixPath(file.name).name
        if _COMPRESSED_TAR.search(called):
            raise UsageError(
                f"{name} is a compressed archive, whose members cannot be read one by one: "
                "decompress it to a .tar file"
            )


def _read_list(source: Path, shown: str) -> list[Path]:
    lines = read_file(source, _MAX_LIST_BYTES).removeprefix(BOM_UTF8).split(b"\n")
    paths: list[Path] = []
    for number, line in enumerate(lines, start=1):
        name = os.fsdecode(line.removesuffix(b"\r"))
        if not name.strip() or name.lstrip().startswith("#"):
            continue
        path = source.parent / name
        if resembles_url(name) and not os.path.lexists(path):
            raise UsageError(
                f"line {number} of {shown} is a URL ({show_name(name)}): text files may hold "
                "paths only; give URLs on the command line or in Python"
            )
        paths.append(path)
    return paths
