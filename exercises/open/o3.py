"""o3 CD or persistent CD, at which rate? (module 05, sections methods and chains; about 40 minutes)

4x4 bars and stripes: 30 patterns, so no model can do better than -ln 30 = -3.401 nats. Train RBMs with 10 hidden units
by CD-1 and by PCD, at three *constant* learning rates, each three times the one before or more, with five seeds, all with
the same number of Gibbs sweeps a chain (10,000 say; 30 chains, all 30 patterns at each update). Module 05's fresh_rbms,
Trainer and climb (anneal=False) train all of them side by side, in about a minute a method.

Score each by its exact mean log likelihood over the 30 patterns. Predict first: which method wins at the smallest rate,
which at the largest, and why (module 05 says what chains have to do while a machine learns)?

Answer   {"seeds": [5 or more], "rates": [3, rising], "sweeps": a number,
          "machines": {"CD-1": a row a rate, in it one {"W": (16, 10), "b": (16), "c": (10)} a seed, "PCD": ...},
          "nats": {"CD-1": a row a rate, in it one number a seed, "PCD": ...},
          "better": ["CD-1", "PCD" or "neither", for each rate: by a t test over the seeds, 5 %]}
          Four decimals are enough for the machines.
Checked  nats from the machines, by enumeration, to 0.01; that at one rate at least a machine learned (-6 nats or better);
          that the seeds differ; better from nats.
"""

import math

import torch

from compare import NotYet, states
from tables import better, must_claim, must_differ, numbers, seeds


def bars_and_stripes():
    """The 30 patterns of 4x4 pixels, (30, 16)."""
    on = states(4)
    rows, columns = on[:, :, None].expand(16, 4, 4), on[:, None].expand(16, 4, 4)
    return torch.cat([rows, columns]).reshape(32, 16).unique(dim=0)


def log_likelihood(machine, x):
    """Mean log p(x), Z by a sum over all 2^10 hidden states."""
    W, b, c = numbers(machine, "W", 16, 10), numbers(machine, "b", 16), numbers(machine, "c", 10)
    softplus, h = torch.nn.functional.softplus, states(10)
    log_z = torch.logsumexp(h @ c + softplus(h @ W.T + b).sum(1), 0)
    return (x @ b + softplus(x @ W + c).sum(1)).mean() - log_z


def check(answer):
    n_seeds, rates, x = len(seeds(answer, 5)), numbers(answer, "rates", 3), bars_and_stripes()
    if (rates[1:] < 2.99 * rates[:-1]).any():
        raise NotYet("rates: three, each three times the one before or more")
    right = {}
    for method in ("CD-1", "PCD"):
        told = numbers(answer["nats"], method, 3, n_seeds)
        rows = answer["machines"][method]
        right[method] = torch.stack([torch.stack([log_likelihood(one, x) for one in row]) for row in rows])
        if right[method].shape != (3, n_seeds):
            raise NotYet(f"machines: {method} should have 3 rows of {n_seeds}")
        must_differ(f"nats of {method}", right[method].T)
        off = (told - right[method]).abs().max().item()
        if off > 0.01:
            raise NotYet(f"nats: {method}'s are up to {off:.3f} away from what its machines give, summed exactly")
    if max(values.max() for values in right.values()) < -6:
        raise NotYet("no machine learned: -6 nats at least is easy (a uniform model has -11.09)")
    assert all(values.max() < -math.log(30) for values in right.values())
    winners = [{1: "CD-1", -1: "PCD", 0: "neither"}[better(*pair)] for pair in zip(right["CD-1"], right["PCD"], strict=True)]
    must_claim("better", answer["better"], winners, "t tests over the seeds, a rate at a time")
