"""ex08_1 A classifier is an energy (level 1, 10 minutes)

A classifier's logits f_y(x) hold an energy too (module 08, eq. 5). From p(x, y) = exp f_y(x)/Z follow

    E(x) = -log sum_y exp f_y(x),        log p(y | x) = f_y(x) + E(x).

Return both, for logits of any size. A constant added to all logits of an image lowers its energy by as much, and changes no
class probability.

Shapes   logits (B, K) float64 -> (E (B,), log_p (B, K))
Source   Grathwohl et al. (2020), section 3
Read     08_cooperative_training.py, section jem
"""

import torch


def jem(logits):
    """(E(x), log p(y | x)) of a classifier."""
    raise NotImplementedError
