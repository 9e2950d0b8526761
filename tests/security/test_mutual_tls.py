"""Callers by their client certificate, and the server's own certificate being renewed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import structlog
from cryptography import x509

from orderflow.orders.v1.order_service_pb2 import GetOrderRequest
from server import identity
from settings import ClientCertificateSettings, DatabaseSettings, TlsSettings, TokenSettings
from tests import engines
from tests.builders import an_id
from tests.security import ingress
from tests.security.certificates import Authority, Certificate, self_signed
from tests.security.issuer import Issuer, bearer
from tests.security.methods import Answer, call, named

GET = GetOrderRequest(order_id="8c5cb6dc-2f4d-4e0c-9d6a-3f0b1e3b4a55")
PROD = "spiffe://prod.example"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    """The settings of a server that wants client certificates of the authority."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.pem").write_bytes(authority.pem)
    return TlsSettings(**authority.server().write(folder), client_ca_file=str(folder / "ca.pem"))


@pytest.fixture(scope="module")
async def mutual(database_settings: DatabaseSettings, tls: TlsSettings) -> AsyncIterator[str]:
    """Where a server listens that knows callers by their SPIFFE ids."""
    certificates = ClientCertificateSettings(trust_domain="prod.example", operators=f"{PROD}/operator")
    async with ingress.serving(database_settings, tls=tls, client_certificates=certificates) as address:
        yield address


async def get(address: str, authority: Authority, client: Certificate | None) -> Answer:
    key, certificate = (client.key, client.pem) if client else (None, None)
    async with ingress.over_tls(address, authority.pem, key, certificate) as channel:
        return await call(channel, named("GetOrder"), GET)


async def test_a_certificate_of_the_trust_domain_is_let_in(mutual: str, authority: Authority) -> None:
    assert (await get(mutual, authority, authority.client("x", f"{PROD}/shop"))).code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("kind", ["none", "self-signed", "expired", "another authority"])
async def test_a_certificate_that_does_not_hold_ends_the_handshake(
    mutual: str, authority: Authority, kind: str
) -> None:
    client = {
        "none": None,
        "self-signed": self_signed("shop"),
        "expired": authority.client("x", f"{PROD}/shop", expired=True),
        "another authority": Authority().client("x", f"{PROD}/shop"),
    }[kind]
    answer = await get(mutual, authority, client)
    assert (answer.code, answer.status) == (grpc.StatusCode.UNAVAILABLE, b"")


@pytest.mark.parametrize(
    "uris",
    [
        ("spiffe://prod.example.evil/x",),
        ("spiffe://evil.prod.example/x",),
        ("spiffe://prod-example/x",),
        ("https://prod.example/x",),
        ("spiffe://prod.example",),
        ("spiffe://evil/spiffe://prod.example/x",),
        (f"{PROD}/shop", f"{PROD}/operator"),
        (),
    ],
)
async def test_the_trust_domain_is_exact(mutual: str, authority: Authority, uris: tuple[str, ...]) -> None:
    answer = await get(mutual, authority, authority.client(f"{PROD}/operator", *uris))
    assert (answer.code, answer.text) == (grpc.StatusCode.UNAUTHENTICATED, "the call needs a valid credential")


async def test_scopes_of_certificates_come_from_the_settings(mutual: str, authority: Authority) -> None:
    for name, code in (("shop", grpc.StatusCode.PERMISSION_DENIED), ("operator", grpc.StatusCode.OK)):
        client = authority.client("x", f"{PROD}/{name}")
        async with ingress.over_tls(mutual, authority.pem, client.key, client.pem) as channel:
            assert (await call(channel, named("SummarizeDeadLetters"))).code is code


