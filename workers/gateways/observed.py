"""Shows each call to the payment gateway: its duration, what came of it, its span."""

import datetime
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from domain.failures import Failure
from telemetry import metrics, tracing
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

_Result = TypeVar("_Result")


class ObservedGateway:
    """A PaymentGateway that shows what is asked of the one inside. Nothing of a payment but its outcome is shown."""

    def __init__(self, gateway: PaymentGateway) -> None:
        """`aclose` closes the gateway inside."""
        self._gateway = gateway

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        """See PaymentGateway."""
        return await _observed(
            "charge",
            self._gateway.charge(
                key,
                order_id=order_id,
                amount_minor=amount_minor,
                currency_code=currency_code,
                payment_method=payment_method,
            ),
            lambda charge: "approved" if charge.approved else "declined",
        )

    async def find(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        return await _observed("find", self._gateway.find(key), _found)

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        """See PaymentGateway."""
        return await _observed(
            "refund",
            self._gateway.refund(key, charge_reference=charge_reference, amount_minor=amount_minor),
            lambda _: "refunded",
        )

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:
        """See PaymentGateway."""
        found = self._gateway.find_refund(key, charge_reference=charge_reference)
        return await _observed("find_refund", found, _found)

    async def close(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        return await _observed("close", self._gateway.close(key), lambda _: "closed")

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        """See PaymentGateway."""
        return await _observed("movements", self._gateway.movements(since, until, cursor), lambda _: "listed")

    async def aclose(self) -> None:
        """See PaymentGateway."""
        await self._gateway.aclose()


async def _observed(operation: str, call: Awaitable[_Result], outcome_of: Callable[[_Result], str]) -> _Result:
    started, outcome = time.perf_counter(), "failed"
    try:
        with tracing.client(f"gateway {operation}", {"peer.service": "payment-gateway"}) as span:
            try:
                result = await call
                outcome = outcome_of(result)
                return result
            except Failure as failure:
                outcome = _failed(failure)
                raise
            finally:
                span.set("orderflow.outcome", outcome)
    finally:
        duration = metrics.of(metrics.GATEWAY_DURATION, operation, outcome)
        duration.observe(time.perf_counter() - started, tracing.exemplar())


def _found(what: Charge | Refund | None) -> str:
    return "not_found" if what is None else "found"


def _failed(failure: Failure) -> str:
    match failure:
        case ChargeUnknown():
            return "unknown"
        case ChargeUnderWay():
            return "under_way"
        case GatewayUnavailable():
            return "unavailable"
        case GatewayRefused():
            return "refused"
        case _:
            return "failed"
