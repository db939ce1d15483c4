"""ex02_2 Hebb's rule from bits (level 1, 10 minutes)

Memories come as bits, 0 or 1. A Hopfield net wants +-1 units: map 0 to -1. Then Hebb's rule is (module 02, eq. 3)

    W = X'X / N   off the diagonal,        W_ii = 0,

with N the number of units (not of patterns).

Shapes   bits (P, N) float64 of 0 and 1 -> W (N, N)
Source   Hopfield (1982)
Read     02_hopfield_networks.py, section memories
"""

import torch


def hebb_from_bits(bits):
    """Hebb's couplings (N, N) for patterns that are given as bits."""
    raise NotImplementedError
