"""Bearer tokens: what holds is let in, and everything else sees one and the same answer."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orderflow.orders.v1.order_pb2 import Order
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest, WatchOrderRequest, WatchOrderResponse
from server import token_keys
from server.bearer_tokens import BearerTokens, Refused
from server.order_watches import OrderWatches
from server.token_keys import KeysUnreadable, TokenKeys
from settings import DatabaseSettings, SettingsError, TokenSettings
from tests import engines
from tests.security import ingress
from tests.security.issuer import AUDIENCE, ISSUER, Issuer, bearer, part
from tests.security.methods import Answer, call, named

GET = GetOrderRequest(order_id="8c5cb6dc-2f4d-4e0c-9d6a-3f0b1e3b4a55")
NOBODY = Answer(grpc.StatusCode.UNAUTHENTICATED)


async def get(channel: grpc.aio.Channel, token: str) -> Answer:
    return await call(channel, named("GetOrder"), GET, bearer(token))


@pytest.mark.parametrize("kid", ["rsa", "ec", "ed"])
async def test_a_token_of_each_kind_of_key_holds(channel: grpc.aio.Channel, issuer: Issuer, kid: str) -> None:
    assert (await get(channel, issuer.token(kid=kid))).code is grpc.StatusCode.NOT_FOUND
    assert (await get(channel, issuer.token(kid=kid, aud=["other", AUDIENCE]))).code is grpc.StatusCode.NOT_FOUND


def signed(issuer: Issuer, header: dict[str, Any], claims: dict[str, Any] | None = None) -> str:
    """Returns a token whose signature is right and whose header is what a forger wants."""
    told = claims or {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": time.time() + 300, "scope": "orders:read"}
    signing = f"{part(header)}.{part(told)}"
    return f"{signing}.{part(issuer.ed.sign(signing.encode()))}"


def unsigned(issuer: Issuer, algorithm: str) -> str:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    return f"{part({'alg': algorithm, 'kid': 'ed'})}.{part(claims)}."


def hmac_of(issuer: Issuer, key: bytes, kid: str) -> str:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    signing = f"{part({'alg': 'HS256', 'kid': kid})}.{part(claims)}"
    digest = jwt.get_algorithm_by_name("HS256").sign(signing.encode(), key)
    return f"{signing}.{part(digest)}"


def tampered(issuer: Issuer) -> str:
    header, _, signature = issuer.token().split(".")
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": time.time() + 300, "scope": "orders:admin"}
    return f"{header}.{part(claims)}.{signature}"


def _with(**changes: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(**changes)


REFUSED: dict[str, Callable[[Issuer], str]] = {
    **{f"alg {each}": (lambda issuer, each=each: unsigned(issuer, each)) for each in ("none", "None", "nOnE", "NONE")},
    "HS256 with the public PEM": lambda issuer: hmac_of(issuer, issuer.rsa_pem, "rsa"),
    "HS256 with the JWK": lambda issuer: hmac_of(
        issuer, json.dumps(json.loads(issuer.jwks)["keys"][0]).encode(), "rsa"
    ),
    "another algorithm of the key": lambda issuer: jwt.encode(
        jwt.decode(issuer.token(), options={"verify_signature": False}),
        issuer.rsa,
        algorithm="PS256",
        headers={"kid": "rsa"},
    ),
    "another key's id": lambda issuer: issuer.token(headers={"kid": "rsa"}),
    "unknown crit": lambda issuer: signed(issuer, {"alg": "EdDSA", "kid": "ed", "crit": ["x"], "x": 1}),
    "b64 crit": lambda issuer: signed(issuer, {"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": False}),
    "a crit that PyJWT understands": lambda issuer: signed(
        issuer, {"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": True}
    ),
    "kid of a path": _with(headers={"kid": "../../../dev/null"}),
    "kid of SQL": _with(headers={"kid": "' or 1=1 --"}),
    "kid of a number": lambda issuer: signed(issuer, {"alg": "EdDSA", "kid": 1}),
    "no kid": lambda issuer: signed(issuer, {"alg": "EdDSA"}),
    "unknown kid": _with(headers={"kid": "other"}),
    "tampered claims": tampered,
    "another issuer's key": lambda _: Issuer().token(),
    "expired": lambda issuer: issuer.token(exp=time.time() - 31),
    "expiry is no number": lambda issuer: signed(
        issuer,
        {"alg": "EdDSA", "kid": "ed"},
        {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "scope": "orders:read", "exp": float("inf")},
    ),
    "not yet": lambda issuer: issuer.token(nbf=time.time() + 61),
    "issued in the future": _with(iat=time.time() + 3600),
    "no exp": _with(without="exp"),
    "no iss": _with(without="iss"),
    "wrong iss": _with(iss="https://issuer.evil"),
    "part of iss": _with(iss=ISSUER[:-1]),
    "more than iss": _with(iss=ISSUER + ".evil"),
    "list of iss": lambda issuer: signed(
        issuer,
        {"alg": "EdDSA", "kid": "ed"},
        {"iss": [ISSUER], "aud": AUDIENCE, "sub": "shop", "exp": time.time() + 300},
    ),
    "no aud": _with(without="aud"),
    "wrong aud": _with(aud="other"),
    "part of aud": _with(aud=AUDIENCE[:-1]),
    "no sub": _with(without="sub"),
    "empty sub": _with(sub=""),
    "sub with a newline": _with(sub="shop\nforged"),
    "sub of another type": lambda issuer: signed(
        issuer,
        {"alg": "EdDSA", "kid": "ed"},
        {"iss": ISSUER, "aud": AUDIENCE, "sub": ["shop"], "exp": time.time() + 300},
    ),
    "scope of another type": _with(scope=["orders:read"]),
    "too long": _with(padding="x" * 9000),
    "deep header": lambda _: f"{part(b'[' * 4000)}.{part({})}.{part(b'x')}",
    "deep claims": lambda issuer: f"{part({'alg': 'EdDSA', 'kid': 'ed'})}.{part(b'[' * 4000)}.{part(b'x')}",
    "encrypted": lambda _: ".".join([part({"alg": "dir", "enc": "A256GCM", "kid": "ed"}), "", "x", "x", "x"]),
    "four parts": lambda issuer: issuer.token() + ".x",
    "no parts": lambda _: "token",
}


@pytest.fixture(scope="module")
async def refusal(guarded: str) -> Answer:
    """What a call without any credential sees."""
    async with ingress.plain(guarded) as channel:
        return await call(channel, named("GetOrder"), GET)


@pytest.mark.parametrize("case", REFUSED)
async def test_everything_else_sees_one_and_the_same_answer(
    channel: grpc.aio.Channel, issuer: Issuer, refusal: Answer, case: str
) -> None:
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert await get(channel, REFUSED[case](issuer)) == refusal


async def test_two_megabytes_are_not_even_looked_at(channel: grpc.aio.Channel, issuer: Issuer) -> None:
    """gRPC refuses them before us: they are more than all metadata may have."""
    answer = await get(channel, issuer.token() + "x" * 2 * 1024 * 1024)
    assert answer.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    assert (await get(channel, issuer.token())).code is grpc.StatusCode.NOT_FOUND


@contextlib.asynccontextmanager
async def web_server(*bodies: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Serves the bodies one after the other, the last one for ever. Yields its address and what was asked for."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        asked.append(request.decode().split(" ")[1])
        body = bodies[min(len(asked), len(bodies)) - 1].encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


async def test_no_url_of_a_token_is_fetched(channel: grpc.aio.Channel, issuer: Issuer, refusal: Answer) -> None:
    stranger = Issuer()
    async with web_server(stranger.jwks) as (url, asked):
        own_key = json.loads(stranger.jwks)["keys"][2]
        for header in ({"jku": url}, {"x5u": url}, {"jwk": own_key}, {"x5c": ["MIIB"]}, {"kid": url, "jku": url}):
            assert await get(channel, stranger.token(headers=header)) == refusal
        assert asked == []


@pytest.mark.parametrize("leeway", [-1, 60.5, 3600])
def test_a_leeway_is_at_most_a_minute(leeway: float) -> None:
    with pytest.raises(ValueError, match="leeway"):
        TokenSettings(leeway=leeway)


async def test_within_the_leeway_a_token_holds(channel: grpc.aio.Channel, issuer: Issuer) -> None:
    assert (await get(channel, issuer.token(exp=time.time() - 10))).code is grpc.StatusCode.NOT_FOUND


async def test_a_token_that_held_before_ends_when_it_expires(tokens: TokenSettings, issuer: Issuer) -> None:
    settings = tokens.model_copy(update={"leeway": 0})
    keys = TokenKeys(settings)
    await keys.open()
    verifier = BearerTokens(settings, keys)
    given_ = [bearer(issuer.token(exp=time.time() + 1.5))[0][1]]
    assert (await verifier.caller(given_)).name == "shop"
    async with asyncio.timeout(10):
        while True:
            try:
                await verifier.caller(given_)
            except Refused:
                break
            await asyncio.sleep(0.05)


async def test_a_stream_ends_when_its_token_expires(
    database_settings: DatabaseSettings,
    tokens: TokenSettings,
    issuer: Issuer,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Answer,
) -> None:
    left = asyncio.Event()

    async def watch(_: object, __: WatchOrderRequest, ___: object) -> AsyncIterator[WatchOrderResponse]:
        try:
            yield WatchOrderResponse(order=Order(order_id=GET.order_id))
            await asyncio.Event().wait()
        finally:
            left.set()

    monkeypatch.setattr(OrderWatches, "watch", watch)
    settings = tokens.model_copy(update={"leeway": 0})
    async with ingress.serving(database_settings, tokens=settings) as address, ingress.plain(address) as channel:
        stub: Any = channel.unary_stream(f"/{named('WatchOrder').path}", response_deserializer=lambda data: data)
        expires = time.time() + 2
        stream = stub(b"", metadata=bearer(issuer.token(exp=expires)), timeout=20)
        assert await stream.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        assert await stream.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await stream.details() == refusal.text
        assert dict(await stream.trailing_metadata())["grpc-status-details-bin"] == refusal.status
        assert -1.1 < time.time() - expires < 5  # exp is whole seconds
        await asyncio.wait_for(left.wait(), 5)


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [b"", b"[]", b"{}", b'{"keys": []}', b'{"keys": [1]}', b'{"keys": {}}', b'{"keys": [{"kty": []}]}', b"[" * 100_000],
)
def test_what_is_no_key_set_is_refused(source: bytes) -> None:
    with pytest.raises(KeysUnreadable):
        token_keys.parse(source, ["RS256", "ES256", "EdDSA"])


def test_keys_that_cannot_be_trusted_are_left_out(issuer: Issuer) -> None:
    rsa, ec, ed = json.loads(issuer.jwks)["keys"]
    left_out = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"},
        {**rsa, "kid": "for encryption", "use": "enc"},
        {**rsa, "kid": "another algorithm", "alg": "RS512"},
        {**ed, "kid": "private", "d": "AAAA"},
        {**ec, "kid": "another curve", "crv": "P-384"},
        {**ed, "kid": "broken", "x": "AAAA"},
        {**rsa, "kid": "short", "n": part(b"\x01" * 128)},
        {key: value for key, value in rsa.items() if key != "kid"},
    ]
    source = json.dumps({"keys": [*left_out, ed]}).encode()
    assert set(token_keys.parse(source, ["RS256", "ES256", "EdDSA"])) == {"ed"}
    assert set(token_keys.parse(issuer.jwks.encode(), ["ES256"])) == {"ec"}


async def test_a_file_that_is_no_key_set_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text("secret-that-nobody-shall-see")
    with pytest.raises(SettingsError, match="JWKS_FILE: is no JSON Web Key Set") as refused:
        await TokenKeys(TokenSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(path))).open()
    assert "secret" not in str(refused.value)


async def opened(url: str) -> tuple[TokenKeys, BearerTokens]:
    """Returns the keys at the address, read, and who checks tokens with them."""
    settings = TokenSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=url)
    keys = TokenKeys(settings)
    await keys.open()
    return keys, BearerTokens(settings, keys)


async def test_new_keys_are_fetched_when_a_token_names_one_and_not_more_often(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    successor = Issuer()
    both = [*json.loads(issuer.jwks)["keys"][:2], {**json.loads(successor.jwks)["keys"][2], "kid": "next"}]
    async with web_server(issuer.jwks, json.dumps({"keys": both})) as (url, asked):
        _, verifier = await opened(f"{url}/jwks")
        old = [bearer(issuer.token())[0][1]]
        assert (await verifier.caller(old)).name == "shop"
        stranger = [bearer(successor.token(headers={"kid": "next"}))[0][1]]
        for _ in range(20):
            with pytest.raises(Refused):
                await verifier.caller(stranger)
        assert asked == ["/jwks"], "unknown keys are anybody's to make up"
        monkeypatch.setattr(token_keys, "_UNKNOWN_KEY_SECONDS", 0)
        assert (await verifier.caller(stranger)).name == "shop"
        assert len(asked) == 2
        with pytest.raises(Refused):  # its key was withdrawn, and what was remembered of it went along
            await verifier.caller(old)


async def test_a_set_that_was_emptied_withdraws_its_last_key(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_keys, "_UNKNOWN_KEY_SECONDS", 0)
    async with web_server(issuer.jwks, '{"keys": []}') as (url, _):
        keys, verifier = await opened(f"{url}/jwks")
        ours = [bearer(issuer.token())[0][1]]
        assert (await verifier.caller(ours)).name == "shop"
        assert await keys.find("a key that nobody knows, so that the set is read again") is None
        assert not keys.is_ready
        with pytest.raises(Refused):
            await verifier.caller(ours)


async def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    async with web_server(issuer.jwks) as (elsewhere, asked):

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            location = f"Location: {elsewhere}/\r\nContent-Length: 0\r\n"
            writer.write(f"HTTP/1.1 302 Found\r\nConnection: close\r\n{location}\r\n".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        keys = TokenKeys(TokenSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=url))
        await keys.open()
        server.close()
        assert not keys.is_ready
        assert asked == []


async def test_keys_that_were_away_at_the_start_are_read_later(issuer: Issuer) -> None:
    async with web_server("not yet", issuer.jwks) as (url, _):
        keys = TokenKeys(TokenSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=f"{url}/"))
        await keys.open()
        assert not keys.is_ready
        reading = asyncio.create_task(keys.run())
        await engines.eventually(lambda: keys.is_ready, "the keys are there")
        reading.cancel()


@pytest.mark.parametrize(
    "url", ["http://issuer.example/jwks", "file:///etc/passwd", "http://127.0.0.1:1@evil.example/", "ftp://x/"]
)
def test_a_url_that_anybody_could_answer_for_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="jwks_url"):
        TokenSettings(jwks_url=url)


@pytest.fixture(scope="module")
async def keys(tokens: TokenSettings) -> TokenKeys:
    keys = TokenKeys(tokens)
    await keys.open()
    return keys


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    header=st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "jku", "b64"]),
        st.one_of(
            st.sampled_from(["EdDSA", "ed", "rsa", "none", "RS256"]), st.integers(), st.none(), st.lists(st.text())
        ),
    ),
    claims=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "sub", "aud"]), inner),
    ),
    good=st.booleans(),
)
async def test_no_token_breaks_the_check(
    keys: TokenKeys, tokens: TokenSettings, issuer: Issuer, header: dict[str, Any], claims: Any, good: bool
) -> None:
    """Signed claims of any shape: they hold or are refused, nothing else is raised."""
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": time.time() + 300}
    told = {**base, **claims} if isinstance(claims, dict) else claims
    token = signed(issuer, {"alg": "EdDSA", "kid": "ed"} if good else header, told)
    with contextlib.suppress(Refused):
        await BearerTokens(tokens, keys).caller([f"Bearer {token}"])
