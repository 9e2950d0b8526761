"""How far a worker is behind, shown per partition while the partition is its own."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from telemetry import metrics

_ANSWER_SECONDS: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """Where a partition stands.

    `committed` is None while that is not known. `oldest` is since when the oldest record that is not done waits,
    seconds since 1970; None if there is none.
    """

    partition: TopicPartition
    committed: int | None
    oldest: float | None


class LagReport:
    """Keeps the metrics of one group up to date."""

    def __init__(
        self,
        group: str,
        standings: Callable[[], Iterable[Standing]],
        *,
        every_seconds: float = 5.0,
        caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        """`standings` returns those of the partitions that are the process's own at the moment.

        `caught_up` is told at each report that finds nothing left to be done in any of them.
        """
        self._group = group
        self._standings = standings
        self._every_seconds = every_seconds
        self._caught_up = caught_up
        self._shown: set[TopicPartition] = set()

    async def run(self, consumer: AIOKafkaConsumer) -> None:
        """Reports until cancelled, and then forgets: another process shows the partitions by now."""
        try:
            while True:
                await asyncio.sleep(self._every_seconds)
                await self.report(consumer)
        finally:
            self._forget(self._shown)

    async def report(self, consumer: AIOKafkaConsumer) -> None:
        """Reports once. The age needs no Kafka, so that it rises while Kafka is away."""
        standings = list(self._standings())
        self._forget(self._shown - {each.partition for each in standings})
        for each in standings:
            age = time.time() - each.oldest if each.oldest is not None else 0.0
            metrics.OLDEST_AGE.labels(*self._labels(each.partition)).set(max(age, 0.0))
            self._shown.add(each.partition)
        with contextlib.suppress(KafkaError, TimeoutError, AssertionError):  # the assignment may be gone by now
            async with asyncio.timeout(_ANSWER_SECONDS):
                known = [(each.partition, each.committed) for each in standings if each.committed is not None]
                ends = await consumer.end_offsets([partition for partition, _ in known]) if known else {}
                for partition, committed in known:
                    position = await consumer.position(partition)
                    labels = self._labels(partition)
                    metrics.LAG.labels(*labels).set(max(ends[partition] - position, 0))
                    metrics.COMMIT_LAG.labels(*labels).set(max(position - committed, 0))
                if all(each.committed == ends.get(each.partition, -1) and each.oldest is None for each in standings):
                    self._caught_up()

    def _labels(self, partition: TopicPartition) -> tuple[str, str, str]:
        return self._group, partition.topic, str(partition.partition)

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in list(partitions):
            self._shown.discard(partition)
            for gauge in (metrics.OLDEST_AGE, metrics.LAG, metrics.COMMIT_LAG, metrics.COMMIT_METADATA):
                gauge.remove(*self._labels(partition))
