"""o4 One network, four trainers, and the weights of the modes (modules 06 and 07; about 40 minutes)

Eight Gaussians (centres 4 (cos, sin) of multiples of 45 degrees, standard deviation 0.5) of *unequal* weights
1 : 2 : ... : 8, counted from 0 degrees. Train the energy

    E(x) = |x|^2/18 + w3 . silu(silu(x W1 + b1) W2 + b2),        widths 2, 16, 16,

with the same number of updates, batch and seeds (three) by

    grid         maximum likelihood, Z by a sum over a grid: the ceiling for this network,
    nce          noise-contrastive estimation, noise uniform on [-8, 8]^2 (log Z is one more weight, and not part of E),
    denoising    denoising score matching, sigma = 0.3,
    persistent   maximum likelihood, Langevin chains that go on from update to update.

For each network give the gap to the data's own entropy, KL(data || model) in nats, and the error of the modes' weights:
half the sum of |share - weight| over the eight, where share is the model's mass that is nearest to a centre. Predict first:
which trainer sees the weights, and which cannot?

Answer   {"seeds": [3 or more],
          "networks": {"grid": one {"W1": (2, 16), "b1": (16), "W2": (16, 16), "b2": (16), "w3": (16)} a seed, "nce": ...},
          "gap": {"grid": [one a seed], ...}, "weight_error": {"grid": [one a seed], ...},
          "best": the trainer beside "grid" whose mean gap is least,
          "blind": the trainer whose mean weight error is largest}
Checked  gap and weight_error from the networks, by a grid, to 0.005; seeds; that nobody beats the grid clearly; best, blind.
"""

import torch

from compare import NotYet
from tables import better, centres, gap_to_data, must_claim, network_energy, networks, numbers, plane, seeds

TRAINERS = ("grid", "nce", "denoising", "persistent")
WEIGHTS = torch.arange(1.0, 9.0, dtype=torch.float64) / 36


def weight_error(energy):
    """Total variation between the modes' weights and the model's."""
    x, _ = plane()
    nearest = (x[:, None] - centres()).square().sum(2).argmin(1)
    shares = torch.zeros(8, dtype=torch.float64).index_add(0, nearest, torch.softmax(-energy(x), 0))
    return (shares - WEIGHTS).abs().sum() / 2


def check(answer):
    n_seeds, right = len(seeds(answer, 3)), {"gap": {}, "weight_error": {}}
    for trainer in TRAINERS:
        each = [network_energy(network, widest=16) for network in networks(answer, trainer, n_seeds)]
        right["gap"][trainer] = torch.stack([gap_to_data(energy, WEIGHTS) for energy in each])
        right["weight_error"][trainer] = torch.stack([weight_error(energy) for energy in each])
        for key, values in right.items():
            off = (numbers(answer[key], trainer, n_seeds) - values[trainer]).abs().max()
            if off > 0.005:
                raise NotYet(f"{key}: {trainer}'s is up to {off:.3f} away from what its networks give")
        if better(right["gap"]["grid"], right["gap"][trainer]) == 1:
            raise NotYet(
                f"{trainer} beats the exact gradient clearly, which is the ceiling: did the grid get as many updates?"
            )
    mean = {key: {trainer: values[trainer].mean().item() for trainer in TRAINERS} for key, values in right.items()}
    must_claim("best", answer["best"], min(TRAINERS[1:], key=mean["gap"].get), "the least mean gap beside the grid's")
    must_claim(
        "blind", answer["blind"], max(TRAINERS, key=mean["weight_error"].get), "the largest mean error of the weights"
    )
