"""Lists, a page at a time and all pages."""

import datetime

import pytest

from orderflow.orders.v1.order_pb2 import Order
from orderflow_client import IdentifierKind, OrderStatus


@pytest.fixture
def stored(orders):
    orders.stored = [Order(order_id=f"order-{number}") for number in range(5)]
    return [order.order_id for order in orders.stored]


async def test_all_orders_over_all_pages(caller, orders, stored):
    found = await caller.all("list_orders", user_id="u-1")
    assert [order.order_id for order in found] == stored
    assert [seen.request.page_token for seen in orders.seen] == ["", "2", "4"]
    assert {seen.request.user_id for seen in orders.seen} == {"u-1"}


async def test_pages_are_asked_for_as_they_are_needed(caller, orders, stored):
    async for _ in caller.each("list_orders"):
        break
    assert len(orders.seen) == 1


async def test_one_page(caller, stored):
    page = await caller.call("list_orders_page", page_size=3)
    assert [order.order_id for order in page.orders] == stored[:3]
    page = await caller.call("list_orders_page", page_size=3, page_token=page.next_page_token)
    assert ([order.order_id for order in page.orders], page.next_page_token) == (stored[3:], "")


async def test_the_filter_is_passed_on(caller, orders):
    berlin = datetime.timezone(datetime.timedelta(hours=2))
    await caller.all(
        "list_orders",
        statuses=[OrderStatus.ORDER_STATUS_PAID, OrderStatus.ORDER_STATUS_REJECTED],
        created_from=datetime.datetime(2026, 7, 1, 2, tzinfo=berlin),
        created_before=datetime.datetime(2026, 7, 2, tzinfo=datetime.UTC),
    )
    request = orders.seen[0].request
    assert list(request.statuses) == [OrderStatus.ORDER_STATUS_PAID, OrderStatus.ORDER_STATUS_REJECTED]
    assert request.created_from.ToJsonString() == "2026-07-01T00:00:00Z"
    assert request.created_before.ToJsonString() == "2026-07-02T00:00:00Z"


async def test_a_time_without_a_zone_is_refused(caller, orders):
    with pytest.raises(ValueError, match="created_from needs a time zone"):
        await caller.all("list_orders", created_from=datetime.datetime(2026, 7, 1))  # noqa: DTZ001
    assert orders.seen == []


async def test_an_unknown_filter_is_refused(caller, orders):
    with pytest.raises(ValueError, match="user"):
        await caller.all("list_orders", user="u-1")
    assert orders.seen == []


async def test_the_history_over_all_pages(caller, orders):
    entries = await caller.all("list_order_events", "order-1")
    assert [entry.type for entry in entries] == [
        "ORDER_CREATED",
        "ORDER_PROCESSING",
        "NOTIFICATION_SENT",
        "ORDER_PAID",
        "DEAD_LETTER",
    ]
    page = await caller.call("list_order_events_page", "order-1", page_size=4)
    assert (len(page.entries), page.next_page_token) == (4, "4")


async def test_orders_are_found_by_any_identifier(caller, orders):
    orders.found = {"pi_1": ["order-1", "order-2"]}
    found = await caller.call("find_orders", "pi_1")
    assert [(each.order_id, each.kind) for each in found] == [
        ("order-1", IdentifierKind.IDENTIFIER_KIND_GATEWAY),
        ("order-2", IdentifierKind.IDENTIFIER_KIND_GATEWAY),
    ]
    assert await caller.call("find_orders", "nobody") == []


async def test_pages_larger_than_grpc_allows_by_itself(caller, orders):
    orders.stored = [Order(order_id=f"order-{number}", labels={"k": "x" * 6000}) for number in range(1000)]
    page = await caller.call("list_orders_page", page_size=1000)
    assert page.ByteSize() > 4 * 1024 * 1024
