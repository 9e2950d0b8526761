"""What the payment processor intends and decides on refunds (semantics 26 to 28)."""

import dataclasses
import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from domain import commands, events, lifecycle
from domain.commands import CommandRefused
from domain.failures import Permanent, Transient
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType, PaymentRefundedDetails
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus
from storage import command_answers, dead_letters, forgotten, order_rows, outcomes, restores
from storage.database import Database
from storage.outcomes import Settled
from storage.payment_decisions import book_captures, open_payment

if TYPE_CHECKING:
    from storage.database import Connection

NOT_DUE: Final = "NOT_DUE"


@dataclasses.dataclass(frozen=True)
class RefundIntent:
    """A refund that is due.

    `asked_by` is the event_id of the record that asked for it: not always the one that is handled, for a sweep goes on
    with what another has begun. `request_fingerprint` is None if that record was no command, and empty if it was one of
    the system's own. `first_send_time` is None if nothing is out under the key; `send_time` is when this send was
    intended. `look_up_first`: the database has forgotten what was sent, so that the gateway is to be asked.
    """

    order_id: str
    asked_by: str
    idempotency_key: str
    charge_reference: str
    amount: Money
    reason: str
    request_fingerprint: bytes | None
    send_time: datetime.datetime
    first_send_time: datetime.datetime | None
    look_up_first: bool


