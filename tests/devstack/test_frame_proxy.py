"""The frame proxy before a real Kafka and a real PostgreSQL: what it keeps, loses and lets go, and who notices."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from devstack import PostgresServer, free_ports
from devstack.frame_dialects import Kafka, Postgres
from devstack.frame_proxy import FrameProxy
from messaging import clients, topics
from tests import engines
from tests.builders import a_group
from tests.proxied import ProxiedKafka, give_up_after, proxied_kafka, proxied_postgres, soon

TOPIC = topics.NOTIFICATIONS


@pytest.fixture(scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProxiedKafka]:
    async with proxied_kafka(tmp_path_factory.mktemp("proxied")) as kafka:
        yield kafka


@pytest.fixture
async def proxy(kafka: ProxiedKafka) -> AsyncIterator[FrameProxy]:
    async with kafka.proxy() as proxy:
        yield proxy


@pytest.fixture
async def tail(kafka: ProxiedKafka) -> AsyncIterator[engines.Tail]:
    async with engines.tail(kafka.direct, TOPIC) as tail:
        yield tail


@contextlib.asynccontextmanager
async def transactional(kafka: ProxiedKafka, *, patience: float = 10.0) -> AsyncIterator[AIOKafkaProducer]:
    producer = clients.transactional_producer(
        kafka.through, client_id="tests", transactional_id=a_group(), timeout_ms=15_000
    )
    async with engines.started(give_up_after(producer, patience)):
        yield producer


async def one_transaction(producer: AIOKafkaProducer, value: bytes = b"value") -> None:
    async with producer.transaction():
        await producer.send_and_wait(TOPIC.name, value, key=b"key")


async def exactly(tail: engines.Tail, *values: bytes) -> None:
    """Asserts that these values are committed, in this order, and no others."""
    # The markers are written a moment after the end of a transaction is answered.
    await tail.until(lambda: len(tail.records) >= len(values), "all is committed")
    await tail.to_end()
    assert [record.value for record in tail.records] == list(values)


# -- Kafka -------------------------------------------------------------------------------------------------------------


async def test_without_rules_it_only_forwards(kafka: ProxiedKafka, proxy: FrameProxy, tail: engines.Tail) -> None:
    async with transactional(kafka) as producer:
        await one_transaction(producer, b"x" * 300_000)
    await exactly(tail, b"x" * 300_000)
    assert proxy.seen.keys() >= {"ApiVersions", "Metadata", "InitProducerId"}
    assert [proxy.seen[name] for name in ("AddPartitionsToTxn", "Produce", "EndTxn")] == [1, 1, 1]


@pytest.mark.parametrize("name", ["InitProducerId", "AddPartitionsToTxn", "Produce", "EndTxn"])
@pytest.mark.parametrize("how", ["reset", "lose_reply", "mute_reply"])
async def test_what_is_lost_once_is_sent_again_and_done_once(
    kafka: ProxiedKafka, proxy: FrameProxy, tail: engines.Tail, how: str, name: str
) -> None:
    rule = getattr(proxy, how)(name)
    async with transactional(kafka, patience=3.0 if how == "mute_reply" else 10.0) as producer:
        await one_transaction(producer)
        await one_transaction(producer, b"next")
    assert rule.struck.is_set()
    assert rule.answered.is_set() == (how != "reset"), "a reply that is lost is one that was given"
    # The broker has one or another AddPartitionsToTxn repeated while it writes the markers of the transaction before.
    assert proxy.seen[name] >= {"InitProducerId": 2}.get(name, 3)
    await exactly(tail, b"value", b"next")


async def test_a_request_that_is_held_has_not_arrived_and_comes_late(
    kafka: ProxiedKafka, proxy: FrameProxy, tail: engines.Tail
) -> None:
    held = proxy.hold("EndTxn", nth=2)
    async with transactional(kafka) as producer:
        await one_transaction(producer, b"first")
        second = asyncio.create_task(one_transaction(producer, b"second"))
        await soon(held.struck, "the second end is here")
        await tail.until(lambda: tail.records, "the first is committed")
        held.reset_client()
        await second  # by a second end on another connection
        await exactly(tail, b"first", b"second")
        assert not held.answered.is_set()
        assert proxy.seen["EndTxn"] >= 3
        async with asyncio.timeout(10):
            await held.release()
        assert held.answered.is_set(), "on the connection that the client left"


async def test_a_held_request_goes_on_to_a_client_that_waits(kafka: ProxiedKafka, proxy: FrameProxy) -> None:
    looked_for, has_id = proxy.hold("FindCoordinator"), proxy.hold_reply("InitProducerId")
    producer = clients.transactional_producer(
        kafka.through, client_id="tests", transactional_id=a_group(), timeout_ms=15_000
    )
    starting = asyncio.create_task(producer.start())
    await soon(looked_for.struck, "the coordinator is looked for")
    assert proxy.seen["InitProducerId"] == 0
    await looked_for.release()
    await soon(has_id.struck, "the producer has its id")
    assert not starting.done()
    await has_id.release()
    await starting
    await producer.stop()


async def test_a_rule_counts_what_it_is_to_take(kafka: ProxiedKafka, proxy: FrameProxy, tail: engines.Tail) -> None:
    held = proxy.hold("Produce", nth=2, where=lambda request: b"marked" in request)
    async with transactional(kafka) as producer:
        for value in (b"plain", b"marked 1", b"plain"):
            await one_transaction(producer, value)
        assert not held.struck.is_set()
        last = asyncio.create_task(one_transaction(producer, b"marked 2"))
        await soon(held.struck, "the second that is marked")
        await held.release()
        await last
        await one_transaction(producer, b"marked 3")
    await exactly(tail, b"plain", b"marked 1", b"plain", b"marked 2", b"marked 3")


async def test_a_client_that_meets_no_server_is_reset() -> None:
    (nobody,) = free_ports(1)
    async with FrameProxy(Kafka, upstream_port=nobody) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_frames_are_read_whatever_pieces_they_come_in() -> None:
    request = struct.pack(">ihhi", 12, 26, 0, 7) + b"body"
    reader = asyncio.StreamReader()
    dialect = Kafka()
    reading = asyncio.create_task(dialect.read_request(reader))
    for n in range(len(request)):
        await asyncio.sleep(0)
        reader.feed_data(request[n : n + 1])
    assert await reading == request
    assert dialect.name_request(request) == "EndTxn"
    reply = struct.pack(">ii", 4, 7)
    assert dialect.name_reply(reply) == "EndTxn"
    assert dialect.name_reply(reply) == "", "once"
    assert dialect.name_request(struct.pack(">ihhi", 8, 999, 0, 8)) == "999"


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


class Bank:
    """A table, seen through the proxy and past it."""

    def __init__(self, proxy: FrameProxy, url: str, server: PostgresServer) -> None:
        self.proxy = proxy
        self.url = url
        self._direct = server.dsn_of(url.rpartition("/")[2])

    async def insert(self, number: int, *, patience: float = 10.0) -> None:
        connection = await asyncpg.connect(self.url, timeout=10, command_timeout=patience)
        try:
            async with connection.transaction():
                await connection.execute("insert into bank values ($1)", number)
        finally:
            connection.terminate()

    async def numbers(self, sql: str = "select n from bank order by n") -> list[int]:
        connection = await asyncpg.connect(self._direct, timeout=10)
        try:
            return [row["n"] for row in await connection.fetch(sql)]
        finally:
            await connection.close()


@pytest.fixture
async def bank(postgres: PostgresServer) -> AsyncIterator[Bank]:
    async with proxied_postgres(postgres) as (proxy, settings):
        bank = Bank(proxy, settings.url.get_secret_value(), postgres)
        await bank.numbers("create table bank (n int)")
        yield bank


LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError, TimeoutError)


@pytest.mark.parametrize(
    ("how", "is_committed"), [("reset", False), ("lose_reply", True), ("mute_reply", True)], ids=str
)
async def test_a_commit_without_an_answer(bank: Bank, how: str, is_committed: bool) -> None:
    await bank.insert(1)
    rule = getattr(bank.proxy, how)("COMMIT", nth=2)
    await bank.insert(2)
    with pytest.raises(LOST):
        await bank.insert(3, patience=3.0 if how == "mute_reply" else 10.0)
    assert rule.struck.is_set()
    assert await bank.numbers() == [1, 2, 3][: 3 if is_committed else 2]
    await bank.insert(4)
    assert 4 in await bank.numbers()
    assert bank.proxy.seen["COMMIT"] == bank.proxy.seen["BEGIN"] == 4


async def test_a_commit_that_is_held_comes_after_its_client_has_gone(bank: Bank) -> None:
    held = bank.proxy.hold("COMMIT")
    inserting = asyncio.create_task(bank.insert(1))
    await soon(held.struck, "the commit is here")
    assert await bank.numbers() == []
    held.reset_client()
    with pytest.raises(LOST):
        await inserting
    assert await bank.numbers() == []
    async with asyncio.timeout(10):
        await held.release()
    assert await bank.numbers() == [1]


async def test_a_commit_whose_answer_is_held_is_done(bank: Bank) -> None:
    held = bank.proxy.hold_reply("COMMIT")
    inserting = asyncio.create_task(bank.insert(1))
    await soon(held.struck, "it is committed")
    assert await bank.numbers() == [1]
    assert not inserting.done()
    await held.release()
    await inserting


async def test_it_reads_what_postgresql_says() -> None:
    def typed(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack(">i", len(body) + 4) + body

    dialect = Postgres()
    reader = asyncio.StreamReader()
    ssl = struct.pack(">ii", 8, 80877103)
    startup = struct.pack(">ii", 17, 196608) + b"user\0u\0\0\0"
    reader.feed_data(ssl + startup + typed(b"Q", b"COMMIT;\0"))
    assert await dialect.read_request(reader) == ssl
    assert dialect.refusal(ssl) == b"N"
    assert await dialect.read_request(reader) == startup
    assert (dialect.refusal(startup), dialect.name_request(startup)) == (b"", "")
    assert dialect.name_request(await dialect.read_request(reader)) == "COMMIT"
    assert dialect.name_request(typed(b"Q", b" begin isolation level serializable\0")) == "BEGIN"
    assert dialect.name_request(typed(b"P", b"\0COMMIT\0\0\0")) == ""
    assert dialect.name_request(typed(b"Q", b"\0")) == ""
    assert dialect.name_reply(typed(b"C", b"COMMIT\0")) == "COMMIT"
    assert dialect.name_reply(typed(b"C", b"INSERT 0 1\0")) == "INSERT"
    assert dialect.name_reply(typed(b"Z", b"I")) == ""
    stranger = asyncio.StreamReader()
    stranger.feed_data(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ValueError, match="not PostgreSQL"):
        await Postgres().read_request(stranger)
