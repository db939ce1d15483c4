"""The check of ex01_3: finite differences of the log likelihood, Z by quadrature."""

import torch

from compare import Draws, expect

HINTS = (
    "dE/dt1 = x^2 and dE/dt2 = x^4: you need their averages over the data, and over the model.",
    "The model's average weighs each grid point with p = softmax(-E(axis)): two_phases of module 01.",
    "features = lambda x: torch.stack([x**2, x**4]); return features(axis) @ p - features(x).mean(1)",
)


def log_likelihood(theta, x, axis):
    energy = lambda x: theta[0] * x**2 + theta[1] * x**4
    return -energy(x).mean() - torch.logsumexp(-energy(axis), 0) - torch.log(axis[1] - axis[0])


def check(learner, seed):
    draws = Draws(seed)
    theta, x = torch.stack([draws.normal(1)[0], 0.2 + 0.3 * draws.uniform(1)[0]]), 1.3 * draws.normal(31)
    axis, h = torch.linspace(-6, 6, 2001, dtype=torch.float64), 1e-4
    steps = h * torch.eye(2, dtype=torch.float64)
    at = lambda k: torch.stack([log_likelihood(theta + k * step, x, axis) for step in steps])
    want = (8 * (at(1) - at(-1)) - at(2) + at(-2)) / (12 * h)
    data = torch.stack([(x**2).mean(), (x**4).mean()])
    weights = torch.exp(-theta[0] * axis**2 - theta[1] * axis**4)
    unweighted = torch.stack([(axis**2).mean(), (axis**4).mean()])
    model, dx = want + data, axis[1] - axis[0]
    half = "p is a density where its sum needs a dx, or a weight without: not half of each."
    summed = torch.stack([axis**2, axis**4]) @ weights
    wrong = {
        "That is the gradient of the loss; the likelihood is climbed: model minus data of dE/dtheta.": -want,
        "The data are summed; the statement asks for their mean.": want + data - 31 * data,
        "The negative phase is missing: that is the data's part alone.": -data,
        "The positive phase is missing: that is the model's part alone.": want + data,
        "The two phases must differ in sign.": -want - 2 * data,
        "The grid is averaged without weights: weigh it with p = exp(-E)/Z.": unweighted - data,
        "The model's weights do not sum to 1: divide by their sum.": summed - data,
        "The model is integrated without its 1/Z.": summed * dx - data,
        f"The model's term is too small by the grid's dx: {half}": model * dx - data,
        f"The model's term is too large by 1/dx: {half}": model / dx - data,
    }
    expect(learner.likelihood_gradient, (theta, x, axis), want, wrong, {"N": 31})
