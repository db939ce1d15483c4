"""The check of ex06_2: the loss in numbers; by Gauss-Hermite its best linear score has the precision 1/(v + sigma^2)."""

import torch

from compare import Draws, NotYet, expect, trainable

HINTS = (
    "Which way does the best score point at x~? From x~ to x, that is along -n. When is sigma s + n zero?",
    "Evaluate the score at x + sigma * noise, not at x.",
    "0.5 * (sigma * score(x + sigma * noise) + noise).square().sum(1).mean()",
)


def check(learner, seed):
    draws, sigma = Draws(seed), 0.6
    x, noise, A = draws.normal(9, 4), draws.normal(9, 4), draws.normal(4, 4)
    score = lambda x: -x @ A - x**3
    loss = lambda s, n, weight=0.5: (weight * ((sigma * s + n) ** 2).sum(1)).mean()
    noisy = score(x + sigma * noise)
    want = loss(noisy, noise)
    wrong = {
        "The score points *away* from the clean point here: sigma s + n, since the best s is -n/sigma.": loss(noisy, -noise),
        "The score is taken at the clean point: take it at x + sigma noise.": loss(score(x), noise),
        "That is sigma s against sigma n: the best score is -n/sigma.": loss(noisy, sigma * noise),
        "A half is missing.": 2 * want,
        "The weight is off by sigma^2: the statement multiplies s by sigma, and divides nothing.": want / sigma**2,
        "The score is not multiplied by sigma.": loss(noisy / sigma, noise),
        "The losses are summed over the rows: take their mean.": 9 * want,
        "That is a mean over the components too: sum over them.": want / 4,
        "The point is blurred by sigma^2.": loss(score(x + sigma**2 * noise), noise),
    }  # fmt: skip
    call = lambda x, noise, sigma: learner.dsm_loss(score, x, noise, sigma)
    expect(call, (x, noise, sigma), want, wrong, {"B": 9, "d": 4}, name="dsm_loss")
    nodes = 3**0.5 * torch.tensor(
        [-1.0, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64
    )  # Gauss-Hermite, weights 1/6, 4/6, 1/6
    data, n = 1.5 * nodes.repeat_interleave(6)[:, None], nodes.repeat(6)[:, None]
    at = [learner.dsm_loss(lambda x, k=k: -k * x, data, n, sigma) for k in (0.0, 1.0, 2.0)]
    low, mid, high = (float(value) for value in at)
    best = (3 * low - 4 * mid + high) / (2 * (low - 2 * mid + high))
    if abs(best * (1.5**2 + sigma**2) - 1) > 1e-6:
        raise NotYet(
            f"dsm_loss: from variance {1.5**2} it learns {1 / best:.4f}; right is v + sigma^2 = {1.5**2 + sigma**2:.4f}"
        )
    theta = torch.tensor(0.8, dtype=torch.float64)
    blurred = x + sigma * noise
    trainable(lambda theta: learner.dsm_loss(lambda x: -theta * x, x, noise, sigma), theta,
              ((theta * sigma * blurred - noise) * sigma * blurred).sum() / 9)  # fmt: skip
