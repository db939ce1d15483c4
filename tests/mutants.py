"""Who tests the tests? Mistakes that a reader, a reviewer or next year's engineer could make, planted one at a time.

    python tests/mutants.py                the mutants of all modules
    python tests/mutants.py 04 05          those of two modules
    python tests/mutants.py --all-tests    run a module's whole test file where the named test is missing or notices nothing

Each module NN has its list in tests/mutants_NN.py: (old text, new text, what mistake it is, the test that notices it). The
old text stands exactly once in the module. The named test alone is run on the sound copy, where it must pass, and on the
mistaken one, where it must fail. Prints what nobody noticed, and exits non-zero. Runs are forked from one process that has
imported everything (where there is no fork, each starts anew), one a core.
"""

import argparse
import contextlib
import functools
import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """A planted mistake: module NN's `old` text becomes `new`; `test` (test name, or file.py::name) is said to notice."""

    number: str
    old: str
    new: str
    mistake: str
    test: str

    @property
    def node(self):
        """The test as pytest names it."""
        return (
            f"tests/{self.test}" if "::" in self.test else f"tests/{file_of(self.number, 'tests/test_').name}::{self.test}"
        )


def file_of(number, prefix=""):
    """The one file whose name begins so: the module, or its test file."""
    (path,) = ROOT.glob(f"{prefix}{number}_*.py")
    return path


def test_file(number):
    """The name of module `number`'s test file."""
    return file_of(number, "tests/test_").name


@functools.cache
def mutants(number):
    """The list of one module's mutants, from tests/mutants_NN.py."""
    path = ROOT / "tests" / f"mutants_{number}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [Mutant(number, *entry) for entry in module.MUTANTS]


def numbers():
    """The modules that have a list."""
    return sorted(path.stem[-2:] for path in (ROOT / "tests").glob("mutants_[0-9][0-9].py"))


def run_tests(nodes, number, text):
    """pytest's exit status for some tests, in a copy of the project in which module `number` reads `text`."""
    import pytest

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "data", "__pycache__"))
        (copy / file_of(number).name).write_text(text, encoding="utf-8")
        os.chdir(copy)
        sys.path[:] = [str(copy / "tests"), *(entry for entry in sys.path if Path(entry) != ROOT / "tests")]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir", str(copy), "-n", "0"]
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            status = pytest.main([*options, *nodes])
        os.chdir(ROOT)
    return int(status)


def verdict(mutant, all_tests):
    """None if the mutant is noticed, else what is wrong: (mutant, sentence)."""
    text = file_of(mutant.number).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return mutant, f"the old text stands {text.count(mutant.old)} times in the module"
    mistaken = text.replace(mutant.old, mutant.new)
    if run_tests([mutant.node], mutant.number, mistaken) == 1:
        return None
    if all_tests and run_tests([f"tests/{test_file(mutant.number)}"], mutant.number, mistaken) == 1:
        return mutant, f"noticed by another test than {mutant.test}"
    return mutant, f"not noticed by {mutant.test}"


def sound(node_and_number):
    """None if a named test passes on the sound module, else (the test, a sentence)."""
    node, number = node_and_number
    status = run_tests([node], number, file_of(number).read_text(encoding="utf-8"))
    return (node, "does not pass on the sound module") if status else None


def main(argv=None):
    """Plant, run, and say what was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", default=numbers(), metavar="NN", help="modules (default: all with a list)")
    parser.add_argument("--all-tests", action="store_true", help="try the whole test file where the named test fails")
    args = parser.parse_args(argv)
    unknown = set(args.numbers) - set(numbers())
    if unknown:
        parser.error(f"no tests/mutants_{min(unknown)}.py")
    planted = [mutant for number in args.numbers for mutant in mutants(number)]
    named = sorted({(mutant.node, mutant.number) for mutant in planted})
    forks = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    preload()
    judge = functools.partial(verdict, all_tests=args.all_tests)
    with forks.Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        broken = list(filter(None, pool.imap(sound, named, chunksize=1)))
        missed = list(filter(None, pool.imap(judge, planted, chunksize=1)))
    for test, sentence in broken:
        print(f"{test}: {sentence}")
    for mutant, sentence in missed:
        print(f"{mutant.number}: {mutant.mistake}\n    {mutant.old!r} -> {mutant.new!r}\n    {sentence}")
    print(f"{len(planted)} mutants, {len(planted) - len(missed)} noticed by the test that is named")
    return 1 if missed or broken else 0


def preload():
    """Import once what every test file needs, so that a forked run starts at once."""
    import matplotlib.pyplot as plt
    import scipy.stats  # noqa: F401
    import sklearn.datasets
    import sklearn.linear_model
    import sklearn.mixture
    import sklearn.svm  # noqa: F401
    import torch

    plt.switch_backend("agg")
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
