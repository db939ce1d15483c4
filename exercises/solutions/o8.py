"""A pilot of o8: python exercises/solutions/o8.py writes exercises/solutions/o8.json, in three minutes."""

import importlib.util
import json
import sys

import torch


def main(n_seeds=3, n_updates=1500):
    import plane  # the pilots' shared lines; it finds what follows
    from o8 import one_gaussian, scores

    from tables import as_text, better, digits, from_text, judge

    (path,) = plane.HERE.parent.parent.glob("07_*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    ebm = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = ebm
    spec.loader.exec_module(ebm)
    (x, x_test, _, _), judged = digits(), judge()
    answer = {"seeds": list(range(n_seeds)), "images": []}
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        energy = ebm.plain_training(ebm.PlainEnergy(64, 256, 0.3), x.float(), n_updates)
        samples = ebm.plain_langevin(energy, torch.randn(300, 64), 500, 0.01)
        answer["images"].append(as_text(samples))
    found = torch.stack([scores(from_text(rows, 300), x_test, *judged) for rows in answer["images"]])
    gaussian = torch.stack([scores(one_gaussian(x, seed), x_test, *judged) for seed in range(n_seeds)])
    names = {1: "energy", -1: "gaussian", 0: "neither"}
    answer["better"] = {key: names[better(-found[:, i], -gaussian[:, i])] for i, key in enumerate(("pixels", "features"))}
    for i, key in enumerate(("pixels", "features", "entropy")):
        answer[key] = [round(value, 5) for value in found[:, i].tolist()]
    (plane.HERE / "o8.json").write_text(json.dumps(answer), encoding="utf-8")
    print(found, gaussian, answer["better"])


if __name__ == "__main__":
    main()


def copied(answer):
    """The training images themselves."""
    from tables import as_text, digits

    answer["images"][0] = as_text(digits()[0][:300])


MUTANTS = [
    ("flat", lambda a: a.update(features=[a["features"][0]] * 3), "features: the table says"),
    ("reversed", lambda a: a.update(pixels=a["features"], features=a["pixels"]), "pixels: the table says"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, three times", lambda a: a["images"].__setitem__(1, a["images"][0]), "two seeds"),
    ("invented", lambda a: a["entropy"].__setitem__(0, 0.5), "entropy: the table says"),
    ("copied", copied, "are training images"),
    ("too few", lambda a: a["images"][0].pop(), "300 images are asked for"),
    (
        "wrong claim",
        lambda a: a["better"].update(pixels="energy" if a["better"]["pixels"] != "energy" else "gaussian"),
        "better, pixels",
    ),
]
