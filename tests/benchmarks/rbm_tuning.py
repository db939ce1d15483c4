"""How module 04's settings were chosen, and scikit-learn's with equal care: python tests/benchmarks/rbm_tuning.py

Both fit three quarters of the training digits and are scored on the fourth; the test digits are not touched. Each gets
the training time of module 04's default run, two seeds, and a grid of its own settings. About 15 minutes on one core.
"""

import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from conftest import load
from sklearn.model_selection import train_test_split

m = load("04")
SEEDS = (0, 1)


def validation_nats(rbm, x_fit, x_val):
    if len(rbm.c) <= m.Config.n_small:
        return (-rbm.free_energy(x_val).mean() - m.exact_log_z(rbm)).item()
    log_z, _, ess = m.log_z_from_weights(m.ais(rbm, m.log_odds(x_fit), 200, 1000))
    return (-rbm.free_energy(x_val).mean() - log_z).item() if ess >= 20 else float("nan")


def report(name, n_hidden, grid, fit, x_fit, x_val):
    """Print the validation likelihood of each setting of the grid, best last."""
    rows = []
    for setting in itertools.product(*grid.values()):
        start, nats = time.perf_counter(), []
        for seed in SEEDS:
            torch.manual_seed(seed)
            nats.append(validation_nats(fit(*setting, seed), x_fit, x_val))
        text = "  ".join(f"{key} {value:<7}" for key, value in zip(grid, setting, strict=True))
        rows.append((np.mean(nats), f"{text} {(time.perf_counter() - start) / len(SEEDS):5.1f} s a training and scoring"))
    print(f"\n{name}, {n_hidden} hidden units: validation nats (nan: fewer than 10 % effective chains)")
    for nats, text in sorted(rows, key=lambda row: np.nan_to_num(row[0], nan=-np.inf)):
        print(f"  {nats:8.2f}  {text}")


def main():
    torch.set_num_threads(1)
    x_train, _, y_train, _ = m.load_images("digits")
    x_fit, x_val = train_test_split(x_train, test_size=0.25, stratify=y_train, random_state=0)
    x_fit, x_val = (torch.tensor(x > 0.5).float() for x in (x_fit, x_val))
    components = (10, 20, 40, 80)
    nats = [np.mean([m.mixture_of_bernoullis(x_fit, x_val, n) for _ in range(5)]) for n in components]
    print("mixture of Bernoullis:", "  ".join(f"{n}: {value:.2f}" for n, value in zip(components, nats, strict=True)))

    config = m.Config()
    for n_hidden, slowness in ((config.n_small, 1.8), (config.n_hidden, 2.5)):
        ours = {"rate": (0.05, 0.1, 0.2, 0.3), "decay": (1e-4, 1e-3, 3e-3)}
        sklearns = {"rate": (0.003, 0.01, 0.03, 0.1, 0.3), "batch": (10, 50, 100, 200), "share": (0.25, 0.5, 1.0)}

        def fit_ours(rate, decay, _, n_hidden=n_hidden):
            setting = replace(config, learning_rate=rate, weight_decay=decay)
            return m.train_rbm(m.fresh_rbm(x_fit, n_hidden), x_fit, setting)

        def fit_sklearn(rate, batch, share, seed, n_hidden=n_hidden, slowness=slowness):
            slower = slowness if batch >= 50 else 2.5 * slowness  # small batches take longer
            n_epochs = int(share * config.n_updates * config.batch_size / len(x_fit) / slower)
            return m.sklearn_rbm(x_fit, n_hidden, rate, batch, n_epochs, seed)

        report("module 04", n_hidden, ours, fit_ours, x_fit, x_val)
        report("scikit-learn", n_hidden, sklearns, fit_sklearn, x_fit, x_val)


if __name__ == "__main__":
    main()
