"""Which intent of the gateway stands for a payment's key: stored before it is confirmed (semantics 21)."""

from storage.database import Database


class PaymentIntents:
    """Keeps the ids beside the payments. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def find(self, key: str) -> str | None:
        """Returns the id that is stored under the key, closed or not."""
        async with self._database.connection() as connection:
            found: str | None = await connection.fetchval(
                "select gateway_intent from payments where idempotency_key = $1", key
            )
        return found

    async def store(self, key: str, intent_id: str) -> str | None:
        """Stores an id if none is, and returns the one that is. None: the key was closed before."""
        async with self._database.connection() as connection:
            stored: str | None = await connection.fetchval(
                "update payments set gateway_intent = coalesce(gateway_intent, $2)"
                " where idempotency_key = $1 and not gateway_closed returning gateway_intent",
                key,
                intent_id,
            )
        return stored

    async def close(self, key: str) -> str | None:
        """Closes the key for good, so that no id is stored under it from now on. Returns the one that is."""
        async with self._database.connection() as connection:
            stored: str | None = await connection.fetchval(
                "update payments set gateway_closed = true where idempotency_key = $1 returning gateway_intent", key
            )
        return stored
