"""Creates the topics and finds where a cluster's differ from the catalogue."""

import asyncio
import dataclasses
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

import fault_points
from messaging import clients
from messaging.topics import Topic, all_topics
from settings import KafkaSettings

_SETTLE_SECONDS: Final = 15.0


@dataclasses.dataclass(frozen=True)
class Drift:
    """One way in which the cluster differs. `can_be_applied`: `apply` changes it; otherwise an operator has to."""

    topic: str
    what: str
    found: str
    wanted: str
    can_be_applied: bool


class TopicAdminError(Exception):
    """Kafka refused a change. The text says which."""


async def plan(kafka: KafkaSettings) -> list[Drift]:
    """Returns where the cluster differs from the catalogue; empty if it does not.

    Raises:
        KafkaError: Kafka is away, or refuses.
    """
    wanted_topics = all_topics(kafka.retry_delay_seconds)
    admin = clients.admin(kafka, client_id="orderflow-topics")
    try:
        await admin.start()
        names = [topic.name for topic in wanted_topics]
        described = {topic["topic"]: topic for topic in await admin.describe_topics(names)}
        present = [topic for topic in wanted_topics if described[topic.name]["error_code"] == 0]
        drift = [
            Drift(topic.name, "topic", "missing", f"{topic.partitions} partitions", can_be_applied=True)
            for topic in wanted_topics
            if topic not in present
        ]
        configs = await _configs(admin, present)
        for topic in present:
            partitions = described[topic.name]["partitions"]
            if len(partitions) != topic.partitions:
                # Added partitions move keys, and two workers may then hold one order: never done to a live topic.
                drift.append(Drift(topic.name, "partitions", str(len(partitions)), str(topic.partitions), False))
            replicas = min(len(partition["replicas"]) for partition in partitions)
            if replicas != kafka.replication_factor:
                drift.append(
                    Drift(topic.name, "replication factor", str(replicas), str(kafka.replication_factor), False)
                )
            for name, wanted in topic.config(min_insync_replicas=kafka.min_insync_replicas).items():
                found = configs[topic.name].get(name, "unset")
                if found != wanted:
                    drift.append(Drift(topic.name, name, found, wanted, can_be_applied=True))
        return drift
    finally:
        await admin.close()


async def apply(kafka: KafkaSettings) -> list[Drift]:
    """Creates what is missing and sets what differs. Returns the drift that remains, for an operator to decide on.

    Raises:
        TopicAdminError: Kafka refused a change.
        KafkaError: Kafka is away.
    """
    drift = await plan(kafka)
    missing = {each.topic for each in drift if each.what == "topic"}
    changed = {each.topic for each in drift if each.can_be_applied} - missing
    admin = clients.admin(kafka, client_id="orderflow-topics")
    try:
        await admin.start()
        for topic in all_topics(kafka.retry_delay_seconds):
            config = topic.config(min_insync_replicas=kafka.min_insync_replicas)
            if topic.name in missing:
                await _create(admin, topic, config, kafka.replication_factor)
                fault_points.reached("W16")
            elif topic.name in changed:
                response = await admin.alter_configs(
                    [ConfigResource(ConfigResourceType.TOPIC, topic.name, configs=config)]
                )
                for answer in response:
                    for code, message, *_ in answer.resources:
                        if code:
                            raise TopicAdminError(f"{topic.name}: {message or for_code(code).__name__}")
    finally:
        await admin.close()
    settled_by = asyncio.get_running_loop().time() + _SETTLE_SECONDS
    while True:
        drift = await plan(kafka)
        is_late = asyncio.get_running_loop().time() > settled_by
        if is_late or not any(each.can_be_applied for each in drift):
            return drift
        await asyncio.sleep(0.1)  # brokers learn of a change a moment after it was made


async def _create(admin: AIOKafkaAdminClient, topic: Topic, config: dict[str, str], replicas: int) -> None:
    try:
        response = await admin.create_topics(
            [NewTopic(topic.name, topic.partitions, replicas, topic_configs=config)], timeout_ms=10_000
        )
    except TopicAlreadyExistsError:
        return
    for name, code, *rest in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise TopicAdminError(f"{name}: {rest[0] if rest and rest[0] else error.__name__}")


async def _configs(admin: AIOKafkaAdminClient, topics: list[Topic]) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics])
    configs: dict[str, dict[str, str]] = {}
    for response in responses:
        for code, message, _, name, entries in response.resources:
            if code:
                raise KafkaError(f"configuration of {name}: {message}")
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs
