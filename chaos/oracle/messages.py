"""Messages: every customer is told of every event, once but for the excused exceptions (I9)."""

import collections
import itertools
import re
from collections.abc import Iterator
from typing import Final

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.folder import Fault, Mail
from chaos.oracle.violations import Violation
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Order

_MESSAGE_ID: Final = re.compile(r"<([0-9a-f-]{36})\.(email|sms)@[^>]*>")
_BREAKS: Final = ("kill", "stop", "restart", "pause")
"""Faults that end or freeze a process, and so may fall between sending a message and recording its acceptance."""
_PARTIES: Final = ("notification-", "postgres", "mail")
"""Kafka is none: whatever becomes of a transaction, what is being sent is sent to its end, and that is stored."""
_AT_ONCE: Final = 16
"""The most messages that one fault can catch between the two.

Half as many as there are SMTP connections, 2, are in hand on each of the group's 8 partitions: 3 of orders, 3 of
payments and 2 retry topics. A connection is free again before the acceptance is recorded, so their number, 4, is no
limit.
"""
_SLACK: Final = 2.0

_Key = tuple[str, str]


def told(facts: Facts) -> Iterator[Violation]:
    """I9: per lifecycle event and channel one message and one NOTIFICATION_SENT; a second message only by a fault."""
    sent = _sent(facts)
    expected: set[_Key] = set()
    messages: dict[_Key, list[Mail]] = collections.defaultdict(list)
    for mail in facts.run.mail:
        matched = _MESSAGE_ID.fullmatch(mail.message_id)
        if matched is None or matched[1] not in facts.copies:
            yield Violation("I9", "a message about an event that is not on the topics", {"file": mail.file})
        else:
            messages[matched[1], matched[2]].append(mail)
    for order_id, life in facts.lives.items():
        for event in life:
            for channel in rules.CHANNELS:
                key = (event.event_id, channel)
                ids = {"order": order_id, "event": event.event_id, "channel": channel}
                recipient = _recipient(event.order, channel)
                if not recipient:
                    continue
                expected.add(key)
                if not messages[key]:
                    yield Violation("I9", f"nobody was told of {rules.name(event.type)}", ids)
                if any(mail.recipient != recipient for mail in messages[key]):
                    yield Violation("I9", "somebody else was told", ids)
                if sent[key] != 1:
                    yield Violation("I9", f"{sent[key]} NOTIFICATION_SENT of {rules.name(event.type)}", ids)
    for key in sorted(messages.keys() - expected):
        if messages[key]:
            yield Violation("I9", "a message that nobody was to get", {"event": key[0], "channel": key[1]})
    yield from _repeats(facts, messages)


def _repeats(facts: Facts, messages: dict[_Key, list[Mail]]) -> Iterator[Violation]:
    breaks = [fault for fault in facts.run.faults if fault.kind.startswith(_BREAKS) and _concerns(fault)]
    blamed: collections.Counter[int] = collections.Counter()
    for (event_id, channel), mails in messages.items():
        mails.sort(key=lambda mail: mail.received)
        for earlier, later in itertools.pairwise(mails):
            excuses = [
                number
                for number, fault in enumerate(breaks)
                if earlier.received <= fault.end + _SLACK
                and fault.start <= later.received + _SLACK
                and blamed[number] < _AT_ONCE
            ]
            if not excuses:
                yield Violation("I9", "told twice, and no fault explains it", {"event": event_id, "channel": channel})
            else:
                blamed[min(excuses, key=lambda number: blamed[number])] += 1


def _concerns(fault: Fault) -> bool:
    return fault.target.startswith(_PARTIES)


def _sent(facts: Facts) -> collections.Counter[_Key]:
    channels = {number: name for name, number in rules.CHANNELS.items()}
    found: collections.Counter[_Key] = collections.Counter()
    for copies in facts.copies.values():
        event: OrderEvent = copies[0].event
        if event.type == OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT:
            found[event.metadata.causation_id, channels.get(event.notification_sent.channel, "")] += 1
    return found


def _recipient(order: Order, channel: str) -> str:
    if rules.CHANNELS[channel] in order.muted_channels:
        return ""
    return order.email if channel == "email" else order.phone
