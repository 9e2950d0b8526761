"""Messages that are intended and decided together are so as if each had come alone (semantics 12, 13 and 35)."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
import structlog

from devstack import free_ports
from domain.erasure import UserErased
from domain.failures import DependencyDown
from domain.records import Delivery
from messaging.topics import DEAD_LETTERS
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import NotificationChannel
from settings import DatabaseSettings
from storage.database import Database
from storage.eraser import Eraser
from storage.notification_intents import NotificationIntents
from storage.outcomes import Settled
from tests import engines
from tests.builders import a_delivery, an_id, emitted_for, order_created

EMAIL = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL
GROUP = "notification-email"

Intended = Settled | bool | BaseException


def told(event: OrderEvent | None = None, *, offset: int = 0) -> Delivery:
    return a_delivery(event, group=GROUP, offset=offset)


def again(delivery: Delivery, *, offset: int) -> Delivery:
    """The same event in another record."""
    return a_delivery(delivery.event, group=GROUP, offset=offset)


@contextlib.asynccontextmanager
async def two_processes(settings: DatabaseSettings) -> AsyncIterator[list[NotificationIntents]]:
    async with engines.opened(settings) as first, engines.opened(settings) as second:
        yield [NotificationIntents(each, EMAIL) for each in (first, second)]


async def intend_all(intents: NotificationIntents, deliveries: Sequence[Delivery]) -> list[Intended]:
    return await asyncio.gather(
        *(intents.intend(each, message_id=f"<{each.event.event_id}>") for each in deliveries), return_exceptions=True
    )


async def decide_all(intents: NotificationIntents, *decided: tuple[Delivery, OrderEvent | None]) -> list[object]:
    return await asyncio.gather(*(intents.decide(*each) for each in decided), return_exceptions=True)


async def count_statements(database: Database, table: str) -> None:
    """From now on `statements` has a row for each statement that inserts into the table."""
    async with database.connection() as connection:
        await connection.execute(
            "create table statements ();"
            " create function note() returns trigger language plpgsql as"
            " $$ begin insert into statements default values; return null; end $$;"
            f" create trigger note after insert on {table} execute function note();"
        )


async def test_calls_at_once_share_a_statement(own_database: Database) -> None:
    intents, deliveries = NotificationIntents(own_database, EMAIL), [told(offset=n) for n in range(50)]
    for table in ("notification_intents", "outcomes"):
        await count_statements(own_database, table)
        if table == "outcomes":
            sent = [(each, emitted_for(each)) for each in deliveries]
            assert await decide_all(intents, *sent) == [[event] for _, event in sent]
        else:
            assert await intend_all(intents, deliveries) == [True] * 50
        assert len(await engines.fetch(own_database, "select from statements")) == 1
        assert len(await engines.fetch(own_database, f"select from {table}")) == 50
        await engines.fetch(own_database, "drop table statements")
        await engines.fetch(own_database, "drop function note cascade")


async def test_intents_of_all_kinds_at_once(database: Database) -> None:
    intents, erased_user = NotificationIntents(database, EMAIL), f"user-{an_id()}"
    await Eraser(database, dead_letter_topic=DEAD_LETTERS.name).erase(erased_user)
    new, intended, sent, untold = (told(offset=n) for n in range(4))
    erased = told(order_created(user_id=erased_user), offset=4)
    await intend_all(intents, [intended])
    emitted = emitted_for(sent)
    await decide_all(intents, (sent, emitted), (untold, None))
    copies = [again(each, offset=9) for each in (new, sent)]
    assert await intend_all(intents, [new, intended, sent, untold, copies[0], copies[1]]) == [
        True, False, Settled([emitted]), Settled([]), False, Settled([]),
    ]  # fmt: skip
    *others, refused = await intend_all(intents, [told(), erased])
    assert others == [True]
    assert isinstance(refused, UserErased)
    stored = await engines.fetch(
        database,
        "select event_id::text from notification_intents where event_id = any($1::uuid[])",
        [each.event.event_id for each in (new, intended, sent, untold, erased)],
    )
    assert {row["event_id"] for row in stored} == {new.event.event_id, intended.event.event_id}


async def test_decisions_of_all_kinds_at_once(database: Database) -> None:
    intents, erased_user = NotificationIntents(database, EMAIL), f"user-{an_id()}"
    await Eraser(database, dead_letter_topic=DEAD_LETTERS.name).erase(erased_user)
    new, untold, settled = (told(offset=n) for n in range(3))
    erased = told(order_created(user_id=erased_user), offset=3)
    before = emitted_for(settled)
    await intents.decide(settled, before)
    answers = await decide_all(
        intents,
        (new, emitted_for(new)),
        (untold, None),
        (settled, emitted_for(settled, provider_message_id="another")),
        (again(settled, offset=9), emitted_for(settled)),
        (again(new, offset=9), emitted_for(new)),
        (erased, emitted_for(erased)),
    )
    assert answers[:5] == [[emitted_for(new)], [], [before], [], []]
    [event] = answers[5]  # type: ignore[misc]
    assert (event.event_id, event.order.email) == (emitted_for(erased).event_id, "")
    assert new.event.order.email
    assert [each.events for each in await intend_all(intents, [new, untold, erased])] == [  # type: ignore[union-attr]
        [emitted_for(new)], [], [emitted_for(erased)],
    ]  # fmt: skip


async def test_a_bad_call_fails_alone(database: Database) -> None:
    intents, deliveries = NotificationIntents(database, EMAIL), [told(offset=n) for n in range(9)]
    nul = "\x00"  # PostgreSQL has no text for it
    answers = await asyncio.gather(
        *(intents.intend(each, message_id=nul if number == 4 else "<1>") for number, each in enumerate(deliveries)),
        return_exceptions=True,
    )
    assert isinstance(answers[4], asyncpg.PostgresError | asyncpg.DataError), answers[4]
    assert answers[:4] + answers[5:] == [True] * 8
    assert await intents.intend(deliveries[4], message_id="<1>") is True, "nothing was stored"
    deliveries[4] = a_delivery(deliveries[4].event, group=GROUP, topic=nul)
    decided = await decide_all(intents, *((each, emitted_for(each)) for each in deliveries))
    assert isinstance(decided[4], asyncpg.PostgresError | asyncpg.DataError), decided[4]
    assert decided[:4] + decided[5:] == [[emitted_for(each)] for each in deliveries[:4] + deliveries[5:]]


async def test_with_the_database_away_all_fail_as_nobodys_fault() -> None:
    (port,) = free_ports(1)
    async with engines.opened(engines.database_settings(f"postgresql://u:p@127.0.0.1:{port}/d")) as database:
        intents, deliveries = NotificationIntents(database, EMAIL), [told(offset=n) for n in range(500)]
        answers = await intend_all(intents, deliveries)
        decided = await decide_all(intents, *((each, None) for each in deliveries))
    assert {type(each) for each in (*answers, *decided)} == {DependencyDown}


async def test_each_record_logs_as_itself(database: Database) -> None:
    intents, deliveries = NotificationIntents(database, EMAIL), [told(offset=n) for n in range(3)]
    await decide_all(intents, *((each, None) for each in deliveries))

    async def intend(delivery: Delivery) -> None:
        with structlog.contextvars.bound_contextvars(order_id=delivery.event.order.order_id):
            await intents.intend(delivery, message_id="<1>")

    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs(processors=[merge]) as captured:
        await asyncio.gather(*map(intend, deliveries))
    assert sorted((each["event"], each["order_id"]) for each in captured) == sorted(
        ("order.replayed", each.event.order.order_id) for each in deliveries
    )


async def test_an_intent_whose_caller_was_cancelled_meanwhile_is_new_again(database: Database) -> None:
    """As when a partition starts over: nothing was sent, so nothing is ambiguous."""
    intents, (one, held, other) = NotificationIntents(database, EMAIL), [told(offset=n) for n in range(3)]
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "insert into notification_intents (event_id, channel, message_id) values ($1, $2, '<1>')",
            held.event.event_id,
            EMAIL,
        )
        asked = [asyncio.create_task(intents.intend(each, message_id="<1>")) for each in (one, held, other)]
        await engines.until_waiting(database, 1)
        asked[0].cancel()
        await asyncio.wait(asked[:1])
        await transaction.rollback()
    assert [await each for each in asked[1:]] == [True, True]
    assert await intend_all(intents, [one, held, other]) == [True, False, False]


@pytest.mark.parametrize("is_decided", [False, True], ids=["intents", "outcomes"])
async def test_two_processes_meet_in_the_middle_and_neither_blocks_the_other_for_good(
    database: Database, database_settings: DatabaseSettings, is_decided: bool
) -> None:
    """Each has the events in an order of its own, and somebody else holds one in between."""
    deliveries = sorted((told(offset=n) for n in range(3)), key=lambda each: each.event.event_id)
    middle = deliveries[1].event.event_id

    async def tell(intents: NotificationIntents, own: Sequence[Delivery], name: str) -> list[object]:
        if not is_decided:
            return [*await intend_all(intents, own)]
        return await decide_all(intents, *((each, emitted_for(each, provider_message_id=name)) for each in own))

    async with two_processes(database_settings) as (first, second):
        async with database.connection() as connection:
            held = connection.transaction()
            await held.start()
            await connection.execute(
                "insert into outcomes (group_name, event_id, topic, partition, record_offset, events)"
                " values ($1, $2, 't', 0, 0, '{}')"
                if is_decided
                else f"insert into notification_intents (message_id, event_id, channel) values ($1, $2, {EMAIL})",
                GROUP,
                middle,
            )
            one = asyncio.create_task(tell(first, deliveries, "one"))
            await engines.until_waiting(database, 1)
            other = asyncio.create_task(tell(second, deliveries[::-1], "other"))
            await engines.until_waiting(database, 2)
            await held.rollback()
        # A deadlock would be a DependencyDown.
        answers, mirrored = await asyncio.gather(one, other)
    if is_decided:
        assert answers == mirrored[::-1] == [[emitted_for(each, provider_message_id="one")] for each in deliveries]
    else:
        assert (answers, mirrored) == ([True] * 3, [False] * 3)


@pytest.mark.parametrize("seed", range(3))
async def test_two_processes_tell_of_the_same_events_at_once_and_each_is_told_once(
    database_settings: DatabaseSettings, seed: int
) -> None:
    dice = random.Random(seed)
    deliveries = [told(offset=n) for n in range(400)]
    mixed = dice.sample(deliveries, len(deliveries))

    async def tell(intents: NotificationIntents, own: Sequence[Delivery], name: str) -> tuple[list[str], list[object]]:
        """Sends what it may, and returns which those are, and all outcomes."""
        sent: list[str] = []
        outcomes: list[object] = []
        for n in range(0, len(own), 40):
            wave = own[n : n + 40]
            for delivery, intent in zip(wave, await intend_all(intents, wave), strict=True):
                assert isinstance(intent, bool | Settled), intent
                if intent is True:
                    sent.append(delivery.event.event_id)
            outcomes += await decide_all(
                intents, *((each, emitted_for(each, provider_message_id=name)) for each in wave)
            )
        return sent, outcomes

    async with two_processes(database_settings) as (first, second):
        (one, outcomes), (other, mixed_outcomes) = await asyncio.gather(
            tell(first, deliveries, "one"), tell(second, mixed, "other")
        )
    assert sorted(one + other) == sorted(each.event.event_id for each in deliveries), "each may be sent once"
    by_id = {each.event.event_id: outcome for each, outcome in zip(mixed, mixed_outcomes, strict=True)}
    assert [by_id[each.event.event_id] for each in deliveries] == outcomes, "and both emit the same of it"
    assert all(isinstance(each, list) and len(each) == 1 for each in outcomes)
