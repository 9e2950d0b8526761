"""The circuit breaker before the payment gateway.

pybreaker keeps the state and the counters; this class decides who may call and what counts, because pybreaker's own
ways into a call do not fit asyncio (1.4.1: a cancellation counts, a half-open breaker lets everyone through). Rules:

- The gate comes first. Then the call is awaited outside of pybreaker, and only its outcome is recorded.
- An outcome counts only in the state that the call was admitted in: what was sent before the breaker opened says
  nothing about a gateway that is being probed now.
- Half-open lasts as long as one call, the probe, which half-opened it; its outcome closes or opens the breaker. So
  whoever finds the breaker half-open finds a probe under way.
- A probe whose outcome is unknown may be looked up, once: that look-up belongs to it and changes no state. Without
  it an order that the gateway answers with a stored error would be the probe for ever.
- Whatever the gateway answered, a decline or a refusal included, is a success.
- A cancelled call leaves no trace, and one that another dependency kept from the gateway leaves none either; such a
  probe opens the breaker again.
"""

import contextlib
import datetime
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import pybreaker

from domain.failures import DependencyDown
from workers.gateways.gateway import (
    Charge,
    ChargeUnderWay,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    MovementPage,
    PaymentGateway,
    Refund,
)

State = Literal["closed", "open", "half_open"]
Outcome = Literal["success", "failure", "declined", "not_permitted"]

_STATES: dict[str, State] = {
    pybreaker.STATE_CLOSED: "closed",
    pybreaker.STATE_OPEN: "open",
    pybreaker.STATE_HALF_OPEN: "half_open",
}
_Result = TypeVar("_Result")


class GuardedGateway:
    """A PaymentGateway that stops asking one that fails, and asks again with one call at a time.

    Not permitted = GatewayUnavailable (a DependencyDown), with `retry_after` while open. Time-outs must come from the
    gateway inside: one set around this class arrives as a cancellation and never opens the breaker.

    Args:
        gateway: the gateway to guard; `aclose` closes it.
        fail_max: failures in a row that open the breaker.
        reset_timeout: seconds from opening until the first probe.
        on_transition: called with the old and the new state; it must not raise.
        on_call: called with the outcome of each call (a cancelled one has none); it must not raise.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        gateway: PaymentGateway,
        *,
        fail_max: int,
        reset_timeout: float,
        on_transition: Callable[[State, State], None] | None = None,
        on_call: Callable[[Outcome], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._reset_timeout = reset_timeout
        self._on_transition = on_transition
        self._on_call = on_call
        self._clock = clock
        self._opened_at = 0.0
        self._unknown_probe: str | None = None
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=fail_max,
            reset_timeout=reset_timeout,
            name="gateway",
            throw_new_error_on_trip=False,
            listeners=[_Transitions(self._changed)],
        )

    @property
    def state(self) -> State:
        """The breaker's state. Open turns into half_open with the first call after the reset time-out."""
        return _STATES[self._breaker.current_state]

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        """See PaymentGateway."""
        self._admit()
        is_probe = self.state == "half_open"
        try:
            return await self._admitted(
                lambda: self._gateway.charge(
                    key,
                    order_id=order_id,
                    amount_minor=amount_minor,
                    currency_code=currency_code,
                    payment_method=payment_method,
                ),
                lambda charge: "success" if charge.approved else "declined",
            )
        except ChargeUnknown:
            if is_probe:
                self._unknown_probe = key
            raise

    async def find(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        return await self._looked_up(key, self._gateway.find)

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        """See PaymentGateway."""
        self._admit()
        is_probe = self.state == "half_open"
        try:
            return await self._admitted(
                lambda: self._gateway.refund(key, charge_reference=charge_reference, amount_minor=amount_minor),
                lambda _: "success",
            )
        except ChargeUnknown:
            if is_probe:
                self._unknown_probe = key
            raise

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:
        """See PaymentGateway."""
        return await self._looked_up(
            key, functools.partial(self._gateway.find_refund, charge_reference=charge_reference)
        )

    async def close(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        return await self._guard(lambda: self._gateway.close(key))

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        """See PaymentGateway."""
        return await self._guard(lambda: self._gateway.movements(since, until, cursor))

    async def aclose(self) -> None:
        """Close the guarded gateway."""
        await self._gateway.aclose()

    async def _looked_up(self, key: str, look_up: Callable[[str], Awaitable[_Result]]) -> _Result:
        """Looks up, once also past an open breaker if the key's send was the probe that opened it again."""
        if key == self._unknown_probe and self.state != "closed":
            self._unknown_probe = None
            return await look_up(key)
        return await self._guard(lambda: look_up(key))

    async def _guard(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        self._admit()
        return await self._admitted(call, lambda _: "success")

    async def _admitted(self, call: Callable[[], Awaitable[_Result]], outcome: Callable[[_Result], Outcome]) -> _Result:
        # pybreaker makes a new state object with each transition, so this tells one closed period from the next.
        admitted = self._breaker.state
        try:
            result = await call()
        except (GatewayRefused, ChargeUnderWay):
            self._record(admitted, _answered)
            self._report("success")
            raise
        except BaseException as error:
            if _tells_of_the_gateway(error):
                self._record(admitted, _failed)
                self._report("failure")
            elif admitted.name == pybreaker.STATE_HALF_OPEN:
                self._breaker.open()
            raise
        self._record(admitted, _answered)
        self._report(outcome(result))
        return result

    def _admit(self) -> None:
        """Return when this call may be made, half-opening the breaker when it is time; else raise."""
        if self.state == "open":
            remaining = self._opened_at + self._reset_timeout - self._clock()
            if remaining > 0:
                self._report("not_permitted")
                raise GatewayUnavailable("the breaker is open", retry_after=remaining)
            self._breaker.half_open()
        elif self.state == "half_open":
            self._report("not_permitted")
            raise GatewayUnavailable("the breaker is half-open and its probe is under way")

    def _record(self, admitted: object, outcome: Callable[[], None]) -> None:
        if self._breaker.state is admitted:
            with contextlib.suppress(_GatewayFailed):
                self._breaker.call(outcome)

    def _report(self, outcome: Outcome) -> None:
        if self._on_call is not None:
            self._on_call(outcome)

    def _changed(self, old: State, new: State) -> None:
        if new == "open":
            self._opened_at = self._clock()
        if self._on_transition is not None:
            self._on_transition(old, new)


def _tells_of_the_gateway(error: BaseException) -> bool:
    is_elsewhere = isinstance(error, DependencyDown) and not isinstance(error, GatewayUnavailable)
    return isinstance(error, Exception) and not is_elsewhere


class _GatewayFailed(Exception):
    """Stands for a failed call when its outcome is recorded."""


def _answered() -> None:
    """Recorded as a success."""


def _failed() -> None:
    """Recorded as a failure."""
    raise _GatewayFailed


class _Transitions(pybreaker.CircuitBreakerListener):
    """Passes state changes on, in our words."""

    def __init__(self, changed: Callable[[State, State], None]) -> None:
        self._pass_on = changed

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,  # noqa: ARG002 - the listener's interface
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """Called by pybreaker."""
        old = _STATES[old_state.name] if old_state is not None else "closed"
        self._pass_on(old, _STATES[new_state.name])
