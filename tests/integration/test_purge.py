"""What is purged, what stays of it, and that everything still holds for what remains (semantics 34)."""

import asyncio
import datetime
import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from devstack import PostgresServer
from domain.projection import ProjectionBatch
from domain.records import Coordinates, Delivery
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterFilter, DeadLetterState
from orderflow.orders.v1.order_pb2 import Money, NotificationChannel, OrderStatus
from settings import DatabaseSettings, RetentionSettings
from storage.database import Database
from storage.dead_letters import DeadLetterId, DeadLetters
from storage.known_requests import KnownRequests
from storage.notification_intents import NotificationIntents
from storage.order_commands import OrderCommands
from storage.order_decisions import OrderDecisions
from storage.order_views import OrderViews
from storage.outcomes import Settled
from storage.payment_decisions import PaymentDecisions
from storage.projection import Projection
from storage.purge import Purge
from storage.refund_decisions import RefundDecisions
from storage.replay_claims import ReplayClaims
from tests import engines
from tests.builders import CALLER, NOW, a_command, a_delivery, an_id, order_event
from tests.e2e import programs
from tests.lives import ORDER_PROCESSOR, PAYMENT_PROCESSOR, TOTAL, Life

HANDED_ON = datetime.timedelta(days=31)
KEPT = {
    "consumer_groups",
    "found_charges",
    "order_requests",
    "order_tombstones",
    "payment_entries",
    "payments",
    "prices",
    "projection_positions",
    "reconciliation_cases",  # the reconciler forgets them by itself
    "reconciliation_progress",
    "refunds",
    "restores",
    "replay_plan_items",  # with their plans
    "dead_letter_resolutions",  # with their dead letters
    "schema_migrations",
    "stock",
    "stock_changes",
    "user_hash_keys",
}
DECLINED = "pm_card_chargeDeclined"


def long_after() -> datetime.datetime:
    """A time at which all that the tests make is older than every retention."""
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1000)


async def purge(database: Database, *, dry_run: bool = False, **days: int) -> dict[str, int]:
    """Purges as if it were long after; `days` are retentions other than the default. Returns what went."""
    told: list[tuple[str, int, int]] = []
    gone = await Purge(
        database,
        days=RetentionSettings().days | days,
        handed_on=HANDED_ON,
        now=long_after,
        dry_run=dry_run,
        progress=lambda table, done, pages, _: told.append((table, done, pages)),
    ).run()
    assert all(done <= pages for _, done, pages in told)
    return gone


async def count(database: Database, table: str, condition: str = "true", *values: object) -> int:
    [row] = await engines.fetch(database, f"select count(*) from {table} where {condition}", *values)
    return int(str(row["count"]))


async def project(database: Database, life: Life, *dead: DeadLetter) -> None:
    """Projects all that was emitted, and dead letters."""
    projection = Projection(database)
    position = await projection.position("orders", 0)
    if position is None:
        await projection.begin("orders", 0, 0)
        position = 0
    batch = ProjectionBatch("orders", 0, position, position + 100)
    batch.events += [(Coordinates("orders", 0, position + n), event) for n, event in enumerate(life.emitted)]
    batch.dead_letters += [(Coordinates("dlq", 0, position + n), letter) for n, letter in enumerate(dead)]
    await projection.apply(batch)


def dead(event: OrderEvent, group: str, at: Coordinates) -> DeadLetter:
    letter = DeadLetter(key=event.order.order_id.encode(), value=event.SerializeToString(), group=group)
    letter.error_class = "TEST"
    letter.origin.topic, letter.origin.partition, letter.origin.offset = at.topic, at.partition, at.offset
    return letter


async def paid(database: Database, **fields: Any) -> Life:
    """Returns the life of an order that was paid, projected."""
    life = await Life(database).begin(**fields)
    await life.drain()
    await project(database, life)
    return life


def copy_of(event: OrderEvent, group: str) -> Delivery:
    return a_delivery(event, group=group, offset=987_654)


@pytest.fixture
def database(own_database: Database) -> Database:
    return own_database


# -- orders ------------------------------------------------------------------------------------------------------------


