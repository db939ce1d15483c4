"""The check of ex02_4: torch's own attention."""

import torch

from compare import Draws, expect

HINTS = (
    "Which patterns compete with each other? The weights of one query over all patterns sum to 1.",
    "queries @ patterns.T is (B, P); the softmax runs over P, and large beta picks the nearest pattern.",
    "(beta * queries @ patterns.T).softmax(1) @ patterns",
)


def check(learner, seed):
    draws, beta = Draws(seed), 0.8
    patterns, queries = draws.normal(5, 7), draws.normal(3, 7)
    attend = lambda scale: torch.nn.functional.scaled_dot_product_attention(
        queries[None], patterns[None], patterns[None], scale=scale
    )[0]
    scores = queries @ patterns.T
    wrong = {
        "The softmax runs over the queries: it must run over the patterns.": (beta * scores).softmax(0) @ patterns,
        "beta is divided by sqrt(d): eq. (5) has beta itself.": attend(beta / 7**0.5),
        "That is attention's own 1/sqrt(d), without beta.": attend(1 / 7**0.5),
        "That is the nearest pattern, beta -> infinity.": patterns[scores.argmax(1)],
        "beta is not used.": attend(1.0),
        "beta stands outside the softmax: it belongs to the scores.": beta * scores.softmax(1) @ patterns,
        "That is beta -> 0, or a softmax without scores: the mean of the patterns.": patterns.mean(0).expand(3, 7),
        "The weights are not normalised: softmax, not exp.": (beta * scores).exp() @ patterns,
        "The sign is reversed: similar patterns get more weight.": attend(-beta),
        "A scalar product is linear: no softmax was taken.": beta * scores @ patterns,
    }
    expect(learner.attention_recall, (patterns, queries, beta), attend(beta), wrong, {"beta": beta})
    far = {"exp overflows here: softmax subtracts the largest score first.": torch.full((3, 7), torch.nan)}
    expect(learner.attention_recall, (100 * patterns, queries, 50.0), 100 * patterns[scores.argmax(1)], far)
