"""After a restore that lost commits what the gateway has done is found there, and nothing is done twice (semantics 24).

The database goes back to a copy; the topic and the gateway's book do not. Two days pass, so that the gateway has
forgotten its keys: a charge that is sent again is a second one.
"""

import asyncio
import dataclasses
import datetime
from typing import Any

import asyncpg
import pytest

from devstack import PostgresServer
from domain.failures import Transient
from domain.orders import charge_key
from domain.reconciliation import FoundCharge
from settings import DatabaseSettings
from storage.database import Database
from storage.restores import Restores
from storage.stock import Stock
from tests import engines
from tests.builders import NOW, a_delivery
from tests.lives import IN_STOCK, ORDER_PROCESSOR, PATIENCE, PAYMENT_PROCESSOR, TOTAL, Life
from workers.gateways.book import KeyWasClosed
from workers.gateways.gateway import Charge, GatewayUnavailable

LONG = datetime.timedelta(days=2)
DECLINED = "pm_card_chargeDeclined"


class Restorable:
    """A life whose database can go back."""

    def __init__(self, server: PostgresServer, settings: DatabaseSettings) -> None:
        self.life: Life
        self._server = server
        self._settings = settings
        self._copy: DatabaseSettings | None = None
        self._database = Database(settings, application="tests")

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    async def begin(self, **fields: Any) -> Life:
        self.life = await Life(self._database).begin(**fields)
        return self.life

    async def back_up(self) -> None:
        await self._database.close()
        template = self._settings.url.get_secret_value().rpartition("/")[2]
        async with asyncio.timeout(30):
            while self._copy is None:
                try:
                    self._copy = await engines.new_database(self._server, template=template)
                except asyncpg.ObjectInUseError:
                    await asyncio.sleep(0.05)  # a connection that was closed just now
        await self._database.open()

    async def restore(self, *, after: datetime.timedelta = LONG, recorded: bool = True, listed: bool = True) -> Life:
        """Goes back to the copy, and takes both groups back. `listed`: the gateway's charges are found."""
        assert self._copy is not None
        await self._database.close()
        self._database._settings = self._copy
        await self._database.open()
        if recorded:
            found = await self.life.gateway.movements(NOW - LONG, NOW + 2 * LONG)
            await Restores(self._database).record(
                FoundCharge(charge_key(each.order_id), has_money=True)
                for each in found.movements
                if listed and each.kind == "charge"
            )
        self.life.now += after
        self.life.positions = {ORDER_PROCESSOR: 0, PAYMENT_PROCESSOR: 0}
        return self.life


@pytest.fixture
async def restorable(postgres: PostgresServer) -> Any:
    made = Restorable(postgres, await engines.new_database(postgres, template=engines.TEMPLATE))
    await made.open()
    yield made
    await made.close()


async def settled(life: Life, *, charged: int) -> None:
    """Lets all be handled, the order processor first, and holds the equations. A repeated event counts once."""
    await life.drain(ORDER_PROCESSOR)
    await life.sweep()
    await life.drain()
    await life.replay_dead()  # what has waited for the payment processor, on its retry topics
    await life.drain()
    life.now += 2 * PATIENCE - datetime.timedelta(seconds=life.now.timestamp() % PATIENCE.total_seconds())
    await life.sweep()  # closes the keys of those that expired in doubt
    await life.drain()
    assert life.dead == []
    assert life.gateway.charged == charged, "the gateway has charged once, or not at all"
    life.emitted = list({event.event_id: event for event in life.emitted}.values())
    await life.check()


async def test_without_a_record_of_the_restore_it_would_be_charged_twice(restorable: Restorable) -> None:
    """That the others show something."""
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain()
    await restorable.restore(recorded=False)
    await life.drain()
    assert life.gateway.charged == 2 * TOTAL


