"""ex04_1 A free energy for spins (level 1, 15 minutes)

An RBM whose hidden units are +1 or -1, and not 0 or 1, with the same energy (module 04, eq. 1):

    E(v, h) = -v'W h - b'v - c'h,        F(v) = -log sum over all h of exp(-E(v, h)).

The sum factorises over the hidden units, as in eq. (3), but softplus is not what comes out. Return F for each row of v; it
must stay finite for inputs of +-1000 to a hidden unit.

Shapes   W (d, m), b (d,), c (m,), v (B, d), float64 -> (B,)
Source   Hinton (2012), section 13 (other types of unit)
Read     04_restricted_boltzmann_machines.py, section bipartite
"""

import torch


def free_energy_pm1(W, b, c, v):
    """F(v), (B,), of an RBM with hidden units of +-1."""
    raise NotImplementedError
