"""Charges that are intended and booked together are so as if each had come alone (semantics 2, 12, 13, 15, 19, 27)."""

import asyncio
import datetime
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import asyncpg
import pytest
import structlog

from devstack import free_ports
from domain.events import payment_reported
from domain.failures import DependencyDown, Transient
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import OrderStatus, PaymentStatus
from settings import DatabaseSettings
from storage import order_rows
from storage.database import Database
from storage.order_commands import OrderCommands
from storage.order_decisions import OrderDecisions
from storage.order_rows import Move
from storage.outcomes import Settled
from storage.payment_decisions import ChargeIntent, PaymentDecisions
from storage.stock import Stock, StockLevel
from tests import engines
from tests.builders import NOW, a_command, a_delivery, a_sku, an_id, an_item, an_order, order_created

if TYPE_CHECKING:
    from storage.database import Connection

E = OrderEventType
GROUP = "payment-processor"
CAPTURED = PaymentStatus.PAYMENT_STATUS_CAPTURED
AVAILABLE = 10_000


def a_clock() -> Callable[[], datetime.datetime]:
    """Every time that it is asked it is a second later."""
    seconds = itertools.count()
    return lambda: NOW + datetime.timedelta(seconds=next(seconds))


@pytest.fixture
def decisions(database: Database) -> PaymentDecisions:
    return PaymentDecisions(database, now=a_clock())


@pytest.fixture
async def elsewhere(database_settings: DatabaseSettings) -> AsyncIterator[Database]:
    """The same database, as another process has it open."""
    async with engines.opened(database_settings) as database:
        yield database


async def accepted(database: Database, *skus: Sequence[str]) -> list[Delivery]:
    """Places an order of one unit each of some SKUs, for each of `skus`. Returns their ORDER_PROCESSING."""
    for sku in set(itertools.chain(*skus)):
        await Stock(database).set_available(sku, AVAILABLE)
    orders = OrderDecisions(database, now=lambda: NOW)
    created = []
    for each in skus:
        items = [an_item(sku, 1) for sku in each]
        created.append(a_delivery(order_created(an_order(items=items), items=items), group="order-processor"))
    events = await asyncio.gather(*map(orders.accept, created))
    return [a_delivery(event, group=GROUP, offset=offset) for offset, [event] in enumerate(events)]


async def some(database: Database, count: int) -> tuple[str, list[Delivery]]:
    """Places orders of one unit of one SKU. Returns it and their ORDER_PROCESSING."""
    sku = a_sku()
    return sku, await accepted(database, *[[sku]] * count)


def at(delivery: Delivery, *, offset: int) -> Delivery:
    return a_delivery(delivery.event, group=GROUP, offset=offset)


def order_id(delivery: Delivery) -> str:
    return delivery.event.order.order_id


async def mark_cancelled(connection: "Connection", delivery: Delivery) -> None:
    """Moves the row of its order as a cancellation does."""
    await connection.execute(
        "update orders set status = $2, revision = revision + 1 where order_id = $1",
        order_id(delivery),
        OrderStatus.ORDER_STATUS_CANCELLED,
    )


def reference(delivery: Delivery) -> str:
    return f"ch_{order_id(delivery)}"


async def cancel(database: Database, delivery: Delivery) -> None:
    command = a_delivery(a_command("cancel", order_id(delivery)), group="order-processor")
    assert await OrderCommands(database, now=lambda: NOW).decide(command)


async def purge(database: Database, delivery: Delivery) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "insert into order_tombstones select order_id, caller, status, revision from orders where order_id = $1",
            order_id(delivery),
        )
        await connection.execute("delete from orders where order_id = $1", order_id(delivery))


async def intend_all(decisions: PaymentDecisions, deliveries: Sequence[Delivery]) -> list[ChargeIntent]:
    intents = await asyncio.gather(*map(decisions.intend, deliveries))
    assert all(isinstance(intent, ChargeIntent) for intent in intents)
    return [intent for intent in intents if isinstance(intent, ChargeIntent)]


