"""What processes have used so far, as Linux counts it."""

import os
import pathlib
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process and its children, ended ones included, seconds."""
    stat = _stat(pid)
    total = sum(map(int, stat[11:15])) if stat else 0
    for child in _children(pid):
        stat = _stat(child)
        total += sum(map(int, stat[11:15])) if stat else 0
    return total / _TICKS


def resident_mib(pid: int) -> float:
    """Returns the resident memory of a process without its children, MiB."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20


class Meter:
    """CPU time of processes from now on."""

    def __init__(self, pids: dict[str, int]) -> None:
        """`pids` by the name of what they are part of."""
        self._pids = pids
        self._before = {name: cpu_seconds(pid) for name, pid in pids.items()}

    def read(self) -> dict[str, float]:
        """Returns the seconds that each has used since."""
        return {name: cpu_seconds(pid) - self._before[name] for name, pid in self._pids.items()}


def _stat(pid: int) -> list[str]:
    """Returns the fields that follow the program's name, none for a process that is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found
