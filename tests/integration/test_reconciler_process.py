"""The reconciler and `orderflow reconcile` as processes, on PostgreSQL and the gateway's own process."""

import asyncio
import contextlib
import datetime
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from devstack import free_ports
from devstack.system import is_serving
from domain.reconciliation import Kind
from settings import DatabaseSettings
from storage import migrate
from storage.database import Database
from tests import engines
from tests.e2e import observer
from tests.gateways.process import GatewayProcess
from tests.lives import TOTAL, Life

ROOT = Path(__file__).parents[2]
METRIC = "orderflow_reconciliation_differences"

pytestmark = pytest.mark.timeout(300)


class Till:
    """A gateway process and a database, and orders that are charged at one and booked in the other."""

    def __init__(self, settings: DatabaseSettings, database: Database, gateway: GatewayProcess) -> None:
        self.settings = settings
        self.database = database
        self.gateway = gateway
        self.health, self.metrics = (f"127.0.0.1:{port}" for port in free_ports(2))

    async def sell(self) -> Life:
        """Has an order paid now."""
        life = Life(self.database)
        life.now = datetime.datetime.now(datetime.UTC)
        life.gateway = self.gateway.client  # type: ignore[assignment]
        await life.begin()
        await life.drain()
        assert await life.stands() == ("PAID", "CAPTURED")
        return life

    async def plant(self, **changes: Any) -> None:
        """Puts a charge into the gateway's journal behind everybody's back, like its first one but for the changes."""
        await self.gateway.end(signal.SIGTERM)
        first = self.gateway.lines()[0]
        with self.gateway.journal.open("a") as journal:
            own = {"reference": f"ch_{uuid.uuid4().hex}", "key": "by hand"}
            journal.write(json.dumps({**first, **own, **changes}) + "\n")
        await self.gateway.start()

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        path = os.pathsep.join(str(ROOT / part) for part in ("", "generated", "clients"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERFLOW_")}
        return [sys.executable, "-m", "cli", *arguments], environment | {
            "PYTHONPATH": path,
            "ORDERFLOW_DATABASE_URL": self.settings.url.get_secret_value(),
            "ORDERFLOW_GATEWAY_KIND": "remote",
            "ORDERFLOW_GATEWAY_URL": self.gateway.url,
            "ORDERFLOW_RECONCILER_INTERVAL": "0.2",
            "ORDERFLOW_RECONCILER_SETTLE_MINUTES": "0.01",
            "ORDERFLOW_WORKER_HEALTH_LISTEN": self.health,
            "ORDERFLOW_WORKER_METRICS_LISTEN": self.metrics,
            "ORDERFLOW_LOG_FORMAT": "json",
        }

    async def reconcile(self, *arguments: str, **settings: str) -> tuple[int, Any, str]:
        """Runs `orderflow reconcile`. Returns its exit code, what it lists, and what it says."""
        command, environment = self.command("reconcile", "-o", "json", *arguments)
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment | settings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            listed, said = await process.communicate()
        assert process.returncode is not None
        return process.returncode, json.loads(listed) if listed else None, said.decode()

    @contextlib.asynccontextmanager
    async def reconciler(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Runs the reconciler, which must end in order."""
        command, environment = self.command("run", "reconciler")
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
        log = asyncio.create_task(process.communicate())
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(60):
                _, said = await log
        assert process.returncode == 0, said.decode()

    async def shows(self, **differences: int) -> None:
        """Waits until the metric shows these differences and no others, by a look that began after this call."""
        began = datetime.datetime.now(datetime.UTC).timestamp()

        async def shown() -> bool:
            with contextlib.suppress(OSError):
                finished = observer.metric(self.metrics, "orderflow_reconciliation_last_success_timestamp_seconds")
                found = {kind.name: observer.metric(self.metrics, METRIC, kind=kind.name) for kind in Kind}
                return finished > began and {kind: count for kind, count in found.items() if count} == differences
            return False

        await observer.eventually(shown, within=60, what=f"the differences {differences}")


@pytest.fixture
async def till(postgres: Any, tmp_path: Path) -> AsyncIterator[Till]:
    settings = await engines.new_database(postgres, template=engines.TEMPLATE)
    gateway = GatewayProcess(tmp_path)
    await gateway.start()
    try:
        async with engines.opened(settings) as database:
            yield Till(settings, database, gateway)
    finally:
        await gateway.aclose()


async def test_a_difference_planted_in_the_gateways_journal_is_found_listed_and_counted(till: Till) -> None:
    lives = [await till.sell() for _ in range(5)]
    async with till.reconciler():
        await till.shows()

        async def all_compared() -> bool:
            return observer.metric(till.metrics, "orderflow_reconciliation_compared_orders_total") >= len(lives)

        await observer.eventually(all_compared, within=60, what="every order compared")
        await till.shows()
        assert await is_serving(till.health)
    assert await till.reconcile("--since", "1h") == (0, [], "")

    planted = {"order_id": lives[2].order_id, "time": lives[2].now.timestamp(), "amount_minor": 7}
    await till.plant(**planted)
    code, listed, _ = await till.reconcile("--since", "1h")
    assert (code, [(row["kind"], row["order_id"], row["gateway"]) for row in listed]) == (
        3,
        [("CHARGED_TWICE", lives[2].order_id, "EUR:7")],
    )
    assert (await till.reconcile("--since", "1h", "--limit", "1"))[0] == 3
    async with till.reconciler():
        await till.shows(CHARGED_TWICE=1)
    cases = await engines.fetch(till.database, "select order_id from reconciliation_cases where resolved_time is null")
    assert cases == [{"order_id": lives[2].order_id}]
    # Known by now, it is listed whatever the window.
    assert (await till.reconcile("--since", "1s"))[0] == 3

    await till.gateway.client.refund("given back by hand", charge_reference=listed[0]["reference"], amount_minor=7)
    async with till.reconciler():
        await till.shows()
    assert (await till.reconcile("--since", "1h"))[0] == 0


async def test_what_the_gateway_has_lost_and_what_it_never_knew(till: Till) -> None:
    lost, kept = await till.sell(), await till.sell()
    await till.plant(order_id="no order", time=kept.now.timestamp())
    lines = till.gateway.journal.read_text().splitlines(keepends=True)
    await till.gateway.end(signal.SIGTERM)
    till.gateway.journal.write_text("".join(line for line in lines if lost.order_id not in line))
    await till.gateway.start()
    async with till.reconciler():
        await till.shows(CAPTURE_NOT_AT_GATEWAY=1, CHARGE_WITHOUT_ORDER=1)
    code, listed, _ = await till.reconcile()
    assert code == 3
    assert {row["kind"]: (row["order_id"], row["gateway"], row["booked"]) for row in listed} == {
        "CAPTURE_NOT_AT_GATEWAY": (lost.order_id, "", f"EUR:{TOTAL}"),
        "CHARGE_WITHOUT_ORDER": ("no order", f"EUR:{TOTAL}", ""),
    }


async def test_an_order_that_says_paid_and_was_not(till: Till) -> None:
    honest, forged = await till.sell(), await Life(till.database).begin()
    async with till.database.connection() as connection:
        await connection.execute(
            "update orders set status = 4, payment_status = 4, update_time = $2 where order_id = $1",
            forged.order_id,
            honest.now,
        )
    async with till.reconciler():
        await till.shows(PAID_WITHOUT_CAPTURE=1)


async def test_a_gateway_that_is_away_is_no_difference_and_no_agreement(till: Till) -> None:
    await till.sell()
    await till.gateway.end(signal.SIGKILL)
    code, listed, said = await till.reconcile()
    assert (code, listed) == (1, None)
    assert "the payment gateway (ORDERFLOW_GATEWAY_URL)" in said
    async with till.reconciler() as running:
        await observer.eventually(lambda: asyncio.to_thread(_answers, till.metrics), within=60, what="its metrics")
        assert observer.metric(till.metrics, METRIC) == 0
        assert observer.metric(till.metrics, "orderflow_reconciliation_last_success_timestamp_seconds") == 0
        assert running.returncode is None
        assert not await is_serving(till.health)


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError):
        observer.metric(address, METRIC)
        return True
    return False


async def test_it_waits_for_migrations_and_wants_a_gateway_that_others_can_ask(till: Till, postgres: Any) -> None:
    code, _, said = await till.reconcile(ORDERFLOW_GATEWAY_KIND="simulated")
    assert code == 1
    assert "ORDERFLOW_GATEWAY_KIND" in said
    till.settings = await engines.new_database(postgres)
    async with till.reconciler():
        await observer.eventually(lambda: asyncio.to_thread(_answers, till.metrics), within=60, what="its metrics")
        assert not await is_serving(till.health)
        await migrate.migrate(till.settings)
        await till.shows()


async def test_the_version_before_starts_where_what_it_does_not_know_only_expands(till: Till) -> None:
    newer = "insert into schema_migrations (name, checksum, expands_only) values ('9998_newer.sql', 'its', true)"
    await engines.fetch(till.database, newer)
    async with till.reconciler():
        await till.shows()
    await engines.fetch(till.database, "update schema_migrations set expands_only = false where checksum = 'its'")
    command, environment = till.command("run", "reconciler")
    refused = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        _, said = await refused.communicate()
    assert refused.returncode == 1
    assert b"9998_newer.sql" in said
