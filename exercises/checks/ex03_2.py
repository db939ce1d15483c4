"""The check of ex03_2: detailed balance, p_a K_ab = p_b K_ba with the larger of the two K at 1/n, fixes the matrix."""

import torch

from compare import Draws, expect

HINTS = (
    "Row a has n + 1 entries that are not 0: its n neighbours a ^ 2**i, and a itself.",
    "K[a, b] = min(1, exp(E_a - E_b)) / n for a neighbour b. What is left of each row's sum to 1 is K[a, a].",
    "Loop over the units: b = a ^ 2**i for all a at once, K[a, b] = ...; then K += torch.diag(1 - K.sum(1)).",
)


def check(learner, seed):
    n = 4
    energies = 2 * Draws(seed).normal(2**n)
    p = (-energies).exp()
    p = p / p.sum()
    count = torch.arange(2**n)
    flips = count[:, None] ^ count
    near = ((flips > 0) & (flips & (flips - 1) == 0)).double()  # one bit differs
    stay = lambda moves: moves + torch.diag(1 - moves.sum(1))
    accept = (p / p[:, None]).clamp(max=1)
    want = stay(near * accept / n)
    assert torch.allclose(p @ want, p, rtol=1e-12)
    wrong = {
        "The rows do not sum to 1: a rejected move stays where it is, on the diagonal.": near * accept / n,
        "One unit is chosen first: each flip is proposed with 1/n.": stay(near * accept),
        "The sign is reversed: it climbs in energy.": stay(near * (p[:, None] / p).clamp(max=1) / n),
        "That is the heat bath's acceptance, p_b/(p_a + p_b), Gibbs sampling: it has p too, but is not Metropolis.": stay(
            near * p / (p + p[:, None]) / n
        ),
        "An acceptance is a probability: min(1, ...) is missing.": stay(near * (p / p[:, None]) / n),
        "Each step flips one unit, and not any number of them.": stay((1 - torch.eye(2**n)) * accept / (2**n - 1)),
        "These are the acceptances of all pairs: only states that differ in one unit are neighbours.": accept,
        "K[a, b] is from a to b: rows sum to 1.": want.T,
        "Rejected moves are shared out over the accepted: that is another chain, with another distribution.": near
        * accept
        / (near * accept).sum(1, keepdim=True),
    }
    expect(learner.metropolis_kernel, (energies,), want, wrong, {"n": n})
