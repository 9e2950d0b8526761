"""The mail sink stores what aiosmtplib sends, envelope included."""

import email
import email.policy
import sys
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib

from devstack import ManagedProcess, free_ports
from tests.devstack.waiting import until

ROOT = Path(__file__).parents[2]


async def test_a_message_is_a_file_before_the_sender_hears_250(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    folder = tmp_path / "mail"
    sink = ManagedProcess(
        "mail",
        [sys.executable, "-m", "devstack.mail", "--port", str(port), "--folder", str(folder)],
        tmp_path / "mail.log",
        cwd=ROOT,
    )
    sink.start()
    try:
        until(lambda: "mail for everyone" in sink.tail(), "the sink listens")
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "shop@example.com", "ann@example.com", "Your order"
        message["Message-ID"] = "<../../etc/passwd@x>"
        message.set_content("Paid. Grüße")
        for _ in range(2):
            await aiosmtplib.send(
                message, hostname="127.0.0.1", port=port, recipients=["ann@example.com", "bob@example.com"], timeout=10
            )
        files = sorted(folder.iterdir())
        assert len(files) == 2, "the same message twice is two files"
        stored = email.message_from_bytes(files[0].read_bytes(), policy=email.policy.default)
        assert stored["X-Envelope-From"] == "shop@example.com"
        assert stored.get_all("X-Envelope-To") == ["ann@example.com", "bob@example.com"]
        assert stored["Subject"] == "Your order"
        assert stored.get_content().strip() == "Paid. Grüße"
        assert all(file.suffix == ".eml" for file in files)
    finally:
        await sink.stop(10)
    assert sink.exit_code == 0


async def test_a_taken_port_ends_it_with_a_clear_word(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "devstack.mail", "--port", str(port), "--folder", str(tmp_path / "mail")]
    first = ManagedProcess("mail", command, tmp_path / "first.log", cwd=ROOT)
    second = ManagedProcess("mail", command, tmp_path / "second.log", cwd=ROOT)
    first.start()
    try:
        until(lambda: "mail for everyone" in first.tail(), "the sink listens")
        second.start()
        assert await second.wait_exit(15) == 1
        assert second.tail().startswith(f"port {port} (mail) is in use")
    finally:
        first.kill()
        second.kill()
