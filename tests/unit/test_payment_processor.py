"""Charging: every way through semantics 19 and 20, with a gateway that executes, forgets its answers, or is away."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from domain.events import payment_reported
from domain.failures import DependencyDown, Permanent, Transient
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from storage.outcomes import Settled
from storage.payment_decisions import ChargeIntent
from tests.builders import NOW, a_delivery, order_event
from workers import payment_processor
from workers.gateways.book import ChargeExecuted, Execution
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayRefused, GatewayUnavailable, KeyClosed, Refund
from workers.gateways.simulated import SimulatedGateway

WINDOW = datetime.timedelta(hours=23)

Fault = Literal["", "unavailable", "lost before", "lost after"]
"""What happens to one call: it works, never leaves, is lost on its way there, or its answer on the way back."""


class FaultyGateway:
    """The simulated gateway behind a line that fails call by call, as told; it works when there is nothing told."""

    def __init__(self, clock: "Clock") -> None:
        self.executed: list[Execution] = []
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self._gateway = SimulatedGateway(key_ttl=86400, clock=clock.timestamp, on_execution=self.executed.append)

    @property
    def charges(self) -> list[ChargeExecuted]:
        return [each for each in self.executed if isinstance(each, ChargeExecuted)]

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        self.calls.append("charge")
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "unavailable":
            raise GatewayUnavailable("told to", retry_after=3.0)
        if fault == "lost before":
            raise ChargeUnknown("told to")
        charge = await self._gateway.charge(
            key,
            order_id=order_id,
            amount_minor=amount_minor,
            currency_code=currency_code,
            payment_method=payment_method,
        )
        if fault == "lost after":
            raise ChargeUnknown("told to")
        return charge

    async def find(self, key: str) -> Charge | None:
        self.calls.append("find")
        if self.faults and self.faults.pop(0):
            raise GatewayUnavailable("told to")
        return await self._gateway.find(key)

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        raise NotImplementedError

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:
        raise NotImplementedError

    async def close(self, key: str) -> Charge | None:
        return await self._gateway.close(key)

    async def aclose(self) -> None:
        await self._gateway.aclose()


class Decisions:
    """What storage keeps of one order's payment."""

    def __init__(self, clock: "Clock") -> None:
        self.clock = clock
        self.order = order_event().order
        self.first_send_time: datetime.datetime | None = None
        self.state = ""
        self.reference = ""
        self.reason = ""
        self.settled: list[OrderEvent] | None = None
        self.answer = [order_event()]
        self.in_doubt = False

    @property
    def intent(self) -> ChargeIntent:
        order = self.order
        return ChargeIntent(
            order.order_id,
            f"charge-{order.order_id}",
            order.total,
            order.payment_method,
            self.clock.now,
            self.first_send_time,
            look_up_first=self.in_doubt,
        )

    async def intend(self, _: Delivery, *, looked_up: bool = False) -> ChargeIntent | Settled:
        if self.settled is not None:
            return Settled(self.settled)
        self.in_doubt = self.in_doubt and not looked_up
        intent = self.intent
        if intent.look_up_first:
            return intent
        self.state = self.state or "intended"
        self.first_send_time = self.first_send_time or self.clock.now
        return intent

    async def open_key(self, _: Delivery) -> str | Settled:
        if self.settled is not None:
            return Settled(self.settled)
        return f"charge-{self.order.order_id}"

    async def undecided(self, _: Delivery) -> list[OrderEvent]:
        self.state = self.state or "undecided"
        return []

    async def not_sent(self, intent: ChargeIntent) -> None:
        if self.first_send_time == intent.send_time:
            self.first_send_time = None

    async def captured(self, _: Delivery, *, gateway_reference: str) -> list[OrderEvent]:
        self.state, self.reference, self.settled = "captured", gateway_reference, self.answer
        return self.answer

    async def declined(self, _: Delivery, *, reason: str, gateway_reference: str) -> list[OrderEvent]:
        self.state, self.reference, self.reason, self.settled = "declined", gateway_reference, reason, self.answer
        return self.answer

    async def unknown(self, _: Delivery) -> None:
        self.state = "unknown"


class Clock:
    now = NOW

    def timestamp(self) -> float:
        return self.now.timestamp()


