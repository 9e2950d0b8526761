"""What brokers tell of themselves and of what we may do, with a broker that knows who may do what."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiokafka.protocol.admin import CreateAclsRequest

from cli import diagnosis
from cli.diagnosis import Verdict
from devstack import KafkaBroker, ensure_jars, free_ports
from messaging import broker_facts, clients, topic_admin
from messaging.broker_facts import DESCRIBE, READ, WRITE
from settings import KafkaSettings
from tests import engines
from tests.e2e import observer

TOPIC, GROUP = 2, 3  # codes of Kafka's ResourceType
LITERAL, ALLOW = 3, 3
EVERYTHING = {READ, WRITE, DESCRIBE}


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaSettings]:
    """A broker of its own that asks who may do what. What nobody has a rule for everybody may do."""
    directory = tmp_path_factory.mktemp("guarded")
    port, controller_port = free_ports(2)
    broker = KafkaBroker(directory, port, controller_port, classpath=ensure_jars())
    await asyncio.to_thread(broker.prepare)
    with (directory / "server.properties").open("a") as properties:
        properties.write("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n")
        properties.write("allow.everyone.if.no.acl.found=true\n")
    broker.start()
    try:
        await broker.wait_ready()
        kafka = engines.kafka_settings(broker)
        assert await topic_admin.apply(kafka) == []
        yield kafka
    finally:
        await broker.stop()


async def allow(kafka: KafkaSettings, kind: int, name: str, *, user: str, operation: str) -> None:
    """Lets a user do something. From then on nobody else may do anything with it."""
    client = clients.bare(kafka, client_id="tests", request_timeout=10)
    await client.bootstrap()
    try:
        code = broker_facts._OPERATIONS[operation]
        request = CreateAclsRequest(kind, name, LITERAL, f"User:{user}", "*", code, ALLOW)
        answer = await client.send(client.get_random_node(), request)
        assert [result[0] for result in answer.creation_responses] == [0]
    finally:
        await client.close()


async def look(kafka: KafkaSettings) -> broker_facts.Facts:
    return await broker_facts.ask(
        kafka, topics=["orders", "payments", "dlq", "missing"], groups=["projector", "nobody-yet"], client_id="tests"
    )


async def test_where_nobody_guards_everything_is_allowed(kafka: KafkaSettings) -> None:
    seen = await look(kafka)
    assert list(seen.releases.values()) == ["4.4"]
    assert seen.topics == dict.fromkeys(("orders", "payments", "dlq"), EVERYTHING)
    assert {name: may >= {READ, DESCRIBE} for name, may in seen.groups.items()} == {
        "projector": True, "nobody-yet": True
    }  # fmt: skip


async def test_what_is_not_allowed_is_seen_and_named(guarded: KafkaSettings) -> None:
    assert (await look(guarded)).topics["payments"] == EVERYTHING
    await allow(guarded, TOPIC, "payments", user="ANONYMOUS", operation=READ)
    await allow(guarded, TOPIC, "dlq", user="somebody-else", operation=WRITE)
    await allow(guarded, GROUP, "projector", user="somebody-else", operation=READ)

    async def is_known() -> bool:
        return not (await look(guarded)).groups["projector"]

    # A broker learns of a rule a moment after it was made.
    await observer.eventually(is_known, within=engines.DEADLINE, what="a group that may not be used")
    seen = await look(guarded)
    assert seen.topics == {"orders": EVERYTHING, "payments": {READ, DESCRIBE}, "dlq": frozenset()}
    assert seen.groups["projector"] == frozenset()
    found = diagnosis.kafka_rights(seen, diagnosis.roles((10, 300)).values(), "ANONYMOUS")
    assert {(each.subject, each.found) for each in found} == {
        ("kafka rights: topic payments", "ANONYMOUS may not write"),
        ("kafka rights: topic dlq", "ANONYMOUS may not write"),
        ("kafka rights: topic dlq", "ANONYMOUS may not read"),
        ("kafka rights: group projector", "ANONYMOUS may not read"),
    }
    assert {each.verdict for each in found} == {Verdict.WRONG}
