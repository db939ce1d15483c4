"""Solution of ex09_3."""

import torch


def fill_in(A, x, known):
    """(x with the unknown coordinates filled in, their conditional covariance)."""
    A_uu, A_uk = A[~known][:, ~known], A[~known][:, known]
    filled = x.clone()
    filled[~known] = -torch.linalg.solve(A_uu, A_uk @ x[known])
    return filled, torch.linalg.inv(A_uu)


MUTANTS = [
    ("-torch.linalg.solve", "torch.linalg.solve", "The sign of the mean"),
    ("return filled, torch.linalg.inv(A_uu)", "return filled, torch.linalg.inv(A)[~known][:, ~known]", "the marginal one"),
    ("torch.linalg.inv(A_uu)", "A_uu", "That is the precision"),
    ("torch.linalg.solve(A_uu, A_uk @ x[known])", "0 * x[~known]", "left at 0"),
    ("filled[~known] = ", "_ = ", "were not changed"),
    ("torch.linalg.solve(A_uu, A_uk @ x[known])", "(A_uk @ x[known])", "solve with it"),
    ("x.clone()", "torch.zeros_like(x)", "must stay as they are"),
    ("torch.linalg.solve(A_uu, A_uk @ x[known])", "(A_uk @ x[known]) / A_uu.diagonal()", "Only the diagonal"),
    ("x.clone()", "x", "changes its argument x"),
]
