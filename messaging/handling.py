"""Handling one record to its end: attempts, waits, retry topics, and the dead letter where nothing helps."""

import asyncio
import contextlib
import dataclasses
import datetime
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from aiokafka import ConsumerRecord, TopicPartition

import fault_points
from domain.failures import DependencyDown, Failure, Transient
from domain.records import Coordinates, Delivery
from messaging import dead_letters, envelope, retry, spans
from messaging.dependency_gate import DependencyGate
from messaging.envelope import OutgoingRecord
from messaging.handling_limit import HandlingLimit
from messaging.retry import Provenance
from messaging.topics import Topic
from messaging.transaction import Done
from messaging.worker import Claim, Handler, Limits, WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEvent
from telemetry import logs, metrics, tracing

log = logs.get()
T = TypeVar("T")

HANDLING_LIMIT: Final = "HANDLING_LIMIT"


@dataclasses.dataclass(frozen=True, slots=True)
class Delivered:
    """A record to be handled. `event` is None where it cannot be read: handling it says why."""

    record: ConsumerRecord
    past: Provenance
    event: OrderEvent | None


def readable(record: ConsumerRecord, past: Provenance) -> OrderEvent | None:
    """Returns the event of a record, None if it cannot be read."""
    try:
        return envelope.decode(past.origin.topic, record.key, record.value)
    except Failure:
        return None


