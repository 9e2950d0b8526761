"""Builds requests."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Mapping
from typing import Required, TypedDict, Unpack

from orderflow.orders.v1.order_pb2 import LineItem, Money, NotificationChannel, OrderStatus
from orderflow.orders.v1.order_service_pb2 import (
    BatchGetOrdersRequest,
    CreateOrderRequest,
    GetOrderRequest,
    ListOrdersRequest,
)


class NewOrder(TypedDict, total=False):
    """The arguments of `create_order`. The server checks them and names every violation at once."""

    user_id: Required[str]
    """Who the order is for, in your own terms."""
    items: Required[Iterable[LineItem]]
    """What is ordered, each SKU once: see `item`."""
    payment_method: Required[str]
    """Token of the payment method at the payment provider, never card data."""
    email: str
    """Where e-mail goes. Give at least one of `email` and `phone`."""
    phone: str
    """Where text messages go, E.164."""
    labels: Mapping[str, str]
    """Your own key-value pairs."""
    external_reference: str
    """Your own identifier of the order."""
    language: str
    """Language of the messages to the customer, a BCP 47 tag."""
    muted_channels: Iterable[NotificationChannel | str]
    """Channels that the customer does not want to be told by: constants or their names."""
    request_id: str | None
    """Same request_id, same order, however often it is sent. Made for each call when not given."""
    validate_only: bool
    """Only check the order: the answer is the order as it would be accepted, without an order_id and a token."""


class OrderFilter(TypedDict, total=False):
    """The arguments of `list_orders`. What is not given matches all."""

    user_id: str
    """Orders of this user."""
    statuses: Iterable[OrderStatus | str]
    """Orders in one of these states: constants or their names."""
    created_from: datetime.datetime
    """Orders created at this time or later; with a time zone."""
    created_before: datetime.datetime
    """Orders created before this time; with a time zone."""


def item(sku: str, quantity: int, amount_minor: int, currency_code: str) -> LineItem:
    """Returns a line of an order; `amount_minor` is the price of one unit in cents (EUR), yen (JPY) ..."""
    return LineItem(
        sku=sku, quantity=quantity, unit_price=Money(amount_minor=amount_minor, currency_code=currency_code)
    )


def create_order_request(**order: Unpack[NewOrder]) -> CreateOrderRequest:
    """Returns the request, with a request_id in any case."""
    request = CreateOrderRequest(**order)
    request.request_id = given_or_new(request.request_id)
    return request


def given_or_new(request_id: str | None) -> str:
    """Returns the request_id that a call carries in any case: it is what makes a repeat safe."""
    return request_id or str(uuid.uuid4())


def placed_by(*requests: CreateOrderRequest) -> tuple[str, ...]:
    """Returns the request_ids of the orders that the requests place: none for those that only check."""
    return tuple(request.request_id for request in requests if not request.validate_only)


def batch_get_orders_request(
    order_ids: Iterable[str], consistency_tokens: Mapping[str, str] | None
) -> BatchGetOrdersRequest:
    """Returns the request; the tokens go by order id."""
    tokens = consistency_tokens or {}
    return BatchGetOrdersRequest(
        requests=[GetOrderRequest(order_id=each, consistency_token=tokens.get(each, "")) for each in order_ids]
    )


def list_orders_request(page_size: int, page_token: str, **which: Unpack[OrderFilter]) -> ListOrdersRequest:
    """Returns the request of a page."""
    for name in ("created_from", "created_before"):
        time = which.get(name)
        if isinstance(time, datetime.datetime) and time.tzinfo is None:
            raise ValueError(f"{name} needs a time zone: protobuf would take it for UTC")
    return ListOrdersRequest(page_size=page_size, page_token=page_token, **which)
