"""A pilot of o3: python exercises/solutions/o3.py writes exercises/solutions/o3.json, in two minutes."""

import importlib.util
import json
import math
from pathlib import Path

import torch
from scipy import stats

HERE = Path(__file__).resolve().parent


def main(rates=(0.02, 0.1, 0.5), n_seeds=5, n_updates=10_000):
    (path,) = HERE.parent.parent.glob("05_*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    cd = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cd)
    x, answer = cd.bars_and_stripes(), {"seeds": list(range(n_seeds)), "rates": rates, "sweeps": n_updates}
    answer |= {"machines": {}, "nats": {}}
    for method in ("CD-1", "PCD"):
        torch.manual_seed(0)
        rbm = cd.fresh_rbms(x, 3 * n_seeds, 10)
        each = torch.tensor(rates).repeat_interleave(n_seeds)
        cd.climb(cd.Trainer(rbm, cd.METHODS[method], len(x)), x, each, n_updates, anneal=False)
        rbm = cd.RBM(*(parameter.double().mul(1e4).round() / 1e4 for parameter in rbm))
        nats = cd.exact_log_likelihood(rbm, x.double()).view(3, n_seeds)
        machines = [{"W": W.tolist(), "b": b[0].tolist(), "c": c[0].tolist()} for W, b, c in zip(*rbm, strict=True)]
        answer["machines"][method] = [machines[i * n_seeds : (i + 1) * n_seeds] for i in range(3)]
        answer["nats"][method] = [[round(value, 4) for value in row] for row in nats.tolist()]
    answer["better"] = []
    for cd_1, pcd in zip(answer["nats"]["CD-1"], answer["nats"]["PCD"], strict=True):
        gap = torch.tensor(cd_1).double() - torch.tensor(pcd).double()
        clear = gap.mean().abs() > stats.t.isf(0.025, n_seeds - 1) * gap.std() / math.sqrt(n_seeds)
        answer["better"].append(("CD-1" if gap.mean() > 0 else "PCD") if clear else "neither")
    (HERE / "o3.json").write_text(json.dumps(answer), encoding="utf-8")
    print(answer["nats"], answer["better"])


if __name__ == "__main__":
    main()

MUTANTS = [
    ("flat", lambda a: a["nats"].update({"PCD": [[-4.0] * 5] * 3}), "away from what its machines give"),
    ("reversed", lambda a: a["nats"]["CD-1"].reverse(), "CD-1's are up to"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, five times", lambda a: [row.__setitem__(1, row[0]) for row in a["machines"]["PCD"]], "two seeds"),
    ("invented nats", lambda a: a["nats"]["PCD"][1].__setitem__(0, -3.5), "PCD's are up to"),
    ("rates too near", lambda a: a.update(rates=[0.1, 0.2, 0.3]), "each three times"),
    (
        "wrong claim",
        lambda a: a.update(better=["neither" if w != "neither" else "PCD" for w in a["better"]]),
        "better: you claim",
    ),
]
