"""Tells customers: one message per lifecycle event and channel. One consumer group per channel."""

import datetime
from collections.abc import Callable, Sequence, Set
from typing import Literal, Protocol

import fault_points
from domain import events
from domain.erasure import UserErased
from domain.failures import Failure, Transient
from domain.lifecycle import LIFECYCLE
from domain.records import Delivery
from domain.times import time_of
from messaging import topics
from messaging.worker import WorkerSpec
from orderflow.events.v1.order_event_pb2 import (
    NotificationFailedDetails,
    NotificationSentDetails,
    OrderEvent,
    OrderEventType,
)
from orderflow.orders.v1.order_pb2 import NotificationChannel
from storage.outcomes import Settled
from telemetry import metrics
from workers.channels.channel import Channel, SendUnknown, Undeliverable
from workers.channels.rendering import Renderer, channel_name, recipient_of

Ambiguous = Literal["send_again", "give_up"]
_MOST_REMEMBERED = 10_000
_LINGER_SECONDS = 0.4
"""The customer is told already: only whoever reads about it waits."""

_READS = (topics.ORDERS, topics.PAYMENTS)
EMAIL_SPEC = WorkerSpec(group="notification-email", reads=_READS, handles=LIFECYCLE, linger=_LINGER_SECONDS)
SMS_SPEC = WorkerSpec(group="notification-sms", reads=_READS, handles=LIFECYCLE, linger=_LINGER_SECONDS)


class NotificationIntents(Protocol):
    """What the notification service intends and decides with. Every method raises DependencyDown."""

    async def intend(self, delivery: Delivery, *, message_id: str) -> Settled | bool:
        """Stores the intent to send. False: a send may have happened already. Raises UserErased."""
        ...

    async def not_sent(self, delivery: Delivery) -> None:
        """Withdraws the intent: nothing was sent."""
        ...

    async def decide(self, delivery: Delivery, event: OrderEvent | None) -> list[OrderEvent]:
        """Stores the outcome and returns the events to emit."""
        ...


class NotificationService:
    """The handler of one channel."""

    def __init__(
        self,
        *,
        which: NotificationChannel,
        channel: Channel,
        renderer: Renderer,
        intents: NotificationIntents,
        tells: Set[OrderEventType],
        ambiguous: Ambiguous,
        max_age: datetime.timedelta,
        now: Callable[[], datetime.datetime],
    ) -> None:
        """`tells` are the events that the channel tells of, `max_age` is the greatest age of one.

        `ambiguous` says what happens to a message that may have been accepted.
        """
        self._which = which
        self._channel = channel
        self._renderer = renderer
        self._intents = intents
        self._tells = tells
        self._ambiguous = ambiguous
        self._max_age = max_age
        self._now = now
        self._accepted: dict[str, OrderEvent] = {}

    async def handle(self, delivery: Delivery) -> Sequence[OrderEvent]:
        """Tells of a lifecycle event.

        Raises:
            Transient: the channel refused the message for now.
            DependencyDown: the channel or PostgreSQL is away.
        """
        event = delivery.event
        # Recorded as nothing, not skipped: a copy that is read after the setting has changed tells nothing either, and
        # the outcome of a message that went out before is emitted again.
        if (
            event.type not in self._tells
            or self._which in event.order.muted_channels
            or not recipient_of(event.order, self._which)
        ):
            return await self._intents.decide(delivery, None)
        if (accepted := self._accepted.get(event.event_id)) is not None:
            return await self._record(delivery, accepted)
        if self._now() - time_of(event.occur_time) > self._max_age:
            return await self._failed(delivery, "TOO_OLD")
        message = self._renderer.render(event, self._which)
        try:
            intent = await self._intents.intend(delivery, message_id=message.message_id)
        except UserErased:
            return await self._failed(delivery, "USER_ERASED")
        if isinstance(intent, Settled):
            return intent.events
        if intent is False:
            # A kill or a dropped connection fell between the send and its outcome: it may have been accepted.
            self._count("ambiguous")
            if self._ambiguous == "give_up":
                return await self._failed(delivery, "AMBIGUOUS", template=message.template)
        fault_points.reached("W9")
        if not delivery.is_owned():  # a send that begins now may be cut off; who handles the record next makes it
            if intent is True:
                await self._intents.not_sent(delivery)
            raise Transient("PARTITION_LOST", "the partition was given up meanwhile")
        try:
            provider_message_id = await self._channel.send(message)
        except Undeliverable as refusal:
            return await self._failed(
                delivery,
                refusal.reason,
                template=message.template,
                provider_message_id=refusal.provider_message_id,
            )
        except SendUnknown:
            # The intent stays: the next attempt meets it and does what the setting says.
            raise Transient("SEND_UNKNOWN", "the message was handed over and the answer never came") from None
        except Failure:
            await self._intents.not_sent(delivery)
            raise
        sent = NotificationSentDetails(
            channel=self._which,
            notified_type=event.type,
            provider_message_id=provider_message_id,
            template=message.template,
        )
        self._count("sent")
        fault_points.reached("W10")
        emitted = await self._record(delivery, events.notification_sent(delivery, sent, now=self._now()))
        fault_points.reached("W11")
        return emitted

    async def _record(self, delivery: Delivery, accepted: OrderEvent) -> Sequence[OrderEvent]:
        """Stores that the message was accepted; remembers it until that is stored, so that it is not sent again."""
        event_id = delivery.event.event_id
        self._accepted[event_id] = accepted
        if len(self._accepted) > _MOST_REMEMBERED:  # those of partitions that have moved on are never asked for
            del self._accepted[next(iter(self._accepted))]
        emitted = await self._intents.decide(delivery, accepted)
        self._accepted.pop(event_id, None)
        return emitted

    async def _failed(
        self, delivery: Delivery, reason: str, *, template: str = "", provider_message_id: str = ""
    ) -> Sequence[OrderEvent]:
        self._count("failed")
        details = NotificationFailedDetails(
            channel=self._which,
            notified_type=delivery.event.type,
            reason=reason,
            provider_message_id=provider_message_id,
            template=template,
        )
        return await self._intents.decide(delivery, events.notification_failed(delivery, details, now=self._now()))

    def _count(self, outcome: str) -> None:
        metrics.of(metrics.NOTIFICATIONS, channel_name(self._which), outcome).inc()
