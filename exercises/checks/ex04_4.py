"""The check of ex04_4: three states, every path of the annealing with its probability; the mean weight is Z_K/Z_0."""

import itertools

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "Take the logarithm of the product: a sum over k of two energies of the same state.",
    "Step k weighs the state *before* its move, x_(k-1), by the increase of beta: the last state x_K has no weight.",
    "-(energies[:, :-1] * betas.diff()).sum(1)",
)


def all_paths(level, betas):
    """(states, probability) of every path: x_0 from p_0, then heat-bath moves between two random states at each beta."""
    p = torch.softmax(-betas[:, None] * level, 1)
    moves = []
    for at in p:
        K = at / (at + at[:, None]) / 3
        K.fill_diagonal_(0)
        moves.append(K + torch.diag(1 - K.sum(1)))
    paths = list(itertools.product(range(3), repeat=len(betas)))
    chance = [
        p[0, path[0]] * torch.stack([moves[k][path[k - 1], path[k]] for k in range(1, len(path))]).prod() for path in paths
    ]
    return torch.tensor(paths), torch.stack(chance)


def check(learner, seed):
    draws = Draws(seed)
    level, betas = draws.normal(3), torch.cat([torch.zeros(1), draws.uniform(4)]).double().cumsum(0)
    paths, chance = all_paths(level, betas)
    energies = level[paths]
    weights = torch.zeros(len(paths), dtype=torch.float64)
    for k in range(1, 5):
        weights += (betas[k - 1] - betas[k]) * energies[:, k - 1]
    ratio = torch.exp(-betas[-1] * level).sum() / torch.exp(-betas[0] * level).sum()
    assert abs((chance * weights.exp()).sum() / ratio - 1) < 1e-12
    moved_first = -(energies[:, 1:] * betas.diff()).sum(1)
    wrong = {
        "The chains are moved first: weigh x_(k-1), then move. E[w] is no longer Z_K/Z_0.": moved_first,
        "The sign is reversed: a low energy gains weight as beta rises.": -weights,
        "That is w: its logarithm is asked for.": weights.exp(),
        "Each step has two terms, at betas[k] and at betas[k-1]: only one is there.": -(energies[:, :-1] * betas[1:]).sum(1),
        "That is importance sampling in one step, from x_0: E changes on the way.": -(betas[-1] - betas[0]) * energies[:, 0],
        "The last state alone is weighed: every step adds its own term.": -(betas[-1] - betas[0]) * energies[:, -1],
        "Sum over the steps, not over the chains; the mean over steps is no log weight.": weights / 4,
        "That is the trapezoid of thermodynamic integration: the states before a move alone count.": (weights + moved_first)
        / 2,
    }
    expect(learner.ais_log_weights, (energies, betas), weights, wrong, {"K": 4})
    mean = (chance * learner.ais_log_weights(energies, betas).exp()).sum()
    if abs(mean / ratio - 1) > 1e-6:
        raise NotYet(f"the mean weight over all paths is {mean:.6f}, but Z_K/Z_0 is {ratio:.6f}")
