"""The check of ex03_4: a chain that forgets by r a draw, rho_t = r^t, has tau = (1 + r)/(1 - r)."""

import torch

from compare import Draws, expect

HINTS = (
    "rho holds lags 0, 1, 2, ...: which lags does the sum want that are not in it?",
    "Each lag but 0 counts twice, once for each sign.",
    "1 + 2 * rho[1:].sum()",
)


def check(learner, seed):
    some = 0.6 + 0.2 * Draws(seed).uniform(1).item()
    for r in (some, -some, 0.0):
        rho = torch.tensor(r, dtype=torch.float64) ** torch.arange(400)
        tau = (1 + r) / (1 - r)
        wrong = {
            "Lags of both signs count: each but lag 0 twice.": 1 / (1 - r),
            "Lag 0 is counted twice: it has no negative twin.": tau + 1,
            "Lag 0 is counted three times: the sum over both signs has it once.": tau + 2,
            "Lag 0 counts too, once.": tau - 1,
            "That is half of it: another convention, 1/2 + sum, in which independent draws have 1/2.": tau / 2,
            "Negative correlations count as they are: they make a mean better.": (1 + abs(r)) / (1 - abs(r)),
            "That is the share of effective draws, 1/tau.": 1 / tau,
        }
        if r < 0:  # rho_1 is the first negative lag
            wrong["This rho has died out: all of it counts, no window."] = 1.0
        expect(learner.integrated_time, (rho,), tau, wrong)
