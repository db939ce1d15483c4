"""The check of ex04_3: all labels and all 2^m hidden states."""

import torch

from compare import Draws, expect, states

HINTS = (
    "Sum exp(-E) over h for a fixed label first: what is each hidden unit's input then?",
    "-F(x, y) = d_y + sum_j softplus(c_j + (x W)_j + U_yj); a tensor (B, K, m) holds all inputs. Then normalise over y.",
    "hidden = (x @ W + c)[:, None] + U; return (d + softplus(hidden).sum(2)).log_softmax(1)",
)


def joint(W, U, c, d, x):
    h = states(len(c))
    exponent = (x @ W @ h.T)[:, None] + U @ h.T + h @ c + d[:, None]
    return torch.logsumexp(exponent, 2)  # (B, K)


def check(learner, seed):
    draws = Draws(seed)
    W, U, c, d, x = draws.normal(6, 4), draws.normal(3, 4), draws.normal(4), draws.normal(3), draws.bits(5, 6)
    scores = joint(W, U, c, d, x)
    normalised = lambda scores, axis=1: scores - torch.logsumexp(scores, axis, keepdim=True)
    want = normalised(scores)
    inputs = (x @ W + c)[:, None] + U
    wrong = {
        "The label's own bias d is missing.": normalised(joint(W, U, c, 0 * d, x)),
        "The softmax runs over the batch: the labels compete, not the images.": normalised(scores, 0),
        "These are the scores -F(x, y): normalise them over the labels.": scores,
        "These are the probabilities: their logarithm is asked for.": want.exp(),
        "The hidden biases c are missing.": normalised(joint(W, U, 0 * c, d, x)),
        "The image is not used.": normalised(joint(0 * W, U, c, d, x)),
        "The free energy is reversed: -F goes into the softmax.": normalised(-scores),
        "The hidden units are set to their inputs: their sum over h is softplus.": normalised(d + inputs.sum(2)),
        "The hidden units are rectified: softplus, not relu.": normalised(d + inputs.clamp(min=0).sum(2)),
        "U_y belongs inside the softplus: it shifts each hidden unit's input.": normalised(
            d + torch.nn.functional.softplus(x @ W + c) @ U.T
        ),
        "That sums over h = -1 and 1: these units are 0 or 1.": normalised(d + (2 * inputs.cosh()).log().sum(2)),
        "sigmoid is the derivative of what is needed, softplus.": normalised(d + inputs.sigmoid().sum(2)),
    }
    expect(learner.class_log_probs, (W, U, c, d, x), want, wrong, {"m": 4})
