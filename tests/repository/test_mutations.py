"""The wrong changes of `mutations.py` fit the code: each changes one place, into something that Python can
read."""

import ast
import shlex

import pytest

from helpers.paths import ROOT
from mutations import MUTATIONS, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.what for mutation in MUTATIONS])
def test_a_mutation_changes_one_place_and_names_tests_that_are_there(mutation):
    before = (ROOT / "catome" / mutation.file).read_text()
    after = mutated(before, mutation)
    assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))
    files = [word for word in shlex.split(mutation.tests.split(" -k ")[0])]
    assert files
    assert all((ROOT / "tests" / file).is_file() for file in files)


def test_there_are_enough():
    assert len(MUTATIONS) >= 30
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS)
