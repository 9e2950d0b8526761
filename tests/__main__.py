"""`make test`: the tests in two processes side by side, then those that want the machine to themselves.

Arguments are pytest's: files, folders, `-k`. Each process has engines of its own; a file stays in one of them.
"""

import subprocess
import sys

import pytest

_SIDE_BY_SIDE = ("-m", "not heavy and not alone", "--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder")
_ALONE = ("-m", "alone and not heavy")


def main(arguments: list[str]) -> int:
    """Runs the tests that the arguments choose, and returns the exit code of the first half that failed."""
    codes = [
        subprocess.run([sys.executable, "-m", "pytest", *half, *arguments], check=False).returncode
        for half in (_SIDE_BY_SIDE, _ALONE)
    ]
    # What was chosen may all be in one half.
    ran = [code for code in codes if code != pytest.ExitCode.NO_TESTS_COLLECTED]
    return next((code for code in ran if code), 0) if ran else pytest.ExitCode.NO_TESTS_COLLECTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
