"""Gives money back: that of cancelled orders, and what somebody asked for. A part of the payment processor."""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from typing import Protocol

import fault_points
from domain import commands
from domain.failures import Permanent, Transient
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from storage.outcomes import Settled
from storage.refund_decisions import RefundIntent
from telemetry import metrics
from workers.gateways.gateway import ChargeUnknown, GatewayRefused, PaymentGateway, Refund


class RefundDecisions(Protocol):
    """What refunds are intended and decided with. Every method raises DependencyDown."""

    async def key_to_close(self, delivery: Delivery) -> str | Settled:
        """Returns the key of a cancelled order's charge, or what is decided already."""
        ...

    async def closed(
        self, delivery: Delivery, *, approved: bool | None, gateway_reference: str
    ) -> RefundIntent | Settled:
        """Books what the closed key had charged, and returns the intent to give it back, or what is decided."""
        ...

    async def intend(self, delivery: Delivery, *, is_last: bool) -> RefundIntent | Settled:
        """Stores the intent of a refund that was asked for and returns it, or what is decided."""
        ...

    async def sent_anew(self, intent: RefundIntent) -> None:
        """Records that the refund's window of keys begins now."""
        ...

    async def refunded(self, delivery: Delivery, intent: RefundIntent, *, gateway_reference: str) -> list[OrderEvent]:
        """Books a refund."""
        ...

    async def refused(self, delivery: Delivery, intent: RefundIntent) -> list[OrderEvent]:
        """Books that the gateway refused a refund."""
        ...


class Refunds:
    """Handles ORDER_CANCELLED and ORDER_REFUND_REQUESTED."""

    def __init__(
        self,
        *,
        decisions: RefundDecisions,
        gateway: PaymentGateway,
        key_window: datetime.timedelta,
        now: Callable[[], datetime.datetime],
        attempts: int,
    ) -> None:
        """`key_window` is how long the gateway honours a key; `attempts` is how often a record is tried in all."""
        self._decisions = decisions
        self._gateway = gateway
        self._key_window = key_window
        self._now = now
        self._attempts = attempts

    async def settle_cancelled(self, delivery: Delivery) -> Sequence[OrderEvent]:
        """Closes the key of a cancelled order's charge, and gives back what was captured under it.

        Raises:
            Permanent: the gateway refuses the call itself, or the order is not cancelled.
            Transient: the refund's outcome is not known; the next attempt goes on with it.
            DependencyDown: PostgreSQL or the gateway is away.
        """
        key = await self._decisions.key_to_close(delivery)
        if isinstance(key, Settled):
            return key.events
        charge = await self._gateway.close(key)
        intent = await self._decisions.closed(
            delivery,
            approved=charge.approved if charge else None,
            gateway_reference=charge.reference if charge else "",
        )
        return intent.events if isinstance(intent, Settled) else await self._give_back(delivery, intent)

    async def refund(self, delivery: Delivery) -> Sequence[OrderEvent]:
        """Makes a refund that somebody asked for.

        Raises:
            Permanent: `INVALID_COMMAND`, or the gateway refuses a refund that the system asked for.
            Transient, DependencyDown: as `settle_cancelled`; also an order that has no row so far.
        """
        if violations := commands.violations_of_command(delivery.event):
            raise Permanent("INVALID_COMMAND", f"{violations[0].field} {violations[0].description}")
        intent = await self._decisions.intend(delivery, is_last=delivery.attempt >= self._attempts)
        return intent.events if isinstance(intent, Settled) else await self._give_back(delivery, intent)

    async def _give_back(self, delivery: Delivery, intent: RefundIntent) -> Sequence[OrderEvent]:
        fault_points.reached("W5")
        if not delivery.is_owned():
            raise Transient("PARTITION_LOST", "another process owns the partition by now")
        try:
            refund = await self._sent_or_found(intent)
        except GatewayRefused:
            metrics.PAYMENTS.labels("refund_refused").inc()
            if delivery.event.type not in commands.LEADS_TO or commands.is_systems(delivery.event):
                raise  # nobody would hear of it: an operator has to
            return await self._decisions.refused(delivery, intent)
        fault_points.reached("W7")
        metrics.PAYMENTS.labels("refunded").inc()
        emitted = await self._decisions.refunded(delivery, intent, gateway_reference=refund.reference)
        fault_points.reached("W8")
        return emitted

    async def _sent_or_found(self, intent: RefundIntent) -> Refund:
        """Sends under the refund's key, as often as it takes: inside the window of keys that is one refund.

        Past the window it is looked up first. What the gateway does not know of after so long is not on its way any
        more, and a refund that was never made is not left at that, as a charge would be.
        """
        if intent.first_send_time is not None and self._now() - intent.first_send_time > self._key_window:
            if (found := await self._gateway.find_refund(intent.idempotency_key)) is not None:
                return found
            await self._decisions.sent_anew(intent)
        if intent.first_send_time is None:
            with contextlib.suppress(ChargeUnknown):
                return await self._send(intent)
        try:
            return await self._send(intent)
        except ChargeUnknown:
            # A stored error under the key hides whether it was made. What was sent before is not sent twice more: the
            # second would meet the breaker that the first may have opened, in every round anew.
            if (found := await self._gateway.find_refund(intent.idempotency_key)) is not None:
                return found
            raise

    async def _send(self, intent: RefundIntent) -> Refund:
        return await self._gateway.refund(
            intent.idempotency_key,
            charge_reference=intent.charge_reference,
            amount_minor=intent.amount.amount_minor,
        )
