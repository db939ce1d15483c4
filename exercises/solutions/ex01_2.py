"""Solution of ex01_2."""

import math


def langevin_step(x, grad, step_size, T, xi):
    """The points (B, d) after one step from x, where the energy has the gradient grad."""
    return x - step_size / 2 * grad + math.sqrt(step_size * T) * xi


def stationary_variance(a, step_size, T):
    """The variance of x after infinitely many steps in E = a x^2/2; math.inf if there is none."""
    return T / (a * (1 - a * step_size / 4)) if a * step_size < 4 else math.inf


MUTANTS = [
    ("x - step_size / 2 * grad", "x + step_size / 2 * grad", "Uphill"),
    ("step_size / 2 * grad", "step_size * grad", "half the step"),
    ("x - step_size / 2 * grad + ", "x - step_size * grad + math.sqrt(2) * ", "That is the other form"),
    ("math.sqrt(step_size * T)", "math.sqrt(2 * step_size * T)", "two conventions"),
    ("math.sqrt(step_size * T)", "math.sqrt(step_size) * T", "under the root"),
    (" + math.sqrt(step_size * T) * xi", "", "gradient descent"),
    ("(a * (1 - a * step_size / 4))", "a", "own bias is missing"),
    ("step_size / 4", "step_size / 2", "h = step_size/2"),
    (" if a * step_size < 4 else math.inf", "", "multiplies x by 1 - a step_size/2 <= -1"),
    ("a * step_size < 4", "a * step_size < 2", "its a h = 2 is a * step_size = 4"),
]
