"""Module 01 - Foundations: from an energy to a probability, and what it takes to sample it and to learn it.

An energy E gives every state a number, low where states are likely. At temperature T it defines a density

    p(x) = exp(-E(x)/T) / Z,        Z = ∫ exp(-E(x)/T) dx.                             (1)

E is easy to write down; Z is an integral over everything that could happen. The whole field lives from two
things that need no Z: the slope of the log density, ∇ log p = -∇E/T, which Langevin dynamics follows,

    x <- x - (ε/2) ∇E(x) + √(ε T) ξ,        ξ ~ N(0, I),                               (2)

and ratios p(x')/p(x) = exp(-(E(x') - E(x))/T), by which a Markov chain accepts or rejects a move. It learns by
the likelihood's gradient in the parameters θ (at T = 1), which has two phases, data against the model's own samples:

    ∇ log p(x) = -∇E(x) + E_{x'~p}[∇E(x')].                                            (3)

Run      python 01_ebm_foundations.py                all seven sections, about a minute on one CPU core
         python 01_ebm_foundations.py --section sampling --show
Writes   outputs/01_ebm_foundations/*.png, sampling_settling.gif and metrics.json
Before   nothing: probability, calculus, a little Python        Exercises  ex01_1 ... ex01_5, o5
Sources  LeCun et al. (2006); Neal (2001); Neal (2011); Roberts & Rosenthal (1998); Beskos et al. (2013); Vehtari et al.
         (2021). Each function names its own.
"""

import argparse
import contextlib
import errno
import functools
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.special
import torch
from matplotlib.animation import PillowWriter
from torch.nn.functional import silu


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_chains: Annotated[int, "parallel Markov chains"] = 100
    n_draws: Annotated[int, "draws kept from each chain"] = 3000
    n_particles: Annotated[int, "particles in one run of annealed importance sampling"] = 200
    n_betas: Annotated[int, "steps of inverse temperature on its path"] = 400
    n_repeats: Annotated[int, "independent repeats of each estimate of log Z"] = 16
    n_scaling_steps: Annotated[int, "steps at each step size of the optimal-scaling sweep"] = 250
    n_train_steps: Annotated[int, "optimiser steps of the one-dimensional network"] = 300
    n_frames: Annotated[int, "frames of the animation"] = 48
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1


SMOKE = {"n_chains": 10, "n_draws": 100, "n_particles": 20, "n_betas": 10, "n_repeats": 4, "n_scaling_steps": 2}
SMOKE |= {"n_train_steps": 10, "n_frames": 3}


# %% 1. From energy to probability
# Take a handful of states with energies E_i, and weigh each by its Boltzmann factor exp(-β E_i), β = 1/T:
#
#     p_i = exp(-β E_i) / Z,    Z = Σ_i exp(-β E_i)        "softmax" to a programmer, Boltzmann (1868) to a physicist.
#
# Only differences of energy count: a constant added to every E_i cancels between numerator and Z. Take logs,
#
#     log p_i = -β E_i - log Z,
#
# average over p, and call U = <E> the energy, S = -<log p> the entropy (nats), F = -T log Z the free energy:
#
#     -S = -β U - log Z      hence      F = U - T S.
#
# Cold, F is nearly U: the lowest energy wins. Hot, -TS rules: what is many wins. And log Z generates all moments:
#
#     ∂ log Z/∂β   = (1/Z) Σ (-E_i) exp(-β E_i) = -<E>,
#     ∂² log Z/∂β² = <E²> - <E>² = Var E = T² C,        C = dU/dT the heat capacity.


def thermodynamics(energies, temperatures):
    """log Z, U, S, F, C, each (n_T,), and p (n_T, n), of states with `energies` (n,) at `temperatures` (n_T,).

    Natural units: Boltzmann's constant is 1, S and C are in nats, the others in units of energy.
    """
    logits = -energies / temperatures[:, None]
    log_z, log_p = logits.logsumexp(1), logits.log_softmax(1)
    p = log_p.exp()
    mean_energy = (p * energies).sum(1)
    entropy = -(p * log_p).sum(1)
    heat_capacity = (p * (energies - mean_energy[:, None]) ** 2).sum(1) / temperatures**2
    return log_z, mean_energy, entropy, -temperatures * log_z, heat_capacity, p


def section_probability(run):
    """Temperature decides between the lowest energy and the largest number of states; log Z knows everything."""
    energies = torch.tensor([-3.0, -3.0, -2.0, -1.0, 2.0], dtype=torch.float64)  # two ground states
    temperatures = torch.logspace(-2, 2, 400, dtype=torch.float64)
    log_z, u, s, f, c, p = thermodynamics(energies, temperatures)
    beta = (1 / temperatures).requires_grad_(True)
    (slope,) = torch.autograd.grad((-beta[:, None] * energies).logsumexp(1).sum(), beta, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), beta)
    run.metric("worst_f_minus_u_plus_ts", (f - (u - temperatures * s)).abs().max(), against=("0", 0), within=1e-9)
    run.metric("worst_dlogz_dbeta_plus_u", (slope.detach() + u).abs().max(), against=("0", 0), within=1e-9)
    run.metric("worst_d2logz_minus_t2c", (curvature - temperatures**2 * c).abs().max(), against=("0", 0), within=1e-9)
    run.metric("entropy_coldest", s[0], against=("ln 2, two ground states", math.log(2)), within=1e-6)
    run.metric("entropy_hottest", s[-1], against=("ln 5, all five states", math.log(5)), within=1e-3)

    # float32, a network's precision: exp overflows beyond 88.7, and below -103 every term is 0 and its log -inf
    e, t = energies.float().to(run.device), temperatures.float().to(run.device)
    naive, safe = (-e / t[:, None]).exp().sum(1).log().cpu(), thermodynamics(e, t)[0].cpu()
    too_big = (3 / temperatures + math.log(2) > math.log(torch.finfo(torch.float32).max)).sum()
    run.metric("naive_infinite_of_400", naive.isinf().sum(), against=("where 2 exp(3/T) > 3.4e38", too_big), within=1)
    exact = sum((-Decimal(e) / Decimal(temperatures[0].item())).exp() for e in energies.tolist()).ln()
    run.metric("logsumexp_coldest", safe[0], against=("28-digit arithmetic", exact), within=1e-4)

    fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="tight")
    temperatures, p, u, s, f, c, naive, safe, log_z = map(to_numpy, (temperatures, p, u, s, f, c, naive, safe, log_z))
    axes[0].plot(temperatures, p[:, 1:], label=["$E=-3$ (two)", "$E=-2$", "$E=-1$", "$E=2$"])
    axes[0].axhline(1 / 5, color="k", ls="--", lw=1)
    axes[0].set(title="cold: ground states; hot: all alike", ylabel="probability of one state")
    axes[1].plot(temperatures, np.stack([u, f, c], 1), label=["energy $U$", "free energy $F$", "heat capacity $C$"])
    axes[1].plot(temperatures, u - temperatures * s, "k--", label="$U-TS$")
    axes[1].set(title="$F=U-TS$: entropy pulls $F$ below $U$", ylabel="energy ($C$: nats)", ylim=(-10, 2))
    axes[2].plot(temperatures, naive, "tab:blue", lw=8, alpha=0.4, label="naive")
    axes[2].plot(temperatures, safe, "tab:orange", lw=3, label="log-sum-exp")
    axes[2].plot(temperatures, log_z, "k--", label="exact")
    axes[2].axvspan(0.01, 3 / 88, color="tab:blue", alpha=0.15, label="naive: infinite")
    axes[2].set(title="the naive sum overflows when it is cold", ylabel=r"$\log Z$ in float32 (nats)", yscale="log")
    for ax in axes:
        ax.set(xscale="log", xlabel="temperature $T$")
        ax.legend()
    run.figure(fig, "temperature")


# %% 2. The partition function
# Z normalises. In one dimension any quadrature gives it; the trapezoid rule is astonishing on smooth functions that die
# out at both ends, 41 points give nine digits. In d dimensions it costs 41^d points: 10^32 at d = 20. From d = 5 or so
# Z is *estimated*. Every estimator here is a mean of weights w with E[w] = Z:
#
#     simple Monte Carlo    x uniform on a box of volume V,      w = V exp(-E(x))
#     importance sampling   x ~ q,                               w = exp(-E(x)) / q(x)
#     AIS (Neal 2001)       x_0 ~ q, then walk through E_β = (1-β) E_q + β E while β goes from 0 to 1, with Markov
#                           moves that keep each exp(-E_β) invariant,  log w = Σ_k [E_{β_k} - E_{β_k+1}](x_k).
#
# To see dimension alone at work, take a product energy E(x) = Σ_i E_1(x_i): then log Z = d log Z_1 exactly, w is a
# product of d independent factors, and the fraction of samples that count (effective sample size, ESS) is a power:
#
#     ESS/N  ->  (E w)² / E w²  =  ρ^d,        ρ = Z_1² / ∫ exp(-2 E_1)/q dx  <  1.
#
# Exponentially few samples carry the sum. Three warnings that papers forget:
# 1. mean(w) is unbiased for Z, but we report its log. Jensen: E[log mean(w)] <= log Z, a *stochastic lower bound*, low
#    by about var(w)/(2 N Z²). A log likelihood -E(x) - log Z computed from it is therefore flattered.
# 2. The standard error below cannot exceed 1 nat, which it reaches at ESS = 1: when few weights dominate, those that
#    would reveal the error have not been drawn yet. A small ESS makes the error bar itself worthless.
# 3. A large ESS proves nothing if q misses a mode altogether: no diagnostic sees what no sample has visited.


