"""Module 01 - Foundations: from an energy to a probability, and what it takes to sample it and to learn it.

An energy E gives every state a number, low where states are likely. At temperature T it defines a density

    p(x) = exp(-E(x)/T) / Z,        Z = ∫ exp(-E(x)/T) dx.                             (1)

E is easy to write down; Z is an integral over everything that could happen. The whole field lives from two
things that need no Z: ratios p(x')/p(x) = exp(-(E(x') - E(x))/T), by which a Markov chain accepts or refuses a move,
and the slope of the log density, ∇ log p = -∇E/T, which Langevin dynamics follows,

    x <- x - (ε/2) ∇E(x) + √(ε T) ξ,        ξ ~ N(0, I).                               (2)

A model of this kind learns by the likelihood's gradient in its parameters θ (at T = 1), which has two phases, data
against the model's own samples:

    ∇ log p(x) = -∇E(x) + E_{x'~p}[∇E(x')].                                            (3)

(E_{x'~p}[.] is the mean over x' drawn from p: E with brackets is an expectation, E(x) an energy.)

Run      python 01_ebm_foundations.py                all ten sections, about a minute on one CPU core
         python 01_ebm_foundations.py --section chain --show
Writes   outputs/01_ebm_foundations/*.png, chain_walk.gif, sampling_settling.gif and metrics.json
Before   probability, calculus, linear algebra, a little Python and PyTorch   Exercises  ex01_1 ... ex01_5, o5
Reading  What is marked "second reading" can be left out at first: later parts use its results, not its steps.
Sources  LeCun et al. (2006); Metropolis et al. (1953); Neal (2001, 2011); Roberts & Tweedie (1996); Roberts & Rosenthal
         (1998); Beskos et al. (2013); Vehtari et al. (2021). Others are named where they are used.
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
from typing import Annotated, NamedTuple, get_args, get_type_hints

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from matplotlib.animation import PillowWriter
from torch.nn.functional import silu


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_points: Annotated[int, "points behind one plain estimate of log Z"] = 100_000
    n_repeats: Annotated[int, "independent repeats of each estimate of log Z"] = 16
    n_chains: Annotated[int, "parallel Markov chains"] = 100
    n_draws: Annotated[int, "draws kept from each chain"] = 2000
    n_particles: Annotated[int, "particles in one run of annealed importance sampling"] = 200
    n_betas: Annotated[int, "steps of beta on its path, from 0 to 1"] = 400
    n_scaling_steps: Annotated[int, "steps at each step size in 400 dimensions"] = 200
    n_train_steps: Annotated[int, "optimiser steps of the one-dimensional network"] = 300
    n_settling: Annotated[int, "steps of the film in which particles settle into a landscape"] = 6000
    n_frames: Annotated[int, "frames of each film"] = 48
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1

    def __post_init__(self):
        """Fewer show no spread, or leave nothing to draw."""
        for name, least in (("n_chains", 8), ("n_draws", 20), ("n_particles", 2), ("n_points", 2)):
            if getattr(self, name) < least:
                sys.exit(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")


SMOKE = {"n_points": 500, "n_repeats": 4, "n_chains": 10, "n_draws": 100, "n_particles": 20, "n_betas": 10}
SMOKE |= {"n_scaling_steps": 2, "n_train_steps": 10, "n_settling": 30, "n_frames": 3}

# One colour for one method, in every figure of this module; exact values are black.
COLOURS = {"Metropolis": "tab:green", "MALA": "tab:orange", "HMC": "tab:blue", "ULA": "tab:red"}
COLOURS |= {"underdamped": "tab:purple", "SGHMC": "tab:brown"}
COLOURS |= {"simple": "tab:gray", "importance": "tab:olive", "AIS": "tab:pink"}


def mean_and_error(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


def tolerance(sem, n, n_compared=1):
    """How far the mean of n independent repeats may lie from its exact value: Student's t with n - 1 degrees of freedom at
    one false alarm in 10,000, shared by the `n_compared` of which the worst is judged, times sem. None for n < 2."""
    return None if n < 2 else scipy.stats.t.isf(1e-4 / (2 * n_compared), n - 1) * sem


def legend_below(ax, n_columns):
    """The legend under the axes, off the curves."""
    ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=n_columns)


# %% 1. From energy to probability
# Take a handful of states with energies E_i, and weigh each by its Boltzmann factor exp(-β E_i). Here T is the
# temperature and β = 1/T:
#
#     p_i = exp(-β E_i) / Z,    Z = Σ_i exp(-β E_i)        "softmax" to a programmer, Boltzmann (1868) to a physicist.
#
# Only differences of energy count: a constant added to every E_i cancels between numerator and Z. Take logs,
#
#     log p_i = -β E_i - log Z.
#
# Average both sides over p. Call U = <E> the energy (<.> is the average over p), S = -<log p> the entropy, in nats, and
# F = -T log Z the free energy:
#
#     -S = -β U - log Z      hence      F = U - T S.
#
# Cold, F is nearly U: the lowest energy wins. Hot, -TS rules: what is many wins. The derivatives of log Z are averages:
#
#     ∂ log Z/∂β   = (1/Z) Σ (-E_i) exp(-β E_i) = -<E>,
#     ∂² log Z/∂β² = <E²> - <E>² = Var E = T² C,        C = dU/dT the heat capacity.
#
# In general the n-th derivative is the n-th *cumulant* of -E: mean, variance, third central moment, ... (beyond the third a
# cumulant is no central moment any more).
#
# In a program, exp overflows: float32 ends at 3.4e38, which is exp(88.7). The log-sum-exp trick takes the largest term out
# first, log Σ exp(a_i) = m + log Σ exp(a_i - m), m = max a_i: then no term exceeds 1, and one of them is 1.


class Thermodynamics(NamedTuple):
    """What follows from energies at temperatures T: each (n_T,), and p (n_T, n). Boltzmann's constant is 1: log Z, S
    and C are in nats (natural logarithms), U and F in units of energy, p is a pure number."""

    log_z: torch.Tensor
    energy: torch.Tensor
    entropy: torch.Tensor
    free_energy: torch.Tensor
    heat_capacity: torch.Tensor
    p: torch.Tensor


def thermodynamics(energies, temperatures):
    """Thermodynamics of states with `energies` (n,) at `temperatures` (n_T,)."""
    logits = -energies / temperatures[:, None]
    log_z, log_p = logits.logsumexp(1), logits.log_softmax(1)
    p = log_p.exp()
    mean_energy = (p * energies).sum(1)
    entropy = -(p * log_p).sum(1)
    heat_capacity = (p * (energies - mean_energy[:, None]) ** 2).sum(1) / temperatures**2
    return Thermodynamics(log_z, mean_energy, entropy, -temperatures * log_z, heat_capacity, p)


def naive_log_z(energies, temperatures):
    """log Z (n_T,) as eq. (1) is written: infinite where exp overflows."""
    return (-energies / temperatures[:, None]).exp().sum(1).log()


def exact_log_z_slopes(energies, temperatures):
    """∂ log Z/∂β and ∂² log Z/∂β², (n_T,), by automatic differentiation: not by the averages that they equal."""
    beta = (1 / temperatures).requires_grad_(True)
    (slope,) = torch.autograd.grad((-beta[:, None] * energies).logsumexp(1).sum(), beta, create_graph=True)
    return slope.detach(), torch.autograd.grad(slope.sum(), beta)[0]


def exact_log_z_by_decimals(energies, temperature):
    """log Z at one temperature in 28-digit arithmetic, whose exponents do not overflow."""
    return float(sum((-Decimal(e) / Decimal(temperature)).exp() for e in energies.tolist()).ln())


def theory_overflow_temperature(energies):
    """Where Z = 3.4e38, float32's largest number: below this temperature the naive sum is infinite."""
    largest = math.log(torch.finfo(torch.float32).max)
    return scipy.optimize.brentq(lambda t: (-energies / t).logsumexp(0).item() - largest, 1e-3, 1e3)


class Temperatures(NamedTuple):
    """States at many temperatures: in float64, and log Z in float32 twice."""

    temperatures: torch.Tensor
    found: Thermodynamics
    slopes: tuple
    naive: torch.Tensor
    safe: torch.Tensor


def sweep_temperatures(energies, temperatures, device="cpu"):
    """Temperatures, of states with `energies` (n,), float64."""
    e, t = energies.float().to(device), temperatures.float().to(device)  # float32: a network's precision
    found, slopes = thermodynamics(energies, temperatures), exact_log_z_slopes(energies, temperatures)
    return Temperatures(temperatures, found, slopes, naive_log_z(e, t).cpu(), thermodynamics(e, t).log_z.cpu())


