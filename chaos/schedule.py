"""What is done to the system and when: data, made from a seed, so that a failing run can be repeated."""

import dataclasses
import json
import random
from typing import Any, Final

from chaos.system import INSTANCES, SECOND, role_of
from devstack.system import WORKERS

ROUND_SECONDS: Final = 80.0
"""A round holds every kind of fault once, and a kill of every role. A shorter run is one round in the time there is.

On two cores shorter rounds strike faster than what they hit comes back, and the run takes twice its time.
"""

PAUSE_SECONDS: Final = 14.0
"""At least, and longer than a consumer's session time-out of 10 s: the sleeper wakes up when another has taken over."""

_GATEWAY: Final[tuple[dict[str, Any], ...]] = (
    {"error_rate": 0.3},
    {"error_rate": 0.4},
    {"transient_error_rate": 0.3, "latency_seconds": 0.1},
    {"drop_reply_rate": 0.2, "reset_after_rate": 0.2},
    {"time_out_rate": 0.2, "reset_before_rate": 0.2},
    {"hang_rate": 0.1, "slow_rate": 0.3, "slow_seconds": 1.0},
)
"""Each for some seconds; a field that the gateway does not know is left out."""

_BLIND: Final = 0.2
"""After the first round, so many kills do not wait until engines and victim work."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One fault: `at` seconds after the start, for `seconds`."""

    at: float
    kind: str
    target: str
    seconds: float = 0.0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def schedule(seed: int, seconds: float) -> list[Step]:
    """Returns the steps of a run, the same for the same arguments."""
    dice = random.Random(f"{seed}/faults")  # noqa: S311 - chooses faults, guards nothing
    rounds = max(round(seconds / ROUND_SECONDS), 1)
    length = seconds / rounds
    steps: list[Step] = []
    for number in range(rounds):
        steps += _round(dice, seed, number, number * length, length)
    return sorted(steps, key=lambda step: step.at)


def _round(dice: random.Random, seed: int, number: int, begins: float, length: float) -> list[Step]:
    zombie = dice.choice(("payment-processor", "order-processor") if number % 2 == 0 else WORKERS)
    scaled = dice.choice([instance for instance in SECOND if role_of(instance) not in (zombie, "projector")])
    kinds: list[Step] = [
        Step(
            0,
            "kill",
            dice.choice([each for each in INSTANCES if role_of(each) == worker]),
            details={
                "in_transaction": worker in ("payment-processor", "notification-email"),
                "blind": number > 0 and dice.random() < _BLIND,
            },
        )
        for worker in WORKERS
    ]
    kinds += [
        Step(0, "kill", "server"),
        Step(0, "kill-engine", "kafka"),
        Step(0, "restart", "postgres"),
        Step(0, "scale", scaled, 3.0),
        Step(0, "gateway", "gateway", 4.0, _GATEWAY[0]),
        Step(0, "gateway", "gateway", 4.0, _GATEWAY[1 + (seed + number) % (len(_GATEWAY) - 1)]),
        Step(0, "outage", "gateway", 4.0, {"hang": True} if number % 2 else {"refuse": True}),
        Step(0, "poison", "topics", 0.0, {"seed": f"{seed}/{number}"}),
    ]
    dice.shuffle(kinds)
    # The zombie first: it takes longest, and everything else may happen meanwhile.
    kinds.insert(0, Step(0, "pause", zombie, PAUSE_SECONDS))
    gap = length / len(kinds)
    return [
        dataclasses.replace(step, at=round(begins + gap * (place + dice.uniform(0.0, 0.5)), 1))
        for place, step in enumerate(kinds)
    ]


def text(steps: list[Step]) -> str:
    """Returns the schedule as JSON."""
    return json.dumps([dataclasses.asdict(step) for step in steps], indent=1)
