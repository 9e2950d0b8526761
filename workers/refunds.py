"""Gives money back: that of cancelled orders, and what somebody asked for. A part of the payment processor."""

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
from workers.gateways.gateway import (
    ChargeUnderWay,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    PaymentGateway,
    Refund,
)


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

    async def intend(self, delivery: Delivery) -> RefundIntent | Settled:
        """Stores the intent of a refund that was asked for and returns it, or what is decided."""
        ...

    async def due(self, delivery: Delivery, *, sent_before: datetime.datetime) -> str | RefundIntent | Settled:
        """Returns what is due of the order that a sweep asks about: a refund, or a key to close; or what is decided."""
        ...

    async def sent_anew(self, intent: RefundIntent) -> RefundIntent:
        """Records that the refund's window of keys begins now, and returns it as one of which nothing is out."""
        ...

    async def not_sent(self, intent: RefundIntent) -> None:
        """Records that nothing is out under the refund's key."""
        ...

    async def refunded(self, delivery: Delivery, intent: RefundIntent, *, gateway_reference: str) -> list[OrderEvent]:
        """Books a refund."""
        ...

    async def refused(self, delivery: Delivery, intent: RefundIntent) -> list[OrderEvent]:
        """Books that the gateway refused a refund."""
        ...

    async def left_open(self, delivery: Delivery) -> list[OrderEvent]:
        """Books that a sweep's record could not settle another's refund, or a charge that is under way."""
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
    ) -> None:
        """`key_window` is how long the gateway honours a key."""
        self._decisions = decisions
        self._gateway = gateway
        self._key_window = key_window
        self._now = now

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
        return await self._close(delivery, key)

    async def refund(self, delivery: Delivery) -> Sequence[OrderEvent]:
        """Makes a refund that somebody asked for, or settles what is due of an order, which the system asks for.

        Raises:
            Permanent: `INVALID_COMMAND`, or the gateway refuses a refund that no caller asked for.
            Transient, DependencyDown: as `settle_cancelled`; also an order that has no row so far.
        """
        if violations := commands.violations_of_command(delivery.event):
            raise Permanent("INVALID_COMMAND", f"{violations[0].field} {violations[0].description}")
        if commands.is_systems(delivery.event):
            sent_before = self._now() - self._key_window
            due = await self._decisions.due(delivery, sent_before=sent_before)
        else:
            due = await self._decisions.intend(delivery)
        if isinstance(due, Settled):
            return due.events
        if not isinstance(due, str):
            return await self._give_back(delivery, due)
        try:
            return await self._close(delivery, due)
        except ChargeUnderWay:
            if not delivery.is_last:
                raise
            # It may be under way for days, and each sweep asks anew: no dead letter each time.
            return await self._decisions.left_open(delivery)

    async def _close(self, delivery: Delivery, key: str) -> Sequence[OrderEvent]:
        charge = await self._gateway.close(key)
        intent = await self._decisions.closed(
            delivery,
            approved=charge.approved if charge else None,
            gateway_reference=charge.reference if charge else "",
        )
        return intent.events if isinstance(intent, Settled) else await self._give_back(delivery, intent)

    async def _give_back(self, delivery: Delivery, intent: RefundIntent) -> Sequence[OrderEvent]:
        fault_points.reached("W5")
        if not delivery.is_owned():
            raise Transient("PARTITION_LOST", "the partition was given up meanwhile")
        try:
            refund = await self._sent_or_found(intent)
        except GatewayRefused:
            metrics.PAYMENTS.labels("refund_refused").inc()
            if not intent.request_fingerprint:
                raise  # no caller would hear of it: an operator has to
            return await self._decisions.refused(delivery, intent)
        except ChargeUnknown:
            metrics.PAYMENTS.labels("refund_unknown").inc()
            if intent.asked_by == delivery.event.event_id:
                raise
            # The record that asked for it is a dead letter already; one more would tell nothing new.
            return await self._decisions.left_open(delivery)
        fault_points.reached("W7")
        metrics.PAYMENTS.labels("refunded").inc()
        emitted = await self._decisions.refunded(delivery, intent, gateway_reference=refund.reference)
        fault_points.reached("W8")
        return emitted

    async def _sent_or_found(self, intent: RefundIntent) -> Refund:
        """Sends under the refund's key, as often as it takes: inside the window of keys that is one refund.

        Past the window it is looked up first. What the gateway does not know of after so long is not on its way any
        more, and a refund that was never made is not left at that, as a charge would be. The same holds of one whose
        first send a restore of the database may have lost.
        """
        is_past = intent.first_send_time is not None and self._now() - intent.first_send_time > self._key_window
        if is_past or intent.look_up_first:
            if (found := await self._looked_up(intent)) is not None:
                return found
            if is_past:
                intent = await self._decisions.sent_anew(intent)
        if intent.first_send_time is None:
            try:
                return await self._send(intent)
            except ChargeUnknown:
                pass
            except (GatewayRefused, GatewayUnavailable):
                await self._decisions.not_sent(intent)
                raise
        return await self._sent_again_or_found(intent)

    async def _sent_again_or_found(self, intent: RefundIntent) -> Refund:
        """Sends once more under a key of which it is not known what became; then a look-up alone tells.

        A refusal does not: the gateway may say no to the second because of the first, made or still on its way. A
        stored error hides as much. What was sent before is not sent twice more: the second would meet the breaker that
        the first may have opened, in every round anew.
        """
        try:
            return await self._send(intent)
        except (ChargeUnknown, GatewayRefused) as no_answer:
            if (found := await self._looked_up(intent)) is not None:
                return found
            if isinstance(no_answer, ChargeUnknown):
                raise
            raise ChargeUnknown(f"an earlier send is open, and another was refused: {no_answer.error_class}") from (
                no_answer
            )

    async def _looked_up(self, intent: RefundIntent) -> Refund | None:
        try:
            return await self._gateway.find_refund(intent.idempotency_key, charge_reference=intent.charge_reference)
        except GatewayRefused as refused:
            raise ChargeUnknown(f"the look-up was refused: {refused.error_class}") from refused

    async def _send(self, intent: RefundIntent) -> Refund:
        return await self._gateway.refund(
            intent.idempotency_key,
            charge_reference=intent.charge_reference,
            amount_minor=intent.amount.amount_minor,
        )
