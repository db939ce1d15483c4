"""ex01_2 A Langevin step, and how wrong it is (level 1, 20 minutes)

One step of Langevin dynamics at temperature T (module 01, eq. 2), with the noise xi ~ N(0, I) given:

    x' = x - (step_size/2) grad + sqrt(step_size * T) xi.

In a well E = a x^2/2, where grad = a x, the step is linear. Then x settles to a Gaussian, whose variance solves

    v = (1 - a step_size/2)^2 v + step_size * T,

and is more than T/a, that of the exact density. Return it; or math.inf where x does not settle (the equation may have a
root even there). Module 01's section stepsize writes h for step_size/2.

Shapes   x, grad, xi (B, d) float64; a, step_size, T positive numbers -> x' (B, d); v a number
Source   Roberts & Tweedie (1996)
Read     01_ebm_foundations.py, sections sampling and stepsize
"""

import math

import torch


def langevin_step(x, grad, step_size, T, xi):
    """The points (B, d) after one step from x, where the energy has the gradient grad."""
    raise NotImplementedError


def stationary_variance(a, step_size, T):
    """The variance of x after infinitely many steps in E = a x^2/2; math.inf if there is none."""
    raise NotImplementedError
