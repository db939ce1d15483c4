"""Solution of ex10_2."""


def flow_velocity(score, x, sigma):
    """dx/dsigma (B, d) of the probability-flow ODE."""
    return -sigma * score(x, sigma)


MUTANTS = [
    ("-sigma *", "-2 * sigma *", "the reverse SDE's drift"),
    ("-sigma *", "sigma *", "the points spread"),
    ("-sigma * score", "-score", "without its factor sigma"),
    ("-sigma * score", "score", "with its own sign"),
    ("-sigma *", "-(sigma**2) *", "not sigma^2"),
    ("-sigma *", "-(sigma**2) / 2 *", "at another speed"),
    ("-sigma *", "-sigma / 2 *", "a half too many"),
    ("-sigma * score", "-0.5 * score", "dx/d(sigma^2)"),
]
