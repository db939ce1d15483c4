"""The copies between modules are alike, and the tool that says so notices when they are not."""

import pytest
from conftest import ROOT
from sync_copies import problems

ORIGINAL = "def f(x):\n    return x + 1\n"
MARK = "# Copied from 01_a.py: f\n"


def test_no_copy_has_drifted():
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    ("copy", "complaint"),
    [
        (MARK + ORIGINAL, None),
        (MARK + "def f(x):\n    return x + 2\n", "drifted"),
        (ORIGINAL, "no mark"),
        ("# Differs from 01_a.py: f - it doubles\ndef f(x):\n    return 2 * x\n", None),
        ("# Copied from 01_a.py: g\n" + ORIGINAL, "not there"),
        ("# Copied from 03_c.py: f\n" + ORIGINAL, "not there"),
        (MARK + "@cache\n" + ORIGINAL, "drifted"),
    ],
)
def test_problems_are_noticed(tmp_path, copy, complaint):
    (tmp_path / "01_a.py").write_text("x = 1\n\n\n" + ORIGINAL, encoding="utf-8")
    (tmp_path / "02_b.py").write_text("y = 2\n\n\n" + copy, encoding="utf-8")
    found = problems(tmp_path)
    assert len(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]


def test_a_copy_of_a_copy_is_noticed(tmp_path):
    for name, mark in (("01_a.py", ""), ("02_b.py", MARK), ("03_c.py", "# Copied from 02_b.py: f\n")):
        (tmp_path / name).write_text("x = 1\n\n\n" + mark + ORIGINAL, encoding="utf-8")
    (complaint,) = problems(tmp_path)
    assert "copy of a copy" in complaint


def test_fix_renews_drifted_copies_and_nothing_else(tmp_path):
    (tmp_path / "01_a.py").write_text("x = 1\n\n\n" + ORIGINAL, encoding="utf-8")
    drifted = "y = 2\n\n\n" + MARK + "def f(x):\n    # longer\n    return x - 1\n\n\nz = 3\n\n\ndef g():\n    pass\n"
    (tmp_path / "02_b.py").write_text(drifted, encoding="utf-8")
    assert problems(tmp_path, fix=True) == []
    assert problems(tmp_path) == []
    assert (tmp_path / "02_b.py").read_text(
        encoding="utf-8"
    ) == "y = 2\n\n\n" + MARK + ORIGINAL + "\n\nz = 3\n\n\ndef g():\n    pass\n"


def test_fix_keeps_the_places_where_another_if_stands_at_the_top(tmp_path):
    """The mistake: taking any `if` for `if __name__ ...`, whose copy is then written over other lines."""
    main = 'if __name__ == "__main__":\n    f()\n'
    (tmp_path / "01_a.py").write_text("if True:\n    x = 1\n\n\n" + ORIGINAL + "\n\n" + main, encoding="utf-8")
    copied = "if True:\n    x = 2\n\n\n{}{}\n\n# Copied from 01_a.py: __main__\n{}"
    (tmp_path / "02_b.py").write_text(copied.format(MARK, ORIGINAL + "# longer\n", main + "    f()\n"), encoding="utf-8")
    assert problems(tmp_path, fix=True) == []
    assert (tmp_path / "02_b.py").read_text(encoding="utf-8") == copied.format(MARK, ORIGINAL + "# longer\n", main)
