"""When the server's certificate ends is shown from when it is loaded, and anew whenever it is renewed."""

import math
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client import REGISTRY

from server.tls import CertificateFiles, CertificateUnusable
from settings import TlsSettings
from telemetry import metrics
from tests.security.certificates import Authority


def shown() -> float | None:
    return REGISTRY.get_sample_value("orderflow_server_certificate_expiry_timestamp_seconds")


def ends(pem: bytes) -> float:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


@pytest.fixture
def authority() -> Authority:
    metrics.CERTIFICATE_EXPIRY.set(math.nan)
    return Authority()


def test_it_is_the_end_of_the_certificate_that_is_served(authority: Authority, tmp_path: Path) -> None:
    first, second = authority.server(), authority.server()
    files = CertificateFiles(TlsSettings(**first.write(tmp_path)))
    files.load()
    assert shown() == ends(first.pem)
    metrics.CERTIFICATE_EXPIRY.set(1)
    assert files.renewed() is None
    assert shown() == 1, "nothing was read"
    (tmp_path / "server.pem").write_bytes(second.pem)
    assert files.renewed() is None
    assert shown() == 1, "it has another's key, and the last one is still served"
    second.write(tmp_path)
    assert files.renewed() is not None
    assert shown() == ends(second.pem)


def test_of_a_chain_the_first_end_counts(authority: Authority, tmp_path: Path) -> None:
    certificate, older = authority.server(), authority.client(expired=True).pem
    settings = TlsSettings(**certificate.write(tmp_path))
    (tmp_path / "server.pem").write_bytes(certificate.pem + older)
    CertificateFiles(settings).load()
    assert ends(older) < ends(certificate.pem)
    assert shown() == ends(older)


def test_what_cannot_be_served_shows_nothing(authority: Authority, tmp_path: Path) -> None:
    settings = TlsSettings(**authority.server().write(tmp_path))
    (tmp_path / "server.key").write_bytes(authority.server().key)
    with pytest.raises(CertificateUnusable):
        CertificateFiles(settings).load()
    value = shown()
    assert value is not None
    assert math.isnan(value)


def test_an_end_that_cannot_be_read_keeps_nobody_from_serving(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: bytes) -> list[x509.Certificate]:
        raise ValueError("told to")

    monkeypatch.setattr(x509, "load_pem_x509_certificates", unreadable)
    metrics.CERTIFICATE_EXPIRY.set(1)
    CertificateFiles(TlsSettings(**authority.server().write(tmp_path))).load()
    value = shown()
    assert value is not None
    assert math.isnan(value), "not the end of the last one"
