"""The short form of every workload: shows that the bench works, not how fast anything is."""

import json
import pathlib
from collections.abc import AsyncIterator

import pytest

from bench import command, machine
from bench.load import closed_loop
from bench.orders import requests
from bench.results import WrongResultError, report
from bench.system import BenchSystem
from bench.workloads import ALL
from devstack.ports import LOOPBACK, free_ports


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BenchSystem]:
    running = BenchSystem(tmp_path_factory.mktemp("bench"), lambda _: None, full_speed=False)
    async with running.engines():
        yield running


_LONG = ("startup",)
"""What tests/devstack starts, too."""
_SHOWN = [name for name in ALL if name != "memory"]
"""Growth measures memory as well."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.heavy] if name in _LONG else []) for name in _SHOWN]
)
async def test_workload(
    system: BenchSystem, name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = await ALL[name].measure(system, ALL[name].short)
    results = tmp_path / "results.json"
    for each, part in {name: measured, **measured.also}.items():
        workload = ALL[each]
        assert part.figures.keys() == {figure.name for figure in workload.figures}
        assert all(value > 0 for value in part.figures.values()), part.figures

        reported = {**report(workload, [part, part]), "machines": [machine.facts()]}
        results.write_text(json.dumps({"size": "short", "workloads": {each: reported}}))
        assert command.main(["table", str(results)]) == 0
        told = capsys.readouterr().out
        assert [
            one.text for one in (*workload.figures, *workload.ratios) if f"| {each} | {one.text} |" not in told
        ] == []
        assert command.main(["plot", str(results), str(tmp_path)]) == 0
        picture = (tmp_path / f"bench-{each}.svg").read_text()
        shown = part.lines or [figure.text for figure in workload.figures if figure.name in workload.bars]
        assert [one for one in shown if one not in picture] == []


async def test_calls_that_fail_are_no_result(system: BenchSystem) -> None:
    [port] = free_ports(1)
    address = f"{LOOPBACK}:{port}"
    async with system.fresh():
        system.start_program("empty", ["-m", "bench.empty_server", address])
        await system.wait_listening(port)
        messages = [each.SerializeToString() for each in requests(64)]
        with pytest.raises(WrongResultError, match="calls of CancelOrder failed"):
            await closed_loop(system, address, "CancelOrder", messages, seconds=0.2, warmup=0.1, again=True)
