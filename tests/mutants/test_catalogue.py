"""The mutants can be applied: their text is where they say. That they are killed is what `make mutants` shows."""

import pathlib

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_can_be_applied(mutant: Mutant) -> None:
    assert (_ROOT / mutant.file).read_text().count(mutant.old) == 1
    compile((_ROOT / mutant.file).read_text().replace(mutant.old, mutant.new), mutant.file, "exec")
    for argument in mutant.tests.split():
        if argument.endswith(".py"):
            assert (_ROOT / argument).exists()
