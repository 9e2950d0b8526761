"""Looks for a text in every column of every table, so that a table that is new is looked through as well."""

from typing import Any

from storage.database import Database


async def tables_with(database: Database, *texts: str) -> set[str]:
    """Returns the tables in which one of the texts stands, in whatever column, as text or as bytes."""
    async with database.connection() as connection:
        return await tables_of_connection_with(connection, *texts)


async def tables_of_connection_with(connection: Any, *texts: str) -> set[str]:
    """Does the same on a connection."""
    rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    names = [row["tablename"] for row in rows]
    assert len(names) > 20, "the scan sees the tables"
    found = set()
    for name in names:
        # A row as a text has its bytes in hexadecimal, arrays of them as well.
        sql = (
            f'select true from "{name}" as scanned, unnest($1::text[]) as wanted (word)'
            " where position(lower(word) in lower(scanned::text)) > 0"
            " or position(encode(convert_to(word, 'UTF8'), 'hex') in scanned::text) > 0 limit 1"
        )
        if await connection.fetchval(sql, list(texts)):
            found.add(name)
    return found
