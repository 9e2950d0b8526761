"""Three brokers: one may die and records go on being acknowledged, two may not; what was acknowledged stays."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from devstack import DevstackError, KafkaBroker, KafkaCluster, ensure_jars
from tests import engines
from tests.e2e import observer

TOPIC = "replicated"
PARTITIONS = 3

# The first test waits for the start of three brokers.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaCluster]:
    cluster = engines.kafka_cluster(tmp_path_factory.mktemp("kafka"))
    cluster.start()
    try:
        await cluster.wait_ready(240)
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
        async with engines.started(admin):
            config = {"min.insync.replicas": "2"}
            await admin.create_topics([NewTopic(TOPIC, PARTITIONS, replication_factor=3, topic_configs=config)])
        yield cluster
    finally:
        await cluster.stop()


@pytest.fixture
async def cluster(started: KafkaCluster) -> KafkaCluster:
    """The cluster with all its brokers in sync; each test may kill what it likes."""
    for broker in started.brokers:
        if not broker.running:
            broker.start()
    await started.wait_ready()
    return started


def new_producer(cluster: KafkaCluster) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=cluster.bootstrap, acks="all", enable_idempotence=True, request_timeout_ms=10_000
    )


async def write_everywhere(producer: AIOKafkaProducer, value: bytes, *, within: float) -> None:
    """Writes to each partition and returns when all of it is acknowledged.

    Raises:
        TimeoutError: it was not, in so many seconds.
    """
    async with asyncio.timeout(within):
        written = [await producer.send(TOPIC, value, partition=number) for number in range(PARTITIONS)]
        await asyncio.gather(*(asyncio.shield(each) for each in written))


async def values(cluster: KafkaCluster) -> list[set[bytes | None]]:
    """Returns what can be read of each partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.bootstrap,
        isolation_level="read_committed",
        # Not seek_to_beginning(): it races with the client's own first look-up, and a partition reads as empty.
        auto_offset_reset="earliest",
    )
    async with engines.started(consumer), asyncio.timeout(60):
        partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: dict[TopicPartition, set[bytes | None]] = {each: set() for each in partitions}
        while any([await consumer.position(each) < ends[each] for each in partitions]):
            for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                found[partition] |= {record.value for record in records}
        return list(found.values())


async def can_be_read_everywhere(cluster: KafkaCluster, value: bytes) -> None:
    """Waits for it: a commit is answered before its markers are written."""

    async def can_be_read() -> bool:
        return all(value in found for found in await values(cluster))

    await observer.eventually(can_be_read, within=60, what=f"{value!r} in each partition")


async def leader(cluster: KafkaCluster) -> KafkaBroker:
    """Returns a broker that leads a partition of the topic."""
    async with engines.started(AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)) as admin:
        (topic,) = await admin.describe_topics([TOPIC])
        return cluster.brokers[topic["partitions"][0]["leader"] - 1]


async def commit_to_all(cluster: KafkaCluster, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, transactional_id="other", acks="all")
    async with engines.started(producer), asyncio.timeout(60), producer.transaction():
        await asyncio.gather(*[await producer.send(TOPIC, value, partition=each) for each in range(PARTITIONS)])


async def test_each_has_its_own_process_folder_and_loopback_ports(cluster: KafkaCluster) -> None:
    assert len({broker.pid for broker in cluster.brokers}) == 3
    assert [broker.directory.name for broker in cluster.brokers] == ["1", "2", "3"]
    for broker in cluster.brokers:
        assert broker.log_file.exists()
        listening = {
            connection.laddr
            for connection in psutil.Process(broker.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert {address.port for address in listening} == {broker.port, broker.controller_port}
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


async def test_the_topics_of_offsets_and_transactions_have_three_replicas(cluster: KafkaCluster) -> None:
    await commit_to_all(cluster, b"transactions")
    consumer = AIOKafkaConsumer(bootstrap_servers=cluster.bootstrap, group_id="other", enable_auto_commit=False)
    async with engines.started(consumer):
        consumer.assign([TopicPartition(TOPIC, 0)])
        await consumer.commit({TopicPartition(TOPIC, 0): 1})
    async with engines.started(AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)) as admin:

        async def described() -> list[dict[str, Any]]:
            topics = await admin.describe_topics(["__consumer_offsets", "__transaction_state"])
            return topics if all(topic["partitions"] for topic in topics) else []

        # The broker that is asked may hear of them later than the one that made them.
        for topic in await observer.eventually(described, within=30, what="partitions of both topics"):
            assert all(len(partition["replicas"]) == 3 for partition in topic["partitions"]), topic


async def test_one_dies_and_writing_goes_on_then_two_and_nothing_is_acknowledged(cluster: KafkaCluster) -> None:
    async with engines.started(new_producer(cluster)) as producer:
        await write_everywhere(producer, b"three", within=60)
        first = await leader(cluster)
        first.kill()
        await write_everywhere(producer, b"two", within=60)
        assert not first.running
        second, third = [broker for broker in cluster.brokers if broker is not first]

        second.kill()
        assert third.running
        with pytest.raises(TimeoutError):
            await write_everywhere(producer, b"one", within=5)

        for broker in (first, second):
            broker.start()
        await cluster.wait_ready()
        await write_everywhere(producer, b"three again", within=60)
    # What was not acknowledged in time was handed over: the producer went on and wrote it, once.
    assert all({b"three", b"two", b"one", b"three again"} <= found for found in await values(cluster))


@pytest.mark.heavy
async def test_a_frozen_one_is_left_out_and_comes_back(cluster: KafkaCluster) -> None:
    async with engines.started(new_producer(cluster)) as producer:
        await write_everywhere(producer, b"before", within=60)
        frozen = await leader(cluster)
        frozen.suspend()
        try:
            await write_everywhere(producer, b"meanwhile", within=60)
        finally:
            frozen.resume()
        await cluster.wait_ready()
        await write_everywhere(producer, b"after", within=60)


@pytest.mark.heavy
async def test_what_was_committed_outlives_kill_9_of_all(cluster: KafkaCluster) -> None:
    await commit_to_all(cluster, b"kept")
    cluster.kill()
    assert not any(broker.running for broker in cluster.brokers)
    logged = [broker.log_file.stat().st_size for broker in cluster.brokers]
    cluster.start()
    await cluster.wait_ready()
    await can_be_read_everywhere(cluster, b"kept")
    for broker, before in zip(cluster.brokers, logged, strict=True):
        since = broker.log_file.read_bytes()[before:]
        assert since
        assert b"DUPLICATE_BROKER_REGISTRATION" not in since, "it met its former life (see kafka_fence.py)"


@pytest.mark.heavy
async def test_a_stopped_cluster_goes_on_where_it_ended(cluster: KafkaCluster) -> None:
    await commit_to_all(cluster, b"stopped")
    await cluster.stop(20)
    again = KafkaCluster(
        cluster.directory,
        [(broker.port, broker.controller_port) for broker in cluster.brokers],
        classpath=ensure_jars(),
    )
    again.start()
    try:
        await again.wait_ready()
        await can_be_read_everywhere(again, b"stopped")
    finally:
        await again.stop(20)


async def test_a_dead_one_is_named_while_the_others_are_waited_for(cluster: KafkaCluster) -> None:
    broker = cluster.brokers[2]
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    # It dies in a moment, and may answer until then.
    await asyncio.to_thread(os.waitid, os.P_PID, broker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(DevstackError, match="Kafka broker 3 ended with exit code -9"):
        await cluster.wait_ready(60)
