"""StripeGateway against the project's own Stripe-shaped process: what each fault comes to, and what the journal has."""

import asyncio
import contextlib
import datetime
import json
import signal
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.engines import eventually
from tests.gateways.process import charge
from tests.gateways.references import MemoryReferences
from tests.gateways.stripe_process import StripeProcess
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayRefused, GatewayUnavailable, KeyClosed, Report
from workers.gateways.stripe import read_report


def kinds(stripe: StripeProcess) -> list[tuple[str, str]]:
    return [(line["kind"], line["key"]) for line in stripe.lines()]


async def charged(stripe: StripeProcess) -> Charge:
    """Charges once nobody is under way any more: it takes the gateway a moment to see that a caller has given up."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(ChargeUnknown):
                return await charge(stripe.stripe)


async def test_a_charge_a_repeat_a_refund_and_what_is_found(stripe: StripeProcess) -> None:
    await stripe.start()
    paid = await charge(stripe.stripe)
    assert paid.approved
    assert await charge(stripe.stripe) == paid == await stripe.stripe.find("k-1")
    assert paid.reference == stripe.references.intents["k-1"]
    refund = await stripe.stripe.refund("r-1", charge_reference=paid.reference, amount_minor=1000)
    assert await stripe.stripe.refund("r-1", charge_reference=paid.reference, amount_minor=1000) == refund
    assert await stripe.stripe.find_refund("r-1", charge_reference=paid.reference) == refund
    assert await stripe.stripe.find_refund("r-2", charge_reference=paid.reference) is None
    with pytest.raises(GatewayRefused) as too_large:
        await stripe.stripe.refund("r-2", charge_reference=paid.reference, amount_minor=2999)
    assert too_large.value.error_class == "GATEWAY_REFUND_TOO_LARGE"
    with pytest.raises(GatewayRefused) as reused:
        await stripe.stripe.refund("r-1", charge_reference=paid.reference, amount_minor=999)
    assert reused.value.error_class == "GATEWAY_KEY_REUSED"
    assert kinds(stripe) == [("charge", "k-1"), ("refund", "r-1")]
    assert stripe.lines()[0]["order_id"] == "o-1"


@pytest.mark.parametrize(
    ("payment_method", "reason"),
    [
        ("pm_card_chargeDeclined", "CARD_DECLINED"),
        ("pm_card_chargeDeclinedInsufficientFunds", "INSUFFICIENT_FUNDS"),
        ("pm_card_chargeDeclinedExpiredCard", "EXPIRED_CARD"),
        ("pm_card_authenticationRequired", "AUTHENTICATION_REQUIRED"),
    ],
)
async def test_a_decline_is_found_again_and_cannot_become_a_charge(
    stripe: StripeProcess, payment_method: str, reason: str
) -> None:
    await stripe.start("--key-ttl-seconds", "0.01")
    declined = await charge(stripe.stripe, payment_method=payment_method)
    assert (declined.approved, declined.decline_reason) == (False, reason)
    assert await stripe.stripe.find("k-1") == declined
    assert await charge(stripe.stripe, payment_method=payment_method) == declined, "past the window of keys"
    assert [line["approved"] for line in stripe.lines()] == [False]


@pytest.mark.parametrize("fault", ["hang_rate", "reset_before_rate", "transient_error_rate", "error_rate"])
async def test_what_strikes_before_executes_nothing(stripe: StripeProcess, fault: str) -> None:
    await stripe.start()
    await stripe.faults(**{fault: 1.0})
    impatient = stripe.gateway(total_timeout=2.0)
    for _ in range(2):
        with pytest.raises(ChargeUnknown):
            await charge(impatient)
    await stripe.faults()
    assert await stripe.stripe.find("k-1") is None
    assert stripe.lines() == []
    if fault == "error_rate":
        with pytest.raises(ChargeUnknown):
            await charge(stripe.stripe)
    else:
        assert (await charged(stripe)).approved


@pytest.mark.parametrize("fault", ["time_out_rate", "reset_after_rate", "drop_reply_rate"])
async def test_what_strikes_after_has_executed_once_and_is_found(stripe: StripeProcess, fault: str) -> None:
    await stripe.start()
    paid = await charge(stripe.stripe, "k-0")
    await stripe.faults(**{fault: 1.0})
    impatient = stripe.gateway(total_timeout=2.0)
    for _ in range(2):
        with pytest.raises(ChargeUnknown):
            await charge(impatient)
        with pytest.raises(ChargeUnknown):
            await impatient.refund("r-0", charge_reference=paid.reference, amount_minor=1)
    # On a slow machine a reply may be given up before anything has executed.
    await eventually(lambda: len(stripe.lines()) >= 3, "both have executed")
    found = await stripe.stripe.find("k-1")
    assert found is not None
    assert found.approved
    assert await stripe.stripe.find_refund("r-0", charge_reference=paid.reference) is not None
    assert sorted(kinds(stripe)) == [("charge", "k-0"), ("charge", "k-1"), ("refund", "r-0")]
    await stripe.faults()
    assert await charge(stripe.stripe) == found


@pytest.mark.parametrize("outage", ["refuse", "hang"])
async def test_an_outage(stripe: StripeProcess, outage: str) -> None:
    await stripe.start()
    paid = await charge(stripe.stripe)
    await stripe.faults(**{outage: True})
    impatient = stripe.gateway(total_timeout=2.0)
    for call in (charge(impatient, "k-2"), impatient.find("k-1"), impatient.close("k-1")):
        with pytest.raises(GatewayUnavailable):
            await call
    await stripe.faults()
    assert await stripe.stripe.find("k-1") == paid
    assert (await charge(stripe.stripe, "k-2")).approved


async def test_closing_cancels_what_was_not_confirmed(stripe: StripeProcess) -> None:
    await stripe.start()
    await stripe.faults(error_rate=1.0)
    with pytest.raises(ChargeUnknown):
        await charge(stripe.stripe)
    await stripe.faults()
    for _ in range(2):
        assert await stripe.stripe.close("k-1") is None
    assert await stripe.stripe.find("k-1") is None
    confirmed = await stripe.call("POST", f"/v1/payment_intents/{stripe.references.intents['k-1']}/confirm", "by hand")
    assert confirmed.json()["error"]["code"] == "payment_intent_unexpected_state"
    assert kinds(stripe) == [("close", "k-1")]


async def test_closing_tells_of_the_charge_that_there_was(stripe: StripeProcess) -> None:
    await stripe.start()
    paid = await charge(stripe.stripe)
    for _ in range(2):
        assert await stripe.stripe.close("k-1") == paid
    assert await charge(stripe.stripe) == paid == await stripe.stripe.find("k-1")
    assert kinds(stripe) == [("charge", "k-1"), ("close", "k-1")]


class Freezing(MemoryReferences):
    """Lets a test do something before or after the id is stored: what a frozen process sleeps through."""

    def __init__(self) -> None:
        super().__init__()
        self.before = self.after = lambda: asyncio.sleep(0)

    async def store(self, key: str, intent_id: str) -> str | None:
        await self.before()
        stored = await super().store(key, intent_id)
        await self.after()
        return stored


@pytest.mark.parametrize("frozen", ["before", "after"])
async def test_a_process_frozen_between_making_and_confirming_charges_no_closed_key(
    stripe: StripeProcess, frozen: str
) -> None:
    await stripe.start()
    references = Freezing()
    thawed = stripe.gateway(references=references)

    async def close() -> None:
        assert await stripe.gateway(references=references).close("k-1") is None

    setattr(references, frozen, close)
    with pytest.raises(KeyClosed):
        await charge(thawed)
    assert kinds(stripe) == ([] if frozen == "before" else [("close", "k-1")])


async def test_a_slow_charge_goes_on_without_its_caller_and_shows_later(stripe: StripeProcess) -> None:
    await stripe.start()
    await stripe.faults(slow_rate=1.0, slow_seconds=6.0)
    impatient = stripe.gateway(total_timeout=2.0)
    for _ in range(2):
        with pytest.raises(ChargeUnknown):
            await charge(impatient)
    assert await stripe.stripe.find("k-1") is None
    await eventually(lambda: kinds(stripe) == [("charge", "k-1")], "the charge")
    assert await stripe.stripe.find("k-1") is not None


async def test_a_second_call_under_a_key_that_is_under_way_is_refused_for_now(stripe: StripeProcess) -> None:
    await stripe.start()
    made = (await stripe.call("POST", "/v1/payment_intents", "c", amount="5", currency="eur")).json()
    await stripe.faults(slow_rate=1.0, slow_seconds=4.0)
    confirm = f"/v1/payment_intents/{made['id']}/confirm"
    answers = await asyncio.gather(*(stripe.call("POST", confirm, "same") for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    assert len(stripe.lines()) == 1


async def test_a_second_payment_intent_of_the_same_key_is_a_second_charge(stripe: StripeProcess) -> None:
    """What a gateway that stores nothing would do: the journal must show it."""
    await stripe.start()
    await charge(stripe.stripe)
    made = (
        await stripe.call(
            "POST",
            "/v1/payment_intents",
            "another",
            **{"amount": "3998", "currency": "eur", "metadata[key]": "k-1", "metadata[order_id]": "o-1"},
        )
    ).json()
    assert (await stripe.call("POST", f"/v1/payment_intents/{made['id']}/confirm", "x")).status_code == 200
    assert [(line["order_id"], line["key"]) for line in stripe.lines()] == [("o-1", "k-1"), ("o-1", made["id"])]


async def test_a_restart_forgets_answers_and_no_object(stripe: StripeProcess) -> None:
    await stripe.start()
    await stripe.faults(error_rate=1.0)
    with pytest.raises(ChargeUnknown):
        await charge(stripe.stripe, "k-0")
    await stripe.faults()
    paid, declined = (
        await charge(stripe.stripe),
        await charge(stripe.stripe, "k-2", payment_method="pm_card_chargeDeclined"),
    )
    refund = await stripe.stripe.refund("r-1", charge_reference=paid.reference, amount_minor=1)
    assert await stripe.stripe.close("k-0") is None
    await stripe.end(signal.SIGKILL)
    await stripe.start()
    assert await stripe.stripe.find("k-0") is None
    with pytest.raises(KeyClosed):
        await charge(stripe.stripe, "k-0")
    assert await charge(stripe.stripe) == await stripe.stripe.find("k-1") == paid
    assert await charge(stripe.stripe, "k-2", payment_method="pm_card_chargeDeclined") == declined
    assert await stripe.stripe.refund("r-1", charge_reference=paid.reference, amount_minor=1) == refund
    assert await stripe.stripe.find_refund("r-1", charge_reference=paid.reference) == refund
    assert len(stripe.lines()) == 4


async def test_a_payment_intent_that_was_made_and_not_stored_is_made_once(stripe: StripeProcess) -> None:
    await stripe.start()
    made = (await stripe.call("POST", "/v1/payment_intents", "c", amount="5", currency="eur")).json()
    again = (await stripe.call("POST", "/v1/payment_intents", "c", amount="5", currency="eur")).json()
    await stripe.end(signal.SIGKILL)
    await stripe.start()
    after = (await stripe.call("POST", "/v1/payment_intents", "c", amount="5", currency="eur")).json()
    assert made == again == after


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({}, "parameter_missing"),
        ({"amount": "-1", "currency": "eur"}, "parameter_invalid_integer"),
        ({"amount": "1", "currency": "eur", "colour": "red"}, "parameter_unknown"),
    ],
)
async def test_wrong_requests_are_refused_as_stripe_does(
    stripe: StripeProcess, form: dict[str, str], code: str
) -> None:
    await stripe.start()
    refused = await stripe.call("POST", "/v1/payment_intents", "c", **form)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
    assert (await stripe.call("POST", "/v1/payment_intents", "c", amount="1", currency="eur")).status_code == 200


async def test_200_charges_whose_replies_are_lost_are_each_charged_once_and_found(stripe: StripeProcess) -> None:
    await stripe.start()
    await stripe.faults(drop_reply_rate=1.0)

    async def lost(number: int) -> None:
        with pytest.raises(ChargeUnknown):
            await charge(stripe.stripe, f"k-{number}", order_id=f"o-{number}")

    await asyncio.gather(*map(lost, range(200)))
    # On a slow machine a reply may be given up before the charge has executed.
    await eventually(lambda: len(stripe.lines()) >= 200, "all are charged")
    found = await asyncio.gather(*(stripe.stripe.find(f"k-{number}") for number in range(200)))
    assert all(each is not None and each.approved for each in found)
    assert sorted(line["order_id"] for line in stripe.lines()) == sorted(f"o-{number}" for number in range(200))


async def test_what_moved_is_listed_also_after_a_restart(stripe: StripeProcess) -> None:
    await stripe.start()
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
    paid = [await charge(stripe.stripe, f"k-{number}", order_id=f"o-{number}") for number in range(3)]
    await charge(stripe.stripe, "k-d", payment_method="pm_card_chargeDeclined")
    refund = await stripe.stripe.refund("r-1", charge_reference=paid[1].reference, amount_minor=1)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)

    async def listed(since: datetime.datetime, until: datetime.datetime) -> set[tuple[str, str, str, str, int]]:
        found, cursor = [], ""
        while True:
            page = await stripe.stripe.movements(since, until, cursor)
            found += page.movements
            if not (cursor := page.next_cursor):
                return {
                    (each.kind, each.reference, each.charge_reference, each.order_id, each.amount_minor)
                    for each in found
                }

    expected = {("charge", each.reference, each.reference, f"o-{number}", 3998) for number, each in enumerate(paid)}
    expected.add(("refund", refund.reference, paid[1].reference, "o-1", 1))
    assert await listed(begin, end) == expected
    assert await listed(end, end + datetime.timedelta(days=1)) == set()
    await stripe.end(signal.SIGKILL)
    await stripe.start()
    assert await listed(begin, end) == expected


async def test_what_was_made_is_listed_also_after_a_restart_and_found_by_who_has_lost_its_ids(
    stripe: StripeProcess,
) -> None:
    await stripe.start("--key-ttl-seconds", "0.01")
    begin = datetime.datetime.now(datetime.UTC)
    paid = [await charge(stripe.stripe, f"k-{number}") for number in range(3)]
    declined = await charge(stripe.stripe, "k-d", payment_method="pm_card_chargeDeclined")
    await stripe.end(signal.SIGKILL)
    await stripe.start("--key-ttl-seconds", "0.01")
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    references = MemoryReferences()
    gateway = stripe.gateway(references=references)
    found = {each.idempotency_key: each for each in await gateway.made(begin, until)}
    assert {key: each.has_money for key, each in found.items()} == {"k-0": True, "k-1": True, "k-2": True, "k-d": False}
    references.intents = {key: each.gateway_intent or "" for key, each in found.items()}
    for each in [*paid, declined]:
        assert await gateway.find(each.key) == each
        method = "pm_card_visa" if each.approved else "pm_card_chargeDeclined"
        assert await charge(gateway, each.key, payment_method=method) == each, "and cannot be charged again"
    assert len(stripe.lines()) == 4


# -- reports -----------------------------------------------------------------------------------------------------------


class Receiver:
    """A webhook that refuses each delivery once, and keeps what it was told."""

    def __init__(self) -> None:
        self.refused: set[bytes] = set()
        self.reports: list[Any] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body not in self.refused:
            self.refused.add(body)
            return web.Response(status=503)
        signature = request.headers["Stripe-Signature"]
        self.reports.append((json.loads(body), read_report(body, signature, secret="whsec_1", tolerance_seconds=60)))
        return web.Response()


async def test_charges_are_reported_signed_until_they_are_taken_and_more_than_once(stripe: StripeProcess) -> None:
    receiver, ids = Receiver(), [f"00000000-0000-4000-8000-{number:012}" for number in range(20)]
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    async with TestServer(app) as hook:
        await stripe.start(
            *("--webhook-url", str(hook.make_url("/hook")), "--webhook-secret", "whsec_1"),
            *("--webhook-copies", "2", "--webhook-disorder-seconds", "1"),
        )
        for number, order_id in enumerate(ids):
            await charge(stripe.stripe, f"k-{number}", order_id=order_id)
        await charge(stripe.stripe, "k-d", order_id=ids[0], payment_method="pm_card_chargeDeclined")
        await eventually(lambda: len(receiver.reports) >= 42, "42 deliveries")
    told = [(event["id"], event["type"], report) for event, report in receiver.reports]
    assert len(told) == 42
    assert len({event_id for event_id, _, _ in told}) == 21
    assert sum(kind == "payment_intent.payment_failed" for _, kind, _ in told) == 2
    assert all(isinstance(report, Report) for _, _, report in told)
    # Without the decline, which comes last and is about the first order: with it they would always be in disorder.
    order = [report.order_id for _, kind, report in told if kind == "payment_intent.succeeded"]
    assert set(order) == set(ids)
    assert order != sorted(order), "in disorder"


async def test_a_report_that_was_not_taken_is_delivered_after_a_restart(stripe: StripeProcess) -> None:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    async with TestServer(app) as hook:
        options = ("--webhook-url", str(hook.make_url("/hook")), "--webhook-secret", "whsec_1")
        await stripe.start("--webhook-url", "http://127.0.0.1:1/hook")
        await charge(stripe.stripe, order_id="00000000-0000-4000-8000-000000000001")
        await stripe.end(signal.SIGTERM)
        await stripe.start(*options)
        await eventually(lambda: len(receiver.reports) == 1, "the delivery")
        remembered = stripe.journal.with_suffix(".stripe.jsonl")
        await eventually(lambda: '"delivered"' in remembered.read_text(), "that it was taken")
        await stripe.end(signal.SIGTERM)
        await stripe.start(*options)
        await charge(stripe.stripe, "k-2", order_id="00000000-0000-4000-8000-000000000002")
        await eventually(lambda: len(receiver.reports) >= 2, "the next delivery")
    assert [report.order_id[-1] for _, report in receiver.reports] == ["1", "2"]
