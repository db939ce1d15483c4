"""ex03_4 How many draws are worth one (level 1, 10 minutes)

The mean of n correlated draws has the variance (sigma^2/n) tau, with the integrated autocorrelation time

    tau = sum over all lags t, negative and positive, of rho_t,        rho_0 = 1, rho_-t = rho_t.

Return it in draws, for an autocorrelation that is given from lag 0 on and has died out at its end: sum all of it, no
window. Independent draws have tau = 1; a chain whose draws alternate has less.

Shapes   rho (n,) float64, rho[0] = 1 -> a number (or a tensor with one)
Source   Sokal (1989)
Read     03_boltzmann_machines.py, sections ising and diagnostics
"""

import torch


def integrated_time(rho):
    """The integrated autocorrelation time, in draws."""
    raise NotImplementedError
