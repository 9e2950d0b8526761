"""Which consumer groups have been started (semantics 18)."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from storage.database import Database

if TYPE_CHECKING:
    from storage.database import Connection


class GroupRegistration:
    """One group's registration. Implements messaging.groups.Registration."""

    def __init__(self, connection: "Connection", group: str) -> None:
        """Lives inside the transaction that holds the group's lock."""
        self._connection = connection
        self._group = group

    async def is_known(self, topic: str) -> bool:
        """Whether the group was started on the topic before."""
        return bool(
            await self._connection.fetchval(
                "select true from consumer_groups where group_name = $1 and topic = $2", self._group, topic
            )
        )

    async def remember(self, topic: str) -> None:
        """Records that it was."""
        await self._connection.execute(
            "insert into consumer_groups (group_name, topic) values ($1, $2)", self._group, topic
        )


class ConsumerGroups:
    """Implements messaging.groups.GroupRegistry."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    @contextlib.asynccontextmanager
    async def registration(self, group: str) -> AsyncIterator[GroupRegistration]:
        """Opens a group's registration, one process at a time.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.transaction() as connection:
            # The first start talks to Kafka while it holds this.
            await connection.execute("set local idle_in_transaction_session_timeout = '60s'")
            await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", f"group:{group}")
            yield GroupRegistration(connection, group)
