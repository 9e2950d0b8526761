"""Takes a stopped broker out of its own cluster before it comes back, so that no transaction hangs for ever.

A broker that died is still "unfenced" in the cluster's metadata. Started on that, Kafka 4.4 leads its partitions by the
old registration, loads a transaction that was decided but not yet marked, cannot reach itself because its port is still
closed, and is then fenced when the old session runs out: for a moment no partition has a leader. Its transaction
coordinator takes a partition without a leader for a deleted one, skips the marker and records the transaction as
complete. From then on the partition's last stable offset stands still: readers of committed records see nothing new.
(Seen in one of four restarts right after a commit; `test_kafka.py` guards it.) Only a cluster of one has this moment.

So the broker is fenced while it does not run: a controller alone on its metadata, with a session time so short that the
absent broker loses its place, for about a second. The broker then starts without a former life. While it runs it is
never fenced: its session never ends, and a stop hands nothing over.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

from devstack.errors import DevstackError
from devstack.ports import LOOPBACK
from devstack.process import ManagedProcess

_DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.02

_PROPERTIES = """\
# Written by devstack: a controller alone, for a moment before each start of the broker.
process.roles=controller
node.id=1
controller.quorum.voters=1@{host}:{port}
controller.listener.names=CONTROLLER
listeners=CONTROLLER://{host}:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT
log.dirs={data}
broker.heartbeat.interval.ms=50
broker.session.timeout.ms=100
# Something is written this often, so that a longer log proves that what came before is written too.
metadata.max.idle.interval.ms=50
"""

# What the controller logs as it replays the metadata and when it is in charge. The jars are pinned, and so are these.
_ACTIVE = "Activated periodic tasks"
_CHANGE = re.compile(
    r"Replayed .*(?:RegisterBrokerRecord|BrokerRegistrationChangeRecord)\(brokerId=1,.* fenced=([-\w]+)"
)
_FENCED = {"true": True, "1": True, "false": False, "-1": False}


def fence(directory: Path, data: Path, port: int, command: list[str]) -> None:
    """Run the controller alone until the broker is fenced.

    Args:
        directory: the broker's folder, for settings and log.
        data: its formatted storage.
        port: the controller's port.
        command: what runs Kafka, without the settings file.
    """
    settings = directory / "fence.properties"
    settings.write_text(_PROPERTIES.format(host=LOOPBACK, port=port, data=data))
    log = directory / "fence.log"
    log.unlink(missing_ok=True)
    controller = ManagedProcess("Kafka's controller", [*command, str(settings)], log, pid_file=directory / "fence.pid")
    controller.start()
    try:
        until = time.monotonic() + _DEADLINE_SECONDS
        _wait_for(lambda: fenced(log.read_text(errors="replace")), controller, until)
        # The controller logs what it decided before it has written it.
        written = _size(data)
        _wait_for(lambda: _size(data) > written, controller, until)
    finally:
        controller.kill()


def fenced(log: str) -> bool:
    """Whether the controller is in charge and the broker's last known state is fenced."""
    known = [_FENCED[state] for state in _CHANGE.findall(log) if state in _FENCED]
    return _ACTIVE in log and (not known or known[-1])


def _wait_for(condition: Callable[[], bool], controller: ManagedProcess, until: float) -> None:
    while not condition():
        if not controller.running:
            raise controller.died()
        if time.monotonic() > until:
            raise DevstackError(f"Kafka's metadata does not become ready; start again:\n{controller.tail(20)}")
        time.sleep(_POLL_SECONDS)


def _size(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("__cluster_metadata-0/*.log"))
