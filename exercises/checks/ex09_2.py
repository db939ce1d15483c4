"""The check of ex09_2: Gaussians, whose product is a Gaussian of the summed precisions, and whose mixture is known."""

import math

import torch

from compare import Draws, expect

HINTS = (
    "Take -log of the product, and of the sum. For two of them, which is an addition of energies?",
    "OR: each density is exp(-E_i - log Z_i); the sum of exponentials calls for logsumexp over i.",
    "energies.sum(0) and -torch.logsumexp(-energies - log_zs[:, None], 0)",
)


def check(learner, seed):
    draws = Draws(seed)
    x, mean, precision = 2 * draws.normal(9), draws.normal(3), 0.5 + draws.uniform(3)
    energies = precision[:, None] * (x - mean[:, None]) ** 2 / 2
    log_zs = 0.5 * (2 * math.pi / precision).log()
    normal = lambda at, precision, mean: (precision / (2 * math.pi)) ** 0.5 * torch.exp(-precision * (at - mean) ** 2 / 2)
    total, centre = precision.sum(), (precision * mean).sum() / precision.sum()
    offset = 0.5 * ((precision * mean**2).sum() - total * centre**2)
    want = total * (x - centre) ** 2 / 2 + offset
    mixture = lambda: -torch.stack([normal(x, p, m) for p, m in zip(precision, mean, strict=True)]).sum(0).log()
    wrong = {
        "A mean of energies has a fraction of the precision: it doubles T (or triples it). Add them.": want / 3,
        "That is OR: the product's energy is a sum.": -torch.logsumexp(-energies, 0),
        "The largest energy alone decides: add them all.": energies.max(0).values,
        "The smallest energy alone decides: add them all.": energies.min(0).values,
        "Energies are -log p: multiplying p means adding E.": energies.prod(0),
        "The sign is reversed: an energy is low where p is high.": -want,
    }
    expect(learner.conjunction, (energies,), want, wrong, {"n": 3})
    smallest = (energies + log_zs[:, None]).min(0).values
    wrong = {
        "The weights are 1/Z_i: without log Z_i OR mixes Z_1 : Z_2.": -torch.logsumexp(-energies, 0),
        "log Z_i has the wrong sign: a density is exp(-E_i - log Z_i).": -torch.logsumexp(-energies + log_zs[:, None], 0),
        "The sign is reversed: an energy is -log p.": -mixture(),
        "That is the likeliest component alone: logsumexp, not min.": smallest,
        "That is AND: a mixture adds densities, not energies.": (energies + log_zs[:, None]).sum(0),
        "That is the mixture with its 1/n: it was to be left out.": mixture() + math.log(3),
        "Z_i itself was subtracted: its logarithm belongs there.": -torch.logsumexp(-energies - log_zs.exp()[:, None], 0),
    }
    expect(learner.disjunction, (energies, log_zs), mixture(), wrong)
    far = {"exp underflows far from all modes: use logsumexp.": torch.full((9,), torch.inf)}
    expect(learner.disjunction, (energies + 2000, log_zs), mixture() + 2000, far)
