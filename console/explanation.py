"""One sentence on where an order stands, and what happens next."""

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from console import stuck, words
from console.workers import Worker
from orderflow.orders.v1.order_pb2 import OrderStatus, PaymentStatus

if TYPE_CHECKING:
    from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterEntry
    from orderflow.orders.v1.order_pb2 import Order

_SETTLED: Final = {
    OrderStatus.ORDER_STATUS_REJECTED: "The order processor refused it{reason}. Nothing was held or charged.",
    OrderStatus.ORDER_STATUS_PAID: "It is paid: {total}. It waits to be handed to the carrier.",
    OrderStatus.ORDER_STATUS_PAYMENT_FAILED: "The gateway declined the charge{reason}. Its stock was given back.",
    OrderStatus.ORDER_STATUS_SHIPPED: "It is paid and was handed to the carrier.",
    OrderStatus.ORDER_STATUS_COMPLETED: "It is delivered and done.",
    OrderStatus.ORDER_STATUS_EXPIRED: "It was not paid in time. Its stock was given back.",
    OrderStatus.ORDER_STATUS_REFUNDED: "It was paid back in full.",
}
# A young order's record is on its way, and nothing is wrong yet.
_YOUNG: Final = datetime.timedelta(seconds=10)


def explained(
    order: "Order", letters: Sequence["DeadLetterEntry"], workers: Sequence[Worker], now: datetime.datetime
) -> str:
    """Returns the sentence, or a few. `letters` are the order's unresolved dead letters, newest first."""
    status = order.status
    group = stuck.DECIDED_BY.get(status)
    newest = next((each for each in letters if each.dead_letter.group == group), None)
    if status in _SETTLED:
        reason = f" ({order.failure_reason})" if order.failure_reason else ""
        text = _SETTLED[status].format(reason=reason, total=words.money(order.total))
        return text + _beside(letters)
    if status == OrderStatus.ORDER_STATUS_CANCELLED and order.payment_status in (
        PaymentStatus.PAYMENT_STATUS_NONE,
        PaymentStatus.PAYMENT_STATUS_DECLINED,
        PaymentStatus.PAYMENT_STATUS_REFUNDED,
    ):
        money = "was given back" if order.payment_status == PaymentStatus.PAYMENT_STATUS_REFUNDED else "was not taken"
        return f"It was called off ({order.failure_reason}). Its money {money}." + _beside(letters)
    if status not in stuck.DECIDED_BY:
        return f"It is {words.enum_name(order, 'status')}."
    if newest is None and now - order.update_time.ToDatetime(datetime.UTC) < _YOUNG:
        return f"It waits for {stuck.DECIDED_BY[status]}, and has not for long."
    why = stuck.why(order, newest, workers, now)
    return f"{why.because}. {why.then}."


def _beside(letters: Sequence["DeadLetterEntry"]) -> str:
    if not letters:
        return ""
    count = "One of its records is a dead letter" if len(letters) == 1 else f"{len(letters)} are dead letters"
    return f" {count}: {letters[0].dead_letter.group} gave up on it ({letters[0].dead_letter.error_class})."
