"""The check of ex06_3: over all 2^d sign vectors the mean is the exact divergence."""

import torch

from compare import Draws, expect, states, trainable

HINTS = (
    "The gradient of v's is a vector-Jacobian product: (ds/dx)'v, one row for each x. What is left is its product with v.",
    "(row,) = torch.autograd.grad((s * v).sum(), x, create_graph=True); then (row * v).sum(1).",
    "return (0.5 * s.square().sum(1) + (row * v).sum(1)).mean()",
)


def check(learner, seed):
    draws = Draws(seed)
    x, A, v = draws.normal(9, 4), draws.normal(4, 4), draws.normal(9, 4)
    score = lambda x: -x @ A - x**3
    half = 0.5 * (score(x) ** 2).sum(1)
    form = lambda v: -((v @ A) * v).sum(1) - (3 * x**2 * v**2).sum(1)  # v'(ds/dx)v
    want = (half + form(v)).mean()
    unit = v / v.norm(dim=1, keepdim=True)
    wrong = {
        "v is normalised: E[v v'] is then I/d, and the score that is learned d times too small.": (half + form(unit)).mean(),
        "A half is missing before |s|^2.": (2 * half + form(v)).mean(),
        "v'(ds/dx)v has a plus here: s = -grad E.": (half - form(v)).mean(),
        "That is the plain form, with (v's)^2/2: right on average, but noisier. Here |s|^2/2 is asked for.":
            (0.5 * (score(x) * v).sum(1) ** 2 + form(v)).mean(),
        "v stands on one side only: v'(ds/dx)v needs it twice.":
            (half - (v @ A.T).sum(1) - (3 * x**2 * v).sum(1)).mean(),
        "The projected term is missing.": half.mean(),
        "v'(ds/dx)v has no half: only |s|^2 has.": (half + form(v) / 2).mean(),
        "The losses are summed over the rows: take their mean.": 9 * want,
        "That is a mean over the components too: sum over them.": want / 4,
    }  # fmt: skip
    call = lambda x, v: learner.sliced_loss(score, x, v)
    expect(call, (x, v), want, wrong, {"B": 9, "d": 4}, name="sliced_loss")
    every = states(4, -1)
    over_signs = lambda x: sum(learner.sliced_loss(score, x, sign.expand(9, 4)) for sign in every) / len(every)
    exact = (half - A.trace() - 3 * (x**2).sum(1)).mean()
    expect(over_signs, (x,), exact, name="the mean over all sign vectors")
    theta = torch.tensor(0.8, dtype=torch.float64)
    trainable(lambda theta: learner.sliced_loss(lambda x: -theta * x, x, v), theta, (theta * x**2 - v**2).sum() / 9)
