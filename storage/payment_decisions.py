"""What the payment processor intends and decides (semantics 15, 19 to 22, 27)."""

import dataclasses
import datetime
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import asyncpg

from domain import events
from domain.failures import Transient
from domain.orders import charge_key
from domain.records import Delivery
from domain.times import time_of
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType, OrderPaidDetails, PaymentFailedDetails
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus, PaymentStatus
from storage import forgotten, order_rows, outcomes, restores, stock
from storage.database import Database
from storage.gathering import Gathering
from storage.order_rows import Move, Moved
from storage.outcomes import Decision, Settled, StoredOutcome

if TYPE_CHECKING:
    from storage.database import Connection

_MOST: Final = 200
_HEAVIEST: Final = 4 * 1024 * 1024  # bytes: orders are read whole and events written, and a statement has but seconds

_PAID: Final = Move(OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID, PaymentStatus.PAYMENT_STATUS_CAPTURED)


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


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    """What the gateway says of the charge that a record is about. Without a reason to decline it was approved."""

    delivery: Delivery
    order_id: str
    reference: str
    decline_reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Intention:
    """A record that a charge is to be intended for. `looked_up`: see `intend`."""

    delivery: Delivery
    looked_up: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Due:
    """An order that is to be paid, as placed. `in_doubt`: more may have been sent than is booked (storage.restores)."""

    order: Order
    in_doubt: bool
    looked_up: bool

    @property
    def look_up_first(self) -> bool:
        return self.in_doubt and not self.looked_up

    def is_late(self, now: datetime.datetime) -> bool:
        return time_of(self.order.expire_time) <= now


class _NoCharge(enum.Enum):
    """Why nothing is to be charged."""

    NO_ROW = enum.auto()
    SETTLED = enum.auto()  # the order, for good, or the record


