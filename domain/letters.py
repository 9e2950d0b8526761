"""What a dead letter carries: an event or bytes that are none, under a key that may be anything."""

import uuid
from collections.abc import Collection

from google.protobuf.message import DecodeError

from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent


def order_id_of(letter: DeadLetter) -> str | None:
    """Returns the order that a dead letter is about; its key may be anything."""
    try:
        return str(uuid.UUID(letter.key.decode("ascii")))
    except ValueError:
        return None


def event_in(letter: DeadLetter) -> OrderEvent | None:
    """Returns the event that a dead letter carries, whatever else is wrong with it; None if its bytes are none."""
    try:
        event = OrderEvent.FromString(letter.value)
    except DecodeError:
        return None
    return event if event.order.order_id else None


def holds(letter: DeadLetter, texts: Collection[str]) -> bool:
    """Whether one of the texts stands anywhere in a dead letter's record."""
    parts = (letter.key, letter.value, *(header.value for header in letter.headers))
    return any(text.encode() in part for text in texts for part in parts)


def blank(letter: DeadLetter) -> None:
    """Takes the record's bytes out of a dead letter, but for its order's id: what cannot be read goes as a whole."""
    if order_id_of(letter) is None:
        letter.ClearField("key")
    letter.ClearField("value")
    letter.ClearField("headers")
