"""The check of ex09_3: conditioning by the covariance, Sigma_uk Sigma_kk^-1: the other way to the same answer."""

import torch

from compare import Draws, expect

HINTS = (
    "Cut A into its blocks A_uu and A_uk. Which terms of x'A x/2 contain x_u? Set their derivative to 0.",
    "A_uu x_u + A_uk x_k = 0. The conditional precision is A_uu: cut A, not its inverse.",
    "mean = -torch.linalg.solve(A[~k][:, ~k], A[~k][:, k] @ x[k]); covariance = torch.linalg.inv(A[~k][:, ~k])",
)


def check(learner, seed):
    draws, d = Draws(seed), 7
    root = draws.normal(d, d)
    A, x = root @ root.T + torch.eye(d), draws.normal(d)
    known = torch.tensor([True, False, True, True, False, False, True])
    sigma = torch.linalg.inv(A)
    uu, uk, kk = sigma[~known][:, ~known], sigma[~known][:, known], sigma[known][:, known]
    gain = uk @ torch.linalg.inv(kk)
    covariance = uu - gain @ uk.T

    def filled(values, start=x):
        out = start.clone()
        out[~known] = values
        return out

    mean = gain @ x[known]
    cut = A[~known][:, ~known]
    wrong = {
        "The sign of the mean is reversed: A_uu x_u = -A_uk x_k.": (filled(-mean), covariance),
        "That covariance is Sigma's block, the marginal one: cut A, not its inverse.": (filled(mean), uu),
        "That is the precision: the covariance is its inverse.": (filled(mean), cut),
        "The unknown coordinates are left at 0.": (filled(torch.zeros(3).double()), covariance),
        "The unknown coordinates were not changed.": (x, covariance),
        "A_uu is missing in the mean: solve with it.": (filled(-A[~known][:, known] @ x[known]), covariance),
        "The mean is right only for Sigma's blocks: solve A_uu x_u = -A_uk x_k.": (
            filled(-torch.linalg.solve(uu, uk @ x[known])),
            covariance,
        ),
        "Known coordinates must stay as they are.": (filled(mean, torch.zeros_like(x)), covariance),
        "Only the diagonal of A_uu was used: unknown coordinates depend on each other.": (
            filled(-A[~known][:, known] @ x[known] / cut.diagonal()),
            covariance,
        ),
        "That is the energy's least value without half of A: with E = x'A x/2 the covariance is A_uu^-1.": (
            filled(mean),
            covariance / 2,
        ),
    }
    expect(learner.fill_in, (A, x, known), (filled(mean), covariance), wrong, names=("x", "covariance"))
