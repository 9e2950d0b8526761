"""A partition's runner with doubles of Kafka's clients: they acknowledge everything."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from prometheus_client import REGISTRY

from messaging import aiokafka_internals, envelope
from messaging.dependency_gate import DependencyGate
from messaging.partition import PartitionRunner
from messaging.topics import ORDERS, retry_topics
from messaging.worker import Handler, Limits, WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEventType
from tests.builders import a_group, a_record, order_created
from tests.engines import eventually
from tests.spans import CALLER

E = OrderEventType
PARTITION = TopicPartition("orders", 0)
LIMITS = Limits(attempts=2, backoff_base=0.001, backoff_cap=0.001, dependency_probe_cap=0.01)


class Producer:
    """Acknowledges everything."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, bytes]]] = []
        self.transactions = 0

    async def start(self) -> None: ...
    async def send_offsets_to_transaction(self, *_: object) -> None: ...
    async def commit_transaction(self) -> None: ...

    async def begin_transaction(self) -> None:
        self.transactions += 1

    async def send(self, topic: str, *, key: object, value: object, headers: Any) -> "asyncio.Future[object]":
        self.sent.append((topic, dict(headers)))
        acknowledged: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged


class Consumer:
    def __init__(self, end: int) -> None:
        self.end = end

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.end)

    async def position(self, _: TopicPartition) -> int:
        return 1

    def seek(self, *_: object) -> None: ...


@pytest.fixture(name="kafka")
def doubled_kafka(monkeypatch: pytest.MonkeyPatch) -> Producer:
    async def committed(*_: object) -> tuple[int, str]:
        return 0, ""

    async def discarded(*_: object, **__: object) -> None: ...

    monkeypatch.setattr(aiokafka_internals, "read_committed", committed)
    monkeypatch.setattr(aiokafka_internals, "discard_producer", discarded)
    monkeypatch.setattr(aiokafka_internals, "watch_transactional_requests", lambda *_: None)
    monkeypatch.setattr(aiokafka_internals, "add", lambda *_, **__: None)  # as it says where `send` is to be called
    return Producer()


class Ran:
    def __init__(self, runner: PartitionRunner, group: str) -> None:
        self.runner = runner
        self.group = group

    async def done(self, *records: ConsumerRecord) -> None:
        self.runner.accept(records)
        name = "orderflow_worker_done_records_total"
        outcomes = ("handled", "parked", "dead_lettered")
        await eventually(
            lambda: sum(self.metric(name, topic="orders", outcome=each) for each in outcomes) == len(records),
            "all done",
        )

    def metric(self, name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"group": self.group, **labels}) or 0.0


@contextlib.asynccontextmanager
async def running(
    kafka: Producer, handle: Handler, *handles: E, limits: Limits = LIMITS, linger: float = 0.0
) -> AsyncIterator[Ran]:
    group = a_group()
    runner = PartitionRunner(
        PARTITION,
        spec=WorkerSpec(group, (ORDERS,), frozenset(handles or {E.ORDER_EVENT_TYPE_ORDER_CREATED}), linger),
        handle=handle,
        limits=limits,
        consumer=Consumer(end=999),  # type: ignore[arg-type]
        new_producer=lambda _: kafka,  # type: ignore[arg-type, return-value]
        gate=DependencyGate(group, probe_cap=0.01),
        refused={},
        tiers=retry_topics(group, (10,)),
        claim=None,
    )
    task = asyncio.create_task(runner.run())
    await eventually(lambda: runner.wants_records, "open")
    try:
        yield Ran(runner, group)
    finally:
        await runner.drain(task)


def a_placed_record(offset: int = 0, **changes: Any) -> ConsumerRecord:
    """A record of a new order, in the caller's trace."""
    record = envelope.encode(order_created())
    headers = [header for header in record.headers if header[0] != "traceparent"]
    fields: dict[str, Any] = {"key": record.key, "partition": 0, "offset": offset, "headers": [*headers, CALLER]}
    return a_record(record.value, **fields | changes)
