"""What a worker is handed: an event, and where its record stands.

Both are made for every record, and a frozen dataclass would take several times as long. None is changed all the same.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from orderflow.events.v1.order_event_pb2 import OrderEvent


class Coordinates(NamedTuple):
    """Where a record stands on Kafka. A replay has the same coordinates, a copy has others (semantics 13)."""

    topic: str
    partition: int
    offset: int


@dataclasses.dataclass(slots=True)
class Delivery:
    """One event to handle.

    `attempt` counts from 1. `is_last` says that no other follows: a record that fails for now is a dead letter then.
    `is_owned` tells whether this process still owns the record's partition: a check right before something that cannot
    be taken back, not a guarantee.
    """

    event: OrderEvent
    group: str
    coordinates: Coordinates
    attempt: int = 1
    is_last: bool = False
    is_owned: Callable[[], bool] = lambda: True
