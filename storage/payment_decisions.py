"""What the payment processor intends and decides (semantics 15, 19 to 22, 27)."""

import dataclasses
import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import asyncpg

from domain import events
from domain.failures import Transient
from domain.orders import charge_key
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType, OrderPaidDetails, PaymentFailedDetails
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus, PaymentStatus
from storage import forgotten, order_rows, outcomes, restores, stock
from storage.database import Database
from storage.outcomes import Settled

if TYPE_CHECKING:
    from storage.database import Connection


_PAYMENT: Final = f"idempotency_key, first_send_time, {restores.IS_IN_DOUBT.format(created='$2')} as is_in_doubt"
_FIND: Final = f"select {_PAYMENT} from payments where order_id = $1"  # noqa: S608 - a constant
_OPEN: Final = (
    "insert into payments (order_id, idempotency_key, state, amount_minor, currency_code, first_send_time,"  # noqa: S608
    " update_time) values ($1, $3, 'intended', $4, $5, $6, $7)"
    f" on conflict (order_id) do nothing returning {_PAYMENT}"
)


@dataclasses.dataclass(frozen=True)
class ChargeIntent:
    """A charge that is due.

    `first_send_time` is None if nothing was ever sent under its key; `send_time` is when this send was intended.
    `look_up_first`: the database has forgotten what was sent, so that the gateway is to be asked; no send is intended.
    """

    order_id: str
    idempotency_key: str
    amount: Money
    payment_method: str
    send_time: datetime.datetime
    first_send_time: datetime.datetime | None
    look_up_first: bool = False


class PaymentDecisions:
    """Decisions on charges."""

    def __init__(self, database: Database, *, now: Callable[[], datetime.datetime]) -> None:
        """Uses the database's pool."""
        self._database = database
        self._now = now

    async def intend(self, delivery: Delivery, *, looked_up: bool = False) -> ChargeIntent | Settled:
        """Stores the intent to charge, with the time of the first send, and returns it; or what is decided already.

        Call it right before sending: it fails when the order was cancelled or expired meanwhile. `looked_up`: the
        gateway was asked, as the intent said, and knows of no charge. Then an order that is not paid in time is left to
        expire.

        Raises:
            Transient: the order has no row.
            DependencyDown: PostgreSQL is away.
        """
        order_id = delivery.event.order.order_id
        async with self._database.transaction() as connection:
            decided = await outcomes.obeyed(connection, delivery)
            if decided is not None:
                return Settled(decided)
            order = await order_rows.find(connection, order_id, lock=True)
            if order is None and not await forgotten.is_purged(connection, order_id):
                raise Transient("ORDER_UNKNOWN", "the order has no row")
            if order is not None and order.status == OrderStatus.ORDER_STATUS_PROCESSING:
                intent = await self._intend(connection, order, looked_up=looked_up)
                if intent is not None:
                    return intent
        return Settled(await outcomes.decide(self._database, delivery, _nothing))

    async def _intend(self, connection: "Connection", order: Order, *, looked_up: bool) -> ChargeIntent | None:
        """Returns the intent. None: the order is not to be charged any more, and will expire."""
        now = self._now()
        row = await open_payment(connection, order, now=now, send_time=now)
        is_new = row is not None
        if row is None:
            row = await connection.fetchrow(_FIND, order.order_id, order.create_time.ToDatetime(datetime.UTC))
            assert row is not None
        sent_before = None if is_new else row["first_send_time"]
        intent = ChargeIntent(
            order.order_id, row["idempotency_key"], order.total, order.payment_method, now, sent_before
        )
        if row["is_in_doubt"] and not looked_up:
            if is_new:
                await connection.execute(
                    "update payments set first_send_time = null where order_id = $1", order.order_id
                )
            return dataclasses.replace(intent, look_up_first=True)
        if row["is_in_doubt"] and sent_before is None and order.expire_time.ToDatetime(datetime.UTC) <= now:
            return None  # perhaps it had expired before, and its customer knows
        if not is_new:
            await connection.execute(
                # update_time tells the last who intended to send: only that one may take its send back.
                "update payments set first_send_time = coalesce(first_send_time, $2), update_time = $2"
                " where order_id = $1",
                order.order_id,
                now,
            )
        return intent

    async def open_key(self, delivery: Delivery, *, is_last: bool) -> str | Settled:
        """Returns the key of the charge that a PAYMENT_REPORTED is about, if it is not decided; or what is decided.

        A charge of an order that was called off is not decided either: one that was approved all the same is given
        back. An order that has no row by the last attempt is none of ours, and nothing comes of it.

        Raises:
            Transient: the order has no row, so far.
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            decided = await outcomes.obeyed(connection, delivery)
            if decided is not None:
                return Settled(decided)
            row = await connection.fetchrow(
                "select idempotency_key, state from orders left join payments using (order_id) where order_id = $1",
                delivery.event.order.order_id,
            )
        if row is None and not is_last:
            raise Transient("ORDER_UNKNOWN", "the order has no row")
        if row is None or row["state"] in (None, "captured", "declined"):
            return Settled(await self.undecided(delivery))
        key: str = row["idempotency_key"]
        return key

    async def undecided(self, delivery: Delivery) -> list[OrderEvent]:
        """Stores that nothing came of a record. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        return await outcomes.decide(self._database, delivery, _nothing)

    async def not_sent(self, intent: ChargeIntent) -> None:
        """Records that nothing was sent yet under the intent, so that it never counts as past the window of keys.

        Only if it is still this intent's: another process may have taken over and sent.

        Raises:
            DependencyDown: PostgreSQL is away; then the intent counts as sent, which is the safe side.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "update payments set first_send_time = null"
                " where order_id = $1 and state = 'intended' and first_send_time = $2 and update_time = $2",
                intent.order_id,
                intent.send_time,
            )

    async def captured(self, delivery: Delivery, *, gateway_reference: str) -> list[OrderEvent]:
        """Books an approved charge: the order is PAID, its stock sold. Returns the events to emit.

        If the order was cancelled meanwhile the capture is booked and nothing is emitted: who handles the cancellation
        gives it back, or did not see it, and then it is booked as a refund that is due.

        Raises:
            DependencyDown: PostgreSQL is away.
        """

        async def decision(connection: "Connection") -> list[OrderEvent]:
            now = self._now()
            order = await order_rows.move(
                connection,
                delivery.event.order.order_id,
                OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID,
                payment_status=PaymentStatus.PAYMENT_STATUS_CAPTURED,
                now=now,
            )
            await book_capture(connection, delivery.event.order.order_id, gateway_reference, now)
            if order is None:
                return []
            details = OrderPaidDetails(gateway_reference=gateway_reference, amount=order.total)
            return [events.order_paid(delivery, order, details, owner=await _owner(connection, delivery))]

        return await outcomes.decide(self._database, delivery, decision, last=_sell)

    async def declined(self, delivery: Delivery, *, reason: str, gateway_reference: str) -> list[OrderEvent]:
        """Books a declined charge: the order is PAYMENT_FAILED, its stock given back. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """

        async def decision(connection: "Connection") -> list[OrderEvent]:
            now = self._now()
            order = await order_rows.move(
                connection,
                delivery.event.order.order_id,
                OrderEventType.ORDER_EVENT_TYPE_PAYMENT_FAILED,
                payment_status=PaymentStatus.PAYMENT_STATUS_DECLINED,
                failure_reason=reason,
                now=now,
            )
            await connection.execute(
                "update payments set state = 'declined', decline_reason = $2, gateway_reference = $3, update_time = $4"
                " where order_id = $1",
                delivery.event.order.order_id,
                reason,
                gateway_reference,
                now,
            )
            if order is None:
                return []
            details = PaymentFailedDetails(reason=reason, gateway_reference=gateway_reference)
            return [events.payment_failed(delivery, order, details, owner=await _owner(connection, delivery))]

        return await outcomes.decide(self._database, delivery, decision, last=_give_back)

    async def unknown(self, delivery: Delivery) -> None:
        """Records that the gateway answered and that did not settle the charge. No outcome: a replay goes on from it.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.transaction() as connection:
            await connection.execute(
                "update orders set payment_status = $2 where order_id = $1 and status = $3",
                delivery.event.order.order_id,
                PaymentStatus.PAYMENT_STATUS_UNKNOWN,
                OrderStatus.ORDER_STATUS_PROCESSING,
            )
            await connection.execute(
                "update payments set state = 'unknown', update_time = $2 where order_id = $1 and state = 'intended'",
                delivery.event.order.order_id,
                self._now(),
            )


