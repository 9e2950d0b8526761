"""The drill of docs/upgrades.md: PostgreSQL goes back to a base backup under load, and nobody is charged twice.

The gateway has forgotten every key by then, so that whatever is sent again is a second charge.
"""

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from devstack import postgres_home
from devstack.postgres import PostgresServer
from devstack.process import run_to_end
from devstack.system import WORKERS, Ports, StripeStandIn
from orderflow_client import CreateOrderResponse, OrderflowError, OrdersClient, OrderStatus
from tests.e2e import observer, orders
from tests.e2e.observed import ObservedSystem

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOTAL = 3998
BEFORE, AFTER = 15, 30
"""Charges before the backup, and after it: those are forgotten."""

# The short form is tests/integration/test_restores.py: one order at a time, and every way in which it can be forgotten.
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


class Forgetful(ObservedSystem):
    """Its gateway forgets a key at once."""

    def start_stand_in(self, name: str) -> None:
        if name == "gateway" and self._stripe is None:
            arguments = ["--port", str(self.ports.gateway), "--admin-port", str(self.ports.gateway_admin)]
            self.gateway_journal.parent.mkdir(parents=True, exist_ok=True)
            arguments += ["--journal", str(self.gateway_journal), "--key-ttl-seconds", "0"]
            self._spawn(name, ["-m", "devstack.gateway", *arguments])
        else:
            super().start_stand_in(name)


