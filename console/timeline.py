"""The life of an order as rows of a timeline: what happened, how long after its cause, and what was done outside."""

import dataclasses
import datetime
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from console import words

if TYPE_CHECKING:
    from orderflow.orders.v1.order_history_pb2 import OrderHistoryEntry

_DEAD_LETTER: Final = "DEAD_LETTER"
_BAD: Final = ("ORDER_REJECTED", "PAYMENT_FAILED", "ORDER_EXPIRED", "ORDER_CANCELLED", "NOTIFICATION_FAILED")
_LONGEST_SECONDS: Final = 600.0
_SHORTEST_SECONDS: Final = 0.001


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry.

    Attributes:
        entry: As the API tells it.
        kind: `lifecycle`, `command`, `message` or `dead-letter`.
        is_bad: Whether it is an end that nobody wished for.
        after: Seconds since the order's first entry.
        took: Seconds since its cause; None if that is not in the history.
        width: How long its bar is, 1 to 100, logarithmic: 1 ms to 10 minutes.
        cause: The type of what led to it, empty if that is not in the history.
        dead_letter_id: Of a dead letter.
    """

    entry: "OrderHistoryEntry"
    kind: str
    is_bad: bool
    after: float
    took: float | None
    width: int
    cause: str
    dead_letter_id: str


def rows(entries: Sequence["OrderHistoryEntry"]) -> list[Row]:
    """Returns a row for each entry, oldest first."""
    if not entries:
        return []
    first = _seconds(entries[0])
    by_id = {entry.entry_id: entry for entry in entries}
    made = []
    for entry in entries:
        cause = by_id.get(entry.cause_id)
        took = None if cause is None else max(_seconds(entry) - _seconds(cause), 0.0)
        made.append(
            Row(
                entry,
                _kind(entry),
                entry.type in _BAD or entry.type == _DEAD_LETTER,
                max(_seconds(entry) - first, 0.0),
                took,
                _width(took),
                "" if cause is None else cause.type,
                entry.entry_id.removeprefix("dlq/") if entry.type == _DEAD_LETTER else "",
            )
        )
    return made


def details(entry: "OrderHistoryEntry") -> list[tuple[str, str]]:
    """Returns what else there is to an entry, as names and values."""
    found = []
    if entry.revision:
        found.append(("state", f"{words.enum_name(entry, 'status')}, revision {entry.revision}"))
    if entry.payment_status:
        found.append(("payment", words.enum_name(entry, "payment_status")))
    if entry.reason:
        found.append(("reason", entry.reason))
    match entry.WhichOneof("details"):
        case "payment":
            if entry.payment.HasField("amount"):
                found.append(("amount", words.money(entry.payment.amount)))
            if entry.payment.gateway_reference:
                found.append(("gateway call", entry.payment.gateway_reference))
        case "notification":
            told = entry.notification
            found.append(("tells of", f"{told.notified_type} by {words.enum_name(told, 'channel')}"))
            if told.template:
                found.append(("template", told.template))
            if told.provider_message_id:
                found.append(("message id", told.provider_message_id))
        case "dead_letter":
            found.append(("error", words.redacted(entry.dead_letter.message)))
            if entry.dead_letter.replay:
                found.append(("replays before", str(entry.dead_letter.replay)))
    return found


def _kind(entry: "OrderHistoryEntry") -> str:
    if entry.type == _DEAD_LETTER:
        return "dead-letter"
    if entry.type.startswith("NOTIFICATION_"):
        return "message"
    return "lifecycle" if entry.revision else "command"


def _seconds(entry: "OrderHistoryEntry") -> float:
    return entry.occur_time.ToDatetime(datetime.UTC).timestamp()


def _width(took: float | None) -> int:
    if took is None:
        return 1
    bounded = min(max(took, _SHORTEST_SECONDS), _LONGEST_SECONDS)
    return max(round(100 * math.log(bounded / _SHORTEST_SECONDS) / math.log(_LONGEST_SECONDS / _SHORTEST_SECONDS)), 1)
