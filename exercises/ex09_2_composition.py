"""ex09_2 And, or (level 2, 25 minutes)

Two or more energies of the same x are combined into one. AND multiplies the densities,

    p(x) ~ p_1(x) p_2(x) ...,

and OR mixes them evenly,

    p(x) ~ p_1(x) + p_2(x) + ...,        p_i(x) = exp(-E_i(x)) / Z_i.

Return one energy a function: for AND, E = -log prod_i exp(-E_i), which needs no Z_i; for OR, E = -log sum_i p_i(x), without
the 1/n. There the log normalisers matter: without them OR mixes Z_1 : Z_2, and not 1 : 1.

Shapes   energies (n, B), log_zs (n,) float64 -> (B,)
Source   Hinton (2002); Du, Li & Mordatch (2020)
Read     09_ebm_applications.py, section composition
"""

import torch


def conjunction(energies):
    """The energy (B,) of the product, -log of prod_i exp(-E_i)."""
    raise NotImplementedError


def disjunction(energies, log_zs):
    """The energy (B,) of the even mixture, -log sum_i exp(-E_i)/Z_i."""
    raise NotImplementedError
