"""The check of ex05_4: chains with eigenvalues that are known by construction; and the powers of K, which obey the bound."""

import math

import torch

from compare import Draws, expect

HINTS = (
    "Which start makes the bound largest? Then solve 1/2 r^k sqrt(1/pi_a - 1) <= tolerance for k.",
    "diag(sqrt(pi)) K diag(1/sqrt(pi)) is symmetric, with K's eigenvalues: torch.linalg.eigvalsh. Drop the 1, take abs.",
    "math.ceil(math.log(2 * tolerance / math.sqrt(1 / pi.min() - 1)) / math.log(r)), and not less than 0",
)


def chain(draws, values):
    """A reversible K with the given eigenvalues beside 1, and its pi, found from a random orthonormal basis."""
    n = len(values) + 1
    pi = 1 + draws.uniform(n)
    pi = pi / pi.sum()
    basis, _ = torch.linalg.qr(torch.cat([pi.sqrt()[:, None], draws.normal(n, n - 1)], 1))
    symmetric = basis @ torch.diag(torch.cat([torch.ones(1), torch.tensor(values)]).double()) @ basis.T
    return symmetric / pi.sqrt()[:, None] * pi.sqrt(), pi


def least(r, size, tolerance):
    k = 0
    while size * r**k > tolerance:
        k += 1
    return k


def check(learner, seed):
    draws, tolerance = Draws(seed), 1e-3
    needed = guarded(learner.sweeps_needed)
    rare = torch.tensor([0.998, 0.001, 0.001], dtype=torch.float64)
    K = 0.5 * torch.eye(3, dtype=torch.float64) + 0.5 * rare
    size = 0.5 * math.sqrt(999)
    want = least(0.5, size, tolerance)
    of_one = "Eigenvalue 1 is pi's own: it never decays (log 1 is 0, up to rounding), and the next one decides."
    wrong = {
        of_one: math.inf,
        f"{of_one} ": 0,
        "That is rounded down: there the bound is still above the tolerance.": want - 1,
        "The half before r^k is missing (or the count is one too many).": want + 1,
        "The worst start is the *least* likely state: min pi.": least(0.5, 0.5 * math.sqrt(1 / 0.998 - 1), tolerance),
        "The start's 1/pi_a - 1 is missing.": least(0.5, 0.5, tolerance),
        "The root of 1/pi_a - 1 is missing.": least(0.5, 0.5 * 999, tolerance),
        "That is r^(2k), the bound of chi^2: total variation goes as its root.": least(0.25, size, tolerance),
    }
    expect(needed, (K, rare, tolerance), want, wrong)
    for values, r in (([0.30, 0.24, 0.1], 0.30), ([0.15, 0.05, -0.25], 0.25)):
        K, pi = chain(draws, values)
        while (K < 0).any():  # not every basis makes a chain
            K, pi = chain(draws, values)
        size = 0.5 * (1 / pi.min() - 1).sqrt().item()
        want = least(r, size, tolerance)
        wrong = {
            "The second largest is meant in absolute value: -0.25 decays as 0.25.": least(0.15, size, tolerance),
            "The slowest decides: the second largest, not the third.": least(0.24, size, tolerance),
            "The slowest decides: that eigenvalue is the smallest.": least(0.1, size, tolerance),
        }
        expect(needed, (K, pi, tolerance), want, wrong)
        starts = (torch.linalg.matrix_power(K, want) - pi).abs().sum(1) / 2
        assert starts.max() <= tolerance
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    fewer = {"Where the bound holds at once 0 sweeps are needed, and not fewer.": -2}
    expect(needed, (0.9 * torch.eye(3, dtype=torch.float64) + 0.1 * even, even, 0.9), 0, fewer)


def guarded(sweeps_needed):
    """log 1 = 0 in the denominator, or a number that is as good as infinite, is one mistake: eigenvalue 1."""

    def call(K, pi, tolerance):
        try:
            k = sweeps_needed(K, pi, tolerance)
        except (ZeroDivisionError, OverflowError):
            return math.inf
        return math.inf if isinstance(k, int | float) and abs(k) > 1e9 else k

    call.__name__ = "sweeps_needed"
    return call
