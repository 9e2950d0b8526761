"""The units, as systemd itself reads them."""

import pathlib
import re
import shutil
import subprocess

import pytest

import settings
from tests.deploy.alerts import ROOT

FOLDER = ROOT / "deploy/systemd"
UNIT = "orderflow@server.service"


@pytest.fixture
def analyze(tmp_path: pathlib.Path) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not on this machine")
    (version,) = re.findall(r"^systemd (\d+)", run(tmp_path, program, "--version"))
    if int(version) < 250:
        pytest.skip("systemd on this machine is older than 250, which reads units without a running system")
    # The instance as installed, but for the program, which is not here.
    unit = (FOLDER / "orderflow@.service").read_text()
    assert "ExecStart=/opt/orderflow/bin/orderflow run %i\n" in unit
    (tmp_path / UNIT).write_text(unit.replace("/opt/orderflow/bin/orderflow", "/bin/true"))
    shutil.copytree(FOLDER / f"{UNIT}.d", tmp_path / f"{UNIT}.d")
    return program


def run(folder: pathlib.Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_systemd_has_nothing_to_say(analyze: str, tmp_path: pathlib.Path) -> None:
    told = run(tmp_path, analyze, "verify", f"./{UNIT}")
    # It reads the units of this machine that ours comes after, too, and has its say about them.
    assert [line for line in told.splitlines() if UNIT in line] == []


def test_a_role_may_set_its_niceness() -> None:
    """Nothing that systemd-analyze says tells: the process would be killed when it calls setpriority."""
    lines = (FOLDER / "orderflow@.service").read_text().splitlines()
    filters = [line.removeprefix("SystemCallFilter=") for line in lines if line.startswith("SystemCallFilter=")]
    assert filters == ["@system-service", "~@privileged @resources", "setpriority"]


def test_systemd_would_see_a_misspelt_line(analyze: str, tmp_path: pathlib.Path) -> None:
    """It exits with 0 all the same: what it prints is what counts."""
    unit = tmp_path / UNIT
    unit.write_text(unit.read_text().replace("TimeoutStopSec=", "TimeoutStopSecs="))
    assert "TimeoutStopSecs" in run(tmp_path, analyze, "verify", f"./{UNIT}")


def test_it_is_shut_in(analyze: str, tmp_path: pathlib.Path) -> None:
    told = run(tmp_path, analyze, "security", "--offline=true", f"./{UNIT}")
    (score,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert float(score) <= 2.0


def test_a_stop_has_time_to_drain() -> None:
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", (FOLDER / "orderflow@.service").read_text(), re.MULTILINE)
    server = values("server.env")
    delay = float(server["ORDERFLOW_SERVER_SHUTDOWN_DELAY_SECONDS"])
    assert int(stop) >= delay + settings.ServerSettings().drain_seconds + 5 + 5
    assert int(stop) >= settings.WorkerSettings().drain_seconds + 5


def values(name: str) -> dict[str, str]:
    lines = [line for line in (FOLDER / name).read_text().splitlines() if line and not line.startswith("#")]
    return {line.partition("=")[0]: line.partition("=")[2].strip('"') for line in lines}


@pytest.mark.parametrize("names", [("orderflow.env",), ("orderflow.env", "server.env")], ids=len)
def test_what_is_set_are_settings(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names:
        for variable, value in values(name).items():
            monkeypatch.setenv(variable, value)
    assert settings.load().kafka.min_insync_replicas == 2
