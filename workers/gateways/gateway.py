"""The seam to the payment gateway: five calls by key and a listing, what they answer, and what each failure means.

A key stands for one intent to move money, for ever. Everything here is told apart by one question: can money have
moved?

    GatewayUnavailable (DependencyDown)  no: nothing was sent, or only a look-up failed; ask again later
    GatewayRefused     (Permanent)       no: the gateway answered that it will not do this; asking again is pointless
      KeyClosed                          no, and never will under this key
    ChargeUnknown      (Transient)       perhaps: it was sent and no answer came; same key once more, then find()
    ChargeUnderWay     (Transient)       perhaps soon: a close came while the gateway was at it; close again later
    a Charge that is not approved        no: a business result, not an error
"""

import datetime
from dataclasses import dataclass
from typing import Final, Protocol

from domain.failures import DependencyDown, Permanent, Transient
from domain.reconciliation import Movement

KEY_REUSED: Final = "GATEWAY_KEY_REUSED"
"""The error class of a call whose key was used with other parameters."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What the gateway did under a key: took the money, or declined to.

    Attributes:
        reference: the gateway's own id of this charge; refunds name it.
        key: the idempotency key that it ran under.
        approved: True: the money was taken. False: declined, no money moved and the order ends as PAYMENT_FAILED.
        decline_reason: UPPER_SNAKE, empty when approved.
        amount_minor: what was asked for, in minor units.
        currency_code: ISO 4217.
    """

    reference: str
    key: str
    approved: bool
    decline_reason: str
    amount_minor: int
    currency_code: str


@dataclass(frozen=True, slots=True)
class Refund:
    """Money that the gateway gave back.

    Attributes:
        reference: the gateway's own id of this refund.
        key: the idempotency key of the refund, which is not the charge's.
        charge_reference: the charge it was taken from.
        amount_minor: how much, in minor units.
        currency_code: ISO 4217, the charge's.
    """

    reference: str
    key: str
    charge_reference: str
    amount_minor: int
    currency_code: str


@dataclass(frozen=True, slots=True)
class MovementPage:
    """A page of what the gateway did. `next_cursor` brings the next one; empty: this is the last."""

    movements: tuple[Movement, ...]
    next_cursor: str


class ChargeUnknown(Transient):
    """It was sent, and nobody can tell whether it executed: a time-out, a reset after sending, a 5xx, no valid answer.

    Comes from `charge` and `refund` only. Repeating under the same key is safe inside the gateway's window of keys, but
    may bring the same stored 5xx for ever: repeat once, then look up. Never to be read as "not charged".
    """

    def __init__(self, message: str) -> None:
        super().__init__("GATEWAY_CHARGE_UNKNOWN", message)


class ChargeUnderWay(Transient):
    """A `close` found the charge neither done nor to be stopped. It was answered: closing again later settles it."""

    def __init__(self, message: str) -> None:
        super().__init__("GATEWAY_CHARGE_UNDER_WAY", message)


class GatewayUnavailable(DependencyDown):
    """No money can have moved by this call: nothing was sent, or it was a look-up or a `close` that got no answer.

    A failed `close` may have closed the key all the same; repeating it is harmless.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__("gateway", message, retry_after)


class GatewayRefused(Permanent):
    """The gateway answered and will not do this, now or later: a used key with other parameters, a refund too large.

    By this call no money moved. A decline is not a refusal but a `Charge`.
    """


class KeyClosed(GatewayRefused):
    """A charge under a key that was closed: it did not execute and never will (its order was cancelled meanwhile)."""

    def __init__(self, message: str) -> None:
        super().__init__("GATEWAY_KEY_CLOSED", message)


class PaymentGateway(Protocol):
    """Whoever moves the money. Every call may be repeated under its key."""

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        """Take the money, at most once under this key inside the gateway's window of keys.

        A repeat with the same parameters answers the first charge again.

        Raises:
            ChargeUnknown: it was sent, and may or may not have executed.
            GatewayUnavailable: nothing was sent.
            KeyClosed: `close` came first; nothing executed.
            GatewayRefused: refused; nothing executed (the key was used with other parameters, for one).
        """
        ...

    async def find(self, key: str) -> Charge | None:
        """The charge that executed under this key, also past the window of keys. An approved one goes before a decline.

        Returns:
            None when the gateway answered that none has executed so far. One that was sent may still be on its way, so
            None alone settles nothing: `close` does.

        Raises:
            GatewayUnavailable: the gateway did not answer.
        """
        ...

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        """Give back a part or all of an approved charge, at most once under this key inside the window of keys.

        Raises:
            ChargeUnknown: it was sent, and may or may not have executed.
            GatewayUnavailable: nothing was sent.
            GatewayRefused: refused, nothing executed: no such charge, or more than is left of it.
        """
        ...

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:
        """The refund of that charge which executed under this key, also past the window of keys.

        Returns:
            None when the gateway answered that none has executed so far.

        Raises:
            GatewayUnavailable: the gateway did not answer.
        """
        ...

    async def close(self, key: str) -> Charge | None:
        """Close the key for good, also past the window of keys: from now on no charge under it can succeed.

        Returns:
            The charge that executed before, None when none did: then none ever will. Repeats answer the same.

        Raises:
            ChargeUnderWay: whether there will be a charge shows later; the key lets no other one through.
            GatewayUnavailable: the gateway did not answer; the key may be closed or not.
        """
        ...

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        """A page of the money that moved from `since` until before `until`, in any order.

        Approved charges and refunds, whatever moved them, this system's keys or a person at the gateway; but in an
        account that others share, what is theirs is left out. A movement is listed under the time at which it
        happened, and soon after it: a reconciliation asks for a time that is some minutes ago.

        Args:
            since: aware; where the listing begins.
            until: aware; where it ends.
            cursor: empty for the first page, then what the last one brought, with the same times.

        Raises:
            GatewayUnavailable: the gateway did not answer, or not in its own form.
        """
        ...

    async def aclose(self) -> None:
        """Give up the connections. No call is made afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """The gateway says that something became of an order's charge. What did is looked up.

    Attributes:
        report_id: the gateway's own id of this report; a repeat has the same.
        order_id: a lower-case UUID.
    """

    report_id: str
    order_id: str


@dataclass(frozen=True, slots=True)
class RefundFailed:
    """The gateway says that it could not pay out a refund that it had taken: nobody but a person can help."""

    reference: str


class NotGenuine(Exception):
    """A report that the gateway did not sign, or signed too long ago."""
