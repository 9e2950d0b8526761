"""What a valid order is. The ingress refuses with it, and the order processor checks what comes from Kafka with it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from domain.money import MAX_AMOUNT_MINOR, is_currency
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import LineItem, NotificationChannel, Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest

MAX_ITEMS: Final = 100
MAX_QUANTITY: Final = 10_000
MAX_LABELS: Final = 32
SKU_RULE: Final = "must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
REQUEST_ID_RULE: Final = "must be 1 to 128 printable ASCII characters without spaces"
_CHANNELS: Final = set(NotificationChannel.values()) - {NotificationChannel.NOTIFICATION_CHANNEL_UNSPECIFIED}
_STATUSES: Final = frozenset(OrderStatus.values())
_PAYMENT_STATUSES: Final = frozenset(PaymentStatus.values())
_SKU: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_YEAR_10000: Final = 253_402_300_800  # in seconds since 1970
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_PHONE: Final = re.compile(r"\+[1-9][0-9]{6,14}")
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}")
# C0 and C1 controls, line and paragraph separators, and the code points that change the direction of text.
_UNSAFE_CHARACTERS: Final = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE: Final = re.compile(f"[{_UNSAFE_CHARACTERS}]")
_MOST: Final = 128
_TEXT: Final = re.compile(f"[^{_UNSAFE_CHARACTERS}]{{1,{_MOST}}}")
"""What `text_violations` finds nothing wrong with."""


@dataclasses.dataclass(frozen=True)
class Violation:
    """What is wrong with one field. `field` is its path in the request; the description never repeats the input."""

    field: str
    description: str


def violations_of(request: CreateOrderRequest | Order) -> list[Violation]:
    """Returns everything that is wrong with the order asked for, in field order; empty if it is valid.

    An order that was accepted may have neither e-mail nor phone by now: its user was erased.
    """
    return list(_violations(request))


def unstorable(event: OrderEvent, *, may_have_nul: bool = True) -> str | None:
    """Tells what of an event from Kafka neither PostgreSQL nor a calendar can hold; None if all of it can be stored.

    Only a forger writes such events, and each would stop its readers at the same place for ever. `may_have_nul` says
    whether there is a NUL anywhere in its bytes.
    """
    order = event.order
    for time in (event.occur_time, order.create_time, order.update_time, order.expire_time):
        if not (0 <= time.seconds < _YEAR_10000 and 0 <= time.nanos < 10**9):
            return "a time is not between 1970 and 9999"
    if event.revision < 0 or order.revision < 0:
        return "a revision is negative"
    created = event.order_created
    indexed = (order.user_id, event.metadata.caller, created.caller, created.request_id)
    if max(map(len, indexed)) > _MOST:
        return "a text is longer than an index takes"
    if not may_have_nul:
        return None
    texts = [*indexed, order.failure_reason, event.payment_failed.gateway_reference]
    texts += [item.sku for item in order.items]
    if "\x00" in "".join(texts):
        return "a text has a NUL"
    return None


def is_sku(text: str) -> bool:
    """Whether it can be the name of a stock keeping unit."""
    return _SKU.fullmatch(text) is not None


def is_request_id(text: str) -> bool:
    """Whether it can be a request_id that is set."""
    return _REQUEST_ID.fullmatch(text) is not None


def text_violations(field: str, value: str, *, most: int, required: bool = False) -> Iterator[Violation]:
    """Yields what is wrong with a text of at most so many characters."""
    if required and not value:
        yield Violation(field, "must be set")
    if len(value) > most:
        yield Violation(field, f"must have at most {most} characters")
    if _UNSAFE.search(value):
        yield Violation(field, "must not have control or direction-changing characters")


def has_unknown_status(event: OrderEvent) -> bool:
    """Whether the event's order has a status that this version does not know: a newer one may."""
    order = event.order
    return order.status not in _STATUSES or order.payment_status not in _PAYMENT_STATUSES


