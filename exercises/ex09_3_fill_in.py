"""ex09_3 Filling in a Gaussian (level 2, 25 minutes)

For E(x) = x'A x/2 the density is N(0, A^-1). Some coordinates are known, k, the others are not, u. As a function of x_u
alone E is again quadratic, so that p(x_u | x_k) is a Gaussian; find its mean, where E is least, and its covariance.

Return x with the unknown coordinates replaced by their conditional mean, and the conditional covariance of these.

Shapes   A (d, d) symmetric, positive definite; x (d,) float64; known (d,) bool, U of them False
         -> (x filled in (d,), covariance (U, U))
Source   Bishop (2006), section 2.3.1
Read     09_ebm_applications.py, section inpainting
"""

import torch


def fill_in(A, x, known):
    """(x with the unknown coordinates filled in, their conditional covariance)."""
    raise NotImplementedError
