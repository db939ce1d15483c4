"""The check of ex02_3: orthogonal patterns must replay exactly, W x^mu = x^(mu+1); and the sum over pairs, in loops."""

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "What is W x^mu if the patterns are orthogonal? Each pattern must be answered by the one after it.",
    "Patterns are rows. torch.roll moves them round; which way? And which of the two stands on the left of the product?",
    "patterns.roll(-1, 0).T @ patterns / N",
)


def check(learner, seed):
    draws, n = Draws(seed), 8
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    order = draws.uniform(n).argsort()[:5]
    melody = hadamard[order] * draws.signs(n)  # orthogonal still
    random = draws.signs(5, n)
    for patterns in (melody, random):
        p = len(patterns)
        pairs = lambda step, last=p, x=patterns: sum(torch.outer(x[(i + step) % len(x)], x[i]) for i in range(last)) / n
        want = pairs(1)
        wrong = {
            "It plays backwards: transpose W, or roll the other way.": want.T,
            "It stands still: that is Hebb's rule; the next pattern belongs on the left.": pairs(0),
            "It plays backwards, and stops at its beginning.": pairs(1, p - 1).T,
            "It stops at the end: the last pattern must lead to the first.": pairs(1, p - 1),
            "It skips every second pattern: step by one.": pairs(2),
            "The sum is divided by the number of patterns, not by N.": want * n / p,
            "The diagonal is to be kept here.": want - torch.diag(want.diagonal()),
            "It moves on and back at once: one side only, no symmetrising.": want + want.T,
        }
        expect(learner.sequence_weights, (patterns,), want, wrong, {"N": n, "P": p})
    state, W = melody[0], learner.sequence_weights(melody)
    for mu in (1, 2, 3, 4, 0):
        state = (W @ state).sign()
        if not torch.equal(state, melody[mu]):
            raise NotYet(f"an orthogonal melody does not replay: after {mu or 5} steps it is not at pattern {mu + 1}")
