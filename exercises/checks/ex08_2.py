"""The check of ex08_2: quadrature of q log q and of q E; the gap is KL(q || p), by quadrature too."""

import math

import torch

from compare import Draws, expect

HINTS = (
    "H of a Gaussian is 1/2 log(2 pi e std^2): one log, one half, one e. It grows with std: does your bound?",
    "x = mean + std * z with z on a grid from -10 to 10; weights exp(-z^2/2), divided by their sum.",
    "0.5 * math.log(2 * math.pi * math.e * std**2) - (weights * energy(x)).sum()",
)


def check(learner, seed):
    draws = Draws(seed)
    a, b = 0.2 + 0.2 * draws.uniform(1).item(), draws.normal(1).item()
    energy = lambda x: a * x**4 - x**2 + b * x
    x = torch.linspace(-14, 14, 20_001, dtype=torch.float64)
    dx = x[1] - x[0]
    for mean, std in ((0.7, 0.6), (-1.2, 1.3)):
        q = torch.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
        average = ((q * energy(x)).sum() * dx).item()
        entropy = -((q * q.clamp(min=1e-300).log()).sum() * dx).item()
        want = entropy - average
        log_z = (torch.logsumexp(-energy(x), 0) + dx.log()).item()
        gap = ((q * (q.clamp(min=1e-300).log() + energy(x) + log_z)).sum() * dx).item()
        assert abs(log_z - want - gap) < 1e-9
        assert gap > 0
        at_mean = energy(torch.tensor(mean)).item()
        wrong = {
            "The entropy has the wrong sign, so it is 2 H too low: a generator would collapse.": -entropy - average,
            "The energy has the wrong sign: low energies raise Z.": entropy + average,
            "The entropy is missing: without it the best q is a point.": -average,
            "The energy is taken at the mean of q: its average over q is asked for.": entropy - at_mean,
            "The entropy's e is missing: 1/2 log(2 pi e std^2).": want - 0.5,
            "The entropy's 2 pi is missing.": want - 0.5 * math.log(2 * math.pi),
            "The entropy has std^2 under the half: 1/2 log(2 pi e std^2).": want - math.log(std) / 2,
            "The entropy has log std once: 1/2 log std^2.": want + math.log(std),
            "The bound is log Z itself, gap included: q is not used.": log_z,
            "The average over q is integrated over z, not over x: a factor std, or dx.": entropy - average / std,
        }  # fmt: skip
        call = lambda mean, std: learner.log_z_bound(energy, mean, std)
        expect(call, (mean, std), want, wrong, name="log_z_bound")
