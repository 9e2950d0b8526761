"""`orderflow doctor`: what is wrong with this set-up, and what to do about it."""

import asyncio
import logging
import sys

import typer

from cli.connection import Connection, connected
from cli.output import Format, show


@connected
def doctor(
    connection: Connection,
    role: list[str] = typer.Option([], "--role", help="Only what this process needs; may be repeated."),
    output: Format = typer.Option(Format.TABLE, "-o", "--output"),
) -> None:
    """Examine settings, reachability, topics, migrations, clock, rights and versions. Changes nothing.

    Exit code 1 if something is wrong. A warning may be as you want it.
    """
    from cli import diagnosis

    for name in role:
        if name not in diagnosis.roles(()):
            raise typer.BadParameter(f"{name} is no process: {', '.join(diagnosis.roles(()))}", param_hint="--role")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the findings say what is away
    found = asyncio.run(diagnosis.examine(connection, role or list(diagnosis.roles(()))))
    rows = [
        {"subject": each.subject, "verdict": each.verdict.value, "found": each.found, "what_to_do": each.remedy}
        for each in found
    ]
    show(rows, output, empty="")
    wrong = sum(each.verdict is diagnosis.Verdict.WRONG for each in found)
    if wrong:
        typer.echo(f"{wrong} wrong.", err=True)
        sys.exit(1)
