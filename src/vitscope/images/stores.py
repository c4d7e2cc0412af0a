"""Files and objects: bytes on this machine, and bytes in a store that fsspec reaches by a URL.

- Of a URL only what is no secret is shown (see `vitscope.images.urls`); nor is the text of a
  store's own errors, which may quote the rest.
- Names of objects are names alone: whatever signs stand in them, no URL is read out of them.
- A file whose header claims to be larger than `MAX_FILE_BYTES` is not read.
- Nothing is held open between two reads.
- A pipe or a device is never waited for, a file that grows never read beyond its bound.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from vitscope.errors import ImageReadError, UsageError, VitscopeError
from vitscope.files.printable import printable, printable_path
from vitscope.images import web
from vitscope.images.urls import is_web, show_url

MAX_FILE_BYTES = 2**31
"""Largest file that is read: more than the largest image that is decoded takes uncompressed."""

_MADE_BY_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
"""Folders that hold other forms of the files beside them, or deleted ones."""

_VERSION_KEYS = (
    *("size", "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "generation", "blob_id"),
    *("Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created"),
)
"""What the stores of fsspec call that which changes with an object."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a store."""

    url: str = field(repr=False)  # of it, or of a folder that it was found in; with its secrets
    below: str = ""  # where it is below the folder; empty where the URL is its own
    size: int | None = None  # bytes of it, None where the store does not say
    number: int = 0  # counts those whose shown URLs look alike, from 1 on; 0 where none do

    @property
    def name(self) -> str:
        """What it is called in tables: as it is shown, and which of those that look alike it is."""
        return f"{self.shown} ({self.number})" if self.number else self.shown

    @property
    def shown(self) -> str:
        """Its URL without user, password and query, as text that can be printed."""
        shown = show_url(self.url)
        if not self.below:
            return shown
        return f"{shown}{'' if shown.endswith('/') else '/'}{printable(self.below)}"

    def read(self) -> bytes:
        """Read all of it."""
        if self.size is not None:
            return read_range(self, 0, self.size)
        with plain_read_errors(self):
            store, path = _reach(self)
            if is_web(self.url):
                data = web.fetch(store, path, MAX_FILE_BYTES + 1)
            else:
                with store.open(path, "rb") as file:
                    data = file.read(MAX_FILE_BYTES + 1)
        check_size(len(data))
        return data


Place = Path | StoredObject
"""Where a file lies: on this machine or in a store."""


def name_place(place: Place) -> str:
    """A place as text that any file format and any terminal takes."""
    return printable_path(place) if isinstance(place, Path) else place.name


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over, with whatever is below it."""
    return name.startswith(".") or name in _MADE_BY_SYSTEMS


def suffix_of(place: Place) -> str:
    """The extension of a file's name."""
    return (place if isinstance(place, Path) else PurePosixPath(place.shown)).suffix.lower()


def open_store(url: str) -> tuple[AbstractFileSystem, str]:
    """Open the store that a person's URL is of; fsspec keeps one of each open in a process."""
    scheme = url.partition("://")[0]
    if "::" in url:
        first = url.partition("::")[0]
        shown = show_url(first) if "://" in first else printable(first)
        raise UsageError(f"{shown} begins a chain of URLs: give one URL")
    try:
        store, path = url_to_fs(url)
    except ImportError as error:
        # fsspec's own error gives advice in words; the one behind it names the module.
        missing = getattr(error.__cause__, "name", None) or scheme
        package = missing.partition(".")[0]
        raise UsageError(
            f"{scheme}:// needs the package {package}, which is not installed: pip install "
            f"{package}"
        ) from None
    except ValueError:
        raise UsageError(
            f"{scheme}:// is not a store that fsspec knows: give s3://, gs://, hf://, https:// or "
            "another that it does"
        ) from None
    return store, path


def list_objects(url: str) -> list[StoredObject]:
    """Look up what a URL is of."""
    store, root = open_store(url)
    with plain_read_errors(StoredObject(url)):
        about = _look_up(store, root, url)
        if about["type"] != "directory":
            return [StoredObject(url, size=about.get("size"))]
        found = store.find(root, detail=True).items()
        sizes = {path.removeprefix(root).removeprefix("/"): one.get("size") for path, one in found}
    # A folder may be an object too, which is no image.
    visible = (b for b in sorted(sizes) if b and not any(map(is_hidden, b.split("/"))))
    return [StoredObject(url, below, sizes[below]) for below in visible]