class Bench:
    """One order, the gateway and the storage, with a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.gateway = FaultyGateway(self.clock)
        self.decisions = Decisions(self.clock)
        self.delivery = a_delivery(order_event(order=self.decisions.order))

    async def handle(self, *faults: Fault) -> Sequence[OrderEvent]:
        """Handles the order once; the gateway's next calls have these faults."""
        self.gateway.faults = list(faults)
        self.gateway.calls = []
        return await payment_processor.charge(
            self.delivery,
            decisions=self.decisions,
            gateway=self.gateway,
            key_window=WINDOW,
            now=lambda: self.clock.now,
        )

    async def sent_before(self, *, executed: bool, ago: datetime.timedelta) -> None:
        """A process sent the charge and died."""
        intent = self.decisions.intent
        await self.decisions.intend(self.delivery)
        if executed:
            await self.gateway.charge(
                intent.idempotency_key,
                order_id=intent.order_id,
                amount_minor=intent.amount.amount_minor,
                currency_code=intent.amount.currency_code,
                payment_method=intent.payment_method,
            )
        self.clock.now += ago


@pytest.fixture
def bench() -> Bench:
    return Bench()


INSIDE, PAST = WINDOW, WINDOW + datetime.timedelta(microseconds=1)


async def test_never_sent_is_charged_as_new(bench: Bench) -> None:
    assert await bench.handle() == bench.decisions.answer
    assert bench.gateway.calls == ["charge"]
    (charge,) = bench.gateway.charges
    order = bench.decisions.order
    assert (charge.amount_minor, charge.currency_code, charge.order_id) == (
        order.total.amount_minor,
        order.total.currency_code,
        order.order_id,
    )
    assert (bench.decisions.state, bench.decisions.reference) == ("captured", charge.reference)


async def test_what_a_restore_has_forgotten_is_looked_up_first(bench: Bench) -> None:
    await bench.sent_before(executed=True, ago=2 * WINDOW)
    bench.decisions.first_send_time, bench.decisions.in_doubt = None, True
    assert await bench.handle() == bench.decisions.answer
    assert bench.gateway.calls == ["find"]
    assert len(bench.gateway.charges) == 1


async def test_what_is_in_doubt_and_was_never_sent_is_charged_after_the_look_up(bench: Bench) -> None:
    bench.decisions.in_doubt = True
    assert await bench.handle() == bench.decisions.answer
    assert bench.gateway.calls == ["find", "charge"]


async def test_what_is_in_doubt_is_not_charged_while_it_cannot_be_looked_up(bench: Bench) -> None:
    bench.decisions.in_doubt = True
    for _ in range(2):
        with pytest.raises(DependencyDown):
            await bench.handle("unavailable")
        assert bench.gateway.calls == ["find"]
    assert bench.decisions.first_send_time is None
    assert bench.gateway.charges == []


async def test_an_order_called_off_during_the_look_up_is_not_charged(bench: Bench) -> None:
    bench.decisions.in_doubt = True
    find = bench.gateway.find

    async def cancelled_meanwhile(key: str) -> Charge | None:
        bench.decisions.settled = []
        return await find(key)

    bench.gateway.find = cancelled_meanwhile  # type: ignore[method-assign]
    assert await bench.handle() == []
    assert bench.gateway.calls == ["find"]


async def test_the_amount_of_the_row_is_charged_and_not_the_records(bench: Bench) -> None:
    bench.delivery.event.order.total.amount_minor = 1
    bench.delivery.event.order.payment_method = "pm_forged"
    await bench.handle()
    (charge,) = bench.gateway.charges
    assert (charge.amount_minor, charge.payment_method) == (3998, "pm_card_visa")


async def test_a_decline_is_a_business_result(bench: Bench) -> None:
    bench.decisions.order.payment_method = "pm_card_chargeDeclinedInsufficientFunds"
    assert await bench.handle() == bench.decisions.answer
    assert (bench.decisions.state, bench.decisions.reason) == ("declined", "INSUFFICIENT_FUNDS")


async def test_what_is_decided_already_calls_no_gateway(bench: Bench) -> None:
    await bench.handle()
    assert await bench.handle() == bench.decisions.answer
    assert bench.gateway.calls == []
    bench.decisions.settled = []
    assert await bench.handle() == []
    assert bench.gateway.calls == []


async def test_who_lost_the_partition_sends_nothing(bench: Bench) -> None:
    bench.delivery = dataclasses.replace(bench.delivery, is_owned=lambda: False)
    with pytest.raises(Transient, match="PARTITION_LOST"):
        await bench.handle()
    assert bench.gateway.calls == []


@pytest.mark.parametrize("executed", [True, False])
async def test_sent_and_inside_the_window_goes_out_once_more_under_the_same_key(bench: Bench, executed: bool) -> None:
    await bench.sent_before(executed=executed, ago=INSIDE)
    assert await bench.handle() == bench.decisions.answer
    assert bench.gateway.calls == ["charge"]
    assert len(bench.gateway.charges) == 1
    assert bench.decisions.state == "captured"


