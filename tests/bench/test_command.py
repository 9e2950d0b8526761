"""What the bench's command runs: what is missing, and the rest although one workload fails."""

import contextlib
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bench import command, kept
from bench.results import Figure, Measured, Workload, WrongResultError


class System:
    """Has nothing to start."""

    def __init__(self, *_: Any) -> None: ...

    @contextlib.asynccontextmanager
    async def engines(self) -> AsyncIterator[None]:
        yield

    def last_words(self) -> str:
        return ""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three workloads, and the names of those that were measured: `both` measures `shared`, too, and `wrong` fails."""
    names: list[str] = []

    def workload(name: str, result: Measured | None) -> Workload[None]:
        async def measure(*_: Any) -> Measured:
            names.append(name)
            if result is None:
                raise WrongResultError("lost")
            return result

        figures = (Figure("fast", "fast", "1/s"),)
        return Workload(name=name, about=name, measure=measure, full=None, short=None, figures=figures)

    one = Measured({"fast": 1.0})
    workloads = {
        "wrong": workload("wrong", None),
        "both": workload("both", Measured({"fast": 2.0}, also={"shared": one})),
        "shared": workload("shared", one),
    }
    monkeypatch.setattr(command, "ALL", workloads)
    monkeypatch.setattr(kept, "ALL", workloads)
    monkeypatch.setattr(command, "BenchSystem", System)
    return names


def test_each_start_runs_what_is_missing(measured: list[str], tmp_path: pathlib.Path) -> None:
    file = str(tmp_path / "results.json")
    assert command.main(["shared", "--runs", "1", "--output", file]) == 0
    assert command.main(["both", "shared", "--runs", "2", "--output", file]) == 0
    assert measured == ["shared", "both", "both"]
    assert command.main(["both", "shared", "--runs", "3", "--output", file]) == 0
    assert measured == ["shared", "both", "both", "both"]
    workloads = json.loads((tmp_path / "results.json").read_text())["workloads"]
    assert {name: part["figures"]["fast"]["values"] for name, part in workloads.items()} == {
        "shared": [1.0, 1.0, 1.0],
        "both": [2.0, 2.0, 2.0],
    }


def test_one_that_fails_is_told_and_the_others_go_on(
    measured: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "results.json")
    assert command.main(["wrong", "both", "--runs", "1", "--output", file]) == 1
    assert measured == ["wrong", "both"]
    assert "wrong FAILED: WrongResultError('lost')" in capsys.readouterr().out
    assert command.main(["both", "--runs", "1", "--output", file]) == 1, "the error is still in the file"
