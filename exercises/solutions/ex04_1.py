"""Solution of ex04_1."""

import torch


def free_energy_pm1(W, b, c, v):
    """F(v), (B,), of an RBM with hidden units of +-1."""
    x = v @ W + c
    return -(v @ b) - torch.logaddexp(x, -x).sum(1)  # log 2cosh x, without overflow


MUTANTS = [
    ("torch.logaddexp(x, -x)", "torch.nn.functional.softplus(x)", "hidden units of 0 and 1"),
    ("torch.logaddexp(x, -x)", "x.cosh().log()", "cosh without its 2"),
    ("torch.logaddexp(x, -x)", "(2 * x.cosh()).log()", "overflows"),
    ("-(v @ b) - ", "-", "visible biases are missing"),
    ("-(v @ b)", "v @ b", "biases have the wrong sign"),
    ("v @ W + c", "v @ W", "hidden biases are missing"),
    ("- torch.logaddexp", "+ torch.logaddexp", "a minus before the sum"),
]
