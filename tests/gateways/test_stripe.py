"""StripeGateway through Stripe's own SDK, against a server that answers as it is told: what each answer means."""

import datetime
import functools
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from domain.failures import DependencyDown, Failure
from tests.gateways.references import MemoryReferences
from workers.gateways.gateway import (
    Charge,
    ChargeUnderWay,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    KeyClosed,
)
from workers.gateways.stripe import StripeGateway

SECRET = "sk_live_canary_4242424242424242"
CARD = "pm_canary_4000056655665556"

Respond = Callable[[web.Request, dict[str, str]], web.StreamResponse]


def intent(status: str = "requires_confirmation", **changes: Any) -> dict[str, Any]:
    shown = {
        "id": "pi_1",
        "object": "payment_intent",
        "amount": 100,
        "currency": "eur",
        "status": status,
        "metadata": {"order_id": "o-1", "key": "k-1"},
        "last_payment_error": None,
    }
    return shown | changes


def refund(**changes: Any) -> dict[str, Any]:
    shown = {
        "id": "re_1",
        "object": "refund",
        "amount": 60,
        "currency": "eur",
        "payment_intent": "pi_1",
        "status": "succeeded",
        "metadata": {"key": "r-1"},
    }
    return shown | changes


def ok(body: dict[str, Any]) -> web.Response:
    return web.json_response(body)


def error(status: int, kind: str = "invalid_request_error", headers: Any = None, **fields: Any) -> web.Response:
    told = {"type": kind, "message": f"canary-message {SECRET} {CARD}", **fields}
    return web.json_response({"error": told}, status=status, headers={"Request-Id": "req_1", **(headers or {})})


