"""The projector on a real Kafka and PostgreSQL: nothing twice, nothing skipped, and no record stops it."""

import asyncio
import random
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import REGISTRY

from devstack import KafkaBroker
from domain.failures import DependencyDown
from domain.projection import ProjectionBatch
from messaging import clients, envelope, topics
from messaging.partition import GroupOffsetLostError
from messaging.projection import ProjectionRuntime, ReadModel
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from settings import KafkaSettings
from storage.database import Database
from storage.order_views import OrderViews
from storage.projection import Projection
from telemetry import tracing
from tests import engines
from tests.builders import a_group, an_order, order_created, order_event

FIRST = TopicPartition(topics.ORDERS.name, 0)


class Bench:
    """A projector over a read model of its own that begins at the end of the topics."""

    def __init__(self, kafka: KafkaSettings, database: Database) -> None:
        self.kafka = kafka
        self.database = database
        self.group = a_group()
        self.model = Projection(database)
        self.views = OrderViews(database)

    async def begin(self) -> None:
        for partition, offset in (await engines.ends(self.kafka, *topics.ALL)).items():
            await self.model.begin(partition.topic, partition.partition, offset)

    def runtime(self, model: ReadModel | None = None, *, opening_seconds: float = 45.0) -> ProjectionRuntime:
        return ProjectionRuntime(
            group=self.group,
            reads=topics.ALL,
            read_model=model or self.model,
            kafka=self.kafka,
            client_id="tests",
            opening_seconds=opening_seconds,
        )

    async def until_revision(self, event: OrderEvent) -> None:
        deadline = asyncio.get_running_loop().time() + engines.DEADLINE
        while (found := await self.views.revision(event.order.order_id)) < event.revision:
            assert asyncio.get_running_loop().time() < deadline, f"revision {found} and not {event.revision}"
            await asyncio.sleep(0.02)

    def paused(self) -> float | None:
        labels = {"group": self.group, "reason": "dependency_down"}
        return REGISTRY.get_sample_value("orderflow_worker_paused_partitions", labels)

    async def failures(self) -> list[DeadLetter]:
        rows = await engines.fetch(self.database, "select dead_letter from projection_failures order by record_offset")
        return [DeadLetter.FromString(row["dead_letter"]) for row in rows]  # type: ignore[arg-type]

    async def positions_at_end(self) -> None:
        behind = await engines.ends(self.kafka, *topics.ALL)
        deadline = asyncio.get_running_loop().time() + engines.DEADLINE
        while behind:
            for partition, end in list(behind.items()):
                if (await self.model.position(partition.topic, partition.partition) or 0) >= end:
                    del behind[partition]
            assert asyncio.get_running_loop().time() < deadline, f"not at the end: {behind}"
            await asyncio.sleep(0.02)


@pytest.fixture
async def bench(kafka: KafkaSettings, own_database: Database) -> Bench:
    bench = Bench(kafka, own_database)
    await bench.begin()
    return bench


def life_of_an_order() -> list[OrderEvent]:
    """Returns four events on three topics, all on their first partitions."""
    order = an_order(order_id=engines.order_ids(1, topics.ORDERS)[0])
    return [
        order_created(order),
        order_event(OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING, order, revision=2),
        order_event(OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID, order, revision=3),
        order_event(OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT, order, revision=0),
    ]


async def test_all_topics_are_projected_and_read_on_from_the_position(bench: Bench) -> None:
    first, second = life_of_an_order(), life_of_an_order()
    async with engines.running(bench.runtime()):
        await engines.send_events(bench.kafka, first)
        await bench.until_revision(first[2])
        await bench.positions_at_end()
    assert len(await bench.views.history(first[0].order.order_id)) == 4
    await engines.send_events(bench.kafka, [*second, *first])
    async with engines.running(bench.runtime()):
        await bench.until_revision(second[2])
        await bench.positions_at_end()
    for life in (first, second):
        assert len(await bench.views.history(life[0].order.order_id)) == 4


async def test_an_event_keeps_the_trace_of_its_record_and_is_found_by_it(bench: Bench) -> None:
    (created, *_) = life_of_an_order()
    trace_id = uuid.uuid4().hex
    async with engines.running(bench.runtime()):
        with tracing.continued([("traceparent", f"00-{trace_id}-{trace_id[:16]}-00".encode())]):
            await engines.send_events(bench.kafka, [created])
        await bench.until_revision(created)
    [found] = await bench.views.find(trace_id, owner=None, most=2)
    assert found.order_id == created.order.order_id


async def test_dead_letters_are_read_and_what_cannot_be_read_is_recorded(bench: Bench) -> None:
    (created, *_) = life_of_an_order()
    letter = [("dlq_group", b"test"), ("dlq_error_class", b"UNDECODABLE")]
    async with engines.running(bench.runtime()):
        async with engines.started(clients.idempotent_producer(bench.kafka, client_id="tests")) as producer:
            await producer.send_and_wait(topics.DEAD_LETTERS.name, key=b"key", value=b"\xff", headers=letter)
            await producer.send_and_wait(topics.PAYMENTS.name, key=b"key", value=b"\xff\x00")
        await engines.send_events(bench.kafka, [created])
        await bench.until_revision(created)
        await bench.positions_at_end()
    (failure,) = await bench.failures()
    assert (failure.error_class, failure.value, failure.origin.topic) == ("UNDECODABLE", b"\xff\x00", "payments")
    (row,) = await engines.fetch(bench.database, "select * from dead_letters")
    assert (row["group_name"], row["error_class"]) == ("test", "UNDECODABLE")


