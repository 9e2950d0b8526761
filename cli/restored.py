"""`orderflow db restored`: what has to be done after the database was restored, before any worker starts."""

import asyncio
import dataclasses
import datetime
from typing import TYPE_CHECKING, Final

import typer

import settings
from cli.output import Format, show

if TYPE_CHECKING:
    from messaging.rewind import Rewound
    from settings import Settings

_INTENTS_REACH: Final = datetime.timedelta(days=2)
"""An intent may have been made so long before it was stored: gateways remember a key for a day."""
_CLOCKS: Final = datetime.timedelta(hours=1)
"""So much the gateway's may be ahead, and more."""


def restored(output: Format = typer.Option(Format.TABLE, "-o", "--output")) -> None:
    """Record that the database was restored and has lost commits, and take the consumer groups back to them.

    Until every worker is stopped it refuses. From then on nothing is charged or refunded of orders placed until now
    before the gateway was asked what it has. Repeating it is harmless.
    """
    rows = asyncio.run(_restored(settings.load()))
    show([dataclasses.asdict(row) for row in rows], output, empty="No group has been started yet.")
    if any(row.gone for row in rows):
        typer.echo("Kafka has deleted records that nobody may have handled: see docs/upgrades.md.", err=True)


async def _restored(loaded: "Settings") -> "list[Rewound]":
    from messaging import rewind
    from storage import migrate
    from storage.database import Database
    from storage.restores import Restores
    from workers.gateways import choice

    await migrate.require_this_version(loaded.database)
    await rewind.require_stopped(loaded.kafka)
    # Two of its questions read whole tables.
    unhurried = loaded.database.model_copy(update={"command_timeout": 3600.0})
    database = Database(unhurried, application="restored")
    await database.open()
    try:
        restores = Restores(database)
        now = datetime.datetime.now(datetime.UTC)
        since = (await restores.restored_to() or now - _longest_kept(loaded)) - _INTENTS_REACH
        await restores.record(await choice.charges(loaded, database, since, now + _CLOCKS))
        return await rewind.rewind(loaded.kafka, await restores.handled())
    finally:
        await database.close()


def _longest_kept(loaded: "Settings") -> datetime.timedelta:
    from messaging import topics

    return topics.longest_kept(loaded.kafka.retry_delay_seconds)
