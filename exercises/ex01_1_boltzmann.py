"""ex01_1 From energies to probabilities (level 1, 10 minutes)

At temperature T a state of energy E has the probability (module 01, eq. 1)

    p_i = exp(-E_i / T) / Z,        Z = sum_i exp(-E_i / T).

Return all of them, also where exp would overflow or underflow: energies near 10,000, or T = 0.01. A constant that is
added to all energies changes nothing; choose it well.

Shapes   energies (n,) float64, T a positive number -> p (n,)
Source   LeCun et al. (2006)
Read     01_ebm_foundations.py, section probability
"""

import torch


def boltzmann(energies, T):
    """The probabilities (n,) of states with these energies at temperature T."""
    raise NotImplementedError
