"""ex05_4 How many sweeps are enough (level 2, 20 minutes)

A chain K that is reversible with respect to pi has real eigenvalues 1 = l_1 > l_2 >= ... >= -1. From any start a, after k
sweeps (Diaconis & Stroock 1991; module 05 uses the same bound in eq. 3),

    total variation(K^k[a], pi)  <=  1/2 r^k sqrt(1/pi_a - 1),        r = the largest |l_i| but l_1's.

Return the least k for which the bound is at most `tolerance` from *every* start.

Shapes   K (S, S), pi (S,) float64; tolerance a number in (0, 1) -> an integer
Source   Diaconis & Stroock (1991)
Read     05_contrastive_divergence.py, section bias (reversible_spectrum)
"""

import math

import torch


def sweeps_needed(K, pi, tolerance):
    """The least number of sweeps after which the bound is at most `tolerance`, whatever the start."""
    raise NotImplementedError
