"""`orderflow run`: one process of the system, by environment settings only."""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import typer

import settings as orderflow_settings

if TYPE_CHECKING:
    import asyncio

app = typer.Typer(help="Run one process of the system.", no_args_is_help=True)

_PATIENT = 5
"""The niceness of those for whom nobody waits: where a machine is short of CPU, orders and payments come first."""


def _run(name: str, main: Callable[[orderflow_settings.Settings, "asyncio.Event"], Awaitable[None]]) -> None:
    from telemetry import logs, otlp, process

    loaded = orderflow_settings.load()
    logs.configure(name, form=loaded.log.format, level=loaded.log.level)
    try:
        with otlp.exporting(name):
            code = process.run(lambda stop: main(loaded, stop))
    except otlp.OtlpError as error:
        raise orderflow_settings.SettingsError(str(error)) from error
    sys.exit(code)


@app.command()
def server(
    insecure: bool = typer.Option(
        False,
        "--insecure",
        help="Leave loopback without TLS and authentication, as with ORDERFLOW_SERVER_INSECURE=true.",
    ),
) -> None:
    """Run the gRPC server."""
    from server.app import serve

    if insecure:
        os.environ["ORDERFLOW_SERVER_INSECURE"] = "true"

    _run("server", serve)


def _worker(name: str, *, niceness: int = 0) -> None:
    from workers.app import work

    os.nice(niceness)
    _run(name, lambda loaded, stop: work(name, loaded, stop))


@app.command()
def webhook() -> None:
    """Take the payment gateway's reports (optional): see docs/payments.md."""
    from workers.webhook_app import receive_reports

    _run("webhook", receive_reports)


@app.command("order-processor")
def order_processor() -> None:
    """Run the order processor: checks new orders and reserves their stock."""
    _worker("order-processor")


@app.command("payment-processor")
def payment_processor() -> None:
    """Run the payment processor: charges orders."""
    _worker("payment-processor")


@app.command("notification-email")
def notification_email() -> None:
    """Run the e-mail notifications."""
    _worker("notification-email", niceness=_PATIENT)


@app.command("notification-sms")
def notification_sms() -> None:
    """Run the text message notifications."""
    _worker("notification-sms", niceness=_PATIENT)


@app.command()
def projector() -> None:
    """Run the projector: makes orders readable."""
    _worker("projector")


@app.command()
def reconciler() -> None:
    """Run the reconciler: compares the payment gateway with what is booked and with the orders."""
    from workers.reconciler_app import reconcile

    _run("reconciler", reconcile)
