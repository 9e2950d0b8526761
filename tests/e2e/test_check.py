"""`orderflow check` on the running system: how it stands, and what each says when something is away."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from devstack.system import RECONCILER
from orderflow_client import OrdersClient
from tests.e2e import letters, observer, orders, programs
from tests.e2e.observed import ObservedSystem

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


async def check(system: ObservedSystem, *arguments: str) -> tuple[int, str]:
    """Runs `orderflow check` as a monitoring agent does. Returns its exit code and what it prints."""
    settings = {**system.environment(), "ORDERFLOW_TARGET": system.server_address}
    path = os.pathsep.join(str(ROOT / part) for part in ("", "generated", "clients"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERFLOW_")}
    code, out, err = await programs.run(
        sys.executable, "-m", "cli", "check", *arguments, environment={**inherited, "PYTHONPATH": path, **settings}
    )
    assert err == ""
    return code, out.decode()


async def states(system: ObservedSystem, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs all checks. Returns the exit code and each check's answer."""
    code, out = await check(system, "all", "--format", "json", "--timeout", "20s", *arguments)
    return code, {each["check"]: each for each in json.loads(out)["checks"]}


def figure(answer: dict[str, Any], label: str) -> float:
    (value,) = [each["value"] for each in answer["measures"] if each["label"] == label]
    return math.nan if value is None else float(value)


async def test_all_is_well_of_a_healthy_system(healthy: ObservedSystem, client: OrdersClient) -> None:
    await orders.settled(client, await orders.place(client))
    await healthy.all_caught_up(within=60)
    # Other tests leave dead letters, and charges that nobody knows of, on purpose; nothing is compared here yet.
    code, found = await states(healthy, "--skip", "dlq", "--skip", "orders", "--skip", "ledger")
    # What is timed is as slow as the machine: how the system stands, it stands by its own figures.
    slow = {name for name in ("server", "db") if figure(found[name], "time") > 1}
    expected = {name: "WARNING" if name in slow else "OK" for name in ("server", "kafka", "db", "lag")}
    assert {name: each["state"] for name, each in found.items()} == expected, found
    assert code == (1 if slow else 0)
    assert figure(found["kafka"], "brokers") == 1
    assert figure(found["lag"], "projector_age") == 0

    code, line = await check(healthy, "lag", "--warn", "10s", "--crit", "60s", "--format", "nagios")
    assert code == 0
    assert line.startswith("LAG OK no group is behind | order-processor_age=0s;10;60 order-processor_records=0 ")
    assert line.count("\n") == 1


async def test_a_group_that_does_not_run_is_seen_to_be_behind(healthy: ObservedSystem, client: OrdersClient) -> None:
    await healthy.all_caught_up(within=60)
    await healthy.stop_role("payment-processor")
    await orders.place(client)

    async def is_behind() -> str | None:
        code, line = await check(healthy, "lag", "--warn", "1s", "--crit", "1h", "--format", "nagios")
        return line if code == 1 else None

    line = await observer.eventually(is_behind, within=60, what="a payment processor that is behind")
    assert line.startswith("LAG WARNING payment-processor: oldest ")
    code, _ = await check(healthy, "lag", "--group", "payment-processor", "--warn", "0s", "--crit", "0.5s")
    assert code == 2
    code, _ = await check(healthy, "lag", "--group", "order-processor", "--warn", "0s", "--crit", "0.5s")
    assert code == 0
    healthy.start_role("payment-processor")
    await healthy.caught_up("payment-processor", within=60)
    code, _ = await check(healthy, "lag", "--group", "payment-processor", "--warn", "0s", "--crit", "0.5s")
    assert code == 0


async def test_a_dead_letter_is_counted(healthy: ObservedSystem) -> None:
    async def unresolved() -> tuple[int, float]:
        code, out = await check(healthy, "dlq", "--format", "json", "--warn", "100000", "--crit", "1000000")
        return code, figure(json.loads(out), "unresolved")

    code, before = await unresolved()
    assert code == 0
    await observer.write(letters.bootstrap(healthy), "orders", [(b"check", b"no event")])

    async def counted() -> bool:
        return (await unresolved())[1] == before + 4  # one for each group that reads it

    await observer.eventually(counted, within=60, what="four dead letters more")
    code, line = await check(healthy, "dlq", "--warn", f"{before + 3:.0f}", "--crit", "1000000", "--format", "nagios")
    assert code == 1
    assert line.startswith(f"DLQ WARNING {before + 4:.0f} dead letters wait for somebody")
    assert (await check(healthy, "dlq", "--warn", "0", "--crit", f"{before + 3:.0f}"))[0] == 2


