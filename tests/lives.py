"""One order's life with the real decisions on PostgreSQL and the simulated gateway, step by step and with faults.

The topics are lists in memory: each group reads `orders` at its own pace, and what a handling emits is there for both.
"""

import datetime
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from domain import lifecycle, reconciliation
from domain.events import payment_reported
from domain.failures import Failure
from domain.orders import is_lifecycle
from domain.records import Coordinates, Delivery
from messaging import envelope
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown
from messaging.topics import ORDERS
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus
from storage import order_rows
from storage.database import Database
from storage.due_orders import DueOrders
from storage.ledger import Ledger
from storage.order_commands import OrderCommands
from storage.order_decisions import OrderDecisions
from storage.payment_decisions import PaymentDecisions
from storage.refund_decisions import RefundDecisions
from storage.stock import Stock, StockLevel
from tests import engines
from tests.builders import CALLER, NOW, a_command, a_delivery, a_sku, an_id, an_item, an_order, order_created
from workers import order_processor, payment_processor
from workers.gateways.book import ChargeExecuted, Execution, RefundExecuted
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayUnavailable, Refund
from workers.gateways.simulated import SimulatedGateway
from workers.refunds import Refunds
from workers.sweep import Sweep

WINDOW = datetime.timedelta(hours=23)
PATIENCE = datetime.timedelta(minutes=15)
QUANTITY, PRICE, IN_STOCK = 3, 500, 10
TOTAL = QUANTITY * PRICE
ORDER_PROCESSOR, PAYMENT_PROCESSOR = "order-processor", "payment-processor"

CallFault = Literal["away", "lost", "late", "dies before", "dies after"]
"""What happens to a call that moves money: it never leaves; it executes and its answer is lost; it executes, but only
long after it was given up; the process dies before or after it executes."""


class Died(BaseException):
    """The process that handles a record is gone: nothing of it is caught."""


class Gateway(SimulatedGateway):
    """Fails the calls that a test names by their number, and lets a test do something before and after each charge."""

    def __init__(self, clock: Callable[[], datetime.datetime]) -> None:
        self.executed: list[Execution] = []
        self.faults: dict[int, CallFault] = {}
        self.calls = 0
        self.late: list[Callable[[], Awaitable[object]]] = []
        self.before_charge: Callable[[], Awaitable[None]] | None = None
        self.after_charge: Callable[[], Awaitable[None]] | None = None
        super().__init__(key_ttl=86400, clock=lambda: clock().timestamp(), on_execution=self.executed.append)

    async def charge(self, key: str, **asked: Any) -> Charge:
        if self.before_charge is not None:
            hook, self.before_charge = self.before_charge, None
            await hook()
        charge: Charge = await self._faulty(lambda: SimulatedGateway.charge(self, key, **asked))
        if self.after_charge is not None:
            hook, self.after_charge = self.after_charge, None
            await hook()
        return charge

    async def refund(self, key: str, **asked: Any) -> Refund:
        refund: Refund = await self._faulty(lambda: SimulatedGateway.refund(self, key, **asked))
        return refund

    async def _faulty(self, call: Callable[[], Awaitable[Any]]) -> Any:
        fault = self.faults.pop(self.calls, None)
        self.calls += 1
        match fault:
            case "away":
                raise GatewayUnavailable("told to")
            case "late":
                self.late.append(call)
                raise ChargeUnknown("told to")
            case "dies before":
                raise Died
        answer = await call()
        match fault:
            case "lost":
                raise ChargeUnknown("told to")
            case "dies after":
                raise Died
        return answer

    async def execute_late(self) -> None:
        """Executes what was given up; whoever sent it hears nothing of it."""
        late, self.late = self.late, []
        for call in late:
            try:
                await call()
            except Failure:
                continue  # refused: the key is closed, or the money was given back

    @property
    def charged(self) -> int:
        return sum(each.amount_minor for each in self.executed if isinstance(each, ChargeExecuted) and each.approved)

    @property
    def given_back(self) -> int:
        return sum(each.amount_minor for each in self.executed if isinstance(each, RefundExecuted))


