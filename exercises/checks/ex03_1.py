"""The check of ex03_1: both states' weights, in decimals."""

from decimal import Decimal, localcontext

import torch

from compare import Draws, expect

HINTS = (
    "Divide numerator and denominator by exp(h/T): what is left is a sigmoid. Of what?",
    "The two energies differ by 2h, since the unit's two values differ by 2 (0/1 units: by 1).",
    "torch.sigmoid(2 * field / T)",
)


def oracle(field, T):
    with localcontext() as context:
        context.prec = 40
        up = [(Decimal(h) / Decimal(T)).exp() for h in field.tolist()]
        return torch.tensor([float(w / (w + 1 / w)) for w in up], dtype=torch.float64)


def check(learner, seed):
    field, T = Draws(seed).normal(6), 0.7
    want = oracle(field, T)
    wrong = {
        "That samples at 2T: sigma(h/T) is for 0/1 units; the values of a +-1 unit differ by 2.": oracle(field, 2 * T),
        "tanh(h/T) is the mean of s, from -1 to 1: (1 + mean)/2 is the probability.": 2 * want - 1,
        "That is the probability of -1.": 1 - want,
        "T is not used.": oracle(field, 1.0),
        "The field was multiplied by T.": oracle(field, 1 / T),
        "That is the weight exp(h/T): divide by both states' sum.": (field / T).exp(),
    }
    expect(learner.p_up, (field, T), want, wrong)
    nan = {"exp overflows for a strong field: sigmoid does not.": torch.tensor([torch.nan, 1.0, 0.0], dtype=torch.float64)}
    field = torch.tensor([2000.0, 30.0, -2000.0], dtype=torch.float64)
    expect(learner.p_up, (field, 1.0), oracle(field, 1.0), nan)