async def capture_all(decisions: PaymentDecisions, deliveries: Sequence[Delivery]) -> list[list[OrderEvent]]:
    return await asyncio.gather(*(decisions.captured(each, gateway_reference=reference(each)) for each in deliveries))


async def payments(database: Database, deliveries: Sequence[Delivery]) -> dict[str, dict[str, object]]:
    rows = await engines.fetch(
        database,
        "select order_id::text, state, refund_due, gateway_reference, decline_reason, xmin::text as written_by,"
        " (select count(*) from payment_entries where payment_entries.order_id = payments.order_id) as entries"
        " from payments where order_id = any($1::uuid[])",
        [order_id(each) for each in deliveries],
    )
    return {str(row["order_id"]): row for row in rows}


async def level(database: Database, sku: str) -> StockLevel:
    [found] = await Stock(database).levels(sku)
    return found


def types(events: Sequence[OrderEvent]) -> list[str]:
    return [E.Name(event.type).removeprefix("ORDER_EVENT_TYPE_") for event in events]


# -- intents -----------------------------------------------------------------------------------------------------------


async def test_intents_that_arrive_together_are_stored_in_one_transaction(
    database: Database, decisions: PaymentDecisions
) -> None:
    _, records = await some(database, 50)
    intents = await intend_all(decisions, records)
    assert [intent.order_id for intent in intents] == list(map(order_id, records))
    assert {intent.first_send_time for intent in intents} == {None}
    written = {row["written_by"] for row in (await payments(database, records)).values()}
    assert len(written) == 1


async def test_each_of_many_intents_is_as_if_it_had_come_alone(database: Database, decisions: PaymentDecisions) -> None:
    _, records = await some(database, 9)
    fresh, before, not_sent, cancelled, paid, copied, purged, forgotten, last = records
    unknown = a_delivery(order_created(), group=GROUP)
    first, nothing_sent, *_ = await intend_all(decisions, [before, not_sent, paid, copied, forgotten])
    await decisions.not_sent(nothing_sent)
    await cancel(database, cancelled)
    [paid_event], [copied_event], [forgotten_event] = await capture_all(decisions, [paid, copied, forgotten])
    await purge(database, purged)
    await purge(database, forgotten)

    mixed = [fresh, before, not_sent, cancelled, paid, at(copied, offset=99), purged, forgotten, unknown, last]
    answers = await asyncio.gather(*map(decisions.intend, mixed), return_exceptions=True)
    intents = [answer for answer in answers if isinstance(answer, ChargeIntent)]
    assert [(intent.order_id, intent.first_send_time) for intent in intents] == [
        (order_id(fresh), None),
        (order_id(before), first.send_time),
        (order_id(not_sent), None),
        (order_id(last), None),
    ]
    assert intents[0].send_time == intents[3].send_time, "they came together"
    assert intents[1].send_time == intents[2].send_time, "and these had been intended before"
    assert answers[3] == Settled([])
    assert answers[4] == Settled([paid_event])
    assert answers[5] == Settled([]), f"a copy: {copied_event.event_id}"
    assert answers[6] == Settled([])
    assert isinstance(answers[7], Settled)
    assert [event.event_id for event in answers[7].events] == [forgotten_event.event_id], "its outcome is still there"
    assert isinstance(answers[8], Transient)
    assert answers[8].error_class == "ORDER_UNKNOWN"
    rows = await payments(database, [cancelled, purged, unknown])
    assert not rows, "nothing was ever to be sent for these"
    for event_id, stored in ((cancelled.event.event_id, 1), (purged.event.event_id, 1), (unknown.event.event_id, 0)):
        assert len(await engines.fetch(database, "select from outcomes where event_id = $1", event_id)) == stored


