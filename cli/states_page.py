"""docs/states.md, made from the state table itself."""

from typing import Final

from domain.lifecycle import SETTLED, TRANSITIONS
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import OrderStatus

_PREFIX: Final = "ORDER_STATUS_"


def page() -> str:
    """Returns the page."""
    lines = [
        "# An order's states",
        "",
        "Every transition there is. An event that has none from an order's status is refused; one that has led there",
        "already changes nothing. This page is made by `orderflow states` from the table that decides.",
        "",
        "```mermaid",
        "stateDiagram-v2",
    ]
    for (status, event), target in TRANSITIONS.items():
        begins = _status(status) if status else "[*]"
        lines.append(f"    {begins} --> {_status(target)}: {_event(event)}")
    lines += [
        "```",
        "",
        "| status | settled | events that may happen |",
        "| --- | --- | --- |",
    ]
    for name, each in OrderStatus.items():
        if each:
            happening = ", ".join(_event(event) for status, event in TRANSITIONS if status == each)
            settled = "yes" if each in SETTLED else "no"
            lines.append(f"| {name.removeprefix(_PREFIX)} | {settled} | {happening or 'none'} |")
    return "\n".join(lines) + "\n"


def _status(status: OrderStatus) -> str:
    return OrderStatus.Name(status).removeprefix(_PREFIX)


def _event(event: OrderEventType) -> str:
    return OrderEventType.Name(event).removeprefix("ORDER_EVENT_TYPE_")
