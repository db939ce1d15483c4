"""Solution of ex10_3."""

import math


def coupling_log_prob(x, scale, shift):
    """log p(x), (B,), of one coupling layer over a standard normal."""
    z_1, log_det = x[:, 0], -scale(x[:, 0])
    z_2 = (x[:, 1] - shift(z_1)) * log_det.exp()
    return -0.5 * (z_1**2 + z_2**2) - math.log(2 * math.pi) + log_det


MUTANTS = [
    ("+ log_det", "- log_det", "log det has the wrong sign"),
    (" + log_det", "", "log det is missing"),
    (" - math.log(2 * math.pi)", "", "constant is missing"),
    ("math.log(2 * math.pi)", "0.5 * math.log(2 * math.pi)", "one dimension: there are two"),
    ("(x[:, 1] - shift(z_1)) * log_det.exp()", "x[:, 1] * (-log_det).exp() + shift(z_1)", "not its inverse"),
    ("x[:, 1] - shift(z_1)", "x[:, 1] + shift(z_1)", "shift has the wrong sign"),
    ("(x[:, 1] - shift(z_1)) * log_det.exp()", "x[:, 1] * log_det.exp() - shift(z_1)", "Subtract shift first"),
    ("-0.5 * (z_1**2 + z_2**2)", "-(z_1**2 + z_2**2)", "the half is missing"),
]
