"""Text messages through a provider, over real HTTP: what each answer means."""

import asyncio
import contextlib
import datetime
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from domain.failures import DependencyDown, Failure, Transient
from orderflow.orders.v1.order_pb2 import NotificationChannel
from settings import SettingsError, SmsSettings
from tests.channels.builders import EVENT_ID, PHONE, a_message, an_event, renderer
from tests.channels.certificates import make_certificate
from workers.channels.channel import Channel, Message, SendUnknown, Undeliverable
from workers.channels.choice import sms_channel
from workers.channels.sms import FolderSmsChannel
from workers.channels.sms_http import HttpSmsChannel

TOKEN = "topsecret"
Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Provider:
    """A stand-in for a provider: notes what it is asked, and answers as a test tells it to."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[tuple[web.Request, Any]] = []
        self.respond: Respond = answer(202, {"id": "SM-1"})
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/messages"

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request, await request.json()))
        return await self.respond(request)


def answer(status: int, body: Any = None, **headers: str) -> Respond:
    """Answers with JSON, or with the text that the body is."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def respond(_: web.Request) -> web.StreamResponse:
        if isinstance(body, str):
            return web.Response(status=status, text=body, headers=named)
        return web.json_response(body, status=status, headers=named)

    return respond


async def drop(request: web.Request) -> web.StreamResponse:
    """Breaks the connection instead of answering."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()  # goes nowhere


async def stay_silent(_: web.Request) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError


async def break_off(request: web.Request, status: int) -> web.StreamResponse:
    """Breaks the connection amid the answer's body."""
    response = web.StreamResponse(status=status, headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"id": "SM-1"}')
    assert request.transport is not None
    request.transport.close()
    return response


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[HttpSmsChannel]:
    channel = HttpSmsChannel(url, **({"token": TOKEN, "send_limit_seconds": 10.0} | options))
    try:
        yield channel
    finally:
        await channel.aclose()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    running = Provider()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def channel(provider: Provider) -> AsyncIterator[HttpSmsChannel]:
    async with opened(provider.url) as channel:
        yield channel


def an_sms(**fields: Any) -> Message:
    defaults = {"recipient": PHONE, "subject": "", "html": None, "text": "Bezahlt: Größe 39.98 EUR\n"}
    return a_message(**(defaults | {"message_id": "<1.sms@shop.example>"} | fields))


class TestAccepted:
    async def test_the_request_is_as_its_page_says(self, provider: Provider, channel: Channel) -> None:
        message = renderer().render(an_event(language="de"), NotificationChannel.NOTIFICATION_CHANNEL_SMS)

        assert await channel.send(message) == "SM-1"

        [(request, body)] = provider.requests
        reference = f"{EVENT_ID}.sms@shop.example"
        assert (request.method, request.path) == ("POST", "/messages")
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.headers["Idempotency-Key"] == reference
        assert request.content_type == "application/json"
        assert body == {"to": PHONE, "text": message.text.strip(), "reference": reference}

    async def test_a_repeat_has_the_same_key_and_another_message_another(
        self, provider: Provider, channel: Channel
    ) -> None:
        for number in (1, 1, 2):
            await channel.send(an_sms(message_id=f"<{number}.sms@shop.example>"))
        keys = [request.headers["Idempotency-Key"] for request, _ in provider.requests]
        assert keys == ["1.sms@shop.example", "1.sms@shop.example", "2.sms@shop.example"]

    async def test_no_message_id_becomes_a_header_of_its_own(self, provider: Provider, channel: Channel) -> None:
        await channel.send(an_sms(message_id="<1.sms@shöp\r\nX-Evil: 1>"))
        [(request, _)] = provider.requests
        assert "X-Evil" not in request.headers
        assert request.headers["Idempotency-Key"] == "1.sms@sh%C3%B6p%0D%0AX-Evil%3A%201"

    @pytest.mark.parametrize("status", [200, 201, 202])
    @pytest.mark.parametrize(("told", "identifier"), [("SM-1", "SM-1"), (4711, "4711"), ("x" * 200, "x" * 200)])
    async def test_any_2xx_with_an_id(
        self, provider: Provider, channel: Channel, status: int, told: object, identifier: str
    ) -> None:
        provider.respond = answer(status, {"id": told, "more": [1]})
        assert await channel.send(an_sms()) == identifier

    async def test_messages_share_a_connection(self, provider: Provider, channel: Channel) -> None:
        for _ in range(3):
            await channel.send(an_sms())
        assert len({id(request.transport) for request, _ in provider.requests}) == 1