def double_well(x, barrier=2.0, tilt=0.5):
    """E = Σ_i [barrier (x_i² - 1)² + tilt x_i]: wells near ±1 in every coordinate; x (B, d) -> (B,)."""
    return (barrier * (x**2 - 1) ** 2 + tilt * x).sum(-1)


def log_z_from_weights(log_w):
    """(log Z, its standard error, ESS), each (...), from log importance weights (..., N).

    Standard error by the delta method, std(w) / (mean(w) √N); ESS = (Σw)² / Σw² (Kong 1992), between 1 and N.
    """
    n = log_w.shape[-1]
    log_sum = log_w.logsumexp(-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(-1)).exp()
    return log_sum - math.log(n), ((1 / ess - 1 / n).clamp(min=0) * n / (n - 1)).sqrt(), ess


def ais(energy, transition, x, betas):
    """Annealed importance sampling (Neal 2001): log weights (B,) and the points they belong to (B, ...).

    `energy(x, beta)` (B,) is the path; `transition(x, beta)` moves x and leaves exp(-energy(., beta)) invariant; x are
    *exact* samples at betas[0]. E[exp(log weight)] = Z(betas[-1]) / Z(betas[0]).
    """
    log_w = torch.zeros(len(x), device=x.device)
    for last, beta in zip(betas[:-1], betas[1:], strict=True):
        log_w = log_w + energy(x, last) - energy(x, beta)  # at the point reached so far: weigh first, then move
        x = transition(x, beta)
    return log_w, x


def section_partition(run):
    """Z is easy in one dimension; as dimensions are added plain averages collapse, and annealing lasts longer."""
    config, dims, axis = run.config, (1, 2, 5, 10, 20, 40), torch.linspace(-2.99, 2.99, 41, dtype=torch.float64)
    if config.n_particles < 2:
        sys.exit("[partition] --n-particles must be at least 2: one weight alone says nothing of its error")
    z_1 = scipy.integrate.quad(lambda x: math.exp(-double_well(np.array([x]))), -4, 4, epsabs=1e-12)[0]
    trapezoid = torch.trapezoid((-double_well(axis[:, None])).exp(), axis)
    run.metric("log_z_trapezoid_41_points", trapezoid.log(), against=("quadrature", math.log(z_1)), within=1e-8)

    n = config.n_particles * config.n_betas * 4  # as many energy evaluations as AIS spends, roughly
    estimates, rho = {}, {}  # estimates[name] (n_dims, 3, n_repeats): log Z, its claimed error, ESS/N
    proposals = {"simple": torch.distributions.Uniform(-3.0, 3.0), "importance": torch.distributions.Normal(0.0, 1.0)}
    for name, q in proposals.items():
        squared = (-2 * double_well(axis[:, None]) - q.log_prob(axis)).exp()
        rho[name] = z_1**2 / torch.trapezoid(squared, axis).item()
        log_w, rows = torch.zeros(config.n_repeats, n, device=run.device), []
        for d in range(1, dims[-1] + 1):  # a product energy grows by one coordinate at a time
            x = q.sample(log_w.shape).to(run.device)
            log_w -= double_well(x[..., None]) + q.log_prob(x)
            if d in dims:
                log_z, claimed, ess = log_z_from_weights(log_w)
                rows.append(torch.stack([log_z, claimed, ess / n]).cpu())
            if d == 5:  # many small estimates (kept: those of the last proposal), to see what they are on average
                few = log_z_from_weights(log_w.reshape(-1, config.n_betas * 4))[0].cpu() - 5 * math.log(z_1)
        estimates[name] = torch.stack(rows)
    rows, betas = [], torch.linspace(0, 1, config.n_betas + 1).tolist()
    for d in dims:  # from the same Gaussian, normalised so that Z = 1 there; MALA's step scales as section 4 explains

        def path(x, beta):
            return (1 - beta) * 0.5 * (x**2 + math.log(2 * math.pi)).sum(-1) + beta * double_well(x)

        def transition(x, beta, step_size=0.2 * d ** (-1 / 3)):
            return mala(lambda y: path(y, beta), x, 1, step_size)[0]

        x = torch.randn(config.n_repeats * config.n_particles, d, device=run.device)
        log_w, _ = ais(path, transition, x, betas)
        log_z, claimed, ess = log_z_from_weights(log_w.reshape(config.n_repeats, -1))
        rows.append(torch.stack([log_z, claimed, ess / config.n_particles]).cpu())
    estimates["ais"] = torch.stack(rows)

    truth, root = torch.tensor(dims)[:, None] * math.log(z_1), config.n_repeats**0.5
    rms = {name: (e[:, 0] - truth).square().mean(1).sqrt() for name, e in estimates.items()}
    for name, e in estimates.items():
        log_z, claimed, ess = e[dims.index(20)]
        sem, ess_sem = (log_z.std() / root, ess.std() / root) if config.n_repeats > 1 else (None, None)
        exact, within = ("exact, 20 log Z_1", 20 * math.log(z_1)), None
        if name == "ais" and sem is not None:
            within = (4 * sem + log_z.var() / 2).item()  # 4 standard errors, and Jensen's shift
        run.metric(f"{name}_log_z_d20", log_z.mean(), sem, against=exact, within=within)
        run.metric(f"{name}_claimed_error_d20", claimed.mean(), against=("actual RMS error", rms[name][dims.index(20)]))
        limit = ("limit rho^20", rho[name] ** 20) if name in rho else None
        run.metric(f"{name}_ess_fraction_d20", ess.mean(), ess_sem, against=limit)
    ratio, root = few.exp(), len(few) ** 0.5
    sem = (ratio.std() / root).item()
    run.metric("mean_of_z_ratio_d5", ratio.mean(), sem, against=("unbiased", 1), within=4 * sem)
    shortfall = -(rho["importance"] ** -5 - 1) / (2 * (config.n_betas * 4))
    run.metric("mean_log_z_error_d5", few.mean(), few.std() / root, against=("Jensen, first order", shortfall))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="tight")
    labels = {"simple": "simple Monte Carlo", "importance": "importance sampling", "ais": "AIS"}
    for (name, e), colour in zip(estimates.items(), ("tab:blue", "tab:green", "tab:orange"), strict=True):
        axes[0].plot(dims, to_numpy(rms[name]), "o-", color=colour, label=f"{labels[name]}: actual error")
        axes[0].plot(dims, to_numpy(e[:, 1].mean(1)), ":", color=colour, lw=2, label="... its own error bar")
        axes[1].plot(dims, to_numpy(e[:, 2].mean(1)), "o-", color=colour, label=labels[name])
        axes[1].plot(dims, [rho.get(name, math.nan) ** d for d in dims], "k--", lw=1)
    axes[1].plot([], [], "k--", lw=1, label=r"exact limit $\rho^d$")
    axes[1].axhline(1 / n, color="0.5", lw=1, label="one sample of them all")
    axes[0].axhline(1, color="0.5", lw=1)
    axes[0].set(title="an error bar cannot exceed 1 nat; the error can", ylabel=r"RMS error of $\log Z$ (nats)")
    axes[1].set(title="plain averages lose samples exponentially", ylabel="ESS / samples", ylim=(0.3 / n, 2))
    for ax in axes:
        ax.set(xlabel="dimension $d$", yscale="log")
        ax.legend(fontsize=9)
    run.figure(fig, "dimension")


# %% 3. Landscapes
# Six energies in the plane, each with a difficulty of its own: a narrow valley (Gaussian), a barrier (two wells), a
# continuum of minima (ring), a bend (banana), modes far apart (mixture), and a chemist's reaction path through three
# basins (Mueller & Brown 1979). All but the last have an exact log Z. The banana is a Gaussian sheared by (x_1, x_2) ->
# (x_1, x_2 + b(x_1)), whose Jacobian has ones on its diagonal and nothing above: it moves mass and changes no volume.
# The ring needs one integral, ∫ 2πr exp(-(r-2)²/(2s²)) dr. Check a new sampler on energies whose answer you know.


def gaussian(x):
    """Correlation 0.9, variances 1; log Z = log 2π + log(1 - 0.81)/2."""
    return (x[:, 0] ** 2 - 1.8 * x[:, 0] * x[:, 1] + x[:, 1] ** 2) / (2 * (1 - 0.81))


def two_wells(x):
    """A double well along x_1, a standard Gaussian along x_2."""
    return double_well(x[:, :1]) + x[:, 1] ** 2 / 2


def ring(x):
    """Radius 2, thickness 0.3."""
    return (x.norm(dim=1) - 2) ** 2 / (2 * 0.3**2)


def banana(x):
    """x_1 ~ N(0, 1), x_2 ~ N(x_1²/2, 0.5²), a sheared Gaussian (Haario, Saksman & Tamminen 1999); log Z = log π."""
    return x[:, 0] ** 2 / 2 + (x[:, 1] - x[:, 0] ** 2 / 2) ** 2 / (2 * 0.5**2)