async def test_markers_are_passed_so_that_lag_reaches_nothing(bench: Bench) -> None:
    events = [event for event in life_of_an_order() if event.revision]
    name = a_group()
    producer = clients.transactional_producer(bench.kafka, client_id="tests", transactional_id=name, timeout_ms=5000)
    async with engines.running(bench.runtime()), engines.started(producer):
        for event in events:
            record = envelope.encode(event)
            async with producer.transaction():
                await producer.send_and_wait(record.topic.name, key=record.key, value=record.value)
        await bench.positions_at_end()
    assert await bench.views.revision(events[0].order.order_id) == 3


def _nul_in_a_text(event: OrderEvent) -> None:
    event.order.user_id = "a\x00b"


def _nul_in_the_caller(event: OrderEvent) -> None:
    event.metadata.caller = "a\x00b"


def _nul_in_the_reference_of_a_decline(event: OrderEvent) -> None:
    event.payment_failed.gateway_reference = "a\x00b"


def _user_longer_than_an_index_takes(event: OrderEvent) -> None:
    event.order.user_id = random.Random(7).randbytes(4000).hex()  # else it is compressed, and fits


def _caller_longer_than_an_index_takes(event: OrderEvent) -> None:
    event.metadata.caller = random.Random(7).randbytes(4000).hex()


def _time_outside_of_the_calendar(event: OrderEvent) -> None:
    event.occur_time.seconds = 10**15


def _order_time_outside_of_the_calendar(event: OrderEvent) -> None:
    event.order.create_time.seconds = -(10**15)


def _status_of_the_future(event: OrderEvent) -> None:
    event.order.status = 100_000  # type: ignore[assignment]


@pytest.mark.parametrize(
    "spoil",
    [
        _nul_in_a_text,
        _nul_in_the_caller,
        _nul_in_the_reference_of_a_decline,
        _user_longer_than_an_index_takes,
        _caller_longer_than_an_index_takes,
        _time_outside_of_the_calendar,
        _order_time_outside_of_the_calendar,
        _status_of_the_future,
    ],
)
async def test_an_event_that_the_database_cannot_hold_does_not_stop_the_projector(bench: Bench, spoil: object) -> None:
    poison, good = order_created(), order_created(an_order(order_id=engines.order_ids(1, topics.ORDERS)[0]))
    assert callable(spoil)
    spoil(poison)
    record = envelope.OutgoingRecord(topics.ORDERS, poison.order.order_id.encode(), poison.SerializeToString(), [])
    async with engines.running(bench.runtime()):
        async with engines.started(clients.idempotent_producer(bench.kafka, client_id="tests")) as producer:
            await producer.send_and_wait(FIRST.topic, partition=0, key=record.key, value=record.value)
        await engines.send_events(bench.kafka, [good])
        await bench.until_revision(good)
        await bench.positions_at_end()
    (failure,) = await bench.failures()
    assert failure.value == record.value


async def test_a_forged_dead_letter_does_not_stop_the_projector(bench: Bench) -> None:
    good = order_created()
    async with engines.running(bench.runtime()):
        async with engines.started(clients.idempotent_producer(bench.kafka, client_id="tests")) as producer:
            await producer.send_and_wait(
                topics.DEAD_LETTERS.name, key=b"k", value=b"v", headers=[("dlq_error_class", b"nul\x00")]
            )
        await engines.send_events(bench.kafka, [good])
        await bench.until_revision(good)
        await bench.positions_at_end()


class Interrupted:
    """A read model that is away, or that holds its writers up, when told."""

    def __init__(self, model: Projection) -> None:
        self._model = model
        self.is_down = False
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.writing = asyncio.Event()
        self.writes: list[set[str]] = []
        """The topics of each write."""

    async def apply(self, *batches: ProjectionBatch) -> None:
        self.writes.append({batch.topic for batch in batches})
        self.writing.set()
        await self.may_write.wait()
        if self.is_down:
            raise DependencyDown("postgres", "away")
        await self._model.apply(*batches)

    async def position(self, topic: str, partition: int) -> int | None:
        if self.is_down:
            raise DependencyDown("postgres", "away")
        return await self._model.position(topic, partition)

    async def begin(self, topic: str, partition: int, position: int) -> None:
        await self._model.begin(topic, partition, position)


