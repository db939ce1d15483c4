"""ex07_3 The loss that hovers near zero (level 2, 15 minutes)

Training lowers the energy of data and raises that of the chains, with a little pull of all energies to 0 (module 07):

    loss = mean E(x_data) - mean E(x_model) + strength * [ mean E(x_data)^2 + mean E(x_model)^2 ].

The chains are data for the loss: nothing may be differentiated *through* them, even if the caller forgot to detach them.
The square is of each energy, not of their mean.

Shapes   energy a function (B, d) -> (B,); x_data (B, d), x_model (C, d) float64; strength a number
         -> a tensor with one number
Source   Du & Mordatch (2019), section 3
Read     07_neural_ebms.py, section loop
"""

import torch


def contrastive_loss(energy, x_data, x_model, strength):
    """The loss whose slope in the weights is minus the likelihood's, plus the penalty's."""
    raise NotImplementedError
