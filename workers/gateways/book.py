"""What a simulated gateway decides and remembers: keys, charges, refunds. No I/O and no waiting.

Every change is an `Execution`, applied by `Book.apply` whether it happens now or is read back from a journal.
"""

import bisect
import datetime
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from domain.reconciliation import Movement
from workers.gateways.gateway import Charge, GatewayRefused, KeyClosed, MovementPage, Refund

DAY_SECONDS = 24 * 60 * 60.0
_DECLINED = "pm_card_chargeDeclined"
_UNAUTHENTICATED = "pm_card_authenticationRequired"
_DECLINE_REASONS = {"InsufficientFunds": "INSUFFICIENT_FUNDS", "ExpiredCard": "EXPIRED_CARD"}
_BENCHMARK_DECLINES_ONE_IN = 50
_MOVEMENTS_ON_A_PAGE = 100


@dataclass(frozen=True, slots=True)
class ChargeExecuted:
    """A charge was approved or declined."""

    time: float
    key: str
    reference: str
    order_id: str
    amount_minor: int
    currency_code: str
    payment_method: str
    approved: bool
    decline_reason: str

    @property
    def parameters(self) -> tuple[str | int, ...]:
        """What a repeat under the key must ask for."""
        return ("charge", self.order_id, self.amount_minor, self.currency_code, self.payment_method)


@dataclass(frozen=True, slots=True)
class RefundExecuted:
    """Money was given back."""

    time: float
    key: str
    reference: str
    charge_reference: str
    amount_minor: int
    currency_code: str

    @property
    def parameters(self) -> tuple[str | int, ...]:
        """What a repeat under the key must ask for."""
        return ("refund", self.charge_reference, self.amount_minor)


@dataclass(frozen=True, slots=True)
class KeyWasClosed:
    """A key was closed."""

    time: float
    key: str


Execution = ChargeExecuted | RefundExecuted | KeyWasClosed


