"""The check of ex06_1: a score whose divergence is known, and the slope of the loss in its parameter."""

import torch

from compare import Draws, expect, trainable

HINTS = (
    "Make x a leaf that requires grad. The rows are independent, so a sum over them keeps each row's derivative apart.",
    "torch.autograd.grad(s[:, i].sum(), x, create_graph=True)[0][:, i] is ds_i/dx_i for every row.",
    "x = x.detach().requires_grad_(); s = score(x); sum the second hint over i; (0.5 * s.square().sum(1) + div).mean()",
)


def check(learner, seed):
    draws = Draws(seed)
    x, A, theta = draws.normal(9, 4), draws.normal(4, 4), torch.tensor(0.7, dtype=torch.float64)
    score = lambda x, theta=theta: -theta * x @ A - x**3  # no symmetric Jacobian: its trace is asked for
    half, div = 0.5 * (score(x) ** 2).sum(1), -theta * A.trace() - 3 * (x**2).sum(1)
    want = (half + div).mean()
    off_diagonal = (-theta * A.sum() - 3 * (x**2).sum(1)).mean()
    wrong = {
        "A half is missing before |s|^2: a Gaussian would be fitted with twice its variance.": (2 * half + div).mean(),
        "The divergence has a plus here: s = -grad E, and eq. (2) has -Laplacian E.": (half - div).mean(),
        "The divergence has no factor 2 and no 1/2: a factor there changes the variance that is learned.": (
            half + 2 * div
        ).mean(),
        "The divergence is halved too: only |s|^2/2 has a half.": (half + div / 2).mean(),
        "The divergence is missing: the smallest score would win.": half.mean(),
        "The squared norm is missing.": div.mean(),
        "That is the sum of all entries of the Jacobian: its trace is asked for.": half.mean() + off_diagonal,
        "The losses are summed over the rows: take their mean.": (half + div).sum(),
        "|s|^2 is a sum over the d components.": (half / 4 + div).mean(),
        "That is a mean over the components too: |s|^2 and div are sums over them.": want / 4,
    }
    expect(lambda x: learner.implicit_matching(score, x), (x,), want, wrong, {"B": 9, "d": 4}, name="implicit_matching")
    trainable(lambda theta: learner.implicit_matching(lambda x: -theta * x, x), theta, theta * (x**2).sum() / 9 - 4)
