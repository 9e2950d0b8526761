"""What the development system has in stock. Seeded once; `orderflow stock set` changes it."""

from typing import Final

import asyncpg

from settings import DatabaseSettings

_STOCK: Final = (
    # SKU, units, price in EUR cents
    ("SKU-1", 1_000_000, 1_999),
    ("SKU-2", 1_000_000, 4_950),
    ("SKU-3", 1_000_000, 125),
    ("SKU-SOLD-OUT", 0, 999),
)


async def seed(database: DatabaseSettings) -> None:
    """Adds the SKUs that are not there yet."""
    connection = await asyncpg.connect(database.url.get_secret_value(), timeout=10)
    try:
        for sku, units, price in _STOCK:
            async with connection.transaction():
                added = await connection.fetchval(
                    "insert into stock (sku, available) values ($1, $2) on conflict do nothing returning true",
                    sku,
                    units,
                )
                if added:
                    await connection.execute(
                        "insert into prices (sku, currency_code, amount_minor) values ($1, 'EUR', $2)"
                        " on conflict do nothing",
                        sku,
                        price,
                    )
    finally:
        await connection.close(timeout=5)
