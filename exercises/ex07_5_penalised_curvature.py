"""ex07_5 What an energy penalty does to a model (level 2, 25 minutes)

Fit E = lam x^2/2 to data from N(0, variance) by maximum likelihood, with the penalty of ex07_3 on the data's energies:

    loss(lam) = E_data[E] + log Z(lam) + strength * E_data[E^2],        log Z = -1/2 log lam + constant.

Without the penalty lam = 1/variance. Return the lam > 0 of least loss for any strength >= 0, also 0 and 1e-12.

Shapes   variance, strength numbers -> a number
Source   (the moments of a Gaussian: E x^2 = variance, E x^4 = 3 variance^2)
Read     07_neural_ebms.py, section loop
"""

import math


def penalised_curvature(variance, strength):
    """The curvature lam that minimises the penalised loss."""
    raise NotImplementedError
