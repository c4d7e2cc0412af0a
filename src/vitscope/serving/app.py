"""The server of the page: what it answers, and what it refuses.

Requests come from a browser in which hostile pages may be open too, and images from anywhere.
"""

import asyncio
import socket
from functools import cache, partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vitscope.errors import UsageError, VitscopeError
from vitscope.figures.saved import ModelResult
from vitscope.report.page import render_explaining_page, render_report
from vitscope.serving.explainer import Explainer

_MOST_BYTES = 2**25
_MOST_SECONDS = 30
"""Size of an image's file, and time to send it."""
_MOST_CONNECTIONS = 32
_FOREIGN = (
    "refused: this request came from another site, or under an unknown host name. Open the "
    "printed address, or start `vitscope serve --host NAME`"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_server(explainer: Explainer, results: list[ModelResult], host: str) -> uvicorn.Server:
    """A server that is not running yet."""
    config = uvicorn.Config(
        make_app(explainer, results, host),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        headers=list(_HEADERS.items()),
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket on which to serve."""
    if not 0 <= port < 2**16:
        raise UsageError(f"port {port}: expected 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"host {host}, port {port}: {error.strerror}; choose another host or port"
        ) from None


def make_app(explainer: Explainer, results: list[ModelResult], host: str) -> Starlette:
    """The pages, and the explanation of an image that is sent."""
    turn = CapacityLimiter(1)  # one image at a time is decoded and run
    page = render_explaining_page(
        explainer.layers, has_report=bool(results), most_bytes=_MOST_BYTES
    )

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page) if explainer.layers else RedirectResponse("/report")

    @cache
    def draw_report() -> str:
        return render_report(results)

    async def show_report(_: Request) -> Response:
        if not results:
            raise HTTPException(404, "no saved results were given to vitscope serve")
        return HTMLResponse(await to_thread.run_sync(draw_report, limiter=turn))

    async def explain(request: Request) -> Response:
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                image = await request.body()
        except TimeoutError:
            reason = f"the image did not arrive within {_MOST_SECONDS} s: send it again"
            raise HTTPException(408, reason) from None
        model_id, layer = (request.query_params.get(name, "") for name in ("model", "layer"))
        if not layer.isdecimal() or len(layer) > 4:
            raise UsageError(f"layer {layer[:60]!r}: expected a block's number, such as 11")
        async with turn:
            if await request.is_disconnected():
                return Response()
            work = partial(explainer.explain, model_id, int(layer), image)
            found: dict[str, Any] = await to_thread.run_sync(work)
        return JSONResponse(found)

    return Starlette(
        routes=[
            Route("/", show_page),
            Route("/report", show_report),
            Route("/explain", explain, methods=["POST"]),
        ],
        middleware=[Middleware(_FromThisPage, host=host)],
        exception_handlers={VitscopeError: _tell_error, ClientDisconnect: _tell_error},
        max_body_size=_MOST_BYTES,
    )


async def _tell_error(_: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 422)


class _FromThisPage:
    """Refuses requests of other sites' pages, and under names that are not this server's.

    A page whose name was rebound to this machine's address sends its own name as Host; nobody can
    rebind an address.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._is_own(host) and origin in {None, f"http://{host}", f"https://{host}"}:
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(_FOREIGN, 403)(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name not in self._names:
                ip_address(name)
        except ValueError:
            return False
        return True
