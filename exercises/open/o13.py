"""o13 The modes that no chain sees (module 07, sections truth2d and longrun; about 40 minutes)

Short-run training starts chains from noise at every update and runs K Langevin steps; what these reach looks like the
data, whatever the energy does elsewhere (Nijkamp et al. 2019). In two dimensions one can look. Train the energy

    E(x) = |x|^2/18 + w3 . silu(silu(x W1 + b1) W2 + b2),        widths 2, 32, 32,

on eight Gaussians (centres 4 (cos, sin) of multiples of 45 degrees, standard deviation 0.5) by chains that start at each
update anew from N(0, I), and make K steps of step_size 0.1 at T = 1: once with K = 5 and once with K = 40, with as many
*gradients of the chains* in both (16,000, of 200 chains), three seeds each. Then run 5,000 chains as in training, and sum
the model's own density, by a grid, over the cells (32 x 32 cells of [-8, 8]^2) in which not one of them ended: the hidden
mass. Predict first: is the model where its chains are?

Answer   {"seeds": [3 or more],
          "networks": {"5": one {"W1": (2, 32), "b1": (32), "W2": (32, 32), "b2": (32), "w3": (32)} a seed, "40": ...},
          "hidden": {"5": [one a seed], "40": [one a seed]},
          "less_hidden": "5", "40" or "neither": which training hides less mass (t test over the seeds, 5 %)}
          Four decimals are enough for the networks.
Checked  hidden mass, from the networks, by a grid and by chains of the check's own, to 0.02; seeds; less_hidden.
"""

import torch

from compare import NotYet
from tables import better, must_claim, network_energy, networks, numbers, seeds

N_CELLS, N_FINE = 32, 4  # cells a side, and grid points a side in each
N_CHAINS, STEP = 5_000, 0.1


def hidden_mass(energy, n_steps, generator):
    """Mass of exp(-E)/Z on [-8, 8]^2 in cells in which no short-run chain ends."""
    axis = (torch.arange(N_CELLS * N_FINE, dtype=torch.float64) + 0.5) * 16 / (N_CELLS * N_FINE) - 8
    p = torch.softmax(-energy(torch.cartesian_prod(axis, axis)), 0).view(N_CELLS, N_FINE, N_CELLS, N_FINE).sum((1, 3))
    x = torch.randn(N_CHAINS, 2, generator=generator, dtype=torch.float64)
    for _ in range(n_steps):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(energy(x).sum(), x)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x.detach() - STEP / 2 * slope + STEP**0.5 * noise
    cell = ((x + 8) * N_CELLS / 16).long()
    inside = ((cell >= 0) & (cell < N_CELLS)).all(1)
    visits = torch.zeros(N_CELLS, N_CELLS, dtype=torch.float64)
    visits.index_put_(tuple(cell[inside].T), torch.ones(1, dtype=torch.float64), accumulate=True)
    return p[visits == 0].sum()


def check(answer):
    n_seeds, right = len(seeds(answer, 3)), {}
    for steps in ("5", "40"):
        told, row = numbers(answer["hidden"], steps, n_seeds), networks(answer, steps, n_seeds)
        generator = torch.Generator().manual_seed(0)
        right[steps] = torch.stack([hidden_mass(network_energy(network), int(steps), generator) for network in row])
        off = (told - right[steps]).abs()
        if off.max() > 0.02:
            i = off.argmax()
            raise NotYet(
                f"hidden: K = {steps}, seed number {i}: {told[i]:.4f} told, {right[steps][i]:.4f} by the check's own chains"
            )
    winner = {1: "5", -1: "40", 0: "neither"}[better(-right["5"], -right["40"])]
    must_claim("less_hidden", answer["less_hidden"], winner, "a t test over the seeds")
