"""Stock: available, held by orders that are not settled, sold. None of them ever below zero."""

import collections
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from orderflow.orders.v1.order_pb2 import LineItem
from storage import stock_changes
from storage.database import Database
from storage.stock_changes import Change, Origin

if TYPE_CHECKING:
    from storage.database import Connection


class ShortageError(Exception):
    """There are too few units of a SKU."""


@dataclasses.dataclass(frozen=True)
class StockLevel:
    """Units of one SKU, and what it costs."""

    sku: str
    available: int
    held: int
    sold: int
    prices: dict[str, int]


_LOCK_ORDER: Final = "order by sku for update"  # one lock order everywhere


class Offer(NamedTuple):
    """What there is of SKUs: units by SKU, and prices in minor units by SKU and currency code. Not every SKU has one.

    A SKU that is not known has no units, not even zero.
    """

    available: dict[str, int]
    prices: dict[tuple[str, str], int]


async def lock(connection: "Connection", skus: Iterable[str]) -> Offer:
    """Returns what there is of SKUs. What is available stays so until the transaction ends."""
    rows = await connection.fetch(
        "select sku, available, currency_code, amount_minor from stock left join prices using (sku)"  # noqa: S608
        f" where sku = any($1) {_LOCK_ORDER} of stock",
        list(skus),
    )
    return Offer(
        {row["sku"]: row["available"] for row in rows},
        {(row["sku"], row["currency_code"]): row["amount_minor"] for row in rows if row["currency_code"] is not None},
    )


