"""The server for other people's tests."""

from collections.abc import AsyncIterator

import pytest

from clients.tests.caller import ORDER
from domain.lifecycle import IllegalTransitionError
from orderflow_client import (
    EtagMismatch,
    IdentifierKind,
    IllegalTransition,
    InvalidOrder,
    Money,
    OrdersClient,
    OrderStatus,
    PaymentStatus,
    PreconditionFailed,
    RequestIdReused,
    Unavailable,
)
from server.testing import OrdersTestServer

VALID = {**ORDER, "email": "a@example.com"}


@pytest.fixture
async def server() -> AsyncIterator[OrdersTestServer]:
    async with OrdersTestServer() as started:
        yield started


@pytest.fixture
async def client(server: OrdersTestServer) -> AsyncIterator[OrdersClient]:
    async with OrdersClient(server.target) as connected:
        yield connected


async def test_an_order_stays_created_until_it_is_moved(server: OrdersTestServer, client: OrdersClient) -> None:
    placed = await client.create_order(**VALID)
    order_id = placed.order.order_id
    assert placed.order.total.amount_minor == 3998
    found = await client.get_order(order_id, consistency_token=placed.consistency_token)
    assert found.order == placed.order
    assert found.order.status == OrderStatus.ORDER_STATUS_CREATED
    assert server.orders == [found.order]
    server.pay(order_id)
    paid = (await client.get_order(order_id)).order
    assert (paid.status, paid.payment_status, paid.revision) == (
        OrderStatus.ORDER_STATUS_PAID,
        PaymentStatus.PAYMENT_STATUS_CAPTURED,
        3,
    )
    with pytest.raises(IllegalTransitionError):
        server.reject(order_id)
    with pytest.raises(IllegalTransitionError):
        server.pay(order_id)


async def test_orders_are_found_by_what_has_to_do_with_them(server: OrdersTestServer, client: OrdersClient) -> None:
    order_id = (await client.create_order(**VALID, request_id="r-1")).order.order_id
    server.pay(order_id)
    entries = [entry.entry_id async for entry in client.list_order_events(order_id)]
    kinds = {}
    for text in (order_id, "r-1", entries[1], f"test-{order_id}"):
        [found] = await client.find_orders(text)
        assert found.order_id == order_id
        kinds[text] = IdentifierKind.Name(found.kind)
    assert list(kinds.values()) == [f"IDENTIFIER_KIND_{each}" for each in ("ORDER", "REQUEST", "EVENT", "GATEWAY")]
    assert await client.find_orders("r-2") == []


async def test_orders_fail_as_asked(server: OrdersTestServer, client: OrdersClient) -> None:
    declined = (await client.create_order(**VALID)).order.order_id
    rejected = (await client.create_order(**VALID)).order.order_id
    server.process(declined)
    server.decline(declined, reason="EXPIRED_CARD")
    server.reject(rejected)
    ends = [(await client.get_order(each)).order for each in (declined, rejected)]
    assert [(order.status, order.failure_reason, order.revision) for order in ends] == [
        (OrderStatus.ORDER_STATUS_PAYMENT_FAILED, "EXPIRED_CARD", 3),
        (OrderStatus.ORDER_STATUS_REJECTED, "OUT_OF_STOCK", 2),
    ]


async def test_it_has_the_rules_of_the_real_one(server: OrdersTestServer, client: OrdersClient) -> None:
    with pytest.raises(InvalidOrder):
        await client.create_order(**ORDER)  # nobody could be told
    first = await client.create_order(**{**VALID, "request_id": "mine"})
    again = await client.create_order(**{**VALID, "request_id": "mine"})
    assert (again.order.order_id, len(server.orders)) == (first.order.order_id, 1)
    with pytest.raises(RequestIdReused):
        await client.create_order(**{**VALID, "request_id": "mine", "user_id": "other"})