@pytest.fixture(params=["stripe", "remote"])
async def system(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> AsyncIterator[Forgetful]:
    stripe = StripeStandIn(options=("--key-ttl-seconds", "0")) if request.param == "stripe" else None
    running = Forgetful(tmp_path, Ports.chosen(), settings={"ORDERFLOW_KAFKA_SESSION_TIMEOUT": "3"}, stripe=stripe)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


class Load:
    """Places one order after the other, cancels some once they are paid, and notes what was acknowledged."""

    def __init__(self, system: Forgetful) -> None:
        self._system = system
        self.placed: list[CreateOrderResponse] = []
        self.cancelled: set[str] = set()
        self._to_cancel: asyncio.Queue[CreateOrderResponse] = asyncio.Queue()

    async def place(self) -> None:
        async with OrdersClient(self._system.server_address) as client:
            while True:
                method = "pm_card_chargeDeclined" if len(self.placed) % 8 == 7 else "pm_card_visa"
                request_id = uuid.uuid4().hex
                while True:
                    with contextlib.suppress(OrderflowError):
                        placed = await orders.place(client, request_id=request_id, payment_method=method)
                        break
                if len(self.placed) % 5 == 0:
                    self._to_cancel.put_nowait(placed)
                self.placed.append(placed)
                await asyncio.sleep(0.02)

    async def cancel(self) -> None:
        async with OrdersClient(self._system.server_address) as client:
            while True:
                created = await self._to_cancel.get()
                with contextlib.suppress(OrderflowError):
                    await orders.settled(client, created, within=300)
                    await client.cancel_order(created.order.order_id, request_id=uuid.uuid4().hex, timeout=10)
                    self.cancelled.add(created.order.order_id)


def lines(system: Forgetful, kind: str) -> list[dict[str, Any]]:
    return [line for line in observer.journal(system.gateway_journal) if line["kind"] == kind]


def charges(system: Forgetful) -> list[dict[str, Any]]:
    return [line for line in lines(system, "charge") if line["approved"]]


async def backed_up(postgres: PostgresServer) -> pathlib.Path:
    """Takes a base backup of the running server, with the WAL that it needs."""
    user, backup = postgres_home.run_as(), postgres.data_directory.with_name("backup")
    command = [str(postgres_home.programs(user) / "pg_basebackup"), "-d", postgres.dsn, "-D", str(backup)]
    await asyncio.to_thread(
        run_to_end,
        "pg_basebackup",
        [*command, "-X", "stream", "-c", "fast"],
        deadline_seconds=60,
        uid=user.uid,
        gid=user.gid,
    )
    return backup


async def command(system: Forgetful, *words: str, **settings: str) -> tuple[int, str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "generated", "clients"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *words),
        env={**os.environ, "PYTHONPATH": path, **system.environment(), **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def until(system: Forgetful, count: int) -> None:
    async def reached() -> bool:
        return len(charges(system)) >= count

    await observer.eventually(reached, within=60, what=f"{count} charges")


async def destroyed_and_restored(system: Forgetful, backup: pathlib.Path) -> None:
    """Ends PostgreSQL and its data at once, and starts it on the backup. The workers are ended, too."""
    system.postgres.kill()
    for role in WORKERS:
        system.processes.pop(role).kill()
    data = system.postgres.data_directory
    await system.postgres.stop()
    await asyncio.to_thread(shutil.rmtree, data)
    await asyncio.to_thread(backup.rename, data)
    system.postgres.start()
    await system.postgres.wait_ready()


async def resumed(system: Forgetful) -> None:
    """Starts the workers in the order of docs/upgrades.md."""
    for role in ("order-processor", "projector"):
        system.start_role(role)
    await system.wait_healthy(["order-processor", "projector"])
    await system.caught_up("order-processor", within=60)
    for role in ("payment-processor", "notification-email", "notification-sms"):
        system.start_role(role)
    await system.wait_healthy(WORKERS)
    await system.all_caught_up(within=120)


async def test_a_restore_that_loses_commits_charges_and_refunds_nobody_twice(system: Forgetful) -> None:
    load = Load(system)
    async with asyncio.TaskGroup() as tasks:
        loading = [tasks.create_task(each) for each in (load.place(), load.cancel())]
        await until(system, BEFORE)
        backup = await backed_up(system.postgres)
        await until(system, len(charges(system)) + AFTER)
        code, _, told = await command(system, "db", "restored")
        assert code == 1, "not while workers run"
        assert "stop its processes first" in told

        await destroyed_and_restored(system, backup)
        placed = len(load.placed)

        async def goes_on() -> bool:
            return len(load.placed) > placed

        await observer.eventually(goes_on, within=30, what="an order that is placed without workers")
        for task in loading:
            task.cancel()

    booked = await system.count("select count(*) from payment_entries where kind = 'capture'")
    forgotten = len(charges(system)) - booked
    assert forgotten >= AFTER, "what this is about"

    async def recorded() -> str:
        code, listed, told = await command(system, "db", "restored", "-o", "json")
        assert code == 0 or "stop its processes first" in told, told
        return listed if code == 0 else ""

    # Who was killed is a member of its group until the session ends.
    listed = await observer.eventually(recorded, within=40, what="groups without members")
    rewound = {(row["group"], row["topic"]) for row in json.loads(listed) if row["now"] < row["before"]}
    assert {("order-processor", "orders"), ("payment-processor", "orders")} <= rewound

    await resumed(system)
    made = collections.Counter(line["order_id"] for line in charges(system))
    assert {order_id: number for order_id, number in made.items() if number > 1} == {}, "charged twice"
    given_back = collections.Counter(line["charge_reference"] for line in lines(system, "refund"))
    assert set(given_back.values()) <= {1}, "refunded twice"

    async with OrdersClient(system.server_address) as client:
        settled = {each.order.order_id: await orders.settled(client, each, within=60) for each in load.placed}
    for number, (order_id, order) in enumerate(settled.items()):
        assert order.status == (
            OrderStatus.ORDER_STATUS_CANCELLED
            if order_id in load.cancelled
            else OrderStatus.ORDER_STATUS_PAYMENT_FAILED
            if number % 8 == 7
            else OrderStatus.ORDER_STATUS_PAID
        ) or (number % 5 == 0 and order.status == OrderStatus.ORDER_STATUS_CANCELLED), order
    assert load.cancelled, "some were called off"

    entries = "select coalesce(sum(amount_minor), 0) from payment_entries where kind = "
    assert await system.count(f"{entries}'capture'") == sum(line["amount_minor"] for line in charges(system))
    assert await system.count(f"{entries}'refund'") == sum(line["amount_minor"] for line in lines(system, "refund"))
    code, listed, told = await command(
        system, "reconcile", "--since", "1h", "-o", "json", ORDERFLOW_RECONCILER_SETTLE_MINUTES="0"
    )
    assert (code, json.loads(listed)) == (0, []), told
    assert await system.count("select count(*) from dead_letters") == 0
