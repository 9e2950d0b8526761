"""Settings: a wrong or unknown one is named, and no secret is shown."""

import os
from pathlib import Path

import pytest

import settings
from cli import settings_page
from domain.lifecycle import LIFECYCLE
from orderflow.events.v1.order_event_pb2 import OrderEventType
from settings import SettingsError

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(settings.PREFIX):
            monkeypatch.delenv(name)


def test_defaults() -> None:
    loaded = settings.load()
    assert loaded.kafka.bootstrap == "127.0.0.1:9092"
    assert loaded.worker.attempts == 3
    assert loaded.server.time_to_pay.total_seconds() == 3600


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_KAFKA_BOOTSTRAP", "broker:1")
    monkeypatch.setenv("ORDERFLOW_DATABASE_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("ORDERFLOW_GATEWAY_KEY_WINDOW_HOURS", "0.5")
    monkeypatch.setenv("ORDERFLOW_STATE_DIR", "/tmp/state")
    loaded = settings.load()
    assert loaded.kafka.bootstrap == "broker:1"
    assert loaded.database.url.get_secret_value() == "postgresql://u:p@h/d"
    assert loaded.gateway.key_window_hours == 0.5


def test_the_time_to_pay_may_be_less_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_SERVER_TIME_TO_PAY_MINUTES", "0.2")
    assert settings.load().server.time_to_pay.total_seconds() == 12


def test_everything_wrong_is_named_at_once_with_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_WORKER_ATTEMPTS", "0")
    monkeypatch.setenv("ORDERFLOW_WORKER_DRAIN_SECONDS", "30")
    monkeypatch.setenv("ORDERFLOW_DATABASE_COMMAND_TIMEOUT", "soon")
    monkeypatch.setenv("ORDERFLOW_KAFKA_SECURITY_PROTOCOL", "TLS")
    with pytest.raises(SettingsError) as refused:
        settings.load()
    lines = str(refused.value).splitlines()[1:]
    assert [line.strip().partition(":")[0] for line in lines] == [
        "ORDERFLOW_DATABASE_COMMAND_TIMEOUT",
        "ORDERFLOW_KAFKA_SECURITY_PROTOCOL",
        "ORDERFLOW_WORKER_ATTEMPTS",
        "ORDERFLOW_WORKER_DRAIN_SECONDS",
    ]
    assert all("Expected: " in line for line in lines)
    assert "soon" not in str(refused.value)


@pytest.mark.parametrize("name", ["EMAIL", "SMS"])
def test_a_send_may_not_outlast_a_drain(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ORDERFLOW_{name}_TIMEOUT", "14.9")
    settings.load()
    monkeypatch.setenv(f"ORDERFLOW_{name}_TIMEOUT", "15")
    with pytest.raises(SettingsError, match=f"ORDERFLOW_{name}_TIMEOUT: must be shorter than .*, which is 15"):
        settings.load()


def test_the_calls_of_a_charge_may_not_outlast_its_handling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_GATEWAY_TIMEOUT", "11.9")
    settings.load()
    monkeypatch.setenv("ORDERFLOW_GATEWAY_TIMEOUT", "12")
    with pytest.raises(SettingsError, match="ORDERFLOW_GATEWAY_TIMEOUT: must be less than 12"):
        settings.load()


@pytest.mark.parametrize("delays", ["300,10", "10,10", "86401"])
def test_delays_that_do_not_rise_or_that_kafka_may_not_keep_are_refused(
    monkeypatch: pytest.MonkeyPatch, delays: str
) -> None:
    monkeypatch.setenv("ORDERFLOW_KAFKA_RETRY_DELAYS", "10,86400")
    assert settings.load().kafka.retry_delay_seconds == (10, 86400)
    monkeypatch.setenv("ORDERFLOW_KAFKA_RETRY_DELAYS", delays)
    with pytest.raises(SettingsError, match=r"ORDERFLOW_KAFKA_RETRY_DELAYS: .* must rise, up to 86400"):
        settings.load()


def test_operators_may_be_listed_with_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load().client_certificates.operator_names == frozenset()
    monkeypatch.setenv("ORDERFLOW_SERVER_MTLS_OPERATORS", "night, console")
    assert settings.load().client_certificates.operator_names == {"night", "console"}


def test_a_provider_of_text_messages_needs_an_address_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_SMS_KIND", "http")
    with pytest.raises(SettingsError) as refused:
        settings.load()
    lines = str(refused.value).splitlines()[1:]
    assert [line.strip().partition(":")[0] for line in lines] == ["ORDERFLOW_SMS_TOKEN", "ORDERFLOW_SMS_URL"]
    assert all("must be set where ORDERFLOW_SMS_KIND is http" in line for line in lines)

    monkeypatch.setenv("ORDERFLOW_SMS_URL", "https://sms.example/messages")
    monkeypatch.setenv("ORDERFLOW_SMS_TOKEN", "topsecret")
    assert settings.load().sms.url == "https://sms.example/messages"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("URL", "http://sms.example/messages"),
        ("URL", "http://localhost.example/messages"),
        ("URL", "sms.example"),
        ("TOKEN", "topsecret\n"),
        ("TOKEN", "top secret"),
        ("TOKEN", "töpsecret"),
    ],
)
def test_an_address_in_the_clear_and_a_token_that_fits_no_header_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"ORDERFLOW_SMS_{name}", value)
    with pytest.raises(SettingsError, match=f"ORDERFLOW_SMS_{name}: ") as refused:
        settings.load()
    assert value.strip() not in str(refused.value)


