"""What an operator does with stock, and that none of it goes below zero."""

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from storage import stock as rows
from storage.database import Database
from storage.stock import ShortageError, Stock, StockLevel, UnknownSkuError
from storage.stock_changes import ChangeRequestIdReusedError, Origin
from tests import engines
from tests.builders import a_group, a_sku, an_id, an_item


async def test_levels_and_prices(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    assert await stock.levels(sku) == []
    await stock.set_available(sku, 3)
    assert await stock.levels(sku) == [StockLevel(sku, 3, 0, 0, {})]
    await stock.set_price(sku, "USD", 600)
    await stock.set_price(sku, "EUR", 400)
    await stock.set_price(sku, "EUR", 500)
    assert await stock.levels(sku) == [StockLevel(sku, 3, 0, 0, {"EUR": 500, "USD": 600})]


async def test_what_is_held_or_sold_stays_when_stock_is_set(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    await stock.set_available(sku, 5)
    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(sku, 3)])
        await rows.settle(connection, sold=[an_item(sku, 1)], given_back=[])
    await stock.set_available(sku, 100)
    assert await stock.levels(sku) == [StockLevel(sku, 100, 2, 1, {})]


async def test_nothing_goes_below_zero(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    await stock.set_available(sku, 1)
    item = an_item(sku, 1)
    for sold, given_back in (([item], []), ([], [item])):
        with pytest.raises(asyncpg.CheckViolationError):
            async with database.transaction() as connection:
                await rows.settle(connection, sold=sold, given_back=given_back)
    with pytest.raises(asyncpg.CheckViolationError):
        async with database.transaction() as connection:
            await rows.give_back(connection, [item])
    with pytest.raises(ShortageError):
        async with database.transaction() as connection:
            await rows.hold(connection, [an_item(sku, 2)])
    with pytest.raises(asyncpg.CheckViolationError):
        await stock.set_available(sku, -1)
    assert await stock.levels(sku) == [StockLevel(sku, 1, 0, 0, {})]


async def test_units_are_added_and_taken_away_but_never_more_than_are_left(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    await stock.set_available(sku, 5)
    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(sku, 2)])
    assert await stock.adjust(sku, 4) == StockLevel(sku, 7, 2, 0, {})
    with pytest.raises(ShortageError):
        await stock.adjust(sku, -8)
    assert await stock.adjust(sku, -7) == StockLevel(sku, 0, 2, 0, {})
    with pytest.raises(UnknownSkuError):
        await stock.adjust(a_sku(), 1)


