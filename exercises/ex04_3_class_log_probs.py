"""ex04_3 An RBM that classifies (level 2, 30 minutes)

Give an RBM a label y among its visible units, one-hot, with its own weights U to the hidden units and biases d:

    E(x, y, h) = -x'W h - U_y'h - c'h - d_y - b'x,        h_j = 0 or 1.

Everything that does not depend on y cancels in p(y | x), and the sum over h factorises. Return log p(y | x) for all labels.

Shapes   W (n, m), U (K, m), c (m,), d (K,), x (B, n), float64 -> (B, K)
Source   Larochelle & Bengio (2008), eq. 2
Read     04_restricted_boltzmann_machines.py, section features
"""

import torch


def class_log_probs(W, U, c, d, x):
    """log p(y | x), (B, K), for every label y."""
    raise NotImplementedError
