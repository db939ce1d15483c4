"""Module 06 - Score matching: learn an energy without its normaliser, and what that costs.

log p = -E - log Z. The score, its slope in x, does not contain Z; so fit slopes (Hyvarinen 2005):

    J(E) = ½ E_p |∇ log p + ∇E|²                      explicit: needs the data's own score,          (1)
         = E_p[ ½ |∇E|² - ΔE ] + ½ E_p |∇ log p|²     implicit: needs samples only,                  (2)
         = E_p[ ½ |∇E|² - v·∇(v·∇E) ] + constant      sliced: one random v with E[v vᵀ] = I,         (3)

or fit the slope towards the clean point, x̃ = x + σ n with n ~ N(0, I) (denoising; Vincent 2011):

    J_σ(E) = ½ E |σ ∇E(x̃) - n|²                       learns the data blurred by σ,                  (4)

or tell data from noise q of known density (NCE; Gutmann & Hyvarinen 2010), or a datum from its rivals (energy discrepancy;
Schroeder et al. 2023), or do maximum likelihood after all:

    ∇ log p = -∇E(x) + E_{x'~p}[∇E(x')]               (∇ in the parameters; module 01, eq. 3).       (5)

Run      python 06_score_matching.py                all sections, about 4 min on one CPU core
         python 06_score_matching.py --section trainers --show
         python 06_score_matching.py --section trainers --n-steps 1800 --n-chain-steps 1080
Writes   outputs/06_score_matching/*.png, trainers_langevin.gif and metrics.json
Before   modules 01 and 05        Exercises  ex06_1 ... ex06_4, o4, o10, o12
Sources  Hyvarinen (2005); Vincent (2011); Song et al. (2019); Gutmann & Hyvarinen (2010, 2012); Schroeder et al. (2023);
         Jarzynski (1997); Carbone et al. (2023); Song & Ermon (2019); Koehler, Heckett & Risteski (2023). Each function
         names its own.
"""

import argparse
import contextlib
import copy
import errno
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, get_args, get_type_hints

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import scipy.stats
import torch
from matplotlib.animation import PillowWriter
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold
from torch.nn.functional import silu, softplus
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_repeats: Annotated[int, "repeats of the estimates on Gaussians and of NCE; a 40th of efficiency's replications"] = 20
    n_samples: Annotated[int, "data points in each repeat; a quarter of the draws for log Z on the tables"] = 5000
    n_trained: Annotated[int, "networks of each trainer on each data set"] = 2
    n_steps: Annotated[int, "optimiser steps of likelihood on a grid; the others get about as many seconds"] = 450
    n_chain_steps: Annotated[int, "optimiser steps of maximum likelihood by Langevin chains"] = 270
    n_chains: Annotated[int, "Markov chains of Langevin and HMC"] = 500
    batch_size: Annotated[int, "data points in a batch of the trainers"] = 200
    width: Annotated[int, "units in each of the three hidden layers"] = 64
    n_grid: Annotated[int, "grid cells on an edge where densities are integrated"] = 240
    n_order_steps: Annotated[int, "optimiser steps where the orders of weighing, moving and updating are compared"] = 250
    n_wide_steps: Annotated[int, "optimiser steps in 2 to 128 dimensions, times each trainer's share"] = 200
    n_seeds: Annotated[int, "networks for the orders, and for the blindness of score matching"] = 8
    n_mode_steps: Annotated[int, "optimiser steps of each of the blind ones"] = 500
    n_table_steps: Annotated[int, "optimiser steps on the tables"] = 400
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1


SMOKE = {"n_repeats": 4, "n_samples": 200, "n_steps": 6, "n_chain_steps": 6, "n_chains": 50, "n_order_steps": 6}
SMOKE |= {"n_wide_steps": 6, "batch_size": 40, "width": 32, "n_grid": 30, "n_seeds": 2, "n_mode_steps": 10}
SMOKE |= {"n_table_steps": 10}

# One colour a method, through the whole module: likelihood, NCE, energy discrepancy, Langevin, HMC, denoising, score
# matching, sliced. Dotted lines and open markers are the plain version of a pair.
BLUE, GREEN, PURPLE, BROWN = "tab:blue", "tab:green", "tab:purple", "tab:brown"
OLIVE, RED, ORANGE, CYAN = "tab:olive", "tab:red", "tab:orange", "tab:cyan"


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


# Copied from 01_ebm_foundations.py: tolerance
def tolerance(sem, n, n_compared=1):
    """How far the mean of n independent repeats may lie from its exact value: Student's t with n - 1 degrees of freedom at
    one false alarm in 10,000, shared by the `n_compared` of which the worst is judged, times sem. None for n < 2."""
    return None if n < 2 else scipy.stats.t.isf(1e-4 / (2 * n_compared), n - 1) * sem


# %% 1. Hyvarinen's identity
# Open the square in eq. (1). Its middle term holds the data's score, which nobody knows; integrate it by parts:
#     E_p[∇ log p · ∇E] = ∫ p (∇p/p) · ∇E = ∫ ∇p · ∇E
#                       = [p ∇E]_boundary - ∫ p ΔE.
# Where p dies out at the boundary the bracket is 0, and what is left is eq. (2): minus the Laplacian, and no factor 2.
# Two signs to hold on to. On a Gaussian of variance s² with E = λ x²/2 eq. (2) reads ½ λ² s² - λ, least at λ = 1/s², the
# truth. The published slip "½|∇E|² + 2 ΔE" is least at λ = -2/s²: an energy turned upside down, with a falling loss.
# The bracket matters where data have an edge. For p uniform on [-1, 1] it is ½(E'(1) - E'(-1)): eq. (2) then rewards an
# energy that bends up at the edges, without end. Score matching needs a smooth density; blur the data a little first.


def slope(energy, x):
    """x as a leaf and ∇E(x), both (..., d), in a graph that can be differentiated again; energy: (..., d) -> (...)."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    return x, gradient


def explicit_matching(energy, x, data_score):
    """Eq. (1) for each sample, (...): ½|∇log p + ∇E|². The model's score is *minus* ∇E, hence the plus."""
    return 0.5 * (data_score + slope(energy, x)[1]).square().sum(-1)


def implicit_matching(energy, x):
    """Eq. (2) for each sample, (...): ½|∇E|² - ΔE, the Laplacian exactly, by d more backward passes."""
    x, gradient = slope(energy, x)
    rows = (torch.autograd.grad(gradient[..., i].sum(), x, create_graph=True)[0] for i in range(x.shape[-1]))
    return 0.5 * gradient.square().sum(-1) - sum(row[..., i] for i, row in enumerate(rows))


def vertex(at_0, at_1, at_2):
    """Where the parabola through these values at 0, 1 and 2 is least."""
    return (3 * at_0 - 4 * at_1 + at_2) / (2 * (at_0 - 2 * at_1 + at_2))


def two_modes(x, weight=0.8, m=2.0, s=0.4):
    """Log density and score, each of x's shape, of weight·N(-m, s²) + (1 - weight)·N(m, s²)."""
    logits = torch.stack([math.log(weight) - (x + m) ** 2 / (2 * s**2), math.log1p(-weight) - (x - m) ** 2 / (2 * s**2)])
    right = logits.softmax(0)[1]
    return logits.logsumexp(0) - math.log(s * math.sqrt(2 * math.pi)), -(x + m - 2 * m * right) / s**2


def quartic(x):
    """E = |x|⁴/4, x (..., 1) -> (...)."""
    return x[..., 0] ** 4 / 4


def theory_gaussian_loss(precision, variance, laplacian=-1.0):
    """E[½|∇E|² + laplacian ΔE] for E = λx²/2 on N(0, variance): ½ λ² s² + laplacian λ. Correct is -1; a slip is +2."""
    return 0.5 * precision**2 * variance + laplacian * precision


def theory_edge(slope_left, slope_right):
    """Explicit less implicit matching on the uniform density on [-1, 1], whose score is 0: ½(E'(1) - E'(-1))."""
    return 0.5 * (slope_right - slope_left)


class Identity(NamedTuple):
    """Explicit and implicit matching of models of strength a on a mixture, by quadrature, and what is between them."""

    strengths: np.ndarray
    explicit: np.ndarray
    implicit: np.ndarray
    constant: float  # ½ E_p|∇ log p|²


def compare_identities(strengths):
    """Identity for the models E = a (x² - 1.44)² + 0.2 x on 0.6 N(-1.2, 0.6²) + 0.4 N(1.2, 0.6²), by Simpson's rule."""
    axis = torch.linspace(-7, 7, 8001, dtype=torch.float64)
    log_p, data_score = two_modes(axis, 0.6, 1.2, 0.6)
    x, curves = axis[:, None], []

    def average(values):  # under p
        return scipy.integrate.simpson(to_numpy(log_p.exp() * values), x=to_numpy(axis))

    for a in strengths:

        def energy(x, a=a):
            return (a * (x**2 - 1.44) ** 2 + 0.2 * x).sum(-1)

        curves.append((average(explicit_matching(energy, x, data_score[:, None])), average(implicit_matching(energy, x))))
    return Identity(np.array(strengths), *np.array(curves).T, 0.5 * average(data_score**2))


def precision_learned(x):
    """The λ of E = λ|x|²/2 at which implicit matching on samples x (N, 1) is least: a parabola in λ."""
    return vertex(*(implicit_matching(lambda y, k=k: 0.5 * k * (y**2).sum(-1), x).mean().detach() for k in (0, 1, 2)))


def gap_at_edges():
    """Explicit less implicit matching of E = x⁴/4 on the uniform density on [-1, 1], by Simpson's rule."""
    inside = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
    apart = explicit_matching(quartic, inside, 0.0) - implicit_matching(quartic, inside)
    return scipy.integrate.simpson(to_numpy(apart) / 2, x=to_numpy(inside[:, 0]))


def draw_identity(found, variance):
    """Both losses against the strength of the model; on a Gaussian the right sign and the published slip."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    axes[0].plot(found.strengths, found.explicit, "k--", lw=3, label="explicit: needs the data's score")
    axes[0].plot(found.strengths, found.implicit, ORANGE, lw=2, label="implicit: needs samples only")
    axes[0].plot(found.strengths, found.implicit + found.constant, ORANGE, lw=6, alpha=0.4, label="implicit + constant")
    places = (found.strengths[curve.argmin()] for curve in (found.explicit, found.implicit))
    axes[0].set_title("least at a = {:.3f} and at {:.3f}: a constant apart".format(*places))
    axes[0].set_xlabel("strength $a$ of the model's double well")
    lam = np.linspace(-6, 6, 200)
    for sign, colour, label in ((-1, ORANGE, r"$-\Delta E$"), (2, "0.4", r"$+2\Delta E$, a published slip")):
        loss = theory_gaussian_loss(lam, variance, sign)
        axes[1].plot(lam, loss, color=colour, lw=2.5, label=rf"$\frac{{1}}{{2}}|\nabla E|^2${label}")
    axes[1].axvline(1 / variance, color="k", ls="--", label="truth, $1/s^2$")
    axes[1].set(title="the wrong sign turns a Gaussian upside down", xlabel=r"precision $\lambda$", ylim=(-12, 27))
    for ax in axes:
        ax.set_ylabel("score matching loss")
        ax.legend(loc="upper left")
    return fig


def section_identity(run):
    """A density never seen can be fitted by its slopes: explicit and implicit score matching differ by a constant."""
    found, s = compare_identities(np.linspace(0.0, 0.3, 61).tolist()), 0.7
    worst = np.abs(found.explicit - found.implicit - found.constant).max()
    run.metric("explicit - implicit - constant, at most", worst, against=("identity", 0), within=1e-9)
    x = s * torch.randn(20_000, 1).double()
    against = ("1 / mean of x^2", 1 / x.square().mean())
    run.metric("precision learned on Gaussian samples", precision_learned(x), against=against, within=1e-9)
    edge = theory_edge(-1.0, 1.0)  # E' = x³
    run.metric("uniform: explicit - implicit", gap_at_edges(), against=("the edges' term", edge), within=1e-9)
    run.figure(draw_identity(found, s**2), "constant")
    places = [found.strengths[curve.argmin()] for curve in (found.explicit, found.implicit)]
    run.say(
        f"the two are least at a = {places[0]:.3f} and {places[1]:.3f}: expectations without the score find what it finds"
    )
    run.say(f"on data with edges the identity is off by {gap_at_edges():.3f}: blur such data first")


# %% 2. The objectives and their price
# On N(0, s² I) with E = λ|x|²/2 every objective is a parabola in λ, so three values give its minimum. Exact and sliced
# find the variance 1/λ = s². Denoising does not, and should not. Put the optimal score of the noisy data into eq. (4):
#     ∇E(x̃) = E[n | x̃]/σ = -∇ log p_σ(x̃)        p_σ = p * N(0, σ² I), the blurred data (Tweedie's formula),
# so it learns variance s² + σ²: a bias that falls as σ², while the variance of its target n/σ grows as 1/σ².
# The Laplacian costs d backward passes, a projection one. What does the projection pay? With g = ∇E, H its Hessian,
# and v ~ N(0, I), a quadratic form vᵀBv has mean tr B and variance 2|B|² (Frobenius; B symmetric):
#     reduced    ½|g|² - vᵀHv             variance 2 |H|²               ~ d,
#     plain      vᵀ(½ g gᵀ - H) v         variance 2 |½ g gᵀ - H|²      ~ d², since |g|⁴ ~ d².
# So the reduced form's noise per sample rises as √d against a loss of order d: in relative terms it is *better* in high d;
# the plain form gains nothing.


def sliced_matching(energy, x, v, reduced=True):
    """Eq. (3) for each sample, (...), with projections v (..., d); one more backward pass whatever d is.

    reduced=True is SSM-VR (Song et al. 2019, section 3); False has ½(v·∇E)² in place of ½|∇E|². Reduced, E[v vᵀ] must be
    I: with unit vectors it is I/d, and the minimiser's score is d times too small.
    """
    x, gradient = slope(energy, x)
    (row,) = torch.autograd.grad((gradient * v).sum(), x, create_graph=True)
    norm = gradient.square().sum(-1) if reduced else (v * gradient).sum(-1).square()
    return 0.5 * norm - (row * v).sum(-1)


def denoising_matching(energy, x, noise, sigma):
    """Eq. (4) for each sample, (...). -∇E at the noisy point must point back: -∇E = -n/σ, so ∇E = n/σ, not -n/σ."""
    return 0.5 * (sigma * slope(energy, x + sigma * noise)[1] - noise).square().sum(-1)


def theory_variance_learned(variance, sigma=0.0, unit_vectors_in=1):
    """1/λ at each objective's minimum on N(0, variance I): the blurred variance (Vincent 2011); d times too wide where
    unit vectors in d dimensions stand for v with E[v vᵀ] = I."""
    return unit_vectors_in * variance + sigma**2


def exact_slicing_variance(gradient, hessian, reduced):
    """Variance (B,) of sliced matching over v ~ N(0, I): 2|B|², from ∇E (B, 1, d) and its Hessian (d, d)."""
    form = hessian[None] if reduced else 0.5 * gradient.mT * gradient - hessian
    return (2 * form.square().sum((-2, -1))).expand(len(gradient))


SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.6)


def variances_learned(x, s):
    """{objective: (the variances 1/λ (R,) it learns from R samples x (R, N, d) of N(0, s² I), the exact one)}."""
    v, noise, d = torch.randn_like(x), torch.randn_like(x), x.shape[2]
    unit = v / v.norm(dim=-1, keepdim=True)
    objectives = {
        "explicit": (0.0, 1, lambda e: explicit_matching(e, x, -x / s**2)),
        "implicit": (0.0, 1, lambda e: implicit_matching(e, x)),
        "sliced, plain": (0.0, 1, lambda e: sliced_matching(e, x, v, reduced=False)),
        "sliced, reduced": (0.0, 1, lambda e: sliced_matching(e, x, v)),
        "unit vectors by mistake": (0.0, d, lambda e: sliced_matching(e, x, unit)),
    }
    for t in SIGMAS:
        objectives[f"denoising, noise {t:g}"] = (t, 1, lambda e, t=t: denoising_matching(e, x, noise, t))
    found = {}
    for name, (sigma, unit_in, objective) in objectives.items():
        at = [objective(lambda y, k=k: 0.5 * k * (y**2).sum(-1)).mean(1).detach() for k in (0, 1, 2)]
        found[name] = 1 / vertex(*at), theory_variance_learned(s**2, sigma, unit_in)
    return found


class Price(NamedTuple):
    """What slicing costs in noise, and exactness in seconds, against the dimension."""

    ratios: dict  # {form: variance over projections / exact, (dims, points)}
    exact: dict  # {form: the exact variance, (dims,)}
    seconds: dict  # {method: (dims,)}


DIMS = (4, 8, 16, 32, 64, 128, 256)


def measure_price(n_draws, device, n_points=8):
    """Price for quadratic energies in each of DIMS; seconds for a small network and a batch of 32."""
    found = Price({"plain": [], "reduced": []}, {"plain": [], "reduced": []}, {"exact": [], "sliced": []})
    for d in DIMS:
        a = torch.randn(d, d) / d**0.5
        hessian = (torch.eye(d) + 0.25 * (a + a.T)).double()
        points, draws = torch.randn(n_points, 1, d).double(), torch.randn(n_points, n_draws, d).double()

        def energy(y, hessian=hessian):
            return 0.5 * (y @ hessian * y).sum(-1)

        for name in found.ratios:
            values = sliced_matching(energy, points.expand_as(draws), draws, name == "reduced").detach()
            exact = exact_slicing_variance(points @ hessian, hessian, name == "reduced")
            found.ratios[name].append(to_numpy(values.var(1) / exact))
            found.exact[name].append(exact.mean().item())
        network, y = Networks(1, d, 64, 2, device=device).energy, torch.randn(1, 32, d, device=device)
        found.seconds["exact"].append(least_seconds(lambda e=network, y=y: implicit_matching(e, y), 2))
        found.seconds["sliced"].append(least_seconds(lambda e=network, y=y: sliced_matching(e, y, y), 20))
    return Price(*({name: np.array(rows) for name, rows in each.items()} for each in found))


def least_seconds(compute, n_times):
    """The least of `n_times` durations of compute() -> a tensor; one more goes before, and warms up."""
    times = [time.perf_counter()]
    for _ in range(1 + n_times):
        compute().sum().item()
        times.append(time.perf_counter())
    return np.diff(times)[1:].min()


def exponent(y):
    """The power of d that y (dims,) follows where d is large."""
    return np.polyfit(np.log(DIMS[2:]), np.log(y[2:]), 1)[0]


def draw_price(learned, price, s):
    """What denoising learns, and what slicing and exactness cost."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 5), layout="constrained")
    t, dsm = np.linspace(0.08, 1.7, 100), [mean_and_sem(learned[f"denoising, noise {t:g}"][0]) for t in SIGMAS]
    means, errors = np.array(dsm, dtype=float).T
    axes[0].plot(t, theory_variance_learned(s**2, t), "k--", label=r"theory, $s^2+\sigma^2$")
    axes[0].errorbar(SIGMAS, means, np.nan_to_num(errors), fmt="o", color=RED, capsize=3, label="denoising, measured")
    axes[0].axhline(s**2, color="0.6", label="the data, $s^2$")
    axes[0].set(title="denoising learns the blurred data", xlabel=r"noise $\sigma$", ylabel="variance learned")
    for (name, ratios), line in zip(price.ratios.items(), (":", "-"), strict=True):
        measured = ratios.mean(1) * price.exact[name]
        label = f"sliced, {name}: $d^{{{exponent(measured):.2f}}}$"
        axes[1].plot(DIMS, measured, "X", color=CYAN, fillstyle="none" if line == ":" else "full", ms=9, label=label)
        axes[1].plot(DIMS, price.exact[name], "k" + line, label=f"exact, {name}")
    for (name, seconds), colour, marker in zip(price.seconds.items(), (ORANGE, CYAN), "PX", strict=True):
        axes[2].plot(DIMS, seconds * 1e3, marker + "-", color=colour, label=f"{name}: $d^{{{exponent(seconds):.2f}}}$")
    axes[1].set(title="the price of slicing: variance", ylabel="variance over projections")
    axes[2].set(title="the price of exactness: time", ylabel="milliseconds, batch of 32")
    for ax in axes[1:]:
        ax.set(xlabel="dimension $d$", xscale="log", yscale="log")
    for ax in axes:
        ax.legend(loc="upper left")
        ax.margins(y=0.2)
    return fig


