"""`orderflow stock`: what can be ordered, and at what price."""

import asyncio
import dataclasses

import typer

import settings
from cli.output import Format, show

app = typer.Typer(help="Show and set stock and prices.", no_args_is_help=True)


@app.command("set")
def set_stock(
    sku: str,
    available: int = typer.Argument(min=0, help="Units that can be ordered from now on."),
    price: str = typer.Option(
        "", help="Price that orders must name: `EUR:1999` is 19.99 EUR. Without one any price goes."
    ),
) -> None:
    """Set how many units of a SKU can be ordered. What is held or sold stays as it is."""
    currency, _, amount = price.partition(":")
    if price and not (len(currency) == 3 and amount.isdigit()):
        raise typer.BadParameter("must be CURRENCY:AMOUNT_MINOR, for example EUR:1999", param_hint="--price")

    async def change() -> None:
        from storage.database import Database
        from storage.stock import Stock

        database = Database(settings.load().database, application="cli")
        await database.open()
        try:
            stock = Stock(database)
            await stock.set_available(sku, available)
            if price:
                await stock.set_price(sku, currency, int(amount))
        finally:
            await database.close()

    asyncio.run(change())


@app.command("show")
def show_stock(
    sku: str = typer.Argument("", help="Only this SKU."),
    output: Format = typer.Option(Format.TABLE, "-o", "--output"),
) -> None:
    """Show available, held and sold units, and prices in minor units."""

    async def read() -> list[dict[str, object]]:
        from storage.database import Database
        from storage.stock import Stock

        database = Database(settings.load().database, application="cli")
        await database.open()
        try:
            return [dataclasses.asdict(level) for level in await Stock(database).levels(sku or None)]
        finally:
            await database.close()

    show(asyncio.run(read()), output, empty="No stock is set: orderflow stock set SKU UNITS")
