"""Solution of ex02_1."""


def flip_costs(W, s):
    """The change of energy (N,) when unit i alone is flipped, for each i."""
    field = W @ s - W.diagonal() * s  # without the unit itself
    return 2 * s * field


MUTANTS = [
    ("return 2 * s * field", "return s * field", "cancels the 1/2"),
    (" - W.diagonal() * s", "", "The diagonal is counted"),
    ("- W.diagonal() * s", "- W.diagonal() * s / 2", "contains 2 W_ii, not W_ii"),
    ("return 2 *", "return -2 *", "before minus the energy after"),
    ("2 * s * field", "field", "That is the field h"),
    ("2 * s * field", "2 * field", "Twice the field"),
    ("- W.diagonal()", "- 2 * W.diagonal()", "subtracted twice"),
]
