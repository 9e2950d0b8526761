"""A payment gateway as a process of its own, on loopback: `python -m devstack.gateway --port P --journal FILE`.

It decides by the rules of `workers.gateways.book` and adds what only a process has: an HTTP API, a journal that
outlives it, and faults. When it serves it prints one JSON line with its addresses; SIGTERM ends it.

    POST /charges              {order_id, amount_minor, currency_code, payment_method} -> {"charge": {...}}
    GET  /charges/{key}        -> {"charge": {...}}, or 404 with the code GATEWAY_CHARGE_NOT_FOUND
    POST /charges/{key}/close  -> {"charge": {...} or null}
    POST /refunds              {charge_reference, amount_minor} -> {"refund": {...}}
    GET  /refunds/{key}        -> {"refund": {...}}, or 404 with the code GATEWAY_REFUND_NOT_FOUND
    GET  /movements            ?since=&until=&after= -> {"movements": [...], "next": ""}; times are seconds of the epoch
    GET, PUT /faults           on the admin port only, which an outage does not close

Charges and refunds carry their key in the header Idempotency-Key.

A decline is a 200 with approved false; a refusal is a 4xx with {"error": {"code", "message"}}.

`--dialect stripe` has it speak as Stripe does instead; see `devstack.stripe_gateway`. Rules, journal and faults are the
same.

The journal holds one JSON line per execution, on disk before any answer that tells of it: charge (approved or
declined), refund, first close of a key. What is no execution (replays, refusals, look-ups, 5xx) leaves no line.
PUT /faults replaces the whole set of faults; `devstack.gateway_faults` lists them.
"""

import argparse
import asyncio
import contextlib
import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from devstack.gateway_calls import Calls, without_answer
from devstack.gateway_door import Door, Outages
from devstack.gateway_faults import Call, Faults
from devstack.gateway_journal import Journal
from devstack.ports import LOOPBACK
from workers.gateways.book import DAY_SECONDS, Book
from workers.gateways.gateway import GatewayRefused

_DRAIN_SECONDS = 2.0


