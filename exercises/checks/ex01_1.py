"""The check of ex01_1: 50-digit decimals."""

from decimal import Decimal, localcontext

import torch

from compare import Draws, expect

HINTS = (
    "Section probability of module 01 shows the naive formula overflow beside one that does not.",
    "p does not change if you subtract min(E) from all energies: the largest weight is then exp(0) = 1.",
    "weights = torch.exp(-(energies - energies.min()) / T), and divide by their sum. (torch.softmax does all this too.)",
)


def oracle(energies, T):
    with localcontext() as context:
        context.prec = 50
        weights = [(-Decimal(energy) / Decimal(T)).exp() for energy in energies.tolist()]
        return torch.tensor([float(weight / sum(weights)) for weight in weights], dtype=torch.float64)


def check(learner, seed):
    energies, nan = Draws(seed).normal(7), torch.full((7,), torch.nan)
    weights = torch.exp(-energies / 0.7)
    wrong = {
        "The sign is reversed: low energy means high probability, exp(-E/T).": oracle(-energies, 0.7),
        "The energies were multiplied by T: that is the answer at 1/T.": oracle(energies, 1 / 0.7),
        "These are the weights: divide them by their sum Z.": weights,
        "These are ratios to the likeliest state: divide by the sum Z.": weights / weights.max(),
        "These are the log probabilities.": (weights / weights.sum()).log(),
        "That is the answer at T = 1: T is not used.": oracle(energies, 1.0),
    }
    expect(learner.boltzmann, (energies, 0.7), oracle(energies, 0.7), wrong, {"n": 7, "T": 0.7})
    overflow = {"Here exp(-E/T) leaves the floating-point range: subtract the lowest energy first.": nan}
    for shift, T in ((0.0, 0.01), (1e4, 0.7), (-1e4, 0.7)):
        expect(learner.boltzmann, (energies + shift, T), oracle(energies + shift, T), overflow)
    wide = 10 * energies  # further apart than exp reaches at this T
    others = torch.where(energies == energies.max(), 0.0, torch.nan)  # inf/inf, but 1/inf where the energy is highest
    highest = {"The highest energy was subtracted: then the others overflow; subtract the lowest.": others}
    expect(learner.boltzmann, (wide, 0.01), oracle(wide, 0.01), highest)
