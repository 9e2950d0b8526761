"""What the projector hands from Kafka to the database."""

import dataclasses

from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent


@dataclasses.dataclass
class ProjectionBatch:
    """A run of records of one partition, from position `begins` up to `ends`, where the next batch begins.

    `failures` are records that could not be read, in the shape of dead letters. `traces` are the ids of the traces that
    records came with, 32 hexadecimal digits.
    """

    topic: str
    partition: int
    begins: int
    ends: int
    events: list[tuple[Coordinates, OrderEvent]] = dataclasses.field(default_factory=list)
    dead_letters: list[tuple[Coordinates, DeadLetter]] = dataclasses.field(default_factory=list)
    failures: list[tuple[Coordinates, DeadLetter]] = dataclasses.field(default_factory=list)
    traces: dict[Coordinates, str] = dataclasses.field(default_factory=dict)


class PositionMoved(Exception):
    """Another process has moved a partition's position: nothing was written."""
