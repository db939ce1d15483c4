"""Solution of ex03_4."""


def integrated_time(rho):
    """The integrated autocorrelation time, in draws."""
    return 1 + 2 * rho[1:].sum()


MUTANTS = [
    ("2 * rho", "rho", "each but lag 0 twice"),
    ("1 + 2 * rho[1:].sum()", "2 * rho.sum()", "Lag 0 is counted twice"),
    ("rho[1:]", "rho", "counted three times"),
    ("1 + 2 *", "2 *", "Lag 0 counts too"),
    ("1 + 2 *", "0.5 +", "another convention"),
    ("rho[1:].sum()", "rho[1:].abs().sum()", "Negative correlations"),
    ("rho[1:].sum()", "rho[1:][(rho[1:] < 0).cumsum(0) == 0].sum()", "all of it counts, no window"),
    ("1 + 2 * rho[1:].sum()", "1 / (1 + 2 * rho[1:].sum())", "share of effective draws"),
]
