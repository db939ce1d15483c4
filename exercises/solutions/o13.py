"""A pilot of o13: python exercises/solutions/o13.py writes exercises/solutions/o13.json, in a minute."""

import json
import math
import sys
from pathlib import Path

import torch
from scipy import stats
from torch.nn.functional import silu

HERE = Path(__file__).resolve().parent


def energies(parameters, x):
    """E of S networks side by side, x (S, n, 2) -> (S, n)."""
    W1, b1, W2, b2, w3 = parameters
    return x.square().sum(2) / 18 + (silu(silu(x @ W1 + b1) @ W2 + b2) @ w3)[..., 0]


def short_run(parameters, x, n_steps, step_size=0.1):
    """Langevin at T = 1 from x; the last points."""
    for _ in range(n_steps):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energies(parameters, x).sum(), x)
        x = x - step_size / 2 * slope + step_size**0.5 * torch.randn_like(x)
    return x.detach()


def train(n_steps, n_seeds, n_gradients, n=200):
    """Maximum likelihood with short-run chains, by Adam, as many gradients of the chains whatever n_steps."""
    torch.manual_seed(n_steps)
    shapes = ((2, 32), (1, 32), (32, 32), (1, 32), (32, 1))
    parameters = [torch.randn(n_seeds, *shape) / max(shape[0], 1) ** 0.5 for shape in shapes]
    parameters[-1] *= 0.1
    parameters = [parameter.requires_grad_() for parameter in parameters]
    adam, n_updates = torch.optim.Adam(parameters, 3e-3), n_gradients // n_steps
    for update in range(n_updates):
        angle = torch.randint(8, (n_seeds, n)) * math.pi / 4
        data = 4 * torch.stack([angle.cos(), angle.sin()], 2) + 0.5 * torch.randn(n_seeds, n, 2)
        fixed = [parameter.detach() for parameter in parameters]
        chains = short_run(fixed, torch.randn(n_seeds, n, 2), n_steps)
        loss = (energies(parameters, data) - energies(parameters, chains)).mean(1).sum()
        adam.param_groups[0]["lr"] = 3e-3 * (1 - update / n_updates)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10)
        adam.step()
    return [parameter.detach().double().mul(1e4).round() / 1e4 for parameter in parameters]


def main(n_seeds=3, n_gradients=16_000):
    sys.path.insert(0, str(HERE.parent))
    sys.path.insert(0, str(HERE.parent / "open"))
    import o13 as experiment  # its grid; the chains here have a stream of their own

    answer = {"seeds": list(range(n_seeds)), "networks": {}, "hidden": {}}
    for n_steps in (5, 40):
        W1, b1, W2, b2, w3 = (parameter.tolist() for parameter in train(n_steps, n_seeds, n_gradients))
        networks = [
            {"W1": W1[i], "b1": b1[i][0], "W2": W2[i], "b2": b2[i][0], "w3": [w[0] for w in w3[i]]} for i in range(n_seeds)
        ]
        stream = torch.Generator().manual_seed(1)
        answer["networks"][str(n_steps)] = networks
        masses = [experiment.hidden_mass(experiment.energy_of(network), n_steps, stream).item() for network in networks]
        answer["hidden"][str(n_steps)] = [round(mass, 4) for mass in masses]
    gap = torch.tensor(answer["hidden"]["40"]) - torch.tensor(answer["hidden"]["5"])
    clear = gap.mean().abs() > stats.t.isf(0.025, n_seeds - 1) * gap.std() / n_seeds**0.5
    answer["less_hidden"] = ("5" if gap.mean() > 0 else "40") if clear else "neither"
    (HERE / "o13.json").write_text(json.dumps(answer), encoding="utf-8")
    print(answer["hidden"], answer["less_hidden"])


if __name__ == "__main__":
    main()

MUTANTS = [
    ("flat", lambda a: a["hidden"].update({"5": [0.5] * 3}), "by the check's own chains"),
    ("reversed", lambda a: a["networks"].update({"5": a["networks"]["40"], "40": a["networks"]["5"]}), "K = 5, seed number"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, three times", lambda a: a["networks"]["40"].__setitem__(1, a["networks"]["40"][0]), "two seeds"),
    ("invented", lambda a: a["hidden"]["40"].__setitem__(0, a["hidden"]["40"][0] + 0.1), "K = 40, seed number"),
    ("wrong claim", lambda a: a.update(less_hidden="5" if a["less_hidden"] != "5" else "40"), "less_hidden: you claim"),
]
