"""ex03_1 The probability that a spin is up (level 1, 10 minutes)

A unit s = +1 or -1 with the field h has the energy -h s. At temperature T it is up with the probability

    P(s = +1) = exp(h/T) / (exp(h/T) + exp(-h/T)).

Return it for many fields, also for |h|/T = 2000 (module 03, eq. 2, says it in one function).

Shapes   field (n,) float64, T a positive number -> (n,)
Source   Ackley, Hinton & Sejnowski (1985)
Read     03_boltzmann_machines.py, section units
"""

import torch


def p_up(field, T):
    """The probability (n,) that a +-1 unit with this field is +1."""
    raise NotImplementedError
