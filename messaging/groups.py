"""The first start of a consumer group (semantics 18).

A group is known once its first start has committed the beginning of every partition and recorded that in PostgreSQL.
From then on a missing offset is a loss and not a beginning.
"""

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from messaging import aiokafka_internals, clients
from messaging.topics import Topic
from settings import KafkaSettings
from telemetry import logs

log = logs.get()


class Registration(Protocol):
    """One group's registration, held against other processes while it is open."""

    async def is_known(self, topic: str) -> bool:
        """Whether the group was started on the topic before."""
        ...

    async def remember(self, topic: str) -> None:
        """Records that it was."""
        ...


class GroupRegistry(Protocol):
    """Where groups are recorded."""

    def registration(self, group: str) -> AbstractAsyncContextManager[Registration]:
        """Opens a group's registration; one process at a time, committed when it closes without an error."""
        ...


async def ensure_known(
    registry: GroupRegistry, *, group: str, topics: Collection[Topic], kafka: KafkaSettings, client_id: str
) -> None:
    """Commits the first offsets of a group that starts for the first time, and records it.

    Raises:
        DependencyDown: PostgreSQL is away.
        KafkaError: Kafka is away, or refuses.
    """
    if not topics:
        return
    async with registry.registration(group) as registration:
        new = [topic for topic in topics if not await registration.is_known(topic.name)]
        if not new:
            return
        consumer = clients.consumer(kafka, client_id=client_id, group=group)
        try:
            await consumer.start()
            partitions = [TopicPartition(topic.name, n) for topic in new for n in range(topic.partitions)]
            consumer.assign(partitions)
            beginnings = await consumer.beginning_offsets(partitions)
            # A crash between the commit and the record leaves offsets behind: those stay.
            missing = {
                partition: OffsetAndMetadata(beginnings[partition], "")
                for partition in partitions
                if await aiokafka_internals.read_committed(consumer, partition) is None
            }
            if missing:
                await consumer.commit(missing)
        finally:
            await aiokafka_internals.discard_consumer(consumer, seconds=5)
        for topic in new:
            await registration.remember(topic.name)
        log.info("worker.group.registered", group=group, topics=[topic.name for topic in new])
