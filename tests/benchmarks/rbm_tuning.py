"""How module 04's settings were chosen, and its rivals' with equal care: python tests/benchmarks/rbm_tuning.py [PART ...]

Everything fits three quarters of the training digits and is scored on the fourth; the test digits are not touched. The
parts: mixture, recipes (a quarter of the updates), small, large (this module and scikit-learn). About 20 minutes on a core.
"""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from conftest import load
from sklearn.model_selection import train_test_split

m = load("04")
SEEDS = (0, 1, 2)


def validation_nats(rbm, x_fit, x_val):
    """Exact up to 16 hidden units; nan where AIS has under 10 % effective chains."""
    if len(rbm.c) <= m.Config.n_small:
        return m.exact_log_likelihood(rbm, x_val).item()
    log_z, _, ess = m.log_z_from_weights(m.ais(rbm, m.log_odds(x_fit), 200, 1000))
    return (-rbm.free_energy(x_val).mean() - log_z).item() if ess >= 20 else float("nan")


def report(name, grid, nats_of):
    """Print the validation likelihood of each setting of the grid; the best should not stand at an end of it."""
    print(f"\n{name}: validation nats, mean and standard error of {len(SEEDS)} trainings")
    for setting in itertools.product(*grid.values()):
        nats = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            nats.append(nats_of(*setting, seed))
        text = "  ".join(f"{key} {value:<7}" for key, value in zip(grid, setting, strict=True))
        print(f"  {np.mean(nats):8.2f} +- {np.std(nats, ddof=1) / len(nats) ** 0.5:.2f}  {text}", flush=True)


def tune_mixture(x_fit, x_val):
    def nats(n_components, pseudo_count, _):
        mixture = m.mixture_of_bernoullis(x_fit, n_components, pseudo_count=pseudo_count)
        return mixture.log_joint(x_val).logsumexp(1).mean().item()

    report("mixture of Bernoullis", {"components": (40, 80, 120), "pseudo-count": (0.1, 0.15, 0.25, 0.5)}, nats)


def tune_recipes(x_fit, x_val):
    short = replace(m.Config(), n_updates=m.Config.n_updates // 4)
    for name, (settings, _) in m.RECIPES.items():

        def nats(rate, _, settings=settings):
            setting = replace(short, learning_rate=rate)
            return validation_nats(
                m.train_rbm(m.fresh_rbm(x_fit, m.Config.n_small), x_fit, setting, **settings), x_fit, x_val
            )

        rates = (0.01, 0.03, 0.1) if "momentum" in name else (0.03, 0.1, 0.3) if "constant" in name else (0.3, 0.9, 1.8)
        report(f"{name}, {m.Config.n_small} hidden units", {"rate": rates}, nats)


def tune_both(x_fit, x_val, n_hidden, slowness, rates, decays):
    config = m.Config()

    def ours(rate, decay, _):
        setting = replace(config, learning_rate=rate, weight_decay=decay)
        return validation_nats(m.train_rbm(m.fresh_rbm(x_fit, n_hidden), x_fit, setting), x_fit, x_val)

    def sklearns(rate, share, seed):
        n_updates = int(share * config.n_updates / slowness)
        return validation_nats(m.sklearn_rbm(x_fit, n_hidden, rate, n_updates, seed), x_fit, x_val)

    report(f"module 04, {n_hidden} hidden units", {"rate": rates, "decay": decays}, ours)
    report(f"scikit-learn, {n_hidden} hidden units", {"rate": rates, "share of the time": (0.5, 1.0)}, sklearns)


PARTS = {
    "mixture": tune_mixture,
    "recipes": tune_recipes,
    "small": lambda x_fit, x_val: tune_both(x_fit, x_val, m.Config.n_small, 1.8, (0.3, 1.0, 2.0), (3e-4, 1e-3, 3e-3)),
    "large": lambda x_fit, x_val: tune_both(x_fit, x_val, m.Config.n_hidden, 2.5, (0.1, 0.3, 0.6), (3e-4, 1e-3, 3e-3)),
}


def main():
    torch.set_num_threads(1)
    x_train, _, y_train, _ = m.load_images("digits")
    x_fit, x_val = train_test_split(x_train, test_size=0.25, stratify=y_train, random_state=0)
    x_fit, x_val = (torch.tensor(x > 0.5).float() for x in (x_fit, x_val))
    for part in sys.argv[1:] or PARTS:
        PARTS[part](x_fit, x_val)


if __name__ == "__main__":
    main()
