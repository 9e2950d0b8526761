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
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from domain.failures import Failure, Permanent
from domain.records import Coordinates
from messaging import aiokafka_internals, funnel, retry, transaction
from messaging.dependency_gate import DependencyGate
from messaging.handling import Delivered, RecordHandling, readable
from messaging.lag import Standing
from messaging.linger import MOST_SKIPPED, longest_wait
from messaging.topics import DEAD_LETTERS, Topic
from messaging.transaction import Done, OutputRefusedError
from messaging.window import Window
from messaging.worker import Claim, Handler, Limits, WorkerSpec
from telemetry import logs, metrics

log = logs.get()

_IDLE_COMMIT_SECONDS: Final = 1.0
_FENCED_WAIT_SECONDS: Final = 3.0  # three heartbeats: a process that lost the partition learns of it before it reopens
_REOPEN_WAIT_SECONDS: Final = 0.5
_PROBES: Final = 8


class GroupOffsetLostError(Exception):
    """A known group has no usable offset: going on would lose records or handle a week of them again (semantics 18)."""


class ConsumerStuckError(Exception):
    """A partition does not open although no request fails: the consumer is to be replaced by a new one."""


class DeadLetterRefusedError(Exception):
    """The broker refused a dead letter for good: the topics are not as `orderflow topics apply` makes them."""


class ProducerSuspectError(Exception):
    """A transaction was committed, but one of its requests was sent twice: the producer is opened anew."""


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
        self._limits = limits
        self._consumer = consumer
        self._new_producer = new_producer
        self._gate = gate
        self._refused = refused
        self._tiers = tiers
        self._handling = RecordHandling(
            partition,
            spec=spec,
            handle=handle,
            limits=limits,
            gate=gate,
            refused=refused,
            tiers=tiers,
            claim=claim,
            is_owned=lambda: self._is_open,
        )
        self._log = log.bind(worker=spec.group, topic=partition.topic, partition=partition.partition)

        self._producer: AIOKafkaProducer | None = None
        self._producer_suspect = False
        self._window = Window(0)
        self._is_open = False
        self._draining = False
        self._queues: dict[bytes | None, collections.deque[Delivered]] = {}
        self._ready: collections.deque[bytes | None] = collections.deque()
        self._beyond: collections.deque[ConsumerRecord] = collections.deque()
        self._delivered: collections.deque[tuple[int, float]] = collections.deque()
        self._tasks: set[asyncio.Task[None]] = set()
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
            # While a dependency is down a partition with few records still fetches: something must be there to probe,
            # and not only one record for which it is down and for no other.
            and (self._gate.down is None or self._window.unfinished < _PROBES)
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
        """Why its records wait, empty if they do not. While a dependency is down they do, though it takes some more."""
        if not self._is_open:
            return "opening"
        if self._gate.down is not None and self._window.unfinished:
            return "dependency_down"
        return "" if self.wants_records else "busy"

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
            self._delivered.append((record.offset, self._handling.wanted_at(record)))
            past = retry.provenance_of(record, self._tiers)
            event = readable(record, past)
            if event is not None and event.type not in self._spec.handles:
                self._skip(record.offset)  # before anything is shown of it: there is nothing to see
                continue
            delivered = Delivered(record, past, event)
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
        self._handling.give_up_waiting()
        await self._end(set(self._tasks))
        self._wake.set()
        self._due.set()
        if not self._is_open:
            task.cancel()
        await asyncio.wait([task], timeout=self._limits.transaction + 5)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=5)
        self._log.info("worker.partition.closed")

    async def _end(self, handling: "set[asyncio.Task[None]]") -> None:
        """Lets what is being handled end, within the limit."""
        if not handling:
            return
        _, late = await asyncio.wait(handling, timeout=self._limits.drain)
        for each in late:
            each.cancel()
        if late:
            await asyncio.wait(late)

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
        self._handling.begin()
        self._is_open = True
        self._log.info("worker.partition.opened", offset=offset)

    def _suspect(self) -> None:
        self._producer_suspect = True

    async def _start_over(self, wait: float) -> None:
        self._is_open = False
        # What is only waiting is given up. The others may be half-way through a send or a charge: what came of it is
        # stored, and told by the next handling.
        self._handling.give_up_waiting()
        await self._end(set(self._tasks))
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
        while queue and self._is_open and not self._draining:
            done = await self._handling.handle(queue[0])
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
        self._deliver()

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