def mixture(x):
    """Three round Gaussians with weights 0.5, 0.3, 0.2; normalised, so log Z = 0 and E is -log p itself."""
    centres, s = torch.tensor([[-1.5, -1.0], [1.5, -1.0], [0.0, 1.6]]).to(x), 0.4
    log_weight = torch.tensor([0.5, 0.3, 0.2]).to(x).log() - math.log(2 * math.pi * s**2)
    return -(log_weight - (x[:, None] - centres).square().sum(-1) / (2 * s**2)).logsumexp(1)


def mueller_brown(x):
    """Mueller & Brown (1979), Theor. Chim. Acta 53, 75: a model reaction path; minima -146.70, -108.17, -80.77."""
    height, a = torch.tensor([[-200, -100, -170, 15], [-1, -1, -6.5, 0.7]]).to(x)
    b, c = torch.tensor([[0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]]).to(x)
    x0, y0 = torch.tensor([[1, 0, -0.5, -1], [0, 0.5, 1.5, 1]]).to(x)
    u, v = x[:, :1] - x0, x[:, 1:] - y0
    return (height * (a * u**2 + b * u * v + c * v**2).exp()).sum(1)


def grid_density(energy, box, n=400, temperature=1.0, device="cpu"):
    """Eq. (1) on an n x n midpoint grid over box = (x0, x1, y0, y1): log Z, log density (n, n) [i, j] at (x_i, y_j),
    points (n², 2) and the area of a cell."""
    (x0, x1, y0, y1), middle = box, (torch.arange(n, device=device) + 0.5) / n
    points = torch.cartesian_prod(x0 + (x1 - x0) * middle, y0 + (y1 - y0) * middle)
    area = (x1 - x0) * (y1 - y0) / n**2
    minus_e = -energy(points).detach() / temperature
    log_z = minus_e.logsumexp(0) + math.log(area)
    return log_z, (minus_e - log_z).reshape(n, n), points, area


def standard_gaussian(x):
    """The unit Gaussian's energy in any number of dimensions, x (B, d) -> (B,)."""
    return (x**2).sum(-1) / 2


# name: energy, box, temperature of the density shown
LANDSCAPES = {
    "gaussian": (gaussian, (-4.5, 4.5, -4.5, 4.5), 1.0),
    "two_wells": (two_wells, (-2.5, 2.5, -4.5, 4.5), 1.0),
    "ring": (ring, (-4, 4, -4, 4), 1.0),
    "banana": (banana, (-4.5, 4.5, -2.5, 10), 1.0),
    "mixture": (mixture, (-4, 4, -4, 4), 1.0),
    "mueller_brown": (mueller_brown, (-1.5, 1.2, -0.3, 2.1), 20.0),
}


def section_landscapes(run):
    """Six landscapes: temperature decides how much of an energy a sampler ever sees."""
    quad = scipy.integrate.quad
    z_1 = quad(lambda x: math.exp(-double_well(np.array([x]))), -4, 4)[0]
    z_ring = quad(lambda r: 2 * math.pi * r * math.exp(-((r - 2) ** 2) / (2 * 0.3**2)), 0, 6)[0]
    exact = {"gaussian": ("closed form", math.log(2 * math.pi * math.sqrt(0.19)))}
    exact |= {"two_wells": ("1-D quadrature", math.log(z_1 * math.sqrt(2 * math.pi)))}
    exact |= {"ring": ("1-D quadrature", math.log(z_ring)), "banana": ("closed form", math.log(math.pi))}
    exact |= {"mixture": ("normalised", 0)}
    for name, reference in exact.items():
        log_z = grid_density(*LANDSCAPES[name][:2], device=run.device)[0]
        run.metric(f"log_z_{name}", log_z, against=reference, within=1e-4)
    for t in (0.5, 2.0):
        _, log_p, points, area = grid_density(gaussian, (-9, 9, -9, 9), temperature=t, device=run.device)
        mean_energy = (log_p.exp().flatten() * gaussian(points)).sum() * area
        run.metric(f"gaussian_mean_energy_t{t:g}", mean_energy, against=("equipartition, d T/2", t), within=1e-3)

    def slope(x):  # float64 on the CPU
        return energy_and_grad(mueller_brown, torch.tensor(x)[None])[1][0].numpy()

    starts = {"minimum_1": (-0.6, 1.4), "minimum_2": (0.6, 0.0), "minimum_3": (0.0, 0.5)}
    starts |= {"saddle_1": (-0.8, 0.6), "saddle_2": (0.2, 0.3)}
    found = {k: scipy.optimize.root(slope, x, tol=1e-10).x for k, x in starts.items()}
    for (name, x), energy in zip(found.items(), (-146.700, -108.167, -80.768, -40.665, -72.249), strict=True):
        e = mueller_brown(torch.tensor(x)[None])
        run.metric(f"mueller_brown_{name}", e, against=("published", energy), within=1e-3)

    fig, axes = plt.subplots(2, 6, figsize=(12, 4.6), layout="tight")
    for (name, (energy, box, t)), (top, bottom) in zip(LANDSCAPES.items(), axes.T, strict=True):
        _, log_p, points, _ = grid_density(energy, box, 200, t)
        e, x, y = to_numpy(torch.stack([energy(points), *points.T]).reshape(3, 200, 200))
        levels = e.min() + t * np.linspace(0.2, 14, 14)
        top.contourf(x, y, e.clip(max=levels[-1]), levels, cmap="viridis", extend="min")
        bottom.imshow(to_numpy(log_p.exp().T), origin="lower", extent=box, aspect="auto", cmap="magma")
        top.set(title=name.replace("_", " "), xticks=[], yticks=[])
        bottom.set(title=f"$T={t:g}$", xticks=[], yticks=[])
    for name, x in found.items():
        axes[0, 5].plot(*x, "wx" if "saddle" in name else "wo", ms=5)
    axes[0, 0].set_ylabel("energy, dark is low")
    axes[1, 0].set_ylabel("density")
    fig.suptitle("the same landscape twice: what is written down, and where samples go")
    run.figure(fig, "gallery")

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.6), subplot_kw={"projection": "3d"}, layout="tight")
    for ax, t in zip(axes, (0, 20, 100), strict=True):
        _, log_p, points, _ = grid_density(mueller_brown, LANDSCAPES["mueller_brown"][1], 100, t or 1)
        z = log_p.exp() if t else mueller_brown(points).reshape(100, 100).clamp(max=100)
        x, y, z = to_numpy(torch.stack([*points.T.reshape(2, 100, 100), z]))
        ax.plot_surface(x, y, z, cmap="magma" if t else "viridis", rcount=60, ccount=60)
        ax.set(xlabel="$x_1$", ylabel="$x_2$", title=f"density at $T={t}$" if t else "energy, cut at 100")
        ax.view_init(40, -110)
    fig.suptitle("Mueller-Brown: cold, the deepest basin holds most; hot, the path between the basins fills")
    run.figure(fig, "surfaces")


# %% 4. Sampling: the methods
# Only differences and slopes of E are needed. All samplers below take x (B, ...), one row a chain, and return the last
# points; `keep`, if given, is called with x after each step (`draws = []; mala(..., keep=draws.append)`).
#
# Metropolis et al. (1953): propose x' = x + √(ε T) ξ, accept with probability min(1, exp(-(E(x') - E(x))/T)). Accepted
# or not, where the chain stands *is* the next draw: to drop the repeats is to sample something else.
# Langevin, eq. (2): the same noise plus half a step downhill; unadjusted (ULA) it accepts everything and its answer is
# biased at order ε. MALA (Besag 1994) adds the test. The proposal is not symmetric, so both directions enter,
#
#     log α = -(E(x') - E(x))/T + log q(x|x') - log q(x'|x),     log q(x'|x) = -|x' - x + (ε/2)∇E(x)|² / (2 ε T).
#
# Hamiltonian Monte Carlo (Duane et al. 1987): draw a momentum p ~ N(0, T), follow H = E(x) + |p|²/2 by leapfrog steps
# of size h, accept by the change of H. One leapfrog step is x' = x + h p - (h²/2)∇E: MALA's proposal with ε = h².
# Underdamped Langevin keeps its momentum and rubs it away at rate γ; SGHMC is the same with noisy gradients in mind.


def energy_and_grad(energy, x):
    """E(x) (B,) and ∇E(x) (B, ...), both detached."""
    x = x.detach().requires_grad_(True)
    e = energy(x)
    (grad,) = torch.autograd.grad(e.sum(), x)  # of the sum: rows do not see each other
    return e.detach(), grad


