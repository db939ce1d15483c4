"""Module 06 - Score matching: learn an energy without its normaliser, and what that costs.

log p = -E - log Z. The score, its slope in x, does not contain Z; so fit slopes (Hyvarinen 2005):

    J(E) = ½ E_p |∇ log p + ∇E|²                      explicit: needs the data's own score,          (1)
         = E_p[ ½ |∇E|² - ΔE ] + ½ E_p |∇ log p|²     implicit: needs samples only,                  (2)
         = E_p[ ½ |∇E|² - v·∇(v·∇E) ] + constant      sliced: one random v with E[v vᵀ] = I,         (3)

or fit the slope towards the clean point, x̃ = x + σ n with n ~ N(0, I) (denoising; Vincent 2011):

    J_σ(E) = ½ E |σ ∇E(x̃) - n|²                       learns the data blurred by σ,                  (4)

or tell data from noise q of known density (NCE; Gutmann & Hyvarinen 2010), or do maximum likelihood after all:

    ∇ log p = -∇E(x) + E_{x'~p}[∇E(x')]               (∇ in the parameters; module 01, eq. 3).       (5)

Run      python 06_score_matching.py                all sections, about 3 min on one CPU core
         python 06_score_matching.py --section trainers --show
         python 06_score_matching.py --section trainers --n-steps 4000 --n-chain-steps 3000
                                                    about 9 min; worst of three data sets: likelihood on a grid and
                                                    NCE about 0.01 nats away, denoising 0.09, Markov chains 0.07
Writes   outputs/06_score_matching/*.png, trainers_langevin.gif and metrics.json
Before   modules 01 and 05        Exercises  ex06_1 ... ex06_4, o4, o10, o12
Sources  Hyvarinen (2005); Vincent (2011); Song et al. (2019); Gutmann & Hyvarinen (2010, 2012); Jarzynski (1997); Carbone
         et al. (2023); Song & Ermon (2019); Koehler, Heckett & Risteski (2023). Each function names its own.
"""

import argparse
import contextlib
import errno
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import torch
from matplotlib.animation import PillowWriter
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold
from torch.nn.functional import silu
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_repeats: Annotated[int, "repeats of the estimates on Gaussians and of NCE; a 40th of efficiency's replications"] = 20
    n_samples: Annotated[int, "data points in each repeat; a quarter of the draws for log Z on the tables"] = 5000
    n_steps: Annotated[int, "optimiser steps of the trainers that need no chains"] = 900
    n_chain_steps: Annotated[int, "optimiser steps of maximum likelihood by Markov chains"] = 750
    n_chains: Annotated[int, "Markov chains of Langevin and HMC"] = 1000
    batch_size: Annotated[int, "data points in a batch of the seven trainers"] = 200
    width: Annotated[int, "units in each of the three hidden layers"] = 128
    n_grid: Annotated[int, "grid cells on an edge where densities are integrated"] = 240
    n_seeds: Annotated[int, "networks trained for the blindness of score matching"] = 8
    n_mode_steps: Annotated[int, "optimiser steps of each of them"] = 600
    n_table_steps: Annotated[int, "optimiser steps on the tables"] = 400
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1


SMOKE = {"n_repeats": 4, "n_samples": 200, "n_steps": 6, "n_chain_steps": 6, "n_chains": 50}
SMOKE |= {"batch_size": 40, "width": 32, "n_grid": 30, "n_seeds": 2, "n_mode_steps": 10, "n_table_steps": 10}


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


# %% 1. Hyvarinen's identity
# Open the square in eq. (1). Its middle term holds the data's score, which nobody knows; integrate it by parts:
#
#     E_p[∇ log p · ∇E] = ∫ p (∇p/p) · ∇E = ∫ ∇p · ∇E
#                       = [p ∇E]_boundary - ∫ p ΔE.
#
# Where p dies out at the boundary the bracket is 0, and what is left is eq. (2): minus the Laplacian, and no factor 2.
# Two signs to hold on to. On a Gaussian of variance s² with E = λ x²/2 eq. (2) reads ½ λ² s² - λ, least at λ = 1/s², the
# truth. The published slip "½|∇E|² + 2 ΔE" is least at λ = -2/s²: an energy turned upside down, with a falling loss.
#
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


def two_modes(x, weight=0.8, m=2.0, s=0.4):
    """Log density and score, each of x's shape, of weight·N(-m, s²) + (1 - weight)·N(m, s²)."""
    logits = torch.stack([math.log(weight) - (x + m) ** 2 / (2 * s**2), math.log1p(-weight) - (x - m) ** 2 / (2 * s**2)])
    right = logits.softmax(0)[1]
    return logits.logsumexp(0) - math.log(s * math.sqrt(2 * math.pi)), -(x + m - 2 * m * right) / s**2


def quartic(x):
    """E = |x|⁴/4, x (..., 1) -> (...)."""
    return x[..., 0] ** 4 / 4


def vertex(at_0, at_1, at_2):
    """Where the parabola through these values at 0, 1 and 2 is least."""
    return (3 * at_0 - 4 * at_1 + at_2) / (2 * (at_0 - 2 * at_1 + at_2))


def section_identity(run):
    """A density never seen can be fitted by its slopes: explicit and implicit score matching differ by a constant."""
    axis = torch.linspace(-7, 7, 8001, dtype=torch.float64)
    log_p, data_score = two_modes(axis, 0.6, 1.2, 0.6)
    p = log_p.exp()

    def average(values):  # under p, by Simpson's rule
        return scipy.integrate.simpson(to_numpy(p * values), x=to_numpy(axis))

    constant, strengths, curves = 0.5 * average(data_score**2), torch.linspace(0.0, 0.3, 25).tolist(), []
    for a in strengths:  # E = a (x² - 1.44)² + 0.2 x: the right a is a compromise

        def energy(x, a=a):
            return (a * (x**2 - 1.44) ** 2 + 0.2 * x).sum(-1)

        x = axis[:, None]
        curves.append((average(explicit_matching(energy, x, data_score[:, None])), average(implicit_matching(energy, x))))
    explicit, implicit = np.array(curves).T
    worst = np.abs(explicit - implicit - constant).max()
    run.metric("worst_explicit_minus_implicit", worst, against=("the constant, subtracted", 0), within=1e-4)

    s, gaussian = 0.7, 0.7 * torch.randn(20_000, 1).double()  # E = λ x²/2 on N(0, s²): a parabola in λ
    at = [implicit_matching(lambda x, k=k: 0.5 * k * (x**2).sum(-1), gaussian).mean().detach() for k in (0, 1, 2)]
    against = ("1 / mean(x^2) of these samples", 1 / gaussian.square().mean())
    run.metric("precision_learned_on_gaussian", vertex(*at), against=against, within=1e-6)

    inside = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]  # uniform: its score is 0, its edges are not
    apart = explicit_matching(quartic, inside, 0.0) - implicit_matching(quartic, inside)
    gap = scipy.integrate.simpson(to_numpy(apart) / 2, x=to_numpy(inside[:, 0]))
    run.metric("uniform_explicit_minus_implicit", gap, against=("the edge, [p dE/dx]", 1.0), within=1e-6)

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="tight")
    axes[0].plot(strengths, explicit, "k--", lw=3, label="explicit, eq. (1): needs the data's score")
    axes[0].plot(strengths, implicit, "tab:orange", lw=2, label="implicit, eq. (2): needs samples only")
    axes[0].plot(strengths, implicit + constant, "tab:orange", lw=6, alpha=0.4, label="implicit + constant")
    axes[0].set(title="one shape, one minimum: a constant apart", xlabel="strength $a$ of the model's double well")
    lam = np.linspace(-6, 6, 200)
    right, wrong = r"$\frac{1}{2}|\nabla E|^2-\Delta E$", r"$\frac{1}{2}|\nabla E|^2+2\Delta E$, a published slip"
    axes[1].plot(lam, lam**2 * s**2 / 2 - lam, "tab:orange", label=right)
    axes[1].plot(lam, lam**2 * s**2 / 2 + 2 * lam, "tab:red", label=wrong)
    axes[1].axvline(1 / s**2, color="k", ls="--", label="truth, $1/s^2$")
    axes[1].set(title="the wrong sign turns a Gaussian's energy upside down", xlabel=r"precision $\lambda$")
    axes[1].set_ylim(-12, 12)
    for ax, place in zip(axes, ("upper left", "lower left"), strict=True):
        ax.set_ylabel("score matching loss")
        ax.legend(loc=place)
    run.figure(fig, "constant")