async def test_a_database_that_is_away_is_waited_for(bench: Bench) -> None:
    model = Interrupted(bench.model)
    runtime = bench.runtime(model)
    before, meanwhile = life_of_an_order(), life_of_an_order()
    async with engines.running(runtime):
        await engines.send_events(bench.kafka, before)
        await bench.until_revision(before[2])
        model.is_down = True
        await engines.send_events(bench.kafka, meanwhile)
        await engines.eventually(lambda: not runtime.is_ready, "the outage is noticed")
        # All that were to be written with it do.
        await engines.eventually(lambda: bench.paused() >= 1, "the partition is shown to wait for it")
        assert await bench.views.revision(meanwhile[0].order.order_id) == 0
        model.is_down = False
        await bench.until_revision(meanwhile[2])
        await bench.positions_at_end()
        await engines.eventually(lambda: runtime.is_ready, "the recovery is noticed")
        await engines.eventually(lambda: bench.paused() == 0, "nothing waits any more")
    assert len(await bench.views.history(meanwhile[0].order.order_id)) == 4


async def test_what_waits_on_several_partitions_is_one_write(bench: Bench) -> None:
    model = Interrupted(bench.model)
    runtime, life = bench.runtime(model), life_of_an_order()
    elsewhere = order_created(an_order(order_id=engines.order_ids(1, topics.ORDERS, partition=1)[0]))
    async with engines.running(runtime):
        await engines.eventually(
            lambda: len(runtime._positions) == sum(topic.partitions for topic in topics.ALL), "all partitions are open"
        )
        model.may_write.clear()
        await engines.send_events(bench.kafka, [elsewhere])
        await asyncio.wait_for(model.writing.wait(), engines.DEADLINE)
        await engines.send_events(bench.kafka, life)
        ends = await engines.ends(bench.kafka, topics.ORDERS, topics.PAYMENTS, topics.NOTIFICATIONS)
        consumer = runtime._consumer
        assert consumer is not None
        await engines.eventually(
            lambda: all((consumer.highwater(each) or 0) >= end for each, end in ends.items() if each.partition == 0),
            "all of it is fetched",
        )
        model.may_write.set()
        await bench.until_revision(life[2])
        await bench.positions_at_end()
    assert {"orders", "payments", "notifications"} in model.writes


async def test_a_position_that_has_moved_is_read_again(bench: Bench) -> None:
    first, second = life_of_an_order(), life_of_an_order()
    async with engines.running(bench.runtime()):
        await engines.send_events(bench.kafka, first)
        await bench.until_revision(first[2])
        await bench.positions_at_end()
        await engines.fetch(  # as if the database had been set back
            bench.database,
            "update projection_positions set position = position - 1"
            " where partition = 0 and topic in ('orders', 'payments', 'notifications')",
        )
        await engines.send_events(bench.kafka, second)
        await bench.until_revision(second[2])
        await bench.positions_at_end()
    assert len(await bench.views.history(first[0].order.order_id)) == 4


async def test_a_rebalance_during_a_write_does_not_end_the_projector(bench: Bench) -> None:
    model = Interrupted(bench.model)
    first, second = bench.runtime(model), bench.runtime()
    events = [order_created() for _ in range(60)]
    async with engines.running(first):
        await engines.eventually(lambda: first.is_ready, "it has joined")
        model.may_write.clear()
        await engines.send_events(bench.kafka, events)  # all partitions of `orders` have something to write
        await asyncio.wait_for(model.writing.wait(), engines.DEADLINE)
        async with engines.running(second):
            await engines.eventually(lambda: second.is_ready, "the second has joined")
            model.may_write.set()
            for event in events:
                await bench.until_revision(event)


async def test_a_position_that_the_topic_no_longer_holds_stops(bench: Bench) -> None:
    await engines.fetch(
        bench.database, "update projection_positions set position = 1000000000 where topic = 'orders' and partition = 0"
    )
    at_work = engines.Running(bench.runtime())
    with pytest.raises(GroupOffsetLostError, match="orders-0"):
        await at_work.ended()


async def test_a_partition_that_was_never_read_begins_at_its_beginning(
    spare_broker: KafkaBroker, own_database: Database
) -> None:
    bench = Bench(engines.kafka_settings(spare_broker), own_database)
    (created, *_) = life_of_an_order()
    await engines.send_events(bench.kafka, [created])
    async with engines.running(bench.runtime()):
        # Whatever other tests left on the topics is projected too, or recorded as unreadable.
        await bench.until_revision(created)


async def test_a_consumer_that_is_stuck_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = AIOKafkaConsumer.beginning_offsets
    stuck: list[AIOKafkaConsumer] = []

    async def hanging(consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        if not stuck or consumer in stuck:
            stuck.append(consumer)
            await asyncio.Event().wait()
        found: dict[TopicPartition, int] = await ask(consumer, partitions)
        return found

    monkeypatch.setattr(AIOKafkaConsumer, "beginning_offsets", hanging)
    events = life_of_an_order()
    async with engines.running(bench.runtime(opening_seconds=2.0)):
        await engines.send_events(bench.kafka, events)
        await bench.until_revision(events[2])
    assert len(set(map(id, stuck))) == 1


async def test_a_stop_is_heard_while_a_poll_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    polled = asyncio.Event()

    async def waits(*_: object, **__: object) -> None:
        polled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", waits)
    async with engines.running(bench.runtime()):
        await polled.wait()
