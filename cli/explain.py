"""`orderflow order explain`: one sentence on why an order stands where it does, and what happened to it."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from cli.output import Format, enum_name, show

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from orderflow.orders.v1.order_history_pb2 import OrderHistoryEntry
    from orderflow.orders.v1.order_pb2 import Order

_DEAD_LETTER: Final = "DEAD_LETTER"
_PAYMENTS: Final = "payment-processor"
_UNTIL_DONE: Final = "by itself, and a sweep asks for it again until that is done"
_CALLED_OFF_MONEY: Final = {
    "CAPTURED": f"the payment processor gives its money back {_UNTIL_DONE}",
    "PARTIALLY_REFUNDED": f"the payment processor gives back what is left of its money {_UNTIL_DONE}",
    "REFUNDED": "its money was given back",
}
_OF_STATUS: Final = {
    "CREATED": "It is durable since {created}, and waits until the order processor comes to it, which checks it and "
    "holds its stock.",
    "PAID": "It is paid: {total} were charged. It waits until somebody records that it was shipped.",
    "SHIPPED": "It is paid and was handed to the carrier. It waits until somebody records that it was delivered.",
    "COMPLETED": "It is delivered and done.",
    "CANCELLED": "It was called off{reason}; {money}.",
    "EXPIRED": "It was not paid in time; its stock was given back, and {money}.",
    "REFUNDED": "It was paid back in full.",
    "REJECTED": "The order processor refused it{reason}. Nothing was held or charged, and nothing more happens.",
    "PAYMENT_FAILED": "The gateway declined the charge{reason}. Its stock was given back, and nothing more happens.",
}


def why(order: "Order", entries: Sequence["OrderHistoryEntry"]) -> str:
    """Returns one sentence, or two: where the order stands, why, and what happens next."""
    status, payment = enum_name(order, "status"), enum_name(order, "payment_status")
    letters = [each for each in entries if each.type == _DEAD_LETTER and not each.dead_letter.resolution]
    beside = letters
    if status == "PROCESSING":
        deciding = [each for each in letters if each.source == _PAYMENTS]
        beside = [each for each in letters if each.source != _PAYMENTS]
        sentence = _waiting(order, payment, deciding)
    else:
        sentence = _OF_STATUS.get(status, "It is {status}.").format(
            status=status,
            created=_time(order.create_time),
            money=_money_of_called_off(payment, entries),
            reason=f" ({order.failure_reason})" if order.failure_reason else "",
            total=f"{order.total.currency_code} {order.total.amount_minor} in minor units",
        )
    if beside:
        sentence += f" {len(beside)} of its records became dead letters: orderflow dlq list --order {order.order_id}."
    return sentence


def _money_of_called_off(payment: str, entries: Sequence["OrderHistoryEntry"]) -> str:
    given_up = ""
    for each in entries:
        if each.type in ("ORDER_CANCELLED", "ORDER_EXPIRED"):
            given_up = ""  # what was discarded before was another refund
        elif (each.type, each.source) == (_DEAD_LETTER, _PAYMENTS) and each.dead_letter.resolution == "DISCARDED":
            given_up = each.entry_id.removeprefix("dlq/")
    if given_up and payment in ("CAPTURED", "PARTIALLY_REFUNDED"):
        return f"its money is kept: an operator has given its refund up (dead letter {given_up} was discarded)"
    return _CALLED_OFF_MONEY.get(payment, "no money was taken")


def _waiting(order: "Order", payment: str, letters: Sequence["OrderHistoryEntry"]) -> str:
    if letters:
        last = letters[-1]
        which = last.entry_id.removeprefix("dlq/")
        cause = "the gateway cannot tell whether it charged" if payment == "UNKNOWN" else last.reason
        return (
            f"It waits for an operator: {last.source} gave up on it ({cause}). Look at it with orderflow dlq show "
            f"{which}; once the cause is gone, orderflow dlq replay {which} goes on with it, and charges nobody twice."
        )
    return (
        "Its stock is held, and it waits for payment, which the payment processor tries by itself until it has an "
        "answer; if the gateway is away it goes on when that is back. If nothing was sent to the gateway until "
        f"{_time(order.expire_time)} it expires, and its stock is given back."
    )


def _time(timestamp: "Timestamp") -> str:
    return timestamp.ToDatetime().isoformat(timespec="seconds") + "Z"


def show_explanation(
    order: "Order",
    entries: Sequence["OrderHistoryEntry"],
    row: "Callable[[OrderHistoryEntry], dict[str, Any]]",
    output: Format,
) -> None:
    """Prints the sentence, then the history."""
    if output is Format.TABLE:
        typer.echo(why(order, entries))
        typer.echo()
        show([row(entry) for entry in entries], output, empty="Nothing happened to it yet.")
        return
    from google.protobuf.json_format import MessageToDict

    told = {
        "explanation": why(order, entries),
        "order": MessageToDict(order, preserving_proto_field_name=True),
        "entries": [MessageToDict(entry, preserving_proto_field_name=True) for entry in entries],
    }
    typer.echo(json.dumps(told, indent=2 if output is Format.JSON else None))
