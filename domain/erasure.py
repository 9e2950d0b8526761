"""Takes a person out of orders: what an erasure leaves of one, and what outcomes do without (semantics 35)."""

import dataclasses
import datetime
import re
from collections.abc import Collection
from typing import Final

from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order

_PERSONAL: Final = ("user_id", "email", "phone", "labels", "external_reference")
"""What tells who an order is for, or may. None of it ever changes, so the order's row has it for all its events."""

_CONTACT: Final = re.compile(r"@|\+[1-9][0-9]{6,14}")
_PSEUDONYM: Final = re.compile(r"erased-[0-9a-f]{64}")


class UserErased(Exception):
    """The user of the order was erased: nothing is sent to them any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Erasure:
    """Of a user's orders that were created before `before` the contact data is erased.

    `pseudonym` stands in for a user id that is contact data itself.
    """

    pseudonym: str
    before: datetime.datetime

    def covers(self, order: Order) -> bool:
        """Whether the order, one of the user's, was created before."""
        return order.create_time.seconds < self.before.timestamp()  # whatever a forged time holds

    def clear(self, order: Order) -> bool:
        """Clears the contact data of an order of the user: e-mail, phone, and the labels, which may hold names.

        The identifiers that callers chose stay, unless they are contact data: a user id is replaced then, an external
        reference cleared. Returns whether there was anything to clear.
        """
        contacts = contacts_of(order)
        had_any = bool(contacts or order.labels)
        if _tells(order.user_id, contacts):
            order.user_id = self.pseudonym
            had_any = True
        if _tells(order.external_reference, contacts):
            order.ClearField("external_reference")
            had_any = True
        for field in ("email", "phone", "labels"):
            order.ClearField(field)
        return had_any


def pseudonym_of(user_hash: str) -> str:
    """Returns what stands in for the user id of which this is the SHA-256, in hexadecimal."""
    return f"erased-{user_hash}"


def is_pseudonym(user_id: str) -> bool:
    """Whether it stands in for the user id of somebody who was erased."""
    return _PSEUDONYM.fullmatch(user_id) is not None


def contacts_of(order: Order) -> set[str]:
    """Returns the texts that would tell how to reach the customer."""
    return {text for text in (order.email, order.phone, order.phone.removeprefix("+")) if text}


def _tells(text: str, contacts: Collection[str]) -> bool:
    return _CONTACT.search(text) is not None or any(contact in text for contact in contacts)


def impersonal(event: OrderEvent) -> OrderEvent:
    """Returns a copy of the event that does not tell who its order is for."""
    copy = OrderEvent()
    copy.CopyFrom(event)
    if copy.HasField("order"):
        order = copy.order
        for field in _PERSONAL:
            order.ClearField(field)
    return copy


def restore(order: Order, source: Order) -> None:
    """Puts back into an order what `impersonal` left out, as `source` has it; nothing if that is another order."""
    if order.order_id == source.order_id:
        order.MergeFrom(
            Order(
                user_id=source.user_id,
                email=source.email,
                phone=source.phone,
                labels=source.labels,
                external_reference=source.external_reference,
            )
        )
