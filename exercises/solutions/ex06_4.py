"""Solution of ex06_4."""

import math


def nce_logit(log_model, log_noise, ratio):
    """The log odds (n,) that a point is a datum and not noise."""
    return log_model - log_noise - math.log(ratio)


MUTANTS = [
    (" - math.log(ratio)", "", "The ratio is missing"),
    ("- math.log(ratio)", "+ math.log(ratio)", "has the wrong sign"),
    ("return log_model - log_noise - math.log(ratio)", "return log_noise - log_model + math.log(ratio)", "Mirrored"),
    ("math.log(ratio)", "ratio", "under the logarithm"),
    (
        "log_model - log_noise - math.log(ratio)",
        "(log_model - log_noise - math.log(ratio)).sigmoid()",
        "probability of a datum: its",
    ),
    ("log_model - log_noise", "log_model / log_noise", "log densities already"),
    ("log_model - log_noise - math.log(ratio)", "(log_model - log_noise - math.log(ratio)).exp()", "These are the odds"),
]
