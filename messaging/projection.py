"""The projector's runtime: its offsets live in the database, in the same transaction as the rows they stand for.

Invariants (semantics 32):
- A batch is written together with the position it leads to, and only if the position is where the batch began: a
  process that lost the partition writes nothing. What one poll fetched is one transaction, unless a position moved.
- The position kept is the consumer's, past transaction markers, not the last offset plus one.
- A record that cannot be read is recorded in the database and passed; nothing is written to Kafka.
- A consumer with which a partition does not open is replaced: it is never alive and idle.
"""

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

import fault_points
from domain.failures import DependencyDown, Failure, Transient
from domain.projection import PositionMoved, ProjectionBatch
from domain.records import Coordinates
from messaging import aiokafka_internals, clients, dead_letters, envelope, retry, spans
from messaging.lag import LagReport, Standing
from messaging.partition import ConsumerStuckError, GroupOffsetLostError
from messaging.topics import DEAD_LETTERS, Topic
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from settings import KafkaSettings
from telemetry import logs, metrics, tracing

log = logs.get()

_POLL_MS: Final = 200
_MOST_RECORDS: Final = 2_000
_RETRY_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 1.0
_LAST_BATCH_SECONDS: Final = 1.0


class ReadModel(Protocol):
    """Where batches go. Every method raises DependencyDown when it is away."""

    async def apply(self, *batches: ProjectionBatch) -> None:
        """Writes batches and moves their positions: all, or nothing.

        Raises PositionMoved if one of them does not begin where its position is.
        """
        ...

    async def position(self, topic: str, partition: int) -> int | None:
        """Returns where the next batch begins; None if the partition was never read."""
        ...

    async def begin(self, topic: str, partition: int, position: int) -> None:
        """Records the first position of a partition that was never read."""
        ...


