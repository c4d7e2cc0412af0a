"""Objects on the web, read in bounded time and memory with one request per read."""

import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from vitscope.errors import ImageReadError

SILENCE_S = 20
"""Longest wait in seconds for a connection or for the next bytes."""

REQUEST_S = 120
"""Longest request in seconds, however steadily bytes arrive."""

_BUFFER_BYTES = 2**20
_CHUNK_BYTES = 2**16
_REASONS = {
    "TimeoutError": "did not answer in time",
    "TooManyRedirects": "redirects in circles",
    "RedirectClientError": "redirects to what is no address of the web",
    "ClientConnectorError": "cannot be reached",
    "ServerDisconnectedError": "hung up",
    "ClientPayloadError": "hung up in the middle",
}
"""Descriptions of the client's errors, by class name."""

_VERSION_HEADERS = ("ETag", "Last-Modified", "Content-MD5", "Digest")


def look_up(store: AbstractFileSystem, url: str) -> dict[str, Any]:
    """Look up an object without its content."""

    async def ask() -> dict[str, Any]:
        async with _request(store, url, {"Range": "bytes=0-0"}) as reply:
            found = re.search(r"/(\d+)$", reply.headers.get("Content-Range", ""))
            size = int(found[1]) if found else None
            if reply.status == HTTPStatus.OK:  # the server would send all of it
                size = reply.content_length
            kept = {k: reply.headers[k] for k in _VERSION_HEADERS if k in reply.headers}
            return {"type": "file", "size": size, **kept}

    about: dict[str, Any] = _run(store, ask)
    return about


def fetch(store: AbstractFileSystem, url: str, most: int, start: int | None = None) -> bytes:
    """Read bytes of an object."""
    headers = {} if start is None else {"Range": f"bytes={start}-{start + most - 1}"}

    async def take() -> bytes:
        taken = bytearray()
        async with _request(store, url, headers) as reply:
            if reply.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""  # it ends before that
            if _first_byte(reply, start or 0) != (start or 0):
                raise ImageReadError("cannot be read: its server does not support range requests")
            async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
                taken += chunk[: most - len(taken)]
                if len(taken) == most:
                    break
        return bytes(taken)

    data: bytes = _run(store, take)
    return data


class WebFile(io.RawIOBase):
    """An object on the web as a seekable file."""

    def __init__(self, store: AbstractFileSystem, url: str) -> None:
        self._store, self._url = store, url
        self._size = look_up(store, url)["size"]
        self._position = 0

    @classmethod
    def open(cls, store: AbstractFileSystem, url: str) -> io.BufferedReader:
        """Open an object with a buffer, so that small reads need no requests of their own."""
        return io.BufferedReader(cls(store, url), _BUFFER_BYTES)

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from any position: always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        if whence == io.SEEK_END and self._size is None:
            raise ImageReadError("cannot be read: its server does not report its size")
        self._position = offset + (0, self._position, self._size or 0)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        data = fetch(self._store, self._url, len(buffer), self._position) if buffer else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@asynccontextmanager
async def _request(
    store: AbstractFileSystem, url: str, headers: dict[str, str]
) -> AsyncIterator[Any]:
    from aiohttp import ClientTimeout  # installed with fsspec's http store

    session = await store.set_session()
    asked = {**store.kwargs.get("headers", {}), "Accept-Encoding": "identity", **headers}
    limits = ClientTimeout(total=REQUEST_S, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    options = {**store.kwargs, "headers": asked, "timeout": limits}
    async with session.get(store.encode_url(url), **options) as reply:
        _check_status(reply.status)
        encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity":
            raise ImageReadError("cannot be read: its server compresses it, unasked: download it")
        yield reply


def _first_byte(reply: Any, asked: int) -> int:
    if reply.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    told = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
    return int(told[1]) if told else asked


def _check_status(status: int) -> None:
    if status in {
        HTTPStatus.OK,
        HTTPStatus.PARTIAL_CONTENT,
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    }:
        return
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        raise ImageReadError(f"cannot be read: not found (HTTP {status})")
    known = status in HTTPStatus._value2member_map_
    meaning = f" {HTTPStatus(status).phrase}" if known else ""
    raise ImageReadError(f"cannot be read: its server answers HTTP {status}{meaning}")


def _run(store: AbstractFileSystem, task: Any) -> Any:
    try:
        # A second overall limit, for what the client's own does not cover.
        return sync(store.loop, task, timeout=REQUEST_S + SILENCE_S)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        reason = next((_REASONS[kind] for kind in kinds if kind in _REASONS), None)
        if reason is None:
            raise
        raise ImageReadError(f"cannot be read: its server {reason}") from None
