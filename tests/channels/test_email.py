"""E-mail over real SMTP conversations."""

import asyncio
import contextlib
import socket
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from domain.failures import DependencyDown, Failure, Permanent, Transient
from tests.channels.builders import EMAIL, a_message
from tests.channels.mail_server import MailServer, answer, drop, mail_server, stay_silent
from workers.channels.channel import Channel, SendUnknown, Undeliverable
from workers.channels.email import EmailChannel
from workers.channels.smtp_pool import SmtpServer

SERVER_KEYS = {"tls", "ca_file", "username", "password", "timeout_seconds", "host"}


def channel_to(server: MailServer, **options: Any) -> EmailChannel:
    where = {key: options.pop(key) for key in SERVER_KEYS & options.keys()}
    where = {"host": "127.0.0.1", "tls": "none", "local_hostname": "localhost", "timeout_seconds": 5.0} | where
    settings = {"sender": "Corner Shop <orders@shop.example>", "send_limit_seconds": 10.0, "connections": 1} | options
    return EmailChannel(SmtpServer(port=server.port, **where), **settings)


@contextlib.asynccontextmanager
async def open_channel(server: MailServer, **options: Any) -> AsyncIterator[EmailChannel]:
    channel = channel_to(server, **options)
    try:
        yield channel
    finally:
        await channel.aclose()


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with mail_server() as running:
        yield running


@pytest.fixture
async def channel(server: MailServer) -> AsyncIterator[EmailChannel]:
    async with open_channel(server) as opened:
        yield opened


class TestAccepted:
    async def test_arrives_as_text_and_html_with_its_headers(self, server: MailServer, channel: Channel) -> None:
        message = a_message(subject="Grüße: bezahlt", text="Größe\n.\nEnde\n", html="<p>Größe</p>")

        assert await channel.send(message) == message.message_id

        [mail], [envelope] = server.messages, server.envelopes
        assert (envelope.mail_from, envelope.rcpt_tos) == ("orders@shop.example", [EMAIL])
        assert mail["From"] == "Corner Shop <orders@shop.example>"
        assert (mail["To"], mail["Subject"], mail["Message-ID"]) == (EMAIL, "Grüße: bezahlt", message.message_id)
        assert mail["Auto-Submitted"] == "auto-generated"
        assert mail["Date"].datetime is not None
        text, html = mail.get_body(("plain",)), mail.get_body(("html",))
        assert text.get_content().splitlines() == ["Größe", ".", "Ende"]
        assert html.get_content().strip() == "<p>Größe</p>"
        assert envelope.content.isascii()

    async def test_a_long_message_id_is_not_folded_or_encoded(self, server: MailServer, channel: Channel) -> None:
        message_id = f"<a2b7c9d0-14e8-5f3b-8c6d-7e9f0a1b2c42.email@{'a-long-label.' * 5}example>"
        await channel.send(a_message(message_id=message_id))
        assert message_id.encode() in server.envelopes[0].content

    async def test_messages_share_one_connection(self, server: MailServer, channel: Channel) -> None:
        for number in range(3):
            await channel.send(a_message(number))
        assert len(server.envelopes) == 3
        assert len(server.connections) == 1

    async def test_many_at_once_use_no_more_connections_than_set(self, server: MailServer) -> None:
        async with open_channel(server, connections=3) as channel:
            await asyncio.gather(*(channel.send(a_message(number)) for number in range(30)))
        assert len(server.connections) == 3
        assert len(server.envelopes) == 30
        assert len({mail["Message-ID"] for mail in server.messages}) == 30

    @pytest.mark.parametrize(
        "recipient", ["a..b@example.com", "o'neil+tag@sub.example.com", "x@localhost", "{a}%b@x.org"]
    )
    async def test_odd_addresses_that_the_ingress_takes(
        self, server: MailServer, channel: Channel, recipient: str
    ) -> None:
        await channel.send(a_message(recipient=recipient))
        assert server.envelopes[0].rcpt_tos == [recipient]
        [to] = server.messages[0]["To"].addresses
        assert f"{to.username}@{to.domain}" == recipient

    async def test_closing_says_goodbye(self, server: MailServer) -> None:
        channel = channel_to(server)
        await channel.send(a_message())
        [conversation] = server.connections
        handler = conversation._handler_coroutine
        await channel.aclose()
        await asyncio.wait([handler], timeout=5)
        assert server.open_connections == []


