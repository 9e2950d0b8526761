"""The reconciler beside the running system: what it does agrees, and what is planted at the gateway is found."""

import asyncio
import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from devstack.system import RECONCILER
from orderflow.orders.v1 import order_service_pb2 as pb
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
from orderflow_client import Money, Order, OrdersClient, OrderStatus, PaymentStatus
from tests.e2e import observer, orders
from tests.e2e.observed import ObservedSystem

ROOT = Path(__file__).parents[2]
DIFFERENCES = "orderflow_reconciliation_differences"
# Only what happens from the start on: earlier tests have left charges unknown on purpose.
SETTINGS = {
    "ORDERFLOW_RECONCILER_INTERVAL": "0.5",
    "ORDERFLOW_RECONCILER_SETTLE_MINUTES": "0.05",
    "ORDERFLOW_RECONCILER_OVERLAP_MINUTES": "0",
    "ORDERFLOW_RECONCILER_LOOK_BACK_DAYS": "0.000001",
}

pytestmark = pytest.mark.timeout(300)


def shown(system: ObservedSystem, name: str, **labels: str) -> float:
    return observer.metric(system.metrics_address(RECONCILER), name, **labels)


async def looked(system: ObservedSystem) -> None:
    """Waits for a look at everything that has happened until now."""
    settled = time.time() + 60 * float(SETTINGS["ORDERFLOW_RECONCILER_SETTLE_MINUTES"])
    # The last look to end may have begun before; the one after it has not.
    for since in (settled, None):
        begun = since or shown(system, "orderflow_reconciliation_last_success_timestamp_seconds")

        async def is_done(begun: float = begun) -> bool:
            with contextlib.suppress(OSError):
                return shown(system, "orderflow_reconciliation_last_success_timestamp_seconds") > begun
            return False

        await observer.eventually(is_done, within=60, what="a reconciliation")


async def restart_gateway(system: ObservedSystem, journal: str) -> None:
    """Gives the gateway another journal behind everybody's back."""
    await system.stop_role("gateway")
    system.gateway_journal.write_text(journal)
    system.start_stand_in("gateway")
    await system.gateway_answers()


async def reconcile(system: ObservedSystem) -> tuple[int, list[dict[str, Any]]]:
    """Runs `orderflow reconcile`. Returns its exit code and what it lists."""
    path = os.pathsep.join(str(ROOT / part) for part in ("", "generated", "clients"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "reconcile", "--since", "5m", "-o", "json"),
        env={**os.environ, "PYTHONPATH": path, **system.environment(), **SETTINGS},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        listed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(listed)


@pytest.fixture
async def reconciled(healthy: ObservedSystem) -> AsyncIterator[ObservedSystem]:
    """The system with a reconciler beside it."""
    await healthy.all_caught_up(within=60)
    healthy.start_role(RECONCILER, SETTINGS)
    try:
        await healthy.wait_healthy([RECONCILER])
        yield healthy
    finally:
        await healthy.stop_role(RECONCILER)


async def paid(client: OrdersClient) -> Order:
    order = await orders.settled(client, await orders.place(client))
    assert order.status == OrderStatus.ORDER_STATUS_PAID
    return order


async def given_back(client: OrdersClient, order_id: str) -> None:
    async def is_given_back() -> bool:
        order = (await client.get_order(order_id)).order
        return bool(order.payment_status == PaymentStatus.PAYMENT_STATUS_REFUNDED)

    await observer.eventually(is_given_back, within=60, what="a refund")


async def test_what_the_system_does_agrees_and_what_is_planted_at_the_gateway_is_found(
    reconciled: ObservedSystem, client: OrdersClient
) -> None:
    channel = grpc.aio.insecure_channel(reconciled.server_address, options=(("grpc.enable_http_proxy", 0),))
    async with channel:
        stub = OrderServiceStub(channel)
        kept, shipped, cancelled, refunded = await asyncio.gather(*(paid(client) for _ in range(4)))
        declined = await orders.settled(
            client, await orders.place(client, payment_method="pm_card_chargeDeclinedExpiredCard")
        )
        assert declined.status == OrderStatus.ORDER_STATUS_PAYMENT_FAILED
        await stub.ShipOrder(pb.ShipOrderRequest(order_id=shipped.order_id, carrier="Parcel Service"), timeout=30)
        await stub.CancelOrder(pb.CancelOrderRequest(order_id=cancelled.order_id), timeout=30)
        part = Money(currency_code="EUR", amount_minor=998)
        await stub.RefundOrder(pb.RefundOrderRequest(order_id=refunded.order_id, amount=part), timeout=30)
        await stub.RefundOrder(pb.RefundOrderRequest(order_id=refunded.order_id), timeout=30)
    for order in (cancelled, refunded):
        await given_back(client, order.order_id)

    await looked(reconciled)
    assert shown(reconciled, "orderflow_reconciliation_compared_orders_total") >= 4
    assert shown(reconciled, DIFFERENCES) == 0

    journal = reconciled.gateway_journal.read_text()
    lines = [json.loads(line) for line in journal.splitlines()]
    charge = next(line for line in lines if line.get("order_id") == kept.order_id)
    planted = {**charge, "reference": f"ch_{uuid.uuid4().hex}", "key": "by hand", "time": time.time()}
    await restart_gateway(reconciled, f"{journal}{json.dumps(planted)}\n")
    try:
        await looked(reconciled)
        assert shown(reconciled, DIFFERENCES, kind="CHARGED_TWICE") == 1
        assert shown(reconciled, DIFFERENCES) == 1
        code, listed = await reconcile(reconciled)
        assert code == 3
        assert [(row["kind"], row["reference"]) for row in listed if row["order_id"] == kept.order_id] == [
            ("CHARGED_TWICE", planted["reference"])
        ]
    finally:
        await restart_gateway(reconciled, journal)
