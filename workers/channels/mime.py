"""Builds e-mails. Nothing that a customer or a caller wrote becomes a header or an address of its own."""

import functools
import re
from datetime import UTC, datetime
from email import policy
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from typing import Any

from domain.failures import Permanent
from workers.channels.channel import Message, Undeliverable


class _Headers(HeaderRegistry):
    """Makes the class of a header's name once. Python's makes it for each header: a third of the time of an e-mail."""

    def __init__(self) -> None:
        super().__init__()
        self._class_of = functools.cache(super().__getitem__)  # the names are ours, and few

    def __getitem__(self, name: str) -> Any:
        return self._class_of(name)


# 7bit: base64 or quoted-printable instead of raw UTF-8, so that no extension of the server is needed for the body.
_POLICY = policy.SMTP.clone(cte_type="7bit", header_factory=_Headers())

# One plain ASCII address, as the ingress takes them: no name, comment, list, quotes or line break.
_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+")


def compose(message: Message, sender: Address) -> bytes:
    """Returns the e-mail as it goes over the wire.

    Raises:
        Undeliverable: the recipient is not exactly one address.
        Permanent: a header would hold a line break.
    """
    if not is_mailbox(message.recipient):
        raise Undeliverable("INVALID_ADDRESS")
    if not (message.subject.isprintable() and message.message_id.isprintable()):
        raise Permanent("UNSAFE_HEADER", "subject or message id holds a control character")
    username, _, domain = message.recipient.partition("@")
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = sender
    mail["To"] = Address(username=username, domain=domain)
    mail["Subject"] = message.subject
    mail["Date"] = datetime.now(UTC)
    mail["Message-ID"] = message.message_id
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text)
    if message.html is not None:
        mail.add_alternative(message.html, subtype="html")
    return mail.as_bytes()


def is_mailbox(text: str) -> bool:
    """Tells whether `text` is one plain address and nothing else."""
    return _MAILBOX.fullmatch(text) is not None