def draw_temperatures(swept, overflow):
    """Probabilities, thermodynamics and the two sums against temperature; `overflow` is where the naive one ends."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
    t, naive, safe = (to_numpy(x) for x in (swept.temperatures, swept.naive, swept.safe))
    log_z, u, s, f, c, p = map(to_numpy, swept.found)
    axes[0].plot(t, p[:, 1:], label=["$E=-3$ (two states)", "$E=-2$", "$E=-1$", "$E=2$"])
    axes[0].axhline(1 / 5, color="k", ls="--", lw=1, label="1/5")
    axes[0].set(title="cold: ground states; hot: all alike", ylabel="probability of one state")
    axes[1].plot(t, np.stack([u, f, c], 1), label=["energy $U$", "free energy $F$", "heat capacity $C$ (nats)"])
    axes[1].plot(t, u - t * s, "k--", label="$U-TS$")
    axes[1].set(title="$F=U-TS$: entropy pulls $F$ below $U$", ylabel="units of energy", ylim=(-10, 2))
    axes[2].plot(t, naive, "tab:blue", lw=8, alpha=0.4, label="naive sum")
    axes[2].plot(t, safe, "tab:orange", lw=3, label="log-sum-exp")
    axes[2].plot(t, log_z, "k--", label="float64")
    axes[2].axvspan(t[0], overflow, color="tab:blue", alpha=0.15, label="naive sum: infinite")
    axes[2].set(title=f"the naive sum overflows below T = {overflow:.3f}", ylabel=r"$\log Z$ in float32", yscale="log")
    for ax in axes:
        ax.set(xscale="log", xlabel="temperature $T$")
        legend_below(ax, 2)
    return fig


def section_probability(run):
    """Temperature decides between the lowest energy and the largest number of states; log Z knows both."""
    energies = torch.tensor([-3.0, -3.0, -2.0, -1.0, 2.0], dtype=torch.float64)  # two ground states
    swept = sweep_temperatures(energies, torch.logspace(-2, 2, 400, dtype=torch.float64), run.device)
    t, found, (slope, curvature) = swept.temperatures, swept.found, swept.slopes
    gap = (found.free_energy - (found.energy - t * found.entropy)).abs().max()
    # run.metric(name, value, its standard error or None, (label, reference) beside it, how near the reference it must be)
    run.metric("F - (U - TS), largest (energy)", gap, None, ("theorem", 0), 1e-9)
    run.metric("dlogZ/dbeta + U, largest (energy)", (slope + found.energy).abs().max(), None, ("theorem", 0), 1e-9)
    gap = (curvature - t**2 * found.heat_capacity).abs().max()
    run.metric("d2logZ/dbeta2 - T^2 C, largest (energy^2)", gap, None, ("theorem", 0), 1e-9)
    run.metric("entropy at T = 0.01 (nats)", found.entropy[0], None, ("ln 2, two ground states", math.log(2)), 1e-6)
    run.metric("entropy at T = 100 (nats)", found.entropy[-1], None, ("ln 5, all five states", math.log(5)), 1e-3)
    overflow = theory_overflow_temperature(energies)
    hottest = t[swept.naive.isinf()].max()
    run.metric("naive sum infinite up to temperature", hottest, None, ("Z = 3.4e38", overflow), (t[1] / t[0] - 1) * overflow)
    exact = exact_log_z_by_decimals(energies, t[0].item())
    run.metric("log-sum-exp: log Z at T = 0.01 (nats)", swept.safe[0], None, ("28 digits", exact), 1e-4)
    run.figure(draw_temperatures(swept, overflow), "temperature")
    states = found.entropy[[0, -1]].exp()
    run.say(f"cold, {states[0]:.1f} states share the probability, hot, {states[1]:.1f} of {len(energies)}")


# %% 2. The partition function
# Z normalises. In one dimension any quadrature gives it; the trapezoid rule is astonishing on smooth functions that die
# out at both ends, 41 points give nine digits. In d dimensions it costs 41^d points: 10^32 at d = 20. From d = 5 or so
# Z is *estimated*, by a mean of random weights w whose expectation is Z. Draw x from a density q that we can sample:
#
#     w = exp(-E(x)) / q(x),        E_q[w] = ∫ q(x) exp(-E(x))/q(x) dx = Z.
#
# With q uniform on a box this is simple Monte Carlo; with q nearer to p it is importance sampling. To see dimension
# alone at work, take a product energy E(x) = Σ_i E_1(x_i): then log Z = d log Z_1 exactly, and w is a product of d
# independent factors. How many of the N samples count? The *effective sample size* (Kong 1992) is (Σw)²/Σw²: N if all
# weights are equal, 1 if one carries the whole sum. Divide by N and let N grow:
#
#     ESS/N  ->  E_q[w]² / E_q[w²]  =  ρ^d,        ρ = Z_1² / ∫ exp(-2 E_1)/q dx  <  1.
#
# Exponentially few samples carry the sum. Three warnings that papers forget:
# 1. mean(w) is unbiased for Z, but we report its log. The logarithm is concave, so by Jensen's inequality
#    E[log mean(w)] <= log E[mean(w)] = log Z: on average the estimate is too low. How much? Write mean(w) = Z (1 + δ),
#    with E[δ] = 0 and Var δ = var(w)/(N Z²) = (1/ρ^d - 1)/N; log(1 + δ) = δ - δ²/2 + ..., so it is low by about
#    (1/ρ^d - 1)/(2N). A log likelihood -E(x) - log Z computed from it is flattered by as much.
# 2. The standard error of log Z is that of Z divided by Z (d log Z = dZ/Z; this is called the *delta method*): its
#    square is std(w)²/(mean(w)² N) = (N/ESS - 1)/(N - 1), from Σw² = (Σw)²/ESS. It cannot exceed 1 nat, which it
#    reaches at ESS = 1: when few weights dominate, those that would reveal the error have not been drawn yet. A small
#    ESS makes the error bar itself worthless.
# 3. A large ESS proves nothing if q misses a mode (a hill of p) altogether: no diagnostic sees what no sample has visited.


def double_well(x, barrier=2.0, tilt=0.5):
    """E = Σ_i [barrier (x_i² - 1)² + tilt x_i]: wells near ±1 in every coordinate; x (B, d) -> (B,)."""
    return (barrier * (x**2 - 1) ** 2 + tilt * x).sum(-1)


def importance_log_weights(energy, proposal, n, d):
    """log w (n,) of n points with d coordinates, each drawn from the 1-D distribution `proposal`."""
    x = proposal.sample((n, d))
    return -energy(x) - proposal.log_prob(x).sum(-1)


def growing_log_weights(energy, proposal, shape, dims, device="cpu"):
    """The same for a product energy in all of the rising `dims`: log w (len(dims), *shape). A point of d coordinates is one
    of d - 1 with one more."""
    log_w, rows = torch.zeros(shape, device=device), []
    for d in range(1, dims[-1] + 1):
        log_w = log_w + importance_log_weights(energy, proposal, log_w.numel(), 1).reshape(shape).to(device)
        if d in dims:
            rows.append(log_w)
    return torch.stack(rows)


def log_z_from_weights(log_w):
    """(log Z, its standard error, ESS), each (...), from log importance weights (..., N).

    Standard error by the delta method, std(w) / (mean(w) √N); ESS = (Σw)² / Σw² (Kong 1992), between 1 and N.
    """
    n = log_w.shape[-1]
    log_sum = log_w.logsumexp(-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(-1)).exp()
    return log_sum - math.log(n), ((1 / ess - 1 / n).clamp(min=0) * n / (n - 1)).sqrt(), ess


def trapezoid_log_z(energy, axis):
    """log Z of a 1-D energy by the trapezoid rule on the even grid `axis` (n,)."""
    return torch.trapezoid((-energy(axis[:, None])).exp(), axis).log()


def exact_well_log_z(d=1):
    """log Z of the double well in d dimensions: d times that of one, by adaptive quadrature."""
    return d * math.log(scipy.integrate.quad(lambda x: math.exp(-double_well(np.array([x]))), -4, 4, epsabs=1e-12)[0])


# What q is in each coordinate, and how far out to integrate for its ρ.
PROPOSALS = {
    "simple": (torch.distributions.Uniform(-3.0, 3.0), 3),
    "importance": (torch.distributions.Normal(0.0, 1.0), 4),
}


def exact_ess_share(name, d):
    """ρ^d, the limit of ESS/N, for a proposal of PROPOSALS and the double well; the integral by quadrature."""
    q, end = PROPOSALS[name]
    square = lambda x: math.exp(-2 * double_well(np.array([x])) - q.log_prob(torch.tensor(x)).item())  # noqa: E731
    return (math.exp(2 * exact_well_log_z()) / scipy.integrate.quad(square, -end, end)[0]) ** d


def theory_jensen(share, n):
    """How far log mean(w) of n weights lies from log Z on average, to first order, where ESS/N -> `share`."""
    return -(1 / share - 1) / (2 * n)


class Estimates(NamedTuple):
    """Repeated estimates of log Z in several dimensions: the error, the error bar and ESS/N, each (n_dims, n_repeats)."""

    error: torch.Tensor  # log Z minus the exact one, nats
    claimed: torch.Tensor
    share: torch.Tensor

    def at(self, d):
        """The same in d dimensions only, each (n_repeats,)."""
        return Estimates(*(values[DIMS.index(d)] for values in self))

    def rms(self):
        """Root mean square error over repeats: what the claimed error should be."""
        return self.error.square().mean(-1).sqrt()


DIMS = (1, 2, 5, 10, 20, 40)


def estimates_of(log_w, dims=DIMS):
    """Estimates, from log weights (n_dims, n_repeats, N)."""
    log_z, claimed, ess = (values.cpu() for values in log_z_from_weights(log_w.double()))
    exact = exact_well_log_z() * torch.tensor(dims, dtype=torch.float64)[:, None]
    return Estimates(log_z - exact, claimed, ess / log_w.shape[-1])


def estimate_by_dimension(n_repeats, n_points, n_few=1600, device="cpu"):
    """{proposal: Estimates} from n_points each; and, from many small estimates of n_few weights by importance sampling in
    five dimensions, their errors (n,); and n_few as used."""
    found = {}
    for name, (q, _) in PROPOSALS.items():
        log_w = growing_log_weights(double_well, q, (n_repeats, n_points), DIMS, device)
        found[name], five = estimates_of(log_w), log_w[DIMS.index(5)].flatten().double().cpu()
    n_few = min(n_few, n_points)
    few = log_z_from_weights(five[: len(five) // n_few * n_few].reshape(-1, n_few))[0]
    return found, few - exact_well_log_z(5), n_few


def draw_estimates(found, n_points):
    """Error beside error bar, and the share of samples that count, against dimension; found {method: Estimates}."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, estimates in found.items():
        colour, share = COLOURS[name], np.array([mean_and_error(row) for row in estimates.share])
        axes[0].plot(DIMS, to_numpy(estimates.rms()), "o-", color=colour, label=f"{name}: actual error (RMS)")
        axes[0].plot(DIMS, to_numpy(estimates.claimed.mean(1)), ":", color=colour, lw=2, label=f"{name}: its own error bar")
        axes[1].errorbar(DIMS, share[:, 0], share[:, 1], fmt="o-", color=colour, capsize=3, label=name)
        if name in PROPOSALS:
            axes[1].plot(DIMS, [exact_ess_share(name, d) for d in DIMS], "--", color=colour, lw=1, label=r"limit $\rho^d$")
    axes[0].axhline(1, color="k", lw=1, label="1 nat: no error bar is longer")
    axes[1].axhline(1 / n_points, color="k", lw=1, label="one sample of them all")
    worst = max(found, key=lambda name: found[name].at(20).rms())
    error, claimed = found[worst].at(20).rms(), found[worst].at(20).claimed.mean()
    axes[0].set(title=f"d = 20, {worst}: wrong by {error:.1f} nats, error bar {claimed:.1f}", ylabel=r"$\log Z$ (nats)")
    axes[1].set(title="samples that count: fewer with each dimension", ylabel="ESS / samples", ylim=(0.2 / n_points, 2))
    for ax in axes:
        ax.set(xlabel="dimension $d$", yscale="log")
        legend_below(ax, 2)
    return fig


def record_estimates(run, name, estimates):
    """What an estimator of log Z says in 20 dimensions, beside what is true."""
    at, exact = estimates.at(20), exact_well_log_z(20)
    mean, sem = mean_and_error(at.error)
    run.metric(f"{name}, d = 20: log Z (nats)", exact + mean, sem, ("exact, 20 log Z_1", exact))
    run.metric(f"{name}, d = 20: claimed error (nats)", at.claimed.mean(), None, ("actual RMS error", at.rms()))
    limit = ("limit rho^20", exact_ess_share(name, 20)) if name in PROPOSALS else None
    run.metric(f"{name}, d = 20: ESS / samples", *mean_and_error(at.share), limit)


def section_partition(run):
    """Z is easy in one dimension; as dimensions are added, plain averages rest on fewer and fewer samples."""
    config = run.config
    found, few, n_few = estimate_by_dimension(config.n_repeats, config.n_points, device=run.device)
    log_z = trapezoid_log_z(double_well, torch.linspace(-2.99, 2.99, 41, dtype=torch.float64))
    run.metric("one dimension: log Z, 41 points (nats)", log_z, None, ("quadrature", exact_well_log_z()), 1e-8)
    for name, estimates in found.items():
        ratio, sem = mean_and_error(estimates.at(2).error.exp())
        run.metric(f"{name}, d = 2: Z / exact", ratio, sem, ("unbiased", 1), tolerance(sem, config.n_repeats))
        record_estimates(run, name, estimates)
    ratio, sem = mean_and_error(few.exp())
    within = tolerance(sem, len(few)) if n_few == 1600 else None  # of fewer, too few count
    run.metric("importance, d = 5, few points: Z / exact", ratio, sem, ("unbiased", 1), within)
    jensen = ("Jensen, first order", theory_jensen(exact_ess_share("importance", 5), n_few))
    run.metric("the same: log Z - exact (nats)", *mean_and_error(few), jensen)
    run.figure(draw_estimates(found, config.n_points), "dimension")
    best = min(found, key=lambda name: found[name].at(20).rms())
    missed = 20 * math.log(41) / math.log(10)
    run.say(f"d = 20: the grid would need 10^{missed:.0f} points; the better estimate, {best}, is off by "
            f"{found[best].at(20).rms():.2g} nats and claims {found[best].at(20).claimed.mean():.2g}")  # fmt: skip


# %% 3. Landscapes
# Six energies in the plane, each with a difficulty of its own for a walk (part 4): a narrow valley (Gaussian), a barrier
# (two wells), a continuum of minima (ring), a bend (banana), modes far apart (mixture), and a chemist's reaction path
# through three basins (Mueller & Brown 1979). All but the last have an exact log Z. The banana is a Gaussian sheared by
# (x_1, x_2) -> (x_1, x_2 + b(x_1)), whose Jacobian has ones on its diagonal and nothing above: it moves mass and changes
# no volume. The ring needs one integral, ∫ 2πr exp(-(r-2)²/(2s²)) dr. Check a new sampler on energies whose answer you
# know.


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


# name: energy, box, temperature of the density shown
LANDSCAPES = {
    "gaussian": (gaussian, (-4.5, 4.5, -4.5, 4.5), 1.0),
    "two wells": (two_wells, (-2.5, 2.5, -4.5, 4.5), 1.0),
    "ring": (ring, (-4, 4, -4, 4), 1.0),
    "banana": (banana, (-4.5, 4.5, -2.5, 10), 1.0),
    "mixture": (mixture, (-4, 4, -4, 4), 1.0),
    "mueller-brown": (mueller_brown, (-1.5, 1.2, -0.3, 2.1), 20.0),
}


def exact_landscape_log_z():
    """{landscape: (source, log Z)} of the five landscapes that have one."""
    ring_weight = lambda r: 2 * math.pi * r * math.exp(-((r - 2) ** 2) / (2 * 0.3**2))  # noqa: E731
    return {
        "gaussian": ("closed form", math.log(2 * math.pi * math.sqrt(1 - 0.9**2))),
        "two wells": ("1-D quadrature", exact_well_log_z() + math.log(2 * math.pi) / 2),
        "ring": ("1-D quadrature", math.log(scipy.integrate.quad(ring_weight, 0, 6)[0])),
        "banana": ("closed form", math.log(2 * math.pi * 0.5)),
        "mixture": ("normalised", 0.0),
    }


# Mueller & Brown (1979), table 1: where to look for a stationary point, and its energy.
PUBLISHED = {
    "minimum 1": ((-0.6, 1.4), -146.700),
    "minimum 2": ((0.6, 0.0), -108.167),
    "minimum 3": ((0.0, 0.5), -80.768),
    "saddle 1": ((-0.8, 0.6), -40.665),
    "saddle 2": ((0.2, 0.3), -72.249),
}


def stationary_points():
    """{name: (place (2,), energy)} of the Mueller-Brown surface, by a root of its gradient near each published point."""

    def slope(x):  # float64 on the CPU
        return energy_and_grad(mueller_brown, torch.tensor(x)[None])[1][0].numpy()

    places = {name: scipy.optimize.root(slope, near, tol=1e-10).x for name, (near, _) in PUBLISHED.items()}
    return {name: (x, mueller_brown(torch.tensor(x)[None]).item()) for name, x in places.items()}


