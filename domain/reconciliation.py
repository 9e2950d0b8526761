"""Compares the sides that know of an order's money: the payment gateway, the payments booked, the order itself."""

import dataclasses
import datetime
import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

from domain import lifecycle
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus


class Kind(enum.StrEnum):
    """What is wrong. docs/operations.md says of each what to do."""

    CHARGE_WITHOUT_ORDER = "CHARGE_WITHOUT_ORDER"
    CHARGE_NOT_BOOKED = "CHARGE_NOT_BOOKED"
    CHARGED_TWICE = "CHARGED_TWICE"
    CAPTURE_NOT_AT_GATEWAY = "CAPTURE_NOT_AT_GATEWAY"
    CAPTURE_AMOUNT_DIFFERS = "CAPTURE_AMOUNT_DIFFERS"
    REFUND_NOT_BOOKED = "REFUND_NOT_BOOKED"
    REFUND_NOT_AT_GATEWAY = "REFUND_NOT_AT_GATEWAY"
    REFUND_AMOUNT_DIFFERS = "REFUND_AMOUNT_DIFFERS"
    REFUND_OVERDUE = "REFUND_OVERDUE"
    PAID_WITHOUT_CAPTURE = "PAID_WITHOUT_CAPTURE"
    CAPTURE_NOT_IN_ORDER = "CAPTURE_NOT_IN_ORDER"
    ORDER_TOTAL_DIFFERS = "ORDER_TOTAL_DIFFERS"
    ORDER_REFUNDS_DIFFER = "ORDER_REFUNDS_DIFFER"


