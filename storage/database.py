"""PostgreSQL: the pool, transactions, and which errors mean that it is away."""

import asyncio
import contextlib
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final

import asyncpg

from domain.failures import DependencyDown
from settings import DatabaseSettings
from storage.turns import Turns
from telemetry import metrics, tracing
from telemetry.tracing import Span

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

# Nobody's fault, so no attempt is used (semantics 23): the database is away, or too busy to decide this now.
AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what giving a connection back may raise that was lost in the middle of an answer
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ReadOnlySQLTransactionError,
)


async def _keep(_: object) -> None:
    """Resets nothing of a session that is given back; asyncpg ends an open transaction before.

    All that is set here is set for one transaction: `set local`, `pg_advisory_xact_lock`. asyncpg's own reset would be
    a round trip more for each query.
    """


class Database:
    """A pool of connections. Nothing connects before the first use, so a process can start while PostgreSQL is away."""

    def __init__(self, settings: DatabaseSettings, *, application: str, of_many: bool = False) -> None:
        """`application` is what pg_stat_activity shows. `of_many`: statements are each about many rows."""
        self._settings = settings
        # A plan made while the tables were small would be kept, and read the whole of them when they are not. And so
        # would one that takes a look by an index for a seek on a disk: what they are about was written a moment ago.
        self._plans = {"plan_cache_mode": "force_custom_plan", "random_page_cost": "1.1"} if of_many else {}
        self._application = application
        self._pool: Pool | None = None
        self._turns = Turns(settings.pool_size)
        self._answered = 0.0
        name = urllib.parse.urlsplit(settings.url.get_secret_value()).path.lstrip("/") or "postgresql"
        self._spans = {
            operation: (
                f"{operation} {name}",
                {"db.system.name": "postgresql", "db.namespace": name, "db.operation.name": operation},
            )
            for operation in ("transaction", "query")
        }

    async def open(self) -> None:
        """Makes the pool; connects nothing."""
        self._pool = await asyncpg.create_pool(
            self._settings.url.get_secret_value(),
            min_size=0,
            max_size=self._settings.pool_size,
            timeout=self._settings.connect_timeout,
            command_timeout=self._settings.command_timeout,
            reset=_keep,
            server_settings={
                "application_name": f"orderflow {self._application}",
                # A process that is stopped in the middle of a transaction must not keep its row locks.
                "idle_in_transaction_session_timeout": "10000",
                "lock_timeout": str(int(self._settings.command_timeout * 800)),
                "statement_timeout": str(int(self._settings.command_timeout * 1000)),
                "timezone": "UTC",
                **self._plans,
            },
        )
        pool = self._pool
        metrics.DB_CONNECTIONS.labels("used").set_function(lambda: pool.get_size() - pool.get_idle_size())
        metrics.DB_CONNECTIONS.labels("idle").set_function(pool.get_idle_size)
        metrics.DB_WAITING.set_function(lambda: self._turns.waiting)

    async def close(self) -> None:
        """Closes the pool, for what is checked out within a second."""
        if self._pool is not None:
            try:
                async with asyncio.timeout(1.0):
                    await self._pool.close()
            except TimeoutError:
                self._pool.terminate()

    def span(self, operation: str) -> "contextlib.AbstractContextManager[Span]":
        """Shows what the body does as an operation on the database, in the current span if there is one."""
        return tracing.client(*self._spans[operation])

    @contextlib.contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        started, error_type = time.perf_counter(), ""
        try:
            with self.span(operation):
                yield
        except DependencyDown as down:
            error_type = down.message.removeprefix("postgres: ")  # the class of an error
            raise
        finally:
            metrics.DB_DURATION.labels("postgresql", operation, error_type).observe(time.perf_counter() - started)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator["Connection"]:
        """Lends a connection.

        Raises:
            DependencyDown: PostgreSQL is away or too busy. What was in flight may or may not have been committed.
        """
        with self._measured("query"):
            async with self._lent() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def _lent(self) -> AsyncIterator["Connection"]:
        """Lends a connection.

        Raises:
            DependencyDown: PostgreSQL is away or too busy. What was in flight may or may not have been committed.
        """
        assert self._pool is not None, "Database.open was not called"
        try:
            async with self._turn(), self._acquired() as connection:
                yield connection
                self._answered = asyncio.get_running_loop().time()
        except AWAY as error:
            raise DependencyDown("postgres", type(error).__name__) from error

    @contextlib.asynccontextmanager
    async def _acquired(self) -> AsyncIterator["Connection"]:
        """Lends a connection of the pool. A server that takes in nobody, whatever its reason, is away."""
        assert self._pool is not None
        try:
            connection = await self._pool.acquire(timeout=self._settings.connect_timeout)
        except asyncpg.PostgresError as error:
            raise DependencyDown("postgres", type(error).__name__) from error
        try:
            yield connection
        finally:
            await self._pool.release(connection)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits for one of the pool's connections to be free: first come, first served, which the pool is not.

        A long queue before connections that are answered is no outage.

        Raises:
            TimeoutError: nobody was answered for as long as a connection may take to open.
        """
        await self._turns.take(seconds=self._settings.connect_timeout, goes_on=lambda asked: self._answered >= asked)
        try:
            yield
        finally:
            self._turns.give_back()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator["Connection"]:
        """Lends a connection inside a transaction, committed unless the body raises.

        Raises:
            DependencyDown: as `connection`.
        """
        with self._measured("transaction"):
            async with self._lent() as connection, connection.transaction():
                yield connection
