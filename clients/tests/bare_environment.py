"""A virtual environment that holds the client's wheels and what they depend on, nothing of this repository."""

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PLACE_ORDER = """
import sys
from orderflow_client import SyncOrdersClient, item

with SyncOrdersClient(sys.argv[1]) as orders:
    response = orders.create_order(
        user_id="u-1",
        email="a@example.com",
        payment_method="pm_card_visa",
        items=[item("SKU-1", quantity=2, amount_minor=1999, currency_code="EUR")],
    )
print(response.order.order_id)
"""


@dataclass(frozen=True)
class BareEnvironment:
    python: Path
    wheels: tuple[Path, ...]

    def run(self, code: str, *arguments: str) -> str:
        """Runs Python code there, out of reach of this process's paths, and returns what it printed."""
        return _run(str(self.python), "-I", "-c", code, *arguments)

    def can_import(self, module: str) -> bool:
        code = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]) is not None)"
        return self.run(code, module) == "True"

    def place_order(self, target: str) -> str:
        """Places an order of SKU-1 through the installed client and returns its order id."""
        return self.run(PLACE_ORDER, target)


def build(folder: Path) -> BareEnvironment:
    """Builds the wheels of generated/ and clients/ and installs them, by path: their names on PyPI may be another's."""
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    wheelhouse = folder / "wheels"
    sources = (str(ROOT / "generated"), str(ROOT / "clients"))
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheelhouse), *sources)
    wheels = tuple(sorted(wheelhouse.glob("*.whl")))
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    _run(*pip, "--python", str(python), "install", *map(str, wheels))
    return BareEnvironment(python, wheels)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()
