"""Bad input gets one clear line and a non-zero exit, never a traceback, a silent default or half a file."""

import sys
from typing import get_args, get_type_hints

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
    if "/proc" in args[-1] and not sys.platform.startswith("linux"):
        pytest.skip("only Linux has a folder that nobody can write to")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("kept", encoding="utf-8")
    assert expected in complaint(load(path.name[:2]), args, capsys).replace("\\", "/")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a-file"] or args[0] == "--device"
    assert (tmp_path / "a-file").read_text(encoding="utf-8") == "kept"


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


def test_help_names_every_section_in_ascii(path, capsys):
    module = load(path.name[:2])
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.isascii()
    assert all(section.__doc__ in text for section in module.SECTIONS.values())
