"""Commands: which are valid, and what an order does with each of them in every state."""

from typing import Any

import pytest

from domain import commands, events
from domain.commands import CommandRefused
from domain.identifiers import command_event_id, swept_event_id
from domain.lifecycle import AlreadyApplied, Applied
from domain.validation import Violation
from orderflow.events.v1.order_event_pb2 import OrderEvent, PaymentRefundedDetails
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus, Shipment
from server import scopes
from tests.builders import CALLER, NOW, a_command, a_delivery, an_id, an_order

NAMES = ("cancel", "ship", "complete", "expire", "refund")
SETTLING = {
    "cancel": "CANCELLED",
    "ship": "SHIPPED",
    "complete": "COMPLETED",
    "expire": "EXPIRED",
    "refund": "REFUNDED",
}
ALLOWED = {
    "cancel": {"PROCESSING", "PAID"},
    "ship": {"PAID"},
    "complete": {"SHIPPED"},
    "expire": {"PROCESSING"},
    "refund": {"PAID", "SHIPPED", "COMPLETED"},
}


def an_order_that_is(status: str) -> Order:
    order = an_order()
    order.status = OrderStatus.Value(f"ORDER_STATUS_{status}")
    if status in ("SHIPPED", "COMPLETED"):
        order.shipment.CopyFrom(Shipment(carrier="Parcel Service", tracking_code="TRACK-1"))
    return order


def check(event: OrderEvent, order: Order, *, owner: str = CALLER) -> Any:
    """Returns what it does, or the reason why nothing."""
    try:
        return commands.check(event, order, owner=owner)
    except CommandRefused as refusal:
        return refusal.reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [each.removeprefix("ORDER_STATUS_") for each in OrderStatus.keys()])  # noqa: SIM118
def test_every_command_in_every_state(name: str, status: str) -> None:
    order = an_order_that_is(status)
    done = check(a_command(name, order.order_id), order)
    if status in ALLOWED[name]:
        assert done == Applied(OrderStatus.Value(f"ORDER_STATUS_{SETTLING[name]}"))
    elif status == SETTLING[name] and name != "refund":
        assert done == AlreadyApplied()
    else:
        assert done == "ILLEGAL_TRANSITION"


def test_a_refusal_tells_where_the_order_stands() -> None:
    order = an_order_that_is("SHIPPED")
    with pytest.raises(CommandRefused) as refused:
        commands.check(a_command("cancel", order.order_id), order, owner=CALLER)
    assert refused.value.status == OrderStatus.ORDER_STATUS_SHIPPED


def test_another_shipment_of_a_shipped_order_is_no_repeat() -> None:
    order = an_order_that_is("SHIPPED")
    assert check(a_command("ship", order.order_id, tracking_code="TRACK-2"), order) == "ILLEGAL_TRANSITION"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"expire"}))
