"""Somebody who does what the runbook says."""

import asyncio
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from tests.deploy import runbook
from tests.faults.prometheus import Alert

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Operator:
    """Reads an alert's entry and runs the commands that stand there, with the settings of the system."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = os.pathsep.join(str(_ROOT / part) for part in ("", "generated", "clients"))
        self._environment = {**os.environ, "PYTHONPATH": path, **environment}

    def reads(self, alert: Alert, text: str) -> None:
        """Finds a piece of advice in the entry that the alert links to."""
        assert text in _entry(alert), f"the runbook does not say it of {alert.name}: {text}"

    def reads_class(self, error_class: str, text: str) -> None:
        """Finds a piece of advice in the entry of a dead letter's error class."""
        assert text in _entry_of_class(error_class), f"the runbook does not say it of {error_class}: {text}"

    async def runs(self, alert: Alert, command: str, **words: str) -> str:
        """Runs a command that the alert's entry, or the runbook's beginning, tells, and returns its output.

        `words` are what stands for the words in capitals.
        """
        told = f"{_flowing(runbook.beginning())} {_entry(alert)}"
        assert command in told, f"the runbook does not tell it of {alert.name}: {command}"
        return await self._run([words.get(word, word) for word in shlex.split(command)])

    async def runs_class(self, error_class: str, command: str, *, more: Sequence[str] = ()) -> str:
        """The same of an error class; `more` is what xargs adds."""
        assert command in _entry_of_class(error_class), f"the runbook does not tell it of {error_class}: {command}"
        return await self._run([*shlex.split(command), *more])

    async def _run(self, words: Sequence[str]) -> str:
        assert words[0] == "orderflow"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", *words[1:]),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, f"{words}: {err.decode()}"
        return f"{out.decode()}"


def _entry(alert: Alert) -> str:
    _, _, target = alert.annotations["runbook_url"].partition("#")
    (text,) = [text for heading, text in runbook.entries().items() if runbook.anchor(heading) == target]
    return _flowing(text)


def _entry_of_class(error_class: str) -> str:
    (text,) = [text for heading, text in runbook.entries().items() if error_class in heading.split(", ")]
    return _flowing(text)


def _flowing(text: str) -> str:
    return " ".join(text.split())
