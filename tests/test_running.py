"""What every module does when it is run: output, files, devices, notebooks, and one line for bad input.

The part *Running the module* is the same in all (tests/test_copies.py), so most of it is tested on one module, with a
section of two lines in place of the lesson's.
"""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import MODULES, load

m = load("05")
windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals, pipes or devices")


def run_with(monkeypatch, section, args=(), module=m):
    """main() with one section in place of the module's own."""
    section.__doc__ = "A section of a test."
    monkeypatch.setattr(module, "SECTIONS", {"stub": section})
    module.main(["--smoke", *args])


def saved(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]


# Output


def test_a_line_reads_name_value_error_and_what_stands_beside_it(tmp_path, capsys):
    run = m.Run(m.Config(), 0, "cpu", tmp_path, False)
    run.begin("here", "What the lecture says.")
    run.metric("mean of x (nats)", 1.25, sem=0.5, against=("exact", 1.5), within=0.2)
    run.metric("without an error", 2.0, against=("exact", 2.0), within=1e-9)
    run.say("the first is off")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["[here] What the lecture says.", f"  {'':<44}    measured  std. error   beside it"]
    assert lines[3] == f"  {'mean of x (nats)':<44}        1.25         0.5   exact: 1.5 (within 0.2: OFF)"
    assert lines[4] == f"  {'without an error':<44}           2               exact: 2 (within 1e-09: ok)"
    assert lines[5] == "  => the first is off"


@pytest.mark.parametrize(
    "bad", [{"value": float("nan")}, {"value": 1.0, "sem": float("inf")}, {"value": 1.0, "against": ("x", float("nan"))}]
)
def test_a_number_that_is_not_finite_ends_the_run(bad, tmp_path):
    with pytest.raises(SystemExit, match="diverged"):
        m.Run(m.Config(), 0, "cpu", tmp_path, False).metric("bad", **bad)


def test_what_leaves_a_training_must_be_finite():
    m.must_be_finite("training", torch.ones(2), [1.0, 2.0], 3)
    for bad in (torch.tensor([1.0, float("nan")]), [float("inf")]):
        with pytest.raises(SystemExit, match="training diverged"):
            m.must_be_finite("training", torch.ones(2), bad)


def test_each_line_is_flushed_and_a_reader_that_went_away_does_not_end_the_run(monkeypatch):
    class Pipe(io.StringIO):
        flushed, error = 0, None

        def write(self, text):
            if self.error:
                raise self.error
            return super().write(text)

        def flush(self):
            self.flushed += 1

        def fileno(self):
            return -1

    pipe, replaced = Pipe(), []
    with monkeypatch.context() as patch:  # undone at once: pytest itself captures by dup2
        patch.setattr(sys, "stdout", pipe)
        patch.setattr(os, "dup2", lambda new, old: replaced.append(old) or os.close(new))
        m.echo("a line")
        assert (pipe.getvalue(), pipe.flushed) == ("a line\n", 1)
        for pipe.error in (BrokenPipeError(errno.EPIPE, "broken"), OSError(errno.EINVAL, "broken, on Windows")):
            m.echo("another")
        assert replaced == [-1, -1]
        pipe.error = OSError(errno.ENOSPC, "full")
        with pytest.raises(OSError, match="full"):
            m.echo("a third")


@windows
@pytest.mark.parametrize("number", ["03", "07"])  # 07 has an entry of its own
def test_the_run_goes_on_quietly_when_its_reader_leaves(number, tmp_path):
    """`python 03_... --smoke | head -1`: no noise, and the numbers are saved."""
    (path,) = (path for path in MODULES if path.name.startswith(number))
    section = list(load(number).SECTIONS)[1]
    command = [sys.executable, str(path), "--smoke", "--section", section, "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    assert saved(tmp_path / "out")


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="file names are ASCII in this locale")
@pytest.mark.parametrize("number", ["03", "07"])
def test_a_console_that_cannot_print_the_folders_name_does_not_end_the_run(number, tmp_path):
    (path,) = (path for path in MODULES if path.name.startswith(number))
    section, environment = list(load(number).SECTIONS)[1], os.environ | {"PYTHONIOENCODING": "ascii"}
    out = tmp_path / "é 音"
    command = [sys.executable, str(path), "--smoke", "--section", section, "--out", str(out)]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="ascii", check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert saved(out)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter(range(0, 1000, 8))  # eight seconds a step
    monkeypatch.setattr(m.time, "monotonic", lambda: next(clock))
    assert list(m.Progress(range(5, 10), "training", initial=5, total=10)) == [5, 6, 7, 8, 9]
    assert capsys.readouterr().out == "  ... training: 8 of 10\n"


