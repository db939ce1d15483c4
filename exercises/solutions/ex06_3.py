"""Solution of ex06_3."""

import torch


def sliced_loss(score, x, v):
    """The sliced score matching loss (its variance-reduced form), a mean over the rows."""
    x = x.detach().requires_grad_(True)
    s = score(x)
    (row,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
    return (0.5 * s.square().sum(1) + (row * v).sum(1)).mean()


MUTANTS = [
    ("    x = x.detach()", "    v = v / v.norm(dim=1, keepdim=True)\n    x = x.detach()", "v is normalised"),
    ("0.5 * s.square()", "s.square()", "A half is missing before"),
    (" + (row * v)", " - (row * v)", "has a plus here"),
    ("s.square().sum(1)", "(s * v).sum(1).square()", "the plain form"),
    ("(row * v)", "row", "v stands on one side"),
    (" + (row * v).sum(1)", "", "projected term is missing"),
    (", create_graph=True", ", retain_graph=True", "create_graph=True"),
    (".mean()", ".sum()", "summed over the rows"),
    (").mean()", ").mean() / x.shape[1]", "over the components"),
]