class TestRefused:
    @pytest.mark.parametrize("status", [400, 410, 422])
    @pytest.mark.parametrize(("body", "identifier"), [({"id": "SM-9"}, "SM-9"), ("no such number", "")])
    async def test_the_message_for_good_is_undeliverable(
        self, provider: Provider, channel: Channel, status: int, body: Any, identifier: str
    ) -> None:
        provider.respond = answer(status, body)
        with pytest.raises(Undeliverable) as refused:
            await channel.send(an_sms())
        assert (refused.value.reason, refused.value.provider_message_id) == (f"SMS_{status}", identifier)

    @pytest.mark.parametrize(
        "recipient", ["", "0170 1234567", "+49170123\r\nX-Evil: 1", "+0123456789", "+49170123456789012"]
    )
    async def test_what_is_no_phone_number_is_never_sent(
        self, provider: Provider, channel: Channel, recipient: str
    ) -> None:
        with pytest.raises(Undeliverable, match="INVALID_PHONE_NUMBER"):
            await channel.send(an_sms(recipient=recipient))
        assert provider.requests == []

    @pytest.mark.parametrize("status", [402, 408, 409, 413, 425, 500, 501, 507])
    async def test_the_message_for_now_is_transient(self, provider: Provider, channel: Channel, status: int) -> None:
        provider.respond = answer(status, {"id": "SM-1"})
        with pytest.raises(Transient) as refused:
            await channel.send(an_sms())
        assert refused.value.error_class == f"SMS_{status}"

        provider.respond = answer(200, {"id": "SM-1"})
        assert await channel.send(an_sms()) == "SM-1"


