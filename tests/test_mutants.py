"""The planted mistakes of tests/mutants.py can still be planted and name tests that exist; one that lives is reported."""

import mutants
import pytest
from conftest import ROOT

MUTANTS = [mutant for number in mutants.numbers() for mutant in mutants.mutants(number)]


@pytest.mark.parametrize("number", mutants.numbers())
def test_every_old_text_stands_exactly_once_in_its_module(number):
    text = mutants.file_of(number).read_text(encoding="utf-8")
    planted = mutants.mutants(number)
    assert [mutant.old for mutant in planted if text.count(mutant.old) != 1 or mutant.new == mutant.old] == []
    assert len({(mutant.old, mutant.new) for mutant in planted}) == len(planted)


def test_every_test_that_is_named_exists():
    for file, name in {tuple(mutant.node.split("::")) for mutant in MUTANTS}:
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_a_mistake_that_nobody_notices_is_reported(monkeypatch):
    mutant = mutants.Mutant("04", "(1)", "(2)", "a wrong number of an equation", "test_x")
    monkeypatch.setattr(mutants, "file_of", lambda *_: ROOT / "README.md")
    monkeypatch.setattr(mutants.Path, "read_text", lambda *_, **__: "see eq. (1)")
    for status, noticed in ((0, False), (1, True), (2, False), (4, False)):  # passed, failed, interrupted, no such test
        monkeypatch.setattr(mutants, "run_tests", lambda *_, status=status: status)
        assert (mutants.verdict(mutant, all_tests=False) is None) == noticed
