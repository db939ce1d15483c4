"""ex08_3 The generator learns from the chains, not through them (level 2, 25 minutes)

In CoopNets (module 08, eq. 2) Langevin steps revise what the generator made, and the generator then learns to make what the
chains arrived at, from the (inferred) z:

    loss = mean over the rows of  |g(z) - x_revised|^2 / 2.

x_revised was computed from g(z), and still carries that graph. The generator must chase it as a *fixed* target, otherwise
both ends of the difference move, and the gradient is another one.

Shapes   generator a function (B, k) -> (B, d); z (B, k), x_revised (B, d) float64 -> a tensor with one number
Source   Xie et al. (2018)
Read     08_cooperative_training.py, section coopnets
"""

import torch


def generator_loss(generator, z, x_revised):
    """The generator's loss; its gradient reaches the generator through g(z) alone."""
    raise NotImplementedError
