"""Identifiers, against constants: whatever changes one of them makes two orders out of one request."""

import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domain.identifiers import caused_event_id, created_event_id, order_id_for, request_fingerprint
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
from tests.builders import a_request

ROOT = Path(__file__).parents[2]

_FULL: dict[str, Any] = {
    "phone": "+491701234567",
    "external_reference": "ref-ü",
    "language": "de-AT",
    "muted_channels": [1, 2],
}
_PLAIN = "6b5859361c4846d72952aaf05a91778fa922f46aa2aaa568251399741fdc3bdd"
_MANY = "b4ec03702ff9584d47f6a8121a3fb53a0c2c2748320e9a69a31aa0baae72e6f3"
# Made by a hand-written encoder that sorts the keys, not by protobuf.
_MANY_PREFIXES = "4d633665b807ef73b8c972df92e5c440b240f22443b81d57f71b1738c275aae3"


def _many_labels() -> CreateOrderRequest:
    return a_request(**_FULL, labels={f"key-{n:02}": f"value-{n}" for n in range(32)})


def _labels_with_prefixes() -> CreateOrderRequest:
    return a_request(**_FULL, labels={f"key-{n}": f"value-{n}" for n in range(40)})


@pytest.mark.parametrize(
    ("request_of", "golden"),
    [
        (CreateOrderRequest, hashlib.sha256().hexdigest()),
        (a_request, _PLAIN),
        (_many_labels, _MANY),
        (_labels_with_prefixes, _MANY_PREFIXES),
    ],
)
def test_golden_fingerprints(request_of: Callable[[], CreateOrderRequest], golden: str) -> None:
    assert request_fingerprint(request_of()).hex() == golden


def test_every_protobuf_runtime_makes_the_same_fingerprint() -> None:
    program = (
        "from domain.identifiers import *\n"
        "print(request_fingerprint(CreateOrderRequest(labels={'a': '1', 'ab': '2'})).hex())"
    )
    made = set()
    for runtime in ("upb", "python"):
        environment = os.environ | {
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": runtime,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}",
        }
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        made.add(done.stdout)
    assert len(made) == 1


def test_the_order_in_which_labels_were_set_does_not_matter() -> None:
    backwards = a_request(**_FULL)
    for n in reversed(range(32)):
        backwards.labels[f"key-{n:02}"] = f"value-{n}"
    assert request_fingerprint(backwards).hex() == _MANY


def test_request_id_and_unknown_fields_do_not_count() -> None:
    unknown = CreateOrderRequest.FromString(
        a_request(request_id="req-1").SerializeToString() + b"\xfa\x3f\x03new" + b"\x80\x40\x07"
    )
    assert unknown.SerializeToString() != a_request(request_id="req-1").SerializeToString()
    assert request_fingerprint(unknown).hex() == _PLAIN


def test_unknown_fields_inside_of_an_item_do_not_count() -> None:
    request = a_request()
    item = request.items[0].SerializeToString() + b"\xfa\x3f\x03new"
    request.ClearField("items")
    raw = request.SerializeToString()
    # Field 5 (items) may stand anywhere on the wire.
    assert request_fingerprint(CreateOrderRequest.FromString(raw + b"\x2a" + bytes([len(item)]) + item)).hex() == _PLAIN


def test_the_request_is_left_as_it_was() -> None:
    request = a_request(request_id="req-1")
    request_fingerprint(request)
    assert request.request_id == "req-1"


@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": "user-2"},
        {"email": "carla.customer@example.org"},
        {"items": []},
        {"payment_method": "pm_card_mastercard"},
        {"labels": {"": ""}},
        {"muted_channels": [1]},
    ],
)
def test_any_other_content_has_another_fingerprint(changed: dict[str, Any]) -> None:
    assert request_fingerprint(a_request(**changed)).hex() != _PLAIN


def test_golden_order_ids() -> None:
    fingerprint = bytes.fromhex(_PLAIN)
    assert order_id_for("shop", "req-1", fingerprint) == "55652b8b-5470-5a56-af67-a733d5583453"
    assert order_id_for("shöp", "req-1", fingerprint) == "c8de0665-32f4-5fee-856a-6219800f4d36"


def test_caller_request_id_and_content_make_the_order_id() -> None:
    made = {
        order_id_for(caller, request_id, content)
        for caller, request_id in [("a", "b"), ("b", "a"), ("a:1", "b"), ("a", "1:b"), ("a:1:b", "c"), ("a", "b:1:c")]
        for content in (b"\x01", b"\x02")
    }
    assert len(made) == 12


def test_without_a_request_id_every_order_is_its_own() -> None:
    made = {order_id_for("shop", "", b"same") for _ in range(100)}
    assert len(made) == 100
    assert all(str(uuid.UUID(each)) == each for each in made)


def test_event_ids_are_uuids_of_version_5() -> None:
    namespace = uuid.UUID("a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c42")
    names = [str(number) for number in range(500)]
    assert [created_event_id(name) for name in names] == [str(uuid.uuid5(namespace, name)) for name in names]


def test_golden_event_ids() -> None:
    assert created_event_id("5b6f1c1e-7d5b-5c0a-9a4e-0d6f1b2c3a41") == "ad0a0de8-9e2b-553e-ac77-88d69d26630c"
    cause = "a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c42"
    paid, sent = OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID, OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT
    assert caused_event_id(cause, paid) == "424330e7-941a-51ad-b297-5b062feea36e"
    assert caused_event_id(cause, sent, "NOTIFICATION_CHANNEL_EMAIL") == "df893db8-6286-57bf-9328-0577b349879a"


def test_cause_type_and_discriminator_make_the_event_id() -> None:
    types = (OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID, OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT)
    made = {caused_event_id(cause, each, more) for cause in "ab" for each in types for more in ("", "EMAIL", "SMS")}
    assert len(made) == 12
