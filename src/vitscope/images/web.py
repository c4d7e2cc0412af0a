"""Objects on the web, read in bounded time and memory with few requests."""

import io
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from http.client import responses
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.spec import AbstractBufferedFile

from vitscope.errors import ImageReadError

SILENCE_S = 20
"""Longest wait in seconds for a connection or for the next bytes."""

REQUEST_S = 120
"""Longest request in seconds, however steadily bytes arrive."""

_Reply = TypeVar("_Reply")
_BUFFER_BYTES = 2**20
_CHUNK_BYTES = 2**16
_UNKNOWN = sys.maxsize  # size of an object of which its server does not report it
_REASONS = {
    "TimeoutError": "did not answer in time",
    "TooManyRedirects": "redirects in circles",
    "RedirectClientError": "redirects to what is no address of the web",
    "ClientConnectorError": "cannot be reached",
    "ServerDisconnectedError": "hung up",
    "ClientPayloadError": "hung up in the middle",
}
"""Descriptions of the client's errors, by class name."""

_READ = {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
_VERSION_HEADERS = ("ETag", "Last-Modified", "Content-MD5", "Digest")


class WebStore:
    """fsspec's store of the web, with as much of its interface as reading needs."""

    def __init__(self, store: AbstractFileSystem) -> None:
        self._store = store

    def invalidate_cache(self, url: str) -> None:
        """Forget what is known of an object, which is nothing."""

    def info(self, url: str) -> dict[str, Any]:
        """Look up an object without its content."""

        async def ask() -> dict[str, Any]:
            async with _request(self._store, url, {"Range": "bytes=0-0"}) as reply:
                found = re.search(r"/(\d+)$", reply.headers.get("Content-Range", ""))
                size = int(found[1]) if found else None
                if reply.status == HTTPStatus.OK:  # the server would send all of it
                    size = reply.content_length
                kept = {k: reply.headers[k] for k in _VERSION_HEADERS if k in reply.headers}
                return {"type": "file", "size": size, **kept}

        return _run(self._store, ask)

    def cat_file(self, url: str, start: int | None, end: int) -> bytes:
        """Read bytes of an object, as many as there are; without a start, ask for all of it."""

        async def take() -> bytes:
            taken = part = await _take(self._store, url, start, end)
            # A server may send less than it was asked for.
            while start is not None and part and len(taken) < end - start:
                part = await _take(self._store, url, start + len(taken), end)
                taken += part
            return taken

        return _run(self._store, take)

    def open(self, url: str, mode: str) -> "_WebFile":
        """Open an object with a buffer, so that small reads need no requests of their own."""
        size = self.info(url)["size"]
        known = _UNKNOWN if size is None else size
        return _WebFile(self, url, mode, block_size=_BUFFER_BYTES, size=known)


class _WebFile(AbstractBufferedFile):  # type: ignore[misc]
    def seek(self, loc: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self.size == _UNKNOWN:
            raise ImageReadError("cannot be read: its server does not report its size")
        place: int = super().seek(loc, whence)
        return place

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))


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
        if reply.status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            raise ImageReadError(f"cannot be read: not found (HTTP {reply.status})")
        if reply.status not in _READ:
            told = f"{reply.status} {responses.get(reply.status, '')}".rstrip()
            raise ImageReadError(f"cannot be read: its server answers HTTP {told}")
        encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity":
            raise ImageReadError("cannot be read: its server compresses it, unasked: download it")
        yield reply


async def _take(store: AbstractFileSystem, url: str, start: int | None, end: int) -> bytes:
    first, taken = start or 0, bytearray()
    headers = {} if start is None else {"Range": f"bytes={start}-{end - 1}"}
    async with _request(store, url, headers) as reply:
        if reply.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""  # it ends before that
        if _first_byte(reply, first) != first:
            raise ImageReadError("cannot be read: its server does not support range requests")
        async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
            taken += chunk[: end - first - len(taken)]
            if len(taken) == end - first:
                break
    return bytes(taken)


def _first_byte(reply: Any, asked: int) -> int:
    if reply.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    told = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
    return int(told[1]) if told else asked


def _run(store: AbstractFileSystem, task: Callable[[], Coroutine[Any, Any, _Reply]]) -> _Reply:
    try:
        # A second overall limit, for what the client's own does not cover.
        reply: _Reply = sync(store.loop, task, timeout=REQUEST_S + SILENCE_S)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        reason = next((_REASONS[kind] for kind in kinds if kind in _REASONS), None)
        if reason is None:
            raise
        raise ImageReadError(f"cannot be read: its server {reason}") from None
    return reply
