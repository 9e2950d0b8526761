"""`orderflow db restored`: what it records, what it takes back, and when it refuses."""

import pathlib
from collections.abc import AsyncIterator

import pytest
from aiokafka import TopicPartition

from cli import restored
from messaging import clients, rewind, topics
from messaging.rewind import GroupRunsError
from settings import GatewaySettings, KafkaSettings, Settings, StripeSettings, load
from storage.database import Database
from tests import engines
from tests.builders import a_group
from tests.gateways.process import GatewayProcess, charge

ORDERS = TopicPartition(topics.ORDERS.name, 0)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> str:
    """The only group there is."""
    group = a_group()
    monkeypatch.setattr(rewind, "GROUPS", (group,))
    return group


@pytest.fixture
def settings(kafka: KafkaSettings, own_database: Database) -> Settings:
    return load().model_copy(update={"kafka": kafka, "database": own_database._settings})


@pytest.fixture
async def gateway(tmp_path: pathlib.Path) -> AsyncIterator[GatewayProcess]:
    running = GatewayProcess(tmp_path)
    try:
        yield running
    finally:
        await running.aclose()


async def rows(database: Database, table: str) -> list[dict[str, object]]:
    return await engines.fetch(database, f"select * from {table}")


async def test_it_records_what_the_gateway_has_and_takes_the_group_back(
    settings: Settings, own_database: Database, group: str, gateway: GatewayProcess
) -> None:
    await gateway.start()
    await charge(gateway.client, "charge-o-1", order_id="o-1")
    await charge(gateway.client, "charge-o-2", order_id="o-2", payment_method="pm_card_chargeDeclined")
    await engines.commit(settings.kafka, group, {ORDERS: 3})
    chosen = settings.model_copy(update={"gateway": GatewaySettings(kind="remote", url=gateway.url)})
    for _ in range(2):
        [row] = await restored._restored(chosen)
        assert (row.group, row.topic, row.now) == (group, "orders", 0)
    assert [(row["idempotency_key"], row["has_money"]) for row in await rows(own_database, "found_charges")] == [
        ("charge-o-1", True)
    ]
    assert len(await rows(own_database, "restores")) == 2
    assert await engines.committed(settings.kafka, group, ORDERS) == (0, "")


async def test_while_a_worker_runs_it_changes_nothing(settings: Settings, own_database: Database, group: str) -> None:
    consumer = clients.consumer(settings.kafka, client_id="tests", group=group)
    consumer.subscribe([topics.ORDERS.name])
    async with engines.started(consumer):
        await engines.eventually(consumer.assignment, "a member with a partition")
        with pytest.raises(GroupRunsError):
            await restored._restored(settings)
    assert await rows(own_database, "restores") == []


async def test_without_the_gateways_answer_it_changes_nothing(
    settings: Settings, own_database: Database, group: str
) -> None:
    """Else the workers would start, and take for new what could not be listed."""
    await engines.commit(settings.kafka, group, {ORDERS: 3})
    (port,) = engines.free_ports(1)
    away = settings.model_copy(update={"gateway": GatewaySettings(kind="remote", url=f"http://127.0.0.1:{port}")})
    keyless = settings.model_copy(update={"gateway": GatewaySettings(kind="stripe"), "stripe": StripeSettings()})
    for chosen, error in ((away, "not connected"), (keyless, "ORDERFLOW_STRIPE_KEY")):
        with pytest.raises(Exception, match=error):
            await restored._restored(chosen)
    assert await rows(own_database, "restores") == []
    assert await engines.committed(settings.kafka, group, ORDERS) == (3, "")
