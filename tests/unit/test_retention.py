"""A retention under which something could come back that nobody knows any more is refused."""

import os
import re

import pytest

import settings
from cli.retention import refuse_short
from messaging import topics
from settings import RetentionSettings, SettingsError


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(settings.PREFIX):
            monkeypatch.delenv(name)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    """Returns what each refused variable has to be at the least, days."""
    for name, value in variables.items():
        monkeypatch.setenv(f"ORDERFLOW_{name}", value)
    try:
        refuse_short(settings.load())
    except SettingsError as error:
        return dict(re.findall(r"ORDERFLOW_(\w+): \d+ days are fewer than the ([\d.]+) that", str(error)))
    return {}


def test_the_defaults_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(monkeypatch) == {}


@pytest.mark.parametrize("name", RetentionSettings.model_fields)
def test_none_is_shorter_than_a_topic_may_keep_a_record(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    variable = f"RETENTION_{name.upper()}"
    least = 55 if name == "erasures_days" else 31
    assert refused(monkeypatch, **{variable: str(least)}) == {}
    assert refused(monkeypatch, **{variable: str(least - 1)}) == {variable: str(least)}


def test_all_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"RETENTION_ORDERS_DAYS": "1", "RETENTION_OUTCOMES_DAYS": "30", "RETENTION_ERASURES_DAYS": "54"}
    assert refused(monkeypatch, **short).keys() == short.keys()


def test_an_intent_is_kept_for_as_long_as_its_event_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"NOTIFICATION_MAX_AGE_HOURS": str(50 * 24)}
    assert refused(monkeypatch, **told) == {"RETENTION_NOTIFICATION_INTENTS_DAYS": "50"}


def test_every_delay_of_retries_is_one_topic_more_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RETENTION_ERASURES_DAYS": "62", "KAFKA_RETRY_DELAYS": "10,300,1800"}
    assert refused(monkeypatch, **variables) == {"RETENTION_ERASURES_DAYS": "63"}


def test_a_record_is_kept_a_segment_longer_than_its_topics_retention() -> None:
    assert topics.longest_kept((10, 300)).days == 31
    assert topics.longest_way((10, 300)).days == 8 + 2 * 8 + 31
    for topic in topics.all_topics((10, 300)):
        assert topic.config(min_insync_replicas=1)["segment.ms"] == "86400000"
