"""What the Stripe-shaped gateway remembers beside its book: PaymentIntents, and what was said with refunds.

The book, and its journal, know charges by the key that our metadata give them. A second PaymentIntent that is
confirmed with the same metadata is another charge for Stripe, so it is another key in the book: its own id.
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack.gateway_journal import Lines
from domain.reconciliation import Movement
from workers.gateways.book import Book
from workers.gateways.gateway import Charge, Refund


@dataclass(frozen=True, slots=True)
class IntentMade:
    """A PaymentIntent, unconfirmed."""

    time: float
    intent_id: str
    idempotency_key: str
    amount: int
    currency: str
    payment_method: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class KeyTaken:
    """A PaymentIntent was confirmed or cancelled for the first time: the book knows it by this key."""

    intent_id: str
    key: str


@dataclass(frozen=True, slots=True)
class RefundLabelled:
    """What a refund's metadata are."""

    key: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class ReportDelivered:
    """A webhook was answered."""

    event_id: str


Line = IntentMade | KeyTaken | RefundLabelled | ReportDelivered
_KINDS: dict[str, type[Line]] = {
    "intent": IntentMade,
    "key": KeyTaken,
    "refund": RefundLabelled,
    "delivered": ReportDelivered,
}
_CODES = {
    # reason of the book -> code and decline code of Stripe
    "CARD_DECLINED": ("card_declined", "generic_decline"),
    "INSUFFICIENT_FUNDS": ("card_declined", "insufficient_funds"),
    "EXPIRED_CARD": ("expired_card", "expired_card"),
    "AUTHENTICATION_REQUIRED": ("authentication_required", "authentication_required"),
}


