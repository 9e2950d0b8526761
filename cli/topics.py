"""`orderflow topics`: the Kafka topics as the catalogue has them."""

import asyncio
import dataclasses
import sys

import typer

import settings
from cli.output import Format, show

app = typer.Typer(help="Plan and apply the Kafka topics.", no_args_is_help=True)


@app.command()
def plan(output: Format = typer.Option(Format.TABLE, "-o", "--output")) -> None:
    """Show where the cluster differs. Exit code 1 if it does."""
    from messaging import topic_admin

    drift = asyncio.run(topic_admin.plan(settings.load().kafka))
    show([dataclasses.asdict(each) for each in drift], output, empty="The topics are as they should be.")
    sys.exit(1 if drift else 0)


@app.command()
def apply(output: Format = typer.Option(Format.TABLE, "-o", "--output")) -> None:
    """Create what is missing and set what differs. Exit code 1 if something remains for you to decide."""
    from messaging import topic_admin

    drift = asyncio.run(topic_admin.apply(settings.load().kafka))
    show([dataclasses.asdict(each) for each in drift], output, empty="The topics are as they should be.")
    sys.exit(1 if drift else 0)
