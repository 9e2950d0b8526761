"""A working day: orders in every state, dead letters, and processes with something to say."""

import asyncio
import time

from orderflow_client import NotificationChannel, OrdersClient, item
from tests.console.system import System

BUSY = """
orderflow_order_events_total{{type="ORDER_CREATED"}} {created}
orderflow_order_events_total{{type="ORDER_PROCESSING"}} {processing}
orderflow_order_events_total{{type="ORDER_PAID"}} {paid}
orderflow_order_events_total{{type="NOTIFICATION_SENT"}} {told}
orderflow_order_events_total{{type="ORDER_REJECTED"}} {rejected}
orderflow_order_events_total{{type="PAYMENT_FAILED"}} {declined}
rpc_server_call_duration_seconds_count{{rpc_method="orderflow.orders.v1.OrderService/CreateOrder"}} {created}
"""


def orders_in(total: int) -> str:
    """Returns what a process says once so many orders came in."""
    return BUSY.format(
        created=total,
        processing=total * 991 // 1000,
        paid=total * 958 // 1000,
        told=total * 955 // 1000,
        rejected=total * 8 // 1000,
        declined=total * 21 // 1000,
    )


def worker(group: str, *, lag: int = 0, in_flight: int = 0, age: float = 0, paused: int = 0) -> str:
    """Returns what a worker's /metrics says."""
    return f"""
orderflow_worker_lag_records{{group="{group}",topic="orders",partition="0"}} {lag}
orderflow_worker_inflight_records{{group="{group}"}} {in_flight}
orderflow_worker_oldest_record_age_seconds{{group="{group}"}} {age}
orderflow_worker_paused_partitions{{group="{group}",reason="dependency_down"}} {paused}
orderflow_worker_paused_partitions{{group="{group}",reason="busy"}} 0
orderflow_worker_last_progress_timestamp_seconds{{group="{group}"}} {time.time() - age}
"""


def breaker(state: str) -> str:
    """Returns what the payment processor says of its breaker."""
    return "".join(
        f'orderflow_breaker_state{{breaker="gateway",state="{each}"}} {int(each == state)}\n'
        for each in ("closed", "open", "half_open")
    )


async def processes(system: System, *, gateway: str = "closed") -> str:
    """Starts the processes and returns the setting that names them."""
    pages = {
        "server": orders_in(0),
        "order-processor": worker("order-processor", lag=3, in_flight=8, age=0.2),
        "payment-processor": worker(
            "payment-processor", lag=1204, in_flight=256, age=252, paused=2 if gateway == "open" else 0
        )
        + breaker(gateway),
        "notification-email": worker("notification-email", in_flight=2),
        "notification-sms": worker("notification-sms"),
        "projector": "orderflow_projection_lag_seconds 0.2\n",
    }
    return ",".join([await system.metrics.start(name, page) for name, page in pages.items()])


async def place(orders: OrdersClient, **fields: object) -> str:
    """Places an order and returns its id."""
    placed = await orders.create_order(
        **{
            "user_id": "u-1042",
            "email": "carla.customer@example.com",
            "phone": "+491701234567",
            "payment_method": "pm_card_visa",
            "items": [item("SKU-1", 2, 1999, "EUR"), item("SKU-3", 1, 125, "EUR")],
            "external_reference": "basket-7781",
            **fields,
        }
    )
    return placed.order.order_id


async def a_day(system: System, *, pause: float = 0) -> dict[str, str]:
    """Places orders of every kind and returns their ids by what became of them. `pause`: seconds between two steps."""
    server = system.orders
    async with OrdersClient(server.target) as orders:
        made = {name: await place(orders) for name in ("paid", "declined", "rejected", "shipped", "given up", "waits")}
        server.process(made["paid"])
        await asyncio.sleep(4 * pause)
        server.pay(made["paid"])
        await asyncio.sleep(pause)
        server.notify(made["paid"])
        await asyncio.sleep(2 * pause)
        server.notify(made["paid"], NotificationChannel.NOTIFICATION_CHANNEL_SMS)
        server.decline(made["declined"])
        server.reject(made["rejected"])
        server.pay(made["shipped"])
        await orders.ship_order(made["shipped"], carrier="Parcel Service", tracking_code="T-1")
        for name in ("given up", "waits"):
            server.process(made[name])
            system.age(made[name], 840)
    made["letter"] = system.give_up(
        made["given up"],
        group="payment-processor",
        error_class="GATEWAY_CHARGE_UNKNOWN",
        message="the gateway timed out and its look-up for carla.customer@example.com did not settle it",
    )
    return made
