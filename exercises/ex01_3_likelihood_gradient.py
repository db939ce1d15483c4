"""ex01_3 Two forces on two parameters (level 2, 25 minutes)

The energy E(x) = t1 x^2 + t2 x^4 has two parameters, theta = (t1, t2). The gradient of the mean log likelihood of data
x has two phases (module 01, eq. 3):

    d <log p> / d theta = - <dE/dtheta>_data + <dE/dtheta>_model,        p = exp(-E) / Z.

In one dimension the model's average is a sum over a fine, even grid `axis`. Return the gradient to climb.

Shapes   theta (2,), x (N,), axis (n,) float64 -> (2,)
Source   Hinton (2002)
Read     01_ebm_foundations.py, section forces
"""

import torch


def likelihood_gradient(theta, x, axis):
    """The gradient (2,) of the mean log likelihood of x in theta; averages over the model are sums over axis."""
    raise NotImplementedError
