"""A pilot of o6: python exercises/solutions/o6.py writes exercises/solutions/o6.json, in two minutes."""

import json

import torch


def main(n_seeds=3, n_updates=3000, n=256):
    import plane  # the pilots' shared lines; it finds what follows
    from o6 import ARCHITECTURES, measures

    from tables import ACTIVATIONS

    answer = {"seeds": list(range(n_seeds)), "networks": {}, "gap": {}, "minima": {}, "curvature": {}}
    for name in ARCHITECTURES:
        torch.manual_seed(0)
        activation, width = name.split("-")
        loss = plane.likelihood_loss(lambda: plane.eight_gaussians(n_seeds, n), ACTIVATIONS[activation])
        answer["networks"][name] = plane.as_json(plane.train(plane.fresh(n_seeds, int(width)), loss, n_updates))
        found = [measures(network, name) for network in answer["networks"][name]]
        for key in ("gap", "minima", "curvature"):
            answer[key][name] = [round(one[key].item(), 4) for one in found]
        print(name, answer["gap"][name], answer["minima"][name], answer["curvature"][name])
    mean = lambda name, key: sum(answer[key][name]) / n_seeds
    answer["best"] = min(ARCHITECTURES, key=lambda name: mean(name, "gap"))
    answer["flat"] = max(ARCHITECTURES, key=lambda name: abs(mean(name, "curvature") - 8))
    (plane.HERE / "o6.json").write_text(json.dumps(answer), encoding="utf-8")
    print(answer["best"], answer["flat"])


if __name__ == "__main__":
    main()

MUTANTS = [
    ("flat", lambda a: a["curvature"].update({key: [8.0] * 3 for key in a["curvature"]}), "curvature: silu-32's is"),
    (
        "reversed",
        lambda a: a["gap"].update({"silu-6": a["gap"]["silu-32"], "silu-32": a["gap"]["silu-6"]}),
        "gap: silu-32's is",
    ),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, three times", lambda a: a["networks"]["relu-32"].__setitem__(1, a["networks"]["relu-32"][0]), "two seeds"),
    ("invented", lambda a: a["minima"]["silu-32"].__setitem__(0, 12), "minima: silu-32's is"),
    ("wrong claim", lambda a: a.update(flat="silu-32"), "flat: you claim"),
    ("wrong best", lambda a: a.update(best="silu-6" if a["best"] != "silu-6" else "relu-32"), "best: you claim"),
]
