"""An authority and what it signs, made for one test run."""

import dataclasses
import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_HOUR = datetime.timedelta(hours=1)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """PEM texts, and the serial number that tells two apart."""

    pem: bytes
    key: bytes
    serial: int

    def write(self, folder: pathlib.Path) -> dict[str, str]:
        """Writes the files of a server and returns its settings."""
        certificate, key = folder / "server.pem", folder / "server.key"
        certificate.write_bytes(self.pem)
        key.write_bytes(self.key)
        return {"certificate_file": str(certificate), "key_file": str(key)}


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.pem = _pem(_signed(self._name, self._name, self._key, self._key, authority=True))

    def server(self, host: str = "localhost", *, expired: bool = False) -> Certificate:
        names = [x509.DNSName(host), *([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] * (host == "localhost"))]
        return self._issue(host, names, expired=expired)

    def client(self, common_name: str = "shop", *uris: str, expired: bool = False) -> Certificate:
        return self._issue(common_name, [x509.UniformResourceIdentifier(uri) for uri in uris], expired=expired)

    def _issue(self, common_name: str, names: list[x509.GeneralName], *, expired: bool = False) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _signed(_named(common_name), self._name, key, self._key, names=names, expired=expired)
        return Certificate(_pem(signed), _key_pem(key), signed.serial_number)


def self_signed(common_name: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    signed = _signed(_named(common_name), _named(common_name), key, key)
    return Certificate(_pem(signed), _key_pem(key), signed.serial_number)


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    names: list[x509.GeneralName] | None = None,
    authority: bool = False,
    expired: bool = False,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 48 * _HOUR)
        .not_valid_after(now - _HOUR if expired else now + 24 * _HOUR)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
