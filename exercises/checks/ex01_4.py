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
    some = draws.uniform(4).tolist()
    share, narrow, wide, shift = 0.65 + 0.1 * some[0], 0.25 + 0.05 * some[1], 0.7 + 0.1 * some[2], 0.3 * some[3] - 0.15
    peak = share * normal(shift + 3.5, narrow) + (1 - share) * normal(shift + 3.85, 0.45)  # skew: no Gaussian fits it
    p = 0.6 * peak + 0.4 * normal(shift - 0.5, wide)  # a search from (0, 0) or from cover's q ends in the wide one
    dx = axis[1] - axis[0]
    mean = ((p * axis).sum() * dx).item()
    variance = ((p * (axis - mean) ** 2).sum() * dx).item()
    forward, (_, deep), (_, shallow) = (mean, variance**0.5), *sorted(valley(p, axis, m) for m in (shift + 3.5, shift - 0.5))
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
    answer = found(learner, p.clone(), axis.clone())
    wrong |= off_the_grid(answer, axis) | at_the_peak(answer, p, axis)
    expect(learner.seek, (p, axis), deep, wrong, names=("seek: mean", "seek: std"), rtol=1e-3)


def found(learner, p, axis):
    """The learner's (mean, std) as numbers, or nan if they are none."""
    try:
        mean, std = map(float, learner.seek(p, axis))
    except (TypeError, ValueError, RuntimeError):
        return math.nan, math.nan
    return mean, std


def off_the_grid(answer, axis):
    """What is said of a q that cannot be on the axis."""
    mean, std = answer
    if math.isnan(mean + std) or (axis[0] <= mean <= axis[-1] and std <= axis[-1] - axis[0]):
        return {}
    return {"q has left the grid: there its mass is lost and KL looks small. Normalise q on the grid.": (mean, std)}


def at_the_peak(answer, p, axis):
    """What is said of Laplace's Gaussian, which any derivative on the grid or off it gives to a few per cent."""
    mean, std = answer
    top, dx = p.argmax(), axis[1] - axis[0]
    laplace = (-(p[top - 1].log() - 2 * p[top].log() + p[top + 1].log()) / dx**2) ** -0.5
    if (mean - axis[top]).abs() <= dx and (std / laplace - 1).abs() < 0.03:
        return {"That is the curvature at the peak; q averages over all of its width.": (mean, std)}
    return {}
