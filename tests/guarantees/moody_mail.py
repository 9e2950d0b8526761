"""A mail server with the habits of real ones: `python -m tests.guarantees.moody_mail --port 1025 --folder DIR`.

The recipient's address says which, up to its first dash: `greylisted-1@example.com`. Each refusal and each dropped
connection is a line of `moods.jsonl` in the folder before the sender hears of it.
"""

import asyncio
import email.parser
import json
import time
from pathlib import Path
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session

from devstack import mail

GREYLISTED: Final = "greylisted"
"""Refused for now until some time has passed since the first try."""
UNKNOWN: Final = "unknown"
"""Refused for good."""
CUT: Final = "cut"
"""Every message is stored at its first try, and the connection is dropped instead of answering."""

GREYLIST_SECONDS: Final = 1.5
MOODS: Final = "moods.jsonl"


class MoodyFolder(mail.MailFolder):
    """aiosmtpd's handler: stores what it is given, or does not."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._moods = folder / MOODS
        self._first_tried: dict[str, float] = {}
        self._cut: set[str] = set()

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        kind = address.partition("-")[0]
        if kind == GREYLISTED:
            now = time.monotonic()
            if now < self._first_tried.setdefault(address, now) + GREYLIST_SECONDS:
                self._note(kind, address)
                return f"451 4.7.1 <{address}> greylisted, try again later"
        if kind == UNKNOWN:
            self._note(kind, address)
            return f"550 5.1.1 <{address}> unknown"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        answer = await super().handle_DATA(server, session, envelope)
        (address,) = envelope.rcpt_tos
        message_id = email.parser.BytesHeaderParser().parsebytes(envelope.original_content or b"")["Message-ID"]
        if address.partition("-")[0] == CUT and message_id not in self._cut:
            self._cut.add(message_id)
            self._note(CUT, address)
            assert server.transport is not None
            server.transport.abort()
            await asyncio.Event().wait()  # until aiosmtpd cancels the handler of the lost connection
        return answer

    def _note(self, kind: str, address: str) -> None:
        with self._moods.open("a") as file:
            file.write(json.dumps({"kind": kind, "recipient": address}) + "\n")


if __name__ == "__main__":
    mail.main(handler=MoodyFolder)
