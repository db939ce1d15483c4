"""ex03_2 The Metropolis chain as a matrix (level 2, 25 minutes)

n units have 2^n states, numbered so that bit i of the number is unit i; flipping unit i turns state a into a ^ 2**i. One
Metropolis step at T = 1 chooses one of the n units evenly, proposes its flip, and accepts it with probability

    min(1, exp(-(E(after) - E(before)))).

Where it is not accepted, the chain stays. Return the transition matrix, K[a, b] = P(a -> b).

Shapes   energies (2^n,) float64 -> K (2^n, 2^n)
Source   Metropolis et al. (1953)
Read     03_boltzmann_machines.py, sections units (gibbs_kernel) and annealing
"""

import torch


def metropolis_kernel(energies):
    """The transition matrix (2^n, 2^n) of one single-flip Metropolis step at T = 1."""
    raise NotImplementedError