class Book:
    """A gateway's memory and rules.

    Args:
        key_ttl: seconds for which a key replays its first answer; afterwards it charges anew (closed keys never do).
        clock: seconds since the epoch.
        benchmark_declines: decline every order whose crc32 is a multiple of 50, whatever its payment method.
        on_execution: told of each execution, once, when it has been applied.
    """

    def __init__(
        self,
        *,
        key_ttl: float = DAY_SECONDS,
        clock: Callable[[], float] = time.time,
        benchmark_declines: bool = False,
        on_execution: Callable[[Execution], None] | None = None,
    ) -> None:
        self._key_ttl = key_ttl
        self._clock = clock
        self._benchmark_declines = benchmark_declines
        self._on_execution = on_execution
        self._answers: dict[str, ChargeExecuted | RefundExecuted] = {}
        self._charges: dict[str, ChargeExecuted] = {}
        self._by_reference: dict[str, ChargeExecuted] = {}
        self._refunded: dict[str, int] = {}
        self._closed: set[str] = set()
        self._moved: list[ChargeExecuted | RefundExecuted] = []  # by time and reference

    def charge(
        self,
        key: str,
        *,
        order_id: str,
        amount_minor: int,
        currency_code: str,
        payment_method: str,
        declined: bool = False,
    ) -> Charge:
        """Approve or decline, or answer again. Raises GatewayRefused, KeyClosed.

        `declined` has a charge that executes now declined, whatever its payment method.
        """
        _require(bool(key) and amount_minor > 0, "GATEWAY_INVALID_REQUEST", "a charge has a key and a positive amount")
        reason = self._decline_reason(order_id, payment_method) or ("CARD_DECLINED" if declined else "")
        fresh = ChargeExecuted(
            time=self._clock(),
            key=key,
            reference=f"ch_{uuid.uuid4().hex}",
            order_id=order_id,
            amount_minor=amount_minor,
            currency_code=currency_code,
            payment_method=payment_method,
            approved=not reason,
            decline_reason=reason,
        )
        answer = self._answer(fresh)
        if isinstance(answer, ChargeExecuted):
            return _charge(answer)
        if key in self._closed:
            raise KeyClosed("the key was closed before the charge")
        self._execute(fresh)
        return _charge(fresh)

    def find(self, key: str) -> Charge | None:
        """The charge under the key; past the window, too."""
        executed = self._charges.get(key)
        return None if executed is None else _charge(executed)

    def knows(self, key: str) -> bool:
        """Whether a charge or a refund has executed under the key."""
        return key in self._answers

    def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        """Give back, or answer again. Raises GatewayRefused."""
        _require(bool(key) and amount_minor > 0, "GATEWAY_INVALID_REQUEST", "a refund has a key and a positive amount")
        charge = self._by_reference.get(charge_reference)
        if charge is None or not charge.approved:
            raise GatewayRefused("GATEWAY_CHARGE_NOT_FOUND", "no approved charge has this reference")
        fresh = RefundExecuted(
            time=self._clock(),
            key=key,
            reference=f"re_{uuid.uuid4().hex}",
            charge_reference=charge_reference,
            amount_minor=amount_minor,
            currency_code=charge.currency_code,
        )
        answer = self._answer(fresh)
        if isinstance(answer, RefundExecuted):
            return _refund(answer)
        left = charge.amount_minor - self._refunded.get(charge_reference, 0)
        _require(amount_minor <= left, "GATEWAY_REFUND_TOO_LARGE", "more than is left of the charge")
        self._execute(fresh)
        return _refund(fresh)

    def find_refund(self, key: str) -> Refund | None:
        """The refund under the key; past the window, too."""
        executed = self._answers.get(key)
        return _refund(executed) if isinstance(executed, RefundExecuted) else None

    def close(self, key: str) -> Charge | None:
        """Close the key for good. Only the first close is an execution."""
        _require(bool(key), "GATEWAY_INVALID_REQUEST", "a close has a key")
        if key not in self._closed:
            self._execute(KeyWasClosed(time=self._clock(), key=key))
        return self.find(key)

    def movements(self, since: float, until: float, cursor: str = "") -> MovementPage:
        """A page of the money that moved, oldest first; times are seconds since the epoch. Raises GatewayRefused."""
        begin = bisect.bisect_left(self._moved, since, key=lambda each: each.time)
        if cursor:
            at, _, reference = cursor.partition("|")
            try:
                last = (float(at), reference)
            except ValueError:
                raise GatewayRefused("GATEWAY_INVALID_REQUEST", "the cursor is none of this gateway's") from None
            begin = max(begin, bisect.bisect_right(self._moved, last, key=_position))
        end = bisect.bisect_left(self._moved, until, key=lambda each: each.time)
        page = self._moved[begin : min(end, begin + _MOVEMENTS_ON_A_PAGE)]
        is_last = begin + len(page) >= end
        next_cursor = "" if is_last else f"{page[-1].time!r}|{page[-1].reference}"
        return MovementPage(tuple(map(self._movement, page)), next_cursor)

    def is_closed(self, key: str) -> bool:
        """Whether the key was closed."""
        return key in self._closed

    def refunds_of(self, charge_reference: str) -> list[Refund]:
        """The charge's refunds, in the order in which they executed."""
        made = (each for each in self._answers.values() if isinstance(each, RefundExecuted))
        return [_refund(each) for each in made if each.charge_reference == charge_reference]

    def apply(self, execution: Execution) -> None:
        """Take in what was executed, now or, read from a journal, earlier."""
        match execution:
            case KeyWasClosed():
                self._closed.add(execution.key)
            case ChargeExecuted():
                self._answers[execution.key] = execution
                self._by_reference[execution.reference] = execution
                known = self._charges.get(execution.key)
                if known is None or not known.approved:
                    self._charges[execution.key] = execution
                if execution.approved:
                    bisect.insort(self._moved, execution, key=_position)
            case RefundExecuted():
                self._answers[execution.key] = execution
                so_far = self._refunded.get(execution.charge_reference, 0)
                self._refunded[execution.charge_reference] = so_far + execution.amount_minor
                bisect.insort(self._moved, execution, key=_position)

    def _execute(self, execution: Execution) -> None:
        self.apply(execution)
        if self._on_execution is not None:
            self._on_execution(execution)

    def _answer(self, asked: ChargeExecuted | RefundExecuted) -> ChargeExecuted | RefundExecuted | None:
        """The answer stored under the key, while its window lasts."""
        stored = self._answers.get(asked.key)
        if stored is None or asked.time >= stored.time + self._key_ttl:
            return None
        _require(stored.parameters == asked.parameters, "GATEWAY_KEY_REUSED", "the key was used with other parameters")
        return stored

    def _movement(self, executed: ChargeExecuted | RefundExecuted) -> Movement:
        charge_reference = executed.reference if isinstance(executed, ChargeExecuted) else executed.charge_reference
        charge = self._by_reference.get(charge_reference)
        return Movement(
            kind="charge" if isinstance(executed, ChargeExecuted) else "refund",
            time=datetime.datetime.fromtimestamp(executed.time, datetime.UTC),
            reference=executed.reference,
            charge_reference=charge_reference,
            order_id=charge.order_id if charge is not None else "",
            amount_minor=executed.amount_minor,
            currency_code=executed.currency_code,
        )

    def _decline_reason(self, order_id: str, payment_method: str) -> str:
        if payment_method == _UNAUTHENTICATED:
            return "AUTHENTICATION_REQUIRED"
        if payment_method.startswith(_DECLINED):
            return _DECLINE_REASONS.get(payment_method.removeprefix(_DECLINED), "CARD_DECLINED")
        if self._benchmark_declines and zlib.crc32(order_id.encode()) % _BENCHMARK_DECLINES_ONE_IN == 0:
            return "CARD_DECLINED"
        return ""


def _position(executed: ChargeExecuted | RefundExecuted) -> tuple[float, str]:
    return executed.time, executed.reference


def _require(holds: bool, error_class: str, message: str) -> None:
    if not holds:
        raise GatewayRefused(error_class, message)


def _charge(executed: ChargeExecuted) -> Charge:
    return Charge(
        reference=executed.reference,
        key=executed.key,
        approved=executed.approved,
        decline_reason=executed.decline_reason,
        amount_minor=executed.amount_minor,
        currency_code=executed.currency_code,
    )


def _refund(executed: RefundExecuted) -> Refund:
    return Refund(
        reference=executed.reference,
        key=executed.key,
        charge_reference=executed.charge_reference,
        amount_minor=executed.amount_minor,
        currency_code=executed.currency_code,
    )
