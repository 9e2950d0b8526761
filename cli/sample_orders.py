"""Three orders through the client, and their lives as they happen."""

import asyncio
from collections.abc import Callable
from typing import Final

from devstack.system import System
from domain.lifecycle import SETTLED
from messaging.envelope import type_name
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import NotificationChannel, OrderStatus
from orderflow_client import OrdersClient, item
from settings import DatabaseSettings
from storage.database import Database
from storage.order_views import OrderViews

_LIFE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.05
_CHANNELS: Final = 2

Say = Callable[[str], None]


async def place(system: System, *, say: Say) -> None:
    """Places an order that is paid, a declined one and one that is out of stock; says each event as it happens."""
    database = Database(
        DatabaseSettings.model_validate({"url": system.environment()["ORDERFLOW_DATABASE_URL"]}), application="dev"
    )
    await database.open()
    views = OrderViews(database)
    try:
        async with OrdersClient(system.server_address) as client:
            placed = {
                "paid": await _create(client, "SKU-1", 1999, "pm_card_visa"),
                "declined": await _create(client, "SKU-2", 4950, "pm_card_chargeDeclined"),
                "out of stock": await _create(client, "SKU-SOLD-OUT", 999, "pm_card_visa"),
            }
        lives = await asyncio.gather(*(_follow(views, order_id, name, say) for name, order_id in placed.items()))
        say("")
        for (name, order_id), life in zip(placed.items(), lives, strict=True):
            say(f"order {order_id} ({name}): {' → '.join(life)}")
    finally:
        await database.close()


async def _create(client: OrdersClient, sku: str, amount_minor: int, payment_method: str) -> str:
    response = await client.create_order(
        user_id="sample",
        email="customer@example.com",
        phone="+491701234567",
        items=[item(sku, 2, amount_minor, "EUR")],
        payment_method=payment_method,
    )
    return response.order.order_id


async def _follow(views: OrderViews, order_id: str, name: str, say: Say) -> list[str]:
    """Says the order's events until it is settled and its customer was told; returns its statuses."""
    seen: set[str] = set()
    lifecycle: list[OrderEvent] = []
    told = 0
    try:
        async with asyncio.timeout(_LIFE_SECONDS):
            while not (lifecycle and lifecycle[-1].order.status in SETTLED and told >= _CHANNELS * len(lifecycle)):
                for event in await views.history(order_id):
                    if event.event_id in seen:
                        continue
                    seen.add(event.event_id)
                    if event.revision:
                        lifecycle = sorted([*lifecycle, event], key=lambda each: each.revision)
                    else:
                        told += 1
                    time = event.occur_time.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
                    say(f"{time}  {order_id[:8]}  {name:<13} {_describe(event)}")
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        say(f"{order_id} ({name}) is not settled after {_LIFE_SECONDS:.0f} s: see the logs")
    return [OrderStatus.Name(event.order.status).removeprefix("ORDER_STATUS_") for event in lifecycle]


def _describe(event: OrderEvent) -> str:
    text = type_name(event.type)
    if event.type == OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT:
        channel = NotificationChannel.Name(event.notification_sent.channel).removeprefix("NOTIFICATION_CHANNEL_")
        return f"{text} {type_name(event.notification_sent.notified_type)} by {channel}"
    return f"{text} {event.order.failure_reason}".rstrip()
