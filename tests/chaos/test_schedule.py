"""What a seed decides: the same orders and the same faults each time, and every kind of fault in each round."""

import itertools
import pathlib

import pytest

from chaos import poison
from chaos.load import Load, Wish, wishes
from chaos.oracle.facts import Facts
from chaos.oracle.folder import Record
from chaos.run import TOPICS
from chaos.schedule import PAUSE_SECONDS, schedule
from chaos.system import INSTANCES, role_of
from devstack.system import ROLES


def test_a_seed_repeats_its_schedule_and_its_orders() -> None:
    assert schedule(7, 600) == schedule(7, 600)
    assert schedule(7, 600) != schedule(8, 600)
    assert first(100, seed=7) == first(100, seed=7)
    assert first(100, seed=7) != first(100, seed=8)


@pytest.mark.parametrize(("burst", "placed"), [(2, 5), (7, 9)])
async def test_faults_find_orders_to_place_however_often_they_strike(
    tmp_path: pathlib.Path, burst: int, placed: int
) -> None:
    seen: list[Wish] = []

    class Noting(Load):
        async def _serve(self, wish: Wish) -> None:
            seen.append(wish)

    async with Noting("127.0.0.1:1", tmp_path / "clients.jsonl", wishes(7), planned=5) as load:
        await load.flow(0.0, reserve=3)
        load.burst(burst)
        await load.finish()
    assert seen == first(placed, seed=7)


@pytest.mark.parametrize("seed", range(1, 21))
def test_the_shortest_run_has_every_kind_of_fault(seed: int) -> None:
    steps = schedule(seed, 40)
    assert {step.kind for step in steps} == {
        "kill", "pause", "kill-engine", "restart", "scale", "gateway", "outage", "poison",
    }  # fmt: skip
    assert {role_of(step.target) for step in steps if step.kind == "kill"} == set(ROLES)
    assert all(step.target in (*INSTANCES, "server") for step in steps if step.kind == "kill")
    assert all(step.seconds == PAUSE_SECONDS for step in steps if step.kind == "pause")
    assert steps == sorted(steps, key=lambda step: step.at)
    assert steps[-1].at < 40


def test_ten_minutes_do_it_all_many_times() -> None:
    steps = schedule(1, 600)
    assert sum(step.kind == "kill" for step in steps) >= 45
    assert {step.target for step in steps if step.kind == "kill"} == {*INSTANCES, "server"}


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if topic != "dlq"])
def test_the_checker_calls_all_poison_invalid(topic: str) -> None:
    for number, (what, key, value) in enumerate(poison.records(topic, "1/0")):
        reading = Facts.reading(Record(topic, 0, number, 0, key, value, ()), topic)
        assert isinstance(reading, str), what


def first(count: int, *, seed: int) -> list[Wish]:
    return list(itertools.islice(wishes(seed), count))