def section_objectives(run):
    """Every objective finds the Gaussian but denoising, which finds the blurred one; slicing trades noise for cost."""
    config, s = run.config, 0.8
    learned = variances_learned(s * torch.randn(config.n_repeats, config.n_samples, 4).double(), s)
    for name, (values, exact) in learned.items():
        mean, sem = mean_and_sem(values)
        within = None if len(values) < 2 else tolerance(sem, len(values)) + 1e-9  # explicit matching has no spread
        run.metric(f"{name}: variance", mean, sem, ("exact", exact), within)
    price = measure_price(max(config.n_samples // 10, 4), run.device)
    for name, ratios in price.ratios.items():
        mean, sem = mean_and_sem(ratios.mean(0))  # points of each dimension are independent
        run.metric(f"sliced, {name}: variance / 2|B|^2", mean, sem, ("exact", 1), tolerance(sem, ratios.shape[1]))
        measured = exponent(ratios.mean(1) * price.exact[name])
        run.metric(f"sliced, {name}: variance's power of d", measured, against=("exact", exponent(price.exact[name])))
    for name, passes in (("exact", 1), ("sliced", 0)):
        run.metric(f"{name}: power of d in its seconds", exponent(price.seconds[name]), against=("of passes", passes))
    run.figure(draw_price(learned, price, s), "price")
    bias = learned["denoising, noise 0.4"][0].mean().item() - s**2
    run.say(f"denoising with noise 0.4 learns a variance {bias:.2f} too large: its own noise, {0.4**2:.2f}")
    plain, reduced = (exponent(price.ratios[name].mean(1) * price.exact[name]) for name in ("plain", "reduced"))
    run.say(f"slicing's variance grows as d^{plain:.1f} plain, d^{reduced:.1f} reduced: take the reduced form")


# %% 3. Noise-contrastive estimation
# Tell n data from νn samples of a density q that is known *with* its normaliser. The best classifier's log odds are
# log p(x) - log(ν q(x)): plug in log p = -E(x) - c, train it by logistic regression, and the constant c is learned like
# any other weight; where E + c ends, c = log Z. With E linear in its parameters the loss is convex: Newton's method.
# The price is known too (Gutmann & Hyvarinen 2012, theorem 3): with features g = (∇_θ E, 1) and the classifier's
# posterior of "noise", P = ν q/(p + ν q),
#     n · cov -> A⁻¹ - (1 + 1/ν) A⁻¹ b bᵀ A⁻¹,        A = ∫ P p g gᵀ,    b = ∫ P p g.
# Where q is much wider than p, data fall where P ~ 0: the classifier wins without learning (too wide). Where q is
# narrower, the tails of p see no noise to be told from (too narrow). At both ends A is small or nearly singular.
# Near its end log p(θ) is quadratic, so the mean of KL(p || fitted) is ½ tr(I cov), I the Fisher information.


def nce_gradient(model_log_p, noise_log_p, is_data, ratio):
    """d loss/d(-log p) for each point (..., B), of the mean loss over data: what each point adds to ∇θ of E + c.

    Loss: softplus(-G) on data and softplus(G) on noise, G = log p - log(ν q), ν = `ratio` noise points to a datum.
    """
    posterior = (model_log_p - noise_log_p - math.log(ratio)).sigmoid()  # "this is data"
    return torch.where(is_data, 1 - posterior, -posterior) / is_data.sum(-1, keepdim=True)


def nce_fit(features, noise_log_p, is_data, ratio, theta, n_newton=15):
    """θ (R, k) of log p = -features·θ (the last feature is 1: its θ is c) by Newton's method from `theta` (R, k).

    features (R, B, k), noise_log_p and is_data (R, B).
    """
    for _ in range(n_newton):
        log_p = -(features @ theta[..., None])[..., 0]
        gradient = features.mT @ nce_gradient(log_p, noise_log_p, is_data, ratio)[..., None]
        posterior = (log_p - noise_log_p - math.log(ratio)).sigmoid()
        curvature = posterior * (1 - posterior) / is_data.sum(-1, keepdim=True)
        theta = theta - torch.linalg.solve(features.mT @ (curvature[..., None] * features), gradient)[..., 0]
    return theta


def theory_nce_covariance(features, p, q, ratio, dx):
    """n times the asymptotic covariance (k, k) of θ, above, by quadrature; features (n_x, k), densities p and q (n_x,)."""
    posterior_noise = ratio * q / (p + ratio * q)
    weighted = (posterior_noise * p * dx)[:, None] * features
    inverse = torch.linalg.inv(features.T @ weighted)
    b = inverse @ weighted.sum(0)
    return inverse - (1 + 1 / ratio) * torch.outer(b, b)


def theory_kl(features, p, covariance, dx):
    """½ tr(I cov): the mean of KL(p || fitted) to first order in cov (k, k), that of θ without the constant; I is the
    covariance of the features (n_x, k) under p (n_x,)."""
    mean = (p[:, None] * features).sum(0) * dx
    information = features.T @ (p[:, None] * features) * dx - torch.outer(mean, mean)
    return 0.5 * (information * covariance).sum().item()


def rms_tolerance(exact, n):
    """How far the root mean square of n independent Gaussian errors may lie from its exact value: χ² quantiles with n
    degrees of freedom, at one false alarm in 10,000; the wider side."""
    low, high = (math.sqrt(scipy.stats.chi2.ppf(q, n) / n) for q in (0.5e-4, 1 - 0.5e-4))
    return exact * max(1 - low, high - 1)


TRUTH = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)  # E = 0.3 x - 2 x² + x⁴
AXIS = torch.linspace(-5, 5, 5001, dtype=torch.float64)
DX = (AXIS[1] - AXIS[0]).item()
WIDTHS = (0.4, 0.6, 0.8, 1.0, 1.5, 3.0, 8.0, 20.0)  # of the noise, in standard deviations of the data


def nce_features(x):
    """(x, x², x⁴, 1), (..., 4): -log p is linear in them."""
    return torch.stack([x, x**2, x**4, torch.ones_like(x)], -1)


def exact_log_z_on_axis(theta):
    """log Z of E = θ·(x, x², x⁴), (..., 3) -> (...), summed over AXIS."""
    return (-theta @ nce_features(AXIS)[:, :3].T).logsumexp(-1) + math.log(DX)


def exact_density_on_axis():
    """The data's density p on AXIS, and its variance."""
    p = (-nce_features(AXIS)[:, :3] @ TRUTH - exact_log_z_on_axis(TRUTH)).exp()
    return p, ((p * AXIS**2).sum() * DX - ((p * AXIS).sum() * DX) ** 2).item()


class NoiseWidth(NamedTuple):
    """R fits of NCE with noise of one width."""

    theta: torch.Tensor  # (R, 4), the last is the constant c
    off: torch.Tensor  # c - log Z(θ), (R,)
    rms: float
    theory: float  # of rms
    importance: float  # rms error of log Z by importance sampling with the same noise, E known
    kl: torch.Tensor  # KL(p || fitted) in nats, (R,)
    theory_kl: float


def compare_noise_widths(n_samples, n_repeats, ratio=2):
    """{width: NoiseWidth} for n_repeats samples of the data and ratio times as many of the noise."""
    (p, variance), features = exact_density_on_axis(), nce_features(AXIS)
    uniform = torch.rand(n_repeats, n_samples, dtype=torch.float64)
    cell = torch.searchsorted((p * DX).cumsum(0), uniform).clamp(max=len(AXIS) - 1)
    x_data = AXIS[cell] + DX * (torch.rand_like(uniform) - 0.5)
    white = torch.randn(n_repeats, ratio * n_samples, dtype=torch.float64)
    is_data = torch.arange((1 + ratio) * n_samples).expand(n_repeats, -1) < n_samples
    start = torch.tensor([0.0, -1.0, 0.5], dtype=torch.float64)  # a guess; the loss is convex
    start = torch.cat([start, exact_log_z_on_axis(start)[None]]).expand(n_repeats, -1)
    to_log_z = (p[:, None] * features).sum(0) * DX  # c - log Z(θ), to first order in the error of (θ, c)
    found = {}
    for width in WIDTHS:
        noise = torch.distributions.Normal(torch.zeros(1, dtype=torch.float64), width * variance**0.5)
        x_noise = noise.scale * white
        theta = fitted_by_nce(torch.cat([x_data, x_noise], 1), noise.log_prob, is_data, ratio, start, width)
        log_z, off = exact_log_z_on_axis(theta[:, :3]), theta[:, 3] - exact_log_z_on_axis(theta[:, :3])
        covariance = theory_nce_covariance(features, p, noise.log_prob(AXIS).exp(), ratio, DX) / n_samples
        log_w = -nce_features(x_noise)[..., :3] @ TRUTH - noise.log_prob(x_noise)
        weighed = log_w.logsumexp(1) - math.log(ratio * n_samples) - exact_log_z_on_axis(TRUTH)
        log_model = -theta[:, :3] @ features[:, :3].T - log_z[:, None]
        kl = (p * (p.log() - log_model).where(p > 0, 0.0)).sum(1) * DX
        rms, importance = (errors.square().mean().sqrt().item() for errors in (off, weighed))
        theory = (to_log_z @ covariance @ to_log_z).sqrt().item()
        found[width] = NoiseWidth(
            theta, off, rms, theory, importance, kl, theory_kl(features[:, :3], p, covariance[:3, :3], DX)
        )
    return found


def fitted_by_nce(x, noise_log_p, is_data, ratio, start, width):
    """nce_fit on points x (R, B); ends the run in one line where Newton's method runs away."""
    try:
        theta = nce_fit(nce_features(x), noise_log_p(x), is_data, ratio, start)
        if theta.isfinite().all():
            return theta
    except torch.linalg.LinAlgError:  # the curvature is 0 to working precision
        pass
    return sys.exit(f"nce: Newton's method ran away, noise {width:g} times as wide as data; more --n-samples may cure it")


def draw_noise(found):
    """What is learned with three widths of noise, and the error of log Z against the width."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    p, _ = exact_density_on_axis()
    for width, line in ((20.0, ":"), (0.4, "--"), (1.5, "-")):
        density = to_numpy((-nce_features(AXIS) @ found[width].theta[:5].T).exp())
        labels = [f"$e^{{-E-c}}$, noise {width:g} times as wide"] + [None] * (density.shape[1] - 1)
        axes[0].plot(to_numpy(AXIS), density, line, color=GREEN, lw=1, label=labels)
    axes[0].plot(to_numpy(AXIS), to_numpy(p), "k", lw=2, label="data")
    axes[0].set(title="what NCE learned, with its own constant $c$", xlabel="$x$", ylabel="density")
    axes[0].set(xlim=(-2.5, 2.5), ylim=(0, 1.9 * p.max().item()))
    rms, theory, importance = ([getattr(found[w], field) for w in WIDTHS] for field in ("rms", "theory", "importance"))
    errors = np.array(rms) / math.sqrt(2 * len(found[1.0].off))
    axes[1].plot(WIDTHS, theory, "k--", label="NCE, asymptotic theory")
    axes[1].errorbar(WIDTHS, rms, errors, fmt="s", color=GREEN, capsize=3, label="NCE, measured")
    axes[1].plot(WIDTHS, importance, "d", color="0.4", mfc="none", label="importance sampling, $E$ known")
    best = min(found, key=lambda width: found[width].rms)
    axes[1].set(title=f"the constant is best with noise {best:g} x as wide", xlabel="noise width / data width")
    axes[1].set(ylabel=r"RMS error of $\log Z$ (nats)", xscale="log", yscale="log")
    for ax in axes:
        ax.legend(loc="upper center", fontsize=9)
    axes[1].margins(y=0.25)
    return fig


def section_nce(run):
    """Telling data from noise learns log Z as one more weight; noise as wide as data is best, narrower worse than wider."""
    n, repeats = run.config.n_samples, run.config.n_repeats
    if n < 50:
        sys.exit("nce needs --n-samples 50 at least: on fewer Newton's method runs away")
    found = compare_noise_widths(n, repeats)
    good = found[1.5]
    mean, sem = mean_and_sem(good.off)
    run.metric("noise 1.5 times as wide: c - log Z", mean, sem, ("the grid's log Z", 0), tolerance(sem, repeats))
    for width in (0.4, 1.5, 20.0):
        within = rms_tolerance(found[width].theory, repeats) if width == 1.5 and n >= 1000 else None  # it is asymptotic
        against = ("asymptotic theory", found[width].theory)
        run.metric(f"noise {width:g} times: RMS error of c", found[width].rms, against=against, within=within)
    run.metric("noise 1.5: importance sampling's RMS", good.importance, against=("NCE, same noise", good.rms))
    run.metric("noise 1.5: KL to the data (nats)", *mean_and_sem(good.kl), against=("asymptotic theory", good.theory_kl))
    run.figure(draw_noise(found), "noise")
    best = min(WIDTHS, key=lambda width: found[width].rms)
    narrow, wide = (found[width].rms / found[best].rms for width in (0.4, 8.0))
    run.say(f"best is noise {best:g} times as wide as the data; 0.4 times is {narrow:.1f} times worse, 8 times {wide:.1f}")


# %% 4. One network, every trainer
# The plain version first, to copy. Any energy with parameters will do; each objective is a loss of a few lines on points:
#     score matching      ½|∇E|² - ΔE on data (a little blurred, for data with edges)
#     sliced              the same, with one random projection for the Laplacian
#     denoising           ½|σ∇E(x̃) - n|² on noisy data
#     noise-contrastive   logistic regression of data against noise of known density; E learns its own log Z
#     likelihood          E(data) - E(model's samples), whose gradient is minus eq. (5): the samples come from chains
#     energy discrepancy  the one in between, below; no chains, no scores.
# Energy discrepancy (Schroeder et al. 2023) blurs a datum, x -> y = x + σ n, and asks how much more likely x is than other
# points x' that could have been blurred to the same y. Bayes' rule with the model as the prior gives their distribution,
# p(x'|y) ~ exp(-E(x')) N(y; x', σ² I), and Z has cancelled. Draw M rivals x'_j = y + σ n'_j; the loss is
#     E_p log( w/M + (1/M) Σ_j exp(E(x) - E(x'_j)) ),        w = 1.                                                 (6)
# w = 1 counts x among its own rivals: given y all M + 1 points are alike but for E, so (6) is the log loss of telling the
# datum among them, least at the data's energy for every M and σ; with w = 0 and few rivals too narrow a density would win.
# With infinitely many rivals it becomes score matching for σ -> 0 and likelihood for σ -> ∞ (they prove both), whose sight
# of far modes it then shares.


def nce_loss(energy, x, noise, noise_log_p):
    """Noise-contrastive loss, from x (..., B, d), noise (..., νB, d) and log q of both; E's constant becomes log Z."""
    ratio = noise.shape[-2] / x.shape[-2]
    log_odds, odds_of_noise = (-energy(y) - noise_log_p(y) - math.log(ratio) for y in (x, noise))
    return softplus(-log_odds).mean(-1) + ratio * softplus(odds_of_noise).mean(-1)


def likelihood_loss(energy, x, x_model):
    """Not a loss that falls: its *gradient* is minus eq. (5). The samples x_model (..., N, d) are data here, detached."""
    return energy(x).mean(-1) - energy(x_model.detach()).mean(-1)


def rivals(x, sigma, n_rivals):
    """M points (..., B, M, d) for each datum of x (..., B, d) that might have been blurred to the same place."""
    blurred = x + sigma * torch.randn_like(x)
    return blurred[..., None, :] + sigma * torch.randn(*x.shape[:-1], n_rivals, x.shape[-1], device=x.device)


def discrepancy_loss(energy, x, others, w=1.0):
    """Eq. (6) from x (..., B, d) and its rivals `others` (..., B, M, d)."""
    n_rivals = others.shape[-2]
    differences = energy(x)[..., None] - energy(others.flatten(-3, -2)).unflatten(-1, others.shape[-3:-1])
    stable = torch.cat([differences, torch.full_like(differences[..., :1], math.log(w))], -1)
    return (stable.logsumexp(-1) - math.log(n_rivals)).mean(-1)


def annealed(rate, progress):
    """A learning rate that falls from `rate` to 0 along half a cosine."""
    return rate * 0.5 * (1 + math.cos(math.pi * progress))


def plain_fit(parameters, loss, n_steps, rate):
    """The one loop for all of them: Adam on loss() -> a number, redrawn each step, at a rate that falls to 0."""
    adam = torch.optim.Adam(parameters, betas=(0.9, 0.99))
    for step in range(n_steps):
        adam.param_groups[0]["lr"] = annealed(rate, step / n_steps)
        adam.zero_grad()
        loss().backward()
        adam.step()


# Now the same, fast. E(x) = |x|²/(2 s₀²) + MLP(x), the MLP's last layer zero at first and its constant chosen so that Z = 1:
# training starts at exactly N(0, s₀² I), a density that can be sampled. For a layer z = h W + b, h' = silu(z), and a signal
# g = ∂(Σ_i a_i E_i)/∂h' coming back,
#     ∂/∂z = g · silu'(z),    ∂/∂W = hᵀ ∂/∂z,    ∂/∂b = Σ ∂/∂z,    ∂/∂h = ∂/∂z Wᵀ.
# With every a_i = 1 it ends in ∇ₓE; multiplied by a_i row by row, the same signals give Σ_i a_i ∇E(x_i) in the parameters.
# That is the gradient of likelihood (by chains or on a grid), of NCE and of energy discrepancy: *they differ in the points
# x_i and in the numbers a_i, and in nothing else*. Only the losses of a score need a graph of second derivatives.


class Networks:
    """`n_networks` energies (n, B, d) -> (n, B) trained side by side: |x|²/(2 std²) + MLP with `depth` hidden layers; they
    start as -log N(x; 0, std² I)."""

    def __init__(self, n_networks, d, width, depth, std=1.0, device="cpu"):
        sizes, self.std = [d] + depth * [width], std
        self.weights = [
            torch.randn(n_networks, a, b, device=device) * (1.5 / a**0.5) for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        self.weights += [torch.zeros(n_networks, width, 1, device=device)]
        self.biases = [
            torch.randn(n_networks, 1, b, device=device) * (1.0 if i == 0 else 0.1) for i, b in enumerate(sizes[1:])
        ]
        log_z = d * math.log(std * math.sqrt(2 * math.pi))
        self.biases += [torch.full((n_networks, 1, 1), log_z, device=device)]  # moves no slope: NCE's constant

    @property
    def parameters(self):
        return self.weights + self.biases

    def quadratic(self, x):
        return x.square().sum(-1) / (2 * self.std**2)

    def part(self, rows):
        """Copies of some of the networks, chosen by a slice."""
        some = copy.copy(self)
        some.weights, some.biases = ([p[rows].clone() for p in each] for each in (self.weights, self.biases))
        return some

    def energy(self, x):
        """E(x), (n, B), for autograd."""
        h = x
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = silu(torch.baddbmm(b, h, w))
        return torch.baddbmm(self.biases[-1], h, self.weights[-1])[..., 0] + self.quadratic(x)

    def signals(self, x):
        """E(x) (n, B), ∇ₓE (n, B, d), and for each layer, last first, its input and ∂E/∂z."""
        h, inputs, before, silu_backward = x, [], [], torch.ops.aten.silu_backward  # g · silu'(z), in one sweep
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs.append(h)
            before.append(torch.baddbmm(b, h, w))
            h = silu(before[-1])
        energy = torch.baddbmm(self.biases[-1], h, self.weights[-1])[..., 0] + self.quadratic(x)
        layers, g = [(h, torch.ones_like(energy)[..., None])], self.weights[-1].mT.expand_as(h)
        for w, z, h in zip(self.weights[-2::-1], before[::-1], inputs[::-1], strict=True):
            layers.append((h, silu_backward(g, z)))
            g = torch.bmm(layers[-1][1], w.mT)
        return energy, g + x / self.std**2, layers

    def passes(self, x):
        """E(x) (n, B) and ∇ₓE (n, B, d)."""
        return self.signals(x)[:2]

    def weigh(self, layers, a):
        """Gradient of Σ_i a_i E(x_i) in the parameters, for `layers` of signals(x) and any numbers a (n, B)."""
        weighed = [(h, a[..., None] * g) for h, g in layers[::-1]]
        return [h.mT @ g for h, g in weighed] + [g.sum(1, keepdim=True) for _, g in weighed]


class Adam:
    """Adam (Kingma & Ba 2015) with a clipped gradient and, in `average`, an exponential mean of the parameters."""

    def __init__(self, parameters, clip=None, decay=0.99):
        self.parameters, self.clip, self.decay, self.t = parameters, clip, decay, 0
        self.m, self.v = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
        self.average = [p.clone() for p in parameters]

    @torch.no_grad()
    def step(self, gradients, rate, b1=0.9, b2=0.99):
        self.t += 1
        if self.clip:  # network by network
            norm = sum(g.square().sum((1, 2), keepdim=True) for g in gradients).sqrt()
            gradients = [g * (self.clip / norm).clamp(max=1) for g in gradients]
        torch._foreach_lerp_(self.m, gradients, 1 - b1)
        torch._foreach_mul_(self.v, b2)
        torch._foreach_addcmul_(self.v, gradients, gradients, 1 - b2)
        scale = [(v / (1 - b2**self.t)).sqrt_().add_(1e-8) for v in self.v]
        torch._foreach_addcdiv_(self.parameters, self.m, scale, -rate / (1 - b1**self.t))
        torch._foreach_lerp_(self.average, self.parameters, 1 - min(self.decay, self.t / (10 + self.t)))

    @torch.no_grad()
    def use_average(self):
        torch._foreach_copy_(self.parameters, self.average)


def train(networks, gradient, n_steps, rate, label, clip=None, b2=0.99):
    """plain_fit on gradient(networks, progress in [0, 1]) -> list, by the Adam above; ends at the averaged weights."""
    adam = Adam(networks.parameters, clip)
    torch.set_flush_denormal(True)  # silu of far negative numbers is subnormal: a CPU is several times slower on those
    for step in Progress(range(n_steps), label):
        adam.step(gradient(networks, step / n_steps), annealed(rate, step / n_steps), b2=b2)
    torch.set_flush_denormal(False)
    adam.use_average()
    must_be_finite(f"training ({label})", *networks.parameters)


def by_autograd(networks, loss):
    """Gradients of a loss of the score, loss(energy) -> (n, B), averaged over the batch; the energy's constant gets 0."""
    for p in networks.parameters:
        p.requires_grad_(True)
    value = loss(networks.energy).mean(1).sum()
    gradients = torch.autograd.grad(value, networks.parameters[:-1])
    for p in networks.parameters:
        p.requires_grad_(False)
    return [*gradients, torch.zeros_like(networks.parameters[-1])]


def phases(networks, x_data, x_even):
    """Minus eq. (5): +1/B on x_data (n, B, d), minus exp(-E)/Z on points x_even (n, N, d) spread evenly over space; the
    second term, an integral and Z with it, is as exact as the points are dense."""
    energy, _, layers = networks.signals(torch.cat([x_data, x_even], 1))
    positive, negative = energy.tensor_split([x_data.shape[1]], 1)
    a = torch.cat([torch.full_like(positive, 1 / x_data.shape[1]), -(-negative).softmax(1)], 1)
    return networks.weigh(layers, a)


def noise_phases(networks, x_data, x_noise, noise_log_p):
    """NCE's gradient: x_data (n, B, d) against x_noise (n, N, d) of log density noise_log_p(x); E holds log Z."""
    x, b = torch.cat([x_data, x_noise], 1), x_data.shape[1]
    is_data, ratio = (torch.arange(x.shape[1], device=x.device) < b)[None], x_noise.shape[1] / b
    energy, _, layers = networks.signals(x)
    return networks.weigh(layers, nce_gradient(-energy, noise_log_p(x), is_data, ratio))


def rival_phases(networks, x_data, others, w=1.0):
    """Energy discrepancy's gradient, of eq. (6): x_data (n, B, d) against its rivals (n, B, M, d)."""
    n, b, n_rivals, _ = others.shape
    energy, _, layers = networks.signals(torch.cat([x_data, others.flatten(1, 2)], 1))
    differences = energy[:, :b, None] - energy[:, b:].view(n, b, n_rivals)
    kept = torch.cat([differences, torch.full_like(differences[..., :1], math.log(w))], -1).softmax(-1)[..., :-1] / b
    return networks.weigh(layers, torch.cat([kept.sum(-1), -kept.flatten(1)], 1))


# %% 4a. The data, and how good a trained network is
# Three densities in the plane, each with its exact log density and score. A plane can be summed, so nothing below rests on
# a sample: log Z, and with it the gap KL(data || model), come from a grid.


class Mixture:
    """Equal Gaussians at `centres` (C, d) with standard deviations `std` (C, d) along the axes.

    log N(x; centre, std²) is linear in [x, x²]: `exponents` (C, 2d) hold its factors, `offsets` (C, 1) the rest, and
    `slopes` (2d, C) what each component adds to the score, a pull and a stiffness. Points stand last inside: a softmax over
    few components is several times as fast when it runs along many points.
    """

    def __init__(self, centres, std):
        self.centres, self.std = centres, std.expand_as(centres)
        precision = self.std**-2
        self.exponents = torch.cat([precision * centres, -precision / 2], 1)
        self.slopes = torch.cat([precision * centres, -precision], 1).mT
        log_scale = (self.std * math.sqrt(2 * math.pi)).log() + precision * centres**2 / 2
        self.offsets = -log_scale.sum(1, keepdim=True) - math.log(len(centres))

    def sample(self, n):
        which = torch.randint(len(self.centres), (n,), device=self.centres.device)
        return self.centres[which] + self.std[which] * torch.randn(n, self.centres.shape[1], device=self.centres.device)

    def log_joint(self, x):
        """log of (1/C) N(x; centre, std²) for each component, (..., C, n); x (..., n, d)."""
        return self.exponents @ torch.cat([x.mT, x.mT**2], -2) + self.offsets

    def log_density(self, x):
        return self.log_joint(x).logsumexp(-2)

    def score(self, x):
        share = self.log_joint(x).softmax(-2)  # which component x comes from
        pull, stiffness = (self.slopes @ share).chunk(2, -2)
        return torch.addcmul(pull, x.mT, stiffness).mT


class Squares:
    """Uniform on four squares with edge 2·half centred at (±middle, ±middle): its density has edges, its score is 0."""

    half, middle = 1.5, 2.25

    def __init__(self, device):
        self.device = device

    def sample(self, n):
        corner = 2.0 * torch.randint(2, (n, 2), device=self.device) - 1
        return self.middle * corner + self.half * (2 * torch.rand(n, 2, device=self.device) - 1)

    def log_density(self, x):
        inside = (x.abs() - self.middle).abs().amax(-1) < self.half
        return torch.where(inside, -math.log(16 * self.half**2), -math.inf)

    def score(self, x):
        return torch.zeros_like(x)


BOX, START_STD = 6.0, 3.0  # the plane's window [-6, 6]², and the width of the Gaussian that training starts from


@functools.cache
def toy_sets(device):
    """The data sets: each has sample(n), log_density(x) and score(x)."""
    angle = torch.arange(8, device=device) * (math.pi / 4)
    eight = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    turn = 3 * math.pi * ((torch.arange(100, device=device) + 0.5) / 100).sqrt()  # even along the arm, nearly
    arm = 4.2 / (3 * math.pi) * torch.stack([-turn * turn.cos(), turn * turn.sin()], 1)
    return {
        "8 Gaussians": Mixture(eight, torch.full_like(eight[:, :1], 0.3)),
        "2 spirals": Mixture(torch.cat([arm, -arm]), torch.full_like(turn.repeat(2)[:, None], 0.15)),
        "4 squares": Squares(device),
    }


def sample_each(sets, n):
    """n points of each data set, (len(sets), n, d): a batch for as many networks side by side."""
    return torch.stack([data.sample(n) for data in sets])


class GridScores(NamedTuple):
    """How good each of n networks is."""

    gap: torch.Tensor  # KL(data || model) in nats, (n,)
    fisher: torch.Tensor  # E_p|∇ log p + ∇E|²/2, (n,)
    log_z: torch.Tensor  # (n,)
    density: torch.Tensor  # the model's, [i, j] at (x_i, y_j), (n, n_grid, n_grid)


def grid_cells(n, device):
    """The middles (n², 2) of n² cells that fill the window, and the log of a cell's area."""
    middle = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1) * BOX
    return torch.cartesian_prod(middle, middle), 2 * math.log(2 * BOX / n)


@functools.lru_cache(16)
def data_on_cells(data, n, device):
    """The data's log density (n²,), normalised over n² cells as the model's is, on whatever grid, and its score (n², 2)."""
    points, log_area = grid_cells(n, device)
    log_p = data.log_density(points)
    return log_p - log_p.logsumexp(0) - log_area, data.score(points)


def exact_scores(networks, sets, n):
    """GridScores of each network beside its data set in `sets`, summed over n² cells."""
    points, log_area = grid_cells(n, networks.weights[0].device)
    parts = [networks.passes(some.expand(len(sets), -1, -1)) for some in points.split(2000)]
    energy, gradient = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    log_z = (-energy).logsumexp(1) + log_area
    log_p, score = map(torch.stack, zip(*(data_on_cells(data, n, points.device) for data in sets), strict=True))
    p, log_ratio = log_p.exp() * math.exp(log_area), log_p + energy + log_z[:, None]
    gap = torch.where(p > 0, p * log_ratio, 0.0).sum(1)  # 0 log 0 = 0
    off = score + gradient
    density = (-energy - log_z[:, None]).exp().reshape(-1, n, n)
    return GridScores(gap, 0.5 * (p * off.square().sum(2)).sum(1), log_z, density)


def gap_on_points(networks, sets, log_z, n):
    """log p - log model, (len(sets), n), at n fresh points of each data set: its mean is the gap again."""
    x = sample_each(sets, n)
    log_p = torch.stack([data.log_density(some) for data, some in zip(sets, x, strict=True)])
    return log_p + networks.passes(x)[0] + log_z[:, None]


def draw(density, n):
    """n points (n, 2) from a density on the grid of exact_scores: a cell by its mass, a uniform point within."""
    size, cell = len(density), torch.multinomial(density.flatten(), n, replacement=True)
    corner = torch.stack([cell.div(size, rounding_mode="floor"), cell % size], 1)
    return ((corner + torch.rand(n, 2, device=density.device)) / size * 2 - 1) * BOX


def jittered_grid(n_cells, device):
    """One random point (1, n_cells², 2) in each cell of the window: even cover without a lattice to hide from."""
    left = torch.arange(n_cells, device=device) * (2 * BOX / n_cells) - BOX
    return torch.cartesian_prod(left, left) + 2 * BOX / n_cells * torch.rand(1, n_cells**2, 2, device=device)


# %% 4b. Maximum likelihood by Markov chains, and the chains' weights
# Eq. (5) needs samples of the model as it is *now*. Persistent chains follow it by a few MALA or HMC steps each update,
# and lag: they are samples of the models that were. Within a mode the lag is short; between modes chains hardly cross,
# and it is long. Energy is then pushed up where the model has been, not where it is; it overshoots, and swings. A small
# learning rate keeps the swings small and learns slowly. Jarzynski (1997): let the chains carry weights. When E_old
# becomes E_new, give each chain
#     log w <- log w + E_old(x) - E_new(x)          then move x by a kernel that keeps exp(-E_new).                   (7)
# Then Σ w f(x)/Σ w estimates E_model f *without any crossing* (module 01's AIS, with learning as the annealing path), and
# mean w estimates Z/Z_start, for chains that the learning does not depend on. When the effective sample size falls below
# half, resample in proportion to w, and set w = 1 (Carbone et al. 2023 train images so).
# One detail matters with few chains: in which order to weigh, move and update. The update raises E at exactly the points
# where the negative phase was taken: measure the weight there and every chain seems too high. So, for log Z's sake, take the
# gradient first, *then move* the chains under the old energy, then change the parameters and weigh. The gradient then knows
# the points at which its effect is measured only through a short move. Section `order` measures what is left, in nats of
# log Z.


def resample(log_w):
    """Indices (N,) by systematic resampling (one uniform number, N even strides) in proportion to exp(log_w) (N,)."""
    n, cumulative = len(log_w), log_w.softmax(0).cumsum(0)
    strides = (torch.arange(n, device=log_w.device) + torch.rand(1, device=log_w.device)) / n
    return torch.searchsorted(cumulative, strides).clamp(max=n - 1)


def keep_or_move(log_ratio, new, old):
    """Metropolis' test: (x, E, ∇E) of `new` where accepted, of `old` elsewhere, and the share accepted (n, 1)."""
    yes = torch.rand_like(log_ratio).log() < log_ratio
    tests = (yes[..., None], yes, yes[..., None])
    return *(torch.where(*each) for each in zip(tests, new, old, strict=True)), yes.float().mean(1, keepdim=True)


def mala_step(forces, x, energy, gradient, step_size):
    """One step of module 01's MALA on forces(x) -> (E, ∇E), E and ∇E at x known: x, E, ∇E, accepted share. x is (n, N, d)
    and step_size (n, 1), for n energies side by side."""
    noise, wide = torch.randn_like(x), step_size[..., None]
    proposal = x - 0.5 * wide * gradient + wide**0.5 * noise
    e_new, g_new = forces(proposal)
    back = x - proposal + 0.5 * wide * g_new
    log_ratio = energy - e_new - back.square().sum(-1) / (2 * step_size) + noise.square().sum(-1) / 2
    return keep_or_move(log_ratio, (proposal, e_new, g_new), (x, energy, gradient))


def hmc_step(forces, x, energy, gradient, step_size, n_leapfrog=2):
    """One trajectory of module 01's HMC with leapfrog step √step_size; arguments and result as for mala_step."""
    h, p = step_size[..., None] ** 0.5, torch.randn_like(x)
    start, e_new, g_new, y = energy + p.square().sum(-1) / 2, energy, gradient, x
    for _ in range(n_leapfrog):
        p = p - 0.5 * h * g_new
        y = y + h * p
        e_new, g_new = forces(y)
        p = p - 0.5 * h * g_new
    return keep_or_move(start - e_new - p.square().sum(-1) / 2, (y, e_new, g_new), (x, energy, gradient))


class ByChains(NamedTuple):
    """How chains are run: `n_moves` of a kernel between two updates, its step adapted to a share of accepted proposals."""

    kernel: Callable = mala_step
    n_moves: int = 3
    acceptance: float = 0.6
    weighted: bool = True
    move_first: bool = True  # move the chains between the gradient and the update, as above


class WeightedChains:
    """N weighted chains of each of n networks, which follow them as they change: eq. (7)."""

    def __init__(self, networks, n_chains, how):
        n, d = networks.weights[0].shape[:2]
        self.how, self.x = how, networks.std * torch.randn(n, n_chains, d, device=networks.weights[0].device)
        self.log_w, self.log_z = self.x.new_zeros(n, n_chains), self.x.new_zeros(n)  # Z = 1 at the start
        self.step_size = self.x.new_full((n, 1), 0.1)
        self.energy, self.gradient = networks.passes(self.x)

    def weigh(self, energy, gradient):
        """Eq. (7)'s weights for the new energy (n, N) at the chains, and its gradient there."""
        self.log_w += self.energy - energy
        self.energy, self.gradient = energy, gradient

    def share(self):
        """Each chain's share (n, N) in the negative phase."""
        return self.log_w.softmax(1) if self.how.weighted else torch.full_like(self.log_w, 1 / self.log_w.shape[1])

    def mean_log_z(self):
        """log Z (n,) by the mean of the weights."""
        return self.log_z + self.log_w.logsumexp(1) - math.log(self.log_w.shape[1])

    def resample_if_uneven(self):
        """Where the effective sample size is less than half, resample; the mean weight goes into log_z."""
        uneven = 1 / self.log_w.softmax(1).square().sum(1) < self.log_w.shape[1] / 2
        self.log_z = torch.where(uneven, self.mean_log_z(), self.log_z)
        for i in uneven.nonzero().flatten().tolist():
            keep = resample(self.log_w[i])
            for state in (self.x, self.energy, self.gradient):
                state[i] = state[i, keep]
            self.log_w[i] = 0.0

    def move(self, networks):
        """`n_moves` steps under the networks as they are."""
        if self.how.weighted:
            self.resample_if_uneven()
        for _ in range(self.how.n_moves):
            self.x, self.energy, self.gradient, accepted = self.how.kernel(
                networks.passes, self.x, self.energy, self.gradient, self.step_size
            )
            self.step_size = (self.step_size * (0.1 * (accepted - self.how.acceptance)).exp()).clamp(max=1.0)


def train_by_chains(networks, sample, how, n_steps, n_chains, batch_size, rate, watch=None):
    """Maximum likelihood, eq. (5), by persistent chains; sample(B) -> (n, B, d). Returns the chains, weighed at the end.

    watch(step, networks, chains) is called before each update.
    """
    chains, adam, label = (
        WeightedChains(networks, n_chains, how),
        Adam(networks.parameters, clip=1.0),
        how.kernel.__name__[:-5],
    )
    torch.set_flush_denormal(True)  # as in train
    for step in Progress(range(n_steps), label):
        # one pass at the new parameters weighs the chains, starts their next move, and gives eq. (5)
        x = sample(batch_size)
        energy, slopes, layers = networks.signals(torch.cat([x, chains.x], 1))
        chains.weigh(energy[:, batch_size:], slopes[:, batch_size:])
        if watch:
            watch(step, networks, chains)
        if not how.move_first:
            chains.move(networks)
            layers = networks.signals(torch.cat([x, chains.x], 1))[2]
        share = chains.share()
        gradients = networks.weigh(layers, torch.cat([share.new_full((len(x), batch_size), 1 / batch_size), -share], 1))
        if how.move_first:
            chains.move(networks)
        adam.step(gradients, annealed(rate, step / n_steps))
    torch.set_flush_denormal(False)
    adam.use_average()
    chains.weigh(*networks.passes(chains.x))
    must_be_finite(f"maximum likelihood by chains ({label})", *networks.parameters, chains.x, chains.mean_log_z())
    return chains


# %% 4c. Which trainer do I take?
# Every trainer below trains the same networks on the same data for about the same time on a CPU: the cheaper its step, the
# more steps it gets (`share`). Its rate, and the noise of those that the command lists, was chosen on validation points by
# one command for all (tests/benchmarks/score_tuning.py), at the full budget. Not tuned are the noise of NCE, of falling
# score matching and of sliced, the widest noise, clipping and Adam's memory. What a trainer needs stands first in its row.
# Score matching and denoising appear twice, with one noise as in their papers and with noise that falls from wide to narrow:
# the wide noise joins the modes, and section 5 shows what a narrow one alone cannot see.


def grid_phases(networks, x, noise, progress):
    """Exact likelihood up to Monte Carlo: one point to a cell, 0.5 wide."""
    return phases(networks, x, jittered_grid(24, x.device).expand(len(x), -1, -1))


def uniform_noise_phases(networks, x, noise, progress):
    """NCE against four times as many points, uniform on the window [-noise, noise]²."""
    points = noise * (2 * torch.rand(len(x), 4 * x.shape[1], 2, device=x.device) - 1)
    return noise_phases(networks, x, points, lambda y: torch.full_like(y[..., 0], -2 * math.log(2 * noise)))


def discrepancy_phases(networks, x, noise, progress):
    """Energy discrepancy, σ = noise, with four rivals a datum."""
    return rival_phases(networks, x, rivals(x, noise, 4))


def denoising_phases(networks, x, noise, progress):
    """Plain denoising: eq. (4) at one σ = noise, drawn once a datum."""
    n = torch.randn_like(x)
    return by_autograd(networks, lambda energy: denoising_matching(energy, x, n, noise))


def matching_phases(networks, x, noise, progress):
    """Score matching of data blurred by σ = noise: it needs a density without edges."""
    x = x + noise * torch.randn_like(x)
    return by_autograd(networks, lambda energy: implicit_matching(energy, x))


def sliced_phases(networks, x, noise, progress):
    """The same, sliced."""
    x, v = x + noise * torch.randn_like(x), torch.randn_like(x)
    return by_autograd(networks, lambda energy: sliced_matching(energy, x, v))


def falling(progress, narrowest, widest=2.0):
    """A noise that falls geometrically from `widest` to `narrowest` over the first 80 % of a training, and stays."""
    return max(narrowest, widest * (narrowest / widest) ** (progress / 0.8))


def with_falling(gradient):
    """The same objective while its noise falls to `noise`."""
    return lambda networks, x, noise, progress: gradient(networks, x, falling(progress, noise), progress)


def falling_denoising_phases(networks, x, noise, progress):
    """Denoising while σ falls to `noise`, made quiet. Half of the points keep a random σ of 0.3 to 1.5, with a small weight:
    they hold the energy between the modes, where narrow noise never goes. Noise comes in pairs ±n, whose leading errors
    cancel; and the target is E[n | x̃] over the clean points of the batch that may have become x̃ (Xu, Tong & Jaakkola
    2023), not only the one that did. Blur alone costs the squares 0.032 nats at σ = 0.05 and 0.064 at 0.1.
    """
    narrow = falling(progress, noise)
    sigma, n = torch.full_like(x[..., :1], narrow), torch.randn_like(x)
    half = sigma[:, : sigma.shape[1] // 2]
    half.copy_((0.3 * 5 ** torch.rand_like(half)).clamp(min=narrow))
    weight = torch.where(sigma > narrow, 0.15 * (narrow / sigma) ** 2, 1.0)[..., 0].repeat(1, 2)
    sigma = sigma.repeat(1, 2, 1)
    noisy = x.repeat(1, 2, 1) + sigma * torch.cat([n, -n], 1)
    clean, where = torch.empty_like(noisy), torch.arange(x.shape[1], device=x.device)
    for rows in where.split(1000):  # E[x | x̃] from the batch; from parts of a large one, as all pairs' distances are needed
        both = torch.cat([rows, rows + len(where)])  # +n and -n
        nearness = -torch.cdist(noisy[:, both], x[:, rows]).square() / (2 * sigma[:, both] ** 2)
        clean[:, both] = nearness.softmax(2) @ x[:, rows]
    return by_autograd(networks, lambda energy: weight * denoising_matching(energy, clean, (noisy - clean) / sigma, sigma))


class TunedTrainer(NamedTuple):
    """A trainer, its tuned settings, and how it is drawn."""

    needs: str  # beside data
    style: tuple  # colour, marker, line
    share: float  # of n_steps (of n_chain_steps where chains run)
    rate: float
    noise: float = 0.0
    gradient: Callable | None = None  # (networks, x, noise, progress) -> list
    of_scores: bool = False  # gradients of slopes are noisier: clipped, and with a longer memory
    chains: ByChains | None = None


SECOND = "2nd derivatives"
TRAINERS = {
    "likelihood on a grid": TunedTrainer("Z on a grid", (BLUE, "o", "-"), 1.0, 3e-2, 0.0, grid_phases),
    "NCE": TunedTrainer("a noise density", (GREEN, "s", "-"), 0.9, 1e-2, BOX, uniform_noise_phases),
    "energy discrepancy": TunedTrainer("a blur", (PURPLE, "D", "-"), 0.9, 3e-2, 1.0, discrepancy_phases),
    "Langevin, weighted": TunedTrainer("chains, weights", (BROWN, "^", "-"), 1.0, 1e-2, chains=ByChains()),
    "HMC, weighted": TunedTrainer("chains, weights", (OLIVE, "v", "-"), 1.3, 1e-2, chains=ByChains(hmc_step, 1, 0.65)),
    "Langevin, plain": TunedTrainer("chains", (BROWN, "^", ":"), 1.0, 1e-3, chains=ByChains(weighted=False)),
    "denoising, falling": TunedTrainer("noise levels", (RED, "o", "-"), 0.8, 1e-2, 0.05, falling_denoising_phases, True),
    "denoising, one noise": TunedTrainer("a noise level", (RED, "o", ":"), 2.2, 3e-3, 0.4, denoising_phases, True),
    "score matching, falling": TunedTrainer(SECOND, (ORANGE, "P", "-"), 0.4, 3e-3, 0.1, with_falling(matching_phases), True),
    "score matching, one blur": TunedTrainer(SECOND, (ORANGE, "P", ":"), 0.4, 3e-3, 0.1, matching_phases, True),
    "sliced, falling": TunedTrainer(SECOND, (CYAN, "X", "-"), 0.6, 3e-3, 0.1, with_falling(sliced_phases), True),
}
BUDGETS = (0.25, 1.0)  # of the steps: a point each in the figure


def steps_of(trainer, config, budget=1.0):
    """How many optimiser steps a trainer gets."""
    return max(int(budget * trainer.share * (config.n_chain_steps if trainer.chains else config.n_steps)), 2)


def train_by(name, trainer, networks, sets, config, n_steps, watch=None):
    """Train networks side by side, one for each data set in `sets`; returns the seconds for each, without the watching."""
    start = time.perf_counter()
    if trainer.chains:
        draw_batch = functools.partial(sample_each, sets)
        size = config.n_chains, config.batch_size
        train_by_chains(networks, draw_batch, trainer.chains, n_steps, *size, trainer.rate, watch)
    else:

        def gradient(networks, progress):
            return trainer.gradient(networks, sample_each(sets, config.batch_size), trainer.noise, progress)

        clip, b2 = (10.0, 0.999) if trainer.of_scores else (None, 0.99)
        train(networks, gradient, n_steps, trainer.rate, name, clip, b2)
    return (time.perf_counter() - start - (watch.seconds if watch else 0.0)) / len(sets)


def exact_scatter(shares, n):
    """By how much the shares of n independent draws are off on average, half the sum of |p̂ - p| over modes of probability
    `shares` (..., C): De Moivre's mean deviation of a binomial, E|X - np| = 2 m (1 - p) P(X = m), m = floor(np) + 1."""
    m = np.floor(n * shares) + 1
    return (m * (1 - shares) * scipy.stats.binom.pmf(m, n, shares)).sum(-1) / n


def mode_shares(x, weights, centres, reach):
    """Mass (..., C + 1) of weighted points x (..., N, 2) within `reach` of each of `centres` (C, 2), and elsewhere."""
    distance, nearest = torch.cdist(x, centres.expand(*x.shape[:-2], -1, -1)).min(-1)
    where = torch.where(distance < reach, nearest, len(centres))
    return torch.zeros(*x.shape[:-2], len(centres) + 1, device=x.device).scatter_add_(-1, where, weights)


class Watch:
    """What happens on the way on the first `n` networks, all on the mixture `data`: every `every` updates the gap, half the
    sum of |share of the chains - share of the model| over the modes, the same of independent points; and frames."""

    def __init__(self, data, n, every):
        self.data, self.n, self.every, self.frames, self.seconds = data, n, every, [], 0.0
        self.steps, self.gap, self.behind, self.scatter = [], [], [], []

    def __call__(self, step, networks, chains):
        if step % self.every == 0:
            start = time.perf_counter()
            self.look(step, networks, chains)
            self.seconds += time.perf_counter() - start

    def look(self, step, networks, chains):
        """Measure once."""
        found, x = exact_scores(networks.part(slice(self.n)), [self.data] * self.n, 96), chains.x[: self.n]
        cells, log_area = grid_cells(96, x.device)
        mass = found.density.flatten(1) * math.exp(log_area)
        model = mode_shares(cells.expand(self.n, -1, -1), mass, self.data.centres, 1.2)
        off = mode_shares(x, chains.share()[: self.n], self.data.centres, 1.2) - model
        self.steps.append(step)
        self.gap.append(to_numpy(found.gap))
        self.behind.append(to_numpy(0.5 * off.abs().sum(1)))
        self.scatter.append(exact_scatter(to_numpy(model).astype(float).clip(0, 1), x.shape[1]))
        self.frames.append((to_numpy(found.density[0]), to_numpy(x[0, :400]), step))


class Trained(NamedTuple):
    """One trainer at one budget: gaps and Fisher divergences of n_trained networks on each data set, and more."""

    gap: dict  # {data set: (n_trained,)}
    fisher: dict
    density: dict  # {data set: (n_grid, n_grid)}, of the first network
    off: torch.Tensor  # log p - log model at fresh points, less the gap, (networks, points)
    seconds: float  # for one network
    watch: Watch | None

    @property
    def typical(self):
        """Geometric mean over the data sets of the mean gaps, nats."""
        return math.exp(np.mean([math.log(max(gap.mean().item(), 1e-9)) for gap in self.gap.values()]))

    @property
    def typical_sem(self):
        """Its standard error by the delta method; nan for one network."""
        means, sems = np.array([mean_and_sem(gap) for gap in self.gap.values()], dtype=float).T
        return self.typical * np.linalg.norm(sems / means.clip(1e-9)) / len(means)


def train_and_score(name, config, budget, device):
    """Trained: n_trained networks on each of the three data sets, side by side."""
    named, trainer, n_steps = toy_sets(device), TRAINERS[name], steps_of(TRAINERS[name], config, budget)
    sets = [data for data in named.values() for _ in range(config.n_trained)]
    is_watched = trainer.chains and budget == BUDGETS[-1]
    watch = Watch(named["8 Gaussians"], config.n_trained, max(n_steps // 36, 1)) if is_watched else None
    networks = Networks(len(sets), 2, config.width, 3, START_STD, device)
    seconds = train_by(name, trainer, networks, sets, config, n_steps, watch)
    scores = exact_scores(networks, sets, config.n_grid)
    off = (gap_on_points(networks, sets, scores.log_z, 2000) - scores.gap[:, None]).cpu().double()
    by_set = [dict(zip(named, each.cpu().split(config.n_trained), strict=True)) for each in scores]
    return Trained(*by_set[:2], {key: each[0] for key, each in by_set[3].items()}, off, seconds, watch)


def watch_hasty_chains(config, device):
    """The Watch of plain chains that learn at the weighted ones' rate, on 8 Gaussians: what a low rate saves them from."""
    trainer, data = TRAINERS["Langevin, plain"]._replace(rate=TRAINERS["Langevin, weighted"].rate), toy_sets(device)
    sets, n_steps = [data["8 Gaussians"]] * config.n_trained, steps_of(trainer, config)
    watch = Watch(sets[0], len(sets), max(n_steps // 36, 1))
    networks = Networks(len(sets), 2, config.width, 3, START_STD, device)
    train_by("Langevin, hasty", trainer, networks, sets, config, n_steps, watch)
    return watch


def as_near(values):
    """Names of {name: (mean, standard error)} that are not told apart from the least, which comes first: within two standard
    errors of the difference. An unknown error (nan) tells apart."""
    best, *others = sorted(values, key=lambda name: values[name][0])
    least, error = values[best]
    return [best, *(name for name in others if values[name][0] - least <= 2 * math.hypot(values[name][1], error))]


def compare_trainers(config, device):
    """{trainer: [Trained at each of BUDGETS]}."""
    return {name: [train_and_score(name, config, budget, device) for budget in BUDGETS] for name in TRAINERS}


def draw_gaps(found):
    """Gap against seconds, a panel a data set; each trainer at both budgets, and what it needs."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 6.6), layout="constrained", sharey=True)
    for ax, key in zip(axes, toy_sets("cpu"), strict=True):
        best, *ties = as_near({name: mean_and_sem(runs[-1].gap[key]) for name, runs in found.items()})
        for name, runs in found.items():
            colour, marker, line = TRAINERS[name].style
            gaps = np.array([mean_and_sem(run.gap[key]) for run in runs])
            errors = np.nan_to_num(np.minimum(gaps[:, 1], 0.9 * gaps[:, 0]).clip(0))
            style = {"color": colour, "marker": marker, "ls": line, "ms": 7, "capsize": 3, "lw": 2}
            style |= {"fillstyle": "full" if line == "-" else "none", "label": f"{name} ({TRAINERS[name].needs})"}
            ax.errorbar([run.seconds for run in runs], gaps[:, 0], errors, **style)
        least = found[best][-1].gap[key].mean()
        others = f"\n({len(ties)} not told apart)" if ties else ""
        ax.set(title=f"{key}: {least:.3f} nats\nby {best}{others}", xlabel="seconds a network", yscale="log")
        ax.set_xlim(left=0)
    axes[0].set(ylabel="gap to the data (nats)")
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, title="trainer (what it needs beside data)")
    return fig


GALLERY = ["likelihood on a grid", "NCE", "energy discrepancy", "Langevin, weighted", "denoising, falling"]
GALLERY += ["denoising, one noise", "score matching, falling"]


def draw_sample_gallery(found, key="2 spirals"):
    """Samples, density and energy of one data set and of the first network of some trainers."""
    truth, n = toy_sets("cpu")[key], len(found["NCE"][-1].density[key])
    x, y = grid_cells(n, "cpu")[0].view(n, n, 2).numpy().transpose(2, 0, 1)
    columns = {"data": truth.log_density(grid_cells(n, "cpu")[0]).exp().view(n, n)}
    columns |= {name: found[name][-1].density[key] for name in GALLERY}
    fig, square = plt.figure(figsize=(15, 6.2), layout="constrained"), {"xticks": [], "yticks": [], "aspect": "equal"}
    square |= {"xlim": (-BOX, BOX), "ylim": (-BOX, BOX)}
    for i, (name, density) in enumerate(columns.items()):
        points = draw(density, 1500) if i else truth.sample(1500)
        title = name.replace(", ", ",\n").replace("likelihood ", "likelihood\n").replace("energy ", "energy\n")
        ax, below = fig.add_subplot(3, 8, i + 1, title=title, **square), fig.add_subplot(3, 8, i + 9, **square)
        ax.scatter(*points.numpy().T, s=1, c="tab:orange" if i else "tab:blue")
        below.contourf(x, y, density.numpy(), np.linspace(0, columns["data"].max().item(), 10), cmap="magma", extend="max")
        energy = -np.log(np.maximum(density.numpy(), 1e-30))
        surface = fig.add_subplot(3, 8, i + 17, projection="3d", xticks=[], yticks=[], zticks=[])
        surface.plot_surface(x, y, np.minimum(energy, energy.min() + 8), cmap="viridis", rcount=60, ccount=60)
        surface.view_init(80, -60)
        if i == 0:
            surface.text2D(-0.06, 0.5, "energy", transform=surface.transAxes, rotation=90, va="center", ha="center")
    for ax, label in zip(fig.axes, ("samples", "density"), strict=False):
        ax.set_ylabel(label)
    fig.suptitle(f"{key}: samples (drawn from the grid density), density, energy cut 8 nats above its minimum")
    return fig


def draw_chains(watches):
    """On the way, 8 Gaussians: the gap, and how far the chains' shares of the modes are behind the model's."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained")
    styles = {name: TRAINERS[name].style for name in watches if name in TRAINERS} | {"Langevin, hasty": ("k", "", ":")}
    for name, watch in watches.items():
        colour, _, line = styles[name]
        steps = np.array(watch.steps) / max(watch.steps[-1], 1)
        for ax, values in zip(axes, (watch.gap, watch.behind), strict=True):
            values = np.array(values)
            ax.plot(steps, values.mean(1), line, color=colour, lw=2.5, label=name if ax is axes[0] else None)
            ax.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.2, lw=0)
    plain = watches["Langevin, plain"]
    steps = np.array(plain.steps) / max(plain.steps[-1], 1)
    axes[1].plot(steps, np.mean(plain.scatter, 1), "--", color="0.5", lw=2, label="as many independent points")
    axes[0].set(yscale="log", xlabel="share of the updates", ylabel="gap (nats)", title="8 Gaussians: what is learned")
    axes[1].set(yscale="log", xlabel="share of the updates", ylabel="modes' shares, chains off model")
    axes[1].set_title("and how far the chains are behind")
    fig.legend(loc="outside lower center", ncols=5)
    return fig


def save_gif(run, frames, name):
    """Frames (density (n, n), chains (N, 2), update) as an animation."""
    fig, ax = plt.subplots(figsize=(4, 4.2))
    image = ax.imshow(frames[-1][0].T, origin="lower", extent=(-BOX, BOX, -BOX, BOX), cmap="magma")
    dots = ax.scatter(*frames[0][1].T, s=3, c="white", alpha=0.6, lw=0)
    ax.set(xticks=[], yticks=[], xlim=(-BOX, BOX), ylim=(-BOX, BOX))
    writer = PillowWriter(fps=8)
    with run.whole(name) as path, writer.saving(fig, path, dpi=70):
        for density, chains, update in frames:
            image.set(data=density.T, clim=(0, density.max()))
            dots.set_offsets(chains)
            ax.set_title(f"chains on the model, update {update}")
            writer.grab_frame()
    plt.close(fig)


def record_trainers(run, found):
    """The metrics of compare_trainers at the full budget."""
    for name, runs in found.items():
        for key, gap in runs[-1].gap.items():
            best = found["likelihood on a grid"][-1].gap[key].mean()
            run.metric(f"{key}: {name} (nats)", *mean_and_sem(gap), against=("likelihood on a grid", best))
        fisher = mean_and_sem(runs[-1].fisher["8 Gaussians"])
        run.metric(f"Fisher: {name}", *fisher, against=("8 Gaussians' own score", 0))
        run.metric(f"{name}: time (s)", runs[-1].seconds)
    off = found["likelihood on a grid"][-1].off.flatten()  # of mean 0, up to the width of the grid's cells
    mean, sem = mean_and_sem(off)
    within = tolerance(sem, len(off)) if run.config.n_grid >= 120 else None
    run.metric("gap on fresh points less the grid's (nats)", mean, sem, ("the same integral", 0), within)


def record_chains(run, watches):
    """What holds chains back, on 8 Gaussians: their shares of the modes against the model's, in the second half."""
    for name, watch in watches.items():
        late = slice(len(watch.steps) // 2, None)
        behind, scatter = (np.array(each)[late].mean(0) for each in (watch.behind, watch.scatter))
        run.metric(f"{name}: shares off", *mean_and_sem(behind), against=("as many independent points", scatter.mean()))
        run.metric(f"{name}: last gap (nats)", *mean_and_sem(watch.gap[-1]), against=("the data", 0))
    lags = [np.array(watches[f"Langevin, {kind}"].behind) for kind in ("hasty", "plain")]
    (hasty, one), (plain, other) = (mean_and_sem(lag[len(lag) // 2 :].mean(0)) for lag in lags)
    word = "nearer to" if hasty - plain > 2 * math.hypot(one, other) else "not measurably nearer to"
    run.say(f"in the second half plain chains are {plain:.2f} behind the model at their own rate, {hasty:.2f} at the "
            f"weighted ones': slow learning keeps them {word} it")  # fmt: skip


def decided_by_gaps(found):
    """What the gaps decide, a sentence each."""
    mean = {name: runs[-1].typical for name, runs in found.items()}
    ranked = sorted(mean, key=mean.get)
    scores = [name for name in ranked if TRAINERS[name].of_scores]
    worst = max(gap.mean().item() for gap in found[scores[0]][-1].gap.values())
    first, *ties = as_near({name: (mean[name], runs[-1].typical_sem) for name, runs in found.items()})
    others = f"not told apart from {'; '.join(ties)}" if ties else f"then {ranked[1]}"
    yield f"least over the three sets (geometric mean): {first}, {mean[first]:.3f} nats; {others}"
    place = ranked.index("energy discrepancy") + 1
    yield f"without Z, chains, noise density or scores: energy discrepancy, {mean['energy discrepancy']:.3f}, place {place}"
    yield f"by scores alone the best is {scores[0]}, {mean[scores[0]]:.2f}, on its worst set {worst:.2f} nats"
    pairs = {"falling noise": ("denoising, one noise", "denoising, falling")}
    pairs |= {"a falling blur": ("score matching, one blur", "score matching, falling")}
    pairs |= {"weights": ("Langevin, plain", "Langevin, weighted")}
    for what, (plain, better) in pairs.items():
        yield f"without {what}: {plain} is {mean[plain] / mean[better]:.1f} times as far away as {better}"


def section_trainers(run):
    """Eleven trainers of one network, each tuned alike: what is left to the data, in which time, and what each needs."""
    if run.config.n_grid < 12:
        sys.exit("trainers needs --n-grid 12 at least: on a coarser grid no cell would lie in a square")
    found = compare_trainers(run.config, run.device)
    record_trainers(run, found)
    watches = {name: runs[-1].watch for name, runs in found.items() if runs[-1].watch}
    watches["Langevin, hasty"] = watch_hasty_chains(run.config, run.device)
    record_chains(run, watches)
    run.figure(draw_gaps(found), "gaps")
    run.figure(draw_sample_gallery(found), "gallery")
    run.figure(draw_chains(watches), "chains")
    save_gif(run, found["Langevin, weighted"][-1].watch.frames, "trainers_langevin.gif")
    for sentence in decided_by_gaps(found):
        run.say(sentence)


# %% 4d. In which order: weigh, move, update
# How good is log Z from the chains' weights? Three answers, each beside the grid's log Z of the same final network:
#     move first      gradient, move, update, weigh: the order above,
#     update first    move, gradient, update, weigh: the weight is taken where the gradient was,
#     onlookers       chains that follow the same path of networks, and had no say in it.
# For onlookers eq. (7) is an identity: a kernel that keeps exp(-E_old) leaves E[w f(x)] = (Z_old/Z_start) E_old f, the new
# weight changes Z_old into Z_new, resampling keeps the mean. So E[mean w] = Z/Z_start at any length and with any number of
# chains (Jarzynski 1997; Del Moral 2004); the logarithm reads low by half the relative variance of mean w (Jensen). Chains
# that learning has looked at lose the identity: the energy was raised *because* they were there.


def log_z_of_onlookers(path, n_chains, how, step_size):
    """log Z (n,) of the last networks by chains that follow `path`, a list of Networks, at a fixed step size."""
    chains = WeightedChains(path[0], n_chains, how)
    for old, new in zip(path, path[1:], strict=False):
        chains.step_size.fill_(step_size)  # adapted to these chains, the kernel would depend on what it moves
        chains.move(old)
        chains.weigh(*new.passes(chains.x))
    return chains.mean_log_z()


class Order(NamedTuple):
    """Errors of log Z from the weights (nats), and gaps, of n networks."""

    n_chains: int
    errors: dict  # {order: (n,)}
    gaps: dict  # {order: (n,)}, of those that learned


def compare_orders(config, n_chains, device):
    """Train narrow networks on 8 Gaussians in both orders, and follow the first ones' path by onlookers."""
    sets, errors, gaps = [toy_sets(device)["8 Gaussians"]] * config.n_seeds, {}, {}
    for name, how in (("move first", ByChains()), ("update first", ByChains(move_first=False))):
        networks, path = Networks(len(sets), 2, 32, 2, START_STD, device), []
        chains = train_by_chains(
            networks, functools.partial(sample_each, sets), how, config.n_order_steps, n_chains, config.batch_size, 1e-2,
            lambda step, networks, chains, path=path: path.append(networks.part(slice(None))),
        )  # fmt: skip
        scores = exact_scores(networks, sets, config.n_grid)
        errors[name], gaps[name] = chains.mean_log_z().cpu() - scores.log_z, scores.gap
        if how.move_first:
            errors["onlookers"] = log_z_of_onlookers([*path, networks], n_chains, how, 0.05).cpu() - scores.log_z
    return Order(n_chains, errors, gaps)


ORDERS = {"move first": ("tab:brown", "^"), "update first": ("tab:gray", "v"), "onlookers": ("k", "o")}


def draw_orders(found):
    """The error of log Z of each network, for each order and number of chains."""
    fig, ax = plt.subplots(figsize=(9, 4.8), layout="constrained")
    for i, order in enumerate(found):
        for j, (name, (colour, marker)) in enumerate(ORDERS.items()):
            values, place = to_numpy(order.errors[name]), i + 0.22 * (j - 1)
            ax.plot(place + np.linspace(-0.05, 0.05, len(values)), values, marker, color=colour, alpha=0.5, ms=5)
            ax.plot([place - 0.09, place + 0.09], [values.mean()] * 2, color=colour, lw=4, label=None if i else name)
    means = {name: found[-1].errors[name].mean().item() for name in ORDERS}
    least = min(means, key=lambda name: abs(means[name]))
    ax.axhline(0, color="0.5", lw=1)
    ax.set_xticks(range(len(found)), [f"{order.n_chains} chains" for order in found])
    ax.set(title=f"log Z from the weights: {least} come nearest", ylabel="log Z, error (nats)")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def section_order(run):
    """Weigh, move, update: in which order? What learning has looked at no longer estimates log Z without bias."""
    config = run.config
    found = [compare_orders(config, max(config.n_chains // share, 2), run.device) for share in (8, 2)]
    for order in found:
        for name, errors in order.errors.items():
            run.metric(f"{name}, {order.n_chains} chains: log Z off", *mean_and_sem(errors), against=("the grid's", 0))
        ratios = order.errors["onlookers"].double().exp()
        mean, sem = mean_and_sem(ratios)
        within = None if config.n_grid < 120 else tolerance(sem, len(ratios))
        run.metric(f"onlookers, {order.n_chains} chains: Z / exact", mean, sem, ("Jarzynski", 1), within)
        for name, gaps in order.gaps.items():
            run.metric(f"{name}, {order.n_chains} chains: gap (nats)", *mean_and_sem(gaps), against=("the data", 0))
    run.figure(draw_orders(found), "log_z")
    first, last = ({name: each.mean().item() for name, each in order.errors.items()} for order in (found[0], found[-1]))
    run.say(f"{found[0].n_chains} chains: log Z is off by {first['move first']:+.2f} if they move first, "
            f"{first['update first']:+.2f} if not, {first['onlookers']:+.2f} for onlookers")  # fmt: skip
    last = ", ".join(f"{last[name]:+.2f}" for name in ("move first", "update first", "onlookers"))
    run.say(f"{found[-1].n_chains} chains: by {last}")


# %% 4e. In how many dimensions does it hold?
# Four clusters in d dimensions, two narrow and two wide, at ±3 along the first two axes, then every axis scaled to
# variance 1. One Gaussian, N(0, I), is where the energies start and where NCE takes its noise from; the density is exact in
# every d. There is no grid now. The gap needs log Z, by importance sampling from an even mixture of the data's own density
# and the start, with its effective sample size: a number of nats is given only where that is 10 % at least. Beside it
# stands the error of the score, E_p|∇ log p + ∇E|²/E_p|∇ log p|², which needs no Z: a Gaussian with the data's mean and
# variances has it too. By it the settings were chosen, one for all dimensions, by the same command as in the plane. The time
# is the same for all, and short: what gives out here gives out at this budget. What could, and why:
#     score matching      the Laplacian costs d backward passes: to take as long it gets 4/(d + 2) of the steps,
#     NCE                 KL(data || noise) grows as d, and a classifier that always wins learns nothing,
#     energy discrepancy  the rivals are σ√(2d) away from a datum, which then always wins, as in NCE,
#     weighted chains     an update moves E at all chains at once: log w varies more, the effective sample falls.


def clusters(d, device):
    """Two narrow and two wide clusters in d dimensions, scaled to mean 0 and variance 1 along each axis."""
    centres, std = torch.zeros(4, d), torch.tensor([[0.5], [0.5], [1.0], [1.0]])
    centres[[0, 1, 2, 3], [0, 0, 1, 1]] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    scale = (centres.square() + std.square()).mean(0).sqrt()
    return Mixture((centres / scale).to(device), (std / scale).to(device))


# Copied from 01_ebm_foundations.py: log_z_from_weights
def log_z_from_weights(log_w):
    """(log Z, its standard error, ESS), each (...), from log importance weights (..., N).

    Standard error by the delta method, std(w) / (mean(w) √N); ESS = (Σw)² / Σw² (Kong 1992), between 1 and N.
    """
    n = log_w.shape[-1]
    log_sum = log_w.logsumexp(-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(-1)).exp()
    return log_sum - math.log(n), ((1 / ess - 1 / n).clamp(min=0) * n / (n - 1)).sqrt(), ess


def gaussian_log_density(z, scale=1.0):
    """log N(z; 0, scale² I) in nats, z (..., d) -> (...)."""
    return -z.square().sum(-1) / (2 * scale**2) - z.shape[-1] * math.log(scale * math.sqrt(2 * math.pi))


class Away(NamedTuple):
    """How far each of n networks is from its data, by importance sampling."""

    gap: torch.Tensor  # nats, (n,)
    log_z: torch.Tensor  # (n,)
    log_z_sem: torch.Tensor  # (n,)
    ess: torch.Tensor  # effective share of the draws behind log Z, (n,)
    score: torch.Tensor  # E_p|∇ log p + ∇E|²/E_p|∇ log p|², (n,)

    @property
    def is_trusted(self):
        """Whether every log Z rests on enough draws."""
        return self.ess.min().item() >= 0.1

    @property
    def sem(self):
        """Standard error of the mean gap: of the networks' spread and of log Z's draws, which all networks share."""
        spread = self.gap.std().item() / len(self.gap) ** 0.5 if len(self.gap) > 1 else 0.0
        return math.hypot(spread, self.log_z_sem.max().item())


def draws_for(data, n):
    """Points (2 n, d): n from the data set, n from N(0, I)."""
    x = data.sample(n)
    return torch.cat([x, torch.randn_like(x)])


def measure_away(networks, data, points):
    """Away for n networks on one data set; points: draws_for it."""
    n_draws, x = len(points) // 2, points[: len(points) // 2]
    log_q = torch.logaddexp(data.log_density(points), gaussian_log_density(points)) - math.log(2)
    parts = [networks.passes(some.expand(len(networks.weights[0]), -1, -1)) for some in points.split(2000)]
    energy, gradient = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    log_z, sem, ess = (each.cpu() for each in log_z_from_weights((-energy - log_q).cpu().double()))
    gap = (data.log_density(x) + energy[:, :n_draws]).cpu().double().mean(1) + log_z
    off = (data.score(x) + gradient[:, :n_draws]).square().sum(2).mean(1) / data.score(x).square().sum(1).mean()
    return Away(gap, log_z, sem, ess / len(points), off.cpu().double())


def gaussian_noise_phases(networks, x, noise, progress):
    """NCE against four times as many points of N(0, noise² I)."""
    points = noise * torch.randn(len(x), 4 * x.shape[1], x.shape[2], device=x.device)
    return noise_phases(networks, x, points, lambda y: gaussian_log_density(y, noise))


WIDE = {  # as TRAINERS; share is of n_wide_steps
    "NCE": TunedTrainer("a noise density", (GREEN, "s", "-"), 1.3, 3e-2, 1.1, gaussian_noise_phases),
    "energy discrepancy": TunedTrainer("a blur", (PURPLE, "D", "-"), 1.3, 3e-2, 0.25, discrepancy_phases),
    "Langevin, weighted": TunedTrainer("chains, weights", (BROWN, "^", "-"), 0.8, 3e-2, chains=ByChains(n_moves=2)),
    "denoising, one noise": TunedTrainer("a noise level", (RED, "o", ":"), 1.6, 3e-2, 0.1, denoising_phases, True),
    "score matching": TunedTrainer(SECOND, (ORANGE, "P", ":"), 0.6, 3e-2, 0.0, matching_phases, True),
    "sliced": TunedTrainer(SECOND, (CYAN, "X", ":"), 1.1, 3e-2, 0.0, sliced_phases, True),
}
DIMENSIONS = (2, 8, 32, 128)


def wide_steps(trainer, d, config):
    """Optimiser steps in d dimensions: the exact Laplacian pays for its d backward passes."""
    price = 4 / (d + 2) if trainer.gradient is matching_phases else 1
    return max(int(price * trainer.share * config.n_wide_steps), 2)


def compare_dimensions(config, device):
    """{(name, d): (Away, seconds a network)} for every trainer of WIDE, and for the Gaussian that all start from."""
    found = {}
    for d in DIMENSIONS:
        data = clusters(d, device)
        points = draws_for(data, config.n_samples)  # the same for all: differences are surer than either
        start = Networks(config.n_trained, d, 64, 2, 1.0, device)
        found["one Gaussian", d] = measure_away(start, data, points), 0.0
        for name, trainer in WIDE.items():
            networks, sets = Networks(config.n_trained, d, 64, 2, 1.0, device), [data] * config.n_trained
            seconds = train_by(f"{name}, d = {d}", trainer, networks, sets, config, wide_steps(trainer, d, config))
            found[name, d] = measure_away(networks, data, points), seconds
    return found


def draw_dimensions(found):
    """The gap where log Z can be trusted, the error of the score, and the seconds, against the dimension."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 5.4), layout="constrained")
    for name in ("one Gaussian", *WIDE):
        colour, marker, line = WIDE[name].style if name in WIDE else ("k", ".", "--")
        style = {"color": colour, "marker": marker, "ls": line, "lw": 2, "capsize": 3}
        trusted = [d for d in DIMENSIONS if found[name, d][0].is_trusted]
        for ax, field, dims in ((axes[0], "gap", trusted), (axes[1], "score", DIMENSIONS)):
            rows = np.array([mean_and_sem(getattr(found[name, d][0], field)) for d in dims]).reshape(-1, 2)
            errors = np.nan_to_num(np.minimum(rows[:, 1], 0.9 * np.abs(rows[:, 0])))
            ax.errorbar(dims, rows[:, 0], errors, **style, label=name if ax is axes[1] else None)
        if name in WIDE:
            axes[2].plot(DIMENSIONS, [found[name, d][1] for d in DIMENSIONS], color=colour, marker=marker, ls=line, lw=2)
    lost = sum(not away.is_trusted for away, _ in found.values())
    axes[0].set(ylabel="gap to the data (nats)", title=f"gap; {lost} left out: Z rests on too few draws")
    best = min(WIDE, key=lambda name: found[name, 128][0].score.mean())
    axes[1].set(ylabel="mean squared error / mean square", title=f"error of the score; at d = 128 least by {best}")
    axes[2].set(ylabel="seconds a network", title="time")
    for ax in axes:
        ax.set(xlabel="dimension d", xscale="log", yscale="linear" if ax is axes[2] else "log")
        ax.set_xticks(DIMENSIONS, [str(d) for d in DIMENSIONS])
        ax.xaxis.minorticks_off()
    axes[2].set_ylim(bottom=0)
    fig.legend(loc="outside lower center", ncols=4)
    return fig


def record_dimensions(run, found):
    """The metrics of compare_dimensions: a number of nats only where it can be trusted."""
    for (name, d), (away, seconds) in found.items():
        gaussian, label = found["one Gaussian", d][0], f"d = {d}: {name}"
        if name == "one Gaussian":
            within = tolerance(away.log_z_sem[0].item(), 2 * run.config.n_samples)
            run.metric(f"{label}, log Z", away.log_z[0], away.log_z_sem[0], ("normalised", 0), within)
            run.metric(f"{label} (nats)", away.gap[0], against=("the data", 0))
            run.metric(f"{label}, score", away.score[0], against=("the data", 0))
            continue
        if away.is_trusted:
            run.metric(f"{label} (nats)", *mean_and_sem(away.gap), against=("one Gaussian", gaussian.gap.mean()))
        else:
            run.metric(f"{label}, draws", away.ess.min(), against=("no nats below a share of", 0.1))
        run.metric(f"{label}, score", *mean_and_sem(away.score), against=("one Gaussian", gaussian.score.mean()))
        run.metric(f"{label}, time (s)", seconds)
        if name == "score matching":
            run.metric(
                f"{label}, steps",
                wide_steps(WIDE[name], d, run.config),
                against=("sliced", wide_steps(WIDE["sliced"], d, run.config)),
            )


def reach(found):
    """Up to which dimension each trainer halves the error of one Gaussian's score, the farthest first."""
    upto = dict.fromkeys(WIDE, 0)
    for name in WIDE:
        for d in DIMENSIONS:  # from 2 on, without a gap
            if found[name, d][0].score.mean() > found["one Gaussian", d][0].score.mean() / 2:
                break
            upto[name] = d
    for d in sorted(set(upto.values()), reverse=True):
        names = ", ".join(name for name in WIDE if upto[name] == d)
        yield f"up to d = {d} {names}" if d else f"nowhere {names}"


def decided_in(found, d):
    """Who has the least gap and the best score in d dimensions: a gap counts if log Z can be trusted and it is below that of
    one Gaussian, where all energies began, by more than two standard errors."""
    start, aways = found["one Gaussian", d][0], {name: found[name, d][0] for name in WIDE}
    trusted = {name: (away.gap.mean().item(), away.sem) for name, away in aways.items() if away.is_trusted}
    gaps = {name: gap for name, (gap, sem) in trusted.items() if start.gap[0] - gap > 2 * math.hypot(sem, start.sem)}
    scores = {name: away.score.mean().item() for name, away in aways.items()}
    best, least = min(gaps, key=gaps.get, default=None), min(scores, key=scores.get)
    gap = f"least gap {gaps[best]:.2f} nats by {best}" if best else "no gap that can be trusted is below one Gaussian's"
    lost = [name for name in WIDE if name not in trusted]
    refused = f"; no nats for {'; '.join(lost)}" if lost else ""
    return f"{gap} (one Gaussian {start.gap[0]:.2f}); best score by {least} (error {scores[least]:.2g}){refused}"


def section_dimensions(run):
    """The same in 2, 8, 32 and 128 dimensions: where derivatives, the noise density and the chains' weights give out."""
    found = compare_dimensions(run.config, run.device)
    record_dimensions(run, found)
    run.figure(draw_dimensions(found), "table")
    for d in DIMENSIONS:
        run.say(f"d = {d}: {decided_in(found, d)}")
    run.say("half of one Gaussian's error of the score or less: " + "; ".join(reach(found)))


# %% 5. Where score matching is blind
# Two modes, weights w and 1 - w. Near either mode the other contributes nothing, and ∇ log p is that of one Gaussian,
# *whatever w*. Only between them does the score know w, and there p ~ 0: nobody is there to report. A wrong weight w'
# costs the likelihood
#     KL -> w log(w/w') + (1 - w) log((1 - w)/(1 - w'))        for modes at ±m far apart: a constant.
# What does it cost the score? With r the posterior of the right mode, the scores differ by (2m/s²)(r_w - r_w'), and r has
# log odds 2mx/s² - log(w/(1 - w)). Put u = 2mx/s². The density is w φ_s(x + m)(1 + e^u (1 - w)/w), φ_s(x + m) contains
# exp(-m²/2s²) exp(-u/2) exp(-x²/2s²), and x²/2s² = u² s²/8m² (small where modes are far apart). So, exactly,
#     Fisher = exp(-m²/2s²) · (m/s³)(w/√(2π)) ∫ (e^{-u/2} + e^{u/2}(1 - w)/w) (r_w - r_w')² e^{-u² s²/8m²} du.         (8)
# An exponential in the squared distance. So score matching, and denoising with small σ, fit each mode well and leave the
# weights to chance; likelihood and NCE compare heights and see them. Large noise joins the modes, and there the score
# knows w. Learn all levels at once, E(x, log σ), and let Langevin dynamics descend through them (Song & Ermon 2019): the
# particles choose their mode while the modes overlap, and keep it. (Below all methods have one rate, untuned; the network of
# many levels has twice the steps of the others, for it has more to learn.)


def annealed_langevin(networks, n_particles, sigmas, n_steps, step=0.2):
    """Particles (n, N, 1) from the widest of falling `sigmas` to the last: Langevin at T = 1, step_size = step·σ²."""
    shape, device = (len(networks.weights[0]), n_particles, 1), networks.weights[0].device
    x = sigmas[0] * torch.randn(shape, device=device)
    for sigma in sigmas:
        level = torch.full(shape, math.log(sigma), device=device)
        for _ in range(n_steps):
            gradient = networks.passes(torch.cat([x, level], 2))[1][..., :1]
            x = x - 0.5 * step * sigma**2 * gradient + (step * sigma**2) ** 0.5 * torch.randn_like(x)
    must_be_finite("annealed Langevin sampling", x)
    return x


def exact_price(m, s, weight, wrong):
    """KL and Fisher divergence (a half of the mean square) of two_modes with a wrong weight, by Simpson's rule."""
    fine = torch.linspace(-m - 14 * s, m + 14 * s, 18001, dtype=torch.float64)
    (a, score_a), (b, score_b) = two_modes(fine, weight, m, s), two_modes(fine, wrong, m, s)
    values = a.exp() * torch.stack([a - b, 0.5 * (score_a - score_b) ** 2])
    return scipy.integrate.simpson(to_numpy(values), x=to_numpy(fine))


def theory_kl_of_weights(weight, wrong):
    """KL of a wrong weight between modes that do not overlap."""
    return weight * math.log(weight / wrong) + (1 - weight) * math.log((1 - weight) / (1 - wrong))


def theory_fisher_of_weights(m, s, weight, wrong):
    """Eq. (8): the Fisher divergence of a wrong weight between modes at ±m, with a change of variable."""
    u = torch.linspace(-60, 60, 6001, dtype=torch.float64)
    off = torch.sigmoid(u - math.log(weight / (1 - weight))) - torch.sigmoid(u - math.log(wrong / (1 - wrong)))
    log_p = torch.logaddexp(-u / 2, u / 2 + math.log((1 - weight) / weight)) - (u * s / m) ** 2 / 8
    integral = scipy.integrate.simpson(to_numpy(log_p.exp() * off**2), x=to_numpy(u))
    return math.exp(-(m**2) / (2 * s**2)) * m / s**3 * weight / math.sqrt(2 * math.pi) * integral


WEIGHT, MODE, SPREAD = 0.8, 2.0, 0.4  # of the left mode; the modes stand at ±2


def blind_gradient(method, n, axis):
    """gradient(networks, progress) of one method on n batches of 256 from the two modes."""
    device = axis.device

    def gradient(networks, progress):
        left = torch.rand(n, 256, 1, device=device) < WEIGHT
        x = torch.where(left, -MODE, MODE) + SPREAD * torch.randn(n, 256, 1, device=device)
        noise, log_sigma = torch.randn_like(x), math.log(40) * torch.rand_like(x) + math.log(0.1)
        if method == "likelihood":
            return phases(networks, x, axis[::10, None].expand(n, -1, -1))
        if method == "NCE":
            uniform = 8 * (2 * torch.rand(n, 1024, 1, device=device) - 1)
            return noise_phases(networks, x, uniform, lambda y: torch.full_like(y[..., 0], -math.log(16)))
        if method == "score matching":
            return by_autograd(networks, lambda energy: implicit_matching(energy, x))
        if method == "denoising, noise 0.1":
            return by_autograd(networks, lambda energy: denoising_matching(energy, x, noise, 0.1))
        return by_autograd(  # every level at once: the second input is log σ
            networks,
            lambda energy: denoising_matching(lambda y: energy(torch.cat([y, log_sigma], 2)), x, noise, log_sigma.exp()),
        )

    return gradient


SEEING = {"likelihood": (BLUE, "o"), "NCE": (GREEN, "s"), "score matching": (ORANGE, "P")}
SEEING |= {"denoising, noise 0.1": (RED, "v"), "noise levels": (RED, "o")}


def weights_learned(config, device):
    """{method: the weight of the left mode that each of n_seeds networks learns}, and some densities on `axis`."""
    axis, levels = torch.linspace(-8, 8, 1601, device=device), torch.logspace(math.log10(4.0), -1, 14).tolist()
    learned, densities, n = {}, {}, config.n_seeds
    for method in SEEING:
        many = method == "noise levels"
        networks = Networks(n, 2 if many else 1, 64, 2, 3.0, device)
        train(networks, blind_gradient(method, n, axis), (1 + many) * config.n_mode_steps, 5e-3, method, clip=10.0)
        if many:
            particles = annealed_langevin(networks, 1000, levels, max(config.n_mode_steps // 15, 1))
            learned[method] = (particles < 0).float().mean((1, 2)).cpu()
        else:
            p = (-networks.passes(axis[:, None].expand(n, -1, -1))[0]).softmax(1)
            learned[method], densities[method] = p[:, axis < 0].sum(1).cpu(), (p / (axis[1] - axis[0])).cpu()
    return learned, densities, axis.cpu()


def draw_blindness(learned, densities, axis, distances, price):
    """Weights learned, densities, and what a wrong weight costs either divergence."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 5.2), layout="constrained")
    for i, (name, values) in enumerate(learned.items()):
        colour, marker = SEEING[name]
        axes[0].plot(i + np.linspace(-0.2, 0.2, len(values)), to_numpy(values), marker, color=colour, alpha=0.7)
    axes[0].axhline(WEIGHT, color="k", ls="--", label=f"truth, {WEIGHT}")
    axes[0].set_xticks(range(5), ["likeli-\nhood", "NCE", "score\nmatching", "denoising,\nnoise 0.1", "noise\nlevels"])
    worst = max(learned, key=lambda name: (learned[name] - WEIGHT).square().mean())
    axes[0].set(title=f"furthest off: {worst}", ylabel="weight of the left mode", ylim=(-0.05, 1.2))
    x = to_numpy(axis)
    axes[1].plot(x, to_numpy(two_modes(axis, WEIGHT, MODE, SPREAD)[0].exp()), "k--", lw=2, label="data")
    for name in ("likelihood", "score matching"):
        lines = to_numpy(densities[name][:4].T)
        axes[1].plot(x, lines, color=SEEING[name][0], lw=1, label=[name] + [None] * (lines.shape[1] - 1))
    axes[1].set(title="what score matching makes of the two heights", xlabel="$x$", ylabel="density", xlim=(-4, 4))
    axes[1].set_ylim(0, 1.4)
    axes[2].plot(2 * distances / SPREAD, price[:, 0], BLUE, lw=2, label="KL: what likelihood sees")
    axes[2].plot(2 * distances / SPREAD, price[:, 1], ORANGE, lw=2, label="Fisher: what the score sees")
    theory = [theory_fisher_of_weights(m, SPREAD, WEIGHT, 0.5) for m in distances]
    axes[2].plot(2 * distances / SPREAD, theory, "k:", label="eq. (8)")
    axes[2].set(title=f"weight 0.5 for {WEIGHT}: the score stops seeing it", xlabel="distance of the modes (std)")
    axes[2].set(ylabel="divergence (nats; $1/x^2$)", yscale="log", ylim=(1e-12, 1e3))
    for ax in axes:
        ax.legend(loc="upper right")
    return fig


def section_blindness(run):
    """Score matching cannot see the weights of separated modes; noise levels and annealing let it see."""
    learned, densities, axis = weights_learned(run.config, run.device)
    for name, values in learned.items():
        run.metric(f"{name}: weight", *mean_and_sem(values), against=("truth", WEIGHT))
        run.metric(f"{name}: weight, RMS error", (values - WEIGHT).square().mean().sqrt(), against=("truth", 0))
    distances = np.linspace(0.4, 3.2, 29)
    price = np.array([exact_price(m, SPREAD, WEIGHT, 0.5) for m in distances])
    limit = ("w log(w/w') + ...", theory_kl_of_weights(WEIGHT, 0.5))
    run.metric("16 std apart: KL of a wrong weight (nats)", price[-1, 0], against=limit, within=1e-9)
    ratio = price[-1, 1] / theory_fisher_of_weights(distances[-1], SPREAD, WEIGHT, 0.5)
    run.metric("16 std apart: Fisher / eq. (8)", ratio, against=("theory", 1), within=1e-9)
    run.figure(draw_blindness(learned, densities, axis, distances, price), "weights")
    rms = {name: (values - WEIGHT).square().mean().sqrt().item() for name, values in learned.items()}
    run.say(f"RMS error of the weight: score matching {rms['score matching']:.2f}, denoising with noise 0.1 "
            f"{rms['denoising, noise 0.1']:.2f}, likelihood {rms['likelihood']:.3f}, NCE {rms['NCE']:.3f}")  # fmt: skip
    run.say(f"noise levels and annealing bring the score's error to {rms['noise levels']:.3f}")


# %% 6. Efficiency
# With n samples maximum likelihood has variance 1/(n I), I the Fisher information; asymptotically nothing regular does
# better. An estimator that minimises Σ ρ(x_i; θ) has, with ψ = ∂ρ/∂θ, the sandwich variance (Godambe 1960)
#     n var -> E[ψ²] / E[∂ψ/∂θ]²,            for likelihood E[ψ²] = E[∂ψ/∂θ] = I.
# Take E = θ|x|^a/a, from peaked (a < 2) to box-like (a > 2). Maximum likelihood: θ = 1/mean|x|^a. Score matching:
#     ρ = ½ θ²|x|^(2a-2) - θ(a-1)|x|^(a-2),          θ = (a-1) mean|x|^(a-2) / mean|x|^(2a-2).
# At a = 2, a Gaussian's precision, they are the same estimator. At a = 4 score matching leans on sixth powers, and needs
# more data for the same error. And for the weight of two separated modes, section 5, it needs exponentially
# more, says the same theory.
# Koehler, Heckett & Risteski (2023) tie the price to isoperimetry: score matching is inefficient for just those densities,
# cut in two by a thin neck, on which Langevin dynamics mixes slowly.


def fit_power(x, a):
    """θ of E = θ|x|^a/a by likelihood and by score matching, (R,) each, from R samples |x| (R, n)."""
    return 1 / (x**a).mean(1), (a - 1) * (x ** (a - 2)).mean(1) / (x ** (2 * a - 2)).mean(1)


def variance_ratio(a, b):
    """var a / var b of paired estimates (R,), and its standard error by the delta method."""
    ratio = a.var() / b.var()
    squares = (a - a.mean()) ** 2 / a.var() - (b - b.mean()) ** 2 / b.var()
    return ratio.item(), (ratio * squares.std() / len(a) ** 0.5).item()


def sandwich(psi, slope_of_psi, p):
    """E[ψ²]/E[∂ψ/∂θ]²: n times the asymptotic variance; all (n_x,), p the probabilities of quadrature cells."""
    return ((p * psi**2).sum() / (p * slope_of_psi).sum() ** 2).item()


def theory_power_variances(a):
    """n var of (likelihood, score matching) for θ = 1 in E = θ|x|^a/a: a, and the sandwich by quadrature."""
    edges = torch.linspace(0, 1, 20_001, dtype=torch.float64) ** 4 * (60 * a) ** (1 / a)  # fine near 0, a kink if a < 2
    x = (edges[1:] + edges[:-1]) / 2
    p = (-(x**a) / a).exp() * edges.diff()
    return float(a), sandwich(x ** (2 * a - 2) - (a - 1) * x ** (a - 2), x ** (2 * a - 2), p / p.sum())


def theory_weight_variances(m, weight=0.5):
    """n var of (likelihood, score matching) for the weight w of two unit Gaussians at ±m, known otherwise."""
    x = torch.linspace(-m - 9, m + 9, 8001, dtype=torch.float64)
    w = torch.full_like(x, weight).requires_grad_(True)
    right = (2 * m * x + (1 - w).log() - w.log()).sigmoid()  # the posterior of the right mode
    loss = 0.5 * (x + m - 2 * m * right) ** 2 - 1 + 4 * m**2 * right * (1 - right)  # ρ = ½ score² + score'
    (psi,) = torch.autograd.grad(loss.sum(), w, create_graph=True)
    (change,) = torch.autograd.grad(psi.sum(), w)
    p, posterior = two_modes(x, weight, m, 1.0)[0].exp() * (x[1] - x[0]), right.detach()
    information = (p * ((1 - posterior) / weight - posterior / (1 - weight)) ** 2).sum()  # of ∂ log p/∂w
    return 1 / information.item(), sandwich(psi.detach(), change, p)


SHAPES = (1.7, 2.0, 3.0, 4.0, 6.0, 8.0)  # a < 1.5 has no finite variance of |x|^(a-2)


def measure_efficiency(repeats, seed, n=1000):
    """{a: (var likelihood / var score matching over `repeats` samples of size n, its standard error, theory)}."""
    rng, found = np.random.default_rng(seed), {}
    for a in SHAPES:
        x = torch.from_numpy((a * rng.gamma(1 / a, size=(repeats, n))) ** (1 / a))  # |x|^a/a ~ Gamma(1/a)
        likelihood, matching = theory_power_variances(a)
        found[a] = *variance_ratio(*fit_power(x, a)), likelihood / matching
    return found


def draw_efficiency(found):
    """Efficiency against the shape, and what the weight of two modes costs."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    fine, half = np.concatenate([np.linspace(1.6, 2, 9), np.linspace(2.1, 8.2, 25)]), np.linspace(0.5, 4, 15)
    axes[0].plot(fine, [np.divide(*theory_power_variances(a)) for a in fine], "k--", label="asymptotic theory")
    values, errors, _ = np.array(list(found.values())).T
    axes[0].errorbar(SHAPES, values, errors, fmt="P", color=ORANGE, capsize=3, label="measured, n = 1,000")
    best = max(found, key=lambda a: found[a][0])
    axes[0].set(title=f"least is lost at a = {best:g}, {found[best][0]:.3f}", xlabel="power $a$ in $E=\\theta|x|^a/a$")
    axes[0].set(ylabel="efficiency, var ML / var SM", ylim=(0, 1.3))
    axes[1].plot(2 * half, [1 / np.divide(*theory_weight_variances(m)) for m in half], "k--", label="asymptotic theory")
    axes[1].set(title="the weight of two modes: data needed, by theory", xlabel="distance of the modes (std)")
    axes[1].set(ylabel="var SM / var ML", yscale="log")
    axes[0].legend(loc="upper right")
    axes[1].legend(loc="upper left")
    return fig


def section_efficiency(run):
    """Score matching pays in data for never computing Z: nothing on a Gaussian, more and more away from it."""
    repeats = 40 * run.config.n_repeats
    found = measure_efficiency(repeats, run.seed)
    for a, (ratio, sem, theory) in found.items():
        within, sem = (tolerance(sem, repeats) + 0.02, sem) if a != 2 else (1e-5, None)  # 0.02: n is finite; one estimator
        run.metric(f"power {a:g}: efficiency", ratio, sem, ("sandwich, quadrature", theory), within)
    likelihood, matching = theory_weight_variances(3.0)
    run.metric("weight of modes 6 std apart: data needed", matching / likelihood, against=("likelihood", 1))
    run.figure(draw_efficiency(found), "variance")
    run.say(f"for the same error score matching needs {1 / found[4.0][0]:.1f} times the data at a = 4, and "
            f"{matching / likelihood:.2g} times for the weight of modes six standard deviations apart")  # fmt: skip


# %% 7. Real continuous data
# Tables from scikit-learn: wine (178 wines, 13 measurements) and breast cancer (569 tumours, 30 measurements). Whiten by
# the training fold's mean and (shrunk) covariance; then one Gaussian is E = |z|²/2, where every energy below begins.
# The networks of all folds train side by side. Beyond two dimensions Z needs sampling: importance sampling from the
# fold's own Gaussian, Z = mean exp(-E)/q, with its effective sample size beside it.
# Beside the energies stand mixtures of one to six Gaussians, their number by BIC. The energies have fixed settings, and
# denoising with σ = 0.5 learns the density of blurred data, which costs it nats. Compare fold by fold, for the folds differ
# more than the methods; and take the errors over folds as optimistic, for folds share data.


def columns_that_vary(*tables):
    """Which columns (d,) vary in every one of the tables (n, d): a constant has no spread to divide by."""
    return np.all([table.max(0) > table.min(0) for table in tables], 0)


def whiten(train, test):
    """Both whitened by the mean and the Ledoit-Wolf covariance of `train` (n, d), and log|det| of that linear map. Columns
    that are constant in `train` are left out."""
    train, test = (table[:, columns_that_vary(train)] for table in (train, test))
    centre, scale = train.mean(0), train.std(0)
    fitted = LedoitWolf().fit((train - centre) / scale)
    values, vectors = np.linalg.eigh(fitted.covariance_)
    log_det = -0.5 * np.log(values).sum() - np.log(scale).sum()
    return *(((x - centre) / scale - fitted.location_) @ vectors / np.sqrt(values) for x in (train, test)), log_det


def without_constants(run, name, table, training_folds):
    """The table's columns that vary in each of its training folds; says how many do not."""
    varies = columns_that_vary(*training_folds)
    if not varies.all():
        run.say(f"{name}: {(~varies).sum()} of {len(varies)} columns do not vary in every training fold, and are left out")
    return table[:, varies]


def log_z_by_importance(networks, n_draws, scale=1.1):
    """log Z (n,) and ESS/n_draws (n,) of networks by draws from N(0, scale² I)."""
    n, d = networks.weights[0].shape[:2]
    z = scale * torch.randn(n, n_draws, d, device=networks.weights[0].device)
    log_z, _, ess = log_z_from_weights(-networks.passes(z)[0] - gaussian_log_density(z, scale))
    return log_z, ess / n_draws


def mixture_scores(folds, kind, seed):
    """Log density of each fold's test rows under the mixture of one to six Gaussians that BIC prefers; `kind` is diag (axes
    of their own) or tied (one covariance for all)."""
    scores = []
    for a, b in folds:
        fits = [GaussianMixture(k, covariance_type=kind, reg_covar=0.05, random_state=seed).fit(a) for k in range(1, 7)]
        scores.append(min(fits, key=lambda fit, a=a: fit.bic(a)).score_samples(b))
    return scores


def energy_scores(method, folds, config, device):
    """-E of each fold's test rows by NCE or denoising, and log Z and its ESS fraction; one network a fold."""
    tables, tests = ([torch.as_tensor(fold[i]).float().to(device) for fold in folds] for i in (0, 1))
    networks = Networks(len(folds), tables[0].shape[1], 64, 2, 1.0, device)

    def gradient(networks, progress):
        z = torch.stack([table[torch.randint(len(table), (64,), device=device)] for table in tables])
        phases, noise = (gaussian_noise_phases, 1.1) if method == "NCE" else (denoising_phases, 0.5)
        return phases(networks, z, noise, progress)

    train(networks, gradient, config.n_table_steps, 1e-3, f"table, {method}", clip=10.0)
    energies = [networks.passes(z.expand(len(folds), -1, -1))[0][i].cpu().double() for i, z in enumerate(tests)]
    must_be_finite(f"{method} on the tables", *energies)
    return [-to_numpy(e) for e in energies], log_z_by_importance(networks, 4 * config.n_samples)


def table_scores(run, folds):
    """Log density (up to a constant, for energies) of each fold's test rows: {method: a list of arrays (n_test,)}, and
    (log Z, ESS fraction) of the energies. folds: (z_train, z_test) already whitened."""
    scores, log_z = {"Gaussian": [gaussian_log_density(torch.as_tensor(z)).numpy() for _, z in folds]}, {}
    for name, kind in (("mixture, diagonal", "diag"), ("mixture, shared", "tied")):
        scores[name] = mixture_scores(folds, kind, run.seed)
    for method in ("NCE", "denoising"):
        scores[method], log_z[method] = energy_scores(method, folds, run.config, run.device)
    return scores, log_z


def wine_nats(run):
    """{method: mean test log likelihood in each of five folds of wine}, in the original units, and the energies' ESS."""
    wine, splits = load_wine().data, KFold(5, shuffle=True, random_state=run.seed)
    wine = without_constants(run, "wine", wine, [wine[rows] for rows, _ in splits.split(wine)])
    folds = [whiten(wine[rows], wine[held_out]) for rows, held_out in splits.split(wine)]
    scores, log_z = table_scores(run, [fold[:2] for fold in folds])
    nats = {k: np.array([each.mean() + fold[2] for each, fold in zip(scores[k], folds, strict=True)]) for k in scores}
    for name, (values, _) in log_z.items():
        nats[name] -= to_numpy(values)
    return nats, {name: ess.min().item() for name, (_, ess) in log_z.items()}


def cancer_auroc(run):
    """{method: AUROC of malignant tumours against held-out benign ones in five folds}, trained on benign tumours only."""
    cancer, splits = load_breast_cancer(), KFold(5, shuffle=True, random_state=run.seed)
    rows = list(splits.split(cancer.data[cancer.target == 1]))
    table = without_constants(run, "cancer", cancer.data, [cancer.data[cancer.target == 1][a] for a, _ in rows])
    benign, malignant = table[cancer.target == 1], table[cancer.target == 0]
    folds = [whiten(benign[a], np.concatenate([benign[b], malignant]))[:2] for a, b in rows]
    scores, _ = table_scores(run, folds)
    return {
        name: np.array([roc_auc_score(np.arange(len(s)) >= len(s) - len(malignant), -s) for s in each])
        for name, each in scores.items()
    }


def draw_gains(nats, auroc):
    """What each method gains over one Gaussian, fold by fold."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    colours = {"mixture, diagonal": "0.45", "mixture, shared": "0.7", "NCE": GREEN, "denoising": RED}
    for ax, values in zip(axes, (nats, auroc), strict=True):
        for i, (name, colour) in enumerate(colours.items()):
            gains = values[name] - values["Gaussian"]
            mean, sem = mean_and_sem(gains)
            ax.bar(i, mean, yerr=sem, color=colour, capsize=6, width=0.6)
            ax.plot(i + np.linspace(-0.2, 0.2, len(gains)), gains, "k.", ms=4)
        ax.axhline(0, color="k", ls="--")
        ax.set_xticks(range(4), [name.replace(", ", ",\n") for name in colours])
    best = [max(values, key=lambda name, v=values: v[name].mean()) for values in (nats, auroc)]
    axes[0].set(title=f"wine, held out: most by {best[0]}", ylabel="gain over one Gaussian (nats)")
    axes[1].set(title=f"breast cancer, unseen malignant: most by {best[1]}", ylabel="AUROC gained over one Gaussian")
    return fig


def section_tabular(run):
    """On small tables an energy network is one density among others: mixtures match or beat it, cross-validated."""
    nats, ess = wine_nats(run)
    auroc = cancer_auroc(run)
    for name, share in ess.items():
        run.metric(f"wine, {name}: least effective share", share, against=("a warning below", 0.1))
    for table, unit, values in (("wine", "test nats", nats), ("cancer", "AUROC", auroc)):
        for name, each in values.items():
            run.metric(f"{table}, {name}: {unit}", *mean_and_sem(each), against=("Gaussian", values["Gaussian"].mean()))
        best = max(values, key=lambda name, values=values: values[name].mean())
        energy = max(("NCE", "denoising"), key=lambda name, values=values: values[name].mean())
        if energy != best:  # the same folds: the difference is surer than either
            run.metric(f"{table}: best energy less the best", *mean_and_sem(values[energy] - values[best]), ("a draw", 0))
        won = (values[energy] > values["Gaussian"]).sum()
        means = values[best].mean(), values[energy].mean()
        run.say(f"{table}: {best} is best, {means[0]:.3g}; the better energy, by {energy}, reads {means[1]:.3g}, "
                f"more than one Gaussian in {won} of {len(values[best])} folds")  # fmt: skip
    run.figure(draw_gains(nats, auroc), "tables")


SECTIONS = {
    "identity": section_identity,
    "objectives": section_objectives,
    "nce": section_nce,
    "trainers": section_trainers,
    "order": section_order,
    "dimensions": section_dimensions,
    "blindness": section_blindness,
    "efficiency": section_efficiency,
    "tabular": section_tabular,
}


# %% Running the module: the same lines in all ten


# Copied from 01_ebm_foundations.py: in_notebook
def in_notebook():
    """Whether this file runs as cells: a kernel is there, whose command line is not ours and which shows figures itself."""
    return "ipykernel" in sys.modules or "__file__" not in globals()


# Copied from 01_ebm_foundations.py: echo
def echo(line=""):
    """Print a line at once; a reader that went away (`| head`) ends the printing and not the run."""
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL: a broken pipe on Windows
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Copied from 02_hopfield_networks.py: Progress
class Progress(tqdm):
    """A bar on a terminal; elsewhere (a pipe, a file) a line about every 20 seconds."""

    def __init__(self, iterable, label, **options):
        super().__init__(iterable, desc=label, disable=None, **options)
        self.label, self.first = label, options.get("initial", 0)

    def __iter__(self):
        last = time.monotonic()
        for done, item in enumerate(super().__iter__(), self.first + 1):
            yield item
            if self.disable and time.monotonic() - last > 20:
                echo(f"  ... {self.label}: {done} of {self.total}")
                last = time.monotonic()


# Copied from 01_ebm_foundations.py: to_numpy
def to_numpy(x):
    """A tensor as matplotlib, SciPy and scikit-learn want it: without gradient, on the CPU, a NumPy array."""
    return torch.as_tensor(x).detach().cpu().numpy()


# Copied from 01_ebm_foundations.py: must_be_finite
def must_be_finite(what, *values):
    """End the run in one line if numbers that leave a training or a sampler are not finite."""
    if not all(torch.as_tensor(value).isfinite().all() for value in values):
        sys.exit(f"{what} diverged: not every number is finite; a smaller learning rate or step size may cure it")


# Copied from 01_ebm_foundations.py: put_in_place
def put_in_place(partial, path):
    """Rename a file that is written whole; where a scanner holds it for a moment (Windows), wait up to 1.5 seconds."""
    for patience in (0.1, 0.2, 0.4, 0.8):
        with contextlib.suppress(PermissionError):
            partial.replace(path)
            return
        time.sleep(patience)
    partial.replace(path)


# Copied from 01_ebm_foundations.py: Run
class Run:
    """One run: its settings, what it measured, and the folder `out` that figures and metrics go to."""

    def __init__(self, config, seed, device, out, show):
        self.config, self.seed, self.device, self.out, self.show = config, seed, torch.device(device), out, show
        self.section, self.metrics, self.section_seconds = "", {}, {}

    def begin(self, section, sentence):
        """Open a section: what the lecture says in it, and the head of its table."""
        self.section = section
        echo(f"\n[{section}] {sentence}\n  {'':<44}{'measured':>12}{'std. error':>12}   beside it")

    def metric(self, name, value, sem=None, against=None, within=None):
        """Print and record a number: `sem`, its standard error over repeats; `against` = (label, reference), what
        stands beside it; `within`, how close to the reference it must be. One repeat has a sem of nan: none is shown."""
        sem, within = (None if x is None or math.isnan(x) else x for x in (sem, within))
        entry = {"value": float(value)} | ({} if sem is None else {"sem": float(sem)})
        line = f"  {name:<44}{entry['value']:>12.5g}" + (" " * 12 if sem is None else f"{entry['sem']:>12.2g}")
        if against is not None:
            entry |= {"against": against[0], "reference": float(against[1])}
            line += f"   {against[0]}: {entry['reference']:.5g}"
        if within is not None:
            entry |= {"within": float(within), "ok": abs(entry["value"] - entry["reference"]) <= float(within)}
            line += f" (within {entry['within']:.2g}: {'ok' if entry['ok'] else 'OFF'})"
        echo(line.rstrip())
        if not all(math.isfinite(number) for number in entry.values() if not isinstance(number, str)):
            sys.exit(f"[{self.section}] {name} is not finite: the run diverged; a smaller step or rate may cure it")
        self.metrics[f"{self.section}/{name}"] = entry

    def say(self, sentence):
        """Print what the numbers decide, in words."""
        echo(f"  => {sentence}")

    @contextlib.contextmanager
    def whole(self, name):
        """A path to write to, which becomes `out`/`name` once it is written whole, and never before."""
        partial = self.out / f".partial-{name}"
        try:
            yield partial
            put_in_place(partial, self.out / name)
        finally:
            partial.unlink(missing_ok=True)

    def figure(self, fig, name):
        """Save a figure as <section>_<name>.png; with --show, open it and go on when its window is closed."""
        with self.whole(f"{self.section}_{name}.png") as path:
            fig.savefig(path, dpi=120, bbox_inches="tight")
        if self.show:
            plt.show()
        plt.close(fig)

    def save(self):
        """Write metrics.json: the settings, and every number so far."""
        record = {"config": asdict(self.config), "seed": self.seed, "device": str(self.device), "torch": torch.__version__}
        record |= {"seconds": sum(self.section_seconds.values()), "section_seconds": self.section_seconds}
        with self.whole("metrics.json") as path:
            path.write_text(json.dumps(record | {"metrics": self.metrics}, indent=2), encoding="utf-8")
        echo(f"\n{record['seconds']:.1f} s; figures and metrics.json are in {self.out}")


# Copied from 01_ebm_foundations.py: working_device
def working_device(name):
    """The device to compute on; `auto`: the GPU if it really computes, else the CPU. ValueError if `name` cannot."""
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.ones(2, 2, device=wanted).mm(torch.ones(2, 2, device=wanted)).sum().item()
    except (RuntimeError, AssertionError) as error:  # no such device, or one that this build of torch has no code for
        if name != "auto":
            raise ValueError(f"no {name} device here that computes; try --device cpu") from None
        echo(f"a GPU is seen and cannot compute ({str(error).splitlines()[0]}): the CPU goes on without it")
        return "cpu"
    return wanted


# Copied from 01_ebm_foundations.py: parse_args
def parse_args(argv=None):
    """The flags that every module has, and one for each field of Config. Returns the flags and the Config."""
    here = Path(globals().get("__file__", "notebook.py"))  # a notebook has no file
    sections = "\n".join(f"  {name:<14}{section.__doc__}" for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(here.name, description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.epilog, parser.formatter_class = f"sections:\n{sections}", argparse.RawDescriptionHelpFormatter
    parser.error = lambda message: sys.exit(f"{here.name}: {message}")  # one line, without the usage
    parser.add_argument("--section", default="all", choices=["all", *SECTIONS], help="run one section only")
    parser.add_argument("--smoke", action="store_true", help="tiny settings: seconds, not results")
    parser.add_argument("--show", action="store_true", help="also open each figure in a window")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="auto: cuda, else cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs", here.stem), help="folder for what it writes")
    for name, hint in get_type_hints(Config, include_extras=True).items():
        flag, default, choices = f"--{name.replace('_', '-')}", getattr(Config, name), get_args(hint.__origin__) or None
        help_text = f"{hint.__metadata__[0]} (default {default})"
        parser.add_argument(flag, type=type(default), choices=choices, help=help_text)
    args = parser.parse_args([] if argv is None and in_notebook() else argv)

    given = {name: value for name, value in vars(args).items() if hasattr(Config, name) and value is not None}
    for name, value in given.items():
        if not isinstance(value, str) and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be positive and finite, not {value}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed must be between 0 and 2^32 - 1, not {args.seed}")
    if args.show and plt.get_backend().lower() == "agg":
        parser.error("--show needs a display, and there is none here")
    try:
        args.device = working_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write to {args.out}: {error.strerror}")
    suited = globals().get("SUITED", {}).get(given.get("dataset"), {})  # what a data set wants otherwise
    return args, replace(Config(), **(suited | (SMOKE if args.smoke else {}) | given))


# Copied from 01_ebm_foundations.py: main
def main(argv=None):
    """Run the chosen sections; their figures and metrics.json go to the output folder."""
    args, config = parse_args(argv)
    backend, threads = plt.get_backend(), torch.get_num_threads()
    run = Run(config, args.seed, args.device, args.out, args.show or (in_notebook() and backend.lower() != "agg"))
    for function in list(globals().values()):  # what an earlier run trained is not needed any more
        getattr(function, "cache_clear", int)()
    try:
        torch.set_num_threads(config.threads)
        if not run.show:
            plt.switch_backend("agg")
        for name in SECTIONS if args.section == "all" else [args.section]:
            run.begin(name, SECTIONS[name].__doc__)
            torch.manual_seed(args.seed)
            start = time.perf_counter()
            SECTIONS[name](run)
            run.section_seconds[name] = time.perf_counter() - start
        run.save()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        sys.exit(f"[{run.section}] needs more memory than there is: smaller settings, please")
    finally:  # a notebook goes on as it was
        torch.set_num_threads(threads)
        with contextlib.suppress(ImportError):
            plt.switch_backend(backend)


# Copied from 01_ebm_foundations.py: __main__
if __name__ == "__main__" and not in_notebook():  # in a notebook, call main(["--section", "..."]) yourself
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # a console that cannot print a folder's name
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except OSError as error:  # a full disk, a folder that vanished
        sys.exit(f"cannot go on: {error}")