async def test_the_ledger_is_known_once_it_was_compared(healthy: ObservedSystem) -> None:
    await healthy.count("with gone as (delete from reconciliation_progress returning 1) select count(*) from gone")
    code, line = await check(healthy, "ledger", "--format", "nagios")
    assert code == 3
    assert (
        line == "LEDGER UNKNOWN nothing was ever compared: is the reconciler running? | differences=U;0;0 compared=U\n"
    )
    healthy.start_role(
        RECONCILER,
        {
            "ORDERFLOW_RECONCILER_INTERVAL": "0.5",
            "ORDERFLOW_RECONCILER_SETTLE_MINUTES": "0",
            "ORDERFLOW_RECONCILER_LOOK_BACK_DAYS": "0.000001",
        },
    )
    try:

        async def is_compared() -> bool:
            return (await check(healthy, "ledger"))[0] != 3

        await observer.eventually(is_compared, within=60, what="a comparison")
    finally:
        await healthy.stop_role(RECONCILER)
    # Where nobody compares it anew.
    case = (
        "insert into reconciliation_cases (order_id, movements, differences, found_time) values ('check', '[]',"
        """ '[{"kind": "CHARGED_TWICE", "order_id": "check"}]', now())"""
    )
    await healthy.count(f"with made as ({case} returning 1) select count(*) from made")
    try:
        code, line = await check(healthy, "ledger", "--format", "nagios")
        assert code == 2
        assert "differences: orderflow reconcile lists them" in line
    finally:
        gone = "delete from reconciliation_cases where order_id = 'check'"
        await healthy.count(f"with gone as ({gone} returning 1) select count(*) from gone")


async def test_a_server_that_is_away_is_said_and_dead_letters_are_not_0(healthy: ObservedSystem) -> None:
    await healthy.stop_role("server")
    code, found = await states(healthy, "--skip", "orders", "--skip", "ledger")
    assert code == 2
    assert {name: each["state"] for name, each in found.items()} == {
        "server": "CRITICAL", "kafka": "OK", "db": "OK", "lag": "OK", "dlq": "UNKNOWN",
    }  # fmt: skip
    assert found["dlq"]["measures"] == []
    assert f"the server at {healthy.server_address}: UNAVAILABLE" in found["dlq"]["summary"]
    await healthy.mend()


async def test_a_database_that_is_away_leaves_the_other_groups_known(healthy: ObservedSystem) -> None:
    await healthy.postgres.stop()
    code, found = await states(healthy, "--skip", "server", "--skip", "dlq")
    assert code == 2
    assert {name: each["state"] for name, each in found.items()} == {
        "kafka": "OK", "db": "CRITICAL", "lag": "UNKNOWN", "orders": "UNKNOWN", "ledger": "UNKNOWN",
    }  # fmt: skip
    assert "PostgreSQL" in found["orders"]["summary"]
    assert found["lag"]["summary"].startswith("projector: unknown, PostgreSQL, which has its positions")
    assert math.isnan(figure(found["lag"], "projector_age"))
    assert figure(found["lag"], "order-processor_age") == 0
    await healthy.mend()


async def test_lag_is_not_known_without_kafka(healthy: ObservedSystem) -> None:
    assert healthy.kafka is not None
    await healthy.kafka.stop()
    code, found = await states(healthy, "--skip", "server", "--skip", "orders", "--skip", "ledger", "--skip", "dlq")
    assert code == 2
    assert {name: each["state"] for name, each in found.items()} == {
        "kafka": "CRITICAL", "db": "OK", "lag": "UNKNOWN",
    }  # fmt: skip
    assert "Kafka (ORDERFLOW_KAFKA_BOOTSTRAP)" in found["lag"]["summary"]
    await healthy.mend()
