"""The check of ex04_2: autograd of the mean free energies, F by a sum over all hidden states."""

import torch

from compare import Draws, expect, states

HINTS = (
    "The same three averages twice, once over v_data and once over v_model: write one function `phase(v)` for both.",
    "The mean of the outer products v h' over B rows is v.T @ h / B, shape (d, m). b does not enter h.",
    "h = torch.sigmoid(v @ W + c); phase = (v.T @ h / len(v), v.mean(0), h.mean(0)); data's phase minus model's.",
)


def free_energy(W, b, c, v):
    h = states(len(c))
    return -torch.logsumexp((v @ W) @ h.T + (v @ b)[:, None] + h @ c, 1)


def check(learner, seed):
    draws = Draws(seed)
    W, b, c = draws.normal(5, 3), draws.normal(5), draws.normal(3)
    data, model = draws.bits(8, 5), draws.bits(11, 5)

    def slope(v, weight=1.0):
        leaves = [value.clone().requires_grad_() for value in (W, b, c)]
        return torch.autograd.grad(weight * free_energy(*leaves, v).mean(), leaves)

    minus = lambda one, two: tuple(b - a for a, b in zip(one, two, strict=True))
    of_data, of_model = slope(data), slope(model)
    want = minus(of_data, of_model)
    sampled = lambda v: (torch.sigmoid(v @ W + c) > 0.5).double()
    hard = (
        data.T @ sampled(data) / 8 - model.T @ sampled(model) / 11,
        want[1],
        sampled(data).mean(0) - sampled(model).mean(0),
    )
    wrong = {
        "That is the gradient of the loss; eq. (4) climbs: data minus model.": tuple(-value for value in want),
        "The rows are summed: take their mean.": minus(slope(data, 8), slope(model, 11)),
        "The positive phase alone: the model's averages are missing.": tuple(-value for value in of_data),
        "The negative phase alone: the data's averages are missing.": of_model,
        "The phases are added: the model's averages are subtracted.": tuple(
            -a - b for a, b in zip(of_data, of_model, strict=True)
        ),
        "Hidden units are thresholded: use their probabilities P(h = 1 | v).": hard,
        "The sum over the model's rows is divided by the number of *data* rows.": minus(of_data, slope(model, 11 / 8)),
        "The hidden biases c are missing in P(h = 1 | v).": (
            data.T @ torch.sigmoid(data @ W) / 8 - model.T @ torch.sigmoid(model @ W) / 11,
            want[1],
            torch.sigmoid(data @ W).mean(0) - torch.sigmoid(model @ W).mean(0),
        ),
    }
    expect(learner.cd_gradient, (W, b, c, data, model), want, wrong, {"B": 8, "C": 11}, names=("dW", "db", "dc"))
