"""A pilot of o2: python exercises/solutions/o2.py writes exercises/solutions/o2.json, in seconds."""

import importlib.util
import json
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def module(number):
    """A lesson, loaded by its path."""
    (path,) = HERE.parent.parent.glob(f"{number}_*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    lesson = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lesson)
    return lesson


def main():
    cd, answer = module("05"), {"seeds": [0, 1, 2], "machines": [], "data": [], "bias": [], "second": [], "enough": []}
    for seed in answer["seeds"]:
        torch.manual_seed(seed)
        rbm = cd.RBM(*(parameter.mul(1e4).round() / 1e4 for parameter in cd.random_machines(1, 1.5, d=5, m=4)))
        states = cd.all_states(5).double()
        data = states[torch.randint(len(states), (12,))]
        q = (data[:, None] == states).all(2).double().mean(0)[None]
        norms = cd.cd_bias(rbm, q, 25).norm(dim=2)[:, 0]
        answer["machines"].append({"W": rbm.W[0].tolist(), "b": rbm.b[0, 0].tolist(), "c": rbm.c[0, 0].tolist()})
        answer["data"].append(data.int().tolist())
        answer["bias"].append([float(f"{norm:.8g}") for norm in norms[1:]])
        spectrum = cd.reversible_spectrum(cd.gibbs_kernels(rbm), cd.visible_states(rbm)[1])
        answer["second"].append(round(spectrum[0, 1].item(), 8))
        answer["enough"].append(next((k for k in range(1, 26) if norms[k] <= 0.01 * norms[0]), None))
    answer["slowest"] = max(answer["seeds"], key=lambda i: answer["bias"][i][-1] / answer["bias"][i][-2])
    (HERE / "o2.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()


MUTANTS = [
    ("flat", lambda a: a["bias"][0].__setitem__(slice(None), [a["bias"][0][0]] * 25), "where your own parameters give"),
    ("reversed", lambda a: a["bias"][1].reverse(), "bias: the table says"),
    ("one seed", lambda a: a.update(seeds=[0, 0, 0]), "different seeds"),
    ("one seed, three times", lambda a: a["bias"].__setitem__(2, a["bias"][1]), "two seeds have the same numbers"),
    ("invented eigenvalue", lambda a: a["second"].__setitem__(0, 0.5), "second: the table says"),
    ("invented claim", lambda a: a["enough"].__setitem__(0, 25), "enough: you claim"),
    ("wrong machine", lambda a: a.update(slowest=[s for s in a["seeds"] if s != a["slowest"]][0]), "slowest: you claim"),
    ("missing", lambda a: a.pop("data"), "the entry 'data' is missing"),
]
