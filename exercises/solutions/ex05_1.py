"""Solution of ex05_1."""

import math

import torch


def cd_k_gradient(K, phi, q, k):
    """The mean of CD-k's update (n,), in the direction that it climbs."""
    if k == math.inf:  # p K = p and sum p = 1, as one system of equations
        n = len(q)
        after = torch.linalg.solve((torch.eye(n, dtype=K.dtype) - K + 1).T, torch.ones_like(q))
    else:
        after = q @ torch.linalg.matrix_power(K, k)
    return (q - after) @ phi


MUTANTS = [
    ("torch.linalg.matrix_power(K, k)", "torch.linalg.matrix_power(K.T, k)", "K is transposed"),
    ("matrix_power(K, k)", "matrix_power(K, k + 1)", "One sweep too many"),
    ("if k == math.inf", "if k > 0", "That is the exact gradient"),
    ("(q - after)", "-after", "data's averages are missing"),
    ("(q - after)", "q", "chain's averages are missing"),
    ("(q - after)", "(after - q)", "minus the direction to climb"),
    ("torch.linalg.matrix_power(K, k)", "K**k", "not K as a matrix"),
    (
        "torch.linalg.solve((torch.eye(n, dtype=K.dtype) - K + 1).T, torch.ones_like(q))",
        "q @ torch.linalg.matrix_power(K, 50 + n)",
        "a slow chain has not arrived",
    ),
    (
        "torch.linalg.solve((torch.eye(n, dtype=K.dtype) - K + 1).T, torch.ones_like(q))",
        "q @ torch.linalg.matrix_power(K, 2**50)",
        "squaring doubles rounding errors each time",
    ),
    ("- K + 1).T", "- K + 1)", "not the uniform distribution"),
]
