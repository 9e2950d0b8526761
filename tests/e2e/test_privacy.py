"""A user of the running system is erased: no table and no log has the user, and what is replayed or rebuilt neither."""

import asyncio
import json
import pathlib
import sys
import uuid
from collections.abc import Iterable
from typing import Any

import asyncpg
import pytest

from devstack.system import ROLES
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow_client import OrdersClient
from tests import scans
from tests.e2e import observer, programs
from tests.e2e.letters import processing
from tests.e2e.observed import ObservedSystem
from tests.e2e.orders import place, settled

_ROOT = pathlib.Path(__file__).resolve().parents[2]
READ_MODEL = ("order_views", "order_events", "dead_letters", "projection_failures", "projection_positions")


async def orderflow(system: ObservedSystem, *arguments: str) -> Any:
    """Runs an `orderflow` command that succeeds, and returns its JSON output, if it has any."""
    variables = {
        "PYTHONPATH": f"{_ROOT}:{_ROOT / 'generated'}",
        "ORDERFLOW_TARGET": system.server_address,
        "ORDERFLOW_DATABASE_URL": system.postgres.dsn,
    }
    settings = [f"{name}={value}" for name, value in variables.items()]
    code, out, err = await programs.run("env", *settings, sys.executable, "-m", "cli", *arguments, deadline=60)
    assert code == 0, err
    return json.loads(out) if out.strip() else None


async def tables_with(system: ObservedSystem, texts: Iterable[str]) -> set[str]:
    connection = await asyncpg.connect(system.postgres.dsn)
    try:
        return await scans.tables_of_connection_with(connection, *texts)
    finally:
        await connection.close()


async def logs_with(system: ObservedSystem, texts: Iterable[str]) -> set[str]:
    """Returns the logs of our processes, and of PostgreSQL, in which one of the texts stands."""
    paths = [system.directory / "logs" / f"{role}.log" for role in ROLES] + [system.postgres.log_file]
    contents = await asyncio.to_thread(lambda: {path.name: path.read_text(errors="replace") for path in paths})
    assert all(contents.values()), "the logs are read"
    return {name for name, content in contents.items() if any(text in content for text in texts)}


@pytest.mark.timeout(300)
async def test_an_erased_user_is_gone_from_tables_and_logs_and_does_not_come_back(
    healthy: ObservedSystem, client: OrdersClient
) -> None:
    number = uuid.uuid4().int
    user_id, email, phone = f"user-{number:x}", f"gone.{number:x}@example.com", f"+49{number % 10**11:011d}"
    created = await place(client, user_id=user_id, email=email, phone=phone)
    await settled(client, created)
    dead = processing(str(uuid.uuid4()), user_id=user_id, email=email, phone=phone)
    key = dead.order.order_id.encode()
    await observer.write(healthy.bootstrap, "orders", [(key, dead.SerializeToString())])

    async def letters() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await orderflow(
            healthy, "dlq", "list", "--order", dead.order.order_id, "--group", "payment-processor", "-o", "json"
        )
        return rows

    [letter] = await observer.eventually(letters, within=60, what="a dead letter of the user")
    await healthy.all_caught_up(within=60)
    contacts = (email, phone)
    assert {"orders", "order_views", "order_events", "dead_letters"} <= await tables_with(healthy, contacts)

    cleared = await orderflow(healthy, "privacy", "erase", user_id, "--yes", "-o", "json")
    assert {row["table"]: row["cleared"] for row in cleared}["orders"] == 1
    assert await tables_with(healthy, contacts) == set()
    order = (await client.get_order(created.order.order_id)).order
    assert (order.user_id, order.email, order.phone) == (user_id, "", "")

    await orderflow(healthy, "dlq", "replay", letter["id"], "--reason", "after the erasure")

    async def replayed() -> list[bytes]:
        records = await observer.read_topic(healthy.bootstrap, "dlq", partitions=1)
        return [
            record.value or b""
            for record in records
            if record.key == key and dict(record.headers).get("dlq_replay") == b"1"
        ]

    [value] = await observer.eventually(replayed, within=60, what="the dead letter of the replay")
    again = OrderEvent.FromString(value)
    assert (again.event_id, again.order.email, again.order.phone) == (dead.event_id, "", "")
    await healthy.all_caught_up(within=60)
    assert await tables_with(healthy, contacts) == set()

    # The topics still have it all.
    await healthy.stop_role("projector")
    connection = await asyncpg.connect(healthy.postgres.dsn)
    try:
        for table in READ_MODEL:
            await connection.execute(f"delete from {table}")
    finally:
        await connection.close()
    healthy.start_role("projector")
    await healthy.wait_healthy(ROLES)
    await healthy.all_caught_up(within=60)
    assert {record.key for record in await observer.read_topic(healthy.bootstrap, "orders")} >= {key}
    assert (await client.get_order(created.order.order_id)).order.user_id == user_id
    assert await tables_with(healthy, contacts) == set()
    assert await logs_with(healthy, contacts) == set()
    assert await logs_with(healthy, [created.order.order_id]), "or the scan is blind"
