"""Makes an order out of a request."""

import datetime

from domain.lifecycle import LIFECYCLE
from domain.money import add_up
from domain.times import set_time
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import ORDER_STATUS_CREATED, PAYMENT_STATUS_NONE, Order
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest


def new_order(
    request: CreateOrderRequest, *, order_id: str, now: datetime.datetime, time_to_pay: datetime.timedelta
) -> Order:
    """Returns the order at revision 1, priced. The request must be valid."""
    order = unpaid(now, time_to_pay)
    fill(order, request, order_id=order_id)
    return order


def unpaid(now: datetime.datetime, time_to_pay: datetime.timedelta) -> Order:
    """Returns what all orders placed at a moment have in common."""
    order = Order(status=ORDER_STATUS_CREATED, payment_status=PAYMENT_STATUS_NONE, revision=1)
    set_time(order.create_time, now)
    order.update_time.CopyFrom(order.create_time)
    set_time(order.expire_time, now + time_to_pay)
    return order


def fill(order: Order, request: CreateOrderRequest, *, order_id: str) -> None:
    """Makes the order asked for out of an unpaid one. The request must be valid."""
    # Every order comes by here: what is copied is copied once, and what is not set is not touched.
    items = request.items
    order.order_id = order_id
    order.user_id = request.user_id
    order.items.MergeFrom(items)
    order.DiscardUnknownFields()  # type: ignore[no-untyped-call, unused-ignore]  # a merge takes those of items along
    add_up(items, order.total)
    order.payment_method = request.payment_method
    order.etag = etag_of(order_id, 1)
    if email := request.email:
        order.email = email
    if phone := request.phone:
        order.phone = phone
    if reference := request.external_reference:
        order.external_reference = reference
    if language := request.language:
        order.language = language
    if labels := request.labels:
        order.labels.update(labels)
    if channels := request.muted_channels:
        order.muted_channels.extend(channels)


def charge_key(order_id: str) -> str:
    """Returns the idempotency key of an order's charge: one for ever."""
    return f"charge-{order_id}"


def etag_of(order_id: str, revision: int) -> str:
    """Returns the entity tag of an order at a revision (AIP-154)."""
    return f'"{order_id[:8]}-{revision}"'


def is_lifecycle(event_type: OrderEventType) -> bool:
    """Tells whether the event carries a revision: it moves the order, and customers are told of it."""
    return event_type in LIFECYCLE
