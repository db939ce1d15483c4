"""o5 Tuning Langevin in a well that is solved (module 01, section stepsize; about 30 minutes)

E(x) = a x^2/2 with a = 4, T = 1. Run Langevin dynamics for eight step sizes, five of them with a step_size <= 1, two above 4
(where it should run away), and five seeds each: n chains (2,000 say), enough steps to forget the start. Measure over the
chains' last points the variance (about 0, whose mean you know), and from a long run of a few chains the integrated
autocorrelation time of x in steps (module 03's integrated_time; 1 for independent points).

Predict first: how does the relative bias, a variance - 1, grow with the step? At which step is a gradient spent best, that
is, tau smallest, and what does that step cost in bias?

Answer   {"seeds": [5 or more], "n_chains": n, "step_sizes": [8 or more, rising],
          "variance": [[one a seed], one row a step size; null where it ran away],
          "tau": [[one a seed], one row a step size with a step_size <= 1],
          "slope": the slope of log(a mean variance - 1) against log step_size, over a step_size <= 1, by least squares,
          "runs_away_from": the smallest step size of yours that ran away}
Checked  variance against theory, (1/a) 2/(2 - a step_size/2): near it, and not nearer than n chains can be; tau against
          the AR(1) chain's; slope from your table; steps beyond 4/a run away, and no others.
"""

import math

import torch
from scipy import stats

from compare import NotYet
from tables import must_agree, must_be_likely, must_claim, must_differ, numbers, seeds


def check(answer, a=4.0):
    n_seeds, steps = len(seeds(answer, 5)), numbers(answer, "step_sizes", None)
    n = float(answer["n_chains"])
    if (steps.diff() <= 0).any() or (a * steps <= 1).sum() < 5 or (a * steps > 4).sum() < 2 or len(steps) < 8:
        raise NotYet("step_sizes: eight, rising, five of them with a step_size <= 1 and two above 4, are asked for")
    away = [all(value is None for value in row) for row in answer["variance"]]
    for step, gone in zip(steps.tolist(), away, strict=True):
        if gone != (a * step > 4):
            what = "did not run away" if a * step > 4 else "ran away"
            raise NotYet(f"variance: step_size {step} {what}; |1 - a step_size/2| says that it should be the other way")
    kept = steps[: len(steps) - sum(away)]
    variance = numbers({"variance": answer["variance"][: len(kept)]}, "variance", len(kept), n_seeds)
    must_differ("variance", variance.T)
    theory = 2 / (2 - a * kept / 2) / a
    z = (variance / theory[:, None] - 1) / math.sqrt(2 / n)
    must_be_likely("variance", z, "theory's (1/a) 2/(2 - a step_size/2)")
    small = a * kept <= 1
    bias = a * variance[small].mean(1) - 1
    if (bias <= 0).any():
        raise NotYet("variance: at your smallest steps the bias drowns in noise: more chains, or larger steps")
    x, y = kept[small].log(), bias.log()
    slope = ((x - x.mean()) * y).sum() / ((x - x.mean()) ** 2).sum()
    must_agree("slope", torch.tensor(float(answer["slope"])).double(), slope, 1e-3)
    r = 1 - a * kept[small] / 2
    tau, exact = numbers(answer, "tau", int(small.sum()), n_seeds), (1 + r) / (1 - r)
    off = (tau.mean(1) - exact).abs() / (tau.std(1) / n_seeds**0.5)
    if off.max() > stats.t.isf(0.5e-4 / len(off), n_seeds - 1):
        i = off.argmax()
        raise NotYet(
            f"tau at step_size {kept[i]:.4g}: {tau[i].mean():.4g} measured, {exact[i]:.4g} by theory: in steps, both signs?"
        )
    must_claim("runs_away_from", answer["runs_away_from"], steps[len(kept)].item(), "the first row of null")
