"""The envelope is a border: CloudEvents out, and in whatever anybody wrote."""

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.failures import Failure, Permanent, Transient
from messaging import envelope, topics
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from telemetry import tracing
from tests.builders import a_delivery, emitted_for, order_created, order_event

E = OrderEventType
TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]")


def key_of(event: OrderEvent) -> bytes:
    return event.order.order_id.encode()


def changed(**fields: Any) -> OrderEvent:
    event = order_created()
    for name, value in fields.items():
        setattr(event.order if name == "order_id" else event, name, value)
    return event


def test_an_order_created_as_a_record() -> None:
    event = order_created()
    record = envelope.encode(event)
    assert record.topic is topics.ORDERS
    assert record.key == key_of(event)
    assert record.value == event.SerializeToString()
    assert record.headers == [
        ("ce_id", event.event_id.encode()),
        ("ce_time", b"2026-03-01T12:00:00Z"),
        ("ce_subject", event.order.order_id.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_source", b"/orderflow/server"),
        ("ce_type", b"ORDER_CREATED"),
        ("content-type", b"application/protobuf"),
    ]


@pytest.mark.parametrize("event_type", [each for each in OrderEventType.values() if each])
def test_every_type_comes_back_from_the_topic_it_belongs_to_and_from_no_other(event_type: OrderEventType) -> None:
    event = order_event(event_type)
    record = envelope.encode(event)
    assert envelope.decode(record.topic.name, record.key, record.value) == event
    for topic in topics.ALL:
        if topic != record.topic:
            with pytest.raises(Permanent, match="does not belong on this topic"):
                envelope.decode(topic.name, record.key, record.value)


def test_the_topics_of_the_types() -> None:
    elsewhere = {
        "ORDER_PAID": "payments",
        "PAYMENT_FAILED": "payments",
        "PAYMENT_REFUNDED": "payments",
        "NOTIFICATION_SENT": "notifications",
        "NOTIFICATION_FAILED": "notifications",
    }
    for event_type in OrderEventType.values():
        name = envelope.type_name(event_type)
        assert topics.topic_of(event_type).name == elsewhere.get(name, "orders"), name


def test_a_trace_is_carried_from_the_cause_to_what_follows() -> None:
    given_context = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with tracing.continued([("traceparent", given_context), ("tracestate", b"vendor=1")]):
        headers = envelope.encode(order_created()).headers
        assert tracing.trace_id() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert [value for name, value in headers if name == "traceparent"] == [given_context]
    assert [value for name, value in headers if name == "tracestate"] == [b"vendor=1"]


@pytest.mark.parametrize(
    "headers", [[], [("traceparent", None)], [("traceparent", b"00-zz")], [("traceparent", b"\xff")]]
)
def test_a_trace_is_made_where_there_is_none(headers: list[tuple[str, bytes | None]]) -> None:
    with tracing.continued(headers):
        made = dict(envelope.encode(order_created()).headers)["traceparent"]
    assert made is not None
    assert TRACEPARENT.fullmatch(made)
    assert b"0" * 32 not in made
    assert tracing.trace_id() == "0" * 32, "the context ends with the record"


@pytest.mark.parametrize(
    ("value", "error_class"),
    [
        (None, "UNDECODABLE"),
        (b"", "UNDECODABLE"),
        (b"\xff\xff", "UNDECODABLE"),
        (b"{}", "UNDECODABLE"),
        (b"\x08\x01", "INVALID_EVENT"),  # a field of another wire type is unknown, and nothing else is set
    ],
)
def test_values_that_are_no_event(value: bytes | None, error_class: str) -> None:
    with pytest.raises(Permanent) as refused:
        envelope.decode("orders", b"key", value)
    assert refused.value.error_class == error_class


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (changed(event_id=""), "event_id"),
        (changed(event_id="A2B7C9D0-14E8-5F3B-8C6D-7E9F0A1B2C42"), "event_id"),
        (changed(event_id="a2b7c9d014e85f3b8c6d7e9f0a1b2c42"), "event_id"),
        (changed(event_id="{a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c42}"), "event_id"),
        (changed(event_id="a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c4\uff12"), "event_id"),
        (changed(order_id=""), "order_id"),
        (changed(order_id="1"), "order_id"),
        (changed(order_id="a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c42\n"), "order_id"),
        (changed(type=E.ORDER_EVENT_TYPE_UNSPECIFIED), "type is not set"),
    ],
)
def test_events_that_break_the_contract(event: OrderEvent, message: str) -> None:
    with pytest.raises(Permanent, match=message) as refused:
        envelope.decode("orders", key_of(event), event.SerializeToString())
    assert refused.value.error_class == "INVALID_EVENT"


