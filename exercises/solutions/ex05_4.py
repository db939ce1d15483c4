"""Solution of ex05_4."""

import math

import torch


def sweeps_needed(K, pi, tolerance):
    """The least number of sweeps after which the bound is at most `tolerance`, whatever the start."""
    root = pi.sqrt()
    symmetric = root[:, None] * K / root
    values = torch.linalg.eigvalsh((symmetric + symmetric.T) / 2)
    r = values.abs().sort().values[-2].item()
    size = 0.5 * math.sqrt(1 / pi.min().item() - 1)
    return max(0, math.ceil(math.log(tolerance / size) / math.log(r)))


MUTANTS = [
    ("math.ceil(", "math.floor(", "rounded down"),
    ("[-2]", "[-1]", "Eigenvalue 1 is pi's own"),
    ("[-2]", "[-3]", "The slowest decides"),
    ("values.abs().sort()", "values.sort()", "in absolute value"),
    ("math.log(r)", "(2 * math.log(r))", "of chi^2"),
    ("pi.min()", "pi.max()", "*least* likely"),
    ("0.5 * math.sqrt(", "math.sqrt(", "The half before"),
    ("0.5 * math.sqrt(1 / pi.min().item() - 1)", "0.5 * (1 / pi.min().item() - 1)", "The root"),
    (
        "max(0, math.ceil(math.log(tolerance / size) / math.log(r)))",
        "math.ceil(math.log(tolerance / size) / math.log(r))",
        "and not fewer",
    ),
]
