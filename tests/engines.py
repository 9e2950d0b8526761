"""The real engines for the tests, and what tests do to them: databases, offsets, records in and out.

One Kafka and one PostgreSQL serve a whole test session (see conftest.py), so tests keep to themselves: their own order
ids, SKUs and groups, which start at the end of the topics.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import asyncpg
import pydantic
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.structs import OffsetAndMetadata

from devstack import KafkaBroker, KafkaCluster, PostgresServer, ensure_jars, free_ports
from messaging import aiokafka_internals, clients, envelope, topic_admin
from messaging.topics import Topic
from orderflow.events.v1.order_event_pb2 import OrderEvent
from settings import DatabaseSettings, KafkaSettings
from storage.database import Database
from tests.builders import an_id

DEADLINE = 60.0
TEMPLATE = "orderflow_template"


async def eventually(condition: Callable[[], object], what: str, *, seconds: float = DEADLINE) -> None:
    """Waits until the condition holds, and fails with `what` if it does not in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


# -- starting ----------------------------------------------------------------------------------------------------------


def _tell_in_a_line(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Stands in for asyncio's handler of errors that nobody asked for.

    aiokafka leaves futures of a fenced producer behind, which report themselves from inside of a garbage collection.
    Asyncio's handler formats a traceback there; on Python 3.11 that parses source, and breaks a parse that is under
    way: pytest then ends with `AST constructor recursion depth mismatch`.
    """
    logging.getLogger(__name__).warning("%s: %r", context.get("message"), context.get("exception"))


@contextlib.asynccontextmanager
async def kafka_broker(directory: Path) -> AsyncIterator[KafkaBroker]:
    """Runs a broker with the topics of the catalogue."""
    asyncio.get_running_loop().set_exception_handler(_tell_in_a_line)
    port, controller_port = free_ports(2)
    broker = KafkaBroker(directory, port, controller_port, classpath=ensure_jars())
    broker.start()
    try:
        await broker.wait_ready()
        assert await topic_admin.apply(kafka_settings(broker)) == []
        yield broker
    finally:
        broker.resume()  # a test may have failed while it was suspended
        await broker.stop()


def kafka_cluster(directory: Path) -> KafkaCluster:
    """Returns three brokers on free ports, not started."""
    ports = free_ports(6)
    return KafkaCluster(directory, list(zip(ports[::2], ports[1::2], strict=True)), classpath=ensure_jars())


def kafka_settings(broker: KafkaBroker) -> KafkaSettings:
    return KafkaSettings(bootstrap=broker.bootstrap)


@contextlib.asynccontextmanager
async def postgres_server(directory: Path) -> AsyncIterator[PostgresServer]:
    (port,) = free_ports(1)
    server = PostgresServer(directory, port)
    server.start()
    try:
        await server.wait_ready()
        yield server
    finally:
        await server.stop()
        server.remove_data()


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


async def new_database(server: PostgresServer, *, name: str = "", template: str = "template1") -> DatabaseSettings:
    """Creates a database: empty, or as the template is."""
    name = name or f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(server.dsn, timeout=10)
    try:
        await connection.execute(f'create database "{name}" template "{template}"')
    finally:
        await connection.close()
    return database_settings(server.dsn_of(name))


def database_settings(url: str, **fields: float) -> DatabaseSettings:
    return DatabaseSettings(url=pydantic.SecretStr(url), **fields)


@contextlib.asynccontextmanager
async def opened(settings: DatabaseSettings) -> AsyncIterator[Database]:
    database = Database(settings, application="tests", of_many=True)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def fetch(database: Database, sql: str, *arguments: object) -> list[dict[str, object]]:
    async with database.connection() as connection:
        return [dict(row) for row in await connection.fetch(sql, *arguments)]


async def until_waiting(database: Database, count: int) -> None:
    """Waits until so many transactions of this database wait for a lock."""
    async with asyncio.timeout(10):
        while True:
            (row,) = await fetch(
                database,
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()",
            )
            if row["count"] == count:
                return


# -- Kafka -------------------------------------------------------------------------------------------------------------


def partition_of(key: bytes, topic: Topic) -> int:
    numbers = list(range(topic.partitions))
    return int(DefaultPartitioner()(key, numbers, numbers))


def order_ids(count: int, topic: Topic, *, partition: int = 0) -> list[str]:
    """Returns order ids whose records go to the partition."""
    found: list[str] = []
    while len(found) < count:
        order_id = an_id()
        if partition_of(order_id.encode(), topic) == partition:
            found.append(order_id)
    return found


def partitions_of(topics: Iterable[Topic]) -> list[TopicPartition]:
    return [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]


Client = TypeVar("Client", AIOKafkaConsumer, AIOKafkaProducer, AIOKafkaAdminClient)


@contextlib.asynccontextmanager
async def started(client: Client) -> AsyncIterator[Client]:
    await client.start()
    try:
        yield client
    finally:
        stop = client.close if isinstance(client, AIOKafkaAdminClient) else client.stop
        await stop()


async def ends(kafka: KafkaSettings, *topics: Topic) -> dict[TopicPartition, int]:
    """Returns where readers of committed records are at the end."""
    async with started(clients.consumer(kafka, client_id="tests", group=None)) as consumer:
        return dict(await consumer.end_offsets(partitions_of(topics)))


async def commit(kafka: KafkaSettings, group: str, offsets: dict[TopicPartition, int], *, metadata: str = "") -> None:
    """Commits offsets of a group that has no members."""
    async with started(clients.consumer(kafka, client_id="tests", group=group)) as consumer:
        consumer.assign(list(offsets))
        await consumer.commit({each: OffsetAndMetadata(offset, metadata) for each, offset in offsets.items()})


async def start_at_end(kafka: KafkaSettings, group: str, *topics: Topic) -> dict[TopicPartition, int]:
    """Lets a new group begin with what comes next."""
    offsets = await ends(kafka, *topics)
    await commit(kafka, group, offsets)
    return offsets


async def committed(kafka: KafkaSettings, group: str, partition: TopicPartition) -> tuple[int, str] | None:
    async with started(clients.consumer(kafka, client_id="tests", group=group)) as consumer:
        return await aiokafka_internals.read_committed(consumer, partition)


async def wait_committed(
    kafka: KafkaSettings, group: str, partition: TopicPartition, condition: Callable[[int, str], bool], what: str
) -> tuple[int, str]:
    async with started(clients.consumer(kafka, client_id="tests", group=group)) as consumer, asyncio.timeout(DEADLINE):
        while True:
            found = await aiokafka_internals.read_committed(consumer, partition)
            if found is not None and condition(*found):
                return found
            await asyncio.sleep(0.05)


async def send_events(kafka: KafkaSettings, events: Iterable[OrderEvent]) -> None:
    async with started(clients.idempotent_producer(kafka, client_id="tests")) as producer:
        records = [envelope.encode(event) for event in events]
        acknowledged = [
            await producer.send(each.topic.name, key=each.key, value=each.value, headers=each.headers)
            for each in records
        ]
        await asyncio.gather(*acknowledged)


class Tail:
    """Reads what is committed to a topic from now on."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.records: list[ConsumerRecord[bytes, bytes]] = []

    async def read(self) -> None:
        for records in (await self._consumer.getmany(timeout_ms=50)).values():
            self.records += records

    async def until(self, condition: Callable[[], object], what: str, *, seconds: float = DEADLINE) -> None:
        """Reads until the condition, which is about `records`, holds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            assert loop.time() < deadline, f"not within {seconds} s: {what}; there are {len(self.records)} records"
            await self.read()

    async def to_end(self) -> None:
        """Reads all that is committed by now."""
        partitions = list(self._consumer.assignment())
        targets = await self._consumer.end_offsets(partitions)
        async with asyncio.timeout(DEADLINE):
            for partition in partitions:
                while await self._consumer.position(partition) < targets[partition]:
                    await self.read()

    @property
    def events(self) -> list[OrderEvent]:
        return [OrderEvent.FromString(record.value) for record in self.records]


@contextlib.asynccontextmanager
async def tail(kafka: KafkaSettings, topic: Topic) -> AsyncIterator[Tail]:
    async with started(clients.consumer(kafka, client_id="tests", group=None)) as consumer:
        partitions = partitions_of([topic])
        consumer.assign(partitions)
        for partition, offset in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, offset)
        yield Tail(consumer)


# -- runtimes ----------------------------------------------------------------------------------------------------------


class Runtime(Protocol):
    async def run(self, stop: asyncio.Event) -> None: ...


class Running:
    """A runtime at work."""

    def __init__(self, runtime: Runtime) -> None:
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(runtime.run(self.stop))

    async def ended(self, *, seconds: float = DEADLINE) -> None:
        """Waits until it has ended; raises what it raised."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self.task)


@contextlib.asynccontextmanager
async def running(runtime: Runtime) -> AsyncIterator[Running]:
    """Runs it meanwhile, and stops it as SIGTERM does. One that ends before ends the test, with what it raised."""
    test = asyncio.current_task()
    assert test is not None
    at_work = Running(runtime)

    def ended(_: "asyncio.Task[None]") -> None:
        if not at_work.stop.is_set():
            test.cancel()

    at_work.task.add_done_callback(ended)
    try:
        yield at_work
    except asyncio.CancelledError:
        if not at_work.task.done() or at_work.stop.is_set():
            raise
        test.uncancel()
        at_work.task.result()
        raise AssertionError("the runtime ended by itself") from None
    finally:
        at_work.stop.set()
        done, _ = await asyncio.wait([at_work.task], timeout=40)
        assert done, "the runtime does not stop"
    at_work.task.result()
