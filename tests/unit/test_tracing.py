"""Spans: whose child each is, what of a failure they tell, and that they cost nothing while they are off."""

import pytest
from aiokafka import ConsumerRecord
from opentelemetry.trace import SpanKind, StatusCode

from domain.failures import Transient
from domain.records import Coordinates
from messaging import dead_letters, envelope, retry, spans
from messaging.retry import Provenance
from messaging.topics import retry_topics
from telemetry import tracing
from tests.builders import NOW, a_record, an_id, order_created
from tests.spans import CALLER, CALLER_ID, TRACE_ID, id_of, linked_to, parent_of, recorded

TIERS = retry_topics("payment-processor", (10, 300))


def test_a_sent_record_carries_the_context_of_its_own_span() -> None:
    with recorded() as seen, tracing.continued([CALLER]):
        record = envelope.encode(order_created())
        assert seen.all == [], "it is under way until Kafka has acknowledged it"
        record.span.end()
    [sent] = seen.all
    assert (sent.name, sent.kind) == ("send orders", SpanKind.PRODUCER)
    assert sent.context is not None
    assert (sent.context.trace_id, parent_of(sent)) == (TRACE_ID, CALLER_ID)
    assert dict(record.headers)["traceparent"] == f"00-{TRACE_ID:032x}-{id_of(sent):016x}-01".encode()
    assert dict(sent.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.kafka.message.key": (record.key or b"").decode(),
    }


def test_a_handled_record_is_a_child_of_its_sending_and_the_parent_of_what_is_done_for_it() -> None:
    with recorded() as seen:
        record = a_record(key=an_id().encode(), headers=[CALLER], topic="orders", partition=2, offset=7)
        with (
            tracing.continued(record.headers),
            spans.processing(record, "order-processor", attempt=1, links=()),
            tracing.client("transaction orderflow", {"db.system.name": "postgresql"}),
        ):
            pass
    transaction, handled = seen.all
    assert (handled.name, handled.kind, parent_of(handled)) == ("process orders", SpanKind.CONSUMER, CALLER_ID)
    assert parent_of(transaction) == id_of(handled)
    assert dict(handled.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "2",
        "messaging.consumer.group.name": "order-processor",
        "messaging.kafka.offset": 7,
        "messaging.kafka.message.key": (record.key or b"").decode(),
    }


def test_a_key_that_is_no_order_id_is_not_shown() -> None:
    with recorded() as seen:
        spans.sending("orders", b"carla.customer.long-name@example.com").end()
    assert "messaging.kafka.message.key" not in (seen.all[0].attributes or {})


def test_a_failure_shows_its_class_and_no_text() -> None:
    with recorded() as seen, tracing.continued([CALLER]):
        with pytest.raises(Transient), tracing.ended(tracing.begin("a", SpanKind.CLIENT, {})):
            raise Transient("SMTP_451", "carla.customer@example.com: greylisted")
        with pytest.raises(KeyError), tracing.ended(tracing.begin("b", SpanKind.CLIENT, {})):
            raise KeyError("carla.customer@example.com")
    for span, error_type in zip(seen.all, ("SMTP_451", "KeyError"), strict=True):
        assert span.status.status_code == StatusCode.ERROR
        assert dict(span.attributes or {}) == {"error.type": error_type}
        assert (span.status.description, span.events) == (None, ())


def test_a_call_to_somebody_else_has_a_span_only_inside_of_one() -> None:
    with recorded() as seen:
        with tracing.client("transaction orderflow", {}):
            pass
        with tracing.continued([CALLER]), tracing.client("transaction orderflow", {}):
            pass
    assert seen.all == [], "a sweep, a look-up of many calls: theirs is no trace"


def test_what_the_caller_does_not_sample_is_not_recorded_and_its_context_travels() -> None:
    unsampled = ("traceparent", CALLER[1][:-1] + b"0")
    with recorded() as seen, tracing.continued([unsampled]):
        record = envelope.encode(order_created())
        record.span.end()
        assert record.span.traceparent == ""
        assert dict(record.headers)["traceparent"] == unsampled[1]
    assert seen.all == []


def test_a_trace_that_is_sampled_out_stays_one_trace() -> None:
    with recorded(sampled=False) as seen, tracing.continued([]):
        call = tracing.begin("call", SpanKind.SERVER, {})
        with call.current():
            made = dict(envelope.encode(order_created()).headers)["traceparent"]
            assert made is not None
            assert not int(made[-2:], 16) & 1, "the sampled flag"
            assert tracing.trace_id().encode() in made
    assert seen.all == []


