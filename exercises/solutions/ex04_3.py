"""Solution of ex04_3."""

from torch.nn.functional import softplus


def class_log_probs(W, U, c, d, x):
    """log p(y | x), (B, K), for every label y."""
    hidden = (x @ W + c)[:, None] + U  # (B, K, m)
    return (d + softplus(hidden).sum(2)).log_softmax(1)


MUTANTS = [
    ("(d + softplus(hidden).sum(2))", "softplus(hidden).sum(2)", "own bias d is missing"),
    ("log_softmax(1)", "log_softmax(0)", "over the batch"),
    (".log_softmax(1)", "", "normalise them over the labels"),
    ("log_softmax(1)", "softmax(1)", "their logarithm is asked for"),
    ("x @ W + c", "x @ W", "hidden biases c are missing"),
    ("softplus(hidden)", "hidden.clamp(min=0)", "not relu"),
    ("softplus(hidden)", "hidden.sigmoid()", "the derivative of what is needed"),
    ("softplus(hidden)", "hidden", "sum over h is softplus"),
]
