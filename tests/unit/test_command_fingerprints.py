"""What makes a repeated command the same one."""

from domain.identifiers import command_fingerprint
from orderflow.orders.v1.order_pb2 import Money
from orderflow.orders.v1.order_service_pb2 import CancelOrderRequest, RefundOrderRequest


def test_a_fingerprint_is_of_all_but_the_request_id() -> None:
    request = CancelOrderRequest(order_id="o", reason="R", request_id="1", etag="e")
    base = command_fingerprint(request)
    assert command_fingerprint(CancelOrderRequest(order_id="o", reason="R", request_id="2", etag="e")) == base
    assert command_fingerprint(CancelOrderRequest(order_id="o", reason="S", request_id="1", etag="e")) != base
    assert command_fingerprint(CancelOrderRequest(order_id="o", reason="R", request_id="1")) != base
    whole, part = (RefundOrderRequest(order_id="o", amount=Money(amount_minor=n)) for n in (1, 2))
    assert command_fingerprint(whole) != command_fingerprint(part)
    # Fixed for v1: servers of two versions must take a repeat for one.
    assert base.hex()[:16] == "17500e28446aee5c"
