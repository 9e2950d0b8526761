"""Certificates for tests."""

import subprocess
from pathlib import Path

import grpc


class Authority:
    """Signs certificates, with openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        self._openssl(
            *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority".split(),
            "-keyout",
            self._key,
            "-out",
            self.certificate,
        )

    def sign(self, name: str) -> tuple[Path, Path]:
        """Returns a certificate for `localhost` and its key."""
        certificate, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        extensions = self.folder / "extensions"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        self._openssl(
            *f"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name}".split(),
            *("-keyout", key, "-out", request),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", "2", "-extfile", extensions, "-out", certificate),
        )
        return certificate, key

    def server_credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials of a server that asks its clients for a certificate."""
        certificate, key = self.sign("server")
        pair = (key.read_bytes(), certificate.read_bytes())
        return grpc.ssl_server_credentials([pair], self.certificate.read_bytes(), require_client_auth=True)

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