async def open_payment(
    connection: "Connection", order: Order, *, now: datetime.datetime, send_time: datetime.datetime | None
) -> asyncpg.Record | None:
    """Inserts an order's payment, as intended, and returns of it what `_FIND` does. None: there is one."""
    return await connection.fetchrow(
        _OPEN,
        order.order_id,
        order.create_time.ToDatetime(datetime.UTC),
        charge_key(order.order_id),
        order.total.amount_minor,
        order.total.currency_code,
        send_time,
        now,
    )


async def book_capture(connection: "Connection", order_id: str, gateway_reference: str, now: datetime.datetime) -> None:
    """Books an approved charge, once. Found closed, it is due to be given back: who closed it saw no charge."""
    await connection.execute(
        "with booked as (update payments set refund_due = refund_due or state = 'closed', state = 'captured',"
        " gateway_reference = $2, update_time = $3 where order_id = $1 returning amount_minor, currency_code)"
        " insert into payment_entries (order_id, kind, amount_minor, currency_code, gateway_reference, entry_time)"
        " select $1, 'capture', amount_minor, currency_code, $2, $3 from booked on conflict do nothing",
        order_id,
        gateway_reference,
        now,
    )


async def _owner(connection: "Connection", delivery: Delivery) -> str:
    """Returns who placed the order: the record says it, unless it is a report."""
    owner: str = delivery.event.metadata.caller or await connection.fetchval(
        "select caller from orders where order_id = $1", delivery.event.order.order_id
    )
    return owner


async def _nothing(_: "Connection") -> list[OrderEvent]:
    return []


async def _sell(connection: "Connection", paid: OrderEvent) -> None:
    await stock.sell(connection, paid.order.items)


async def _give_back(connection: "Connection", failed: OrderEvent) -> None:
    await stock.give_back(connection, failed.order.items)
