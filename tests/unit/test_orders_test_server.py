"""The server for other people's tests."""

from collections.abc import AsyncIterator

import pytest

from clients.tests.caller import ORDER
from domain.lifecycle import IllegalTransitionError
from orderflow_client import InvalidOrder, OrdersClient, OrderStatus, PaymentStatus, RequestIdReused, Unavailable
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


async def test_it_can_be_away(server: OrdersTestServer, client: OrdersClient) -> None:
    server.is_available = False
    with pytest.raises(Unavailable):
        await client.create_order(**VALID)
    server.is_available = True
    await client.create_order(**VALID)
    assert len(server.orders) == 1