def accept(log_ratio, new, old):
    """Metropolis' test, chain by chain: (accepted (B,), each tensor of `new` where accepted and of `old` elsewhere)."""
    yes = torch.rand_like(log_ratio).log() < log_ratio  # a nan is a no
    return yes, *(torch.where(yes.reshape(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True))


def metropolis(energy, x, n_steps, step_size, temperature=1.0, keep=None):
    """Random-walk Metropolis with Langevin's noise; returns x (B, ...) and each chain's acceptance rate (B,).

    `step_size` is a float, or one per chain, of a shape that broadcasts against x; so in all of the samplers.
    """
    e, accepted = energy(x).detach(), 0.0
    for _ in range(n_steps):
        proposal = x + (step_size * temperature) ** 0.5 * torch.randn_like(x)
        e_new = energy(proposal).detach()
        yes, x, e = accept((e - e_new) / temperature, (proposal, e_new), (x, e))
        accepted = accepted + yes / n_steps
        if keep:
            keep(x)
    return x, accepted


def langevin(energy, x, n_steps, step_size, temperature=1.0, keep=None):
    """Unadjusted Langevin, eq. (2); returns x (B, ...). Biased at order step_size; diverges where it is too wide."""
    for _ in range(n_steps):
        _, grad = energy_and_grad(energy, x)
        x = x.detach() - 0.5 * step_size * grad + (step_size * temperature) ** 0.5 * torch.randn_like(x)
        if keep:
            keep(x)
    return x


def mala(energy, x, n_steps, step_size, temperature=1.0, keep=None):
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996), exact at any step_size; returns x and acceptance (B,)."""

    def log_q(to, start, grad):  # of the proposal, up to a constant
        return -((to - start + 0.5 * step_size * grad) ** 2 / (2 * step_size * temperature)).flatten(1).sum(1)

    (e, grad), accepted = energy_and_grad(energy, x), 0.0
    for _ in range(n_steps):
        proposal = x - 0.5 * step_size * grad + (step_size * temperature) ** 0.5 * torch.randn_like(x)
        e_new, grad_new = energy_and_grad(energy, proposal)
        log_ratio = (e - e_new) / temperature + log_q(x, proposal, grad_new) - log_q(proposal, x, grad)
        yes, x, e, grad = accept(log_ratio, (proposal, e_new, grad_new), (x, e, grad))
        accepted = accepted + yes / n_steps
        if keep:
            keep(x)
    return x, accepted


def hmc(energy, x, n_steps, step_size, n_leapfrog=10, temperature=1.0, keep=None):
    """Hamiltonian Monte Carlo (Neal 2011); `step_size` is leapfrog's time step h. Returns x and acceptance (B,)."""
    (e, grad), accepted = energy_and_grad(energy, x), 0.0
    for _ in range(n_steps):
        p = temperature**0.5 * torch.randn_like(x)
        kinetic = 0.5 * (p**2).flatten(1).sum(1)
        x_new, p = x, p - 0.5 * step_size * grad
        for _ in range(n_leapfrog):
            x_new = x_new + step_size * p
            e_new, grad_new = energy_and_grad(energy, x_new)
            p = p - step_size * grad_new
        p = p + 0.5 * step_size * grad_new  # the last kick was half too much
        log_ratio = (e + kinetic - e_new - 0.5 * (p**2).flatten(1).sum(1)) / temperature
        yes, x, e, grad = accept(log_ratio, (x_new, e_new, grad_new), (x, e, grad))
        accepted = accepted + yes / n_steps
        if keep:
            keep(x)
    return x, accepted


def underdamped(energy, x, n_steps, step_size, friction=1.0, temperature=1.0, keep=None):
    """Underdamped Langevin by the BAOAB splitting (Leimkuhler & Matthews 2013), unadjusted; returns x (B, ...)."""
    decay = math.e ** (-friction * step_size)
    v = temperature**0.5 * torch.randn_like(x)
    _, grad = energy_and_grad(energy, x)
    for _ in range(n_steps):
        v = v - 0.5 * step_size * grad  # B, a kick
        x = x.detach() + 0.5 * step_size * v  # A, a drift
        v = decay * v + (temperature * (1 - decay**2)) ** 0.5 * torch.randn_like(x)  # O, friction and noise, exactly
        x = x + 0.5 * step_size * v  # A
        _, grad = energy_and_grad(energy, x)
        v = v - 0.5 * step_size * grad  # B
        if keep:
            keep(x)
    return x


def sghmc(energy, x, n_steps, step_size, friction=1.0, temperature=1.0, keep=None):
    """SGHMC (Chen, Fox & Guestrin 2014) by Euler steps, unadjusted; returns x (B, ...).

    Gradient noise of variance V a coordinate adds h² V to v a step, and so h V/(2γ) to the temperature.
    """
    v = temperature**0.5 * torch.randn_like(x)
    for _ in range(n_steps):
        _, grad = energy_and_grad(energy, x)
        noise = (2 * friction * step_size * temperature) ** 0.5 * torch.randn_like(x)
        v = v - step_size * (grad + friction * v) + noise
        x = x.detach() + step_size * v
        if keep:
            keep(x)
    return x


# %% 4. Sampling: the diagnostics
# Draws of one chain resemble each other: the mean of N of them is as good as that of N_eff = N/τ independent ones, with
# τ = 1 + 2 Σ_t ρ_t the integrated autocorrelation time. The sum must stop before it is all noise: for a reversible
# chain ρ_2k + ρ_2k+1 is positive and falls with k (Geyer 1992), so stop where the estimate is not, and force the fall.
# R-hat compares the variance between half chains with that within: 1 when all explore the same distribution. Neither
# can know of a mode that no chain has found. Chains that never move have no variance within: 0/0 then means what the
# limit of slow chains says, ρ_t = 1 at all lags (a chain is worth one draw), R-hat infinite, or 1 if all stand at one point.


def split(chains):
    """Chains (n_chains, n_draws) cut in two, (2 n_chains, n_draws // 2): a drift then looks like a disagreement."""
    half = chains.shape[1] // 2
    return torch.cat([chains[:, :half], chains[:, -half:]])


def split_r_hat(chains):
    """Split R-hat of chains (n_chains, n_draws): Gelman et al. (2013), p. 284; Vehtari et al. (2021), before ranks."""
    halves = split(chains)
    if (halves == halves[:, :1]).all():  # no chain moves; compared exactly, since a mean's rounding would hide it
        return halves.new_tensor(1.0 if (halves == halves[0, 0]).all() else math.inf)
    n, within = halves.shape[1], halves.var(1).mean()
    return ((n - 1) / n + halves.mean(1).var() / within).sqrt()


def autocorrelation(chains):
    """ρ_t (n_draws,) at lags t = 0, 1, ... of chains (n_chains, n_draws), which raise it towards 1 where they disagree
    (Vehtari et al. 2021)."""
    if (chains == chains[:, :1]).all():  # no chain moves
        return torch.ones_like(chains[0])
    n, within = chains.shape[1], chains.var(1).mean()
    spectrum = torch.fft.rfft(chains - chains.mean(1, keepdim=True), n=2 * n)  # padded: no wrap-around
    covariance = torch.fft.irfft(spectrum.abs() ** 2)[:, :n].mean(0) / (n - 1)
    total = (n - 1) / n * within + chains.mean(1).var()
    return 1 - (within - covariance) / total


def effective_sample_size(chains):
    """Number of independent draws worth as much as chains (n_chains, n_draws) for a mean: Geyer's initial monotone
    sequence on the split chains (Geyer 1992; Vehtari et al. 2021)."""
    halves = split(chains)
    rho = autocorrelation(halves)
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(1)
    positive = (pairs > 0).cumprod(0)  # up to the first pair that is not
    tau = 2 * (positive * pairs.cummin(0).values).sum() - 1
    return halves.numel() / tau.clamp(min=1 / math.log10(halves.numel()))  # antithetic chains: Stan's limit


def transition_matrix(axis, energies, step_size, gradients=None, adjust=True):
    """One step of a sampler at T = 1 on an even 1-D grid `axis` (n,), finer than √step_size and float64: the matrix
    K (n, n), K[i, j] = P(axis_i -> axis_j), and the acceptance rate (n,) at each point.

    Metropolis without `gradients` (n,), MALA with them, ULA with adjust=False.
    """
    mean = axis if gradients is None else axis - 0.5 * step_size * gradients
    log_q = -((axis - mean[:, None]) ** 2) / (2 * step_size)
    if not adjust:
        return log_q.softmax(1), torch.ones_like(axis)
    k = log_q.exp() * (axis[1] - axis[0]) / math.sqrt(2 * math.pi * step_size)
    k = k * (energies[:, None] - energies + log_q.T - log_q).clamp(max=0).exp()
    rate = k.sum(1)
    return k + torch.diag(1 - rate), rate  # what is refused stays


def stationary(k):
    """The distribution π (n,) that a transition matrix K (n, n) leaves alone: π K = π, Σ π = 1."""
    one = torch.ones_like(k)
    return torch.linalg.solve((torch.eye(len(k)).to(k) - k + one).T, one[0])


def exact_autocorrelation_time(k, f):
    """τ of a function f (n,) of the chain K (n, n): if f is centred, Σ_t K^t f = (I - K + 1π)⁻¹ f, t = 0, 1, ..."""
    pi = stationary(k)
    f = f - pi @ f
    summed = torch.linalg.solve(torch.eye(len(k)).to(k) - k + pi, f)
    return 2 * pi @ (f * summed) / (pi @ f**2) - 1


