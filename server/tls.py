"""TLS of the gRPC server. Certificates that are renewed on disk are used for new connections, without a restart."""

import math
import pathlib
import ssl

import grpc
from cryptography import x509

from settings import SettingsError, TlsSettings
from telemetry import logs, metrics

log = logs.get()

_Stamp = tuple[tuple[int, int, int], ...]


class CertificateUnusable(Exception):
    """The files are missing, half-written, or do not belong together."""


def credentials(settings: TlsSettings) -> grpc.ServerCredentials:
    """Returns what the server listens with: TLS, and mutual TLS if there is a file of client authorities.

    gRPC's core speaks TLS 1.2 and 1.3 only.

    Raises:
        SettingsError: the certificate cannot be used.
    """
    files = CertificateFiles(settings)
    try:
        configuration = files.load()
    except CertificateUnusable as error:
        raise SettingsError(f"ORDERFLOW_SERVER_TLS_CERTIFICATE_FILE and its like: {error}") from error
    return grpc.dynamic_ssl_server_credentials(
        configuration,
        files.renewed,  # type: ignore[arg-type]  # None is no change, says gRPC's documentation
        require_client_authentication=settings.client_ca_file is not None,
    )


class CertificateFiles:
    """The files of the settings, and what was read of them last."""

    def __init__(self, settings: TlsSettings) -> None:
        """Reads nothing."""
        self._certificate = pathlib.Path(settings.certificate_file or "")
        self._key = pathlib.Path(settings.key_file or "")
        self._client_ca = pathlib.Path(settings.client_ca_file) if settings.client_ca_file else None
        self._seen: _Stamp | None = None

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the new certificate if the files have changed, None to stay with the last one.

        gRPC calls it before each handshake, on a thread of its own.
        """
        try:
            if self._stamp() == self._seen:
                return None
            configuration = self.load()
        except CertificateUnusable as error:
            log.warning("server.certificate.refused", error=str(error))
            return None
        log.info("server.certificate.renewed")
        return configuration

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Returns the certificate on disk.

        Raises:
            CertificateUnusable: it cannot be used, or was written meanwhile.
        """
        self._seen = stamp = self._stamp()
        try:
            chain, key = self._certificate.read_bytes(), self._key.read_bytes()
            client_ca = self._client_ca.read_bytes() if self._client_ca else None
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Reads the files once more, and checks that the key is the certificate's.
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
            if client_ca is not None:
                context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
            raise CertificateUnusable(f"not a certificate and its key: {_reason(error)}") from error
        if self._stamp() != stamp:
            self._seen = None
            raise CertificateUnusable("the files are being written")
        metrics.CERTIFICATE_EXPIRY.set(_expiry(chain))
        return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)

    def _stamp(self) -> _Stamp:
        try:
            found = [path.stat() for path in (self._certificate, self._key, self._client_ca) if path is not None]
        except OSError as error:
            self._seen = None
            raise CertificateUnusable(f"not a certificate and its key: {_reason(error)}") from error
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)


def _expiry(chain: bytes) -> float:
    """Returns when the first of the certificates ends, in seconds since 1970.

    NaN if that cannot be read: the certificate is served all the same, gRPC's TLS has the say on it.
    """
    try:
        return min(each.not_valid_after_utc.timestamp() for each in x509.load_pem_x509_certificates(chain))
    except ValueError:
        return math.nan


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
