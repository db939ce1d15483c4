"""Solution of ex05_2."""

import torch


def pcd_update(params, chains, x, rate, u_h, u_v):
    """(W, b, c, chains) after one update."""
    W, b, c = params
    v = chains
    h = (u_h < torch.sigmoid(v @ W + c)).to(W.dtype)
    v = (u_v < torch.sigmoid(h @ W.T + b)).to(W.dtype)

    def phase(v):
        p = torch.sigmoid(v @ W + c)
        return v.T @ p / len(v), v.mean(0), p.mean(0)

    change = [data - model for data, model in zip(phase(x), phase(v), strict=True)]
    return W + rate * change[0], b + rate * change[1], c + rate * change[2], v


MUTANTS = [
    ("v = chains", "v = x", "that is CD-1"),
    ("rate * change[2], v", "rate * change[2], chains", "not returned as they are"),
    ("phase(x), phase(v)", "phase(x), phase(chains)", "*before* the sweep"),
    ("data - model for", "model - data for", "goes downhill"),
    ("h = (u_h < torch.sigmoid(v @ W + c)).to(W.dtype)", "h = torch.sigmoid(v @ W + c)", "compare u_h"),
    ("v = (u_v < torch.sigmoid(h @ W.T + b)).to(W.dtype)", "v = torch.sigmoid(h @ W.T + b)", "compare u_v"),
    ("phase(v), strict", "(v.T @ h / len(v), v.mean(0), h.mean(0)), strict", "not the sample from the sweep"),
    ("data - model for", "data for", "chains' part is missing"),
    ("v.T @ p / len(v), v.mean(0), p.mean(0)", "v.T @ p / len(x), v.sum(0) / len(x), p.sum(0) / len(x)", "number of data"),
    (
        "rate * change[0], b + rate * change[1], c + rate * change[2]",
        "change[0], b + change[1], c + change[2]",
        "rate is not used",
    ),
]