async def test_a_settled_order_leaves_a_tombstone_and_its_money(database: Database) -> None:
    life = await paid(database)
    level, entries, payment = await life.level(), await life.entries(), await life.payment()
    row = await life.row()
    gone = await purge(database)
    assert (gone["orders"], gone["order_views"], gone["order_events"]) == (1, 0, 0)
    for table in ("orders", "order_views", "order_events"):
        assert await count(database, table) == 0, table
    [tombstone] = await engines.fetch(database, "select order_id::text, caller, status, revision from order_tombstones")
    assert tombstone == {"order_id": life.order_id, "caller": CALLER, "status": row.status, "revision": row.revision}
    assert (await life.level(), await life.entries(), await life.payment()) == (level, entries, payment)
    assert entries == [("capture", TOTAL)]
    assert set((await purge(database)).values()) == {0}, "again: nothing is left"


async def test_copies_of_its_records_create_and_emit_nothing(database: Database) -> None:
    life = await paid(database)
    level = await life.level()
    created, processing, _ = life.emitted
    await purge(database)
    assert await count(database, "outcomes") == 0, "or they would answer"

    assert await OrderDecisions(database, now=long_after).accept(copy_of(created, ORDER_PROCESSOR)) == []
    payments = PaymentDecisions(database, now=long_after)
    assert await payments.intend(copy_of(processing, PAYMENT_PROCESSOR)) == Settled([])
    cancelled = order_event(E.ORDER_EVENT_TYPE_ORDER_CANCELLED, processing.order, revision=4)
    refunds = RefundDecisions(database, now=long_after)
    assert await refunds.key_to_close(copy_of(cancelled, PAYMENT_PROCESSOR)) == Settled([])
    for name in ("cancel", "ship", "complete", "expire"):
        command = copy_of(a_command(name, life.order_id), ORDER_PROCESSOR)
        assert await OrderCommands(database, now=long_after).decide(command) == []
        assert await life.refusal(command) == "ORDER_NOT_FOUND"
    refund = copy_of(a_command("refund", life.order_id), PAYMENT_PROCESSOR)
    assert await refunds.intend(refund) == Settled([])
    assert await life.refusal(refund) == "ORDER_NOT_FOUND"
    await project(database, life)

    for table in ("orders", "order_views", "order_events"):
        assert await count(database, table) == 0, table
    assert await life.level() == level


async def test_a_copy_that_comes_while_the_order_is_purged_creates_nothing(database: Database) -> None:
    life = await paid(database)
    created = life.emitted[0]
    await purge(database, orders=10_000)
    assert await count(database, "outcomes") == 0
    async with database.transaction() as purging:
        await purging.execute("insert into order_tombstones select order_id, caller, status, revision from orders")
        await purging.execute("delete from orders")
        accepting = asyncio.create_task(
            OrderDecisions(database, now=long_after).accept(copy_of(created, ORDER_PROCESSOR))
        )
        waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        while not await engines.fetch(database, waiting):
            assert not accepting.done(), "it waits for what becomes of the row"
    assert await accepting == []
    assert await count(database, "orders") == 0


async def test_repeated_create_order_is_answered_from_the_tombstone(database: Database) -> None:
    life = await paid(database)
    # The lives of tests have no request_id.
    async with database.connection() as connection:
        await connection.execute(
            "insert into order_requests values ($1, 'r-1', $2, $3)", CALLER, life.order_id, b"fingerprint"
        )
    known_requests = KnownRequests(database)
    [before] = (await known_requests.find([(CALLER, "r-1")])).values()
    await purge(database)
    [after] = (await known_requests.find([(CALLER, "r-1")])).values()
    assert not before.is_purged
    assert (after.is_purged, after.fingerprint) == (True, before.fingerprint)
    for field in ("order_id", "status", "revision", "etag"):
        assert getattr(after.order, field) == getattr(before.order, field), field
    assert await known_requests.find([("stranger", "r-1")]) == {}