@dataclasses.dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved at the gateway: an approved charge, or a refund.

    Attributes:
        kind: which of the two.
        time: when the money moved, aware; not when something was prepared that moved it later.
        reference: the gateway's own id of it, the one that `charge` or `refund` answered.
        charge_reference: the charge that a refund was taken from; of a charge its own reference.
        order_id: what the gateway was told that the charge is for. Empty if it was told nothing.
        amount_minor: in minor units.
        currency_code: ISO 4217.
    """

    kind: Literal["charge", "refund"]
    time: datetime.datetime
    reference: str
    charge_reference: str
    order_id: str
    amount_minor: int
    currency_code: str

    @property
    def subject(self) -> str:
        """The order id; where there is none, the charge."""
        return self.order_id or self.charge_reference


@dataclasses.dataclass(frozen=True, slots=True)
class FoundCharge:
    """A charge that the gateway has, for who may have forgotten it.

    Attributes:
        idempotency_key: the key that it ran under.
        has_money: it was approved, or may still be.
        gateway_intent: what the gateway has made under the key, where it charges in two steps.
    """

    idempotency_key: str
    has_money: bool
    gateway_intent: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A capture or a refund as it is booked; `time` is when, by the clock of the process that booked it."""

    kind: Literal["capture", "refund"]
    time: datetime.datetime
    reference: str
    amount_minor: int
    currency_code: str


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """What is booked of an order, and the order, as of one moment.

    Attributes:
        charge_key: the key that its charge runs under; empty if a charge was never intended.
        refund_keys: the keys of its refunds, but for those that the gateway refused.
        entries: in the order of their booking.
        given_up: what an operator has decided not to give back, in minor units.
        order: None if the order has no row (any more).
    """

    charge_key: str = ""
    refund_keys: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    given_up: int = 0
    order: Order | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the sides do not agree on.

    Attributes:
        order_id: of the order; of a charge that is for no order, the charge's reference.
        reference: the gateway's id of the charge or refund that it is about; empty where it is about the order.
        gateway, booked, order: the amount by each side, as `EUR:1999`; empty where that side says nothing.
    """

    kind: Kind
    order_id: str
    reference: str = ""
    gateway: str = ""
    booked: str = ""
    order: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """An order with all that the gateway is known to have moved for it, and the differences found."""

    order_id: str
    movements: tuple[Movement, ...]
    differences: tuple[Difference, ...]


_SAY_CAPTURED: Final = frozenset(
    {
        PaymentStatus.PAYMENT_STATUS_CAPTURED,
        PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED,
        PaymentStatus.PAYMENT_STATUS_REFUNDED,
    }
)
_SAY_PAID: Final = frozenset(
    {
        OrderStatus.ORDER_STATUS_PAID,
        OrderStatus.ORDER_STATUS_SHIPPED,
        OrderStatus.ORDER_STATUS_COMPLETED,
        OrderStatus.ORDER_STATUS_REFUNDED,
    }
)
_CALLED_OFF: Final = frozenset({OrderStatus.ORDER_STATUS_CANCELLED, OrderStatus.ORDER_STATUS_EXPIRED})
_TELL_OF_REFUNDS: Final = frozenset(
    {
        *lifecycle.sources_of(OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED),
        OrderStatus.ORDER_STATUS_REFUNDED,
    }
)


def merged(known: Iterable[Movement], listed: Iterable[Movement]) -> tuple[Movement, ...]:
    """Returns the movements of two listings that may overlap. What one of them has twice happened twice."""
    return tuple(sorted((Counter(known) | Counter(listed)).elements(), key=_by_time))


def missing_at_gateway(movements: Sequence[Movement], account: Account, *, until: datetime.datetime) -> list[Entry]:
    """Returns what was booked before `until` and is not among the movements: to be looked up before it is judged."""
    known = {(movement.kind, movement.reference) for movement in movements}
    return [
        entry
        for entry in account.entries
        if entry.time < until and ("charge" if entry.kind == "capture" else "refund", entry.reference) not in known
    ]


def compare(
    order_id: str, movements: Sequence[Movement], account: Account | None, *, until: datetime.datetime
) -> tuple[Difference, ...]:
    """Returns what the sides of one order do not agree on.

    The account must be read after the movements. What was booked at `until` or later is not missed at the gateway, and
    an order that has changed since is not overdue. `account` is None if nothing is known of the order here.
    """
    found = account or Account()
    charges = [movement for movement in movements if movement.kind == "charge"]
    refunds = [movement for movement in movements if movement.kind == "refund"]
    captured, unbooked_charges = _matched([each for each in found.entries if each.kind == "capture"], charges)
    refunded, unbooked_refunds = _matched([each for each in found.entries if each.kind == "refund"], refunds)
    return (
        *_unbooked(order_id, unbooked_charges, unbooked_refunds, known=account is not None, charged=bool(captured)),
        *_booked(order_id, captured, Kind.CAPTURE_NOT_AT_GATEWAY, Kind.CAPTURE_AMOUNT_DIFFERS, until),
        *_booked(order_id, refunded, Kind.REFUND_NOT_AT_GATEWAY, Kind.REFUND_AMOUNT_DIFFERS, until),
        *_order(found, until),
    )


def _by_time(movement: Movement) -> tuple[datetime.datetime, str]:
    return movement.time, movement.reference


def _matched(
    entries: Sequence[Entry], movements: Sequence[Movement]
) -> tuple[list[tuple[Entry, Movement | None]], list[Movement]]:
    """Returns each entry with its movement, and the movements that are left, oldest first."""
    left = sorted(movements, key=_by_time)
    pairs: list[tuple[Entry, Movement | None]] = []
    for entry in entries:
        movement = next((each for each in left if each.reference == entry.reference), None)
        if movement is not None:
            left.remove(movement)
        pairs.append((entry, movement))
    return pairs, left


def _unbooked(
    order_id: str, charges: Sequence[Movement], refunds: Sequence[Movement], *, known: bool, charged: bool
) -> Iterator[Difference]:
    """What the gateway did and nobody booked. A charge that it gave back, unbooked too, is nobody's loss."""
    given_back: Counter[str] = Counter()
    strays = {charge.reference for charge in charges}
    for refund in refunds:
        if refund.charge_reference in strays:
            given_back[refund.charge_reference] += refund.amount_minor
        else:
            yield Difference(Kind.REFUND_NOT_BOOKED, order_id, refund.reference, gateway=_amount(refund))
    for charge in charges:
        back = min(given_back[charge.reference], charge.amount_minor)
        given_back[charge.reference] -= back
        kept = charge.amount_minor - back
        if not kept:
            continue
        kind = Kind.CHARGED_TWICE if charged else Kind.CHARGE_NOT_BOOKED if known else Kind.CHARGE_WITHOUT_ORDER
        charged = known
        yield Difference(kind, order_id, charge.reference, gateway=_text(charge.currency_code, kept))


