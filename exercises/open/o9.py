"""o9 What the replay buffer is for (module 07, sections loop and ablations; about 40 minutes)

Eight Gaussians as in o13, all of one weight, and the energy of o13 with widths 2, 16, 16. Train it by Langevin chains (10
steps of step_size 0.1 at T = 1 an update) out of a buffer of 1,000, of which 200 move at each update. A chain that is
visited begins anew, from 3 N(0, I), with the probability r: r = 0 (never), 0.01, 0.1, and 1 (no buffer at all). Same
updates (3,000), same batch, three seeds each. Then ask each model twice for samples:

    buffer   the share of the buffer's own chains within 1.5 (three standard deviations) of a centre,
    noise    the same share of 400 new chains from 3 N(0, I) after 200 steps,

and, as truth is known here, for its gap, KL(data || model) in nats. Predict first which r each of the three prefers.

Answer   {"seeds": [3 or more], "networks": {"0": one {"W1": ..., "b1", "W2", "b2", "w3"} a seed, "0.01": ..., "0.1", "1"},
          "buffers": {"0": [200 points (x, y) of the buffer, for each seed], ...}, two decimals are enough,
          "buffer": {"0": [one a seed, of these points], ...}, "noise": {...}, "gap": {...},
          "best": {"buffer": the r with the highest mean, "noise": ..., "gap": the r with the lowest}}
Checked  gap by a grid to 0.005, buffer from the points, noise by the check's own chains to 0.05; seeds; best.
"""

import torch

from compare import NotYet
from tables import centres, gap_to_data, must_agree, must_claim, network_energy, networks, numbers, seeds

RATES = ("0", "0.01", "0.1", "1")
SHAPES = {"W1": (2, 16), "b1": (16,), "W2": (16, 16), "b2": (16,), "w3": (16,)}


def near_a_centre(x):
    """Share of points within 1.5 of one of the eight centres."""
    return ((x[:, None] - centres()).square().sum(2).amin(1) < 1.5**2).double().mean()


def from_noise(row, generator, n=400, n_steps=200, step_size=0.1):
    """The shares near a centre, (S,), of chains of S networks side by side, which began as noise."""
    W1, b1, W2, b2, w3 = (torch.stack([numbers(one, key, *shape) for one in row]) for key, shape in SHAPES.items())
    silu = torch.nn.functional.silu
    x = 3 * torch.randn(len(row), n, 2, generator=generator, dtype=torch.float64)
    for _ in range(n_steps):
        x.requires_grad_()
        hidden = silu(silu(x @ W1 + b1[:, None]) @ W2 + b2[:, None])
        energy = x.square().sum() / 18 + (hidden * w3[:, None]).sum()
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x.detach() - step_size / 2 * torch.autograd.grad(energy, x)[0] + step_size**0.5 * noise
    return torch.stack([near_a_centre(one) for one in x])


def check(answer):
    n_seeds, generator = len(seeds(answer, 3)), torch.Generator().manual_seed(0)
    rows = {rate: networks(answer, rate, n_seeds) for rate in RATES}
    told = {key: {rate: numbers(answer[key], rate, n_seeds) for rate in RATES} for key in ("buffer", "noise", "gap")}
    for rate in RATES:
        points = numbers(answer["buffers"], rate, n_seeds, 200, 2)
        must_agree(f"buffer, r = {rate}", told["buffer"][rate], torch.stack([near_a_centre(one) for one in points]), 1e-3)
    gaps = lambda row: torch.stack([gap_to_data(network_energy(one)) for one in row])
    for key, within, measure in (("gap", 0.005, gaps), ("noise", 0.05, lambda row: from_noise(row, generator))):
        for rate in RATES:
            off = (told[key][rate] - measure(rows[rate])).abs().max()
            if off > within:
                raise NotYet(f"{key}, r = {rate}: up to {off:.3f} away from what the networks give")
    for key, best in (("buffer", max), ("noise", max), ("gap", min)):
        means = {rate: values.mean().item() for rate, values in told[key].items()}
        if means.get(answer["best"][key]) != best(means.values()):  # two may be equal
            must_claim(f"best {key}", answer["best"][key], best(RATES, key=means.get), "the mean over the seeds")