async def test_adjustments_at_once_all_count(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    await stock.set_available(sku, 100)
    await asyncio.gather(*(stock.adjust(sku, delta) for delta in range(-10, 11)))
    assert await stock.levels(sku) == [StockLevel(sku, 100, 0, 0, {})]


async def test_a_repeated_change_is_made_once_and_answered_the_same(database: Database) -> None:
    stock, sku, origin = Stock(database), a_sku(), Origin(a_group(), "delivery", an_id())
    await stock.set_available(sku, 10)
    first = await stock.adjust(sku, 5, origin)
    await stock.set_available(sku, 1)
    await stock.set_price(sku, "EUR", 100)
    assert await stock.adjust(sku, 5, origin) == first == StockLevel(sku, 15, 0, 0, {})
    assert await stock.levels(sku) == [StockLevel(sku, 1, 0, 0, {"EUR": 100})]


async def test_a_repeat_at_the_same_time_waits_for_the_first(database: Database) -> None:
    """It takes all that is left: a repeat that did not wait would find too little."""
    stock, sku, origin = Stock(database), a_sku(), Origin(a_group(), "", an_id())
    await stock.set_available(sku, 3)
    answers = await asyncio.gather(*(stock.adjust(sku, -3, origin) for _ in range(5)))
    assert answers == [StockLevel(sku, 0, 0, 0, {})] * 5


async def test_a_change_that_was_refused_may_be_tried_again(database: Database) -> None:
    stock, sku, origin = Stock(database), a_sku(), Origin(a_group(), "", an_id())
    await stock.set_available(sku, 1)
    for _ in range(2):
        with pytest.raises(ShortageError):
            await stock.adjust(sku, -2, origin)
    await stock.set_available(sku, 2)
    assert (await stock.adjust(sku, -2, origin)).available == 0


async def test_a_request_id_is_for_one_change_of_one_operator(database: Database) -> None:
    stock, sku, other, request_id = Stock(database), a_sku(), a_sku(), an_id()
    origin = Origin(a_group(), "", request_id)
    for each in (sku, other):
        await stock.set_available(each, 10)
    await stock.adjust(sku, 1, origin)
    for change in (
        stock.adjust(sku, 2, origin),
        stock.adjust(other, 1, origin),
        stock.set_available(sku, 1, origin),
        stock.set_price(sku, "EUR", 1, origin),
        stock.remove_price(sku, "EUR", origin),
        stock.adjust(sku, 1, Origin(origin.by, "another reason", request_id)),
    ):
        with pytest.raises(ChangeRequestIdReusedError):
            await change
    assert (await stock.adjust(sku, 1, Origin(a_group(), "", request_id))).available == 12


async def test_a_price_makes_a_sku_known_without_units(database: Database) -> None:
    stock, sku = Stock(database), a_sku()
    with pytest.raises(UnknownSkuError):
        await stock.remove_price(sku, "EUR")
    assert await stock.set_price(sku, "EUR", 100) == StockLevel(sku, 0, 0, 0, {"EUR": 100})
    await stock.set_available(sku, 5)
    assert await stock.set_price(sku, "USD", 200) == StockLevel(sku, 5, 0, 0, {"EUR": 100, "USD": 200})
    for _ in range(2):
        assert await stock.remove_price(sku, "EUR") == StockLevel(sku, 5, 0, 0, {"USD": 200})


async def test_every_change_is_kept_with_who_and_why(database: Database) -> None:
    stock, sku, by, request_id = Stock(database), a_sku(), a_group(), an_id()
    await stock.set_available(sku, 3, Origin(by, "counted"))
    with pytest.raises(ShortageError):
        await stock.adjust(sku, -4, Origin(by, "lost"))
    for _ in range(2):
        await stock.adjust(sku, -1, Origin(by, "broken", request_id))
    await stock.set_price(sku, "EUR", 199, Origin(by, "spring"))
    await stock.remove_price(sku, "EUR", Origin(by, "summer"))
    kept = await engines.fetch(
        database,
        "select kind, quantity, currency_code, reason, request_id, level ->> 'available' as available"
        " from stock_changes where changed_by = $1 and sku = $2 order by change_id",
        by,
        sku,
    )
    assert [tuple(row.values()) for row in kept] == [
        ("set_stock", 3, "", "counted", None, "3"),
        ("adjust_stock", -1, "", "broken", request_id, "2"),
        ("set_price", 199, "EUR", "spring", None, "2"),
        ("remove_price", None, "EUR", "summer", None, "2"),
    ]


async def test_levels_by_page(own_database: Database) -> None:
    stock, skus = Stock(own_database), [f"SKU-{letter}" for letter in "abcde"]
    for sku in reversed(skus):
        await stock.set_price(sku, "EUR", 1)
    seen, after = list[str](), ""
    while page := await stock.page(size=2, after=after):
        assert len(page) <= 2
        seen += [level.sku for level in page]
        after = seen[-1]
        assert page[0].prices == {"EUR": 1}
    assert seen == skus


# -- inside of others' transactions ------------------------------------------------------------------------------------


async def stocked(database: Database, count: int) -> list[str]:
    """Returns new SKUs of 100 units each, sorted."""
    skus = sorted(a_sku() for _ in range(count))
    for sku in skus:
        await Stock(database).set_available(sku, 100)
    return skus


async def levels(database: Database, skus: Sequence[str]) -> list[tuple[int, int, int]]:
    found = [(await Stock(database).levels(sku))[0] for sku in skus]
    return [(each.available, each.held, each.sold) for each in found]


async def test_units_move_from_where_they_were_put_meanwhile(database: Database) -> None:
    """Who waits for a row moves what is there then, and not what was there when it began to wait."""
    skus = await stocked(database, 2)
    items = [an_item(sku, 3) for sku in skus]
    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(sku, 4) for sku in skus])

    async def settle() -> None:
        async with database.transaction() as connection:
            await rows.settle(connection, sold=items, given_back=[an_item(skus[1], 1)])

    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(sku, 10) for sku in skus])
        waiting = asyncio.create_task(settle())
        await engines.until_waiting(database, 1)
    await waiting
    assert await levels(database, skus) == [(86, 11, 3), (87, 10, 3)]


async def test_what_is_offered_is_what_is_left_once_it_is_locked(database: Database) -> None:
    [sku] = await stocked(database, 1)
    for currency in ("EUR", "JPY", "USD"):
        await Stock(database).set_price(sku, currency, 5)

    async def lock() -> rows.Offer:
        async with database.transaction() as connection:
            return await rows.lock(connection, [sku, a_sku()])

    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(sku, 99)])
        waiting = asyncio.create_task(lock())
        await engines.until_waiting(database, 1)
    assert await waiting == ({sku: 1}, {(sku, "EUR"): 5, (sku, "JPY"): 5, (sku, "USD"): 5})


async def test_changes_of_the_same_skus_never_wait_for_each_other_in_a_circle(own_database: Database) -> None:
    database, skus = own_database, await stocked(own_database, 3)
    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(sku, 10) for sku in skus])
        # So many that a plan looks for each by itself, in the order in which they are asked for.
        await connection.execute("insert into stock (sku, available) select n::text, 1 from generate_series(1, 9999) n")
    await engines.fetch(database, "analyze stock")

    async def sell(own: Sequence[str]) -> None:
        async with database.transaction() as connection:
            await rows.settle(connection, sold=[an_item(sku, 1) for sku in own], given_back=[])

    async with database.transaction() as connection:
        await rows.hold(connection, [an_item(skus[1], 1)])
        waiting = [asyncio.create_task(sell(own)) for own in (skus, skus[::-1])]
        await engines.until_waiting(database, 2)
    await asyncio.gather(*waiting)  # a deadlock would be a DependencyDown
    assert await levels(database, skus) == [(90, 8, 2), (89, 9, 2), (90, 8, 2)]
