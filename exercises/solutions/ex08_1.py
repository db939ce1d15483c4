"""Solution of ex08_1."""


def jem(logits):
    """(E(x), log p(y | x)) of a classifier."""
    energy = -logits.logsumexp(1)
    return energy, logits + energy[:, None]


MUTANTS = [
    ("return energy,", "return -energy,", "The sign is reversed"),
    ("return energy,", "return -logits.max(1).values,", "the hard version"),
    ("logits + energy[:, None]", "logits.softmax(1)", "their logarithm is asked for"),
    ("logits + energy", "logits - energy", "since E = -logsumexp"),
    ("logits + energy[:, None]", "logits.log_softmax(0)", "over the batch"),
    ("return energy,", "return -logits.exp().mean(1).log(),", "log K"),
    ("return energy,", "return -logits.exp().sum(1).log(),", "exp overflows"),
    ("logits + energy[:, None]", "logits", "normalise them"),
]
