"""The check of ex05_3: both machines' likelihoods and reconstruction errors, summed over all states."""

import torch

from compare import Draws, NotYet, states

HINTS = (
    "A: one hidden unit for each pixel, which is on exactly if the pixel is. It copies everything, so it likes everything.",
    "A: W = 20 I, b = c = -10: energies of v and h agree where h = v, and p(v) is nearly uniform. B: W = 0, and b alone.",
    "B's best b is the log odds of each pixel, log(mean/(1 - mean)): independent pixels, and W = 0 copies nothing.",
)


def scores(machine, x):
    """(reconstruction error, mean log likelihood), exactly."""
    W, b, c = machine
    h, v = states(len(c)), states(len(b))
    log_joint = lambda v: (v @ W) @ h.T + (v @ b)[:, None] + h @ c
    p_h = log_joint(x).softmax(1)
    error = (x[:, None] - torch.sigmoid(h @ W.T + b)).abs().sum(2)
    log_z = torch.logsumexp(log_joint(v), (0, 1))
    return (p_h * error).sum(1).mean().item(), (torch.logsumexp(log_joint(x), 1) - log_z).mean().item()


def check_form(name, machine, d):
    if not isinstance(machine, tuple | list) or len(machine) != 3 or not all(torch.is_tensor(part) for part in machine):
        raise NotYet(f"machine {name} should be three tensors (W, b, c)")
    W, b, c = machine
    if W.ndim != 2 or W.shape[0] != d or b.shape != (d,) or c.shape != W.shape[1:] or not 1 <= len(c) <= 8:
        raise NotYet(f"machine {name} has the shapes {[tuple(p.shape) for p in machine]}: (d, m), (d,), (m,) with m <= 8")
    if any(part.dtype != torch.float64 for part in machine):
        raise NotYet(f"machine {name} should be float64, as x is")
    if not all(part.isfinite().all() for part in machine):
        raise NotYet(f"machine {name} has parameters that are not finite: a pixel that is never on has log odds of -inf?")


def check(learner, seed):
    draws = Draws(seed)
    x = (draws.uniform(60, 6) < 0.2).double()
    x[:, 5] = 0  # a pixel that is never on
    x[0, :5], before = 1, x.clone()
    before[0, :5] = 1
    pair = learner.misleading_pair(x)
    if pair is None:
        raise NotYet("misleading_pair is None: is there a return?")
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise NotYet("misleading_pair should return two machines: return A, B")
    for name, machine in zip("AB", pair, strict=True):
        check_form(name, machine, 6)
    if not torch.equal(x, before):
        raise NotYet("misleading_pair changes its argument x: work on a copy")
    (error_a, nats_a), (error_b, nats_b) = (scores(machine, x) for machine in pair)
    margins = f"A's error is {error_a:.3f}, B's {error_b:.3f}; B's likelihood is {nats_b:.3f} nats, A's {nats_a:.3f}."
    if error_b < error_a and nats_a > nats_b:
        raise NotYet(f"The two are swapped: A is to reconstruct better, B to be likelier. {margins}")
    if error_b - error_a < 0.5:
        raise NotYet(f"A does not reconstruct better by 0.5: it should copy each pixel with certainty. {margins}")
    if nats_b <= nats_a:
        raise NotYet(f"B is not the better model at all: what are the best biases without hidden units? {margins}")
    if nats_b - nats_a < 0.5:
        raise NotYet(f"B is better, but not by 0.5 nats. {margins}")
