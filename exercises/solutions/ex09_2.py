"""Solution of ex09_2."""

import torch


def conjunction(energies):
    """The energy (B,) of the product, -log of prod_i exp(-E_i)."""
    return energies.sum(0)


def disjunction(energies, log_zs):
    """The energy (B,) of the even mixture, -log sum_i exp(-E_i)/Z_i."""
    return -torch.logsumexp(-energies - log_zs[:, None], 0)


MUTANTS = [
    ("energies.sum(0)", "energies.mean(0)", "it doubles T"),
    ("energies.sum(0)", "-torch.logsumexp(-energies, dim=0)", "That is OR"),
    ("energies.sum(0)", "energies.max(0).values", "The largest energy alone"),
    ("energies.sum(0)", "energies.prod(0)", "multiplying p means"),
    (" - log_zs[:, None]", "", "OR mixes Z_1 : Z_2"),
    ("- log_zs[:, None]", "+ log_zs[:, None]", "log Z_i has the wrong sign"),
    ("-torch.logsumexp(-energies - log_zs[:, None], 0)", "(energies + log_zs[:, None]).min(0).values", "not min"),
    (
        "-torch.logsumexp(-energies - log_zs[:, None], 0)",
        "-(-energies - log_zs[:, None]).exp().sum(0).log()",
        "exp underflows",
    ),
]
