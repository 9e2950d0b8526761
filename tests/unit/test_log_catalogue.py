"""Every log line has a declared event name, and every declared name is logged."""

import ast
from collections.abc import Iterator
from pathlib import Path

from telemetry.logs import CATALOGUE

ROOT = Path(__file__).parents[2]
PACKAGES = ("domain", "messaging", "storage", "server", "workers", "telemetry")
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                    logger = node.func.value
                    name = logger.attr if isinstance(logger, ast.Attribute) else getattr(logger, "id", "")
                    if name in ("log", "_log", "logger", "_logger"):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_what_is_logged_is_what_is_declared() -> None:
    logged: dict[str, str] = {}
    for where, call in _calls():
        assert len(call.args) == 1, f"{where}: one event name, and fields by keyword"
        event = call.args[0]
        assert isinstance(event, ast.Constant), f"{where}: the event name is a literal"
        assert isinstance(event.value, str), f"{where}: the event name is a text"
        logged[event.value] = where
    assert len(logged) > 20, "the scan finds the log lines"
    assert {name: where for name, where in logged.items() if name not in CATALOGUE} == {}, "not declared"
    assert set(CATALOGUE) - set(logged) == set(), "declared and never logged"


def test_every_name_is_explained() -> None:
    for name, meaning in CATALOGUE.items():
        assert name == name.lower(), name
        assert "." in name, name
        assert meaning.endswith("."), name


def test_nothing_is_logged_past_the_catalogue() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.relative_to(ROOT) != Path("telemetry/logs.py"):
                assert "getLogger" not in path.read_text(), path
