"""Real SMTP conversations that go as they do out there: each ends in its right outcome, and nobody is told twice.

The one exception is a connection that is cut off after the message was handed over: that is counted.
"""

import asyncio
import collections
import email.parser
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from devstack.system import is_serving
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import NotificationChannel
from orderflow_client import OrdersClient, OrderStatus
from tests.builders import an_id
from tests.e2e import observer, orders
from tests.guarantees import moody_mail
from tests.guarantees.fronted import FrontedSystem

EMAIL = "notification-email"
SENT, FAILED = (
    OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT,
    OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_FAILED,
)
TOLD = {
    OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED,
    OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING,
    OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID,
}


@pytest.fixture
async def moody(healthy: FrontedSystem) -> AsyncIterator[FrontedSystem]:
    """The system with a moody mail server, and the usual one again afterwards."""
    await healthy.restart_mail(moody=True)
    yield healthy
    await healthy.restart_mail(moody=False)


class Customers:
    """Customers of one kind: an order each, whose life is told by e-mail."""

    def __init__(self, system: FrontedSystem, kind: str) -> None:
        self._system = system
        self._kind = f"{kind}-{an_id()}"
        self.order_ids: set[str] = set()

    async def order(self, client: OrdersClient, count: int) -> None:
        """Places an order for each and waits until all are paid."""
        created = await asyncio.gather(
            *(orders.place(client, email=f"{self._kind}-{number}@example.com") for number in range(count))
        )
        settled = await asyncio.gather(*(orders.settled(client, each, within=60) for each in created))
        assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}
        self.order_ids = {order.order_id for order in settled}

    def is_one(self, address: str) -> bool:
        return address.startswith(self._kind)

    async def outcomes(self) -> list[OrderEvent]:
        """Returns what the e-mail channel said about their orders, in the same order each time."""
        events = await observer.read_events(self._system.bootstrap, "notifications")
        theirs = [
            event
            for event in events
            if event.order.order_id in self.order_ids
            and NotificationChannel.NOTIFICATION_CHANNEL_EMAIL
            in (event.notification_sent.channel, event.notification_failed.channel)
        ]
        return sorted(theirs, key=lambda event: event.event_id)

    async def told(self, *, within: float) -> list[OrderEvent]:
        """Waits until there is an outcome for every event of every order, and returns them."""

        async def complete() -> list[OrderEvent]:
            events = await self.outcomes()
            return events if len({_about(event) for event in events}) == len(TOLD) * len(self.order_ids) else []

        return await observer.eventually(complete, within=within, what=f"every outcome for {self._kind}")

    def messages(self) -> collections.Counter[str]:
        """Returns how often the mail server took each message, by Message-ID."""
        parser = email.parser.BytesHeaderParser()
        taken = [parser.parsebytes(path.read_bytes()) for path in self._system.mail_folder.glob("[!.]*.eml")]
        return collections.Counter(mail["Message-ID"] for mail in taken if self.is_one(mail["X-Envelope-To"]))

    def moods(self) -> int:
        """Returns how often the mail server refused or dropped one of theirs."""
        lines = observer.journal(self._system.mail_folder / moody_mail.MOODS)
        return sum(self.is_one(line["recipient"]) for line in lines)


def _about(event: OrderEvent) -> tuple[str, OrderEventType]:
    notified = event.notification_sent.notified_type or event.notification_failed.notified_type
    return event.order.order_id, notified


def assert_one_each(customers: Customers, events: Sequence[OrderEvent], outcome: OrderEventType) -> None:
    """Every event of every order has one outcome, which is this one."""
    assert {event.type for event in events} == {outcome}
    about = collections.Counter(_about(event) for event in events)
    assert about == {(order_id, told): 1 for order_id in customers.order_ids for told in TOLD}


async def counted(system: FrontedSystem) -> dict[str, float]:
    """Returns what the e-mail channel has counted so far."""
    outcomes = ("sent", "failed", "ambiguous")
    metric = "orderflow_notifications_total"
    values = await system.metrics(*((EMAIL, metric, {"channel": "email", "outcome": each}) for each in outcomes))
    retries = await system.metrics((EMAIL, "orderflow_worker_retries_total", {"group": EMAIL}))
    return dict(zip((*outcomes, "retries"), (*values, *retries), strict=True))


