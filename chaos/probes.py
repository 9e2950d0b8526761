"""Looks at the running system: metrics, offsets, tables. Shares no code with the workers."""

import asyncio
import http.client
import json
import pathlib
import urllib.request
from typing import Any, Final

import aiokafka.errors
import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from chaos.oracle import rules

Offsets = dict[str, dict[str, int]]
"""topic -> partition -> offset; partitions as text, as JSON has them."""

AWAY: Final = (aiokafka.errors.KafkaError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
"""What an Observer raises while Kafka or PostgreSQL is away."""

NO_ANSWER: Final = (OSError, http.client.HTTPException)
"""What urllib raises while the other side is away, or dies amid its answer."""


async def metric(address: str, name: str, label: str = "") -> float | None:
    """Returns a metric, summed over its series that have the label; None if the process does not answer."""
    try:
        text = await asyncio.to_thread(_scrape, f"http://{address}/metrics")
    except NO_ANSWER:
        return None
    values = [
        line.rpartition(" ")[2]
        for line in text.splitlines()
        if line.split("{")[0].split(" ")[0] == name and label in line
    ]
    return sum(map(float, values))


def _scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - loopback http
        return str(answer.read().decode())


def opened(log: pathlib.Path, since: int) -> set[TopicPartition]:
    """Returns the partitions whose producers a worker has opened, by its log from an offset in bytes on."""
    with log.open("rb") as file:
        file.seek(since)
        said = file.read()
    found = set()
    for line in said[: said.rfind(b"\n") + 1].splitlines():  # a torn last line is looked at the next time
        if line.startswith(b"{") and b'"worker.partition.opened"' in line:
            entry = json.loads(line)
            found.add(TopicPartition(entry["topic"], entry["partition"]))
    return found


class Observer:
    """Reads offsets and tables. A connection that fails is dropped, so that it survives what it looks at."""

    def __init__(self, bootstrap: str, dsn: str, topics: list[str]) -> None:
        """Connects nothing."""
        self.bootstrap = bootstrap
        self.dsn = dsn
        self.topics = topics
        self._partitions: list[TopicPartition] = []
        self._looking: dict[str, AIOKafkaConsumer] = {}

    def consumer(self, isolation_level: str) -> AIOKafkaConsumer:
        """Returns a consumer of no group."""
        return AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=None,
            isolation_level=isolation_level,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )

    async def partitions(self) -> list[TopicPartition]:
        """Returns every partition of the topics."""
        if not self._partitions:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            try:
                described = await admin.describe_topics(self.topics)
            finally:
                await admin.close()
            found = [
                TopicPartition(topic["topic"], each["partition"]) for topic in described for each in topic["partitions"]
            ]
            assert {each.topic for each in found} == set(self.topics), "a topic is missing"
            self._partitions = sorted(found)
        return self._partitions

    async def read_by(self, group: str) -> set[TopicPartition]:
        """Returns the partitions that a group reads and commits, each with a producer; none for the projector."""
        return {each for each in await self.partitions() if _reads(group, each.topic)}

    async def ends(self, isolation_level: str = "read_committed") -> Offsets:
        """Returns where readers are at the end: the last stable offset, or the high watermark if read_uncommitted."""
        partitions = await self.partitions()
        consumer, is_new = self._looking.pop(isolation_level, None), False
        if consumer is None:
            consumer, is_new = self.consumer(isolation_level), True
        try:
            if is_new:
                await consumer.start()
            found = await consumer.end_offsets(partitions)
        except BaseException:
            await consumer.stop()
            raise
        if self._looking.setdefault(isolation_level, consumer) is not consumer:
            await consumer.stop()  # another look took place meanwhile and left its own
        return _by_topic(found)

    async def close(self) -> None:
        """Closes what is kept open between looks."""
        for consumer in self._looking.values():
            await consumer.stop()
        self._looking.clear()

    async def committed(self, group: str) -> Offsets:
        """Returns a group's committed offsets."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(group)
        finally:
            await admin.close()
        return _by_topic({partition: each.offset for partition, each in offsets.items()})

    async def positions(self) -> Offsets:
        """Returns where the projector stands."""
        rows = await self.rows("select topic, partition, position from projection_positions")
        return _by_topic({TopicPartition(row["topic"], row["partition"]): row["position"] for row in rows})

    async def rows(self, query: str) -> list[dict[str, Any]]:
        """Returns a query's rows."""
        connection = await asyncpg.connect(self.dsn, timeout=5)
        try:
            return [dict(row) for row in await connection.fetch(query)]
        finally:
            await connection.close(timeout=5)

    async def lag(self, role: str, ends: Offsets) -> int:
        """Returns how many records a worker has not passed of those before `ends`."""
        if role == "projector":
            stands, topics = await self.positions(), list(rules.PROJECTED)
        else:
            stands = await self.committed(role)
            topics = [topic for topic in ends if _reads(role, topic)]
        return sum(
            max(end - stands.get(topic, {}).get(partition, 0), 0)
            for topic in topics
            for partition, end in ends.get(topic, {}).items()
        )


def _reads(group: str, topic: str) -> bool:
    return topic in rules.READS.get(group, ()) or topic.startswith(f"{group}.retry.")


def _by_topic(offsets: dict[TopicPartition, int]) -> Offsets:
    found: Offsets = {}
    for partition, offset in offsets.items():
        found.setdefault(partition.topic, {})[str(partition.partition)] = offset
    return found
