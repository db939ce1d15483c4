"""Every module runs alone on tiny settings, quietly, and leaves numbers and pictures behind."""

import functools
import json
import math
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from conftest import MODULES, load

pytestmark = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """smoke(path) runs a module alone in an empty folder, once: (process, its output folder).

    The environment is as a notebook leaves it to what it starts: a plotting backend that is not installed here.
    """

    @functools.cache
    def run(path):
        folder = tmp_path_factory.mktemp(path.stem)
        (folder / path.name).write_bytes(path.read_bytes())
        command = [sys.executable, "-I", "-W", "error", path.name, "--smoke"]
        environment = os.environ | {"MPLBACKEND": "module://no_such_package.backend"}
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
        return process, folder / "outputs" / path.stem

    return run


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_it_succeeds_without_a_warning(path, smoke):
    process, _ = smoke(path)
    assert process.stderr == ""
    assert process.returncode == 0
    assert process.stdout.isascii()


def test_metrics_json_holds_what_it_promises(path, smoke):
    record = read_metrics(smoke(path)[1])
    sections = load(path.name[:2]).SECTIONS
    assert set(record) == {"config", "seed", "device", "torch", "seconds", "section_seconds", "metrics"}
    assert list(record["section_seconds"]) == list(sections)
    assert record["seconds"] == pytest.approx(sum(record["section_seconds"].values()))
    for name, entry in record["metrics"].items():
        section, _, words = name.partition("/")
        assert section in sections
        assert 0 < len(words) <= 44
        assert "value" in entry
        assert set(entry) <= {"value", "sem", "against", "reference", "within", "ok"}
        assert all(math.isfinite(number) for key, number in entry.items() if key != "against")
        assert ("against" in entry) == ("reference" in entry)
        assert ("within" in entry) == ("ok" in entry)
        if "ok" in entry:
            assert entry["ok"] is (abs(entry["value"] - entry["reference"]) <= entry["within"])


def test_every_section_leaves_a_metric_and_a_figure_that_is_not_blank(path, smoke):
    folder = smoke(path)[1]
    metrics = read_metrics(folder)["metrics"]
    for section in load(path.name[:2]).SECTIONS:
        assert any(name.startswith(f"{section}/") for name in metrics), section
        figures = list(folder.glob(f"{section}_*.png"))
        assert figures, section
        for figure in figures:
            darkest_channel = plt.imread(figure)[..., :3].min(-1)
            assert (darkest_channel < 0.9).mean() > 0.01, figure.name
    assert list(folder.glob(".partial*")) == []


def test_a_section_alone_gives_the_numbers_of_the_whole_run(path, smoke, tmp_path):
    """The mistake: a section that trains draws from the stream of the next one, or depends on what ran before it."""
    module, whole = load(path.name[:2]), read_metrics(smoke(path)[1])["metrics"]
    alone = {}
    for section in list(module.SECTIONS)[::-2]:  # every second one, the last first
        module.main(["--smoke", "--section", section, "--out", str(tmp_path)])
        alone |= read_metrics(tmp_path)["metrics"]
    timed = ("seconds", "per_second", "(s)", "(ms)")
    assert alone
    for name in alone:
        assert name.endswith(timed) or alone[name] == whole[name], name


def test_it_runs_as_cells_of_a_notebook(path, tmp_path, monkeypatch):
    """Cells define everything and run nothing, also where the editor sets __file__ (VS Code: here for the even modules);
    main() leaves the notebook as it was.

    The mistakes: reading the kernel's command line, and a backend or a number of threads that stays behind.
    """
    with_file = int(path.name[:2]) % 2 == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    namespace = {"__name__": "__main__"}
    if with_file:
        namespace["__file__"] = str(path)
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    exec(path.read_text(encoding="utf-8"), namespace)
    assert list(tmp_path.iterdir()) == []
    assert namespace["parse_args"]()[0].section == "all"
    first = next(iter(namespace["SECTIONS"]))
    namespace["main"](["--smoke", "--section", first])
    assert (tmp_path / "outputs" / (path.stem if with_file else "notebook") / "metrics.json").exists()
