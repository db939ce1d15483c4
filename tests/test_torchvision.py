"""The tests' own way to torchvision works where its compiled part loads and where it does not (conftest.import_torchvision).

Both happen to users: an ordinary installation loads, a CPU build of torch beside PyPI's torchvision does not. Each case runs
in a process of its own, against a stand-in package, since a second declaration of an operator aborts the process.
"""

import subprocess
import sys

import pytest
from conftest import ROOT

LOADS = """
import torch
library = torch.library.Library("torchvision", "DEF")  # what the compiled part does when it loads
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
DOES_NOT_LOAD = """
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""
SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import conftest
for _ in range(2):  # two fixtures
    assert conftest.import_torchvision().WHERE == "the stand-in"
"""


@pytest.mark.parametrize("start", [LOADS, DOES_NOT_LOAD], ids=["loads", "does not load"])
def test_torchvision_is_imported_first_and_mended_only_where_that_fails(start, tmp_path):
    """The mistake: declaring the operators first, which aborts every ordinary installation."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(start, encoding="utf-8")
    (tmp_path / "torchvision" / "datasets.py").write_text('WHERE = "the stand-in"\n', encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(ROOT / "tests")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
