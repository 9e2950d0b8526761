"""Waiting for what a process needs before it begins: processes may be started in any order."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiokafka.errors import KafkaError

from domain.failures import DependencyDown
from settings import DatabaseSettings
from storage import migrate
from storage.database import AWAY
from telemetry import logs, process

log = logs.get()

_FIRST_PAUSE_SECONDS: Final = 0.1
"""Not long, for who starts together with Kafka."""
_LONGEST_PAUSE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 15.0


async def wait(look: Callable[[], Awaitable[str]], *, worker: str, stop: asyncio.Event) -> bool:
    """Waits until `look`, which returns what there is to wait for, returns nothing. False: told to stop before."""
    pause = _FIRST_PAUSE_SECONDS
    while not stop.is_set():
        try:
            # A look at Kafka may wait for as long as it is away, and hears no stop.
            async with asyncio.timeout(_LOOK_SECONDS):
                waits_for = await look()
        except (KafkaError, DependencyDown, *AWAY) as error:
            waits_for = repr(error)
        if not waits_for:
            return True
        log.warning("worker.waiting", worker=worker, waits_for=waits_for)
        await process.pause(stop, pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return False


async def migrations(settings: DatabaseSettings) -> str:
    """Returns what to wait for if the database lacks migrations of this version, else nothing.

    Raises:
        MigrationError: it has some that this version does not know.
    """
    return "migrations: run `orderflow db migrate`" if await migrate.pending(settings) else ""
