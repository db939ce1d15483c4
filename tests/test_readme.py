"""The README promises what is there: its table, its commands, its links."""

import re

from conftest import MODULES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_exactly_the_modules_that_exist_are_called_ready_or_draft():
    rows = [line for line in README.splitlines() if re.match(r"\| \d\d \|", line)]
    assert [row[2:4] for row in rows] == [f"{number:02d}" for number in range(1, 11)]
    there = [re.search(r"\((\d\d_\w+\.py)\)", row).group(1) for row in rows if row.endswith(("| ready |", "| draft |"))]
    assert there == [path.name for path in MODULES]
    assert all(("planned" in row) != (".py" in row) for row in rows)


def test_links_and_commands_name_files_that_exist():
    for name in re.findall(r"\]\(([^)#:]+)\)|(?:python|--to ipynb|-r) ([\w/]+\.(?:py|txt))", README):
        assert (ROOT / (name[0] or name[1])).exists(), name


def test_the_gate_runs_the_test_command_of_the_readme():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for part in ("-m venv", "install", "-r tests/requirements.txt", "-m pytest"):
        assert part in gate
        assert part in README
