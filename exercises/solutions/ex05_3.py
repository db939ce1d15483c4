"""Solution of ex05_3."""

import torch


def misleading_pair(x):
    """(A, B): A reconstructs x better, B gives it the higher likelihood."""
    d = x.shape[1]
    half = torch.full((d,), -10.0, dtype=x.dtype)
    copier = (20 * torch.eye(d, dtype=x.dtype), half, half.clone())  # h = v costs nothing, whatever v is: p is uniform
    mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = (torch.zeros(d, 1, dtype=x.dtype), (mean / (1 - mean)).log(), torch.zeros(1, dtype=x.dtype))
    return copier, independent


MUTANTS = [
    ("return copier, independent", "return independent, copier", "The two are swapped"),
    ("-10.0", "0.0", "copy each pixel with certainty"),
    ("(mean / (1 - mean)).log()", "((1 - mean) / mean).log()", "not the better model at all"),
    ("(mean / (1 - mean)).log()", "0.09 * (mean / (1 - mean)).log()", "not by 0.5 nats"),
    (".clamp(1e-3, 1 - 1e-3)", "", "not finite"),
    ("torch.zeros(d, 1, dtype=x.dtype)", "torch.zeros(1, d, dtype=x.dtype)", "has the shapes"),
]
