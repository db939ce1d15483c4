"""Solution of ex03_2."""

import torch


def metropolis_kernel(energies):
    """The transition matrix (2^n, 2^n) of one single-flip Metropolis step at T = 1."""
    n = len(energies).bit_length() - 1
    here = torch.arange(2**n)
    K = torch.zeros(2**n, 2**n, dtype=energies.dtype)
    for i in range(n):
        there = here ^ 2**i
        K[here, there] = (energies[here] - energies[there]).exp().clamp(max=1) / n
    return K + torch.diag(1 - K.sum(1))  # rejected: stay


MUTANTS = [
    ("K + torch.diag(1 - K.sum(1))", "K", "a rejected move stays"),
    ("clamp(max=1) / n", "clamp(max=1)", "One unit is chosen first"),
    ("energies[here] - energies[there]", "energies[there] - energies[here]", "climbs in energy"),
    ("(energies[here] - energies[there]).exp().clamp(max=1)", "(energies[here] - energies[there]).sigmoid()", "heat bath"),
    (".clamp(max=1)", "", "An acceptance is a probability"),
    ("K + torch.diag(1 - K.sum(1))", "(energies[:, None] - energies).exp().clamp(max=1)", "acceptances of all pairs"),
    ("K + torch.diag(1 - K.sum(1))", "K / K.sum(1, keepdim=True)", "another chain"),
]