async def test_a_charge_that_is_forgotten_is_found_although_its_order_is_past_its_time(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain()
    await restorable.restore()
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("PAID", "CAPTURED")


async def test_a_decline_that_is_forgotten_is_found(restorable: Restorable) -> None:
    life = await restorable.begin(payment_method=DECLINED)
    await restorable.back_up()
    await life.drain()
    await restorable.restore(after=datetime.timedelta(minutes=10))
    await settled(life, charged=0)
    assert await life.stands() == ("PAYMENT_FAILED", "DECLINED")
    assert len(life.gateway.executed) == 1


async def test_what_the_row_says_was_not_sent_is_looked_up(restorable: Restorable) -> None:
    life = await restorable.begin()
    life.gateway.faults = {0: "away"}
    await life.step(PAYMENT_PROCESSOR)
    payment = await life.payment()
    assert payment is not None
    assert payment["first_send_time"] is None
    await restorable.back_up()
    await life.drain()
    await restorable.restore()
    await settled(life, charged=TOTAL)


async def test_what_the_row_says_was_sent_is_looked_up(restorable: Restorable) -> None:
    life = await restorable.begin()
    life.gateway.faults = {0: "dies before"}
    await life.step(PAYMENT_PROCESSOR)
    await restorable.back_up()
    await life.drain()
    await restorable.restore()
    await settled(life, charged=TOTAL)


async def test_what_was_never_charged_is_charged_while_there_is_time(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await restorable.restore(after=datetime.timedelta(minutes=10))
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("PAID", "CAPTURED")


async def test_what_was_never_charged_and_is_past_its_time_expires_and_its_key_is_closed(
    restorable: Restorable,
) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await restorable.restore()
    await settled(life, charged=0)
    assert await life.stands() == ("EXPIRED", "NONE")
    [closed] = life.gateway.executed
    assert isinstance(closed, KeyWasClosed)


async def test_what_is_past_its_time_is_not_charged_before_the_sweep_comes(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await restorable.restore()
    await life.drain(PAYMENT_PROCESSOR)
    assert life.gateway.executed == []
    assert await life.stands() == ("PROCESSING", "PENDING")
    await settled(life, charged=0)
    assert await life.stands() == ("EXPIRED", "NONE")


async def test_a_charge_that_was_not_listed_of_an_order_that_expires_is_given_back(restorable: Restorable) -> None:
    """It was on its way when the charges were listed."""
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain(PAYMENT_PROCESSOR)
    life.emitted.pop()  # nobody has booked it
    await restorable.restore(listed=False)
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("EXPIRED", "REFUNDED")


async def test_an_expiry_that_is_forgotten_comes_again_and_nothing_is_charged(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    life.now += datetime.timedelta(hours=2)
    await life.sweep()
    await life.drain(ORDER_PROCESSOR)
    assert await life.stands() == ("EXPIRED", "NONE")
    await restorable.restore(after=datetime.timedelta())
    await settled(life, charged=0)
    assert await life.stands() == ("EXPIRED", "NONE")


async def test_a_shipment_that_is_forgotten_waits_for_its_charge(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain()
    life.command("ship")
    await life.drain()
    assert await life.stands() == ("SHIPPED", "CAPTURED")
    await restorable.restore()
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("SHIPPED", "CAPTURED")


async def test_a_command_that_has_waited_long_enough_is_decided_as_the_order_stands(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain()
    await restorable.restore()
    command = life.command("cancel")
    with pytest.raises(Transient, match="CHARGE_FORGOTTEN"):
        await life.handle(command)
    await life.again(dataclasses.replace(command, is_last=True))
    assert await life.stands() == ("CANCELLED", "NONE")
    await life.drain(PAYMENT_PROCESSOR)
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    assert life.gateway.charged == life.gateway.given_back == TOTAL


async def test_a_cancellation_and_its_refund_that_are_forgotten_are_made_once(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain()
    life.command("cancel")
    await life.drain()
    assert life.gateway.given_back == TOTAL
    await restorable.restore()
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("CANCELLED", "REFUNDED")


async def test_a_charge_that_was_not_listed_of_an_order_that_is_cancelled_is_given_back(
    restorable: Restorable,
) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain(PAYMENT_PROCESSOR)
    await restorable.restore(listed=False)
    life.emitted.pop()  # nobody has booked it
    life.command("cancel")
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("CANCELLED", "REFUNDED")


async def test_an_order_that_was_never_charged_and_is_cancelled_closes_its_key(restorable: Restorable) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await restorable.restore()
    life.command("cancel")
    await settled(life, charged=0)
    assert await life.stands() == ("CANCELLED", "NONE")


async def test_a_refund_that_is_forgotten_is_found(restorable: Restorable) -> None:
    life = await restorable.begin()
    await life.drain()
    await restorable.back_up()
    amount = life.emitted[0].order.total
    amount.amount_minor = 400
    life.command("refund", amount=amount)
    await life.drain()
    assert life.gateway.given_back == 400
    await restorable.restore()
    await settled(life, charged=TOTAL)
    assert await life.entries() == [("capture", TOTAL), ("refund", 400)]


async def test_an_order_that_is_forgotten_whole_is_placed_again_and_its_charge_found(restorable: Restorable) -> None:
    await restorable.back_up()
    life = await restorable.begin()
    created = life.emitted[0]
    await life.drain()
    await restorable.restore()
    await Stock(life.database).set_available(life.sku, IN_STOCK)
    [accepted] = await life._decisions.accept(a_delivery(created, group=ORDER_PROCESSOR))
    assert accepted.event_id == life.emitted[1].event_id
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("PAID", "CAPTURED")


async def test_a_look_up_that_gets_no_answer_charges_nothing_and_is_made_again(
    restorable: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = await restorable.begin()
    await restorable.back_up()
    await life.drain()
    await restorable.restore()

    async def away(_: str) -> Charge | None:
        raise GatewayUnavailable("told to")

    with monkeypatch.context() as patched:
        patched.setattr(life.gateway, "find", away)
        for _ in range(2):
            await life.step(PAYMENT_PROCESSOR)
        life.now += LONG
        await life.step(PAYMENT_PROCESSOR)
    assert life.gateway.charged == TOTAL
    await settled(life, charged=TOTAL)
    assert await life.stands() == ("PAID", "CAPTURED")


async def test_what_was_sent_after_one_restore_is_in_doubt_after_the_next(restorable: Restorable) -> None:
    """The first look-up found nothing, and what is in the copy says that nothing was sent."""
    life = await restorable.begin()
    await Restores(life.database).record([])
    life.gateway.faults = {0: "away"}
    await life.step(PAYMENT_PROCESSOR)
    await restorable.back_up()
    await life.drain()
    assert life.gateway.charged == TOTAL
    await restorable.restore()
    await settled(life, charged=TOTAL)


async def test_orders_placed_after_the_restore_are_charged_without_a_look_up(
    restorable: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = await restorable.begin()
    await Restores(life.database).record([])
    async with life.database.connection() as connection:
        await connection.execute("update restores set orders_before = $1", NOW)

    async def unasked(_: str) -> Charge | None:
        raise AssertionError("looked up")

    monkeypatch.setattr(life.gateway, "find", unasked)
    await settled(life, charged=TOTAL)
