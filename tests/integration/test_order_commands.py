"""The order processor's decisions on commands, with their stock, their answers, races, replays and copies."""

import asyncio
import dataclasses
import datetime
from typing import Any

import pytest

from domain.commands import CommandRefused
from domain.failures import Transient
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.orders.v1.order_pb2 import Order, OrderStatus
from storage import due_orders
from storage.command_answers import CommandAnswers
from storage.database import Database
from storage.order_commands import OrderCommands
from storage.stock import StockLevel
from tests.builders import NOW, a_command, a_delivery, an_id
from tests.lives import IN_STOCK, ORDER_PROCESSOR, PAYMENT_PROCESSOR, QUANTITY, Life


@pytest.fixture
async def life(database: Database) -> Life:
    return await Life(database).begin()


async def paid(life: Life) -> Life:
    await life.drain()
    assert (await life.stands())[0] == "PAID"
    return life


async def done(life: Life, name: str, **fields: Any) -> str | None:
    """Gives a command, lets the order processor handle it, and returns its answer."""
    command = life.command(name, **fields)
    await life.drain(ORDER_PROCESSOR)
    return await life.refusal(command)


async def test_a_cancellation_before_the_payment_gives_the_stock_back_and_charges_nothing(life: Life) -> None:
    assert await done(life, "cancel", reason="CHANGED_MIND") == ""
    assert await life.stands() == ("CANCELLED", "NONE")
    assert (await life.row()).failure_reason == "CHANGED_MIND"
    assert await life.level() == StockLevel(life.sku, IN_STOCK, 0, 0, {})
    assert life.emitted[-1].type == E.ORDER_EVENT_TYPE_ORDER_CANCELLED
    assert life.emitted[-1].order_cancelled.reason == "CHANGED_MIND"
    await life.drain()
    assert life.gateway.executed == []
    await life.check()


async def test_a_cancellation_after_the_payment_makes_the_stock_available_again(life: Life) -> None:
    await paid(life)
    assert (await life.level()).sold == QUANTITY
    assert await done(life, "cancel") == ""
    assert await life.stands() == ("CANCELLED", "CAPTURED")
    assert await life.level() == StockLevel(life.sku, IN_STOCK, 0, 0, {})
    await life.drain()
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    await life.check()


async def test_an_order_is_shipped_and_completed(life: Life) -> None:
    await paid(life)
    life.now += datetime.timedelta(hours=2)
    assert await done(life, "ship", carrier="Parcel Service", tracking_code="T-1") == ""
    shipment = (await life.row()).shipment
    assert (shipment.carrier, shipment.tracking_code) == ("Parcel Service", "T-1")
    assert shipment.ship_time.ToDatetime(datetime.UTC) == life.now
    assert life.emitted[-1].order_shipped.shipment == shipment
    assert await done(life, "cancel") == "ILLEGAL_TRANSITION"
    assert await done(life, "complete") == ""
    assert (await life.row()).shipment == shipment
    assert await life.stands() == ("COMPLETED", "CAPTURED")
    await life.check()


async def test_an_order_expires_at_its_time_and_not_before(life: Life) -> None:
    life.now = (await life.row()).expire_time.ToDatetime(datetime.UTC) - datetime.timedelta(microseconds=1)
    assert await done(life, "expire", caller="") == "NOT_DUE"
    life.now += datetime.timedelta(microseconds=1)
    assert await done(life, "expire", caller="", event_id=an_id()) == ""
    assert await life.stands() == ("EXPIRED", "NONE")
    await life.drain()
    assert life.gateway.executed == []
    await life.check()


@pytest.mark.parametrize("fault", ["lost", "late", "dies before", "dies after"])
async def test_an_order_with_a_charge_open_does_not_expire(life: Life, fault: Any) -> None:
    life.gateway.faults = {0: fault, 1: fault, 2: fault}
    await life.step(PAYMENT_PROCESSOR)
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 0, "nobody asks"
    assert await done(life, "expire", caller="") in ("CHARGE_OPEN", "ILLEGAL_TRANSITION")
    assert (await life.stands())[0] in ("PROCESSING", "PAID")


