"""Records that nobody sane would write, drawn by Hypothesis from records that the system wrote."""

import itertools
import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import hypothesis
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import LineItem
from tests.guarantees.verdict import Header, Record

Draw = Callable[[st.SearchStrategy[Any]], Any]

_KNOWN_TYPES: Final = sorted(set(OrderEventType.values()))
_UNKNOWN_TYPES: Final = (3000, 26, 99, -1, 2**31 - 1, -(2**31))
_SECONDS: Final = (-1, -(2**63), 2**63 - 1, -62135596801, 253_402_300_799, 253_402_300_800, 0, 1)
_NANOS: Final = (0, -1, 10**9 - 1, 10**9, 2**31 - 1, -(2**31))
_NUMBERS: Final = (-1, 0, 1, 2, 7, 2**31 - 1)
_BIG: Final = (*_NUMBERS, 2**63 - 1, -(2**63))
_TEXTS: Final = (
    "\0",
    "a\0b",
    "",
    "x" * 5000,
    random.Random(7).randbytes(4000).hex(),
    "\r\nBcc: everybody@example.com",
    "\u202egnp",
    "😀" * 40,
    "' or 1=1 --",
)
_KEYS: Final = (None, b"", b"not-a-uuid", b"\xff\xfe", b"\0", b"k" * 2000)
_TIMESTAMPS: Final = (None, None, 1, 10**12)


def draw_records(real: Sequence[Record], topics: Sequence[str], count: int, *, seed: int) -> list[Record]:
    """Returns so many records, about as many for each topic. The same arguments draw the same records."""
    drawn: list[Record] = []
    for index, topic in enumerate(topics):
        share = count * (index + 1) // len(topics) - count * index // len(topics)
        drawn += _drawn(records(real, topic), share, seed=seed * 1000 + index)
    numbers = itertools.count()
    return [_with_its_own_origin(record, next(numbers)) for record in drawn]


def _drawn(strategy: st.SearchStrategy[Record], count: int, *, seed: int) -> list[Record]:
    drawn: list[Record] = []
    for again in itertools.count():  # Hypothesis ends early where it believes to have seen all
        if len(drawn) >= count:
            return drawn[:count]

        @hypothesis.seed(seed * 1000 + again)
        @hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(record=strategy)
        def take(record: Record) -> None:
            drawn.append(record)

        take()
    raise AssertionError("unreachable")


def _with_its_own_origin(record: Record, number: int) -> Record:
    """No two replays claim to stem from one record: the second would rightly be dropped."""
    headers = tuple(
        (name, b"%d" % (10**12 + number)) if name == "retry_origin_offset" and value == _ORIGIN else (name, value)
        for name, value in record.headers
    )
    return Record(record.topic, record.key, record.value, headers, record.timestamp, record.kind)


@st.composite
def records(draw: Draw, real: Sequence[Record], topic: str) -> Record:
    """A record for the topic."""
    donor = draw(st.sampled_from(real))
    kind = draw(st.sampled_from(sorted(_KINDS)))
    key, value = _KINDS[kind](draw, donor)
    headers = draw(st.sampled_from([(), donor.headers])) + tuple(draw(_forged()))
    return Record(topic, key, value, headers, draw(st.sampled_from(_TIMESTAMPS)), kind)


# -- keys and values ---------------------------------------------------------------------------------------------------


