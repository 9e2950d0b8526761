"""Each rule of a valid order at its boundary, all violations at once, and input that means harm."""

import time
from typing import Any

import pytest

from domain.money import MAX_AMOUNT_MINOR
from domain.validation import Violation, violations_of
from orderflow.orders.v1.order_pb2 import LineItem, NotificationChannel
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
from tests.builders import a_request, an_item, an_order

EMAIL = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL


def fields_of(request: CreateOrderRequest) -> list[str]:
    return [violation.field for violation in violations_of(request)]


def items(count: int) -> list[LineItem]:
    return [an_item(f"SKU-{n}") for n in range(count)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"request_id": "x"},
        {"request_id": "!" + "~" * 127},
        {"user_id": "u" * 128},
        {"user_id": "名" * 128},
        {"user_id": "with spaces and ünïcode"},
        {"email": "", "phone": "+491701234567"},
        {"phone": "+1234567"},
        {"phone": "+123456789012345"},
        {"email": "a@b"},
        {"email": "a" * 64 + "@" + "b" * 189},
        {"items": items(1)},
        {"items": items(100)},
        {"items": [an_item("S")]},
        {"items": [an_item("S" * 64)]},
        {"items": [an_item("0._-")]},
        {"items": [an_item(quantity=10_000)]},
        {"items": [an_item(quantity=1, amount_minor=1)]},
        {"items": [an_item(quantity=1, amount_minor=MAX_AMOUNT_MINOR)]},
        {"items": [an_item("A", amount_minor=0), an_item("B", amount_minor=1)]},
        {"payment_method": "p" * 128},
        {"labels": {f"key-{n}": "" for n in range(32)}},
        {"labels": {"k" * 63: "v" * 255}},
        {"external_reference": "e" * 128},
        {"language": "en"},
        {"language": "de-AT"},
        {"language": "zh-Hant-TW"},
        {"muted_channels": [EMAIL, NotificationChannel.NOTIFICATION_CHANNEL_SMS]},
    ],
)
def test_valid(fields: dict[str, Any]) -> None:
    assert violations_of(a_request(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "violated"),
    [
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "with space"}, "request_id"),
        ({"request_id": "nul\x00"}, "request_id"),
        ({"request_id": "line\n"}, "request_id"),
        ({"request_id": "ü"}, "request_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "u" * 129}, "user_id"),
        ({"user_id": "a\x00b"}, "user_id"),
        ({"email": ""}, "email"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b\n"}, "email"),
        ({"email": "a@b\r\nBcc: everybody@example.com"}, "email"),
        ({"email": "a b@example.com"}, "email"),
        ({"email": "a@b,c@d"}, "email"),
        ({"email": "a@@b"}, "email"),
        ({"email": "a" * 65 + "@b"}, "email"),
        ({"email": "a" * 64 + "@" + "b" * 190}, "email"),
        ({"phone": "+123456"}, "phone"),
        ({"phone": "+1234567890123456"}, "phone"),
        ({"phone": "+0123456789"}, "phone"),
        ({"phone": "0049170123"}, "phone"),
        ({"phone": "+49170123456\n"}, "phone"),
        ({"phone": "+4917012345\uff16\uff17"}, "phone"),
        ({"items": []}, "items"),
        ({"items": items(101)}, "items"),
        ({"items": [an_item(quantity=1, amount_minor=0)]}, "items"),
        (
            {"items": [an_item("A", 1, MAX_AMOUNT_MINOR), an_item("B", 1, 1)]},
            "items",
        ),
        ({"items": [an_item("")]}, "items[0].sku"),
        ({"items": [an_item("S" * 65)]}, "items[0].sku"),
        ({"items": [an_item(".SKU")]}, "items[0].sku"),
        ({"items": [an_item("SKU 1")]}, "items[0].sku"),
        ({"items": [an_item("SKU\n")]}, "items[0].sku"),
        ({"items": [an_item("A"), an_item("A")]}, "items[1].sku"),
        ({"items": [an_item("A"), an_item("B", quantity=0)]}, "items[1].quantity"),
        ({"items": [an_item("A"), an_item("B", quantity=10_001)]}, "items[1].quantity"),
        ({"items": [an_item("A", 2), an_item("B", quantity=-1)]}, "items[1].quantity"),
        ({"items": [an_item("A", 9), an_item("B", amount_minor=-1)]}, "items[1].unit_price.amount_minor"),
        ({"items": [an_item("A"), an_item("B", currency_code="USD")]}, "items[1].unit_price.currency_code"),
        ({"items": [an_item(currency_code="eur")]}, "items[0].unit_price.currency_code"),
        ({"payment_method": ""}, "payment_method"),
        ({"payment_method": "p" * 129}, "payment_method"),
        ({"payment_method": "pm\x00"}, "payment_method"),
        ({"labels": {f"key-{n}": "" for n in range(33)}}, "labels"),
        ({"labels": {"": "v"}}, "labels"),
        ({"labels": {"k" * 64: "v"}}, "labels"),
        ({"labels": {"k": "v" * 256}}, "labels"),
        ({"labels": {"k\x00": "v"}}, "labels"),
        ({"labels": {"k": "v\u202e"}}, "labels"),
        ({"external_reference": "e" * 129}, "external_reference"),
        ({"external_reference": "a\u2028b"}, "external_reference"),
        ({"language": "e"}, "language"),
        ({"language": "german_DE"}, "language"),
        ({"language": "en\n"}, "language"),
        ({"language": "../../etc"}, "language"),
        ({"muted_channels": [EMAIL, 0]}, "muted_channels"),
        ({"muted_channels": [77]}, "muted_channels"),
        ({"muted_channels": [EMAIL, EMAIL]}, "muted_channels"),
    ],
)
def test_one_rule_broken(fields: dict[str, Any], violated: str) -> None:
    assert fields_of(a_request(**fields)) == [violated]