# %% 2. The objectives and their price
# On N(0, s² I) with E = λ|x|²/2 every objective is a parabola in λ, so three values give its minimum. Exact and sliced
# find the variance 1/λ = s². Denoising does not, and should not. Put the optimal score of the noisy data into eq. (4):
#
#     ∇E(x̃) = E[n | x̃]/σ = -∇ log p_σ(x̃)        p_σ = p * N(0, σ² I), the blurred data (Tweedie's formula),
#
# so it learns variance s² + σ²: a bias that falls as σ², while the variance of its target n/σ grows as 1/σ².
#
# The Laplacian costs d backward passes, a projection one. What does the projection pay? With g = ∇E, H its Hessian,
# and v ~ N(0, I), a quadratic form vᵀBv has mean tr B and variance 2|B|² (Frobenius; B symmetric):
#
#     reduced    ½|g|² - vᵀHv             variance 2 |H|²               ~ d,
#     plain      vᵀ(½ g gᵀ - H) v         variance 2 |½ g gᵀ - H|²      ~ d², since |g|⁴ ~ d².
#
# So the reduced form's noise per sample rises as √d against a loss of order d: in relative terms it is *better* in high d;
# the plain form gains nothing.


def section_objectives(run):
    """Every objective finds the Gaussian but denoising, which finds the blurred one; slicing trades noise for cost."""
    config, s, d, sigmas = run.config, 0.8, 4, (0.1, 0.2, 0.4, 0.8, 1.6)
    x = s * torch.randn(config.n_repeats, config.n_samples, d, device=run.device)
    v, noise = torch.randn_like(x), torch.randn_like(x)
    unit = v / v.norm(dim=-1, keepdim=True)
    objectives = {
        "explicit": (s**2, lambda e: explicit_matching(e, x, -x / s**2)),
        "implicit": (s**2, lambda e: implicit_matching(e, x)),
        "sliced": (s**2, lambda e: sliced_matching(e, x, v, reduced=False)),
        "sliced_reduced": (s**2, lambda e: sliced_matching(e, x, v)),
        "unit_vectors_by_mistake": (d * s**2, lambda e: sliced_matching(e, x, unit)),
    }
    for t in sigmas:
        objectives[f"denoising_{t:g}"] = (s**2 + t**2, lambda e, t=t: denoising_matching(e, x, noise, t))
    learned = {}
    for name, (exact, objective) in objectives.items():  # the variance 1/λ at the minimum, for each repeat
        at = [objective(lambda y, k=k: 0.5 * k * (y**2).sum(-1)).mean(1).detach() for k in (0, 1, 2)]
        value, sem = mean_and_sem((1 / vertex(*at)).cpu())
        learned[name] = value, sem
        run.metric(f"variance_{name}", value, sem, against=("exact", exact), within=4 * sem + 1e-5)

    dims, n_points, n_draws = np.array([4, 8, 16, 32, 64, 128, 256]), 8, max(config.n_samples // 10, 4)
    spread, seconds = {"plain": [], "reduced": []}, {"exact": [], "sliced": []}
    for dim in dims.tolist():
        a = torch.randn(dim, dim, device=run.device) / dim**0.5
        hessian = torch.eye(dim, device=run.device) + 0.25 * (a + a.T)
        points = torch.randn(n_points, 1, dim, device=run.device)
        draws = torch.randn(n_points, n_draws, dim, device=run.device)
        g = points @ hessian
        for name, form in (("plain", 0.5 * g.mT * g - hessian), ("reduced", hessian[None])):
            values = sliced_matching(
                lambda y, h=hessian: 0.5 * (y @ h * y).sum(-1), points.expand_as(draws), draws, name == "reduced"
            )
            exact = 2 * form.square().sum((-2, -1)).mean()
            spread[name].append((values.detach().var(1).mean().item(), exact.item()))
        energy, y = Networks(1, dim, 64, 2, device=run.device).energy, torch.randn(1, 32, dim, device=run.device)
        for name, arguments in (("exact", (implicit_matching, energy, y)), ("sliced", (sliced_matching, energy, y, y))):
            times = [time.perf_counter()]
            for _ in range(3 if name == "exact" else 21):  # the first warms up
                arguments[0](*arguments[1:]).sum().item()
                times.append(time.perf_counter())
            seconds[name].append(np.diff(times)[1:].min())

    def exponent(y):  # where d is large
        return np.polyfit(np.log(dims[2:]), np.log(y[2:]), 1)[0]

    spread, seconds = ({k: np.array(rows) for k, rows in table.items()} for table in (spread, seconds))
    for name, rows in spread.items():
        against = ("exact, 2|B|^2", exponent(rows[:, 1]))
        run.metric(f"variance_exponent_{name}", exponent(rows[:, 0]), against=against, within=0.15)
    for name, passes in (("exact", 1), ("sliced", 0)):
        run.metric(f"exponent_of_{name}_seconds", exponent(seconds[name]), against=("of backward passes", passes))

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="tight")
    t, dsm = np.linspace(0.08, 1.7, 100), np.array([learned[f"denoising_{t:g}"] for t in sigmas], float)  # None becomes nan
    axes[0].plot(t, s**2 + t**2, "k--", label=r"$s^2+\sigma^2$")
    axes[0].errorbar(sigmas, dsm[:, 0], 4 * dsm[:, 1], fmt="o", color="tab:orange", label="denoising, 4 s.e.")
    axes[0].axhline(s**2, color="tab:blue", label="the data, $s^2$")
    axes[0].set(title="denoising learns the blurred data", xlabel=r"noise $\sigma$", ylabel="variance learned")
    for (name, rows), colour in zip(spread.items(), ("tab:red", "tab:orange"), strict=True):
        axes[1].plot(dims, rows[:, 0], "o", color=colour, label=f"sliced, {name}: $d^{{{exponent(rows[:, 0]):.2f}}}$")
        axes[1].plot(dims, rows[:, 1], "k--", lw=1)
    for (name, y), colour in zip(seconds.items(), ("tab:blue", "tab:orange"), strict=True):
        axes[2].plot(dims, y * 1e3, "o-", color=colour, label=f"{name}: $d^{{{exponent(y):.2f}}}$")
    axes[1].set(title="the price of slicing: variance", ylabel="variance over projections")
    axes[2].set(title="the price of exactness: time", ylabel="milliseconds, batch of 32")
    for ax in axes[1:]:
        ax.set(xlabel="dimension $d$", xscale="log", yscale="log")
    for ax in axes:
        ax.legend()
    run.figure(fig, "price")


# %% 3. Noise-contrastive estimation
# Tell n data from νn samples of a density q that is known *with* its normaliser. The best classifier's log odds are
# log p(x) - log(ν q(x)): plug in log p = -E(x) - c, train it by logistic regression, and the constant c is learned like
# any other weight; where E + c ends, c = log Z. With E linear in its parameters the loss is convex: Newton's method.
#
# The price is known too (Gutmann & Hyvarinen 2012, theorem 3): with features g = (∇_θ E, 1) and the classifier's
# posterior of "noise", P = ν q/(p + ν q),
#
#     n · cov -> A⁻¹ - (1 + 1/ν) A⁻¹ b bᵀ A⁻¹,        A = ∫ P p g gᵀ,    b = ∫ P p g.
#
# Where q is much wider than p, data fall where P ~ 0: the classifier wins without learning (too wide). Where q is
# narrower, the tails of p see no noise to be told from (too narrow). At both ends A is small or nearly singular.


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


