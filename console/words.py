"""How values read on a page: amounts, times, spans, names of enum values, and personal data masked."""

import datetime
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.json_format import MessageToDict

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from orderflow.orders.v1.order_pb2 import Money

UNKNOWN: Final = "unknown"
# Of those that differ from two, what ISO 4217 says; amounts of all others are shown with two decimals.
_DECIMALS: Final = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
}
_PERSONAL: Final = ("email", "phone", "payment_method")
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}")
_NUMBER: Final = re.compile(r"\+[1-9][0-9]{6,14}(?![0-9])")


def enum_name(message: "Message", field: str) -> str:
    """Returns a field's enum value without the prefix that all its values have: `PAID` for ORDER_STATUS_PAID."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None
    number = getattr(message, field)
    known = kind.values_by_number.get(number)
    if known is None:
        return str(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return known.name.removeprefix(prefix) if number else ""


def money(amount: "Money") -> str:
    """Returns an amount: `EUR 39.98`."""
    decimals = _DECIMALS.get(amount.currency_code, 2)
    value = Decimal(amount.amount_minor).scaleb(-decimals)
    return f"{amount.currency_code} {value:,.{decimals}f}".strip()


def count(number: float | None) -> str:
    """Returns a number with thousands set apart, or that it is not known."""
    return UNKNOWN if number is None else f"{int(number):,}"


def rate(number: float | None) -> str:
    """Returns a rate per second."""
    if number is None:
        return UNKNOWN
    return f"{number:,.0f}/s" if number >= 10 else f"{number:.1f}/s"


def span(seconds: float | None) -> str:
    """Returns a span of time in one or two units: `12 ms`, `4.1 s`, `3 m 20 s`, `2 d 4 h`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for unit, size, below, small in (("d", 86400, 3600, "h"), ("h", 3600, 60, "m"), ("m", 60, 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {small}" if rest else f"{whole // size} {unit}"
    raise AssertionError(seconds)


def time(timestamp: "Timestamp | None") -> str:
    """Returns a time in UTC, to the second."""
    if timestamp is None or not (timestamp.seconds or timestamp.nanos):
        return ""
    return timestamp.ToDatetime(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(seconds: float | None) -> str:
    """Returns the time of day in UTC of a time in seconds since 1970."""
    if seconds is None:
        return UNKNOWN
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%H:%M:%S")


def masked(text: str) -> str:
    """Returns what identifies a customer with little more than its ends left: `c•••@e•••.com`, `+49•••67`."""
    if not text:
        return ""
    name, at, host = text.partition("@")
    if at:
        return f"{name[:1]}•••@{host[:1]}•••.{host.rpartition('.')[2]}"
    return f"{text[:3]}•••{text[-2:]}" if len(text) > 6 else "•••"


def redacted(text: str) -> str:
    """Returns a text that we did not word with e-mail addresses and phone numbers masked."""
    for pattern in (_ADDRESS, _NUMBER):
        text = pattern.sub(lambda found: masked(found.group()), text)
    return text


def as_dict(message: "Message") -> dict[str, Any]:
    """Returns a message with everything masked that is about a customer."""
    shown: dict[str, Any] = _without_personal(MessageToDict(message, preserving_proto_field_name=True))
    return shown


def _without_personal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: masked(str(each))
            if key in _PERSONAL
            else dict.fromkeys(each, "•••")
            if key == "labels"
            else _without_personal(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_without_personal(each) for each in value]
    return redacted(value) if isinstance(value, str) else value
