"""The flags of commands that call the server, and the exit code of a call that fails."""

import contextlib
import dataclasses
import functools
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import grpc

    from orderflow_client import SyncOrdersClient


def _file(flag: str, variable: str, text: str) -> Any:
    return typer.Option(flag, envvar=variable, help=text, exists=True, dir_okay=False)


@dataclasses.dataclass(frozen=True)
class Connection:
    """How to reach the server. Each field is a flag."""

    target: Annotated[
        str, typer.Option("--target", envvar="ORDERFLOW_TARGET", help="The server: host:port, or as gRPC writes it.")
    ] = "127.0.0.1:50051"
    tls: Annotated[
        bool, typer.Option("--tls", envvar="ORDERFLOW_TLS", help="Use TLS; the other TLS flags imply it.")
    ] = False
    tls_ca: Annotated[
        pathlib.Path | None,
        _file("--tls-ca", "ORDERFLOW_TLS_CA", "Who may vouch for the server."),
    ] = None
    tls_certificate: Annotated[
        pathlib.Path | None,
        _file("--tls-certificate", "ORDERFLOW_TLS_CERTIFICATE", "Your certificate (mutual TLS)."),
    ] = None
    tls_key: Annotated[pathlib.Path | None, _file("--tls-key", "ORDERFLOW_TLS_KEY", "The certificate's key.")] = None
    token: Annotated[
        str,
        typer.Option("--token", envvar="ORDERFLOW_TOKEN", help="Bearer token. A flag is seen by all."),
    ] = ""
    token_file: Annotated[
        pathlib.Path | None, _file("--token-file", "ORDERFLOW_TOKEN_FILE", "File with the bearer token.")
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", envvar="ORDERFLOW_INSECURE", help="Allow plaintext to another machine.")
    ] = False

    @property
    def uses_tls(self) -> bool:
        """Whether it is made with TLS: each of the flags about it says so."""
        return bool(self.tls or self.tls_ca or self.tls_certificate or self.tls_key)

    @contextlib.contextmanager
    def orders(self) -> Iterator["SyncOrdersClient"]:
        """Connects to the order service. A call's error is one line and exit code 64 + its gRPC code."""
        from orderflow_client import SyncOrdersClient

        token = self._token_of_file if self.token_file else self.token or None
        try:
            client = SyncOrdersClient(
                self.target, channel_credentials=self.credentials(), token=token, insecure=self.insecure
            )
        except ValueError as error:
            raise usage(self.target, error) from None
        with client, _exit_code():
            yield client

    @contextlib.contextmanager
    def channel(self) -> Iterator["grpc.Channel"]:
        """Connects to another service of the same server, in the same way."""
        import grpc

        from cli.bearer import BearerInterceptor

        with self.orders() as client:
            token = self.bearer()
            yield grpc.intercept_channel(client.channel, BearerInterceptor(token)) if token else client.channel

    def credentials(self) -> "grpc.ChannelCredentials | None":
        """Returns the channel's, None for plaintext.

        Raises:
            ValueError: a certificate without its key, or a key without its certificate.
        """
        if not self.uses_tls:
            return None
        from orderflow_client import tls

        return tls(root_certificates=self.tls_ca, certificate=self.tls_certificate, private_key=self.tls_key)

    def bearer(self) -> str | None:
        """Returns the token, read anew from its file."""
        return self._token_of_file() if self.token_file else self.token or None

    def _token_of_file(self) -> str:
        assert self.token_file is not None
        return self.token_file.read_text().strip()


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags of a `Connection`; it takes it as `connection`."""
    flags = inspect.signature(Connection).parameters
    own = [each for name, each in inspect.signature(command).parameters.items() if name != "connection"]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        connection = Connection(**{name: given.pop(name) for name in flags})
        command(connection=connection, **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *flags.values())]
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__dict__["__wrapped__"]
    return run


@contextlib.contextmanager
def _exit_code() -> Iterator[None]:
    import grpc

    from orderflow_client import OrderflowError

    try:
        yield
    except OrderflowError as error:
        print(f"orderflow: {error}", file=sys.stderr)
        sys.exit(64 + error.code.value[0])
    except grpc.RpcError as error:
        print(f"orderflow: {error.code().name}: {error.details()}", file=sys.stderr)
        sys.exit(64 + error.code().value[0])


def usage(target: str, error: ValueError) -> typer.BadParameter:
    """Returns what is wrong with the flags, from what the client says of them."""
    if "insecure" in str(error):
        text = f"{target} may be another machine: use TLS, or --insecure to send in the clear (not both)"
        return typer.BadParameter(text, param_hint="--target")
    return typer.BadParameter("--tls-certificate and --tls-key go together", param_hint="--tls-certificate")
