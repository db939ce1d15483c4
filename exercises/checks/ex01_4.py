"""The check of ex01_4: the moments; and the stationary points of KL(q || p), by Newton from each mode."""

import math

import torch

from compare import Draws, expect

HINTS = (
    "Write KL(p || q) with log q = -(x - mean)^2/(2 std^2) - log std + ...: which averages over p does it contain?",
    "cover is p's own mean and standard deviation. For seek minimise sum(q (log q - log p)) dx; q = N(mean, exp(s)^2).",
    "seek: best = min((minimize(kl, (m, -1.0), method='Nelder-Mead') for m in starts), key=lambda found: found.fun)",
)


def divergence(theta, p, axis):
    log_q = -((axis - theta[0]) ** 2) / (2 * torch.exp(2 * theta[1])) - theta[1] - 0.5 * math.log(2 * math.pi)
    return (log_q.exp() * (log_q - p.log())).sum() * (axis[1] - axis[0])


def valley(p, axis, start):
    theta = torch.tensor([start, math.log(0.5)], dtype=torch.float64, requires_grad=True)
    climb = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        climb.zero_grad()
        value = divergence(theta, p, axis)
        value.backward()
        return value

    climb.step(loss)
    mean, log_std = theta.detach().tolist()
    return divergence(theta.detach(), p, axis).item(), (mean, math.exp(log_std))


def check(learner, seed):
    draws, axis = Draws(seed), torch.linspace(-9, 9, 1201, dtype=torch.float64)
    normal = lambda m, s: torch.exp(-((axis - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi))
    left, right = (0.4 + 0.2 * draws.uniform(2)).tolist()
    shift = 0.5 * draws.normal(1).item()
    p = 0.7 * normal(shift - 1.8, left) + 0.3 * normal(shift + 1.9, right)
    dx = axis[1] - axis[0]
    mean = ((p * axis).sum() * dx).item()
    variance = ((p * (axis - mean) ** 2).sum() * dx).item()
    forward, (_, deep), (_, shallow) = (mean, variance**0.5), *sorted(valley(p, axis, m) for m in (shift - 1.8, shift + 1.9))
    wrong = {
        "That is the variance: the square root is missing.": (mean, variance),
        "That Gaussian seeks: the two divergences are swapped.": deep,
        "The mean is subtracted before squaring: E x^2 - mean^2.": (mean, (variance + mean**2) ** 0.5),
        "These are the grid's moments: weigh it with p.": (axis.mean().item(), axis.std(correction=0).item()),
        "A sum over the grid needs its dx.": (mean / dx.item(), 0.0),
    }
    expect(learner.cover, (p, axis), forward, wrong, names=("cover: mean", "cover: std"))
    wrong = {
        "That Gaussian covers: KL(q || p) averages over q, not over p.": forward,
        "That is a valley, but there is a deeper one: start the search at the other mode too.": shallow,
        "That is the variance.": (deep[0], deep[1] ** 2),
        "The search returns log std: take its exponential.": (deep[0], math.log(deep[1])),
    }
    expect(learner.seek, (p, axis), deep, wrong, names=("seek: mean", "seek: std"), rtol=1e-3)
