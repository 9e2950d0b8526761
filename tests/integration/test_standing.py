"""How things stand, as PostgreSQL tells: each thing is planted, seen, and gone when it is over."""

import asyncio
import datetime

from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterState
from orderflow.orders.v1.order_pb2 import Money
from storage import standing as standing_module
from storage.database import Database
from storage.dead_letters import DeadLetterId, DeadLetters
from storage.payment_decisions import ChargeIntent, PaymentDecisions
from storage.projection import Projection
from storage.refund_decisions import RefundDecisions, RefundIntent
from storage.standing import STATES, Patience, Standing, StandingRecords
from tests.builders import NOW, an_order, order_created
from tests.lives import ORDER_PROCESSOR, PAYMENT_PROCESSOR, Life

SECOND = datetime.timedelta(seconds=1)
MINUTE = datetime.timedelta(minutes=1)
DAY = datetime.timedelta(days=1)
PATIENCE = Patience(waiting=5 * MINUTE, unpaid=MINUTE, refunding=DAY)


async def standing(database: Database, now: datetime.datetime = NOW) -> Standing:
    return await StandingRecords(database, patience=PATIENCE).read(now)


async def counts(database: Database, state: str, now: datetime.datetime = NOW) -> tuple[int, int]:
    """Returns how many orders are in a state, and how many of them for too long. No other has any."""
    found = await standing(database, now)
    assert set(found.open) == set(found.overdue) == set(STATES)
    others = set(STATES) - {state}
    assert [(found.open[each], found.overdue[each]) for each in others] == [(0, 0)] * len(others)
    return found.open[state], found.overdue[state]


async def project(database: Database, *events: OrderEvent) -> None:
    await _project(database, ProjectionBatch("orders", 0, 0, 0), events)


async def project_letters(database: Database, *letters: DeadLetter) -> None:
    await _project(database, ProjectionBatch("dlq", 0, 0, 0), letters)


async def _project(database: Database, batch: ProjectionBatch, items: tuple[OrderEvent | DeadLetter, ...]) -> None:
    projection = Projection(database)
    await projection.begin(batch.topic, 0, 0)
    batch.begins = await projection.position(batch.topic, 0) or 0
    batch.ends = batch.begins + len(items)
    for offset, item in enumerate(items, batch.begins):
        if isinstance(item, DeadLetter):
            batch.dead_letters.append((Coordinates("dlq", 0, offset), item))
        else:
            batch.events.append((Coordinates("orders", 0, offset), item))
    await projection.apply(batch)


def a_letter(
    event: OrderEvent | None = None, *, group: str = PAYMENT_PROCESSOR, error_class: str = "TEST"
) -> DeadLetter:
    event = event or order_created()
    letter = DeadLetter(key=event.order.order_id.encode(), value=event.SerializeToString(), group=group)
    letter.error_class = error_class
    letter.origin.topic = "orders"
    return letter


async def resolve(database: Database, offset: int, state: DeadLetterState) -> None:
    await DeadLetters(database).resolve(DeadLetterId(0, offset), state, by="me", reason="test")


async def test_where_nothing_is_all_is_0(own_database: Database) -> None:
    nothing = dict.fromkeys(STATES, 0)
    assert await standing(own_database) == Standing(nothing, nothing, None, {}, None)


async def test_an_order_that_nobody_has_decided(own_database: Database) -> None:
    await project(own_database, order_created(), order_created(an_order(now=NOW - MINUTE)))
    assert await counts(own_database, "created") == (2, 0)
    assert await counts(own_database, "created", NOW + 4 * MINUTE) == (2, 1)
    assert await counts(own_database, "created", NOW + 5 * MINUTE) == (2, 2)


async def test_an_order_that_is_decided_and_not_projected_is_not_created(own_database: Database) -> None:
    life = await Life(own_database).begin()
    await project(own_database, life.emitted[0])
    assert await counts(own_database, "processing") == (1, 0)
    await life.drain()
    assert await counts(own_database, "processing") == (0, 0)


async def test_an_order_whose_record_was_given_up_on_waits_until_that_is_discarded(own_database: Database) -> None:
    discarded, replayed = order_created(), order_created()
    await project(own_database, discarded, replayed)
    await project_letters(own_database, *(a_letter(each, group=ORDER_PROCESSOR) for each in (discarded, replayed)))
    assert await counts(own_database, "created", NOW + DAY) == (2, 2)
    await resolve(own_database, 0, DeadLetterState.DEAD_LETTER_STATE_DISCARDED)
    await resolve(own_database, 1, DeadLetterState.DEAD_LETTER_STATE_REPLAYED)
    assert await counts(own_database, "created", NOW + DAY) == (1, 1)


async def test_an_order_that_nobody_has_charged(own_database: Database) -> None:
    life = await Life(own_database).begin()
    assert await counts(own_database, "processing") == (1, 0)
    assert await counts(own_database, "processing", NOW + 5 * MINUTE - SECOND) == (1, 0)
    assert await counts(own_database, "processing", NOW + 5 * MINUTE) == (1, 1)
    await life.drain()
    assert await counts(own_database, "processing", NOW + DAY) == (0, 0)


async def test_an_order_that_is_past_its_expire_time(own_database: Database) -> None:
    await Life(own_database).begin()
    async with own_database.connection() as connection:
        await connection.execute("update orders set expire_time = $1", NOW + MINUTE)
    assert await counts(own_database, "processing", NOW + 2 * MINUTE - SECOND) == (1, 0)
    assert await counts(own_database, "processing", NOW + 2 * MINUTE) == (1, 1)


