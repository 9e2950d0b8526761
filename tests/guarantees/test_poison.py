"""Single records that are meant to stop a worker for good, each on topics of its own: a group must get past them."""

import contextlib
import datetime
import random
import struct
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.record.util import calc_crc32c

from domain.projection import ProjectionBatch
from domain.records import Coordinates, Delivery
from messaging import dead_letters, envelope, topics
from messaging.runtime import WorkerRuntime
from messaging.topics import Topic
from messaging.worker import Limits, WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from settings import KafkaSettings
from storage.database import Database
from storage.projection import Projection
from storage.replay_claims import ReplayClaims
from tests import engines
from tests.builders import a_group, a_record, order_event

GOT_PAST = 20.0
Header = tuple[str, bytes | None]


class Group:
    """A worker with a topic and a retry topic of its own, which notes what it handled."""

    def __init__(self, kafka: KafkaSettings, database: Database) -> None:
        self.name = a_group()
        self.kafka = kafka
        # Named as the catalogue's: a poison stays on its topic for good, and these are nobody else's.
        self.reads = Topic(f"orders-{self.name}", 1, datetime.timedelta(days=1))
        (self.retry,) = topics.retry_topics(self.name, [1])
        self.handled: list[str] = []
        spec = WorkerSpec(self.name, (self.reads,), frozenset({OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING}))
        self.runtime = WorkerRuntime(
            spec,
            self._handle,
            kafka=kafka,
            limits=Limits(attempts=2, backoff_base=0.01),
            client_id="tests",
            tiers=(self.retry,),
            claim=ReplayClaims(database, self.name).claim,
        )

    async def _handle(self, delivery: Delivery) -> Sequence[OrderEvent]:
        self.handled.append(delivery.event.event_id)
        return []

    async def begin(self) -> None:
        async with engines.started(AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)) as admin:
            await admin.create_topics(
                [
                    NewTopic(topic.name, 1, 1, topic_configs=topic.config(min_insync_replicas=1))
                    for topic in (self.reads, self.retry)
                ]
            )
        await engines.commit(
            self.kafka, self.name, {TopicPartition(topic.name, 0): 0 for topic in (self.reads, self.retry)}
        )

    @contextlib.asynccontextmanager
    async def fed(self, topic: Topic, *, dead: int = 2) -> AsyncIterator[AIOKafkaProducer]:
        """Runs the worker on what is written inside, and then on one more record, which it has to pass."""
        async with engines.started(
            AIOKafkaProducer(
                bootstrap_servers=self.kafka.bootstrap, max_request_size=topics.DEAD_LETTERS.max_message_bytes
            )
        ) as producer:
            yield producer
            await producer.send_and_wait(topic.name, b"last", key=b"last")
        async with engines.tail(self.kafka, topics.DEAD_LETTERS) as dlq:
            self.dlq = dlq
            async with engines.running(self.runtime):
                await dlq.until(
                    lambda: len(self.letters()) >= dead, "the worker gets past the poison", seconds=GOT_PAST
                )

    def keys(self) -> list[bytes | None]:
        return [record.key for record in self.letters()]

    def letters(self) -> "list[ConsumerRecord[bytes, bytes]]":
        own = ("dlq_group", self.name.encode())
        return [record for record in self.dlq.records if own in record.headers]


@pytest.fixture
async def group(kafka: KafkaSettings, database: Database) -> Group:
    group = Group(kafka, database)
    await group.begin()
    return group


