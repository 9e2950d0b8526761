"""One message per event and channel: intents, ambiguity, and what is not told at all."""

import asyncio
import datetime
from collections.abc import Sequence, Set

import pytest

from domain.erasure import UserErased
from domain.failures import DependencyDown, Permanent, Transient
from domain.lifecycle import LIFECYCLE
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import NotificationChannel
from storage.outcomes import Settled
from tests.builders import NOW, a_delivery, order_event
from workers.channels.channel import Message, SendUnknown, Undeliverable
from workers.channels.rendering import Renderer
from workers.notification_service import Ambiguous, NotificationService

EMAIL, SMS = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL, NotificationChannel.NOTIFICATION_CHANNEL_SMS
MAX_AGE = datetime.timedelta(hours=24)


class ScriptedChannel:
    """Accepts messages, or raises what it is told, once."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.raises: list[Exception] = []

    async def send(self, message: Message) -> str:
        if self.raises:
            raise self.raises.pop(0)
        self.sent.append(message)
        return f"provider-{len(self.sent)}"

    async def aclose(self) -> None:
        pass


class Intents:
    """What storage keeps of one (event, channel)."""

    def __init__(self) -> None:
        self.message_id: str | None = None
        self.decided: list[OrderEvent] | None = None
        self.down: BaseException | None = None
        self.user_is_erased = False

    async def intend(self, _: Delivery, *, message_id: str) -> Settled | bool:
        if self.user_is_erased:
            raise UserErased
        if self.decided is not None:
            return Settled(self.decided)
        is_first = self.message_id is None
        assert is_first or self.message_id == message_id, "the same at every attempt"
        self.message_id = message_id
        return is_first

    async def not_sent(self, _: Delivery) -> None:
        self.message_id = None

    async def decide(self, _: Delivery, event: OrderEvent | None) -> list[OrderEvent]:
        if self.down is not None:
            raise self.down
        self.decided = [event] if event is not None else []
        return self.decided


class Bench:
    def __init__(
        self,
        which: NotificationChannel = EMAIL,
        ambiguous: Ambiguous = "send_again",
        tells: Set[OrderEventType] = LIFECYCLE,
    ) -> None:
        self.channel = ScriptedChannel()
        self.intents = Intents()
        self.now = NOW
        self.event = order_event(OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING)
        self._which, self._ambiguous, self._tells = which, ambiguous, tells
        self.start()

    def start(self) -> None:
        """Begins a new process."""
        self._service = NotificationService(
            which=self._which,
            channel=self.channel,
            renderer=Renderer(message_id_domain="shop.example", shop_name="Corner Shop"),
            intents=self.intents,
            tells=self._tells,
            ambiguous=self._ambiguous,
            max_age=MAX_AGE,
            now=lambda: self.now,
        )

    async def handle(self, *, owned: bool = True) -> Sequence[OrderEvent]:
        delivery = a_delivery(self.event, group="notification-email", is_owned=lambda: owned)
        return await self._service.handle(delivery)

    def failed_because(self) -> str:
        (event,) = self.intents.decided or []
        assert event.type == OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_FAILED
        return event.notification_failed.reason


async def test_a_first_send() -> None:
    bench = Bench()
    (event,) = await bench.handle()
    (message,) = bench.channel.sent
    assert message.recipient == bench.event.order.email
    assert message.message_id == bench.intents.message_id == f"<{bench.event.event_id}.email@shop.example>"
    assert event.type == OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT
    assert (event.revision, event.metadata.causation_id) == (0, bench.event.event_id)
    assert event.notification_sent.channel == EMAIL
    assert event.notification_sent.notified_type == bench.event.type
    assert event.notification_sent.provider_message_id == "provider-1"
    assert event.notification_sent.template == message.template


async def test_a_muted_channel_is_nothing_and_recorded() -> None:
    bench = Bench()
    bench.event.order.muted_channels.extend([SMS, EMAIL])
    assert await bench.handle() == []
    assert bench.intents.decided == []
    assert (bench.channel.sent, bench.intents.message_id) == ([], None)


async def test_another_muted_channel_is_no_matter() -> None:
    bench = Bench()
    bench.event.order.muted_channels.append(SMS)
    assert len(await bench.handle()) == 1


async def test_an_event_that_the_channel_does_not_tell_of_is_nothing_and_recorded() -> None:
    bench = Bench(tells={OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID})
    assert await bench.handle() == []
    assert bench.intents.decided == []
    assert (bench.channel.sent, bench.intents.message_id) == ([], None)


async def test_an_event_that_the_channel_tells_of() -> None:
    bench = Bench(tells={OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING})
    assert len(await bench.handle()) == 1


async def test_a_customer_without_an_address_is_nothing_and_recorded() -> None:
    bench = Bench(which=SMS)
    assert bench.event.order.phone == ""
    assert await bench.handle() == []
    assert bench.intents.decided == []


async def test_an_old_event_is_not_told_any_more() -> None:
    bench = Bench()
    bench.now = NOW + MAX_AGE + datetime.timedelta(microseconds=1)
    assert len(await bench.handle()) == 1
    assert bench.failed_because() == "TOO_OLD"
    assert (bench.intents.decided or [])[0].notification_failed.template == ""
    assert bench.channel.sent == []


async def test_a_user_who_was_erased_is_not_told_any_more() -> None:
    bench = Bench()
    bench.intents.user_is_erased = True
    assert len(await bench.handle()) == 1
    assert bench.failed_because() == "USER_ERASED"
    assert bench.channel.sent == []


async def test_an_event_of_the_greatest_age_is_told() -> None:
    bench = Bench()
    bench.now = NOW + MAX_AGE
    await bench.handle()
    assert len(bench.channel.sent) == 1


async def test_what_is_decided_already_is_not_sent_again() -> None:
    bench = Bench()
    first = await bench.handle()
    assert await bench.handle() == first
    assert len(bench.channel.sent) == 1


@pytest.mark.parametrize("ambiguous", ["send_again", "give_up"])
@pytest.mark.parametrize(
    "why", [DependencyDown("postgres", "away"), RuntimeError("unforeseen"), asyncio.CancelledError()], ids=repr
)
async def test_a_send_that_could_not_be_recorded_is_remembered_while_the_process_lives(
    ambiguous: Ambiguous, why: BaseException
) -> None:
    bench = Bench(ambiguous=ambiguous)
    bench.intents.down = why
    for _ in range(3):
        with pytest.raises(type(why)):
            await bench.handle()
    bench.now += 2 * MAX_AGE
    bench.intents.down = None
    (event,) = await bench.handle()
    assert event.notification_sent.provider_message_id == "provider-1"
    assert len(bench.channel.sent) == 1


@pytest.mark.parametrize("ambiguous", ["send_again", "give_up"])
async def test_no_send_begins_once_the_partition_was_given_up(ambiguous: Ambiguous) -> None:
    """It might be cut off, and who handles the record next would not know whether it was accepted."""
    bench = Bench(ambiguous=ambiguous)
    with pytest.raises(Transient, match="PARTITION_LOST"):
        await bench.handle(owned=False)
    assert bench.channel.sent == []
    [sent] = await bench.handle()
    assert sent.notification_sent.provider_message_id == "provider-1"


async def test_an_intent_of_somebody_else_is_left_alone() -> None:
    bench = Bench(ambiguous="send_again")
    bench.intents.down = RuntimeError("dies here")
    with pytest.raises(RuntimeError):
        await bench.handle()
    bench.start()
    with pytest.raises(Transient, match="PARTITION_LOST"):
        await bench.handle(owned=False)
    assert bench.intents.message_id is not None, "it was sent once, and is not known to have been accepted"


async def test_a_send_whose_outcome_was_not_recorded_is_sent_again_under_the_same_id() -> None:
    bench = Bench(ambiguous="send_again")
    bench.intents.down = DependencyDown("postgres", "away")
    with pytest.raises(DependencyDown):
        await bench.handle()
    bench.intents.down = None
    bench.start()
    await bench.handle()
    assert len({message.message_id for message in bench.channel.sent}) == 1
    assert len(bench.channel.sent) == 2


async def test_a_send_whose_outcome_was_not_recorded_is_given_up() -> None:
    bench = Bench(ambiguous="give_up")
    bench.intents.down = DependencyDown("postgres", "away")
    with pytest.raises(DependencyDown):
        await bench.handle()
    bench.intents.down = None
    bench.start()
    await bench.handle()
    assert bench.failed_because() == "AMBIGUOUS"
    assert len(bench.channel.sent) == 1


@pytest.mark.parametrize(("ambiguous", "sent"), [("send_again", 1), ("give_up", 0)])
async def test_an_answer_that_never_came_keeps_the_intent(ambiguous: Ambiguous, sent: int) -> None:
    bench = Bench(ambiguous=ambiguous)
    bench.channel.raises = [SendUnknown()]
    with pytest.raises(Transient, match="SEND_UNKNOWN"):
        await bench.handle()
    assert bench.intents.message_id is not None
    await bench.handle()
    assert len(bench.channel.sent) == sent
    if not sent:
        assert bench.failed_because() == "AMBIGUOUS"
        assert (bench.intents.decided or [])[0].notification_failed.template == "en/email/order_processing"


async def test_a_recipient_who_cannot_be_reached_is_a_business_result() -> None:
    bench = Bench()
    bench.channel.raises = [Undeliverable("SMTP_550", provider_message_id="provider-7")]
    (event,) = await bench.handle()
    assert bench.failed_because() == "SMTP_550"
    failed = event.notification_failed
    assert (failed.channel, failed.notified_type) == (EMAIL, bench.event.type)
    assert (failed.provider_message_id, failed.template) == ("provider-7", "en/email/order_processing")
    assert bench.channel.raises == []
    await bench.handle()
    assert bench.channel.sent == []


@pytest.mark.parametrize(
    "failure", [Transient("SMTP_451", "later"), DependencyDown("smtp", "away"), Permanent("X", "y")]
)
@pytest.mark.parametrize("ambiguous", ["send_again", "give_up"])
async def test_a_refusal_for_now_withdraws_the_intent(failure: Exception, ambiguous: Ambiguous) -> None:
    bench = Bench(ambiguous=ambiguous)
    bench.channel.raises = [failure]
    with pytest.raises(type(failure)):
        await bench.handle()
    assert bench.intents.message_id is None
    (event,) = await bench.handle()
    assert event.type == OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT
    assert len(bench.channel.sent) == 1


async def test_an_event_without_a_template_is_permanent_and_leaves_no_intent() -> None:
    bench = Bench(tells={OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED})
    bench.event.type = OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED
    with pytest.raises(Permanent):
        await bench.handle()
    assert bench.intents.message_id is None