async def test_a_record_and_its_copy_at_once_are_two_sends(database: Database, decisions: PaymentDecisions) -> None:
    """Whoever of them sends first: the other finds that its key was used, and takes back no send but its own."""
    _, [record, beside] = await some(database, 2)
    first, second, other = await intend_all(decisions, [record, at(record, offset=99), beside])
    assert first.first_send_time is None
    assert second.first_send_time == first.send_time < second.send_time
    assert other.send_time > first.send_time, "they waited for the next gathering"
    await decisions.not_sent(first)
    [again] = await intend_all(decisions, [record])
    assert again.first_send_time == first.send_time


async def test_intents_and_cancellations_at_once_come_one_after_the_other(
    database: Database, decisions: PaymentDecisions
) -> None:
    _, records = await some(database, 30)
    cancelled = records[::2]
    intents, _ = await asyncio.gather(
        asyncio.gather(*map(decisions.intend, records)),
        asyncio.gather(*(cancel(database, each) for each in cancelled)),
    )
    intended = {order_id(each) for each, intent in zip(records, intents, strict=True) if intent != Settled([])}
    assert (await payments(database, records)).keys() == intended
    assert intended >= {order_id(each) for each in records[1::2]}
    assert await asyncio.gather(*map(decisions.intend, cancelled)) == [Settled([])] * len(cancelled)


async def test_orders_that_change_between_the_look_and_the_intent(
    database: Database, decisions: PaymentDecisions, elsewhere: Database
) -> None:
    """Of one somebody cancels, of another somebody else intends, and both commit while the intents wait for them."""
    _, records = await some(database, 4)
    cancelled, intended, beside, touched = records
    async with elsewhere.transaction() as connection:
        await mark_cancelled(connection, cancelled)
        await connection.execute("update orders set revision = revision + 1 where order_id = $1", order_id(touched))
        await connection.execute(
            "insert into payments (order_id, idempotency_key, state, amount_minor, currency_code, first_send_time,"
            " update_time) values ($1, 'key', 'intended', 1, 'EUR', $2, $2)",
            order_id(intended),
            NOW - datetime.timedelta(hours=1),
        )
        waiting = asyncio.create_task(asyncio.wait_for(asyncio.gather(*map(decisions.intend, records)), 30))
        await engines.until_waiting(database, 1)
    answers = await waiting
    assert answers[0] == Settled([])
    intents = [each for each in answers if isinstance(each, ChargeIntent)]
    assert [(each.order_id, each.first_send_time) for each in intents] == [
        (order_id(intended), NOW - datetime.timedelta(hours=1)),
        (order_id(beside), None),
        (order_id(touched), None),
    ]
    assert intents[0].idempotency_key == "key"
    assert (await payments(database, records)).keys() == {order_id(each) for each in records[1:]}


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_each_of_many_answers_is_booked_as_if_it_had_come_alone(own_database: Database) -> None:
    decisions = PaymentDecisions(own_database, now=a_clock())
    sku, records = await some(own_database, 8)
    approved, declined, called_off, called_off_declined, replayed, copied, closed, last = records
    await intend_all(decisions, records)
    [before], _ = await capture_all(decisions, [replayed, copied])
    for each in (called_off, called_off_declined, closed):
        await cancel(own_database, each)
    async with own_database.connection() as connection:
        await connection.execute("update payments set state = 'closed' where order_id = $1", order_id(closed))
        await connection.execute(
            "create table updates (sku text);"
            " create function note() returns trigger language plpgsql as"
            " $$ begin insert into updates values (new.sku); return null; end $$;"
            " create trigger note after update on stock for each row execute function note();"
        )

    def captured(delivery: Delivery) -> "asyncio.Task[list[OrderEvent]]":
        return asyncio.create_task(decisions.captured(delivery, gateway_reference=reference(delivery)))

    def refused(delivery: Delivery) -> "asyncio.Task[list[OrderEvent]]":
        return asyncio.create_task(decisions.declined(delivery, reason="EXPIRED_CARD", gateway_reference="ch_no"))

    answers = await asyncio.gather(
        captured(approved), refused(declined), captured(called_off), refused(called_off_declined), refused(replayed),
        captured(at(copied, offset=99)), captured(closed), captured(last),
    )  # fmt: skip
    assert [types(each) for each in answers] == [
        ["ORDER_PAID"], ["PAYMENT_FAILED"], [], [], ["ORDER_PAID"], [], [], ["ORDER_PAID"],
    ]  # fmt: skip
    assert answers[4] == [before]
    [paid], [failed] = answers[:2]
    assert (paid.order.order_id, paid.order_paid.gateway_reference) == (order_id(approved), reference(approved))
    assert paid.order_paid.amount == approved.event.order.total
    assert (paid.revision, paid.order.status) == (3, OrderStatus.ORDER_STATUS_PAID)
    assert (failed.order.order_id, failed.order.failure_reason) == (order_id(declined), "EXPIRED_CARD")
    assert failed.payment_failed.gateway_reference == "ch_no"
    assert {each.metadata.caller for each in (paid, failed)} == {"shop"}
    rows = await payments(own_database, records)
    assert [
        (rows[order_id(each)]["state"], rows[order_id(each)]["entries"], rows[order_id(each)]["refund_due"])
        for each in records
    ] == [
        ("captured", 1, False),
        ("declined", 0, False),
        ("captured", 1, False),
        ("declined", 0, False),
        ("captured", 1, False),
        ("captured", 1, False),
        ("captured", 1, True),
        ("captured", 1, False),
    ]
    assert rows[order_id(declined)]["decline_reason"] == "EXPIRED_CARD"
    assert await level(own_database, sku) == StockLevel(sku, AVAILABLE - 4, 0, 4, {})
    assert await engines.fetch(own_database, "select * from updates") == [{"sku": sku}], "once for all"


