"""Reads the sides of a reconciliation and has them compared: a window slice by slice, orders in batches.

What is held at once is bounded: two slices of the gateway's movements, and a batch of orders.
"""

import datetime
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Protocol

from domain.reconciliation import Account, Case, Movement, compare, merged, missing_at_gateway
from workers.gateways.gateway import Charge, PaymentGateway, Refund

_ORDERS: Final = 100
"""In a batch. An order may have 256 KiB."""

_MOVEMENTS: Final = 5_000
"""In a slice. One that has more is halved, down to the shortest."""

_SHORTEST: Final = datetime.timedelta(seconds=1)
_FIRST: Final = datetime.timedelta(minutes=1)
_LONGEST: Final = datetime.timedelta(days=1)

Moved = dict[str, list[Movement]]
"""Movements by what they are for."""


class Ledger(Protocol):
    """What is booked, and what the orders say. Every method raises DependencyDown."""

    def touched(self, since: datetime.datetime, until: datetime.datetime) -> AsyncIterator[list[str]]:
        """Yields pages of the orders that something was booked of, or that changed and say that they were paid."""
        ...

    async def accounts(self, order_ids: Sequence[str]) -> dict[str, Account]:
        """Returns the accounts of orders, as of one moment."""
        ...


class Cases(Protocol):
    """What was found before. Every method raises DependencyDown."""

    async def of(self, order_ids: Sequence[str]) -> dict[str, Case]:
        """Returns the cases that there are of the orders."""
        ...

    async def open(self, *, after: str, most: int) -> list[str]:
        """Returns a page of the orders that have differences."""
        ...


class Reconciliation:
    """Compares the gateway, the payments and the orders. It writes nothing, at the gateway or here.

    Every method raises DependencyDown, and GatewayRefused where the gateway refuses the question itself.
    """

    def __init__(self, *, gateway: PaymentGateway, ledger: Ledger, cases: Cases) -> None:
        """Collaborators are given."""
        self._gateway = gateway
        self._ledger = ledger
        self._cases = cases
        self._length = _FIRST  # of the next slice: the windows of one reconciliation are much alike

    async def window(
        self, since: datetime.datetime, end: datetime.datetime, *, until: datetime.datetime
    ) -> AsyncIterator[list[Case]]:
        """Compares every order of which money moved or was booked from `since` until before `end`, or that says so.

        `until`, no earlier than `end`, must be so long ago that what happened before it is at rest. Yields batches of
        all orders compared, those without differences included.
        """
        begin = since
        before: Moved = {}
        while begin < end:
            then = min(begin + self._length, end)
            moved = await self._moved(begin, then, most=_MOVEMENTS if self._length > _SHORTEST else None)
            if moved is None:
                self._length = max(self._length / 2, _SHORTEST)
                continue
            async for batch in self._touched(begin, then, moved):
                # A slice's edge may part a charge from its booking, by the time between them.
                around = {each: [*before.get(each, ()), *moved.get(each, ())] for each in batch}
                yield await self.orders(around, until=until)
            if sum(map(len, moved.values())) < _MOVEMENTS / 4:
                self._length = min(self._length * 2, _LONGEST)
            begin, before = then, moved

    async def open_cases(self, *, until: datetime.datetime) -> AsyncIterator[list[Case]]:
        """Compares the orders anew that have differences. Yields batches."""
        after = ""
        while page := await self._cases.open(after=after, most=_ORDERS):
            yield await self.orders({order_id: [] for order_id in page}, until=until)
            after = page[-1]

    async def orders(self, moved: Mapping[str, Sequence[Movement]], *, until: datetime.datetime) -> list[Case]:
        """Compares orders, of which the gateway has listed these movements, and more of them before, maybe.

        What differs is looked at once more: the sides cannot be read at one time. A movement was at rest before the
        account was read, and stays; an account is read anew after what it has and the listing lacks was looked up.
        """
        known = await self._cases.of(list(moved))
        movements = {
            order_id: merged(known[order_id].movements if order_id in known else (), listed)
            for order_id, listed in moved.items()
        }
        accounts = await self._ledger.accounts(list(moved))
        cases = {
            order_id: Case(order_id, each, compare(order_id, each, accounts.get(order_id), until=until))
            for order_id, each in movements.items()
        }
        if suspects := [case.order_id for case in cases.values() if case.differences]:
            found = {
                order_id: await self._looked_up(order_id, movements[order_id], accounts.get(order_id), until)
                for order_id in suspects
            }
            accounts = await self._ledger.accounts(suspects)
            for order_id in suspects:
                all_of_it = (*movements[order_id], *found[order_id])
                differences = compare(order_id, all_of_it, accounts.get(order_id), until=until)
                cases[order_id] = Case(order_id, movements[order_id], differences)
        return list(cases.values())

    async def _moved(self, since: datetime.datetime, until: datetime.datetime, *, most: int | None) -> Moved | None:
        """Returns the gateway's movements of a slice; None: there are more than `most`."""
        moved: Moved = {}
        count, cursor = 0, ""
        while True:
            page = await self._gateway.movements(since, until, cursor)
            for movement in page.movements:
                moved.setdefault(movement.subject, []).append(movement)
            count += len(page.movements)
            if most is not None and count > most:
                return None
            if not page.next_cursor:
                return moved
            cursor = page.next_cursor

    async def _touched(
        self, since: datetime.datetime, until: datetime.datetime, moved: Moved
    ) -> AsyncIterator[list[str]]:
        """Yields batches of the slice's orders, each order once."""
        seen = set(moved)
        waiting = list(moved)
        async for page in self._ledger.touched(since, until):
            new = dict.fromkeys(order_id for order_id in page if order_id not in seen)
            seen.update(new)
            waiting += new
            while len(waiting) >= _ORDERS:
                yield waiting[:_ORDERS]
                del waiting[:_ORDERS]
        for start in range(0, len(waiting), _ORDERS):
            yield waiting[start : start + _ORDERS]

    async def _looked_up(
        self, order_id: str, movements: Sequence[Movement], account: Account | None, until: datetime.datetime
    ) -> list[Movement]:
        """Returns what the gateway did do of that which is booked and was not listed: it may be older than the window.

        The answers have no time, so they are not kept with what was listed.
        """
        if account is None or not (missing := missing_at_gateway(movements, account, until=until)):
            return []
        found: list[Movement] = []
        references = {entry.reference: entry for entry in missing}
        charge = await self._gateway.find(account.charge_key) if account.charge_key else None
        if charge is not None and charge.approved and charge.reference in references:
            found.append(_moved(charge, order_id, references[charge.reference].time))
        captures = [entry.reference for entry in account.entries if entry.kind == "capture"]
        keys = account.refund_keys if any(entry.kind == "refund" for entry in missing) else ()
        for key, capture in itertools.product(keys, captures):
            refund = await self._gateway.find_refund(key, charge_reference=capture)
            if refund is not None and refund.reference in references:
                found.append(_moved(refund, order_id, references[refund.reference].time))
        return found


def _moved(executed: Charge | Refund, order_id: str, time: datetime.datetime) -> Movement:
    return Movement(
        kind="charge" if isinstance(executed, Charge) else "refund",
        time=time,
        reference=executed.reference,
        charge_reference=executed.reference if isinstance(executed, Charge) else executed.charge_reference,
        order_id=order_id,
        amount_minor=executed.amount_minor,
        currency_code=executed.currency_code,
    )
