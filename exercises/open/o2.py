"""o2 CD-k for k = 1 ... 25: how fast does the bias go? (module 05, section bias; about 20 minutes)

Take three small RBMs (2^d states, d at most 10) with data of your own, large enough in their weights that the Gibbs
kernel's second eigenvalue l2 is above 0.5 for at least one. For each compute exactly, for k = 1 ... 25, the norm
of CD-k's bias, that is of

    (mean update of CD-k) - (gradient of the log likelihood),      all parameters W, b, c in one vector,

and l2 itself. Module 05's cd_bias, gibbs_kernels and reversible_spectrum do it. Predict before you look: how many
sweeps leave 1 % of the gradient's norm as bias? And which of your three machines needs most, if you know their l2?

Answer   {"seeds": [3 or more], "machines": [{"W": (d, m), "b": (d), "c": (m)} for each seed],
          "data": [patterns (N, d) of 0 and 1, for each seed],
          "bias": [25 norms, for each seed], "second": [l2, for each seed],
          "enough": [the least k with bias <= 1 % of the gradient, or null if above 25, for each seed],
          "slowest": the seed whose bias decays most slowly at the end, by the ratio of its last two norms}
Checked  from machines and data, by enumeration: bias to 1e-4, l2, enough; that bias obeys eq. (3)'s decay l2^k; slowest.
"""

import torch

from compare import NotYet, states
from tables import must_agree, must_claim, must_differ, numbers, seeds


def enumerated(machine, data):
    """(phi, K, p, q): statistics, kernel, model and data over all visible states."""
    W, b, c = (numbers(machine, key, *shape) for key, shape in (("W", (None, None)), ("b", (None,)), ("c", (None,))))
    d, m = W.shape
    if b.shape != (d,) or c.shape != (m,) or d > 10 or m > 10:
        raise NotYet(
            f"a machine has the shapes {tuple(W.shape)}, {tuple(b.shape)}, {tuple(c.shape)}: (d, m), (d), (m) up to 10"
        )
    if data.shape[1] != d or not ((data == 0) | (data == 1)).all():
        raise NotYet("data should be patterns of 0 and 1, as wide as the machine's visible layer")
    v, h = states(d), states(m)
    joint = torch.softmax((v @ W @ h.T + (v @ b)[:, None] + h @ c).flatten(), 0).view(len(v), len(h))
    p_h = joint / joint.sum(1, keepdim=True)
    K, h_mean = p_h @ (joint / joint.sum(0)).T, p_h @ h
    phi = torch.cat([(v[:, :, None] * h_mean[:, None]).flatten(1), v, h_mean], 1)
    q = torch.bincount((data.long() * 2 ** torch.arange(d)).sum(1), minlength=2**d).double() / len(data)
    return phi, K, joint.sum(1), q


def check(answer):
    told = seeds(answer, 3)
    n = len(told)
    bias, second = numbers(answer, "bias", n, 25), numbers(answer, "second", n)
    must_differ("bias", bias)
    right, eigenvalues, enough = [], [], []
    for machine, patterns in zip(answer["machines"], answer["data"], strict=True):
        phi, K, p, q = enumerated(machine, numbers({"data": patterns}, "data", None, None))
        left, norms = q - p, []
        for _ in range(26):
            norms.append((left @ phi).norm())
            left = left @ K
            left = left - left.sum() * p
        right.append(torch.stack(norms[1:]))
        symmetric = p.sqrt()[:, None] * K / p.sqrt()
        eigenvalues.append(torch.linalg.eigvalsh((symmetric + symmetric.T) / 2)[-2])
        enough.append(next((k for k in range(1, 26) if norms[k] <= 0.01 * norms[0]), None))
    right, eigenvalues = torch.stack(right), torch.stack(eigenvalues)
    if eigenvalues.max() < 0.5:
        raise NotYet(f"the largest l2 is {eigenvalues.max():.2f}: with larger weights the question becomes one")
    must_agree("bias", bias, right)
    must_agree("second", second, eigenvalues)
    must_claim("enough", answer["enough"], enough, "the first k whose bias is at most 1 % of the gradient's norm")
    slowest = told[(right[:, -1] / right[:, -2]).argmax()]
    must_claim("slowest", answer["slowest"], slowest, "the largest ratio of the last two norms")
