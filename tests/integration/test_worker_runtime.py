"""The worker runtime on a real Kafka: order, parallelism, failures, replays, rebalances, fencing, draining.

Small handlers take ORDER_PROCESSING from `orders` and answer with a NOTIFICATION_SENT on `notifications`.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError

from domain.failures import DependencyDown, Permanent, Transient
from domain.records import Delivery
from messaging import aiokafka_internals, clients, dead_letters, envelope, groups, topics, window
from messaging.partition import GroupOffsetLostError, PartitionRunner
from messaging.runtime import WorkerRuntime
from messaging.worker import Limits, WorkerSpec
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Order
from settings import KafkaSettings
from storage.consumer_groups import ConsumerGroups
from storage.database import Database
from telemetry import metrics
from tests import engines
from tests.builders import a_group, an_id, an_order, emitted_for, order_event
from tests.engines import Tail

FIRST = TopicPartition(topics.ORDERS.name, 0)
QUICK = Limits(max_in_flight=16, attempts=5, backoff_base=0.01, backoff_cap=0.05, drain=5.0)


def an_event(order: Order | str) -> OrderEvent:
    about = an_order(order_id=order) if isinstance(order, str) else order
    return order_event(OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING, about)


def events_on_first(count: int) -> list[OrderEvent]:
    """Returns events of different orders, all on one partition."""
    return [an_event(order_id) for order_id in engines.order_ids(count, topics.ORDERS)]


class Worker:
    """A worker whose handler does what the test says, and which notes what it was given."""

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        self.kafka = kafka
        self.group = group
        self.deliveries: list[Delivery] = []
        self.finished: list[Delivery] = []
        self.on_delivery: Callable[[Delivery], Awaitable[None]] | None = None

    async def handle(self, delivery: Delivery) -> Sequence[OrderEvent]:
        self.deliveries.append(delivery)
        if self.on_delivery is not None:
            await self.on_delivery(delivery)
        self.finished.append(delivery)
        return [emitted_for(delivery)]

    def runtime(self, limits: Limits = QUICK, client_id: str = "tests") -> WorkerRuntime:
        spec = WorkerSpec(
            group=self.group,
            reads=(topics.ORDERS,),
            handles=frozenset({OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING}),
        )
        return WorkerRuntime(spec, self.handle, kafka=self.kafka, limits=limits, client_id=client_id)

    def orders(self) -> list[str]:
        return [delivery.event.order.order_id for delivery in self.deliveries]

    def causes(self) -> list[str]:
        return [delivery.event.event_id for delivery in self.deliveries]


class Outputs:
    """What a worker's group has put on `notifications` and `dlq`, as readers of committed records see it."""

    def __init__(self, notifications: Tail, dlq: Tail, group: str) -> None:
        self._notifications = notifications
        self._dlq = dlq
        self._group = group

    def causes(self) -> list[str]:
        """Returns the event ids that were answered."""
        events = [event for event in self._notifications.events if event.metadata.source == self._group]
        return [event.metadata.causation_id for event in events]

    def letters(self) -> list[DeadLetter]:
        letters = [dead_letters.parse(record) for record in self._dlq.records]
        return [letter for letter in letters if letter.group == self._group]

    async def until_answered(self, events: Sequence[OrderEvent]) -> None:
        wanted = {event.event_id for event in events}
        await self._notifications.until(lambda: wanted <= set(self.causes()), f"{len(wanted)} events are answered")

    async def until_dead_letters(self, count: int) -> list[DeadLetter]:
        await self._dlq.until(lambda: len(self.letters()) >= count, f"{count} dead letters")
        return self.letters()

    async def exactly(self, events: Sequence[OrderEvent], *, letters: int = 0) -> None:
        """Asserts that each event was answered once, and that nothing else was written."""
        await self.until_answered(events)
        await self._notifications.to_end()
        await self._dlq.to_end()
        assert sorted(self.causes()) == sorted(event.event_id for event in events)
        assert len(self.letters()) == letters


@pytest.fixture
async def worker(kafka: KafkaSettings) -> Worker:
    worker = Worker(kafka, a_group())
    await engines.start_at_end(kafka, worker.group, topics.ORDERS)
    return worker


