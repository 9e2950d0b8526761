"""Requests and replies that come late or never, between the real worker runtime and Kafka or PostgreSQL (W2, W4, W8).

Each handled event has two outputs, too large for one Produce request: a transaction can be half written.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch
from structlog.typing import EventDict

from devstack import PostgresServer
from devstack.frame_proxy import FrameProxy, Rule
from domain.records import Delivery
from messaging import clients, topics
from messaging.runtime import WorkerRuntime
from messaging.worker import Handler, Limits, WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from storage import outcomes
from storage.database import Database
from tests import engines
from tests.builders import a_group, an_order, emitted_for, order_event
from tests.engines import Tail
from tests.proxied import ProxiedKafka, give_up_after, proxied_kafka, proxied_postgres, soon

if TYPE_CHECKING:
    from storage.database import Connection

FIRST = TopicPartition(topics.ORDERS.name, 0)
LIMITS = Limits(max_in_flight=16, attempts=2, backoff_base=0.01, backoff_cap=0.05, drain=5.0)
PARTS = ("part 1 ", "part 2 ")
PADDING = 200_000  # two of these are more than one batch of a producer
E = OrderEventType


def an_event() -> OrderEvent:
    (order_id,) = engines.order_ids(1, topics.ORDERS)
    return order_event(E.ORDER_EVENT_TYPE_ORDER_PROCESSING, an_order(order_id=order_id))


def outputs_of(delivery: Delivery) -> list[OrderEvent]:
    return [emitted_for(delivery, provider_message_id=part.ljust(PADDING, "x")) for part in PARTS]


class Worker:
    """A worker that reaches Kafka through the proxy, and what its group has put on `notifications`."""

    def __init__(self, kafka: ProxiedKafka, group: str, outputs: Tail) -> None:
        self.kafka = kafka
        self.group = group
        self.deliveries: list[Delivery] = []
        self._outputs = outputs

    async def handle(self, delivery: Delivery) -> Sequence[OrderEvent]:
        self.deliveries.append(delivery)
        return outputs_of(delivery)

    def causes(self) -> list[str]:
        return [delivery.event.event_id for delivery in self.deliveries]

    def runtime(self, handle: Handler | None = None) -> WorkerRuntime:
        spec = WorkerSpec(
            group=self.group, reads=(topics.ORDERS,), handles=frozenset({E.ORDER_EVENT_TYPE_ORDER_PROCESSING})
        )
        return WorkerRuntime(spec, handle or self.handle, kafka=self.kafka.through, limits=LIMITS, client_id=self.group)

    async def send(self, *events: OrderEvent) -> None:
        await engines.send_events(self.kafka.direct, events)

    def written(self) -> list[tuple[str, str]]:
        """Returns cause and part of each output that readers of committed records see."""
        events = [event for event in self._outputs.events if event.metadata.source == self.group]
        return [
            (event.metadata.causation_id, event.notification_sent.provider_message_id[: len(PARTS[0])])
            for event in events
        ]

    async def until_written(self, *events: OrderEvent) -> None:
        wanted = {(event.event_id, part) for event in events for part in PARTS}
        await self._outputs.until(lambda: wanted <= set(self.written()), f"{len(events)} events are answered")

    async def until_seen(self, event: OrderEvent) -> None:
        await self._outputs.until(
            lambda: any(cause == event.event_id for cause, _ in self.written()), "some of its outputs are committed"
        )

    async def exactly(self, *events: OrderEvent) -> None:
        """Asserts that all is committed, that each event has each of its outputs once, and that there is no more."""
        await self.until_written(*events)
        end = (await engines.ends(self.kafka.direct, topics.ORDERS))[FIRST]
        await engines.wait_committed(
            self.kafka.direct,
            self.group,
            FIRST,
            lambda offset, metadata: offset >= end and not metadata,
            f"{end} is passed",
        )
        await self._outputs.to_end()
        assert sorted(self.written()) == sorted((event.event_id, part) for event in events for part in PARTS)


@pytest.fixture(scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProxiedKafka]:
    async with proxied_kafka(tmp_path_factory.mktemp("proxied")) as kafka:
        yield kafka


@pytest.fixture
async def proxy(kafka: ProxiedKafka) -> AsyncIterator[FrameProxy]:
    async with kafka.proxy() as proxy:
        yield proxy


@pytest.fixture
async def worker(kafka: ProxiedKafka) -> AsyncIterator[Worker]:
    group = a_group()
    await engines.start_at_end(kafka.direct, group, topics.ORDERS)
    async with engines.tail(kafka.direct, topics.NOTIFICATIONS) as outputs:
        yield Worker(kafka, group, outputs)


@pytest.fixture
def logged() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as logged:
        yield logged


def make_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has transactional producers take a request for lost after a second instead of ten."""
    make: Callable[..., AIOKafkaProducer] = clients.transactional_producer
    monkeypatch.setattr(
        clients, "transactional_producer", lambda *args, **kwargs: give_up_after(make(*args, **kwargs), 1.0)
    )


