"""Orders that should have moved on by now, and why they have not."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from console.api import Api
from console.words import enum_name
from console.workers import Worker
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterEntry, DeadLetterFilter
from orderflow.orders.v1.order_pb2 import OrderStatus, PaymentStatus

if TYPE_CHECKING:
    from orderflow.orders.v1.order_pb2 import Order

_MOST: Final = 1_000
_REFUND_DAYS: Final = 1
_WAITING: Final = (OrderStatus.ORDER_STATUS_CREATED, OrderStatus.ORDER_STATUS_PROCESSING)
_OWED: Final = (
    PaymentStatus.PAYMENT_STATUS_CAPTURED,
    PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED,
    PaymentStatus.PAYMENT_STATUS_PENDING,
    PaymentStatus.PAYMENT_STATUS_UNKNOWN,
)
DECIDED_BY: Final = {
    OrderStatus.ORDER_STATUS_CREATED: "order-processor",
    OrderStatus.ORDER_STATUS_PROCESSING: "payment-processor",
    OrderStatus.ORDER_STATUS_CANCELLED: "payment-processor",
    OrderStatus.ORDER_STATUS_EXPIRED: "payment-processor",
}


@dataclasses.dataclass(frozen=True)
class Why:
    """Why an order stands where it does.

    Attributes:
        because: The reason, a sentence without its dot.
        then: What happens next, the same.
        dead_letter_id: The dead letter that it waits for, if it does.
    """

    because: str
    then: str
    dead_letter_id: str = ""

    @property
    def needs_operator(self) -> bool:
        """Whether nothing happens by itself."""
        return bool(self.dead_letter_id)


@dataclasses.dataclass(frozen=True)
class StuckOrder:
    """An order that should have moved on, and for how long it has not."""

    order: "Order"
    age: datetime.timedelta
    why: Why


@dataclasses.dataclass(frozen=True)
class StuckOrders:
    """What was found: those that need an operator first, then the oldest.

    Attributes:
        is_complete: Whether all were looked at. There may be more than a thousand.
    """

    orders: Sequence[StuckOrder]
    is_complete: bool


@dataclasses.dataclass(frozen=True)
class Found:
    """Orders that should have moved on, and the newest unresolved dead letter by order and by group."""

    orders: Sequence["Order"]
    letters: Mapping[tuple[str, str], DeadLetterEntry]
    is_complete: bool

    def explained(self, workers: Sequence[Worker], now: datetime.datetime) -> StuckOrders:
        """Returns them with the reason of each, by what holds the workers up now."""
        orders = [
            StuckOrder(each, _age(each, now), why(each, self._letter_of(each), workers, now)) for each in self.orders
        ]
        orders.sort(key=lambda each: (not each.why.needs_operator, -each.age))
        return StuckOrders(orders, self.is_complete)

    def _letter_of(self, order: "Order") -> DeadLetterEntry | None:
        """Returns the dead letter that holds an order up: a message that failed does not."""
        return self.letters.get((order.order_id, DECIDED_BY[order.status]))


async def find(api: Api, *, overdue: datetime.timedelta, now: datetime.datetime) -> Found:
    """Looks for orders that wait for longer than `overdue`, and for called-off ones of a day whose money is not back.

    Raises:
        ApiError: it cannot look.
    """
    waiting = await api.orders(statuses=_WAITING, created_before=now - overdue, size=_MOST)
    called_off = await api.orders(
        statuses=[OrderStatus.ORDER_STATUS_CANCELLED, OrderStatus.ORDER_STATUS_EXPIRED],
        created_from=now - datetime.timedelta(days=_REFUND_DAYS),
        created_before=now - overdue,
        size=_MOST,
    )
    orders = [order for order in waiting.orders if _age(order, now) >= overdue]
    orders += [o for o in called_off.orders if o.payment_status in _OWED and _age(o, now) >= overdue]
    letters = await _letters(api) if orders else {}
    return Found(orders, letters, not waiting.next_token and not called_off.next_token)


async def _letters(api: Api) -> Mapping[tuple[str, str], DeadLetterEntry]:
    """Returns the newest unresolved dead letter of each order and group."""
    page = await api.dead_letters(DeadLetterFilter(), size=_MOST)
    return {(order_id(entry), entry.dead_letter.group): entry for entry in reversed(page.dead_letters)}


def _age(order: "Order", now: datetime.datetime) -> datetime.timedelta:
    return now - order.update_time.ToDatetime(datetime.UTC)


def order_id(entry: DeadLetterEntry) -> str:
    """Returns the order that a dead letter is about, empty if that cannot be read."""
    if entry.HasField("event"):
        return entry.event.order.order_id
    return entry.dead_letter.key.decode("ascii", "replace")


def why(order: "Order", letter: DeadLetterEntry | None, workers: Sequence[Worker], now: datetime.datetime) -> Why:
    """Returns why an order that waits does: what a worker gave up on, then what holds the worker up."""
    if letter is not None:
        return _given_up(order, letter)
    worker_name = DECIDED_BY[order.status]
    worker = next((each for each in workers if each.name == worker_name), None)
    if worker is None or (not worker.up and not worker.is_down):
        return Why(f"Unknown: the console has no metrics of {worker_name}", "Look at that process yourself")
    held_up = _held_up(worker)
    if held_up is not None:
        return held_up
    if order.status in _WAITING and order.expire_time.ToDatetime(datetime.UTC) < now:
        return Why("Its time to pay is over", "The next sweep of the order processor asks for its expiry")
    if order.status not in _WAITING:
        return Why("Its money is not given back yet", "The payment processor refunds it; a sweep asks again")
    return Why(
        f"No cause shows: {worker_name} runs, takes records and wrote no dead letter",
        "Its record may wait on a retry topic: it is tried again within minutes, then becomes a dead letter",
    )


def _given_up(order: "Order", letter: DeadLetterEntry) -> Why:
    given_up = letter.dead_letter
    cause = f"{given_up.group} gave up on it: {given_up.error_class}"
    if enum_name(order, "payment_status") == "UNKNOWN":
        cause = "The gateway cannot tell whether it charged"
    return Why(cause, "Waits for you: replay it once the cause is gone", letter.dead_letter_id)


def _held_up(worker: Worker) -> Why | None:
    if worker.is_down:
        return Why(f"No {worker.name} answers", "It goes on by itself once one runs")
    if worker.open_breakers:
        names = ", ".join(f"“{name}” is {worker.breakers[name]}" for name in worker.open_breakers)
        return Why(f"The circuit breaker {names}", "It goes on by itself once a probe succeeds; no attempt is used up")
    if worker.held_up_by:
        what = worker.held_up_by.replace("_", " ")
        return Why(f"Partitions of {worker.name} are paused: {what}", "It goes on by itself once that is over")
    if worker.lag:
        return Why(f"{worker.name} is {worker.lag:,} records behind", "Its turn comes")
    return None
