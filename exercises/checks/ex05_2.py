"""The check of ex05_2: the sweep in numbers, the gradient by autograd of free energies over all hidden states."""

import torch

from compare import Draws, expect, states

HINTS = (
    "First the sweep: chains -> h -> new chains. Then the gradient of ex04_2, with the new chains as the model's samples.",
    "P(h = 1 | v) = sigmoid(c + v W) and P(v = 1 | h) = sigmoid(b + h W'); (u < p).to(p.dtype) is 1 with probability p.",
    "h = (u_h < sigmoid(chains @ W + c)).double(); new = (u_v < sigmoid(h @ W.T + b)).double(); phase(x) - phase(new).",
)


def free_energy(W, b, c, v):
    h = states(len(c))
    return -torch.logsumexp((v @ W) @ h.T + (v @ b)[:, None] + h @ c, 1)


def climbed(params, x, v_model, rate, from_data=1.0):
    leaves = [value.clone().requires_grad_() for value in params]
    objective = free_energy(*leaves, v_model).mean() - from_data * free_energy(*leaves, x).mean()
    slopes = torch.autograd.grad(objective, leaves)
    return tuple(value + rate * slope for value, slope in zip(params, slopes, strict=True))


def sweep(params, v, u_h, u_v, h_is_sampled=True):
    W, b, c = params
    p_h = 1 / (1 + torch.exp(-(v @ W + c)))
    h = (u_h < p_h).double() if h_is_sampled else p_h
    p_v = 1 / (1 + torch.exp(-(h @ W.T + b)))
    return (u_v < p_v).double(), p_v


def check(learner, seed):
    draws, rate = Draws(seed), 0.3
    params = (draws.normal(5, 3), draws.normal(5), draws.normal(3))
    n = 40
    chains, x, u_h, u_v = draws.bits(n, 5), draws.bits(n, 5)[:, :5], draws.uniform(n, 3), draws.uniform(n, 5)
    new, p_v = sweep(params, chains, u_h, u_v)
    from_x, _ = sweep(params, x, u_h, u_v)
    mean_field, _ = sweep(params, chains, u_h, u_v, h_is_sampled=False)
    h = (u_h < torch.sigmoid(chains @ params[0] + params[2])).double()
    sampled = (new.T @ h / n, new.mean(0), h.mean(0))
    want = (*climbed(params, x, new, rate), new)
    wrong = {
        "The chains were restarted at the data: that is CD-1.": (*climbed(params, x, from_x, rate), from_x),
        "The chains are not returned as they are after the sweep: next time they would start from the old ones.": (
            *climbed(params, x, new, rate), chains),
        "The model's averages are over the chains *before* the sweep.": (*climbed(params, x, chains, rate), new),
        "That goes downhill: data minus chains.": (*climbed(params, x, new, -rate), new),
        "The rate is not used.": (*climbed(params, x, new, 1.0), new),
        "Hidden units of the sweep are 0 or 1: compare u_h with their probability.": (
            *climbed(params, x, mean_field, rate), mean_field),
        "The new visible units are 0 or 1: compare u_v with their probability.": (*climbed(params, x, p_v, rate), p_v),
        "h in the averages is P(h = 1 | new chains), not the sample from the sweep.": (*(
            value + rate * (up - down) for value, up, down in zip(params, positive(params, x), sampled, strict=True)), new),
        "The chains' part is missing.": (*(
            value + rate * step for value, step in zip(params, positive(params, x), strict=True)), new),
        "u < p is 1 with probability p; u > p with 1 - p.": (
            *climbed(params, x, reversed_sweep(params, chains, u_h, u_v), rate), reversed_sweep(params, chains, u_h, u_v)),
    }  # fmt: skip
    names = ("W", "b", "c", "chains")
    expect(learner.pcd_update, (params, chains, x, rate, u_h, u_v), want, wrong, names=names)
    few = x[:7]  # fewer data than chains: each average has its own number
    want = (*climbed(params, few, new, rate), new)
    confused = tuple(
        value + rate * (up - down * n / 7)
        for value, up, down in zip(params, positive(params, few), positive(params, new), strict=True)
    )
    wrong = {"The chains' averages are divided by the number of data: there are other numbers of both.": (*confused, new)}
    expect(learner.pcd_update, (params, chains, few, rate, u_h, u_v), want, wrong, names=names)


def positive(params, v):
    leaves = [value.clone().requires_grad_() for value in params]
    return torch.autograd.grad(-free_energy(*leaves, v).mean(), leaves)


def reversed_sweep(params, v, u_h, u_v):
    W, b, c = params
    h = (u_h > torch.sigmoid(v @ W + c)).double()
    return (u_v > torch.sigmoid(h @ W.T + b)).double()
