"""Intents of messages: one first time per (event, channel), until it is known that nothing was sent."""

from typing import Any

import pytest

from orderflow.orders.v1.order_pb2 import NotificationChannel
from storage.database import Database
from storage.notification_intents import NotificationIntents
from storage.outcomes import Settled
from tests.builders import a_delivery, emitted_for

EMAIL, SMS = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL, NotificationChannel.NOTIFICATION_CHANNEL_SMS


async def test_an_intent_is_new_once(database: Database) -> None:
    intents = NotificationIntents(database, EMAIL)
    delivery = a_delivery(group="notification-email")
    assert await intents.intend(delivery, message_id="<1>") is True
    assert await intents.intend(delivery, message_id="<1>") is False
    assert await NotificationIntents(database, SMS).intend(delivery, message_id="<2>") is True


async def test_a_withdrawn_intent_is_new_again(database: Database) -> None:
    email, sms = NotificationIntents(database, EMAIL), NotificationIntents(database, SMS)
    delivery = a_delivery(group="notification-email")
    await email.intend(delivery, message_id="<1>")
    await sms.intend(delivery, message_id="<1>")
    await email.not_sent(delivery)
    assert await email.intend(delivery, message_id="<1>") is True
    assert await sms.intend(delivery, message_id="<1>") is False


async def test_what_is_decided_is_settled_for_its_group(database: Database) -> None:
    intents = NotificationIntents(database, EMAIL)
    delivery = a_delivery(group="notification-email", offset=7)
    sent = emitted_for(delivery)
    await intents.intend(delivery, message_id="<1>")
    assert await intents.decide(delivery, sent) == [sent]
    assert await intents.decide(delivery, None) == [sent]
    assert await intents.intend(delivery, message_id="<1>") == Settled([sent])
    copy = a_delivery(delivery.event, group="notification-email", offset=8)
    assert await intents.intend(copy, message_id="<1>") == Settled([])
    other = a_delivery(delivery.event, group="notification-sms", offset=7)
    assert await NotificationIntents(database, SMS).intend(other, message_id="<2>") is True


async def test_an_outcome_that_is_stored_meanwhile_is_obeyed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who had the partition before: the message was accepted, and is not sent again."""
    delivery = a_delivery(group="notification-email")
    sent = emitted_for(delivery)
    before, now = NotificationIntents(database, EMAIL), NotificationIntents(database, EMAIL)
    assert await before.intend(delivery, message_id="<1>") is True
    insert = NotificationIntents._insert

    async def insert_late(self: NotificationIntents, *arguments: Any) -> set[str]:
        await before.decide(delivery, sent)
        return await insert(self, *arguments)

    monkeypatch.setattr(NotificationIntents, "_insert", insert_late)
    assert await now.intend(delivery, message_id="<1>") == Settled([sent])


async def test_nothing_is_a_decision(database: Database) -> None:
    intents = NotificationIntents(database, EMAIL)
    delivery = a_delivery(group="notification-email")
    assert await intents.decide(delivery, None) == []
    assert await intents.intend(delivery, message_id="<1>") == Settled([])
