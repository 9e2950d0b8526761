"""Makes dead letters and works on them through the command line."""

import asyncio
import json
import os
import pathlib
import sys
import uuid
from typing import Any

import asyncpg

from devstack.system import System
from orderflow.events.v1.order_event_pb2 import EventMetadata, OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import LineItem, Money, Order, OrderStatus, PaymentStatus

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def bootstrap(system: System) -> str:
    return f"127.0.0.1:{system.ports.kafka}"


async def dlq(system: System, *arguments: str) -> tuple[int, Any, str]:
    """Runs `orderflow dlq` as a person would and returns its exit code, JSON output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "dlq", *arguments,
        env={**os.environ, "PYTHONPATH": f"{_ROOT}:{_ROOT / 'generated'}", "ORDERFLOW_TARGET": system.server_address},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, json.loads(out) if out.strip() else None, err.decode()


def processing(
    order_id: str, *, user_id: str = "u-1", email: str = "customer@example.com", phone: str = ""
) -> OrderEvent:
    """An ORDER_PROCESSING whose order has no row: the payment processor retries it, and gives up in the end."""
    order = Order(
        order_id=order_id,
        user_id=user_id,
        email=email,
        phone=phone,
        items=[LineItem(sku="SKU-2", quantity=1, unit_price=Money(currency_code="EUR", amount_minor=4950))],
        total=Money(currency_code="EUR", amount_minor=4950),
        payment_method="pm_card_visa",
        status=OrderStatus.ORDER_STATUS_PROCESSING,
        payment_status=PaymentStatus.PAYMENT_STATUS_PENDING,
        revision=2,
    )
    order.create_time.GetCurrentTime()
    order.update_time.GetCurrentTime()
    return OrderEvent(
        event_id=str(uuid.uuid4()),
        type=OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING,
        order=order,
        revision=2,
        occur_time=order.update_time,
        metadata=EventMetadata(correlation_id="c-1", source="test", attempt=1, caller="local"),
    )


async def add_row(system: System, event: OrderEvent) -> None:
    """Gives the order of `processing` its row, with the stock that it holds."""
    connection = await asyncpg.connect(system.postgres.dsn)
    try:
        await connection.execute(
            "insert into orders (order_id, caller, content, status, payment_status, revision, expire_time, update_time)"
            " values ($1, 'local', $2, 2, 2, 2, now() + interval '1 hour', now())",
            event.order.order_id,
            event.order.SerializeToString(),
        )
        await connection.execute("update stock set available = available - 1, held = held + 1 where sku = 'SKU-2'")
    finally:
        await connection.close()