class Account:
    """The account's objects, as Stripe shows them. What changes is on disk when `sync` returns.

    Args:
        book: the rules, and what was executed.
        path: where what the book does not know is kept.
    """

    def __init__(self, book: Book, path: Path) -> None:
        self.book = book
        self._lines: Lines[Line] = Lines(path, _KINDS)
        self._intents: dict[str, IntentMade] = {}
        self._made_under: dict[str, IntentMade] = {}
        self._keys: dict[str, str] = {}
        self._labels: dict[str, dict[str, str]] = {}
        self._delivered: set[str] = set()
        for line in self._lines.read():
            self._apply(line)

    async def sync(self) -> None:
        """Return when all that was changed so far is on disk."""
        await self._lines.sync()

    def close(self) -> None:
        """Wait for the write under way."""
        self._lines.close()

    def make(
        self, idempotency_key: str, *, amount: int, currency: str, payment_method: str, metadata: dict[str, str]
    ) -> IntentMade:
        """A new PaymentIntent."""
        made = IntentMade(
            time.time(), f"pi_{uuid.uuid4().hex}", idempotency_key, amount, currency, payment_method, metadata
        )
        self._add(made)
        return made

    def made_under(self, idempotency_key: str) -> IntentMade | None:
        """The PaymentIntent that was made under the key, also before a restart."""
        return self._made_under.get(idempotency_key)

    def intent(self, intent_id: str) -> IntentMade | None:
        """The PaymentIntent of that id."""
        return self._intents.get(intent_id)

    def take_key(self, intent: IntentMade) -> str:
        """The key that the book knows the PaymentIntent by, from now on."""
        key = self._keys.get(intent.intent_id)
        if key is None:
            ours = intent.metadata.get("key", "")
            key = ours if ours and ours not in self._keys.values() else intent.intent_id
            self._add(KeyTaken(intent.intent_id, key))
        return key

    def label(self, refund_key: str, metadata: dict[str, str]) -> None:
        """Remember a refund's metadata."""
        if refund_key not in self._labels:
            self._add(RefundLabelled(refund_key, metadata))

    def delivered(self, event_id: str) -> None:
        """Remember that a webhook was answered."""
        if event_id not in self._delivered:
            self._add(ReportDelivered(event_id))

    def undelivered(self) -> Iterator[dict[str, Any]]:
        """The events of charges that no webhook was answered for."""
        for intent_id in self._keys:
            event = self.event(self._intents[intent_id])
            if event is not None and event["id"] not in self._delivered:
                yield event

    # -- as Stripe shows them ----------------------------------------------------------------------------------------

    def charge(self, intent: IntentMade) -> Charge | None:
        """What the PaymentIntent has come to."""
        key = self._keys.get(intent.intent_id)
        return None if key is None else self.book.find(key)

    def status(self, intent: IntentMade) -> str:
        """Where the PaymentIntent stands."""
        charge = self.charge(intent)
        if charge is not None and charge.approved:
            return "succeeded"
        if self.book.is_closed(self._keys.get(intent.intent_id, "")):
            return "canceled"
        return "requires_confirmation" if charge is None else "requires_payment_method"

    def show(self, intent: IntentMade) -> dict[str, Any]:
        """The PaymentIntent."""
        status, charge = self.status(intent), self.charge(intent)
        return {
            "id": intent.intent_id,
            "object": "payment_intent",
            "amount": intent.amount,
            "amount_received": intent.amount if status == "succeeded" else 0,
            "currency": intent.currency,
            "status": status,
            "created": int(intent.time),
            "livemode": False,
            "metadata": intent.metadata,
            # A declined one has lost its payment method.
            "payment_method": None if status == "requires_payment_method" else intent.payment_method,
            "latest_charge": None if charge is None else charge.reference,
            "last_payment_error": None if charge is None or charge.approved else decline(charge),
        }

    def show_refund(self, refund: Refund, intent: IntentMade) -> dict[str, Any]:
        """A refund of the PaymentIntent's charge."""
        return {
            "id": refund.reference,
            "object": "refund",
            "amount": refund.amount_minor,
            "currency": refund.currency_code.lower(),
            "charge": refund.charge_reference,
            "payment_intent": intent.intent_id,
            "metadata": self._labels.get(refund.key, {}),
            "status": "succeeded",
        }

    def refunds(self, intent: IntentMade) -> list[dict[str, Any]]:
        """The refunds of the PaymentIntent's charge, the newest first."""
        charge = self.charge(intent)
        found = [] if charge is None else self.book.refunds_of(charge.reference)
        return [self.show_refund(refund, intent) for refund in reversed(found)]

    def intents_of_time(self, since: int, until: int) -> list[dict[str, Any]]:
        """The PaymentIntents made from `since` until before `until`, whatever has become of them; the newest first."""
        made = sorted(self._intents.values(), key=lambda intent: (intent.time, intent.intent_id), reverse=True)
        return [self.show(intent) for intent in made if since <= intent.time < until]

    def charges_of_time(self, since: int, until: int) -> list[dict[str, Any]]:
        """The approved charges from `since` until before `until`, seconds since the epoch; the newest first."""
        intents = self._by_charge()
        return [self._show_charge(each, intents[each.reference]) for each in self._moved(since, until, "charge")]

    def refunds_of_time(self, since: int, until: int, *, with_charge: bool) -> list[dict[str, Any]]:
        """The refunds of a time; the charge as an object if asked."""
        intents, found = self._by_charge(), []
        for moved in self._moved(since, until, "refund"):
            intent = intents[moved.charge_reference]
            refund = next(
                each for each in self.book.refunds_of(moved.charge_reference) if each.reference == moved.reference
            )
            shown = self.show_refund(refund, intent) | {"created": int(moved.time.timestamp())}
            found.append(shown | {"charge": self._show_charge(moved, intent)} if with_charge else shown)
        return found

    def _moved(self, since: int, until: int, kind: str) -> list[Movement]:
        found: list[Movement] = []
        cursor = ""
        while True:
            page = self.book.movements(since, until, cursor)
            found += [each for each in page.movements if each.kind == kind]
            if not page.next_cursor:
                return found[::-1]
            cursor = page.next_cursor

    def _by_charge(self) -> dict[str, IntentMade]:
        charges = {intent_id: self.charge(self._intents[intent_id]) for intent_id in self._keys}
        return {charge.reference: self._intents[each] for each, charge in charges.items() if charge is not None}

    @staticmethod
    def _show_charge(moved: Movement, intent: IntentMade) -> dict[str, Any]:
        return {
            "id": moved.charge_reference,
            "object": "charge",
            "amount": intent.amount,
            "currency": intent.currency,
            "created": int(moved.time.timestamp()),
            "status": "succeeded",
            "captured": True,
            "payment_intent": intent.intent_id,
            "metadata": intent.metadata,
        }

    def event(self, intent: IntentMade) -> dict[str, Any] | None:
        """What a webhook says of the PaymentIntent's charge; None if there is none."""
        charge = self.charge(intent)
        if charge is None:
            return None
        return {
            "id": f"evt_{charge.reference.removeprefix('ch_')}",
            "object": "event",
            "type": "payment_intent.succeeded" if charge.approved else "payment_intent.payment_failed",
            "created": int(time.time()),
            "livemode": False,
            "pending_webhooks": 1,
            "data": {"object": self.show(intent)},
        }

    def _add(self, line: Line) -> None:
        self._apply(line)
        self._lines.append(line)

    def _apply(self, line: Line) -> None:
        match line:
            case IntentMade():
                self._intents[line.intent_id] = line
                self._made_under[line.idempotency_key] = line
            case KeyTaken():
                self._keys[line.intent_id] = line.key
            case RefundLabelled():
                self._labels[line.key] = line.metadata
            case ReportDelivered():
                self._delivered.add(line.event_id)


def decline(charge: Charge) -> dict[str, Any]:
    """The error that a declined charge is."""
    code, decline_code = _CODES[charge.decline_reason]
    return {
        "type": "card_error",
        "code": code,
        "decline_code": decline_code,
        "charge": charge.reference,
        "message": "Your card was declined.",
    }