def _random(draw: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    key = draw(st.sampled_from((*_KEYS, donor.key)) | st.binary(max_size=40))
    return key, draw(st.binary(max_size=300))


def _null(draw: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    return draw(st.sampled_from((*_KEYS, donor.key))), draw(st.sampled_from((None, b"")))


def _flipped(draw: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    value = bytearray(donor.value or b"")
    for at in draw(st.lists(st.integers(0, len(value) * 8 - 1), min_size=1, max_size=6, unique=True)):
        value[at // 8] ^= 1 << at % 8
    return donor.key, bytes(value)


def _cut(draw: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    value = donor.value or b""
    return donor.key, value[: draw(st.integers(0, len(value)))] + draw(st.sampled_from((b"", b"\0", value)))


def _wrong_key(draw: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    own = donor.key or b""
    others = (*_KEYS, own.upper(), own + b" ", own[:-1], str(uuid.UUID(int=7)).encode())
    return draw(st.sampled_from(others)), donor.value


def _unchanged(_: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    """Here the topic is wrong; or else it is a copy, which is nothing bad."""
    return donor.key, donor.value


def _edited(draw: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    event = OrderEvent.FromString(donor.value or b"")
    for edit in draw(st.lists(st.sampled_from(_EDITS), min_size=1, max_size=2)):
        edit(draw, event)
    return donor.key, event.SerializeToString()


def _stranger(draw: Draw, donor: Record) -> tuple[bytes | None, bytes | None]:
    """An event of an order that nobody placed, and which no server would make."""
    event = OrderEvent.FromString(donor.value or b"")
    event.event_id, event.order.order_id = (str(uuid.UUID(int=draw(st.integers(1, 2**128 - 1)))) for _ in range(2))
    event.order.total.amount_minor += draw(st.integers(1, 1000))
    return event.order.order_id.encode(), event.SerializeToString()


_KINDS: Final[dict[str, Callable[[Draw, Record], tuple[bytes | None, bytes | None]]]] = {
    "bit flips": _flipped,
    "cut": _cut,
    "edited": _edited,
    "edited again": _edited,
    "null": _null,
    "random": _random,
    "stranger": _stranger,
    "unchanged": _unchanged,
    "wrong key": _wrong_key,
}
KINDS: Final = frozenset(_KINDS)


def _a_type(draw: Draw, event: OrderEvent) -> None:
    event.type = draw(st.sampled_from((*_UNKNOWN_TYPES, *_KNOWN_TYPES)))


def _a_time(draw: Draw, event: OrderEvent) -> None:
    order = event.order
    time: Timestamp = draw(st.sampled_from((event.occur_time, order.create_time, order.update_time, order.expire_time)))
    time.seconds, time.nanos = draw(st.sampled_from(_SECONDS)), draw(st.sampled_from(_NANOS))


def _a_text(draw: Draw, event: OrderEvent) -> None:
    order, text = event.order, draw(st.sampled_from(_TEXTS))
    name = draw(
        st.sampled_from(
            "user_id email phone payment_method failure_reason external_reference language etag"
            " caller correlation_id causation_id source created_by request_id declined sku currency label".split()
        )
    )
    if name in ("caller", "correlation_id", "causation_id", "source"):
        setattr(event.metadata, name, text)
    elif name == "created_by":
        event.order_created.caller = text
    elif name == "request_id":
        event.order_created.request_id = text
    elif name == "declined":
        event.payment_failed.gateway_reference = text
    elif name == "label":
        order.labels[text] = text
    elif name == "sku":
        (order.items[0] if order.items else order.items.add()).sku = text
    elif name == "currency":
        (order.items[0] if order.items else order.items.add()).unit_price.currency_code = text
    else:
        setattr(order, name, text)


def _a_number(draw: Draw, event: OrderEvent) -> None:
    order, small, big = event.order, draw(st.sampled_from(_NUMBERS)), draw(st.sampled_from(_BIG))
    item: LineItem = order.items[0] if order.items else order.items.add()
    match draw(st.integers(0, 7)):
        case 0:
            event.revision = big
        case 1:
            order.revision = big
        case 2:
            order.status = small
        case 3:
            order.payment_status = small
        case 4:
            item.quantity = small
        case 5:
            item.unit_price.amount_minor = big
        case 6:
            order.total.amount_minor = big
        case _:
            event.metadata.attempt = small


def _an_id(draw: Draw, event: OrderEvent) -> None:
    text = draw(
        st.sampled_from(("", "x", event.event_id.upper(), f"{{{event.event_id}}}", "urn:uuid:" + event.event_id))
    )
    if draw(st.booleans()):
        event.event_id = text
    else:
        event.order.order_id = text


_EDITS: Final = (_a_type, _a_time, _a_text, _a_text, _a_number, _an_id)

# -- headers -----------------------------------------------------------------------------------------------------------

_ORIGIN: Final = b"origin"
_WORDS: Final = (
    None,
    b"",
    b"0",
    b"-1",
    b"1",
    b"999999999999999999",
    b"9" * 40,
    b"\xff\xfe",
    b"a\0b",
    b"orders",
    b"x" * 900,
)
_NAMES: Final = (
    *(f"dlq_{name}" for name in (
        "origin_topic", "origin_partition", "origin_offset", "origin_timestamp", "group", "error_class",
        "error_message", "attempts", "first_failure_time", "replay", "unheard_of", "",
    )),
    *("ce_id", "ce_type", "ce_subject", "traceparent", "tracestate", "baggage", "content-type", "", "\0", "ü" * 50),
)  # fmt: skip
_TOPICS: Final = (
    b"orders",
    b"payments",
    b"notifications",
    b"dlq",
    b"payment-processor.retry.1s",
    b"no such topic",
    b"",
)
_TIMES: Final = (
    b"2026-03-01T12:00:00+00:00", b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b"2026-03-01", b"soon",
)  # fmt: skip


@st.composite
def _provenance(draw: Draw) -> list[Header]:
    """What a parked record carries: mostly whole, so that it is believed on a retry topic."""
    headers: list[Header] = [
        ("retry_origin_topic", draw(st.sampled_from(_TOPICS))),
        ("retry_origin_partition", draw(st.sampled_from((b"0", b"1", b"2", b"77", b"2147483647")))),
        ("retry_origin_offset", _ORIGIN),
        ("retry_origin_timestamp", draw(st.sampled_from((b"0", b"1700000000000", b"999999999999999999")))),
        ("retry_attempts", draw(st.sampled_from((b"0", b"3", b"2147483647", b"999999999999999999")))),
        ("retry_tier", draw(st.sampled_from((b"0", b"1", b"2", b"999999999999999999")))),
        ("retry_replay", draw(st.sampled_from((b"0", b"0", b"1", b"2147483647")))),
    ]
    if draw(st.booleans()):
        headers.append(("retry_first_failure_time", draw(st.sampled_from(_TIMES))))
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(headers) - 1))
        headers[at] = (headers[at][0], draw(st.sampled_from((None, b"", b"-1", b"9" * 40, b"1.5", b"\xff"))))
    return headers


def _forged() -> st.SearchStrategy[list[Header]]:
    single = st.tuples(st.sampled_from(_NAMES), st.sampled_from(_WORDS) | st.binary(max_size=60))
    return st.one_of(st.just([]), st.lists(single, max_size=4), _provenance())
