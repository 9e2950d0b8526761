"""Retry topics on a real Kafka: what fails for now is parked, comes due, and counts as the record it stems from."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from aiokafka.admin import NewTopic

from domain.failures import Transient
from domain.records import Coordinates, Delivery
from messaging import clients, dead_letters, retry, topics
from messaging.runtime import WorkerRuntime
from messaging.topics import Topic, retry_topics
from messaging.worker import Limits, WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from settings import KafkaSettings
from storage.database import Database
from storage.replay_claims import ReplayClaims
from tests import engines
from tests.builders import a_group, an_order, emitted_for, order_event
from tests.engines import Tail

LIMITS = Limits(max_in_flight=16, attempts=2, backoff_base=0.01, backoff_cap=0.02, drain=5.0)
DELAYS = (1, 2)


class Bench:
    """A worker with retry topics of its own, whose handler does what the test says."""

    def __init__(self, kafka: KafkaSettings, group: str, notifications: Tail, dlq: Tail) -> None:
        self.kafka = kafka
        self.group = group
        self.tiers: tuple[Topic, ...] = retry_topics(group, DELAYS)
        self.notifications = notifications
        self.dlq = dlq
        self.deliveries: list[tuple[float, Delivery]] = []
        self.on_delivery: Callable[[Delivery], Awaitable[None]] | None = None
        self.claims: list[tuple[Coordinates, int, Coordinates]] = []
        self.claimed = True

    async def handle(self, delivery: Delivery) -> Sequence[OrderEvent]:
        self.deliveries.append((time.time(), delivery))
        if self.on_delivery is not None:
            await self.on_delivery(delivery)
        return [emitted_for(delivery)]

    async def claim(self, *, origin: Coordinates, replay: int, by: Coordinates) -> bool:
        self.claims.append((origin, replay, by))
        return self.claimed

    def runtime(self, limits: Limits = LIMITS) -> WorkerRuntime:
        spec = WorkerSpec(self.group, (topics.ORDERS,), frozenset({OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING}))
        return WorkerRuntime(
            spec, self.handle, kafka=self.kafka, limits=limits, client_id="tests", tiers=self.tiers, claim=self.claim
        )

    def answered(self) -> list[str]:
        return [each.metadata.causation_id for each in self.notifications.events if each.metadata.source == self.group]

    async def until_answered(self, *events: OrderEvent) -> None:
        wanted = {event.event_id for event in events}
        await self.notifications.until(lambda: wanted <= set(self.answered()), f"{len(wanted)} answers")

    async def until_dead(self) -> dead_letters.DeadLetter:
        def letters() -> list[dead_letters.DeadLetter]:
            return [each for record in self.dlq.records if (each := dead_letters.parse(record)).group == self.group]

        await self.dlq.until(lambda: bool(letters()), "a dead letter")
        [letter] = letters()
        return letter


@pytest.fixture
async def bench(kafka: KafkaSettings) -> AsyncIterator[Bench]:
    group = a_group()
    tiers = retry_topics(group, DELAYS)
    admin = clients.admin(kafka, client_id="tests")
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(each.name, 1, 1, topic_configs=each.config(min_insync_replicas=1)) for each in tiers]
        )
    finally:
        await admin.close()
    await engines.start_at_end(kafka, group, topics.ORDERS, *tiers)
    async with (
        engines.tail(kafka, topics.NOTIFICATIONS) as notifications,
        engines.tail(kafka, topics.DEAD_LETTERS) as dlq,
    ):
        yield Bench(kafka, group, notifications, dlq)


def an_event() -> OrderEvent:
    [order_id] = engines.order_ids(1, topics.ORDERS)
    return order_event(OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING, an_order(order_id=order_id))


async def fail(_: Delivery) -> None:
    raise Transient("NOT_NOW", "the test says so")


async def test_it_is_parked_on_each_topic_and_dead_in_the_end_with_the_coordinates_of_its_origin(bench: Bench) -> None:
    event = an_event()
    bench.on_delivery = fail
    async with engines.running(bench.runtime()):
        await engines.send_events(bench.kafka, [event])
        letter = await bench.until_dead()
    origins = {delivery.coordinates for _, delivery in bench.deliveries}
    assert len(origins) == 1
    assert origins.pop().topic == "orders"
    assert [delivery.attempt for _, delivery in bench.deliveries] == [1, 2, 3, 4, 5, 6]
    assert [delivery.is_last for _, delivery in bench.deliveries] == [False] * 5 + [True]
    times = [at for at, _ in bench.deliveries]
    assert times[2] - times[1] >= 1.0
    assert times[4] - times[3] >= 2.0
    assert (letter.error_class, letter.attempts, letter.origin.topic) == ("NOT_NOW", 6, "orders")
    assert letter.value == event.SerializeToString()


async def test_other_orders_of_the_partition_go_on_while_one_is_parked(bench: Bench) -> None:
    event, *others = [an_event() for _ in range(20)]
    failures = iter(range(LIMITS.attempts))
    others_are_answered = asyncio.Event()

    async def fail_at_first(delivery: Delivery) -> None:
        if delivery.event.event_id == event.event_id:
            if next(failures, None) is not None:
                await fail(delivery)
            await others_are_answered.wait()

    bench.on_delivery = fail_at_first
    async with engines.running(bench.runtime()):
        await engines.send_events(bench.kafka, [event, *others])
        await bench.until_answered(*others)
        assert event.event_id not in bench.answered()
        others_are_answered.set()
        await bench.until_answered(event)
    assert sorted(bench.answered()) == sorted(each.event_id for each in (event, *others))


async def test_what_came_due_while_the_worker_was_down_runs_at_once(bench: Bench) -> None:
    event = an_event()
    bench.on_delivery = fail
    async with engines.tail(bench.kafka, bench.tiers[0]) as parked:
        async with engines.running(bench.runtime()):
            await engines.send_events(bench.kafka, [event])
            await parked.until(lambda: bool(parked.records), "a parked record")
        due = parked.records[0].timestamp / 1000 + DELAYS[0]
    await asyncio.sleep(max(due - time.time(), 0))  # the delay itself, with nobody there
    bench.on_delivery = None
    before = time.time()
    async with engines.running(bench.runtime()):
        await bench.until_answered(event)
    handled = next(at for at, delivery in reversed(bench.deliveries))
    assert handled - before < 5, "it waits for a second delay"


async def test_total_time_is_bounded_too(bench: Bench) -> None:
    bench.on_delivery = fail
    limits = Limits(attempts=1, backoff_base=0.01, backoff_cap=0.02, drain=5.0, retry_limit=0.5)
    async with engines.running(bench.runtime(limits)):
        await engines.send_events(bench.kafka, [an_event()])
        letter = await bench.until_dead()
    assert letter.attempts == 2, "the second topic lies past the limit"
    assert [delivery.is_last for _, delivery in bench.deliveries] == [False, True], "nothing follows, and it is told so"


async def test_a_handling_past_its_limit_is_parked_without_another_try_in_place(bench: Bench) -> None:
    event = an_event()
    slow = iter([True])

    async def hang_once(_: Delivery) -> None:
        if next(slow, False):
            await asyncio.Event().wait()

    bench.on_delivery = hang_once
    limits = Limits(attempts=5, backoff_base=0.01, backoff_cap=0.02, drain=5.0, handling=0.3)
    async with engines.running(bench.runtime(limits)):
        await engines.send_events(bench.kafka, [event])
        await bench.until_answered(event)
    first, second = (at for at, _ in bench.deliveries)
    assert second - first >= DELAYS[0]


async def test_junk_on_a_retry_topic_is_a_dead_letter_of_its_own(bench: Bench) -> None:
    async with (
        engines.running(bench.runtime()),
        engines.started(clients.idempotent_producer(bench.kafka, client_id="tests")) as producer,
    ):
        await producer.send_and_wait(
            bench.tiers[0].name, key=b"k", value=b"\xff", headers=[("retry_origin_topic", b"orders")]
        )
        letter = await bench.until_dead()
    assert (letter.error_class, letter.origin.topic, letter.value) == ("UNDECODABLE", bench.tiers[0].name, b"\xff")


async def test_a_replay_is_claimed_by_its_own_coordinates_and_another_copy_does_nothing(bench: Bench) -> None:
    event = an_event()
    origin = Coordinates("orders", 0, 12345)
    past = retry.Provenance(origin, 0, replay=1)
    bench.claimed = False
    async with (
        engines.running(bench.runtime()),
        engines.started(clients.idempotent_producer(bench.kafka, client_id="tests")) as producer,
    ):
        await producer.send_and_wait(
            bench.tiers[0].name,
            key=event.order.order_id.encode(),
            value=event.SerializeToString(),
            headers=past.headers(),
        )
        good = an_event()
        await engines.eventually(lambda: bench.claims, "a claim")
        await engines.send_events(bench.kafka, [good])
        await bench.until_answered(good)
    [(claimed_origin, replay, by)] = bench.claims
    assert (claimed_origin, replay, by.topic) == (origin, 1, bench.tiers[0].name)
    assert bench.answered() == [good.event_id]


async def test_a_replay_that_fails_for_now_is_parked_and_handled_again(bench: Bench, database: Database) -> None:
    event = an_event()
    failures = iter(range(2 * LIMITS.attempts))  # here, and once more on the first retry topic

    async def fail_at_first(delivery: Delivery) -> None:
        if next(failures, None) is not None:
            await fail(delivery)

    bench.on_delivery = fail_at_first
    bench.claim = ReplayClaims(database, bench.group).claim  # type: ignore[method-assign]
    past = retry.Provenance(Coordinates("orders", 0, 12345), 0, replay=1)
    async with (
        engines.running(bench.runtime()),
        engines.started(clients.idempotent_producer(bench.kafka, client_id="tests")) as producer,
    ):
        for _ in range(2):  # two callers at once: one copy counts
            await producer.send_and_wait(
                bench.tiers[0].name,
                key=event.order.order_id.encode(),
                value=event.SerializeToString(),
                headers=past.headers(),
            )
        await bench.until_answered(event)
        good = an_event()
        await engines.send_events(bench.kafka, [good])
        await bench.until_answered(good)
    assert bench.answered() == [event.event_id, good.event_id]
    assert {delivery.coordinates for _, delivery in bench.deliveries[:-1]} == {past.origin}