class TestRefused:
    async def test_a_recipient_refused_for_good_is_undeliverable(self, server: MailServer, channel: Channel) -> None:
        server.on_rcpt = answer("550 5.1.1 <{address}> unknown", "250 OK")
        with pytest.raises(Undeliverable) as refused:
            await channel.send(a_message(1))
        assert (refused.value.reason, refused.value.provider_message_id) == ("SMTP_550", "")
        assert server.envelopes == []

        # The refused envelope is cleared: the next message goes over the same connection.
        await channel.send(a_message(2))
        assert [mail["Message-ID"] for mail in server.messages] == [a_message(2).message_id]
        assert len(server.connections) == 1

    async def test_greylisting_is_transient_and_the_repeat_is_the_same_message(
        self, server: MailServer, channel: Channel
    ) -> None:
        server.on_rcpt = answer("451 4.7.1 greylisted, try {address} later", "250 OK")
        with pytest.raises(Transient) as refused:
            await channel.send(a_message())
        assert refused.value.error_class == "SMTP_451"

        await channel.send(a_message())
        assert [mail["Message-ID"] for mail in server.messages] == [a_message().message_id]

    @pytest.mark.parametrize(
        ("reply", "failure"),
        [("554 5.6.0 content refused", Undeliverable), ("452 4.3.1 disk full", Transient)],
    )
    async def test_a_refusal_of_the_content_is_no_doubt(
        self, server: MailServer, channel: Channel, reply: str, failure: type[Exception]
    ) -> None:
        server.on_data = answer(reply)
        with pytest.raises(failure, match=f"SMTP_{reply[:3]}") as refused:
            await channel.send(a_message())
        if isinstance(refused.value, Undeliverable):  # the server has seen the content, and so the Message-ID
            assert refused.value.provider_message_id == a_message().message_id

    @pytest.mark.parametrize("reply", ["550 5.7.1 not from you", "421 4.3.2 shutting down"])
    async def test_a_server_that_takes_no_mail_from_us_is_down_not_the_recipient(
        self, server: MailServer, channel: Channel, reply: str
    ) -> None:
        server.on_mail = answer(reply)
        with pytest.raises(DependencyDown):
            await channel.send(a_message())

    async def test_a_sender_refused_for_now_is_transient(self, server: MailServer, channel: Channel) -> None:
        server.on_mail = answer("450 4.3.2 slow down")
        with pytest.raises(Transient, match="SMTP_450"):
            await channel.send(a_message())

    async def test_a_server_that_wants_a_login_is_down(self, server: MailServer, channel: Channel) -> None:
        server.on_rcpt = answer("530 5.7.0 authentication required")
        with pytest.raises(DependencyDown):
            await channel.send(a_message())


