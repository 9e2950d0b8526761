"""What the payment processor intends and decides on refunds (semantics 26 to 28)."""

import dataclasses
import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING

from domain import commands, events, lifecycle
from domain.commands import CommandRefused
from domain.failures import Permanent, Transient
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType, PaymentRefundedDetails
from orderflow.orders.v1.order_pb2 import Money, OrderStatus
from storage import command_answers, order_rows, outcomes
from storage.database import Database
from storage.outcomes import Settled
from storage.payment_decisions import book_capture

if TYPE_CHECKING:
    from storage.database import Connection


@dataclasses.dataclass(frozen=True)
class RefundIntent:
    """A refund that is due. `first_send_time` is None if nothing was ever sent under its key."""

    order_id: str
    idempotency_key: str
    charge_reference: str
    amount: Money
    first_send_time: datetime.datetime | None


class RefundDecisions:
    """Decisions on refunds: those of cancelled orders, and those that somebody asked for.

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
            if order is None:
                raise Transient("ORDER_UNKNOWN", "the order has no row")
            if order.status != OrderStatus.ORDER_STATUS_CANCELLED:
                raise Permanent("INVALID_EVENT", "the order is not cancelled")
            # No intent is stored for a cancelled order: without one by now nothing was sent, and nothing will be.
            key: str | None = await connection.fetchval(
                "select idempotency_key from payments where order_id = $1", order_id
            )
        return Settled(await self._nothing(delivery)) if key is None else key

    async def closed(
        self, delivery: Delivery, *, approved: bool | None, gateway_reference: str
    ) -> RefundIntent | Settled:
        """Books that a cancelled order's key is closed, and what the gateway says of its charge; None: there is none.

        Returns the intent to give back what was captured, or what is decided.

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
                await book_capture(connection, order_id, gateway_reference, self._now())
            else:
                await connection.execute(
                    "update payments set state = $2, update_time = $3"
                    " where order_id = $1 and state in ('intended', 'unknown')",
                    order_id,
                    "closed" if approved is None else "declined",
                    self._now(),
                )
            intent = await self._found(connection, delivery) or await self._intend(connection, delivery, None)
        return intent or Settled(await self._nothing(delivery))

    async def intend(self, delivery: Delivery, *, is_last: bool) -> RefundIntent | Settled:
        """Stores the intent of an ORDER_REFUND_REQUESTED and returns it; or what is decided, a refusal included.

        Raises:
            Transient: the order has no row, and this is not the last attempt.
            DependencyDown: PostgreSQL is away.
        """
        try:
            async with self._database.transaction() as connection:
                decided = await outcomes.obeyed(connection, delivery)
                if decided is not None:
                    return Settled(decided)
                return await self._intend_asked(connection, delivery, is_last=is_last)
        except CommandRefused as refusal:
            return Settled(await self._refuse(delivery, refusal))

    async def _intend_asked(self, connection: "Connection", delivery: Delivery, *, is_last: bool) -> RefundIntent:
        found = await order_rows.find_owned(connection, delivery.event.order.order_id)
        if found is None:
            if not is_last:
                raise Transient("ORDER_UNKNOWN", "the order has no row")
            raise CommandRefused("ORDER_NOT_FOUND")
        if (intent := await self._found(connection, delivery)) is not None:
            return intent  # whatever the order has become since, the refund may have been sent
        order, owner = found
        commands.check(delivery.event, order, owner=owner)
        asked = delivery.event.order_refund_requested
        wanted = asked.amount if asked.HasField("amount") else None
        if wanted is not None and wanted.currency_code != order.total.currency_code:
            raise CommandRefused("CURRENCY_MISMATCH", order.status)
        intent = await self._intend(connection, delivery, wanted.amount_minor if wanted else None)
        if intent is None:
            raise CommandRefused("REFUND_TOO_LARGE", order.status)
        return intent

    async def _found(self, connection: "Connection", delivery: Delivery) -> RefundIntent | None:
        """Returns the intent that was stored for this record before."""
        row = await connection.fetchrow(
            "select order_id, refunds.idempotency_key, refunds.amount_minor, refunds.currency_code,"
            " refunds.first_send_time, payments.gateway_reference from refunds join payments using (order_id)"
            " where event_id = $1",
            delivery.event.event_id,
        )
        if row is None:
            return None
        amount = Money(currency_code=row["currency_code"], amount_minor=row["amount_minor"])
        return RefundIntent(
            str(row["order_id"]), row["idempotency_key"], row["gateway_reference"], amount, row["first_send_time"]
        )

    async def _intend(self, connection: "Connection", delivery: Delivery, wanted: int | None) -> RefundIntent | None:
        """Stores an intent of so much, all that is left without an amount. None: not so much is left.

        The order's row must be locked.
        """
        order_id, event_id = delivery.event.order.order_id, delivery.event.event_id
        now = self._now()
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
        key = f"refund-{event_id}"
        await connection.execute(
            "insert into refunds (event_id, order_id, idempotency_key, state, amount_minor, currency_code,"
            " first_send_time, update_time) values ($1, $2, $3, 'intended', $4, $5, $6, $6)",
            event_id,
            order_id,
            key,
            amount_minor,
            payment["currency_code"],
            now,
        )
        if amount_minor == remaining:
            await _set_refund_due(connection, order_id, False)
        amount = Money(currency_code=payment["currency_code"], amount_minor=amount_minor)
        return RefundIntent(order_id, key, payment["gateway_reference"], amount, None)

    async def sent_anew(self, intent: RefundIntent) -> None:
        """Records that the refund's window of keys begins now: the gateway has forgotten its key, and made no refund.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "update refunds set first_send_time = $2 where idempotency_key = $1",
                intent.idempotency_key,
                self._now(),
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
            await connection.execute(
                # Done already, another process has decided this record: storing the outcome tells, and rolls this back.
                "with done as (update refunds set state = 'done', update_time = $3"
                " where idempotency_key = $1 and state <> 'done' returning order_id, amount_minor, currency_code)"
                " insert into payment_entries (order_id, kind, amount_minor, currency_code, gateway_reference,"
                " entry_time) select order_id, 'refund', amount_minor, currency_code, $2, $3 from done",
                intent.idempotency_key,
                gateway_reference,
                now,
            )
            await _answer(connection, delivery, None)
            if order.status not in lifecycle.sources_of(OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED):
                return []
            whole = commands.add_refund(order, intent.amount.amount_minor)
            details = PaymentRefundedDetails(
                gateway_reference=gateway_reference, amount=intent.amount, whole=whole, reason=_reason(delivery.event)
            )
            order = await order_rows.change(connection, order, now=now)
            return [events.payment_refunded(delivery, order, details, owner=owner)]

        return await outcomes.decide(self._database, delivery, decision)

    async def refused(self, delivery: Delivery, intent: RefundIntent) -> list[OrderEvent]:
        """Books that the gateway refused a refund that somebody asked for: it counts no more.

        Raises:
            DependencyDown: PostgreSQL is away.
        """

        async def decision(connection: "Connection") -> list[OrderEvent]:
            order = await order_rows.find(connection, intent.order_id, lock=True)
            assert order is not None
            await connection.execute(
                "update refunds set state = 'refused', update_time = $2 where idempotency_key = $1",
                intent.idempotency_key,
                self._now(),
            )
            if order.status == OrderStatus.ORDER_STATUS_CANCELLED:
                # The cancellation's refund counted on this one.
                await _set_refund_due(connection, intent.order_id, True)
            await _answer(connection, delivery, CommandRefused("REFUND_REFUSED", order.status))
            return []

        return await outcomes.decide(self._database, delivery, decision)

    async def _refuse(self, delivery: Delivery, refusal: CommandRefused) -> list[OrderEvent]:
        async def decision(connection: "Connection") -> list[OrderEvent]:
            await _answer(connection, delivery, refusal)
            return []

        return await outcomes.decide(self._database, delivery, decision)

    async def _nothing(self, delivery: Delivery) -> list[OrderEvent]:
        async def decision(_: "Connection") -> list[OrderEvent]:
            return []

        return await outcomes.decide(self._database, delivery, decision)


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