@pytest.mark.parametrize(
    "character",
    "\x00 \x1f \x7f \x85 \u2028 \u2029 \u200e \u200f \u202a \u202e \u2066 \u2069".split(" "),
)
def test_control_and_direction_changing_characters_are_refused_in_every_text(character: str) -> None:
    request = a_request(
        user_id=f"a{character}",
        payment_method=f"b{character}",
        external_reference=f"c{character}",
        labels={"key": f"d{character}"},
    )
    assert fields_of(request) == ["user_id", "payment_method", "labels", "external_reference"]


def test_an_item_without_a_price_says_so_once_per_field() -> None:
    assert fields_of(a_request(items=[an_item("A"), LineItem(sku="B", quantity=1)])) == [
        "items[1].unit_price",
        "items[1].unit_price.currency_code",
    ]


def test_amounts_that_overflow_64_bits_are_violations_and_not_errors() -> None:
    most = 2**63 - 1
    request = a_request(items=[an_item(f"SKU-{n}", 2**31 - 1, most) for n in range(100)])
    assert "items" in fields_of(request)
    assert fields_of(request).count("items[7].unit_price.amount_minor") == 1


def test_everything_that_is_wrong_is_told_at_once_in_field_order() -> None:
    assert fields_of(CreateOrderRequest(request_id=" ", language="?", muted_channels=[0])) == [
        "request_id",
        "user_id",
        "email",
        "items",
        "payment_method",
        "language",
        "muted_channels",
    ]


def test_a_description_never_repeats_the_input() -> None:
    secret = "SECRET"
    request = a_request(
        request_id=f" {secret}", email=secret, phone=secret, language=f"{secret}_", items=[an_item(f"-{secret}")]
    )
    assert secret not in repr(violations_of(request))
    assert len(violations_of(request)) == 5


def test_an_order_is_held_against_the_same_rules() -> None:
    order = an_order()
    assert violations_of(order) == []
    order.email = "nobody"
    assert violations_of(order) == [Violation("email", "must be an e-mail address of at most 254 characters")]


@pytest.mark.parametrize(
    "request_of_a_megabyte",
    [
        {"items": [an_item()] * 50_000},
        {"labels": {f"key-{n}": "v" * 300 for n in range(20_000)}},
        {"email": "a@" + "b-" * 500_000},
        {"user_id": "u" * 1_000_000},
        {"items": [an_item("S" * 1_000_000)]},
        {"language": "en" + "-a" * 500_000},
        {"muted_channels": [77] * 250_000},
    ],
    ids=["items", "labels", "email", "user_id", "sku", "language", "muted_channels"],
)
def test_huge_input_is_refused_quickly(request_of_a_megabyte: dict[str, Any]) -> None:
    request = a_request(**request_of_a_megabyte)
    started = time.process_time()
    found = violations_of(request)
    assert time.process_time() - started < 1
    assert 1 <= len(found) <= 2


def test_muted_channels_have_a_limit() -> None:
    # A request of 256 KiB brings a quarter of a million, and every event of the order carries them.
    assert fields_of(a_request(muted_channels=[EMAIL] * 5_000)) == ["muted_channels"]


def test_a_huge_list_of_unknown_channels_does_not_make_a_huge_list_of_violations() -> None:
    assert len(violations_of(a_request(muted_channels=[77] * 5_000))) == 1
