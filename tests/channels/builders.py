"""Orders, events and messages for the tests of channels."""

from typing import Any

from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType, PaymentRefundedDetails
from orderflow.orders.v1.order_pb2 import LineItem, Money, Order, Shipment
from workers.channels.channel import Message
from workers.channels.rendering import Renderer

ORDER_ID = "5b6f1c1e-7d5b-5c0a-9a4e-0d6f1b2c3a41"
EVENT_ID = "a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c42"
EMAIL = "carla.customer@example.com"
PHONE = "+491701234567"

LIFECYCLE = [value for name, value in OrderEventType.items() if 1 <= value <= 10]


def renderer() -> Renderer:
    return Renderer(message_id_domain="shop.example", shop_name="Corner Shop")


def an_order(**fields: Any) -> Order:
    defaults: dict[str, Any] = {
        "order_id": ORDER_ID,
        "email": EMAIL,
        "phone": PHONE,
        "items": [LineItem(sku="SKU-1", quantity=2, unit_price=Money(currency_code="EUR", amount_minor=1999))],
        "total": Money(currency_code="EUR", amount_minor=3998),
        "shipment": Shipment(carrier="Parcels & Co", tracking_code="TRACK-77"),
        "refunded": Money(currency_code="EUR", amount_minor=1500),
        "failure_reason": "OUT_OF_STOCK",
    }
    return Order(**(defaults | fields))


def an_event(event_type: OrderEventType = OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID, **fields: Any) -> OrderEvent:
    event = OrderEvent(event_id=EVENT_ID, type=event_type, order=an_order(**fields))
    if event_type == OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED:
        event.payment_refunded.CopyFrom(
            PaymentRefundedDetails(amount=Money(currency_code="EUR", amount_minor=1500), gateway_reference="re_1")
        )
    return event


def a_message(number: int = 1, **fields: Any) -> Message:
    defaults: dict[str, Any] = {
        "recipient": EMAIL,
        "subject": "Your order is paid",
        "text": "Thank you.\n.\nBye\n",
        "html": "<p>Thank you.</p>",
        "message_id": f"<{number}.email@shop.example>",
        "template": "en/email/order_paid",
        "order_id": ORDER_ID,
    }
    return Message(**(defaults | fields))
