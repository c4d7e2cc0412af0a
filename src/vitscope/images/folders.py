"""Images in a folder, in an order that does not depend on the file system; imports no torch."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from vitscope.errors import UsageError
from vitscope.files.own_files import find_own
from vitscope.images.urls import show_name

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of Pillow that are read."""
TAR, PARQUET = ".tar", ".parquet"
_MADE_BY_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
"""System folders with other versions of the files beside them, or with deleted files."""

_File = TypeVar("_File")


@cache
def image_extensions() -> frozenset[str]:
    """File name extensions of the formats that are read."""
    from PIL import Image  # here: wrong names are refused without it

    known = Image.registered_extensions()
    return frozenset(extension for extension, name in known.items() if name in FORMATS)


def describe_kinds() -> str:
    """What a folder is searched for."""
    extensions = " ".join(sorted(image_extensions()))
    return f"files ending in {extensions}, or {TAR}, or {PARQUET}"


def choose_kind(files: Sequence[_File], suffix_of: Callable[[_File], str]) -> list[_File]:
    """The files of the first kind that is there.

    Tables of captions lie beside archives, and archives beside the images unpacked from them.
    """
    for extensions in (image_extensions(), {TAR}, {PARQUET}):
        chosen = [file for file in files if suffix_of(file) in extensions]
        if chosen:
            return chosen
    return []


def is_hidden(name: str) -> bool:
    """Whether a file or folder is skipped, with everything below it."""
    return name.startswith(".") or name in _MADE_BY_SYSTEMS


def check_folder(folder: Path, shown: str) -> None:
    """Refuse a folder without images; one with images is searched up to the first."""
    skipped: list[Path] = []
    closed: dict[Path, OSError] = {}
    kinds = {*image_extensions(), TAR, PARQUET}
    if not any(_suffix_of(path) in kinds for path in _walk(folder, skipped, closed)):
        raise _make_error(shown, closed, is_own=folder in skipped)


def search_folder(folder: Path, shown: str, skipped: list[Path]) -> list[Path]:
    """Find the images in a folder; folders with files of vitscope's own are added to `skipped`."""
    closed: dict[Path, OSError] = {}
    found = list(_walk(folder, skipped, closed))
    chosen = choose_kind(sorted(found, key=Path.as_posix), _suffix_of)
    if not chosen:
        raise _make_error(shown, closed, is_own=folder in skipped)
    # Reading a folder that could not be searched reports why.
    return sorted([*chosen, *closed], key=Path.as_posix)


def _make_error(shown: str, closed: dict[Path, OSError], *, is_own: bool) -> UsageError:
    if closed:
        path, reason = next(iter(closed.items()))
        name = show_name(os.fspath(path))
        return UsageError(f"{name} cannot be searched for images: {reason.strerror}")
    own = ", none of which vitscope wrote itself" if is_own else ""
    return UsageError(f"{shown} names no image: expected {describe_kinds()}{own}")


def _walk(folder: Path, skipped: list[Path], closed: dict[Path, OSError]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                visible = [entry for entry in entries if not is_hidden(entry.name)]
        except OSError as error:
            closed[current] = error
            continue
        if own := find_own(current, {entry.name for entry in visible}):
            skipped.append(current)
            visible = [entry for entry in visible if entry.name not in own]
        # In reverse, because the last folder on the stack is searched first.
        for entry in sorted(visible, key=lambda entry: entry.name, reverse=True):
            if _is_folder(entry):
                pending.append(current / entry.name)
            else:
                yield current / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A circular link, or a target without permission.
        return False


def _suffix_of(path: Path) -> str:
    return path.suffix.lower()
