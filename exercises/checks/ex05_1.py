"""The check of ex05_1: a tiny RBM's chain, step by step; at infinity finite differences of its log likelihood."""

import math

import torch

from compare import Draws, expect, states

HINTS = (
    "Distributions are rows here: one sweep turns q into q @ K.",
    "For math.inf find p with p K = p and sum 1: a left eigenvector, or a linear system, or K^(2^20).",
    "after = q @ torch.linalg.matrix_power(K, k); return (q - after) @ phi. At infinity K^(2^20) has only rows p.",
)


def small_rbm(draws, d=3, m=2):
    """Parameters in one vector, and from them log p(v), K and phi by enumeration of v and h."""
    theta, v, h = draws.normal(d * m + d + m), states(d), states(m)

    def log_joint(theta):
        W, b, c = theta[: d * m].view(d, m), theta[d * m : d * m + d], theta[d * m + d :]
        return v @ W @ h.T + (v @ b)[:, None] + h @ c

    joint = log_joint(theta).exp()
    K = (joint / joint.sum(1, keepdim=True)) @ (joint / joint.sum(0)).T
    h_mean = (joint / joint.sum(1, keepdim=True)) @ h
    phi = torch.cat([(v[:, :, None] * h_mean[:, None]).flatten(1), v, h_mean], 1)
    return theta, lambda theta: torch.logsumexp(log_joint(theta), 1).log_softmax(0), K, phi


def check(learner, seed):
    draws = Draws(seed)
    theta, log_p, K, phi = small_rbm(draws)
    q = draws.uniform(len(K))
    q = q / q.sum()
    h = 1e-4
    steps = h * torch.eye(len(theta), dtype=torch.float64)
    at = lambda k: torch.stack([q @ log_p(theta + k * step) for step in steps])
    exact = (8 * (at(1) - at(-1)) - at(2) + at(-2)) / (12 * h)
    path, back = [q], [q]
    for _ in range(5):
        path.append(path[-1] @ K)
        back.append(K @ back[-1])
    for k in (1, 3, 0):
        want = (q - path[k]) @ phi
        wrong = {
            "K is transposed: a distribution is a row, q @ K.": (q - back[k]) @ phi,
            "One sweep too many: CD-1 makes one.": (q - path[k + 1]) @ phi,
            "That is the exact gradient, k = infinity.": exact,
            "The data's averages are missing.": -path[k] @ phi,
            "The chain's averages are missing.": q @ phi,
            "One sweep too few.": (q - path[max(k - 1, 0)]) @ phi,
            "That is minus the direction to climb: data minus chain.": -want,
            "That is the bias: what CD-k lacks.": want - exact,
            "The entries of K are raised to the power k, not K as a matrix.": (q - q @ K**k) @ phi,
        }
        expect(learner.cd_k_gradient, (K, phi, q, k), want, wrong)
    uniform = (q - torch.full_like(q, 1 / len(q))) @ phi
    wrong = {"The chain's end is not the uniform distribution, but p with p K = p.": uniform}
    wrong["The stationary distribution is a *left* eigenvector: that of K.T."] = uniform
    expect(learner.cd_k_gradient, (K, phi, q, math.inf), exact, wrong)
