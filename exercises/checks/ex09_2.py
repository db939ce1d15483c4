"""The check of ex09_2: Gaussians, whose product is a Gaussian of the summed precisions, and whose mixture is known."""

import math

import torch

from check import Draws, NotYet, expect

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
    both = learner.conjunction(energies)
    free = both + (want - both).mean() if torch.is_tensor(both) and both.shape == want.shape else both  # up to a constant
    mixture = lambda: -torch.stack([normal(x, p, m) for p, m in zip(precision, mean, strict=True)]).sum(0).log()
    centred = lambda e: e + (want - e).mean()
    wrong = {
        "A mean of energies has a fraction of the precision: it doubles T (or triples it). Add them.": centred(want / 3),
        "That is OR: the product's energy is a sum.": centred(-torch.logsumexp(-energies, 0)),
        "The largest energy alone decides: add them all.": centred(energies.max(0).values),
        "The smallest energy alone decides: add them all.": centred(energies.min(0).values),
        "Energies are -log p: multiplying p means adding E.": centred(energies.prod(0)),
        "The sign is reversed: an energy is low where p is high.": centred(-want),
    }
    if torch.is_tensor(free) and free.shape == want.shape and not torch.allclose(free, want):
        sentence = next((sentence for sentence, value in wrong.items() if torch.allclose(free, value)), "")
        raise NotYet(f"conjunction: {facts(both, want)}\n{sentence}".strip())
    expect(lambda energies: centred_once(learner.conjunction(energies), want), (energies,), want, name="conjunction")
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


def facts(got, want):
    """The one generic fact that matters up to a constant: a factor, or nothing."""
    spread = lambda e: e - e.mean()
    for label, factor in (("0", 0.0), ("-1", -1.0), ("2", 2.0), ("1/2", 0.5), ("1/n", 1 / 3)):
        if torch.allclose(spread(got), factor * spread(want), atol=1e-9):
            return f"every entry is {label} times the right value, up to a constant."
    return "wrong, and not only by a constant."


def centred_once(e, want):
    """The learner's energies with the constant that is free taken out, if they have the form."""
    return e + (want - e).mean() if torch.is_tensor(e) and e.shape == want.shape and e.dtype == want.dtype else e
