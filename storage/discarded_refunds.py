"""What the discard of a dead letter does to refunds: some must not be given up, some may (semantics 17)."""

import dataclasses
from typing import TYPE_CHECKING

from domain import commands, lifecycle
from domain.commands import CommandRefused
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Order
from storage import command_answers, order_rows, outcomes

if TYPE_CHECKING:
    import asyncpg

    from storage.database import Connection


class DiscardRefused(Exception):
    """The dead letter must not be discarded. `reason` is `OUTCOME_STORED`, `CHARGE_OPEN` or `REFUND_OPEN`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def give_up(connection: "Connection", order_id: str, record: Delivery | None) -> set[str]:
    """Gives up the refunds that a record of the payment processor asked for or went on with; None: it is no event.

    Only those under whose keys nothing is out, because the gateway refused them. They count against what was captured
    as before, so that no sweep asks for them again: the money is kept, and the order's payment status says so. Of an
    order that was not called off they count no more, and may be asked for again.

    Returns the event_ids of the other records that are settled by it.

    Raises:
        DiscardRefused: a charge or a refund of the order may have been made, or money is still to be given back.
    """
    order = await order_rows.find(connection, order_id, lock=True)  # who intends to send a refund does, too
    if order is None:
        return set()
    if await connection.fetchval(
        "select true from payments where order_id = $1 and state in ('intended', 'unknown')", order_id
    ):
        raise DiscardRefused("CHARGE_OPEN")
    rows = await connection.fetch(
        "select event_id, taken_up_by, first_send_time, request_fingerprint from refunds"
        " where order_id = $1 and state = 'intended'",
        order_id,
    )
    if any(
        row["first_send_time"] is not None or record is None or record.event.event_id not in _records(row)
        for row in rows
    ):
        raise DiscardRefused("REFUND_OPEN")
    if order.status in lifecycle.CALLED_OFF and await _has_more_to_give_back(connection, order_id):
        raise DiscardRefused("REFUND_OPEN")
    settled: set[str] = set()
    for row in rows:
        assert record is not None
        await connection.execute(
            "update refunds set state = $2, update_time = now() where event_id = $1",
            row["event_id"],
            "abandoned" if order.status in lifecycle.CALLED_OFF else "refused",
        )
        for event_id in _records(row):
            await _settle(connection, _delivery(record, event_id, row), order)
        settled |= _records(row) - {record.event.event_id}
    return settled


def _records(row: "asyncpg.Record") -> set[str]:
    """Returns the event_ids of who asked for a refund, and of who goes on with it."""
    return {str(each) for each in (row["event_id"], row["taken_up_by"]) if each is not None}


async def _has_more_to_give_back(connection: "Connection", order_id: str) -> bool:
    more: bool | None = await connection.fetchval(
        "select amount_minor > coalesce((select sum(refunds.amount_minor) from refunds"
        " where refunds.order_id = payments.order_id and refunds.state <> 'refused'), 0)"
        " from payments where order_id = $1 and state = 'captured'",
        order_id,
    )
    return bool(more)


def _delivery(record: Delivery, event_id: str, row: "asyncpg.Record") -> Delivery:
    """Returns the discarded record, or another of the same refund as if it stood there."""
    if event_id == record.event.event_id:
        return record
    event = OrderEvent(event_id=event_id, type=OrderEventType.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED)
    if event_id == str(row["event_id"]):
        if row["request_fingerprint"] is None:
            event.type = OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCELLED
        else:
            event.command.request_fingerprint = row["request_fingerprint"]
    return dataclasses.replace(record, event=event)


async def _settle(connection: "Connection", record: Delivery, order: Order) -> None:
    """Stores that nothing comes of a record, unless it is decided, and tells who asked."""
    if not await connection.fetchval(
        "select true from outcomes where group_name = $1 and event_id = $2", record.group, record.event.event_id
    ):
        await outcomes.store(connection, record, [])
        if record.event.type in commands.LEADS_TO:
            await command_answers.store(connection, record, CommandRefused("REFUND_REFUSED", order.status))
