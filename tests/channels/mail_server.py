"""A real SMTP server on a loopback port that answers as a test tells it to."""

# aiosmtpd names the handlers:
# ruff: noqa: N802

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

Step = Callable[[SMTP, str], Awaitable[str]]


class MailServer:
    """Takes every message unless `on_mail`, `on_rcpt`, `on_data` or `on_rset` says otherwise.

    Each is given the conversation and the address (or nothing), and returns the reply.
    """

    def __init__(self, **options: Any) -> None:
        self.port = 0
        self.connections: list[SMTP] = []
        self.envelopes: list[Envelope] = []
        self.logins: list[bytes] = []
        self.on_mail: Step = _accept
        self.on_rcpt: Step = _accept
        self.on_data: Step = _accept
        self.on_rset: Step = _accept
        self._options = options
        self._server: asyncio.Server | None = None

    @property
    def messages(self) -> list[EmailMessage]:
        return [message_from_bytes(envelope.content, policy=policy.default) for envelope in self.envelopes]

    @property
    def open_connections(self) -> list[SMTP]:
        return [smtp for smtp in self.connections if smtp.transport is not None]

    async def start(self, **listen: Any) -> None:
        loop = asyncio.get_running_loop()

        def conversation() -> SMTP:
            smtp = SMTP(self, hostname="localhost", loop=loop, **self._options)
            self.connections.append(smtp)
            return smtp

        self._server = await loop.create_server(conversation, "127.0.0.1", self.port, **listen)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.drop_connections()
        await self._server.wait_closed()

    def drop_connections(self) -> None:
        for smtp in self.open_connections:
            smtp.transport.abort()

    async def handle_MAIL(
        self, smtp: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return await self.on_mail(smtp, address)

    async def handle_RCPT(
        self, smtp: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await self.on_rcpt(smtp, address)
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, smtp: SMTP, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return await self.on_data(smtp, "")

    async def handle_RSET(self, smtp: SMTP, session: Session, envelope: Envelope) -> str:
        return await self.on_rset(smtp, "")


async def _accept(smtp: SMTP, address: str) -> str:
    return "250 OK"


def answer(*replies: str) -> Step:
    """Answers with one reply after the other, and with the last one from then on."""
    left = list(replies)

    async def step(smtp: SMTP, address: str) -> str:
        reply = left.pop(0) if len(left) > 1 else left[0]
        return reply.format(address=address)

    return step


async def drop(smtp: SMTP, address: str) -> str:
    """Breaks the connection instead of answering."""
    smtp.transport.abort()
    await asyncio.Event().wait()  # until aiosmtpd cancels the handler of the lost connection
    raise AssertionError


async def stay_silent(smtp: SMTP, address: str) -> str:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError


@contextlib.asynccontextmanager
async def mail_server(*, listen: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[MailServer]:
    """A running server."""
    server = MailServer(**options)
    await server.start(**(listen or {}))
    try:
        yield server
    finally:
        await server.stop()
