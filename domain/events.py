"""Makes the events. Each is built from the order as it stands, never from the record that led to it."""

import datetime

from domain.commands import LEADS_TO
from domain.identifiers import caused_event_id, created_event_id, reported_event_id
from domain.orders import is_lifecycle
from domain.records import Delivery
from domain.times import set_time
from orderflow.events.v1.order_event_pb2 import (
    ORDER_EVENT_TYPE_NOTIFICATION_FAILED,
    ORDER_EVENT_TYPE_NOTIFICATION_SENT,
    ORDER_EVENT_TYPE_ORDER_CREATED,
    ORDER_EVENT_TYPE_ORDER_PAID,
    ORDER_EVENT_TYPE_ORDER_PROCESSING,
    ORDER_EVENT_TYPE_ORDER_REJECTED,
    ORDER_EVENT_TYPE_PAYMENT_FAILED,
    ORDER_EVENT_TYPE_PAYMENT_REFUNDED,
    ORDER_EVENT_TYPE_PAYMENT_REPORTED,
    CommandTerms,
    EventMetadata,
    NotificationFailedDetails,
    NotificationSentDetails,
    OrderCancelledDetails,
    OrderCreatedDetails,
    OrderEvent,
    OrderEventType,
    OrderPaidDetails,
    OrderRejectedDetails,
    OrderShippedDetails,
    PaymentFailedDetails,
    PaymentRefundedDetails,
    PaymentReportedDetails,
)
from orderflow.orders.v1.order_pb2 import NotificationChannel, Order


def order_created(order: Order, *, details: OrderCreatedDetails, correlation_id: str) -> OrderEvent:
    """Returns the ORDER_CREATED of a new order."""
    event = orders_created(order, caller=details.caller)
    event.event_id = created_event_id(order.order_id)
    event.metadata.correlation_id = correlation_id
    event.order_created.CopyFrom(details)
    return event


def orders_created(unpaid: Order, *, caller: str) -> OrderEvent:
    """Returns what every ORDER_CREATED has in common that a caller causes at a moment."""
    event = OrderEvent(
        type=ORDER_EVENT_TYPE_ORDER_CREATED,
        revision=unpaid.revision,
        metadata=EventMetadata(source="server", attempt=1, caller=caller),
        order_created=OrderCreatedDetails(caller=caller),
    )
    event.order.CopyFrom(unpaid)
    event.occur_time.CopyFrom(unpaid.create_time)
    return event


def order_processing(cause: Delivery, order: Order) -> OrderEvent:
    """Returns the ORDER_PROCESSING that follows from an ORDER_CREATED."""
    return _following(cause, ORDER_EVENT_TYPE_ORDER_PROCESSING, order)


def order_rejected(cause: Delivery, order: Order, details: OrderRejectedDetails) -> OrderEvent:
    """Returns the ORDER_REJECTED that follows from an ORDER_CREATED."""
    event = _following(cause, ORDER_EVENT_TYPE_ORDER_REJECTED, order)
    event.order_rejected.CopyFrom(details)
    return event


def order_paid(cause: Delivery, order: Order, details: OrderPaidDetails, *, owner: str = "") -> OrderEvent:
    """Returns the ORDER_PAID that follows from an ORDER_PROCESSING or a PAYMENT_REPORTED."""
    event = _following(cause, ORDER_EVENT_TYPE_ORDER_PAID, order, owner=owner)
    event.order_paid.CopyFrom(details)
    return event


def payment_failed(cause: Delivery, order: Order, details: PaymentFailedDetails, *, owner: str = "") -> OrderEvent:
    """Returns the PAYMENT_FAILED that follows from an ORDER_PROCESSING or a PAYMENT_REPORTED."""
    event = _following(cause, ORDER_EVENT_TYPE_PAYMENT_FAILED, order, owner=owner)
    event.payment_failed.CopyFrom(details)
    return event


