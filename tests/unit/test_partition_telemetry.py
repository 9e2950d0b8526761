"""What a partition shows of its records: spans, counts, ages. Kafka is a double; its own tests have the real one."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition
from prometheus_client import REGISTRY

from domain.failures import DependencyDown, Permanent, Transient
from domain.records import Delivery
from messaging.lag import LagReport, Standing
from messaging.worker import Handler
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import OrderStatus
from tests.builders import a_record, emitted_for, order_event
from tests.engines import eventually
from tests.partitions import (  # noqa: F401
    LIMITS,
    PARTITION,
    Consumer,
    Producer,
    a_placed_record,
    doubled_kafka,
    running,
)
from tests.spans import CALLER, CALLER_ID, Recorded, id_of, linked_to, parent_of, recorded

E = OrderEventType


def failing(times: int, failure: Exception) -> Handler:
    left = times

    async def handle(delivery: Delivery) -> list[OrderEvent]:
        nonlocal left
        if left:
            left -= 1
            raise failure
        return [emitted_for(delivery)]

    return handle


def handlings(seen: Recorded) -> list[Any]:
    return seen.named("process orders")


async def test_a_record_that_is_handled_is_one_span_with_what_it_leads_to(kafka: Producer) -> None:
    with recorded() as seen:
        async with running(kafka, failing(0, AssertionError())) as ran:
            await ran.done(a_placed_record())
            assert ran.metric("orderflow_worker_done_records_total", topic="orders", outcome="handled") == 1
    [handled] = handlings(seen)
    [sent] = [each for each in seen.all if each.name.startswith("send ")]
    assert parent_of(handled) == CALLER_ID
    assert parent_of(sent) == id_of(handled)
    [(_, headers)] = kafka.sent
    assert f"{id_of(sent):016x}".encode() in headers["traceparent"]


async def test_a_record_that_is_skipped_leaves_no_span(kafka: Producer) -> None:
    with recorded() as seen:
        async with running(kafka, failing(0, AssertionError()), E.ORDER_EVENT_TYPE_ORDER_PAID) as ran:
            await ran.done(a_placed_record())
    assert seen.all == []


async def test_each_try_is_a_span_of_its_own_linked_to_the_one_before(kafka: Producer) -> None:
    with recorded() as seen:
        async with running(kafka, failing(1, Transient("SMTP_451", "later"))) as ran:
            await ran.done(a_placed_record())
            assert ran.metric("orderflow_worker_retries_total", tier="in_place", reason="SMTP_451") == 1
    first, second = handlings(seen)
    assert (first.attributes or {})["error.type"] == "SMTP_451"
    assert (second.attributes or {})["orderflow.attempt"] == 2
    assert (parent_of(first), parent_of(second)) == (CALLER_ID, CALLER_ID)
    assert (linked_to(first), linked_to(second)) == ([], [id_of(first)])


async def test_what_is_parked_names_the_try_before_and_keeps_its_trace(kafka: Producer) -> None:
    with recorded() as seen:
        async with running(kafka, failing(9, Transient("X", "y"))) as ran:
            await ran.done(a_placed_record())
            topic = f"{ran.group}.retry.10s"
            assert ran.metric("orderflow_worker_done_records_total", topic="orders", outcome="parked") == 1
    _, last = handlings(seen)
    [sent] = seen.named(f"send {topic}")
    assert parent_of(sent) == id_of(last)
    [(_, headers)] = kafka.sent
    assert headers["traceparent"] == CALLER[1]
    assert f"{id_of(last):016x}".encode() in headers["retry_links"]


async def test_a_dead_letter_names_the_handling_that_gave_up(kafka: Producer) -> None:
    with recorded() as seen:
        async with running(kafka, failing(9, Permanent("NO_TEMPLATE", "none"))) as ran:
            await ran.done(a_placed_record())
            labels = {"reason": "NO_TEMPLATE", "class": "permanent"}
            assert ran.metric("orderflow_dead_letters_total", **labels) == 1
            assert ran.metric("orderflow_worker_done_records_total", topic="orders", outcome="dead_lettered") == 1
    [gave_up] = handlings(seen)
    [sent] = seen.named("send dlq")
    assert parent_of(sent) == id_of(gave_up)
    [(_, headers)] = kafka.sent
    assert headers["traceparent"] == CALLER[1]
    assert f"{id_of(gave_up):016x}".encode() in headers["dlq_traceparent"]


async def test_an_outage_is_one_try_however_often_it_is_probed(kafka: Producer) -> None:
    with recorded() as seen:
        async with running(kafka, failing(3, DependencyDown("postgres", "away"))) as ran:
            await ran.done(a_placed_record())
    [handled] = handlings(seen)
    assert "error.type" not in (handled.attributes or {})


async def test_a_record_that_is_no_event_has_a_span_that_failed(kafka: Producer) -> None:
    with recorded() as seen:
        async with running(kafka, failing(0, AssertionError())) as ran:
            await ran.done(a_record(b"\xff", partition=0, offset=0))
    [handled] = handlings(seen)
    assert (handled.attributes or {})["error.type"] == "UNDECODABLE"


async def test_off_no_header_is_added(kafka: Producer) -> None:
    async with running(kafka, failing(9, Transient("X", "y"))) as ran:
        await ran.done(a_placed_record())
    [(_, headers)] = kafka.sent
    assert "retry_links" not in headers
    assert headers["traceparent"] == CALLER[1]


async def test_lag_and_age_are_those_of_what_is_not_done_and_end_with_the_partition(kafka: Producer) -> None:
    let_go = asyncio.Event()

    async def handle(_: Delivery) -> list[OrderEvent]:
        await let_go.wait()
        return []

    async with running(kafka, handle) as ran:
        ages = ("orderflow_worker_oldest_record_age_seconds", {"topic": "orders", "partition": "0"})
        standings: list[Standing] = []
        report = LagReport(ran.group, lambda: standings)
        ran.runner.accept([a_placed_record(timestamp=1_000), a_placed_record(1, timestamp=2_000)])
        standings = [ran.runner.standing]
        assert (standings[0].committed, standings[0].oldest) == (0, 1.0)
        await report.report(Consumer(end=9))  # type: ignore[arg-type]
        assert ran.metric(ages[0], **ages[1]) > 1_700_000_000
        assert ran.metric("orderflow_worker_lag_records", **ages[1]) == 8, "from the position, which is 1"
        assert ran.metric("orderflow_worker_commit_lag_records", **ages[1]) == 1
        let_go.set()
        await eventually(lambda: ran.runner.standing.committed == 2, "all committed")
        assert ran.runner.standing.oldest is None
        standings = [ran.runner.standing]
        await report.report(Consumer(end=9))  # type: ignore[arg-type]
        assert REGISTRY.get_sample_value(ages[0], {"group": ran.group, **ages[1]}) == 0
        standings = []
        await report.report(Consumer(end=9))  # type: ignore[arg-type]
        assert REGISTRY.get_sample_value(ages[0], {"group": ran.group, **ages[1]}) is None
        assert not ran.runner.paused_by


async def test_a_group_has_caught_up_when_nothing_is_left_in_any_partition() -> None:
    first, second = TopicPartition("orders", 0), TopicPartition("orders", 1)
    told: list[None] = []
    for standings, expected in (
        ([Standing(first, 1, None), Standing(second, 1, None)], 1),
        ([], 1),  # another process shows what there is
        ([Standing(first, 1, None), Standing(second, 0, None)], 0),
        ([Standing(first, 1, None), Standing(second, 1, 9.0)], 0),
        ([Standing(first, 1, None), Standing(second, None, None)], 0),  # not opened yet
    ):
        told.clear()
        report = LagReport("g", lambda standings=standings: standings, caught_up=lambda: told.append(None))  # type: ignore[misc]
        await report.report(Consumer(end=1))  # type: ignore[arg-type]
        assert len(told) == expected, standings


async def test_events_count_by_status_and_currency_once_they_are_committed(kafka: Producer) -> None:
    def counted(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before: Callable[[], list[float]] = lambda: [  # noqa: E731
        counted("orderflow_orders_total", status="REJECTED"),
        counted("orderflow_order_amount_minor_units_total", status="REJECTED", currency="EUR"),
        counted("orderflow_order_completion_seconds_count", outcome="REJECTED"),
    ]

    async def handle(delivery: Delivery) -> list[OrderEvent]:
        event = order_event(E.ORDER_EVENT_TYPE_ORDER_REJECTED, delivery.event.order, revision=2)
        event.order.status = OrderStatus.ORDER_STATUS_REJECTED
        return [event]

    was = before()
    async with running(kafka, handle) as ran:
        record = a_placed_record()
        await ran.done(record)
    total = OrderEvent.FromString(record.value).order.total.amount_minor
    assert [now - then for now, then in zip(before(), was, strict=True)] == [1, total, 1]
