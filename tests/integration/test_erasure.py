"""An erased user is in no table, and nothing brings the user back (semantics 35)."""

import asyncio
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from devstack import PostgresServer
from domain import events, letters
from domain.erasure import UserErased
from domain.projection import ProjectionBatch
from domain.records import Coordinates, Delivery
from messaging.topics import DEAD_LETTERS
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import NotificationSentDetails, OrderEvent
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterFilter, DeadLetterState
from orderflow.orders.v1.order_pb2 import NotificationChannel, Order
from settings import DatabaseSettings
from storage import eraser as eraser_module
from storage import forgotten, order_rows
from storage.command_answers import CommandAnswers
from storage.database import Database
from storage.dead_letters import DeadLetterId, DeadLetters
from storage.eraser import Eraser, WritersOpenError
from storage.notification_intents import NotificationIntents
from storage.order_commands import OrderCommands
from storage.order_decisions import OrderDecisions
from storage.order_views import OrderViews
from storage.payment_decisions import ChargeIntent, PaymentDecisions
from storage.projection import Projection
from storage.stock import Stock
from tests import engines
from tests.builders import a_command, a_delivery, a_sku, an_id, an_item, an_order, order_created
from tests.e2e import programs
from tests.scans import tables_with
from workers import order_processor

EMAIL_CHANNEL = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL
ALL = {"orders", "order_views", "order_events", "outcomes", "dead_letters", "projection_failures"}
"""The tables that hold contact data in these tests, outcomes only as earlier versions stored them."""

REBUILT = ("order_views", "order_events", "dead_letters", "projection_failures", "projection_positions")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Person:
    user_id: str = dataclasses.field(default_factory=lambda: f"user-{an_id()}")
    email: str = dataclasses.field(default_factory=lambda: f"mail.{an_id()}@example.com")
    phone: str = dataclasses.field(default_factory=lambda: f"+49170{int(an_id()[:6], 16):010d}"[:15])
    name: str = dataclasses.field(default_factory=lambda: f"Name {an_id()}")

    @property
    def contacts(self) -> tuple[str, str, str]:
        return self.email, self.phone, self.name

    @property
    def fields(self) -> dict[str, Any]:
        return {"user_id": self.user_id, "email": self.email, "phone": self.phone, "labels": {"name": self.name}}


