"""What callers are told of an order that was purged (semantics 34)."""

from collections.abc import Collection
from typing import Any

import pytest

from domain.validation import violations_of
from orderflow.orders.v1.order_pb2 import Order, OrderStatus
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest, ListOrderEventsRequest
from server import identity
from server.errors import CallError
from server.order_intake import _purged
from server.order_queries import OrderQueries
from server.tokens import ConsistencyToken
from settings import ServerSettings
from storage.order_history import OrderHistory
from storage.order_views import OrderView, OrderViews
from tests.builders import a_request, an_id

NOWHERE: Any = None


class Tombstones(OrderViews):
    """Has one order, which was purged."""

    def __init__(self, order_id: str, caller: str) -> None:
        self._view = OrderView(Order(order_id=order_id, revision=3), caller, is_purged=True)

    async def get_many(self, order_ids: Collection[str]) -> dict[str, OrderView]:
        return {self._view.order.order_id: self._view} if self._view.order.order_id in order_ids else {}


class Call:
    """A call's context, as far as reads look into it."""

    def time_remaining(self) -> float:
        return 5.0


async def refused(owner: str, *, revision: int = 0) -> str:
    """Returns the reason why an order that `owner` had is not shown to the caller."""
    order_id = an_id()
    views = Tombstones(order_id, owner)
    queries = OrderQueries(views=views, history=OrderHistory(NOWHERE), settings=ServerSettings())
    token = ConsistencyToken(order_id, revision).encode() if revision else ""
    call: Any = Call()
    with pytest.raises(CallError) as error:
        await queries.get(GetOrderRequest(order_id=order_id, consistency_token=token), call)
    with pytest.raises(CallError) as of_history:
        await queries.history(ListOrderEventsRequest(order_id=order_id), call)
    assert of_history.value.reason == error.value.reason
    assert error.value.code.name == "NOT_FOUND"
    return str(error.value.reason)


async def test_its_owner_is_told_that_it_was_there_once() -> None:
    mine = identity.current().name
    assert await refused(mine) == "ORDER_PURGED"
    assert await refused(mine, revision=3) == "ORDER_PURGED", "a token waits for nothing that could come"


async def test_to_anybody_else_it_was_never_there() -> None:
    assert await refused("somebody else") == "ORDER_NOT_FOUND"


def test_a_repeated_request_is_answered_with_what_it_says_and_what_is_left() -> None:
    request = a_request(labels={"a": "b"}, external_reference="7")
    left = Order(order_id=an_id(), status=OrderStatus.ORDER_STATUS_COMPLETED, revision=5, etag="e")
    order = _purged(request, left)
    assert violations_of(order) == []
    assert (order.order_id, order.status, order.revision, order.etag) == (left.order_id, left.status, 5, "e")
    assert (order.user_id, order.email, order.total.amount_minor) == (request.user_id, request.email, 3998)
    for unknown in ("create_time", "update_time", "expire_time"):
        assert not order.HasField(unknown)
    assert order.payment_status == 0