def _look_up(store: AbstractFileSystem, path: str, url: str) -> dict[str, Any]:
    if is_web(url):
        return web.look_up(store, path)
    store.invalidate_cache(path)
    about: dict[str, Any] = store.info(path)
    return about


def _reach(place: StoredObject) -> tuple[AbstractFileSystem, str]:
    store, root = open_store(place.url)
    if not place.below:
        return store, root
    return store, f"{root.rstrip('/')}/{place.below}" if root else place.below


@contextmanager
def open_place(place: Place) -> Iterator[BinaryIO]:
    """Open a file wherever it lies."""
    if isinstance(place, Path):
        with _open_regular(place) as file:
            yield file
    else:
        store, path = _reach(place)
        opened = web.WebFile.open(store, path) if is_web(place.url) else store.open(path, "rb")
        with opened as file:
            yield file


def read_range(place: Place, start: int, size: int) -> bytes:
    """Read a part of a file without the rest."""
    check_size(size)
    with plain_read_errors(place):
        if isinstance(place, Path):
            with open_place(place) as file:
                file.seek(start)
                data = file.read(size)
        else:
            data = _fetch(place, start, size) if size else b""
    if len(data) != size:
        raise ImageReadError(
            f"{len(data)} bytes came where {size} were expected: it changed, or its server does "
            "not support range requests"
        )
    return data


def _fetch(place: StoredObject, start: int, size: int) -> bytes:
    store, path = _reach(place)
    if is_web(place.url):
        return web.fetch(store, path, size, start)
    return bytes(store.cat_file(path, start=start, end=start + size))


def check_parts(place: StoredObject) -> None:
    """Refuse a file of which a part cannot be had without the rest."""
    try:
        read_range(place, 1, 1)
    except ImageReadError as error:
        raise UsageError(
            f"{place.name} cannot be read in parts ({error}): download it, or use a server "
            "that supports range requests"
        ) from error


def read_file(path: Path, most: int | None = None) -> bytes:
    """Read an image's file, whatever is called one."""
    with plain_read_errors(path), _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, most)
        # No more than it held when it was opened, for a file that grows may have no end.
        return file.read(size)


def _open_regular(path: Path) -> BinaryIO:
    # A pipe or a device may keep whoever opens it waiting, or never end: what is open is looked at,
    # for another may have been put in its place since it was found.
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        os.scandir(path).close()  # one that cannot be searched says why
    if not stat.S_ISREG(mode):
        raise ImageReadError("not a regular file")
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ImageReadError("not a regular file")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def local_version(path: Path) -> str:
    """What changes when another file of this machine is written in its place."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def stored_version(place: StoredObject) -> str:
    """What changes when another object is written in its place."""
    about = _look_up(*_reach(place), place.url)
    return " ".join(f"{key}={about[key]}" for key in _VERSION_KEYS if about.get(key) is not None)


def check_size(size: int, most: int | None = None) -> None:
    """Refuse what is too large."""
    most = MAX_FILE_BYTES if most is None else most
    if size > most:
        raise ImageReadError(f"too large: {size} bytes, more than {most}")


@contextmanager
def plain_read_errors(place: Place) -> Iterator[None]:
    """Have one kind of error for whatever keeps a file from being read."""
    try:
        yield
    except (ImageReadError, MemoryError):
        raise
    except VitscopeError as error:
        raise ImageReadError(str(error)) from error
    except Exception as error:
        # As broad as can be: bytes from anywhere, and what the clients of stores and the readers of
        # archives raise on them is documented nowhere.
        raise ImageReadError(f"cannot be read: {_explain(place, error)}") from error


def _explain(place: Place, error: Exception) -> str:
    # In one printable line; of a store's error the kind alone, for its text may hold secrets.
    if isinstance(place, StoredObject):
        if isinstance(error, TimeoutError):
            return "its server did not answer in time"
        return "not found" if isinstance(error, FileNotFoundError) else type(error).__name__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(text.split()))[:200]
