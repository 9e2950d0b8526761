"""Which PaymentIntent stands for a payment's key: the first one that is stored, and none once the key is closed."""

import asyncio

import pytest

from domain.reconciliation import FoundCharge
from storage.database import Database
from storage.payment_decisions import ChargeIntent, PaymentDecisions
from storage.payment_intents import PaymentIntents
from storage.restores import Restores
from tests.builders import NOW
from tests.lives import PAYMENT_PROCESSOR, Life


@pytest.fixture
async def key(database: Database) -> str:
    """The key of an order whose charge is intended."""
    return await a_key(database)


async def a_key(database: Database) -> str:
    life = await Life(database).begin()
    intent = await PaymentDecisions(database, now=lambda: NOW).intend(life.delivery(PAYMENT_PROCESSOR, 0))
    assert isinstance(intent, ChargeIntent)
    return intent.idempotency_key


async def test_the_first_id_stands(database: Database, key: str) -> None:
    intents = PaymentIntents(database)
    assert await intents.find(key) is None
    assert await intents.store(key, "pi_1") == "pi_1"
    assert await intents.store(key, "pi_2") == "pi_1"
    assert await intents.find(key) == "pi_1"


async def test_nothing_is_stored_under_a_closed_key(database: Database, key: str) -> None:
    intents = PaymentIntents(database)
    assert await intents.close(key) is None
    assert await intents.store(key, "pi_1") is None
    assert await intents.find(key) is None
    assert await intents.close(key) is None


async def test_closing_tells_what_is_stored_and_keeps_it(database: Database, key: str) -> None:
    intents = PaymentIntents(database)
    await intents.store(key, "pi_1")
    for _ in range(2):
        assert await intents.close(key) == "pi_1"
    assert await intents.find(key) == "pi_1"
    assert await intents.store(key, "pi_1") is None, "closed: it is not to be confirmed"


async def test_a_key_without_a_payment_is_closed(database: Database) -> None:
    intents = PaymentIntents(database)
    assert await intents.store("charge-nobody", "pi_1") is None
    assert await intents.close("charge-nobody") is None


async def test_what_was_found_after_a_restore_stands_for_what_the_row_has_lost(own_database: Database) -> None:
    intents, key = PaymentIntents(own_database), await a_key(own_database)
    found = [FoundCharge(key, has_money=True, gateway_intent="pi_1")]
    await Restores(own_database).record([*found, FoundCharge("charge-nobody", has_money=False, gateway_intent="pi_2")])
    assert await intents.find(key) == "pi_1"
    assert await intents.find("charge-nobody") == "pi_2"
    assert await intents.store(key, "pi_3") == "pi_1", "nothing new is confirmed"
    await Restores(own_database).record([FoundCharge(key, has_money=True, gateway_intent="pi_4")])
    assert await intents.find(key) == "pi_1", "the row says what stands"


async def test_closing_tells_what_was_found(own_database: Database) -> None:
    intents, key = PaymentIntents(own_database), await a_key(own_database)
    await Restores(own_database).record([FoundCharge(key, has_money=True, gateway_intent="pi_1")])
    assert await intents.close(key) == "pi_1"
    assert await intents.store(key, "pi_2") is None


async def test_storing_and_closing_at_once_agree(database: Database) -> None:
    """Either the id was stored first, and closing tells of it; or it was not, and whoever made it hears so."""
    intents = PaymentIntents(database)
    for number in range(20):
        life = await Life(database).begin()
        intent = await PaymentDecisions(database, now=lambda: NOW).intend(life.delivery(PAYMENT_PROCESSOR, 0))
        assert isinstance(intent, ChargeIntent)
        stored, closed = await asyncio.gather(
            intents.store(intent.idempotency_key, f"pi_{number}"), intents.close(intent.idempotency_key)
        )
        assert stored == closed
