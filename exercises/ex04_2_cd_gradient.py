"""ex04_2 The gradient of CD, by hand (level 2, 25 minutes)

Contrastive divergence climbs the difference of two averages (module 04, eq. 4; E[.] is a mean over the rows of v):

    dW = E_data[v h'] - E_model[v h'],    db = E_data[v] - E_model[v],    dc = E_data[h] - E_model[h],

with h = P(h = 1 | v) = sigmoid(c + v W), the probabilities themselves: samples of h would only add noise. Return the three,
as a direction to climb, without autograd.

Shapes   W (d, m), b (d,), c (m,), v_data (B, d), v_model (C, d), float64 -> (dW (d, m), db (d,), dc (m,))
Source   Hinton (2002); Hinton (2012), section 3
Read     04_restricted_boltzmann_machines.py, section cd
"""

import torch


def cd_gradient(W, b, c, v_data, v_model):
    """(dW, db, dc), to climb: the data's averages minus the model's."""
    raise NotImplementedError
