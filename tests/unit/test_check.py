"""`orderflow check`: what readings come to, and the exit code of each end."""

import asyncio
import datetime
import json
import math
import sys
from collections.abc import Awaitable, Callable

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from cli import check, checks, main
from cli.plugin import Measure, Result, State, Threshold
from domain.failures import DependencyDown
from messaging.backlog import Backlog
from messaging.brokers import seen
from messaging.reachability import Replicas
from messaging.topics import GROUPS, ORDERS, PAYMENTS
from settings import SettingsError
from storage.standing import Standing
from tests.builders import NOW

AT = TopicPartition("orders", 2)
NOW_SECONDS = NOW.timestamp()
AGE = Threshold(10, 60)


def values(result: Result) -> dict[str, float]:
    return {measure.label: measure.value for measure in result.measures}


# -- lag ---------------------------------------------------------------------------------------------------------------


def behind(seconds: float, records: int = 3) -> Backlog:
    return Backlog(AT, records=records, since=NOW_SECONDS - seconds)


@pytest.mark.parametrize(("seconds", "state"), [(5, State.OK), (11, State.WARNING), (252, State.CRITICAL)])
def test_lag_is_the_age_of_the_oldest_record(seconds: float, state: State) -> None:
    result = checks.lag_of({"payment-processor": [Backlog(AT), behind(seconds)]}, AGE, now=NOW_SECONDS)
    assert result.state is state
    assert values(result) == {"payment-processor_age": seconds, "payment-processor_records": 3}
    if state is not State.OK:
        assert "payment-processor: oldest" in result.summary
        assert "on orders-2" in result.summary


def test_a_record_that_is_not_due_yet_is_not_late() -> None:
    result = checks.lag_of({"a": [behind(-200)]}, AGE, now=NOW_SECONDS)
    assert (result.state, values(result)) == (State.OK, {"a_age": 0.0, "a_records": 3})


@pytest.mark.parametrize(
    ("backlogs", "text"),
    [
        ([Backlog(AT, is_known=False)], "a: has no place on orders-2: it never started, or lost it"),
        ("PostgreSQL cannot be read", "a: unknown, PostgreSQL cannot be read"),
    ],
)
def test_lag_that_is_not_known_is_not_0(backlogs: "list[Backlog] | str", text: str) -> None:
    result = checks.lag_of({"a": backlogs, "b": [Backlog(AT)]}, AGE, now=NOW_SECONDS)
    assert (result.state, result.summary) == (State.UNKNOWN, text)
    assert math.isnan(values(result)["a_age"])
    assert values(result)["b_age"] == 0


def test_lag_that_is_known_to_be_too_much_goes_before_what_is_not_known() -> None:
    found = {"a": "away", "b": [behind(61), Backlog(AT, is_known=False)]}
    result = checks.lag_of(found, AGE, now=NOW_SECONDS)
    assert result.state is State.CRITICAL
    assert result.summary == "b: oldest 61 s on orders-2, 3 records (and 1 more)"
    assert values(result)["b_age"] == 61


def test_records_that_were_deleted_unhandled_are_critical() -> None:
    result = checks.lag_of({"a": [Backlog(AT, is_lost=True, records=7)]}, AGE, now=NOW_SECONDS)
    assert result.state is State.CRITICAL
    assert "its place on orders-2 is lost" in result.summary
    assert math.isnan(values(result)["a_age"])


def test_the_groups_are_the_workers() -> None:
    assert list(checks.groups()) == [*GROUPS, "projector"]


# -- orders, ledger ----------------------------------------------------------------------------------------------------


def standing(*, overdue: int = 0, unknown_since: datetime.datetime | None = None) -> Standing:
    return Standing(
        open={"created": 4, "processing": 5, "refunding": 0},
        overdue={"created": 0, "processing": overdue, "refunding": 0},
        unknown_since=unknown_since,
        unresolved={},
        unresolved_since=None,
    )


@pytest.mark.parametrize(("overdue", "state"), [(0, State.OK), (1, State.WARNING), (11, State.CRITICAL)])
def test_overdue_orders(overdue: int, state: State) -> None:
    result = checks.orders_of(standing(overdue=overdue), Threshold(0, 10), unknown=900, now=NOW)
    assert result.state is state
    assert values(result)["overdue"] == overdue
    assert values(result)["open_processing"] == 5


