"""Bad input gets one clear line and a non-zero exit, never a traceback, a silent default or half a file."""

import functools
import signal
import subprocess
import sys
import time
from typing import get_args, get_type_hints

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import MODULES, load

pytestmark = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)

CASES = [
    (["--no-such-flag"], "--no-such-flag"),
    (["--smok"], "--smok"),  # no abbreviations: a later flag could change what they mean
    (["--section", "no-such-section"], "no-such-section"),
    (["--device", "no-such-device"], "no-such-device"),
    (["--device", "cuda"], "no cuda device here"),
    (["--device", "mps"], "no mps device here"),
    (["--out", "a-file"], "cannot write to a-file"),
    (["--out", "a-file/below"], "cannot write to a-file"),
    (["--out", "/proc/no-such-folder"], "cannot write to /proc"),
    (["--seed", "-1"], "--seed"),
    (["--seed", "x"], "--seed"),
    (["--show"], "needs a display"),
]


def complaint(module, args, capsys):
    """The one line with which main(args) ends."""
    with pytest.raises(SystemExit) as stop:
        module.main(args)
    assert isinstance(stop.value.code, str)  # printed on stderr, exit status 1
    assert stop.value.code.count("\n") == 0
    assert capsys.readouterr().err == ""
    return stop.value.code


@pytest.mark.parametrize(("args", "expected"), CASES, ids=[" ".join(args) for args, _ in CASES])
def test_bad_flags(path, args, expected, tmp_path, monkeypatch, capsys):
    if args[0] == "--device" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("the device is there")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("kept")
    assert expected in complaint(load(path.name[:2]), args, capsys)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a-file"] or args[0] == "--device"
    assert (tmp_path / "a-file").read_text() == "kept"


def test_bad_values_of_every_field(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = load(path.name[:2])
    for name, hint in get_type_hints(module.Config, include_extras=True).items():
        flag = f"--{name.replace('_', '-')}"
        bad = ["no-such-choice"] if get_args(hint.__origin__) else ["-3", "0", "nan", "inf", "x", ""]
        bad = [] if hint.__origin__ is str else bad  # free text: a file's name
        for value in bad:
            assert flag in complaint(module, [flag, value], capsys)
    assert list(tmp_path.iterdir()) == []


def test_show_opens_every_figure(path, tmp_path, monkeypatch, capsys):
    module, shown = load(path.name[:2]), []
    monkeypatch.setattr(plt, "get_backend", lambda: "a window")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    first = next(iter(module.SECTIONS))
    module.main(["--smoke", "--show", "--section", first, "--out", str(tmp_path)])
    assert len(shown) == len(list(tmp_path.glob("*.png")))


def test_help_names_every_section_in_ascii(path, capsys):
    module = load(path.name[:2])
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.isascii()
    assert all(section.__doc__ in text for section in module.SECTIONS.values())


def test_a_number_that_is_not_finite_ends_the_run(path, tmp_path):
    module = load(path.name[:2])
    run = module.Run(module.Config(), 0, "cpu", tmp_path, False)
    for bad in (
        {"value": float("nan")},
        {"value": 1.0, "sem": float("inf")},
        {"value": 1.0, "against": ("x", float("nan"))},
    ):
        with pytest.raises(SystemExit, match="diverged"):
            run.metric("bad", **bad)


def test_a_file_that_fails_half_way_leaves_the_old_one(path, tmp_path):
    module = load(path.name[:2])
    run = module.Run(module.Config(), 0, "cpu", tmp_path, False)
    (tmp_path / "a.txt").write_text("old")

    def fail_half_way():
        with run.whole("a.txt") as partial:
            partial.write_text("ne")
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, fail_half_way)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a.txt", "old")]


def test_ctrl_c_ends_a_run_with_one_line(path, tmp_path):
    command = [sys.executable, "-I", str(path), "--out", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **pipes) as process:
        while not process.stdout.readline().startswith("["):  # the first section has begun
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert errors == "interrupted\n"
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert list((tmp_path / "out").glob(".partial*")) == []
