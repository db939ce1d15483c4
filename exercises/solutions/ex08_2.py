"""Solution of ex08_2."""

import math

import torch


def log_z_bound(energy, mean, std):
    """H(q) - E_q[E] in nats, for q = N(mean, std^2)."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    weights = torch.softmax(-(z**2) / 2, 0)
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    return entropy - (weights * energy(mean + std * z)).sum().item()


MUTANTS = [
    ("return entropy", "return -entropy", "entropy has the wrong sign"),
    ("return entropy - ", "return entropy + ", "energy has the wrong sign"),
    ("return entropy - ", "return -", "the best q is a point"),
    ("energy(mean + std * z)", "energy(mean + 0 * z)", "at the mean of q"),
    ("2 * math.pi * math.e", "2 * math.pi", "e is missing"),
    ("2 * math.pi * math.e", "math.e", "2 pi is missing"),
    ("std**2)", "std)", "under the half"),
    ("std**2)", "std**4)", "log std once"),
]
