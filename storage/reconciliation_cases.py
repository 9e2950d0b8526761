"""What reconciliations have found, and how far they have come."""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from typing import Any, Final

from domain.reconciliation import Case, Difference, Kind, Movement
from storage.database import Database

_REMEMBERED: Final = datetime.timedelta(days=30)
"""How long a case is kept that is resolved."""


class ReconciliationCases:
    """Cases, one for each order. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def of(self, order_ids: Sequence[str]) -> dict[str, Case]:
        """Returns the cases that there are of the orders, resolved ones too: those have no differences."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select order_id, movements, differences from reconciliation_cases where order_id = any($1)", order_ids
            )
        return {row["order_id"]: _case(row["order_id"], row["movements"], row["differences"]) for row in rows}

    async def open(self, *, after: str, most: int) -> list[str]:
        """Returns a page of the orders that have differences, by their ids, beginning after one."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select order_id from reconciliation_cases where resolved_time is null and order_id > $1"
                " order by order_id limit $2",
                after,
                most,
            )
        return [row["order_id"] for row in rows]

    async def save(self, cases: Sequence[Case], *, now: datetime.datetime) -> None:
        """Stores cases. One without differences is resolved."""
        async with self._database.connection() as connection:
            await connection.executemany(
                "insert into reconciliation_cases as had (order_id, movements, differences, found_time, resolved_time)"
                " values ($1, $2, $3, $4, $5) on conflict (order_id) do update set movements = excluded.movements,"
                " differences = excluded.differences, resolved_time = excluded.resolved_time,"
                " found_time = case when had.resolved_time is null then had.found_time else excluded.found_time end",
                [
                    (
                        case.order_id,
                        json.dumps([_written(each) for each in case.movements]),
                        json.dumps([dataclasses.asdict(each) for each in case.differences]),
                        now,
                        None if case.differences else now,
                    )
                    for case in sorted(cases, key=lambda case: case.order_id)
                ],
            )

    async def counts(self) -> dict[Kind, int]:
        """Returns how many differences there are of each kind, 0 included."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select difference->>'kind' as kind, count(*) as count from reconciliation_cases,"
                " jsonb_array_elements(differences) as difference where resolved_time is null group by 1"
            )
        counted = {row["kind"]: row["count"] for row in rows}
        return {kind: counted.get(kind.value, 0) for kind in Kind}

    async def reconciled_until(self) -> datetime.datetime | None:
        """Returns up to when everything has been compared; None: nothing has."""
        async with self._database.connection() as connection:
            until: datetime.datetime | None = await connection.fetchval(
                "select reconciled_until from reconciliation_progress"
            )
        return until

    async def advance(self, until: datetime.datetime) -> None:
        """Stores that everything up to then has been compared, and forgets cases that were resolved long before."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "insert into reconciliation_progress as known (reconciled_until) values ($1) on conflict (only_one)"
                " do update set reconciled_until = greatest(known.reconciled_until, excluded.reconciled_until)",
                until,
            )
            await connection.execute(
                "delete from reconciliation_cases where resolved_time < $1",
                until - _REMEMBERED,
            )


def _written(movement: Movement) -> dict[str, Any]:
    return {**dataclasses.asdict(movement), "time": movement.time.isoformat()}


def _case(order_id: str, movements: str, differences: str) -> Case:
    return Case(
        order_id,
        tuple(
            Movement(**{**each, "time": datetime.datetime.fromisoformat(each["time"])})
            for each in json.loads(movements)
        ),
        tuple(Difference(**{**each, "kind": Kind(each["kind"])}) for each in json.loads(differences)),
    )
