"""Solution of ex10_1."""


def denoise(y, score, sigma):
    """The posterior mean (B, d) of the clean x."""
    return y + sigma**2 * score(y)


MUTANTS = [
    ("y + sigma", "y - sigma", "further into the noise"),
    ("sigma**2 *", "sigma *", "is to be squared"),
    ("sigma**2 *", "sigma**2 / 2 *", "Langevin has a half"),
    ("y + sigma**2 * score(y)", "(y + sigma**2 * score(y)).sign()", "likeliest clean value"),
    ("sigma**2 * score", "score", "sigma is not used"),
    ("y + sigma**2", "sigma**2", "y is missing"),
]
