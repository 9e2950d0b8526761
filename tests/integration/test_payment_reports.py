"""Reports of the gateway's: an unknown charge is settled by them, and nothing that is decided is touched."""

import dataclasses

import pytest

from domain.events import payment_reported
from domain.failures import Transient
from domain.records import Coordinates, Delivery
from messaging.topics import ORDERS
from orderflow.events.v1.order_event_pb2 import OrderEvent
from storage.database import Database
from tests.builders import an_id
from tests.lives import PAYMENT_PROCESSOR, Life

DECLINED = "pm_card_chargeDeclined"


async def unknown(database: Database, *, payment_method: str = "pm_card_visa") -> Life:
    """An order whose charge was sent twice and executes only now: its record is a dead letter."""
    life = await Life(database).begin(payment_method=payment_method)
    life.gateway.faults = {0: "late", 1: "late"}
    await life.drain()
    assert await life.stands() == ("PROCESSING", "UNKNOWN")
    assert len(life.dead) == 1
    return life


def emitted_by(life: Life, report: Delivery) -> list[OrderEvent]:
    return [event for event in life.emitted if event.metadata.causation_id == report.event.event_id]


@pytest.mark.parametrize(
    ("payment_method", "stands"), [("pm_card_visa", ("PAID", "CAPTURED")), (DECLINED, ("PAYMENT_FAILED", "DECLINED"))]
)
async def test_a_report_settles_an_unknown_charge(
    database: Database, payment_method: str, stands: tuple[str, str]
) -> None:
    life = await unknown(database, payment_method=payment_method)
    await life.gateway.execute_late()
    report = life.report()
    await life.drain()
    assert await life.stands() == stands
    assert len(emitted_by(life, report)) == 1
    await life.check()
    await life.replay_dead()
    assert life.dead == [], "the dead letter has nothing to do any more"
    assert await life.stands() == stands
    await life.check()


async def test_a_report_that_comes_before_the_charge_decides_nothing_and_the_next_one_does(database: Database) -> None:
    life = await unknown(database)
    early = life.report()
    await life.drain()
    assert await life.stands() == ("PROCESSING", "UNKNOWN")
    assert emitted_by(life, early) == []
    await life.gateway.execute_late()
    life.report()
    await life.drain()
    assert await life.stands() == ("PAID", "CAPTURED")
    await life.check()


async def test_a_report_that_is_delivered_twice_is_told_once(database: Database) -> None:
    life = await unknown(database)
    await life.gateway.execute_late()
    report = life.report()
    life.put(report.event)
    await life.drain()
    assert len(emitted_by(life, report)) == 1
    await life.check()
    life.emitted.clear()
    await life.again(report)
    assert len(emitted_by(life, report)) == 1, "a replay after a crash says the same again"


async def test_a_report_that_is_handled_while_the_charge_is_under_way(database: Database) -> None:
    life = await Life(database).begin()
    handled: list[list[OrderEvent]] = []

    async def another_process() -> None:
        reported = payment_reported(an_id(), life.order_id, source="webhook", now=life.now)
        handled.append(await life.handle(Delivery(reported, PAYMENT_PROCESSOR, Coordinates(ORDERS.name, 1, 0), 1)))
        life._emit(handled[0])

    life.gateway.after_charge = another_process
    await life.drain()
    assert len(handled[0]) == 1
    assert await life.stands() == ("PAID", "CAPTURED")
    await life.check()


async def test_a_report_of_an_order_that_was_called_off_gives_back_what_was_charged_all_the_same(
    database: Database,
) -> None:
    life = await unknown(database)
    life.command("cancel")
    report = life.report()
    await life.drain("order-processor")
    await life.gateway.execute_late()
    await life.drain()  # the report stands before the ORDER_CANCELLED, which closes the key
    assert emitted_by(life, report) == []
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    await life.check()


async def test_an_order_that_has_no_row_is_waited_for_and_then_none_of_ours(database: Database) -> None:
    life = Life(database)
    reported = payment_reported(an_id(), an_id(), source="webhook", now=life.now)
    delivery = Delivery(reported, PAYMENT_PROCESSOR, Coordinates(ORDERS.name, 0, 5), 1)
    with pytest.raises(Transient, match="ORDER_UNKNOWN"):
        await life.handle(delivery)
    assert await life.handle(dataclasses.replace(delivery, is_last=True)) == []


async def test_an_order_that_was_never_charged_has_nothing_to_report_on(database: Database) -> None:
    life = await Life(database).begin(payment_method=DECLINED)
    [processing] = life.orders
    life.orders.clear()
    report = life.report()
    await life.drain()
    assert emitted_by(life, report) == []
    life.put(processing)
    await life.drain()
    assert await life.stands() == ("PAYMENT_FAILED", "DECLINED")