class ProjectionRuntime:
    """Runs the projector in this process. `run` returns when told to stop and raises on a fatal error."""

    def __init__(
        self,
        *,
        group: str,
        reads: Sequence[Topic],
        read_model: ReadModel,
        kafka: KafkaSettings,
        client_id: str,
        opening_seconds: float = 45.0,
        lag_seconds: float = 5.0,
    ) -> None:
        """Connects nothing. `opening_seconds` is above what one request of opening a partition may take.

        Every `lag_seconds` it shows how far it is behind.
        """
        self._group = group
        self._reads = reads
        self._read_model = read_model
        self._kafka = kafka
        self._client_id = client_id
        self._opening_seconds = opening_seconds
        self._positions: dict[TopicPartition, int] = {}
        self._written: dict[TopicPartition, float] = {}
        self._oldest: dict[TopicPartition, float] = {}
        # Where nothing is written any more reads are not behind, however late the last event was.
        self._lag = LagReport(
            group, self._standings, every_seconds=lag_seconds, caught_up=lambda: metrics.PROJECTION_LAG.set(0)
        )
        self._opening: dict[TopicPartition, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[None] | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._down = False
        self._joined = False

    @property
    def registers(self) -> tuple[Topic, ...]:
        """None: the offsets live in the database."""
        return ()

    @property
    def is_ready(self) -> bool:
        """Whether the projector can make progress."""
        return self._joined and not self._down

    async def run(self, stop: asyncio.Event) -> None:
        """Projects until `stop` is set.

        Raises:
            GroupOffsetLostError: the topic no longer holds what comes next: records would be lost silently.
            KafkaError: one that does not pass by itself.
        """
        while (
            consumer := await clients.started_consumer(
                self._kafka, client_id=self._client_id, group=self._group, stop=stop
            )
        ) is not None:
            self._consumer = consumer
            self._failure = asyncio.get_running_loop().create_future()
            stopping = asyncio.create_task(stop.wait())
            lag = asyncio.create_task(self._lag.run(consumer))
            polling = asyncio.create_task(self._keep_polling(consumer, stop))
            try:
                # Beside it: during a rebalance a poll may wait for ever, and a failure must be noticed all the same.
                ends: list[asyncio.Future[Any]] = [self._failure, polling, lag, stopping]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for ended in ends:
                    if ended.done():
                        ended.result()
            except ConsumerStuckError as error:
                log.warning("worker.consumer.replaced", worker=self._group, error=str(error))
            finally:
                self._joined = False
                self._consumer = None
                stopping.cancel()
                lag.cancel()
                # A batch that is being written may end; a poll may never.
                await asyncio.wait([polling], timeout=_LAST_BATCH_SECONDS)
                polling.cancel()
                await asyncio.wait([polling])
                self.revoke()
                await aiokafka_internals.discard_consumer(consumer, seconds=5)

    async def _keep_polling(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        consumer.subscribe([topic.name for topic in self._reads], listener=_Rebalances(self, consumer))
        while not stop.is_set():
            await self._poll(consumer)

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        try:
            fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_MOST_RECORDS)
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("worker.poll.failed", worker=self._group, error=repr(error))
            await asyncio.sleep(_RETRY_SECONDS)
            return
        self._show_paused()
        began = time.time_ns()
        batches: dict[TopicPartition, ProjectionBatch] = {}
        for partition in list(self._positions):
            records = fetched.get(partition, ())
            position: int = await consumer.position(partition)  # does not wait: the partition has one
            idle = asyncio.get_running_loop().time() - self._written.get(partition, 0.0) > _IDLE_SECONDS
            if records or (idle and position > self._positions[partition]):
                if records:
                    self._oldest[partition] = records[0].timestamp / 1000
                batches[partition] = self._read(partition, records, position)
        for partition in await self._write(consumer, batches):
            self._oldest.pop(partition, None)
            self._projected(fetched.get(partition, ()), began)

    def _read(self, partition: TopicPartition, records: Sequence[ConsumerRecord], position: int) -> ProjectionBatch:
        batch = ProjectionBatch(partition.topic, partition.partition, self._positions[partition], position)
        metrics.of(metrics.CONSUMED, "kafka", "poll", partition.topic, self._group).inc(len(records))
        for record in records:
            at = Coordinates(record.topic, record.partition, record.offset)
            if record.topic == DEAD_LETTERS.name:
                batch.dead_letters.append((at, dead_letters.parse(record)))
                continue
            try:
                batch.events.append((at, envelope.decode(record.topic, record.key, record.value)))
                if (trace_id := tracing.trace_id_in(record.headers)) is not None:
                    batch.traces[at] = trace_id
            except Failure as failure:
                log.warning("projector.record.recorded", **at._asdict(), error_class=failure.error_class)
                kind = "transient" if isinstance(failure, Transient) else "permanent"
                metrics.DEAD_LETTERS.labels(self._group, failure.error_class, kind).inc()
                batch.failures.append((at, _failed(record, self._group, failure)))
        return batch

    async def _write(
        self, consumer: AIOKafkaConsumer, batches: dict[TopicPartition, ProjectionBatch]
    ) -> Iterable[TopicPartition]:
        """Writes what was fetched and returns whose batches were written: the others begin anew where they stood."""
        if not batches:
            return ()
        started = time.perf_counter()
        try:
            await self._read_model.apply(*batches.values())
            if any(batch.events for batch in batches.values()):
                fault_points.reached("W12")
        except DependencyDown as down:
            if not self._down:
                self._down = True
                log.warning("worker.dependency.down", group=self._group, dependency=down.dependency, error=str(down))
            for partition in batches:
                self._reopen(consumer, partition)
            return ()
        except PositionMoved:
            if len(batches) > 1:
                return await self._write_one_by_one(consumer, batches)
            [(partition, batch)] = batches.items()
            log.warning("projector.position.moved", topic=batch.topic, partition=batch.partition)
            self._reopen(consumer, partition)
            return ()
        self._written_since(started, batches)
        return batches

    async def _write_one_by_one(
        self, consumer: AIOKafkaConsumer, batches: dict[TopicPartition, ProjectionBatch]
    ) -> Iterable[TopicPartition]:
        written: list[TopicPartition] = []
        for partition, batch in batches.items():
            if self._positions.get(partition) == batch.begins:  # it was not taken, or opened anew, meanwhile
                written += await self._write(consumer, {partition: batch})
        return written

    def _written_since(self, started: float, batches: dict[TopicPartition, ProjectionBatch]) -> None:
        """Notes that the batches were written: it began at `started`, in seconds of the performance counter."""
        duration, now = time.perf_counter() - started, datetime.datetime.now(datetime.UTC)
        for partition, batch in batches.items():
            if self._positions.get(partition) == batch.begins:  # a rebalance may have taken it meanwhile
                self._positions[partition] = batch.ends
                self._written[partition] = asyncio.get_running_loop().time()
        for topic in {batch.topic for batch in batches.values()}:
            metrics.of(metrics.PROCESS_DURATION, "kafka", "process", topic, self._group, "").observe(duration)
        metrics.of(metrics.LAST_PROGRESS, self._group).set_to_current_time()
        last = [batch.events[-1][1].occur_time.ToDatetime(datetime.UTC) for batch in batches.values() if batch.events]
        if last:
            metrics.PROJECTION_LAG.set((now - min(last)).total_seconds())

    def _projected(self, records: Sequence[ConsumerRecord], began: int) -> None:
        for topic, count in collections.Counter(record.topic for record in records).items():
            metrics.DONE.labels(self._group, topic, "handled").inc(count)
        if tracing.is_on():
            for record in records:
                spans.processed(record, self._group, start_time=began, links=dead_letters.links(record))

    def _show_paused(self) -> None:
        opening = len(self._opening.keys() - self._positions.keys())
        metrics.PAUSED.labels(self._group, "opening").set(0 if self._down else opening)
        metrics.PAUSED.labels(self._group, "dependency_down").set(opening if self._down else 0)

    def _standings(self) -> list[Standing]:
        opening = [Standing(partition, None, self._oldest.get(partition)) for partition in self._opening]
        return [
            *(each for each in opening if each.partition not in self._positions),
            *(Standing(each, position, self._oldest.get(each)) for each, position in self._positions.items()),
        ]

    def assign(self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Opens each partition in a task of its own. Must not await: no heartbeat is sent meanwhile."""
        if self._consumer is None or consumer is not self._consumer:
            return  # it is being closed: a join that was under way has ended after all
        self._joined = True
        metrics.REBALANCES.labels(self._group).inc()
        for partition in partitions:
            self._reopen(consumer, partition)

    def revoke(self) -> None:
        """Forgets all partitions. What is being written is guarded by its expected position."""
        for task in self._opening.values():
            task.cancel()
        self._opening.clear()
        self._positions.clear()
        self._oldest.clear()

    def _reopen(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        self._positions.pop(partition, None)
        if partition not in consumer.assignment():
            return
        consumer.pause(partition)
        consumer.seek(partition, 0)  # a placeholder, so that aiokafka looks for no offset by itself
        if (earlier := self._opening.pop(partition, None)) is not None:
            earlier.cancel()
        self._opening[partition] = opening = asyncio.create_task(self._open(consumer, partition))
        opening.add_done_callback(self._opened)

    def _opened(self, opening: "asyncio.Task[None]") -> None:
        failed = not opening.cancelled() and opening.exception()
        if failed and self._failure is not None and not self._failure.done():
            self._failure.set_exception(failed)

    async def _open(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        while True:
            try:
                position = await self._read_model.position(partition.topic, partition.partition)
                async with asyncio.timeout(self._opening_seconds):
                    first = (await consumer.beginning_offsets([partition]))[partition]
                    last = (await consumer.end_offsets([partition]))[partition]
                if position is None:
                    await self._read_model.begin(partition.topic, partition.partition, first)
                    continue
                break
            except TimeoutError as error:
                raise ConsumerStuckError(f"{partition} did not open in {self._opening_seconds} s") from error
            except (DependencyDown, KafkaError) as error:
                if isinstance(error, KafkaError) and not error.retriable:
                    raise
                log.info("worker.waiting", worker=self._group, waits_for=repr(error))
                await asyncio.sleep(_RETRY_SECONDS)
        if not first <= position <= last:
            raise GroupOffsetLostError(
                f"{self._group} stands at {position} of {partition.topic}-{partition.partition}, which holds {first} "
                f"to {last}; see docs/operations.md"
            )
        with contextlib.suppress(KafkaError):  # the assignment may be gone: then another process opens it
            consumer.seek(partition, position)
            self._positions[partition] = position
            self._down = False
            consumer.resume(partition)


def _failed(record: ConsumerRecord, group: str, failure: Failure) -> DeadLetter:
    """Returns the failure as a dead letter; it has the same shape, and stands in the database instead of on dlq."""
    past = retry.Provenance(
        Coordinates(record.topic, record.partition, record.offset),
        record.timestamp,
        attempts=1,
        first_failure=datetime.datetime.now(datetime.UTC),
    )
    outgoing = dead_letters.dead_letter(record, past=past, group=group, failure=failure)
    return dead_letters.parse(dataclasses.replace(record, headers=tuple(outgoing.headers)))


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, runtime: ProjectionRuntime, consumer: AIOKafkaConsumer) -> None:
        self._runtime = runtime
        self._consumer = consumer

    async def on_partitions_revoked(self, _: Iterable[TopicPartition]) -> None:
        self._runtime.revoke()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._runtime.assign(self._consumer, assigned)
