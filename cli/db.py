"""`orderflow db`: the database's migrations, what it need not keep any longer, and what a restore has lost."""

import asyncio
import datetime
import time
from typing import TYPE_CHECKING, Final

import typer

import settings
from cli.output import Format, show
from cli.restored import restored

if TYPE_CHECKING:
    from settings import Settings

app = typer.Typer(
    help="Plan and apply the database's migrations, purge it, and resume after a restore.", no_args_is_help=True
)
app.command()(restored)

_PROGRESS_SECONDS: Final = 5.0


@app.command()
def plan() -> None:
    """Print the SQL that `migrate` would run."""
    from storage import migrate as migrations

    for migration in asyncio.run(migrations.pending(settings.load().database)):
        typer.echo(f"-- {migration.name}\n{migration.sql}")


@app.command()
def migrate() -> None:
    """Apply what is pending."""
    from storage import migrate as migrations

    applied = asyncio.run(migrations.migrate(settings.load().database))
    for migration in applied:
        typer.echo(f"applied {migration.name}", err=True)
    if not applied:
        typer.echo("The database is up to date.", err=True)


@app.command()
def purge(
    dry_run: bool = typer.Option(False, "--dry-run", help="Count, and change nothing."),
    output: Format = typer.Option(Format.TABLE, "-o", "--output"),
) -> None:
    """Delete what is older than ORDERFLOW_RETENTION_... say. Settled orders leave a tombstone, the money stays.

    Safe while everything runs, and safe to break off.
    """
    from cli.retention import refuse_short

    loaded = settings.load()
    refuse_short(loaded)
    gone = asyncio.run(_purge(loaded, dry_run=dry_run))
    done = "would_go" if dry_run else "purged"
    show([{"table": table, done: rows} for table, rows in gone.items()], output, empty="")


async def _purge(loaded: "Settings", *, dry_run: bool) -> dict[str, int]:
    from messaging import topics
    from storage import migrate as migrations
    from storage.database import Database
    from storage.purge import Purge

    await migrations.require_this_version(loaded.database)
    database = Database(loaded.database, application="purge")
    await database.open()
    try:
        handed_on = topics.longest_kept(loaded.kafka.retry_delay_seconds)
        return await Purge(
            database,
            days=loaded.retention.days,
            handed_on=handed_on,
            now=lambda: datetime.datetime.now(datetime.UTC),
            dry_run=dry_run,
            progress=_Progress(),
        ).run()
    finally:
        await database.close()


class _Progress:
    """Tells how far it is, every few seconds and at the end of each table."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, table: str, done: int, pages: int, rows: int) -> None:
        if done == pages or time.monotonic() - self._told > _PROGRESS_SECONDS:
            self._told = time.monotonic()
            typer.echo(f"{table}: {done} of {pages} pages read, {rows} rows", err=True)
