"""The check of ex02_2: pair by pair, how many patterns agree less how many differ; Hadamard patterns are fixed points."""

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "Three steps: to +-1, one matrix product, no self-coupling. hebb of module 02 begins with the second.",
    "X = 2 bits - 1 has shape (P, N): which of X'X and XX' is (N, N)? Then set its diagonal to 0.",
    "W = X.T @ X / X.shape[1]; W.fill_diagonal_(0); return W",
)


def agreements(bits):
    n = bits.shape[1]
    pairs = [(bits[:, i] == bits[:, j]).double().mul(2).sub(1).sum().item() for i in range(n) for j in range(n)]
    return torch.tensor(pairs, dtype=torch.float64).view(n, n)


def check(learner, seed):
    p, n = 5, 9
    bits = Draws(seed).bits(p, n)
    counts = agreements(bits)
    with_diagonal = counts / n
    want = with_diagonal - torch.diag(with_diagonal.diagonal())
    unmapped = bits.T @ bits / n
    wrong = {
        "W_ii is not 0: a unit must not hold itself.": with_diagonal,
        "The sum is divided by P, the number of patterns; eq. (3) has N, the number of units.": want * n / p,
        "The bits 0 and 1 are used as they are: map 0 to -1 first.": unmapped - torch.diag(unmapped.diagonal()),
        "The bits are mapped the wrong way, or not by 2 bits - 1.": (bits - 0.5).T @ (bits - 0.5) / n * (1 - torch.eye(n)),
        "The agreements are not divided by N.": want * n,
        "The patterns lie in rows: X'X is (N, N), XX' is (P, P).": (2 * bits - 1)
        @ (2 * bits - 1).T
        / n
        * (1 - torch.eye(p)),
        "The sign is reversed: agreement is a positive coupling.": -want,
    }
    expect(learner.hebb_from_bits, (bits,), want, wrong, {"N": n, "P": p})
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    memories = hadamard[1:4]  # three orthogonal patterns of eight units
    field = learner.hebb_from_bits((memories + 1) / 2) @ memories.T
    if not torch.equal(field.sign(), memories.T):
        raise NotYet("three orthogonal patterns of eight units are no fixed points of your W")
