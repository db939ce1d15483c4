"""Solution of ex06_1."""

import torch


def implicit_matching(score, x):
    """The implicit score matching loss, a mean over x."""
    x = x.detach().requires_grad_(True)
    s = score(x)
    rows = [torch.autograd.grad(s[:, i].sum(), x, create_graph=True)[0] for i in range(x.shape[1])]
    divergence = sum(row[:, i] for i, row in enumerate(rows))
    return (0.5 * s.square().sum(1) + divergence).mean()


MUTANTS = [
    ("0.5 * s.square()", "s.square()", "twice its variance"),
    ("+ divergence", "- divergence", "has a plus here"),
    ("+ divergence", "+ 2 * divergence", "no factor 2"),
    (" + divergence", "", "smallest score would win"),
    ("row[:, i]", "row.sum(1)", "its trace is asked for"),
    (".mean()", ".sum()", "summed over the rows"),
    ("s.square().sum(1)", "s.square().mean()", "|s|^2 is a sum over the d components"),
    ("create_graph=True", "retain_graph=True", "create_graph=True"),
    ("divergence).mean()", "divergence).mean() / x.shape[1]", "over the components"),
]
