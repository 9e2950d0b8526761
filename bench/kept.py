"""The results of a bench while it goes on, in a file from which another start goes on."""

import json
import pathlib
from typing import Any

from bench.results import Measured, measured_before, report
from bench.workloads import ALL


class Kept:
    """The results so far, in a file if there is one, which is written after each run.

    An error stays, whatever comes after it.
    """

    def __init__(self, size: str, file: pathlib.Path | None) -> None:
        """Reads what is there.

        Raises:
            ValueError: the file is of another size.
        """
        self._file = file
        self.results: dict[str, Any] = {"size": size, "workloads": {}}
        if file is not None and file.exists():
            self.results = json.loads(file.read_text())
            if self.results["size"] != size:
                raise ValueError(f"{file} has results of size {self.results['size']}, not {size}")

    def runs(self, name: str) -> list[Measured]:
        """Returns the runs of a workload."""
        return measured_before(ALL[name], self.results["workloads"].get(name, {}))

    def add(self, name: str, measured: Measured, before: dict[str, Any]) -> None:
        """Takes in another run; `before` are the facts of the machine."""
        part = self.results["workloads"].get(name, {})
        runs = self.runs(name)
        machines = part.get("machines", [])[: len(runs)]
        errors = {"errors": part["errors"]} if "errors" in part else {}
        self.results["workloads"][name] = {
            **report(ALL[name], [*runs, measured]),
            "machines": [*machines, before],
            **errors,
        }
        self._write()

    def fail(self, name: str, error: str) -> None:
        """Takes in that a run failed."""
        self.results["workloads"].setdefault(name, {}).setdefault("errors", []).append(error)
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            fresh = self._file.with_name(f"{self._file.name}.new")
            fresh.write_text(json.dumps(self.results, indent=1) + "\n")
            fresh.replace(self._file)
