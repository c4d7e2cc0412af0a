"""Files on this machine, and objects in stores that fsspec reaches by URL.

Only the public part of a URL is shown, and never a store's message, which may quote the rest.
Object names are only names, never read as URLs.
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
from vitscope.images.folders import is_hidden
from vitscope.images.urls import is_web, show_url
from vitscope.images.web import WebStore

MAX_FILE_BYTES = 2**31
"""Largest file that is read: more than the largest decodable image takes uncompressed."""

_VERSION_KEYS = (
    *("size", "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "generation", "blob_id"),
    *("Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created"),
)
"""Names that fsspec's stores use for a value that changes with an object."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a store."""

    url: str = field(repr=False)  # its URL, or that of the folder it was found in; includes secrets
    below: str = ""  # path below the folder; empty if the URL is its own
    size: int | None = None  # in bytes; None if the store does not say
    number: int = 0  # numbers objects whose shown URLs are equal, from 1; otherwise 0

    @property
    def name(self) -> str:
        """Name in tables: the shown URL, numbered if it is not unique."""
        return f"{self.shown} ({self.number})" if self.number else self.shown

    @property
    def shown(self) -> str:
        """URL without user, password and query, as printable text."""
        shown = show_url(self.url)
        if not self.below:
            return shown
        return f"{shown}{'' if shown.endswith('/') else '/'}{printable(self.below)}"

    def read(self) -> bytes:
        """Read the whole object."""
        if self.size is not None:
            return read_range(self, 0, self.size)
        with plain_read_errors(self):
            store, path = _reach(self)
            data = bytes(store.cat_file(path, start=None, end=MAX_FILE_BYTES + 1))
        check_size(len(data))
        return data


Place = Path | StoredObject
"""Location of a file: on this machine or in a store."""


def name_place(place: Place) -> str:
    """A place as printable text."""
    return printable_path(place) if isinstance(place, Path) else place.name


def suffix_of(place: Place) -> str:
    """The extension of a file's name."""
    return (place if isinstance(place, Path) else PurePosixPath(place.shown)).suffix.lower()


def open_store(url: str) -> tuple[AbstractFileSystem, str]:
    """Open the store of a user-given URL; fsspec caches one instance of each per process."""
    scheme = url.partition("://")[0]
    if "::" in url:
        first = url.partition("::")[0]
        shown = show_url(first) if "://" in first else printable(first)
        raise UsageError(f"{shown} begins a chain of URLs: give one URL")
    try:
        store, path = url_to_fs(url)
    except ImportError as error:
        # fsspec's error only gives advice; its cause names the missing module.
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
    return WebStore(store) if is_web(url) else store, path


def list_objects(url: str) -> list[StoredObject]:
    """List the objects at a URL."""
    store, root = open_store(url)
    with plain_read_errors(StoredObject(url)):
        about = _look_up(store, root)
        if about["type"] != "directory":
            return [StoredObject(url, size=about.get("size"))]
        found = store.find(root, detail=True).items()
        sizes = {path.removeprefix(root).removeprefix("/"): one.get("size") for path, one in found}
    # Stores may list a folder itself as an object.
    visible = (b for b in sorted(sizes) if b and not any(map(is_hidden, b.split("/"))))
    return [StoredObject(url, below, sizes[below]) for below in visible]


def _look_up(store: AbstractFileSystem, path: str) -> dict[str, Any]:
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
    """Open a file in any place."""
    if isinstance(place, Path):
        with _open_regular(place) as file:
            yield file
    else:
        store, path = _reach(place)
        with store.open(path, "rb") as file:
            yield file


def read_range(place: Place, start: int, size: int) -> bytes:
    """Read only a part of a file."""
    check_size(size)
    with plain_read_errors(place):
        if isinstance(place, Path):
            with open_place(place) as file:
                file.seek(start)
                data = file.read(size)
        else:
            store, path = _reach(place)
            data = bytes(store.cat_file(path, start=start, end=start + size)) if size else b""
    if len(data) != size:
        raise ImageReadError(
            f"{len(data)} bytes came where {size} were expected: it changed, or its server does "
            "not support range requests"
        )
    return data


def check_parts(place: StoredObject) -> None:
    """Raise an error if a file cannot be read in parts."""
    try:
        read_range(place, 1, 1)
    except ImageReadError as error:
        raise UsageError(
            f"{place.name} cannot be read in parts ({error}): download it, or use a server "
            "that supports range requests"
        ) from error


def read_file(path: Path, most: int | None = None) -> bytes:
    """Read an image file, which may be anything."""
    with plain_read_errors(path), _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, most)
        # No more than its size when opened: a growing file may have no end.
        return file.read(size)


def _open_regular(path: Path) -> BinaryIO:
    # Opening a pipe or device may block, and reading it may never end. Check again after opening,
    # because the file may have been replaced since it was found.
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        os.scandir(path).close()  # raises the reason if it cannot be searched
    if not stat.S_ISREG(mode):
        raise ImageReadError("not a regular file")
    no_waiting = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_waiting))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ImageReadError("not a regular file")
    return file


def local_version(path: Path) -> str:
    """A value that changes when another local file is written in the same place."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def stored_version(place: StoredObject) -> str:
    """A value that changes when another object is written in the same place."""
    about = _look_up(*_reach(place))
    return " ".join(f"{key}={about[key]}" for key in _VERSION_KEYS if about.get(key) is not None)


def check_size(size: int, most: int | None = None) -> None:
    """Raise an error if a file is too large."""
    most = MAX_FILE_BYTES if most is None else most
    if size > most:
        raise ImageReadError(f"too large: {size} bytes, more than {most}")


@contextmanager
def plain_read_errors(place: Place) -> Iterator[None]:
    """Turn everything that keeps a file from being read into an `ImageReadError`."""
    try:
        yield
    except (ImageReadError, MemoryError):
        raise
    except VitscopeError as error:
        raise ImageReadError(str(error)) from error
    except Exception as error:
        # Deliberately broad: the bytes are untrusted, and the errors of store clients and archive
        # readers are undocumented.
        raise ImageReadError(f"cannot be read: {_explain(place, error)}") from error


def _explain(place: Place, error: Exception) -> str:
    # On one printable line; for a store only the kind of error, as its message may contain secrets.
    if isinstance(place, StoredObject):
        if isinstance(error, TimeoutError):
            return "its server did not answer in time"
        return "not found" if isinstance(error, FileNotFoundError) else type(error).__name__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(text.split()))[:200]
