"""Shows what happened to an order to its caller: events and dead letters, without what is about the customer."""

from typing import Final

from domain.failures import Failure
from domain.orders import is_lifecycle
from messaging import envelope
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_history_pb2 import DeadLetterEntry, NotificationEntry, OrderHistoryEntry, PaymentEntry
from storage.order_history import HistoryRow

_DISCARDED: Final = "DISCARDED"


def entry(row: HistoryRow) -> OrderHistoryEntry:
    """Returns a row of the history as callers see it."""
    if isinstance(row.what, OrderEvent):
        return _event(row.what)
    shown = _dead_letter(row.what)
    shown.dead_letter.resolution = row.resolution
    if row.resolution == _DISCARDED:  # what operators write down about their replays is between them
        shown.dead_letter.resolution_reason = row.resolution_reason
    shown.entry_id = row.position.entry_id
    shown.occur_time.FromDatetime(row.position.time)
    return shown


def _event(event: OrderEvent) -> OrderHistoryEntry:
    shown = OrderHistoryEntry(
        entry_id=event.event_id,
        type=envelope.type_name(event.type),
        revision=event.revision,
        occur_time=event.occur_time,
        source=event.metadata.source,
        attempt=event.metadata.attempt,
        cause_id=event.metadata.causation_id,
        correlation_id=event.metadata.correlation_id,
    )
    if is_lifecycle(event.type):
        shown.status = event.order.status
        shown.payment_status = event.order.payment_status
    match event.WhichOneof("details"):
        case "order_rejected":
            shown.reason = event.order_rejected.reason
        case "order_paid":
            paid = event.order_paid
            shown.payment.CopyFrom(PaymentEntry(gateway_reference=paid.gateway_reference, amount=paid.amount))
        case "payment_failed":
            shown.reason = event.payment_failed.reason
            shown.payment.gateway_reference = event.payment_failed.gateway_reference
        case "payment_refunded":
            refund = event.payment_refunded
            shown.payment.CopyFrom(PaymentEntry(gateway_reference=refund.gateway_reference, amount=refund.amount))
            shown.reason = refund.reason
        case "order_cancelled":
            shown.reason = event.order_cancelled.reason
        case "order_cancel_requested":
            shown.reason = event.order_cancel_requested.reason
        case "order_refund_requested":
            shown.reason = event.order_refund_requested.reason
        case "notification_sent":
            sent = event.notification_sent
            shown.notification.CopyFrom(
                NotificationEntry(
                    channel=sent.channel,
                    notified_type=envelope.type_name(sent.notified_type),
                    provider_message_id=sent.provider_message_id,
                    template=sent.template,
                )
            )
        case "notification_failed":
            failed = event.notification_failed
            shown.reason = failed.reason
            shown.notification.CopyFrom(
                NotificationEntry(
                    channel=failed.channel,
                    notified_type=envelope.type_name(failed.notified_type),
                    provider_message_id=failed.provider_message_id,
                    template=failed.template,
                )
            )
    return shown


def _dead_letter(letter: DeadLetter) -> OrderHistoryEntry:
    shown = OrderHistoryEntry(
        type="DEAD_LETTER",
        source=letter.group,
        attempt=letter.attempts,
        reason=letter.error_class,
        dead_letter=DeadLetterEntry(message=letter.error_message, replay=letter.replay),
    )
    try:
        cause = envelope.decode(letter.origin.topic, letter.key, letter.value)
    except Failure:
        return shown  # bytes that are no event of ours tell of no cause
    shown.cause_id = cause.event_id
    shown.correlation_id = cause.metadata.correlation_id
    return shown
