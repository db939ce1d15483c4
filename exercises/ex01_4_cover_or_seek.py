"""ex01_4 The Gaussian that covers, the Gaussian that seeks (level 2, 40 minutes)

A density p is known on a fine, even grid. Two Gaussians q = N(mean, std^2) are nearest to it, each in its own sense:

    cover   least KL(p || q) = int p log(p/q),        q must be wherever p is;
    seek    least KL(q || p) = int q log(q/p),        q must not be where p is not.

The first has a closed form. The second needs a search over (mean, log std), and it has a valley at every mode of p: return
the deepest, to four digits. (scipy.optimize.minimize is welcome; start it more than once, at points where p is large. The
integral must be taken over q's whole mass: a q that slips off the grid would cost nothing there.)

Shapes   p, axis (n,) float64, p > 0, sum(p) dx = 1 -> (mean, std), two numbers
Source   Minka (2005)
Read     01_ebm_foundations.py, section covering
"""

import torch


def cover(p, axis):
    """(mean, std) of the Gaussian of least KL(p || q)."""
    raise NotImplementedError


def seek(p, axis):
    """(mean, std) of the Gaussian of least KL(q || p)."""
    raise NotImplementedError
