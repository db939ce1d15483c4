"""ex02_1 What a flip costs (level 1, 15 minutes)

The energy of a Hopfield net in the state s of +-1 units is (module 02, eq. 1)

    E(s) = -1/2 s'W s,        W symmetric.

Return for every unit i what flipping it costs: E(s with s_i reversed) - E(s), all N of them by one matrix product. Here W
may have a diagonal; W_ii s_i^2 is the same for both signs, so it must not count.

Shapes   W (N, N), s (N,) of +-1, float64 -> (N,)
Source   Hopfield (1982)
Read     02_hopfield_networks.py, section descent
"""

import torch


def flip_costs(W, s):
    """The change of energy (N,) when unit i alone is flipped, for each i."""
    raise NotImplementedError
