"""What a worker is: a handler, what it reads, and the limits that the runtime holds it to."""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from domain.records import Coordinates, Delivery
from messaging.topics import Topic
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType

Handler = Callable[[Delivery], Awaitable[Sequence[OrderEvent]]]
"""Handles one event and returns the events to emit. Raises one of domain.failures.

Its side effects are idempotent, and a replay (the same event_id at the same coordinates) returns the same events.
"""


class Claim(Protocol):
    """Decides which copy of a replayed dead letter counts."""

    async def __call__(self, *, origin: Coordinates, replay: int, by: Coordinates) -> bool:
        """Claims the replay for the record `by`. False: another copy has it. Raises DependencyDown."""
        ...


@dataclasses.dataclass(frozen=True)
class WorkerSpec:
    """A consumer group. `handles` are the types that its handler takes; other types of the contract are skipped.

    `linger` is how long, in seconds, outputs that nobody waits for may wait to share a transaction; records that lead
    to them are fetched together, too.
    """

    group: str
    reads: tuple[Topic, ...]
    handles: frozenset[OrderEventType]
    linger: float = 0.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the runtime. Times are in seconds. `attempts` are those in place, before each retry topic."""

    max_in_flight: int = 256
    attempts: int = 3
    retry_limit: float = 3600.0
    backoff_base: float = 0.1
    backoff_cap: float = 5.0
    handling: float = 60.0
    drain: float = 15.0
    transaction: float = 15.0
    opening: float = 45.0
    dependency_probe_cap: float = 5.0
    lag: float = 5.0
