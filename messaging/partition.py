"""One assigned partition: handles its records in parallel, commits what is done exactly once.

Invariants (docs/semantics.md, "The worker runtime" and 12 to 18):
- The partition's producer is started before the committed offset is read, so nothing of the last owner is pending.
- Records of one key are handled one after the other, in the order of their offsets; different keys in parallel.
- A record's outputs, or its dead letter, and the offset that says it is done are in one transaction.
- Before the commit every output has been acknowledged: aiokafka's commit does not look.
- After anything but a clean commit the producer is dropped, everything in flight is forgotten, and the partition starts
  over from what is committed. Handlers answer a replay with their stored outcome, so this is always safe.
- Nothing of an incarnation is committed by a later one.
"""

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata

import fault_points
from domain.failures import DependencyDown, Failure, Permanent, Transient
from domain.records import Coordinates, Delivery
from messaging import aiokafka_internals, dead_letters, envelope, funnel, retry, spans, transaction
from messaging.dependency_gate import DependencyGate
from messaging.envelope import OutgoingRecord
from messaging.handling_limit import HandlingLimit
from messaging.lag import Standing
from messaging.linger import MOST_SKIPPED, longest_wait
from messaging.retry import Provenance
from messaging.topics import DEAD_LETTERS, Topic
from messaging.transaction import Done, OutputRefusedError
from messaging.window import Window
from messaging.worker import Claim, Handler, Limits, WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEvent
from telemetry import logs, metrics, tracing

log = logs.get()
T = TypeVar("T")

_IDLE_COMMIT_SECONDS: Final = 1.0
_FENCED_WAIT_SECONDS: Final = 3.0  # three heartbeats: a process that lost the partition learns of it before it reopens
_REOPEN_WAIT_SECONDS: Final = 0.5
HANDLING_LIMIT: Final = "HANDLING_LIMIT"


class GroupOffsetLostError(Exception):
    """A known group has no usable offset: going on would lose records or handle a week of them again (semantics 18)."""


class ConsumerStuckError(Exception):
    """A partition does not open although no request fails: the consumer is to be replaced by a new one."""


class DeadLetterRefusedError(Exception):
    """The broker refused a dead letter for good: the topics are not as `orderflow topics apply` makes them."""