async def test_no_more_than_some_are_asked_to_expire_at_once_and_the_oldest_first(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long outage all that were not charged are due: asking for all would stop everything else."""
    lives = [await Life(own_database).begin() for _ in range(3)]
    async with own_database.connection() as connection:
        for hours, life in enumerate(reversed(lives)):
            await connection.execute(
                "update orders set expire_time = $2 where order_id = $1",
                life.order_id,
                NOW + datetime.timedelta(hours=hours),
            )
    monkeypatch.setattr(due_orders, "_MOST", 2)
    due = await due_orders.DueOrders(own_database).unpaid(NOW + datetime.timedelta(days=1))
    assert due == [lives[2].order_id, lives[1].order_id]


async def test_an_order_whose_gateway_was_away_expires_and_is_never_charged(life: Life) -> None:
    life.gateway.faults = {0: "away"}
    await life.step(PAYMENT_PROCESSOR)
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 1
    await life.drain(ORDER_PROCESSOR)
    await life.drain()
    assert await life.stands() == ("EXPIRED", "NONE")
    assert life.gateway.charged == 0
    payment = await life.payment()
    assert payment is not None
    assert payment["state"] == "closed"
    await life.check()


async def test_an_intent_whose_send_may_have_been_made_by_another_is_not_taken_back(life: Life) -> None:
    """A zombie intends, its successor goes on and sends: what the zombie failed to send tells nothing of that."""
    charge = life.delivery(PAYMENT_PROCESSOR, 0)
    zombie = await life._payments.intend(charge)
    life.now += datetime.timedelta(seconds=1)
    await life._payments.intend(charge)
    await life._payments.not_sent(zombie)
    payment = await life.payment()
    assert payment is not None
    assert payment["first_send_time"] is not None


async def test_anothers_command_is_not_found_and_an_operators_is(life: Life) -> None:
    assert await done(life, "cancel", caller="stranger") == "ORDER_NOT_FOUND"
    assert await done(life, "cancel", caller="olga", scopes=["orders:operate"], etag='"other"') == "ETAG_MISMATCH"
    etag = (await life.row()).etag
    assert await done(life, "cancel", caller="olga", scopes=["orders:operate"], etag=etag) == ""
    await life.check()


async def test_a_command_without_a_row_is_tried_again_and_in_the_end_refused(database: Database) -> None:
    commands = OrderCommands(database, now=lambda: datetime.datetime.now(datetime.UTC))
    command = a_delivery(a_command("cancel", an_id()), group=ORDER_PROCESSOR)
    with pytest.raises(Transient, match="ORDER_UNKNOWN"):
        await commands.decide(command)
    assert await commands.decide(dataclasses.replace(command, is_last=True)) == []
    key = (command.event.event_id, command.event.order.order_id)
    answer = (await CommandAnswers(database).find([key]))[key].result
    assert isinstance(answer, CommandRefused)
    assert answer.reason == "ORDER_NOT_FOUND"


async def test_a_replay_emits_the_same_and_a_copy_nothing(life: Life) -> None:
    cancel = life.command("cancel")
    emitted = await life.handle(cancel)
    assert len(emitted) == 1
    assert await life.handle(cancel) == emitted
    copy = life.put(cancel.event)
    assert await life.handle(copy) == []
    assert (await life.row()).revision == 3
    assert await life.level() == StockLevel(life.sku, IN_STOCK, 0, 0, {})


async def test_a_refusal_stays_one_when_the_order_has_moved_on(life: Life) -> None:
    ship = life.command("ship", request_id="s-1")
    assert await life.handle(ship) == []
    await life.step(PAYMENT_PROCESSOR)
    assert await life.handle(ship) == []
    assert await life.handle(life.put(ship.event)) == []
    assert await life.refusal(ship) == "ILLEGAL_TRANSITION"
    assert await life.stands() == ("PAID", "CAPTURED")


async def test_cancelling_what_is_cancelled_is_done_and_emits_nothing(life: Life) -> None:
    assert await done(life, "cancel", reason="FIRST") == ""
    revision = (await life.row()).revision
    assert await done(life, "cancel", reason="SECOND") == ""
    row = await life.row()
    assert (row.revision, row.failure_reason) == (revision, "FIRST")


async def test_an_answer_is_found_by_event_and_order(life: Life, database: Database) -> None:
    answers = CommandAnswers(database)
    assert await answers.owner(life.order_id) == "shop"
    assert await answers.owner(an_id()) is None
    first, again, refused = (life.command(name) for name in ("cancel", "cancel", "ship"))
    await life.drain(ORDER_PROCESSOR)
    keys = [(each.event.event_id, life.order_id) for each in (first, again, refused)]
    found = await answers.find([*keys, (an_id(), life.order_id)])
    assert set(found) == set(keys)
    results = [found[key].result for key in keys]
    assert isinstance(results[0], Order)
    assert (results[0].status, results[0].revision) == (OrderStatus.ORDER_STATUS_CANCELLED, 3)
    assert results[1] == await life.row()
    assert isinstance(results[2], CommandRefused)
    assert (results[2].reason, results[2].status) == ("ILLEGAL_TRANSITION", OrderStatus.ORDER_STATUS_CANCELLED)
    assert {found[key].fingerprint for key in keys} == {b"fingerprint"}


async def test_two_processes_with_one_command_decide_it_once(life: Life) -> None:
    cancel = life.command("cancel")
    answers = await asyncio.gather(*(life.handle(cancel) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 1
    assert await life.level() == StockLevel(life.sku, IN_STOCK, 0, 0, {})


async def test_of_commands_at_once_the_row_lets_one_win(life: Life) -> None:
    await paid(life)
    rivals = [life.command(name) for name in ("cancel", "ship", "cancel", "ship")]
    answers = await asyncio.gather(*map(life.handle, rivals))
    emitted = [event for answer in answers for event in answer]
    assert len(emitted) == 1
    refusals = [await life.refusal(each) for each in rivals]
    winner = "cancel" if emitted[0].type == E.ORDER_EVENT_TYPE_ORDER_CANCELLED else "ship"
    losers = [refusal for refusal, each in zip(refusals, ("cancel", "ship", "cancel", "ship"), strict=True)
              if each != winner]  # fmt: skip
    assert losers == ["ILLEGAL_TRANSITION"] * 2
    assert [each for each in refusals if not each] == ["", ""], "the same once more had been done before"


async def test_a_cancellation_and_a_capture_at_once_come_one_after_the_other(database: Database) -> None:
    outcomes = set()
    for turn in range(12):
        life = await Life(database).begin()
        charge, cancel = life.delivery(PAYMENT_PROCESSOR, 0), life.command("cancel")
        if turn % 2:
            await asyncio.gather(life.handle(charge), life.handle(cancel))
        else:
            await asyncio.gather(life.handle(cancel), life.handle(charge))
        await life.drain()  # both again, which changes nothing, and what follows
        assert (await life.stands())[0] == "CANCELLED"
        await life.check()
        outcomes.add(life.gateway.charged)
    assert outcomes <= {0, 1500}


async def test_a_command_that_is_tried_for_the_last_time_knows_it(life: Life) -> None:
    unknown = a_command("cancel", an_id())
    delivery = a_delivery(unknown, group=ORDER_PROCESSOR, is_last=True)
    assert await life.handle(delivery) == []
