"""Seconds of each module's smoke run, beside the seconds that importing torch alone takes: python tests/benchmarks/smoke.py

A smoke run is what a fork's CI repeats, so it should cost little more than starting up.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def seconds(*arguments):
    """Seconds of one run of Python with these arguments, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main():
    """Print a line for each module."""
    bare = min(seconds("-c", "import torch") for _ in range(3))
    print(f"import torch alone: {bare:.1f} s")
    for path in sorted(ROOT.glob("[0-9][0-9]_*.py")):
        taken = seconds("-I", path, "--smoke")
        print(f"{path.stem:<36}{taken:6.1f} s, {taken / bare:5.1f} times that", flush=True)


if __name__ == "__main__":
    main()
