"""ex05_3 Two machines, and a score that prefers the wrong one (level 3, 30 minutes)

Reconstruction error misleads (Fischer & Igel 2010). Prove it: for the data x build two RBMs, A and B, such that

    A reconstructs x better,     mean over x and over h ~ P(h | x) of  sum_i |x_i - P(v_i = 1 | h)|,  less by 0.5 or more,
    B is the better model,       mean log p(x) higher by 0.5 nats or more.

You may choose the number of hidden units of each, up to 8. The check sums over all states, so both are exact.
Do not train: think of what a hidden layer needs to copy any image, likely or not, and of a model that copies nothing.

Shapes   x (N, d) float64 of 0 and 1, d = 6 -> (A, B), each a tuple (W (d, m), b (d,), c (m,)) of float64
Source   Fischer & Igel (2010)
Read     05_contrastive_divergence.py, section misleading
"""

import torch


def misleading_pair(x):
    """(A, B): A reconstructs x better, B gives it the higher likelihood."""
    raise NotImplementedError
