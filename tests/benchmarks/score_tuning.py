"""How module 06's trainers were tuned, all alike: python tests/benchmarks/score_tuning.py [plane] [wide] [TRAINER ...]

Each trainer is trained, three networks a setting, at its full number of steps with every setting of a grid: rates half a
decade apart and, where it has a choice, noises a factor 2 apart, from a seed that the lecture does not use. Settings are
judged on validation points that nothing else sees. In the plane: the mean over three data sets of the logarithm of the
mean of log p - log model. In 2 to 128 dimensions, where log Z cannot always be trusted: the mean over dimensions of the
logarithm of the score's error. A best setting at an end of the rates is marked: that grid should then be wider.
"""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from conftest import load

m = load("06")
CONFIG, SEED = replace(m.Config(), n_trained=3), 1000
RATES = (3e-3, 1e-2, 3e-2)
OTHER_RATES = {"likelihood on a grid": (1e-2, 3e-2, 1e-1), "energy discrepancy": (1e-2, 3e-2, 1e-1)}
OTHER_RATES |= {"Langevin, plain": (3e-4, 1e-3, 3e-3), "denoising, one noise": (1e-3, 3e-3, 1e-2)}
OTHER_RATES |= {name: (1e-3, 3e-3, 1e-2) for name in m.TRAINERS if name.startswith(("score", "sliced"))}
NOISES = {  # of those that have a choice
    "energy discrepancy": (0.5, 1.0, 2.0),
    "denoising, falling": (0.05, 0.1),
    "denoising, one noise": (0.1, 0.2, 0.4, 0.8),
    "score matching, one blur": (0.1, 0.2),
}
WIDE_RATES = (1e-2, 3e-2, 1e-1)
WIDE_NOISES = {"energy discrepancy": (0.1, 0.25, 0.5), "denoising, one noise": (0.05, 0.1, 0.2)}


def plane_loss(name, trainer):
    """Mean log gap on validation points, and the gaps."""
    sets = [data for data in m.toy_sets("cpu").values() for _ in range(CONFIG.n_trained)]
    networks = m.Networks(len(sets), 2, CONFIG.width, 3, m.START_STD)
    m.train_by(name, trainer, networks, sets, CONFIG, m.steps_of(trainer, CONFIG))
    log_z = m.exact_scores(networks, sets, CONFIG.n_grid).log_z
    gaps = m.gap_on_points(networks, sets, log_z, 20_000).mean(1).view(-1, CONFIG.n_trained).mean(1).clamp(min=1e-3)
    return gaps.log().mean().item(), gaps.tolist()


def wide_loss(name, trainer):
    """Mean log error of the score on validation points, and the errors."""
    errors = []
    for d in m.DIMENSIONS:
        networks, data = m.Networks(CONFIG.n_trained, d, 64, 2, 1.0), m.clusters(d, "cpu")
        m.train_by(name, trainer, networks, [data] * CONFIG.n_trained, CONFIG, m.wide_steps(trainer, d, CONFIG))
        errors.append(m.measure_away(networks, data, m.draws_for(data, 5000)).score.mean().item())
    return torch.tensor(errors).log().mean().item(), errors


def tune(part, trainers, loss, noises, only):
    """Print the loss of every setting of each trainer, best first marked."""
    for name, trainer in trainers.items():
        if only and name not in only:
            continue
        results = {}
        for rate, noise in itertools.product(
            OTHER_RATES.get(name, RATES) if part == "plane" else WIDE_RATES, noises.get(name, (trainer.noise,))
        ):
            torch.manual_seed(SEED)
            try:
                results[rate, noise] = loss(name, trainer._replace(rate=rate, noise=noise))
            except SystemExit:  # diverged
                results[rate, noise] = float("inf"), []
            value, each = results[rate, noise]
            line = "  ".join(f"{x:.3g}" for x in each)
            print(f"{part} {name:<26} rate {rate:<6g} noise {noise:<5g} {value:7.3f}   {line}", flush=True)
        best = min(results, key=lambda setting: results[setting][0])
        at_end = " (at an end of the rates)" if best[0] in (min(results)[0], max(results)[0]) else ""
        used = "as used" if best == (trainer.rate, trainer.noise) else f"used: {trainer.rate:g}, {trainer.noise:g}"
        print(f"  => {name}: rate {best[0]:g}, noise {best[1]:g}{at_end}; {used}", flush=True)


def main():
    torch.set_num_threads(1)
    only = set(sys.argv[1:]) - {"plane", "wide"}
    if "plane" in sys.argv or "wide" not in sys.argv:
        tune("plane", m.TRAINERS, plane_loss, NOISES, only)
    if "wide" in sys.argv or "plane" not in sys.argv:
        tune("wide", m.WIDE, wide_loss, WIDE_NOISES, only)


if __name__ == "__main__":
    main()
