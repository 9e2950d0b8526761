"""What touches aiokafka's private attributes works with the version that is pinned."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaConnectionError,
    RequestTimedOutError,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import EndTxnRequest
from aiokafka.structs import OffsetAndMetadata

from devstack import KafkaBroker
from messaging import aiokafka_internals, clients, topics
from settings import KafkaSettings
from tests import engines
from tests.builders import a_group

PARTITION = TopicPartition(topics.NOTIFICATIONS.name, 1)


def transactional(kafka: KafkaSettings, name: str) -> AIOKafkaProducer:
    return clients.transactional_producer(kafka, client_id="tests", transactional_id=name, timeout_ms=5_000)


@pytest.fixture
async def consumer(kafka: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
    async with engines.started(clients.consumer(kafka, client_id="tests", group=a_group())) as consumer:
        consumer.assign([PARTITION])
        yield consumer


async def test_read_committed_tells_nothing_from_something(consumer: AIOKafkaConsumer) -> None:
    assert await aiokafka_internals.read_committed(consumer, PARTITION) is None
    await consumer.commit({PARTITION: OffsetAndMetadata(0, "")})
    assert await aiokafka_internals.read_committed(consumer, PARTITION) == (0, "")
    await consumer.commit({PARTITION: OffsetAndMetadata(42, "1:AQ==")})
    assert await aiokafka_internals.read_committed(consumer, PARTITION) == (42, "1:AQ==")
    assert await aiokafka_internals.read_committed(consumer, TopicPartition(PARTITION.topic, 0)) is None


async def test_read_committed_sees_what_a_transaction_committed_once_its_id_was_opened_again(
    consumer: AIOKafkaConsumer, kafka: KafkaSettings
) -> None:
    group, name = consumer._group_id, a_group()
    async with engines.started(transactional(kafka, name)) as producer, producer.transaction():
        await producer.send_offsets_to_transaction({PARTITION: OffsetAndMetadata(3, "m")}, group)
    # A read may be stale until now: the broker answers the end of a transaction before its markers are written.
    async with engines.started(transactional(kafka, name)) as producer:
        assert await aiokafka_internals.read_committed(consumer, PARTITION) == (3, "m")
        await producer.begin_transaction()
        await producer.send_offsets_to_transaction({PARTITION: OffsetAndMetadata(9, "x")}, group)
        await producer.abort_transaction()
    async with engines.started(transactional(kafka, name)):
        assert await aiokafka_internals.read_committed(consumer, PARTITION) == (3, "m")


async def test_read_committed_waits_for_a_coordinator_that_cannot_tell(
    consumer: AIOKafkaConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await consumer.commit({PARTITION: OffsetAndMetadata(7, "m")})
    coordinator = consumer._coordinator
    send = coordinator._send_req
    codes = [GroupLoadInProgressError.errno, GroupCoordinatorNotAvailableError.errno]

    async def answers_errors_first(request: Any) -> Any:
        response = await send(request)
        if isinstance(request, OffsetFetchRequest) and codes:
            response.error_code = codes.pop(0)  # as the broker answers: the code at the top, and no partition
            response.topics = []
        return response

    monkeypatch.setattr(coordinator, "_send_req", answers_errors_first)
    assert await aiokafka_internals.read_committed(consumer, PARTITION) == (7, "m")
    assert codes == []


async def test_read_committed_is_never_none_after_a_restart_of_the_broker(spare_broker: KafkaBroker) -> None:
    kafka, group = engines.kafka_settings(spare_broker), a_group()
    await engines.commit(kafka, group, {PARTITION: 5}, metadata="kept")
    async with engines.started(clients.consumer(kafka, client_id="tests", group=group)) as consumer:
        consumer.assign([PARTITION])
        await spare_broker.stop()
        spare_broker.start()
        reading = asyncio.create_task(aiokafka_internals.read_committed(consumer, PARTITION))
        await spare_broker.wait_ready()
        async with asyncio.timeout(30):
            assert await reading == (5, "kept")


async def test_a_transactional_request_that_is_sent_again_is_noticed(kafka: KafkaSettings) -> None:
    producer = transactional(kafka, a_group())
    send, lost = producer.client.send, [EndTxnRequest]

    async def loses_an_answer(node_id: int, request: Any, **arguments: Any) -> Any:
        response = await send(node_id, request, **arguments)
        if lost and isinstance(request, lost[0]):
            lost.clear()
            raise RequestTimedOutError
        return response

    producer.client.send = loses_an_answer
    resent: list[int] = []
    aiokafka_internals.watch_transactional_requests(producer, lambda: resent.append(1))
    async with engines.started(producer), engines.tail(kafka, topics.NOTIFICATIONS) as tail:
        async with producer.transaction():
            await producer.send_and_wait(PARTITION.topic, b"value", partition=PARTITION.partition)
        assert resent == [1]
        await tail.until(lambda: [record.value for record in tail.records] == [b"value"], "it is committed")
        async with producer.transaction():
            await producer.send_and_wait(PARTITION.topic, b"value", partition=PARTITION.partition)
        assert resent == [1], "what goes well is not told"


async def test_an_added_record_is_one_that_was_sent(kafka: KafkaSettings) -> None:
    topic, headers = topics.NOTIFICATIONS.name, [("ce_type", b"told")]
    async with engines.tail(kafka, topics.NOTIFICATIONS) as tail:
        producer = clients.idempotent_producer(kafka, client_id="tests")
        await producer.start()
        assert aiokafka_internals.add(producer, topic, key=b"k", value=b"early", headers=[]) is None, "no metadata yet"
        await producer.send_and_wait(topic, key=b"k", value=b"sent", headers=headers)
        first = aiokafka_internals.add(producer, topic, key=b"k", value=b"added", headers=headers)
        second = aiokafka_internals.add(producer, topic, key=b"k", value=b"with it", headers=[])
        assert first is not None
        assert second is first, "a batch is acknowledged as one"
        assert not first.done()
        await asyncio.wait([first], timeout=10)
        assert first.exception() is None
        await producer.send_and_wait(topic, key=b"k", value=b"sent after", headers=headers)
        await tail.until(lambda: len(tail.records) == 4, "all are there")
        assert [each.value for each in tail.records] == [b"sent", b"added", b"with it", b"sent after"]
        assert len({each.partition for each in tail.records}) == 1
        assert [len(each.headers) for each in tail.records] == [1, 1, 0, 1]
        await producer.stop()
    assert aiokafka_internals.add(producer, topic, key=b"k", value=b"late", headers=[]) is None, "it is closed"


async def test_a_record_that_must_wait_or_be_refused_is_not_added(kafka_broker: KafkaBroker) -> None:
    topic = topics.NOTIFICATIONS.name
    producer = clients.idempotent_producer(engines.kafka_settings(kafka_broker), client_id="tests")
    await producer.start()
    await producer.send_and_wait(topic, key=b"k", value=b"it knows the partitions now")
    kafka_broker.suspend()
    try:
        on_its_way = aiokafka_internals.add(producer, topic, key=b"k", value=b"first", headers=[])
        assert on_its_way is not None
        await asyncio.sleep(0)  # whether it is taken by now or not, the next ones fill a batch
        large = bytes(100 * 1024)
        added = [aiokafka_internals.add(producer, topic, key=b"k", value=large, headers=[]) for _ in range(10)]
        assert 1 <= len([each for each in added if each is not None]) <= 4
        assert added[-1] is None, "no room"
        too_large = bytes(producer._max_request_size)
        assert aiokafka_internals.add(producer, topic, key=b"other", value=too_large, headers=[]) is None
    finally:
        kafka_broker.resume()
    waited_for = {each for each in (on_its_way, *added) if each is not None}
    await asyncio.wait(waited_for, timeout=10)
    assert [each.exception() for each in waited_for] == [None] * len(waited_for)
    await producer.stop()


async def test_a_producer_is_discarded_in_any_state(kafka: KafkaSettings) -> None:
    name = a_group()
    never_started = transactional(kafka, name)
    await aiokafka_internals.discard_producer(never_started)
    idle = transactional(kafka, name)
    await idle.start()
    await aiokafka_internals.discard_producer(idle, flush_seconds=5)
    open_one = transactional(kafka, name)
    await open_one.start()
    await open_one.begin_transaction()
    await open_one.send_and_wait(PARTITION.topic, b"never committed", partition=PARTITION.partition)
    await aiokafka_internals.discard_producer(open_one)
    async with engines.tail(kafka, topics.NOTIFICATIONS) as tail:
        async with engines.started(transactional(kafka, name)) as successor, successor.transaction():
            await successor.send_and_wait(PARTITION.topic, b"committed", partition=PARTITION.partition)
        await tail.until(lambda: tail.records, "the successor ended the open transaction")
        assert [record.value for record in tail.records] == [b"committed"]


async def test_clients_are_discarded_in_time_while_the_broker_hangs(kafka_broker: KafkaBroker) -> None:
    kafka = engines.kafka_settings(kafka_broker)
    producer = transactional(kafka, a_group())
    await producer.start()
    consumer = clients.consumer(kafka, client_id="tests", group=a_group())
    await consumer.start()
    consumer.subscribe([PARTITION.topic])
    await engines.eventually(consumer.assignment, "it has joined")
    await producer.begin_transaction()
    await producer.send_and_wait(PARTITION.topic, b"value", partition=PARTITION.partition)
    kafka_broker.suspend()
    try:
        pending = await producer.send(PARTITION.topic, b"value", partition=PARTITION.partition)
        began = time.monotonic()
        await aiokafka_internals.discard_producer(producer, flush_seconds=0.3)
        await aiokafka_internals.discard_consumer(consumer, seconds=0.3)
        assert time.monotonic() - began < 10
        pending.cancel()
    finally:
        kafka_broker.resume()


async def lost_unnoticed(client: AIOKafkaClient) -> AIOKafkaConnection:
    """Loses the client's connection in the middle of an answer, as if the task that reads had no turn since."""
    (connection,) = client._conns.values()
    connection._read_task.cancel()
    connection._reader.feed_data(b"\0")
    connection._writer.transport.abort()
    while not connection._reader._eof:  # noqa: ASYNC110  (the loop has no event for it)
        await asyncio.sleep(0)
    assert connection.connected()
    return connection


def test_a_connection_lost_under_uvloop_says_so_and_metadata_comes_again(kafka: KafkaSettings) -> None:
    async def lose_connections() -> None:
        consumer = clients.consumer(kafka, client_id="tests", group=None)
        async with asyncio.timeout(20), engines.started(consumer):
            await consumer.topics()
            client = consumer._client
            connection = await lost_unnoticed(client)
            with pytest.raises(KafkaConnectionError):
                await connection.send(MetadataRequest([]))
            while not await client.force_metadata_update():
                assert not client._sync_task.done()

            await lost_unnoticed(client)
            while not await client.force_metadata_update():
                assert not client._sync_task.done()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(lose_connections())
