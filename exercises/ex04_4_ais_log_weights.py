"""ex04_4 The weights of annealed importance sampling (level 3, 35 minutes)

A chain goes from p_0 to p_K through p_k ~ exp(-betas[k] E). It starts at x_0 ~ p_0; for k = 1 ... K it is first *weighed*,
and then *moved*, x_(k-1) -> x_k, by a kernel that leaves p_k as it is:

    w = product over k = 1 ... K of  exp(-betas[k] E(x_(k-1))) / exp(-betas[k-1] E(x_(k-1))).

The mean of w is then exactly Z_K / Z_0, however badly the chains mix. You get the energies of all states on the
way, x_0 ... x_K, a row a chain. Return the log weights.

Shapes   energies (n, K+1), betas (K+1,), rising, float64 -> (n,)
Source   Neal (2001)
Read     04_restricted_boltzmann_machines.py, section likelihood
"""

import torch


def ais_log_weights(energies, betas):
    """log w (n,) of chains whose states had these energies."""
    raise NotImplementedError