def of_first(group: str) -> Callable[[bytes], bool]:
    """Whether a request is about the producer of the group's first partition."""
    transactional_id = f"{group}.{FIRST.topic}.{FIRST.partition}".encode()
    return lambda request: struct.pack(">h", len(transactional_id)) + transactional_id in request


def error_code(end_transaction_reply: bytes) -> int:
    """Returns what the broker says to an EndTxn of version 0, behind length, correlation id and throttle time."""
    assert len(end_transaction_reply) == 14
    return int.from_bytes(end_transaction_reply[12:], signed=True)


# -- a transaction's end that comes into the next transaction ----------------------------------------------------------


async def wait_until_next_is_half_written(worker: Worker, proxy: FrameProxy) -> tuple[OrderEvent, Rule]:
    """Begins the next transaction, and stops it between its two outputs."""
    event = an_event()
    second_half = proxy.hold("Produce", nth=2, where=of_first(worker.group))
    await worker.send(event)
    await soon(second_half.struck, "half of the next transaction is written")
    return event, second_half


@pytest.mark.parametrize("given_up_by", ["a reset", "a time-out"])
async def test_an_end_that_comes_into_the_next_transaction_tears_nothing(
    worker: Worker,
    proxy: FrameProxy,
    logged: list[EventDict],
    monkeypatch: pytest.MonkeyPatch,
    given_up_by: str,
) -> None:
    if given_up_by == "a time-out":
        make_impatient(monkeypatch)
    first, third = an_event(), an_event()
    late_end = proxy.hold("EndTxn", where=of_first(worker.group))
    async with engines.running(worker.runtime()):
        await worker.send(first)
        await soon(late_end.struck, "the end of the first transaction is held back")
        if given_up_by == "a reset":
            late_end.reset_client()
        await worker.until_written(first)  # it was sent again, on another connection

        second, second_half = await wait_until_next_is_half_written(worker, proxy)
        async with asyncio.timeout(10):
            reply = await late_end.release()
        if not error_code(reply):  # the broker has obeyed: that is the hole; it writes the markers after the answer
            await worker.until_seen(second)
        await second_half.release()
        await worker.exactly(first, second)

        await worker.send(third)
        await worker.exactly(first, second, third)
    assert error_code(reply) == InvalidProducerEpoch.errno
    assert "worker.transaction.suspect" in [entry["event"] for entry in logged]
    if given_up_by == "a reset":  # on a busy machine other requests than this may seem to time out
        assert worker.causes() == [each.event_id for each in (first, second, third)]


@pytest.mark.parametrize(
    ("name", "is_suspect"),
    [("AddPartitionsToTxn", True), ("Produce", False), ("AddOffsetsToTxn", True), ("TxnOffsetCommit", True)],
    ids=str,
)
async def test_no_other_request_of_a_transaction_harms_the_next(
    worker: Worker, proxy: FrameProxy, logged: list[EventDict], name: str, is_suspect: bool
) -> None:
    first, third = an_event(), an_event()
    late = proxy.hold(name, where=of_first(worker.group))
    async with engines.running(worker.runtime()):
        await worker.send(first)
        await soon(late.struck, f"{name} is held back")
        late.reset_client()
        await worker.until_written(first)
        second, second_half = await wait_until_next_is_half_written(worker, proxy)
        async with asyncio.timeout(10):
            assert await late.release(), "the broker has answered it"
        await second_half.release()
        await worker.exactly(first, second)
        await worker.send(third)
        await worker.exactly(first, second, third)
    assert [entry["event"] for entry in logged].count("worker.transaction.suspect") == is_suspect
    assert worker.causes() == [each.event_id for each in (first, second, third)]


