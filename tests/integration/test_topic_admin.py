"""Topics as the catalogue says: made, set, and where they differ told. On a broker of its own."""

from collections.abc import AsyncIterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from devstack import KafkaBroker, free_ports
from messaging import clients, topic_admin
from messaging.topic_admin import Drift, TopicAdminError
from messaging.topics import ALL, DEAD_LETTERS, NOTIFICATIONS, ORDERS
from settings import KafkaSettings
from tests import engines


@pytest.fixture
def kafka(spare_broker: KafkaBroker) -> KafkaSettings:
    return engines.kafka_settings(spare_broker)


@pytest.fixture
async def admin(kafka: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    async with engines.started(clients.admin(kafka, client_id="tests")) as admin:
        yield admin


async def delete(admin: AIOKafkaAdminClient, kafka: KafkaSettings, *names: str) -> None:
    await admin.delete_topics(list(names))
    gone: list[Drift] = []
    while {drift.topic for drift in gone if drift.what == "topic"} != set(names):
        gone = await topic_admin.plan(kafka)


async def test_what_is_missing_is_made_as_the_catalogue_says(kafka: KafkaSettings, admin: AIOKafkaAdminClient) -> None:
    await delete(admin, kafka, ORDERS.name, DEAD_LETTERS.name)
    assert await topic_admin.plan(kafka) == [
        Drift("orders", "topic", "missing", "3 partitions", can_be_applied=True),
        Drift("dlq", "topic", "missing", "1 partitions", can_be_applied=True),
    ]
    assert await topic_admin.apply(kafka) == []
    assert await topic_admin.plan(kafka) == []
    described = await admin.describe_topics([topic.name for topic in ALL])
    assert {each["topic"]: len(each["partitions"]) for each in described} == {
        "orders": 3,
        "payments": 3,
        "notifications": 3,
        "dlq": 1,
    }
    assert await topic_admin.apply(kafka) == [], "a second time changes nothing"


async def test_a_changed_setting_is_told_and_set_back(kafka: KafkaSettings, admin: AIOKafkaAdminClient) -> None:
    changed = {
        "retention.ms": "1000",
        "segment.ms": "604800000",
        "max.message.bytes": "1000",
        "cleanup.policy": "compact",
    }
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, NOTIFICATIONS.name, configs=changed)])
    drift: list[Drift] = []
    while len(drift) < len(changed):
        drift = await topic_admin.plan(kafka)
    assert {(each.topic, each.what, each.found, each.can_be_applied) for each in drift} == {
        ("notifications", name, value, True) for name, value in changed.items()
    }
    assert await topic_admin.apply(kafka) == []


async def test_other_partitions_are_for_an_operator(kafka: KafkaSettings, admin: AIOKafkaAdminClient) -> None:
    await admin.create_partitions({ORDERS.name: NewPartitions(4)})
    drift = []
    while not drift:
        drift = await topic_admin.plan(kafka)
    try:
        assert drift == [Drift("orders", "partitions", "4", "3", can_be_applied=False)]
        assert await topic_admin.apply(kafka) == drift
    finally:
        await delete(admin, kafka, ORDERS.name)
        assert await topic_admin.apply(kafka) == []


async def test_other_replicas_are_for_an_operator(kafka: KafkaSettings) -> None:
    wants_three = kafka.model_copy(update={"replication_factor": 3})
    drift = await topic_admin.plan(wants_three)
    assert {(each.what, each.found, each.wanted, each.can_be_applied) for each in drift} == {
        ("replication factor", "1", "3", False)
    }
    assert {topic.name for topic in ALL} <= {each.topic for each in drift}


async def test_what_kafka_refuses_is_told(kafka: KafkaSettings, admin: AIOKafkaAdminClient) -> None:
    await delete(admin, kafka, NOTIFICATIONS.name)
    with pytest.raises(TopicAdminError, match="notifications"):
        await topic_admin.apply(kafka.model_copy(update={"replication_factor": 3}))
    assert await topic_admin.apply(kafka) == []


async def test_kafka_away() -> None:
    (port,) = free_ports(1)
    with pytest.raises(KafkaError):
        await topic_admin.plan(KafkaSettings(bootstrap=f"127.0.0.1:{port}"))
