"""A pilot of o10 and of o12, which write their .json beside this file: python exercises/solutions/o10.py, a minute."""

import json
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def score(x, sigma):
    """grad log p_sigma of the two wells, exactly."""
    v = 0.4**2 + sigma**2
    right = torch.sigmoid(4 * x / v + torch.tensor(0.25).log())  # log odds of the right well: ((x+2)^2 - (x-2)^2)/(2v)
    return -(x + 2 - 4 * right) / v


def share(seed, sigmas, n_steps, n=2000, step=0.2, plain=False):
    """The share left of 0 after annealing through `sigmas`, n_steps each; plain: on p itself."""
    torch.manual_seed(seed)
    x = 4 * torch.randn(n).double()
    for sigma in sigmas:
        step_size = 0.05 * 0.4**2 if plain else step * sigma**2
        for _ in range(n_steps):
            x = x + step_size / 2 * score(x, 0.0 if plain else sigma) + step_size**0.5 * torch.randn(n).double()
    return (x < 0).double().mean().item()


def main():
    seeds, levels = [0, 1, 2, 3, 4], torch.logspace(0.60206, -1, 14).tolist()
    answer = {"seeds": seeds, "n": 2000, "plain": [share(seed, levels, 200, plain=True) for seed in seeds]}
    answer["annealed"] = [share(seed, levels, 200) for seed in seeds]
    answer["broken"] = [share(seed, levels[8:], 200) for seed in seeds]
    answer |= {"changed": "the first sigma: 0.41 in place of 4", "nearer": "annealed"}
    (HERE / "o10.json").write_text(json.dumps(answer), encoding="utf-8")
    print(levels[8], answer)


if __name__ == "__main__":
    main()


def even(answer, key):
    """Five shares that lie closer together than chance lets them."""
    answer[key] = [round(answer[key][0] + i / 2000, 4) for i in range(5)]


MUTANTS = [
    ("flat", lambda a: a.update(annealed=[0.8] * 5), "two seeds have the same numbers"),
    ("reversed", lambda a: a.update(annealed=a["plain"], plain=a["annealed"]), "plain: the mean share"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("invented, too even", lambda a: [even(a, key) for key in ("plain", "annealed", "broken")], "Were they measured?"),
    ("invented, too wild", lambda a: a.update(annealed=[0.7, 0.9, 0.75, 0.85, 0.8]), "too far from it"),
    ("no shares of n", lambda a: a["plain"].__setitem__(0, 0.50013), "whole numbers over"),
    ("nothing broken", lambda a: a.update(broken=a["annealed"][::-1]), "not clearly worse"),
    ("wrong claim", lambda a: a.update(nearer="plain"), "nearer: you claim"),
]