async def test_reads_tell_an_order_that_was_purged_from_one_that_never_was(database: Database) -> None:
    life = await paid(database)
    views = OrderViews(database)
    before = await views.get(life.order_id)
    await purge(database)
    after = await views.get(life.order_id)
    assert before is not None
    assert after is not None
    assert (before.is_purged, after.is_purged, after.caller) == (False, True, CALLER)
    assert (after.order.revision, after.order.status) == (before.order.revision, before.order.status)
    assert await views.get(an_id()) is None


async def test_what_is_not_settled_or_wanted_by_somebody_stays(database: Database) -> None:
    lives: dict[str, Life] = {
        "processing": await Life(database).begin(),
        "dead letter": await paid(database),
        "replayed lately": await paid(database),
        "charge unknown": await paid(database),
        "refund due": await paid(database),
        "refund intended": await paid(database),
        "cancelled, not refunded yet": await paid(database),
    }
    refunded = lives["refund intended"]
    refund = refunded.command("refund")
    await RefundDecisions(database, now=refunded._now).intend(refund)
    cancelled = lives["cancelled, not refunded yet"]
    cancelled.command("cancel")
    await cancelled.drain(ORDER_PROCESSOR)
    at = Coordinates("orders", 0, 5)
    of_letters = [lives[name].emitted[0] for name in ("dead letter", "replayed lately")]
    await project(database, lives["dead letter"], *(dead(event, "g", at) for event in of_letters))
    async with database.connection() as connection:
        for name, change in (("charge unknown", "state = 'unknown'"), ("refund due", "refund_due = true")):
            await connection.execute(f"update payments set {change} where order_id = $1", lives[name].order_id)
        await connection.execute(
            "insert into dead_letter_resolutions select partition, record_offset, $2::smallint, 'me', '',"
            " $3::timestamptz from dead_letters where order_id = $1",
            lives["replayed lately"].order_id,
            DeadLetterState.DEAD_LETTER_STATE_REPLAYED,
            long_after() - datetime.timedelta(days=30),
        )
    goes = await paid(database)
    assert (await purge(database, dry_run=True))["orders"] == 1
    assert (await purge(database))["orders"] == 1
    left = {row["order_id"] for row in await engines.fetch(database, "select order_id::text from orders")}
    assert {name for name, life in lives.items() if life.order_id not in left} == set()
    assert goes.order_id not in left


async def test_a_young_order_stays(database: Database) -> None:
    life = await paid(database)
    await purge(database, orders=10_000)
    assert (await life.row()).status == OrderStatus.ORDER_STATUS_PAID
    assert await count(database, "order_events") == 0, "its history has a retention of its own"
    assert await count(database, "order_views") == 1


async def test_the_history_of_an_order_that_is_not_settled_stays(database: Database) -> None:
    life = await Life(database).begin()
    await project(database, life)
    await purge(database)
    assert await count(database, "order_events") == 2


async def test_an_order_that_somebody_has_in_hand_is_left_for_later(database: Database) -> None:
    life = await paid(database)
    async with database.transaction() as worker:
        await worker.execute("select from orders where order_id = $1 for no key update", life.order_id)
        assert (await purge(database))["orders"] == 0
    assert (await purge(database))["orders"] == 1


async def test_an_order_that_never_got_a_row_goes_when_its_dead_letter_is_settled(database: Database) -> None:
    life = await paid(database)
    created = OrderEvent()
    created.CopyFrom(life.emitted[0])
    created.order.order_id = an_id()
    created.event_id = an_id()
    life.emitted = [created]
    await project(database, life, dead(created, ORDER_PROCESSOR, Coordinates("orders", 0, 1)))
    assert (await purge(database, orders=365))["order_views"] == 0
    letters = DeadLetters(database)
    [entry] = await letters.page(DeadLetterFilter(), include_resolved=False, size=9, before=None)
    which = DeadLetterId.parse(entry.dead_letter_id)
    await letters.resolve(which, DeadLetterState.DEAD_LETTER_STATE_DISCARDED, by="me", reason="forged")
    assert (await purge(database, dry_run=True))["order_views"] == 1
    assert (await purge(database))["order_views"] == 1
    assert await OrderDecisions(database, now=long_after).accept(copy_of(created, ORDER_PROCESSOR)) == []
    assert await count(database, "orders") == 0


