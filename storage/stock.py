"""Stock: available, held by orders that are not settled, sold. None of them ever below zero."""

import dataclasses
from collections.abc import Iterable, Sequence
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


async def mispriced(connection: "Connection", items: Sequence[LineItem]) -> list[str]:
    """Returns the SKUs that have a price in the order's currency, and another one than the order says."""
    rows = await connection.fetch(
        "select sku from prices join unnest($1::text[], $2::bigint[]) as asked (sku, amount_minor) using (sku)"
        " where prices.currency_code = $3 and prices.amount_minor <> asked.amount_minor order by sku",
        [item.sku for item in items],
        [item.unit_price.amount_minor for item in items],
        items[0].unit_price.currency_code,
    )
    return [row["sku"] for row in rows]


async def shortage(connection: "Connection", items: Sequence[LineItem]) -> tuple[list[str], list[str]]:
    """Returns the SKUs that are not known, and those that there are too few of at the moment."""
    wanted = {item.sku: item.quantity for item in items}
    rows = await connection.fetch("select sku, available from stock where sku = any($1)", list(wanted))
    available = {row["sku"]: row["available"] for row in rows}
    unknown = sorted(set(wanted) - set(available))
    return unknown, sorted(sku for sku, quantity in wanted.items() if sku in available and available[sku] < quantity)


async def hold(connection: "Connection", items: Sequence[LineItem]) -> None:
    """Holds all items.

    Raises:
        ShortageError: there are too few of one. The transaction is of no more use.
    """
    try:
        await _move(connection, items, "available = available - quantity, held = held + quantity")
    except asyncpg.CheckViolationError as error:
        raise ShortageError from error


async def sell(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Turns what the items hold into sold."""
    await _move(connection, items, "held = held - quantity, sold = sold + quantity")


async def give_back(connection: "Connection", items: Iterable[LineItem]) -> None:
    """Gives back what the items hold."""
    await _move(connection, items, "held = held - quantity, available = available + quantity")


async def _move(connection: "Connection", items: Iterable[LineItem], change: str) -> None:
    wanted = sorted((item.sku, item.quantity) for item in items)
    skus, quantities = [sku for sku, _ in wanted], [quantity for _, quantity in wanted]
    if len(skus) > 1:  # one lock order everywhere: by SKU
        await connection.fetch("select 1 from stock where sku = any($1) order by sku for update", skus)
    moved = await connection.execute(
        f"update stock set {change}"  # noqa: S608
        " from unnest($1::text[], $2::bigint[]) as moved (sku, quantity) where stock.sku = moved.sku",
        skus,
        quantities,
    )
    assert moved == f"UPDATE {len(skus)}", "a SKU that was ordered has no row any more"


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
