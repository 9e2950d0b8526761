"""Identifiers that two processes agree on without talking (semantics 4 and 8)."""

import hashlib
import re
import uuid
from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest

# Fixed for ever: another namespace would give every order of a repeated request a second identity.
_ORDERS: Final = uuid.UUID("3f6f1c1e-7d5b-5c0a-9a4e-0d6f1b2c3a41").bytes
_LABELS: Final = CreateOrderRequest.LABELS_FIELD_NUMBER
_CANONICAL: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_EVENTS: Final = uuid.UUID("a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c42").bytes
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
"""What becomes of a hexadecimal digit whose first two bits are set to the variant of RFC 9562."""


def request_fingerprint(request: CreateOrderRequest) -> bytes:
    """Returns the SHA-256 of the canonical request, 32 bytes.

    Canonical is: the known fields that are set, by field number, map entries by key, without request_id and
    validate_only. It is fixed for v1; golden hashes in the tests keep a new protobuf runtime from changing it
    unnoticed.
    """
    canonical = CreateOrderRequest()
    canonical.CopyFrom(request)
    canonical.ClearField("request_id")
    canonical.ClearField("validate_only")
    canonical.DiscardUnknownFields()  # type: ignore[no-untyped-call, unused-ignore]
    if not request.labels:
        return hashlib.sha256(canonical.SerializeToString()).digest()
    canonical.ClearField("labels")
    digest = hashlib.sha256()
    digest.update(_part(canonical, lambda number: number < _LABELS))
    # The order of a map's entries is left to the protobuf runtime, and they differ: so one by one.
    for key, value in sorted(request.labels.items()):
        digest.update(CreateOrderRequest(labels={key: value}).SerializeToString())
    digest.update(_part(canonical, lambda number: number > _LABELS))
    return digest.digest()


def _part(request: CreateOrderRequest, is_in: Callable[[int], bool]) -> bytes:
    part = CreateOrderRequest()
    part.CopyFrom(request)
    for field, _ in request.ListFields():
        if not is_in(field.number):
            part.ClearField(field.name)
    return part.SerializeToString()


def order_id_for(caller: str, request_id: str, fingerprint: bytes) -> str:
    """Returns the order's id: the same for the same request of the same caller, a fresh one without a request_id."""
    if not request_id:
        return str(uuid.uuid4())
    return _named(_ORDERS, f"{len(caller)}:{caller}:{len(request_id)}:{request_id}:{fingerprint.hex()}")


def _named(namespace: bytes, name: str) -> str:
    """Returns the UUID of version 5 (RFC 9562), as `uuid.uuid5` makes it, in a quarter of the time."""
    text = hashlib.sha1(namespace + name.encode(), usedforsecurity=False).hexdigest()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANTS[text[16]]}{text[17:20]}-{text[20:32]}"


def created_event_id(order_id: str) -> str:
    """Returns the event_id of an order's ORDER_CREATED."""
    return _named(_EVENTS, order_id)


def caused_event_id(cause_id: str, event_type: OrderEventType, discriminator: str = "") -> str:
    """Returns the event_id of what follows from an event.

    `discriminator` tells effects of one cause and type apart: the channel of a notification.
    """
    return _named(_EVENTS, f"{cause_id}:{OrderEventType.Name(event_type)}:{discriminator}")


def command_fingerprint(request: Message) -> bytes:
    """Returns the SHA-256 of a command's request without its request_id, 32 bytes. Such a request has no map."""
    canonical = type(request)()
    canonical.CopyFrom(request)
    canonical.ClearField("request_id")
    canonical.DiscardUnknownFields()
    return hashlib.sha256(canonical.SerializeToString(deterministic=True)).digest()


def command_event_id(caller: str, command: OrderEventType, order_id: str, request_id: str) -> str:
    """Returns the event_id of a command: the same for the same request_id of the same caller, fresh without one."""
    if not request_id:
        return str(uuid.uuid4())
    name = OrderEventType.Name(command)
    return _named(_EVENTS, f"{len(caller)}:{caller}:{name}:{order_id}:{len(request_id)}:{request_id}")


def swept_event_id(command: OrderEventType, order_id: str, slot: int) -> str:
    """Returns the event_id of a command that a sweep gives: sweeps of one slot give the same."""
    return _named(_EVENTS, f"sweep:{OrderEventType.Name(command)}:{order_id}:{slot}")


def reported_event_id(report_id: str) -> str:
    """Returns the event_id of a PAYMENT_REPORTED: the same each time the gateway delivers the same report."""
    return _named(_EVENTS, f"report:{report_id}")


def is_canonical_uuid(text: str) -> bool:
    """Whether the text is a UUID as we write it: lower case, with hyphens."""
    return _CANONICAL.fullmatch(text) is not None
