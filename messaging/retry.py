"""Records that failed for now, parked on their group's own retry topics, and what they carry of their past.

A parked record counts as the one that it stems from (semantics 14): same bytes, and headers that say where that stood.
They are believed on the group's own retry topics only, which nobody else may write.
"""

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Final

from aiokafka import ConsumerRecord

from domain.records import Coordinates
from messaging import spans
from messaging.envelope import Header, OutgoingRecord
from messaging.topics import Topic
from orderflow.events.v1.dead_letter_pb2 import DeadLetter

HEADER_PREFIX: Final = "retry_"
_INT32: Final = 2**31 - 1
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")  # what Kafka takes for one


@dataclasses.dataclass(slots=True)  # two are made for every record: frozen they would take several times as long
class Provenance:
    """The past of a record. It does not change: each handling has one of its own.

    `origin` and `origin_timestamp` (ms) say where it stood first, `attempts` how often it was handled before, `tier`
    how many retry topics it has been through, `replay` how often an operator replayed it. `links` are the traceparents
    of what led to this handling: the one before, or the one that gave up and the call that replays it.
    """

    origin: Coordinates
    origin_timestamp: int
    attempts: int = 0
    first_failure: datetime.datetime | None = None
    tier: int = 0
    replay: int = 0
    links: tuple[str, ...] = ()

    def attempted(self) -> "Provenance":
        """Returns it with one more handling. Every record is handled: no more than it takes."""
        return Provenance(
            self.origin,
            self.origin_timestamp,
            self.attempts + 1,
            self.first_failure,
            self.tier,
            self.replay,
            self.links,
        )

    def failed(self, now: datetime.datetime, traceparent: str) -> "Provenance":
        """Returns it after another failure, in the handling that `traceparent` names; empty if it is not recorded."""
        return dataclasses.replace(
            self, first_failure=self.first_failure or now, links=(traceparent,) if traceparent else ()
        )

    def headers(self) -> list[Header]:
        """Returns it as headers."""
        told = {
            "origin_topic": self.origin.topic,
            "origin_partition": self.origin.partition,
            "origin_offset": self.origin.offset,
            "origin_timestamp": self.origin_timestamp,
            "attempts": min(self.attempts, _INT32),  # a forged one must not grow past what is believed
            "tier": self.tier,
            "replay": self.replay,
        }
        if self.first_failure is not None:
            told["first_failure_time"] = self.first_failure.isoformat()
        if self.links:
            told["links"] = ",".join(self.links)
        return [(HEADER_PREFIX + name, str(value).encode()) for name, value in told.items()]


def provenance_of(record: ConsumerRecord, tiers: Sequence[Topic]) -> Provenance:
    """Returns the record's past; none for what stands on no retry topic, or carries none that can be read."""
    own = Provenance(Coordinates(record.topic, record.partition, record.offset), record.timestamp)
    for topic in tiers:
        if topic.name == record.topic:
            break
    else:
        return own
    told = {
        name.removeprefix(HEADER_PREFIX): value
        for name, value in record.headers
        if name.startswith(HEADER_PREFIX) and value
    }
    try:
        first_failure = told.get("first_failure_time")
        return Provenance(
            Coordinates(_topic(told), _number(told, "origin_partition", most=_INT32), _number(told, "origin_offset")),
            _number(told, "origin_timestamp"),
            _number(told, "attempts", most=_INT32),
            datetime.datetime.fromisoformat(first_failure.decode()).astimezone(datetime.UTC) if first_failure else None,
            _number(told, "tier", most=_INT32),
            _number(told, "replay", most=_INT32 - 1),
            _links(told),
        )
    except (KeyError, ValueError, OverflowError):
        return own


def _number(told: Mapping[str, bytes], name: str, *, most: int = 10**18) -> int:
    text = told[name].decode("ascii")
    if not text.isdigit() or len(text) > 18 or int(text) > most:
        raise ValueError(name)
    return int(text)


def _topic(told: Mapping[str, bytes]) -> str:
    topic = told["origin_topic"].decode("ascii")
    if not _TOPIC_NAME.fullmatch(topic):
        raise ValueError("origin_topic")
    return topic


def _links(told: Mapping[str, bytes]) -> tuple[str, ...]:
    # Two are the most there are; what is no traceparent is no link.
    return tuple(told["links"].decode("ascii", "replace").split(",")[:2]) if "links" in told else ()


def parked(record: ConsumerRecord, provenance: Provenance, topic: Topic) -> OutgoingRecord:
    """Returns the record for a retry topic: bytes untouched, `provenance` in place of any that it carried."""
    headers: list[Header] = [header for header in record.headers if not header[0].startswith(HEADER_PREFIX)]
    span = spans.sending(topic.name, record.key)
    return OutgoingRecord(topic, record.key, record.value, headers + provenance.headers(), span=span)


def delay_of(name: str, tiers: Sequence[Topic]) -> float:
    """Returns how long after its append a record of the topic is due, seconds; 0 for one that is no retry topic."""
    delay = next((topic.delay for topic in tiers if topic.name == name), None)
    return delay.total_seconds() if delay is not None else 0.0


def replayed(letter: DeadLetter, tiers: Sequence[Topic]) -> OutgoingRecord:
    """Returns a dead letter as a record for its group's shortest retry topic, as the record that it stems from.

    Its attempts and its time begin anew; the replay number says that it has a past. Its trace is the record's own, with
    links to the handling that gave up and to the call that replays it.
    """
    key = letter.key if letter.HasField("key") else None
    span = spans.sending(tiers[0].name, key, links=(letter.traceparent,))
    provenance = Provenance(
        Coordinates(letter.origin.topic, letter.origin.partition, letter.origin.offset),
        letter.origin.record_time.ToMilliseconds(),
        replay=letter.replay + 1,
        links=tuple(each for each in (letter.traceparent, span.traceparent) if each),
    )
    headers: list[Header] = [
        (header.name, header.value if header.HasField("value") else None)
        for header in letter.headers
        if not header.name.startswith(HEADER_PREFIX)
    ]
    return OutgoingRecord(
        tiers[0],
        key,
        letter.value if letter.HasField("value") else None,
        headers + provenance.headers(),
        span=span,
    )
