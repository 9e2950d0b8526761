"""A payment gateway in memory, for unit tests and benchmarks."""

import asyncio
import datetime
import random
import time
from collections.abc import Callable

from workers.gateways.book import DAY_SECONDS, Book, Execution
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayUnavailable, MovementPage, Refund


class SimulatedGateway:
    """Follows the rules of `Book` after a wait. Fails only when it is told to.

    Args:
        latency: seconds that each call takes; a call that is cancelled meanwhile has not executed.
        key_ttl: seconds for which a key replays its first answer.
        clock: seconds since the epoch.
        benchmark_declines: decline every order whose crc32 is a multiple of 50.
        unavailable_rate: share of calls that fail before anything is sent.
        unknown_rate: share of charges and refunds that execute and then lose their answer.
        seed: of the dice for both rates.
        on_execution: told of each execution: approved, declined, refunded, closed.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        key_ttl: float = DAY_SECONDS,
        clock: Callable[[], float] = time.time,
        benchmark_declines: bool = False,
        unavailable_rate: float = 0.0,
        unknown_rate: float = 0.0,
        seed: int = 0,
        on_execution: Callable[[Execution], None] | None = None,
    ) -> None:
        self.latency = latency
        self.unavailable_rate = unavailable_rate
        self.unknown_rate = unknown_rate
        self._dice = random.Random(seed)  # noqa: S311 - chooses faults, guards nothing
        self._book = Book(
            key_ttl=key_ttl, clock=clock, benchmark_declines=benchmark_declines, on_execution=on_execution
        )

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        """See PaymentGateway."""
        await self._reach()
        charge = self._book.charge(
            key,
            order_id=order_id,
            amount_minor=amount_minor,
            currency_code=currency_code,
            payment_method=payment_method,
        )
        self._answer()
        return charge

    async def find(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        await self._reach()
        return self._book.find(key)

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        """See PaymentGateway."""
        await self._reach()
        refund = self._book.refund(key, charge_reference=charge_reference, amount_minor=amount_minor)
        self._answer()
        return refund

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:  # noqa: ARG002 - the key says it
        """See PaymentGateway."""
        await self._reach()
        return self._book.find_refund(key)

    async def close(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        await self._reach()
        return self._book.close(key)

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        """See PaymentGateway."""
        await self._reach()
        return self._book.movements(since.timestamp(), until.timestamp(), cursor)

    async def aclose(self) -> None:
        """Nothing to give up."""

    async def _reach(self) -> None:
        if self._dice.random() < self.unavailable_rate:
            raise GatewayUnavailable("simulated: nothing was sent")
        if self.latency > 0:
            await asyncio.sleep(self.latency)

    def _answer(self) -> None:
        if self._dice.random() < self.unknown_rate:
            raise ChargeUnknown("simulated: the answer was lost")
