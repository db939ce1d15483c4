"""ex10_3 The density of a coupling layer (level 2, 25 minutes)

A coupling layer makes x = (x_1, x_2) from z = (z_1, z_2) ~ N(0, I) by

    x_1 = z_1,        x_2 = z_2 exp(scale(x_1)) + shift(x_1).

scale and shift are any functions, networks say: only they, and never their inverses, are evaluated. Return log p(x), exactly
normalised.

Shapes   x (B, 2) float64; scale, shift functions (B,) -> (B,) -> (B,)
Source   Dinh, Sohl-Dickstein & Bengio (2017), eqs. 4 and 6
Read     10_advanced_ebm_topics.py, section flows
"""

import math

import torch


def coupling_log_prob(x, scale, shift):
    """log p(x), (B,), of one coupling layer over a standard normal."""
    raise NotImplementedError