async def test_orders_that_change_while_what_was_answered_waits_for_them(
    database: Database, decisions: PaymentDecisions, elsewhere: Database
) -> None:
    """One was cancelled, another only touched: what is booked rests on what was committed last."""
    _, records = await some(database, 3)
    cancelled, touched, _ = records
    await intend_all(decisions, records)
    async with elsewhere.transaction() as connection:
        await mark_cancelled(connection, cancelled)
        await connection.execute("update orders set revision = 7, shipment = '' where order_id = $1", order_id(touched))
        waiting = asyncio.create_task(capture_all(decisions, records))
        await engines.until_waiting(database, 1)
    told = await waiting
    assert [types(events) for events in told] == [[], ["ORDER_PAID"], ["ORDER_PAID"]]
    assert [events[0].revision for events in told if events] == [8, 3]
    assert told[1][0].order.HasField("shipment")
    assert {each["state"] for each in (await payments(database, records)).values()} == {"captured"}


async def test_an_order_that_does_not_move_is_locked_all_the_same(
    database: Database, decisions: PaymentDecisions, elsewhere: Database
) -> None:
    """What is booked of a cancelled order's payment comes after or before its refund, and never in the middle of it."""
    _, records = await some(database, 3)
    for each in records[1:]:
        await cancel(database, each)
    moves = {order_id(each): Move(E.ORDER_EVENT_TYPE_ORDER_PAID, CAPTURED) for each in records}
    for left in (moves, {order_id(each): moves[order_id(each)] for each in records[1:]}):
        async with elsewhere.transaction() as connection:
            assert (await order_rows.move_all(connection, left, now=NOW)).keys() == left.keys() & {order_id(records[0])}
            free = await engines.fetch(
                database,
                "select from orders where order_id = any($1::uuid[]) for no key update skip locked",
                list(left),
            )
            assert not free


