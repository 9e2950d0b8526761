"""TLS and login of the e-mail channel."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword

from domain.failures import DependencyDown
from settings import EmailSettings, SettingsError
from tests.channels.builders import a_message
from tests.channels.certificates import make_certificate
from tests.channels.mail_server import mail_server
from tests.channels.test_email import open_channel
from workers.channels.choice import email_channel
from workers.channels.smtp_pool import SmtpServer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost, and the server's side of it."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


async def test_starttls_where_it_is_not_offered_sends_nothing_in_the_clear() -> None:
    async with mail_server() as server, open_channel(server, tls="starttls") as channel:
        with pytest.raises(DependencyDown):
            await channel.send(a_message())
        assert server.envelopes == []


async def test_starttls(certificate: tuple[Path, ssl.SSLContext]) -> None:
    ca_file, context = certificate
    options: dict[str, Any] = {"tls": "starttls", "ca_file": str(ca_file), "host": "localhost"}
    async with (
        mail_server(tls_context=context, require_starttls=True) as server,
        open_channel(server, **options) as channel,
    ):
        await channel.send(a_message(1))
        await channel.send(a_message(2))
        assert len(server.envelopes) == 2
        assert len(server.connections) == 1


async def test_tls_from_the_first_byte(certificate: tuple[Path, ssl.SSLContext]) -> None:
    ca_file, context = certificate
    options: dict[str, Any] = {"tls": "tls", "ca_file": str(ca_file), "host": "localhost"}
    async with mail_server(listen={"ssl": context}) as server, open_channel(server, **options) as channel:
        await channel.send(a_message())
        assert len(server.envelopes) == 1


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_a_certificate_that_nobody_vouches_for_is_refused(
    certificate: tuple[Path, ssl.SSLContext], tls: str
) -> None:
    _, context = certificate
    listen = {"ssl": context} if tls == "tls" else {}
    options = {"tls_context": context} if tls == "starttls" else {}
    async with mail_server(listen=listen, **options) as server:
        async with open_channel(server, tls=tls, host="localhost") as channel:
            with pytest.raises(DependencyDown):
                await channel.send(a_message())
        assert server.envelopes == []


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize("is_trusted", [True, False])
async def test_the_settings_trust_a_private_authority(
    certificate: tuple[Path, ssl.SSLContext], tls: str, is_trusted: bool
) -> None:
    ca_file, context = certificate
    listen = {"ssl": context} if tls == "tls" else {}
    options = {"tls_context": context} if tls == "starttls" else {}
    async with mail_server(listen=listen, **options) as server:
        channel = email_channel(
            EmailSettings(host="localhost", port=server.port, tls=tls, ca_file=str(ca_file) if is_trusted else None)
        )
        try:
            if is_trusted:
                await channel.send(a_message())
            else:
                with pytest.raises(DependencyDown):
                    await channel.send(a_message())
        finally:
            await channel.aclose()
        assert len(server.envelopes) == is_trusted


@pytest.mark.parametrize(
    ("name", "settings"),
    [("CA_FILE", {"tls": "tls", "ca_file": "/no/such/file.pem"}), ("SENDER", {"sender": "Shop"})],
)
def test_settings_that_cannot_be_used_stop_the_start(name: str, settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=f"^ORDERFLOW_EMAIL_{name}: "):
        email_channel(EmailSettings(**settings))


def test_a_file_that_holds_no_certificate_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match=r"^ORDERFLOW_EMAIL_CA_FILE: "):
        email_channel(EmailSettings(tls="tls", ca_file=str(tmp_path / "ca.pem")))


def _only_the_right_password(*arguments: Any) -> AuthResult:
    credentials = arguments[-1]
    assert isinstance(credentials, LoginPassword)
    return AuthResult(success=(credentials.login, credentials.password) == (b"shop", b"right"), handled=False)


@pytest.mark.parametrize(("password", "accepted"), [("right", True), ("wrong", False)])
async def test_login(password: str, accepted: bool) -> None:
    async with (
        mail_server(authenticator=_only_the_right_password, auth_require_tls=False) as server,
        open_channel(server, username="shop", password=password) as channel,
    ):
        if accepted:
            await channel.send(a_message())
        else:
            with pytest.raises(DependencyDown, match="SMTPAuthenticationError 535"):
                await channel.send(a_message())
        assert len(server.envelopes) == accepted


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(SmtpServer(host="mail", port=25, username="shop", password="secret"))
