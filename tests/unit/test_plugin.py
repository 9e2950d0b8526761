"""Answers of a monitoring plugin: states, thresholds, performance data."""

import itertools
import json
import math

import pytest

from cli.plugin import Form, Measure, Result, State, Threshold, judged, seconds, shown, span, together, worst

OK, WARNING, CRITICAL, UNKNOWN = State


def test_the_states_are_the_exit_codes_of_nagios() -> None:
    assert [int(state) for state in (OK, WARNING, CRITICAL, UNKNOWN)] == [0, 1, 2, 3]


@pytest.mark.parametrize("states", list(itertools.permutations(State)))
def test_what_is_known_to_be_wrong_goes_before_what_is_not_known(states: tuple[State, ...]) -> None:
    assert worst(states) is CRITICAL
    assert worst(state for state in states if state is not CRITICAL) is WARNING
    assert worst(state for state in states if state in (OK, UNKNOWN)) is UNKNOWN
    assert worst([OK, OK]) is OK


def test_of_nothing_nothing_is_known() -> None:
    assert worst([]) is UNKNOWN


@pytest.mark.parametrize(
    ("value", "state"), [(0, OK), (10, OK), (10.001, WARNING), (60, WARNING), (61, CRITICAL), (math.nan, UNKNOWN)]
)
def test_past_a_threshold_is_above_it(value: float, state: State) -> None:
    assert Threshold(10, 60).judge(value) is state


@pytest.mark.parametrize(("value", "state"), [(14, OK), (13.9, WARNING), (3, WARNING), (2, CRITICAL), (-1, CRITICAL)])
def test_or_below_it_for_what_must_not_run_out(value: float, state: State) -> None:
    assert Threshold(14, 3, below=True).judge(value) is state


def test_one_threshold_may_stand_alone() -> None:
    assert Threshold(warn=1).judge(10**9) is WARNING
    assert Threshold(crit=1).judge(2) is CRITICAL
    assert Threshold(crit=1).judge(1) is OK


def test_a_warning_comes_before_it_is_critical() -> None:
    assert Threshold(1, 2).is_in_order
    assert Threshold(1, 1).is_in_order
    assert not Threshold(2, 1).is_in_order
    assert Threshold(2, 1, below=True).is_in_order
    assert not Threshold(1, 2, below=True).is_in_order


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        (Measure("payment_age", 252.0, "s", Threshold(10, 60)), "payment_age=252s;10;60"),
        (Measure("age", 0.0004, "s", Threshold(0.5, 1)), "age=0s;0.5;1"),
        (Measure("server", 1_209_600.5, "s", Threshold(1_209_600, 259_200, below=True)),
         "server=1209600.5s;1209600:;259200:"),
        (Measure("records", 1_000_000), "records=1000000"),
        (Measure("age", math.nan, "s", Threshold(10, 60)), "age=U;10;60"),
        (Measure("oldest", 1.0, "s", Threshold(warn=2)), "oldest=1s;2;"),
        (Measure("unknown", 1.0, "s", Threshold(crit=2)), "unknown=1s;;2"),
    ],
)  # fmt: skip
def test_performance_data(measure: Measure, text: str) -> None:
    assert str(measure) == text


LAG = judged("lag", [Measure("age", 70.0, "s", Threshold(10, 60))], "a | b\nc", ["detail"])


def test_an_answer_is_one_line_for_nagios_and_has_one_bar() -> None:
    assert shown(LAG, Form.NAGIOS) == "LAG CRITICAL a / b c | age=70s;10;60"
    assert shown(Result("db", CRITICAL, "away"), Form.NAGIOS) == "DB CRITICAL away"


def test_an_answer_for_people_has_its_details() -> None:
    assert shown(Result("dlq", WARNING, "2 wait", ["a: 2"]), Form.TEXT) == "DLQ WARNING 2 wait\n  a: 2"


def test_an_answer_for_programs_has_numbers_and_no_number_that_is_not_known() -> None:
    unknown = Result("lag", UNKNOWN, "away", measures=[Measure("age", math.nan, "s", Threshold(10, 60))])
    told = json.loads(shown(together([LAG, unknown]), Form.JSON))
    assert (told["state"], told["code"]) == ("CRITICAL", 2)
    assert [(each["check"], each["state"]) for each in told["checks"]] == [("lag", "CRITICAL"), ("lag", "UNKNOWN")]
    assert [each["measures"][0]["value"] for each in told["checks"]] == [70.0, None]
    assert told["checks"][0]["measures"][0]["crit"] == 60


def test_several_together_stand_as_the_worst_and_say_the_worst_first() -> None:
    fine = judged("kafka", [Measure("brokers", 3)], "3 of 3 brokers answer")
    away = Result("dlq", UNKNOWN, "the server is away")
    result = together([fine, away, LAG])
    assert result.state is CRITICAL
    assert shown(result, Form.NAGIOS) == (
        "ORDERFLOW CRITICAL lag CRITICAL: a / b c; dlq UNKNOWN: the server is away; kafka ok"
        " | kafka_brokers=3 lag_age=70s;10;60"
    )
    assert shown(result, Form.TEXT).splitlines()[:2] == ["ORDERFLOW CRITICAL", "  kafka OK: 3 of 3 brokers answer"]
    assert together([fine]).state is OK


@pytest.mark.parametrize(
    ("text", "expected"), [("500ms", 0.5), ("10s", 10.0), ("1.5h", 5_400.0), ("2m", 120.0), ("14d", 1_209_600.0)]
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "10", "s", "-1s", "1 s", "1w", "1s2m", "infs"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="for example 10s"):
        seconds(text)


@pytest.mark.parametrize(
    ("value", "text"), [(0.41, "0.4 s"), (12.4, "12 s"), (130, "2 min"), (7_300, "2 h"), (1_209_600, "14 days")]
)
def test_times_for_people(value: float, text: str) -> None:
    assert span(value) == text