def nce_covariance(features, p, q, ratio, dx):
    """n times the asymptotic covariance (k, k) of θ, above, by quadrature; features (n_x, k), densities p and q (n_x,)."""
    posterior_noise = ratio * q / (p + ratio * q)
    weighted = (posterior_noise * p * dx)[:, None] * features
    inverse = torch.linalg.inv(features.T @ weighted)
    b = inverse @ weighted.sum(0)
    return inverse - (1 + 1 / ratio) * torch.outer(b, b)


def section_nce(run):
    """Telling data from noise learns log Z as one more weight; noise as wide as data is best, narrower worse than wider."""
    ratio, n, repeats = 2, run.config.n_samples, run.config.n_repeats
    if n < 50:
        sys.exit("nce needs --n-samples 50 at least: on fewer Newton's method runs away")
    axis = torch.linspace(-5, 5, 5001, dtype=torch.float64)
    dx, truth = axis[1] - axis[0], torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)  # E = 0.3 x - 2 x² + x⁴

    def features(x):
        return torch.stack([x, x**2, x**4, torch.ones_like(x)], -1)

    def log_z(theta):  # (..., 3) -> (...), on the grid
        return (-theta @ features(axis)[:, :3].T).logsumexp(-1) + dx.log()

    p = (-features(axis)[:, :3] @ truth - log_z(truth)).exp()
    variance = ((p * axis**2).sum() * dx - ((p * axis).sum() * dx) ** 2).item()
    uniform = torch.rand(repeats, n, dtype=torch.float64)
    cell = torch.searchsorted((p * dx).cumsum(0), uniform).clamp(max=len(axis) - 1)
    x_data = axis[cell] + dx * (torch.rand_like(uniform) - 0.5)
    white = torch.randn(repeats, ratio * n, dtype=torch.float64)
    is_data = torch.arange((1 + ratio) * n).expand(repeats, -1) < n
    start = torch.tensor([0.0, -1.0, 0.5], dtype=torch.float64)  # a guess; the loss is convex
    start = torch.cat([start, log_z(start)[None]]).expand(repeats, -1)
    to_log_z = (p[:, None] * features(axis)).sum(0) * dx  # c - log Z(θ), to first order in the error of (θ, c)
    widths, rms, theory, baseline, fits = (0.4, 0.6, 0.8, 1.0, 1.5, 3.0, 8.0, 20.0), [], [], [], []
    for width in widths:
        noise = torch.distributions.Normal(torch.zeros(1, dtype=torch.float64), width * variance**0.5)
        x_noise = noise.scale * white
        x = torch.cat([x_data, x_noise], 1)
        try:
            fits.append(nce_fit(features(x), noise.log_prob(x), is_data, ratio, start))
            if not fits[-1].isfinite().all():
                raise torch.linalg.LinAlgError
        except torch.linalg.LinAlgError:  # the curvature is 0 to working precision
            sys.exit(f"nce: Newton's method ran away, noise {width:g} times as wide as data; more --n-samples may cure it")
        rms.append((fits[-1][:, 3] - log_z(fits[-1][:, :3])).square().mean().sqrt().item())
        covariance = nce_covariance(features(axis), p, noise.log_prob(axis).exp(), ratio, dx)
        theory.append((to_log_z @ covariance @ to_log_z / n).sqrt().item())
        log_w = -features(x_noise)[..., :3] @ truth - noise.log_prob(x_noise)
        estimate = log_w.logsumexp(1) - math.log(ratio * n)
        baseline.append((estimate - log_z(truth)).square().mean().sqrt().item())
    theta = fits[widths.index(1.5)]
    value, sem = mean_and_sem(theta[:, 3] - log_z(theta[:, :3]))
    within = 0.02 if repeats > 1 else None
    run.metric("learned_constant_minus_log_z", value, sem, against=("the grid's log Z", 0), within=within)
    for width, label in ((0.4, "too_narrow"), (1.5, "good"), (20.0, "too_wide")):
        i = widths.index(width)  # a root mean square of R numbers has relative standard error 1/√(2R)
        within = 4 * theory[i] / math.sqrt(2 * repeats) if label == "good" else None
        run.metric(f"rms_error_noise_{label}", rms[i], against=("asymptotic theory", theory[i]), within=within)
    run.metric("rms_error_importance_sampling", baseline[4], against=("NCE, same noise", rms[4]))
    model = -theta[:, :3] @ features(axis)[:, :3].T - log_z(theta[:, :3])[:, None]
    value, sem = mean_and_sem((p * (p.log() - model).where(p > 0, 0.0)).sum(1) * dx)
    entropy = -(p * p.log().where(p > 0, 0.0)).sum() * dx
    gaussian = 0.5 * math.log(2 * math.pi * math.e * variance) - entropy
    run.metric("kl_to_data", value, sem, against=("the best Gaussian", gaussian))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="tight")
    axes[0].plot(to_numpy(axis), to_numpy(p), "k--", lw=2, label="data")
    for width, colour in ((0.4, "tab:red"), (1.5, "tab:orange"), (20.0, "tab:purple")):
        line = to_numpy((-features(axis) @ fits[widths.index(width)][:5].T).exp())
        label = f"$e^{{-E-c}}$, noise {width:g} times as wide"
        axes[0].plot(to_numpy(axis), line, color=colour, lw=1, label=[label] + [None] * (line.shape[1] - 1))
    axes[0].set(title="what NCE learned, with its own constant $c$", xlabel="$x$", ylabel="density")
    axes[0].set(xlim=(-2.5, 2.5), ylim=(0, 1.6 * p.max().item()))
    axes[1].plot(widths, theory, "k--", label="NCE, asymptotic theory")
    axes[1].plot(widths, rms, "o", color="tab:orange", label="NCE, measured")
    axes[1].plot(widths, baseline, "s", color="tab:green", mfc="none", label="importance sampling, $E$ known")
    axes[1].set(title="noise too narrow or too wide: a poor constant", xlabel="noise width / data width")
    axes[1].set(ylabel=r"RMS error of $\log Z$ (nats)", xscale="log", yscale="log")
    for ax in axes:
        ax.legend()
    run.figure(fig, "noise")


# %% 4. One network, every trainer: the network and the data
# E(x) = |x|²/(2 s₀²) + MLP(x), the MLP's last layer zero at first: training starts at exactly N(0, s₀² I), a density that
# can be sampled and whose log Z is known. Gradients are written by hand. For a layer z = h W + b, h' = silu(z), and a
# signal g = ∂(Σ_i a_i E_i)/∂h' coming back,
#
#     ∂/∂z = g · silu'(z),    ∂/∂W = hᵀ ∂/∂z,    ∂/∂b = Σ ∂/∂z,    ∂/∂h = ∂/∂z Wᵀ.
#
# With every a_i = 1 it ends in ∇ₓE; multiplied by a_i row by row, the same signals give Σ_i a_i ∇E(x_i) in the parameters.
# That is the gradient of maximum likelihood, of its version on a grid and of NCE: *they differ in the points x_i and in the
# numbers a_i, and in nothing else*.