async def test_each_conversation_ends_in_its_outcome(moody: FrontedSystem, client: OrdersClient) -> None:
    count = 4
    each = count * len(TOLD)
    letters = await moody.ends("dlq")
    before = await counted(moody)
    kinds = ("fine", moody_mail.GREYLISTED, moody_mail.UNKNOWN, moody_mail.CUT)
    fine, greylisted, unknown, cut = everybody = [Customers(moody, kind) for kind in kinds]
    await asyncio.gather(*(customers.order(client, count) for customers in everybody))
    outcomes = {customers: await customers.told(within=30) for customers in everybody}
    await moody.all_caught_up(within=30)
    assert outcomes == {customers: await customers.outcomes() for customers in everybody}, "nothing came later"

    assert_one_each(fine, outcomes[fine], SENT)
    assert fine.messages() == dict.fromkeys(_message_ids(outcomes[fine]), 1)
    assert {event.metadata.attempt for event in outcomes[fine]} == {1}

    assert_one_each(greylisted, outcomes[greylisted], SENT)
    assert greylisted.messages() == dict.fromkeys(_message_ids(outcomes[greylisted]), 1)
    assert greylisted.moods() >= count, "nobody was greylisted: it proves nothing"
    assert sum(event.metadata.attempt > 1 for event in outcomes[greylisted]) >= count

    assert_one_each(unknown, outcomes[unknown], FAILED)
    assert unknown.messages() == {}
    assert unknown.moods() == each, "a refusal for good is no reason to ask again"
    details = [event.notification_failed for event in outcomes[unknown]]
    assert {(failed.reason, failed.template.rpartition("/")[0]) for failed in details} == {("SMTP_550", "en/email")}

    assert_one_each(cut, outcomes[cut], SENT)
    assert cut.messages() == dict.fromkeys(_message_ids(outcomes[cut]), 2), "again, under the same Message-ID"
    assert cut.moods() == each

    after = await counted(moody)
    assert after["ambiguous"] - before["ambiguous"] == each
    assert after["sent"] - before["sent"] == 3 * each
    assert after["failed"] - before["failed"] == each
    assert await moody.ends("dlq") == letters, "a dead letter was written"


def _message_ids(events: Sequence[OrderEvent]) -> list[str]:
    return [event.notification_sent.provider_message_id for event in events]


async def test_a_mail_server_away_for_2_s(moody: FrontedSystem, client: OrdersClient) -> None:
    await messages_wait_for_the_server(moody, client, count=10, seconds=2)


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_a_mail_server_away_for_a_minute(moody: FrontedSystem, client: OrdersClient) -> None:
    await messages_wait_for_the_server(moody, client, count=200, seconds=60)


async def messages_wait_for_the_server(
    system: FrontedSystem, client: OrdersClient, *, count: int, seconds: float
) -> None:
    letters = await system.ends("dlq")
    await system.caught_up(EMAIL, within=30)
    before = await counted(system)
    customers = Customers(system, "fine")

    await system.stop_role("mail")
    began = time.monotonic()
    await customers.order(client, count)  # nothing else waits for the mail server

    async def is_known_and_long_enough() -> bool:
        is_known = not await is_serving(system.health_address(EMAIL))
        return is_known and time.monotonic() > began + seconds

    await observer.eventually(is_known_and_long_enough, within=seconds + 20, what="an outage that the worker knows of")
    assert await customers.outcomes() == [], "the outage let messages through: it proves nothing"
    system.start_stand_in("mail")

    outcomes = await customers.told(within=60)
    await system.all_caught_up(within=30)
    assert outcomes == await customers.outcomes(), "nothing came later"
    assert_one_each(customers, outcomes, SENT)
    assert customers.messages() == dict.fromkeys(_message_ids(outcomes), 1)
    assert {event.metadata.attempt for event in outcomes} == {1}, "an attempt was used"
    after = await counted(system)
    assert {name: after[name] - before[name] for name in after} == {
        "sent": float(len(outcomes)),
        "failed": 0.0,
        "ambiguous": 0.0,
        "retries": 0.0,
    }
    assert await system.ends("dlq") == letters, "a dead letter was written"
