"""What is booked of orders' money, and what the orders say of it: what a reconciliation reads."""

import datetime
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal

from domain.reconciliation import Account, Entry
from storage import order_rows
from storage.database import Database

_PAGE: Final = 1_000

_BOOKED: Final = (
    "select entry_time as time, entry_id as id, order_id from payment_entries"
    " where entry_time >= $1 and entry_time < $2 and (entry_time, entry_id) > ($3, $4)"
    " order by entry_time, entry_id limit $5"
)
# The statuses stand in the text and not in parameters: only so PostgreSQL knows that the partial index has all of them.
_SAID_PAID: Final = (
    "select update_time as time, order_id as id, order_id from orders"
    " where (status in (4, 6, 7, 10) or payment_status in (4, 6, 7))"
    " and update_time >= $1 and update_time < $2 and (update_time, order_id) > ($3, $4)"
    " order by update_time, order_id limit $5"
)
_FIRST: Final[dict[str, object]] = {_BOOKED: -1, _SAID_PAID: uuid.UUID(int=0)}
_KINDS: Final[dict[str, Literal["capture", "refund"]]] = {"capture": "capture", "refund": "refund"}


class Ledger:
    """Reads; changes nothing and locks nothing. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def touched(self, since: datetime.datetime, until: datetime.datetime) -> AsyncIterator[list[str]]:
        """Yields, page by page, orders of which something was booked from `since` until before `until`.

        And those that say that they were paid and have changed then. An order may come more than once.
        """
        for query, first in _FIRST.items():
            time, last = since, first
            while True:
                async with self._database.connection() as connection:
                    rows = await connection.fetch(query, since, until, time, last, _PAGE)
                if rows:
                    yield [str(row["order_id"]) for row in rows]
                if len(rows) < _PAGE:
                    break
                time, last = rows[-1]["time"], rows[-1]["id"]

    async def accounts(self, order_ids: Sequence[str]) -> dict[str, Account]:
        """Returns the accounts of orders, all as of one moment. Those of which nothing is known here are left out."""
        asked = [each for order_id in order_ids if (each := _order_id(order_id)) is not None]
        if not asked:
            return {}
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            orders = await connection.fetch(
                f"select {order_rows.COLUMNS} from orders where order_id = any($1)",  # noqa: S608 - a constant
                asked,
            )
            payments = await connection.fetch(
                "select order_id, idempotency_key from payments where order_id = any($1)", asked
            )
            refunds = await connection.fetch(
                "select order_id, idempotency_key, state, amount_minor from refunds"
                " where order_id = any($1) and state <> 'refused'"
                " order by update_time",
                asked,
            )
            entries = await connection.fetch(
                "select order_id, kind, entry_time, gateway_reference, amount_minor, currency_code"
                " from payment_entries where order_id = any($1) order by entry_id",
                asked,
            )
        by_id = {str(row["order_id"]): order_rows.order_of(row) for row in orders}
        keys = {str(row["order_id"]): str(row["idempotency_key"]) for row in payments}
        refund_keys: dict[str, list[str]] = {}
        given_up: Counter[str] = Counter()
        for row in refunds:
            refund_keys.setdefault(str(row["order_id"]), []).append(row["idempotency_key"])
            if row["state"] == "abandoned":
                given_up[str(row["order_id"])] += row["amount_minor"]
        booked: dict[str, list[Entry]] = {}
        for row in entries:
            booked.setdefault(str(row["order_id"]), []).append(
                Entry(
                    kind=_KINDS[row["kind"]],
                    time=row["entry_time"],
                    reference=row["gateway_reference"],
                    amount_minor=row["amount_minor"],
                    currency_code=row["currency_code"],
                )
            )
        return {
            order_id: Account(
                charge_key=keys.get(order_id, ""),
                refund_keys=tuple(refund_keys.get(order_id, ())),
                entries=tuple(booked.get(order_id, ())),
                given_up=given_up[order_id],
                order=by_id.get(order_id),
            )
            for order_id in by_id.keys() | keys.keys() | booked.keys()
        }


def _order_id(text: str) -> uuid.UUID | None:
    """Returns the id of an order as we write them. None: the gateway names something else."""
    try:
        order_id = uuid.UUID(text)
    except ValueError:
        return None
    return order_id if str(order_id) == text else None
