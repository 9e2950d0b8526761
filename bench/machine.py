"""What the results are of: the machine, its versions, the commit."""

import datetime
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final

from devstack.jars import KAFKA_VERSION
from devstack.postgres import POSTGRES_VERSION

_ROOT: Final = pathlib.Path(__file__).resolve().parent.parent


def facts() -> dict[str, Any]:
    """Returns them for the results. `load` is the load average before."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _of_file("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "postgresql": POSTGRES_VERSION,
        **{name: metadata.version(name) for name in ("aiokafka", "grpcio", "asyncpg", "protobuf")},
    }


def line(machines: Sequence[dict[str, Any]]) -> str:
    """Returns the facts of all runs as a sentence for people."""

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(each[name]) for each in machines))

    days = ", ".join(sorted({each["time"][:10] for each in machines}))
    loads = [each["load"] for each in machines if each["load"] is not None]
    load = f"; load average before the runs {min(loads):.2f} to {max(loads):.2f}" if loads else ""
    return (
        f"{days}, commit {every('commit')}: {every('cores')} cores ({every('processor')}), {every('memory_gib')} GiB, "
        f"{every('system')}; Python {every('python')}, grpcio {every('grpcio')}, aiokafka {every('aiokafka')}, "
        f"asyncpg {every('asyncpg')}, Kafka {every('kafka')}, PostgreSQL {every('postgresql')}{load}."
    )


def _of_file(path: str, name: str) -> str:
    for each in pathlib.Path(path).read_text().splitlines():
        key, _, value = each.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except OSError:
        return "unknown"
    return told.stdout.strip() or "unknown"
