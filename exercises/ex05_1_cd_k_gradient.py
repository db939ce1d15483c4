"""ex05_1 What CD-k climbs, exactly (level 2, 25 minutes)

With all states numbered, the data are a probability vector q, a Gibbs sweep is a matrix K (K[a, b] = P(a -> b)), and the
statistics are a table phi, a row a state. Then CD-k's mean update is (module 05, eq. 2)

    E_q[phi] - E_(q K^k)[phi].

k = 0 gives 0. k = math.inf gives the likelihood's own gradient: q K^k has become the stationary distribution, p K = p.

Shapes   K (S, S), phi (S, n), q (S,) float64; k an integer >= 0, or math.inf -> (n,)
Source   Hinton (2002); Carreira-Perpinan & Hinton (2005)
Read     05_contrastive_divergence.py, section bias
"""

import math

import torch


def cd_k_gradient(K, phi, q, k):
    """The mean of CD-k's update (n,), in the direction that it climbs."""
    raise NotImplementedError
