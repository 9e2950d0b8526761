"""What the order processor decides on commands: cancel, ship, complete, expire (semantics 5, 25 and 29)."""

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING

from domain import commands, events
from domain.commands import CommandRefused
from domain.failures import Transient
from domain.lifecycle import AlreadyApplied
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus
from storage import command_answers, forgotten, order_rows, outcomes, restores, stock
from storage.database import Database
from storage.payment_decisions import open_payment

if TYPE_CHECKING:
    from storage.database import Connection


class OrderCommands:
    """Decisions on commands, each in one transaction with its answer."""

    def __init__(self, database: Database, *, now: Callable[[], datetime.datetime]) -> None:
        """Uses the database's pool."""
        self._database = database
        self._now = now

    async def decide(self, delivery: Delivery) -> list[OrderEvent]:
        """Decides a valid command and returns the events to emit.

        Raises:
            Transient: the order has no row, so far; or a charge of it is not booked that a restore has lost.
            DependencyDown: PostgreSQL is away.
        """

        async def decision(connection: "Connection") -> list[OrderEvent]:
            try:
                emitted = await self._apply(connection, delivery)
            except CommandRefused as refusal:
                await command_answers.store(connection, delivery, refusal)
                return []
            await command_answers.store(connection, delivery, None)
            return emitted

        return await outcomes.decide(self._database, delivery, decision, last=_move_stock)

    async def _apply(self, connection: "Connection", delivery: Delivery) -> list[OrderEvent]:
        """Moves the order.

        Raises:
            CommandRefused: nothing was changed.
            Transient: see `decide`.
        """
        command = delivery.event
        found = await order_rows.find_owned(connection, command.order.order_id)
        if found is None:
            # On the topic it stands behind its order's ORDER_CREATED, so that is parked, or there is none.
            if not delivery.is_last and not await forgotten.is_purged(connection, command.order.order_id):
                raise Transient("ORDER_UNKNOWN", "the order has no row")
            raise CommandRefused("ORDER_NOT_FOUND")
        order, owner = found
        if order.status == OrderStatus.ORDER_STATUS_PROCESSING and not delivery.is_last:
            await _wait_for_forgotten_charge(connection, command, order)
        applied = commands.check(command, order, owner=owner)
        if isinstance(applied, AlreadyApplied):
            return []
        now = self._now()
        if command.type == E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED:
            await _refuse_expiry(connection, order, now)
        commands.carry_out(command, order, now=now)
        return [events.carried_out(delivery, await order_rows.change(connection, order, now=now), owner=owner)]


async def _wait_for_forgotten_charge(connection: "Connection", command: OrderEvent, order: Order) -> None:
    """Lets the payment processor book first what a restore has lost: the command was given to a paid order, perhaps.

    Raises:
        Transient: `CHARGE_FORGOTTEN`: it has not, so far.
    """
    if command.type != E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED:
        doubt = await restores.doubt(connection, order)
        if doubt is not None and doubt.is_charged:
            raise Transient("CHARGE_FORGOTTEN", "the gateway has a charge of the order, which is not booked so far")


async def _refuse_expiry(connection: "Connection", order: Order, now: datetime.datetime) -> None:
    """Closes a payment under whose key nothing was ever sent.

    Raises:
        CommandRefused: `NOT_DUE`; `CHARGE_OPEN`: the customer is being charged, or may have been.
    """
    if order.expire_time.ToDatetime(datetime.UTC) > now:
        raise CommandRefused("NOT_DUE", order.status)
    doubt = await restores.doubt(connection, order)
    if doubt is not None:
        if doubt.is_charged:
            raise CommandRefused("CHARGE_OPEN", order.status)
        # Nothing was found that was charged. The payment stays open, so that a sweep closes its key at the gateway.
        await open_payment(connection, order, now=now, send_time=None)
    # The payment processor stores its intent, with the time of the send, under the order's lock, which is ours by now.
    was_sent = await connection.fetchval(
        "update payments set state = case when first_send_time is null and $2 then 'closed' else state end"
        " where order_id = $1 returning first_send_time is not null",
        order.order_id,
        doubt is None,
    )
    if was_sent:
        raise CommandRefused("CHARGE_OPEN", order.status)


async def _move_stock(connection: "Connection", event: OrderEvent) -> None:
    if event.type == E.ORDER_EVENT_TYPE_ORDER_EXPIRED:
        await stock.give_back(connection, event.order.items)
    elif event.type == E.ORDER_EVENT_TYPE_ORDER_CANCELLED:
        was_paid = event.order.payment_status != PaymentStatus.PAYMENT_STATUS_NONE
        await (stock.take_back if was_paid else stock.give_back)(connection, event.order.items)
