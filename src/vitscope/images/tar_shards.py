"""Images in tar archives with the layout of WebDataset, found in one pass over the headers.

Nothing is extracted and member names are never followed. A damaged archive is refused as a whole:
half of it would be a different set of images.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from posixpath import normpath
from typing import BinaryIO

from vitscope.errors import ImageReadError, UsageError
from vitscope.files.printable import printable_path
from vitscope.images.folders import image_extensions, is_hidden
from vitscope.images.stores import (
    Place,
    name_place,
    open_place,
    plain_read_errors,
    read_range,
)

_MAX_HEADER_BYTES = 2**16
"""Largest header of a member with its extended headers; names take up to 4,096 bytes."""


_LABEL_WORDS = {"depth", "gt", "label", "labels", "mask", "masks", "seg", "segmentation", "target"}


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in a tar archive."""

    archive: Place
    member: str
    offset: int  # first byte of its content in the archive
    size: int | None  # None for a device, a sparse file, or a link to anything but an earlier image

    @property
    def name(self) -> str:
        """Archive and member as printable text."""
        return f"{name_place(self.archive)}::{printable_path(self.member)}"

    def read(self) -> bytes:
        """Read its bytes."""
        if self.size is None:
            raise ImageReadError("not a regular file")
        return read_range(self.archive, self.offset, self.size)


class FoundMembers(list[TarMember]):
    """The images of an archive."""

    num_left_out = 0  # members with an image extension that look like parts of samples


def list_members(archive: Place) -> FoundMembers:
    """Find the images of an archive from its headers."""
    named: list[TarMember] = []
    by_path: dict[str, TarMember] = {}
    num_members = 0
    try:
        with plain_read_errors(archive), open_place(archive) as file:
            for info in _iter_members(file):
                num_members += 1
                if _is_image(info):
                    member = _locate(archive, info, by_path)
                    by_path[normpath(info.name)] = member
                    named.append(member)
    except ImageReadError as error:
        raise UsageError(
            f"{name_place(archive)} is not a complete tar archive, {num_members} members can "
            f"be read ({error}): fetch or write it again, or leave it out"
        ) from error
    found = _leave_out_parts(named)
    if not found:
        raise UsageError(
            f"none of the {num_members} members of {name_place(archive)} is an image: expected "
            f"names such as key.jpg ({len(named)} look like parts of samples, such as key.seg.png)"
        )
    return found


def _leave_out_parts(named: list[TarMember]) -> FoundMembers:
    samples = [_split(member) for member in named]
    whole = {key for key, ending in samples if "." not in ending}
    images_of = Counter(key for key, _ in samples)
    samples_with = Counter(ending for _, ending in set(samples))

    def is_part(key: str, ending: str) -> bool:
        words = any(map(str.isalpha, ending.rpartition(".")[0]))
        shared = words and images_of[key] > 1 and samples_with[ending] > 1
        of_labels = not _LABEL_WORDS.isdisjoint(ending.split("."))
        return "." in ending and (key in whole or shared or of_labels)

    # `key.jpg` and `key.json` are one sample, but photographs may have dots in their names. So a
    # member with several dots is an image of its own unless its sample has an image without
    # (`key.edge.png`), its ending occurs in another sample with several images (`a.left.jpg`), or
    # the ending is a word for labels (`key.seg.png`).
    found = FoundMembers(
        member for member, sample in zip(named, samples, strict=True) if not is_part(*sample)
    )
    found.num_left_out = len(named) - len(found)
    return found


def _split(member: TarMember) -> tuple[str, str]:
    # The key of its sample including the folder, and everything after the first dot.
    path = PurePosixPath(member.member)
    key, _, ending = path.name.partition(".")
    return f"{path.parent}/{key}", ending.lower()


def _locate(archive: Place, info: tarfile.TarInfo, earlier: Mapping[str, TarMember]) -> TarMember:
    # tar stores a file with two names once, and a hard link for the second name.
    target = earlier.get(normpath(info.linkname)) if info.islnk() else None
    if target is not None:
        return replace(target, member=info.name)
    size = info.size if info.isreg() and not info.issparse() else None
    return TarMember(archive, info.name, info.offset_data, size)


class _Headers:
    """An archive's file object that limits the bytes read for each member's header."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MAX_HEADER_BYTES

    def start_member(self) -> None:
        self._left = _MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError(f"a header of more than {_MAX_HEADER_BYTES} bytes")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def _iter_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    headers = _Headers(file)
    with tarfile.open(fileobj=headers, mode="r:", errors="surrogateescape") as archive:  # type: ignore[call-overload]
        before = -1
        while (member := archive.next()) is not None:
            # Negative sizes lead backwards, in an endless loop.
            if member.size < 0 or archive.offset <= before:
                raise tarfile.ReadError("a member of negative size")
            before = archive.offset
            yield member
            # tarfile keeps all headers in memory for access by name, and global headers for all
            # later members. Neither is needed: each member's own header is enough.
            archive.members.clear()
            archive.pax_headers.clear()
            headers.start_member()
        # tarfile takes a damaged or missing header for the end.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no header and no end at byte {archive.offset}")


def _is_image(info: tarfile.TarInfo) -> bool:
    path = PurePosixPath(info.name)
    hidden = any(is_hidden(part) for part in path.parts if part != "..")
    return not (info.isdir() or hidden) and path.suffix.lower() in image_extensions()
