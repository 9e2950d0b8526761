"""A mail server that delivers into a folder: `python -m devstack.mail --port 1025 --folder DIR`.

Each accepted message is one `.eml` file, on disk before the sender hears 250, with the envelope in `X-Envelope-*`
headers. Names sort by time of arrival.
"""

import argparse
import asyncio
import contextlib
import datetime
import email.parser
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

from devstack.errors import DevstackError
from devstack.ports import LOOPBACK, require_free

_NAME_LIMIT = 80


class MailFolder:
    """aiosmtpd's handler: stores what it is given."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, ARG002
        """Store one message, then accept it."""
        content = envelope.original_content or b""
        try:
            await asyncio.to_thread(store, self._folder, envelope.mail_from or "", list(envelope.rcpt_tos), content)
        except OSError as error:
            return f"451 cannot store the message: {error.strerror}"
        return "250 stored"


def store(folder: Path, sender: str, recipients: list[str], content: bytes) -> Path:
    """Write one message durably and return its file."""
    now = datetime.datetime.now(datetime.UTC)
    message_id = email.parser.BytesHeaderParser().parsebytes(content)["Message-ID"] or ""
    readable = re.sub(r"[^A-Za-z0-9.@_-]+", "", str(message_id))[:_NAME_LIMIT]
    # The random end keeps a message that is sent twice from replacing itself.
    name = f"{now:%Y%m%dT%H%M%S.%f}Z-{readable or 'no-id'}-{secrets.token_hex(3)}.eml"
    envelope = [("From", sender), *(("To", recipient) for recipient in recipients), ("Received", now.isoformat())]
    headers = "".join(f"X-Envelope-{kind}: {value}\r\n" for kind, value in envelope)
    # A name that no `*.eml` matches until the file is whole.
    fresh = folder / f".{name}.part"
    with fresh.open("wb") as file:
        file.write(headers.encode() + content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / name)
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
    return folder / name


async def serve(port: int, folder: Path, handler: MailFolder) -> None:
    """Serve until SIGTERM or SIGINT."""
    require_free(port, "mail", "--port")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # The host name is given because aiosmtpd else asks the resolver for it, which can take seconds.
    server = await loop.create_server(lambda: SMTP(handler, hostname="localhost", enable_SMTPUTF8=True), LOOPBACK, port)
    print(f"mail for everyone on {LOOPBACK}:{port} goes to {folder}", flush=True)  # noqa: T201
    await stop.wait()
    server.close()


def main(arguments: list[str] | None = None, handler: Callable[[Path], MailFolder] = MailFolder) -> None:
    """Run from the command line, with another handler if given."""
    parser = argparse.ArgumentParser(
        prog="python -m devstack.mail", description="A mail server that delivers to a folder"
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(serve(options.port, options.folder, handler(options.folder)))
        except DevstackError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