class RefundDecisions:
    """Decisions on refunds: those of orders that were called off, and those that somebody asked for.

    A refund counts from its intent on, so that any number at once never give back more than was captured.
    """

    def __init__(self, database: Database, *, now: Callable[[], datetime.datetime]) -> None:
        """Uses the database's pool."""
        self._database = database
        self._now = now

    async def key_to_close(self, delivery: Delivery) -> str | Settled:
        """Returns the key of the charge of an order whose ORDER_CANCELLED this is; or what is decided already.

        Raises:
            Permanent: `INVALID_EVENT`: the order is not cancelled.
            Transient: the order has no row.
            DependencyDown: PostgreSQL is away.
        """
        order_id = delivery.event.order.order_id
        async with self._database.connection() as connection:
            decided = await outcomes.obeyed(connection, delivery)
            if decided is not None:
                return Settled(decided)
            order = await order_rows.find(connection, order_id)
            key: str | None = None
            if order is None:
                if not await forgotten.is_purged(connection, order_id):
                    raise Transient("ORDER_UNKNOWN", "the order has no row")
            elif order.status != OrderStatus.ORDER_STATUS_CANCELLED:
                raise Permanent("INVALID_EVENT", "the order is not cancelled")
            else:
                # No intent is stored for a cancelled order: without one by now nothing was sent, and nothing will be;
                # unless a restore has lost it, and then closing the key tells.
                if await restores.doubt(connection, order) is not None:
                    await open_payment(connection, order, now=self._now(), send_time=None)
                key = await connection.fetchval("select idempotency_key from payments where order_id = $1", order_id)
        return Settled(await self._nothing(delivery)) if key is None else key

    async def closed(
        self, delivery: Delivery, *, approved: bool | None, gateway_reference: str
    ) -> RefundIntent | Settled:
        """Books that the key of an order that was called off is closed, and what the gateway says of its charge.

        `approved` is None if there is no charge. Returns the intent to give back what was captured, or what is decided.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        order_id = delivery.event.order.order_id
        async with self._database.transaction() as connection:
            decided = await outcomes.obeyed(connection, delivery)
            if decided is not None:
                return Settled(decided)
            order = await order_rows.find(connection, order_id, lock=True)
            assert order is not None
            if approved:
                await book_captures(connection, {order_id: gateway_reference}, self._now())
            else:
                await connection.execute(
                    "update payments set state = $2, update_time = $3"
                    " where order_id = $1 and state in ('intended', 'unknown')",
                    order_id,
                    "closed" if approved is None else "declined",
                    self._now(),
                )
            intent = await self._resume(connection, delivery, order) or await self._intend(
                connection, delivery, order, None
            )
        return intent or Settled(await self._nothing(delivery, CommandRefused(NOT_DUE, order.status)))

    async def intend(self, delivery: Delivery) -> RefundIntent | Settled:
        """Stores the intent of a refund that a caller asks for and returns it; or what is decided, a refusal included.

        Raises:
            Transient: the order has no row, and this is not the last attempt.
            DependencyDown: PostgreSQL is away.
        """
        try:
            async with self._database.transaction() as connection:
                decided = await outcomes.obeyed(connection, delivery)
                if decided is not None:
                    return Settled(decided)
                intent = await self._intend_asked(connection, delivery)
        except CommandRefused as refusal:
            return Settled(await self._nothing(delivery, refusal))
        return intent or Settled(await self._nothing(delivery))

    async def due(self, delivery: Delivery, *, sent_before: datetime.datetime) -> str | RefundIntent | Settled:
        """Returns what is due of the order that a sweep asks about, or what is decided, a refusal included.

        That is a refund that was sent before a time and that nobody knows of since; of an order that was called off the
        key of a charge that is open, or the intent to give back what was captured.

        Raises:
            Transient: the order has no row, and this is not the last attempt.
            DependencyDown: PostgreSQL is away.
        """
        try:
            async with self._database.transaction() as connection:
                decided = await outcomes.obeyed(connection, delivery)
                if decided is not None:
                    return Settled(decided)
                return await self._due(connection, delivery, sent_before=sent_before)
        except CommandRefused as refusal:
            return Settled(await self._nothing(delivery, refusal))

    async def _intend_asked(self, connection: "Connection", delivery: Delivery) -> RefundIntent | None:
        """Returns the intent. None: this refund was made so long ago that its outcome was purged."""
        order, owner = await _order_of(connection, delivery)
        if (intent := await self._resume(connection, delivery, order)) is not None:
            return intent  # whatever the order has become since, the refund may have been sent
        state = await connection.fetchval("select state from refunds where event_id = $1", delivery.event.event_id)
        if state == "done":
            return None
        if state is not None:
            raise CommandRefused("REFUND_REFUSED", order.status)
        commands.check(delivery.event, order, owner=owner)
        asked = delivery.event.order_refund_requested
        wanted = asked.amount if asked.HasField("amount") else None
        if wanted is not None and wanted.currency_code != order.total.currency_code:
            raise CommandRefused("CURRENCY_MISMATCH", order.status)
        intent = await self._intend(connection, delivery, order, wanted.amount_minor if wanted else None)
        if intent is None:
            raise CommandRefused("REFUND_TOO_LARGE", order.status)
        return intent

    async def _due(
        self, connection: "Connection", delivery: Delivery, *, sent_before: datetime.datetime
    ) -> str | RefundIntent:
        order, owner = await _order_of(connection, delivery)
        if (intent := await self._resume(connection, delivery, order)) is not None:
            return intent
        commands.check(delivery.event, order, owner=owner)
        await connection.execute(
            "update refunds set taken_up_by = $2 where event_id = (select event_id from refunds where order_id = $1"
            " and state = 'intended' and first_send_time < $3 order by first_send_time limit 1)",
            order.order_id,
            delivery.event.event_id,
            sent_before,
        )
        if (intent := await self._resume(connection, delivery, order)) is not None:
            return intent
        if order.status in lifecycle.CALLED_OFF:
            key: str | None = await connection.fetchval(
                "select idempotency_key from payments where order_id = $1 and state in ('intended', 'unknown')",
                order.order_id,
            )
            if key is not None:
                return key
            if (intent := await self._intend(connection, delivery, order, None)) is not None:
                return intent
        raise CommandRefused(NOT_DUE, order.status)

    async def _resume(self, connection: "Connection", delivery: Delivery, order: Order) -> RefundIntent | None:
        """Goes on with the open intent that this record has stored, or has taken up: it counts as sent from now on.

        The order's row must be locked.
        """
        row = await connection.fetchrow(
            "select event_id, refunds.idempotency_key, refunds.amount_minor, refunds.currency_code, reason,"
            " request_fingerprint, refunds.first_send_time, payments.gateway_reference"
            " from refunds join payments using (order_id) where order_id = $1 and refunds.state = 'intended'"
            " and $2 in (event_id, taken_up_by)",
            delivery.event.order.order_id,
            delivery.event.event_id,
        )
        if row is None:
            return None
        intent = RefundIntent(
            order_id=delivery.event.order.order_id,
            asked_by=str(row["event_id"]),
            idempotency_key=row["idempotency_key"],
            charge_reference=row["gateway_reference"],
            amount=Money(currency_code=row["currency_code"], amount_minor=row["amount_minor"]),
            reason=row["reason"],
            request_fingerprint=row["request_fingerprint"],
            send_time=self._now(),
            first_send_time=row["first_send_time"],
            look_up_first=await restores.doubt(connection, order) is not None,
        )
        # update_time tells the last who intended to send: only that one may take its send back.
        await connection.execute(
            "update refunds set first_send_time = coalesce(first_send_time, $2), update_time = $2"
            " where idempotency_key = $1",
            intent.idempotency_key,
            intent.send_time,
        )
        return intent

    async def _intend(
        self, connection: "Connection", delivery: Delivery, order: Order, wanted: int | None
    ) -> RefundIntent | None:
        """Stores an intent of so much, all that is left without an amount. None: not so much is left.

        The order's row must be locked.
        """
        order_id, event_id = delivery.event.order.order_id, delivery.event.event_id
        payment = await connection.fetchrow(
            "select gateway_reference, currency_code, amount_minor - coalesce((select sum(amount_minor) from refunds"
            " where refunds.order_id = payments.order_id and state <> 'refused'), 0)::bigint as remaining"
            " from payments where order_id = $1 and state = 'captured'",
            order_id,
        )
        remaining = payment["remaining"] if payment is not None else 0
        amount_minor = remaining if wanted is None else wanted
        if payment is None or not 0 < amount_minor <= remaining:
            return None
        is_command = delivery.event.type in commands.LEADS_TO
        intent = RefundIntent(
            order_id=order_id,
            asked_by=event_id,
            idempotency_key=f"refund-{event_id}",
            charge_reference=payment["gateway_reference"],
            amount=Money(currency_code=payment["currency_code"], amount_minor=amount_minor),
            reason=_reason(delivery.event),
            request_fingerprint=delivery.event.command.request_fingerprint if is_command else None,
            send_time=self._now(),
            first_send_time=None,
            look_up_first=await restores.doubt(connection, order) is not None,
        )
        await connection.execute(
            "insert into refunds (event_id, order_id, idempotency_key, state, amount_minor, currency_code, reason,"
            " request_fingerprint, first_send_time, update_time)"
            " values ($1, $2, $3, 'intended', $4, $5, $6, $7, $8, $8)",
            event_id,
            order_id,
            intent.idempotency_key,
            amount_minor,
            intent.amount.currency_code,
            intent.reason,
            intent.request_fingerprint,
            intent.send_time,
        )
        if amount_minor == remaining:
            await _set_refund_due(connection, order_id, False)
        return intent

    async def sent_anew(self, intent: RefundIntent) -> RefundIntent:
        """Records that the refund's window of keys begins now: the gateway has forgotten its key, and made no refund.

        Returns the intent under whose key nothing is out.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        anew = dataclasses.replace(intent, first_send_time=None, send_time=self._now())
        async with self._database.connection() as connection:
            await connection.execute(
                "update refunds set first_send_time = $2, update_time = $2 where idempotency_key = $1",
                anew.idempotency_key,
                anew.send_time,
            )
        return anew

    async def not_sent(self, intent: RefundIntent) -> None:
        """Records that nothing is out under the intent's key: nothing was sent, or the gateway has refused the first.

        Only if it is still this intent's: another process may have taken over and sent.

        Raises:
            DependencyDown: PostgreSQL is away; then the refund counts as sent, which is the safe side.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "update refunds set first_send_time = null where idempotency_key = $1 and state = 'intended'"
                " and first_send_time = $2 and update_time = $2",
                intent.idempotency_key,
                intent.send_time,
            )

    async def refunded(self, delivery: Delivery, intent: RefundIntent, *, gateway_reference: str) -> list[OrderEvent]:
        """Books a refund that the gateway made. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """

        async def decision(connection: "Connection") -> list[OrderEvent]:
            now = self._now()
            found = await order_rows.find_owned(connection, intent.order_id)
            assert found is not None
            order, owner = found
            booked = await connection.fetchval(
                "with done as (update refunds set state = 'done', update_time = $3"
                " where idempotency_key = $1 and state = 'intended' returning order_id, amount_minor, currency_code)"
                " insert into payment_entries (order_id, kind, amount_minor, currency_code, gateway_reference,"
                " entry_time) select order_id, 'refund', amount_minor, currency_code, $2, $3 from done returning true",
                intent.idempotency_key,
                gateway_reference,
                now,
            )
            if not await self._answered(connection, delivery, intent, None, decided=bool(booked), order=order):
                return []
            if order.status not in lifecycle.sources_of(OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED):
                return []
            whole = commands.add_refund(order, intent.amount.amount_minor)
            details = PaymentRefundedDetails(
                gateway_reference=gateway_reference, amount=intent.amount, whole=whole, reason=intent.reason
            )
            order = await order_rows.change(connection, order, now=now)
            return [events.payment_refunded(_asked(delivery, intent), order, details, owner=owner)]

        return await outcomes.decide(self._database, delivery, decision)

    async def refused(self, delivery: Delivery, intent: RefundIntent) -> list[OrderEvent]:
        """Books that the gateway refused a refund that a caller asked for: it counts no more.

        Raises:
            DependencyDown: PostgreSQL is away.
        """

        async def decision(connection: "Connection") -> list[OrderEvent]:
            order = await order_rows.find(connection, intent.order_id, lock=True)
            assert order is not None
            refused = await connection.fetchval(
                "update refunds set state = 'refused', update_time = $2"
                " where idempotency_key = $1 and state = 'intended' returning true",
                intent.idempotency_key,
                self._now(),
            )
            refusal = CommandRefused("REFUND_REFUSED", order.status)
            decided = await self._answered(connection, delivery, intent, refusal, decided=bool(refused), order=order)
            if decided and order.status in lifecycle.CALLED_OFF:
                # What was called off counted on this one.
                await _set_refund_due(connection, intent.order_id, True)
            return []

        return await outcomes.decide(self._database, delivery, decision)

    async def left_open(self, delivery: Delivery) -> list[OrderEvent]:
        """Books that a sweep's record could not settle another's refund, or a charge: a later one may.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        return await self._nothing(delivery, CommandRefused("REFUND_UNKNOWN"))

    async def _answered(
        self,
        connection: "Connection",
        delivery: Delivery,
        intent: RefundIntent,
        refusal: CommandRefused | None,
        *,
        decided: bool,
        order: Order,
    ) -> bool:
        """Stores the answers to whoever asked. Returns whether the refund was decided here, and not before.

        Decided before and by this record, another process has it: storing the outcome will tell, and rolls this back.
        """
        if intent.asked_by == delivery.event.event_id:
            await _answer(connection, delivery, refusal)
            return True
        if not decided:
            await _answer(connection, delivery, CommandRefused(NOT_DUE, order.status))
            return False
        # The record that asked is settled with this one's coordinates: when it comes again it counts as a copy.
        asked = _asked(delivery, intent)
        await outcomes.store(connection, asked, [])
        await _answer(connection, asked, refusal)
        await _answer(connection, delivery, None)
        await dead_letters.settle(connection, delivery.group, intent.order_id, intent.asked_by)
        return True

    async def _nothing(self, delivery: Delivery, refusal: CommandRefused | None = None) -> list[OrderEvent]:
        async def decision(connection: "Connection") -> list[OrderEvent]:
            await _answer(connection, delivery, refusal)
            return []

        return await outcomes.decide(self._database, delivery, decision)


