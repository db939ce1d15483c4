"""What the pilots in the plane share: several small energies side by side, (S, ...) throughout, and their trainings."""

import math
import sys
from pathlib import Path

import torch
from torch.nn.functional import silu

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "open")]


def fresh(n_seeds, width):
    """Parameters of S networks of widths 2, w, w, 1."""
    shapes = ((2, width), (1, width), (width, width), (1, width), (width, 1))
    parameters = [torch.randn(n_seeds, *shape) / shape[0] ** 0.5 for shape in shapes]
    parameters[-1] *= 0.1
    return [parameter.requires_grad_() for parameter in parameters]


def energies(parameters, x, f=silu):
    """E of S networks, x (S, n, 2) -> (S, n)."""
    W1, b1, W2, b2, w3 = parameters
    return x.square().sum(2) / 18 + (f(f(x @ W1 + b1) @ W2 + b2) @ w3)[..., 0]


def langevin(parameters, x, n_steps, step_size=0.1):
    """Langevin at T = 1 from x; the last points."""
    parameters = [parameter.detach() for parameter in parameters]
    for _ in range(n_steps):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energies(parameters, x).sum(), x)
        x = x - step_size / 2 * slope + step_size**0.5 * torch.randn_like(x)
    return x.detach()


def eight_gaussians(n_seeds, n, weights=None):
    """Data (S, n, 2)."""
    weights = torch.ones(8) if weights is None else weights
    angle = torch.multinomial(weights, n_seeds * n, replacement=True).view(n_seeds, n) * math.pi / 4
    return 4 * torch.stack([angle.cos(), angle.sin()], 2) + 0.5 * torch.randn(n_seeds, n, 2)


def train(parameters, loss, n_updates, rate=5e-3):
    """Adam on loss(parameters), the rate falling linearly to 0; the parameters to four decimals."""
    adam = torch.optim.Adam(parameters, rate)
    for update in range(n_updates):
        adam.param_groups[0]["lr"] = rate * (1 - update / n_updates)
        adam.zero_grad()
        loss(parameters).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10)
        adam.step()
    return [parameter.detach().double().mul(1e4).round() / 1e4 for parameter in parameters]


def as_json(parameters):
    """One {"W1": ..., ...} a seed."""
    W1, b1, W2, b2, w3 = (parameter.tolist() for parameter in parameters)
    return [{"W1": W1[i], "b1": b1[i][0], "W2": W2[i], "b2": b2[i][0], "w3": [w[0] for w in w3[i]]} for i in range(len(W1))]


GRID = (torch.arange(64) + 0.5) / 4 - 8


def likelihood_loss(data, f=silu):
    """Minus the mean log likelihood up to a constant, with Z by a sum over a grid, jittered within its cells."""

    def loss(parameters):
        x, grid = data(), torch.cartesian_prod(GRID, GRID)
        grid = (grid + (torch.rand(2) - 0.5) / 4).expand(len(x), -1, -1)
        return (energies(parameters, x, f).mean(1) + torch.logsumexp(-energies(parameters, grid, f), 1)).sum()

    return loss
