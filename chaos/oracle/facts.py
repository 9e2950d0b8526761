"""What follows from a run's records: events, lives of orders, parked records, dead letters."""

import collections
import dataclasses
import functools
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from chaos.oracle import rules
from chaos.oracle.folder import At, Record, Run
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import OrderStatus


@dataclasses.dataclass(frozen=True)
class Told:
    """A valid event, and the record that it stands in."""

    record: Record
    event: OrderEvent


@dataclasses.dataclass(frozen=True)
class Parked:
    """A record on a retry topic, counted as the one at `origin`."""

    record: Record
    group: str
    delay: float
    origin: At
    tier: int
    attempts: int
    replay: int


@dataclasses.dataclass(frozen=True)
class Letter:
    """A dead letter."""

    record: Record
    group: str
    origin: At
    error_class: str
    attempts: int
    replay: int


class Facts:
    """Everything that more than one invariant looks at."""

    def __init__(self, run: Run) -> None:
        """Reads nothing but the run."""
        self.run = run
        self.records: dict[At, Record] = {record.at: record for record in run.committed}
        self.poison: set[At] = {
            (place["topic"], place["partition"], place["offset"])
            for fault in run.faults
            if fault.kind in ("poison", "copy")
            for place in fault.details.get("records", [])
        }

    @functools.cached_property
    def told(self) -> list[Told]:
        """Every valid event on the three event topics, copies included."""
        read = (
            (record, self.reading(record, record.topic)) for record in self.on("orders", "payments", "notifications")
        )
        return [Told(record, event) for record, event in read if isinstance(event, OrderEvent)]

    def on(self, *topics: str) -> list[Record]:
        """Returns the committed records of topics."""
        return [record for record in self.run.committed if record.topic in topics]

    @staticmethod
    def reading(record: Record, topic: str) -> OrderEvent | str:
        """Returns the event of a record that stands, or stood first, on `topic`; else why it is none."""
        if not record.value:
            return "no value"
        try:
            event = OrderEvent.FromString(record.value)
        except DecodeError:
            return "not an OrderEvent"
        if not rules.is_uuid(event.event_id) or not rules.is_uuid(event.order.order_id):
            return "an id is no UUID"
        if record.key != event.order.order_id.encode():
            return "the key is not the order's id"
        if event.type == OrderEventType.ORDER_EVENT_TYPE_UNSPECIFIED:
            return "no type"
        if event.type not in OrderEventType.values():
            return "unknown type"
        return event if rules.topic_of(event.type) == topic else "on the wrong topic"

    @functools.cached_property
    def copies(self) -> dict[str, list[Told]]:
        """event_id -> its records, the earliest first."""
        found: dict[str, list[Told]] = collections.defaultdict(list)
        for told in self.told:
            found[told.event.event_id].append(told)
        return dict(found)

    @functools.cached_property
    def lives(self) -> dict[str, list[OrderEvent]]:
        """order_id -> its distinct lifecycle events, by revision."""
        found: dict[str, list[OrderEvent]] = collections.defaultdict(list)
        for copies in self.copies.values():
            if copies[0].event.type in rules.MOVES:
                found[copies[0].event.order.order_id].append(copies[0].event)
        for life in found.values():
            life.sort(key=lambda event: event.revision)
        return dict(found)

    @functools.cached_property
    def created(self) -> dict[str, list[OrderEvent]]:
        """order_id -> its ORDER_CREATED events, copies included."""
        found: dict[str, list[OrderEvent]] = collections.defaultdict(list)
        for told in self.told:
            if told.event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED:
                found[told.event.order.order_id].append(told.event)
        return dict(found)

    def status(self, order_id: str) -> OrderStatus:
        """Returns where the topics say that an order stands."""
        life = self.lives.get(order_id, [])
        return life[-1].order.status if life else OrderStatus.ORDER_STATUS_UNSPECIFIED

    @functools.cached_property
    def parked(self) -> list[Parked]:
        """Everything on the retry topics that names where it stood first."""
        return [parked for record in self.run.committed if (parked := _parked(record)) is not None]

    @functools.cached_property
    def letters(self) -> list[Letter]:
        """Everything on dlq that a group wrote."""
        return [letter for record in self.on("dlq") if (letter := _letter(record)) is not None]

    @functools.cached_property
    def unknown_payments(self) -> set[str]:
        """The orders whose charge nobody can tell the outcome of, by their open dead letters."""
        found = {event.order.order_id for event in self._given_up("PAYMENT_UNKNOWN")}
        return {order_id for order_id in found if self.status(order_id) in rules.OPEN}

    @functools.cached_property
    def open_refunds(self) -> set[str]:
        """The orders of which a refund is due that the gateway did not answer for, by their open dead letters."""
        decided = {row["event_id"] for row in self.run.table("outcomes") if row["group_name"] == "payment-processor"}
        given_up = self._given_up("GATEWAY_CHARGE_UNKNOWN")
        return {event.order.order_id for event in given_up if event.event_id not in decided}

    def _given_up(self, error_class: str) -> Iterator[OrderEvent]:
        """Returns the events that the payment processor has given up for this reason."""
        for letter in self.letters:
            if (letter.group, letter.error_class) == ("payment-processor", error_class):
                origin = self.records.get(letter.origin)
                event = self.reading(origin, letter.origin[0]) if origin is not None else ""
                if isinstance(event, OrderEvent):
                    yield event


def retry_topic(topic: str) -> tuple[str, float] | None:
    """Returns the group and the delay of a retry topic, None for another topic."""
    group, middle, delay = topic.rpartition(".retry.")
    return (group, float(delay.removesuffix("s"))) if middle and group in rules.READS else None


def _parked(record: Record) -> Parked | None:
    place = retry_topic(record.topic)
    if place is None:
        return None
    try:
        origin = (
            record.header("retry_origin_topic") or "",
            int(record.header("retry_origin_partition") or ""),
            int(record.header("retry_origin_offset") or ""),
        )
        tier, attempts, replay = (int(record.header(f"retry_{name}") or "") for name in ("tier", "attempts", "replay"))
    except ValueError:
        return None
    return Parked(record, *place, origin, tier, attempts, replay) if origin[0] else None


def _letter(record: Record) -> Letter | None:
    try:
        return Letter(
            record,
            record.header("dlq_group") or "",
            (
                record.header("dlq_origin_topic") or "",
                int(record.header("dlq_origin_partition") or ""),
                int(record.header("dlq_origin_offset") or ""),
            ),
            record.header("dlq_error_class") or "",
            int(record.header("dlq_attempts") or ""),
            int(record.header("dlq_replay") or ""),
        )
    except ValueError:
        return None