class Stripe:
    """Answers each path from a list of its own; the last answer stands. Keeps what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Callable[[], web.StreamResponse]]] = {
            "create": [lambda: ok(intent())],
            "confirm": [lambda: ok(intent("succeeded"))],
            "retrieve": [lambda: ok(intent("succeeded"))],
            "cancel": [lambda: ok(intent("canceled"))],
            "refund": [lambda: ok(refund())],
            "charges": [],
            "made": [],
            "refunds": [lambda: ok({"object": "list", "url": "/v1/refunds", "data": [refund()], "has_more": False})],
        }
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        """What for, the idempotency key, the form or query."""
        self.headers: list[dict[str, str]] = []

    def __setitem__(self, what: str, answers: Any) -> None:
        self.answers[what] = answers if isinstance(answers, list) else [answers]

    @property
    def calls(self) -> list[str]:
        return [what for what, _, _ in self.asked]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        what = {
            ("POST", "/v1/payment_intents"): "create",
            ("POST", "/v1/payment_intents/pi_1/confirm"): "confirm",
            ("POST", "/v1/payment_intents/pi_1/cancel"): "cancel",
            ("GET", "/v1/payment_intents/pi_1"): "retrieve",
            ("GET", "/v1/payment_intents"): "made",
            ("POST", "/v1/refunds"): "refund",
            ("GET", "/v1/refunds"): "refunds",
            ("GET", "/v1/charges"): "charges",
        }[request.method, request.path]
        form = await request.post() if request.method == "POST" else request.query
        self.asked.append((what, request.headers.get("Idempotency-Key", ""), {k: str(v) for k, v in form.items()}))
        self.headers.append(dict(request.headers))
        answers = self.answers[what]
        return (answers.pop(0) if len(answers) > 1 else answers[0])()


@pytest.fixture
def server() -> Stripe:
    return Stripe()


@pytest.fixture
def references() -> MemoryReferences:
    return MemoryReferences()


@pytest.fixture
async def gateway(server: Stripe, references: MemoryReferences) -> AsyncIterator[StripeGateway]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with TestServer(app) as running:
        client = StripeGateway(SECRET, references=references, base_url=str(running.make_url("/")))
        yield client
        await client.aclose()


async def charge(gateway: StripeGateway, **changes: Any) -> Charge:
    asked = {"order_id": "o-1", "amount_minor": 100, "currency_code": "EUR", "payment_method": CARD}
    return await gateway.charge("k-1", **{**asked, **changes})


# -- charging ----------------------------------------------------------------------------------------------------------


async def test_a_charge_is_made_stored_and_confirmed(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences
) -> None:
    assert await charge(gateway) == Charge("pi_1", "k-1", True, "", 100, "EUR")
    assert server.asked == [
        (
            "create",
            "k-1",
            {
                "amount": "100",
                "currency": "eur",
                "payment_method": CARD,
                "automatic_payment_methods[enabled]": "true",
                "automatic_payment_methods[allow_redirects]": "never",
                "metadata[order_id]": "o-1",
                "metadata[key]": "k-1",
            },
        ),
        ("confirm", "k-1-confirm", {"error_on_requires_action": "true"}),
    ]
    assert references.intents == {"k-1": "pi_1"}
    assert all("X-Stripe-Client-Telemetry" not in headers for headers in server.headers)


async def test_what_is_stored_is_confirmed_and_nothing_new_is_made(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences
) -> None:
    references.intents["k-1"] = "pi_1"
    await charge(gateway)
    assert server.calls == ["confirm"]


async def test_the_id_that_was_stored_first_is_the_one_that_is_confirmed(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences
) -> None:
    def made_meanwhile() -> web.StreamResponse:
        references.intents["k-1"] = "pi_1"
        return ok(intent(id="pi_2"))

    server["create"] = made_meanwhile
    assert (await charge(gateway)).reference == "pi_1"
    assert server.calls == ["create", "confirm"]


async def test_a_key_that_is_closed_meanwhile_confirms_nothing(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences
) -> None:
    references.closed.add("k-1")
    with pytest.raises(KeyClosed):
        await charge(gateway)
    assert server.calls == ["create"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"code": "card_declined", "decline_code": "insufficient_funds"}, "INSUFFICIENT_FUNDS"),
        ({"code": "card_declined", "decline_code": "generic_decline"}, "CARD_DECLINED"),
        ({"code": "expired_card", "decline_code": "expired_card"}, "EXPIRED_CARD"),
        ({"code": "incorrect_cvc"}, "INCORRECT_CVC"),
        ({"code": "card_declined", "decline_code": "lost card, <b>"}, "CARD_DECLINED"),
        ({"code": "authentication_required", "decline_code": "authentication_required"}, "AUTHENTICATION_REQUIRED"),
        ({}, "CARD_DECLINED"),
    ],
)
async def test_a_card_error_is_a_decline(
    server: Stripe, gateway: StripeGateway, fields: dict[str, str], reason: str
) -> None:
    server["confirm"] = lambda: error(402, "card_error", **fields)
    assert await charge(gateway) == Charge("pi_1", "k-1", False, reason, 100, "EUR")


@pytest.mark.parametrize("status", [401, 403, 429])
@pytest.mark.parametrize("what", ["create", "confirm"])
async def test_being_turned_away_is_unavailable(server: Stripe, gateway: StripeGateway, what: str, status: int) -> None:
    for answer in (error(status, headers={"Retry-After": "7"}), web.Response(status=status, text="<html>")):
        server[what] = lambda answer=answer: web.Response(
            status=answer.status, body=answer.body, headers=answer.headers
        )
        with pytest.raises(GatewayUnavailable) as unavailable:
            await charge(gateway)
        told = status == 429 and "Retry-After" in answer.headers
        assert unavailable.value.retry_after == (7.0 if told else None)


NO_ANSWER: list[Callable[[], web.StreamResponse]] = [
    lambda: error(500, "api_error"),
    lambda: error(503, "api_error"),
    lambda: error(409, "idempotency_error", code="idempotency_key_in_use"),
    lambda: error(402, "api_error"),
    lambda: error(418),
    lambda: web.Response(status=502, text="<html>bad gateway</html>"),
    lambda: web.json_response({"error": "bad gateway"}, status=502),
    lambda: web.json_response({"error": "not found"}, status=404),
    lambda: web.Response(status=404, text="<html>"),
    lambda: web.Response(status=200, text="<html>"),
    lambda: web.json_response([]),
    lambda: web.json_response({}),
    lambda: ok(intent("succeeded", amount="100")),
    lambda: web.Response(status=302, headers={"Location": "/elsewhere"}),
    lambda: ok(intent("succeeded", description="x" * 8_500_000)),
]
NO_ANSWER_TO_A_KEY = [*NO_ANSWER, lambda: ok(intent("succeeded", metadata={"key": "k-2"}))]


@pytest.mark.parametrize("number", range(len(NO_ANSWER_TO_A_KEY)))
async def test_what_is_no_answer_leaves_a_confirmed_charge_unknown(
    server: Stripe, gateway: StripeGateway, number: int
) -> None:
    server["confirm"] = NO_ANSWER_TO_A_KEY[number]
    with pytest.raises(ChargeUnknown):
        await charge(gateway)
    assert server.calls == ["create", "confirm"], "it repeats nothing by itself"


@pytest.mark.parametrize("number", range(len(NO_ANSWER_TO_A_KEY)))
async def test_without_an_answer_to_making_one_nothing_can_have_been_charged(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences, number: int
) -> None:
    server["create"] = NO_ANSWER_TO_A_KEY[number]
    with pytest.raises(GatewayUnavailable):
        await charge(gateway)
    assert "confirm" not in server.calls
    assert references.intents == {}


async def test_an_error_that_stands_under_the_key_does_not_keep_a_payment_intent_from_being_made(
    server: Stripe, gateway: StripeGateway
) -> None:
    server["create"] = [lambda: error(500, "api_error"), lambda: ok(intent())]
    assert (await charge(gateway)).approved
    (_, first, asked), (_, second, again), _ = server.asked
    assert first == "k-1"
    assert second.startswith("k-1-")
    assert asked == again


@pytest.mark.parametrize(
    "changes", [{"amount": 99}, {"currency": "usd"}, {"id": "pi_2"}, {"status": "requires_capture"}]
)
async def test_an_answer_about_something_else_leaves_the_charge_unknown(
    server: Stripe, gateway: StripeGateway, changes: dict[str, Any]
) -> None:
    server["confirm"] = lambda: ok(intent("succeeded") | changes)
    with pytest.raises(ChargeUnknown):
        await charge(gateway)


@pytest.mark.parametrize("status", ["processing", "requires_action", "requires_confirmation", "requires_capture"])
async def test_what_is_not_decided_is_unknown(server: Stripe, gateway: StripeGateway, status: str) -> None:
    server["confirm"] = lambda: ok(intent(status))
    with pytest.raises(ChargeUnknown, match=status):
        await charge(gateway)
    server["retrieve"] = lambda: ok(intent(status))
    assert await gateway.find("k-1") is None


async def test_another_call_that_has_hold_of_it_may_be_the_first_one(server: Stripe, gateway: StripeGateway) -> None:
    server["confirm"] = lambda: error(429, code="lock_timeout")
    with pytest.raises(ChargeUnknown):
        await charge(gateway)


@pytest.mark.parametrize(
    ("shown", "outcome"),
    [
        (intent("succeeded"), True),
        (intent("requires_payment_method", last_payment_error={"code": "expired_card"}), False),
        (intent("canceled"), KeyClosed),
        (intent("processing"), ChargeUnknown),
        (intent("succeeded", metadata={}), ChargeUnknown),
    ],
)
async def test_one_that_was_confirmed_before_is_looked_up(
    server: Stripe, gateway: StripeGateway, shown: dict[str, Any], outcome: Any
) -> None:
    server["confirm"] = lambda: error(400, code="payment_intent_unexpected_state")
    server["retrieve"] = lambda: ok(shown)
    if isinstance(outcome, bool):
        assert (await charge(gateway)).approved is outcome
    else:
        with pytest.raises(outcome):
            await charge(gateway)
    assert server.calls == ["create", "confirm", "retrieve"]


async def test_one_that_was_confirmed_before_and_cannot_be_looked_up_is_unknown(
    server: Stripe, gateway: StripeGateway
) -> None:
    server["confirm"] = lambda: error(400, code="payment_intent_unexpected_state")
    for answer in (lambda: error(500), lambda: error(404, code="resource_missing"), lambda: error(401)):
        server["retrieve"] = answer
        with pytest.raises(ChargeUnknown):
            await charge(gateway)


@pytest.mark.parametrize(
    ("answer", "error_class"),
    [
        (lambda: error(400, "idempotency_error"), "GATEWAY_KEY_REUSED"),
        (lambda: error(400, code="parameter_missing", param="amount"), "GATEWAY_INVALID_REQUEST"),
        (lambda: error(400, code="resource_missing", param="payment_method"), "GATEWAY_PAYMENT_METHOD_UNKNOWN"),
        (lambda: error(404, code="resource_missing", param="intent"), "GATEWAY_INVALID_REQUEST"),
    ],
)
@pytest.mark.parametrize("what", ["create", "confirm"])
async def test_a_refusal_is_permanent(
    server: Stripe, gateway: StripeGateway, what: str, answer: Any, error_class: str
) -> None:
    server[what] = answer
    with pytest.raises(GatewayRefused) as refused:
        await charge(gateway)
    assert refused.value.error_class == error_class


@pytest.mark.parametrize("currency", ["ISK", "UGX", "MGA"])
async def test_a_currency_whose_minor_unit_differs_is_never_charged(
    server: Stripe, gateway: StripeGateway, currency: str
) -> None:
    with pytest.raises(GatewayRefused):
        await charge(gateway, currency_code=currency)
    assert server.calls == []


async def test_nothing_listens() -> None:
    nobody = StripeGateway(SECRET, references=MemoryReferences(), base_url="http://127.0.0.1:1")
    with pytest.raises(GatewayUnavailable, match="not connected"):
        await charge(nobody)
    await nobody.aclose()


async def test_storage_that_is_away_is_not_the_gateway_that_is(server: Stripe, gateway: StripeGateway) -> None:
    class Away(MemoryReferences):
        async def find(self, key: str) -> str | None:
            raise DependencyDown("postgres", "away")

    gateway._references = Away()  # type: ignore[assignment]
    with pytest.raises(DependencyDown) as down:
        await charge(gateway)
    assert down.value.dependency == "postgres"


# -- looking up and closing --------------------------------------------------------------------------------------------


async def test_without_a_stored_id_there_is_nothing_to_find(server: Stripe, gateway: StripeGateway) -> None:
    assert await gateway.find("k-1") is None
    assert server.calls == []


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        (intent("succeeded"), Charge("pi_1", "k-1", True, "", 100, "EUR")),
        (
            intent(
                "requires_payment_method",
                last_payment_error={"code": "card_declined", "decline_code": "insufficient_funds"},
            ),
            Charge("pi_1", "k-1", False, "INSUFFICIENT_FUNDS", 100, "EUR"),
        ),
        (intent("requires_payment_method"), None),
        (intent("requires_confirmation"), None),
        (intent("canceled"), None),
    ],
)
async def test_a_charge_is_found_by_its_stored_id(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences, shown: dict[str, Any], found: Charge | None
) -> None:
    references.intents["k-1"] = "pi_1"
    server["retrieve"] = lambda: ok(shown)
    assert await gateway.find("k-1") == found


@pytest.mark.parametrize("number", range(len(NO_ANSWER)))
async def test_a_look_up_or_a_close_without_an_answer_is_unavailable(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences, number: int
) -> None:
    references.intents["k-1"] = "pi_1"
    server["retrieve"] = server["cancel"] = NO_ANSWER[number]
    for call in (gateway.find, gateway.close):
        with pytest.raises(GatewayUnavailable):
            await call("k-1")
    assert references.closed == {"k-1"}


async def test_metadata_that_a_person_changed_keep_no_charge_from_being_found_or_closed(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences
) -> None:
    """It would be asked for again for ever, and all other orders would wait."""
    references.intents["k-1"] = "pi_1"
    server["retrieve"] = lambda: ok(intent("succeeded", metadata={}))
    server["cancel"] = [
        lambda: error(400, code="payment_intent_unexpected_state"),
        lambda: ok(intent("canceled", metadata={})),
    ]
    captured = Charge("pi_1", "k-1", True, "", 100, "EUR")
    assert [await gateway.find("k-1"), await gateway.close("k-1")] == [captured, captured]
    assert await gateway.close("k-1") is None


@pytest.mark.parametrize("call", ["find", "close"])
async def test_another_payment_intent_than_the_one_that_is_stored_is_no_answer(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences, call: str
) -> None:
    references.intents["k-1"] = "pi_1"
    server["retrieve"] = server["cancel"] = lambda: ok(intent("succeeded", id="pi_2"))
    with pytest.raises(GatewayUnavailable):
        await getattr(gateway, call)("k-1")


async def test_closing_marks_the_key_first_and_cancels_what_is_stored(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences
) -> None:
    def cancelled() -> web.StreamResponse:
        assert references.closed == {"k-1"}
        return ok(intent("canceled"))

    references.intents["k-1"] = "pi_1"
    server["cancel"] = cancelled
    for _ in range(2):
        assert await gateway.close("k-1") is None
    keys = {key for _, key, _ in server.asked}
    assert len(keys) == 2, "a failure that stands under a key must not stand in the way for a day"


async def test_closing_a_key_that_nothing_is_stored_under_asks_nobody(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences
) -> None:
    assert await gateway.close("k-1") is None
    assert references.closed == {"k-1"}
    assert server.calls == []


@pytest.mark.parametrize(
    ("shown", "outcome"),
    [
        (intent("canceled"), None),
        (intent("succeeded"), Charge("pi_1", "k-1", True, "", 100, "EUR")),
        (intent("processing"), ChargeUnderWay),
    ],
)
async def test_what_cannot_be_cancelled_is_looked_up(
    server: Stripe, gateway: StripeGateway, references: MemoryReferences, shown: dict[str, Any], outcome: Any
) -> None:
    references.intents["k-1"] = "pi_1"
    server["cancel"] = lambda: error(400, code="payment_intent_unexpected_state")
    server["retrieve"] = lambda: ok(shown)
    if outcome is ChargeUnderWay:
        with pytest.raises(ChargeUnderWay):
            await gateway.close("k-1")
    else:
        assert await gateway.close("k-1") == outcome


# -- refunds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["succeeded", "pending", "requires_action"])
async def test_a_refund(server: Stripe, gateway: StripeGateway, status: str) -> None:
    server["refund"] = lambda: ok(refund(status=status))
    made = await gateway.refund("r-1", charge_reference="pi_1", amount_minor=60)
    assert (made.reference, made.key, made.charge_reference) == ("re_1", "r-1", "pi_1")
    assert (made.amount_minor, made.currency_code) == (60, "EUR")
    assert server.asked == [("refund", "r-1", {"payment_intent": "pi_1", "amount": "60", "metadata[key]": "r-1"})]


@pytest.mark.parametrize(
    ("answer", "kind", "error_class"),
    [
        (lambda: ok(refund(status="failed")), GatewayRefused, "GATEWAY_REFUND_FAILED"),
        (lambda: ok(refund(status="canceled")), GatewayRefused, "GATEWAY_REFUND_FAILED"),
        (lambda: error(400, code="charge_already_refunded"), GatewayRefused, "GATEWAY_REFUND_TOO_LARGE"),
        (lambda: error(400, "idempotency_error"), GatewayRefused, "GATEWAY_KEY_REUSED"),
        (lambda: error(400), GatewayRefused, "GATEWAY_INVALID_REQUEST"),
        (lambda: error(500), ChargeUnknown, "GATEWAY_CHARGE_UNKNOWN"),
        (lambda: error(409), ChargeUnknown, "GATEWAY_CHARGE_UNKNOWN"),
        (lambda: ok(refund(amount=61)), ChargeUnknown, "GATEWAY_CHARGE_UNKNOWN"),
        (lambda: ok(refund(payment_intent="pi_2")), ChargeUnknown, "GATEWAY_CHARGE_UNKNOWN"),
        (lambda: ok(refund(metadata={})), ChargeUnknown, "GATEWAY_CHARGE_UNKNOWN"),
        (lambda: ok({}), ChargeUnknown, "GATEWAY_CHARGE_UNKNOWN"),
        (lambda: error(429), GatewayUnavailable, "DEPENDENCY_DOWN"),
    ],
)
async def test_a_refund_that_is_none(
    server: Stripe, gateway: StripeGateway, answer: Any, kind: type[Failure], error_class: str
) -> None:
    server["refund"] = answer
    with pytest.raises(kind) as failed:
        await gateway.refund("r-1", charge_reference="pi_1", amount_minor=60)
    assert failed.value.error_class == error_class


async def test_a_refund_is_found_on_a_later_page(server: Stripe, gateway: StripeGateway) -> None:
    def page(*refunds: dict[str, Any], more: bool) -> Callable[[], web.StreamResponse]:
        return lambda: ok({"object": "list", "url": "/v1/refunds", "data": list(refunds), "has_more": more})

    others = [refund(id="re_8", metadata={}), refund(id="re_9", metadata={"key": "r-9"})]
    failed = refund(id="re_7", status="failed")
    server["refunds"] = [page(*others, more=True), page(failed, refund(), more=False)]
    found = await gateway.find_refund("r-1", charge_reference="pi_1")
    assert found is not None
    assert found.reference == "re_1"
    assert [asked for _, _, asked in server.asked] == [
        {"payment_intent": "pi_1", "limit": "100"},
        {"payment_intent": "pi_1", "limit": "100", "starting_after": "re_9"},
    ]
    server["refunds"] = page(*others, failed, more=False)
    assert await gateway.find_refund("r-1", charge_reference="pi_1") is None


@pytest.mark.parametrize(
    "answer", [lambda: error(500), lambda: error(401), lambda: ok({}), lambda: ok({"data": [{}], "has_more": False})]
)
async def test_a_look_up_of_a_refund_without_an_answer_is_unavailable(
    server: Stripe, gateway: StripeGateway, answer: Any
) -> None:
    server["refunds"] = answer
    with pytest.raises(GatewayUnavailable):
        await gateway.find_refund("r-1", charge_reference="pi_1")


# -- what moved --------------------------------------------------------------------------------------------------------

SINCE = datetime.datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=datetime.UTC)


def a_charge(number: int, **changes: Any) -> dict[str, Any]:
    shown = {
        "id": f"ch_{number}",
        "object": "charge",
        "amount": 100,
        "currency": "eur",
        "status": "succeeded",
        "captured": True,
        "created": 1_767_225_700 + number,
        "payment_intent": f"pi_{number}",
        "metadata": {"order_id": f"o-{number}", "key": f"k-{number}"},
    }
    return shown | changes


def pages(*each: list[dict[str, Any]]) -> list[Callable[[], web.StreamResponse]]:
    shown = [
        {"object": "list", "url": "/", "data": data, "has_more": number < len(each)}
        for number, data in enumerate(each, 1)
    ]
    return [functools.partial(ok, page) for page in shown]


async def test_what_moved_is_listed_page_by_page_and_only_what_is_ours(server: Stripe, gateway: StripeGateway) -> None:
    nothing = [a_charge(3, status="failed"), a_charge(4, status="pending"), a_charge(5, captured=False)]
    others = [a_charge(6, metadata={}), a_charge(7, payment_intent=None)]
    server["charges"] = pages([a_charge(1), *nothing], [*others, a_charge(2)])
    server["refunds"] = pages(
        [
            refund(id="re_1", charge=a_charge(1), created=1_767_225_800),
            refund(id="re_2", charge=a_charge(1), created=1, status="failed"),
            refund(id="re_3", charge=a_charge(9, metadata={}), created=1, metadata={}),
            refund(id="re_4", charge=None, payment_intent=None, created=1, metadata={}),
        ]
    )
    found, cursor = [], ""
    while True:
        page = await gateway.movements(SINCE, SINCE + datetime.timedelta(seconds=60), cursor)
        found += page.movements
        if not (cursor := page.next_cursor):
            break
    assert [(each.kind, each.reference, each.charge_reference, each.order_id) for each in found] == [
        ("charge", "pi_1", "pi_1", "o-1"),
        ("charge", "pi_2", "pi_2", "o-2"),
        ("refund", "re_1", "pi_1", "o-1"),
    ]
    assert [(each.amount_minor, each.currency_code) for each in found] == [(100, "EUR"), (100, "EUR"), (60, "EUR")]
    assert [int(each.time.timestamp()) for each in found] == [1_767_225_701, 1_767_225_702, 1_767_225_800]
    times = {"created[gte]": "1767225601", "created[lt]": "1767225661", "limit": "100"}
    assert server.asked == [
        ("charges", "", times),
        ("charges", "", {**times, "starting_after": "ch_5"}),
        ("refunds", "", {**times, "expand[0]": "data.charge"}),
    ]


def made(number: int, key: str, status: str, **changes: Any) -> dict[str, Any]:
    return intent(status, id=f"pi_{number}", metadata={"key": key} if key else {}, **changes)


async def test_of_what_was_made_under_a_key_that_counts_which_came_furthest(
    server: Stripe, gateway: StripeGateway
) -> None:
    declined = {"last_payment_error": {"code": "card_declined"}}
    server["made"] = pages(
        [
            made(1, "paid", "requires_confirmation"),
            made(2, "paid", "succeeded"),
            made(3, "under way", "requires_payment_method", **declined),
            made(4, "under way", "processing"),
        ],
        [
            made(5, "paid", "canceled"),
            made(6, "declined", "requires_payment_method", **declined),
            made(7, "declined", "requires_confirmation"),
            made(8, "", "succeeded"),
            made(9, "closed", "canceled"),
        ],
    )
    found = await gateway.made(SINCE, SINCE + datetime.timedelta(seconds=60))
    assert {(each.idempotency_key, each.gateway_intent, each.has_money) for each in found} == {
        ("paid", "pi_2", True),
        ("under way", "pi_4", True),
        ("declined", "pi_6", False),
        ("closed", "pi_9", False),
    }
    times = {"created[gte]": "1767225600", "created[lt]": "1767225661", "limit": "100"}
    assert server.asked == [("made", "", times), ("made", "", {**times, "starting_after": "pi_4"})]


@pytest.mark.parametrize("answer", [*NO_ANSWER[:3], lambda: ok({"data": [{}], "has_more": False})])
async def test_a_listing_of_what_was_made_without_an_answer_is_unavailable(
    server: Stripe, gateway: StripeGateway, answer: Any
) -> None:
    server["made"] = answer
    with pytest.raises(GatewayUnavailable):
        await gateway.made(SINCE, SINCE)


@pytest.mark.parametrize("what", ["charges", "refunds"])
@pytest.mark.parametrize("answer", [*NO_ANSWER[:3], lambda: ok({"data": [{}], "has_more": False})])
async def test_a_listing_without_an_answer_is_unavailable(
    server: Stripe, gateway: StripeGateway, what: str, answer: Any
) -> None:
    server[what] = answer
    with pytest.raises(GatewayUnavailable):
        await gateway.movements(SINCE, SINCE, f"{what}:")


async def test_a_cursor_of_another_gateway_is_refused(gateway: StripeGateway) -> None:
    with pytest.raises(GatewayRefused):
        await gateway.movements(SINCE, SINCE, "1767225600.0|ch_1")


# -- secrets -----------------------------------------------------------------------------------------------------------


async def test_no_failure_tells_the_key_or_the_card(
    server: Stripe, gateway: StripeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    answers = [*NO_ANSWER, *(lambda status=status: error(status, code=CARD) for status in (400, 401, 402, 404, 429))]
    told = [repr(gateway), repr(vars(gateway))]
    for what in ("create", "confirm"):
        for answer in answers:
            server[what] = answer
            with pytest.raises(Failure) as failed:
                await charge(gateway)
            told.append("".join(traceback.format_exception(failed.value)) + repr(failed.value))
            told.append(json.dumps(failed.value.args))
        server[what] = lambda: ok(intent())
    text = "\n".join([*told, caplog.text])
    assert SECRET not in text
    assert "canary-message" not in text, "a message of Stripe's went on"


async def test_proxies_of_the_environment_are_not_used(
    server: Stripe, gateway: StripeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert (await charge(gateway)).approved
