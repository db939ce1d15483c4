"""The check of ex03_3: all 2^n states; for a long ring the matrix itself, multiplied n times."""

import math

import torch

from compare import Draws, expect, states

HINTS = (
    "What are the eigenvalues of [[e^K, e^-K], [e^-K, e^K]], K the coupling? Its eigenvectors are (1, 1) and (1, -1).",
    "Z = (2 cosh K)^n + (2 sinh K)^n. Take the larger factor out before you take the logarithm.",
    "n * math.log(2 * math.cosh(K)) + math.log1p(math.tanh(K) ** n)",
)


def by_states(coupling, n, closed=True):
    s = states(n, -1)
    bonds = (s * s.roll(-1, 1))[:, : n if closed else n - 1].sum(1)
    return torch.logsumexp(coupling * bonds, 0).item()


def by_products(coupling, n):
    step = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).mul(coupling).exp()
    power, log_scale = torch.eye(2, dtype=torch.float64), 0.0
    for _ in range(n):
        power = power @ step
        log_scale += power.sum().log().item()
        power = power / power.sum()
    return power.trace().log().item() + log_scale


def check(learner, seed):
    draws = Draws(seed)
    for coupling, n in ((0.5 + 0.3 * draws.uniform(1).item(), 6), (-0.5 - 0.3 * draws.uniform(1).item(), 7)):
        z = math.exp(by_states(coupling, n))
        wrong = {
            "The second eigenvalue is missing: Z = l1^n + l2^n.": n * math.log(2 * math.cosh(coupling)),
            "That is the open chain: the bond from the last spin to the first is missing.": by_states(coupling, n, False),
            "Each bond is counted twice.": by_states(2 * coupling, n),
            "That is Z: take its logarithm.": z,
            "The bonds have the reversed sign.": by_states(-coupling, n),
            "That is log Z a spin: multiply by n.": by_states(coupling, n) / n,
            "Only the larger eigenvalue's sign was kept: sinh is negative for a negative coupling.": math.log(
                (2 * math.cosh(coupling)) ** n + abs(2 * math.sinh(coupling)) ** n
            ),
            "The second eigenvalue is 2 sinh K, with the same 2 as the first.": math.log(
                (2 * math.cosh(coupling)) ** n + math.sinh(coupling) ** n
            ),
        }
        expect(learner.ring_log_z, (coupling, n), by_states(coupling, n), wrong, {"n": n})
    overflow = {"Z overflows for a long ring: take the larger eigenvalue out of the logarithm.": math.inf}
    for coupling in (0.4, 1.5):
        expect(overflowing(learner.ring_log_z), (coupling, 2000), by_products(coupling, 2000), overflow)


def overflowing(ring_log_z):
    """math's functions raise where torch's return inf: both are the same mistake."""

    def call(coupling, n):
        try:
            return ring_log_z(coupling, n)
        except OverflowError:
            return math.inf

    call.__name__ = "ring_log_z"
    return call