class TestAway:
    @pytest.mark.parametrize("status", [401, 403, 404, 405, 407, 429, 502, 503])
    async def test_a_door_that_turns_everything_away_is_down(
        self, provider: Provider, channel: Channel, status: int
    ) -> None:
        provider.respond = answer(status, {"id": "SM-1"})
        with pytest.raises(DependencyDown) as down:
            await channel.send(an_sms())
        assert (down.value.dependency, down.value.retry_after) == ("sms", None)

    async def test_a_redirect_is_down_and_not_followed(self, provider: Provider, channel: Channel) -> None:
        provider.respond = answer(307, {"id": "SM-1"}, Location="/elsewhere")
        with pytest.raises(DependencyDown):
            await channel.send(an_sms())
        assert [request.path for request, _ in provider.requests] == ["/messages"]

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("7", 7.0),
            ("999999999", 3600.0),
            ("9" * 30, None),
            ("0", None),
            ("-5", None),
            ("soon", None),
            ("", None),
            ("Sat, 01 Jan 2000 00:00:00 GMT", None),
            ("Sat, 01 Jan 2000 00:00:00 -0000", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ],
    )
    async def test_retry_after_is_honoured_within_reason(
        self, provider: Provider, channel: Channel, status: int, header: str, seconds: float | None
    ) -> None:
        provider.respond = answer(status, None, Retry_After=header)
        with pytest.raises(DependencyDown) as down:
            await channel.send(an_sms())
        assert down.value.retry_after == seconds

    async def test_retry_after_may_be_a_date(self, provider: Provider, channel: Channel) -> None:
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=600)
        provider.respond = answer(503, None, Retry_After=format_datetime(at, usegmt=True))
        with pytest.raises(DependencyDown) as down:
            await channel.send(an_sms())
        assert down.value.retry_after is not None
        assert 500 < down.value.retry_after <= 600

    async def test_refused_connections_are_down_and_it_comes_back(self) -> None:
        provider = Provider()
        await provider.start()
        await provider.stop()
        async with opened(provider.url) as channel:
            with pytest.raises(DependencyDown):
                await channel.send(an_sms())

            await provider.start()
            assert await channel.send(an_sms()) == "SM-1"
        await provider.stop()

    async def test_a_connection_closed_between_two_messages_is_replaced(
        self, provider: Provider, channel: Channel
    ) -> None:
        await channel.send(an_sms())
        await provider.stop()
        await provider.start()
        assert await channel.send(an_sms()) == "SM-1"
        assert len(provider.requests) == 2

    async def test_a_connection_that_is_not_made_within_the_limit_is_down(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel takes it, and nobody shakes hands
            url = f"https://localhost:{listener.getsockname()[1]}/"
            async with opened(url, send_limit_seconds=1.0) as channel:
                with pytest.raises(DependencyDown):
                    await channel.send(an_sms())


class TestUnknown:
    @pytest.mark.parametrize("body", [None, [], "<html>OK</html>", "", "[" * 60_000])
    async def test_a_2xx_that_is_no_answer(self, provider: Provider, channel: Channel, body: Any) -> None:
        provider.respond = answer(200, body)
        with pytest.raises(SendUnknown):
            await channel.send(an_sms())

    @pytest.mark.parametrize(
        "identifier", [None, "", True, 1.5, ["SM-1"], "SM 1", "SM-1\n", "SM-\0", "\ud800", "ä", "x" * 201]
    )
    async def test_a_2xx_whose_id_is_none(self, provider: Provider, channel: Channel, identifier: object) -> None:
        provider.respond = answer(200, {"id": identifier})
        with pytest.raises(SendUnknown):
            await channel.send(an_sms())

    async def test_a_2xx_without_an_end(self, provider: Provider, channel: Channel) -> None:
        provider.respond = answer(200, {"pad": "x" * 70_000, "id": "SM-1"})
        with pytest.raises(SendUnknown):
            await channel.send(an_sms())

    async def test_a_2xx_that_is_cut_off(self, provider: Provider, channel: Channel) -> None:
        provider.respond = lambda request: break_off(request, 200)
        with pytest.raises(SendUnknown):
            await channel.send(an_sms())

    async def test_a_refusal_that_is_cut_off_is_one(self, provider: Provider, channel: Channel) -> None:
        provider.respond = lambda request: break_off(request, 422)
        with pytest.raises(Undeliverable):
            await channel.send(an_sms())

    async def test_a_gateway_that_waited_in_vain(self, provider: Provider, channel: Channel) -> None:
        provider.respond = answer(504, {"id": "SM-1"})
        with pytest.raises(SendUnknown):
            await channel.send(an_sms())

    async def test_dropped_after_the_request(self, provider: Provider, channel: Channel) -> None:
        provider.respond = drop
        with pytest.raises(SendUnknown):
            await channel.send(an_sms())
        assert len(provider.requests) == 1, "it was not sent again"

    async def test_no_answer_within_the_limit(self, provider: Provider) -> None:
        provider.respond = stay_silent
        async with opened(provider.url, send_limit_seconds=1.0) as channel:
            with pytest.raises(SendUnknown):
                await channel.send(an_sms())
            provider.respond = answer(200, {"id": "SM-1"})
            assert await channel.send(an_sms()) == "SM-1"
        first, second = (request.headers["Idempotency-Key"] for request, _ in provider.requests)
        assert first == second


@pytest.mark.parametrize(
    "respond",
    [
        answer(401, f"{TOKEN} is not ours"),
        answer(422, {"id": PHONE, "error": f"{PHONE} is unknown"}),
        answer(500, f"{PHONE} and {TOKEN}"),
        answer(503, f"{PHONE}", Retry_After=PHONE),
        answer(200, f"{PHONE}"),
        drop,
    ],
)
async def test_no_failure_tells_the_number_or_the_token(provider: Provider, channel: Channel, respond: Respond) -> None:
    provider.respond = respond
    with pytest.raises((Failure, Undeliverable, SendUnknown)) as failed:
        await channel.send(an_sms())
    assert failed.value.__context__ is None
    told = "".join(traceback.format_exception(failed.value))
    assert PHONE not in told
    assert TOKEN not in told


class TestSettings:
    @pytest.mark.parametrize("is_trusted", [True, False])
    async def test_a_private_authority(self, tmp_path: Path, is_trusted: bool) -> None:
        ca_file, context = make_certificate(tmp_path)
        provider = Provider()
        await provider.start(tls=context)
        channel = sms_channel(
            SmsSettings(
                kind="http",
                url=provider.url.replace("http:", "https:"),
                token=TOKEN,
                ca_file=str(ca_file) if is_trusted else None,
            )
        )
        try:
            if is_trusted:
                assert await channel.send(an_sms()) == "SM-1"
            else:
                with pytest.raises(DependencyDown):
                    await channel.send(an_sms())
        finally:
            await channel.aclose()
            await provider.stop()
        assert len(provider.requests) == is_trusted

    def test_the_default_is_a_folder(self) -> None:
        assert isinstance(sms_channel(SmsSettings()), FolderSmsChannel)

    @pytest.mark.parametrize(
        ("name", "changed"),
        [("CA_FILE", {"ca_file": "/no/such/file.pem"}), ("URL", {"url": "https://sms.example:port/"})],
    )
    def test_what_cannot_be_used_stops_the_start(self, name: str, changed: dict[str, str]) -> None:
        with pytest.raises(SettingsError, match=f"^ORDERFLOW_SMS_{name}: "):
            sms_channel(SmsSettings(**({"kind": "http", "url": "https://sms.example/", "token": TOKEN} | changed)))
