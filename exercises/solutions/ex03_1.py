"""Solution of ex03_1."""

import torch


def p_up(field, T):
    """The probability (n,) that a +-1 unit with this field is +1."""
    return torch.sigmoid(2 * field / T)


MUTANTS = [
    ("2 * field", "field", "samples at 2T"),
    ("torch.sigmoid(2 * field / T)", "torch.tanh(field / T)", "the mean of s"),
    ("2 * field", "-2 * field", "probability of -1"),
    (" / T", "", "T is not used"),
    (" / T", " * T", "multiplied by T"),
    ("torch.sigmoid(2 * field / T)", "(2 * field / T).exp() / (1 + (2 * field / T).exp())", "exp overflows"),
]
