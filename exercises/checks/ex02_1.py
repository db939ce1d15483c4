"""The check of ex02_1: the energies of all 2^8 states."""

import torch

from compare import Draws, expect, states

HINTS = (
    "Write E(s) as -s_i h_i + (what does not contain s_i), with the field h_i = sum over j != i of W_ij s_j.",
    "W_ij and W_ji both hold the pair (i, j), which cancels the 1/2. The flip changes -s_i h_i into +s_i h_i.",
    "2 * s * (W @ s - W.diagonal() * s)",
)


def check(learner, seed):
    draws, n = Draws(seed), 8
    W, s = draws.normal(n, n), draws.signs(n)
    W = (W + W.T) / 2
    every = states(n, -1)
    energies = dict(
        zip(map(tuple, every.tolist()), (-0.5 * torch.einsum("bi,ij,bj->b", every, W, every)).tolist(), strict=True)
    )
    flipped = [tuple((s * (1 - 2 * (torch.arange(n) == i))).tolist()) for i in range(n)]
    want = torch.tensor([energies[state] for state in flipped], dtype=torch.float64) - energies[tuple(s.tolist())]
    wrong = {
        "A pair stands in W twice, as W_ij and as W_ji: that cancels the 1/2, and the flip brings a factor 2.": want / 2,
        "The diagonal is counted: W_ii s_i^2 does not change.": want + 2 * W.diagonal(),
        "2 s_i (W s)_i contains 2 W_ii, not W_ii.": want + W.diagonal(),
        "The diagonal is subtracted twice.": want - 2 * W.diagonal(),
        "That is the energy before minus the energy after.": -want,
        "These are the energies after the flip: subtract E(s).": want + energies[tuple(s.tolist())],
        "That is the field h; the cost has s_i too.": want * s / 2,
        "Twice the field: the cost has s_i too.": want * s,
    }
    expect(learner.flip_costs, (W, s), want, wrong, {"N": n})
