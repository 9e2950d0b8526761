"""The seam between what customers are told and how it reaches them.

Whatever `Channel.send` raises but `SendUnknown` means that nothing was accepted, so sending again is safe. A
cancellation is as ambiguous as `SendUnknown`: let `send` come to its end, it is bounded by the channel's send limit.
"""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(kw_only=True, slots=True)
class Message:
    """One message to one customer.

    Recipient and content are kept out of `repr`, so that no log line and no traceback shows them.
    """

    recipient: str = field(repr=False)
    subject: str = field(repr=False)
    """One line. Empty where the channel has no subjects."""
    text: str = field(repr=False)
    html: str | None = field(default=None, repr=False)
    message_id: str
    """The same for every attempt to tell one event through one channel."""
    template: str
    """Name of the template, language and channel included: `de/email/order_paid`."""
    order_id: str


class Undeliverable(Exception):
    """The recipient cannot be reached, now or later. A business result: no retry, no dead letter."""

    def __init__(self, reason: str, *, provider_message_id: str = "") -> None:
        """`reason` is UPPER_SNAKE, from a small set, without personal data: `INVALID_ADDRESS`, `SMTP_550`.

        `provider_message_id` is what the provider calls the message; empty if it never saw it, or gave it no name.
        """
        super().__init__(reason)
        self.reason = reason
        self.provider_message_id = provider_message_id


class SendUnknown(Exception):
    """The message was handed over and the answer never came: it may have been accepted."""


class Channel(Protocol):
    """Delivers messages."""

    async def send(self, message: Message) -> str:
        """Sends the message and returns its identifier at the provider.

        Raises:
            Undeliverable: the recipient was refused for good.
            Transient: the message was refused for now.
            DependencyDown: the provider is away.
            SendUnknown: it may have been accepted.
        """
        ...

    async def aclose(self) -> None:
        """Closes what is open. Nothing is sent afterwards."""
        ...