# %% 4. Sampling: the lecture
# How wide a step? Too short, and evaluations are wasted; too long, and moves are refused. On d independent coordinates,
# as d -> infinity, with Φ the normal distribution function and c a constant of the target,
#
#     Metropolis   ε = ℓ²/d          acceptance a = 2Φ(-c ℓ)     distance² per step ~ ℓ² a     best a = 0.234
#     MALA         ε = ℓ²/d^(1/3)    acceptance a = 2Φ(-c ℓ³)    distance² per step ~ ℓ² a     best a = 0.574
#     HMC          h = ℓ/d^(1/4)     acceptance a = 2Φ(-c ℓ²)    one trajectory costs 1/ℓ: ℓ a, best a = 0.651
#
# (Roberts, Gelman & Gilks 1997; Roberts & Rosenthal 1998; Beskos et al. 2013). c shifts ℓ and cancels from a: tune a
# sampler by its acceptance, but not towards 1. The peaks are flat, and these are limits: aim near them, not at them.
# The unit of cost below is one evaluation of E or of ∇E. It flatters the slope, which costs two to three times as much.


def acceptance_at_peak(steps, acceptance, efficiency):
    """Acceptance rate where efficiency peaks: a cubic in log step through the five points about the best; all (n,)."""
    best = np.clip(np.argmax(efficiency), 2, len(steps) - 3)
    log_step, log_gain = np.log(steps[best - 2 : best + 3]), np.log(efficiency[best - 2 : best + 3] + 1e-12)
    fine = np.linspace(log_step[0], log_step[-1], 401)
    peak = fine[np.argmax(np.polyval(np.polyfit(log_step, log_gain, 3), fine))]
    return np.interp(peak, np.log(steps), acceptance)


def ess_per_1000(chains, effort, n_groups=4):
    """ESS of `chains` (n_chains, n_draws) per 1000 evaluations, `effort` a draw: mean and standard error over groups."""
    found = [1000 * effective_sample_size(group).item() / group.numel() / effort for group in chains.chunk(n_groups)]
    return np.mean(found), np.std(found, ddof=1) / len(found) ** 0.5


def compare_samplers(run):
    """Six samplers on two energies, beside exact values; returns ESS per 1000 evaluations, by (energy, sampler)."""
    config, n_leapfrog, axis = run.config, 6, torch.linspace(-2.2, 2.2, 441, dtype=torch.float64)
    e, grad = energy_and_grad(double_well, axis[:, None])
    pi = (-e).softmax(0)
    # step sizes (double well, banana): near the best of a sweep; the unadjusted samplers' are small enough to be stable
    samplers = {"metropolis": (metropolis, 3.0, 2.5), "ula": (langevin, 0.08, 0.02), "mala": (mala, 0.15, 0.4)}
    samplers["hmc"] = functools.partial(hmc, n_leapfrog=n_leapfrog), 0.25, 0.3
    samplers |= {"underdamped": (underdamped, 0.15, 0.15), "sghmc": (sghmc, 0.15, 0.15)}
    kernels = {  # in one dimension all that these three do is a matrix on the grid
        "metropolis": transition_matrix(axis, e, 3.0),
        "ula": transition_matrix(axis, e, 0.08, grad[:, 0], adjust=False),
        "mala": transition_matrix(axis, e, 0.15, grad[:, 0]),
    }
    gain, chains, r_hats, root = {}, {}, {}, config.n_chains**0.5
    for i, (where, energy, d, mean) in enumerate([("wells", double_well, 1, pi @ axis), ("banana", banana, 2, 0.5)]):
        for name, (sampler, *step_sizes) in samplers.items():
            draws, burn_in, adjusted = [], config.n_draws // 4, name in ("metropolis", "mala", "hmc")
            x = 3 * torch.rand(config.n_chains, d, device=run.device) - 1.5
            out = sampler(energy, x, burn_in + config.n_draws, step_sizes[i], keep=draws.append)
            draws = torch.stack(draws[burn_in:], 1)[..., -1].cpu()  # the last coordinate
            must_be_finite(f"[sampling] {name}", draws)
            ess, k = effective_sample_size(draws).item(), None
            sem = draws.std().item() / ess**0.5
            within = 4 * sem or None if adjusted else None  # the others' bias falls with their step
            run.metric(f"{where}_{name}_mean", draws.mean(), sem, against=("exact", mean), within=within)
            if where == "wells":
                chains[name], (k, rate) = draws, kernels.get(name, (None, None))
            exact = None if k is None else ("exact kernel", 1000 / exact_autocorrelation_time(k, axis))
            gain[where, name], sem = ess_per_1000(draws, n_leapfrog if name == "hmc" else 1)
            run.metric(f"{where}_{name}_ess_per_1000", gain[where, name], sem, against=exact)
            r_hats[f"{where}, {name}"] = split_r_hat(draws).item()
            if k is None:
                continue
            limit, crossed = stationary(k), 1000 * ((draws[:, 1:] > 0) != (draws[:, :-1] > 0)).float().mean(1)
            exact = ("exact kernel", 1000 * limit @ (k * ((axis > 0) != (axis[:, None] > 0))).sum(1))
            sem = crossed.std().item() / root
            run.metric(f"wells_{name}_crossings_per_1000", crossed.mean(), sem, against=exact, within=4 * sem or None)
            what, values, exact = ("acceptance", out[1], rate) if adjusted else ("mean_vs_own_limit", draws.mean(1), axis)
            sem, exact = values.std().item() / root, ("exact kernel", limit @ exact)
            run.metric(f"wells_{name}_{what}", values.mean(), sem, against=exact, within=4 * sem or None)
    stuck = [where for where, r_hat in r_hats.items() if r_hat == math.inf]
    if stuck:
        run.say(f"no chain moved ({'; '.join(stuck)}): R-hat is infinite; raise --n-draws")
    worst = max((where for where in r_hats if where not in stuck), key=r_hats.get, default=None)
    if worst:
        run.metric("worst_split_r_hat", r_hats[worst], against=(f"of {worst}; 1 when mixed", 1))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.3), layout="tight")
    lags = min(200, config.n_draws // 2)
    for name, draws in chains.items():
        evaluations = np.arange(lags) * (n_leapfrog if name == "hmc" else 1)
        axes[1].plot(evaluations, to_numpy(autocorrelation(draws)[:lags]), label=name)
    for name, (k, _) in kernels.items():
        limit = stationary(k)
        rho = [axis - limit @ axis]
        for _ in range(lags - 1):
            rho.append(k @ rho[-1])  # the mean of the next state, from each state
        rho = torch.stack(rho) @ (limit * rho[0])
        axes[1].plot(to_numpy(rho / rho[0]), "k--", lw=1, label="exact kernels" if name == "mala" else None)
    bins, lines = np.linspace(-2, 2, 60), {"mala": ("tab:orange", "k--", "exact"), "ula": ("tab:blue", "k:", "ULA's limit")}
    for name, (colour, line, label) in lines.items():
        draws, density = chains[name].flatten(), stationary(kernels[name][0]) / (axis[1] - axis[0])
        axes[0].hist(to_numpy(draws), bins, density=True, histtype="step", lw=2, color=colour, label=name.upper())
        axes[0].plot(to_numpy(axis), to_numpy(density), line, label=label)
    axes[0].set(title="ULA settles on another density; MALA does not", xlabel="$x$", ylabel="density")
    axes[1].set(title="long Metropolis jumps cross the barrier soonest", ylabel="autocorrelation of $x$")
    axes[1].set(xlabel="evaluations of the energy or its gradient", xlim=(0, lags))
    for ax in axes:
        ax.legend(fontsize=9)
    run.figure(fig, "wells")
    return gain


def optimal_scaling(run, gain, d=400, n_blocks=8, n_chains=96):
    """The acceptance at which each sampler moves furthest per evaluation, on a d-D Gaussian; adds to `gain`."""
    n, best = run.config.n_scaling_steps, np.geomspace(0.3, 2.5, 12)  # steps about the asymptotic best
    plans = {  # (sampler, published acceptance, power in the theory's curve, colour, its step sizes)
        "metropolis": (metropolis, 0.234, 2, "tab:green", 2.38**2 / d * best),
        "mala": (mala, 0.574, 2 / 3, "tab:orange", 1.65**2 / d ** (1 / 3) * best),
        "hmc": (hmc, 0.651, 1 / 2, "tab:blue", 2 / np.arange(12, 2, -1)),  # L steps of h = 2/L: integration time 2
    }
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.3), layout="tight")
    for name, (method, published, power, colour, steps) in plans.items():
        rates, jumps, efforts = [], [], [round(2 / h) if name == "hmc" else 1 for h in steps]
        samplers = [functools.partial(hmc, n_leapfrog=k) if name == "hmc" else method for k in efforts]
        for sampler, step_size, effort in zip(samplers, steps.tolist(), efforts, strict=True):
            x, rate, jump = torch.randn(n_chains, d, device=run.device), 0.0, 0.0  # exact draws: no burn-in
            for _ in range(n):
                new, accepted = sampler(standard_gaussian, x, 1, step_size)
                jump, rate, x = jump + (new - x).square().mean(1), rate + accepted, new
            rates.append(rate.reshape(n_blocks, -1).mean(1).cpu() / n)
            jumps.append(jump.reshape(n_blocks, -1).mean(1).cpu() / n / effort)
        rates, jumps = torch.stack(rates, 1).numpy(), torch.stack(jumps, 1).numpy()
        peaks = [acceptance_at_peak(steps, *block) for block in zip(rates, jumps, strict=True)]
        sem = np.std(peaks, ddof=1) / n_blocks**0.5
        within = 4 * sem + 0.02  # published for d -> infinity: 0.02 is for d = 400 and for the cubic
        run.metric(f"{name}_acceptance_at_peak", np.mean(peaks), sem, against=("published", published), within=within)
        axes[0].plot(rates.mean(0), jumps.mean(0) / jumps.mean(0).max(), "o", color=colour, label=f"{name}, measured")
        a = np.linspace(0.005, 0.99, 200)
        curve = a * scipy.special.erfinv(1 - a) ** power
        axes[0].plot(a, curve / curve.max(), "k--", lw=1, label="theory, $d$ to infinity" if name == "hmc" else None)
        axes[0].axvline(published, color=colour, lw=1)
        best, draws, x = jumps.mean(0).argmax(), [], torch.randn(16, d, device=run.device)
        n_kept, keep = max(6, 3 * n), lambda x, out=draws: out.append(x[:, :8])
        samplers[best](standard_gaussian, x, n_kept, steps[best].item(), keep=keep)
        squares = torch.stack(draws, 2).flatten(0, 1).cpu() ** 2  # x² forgets more slowly than x
        gain["gaussian", name], sem = ess_per_1000(squares, efforts[best])
        run.metric(f"gaussian_{name}_ess_per_1000", gain["gaussian", name], sem)
    names = ["metropolis", "mala", "hmc", "ula", "underdamped", "sghmc"]
    for i, where in enumerate(("wells", "banana", "gaussian")):
        label = {"wells": "double well", "banana": "banana", "gaussian": f"{d}-D Gaussian"}[where]
        axes[1].bar(np.arange(6) + (i - 1) * 0.27, [gain.get((where, name), 0) for name in names], 0.27, label=label)
    axes[1].set_xticks(range(6), names[:3] + [f"{name}\n(biased)" for name in names[3:]])
    axes[0].set(title="best acceptance: 0.234, 0.574, 0.651, not 1", xlabel="acceptance rate")
    axes[0].set(ylabel="squared jump per evaluation / its best")
    axes[1].set(title="across a barrier: jump; in 400 dimensions: follow the slope")
    axes[1].set(ylabel="ESS per 1000 evaluations", yscale="log")
    for ax in axes:
        ax.legend(fontsize=9)
    run.figure(fig, "scaling")


