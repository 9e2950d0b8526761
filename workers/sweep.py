"""Asks for what no call asks for: expiry of orders that were not paid in time, and refunds that are due.

Every so often it also asks about orders whose money should have been settled long ago: whatever has kept their records
from being handled, somebody looks at them again.

A timer in every order processor. It decides nothing: its commands go the way of all others.
"""

import asyncio
import datetime
from collections.abc import Callable, Sequence
from typing import Protocol

from domain import events
from domain.failures import DependencyDown
from domain.identifiers import swept_event_id
from messaging import envelope
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown
from messaging.runtime import WorkerRuntime
from messaging.topics import Topic
from orderflow.events.v1.order_event_pb2 import (
    CommandTerms,
    OrderEvent,
    OrderExpiryRequestedDetails,
    OrderRefundRequestedDetails,
)
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from telemetry import logs, metrics

log = logs.get()

_PUBLISH_SECONDS = 10.0


class DueOrders(Protocol):
    """What there is to ask for. Every method raises DependencyDown."""

    async def unpaid(self, now: datetime.datetime) -> list[str]:
        """Returns the orders that were not paid in time."""
        ...

    async def refunds(self) -> list[str]:
        """Returns the orders of which money is to be given back."""
        ...

    async def unanswered(self, *, sent_before: datetime.datetime) -> list[str]:
        """Returns the orders with a refund of which nobody knows what became of it."""
        ...

    async def unsettled(self, *, quiet_since: datetime.datetime) -> list[str]:
        """Returns the orders that were called off and whose money should have been settled by now."""
        ...


class Publisher(Protocol):
    """Where commands go."""

    async def publish_all(
        self, records: Sequence[OutgoingRecord], *, timeout: float
    ) -> list[NotHandedOver | OutcomeUnknown | None]:
        """Publishes records and tells of each what became of it."""
        ...


class Sweep:
    """Looks once in each slot of `interval` seconds.

    Slots are the same in all processes, and so are a slot's event ids: many processes ask once, and a refused ask does
    not silence the one of the next slot.
    """

    def __init__(
        self,
        *,
        due: DueOrders,
        publisher: Publisher,
        interval: float,
        patience: datetime.timedelta,
        key_window: datetime.timedelta,
        now: Callable[[], datetime.datetime],
        source: str,
    ) -> None:
        """Collaborators are given; nothing is connected here.

        `patience` is how long an order's money may stay unsettled, and how often that is looked at; `key_window` is how
        long the gateway honours a key. `source` is the worker whose timer this is.
        """
        self._due = due
        self._publisher = publisher
        self._interval = interval
        self._patience = patience
        self._key_window = key_window
        self._slots_of_patience = max(round(patience.total_seconds() / interval), 1)
        self._now = now
        self._source = source

    async def run(self) -> None:
        """Sweeps until cancelled. What fails comes again with the next slot."""
        while True:
            await asyncio.sleep(self._interval - self._now().timestamp() % self._interval)
            try:
                await self.sweep()
            except DependencyDown as down:
                log.warning("sweep.skipped", error=str(down))

    async def sweep(self) -> int:
        """Asks for what is due now. Returns for how many orders Kafka has acknowledged it.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        now = self._now()
        unpaid, late = await self._due.unpaid(now), await self._due.refunds()
        unsettled = await self._unsettled(now)
        refunds = dict.fromkeys(unsettled, "OVERDUE") | dict.fromkeys(late, "LATE_APPROVAL")
        commands = [self._expiry(order_id, now) for order_id in unpaid]
        commands += [self._refund(order_id, reason, now) for order_id, reason in refunds.items()]
        if not commands:
            return 0
        failures = await self._publisher.publish_all(
            [envelope.encode(command) for command in commands], timeout=_PUBLISH_SECONDS
        )
        asked = failures.count(None)
        metrics.SWEPT.labels("expiry").inc(failures[: len(unpaid)].count(None))
        metrics.SWEPT.labels("refund").inc(failures[len(unpaid) :].count(None))
        log.info(
            "sweep.asked", expiries=len(unpaid), refunds=len(refunds), unsettled=len(unsettled), acknowledged=asked
        )
        return asked

    async def _unsettled(self, now: datetime.datetime) -> list[str]:
        """Looks in one of so many slots only: while the gateway is away much is unsettled, and asking does not help."""
        if self._slot(now) % self._slots_of_patience:
            return []
        found = await self._due.unanswered(sent_before=now - self._key_window)
        try:
            found += await self._due.unsettled(quiet_since=now - self._patience)
        except DependencyDown as down:
            # It reads the most by far, so it is the first to take too long: what else is due is asked for all the same.
            log.warning("sweep.unsettled.skipped", error=str(down))
        return list(dict.fromkeys(found))

    def _slot(self, now: datetime.datetime) -> int:
        return int(now.timestamp() // self._interval)

    def _expiry(self, order_id: str, now: datetime.datetime) -> OrderEvent:
        command = self._command(E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED, order_id, now)
        command.order_expiry_requested.CopyFrom(OrderExpiryRequestedDetails())
        return command

    def _refund(self, order_id: str, reason: str, now: datetime.datetime) -> OrderEvent:
        command = self._command(E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED, order_id, now)
        command.order_refund_requested.CopyFrom(OrderRefundRequestedDetails(reason=reason))
        return command

    def _command(self, command_type: E, order_id: str, now: datetime.datetime) -> OrderEvent:
        return events.command(
            command_type,
            order_id,
            event_id=swept_event_id(command_type, order_id, self._slot(now)),
            caller="",
            terms=CommandTerms(),
            correlation_id=order_id,
            source=self._source,
            now=now,
        )


class Timer(Protocol):
    """What a worker does now and then beside its records."""

    async def run(self) -> None:
        """Runs until cancelled."""
        ...


class TimedRuntime:
    """A worker with timers beside it. One that ends by an error ends all."""

    def __init__(self, runtime: WorkerRuntime, *timers: Timer) -> None:
        """Runs nothing yet."""
        self._runtime = runtime
        self._timers = timers

    @property
    def registers(self) -> tuple[Topic, ...]:
        """The topics that the worker's group commits offsets of."""
        return self._runtime.registers

    @property
    def is_ready(self) -> bool:
        """Whether the worker can make progress."""
        return self._runtime.is_ready

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then drains."""
        working = asyncio.create_task(self._runtime.run(stop))
        timers = [asyncio.create_task(timer.run()) for timer in self._timers]
        try:
            await asyncio.wait([working, *timers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.set()
            failures = [timer.exception() for timer in timers if timer.done() and not timer.cancelled()]
            for timer in timers:
                timer.cancel()
            await working
            await asyncio.gather(*timers, return_exceptions=True)  # before what they use is closed
            for failure in failures:
                if failure is not None:
                    raise failure
