"""The console's process: the only place that builds its collaborators."""

import asyncio
import contextlib
import datetime
import importlib.metadata
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from console import listener
from console.api import ApiError, Server
from console.board import Board, Boards
from console.border import Border
from console.context import Console, FormRefused, SignInNeeded, Visit, environment, see
from console.flow import Flow
from console.pages import dead_letters, orders, overview, plans, sign_in
from console.replays import Replays
from console.scraping import Scraper, addresses
from console.sessions import Sessions
from console.streams import Streams
from settings import ConsoleSettings
from telemetry import logs, process

log = logs.get()

_STATIC: Final = pathlib.Path(__file__).parent / "static"
_GRACE_SECONDS: Final = 3
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def build(settings: ConsoleSettings, server: Server, *, own_token: Callable[[], str | None]) -> Console:
    """Returns the console's parts, none of them at work yet. Call it inside the running loop."""
    flow = Flow()
    scraper = Scraper(addresses(settings.metrics), refresh_seconds=settings.refresh_seconds, observe=flow.observe)
    overdue = datetime.timedelta(seconds=settings.overdue_seconds)
    return Console(
        settings=settings,
        server=server,
        own_token=own_token,
        needs_sign_in=not process.is_loopback(settings.listen),
        scraper=scraper,
        boards=Boards(
            lambda api: Board(api, scraper, flow, overdue=overdue), scraper, refresh_seconds=settings.refresh_seconds
        ),
        replays=Replays(),
        sessions=Sessions(secure=settings.tls_certificate_file is not None),
        streams=Streams(settings.max_streams),
        templates=environment(),
        version=importlib.metadata.version("orderflow-server"),
    )


def application(console: Console) -> ASGIApp:
    """Returns the console as an ASGI application."""
    routes: list[BaseRoute] = [
        *overview.ROUTES,
        *orders.ROUTES,
        *dead_letters.ROUTES,
        *plans.ROUTES,
        *sign_in.ROUTES,
        Route("/livez", _alive),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    handlers: dict[Any, Any] = {
        ApiError: _call_failed,
        SignInNeeded: _sign_in,
        FormRefused: _form_refused,
        HTTPException: _no_page,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.state.console = console
    settings = console.settings
    return Border(app, hosts=listener.hosts(settings), secure=settings.tls_certificate_file is not None)


async def serve(
    settings: ConsoleSettings,
    stop: asyncio.Event,
    *,
    connect: Callable[[], Server],
    own_token: Callable[[], str | None],
    lends_credentials: bool,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves until `stop` is set. `started` is told where a browser finds it.

    Raises:
        SettingsError: the address cannot be listened on, or the settings would expose it.
        ValueError: `connect` would send orders to another machine in the clear.
    """
    listener.check(settings, lends_credentials=lends_credentials)
    server = connect()
    console = build(settings, server, own_token=own_token)
    with listener.listen(settings) as listening:
        scraping = asyncio.create_task(console.scraper.run(), name="scraper")
        http = _Http(
            uvicorn.Config(
                application(console),
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                http="h11",
                loop="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                ssl_certfile=settings.tls_certificate_file,
                ssl_keyfile=settings.tls_key_file,
            )
        )
        serving = asyncio.create_task(http.serve(sockets=[listening]), name="http")
        address = listener.url(settings, listening)
        log.info("process.started", listen=address)
        started(address)
        try:
            await process.until_stopped_or_failed(stop, scraping, serving)
        finally:
            console.streams.close()
            http.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            await console.replays.close()
            scraping.cancel()
            await asyncio.gather(scraping, return_exceptions=True)
            await server.close()


class _Http(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the process, which ends all of it in order."""
        yield


async def _alive(_: Request) -> Response:
    return PlainTextResponse("ok\n")


def _visitor(request: Request) -> Visit:
    console: Console = request.app.state.console
    return Visit(console, console.sessions.of(request), console.server.as_operator(lambda: None), "")


async def _call_failed(request: Request, error: ApiError) -> Response:
    visitor = _visitor(request)
    if error.code is grpc.StatusCode.UNAUTHENTICATED and visitor.console.own_token() is None:
        return _to_sign_in(request)
    return visitor.page("problem.html", status=_STATUSES.get(error.code, 502), error=error)


async def _sign_in(request: Request, _: SignInNeeded) -> Response:
    return _to_sign_in(request)


def _to_sign_in(request: Request) -> Response:
    if request.url.path.endswith("/live"):  # not a page: what would be shown in one is not to be a form
        return PlainTextResponse("sign in again\n", status_code=401)
    return see("/sign-in", then=request.url.path)


async def _form_refused(request: Request, error: FormRefused) -> Response:
    return _visitor(request).page("refused.html", status=403, text=str(error))


async def _no_page(request: Request, error: HTTPException) -> Response:
    return _visitor(request).page("not_found.html", status=error.status_code, text=request.url.path)