def animate_settling(run, temperature=20.0, n_particles=600, step_size=2e-4):
    """GIF of Langevin particles poured over Mueller-Brown; returns (share in the deepest basin in the end, exact)."""
    box, particles = LANDSCAPES["mueller_brown"][1], torch.rand(n_particles, 2) * 2 + torch.tensor([-1.2, -0.1])
    _, log_p, points, area = grid_density(mueller_brown, box, 200, temperature)
    exact = (log_p.exp().flatten() * (points[:, 1] > 0.8)).sum().item() * area
    x, y, e = to_numpy(torch.stack([*points.T, mueller_brown(points)]).reshape(3, 200, 200))
    fig, ax = plt.subplots(figsize=(4.6, 4.4), layout="tight")
    ax.contourf(x, y, e.clip(max=100), np.linspace(-150, 100, 21), cmap="viridis")
    (dots,) = ax.plot(*to_numpy(particles.T), "o", ms=3, color="white", mec="black", mew=0.3)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=box[:2], ylim=box[2:])
    writer, steps, growth = PillowWriter(fps=8), 0, 1.16 ** min(1, 48 / run.config.n_frames)
    with run.whole("sampling_settling.gif") as path, writer.saving(fig, path, dpi=80):
        for frame in range(run.config.n_frames):
            share = (particles[:, 1] > 0.8).float().mean().item()
            dots.set_data(*to_numpy(particles.T))
            ax.set_title(f"{steps} steps: {share:.0%} in the upper basin, exact {exact:.0%}", fontsize=10)
            writer.grab_frame()
            more = math.ceil(growth**frame)  # each frame a little longer than the last: two time scales in one film
            particles, steps = langevin(mueller_brown, particles, more, step_size, temperature), steps + more
    plt.close(fig)
    return share, exact


def section_sampling(run):
    """Exact samplers agree with exact answers; which is cheapest depends on the barrier and on the dimension."""
    if run.config.n_chains < 8 or run.config.n_draws < 20:
        sys.exit("[sampling] needs --n-chains of at least 8 and --n-draws of at least 20: fewer show no spread")
    gain = compare_samplers(run)
    optimal_scaling(run, gain)
    share, exact = animate_settling(run)
    run.metric("settled_in_upper_basin", share, (share * (1 - share) / 600) ** 0.5, against=("grid, T = 20", exact))


# %% 5. Step size is temperature
# Two forms of Langevin dynamics are in use. Ours, eq. (2), and  x <- x - h ∇E + √(2 h T) ξ.  Put h = ε/2: they are the
# same update, term by term. Behind them stand dx = -½∇E dt + √T dW and dx = -∇E dt + √(2T) dW, the same motion by two
# clocks. Any other noise is another temperature: noise² = 2 h T = step_size T, so T = noise²/step_size.
#
# In a quadratic well E = a x²/2 the update is linear and everything is exact:
#
#     x' = (1 - a h) x + √(2 h T) ξ
#     v  = (1 - a h)² v + 2 h T                       the variance, once it no longer changes
#     v  = 2 h T / (1 - (1 - a h)²) = 2 h T / (a h (2 - a h)) = (T/a) · 2/(2 - a h).
#
# So ULA samples a Gaussian at the temperature T_eff = T · 2/(2 - a h): too hot, by half at a h = 2/3, without bound as
# h -> 2/a, and beyond it each step multiplies x by |1 - a h| > 1. In many dimensions the stiffest direction (largest a)
# sets the limit, and is the hottest: a wide step does not blur all directions alike.


def langevin_temperature(a, step_size, temperature=1.0):
    """T_eff = a Var x of ULA in E = a x²/2, for step_size < 4/a; h = step_size/2."""
    return 2 * temperature / (2 - a * step_size / 2)


def section_stepsize(run):
    """A Langevin step of finite size is too hot by 2/(2 - a h), and beyond h = 2/a nothing holds it."""
    a, n = 4.0, 20_000
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.3), layout="tight")
    ah = torch.tensor([0.1, 0.5, 1.0, 1.8], device=run.device)
    for temperature, colour in ((1.0, "tab:blue"), (0.5, "tab:orange")):
        x = torch.zeros(n, 4, device=run.device)  # four wells in one energy, each with its own step
        x = langevin(lambda x: a * (x**2).sum(1) / 2, x, 60, 2 * ah / a, temperature)
        measured = a * x.var(0).cpu()
        sem = measured * (2 / (n - 1)) ** 0.5  # of a Gaussian's variance
        for i, width in enumerate(ah.tolist()):
            exact = ("2T/(2 - ah)", langevin_temperature(a, 2 * width / a, temperature))
            name = f"t{temperature:g}_found_ah{width:.1f}"
            run.metric(name, measured[i], sem[i], against=exact, within=4 * sem[i].item())
        grid = np.linspace(0, 1.9, 200)
        label = r"theory, $T\cdot 2/(2-ah)$" if temperature == 1 else None
        axes[0].plot(grid, langevin_temperature(a, 2 * grid / a, temperature), "k--", lw=1, label=label)
        points, bars = (to_numpy(ah), to_numpy(measured), to_numpy(4 * sem)), {"fmt": "o", "color": colour, "capsize": 4}
        axes[0].errorbar(*points, **bars, label=f"measured, $T={temperature:g}$")
    axes[0].axvline(2, color="tab:red", label="diverges beyond")

    ah, path = torch.tensor([0.5, 1.8, 2.1, 2.5], device=run.device), [torch.full((1, 4), 1e5, device=run.device)]
    langevin(lambda x: a * (x**2).sum(1) / 2, path[0], 10, 2 * ah / a, keep=path.append)  # so far out, noise is nothing
    size = torch.cat(path).abs().cpu()
    for i, (width, factor) in enumerate(zip(ah.tolist(), (1 - ah).abs().tolist(), strict=True)):
        growth = (size[8, i] / size[0, i]) ** (1 / 8)
        run.metric(f"growth_per_step_ah{width:.1f}", growth, against=("|1 - ah|", factor), within=0.01)
        axes[1].plot(to_numpy(size[:, i]), "o", label=f"$ah={width:.1f}$")
        axes[1].plot(1e5 * factor ** np.arange(11), "k--", lw=1, label="$|1-ah|^n$" if i == 3 else None)
    axes[0].set(title="the wider the step, the hotter the samples", xlabel="step $ah$")
    axes[0].set(ylabel=r"temperature found, $a\,$Var $x$", ylim=(0, 20))
    axes[1].set(title="beyond $ah=2$ every step multiplies the distance", xlabel="steps $n$", ylabel="distance $|x|$")
    axes[1].set(yscale="log", ylim=(10, 1e9))
    for ax in axes:
        ax.legend(loc="upper left")
    run.figure(fig, "temperature")

    # a published image recipe (JEM, Grathwohl et al. 2020): x <- x - 1.0 ∇E + 0.01 ξ, hence step_size 2 and noise 0.01
    t = 0.01**2 / 2.0
    x = langevin(lambda x: (x**2).sum(1) / 2, torch.zeros(n, 1, device=run.device), 60, 2.0, t)
    exact, found = 1e6 * langevin_temperature(1.0, 2.0, t), 1e6 * x.var().item()
    sem = found * (2 / (n - 1)) ** 0.5
    run.metric("cold_recipe_micro_temperature", found, sem, against=("noise^2/step_size 2/(2-ah)", exact), within=4 * sem)