def test_each_channel_tells_of_every_lifecycle_event_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    lifecycle = {OrderEventType.Name(event).removeprefix("ORDER_EVENT_TYPE_") for event in LIFECYCLE}
    told = settings.load().notification
    assert told.email_event_names == told.sms_event_names == lifecycle

    monkeypatch.setenv("ORDERFLOW_NOTIFICATION_EMAIL_EVENTS", "ORDER_PAID, ORDER_SHIPPED")
    monkeypatch.setenv("ORDERFLOW_NOTIFICATION_SMS_EVENTS", "")
    told = settings.load().notification
    assert told.email_event_names == {"ORDER_PAID", "ORDER_SHIPPED"}
    assert told.sms_event_names == frozenset()


def test_an_event_that_is_none_is_named_with_its_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_NOTIFICATION_EMAIL_EVENTS", "ORDER_PAID,ORDER_PAYED,NOTIFICATION_SENT")
    monkeypatch.setenv("ORDERFLOW_NOTIFICATION_SMS_EVENTS", "ORDER_PAID,")
    with pytest.raises(SettingsError) as refused:
        settings.load()
    email, sms = str(refused.value).splitlines()[1:]
    assert email.strip().startswith("ORDERFLOW_NOTIFICATION_EMAIL_EVENTS: ")
    assert "NOTIFICATION_SENT is no lifecycle event" in email
    assert "ORDER_PAYED is no lifecycle event (did you mean ORDER_PAID?)" in email
    assert sms.strip().startswith("ORDERFLOW_NOTIFICATION_SMS_EVENTS: ")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("ORDERFLOW_KAFKA_BOOTSTRAPS", "; did you mean ORDERFLOW_KAFKA_BOOTSTRAP?"),
        ("ORDERFLOW_WORKER_ATEMPTS", "; did you mean ORDERFLOW_WORKER_ATTEMPTS?"),
        ("ORDERFLOW_QQQQQQQQQQQQQQQQQ", ""),
    ],
)
def test_an_unknown_one_is_named_with_its_neighbour(
    monkeypatch: pytest.MonkeyPatch, name: str, suggestion: str
) -> None:
    monkeypatch.setenv(name, "secret-value")
    with pytest.raises(SettingsError) as refused:
        settings.load()
    assert str(refused.value) == f"Wrong settings:\n  {name}: no such setting{suggestion}"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_DATABASE_URL", "postgresql://u:topsecret@h/d")
    monkeypatch.setenv("ORDERFLOW_KAFKA_SASL_PASSWORD", "topsecret")
    monkeypatch.setenv("ORDERFLOW_SMS_TOKEN", "topsecret")
    assert "topsecret" not in repr(settings.load())


def test_every_variable_has_a_description_that_fits_a_table() -> None:
    for name, (_, _, field) in settings.variables().items():
        assert field.description, name
        assert not set("|\n") & set(field.description), name


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == settings_page.page(), "run `orderflow settings > docs/settings.md`"