def test_off_no_span_is_made_and_the_context_travels() -> None:
    with tracing.continued([CALLER]):
        record = envelope.encode(order_created())
        assert record.span is tracing.NOTHING
        assert dict(record.headers)["traceparent"] == CALLER[1]
        with spans.processing(a_record(), "g", attempt=2, links=("x",)) as span:
            assert span is tracing.NOTHING
            span.failed("X")
        assert tracing.exemplar() is None


def test_the_trace_of_a_record_is_read_from_its_headers() -> None:
    assert tracing.trace_id_in([("x", b"1"), CALLER]) == CALLER[1].decode().split("-")[1]
    for none in ([], [("traceparent", None)], [("traceparent", b"\xff")], [("traceparent", b"00-" + b"0" * 32)]):
        assert tracing.trace_id_in(none) is None


def failing(
    record_headers: list[envelope.Header], past: Provenance, topic: str = "orders"
) -> tuple[ConsumerRecord, Provenance]:
    """One handling that fails; returns its record and its past after it."""
    record = a_record(key=an_id().encode(), headers=record_headers, topic=topic)
    with (
        tracing.continued(record.headers),
        spans.processing(record, "payment-processor", attempt=past.attempts, links=past.links) as span,
    ):
        span.failed("X")
        return record, past.failed(NOW, span.traceparent)


def test_each_further_try_is_in_the_same_trace_and_linked_to_the_one_before() -> None:
    with recorded() as seen:
        past = Provenance(Coordinates("orders", 0, 1), 0, attempts=1)
        record, past = failing([CALLER], past)
        parked = retry.parked(record, past, TIERS[0])
        again = a_record(key=record.key, headers=parked.headers, topic=TIERS[0].name, partition=0)
        failing(parked.headers, retry.provenance_of(again, TIERS), topic=TIERS[0].name)
    first, second = seen.named("process orders") + seen.named(f"process {TIERS[0].name}")
    assert first.context is not None
    assert second.context is not None
    assert first.context.trace_id == second.context.trace_id == TRACE_ID
    assert (parent_of(first), parent_of(second)) == (CALLER_ID, CALLER_ID)
    assert linked_to(second) == [id_of(first)]


def test_a_replay_is_in_the_orders_trace_and_linked_to_who_gave_up_and_who_replayed() -> None:
    with recorded() as seen:
        record, past = failing([CALLER], Provenance(Coordinates("orders", 0, 1), 0, attempts=9))
        outgoing = dead_letters.dead_letter(record, past=past, group="payment-processor", failure=Transient("X", "y"))
        on_dlq = a_record(key=record.key, headers=outgoing.headers, topic="dlq", partition=0)
        letter = dead_letters.parse(on_dlq)
        [gave_up] = seen.all
        assert letter.traceparent == f"00-{TRACE_ID:032x}-{id_of(gave_up):016x}-01"
        assert dead_letters.links(on_dlq) == [letter.traceparent]
        call = tracing.begin("ReplayDeadLetter", SpanKind.SERVER, {})
        with call.current():
            replay = retry.replayed(letter, TIERS)
        replay.span.end()
        again = a_record(key=record.key, headers=replay.headers, topic=TIERS[0].name, partition=0)
        failing(replay.headers, retry.provenance_of(again, TIERS), topic=TIERS[0].name)
    _, sent, handled = seen.all
    assert sent.context is not None
    assert handled.context is not None
    assert sent.context.trace_id != TRACE_ID, "the operator's call is a trace of its own"
    assert linked_to(sent) == [id_of(gave_up)]
    assert handled.context.trace_id == TRACE_ID
    assert linked_to(handled) == [id_of(gave_up), id_of(sent)]


@pytest.mark.parametrize("links", [b"\xff\xfe", b"," * 99, b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"x" * 9999])
def test_links_that_are_none_are_left_out_and_harm_nothing(links: bytes) -> None:
    past = Provenance(Coordinates("orders", 0, 1), 0, attempts=4)
    parked = retry.parked(a_record(), past, TIERS[0])
    record = a_record(topic=TIERS[0].name, partition=0, headers=[*parked.headers, ("retry_links", links)])
    told = retry.provenance_of(record, TIERS)
    assert told.attempts == 4
    with recorded() as seen, spans.processing(record, "g", attempt=told.attempts, links=told.links):
        pass
    assert seen.all[0].links == ()


def test_a_projected_record_has_a_span_from_when_its_batch_began() -> None:
    with recorded() as seen:
        spans.processed(a_record(headers=[CALLER]), "projector", start_time=123, links=["nonsense"])
    [span] = seen.all
    assert (span.start_time, parent_of(span)) == (123, CALLER_ID)
