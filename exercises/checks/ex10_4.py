"""The check of ex10_4: finite differences of the mean log p(x | y), each y with its own normaliser by quadrature."""

import torch

from compare import Draws, expect

HINTS = (
    "As in ex01_3 there are two phases; but here every y has a model of its own, p(. | y).",
    "weights = softmax over the axis of -E(axis) - (axis - y)^2/(2 sigma^2): a table (N, n), a row for each y.",
    "w = (-energy(axis) - (axis - y[:, None])**2 / (2 * sigma**2)).softmax(1); (energy_slope(axis) @ w.T).mean(1) - ...",
)


def check(learner, seed):
    draws, sigma = Draws(seed), 0.7
    theta, x = torch.tensor([0.3, -0.8, 0.2]).double() + 0.1 * draws.uniform(3), 1.2 * draws.normal(13)
    y = x + sigma * draws.normal(13)
    axis = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    features = lambda x: torch.stack([x, x**2, x**4])

    def log_likelihood(theta, pull=0.5, to=y):
        model = -theta @ features(axis) - pull * (axis - to[:, None]) ** 2 / sigma**2
        return (-theta @ features(x) - torch.logsumexp(model, 1)).mean()

    def slope(**options):
        h, eye = 1e-4, 1e-4 * torch.eye(3, dtype=torch.float64)
        at = lambda k: torch.stack([log_likelihood(theta + k * step, **options) for step in eye])
        return (8 * (at(1) - at(-1)) - at(2) + at(-2)) / (12 * h)

    want, data = slope(), features(x).mean(1)
    wrong = {
        "That is the gradient of the loss: likelihood is climbed.": -want,
        "That is the marginal model's gradient: condition on y, by (x - y)^2/(2 sigma^2).": slope(pull=0.0),
        "The pull towards y has 2 sigma^2 below, as the blur's density has.": slope(pull=1.0),
        "The pull towards y is (x - y)^2/(2 sigma^2): that is half of it.": slope(pull=0.25),
        "The pull has sigma below, not sigma^2.": slope(pull=0.5 * sigma),
        "The clean x stands in y's place: the chain is tied to what is observed.": slope(to=x),
        "Every y has its own normaliser: their mean is another model.": slope(to=y.mean().expand(13)),
        "The negative phase is missing.": -data,
        "The positive phase is missing.": want + data,
        "The phases are added: model minus data of dE/dtheta.": want + 2 * data,
        "The pairs are summed: take their mean.": 13 * want,
        "The pull has the wrong sign: it draws x to y.": slope(pull=-0.5),
    }
    call = lambda x, y, sigma, axis: learner.recovery_gradient(features, lambda x: theta @ features(x), x, y, sigma, axis)
    expect(call, (x, y, sigma, axis), want, wrong, {"N": 13}, name="recovery_gradient")
