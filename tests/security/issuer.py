"""An issuer of tokens: honest ones, and the raw parts to forge others from."""

import base64
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example"
AUDIENCE = "orderflow"


class Issuer:
    """Has a key of each kind; `jwks` is what it publishes."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()

    @property
    def jwks(self) -> str:
        entries = [
            {**RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True), "kid": "rsa"},
            {**ECAlgorithm.to_jwk(self.ec.public_key(), as_dict=True), "kid": "ec"},
            {**OKPAlgorithm.to_jwk(self.ed.public_key(), as_dict=True), "kid": "ed"},
        ]
        return json.dumps({"keys": entries})

    @property
    def rsa_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def token(
        self,
        sub: str = "shop",
        scope: str = "orders:write orders:read",
        *,
        kid: str = "ed",
        headers: dict[str, Any] | None = None,
        without: str = "",
        **claims: Any,
    ) -> str:
        """Returns a token that holds, unless told otherwise."""
        told = {"iss": ISSUER, "aud": AUDIENCE, "sub": sub, "scope": scope, "exp": time.time() + 300, **claims}
        told.pop(without, None)
        key: Any = {"rsa": self.rsa, "ec": self.ec}.get(kid, self.ed)
        algorithm = {"rsa": "RS256", "ec": "ES256"}.get(kid, "EdDSA")
        return jwt.encode(told, key, algorithm=algorithm, headers={"kid": kid, **(headers or {})})


def part(value: object) -> str:
    """Returns a value as a part of a token."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call with the token."""
    return (("authorization", f"Bearer {token}"),)
