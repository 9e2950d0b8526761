"""What an operator does with stock, and that none of it goes below zero."""

import asyncpg
import pytest

from storage import stock as rows
from storage.database import Database
from storage.stock import Stock, StockLevel
from tests.builders import a_sku, an_item


async def test_levels_and_prices(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    assert await stock.levels(sku) == []
    await stock.set_available(sku, 3)
    assert await stock.levels(sku) == [StockLevel(sku, 3, 0, 0, {})]
    await stock.set_price(sku, "USD", 600)
    await stock.set_price(sku, "EUR", 400)
    await stock.set_price(sku, "EUR", 500)
    assert await stock.levels(sku) == [StockLevel(sku, 3, 0, 0, {"EUR": 500, "USD": 600})]
    assert sku in [level.sku for level in await stock.levels()]


async def test_what_is_held_or_sold_stays_when_stock_is_set(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    await stock.set_available(sku, 5)
    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(sku, 3)])
        await rows.sell(connection, [an_item(sku, 1)])
    await stock.set_available(sku, 100)
    assert await stock.levels(sku) == [StockLevel(sku, 100, 2, 1, {})]


async def test_nothing_goes_below_zero(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    await stock.set_available(sku, 1)
    for move in (rows.sell, rows.give_back):
        with pytest.raises(asyncpg.CheckViolationError):
            async with database.transaction() as connection:
                await move(connection, [an_item(sku, 1)])
    with pytest.raises(rows.ShortageError):
        async with database.transaction() as connection:
            await rows.hold(connection, [an_item(sku, 2)])
    with pytest.raises(asyncpg.CheckViolationError):
        await stock.set_available(sku, -1)
    assert await stock.levels(sku) == [StockLevel(sku, 1, 0, 0, {})]
