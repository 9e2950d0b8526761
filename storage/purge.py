"""Purges what is older than it has to be kept, table by table, a few pages at a time (semantics 34).

Invariants:
- A transaction covers some pages of one table: it is short. An order that somebody has in hand is left for a later run.
- An order goes with its view and its history, and leaves its tombstone, in one transaction that holds its row.
- The money stays: payments, payment_entries and refunds are not purged. Nor is which request_id was which order, nor
  stock, prices and what was changed of them.
"""

import dataclasses
import datetime
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from domain.lifecycle import CALLED_OFF, SETTLED
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.orders.v1.order_pb2 import OrderStatus
from storage.database import Database

if TYPE_CHECKING:
    from storage.database import Connection

_PAGES: Final = 128  # of 8 KiB: a thousand rows or so
_LETTERS: Final = 500
_SETTLED: Final = sorted(SETTLED)
_CALLED_OFF: Final = f"({', '.join(map(str, sorted(CALLED_OFF)))})"
_OPEN: Final = f"({OrderStatus.ORDER_STATUS_CREATED}, {OrderStatus.ORDER_STATUS_PROCESSING})"

Progress = Callable[[str, int, int, int], None]
"""Is told the table, how many of its pages are done, how many there are, and how many rows went so far."""


@dataclasses.dataclass(frozen=True)
class Page:
    """Some pages of a table, from `begins` up to `ends`, and the time before which its rows go."""

    connection: "Connection"
    begins: str
    ends: str
    before: datetime.datetime

    async def count(self, table: str, condition: str, *values: object) -> int:
        """Returns how many rows meet the condition, in which $3 is the time and $4 the first of the values."""
        sql = f"select count(*) from {_of_page(table, condition)}"  # noqa: S608 - constants
        return int(await self.connection.fetchval(sql, *self._all(values)))

    async def delete(self, table: str, condition: str, *values: object) -> int:
        """Deletes them. Returns how many there were."""
        sql = f"delete from {_of_page(table, condition)}"  # noqa: S608 - constants
        return _rows(await self.connection.execute(sql, *self._all(values)))

    async def locked_orders(self) -> list[str]:
        """Returns the settled orders that have not changed since, their rows locked; without those in use."""
        sql = f"select order_id from {_of_page('orders', _OLD_ORDER)} order by order_id for update skip locked"  # noqa: S608
        rows = await self.connection.fetch(sql, *self._all((_SETTLED,)))
        return [str(row["order_id"]) for row in rows]

    async def column(self, table: str, column: str, condition: str, *values: object) -> list[object]:
        """Returns a column of the rows that meet the condition."""
        sql = f"select {column} from {_of_page(table, condition)}"  # noqa: S608 - constants
        return [row[0] for row in await self.connection.fetch(sql, *self._all(values))]

    def _all(self, values: Sequence[object]) -> list[object]:
        return [self.begins, self.ends, self.before, *values]


def _of_page(table: str, condition: str) -> str:
    return f"{table} where {table}.ctid >= $1::text::tid and {table}.ctid < $2::text::tid and {condition}"


def _rows(status: str) -> int:
    return int(status.rpartition(" ")[2])


def _no_letter(order_id: str, since: str) -> str:
    """Returns the SQL of: the order has no dead letter that is open, or that was resolved after a time."""
    return (
        "not exists (select from dead_letters left join dead_letter_resolutions as resolved"
        " using (partition, record_offset)"
        f" where dead_letters.order_id = {order_id}"
        f" and (resolved.state is null or resolved.resolve_time >= {since}))"
    )


