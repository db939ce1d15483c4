"""Solution of ex01_4."""

import math

import scipy.optimize


def cover(p, axis):
    """(mean, std) of the Gaussian of least KL(p || q)."""
    dx = axis[1] - axis[0]
    mean = (p * axis).sum() * dx
    return mean, ((p * (axis - mean) ** 2).sum() * dx).sqrt()  # moment matching


def seek(p, axis):
    """(mean, std) of the Gaussian of least KL(q || p)."""
    dx = (axis[1] - axis[0]).item()

    def kl(theta):
        mean, log_std = theta
        log_q = -((axis - mean) ** 2) / (2 * math.exp(2 * log_std)) - log_std - 0.5 * math.log(2 * math.pi)
        return ((log_q.exp() * (log_q - p.log())).sum() * dx).item()

    modes = 1 + ((p[1:-1] > p[:-2]) & (p[1:-1] > p[2:])).nonzero()[:, 0]
    searches = [
        scipy.optimize.minimize(kl, (axis[mode].item(), -0.5), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
        for mode in modes
    ]
    mean, log_std = min(searches, key=lambda found: found.fun).x
    return mean, math.exp(log_std)


MUTANTS = [
    ("* dx).sqrt()", "* dx)", "the square root is missing"),
    ("(axis - mean) ** 2).sum()", "axis ** 2).sum()", "subtracted before squaring"),
    ("(p * axis).sum() * dx", "(p * axis).sum()", "needs its dx"),
    ("(log_q.exp() * (log_q - p.log())).sum()", "(p * (p.log() - log_q)).sum()", "That Gaussian covers"),
    ("for mode in modes", "for mode in modes[:1]", "there is a deeper one"),
    ("return mean, math.exp(log_std)", "return mean, math.exp(2 * log_std)", "That is the variance."),
    ("axis[mode].item(), -0.5", "axis[mode].item() - 20, -0.5", "q has left the grid"),
    (
        "    mean, log_std = min(",
        "    k, log_p = p.argmax(), p.log()\n"
        "    return axis[k], ((2 * log_p[k] - log_p[k - 1] - log_p[k + 1]) / dx**2) ** -0.5\n    mean, log_std = min(",
        "the curvature at the peak",
    ),
    ("return mean, math.exp(log_std)", "return mean, log_std", "returns log std"),
]
