"""Remembers in a file which process serves a folder, so that the next start can tell a leftover from a rival.

On Linux the death signal leaves nothing behind; elsewhere, and in the moments in which a killed engine is still
dying, the next supervisor finds it here.
"""

import contextlib
import json
import os
import time
from pathlib import Path

import psutil

from devstack.errors import DevstackError

_DYING_SECONDS = 5.0
_SAME_START_SECONDS = 1.0


def remember(pid_file: Path, pid: int) -> None:
    """Write down that this process runs `pid`."""
    facts = {
        "pid": pid,
        "started": _started(pid),
        "supervisor": os.getpid(),
        "supervisor_started": _started(os.getpid()),
    }
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    fresh = pid_file.with_suffix(".new")
    fresh.write_text(json.dumps(facts))
    fresh.replace(pid_file)


def forget(pid_file: Path) -> None:
    """Remove the note; there may be none."""
    pid_file.unlink(missing_ok=True)


def end_leftover(pid_file: Path, name: str) -> None:
    """End what a dead supervisor left running; raise DevstackError when a living one uses it."""
    try:
        facts = json.loads(pid_file.read_text())
        engine = _find(facts["pid"], facts["started"])
        supervisor = _find(facts["supervisor"], facts["supervisor_started"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    if engine is not None and supervisor is not None:
        raise DevstackError(
            f"{name} already runs from {pid_file.parent} (pid {engine.pid}, started by pid {supervisor.pid}); "
            "stop that one or use another folder"
        )
    if engine is not None:
        end_processes([engine], name)
    forget(pid_file)


def end_processes(processes: list[psutil.Process], name: str) -> None:
    """Kill the processes and wait until they are gone, so that their ports and locks are free."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until = time.monotonic() + _DYING_SECONDS
    while left := [process for process in processes if _alive(process)]:
        if time.monotonic() > until:
            pids = ", ".join(str(process.pid) for process in left)
            raise DevstackError(f"{name} of an earlier run does not end (pid {pids}); end it by hand")
        time.sleep(0.02)


def _find(pid: int, started: float | None) -> psutil.Process | None:
    """The process with this pid, if it is the same one and not just the same number."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if started is not None and abs(process.create_time() - started) < _SAME_START_SECONDS and _alive(process):
            return process
    return None


def _alive(process: psutil.Process) -> bool:
    try:
        # A zombie may have threads that still end, and these hold the ports and locks (a JVM takes a while).
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
