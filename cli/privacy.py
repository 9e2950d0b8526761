"""`orderflow privacy`: what users may ask for. By the database, as `orderflow db`: it is for administrators."""

import asyncio
from typing import TYPE_CHECKING, TypeVar

import typer

import settings
from cli.output import Format, show

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from storage.eraser import Eraser

T = TypeVar("T")

app = typer.Typer(help="Erase users' contact data.", no_args_is_help=True)


@app.command()
def erase(
    user: str = typer.Argument(help="The user_id of the orders, as their callers gave it."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    output: Format = typer.Option(Format.TABLE, "-o", "--output"),
) -> None:
    """Clear a user's e-mail addresses, phone numbers and labels in PostgreSQL, for good. Safe to repeat.

    Orders that were placed until now go on without them: they are charged and shipped, and nobody is told. The topics
    forget by their retention: see docs/privacy.md.
    """
    if not yes:
        count = asyncio.run(_with_eraser(lambda eraser: eraser.orders_of(user)))
        typer.echo(f"Orders of this user: {count}", err=True)
        typer.confirm("Clear their contact data for good?", abort=True, err=True)
    cleared = asyncio.run(_with_eraser(lambda eraser: eraser.erase(user)))
    show([{"table": table, "cleared": rows} for table, rows in cleared.items()], output, empty="")


async def _with_eraser(action: "Callable[[Eraser], Awaitable[T]]") -> T:
    from messaging.topics import DEAD_LETTERS
    from storage import migrate
    from storage.database import Database
    from storage.eraser import Eraser

    loaded = settings.load()
    await migrate.require_this_version(loaded.database)
    database = Database(loaded.database, application="privacy")
    await database.open()
    try:
        return await action(Eraser(database, dead_letter_topic=DEAD_LETTERS.name))
    finally:
        await database.close()
