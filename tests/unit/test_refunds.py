"""Giving back: closed keys, refunds under one key however often they are sent, refusals, and windows of keys."""

import dataclasses
import datetime
from collections.abc import Awaitable, Callable, Sequence

import pytest

from domain.failures import DependencyDown, Permanent, Transient
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.orders.v1.order_pb2 import Money
from storage.outcomes import Settled
from storage.refund_decisions import RefundIntent
from tests.builders import NOW, a_command, a_delivery, an_id, an_order, order_event
from workers.gateways.book import Execution, RefundExecuted
from workers.gateways.gateway import (
    Charge,
    ChargeUnderWay,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    Refund,
)
from workers.gateways.simulated import SimulatedGateway
from workers.refunds import Refunds

WINDOW = datetime.timedelta(hours=23)
TOTAL = 3998


class Gateway(SimulatedGateway):
    """Fails refunds and look-ups call by call, as told; it works when there is nothing told."""

    def __init__(self, clock: "Clock") -> None:
        self.executed: list[Execution] = []
        self.calls: list[str] = []
        self.faults: list[str] = []
        self.late: list[Callable[[], Awaitable[Refund]]] = []
        super().__init__(key_ttl=86400, clock=lambda: clock.now.timestamp(), on_execution=self.executed.append)

    @property
    def refunds(self) -> list[RefundExecuted]:
        return [each for each in self.executed if isinstance(each, RefundExecuted)]

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        fault = self._next("refund")
        if fault == "unavailable":
            raise GatewayUnavailable("told to")
        if fault == "refused":
            raise GatewayRefused("GATEWAY_REFUND_TOO_LARGE", "told to")
        if fault == "late":
            self.late.append(lambda: super(Gateway, self).refund(key, charge_reference=charge_reference,
                                                                 amount_minor=amount_minor))  # fmt: skip
            raise ChargeUnknown("told to")
        if fault == "lost before":
            raise ChargeUnknown("told to")
        refund = await super().refund(key, charge_reference=charge_reference, amount_minor=amount_minor)
        if fault == "lost after":
            raise ChargeUnknown("told to")
        return refund

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:
        fault = self._next("find_refund")
        if fault == "refused":
            raise GatewayRefused("GATEWAY_INVALID_REQUEST", "told to")
        if fault:
            raise GatewayUnavailable("told to")
        return await super().find_refund(key, charge_reference=charge_reference)

    async def close(self, key: str) -> Charge | None:
        fault = self._next("close")
        if fault == "under way":
            raise ChargeUnderWay("told to")
        if fault:
            raise GatewayUnavailable("told to")
        return await super().close(key)

    def _next(self, call: str) -> str:
        self.calls.append(call)
        return self.faults.pop(0) if self.faults else ""


class Clock:
    now = NOW


