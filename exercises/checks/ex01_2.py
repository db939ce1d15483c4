"""The check of ex01_2: the recursion itself, iterated until it stands still."""

import math

from compare import Draws, expect

HINTS = (
    "The step is eq. (2) of module 01, term by term. For the variance solve the equation in the statement for v.",
    "1 - (1 - y)^2 = y (2 - y), with y = a step_size/2. And when is |1 - y| >= 1?",
    "v = step_size T / (1 - (1 - a step_size/2)^2) if a step_size < 4, else math.inf.",
)


def oracle(a, step_size, T):
    v = 1.0
    for _ in range(100_000):
        v = (1 - a * step_size / 2) ** 2 * v + step_size * T
        if v > 1e4:
            return math.inf
    return v


def check(learner, seed):
    draws, e, T = Draws(seed), 0.3, 0.7
    x, grad, xi = draws.normal(6, 4), draws.normal(6, 4), draws.normal(6, 4)
    drift, noise = x - e / 2 * grad, math.sqrt(e * T) * xi
    wrong = {
        "Uphill: the gradient is subtracted.": x + e / 2 * grad + noise,
        "The drift has half the step: grad * step_size/2.": x - e * grad + noise,
        "Noise sqrt(2 step_size T) with half a step of drift samples at 2T: two conventions are mixed.": drift
        + math.sqrt(2) * noise,
        "T belongs under the root: sqrt(step_size * T).": drift + math.sqrt(e) * T * xi,
        "That is the other form, with h: put h = step_size/2 in both places.": x - e * grad + math.sqrt(2) * noise,
        "The noise grows as the root of the step.": drift + e * T * xi,
        "The noise is missing: that is gradient descent.": drift,
        "T is not used.": drift + math.sqrt(e) * xi,
    }
    expect(learner.langevin_step, (x, grad, e, T, xi), drift + noise, wrong)
    a = 1.5
    wrong = {
        "T/a is the exact density's variance: the step's own bias is missing.": T / a,
        "Here h = step_size/2: the factor is 2/(2 - a h).": T / a * 2 / (2 - a * e),
        "The noise adds step_size * T to the variance.": oracle(a, e, 1.0),
        "Variances shrink by the *square* of 1 - a step_size/2.": e * T / (a * e / 2),
        "That is the standard deviation.": math.sqrt(oracle(a, e, T)),
    }
    expect(learner.stationary_variance, (a, e, T), oracle(a, e, T), wrong, {"T": T, "a": a})
    for step_size in (3.9 / a, 5.0 / a, 4.0 / a):
        negative = step_size * T / (1 - (1 - a * step_size / 2) ** 2) if step_size > 4 / a else math.nan
        wrong = {
            "Where a * step_size >= 4, a step multiplies x by 1 - a step_size/2 <= -1: math.inf.": negative,
            "Module 01's h is step_size/2: its a h = 2 is a * step_size = 4.": math.inf,  # right from there on
        }
        expect(learner.stationary_variance, (a, step_size, T), oracle(a, step_size, T), wrong)
