"""`orderflow dev`: the whole system on this machine, under one supervisor."""

import asyncio
import contextlib
import enum
import fcntl
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator

import typer

import settings
from cli.output import Format, show
from devstack.errors import DevstackError

app = typer.Typer(help="Run the whole system on this machine.", invoke_without_command=True)


class StatusFormat(enum.StrEnum):
    """Shapes of `dev status`."""

    TABLE = "table"
    JSON = "json"
    ENV = "env"


def _state_directory() -> pathlib.Path:
    return pathlib.Path(os.environ.get("ORDERFLOW_STATE_DIR", ".orderflow")).absolute()


@app.callback()
def dev(
    context: typer.Context,
    listen: int = typer.Option(0, help="Port of the gRPC server on 127.0.0.1; 50051 unless told otherwise."),
    random_ports: bool = typer.Option(False, help="Choose free ports for all."),
    brokers: int = typer.Option(1, help="Kafka brokers: 1, or 3 to see what a cluster does when some of them die."),
    samples: bool = typer.Option(True, help="Place three sample orders once all is healthy."),
) -> None:
    """Start Kafka, PostgreSQL, a simulated gateway, a mail server, the server and the workers; stay until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from cli.supervisor import Supervisor, ports
    from devstack.system import BROKER_COUNTS

    if brokers not in BROKER_COUNTS:
        raise typer.BadParameter("either 1 or 3", param_hint="--brokers")
    loaded = settings.load()
    directory = _state_directory()
    with only_one(directory):
        chosen = ports(loaded.server.listen, listen, random_ports=random_ports, brokers=brokers)
        supervisor = Supervisor(directory, chosen)
        sys.exit(asyncio.run(supervisor.run(samples=samples)))


@app.command()
def status(output: StatusFormat = typer.Option(StatusFormat.TABLE, "-o", "--output")) -> None:
    """List processes, addresses, health and versions. Exit code 1 if something is not healthy."""
    from cli import dev_status

    state = dev_status.read(_state_directory())
    if state is None:
        raise DevstackError("nothing runs here: start it with `make run` or `orderflow dev`")
    if output is StatusFormat.ENV:
        variables = state["environment"]
        for name, value in {**variables, "ORDERFLOW_TARGET": variables["ORDERFLOW_SERVER_LISTEN"]}.items():
            typer.echo(f"{name}={value}")
        return
    rows = asyncio.run(dev_status.rows(state))
    show(rows, Format(output.value), empty="")
    sys.exit(0 if all(row["health"] == "healthy" for row in rows) else 1)


@app.command("start-broker")
def start_broker(number: int = typer.Argument(help="Which of three, from 1.")) -> None:
    """Start one of three brokers again after it died. They are not started again by themselves."""
    from cli import broker_starts

    broker_starts.ask(_state_directory(), number)
    typer.echo(f"Kafka broker {number} runs again.", err=True)


@app.command()
def reset() -> None:
    """Delete the system's data: orders, topics, mail, journals."""
    from devstack.postgres import PostgresServer
    from devstack.system import KAFKA_FOLDERS

    directory = _state_directory()
    with only_one(directory):
        PostgresServer(directory / "postgres", 0).remove_data()
        for name in (*KAFKA_FOLDERS.values(), "gateway", "mail", "logs"):
            shutil.rmtree(directory / name, ignore_errors=True)
    typer.echo(f"{directory} is empty.", err=True)


@contextlib.contextmanager
def only_one(directory: pathlib.Path) -> Iterator[None]:
    """Holds the folder against another supervisor. The lock dies with its holder, however that ends.

    Raises:
        DevstackError: another one runs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DevstackError(
                f"the system already runs on {directory}: `orderflow dev status` shows it, Ctrl-C there ends it"
            ) from None
        yield
