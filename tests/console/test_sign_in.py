"""Operators sign in with tokens of their own, and the console does for each what that one may."""

import contextlib
import pathlib
import re
import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx
import pytest

from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.operations.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from server import scopes
from server.authentication import CallerInterceptor
from server.bearer_tokens import Refused
from server.dead_letter_service import DeadLetterService
from server.identity import Caller
from server.interceptors import CallInterceptor
from settings import KafkaSettings, ServerSettings
from tests.console.system import MemoryDeadLetters, Replayed, console
from tests.security.certificates import Authority

CALLERS = {
    "Bearer olga": Caller("olga", frozenset((scopes.OPERATE,))),
    "Bearer shop": Caller("shop", frozenset((scopes.WRITE, scopes.READ))),
}


class Guarded:
    """A server that wants tokens, and what it has."""

    def __init__(self) -> None:
        self.letters = MemoryDeadLetters()
        self.callers = dict(CALLERS)
        self.target = ""

    async def authenticate(self, context: Any) -> Caller:
        given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if len(given) != 1 or given[0] not in self.callers:
            raise Refused("unknown")
        return self.callers[given[0]]


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    made = Guarded()
    server = grpc.aio.server(interceptors=(CallInterceptor(), CallerInterceptor(made.authenticate)))
    service = DeadLetterService(
        letters=made.letters, publisher=Replayed(), kafka=KafkaSettings(), settings=ServerSettings()
    )
    add_DeadLetterServiceServicer_to_server(service, server)
    made.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield made
    await server.stop(1)


@contextlib.asynccontextmanager
async def browser(guarded: Guarded, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Opens a console that is reached from everywhere, as a browser would on this machine."""
    chosen = {"listen": "0.0.0.0:0", "insecure": True, **settings}
    async with console(guarded, **chosen) as url:
        local = url.replace("0.0.0.0", "127.0.0.1")
        async with httpx.AsyncClient(base_url=local, trust_env=False, timeout=30, follow_redirects=True) as client:
            yield client


async def sign_in(client: httpx.AsyncClient, token: str, path: str = "/") -> httpx.Response:
    """Signs in on the way to a page."""
    asked = await client.get(path)
    assert asked.url.path == "/sign-in"
    fields = dict(re.findall(r'name="(csrf|then)" value="([^"]*)"', asked.text))
    return await client.post("/sign-in", data={**fields, "token": token})


async def test_everything_asks_for_a_sign_in(guarded: Guarded) -> None:
    async with browser(guarded) as client:
        for path in ("/live", "/orders/x/live", "/stuck/live", "/plans/x/live"):
            assert (await client.get(path)).status_code == 401, path
        for path in ("/", "/orders", "/orders/x", "/stuck", "/plans/x", "/dead-letters", "/dead-letters/0-0/replay"):
            assert (await client.get(path)).url.path == "/sign-in", path
        assert (await client.get("/livez")).text == "ok\n"


async def test_who_signs_in_acts_under_their_own_name(guarded: Guarded) -> None:
    which = guarded.letters.add(DeadLetter(group="order-processor", error_class="UNDECODABLE", value=b"?"))
    async with browser(guarded) as client:
        shown = await sign_in(client, "olga", f"/dead-letters/{which}")
        assert shown.url.path == f"/dead-letters/{which}", "on to where the way led"
        assert "olga" not in str(client.cookies), "the token stays with the console"
        form = await client.get(f"/dead-letters/{which}/discard")
        [*_, token] = re.findall(r'name="csrf" value="([^"]*)"', form.text)
        done = await client.post(f"/dead-letters/{which}/discard", data={"csrf": token, "reason": "broken bytes"})
        assert "DISCARDED" in done.text
        [entry] = guarded.letters.entries.values()
        assert (entry.resolved_by, entry.resolution_reason) == ("olga", "broken bytes")
        out = await client.post("/sign-out", data={"csrf": token})
        assert out.url.path == "/sign-in"
        assert (await client.get("/dead-letters")).url.path == "/sign-in"


@pytest.mark.parametrize(
    ("token", "status", "text"),
    [
        ("nobody", 403, "does not take this token"),
        ("shop", 403, "needs the scope orders:operate"),
        ("", 422, "is no token"),
        ("a b", 422, "is no token"),
        ("a\r\nb", 422, "is no token"),
    ],
)
async def test_what_opens_nothing_is_refused(guarded: Guarded, token: str, status: int, text: str) -> None:
    async with browser(guarded) as client:
        refused = await sign_in(client, token)
        assert refused.status_code == status
        assert text in refused.text
        assert (await client.get("/")).url.path == "/sign-in"


async def test_a_sign_in_is_a_new_session(guarded: Guarded) -> None:
    async with browser(guarded) as client:
        await client.get("/sign-in")
        before = client.cookies["orderflow-console"]
        await sign_in(client, "olga")
        assert client.cookies["orderflow-console"] != before, "who knew the old one has nothing of the new one"


async def test_a_token_that_ends_ends_the_page(guarded: Guarded) -> None:
    async with browser(guarded) as client:
        await sign_in(client, "olga")
        async with client.stream("GET", "/live") as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            guarded.callers.clear()
            rest = [line async for line in lines]
        assert any("no longer kept up to date" in line for line in rest)
        assert (await client.get("/")).url.path == "/sign-in"


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "x"])
async def test_a_sign_in_leads_to_no_other_site(guarded: Guarded, path: str) -> None:
    async with browser(guarded) as client:
        asked = await client.get("/sign-in", params={"then": path})
        [csrf] = re.findall(r'name="csrf" value="([^"]*)"', asked.text)
        fields = {"csrf": csrf, "token": "olga", "then": path}
        answer = await client.post("/sign-in", data=fields, follow_redirects=False)
        assert answer.headers["location"] == "/"


async def test_the_token_that_it_was_started_with_is_used_on_loopback(guarded: Guarded) -> None:
    guarded.letters.add(DeadLetter(group="order-processor", error_class="UNDECODABLE"))
    async with (
        console(guarded, token="olga") as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client,
    ):
        assert "UNDECODABLE" in (await client.get("/dead-letters")).text
    async with (
        console(guarded, token="shop") as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client,
    ):
        refused = await client.get("/dead-letters")
        assert refused.status_code == 403
        assert "You may not" in refused.text
    async with console(guarded) as url, httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        assert (await client.get("/dead-letters")).headers["location"] == "/sign-in?then=%2Fdead-letters"


async def test_over_tls_the_cookie_is_for_tls_only(guarded: Guarded, tmp_path: pathlib.Path) -> None:
    authority = Authority()
    files = authority.server().write(tmp_path)
    settings = {
        "listen": "0.0.0.0:0",
        "tls_certificate_file": files["certificate_file"],
        "tls_key_file": files["key_file"],
    }
    trust = ssl.create_default_context(cadata=authority.pem.decode())
    async with console(guarded, **settings) as url:
        local = url.replace("0.0.0.0", "localhost")
        async with httpx.AsyncClient(base_url=local, trust_env=False, timeout=30, verify=trust) as client:
            page = await client.get("/sign-in")
    assert page.headers["strict-transport-security"]
    assert page.headers["set-cookie"].startswith("__Host-orderflow-console=")
    assert "Secure" in page.headers["set-cookie"]
