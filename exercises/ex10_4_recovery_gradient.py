"""ex10_4 Recovery likelihood (level 3, 30 minutes)

A clean x was blurred to y = x + sigma n. Instead of p(x) learn p(x | y), which is narrow, and easy to sample:

    p(x | y) ~ exp( -E(x) - (x - y)^2 / (2 sigma^2) ).

In one dimension its normaliser is a sum over a grid, one for each y. Return the gradient of the mean of log p(x | y) over
the pairs (x, y) in the energy's parameters theta, from dE/dtheta, which you get as a function:

    energy_slope(x): (n,) -> (n_theta, n),        energy(x): (n,) -> (n,).

Shapes   x, y (N,), axis (n,) float64; sigma a number -> (n_theta,)
Source   Gao et al. (2021), section 3
Read     10_advanced_ebm_topics.py, section recovery; 01_ebm_foundations.py, section forces
"""

import torch


def recovery_gradient(energy_slope, energy, x, y, sigma, axis):
    """The gradient (n_theta,) of the mean log p(x | y), to climb."""
    raise NotImplementedError