async def test_a_token_says_more_than_a_certificate(
    database_settings: DatabaseSettings, tls: TlsSettings, tokens: TokenSettings, authority: Authority, issuer: Issuer
) -> None:
    """With tokens and client certificates a call needs both, and is the token's."""
    client = authority.client("operator")
    certificates = ClientCertificateSettings(operators="operator")
    async with (
        ingress.serving(database_settings, tls=tls, tokens=tokens, client_certificates=certificates) as address,
        ingress.over_tls(address, authority.pem, client.key, client.pem) as channel,
    ):
        summary = named("SummarizeDeadLetters")
        assert (await call(channel, summary)).code is grpc.StatusCode.UNAUTHENTICATED
        assert (await call(channel, summary, b"", bearer(issuer.token()))).code is grpc.StatusCode.PERMISSION_DENIED
        assert (await get(address, authority, None)).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("names", "caller"),
    [
        ([b"shop"], "shop"),
        ([], None),
        ([b"shop", b"operator"], None),
        ([b""], None),
        ([b"shop\x00.evil"], None),
        ([b"shop evil"], None),
        ([b"x" * 129], None),
        ([b"\xff"], None),
    ],
)
def test_a_common_name_is_a_name_or_nothing(names: list[bytes], caller: str | None) -> None:
    assert identity.certificate_name({"x509_common_name": names}, None) == caller


# -- the server's certificate ------------------------------------------------------------------------------------------


async def serial_seen(address: str) -> int:
    port = int(address.rpartition(":")[2])
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("localhost", port), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def until_seen(address: str, certificate: Certificate) -> None:
    async with asyncio.timeout(10):
        while await serial_seen(address) != certificate.serial:
            pass  # each look connects anew, which is when the server looks at its files


async def test_a_certificate_is_renewed_under_load_and_no_call_fails(
    database_settings: DatabaseSettings, tmp_path: Path, authority: Authority
) -> None:
    first, second = authority.server(), authority.server()
    tls = TlsSettings(**first.write(tmp_path))
    answers: list[Answer] = []
    stop = asyncio.Event()

    async def calls(address: str, *, connect_anew: bool) -> None:
        while not stop.is_set():
            async with ingress.over_tls(address, authority.pem) as channel:
                while not stop.is_set():
                    answers.append(await call(channel, named("GetOrder"), GetOrderRequest(order_id=an_id())))
                    if connect_anew:
                        break

    async with ingress.serving(database_settings, tls=tls) as address:
        load = [asyncio.create_task(calls(address, connect_anew=anew)) for anew in (False, True, True)]
        await engines.eventually(lambda: len(answers) > 20, "calls are under way")
        assert await serial_seen(address) == first.serial
        second.write(tmp_path)
        await until_seen(address, second)
        enough = len(answers) + 20
        await engines.eventually(lambda: len(answers) > enough, "calls go on")
        stop.set()
        await asyncio.gather(*load)
    assert {answer.code for answer in answers} == {grpc.StatusCode.NOT_FOUND}


@pytest.mark.parametrize("damage", ["half a certificate", "another's key", "half a key", "no key", "no authority"])
async def test_files_that_are_half_written_change_nothing(
    database_settings: DatabaseSettings, tmp_path: Path, authority: Authority, damage: str
) -> None:
    first, second = authority.server(), authority.server()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    tls = TlsSettings(**first.write(tmp_path), client_ca_file=str(tmp_path / "ca.pem"))
    client = authority.client()
    async with ingress.serving(database_settings, tls=tls) as address:
        if damage == "half a certificate":
            (tmp_path / "server.pem").write_bytes(second.pem[:200])
        elif damage == "another's key":
            (tmp_path / "server.key").write_bytes(second.key)
        elif damage == "half a key":
            (tmp_path / "server.key").write_bytes(first.key[:60])
        elif damage == "no key":
            (tmp_path / "server.key").unlink()
        else:
            (tmp_path / "ca.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n")
        with structlog.testing.capture_logs() as told:
            assert (await get(address, authority, client)).code is grpc.StatusCode.NOT_FOUND
        assert "server.certificate.refused" in {each["event"] for each in told}
        second.write(tmp_path)
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        await until_seen(address, second)
        assert (await get(address, authority, client)).code is grpc.StatusCode.NOT_FOUND
