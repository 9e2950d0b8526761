"""What is asked of an order, by both clients: cancel, ship, complete, refund."""

import asyncio
import uuid

import grpc
import pytest

import orderflow_client
from clients.tests.caller import failure
from clients.tests.scripted_server import Refusal, error_info
from orderflow_client import Money, OrderStatus, Outcome, PreconditionFailed, UnexpectedStatus

CODE = grpc.StatusCode
COMMANDS = {
    "cancel_order": {"reason": "OUT_OF_BUSINESS"},
    "ship_order": {"carrier": "Parcel Service", "tracking_code": "T-1"},
    "complete_order": {},
    "refund_order": {"amount": Money(amount_minor=998, currency_code="EUR"), "reason": "DAMAGED"},
}
NEEDED = {"ship_order": {"carrier": "Parcel Service"}}
ALL = pytest.mark.parametrize("method", COMMANDS)


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("cancel_order", OrderStatus.ORDER_STATUS_CANCELLED),
        ("ship_order", OrderStatus.ORDER_STATUS_SHIPPED),
        ("complete_order", OrderStatus.ORDER_STATUS_COMPLETED),
        ("refund_order", OrderStatus.ORDER_STATUS_REFUNDED),
    ],
)
async def test_a_command_sends_every_field_and_returns_the_answer(caller, orders, method, status):
    given = {**COMMANDS[method], "request_id": "mine", "etag": "etag-1"}
    response = await caller.call(method, "order-1", **given)
    answer = (response.order.order_id, response.order.status, response.consistency_token)
    assert answer == ("order-1", status, "token-2")
    [seen] = orders.seen
    sent = {field.name: value for field, value in seen.request.ListFields()}
    assert sent == {"order_id": "order-1", **given}
    assert set(sent) == set(seen.request.DESCRIPTOR.fields_by_name)


@ALL
async def test_what_is_not_given_is_not_sent(caller, orders, method):
    await caller.call(method, "order-1", **NEEDED.get(method, {}))
    sent = {field.name for field, _ in orders.seen[0].request.ListFields()}
    assert sent == {"order_id", "request_id", *NEEDED.get(method, {})}


@ALL
@pytest.mark.parametrize("missing", [None, ""])
async def test_each_command_gets_a_request_id_of_its_own(caller, orders, method, missing):
    await caller.call(method, "order-1", **NEEDED.get(method, {}))
    await caller.call(method, "order-1", **NEEDED.get(method, {}), request_id=missing)
    first, second = (uuid.UUID(seen.request.request_id) for seen in orders.seen)
    assert first != second


@ALL
async def test_a_command_keeps_its_request_id_over_its_retries(caller, orders, method):
    orders.script.extend([Refusal(CODE.UNAVAILABLE), Refusal(CODE.CANCELLED)])
    await caller.call(method, "order-1", **COMMANDS[method])
    assert len(orders.seen) == 3
    assert len({seen.request.SerializeToString(deterministic=True) for seen in orders.seen}) == 1


@ALL
@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (CODE.FAILED_PRECONDITION, "ILLEGAL_TRANSITION", "IllegalTransition"),
        (CODE.ABORTED, "ETAG_MISMATCH", "EtagMismatch"),
        (CODE.FAILED_PRECONDITION, "REFUND_TOO_LARGE", "PreconditionFailed"),
    ],
)
async def test_a_refusal_has_its_class_and_says_where_the_order_stands(caller, orders, method, code, reason, kind):
    details = (error_info(reason, outcome="NOT_ACCEPTED", order_status="COMPLETED"),)
    orders.script.append(Refusal(code, "it is so", details))
    error = await failure(caller.call(method, "order-1", **COMMANDS[method], request_id="mine"))
    assert type(error) is getattr(orderflow_client, kind)
    assert isinstance(error, PreconditionFailed)
    assert (error.code, error.reason, error.order_status) == (code, reason, "COMPLETED")
    assert (error.request_id, error.outcome, error.safe_to_repeat) == ("mine", Outcome.NOT_ACCEPTED, False)
    assert str(error) == (
        f"{reason}: it is so; order status COMPLETED; request_id mine; outcome NOT_ACCEPTED; safe to repeat: no"
    )
    assert len(orders.seen) == 1


@pytest.mark.parametrize("details", [(), (error_info("ETAG_MISMATCH", domain="proxy.example"),)], ids=["bare", "proxy"])
async def test_only_our_server_can_say_that_an_etag_is_old(caller, orders, details):
    orders.script.append(Refusal(CODE.ABORTED, details=details))
    error = await failure(caller.call("cancel_order", "order-1", etag="etag-1"))
    assert (type(error), error.order_status, error.outcome) == (UnexpectedStatus, "", Outcome.UNKNOWN)


@ALL
async def test_a_command_that_has_no_answer_in_time_has_an_unknown_outcome(caller, orders, method):
    async def hang(_context: object) -> None:
        await asyncio.sleep(30)

    orders.script.append(hang)
    error = await failure(caller.call(method, "order-1", **COMMANDS[method], request_id="mine", timeout=0.2))
    assert isinstance(error, orderflow_client.DeadlineExceeded)
    assert (error.request_id, error.outcome, error.safe_to_repeat) == ("mine", Outcome.UNKNOWN, True)
