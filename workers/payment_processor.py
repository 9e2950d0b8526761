"""Charges processed orders: ORDER_PROCESSING to ORDER_PAID or PAYMENT_FAILED. Alone talks to the gateway."""

import datetime
from collections.abc import Callable, Sequence
from typing import Protocol

import fault_points
from domain.failures import Permanent, Transient
from domain.records import Delivery
from messaging import topics
from messaging.worker import WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from storage.outcomes import Settled
from storage.payment_decisions import ChargeIntent
from telemetry import logs, metrics
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayUnavailable, PaymentGateway

log = logs.get()

SPEC = WorkerSpec(
    group="payment-processor",
    reads=(topics.ORDERS,),
    handles=frozenset({OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING}),
)


class PaymentDecisions(Protocol):
    """What the payment processor intends and decides with. Every method raises DependencyDown."""

    async def intend(self, delivery: Delivery) -> ChargeIntent | Settled:
        """Stores the intent to charge and returns it, or what is decided already."""
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
    gateway: PaymentGateway,
    key_window: datetime.timedelta,
    now: Callable[[], datetime.datetime],
) -> Sequence[OrderEvent]:
    """Handles an ORDER_PROCESSING. `key_window` is how long the gateway honours a key, from its first send.

    Raises:
        Permanent: `PAYMENT_UNKNOWN`, or the gateway refuses the call itself.
        DependencyDown: PostgreSQL or the gateway is away.
    """
    intent = await decisions.intend(delivery)
    if isinstance(intent, Settled):
        return intent.events
    fault_points.reached("W5")
    if not delivery.is_owned():
        raise Transient("PARTITION_LOST", "another process owns the partition by now")
    if _is_past(intent, key_window, now()):
        charge = await gateway.find(intent.idempotency_key)
    elif intent.first_send_time is None:
        charge = await _first_charge(intent, gateway, decisions)
    else:
        charge = await _repeated_charge(intent, gateway)
    fault_points.reached("W7")
    if charge is None:
        await decisions.unknown(delivery)
        metrics.PAYMENTS.labels("unknown").inc()
        log.error("payment.unknown")
        raise Permanent("PAYMENT_UNKNOWN", "the gateway answered, and that does not tell whether it charged")
    if charge.approved:
        metrics.PAYMENTS.labels("captured").inc()
        emitted = await decisions.captured(delivery, gateway_reference=charge.reference)
    else:
        metrics.PAYMENTS.labels("declined").inc()
        emitted = await decisions.declined(delivery, reason=charge.decline_reason, gateway_reference=charge.reference)
    fault_points.reached("W8")
    return emitted


def _is_past(intent: ChargeIntent, key_window: datetime.timedelta, now: datetime.datetime) -> bool:
    return intent.first_send_time is not None and now - intent.first_send_time > key_window


async def _first_charge(intent: ChargeIntent, gateway: PaymentGateway, decisions: PaymentDecisions) -> Charge | None:
    try:
        return await _send(intent, gateway)
    except GatewayUnavailable:
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
