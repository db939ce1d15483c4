"""ex06_3 One projection instead of d derivatives (level 2, 25 minutes)

The divergence of ex06_1 costs d backward passes. With a random v whose E[v v'] = I, v'(ds/dx)v has the same mean, at the
price of one (module 06, eq. 3, written with the score):

    J = mean over the rows of  [ |s(x)|^2 / 2 + v' (ds/dx) v ].

v is given, a row for each x. Take one backward pass, of (s * v).sum(), and keep the graph as in ex06_1.

Shapes   score a function (B, d) -> (B, d); x, v (B, d) float64 -> a tensor with one number
Source   Song et al. (2019), section 3
Read     06_score_matching.py, sections identity and objectives
"""

import torch


def sliced_loss(score, x, v):
    """The sliced score matching loss (its variance-reduced form), a mean over the rows."""
    raise NotImplementedError
