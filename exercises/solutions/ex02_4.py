"""Solution of ex02_4."""


def attention_recall(patterns, queries, beta):
    """The queries (B, d) after one step."""
    scores = beta * queries @ patterns.T  # (B, P)
    return scores.softmax(1) @ patterns


MUTANTS = [
    ("softmax(1)", "softmax(0)", "over the queries"),
    ("beta * queries", "beta / queries.shape[1] ** 0.5 * queries", "divided by sqrt(d)"),
    ("beta * queries", "queries.shape[1] ** -0.5 * queries", "without beta"),
    ("scores.softmax(1) @ patterns", "patterns[scores.argmax(1)]", "nearest pattern"),
    ("beta * queries", "queries", "beta is not used"),
    ("scores.softmax(1)", "scores.exp()", "softmax, not exp"),
    ("beta * queries", "-beta * queries", "The sign is reversed"),
    ("scores.softmax(1)", "(scores.exp() / scores.exp().sum(1, keepdim=True))", "exp overflows"),
    ("scores.softmax(1) @", "scores @", "no softmax was taken"),
]
