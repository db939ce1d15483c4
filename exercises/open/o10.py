"""o10 Noise annealing, or stay where you start (module 06, section blindness; about 30 minutes)

Two wells of unequal weight, p(x) = 0.8 N(-2, 0.4^2) + 0.2 N(2, 0.4^2). Its score is known exactly, and so is that of every
blurred p_sigma (replace 0.4^2 by 0.4^2 + sigma^2), so that nothing here has to be learned. n particles start from N(0, 4^2).

    plain       Langevin dynamics on p itself, step_size = 0.05 * 0.4^2,
    annealed    the same number of steps, shared out over 14 levels, sigma falling geometrically from 4 to 0.1, at each
                level on p_sigma, step_size = 0.2 sigma^2 (as module 06's annealed_langevin does),

2,800 steps in all, five seeds, n = 2,000. Give for each seed the share of particles that end left of 0. Then change *one*
thing in the annealing (levels, steps, the first sigma) until it fails, and say what you changed. Predict both first.

Answer   {"seeds": [5 or more], "n": n, "plain": [shares], "annealed": [shares], "broken": [shares],
          "changed": "what you changed, in words",
          "nearer": "plain", "annealed" or "neither": whose share is nearer to 0.8, seed by seed (t test, 5 %)}
Checked  that shares of n particles scatter as shares do; that annealing gets the weight, 0.8 to within 0.01 and its own
          error, and that plain Langevin keeps what started left of the watershed, where the score is 0; that the broken one
          is worse than the annealed; nearer.
"""

import math

import torch
from scipy import optimize, stats

from compare import NotYet
from tables import better, must_be_likely, must_claim, must_differ, numbers, seeds


def watershed():
    """Where the score is 0 between the wells: what starts left of it stays left."""
    v, score = 0.4**2, lambda x: 4 / (1 + math.exp(-4 * x / 0.4**2) * 4) - 2 - x
    return optimize.brentq(score, 0.0, v)


def check(answer):
    n_seeds, n = len(seeds(answer, 5)), float(answer["n"])
    shares = {key: numbers(answer, key, n_seeds) for key in ("plain", "annealed", "broken")}
    for key, values in shares.items():
        if (values < 0).any() or (values > 1).any() or ((values * n) - (values * n).round()).abs().max() > 0.01:
            raise NotYet(f"{key}: shares of {n:.0f} particles are whole numbers over {n:.0f}")
        must_differ(key, values)
    z = [(values - values.mean()) / (values.mean() * (1 - values.mean()) / n).sqrt() for values in shares.values()]
    must_be_likely("shares", torch.cat(z), "independent particles scatter by chance alone", n_fitted=len(z))
    for key, right in (("plain", stats.norm.cdf(watershed() / 4)), ("annealed", 0.8)):
        values = shares[key]
        error = (right * (1 - right) / n / n_seeds) ** 0.5
        off = abs(values.mean() - right)
        limit = stats.norm.isf(0.5e-4) * error + (0.01 if key == "annealed" else 0)  # what 200 steps a level leave undone
        if off > limit:
            raise NotYet(f"{key}: the mean share is {values.mean():.4f}; right is {right:.4f}, to within {limit:.4f}")
    error = {key: -(values - 0.8).abs() for key, values in shares.items()}
    if better(error["annealed"], error["broken"]) != 1:
        raise NotYet("broken: it is not clearly worse than the annealed one. Change more of the one thing")
    if not isinstance(answer["changed"], str) or len(answer["changed"].split()) < 3:
        raise NotYet("changed: say in a few words what you changed")
    winner = {1: "annealed", -1: "plain", 0: "neither"}[better(error["annealed"], error["plain"])]
    must_claim("nearer", answer["nearer"], winner, "distance to 0.8, seed by seed")