_OLD_ORDER: Final = "orders.status = any($4::smallint[]) and orders.update_time < $3"
# A charge or a refund that is open, or due, wants the row.
_MONEY_IS_SETTLED: Final = (
    "not exists (select from payments where payments.order_id = orders.order_id"  # noqa: S608
    " and (payments.state in ('intended', 'unknown') or payments.refund_due"
    f" or orders.status in {_CALLED_OFF} and payments.state = 'captured'"
    " and payments.amount_minor > coalesce((select sum(refunds.amount_minor) from refunds"
    " where refunds.order_id = payments.order_id and refunds.state <> 'refused'), 0)))"
    " and not exists (select from refunds where refunds.order_id = orders.order_id and refunds.state = 'intended')"
)
# Its ORDER_CREATED was discarded, or nobody of ours wrote it.
_OLD_VIEW: Final = (
    "order_views.create_time < $3"
    " and not exists (select from orders where orders.order_id = order_views.order_id)"
    f" and {_no_letter('order_views.order_id', '$4')}"
)
_OLD_EVENT: Final = (
    "order_events.occur_time < $3 and not exists (select from orders"
    f" where orders.order_id = order_events.order_id and orders.status in {_OPEN})"
)
_OLD_OUTCOME: Final = (
    "outcomes.stored_time < $3 and not exists (select"
    " from unnest($4::text[], $5::text[], $6::integer[], $7::bigint[])"
    " as kept (kept_group, kept_topic, kept_partition, kept_offset)"
    " where kept_group = outcomes.group_name and kept_topic = outcomes.topic"
    " and kept_partition = outcomes.partition and kept_offset = outcomes.record_offset)"
)
_RESOLVED_LONG_AGO: Final = (
    "dead_letters.recorded_time < $3 and exists (select from dead_letter_resolutions as resolved"
    " where resolved.partition = dead_letters.partition and resolved.record_offset = dead_letters.record_offset"
    " and resolved.resolve_time < $3)"
)
_BY_TIME: Final = {
    "notification_intents": "intent_time < $3",
    "command_answers": "answer_time < $3",
    "projection_failures": "recorded_time < $3",
    "replay_claims": "claim_time < $3",
    "erasures": "erase_time < $3",
    "erased_records": "erase_time < $3",
}


