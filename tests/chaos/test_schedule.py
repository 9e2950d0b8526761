"""What a seed decides: the same orders and the same faults each time, and every kind of fault in each round."""

import pytest

from chaos import poison
from chaos.load import wishes
from chaos.oracle.facts import Facts
from chaos.oracle.folder import Record
from chaos.run import TOPICS
from chaos.schedule import PAUSE_SECONDS, schedule
from chaos.system import INSTANCES, role_of
from devstack.system import ROLES


def test_a_seed_repeats_its_schedule_and_its_orders() -> None:
    assert schedule(7, 600) == schedule(7, 600)
    assert schedule(7, 600) != schedule(8, 600)
    assert wishes(7, 100) == wishes(7, 100)
    assert wishes(7, 100) != wishes(8, 100)


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