def mass_inside(energy, box, temperature, wide=(-4.0, 4.0, -3.0, 5.0), device="cpu"):
    """The share of the density's mass that lies in a box, as found on a much wider one."""
    _, log_p, x, area = grid_density(energy, wide, 800, temperature, device)
    inside = (x[:, 0] > box[0]) & (x[:, 0] < box[1]) & (x[:, 1] > box[2]) & (x[:, 1] < box[3])
    return (log_p.exp().flatten() * inside).double().sum().item() * area


SURFACE_BOX, SURFACE_TEMPERATURES = (-2.3, 1.7, -1.0, 2.7), (10.0, 30.0)


def draw_gallery(points):
    """Each landscape's energy above its density; points: `stationary_points`."""
    fig, axes = plt.subplots(2, 6, figsize=(12, 4.6), layout="constrained")
    for (name, (energy, box, t)), (top, bottom) in zip(LANDSCAPES.items(), axes.T, strict=True):
        _, log_p, grid, _ = grid_density(energy, box, 200, t)
        e, x, y = to_numpy(torch.stack([energy(grid), *grid.T]).reshape(3, 200, 200))
        levels = e.min() + t * np.linspace(0.2, 14, 14)
        top.contourf(x, y, e.clip(max=levels[-1]), levels, cmap="viridis", extend="min")
        bottom.imshow(to_numpy(log_p.exp().T), origin="lower", extent=box, aspect="auto", cmap="magma")
        top.set(title=name, xticks=[], yticks=[])
        bottom.set(title=f"$T={t:g}$", xticks=[], yticks=[])
    for name, (x, _) in points.items():
        axes[0, 5].plot(*x, "rx" if "saddle" in name else "wo", ms=5)
    axes[0, 5].set_xlabel("o minimum, x saddle", fontsize=9)
    axes[0, 0].set_ylabel("energy, dark is low")
    axes[1, 0].set_ylabel("density")
    fig.suptitle("the same landscape twice: what is written down, and where samples go")
    return fig