@pytest.mark.parametrize("executed", [True, False])
async def test_sent_inside_the_window_and_unknown_again_is_looked_up(bench: Bench, executed: bool) -> None:
    await bench.sent_before(executed=executed, ago=INSIDE)
    if executed:
        assert await bench.handle("lost before") == bench.decisions.answer
        assert bench.decisions.state == "captured"
    else:
        with pytest.raises(Permanent, match="PAYMENT_UNKNOWN"):
            await bench.handle("lost before")
        assert bench.decisions.state == "unknown"
    assert bench.gateway.calls == ["charge", "find"]


async def test_sent_and_past_the_window_is_only_looked_up(bench: Bench) -> None:
    await bench.sent_before(executed=True, ago=PAST)
    assert await bench.handle() == bench.decisions.answer
    assert bench.gateway.calls == ["find"]
    assert bench.decisions.state == "captured"


async def test_sent_and_past_the_window_and_not_found_is_unknown_and_never_charged(bench: Bench) -> None:
    await bench.sent_before(executed=False, ago=PAST)
    for _ in range(3):  # a dead letter that is replayed, too
        with pytest.raises(Permanent, match="PAYMENT_UNKNOWN"):
            await bench.handle()
        assert bench.gateway.calls == ["find"]
    assert bench.gateway.charges == []
    assert bench.decisions.state == "unknown"


async def test_an_unknown_answer_is_asked_for_once_more_under_the_key(bench: Bench) -> None:
    assert await bench.handle("lost after") == bench.decisions.answer
    assert bench.gateway.calls == ["charge", "charge"]
    assert len(bench.gateway.charges) == 1


async def test_unknown_twice_then_found(bench: Bench) -> None:
    assert await bench.handle("lost after", "lost before") == bench.decisions.answer
    assert bench.gateway.calls == ["charge", "charge", "find"]
    assert bench.decisions.state == "captured"
    assert len(bench.gateway.charges) == 1


async def test_unknown_twice_then_found_declined(bench: Bench) -> None:
    bench.decisions.order.payment_method = "pm_card_chargeDeclined"
    await bench.handle("lost after", "lost after")
    assert bench.gateway.calls == ["charge", "charge", "find"]
    assert bench.decisions.state == "declined"


async def test_unknown_twice_then_not_found_is_never_guessed(bench: Bench) -> None:
    with pytest.raises(Permanent, match="PAYMENT_UNKNOWN"):
        await bench.handle("lost before", "lost before")
    assert bench.gateway.calls == ["charge", "charge", "find"]
    assert bench.decisions.state == "unknown"
    assert bench.decisions.first_send_time == NOW


async def test_a_replayed_unknown_goes_on_under_the_same_key(bench: Bench) -> None:
    with pytest.raises(Permanent):
        await bench.handle("lost before", "lost before")
    assert await bench.handle() == bench.decisions.answer
    assert bench.decisions.state == "captured"
    assert len(bench.gateway.charges) == 1


async def test_a_gateway_that_is_away_at_the_first_send_leaves_it_never_sent(bench: Bench) -> None:
    with pytest.raises(DependencyDown) as away:
        await bench.handle("unavailable")
    assert (away.value.dependency, away.value.retry_after) == ("gateway", 3.0)
    assert bench.decisions.first_send_time is None
    bench.clock.now += 2 * PAST  # a long outage: still to be charged as new
    assert await bench.handle() == bench.decisions.answer
    assert bench.gateway.calls == ["charge"]


@pytest.mark.parametrize(
    "faults",
    [("lost before", "unavailable"), ("lost after", "unavailable"), ("lost after", "lost before", "unavailable")],
)
async def test_a_look_up_that_cannot_be_made_leaves_it_sent(bench: Bench, faults: tuple[Fault, ...]) -> None:
    with pytest.raises(DependencyDown):
        await bench.handle(*faults)
    assert bench.decisions.first_send_time == NOW
    assert bench.decisions.state == "intended"
    bench.clock.now += PAST
    if "lost after" in faults:
        assert await bench.handle() == bench.decisions.answer
    else:
        with pytest.raises(Permanent, match="PAYMENT_UNKNOWN"):
            await bench.handle()
    assert bench.gateway.calls == ["find"]
    assert len(bench.gateway.charges) == ("lost after" in faults)


@pytest.mark.parametrize("ago", [INSIDE, PAST])
async def test_a_gateway_that_is_away_after_an_earlier_send_leaves_it_sent(
    bench: Bench, ago: datetime.timedelta
) -> None:
    await bench.sent_before(executed=True, ago=ago)
    with pytest.raises(DependencyDown):
        await bench.handle("unavailable")
    assert bench.decisions.first_send_time == NOW
    assert len(bench.gateway.charges) == 1


async def test_a_refusal_is_permanent(bench: Bench) -> None:
    await bench.gateway.close(bench.decisions.intent.idempotency_key)
    with pytest.raises(KeyClosed):
        await bench.handle()
    assert issubclass(GatewayRefused, Permanent)
    assert bench.gateway.charges == []


