"""Text messages into a folder."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from domain.failures import DependencyDown
from orderflow.orders.v1.order_pb2 import NotificationChannel
from tests.channels.builders import EVENT_ID, PHONE, a_message, an_event, renderer
from workers.channels.channel import Message, Undeliverable
from workers.channels.sms import FolderSmsChannel


def an_sms(**fields: Any) -> Message:
    defaults = {"recipient": PHONE, "subject": "", "html": None, "text": "Bezahlt: Größe 39.98 EUR\n"}
    return a_message(**(defaults | fields))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_each_message_is_a_file_named_by_its_id(tmp_path: Path) -> None:
    message = renderer().render(an_event(language="de"), NotificationChannel.NOTIFICATION_CHANNEL_SMS)
    channel = FolderSmsChannel(tmp_path / "sms")
    assert await channel.send(message) == message.message_id
    await channel.aclose()
    [name] = names_in(tmp_path / "sms")
    assert name == f"{EVENT_ID}.sms@shop.example.txt"
    content = (tmp_path / "sms" / name).read_text("utf-8")
    assert content.startswith(f"To: {PHONE}\nMessage-ID: {message.message_id}\n\n")
    assert message.text in content


async def test_a_repeat_is_the_same_file(tmp_path: Path) -> None:
    channel = FolderSmsChannel(tmp_path)
    await asyncio.gather(*(channel.send(an_sms()) for _ in range(10)))
    await channel.send(an_sms(message_id="<2.sms@shop.example>"))
    assert names_in(tmp_path) == ["1.email@shop.example.txt", "2.sms@shop.example.txt"]


@pytest.mark.parametrize("message_id", ["<../../escape>", "</etc/passwd>", "<..>", "<a\nb>", "<a\x00b>"])
async def test_no_message_id_leaves_the_folder(tmp_path: Path, message_id: str) -> None:
    folder = tmp_path / "sms"
    await FolderSmsChannel(folder).send(an_sms(message_id=message_id))
    [name] = names_in(folder)
    assert name.endswith(".txt")
    assert names_in(tmp_path) == ["sms"]


@pytest.mark.parametrize(
    "recipient", ["", "0170 1234567", "+49170123\nMessage-ID: x", "+0123456789", "+49170123456789012"]
)
async def test_what_is_no_phone_number_is_undeliverable(tmp_path: Path, recipient: str) -> None:
    with pytest.raises(Undeliverable, match="INVALID_PHONE_NUMBER"):
        await FolderSmsChannel(tmp_path).send(an_sms(recipient=recipient))
    assert names_in(tmp_path) == []


async def test_a_folder_that_cannot_be_written_is_dependency_down(tmp_path: Path) -> None:
    (tmp_path / "sms").write_text("a file is in the way")
    with pytest.raises(DependencyDown) as down:
        await FolderSmsChannel(tmp_path / "sms").send(an_sms())
    assert PHONE not in str(down.value)


async def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), replace(self, to))[1])
    await FolderSmsChannel(tmp_path).send(an_sms())
    assert order == ["fsync", "rename", "fsync"]
