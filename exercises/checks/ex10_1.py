"""The check of ex10_1: clean values of +-1, whose posterior mean is a sum over two states, tanh(y/sigma^2)."""

import torch

from compare import Draws, expect

HINTS = (
    "On which side of y lies the clean x? The score points uphill, to where the density is higher.",
    "The step has the length sigma^2 |s|: check it on N(0, 1), whose blurred score is -y/(1 + sigma^2).",
    "y + sigma**2 * score(y)",
)


def blurred_score(y, sigma):
    """grad log of N(1, sigma^2) + N(-1, sigma^2), by autograd."""
    y = y.detach().requires_grad_()
    log_p = torch.logsumexp(torch.stack([-((y - x) ** 2) / (2 * sigma**2) for x in (1, -1)]), 0)
    return torch.autograd.grad(log_p.sum(), y)[0]


def check(learner, seed):
    y = Draws(seed).normal(6, 3)
    for sigma in (0.8, 1.7):
        up, down = (torch.exp(-((y - x) ** 2) / (2 * sigma**2)) for x in (1, -1))
        mean = (up - down) / (up + down)
        score = lambda y, sigma=sigma: blurred_score(y, sigma)
        s = score(y)
        wrong = {
            "The sign is reversed: that goes further into the noise.": y - sigma**2 * s,
            "sigma is to be squared.": y + sigma * s,
            "That is half of the step: Langevin has a half, Tweedie has none.": y + sigma**2 / 2 * s,
            "That is the likeliest clean value: the mean is asked for.": y.sign(),
            "sigma is not used.": y + s,
            "y is missing: the score says how far to go from there.": sigma**2 * s,
            "That is a posterior *sample's* direction, or twice the step: once is enough.": y + 2 * sigma**2 * s,
        }
        call = lambda y, sigma, score=score: learner.denoise(y, score, sigma)
        expect(call, (y, sigma), mean, wrong, name="denoise")
