"""The `orderflow` command: one module per noun, imported when its command runs."""

import gc
import importlib.metadata

import typer

from cli import check, console, db, dev, dlq, doctor, order, privacy, reconcile, run, stock, topics
from cli.output import fail_on_error

app = typer.Typer(
    name="orderflow",
    help="Takes orders over gRPC and sees each one through on Apache Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(order.app, name="order")
app.add_typer(run.app, name="run")
app.add_typer(topics.app, name="topics")
app.add_typer(db.app, name="db")
app.add_typer(stock.app, name="stock")
app.add_typer(dlq.app, name="dlq")
app.add_typer(privacy.app, name="privacy")
app.add_typer(dev.app, name="dev")
app.add_typer(check.app, name="check")
app.command("doctor")(doctor.doctor)
app.command("reconcile")(reconcile.reconcile)
app.command()(console.console)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(importlib.metadata.version("orderflow-server"))


@app.command("settings")
def show_settings() -> None:
    """Print all settings as Markdown: docs/settings.md."""
    from cli.settings_page import page

    typer.echo(page(), nl=False)


@app.command("states")
def show_states() -> None:
    """Print the states of an order as Markdown: docs/states.md."""
    from cli.states_page import page

    typer.echo(page(), nl=False)


@app.command("metrics")
def show_metrics() -> None:
    """Print all metrics as Markdown: docs/metrics.md."""
    from cli.metrics_page import page

    typer.echo(page(), nl=False)


def main() -> None:
    """Run the command; errors that a user can act on are one line and exit code 1."""
    # What a command imports is a hundred thousand objects, of which none is garbage: to look for it took a fifth of the
    # start. A process of the system sets its own threshold once it has all (telemetry.process).
    gc.set_threshold(100_000)
    with fail_on_error():
        app()
