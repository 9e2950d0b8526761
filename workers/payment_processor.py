"""Charges processed orders: ORDER_PROCESSING to ORDER_PAID or PAYMENT_FAILED. Alone talks to the gateway.

What the gateway reports by itself (PAYMENT_REPORTED) is looked up, and decided as any charge is. Giving back is in
workers.refunds.
"""

import datetime
from collections.abc import Callable, Sequence
from typing import Protocol

import fault_points
from domain import commands
from domain.failures import Permanent, Transient
from domain.records import Delivery
from messaging import topics
from messaging.worker import WorkerSpec
from orderflow.events.v1.order_event_pb2 import (
    ORDER_EVENT_TYPE_ORDER_CANCELLED,
    ORDER_EVENT_TYPE_ORDER_PROCESSING,
    ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED,
    ORDER_EVENT_TYPE_PAYMENT_REPORTED,
    OrderEvent,
)
from storage.outcomes import Settled
from storage.payment_decisions import ChargeIntent
from telemetry import logs, metrics
from workers.gateways.gateway import (
    KEY_REUSED,
    Charge,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    KeyClosed,
    PaymentGateway,
)
from workers.refunds import Refunds

log = logs.get()

SPEC = WorkerSpec(
    group="payment-processor",
    reads=(topics.ORDERS,),
    handles=frozenset(
        {
            ORDER_EVENT_TYPE_ORDER_PROCESSING,
            ORDER_EVENT_TYPE_ORDER_CANCELLED,
            ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED,
            ORDER_EVENT_TYPE_PAYMENT_REPORTED,
        }
    ),
)


class PaymentDecisions(Protocol):
    """What the payment processor intends and decides with. Every method raises DependencyDown."""

    async def intend(self, delivery: Delivery, *, looked_up: bool = False) -> ChargeIntent | Settled:
        """Stores the intent to charge and returns it, or what is decided already.

        `looked_up`: the gateway was asked, as the intent said, and knows of no charge.
        """
        ...

    async def open_key(self, delivery: Delivery) -> str | Settled:
        """Returns the key of a charge that was reported on and is not decided, or what is decided."""
        ...

    async def undecided(self, delivery: Delivery) -> list[OrderEvent]:
        """Stores that nothing came of a record."""
        ...

    async def not_sent(self, intent: ChargeIntent) -> None:
        """Records that nothing was sent yet under the intent."""
        ...

    async def captured(self, delivery: Delivery, *, gateway_reference: str) -> list[OrderEvent]:
        """Books an approved charge."""
        ...

    async def declined(self, delivery: Delivery, *, reason: str, gateway_reference: str) -> list[OrderEvent]:
        """Books a declined charge."""
        ...

    async def unknown(self, delivery: Delivery) -> None:
        """Records that the charge's outcome is not known."""
        ...


async def handle(
    delivery: Delivery,
    *,
    decisions: PaymentDecisions,
    refunds: Refunds,
    gateway: PaymentGateway,
    key_window: datetime.timedelta,
    now: Callable[[], datetime.datetime],
) -> Sequence[OrderEvent]:
    """Handles an ORDER_PROCESSING, an ORDER_CANCELLED, an ORDER_REFUND_REQUESTED or a PAYMENT_REPORTED.

    `key_window` is how long the gateway honours a key, from its first send.

    Raises:
        Permanent: `PAYMENT_UNKNOWN`, or the gateway refuses the call itself.
        Transient: what `Refunds` says of it; a report of an order that has no row so far.
        DependencyDown: PostgreSQL or the gateway is away.
    """
    event_type = delivery.event.type
    if event_type == ORDER_EVENT_TYPE_ORDER_CANCELLED:
        return await refunds.settle_cancelled(delivery)
    if event_type == ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED:
        return await refunds.refund(delivery)
    if event_type == ORDER_EVENT_TYPE_PAYMENT_REPORTED:
        return await settle_reported(delivery, decisions=decisions, gateway=gateway)
    return await charge(delivery, decisions=decisions, gateway=gateway, key_window=key_window, now=now)