class TestServerAway:
    async def test_refused_connections_are_dependency_down_and_it_comes_back(self) -> None:
        server = MailServer()
        await server.start()
        await server.stop()
        async with open_channel(server) as channel:
            with pytest.raises(DependencyDown) as down:
                await channel.send(a_message())
            assert down.value.dependency == "smtp"

            await server.start()
            await channel.send(a_message())
            assert len(server.envelopes) == 1
        await server.stop()

    async def test_a_server_that_never_greets_is_down(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel takes the connection, nobody answers
            silent = MailServer()
            silent.port = listener.getsockname()[1]
            async with open_channel(silent, timeout_seconds=1.0) as channel:
                with pytest.raises(DependencyDown):
                    await channel.send(a_message())

    async def test_dropped_at_the_sender_is_down(self, server: MailServer, channel: Channel) -> None:
        server.on_mail = drop
        with pytest.raises(DependencyDown):
            await channel.send(a_message())

    @pytest.mark.parametrize(("behaviour", "limits"), [(drop, {}), (stay_silent, {"timeout_seconds": 1.0})])
    async def test_broken_off_at_one_recipient_uses_an_attempt_and_holds_up_nobody(
        self, server: MailServer, behaviour: Any, limits: dict[str, float]
    ) -> None:
        server.on_rcpt = behaviour
        async with open_channel(server, **limits) as channel:
            with pytest.raises(Transient, match="SMTP_BROKEN_OFF"):
                await channel.send(a_message())
        assert server.envelopes == []

    async def test_no_free_connection_within_the_limit_is_down(self, server: MailServer) -> None:
        server.on_data = stay_silent
        async with open_channel(server, send_limit_seconds=2.0) as channel:
            first, second = await asyncio.gather(
                channel.send(a_message(1)), channel.send(a_message(2)), return_exceptions=True
            )
        assert isinstance(first, SendUnknown)
        assert isinstance(second, DependencyDown)


class TestUnknown:
    async def test_dropped_after_data_may_have_been_accepted(self, server: MailServer, channel: Channel) -> None:
        server.on_data = drop
        with pytest.raises(SendUnknown):
            await channel.send(a_message())
        assert len(server.envelopes) == 1, "it was not sent again"

        server.on_data = answer("250 OK")
        await channel.send(a_message())
        assert len(server.connections) == 2
        assert len({mail["Message-ID"] for mail in server.messages}) == 1

    @pytest.mark.parametrize("limits", [{"send_limit_seconds": 2.0}, {"timeout_seconds": 1.0}])
    async def test_no_answer_after_data_may_have_been_accepted(
        self, server: MailServer, limits: dict[str, float]
    ) -> None:
        server.on_data = stay_silent
        async with open_channel(server, **limits) as channel:
            with pytest.raises(SendUnknown):
                await channel.send(a_message())
        assert len(server.envelopes) == 1

    async def test_an_unreadable_answer_after_data_may_have_been_accepted(
        self, server: MailServer, channel: Channel
    ) -> None:
        server.on_data = answer("what?")
        with pytest.raises(SendUnknown):
            await channel.send(a_message())

    async def test_a_cancelled_send_leaves_no_half_used_connection(self, server: MailServer, channel: Channel) -> None:
        handed_over = asyncio.Event()

        async def hold(smtp: Any, address: str) -> str:
            handed_over.set()
            return await stay_silent(smtp, address)

        server.on_data = hold
        sending = asyncio.create_task(channel.send(a_message(1)))
        await handed_over.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

        server.on_data = answer("250 OK")
        await channel.send(a_message(2))
        assert len(server.connections) == 2


class TestIdleConnection:
    async def test_closed_by_the_server_between_two_messages_is_replaced(
        self, server: MailServer, channel: Channel
    ) -> None:
        await channel.send(a_message(1))
        server.drop_connections()
        await channel.send(a_message(2))
        assert [mail["Message-ID"] for mail in server.messages] == [a_message(1).message_id, a_message(2).message_id]
        assert len(server.connections) == 2

    @pytest.mark.parametrize("goodbye", [answer("421 4.4.2 idle too long"), drop])
    async def test_a_goodbye_noticed_only_when_asked_is_replaced(
        self, server: MailServer, channel: Channel, goodbye: Any
    ) -> None:
        await channel.send(a_message(1))
        server.on_rset = goodbye
        await channel.send(a_message(2))
        assert len(server.envelopes) == 2
        assert len(server.connections) == 2

    async def test_idle_for_too_long_is_not_used_again(self, server: MailServer) -> None:
        async with open_channel(server, idle_seconds=0.0) as channel:
            await channel.send(a_message(1))
            await channel.send(a_message(2))
        assert len(server.connections) == 2


class TestInjection:
    @pytest.mark.parametrize(
        "recipient",
        [
            "",
            "nobody",
            "a@example.com\r\nBcc: victim@example.com",
            "a@example.com\nBcc: victim@example.com",
            "a@example.com, victim@example.com",
            "Name <a@example.com>",
            "a@example.com> SIZE=1",
            "a@example.com (comment)",
            "a@example.com\u2028x",
            "jürgen@example.com",
            "@example.com",
            "a@",
        ],
    )
    async def test_a_recipient_that_is_not_one_address_is_undeliverable_and_never_sent(
        self, server: MailServer, channel: Channel, recipient: str
    ) -> None:
        with pytest.raises(Undeliverable, match="INVALID_ADDRESS"):
            await channel.send(a_message(recipient=recipient))
        assert server.connections == []

    @pytest.mark.parametrize("field", ["subject", "message_id"])
    @pytest.mark.parametrize("line_break", ["\r\n", "\n", "\r"])
    async def test_a_header_with_a_line_break_is_refused(
        self, server: MailServer, channel: Channel, field: str, line_break: str
    ) -> None:
        with pytest.raises(Permanent, match="UNSAFE_HEADER"):
            await channel.send(a_message(**{field: f"x{line_break}Bcc: victim@example.com"}))
        assert server.connections == []

    def test_a_sender_that_is_not_one_address_stops_the_start(self, server: MailServer) -> None:
        with pytest.raises(ValueError, match="sender"):
            channel_to(server, sender="Shop")


@pytest.mark.parametrize(
    "arrange",
    [
        lambda server: setattr(server, "on_mail", answer("550 no mail for " + EMAIL)),
        lambda server: setattr(server, "on_rcpt", answer("550 <{address}> unknown")),
        lambda server: setattr(server, "on_rcpt", answer("451 <{address}> greylisted")),
        lambda server: setattr(server, "on_rcpt", drop),
        lambda server: setattr(server, "on_data", answer(f"554 nothing for {EMAIL}")),
        lambda server: setattr(server, "on_data", drop),
    ],
)
async def test_no_failure_tells_the_address(
    server: MailServer, channel: Channel, arrange: Callable[[MailServer], None]
) -> None:
    arrange(server)
    with pytest.raises((Failure, Undeliverable, SendUnknown)) as failed:
        await channel.send(a_message())
    assert failed.value.__context__ is None
    assert EMAIL not in "".join(traceback.format_exception(failed.value))
    assert EMAIL not in repr(a_message())
