"""E-mail over SMTP."""

import asyncio
from email.headerregistry import Address
from email.utils import parseaddr
from enum import StrEnum

from aiosmtplib import SMTPDataError, SMTPException, SMTPResponseException

from domain.failures import DependencyDown, Transient
from workers.channels.channel import Message, SendUnknown, Undeliverable
from workers.channels.mime import compose, is_mailbox
from workers.channels.smtp_pool import SmtpPool, SmtpServer

_AUTHENTICATION_CODES = frozenset({530, 534, 535, 538})


class _Step(StrEnum):
    """How far a conversation got. What a failure means depends on it."""

    CONNECT = "connecting"
    SENDER = "naming the sender"
    RECIPIENT = "naming the recipient"
    CONTENT = "sending the content"


class EmailChannel:
    """Sends e-mails over a few open connections.

    `send_limit_seconds` bounds one `send`: half of it to get a connection, half for the conversation, so that a wait in
    the queue never cuts a message off. It must be shorter than the runtime's drain limit, so that a rebalance does
    not either.
    """

    def __init__(
        self,
        server: SmtpServer,
        *,
        sender: str,
        send_limit_seconds: float,
        connections: int = 4,
        idle_seconds: float = 60.0,
    ) -> None:
        name, address = parseaddr(sender)
        if not is_mailbox(address):
            raise ValueError("sender must be one ASCII address, such as 'Shop <orders@shop.example>'")
        self._sender = Address(name, addr_spec=address)
        self._half_limit = send_limit_seconds / 2
        self._pool = SmtpPool(server, size=connections, idle_seconds=idle_seconds)

    async def send(self, message: Message) -> str:
        """Sends one e-mail and returns its Message-ID. Raises as `Channel.send` says."""
        content = compose(message, self._sender)
        step = _Step.CONNECT
        try:
            async with asyncio.timeout(self._half_limit) as limit, self._pool.connection() as smtp:
                limit.reschedule(asyncio.get_running_loop().time() + self._half_limit)
                step = _Step.SENDER
                await smtp.mail(self._sender.addr_spec)
                step = _Step.RECIPIENT
                await smtp.rcpt(message.recipient)
                step = _Step.CONTENT
                await smtp.data(content)
        except (SMTPException, OSError) as error:  # a time-out is an OSError
            failure = _meaning(error, step, message.message_id)
        else:
            return message.message_id
        # Outside the handler: aiosmtplib's exceptions hold the address and must not travel along as the context.
        raise failure

    async def greet(self) -> None:
        """Connects and logs in, and sends nothing.

        Raises:
            DependencyDown: the server is away, or does not let us in.
        """
        try:
            async with asyncio.timeout(self._half_limit), self._pool.connection():
                return
        except (SMTPException, OSError) as error:
            failure = _meaning(error, _Step.CONNECT, "")
        raise failure

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._pool.aclose()


def _meaning(error: SMTPException | OSError, step: _Step, message_id: str) -> Exception:
    """Says what a failure means, in step, code and class of the error alone: servers echo addresses in their texts."""
    code = error.code if isinstance(error, SMTPResponseException) else 0
    what = f"{type(error).__name__}{f' {code}' if code else ''} when {step}"
    refused, refused_for_now = 500 <= code < 600, 400 <= code < 500
    match step:
        case _Step.CONNECT:
            return DependencyDown("smtp", what)
        case _Step.SENDER:
            # Not the recipient's fault: a server that is closing (421), or one that does not take mail from us.
            return Transient(f"SMTP_{code}", what) if refused_for_now and code != 421 else DependencyDown("smtp", what)
        case _Step.RECIPIENT:
            if code in _AUTHENTICATION_CODES:
                return DependencyDown("smtp", what)
            # A server that breaks off at one recipient must not hold up all the others, so that uses an attempt.
            if refused:
                return Undeliverable(f"SMTP_{code}")
            return Transient(f"SMTP_{code}" if refused_for_now else "SMTP_BROKEN_OFF", what)
        case _Step.CONTENT:
            if isinstance(error, SMTPDataError) and refused:
                return Undeliverable(f"SMTP_{code}", provider_message_id=message_id)
            if isinstance(error, SMTPDataError) and refused_for_now:
                return Transient(f"SMTP_{code}", what)
            return SendUnknown(what)
