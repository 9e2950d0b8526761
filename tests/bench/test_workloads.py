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
    running = BenchSystem(tmp_path_factory.mktemp("bench"), lambda _: None)
    async with running.engines():
        yield running


_SOON = ("unary", "batch", "reads", "client")
"""Take seconds each. The others take half a minute and more where two tests run side by side."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _SOON else [pytest.mark.heavy]) for name in ALL]
)
async def test_workload(
    system: BenchSystem, name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = ALL[name]
    measured = await workload.measure(system, workload.short)
    assert measured.figures.keys() == {figure.name for figure in workload.figures}
    assert all(value > 0 for value in measured.figures.values()), measured.figures

    results = tmp_path / "results.json"
    part = report(workload, [measured, measured])
    part["machines"] = [machine.facts()]
    results.write_text(json.dumps({"size": "short", "workloads": {name: part}}))
    assert command.main(["table", str(results)]) == 0
    told = capsys.readouterr().out
    assert [
        each.text for each in (*workload.figures, *workload.ratios) if f"| {name} | {each.text} |" not in told
    ] == []
    assert command.main(["plot", str(results), str(tmp_path)]) == 0
    picture = (tmp_path / f"bench-{name}.svg").read_text()
    shown = measured.lines or [figure.text for figure in workload.figures if figure.name in workload.bars]
    assert [each for each in shown if each not in picture] == []


async def test_calls_that_fail_are_no_result(system: BenchSystem) -> None:
    [port] = free_ports(1)
    address = f"{LOOPBACK}:{port}"
    async with system.fresh():
        system.start_program("empty", ["-m", "bench.empty_server", address])
        await system.wait_listening(port)
        messages = [each.SerializeToString() for each in requests(64)]
        with pytest.raises(WrongResultError, match="calls of CancelOrder failed"):
            await closed_loop(system, address, "CancelOrder", messages, seconds=0.2, warmup=0.1, again=True)
