"""The gate: one probe at a time, ever longer waits, and no probe is lost. On a clock that only the tests move."""

import asyncio
from types import SimpleNamespace

import pytest

from domain.failures import DependencyDown
from messaging import dependency_gate
from messaging.dependency_gate import DependencyGate


class _Clock:
    """Stands in for sleeping and for the loop's time in the gate's module."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.released = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self.released.acquire()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    # In the gate's module alone: others of the process sleep meanwhile.
    monkeypatch.setattr(dependency_gate, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": clock.sleep}))
    monkeypatch.setattr(dependency_gate, "random", SimpleNamespace(uniform=lambda _, longest: longest))
    return clock


def down(retry_after: float | None = None, dependency: str = "postgres") -> DependencyDown:
    return DependencyDown(dependency, "away", retry_after)


async def settle() -> None:
    """Lets every task run until it waits for something."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


async def test_an_open_gate_admits_at_once() -> None:
    gate = DependencyGate("test", probe_cap=5)
    assert [await gate.admit() for _ in range(3)] == [False, False, False]


async def test_one_of_fifty_waiters_probes_at_a_time(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=5)
    gate.failed(down(), probe=False)
    admitted: list[bool] = []

    async def wait() -> None:
        admitted.append(await gate.admit())

    waiters = [asyncio.create_task(wait()) for _ in range(50)]
    await settle()
    assert len(clock.waits) == 1
    clock.released.release()
    await settle()
    assert admitted == [True]
    assert len(clock.waits) == 1, "the others wait for the probe's answer"

    gate.failed(down(), probe=True)
    await settle()
    assert len(clock.waits) == 2
    clock.released.release()
    await settle()
    assert admitted == [True, True]

    gate.answered(probe=True)
    await asyncio.gather(*waiters)
    assert admitted[2:] == [False] * 48
    assert gate.down is None


async def test_the_wait_grows_up_to_the_cap_and_starts_over(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=2)
    gate.failed(down(), probe=False)
    for _ in range(6):
        clock.released.release()
        assert await gate.admit()
        gate.failed(down(), probe=True)
    assert clock.waits == pytest.approx([0.25, 0.5, 1, 2, 2, 2], abs=0.05)
    clock.released.release()
    assert await gate.admit()
    gate.answered(probe=True)
    gate.failed(down(), probe=False)
    clock.released.release()
    assert await gate.admit()
    assert clock.waits[-1] == pytest.approx(0.25, abs=0.05)


async def test_what_the_dependency_asks_for_is_honoured(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=2)
    gate.failed(down(retry_after=30), probe=False)
    clock.released.release()
    assert await gate.admit()
    gate.failed(down(retry_after=0), probe=True)
    clock.released.release()
    assert await gate.admit()
    assert clock.waits == pytest.approx([30, 0], abs=0.05)


async def test_a_failure_that_was_under_way_when_the_gate_closed_tells_nothing_new(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=5)
    gate.failed(down(), probe=False)
    for _ in range(50):
        gate.failed(down(retry_after=1000), probe=False)
    clock.released.release()
    assert await gate.admit()
    assert clock.waits == pytest.approx([0.25], abs=0.05)


async def test_an_answer_to_what_was_under_way_does_not_open_the_gate(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=5)
    gate.failed(down(), probe=False)
    gate.answered(probe=False)
    assert gate.down is not None


@pytest.mark.parametrize("is_waiting", [True, False], ids=["while it waits", "after it was admitted"])
async def test_a_probe_that_is_given_up_lets_another_probe(clock: _Clock, is_waiting: bool) -> None:
    gate = DependencyGate("test", probe_cap=5)
    gate.failed(down(), probe=False)
    first, second = asyncio.create_task(gate.admit()), asyncio.create_task(gate.admit())
    await settle()
    if is_waiting:
        first.cancel()
    else:
        clock.released.release()
        assert await first
        gate.withdrawn()
    await settle()
    assert len(clock.waits) == 2
    clock.released.release()
    assert await second is True
    if is_waiting:
        assert first.cancelled()


async def test_a_waiter_that_is_cancelled_leaves_the_probe_alone(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=5)
    gate.failed(down(), probe=False)
    probe, waiter, third = (asyncio.create_task(gate.admit()) for _ in range(3))
    await settle()
    waiter.cancel()
    await settle()
    assert len(clock.waits) == 1
    clock.released.release()
    assert await probe is True
    assert not third.done()
    gate.answered(probe=True)
    assert await third is False


async def test_a_probe_that_finds_another_dependency_away_keeps_the_gate_closed(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=5)
    gate.failed(down(), probe=False)
    clock.released.release()
    assert await gate.admit()
    gate.failed(down(dependency="gateway"), probe=True)
    assert gate.down is not None
    assert gate.down.dependency == "gateway"


async def test_a_record_whose_probe_failed_waits_behind_all_others(clock: _Clock) -> None:
    gate = DependencyGate("g", probe_cap=5)
    gate.failed(down(), probe=False)
    turns: list[str] = []

    async def record(name: str, *, stubborn: bool) -> None:
        while await gate.admit():
            turns.append(name)
            if stubborn:
                gate.failed(down(), probe=True)
            else:
                gate.answered(probe=True)

    tasks = [
        asyncio.create_task(record("stubborn", stubborn=True)),
        asyncio.create_task(record("good", stubborn=False)),
    ]
    await settle()
    clock.released.release()
    await settle()
    clock.released.release()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert turns == ["stubborn", "good"]


async def test_with_nobody_left_to_probe_the_next_record_finds_out(clock: _Clock) -> None:
    gate = DependencyGate("test", probe_cap=5)
    gate.failed(down(), probe=False)
    clock.released.release()
    assert await gate.admit()
    gate.nothing_waits()
    gate.answered(probe=True)
    assert gate.down is None
    assert await gate.admit() is False
    gate.failed(down(), probe=False)
    clock.released.release()
    assert await gate.admit() is True, "the turn was given back"