@pytest.mark.parametrize(("minutes", "state"), [(14, State.OK), (16, State.CRITICAL)])
def test_a_charge_that_nobody_knows_of(minutes: int, state: State) -> None:
    since = NOW - datetime.timedelta(minutes=minutes)
    result = checks.orders_of(standing(unknown_since=since), Threshold(0, 10), unknown=900, now=NOW)
    assert result.state is state
    assert f"for {minutes} min nobody knows what a charge came to" in result.summary


NONE = {"CHARGED_TWICE": 0, "PAID_WITHOUT_CAPTURE": 0}
SOME = {"CHARGED_TWICE": 2, "PAID_WITHOUT_CAPTURE": 0}


@pytest.mark.parametrize(
    ("counts", "age", "state"),
    [
        (NONE, 300.0, State.OK),
        (NONE, 3_601.0, State.UNKNOWN),
        (NONE, None, State.UNKNOWN),
        (SOME, 300.0, State.CRITICAL),
        (SOME, 3_601.0, State.CRITICAL),
    ],
)
def test_the_ledger_agrees_only_as_far_as_it_was_compared(
    counts: dict[str, int], age: float | None, state: State
) -> None:
    result = checks.ledger_of(counts, age, Threshold(0, 0), stale=3_600)
    assert result.state is state
    if state is State.UNKNOWN:
        assert math.isnan(values(result)["differences"])
        assert "is the reconciler running?" in result.summary
    else:
        assert values(result)["differences"] == sum(counts.values())


# -- brokers -----------------------------------------------------------------------------------------------------------


def view(in_sync: set[int], of: set[int] | None = None) -> dict[TopicPartition, Replicas]:
    return {AT: Replicas(frozenset(of or {1, 2, 3}), frozenset(in_sync))}


@pytest.mark.parametrize(
    ("views", "refusing", "short"),
    [
        ({1: view({1, 2, 3}), 2: view({1, 2, 3}), 3: view({1, 2, 3})}, (), ()),
        ({1: view({1, 2}), 2: view({1, 2}), 3: view({1, 2})}, (), (AT,)),
        ({1: view({1, 2, 3}), 2: view({1, 2, 3})}, (), (AT,)),  # one that is gone is still named as in sync
        ({1: view({1, 2, 3})}, (AT,), ()),
        ({1: view({1})}, (AT,), ()),
        ({1: view({1, 2, 3}), 2: view({2, 3}), 3: view({1, 2, 3})}, (), ()),  # one of them is behind with its news
    ],
)
def test_a_partition_takes_records_while_enough_replicas_answer(
    views: dict[int, dict[TopicPartition, Replicas]],
    refusing: tuple[TopicPartition, ...],
    short: tuple[TopicPartition, ...],
) -> None:
    look = seen({1, 2, 3}, views, [ORDERS, PAYMENTS], min_insync=2)
    assert (look.refusing, look.short, look.missing) == (refusing, short, ("payments",))
    assert look.answering == views.keys()


# -- ends --------------------------------------------------------------------------------------------------------------


def looked(name: str, look: Callable[[], Awaitable[Result]], timeout: float = 10) -> Result:
    return asyncio.run(check.looked(name, look, timeout))


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("server", State.CRITICAL),
        ("kafka", State.CRITICAL),
        ("db", State.CRITICAL),
        ("lag", State.UNKNOWN),
        ("dlq", State.UNKNOWN),
        ("orders", State.UNKNOWN),
        ("ledger", State.UNKNOWN),
        ("cert", State.UNKNOWN),
    ],
)
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DependencyDown("postgres", "gone"), "PostgreSQL (ORDERFLOW_DATABASE_URL): "),
        (KafkaConnectionError("gone"), "Kafka (ORDERFLOW_KAFKA_BOOTSTRAP): "),
        (checks.Unreadable("the server is away"), "the server is away"),
        (TimeoutError(), "no answer within 10 s"),
    ],
)
def test_what_is_away_is_critical_itself_and_unknown_to_others(
    name: str, state: State, error: Exception, text: str
) -> None:
    async def look() -> Result:
        raise error

    result = looked(name, look)
    assert result.state is state
    assert result.summary.startswith(text)
    assert result.measures == ()