def provenance(**changes: bytes) -> list[Header]:
    told = {
        "origin_topic": b"orders",
        "origin_partition": b"0",
        "origin_offset": b"7",
        "origin_timestamp": b"1700000000000",
        "attempts": b"0",
        "tier": b"0",
        "replay": b"1",
    }
    return [(f"retry_{name}", value) for name, value in (told | changes).items()]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="one that can be claimed"),
        pytest.param({"origin_partition": b"99999999999"}, id="partition"),
        pytest.param({"replay": b"99999999999"}, id="replay"),
        pytest.param({"origin_topic": b"or\0ders"}, id="topic"),
    ],
)
async def test_a_replay_whose_claim_cannot_be_stored(group: Group, changes: dict[str, bytes]) -> None:
    async with group.fed(group.retry) as producer:
        await producer.send_and_wait(group.retry.name, b"poison", key=b"poison", headers=provenance(**changes))
    assert set(group.keys()) == {b"last", b"poison"}


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(topics.HEADER_ROOM, id="as large as elsewhere"),
        pytest.param(200, id="as large as the topic takes"),
    ],
)
async def test_a_large_record_on_a_retry_topic(group: Group, room: int) -> None:
    value = random.Random(room).randbytes(group.retry.max_message_bytes - room)
    async with group.fed(group.retry) as producer:
        await producer.send_and_wait(group.retry.name, value, key=b"poison")
    assert set(group.keys()) == {b"last", b"poison"}
    assert value in [letter.value for letter in group.letters()]


async def test_a_record_too_large_to_be_parked_again(group: Group) -> None:
    event = order_event()
    event.type = 3000  # type: ignore[assignment]  # of a newer version: fails for now
    event.order.labels["pad"] = "x" * (group.retry.max_message_bytes - event.ByteSize() - 300)
    key = event.order.order_id.encode()
    async with group.fed(group.retry) as producer:
        await producer.send_and_wait(group.retry.name, event.SerializeToString(), key=key)
    assert set(group.keys()) == {b"last", key}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"good", id="text"),
        pytest.param(b"\xff\xfe\xfd\xfc", id="no text"),
        pytest.param(b"\xff" * 400_000, id="no text, and so long that it may not grow"),
    ],
)
async def test_a_header_whose_name_is_not_text(group: Group, name: bytes) -> None:
    async with group.fed(group.reads) as producer:
        await send_with_header(producer, group.reads, b"poison", b"poison", name)
    assert set(group.keys()) == {b"last", b"poison"}
    assert b"poison" in [letter.value for letter in group.letters()]


async def send_with_header(producer: AIOKafkaProducer, topic: Topic, key: bytes, value: bytes, name: bytes) -> None:
    """Writes a record with a header of any name; the client takes text only, the broker takes all."""
    placeholder = "Q" * len(name)
    batch = producer.create_batch()
    batch.append(key=key, value=value, timestamp=None, headers=[(placeholder, b"1")])
    build: Callable[[], bytearray] = batch._build

    def patched() -> bytes:
        content = bytes(build())
        assert content.count(placeholder.encode()) == 1
        content = content.replace(placeholder.encode(), name)
        return content[:17] + struct.pack(">I", calc_crc32c(content[21:])) + content[21:]

    batch._build = patched
    await (await producer.send_batch(batch, topic.name, partition=0))


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(0x41, id="one byte"),
        pytest.param(0x4E00, id="three bytes"),
        pytest.param(0x20000, id="four bytes"),
    ],
)
async def test_a_dead_letter_with_long_words_does_not_stop_the_projector(own_database: Database, first: int) -> None:
    dice = random.Random(first)

    def word() -> bytes:
        return "".join(chr(first + dice.randrange(57 if first == 0x41 else 20_000)) for _ in range(512)).encode()

    forged = a_record(topic="dlq", partition=0, offset=0, headers=[("dlq_group", word()), ("dlq_error_class", word())])
    projection = Projection(own_database)
    await projection.begin("dlq", 0, 0)
    at = Coordinates("dlq", 0, 0)
    await projection.apply(ProjectionBatch("dlq", 0, 0, 1, dead_letters=[(at, dead_letters.parse(forged))]))
    assert await projection.position("dlq", 0) == 1


async def test_what_is_good_on_such_topics_is_handled(group: Group) -> None:
    """So that the tests above do not pass because everything is refused."""
    event = order_event()
    record = envelope.encode(event)
    async with group.fed(group.retry, dead=1) as producer:
        await producer.send_and_wait(group.retry.name, record.value, key=record.key, headers=provenance(replay=b"0"))
    assert group.handled == [event.event_id]
    assert group.keys() == [b"last"]
