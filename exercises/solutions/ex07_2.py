"""Solution of ex07_2."""

import torch


def visit(buffer, index, restart, noise, move):
    """(moved, new buffer) after one visit."""
    chains = torch.where(restart[:, None], noise, buffer[index])
    moved = move(chains)
    new = buffer.clone()
    new[index] = moved
    return moved, new


MUTANTS = [
    ("    new[index] = moved\n", "", "not written back"),
    ("torch.where(restart[:, None], noise, buffer[index])", "buffer[index]", "No chain restarts"),
    ("restart[:, None]", "restart.any()", "for each chain"),
    ("restart[:, None]", "~restart[:, None]", "restart is reversed"),
    (
        "moved = move(chains)",
        "moved = torch.where(restart[:, None], chains, move(chains))",
        "Fresh chains must be moved too",
    ),
    ("new[index] = moved", "new[index] = chains", "before they moved"),
    ("new[index] = moved", "new[index[~restart]] = moved[~restart]", "the restarted ones too"),
    ("new[index] = moved", "new[: len(moved)] = moved", "first rows"),
    ("buffer.clone()", "buffer", "changes its argument buffer"),
    ("move(chains)", "chains", "The chains are not moved"),
]
