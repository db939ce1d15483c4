"""o12 From one noise level to many: what a start costs (modules 06 and 10; about 30 minutes)

The wells of o10, p(x) = 0.8 N(-2, 0.4^2) + 0.2 N(2, 0.4^2), with the exact scores of all their blurred versions p_sigma. No
Langevin now: integrate the probability flow of ex10_2, dx/dsigma = -sigma s(x, sigma), from sigma_max down to 0.01. Start n
particles not from p_sigma_max, which nobody knows, but from N(0, sigma_max^2), as everybody does.

The flow is deterministic and keeps the order of the particles. So you can predict, before you run it, which share ends left
of 0, for each sigma_max: whoever starts below a certain quantile of p_sigma_max. Predict it for sigma_max = 0.5, 1, 2, 4, 8,
16; then measure it, with five seeds, n = 2,000 and steps fine enough (geometric in sigma, Heun's method, a few hundred).

Answer   {"seeds": [5 or more], "n": n, "sigma_max": [6 or more, rising], "predicted": [a share each],
          "share": [[one a seed], one row a sigma_max],
          "enough": the smallest sigma_max of yours whose *predicted* share is within 0.01 of 0.8, or null}
Checked  predicted, by quadrature, to 0.001; that the shares scatter about it as n particles do, no more and no less; enough.
"""

import torch
from scipy import optimize, stats

from compare import NotYet
from tables import must_be_likely, must_claim, must_differ, numbers, seeds


def exact_share(sigma_max):
    """P(start below the quantile of p_sigma_max that flows to 0); the flow is monotone, so quantiles are kept."""
    cdf = lambda x, v: 0.8 * stats.norm.cdf((x + 2) / v**0.5) + 0.2 * stats.norm.cdf((x - 2) / v**0.5)
    level, v = cdf(0.0, 0.4**2), 0.4**2 + sigma_max**2
    border = optimize.brentq(lambda x: cdf(x, v) - level, -100, 100)
    return stats.norm.cdf(border / sigma_max)


def check(answer):
    n_seeds, n, widths = len(seeds(answer, 5)), float(answer["n"]), numbers(answer, "sigma_max", None)
    if len(widths) < 6 or (widths.diff() <= 0).any() or widths[0] > 1 or widths[-1] < 8:
        raise NotYet("sigma_max: six or more, rising, from 1 or less to 8 or more")
    predicted, share = numbers(answer, "predicted", len(widths)), numbers(answer, "share", len(widths), n_seeds)
    must_differ("share", share.T)
    exact = torch.tensor([exact_share(width) for width in widths.tolist()], dtype=torch.float64)
    off = (predicted - exact).abs()
    if off.max() > 1e-3:
        i = off.argmax()
        why = "Which quantile of p_sigma_max flows to 0? And which share of N(0, sigma_max^2) is below it?"
        raise NotYet(f"predicted at sigma_max {widths[i]:g}: {predicted[i]:.4f}, by quadrature {exact[i]:.4f}. {why}")
    if ((share * n) - (share * n).round()).abs().max() > 0.01:
        raise NotYet(f"share: shares of {n:.0f} particles are whole numbers over {n:.0f}")
    z = (share - exact[:, None]) / (exact * (1 - exact) / n).sqrt()[:, None]
    must_be_likely("share", z, "the monotone map's share")
    close = [width for width, value in zip(widths.tolist(), exact.tolist(), strict=True) if abs(value - 0.8) < 0.01]
    must_claim("enough", answer["enough"], min(close, default=None), "the first predicted share from 0.79 to 0.81")
