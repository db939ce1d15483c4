"""What the test files share: the modules, loaded by path, since a Python name cannot begin with a digit."""

import functools
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy, for the runs that tests start too: tests share a busy machine
if not os.access(os.path.expanduser("~"), os.W_OK):  # a user without a home: matplotlib would say so on stderr, in every run
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp())

import matplotlib.pyplot as plt
import pytest
import torch

ROOT = Path(__file__).parent.parent
MODULES = sorted(ROOT.glob("[0-9][0-9]_*.py"))

plt.switch_backend("agg")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Under pytest-xdist all tests of one module run in one process, which loads and smoke-runs it once; the last modules,
    whose tests take longest, go first, so that no process is left alone with them at the end."""
    groups = {}
    for item in items:
        path = item.callspec.params.get("path", item.path) if hasattr(item, "callspec") else item.path
        number = re.search(r"\d\d", path.stem)
        group = number.group() if number else path.stem
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)
    numbered = sorted((group for group in groups if group.isdigit()), reverse=True)
    items[:] = [item for group in [*numbered, *(g for g in groups if not g.isdigit())] for item in groups[group]]


@functools.cache
def load(number):
    """The module whose file name begins with `number`, for example load("04")."""
    (path,) = ROOT.glob(f"{number}_*.py")
    spec = importlib.util.spec_from_file_location(f"module_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it, on one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


def import_torchvision():
    """torchvision.datasets, also where torchvision's compiled part does not load beside this build of torch.

    Only after the import has failed are the operators declared that its Python part then asks for: where it succeeds they
    are there already, and to declare them twice aborts the process.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    import_torchvision.library = torch.library.Library("torchvision", "FRAGMENT")  # kept: its end would undo it
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        import_torchvision.library.define(schema)
    return importlib.import_module("torchvision.datasets")