class Life:
    """An order of three units at 5.00, of ten in stock."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = NOW
        self.gateway = Gateway(lambda: self.now)
        self.orders: list[OrderEvent] = []
        self.emitted: list[OrderEvent] = []
        self.positions = {ORDER_PROCESSOR: 0, PAYMENT_PROCESSOR: 0}
        self.dead: list[Delivery] = []
        self.handlings = 0
        self.dies_at: int | None = None
        self.copied_at: int | None = None
        self.sku = a_sku()
        self._decisions = OrderDecisions(database, now=self._now)
        self._commands = OrderCommands(database, now=self._now)
        self._payments = PaymentDecisions(database, now=self._now)
        self._refunds = Refunds(
            decisions=RefundDecisions(database, now=self._now),
            gateway=self.gateway,
            key_window=WINDOW,
            now=self._now,
        )

    def _now(self) -> datetime.datetime:
        return self.now

    # -- what happens ------------------------------------------------------------------------------------------------

    async def begin(self, *, payment_method: str = "pm_card_visa") -> "Life":
        """Places the order and has it accepted: its ORDER_PROCESSING stands on the topic."""
        await Stock(self.database).set_available(self.sku, IN_STOCK)
        fields = {"items": [an_item(self.sku, QUANTITY, PRICE)], "payment_method": payment_method}
        created = order_created(an_order(**fields), **fields)
        self.order_id = created.order.order_id
        [accepted] = await self._decisions.accept(a_delivery(created, group=ORDER_PROCESSOR))
        self._emit([created, accepted])
        self.orders.remove(created)
        return self

    def put(self, event: OrderEvent) -> Delivery:
        """Puts a record on the topic, and returns it as the group that it is for will see it."""
        self.orders.append(event)
        payments = (E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED, E.ORDER_EVENT_TYPE_PAYMENT_REPORTED)
        return self.delivery(PAYMENT_PROCESSOR if event.type in payments else ORDER_PROCESSOR, len(self.orders) - 1)

    def command(self, name: str, **fields: Any) -> Delivery:
        """Puts a command of the order's caller on the topic."""
        return self.put(a_command(name, self.order_id, now=self.now, **fields))

    def report(self) -> Delivery:
        """Puts a report of the gateway's on the topic, a new one each time."""
        return self.put(payment_reported(an_id(), self.order_id, source="webhook", now=self.now))

    def delivery(self, group: str, offset: int, *, attempt: int = 1) -> Delivery:
        return Delivery(self.orders[offset], group, Coordinates(ORDERS.name, 0, offset), attempt)

    async def handle(self, delivery: Delivery) -> list[OrderEvent]:
        """Handles a record as its group does; what is emitted is not put on any topic."""
        if delivery.group == ORDER_PROCESSOR:
            if delivery.event.type not in order_processor.SPEC.handles:
                return []
            emitted: Sequence[OrderEvent] = await order_processor.handle(
                delivery, decisions=self._decisions, order_commands=self._commands
            )
        else:
            if delivery.event.type not in payment_processor.SPEC.handles:
                return []
            emitted = await payment_processor.handle(
                delivery,
                decisions=self._payments,
                refunds=self._refunds,
                gateway=self.gateway,
                key_window=WINDOW,
                now=self._now,
            )
        return list(emitted)

    async def again(self, delivery: Delivery) -> None:
        """Handles a record that was left in the middle, and puts what is emitted on its topics."""
        self._emit(await self.handle(delivery))

    async def step(self, group: str) -> bool:
        """Lets a group handle its next record, with the fault that is due. False: it has none."""
        position = self.positions[group]
        if position >= len(self.orders):
            return False
        delivery = self.delivery(group, position)
        letters: list[Delivery] = []
        try:
            emitted = await self.handle(delivery)
        except Died:
            return True  # another process handles it again
        except GatewayUnavailable:
            return True  # the same, when the gateway is back
        except Failure:
            letters, emitted = [delivery], []  # its retries fail in the same way
        number = self.handlings
        self.handlings += 1
        if number == self.dies_at:
            return True  # decided and not emitted; a dead letter neither, they are of one transaction
        self.dead += letters
        if number == self.copied_at:
            self.orders.append(delivery.event)
        self.positions[group] = position + 1
        self._emit(emitted)
        return True

    async def drain(self, *groups: str) -> None:
        """Lets the groups, both if none is named, handle all there is."""
        while any([await self.step(group) for group in groups or self.positions]):
            pass

    async def replay_dead(self) -> None:
        """Replays what failed, as an operator does."""
        dead, self.dead = self.dead, []
        for delivery in dead:
            try:
                self._emit(await self.handle(delivery))
            except Failure:
                self.dead.append(delivery)

    async def sweep(self) -> int:
        """Asks for what is due. Orders of others may be due, too: what is not about this one goes nowhere."""
        life = self

        class Topic:
            async def publish_all(
                self, records: Sequence[OutgoingRecord], *, timeout: float
            ) -> list[NotHandedOver | OutcomeUnknown | None]:
                events = [envelope.decode(ORDERS.name, each.key, each.value) for each in records]
                life.orders += [event for event in events if event.order.order_id == life.order_id]
                return [None] * len(records)

        before = len(self.orders)
        sweep = Sweep(
            due=DueOrders(self.database),
            publisher=Topic(),
            interval=30.0,
            patience=PATIENCE,
            key_window=WINDOW,
            now=self._now,
            source=ORDER_PROCESSOR,
        )
        await sweep.sweep()
        return len(self.orders) - before

    def _emit(self, events: Sequence[OrderEvent]) -> None:
        self.emitted += events
        self.orders += [event for event in events if envelope.topic_of(event.type) == ORDERS]

    # -- what has become ---------------------------------------------------------------------------------------------

    async def row(self) -> Order:
        async with self.database.connection() as connection:
            order = await order_rows.find(connection, self.order_id)
        assert order is not None
        return order

    async def stands(self) -> tuple[str, str]:
        """Returns status and payment status, without their prefixes."""
        row = await self.row()
        return (
            OrderStatus.Name(row.status).removeprefix("ORDER_STATUS_"),
            PaymentStatus.Name(row.payment_status).removeprefix("PAYMENT_STATUS_"),
        )

    async def level(self) -> StockLevel:
        [level] = await Stock(self.database).levels(self.sku)
        return level

    async def entries(self) -> list[tuple[str, int]]:
        rows = await engines.fetch(
            self.database,
            "select kind, amount_minor from payment_entries where order_id = $1 order by entry_id",
            self.order_id,
        )
        return [(str(row["kind"]), int(str(row["amount_minor"]))) for row in rows]

    async def payment(self) -> dict[str, object] | None:
        rows = await engines.fetch(self.database, "select * from payments where order_id = $1", self.order_id)
        return rows[0] if rows else None

    async def refusal(self, command: Delivery) -> str | None:
        """Returns the stored answer to a command: empty if it was done, None if there is none."""
        rows = await engines.fetch(
            self.database, "select refusal from command_answers where event_id = $1", command.event.event_id
        )
        return str(rows[0]["refusal"]) if rows else None

    async def differences(self) -> tuple[reconciliation.Difference, ...]:
        """Returns what a reconciler finds once all is at rest."""
        begin, until = NOW - datetime.timedelta(days=1), self.now + datetime.timedelta(days=1)
        moved = await self.gateway.movements(begin, until)
        accounts = await Ledger(self.database).accounts([self.order_id])
        return reconciliation.compare(self.order_id, moved.movements, accounts.get(self.order_id), until=until)

    async def check(self, *, given_up: int = 0) -> None:
        """Holds the equations: money at the gateway, in the ledger and on the order; stock; revisions; one outcome.

        `given_up` is what an operator has decided to keep of an order that was called off.
        """
        row, level, entries = await self.row(), await self.level(), await self.entries()
        status, payment = await self.stands()
        captured = sum(amount for kind, amount in entries if kind == "capture")
        refunded = sum(amount for kind, amount in entries if kind == "refund")
        assert captured == self.gateway.charged <= TOTAL, (
            "the ledger has what was charged, and that is at most the total"
        )
        assert refunded == self.gateway.given_back == row.refunded.amount_minor <= captured
        kept = captured - refunded
        if status in ("PROCESSING", "PAYMENT_FAILED", "CANCELLED", "EXPIRED", "REFUNDED"):
            assert kept == given_up, f"{status}: {kept} are not given back"
        else:
            assert captured == TOTAL, f"{status} without its money"
        if status != "PROCESSING":
            assert payment == {
                (0, 0): "DECLINED" if status == "PAYMENT_FAILED" else "NONE",
                (TOTAL, 0): "CAPTURED",
                (TOTAL, TOTAL): "REFUNDED",
            }.get((captured, refunded), "PARTIALLY_REFUNDED")
        assert (status == "REFUNDED") == (0 < captured == refunded and status not in ("CANCELLED", "EXPIRED"))
        assert await self.differences() == (), "nothing for a reconciler to find"
        sold = QUANTITY if status in ("PAID", "SHIPPED", "COMPLETED", "REFUNDED") else 0
        held = QUANTITY if status == "PROCESSING" else 0
        assert level == StockLevel(self.sku, IN_STOCK - sold - held, held, sold, {})
        told = [event for event in self.emitted if is_lifecycle(event.type)]
        assert sorted(event.revision for event in told) == list(range(1, row.revision + 1)), "each revision once"
        told.sort(key=lambda event: event.revision)
        assert told[-1].order == row
        assert {event.metadata.caller for event in told} == {CALLER}, "who placed it, whoever asked"
        before = OrderStatus.ORDER_STATUS_UNSPECIFIED
        for event in told:
            partial = event.type == E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED and not event.payment_refunded.whole
            after = before if partial else lifecycle.TRANSITIONS[before, event.type]
            assert event.order.status == after
            before = after
