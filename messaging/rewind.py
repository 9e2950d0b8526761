"""Takes consumer groups back after a restore of the database: Kafka knows them ahead of what is decided there."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from messaging import aiokafka_internals, clients
from messaging.topics import GROUPS, retry_topics
from messaging.window import MAX_SPAN
from settings import KafkaSettings

_CLIENT: Final = "orderflow-restored"
_REACH: Final = 2 * MAX_SPAN
"""Offsets before the last record with an outcome that may have none.

Between two commits records are delivered up to MAX_SPAN past the oldest that is not done, and what is done counts from
the next commit on only. Further back everything is done.
"""


class GroupRunsError(Exception):
    """A group has members: its processes must be stopped first."""


@dataclasses.dataclass(frozen=True)
class Rewound:
    """Where a group stood in a partition, and where it stands now.

    `gone`: Kafka has deleted so many offsets between what the database knows to be handled and where the partition
    begins; their records are handled by nobody.
    """

    group: str
    topic: str
    partition: int
    before: int
    now: int
    gone: int


async def require_stopped(kafka: KafkaSettings) -> None:
    """Checks that no process works for any group.

    Raises:
        GroupRunsError: one does.
        KafkaError: Kafka is away, or refuses.
    """
    admin = clients.admin(kafka, client_id=_CLIENT)
    try:
        await admin.start()
        for group in GROUPS:
            for response in await admin.describe_consumer_groups([group]):
                for code, _, state, _, _, members, *_ in response.groups:
                    if members:
                        raise GroupRunsError(f"{group} has {len(members)} members ({state}): stop its processes first")
                    del code  # of a group that nobody has started yet: it has no members either
    finally:
        await admin.close()


async def rewind(kafka: KafkaSettings, handled: Mapping[tuple[str, str, int], int]) -> list[Rewound]:
    """Takes every group back to the first record that may have no outcome; never forward. Repeating it is harmless.

    A retry topic is read from its beginning: the outcomes of its records stand under those that they stem from.

    Args:
        kafka: where.
        handled: the last record with an outcome, by group, topic and partition.

    Raises:
        KafkaError: Kafka is away, or refuses: a group with members, for one.
    """
    done: list[Rewound] = []
    for group in GROUPS:
        consumer = clients.consumer(kafka, client_id=_CLIENT, group=group)
        try:
            await consumer.start()
            done += await _rewind(consumer, kafka, group, handled)
        finally:
            await aiokafka_internals.discard_consumer(consumer, seconds=5)
    return done


async def _rewind(
    consumer: AIOKafkaConsumer, kafka: KafkaSettings, group: str, handled: Mapping[tuple[str, str, int], int]
) -> Sequence[Rewound]:
    committed = await _committed(kafka, group)
    beginnings = await consumer.beginning_offsets(list(committed)) if committed else {}
    own = {topic.name for topic in retry_topics(group, kafka.retry_delay_seconds)}
    done = []
    for at, before in sorted(committed.items()):
        first = beginnings[at]
        last = handled.get((group, at.topic, at.partition))
        now = first if last is None or at.topic in own else max(first, last - _REACH)
        gone = max(first - last - 1, 0) if last is not None and first <= before else 0
        done.append(Rewound(group, at.topic, at.partition, before, min(now, before), gone))
    consumer.assign(list(committed))
    # Without metadata: what is done past the offset is for the outcomes to tell.
    await consumer.commit(
        {TopicPartition(each.topic, each.partition): OffsetAndMetadata(each.now, "") for each in done}
    )
    return done


async def _committed(kafka: KafkaSettings, group: str) -> dict[TopicPartition, int]:
    admin = clients.admin(kafka, client_id=_CLIENT)
    try:
        await admin.start()
        found = await admin.list_consumer_group_offsets(group)
        return {at: committed.offset for at, committed in found.items() if committed.offset >= 0}
    finally:
        await admin.close()