@pytest.fixture
async def outputs(kafka: KafkaSettings, worker: Worker) -> AsyncIterator[Outputs]:
    async with (
        engines.tail(kafka, topics.NOTIFICATIONS) as notifications,
        engines.tail(kafka, topics.DEAD_LETTERS) as dlq,
    ):
        yield Outputs(notifications, dlq, worker.group)


async def everything_committed(worker: Worker, partition: TopicPartition = FIRST) -> None:
    """Waits until the group has passed all that is on the partition by now."""
    end = (await engines.ends(worker.kafka, topics.ORDERS))[partition]
    await engines.wait_committed(
        worker.kafka,
        worker.group,
        partition,
        lambda offset, metadata: offset >= end and not metadata,
        f"{end} is passed",
    )


# -- order and parallelism ---------------------------------------------------------------------------------------------


async def test_one_key_in_order_and_keys_in_parallel(worker: Worker, outputs: Outputs) -> None:
    orders = [an_order(order_id=order_id) for order_id in engines.order_ids(5, topics.ORDERS)]
    events = [an_event(order) for _ in range(10) for order in orders]
    busy: set[str] = set()
    together = asyncio.Barrier(len(orders))

    async def on_delivery(delivery: Delivery) -> None:
        order_id = delivery.event.order.order_id
        assert order_id not in busy, "two records of one order at once"
        busy.add(order_id)
        async with asyncio.timeout(10):
            await together.wait()  # every round needs a record of each order at the same time
        busy.remove(order_id)

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, events)
        await outputs.exactly(events)
    for order in orders:
        expected = [event.event_id for event in events if event.order.order_id == order.order_id]
        assert [each for each in worker.causes() if each in expected] == expected
        assert [each for each in outputs.causes() if each in expected] == expected


async def test_all_partitions_are_served(worker: Worker, outputs: Outputs) -> None:
    events = [an_event(an_id()) for _ in range(100)]
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, events)
        await outputs.exactly(events)
    assert {delivery.coordinates.partition for delivery in worker.deliveries} == {0, 1, 2}
    assert sorted(worker.causes()) == sorted(event.event_id for event in events)


async def test_types_that_are_not_handled_are_passed(worker: Worker, outputs: Outputs) -> None:
    order = an_order(order_id=engines.order_ids(1, topics.ORDERS)[0])
    others = [
        order_event(each, order) for each in OrderEventType.values() if each and topics.topic_of(each) is topics.ORDERS
    ]
    mine = [each for each in others if each.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING]
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, others)
        await outputs.exactly(mine)
        await everything_committed(worker)


async def test_a_slow_order_holds_no_other_back_and_they_are_committed_past_it(
    worker: Worker, outputs: Outputs, kafka: KafkaSettings
) -> None:
    slow, *others = events_on_first(31)

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == slow.event_id:
            await asyncio.Event().wait()

    worker.on_delivery = on_delivery
    start = (await engines.ends(kafka, topics.ORDERS))[FIRST]
    async with engines.running(worker.runtime(Limits(max_in_flight=40, drain=0.3))):
        await engines.send_events(kafka, [slow, *others])
        await outputs.until_answered(others)
        offset, _ = await engines.wait_committed(
            kafka, worker.group, FIRST, lambda _, metadata: bool(metadata), "what is done past the slow one is recorded"
        )
        assert offset == start
    assert outputs.causes().count(slow.event_id) == 0

    again = Worker(kafka, worker.group)
    async with engines.running(again.runtime()):
        await outputs.exactly([slow, *others])
        await everything_committed(again)
    assert again.causes() == [slow.event_id], "only what was not done is handled again"


async def test_a_slow_order_does_not_stop_the_partition(worker: Worker, outputs: Outputs) -> None:
    slow, *others = events_on_first(61)
    go_on = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == slow.event_id:
            await go_on.wait()

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime(Limits(max_in_flight=4))):
        try:
            await engines.send_events(worker.kafka, [slow])
            for n in range(0, 60, 20):
                await engines.send_events(worker.kafka, others[n : n + 20])
                await outputs.until_answered(others[n : n + 20])
        finally:
            go_on.set()


