"""Solution of ex07_5."""

import math


def penalised_curvature(variance, strength):
    """The curvature lam that minimises the penalised loss."""
    root = math.sqrt(1 + 12 * strength)
    return 2 / (variance * (1 + root))  # = (root - 1) / (6 strength variance)


MUTANTS = [
    ("12 * strength", "6 * strength", "at half the strength"),
    ("2 / (variance * (1 + root))", "1 / variance", "The penalty is ignored"),
    ("12 * strength", "4 * strength", "fourth moment"),
    ("12 * strength", "24 * strength", "at twice the strength"),
    ("12 * strength", "48 * strength", "four times the strength"),
    ("2 / (variance * (1 + root))", "variance * (1 + root) / 2", "That is the variance"),
    ("2 / (variance * (1 + root))", "(-1 - root) / (6 * strength * variance)", "below 0"),
    ("2 / (variance * (1 + root))", "(root - 1) / (6 * strength * variance)", "conjugate"),
]