class PaymentDecisions:
    """Decisions on charges: those that arrive together share statements, first for their intents, then the answers."""

    def __init__(self, database: Database, *, now: Callable[[], datetime.datetime]) -> None:
        """Uses the database's pool."""
        self._database = database
        self._now = now
        self._intents: Gathering[_Intention, ChargeIntent | _NoCharge] = Gathering(
            self._intend_all,
            most=_MOST,
            weigh=lambda call: _size(call.delivery),
            heaviest=_HEAVIEST,
            about=lambda call: _order_id(call.delivery),
        )
        self._answers: Gathering[_Answer, list[OrderEvent] | StoredOutcome] = Gathering(
            self._book_all,
            most=_MOST,
            weigh=lambda answer: _size(answer.delivery),
            heaviest=_HEAVIEST,
            about=lambda answer: answer.order_id,
        )

    async def intend(self, delivery: Delivery, *, looked_up: bool = False) -> ChargeIntent | Settled:
        """Stores the intent to charge, with the time of the first send, and returns it; or what is decided already.

        Call it right before sending: it fails when the order was cancelled or expired meanwhile. `looked_up`: the
        gateway was asked, as the intent said, and knows of no charge. Then an order that is not paid in time is left to
        expire.

        Raises:
            Transient: the order has no row.
            DependencyDown: PostgreSQL is away.
        """
        call = _Intention(delivery, looked_up)
        # The statements are those of many orders; to each of them they are the time that it waited and they took.
        with self._database.span("query"):
            intent = await self._intents.ask(call)
        match intent:
            case _NoCharge.NO_ROW:
                return Settled(await outcomes.decide(self._database, delivery, _purged(delivery)))
            case _NoCharge.SETTLED:
                return Settled(await self.undecided(delivery))
        return intent

    async def _intend_all(self, calls: Sequence[_Intention]) -> list[ChargeIntent | _NoCharge]:
        # A first charge, the ordinary case, takes a look that locks nothing, and one statement that locks, checks again
        # and writes. Whatever is not as it looked, or was intended before, is looked at under its lock.
        async with self._database.connection() as connection:
            found = await _find_unpaid(connection, calls)
            answers: dict[str, ChargeIntent | _NoCharge] = {
                order_id: each for order_id, each in found.items() if not isinstance(each, _Due)
            }
            answers |= await self._intend_first(connection, _due(found))
        if others := [call for call in calls if _order_id(call.delivery) in found.keys() - answers.keys()]:
            async with self._database.transaction() as connection:
                found = await _find_unpaid(connection, others, lock=True)
                answers |= {order_id: each for order_id, each in found.items() if not isinstance(each, _Due)}
                answers |= await self._intend_again(connection, _due(found))
        return [answers.get(_order_id(each.delivery), _NoCharge.NO_ROW) for each in calls]

    async def _intend_first(self, connection: "Connection", due: Mapping[str, _Due]) -> dict[str, ChargeIntent]:
        """Returns the intents of orders that have none, and that are still to be paid when their rows are locked."""
        if not due:
            return {}
        now = self._now()
        rows = await connection.fetch(
            "with unpaid as (select order_id from orders where order_id = any($1::uuid[]) and status = $7"
            " order by order_id for no key update)"  # one lock order everywhere
            " insert into payments (order_id, idempotency_key, state, amount_minor, currency_code, first_send_time,"
            " update_time) select order_id, idempotency_key, 'intended', amount_minor, currency_code, send_time, $6"
            " from unpaid join unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[])"
            " as intent (order_id, idempotency_key, amount_minor, currency_code, send_time) using (order_id)"
            " order by order_id on conflict (order_id) do nothing"
            " returning order_id, idempotency_key, null::timestamptz as sent_before",
            list(due),
            [charge_key(order_id) for order_id in due],
            [each.order.total.amount_minor for each in due.values()],
            [each.order.total.currency_code for each in due.values()],
            [None if each.look_up_first else now for each in due.values()],
            now,
            OrderStatus.ORDER_STATUS_PROCESSING,
        )
        return {str(row["order_id"]): _intent(due[str(row["order_id"])], row, now) for row in rows}

    async def _intend_again(
        self, connection: "Connection", due: Mapping[str, _Due]
    ) -> dict[str, ChargeIntent | Literal[_NoCharge.SETTLED]]:
        """Returns the intents of orders that have one, whose rows are locked.

        Those of orders that are not to be charged any more are settled: they will expire.
        """
        if not due:
            return {}
        now = self._now()
        rows = await connection.fetch(
            "select order_id, idempotency_key, first_send_time as sent_before from payments"
            " where order_id = any($1::uuid[]) order by order_id for no key update",
            list(due),
        )
        intents: dict[str, ChargeIntent | Literal[_NoCharge.SETTLED]] = {}
        goes_out = []
        for row in rows:
            each = due[str(row["order_id"])]
            if each.in_doubt and row["sent_before"] is None and each.is_late(now) and not each.look_up_first:
                intents[each.order.order_id] = _NoCharge.SETTLED  # perhaps it had expired, and its customer knows
                continue
            intents[each.order.order_id] = _intent(each, row, now)
            if not each.look_up_first:
                goes_out.append(each.order.order_id)
        assert intents.keys() == due.keys(), "a payment that was in the way is gone"
        await connection.execute(
            # update_time tells the last who intended to send: only that one may take its send back.
            "update payments set first_send_time = coalesce(first_send_time, $2), update_time = $2"
            " where order_id = any($1::uuid[])",
            goes_out,
            now,
        )
        return intents

    async def open_key(self, delivery: Delivery) -> str | Settled:
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
        if row is None and not delivery.is_last:
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
        return await self._booked(_Answer(delivery, _order_id(delivery), gateway_reference))

    async def declined(self, delivery: Delivery, *, reason: str, gateway_reference: str) -> list[OrderEvent]:
        """Books a declined charge: the order is PAYMENT_FAILED, its stock given back. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        return await self._booked(_Answer(delivery, _order_id(delivery), gateway_reference, reason))

    async def _booked(self, answer: _Answer) -> list[OrderEvent]:
        with self._database.span("transaction"):
            decided = await self._answers.ask(answer)
        return outcomes.obey(decided, answer.delivery) if isinstance(decided, StoredOutcome) else decided

    async def _book_all(self, answers: Sequence[_Answer]) -> list[list[OrderEvent] | StoredOutcome]:
        by_order = {answer.order_id: answer for answer in answers}

        async def decision(connection: "Connection", deliveries: Sequence[Delivery]) -> list[list[OrderEvent]]:
            return await self._book(connection, [by_order[_order_id(delivery)] for delivery in deliveries])

        return await outcomes.decide_all(
            self._database, [answer.delivery for answer in answers], decision, last=_settle_stock
        )

    async def _book(self, connection: "Connection", answers: Sequence[_Answer]) -> list[list[OrderEvent]]:
        now = self._now()
        moves = dict[str, Move]()
        approved, declined = dict[str, str](), dict[str, tuple[str, str]]()
        for answer in answers:
            if answer.decline_reason is None:
                moves[answer.order_id] = _PAID
                approved[answer.order_id] = answer.reference
            else:
                moves[answer.order_id] = Move(
                    OrderEventType.ORDER_EVENT_TYPE_PAYMENT_FAILED,
                    PaymentStatus.PAYMENT_STATUS_DECLINED,
                    answer.decline_reason,
                )
                declined[answer.order_id] = answer.decline_reason, answer.reference
        moved = await order_rows.move_all(connection, moves, now=now)
        if approved:
            await book_captures(connection, approved, now)
        if declined:
            await _book_declines(connection, declined, now)
        return [_told(answer, moved.get(answer.order_id)) for answer in answers]

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
) -> None:
    """Inserts an order's payment, as intended, where there is none."""
    await connection.execute(
        "insert into payments (order_id, idempotency_key, state, amount_minor, currency_code, first_send_time,"
        " update_time) values ($1, $2, 'intended', $3, $4, $5, $6) on conflict (order_id) do nothing",
        order.order_id,
        charge_key(order.order_id),
        order.total.amount_minor,
        order.total.currency_code,
        send_time,
        now,
    )