def draw_surfaces(inside):
    """Mueller-Brown's energy and its densities; inside {temperature: share of the mass in the box}."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.6), subplot_kw={"projection": "3d"}, layout="constrained")
    for ax, t in zip(axes, (0, *inside), strict=True):
        _, log_p, points, _ = grid_density(mueller_brown, SURFACE_BOX, 120, t or 1)
        z = log_p.exp() if t else mueller_brown(points).reshape(120, 120).clamp(max=100)
        x, y, z = to_numpy(torch.stack([*points.T.reshape(2, 120, 120), z]))
        ax.plot_surface(x, y, z, cmap="magma" if t else "viridis", rcount=60, ccount=60)
        ax.set(xlabel="$x_1$", ylabel="$x_2$")
        ax.set_title(f"density at T = {t:g}; {inside[t]:.1%} of it is here" if t else "energy, cut at 100")
        ax.locator_params(nbins=4)
        ax.view_init(40, -110)
    fig.suptitle("Mueller-Brown: cold, the deepest basin holds most; hot, the path between the basins fills")
    return fig


def section_landscapes(run):
    """Six landscapes: temperature decides how much of an energy a sampler ever sees."""
    for name, reference in exact_landscape_log_z().items():
        log_z = grid_density(*LANDSCAPES[name][:2], device=run.device)[0]
        run.metric(f"{name}: log Z on a grid (nats)", log_z, None, reference, 1e-4)
    points = stationary_points()
    for name, (_, energy) in points.items():
        run.metric(f"Mueller-Brown, {name}: energy", energy, None, ("published", PUBLISHED[name][1]), 1e-3)
    inside = {t: mass_inside(mueller_brown, SURFACE_BOX, t, device=run.device) for t in SURFACE_TEMPERATURES}
    for t, share in inside.items():
        run.metric(f"Mueller-Brown, T = {t:g}: mass in the figure", share, None, ("all", 1), 0.005)
    run.figure(draw_gallery(points), "gallery")
    run.figure(draw_surfaces(inside), "surfaces")
    shares = [upper_basin_share(t) for t in SURFACE_TEMPERATURES]
    run.say(
        f"the basin of the deepest minimum holds {shares[0]:.0%} of the probability at T = 10, {shares[1]:.0%} at T = 30"
    )


# %% 4. A chain that walks
# How do we draw from p if we cannot compute Z? We walk. A *Markov chain* is a walk whose next step depends only on where it
# stands. Metropolis et al. (1953) walk so: from x,
#
#     1. propose  x' = x + √(ε T) ξ,   ξ ~ N(0, I);       ε is the *step size*
#     2. accept it with probability  a(x, x') = min(1, p(x')/p(x)) = min(1, exp(-(E(x') - E(x))/T)): Z cancels;
#     3. if it is refused, stay. Where the chain stands is the next draw, moved or not.
#
# Downhill moves are always accepted, uphill moves sometimes. Why does that draw from p? Look at two places x and y. The
# proposal is symmetric, q(x -> y) = q(y -> x). Suppose p(y) < p(x). In a crowd of walkers that is spread like p,
#
#     flow x -> y:   p(x) q(x -> y) p(y)/p(x)  =  p(y) q(x -> y)
#     flow y -> x:   p(y) q(y -> x) · 1        =  p(y) q(x -> y).
#
# They are equal: *detailed balance*. Between any two places as many walk there as back, so a crowd spread like p stays
# so: p is *stationary*. And a crowd that starts elsewhere forgets its start. Say from everywhere a step lands at y with
# probability at least δ p(y), δ > 0: then it is as if each step drew a share δ of the crowd afresh from p, and after n
# steps only (1 - δ)^n of it remembers. The steps until it has forgotten are the *burn-in*: drop them. After it, one long
# walk will do instead of a crowd, since it forgets its own past too: its histogram grows onto p.
#
# Rule 3 is the one that beginners break. If refused moves are not counted, x is counted only when the chain arrives, and
# places that are hard to leave (where p is high) are counted too seldom. Arrivals at x balance departures, p(x) times the
# acceptance rate at x: that is what one samples.
#
# In one dimension we can see the whole crowd at once. On a fine grid a step is a matrix K, K_ij = P(x_i -> x_j), and a row
# vector π of probabilities becomes π K. Stationary means π K = π; after n steps from x_i the crowd is row i of K^n. What
# separates it from p is measured by the *total variation* ½ Σ |π_i - p_i|: 0 if equal, 1 if they share nothing.


def metropolis_walk(energy, x, n_steps, step_size, temperature=1.0):
    """One chain, step by step as above, from x (d,): its path (n_steps + 1, d), and how many moves were accepted."""
    path, n_accepted, e = [x], 0, energy(x[None])
    for _ in range(n_steps):
        proposal = x + (step_size * temperature) ** 0.5 * torch.randn(x.shape)
        e_new = energy(proposal[None])
        if torch.rand(1).log() < (e - e_new) / temperature:  # u < a has probability a; min(1, .) is implied, as u < 1
            x, e, n_accepted = proposal, e_new, n_accepted + 1
        path.append(x)  # also if it was refused
    return torch.stack(path), n_accepted


def accept(log_ratio, new, old):
    """Metropolis' test, chain by chain: (accepted (B,), each tensor of `new` where accepted and of `old` elsewhere)."""
    yes = torch.rand_like(log_ratio).log() < log_ratio  # a nan is a no
    return yes, *(torch.where(yes.reshape(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True))


def metropolis(energy, x, n_steps, step_size, temperature=1.0, keep=None):
    """Many chains at once, x (B, ...), one a row; returns the last x and each chain's acceptance rate (B,).

    As in all samplers here, `keep`, if given, is called with x after each step (`draws = []; ...(keep=draws.append)`), and
    `step_size` is a float, or one per chain, of a shape that broadcasts against x.
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


def transition_matrix(axis, energies, step_size, gradients=None, adjust=True):
    """One step of a sampler at T = 1 on an even 1-D grid `axis` (n,), finer than √step_size and float64: the matrix
    K (n, n), K[i, j] = P(axis_i -> axis_j), and the acceptance rate (n,) at each point.

    Metropolis without `gradients` (n,); of the samplers of part 5, MALA with them, ULA with adjust=False.
    """
    mean = axis if gradients is None else axis - 0.5 * step_size * gradients
    log_q = -((axis - mean[:, None]) ** 2) / (2 * step_size)
    if not adjust:
        return log_q.softmax(1), torch.ones_like(axis)
    k = log_q.exp() * (axis[1] - axis[0]) / math.sqrt(2 * math.pi * step_size)
    k = k * (energies[:, None] - energies + log_q.T - log_q).clamp(max=0).exp()
    rate = k.sum(1)
    return k + torch.diag(1 - rate), rate  # what is refused stays


WELL_AXIS = torch.linspace(-2.2, 2.2, 221, dtype=torch.float64)  # 5e-15 of the double well's mass lies beyond


def exact_crowd(k, start, n_steps):
    """Where a crowd stands that starts at grid point `start`: the rows (n_steps + 1, n) of K^0, K^1, ... by enumeration."""
    rows = [torch.eye(len(k)).to(k)[start]]
    for _ in range(n_steps):
        rows.append(rows[-1] @ k)
    return torch.stack(rows)


class Walk(NamedTuple):
    """One chain on the double well, the crowd it belongs to, and what is exact."""

    path: torch.Tensor  # of the one chain, (n + 1,)
    acceptance: float  # its share of accepted moves
    positions: torch.Tensor  # x of every chain after each of MARKS steps, (n_marks, n_chains)
    kept: torch.Tensor  # mean of each chain after burn-in, (n_chains,)
    dropped: torch.Tensor  # the same if refused moves are not counted
    crowd: torch.Tensor  # exact: (n_steps + 1, n_grid)
    p: torch.Tensor  # exact, stationary (n_grid,)
    rate: torch.Tensor  # exact acceptance at each point (n_grid,)


MARKS, WALK_STEP, WALK_START = (1, 5, 20, 100), 0.3, 2.0


def watch_walk(n_chains, n_draws, device="cpu"):
    """Walk: chains from x = 2, far up the right wall."""
    e = double_well(WELL_AXIS[:, None])
    k, rate = transition_matrix(WELL_AXIS, e, WALK_STEP)
    start = (WELL_AXIS - WALK_START).abs().argmin().item()
    path, n_accepted = metropolis_walk(double_well, torch.tensor([WALK_START]), n_draws, WALK_STEP)
    draws, burn_in = [torch.full((n_chains, 1), WALK_START, device=device)], 300
    metropolis(double_well, draws[0], burn_in + n_draws, WALK_STEP, keep=draws.append)
    draws = torch.stack(draws, 1)[..., 0].double().cpu()
    late, moved = draws[:, burn_in + 1 :], (draws[:, burn_in + 1 :] != draws[:, burn_in:-1]).double()
    n_moved, pooled = moved.sum(1), (late * moved).sum() / moved.sum()
    # a ratio of sums, linearised: these average to `pooled`, and their spread gives its standard error (delta method)
    dropped = pooled + ((late - pooled) * moved).sum(1) / n_moved.mean()
    marks = draws[:, list(MARKS)].T
    crowd, share = exact_crowd(k, start, burn_in), n_accepted / n_draws
    return Walk(path[:, 0], share, marks, late.mean(1), dropped, crowd, (-e).softmax(0), rate)


def burn_in_steps(crowd, p, distance=0.01):
    """(steps after which the crowd (n, n_grid) is nearer to p than `distance` for good, all total variations (n,))."""
    gaps = (crowd - p).abs().sum(1) / 2
    return int((gaps > distance).sum()), gaps


def draw_walk(walk, burn_in, gaps):
    """The trace, the crowd's distance from p, and the histogram after few and after all draws."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    path, colour, dx = to_numpy(walk.path), COLOURS["Metropolis"], (WELL_AXIS[1] - WELL_AXIS[0]).item()
    axes[0].plot(path[:500], lw=0.8, color=colour)
    axes[0].axvspan(0, burn_in, color="k", alpha=0.12)
    axes[0].set(title=f"a chain walks; shaded: burn-in, {burn_in} steps", xlabel="step", ylabel="$x$")
    axes[1].semilogy(to_numpy(gaps), "k")
    axes[1].axhline(0.01, color="k", ls=":", lw=1)
    axes[1].set(title="a crowd forgets where it started", xlabel="step", ylabel="total variation from $p$ (exact)")
    bins, few = np.linspace(-2.2, 2.2, 45), min(100, len(path) - 1)
    for draws, style in ((path[: few + 1], {"alpha": 0.35}), (path[min(burn_in, len(path) // 2) :], {"histtype": "step"})):
        axes[2].hist(draws, bins, density=True, color=colour, lw=2, label=f"{len(draws)} draws", **style)
    axes[2].plot(to_numpy(WELL_AXIS), to_numpy(walk.p) / dx, "k", label="exact density")
    axes[2].set(title="its histogram grows onto the density", xlabel="$x$", ylabel="density")
    legend_below(axes[2], 2)
    return fig


def animate_walk(run, path, p):
    """chain_walk.gif: the chain on its energy above, the histogram of all its draws so far below."""
    x, e, dx = to_numpy(path), to_numpy(double_well(path[:, None])), (WELL_AXIS[1] - WELL_AXIS[0]).item()
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(4.6, 5.0), sharex=True)
    axis, edges, colour = to_numpy(WELL_AXIS), np.linspace(-2.2, 2.2, 45), COLOURS["Metropolis"]
    top.plot(axis, to_numpy(double_well(WELL_AXIS[:, None])), "k")
    (tail,), (dot,) = top.plot([], [], "-", color="0.6", lw=1), top.plot([], [], "o", color=colour, ms=9)
    bars = bottom.stairs(0 * edges[1:], edges, fill=True, color=colour, alpha=0.5)
    bottom.plot(axis, to_numpy(p) / dx, "k")
    top.set(ylabel="energy", ylim=(-1, 20))
    bottom.set(xlabel="$x$", ylabel="density", ylim=(0, 1.2))
    with run.whole("chain_walk.gif") as gif, (writer := PillowWriter(fps=6)).saving(fig, gif, dpi=80):
        for end in np.unique(np.geomspace(1, len(x) - 1, run.config.n_frames).astype(int)):
            tail.set_data(x[max(0, end - 5) : end + 1], e[max(0, end - 5) : end + 1])
            dot.set_data(x[end : end + 1], e[end : end + 1])
            bars.set_data(np.histogram(x[: end + 1], edges, density=True)[0])
            bottom.set_title(f"histogram of {end} steps; black: exact", fontsize=10)
            writer.grab_frame()
    plt.close(fig)


def section_chain(run):
    """A chain that accepts by the ratio of densities forgets its start, and its histogram grows onto p: no Z needed."""
    walk = watch_walk(run.config.n_chains, run.config.n_draws, run.device)
    n, (burn_in, gaps) = run.config.n_chains, burn_in_steps(walk.crowd, walk.p)
    run.metric("one chain: share of moves accepted", walk.acceptance, None, ("exact", walk.p @ walk.rate))
    for step, x in zip(MARKS, walk.positions, strict=True):
        mean, sem = mean_and_error(x)
        exact = ("exact, from K^n", walk.crowd[step] @ WELL_AXIS)
        run.metric(f"all chains after {step} steps: mean of x", mean, sem, exact, tolerance(sem, n, len(MARKS)))
    run.metric("burn-in until within 1 % of p (steps)", burn_in)
    mean, sem = mean_and_error(walk.kept)
    run.metric("all draws after burn-in: mean of x", mean, sem, ("exact", walk.p @ WELL_AXIS), tolerance(sem, n))
    wrong, sem = mean_and_error(walk.dropped)
    arrivals = (walk.p * walk.rate) @ WELL_AXIS / (walk.p @ walk.rate)
    run.metric(
        "refused moves not counted: mean of x", wrong, sem, ("exact, p times acceptance", arrivals), tolerance(sem, n)
    )
    run.figure(draw_walk(walk, burn_in, gaps), "walk")
    animate_walk(run, walk.path, walk.p)
    run.say(f"after {burn_in} steps the start is forgotten to 1 %; a chain that drops refused moves is wrong by "
            f"{wrong - walk.p @ WELL_AXIS:+.3f} for ever")  # fmt: skip


# %% 5. Sampling: with the slope
# Metropolis proposes in the dark. The slope ∇E says where downhill is. *Langevin* dynamics, eq. (2), goes half a step
# downhill and adds the same noise. It accepts everything ("unadjusted", ULA): cheap, but its answer is biased at order ε,
# since a finite step overshoots; part 8 computes by how much. Three words for what follows: a sampler is *exact* if p is
# stationary for it at every step size; *biased* if it settles on something else; and it *mixes* fast if it forgets fast.
#
# MALA (Metropolis-adjusted Langevin; Rossky, Doll & Friedman 1978; Roberts & Tweedie 1996) makes Langevin exact by
# Metropolis' test. The proposal is not symmetric now: q(x'|x) is a Gaussian about x - (ε/2)∇E(x), and downhill is
# proposed more often than uphill. Ask detailed balance of p(x) q(x'|x) a(x, x') = p(x') q(x|x') a(x', x): it holds for
#
#     a = min(1, p(x') q(x|x') / (p(x) q(x'|x))),        log q(x'|x) = -|x' - x + (ε/2)∇E(x)|² / (2 ε T) + const.
#
# (If the ratio is r < 1, then a(x, x') = r and a(x', x) = 1: multiply out. The same for r > 1 with the sides exchanged.)
# Why half a step? Multiply the ratio r out, with g = ∇E(x), g' = ∇E(x'):
#
#     log r = -[E(x') - E(x) - (x' - x)·(g + g')/2]/T + (ε/8T)(|g|² - |g'|²).
#
# Both terms are of order ε^(3/2) (the bracket is the trapezoid rule's error), so refusals vanish as ε -> 0, even those of
# the 1/ε steps in a unit of time together: without the test, eq. (2) samples p in that limit.
#
# Hamiltonian Monte Carlo (Duane et al. 1987) goes further before it asks. Think of x as a marble on the landscape of E,
# and give it a push, a random velocity v ~ N(0, T) (its mass is 1, so v is its momentum too). It rolls by Newton's law,
# dx/dt = v, dv/dt = -∇E, which keeps the sum H = E + |v|²/2 of its potential and kinetic energy. Look at the density
# exp(-H/T) of both: x and v are independent in it, and x alone has exp(-E/T), as we want. Rolling changes neither H nor
# volume in the space of (x, v), so it leaves that density alone, however far it goes: a long step that is accepted for
# certain.
#
# The computer rolls in steps of size h by *leapfrog*: half a kick v -= (h/2)∇E, a drift x += h v, half a kick. Each of
# the three shifts one variable by a function of the other only: it changes no volume, and with v reversed it runs back.
# So "roll, then turn v round" is a symmetric proposal, and Metropolis' ratio is exp(-(H' - H)/T): about 1, since leapfrog
# errs in H by order h² only. One leapfrog step is x' = x + h v - (h²/2)∇E: MALA's proposal with ε = h².


def energy_and_grad(energy, x):
    """E(x) (B,) and ∇E(x) (B, ...), both detached."""
    x = x.detach().requires_grad_(True)
    e = energy(x)
    (grad,) = torch.autograd.grad(e.sum(), x)  # of the sum: rows do not see each other
    return e.detach(), grad


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
        v = temperature**0.5 * torch.randn_like(x)
        kinetic = 0.5 * (v**2).flatten(1).sum(1)
        x_new, v = x, v - 0.5 * step_size * grad
        for _ in range(n_leapfrog):
            x_new = x_new + step_size * v
            e_new, grad_new = energy_and_grad(energy, x_new)
            v = v - step_size * grad_new
        v = v + 0.5 * step_size * grad_new  # the last kick was half too much
        # v need not be turned round: v² is the same, and the next step draws a new v
        log_ratio = (e + kinetic - e_new - 0.5 * (v**2).flatten(1).sum(1)) / temperature
        yes, x, e, grad = accept(log_ratio, (x_new, e_new, grad_new), (x, e, grad))
        accepted = accepted + yes / n_steps
        if keep:
            keep(x)
    return x, accepted


# Second reading: samplers that keep their momentum instead of drawing a new one for each trajectory. *Underdamped*
# Langevin dynamics rubs the momentum away at a rate γ (friction) and replaces what is lost by noise. How much noise? Over
# a time h friction leaves e^(-γh) of v, hence e^(-2γh) T of its variance T. Noise of variance T (1 - e^(-2γh)) fills it
# up to T again: v = e^(-γh) v + √(T (1 - e^(-2γh))) ξ leaves N(0, T) alone exactly. BAOAB (Leimkuhler & Matthews 2013)
# puts it (O) between half kicks (B) and half drifts (A). SGHMC (Chen, Fox & Guestrin 2014) takes plain Euler steps, v =
# (1 - γh) v + noise: to keep T the noise needs the variance T - (1 - γh)² T = 2γh T - (γh)² T, of which it keeps the
# first term. It is meant for gradients from minibatches, with noise of their own. Neither is tested for acceptance: both
# are biased.


def underdamped(energy, x, n_steps, step_size, friction=1.0, temperature=1.0, keep=None):
    """Underdamped Langevin by the BAOAB splitting, unadjusted; returns x (B, ...)."""
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
    """SGHMC by Euler steps, unadjusted; returns x (B, ...).

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


# %% 5. Sampling: how good are the draws?
# Draws of one chain resemble each other. Let ρ_t be the correlation between draws t steps apart. The variance of the mean of
# N draws is (Var x/N²) Σ_s Σ_t ρ_|s-t|, in which each lag t stands about 2N times:
#
#     Var(mean) ≈ (Var x/N) τ,     τ = 1 + 2 Σ_{t>=1} ρ_t      the *integrated autocorrelation time*.
#
# So N draws are worth N_eff = N/τ independent ones, again called *effective sample size* (part 2's counted unequal weights,
# this one counts dependence). To estimate τ the sum must stop before it is all noise: for a chain in detailed balance
# ρ_2k + ρ_2k+1 is positive and falls with k (Geyer 1992), so stop at the first pair that is not positive, and replace each
# pair by the least so far. τ depends on what is averaged: below, the worse of x and x² counts.
#
# *R-hat* compares the variance between half chains with that within: 1 when all explore the same distribution. Neither can
# know of a mode that no chain has found. Chains that never move have no variance within: 0/0 then means what the limit of
# slow chains says, ρ_t = 1 at all lags (a chain is worth one draw), R-hat infinite, or 1 if all stand at one point.


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
    """ρ_t (n_draws,) at lags t = 0, 1, ... of chains (n_chains, n_draws). Where their means differ ρ_t is nearer to 1:
    the total variance counts that too (Vehtari et al. 2021)."""
    if (chains == chains[:, :1]).all():  # no chain moves
        return torch.ones_like(chains[0])
    n, within = chains.shape[1], chains.var(1).mean()
    spectrum = torch.fft.rfft(chains - chains.mean(1, keepdim=True), n=2 * n)  # padded: no wrap-around
    # |spectrum|² transforms back to Σ_s x_s x_{s+t}, for all t at once (Wiener-Khinchin)
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
    return halves.numel() / tau.clamp(min=1 / math.log10(halves.numel()))  # draws that alternate about the mean can beat N


# Second reading: τ exactly, from the matrix K of a chain on a grid. Let 1π be the matrix whose rows are all π. Centre f, so
# that π·f = 0. The mean of f after t steps from each point is K^t f, and ρ_t = π·(f K^t f)/π·f². We need Σ_t K^t f. Since
# π·f = 0 and π K = π, all terms have mean zero and (1π) K^t f = 0. Multiply the sum from the left by I - K + 1π: the sum
# telescopes, (I - K) Σ_{t=0}^{n} K^t f = f - K^{n+1} f -> f. So Σ_t K^t f = (I - K + 1π)⁻¹ f (Kemeny & Snell 1960 call it
# the fundamental matrix): one linear system instead of an infinite sum.


def stationary(k):
    """The distribution π (n,) that a transition matrix K (n, n) leaves alone: π K = π, Σ π = 1. There must be one only."""
    one = torch.ones_like(k)  # π K = π and Σ π = 1 together: π (I - K + J) = (1, ..., 1), J all ones
    return torch.linalg.solve((torch.eye(len(k)).to(k) - k + one).T, one[0])


def exact_autocorrelation_time(k, f, pi=None):
    """τ of a function f (n,) of the chain K (n, n) with the stationary π (n,); infinite if there are points that it never
    leaves: the system is singular then."""
    pi = stationary(k) if pi is None else pi
    f = f - pi @ f
    summed, trouble = torch.linalg.solve_ex(torch.eye(len(k)).to(k) - k + pi, f)
    return math.inf if trouble else (2 * pi @ (f * summed) / (pi @ f**2) - 1).item()


def hmc_matrices(energy, axis, step_size, n_leapfrog, n_momenta=400):
    """HMC's transition matrices at T = 1 on an even 1-D grid `axis` (n,), one for each 1 ... n_leapfrog steps: K (n, n) and
    the acceptance (n,). Momenta v stand at the middles of equal shares of N(0, 1); where a trajectory lands between two grid
    points, each gets its share; beyond the grid it is refused."""
    n, dx = len(axis), axis[1] - axis[0]
    x0 = axis.repeat_interleave(n_momenta)
    v = torch.special.ndtri((torch.arange(n_momenta).to(axis) + 0.5) / n_momenta).repeat(n)
    start, x, (e, grad) = torch.arange(n).repeat_interleave(n_momenta), x0, energy_and_grad(energy, x0[:, None])
    h_0, found = e + v**2 / 2, []
    for _ in range(n_leapfrog):
        v = v - 0.5 * step_size * grad[:, 0]
        x = x + step_size * v
        e, grad = energy_and_grad(energy, x[:, None])
        v = v - 0.5 * step_size * grad[:, 0]
        inside = (x >= axis[0]) & (x <= axis[-1])
        weight = (h_0 - e - v**2 / 2).clamp(max=0).exp().where(inside, torch.zeros_like(x)) / n_momenta
        place = ((x - axis[0]) / dx).where(inside, torch.zeros_like(x))
        left = place.floor().clamp(max=n - 2).long()
        k = torch.zeros(n * n).to(axis)
        k.index_add_(0, start * n + left, weight * (1 - place + left))
        k.index_add_(0, start * n + left + 1, weight * (place - left))
        rate = k.reshape(n, n).sum(1)
        found.append((k.reshape(n, n) + torch.diag(1 - rate), rate))
    return found


# %% 5. Sampling: which sampler is cheapest?
# The unit of cost below is one evaluation of E or of ∇E. (It flatters the slope, which costs two to three times as much.)
# Each sampler first gets its best step size. On the double well the sweep needs no sampling, since τ follows from K.
#
# Where does the grid end? In a box that leaves out less than one draw in ten million, |x| < 1.9. It matters for MALA: far up
# a wall that is steeper than a parabola, its slope throws the proposal beyond the opposite wall, and it is refused: a chain
# that comes there hardly ever leaves (Roberts & Tweedie 1996). At a wide step the traps begin where chains do come.

BOX = 1.9
SWEPT = {"Metropolis": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), "MALA": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)}
SWEPT |= {"HMC": (0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6)}


class Setting(NamedTuple):
    """A sampler's step size and leapfrog steps (evaluations a draw), what they are worth, and, on a grid, its matrix."""

    step_size: float
    n_leapfrog: int
    per_1000: float  # effective draws per 1,000 evaluations, the worse of x and x²
    k: torch.Tensor | None = None
    rate: torch.Tensor | None = None


def exact_sweep(box=BOX, n=190):
    """{sampler: [Setting]} on the double well within |x| < box, from transition matrices; HMC at its best trajectory."""
    axis = torch.linspace(-box, box, n, dtype=torch.float64)
    e, grad = energy_and_grad(double_well, axis[:, None])
    pi, found = (-e).softmax(0), {name: [] for name in SWEPT}

    def setting(step_size, n_leapfrog, k, rate):
        tau = max(exact_autocorrelation_time(k, f, pi) for f in (axis, axis**2))
        return Setting(step_size, n_leapfrog, 1000 / tau / n_leapfrog if tau > 0 else 0.0, k, rate)

    for name, steps in SWEPT.items():
        for step in steps:
            if name == "HMC":
                both = [setting(step, 1 + i, *pair) for i, pair in enumerate(hmc_matrices(double_well, axis, step, 8))]
                found[name].append(max(both, key=lambda setting: setting.per_1000))
            else:
                k, rate = transition_matrix(axis, e, step, grad[:, 0] if name == "MALA" else None)
                found[name].append(setting(step, 1, k, rate))
    return axis, pi, found


def exact_trap(step_size, boxes=(1.7, 1.9)):
    """{box: effective draws of x per 1,000 steps of MALA within |x| < box}, exact: the trap beyond makes the difference."""
    found = {}
    for box in boxes:
        axis = torch.linspace(-box, box, 190, dtype=torch.float64)
        e, grad = energy_and_grad(double_well, axis[:, None])
        k, _ = transition_matrix(axis, e, step_size, grad[:, 0])
        found[box] = 1000 / exact_autocorrelation_time(k, axis, (-e).softmax(0))
    return found


def per_1000(chains, effort=1, n_groups=4):
    """Effective draws per 1,000 evaluations, `effort` a draw, of chains (n_chains, n_draws, d), for the worst of all
    coordinates and their squares: mean and standard error over groups of chains."""
    functions = torch.cat([chains, chains**2], 2).unbind(2)
    groups = [min(effective_sample_size(f[i::n_groups]).item() for f in functions) for i in range(n_groups)]
    n_draws = [chains[i::n_groups, :, 0].numel() for i in range(n_groups)]
    return mean_and_error([1000 * ess / n / effort for ess, n in zip(groups, n_draws, strict=True)])


def run_sampler(name, energy, d, setting, n_chains, n_draws, device="cpu"):
    """Draws (n_chains, n_draws, d) after a burn-in of a quarter as many, and the acceptance rates (n_chains,) or None."""
    step_size, n_leapfrog = setting
    extra = {"n_leapfrog": n_leapfrog} if name == "HMC" else {}
    draws, burn_in, x = [], n_draws // 4, 3 * torch.rand(n_chains, d, device=device) - 1.5
    out = SAMPLERS[name](energy, x, burn_in + n_draws, step_size, keep=draws.append, **extra)
    draws = torch.stack(draws[burn_in:], 1).double().cpu()
    must_be_finite(f"[sampling] {name}", draws)
    return draws, out[1].double().cpu() if isinstance(out, tuple) else None


SAMPLERS = {"Metropolis": metropolis, "MALA": mala, "HMC": hmc, "ULA": langevin, "underdamped": underdamped, "SGHMC": sghmc}
BIASED = {"ULA": (0.08, 1), "underdamped": (0.15, 1), "SGHMC": (0.15, 1)}  # small enough to be stable: not compared in cost


class Sampled(NamedTuple):
    """What one sampler did on the double well."""

    setting: tuple  # step size and leapfrog steps
    draws: torch.Tensor  # (n_chains, n_draws)
    acceptance: torch.Tensor | None
    per_1000: tuple  # mean, standard error
    exact: Setting | None


def sample_wells(best, n_chains, n_draws, device="cpu"):
    """{sampler: Sampled} on the double well: the exact samplers at their best settings, `best` {name: Setting}."""
    found = {}
    for name, setting in ({name: s[:2] for name, s in best.items()} | BIASED).items():
        draws, acceptance = run_sampler(name, double_well, 1, setting, n_chains, n_draws, device)
        gain = per_1000(draws, setting[1])
        found[name] = Sampled(setting, draws[..., 0], acceptance, gain, best.get(name))
    return found


@functools.cache
def exact_ula(step_size=BIASED["ULA"][0]):
    """ULA's own limit on the double well, (axis, π): a wider grid, as without the test noise carries it higher."""
    axis = torch.linspace(-2.2, 2.2, 441, dtype=torch.float64)
    e, grad = energy_and_grad(double_well, axis[:, None])
    return axis, stationary(transition_matrix(axis, e, step_size, grad[:, 0], adjust=False)[0])


def upper_basin_share(temperature, box=SURFACE_BOX):
    """The share of Mueller-Brown's probability above x_2 = 0.8, where its deepest basin lies, on a grid."""
    _, log_p, points, area = grid_density(mueller_brown, box, 400, temperature)
    return (log_p.exp().flatten() * (points[:, 1] > 0.8)).double().sum().item() * area


SETTLED = 5000  # steps: seven times the 750 in which this film's share comes nearer to its end by a factor e


def pour(n_frames, n_steps, n_particles=600, step_size=8e-4, temperature=20.0):
    """MALA particles poured over Mueller-Brown: [(steps so far, particles (n, 2))], each frame longer than the last."""
    x = torch.rand(n_particles, 2) * 2 + torch.tensor([-1.2, -0.1])
    ends = np.unique(np.geomspace(1, n_steps, max(n_frames - 1, 1)).astype(int))
    film = [(0, x)]
    for end in ends.tolist():
        x, _ = mala(mueller_brown, x, end - film[-1][0], step_size, temperature)
        film.append((end, x))
    return film


def animate_settling(run, film, exact):
    """sampling_settling.gif: particles on the landscape, and the share of them in the upper basin, where `exact` are."""
    box = LANDSCAPES["mueller-brown"][1]
    x, y = np.meshgrid(np.linspace(*box[:2], 200), np.linspace(*box[2:], 200))
    e = to_numpy(mueller_brown(torch.tensor(np.stack([x.ravel(), y.ravel()], 1)))).reshape(200, 200)
    fig, ax = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    ax.contourf(x, y, e.clip(max=100), np.linspace(-150, 100, 21), cmap="viridis")
    (dots,) = ax.plot([], [], "o", ms=3, color="white", mec="black", mew=0.3)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=box[:2], ylim=box[2:])
    with run.whole("sampling_settling.gif") as path, (writer := PillowWriter(fps=8)).saving(fig, path, dpi=80):
        for steps, particles in film:
            share = (particles[:, 1] > 0.8).double().mean().item()
            dots.set_data(*to_numpy(particles.T))
            ax.set_title(f"{steps} steps: {share:.0%} in the upper basin, exact {exact:.0%}", fontsize=10)
            writer.grab_frame()
    plt.close(fig)


def draw_wells(found, axis, pi, swept):
    """Histograms beside exact densities, autocorrelation against evaluations, and the sweep of step sizes (exact) with what
    was measured at the best; found {sampler: Sampled}, swept {sampler: [Setting]}."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained")
    bins, (wide, own) = np.linspace(-1.9, 1.9, 58), exact_ula()
    for name in ("MALA", "ULA"):
        draws = to_numpy(found[name].draws.flatten())
        axes[0].hist(draws, bins, density=True, histtype="step", lw=2, color=COLOURS[name], label=name)
    axes[0].plot(to_numpy(axis), to_numpy(pi / (axis[1] - axis[0])), "k", lw=1, label="exact")
    axes[0].plot(to_numpy(wide), to_numpy(own / (wide[1] - wide[0])), "k:", label="ULA's own limit")
    for name, sampled in found.items():
        n, style = min(200, sampled.draws.shape[1] // 2), "-" if sampled.exact else "--"
        lags = np.arange(n) * sampled.setting[1]
        axes[1].plot(lags, to_numpy(autocorrelation(sampled.draws)[:n]), style, color=COLOURS[name], label=name)
    for name, settings in swept.items():
        steps = [s.step_size**2 if name == "HMC" else s.step_size for s in settings]  # ε = h²
        axes[2].plot(steps, [s.per_1000 for s in settings], ".-", color=COLOURS[name], label=f"{name}, exact")
        best = max(settings, key=lambda setting: setting.per_1000)
        (mean, sem), step = found[name].per_1000, steps[settings.index(best)]
        axes[2].errorbar(step, mean, sem, fmt="D", color=COLOURS[name], capsize=4)
    axes[2].errorbar([], [], [], fmt="D", color="0.4", label="measured")
    axes[0].set(title="ULA settles on another density", xlabel="$x$", ylabel="density")
    first = max(swept, key=lambda name: found[name].per_1000)
    axes[1].set(title="memory of where $x$ was (dashed: biased)", ylabel="autocorrelation of $x$", ylim=(-0.25, 1))
    axes[1].set(xlabel="evaluations of the energy or its gradient", xlim=(0, 150))
    axes[2].set(title=f"each at its best step, {first} is cheapest", xscale="log", yscale="log", ylim=(1, 300))
    axes[2].set(xlabel="step size (HMC: leapfrog step squared)", ylabel="effective draws per 1,000 evaluations")
    for ax, n_columns in zip(axes, (2, 3, 2), strict=True):
        legend_below(ax, n_columns)
    return fig


def record_sampler(run, name, sampled, axis, pi):
    """One sampler's numbers on the double well, beside what its transition matrix says."""
    n, setting, limit = len(sampled.draws), sampled.exact, ("exact", pi @ axis)
    mean, sem = mean_and_error(sampled.draws.mean(1))
    run.metric(f"{name}: mean of x", mean, sem, limit, tolerance(sem, n) if setting else None)
    if name == "ULA":
        wide, own = exact_ula()
        run.metric("ULA: mean of x beside its own limit", mean, sem, ("exact kernel", own @ wide), tolerance(sem, n))
    if setting is None:
        return
    rate, sem = mean_and_error(sampled.acceptance)
    run.metric(f"{name}: acceptance rate", rate, sem, ("exact kernel", pi @ setting.rate), tolerance(sem, n))
    run.metric(f"{name}: effective per 1,000 evaluations", *sampled.per_1000, ("exact kernel", setting.per_1000))


def say_mixing(run, chains):
    """The worst split R-hat of chains {sampler: (n_chains, n_draws)}; chains that never moved are only reported."""
    r_hats = {name: split_r_hat(x).item() for name, x in chains.items()}
    stuck = [name for name, r_hat in r_hats.items() if r_hat == math.inf]
    if stuck:
        run.say(f"no chain moved ({'; '.join(stuck)}): R-hat is infinite; raise --n-draws")
    worst = max((name for name in r_hats if name not in stuck), key=r_hats.get, default=None)
    if worst:
        run.metric("worst split R-hat", r_hats[worst], None, (f"of {worst}; 1 when mixed", 1))


def section_sampling(run):
    """Exact samplers agree with exact answers, unadjusted ones with their own; a barrier is crossed by long jumps."""
    config, (axis, pi, swept) = run.config, exact_sweep()
    best = {name: max(settings, key=lambda setting: setting.per_1000) for name, settings in swept.items()}
    found = sample_wells(best, config.n_chains, config.n_draws, run.device)
    for name, sampled in found.items():
        record_sampler(run, name, sampled, axis, pi)
    say_mixing(run, {name: sampled.draws for name, sampled in found.items()})
    trapped = exact_trap(0.4)
    for box, gain in trapped.items():
        run.metric(f"MALA, step 0.4, box {box:g}: exact per 1,000", gain)
    run.figure(draw_wells(found, axis, pi, swept), "wells")
    film, exact = pour(config.n_frames, config.n_settling), upper_basin_share(20.0)
    animate_settling(run, film, exact)
    share, sem = mean_and_error(film[-1][1][:, 1] > 0.8)
    within = tolerance((exact * (1 - exact) / 600) ** 0.5, 600) if config.n_settling >= SETTLED else None
    run.metric("settled in the upper basin (share)", share, sem, ("grid, T = 20", exact), within)
    bias = exact_ula()[1] @ exact_ula()[0] - pi @ axis
    cheapest = max(best, key=lambda name: found[name].per_1000)
    run.say(f"over the barrier {cheapest} is cheapest; ULA's mean of x is off by {bias:+.3f} however long it runs")


# %% 6. Z again: annealed importance sampling
# Part 2's weights collapse because q is far from p, and further with each dimension. With samplers at hand we can go in
# small steps (Neal 2001). Lay a path of energies from one whose Z is known to ours, E_β = (1-β) E_q + β E, β from 0 to 1
# (not the 1/T of part 1).
# Draw x_0 ~ q. Then, for each of K small changes of β: *weigh*, then *move*,
#
#     log w  +=  E_{β_{k-1}}(x) - E_{β_k}(x),        x <- a few Markov steps that leave exp(-E_{β_k}) stationary.
#
# Why is E[w] = Z(1)/Z(0), though the moves are too short for x to settle? Take one change. x ~ p_0, weight w =
# f_1(x)/f_0(x), with f = exp(-E), then a move K_1. For any function g, the weighted mean of g after the move is
#
#     Σ_x p_0(x) [f_1(x)/f_0(x)] Σ_x' K_1(x, x') g(x')  =  (1/Z_0) Σ_x' g(x') Σ_x f_1(x) K_1(x, x')
#                                                       =  (1/Z_0) Σ_x' f_1(x') g(x'),
#
# since f_1 is stationary under K_1. So the weighted points stand for f_1/Z_0: with g = 1 their mean weight is Z_1/Z_0,
# and the next change starts as this one did. A move that does nothing is allowed, and gives importance sampling back; a
# good one keeps the weights equal. How long must the path be? If x forgets at each move, each of the K changes adds to
# log w a variance of about d/K² (each of d coordinates, times Δβ² = 1/K²), in all d/K: to keep it, K must grow in
# proportion to the dimension, not exponentially.


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


def well_path(x, beta):
    """From the standard Gaussian, normalised so that Z = 1 there, to the double well."""
    return (1 - beta) * 0.5 * (x**2 + math.log(2 * math.pi)).sum(-1) + beta * double_well(x)


def well_move(x, beta):
    """One MALA step at beta, of a size that falls with the dimension as part 7 says."""
    return mala(lambda y: well_path(y, beta), x, 1, 0.2 * x.shape[1] ** (-1 / 3))[0]


def anneal_by_dimension(n_repeats, n_particles, n_betas, move=well_move, device="cpu"):
    """Estimates of the double well's log Z in DIMS dimensions."""
    betas, rows = torch.linspace(0, 1, n_betas + 1).tolist(), []
    for d in DIMS:
        log_w, _ = ais(well_path, move, torch.randn(n_repeats * n_particles, d, device=device), betas)
        rows.append(log_w.reshape(n_repeats, n_particles))
    return estimates_of(torch.stack(rows))


def draw_annealing(found, n_points):
    """Errors and samples that count, of AIS and of plain importance sampling with as many points {method: Estimates}."""
    fig = draw_estimates(found, n_points)
    annealed, plain = (found[name].at(40).rms() for name in ("AIS", "importance"))
    fig.axes[0].set_title(f"d = 40: AIS off by {annealed:.2g} nats, plain weights by {plain:.2g}")
    fig.axes[1].set_title(f"d = 40: AIS keeps {found['AIS'].at(40).share.mean():.1%} of its samples")
    return fig


def section_ais(run):
    """A path of small steps, each moved along by a Markov chain, keeps the weights alive where plain ones collapse."""
    config, n = run.config, 4 * run.config.n_particles * run.config.n_betas  # AIS evaluates E four times a step
    annealed = anneal_by_dimension(config.n_repeats, config.n_particles, config.n_betas, device=run.device)
    plain = estimate_by_dimension(config.n_repeats, n, device=run.device)[0]["importance"]
    for d in (5, 20):
        ratio, sem = mean_and_error(annealed.at(d).error.exp())
        enough = config.n_betas >= 10 * d and config.n_particles >= 100  # fewer: a few weights rule, and no spread shows it
        within = tolerance(sem, config.n_repeats, 2) if enough else None
        run.metric(f"AIS, d = {d}: Z / exact", ratio, sem, ("unbiased", 1), within)
    for name, estimates in (("AIS", annealed), ("importance", plain)):
        record_estimates(run, name, estimates)
    run.figure(draw_annealing({"importance": plain, "AIS": annealed}, n), "dimension")
    errors = plain.at(20).rms(), annealed.at(20).rms()
    run.say(f"d = 20, {n} evaluations: plain weights are off by {errors[0]:.2g} nats, annealed ones by {errors[1]:.2g}")


# %% 7. How wide a step? (second reading)
# Too short a step wastes evaluations, too long a one is refused. What is best depends on the dimension d, and on a Gaussian,
# E = |x|²/2 at T = 1, all of it is exact. All three proposals are linear there, for each coordinate x' = c x + b ξ:
#
#     Metropolis             c = 1,         b = √ε
#     MALA                   c = 1 - ε/2,   b = √ε
#     HMC, L leapfrog steps  c = cos(Lθ),   b = sin(Lθ)/χ,       cos θ = 1 - h²/2,   χ² = 1 - h²/4.
#
# (Leapfrog keeps v² + χ² x² exactly: it turns (χx, v) by θ a step. L = 1 is MALA with ε = h².) The acceptance depends on
# one number. For Metropolis ΔE = (|x'|² - |x|²)/2. For HMC and MALA v'² - v² = -χ²(x'² - x²), so ΔH = (1 - χ²)(|x'|² -
# |x|²)/2. In both cases a move that brings |x| down is accepted for certain, and by detailed balance as many accepted
# moves go up as down: the acceptance rate is 2 P(|x'| < |x|). In each coordinate x'² - x² is a quadratic form in the two
# Gaussians x and ξ, with eigenvalues of opposite sign, λ₁ < 0 < λ₂, λ₁ + λ₂ = t = c² - 1 + b² and λ₁ λ₂ = -b². Summed
# over the coordinates,
#
#     |x'|² - |x|² = λ₂ W - |λ₁| U,     U, W independent, chi-squared with d degrees of freedom,
#     acceptance = 2 P(W/(U + W) < s),  s = |λ₁|/(|λ₁| + λ₂) = (1 - t/√(t² + 4b²))/2,     W/(U + W) ~ Beta(d/2, d/2).
#
# The mean squared jump E[|x' - x|² a] follows in the same way; U in front of a chi-squared density only adds two degrees of
# freedom to it. Jump per evaluation, as a function of the step, has its best acceptance: as d grows it tends to
#
#     Metropolis   ε ~ ℓ²/d          best acceptance 0.234    (Roberts, Gelman & Gilks 1997)
#     MALA         ε ~ ℓ²/d^(1/3)    best acceptance 0.574    (Roberts & Rosenthal 1998)
#     HMC          h ~ ℓ/d^(1/4)     best acceptance 0.651    (Beskos et al. 2013), at a fixed angle Lθ.
#
# So tune a sampler by its acceptance, but not towards 1. And the cost of a draw grows as d, d^(1/3), d^(1/4): that is why
# slopes win in high dimension. To *rank* the three, look at the slower of x and x². One step keeps ρ = 1 - jump/(2d) of x
# and nearly 1 - (1 - ρ)(1 + c) of x², as if refusals fell independently of x (they cluster a little, where |x| is small);
# a quantity that keeps ρ a step has τ = (1 + ρ)/(1 - ρ). With c near 1, x² forgets twice as *fast* as x: look at x. A
# trajectory of half a turn, c = -1, reverses x (its mean is learnt at once) and never changes x².


def standard_gaussian(x):
    """The unit Gaussian's energy in any number of dimensions, x (B, d) -> (B,)."""
    return (x**2).sum(-1) / 2


def linear_proposal(name, step_size, n_leapfrog=1):
    """(c, b) of x' = c x + b ξ on the unit Gaussian; step_size is ε, for HMC h. n_leapfrog need not be whole."""
    if name == "Metropolis":
        return 1.0, step_size**0.5
    h = step_size if name == "HMC" else step_size**0.5
    angle = n_leapfrog * 2 * math.asin(h / 2)
    return math.cos(angle), math.sin(angle) / (1 - h**2 / 4) ** 0.5


def exact_gaussian_acceptance(d, c, b):
    """Acceptance rate on the d-dimensional unit Gaussian of the proposal x' = c x + b ξ, as derived above."""
    t = c**2 - 1 + b**2
    return 2 * scipy.special.betainc(d / 2, d / 2, (1 - t / math.sqrt(t**2 + 4 * b**2)) / 2)


def exact_gaussian_jump(d, c, b):
    """E |x' - x|² a / d, refused moves counted as 0: the squared jump of a coordinate."""
    values, axes = np.linalg.eigh([[c**2 - 1, c * b], [c * b, b**2]])
    along = ((axes.T @ [c - 1, b]) ** 2).tolist()  # x' - x = (c - 1) x + b ξ, in the eigenvectors' coordinates
    s = -values[0] / (values[1] - values[0])
    return 2 * sum(
        weight * scipy.special.betainc(d / 2 + i, d / 2 + 1 - i, s) for i, weight in enumerate(along)
    )  # W ~ chi-squared with d + 2 i, U with d + 2 (1 - i)


def exact_best_acceptance(name, d, angle=math.pi / 2):
    """The acceptance rate where the squared jump per evaluation is largest; HMC at a fixed angle, L not rounded."""

    def proposal(log_step):
        step = math.exp(log_step)
        n = angle / (2 * math.asin(step / 2)) if name == "HMC" else 1
        return *linear_proposal(name, step, n), n

    def loss(log_step):
        c, b, n = proposal(log_step)
        return -exact_gaussian_jump(d, c, b) / n

    rough = min(np.linspace(-0.5 - math.log(d), min(0.6, 2 - math.log(d) / 4), 400), key=loss)
    best = scipy.optimize.minimize_scalar(loss, bounds=(rough - 0.3, min(rough + 0.3, 0.69)), method="bounded").x
    return exact_gaussian_acceptance(d, *proposal(best)[:2])


def theory_per_1000(d, c, b, effort=1):
    """Effective draws per 1,000 evaluations for the slower of x and x², if refusals fell independently of where x is."""
    change = exact_gaussian_jump(d, c, b) / 2
    return min(1000 * rate / (2 - rate) / effort for rate in (change, change * (1 + c)))


def tune_by_theory(d):
    """{sampler: Setting}: the best of a fine grid of step sizes, and for HMC of trajectories of 1 ... 20 steps."""
    found = {}
    for name in PUBLISHED_ACCEPTANCE:
        lengths, steps = range(1, 21) if name == "HMC" else (1,), np.geomspace(1e-3, 1.5, 300).tolist()
        settings = [(step, n) for step in steps for n in lengths]
        rows = [Setting(step, n, theory_per_1000(d, *linear_proposal(name, step, n), n)) for step, n in settings]
        found[name] = max(rows, key=lambda setting: setting.per_1000)
    return found


PUBLISHED_ACCEPTANCE = {"Metropolis": 0.234, "MALA": 0.574, "HMC": 0.651}
GAUSSIAN_D = 400


def run_on_gaussian(name, setting, n_chains, n_draws, thin=1, d=GAUSSIAN_D, n_kept=200, device="cpu"):
    """From exact draws: every `thin`-th of some coordinates, which follow the same law, (n_chains, n_kept, n_draws // thin);
    and each chain's acceptance rate and squared jump per coordinate (n_chains,)."""
    step_size, n_leapfrog = setting
    extra = {"n_leapfrog": n_leapfrog} if name == "HMC" else {}
    start = torch.randn(n_chains, d, device=device)
    x, draws, jump, step = start, [], 0.0, 0

    def keep(new):
        nonlocal x, jump, step
        x, jump, step = new, jump + (new - x).square().mean(1).double() / n_draws, step + 1
        if step % thin == 0:
            draws.append(x[:, :n_kept])

    _, rate = SAMPLERS[name](standard_gaussian, start, n_draws, step_size, keep=keep, **extra)
    return torch.stack(draws, 2).double().cpu(), rate.double().cpu(), jump.cpu()


def per_1000_by_means(draws, effort):
    """Effective draws of a unit Gaussian per 1,000 evaluations, the worse of x and x²: mean and standard error over chains,
    draws (n_chains, n_kept, n). By definition τ = n Var(mean)/Var, and here means and variances are known."""
    n = draws.shape[2]
    tau_x = n * (draws.mean(2) ** 2).mean(1)
    tau_square = n * ((draws**2).mean(2) - 1).square().mean(1) / 2  # x² has mean 1 and variance 2
    tau, sem = max(mean_and_error(tau_x), mean_and_error(tau_square))
    return 1000 / tau / effort, 1000 / tau / effort * sem / tau


class Ranked(NamedTuple):
    """One sampler in 400 dimensions: one value a chain, and effective draws per 1,000 evaluations with their error."""

    rates: torch.Tensor
    jumps: torch.Tensor
    per_1000: tuple


def rank_by_draws(tuned, n_draws, n_chains=16, device="cpu"):
    """{sampler: Ranked}, each at its best setting. Slow ones need longer chains, of which fewer draws are kept."""
    found = {}
    for name, long, thin in (("Metropolis", 80, 20), ("MALA", 8, 1), ("HMC", 4, 1)):
        setting = tuned[name][:2]
        draws, *measured = run_on_gaussian(name, setting, n_chains, max(20 * thin, long * n_draws), thin, device=device)
        found[name] = Ranked(*measured, per_1000_by_means(draws, setting[1] * thin))
    return found


def theory_curve(name, d):
    """(acceptance, squared jump per evaluation / its best) along the step size, exact in d dimensions."""
    if name == "HMC":
        settings = [(2 * math.sin(math.pi / 4 / n), n) for n in np.geomspace(0.4, 3, 200) * d**0.25]
    else:
        settings = [(f * (5.7 / d if name == "Metropolis" else 2.7 / d ** (1 / 3)), 1) for f in np.geomspace(0.02, 5, 200)]
    proposals = [(linear_proposal(name, *setting), setting[1]) for setting in settings]
    rate = [exact_gaussian_acceptance(d, *proposal) for proposal, _ in proposals]
    gain = np.array([exact_gaussian_jump(d, *proposal) / n for proposal, n in proposals])
    return np.array(rate), gain / gain.max(), gain.max()


def draw_scaling(ranked, tuned):
    """Efficiency against acceptance, exact, with what was measured; and the ranking in 400 dimensions beside theory."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for i, (name, found) in enumerate(ranked.items()):
        colour, (rate, gain, best), n = COLOURS[name], theory_curve(name, GAUSSIAN_D), tuned[name].n_leapfrog
        jump, sem = mean_and_error(found.jumps / n / best)
        axes[0].plot(rate, gain, color=colour, lw=1)
        axes[0].errorbar(mean_and_error(found.rates)[0], jump, sem, fmt="o", color=colour, capsize=3)
        axes[0].errorbar([], [], fmt="o-", color=colour, label=f"{name}; best in the limit: {PUBLISHED_ACCEPTANCE[name]}")
        axes[0].axvline(PUBLISHED_ACCEPTANCE[name], color=colour, ls=":", lw=1.5)
        mean, sem = found.per_1000
        axes[1].bar(i, mean, yerr=sem, color=colour, capsize=4)
        axes[1].plot([i - 0.4, i + 0.4], [tuned[name].per_1000] * 2, "k", label="theory" if i == 0 else None)
    first = max(ranked, key=lambda name: ranked[name].per_1000)
    axes[0].set(title="the best acceptance is not 1; lines: exact", xlabel="acceptance rate", ylim=(0, 1.15))
    axes[0].set(ylabel="squared jump per evaluation / its best")
    axes[1].set(title=f"in {GAUSSIAN_D} dimensions {first} is cheapest", yscale="log")
    axes[1].set(ylabel="effective draws per 1,000 evaluations")
    axes[1].set_xticks(range(len(ranked)), ranked)
    for ax in axes:
        legend_below(ax, 1)
    return fig


def section_scaling(run):
    """The best acceptance is neither 0 nor 1, and exact on a Gaussian; in high dimension the slope pays."""
    tuned, d = tune_by_theory(GAUSSIAN_D), GAUSSIAN_D
    ranked = rank_by_draws(tuned, run.config.n_scaling_steps, device=run.device)
    for name, published in PUBLISHED_ACCEPTANCE.items():
        best = exact_best_acceptance(name, 10**12)
        run.metric(f"{name}, d = 10^12: best acceptance", best, None, ("published", published), 5e-4)
        run.metric(f"{name}, d = {d}: best acceptance", exact_best_acceptance(name, d), None, ("its limit", published))
    for name, found in ranked.items():
        proposal = linear_proposal(name, *tuned[name][:2])
        for what, values, exact in (("acceptance rate", found.rates, exact_gaussian_acceptance),
                                    ("squared jump", found.jumps, exact_gaussian_jump)):  # fmt: skip
            mean, sem = mean_and_error(values)
            within = tolerance(sem, len(values), 2 * len(ranked))
            run.metric(f"{name}, tuned: {what}", mean, sem, ("exact", exact(d, *proposal)), within)
        run.metric(f"{name}: effective per 1,000 evaluations", *found.per_1000, ("theory", tuned[name].per_1000))
    run.figure(draw_scaling(ranked, tuned), "acceptance")
    order = sorted(ranked, key=lambda name: ranked[name].per_1000, reverse=True)
    length = tuned["HMC"].n_leapfrog
    run.say(f"d = {d}, the slower of x and x^2: {' before '.join(order)}; HMC's best trajectory has {length} steps")


# %% 8. Step size is temperature
# Two forms of Langevin dynamics are in use. Ours, eq. (2), and  x <- x - h ∇E + √(2 h T) ξ.  Put h = ε/2: they are the
# same update, term by term. Behind them, for steps that go to 0, stand dx = -½∇E dt + √T dW and dx = -∇E dt + √(2T) dW
# (dW is noise of variance dt): the same motion by two clocks. Any other noise is another temperature: noise² = 2 h T =
# step_size T, so T = noise²/step_size.
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


WELL_CURVATURE, N_WELLS = 4.0, 20_000  # the wells of this part, and the particles in them
WIDTHS = (0.1, 0.5, 1.0, 1.8)  # a h: part of the limit, which is 2


def well_temperatures(temperature, n=N_WELLS, a=WELL_CURVATURE, device="cpu"):
    """a x² (n,) of ULA at each of WIDTHS, (len(WIDTHS), n), once it no longer changes: its mean is the temperature found."""
    ah = torch.tensor(WIDTHS, device=device)
    x = torch.zeros(n, len(WIDTHS), device=device)  # four wells in one energy, each with its own step
    x = langevin(lambda x: a * (x**2).sum(1) / 2, x, 60, 2 * ah / a, temperature)
    return (a * x.T**2).double().cpu()


def watch_growth(widths, n_steps=10, a=WELL_CURVATURE, start=1e5, device="cpu"):
    """|x| (n_steps + 1, len(widths)) of ULA from so far out that noise is nothing, at steps a h in `widths`."""
    ah, path = torch.tensor(widths, device=device), [torch.full((1, len(widths)), start, device=device)]
    langevin(lambda x: a * (x**2).sum(1) / 2, path[0], n_steps, 2 * ah / a, keep=path.append)
    return torch.cat(path).abs().double().cpu()


def draw_stepsize(found, size, widths):
    """Temperature found {temperature: (4, n)} against the step, and the growth of |x| (n_steps + 1, 4)."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    grid, rows = np.linspace(0, 1.9, 200), len(size)
    for (temperature, values), marker in zip(found.items(), "os", strict=True):
        axes[0].plot(grid, langevin_temperature(1, 2 * grid, temperature), "k", lw=1)
        mean, sem = np.array([mean_and_error(row) for row in values]).T
        axes[0].errorbar(WIDTHS, mean, sem, fmt=marker, color=COLOURS["ULA"], capsize=4, label=f"ULA, $T={temperature:g}$")
    axes[0].plot([], [], "k", lw=1, label=r"exact, $T\cdot 2/(2-ah)$")
    axes[0].axvline(2, color="0.5", ls="--", label="no limit beyond")
    for i, width in enumerate(widths):
        colour = plt.cm.viridis(i / len(widths))
        axes[1].plot(to_numpy(size[:, i]), "o", color=colour, label=f"$ah={width:.1f}$")
        axes[1].plot(size[0, i].item() * abs(1 - width) ** np.arange(rows), color=colour, lw=1)
    axes[0].set(title="the wider the step, the hotter the samples", xlabel="step $ah$")
    axes[0].set(ylabel=r"temperature found, $a\,$Var $x$", ylim=(0, 20))
    axes[1].set(title="beyond $ah=2$ every step multiplies the distance", xlabel="steps $n$", ylabel="distance $|x|$")
    axes[1].plot([], [], "0.4", lw=1, label="$|1-ah|^n$")
    axes[1].set(yscale="log", ylim=(10, 1e9))
    for ax in axes:
        legend_below(ax, 3)
    return fig


def section_stepsize(run):
    """A Langevin step of finite size is too hot by 2/(2 - a h), and beyond h = 2/a nothing holds it."""
    found = {t: well_temperatures(t, device=run.device) for t in (1.0, 0.5)}
    for temperature, values in found.items():
        for width, row in zip(WIDTHS, values, strict=True):
            mean, sem = mean_and_error(row)
            exact = ("2T/(2 - ah)", langevin_temperature(1, 2 * width, temperature))
            name = f"T = {temperature:g}, step ah = {width:.1f}: found T"
            run.metric(name, mean, sem, exact, tolerance(sem, len(row), 2 * len(WIDTHS)))
    widths = (0.5, 1.8, 2.1, 2.5)
    size = watch_growth(widths, device=run.device)
    for i, width in enumerate(widths):
        growth = (size[8, i] / size[0, i]) ** (1 / 8)
        run.metric(f"step ah = {width:.1f}: growth a step", growth, None, ("|1 - ah|", abs(1 - width)), 2e-3)
    run.figure(draw_stepsize(found, size, widths), "temperature")
    # a published image recipe (JEM, Grathwohl et al. 2020): x <- x - 1.0 ∇E + 0.01 ξ, hence step_size 2 and noise 0.01
    t = 0.01**2 / 2.0
    x = langevin(lambda x: (x**2).sum(1) / 2, torch.zeros(N_WELLS, 1, device=run.device), 60, 2.0, t)
    mean, sem = mean_and_error(1e6 * x[:, 0] ** 2)
    exact = ("noise^2/step_size 2/(2 - ah)", 1e6 * langevin_temperature(1.0, 2.0, t))
    run.metric("a cold recipe: T found (millionths)", mean, sem, exact, tolerance(sem, len(x)))
    hot = mean_and_error(found[1.0][2])[0] - 1
    run.say(f"half way to the limit ULA samples {hot:.0%} too hot; a published recipe runs at {mean:.0f} millionths")


# %% 9. Two forces
# Maximum likelihood at T = 1, with log p(x) = -E(x) - log Z. The first term's gradient in θ is plain. The second,
#
#     -∇ log Z = -(1/Z) ∫ ∇ exp(-E) dx = -(1/Z) ∫ exp(-E) (-∇E) dx = + E_p[∇E]:
#
# eq. (3). A *positive phase* pushes the energy down where data are, a *negative phase* pushes it up where the model's
# own samples are; they balance when both agree. With E = |x - θ|²/2, ∇E = θ - x: the positive phase is mean(x) - θ, the
# negative phase E_p[θ - x] = 0, and the maximum is θ = mean(x), as it should be. Seen as a force on the *function* E, its
# value E(y) at each place y taken for a parameter (a grid makes it a table of numbers),
#
#     ∂/∂E(y) [mean log likelihood] = p(y) - p_data(y):    raise E where the model has too much, lower it elsewhere.
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
    return [w_1, b_1, w_2, torch.zeros_like(b_1), normal(width, 1) / width**0.5]  # no last bias: a constant in E cancels


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


def adam_uphill(parameters, gradients, moments, step, rate, betas=(0.9, 0.99)):
    """One step of Adam (Kingma & Ba 2015), uphill and in place; step counts from 1. Both running means start at 0 and are
    too small at first by the factor 1 - β^step: divide by it."""
    with torch.no_grad():  # by hand: the first torch.optim object costs a second of imports
        for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
            m.lerp_(g, 1 - betas[0])
            v.lerp_(g**2, 1 - betas[1])
            p += rate * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + 1e-8)


def exact_peaks_entropy():
    """Entropy in nats of `peaks`, by quadrature: a model's expected negative log likelihood is this + KL >= 0 (part 10)."""
    density = lambda x: peaks(torch.tensor(x)).item()  # noqa: E731
    return scipy.integrate.quad(lambda x: -density(x) * math.log(density(x)), -5, 5)[0]


def theory_gaussian_nll(variance):
    """Least negative log likelihood of one Gaussian on new data of this variance, in nats: its own entropy."""
    return 0.5 * math.log(2 * math.pi * math.e * variance)


PEAKS_VARIANCE = 0.4**2 + 1.5**2 - 0.3**2  # within a peak, plus that of the two centres


def draw_peaks(n_models, n_data, generator):
    """Data (n_models, n_data) from `peaks`, other data for each model."""
    side = torch.where(torch.rand(n_models, n_data, generator=generator) < 0.6, -1.5, 1.5)
    return side + 0.4 * torch.randn(n_models, n_data, generator=generator)


def slope_two_ways(x):
    """The slope of a network's log likelihood on x (1, n), float64, along a random direction: (by the two phases, by finite
    differences)."""
    axis = torch.linspace(-12, 14, 2001, dtype=torch.float64)
    weights = [p.double().requires_grad_(True) for p in network_parameters(1, 16)]
    where = [torch.randn_like(p) for p in weights]
    phases = two_phases(network_energy, weights, x, axis)
    slope = sum(((up + down) * v).sum() for up, down, v in zip(*phases, where, strict=True))
    ends = [[p.detach() + shift * v for p, v in zip(weights, where, strict=True)] for shift in (1e-5, -1e-5)]
    rise = [log_likelihood(network_energy, moved, x, axis) for moved in ends]
    return slope.item(), ((rise[0] - rise[1]) / 2e-5).item()


class Fitted(NamedTuple):
    """Networks fitted to data by the exact gradient."""

    axis: torch.Tensor
    nll: torch.Tensor  # on new data, nats, before each step and in the end, (n_steps + 1, n_models)
    shown: dict  # {step: the first network's density on the axis}


def fit_networks(x_data, n_steps, width=32, rate=0.01):
    """Fitted: one network for each row of x_data (M, n), by Adam with a rate that falls to 0."""
    axis = torch.linspace(-5, 5, 401, device=x_data.device)
    parameters = [p.requires_grad_(True) for p in network_parameters(len(x_data), width, x_data.device)]
    moments, nll, shown, dx = [(0 * p.detach(), 0 * p.detach()) for p in parameters], [], {}, axis[1] - axis[0]
    for step in range(n_steps + 1):
        with torch.no_grad():
            log_p = (-network_energy(parameters, axis.expand(len(x_data), -1))).log_softmax(1) - dx.log()
        nll.append(-(peaks(axis) * log_p).sum(1) * dx)  # expected on new data: no sampling error
        if step in (n_steps // 30, n_steps):
            shown[step] = log_p[0].exp().cpu()
        if step < n_steps:
            phases = zip(*two_phases(network_energy, parameters, x_data, axis), strict=True)
            adam_uphill(parameters, [up + down for up, down in phases], moments, step + 1, rate * (1 - step / n_steps))
    must_be_finite("[forces] training", *nll)
    return Fitted(axis.cpu(), torch.stack(nll).double().cpu(), shown)


def draw_forces(fitted, entropy):
    """A model early and late beside the data, and the way down to their entropy."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    early, late = min(fitted.shown), max(fitted.shown)
    x, p, before, after = map(to_numpy, (fitted.axis, peaks(fitted.axis), fitted.shown[early], fitted.shown[late]))
    axes[0].plot(x, p, "k", label="density of the data")
    axes[0].plot(x, before, "tab:purple", ls=":", lw=2, label=f"model after {early} steps")
    axes[0].plot(x, after, "tab:purple", ls="--", label=f"model after {late} steps")
    axes[0].fill_between(x, p, before, where=p > before, color="tab:blue", alpha=0.3, label="energy pulled down")
    axes[0].fill_between(x, p, before, where=p < before, color="tab:red", alpha=0.3, label="energy pushed up")
    axes[0].set(title="down at the data, up at the model's own samples", xlabel="$x$", ylabel="density", xlim=(-4, 4))
    n = fitted.nll.shape[1]
    axes[1].plot(
        to_numpy(fitted.nll), color="tab:purple", label=[f"{n} networks, each with its own data"] + [None] * (n - 1)
    )
    axes[1].axhline(entropy, color="k", label=f"entropy of the data, {entropy:.3f} nats")
    gap = fitted.nll[-1].mean() - entropy
    axes[1].set(title=f"exact maximum likelihood ends {gap:.4f} nats above the entropy", xlabel="optimiser steps")
    axes[1].set(ylabel="negative log likelihood on new data (nats)", ylim=(entropy - 0.05, entropy + 0.8))
    for ax in axes:
        legend_below(ax, 2)
    return fig


def section_forces(run):
    """The likelihood pulls energy down at the data and pushes it up at the model's own samples, until both agree."""
    x_data = draw_peaks(4, 4000, torch.Generator().manual_seed(run.seed))
    x, wide = x_data[:1].double(), torch.linspace(-12, 14, 2001, dtype=torch.float64)
    theta = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    (up,), (down,) = two_phases(lambda p, x: (x - p[0]) ** 2 / 2, [theta], x, wide)
    run.metric("moving Gaussian: positive phase", up, None, ("mean(x) - theta", x.mean() - 0.7), 1e-9)
    run.metric("moving Gaussian: negative phase", down, None, ("theory", 0), 1e-9)
    slope, difference = slope_two_ways(x)
    run.metric("network: slope along a direction", slope, None, ("finite difference", difference), 1e-5)
    fitted, entropy = fit_networks(x_data.to(run.device), run.config.n_train_steps), exact_peaks_entropy()
    mean, sem = mean_and_error(fitted.nll[-1])
    run.metric("networks: negative log likelihood (nats)", mean, sem, ("entropy of the data", entropy))
    one = theory_gaussian_nll(PEAKS_VARIANCE)
    run.metric("one Gaussian: negative log likelihood (nats)", one, None, ("entropy of the data", entropy))
    run.figure(draw_forces(fitted, entropy), "phases")
    run.say(f"the networks end {mean - entropy:.4f} nats above the entropy, one Gaussian {one - entropy:.2f}")


# %% 10. Covering or seeking
# A family that cannot hold the data must choose what to get wrong. The Kullback-Leibler divergence KL(p||q), the mean over
# p of log p - log q, is 0 if q = p and else positive: by Jensen (part 2) E_p[log(q/p)] < log E_p[q/p] = 0. Let q be a
# Gaussian N(m, s²) and p bimodal:
#
#     forward   KL(p||q) = E_p[log p - log q]   infinite where p > 0 = q: q must *cover*. E_p[log p] does not depend
#               on q, so this is maximum likelihood; its derivatives in m and s vanish at m = E_p[x], s² = Var_p[x].
#     reverse   KL(q||p) = E_q[log q - log p]   infinite where q > 0 = p: q *seeks* a place where p is high. If q is
#               one mode, of weight w, then p = w q there and KL = -log w: the best is the heaviest mode.
#
# Variational inference (fitting a tractable q to a p known up to Z), and a generator trained against an energy, minimise
# the reverse KL: no data needed, modes lost.
#
# The second choice is between fidelity and mobility. An energy that fits separated modes well has high barriers, and a
# chain needs about exp(barrier) steps to cross one (Arrhenius 1889; Kramers 1940). A gradient penalty λ E[|∇E|²] (∇ is in
# x here, not in θ) makes slopes gentle and barriers low, and pays with likelihood. The price depends on where E[.] is
# taken: at the data (R1, Mescheder et al. 2018), or on lines between pairs of data, which run through the barrier. (WGAN-GP,
# Gulrajani et al. 2017, goes along such lines too, but between data and generated points, and its penalty is (|∇| - 1)²: a
# slope of 1, not of 0.) Let E be a table on a grid; then the penalty is λ Eᵀ Q E = λ Σ weight (ΔE/Δx)², a quadratic form.
# The loss is convex (a linear term, a log-sum-exp and a square, each of them convex), and Newton's method,
# E <- E - Hessian⁻¹ gradient, finds *the* optimum of
#
#     Σ p_data E + log Σ exp(-E) + λ Eᵀ Q E,     gradient p_data - p + 2λ Q E,     Hessian diag(p) - p pᵀ + 2λ Q,
#
# and the steps a chain needs to forget are exact too: what is slowest to be forgotten shrinks by a factor λ_2 a step, the
# second eigenvalue of its transition matrix (no relation to the penalty's λ), hence by e in about 1/(1 - λ_2) steps.


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


class Mobility(NamedTuple):
    """Penalised energies at rising strengths: nats lost, relaxation time in Metropolis steps, and the energies."""

    lost: torch.Tensor  # (n_strengths,)
    steps: torch.Tensor  # (n_strengths,)
    energies: torch.Tensor  # (n_strengths, n), least energy 0


def between_weight(x, n=200):
    """Density (len(x),) of u a + (1 - u) b, a and b drawn from `peaks` and u uniform: Gaussian, given both peaks and u."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    s, ends = 0.4 * (u**2 + (1 - u) ** 2).sqrt(), [(0.36, -1.5 + 0 * u), (0.16, 1.5 + 0 * u), (0.48, 3 * u - 1.5)]
    return sum(w * ((-(((x[:, None] - c) / s) ** 2) / 2).exp() / (s * math.sqrt(2 * math.pi))).mean(1) for w, c in ends)


def trade_off(strengths):
    """(axis, {where the penalty is taken: Mobility}), all exact on a grid; without penalty at strength 0 only."""
    axis = torch.linspace(-3.2, 3.2, 161, dtype=torch.float64)
    p_data, middle, found = peaks(axis) / peaks(axis).sum(), (axis[1:] + axis[:-1]) / 2, {}
    for name, weight in (("none", None), ("at the data", peaks(middle)), ("between data", between_weight(middle))):
        e = -p_data.log()[None] if weight is None else penalised_energies(p_data, weight / weight.sum(), axis, strengths)
        lost = (p_data * (p_data.log() - (-e).log_softmax(1))).sum(1)
        steps = [relaxation_time(transition_matrix(axis, row, 0.05)[0], (-row).softmax(0)) for row in e]
        found[name] = Mobility(lost, torch.stack(steps), e - e.min(1, keepdim=True).values)
    return axis, found


def price_of_speed(mobility, slowest, factor=10):
    """Nats lost where the relaxation time is `slowest` / factor, by interpolation in its logarithm."""
    return np.interp(np.log(factor / slowest), to_numpy(-mobility.steps.log()), to_numpy(mobility.lost))


def draw_covering(axis, p, fits, grid, found):
    """Two Gaussians for two peaks (fits {direction: (mean, std)}); energies at equal loss; the trade-off."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained")
    axes[0].fill_between(axis, p, color="k", alpha=0.2, label="data")
    for (name, (m, s)), colour in zip(fits.items(), ("tab:cyan", "tab:red"), strict=True):
        axes[0].plot(axis, np.exp(-((axis - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi)), colour, label=name)
    axes[0].set(title="forward covers, reverse seeks", xlabel="$x$", ylabel="density", xlim=(-5, 5))
    for (name, mobility), style in zip(found.items(), ("k", "tab:cyan", "tab:purple"), strict=True):
        lost, steps, e = map(to_numpy, mobility)
        i = np.abs(lost - 0.05).argmin()
        axes[1].plot(to_numpy(grid), e[i], style, label=f"{name}, {lost[i]:.2f} nats lost")
        if name != "none":
            axes[2].plot(lost, steps, style, label=f"penalty {name}")
    axes[2].axhline(found["none"].steps[0], color="k", lw=1, label="no penalty")
    axes[1].set(title="the penalty lowers the barrier", xlabel="$x$", ylabel="energy", ylim=(0, 13))
    axes[2].set(title="mixing is bought with likelihood", xlabel="likelihood lost (nats)")
    axes[2].set(ylabel="relaxation time (Metropolis steps)", yscale="log", xlim=(0, 0.5))
    for ax in axes:
        legend_below(ax, 1)
    return fig


def section_covering(run):
    """Forward KL covers both modes, reverse KL seeks one; flat energies mix fast and pay for it in likelihood."""
    axis = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    p, axis = to_numpy(peaks(axis)), to_numpy(axis)
    mean, std, _ = fit_gaussian(p, axis, 0, 0.5)
    run.metric("forward KL: mean", mean, None, ("moment matching", -0.3), 1e-4)
    run.metric("forward KL: standard deviation", std, None, ("moment matching", math.sqrt(PEAKS_VARIANCE)), 1e-4)
    seek = {start: fit_gaussian(p, axis, 1, start) for start in (-1.5, 1.5)}
    run.metric("reverse KL: mean", seek[-1.5][0], None, ("the heavier mode", -1.5), 2e-3)
    run.metric("reverse KL: standard deviation", seek[-1.5][1], None, ("its own", 0.4), 2e-3)
    for start, weight in ((-1.5, 0.6), (1.5, 0.4)):
        name = f"reverse KL from {start:+g}: its least (nats)"
        run.metric(name, seek[start][2], None, (f"-ln {weight}", -math.log(weight)), 1e-3)
    grid, found = trade_off(torch.logspace(-4, 1.5, 45, dtype=torch.float64))
    slowest = found["none"].steps[0].item()
    run.metric("no penalty: relaxation time (steps)", slowest)
    prices = {name: price_of_speed(found[name], slowest) for name in ("at the data", "between data")}
    for name, price in prices.items():
        run.metric(f"tenfold speed, {name}: price (nats)", price)
    fits = {"forward KL": (mean, std), "reverse KL": seek[-1.5][:2]}
    run.figure(draw_covering(axis, p, fits, grid, found), "tradeoff")
    cheaper = min(prices, key=prices.get)
    run.say(
        f"ten times the speed costs {prices[cheaper]:.3f} nats with the penalty {cheaper}, else {max(prices.values()):.3f}"
    )


SECTIONS = {
    "probability": section_probability,
    "partition": section_partition,
    "landscapes": section_landscapes,
    "chain": section_chain,
    "sampling": section_sampling,
    "ais": section_ais,
    "scaling": section_scaling,
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
