"""The check of ex04_1: all 2^m hidden states."""

import math

import torch

from compare import Draws, expect, states

HINTS = (
    "For one hidden unit with input x = c_j + (v W)_j: exp(x) + exp(-x) takes the place of 1 + exp(x).",
    "F(v) = -b'v - sum_j log(2 cosh x_j), and log(2 cosh x) = logaddexp(x, -x), which never overflows.",
    "x = v @ W + c; return -(v @ b) - torch.logaddexp(x, -x).sum(1)",
)


def oracle(W, b, c, v, off=-1):
    h = states(len(c), off)
    return -torch.logsumexp((v @ W) @ h.T + (v @ b)[:, None] + h @ c, 1)


def check(learner, seed):
    draws, m = Draws(seed), 5
    W, b, c, v = draws.normal(7, m), draws.normal(7), draws.normal(m), draws.bits(4, 7)
    want, x = oracle(W, b, c, v), v @ W + c
    wrong = {
        "Softplus is for hidden units of 0 and 1: here a unit's sum is exp(x) + exp(-x).": oracle(W, b, c, v, 0),
        "cosh without its 2: exp(x) + exp(-x) = 2 cosh x.": want + m * math.log(2),
        "The visible biases are missing.": want + v @ b,
        "The visible biases have the wrong sign.": want + 2 * v @ b,
        "The hidden biases are missing.": oracle(W, b, 0 * c, v),
        "F has a minus before the sum over hidden units: many ways to be on *lower* it.": -2 * (v @ b) - want,
        "That is log of the sum of all hidden units: the sum over h is a product over units, its log a sum.": -(v @ b)
        - torch.logaddexp(x, -x).logsumexp(1),
        "That is softplus(2x): it lacks the -x of log 2cosh x = softplus(2x) - x.": want - x.sum(1),
    }
    expect(learner.free_energy_pm1, (W, b, c, v), want, wrong, {"m": m})
    overflow = {"exp or cosh overflows: logaddexp(x, -x) does not.": torch.full((4,), -torch.inf, dtype=torch.float64)}
    expect(learner.free_energy_pm1, (1000 * W, b, 1000 * c, v), oracle(1000 * W, b, 1000 * c, v), overflow)
