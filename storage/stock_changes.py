"""Changes that operators make to stock and prices: each is kept, and one that is repeated is made once."""

import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from storage.database import Database
from telemetry import logs

if TYPE_CHECKING:
    from storage.database import Connection

log = logs.get()


@dataclasses.dataclass(frozen=True)
class Origin:
    """Who changes something, and why. With a `request_id` the change is safe to repeat."""

    by: str
    reason: str = ""
    request_id: str = ""


@dataclasses.dataclass(frozen=True)
class Change:
    """What is changed. `quantity` are units, or a price in the currency's minor unit."""

    kind: Literal["set_stock", "adjust_stock", "set_price", "remove_price"]
    sku: str
    quantity: int | None = None
    currency_code: str = ""


class ChangeRequestIdReusedError(Exception):
    """The request_id belongs to another change of the same operator."""


async def make_once(
    database: Database,
    change: Change,
    origin: Origin,
    make: Callable[["Connection"], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """Makes a change and keeps it with what it led to, all or nothing; returns that, a repeat what was kept.

    Raises:
        ChangeRequestIdReusedError: the origin's request_id was used for something else.
        DependencyDown: PostgreSQL is away.
    """
    async with database.transaction() as connection:
        # First, so that a repeat which comes meanwhile waits here, and then finds what is kept.
        change_id = await connection.fetchval(
            "insert into stock_changes (changed_by, request_id, kind, sku, quantity, currency_code, reason, level)"
            " values ($1, $2, $3, $4, $5, $6, $7, '{}') on conflict (changed_by, request_id) do nothing"
            " returning change_id",
            origin.by,
            origin.request_id or None,
            change.kind,
            change.sku,
            change.quantity,
            change.currency_code,
            origin.reason,
        )
        if change_id is None:
            return await _kept(connection, change, origin)
        level = await make(connection)
        await connection.execute(
            "update stock_changes set level = $2 where change_id = $1", change_id, json.dumps(level)
        )
    log.info("stock.changed", kind=change.kind, sku=change.sku, change_id=change_id, by=origin.by)
    return level


async def _kept(connection: "Connection", change: Change, origin: Origin) -> dict[str, Any]:
    row = await connection.fetchrow(
        "select kind, sku, quantity, currency_code, reason, level from stock_changes"
        " where changed_by = $1 and request_id = $2",
        origin.by,
        origin.request_id,
    )
    assert row is not None, "a change that was in the way is gone"
    kept = Change(row["kind"], row["sku"], row["quantity"], row["currency_code"])
    if (kept, row["reason"]) != (change, origin.reason):
        raise ChangeRequestIdReusedError
    level: dict[str, Any] = json.loads(row["level"])
    return level