# Files


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    run = m.Run(m.Config(), 0, "cpu", tmp_path, False)
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")

    def fail_half_way():
        with run.whole("a.txt") as partial:
            partial.write_text("ne", encoding="utf-8")
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, fail_half_way)
    assert [(entry.name, entry.read_text(encoding="utf-8")) for entry in tmp_path.iterdir()] == [("a.txt", "old")]


@pytest.mark.parametrize("refusals", [1, 4, 5])
def test_a_rename_that_is_refused_for_a_moment_is_tried_again(refusals, tmp_path, monkeypatch):
    """On Windows a virus scanner holds a new file for a moment; the numbers of a long run must not be lost to it."""
    left, rename = [True] * refusals, Path.replace
    monkeypatch.setattr(m.time, "sleep", lambda _: None)

    def sometimes(self, target):
        if left:
            left.pop()
            raise PermissionError("held")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", sometimes)
    (tmp_path / "partial").write_text("new", encoding="utf-8")
    if refusals == 5:
        with pytest.raises(PermissionError, match="held"):
            m.put_in_place(tmp_path / "partial", tmp_path / "whole")
    else:
        m.put_in_place(tmp_path / "partial", tmp_path / "whole")
        assert (tmp_path / "whole").read_text(encoding="utf-8") == "new"


@windows
@pytest.mark.parametrize("number", [0, 6])  # 07 has a second process: left behind, it would hold the pipes open
def test_ctrl_c_ends_a_run_with_one_line(number, tmp_path):
    command = ["-I", str(MODULES[number]), "--device", "cpu", "--out", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell's background jobs ignore Ctrl-C, and so would their children:
    restart = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    heed = f"import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); {restart}"
    with subprocess.Popen([sys.executable, "-c", heed, *command], cwd=tmp_path, **pipes) as process:
        while not process.stdout.readline().startswith("["):  # the first section has begun
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors == "interrupted\n"
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert list((tmp_path / "out").glob(".partial*")) == []


# Where it runs


def test_show_opens_every_figure(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "get_backend", lambda: "a window")
    monkeypatch.setattr(plt, "switch_backend", lambda name: None)
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    m.main(["--smoke", "--show", "--section", "bias", "--out", str(tmp_path)])
    assert len(shown) == len(list(tmp_path.glob("*.png"))) > 0


def test_main_gives_back_the_backend_and_the_threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    plt.switch_backend("svg")
    seen = []
    run_with(monkeypatch, lambda run: seen.append((plt.get_backend(), torch.get_num_threads())), ["--threads", "1"])
    left = plt.get_backend().lower(), torch.get_num_threads()
    plt.switch_backend("agg")
    assert seen == [("agg", 1)]
    assert left == ("svg", 2)


def test_figures_appear_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    monkeypatch.setattr(plt, "switch_backend", lambda name: None)
    run_with(monkeypatch, lambda run: run.figure(plt.figure(), "empty"))
    assert len(shown) == 1


def test_the_caches_of_one_run_at_most_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = m.functools.cache(lambda run: object())
    monkeypatch.setattr(m, "trained_by_a_test", trained, raising=False)
    for _ in range(3):
        run_with(monkeypatch, lambda run: [trained(run), trained(run)])
    assert trained.cache_info().currsize == 1
    assert trained.cache_info().hits == 1


def test_a_gpu_that_is_seen_and_cannot_compute_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ones, seen = torch.ones, []

    def no_kernel(*size, device):
        if device == "cuda":
            raise RuntimeError("no kernel image is available\nfor execution")
        return ones(*size, device=device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_kernel)
    run_with(monkeypatch, lambda run: seen.append(run.device.type))
    assert seen == ["cpu"]
    assert "a GPU is seen and cannot compute (no kernel image is available): the CPU goes on" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no cuda device here that computes"):
        run_with(monkeypatch, lambda run: None, ["--device", "cuda"])


def test_a_training_leaves_the_random_streams_of_cpu_and_device_alone(monkeypatch):
    """The mistake: torch.random.fork_rng() alone restores CUDA's stream, and not that of another GPU."""
    asked, fork = [], torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda **options: asked.append(options) or fork(devices=[]))
    train = m.own_random_stream(lambda run, n: torch.rand(n))
    before = torch.get_rng_state()
    for device in ("cpu", "mps", "cuda:1"):
        train(type("Run", (), {"device": torch.device(device)}), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert asked == [{"devices": []}, {"devices": [0], "device_type": "mps"}, {"devices": [1], "device_type": "cuda"}]


def test_too_little_memory_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def section(run):
        torch.empty(2**52)

    with pytest.raises(SystemExit, match=r"^\[stub\] needs more memory than there is"):
        run_with(monkeypatch, section)

    def broken(run):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="ours"):
        run_with(monkeypatch, broken)
