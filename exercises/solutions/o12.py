"""A pilot of o12: python exercises/solutions/o12.py writes exercises/solutions/o12.json, in seconds."""

import json
from pathlib import Path

import torch
from scipy import optimize, stats

HERE = Path(__file__).resolve().parent


def velocity(x, sigma):
    """dx/dsigma of the probability flow of the two wells."""
    v = 0.4**2 + sigma**2
    right = torch.sigmoid(4 * x / v + torch.tensor(0.25).log())
    return sigma * (x + 2 - 4 * right) / v


def flowed(seed, sigma_max, n, n_steps=300):
    """The share left of 0 of particles from N(0, sigma_max^2), by Heun's method."""
    torch.manual_seed(seed)
    x = sigma_max * torch.randn(n).double()
    sigmas = (sigma_max * (0.01 / sigma_max) ** (torch.arange(n_steps + 1) / n_steps)).tolist()
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = velocity(x, now)
        x = x + (then - now) / 2 * (slope + velocity(x + (then - now) * slope, then))
    return (x < 0).double().mean().item()


def predicted(sigma_max):
    cdf = lambda x, s: 0.8 * stats.norm.cdf((x + 2) / s) + 0.2 * stats.norm.cdf((x - 2) / s)
    s = (0.4**2 + sigma_max**2) ** 0.5
    return stats.norm.cdf(optimize.brentq(lambda x: cdf(x, s) - cdf(0, 0.4), -100, 100) / sigma_max)


def main(n=2000):
    widths = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0]
    answer = {"seeds": [0, 1, 2, 3, 4], "n": n, "sigma_max": widths}
    answer["predicted"] = [round(float(predicted(width)), 5) for width in widths]
    answer["share"] = [[flowed(10 * seed + i, width, n) for seed in range(5)] for i, width in enumerate(widths)]
    answer["enough"] = next((w for w, p in zip(widths, answer["predicted"], strict=True) if abs(p - 0.8) < 0.01), None)
    (HERE / "o12.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

MUTANTS = [
    ("flat", lambda a: a.update(share=[[0.8 - 0.001 * i for i in range(5)] for _ in a["share"]]), "too far from it"),
    ("reversed", lambda a: a["share"].reverse(), "standard errors on average"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, five times", lambda a: [row.__setitem__(1, row[0]) for row in a["share"]], "two seeds"),
    ("invented", lambda a: [row.__setitem__(slice(None), [round(2000 * p) / 2000 + i / 2000 for i in (-2, -1, 0, 1, 2)])
                            for row, p in zip(a["share"], a["predicted"], strict=True)], "Were they measured?"),
    ("predicted without the start", lambda a: a.update(predicted=[0.8] * 7), "predicted at sigma_max"),
    ("no shares of n", lambda a: a["share"][2].__setitem__(3, 0.60013), "whole numbers over"),
    ("wrong claim", lambda a: a.update(enough=4.0), "enough: you claim"),
]  # fmt: skip