async def test_past_the_span_records_wait_and_none_is_dropped(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "MAX_SPAN", 30)
    slow, *others = events_on_first(121)
    go_on = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == slow.event_id:
            await go_on.wait()

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [slow])
        await engines.send_events(worker.kafka, others)
        await engines.eventually(lambda: len(worker.finished) == 29, "all that the span has room for are handled")
        await outputs.until_answered(others[:29])
        offset = worker.deliveries[0].coordinates.offset
        assert all(each.coordinates.offset < offset + 30 for each in worker.deliveries)
        go_on.set()
        await outputs.exactly([slow, *others])
        await everything_committed(worker)


async def test_the_commit_passes_markers_so_that_lag_reaches_nothing(worker: Worker, outputs: Outputs) -> None:
    events = events_on_first(3)
    name = a_group()
    producer = clients.transactional_producer(worker.kafka, client_id="tests", transactional_id=name, timeout_ms=5000)
    async with engines.running(worker.runtime()), engines.started(producer):
        for event in events:  # each transaction leaves a marker behind
            record = envelope.encode(event)
            async with producer.transaction():
                await producer.send_and_wait(record.topic.name, key=record.key, value=record.value)
        await outputs.exactly(events)
        await everything_committed(worker)


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_record_that_fails_for_now_is_tried_again(worker: Worker, outputs: Outputs) -> None:
    (event,) = events_on_first(1)

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.attempt < 4:
            raise Transient("LATER", "not yet")

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [event])
        await outputs.exactly([event])
    assert [delivery.attempt for delivery in worker.deliveries] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "error_class", "attempts"),
    [
        (Transient("LATER", "not yet"), "LATER", 5),
        (Permanent("NEVER", "no"), "NEVER", 1),
        (ValueError("carla@example.com"), "UNEXPECTED_ERROR", 5),
        (TimeoutError("of somebody else"), "UNEXPECTED_ERROR", 5),
    ],
    ids=["transient", "permanent", "unforeseen", "time-out"],
)
async def test_a_record_that_is_given_up_becomes_a_dead_letter(
    worker: Worker, outputs: Outputs, error: Exception, error_class: str, attempts: int
) -> None:
    event, neighbour = events_on_first(2)

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == event.event_id:
            raise error

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [event, neighbour])
        (letter,) = await outputs.until_dead_letters(1)
        await outputs.exactly([neighbour], letters=1)
        await everything_committed(worker)
    record = envelope.encode(event)
    assert (letter.key, letter.value) == (record.key, record.value)
    assert (letter.error_class, letter.attempts) == (error_class, attempts)
    assert "carla" not in letter.error_message
    assert letter.first_failure_time.seconds > 0
    assert worker.causes().count(event.event_id) == attempts


async def test_a_handling_that_takes_too_long_is_given_up(worker: Worker, outputs: Outputs) -> None:
    event, neighbour = events_on_first(2)

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == event.event_id:
            await asyncio.Event().wait()

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime(Limits(attempts=1, handling=0.2))):
        await engines.send_events(worker.kafka, [event, neighbour])
        (letter,) = await outputs.until_dead_letters(1)
        await outputs.exactly([neighbour], letters=1)
    assert (letter.error_class, letter.attempts) == ("HANDLING_LIMIT", 1)


async def test_a_cancellation_inside_of_a_handler_does_not_lose_the_order(worker: Worker, outputs: Outputs) -> None:
    (event,) = events_on_first(1)

    async def on_delivery(delivery: Delivery) -> None:
        if len(worker.deliveries) == 1:
            inner = asyncio.ensure_future(asyncio.Event().wait())
            inner.cancel()
            await inner  # as a pool or a client does whose connection is closed under it

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [event])
        await outputs.until_answered([event])


async def test_poison_goes_to_dlq_byte_for_byte(worker: Worker, outputs: Outputs) -> None:
    (good,) = events_on_first(1)
    key = good.order.order_id.encode()
    poison: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
        (key, b"\x00\xff not an event", [("ce_id", b"\xff"), ("none", None), ("dlq_origin_topic", b"forged")]),
        (key, None, []),
        (None, b"", []),
        (b"another key", envelope.encode(good).value, [("content-type", b"application/protobuf")]),
    ]
    async with engines.running(worker.runtime()):
        async with engines.started(clients.idempotent_producer(worker.kafka, client_id="tests")) as producer:
            stood = [
                await producer.send_and_wait(FIRST.topic, partition=0, key=each, value=value, headers=headers)
                for each, value, headers in poison
            ]
        await engines.send_events(worker.kafka, [good])
        letters = await outputs.until_dead_letters(4)
        await outputs.exactly([good], letters=4)
    by_offset = {letter.origin.offset: letter for letter in letters}
    for (each, value, headers), metadata in zip(poison, stood, strict=True):
        letter = by_offset[metadata.offset]
        assert (letter.key if letter.HasField("key") else None) == each
        assert (letter.value if letter.HasField("value") else None) == value
        kept = [(header.name, header.value if header.HasField("value") else None) for header in letter.headers]
        assert kept == [header for header in headers if not header[0].startswith("dlq_")]
        assert (letter.origin.topic, letter.origin.partition) == ("orders", 0)
        assert letter.origin.record_time.ToMilliseconds() == metadata.timestamp
    assert [by_offset[each.offset].error_class for each in stood] == ["UNDECODABLE"] * 3 + ["INVALID_EVENT"]
    assert worker.causes() == [good.event_id], "poison reaches no handler"


