"""Every pair of the state table, against a picture of it that was drawn by hand."""

from pathlib import Path

import pytest

from cli import states_page
from domain import lifecycle
from domain.lifecycle import AlreadyApplied, Applied, IllegalTransitionError
from domain.orders import is_lifecycle
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import OrderStatus

# Row: where the order stands. Column: the event. Cell: where it leads, `=` already there, `.` illegal.
_PICTURE = """
               CREATED    PROCESSING  REJECTED  PAID  PAYMENT_FAILED  SHIPPED  COMPLETED  CANCELLED  EXPIRED  REFUNDED
UNSPECIFIED    CREATED    .           .         .     .               .        .          .          .        .
CREATED        =          PROCESSING  REJECTED  .     .               .        .          .          .        .
PROCESSING     .          =           .         PAID  PAYMENT_FAILED  .        .          CANCELLED  EXPIRED  .
REJECTED       .          .           =         .     .               .        .          .          .        .
PAID           .          .           .         =     .               SHIPPED  .          CANCELLED  .        REFUNDED
PAYMENT_FAILED .          .           .         .     =               .        .          .          .        .
SHIPPED        .          .           .         .     .               =        COMPLETED  .          .        REFUNDED
COMPLETED      .          .           .         .     .               .        =          .          .        REFUNDED
CANCELLED      .          .           .         .     .               .        .          =          .        CANCELLED
EXPIRED        .          .           .         .     .               .        .          .          =        EXPIRED
REFUNDED       .          .           .         .     .               .        .          .          .        =
"""
_EVENTS = {
    "CREATED": "ORDER_CREATED",
    "PROCESSING": "ORDER_PROCESSING",
    "REJECTED": "ORDER_REJECTED",
    "PAID": "ORDER_PAID",
    "PAYMENT_FAILED": "PAYMENT_FAILED",
    "SHIPPED": "ORDER_SHIPPED",
    "COMPLETED": "ORDER_COMPLETED",
    "CANCELLED": "ORDER_CANCELLED",
    "EXPIRED": "ORDER_EXPIRED",
    "REFUNDED": "PAYMENT_REFUNDED",
}


def _status(name: str) -> OrderStatus:
    return OrderStatus.Value(f"ORDER_STATUS_{name}")


def _expected() -> dict[tuple[OrderStatus, OrderEventType], str]:
    """Returns every pair of the two enums; what the picture leaves out (commands, notifications) is illegal."""
    pairs = {(status, event): "." for status in OrderStatus.values() for event in OrderEventType.values()}
    head, *rows = _PICTURE.strip().splitlines()
    for row in rows:
        name, *cells = row.split()
        for column, cell in zip(head.split(), cells, strict=True):
            pairs[_status(name), OrderEventType.Value(f"ORDER_EVENT_TYPE_{_EVENTS[column]}")] = cell
    return pairs


@pytest.mark.parametrize(("status", "event"), _expected())
def test_every_pair(status: OrderStatus, event: OrderEventType) -> None:
    match _expected()[status, event]:
        case ".":
            with pytest.raises(IllegalTransitionError) as refused:
                lifecycle.apply(status, event)
            assert (refused.value.status, refused.value.event) == (status, event)
            assert OrderStatus.Name(status) in str(refused.value)
            assert OrderEventType.Name(event) in str(refused.value)
        case "=":
            assert lifecycle.apply(status, event) == AlreadyApplied()
        case target:
            assert lifecycle.apply(status, event) == Applied(_status(target))


def test_the_picture_has_every_status() -> None:
    assert len(_PICTURE.strip().splitlines()) - 1 == len(OrderStatus.values())


def test_settled_is_any_status_but_created_and_processing() -> None:
    names = {OrderStatus.Name(status).removeprefix("ORDER_STATUS_") for status in lifecycle.SETTLED}
    assert names == {
        "REJECTED", "PAID", "PAYMENT_FAILED", "SHIPPED", "COMPLETED", "CANCELLED", "EXPIRED", "REFUNDED"
    }  # fmt: skip


def test_the_sources_of_an_event_are_the_states_it_may_happen_in() -> None:
    for event in OrderEventType.values():
        expected = {status for (status, each), cell in _expected().items() if each == event and cell not in "=."}
        assert set(lifecycle.sources_of(event)) == expected


def test_lifecycle_events_are_told_apart_from_commands_and_notifications() -> None:
    lifecycle_events = {f"ORDER_EVENT_TYPE_{name}" for name in _EVENTS.values()}
    for name, event in OrderEventType.items():
        assert is_lifecycle(event) == (name in lifecycle_events), name


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "states.md"
    assert page.read_text() == states_page.page(), "run `orderflow states > docs/states.md`"
