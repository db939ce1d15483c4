"""Solution of ex02_3."""


def sequence_weights(patterns):
    """Couplings (N, N) under which s <- sign(W s) steps through the patterns, and round again."""
    following = patterns.roll(-1, 0)
    return following.T @ patterns / patterns.shape[1]


MUTANTS = [
    ("roll(-1, 0)", "roll(1, 0)", "plays backwards"),
    ("following.T @ patterns", "patterns[:-1].T @ following[:-1]", "and stops at its beginning"),
    ("roll(-1, 0)", "roll(0, 0)", "stands still"),
    ("following.T @ patterns", "following[:-1].T @ patterns[:-1]", "stops at the end"),
    ("roll(-1, 0)", "roll(-2, 0)", "skips every second"),
    ("patterns.shape[1]", "patterns.shape[0]", "not by N"),
    ("following.T @ patterns", "(following.T @ patterns + patterns.T @ following)", "on and back at once"),
]