def test_what_does_not_answer_is_given_up() -> None:
    async def look() -> Result:
        await asyncio.Event().wait()
        raise AssertionError

    result = looked("kafka", look, timeout=0.01)
    assert (result.state, result.summary) == (State.CRITICAL, "no answer within 0.0 s")


@pytest.mark.parametrize("error", [SettingsError("Wrong settings:\n  X: wrong"), KeyError("a defect")])
def test_a_check_that_is_wrong_itself_says_nothing_of_what_it_checks(error: Exception) -> None:
    async def look() -> Result:
        raise error

    assert looked("db", look).state is State.UNKNOWN


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["orderflow", "check", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("state", State)
def test_the_exit_code_is_the_state(
    state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def found(*_: object) -> Result:
        return Result("kafka", state, "so it is", measures=[Measure("brokers", 3)])

    monkeypatch.setattr(checks, "kafka", found)
    assert ended(monkeypatch, "kafka", "--format", "nagios") == state
    assert capsys.readouterr().out == f"KAFKA {state.name} so it is | brokers=3\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("lag", "--warn", "10"),
        ("lag", "--warn", "2m", "--crit", "1m"),
        ("cert", "--warn", "1d", "--crit", "2d"),
        ("dlq", "--crit", "-1"),
        ("lag", "--group", "nobody"),
        ("all", "--skip", "nothing"),
        ("server", "--tls-ca", "/no/such/file"),
        ("server", "--target", "elsewhere:50051"),
        ("db", "--format", "xml"),
    ],
)
def test_a_command_that_is_not_written_right_is_not_critical(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(monkeypatch, *arguments) == State.UNKNOWN


def test_all_is_as_the_worst_and_each_has_its_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Threshold] = {}

    def finds(name: str, state: State) -> Callable[..., Awaitable[Result]]:
        async def found(*arguments: object, **_: object) -> Result:
            if thresholds := [each for each in arguments if isinstance(each, Threshold)]:
                given[name] = thresholds[0]
            return Result(name, state, "so it is")

        return found

    states = dict.fromkeys(("server", "kafka", "db", "lag", "dlq", "orders", "ledger", "cert"), State.OK)
    for name, state in states.items():
        monkeypatch.setattr(checks, name, finds(name, state))
    assert ended(monkeypatch, "all", "--format", "json") == 0
    assert [each["check"] for each in json.loads(capsys.readouterr().out)["checks"]] == list(states)[:-1]
    assert ended(monkeypatch, "all", "--tls", "--format", "json") == 0
    assert [each["check"] for each in json.loads(capsys.readouterr().out)["checks"]] == list(states)
    assert given["lag"] == Threshold(60, 300)
    assert given["cert"] == Threshold(14 * 86_400, 3 * 86_400, below=True)

    monkeypatch.setattr(checks, "ledger", finds("ledger", State.UNKNOWN))
    assert ended(monkeypatch, "all") == State.UNKNOWN
    monkeypatch.setattr(checks, "dlq", finds("dlq", State.WARNING))
    assert ended(monkeypatch, "all") == State.WARNING
    monkeypatch.setattr(checks, "server", finds("server", State.CRITICAL))
    assert ended(monkeypatch, "all") == State.CRITICAL
    assert ended(monkeypatch, "all", "--skip", "server", "--skip", "dlq", "--skip", "ledger") == 0


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("orders.example:443", ("orders.example", 443)),
        ("dns:///orders.example:443", ("orders.example", 443)),
        ("dns:orders.example:443", ("orders.example", 443)),
        ("[::1]:50051", ("::1", 50051)),
        ("ipv4:10.0.0.1:50051", ("10.0.0.1", 50051)),
    ],
)
def test_the_server_that_shows_the_certificate(target: str, address: tuple[str, int]) -> None:
    assert checks._address(target) == address


@pytest.mark.parametrize("target", ["orders.example", "ipv4:10.0.0.1:1,10.0.0.2:1", "unix:/run/orderflow", ":50051"])
def test_a_target_that_is_not_one_server(target: str) -> None:
    with pytest.raises(checks.Unreadable, match="name one server"):
        checks._address(target)
