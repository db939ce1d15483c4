"""Whatever positive settings a user types, a section succeeds or says in one line why it cannot: no crash, no endless loop.

200 settings a module, drawn from a seed: 5 in the default suite, the others with `-m full`.
"""

import contextlib
import random
import signal
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import MODULES, load
from matplotlib.figure import Figure

SECONDS = 120  # of this process, which no case needs on any machine, busy or not: longer is an endless loop
CHUNK = 5


def some_value(rng, name, kind, base):
    """A value for a field whose smoke value is `base`: itself, tiny, a little more, or extreme."""
    if get_args(kind):
        return rng.choice(get_args(kind))
    if kind is float:
        return rng.choice([base, base * 10 ** rng.uniform(-3, 3), base * 10 ** rng.uniform(-9, 9), 1e-30, 1e30])
    more = [10_000] if "batch" in name else [2 * base, 4 * base]
    return rng.choice([1, 2, 3, 7, rng.randint(1, base), base, base + 1, *more])


def some_arguments(module, rng):
    """Command-line arguments: a section, a seed, and about half of the fields of Config."""
    arguments = ["--smoke", "--section", rng.choice(list(module.SECTIONS))]
    arguments += ["--seed", str(rng.choice([0, 1, rng.randrange(2**32), 2**32 - 1]))]
    for name, hint in get_type_hints(module.Config, include_extras=True).items():
        kind, base = hint.__origin__, module.SMOKE.get(name, getattr(module.Config, name))
        if kind is not str and name not in ("dataset", "threads") and rng.random() < 0.5:
            arguments += [f"--{name.replace('_', '-')}", str(some_value(rng, name, kind, base))]
    return arguments


@contextlib.contextmanager
def at_most(seconds):
    """Stop an endless loop with an error after so many seconds of this process's own time (where the system counts it)."""

    def ring(*_):
        raise TimeoutError(f"still running after {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def trouble(module, arguments, out):
    """What went wrong with these arguments, or None."""
    try:
        with at_most(SECONDS):
            module.main([*arguments, "--out", str(out)])
    except SystemExit as stop:
        one_line = isinstance(stop.code, str) and stop.code.strip() and "\n" not in stop.code
        return None if one_line else f"exit with {stop.code!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = error.__traceback__
        while place.tb_next and place.tb_next.tb_frame.f_globals.get("__name__") == module.__name__:
            place = place.tb_next
        return f"{type(error).__name__}: {str(error)[:200]} (line {place.tb_lineno})"
    return None


@pytest.mark.filterwarnings("ignore")  # overflow is what we look for; a warning about it is welcome
@pytest.mark.parametrize("chunk", [0, *(pytest.param(chunk, marks=pytest.mark.full) for chunk in range(1, 40))])
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_any_settings_end_well(path, chunk, tmp_path, monkeypatch):
    """The mistake: a batch larger than the data that spins, one chain without a spread, a rate that overflows."""
    save = Figure.savefig

    def draw(figure, file, **options):  # lay it out, and save time; but a frame of an animation goes into a buffer
        return (
            save(figure, file, **options)
            if hasattr(file, "write")
            else figure.draw_without_rendering() or Path(file).touch()
        )

    monkeypatch.setattr(Figure, "savefig", draw)
    monkeypatch.chdir(tmp_path)
    module, rng = load(path.name[:2]), random.Random(1000 * chunk + int(path.name[:2]))
    found = []
    for arguments in [some_arguments(module, rng) for _ in range(CHUNK)]:
        problem = trouble(module, arguments, tmp_path / "out")
        if problem:
            found.append(f"{' '.join(arguments)}\n    {problem}")
    assert not found, "\n".join(found)
