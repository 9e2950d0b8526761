"""The ingress's producer: a record is durable, or not handed over, or of unknown outcome. Never a hang."""

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from messaging import aiokafka_internals, clients, funnel
from messaging.envelope import OutgoingRecord
from settings import KafkaSettings
from telemetry import logs, metrics, tracing

log = logs.get()

_RETRY_SECONDS: Final = 0.5
_START_SECONDS: Final = 10.0
_FLUSH_SECONDS: Final = 5.0
_MOST_WAITING_BYTES: Final = 64 * 1024 * 1024


class NotHandedOver(Exception):
    """Nothing was given to Kafka, or Kafka refused it: the record does not exist and never will."""


class TooManyWaiting(NotHandedOver):
    """As many records as may wait for Kafka do: it is slow, or just went away."""


class OutcomeUnknown(Exception):
    """The record was given to Kafka and was not acknowledged in time: it may exist, now or later."""


class _Waiting:
    """What one producer holds: records that Kafka has not acknowledged, also those that nobody waits for any more."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self._shares: dict[asyncio.Future[object], list[int]] = {}

    def add(self, size: int) -> None:
        self.records += 1
        self.bytes += size

    def remove(self, size: int) -> None:
        self.records -= 1
        self.bytes -= size

    def until(self, acknowledged: "asyncio.Future[object]", size: int) -> None:
        """Removes what was added once that is done. Many records may share it."""
        share = self._shares.get(acknowledged)
        if share is None:
            share = self._shares[acknowledged] = []
            acknowledged.add_done_callback(self._settle)
        share.append(size)

    def _settle(self, acknowledged: "asyncio.Future[object]") -> None:
        for size in self._shares.pop(acknowledged):
            self.remove(size)
        if not acknowledged.cancelled():
            acknowledged.exception()  # retrieved, also where its callers have gone


class Publisher:
    """An idempotent producer with `acks=all` that is replaced when it cannot be trusted any more."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str, most_waiting: int = 10_000) -> None:
        """Connects nothing. `most_waiting` records may be handed over and not acknowledged."""
        self._kafka = kafka
        self._client_id = client_id
        self._most_waiting = most_waiting
        self._producer: AIOKafkaProducer | None = None
        self._waiting = _Waiting()
        self._starting: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether there is a producer to hand records to."""
        return self._producer is not None

    def start(self) -> None:
        """Begins to open a producer, and goes on trying until Kafka answers."""
        metrics.UNACKNOWLEDGED.set_function(lambda: self.waiting_records)
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        while True:
            producer = clients.idempotent_producer(self._kafka, client_id=self._client_id)
            try:
                async with asyncio.timeout(_START_SECONDS):
                    await producer.start()
                self._producer, self._waiting = producer, _Waiting()
                return
            except asyncio.CancelledError:
                await aiokafka_internals.discard_producer(producer)
                raise
            except Exception as error:  # nobody awaits this task, and without a producer the server takes no order
                log.warning("publisher.waiting", error=repr(error))
                await aiokafka_internals.discard_producer(producer)
                await asyncio.sleep(_RETRY_SECONDS)

    @property
    def waiting_records(self) -> int:
        """Records that were handed over and are not acknowledged."""
        return self._waiting.records

    async def publish(self, record: OutgoingRecord, *, timeout: float) -> None:
        """Returns when Kafka has acknowledged the record. `timeout` is in seconds.

        Raises:
            NotHandedOver: the record does not exist.
            OutcomeUnknown: it may exist.
        """
        [failure] = await self.publish_all([record], timeout=timeout)
        if failure is not None:
            raise failure

    async def publish_all(
        self, records: Sequence[OutgoingRecord], *, timeout: float
    ) -> list[NotHandedOver | OutcomeUnknown | None]:
        """Hands the records over together and waits for all, `timeout` seconds at most.

        Returns, in their order, None for each that Kafka has acknowledged, and why not for each other.
        """
        started = time.perf_counter()
        failures = await self._publish_all(records, timeout=timeout)
        failed = ""
        if any(failures):
            for record, failure in zip(records, failures, strict=True):
                if failure is not None:
                    failed = failed or type(failure).__name__
                    record.span.failed(type(failure).__name__)
                    record.span.end()
        funnel.acknowledged(record for record, failure in zip(records, failures, strict=True) if failure is None)
        for topic in {each.topic.name for each in records}:
            metrics.of(metrics.SEND_DURATION, "kafka", "send", topic, failed).observe(
                time.perf_counter() - started, tracing.exemplar()
            )
        return failures

    async def _publish_all(
        self, records: Sequence[OutgoingRecord], *, timeout: float
    ) -> list[NotHandedOver | OutcomeUnknown | None]:
        producer, waiting = self._producer, self._waiting
        if producer is None:
            return [NotHandedOver("Kafka is not reachable") for _ in records]
        if timeout <= 0:
            return [NotHandedOver("no time is left") for _ in records]
        deadline = asyncio.get_running_loop().time() + timeout
        handed_over: list[asyncio.Future[object] | NotHandedOver] = []
        try:
            for record in records:
                given = self._add(producer, waiting, record)
                # One after the other and no tasks: it waits only while a partition has a whole batch to send.
                handed_over.append(given or await self._send(producer, waiting, record, deadline))
        except TimeoutError:
            late = len(records) - len(handed_over)
            handed_over += [NotHandedOver("no room, or no leader for the partition") for _ in range(late)]
        acknowledgements = {each for each in handed_over if isinstance(each, asyncio.Future)}
        await _all_done(acknowledgements, deadline)
        failures = {each: self._failure(producer, each) for each in acknowledgements}
        return [failures[each] if isinstance(each, asyncio.Future) else each for each in handed_over]

    def _add(
        self, producer: AIOKafkaProducer, waiting: _Waiting, record: OutgoingRecord
    ) -> "asyncio.Future[object] | NotHandedOver | None":
        """Hands the record over, as nearly every one is. None: it has to wait, or to be refused."""
        if waiting.records >= self._most_waiting or waiting.bytes >= _MOST_WAITING_BYTES:
            return TooManyWaiting("Kafka is slow")
        key, value = record.key, record.value
        if key is None or value is None:
            return None
        acknowledged = aiokafka_internals.add(producer, record.topic.name, key=key, value=value, headers=record.headers)
        if acknowledged is not None:
            waiting.add(len(value))
            waiting.until(acknowledged, len(value))
        return acknowledged

    async def _send(
        self, producer: AIOKafkaProducer, waiting: _Waiting, record: OutgoingRecord, deadline: float
    ) -> "asyncio.Future[object] | NotHandedOver":
        """Hands the record over; raises TimeoutError if there was no room until the deadline."""
        size = len(record.value or b"")
        waiting.add(size)
        try:
            async with asyncio.timeout_at(deadline):
                acknowledged: asyncio.Future[object] = await producer.send(
                    record.topic.name, key=record.key, value=record.value, headers=record.headers
                )
        except (KafkaError, AssertionError) as error:
            waiting.remove(size)
            self._replace(producer, error)
            return NotHandedOver(type(error).__name__)
        except BaseException:
            waiting.remove(size)
            raise
        waiting.until(acknowledged, size)
        return acknowledged

    def _failure(
        self, producer: AIOKafkaProducer, acknowledged: "asyncio.Future[object]"
    ) -> NotHandedOver | OutcomeUnknown | None:
        if not acknowledged.done() or acknowledged.cancelled():
            return OutcomeUnknown("Kafka did not acknowledge in time")
        refusal = acknowledged.exception()
        if refusal is None:
            return None
        self._replace(producer, refusal)
        kind = NotHandedOver if isinstance(refusal, clients.TOO_LARGE) else OutcomeUnknown
        return kind(type(refusal).__name__)

    def _replace(self, producer: AIOKafkaProducer, error: BaseException) -> None:
        """Drops the producer: a refused record has spent a sequence number, so all later ones would be refused too."""
        if self._producer is producer:
            log.warning("publisher.replaced", error=repr(error))
            self._producer = None
            closing = asyncio.create_task(aiokafka_internals.discard_producer(producer, flush_seconds=_FLUSH_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self.start()

    async def close(self) -> None:
        """Delivers what is pending, within a limit, and closes."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        producer, self._producer = self._producer, None
        if producer is not None:
            await aiokafka_internals.discard_producer(producer, flush_seconds=_FLUSH_SECONDS)
        if self._closing:
            await asyncio.wait(self._closing, timeout=_FLUSH_SECONDS)


async def _all_done(futures: "Collection[asyncio.Future[object]]", deadline: float) -> None:
    """Waits for futures until the deadline and, as asyncio.wait does, cancels none: in a quarter of the time."""
    if not futures:
        return
    loop = asyncio.get_running_loop()
    pending = len(futures)
    done = loop.create_future()

    def end() -> None:
        if not done.done():
            done.set_result(None)

    def count(_: "asyncio.Future[object]") -> None:
        nonlocal pending
        pending -= 1
        if not pending:
            end()

    for future in futures:
        future.add_done_callback(count)
    timer = loop.call_at(deadline, end)
    try:
        await done
    finally:
        timer.cancel()
