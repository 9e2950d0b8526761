"""The topic catalogue. No topic is named anywhere else."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Final

from orderflow.events.v1.order_event_pb2 import OrderEventType

MAX_MESSAGE_BYTES: Final = 512 * 1024
"""Largest record of a topic. The ingress takes half of it, so that an order's events always fit."""

HEADER_ROOM: Final = 64 * 1024
"""What a retry topic takes beyond its sources, and dlq beyond those, for the headers that say where a record was."""


SEGMENT: Final = datetime.timedelta(days=1)
"""How much longer than its topic's retention Kafka may keep a record."""


@dataclasses.dataclass(frozen=True)
class Topic:
    """A topic as `orderflow topics apply` creates it."""

    name: str
    partitions: int
    retention: datetime.timedelta
    max_message_bytes: int = MAX_MESSAGE_BYTES
    delay: datetime.timedelta | None = None
    """Of a retry topic: a record is due that long after the broker appended it."""

    def config(self, *, min_insync_replicas: int) -> dict[str, str]:
        """Returns the topic's Kafka configuration; what is not in it is left at the broker's default."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(int(self.retention.total_seconds() * 1000)),
            # Kafka forgets whole segments, so a record may be kept for so much longer than the retention.
            "segment.ms": str(int(SEGMENT.total_seconds() * 1000)),
            "max.message.bytes": str(self.max_message_bytes),
            # The broker's own time where something is due by it, so that no writer can forge it.
            "message.timestamp.type": "CreateTime" if self.delay is None else "LogAppendTime",
            "min.insync.replicas": str(min_insync_replicas),
        }


ORDERS: Final = Topic("orders", 3, datetime.timedelta(days=7))
PAYMENTS: Final = Topic("payments", 3, datetime.timedelta(days=7))
NOTIFICATIONS: Final = Topic("notifications", 3, datetime.timedelta(days=3))
DEAD_LETTERS: Final = Topic("dlq", 1, datetime.timedelta(days=30), MAX_MESSAGE_BYTES + 2 * HEADER_ROOM)

ALL: Final = (ORDERS, PAYMENTS, NOTIFICATIONS, DEAD_LETTERS)
"""The topics that belong to no group."""

GROUPS: Final = ("order-processor", "payment-processor", "notification-email", "notification-sms")
"""The consumer groups that retry and write dead letters. The projector does neither."""


def retry_topics(group: str, delays: Sequence[int]) -> tuple[Topic, ...]:
    """Returns the group's own retry topics, shortest delay first. `delays` are in seconds."""
    return tuple(
        Topic(
            f"{group}.retry.{delay}s",
            1,
            datetime.timedelta(days=7),
            MAX_MESSAGE_BYTES + HEADER_ROOM,
            datetime.timedelta(seconds=delay),
        )
        for delay in delays
    )


def all_topics(delays: Sequence[int]) -> tuple[Topic, ...]:
    """Returns every topic of the system: ALL, and the retry topics of every group."""
    return ALL + tuple(topic for group in GROUPS for topic in retry_topics(group, delays))


def longest_kept(delays: Sequence[int]) -> datetime.timedelta:
    """Returns how long a record may stand on the topic that keeps it longest."""
    return max(topic.retention for topic in all_topics(delays)) + SEGMENT


def longest_way(delays: Sequence[int]) -> datetime.timedelta:
    """Returns how long the bytes of a record may be on one topic after the other: its own, retry topics and `dlq`."""
    way = (ORDERS, *retry_topics(GROUPS[0], delays), DEAD_LETTERS)
    return sum((topic.retention + SEGMENT for topic in way), datetime.timedelta())


_ELSEWHERE: Final = {
    OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID: PAYMENTS,
    OrderEventType.ORDER_EVENT_TYPE_PAYMENT_FAILED: PAYMENTS,
    OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED: PAYMENTS,
    OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT: NOTIFICATIONS,
    OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_FAILED: NOTIFICATIONS,
}


def topic_of(event_type: OrderEventType) -> Topic:
    """Returns the topic that carries events of a type: `orders`, unless the type belongs to another."""
    return _ELSEWHERE.get(event_type, ORDERS)
