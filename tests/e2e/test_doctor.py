"""`orderflow doctor` on the running system."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import diagnosis
from messaging.topics import topic_of
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow_client import OrdersClient
from tests.e2e import observer, orders, programs
from tests.e2e.observed import RETRY_DELAYS, ObservedSystem

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


async def doctor(system: ObservedSystem, *arguments: str, **settings: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Runs `orderflow doctor`. Returns its exit code and what it found, by subject."""
    own = {**system.environment(), "ORDERFLOW_TARGET": system.server_address, **settings}
    path = os.pathsep.join(str(ROOT / part) for part in ("", "generated", "clients"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERFLOW_")}
    code, out, _ = await programs.run(
        sys.executable, "-m", "cli", "doctor", "-o", "json", *arguments,
        environment={**inherited, "PYTHONPATH": path, **own},
    )  # fmt: skip
    return code, {each["subject"]: each for each in json.loads(out)}


async def test_nothing_is_wrong_with_a_healthy_system(healthy: ObservedSystem) -> None:
    code, found = await doctor(healthy)
    assert code == 0, found
    well = (
        "kafka", "kafka version", "topics", "kafka rights", "postgresql", "postgresql version", "postgresql rights",
        "migrations", "clock", "server", "gateway", "smtp",
    )  # fmt: skip
    assert {name: found[name]["verdict"] for name in well} == dict.fromkeys(well, "ok"), found
    assert found["kafka version"]["found"] == "broker 1: 4.4"
    assert found["settings"]["found"] == "ORDERFLOW_KAFKA_REPLICATION_FACTOR is 1"


async def test_what_is_away_is_wrong_and_the_rest_is_examined(healthy: ObservedSystem) -> None:
    await healthy.stop_role("server")
    await healthy.stop_role("gateway")
    await healthy.stop_role("mail")
    code, found = await doctor(healthy)
    assert code == 1
    wrong = {subject for subject, each in found.items() if each["verdict"] == "wrong"}
    assert wrong == {"server", "gateway", "smtp"}, found
    assert all(found[subject]["what_to_do"] for subject in wrong)
    assert found["kafka rights"]["verdict"] == "ok"
    code, found = await doctor(healthy, "--role", "projector")
    assert code == 0
    assert not {"server", "gateway", "smtp"} & found.keys()
    await healthy.mend()


async def test_topics_and_migrations_that_differ_are_told(healthy: ObservedSystem) -> None:
    await healthy.count(
        "with made as (insert into schema_migrations (name, checksum, expands_only) values ('9998_newer.sql', '', true)"
        " returning 1) select count(*) from made"
    )
    try:
        code, found = await doctor(healthy, "--role", "projector", ORDERFLOW_KAFKA_RETRY_DELAYS="1,7")
        assert code == 1
        assert found["topic order-processor.retry.7s"]["verdict"] == "wrong"
        assert found["topic order-processor.retry.7s"]["what_to_do"] == "orderflow topics apply"
        assert found["migrations"]["verdict"] == "warning"
        assert "9998_newer.sql" in found["migrations"]["found"]
    finally:
        gone = "delete from schema_migrations where name = '9998_newer.sql'"
        await healthy.count(f"with gone as ({gone} returning 1) select count(*) from gone")


async def test_processes_write_only_where_their_rights_are_examined(
    healthy: ObservedSystem, client: OrdersClient
) -> None:
    """Else a user that lacks a right would be well, and its process would fail."""
    paid = await orders.place(client)
    declined = await orders.place(client, payment_method="pm_card_chargeDeclined")
    cancelled = await orders.place(client)
    await orders.settled(client, paid)
    await orders.settled(client, declined)
    await client.cancel_order(cancelled.order.order_id, reason="TEST")
    await healthy.all_caught_up(within=60)
    needs = diagnosis.roles(RETRY_DELAYS)
    events: list[OrderEvent] = await observer.read_events(healthy.bootstrap, "orders", "payments", "notifications")
    written = {(event.metadata.source, topic_of(event.type).name) for event in events}
    written = {(source, topic) for source, topic in written if source in needs}
    assert {source for source, _ in written} >= {"server", "order-processor", "payment-processor", "notification-email"}
    allowed = {(role, topic.name) for role, need in needs.items() for topic in need.writes}
    assert written <= allowed, written - allowed
