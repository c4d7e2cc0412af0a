"""Names of files and folders: wildcards, ranges in braces, folders in common, what exists."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Any

from vitscope.errors import UsageError
from vitscope.images.folders import check_folder
from vitscope.images.urls import is_url, resembles_url, show_name

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}", re.ASCII)
_MAX_RANGE = 10**6


def check_given(*given: Any) -> None:
    """Refuse the first name that is neither a URL nor there, or is a folder without images."""
    for images in given:
        # A long list takes long: the search checks all of it. What it has found (a kind of tuple)
        # may hold files of a list that are not there, which a run reports.
        sources = images[:100] if type(images) in (list, tuple) else [images]
        names = [os.fspath(source) for source in sources if isinstance(source, str | Path)]
        for name in chain.from_iterable(map(expand, names)):
            if not is_url(name):
                with suppress(OSError):  # the search says why
                    check_exists(name)
                    if Path(name).is_dir():
                        check_folder(Path(name), show_name(name))


def expand(source: Any) -> Iterator[Any]:
    """What a name with wildcards, or with ranges such as {000..122}, stands for.

    A name that a file has stands for that file.
    """
    if not isinstance(source, (str, Path)) or os.path.lexists(name := os.fspath(source)):
        yield source
    elif _RANGE.search(name):
        yield from _expand_ranges(name)
    elif has_magic(name) and not resembles_url(name):
        yield from sorted(glob(name, recursive=True)) or [name]  # noqa: PTH207 - names as given
    else:
        yield source


def check_exists(name: str) -> None:
    """Refuse a name that no file or folder has."""
    # An unset shell variable gives an empty name, which Path would take for the current folder.
    if name and Path(name).exists():
        return
    shown = show_name(name)
    if resembles_url(name):
        raise UsageError(
            f"{shown} does not exist, and is not a URL: a URL begins as https:// or s3:// does"
        )
    raise UsageError(
        f"{shown} does not exist: give a folder, an image, a .txt file with one path a "
        "line, a .tar or .parquet file, or a URL"
    )


def name_folder(paths: Iterable[str]) -> str:
    """The name of the folder that has all paths; empty if there is none, or it is the user's."""
    folder = find_folder(paths)
    return "" if _is_home(folder) else next(filter(None, reversed(folder)), "")


def find_folder(paths: Iterable[str]) -> list[str]:
    """The folder that has all paths, in parts."""
    folders = [path.split("/")[:-1] for path in paths]
    return list(os.path.commonprefix(folders))  # noqa: RUF071 - of lists, part by part


def find_root(paths: Iterable[str]) -> str:
    """The folder that has all paths, with its last slash."""
    return "".join(f"{part}/" for part in find_folder(paths))


def hide_parents(paths: Sequence[str]) -> list[str]:
    """Paths from the folder that has them all on, if they are absolute; others are left as is."""
    parts = find_folder(paths)
    if parts == [""]:  # without a folder in common
        home = f"{_find_home()}/"
        return ["/".join(path.removeprefix(home).split("/")[-2:]) for path in paths]
    hidden = parts if _is_home(parts) else parts[:-1]
    above = "".join(f"{part}/" for part in hidden) if parts[:1] == [""] else ""
    return [path.removeprefix(above) for path in paths]


def _find_home() -> str:
    return os.path.expanduser("~")  # noqa: PTH111 - which raises where there is none


def _is_home(folder: Sequence[str]) -> bool:
    # Its name is often the user's.
    return "/".join(folder) == _find_home()


def _expand_ranges(name: str) -> Iterator[str]:
    found = _RANGE.search(name)
    if found is None:
        yield name
        return
    first, last = found.groups()
    if not 0 <= int(last) - int(first) < _MAX_RANGE:
        raise UsageError(
            f"{found[0]}: expected a range that goes up and holds at most {_MAX_RANGE} numbers"
        )
    # Keep leading zeros; without any, numbers are not padded.
    width = len(first) if first.startswith("0") else 1
    for number in range(int(first), int(last) + 1):
        yield from _expand_ranges(f"{name[: found.start()]}{number:0{width}}{name[found.end() :]}")
