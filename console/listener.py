"""Where the console listens, and what it refuses to do there: nothing leaves loopback without TLS and a sign-in."""

import socket

from settings import ConsoleSettings, SettingsError
from telemetry import process


def check(settings: ConsoleSettings, *, lends_credentials: bool) -> None:
    """Checks that the address and what protects it go together. `lends_credentials`: it was given an operator's own.

    Raises:
        SettingsError: names each setting that does not.
    """
    problems = []
    if bool(settings.tls_certificate_file) != bool(settings.tls_key_file):
        problems.append("ORDERFLOW_CONSOLE_TLS_CERTIFICATE_FILE, ORDERFLOW_CONSOLE_TLS_KEY_FILE: one needs the other")
    try:
        is_loopback = process.is_loopback(settings.listen)
    except ValueError as error:
        raise SettingsError(f"ORDERFLOW_CONSOLE_LISTEN: {error}") from None
    if not is_loopback:
        if not settings.tls_certificate_file and not settings.insecure:
            problems.append(
                f"ORDERFLOW_CONSOLE_LISTEN: {settings.listen} is reachable by others, and tokens would travel in the "
                "clear (ORDERFLOW_CONSOLE_TLS_CERTIFICATE_FILE); listen on 127.0.0.1, or set "
                "ORDERFLOW_CONSOLE_INSECURE=true if what stands in front does TLS"
            )
        if lends_credentials:
            problems.append(
                f"ORDERFLOW_CONSOLE_LISTEN: {settings.listen} is reachable by others, who would act with your token or "
                "certificate; without them everybody signs in with a token of their own"
            )
    if problems:
        raise SettingsError("Wrong settings:\n  " + "\n  ".join(problems))


def listen(settings: ConsoleSettings) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        SettingsError: the address cannot be used.
    """
    host, port = process.split(settings.listen)
    try:
        return socket.create_server((host.strip("[]"), port), family=_family(host))
    except OSError as error:
        raise SettingsError(
            f"ORDERFLOW_CONSOLE_LISTEN: cannot listen on {settings.listen}: {error.strerror}; is the port in use?"
        ) from None


def url(settings: ConsoleSettings, listening: socket.socket) -> str:
    """Returns where a browser finds the console."""
    host, _ = process.split(settings.listen)
    scheme = "https" if settings.tls_certificate_file else "http"
    return f"{scheme}://{host}:{listening.getsockname()[1]}"


def hosts(settings: ConsoleSettings) -> set[str]:
    """Returns the names that browsers may reach it by, in lower case."""
    host, _ = process.split(settings.listen)
    return {"127.0.0.1", "localhost", "[::1]", host.lower(), *filter(None, settings.hosts.lower().split(","))}


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if host.startswith("[") else socket.AF_INET
