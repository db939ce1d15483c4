"""ex06_1 Score matching without the data's score (level 2, 25 minutes)

For a model whose score is s(x) = grad log p(x) = -grad E(x), Hyvarinen's objective needs samples only (module 06, eq. 2,
written with the score: -Laplacian E = +div s):

    J = mean over the rows of x of  [ |s(x)|^2 / 2 + div s(x) ],        div s = sum_i ds_i/dx_i.

`score` is a function from (B, d) to (B, d) whose rows do not depend on each other. Get the divergence by autograd, one
component at a time, on a copy of x that requires gradients, and keep the graph (create_graph=True): the loss is to be
differentiated in the model's parameters.

Shapes   score a function (B, d) -> (B, d); x (B, d) float64 -> a tensor with one number
Source   Hyvarinen (2005), theorem 1
Read     06_score_matching.py, section identity
"""

import torch


def implicit_matching(score, x):
    """The implicit score matching loss, a mean over x."""
    raise NotImplementedError
