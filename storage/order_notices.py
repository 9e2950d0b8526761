"""The projector's notice of orders that changed, and who listens to it: PostgreSQL's NOTIFY and LISTEN."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NoReturn

import asyncpg

from settings import DatabaseSettings
from storage.database import AWAY
from telemetry import logs

if TYPE_CHECKING:
    from storage.database import Connection

log = logs.get()

_CHANNEL: Final = "orderflow_orders"
_IDS: Final = 200  # of 36 characters and a space: a notice holds less than 8,000 bytes
_PROBE_SECONDS: Final = 10.0
_RECONNECT_SECONDS: Final = 0.5


async def notify(connection: "Connection", order_ids: Iterable[str]) -> None:
    """Tells who listens, when the transaction commits, that the orders changed."""
    distinct = iter(dict.fromkeys(order_ids))
    payloads = []
    while chunk := list(itertools.islice(distinct, _IDS)):
        payloads.append(" ".join(chunk))
    if payloads:
        await connection.execute("select pg_notify($1, payload) from unnest($2::text[]) as payload", _CHANNEL, payloads)


class OrderNotices:
    """Listens on one connection of its own, outside of the pool, which resets what it lends."""

    def __init__(self, settings: DatabaseSettings, *, application: str) -> None:
        """Connects nothing. `application` is what pg_stat_activity shows."""
        self._settings = settings
        self._application = application

    async def listen(self, *, changed: Callable[[Iterable[str]], None], missed: Callable[[], None]) -> NoReturn:
        """Calls `changed` with the orders of each notice, and `missed` when there may have been one that was not heard.

        Goes on for ever: a connection that is lost is replaced.
        """
        listening = False
        while True:
            lost = asyncio.Event()
            try:
                connection = await asyncpg.connect(
                    self._settings.url.get_secret_value(),
                    timeout=self._settings.connect_timeout,
                    command_timeout=self._settings.command_timeout,
                    server_settings={"application_name": f"orderflow {self._application} notices"},
                )
                try:
                    connection.add_termination_listener(lambda _, lost=lost: lost.set())
                    await connection.add_listener(_CHANNEL, lambda *notice: changed(str(notice[3]).split()))
                    log.info("notices.listening")
                    listening = True
                    missed()
                    await self._until_lost(connection, lost)
                finally:
                    connection.terminate()
            except (*AWAY, asyncpg.PostgresError) as error:
                reason = type(error).__name__
            else:
                reason = "closed"
            if listening:
                listening = False
                log.warning("notices.lost", error=reason)
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _until_lost(self, connection: "asyncpg.Connection[asyncpg.Record]", lost: asyncio.Event) -> None:
        """Returns when the connection ends. One that silently leads nowhere is found by asking.

        Raises:
            Exception: one of AWAY.
        """
        while not lost.is_set():
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    await lost.wait()
            except TimeoutError:
                await connection.execute("select 1")
