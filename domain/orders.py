"""Makes an order out of a request."""

import datetime

from domain.lifecycle import LIFECYCLE
from domain.money import total_of
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest


def new_order(
    request: CreateOrderRequest, *, order_id: str, now: datetime.datetime, time_to_pay: datetime.timedelta
) -> Order:
    """Returns the order at revision 1, priced. The request must be valid."""
    order = Order(
        order_id=order_id,
        user_id=request.user_id,
        email=request.email,
        phone=request.phone,
        items=request.items,
        total=total_of(request.items),
        payment_method=request.payment_method,
        status=OrderStatus.ORDER_STATUS_CREATED,
        payment_status=PaymentStatus.PAYMENT_STATUS_NONE,
        revision=1,
        etag=etag_of(order_id, 1),
        labels=request.labels,
        external_reference=request.external_reference,
        language=request.language,
        muted_channels=request.muted_channels,
    )
    order.create_time.FromDatetime(now)
    order.update_time.CopyFrom(order.create_time)
    order.expire_time.FromDatetime(now + time_to_pay)
    return order


def charge_key(order_id: str) -> str:
    """Returns the idempotency key of an order's charge: one for ever."""
    return f"charge-{order_id}"


def etag_of(order_id: str, revision: int) -> str:
    """Returns the entity tag of an order at a revision (AIP-154)."""
    return f'"{order_id[:8]}-{revision}"'


def is_lifecycle(event_type: OrderEventType) -> bool:
    """Tells whether the event carries a revision: it moves the order, and customers are told of it."""
    return event_type in LIFECYCLE