async def book_captures(connection: "Connection", references: Mapping[str, str], now: datetime.datetime) -> None:
    """Books approved charges, each once, with the gateway's references by order ids. The orders' rows must be locked.

    Found closed, a charge is due to be given back: who closed it saw none.
    """
    await connection.execute(
        "with booked as (update payments set refund_due = refund_due or state = 'closed', state = 'captured',"
        " gateway_reference = reference, update_time = $3"
        " from unnest($1::uuid[], $2::text[]) as approved (approved_id, reference) where order_id = approved_id"
        " returning order_id, amount_minor, currency_code, reference)"
        " insert into payment_entries (order_id, kind, amount_minor, currency_code, gateway_reference, entry_time)"
        " select order_id, 'capture', amount_minor, currency_code, reference, $3 from booked order by order_id"
        " on conflict do nothing",
        list(references),
        list(references.values()),
        now,
    )


async def _book_declines(
    connection: "Connection", declined: Mapping[str, tuple[str, str]], now: datetime.datetime
) -> None:
    await connection.execute(
        "update payments set state = 'declined', decline_reason = reason, gateway_reference = reference,"
        " update_time = $4 from unnest($1::uuid[], $2::text[], $3::text[]) as declined (declined_id, reason, reference)"
        " where order_id = declined_id",
        list(declined),
        [reason for reason, _ in declined.values()],
        [reference for _, reference in declined.values()],
        now,
    )


def _due(found: Mapping[str, _Due | Literal[_NoCharge.SETTLED]]) -> dict[str, _Due]:
    return {order_id: each for order_id, each in found.items() if isinstance(each, _Due)}


def _intent(due: _Due, row: asyncpg.Record, now: datetime.datetime) -> ChargeIntent:
    return ChargeIntent(
        due.order.order_id,
        row["idempotency_key"],
        due.order.total,
        due.order.payment_method,
        now,
        row["sent_before"],
        due.look_up_first,
    )


async def _find_unpaid(
    connection: "Connection", calls: Sequence[_Intention], *, lock: bool = False
) -> dict[str, _Due | Literal[_NoCharge.SETTLED]]:
    """Returns records' orders by their ids, none without a row; if asked, with their rows locked.

    An order that is settled stays so. One that is due may not be any more when its row is not locked.
    """
    rows = await connection.fetch(
        "select orders.order_id, status = $4 and not exists (select from outcomes"  # noqa: S608 - constants
        " where outcomes.group_name = asked.group_name and outcomes.event_id = asked.event_id) as is_due, content,"
        f" {restores.IS_IN_DOUBT.format(created='asked.create_time')} as in_doubt"
        " from unnest($1::uuid[], $2::text[], $3::uuid[], $5::timestamptz[])"
        " as asked (order_id, group_name, event_id, create_time)"
        " join orders using (order_id)"
        f"{' order by orders.order_id for no key update of orders' if lock else ''}",  # one lock order everywhere
        [_order_id(call.delivery) for call in calls],
        [call.delivery.group for call in calls],
        [call.delivery.event.event_id for call in calls],
        OrderStatus.ORDER_STATUS_PROCESSING,
        [time_of(call.delivery.event.order.create_time) for call in calls],
    )
    looked_up = {_order_id(call.delivery): call.looked_up for call in calls}
    return {
        str(row["order_id"]): _Due(Order.FromString(row["content"]), row["in_doubt"], looked_up[str(row["order_id"])])
        if row["is_due"]
        else _NoCharge.SETTLED
        for row in rows
    }


def _told(answer: _Answer, moved: Moved | None) -> list[OrderEvent]:
    """Returns the events to emit: none of an order that was not moved."""
    if moved is None:
        return []
    order = moved.order
    # The record says who placed the order, unless it is a report.
    owner = answer.delivery.event.metadata.caller or moved.owner
    if answer.decline_reason is None:
        paid = OrderPaidDetails(gateway_reference=answer.reference, amount=order.total)
        return [events.order_paid(answer.delivery, order, paid, owner=owner)]
    failed = PaymentFailedDetails(reason=answer.decline_reason, gateway_reference=answer.reference)
    return [events.payment_failed(answer.delivery, order, failed, owner=owner)]


async def _settle_stock(connection: "Connection", decided: Sequence[OrderEvent]) -> None:
    """Moves what the orders hold. Last of all: everybody else who wants a hot SKU waits from here to the commit."""
    if decided:
        paid = OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID
        await stock.settle(
            connection,
            sold=(item for event in decided if event.type == paid for item in event.order.items),
            given_back=(item for event in decided if event.type != paid for item in event.order.items),
        )


def _purged(delivery: Delivery) -> Decision:
    async def decision(connection: "Connection") -> list[OrderEvent]:
        if not await forgotten.is_purged(connection, _order_id(delivery)):
            raise Transient("ORDER_UNKNOWN", "the order has no row")
        return []

    return decision


async def _nothing(_: "Connection") -> list[OrderEvent]:
    return []


def _order_id(delivery: Delivery) -> str:
    return delivery.event.order.order_id


def _size(delivery: Delivery) -> int:
    return delivery.event.ByteSize()
