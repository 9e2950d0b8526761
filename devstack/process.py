"""One child process: started so that it dies with us, stopped with a grace, its output in a file."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from devstack import leftover
from devstack.errors import DevstackError

_POLL_SECONDS = 0.02
_KILL_SECONDS = 10.0
_LOG_LIMIT = 20 * 1024 * 1024
_TAIL_BYTES = 64 * 1024


class ManagedProcess:
    """A program that runs as our child.

    Args:
        name: what messages call it.
        command: program and arguments.
        log_file: gets its output, appended; moved aside at a start when it has grown large.
        env: its whole environment; None inherits ours.
        death_signal: what it gets when this process dies without stopping it (Linux).
        stop_signal: what asks it to end.
        uid: user to run it as, when we are root.
        gid: group to run it as, when we are root.
        cwd: working folder; None inherits ours.
        pid_file: where to remember it, so that a later start ends what an earlier supervisor left.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        log_file: Path,
        env: Mapping[str, str] | None = None,
        *,
        death_signal: signal.Signals = signal.SIGKILL,
        stop_signal: signal.Signals = signal.SIGTERM,
        uid: int | None = None,
        gid: int | None = None,
        cwd: Path | None = None,
        pid_file: Path | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.log_file = log_file
        self._env = env
        self._death_signal = death_signal
        self._stop_signal = stop_signal
        self._uid = uid
        self._gid = gid
        self._cwd = cwd
        self._pid_file = pid_file
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Call this from the main thread: Linux ends the child with the thread that started it."""
        if self.running:
            raise DevstackError(f"{self.name} is already running (pid {self.pid})")
        self.end_leftover()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self.log_file.stat().st_size > _LOG_LIMIT:
                self.log_file.replace(self.log_file.with_name(self.log_file.name + ".1"))
        with self.log_file.open("ab") as log:
            self._popen = subprocess.Popen(  # noqa: S603  (the caller's own command)
                [*launcher(self._death_signal, self._uid, self._gid), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
            )
        if self._pid_file is not None:
            leftover.remember(self._pid_file, self._popen.pid)

    def end_leftover(self) -> None:
        """End what an earlier, dead supervisor left running; DevstackError when a living one still uses it."""
        if self._pid_file is not None:
            leftover.end_leftover(self._pid_file, self.name)

    @property
    def pid(self) -> int | None:
        """The process's own id (the launcher became it), None before the first start."""
        return None if self._popen is None else self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal), None while it runs or before it was started."""
        return None if self._popen is None else self._popen.poll()

    async def wait_exit(self, deadline_seconds: float) -> int | None:
        """Wait until it has ended; return its exit code, or None when it still runs at the deadline."""
        until = time.monotonic() + deadline_seconds
        # Polled: subprocess has no event, and asyncio's own child watchers differ between systems and loops.
        while self.running and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        return self.exit_code

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and kill it when the grace is over. Stopping what does not run does nothing."""
        self.send(self._stop_signal)
        # One that is suspended would hear the stop signal only after it goes on.
        self.send(signal.SIGCONT)
        try:
            await self.wait_exit(grace_seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL at once, and reap."""
        if self._popen is None:
            return
        if self.running:
            self._popen.kill()
            try:
                self._popen.wait(_KILL_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise DevstackError(f"{self.name} (pid {self.pid}) does not end; end it by hand") from error
        if self._pid_file is not None:
            leftover.forget(self._pid_file)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._popen is not None and self.running:
            self._popen.send_signal(number)

    def suspend(self) -> None:
        """SIGSTOP, if it runs: returns when none of its threads runs any more, which takes a moment."""
        if self._popen is not None and self.running:
            self._popen.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT, after `suspend`."""
        self.send(signal.SIGCONT)

    def tail(self, lines: int = 20) -> str:
        """The last lines of its output, for error messages."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(max(0, self.log_file.stat().st_size - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def died(self) -> DevstackError:
        """An error that tells how it ended and what it last said."""
        return DevstackError(
            f"{self.name} ended with exit code {self.exit_code}; the end of {self.log_file}:\n{self.tail(20)}"
        )


def run_to_end(
    name: str,
    command: list[str],
    *,
    deadline_seconds: float,
    env: Mapping[str, str] | None = None,
    uid: int | None = None,
    gid: int | None = None,
) -> None:
    """Run a short command that has to succeed; its output goes into the error when it does not."""
    try:
        done = subprocess.run(  # noqa: S603  (the caller's own command)
            [*launcher(signal.SIGKILL, uid, gid), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd="/",
            timeout=deadline_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DevstackError(f"{name} did not end within {deadline_seconds:.0f} s; start again") from error
    if done.returncode != 0:
        raise DevstackError(f"{name} failed:\n{done.stdout.decode(errors='replace')}")


def launcher(death_signal: signal.Signals, uid: int | None = None, gid: int | None = None) -> list[str]:
    """The words before a command that make it a session of its own, another user's, and die with us."""
    words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py"))]
    words += ["--signal", death_signal.name, "--parent", str(os.getpid())]
    if uid is not None:
        words += ["--uid", str(uid)]
    if gid is not None:
        words += ["--gid", str(gid)]
    return [*words, "--"]