# %% 6. Two forces
# Maximum likelihood at T = 1, with log p(x) = -E(x) - log Z. The first term's gradient in θ is plain. The second,
#
#     -∇ log Z = -(1/Z) ∫ ∇ exp(-E) dx = -(1/Z) ∫ exp(-E) (-∇E) dx = + E_p[∇E]:
#
# eq. (3). A *positive phase* pushes the energy down where data are, a *negative phase* pushes it up where the model's
# own samples are; they balance when both agree. With E = |x - θ|²/2, ∇E = θ - x: the positive phase is mean(x) - θ, the
# negative phase E_p[θ - x] = 0, and the maximum is θ = mean(x), as it should be. Seen as a force on the *function* E,
#
#     δ/δE(y) [mean log likelihood] = p(y) - p_data(y):    raise E where the model has too much, lower it elsewhere.
#
# In one dimension Z is a sum over a grid, so nothing needs sampling: all later modules approximate what follows.


def network_energy(parameters, x):
    """E = x²/18 + network(x) for M independent networks side by side: x (M, n) -> (M, n); the square makes Z finite."""
    w_1, b_1, w_2, b_2, w_3 = parameters
    hidden = silu(silu(x[..., None] * w_1 + b_1) @ w_2 + b_2)
    return x**2 / 18 + (hidden @ w_3).squeeze(-1)


def network_parameters(n_models, width, device="cpu"):
    """Weights (M, in, out) and biases (M, 1, out), at random; smooth units: ReLU would leave kinks in the density."""
    normal = lambda *shape: torch.randn(n_models, *shape, device=device)  # noqa: E731
    w_1, b_1, w_2 = 2 * normal(1, width), 2 * normal(1, width), normal(width, width) / width**0.5
    return [w_1, b_1, w_2, torch.zeros_like(b_1), normal(width, 1) / width**0.5]


def two_phases(energy, parameters, x_data, axis):
    """Positive and negative phase of the mean log likelihood's gradient: two lists, one tensor per parameter.

    `energy(parameters, x)` (M, n) -> (M, n); x_data (M, n); `axis` (n_grid,), an even grid on which Z is summed.
    """
    e_grid = energy(parameters, axis.expand(len(x_data), -1))
    p = (-e_grid).softmax(1).detach()  # constant: the gradient of p itself is already accounted for in eq. (3)
    positive = torch.autograd.grad(-energy(parameters, x_data).mean(1).sum(), parameters)
    negative = torch.autograd.grad((p * e_grid).sum(), parameters)
    return positive, negative


def log_likelihood(energy, parameters, x_data, axis):
    """Mean log likelihood (M,) in nats, with Z summed on the even grid `axis`: what `two_phases` differentiates."""
    log_z = (-energy(parameters, axis.expand(len(x_data), -1))).logsumexp(1) + (axis[1] - axis[0]).log()
    return -energy(parameters, x_data).mean(1) - log_z


def peaks(x, m=1.5, s=0.4):
    """The data of this section and the next: density 0.6 N(-m, s²) + 0.4 N(m, s²) at x (...,), a tensor."""
    left, right = ((-((x - c) ** 2) / (2 * s * s)).exp() / (s * math.sqrt(2 * math.pi)) for c in (-m, m))
    return 0.6 * left + 0.4 * right


def section_forces(run):
    """The likelihood pulls energy down at the data and pushes it up at the model's own samples, until both agree."""
    n_models, n_steps, n_data = 4, run.config.n_train_steps, 4000
    generator = torch.Generator().manual_seed(run.seed)
    side = torch.where(torch.rand(n_models, n_data, generator=generator) < 0.6, -1.5, 1.5)
    x_data = side + 0.4 * torch.randn(n_models, n_data, generator=generator)  # each network has its own data

    x, wide = x_data[:1].double(), torch.linspace(-12, 14, 2001, dtype=torch.float64)
    theta = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    (up,), (down,) = two_phases(lambda p, x: (x - p[0]) ** 2 / 2, [theta], x, wide)
    run.metric("gaussian_positive_phase", up, against=("mean(x) - theta", x.mean() - 0.7), within=1e-9)
    run.metric("gaussian_negative_phase", down, against=("0", 0), within=1e-9)
    weights = [p.double().requires_grad_(True) for p in network_parameters(1, 16)]
    where = [torch.randn_like(p) for p in weights]
    slope = sum(((u + d) * v).sum() for u, d, v in zip(*two_phases(network_energy, weights, x, wide), where, strict=True))
    ends = [[p.detach() + shift * v for p, v in zip(weights, where, strict=True)] for shift in (1e-5, -1e-5)]
    rise = [log_likelihood(network_energy, moved, x, wide) for moved in ends]
    run.metric("slope_along_a_direction", slope, against=("finite difference", (rise[0] - rise[1]) / 2e-5), within=1e-5)

    axis, x_data = torch.linspace(-5, 5, 401, device=run.device), x_data.to(run.device)
    parameters = [p.requires_grad_(True) for p in network_parameters(n_models, 32, run.device)]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    truth, nll, shown = peaks(axis), [], {}
    for step in range(n_steps + 1):
        with torch.no_grad():
            log_p = (-network_energy(parameters, axis.expand(n_models, -1))).log_softmax(1) - (axis[1] - axis[0]).log()
        nll.append(-(truth * log_p).sum(1) * (axis[1] - axis[0]))  # expected on new data: no sampling error
        if step in (n_steps // 30, n_steps):
            shown[step] = log_p[0].exp().cpu()
        phases = two_phases(network_energy, parameters, x_data, axis)
        with torch.no_grad():  # Adam, uphill, by hand: the first torch.optim object costs a second of imports
            for p, (m, v), up, down in zip(parameters, moments, *phases, strict=True):
                m.lerp_(up + down, 0.1)
                v.lerp_((up + down) ** 2, 0.01)
                p += 0.01 * (1 - step / n_steps) * m / (v.sqrt() + 1e-8)
    nll = torch.stack(nll).cpu()
    must_be_finite("[forces] training", nll)
    density = lambda x: peaks(torch.tensor(x)).item()  # noqa: E731
    entropy = scipy.integrate.quad(lambda x: -density(x) * math.log(density(x)), -5, 5)[0]
    final, sem, exact = nll[-1].mean().item(), nll[-1].std() / n_models**0.5, ("entropy of the data", entropy)
    run.metric("nll_on_new_data", final, sem, against=exact, within=0.01)
    variance = 0.4**2 + 1.5**2 - 0.3**2
    run.metric("nll_of_one_gaussian", 0.5 * math.log(2 * math.pi * math.e * variance), against=exact)

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.3), layout="tight")
    early, (x, p, before, after) = min(shown), map(to_numpy, (axis, truth, shown[min(shown)], shown[n_steps]))
    axes[0].plot(x, p, "k--", label="density of the data")
    axes[0].plot(x, before, "tab:orange", ls=":", label=f"model after {early} steps")
    axes[0].plot(x, after, "tab:orange", label=f"model after {n_steps} steps")
    axes[0].fill_between(x, p, before, where=p > before, color="tab:blue", alpha=0.3, label="energy pulled down")
    axes[0].fill_between(x, p, before, where=p < before, color="tab:red", alpha=0.3, label="energy pushed up")
    axes[0].set(title="down at the data, up at the model's own samples", xlabel="$x$", ylabel="density", xlim=(-4, 4))
    axes[0].set_ylim(0, 1.3 * max(before.max(), p.max()))
    labels = [f"{n_models} networks, {final:.3f} in the end"] + [None] * (n_models - 1)
    axes[1].plot(to_numpy(nll), color="tab:orange", label=labels)
    axes[1].axhline(entropy, color="k", ls="--", label=f"entropy of the data, {entropy:.3f} nats")
    axes[1].set(title="exact maximum likelihood comes down to the entropy", xlabel="optimiser steps")
    axes[1].set(ylabel="NLL on new data (nats)", ylim=(entropy - 0.05, entropy + 0.8))
    for ax in axes:
        ax.legend(fontsize=9)
    run.figure(fig, "phases")


