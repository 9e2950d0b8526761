"""Which intent of the gateway stands for a payment's key: stored before it is confirmed (semantics 21)."""

from typing import Final

from storage.database import Database

# What was found at the gateway after a restore of the database stands for what the payment's row has lost.
_FOUND: Final = "(select gateway_intent from found_charges where idempotency_key = $1)"


class PaymentIntents:
    """Keeps the ids beside the payments. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def find(self, key: str) -> str | None:
        """Returns the id that is stored under the key, closed or not."""
        async with self._database.connection() as connection:
            found: str | None = await connection.fetchval(
                "select coalesce((select gateway_intent from payments where idempotency_key = $1),"  # noqa: S608
                f" {_FOUND})",
                key,
            )
        return found

    async def store(self, key: str, intent_id: str) -> str | None:
        """Stores an id if none is, and returns the one that is. None: the key was closed before."""
        async with self._database.connection() as connection:
            stored: str | None = await connection.fetchval(
                f"update payments set gateway_intent = coalesce(gateway_intent, {_FOUND}, $2)"  # noqa: S608
                " where idempotency_key = $1 and not gateway_closed returning gateway_intent",
                key,
                intent_id,
            )
        return stored

    async def close(self, key: str) -> str | None:
        """Closes the key for good, so that no id is stored under it from now on. Returns the one that is."""
        async with self._database.connection() as connection:
            stored: str | None = await connection.fetchval(
                "update payments set gateway_closed = true,"  # noqa: S608 - a constant
                f" gateway_intent = coalesce(gateway_intent, {_FOUND})"
                " where idempotency_key = $1 returning gateway_intent",
                key,
            )
        return stored
