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
    for chain in (K, lazy(K, 0.999)):
        named = wrong | arriving(learner, chain, phi, q) | not_summing(learner, chain, phi, q, exact)
        expect(learner.cd_k_gradient, (chain, phi, q, math.inf), exact, named)


def lazy(K, second):
    """A chain with the stationary distribution of K, whose second eigenvalue is `second`: it mostly stays where it is."""
    moves = (1 - second) / (1 - torch.linalg.eigvals(K).abs().sort().values[-2])
    return (1 - moves) * torch.eye(len(K), dtype=K.dtype) + moves * K


def arriving(learner, K, phi, q):
    """What is said of the gradient of some finite k: of the k below 2^15 that is nearest to the learner's answer."""
    got, path, power = answered(learner, K, phi, q), q[None], K
    for _ in range(15):
        path, power = torch.cat([path, path @ power]), power @ power
    gradients = (q - path) @ phi
    nearest = gradients[(gradients - got).square().sum(1).argmin()]
    return {"k = inf is not a large k: a slow chain has not arrived.": nearest}


def not_summing(learner, K, phi, q, exact):
    """What is said if the chain's end is a multiple of p."""
    got, p_mean = answered(learner, K, phi, q), q @ phi - exact
    total = (q @ phi - got) @ p_mean / (p_mean @ p_mean) if got.isfinite().all() else torch.inf
    why = "squaring doubles rounding errors each time, and an eigenvector has any length. Divide by the sum."
    chain = total * p_mean if got.isfinite().all() else torch.full_like(q, torch.inf) @ phi
    return {f"The chain's end sums to {total:.10g}, not to 1: {why}": q @ phi - chain}


def answered(learner, K, phi, q):
    """The learner's answer at k = inf, or zeros if it has no form to speak of."""
    got = learner.cd_k_gradient(K, phi, q, math.inf)
    return got.detach().double() if torch.is_tensor(got) and got.shape == phi.shape[1:] else torch.zeros_like(phi[0])