class Admin:
    """What tests see: the faults."""

    def __init__(self, outages: Outages) -> None:
        self._outages = outages

    def routes(self) -> list[web.RouteDef]:
        """On the admin port."""
        return [web.get("/faults", self._get), web.put("/faults", self._put)]

    async def _get(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(asdict(self._outages.faults))

    async def _put(self, request: web.Request) -> web.StreamResponse:
        try:
            faults = Faults.parse(await request.json())
        except ValueError as error:
            _refuse(400, "GATEWAY_INVALID_REQUEST", str(error))
        await self._outages.put(faults)
        return await self._get(request)


class GatewayServer:
    """The API over a book and its journal.

    Args:
        book: the rules; it reports its executions to the journal.
        journal: synced before each answer.
        calls: how they go.
    """

    def __init__(self, book: Book, journal: Journal, calls: Calls) -> None:
        self._book = book
        self._journal = journal
        self._calls = calls

    def routes(self) -> list[web.RouteDef]:
        """What callers see."""
        return [
            web.post("/charges", self._charge),
            web.get("/charges/{key}", self._find),
            web.post("/charges/{key}/close", self._close),
            web.post("/refunds", self._refund),
            web.get("/refunds/{key}", self._find_refund),
            web.get("/movements", self._movements),
        ]

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, order_id=str, amount_minor=int, currency_code=str, payment_method=str)

        def decide(call: Call) -> dict[str, Any]:
            declined = call.strikes_key("decline", self._calls.faults.decline_rate)
            return {"charge": asdict(self._book.charge(call.key, **body, declined=declined))}

        return await self._execute(request, decide)

    async def _refund(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, charge_reference=str, amount_minor=int)
        return await self._execute(request, lambda call: {"refund": asdict(self._book.refund(call.key, **body))})

    async def _find(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        charge = self._book.find(request.match_info["key"])
        if charge is None:
            _refuse(404, "GATEWAY_CHARGE_NOT_FOUND", "no charge has executed under this key")
        await self._journal.sync()
        return web.json_response({"charge": asdict(charge)})

    async def _find_refund(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        refund = self._book.find_refund(request.match_info["key"])
        if refund is None:
            _refuse(404, "GATEWAY_REFUND_NOT_FOUND", "no refund has executed under this key")
        await self._journal.sync()
        return web.json_response({"refund": asdict(refund)})

    async def _close(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        charge = self._book.close(request.match_info["key"])
        await self._journal.sync()
        return web.json_response({"charge": None if charge is None else asdict(charge)})

    async def _movements(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        try:
            since, until = float(request.query["since"]), float(request.query["until"])
            page = self._book.movements(since, until, request.query.get("after", ""))
        except (KeyError, ValueError):
            _refuse(400, "GATEWAY_INVALID_REQUEST", "expected since and until, seconds since the epoch")
        except GatewayRefused as refused:
            _refuse(400, refused.error_class, refused.message)
        await self._journal.sync()
        listed = [{**asdict(each), "time": each.time.timestamp()} for each in page.movements]
        return web.json_response({"movements": listed, "next": page.next_cursor})

    async def _execute(self, request: web.Request, decide: Callable[[Call], dict[str, Any]]) -> web.StreamResponse:
        """A call that moves money, with its faults."""

        async def decided(call: Call) -> web.StreamResponse:
            try:
                answer = decide(call)
            except GatewayRefused as refused:
                await self._journal.sync()
                _refuse(400, refused.error_class, refused.message)
            await self._journal.sync()
            return web.json_response(answer)

        key = request.headers.get("Idempotency-Key", "")
        return await self._calls.execute(request, key, decided, is_known=lambda: self._book.knows(key), fail=_fail)


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    journal = Journal(arguments.journal)
    book = Book(
        key_ttl=arguments.key_ttl_seconds,
        benchmark_declines=arguments.benchmark_declines,
        on_execution=journal.append,
    )
    for execution in journal.read():
        book.apply(execution)
    calls = Calls(latency=arguments.latency_ms / 1000, seed=arguments.seed, key_ttl=arguments.key_ttl_seconds)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(journal.close)
        if arguments.dialect == "stripe":
            from devstack import stripe_gateway

            routes = await stack.enter_async_context(stripe_gateway.opened(book, journal, calls, arguments))
        else:
            routes = GatewayServer(book, journal, calls).routes()
        callers = await _runner(routes, stack)
        door = Door(callers, arguments.port)
        calls.outages = Outages(door)
        admin = await _runner(Admin(calls.outages).routes(), stack)
        await door.open()
        ready = {"gateway": f"http://{LOOPBACK}:{door.port}"}
        if arguments.admin_port is not None:
            await web.TCPSite(admin, LOOPBACK, arguments.admin_port).start()
            ready["admin"] = f"http://{LOOPBACK}:{admin.addresses[0][1]}"
        print(json.dumps(ready), flush=True)  # noqa: T201 - the line that says it is ready
        following = asyncio.create_task(calls.outages.follow())
        following.add_done_callback(lambda _: stop.set())
        await stop.wait()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def _runner(routes: list[web.RouteDef], stack: contextlib.AsyncExitStack) -> web.AppRunner:
    app = web.Application(middlewares=[without_answer])
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_DRAIN_SECONDS)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


async def _json(request: web.Request, **expected: type) -> dict[str, Any]:
    """The body, with exactly these fields."""
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or {name: type(value) for name, value in body.items()} != expected:
        _refuse(400, "GATEWAY_INVALID_REQUEST", f"expected an object with {', '.join(expected)}")
    return body


def _refuse(status: int, code: str, message: str) -> NoReturn:
    error = web.HTTPNotFound if status == 404 else web.HTTPBadRequest
    raise error(text=json.dumps({"error": {"code": code, "message": message}}), content_type="application/json")


def _fail(status: int) -> NoReturn:
    error = web.HTTPInternalServerError if status == 500 else web.HTTPServiceUnavailable
    body = {"error": {"code": "GATEWAY_FAILED", "message": "an internal error"}}
    raise error(text=json.dumps(body), content_type="application/json")


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m devstack.gateway", description="A simulated payment gateway.")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--admin-port", type=int, help="on 127.0.0.1, for /faults; without it there are none")
    parser.add_argument("--journal", type=Path, required=True, help="JSON lines, one per execution; read at the start")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="time that each call takes")
    parser.add_argument("--key-ttl-seconds", type=float, default=DAY_SECONDS, help="how long a key replays its answer")
    parser.add_argument(
        "--benchmark-declines", action="store_true", help="decline orders with crc32(order_id) %% 50 == 0"
    )
    parser.add_argument("--dialect", choices=("own", "stripe"), default="own", help="which API callers see")
    parser.add_argument("--webhook-url", help="stripe: where charges are reported to")
    parser.add_argument("--webhook-secret", default="whsec_stand_in", help="stripe: what reports are signed with")
    parser.add_argument("--webhook-copies", type=int, default=1, help="stripe: how often each report is delivered")
    parser.add_argument(
        "--webhook-disorder-seconds", type=float, default=0.0, help="stripe: reports wait for up to so long, at random"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