async def test_a_late_beginning_of_the_producer_fences_it_and_tears_nothing(
    worker: Worker, proxy: FrameProxy, logged: list[EventDict]
) -> None:
    late = proxy.hold("InitProducerId", where=of_first(worker.group))
    async with engines.running(worker.runtime()):
        await soon(late.struck, "the producer is being opened")
        late.reset_client()
        event, second_half = await wait_until_next_is_half_written(worker, proxy)
        async with asyncio.timeout(10):
            assert await late.release(), "the broker has raised the epoch, and aborts what is open"
        await second_half.release()
        await worker.exactly(event)
    assert "worker.partition.fenced" in [entry["event"] for entry in logged]


# -- replies that are lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lose_reply", "mute_reply"])
@pytest.mark.parametrize("name", ["AddPartitionsToTxn", "Produce", "AddOffsetsToTxn", "TxnOffsetCommit", "EndTxn"])
async def test_the_broker_has_done_it_and_nobody_is_told(
    worker: Worker, proxy: FrameProxy, monkeypatch: pytest.MonkeyPatch, how: str, name: str
) -> None:
    if how == "mute_reply":
        make_impatient(monkeypatch)
    events = [an_event() for _ in range(3)]
    async with engines.running(worker.runtime()):
        await worker.send(events[0])
        await worker.until_written(events[0])
        lost: Rule = getattr(proxy, how)(name)
        await worker.send(events[1])
        await soon(lost.struck, f"the reply to {name} is lost")
        await worker.until_written(events[1])
        await worker.send(events[2])
        await worker.exactly(*events)


# -- a decision whose commit is not confirmed --------------------------------------------------------------------------


class Decides:
    """Handles by the stored outcomes, as the workers that have a database do."""

    def __init__(self, database: Database, group: str) -> None:
        self.database = database
        self.group = group
        self.decided: list[str] = []

    async def handle(self, delivery: Delivery) -> Sequence[OrderEvent]:
        async def decision(connection: "Connection") -> list[OrderEvent]:
            self.decided.append(delivery.event.event_id)
            effect = f"{self.group} {delivery.event.event_id}"
            await connection.execute("insert into consumer_groups values ($1, $2)", effect, str(len(self.decided)))
            return outputs_of(delivery)

        return await outcomes.decide(self.database, delivery, decision)

    async def effects(self) -> int:
        rows = await engines.fetch(
            self.database, "select from consumer_groups where starts_with(group_name, $1)", self.group
        )
        return len(rows)


@contextlib.asynccontextmanager
async def deciding(
    worker: Worker, postgres: PostgresServer, *, patience: float = 5.0
) -> AsyncIterator[tuple[Decides, FrameProxy]]:
    async with (
        proxied_postgres(postgres) as (before_postgres, settings),
        engines.opened(settings.model_copy(update={"command_timeout": patience})) as database,
    ):
        yield Decides(database, worker.group), before_postgres


@pytest.mark.parametrize("how", ["lose_reply", "mute_reply", "reset"])
async def test_a_commit_without_an_answer_is_decided_once(
    worker: Worker, proxy: FrameProxy, postgres: PostgresServer, logged: list[EventDict], how: str
) -> None:
    first, second = an_event(), an_event()
    async with deciding(worker, postgres, patience=1.0 if how == "mute_reply" else 5.0) as (decides, before_postgres):
        async with engines.running(worker.runtime(decides.handle)):
            commit: Rule = getattr(before_postgres, how)("COMMIT")
            await worker.send(first)
            await soon(commit.struck, "the first decision is being committed")
            await worker.until_written(first)
            await worker.send(second)
            await worker.exactly(first, second)
        assert await decides.effects() == 2
    again = [first.event_id] if how == "reset" else []  # else it was committed: its outcome is replayed
    if how != "mute_reply":  # on a busy machine more than the lost reply may seem to time out
        assert decides.decided == [first.event_id, *again, second.event_id]
    assert ("order.replayed" in [entry["event"] for entry in logged]) == (how != "reset")


async def test_a_commit_that_comes_while_it_is_decided_again_counts_once(
    worker: Worker, proxy: FrameProxy, postgres: PostgresServer, logged: list[EventDict]
) -> None:
    event = an_event()
    async with deciding(worker, postgres) as (decides, before_postgres):
        async with engines.running(worker.runtime(decides.handle)):
            commit = before_postgres.hold("COMMIT")
            await worker.send(event)
            await soon(commit.struck, "the decision is being committed")
            commit.reset_client()
            await engines.eventually(lambda: len(decides.decided) > 1, "it is decided again")
            assert await commit.release(), "the first decision is committed"
            await worker.exactly(event)
        assert await decides.effects() == 1, "the second was rolled back"
    assert "order.replayed" in [entry["event"] for entry in logged]
