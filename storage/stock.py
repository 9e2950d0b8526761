"""Stock: available, held by orders that are not settled, sold. None of them ever below zero."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import asyncpg

from orderflow.orders.v1.order_pb2 import LineItem
from storage.database import Database

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


async def listed_prices(connection: "Connection", skus: Iterable[str]) -> dict[tuple[str, str], int]:
    """Returns the prices of SKUs in minor units, by SKU and currency code. Not every SKU has one."""
    rows = await connection.fetch("select sku, currency_code, amount_minor from prices where sku = any($1)", list(skus))
    return {(row["sku"], row["currency_code"]): row["amount_minor"] for row in rows}


async def lock(connection: "Connection", skus: Iterable[str]) -> dict[str, int]:
    """Returns what is available of SKUs, which stays so until the transaction ends. Those not known are left out."""
    rows = await connection.fetch(
        "select sku, available from stock where sku = any($1) order by sku for update",  # one lock order everywhere
        list(skus),
    )
    return {row["sku"]: row["available"] for row in rows}


async def hold(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Holds all items, of however many orders. Several SKUs must be locked before.

    Raises:
        ShortageError: there are too few of one. The transaction is of no more use.
    """
    try:
        await _move(connection, _units(items), "available = available - quantity, held = held + quantity")
    except asyncpg.CheckViolationError as error:
        raise ShortageError from error


async def sell(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Turns what the items hold into sold."""
    await _move_locked(connection, _units(items), "held = held - quantity, sold = sold + quantity")


async def give_back(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Gives back what the items hold."""
    await _move_locked(connection, _units(items), "held = held - quantity, available = available + quantity")


def _units(items: Iterable[LineItem]) -> "collections.Counter[str]":
    units = collections.Counter[str]()
    for item in items:
        units[item.sku] += item.quantity
    return units


async def _move_locked(connection: "Connection", units: Mapping[str, int], change: str) -> None:
    if len(units) > 1:
        await lock(connection, units)
    await _move(connection, units, change)


async def _move(connection: "Connection", units: Mapping[str, int], change: str) -> None:
    moved = await connection.execute(
        f"update stock set {change}"  # noqa: S608
        " from unnest($1::text[], $2::bigint[]) as moved (sku, quantity) where stock.sku = moved.sku",
        list(units),
        list(units.values()),
    )
    assert moved == f"UPDATE {len(units)}", "a SKU that was ordered has no row any more"


class Stock:
    """What an operator does with stock."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def set_available(self, sku: str, available: int) -> None:
        """Sets how many units can be ordered. What is held or sold stays as it is.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "insert into stock (sku, available) values ($1, $2)"
                " on conflict (sku) do update set available = excluded.available",
                sku,
                available,
            )

    async def set_price(self, sku: str, currency_code: str, amount_minor: int) -> None:
        """Sets the price that orders of the SKU must name.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "insert into prices (sku, currency_code, amount_minor) values ($1, $2, $3)"
                " on conflict (sku, currency_code) do update set amount_minor = excluded.amount_minor",
                sku,
                currency_code,
                amount_minor,
            )

    async def levels(self, sku: str | None = None) -> list[StockLevel]:
        """Returns all levels, or those of one SKU.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select stock.sku, available, held, sold,"
                " array_remove(array_agg(currency_code order by currency_code), null) as currencies,"
                " array_remove(array_agg(amount_minor order by currency_code), null) as amounts"
                " from stock left join prices using (sku) where $1::text is null or stock.sku = $1"
                " group by stock.sku order by stock.sku",
                sku,
            )
        return [
            StockLevel(
                row["sku"],
                row["available"],
                row["held"],
                row["sold"],
                dict(zip(row["currencies"], row["amounts"], strict=True)),
            )
            for row in rows
        ]