class RecordHandling:
    """Handles the records of one partition, each by itself. What is done with the results is the partition's."""

    def __init__(
        self,
        partition: TopicPartition,
        *,
        spec: WorkerSpec,
        handle: Handler,
        limits: Limits,
        gate: DependencyGate,
        refused: Mapping[Coordinates, Failure],
        tiers: Sequence[Topic],
        claim: Claim | None,
        is_owned: Callable[[], bool],
    ) -> None:
        """`refused` are records whose outputs Kafka would not take, `is_owned` is handed on to the handler.

        `tiers` are the group's retry topics, `claim` decides which copy of a replayed dead letter counts.
        """
        self._spec = spec
        self._handle = handle
        self._limits = limits
        self._gate = gate
        self._refused = refused
        self._tiers = tiers
        self._claim = claim
        self._is_owned = is_owned
        self._delay = retry.delay_of(partition.topic, tiers)
        self._waits = metrics.WAIT.labels(spec.group)
        self._limit = HandlingLimit(limits.handling)
        self._log = log.bind(worker=spec.group, topic=partition.topic, partition=partition.partition)
        self._waiting: set[asyncio.Task[Any]] = set()
        self._given_up = False

    def begin(self) -> None:
        """Records are handled from now on."""
        self._given_up = False

    def give_up_waiting(self) -> None:
        """Cancels whoever is only waiting, now or later: for a record to be due, for a dependency, for another try."""
        self._given_up = True
        for task in list(self._waiting):
            task.cancel()

    async def handle(self, delivered: Delivered) -> Done:
        """Returns what came of the record: outputs, its place on a retry topic, or its dead letter."""
        record, past, event = delivered.record, delivered.past, delivered.event
        with tracing.continued(record.headers):
            await self._until_due(record)
            # Parked since, it was claimed before: it stands elsewhere by now, and is no other copy.
            is_fresh_replay = past.replay and not past.tier
            if is_fresh_replay and self._claim is not None and not await self._claimed(record, past):
                self._log.info("worker.replay.claimed_elsewhere", offset=record.offset)
                return Done(record.offset, [])
            in_place = 0
            while True:
                in_place += 1
                past = past.attempted()
                may_be_parked = self._may_be_parked(past)
                is_last_here = in_place >= self._limits.attempts
                with spans.processing(record, self._spec.group, attempt=past.attempts, links=past.links) as span:
                    try:
                        if self._refused and (refusal := self._refused.get(_at(record))) is not None:
                            raise refusal
                        is_last = is_last_here and not may_be_parked
                        outputs = await self._attempt(record, past, event, is_last=is_last)
                        if past.tier:
                            fault_points.reached("W14")
                        return Done(record.offset, outputs)
                    except Failure as failure:
                        span.failed(failure.error_class)
                        if not self._is_owned():
                            raise asyncio.CancelledError from failure  # it comes again: nothing of this one is kept
                        past = past.failed(datetime.datetime.now(datetime.UTC), span.traceparent)
                        is_transient = isinstance(failure, Transient)
                        if is_last_here or not is_transient or failure.error_class == HANDLING_LIMIT:
                            if is_transient and may_be_parked:
                                return self._parked(record, past, failure)
                            return self._dead(record, past, failure)
                        self._count_retry("in_place", record, past, failure)
                await self._back_off(in_place)

    def _may_be_parked(self, past: Provenance) -> bool:
        """Whether there is a retry topic and time left for a record that fails for now."""
        if past.tier >= len(self._tiers):
            return False
        if past.first_failure is None:
            return True
        return (datetime.datetime.now(datetime.UTC) - past.first_failure).total_seconds() < self._limits.retry_limit

    def _parked(self, record: ConsumerRecord, past: Provenance, failure: Failure) -> Done:
        topic = self._tiers[past.tier]
        self._count_retry(topic.name, record, past, failure)
        parked = retry.parked(record, dataclasses.replace(past, tier=past.tier + 1), topic)
        return Done(record.offset, [parked], "parked")

    def _dead(self, record: ConsumerRecord, past: Provenance, failure: Failure) -> Done:
        kind = "transient" if isinstance(failure, Transient) else "permanent"
        metrics.DEAD_LETTERS.labels(self._spec.group, failure.error_class, kind).inc()
        self._log.warning(
            "worker.record.dead_lettered", offset=record.offset, error_class=failure.error_class, attempts=past.attempts
        )
        letter = dead_letters.dead_letter(record, past=past, group=self._spec.group, failure=failure)
        return Done(record.offset, [letter], "dead_lettered")

    def _count_retry(self, tier: str, record: ConsumerRecord, past: Provenance, failure: Failure) -> None:
        metrics.RETRIES.labels(self._spec.group, tier, failure.error_class).inc()
        fields = {"offset": record.offset, "error_class": failure.error_class, "attempt": past.attempts}
        if tier == "in_place":
            self._log.info("worker.record.retried", **fields)
        else:
            self._log.info("worker.record.parked", **fields)

    def wanted_at(self, record: ConsumerRecord) -> float:
        """Returns since when the record is to be handled, seconds since 1970: since it was written, or is due."""
        written: int = record.timestamp
        return written / 1000 + self._delay

    async def _until_due(self, record: ConsumerRecord) -> None:
        late = time.time() - self.wanted_at(record)
        if self._delay and late < 0:
            with self._interruptible():
                await asyncio.sleep(-late)
        self._waits.observe(max(late, 0.0))

    async def _claimed(self, record: ConsumerRecord, past: Provenance) -> bool:
        claim, here = self._claim, _at(record)
        assert claim is not None
        return await self._through_gate(record, lambda: claim(origin=past.origin, replay=past.replay, by=here))

    async def _attempt(
        self, record: ConsumerRecord, past: Provenance, event: OrderEvent | None, *, is_last: bool
    ) -> list[OutgoingRecord]:
        """Handles the record once, waiting while a dependency is down.

        Raises:
            Failure: Permanent or Transient. What the handler did not foresee counts as transient.
        """
        if event is None:
            event = envelope.decode(past.origin.topic, record.key, record.value)
        delivery = Delivery(event, self._spec.group, past.origin, past.attempts, is_last, self._is_owned)
        logs.about(
            order_id=event.order.order_id,
            correlation_id=event.metadata.correlation_id,
            worker=self._spec.group,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
        events = await self._through_gate(record, lambda: self._handle(delivery))
        return [envelope.encode(emitted) for emitted in events]

    async def _through_gate(self, record: ConsumerRecord, action: Callable[[], Awaitable[T]]) -> T:
        """Runs one handling within its limit, over again for as long as a dependency is down.

        Raises:
            Failure: Permanent or Transient.
        """
        task = _this_task()
        while True:
            probe = await self._admit()
            started = time.perf_counter()
            outcome, is_late = "", False
            self._limit.begin(task)
            try:
                try:
                    result = await action()
                finally:
                    is_late = self._limit.end(task)
                self._gate.answered(probe=probe)
                return result
            except DependencyDown as down:
                outcome = down.error_class
                self._gate.failed(down, probe=probe)
            except Failure as failure:
                outcome = failure.error_class
                self._gate.answered(probe=probe)
                raise
            except Exception as error:
                self._gate.answered(probe=probe)
                if is_late:
                    outcome = HANDLING_LIMIT
                    raise self._over_limit() from None
                # The text of an error that nobody foresaw may hold personal data: only its class goes on.
                outcome = "UNEXPECTED_ERROR"
                raise Transient(outcome, f"{type(error).__module__}.{type(error).__qualname__}") from error
            except asyncio.CancelledError:
                if is_late and not task.cancelling():
                    self._gate.answered(probe=probe)
                    outcome = HANDLING_LIMIT
                    raise self._over_limit() from None
                if probe:
                    self._gate.withdrawn()
                if task.cancelling():
                    raise
                # Something inside was cancelled, not this record: left alone it would never be done.
                outcome = "UNEXPECTED_ERROR"
                raise Transient(outcome, "something that the handler waited for was cancelled") from None
            finally:
                metrics.of(
                    metrics.PROCESS_DURATION, "kafka", "process", record.topic, self._spec.group, outcome
                ).observe(time.perf_counter() - started, tracing.exemplar())

    def _over_limit(self) -> Transient:
        return Transient(HANDLING_LIMIT, f"handling took longer than {self._limits.handling} s")

    async def _admit(self) -> bool:
        if self._gate.down is None:
            return False
        with self._interruptible():
            return await self._gate.admit()

    async def _back_off(self, attempt: int) -> None:
        longest = min(self._limits.backoff_base * 2 ** (attempt - 1), self._limits.backoff_cap)
        with self._interruptible():
            await asyncio.sleep(random.uniform(0, longest))  # noqa: S311

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """While it holds, the record is only waiting: it is given up at once where the partition is."""
        task = _this_task()
        if self._given_up:
            task.cancel()
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)


def _at(record: ConsumerRecord) -> Coordinates:
    return Coordinates(record.topic, record.partition, record.offset)


def _this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task