# %% 7. Covering or seeking
# A family that cannot hold the data must choose what to get wrong. Let q be a Gaussian and p bimodal:
#
#     forward   KL(p||q) = E_p[log p - log q]   infinite where p > 0 = q: q must *cover*. This is maximum likelihood;
#               setting its derivatives in m and s to zero gives m = E_p[x], s² = Var_p[x]: moment matching.
#     reverse   KL(q||p) = E_q[log q - log p]   infinite where q > 0 = p: q *seeks* a place where p is high. If q is
#               one mode, of weight w, then p = w q there and KL = -log w: the best is the heaviest mode.
#
# Variational inference, and a generator trained against an energy, minimise the reverse KL: no data needed, modes lost.
#
# The second choice is between fidelity and mobility. An energy that fits separated modes well has high barriers, and a
# chain needs about exp(barrier) steps to cross one (Arrhenius 1889; Kramers 1940). A gradient penalty λ E[|∇E|²] makes
# slopes gentle and barriers low, and pays with likelihood. The price depends on where E[.] is taken: at the data (R1,
# Mescheder et al. 2018), or on lines between pairs of data (as in WGAN-GP, Gulrajani et al. 2017), which run through
# the barrier. Let E be a table on a grid. Then the loss is convex, and Newton's method finds *the* optimum of
#
#     Σ p_data E + log Σ exp(-E) + λ Eᵀ Q E,     gradient p_data - p + 2λ Q E,     Hessian diag(p) - p pᵀ + 2λ Q,
#
# and the steps a chain needs to forget are exact too: 1/(1 - λ_2), λ_2 its transition matrix's second eigenvalue.


def kl_divergences(mean, std, p, axis):
    """(KL(p||q), KL(q||p)) in nats for q = N(mean, std²) and a density p (n,) on an even grid `axis` (n,); numpy."""
    log_q = -((axis - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
    gap = (np.log(p) - log_q) * (axis[1] - axis[0])
    return (p * gap).sum(), -(np.exp(log_q) * gap).sum()


def fit_gaussian(p, axis, direction, start):
    """(mean, std, KL) of the Gaussian of least forward (`direction` 0) or reverse (1) KL; a search from `start`."""
    found = scipy.optimize.minimize(
        lambda v: kl_divergences(v[0], math.exp(v[1]), p, axis)[direction],
        (start, 0.0),
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-12},
    )
    return found.x[0], math.exp(found.x[1]), found.fun


def penalised_energies(p_data, weight, axis, strengths, n_newton=15):
    """Energies (n_strengths, n) that minimise the penalised likelihood above, on a grid `axis` (n,), float64.

    p_data (n,) sums to one; the penalty is strength * Σ weight |ΔE/Δx|², `weight` (n - 1,) a distribution over cells.
    """
    slope = torch.diff(torch.eye(len(axis), dtype=axis.dtype), dim=0) / (axis[1] - axis[0])
    q = slope.T @ (weight[:, None] * slope)
    e, found = -p_data.log(), []  # the optimum at strength 0
    for strength in strengths:  # each from the last: the path is smooth
        for _ in range(n_newton):
            p = (-e).softmax(0)
            gradient = p_data - p + 2 * strength * q @ e
            hessian = torch.diag(p) - torch.outer(p, p) + 2 * strength * q
            e = e - torch.linalg.solve(hessian + 1 / len(e), gradient)  # + a constant matrix: E has a free constant
        found.append(e)
    return torch.stack(found)


def relaxation_time(k, pi):
    """Steps 1/(1 - λ_2) in which a reversible chain's slowest mode decays by e; K (n, n) and its stationary π (n,)."""
    root = pi.sqrt()
    symmetric = root[:, None] * k / root  # same eigenvalues; symmetric by detailed balance
    return 1 / (1 - torch.linalg.eigvalsh((symmetric + symmetric.T) / 2)[-2])


def section_covering(run):
    """Forward KL covers both modes, reverse KL seeks one; flat energies mix fast and pay for it in likelihood."""
    axis = torch.linspace(-8, 8, 1601, dtype=torch.float64).numpy()
    p = peaks(torch.tensor(axis)).numpy()
    mean, std, kl = fit_gaussian(p, axis, 0, 0.5)
    run.metric("forward_mean", mean, against=("moment matching, E x", -0.3), within=1e-4)
    run.metric("forward_std", std, against=("moment matching", math.sqrt(0.4**2 + 1.5**2 - 0.3**2)), within=1e-4)
    seek = {start: fit_gaussian(p, axis, 1, start) for start in (-1.5, 1.5)}
    run.metric("reverse_mean", seek[-1.5][0], against=("the heavier mode", -1.5), within=2e-3)
    run.metric("reverse_std", seek[-1.5][1], against=("its own", 0.4), within=2e-3)
    for start, weight in ((-1.5, 0.6), (1.5, 0.4)):
        run.metric(f"reverse_kl_from_{start:+g}", seek[start][2], against=(f"-ln {weight}", -math.log(weight)), within=1e-3)

    grid = torch.linspace(-3.2, 3.2, 161, dtype=torch.float64)
    p_data, middle = peaks(grid) / peaks(grid).sum(), (grid[1:] + grid[:-1]) / 2
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200  # on the lines u a + (1 - u) b: Gaussian, given both modes
    s, ends = 0.4 * (u**2 + (1 - u) ** 2).sqrt(), [(0.36, -1.5 + 0 * u), (0.16, 1.5 + 0 * u), (0.48, 3 * u - 1.5)]
    lines = sum(w * ((-(((middle[:, None] - c) / s) ** 2) / 2).exp() / s).mean(1) for w, c in ends)
    curves, strengths = {}, torch.logspace(-4, 1.5, 45, dtype=torch.float64)
    for name, weight in (("none", None), ("at the data", peaks(middle)), ("between data", lines)):
        e = -p_data.log()[None] if name == "none" else penalised_energies(p_data, weight / weight.sum(), grid, strengths)
        lost = (p_data * (p_data.log() - (-e).log_softmax(1))).sum(1)
        times = [relaxation_time(transition_matrix(grid, row, 0.05)[0], (-row).softmax(0)) for row in e]
        curves[name] = lost, torch.stack(times), e - e.min(1, keepdim=True).values
    grid, curves = grid.numpy(), {name: [values.numpy() for values in row] for name, row in curves.items()}
    slowest = curves["none"][1][0]
    run.metric("relaxation_steps_unpenalised", slowest)
    for name in ("at the data", "between data"):
        price = np.interp(np.log(10 / slowest), -np.log(curves[name][1]), curves[name][0])
        run.metric(f"nats_for_tenfold_speed_{name.replace(' ', '_')}", price)

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="tight")
    axes[0].fill_between(axis, p, color="tab:blue", alpha=0.3, label="data")
    for (m, s, _), colour, label in (
        ((mean, std, kl), "tab:orange", "forward KL"),
        (seek[-1.5], "tab:red", "reverse KL"),
    ):
        axes[0].plot(axis, np.exp(-((axis - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi)), colour, label=label)
    axes[0].set(title="forward covers, reverse seeks", xlabel="$x$", ylabel="density", xlim=(-5, 5))
    for (name, (lost, times, e)), style in zip(curves.items(), ("k--", "tab:blue", "tab:orange"), strict=True):
        i = np.abs(lost - 0.05).argmin()
        axes[1].plot(grid, e[i], style, label=f"{lost[i]:.2f} nats lost, penalty {name}")
        if name != "none":
            axes[2].plot(lost, times, style, label=f"penalty {name}")
    axes[1].set(title="the penalty lowers the barrier", xlabel="$x$", ylabel="energy", ylim=(0, 13))
    axes[2].axhline(slowest, color="k", ls="--", lw=1, label="no penalty")
    axes[2].set(title="mixing is bought with likelihood", xlabel="likelihood lost (nats)")
    axes[2].set(ylabel="relaxation time (Metropolis steps)", yscale="log", xlim=(0, 0.5))
    for ax in axes:
        ax.legend(fontsize=9)
    run.figure(fig, "tradeoff")


SECTIONS = {
    "probability": section_probability,
    "partition": section_partition,
    "landscapes": section_landscapes,
    "sampling": section_sampling,
    "stepsize": section_stepsize,
    "forces": section_forces,
    "covering": section_covering,
}


# %% Running the module: the same lines in all ten


def in_notebook():
    """Whether this file runs as cells: a kernel is there, whose command line is not ours and which shows figures itself."""
    return "ipykernel" in sys.modules or "__file__" not in globals()


def echo(line=""):
    """Print a line at once; a reader that went away (`| head`) ends the printing and not the run."""
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL: a broken pipe on Windows
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_numpy(x):
    """A tensor as matplotlib, SciPy and scikit-learn want it: without gradient, on the CPU, a NumPy array."""
    return torch.as_tensor(x).detach().cpu().numpy()


def must_be_finite(what, *values):
    """End the run in one line if numbers that leave a training or a sampler are not finite."""
    if not all(torch.as_tensor(value).isfinite().all() for value in values):
        sys.exit(f"{what} diverged: not every number is finite; a smaller learning rate or step size may cure it")


def put_in_place(partial, path):
    """Rename a file that is written whole; where a scanner holds it for a moment (Windows), wait up to 1.5 seconds."""
    for patience in (0.1, 0.2, 0.4, 0.8):
        with contextlib.suppress(PermissionError):
            partial.replace(path)
            return
        time.sleep(patience)
    partial.replace(path)


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


if __name__ == "__main__" and not in_notebook():  # in a notebook, call main(["--section", "..."]) yourself
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # a console that cannot print a folder's name
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except OSError as error:  # a full disk, a folder that vanished
        sys.exit(f"cannot go on: {error}")