async def test_a_paid_order_is_shipped_completed_and_refunded(server: OrdersTestServer, client: OrdersClient) -> None:
    order_id = (await client.create_order(**VALID)).order.order_id
    paid = server.pay(order_id)
    with pytest.raises(IllegalTransition) as early:
        await client.complete_order(order_id)
    assert (early.value.reason, early.value.order_status) == ("ILLEGAL_TRANSITION", "PAID")
    shipped = await client.ship_order(order_id, carrier="Parcel Service", tracking_code="T-1", etag=paid.etag)
    assert shipped.order.shipment.tracking_code == "T-1"
    with pytest.raises(EtagMismatch) as old:
        await client.complete_order(order_id, etag=paid.etag)
    assert (old.value.reason, old.value.order_status) == ("ETAG_MISMATCH", "SHIPPED")
    with pytest.raises(IllegalTransition):
        await client.cancel_order(order_id)
    await client.complete_order(order_id, etag=shipped.order.etag)
    with pytest.raises(PreconditionFailed) as much:
        await client.refund_order(order_id, amount=Money(amount_minor=3999, currency_code="EUR"))
    assert (much.value.reason, much.value.order_status) == ("REFUND_TOO_LARGE", "COMPLETED")
    refund = {"amount": Money(amount_minor=998, currency_code="EUR"), "request_id": "complaint-12"}
    part = await client.refund_order(order_id, **refund)
    assert await client.refund_order(order_id, **refund) == part
    assert part.order.refunded.amount_minor == 998
    with pytest.raises(RequestIdReused):
        await client.refund_order(order_id, request_id="complaint-12")
    whole = await client.refund_order(order_id)
    assert whole.order.status == OrderStatus.ORDER_STATUS_REFUNDED
    assert server.orders == [whole.order]


async def test_a_cancelled_orders_money_follows_when_the_test_says_so(
    server: OrdersTestServer, client: OrdersClient
) -> None:
    unpaid, paid = [(await client.create_order(**VALID)).order.order_id for _ in range(2)]
    server.pay(paid)
    await client.refund_order(paid, amount=Money(amount_minor=998, currency_code="EUR"))
    for order_id in (unpaid, paid):
        with pytest.raises(IllegalTransitionError):
            server.refund(order_id)  # it is not cancelled
        await client.cancel_order(order_id, reason="OUT_OF_BUSINESS")
    order = server.refund(paid)
    assert (order.status, order.payment_status, order.failure_reason, order.refunded.amount_minor) == (
        OrderStatus.ORDER_STATUS_CANCELLED,
        PaymentStatus.PAYMENT_STATUS_REFUNDED,
        "OUT_OF_BUSINESS",
        3998,
    )
    assert (await client.get_order(paid)).order == order
    history = [(entry.type, entry.reason) async for entry in client.list_order_events(paid)]
    assert history[-3:] == [
        ("PAYMENT_REFUNDED", ""),
        ("ORDER_CANCELLED", "OUT_OF_BUSINESS"),
        ("PAYMENT_REFUNDED", "OUT_OF_BUSINESS"),
    ]
    for order_id in (unpaid, paid):
        with pytest.raises(IllegalTransitionError):
            server.refund(order_id)  # there is nothing to pay back, and nothing any more


async def test_it_can_be_away(server: OrdersTestServer, client: OrdersClient) -> None:
    server.is_available = False
    with pytest.raises(Unavailable):
        await client.create_order(**VALID)
    server.is_available = True
    placed = await client.create_order(**VALID)
    assert len(server.orders) == 1
    server.is_available = False
    with pytest.raises(Unavailable):
        await client.cancel_order(placed.order.order_id)


async def test_an_order_has_messages_and_dead_letters_in_its_history(
    server: OrdersTestServer, client: OrdersClient
) -> None:
    order_id = (await client.create_order(**VALID)).order.order_id
    server.process(order_id)
    letter = server.give_up(order_id, group="payment-processor", error_class="GATEWAY_REFUSED", error_message="403")
    server.pay(order_id)
    server.notify(order_id)
    entries = [entry async for entry in client.list_order_events(order_id)]
    assert sorted(entry.type for entry in entries) == [
        "DEAD_LETTER",
        "NOTIFICATION_SENT",
        "ORDER_CREATED",
        "ORDER_PAID",
        "ORDER_PROCESSING",
    ]
    by_type = {entry.type: entry for entry in entries}
    told, given_up = by_type["NOTIFICATION_SENT"], by_type["DEAD_LETTER"]
    assert (told.cause_id, told.notification.notified_type) == (by_type["ORDER_PAID"].entry_id, "ORDER_PAID")
    assert (given_up.cause_id, given_up.reason) == (by_type["ORDER_PROCESSING"].entry_id, "GATEWAY_REFUSED")
    assert letter.key == order_id.encode()