async def test_a_record_without_key_and_value_goes_to_dlq(worker: Worker, outputs: Outputs) -> None:
    (good,) = events_on_first(1)
    async with engines.running(worker.runtime()):
        async with engines.started(clients.idempotent_producer(worker.kafka, client_id="tests")) as producer:
            await producer.client._wait_on_metadata(FIRST.topic)
            # Kafka and its own clients allow it; past aiokafka's assertion.
            sent = await producer._message_accumulator.add_message(FIRST, None, None, 5.0, headers=[])
            await sent
        await engines.send_events(worker.kafka, [good])
        await outputs.until_answered([good])
        (letter,) = await outputs.until_dead_letters(1)
    assert not letter.HasField("key")
    assert not letter.HasField("value")


@pytest.mark.parametrize(
    "size", [topics.MAX_MESSAGE_BYTES, 2**20], ids=["refused by the broker", "refused by the client"]
)
async def test_an_output_that_kafka_refuses_is_that_records_failure_alone(
    worker: Worker, outputs: Outputs, size: int
) -> None:
    bad, *good = events_on_first(11)
    handle = worker.handle

    async def emits_too_much(delivery: Delivery) -> Sequence[OrderEvent]:
        await handle(delivery)
        return [emitted_for(delivery, provider_message_id="x" * size * (delivery.event.event_id == bad.event_id))]

    worker.handle = emits_too_much  # type: ignore[method-assign]
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [good[0], bad, *good[1:]])
        (letter,) = await outputs.until_dead_letters(1)
        await outputs.exactly(good, letters=1)
        await everything_committed(worker)
    assert letter.error_class == "OUTPUT_REFUSED"
    assert letter.value == envelope.encode(bad).value


async def test_a_dependency_that_is_away_pauses_and_uses_up_nothing(worker: Worker, outputs: Outputs) -> None:
    events = [an_event(an_id()) for _ in range(60)]
    is_down = True
    at_once = most_at_once = 0

    async def on_delivery(_: Delivery) -> None:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        try:
            await asyncio.sleep(0)
            if is_down:
                raise DependencyDown("gateway", "away", retry_after=0.01)
        finally:
            at_once -= 1

    worker.on_delivery = on_delivery
    runtime = worker.runtime()
    async with engines.running(runtime):
        await engines.eventually(lambda: runtime.is_ready, "it has joined")
        await engines.send_events(worker.kafka, events)
        await engines.eventually(lambda: not runtime.is_ready, "the outage is noticed")
        await engines.eventually(lambda: at_once == 0, "what was under way has ended")
        most_at_once, seen = 0, len(worker.deliveries)
        await engines.eventually(
            lambda: len(worker.deliveries) >= seen + 20, "it is probed, more often than there are attempts"
        )
        assert most_at_once == 1, "one probe at a time"
        assert not runtime.is_ready
        is_down = False
        await outputs.exactly(events)
        assert runtime.is_ready
    assert {delivery.attempt for delivery in worker.deliveries} == {1}


