"""`orderflow reconcile`: what the payment gateway, the payments and the orders do not agree on."""

import asyncio
import dataclasses
import datetime
import sys
from typing import Any, Final

import typer

import settings
from cli.output import Format, ago, show

DIFFERENCES: Final = 3
"""Exit code where there are any: neither a failure to look nor a command that is not written right."""


def reconcile(
    since: str = typer.Option("24h", help="Compare what has happened within this time: 30m, 2h, 7d."),
    limit: int = typer.Option(1_000, min=1, help="List at most so many differences."),
    output: Format = typer.Option(Format.TABLE, "-o", "--output"),
) -> None:
    """Compare the payment gateway with the payments and the orders, and list what differs. Changes nothing."""
    rows, total = asyncio.run(_compared(settings.load(), ago(since), limit))
    show(rows, output, empty="The gateway, the payments and the orders agree.")
    if total > len(rows):
        typer.echo(f"{total} differences; the first {len(rows)} are listed.", err=True)
    if total:
        sys.exit(DIFFERENCES)


async def _compared(
    loaded: settings.Settings, since: datetime.timedelta, limit: int
) -> tuple[list[dict[str, Any]], int]:
    """Returns a row for each difference, up to the limit, and how many there are."""
    from workers import reconciler_app

    rows: list[dict[str, Any]] = []
    total = 0
    listed: set[tuple[str, str, str]] = set()
    async for cases in reconciler_app.differences(loaded, since):
        for difference in (each for case in cases for each in case.differences):
            row = dataclasses.asdict(difference)
            # An order may be compared twice: as a part of the window, and as one that differed before.
            identity = (row["kind"], row["order_id"], row["reference"])
            if identity in listed:
                continue
            total += 1
            if len(rows) < limit:
                listed.add(identity)
                rows.append(row)
    return rows, total
