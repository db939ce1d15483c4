"""Solution of ex02_2."""


def hebb_from_bits(bits):
    """Hebb's couplings (N, N) for patterns that are given as bits."""
    patterns = 2 * bits - 1
    W = patterns.T @ patterns / patterns.shape[1]
    return W.fill_diagonal_(0)


MUTANTS = [
    ("W.fill_diagonal_(0)", "W", "a unit must not hold itself"),
    ("patterns.shape[1]", "patterns.shape[0]", "divided by P"),
    ("2 * bits - 1", "bits", "used as they are"),
    ("2 * bits - 1", "bits - 0.5", "not by 2 bits - 1"),
    (" / patterns.shape[1]", "", "not divided by N"),
    ("patterns.T @ patterns", "patterns @ patterns.T", "lie in rows"),
]
