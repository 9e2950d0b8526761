"""The figures of how things stand: what is shown, what stays while nothing can be read, and what goes."""

import asyncio
import datetime
import math

from prometheus_client import REGISTRY, Gauge
from structlog.testing import capture_logs

from domain.failures import DependencyDown
from storage.standing import STATES, Standing
from telemetry import metrics
from tests import engines
from tests.builders import NOW
from workers.standing import StandingFigures

NOTHING = Standing(
    open=dict.fromkeys(STATES, 0),
    overdue=dict.fromkeys(STATES, 0),
    unknown_since=None,
    unresolved={},
    unresolved_since=None,
)
SOMETHING = Standing(
    open={"created": 3, "processing": 5, "refunding": 2},
    overdue={"created": 1, "processing": 4, "refunding": 0},
    unknown_since=NOW - datetime.timedelta(minutes=20),
    unresolved={("payment-processor", "PAYMENT_UNKNOWN"): 7, ("other", "other"): 1},
    unresolved_since=NOW - datetime.timedelta(days=2),
)


class Records:
    def __init__(self) -> None:
        self.standing = SOMETHING
        self.is_away = False
        self.looks = 0

    async def read(self, now: datetime.datetime) -> Standing:
        assert now == NOW
        self.looks += 1
        if self.is_away:
            raise DependencyDown("postgres", "told to")
        return self.standing


def figures(records: Records, *, interval: float = 30.0) -> StandingFigures:
    return StandingFigures(records=records, interval=interval, now=lambda: NOW)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def shown() -> tuple[dict[str, float | None], dict[str, float | None], float | None, float | None]:
    return (
        {state: value("orderflow_orders_open", state=state) for state in STATES},
        {state: value("orderflow_orders_overdue", state=state) for state in STATES},
        value("orderflow_payments_unknown_oldest_age_seconds"),
        value("orderflow_dead_letter_oldest_age_seconds"),
    )


def unresolved(group: str, reason: str) -> float | None:
    return value("orderflow_dead_letters_unresolved", group=group, reason=reason)


async def test_what_is_read_is_shown_and_what_there_is_none_of_is_0() -> None:
    records = Records()
    looking = figures(records)
    await looking.look()
    assert shown() == (SOMETHING.open, SOMETHING.overdue, 1200, 2 * 86400)
    assert unresolved("payment-processor", "PAYMENT_UNKNOWN") == 7
    assert unresolved("other", "other") == 1
    assert value("orderflow_standing_last_success_timestamp_seconds") == NOW.timestamp()
    records.standing = NOTHING
    await looking.look()
    assert shown() == (NOTHING.open, NOTHING.overdue, 0, 0)


async def test_a_class_of_dead_letters_that_is_gone_leaves_no_series() -> None:
    records = Records()
    looking = figures(records)
    await looking.look()
    records.standing = Standing(**vars(NOTHING) | {"unresolved": {("other", "other"): 2}})
    await looking.look()
    assert unresolved("payment-processor", "PAYMENT_UNKNOWN") is None
    assert unresolved("other", "other") == 2
    records.standing = SOMETHING
    await looking.look()
    assert unresolved("payment-processor", "PAYMENT_UNKNOWN") == 7


async def test_an_outage_leaves_the_last_figures_and_is_told_once() -> None:
    records = Records()
    looking = figures(records)
    await looking.look()
    metrics.STANDING_LAST_SUCCESS.set(1)
    records.is_away, records.standing = True, NOTHING
    with capture_logs() as told:
        for _ in range(3):
            await looking.look()
        assert shown() == (SOMETHING.open, SOMETHING.overdue, 1200, 2 * 86400)
        assert value("orderflow_standing_last_success_timestamp_seconds") == 1
        records.is_away = False
        await looking.look()
        await looking.look()
    assert [(each["event"], each["log_level"]) for each in told] == [
        ("standing.unreadable", "warning"),
        ("standing.readable", "info"),
    ]
    assert shown() == (NOTHING.open, NOTHING.overdue, 0, 0)


async def test_it_looks_at_once_and_again_and_outlives_a_database_that_is_away() -> None:
    records = Records()
    running = asyncio.create_task(figures(records, interval=0.01).run())
    await engines.eventually(lambda: records.looks >= 2, "two looks")
    records.is_away = True
    looks = records.looks
    await engines.eventually(lambda: records.looks >= looks + 3, "looks while PostgreSQL is away")
    running.cancel()
    await asyncio.wait([running])
    waiting = asyncio.create_task(figures(records := Records(), interval=3600).run())
    await engines.eventually(lambda: records.looks == 1, "the first look")
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_clock_that_is_behind_makes_no_negative_age() -> None:
    records = Records()
    records.standing = Standing(**vars(NOTHING) | {"unknown_since": NOW + datetime.timedelta(seconds=1)})
    await figures(records).look()
    assert value("orderflow_payments_unknown_oldest_age_seconds") == 0


def test_a_process_that_reads_nothing_says_nothing() -> None:
    gauge = metrics._unset(Gauge("orderflow_test_unset", "None.", registry=None))
    [family] = gauge.collect()
    assert [math.isnan(sample.value) for sample in family.samples] == [True]