@pytest.mark.parametrize(
    ("error_class", "is_open"), [("GATEWAY_PAYMENT_METHOD_UNKNOWN", False), ("GATEWAY_KEY_REUSED", True)]
)
async def test_a_first_send_that_was_refused_keeps_no_order_from_expiring(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error_class: str, is_open: bool
) -> None:
    async def refuse(*_: Any, **__: Any) -> Charge:
        raise GatewayRefused(error_class, "told to")

    monkeypatch.setattr(bench.gateway, "charge", refuse)
    for _ in range(2):  # a dead letter that is replayed, too
        with pytest.raises(GatewayRefused, match=error_class):
            await bench.handle()
        assert (bench.decisions.first_send_time is not None) is is_open


async def test_a_refusal_after_an_earlier_send_leaves_it_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.sent_before(executed=True, ago=INSIDE)

    async def refuse(*_: Any, **__: Any) -> Charge:
        raise GatewayRefused("GATEWAY_INVALID_REQUEST", "told to")

    monkeypatch.setattr(bench.gateway, "charge", refuse)
    with pytest.raises(GatewayRefused):
        await bench.handle()
    assert bench.decisions.first_send_time == NOW


@pytest.mark.parametrize("faults", [(), ("lost before", "lost before")])
async def test_an_order_that_is_cancelled_while_it_is_charged_is_left_to_its_cancellation(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, faults: tuple[Fault, ...]
) -> None:
    charge = bench.gateway.charge

    async def cancelled_meanwhile(key: str, **asked: Any) -> Charge:
        await bench.gateway.close(key)
        bench.decisions.settled = []
        return await charge(key, **asked)

    monkeypatch.setattr(bench.gateway, "charge", cancelled_meanwhile)
    assert await bench.handle(*faults) == []
    assert (bench.decisions.state, bench.gateway.charges) == ("intended", [])


# -- reports -----------------------------------------------------------------------------------------------------------


async def report(bench: Bench, *, find: Fault = "", **changes: Any) -> Sequence[OrderEvent]:
    """Hands the payment processor a report of the gateway's on the order."""
    reported = payment_reported("evt_1", bench.decisions.order.order_id, source="webhook", now=NOW)
    for name, value in changes.items():
        setattr(reported.metadata, name, value)
    bench.gateway.faults = [find]
    return await payment_processor.handle(
        a_delivery(reported),
        decisions=bench.decisions,
        refunds=None,  # type: ignore[arg-type] # no report leads there
        gateway=bench.gateway,
        key_window=WINDOW,
        now=lambda: bench.clock.now,
    )


@pytest.mark.parametrize(
    ("payment_method", "state"), [("pm_card_visa", "captured"), ("pm_card_chargeDeclined", "declined")]
)
async def test_a_report_settles_an_unknown_charge_by_what_the_gateway_holds(
    bench: Bench, payment_method: str, state: str
) -> None:
    bench.decisions.order.payment_method = payment_method
    with pytest.raises(DependencyDown):  # executed, and neither answer nor look-up came through
        await bench.handle("lost after", "lost after", "unavailable")
    await bench.decisions.unknown(bench.delivery)
    bench.gateway.calls = []
    assert await report(bench) == bench.decisions.answer
    assert bench.decisions.state == state
    assert bench.gateway.calls == ["find"], "a report never charges"
    assert len(bench.gateway.charges) == 1


async def test_a_report_of_a_charge_that_the_gateway_does_not_hold_decides_nothing(bench: Bench) -> None:
    assert await report(bench) == []
    assert bench.decisions.state == "undecided"
    assert bench.gateway.charges == []


async def test_a_report_of_what_is_decided_emits_what_was_decided(bench: Bench) -> None:
    bench.decisions.settled = []
    assert await report(bench) == []
    assert bench.gateway.calls == []


async def test_a_report_that_cannot_be_looked_up_waits(bench: Bench) -> None:
    with pytest.raises(GatewayUnavailable):
        await report(bench, find="unavailable")
    assert bench.decisions.state == ""


async def test_a_report_in_somebodys_name_is_none(bench: Bench) -> None:
    with pytest.raises(Permanent) as refused:
        await report(bench, caller="somebody")
    assert refused.value.error_class == "INVALID_REPORT"


def test_a_report_is_the_same_event_each_time_it_is_delivered() -> None:
    first, second = (
        payment_reported("evt_1", "00000000-0000-4000-8000-000000000001", source="webhook", now=now)
        for now in (NOW, NOW + datetime.timedelta(hours=1))
    )
    assert first.event_id == second.event_id
    other = payment_reported("evt_2", first.order.order_id, source="webhook", now=NOW)
    assert other.event_id != first.event_id
    assert (first.revision, first.payment_reported.report_id) == (0, "evt_1")