# -- everything else ---------------------------------------------------------------------------------------------------


async def test_an_outcome_stays_for_as_long_as_its_dead_letter_is_open(database: Database) -> None:
    life = await paid(database)
    # A record that was decided, and whose events Kafka refused.
    delivery = life.delivery(PAYMENT_PROCESSOR, 0)
    await project(database, life, dead(delivery.event, PAYMENT_PROCESSOR, delivery.coordinates))
    before = await count(database, "outcomes")
    assert (await purge(database))["outcomes"] == before - 1
    [replayed] = await life.handle(delivery)
    assert replayed == life.emitted[2], "a replay still finds what was decided"


async def test_every_other_table_goes_by_its_time(database: Database) -> None:
    life = await paid(database)
    life.command("ship")
    await life.drain()
    told = copy_of(life.emitted[0], "notification-email")
    await NotificationIntents(database, NotificationChannel.NOTIFICATION_CHANNEL_EMAIL).intend(told, message_id="<m>")
    at = Coordinates("orders", 0, 1)
    await ReplayClaims(database, "g").claim(origin=at, replay=1, by=at)
    await project(database, life, *(dead(life.emitted[0], "g", at) for _ in range(3)))
    letters = DeadLetters(database)
    assert await letters.create_plan(DeadLetterFilter(), by="me") is not None
    entries = await letters.page(DeadLetterFilter(), include_resolved=False, size=9, before=None)
    states = (DeadLetterState.DEAD_LETTER_STATE_DISCARDED, DeadLetterState.DEAD_LETTER_STATE_REPLAYED)
    for entry, state in zip(entries[:2], states, strict=True):
        await letters.resolve(DeadLetterId.parse(entry.dead_letter_id), state, by="me", reason="")
    async with database.connection() as connection:
        await connection.execute("insert into projection_failures values ('orders', 0, 1, '', 'TEST')")
        await connection.execute("insert into erasures values ('', now())")
        await connection.execute("insert into erased_records values ('dlq', 0, 1)")
    expected = {
        "command_answers": 1,
        "dead_letters": 2,
        "erased_records": 1,
        "erasures": 1,
        "notification_intents": 1,
        "projection_failures": 1,
        "replay_claims": 1,
        "replay_plans": 1,
    }

    async def rows() -> dict[str, int]:
        return {table: await count(database, table) for table in expected}

    before = await rows()
    would_go = await purge(database, dry_run=True)
    assert await rows() == before, "a dry run changes nothing"
    gone = await purge(database)
    assert {table: gone[table] for table in expected} == expected == {table: would_go[table] for table in expected}
    after = await rows()
    assert {table: before[table] - after[table] for table in expected} == expected
    assert await count(database, "replay_plan_items") == 0
    assert await count(database, "dead_letter_resolutions") == 0


async def test_nothing_goes_that_is_younger(database: Database) -> None:
    life = await paid(database)
    life.command("ship")
    await life.drain()
    before = {table: await count(database, table) for table in RetentionSettings().days}
    kept = dict.fromkeys(RetentionSettings().days, 100_000)
    assert set((await purge(database, **kept)).values()) == {0}
    assert {table: await count(database, table) for table in before} == before


async def test_a_refund_that_is_asked_for_again_after_its_outcome_went_is_not_made_again(database: Database) -> None:
    life = await paid(database)
    part = life.command("refund", request_id="part", amount=Money(currency_code="EUR", amount_minor=400))
    await life.drain()
    assert life.gateway.given_back == 400
    await purge(database, orders=10_000)
    assert await life.refusal(part) is None, "its answer went"
    life.now = long_after()  # past the gateway's window of keys, too
    again = Delivery(part.event, PAYMENT_PROCESSOR, Coordinates("orders", 0, 77))
    assert await life.handle(again) == []
    assert life.gateway.given_back == 400
    assert await life.refusal(again) == "", "it was done"
    await life.check()


