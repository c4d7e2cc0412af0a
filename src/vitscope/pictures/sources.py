"""Finding pictures in what a person names.

Requirements met here:

- The order of a set, and so everything computed from it, does not depend on the file system.
- File names are bytes from anywhere: they are never decoded strictly, split or printed raw.
"""

import os
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from vitscope.errors import UsageError
from vitscope.pictures.addresses import PictureAddress, Source
from vitscope.pictures.decoding import picture_extensions


def find_images(sources: Source | Sequence[Source]) -> tuple[PictureAddress, ...]:
    """List the pictures that sources name.

    Args:
        sources: Any of these. A folder: searched with everything below it for files with the
            extension of a picture, sorted by relative path; hidden files and folders are skipped,
            links to folders are followed, each folder once. A text file (`.txt`): a path a line,
            relative to the text file's folder; empty lines and lines that begin with # are
            skipped. Any other file: taken as a picture whatever it is called.

    Returns:
        Paths in the order of the sources, each once. Those that a text file lists are not looked
        up: one that is missing is one picture that cannot be read.

    Raises:
        UsageError: If a source does not exist, cannot be searched or names no picture.
    """
    found: dict[Path, Path] = {}
    for source in [sources] if isinstance(sources, Source) else sources:
        for path in _expand(source):
            found.setdefault(path.absolute(), path)
    if not found:
        raise UsageError("no pictures were named: give folders, picture files or a text file")
    return tuple(found.values())


def _expand(source: str | Path) -> list[Path]:
    path = Path(source)
    name = repr(os.fspath(source))
    try:
        # An empty name is what an unset shell variable leaves; Path takes it for this folder.
        if not os.fspath(source) or not path.exists():
            raise UsageError(
                f"{name} does not exist: give a folder, a picture, or a .txt file with one path "
                "a line"
            )
        if path.is_dir():
            paths, expected = _search(path), f"files ending in {_list_extensions()}"
        elif path.suffix.lower() == ".txt":
            paths, expected = _read_list(path), "one path a line"
        else:
            paths, expected = [path], ""
    except OSError as error:
        raise UsageError(f"{name} cannot be searched for pictures: {error.strerror}") from error
    if not paths:
        raise UsageError(f"{name} names no picture: expected {expected}")
    return paths


def _list_extensions() -> str:
    return " ".join(sorted(picture_extensions()))


def _search(folder: Path) -> list[Path]:
    extensions = picture_extensions()
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        # Backwards, for the last folder put on the pile is the first to be searched.
        for entry in sorted(visible, key=lambda entry: entry.name, reverse=True):
            path = current / entry.name
            if _is_folder(entry):
                pending.append(path)
            elif path.suffix.lower() in extensions:
                found.append(path)
    return sorted(found, key=Path.as_posix)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads to itself, or to where nobody may look.
        return False


def _read_list(source: Path) -> list[Path]:
    lines = source.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    names = (os.fsdecode(line.removesuffix(b"\r")) for line in lines)
    return [
        source.parent / name for name in names if name.strip() and not name.lstrip().startswith("#")
    ]
