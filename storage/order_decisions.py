"""What the order processor decides."""

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING

from domain import events
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderCreatedDetails, OrderEvent, OrderEventType, OrderRejectedDetails
from orderflow.orders.v1.order_pb2 import Order, PaymentStatus
from storage import order_rows, outcomes, stock
from storage.database import Database

if TYPE_CHECKING:
    from storage.database import Connection


class OrderDecisions:
    """Decisions on new orders."""

    def __init__(self, database: Database, *, now: Callable[[], datetime.datetime]) -> None:
        """Uses the database's pool."""
        self._database = database
        self._now = now

    async def accept(self, delivery: Delivery) -> list[OrderEvent]:
        """Decides a valid ORDER_CREATED: reserves its stock, or rejects it. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """

        async def decision(connection: "Connection") -> list[OrderEvent]:
            order, created = delivery.event.order, delivery.event.order_created
            if not await order_rows.insert(connection, order, caller=created.caller):
                return []  # the row moved under another event_id
            refusal = await _refusal(connection, order, created)
            moved = await order_rows.move(
                connection,
                order.order_id,
                OrderEventType.ORDER_EVENT_TYPE_ORDER_REJECTED
                if refusal
                else OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING,
                payment_status=PaymentStatus.PAYMENT_STATUS_NONE if refusal else PaymentStatus.PAYMENT_STATUS_PENDING,
                failure_reason=refusal.reason if refusal else "",
                now=self._now(),
            )
            assert moved is not None, "the row was inserted in this transaction"
            return [
                events.order_rejected(delivery, moved, refusal) if refusal else events.order_processing(delivery, moved)
            ]

        while True:
            try:
                return await outcomes.decide(self._database, delivery, decision, last=_hold)
            except stock.ShortageError:
                # Others were quicker since it was looked at: the next look refuses, unless there is enough again.
                continue


async def _hold(connection: "Connection", decided: OrderEvent) -> None:
    if decided.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING:
        await stock.hold(connection, decided.order.items)


async def _refusal(connection: "Connection", order: Order, created: OrderCreatedDetails) -> OrderRejectedDetails | None:
    if created.request_id and not await _claim_request(connection, order, created):
        return OrderRejectedDetails(reason="REQUEST_ID_REUSED")
    if skus := await stock.mispriced(connection, order.items):
        return OrderRejectedDetails(reason="PRICE_MISMATCH", skus=skus)
    unknown, short = await stock.shortage(connection, order.items)
    if unknown:
        return OrderRejectedDetails(reason="UNKNOWN_SKU", skus=unknown)
    if short:
        return OrderRejectedDetails(reason="OUT_OF_STOCK", skus=short)
    return None


async def _claim_request(connection: "Connection", order: Order, created: OrderCreatedDetails) -> bool:
    """Claims (caller, request_id) for the order: the first payload gets it (semantics 9)."""
    claimed_by = await connection.fetchval(
        "with claim as (insert into order_requests (caller, request_id, order_id, fingerprint)"
        " values ($1, $2, $3, $4) on conflict do nothing returning order_id)"
        " select order_id from claim"
        " union all select order_id from order_requests where caller = $1 and request_id = $2 limit 1",
        created.caller,
        created.request_id,
        order.order_id,
        created.request_fingerprint,
    )
    # None: another transaction committed its claim after this statement began, so it was the first.
    return claimed_by is not None and str(claimed_by) == order.order_id