async def test_every_equation_holds_for_what_remains(database: Database) -> None:
    going, staying = await _lives(database), await _lives(database)
    ids = [life.order_id for life in going.values()]
    async with database.connection() as connection:
        await connection.execute("update orders set update_time = $2 where order_id = any($1::uuid[])", ids, NOW)
        recently = long_after() - datetime.timedelta(days=1)
        await connection.execute(
            "update orders set update_time = $2 where not order_id = any($1::uuid[])", ids, recently
        )
    levels = {name: await life.level() for name, life in going.items()}
    booked = await _booked(database)
    gone = await purge(database, order_events=100_000)
    assert gone["orders"] == len(going) - 1, "all but the one that is not settled"

    assert {name: await life.level() for name, life in going.items()} == levels, "left, held and sold are as they were"
    assert await _booked(database) == booked, "so is the money"
    for life in (*staying.values(), going["processing"]):
        await _check(life)
    [holds] = await engines.fetch(
        database,
        # Every unit that is held is held by an order that is there: none of those purged held any.
        "select (select sum(held) from stock) as held, (select count(*) from orders where status = 2) as orders",
    )
    assert int(str(holds["held"])) == 3 * int(str(holds["orders"]))


async def _lives(database: Database) -> Mapping[str, Life]:
    """Returns orders that ended in every way, and one that has not."""
    lives = {
        "paid": await paid(database),
        "declined": await paid(database, payment_method=DECLINED),
        "cancelled": await paid(database),
        "refunded": await paid(database),
        "expired": await Life(database).begin(),
        "processing": await Life(database).begin(),
    }
    lives["cancelled"].command("cancel")
    lives["refunded"].command("refund")
    lives["expired"].now += datetime.timedelta(hours=2)
    lives["expired"].command("expire", caller="")
    for name, life in lives.items():
        await life.drain(*((ORDER_PROCESSOR,) if name in ("expired", "processing") else ()))
        await life.check()
    return lives


async def _check(life: Life) -> None:
    """Holds the equations of a life whose order's update_time the test has moved."""
    told = max(life.emitted, key=lambda event: event.revision)
    async with life.database.connection() as connection:
        await connection.execute(
            "update orders set update_time = $2 where order_id = $1",
            life.order_id,
            told.order.update_time.ToDatetime(datetime.UTC),
        )
    await life.check()


async def _booked(database: Database) -> dict[str, list[dict[str, object]]]:
    return {
        table: await engines.fetch(database, f"select * from {table} order by 1")
        for table in ("payments", "payment_entries", "refunds", "stock")
    }


async def test_each_table_is_purged_or_kept_on_purpose(database: Database) -> None:
    rows = await engines.fetch(database, "select tablename from pg_tables where schemaname = 'public'")
    purged = set(RetentionSettings().days)
    assert purged == set(await purge(database))
    assert {row["tablename"] for row in rows} == purged | KEPT
    assert not purged & KEPT


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def own_settings(postgres: PostgresServer) -> DatabaseSettings:
    return await engines.new_database(postgres, template=engines.TEMPLATE)


async def test_the_command_counts_and_deletes(own_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*arguments: str) -> tuple[int, str, str]:
        code, out, err = await programs.run(sys.executable, "-m", "cli", "db", "purge", *arguments)
        return code, out.decode(), err

    monkeypatch.setenv("ORDERFLOW_DATABASE_URL", own_settings.url.get_secret_value())
    async with engines.opened(own_settings) as database:
        life = await paid(database)
        async with database.connection() as connection:
            await connection.execute("update orders set update_time = now() - interval '366 days'")
        code, out, err = await run("--dry-run", "-o", "json")
        assert code == 0, err
        assert {row["table"]: row["would_go"] for row in json.loads(out)}["orders"] == 1
        assert (await life.row()).status == OrderStatus.ORDER_STATUS_PAID
        code, out, err = await run("-o", "json")
        assert code == 0, err
        assert {row["table"]: row["purged"] for row in json.loads(out)}["orders"] == 1
        assert await count(database, "orders") == 0
        assert "orders: " in err
        monkeypatch.setenv("ORDERFLOW_RETENTION_OUTCOMES_DAYS", "30")
        code, out, err = await run()
        assert (code, out) == (1, "")
        assert "ORDERFLOW_RETENTION_OUTCOMES_DAYS" in err