def _booked(
    order_id: str,
    pairs: Sequence[tuple[Entry, Movement | None]],
    missing: Kind,
    differs: Kind,
    until: datetime.datetime,
) -> Iterator[Difference]:
    """What was booked and the gateway does not say, or says otherwise."""
    for entry, movement in pairs:
        if movement is None:
            if entry.time < until:
                yield Difference(missing, order_id, entry.reference, booked=_amount(entry))
        elif _amount(movement) != _amount(entry):
            yield Difference(differs, order_id, entry.reference, gateway=_amount(movement), booked=_amount(entry))


def _order(account: Account, until: datetime.datetime) -> Iterator[Difference]:
    """What the order says and was not booked, or the other way round."""
    order = account.order
    if order is None:
        return
    captures = [entry for entry in account.entries if entry.kind == "capture"]
    currency, total = order.total.currency_code, order.total.amount_minor
    if not captures:
        if order.status in _SAY_PAID or order.payment_status in _SAY_CAPTURED:
            yield Difference(Kind.PAID_WITHOUT_CAPTURE, order.order_id, order=_text(currency, total))
        return
    refunded = sum(entry.amount_minor for entry in account.entries if entry.kind == "refund")
    kept = sum(entry.amount_minor for entry in captures) - refunded
    first = captures[0]
    if _amount(first) != _text(currency, total):
        yield Difference(
            Kind.ORDER_TOTAL_DIFFERS,
            order.order_id,
            first.reference,
            booked=_amount(first),
            order=_text(currency, total),
        )
    if len(captures) > 1 and kept > first.amount_minor:
        second = captures[1]
        yield Difference(Kind.CHARGED_TWICE, order.order_id, second.reference, booked=_amount(second))
    if kept > 0 and order.status in _CALLED_OFF:
        overdue = kept - account.given_up
        if overdue > 0 and _is_quiet(account, order, until):
            yield Difference(Kind.REFUND_OVERDUE, order.order_id, first.reference, booked=_text(currency, overdue))
    elif kept > 0 and order.payment_status not in _SAY_CAPTURED:
        yield Difference(Kind.CAPTURE_NOT_IN_ORDER, order.order_id, first.reference, booked=_text(currency, kept))
    if order.status in _TELL_OF_REFUNDS and not _tells_of(refunded, order):
        yield Difference(
            Kind.ORDER_REFUNDS_DIFFER,
            order.order_id,
            booked=_text(currency, refunded),
            order=_text(currency, order.refunded.amount_minor),
        )


def _is_quiet(account: Account, order: Order, until: datetime.datetime) -> bool:
    """Whether nothing has happened since, so that nothing is on its way any more."""
    changed = order.update_time.ToDatetime(datetime.UTC)
    return changed < until and all(entry.time < until for entry in account.entries)


def _tells_of(refunded: int, order: Order) -> bool:
    if order.refunded.amount_minor != refunded:
        return False
    if order.payment_status not in _SAY_CAPTURED:
        return refunded == 0
    if refunded == 0:
        return order.payment_status == PaymentStatus.PAYMENT_STATUS_CAPTURED
    whole = refunded >= order.total.amount_minor
    return order.payment_status == (
        PaymentStatus.PAYMENT_STATUS_REFUNDED if whole else PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED
    )


def _amount(moved: Movement | Entry) -> str:
    return _text(moved.currency_code, moved.amount_minor)


def _text(currency_code: str, amount_minor: int) -> str:
    return f"{currency_code}:{amount_minor}"
