"""Tells whether so much of Kafka answers as it takes to acknowledge an order, for health and for the ingress."""

import asyncio
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from messaging import aiokafka_internals, clients
from messaging.topics import ORDERS
from settings import KafkaSettings
from telemetry import logs, metrics

log = logs.get()

_INTERVAL_SECONDS: Final = 1.0
_FIRST_INTERVAL_SECONDS: Final = 0.2
"""Until Kafka was there once: it may be starting together with this process."""
_ANSWER_SECONDS: Final = 3.0
_REQUEST_SECONDS: Final = 2.0
"""Of one broker: less than all have together, so that the connection to one that is frozen is given up."""
_AWAY: Final = (KafkaError, OSError, TimeoutError, AssertionError)


@dataclasses.dataclass(frozen=True)
class Replicas:
    """Where a partition is, as one broker knows it: node ids."""

    all: frozenset[int]
    in_sync: frozenset[int]


def can_acknowledge(replicas: Replicas, answering: Iterable[int], *, min_insync: int) -> bool:
    """Returns whether so many replicas that are in sync answer as an acknowledgement takes.

    What a broker knows may be old: one that is left alone goes on to name the others, for without a majority of the
    controllers nobody takes them out. So they are asked themselves.
    """
    # A topic that was made with fewer replicas than the settings ask for cannot be told to wait for more.
    wanted = min(min_insync, len(replicas.all))
    return len(replicas.in_sync.intersection(answering)) >= wanted


class KafkaMonitor:
    """Asks every broker every second, and more often at first. `run` is its life."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        """Connects nothing."""
        self._kafka = kafka
        self._client_id = client_id
        self.is_reachable = False

    async def run(self) -> None:
        """Asks until cancelled. A Kafka that does not answer is found within 4 s, one that is back within 4 s."""
        client = self._client()
        connected, interval = False, _FIRST_INTERVAL_SECONDS
        try:
            while True:
                answers: dict[int, Any] = {}
                error = "no broker answers"
                try:
                    if not connected:
                        async with asyncio.timeout(_ANSWER_SECONDS):
                            await client.bootstrap()
                        connected = True
                    answers = await ask_brokers(client, [ORDERS.name])
                except _AWAY as failure:
                    error = type(failure).__name__
                if answers:
                    enough = self._is_enough(answers)
                    self._report(reachable=enough, error="too few replicas answer")
                    _learn_brokers(client, answers)
                    interval = _INTERVAL_SECONDS
                else:
                    self._report(reachable=False, error=error)
                    # A new client starts from the bootstrap list again, so it also finds a cluster that has moved.
                    await aiokafka_internals.close_client(client)
                    client = self._client()
                    connected = False
                await asyncio.sleep(interval)
        finally:
            await aiokafka_internals.close_client(client)

    def _client(self) -> AIOKafkaClient:
        return clients.bare(self._kafka, client_id=self._client_id, request_timeout=_REQUEST_SECONDS)

    def _is_enough(self, answers: dict[int, Any]) -> bool:
        """Returns whether some partition can be written to. Without the topic it is enough that Kafka answers."""
        known = [replicas for answer in answers.values() for replicas in replicas_of(answer).values()]
        return not known or any(
            can_acknowledge(replicas, answers, min_insync=self._kafka.min_insync_replicas) for replicas in known
        )

    def _report(self, *, reachable: bool, error: str) -> None:
        if reachable != self.is_reachable:
            self.is_reachable = reachable
            if reachable:
                log.info("kafka.reachable")
            else:
                log.warning("kafka.unreachable", error=error)
        metrics.KAFKA_REACHABLE.set(reachable)


async def ask_brokers(client: AIOKafkaClient, topics: Sequence[str]) -> dict[int, Any]:
    """Returns what each broker that answers in time says of the topics, its metadata, by node id."""
    answers: dict[int, Any] = {}

    async def ask(node_id: int) -> None:
        try:
            answers[node_id] = await client.send(node_id, MetadataRequest(topics, allow_auto_topic_creation=False))
        except _AWAY:
            return

    asking = [asyncio.create_task(ask(broker.nodeId)) for broker in client.cluster.brokers()]
    if not asking:  # a broker that has just started answers before it knows of any, itself included
        return answers
    try:
        # Those that are frozen keep nobody waiting for longer, and do not hide the others' answers.
        await asyncio.wait(asking, timeout=_ANSWER_SECONDS)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return answers


def _learn_brokers(client: AIOKafkaClient, answers: dict[int, Any]) -> None:
    """Tells the client of brokers that came or went, by the longest list: one too many costs an attempt at most."""
    answer = max(answers.values(), key=lambda each: len(each.brokers))
    known = {(broker.nodeId, broker.host, broker.port) for broker in client.cluster.brokers()}
    if {tuple(broker[:3]) for broker in answer.brokers} != known:
        client.cluster.update_metadata(answer)


def replicas_of(answer: Any) -> dict[TopicPartition, Replicas]:
    """Returns where the partitions are by one broker's answer; nothing of topics that are not there."""
    return {
        TopicPartition(topic["topic"], partition["partition"]): Replicas(
            frozenset(partition["replicas"]), frozenset(partition["isr"])
        )
        for topic in answer.to_object()["topics"]
        for partition in topic["partitions"]
    }