async def hold(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Holds all items, of however many orders.

    Raises:
        ShortageError: there are too few of one. The transaction is of no more use.
    """
    try:
        await _move(connection, "available = available - quantity, held = held + quantity", _units(items))
    except asyncpg.CheckViolationError as error:
        raise ShortageError from error


async def settle(connection: "Connection", *, sold: Iterable[LineItem], given_back: Iterable[LineItem]) -> None:
    """Turns what items hold into sold, and gives back what others do, of however many orders."""
    change = "held = held - quantity - returned, sold = sold + quantity, available = available + returned"
    await _move(connection, change, _units(sold), _units(given_back))


async def give_back(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Gives back what the items hold."""
    await settle(connection, sold=(), given_back=items)


async def take_back(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Makes what was sold of the items available again."""
    await _move(connection, "sold = sold - quantity, available = available + quantity", _units(items))


def _units(items: Iterable[LineItem]) -> "collections.Counter[str]":
    units = collections.Counter[str]()
    for item in items:
        units[item.sku] += item.quantity
    return units


_NONE: Final = collections.Counter[str]()


async def _move(
    connection: "Connection",
    change: str,
    quantity: "collections.Counter[str]",
    returned: "collections.Counter[str]" = _NONE,
) -> None:
    """Makes a change of the rows of SKUs, which has these units of each."""
    skus = list(quantity | returned)
    # The update finds each row as it is once it is locked, whatever was committed while it waited for it. The checks
    # hold for the row as it was when it began to wait, too: what is moved must have been put there before.
    moved = await connection.execute(
        f"with locked as (select sku from stock where sku = any($1) {_LOCK_ORDER})"  # noqa: S608 - constants
        f" update stock set {change}"
        " from locked join unnest($1::text[], $2::bigint[], $3::bigint[]) as moved (sku, quantity, returned)"
        " using (sku) where stock.sku = locked.sku",
        skus,
        [quantity[sku] for sku in skus],
        [returned[sku] for sku in skus],
    )
    assert moved == f"UPDATE {len(skus)}", "a SKU that was ordered has no row any more"


class UnknownSkuError(Exception):
    """Nothing was ever set for the SKU."""


LOCAL: Final = Origin("local")
"""Whoever has the database at hand: a program that sets up a system."""


class Stock:
    """What operators see and change."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def set_available(self, sku: str, available: int, origin: Origin = LOCAL) -> StockLevel:
        """Sets how many units can be ordered. What is held or sold stays as it is. Returns the level after it.

        Raises:
            ChangeRequestIdReusedError: see storage.stock_changes.
            DependencyDown: PostgreSQL is away.
        """

        async def make(connection: "Connection") -> None:
            await connection.execute(
                "insert into stock (sku, available) values ($1, $2)"
                " on conflict (sku) do update set available = excluded.available",
                sku,
                available,
            )

        return await self._change(Change("set_stock", sku, available), origin, make)

    async def adjust(self, sku: str, delta: int, origin: Origin = LOCAL) -> StockLevel:
        """Adds units to those that can be ordered; below zero takes some away. Returns the level after it.

        Raises:
            UnknownSkuError: nothing was ever set for the SKU.
            ShortageError: fewer are left than are to be taken.
            ChangeRequestIdReusedError: see storage.stock_changes.
            DependencyDown: PostgreSQL is away.
        """

        async def make(connection: "Connection") -> None:
            try:
                adjusted = await connection.execute(
                    "update stock set available = available + $2 where sku = $1", sku, delta
                )
            except asyncpg.CheckViolationError as error:
                raise ShortageError from error
            if adjusted == "UPDATE 0":
                raise UnknownSkuError

        return await self._change(Change("adjust_stock", sku, delta), origin, make)

    async def set_price(self, sku: str, currency_code: str, amount_minor: int, origin: Origin = LOCAL) -> StockLevel:
        """Sets the price that orders of the SKU in the currency must name. Returns the level after it.

        A SKU that was not known has no units: with its price set first, none is ever sold at another one.

        Raises:
            ChangeRequestIdReusedError: see storage.stock_changes.
            DependencyDown: PostgreSQL is away.
        """

        async def make(connection: "Connection") -> None:
            await connection.execute("insert into stock (sku, available) values ($1, 0) on conflict do nothing", sku)
            await connection.execute(
                "insert into prices (sku, currency_code, amount_minor) values ($1, $2, $3)"
                " on conflict (sku, currency_code) do update set amount_minor = excluded.amount_minor",
                sku,
                currency_code,
                amount_minor,
            )

        return await self._change(Change("set_price", sku, amount_minor, currency_code), origin, make)

    async def remove_price(self, sku: str, currency_code: str, origin: Origin = LOCAL) -> StockLevel:
        """Removes the price in the currency, if there is one. Returns the level after it.

        Raises:
            UnknownSkuError: nothing was ever set for the SKU.
            ChangeRequestIdReusedError: see storage.stock_changes.
            DependencyDown: PostgreSQL is away.
        """

        async def make(connection: "Connection") -> None:
            await connection.execute("delete from prices where sku = $1 and currency_code = $2", sku, currency_code)

        return await self._change(Change("remove_price", sku, None, currency_code), origin, make)

    async def levels(self, sku: str) -> list[StockLevel]:
        """Returns the level of a SKU; none if nothing was ever set for it.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(f"{_LEVEL} where sku = $1", sku)
        return [_level(row) for row in rows]

    async def page(self, *, size: int, after: str = "") -> list[StockLevel]:
        """Returns at most `size` levels by SKU, those that come after one.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(f"{_LEVEL} where sku > $1 order by sku limit $2", after, size)
        return [_level(row) for row in rows]

    async def _change(
        self, change: Change, origin: Origin, make: Callable[["Connection"], Awaitable[None]]
    ) -> StockLevel:
        async def changed(connection: "Connection") -> dict[str, Any]:
            await make(connection)
            row = await connection.fetchrow(f"{_LEVEL} where sku = $1", change.sku)
            if row is None:
                raise UnknownSkuError
            return dataclasses.asdict(_level(row))

        return StockLevel(**await stock_changes.make_once(self._database, change, origin, changed))


_LEVEL: Final = (
    "select sku, available, held, sold,"
    " array(select currency_code from prices where prices.sku = stock.sku order by currency_code) as currencies,"
    " array(select amount_minor from prices where prices.sku = stock.sku order by currency_code) as amounts from stock"
)


def _level(row: asyncpg.Record) -> StockLevel:
    return StockLevel(
        row["sku"],
        row["available"],
        row["held"],
        row["sold"],
        dict(zip(row["currencies"], row["amounts"], strict=True)),
    )