class Networks:
    """`n_networks` energies (n, B, d) -> (n, B) trained side by side: |x|²/(2 std²) + MLP with `depth` hidden layers."""

    def __init__(self, n_networks, d, width, depth, std=1.0, device="cpu"):
        sizes, self.std = [d] + depth * [width], std
        self.weights = [
            torch.randn(n_networks, a, b, device=device) * (1.5 / a**0.5) for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        self.weights += [torch.zeros(n_networks, width, 1, device=device)]
        self.biases = [
            torch.randn(n_networks, 1, b, device=device) * (1.0 if i == 0 else 0.1) for i, b in enumerate(sizes[1:])
        ]
        self.biases += [torch.zeros(n_networks, 1, 1, device=device)]  # moves no slope: NCE's constant

    @property
    def parameters(self):
        return self.weights + self.biases

    def quadratic(self, x):
        return x.square().sum(-1) / (2 * self.std**2)

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
    """Adam with a cosine-annealed rate on gradient(networks, progress in [0, 1]) -> list; ends at the averaged weights."""
    adam = Adam(networks.parameters, clip)
    torch.set_flush_denormal(True)  # silu of far negative numbers is subnormal: a CPU is several times slower on those
    for step in Progress(range(n_steps), label):
        adam.step(gradient(networks, step / n_steps), rate * 0.5 * (1 + math.cos(math.pi * step / n_steps)), b2=b2)
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


def mixture_score(x, centres, s):
    """∇ log p (2, N) of an equal mixture of round Gaussians at `centres` (C, 2), for x (2, N): long rows, no autograd."""
    norms = (-0.5 / s**2) * centres.square().sum(1, keepdim=True)  # |x|²/2s² is common to all, and cancels
    return (centres.T @ torch.addmm(norms, centres, x, alpha=1 / s**2).softmax(0)).sub_(x).div_(s**2)


class Mixture:
    """Equal round Gaussians of standard deviation `s` at `centres` (C, 2)."""

    def __init__(self, centres, s):
        self.centres, self.s = centres, s

    def sample(self, n):
        which = torch.randint(len(self.centres), (n,), device=self.centres.device)
        return self.centres[which] + self.s * torch.randn(n, 2, device=self.centres.device)

    def log_density(self, x):
        distance = torch.cdist(x, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        return (-(distance**2) / (2 * self.s**2)).logsumexp(1) - math.log(len(self.centres) * 2 * math.pi * self.s**2)

    def score(self, x):
        return mixture_score(x.T, self.centres, self.s).T


class Squares:
    """Uniform on four squares with edge 2·half centred at (±middle, ±middle): its density has edges, its score is 0."""

    half, middle = 1.5, 2.25

    def __init__(self, device):
        self.device = device

    def sample(self, n):
        corner = 2.0 * torch.randint(2, (n, 2), device=self.device) - 1
        return self.middle * corner + self.half * (2 * torch.rand(n, 2, device=self.device) - 1)

    def log_density(self, x):
        inside = (x.abs() - self.middle).abs().amax(1) < self.half
        return torch.where(inside, -math.log(16 * self.half**2), -math.inf)

    def score(self, x):
        return torch.zeros_like(x)


BOX, START_STD = 6.0, 3.0  # the plane's window [-6, 6]², and the width of the Gaussian that training starts from


def toy_sets(device):
    """The data sets: each has sample(n), log_density(x) and score(x)."""
    angle = torch.arange(8, device=device) * (math.pi / 4)
    eight = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    turn = 3 * math.pi * ((torch.arange(100, device=device) + 0.5) / 100).sqrt()  # even along the arm, nearly
    arm = 4.2 / (3 * math.pi) * torch.stack([-turn * turn.cos(), turn * turn.sin()], 1)
    return {
        "8_gaussians": Mixture(eight, 0.3),
        "2_spirals": Mixture(torch.cat([arm, -arm]), 0.15),
        "4_squares": Squares(device),
    }


def score_on_grid(networks, data, n):
    """How good is a (single) network? On an n² midpoint grid: KL(data || model) in nats, the Fisher divergence
    E_p|∇ log p + ∇E|²/2, log Z, and the model's density (n, n) [i, j] at (x_i, y_j)."""
    middle = ((torch.arange(n, device=networks.weights[0].device) + 0.5) / n * 2 - 1) * BOX
    points, log_area = torch.cartesian_prod(middle, middle), 2 * math.log(2 * BOX / n)
    energy, gradient = (
        torch.cat(parts, 1)[0] for parts in zip(*(networks.passes(c[None]) for c in points.split(2000)), strict=True)
    )
    log_z = (-energy).logsumexp(0) + log_area
    log_p = data.log_density(points)
    log_p = log_p - log_p.logsumexp(0) - log_area  # as normalised as the model's density, on whatever grid
    p, ratio = log_p.exp() * math.exp(log_area), log_p + energy + log_z
    kl = torch.where(p > 0, p * ratio, 0.0).sum()  # 0 log 0 = 0
    fisher = 0.5 * (p[:, None] * (data.score(points) + gradient).square()).sum()
    return kl.item(), fisher.item(), log_z.item(), (-energy - log_z).exp().reshape(n, n)


# %% 4b. Maximum likelihood by Markov chains, why it fails, and the repair
# Eq. (5) needs samples of the model as it is *now*. Persistent chains follow it by a few MALA or HMC steps each update,
# and lag: they are samples of the models that were. Within a mode the lag is short; between modes chains hardly cross,
# and it is long. Energy is then pushed up where the model has been, not where it is; it overshoots, and the likelihood
# swings by nats. Jarzynski (1997): let the chains carry weights. When E_old becomes E_new, give each chain
#
#     log w <- log w + E_old(x) - E_new(x)          then move x by a kernel that keeps exp(-E_new).
#
# Then Σ w f(x)/Σ w estimates E_model f *without any crossing* (module 01's AIS, with learning as the annealing path), and
# mean w estimates Z/Z_start, for chains that the learning does not depend on. When the effective sample size falls below
# half, resample in proportion to w, and set w = 1 (Carbone et al. 2023 train images so). One detail decides whether it
# works with few chains. The update raises E at exactly the points where the negative phase was taken: measure the weight
# there and every chain seems too high, by an amount that differs between modes. So take the gradient first, *then move*
# the chains under the old energy, then change the parameters and weigh. The gradient then knows the points at which its
# effect is measured only through a short move (and a rejected proposal has not moved at all). What is left of the bias
# is of one sign: log Z from the weights comes out some tenths of a nat low, while the shares of the modes, which decide
# the fit, suffer less.


def resample(log_w):
    """Indices (N,) by systematic resampling (one uniform number, N even strides) in proportion to exp(log_w) (N,)."""
    n, cumulative = len(log_w), log_w.softmax(0).cumsum(0)
    strides = (torch.arange(n, device=log_w.device) + torch.rand(1, device=log_w.device)) / n
    return torch.searchsorted(cumulative, strides).clamp(max=n - 1)


def keep_or_move(log_ratio, new, old):
    """Metropolis' test: (x, E, ∇E) of `new` where accepted, of `old` elsewhere, and the share accepted."""
    yes = torch.rand_like(log_ratio).log() < log_ratio
    tests = (yes[..., None], yes, yes[..., None])
    return *(torch.where(*each) for each in zip(tests, new, old, strict=True)), yes.float().mean().item()


def mala_step(forces, x, energy, gradient, step_size):
    """One step of module 01's MALA on forces(x) -> (E, ∇E), E and ∇E at x known: x, E, accepted share; x (1, N, 2)."""
    noise = torch.randn_like(x)
    proposal = x - 0.5 * step_size * gradient + step_size**0.5 * noise
    e_new, g_new = forces(proposal)
    back = x - proposal + 0.5 * step_size * g_new
    log_ratio = energy - e_new - back.square().sum(-1) / (2 * step_size) + noise.square().sum(-1) / 2
    return keep_or_move(log_ratio, (proposal, e_new, g_new), (x, energy, gradient))


def hmc_step(forces, x, energy, gradient, step_size, n_leapfrog=2):
    """One trajectory of module 01's HMC with leapfrog step √step_size; arguments and result as for mala_step."""
    h, p = step_size**0.5, torch.randn_like(x)
    start, e_new, g_new, y = energy + p.square().sum(-1) / 2, energy, gradient, x
    for _ in range(n_leapfrog):
        p = p - 0.5 * h * g_new
        y = y + h * p
        e_new, g_new = forces(y)
        p = p - 0.5 * h * g_new
    return keep_or_move(start - e_new - p.square().sum(-1) / 2, (y, e_new, g_new), (x, energy, gradient))


def train_by_chains(networks, data, config, n_steps, kernel, n_moves, acceptance, weighted=True, rate=3e-3, watch=None):
    """Maximum likelihood, eq. (5), of one network by weighted persistent chains; returns chains, log w, and the weights'
    estimate of log Z.

    `kernel` is mala_step or hmc_step, `n_moves` of them between two updates, their step adapted to `acceptance`.
    """
    device, n, b = networks.weights[0].device, config.n_chains, config.batch_size
    x, log_w, step_size = networks.std * torch.randn(1, n, 2, device=device), torch.zeros(n, device=device), 0.1
    log_z, adam = math.log(2 * math.pi * networks.std**2), Adam(networks.parameters, clip=1.0)
    energy = networks.passes(x)[0]
    torch.set_flush_denormal(True)  # as in train
    for step in Progress(range(n_steps), kernel.__name__[:-5]):
        # one pass at the new parameters weighs the chains, starts their next move, and gives eq. (5)
        old, (energy, gradient, layers) = energy, networks.signals(torch.cat([data.sample(b)[None], x], 1))
        energy, gradient = energy[:, b:], gradient[:, b:]
        log_w += (old - energy)[0]
        share = log_w.softmax(0) if weighted else torch.full_like(log_w, 1 / n)
        if watch:
            watch(step, networks, x, share)
        gradients = networks.weigh(layers, torch.cat([share.new_full((b,), 1 / b), -share])[None])
        if weighted and 1 / share.square().sum() < n / 2:
            log_z, keep = log_z + log_w.logsumexp(0).item() - math.log(n), resample(log_w)
            x, energy, gradient, log_w = x[:, keep], energy[:, keep], gradient[:, keep], torch.zeros_like(log_w)
        for _ in range(n_moves):  # under the old energy
            x, energy, gradient, accepted = kernel(networks.passes, x, energy, gradient, step_size)
            step_size = min(step_size * math.exp(0.1 * (accepted - acceptance)), 1.0)
        adam.step(gradients, rate * 0.5 * (1 + math.cos(math.pi * step / n_steps)))
    torch.set_flush_denormal(False)
    log_w += (energy - networks.passes(x)[0])[0]
    adam.use_average()
    log_z += log_w.logsumexp(0).item() - math.log(n)
    must_be_finite(f"maximum likelihood by chains ({kernel.__name__[:-5]})", *networks.parameters, x, log_z)
    return x[0], log_w, log_z


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


def jittered_grid(n_cells, device):
    """One random point (1, n_cells², 2) in each cell of the window: even cover without a lattice to hide from."""
    left = torch.arange(n_cells, device=device) * (2 * BOX / n_cells) - BOX
    return torch.cartesian_prod(left, left) + 2 * BOX / n_cells * torch.rand(1, n_cells**2, 2, device=device)


def blurred_gradient(networks, x_data, progress, widest=2.0, narrowest=0.05):
    """Denoising, made quiet. σ falls, so that masses are set while the modes touch. Half of the points keep a random σ
    of 0.3 to 1.5, with a small weight: they hold the energy between the modes, where narrow noise never goes. Noise
    comes in pairs ±n, whose leading errors cancel; and the target is E[n | x̃] over the clean points of the batch that
    may have become x̃ (Xu, Tong & Jaakkola 2023), not only the one that did. Blur alone costs the squares 0.032 nats at
    σ = 0.05 and 0.064 at 0.1: hence the small σ at the end.
    """
    falling = max(narrowest, widest * (narrowest / widest) ** (progress / 0.8))
    sigma, noise = torch.full_like(x_data[..., :1], falling), torch.randn_like(x_data)
    half = sigma[:, : sigma.shape[1] // 2]
    half.copy_((0.3 * 5 ** torch.rand_like(half)).clamp(min=falling))
    weight = torch.where(sigma > falling, 0.15 * (falling / sigma) ** 2, 1.0)[..., 0].repeat(1, 2)
    sigma = sigma.repeat(1, 2, 1)
    noisy = x_data.repeat(1, 2, 1) + sigma * torch.cat([noise, -noise], 1)
    clean, where = torch.empty_like(noisy), torch.arange(x_data.shape[1], device=x_data.device)
    for rows in where.split(1000):  # E[x | x̃] from the batch; from parts of a large one, as all pairs' distances are needed
        both = torch.cat([rows, rows + len(where)])  # +n and -n
        nearness = -torch.cdist(noisy[:, both], x_data[:, rows]).square() / (2 * sigma[:, both] ** 2)
        clean[:, both] = nearness.softmax(2) @ x_data[:, rows]
    return by_autograd(networks, lambda energy: weight * denoising_matching(energy, clean, (noisy - clean) / sigma, sigma))


# Each entry is name: label, then for the two with chains kernel, moves an update and acceptance; without chains: learning
# rate and share of n_steps. Steps differ between trainers, so seconds are printed beside the gaps. Score matching and
# sliced SM get few steps on purpose: more of them (try --n-steps 4000) lower the Fisher divergence of 8 Gaussians and leave
# the gap at many nats, since the mass sits in the empty middle, where no datum tells E anything; how deep is chance.
TRAINERS = {
    "langevin": ("Langevin ML", mala_step, 3, 0.6),
    "hmc": ("HMC ML", hmc_step, 1, 0.65),
    "exact": ("grid ML", 1e-2, 1.0),
    "nce": ("NCE", 1e-2, 1.0),
    "dsm": ("denoising", 4e-3, 2.0),
    "sm": ("score matching", 3e-3, 0.2),
    "ssm": ("sliced SM", 3e-3, 0.2),
}


def train_without_chains(networks, data, config, name):
    """Train one network on `data` by one of the last five TRAINERS."""
    label, rate, share = TRAINERS[name]

    def gradient(networks, progress):
        x = data.sample(config.batch_size)[None]
        if name == "exact":  # exact up to Monte Carlo: one point to a cell, 0.5 wide, is why NCE can beat it
            return phases(networks, x, jittered_grid(24, x.device))
        if name == "nce":
            noise = BOX * (2 * torch.rand(1, 4 * x.shape[1], 2, device=x.device) - 1)
            return noise_phases(networks, x, noise, lambda y: torch.full_like(y[..., 0], -2 * math.log(2 * BOX)))
        if name == "dsm":
            return blurred_gradient(networks, x, progress)
        x = x + 0.1 * torch.randn_like(x)  # score matching needs a density without edges
        if name == "sm":
            return by_autograd(networks, lambda energy: implicit_matching(energy, x))
        return by_autograd(networks, lambda energy: sliced_matching(energy, x, torch.randn_like(x)))

    if name == "nce":  # begin normalised: E + c of the starting Gaussian
        networks.biases[-1].fill_(math.log(2 * math.pi * START_STD**2))
    clip, b2 = (None, 0.99) if name in ("exact", "nce") else (10.0, 0.999)  # gradients of slopes are noisier
    train(networks, gradient, max(int(share * config.n_steps), 2), rate, label, clip, b2)


def draw(density, n):
    """n points (n, 2) from a density on the grid of score_on_grid: a cell by its mass, a uniform point within."""
    size, cell = len(density), torch.multinomial(density.flatten(), n, replacement=True)
    corner = torch.stack([cell.div(size, rounding_mode="floor"), cell % size], 1)
    return ((corner + torch.rand(n, 2, device=density.device)) / size * 2 - 1) * BOX


def mode_shares(x, weights, centres, reach):
    """Mass (C + 1,) of weighted points x (N, 2) within `reach` of each of `centres` (C, 2), and elsewhere."""
    distance, nearest = torch.cdist(x, centres).min(1)
    where = torch.where(distance < reach, nearest, len(centres))
    return torch.zeros(len(centres) + 1, device=x.device).index_add_(0, where, weights)


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


def section_trainers(run):
    """Seven trainers of one network against the truth: maximum likelihood by chains works once the chains are weighted."""
    config, sets, n, every = run.config, toy_sets(run.device), run.config.n_grid, max(run.config.n_chain_steps // 36, 1)
    if n < 12:
        sys.exit("trainers needs --n-grid 12 at least: on a coarser grid no cell would lie in a square")
    results, curves, frames, eight = {}, {}, [], "8_gaussians"
    labels = {name: trainer[0] for name, trainer in TRAINERS.items()}

    def fit(name, key, weighted=True):
        """Train a fresh network: what score_on_grid says. With chains, also how far they are from the model on the way."""
        networks, curve = Networks(1, 2, config.width, 3, START_STD, run.device), []
        rng = np.random.default_rng(run.seed)

        def watch(step, networks, x, share):
            if key == eight and step % every == 0:
                kl, _, _, density = score_on_grid(networks, sets[key], 96)
                middle, centres = ((torch.arange(96, device=run.device) + 0.5) / 48 - 1) * BOX, sets[key].centres
                cells = torch.cartesian_prod(middle, middle)
                model = mode_shares(cells, density.flatten() * (BOX / 48) ** 2, centres, 1.2)
                behind = 0.5 * (mode_shares(x[0], share, centres, 1.2) - model).abs().sum().item()
                exact = to_numpy(model).astype(float)  # what n_chains independent points miss, over 200 draws
                drawn = rng.multinomial(config.n_chains, exact / exact.sum(), 200) / config.n_chains
                curve.append((step, kl, behind, 0.5 * np.abs(drawn - exact).sum(1).mean()))
                if name == "langevin" and weighted:
                    frames.append((to_numpy(density), to_numpy(x[0, :400]), step))

        if name not in ("langevin", "hmc"):
            train_without_chains(networks, sets[key], config, name)
            return score_on_grid(networks, sets[key], n)
        _, kernel, n_moves, acceptance = TRAINERS[name]
        n_steps = config.n_chain_steps
        log_z = train_by_chains(networks, sets[key], config, n_steps, kernel, n_moves, acceptance, weighted, watch=watch)[2]
        result = score_on_grid(networks, sets[key], n)
        if key == eight:
            curves[name, weighted], kind = np.array(curve), ("plain", "weighted")[weighted]
            behind, floor = curves[name, weighted][:, 2:].mean(0)  # times of one training: no independent repeats
            run.metric(f"{kind}_{name}_chains_behind", behind, against=("as many independent points, about", floor))
            if weighted:
                run.metric(f"{name}_log_z_from_weights", log_z, against=("the grid's log Z", result[2]))
        return result

    for name in labels:
        start = time.perf_counter()
        results |= {(name, key): fit(name, key) for key in sets}
        run.metric(f"{name}_seconds", time.perf_counter() - start)
    within = {"exact": 0.05, "nce": 0.05, "dsm": 0.15, "langevin": 0.10, "hmc": 0.10}
    for name, key in results:
        against = ("data's own log density", 0)
        run.metric(f"{name}_{key}_gap", results[name, key][0], against=against, within=within.get(name))
        run.metric(f"{name}_{key}_fisher", results[name, key][1])
    run.metric("nce_8_gaussians_log_z", results["nce", eight][2], against=("normalised by itself: 0", 0))
    for name in ("langevin", "hmc"):  # the failure; its cause is chains_behind
        plain, weighted = fit(name, eight, weighted=False)[0], results[name, eight][0]
        run.metric(f"plain_{name}_8_gaussians_gap", plain, against=("weighted chains", weighted))

    save_gif(run, frames, "trainers_langevin.gif")
    middle, key = ((np.arange(n) + 0.5) / n * 2 - 1) * BOX, "2_spirals"
    x, y = np.meshgrid(middle, middle, indexing="ij")
    cells = torch.as_tensor(np.stack([x, y], -1).reshape(-1, 2)).float().to(run.device)
    truth = sets[key].log_density(cells).exp()
    columns = {"data": truth.reshape(n, n)} | {labels[name]: results[name, key][3] for name in labels}
    fig = plt.figure(figsize=(15, 6.2), layout="constrained")
    square = {"xticks": [], "yticks": [], "aspect": "equal", "xlim": (-BOX, BOX), "ylim": (-BOX, BOX)}
    for i, (label, density) in enumerate(columns.items()):
        points = to_numpy(draw(density, 1500) if i else sets[key].sample(1500))
        ax, below = fig.add_subplot(3, 8, i + 1, title=label, **square), fig.add_subplot(3, 8, i + 9, **square)
        ax.scatter(*points.T, s=1, c="tab:orange" if i else "tab:blue")
        density = to_numpy(density)
        below.contourf(x, y, density, np.linspace(0, truth.max().item(), 10), cmap="magma", extend="max")
        energy = -np.log(np.maximum(density, 1e-30))
        surface = fig.add_subplot(3, 8, i + 17, projection="3d", xticks=[], yticks=[], zticks=[])
        surface.plot_surface(x, y, np.minimum(energy, energy.min() + 8), cmap="viridis", rcount=100, ccount=100)
        surface.view_init(80, -60)
        if i == 0:
            surface.text2D(-0.06, 0.5, "energy", transform=surface.transAxes, rotation=90, va="center", ha="center")
    for ax, label in zip(fig.axes, ("samples", "density"), strict=False):
        ax.set_ylabel(label)
    fig.suptitle(
        "two spirals by every trainer: samples (drawn from the grid density), density, energy cut 8 nats above its minimum"
    )
    run.figure(fig, "gallery")

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="tight", width_ratios=(3, 2))
    for i, key in enumerate(sets):
        values = [results[name, key][0] for name in labels]
        axes[0].bar(np.arange(7) + 0.27 * (i - 1), values, 0.25, label=key.replace("_", " "))
    axes[0].set_xticks(range(7), [label.replace(" ", "\n") for label in labels.values()])
    axes[0].axhline(0.1, color="k", ls="--", lw=1)
    axes[0].set(title="what each trainer reaches (dashed: 0.1 nats)", ylabel="gap to the data (nats)", yscale="log")
    for (name, weighted), curve in curves.items():
        colour, style = "tab:orange" if name == "langevin" else "tab:green", "-" if weighted else ":"
        label = f"{labels[name]}, {'weighted' if weighted else 'plain'} chains"
        axes[1].plot(*curve.T[:2], style, color=colour, lw=2, label=label)
    axes[1].set(title="8 Gaussians: weights repair the chains", xlabel="update", ylabel="gap (nats)")
    axes[1].set(yscale="log", ylim=(1e-3, 20))
    for ax, place in zip(axes, ("upper left", "lower left"), strict=True):
        ax.legend(fontsize=9, loc=place)
    run.figure(fig, "gaps")


# %% 5. Where score matching is blind
# Two modes, weights w and 1 - w. Near either mode the other contributes nothing, and ∇ log p is that of one Gaussian,
# *whatever w*. Only between them does the score know w, and there p ~ 0: nobody is there to report. A wrong weight costs
#
#     KL = w log(w/w') + (1 - w) log((1 - w)/(1 - w')), at any distance;      Fisher ~ exp(-m²/2s²), modes at ±m.
#
# So score matching, and denoising with small σ, fit each mode well and leave the weights to chance (section 4 shows
# worse: a well dug where no data are); likelihood and NCE compare heights and see them. Large noise joins the modes, and
# there the score knows w. Learn all levels at once, E(x, log σ), and let Langevin dynamics descend through them (Song &
# Ermon 2019): the particles choose their mode while the modes overlap, and keep it.


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


def section_blindness(run):
    """Score matching cannot see the weights of separated modes; noise levels and annealing let it see."""
    config, weight, m, s, n, device = run.config, 0.8, 2.0, 0.4, run.config.n_seeds, run.device
    axis, levels = torch.linspace(-8, 8, 1601, device=device), torch.logspace(math.log10(4.0), -1, 14).tolist()

    def gradients(method):
        def gradient(networks, progress):
            left = torch.rand(n, 256, 1, device=device) < weight
            x = torch.where(left, -m, m) + s * torch.randn(n, 256, 1, device=device)
            noise, log_sigma = torch.randn_like(x), math.log(40) * torch.rand_like(x) + math.log(0.1)
            if method == "likelihood":
                return phases(networks, x, axis[::10, None].expand(n, -1, -1))
            if method == "nce":
                uniform = 8 * (2 * torch.rand(n, 1024, 1, device=device) - 1)
                return noise_phases(networks, x, uniform, lambda y: torch.full_like(y[..., 0], -math.log(16)))
            if method == "score_matching":
                return by_autograd(networks, lambda energy: implicit_matching(energy, x))
            if method == "denoising":
                return by_autograd(networks, lambda energy: denoising_matching(energy, x, noise, 0.1))
            return by_autograd(  # every level at once: the second input is log σ
                networks,
                lambda energy: denoising_matching(lambda y: energy(torch.cat([y, log_sigma], 2)), x, noise, log_sigma.exp()),
            )

        return gradient

    learned, densities = {}, {}
    for name in ("likelihood", "nce", "score_matching", "denoising", "noise_levels"):
        many = name == "noise_levels"
        networks = Networks(n, 2 if many else 1, 64, 2, 3.0, device)
        train(networks, gradients(name), (2 if many else 1) * config.n_mode_steps, 5e-3, name, clip=10.0)
        if many:
            learned[name] = (
                (annealed_langevin(networks, 1000, levels, max(config.n_mode_steps // 15, 1)) < 0).float().mean((1, 2))
            )
        else:
            p = (-networks.passes(axis[:, None].expand(n, -1, -1))[0]).softmax(1)
            learned[name], densities[name] = p[:, axis < 0].sum(1), p / (axis[1] - axis[0])
    for name, values in learned.items():
        value, sem = mean_and_sem(values.cpu())
        within = {"likelihood": 0.02, "nce": 0.02, "noise_levels": 0.05}.get(name) if n > 1 else None
        run.metric(f"weight_{name}", value, sem, against=("truth", weight), within=within)
        run.metric(f"weight_{name}_rms_error", (values - weight).square().mean().sqrt())

    distances, fine, price = np.linspace(0.4, 3.2, 29), torch.linspace(-9, 9, 18001, dtype=torch.float64), []
    for distance in distances:
        (a, score_a), (b, score_b) = two_modes(fine, 0.8, distance, s), two_modes(fine, 0.5, distance, s)
        values = a.exp() * torch.stack([a - b, 0.5 * (score_a - score_b) ** 2])
        price.append(scipy.integrate.simpson(to_numpy(values), x=to_numpy(fine)))
    price = np.array(price)
    limit = ("0.8 ln 1.6 + 0.2 ln 0.4", 0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    run.metric("kl_of_wrong_weight", price[-1, 0], against=limit, within=1e-4)
    decay = np.polyfit(distances[-9:] ** 2, np.log(price[-9:, 1] / distances[-9:]), 1)[0]
    run.metric("fisher_decay_rate", decay, against=("-1 / (2 s^2)", -1 / (2 * s**2)), within=0.1)

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="tight")
    for i, values in enumerate(learned.values()):
        axes[0].plot(np.full(n, i), to_numpy(values), "o", color=f"C{i}", alpha=0.6)
    axes[0].axhline(weight, color="k", ls="--", label="truth")
    axes[0].set_xticks(range(5), ["likeli-\nhood", "NCE", "SM", "DSM\n0.1", "noise\nlevels"])
    axes[0].set(title="SM and DSM guess the weights", ylabel="weight of the left mode", ylim=(0, 1.05))
    x = to_numpy(axis)
    axes[1].plot(x, to_numpy(two_modes(axis, weight, m, s)[0].exp()), "k--", lw=2, label="data")
    for name, colour in (("likelihood", "C0"), ("score_matching", "C2")):
        lines = to_numpy(densities[name][:4].T)
        axes[1].plot(x, lines, color=colour, lw=1, label=[name.replace("_", " ")] + [None] * (lines.shape[1] - 1))
    axes[1].set(title="right shapes, wrong heights", xlabel="$x$", ylabel="density", xlim=(-4, 4))
    axes[2].plot(2 * distances / s, price[:, 0], "tab:blue", label="KL: what likelihood sees")
    axes[2].plot(2 * distances / s, price[:, 1], "tab:orange", label="Fisher: what SM sees")
    axes[2].set(title="weight 0.5 for 0.8: SM stops seeing it", xlabel="distance of the modes (std)")
    axes[2].set(ylabel="divergence (nats; $1/x^2$)", yscale="log", ylim=(1e-12, 10))
    for ax in axes:
        ax.legend()
    run.figure(fig, "weights")


# %% 6. Efficiency
# With n samples maximum likelihood has variance 1/(n I), I the Fisher information; asymptotically nothing regular does
# better. An estimator that minimises Σ ρ(x_i; θ) has, with ψ = ∂ρ/∂θ, the sandwich variance (Godambe 1960)
#
#     n var -> E[ψ²] / E[∂ψ/∂θ]²,            for likelihood E[ψ²] = E[∂ψ/∂θ] = I.
#
# Take E = θ|x|^a/a, from peaked (a < 2) to box-like (a > 2). Maximum likelihood: θ = 1/mean|x|^a. Score matching:
#
#     ρ = ½ θ²|x|^(2a-2) - θ(a-1)|x|^(a-2),          θ = (a-1) mean|x|^(a-2) / mean|x|^(2a-2).
#
# At a = 2, a Gaussian's precision, they are the same estimator. At a = 4 score matching leans on sixth powers, and needs
# more data for the same error. And for the weight of two separated modes, section 5, it needs exponentially more.
# Koehler, Heckett & Risteski (2023) tie the price to isoperimetry: score matching is inefficient for just those densities,
# cut in two by a thin neck, on which Langevin dynamics mixes slowly.


def sandwich(psi, slope_of_psi, p):
    """E[ψ²]/E[∂ψ/∂θ]²: n times the asymptotic variance; all (n_x,), p the probabilities of quadrature cells."""
    return ((p * psi**2).sum() / (p * slope_of_psi).sum() ** 2).item()


def power_variances(a):
    """n var of (likelihood, score matching) for θ = 1 in E = θ|x|^a/a: a, and the sandwich by quadrature."""
    edges = torch.linspace(0, 1, 20_001, dtype=torch.float64) ** 4 * (60 * a) ** (1 / a)  # fine near 0, a kink if a < 2
    x = (edges[1:] + edges[:-1]) / 2
    p = (-(x**a) / a).exp() * edges.diff()
    return float(a), sandwich(x ** (2 * a - 2) - (a - 1) * x ** (a - 2), x ** (2 * a - 2), p / p.sum())


def weight_variances(m, weight=0.5):
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


def section_efficiency(run):
    """Score matching pays in data for never computing Z: nothing on a Gaussian, more and more away from it."""
    n, repeats, shapes, measured = 1000, 40 * run.config.n_repeats, (1.7, 2.0, 3.0, 4.0, 6.0, 8.0), []
    rng = np.random.default_rng(run.seed)
    for a in shapes:
        x = torch.from_numpy((a * rng.gamma(1 / a, size=(repeats, n))) ** (1 / a))  # |x|^a/a ~ Gamma(1/a)
        likelihood = 1 / (x**a).mean(1)
        matching = (a - 1) * (x ** (a - 2)).mean(1) / (x ** (2 * a - 2)).mean(1)
        ratio = likelihood.var() / matching.var()
        # delta method: the two variances are estimated from the same samples
        squares = (likelihood - likelihood.mean()) ** 2 / likelihood.var() - (
            matching - matching.mean()
        ) ** 2 / matching.var()
        measured.append((ratio.item(), (ratio * squares.std() / repeats**0.5).item()))
        ml, sm = power_variances(a)
        within = 4 * measured[-1][1] + 0.02  # 0.02: n is finite
        run.metric(f"efficiency_power_{a:g}", *measured[-1], against=("sandwich, quadrature", ml / sm), within=within)
    half = np.linspace(0.5, 4, 15)
    ratio = [sm / ml for ml, sm in map(weight_variances, half)]
    ml, sm = weight_variances(3.0)
    run.metric("data_needed_for_weight_6_std_apart", sm / ml, against=("maximum likelihood", 1))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="tight")
    fine = np.concatenate([np.linspace(1.6, 2, 9), np.linspace(2.1, 8.2, 25)])
    axes[0].plot(fine, [ml / sm for ml, sm in map(power_variances, fine)], "k--", label="asymptotic theory, quadrature")
    values, errors = zip(*measured, strict=True)
    axes[0].errorbar(shapes, values, errors, fmt="o", color="tab:orange", label=f"{repeats} replications of n = {n}")
    axes[0].set(title="only on a Gaussian is nothing lost", xlabel="power $a$ in $E=\\theta|x|^a/a$")
    axes[0].set(ylabel="efficiency, var ML / var SM", ylim=(0, 1.1))
    axes[1].plot(2 * half, ratio, "k--", label="asymptotic theory, quadrature")
    axes[1].set(title="the weight of two modes: exponentially more data", xlabel="distance of the modes (std)")
    axes[1].set(ylabel="var SM / var ML", yscale="log")
    for ax in axes:
        ax.legend()
    run.figure(fig, "variance")


# %% 7. Real continuous data
# Tables from scikit-learn: wine (178 wines, 13 measurements) and breast cancer (569 tumours, 30 measurements). Whiten by
# the training fold's mean and (shrunk) covariance; then one Gaussian is E = |z|²/2, where every energy below begins.
# The networks of all folds train side by side. Beyond two dimensions Z needs sampling: importance sampling from the
# fold's own Gaussian, Z = mean exp(-E)/q, with its effective sample size beside it.
#
# Beside the energies stand mixtures of one to six Gaussians, their number by BIC. On wine, three cultivars, the one with
# a shared covariance wins; on cancer the diagonal one, which beats one Gaussian in all five folds. So compare fold by
# fold, for the folds differ more than the methods; and take the errors over folds as optimistic, for folds share data.


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
    log_w = -networks.passes(z)[0] - gaussian_log_density(z, scale)
    log_sum = log_w.logsumexp(1)
    return log_sum - math.log(n_draws), (2 * log_sum - (2 * log_w).logsumexp(1)).exp() / n_draws


def gaussian_log_density(z, scale=1.0):
    """log N(z; 0, scale² I) in nats, z (..., d) -> (...)."""
    return -z.square().sum(-1) / (2 * scale**2) - z.shape[-1] * math.log(scale * math.sqrt(2 * math.pi))


def table_scores(run, folds):
    """Log density (up to a constant, for energies) of each fold's test rows: {method: a list of arrays (n_test,)}, and
    (log Z, ESS fraction) of the energies. folds: (z_train, z_test) already whitened."""
    config, device, d = run.config, run.device, folds[0][0].shape[1]
    scores, log_z = {"gaussian": [gaussian_log_density(torch.as_tensor(z)).numpy() for _, z in folds]}, {}
    for kind in ("diag", "tied"):  # of Gaussians with axes of their own, or with one covariance for all
        scores[f"mixture_{kind}"] = []
        for a, b in folds:
            fits = [GaussianMixture(k, covariance_type=kind, reg_covar=0.05, random_state=run.seed) for k in range(1, 7)]
            best = min((fit.fit(a) for fit in fits), key=lambda fit, a=a: fit.bic(a))
            scores[f"mixture_{kind}"].append(best.score_samples(b))
    tables, tests = ([torch.as_tensor(fold[i]).float().to(device) for fold in folds] for i in (0, 1))
    for method in ("nce", "dsm"):
        networks = Networks(len(folds), d, 64, 2, 1.0, device)
        networks.biases[-1].fill_(0.5 * d * math.log(2 * math.pi))

        def gradient(networks, progress, method=method):
            z = torch.stack([table[torch.randint(len(table), (64,), device=device)] for table in tables])
            noise = torch.randn(len(tables), 256, d, device=device)
            if method == "nce":
                return noise_phases(networks, z, 1.1 * noise, lambda x: gaussian_log_density(x, 1.1))
            return by_autograd(networks, lambda energy: denoising_matching(energy, z, noise[:, :64], 0.5))

        train(networks, gradient, config.n_table_steps, 1e-3, f"table, {method}", clip=10.0)
        energies = [networks.passes(z.expand(len(folds), -1, -1))[0][i].cpu().double() for i, z in enumerate(tests)]
        must_be_finite(f"{method} on the tables", *energies)
        scores[method], log_z[method] = [-to_numpy(e) for e in energies], log_z_by_importance(networks, 4 * config.n_samples)
    return scores, log_z


def section_tabular(run):
    """On small tables an energy network is one density among others: mixtures match or beat it, cross-validated."""
    names = {"gaussian": "Gaussian", "mixture_diag": "mixture,\ndiagonal", "mixture_tied": "mixture,\nshared cov."}
    names |= {"nce": "NCE\nenergy", "dsm": "DSM\nenergy"}
    splits, wine, cancer = KFold(5, shuffle=True, random_state=run.seed), load_wine().data, load_breast_cancer()
    wine = without_constants(run, "wine", wine, [wine[rows] for rows, _ in splits.split(wine)])
    folds = [whiten(wine[rows], wine[held_out]) for rows, held_out in splits.split(wine)]
    scores, log_z = table_scores(run, [fold[:2] for fold in folds])
    nats = {}
    for name in names:
        nats[name] = np.array([values.mean() + fold[2] for values, fold in zip(scores[name], folds, strict=True)])
        if name in log_z:
            nats[name] -= to_numpy(log_z[name][0])
            run.metric(f"wine_{name}_worst_ess_fraction", log_z[name][1].min())
        against = ("one Gaussian", nats["gaussian"].mean())
        run.metric(f"wine_{name}_test_nats", *mean_and_sem(nats[name]), against=against)

    rows = list(splits.split(cancer.data[cancer.target == 1]))  # trained on benign tumours only
    trained_on = [cancer.data[cancer.target == 1][a] for a, _ in rows]
    table = without_constants(run, "cancer", cancer.data, trained_on)
    benign, malignant = table[cancer.target == 1], table[cancer.target == 0]
    folds = [whiten(benign[a], np.concatenate([benign[b], malignant]))[:2] for a, b in rows]
    scores, _ = table_scores(run, folds)
    ranks = {k: [roc_auc_score(np.arange(len(s)) >= len(s) - len(malignant), -s) for s in scores[k]] for k in names}
    auroc = {name: np.array(values) for name, values in ranks.items()}
    for name, values in auroc.items():
        run.metric(f"cancer_{name}_auroc", *mean_and_sem(values), against=("one Gaussian", auroc["gaussian"].mean()))
    for table, values, best in (("wine", nats, "mixture_tied"), ("cancer", auroc, "mixture_diag")):
        for name in names:  # the same folds: the difference is surer than either
            if name != best:
                difference = mean_and_sem(values[name] - values[best])
                run.metric(f"{table}_{name}_minus_{best}", *difference, against=("a draw", 0))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="tight")
    colours = ["tab:blue", "tab:blue", "tab:orange", "tab:orange"]
    for ax, values in zip(axes, (nats, auroc), strict=True):
        means, errors = zip(*(mean_and_sem(values[name] - values["gaussian"]) for name in list(names)[1:]), strict=True)
        ax.bar(list(names.values())[1:], means, yerr=errors, color=colours, capsize=6)
        ax.axhline(0, color="k", ls="--")
    axes[0].set(title="wine: log likelihood of held-out wines", ylabel="gain over one Gaussian (nats)")
    axes[1].set(title="breast cancer: malignant tumours, unseen in training", ylabel="AUROC gained over one Gaussian")
    run.figure(fig, "tables")


SECTIONS = {
    "identity": section_identity,
    "objectives": section_objectives,
    "nce": section_nce,
    "trainers": section_trainers,
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
