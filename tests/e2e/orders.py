"""Places and awaits orders through the client."""

import asyncio
import contextlib
import time
from typing import Any

from orderflow_client import (
    CreateOrderResponse,
    DeadlineExceeded,
    Order,
    OrdersClient,
    OrderStatus,
    Unavailable,
    item,
)

OPEN = (OrderStatus.ORDER_STATUS_CREATED, OrderStatus.ORDER_STATUS_PROCESSING)


async def place(client: OrdersClient, **changes: Any) -> CreateOrderResponse:
    """Places an order of two SKU-1 that will be paid, unless told otherwise."""
    order: dict[str, Any] = {
        "user_id": "u-1",
        "email": "customer@example.com",
        "payment_method": "pm_card_visa",
        "items": [item("SKU-1", 2, 1999, "EUR")],
    }
    return await client.create_order(**{**order, **changes})


async def settled(client: OrdersClient, created: CreateOrderResponse, *, within: float = 60) -> Order:
    """Returns the order once it is settled."""
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(Unavailable, DeadlineExceeded):  # the read model may take longer than one call may
            response = await client.get_order(created.order.order_id, consistency_token=created.consistency_token)
            if response.order.status not in OPEN:
                return response.order
        assert time.monotonic() < deadline, f"{created.order.order_id} is not settled within {within} s"
        await asyncio.sleep(0.05)