async def test_a_charge_that_nobody_knows_of(own_database: Database) -> None:
    older, younger = await Life(own_database).begin(), await Life(own_database).begin()
    older.now, younger.now = NOW + MINUTE, NOW + 2 * MINUTE
    payments = {life: PaymentDecisions(own_database, now=life._now) for life in (older, younger)}
    deliveries = {life: life.delivery(PAYMENT_PROCESSOR, 0) for life in payments}
    assert (await standing(own_database)).unknown_since is None
    intents = {}
    for life in (younger, older):
        intent = await payments[life].intend(deliveries[life])
        assert isinstance(intent, ChargeIntent)
        intents[life] = intent
        assert (await standing(own_database)).unknown_since == life.now
    await payments[older].not_sent(intents[older])
    assert (await standing(own_database)).unknown_since == younger.now
    await payments[younger].unknown(deliveries[younger])
    assert (await standing(own_database)).unknown_since == younger.now
    await payments[younger].captured(deliveries[younger], gateway_reference="ch-1")
    assert (await standing(own_database)).unknown_since is None


async def test_a_refund_that_is_not_made(own_database: Database) -> None:
    life = await Life(own_database).begin()
    await life.drain()
    decisions = RefundDecisions(own_database, now=life._now)
    asked = [life.command("refund", amount=Money(currency_code="EUR", amount_minor=100)) for _ in range(2)]
    intents = [await decisions.intend(each) for each in asked]
    assert await counts(own_database, "refunding") == (1, 0), "one order, whatever is given back of it"
    assert await counts(own_database, "refunding", NOW + DAY - SECOND) == (1, 0), "it was sent: that takes as long"
    assert await counts(own_database, "refunding", NOW + DAY) == (1, 1)
    assert isinstance(intents[0], RefundIntent)
    await decisions.not_sent(intents[0])
    assert await counts(own_database, "refunding", NOW + 5 * MINUTE - SECOND) == (1, 0)
    assert await counts(own_database, "refunding", NOW + 5 * MINUTE) == (1, 1)
    await life.drain()
    assert await counts(own_database, "refunding", NOW + DAY) == (0, 0)


async def test_dead_letters_that_wait_for_somebody(own_database: Database) -> None:
    async with own_database.connection() as connection:
        await connection.execute(
            "insert into consumer_groups (group_name, topic) values ($1, 'orders'), ($1, 'payments')", PAYMENT_PROCESSOR
        )
    await project_letters(
        own_database,
        a_letter(),
        a_letter(),
        a_letter(error_class="PAYMENT_UNKNOWN"),
        a_letter(group="anybody's"),
        a_letter(error_class="No class of ours"),
    )
    async with own_database.connection() as connection:
        await connection.execute(
            "update dead_letters set recorded_time = $1::timestamptz + record_offset * interval '1 second'", NOW
        )
    found = await standing(own_database)
    assert found.unresolved == {
        (PAYMENT_PROCESSOR, "TEST"): 2,
        (PAYMENT_PROCESSOR, "PAYMENT_UNKNOWN"): 1,
        ("other", "TEST"): 1,
        (PAYMENT_PROCESSOR, "other"): 1,
    }
    assert found.unresolved_since == NOW
    await resolve(own_database, 0, DeadLetterState.DEAD_LETTER_STATE_REPLAYED)
    await resolve(own_database, 2, DeadLetterState.DEAD_LETTER_STATE_DISCARDED)
    found = await standing(own_database)
    assert found.unresolved == {
        (PAYMENT_PROCESSOR, "TEST"): 1,
        ("other", "TEST"): 1,
        (PAYMENT_PROCESSOR, "other"): 1,
    }
    assert found.unresolved_since == NOW + SECOND


async def test_classes_that_somebody_makes_up_are_counted_as_one(own_database: Database) -> None:
    await project_letters(own_database, *(a_letter(error_class=f"CLASS_{n:02}") for n in range(60)), a_letter())
    unresolved = (await standing(own_database)).unresolved
    assert unresolved == {("other", f"CLASS_{n:02}"): 1 for n in range(50)} | {("other", "other"): 11}


async def test_indexes_serve_what_it_reads(own_database: Database) -> None:
    async with own_database.connection() as connection, connection.transaction():
        for way in ("seqscan", "bitmapscan"):
            await connection.execute(f"set local enable_{way} = off")
        for query, times, indexes in (
            (standing_module._CREATED, 1, ("order_views_listed", "orders_pkey", "dead_letters_by_order")),
            (standing_module._PROCESSING, 2, ("orders_unpaid", "payments_pkey")),
            (standing_module._REFUNDING, 2, ("refunds_open",)),
        ):
            rows = await connection.fetch(f"explain {query}", *[NOW] * times)
            plan = "\n".join(row[0] for row in rows)
            assert all(index in plan for index in indexes), plan
            assert "Seq Scan" not in plan, plan


async def test_the_bytes_of_dead_letters_are_not_read(own_database: Database) -> None:
    async with own_database.connection() as connection:
        await connection.execute(
            "insert into dead_letters (partition, record_offset, group_name, error_class, dead_letter)"
            " select 0, n, 'payment-processor', 'TEST', convert_to(repeat('x', 1000), 'utf8')"
            " from generate_series(1, 5000) as n"
        )
        visible = "select relpages > 0 and relallvisible >= relpages from pg_class where oid = 'dead_letters'::regclass"
        async with asyncio.timeout(60):
            # Again where autovacuum or a checkpoint has had hold of a page: PostgreSQL passes such a one by.
            while not await connection.fetchval(visible):
                await connection.execute("vacuum (analyze) dead_letters")
        rows = await connection.fetch(f"explain {standing_module._UNRESOLVED}")
    assert "Index Only Scan using dead_letters_listed" in "\n".join(row[0] for row in rows), rows
