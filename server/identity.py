"""Who calls: set once for each call, from its credential and from nothing else."""

import contextvars
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Final

from server import scopes
from settings import ClientCertificateSettings

_NAME: Final = re.compile(r"[\x21-\x7e]{1,128}")


@dataclasses.dataclass(frozen=True)
class Caller:
    """A caller. `expires` is when its credential ends, seconds since 1970; None if it does not."""

    name: str
    scopes: frozenset[str] = frozenset()
    expires: float | None = None


LOCAL: Final = Caller("local", frozenset((scopes.WRITE, scopes.READ)))
"""Everybody, where nobody has to prove who they are."""

# grpc.aio runs each call in a task of its own, so what one call sets no other sees.
_current: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller", default=LOCAL)


def current() -> Caller:
    """Returns who makes the call that this task serves."""
    return _current.get()


def set_current(caller: Caller) -> None:
    """Says who makes the call that this task serves."""
    _current.set(caller)


def is_name(name: object) -> bool:
    """Whether it can stand for a caller in a database, a log and an event: 1 to 128 printable ASCII characters."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def certificate_name(properties: Mapping[str, Iterable[bytes]], trust_domain: str | None) -> str | None:
    """Returns the name in a client certificate that TLS has verified, None if it has none that we take.

    With a trust domain that is the SPIFFE id, the certificate's only URI and of exactly that domain; else the subject's
    common name.
    """
    key = "peer_uri" if trust_domain else "x509_common_name"
    values = tuple(properties.get(key) or ())
    if len(values) != 1:
        return None
    name = values[0].decode("ascii", "replace")
    if trust_domain and not name.startswith(f"spiffe://{trust_domain}/"):
        return None
    return name if is_name(name) else None


def certificate_caller(properties: Mapping[str, Iterable[bytes]], settings: ClientCertificateSettings) -> Caller | None:
    """Returns who a verified client certificate stands for, with the scopes that the settings give."""
    name = certificate_name(properties, settings.trust_domain)
    if name is None:
        return None
    given = frozenset(settings.scopes.split())
    if name in settings.operator_names:
        given |= {scopes.OPERATE, scopes.ADMIN}
    return Caller(name, given)