async def test_what_was_fetched_for_a_busy_partition_is_not_fetched_again(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = events_on_first(1_500)  # one fetch holds all of them, a poll takes a third, and the window is full of that
    fetched: list[int] = []
    make = fetcher.PartitionRecords.__init__

    def noted(self: Any, tp: TopicPartition, records: Any, *others: Any) -> None:
        if tp == FIRST:
            fetched.append(records.size_in_bytes())
        make(self, tp, records, *others)

    monkeypatch.setattr(fetcher.PartitionRecords, "__init__", noted)
    async with engines.tail(worker.kafka, topics.ORDERS) as reader:
        await engines.send_events(worker.kafka, events)
        await reader.until(lambda: len(reader.records) >= len(events), "all are read once")
    once, fetched[:] = sum(fetched), []
    async with engines.running(worker.runtime()):
        await outputs.exactly(events)
    assert 0 < once <= sum(fetched) < 1.5 * once


async def test_an_outage_of_hours_costs_no_membership(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka's client leaves the group when nobody polls for five minutes, as if nobody wanted records any more."""
    idle_seconds: list[float] = []
    is_down = True

    async def on_delivery(_: Delivery) -> None:
        if is_down:
            raise DependencyDown("gateway", "away")

    worker.on_delivery = on_delivery
    events = [an_event(an_id()) for _ in range(60)]  # for each partition some, so that none wants more
    runtime = worker.runtime()
    poll = runtime._poll

    async def noted(consumer: AIOKafkaConsumer) -> int:
        count = await poll(consumer)
        idle_seconds.append(consumer._subscription.fetcher_idle_time)
        return count

    monkeypatch.setattr(runtime, "_poll", noted)
    async with engines.running(runtime):
        await engines.eventually(lambda: runtime.is_ready, "it has joined")
        await engines.send_events(worker.kafka, events)
        await engines.eventually(lambda: not runtime.is_ready, "the outage is noticed")
        seen = len(idle_seconds)
        await engines.eventually(lambda: len(idle_seconds) >= seen + 50, "nobody wants records for a while")
        assert max(idle_seconds[seen:]) < 0.5
        is_down = False
        await outputs.exactly(events)


async def test_a_worker_whose_waiting_records_went_to_another_knows_of_no_outage(
    worker: Worker, outputs: Outputs
) -> None:
    async def away(_: Delivery) -> None:
        raise DependencyDown("the test", "away")

    worker.on_delivery = away
    twin = Worker(worker.kafka, worker.group)
    runtime, (event,) = worker.runtime(), events_on_first(1)
    async with engines.running(runtime):
        await engines.send_events(worker.kafka, [event])
        await engines.eventually(lambda: worker.deliveries and not runtime.is_ready, "the outage is noticed")
        # The assignor gives the first partition to the first of its members by name.
        async with engines.running(twin.runtime(client_id="a twin")):
            await outputs.exactly([event])
            await engines.eventually(lambda: runtime.is_ready, "nothing is left to probe with")


async def test_a_record_that_alone_meets_an_outage_holds_nobody_back(worker: Worker, outputs: Outputs) -> None:
    """As one does whose row a forgotten session has locked."""
    locked, later = events_on_first(2)
    is_locked = True

    async def on_delivery(delivery: Delivery) -> None:
        if is_locked and delivery.event.event_id == locked.event_id:
            raise DependencyDown("postgres", "a lock is held", retry_after=0.01)

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [locked])
        # For longer than the poll that was under way when the outage was noticed.
        await engines.eventually(lambda: len(worker.deliveries) > 40, "it probes, alone")
        await engines.send_events(worker.kafka, [later])
        await outputs.until_answered([later])
        is_locked = False
        await outputs.exactly([locked, later])


async def test_what_waits_for_a_dependency_is_given_up_at_once_on_a_stop(worker: Worker, outputs: Outputs) -> None:
    events = events_on_first(20)

    async def on_delivery(_: Delivery) -> None:
        raise DependencyDown("gateway", "away", retry_after=60)

    worker.on_delivery = on_delivery
    runtime = worker.runtime(Limits(drain=15))
    async with engines.running(runtime) as at_work:
        await engines.eventually(lambda: runtime.is_ready, "it has joined")
        await engines.send_events(worker.kafka, events)
        await engines.eventually(lambda: not runtime.is_ready, "the outage is noticed")
        at_work.stop.set()
        await at_work.ended(seconds=8)
    again = Worker(worker.kafka, worker.group)
    async with engines.running(again.runtime()):
        await outputs.exactly(events)


# -- owners of a partition ---------------------------------------------------------------------------------------------


async def test_a_stop_finishes_and_commits_what_is_in_flight(worker: Worker, outputs: Outputs) -> None:
    events = events_on_first(5)
    later = events_on_first(5)
    go_on = asyncio.Event()

    async def on_delivery(_: Delivery) -> None:
        await go_on.wait()

    worker.on_delivery = on_delivery
    runtime = worker.runtime(Limits(max_in_flight=5, drain=10))
    async with engines.running(runtime) as at_work:
        await engines.send_events(worker.kafka, events)
        await engines.eventually(lambda: len(worker.deliveries) == 5, "all are in flight")
        await engines.send_events(worker.kafka, later)
        runners = [runner for runner, _ in runtime._runners.values()]
        await engines.eventually(lambda: sum(each.unfinished for each in runners) == 10, "the others are at hand")
        at_work.stop.set()
        await engines.eventually(lambda: all(runner.is_draining for runner in runners), "it is draining")
        done, _ = await asyncio.wait([at_work.task], timeout=0.5)
        assert not done, "it waits for what is in flight"
        go_on.set()
        await at_work.ended()
        await outputs.exactly(events)
    assert len(worker.deliveries) == 5, "nothing new is begun"

    again = Worker(worker.kafka, worker.group)
    async with engines.running(again.runtime()):
        await outputs.exactly([*events, *later])
    assert sorted(again.causes()) == sorted(event.event_id for event in later)


async def test_what_does_not_finish_in_time_is_left_to_the_next(worker: Worker, outputs: Outputs) -> None:
    stuck, done = events_on_first(2)

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == stuck.event_id:
            await asyncio.Event().wait()

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime(Limits(drain=0.2))) as at_work:
        await engines.send_events(worker.kafka, [stuck, done])
        await engines.eventually(lambda: len(worker.deliveries) == 2, "both are in flight")
        at_work.stop.set()
        await at_work.ended()
    again = Worker(worker.kafka, worker.group)
    async with engines.running(again.runtime()):
        await outputs.exactly([stuck, done])
    assert again.causes() == [stuck.event_id]


