"""Children: stopped with a grace, killed after it, dead with their supervisor."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from devstack import DevstackError, ManagedProcess
from devstack.process import run_to_end
from tests.devstack.waiting import until

ROOT = Path(__file__).parents[2]

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def python(tmp_path: Path, code: str, **options) -> ManagedProcess:
    return ManagedProcess("child", [sys.executable, "-c", code], tmp_path / "child.log", **options)


async def test_stop_escalates_to_sigkill(tmp_path: Path) -> None:
    child = python(tmp_path, STUBBORN)
    child.start()
    until(lambda: "ready" in child.tail(), "the child's handler is set")
    began = time.monotonic()
    await child.stop(2)
    assert time.monotonic() - began >= 2
    assert child.exit_code == -signal.SIGKILL
    assert "no" in child.tail()
    await child.stop(2)  # twice is once


async def test_stop_reaches_a_suspended_child(tmp_path: Path) -> None:
    child = python(tmp_path, "import time; print('ready', flush=True); time.sleep(60)")
    child.start()
    until(lambda: "ready" in child.tail(), "the child runs")
    child.suspend()
    await child.stop(10)
    assert child.exit_code == -signal.SIGTERM


def test_a_child_has_stopped_when_suspend_returns(tmp_path: Path) -> None:
    child = python(tmp_path, "print('ready', flush=True)\nwhile True: pass")
    child.start()
    try:
        until(lambda: "ready" in child.tail(), "the child runs")
        for _ in range(50):
            child.suspend()
            assert psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
            child.resume()
    finally:
        child.kill()


async def test_the_pid_is_the_program_and_its_session_is_its_own(tmp_path: Path) -> None:
    child = python(tmp_path, "import os; print('is', os.getpid(), os.getsid(0), flush=True)")
    child.start()
    assert await child.wait_exit(10) == 0
    assert child.tail().split() == ["is", str(child.pid), str(child.pid)]


async def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    child = ManagedProcess("child", ["/no/such/program"], tmp_path / "child.log")
    child.start()
    assert await child.wait_exit(10) == 1
    assert "/no/such/program" in str(child.died())


def test_a_failed_step_tells_its_output() -> None:
    with pytest.raises(DevstackError, match="making tea failed:\nno water"):
        run_to_end("making tea", [sys.executable, "-c", "import sys; sys.exit('no water')"], deadline_seconds=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_the_child_runs_as_the_given_user_without_our_groups(tmp_path: Path) -> None:
    child = ManagedProcess("child", ["/usr/bin/id"], tmp_path / "child.log", uid=65534, gid=65534, cwd=Path("/"))
    child.start()
    assert await child.wait_exit(10) == 0
    assert child.tail().startswith("uid=65534")
    assert "(root)" not in child.tail()


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
@pytest.mark.parametrize(
    "user", [None, pytest.param(65534, marks=pytest.mark.skipif(os.geteuid() != 0, reason="root"))]
)
def test_a_child_dies_with_a_killed_supervisor(tmp_path: Path, user: int | None) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from devstack import ManagedProcess
        log = Path("{tmp_path}/child.log")
        child = ManagedProcess("child", ["/bin/sleep", "300"], log, uid={user}, gid={user}, cwd=Path("/"))
        child.start()
        print(child.pid, flush=True)
        time.sleep(300)
    """)
    supervisor = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with supervisor:
        assert supervisor.stdout is not None
        child = psutil.Process(int(supervisor.stdout.readline()))
        until(lambda: child.name() == "sleep", "the launcher became the program")
        supervisor.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child is gone")


async def test_what_a_dead_supervisor_left_is_ended_and_a_living_ones_is_not(tmp_path: Path) -> None:
    pid_file = tmp_path / "child.pid"
    child = python(tmp_path, "import time; time.sleep(300)", pid_file=pid_file)
    child.start()
    rival = python(tmp_path, "pass", pid_file=pid_file)
    with pytest.raises(DevstackError, match="already runs from"):
        rival.start()
    # As if another supervisor had written it and died, where no death signal exists.
    text = pid_file.read_text()
    pid_file.write_text(text.replace(f'"supervisor": {os.getpid()}', '"supervisor": 999999999'))
    rival.start()
    assert await child.wait_exit(10) == -signal.SIGKILL
    assert await rival.wait_exit(10) == 0