class Purge:
    """Purges. Every method raises DependencyDown; what was done by then stays done."""

    def __init__(
        self,
        database: Database,
        *,
        days: Mapping[str, int],
        handed_on: datetime.timedelta,
        now: Callable[[], datetime.datetime],
        dry_run: bool,
        progress: Progress,
    ) -> None:
        """Uses the database's pool.

        `days` says how long the rows of each table are kept, `handed_on` how long a replayed record may be under
        way: so long a dead letter that was resolved counts as open. With `dry_run` it counts, and changes nothing.
        """
        self._database = database
        self._days = days
        self._way = handed_on
        self._now = now
        self._dry_run = dry_run
        self._progress = progress

    async def run(self) -> dict[str, int]:
        """Purges all tables. Returns how many rows went, or would go, from each.

        With an order go its view and its history, which are not counted; order_views are those without an order.
        """
        kept = await self._kept_outcomes()
        gone = {
            "orders": await self._pass("orders", self._orders),
            "order_views": await self._pass("order_views", self._views),
            "order_events": await self._pass("order_events", self._rows_of("order_events", _OLD_EVENT)),
            "outcomes": await self._pass("outcomes", self._rows_of("outcomes", _OLD_OUTCOME, *kept)),
            "dead_letters": await self._pass("dead_letters", self._dead_letters),
            "replay_plans": await self._pass("replay_plans", self._replay_plans),
        }
        for table, condition in _BY_TIME.items():
            gone[table] = await self._pass(table, self._rows_of(table, condition))
        return gone

    async def _pass(self, table: str, purge: Callable[[Page], Awaitable[int]]) -> int:
        """Goes through a table once, from its first page to its last."""
        async with self._database.connection() as connection:
            pages: int = await connection.fetchval(
                "select pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint", table
            )
        before = self._now() - datetime.timedelta(days=self._days[table])
        gone = 0
        for begins in range(0, pages, _PAGES):
            ends = begins + _PAGES
            async with self._database.transaction() as connection:
                gone += await purge(Page(connection, f"({begins},0)", f"({ends},0)", before))
            self._progress(table, min(ends, pages), pages, gone)
        return gone

    def _rows_of(self, table: str, condition: str, *values: object) -> Callable[[Page], Awaitable[int]]:
        """Returns the purge of a table whose rows go by themselves."""

        async def purge(page: Page) -> int:
            return await (page.count if self._dry_run else page.delete)(table, condition, *values)

        return purge

    def _handed_on(self) -> datetime.datetime:
        return self._now() - self._way

    async def _orders(self, page: Page) -> int:
        released = f"{_no_letter('orders.order_id', '{since}')} and {_MONEY_IS_SETTLED}"
        if self._dry_run:
            condition = f"{_OLD_ORDER} and {released.format(since='$5')}"
            return await page.count("orders", condition, _SETTLED, self._handed_on())
        locked = await page.locked_orders()
        # A statement of its own, which sees what was committed before the rows were locked: an intent is stored under
        # the order's lock, so that from now on there is no new one.
        rows = await page.connection.fetch(
            f"select order_id from orders where order_id = any($1::uuid[]) and {released.format(since='$2')}",  # noqa: S608
            locked,
            self._handed_on(),
        )
        gone = [row["order_id"] for row in rows]
        if gone:
            await page.connection.execute(
                "insert into order_tombstones (order_id, caller, status, revision)"
                " select order_id, caller, status, revision from orders where order_id = any($1::uuid[])"
                " on conflict do nothing",
                gone,
            )
            await page.connection.execute("delete from order_events where order_id = any($1::uuid[])", gone)
            await page.connection.execute("delete from order_views where order_id = any($1::uuid[])", gone)
            await page.connection.execute("delete from orders where order_id = any($1::uuid[])", gone)
        return len(gone)

    async def _views(self, page: Page) -> int:
        """Purges orders that never got a row."""
        if self._dry_run:
            return await page.count("order_views", _OLD_VIEW, self._handed_on())
        gone = await page.column("order_views", "order_id", _OLD_VIEW, self._handed_on())
        if gone:
            await page.connection.execute(
                "insert into order_tombstones (order_id, caller, status, revision)"
                " select order_id, caller, status, revision from order_views where order_id = any($1::uuid[])"
                " on conflict do nothing",
                gone,
            )
            await page.connection.execute("delete from order_events where order_id = any($1::uuid[])", gone)
            await page.connection.execute("delete from order_views where order_id = any($1::uuid[])", gone)
        return len(gone)

    async def _dead_letters(self, page: Page) -> int:
        if self._dry_run:
            return await page.count("dead_letters", _RESOLVED_LONG_AGO)
        status = await page.connection.execute(
            f"with gone as (delete from {_of_page('dead_letters', _RESOLVED_LONG_AGO)}"  # noqa: S608
            " returning partition, record_offset) delete from dead_letter_resolutions as resolved using gone"
            " where resolved.partition = gone.partition and resolved.record_offset = gone.record_offset",
            page.begins,
            page.ends,
            page.before,
        )
        return _rows(status)

    async def _replay_plans(self, page: Page) -> int:
        if self._dry_run:
            return await page.count("replay_plans", "create_time < $3")
        plans = await page.column("replay_plans", "plan_id", "create_time < $3")
        await page.connection.execute("delete from replay_plan_items where plan_id = any($1::uuid[])", plans)
        await page.connection.execute("delete from replay_plans where plan_id = any($1::uuid[])", plans)
        return len(plans)

    async def _kept_outcomes(self) -> tuple[list[str], list[str], list[int], list[int]]:
        """Returns whose outcomes are still wanted: group, topic, partition and offset of what dead letters stem from.

        A replay of one that its group had decided finds its outcome, however old it is.
        """
        groups: list[str] = []
        topics: list[str] = []
        partitions: list[int] = []
        offsets: list[int] = []
        after = -1, -1
        while True:
            async with self._database.connection() as connection:
                rows = await connection.fetch(
                    "select partition, record_offset, group_name, dead_letter from dead_letters"
                    " left join dead_letter_resolutions as resolved using (partition, record_offset)"
                    " where (partition, record_offset) > ($1, $2)"
                    " and (resolved.state is null or resolved.resolve_time >= $3)"
                    " order by partition, record_offset limit $4",
                    *after,
                    self._handed_on(),
                    _LETTERS,
                )
            if not rows:
                return groups, topics, partitions, offsets
            after = rows[-1]["partition"], rows[-1]["record_offset"]
            for row in rows:
                origin = DeadLetter.FromString(row["dead_letter"]).origin
                groups.append(row["group_name"])
                topics.append(origin.topic)
                partitions.append(origin.partition)
                offsets.append(origin.offset)
