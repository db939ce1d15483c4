"""The check of ex10_2: a Gaussian must contract by s/sqrt(s^2 + sigma^2): values, and the flow itself by Runge-Kutta."""

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "Fokker-Planck: a velocity of -(1/2) d(sigma^2)/dt s moves the density as diffusion does. Now take sigma as the time.",
    "d(sigma^2)/dsigma = 2 sigma: half of it is sigma. The sign: as sigma grows points move *down* the density's slope.",
    "-sigma * score(x, sigma)",
)


def check(learner, seed):
    draws, s = Draws(seed), 0.6
    x, sigma = draws.normal(6, 3), 1.4
    score = lambda x, sigma: -x / (s**2 + sigma**2)
    want = x * sigma / (s**2 + sigma**2)  # the slope of sqrt(s^2 + sigma^2), over itself
    wrong = {
        "A half is missing: that is the reverse SDE's drift, which needs noise beside it. "
        "Without it the spread shrinks by the square of what is right.": 2 * want,
        "The sign is reversed: with growing sigma the points spread.": -want,
        "That is the score, without its factor sigma.": want / sigma,
        "The score alone, and with its own sign: -sigma s.": -want / sigma,
        "The factor is sigma, not sigma^2: the time here is sigma.": want * sigma,
        "That is with a half too many: half of d(sigma^2)/dsigma is sigma.": want / 2,
        "That is with sigma^2/2, as if time ran at another speed: with sigma as the time the factor is sigma.": want
        * sigma
        / 2,
        "That is dx/d(sigma^2): the time here is sigma.": want / (2 * sigma),
    }
    call = lambda x, sigma: learner.flow_velocity(score, x, sigma)
    expect(call, (x, sigma), want, wrong, name="flow_velocity")
    start, n, largest = x.clone(), 200, 5.0
    h = -largest / n
    for i in range(n):
        at = largest + h * i
        k1 = call(x, at)
        k2 = call(x + h / 2 * k1, at + h / 2)
        k3 = call(x + h / 2 * k2, at + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + call(x + h * k3, at + h))
    if not torch.allclose(x, start * s / (s**2 + largest**2) ** 0.5, rtol=1e-4):
        ratio = (x / start).mean().item()
        raise NotYet(
            f"flow_velocity: a Gaussian contracts to {ratio:.5f} of its width, right is {s / (s**2 + 25) ** 0.5:.5f}"
        )
