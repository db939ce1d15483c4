"""Every module runs alone on tiny settings, quietly and quickly, and leaves numbers and pictures behind."""

import functools
import json
import math
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import pytest
from conftest import MODULES, load

pytestmark = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """smoke(path) runs a module alone in an empty folder, once: (process, its output folder, seconds)."""

    @functools.cache
    def run(path):
        folder = tmp_path_factory.mktemp(path.stem)
        (folder / path.name).write_bytes(path.read_bytes())
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-I", path.name, "--smoke"], cwd=folder, capture_output=True, text=True, check=False
        )
        return process, folder / "outputs" / path.stem, time.perf_counter() - start

    return run


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_it_succeeds_without_a_warning_within_15_seconds(path, smoke):
    process, _, seconds = smoke(path)
    assert process.stderr == ""
    assert process.returncode == 0
    assert process.stdout.isascii()
    assert seconds <= 15


def test_metrics_json_holds_what_it_promises(path, smoke):
    record = read_metrics(smoke(path)[1])
    sections = load(path.name[:2]).SECTIONS
    assert set(record) == {"config", "seed", "device", "torch", "seconds", "section_seconds", "metrics"}
    assert list(record["section_seconds"]) == list(sections)
    assert record["seconds"] == pytest.approx(sum(record["section_seconds"].values()))
    for name, entry in record["metrics"].items():
        assert name.split("/")[0] in sections
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
    module, whole = load(path.name[:2]), read_metrics(smoke(path)[1])["metrics"]
    alone = {}
    for section in reversed(module.SECTIONS):
        module.main(["--smoke", "--section", section, "--out", str(tmp_path)])
        alone |= read_metrics(tmp_path)["metrics"]
    timed = ("_seconds", "_per_second")
    assert alone.keys() == whole.keys()
    for name in alone:
        assert name.endswith(timed) or alone[name] == whole[name], name


def test_it_runs_as_cells_of_a_notebook(path, tmp_path, monkeypatch):
    """A notebook has no __file__: the last cell runs nothing, and main(...) is called by hand."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    exec(path.read_text(), namespace)
    first = next(iter(namespace["SECTIONS"]))
    namespace["main"](["--smoke", "--section", first])
    assert (tmp_path / "outputs" / "notebook" / "metrics.json").exists()
