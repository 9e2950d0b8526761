"""Reads topics while the system writes them, and judges what it reads: what was lost, doubled, or ended wrongly."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from bench import orders
from bench.results import WrongResultError
from bench.system import BenchSystem
from messaging import clients
from messaging.topics import NOTIFICATIONS, ORDERS, PAYMENTS, Topic
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType

IDLE_SECONDS: Final = 60.0
"""The system has stopped if nothing arrives for so long."""
_LATE_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.01


class Reader:
    """What was committed to a topic so far: `arrived` is when each key was first seen, monotonic, seconds."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._began = time.monotonic()
        self.arrived: dict[str, float] = {}
        self.records = 0
        self.wrong: list[str] = []

    def take(self, record: Any, now: float) -> None:
        """Takes in a record."""
        self.records += 1
        self.arrived.setdefault(record.key.decode(), now)

    async def read(self) -> None:
        """Reads until it is cancelled."""
        while True:
            batches = await self._consumer.getmany(timeout_ms=100)
            now = time.monotonic()
            for records in batches.values():
                for record in records:
                    self.take(record, now)

    async def until(self, condition: Callable[[], bool], *, idle: float = IDLE_SECONDS) -> None:
        """Waits until the condition holds, or nothing has come for so many seconds."""
        seen, since = self.records, time.monotonic()
        while not condition():
            if self.records != seen:
                seen, since = self.records, time.monotonic()
            if time.monotonic() - since > idle:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def late(self) -> None:
        """Waits for what comes although nothing should."""
        await asyncio.sleep(_LATE_SECONDS)

    def check(self, ids: Collection[str], *, each: int = 1) -> None:
        """Checks that there are so many records of each of the orders, and no others.

        Raises:
            WrongResultError: there are not.
        """
        lost = len({*ids} - self.arrived.keys())
        strange = len(self.arrived.keys() - {*ids})
        doubled = self.records - each * len(ids)
        if lost or strange or doubled or self.wrong:
            raise WrongResultError(
                f"of {len(ids)} orders: {lost} lost, {strange} that nobody placed, {doubled} records more than "
                f"{each} for each, {len(self.wrong)} ended otherwise than they had to ({self.wrong[:3]})"
            )


class Ends(Reader):
    """The topic `payments`: how orders ended."""

    def take(self, record: Any, now: float) -> None:
        """Takes in the end of an order."""
        order_id = record.key.decode()
        if order_id not in self.arrived and OrderEvent.FromString(record.value).type != orders.ends_as(order_id):
            self.wrong.append(order_id)
        super().take(record, now)

    def steady_rate(self) -> float:
        """Returns orders a second from the first tenth to the last: without start and end.

        Where these came at once, as few orders do, it is from the reader's start.
        """
        times = sorted(self.arrived.values())
        early, late = times[len(times) // 10], times[-1 - len(times) // 10]
        if late <= early:
            return len(times) / (late - self._began)
        return 0.8 * len(times) / (late - early)


class Decisions(Reader):
    """The topic `orders` after the ORDER_CREATED: what the order processor made of them."""

    steady_rate = Ends.steady_rate

    def take(self, record: Any, now: float) -> None:
        """Takes in a decision."""
        event_type = OrderEvent.FromString(record.value).type
        if event_type == OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED:
            return
        if event_type != OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING:
            self.wrong.append(record.key.decode())
        super().take(record, now)


class Notifications(Reader):
    """The topic `notifications`. What is told twice counts as wrong."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        super().__init__(consumer)
        self._seen: set[int] = set()

    def take(self, record: Any, now: float) -> None:
        """Takes in a notification."""
        event = hash(dict(record.headers)["ce_id"])
        if event in self._seen:
            self.wrong.append(record.key.decode())
        self._seen.add(event)
        super().take(record, now)


_TOPICS: Final[dict[type[Reader], Topic]] = {
    Reader: ORDERS,
    Decisions: ORDERS,
    Ends: PAYMENTS,
    Notifications: NOTIFICATIONS,
}


@contextlib.asynccontextmanager
async def reading(system: BenchSystem, kind: type[Reader]) -> AsyncIterator[Any]:
    """Reads the topic of a kind of Reader from its beginning meanwhile, and yields the reader."""
    topic = _TOPICS[kind]
    consumer = clients.consumer(system.kafka_settings, client_id="bench", group=None)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        reader = kind(consumer)
        task = asyncio.create_task(reader.read())
        try:
            yield reader
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    finally:
        await consumer.stop()


async def check_stored(system: BenchSystem, count: int) -> None:
    """Checks that the topic of orders has so many orders, and each once.

    Raises:
        WrongResultError: some that were answered OK are not there, or others are.
    """
    async with reading(system, Reader) as stored:
        await stored.until(lambda: stored.records >= count, idle=5)
        await stored.late()
        if stored.records != count or len(stored.arrived) != count:
            raise WrongResultError(
                f"{count} orders were answered OK; stored are {len(stored.arrived)}, in {stored.records} records"
            )
