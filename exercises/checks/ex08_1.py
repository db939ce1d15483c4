"""The check of ex08_1: decimals."""

from decimal import Decimal, localcontext

import torch

from compare import Draws, expect

HINTS = (
    "Sum over the classes, not over the images. Which images are likely: those with large logits, or with small?",
    "torch.logsumexp(logits, 1) does not overflow; E is minus that.",
    "E = -logits.logsumexp(1); return E, logits + E[:, None]",
)


def log_sum(rows):
    with localcontext() as context:
        context.prec = 40
        sums = [float(sum(Decimal(value).exp() for value in row).ln()) for row in rows.tolist()]
    return torch.tensor(sums, dtype=torch.float64)


def check(learner, seed):
    logits = 2 * Draws(seed).normal(6, 4)
    e, over_batch = -log_sum(logits), log_sum(logits.T)
    log_p = logits + e[:, None]
    wrong = {
        "The sign is reversed: large logits mean a low energy.": (-e, log_p),
        "That is -max f, the hard version: every class counts.": (-logits.max(1).values, log_p),
        "These are the probabilities: their logarithm is asked for.": (e, log_p.exp()),
        "log p(y | x) is f_y + E, since E = -logsumexp.": (e, logits - e[:, None]),
        "The softmax runs over the batch: it must run over the classes.": (e, logits - over_batch),
        "That is the mean of the classes' weights: the constant log K is in E, by eq. (5).": (
            e + torch.tensor(4.0).double().log(),
            log_p,
        ),
        "The energy is minus the sum of the logits: sum their exponentials.": (-logits.sum(1), log_p),
        "These are the logits: normalise them.": (e, logits),
    }
    expect(learner.jem, (logits,), (e, log_p), wrong, {"K": 4}, names=("E", "log_p"))
    inf, nan = torch.full((6,), -torch.inf).double(), torch.full((6, 4), torch.nan)
    overflow = {"exp overflows for large logits: logsumexp does not.": (inf, nan)}
    for shift in (1000.0, -1000.0):
        expect(learner.jem, (logits + shift,), (e - shift, log_p), overflow, names=("E", "log_p"))