def command(
    command_type: OrderEventType,
    order_id: str,
    *,
    event_id: str,
    caller: str,
    terms: CommandTerms,
    correlation_id: str,
    source: str,
    now: datetime.datetime,
) -> OrderEvent:
    """Returns a command without its details. `caller` is who asks, empty for the system itself."""
    event = OrderEvent(
        event_id=event_id,
        type=command_type,
        order=Order(order_id=order_id),
        metadata=EventMetadata(correlation_id=correlation_id, source=source, attempt=1, caller=caller),
        command=terms,
    )
    set_time(event.occur_time, now)
    return event


def payment_reported(report_id: str, order_id: str, *, source: str, now: datetime.datetime) -> OrderEvent:
    """Returns the PAYMENT_REPORTED of a report of the gateway's, the same each time it is delivered, but its time."""
    event = command(
        ORDER_EVENT_TYPE_PAYMENT_REPORTED,
        order_id,
        event_id=reported_event_id(report_id),
        caller="",
        terms=CommandTerms(),
        correlation_id=order_id,
        source=source,
        now=now,
    )
    event.payment_reported.CopyFrom(PaymentReportedDetails(report_id=report_id))
    return event


def carried_out(cause: Delivery, order: Order, *, owner: str) -> OrderEvent:
    """Returns the event that a command of the order processor led to. `owner` placed the order, whoever asked."""
    event = _following(cause, LEADS_TO[cause.event.type], order, owner=owner)
    match event.type:
        case OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCELLED:
            event.order_cancelled.CopyFrom(OrderCancelledDetails(reason=order.failure_reason))
        case OrderEventType.ORDER_EVENT_TYPE_ORDER_SHIPPED:
            event.order_shipped.CopyFrom(OrderShippedDetails(shipment=order.shipment))
    return event


def payment_refunded(cause: Delivery, order: Order, details: PaymentRefundedDetails, *, owner: str) -> OrderEvent:
    """Returns the PAYMENT_REFUNDED that follows from an ORDER_CANCELLED or an ORDER_REFUND_REQUESTED."""
    event = _following(cause, ORDER_EVENT_TYPE_PAYMENT_REFUNDED, order, owner=owner)
    event.payment_refunded.CopyFrom(details)
    return event


def notification_sent(cause: Delivery, details: NotificationSentDetails, *, now: datetime.datetime) -> OrderEvent:
    """Returns the NOTIFICATION_SENT that tells of a message about the cause."""
    event = _notification(cause, ORDER_EVENT_TYPE_NOTIFICATION_SENT, details.channel, now)
    event.notification_sent.CopyFrom(details)
    return event


def notification_failed(cause: Delivery, details: NotificationFailedDetails, *, now: datetime.datetime) -> OrderEvent:
    """Returns the NOTIFICATION_FAILED that tells why there is no message about the cause."""
    event = _notification(cause, ORDER_EVENT_TYPE_NOTIFICATION_FAILED, details.channel, now)
    event.notification_failed.CopyFrom(details)
    return event


def _following(
    cause: Delivery, event_type: OrderEventType, order: Order, discriminator: str = "", *, owner: str = ""
) -> OrderEvent:
    """Returns the event that follows. `owner` placed the order; the cause says who did, unless it is a command."""
    event_id, of_cause = cause.event.event_id, cause.event.metadata
    event = OrderEvent(
        event_id=caused_event_id(event_id, event_type, discriminator),
        type=event_type,
        revision=order.revision if is_lifecycle(event_type) else 0,
    )
    event.order.CopyFrom(order)  # a third of what it takes to copy a message as an argument
    event.occur_time.CopyFrom(order.update_time)
    metadata = event.metadata
    metadata.correlation_id = of_cause.correlation_id
    metadata.causation_id = event_id
    metadata.source = cause.group
    metadata.attempt = cause.attempt
    metadata.caller = owner or of_cause.caller
    return event


def _notification(
    cause: Delivery, event_type: OrderEventType, channel: NotificationChannel, now: datetime.datetime
) -> OrderEvent:
    # One cause has one notification per channel, so the channel tells them apart.
    event = _following(cause, event_type, cause.event.order, NotificationChannel.Name(channel))
    set_time(event.occur_time, now)
    return event
