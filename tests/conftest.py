"""What the test files share: the modules, loaded by path, since a Python name cannot begin with a digit."""

import functools
import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy, for the runs that tests start too: tests share a busy machine

import matplotlib.pyplot as plt
import pytest
import torch

ROOT = Path(__file__).parent.parent
MODULES = sorted(ROOT.glob("[0-9][0-9]_*.py"))

plt.switch_backend("agg")


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