async def charge(
    delivery: Delivery,
    *,
    decisions: PaymentDecisions,
    gateway: PaymentGateway,
    key_window: datetime.timedelta,
    now: Callable[[], datetime.datetime],
) -> Sequence[OrderEvent]:
    """Charges the order of an ORDER_PROCESSING, once. Arguments and errors are those of `handle`."""
    intent = await decisions.intend(delivery)
    if isinstance(intent, Settled):
        return intent.events
    fault_points.reached("W5")
    if not delivery.is_owned():
        raise Transient("PARTITION_LOST", "the partition was given up meanwhile")
    if intent.look_up_first:
        if (found := await gateway.find(intent.idempotency_key)) is not None:
            return await _booked(delivery, found, decisions)
        intent = await decisions.intend(delivery, looked_up=True)
        if isinstance(intent, Settled):
            return intent.events
    try:
        if _is_past(intent, key_window, now()):
            answer = await gateway.find(intent.idempotency_key)
        elif intent.first_send_time is None:
            answer = await _first_charge(intent, gateway, decisions)
        else:
            answer = await _repeated_charge(intent, gateway)
    except KeyClosed:
        if (cancelled := await _settled_meanwhile(delivery, decisions)) is not None:
            return cancelled.events
        raise
    fault_points.reached("W7")
    if answer is None:
        if (cancelled := await _settled_meanwhile(delivery, decisions)) is not None:
            return cancelled.events
        await decisions.unknown(delivery)
        metrics.PAYMENTS.labels("unknown").inc()
        log.error("payment.unknown")
        raise Permanent("PAYMENT_UNKNOWN", "the gateway answered, and that does not tell whether it charged")
    emitted = await _booked(delivery, answer, decisions)
    fault_points.reached("W8")
    return emitted


async def settle_reported(
    delivery: Delivery, *, decisions: PaymentDecisions, gateway: PaymentGateway
) -> Sequence[OrderEvent]:
    """Settles a charge that is open, if the gateway says by now what it came to. Believes nothing but the look-up.

    Raises:
        Permanent: `INVALID_REPORT`: the system never makes such a one.
        Transient: the order has no row, so far.
        DependencyDown: PostgreSQL or the gateway is away.
    """
    if violations := commands.violations_of_report(delivery.event):
        raise Permanent("INVALID_REPORT", f"{violations[0].field} {violations[0].description}")
    key = await decisions.open_key(delivery)
    if isinstance(key, Settled):
        return key.events
    answer = await gateway.find(key)
    if answer is None:
        return await decisions.undecided(delivery)
    return await _booked(delivery, answer, decisions)


async def _booked(delivery: Delivery, answer: Charge, decisions: PaymentDecisions) -> Sequence[OrderEvent]:
    if answer.approved:
        metrics.of(metrics.PAYMENTS, "captured").inc()
        return await decisions.captured(delivery, gateway_reference=answer.reference)
    metrics.of(metrics.PAYMENTS, "declined").inc()
    return await decisions.declined(delivery, reason=answer.decline_reason, gateway_reference=answer.reference)


async def _settled_meanwhile(delivery: Delivery, decisions: PaymentDecisions) -> Settled | None:
    """Tells whether the order was cancelled since: then its ORDER_CANCELLED closes the key and settles the charge."""
    intent = await decisions.intend(delivery)
    return intent if isinstance(intent, Settled) else None


def _is_past(intent: ChargeIntent, key_window: datetime.timedelta, now: datetime.datetime) -> bool:
    return intent.first_send_time is not None and now - intent.first_send_time > key_window


async def _first_charge(intent: ChargeIntent, gateway: PaymentGateway, decisions: PaymentDecisions) -> Charge | None:
    try:
        return await _send(intent, gateway)
    except GatewayUnavailable:
        await decisions.not_sent(intent)
        raise
    except GatewayRefused as refused:
        # Nothing is out, so that the order may expire and its stock is not held until somebody comes. A key that was
        # used before is another matter: by whom, and for what, nobody knows here.
        if refused.error_class != KEY_REUSED:
            await decisions.not_sent(intent)
        raise
    except ChargeUnknown:
        return await _repeated_charge(intent, gateway)


async def _repeated_charge(intent: ChargeIntent, gateway: PaymentGateway) -> Charge | None:
    """Sends once more under a key that was used before, inside the gateway's window of keys; then looks up.

    None: the outcome is not known. "Not found" alone never settles a charge that may have been sent.
    """
    try:
        return await _send(intent, gateway)
    except ChargeUnknown:
        return await gateway.find(intent.idempotency_key)


async def _send(intent: ChargeIntent, gateway: PaymentGateway) -> Charge:
    return await gateway.charge(
        intent.idempotency_key,
        order_id=intent.order_id,
        amount_minor=intent.amount.amount_minor,
        currency_code=intent.amount.currency_code,
        payment_method=intent.payment_method,
    )
