"""How `orderflow dev start-broker` asks the supervisor, which alone may be a broker's parent: by a file."""

import contextlib
import pathlib
import time
from typing import Any, Final

from cli import dev_status
from devstack.errors import DevstackError
from devstack.system import System

_DEADLINE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1


def ask(directory: pathlib.Path, number: int) -> None:
    """Asks the supervisor of the folder to start a broker, and waits until it has.

    Raises:
        DevstackError: no supervisor runs there, it has no such broker, the broker runs, or it was not started in time.
    """
    if not (process := _process(directory, number)):
        raise DevstackError(f"no broker {number} here: `orderflow dev --brokers 3` has 1, 2 and 3")
    if dev_status.lives(process["pid"]):
        raise DevstackError(f"broker {number} runs (pid {process['pid']})")
    _request(directory, number).touch()
    until = time.monotonic() + _DEADLINE_SECONDS
    while not dev_status.lives((_process(directory, number) or process)["pid"]):
        if time.monotonic() > until:
            raise DevstackError(f"broker {number} was not started within {_DEADLINE_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def asked(system: System) -> list[int]:
    """Returns which brokers are to be started; each is told once."""
    found = []
    for number in range(1, len(system.brokers) + 1):
        with contextlib.suppress(FileNotFoundError):
            _request(system.directory, number).unlink()
            found.append(number)
    return found


def _process(directory: pathlib.Path, number: int) -> dict[str, Any] | None:
    state = dev_status.read(directory) or {"processes": []}
    return next((each for each in state["processes"] if each["process"] == f"kafka-{number}"), None)


def _request(directory: pathlib.Path, number: int) -> pathlib.Path:
    return directory / f"start-broker-{number}"
