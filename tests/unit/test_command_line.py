"""docs/command-line.md and the commands are the same, and the shell completes them."""

import datetime
import pathlib
import re
import subprocess
import sys

import asyncpg
import pytest
import typer
import typer.main

import settings
from cli import output
from cli.connection import Connection
from cli.main import app

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "command-line.md").read_text()


def _commands(group: object, path: str) -> set[str]:
    found = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        full = f"{path} {name}"
        if hasattr(command, "commands"):
            found |= _commands(command, full)
            if command.invoke_without_command:
                found.add(full)
        else:
            found.add(full)
    return found


def test_each_command_is_documented_and_each_documented_one_exists() -> None:
    documented = set(re.findall(r"^\| `(orderflow [^`]*)` \|", PAGE, re.MULTILINE))
    assert documented == _commands(typer.main.get_command(app), "orderflow")


def test_each_flag_of_a_connection_is_documented_with_its_variable() -> None:
    documented = dict(re.findall(r"^\| `(--[a-z-]*)` \| `(ORDERFLOW_[A-Z_]*)` \|", PAGE, re.MULTILINE))
    flags = {f"--{name.replace('_', '-')}": f"ORDERFLOW_{name.upper()}" for name in Connection.__annotations__}
    assert documented == flags
    create = typer.main.get_command(app).commands["order"].commands["create"]  # type: ignore[attr-defined]
    assert {each.opts[0]: each.envvar for each in create.params if each.opts[0] in flags} == flags
    # Else a shell that is set up for the command line could not start a process of the system.
    assert set(flags.values()) == settings._CALLERS


def test_the_shell_completes_commands_and_flags() -> None:
    def complete(words: str) -> set[str]:
        code = "import sys; sys.argv = ['orderflow']; from cli.main import main; main()"
        environment = {"_ORDERFLOW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        return set(done.stdout.split())

    life = {"cancel", "ship", "complete", "refund"}
    assert complete("orderflow order ") == {"create", "get", "watch", "list", "events", "explain"} | life
    assert complete("orderflow order list --st") == {"--status"}
    assert {"PAID", "PAYMENT_FAILED", "PROCESSING"} <= complete("orderflow order list --status P")


@pytest.mark.parametrize(
    "error",
    [asyncpg.InvalidPasswordError("wrong"), asyncpg.InvalidCatalogNameError("no such database"), OSError("away")],
)
def test_a_database_that_lets_nobody_in_is_one_line(error: Exception) -> None:
    assert output.told(error) == f"PostgreSQL (ORDERFLOW_DATABASE_URL): {error}"
    assert output.told(asyncpg.UndefinedTableError("a fault of ours")) is None


def test_a_span_is_bounded() -> None:
    assert output.ago("2h") == datetime.timedelta(hours=2)
    for wrong in ("", "2", "h", "-1h", "9999999d", "9" * 30 + "s"):
        with pytest.raises(typer.BadParameter):
            output.ago(wrong)
