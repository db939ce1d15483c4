"""ex02_3 A melody instead of a memory (level 1, 10 minutes)

Hebb's couplings make each pattern a place where the net stays. Couplings that are *not* symmetric can make it go on: write W
such that all units at once, s <- sign(W s), move pattern 1 to 2, 2 to 3, ..., and the last to the first (exactly if the
patterns are orthogonal; else nearly, if they are few).

Write Hebb's sum with the next pattern on one side,

    W = (1/N) sum_mu x^(mu+1) (x^mu)',

and keep the diagonal (there is no energy here that it could spoil).

Shapes   patterns (P, N) of +-1, float64, in the order of the sequence -> W (N, N)
Source   Hopfield (1982); Sompolinsky & Kanter (1986)
Read     02_hopfield_networks.py, section memories
"""

import torch


def sequence_weights(patterns):
    """Couplings (N, N) under which s <- sign(W s) steps through the patterns, and round again."""
    raise NotImplementedError
