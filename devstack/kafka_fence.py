"""Takes a stopped broker out of its own cluster before it comes back, so that no transaction hangs for ever.

A broker that died is still "unfenced" in the cluster's metadata. Started on that, Kafka 4.4 leads its partitions by the
old registration, loads a transaction that was decided but not yet marked, cannot reach itself because its port is still
closed, and is then fenced when the old session runs out: for a moment no partition has a leader. Its transaction
coordinator takes a partition without a leader for a deleted one, skips the marker and records the transaction as
complete. From then on the partition's last stable offset stands still: readers of committed records see nothing new.
(Seen in one of four restarts right after a commit; `test_kafka.py` guards it.) A cluster of several has this moment
only when all its brokers died: while one lives it leads.

So the broker is fenced while it does not run: a controller alone on its metadata, with a session time so short that the
absent broker loses its place, for about a second. The broker then starts without a former life. While it runs it is
never fenced: its session never ends, and a stop hands nothing over. A cluster of several that starts as a whole is
treated the same way, with all its controllers; one that comes back to the others is not, they have fenced it.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from devstack import kafka_properties
from devstack.errors import DevstackError
from devstack.process import ManagedProcess

_DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.02

# What the controller logs as it replays the metadata and when it is in charge. The jars are pinned, and so are these.
_ACTIVE = "Activated periodic tasks"
_CHANGE = re.compile(
    r"Replayed .*(?:RegisterBrokerRecord|BrokerRegistrationChangeRecord)\(brokerId=(\d+),.* fenced=([-\w]+)"
)
_FENCED = {"true": True, "1": True, "false": False, "-1": False}


@dataclasses.dataclass(frozen=True)
class Place:
    """A node of the cluster: its folder for settings and log, its formatted storage, its controller's port.

    `command` is what runs Kafka, without the settings file.
    """

    node_id: int
    directory: Path
    data: Path
    port: int
    command: list[str]

    @property
    def log(self) -> Path:
        """Where its controller logs."""
        return self.directory / "fence.log"


def fence(places: Sequence[Place]) -> None:
    """Run the controllers alone until every broker is fenced. `places` are all nodes, by node id."""
    controllers = [_controller(place, tuple(each.port for each in places)) for place in places]
    try:
        for controller in controllers:
            controller.start()
        until = time.monotonic() + _DEADLINE_SECONDS
        _wait_for(lambda: fenced([place.log.read_text(errors="replace") for place in places]), controllers, until)
        # The active controller logs what it decided before it has written it.
        written = [_size(place.data) for place in places]
        _wait_for(
            lambda: all(_size(place.data) > before for place, before in zip(places, written, strict=True)),
            controllers,
            until,
        )
    finally:
        for controller in controllers:
            controller.kill()


def _controller(place: Place, ports: tuple[int, ...]) -> ManagedProcess:
    settings = place.directory / "fence.properties"
    settings.write_text(kafka_properties.controller(place.node_id, ports, place.data))
    place.log.unlink(missing_ok=True)
    return ManagedProcess(
        "Kafka's controller",
        [*place.command, str(settings)],
        place.log,
        pid_file=place.directory / "fence.pid",
    )


def fenced(logs: Sequence[str]) -> bool:
    """Whether one controller is in charge, the others know what it knows, and every broker's last state is fenced.

    The others learn only what most of them have written, so a state that all know outlives them.
    """
    known = [_states(log) for log in logs]
    return (
        any(_ACTIVE in log for log in logs) and all(states == known[0] for states in known) and all(known[0].values())
    )


def _states(log: str) -> dict[str, bool]:
    """Return which brokers were registered, and whether their last known state is fenced."""
    return {broker: _FENCED[state] for broker, state in _CHANGE.findall(log) if state in _FENCED}


def _wait_for(condition: Callable[[], bool], controllers: Sequence[ManagedProcess], until: float) -> None:
    while not condition():
        for controller in controllers:
            if not controller.running:
                raise controller.died()
        if time.monotonic() > until:
            raise DevstackError(f"Kafka's metadata does not become ready; start again:\n{controllers[0].tail(20)}")
        time.sleep(_POLL_SECONDS)


def _size(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("__cluster_metadata-0/*.log"))