async def _order_of(connection: "Connection", delivery: Delivery) -> tuple[Order, str]:
    """Returns the order, its row locked, and who placed it.

    Raises:
        CommandRefused: it was purged, or has no row, and this is the last attempt.
        Transient: it has none so far.
    """
    found = await order_rows.find_owned(connection, delivery.event.order.order_id)
    if found is None:
        if not delivery.is_last and not await forgotten.is_purged(connection, delivery.event.order.order_id):
            raise Transient("ORDER_UNKNOWN", "the order has no row")
        raise CommandRefused("ORDER_NOT_FOUND")
    return found


def _asked(delivery: Delivery, intent: RefundIntent) -> Delivery:
    """Returns the delivery as one of the record that asked for the refund: what comes of it is that one's."""
    if intent.asked_by == delivery.event.event_id:
        return delivery
    event = OrderEvent(event_id=intent.asked_by, metadata=delivery.event.metadata)
    if intent.request_fingerprint is None:
        event.type = OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCELLED
    else:
        event.type = OrderEventType.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED
        event.command.request_fingerprint = intent.request_fingerprint
    return dataclasses.replace(delivery, event=event)


async def _set_refund_due(connection: "Connection", order_id: str, due: bool) -> None:
    await connection.execute(
        "update payments set refund_due = $2 where order_id = $1 and refund_due <> $2", order_id, due
    )


async def _answer(connection: "Connection", delivery: Delivery, refusal: CommandRefused | None) -> None:
    if delivery.event.type in commands.LEADS_TO:
        await command_answers.store(connection, delivery, refusal)


def _reason(cause: OrderEvent) -> str:
    if cause.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCELLED:
        return cause.order_cancelled.reason
    return cause.order_refund_requested.reason
