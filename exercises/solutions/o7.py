"""A pilot of o7: python exercises/solutions/o7.py writes exercises/solutions/o7.json, in two minutes."""

import json
import time

import torch
from torch import nn


class Reconstruction(nn.Module):
    """E = |x - g(x)|^2/(2 sigma^2), module 07's eq. (3): x (B, 64) -> (B,)."""

    def __init__(self, g, sigma):
        super().__init__()
        self.g, self.sigma = g, sigma

    def forward(self, x):
        return (x - self.g(x)).square().sum(1) / (2 * self.sigma**2)


def mlp():
    return nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 64))


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(64, 1, 4, stride=2, padding=1),
        nn.Flatten(),
    )


def trained(g, x, seconds, sigma=0.3):
    """Denoising score matching at one level for so many seconds."""
    energy, start, last = Reconstruction(g, sigma), time.perf_counter(), 0.0
    adam = torch.optim.Adam(energy.parameters(), 2e-3)
    while last < seconds:
        noise = torch.randn(128, 64)
        noisy = (x[torch.randint(len(x), (128,))] + sigma * noise).requires_grad_()
        (slope,) = torch.autograd.grad(energy(noisy).sum(), noisy, create_graph=True)
        adam.param_groups[0]["lr"] = 2e-3 * (1 - last / seconds)
        adam.zero_grad()
        (0.5 * (sigma * slope - noise).square().sum(1).mean()).backward()
        adam.step()
        last = time.perf_counter() - start
    return energy


def main(n_seeds=3, seconds=15):
    import plane
    from o7 import auroc, better

    from tables import digits

    x, x_test, y, y_test = digits()
    answer = {"seeds": list(range(n_seeds)), "scores": {"mlp": [], "conv": []}, "auroc": {}}
    for seed in range(n_seeds):
        for name, build in (("mlp", mlp), ("conv", conv)):
            torch.manual_seed(seed)
            energy = trained(build(), x[y != 9].float(), seconds)
            scores = -energy(x_test.float()).detach()
            answer["scores"][name].append([float(f"{score:.6g}") for score in scores.tolist()])
    known, found = y_test != 9, {}
    for name, rows in answer["scores"].items():
        found[name] = torch.stack([auroc(torch.tensor(row).double(), known) for row in rows])
        answer["auroc"][name] = [round(value, 5) for value in found[name].tolist()]
    nearest = auroc(-torch.cdist(x_test, x[y != 9]).amin(1), known)
    answer["auroc"]["nearest"] = round(nearest.item(), 5)
    answer["better"] = {1: "mlp", -1: "conv", 0: "neither"}[better(found["mlp"], found["conv"])]
    answer["beats_nearest"] = [name for name, values in found.items() if better(values, nearest.expand(n_seeds)) == 1]
    (plane.HERE / "o7.json").write_text(json.dumps(answer), encoding="utf-8")
    print(answer["auroc"], answer["better"], answer["beats_nearest"])


if __name__ == "__main__":
    main()


def upside_down(answer):
    """The energy in place of minus the energy."""
    answer["scores"]["conv"] = [[-score for score in row] for row in answer["scores"]["conv"]]


MUTANTS = [
    ("flat", lambda a: a["auroc"].update(mlp=[0.9] * 3), "auroc of mlp: the table says"),
    ("reversed", upside_down, "-E, not E"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, three times", lambda a: a["scores"]["mlp"].__setitem__(1, a["scores"]["mlp"][0]), "two seeds"),
    ("invented", lambda a: a["auroc"]["conv"].__setitem__(0, 0.999), "auroc of conv: the table says"),
    ("invented distance", lambda a: a["auroc"].update(nearest=0.7), "auroc of nearest"),
    ("wrong claim", lambda a: a.update(better="mlp" if a["better"] != "mlp" else "conv"), "better: you claim"),
    ("wrong claim of both", lambda a: a.update(beats_nearest=["mlp", "conv", "both"]), "beats_nearest: you claim"),
]
