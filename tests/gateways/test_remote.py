"""HttpGateway against servers that answer wrongly: nothing but the gateway's own word settles a charge."""

import datetime
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from domain.failures import Failure
from domain.reconciliation import Movement
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayRefused, GatewayUnavailable, KeyClosed, MovementPage
from workers.gateways.remote import HttpGateway

GOOD = {
    "reference": "ch_1",
    "key": "k-1",
    "approved": True,
    "decline_reason": "",
    "amount_minor": 100,
    "currency_code": "EUR",
}
Serve = Callable[[Callable[[], web.StreamResponse]], Awaitable[HttpGateway]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server that answers everything with one response, and returns a client of it."""
    servers: list[TestServer] = []
    clients: list[HttpGateway] = []

    async def start(respond: Callable[[], web.StreamResponse]) -> HttpGateway:
        async def handle(_: web.Request) -> web.StreamResponse:
            return respond()

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        clients.append(HttpGateway(str(servers[-1].make_url("/"))))
        return clients[-1]

    yield start
    for client in clients:
        await client.aclose()
    for server in servers:
        await server.close()


async def charge(gateway: HttpGateway) -> Charge:
    return await gateway.charge(
        "k-1", order_id="o-1", amount_minor=100, currency_code="EUR", payment_method="pm_card_visa"
    )


def error(code: str) -> str:
    return json.dumps({"error": {"code": code, "message": "m"}})


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, error("GATEWAY_KEY_CLOSED")),
        (503, "busy"),
        (200, "<html>OK</html>"),
        (200, "[]"),
        (200, "{}"),
        (200, json.dumps({"charge": None})),
        (200, json.dumps({"charge": {**GOOD, "key": "k-2"}})),
        (200, json.dumps({"charge": {**GOOD, "amount_minor": 99}})),
        (200, json.dumps({"charge": {**GOOD, "amount_minor": True}})),
        (200, json.dumps({"charge": {**GOOD, "currency_code": "USD"}})),
        (200, json.dumps({"charge": {**GOOD, "approved": "yes"}})),
        (200, json.dumps({"charge": GOOD}) + " " * 70_000),
        (302, "{}"),
        (404, "<html>no such page</html>"),
        (404, "{}"),
        (409, "{}"),
        (409, error("GATEWAY_KEY_IN_USE")),
    ],
)
async def test_what_is_no_answer_of_the_gateway_leaves_a_charge_unknown(serve: Serve, status: int, text: str) -> None:
    gateway = await serve(lambda: web.Response(status=status, text=text, headers={"Location": "/elsewhere"}))
    with pytest.raises(ChargeUnknown):
        await charge(gateway)


@pytest.mark.parametrize(
    ("status", "text"), [(500, "{}"), (200, "<html/>"), (200, "{}"), (404, "<html/>"), (404, "{}"), (302, "{}")]
)
async def test_a_look_up_or_close_without_an_answer_is_dependency_down(serve: Serve, status: int, text: str) -> None:
    gateway = await serve(lambda: web.Response(status=status, text=text))
    for call in (gateway.find, gateway.close):
        with pytest.raises(GatewayUnavailable):
            await call("k-1")


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_being_turned_away_is_dependency_down(serve: Serve, status: int) -> None:
    gateway = await serve(lambda: web.Response(status=status, text=error("WHATEVER")))
    with pytest.raises(GatewayUnavailable):
        await charge(gateway)
    with pytest.raises(GatewayUnavailable):
        await gateway.find("k-1")


@pytest.mark.parametrize(
    ("code", "kind", "error_class"),
    [
        ("GATEWAY_KEY_REUSED", GatewayRefused, "GATEWAY_KEY_REUSED"),
        ("GATEWAY_KEY_CLOSED", KeyClosed, "GATEWAY_KEY_CLOSED"),
        ("made_up", GatewayRefused, "GATEWAY_REFUSED"),
    ],
)
async def test_a_refusal_is_permanent_under_a_known_class(
    serve: Serve, code: str, kind: type[Failure], error_class: str
) -> None:
    gateway = await serve(lambda: web.Response(status=400, text=error(code)))
    with pytest.raises(kind) as refused:
        await charge(gateway)
    assert refused.value.error_class == error_class


async def test_a_refund_must_be_the_one_asked_for(serve: Serve) -> None:
    good: dict[str, Any] = {
        "reference": "re_1",
        "key": "r-1",
        "charge_reference": "ch_1",
        "amount_minor": 100,
        "currency_code": "EUR",
    }
    gateway = await serve(lambda: web.json_response({"refund": good}))
    assert (await gateway.refund("r-1", charge_reference="ch_1", amount_minor=100)).reference == "re_1"
    for key, reference, amount in (("r-2", "ch_1", 100), ("r-1", "ch_2", 100), ("r-1", "ch_1", 99)):
        with pytest.raises(ChargeUnknown):
            await gateway.refund(key, charge_reference=reference, amount_minor=amount)


async def test_a_refund_is_looked_up(serve: Serve) -> None:
    good = {"reference": "re_1", "key": "r-1", "charge_reference": "ch_1", "amount_minor": 100, "currency_code": "EUR"}
    found = await (await serve(lambda: web.json_response({"refund": good}))).find_refund("r-1", charge_reference="ch_1")
    assert found is not None
    assert (found.reference, found.amount_minor) == ("re_1", 100)
    absent = await serve(lambda: web.Response(status=404, text=error("GATEWAY_REFUND_NOT_FOUND")))
    assert await absent.find_refund("r-1", charge_reference="ch_1") is None
    for nothing in (lambda: web.Response(status=404), lambda: web.json_response({"refund": {**good, "key": "r-2"}})):
        with pytest.raises(GatewayUnavailable):
            await (await serve(nothing)).find_refund("r-1", charge_reference="ch_1")


MOVED = {
    "kind": "charge",
    "time": 1_767_225_600.5,
    "reference": "ch_1",
    "charge_reference": "ch_1",
    "order_id": "o-1",
    "amount_minor": 100,
    "currency_code": "EUR",
}
SINCE, UNTIL = (datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (1, 2))


async def test_movements_are_read_page_by_page(serve: Serve) -> None:
    gateway = await serve(lambda: web.json_response({"movements": [MOVED], "next": "c-1"}))
    page = await gateway.movements(SINCE, UNTIL)
    time = SINCE + datetime.timedelta(seconds=0.5)
    assert page == MovementPage((Movement("charge", time, "ch_1", "ch_1", "o-1", 100, "EUR"),), "c-1")
    with pytest.raises(GatewayUnavailable, match="end"):
        await gateway.movements(SINCE, UNTIL, "c-1")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, "{}"),
        (200, "{}"),
        (200, json.dumps({"movements": []})),
        (200, json.dumps({"movements": {}, "next": ""})),
        (200, json.dumps({"movements": ["charge"], "next": ""})),
        (200, json.dumps({"movements": [{**MOVED, "kind": "payout"}], "next": ""})),
        (200, json.dumps({"movements": [{**MOVED, "time": 1e30}], "next": ""})),
        (200, json.dumps({"movements": [{**MOVED, "time": "now"}], "next": ""})),
        (200, json.dumps({"movements": [{**MOVED, "amount_minor": 1.5}], "next": ""})),
        (200, json.dumps({"movements": [{**MOVED, "order_id": None}], "next": ""})),
    ],
)
async def test_a_listing_that_is_none_is_dependency_down(serve: Serve, status: int, text: str) -> None:
    gateway = await serve(lambda: web.Response(status=status, text=text))
    with pytest.raises(GatewayUnavailable):
        await gateway.movements(SINCE, UNTIL)


async def test_proxies_of_the_environment_are_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    gateway = await serve(lambda: web.json_response({"charge": GOOD}))
    assert (await charge(gateway)).approved


async def test_the_connect_limit_is_shorter_than_the_total() -> None:
    with pytest.raises(ValueError, match="shorter"):
        HttpGateway("http://127.0.0.1:1", connect_timeout=5.0, total_timeout=5.0)
