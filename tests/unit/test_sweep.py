"""The sweep: it asks for what is due, once in a slot, and outlives what is away."""

import asyncio
import datetime
from collections.abc import Sequence
from typing import Any, cast

import pytest

from domain import commands
from domain.failures import DependencyDown
from messaging import envelope, topics
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from tests import engines
from tests.builders import NOW, an_id
from workers.sweep import Sweep, TimedRuntime

PATIENCE, WINDOW = datetime.timedelta(minutes=15), datetime.timedelta(hours=23)


class Due:
    def __init__(self) -> None:
        self.to_settle: list[str] = []
        self.unknown: list[str] = []
        self.is_slow = False
        self.limits: list[datetime.datetime] = []
        self.orders: list[str] = []
        self.to_refund: list[str] = []
        self.is_away = False
        self.asked = 0

    async def unpaid(self, now: datetime.datetime) -> list[str]:
        self.asked += 1
        if self.is_away:
            raise DependencyDown("postgres", "told to")
        return self.orders

    async def refunds(self) -> list[str]:
        return self.to_refund

    async def unanswered(self, *, sent_before: datetime.datetime) -> list[str]:
        self.limits.append(sent_before)
        return list(self.unknown)

    async def unsettled(self, *, quiet_since: datetime.datetime) -> list[str]:
        self.limits.append(quiet_since)
        if self.is_slow:
            raise DependencyDown("postgres", "a statement took too long")
        return list(self.to_settle)


class Topics:
    def __init__(self) -> None:
        self.records: list[OutgoingRecord] = []
        self.failure: NotHandedOver | OutcomeUnknown | None = None

    async def publish_all(
        self, records: Sequence[OutgoingRecord], *, timeout: float
    ) -> list[NotHandedOver | OutcomeUnknown | None]:
        self.records += records
        return [self.failure] * len(records)

    @property
    def events(self) -> list[OrderEvent]:
        return [envelope.decode(topics.ORDERS.name, each.key, each.value) for each in self.records]


class Bench:
    def __init__(self, *, interval: float = 30.0) -> None:
        self.due, self.topics, self.now = Due(), Topics(), NOW
        self.sweeps = [
            Sweep(
                due=self.due,
                publisher=self.topics,
                interval=interval,
                patience=PATIENCE,
                key_window=WINDOW,
                now=lambda: self.now,
                source="order-processor",
            )
            for _ in range(2)
        ]


async def test_it_asks_for_expiries_and_refunds_as_the_system() -> None:
    bench = Bench()
    bench.due.orders, bench.due.to_refund = [an_id(), an_id()], [an_id()]
    assert await bench.sweeps[0].sweep() == 3
    assert [(each.type, each.order.order_id) for each in bench.topics.events] == [
        *((E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED, each) for each in bench.due.orders),
        (E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED, bench.due.to_refund[0]),
    ]
    for event in bench.topics.events:
        assert commands.is_systems(event)
        assert commands.violations_of_command(event) == []
        assert event.revision == 0


async def test_now_and_then_it_asks_about_what_nobody_settled_and_for_each_order_once() -> None:
    bench = Bench()
    late, both, forgotten, unknown = an_id(), an_id(), an_id(), an_id()
    bench.due.to_refund, bench.due.to_settle, bench.due.unknown = [late, both], [both, forgotten], [forgotten, unknown]
    assert await bench.sweeps[0].sweep() == 4
    asked = {each.order.order_id: each.order_refund_requested.reason for each in bench.topics.events}
    assert asked == {late: "LATE_APPROVAL", both: "LATE_APPROVAL", forgotten: "OVERDUE", unknown: "OVERDUE"}
    assert bench.due.limits == [NOW - WINDOW, NOW - PATIENCE]
    for _ in range(29):
        bench.now += datetime.timedelta(seconds=30)
        assert await bench.sweeps[0].sweep() == 2
    assert len(bench.due.limits) == 2, "not in every slot: while the gateway is away asking does not help"
    bench.now += datetime.timedelta(seconds=30)
    assert await bench.sweeps[0].sweep() == 4


async def test_a_look_that_takes_too_long_keeps_nothing_else_from_being_asked() -> None:
    bench = Bench()
    bench.due.orders, bench.due.to_refund, bench.due.unknown = [an_id()], [an_id()], [an_id()]
    bench.due.is_slow = True
    assert await bench.sweeps[0].sweep() == 3


async def test_processes_ask_once_in_a_slot_and_again_in_the_next() -> None:
    bench = Bench()
    bench.due.orders = [an_id()]
    for sweep in bench.sweeps:
        await sweep.sweep()
    bench.now += datetime.timedelta(seconds=29)
    await bench.sweeps[0].sweep()
    assert len({event.event_id for event in bench.topics.events}) == 1
    bench.now += datetime.timedelta(seconds=1)
    await bench.sweeps[0].sweep()
    assert len({event.event_id for event in bench.topics.events}) == 2


async def test_what_kafka_did_not_take_is_not_counted() -> None:
    bench = Bench()
    bench.due.orders = [an_id()]
    bench.topics.failure = NotHandedOver("told to")
    assert await bench.sweeps[0].sweep() == 0


async def test_it_outlives_a_database_that_is_away() -> None:
    bench = Bench(interval=0.01)
    bench.now = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    bench.due.is_away = True
    running = asyncio.create_task(bench.sweeps[0].run())
    await engines.eventually(lambda: bench.due.asked >= 3, "looks while PostgreSQL is away")
    bench.due.is_away, bench.due.orders = False, [an_id()]
    await engines.eventually(lambda: bench.topics.records, "a command")
    running.cancel()
    await asyncio.wait([running])


class Worker:
    registers = (topics.ORDERS,)
    is_ready = True

    def __init__(self) -> None:
        self.drained = False

    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.drained = True


class Idle:
    def __init__(self) -> None:
        self.is_over = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):  # as giving a connection back does
                await asyncio.sleep(0)
            self.is_over = True


class Broken:
    async def run(self) -> None:
        raise ZeroDivisionError


async def test_a_timer_that_ends_ends_the_worker_and_that_is_told() -> None:
    worker, idle, stop = Worker(), Idle(), asyncio.Event()
    with pytest.raises(ZeroDivisionError):
        await TimedRuntime(cast(Any, worker), idle, Broken()).run(stop)
    assert (worker.drained, idle.is_over) == (True, True)


async def test_a_stop_ends_all() -> None:
    bench, worker, idle, stop = Bench(), Worker(), Idle(), asyncio.Event()
    runtime = TimedRuntime(cast(Any, worker), bench.sweeps[0], idle)
    assert (runtime.registers, runtime.is_ready) == ((topics.ORDERS,), True)
    running = asyncio.create_task(runtime.run(stop))
    await asyncio.sleep(0)
    stop.set()
    await running
    assert (worker.drained, idle.is_over) == (True, True)
