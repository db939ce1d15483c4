"""Solution of ex04_4."""


def ais_log_weights(energies, betas):
    """log w (n,) of chains whose states had these energies."""
    before_move = energies[:, :-1]
    return -(before_move * betas.diff()).sum(1)


MUTANTS = [
    ("energies[:, :-1]", "energies[:, 1:]", "moved first"),
    ("return -(", "return (", "The sign is reversed"),
    ("-(before_move * betas.diff()).sum(1)", "(-(before_move * betas.diff()).sum(1)).exp()", "logarithm is asked for"),
    ("betas.diff()", "betas[1:]", "only one is there"),
    (".sum(1)", ".mean(1)", "no log weight"),
    ("energies[:, :-1]", "energies[:, :1]", "in one step"),
    ("energies[:, :-1]", "energies[:, -1:]", "last state alone"),
    ("energies[:, :-1]", "(energies[:, :-1] + energies[:, 1:]) / 2", "trapezoid"),
]
