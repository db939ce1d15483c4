"""Solution of ex01_3."""

import torch


def likelihood_gradient(theta, x, axis):
    """The gradient (2,) of the mean log likelihood of x in theta; averages over the model are sums over axis."""
    features = lambda x: torch.stack([x**2, x**4])  # dE/dtheta, (2, n)
    p = torch.softmax(-theta @ features(axis), 0)
    data, model = features(x).mean(1), features(axis) @ p
    return model - data


MUTANTS = [
    ("return model - data", "return data - model", "gradient of the loss"),
    ("features(x).mean(1)", "features(x).sum(1)", "data are summed"),
    ("return model - data", "return -data", "negative phase is missing"),
    ("return model - data", "return model", "positive phase is missing"),
    ("features(axis) @ p", "features(axis).mean(1)", "without weights"),
    ("torch.softmax(-theta @ features(axis), 0)", "torch.exp(-theta @ features(axis))", "do not sum to 1"),
    ("features(axis) @ p", "features(axis) @ p * (axis[1] - axis[0])", "too small by the grid's dx"),
    ("features(axis) @ p", "features(axis) @ p / (axis[1] - axis[0])", "too large by 1/dx"),
    ("return model - data", "return (model - data).flip(0)", "reversed order"),
]
