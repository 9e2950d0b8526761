"""The chaos test itself: a short run with every kind of fault, and the long ones."""

import asyncio
import contextlib
import os
import pathlib
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]


async def run_chaos(folder: pathlib.Path, *arguments: str, deadline: float) -> tuple[int | None, str]:
    """Runs `python -m chaos` as a person does; what it starts dies with it.

    Returns its exit code, None if it was not over in time, and what it told so far.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORDERFLOW_")}
    told = folder.with_suffix(".txt")
    with told.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chaos", "--folder", str(folder), *arguments),
            cwd=_ROOT,
            env={**kept, "PYTHONPATH": os.pathsep.join(str(_ROOT / part) for part in ("", "generated", "clients"))},
            stdout=file,
            stderr=asyncio.subprocess.STDOUT,
        )
    code = None
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return code, told.read_text()


@pytest.mark.alone
@pytest.mark.timeout(600)
async def test_every_danger_once_and_every_invariant_holds(tmp_path: pathlib.Path) -> None:
    code, told = await run_chaos(tmp_path / "run", "--seed", "1", "--minutes", "0.65", "--orders", "260", deadline=540)
    assert code == 0, told


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_ten_minutes_and_five_thousand_orders(tmp_path: pathlib.Path, seed: int) -> None:
    code, told = await run_chaos(
        tmp_path / "run", "--seed", str(seed), "--minutes", "10", "--orders", "5000", deadline=1700
    )
    assert code == 0, told
