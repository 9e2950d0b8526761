"""How far a group is behind, seen from outside: also where none of its processes runs."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from messaging import aiokafka_internals, clients
from messaging.retry import delay_of
from messaging.topics import Topic
from messaging.window import Window
from settings import KafkaSettings

_CLIENT_ID: Final = "orderflow-backlog"
_POLL_MS: Final = 200
_CLOSE_SECONDS: Final = 2.0

Place = tuple[int, str]
"""A group's position on a partition, and what its commit says beside it."""


@dataclasses.dataclass(frozen=True)
class Backlog:
    """What a group has before it on one partition.

    Attributes:
        partition: Which.
        is_known: Whether the group has a position there. Without one it never started, or lost it: nothing is known.
        is_lost: Whether the position is outside of what Kafka has: records were deleted that the group had not handled,
            or the topic is another one.
        records: At most so many are to be handled: transaction markers between them are counted too.
        since: Since when the oldest of them is to be handled, seconds since 1970; None: there is none.
    """

    partition: TopicPartition
    is_known: bool = True
    is_lost: bool = False
    records: int = 0
    since: float | None = None


async def committed(kafka: KafkaSettings, group: str, topics: Sequence[Topic]) -> dict[TopicPartition, Place | None]:
    """Returns where a group stands by its commits; None where it has none. It is not joined.

    Raises:
        KafkaError: Kafka is away, or refuses.
    """
    consumer = clients.consumer(kafka, client_id=_CLIENT_ID, group=group)
    try:
        await consumer.start()
        return {
            partition: await aiokafka_internals.read_committed(consumer, partition) for partition in _all_of(topics)
        }
    finally:
        await aiokafka_internals.discard_consumer(consumer, seconds=_CLOSE_SECONDS)


async def backlogs(
    kafka: KafkaSettings, topics: Sequence[Topic], places: Mapping[TopicPartition, Place | None]
) -> list[Backlog]:
    """Returns what is left to do from the places on, for each partition of the topics.

    Raises:
        KafkaError: Kafka is away, or refuses.
    """
    found = {partition: Backlog(partition, is_known=False) for partition in _all_of(topics)}
    known = {partition: place for partition, place in places.items() if place is not None and partition in found}
    consumer = clients.consumer(kafka, client_id=_CLIENT_ID, group=None)
    try:
        await consumer.start()
        beginnings = await consumer.beginning_offsets(list(known)) if known else {}
        ends = await consumer.end_offsets(list(known)) if known else {}
        lost = {at for at, (offset, _) in known.items() if not beginnings[at] <= offset <= ends[at]}
        found |= {partition: Backlog(partition, is_lost=partition in lost) for partition in known}
        behind = {
            partition: place
            for partition, place in known.items()
            if partition not in lost and place[0] < ends[partition]
        }
        for partition, record in (await _oldest(consumer, behind, ends)).items():
            due = record.timestamp / 1000 + delay_of(partition.topic, topics)
            found[partition] = Backlog(partition, records=ends[partition] - record.offset, since=due)
        for partition in lost:
            found[partition] = dataclasses.replace(
                found[partition], records=max(ends[partition] - known[partition][0], 0)
            )
        return list(found.values())
    finally:
        await aiokafka_internals.discard_consumer(consumer, seconds=_CLOSE_SECONDS)


async def _oldest(
    consumer: AIOKafkaConsumer, places: Mapping[TopicPartition, Place], ends: Mapping[TopicPartition, int]
) -> "dict[TopicPartition, ConsumerRecord[bytes, bytes]]":
    """Returns the first record of each partition that is not done, where there is one before the end."""
    consumer.assign(list(places))
    for partition, (offset, _) in places.items():
        consumer.seek(partition, offset)
    # A commit says which records past it are done.
    windows = {partition: Window(*place) for partition, place in places.items()}
    found: dict[TopicPartition, ConsumerRecord[bytes, bytes]] = {}
    waiting = set(places)
    while waiting:
        fetched = await consumer.getmany(*waiting, timeout_ms=_POLL_MS)
        for partition in list(waiting):
            records = fetched.get(partition, ())
            first = next((record for record in records if windows[partition].deliver(record.offset)), None)
            if first is not None:
                found[partition] = first
            if first is not None or await consumer.position(partition) >= ends[partition]:
                waiting.remove(partition)
        await asyncio.sleep(0)
    return found


def _all_of(topics: Sequence[Topic]) -> list[TopicPartition]:
    return [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]
