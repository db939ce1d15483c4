"""Solution of ex01_1."""

import torch


def boltzmann(energies, T):
    """The probabilities (n,) of states with these energies at temperature T."""
    weights = torch.exp(-(energies - energies.min()) / T)  # the likeliest state has weight 1: nothing overflows
    return weights / weights.sum()


MUTANTS = [
    ("-(energies", "(energies", "The sign is reversed"),
    (" / T)", " * T)", "multiplied by T"),
    (" / T)", ")", "T is not used"),
    ("energies - energies.min()", "energies", "subtract the lowest energy"),
    ("energies.min()", "energies.max()", "The highest energy was subtracted"),
    ("weights / weights.sum()", "(weights / weights.sum()).log()", "These are the log probabilities"),
    ("weights / weights.sum()", "weights / weights.max()", "ratios to the likeliest"),
]
