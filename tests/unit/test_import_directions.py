"""Imports point one way, as [tool.importlinter] says; and what it says is enforced."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def _lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    paths = os.pathsep.join(str(path) for path in (root, root / "clients", ROOT / "generated"))
    return subprocess.run(
        [*command, "--config", str(root / "pyproject.toml"), "--no-cache", "--no-logo"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_are_kept() -> None:
    linted = _lint(ROOT)
    assert linted.returncode == 0, linted.stdout
    assert f"{len(CONFIGURATION['contracts'])} kept, 0 broken" in linted.stdout


def test_planted_imports_are_found(tmp_path: Path) -> None:
    planted = {
        "domain.money": "messaging.topics",
        "domain.orders": "asyncio",
        "domain.records": "settings",
        "telemetry.tracing": "storage.stock",
        "storage.stock": "messaging.topics",
        "messaging.window": "storage.outcomes",
        "workers.projector": "server.tokens",
        "server.tokens": "workers.order_processor",
        "devstack.errors": "cli.output",
        "console.flow": "storage.stock",
        "orderflow_client._errors": "domain.failures",
    }
    for package in CONFIGURATION["root_packages"]:
        parent = Path("clients") if package == "orderflow_client" else Path()
        shutil.copytree(ROOT / parent / package, tmp_path / parent / package, ignore=shutil.ignore_patterns("*cache*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for importer, imported in planted.items():
        path = next(tmp_path.rglob(f"{importer.replace('.', '/')}.py"))
        path.write_text(f"{path.read_text()}\nimport {imported}\n")
    linted = _lint(tmp_path)
    assert linted.returncode == 1
    assert f"0 kept, {len(CONFIGURATION['contracts'])} broken" in linted.stdout
    missed = {each: to for each, to in planted.items() if f"{each} -> {to}" not in linted.stdout}
    assert missed == {}, linted.stdout


def test_settings_import_nothing_of_ours() -> None:
    # A module and not a package, so import-linter does not look into it.
    tree = ast.parse((ROOT / "settings.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in imported} & {*CONFIGURATION["root_packages"], "orderflow"}
