"""The worker runtime: one consumer, one runner per assigned partition, from the first poll to the last commit."""

import asyncio
import collections
from collections.abc import Iterable
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from domain.failures import Failure
from domain.records import Coordinates
from messaging import aiokafka_internals, clients
from messaging.dependency_gate import DependencyGate
from messaging.lag import LagReport
from messaging.partition import ConsumerStuckError, PartitionRunner
from messaging.topics import Topic
from messaging.worker import Claim, Handler, Limits, WorkerSpec
from settings import KafkaSettings
from telemetry import logs, metrics

log = logs.get()

_POLL_MS: Final = 200
_BUSY_POLL_MS: Final = 20
"""While some partitions want no records: how long one of them may wait for its next ones once it does."""
_MOST_RECORDS: Final = 500
_RETRY_SECONDS: Final = 1.0
_PACE_SECONDS: Final = 0.2
_NOBODY: Final = (TopicPartition("", 0),)
"""Polled for when no partition wants records: polling for none means all, and not polling at all leaves the group."""


class WorkerRuntime:
    """Runs one worker in this process. `run` returns when drained and raises on a fatal error."""

    def __init__(
        self,
        spec: WorkerSpec,
        handle: Handler,
        *,
        kafka: KafkaSettings,
        limits: Limits,
        client_id: str,
        tiers: tuple[Topic, ...] = (),
        claim: Claim | None = None,
    ) -> None:
        """Connects nothing. `tiers` are the group's own retry topics, `claim` decides on replayed dead letters."""
        self._spec = spec
        self._handle = handle
        self._kafka = kafka
        self._limits = limits
        self._tiers = tiers
        self._claim = claim
        self._client_id = client_id
        self._gate = DependencyGate(spec.group, probe_cap=limits.dependency_probe_cap)
        self._runners: dict[TopicPartition, tuple[PartitionRunner, asyncio.Task[None]]] = {}
        self._refused: dict[Coordinates, Failure] = {}
        self._lag = LagReport(
            spec.group, lambda: [runner.standing for runner, _ in self._runners.values()], every_seconds=limits.lag
        )
        self._consumer: AIOKafkaConsumer | None = None
        self._joined = False
        self._fatal: BaseException | None = None
        self._runner_ended = asyncio.Event()

    @property
    def registers(self) -> tuple[Topic, ...]:
        """The topics that the group commits offsets of."""
        return self._spec.reads + self._tiers

    @property
    def is_ready(self) -> bool:
        """Whether the worker can make progress: it has joined its group and nothing that it needs is away."""
        return self._joined and self._gate.down is None

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then drains.

        Raises:
            GroupOffsetLostError: see messaging.partition.
            KafkaError: one that does not pass by itself.
        """
        while not stop.is_set():
            consumer = await clients.started_consumer(
                self._kafka, client_id=self._client_id, group=self._spec.group, stop=stop
            )
            if consumer is None:
                return
            self._consumer = consumer
            lag = asyncio.create_task(self._lag.run(consumer))
            stopping = asyncio.create_task(stop.wait())
            polling = asyncio.create_task(self._keep_polling(consumer, stop))
            try:
                while not (polling.done() or lag.done() or stopping.done()):
                    # Beside it: during a rebalance a poll may wait for ever, and an end must be noticed all the same.
                    ended = asyncio.create_task(self._runner_ended.wait())
                    await asyncio.wait([polling, lag, ended, stopping], return_when=asyncio.FIRST_COMPLETED)
                    ended.cancel()
                    self._runner_ended.clear()
                    self._raise_fatal()
                for running in (polling, lag):
                    if running.done():
                        running.result()
            except ConsumerStuckError as error:
                log.warning("worker.consumer.replaced", worker=self._spec.group, error=str(error))
            finally:
                self._joined = False
                self._consumer = None
                for task in (lag, stopping, polling):
                    task.cancel()
                await asyncio.wait([polling])
                await self.revoke(list(self._runners))
                await aiokafka_internals.discard_consumer(consumer, seconds=5)
            if isinstance(self._fatal, ConsumerStuckError):
                self._fatal = None
            self._raise_fatal()

    async def _keep_polling(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        consumer.subscribe([topic.name for topic in self.registers], listener=_Rebalances(self, consumer))
        while not stop.is_set():
            fetched = await self._poll(consumer)
            if self._spec.linger and 0 < fetched < _MOST_RECORDS:
                await asyncio.sleep(_PACE_SECONDS)  # nobody waits for them: those that come meanwhile come together

    async def _poll(self, consumer: AIOKafkaConsumer) -> int:
        """Hands fetched records to their runners. Returns how many there were."""
        wanting = [partition for partition, (runner, _) in self._runners.items() if runner.wants_records]
        timeout = _POLL_MS if len(wanting) == len(self._runners) else _BUSY_POLL_MS
        try:
            # Cancelled only when the consumer ends: the position moves when it returns, so a lost result is a skipped
            # record.
            fetched = await consumer.getmany(*wanting or _NOBODY, timeout_ms=timeout, max_records=_MOST_RECORDS)
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("worker.poll.failed", worker=self._spec.group, error=repr(error))
            await asyncio.sleep(_RETRY_SECONDS)
            return 0
        # No await between the fetch and this: positions and windows move together.
        for partition, records in fetched.items():
            if partition in self._runners:
                self._runners[partition][0].accept(records)
        self._fetch_from_open(consumer)
        unfinished = sum(runner.unfinished for runner, _ in self._runners.values())
        if not unfinished:
            self._gate.nothing_waits()
        self._show(unfinished)
        return sum(map(len, fetched.values()))

    def _fetch_from_open(self, consumer: AIOKafkaConsumer) -> None:
        """Pauses the partitions that are not open.

        One that only wants no records is not polled for instead, and keeps what was fetched for it: polled for a paused
        one, aiokafka throws that away and fetches the same again.
        """
        assigned = consumer.assignment()
        for partition, (runner, _) in self._runners.items():
            if partition not in assigned:
                continue
            if runner.is_open:
                consumer.resume(partition)
            else:
                consumer.pause(partition)

    def _show(self, unfinished: int) -> None:
        group = self._spec.group
        runners = [runner for runner, _ in self._runners.values()]
        paused = collections.Counter(runner.paused_by for runner in runners)
        for reason in ("opening", "dependency_down", "busy"):
            metrics.PAUSED.labels(group, reason).set(paused[reason])
        metrics.IN_FLIGHT.labels(group).set(unfinished)
        used = sum(runner.handling for runner in runners)
        metrics.SLOTS.labels(group, "used").set(used)
        metrics.SLOTS.labels(group, "free").set(len(runners) * self._limits.max_in_flight - used)

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        for runner, task in self._runners.values():
            # While a rebalance drains, runners end one after the other before they are forgotten together.
            if task.done() and not runner.is_draining:
                task.result()
                raise AssertionError("a partition's runner ended by itself")

    def assign(self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Starts a runner for each partition. Must not await: no heartbeat is sent meanwhile."""
        if self._consumer is None or consumer is not self._consumer:
            return  # it is being closed: a join that was under way has ended after all
        self._joined = True
        metrics.REBALANCES.labels(self._spec.group).inc()
        for partition in partitions:
            # Before anything else: aiokafka hands out records before this callback has ended. Paused on a
            # placeholder it neither fetches nor looks for an offset by itself.
            consumer.pause(partition)
            consumer.seek(partition, 0)
            runner = PartitionRunner(
                partition,
                spec=self._spec,
                handle=self._handle,
                limits=self._limits,
                consumer=consumer,
                new_producer=self._new_producer,
                gate=self._gate,
                refused=self._refused,
                tiers=self._tiers,
                claim=self._claim,
            )
            task = asyncio.create_task(runner.run())
            task.add_done_callback(lambda _: self._runner_ended.set())
            self._runners[partition] = (runner, task)

    async def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Drains the partitions' runners: what is being handled is finished and committed within the limit."""
        leaving = [self._runners[partition] for partition in partitions if partition in self._runners]
        await asyncio.gather(*(runner.drain(task) for runner, task in leaving))
        for runner, task in leaving:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                self._fatal = error
            self._runners.pop(runner.partition, None)

    def _new_producer(self, partition: TopicPartition) -> AIOKafkaProducer:
        return clients.transactional_producer(
            self._kafka,
            client_id=self._client_id,
            transactional_id=f"{self._spec.group}.{partition.topic}.{partition.partition}",
            timeout_ms=int(self._limits.transaction * 1000),
        )


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands rebalances to the runtime. aiokafka swallows what these raise, so failures are kept for `run`."""

    def __init__(self, runtime: WorkerRuntime, consumer: AIOKafkaConsumer) -> None:
        self._runtime = runtime
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._runtime.revoke(list(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._runtime.assign(self._consumer, assigned)
