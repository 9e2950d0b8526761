"""Which request_ids became which orders, in one query for many."""

from orderflow.orders.v1.order_pb2 import OrderStatus
from storage.database import Database
from storage.known_requests import KnownRequests
from storage.order_decisions import OrderDecisions
from tests.builders import NOW, a_delivery, a_group, order_created


async def test_a_request_is_known_by_its_row(database: Database) -> None:
    known_requests, caller = KnownRequests(database), a_group()
    created = [order_created(request_id=f"req-{number}", caller=caller) for number in range(3)]
    assert await known_requests.find([(caller, "req-0")]) == {}
    decisions = OrderDecisions(database, now=lambda: NOW)
    for event in created[:2]:
        await decisions.accept(a_delivery(event, group="order-processor"))

    stranger = a_group()
    known = await known_requests.find([(caller, "req-1"), (stranger, "req-1"), (caller, "req-2"), (caller, "req-0")])
    assert set(known) == {(caller, "req-0"), (caller, "req-1")}
    for event in created[:2]:
        found = known[caller, event.order_created.request_id]
        assert found.fingerprint == event.order_created.request_fingerprint
        assert found.order.order_id == event.order.order_id
        assert (found.order.revision, found.order.status) == (2, OrderStatus.ORDER_STATUS_REJECTED), "no such SKU"
    assert await known_requests.find([(stranger, "req-0")]) == {}, "another caller's"
    assert await known_requests.find([]) == {}