async def test_a_rebalance_with_work_in_flight_gives_each_output_once(worker: Worker, outputs: Outputs) -> None:
    events = [an_event(an_id()) for _ in range(90)]
    stubborn = {event.event_id for event in events[::3]}
    second = Worker(worker.kafka, worker.group)
    second_runtime = second.runtime(client_id="second")
    go_on = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id in stubborn:
            await go_on.wait()  # past the drain limit of the rebalance: another incarnation handles it again

    worker.on_delivery = second.on_delivery = on_delivery
    limits = Limits(max_in_flight=100, drain=0.5)
    first_runtime = worker.runtime(limits)
    async with engines.running(first_runtime):
        await engines.send_events(worker.kafka, events)
        await engines.eventually(lambda: len(worker.deliveries) == 90, "all are handled or in flight")
        async with engines.running(second_runtime):
            await engines.eventually(lambda: second_runtime.is_ready, "the second has joined")
            more = [an_event(an_id()) for _ in range(30)]
            await engines.send_events(worker.kafka, more)
            await engines.eventually(lambda: second.deliveries, "the second has work")
            go_on.set()
            await outputs.exactly([*events, *more])
        last = [an_event(an_id()) for _ in range(30)]  # and back to one
        await engines.send_events(worker.kafka, last)
        await outputs.exactly([*events, *more, *last])
    assert worker.finished
    assert second.finished


async def test_a_zombie_commits_nothing(worker: Worker, outputs: Outputs) -> None:
    taken, later = events_on_first(2)
    go_on = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == taken.event_id:
            await go_on.wait()

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [taken])
        await engines.eventually(lambda: worker.deliveries, "the zombie handles it")
        (delivery,) = worker.deliveries
        successor = clients.transactional_producer(
            worker.kafka, client_id="successor", transactional_id=f"{worker.group}.orders.0", timeout_ms=5_000
        )
        async with engines.started(successor), successor.transaction():
            record = envelope.encode(emitted_for(delivery))
            await successor.send_and_wait(record.topic.name, key=record.key, value=record.value)
            await successor.send_offsets_to_transaction({FIRST: delivery.coordinates.offset + 1}, worker.group)
        assert delivery.is_owned(), "nobody has told it yet"
        go_on.set()
        await engines.eventually(lambda: worker.finished, "the zombie has finished")
        await engines.send_events(worker.kafka, [later])
        await outputs.exactly([taken, later])
    # The zombie may have handled the later one, too, before it learnt that it is one; then it came again.
    assert worker.causes().count(taken.event_id) == 1


