"""What `orderflow dev status` shows: the supervisor writes it down, and the health is asked for when it is shown."""

import importlib.metadata
import json
import os
import pathlib
from typing import Any

from devstack.jars import KAFKA_VERSION
from devstack.kafka import KafkaBroker
from devstack.postgres import POSTGRES_VERSION
from devstack.system import CONSOLE, System, is_serving


def write(system: System) -> None:
    """Writes the system's processes and settings down, for this user only: the database's password is among them."""
    version = importlib.metadata.version("orderflow-server")
    processes = [
        *(_row(name, broker.pid, broker.bootstrap, KAFKA_VERSION) for name, broker in brokers(system).items()),
        _row("postgres", system.postgres.pid, f"127.0.0.1:{system.ports.postgres}", POSTGRES_VERSION),
        _row("gateway", system.processes["gateway"].pid, f"http://127.0.0.1:{system.ports.gateway}", version),
        _row("mail", system.processes["mail"].pid, f"127.0.0.1:{system.ports.mail}", version),
        _row(CONSOLE, system.processes[CONSOLE].pid, system.console_url, version),
        *(
            _row(role, system.processes[role].pid, system.health_address(role), version, system.metrics_address(role))
            for role in system.roles
        ),
    ]
    state = {"supervisor": os.getpid(), "environment": system.environment(), "processes": processes}
    path = _path(system.directory)
    partial = path.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        json.dump(state, file, indent=1)
    partial.rename(path)


def brokers(system: System) -> dict[str, KafkaBroker]:
    """Returns the brokers by the names that are shown: `kafka`, or `kafka-1` and so on where there are several."""
    if len(system.brokers) == 1:
        return {"kafka": system.brokers[0]}
    return {f"kafka-{number}": broker for number, broker in enumerate(system.brokers, 1)}


def _row(name: str, pid: int | None, address: str, version: str, metrics: str = "") -> dict[str, Any]:
    return {"process": name, "pid": pid, "address": address, "metrics": metrics, "version": version}


def read(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns what was written down, None if no supervisor runs."""
    try:
        state: dict[str, Any] = json.loads(_path(directory).read_text())
    except FileNotFoundError:
        return None
    return state if lives(state["supervisor"]) else None


def remove(directory: pathlib.Path) -> None:
    """Forgets it."""
    _path(directory).unlink(missing_ok=True)


async def rows(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each process with its health: by the health service where it has one, else by being alive."""
    shown = []
    for process in state["processes"]:
        if process["metrics"]:
            healthy = await is_serving(process["address"])
        else:
            healthy = lives(process["pid"])
        shown.append({**process, "health": "healthy" if healthy else "NOT HEALTHY"})
    return shown


def lives(pid: int | None) -> bool:
    """Returns whether a process with the id runs."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _path(directory: pathlib.Path) -> pathlib.Path:
    return directory / "dev.json"