class House:
    """Everything that stores something of an order, on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.decisions = OrderDecisions(database, now=now)
        self.commands = OrderCommands(database, now=now)
        self.payments = PaymentDecisions(database, now=now)
        self.intents = NotificationIntents(database, EMAIL_CHANNEL)
        self.projection = Projection(database)
        self.eraser = Eraser(database, dead_letter_topic=DEAD_LETTERS.name)
        self.sku = a_sku()
        self._offset = 100

    def at(self, event: OrderEvent, group: str = "order-processor") -> Delivery:
        """Returns the event at coordinates of its own."""
        self._offset += 1
        return a_delivery(event, group=group, offset=self._offset)

    def created(self, person: Person, *, placed: datetime.datetime | None = None) -> OrderEvent:
        fields = person.fields | {"items": [an_item(self.sku, 1)]}
        order = an_order(now=placed or now() - datetime.timedelta(hours=1), **fields)
        return order_created(order, request_id=f"r-{order.order_id}", **fields)

    async def life(self, person: Person) -> list[OrderEvent]:
        """Has an order placed, charged and told of. Returns its events, none of them projected."""
        await Stock(self.database).set_available(self.sku, 1000)
        created = self.created(person)
        [processing] = await self.decisions.accept(self.at(created))
        charging = self.at(processing, "payment-processor")
        assert isinstance(await self.payments.intend(charging), ChargeIntent)
        [paid] = await self.payments.captured(charging, gateway_reference=f"ch-{an_id()}")
        told = self.at(created, "notification-email")
        assert await self.intents.intend(told, message_id=f"<{created.event_id}>") is True
        details = NotificationSentDetails(channel=EMAIL_CHANNEL, notified_type=created.type)
        [sent] = await self.intents.decide(told, events.notification_sent(told, details, now=now()))
        return [created, processing, paid, sent]

    async def project(
        self, told: Sequence[OrderEvent], *, dead: Sequence[DeadLetter] = (), failed: Sequence[DeadLetter] = ()
    ) -> None:
        """Projects copies of what is given, as it comes from the topics."""
        position = await self.projection.position("orders", 0)
        if position is None:
            position = 0
            await self.projection.begin("orders", 0, position)
        batch = ProjectionBatch("orders", 0, position, position + 100)
        batch.events += [(Coordinates("orders", 0, position + n), _copy(event)) for n, event in enumerate(told)]
        batch.dead_letters += [(Coordinates("dlq", 0, position + n), _copy(letter)) for n, letter in enumerate(dead)]
        batch.failures += [(Coordinates("orders", 1, position + n), _copy(letter)) for n, letter in enumerate(failed)]
        await self.projection.apply(batch)

    async def rebuild(self) -> None:
        """Forgets the read model, as one does before it is made anew from the topics."""
        async with self.database.connection() as connection:
            for table in REBUILT:
                await connection.execute(f"delete from {table}")

    async def store_old_outcome(self, told: Sequence[OrderEvent]) -> None:
        """Stores an outcome as earlier versions did."""
        async with self.database.connection() as connection:
            await connection.execute(
                "insert into outcomes (group_name, event_id, topic, partition, record_offset, events)"
                " values ('an earlier version', $1, 'orders', 0, 1, $2)",
                an_id(),
                [event.SerializeToString() for event in told],
            )

    async def tables_with(self, person: Person) -> set[str]:
        return await tables_with(self.database, *person.contacts)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _contact(event: OrderEvent) -> tuple[str, str, dict[str, str]]:
    return event.order.email, event.order.phone, dict(event.order.labels)


def dead(event: OrderEvent, *, group: str = "order-processor", error_class: str = "TEST") -> DeadLetter:
    letter = DeadLetter(
        key=event.order.order_id.encode(), value=event.SerializeToString(), group=group, error_class=error_class
    )
    letter.origin.topic, letter.origin.offset = "orders", 7
    return letter


def unreadable(text: str, key: str = "junk") -> DeadLetter:
    return DeadLetter(key=key.encode(), value=b"\xff" + text.encode(), group="g", error_class="UNDECODABLE")


@pytest.fixture
def house(own_database: Database) -> House:
    return House(own_database)


@pytest.fixture
def person() -> Person:
    return Person()


async def everywhere(house: House, person: Person) -> tuple[list[OrderEvent], list[DeadLetter], list[DeadLetter]]:
    """Puts the person into every table that can have contact data. Returns what the topics have of it."""
    told = await house.life(person)
    letters_of = [dead(told[0]), unreadable(person.email), unreadable("whatever", told[0].order.order_id)]
    failed = [dead(told[1]), unreadable(f"call {person.phone}")]
    await house.project(told, dead=letters_of, failed=failed)
    await house.store_old_outcome(told[1:3])
    return told, letters_of, failed


async def test_after_an_erasure_no_table_has_the_user_and_others_are_as_they_were(house: House, person: Person) -> None:
    anothers = Person()
    await house.project(await house.life(anothers), dead=[dead(house.created(anothers))])
    await everywhere(house, person)
    assert await house.tables_with(person) == ALL, "or the scan is blind"
    before = await house.tables_with(anothers)
    counts = await house.eraser.erase(person.user_id)
    assert await house.tables_with(person) == set()
    assert counts == {
        "dead_letters": 3,
        "projection_failures": 2,
        "outcomes": 1,
        "order_events": 4,
        "orders": 1,
        "order_views": 1,
    }
    assert set((await house.eraser.erase(person.user_id)).values()) == {0}, "again: nothing is left"
    assert await house.tables_with(anothers) == before


async def test_the_order_itself_stays(house: House, person: Person) -> None:
    told = await house.life(person)
    await house.project(told)
    views = OrderViews(house.database)
    before = await views.get(told[0].order.order_id)
    await house.eraser.erase(person.user_id)
    after = await views.get(told[0].order.order_id)
    assert before is not None
    assert after is not None
    for field in ("email", "phone", "labels"):
        before.order.ClearField(field)
    assert after == before
    async with house.database.connection() as connection:
        row = await order_rows.find(connection, told[0].order.order_id)
    assert row == after.order


async def test_outcomes_never_have_the_user_and_a_replay_has(house: House, person: Person) -> None:
    await Stock(house.database).set_available(house.sku, 10)
    delivery = house.at(house.created(person))
    first = await house.decisions.accept(delivery)
    assert await house.tables_with(person) == {"orders"}, "not in outcomes"
    assert await house.decisions.accept(delivery) == first, "a replay emits the same"
    assert first[0].order.email == person.email
    assert first[0].order.labels == {"name": person.name}


async def test_a_replay_after_an_erasure_has_the_same_event_ids_and_no_contact(house: House, person: Person) -> None:
    await Stock(house.database).set_available(house.sku, 10)
    delivery = house.at(house.created(person))
    [first] = await house.decisions.accept(delivery)
    await house.eraser.erase(person.user_id)
    [again] = await house.decisions.accept(delivery)
    assert _contact(again) == ("", "", {})
    for field in ("email", "phone", "labels"):
        first.order.ClearField(field)
    assert again == first


async def test_the_answer_to_a_command_has_the_user_until_the_erasure(house: House, person: Person) -> None:
    told = await house.life(person)
    command = house.at(a_command("cancel", told[0].order.order_id, request_id="c-1"))
    [cancelled] = await house.commands.decide(command)
    key = command.event.event_id, told[0].order.order_id
    answer = (await CommandAnswers(house.database).find([key]))[key]
    assert answer.result == cancelled.order
    await house.eraser.erase(person.user_id)
    answer = (await CommandAnswers(house.database).find([key]))[key]
    assert isinstance(answer.result, Order)
    assert (answer.result.email, answer.result.status) == ("", cancelled.order.status)


# -- what comes later --------------------------------------------------------------------------------------------------


async def test_a_rebuild_from_the_topics_brings_nothing_back(house: House, person: Person) -> None:
    told, letters_of, failed = await everywhere(house, person)
    await house.eraser.erase(person.user_id)
    await house.rebuild()
    await house.project(told, dead=letters_of, failed=failed)
    assert await house.tables_with(person) == set()
    assert await OrderViews(house.database).revision(told[0].order.order_id) == 3
    counts = await engines.fetch(house.database, "select count(*) from dead_letters")
    assert counts == [{"count": 3}], "what failed is known, without its bytes"


async def test_what_was_projected_before_its_order_was_known_is_cleared_with_it(house: House, person: Person) -> None:
    # The topic of notifications was read ahead; neither the order processor nor the projector has seen the order.
    created = house.created(person)
    told = house.at(created, "notification-email")
    details = NotificationSentDetails(channel=EMAIL_CHANNEL, notified_type=created.type)
    await house.project([events.notification_sent(told, details, now=now())])
    assert await house.tables_with(person) == {"order_events"}
    await house.eraser.erase(person.user_id)
    await house.project([created])
    assert await house.tables_with(person) == set()


async def test_an_order_that_was_on_its_way_is_decided_without_contact_data(house: House, person: Person) -> None:
    await Stock(house.database).set_available(house.sku, 10)
    created = house.created(person)
    await house.eraser.erase(person.user_id)
    [processing] = await house.decisions.accept(house.at(created))
    assert processing.type == E.ORDER_EVENT_TYPE_ORDER_PROCESSING
    assert _contact(processing) == ("", "", {})
    await house.project([created, processing])
    assert await house.tables_with(person) == set()


async def test_an_order_that_is_placed_later_is_as_any_other(house: House, person: Person) -> None:
    await Stock(house.database).set_available(house.sku, 10)
    await house.eraser.erase(person.user_id)
    later = house.created(person, placed=now() + datetime.timedelta(minutes=2))
    [processing] = await house.decisions.accept(house.at(later))
    assert processing.order.email == person.email
    assert await house.intents.intend(house.at(later, "notification-email"), message_id="<m>") is True


async def test_an_erased_user_is_not_told_and_the_event_that_says_so_has_no_contact(
    house: House, person: Person
) -> None:
    created = house.created(person)
    told = house.at(created, "notification-email")
    await house.eraser.erase(person.user_id)
    with pytest.raises(UserErased):
        await house.intents.intend(told, message_id="<m>")
    assert await engines.fetch(house.database, "select * from notification_intents") == []
    details = NotificationSentDetails(channel=EMAIL_CHANNEL, notified_type=created.type)
    [sent] = await house.intents.decide(told, events.notification_sent(told, details, now=now()))
    assert _contact(sent) == ("", "", {})
    assert await house.tables_with(person) == set()


async def test_what_a_worker_stores_at_the_same_time_is_cleared_too(house: House, person: Person) -> None:
    created = house.created(person)
    async with house.database.transaction() as worker:
        await order_rows.insert_all(worker, [created.order], callers=["shop"])
        assert not (await forgotten.look(worker, [created.order])).erased
        erasing = asyncio.create_task(house.eraser.erase(person.user_id))
        while not await engines.fetch(house.database, "select from erasures"):
            assert not erasing.done()
        done, _ = await asyncio.wait([erasing], timeout=0.5)
        assert not done, "it waits for who may have looked too early"
    counts = await erasing
    assert counts["orders"] == 1
    assert await house.tables_with(person) == set()


async def test_a_transaction_that_stays_open_is_told_of_and_the_erasure_repeated(
    house: House, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eraser_module, "_WRITERS_SECONDS", 0.2)
    await house.project(await house.life(person))
    async with house.database.transaction() as worker:
        await worker.execute("insert into consumer_groups values ('open', 'open')")
        with pytest.raises(WritersOpenError, match="run the command again"):
            await house.eraser.erase(person.user_id)
    monkeypatch.undo()
    await house.eraser.erase(person.user_id)
    assert await house.tables_with(person) == set()


async def test_a_user_id_that_is_an_address_goes_too(house: House) -> None:
    person = dataclasses.replace(Person(), user_id="")
    person = dataclasses.replace(person, user_id=person.email)
    told, letters_of, failed = await everywhere(house, person)
    await house.eraser.erase(person.user_id)
    assert await house.tables_with(person) == set()
    await house.rebuild()
    await house.project(told, dead=letters_of, failed=failed)
    assert await house.tables_with(person) == set()
    view = await OrderViews(house.database).get(told[0].order.order_id)
    assert view is not None
    assert view.order.user_id.startswith("erased-")
    assert set((await house.eraser.erase(person.user_id)).values()) == {0}


async def test_the_hash_is_not_one_of_the_user_id_alone(house: House, person: Person) -> None:
    await house.eraser.erase(person.user_id)
    plain = "select from erasures where user_hash = sha256(convert_to($1, 'UTF8'))"
    assert await engines.fetch(house.database, plain, person.user_id) == []
    assert await tables_with(house.database, person.user_id) == set()


# -- dead letters ------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_of_an_erased_user_is_replayed_and_its_order_goes_on(house: House, person: Person) -> None:
    await Stock(house.database).set_available(house.sku, 10)
    created = house.created(person)
    await house.project([created], dead=[dead(created)])
    await house.eraser.erase(person.user_id)
    [entry] = await DeadLetters(house.database).page(DeadLetterFilter(), include_resolved=False, size=10, before=None)
    event = letters.event_in(entry.dead_letter)
    assert event is not None
    assert event.order.email == ""
    [processing] = await order_processor.handle(
        house.at(event), decisions=house.decisions, order_commands=house.commands
    )
    assert processing.type == E.ORDER_EVENT_TYPE_ORDER_PROCESSING
    assert await house.tables_with(person) == set()


async def test_one_of_which_nothing_is_kept_is_discarded_and_says_why(house: House, person: Person) -> None:
    await house.project(await house.life(person), dead=[unreadable(person.email)])
    await house.eraser.erase(person.user_id)
    entry = await DeadLetters(house.database).get(DeadLetterId(0, 0))
    assert entry is not None
    assert entry.state == DeadLetterState.DEAD_LETTER_STATE_DISCARDED
    assert "erased" in entry.resolution_reason
    assert not entry.dead_letter.value


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def own_settings(postgres: PostgresServer) -> DatabaseSettings:
    return await engines.new_database(postgres, template=engines.TEMPLATE)


async def privacy(
    monkeypatch: pytest.MonkeyPatch, settings: DatabaseSettings, *arguments: str, stdin: bytes | None = None
) -> tuple[int, str, str]:
    monkeypatch.setenv("ORDERFLOW_DATABASE_URL", settings.url.get_secret_value())
    code, out, err = await programs.run(sys.executable, "-m", "cli", "privacy", "erase", *arguments, stdin=stdin)
    return code, out.decode(), err


async def test_the_command_asks_clears_and_counts(
    own_settings: DatabaseSettings, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engines.opened(own_settings) as database:
        house = House(database)
        await everywhere(house, person)
        code, out, err = await privacy(monkeypatch, own_settings, person.user_id, stdin=b"n\n")
        assert (code, out.strip()) == (1, ""), err
        assert "Orders of this user: 1" in err
        assert await house.tables_with(person) == ALL, "nothing was done"
        code, out, err = await privacy(monkeypatch, own_settings, person.user_id, "--yes", "-o", "json")
        assert code == 0, err
        counts = {row["table"]: row["cleared"] for row in json.loads(out)}
        assert (counts["orders"], counts["order_views"], counts["order_events"]) == (1, 1, 4)
        assert await house.tables_with(person) == set()
        assert not any(contact in out + err for contact in person.contacts)
        code, out, _ = await privacy(monkeypatch, own_settings, person.user_id, "--yes", "-o", "json")
        assert {row["cleared"] for row in json.loads(out)} == {0}


async def test_a_database_that_is_behind_is_refused(
    postgres: PostgresServer, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = await privacy(monkeypatch, await engines.new_database(postgres), person.user_id, "--yes")
    assert code == 1
    assert "orderflow db migrate" in err
