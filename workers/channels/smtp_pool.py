"""SMTP connections, kept open between messages. One connection is one conversation."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from aiosmtplib import SMTP, SMTPException, SMTPResponseException

TlsMode = Literal["none", "starttls", "tls"]


@dataclass(frozen=True, kw_only=True)
class SmtpServer:
    """Where the mail server is and how to log in."""

    host: str
    port: int
    tls: TlsMode = "starttls"
    """`none`: in the clear. `starttls`: refused where the server does not offer it. `tls`: from the first byte."""
    ca_file: str | None = None
    """Certificates to trust instead of the system's."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    local_hostname: str | None = None
    """The name in EHLO. Without it the machine's own."""
    timeout_seconds: float = 10.0
    """For each reply."""


class SmtpPool:
    """At most `size` connections to one server; each serves one message at a time."""

    def __init__(self, server: SmtpServer, *, size: int, idle_seconds: float) -> None:
        if size < 1:
            raise ValueError(f"an SMTP pool needs at least 1 connection, not {size}")
        self._server = server
        self._idle_seconds = idle_seconds
        self._slots = asyncio.Semaphore(size)
        self._idle: list[tuple[SMTP, float]] = []
        self._closed = False
        self._tls_context = None if server.tls == "none" else ssl.create_default_context(cafile=server.ca_file)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[SMTP]:
        """Lends a connection that answered just now. It is kept unless the conversation broke off."""
        async with self._slots:
            smtp = await self._reuse() or await self._open()
            keep = False
            try:
                yield smtp
                keep = True
            except SMTPResponseException as refusal:
                keep = _still_in_step(refusal)
                raise
            finally:
                if keep and smtp.is_connected and not self._closed:
                    self._idle.append((smtp, asyncio.get_running_loop().time()))
                else:
                    smtp.close()

    async def aclose(self) -> None:
        """Says goodbye on the idle connections; those in use are closed when they come back."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(self._quit(smtp) for smtp, _ in idle))

    async def _reuse(self) -> SMTP | None:
        """Returns an idle connection that still answers.

        RSET finds out whether the server dropped it before anything of the message is said, and clears what a refused
        message left behind.
        """
        while self._idle:
            smtp, since = self._idle.pop()
            try:
                if smtp.is_connected and asyncio.get_running_loop().time() - since < self._idle_seconds:
                    await smtp.rset()
                    return smtp
            except (SMTPException, OSError):
                pass
            except BaseException:
                smtp.close()
                raise
            smtp.close()
        return None

    async def _open(self) -> SMTP:
        server = self._server
        smtp = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            local_hostname=server.local_hostname,
            timeout=server.timeout_seconds,
            use_tls=server.tls == "tls",
            start_tls=server.tls == "starttls",  # aiosmtplib's default is to go on in the clear
            tls_context=self._tls_context,
        )
        await smtp.connect()
        try:
            if smtp.is_ehlo_or_helo_needed:
                await smtp.ehlo()
        except BaseException:
            smtp.close()
            raise
        return smtp

    async def _quit(self, smtp: SMTP) -> None:
        with contextlib.suppress(SMTPException, OSError):
            await smtp.quit(timeout=1.0)
        smtp.close()


def _still_in_step(refusal: SMTPResponseException) -> bool:
    """Tells whether the server's answer was one, and not its goodbye (421) or something unreadable (-1)."""
    return 400 <= refusal.code < 600 and refusal.code != 421