# -- offsets -----------------------------------------------------------------------------------------------------------


async def test_a_known_group_without_offsets_stops(kafka: KafkaSettings, database: Database) -> None:
    worker = Worker(kafka, a_group())
    registry = ConsumerGroups(database)
    async with registry.registration(worker.group) as registration:
        await registration.remember(topics.ORDERS.name)  # as it was before Kafka forgot the group
    await groups.ensure_known(registry, group=worker.group, topics=(topics.ORDERS,), kafka=kafka, client_id="tests")
    at_work = engines.Running(worker.runtime())
    with pytest.raises(GroupOffsetLostError, match="no offset of orders-"):
        await at_work.ended()
    assert worker.deliveries == []


async def test_a_new_group_begins_at_the_beginning(kafka: KafkaSettings, database: Database) -> None:
    worker = Worker(kafka, a_group())
    event = an_event(an_id())
    await engines.send_events(kafka, [event])
    await groups.ensure_known(
        ConsumerGroups(database), group=worker.group, topics=(topics.ORDERS,), kafka=kafka, client_id="tests"
    )
    async with engines.running(worker.runtime(Limits(max_in_flight=200))):
        await engines.eventually(lambda: event.event_id in worker.causes(), "it is handled")


async def test_an_offset_past_the_end_stops(worker: Worker) -> None:
    offsets = await engines.ends(worker.kafka, topics.ORDERS)
    await engines.commit(worker.kafka, worker.group, {FIRST: offsets[FIRST] + 1_000})
    at_work = engines.Running(worker.runtime())
    with pytest.raises(GroupOffsetLostError, match="orders-0, which holds"):
        await at_work.ended()


async def test_a_worker_waits_for_a_kafka_that_is_away_and_can_be_stopped() -> None:
    from devstack import free_ports

    (port,) = free_ports(1)
    worker = Worker(KafkaSettings(bootstrap=f"127.0.0.1:{port}"), a_group())
    runtime = worker.runtime()
    async with engines.running(runtime) as at_work:
        with contextlib.suppress(TimeoutError):
            await at_work.ended(seconds=0.3)
        assert not at_work.task.done()
        assert not runtime.is_ready
        at_work.stop.set()
        await at_work.ended(seconds=5)


async def test_what_finishes_during_a_transaction_that_fails_is_done_once(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = events_on_first(2)
    begun = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == second.event_id:
            await begun.wait()

    whole = PartitionRunner._transact

    async def fails_once(runner: PartitionRunner, *arguments: object) -> None:
        if not begun.is_set():
            begun.set()
            await engines.eventually(lambda: runner._done, "the second record is done meanwhile")
            raise KafkaError("the test says so")
        await whole(runner, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PartitionRunner, "_transact", fails_once)
    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [first, second])
        await outputs.exactly([first, second])
        await everything_committed(worker)
        await outputs.exactly([first, second])
    assert worker.causes().count(second.event_id) == 2, "it starts over from what is committed"