@pytest.mark.parametrize("is_booked", [False, True], ids=["intents", "answers"])
async def test_orders_are_locked_by_id_in_whatever_order_they_come(
    database: Database, decisions: PaymentDecisions, elsewhere: Database, is_booked: bool
) -> None:
    """Who waits for one in the middle has those before it, and none after it."""
    records = sorted((await some(database, 3))[1], key=order_id)
    first, middle, last = map(order_id, records)
    if is_booked:
        await intend_all(decisions, records)
    async with elsewhere.transaction() as connection:
        await connection.execute("update orders set revision = revision + 1 where order_id = $1", middle)
        call = capture_all if is_booked else intend_all
        waiting = asyncio.create_task(call(decisions, [records[2], records[0], records[1]]))  # type: ignore[operator]
        await engines.until_waiting(database, 1)
        free = await engines.fetch(
            database,
            "select order_id::text from orders where order_id = any($1::uuid[]) for no key update skip locked",
            [first, middle, last],
        )
    await waiting
    assert free == [{"order_id": last}]


async def test_a_charge_and_a_report_of_it_at_once_pay_the_order_once(
    database: Database, decisions: PaymentDecisions
) -> None:
    sku, [record] = await some(database, 1)
    await intend_all(decisions, [record])
    report = a_delivery(payment_reported(an_id(), order_id(record), source="webhook", now=NOW), group=GROUP, offset=99)
    first, second = await asyncio.gather(
        decisions.captured(report, gateway_reference=reference(record)),
        decisions.captured(record, gateway_reference=reference(record)),
    )
    assert (types(first), second) == (["ORDER_PAID"], [])
    assert first[0].metadata.caller == "shop", "a report does not say who placed the order"
    assert (await payments(database, [record]))[order_id(record)]["entries"] == 1
    assert await level(database, sku) == StockLevel(sku, AVAILABLE - 1, 0, 1, {})


async def test_a_bad_record_harms_no_other(database: Database, decisions: PaymentDecisions) -> None:
    sku, records = await some(database, 9)
    await intend_all(decisions, records)
    no_text = "ch\x00"  # PostgreSQL has none such
    answers = await asyncio.gather(
        *(
            decisions.captured(each, gateway_reference=no_text if each is records[4] else reference(each))
            for each in records
        ),
        return_exceptions=True,
    )
    assert isinstance(answers[4], asyncpg.PostgresError | asyncpg.DataError), answers[4]
    assert [types(each) for each in answers if isinstance(each, list)] == [["ORDER_PAID"]] * 8
    assert await level(database, sku) == StockLevel(sku, AVAILABLE - 9, 1, 8, {})
    assert (await payments(database, records))[order_id(records[4])]["state"] == "intended"
    [paid] = await capture_all(decisions, [records[4]])
    assert types(paid) == ["ORDER_PAID"]


async def test_a_bad_intent_harms_no_other(database: Database, decisions: PaymentDecisions) -> None:
    _, records = await some(database, 5)
    bad = OrderEvent()
    bad.CopyFrom(records[2].event)
    bad.event_id = "none"
    records[2] = a_delivery(bad, group=GROUP)
    answers = await asyncio.gather(*map(decisions.intend, records), return_exceptions=True)
    assert isinstance(answers[2], asyncpg.DataError), answers[2]
    assert [type(each) for each in answers[:2] + answers[3:]] == [ChargeIntent] * 4


async def test_each_record_logs_as_itself(database: Database, decisions: PaymentDecisions) -> None:
    _, records = await some(database, 3)
    await intend_all(decisions, records)
    await capture_all(decisions, records)

    async def capture(delivery: Delivery) -> None:
        with structlog.contextvars.bound_contextvars(order_id=order_id(delivery)):
            await decisions.captured(delivery, gateway_reference=reference(delivery))

    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs(processors=[merge]) as captured:
        await asyncio.gather(*map(capture, records))
    assert sorted((each["event"], each["order_id"]) for each in captured) == sorted(
        ("order.replayed", order_id(each)) for each in records
    )


