"""A door before the gateway, in the test's own process: counts what reaches it, and misbehaves when it is told to."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

_LOOPBACK = "127.0.0.1"
_NOT_FOUND = {"error": {"code": "GATEWAY_CHARGE_NOT_FOUND", "message": "no charge has executed under this key"}}


@dataclasses.dataclass
class Call:
    """A request that reached the door. Times are monotonic; `ended` is None while it is under way."""

    method: str
    path: str
    key: str
    began: float
    ended: float | None = None


class Front:
    """Passes requests on to the gateway.

    Attributes:
        calls: all requests that arrived.
        loses_answers: charges are passed on and executed, and the answer never comes back.
        forgets: look-ups say "not found" whatever the gateway knows.
    """

    def __init__(self, port: int, gateway_port: int) -> None:
        self.url = f"http://{_LOOPBACK}:{port}"
        self.calls: list[Call] = []
        self.loses_answers = False
        self.forgets = False
        self._port = port
        self._gateway = f"http://{_LOOPBACK}:{gateway_port}"
        self._back: asyncio.Event | None = None
        self._site: web.TCPSite | None = None
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Front"]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20), trust_env=False) as self._session:
            await self._runner.setup()
            await self._open()
            try:
                yield self
            finally:
                await self._runner.cleanup()

    @contextlib.asynccontextmanager
    async def away(self, kind: str) -> AsyncIterator[None]:
        """An outage: "refuse" (nothing listens, connections are cut) or "hang" (taken, passed to nobody)."""
        if kind == "refuse":
            assert self._site is not None
            await self._site.stop()
            self._cut_all()
            try:
                yield
            finally:
                await self._open()
        else:
            assert kind == "hang"
            self._back = asyncio.Event()
            try:
                yield
            finally:
                self._back.set()
                self._back = None

    async def _open(self) -> None:
        self._site = web.TCPSite(self._runner, _LOOPBACK, self._port, backlog=1024)
        await self._site.start()

    def _cut_all(self) -> None:
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        call = Call(request.method, request.path, request.headers.get("Idempotency-Key", ""), time.monotonic())
        self.calls.append(call)
        try:
            if self._back is not None:
                await self._given_up_or(self._back, request)
                return self._without_answer(request)
            if self.forgets and request.method == "GET":
                return web.json_response(_NOT_FOUND, status=404)
            async with self._session.request(
                request.method,
                self._gateway + request.path,
                data=await request.read(),
                headers={"Idempotency-Key": call.key, "Content-Type": "application/json"},
            ) as answer:
                body = await answer.read()
                if self.loses_answers and request.path == "/charges":
                    return self._without_answer(request)
                return web.Response(status=answer.status, body=body, content_type="application/json")
        finally:
            call.ended = time.monotonic()

    @staticmethod
    async def _given_up_or(back: asyncio.Event, request: web.Request) -> None:
        """Waits until the caller has gone, or the outage is over."""
        while not back.is_set() and request.transport is not None and not request.transport.is_closing():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await back.wait()

    @staticmethod
    def _without_answer(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # goes nowhere