@contextlib.asynccontextmanager
async def starting_over(
    worker: Worker, slow: OrderEvent, quick: OrderEvent, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """Has a partition start over, for the transaction of `quick` failed, while `slow` is being handled."""
    failed = asyncio.Event()
    whole = PartitionRunner._transact

    async def fails_once(runner: PartitionRunner, *arguments: object) -> None:
        if not failed.is_set():
            failed.set()
            raise KafkaError("the test says so")
        await whole(runner, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PartitionRunner, "_transact", fails_once)
    runtime = worker.runtime(dataclasses.replace(QUICK, drain=60.0))
    async with engines.running(runtime):
        await engines.send_events(worker.kafka, [slow])
        await engines.eventually(lambda: worker.deliveries, "the slow one is being handled")
        runner, _ = runtime._runners[FIRST]
        await engines.send_events(worker.kafka, [quick])
        await failed.wait()
        await engines.eventually(lambda: not runner.is_open, "it starts over")
        yield


async def test_a_transaction_that_fails_cuts_no_handling_off(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a send nobody would know whether the message was accepted: it is sent twice, or never."""
    slow, quick = events_on_first(2)
    go_on = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == slow.event_id:
            await go_on.wait()

    worker.on_delivery = on_delivery
    async with starting_over(worker, slow, quick, monkeypatch):
        go_on.set()
        await outputs.exactly([slow, quick])
    finished = [delivery.event.event_id for delivery in worker.finished]
    assert finished.count(slow.event_id) == 2, "the first handling came to its end, whatever became of its output"


async def test_what_fails_once_the_partition_was_given_up_is_no_dead_letter(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = events_on_first(2)
    go_on = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == slow.event_id and not go_on.is_set():
            await go_on.wait()
            raise Permanent("WRONG", "the test says so")

    worker.on_delivery = on_delivery
    counted = metrics.DEAD_LETTERS.labels(worker.group, "WRONG", "permanent")._value
    async with starting_over(worker, slow, quick, monkeypatch):
        go_on.set()
        await outputs.exactly([slow, quick])
    assert counted.get() == 0


async def test_a_commit_that_is_under_way_when_draining_begins_ends_no_handling(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off would be handled again: an e-mail that was accepted is sent twice."""
    quick, slow = events_on_first(2)
    committing, go_on, drained = asyncio.Event(), asyncio.Event(), asyncio.Event()
    transaction = PartitionRunner._transact

    async def held(runner: PartitionRunner, *arguments: Any) -> None:
        if not committing.is_set():
            committing.set()
            await drained.wait()
        await transaction(runner, *arguments)

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == slow.event_id:
            await go_on.wait()

    monkeypatch.setattr(PartitionRunner, "_transact", held)
    worker.on_delivery = on_delivery
    runtime = worker.runtime()
    async with engines.running(runtime) as at_work:
        await engines.send_events(worker.kafka, [slow, quick])
        await committing.wait()
        await engines.eventually(lambda: len(worker.deliveries) == 2, "both are handled")
        runners = [runner for runner, _ in runtime._runners.values()]
        at_work.stop.set()
        await engines.eventually(lambda: all(runner.is_draining for runner in runners), "it drains")
        drained.set()
        await outputs.until_answered([quick])
        go_on.set()
        await outputs.exactly([quick, slow])
    assert len(worker.finished) == 2


async def test_a_stop_is_heard_while_a_poll_waits(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a poll does during a rebalance, and while Kafka is away."""
    polled = asyncio.Event()

    async def waits(*_: object, **__: object) -> None:
        polled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", waits)
    async with engines.running(worker.runtime()):
        await polled.wait()


async def test_a_consumer_that_is_stuck_is_replaced(
    worker: Worker, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill of the broker a client was seen to wait for ever for its coordinator, with no request that fails."""
    read = aiokafka_internals.read_committed
    stuck: list[AIOKafkaConsumer] = []

    async def hanging(consumer: AIOKafkaConsumer, partition: TopicPartition) -> tuple[int, str] | None:
        if not stuck or consumer in stuck:
            stuck.append(consumer)
            await asyncio.Event().wait()
        return await read(consumer, partition)

    monkeypatch.setattr(aiokafka_internals, "read_committed", hanging)
    events = events_on_first(10)
    async with engines.running(worker.runtime(dataclasses.replace(QUICK, opening=2.0))):
        await engines.send_events(worker.kafka, events)
        await outputs.exactly(events)
    assert len(set(map(id, stuck))) == 1


async def test_a_rebalance_that_drains_unevenly_does_not_end_the_worker(worker: Worker, outputs: Outputs) -> None:
    slow = events_on_first(1)[0]
    others = [an_event(an_id()) for _ in range(20)]
    go_on = asyncio.Event()

    async def on_delivery(delivery: Delivery) -> None:
        if delivery.event.event_id == slow.event_id:
            await go_on.wait()

    worker.on_delivery = on_delivery
    async with engines.running(worker.runtime()):
        await engines.send_events(worker.kafka, [slow, *others])
        await outputs.until_answered(others)
        async with engines.running(worker.runtime(client_id="second")):
            # The idle partitions are drained at once, the slow one is not: meanwhile the worker polls on.
            await engines.eventually(
                lambda: len(worker.deliveries) == 21, "the slow record is with its handler", seconds=5
            )
            polled = asyncio.get_running_loop().time() + 2
            await engines.eventually(lambda: asyncio.get_running_loop().time() > polled, "some polls during the drain")
            go_on.set()
            await outputs.exactly([slow, *others])
