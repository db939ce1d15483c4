"""The check of ex06_4: Bayes' rule in numbers; and on a grid the best constant of the loss is log Z."""

import math

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "Bayes: among 1 + ratio points one is a datum. Write P(datum | x) = p/(p + ratio q), and its log odds.",
    "The logarithm of a quotient is a difference: three terms, one of them log(ratio).",
    "log_model - log_noise - math.log(ratio)",
)


def check(learner, seed):
    draws, ratio = Draws(seed), 3.0
    log_p, log_q = draws.normal(8), draws.normal(8)
    datum = log_p.exp() / (log_p.exp() + ratio * log_q.exp())
    want = (datum / (1 - datum)).log()
    wrong = {
        "The ratio is missing: there are `ratio` noise points to a datum.": log_p - log_q,
        "log(ratio) has the wrong sign: more noise makes a datum less likely.": log_p - log_q + math.log(ratio),
        "Mirrored: these are the log odds of noise.": -want,
        "The ratio stands under the logarithm: log(ratio).": log_p - log_q - ratio,
        "That is the probability of a datum: its log odds are asked for.": datum,
        "That is the log probability of a datum: subtract that of noise.": datum.log(),
        "These are the odds: take their logarithm.": datum / (1 - datum),
        "Both are log densities already: subtract them.": log_p / log_q - math.log(ratio),
    }
    expect(learner.nce_logit, (log_p, log_q, ratio), want, wrong, {"ratio": ratio})
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    dx, weight = axis[1] - axis[0], torch.exp(-(axis**4) / 4) + 0.2 * torch.exp(-((axis - 1) ** 2))
    log_z, noise = (weight.sum() * dx).log(), -(axis**2) / 8 - math.log(2 * math.sqrt(2 * math.pi))

    def slope(c):  # of the expected logistic loss, in the constant
        odds = learner.nce_logit(weight.log() - c, noise, ratio).sigmoid()
        return (((1 - odds) * weight / weight.sum()) - ratio * odds * noise.exp() * dx).sum()

    if abs(slope(log_z)) > 1e-4 or slope(log_z + 0.5) < 1e-3:
        raise NotYet("nce_logit: logistic regression with these log odds does not learn log Z")