async def test_a_database_that_is_away_fails_all(database: Database) -> None:
    _, records = await some(database, 3)
    (port,) = free_ports(1)
    async with engines.opened(engines.database_settings(f"postgresql://u:p@127.0.0.1:{port}/d")) as away:
        decisions = PaymentDecisions(away, now=a_clock())
        answers = await asyncio.gather(
            *map(decisions.intend, records),
            *(decisions.captured(each, gateway_reference=reference(each)) for each in records),
            return_exceptions=True,
        )
    assert [type(each) for each in answers] == [DependencyDown] * 6


# -- two processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_two_processes_with_the_same_records_block_each_other_never_for_good(
    database: Database, database_settings: DatabaseSettings, seed: int
) -> None:
    """SKUs and records overlap, each process has them in an order of its own, and some orders are cancelled meanwhile.

    A process that lost its partition goes on, and the next owner meets it in the middle.
    """
    dice = random.Random(seed)
    skus = [a_sku() for _ in range(8)]
    records = await accepted(database, *(dice.sample(skus, 4) for _ in range(300)))
    mixed = dice.sample(records, len(records))
    declines = {order_id(each) for each in dice.sample(records, 100)}

    async def handle(decisions: PaymentDecisions, delivery: Delivery) -> list[OrderEvent]:
        intent = await decisions.intend(delivery)
        if isinstance(intent, Settled):
            return intent.events
        if intent.order_id in declines:
            return await decisions.declined(delivery, reason="X", gateway_reference=reference(delivery))
        return await decisions.captured(delivery, gateway_reference=reference(delivery))

    async def handle_in_waves(decisions: PaymentDecisions, deliveries: Sequence[Delivery]) -> list[list[OrderEvent]]:
        answers = []
        for n in range(0, len(deliveries), 60):
            answers += await asyncio.gather(*(handle(decisions, each) for each in deliveries[n : n + 60]))
        return answers

    async def cancel_some() -> list[OrderEvent]:
        commands = OrderCommands(database, now=lambda: NOW)
        events: list[OrderEvent] = []
        for each in dice.sample(records, 40):
            events += await commands.decide(a_delivery(a_command("cancel", order_id(each)), group="order-processor"))
        return events

    async with engines.opened(database_settings) as one, engines.opened(database_settings) as other:
        # A deadlock would be a DependencyDown.
        first, second, cancelled = await asyncio.gather(
            handle_in_waves(PaymentDecisions(one, now=a_clock()), records),
            handle_in_waves(PaymentDecisions(other, now=a_clock()), mixed),
            cancel_some(),
        )
    by_id = {id(each): answer for each, answer in zip(mixed, second, strict=True)}
    assert [by_id[id(each)] for each in records] == first
    settled = {events[0].order.order_id: types(events) for events in first if events}
    assert all(told == (["PAYMENT_FAILED"] if each in declines else ["ORDER_PAID"]) for each, told in settled.items())
    assert settled.keys() | {event.order.order_id for event in cancelled} == set(map(order_id, records))
    captured = {each for each, row in (await payments(database, records)).items() if row["state"] == "captured"}
    assert captured >= {each for each, told in settled.items() if told == ["ORDER_PAID"]}
    entries = await engines.fetch(
        database, "select order_id::text from payment_entries where order_id = any($1::uuid[])", list(captured)
    )
    assert sorted(str(entry["order_id"]) for entry in entries) == sorted(captured), "each once"
    kept = {each for each, told in settled.items() if told == ["ORDER_PAID"]}
    kept -= {event.order.order_id for event in cancelled}
    for sku in skus:
        sold = sum(order_id(each) in kept for each in records if sku in {item.sku for item in each.event.order.items})
        assert await level(database, sku) == StockLevel(sku, AVAILABLE - sold, 0, sold, {})
