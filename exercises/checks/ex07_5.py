"""The check of ex07_5: the loss by quadrature over the data's density, its least point by bisection of its slope."""

import math

import torch

from compare import Draws, expect

HINTS = (
    "E_data[E] = lam variance/2; E_data[E^2] = lam^2 E x^4/4. Set the derivative of the loss in lam to 0.",
    "variance/2 - 1/(2 lam) + (3/2) strength variance^2 lam = 0: multiply by 2 lam, a quadratic equation for lam variance.",
    "2 / (variance * (1 + sqrt(1 + 12 * strength))): the form of the root that does not divide 0 by 0",
)


def least(variance, strength, fourth=3.0):
    """Where the loss's slope is 0. The moments by quadrature; `fourth` in place of 3 only to recognise a mistake."""
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    p = torch.exp(-(x**2) / 2)
    p, x = p / p.sum(), x * math.sqrt(variance)
    second, power_four = (p * x**2).sum().item(), (p * x**4).sum().item() * fourth / 3
    low, high = 0.0, 2 / variance
    for _ in range(80):
        lam = (low + high) / 2
        slope = second / 2 - 1 / (2 * lam) + strength * lam * power_four / 2
        low, high = (lam, high) if slope < 0 else (low, lam)
    return (low + high) / 2


def check(learner, seed):
    variance = 1.5 + Draws(seed).uniform(1).item()
    for strength in (0.4, 0.03):
        want = least(variance, strength)
        wrong = {
            "That is the answer at half the strength: the derivative of lam^2 brings a 2.": least(variance, strength / 2),
            "The penalty is ignored.": 1 / variance,
            "The fourth moment of a Gaussian is 3 variance^2.": least(variance, strength, 1.0),
            "That is at twice the strength: E^2 = lam^2 x^4/4.": least(variance, 2 * strength),
            "That is at four times the strength: the 1/2 of E is squared too.": least(variance, 4 * strength),
            "That is the variance 1/lam that the model has.": 1 / want,
            "The quadratic equation has another root, below 0: lam is positive.": -1 / (3 * strength * variance) - want,
            "log Z falls as -1/2 log lam: the half is missing.": 2 * least(variance, 4 * strength),
        }
        expect(learner.penalised_curvature, (variance, strength), want, wrong)
    for strength in (0.0, 1e-12):
        nan = {"0 divided by 0: multiply the root by its conjugate.": math.nan}
        function = guarded(learner.penalised_curvature)
        expect(function, (variance, strength), least(variance, strength), nan)


def guarded(penalised_curvature):
    """Python's 0/0 raises where torch's is nan."""

    def call(variance, strength):
        try:
            return penalised_curvature(variance, strength)
        except ZeroDivisionError:
            return math.nan

    call.__name__ = "penalised_curvature"
    return call
