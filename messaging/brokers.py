"""One look at a cluster: which brokers answer, and whether every partition can be written to."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from aiokafka import TopicPartition

from messaging import aiokafka_internals, clients
from messaging.reachability import Replicas, ask_brokers, can_acknowledge, replicas_of
from messaging.topics import Topic
from settings import KafkaSettings

_REQUEST_SECONDS: Final = 2.0


@dataclasses.dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        known: Node ids of the brokers that the cluster has.
        answering: Those that answered.
        missing: Names of topics that are not there.
        refusing: Partitions that no acknowledged record can be written to: too few replicas in sync answer.
        short: Other partitions with replicas that are not in sync, or do not answer.
    """

    known: frozenset[int]
    answering: frozenset[int]
    missing: tuple[str, ...]
    refusing: tuple[TopicPartition, ...]
    short: tuple[TopicPartition, ...]


async def look(kafka: KafkaSettings, topics: Sequence[Topic], *, client_id: str) -> Look:
    """Asks every broker once.

    Raises:
        KafkaError: no broker answers.
    """
    client = clients.bare(kafka, client_id=client_id, request_timeout=_REQUEST_SECONDS)
    try:
        await client.bootstrap()
        answers = await ask_brokers(client, [topic.name for topic in topics])
        known = {broker.nodeId for broker in client.cluster.brokers()}
    finally:
        await aiokafka_internals.close_client(client)
    views = {node: replicas_of(answer) for node, answer in answers.items()}
    for answer in answers.values():
        known |= {broker[0] for broker in answer.brokers}
    return seen(known, views, topics, min_insync=kafka.min_insync_replicas)


def seen(
    known: set[int], views: Mapping[int, Mapping[TopicPartition, Replicas]], topics: Sequence[Topic], *, min_insync: int
) -> Look:
    """Returns what the answers of the brokers come to, each by its node id. The best view of a partition counts.

    One that is left alone goes on to name replicas as in sync that are gone, so only those that answer are counted.
    """
    merged: dict[TopicPartition, list[Replicas]] = {}
    for view in views.values():
        for partition, replicas in view.items():
            merged.setdefault(partition, []).append(replicas)
    refusing = [
        partition
        for partition, replicas in merged.items()
        if not any(can_acknowledge(each, views, min_insync=min_insync) for each in replicas)
    ]
    short = [
        partition
        for partition, replicas in merged.items()
        if partition not in refusing and not any(each.all <= each.in_sync & views.keys() for each in replicas)
    ]
    there = {partition.topic for partition in merged}
    return Look(
        known=frozenset(known),
        answering=frozenset(views),
        missing=tuple(topic.name for topic in topics if topic.name not in there),
        refusing=tuple(sorted(refusing)),
        short=tuple(sorted(short)),
    )