def test_anothers_order_is_not_there_but_for_operators(name: str) -> None:
    order = an_order_that_is(next(iter(ALLOWED[name])))
    with pytest.raises(CommandRefused) as refused:
        commands.check(a_command(name, order.order_id, scopes=["orders:write", "orders:read"]), order, owner="other")
    assert (refused.value.reason, refused.value.status) == ("ORDER_NOT_FOUND", 0), "and tells nothing of it"
    for scope in ("orders:operate", "orders:admin"):
        assert isinstance(check(a_command(name, order.order_id, scopes=[scope]), order, owner="other"), Applied)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_owner_may_ask_without_a_wider_scope(name: str) -> None:
    order = an_order_that_is(next(iter(ALLOWED[name])))
    command = a_command(name, order.order_id, caller=CALLER, scopes=["orders:write", "orders:read"])
    assert check(command, order) == (
        Applied(OrderStatus.ORDER_STATUS_CANCELLED) if name == "cancel" else "ORDER_NOT_FOUND"
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_the_system_asks_by_itself(name: str) -> None:
    """A record without a caller is no key to everything: who writes to the topic by mistake ships nothing."""
    order = an_order_that_is(next(iter(ALLOWED[name])))
    done = check(a_command(name, order.order_id, caller=""), order, owner="other")
    assert isinstance(done, Applied) if name in ("expire", "refund") else done == "ORDER_NOT_FOUND"


def test_only_the_system_lets_an_order_expire() -> None:
    order = an_order_that_is("PROCESSING")
    command = a_command("expire", order.order_id, caller=CALLER, scopes=["orders:admin"])
    assert check(command, order) == "ORDER_NOT_FOUND"


def test_operators_are_those_who_see_everybodys_orders() -> None:
    assert {scope for scope in scopes.ALL if scopes.see_all([scope])} == commands.OPERATOR_SCOPES


def test_an_etag_is_a_condition() -> None:
    order = an_order_that_is("PAID")
    assert isinstance(check(a_command("ship", order.order_id, etag=order.etag), order), Applied)
    assert check(a_command("ship", order.order_id, etag='"other-2"'), order) == "ETAG_MISMATCH"


def test_what_a_command_leads_to_says_who_placed_the_order() -> None:
    """The read model takes an order's owner from the first event that it sees, whichever that is."""
    order = an_order_that_is("PAID")
    by_operator = a_command("ship", order.order_id, caller="olga", scopes=["orders:operate"])
    commands.carry_out(by_operator, order, now=NOW)
    shipped = events.carried_out(a_delivery(by_operator), order, owner=CALLER)
    refunded = events.payment_refunded(a_delivery(by_operator), order, PaymentRefundedDetails(), owner=CALLER)
    assert {event.metadata.caller for event in (shipped, refunded)} == {CALLER}
    assert {event.metadata.causation_id for event in (shipped, refunded)} == {by_operator.event_id}
    assert shipped.order_shipped.shipment == order.shipment


@pytest.mark.parametrize("status", ["CANCELLED", "EXPIRED"])
def test_only_the_system_refunds_what_is_called_off(status: str) -> None:
    order = an_order_that_is(status)
    assert check(a_command("refund", order.order_id, scopes=["orders:admin"]), order) == "ILLEGAL_TRANSITION"
    assert check(a_command("refund", order.order_id, caller=""), order) == Applied(order.status)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_as_the_server_makes_it_is_valid(name: str) -> None:
    assert commands.violations_of_command(a_command(name, an_id())) == []


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("cancel", {"reason": ""}, "reason"),
        ("cancel", {"reason": "Because\x00"}, "reason"),
        ("cancel", {"reason": "X" * 65}, "reason"),
        ("cancel", {"request_id": "with space"}, "request_id"),
        ("cancel", {"etag": "x" * 65}, "etag"),
        ("ship", {"carrier": ""}, "carrier"),
        ("ship", {"carrier": "x" * 65}, "carrier"),
        ("ship", {"tracking_code": "a\nb"}, "tracking_code"),
        ("ship", {"tracking_code": "x" * 129}, "tracking_code"),
        ("refund", {"amount": Money(currency_code="EUR", amount_minor=0)}, "amount.amount_minor"),
        ("refund", {"amount": Money(currency_code="EUR", amount_minor=10**15 + 1)}, "amount.amount_minor"),
        ("refund", {"amount": Money(currency_code="XXX", amount_minor=1)}, "amount.currency_code"),
        ("refund", {"reason": "why not"}, "reason"),
    ],
)
def test_what_is_not_valid(name: str, fields: dict[str, Any], field: str) -> None:
    violations = commands.violations_of_command(a_command(name, an_id(), **fields))
    assert [each.field for each in violations] == [field]


def test_details_of_another_type_and_none_are_not_valid() -> None:
    other = a_command("cancel", an_id())
    other.type = E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED
    without = a_command("cancel", an_id())
    without.ClearField("command")
    for event in (other, without):
        assert commands.violations_of_command(event) == [Violation("details", "must be those of the command")]


def test_an_id_is_of_caller_command_order_and_request() -> None:
    first, second = an_id(), an_id()
    cancel, ship = E.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED, E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED
    base = command_event_id("shop", cancel, first, "r-1")
    assert command_event_id("shop", cancel, first, "r-1") == base
    others = {
        command_event_id("shop2", cancel, first, "r-1"),
        command_event_id("shop", ship, first, "r-1"),
        command_event_id("shop", cancel, second, "r-1"),
        command_event_id("shop", cancel, first, "r-2"),
        command_event_id("shop", cancel, first, ""),
        command_event_id("shop", cancel, first, ""),
    }
    assert len(others - {base}) == 6, "a command without a request_id is one of its own"


def test_a_sweep_asks_once_in_a_slot() -> None:
    order_id, expire = an_id(), E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED
    assert swept_event_id(expire, order_id, 7) == swept_event_id(expire, order_id, 7)
    assert swept_event_id(expire, order_id, 7) != swept_event_id(expire, order_id, 8)
    assert swept_event_id(expire, order_id, 7) != swept_event_id(expire, an_id(), 7)