def _spoilt(path: str, value: Any) -> OrderEvent:
    event = order_created()
    *parents, name = path.split(".")
    message: Any = event
    for parent in parents:
        message = getattr(message, parent)
    setattr(message, name, value)
    return event


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("order.user_id", "a\x00"),
        ("order.failure_reason", "a\x00"),
        ("metadata.caller", "a\x00"),
        ("order_created.caller", "a\x00"),
        ("order_created.request_id", "a\x00"),
        ("occur_time.seconds", 10**15),
        ("occur_time.seconds", -1),
        ("occur_time.nanos", -1),
        ("occur_time.nanos", 10**9),
        ("order.create_time.seconds", 253402300800),
        ("order.update_time.nanos", 2**31 - 1),
        ("order.expire_time.seconds", -(10**15)),
        ("revision", -1),
        ("order.revision", -1),
    ],
)
def test_what_no_database_and_no_calendar_can_hold(path: str, value: object) -> None:
    event = _spoilt(path, value)
    with pytest.raises(Permanent) as refused:
        envelope.decode("orders", key_of(event), event.SerializeToString())
    assert refused.value.error_class == "INVALID_EVENT"
    assert "a\x00" not in refused.value.message


@pytest.mark.parametrize("key", [None, b"", b"other"])
def test_the_key_is_the_order_id(key: bytes | None) -> None:
    with pytest.raises(Permanent, match="key is not its order's id"):
        envelope.decode("orders", key, order_created().SerializeToString())


def test_a_type_of_a_newer_version_may_be_known_soon() -> None:
    event = changed(type=4711)
    with pytest.raises(Transient) as refused:
        envelope.decode("orders", key_of(event), event.SerializeToString())
    assert refused.value.error_class == "UNKNOWN_EVENT_TYPE"
    assert envelope.type_name(event.type) == "4711"


@pytest.mark.parametrize("field", ["status", "payment_status"])
def test_a_status_of_a_newer_version_may_be_known_soon(field: str) -> None:
    event = order_created()
    setattr(event.order, field, 100_000)
    with pytest.raises(Transient) as refused:
        envelope.decode("orders", key_of(event), event.SerializeToString())
    assert refused.value.error_class == "UNKNOWN_STATUS"


def test_fields_of_a_newer_version_are_kept() -> None:
    event = order_created()
    raw = event.SerializeToString() + b"\xfa\x3f\x03new"
    assert envelope.decode("orders", key_of(event), raw).SerializeToString() == raw


@given(topic=st.sampled_from([topic.name for topic in topics.ALL]), key=st.none() | st.binary(), value=st.binary())
def test_decode_raises_nothing_but_failures_for_arbitrary_bytes(topic: str, key: bytes | None, value: bytes) -> None:
    with pytest.raises(Failure):
        envelope.decode(topic, key, value)


_VALID = order_created().SerializeToString(deterministic=True)


@given(
    at=st.integers(0, len(_VALID) - 1),
    instead=st.binary(max_size=4),
    cut=st.integers(0, 4),
    key=st.sampled_from([0, 1]),
)
def test_decode_raises_nothing_but_failures_for_damaged_events(at: int, instead: bytes, cut: int, key: int) -> None:
    value = _VALID[:at] + instead + _VALID[at + cut :]
    with contextlib.suppress(Failure):
        envelope.decode("orders", key_of(OrderEvent.FromString(_VALID)) if key else b"", value)


def test_what_follows_tells_its_cause() -> None:
    delivery = a_delivery(order_created(), group="notification-email", attempt=3)
    emitted = emitted_for(delivery)
    assert emitted.metadata.causation_id == delivery.event.event_id
    assert emitted.metadata.correlation_id == delivery.event.metadata.correlation_id
    assert (emitted.metadata.source, emitted.metadata.attempt, emitted.revision) == ("notification-email", 3, 0)
