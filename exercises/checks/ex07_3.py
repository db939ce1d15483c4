"""The check of ex07_3: values in numbers; slopes by finite differences with the chains held where they are."""

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "Call energy once on each set. Which sign has the data's mean: is their energy to be low or high?",
    "x_model.detach() cuts the chains' past. (e**2).mean() is not e.mean()**2.",
    "e, e_model = energy(x_data), energy(x_model.detach()); loss = e.mean() - e_model.mean() + strength * (...)",
)


def check(learner, seed):
    draws, strength = Draws(seed), 0.3
    data, chains, theta = draws.normal(7, 3), draws.normal(5, 3), torch.tensor(0.8, dtype=torch.float64)
    energy_of = lambda theta: lambda x: theta * (x**2).sum(1) + x[:, 0]
    energy = energy_of(theta)
    e, e_model = energy(data), energy(chains)
    gap, squares = e.mean() - e_model.mean(), (e**2).mean() + (e_model**2).mean()
    want = gap + strength * squares
    wrong = {
        "The gap is reversed: data's energy is lowered, the chains' raised.": -gap + strength * squares,
        "Square first, then take the mean.": gap + strength * (e.mean() ** 2 + e_model.mean() ** 2),
        "The penalty is missing.": gap,
        "The penalty is subtracted: energies would run away.": gap - strength * squares,
        "The chains' penalty is missing.": gap + strength * (e**2).mean(),
        "The data's penalty is missing.": gap + strength * (e_model**2).mean(),
        "The two squares are subtracted: both are added.": gap + strength * ((e**2).mean() - (e_model**2).mean()),
        "The energies are summed: take their means.": e.sum()
        - e_model.sum()
        + strength * ((e**2).sum() + (e_model**2).sum()),
        "The gap itself is squared: each energy is.": gap + strength * gap**2,
        "strength is not used.": gap + squares,
        "The squares are of absolute values: E^2, not |E|.": gap + strength * (e.abs().mean() + e_model.abs().mean()),
    }
    call = lambda data, chains, strength: learner.contrastive_loss(energy, data, chains, strength)
    expect(call, (data, chains, strength), want, wrong, name="contrastive_loss")

    def plain(theta, chains):
        e, e_model = energy_of(theta)(data), energy_of(theta)(chains)
        return e.mean() - e_model.mean() + strength * ((e**2).mean() + (e_model**2).mean())

    leaf = theta.clone().requires_grad_()
    past = chains - 0.5 * (2 * leaf * chains)  # a Langevin step whose graph is still there
    loss = learner.contrastive_loss(energy_of(leaf), data, past, strength)
    if not loss.requires_grad:
        raise NotYet("contrastive_loss has no graph: detach the chains x_model, not the energies")
    (got,) = torch.autograd.grad(loss, leaf)
    here, h = past.detach(), 1e-5
    slope = (plain(theta + h, here) - plain(theta - h, here)) / (2 * h)
    if abs(got - slope) > 1e-6 * abs(slope):
        through = (plain(theta + h, chains - (theta + h) * chains) - plain(theta - h, chains - (theta - h) * chains)) / (
            2 * h
        )
        why = "The gradient reaches back through the chains: x_model.detach()."
        why = why if abs(got - through) < 1e-5 * abs(through) else "One of the terms was detached: only x_model is."
        raise NotYet(f"contrastive_loss: its slope in a weight is {got:.6g}, want {slope:.6g}.\n{why}")