def _violations(request: CreateOrderRequest | Order) -> Iterator[Violation]:
    # Every order is checked, twice: each field is read once, and only for what is wrong is anything made.
    email, phone = request.email, request.phone
    if isinstance(request, CreateOrderRequest) and (request_id := request.request_id):
        yield from request_id_violations(request_id)
    if not _TEXT.fullmatch(user_id := request.user_id):
        yield from text_violations("user_id", user_id, most=_MOST, required=True)
    if not email and not phone and isinstance(request, CreateOrderRequest):
        yield Violation("email", "email or phone must be set: the customer is told about the order")
    if email and (len(email) > 254 or not _EMAIL.fullmatch(email)):
        yield Violation("email", "must be an e-mail address of at most 254 characters")
    if phone and not _PHONE.fullmatch(phone):
        yield Violation("phone", "must be an E.164 number such as +491701234567")
    yield from _items(request.items)
    if not _TEXT.fullmatch(payment_method := request.payment_method):
        yield from text_violations("payment_method", payment_method, most=_MOST, required=True)
    if labels := request.labels:
        yield from _labels(labels)
    if (reference := request.external_reference) and not _TEXT.fullmatch(reference):
        yield from text_violations("external_reference", reference, most=_MOST)
    if (language := request.language) and not _LANGUAGE.fullmatch(language):
        yield Violation("language", "must be a BCP 47 tag such as en or de-AT")
    if channels := request.muted_channels:
        muted = set(channels)
        if len(muted) != len(channels) or not muted <= _CHANNELS:
            yield Violation("muted_channels", "must name known channels, each at most once")


def _labels(labels: Mapping[str, str]) -> Iterator[Violation]:
    if len(labels) > MAX_LABELS:
        yield Violation("labels", f"must have at most {MAX_LABELS} entries")
    for key, value in sorted(labels.items())[:MAX_LABELS]:
        if not 1 <= len(key) <= 63 or _UNSAFE.search(key) or len(value) > 255 or _UNSAFE.search(value):
            yield Violation(
                "labels", "keys must have 1 to 63, values at most 255 characters, none of them a control character"
            )
            break


def _items(items: Sequence[LineItem]) -> Iterator[Violation]:
    if not 1 <= len(items) <= MAX_ITEMS:
        yield Violation("items", f"must have 1 to {MAX_ITEMS} lines")
        return
    seen: set[str] = set()
    total = 0
    first_currency = items[0].unit_price.currency_code
    for index, item in enumerate(items):
        sku, quantity, price = item.sku, item.quantity, item.unit_price
        currency, amount = price.currency_code, price.amount_minor
        if not _SKU.fullmatch(sku):
            yield Violation(f"items[{index}].sku", SKU_RULE)
        if not 1 <= quantity <= MAX_QUANTITY:
            yield Violation(f"items[{index}].quantity", f"must be 1 to {MAX_QUANTITY}")
        if not item.HasField("unit_price"):
            yield Violation(f"items[{index}].unit_price", "must be set")
        else:
            if not is_currency(currency):
                yield Violation(f"items[{index}].unit_price.currency_code", "must be an ISO 4217 code such as EUR")
            if not 0 <= amount <= MAX_AMOUNT_MINOR:
                yield Violation(f"items[{index}].unit_price.amount_minor", f"must be 0 to {MAX_AMOUNT_MINOR}")
        if sku in seen:
            yield Violation(f"items[{index}].sku", "stands in an earlier line; add up the quantities")
        seen.add(sku)
        if currency != first_currency:
            yield Violation(f"items[{index}].unit_price.currency_code", "must be the currency of the first line")
        total += quantity * amount
    if not 1 <= total <= MAX_AMOUNT_MINOR:
        yield Violation("items", f"must add up to 1 to {MAX_AMOUNT_MINOR} minor units")


def request_id_violations(request_id: str) -> Iterator[Violation]:
    """Yields what is wrong with a request_id; a request may have none."""
    if request_id and not is_request_id(request_id):
        yield Violation("request_id", REQUEST_ID_RULE)
