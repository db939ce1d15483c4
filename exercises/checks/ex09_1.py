"""The check of ex09_1: every pair counted in a loop, in whole numbers; and the area under the curve, by trapezoids."""

import torch

from compare import Draws, expect

HINTS = (
    "There are N M pairs. Broadcasting compares all of them at once.",
    "inside[:, None] - outside is (N, M): count where it is above 0, and a half where it is 0.",
    "((inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()).mean()",
)


def check(learner, seed):
    draws = Draws(seed)
    inside, outside = (2 * draws.normal(23) + 3).round(), (2 * draws.normal(31)).round()
    higher = sum(a > b for a in inside.tolist() for b in outside.tolist())
    ties = sum(a == b for a in inside.tolist() for b in outside.tolist())
    pairs = 23 * 31
    want = (higher + 0.5 * ties) / pairs
    thresholds = torch.cat([inside, outside]).unique().flip(0)
    hits = torch.cat([torch.zeros(1), (inside >= thresholds[:, None]).double().mean(1)]).double()
    alarms = torch.cat([torch.zeros(1), (outside >= thresholds[:, None]).double().mean(1)]).double()
    assert abs(torch.trapezoid(hits, alarms).item() - want) < 1e-12
    wrong = {
        "That is 1 - A: inside is to score higher.": 1 - want,
        "Ties are left out: they count a half.": higher / pairs,
        "Ties count as wins: they count a half.": (higher + ties) / pairs,
        "The pairs with ties are left out of the denominator.": higher / (pairs - ties),
        "That is the number of pairs: divide by N M.": higher + 0.5 * ties,
        "That compares the means: count pairs.": (inside.mean() - outside.mean()).item(),
        "That is the gap of wins and losses, from -1 to 1.": 2 * want - 1,
    }
    expect(learner.auroc, (inside, outside), want, wrong, {"N": 23, "M": 31})
