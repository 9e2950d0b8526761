"""What the order processor decides."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from domain import events
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType, OrderRejectedDetails
from orderflow.orders.v1.order_pb2 import LineItem, Order, PaymentStatus
from storage import forgotten, order_rows, outcomes, stock
from storage.database import Database
from storage.gathering import Gathering
from storage.order_rows import Move, Moved
from storage.outcomes import StoredOutcome

if TYPE_CHECKING:
    from storage.database import Connection

_MOST: Final = 200
_HEAVIEST: Final = 4 * 1024 * 1024  # bytes: each is written three times, and a statement has but seconds

_ACCEPTED: Final = Move(OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING, PaymentStatus.PAYMENT_STATUS_PENDING)


class OrderDecisions:
    """Decisions on new orders: those that arrive together in one transaction, so that a hot SKU's row moves once."""

    def __init__(self, database: Database, *, now: Callable[[], datetime.datetime]) -> None:
        """Uses the database's pool."""
        self._database = database
        self._now = now
        self._gathering: Gathering[Delivery, list[OrderEvent] | StoredOutcome] = Gathering(
            self._accept_all, most=_MOST, weigh=lambda delivery: delivery.event.ByteSize(), heaviest=_HEAVIEST
        )

    async def accept(self, delivery: Delivery) -> list[OrderEvent]:
        """Decides a valid ORDER_CREATED: reserves its stock, or rejects it. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        # The transaction is that of many orders; to each of them it is the time that it waited and took.
        with self._database.span("transaction"):
            answer = await self._gathering.ask(delivery)
        return outcomes.obey(answer, delivery) if isinstance(answer, StoredOutcome) else answer

    async def _accept_all(self, deliveries: Sequence[Delivery]) -> list[list[OrderEvent] | StoredOutcome]:
        return await outcomes.decide_all(self._database, deliveries, self._decide)

    async def _decide(self, connection: "Connection", deliveries: Sequence[Delivery]) -> list[list[OrderEvent]]:
        new = await _insert_rows(connection, deliveries)
        refusals = await _refusals(connection, list(new.values()))
        moved = await self._move(connection, new, refusals)
        decided: list[list[OrderEvent]] = []
        for delivery in deliveries:
            order_id = delivery.event.order.order_id
            if new.get(order_id) is not delivery:
                decided.append([])  # the row moved under another event_id
            elif order_id in refusals:
                decided.append([events.order_rejected(delivery, moved[order_id].order, refusals[order_id])])
            else:
                decided.append([events.order_processing(delivery, moved[order_id].order)])
        return decided

    async def _move(
        self, connection: "Connection", new: Mapping[str, Delivery], refusals: Mapping[str, OrderRejectedDetails]
    ) -> dict[str, Moved]:
        if not new:
            return {}
        moves = dict.fromkeys(new, _ACCEPTED) | {
            order_id: Move(
                OrderEventType.ORDER_EVENT_TYPE_ORDER_REJECTED, PaymentStatus.PAYMENT_STATUS_NONE, refusal.reason
            )
            for order_id, refusal in refusals.items()
        }
        moved = await order_rows.move_all(connection, moves, now=self._now())
        assert moved.keys() == new.keys(), "the rows were inserted in this transaction"
        return moved


async def _insert_rows(connection: "Connection", deliveries: Sequence[Delivery]) -> dict[str, Delivery]:
    """Inserts the orders that have no row yet, and had none before. Returns their deliveries, by order id."""
    first: dict[str, Delivery] = {}
    for delivery in deliveries:
        first.setdefault(delivery.event.order.order_id, delivery)
    inserted = await order_rows.insert_all(
        connection,
        [delivery.event.order for delivery in first.values()],
        callers=[delivery.event.order_created.caller for delivery in first.values()],
    )
    new = {order_id: delivery for order_id, delivery in first.items() if order_id in inserted}
    known = await forgotten.look(connection, [delivery.event.order for delivery in new.values()])
    if known.purged:
        await order_rows.delete_all(connection, known.purged)
    if known.erased:
        await order_rows.clear_all(connection, known.erased, list(new.keys() - known.purged))
    return {order_id: delivery for order_id, delivery in new.items() if order_id not in known.purged}


async def _refusals(connection: "Connection", new: Sequence[Delivery]) -> dict[str, OrderRejectedDetails]:
    """Refuses, by order id, what cannot be accepted, and holds the stock of all else."""
    refusals: dict[str, OrderRejectedDetails] = {}

    def refuse(order: Order, reason: str, skus: Sequence[str] = ()) -> None:
        refusals[order.order_id] = OrderRejectedDetails(reason=reason, skus=skus)

    claims = await _claim_requests(connection, new)
    orders: list[Order] = []
    for order, created in ((each.event.order, each.event.order_created) for each in new):
        if created.request_id and claims[created.caller, created.request_id] != order.order_id:
            refuse(order, "REQUEST_ID_REUSED")
        else:
            orders.append(order)
    if not orders:
        return refusals
    # From here to the commit everybody else who wants these SKUs waits: nothing is done here that could be done before.
    available, prices = await stock.lock(connection, {item.sku for order in orders for item in order.items})
    held: list[LineItem] = []
    for order in orders:
        if mispriced := _mispriced(order, prices):
            refuse(order, "PRICE_MISMATCH", mispriced)
        elif unknown := sorted(item.sku for item in order.items if item.sku not in available):
            refuse(order, "UNKNOWN_SKU", unknown)
        elif short := sorted(item.sku for item in order.items if item.quantity > available[item.sku]):
            refuse(order, "OUT_OF_STOCK", short)
        else:
            held += order.items
            for item in order.items:
                available[item.sku] -= item.quantity
    if held:
        await stock.hold(connection, held)
    return refusals


def _mispriced(order: Order, prices: Mapping[tuple[str, str], int]) -> list[str]:
    """Returns the SKUs that have a price in the order's currency, and another one than the order says."""
    said = ((item.sku, item.unit_price.currency_code, item.unit_price.amount_minor) for item in order.items)
    return sorted(sku for sku, currency, amount in said if prices.get((sku, currency), amount) != amount)


async def _claim_requests(connection: "Connection", new: Sequence[Delivery]) -> dict[tuple[str, str], str]:
    """Claims (caller, request_id) for orders: the first payload gets it (semantics 9). Returns whose each is."""
    first: dict[tuple[str, str], Delivery] = {}
    for delivery in new:
        created = delivery.event.order_created
        if created.request_id:
            first.setdefault((created.caller, created.request_id), delivery)
    if not first:
        return {}
    rows = await connection.fetch(
        "insert into order_requests (caller, request_id, order_id, fingerprint)"
        " select caller, request_id, order_id, fingerprint from unnest($1::text[], $2::text[], $3::uuid[], $4::bytea[])"
        " as claim (caller, request_id, order_id, fingerprint)"
        " order by caller, request_id"  # one lock order everywhere
        # Changes nothing of an earlier claim, but returns it, whenever another transaction has committed it.
        " on conflict (caller, request_id) do update set order_id = order_requests.order_id"
        " returning caller, request_id, order_id",
        [caller for caller, _ in first],
        [request_id for _, request_id in first],
        [delivery.event.order.order_id for delivery in first.values()],
        [delivery.event.order_created.request_fingerprint for delivery in first.values()],
    )
    return {(row["caller"], row["request_id"]): str(row["order_id"]) for row in rows}
