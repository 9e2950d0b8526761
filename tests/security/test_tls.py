"""What the TLS port refuses, and what the server refuses to start with."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from server import listener
from settings import (
    ClientCertificateSettings,
    DatabaseSettings,
    ServerSettings,
    SettingsError,
    TlsSettings,
    TokenSettings,
)
from tests.security import ingress
from tests.security.certificates import Authority
from tests.security.methods import call, named


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
async def secure(
    database_settings: DatabaseSettings, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """Where a server listens with TLS and without authentication."""
    files = authority.server().write(tmp_path_factory.mktemp("tls"))
    async with ingress.serving(database_settings, tls=TlsSettings(**files)) as address:
        yield address


def connect(address: str, **options: Any) -> tuple[str | None, bytes]:
    """Shakes hands as told, and returns the version and what the server says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(options.get("ciphers", "ALL:@SECLEVEL=0"))
    context.minimum_version = options.get("least", ssl.TLSVersion.TLSv1_2)
    context.maximum_version = options.get("most", ssl.TLSVersion.TLSv1_3)
    if options.get("alpn", True):
        context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        return wrapped.version(), wrapped.recv(9)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(secure: str, version: ssl.TLSVersion) -> None:
    spoken, frame = await asyncio.to_thread(connect, secure, least=version, most=version)
    assert spoken == version.name.replace("_", ".")
    assert frame[3] == 4, "a SETTINGS frame"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_older_versions_are_refused(secure: str, version: str) -> None:
    old = ssl.TLSVersion[version]
    with pytest.raises(ssl.SSLError) as refused:
        await asyncio.to_thread(connect, secure, least=old, most=old)
    assert "NO_PROTOCOLS" not in str(refused.value), "it is the server that refuses, and not our side that cannot"


async def test_a_null_cipher_is_refused(secure: str) -> None:
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(connect, secure, most=ssl.TLSVersion.TLSv1_2, ciphers="eNULL:@SECLEVEL=0")


async def test_without_alpn_nothing_is_said(secure: str) -> None:
    try:
        _, frame = await asyncio.to_thread(connect, secure, alpn=False)
    except OSError:
        return
    assert frame == b""


async def test_a_plaintext_client_is_refused(secure: str) -> None:
    async with ingress.plain(secure) as channel:
        answer = await call(channel, named("SummarizeDeadLetters"))
    assert (answer.code, answer.status) == (grpc.StatusCode.UNAVAILABLE, b"")


async def test_a_client_refuses_a_server_of_another_name_or_authority_and_one_without_tls(
    database_settings: DatabaseSettings, authority: Authority, secure: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = authority.server("elsewhere.example").write(tmp_path_factory.mktemp("elsewhere"))
    async with (
        ingress.serving(database_settings, tls=TlsSettings(**files)) as elsewhere,
        ingress.serving(database_settings) as unprotected,
    ):
        for address, trusted in ((elsewhere, authority.pem), (secure, Authority().pem), (unprotected, authority.pem)):
            async with ingress.over_tls(address, trusted) as channel:
                answer = await call(channel, named("SummarizeDeadLetters"))
            assert (answer.code, answer.status) == (grpc.StatusCode.UNAVAILABLE, b"")
        async with ingress.over_tls(secure, authority.pem) as channel:
            assert (await call(channel, named("SummarizeDeadLetters"))).code is grpc.StatusCode.OK


# -- at the start ------------------------------------------------------------------------------------------------------

TLS = TlsSettings(certificate_file="server.pem", key_file="server.key")
MUTUAL = TlsSettings(certificate_file="server.pem", key_file="server.key", client_ca_file="ca.pem")
TOKENS = TokenSettings(issuer="https://issuer.example", audience="orderflow", jwks_file="jwks.json")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "orders.example", "127.0.0.1.evil.example"])
@pytest.mark.parametrize(
    ("sections", "missing"),
    [
        ({}, "nobody has to prove who they are .* and orders and credentials travel in the clear"),
        ({"tls": TLS}, "nobody has to prove who they are"),
        ({"tokens": TOKENS}, "orders and credentials travel in the clear"),
    ],
    ids=["nothing", "TLS alone", "tokens in the clear"],
)
def test_off_loopback_is_refused_without(host: str, sections: dict[str, Any], missing: str) -> None:
    server = ServerSettings(listen=f"{host}:50051")
    with pytest.raises(SettingsError, match=rf"ORDERFLOW_SERVER_LISTEN: .* is reachable by others, and {missing}"):
        listener.check(ingress.settings(server=server, **sections))
    insecure = server.model_copy(update={"insecure": True})
    listener.check(ingress.settings(server=insecure, **sections))


@pytest.mark.parametrize(
    ("address", "sections"),
    [
        ("0.0.0.0:50051", {"tls": TLS, "tokens": TOKENS}),
        ("0.0.0.0:50051", {"tls": MUTUAL}),
        ("127.0.0.1:50051", {}),
        ("localhost:50051", {"tokens": TOKENS}),
        ("[::1]:50051", {}),
    ],
)
def test_what_is_protected_or_on_loopback_may_start(address: str, sections: dict[str, Any]) -> None:
    listener.check(ingress.settings(server=ServerSettings(listen=address), **sections))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"tls": TlsSettings(certificate_file="x")}, "TLS_KEY_FILE: one needs the other"),
        ({"tls": TlsSettings(key_file="x")}, "TLS_KEY_FILE: one needs the other"),
        ({"tls": TlsSettings(client_ca_file="x")}, "TLS_CLIENT_CA_FILE: needs"),
        ({"client_certificates": ClientCertificateSettings(trust_domain="x")}, "MTLS_...: needs"),
        ({"client_certificates": ClientCertificateSettings(operators="x")}, "MTLS_...: needs"),
        ({"tokens": TokenSettings(issuer="x", jwks_file="x")}, "TOKEN_AUDIENCE: tokens need both"),
        ({"tokens": TokenSettings(audience="x", jwks_file="x")}, "TOKEN_AUDIENCE: tokens need both"),
        ({"tokens": TokenSettings(issuer="x", audience="x")}, "TOKEN_JWKS_URL: tokens need one"),
        ({"tokens": TokenSettings(jwks_file="x")}, "TOKEN_AUDIENCE: tokens need both"),
        (
            {"tokens": TokenSettings(issuer="x", audience="x", jwks_file="x", jwks_url="https://x/")},
            "TOKEN_JWKS_URL: tokens need one",
        ),
    ],
)
def test_settings_that_do_not_go_together_stop_the_start(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        listener.check(ingress.settings(**sections))


async def test_a_certificate_that_cannot_be_used_stops_the_start(
    database_settings: DatabaseSettings, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    files = authority.server().write(folder)
    (folder / "server.key").write_bytes(authority.server().key)
    with pytest.raises(SettingsError, match="KEY_VALUES_MISMATCH"):
        async with ingress.serving(database_settings, tls=TlsSettings(**files)):
            pass
