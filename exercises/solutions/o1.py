"""A pilot of o1: python exercises/solutions/o1.py writes exercises/solutions/o1.json, in a minute."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split

HERE = Path(__file__).resolve().parent


def fitted(x, y):
    """Logistic regression, C by cross-validation."""
    folds = min(5, np.bincount(y).min())
    return GridSearchCV(LogisticRegression(max_iter=2000), {"C": [0.01, 0.1, 1.0, 10.0]}, cv=folds).fit(x, y)


def main(n_seeds=8):
    (path,) = HERE.parent.parent.glob("04_*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    rbms = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = rbms
    spec.loader.exec_module(rbms)
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split((x / 16 > 0.5).astype("float32"), y, test_size=0.2, stratify=y, random_state=0)
    config = replace(rbms.Config(), n_updates=6000)
    predictions = {who: {"few": [], "all": []} for who in ("rbm", "logistic")}
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        data = torch.tensor(x)
        rbm = rbms.train_rbm(rbms.fresh_rbm(data, 128), data, config)
        codes = {"rbm": [rbm.p_hidden(torch.tensor(part)).numpy() for part in (x, x_test)], "logistic": [x, x_test]}
        rng = np.random.default_rng(seed)
        few = np.concatenate([rng.choice(np.flatnonzero(y == digit), 5, replace=False) for digit in range(10)])
        for who, (train, test) in codes.items():
            for labels, chosen in (("few", few), ("all", np.arange(len(y)))):
                predictions[who][labels].append(fitted(train[chosen], y[chosen]).predict(test).tolist())
    accuracy = {
        who: {labels: [round(float(np.mean(np.array(one) == y_test)), 6) for one in rows] for labels, rows in kinds.items()}
        for who, kinds in predictions.items()
    }
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "open")]
    from o1 import winner  # the statement's test

    right = lambda who, labels: torch.tensor(np.array(predictions[who][labels]) == y_test)
    better = {labels: winner(right("rbm", labels), right("logistic", labels)) for labels in ("few", "all")}
    answer = {"seeds": list(range(n_seeds)), "predictions": predictions, "accuracy": accuracy, "better": better}
    (HERE / "o1.json").write_text(json.dumps(answer), encoding="utf-8")
    print(accuracy, better)


if __name__ == "__main__":
    main()

MUTANTS = [
    ("flat", lambda a: a["accuracy"]["rbm"].update(few=[0.8] * 8), "accuracy of rbm, few"),
    ("reversed", lambda a: a["accuracy"].update(rbm=a["accuracy"]["logistic"]), "accuracy of rbm"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    (
        "one seed, three times",
        lambda a: a["predictions"]["rbm"]["few"].__setitem__(1, a["predictions"]["rbm"]["few"][0]),
        "two seeds",
    ),
    ("invented", lambda a: a["accuracy"]["logistic"]["all"].__setitem__(0, 0.99), "accuracy of logistic, all"),
    ("no labels", lambda a: a["predictions"]["rbm"]["all"][0].__setitem__(0, 10), "whole numbers from 0 to 9"),
    (
        "wrong claim",
        lambda a: a["better"].update(all="logistic" if a["better"]["all"] != "logistic" else "rbm"),
        "better, all",
    ),
]