class ProducerSuspectError(Exception):
    """A transaction was committed, but one of its requests was sent twice: the producer is opened anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Delivered:
    """A record to be handled. `event` is None where it cannot be read: handling it says why."""

    record: ConsumerRecord
    past: Provenance
    event: OrderEvent | None


def _readable(record: ConsumerRecord, past: Provenance) -> OrderEvent | None:
    try:
        return envelope.decode(past.origin.topic, record.key, record.value)
    except Failure:
        return None


def _this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


class PartitionRunner:
    """Runs one partition from its assignment until it is drained. `run` is its life, `accept` feeds it."""

    def __init__(
        self,
        partition: TopicPartition,
        *,
        spec: WorkerSpec,
        handle: Handler,
        limits: Limits,
        consumer: AIOKafkaConsumer,
        new_producer: Callable[[TopicPartition], AIOKafkaProducer],
        gate: DependencyGate,
        refused: dict[Coordinates, Failure],
        tiers: Sequence[Topic],
        claim: Claim | None,
    ) -> None:
        """`refused` outlives the runner: records whose outputs Kafka would not take, which become dead letters.

        `tiers` are the group's retry topics, `claim` decides which copy of a replayed dead letter counts.
        """
        self.partition = partition
        self._spec = spec
        self._handle = handle
        self._limits = limits
        self._consumer = consumer
        self._new_producer = new_producer
        self._gate = gate
        self._refused = refused
        self._tiers = tiers
        self._claim = claim
        self._delay = retry.delay_of(partition.topic, tiers)
        self._waits = metrics.WAIT.labels(spec.group)
        self._limit = HandlingLimit(limits.handling)
        self._log = log.bind(worker=spec.group, topic=partition.topic, partition=partition.partition)

        self._producer: AIOKafkaProducer | None = None
        self._producer_suspect = False
        self._window = Window(0)
        self._is_open = False
        self._draining = False
        self._queues: dict[bytes | None, collections.deque[_Delivered]] = {}
        self._ready: collections.deque[bytes | None] = collections.deque()
        self._beyond: collections.deque[ConsumerRecord] = collections.deque()
        self._delivered: collections.deque[tuple[int, float]] = collections.deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._done: list[Done] = []
        self._done_with_outputs = False
        self._skipped = 0
        self._wake = asyncio.Event()
        self._longest_wait = 0.0
        self._due = asyncio.Event()
        self._crash: BaseException | None = None

    # -- what the worker sees ------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it has a producer and stands where the group does."""
        return self._is_open

    @property
    def wants_records(self) -> bool:
        """Whether the partition is to be handed records."""
        return (
            self._is_open
            and not self._draining
            # While a dependency is down a partition without records still fetches: something must be there to probe.
            and (self._gate.down is None or not self._window.unfinished)
            and self._window.unfinished < 2 * self._limits.max_in_flight
            and not self._beyond
        )

    @property
    def is_draining(self) -> bool:
        """Whether it was told to end."""
        return self._draining

    @property
    def standing(self) -> Standing:
        """Where the partition stands. While it is not open the oldest record is the last one known."""
        while self._is_open and self._delivered and not self._window.awaits(self._delivered[0][0]):
            self._delivered.popleft()
        oldest = self._delivered[0][1] if self._delivered else None
        return Standing(self.partition, self._window.committed if self._is_open else None, oldest)

    @property
    def paused_by(self) -> str:
        """Why it wants no records, if it wants none."""
        if not self._is_open:
            return "opening"
        return "dependency_down" if self._gate.down is not None else "busy"

    @property
    def handling(self) -> int:
        """Keys whose records are being handled."""
        return len(self._tasks)

    @property
    def unfinished(self) -> int:
        """Records delivered and not committed."""
        return self._window.unfinished

    def accept(self, records: Iterable[ConsumerRecord]) -> None:
        """Takes fetched records. While the partition is not open they are dropped: opening it seeks back to them."""
        if not self._is_open or self._draining:
            return
        before = len(self._beyond)
        self._beyond.extend(records)
        fetched = len(self._beyond) - before
        metrics.CONSUMED.labels("kafka", "poll", self.partition.topic, self._spec.group).inc(fetched)
        self._deliver()

    def _deliver(self) -> None:
        """Takes records in, as far as the window reaches."""
        while self._beyond and self._window.takes(self._beyond[0].offset):
            record = self._beyond.popleft()
            if not self._window.deliver(record.offset):
                continue
            self._delivered.append((record.offset, self._wanted_at(record)))
            past = retry.provenance_of(record, self._tiers)
            event = _readable(record, past)
            if event is not None and event.type not in self._spec.handles:
                self._skip(record.offset)  # before anything is shown of it: there is nothing to see
                continue
            delivered = _Delivered(record, past, event)
            queue = self._queues.get(record.key)
            if queue is None:
                self._queues[record.key] = collections.deque((delivered,))
                self._ready.append(record.key)
            else:
                queue.append(delivered)
        self._start_ready()

    async def run(self) -> None:
        """Opens the partition and commits what gets done, over again after each failure, until `drain` ends it.

        Raises:
            GroupOffsetLostError: the group's offset is missing or out of range.
            ConsumerStuckError: opening takes longer than any of its requests may.
        """
        try:
            while not self._draining:
                try:
                    await self._open()
                    await self._commit_as_done()
                except (ProducerFenced, InvalidProducerEpoch) as error:
                    metrics.TRANSACTIONS.labels(self._spec.group, "fenced").inc()
                    self._log.warning("worker.partition.fenced", error=repr(error))
                    await self._start_over(_FENCED_WAIT_SECONDS)
                except ProducerSuspectError:
                    await self._start_over(0.0)
                except (KafkaError, AssertionError, TimeoutError, OutputRefusedError) as error:
                    metrics.TRANSACTIONS.labels(self._spec.group, "abort").inc()
                    self._log.warning("worker.partition.reopened", error=repr(error))
                    await self._start_over(_REOPEN_WAIT_SECONDS)
        finally:
            self._is_open = False
            for task in self._tasks:
                task.cancel()
            await self._close_producer(flush_seconds=0.0 if self._producer_suspect else 2.0)

    async def drain(self, task: "asyncio.Task[None]") -> None:
        """Ends `run`, whose task is given: finishes and commits what is being handled, within the limit."""
        self._draining = True
        for waiting in list(self._waiting):
            waiting.cancel()
        if handling := set(self._tasks):
            _, late = await asyncio.wait(handling, timeout=self._limits.drain)
            for each in late:
                each.cancel()
            if late:
                await asyncio.wait(late)
        self._wake.set()
        self._due.set()
        if not self._is_open:
            task.cancel()
        await asyncio.wait([task], timeout=self._limits.transaction + 5)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=5)
        self._log.info("worker.partition.closed")

    # -- opening -------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        producer = self._new_producer(self.partition)
        self._producer = producer
        self._producer_suspect = False
        aiokafka_internals.watch_transactional_requests(producer, self._suspect)
        try:
            async with asyncio.timeout(self._limits.opening):
                await producer.start()
                committed = await aiokafka_internals.read_committed(self._consumer, self.partition)
                first = (await self._consumer.beginning_offsets([self.partition]))[self.partition]
                last = (await self._consumer.end_offsets([self.partition]))[self.partition]
        except TimeoutError as error:
            raise ConsumerStuckError(f"{self.partition} did not open in {self._limits.opening} s") from error
        if committed is None or not first <= committed[0] <= last:
            raise GroupOffsetLostError(
                f"{self._spec.group} stands at {committed[0] if committed else 'no offset'} of {self.partition.topic}-"
                f"{self.partition.partition}, which holds {first} to {last}; see docs/operations.md"
            )
        offset, metadata = committed
        self._window = Window(offset, metadata)
        self._delivered.clear()
        self._consumer.seek(self.partition, offset)
        self._is_open = True
        self._log.info("worker.partition.opened", offset=offset)

    def _suspect(self) -> None:
        self._producer_suspect = True

    async def _start_over(self, wait: float) -> None:
        self._is_open = False
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._queues.clear()
        self._ready.clear()
        self._beyond.clear()
        self._done.clear()
        self._done_with_outputs = False
        self._skipped = 0
        await self._close_producer(flush_seconds=0.0)
        await asyncio.sleep(wait)

    async def _close_producer(self, *, flush_seconds: float) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await aiokafka_internals.discard_producer(producer, flush_seconds=flush_seconds)

    # -- handling ------------------------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        while self._ready and not self._draining and len(self._tasks) < self._limits.max_in_flight:
            task = asyncio.create_task(self._handle_key(self._ready.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._key_ended)

    def _key_ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._is_open:
            self._start_ready()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = error
            self._wake.set()
            self._due.set()

    async def _handle_key(self, key: bytes | None) -> None:
        queue = self._queues[key]
        while queue and not self._draining:
            done = await self._handle_record(queue[0])
            queue.popleft()
            self._note(done)
        if not queue:
            del self._queues[key]

    def _skip(self, offset: int) -> None:
        """Has the next commit pass a record that nothing follows from. It waits for nobody and takes no slot.

        Else whoever skips most of a topic, as the payment processor does new orders, would be slow to get past them.
        """
        self._window.finish(offset)
        self._skipped += 1
        self._wake.set()
        if self._skipped >= MOST_SKIPPED:
            self._due.set()

    def _note(self, done: Done) -> None:
        """Notes that a record is done, and wakes the commit if the transaction need not wait any longer."""
        self._done.append(done)
        self._done_with_outputs = self._done_with_outputs or bool(done.outputs)
        self._wake.set()
        if self._may_wait() < self._longest_wait:
            self._due.set()

    async def _handle_record(self, delivered: _Delivered) -> Done:
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
                with spans.processing(record, self._spec.group, attempt=past.attempts, links=past.links) as span:
                    try:
                        if self._refused and (refusal := self._refused.get(self._at(record.offset))) is not None:
                            raise refusal
                        outputs = await self._attempt(record, past, event)
                        if past.tier:
                            fault_points.reached("W14")
                        return Done(record.offset, outputs)
                    except Failure as failure:
                        span.failed(failure.error_class)
                        past = past.failed(datetime.datetime.now(datetime.UTC), span.traceparent)
                        if not isinstance(failure, Transient) or failure.error_class == HANDLING_LIMIT:
                            return self._given_up(record, past, failure)
                        if in_place >= self._limits.attempts:
                            return self._given_up(record, past, failure)
                        self._count_retry("in_place", record, past, failure)
                await self._back_off(in_place)

    def _given_up(self, record: ConsumerRecord, past: Provenance, failure: Failure) -> Done:
        """Parks a record that failed for now, while there is a retry topic and time left; else it is a dead letter."""
        assert past.first_failure is not None
        age = datetime.datetime.now(datetime.UTC) - past.first_failure
        in_time = age.total_seconds() < self._limits.retry_limit
        if isinstance(failure, Transient) and past.tier < len(self._tiers) and in_time:
            topic = self._tiers[past.tier]
            self._count_retry(topic.name, record, past, failure)
            return Done(
                record.offset, [retry.parked(record, dataclasses.replace(past, tier=past.tier + 1), topic)], "parked"
            )
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

    def _wanted_at(self, record: ConsumerRecord) -> float:
        """Returns since when the record is to be handled, seconds since 1970: since it was written, or is due."""
        written: int = record.timestamp
        return written / 1000 + self._delay

    async def _until_due(self, record: ConsumerRecord) -> None:
        late = time.time() - self._wanted_at(record)
        if self._delay and late < 0:
            with self._interruptible():
                await asyncio.sleep(-late)
        self._waits.observe(max(late, 0.0))

    async def _claimed(self, record: ConsumerRecord, past: Provenance) -> bool:
        claim, here = self._claim, self._at(record.offset)
        assert claim is not None
        return await self._through_gate(record, lambda: claim(origin=past.origin, replay=past.replay, by=here))

    async def _attempt(
        self, record: ConsumerRecord, past: Provenance, event: OrderEvent | None
    ) -> list[OutgoingRecord]:
        """Handles the record once, waiting while a dependency is down.

        Raises:
            Failure: Permanent or Transient. What the handler did not foresee counts as transient.
        """
        if event is None:
            event = envelope.decode(past.origin.topic, record.key, record.value)
        delivery = Delivery(event, self._spec.group, past.origin, past.attempts, lambda: self._is_open)
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
    def _interruptible(self) -> "collections.abc.Iterator[None]":
        """While it holds, the record is only waiting: draining gives it up at once."""
        task = _this_task()
        if self._draining:
            task.cancel()
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)

    # -- committing ----------------------------------------------------------------------------------------------

    async def _commit_as_done(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_IDLE_COMMIT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                await self._commit_position()
                continue
            await self._wait_for_more()
            self._wake.clear()
            if self._crash is not None:
                raise self._crash  # a bug of the runtime: the process ends, it never stays alive and idle
            if self._draining and self._tasks:
                continue  # drain() wakes again when they have ended or have to
            done, self._done, self._done_with_outputs = self._done, [], False
            skipped, self._skipped = self._skipped, 0
            if done or skipped:
                await self._commit(done, skipped=skipped)
            if self._draining and not (self._done or self._tasks):
                return

    async def _wait_for_more(self) -> None:
        """Lets more records get done before the transaction, for as long as it may wait (messaging.linger)."""
        since = asyncio.get_running_loop().time()
        while not self._draining and self._crash is None and (self._done or self._skipped):
            self._longest_wait = self._may_wait()
            if (left := since + self._longest_wait - asyncio.get_running_loop().time()) <= 0:
                return
            self._due.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._due.wait()

    def _may_wait(self) -> float:
        return longest_wait(
            done=len(self._done),
            skipped=self._skipped,
            with_outputs=self._done_with_outputs,
            under_way=self._window.unfinished - len(self._done),
            most=self._limits.max_in_flight,
            linger=self._spec.linger,
        )

    async def _commit_position(self) -> None:
        """Moves the committed offset past markers when nothing else does, so that lag reaches 0."""
        if self._window.unfinished or self._done or self._skipped or self._beyond or self._draining:
            return
        async with asyncio.timeout(_IDLE_COMMIT_SECONDS):
            position: int = await self._consumer.position(self.partition)
        if position > self._window.committed and not self._window.unfinished:
            await self._transact([], *self._window.advance(position))
            self._replace_suspect()

    def _replace_suspect(self) -> None:
        """After a transactional request was sent again: a late first copy must meet a producer of a later epoch."""
        if self._producer_suspect:
            self._log.warning("worker.transaction.suspect")
            raise ProducerSuspectError

    async def _commit(self, done: list[Done], *, skipped: int) -> None:
        for each in done:
            self._window.finish(each.offset)
        offset, metadata = self._window.advance()
        await self._transact(done, offset, metadata)
        self._deliver()
        funnel.acknowledged(record for each in done for record in each.outputs)
        counts = collections.Counter[str](each.outcome for each in done)
        counts["handled"] += skipped
        for outcome, count in counts.items():
            metrics.DONE.labels(self._spec.group, self.partition.topic, outcome).inc(count)
        if self._refused:
            for each in done:
                self._refused.pop(self._at(each.offset), None)
        metrics.LAST_PROGRESS.labels(self._spec.group).set_to_current_time()
        self._replace_suspect()

    async def _transact(self, done: list[Done], offset: int, metadata: str) -> None:
        # Cancelling a commit half-way would leave the producer in a state of its own: it runs in a task that is not.
        assert self._producer is not None
        committing = asyncio.create_task(
            transaction.commit(
                self._producer,
                done,
                group=self._spec.group,
                partition=self.partition,
                position=OffsetAndMetadata(offset, metadata),
            )
        )
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._limits.transaction + 5):
                await asyncio.shield(committing)
        except OutputRefusedError as refusal:
            self._refuse(refusal.done, refusal.error)
            raise
        finally:
            if not committing.done():
                committing.cancel()
                await asyncio.wait([committing])
        metrics.TRANSACTIONS.labels(self._spec.group, "commit").inc()
        metrics.COMMIT_METADATA.labels(self._spec.group, self.partition.topic, str(self.partition.partition)).set(
            len(metadata)
        )
        metrics.TRANSACTION_DURATION.labels(self._spec.group).observe(time.perf_counter() - started)

    def _refuse(self, done: Done, error: BaseException) -> None:
        if any(record.topic == DEAD_LETTERS for record in done.outputs):
            raise DeadLetterRefusedError(f"{error!r}; run `orderflow topics plan`") from error
        self._log.error("worker.record.output_refused", offset=done.offset, error=repr(error))
        self._refused[self._at(done.offset)] = Permanent(
            "OUTPUT_REFUSED", f"Kafka refused an output: {type(error).__name__}"
        )

    def _at(self, offset: int) -> Coordinates:
        return Coordinates(self.partition.topic, self.partition.partition, offset)
