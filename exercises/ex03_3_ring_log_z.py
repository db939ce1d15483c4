"""ex03_3 A ring of spins, summed exactly (level 2, 20 minutes)

n spins s_i = +-1 in a ring, each coupled to its two neighbours: n bonds, and n >= 3,

    -E/T = coupling * (s_1 s_2 + s_2 s_3 + ... + s_n s_1),        Z = sum over all 2^n states of exp(-E/T).

Z is the trace of the n-th power of a 2 x 2 matrix with entries exp(coupling s s'), so its two eigenvalues suffice. Return
log Z, also for n = 2000, where Z itself overflows, and for negative couplings.

Shapes   coupling a number, n an integer -> a number
Source   Ising (1925); Kramers & Wannier (1941)
Read     03_boltzmann_machines.py, section ising
"""

import math


def ring_log_z(coupling, n):
    """log Z of n spins in a ring."""
    raise NotImplementedError