class Decisions:
    """What storage keeps of one order's refund."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.order_id = an_order().order_id
        self.charge_reference = ""
        self.first_send_time: datetime.datetime | None = None
        self.in_doubt = False
        self.intended = False
        self.asked_by = ""
        self.request_fingerprint: bytes | None = None
        self.key_is_due = False
        self.has_payment = True
        self.settled: list[OrderEvent] | None = None
        self.reference = ""
        self.was_refused = False
        self.was_left_open = False
        self.sent_before: datetime.datetime | None = None
        self.answer = [order_event(E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED)]

    @property
    def charge_key(self) -> str:
        return f"charge-{self.order_id}"

    def _intend(self, delivery: Delivery) -> RefundIntent:
        if not self.intended:
            event = delivery.event
            self.asked_by = event.event_id
            self.request_fingerprint = event.command.request_fingerprint if event.HasField("command") else None
        intent = RefundIntent(
            order_id=self.order_id,
            asked_by=self.asked_by,
            idempotency_key=f"refund-{self.order_id}",
            charge_reference=self.charge_reference,
            amount=Money(currency_code="EUR", amount_minor=TOTAL),
            reason="",
            request_fingerprint=self.request_fingerprint,
            send_time=self.clock.now,
            first_send_time=self.first_send_time,
            look_up_first=self.in_doubt,
        )
        self.first_send_time = self.first_send_time or self.clock.now
        self.intended = True
        return intent

    async def key_to_close(self, _: Delivery) -> str | Settled:
        if self.settled is not None or not self.has_payment:
            return Settled(self.settled or [])
        return self.charge_key

    async def closed(
        self, delivery: Delivery, *, approved: bool | None, gateway_reference: str
    ) -> RefundIntent | Settled:
        if not approved:
            self.settled = []
            return Settled([])
        self.charge_reference = gateway_reference
        return self._intend(delivery)

    async def intend(self, delivery: Delivery) -> RefundIntent | Settled:
        return self._intend(delivery) if self.settled is None else Settled(self.settled)

    async def due(self, delivery: Delivery, *, sent_before: datetime.datetime) -> str | RefundIntent | Settled:
        self.sent_before = sent_before
        if self.settled is not None:
            return Settled(self.settled)
        return self.charge_key if self.key_is_due else self._intend(delivery)

    async def sent_anew(self, intent: RefundIntent) -> RefundIntent:
        self.first_send_time = self.clock.now
        return dataclasses.replace(intent, first_send_time=None, send_time=self.clock.now)

    async def not_sent(self, intent: RefundIntent) -> None:
        self.first_send_time = None

    async def refunded(self, _: Delivery, intent: RefundIntent, *, gateway_reference: str) -> list[OrderEvent]:
        self.reference, self.settled = gateway_reference, self.answer
        return self.answer

    async def refused(self, _: Delivery, intent: RefundIntent) -> list[OrderEvent]:
        self.was_refused, self.settled = True, []
        return []

    async def left_open(self, _: Delivery) -> list[OrderEvent]:
        self.was_left_open = True
        return []


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.gateway = Gateway(self.clock)
        self.decisions = Decisions(self.clock)
        self.refunds = Refunds(
            decisions=self.decisions,
            gateway=self.gateway,
            key_window=WINDOW,
            now=lambda: self.clock.now,
        )
        self.is_last = False
        self.owned = True
        self.event_id = an_id()

    async def charge(self) -> str:
        charge = await self.gateway.charge(
            self.decisions.charge_key,
            order_id=self.decisions.order_id,
            amount_minor=TOTAL,
            currency_code="EUR",
            payment_method="pm_card_visa",
        )
        self.decisions.charge_reference = charge.reference
        return charge.reference

    async def cancelled(self, *faults: str) -> Sequence[OrderEvent]:
        return await self._handle(order_event(E.ORDER_EVENT_TYPE_ORDER_CANCELLED), faults)

    async def asked(self, *faults: str) -> Sequence[OrderEvent]:
        return await self._handle(a_command("refund", self.decisions.order_id, event_id=self.event_id), faults)

    async def swept(self, *faults: str, event_id: str = "") -> Sequence[OrderEvent]:
        command = a_command("refund", self.decisions.order_id, caller="", event_id=event_id)
        command.command.request_fingerprint = b""
        return await self._handle(command, faults)

    async def _handle(self, event: OrderEvent, faults: Sequence[str]) -> Sequence[OrderEvent]:
        self.gateway.faults, self.gateway.calls = list(faults), []
        delivery = a_delivery(event, is_last=self.is_last, is_owned=lambda: self.owned)
        if event.type == E.ORDER_EVENT_TYPE_ORDER_CANCELLED:
            return await self.refunds.settle_cancelled(delivery)
        return await self.refunds.refund(delivery)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_cancelled_order_that_was_charged_is_refunded(bench: Bench) -> None:
    reference = await bench.charge()
    assert await bench.cancelled() == bench.decisions.answer
    assert bench.gateway.calls == ["close", "refund"]
    (refund,) = bench.gateway.refunds
    assert (refund.charge_reference, refund.amount_minor) == (reference, TOTAL)
    assert bench.decisions.reference == refund.reference


async def test_a_cancelled_order_that_was_not_charged_never_will_be(bench: Bench) -> None:
    assert await bench.cancelled() == []
    assert bench.gateway.calls == ["close"]
    with pytest.raises(GatewayRefused, match="KEY_CLOSED"):
        await bench.charge()


async def test_a_cancelled_order_that_was_never_to_be_charged_calls_no_gateway(bench: Bench) -> None:
    bench.decisions.has_payment = False
    assert await bench.cancelled() == []
    assert bench.gateway.calls == []


async def test_a_close_that_is_not_answered_is_made_again(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(DependencyDown):
        await bench.cancelled("unavailable")
    assert not bench.decisions.intended
    assert await bench.cancelled() == bench.decisions.answer


async def test_what_is_decided_calls_no_gateway(bench: Bench) -> None:
    await bench.charge()
    await bench.cancelled()
    for again in (bench.cancelled, bench.asked):
        assert await again() == bench.decisions.answer
        assert bench.gateway.calls == []


async def test_a_lost_answer_is_asked_for_again_under_the_key(bench: Bench) -> None:
    await bench.charge()
    assert await bench.asked("lost after") == bench.decisions.answer
    assert bench.gateway.calls == ["refund", "refund"]
    assert len(bench.gateway.refunds) == 1


async def test_lost_twice_then_found(bench: Bench) -> None:
    await bench.charge()
    assert await bench.asked("lost after", "lost before") == bench.decisions.answer
    assert bench.gateway.calls == ["refund", "refund", "find_refund"]
    assert len(bench.gateway.refunds) == 1


async def test_one_that_was_sent_before_is_looked_up_after_one_more_send(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(DependencyDown):
        await bench.asked("lost after", "unavailable")
    assert await bench.asked("lost before") == bench.decisions.answer
    assert bench.gateway.calls == ["refund", "find_refund"]
    assert len(bench.gateway.refunds) == 1


async def test_lost_twice_and_not_found_is_tried_again_under_the_same_key(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.asked("lost before", "lost before")
    assert bench.decisions.settled is None
    assert await bench.asked("lost after") == bench.decisions.answer
    assert len(bench.gateway.refunds) == 1


@pytest.mark.parametrize("faults", [("unavailable",), ("lost after", "unavailable"), ("lost after", "lost after", "x")])
async def test_a_gateway_that_is_away_is_dependency_down(bench: Bench, faults: tuple[str, ...]) -> None:
    await bench.charge()
    with pytest.raises(DependencyDown):
        await bench.asked(*faults)
    assert await bench.asked() == bench.decisions.answer
    assert len(bench.gateway.refunds) == 1


async def test_past_the_window_of_keys_it_is_looked_up_first(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(DependencyDown):
        await bench.asked("lost after", "unavailable")
    bench.clock.now += datetime.timedelta(days=2)  # the gateway has forgotten the key, and would pay again
    assert await bench.asked() == bench.decisions.answer
    assert bench.gateway.calls == ["find_refund"]
    assert len(bench.gateway.refunds) == 1


async def test_past_the_window_what_was_not_made_is_made_and_its_window_begins_anew(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.asked("lost before", "lost before")
    bench.clock.now += datetime.timedelta(days=2)
    with pytest.raises(DependencyDown):
        await bench.asked("", "lost after", "unavailable")
    assert await bench.asked() == bench.decisions.answer
    assert bench.gateway.calls == ["refund"]
    assert len(bench.gateway.refunds) == 1


@pytest.mark.parametrize("was_made", [True, False])
async def test_what_a_restore_has_forgotten_is_looked_up_first(bench: Bench, was_made: bool) -> None:
    reference = await bench.charge()
    if was_made:
        key = f"refund-{bench.decisions.order_id}"
        await bench.gateway.refund(key, charge_reference=reference, amount_minor=TOTAL)
        bench.clock.now += datetime.timedelta(days=2)
    bench.decisions.in_doubt = True
    assert await bench.asked() == bench.decisions.answer
    assert bench.gateway.calls == (["find_refund"] if was_made else ["find_refund", "refund"])
    assert len(bench.gateway.refunds) == 1


async def test_who_lost_the_partition_sends_nothing(bench: Bench) -> None:
    await bench.charge()
    bench.owned = False
    with pytest.raises(Transient, match="PARTITION_LOST"):
        await bench.asked()
    assert bench.gateway.refunds == []


async def test_a_refusal_is_told_to_who_asked(bench: Bench) -> None:
    await bench.charge()
    assert await bench.asked("refused") == []
    assert bench.decisions.was_refused


async def test_a_refusal_that_nobody_would_hear_of_is_a_dead_letter(bench: Bench) -> None:
    await bench.charge()
    for refused in (bench.cancelled("", "refused"), bench.swept("refused")):
        with pytest.raises(Permanent):
            await refused
    assert not bench.decisions.was_refused


# -- a second send, while it is not known what became of the first -----------------------------------------------------


@pytest.mark.parametrize("first", ["lost after", "late", "lost before"])
async def test_a_refusal_of_the_second_send_tells_nothing_of_the_first(bench: Bench, first: str) -> None:
    """The gateway may refuse it because of the first, which is made or still on its way."""
    await bench.charge()
    if first == "lost after":
        assert await bench.asked(first, "refused") == bench.decisions.answer
    else:
        with pytest.raises(Transient, match="GATEWAY_CHARGE_UNKNOWN"):
            await bench.asked(first, "refused")
    assert bench.gateway.calls == ["refund", "refund", "find_refund"]
    assert not bench.decisions.was_refused


async def test_a_refund_that_executes_after_its_repeat_was_refused_is_found(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.asked("late", "refused")
    for execute in bench.gateway.late:
        await execute()
    assert await bench.asked("refused") == bench.decisions.answer
    assert bench.gateway.calls == ["refund", "find_refund"]
    assert len(bench.gateway.refunds) == 1


@pytest.mark.parametrize("look_up", ["refused", "unavailable"])
async def test_a_look_up_that_is_not_answered_settles_nothing(bench: Bench, look_up: str) -> None:
    await bench.charge()
    with pytest.raises((Transient, DependencyDown)):
        await bench.asked("lost after", "refused", look_up)
    assert not bench.decisions.was_refused
    bench.clock.now += datetime.timedelta(days=2)
    with pytest.raises((Transient, DependencyDown)):
        await bench.asked(look_up)
    assert await bench.asked() == bench.decisions.answer
    assert len(bench.gateway.refunds) == 1


async def test_a_refund_of_which_nothing_was_sent_can_be_refused_later(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(DependencyDown):
        await bench.asked("unavailable")
    assert await bench.asked("refused") == []
    assert bench.decisions.was_refused


async def test_a_refused_refund_that_is_replayed_is_refused_again_and_not_unknown(bench: Bench) -> None:
    await bench.charge()
    for _ in range(2):
        with pytest.raises(GatewayRefused):
            await bench.cancelled("", "refused")
    assert bench.gateway.calls == ["close", "refund"]


async def test_past_the_window_a_refusal_decides_again(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.asked("lost before", "refused")
    bench.clock.now += datetime.timedelta(days=2)
    assert await bench.asked("", "refused") == []
    assert bench.gateway.calls == ["find_refund", "refund"]
    assert bench.decisions.was_refused


# -- what a sweep asks for ------------------------------------------------------------------------------------------


async def test_a_sweep_closes_the_key_of_a_charge_that_nobody_settled(bench: Bench) -> None:
    await bench.charge()
    bench.decisions.key_is_due = True
    assert await bench.swept() == bench.decisions.answer
    assert bench.gateway.calls == ["close", "refund"]


async def test_a_sweep_that_finds_a_charge_under_way_for_long_writes_no_dead_letter(bench: Bench) -> None:
    await bench.charge()
    bench.decisions.key_is_due = True
    with pytest.raises(Transient, match="UNDER_WAY"):
        await bench.swept("under way")
    assert not bench.decisions.was_left_open
    bench.is_last = True
    assert await bench.swept("under way") == []
    assert bench.decisions.was_left_open
    with pytest.raises(Transient, match="UNDER_WAY"):  # a cancellation that gave up is told of, once
        await bench.cancelled("under way")


async def test_a_sweep_goes_on_with_a_refund_that_is_past_the_window(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.asked("lost before", "lost before")
    bench.clock.now += datetime.timedelta(days=2)
    assert await bench.swept() == bench.decisions.answer
    assert bench.decisions.sent_before == bench.clock.now - WINDOW
    assert bench.gateway.calls == ["find_refund", "refund"]


async def test_a_sweep_that_cannot_settle_anothers_refund_writes_no_dead_letter(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.asked("lost before", "lost before")
    bench.clock.now += datetime.timedelta(days=2)
    assert await bench.swept("", "lost before", "lost before") == []
    assert bench.decisions.was_left_open


async def test_a_refund_that_a_sweep_asked_for_itself_is_tried_again(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.swept("lost before", "lost before")
    assert not bench.decisions.was_left_open


async def test_a_refusal_of_what_a_caller_asked_for_is_told_when_a_sweep_meets_it(bench: Bench) -> None:
    await bench.charge()
    with pytest.raises(Transient):
        await bench.asked("lost before", "lost before")
    bench.clock.now += datetime.timedelta(days=2)
    assert await bench.swept("", "refused") == []
    assert bench.decisions.was_refused


async def test_a_command_that_the_server_never_makes_is_refused_for_good(bench: Bench) -> None:
    event = a_command("refund", bench.decisions.order_id, amount=Money(currency_code="EUR", amount_minor=-1))
    with pytest.raises(Permanent, match="INVALID_COMMAND"):
        await bench.refunds.refund(dataclasses.replace(a_delivery(event)))
    assert not bench.decisions.intended
