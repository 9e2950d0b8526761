"""Text messages for development: each one is a file."""

import asyncio
import contextlib
import os
import re
import uuid
from pathlib import Path
from urllib.parse import quote

from domain.failures import DependencyDown
from workers.channels.channel import Message, Undeliverable

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


class FolderSmsChannel:
    """Writes each text message to a file of its own. Sending one again writes the same file again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, message: Message) -> str:
        """Writes the file durably and returns the message's identifier. Raises as `Channel.send` says."""
        if not is_phone_number(message.recipient):
            raise Undeliverable("INVALID_PHONE_NUMBER")
        content = f"To: {message.recipient}\nMessage-ID: {message.message_id}\n\n{message.text.rstrip()}\n"
        try:
            await asyncio.to_thread(_write_durably, self._folder / file_name(message.message_id), content)
        except OSError as error:
            raise DependencyDown("sms-folder", f"cannot write: {error.strerror or type(error).__name__}") from None
        return message.message_id

    async def aclose(self) -> None:
        """Does nothing: no file stays open."""


def is_phone_number(text: str) -> bool:
    """Tells whether `text` is one phone number in E.164 form and nothing else."""
    return _E164.fullmatch(text) is not None


def file_name(message_id: str) -> str:
    """Returns the file's name: one per message id, whatever characters it holds."""
    return f"{quote(message_id.strip('<>'), safe='@')}.txt"


def _write_durably(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each attempt: two at once must not write into one file.
    draft = path.with_name(f".{uuid.uuid4().hex}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
