"""`make mutants`: breaks a copy of the tree in one place at a time; the named test must turn red.

Prints a line for each, and ends with exit code 1 if a mutant survives. Parts of names as arguments choose some.
"""

import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

from tests.mutants.catalogue import MUTANTS, Mutant

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".orderflow", ".*_cache", "__pycache__", ".hypothesis")
_MOST_SECONDS = 180
_RED = 1  # pytest's exit code for failed tests; all others mean that nothing was tested


def main(chosen: list[str]) -> int:
    """Runs the chosen mutants, all by default, and returns the exit code."""
    mutants = [mutant for mutant in MUTANTS if not chosen or any(part in mutant.name for part in chosen)]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="orderflow-mutants-") as folder:
        tree = pathlib.Path(folder, "tree")
        shutil.copytree(_ROOT, tree, ignore=_LEFT_OUT)
        for mutant in mutants:
            killed, told = _run(tree, mutant)
            survived += not killed
            print(f"{'killed  ' if killed else 'SURVIVED'} {mutant.name}: {mutant.point} [{told}]", flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} mutants killed")
    return 1 if survived else 0


def _run(tree: pathlib.Path, mutant: Mutant) -> tuple[bool, str]:
    file = tree / mutant.file
    whole = file.read_text()
    if whole.count(mutant.old) != 1:
        return False, "its text is not in the file any more: mend the catalogue"
    file.write_text(whole.replace(mutant.old, mutant.new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *shlex.split(mutant.tests)],
            cwd=tree, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False,
        )  # fmt: skip
        lines = done.stdout.strip().splitlines()
        return done.returncode == _RED, lines[-1] if lines else done.stderr[-200:]
    except subprocess.TimeoutExpired:
        return True, f"no end within {_MOST_SECONDS} s"
    finally:
        file.write_text(whole)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
