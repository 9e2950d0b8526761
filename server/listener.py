"""Where the server listens, and what it refuses to do there: nothing leaves loopback without TLS and credentials."""

import asyncio

import grpc.aio

from server import tls
from settings import Settings, SettingsError
from telemetry.health import Health
from telemetry.process import is_loopback


def check(settings: Settings) -> None:
    """Checks that the settings of TLS, certificates and tokens go together and protect what others reach.

    Raises:
        SettingsError: names each that does not.
    """
    problems = [*_contradictions(settings), *_exposures(settings)]
    if problems:
        raise SettingsError("Wrong settings:\n  " + "\n  ".join(problems))


def listen(server: grpc.aio.Server, settings: Settings) -> int:
    """Makes the server listen and returns the port.

    Raises:
        SettingsError: the address or the certificate cannot be used.
    """
    address = settings.server.listen
    try:
        if settings.tls.certificate_file:
            bound = server.add_secure_port(address, tls.credentials(settings.tls))
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise SettingsError(f"ORDERFLOW_SERVER_LISTEN: cannot listen on {address}; is the port in use?")
    return bound


async def listen_for_probes(health: Health, address: str) -> None:
    """Serves health alone, in plaintext, until cancelled.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    try:
        async with health.listening(address, reflects=False):
            await asyncio.Event().wait()
    except OSError as error:
        raise SettingsError(f"ORDERFLOW_SERVER_HEALTH_LISTEN: {error}") from error


def _contradictions(settings: Settings) -> list[str]:
    files, certificates, tokens = settings.tls, settings.client_certificates, settings.tokens
    problems = []
    if bool(files.certificate_file) != bool(files.key_file):
        problems.append("ORDERFLOW_SERVER_TLS_CERTIFICATE_FILE, ORDERFLOW_SERVER_TLS_KEY_FILE: one needs the other")
    if files.client_ca_file and not files.certificate_file:
        problems.append("ORDERFLOW_SERVER_TLS_CLIENT_CA_FILE: needs ORDERFLOW_SERVER_TLS_CERTIFICATE_FILE")
    if (certificates.trust_domain or certificates.operators) and not files.client_ca_file:
        problems.append("ORDERFLOW_SERVER_MTLS_...: needs ORDERFLOW_SERVER_TLS_CLIENT_CA_FILE")
    sources = [source for source in (tokens.jwks_file, tokens.jwks_url) if source]
    if tokens.issuer or tokens.audience or sources:
        if not tokens.issuer or not tokens.audience:
            problems.append("ORDERFLOW_SERVER_TOKEN_ISSUER, ORDERFLOW_SERVER_TOKEN_AUDIENCE: tokens need both")
        if len(sources) != 1:
            problems.append("ORDERFLOW_SERVER_TOKEN_JWKS_FILE, ORDERFLOW_SERVER_TOKEN_JWKS_URL: tokens need one")
    return problems


def _exposures(settings: Settings) -> list[str]:
    address = settings.server.listen
    if is_loopback(address) or settings.server.insecure:
        return []
    missing = []
    if not settings.tokens.issuer and not settings.tls.client_ca_file:
        missing.append("nobody has to prove who they are (ORDERFLOW_SERVER_TOKEN_... or _TLS_CLIENT_CA_FILE)")
    if not settings.tls.certificate_file:
        missing.append("orders and credentials travel in the clear (ORDERFLOW_SERVER_TLS_CERTIFICATE_FILE)")
    if not missing:
        return []
    return [
        f"ORDERFLOW_SERVER_LISTEN: {address} is reachable by others, and {' and '.join(missing)}; listen on 127.0.0.1, "
        "or set ORDERFLOW_SERVER_INSECURE=true if a network you trust is all that reaches it"
    ]
