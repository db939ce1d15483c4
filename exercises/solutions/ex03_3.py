"""Solution of ex03_3."""

import math


def ring_log_z(coupling, n):
    """log Z of n spins in a ring."""
    return n * math.log(2 * math.cosh(coupling)) + math.log1p(math.tanh(coupling) ** n)


MUTANTS = [
    (" + math.log1p(math.tanh(coupling) ** n)", "", "second eigenvalue is missing"),
    (
        "n * math.log(2 * math.cosh(coupling)) + math.log1p(math.tanh(coupling) ** n)",
        "n * math.log(2) + (n - 1) * math.log(math.cosh(coupling))",
        "the open chain",
    ),
    ("    return", "    coupling = 2 * coupling\n    return", "counted twice"),
    (
        "n * math.log(2 * math.cosh(coupling)) + math.log1p(math.tanh(coupling) ** n)",
        "math.log((2 * math.cosh(coupling)) ** n + (2 * math.sinh(coupling)) ** n)",
        "Z overflows",
    ),
    ("math.tanh(coupling) ** n", "(math.tanh(coupling) / 2) ** n", "with the same 2"),
    ("math.tanh(coupling) ** n", "abs(math.tanh(coupling)) ** n", "negative coupling"),
    ("    return", "    coupling = -coupling\n    return", "reversed sign"),
]
