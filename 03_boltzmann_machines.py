"""Module 03 - Boltzmann machines: binary units that sample, learn, hide, freeze and get stuck.

N binary units s with symmetric weights (no self-weights) and biases have the energy and the distribution

    E(s) = -½ Σ_ij W_ij s_i s_j - Σ_i b_i s_i,        p(s) = exp(-E(s)/T) / Z.                     (1)

Given all others, a unit sees only its field h_i = Σ_j W_ij s_j + b_i, and is on with probability

    P(s_i = on | rest) = σ((s_on - s_off) h_i / T) = σ(h_i/T) for 0/1,  σ(2h_i/T) for ±1 units.    (2)

Learning raises the likelihood by comparing correlations, those of the data and those of the machine:

    ∂ <log p>_data / ∂W_ij = (<s_i s_j>_data - <s_i s_j>_model) / T.                               (3)

With all weights equal and on a square grid, (1) is the Ising model, whose magnetisation is known exactly:

    |m| = (1 - sinh(2/T)⁻⁴)^(1/8) below Tc = 2/ln(1+√2) = 2.269,  and 0 above.                     (4)

Run      python 03_boltzmann_machines.py               all eight sections, about two minutes on one CPU core
         python 03_boltzmann_machines.py --section ising --lattice 64
         (--device serves `units`, `ising` and `clusters`; the machines of the other sections are too small to gain by it)
Writes   outputs/03_boltzmann_machines/*.png and metrics.json
Before   modules 01 (sampling, R-hat) and 02 (the same energy, without noise)        Exercises  ex03_1 ... ex03_4
Sources  Ackley, Hinton & Sejnowski (1985); Hinton & Sejnowski (1983, 1986); Geman & Geman (1984); Besag (1975);
         Younes (1989); Neal (1992); Kappen & Rodriguez (1998); Tanaka (1998); Schneidman et al. (2006); Onsager (1944);
         Kaufman (1949); Yang (1952); Binder (1981); Sokal (1989); Wolff (1989)
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
from typing import Annotated, NamedTuple, get_args, get_type_hints

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_repeats: Annotated[int, "units: independent experiments, each with 64 chains"] = 40
    n_draw_sweeps: Annotated[int, "units: Gibbs sweeps of an experiment"] = 2048
    n_data: Annotated[int, "learning: patterns in a training set"] = 2000
    n_teachers: Annotated[int, "learning: machines to learn from, at each coupling strength"] = 10
    n_learn_steps: Annotated[int, "learning, pairs: gradient steps"] = 1000
    n_restarts: Annotated[int, "hidden: random initialisations, trained as one batch"] = 100
    n_hidden_steps: Annotated[int, "hidden: gradient steps"] = 600
    n_cycles: Annotated[int, "hidden: learning cycles of the rule of 1985"] = 1000
    lattice: Annotated[int, "ising, clusters: side of the largest lattice, a multiple of 8"] = 32
    n_lattices: Annotated[int, "ising, clusters: independent lattices at each temperature; at Tc eight times as many"] = 12
    n_ising_sweeps: Annotated[int, "ising, clusters: sweeps, of which the first quarter is discarded"] = 3000
    n_cluster_steps: Annotated[int, "clusters: Wolff updates of each lattice, of which a tenth is discarded"] = 300
    n_instances: Annotated[int, "annealing: spin glasses"] = 20
    n_runs: Annotated[int, "annealing: runs of each method on each spin glass"] = 50
    n_budget: Annotated[int, "annealing: largest budget, in sweeps of single-spin updates"] = 256
    n_draws: Annotated[int, "diagnostics: draws of each of the 8 chains"] = 2000
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1


SMOKE = {
    "n_repeats": 4,
    "n_draw_sweeps": 128,
    "n_data": 500,
    "n_teachers": 2,
    "n_learn_steps": 20,
    "n_restarts": 6,
    "n_hidden_steps": 30,
    "n_cycles": 20,
    "lattice": 16,
    "n_lattices": 3,
    "n_ising_sweeps": 80,
    "n_cluster_steps": 30,
    "n_instances": 4,
    "n_runs": 4,
    "n_budget": 8,
    "n_draws": 100,
}


# %% 1. Stochastic units
# Why (2)? Fix all units but i. Between the two states that remain only the terms with s_i differ, E = -h_i s_i + const:
#     P(on) / P(off) = exp(-(E_on - E_off)/T) = exp(h_i (s_on - s_off)/T).
# With P(off) = 1 - P(on), solving for P(on) gives
#     P(on) = 1 / (1 + exp(-h_i (s_on - s_off)/T)) = σ((s_on - s_off) h_i / T).
# Units that are 0 or 1 have s_on - s_off = 1. Units that are -1 or +1 have s_on - s_off = 2: hence the 2 that is so
# often forgotten. Forgetting it is not noise but another temperature, since σ(h/T) = σ(2h/(2T)): such a sampler draws,
# perfectly, from the same machine at temperature 2T. (Train with it, and it hides: moments match, with weights twice
# too large.)
#
# Both kinds of units describe the same machines. With s = 2x - 1, x in {0, 1},
#     -½ sᵀWs - bᵀs = -½ xᵀ(4W)x - (2b - 2W1)ᵀx + const,
# so W₀₁ = 4W and b₀₁ = 2b - 2 Σ_j W_ij, and the field of x is h₀₁ = 4Wx + 2b - 2W1 = 2(Ws + b) = 2h, as (2) demands.
#
# How good is a sampler? Count how often each of the 2^N states came up in n draws and compare with p, by the *total
# variation*
#     TV = ½ Σ_s |count(s)/n - p(s)|.
# By the central limit theorem count(s)/n - p(s) is N(0, v(s)/n), and E|N(0, v)| = √(2v/π), so
#     E TV = ½ Σ_s √(2 v(s) / (πn)):  slope -1/2 in log-log, with v(s) = p(s)(1 - p(s)) for independent draws.
# A Gibbs chain's draws are correlated, which keeps the slope and raises v; with K the matrix of one sweep,
#     v = p(1-p) + 2p Σ_{t>=1} ((K^t)_ss - p) = 2p(F_ss - p) - p(1-p),   F = (I - K + 1pᵀ)⁻¹  (Kemeny & Snell 1960).


def enumerate_states(n, off=-1):
    """All 2^n states of n units that are `off` or 1, (2^n, n); the last unit changes fastest."""
    bits = torch.arange(2**n).unsqueeze(1) >> torch.arange(n - 1, -1, -1) & 1
    return off + (1.0 - off) * bits


def machine_energy(s, W, b):
    """Eq. (1): states (..., B, n), weights (..., n, n), biases (..., n) -> energies (..., B)."""
    return -(0.5 * (s @ W) * s).sum(-1) - (s * b.unsqueeze(-2)).sum(-1)


def boltzmann(states, W, b, temperature=1.0):
    """p(s) = exp(-E/T)/Z over all `states` (K, n): (..., K)."""
    return torch.softmax(-machine_energy(states, W, b) / temperature, -1)


def to_binary_units(W, b):
    """The 0/1 machine that has the same distribution as the ±1 machine (W, b)."""
    return 4 * W, 2 * b - 2 * W.sum(-1)


def gibbs_sweep(s, W, b, temperature=1.0, off=-1, gap=None):
    """Update every unit once, in order, by eq. (2): s (..., B, n) -> new s. All chains and machines move together.
    `temperature` is a number or one for each chain (B,). `gap` is s_on - s_off; give another only to see it fail."""
    gap = 1 - off if gap is None else gap
    units = s.mT.clone(memory_format=torch.contiguous_format)  # (..., n, B): the chains of one unit side by side
    # u < σ(gap h/T) says the same as h > logit(u) T/gap, and all units' thresholds are made at once
    threshold = torch.logit(torch.rand_like(units)) * temperature / gap - b.unsqueeze(-1)
    for i in range(units.shape[-2]):
        on = W[..., i : i + 1, :] @ units > threshold[..., i : i + 1, :]
        units[..., i : i + 1, :] = on * (1.0 - off) + off
    return units.mT


def random_machine(shape, n, strength=1.0, bias=0.3, generator=None):
    """Symmetric weights N(0, strength²/n) without self-weights, and biases N(0, bias²): (*shape, n, n), (*shape, n)."""
    W = torch.randn(*shape, n, n, generator=generator).triu(1) * strength / n**0.5
    return W + W.mT, bias * torch.randn(*shape, n, generator=generator)


def random_spins(*shape, generator=None):
    """Fair ±1 coins."""
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


def gibbs_kernel(W, b, temperature=1.0, gap=2):
    """The transition matrix of one sweep over n ±1 units, (2^n, 2^n): the product of its n single-unit updates."""
    n = len(b)
    states, index, kernel = enumerate_states(n).to(W.dtype), torch.arange(2**n), torch.eye(2**n, dtype=W.dtype)
    for i in range(n):
        p_value = torch.sigmoid(gap * states[:, i] * (states @ W[i] + b[i]) / temperature)  # of s_i in each state s
        flipped = index ^ 2 ** (n - 1 - i)
        kernel = (kernel + kernel[:, flipped]) * p_value  # a state is reached from itself and from s_i flipped
    return kernel


def fundamental_matrix(kernel, p):
    """F = (I - K + 1pᵀ)⁻¹, so that F - 1pᵀ = Σ_{t>=0} (K^t - 1pᵀ) (Kemeny & Snell 1960)."""
    return torch.linalg.inv(torch.eye(len(p), dtype=p.dtype) - kernel + p)


def theory_tv(p, n_draws, kernel=None):
    """The expected total variation to p of n draws from it, independent or from the chain `kernel`, for large n."""
    v = p * (1 - p)
    if kernel is not None:
        v = 2 * p * (fundamental_matrix(kernel, p).diag() - p) - v
    return 0.5 * (2 * v / math.pi / n_draws).sqrt().sum()


def exact_correlations(W, b, temperature=1.0):
    """<s_i s_j> of every pair i < j of ±1 units, by enumeration: (n(n-1)/2,)."""
    states = enumerate_states(len(b)).to(W.dtype)
    i, j = torch.triu_indices(len(b), len(b), 1)
    return boltzmann(states, W, b, temperature) @ (states[:, i] * states[:, j])


def require(config, **least):
    """Stop, with one line, if a setting is less than its section needs."""
    for name, minimum in least.items():
        if getattr(config, name) < minimum:
            sys.exit(f"--{name.replace('_', '-')} must be at least {minimum}, not {getattr(config, name)}")


# Differs from 02_hopfield_networks.py: mean_and_sem - of several quantities at once, over the first axis
def mean_and_sem(x):
    """Mean over the first axis and its standard error, which is nan of one row: nobody knows its spread."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return x.mean(0), x.std(0) / len(x) ** 0.5 if len(x) > 1 else torch.full_like(x[0], math.nan)


# Copied from 01_ebm_foundations.py: tolerance
def tolerance(sem, n, n_compared=1):
    """How far the mean of n independent repeats may lie from its exact value: Student's t with n - 1 degrees of freedom at
    one false alarm in 10,000, shared by the `n_compared` of which the worst is judged, times sem. None for n < 2."""
    return None if n < 2 else scipy.stats.t.isf(1e-4 / (2 * n_compared), n - 1) * sem


def record(run, name, values, label, exact):
    """Record the mean of `values`, independent repeats (n,), beside an exact value that it must meet."""
    mean, sem = mean_and_sem(values)
    run.metric(name, mean, sem, (label, exact), tolerance(sem, len(values)))


def log_slope(x, y):
    """Least-squares slopes of log y (R, K) against log x (K,): (R,)."""
    log_x = x.log() - x.log().mean()
    return y.log() @ log_x / (log_x @ log_x)


def slope_through_0(x, y):
    """Least-squares slope of the line through 0 of y (K,) on x (K,)."""
    return y @ x / (x @ x)


def correlation(x, y):
    """Pearson's r of two arrays (K,)."""
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


def sampled_tv(W, b, off, gap, p, n_repeats, n_sweeps, n_chains=64):
    """TV to p (2^n,) after 64, 128, ... sweeps of `n_chains` chains, in each of `n_repeats` experiments:
    numbers of draws (K,), distances (n_repeats, K)."""
    n = len(b)
    s = torch.where(torch.rand(n_repeats * n_chains, n, device=W.device) < 0.5, 1.0, float(off))
    powers = 2 ** torch.arange(n - 1, -1, -1, device=W.device)
    first = torch.arange(n_repeats, device=W.device).repeat_interleave(n_chains) * 2**n
    counts, n_draws, distances = torch.zeros(n_repeats * 2**n, device=W.device), [], []
    for sweep in Progress(range(-50, n_sweeps), "Gibbs"):  # the 50 sweeps before 0 forget the start
        s = gibbs_sweep(s, W, b, off=off, gap=gap)
        if sweep >= 0:
            counts += torch.bincount(first + ((s > 0).long() * powers).sum(1), minlength=len(counts))
            if sweep + 1 >= 64 and (sweep + 1).bit_count() == 1:
                n_draws.append((sweep + 1) * n_chains)
                share = counts.view(n_repeats, -1) / n_draws[-1]
                distances.append(0.5 * (share - p).abs().sum(1))
    return torch.tensor(n_draws, dtype=torch.float64), torch.stack(distances, 1).cpu().double()


RULES = {  # name -> value of a unit that is off, factor of its field, marker, colour; the third mixes the first two
    "±1 units, σ(2h/T)": (-1, 2, "o", "tab:orange"),
    "0/1 units, σ(h/T)": (0, 1, "s", "tab:brown"),
    "mistake: ±1 units, σ(h/T)": (-1, 1, "^", "tab:red"),
}
RIGHT, BINARY, MISTAKE = RULES


class Units(NamedTuple):
    """Each rule's distance to the exact p after n draws, and what theory says of it."""

    moved: list[float]  # largest change by a sweep: of p at T by the right rule, of p at 2T by the mistake
    floor: float  # exact distance of p at T from p at 2T
    n_draws: torch.Tensor  # (K,)
    distances: dict[str, torch.Tensor]  # rule -> (n_repeats, K)
    expected: torch.Tensor  # of a right sampler, (K,)
    noise: float  # expected distance of the mistaken sampler's draws from p at 2T, at the last n


def measure_units(n_repeats, n_sweeps, generator, device="cpu"):
    """Sample one machine of 5 units by each rule, and hold the draws against enumeration."""
    W, b = random_machine((), 5, strength=1.0, bias=0.3, generator=generator)
    states, exact_W, exact_b = enumerate_states(5).double(), W.double(), b.double()
    p, p_double = (boltzmann(states, exact_W, exact_b, temperature) for temperature in (1.0, 2.0))
    kernel, wrong_kernel = (gibbs_kernel(exact_W, exact_b, gap=gap) for gap in (2, 1))
    distances = {}
    for name, (off, gap, *_) in RULES.items():
        arrays = (array.to(device) for array in ((W, b) if off else to_binary_units(W, b)))
        n_draws, distances[name] = sampled_tv(*arrays, off, gap, p.float().to(device), n_repeats, n_sweeps)
    moved = [(q @ K - q).abs().max().item() for q, K in ((p, kernel), (p_double, wrong_kernel))]
    floor, noise = 0.5 * (p - p_double).abs().sum().item(), theory_tv(p_double, n_draws[-1], wrong_kernel).item()
    return Units(moved, floor, n_draws, distances, torch.stack([theory_tv(p, n, kernel) for n in n_draws]), noise)


def compare_correlations(generator, n=10):
    """Pair correlations of a machine at T and at 2T, which is what the mistake samples; their r, and the slope through 0."""
    W, b = (array.double() for array in random_machine((), n, strength=0.5, bias=0.0, generator=generator))
    x, y = (exact_correlations(W, b, temperature) for temperature in (1.0, 2.0))
    return x, y, correlation(x, y), slope_through_0(x, y).item()


def draw_distances(found, x, y, r, slope):
    """Distances against the number of draws; correlations at 2T against those at T."""
    fig, (ax, ax2) = plt.subplots(1, 2, figsize=(12, 4.8), gridspec_kw={"width_ratios": [1.3, 1]}, layout="constrained")
    for name, tv in found.distances.items():
        points = map(to_numpy, (found.n_draws, *mean_and_sem(tv)))
        ax.errorbar(*points, fmt=RULES[name][2], ms=6, color=RULES[name][3], label=name)
    ax.plot(to_numpy(found.n_draws), to_numpy(found.expected), "k--", label="theory for this chain")
    ax.axhline(found.floor, color="k", ls=":", label="exact distance of T from 2T")
    ax.set(xscale="log", yscale="log", xlabel="number of draws n", ylabel="total variation to the exact p")
    ax.set_title(f"Right: slope {log_slope(found.n_draws, found.distances[RIGHT]).mean():.2f}; the mistake stays")
    ax2.plot(*map(to_numpy, (x, y)), RULES[MISTAKE][2], color=RULES[MISTAKE][3])
    ax2.axline((0, 0), slope=1, color="k", ls="--")
    ax2.set(xlabel="exact $\\langle s_i s_j\\rangle$ at T", ylabel="at 2T, as the mistake samples it", aspect="equal")
    ax2.set_title(f"The mistake: r = {r:.3f}, but slope {slope:.2f} (dashed: 1)")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, columnspacing=1.2, frameon=False)
    return fig


def section_units(run):
    """A unit is on with probability sigma((s_on - s_off) h/T); forget the 2 of +-1 units and you sample at 2T."""
    config, generator = run.config, torch.Generator().manual_seed(run.seed)
    require(config, n_draw_sweeps=128)
    found = measure_units(config.n_repeats, config.n_draw_sweeps, generator, run.device)
    run.metric("a sweep changes p at T by, right rule", found.moved[0], None, ("exact", 0), 1e-12)
    run.metric("a sweep changes p at 2T by, the mistake", found.moved[1], None, ("exact", 0), 1e-12)
    for name, words in ((RIGHT, "+-1 units"), (BINARY, "0/1 units")):
        tv = found.distances[name]
        record(run, f"{words}: slope of distance in log n", log_slope(found.n_draws, tv), "theory", -0.5)
        record(run, f"{words}: distance to p at the last n", tv[:, -1], "theory", found.expected[-1])
    mean, sem = mean_and_sem(found.distances[MISTAKE][:, -1])
    beside = ("exact distance of T from 2T", found.floor)  # at most its draws' own distance off: the triangle inequality
    run.metric("the mistake: distance to p at the last n", mean, sem, beside, found.noise)
    x, y, r, slope = compare_correlations(generator)
    run.metric("the mistake: r of its correlations", r, None, ("the right rule", 1))
    run.metric("the mistake: slope of its correlations", slope, None, ("the right rule", 1))
    run.figure(draw_distances(found, x, y, r, slope), "total_variation")
    run.say(f"r = {r:.3f} praises a sampler whose correlations are {1 - slope:.0%} too weak; its TV to p gives it away")


# %% 2. Learning
# The log likelihood of one pattern at T = 1 is log p(s) = -E(s) - log Z. Differentiate both terms in the weight of the
# pair (i, j), which occurs twice in ½ΣΣ, as W_ij and as W_ji, and so once in all:
#     ∂(-E)/∂W_ij = s_i s_j,     ∂ log Z/∂W_ij = (1/Z) Σ_s exp(-E(s)) s_i s_j = <s_i s_j>_model.
# Average over data: eq. (3); likewise <s_i>_data - <s_i>_model for b_i. At the maximum the machine has the data's
# moments. (An autograd that treats W_ij and W_ji as two parameters finds half of it for each: the factor 2 that
# readers lose here.)
#
# The Hessian of the log likelihood is minus the covariance I of all s_i s_j and s_i: concave, hence at most one maximum.
# And if the truth is such a machine, its d = N(N+1)/2 parameters are learnt from n patterns up to an error δ ~ N(0, I⁻¹/n),
# for large n. To second order KL(truth || fit) = ½ δᵀIδ, and n δᵀIδ is chi-square with d degrees of freedom (as in Wilks
# 1938, for the likelihood of the training patterns themselves), so that on average
#     KL(truth || fit) = d/(2n):    the price of finite data.
#
# What if 2^N is too many? Four ways out, each a different answer to "where do I get <s_i s_j>_model from?":
# - Gibbs: average over chains that go on from step to step while the weights change (Younes 1989; Neal 1992). It works
#   for as long as they mix.
# - Pseudo-likelihood (Besag 1975): replace log p(s) by Σ_i log p(s_i | rest) = Σ_i log σ(2 s_i h_i). No Z at all. Since
#       ∂ log σ(2 s h)/∂h = 2s σ(-2sh) = s (1 - tanh(sh)) = s - tanh h,
#   the pair's gradient is <(s_i - tanh h_i) s_j + (s_j - tanh h_j) s_i>_data. Its maximum is the truth as n grows.
# - Naive mean field (Kappen & Rodriguez 1998): say m_i = tanh(Σ_j W_ij m_j + b_i). Solve for b and differentiate in m;
#   ∂b/∂m is the inverse of the response ∂m/∂b, which at T = 1 is the covariance C of the data, so
#       (C⁻¹)_ij = ∂b_i/∂m_j = δ_ij/(1 - m_i²) - W_ij:    all weights by one matrix inversion.
#   With W_ii = 0 its diagonal would be wrong: C⁻¹'s is not 1/(1 - m_i²). So Kappen & Rodriguez let the equation have the
#   self-weight W_ii = 1/(1 - m_i²) - (C⁻¹)_ii. In the machine it would only add a constant, as s_i² = 1. In mean field's
#   equation it takes back what a unit's own average does to itself by way of its neighbours, and it corrects the bias:
#       b_i = artanh m_i - Σ_j W_ij m_j,    the sum with j = i. One term more; the figure shows what it is worth.
# - TAP (Tanaka 1998) derives that reaction instead: m_i = tanh(Σ_j W_ij m_j + b_i - m_i Σ_j W_ij² (1 - m_j²)), and then
#       (C⁻¹)_ij = -W_ij - 2 W_ij² m_i m_j  for i ≠ j:    a quadratic, solved on the branch that vanishes with C⁻¹.


def machine_log_weights(states, W, b):
    """-E of all `states` (K, n) in many machines at once, (..., K): one matmul, as the products s_i s_j are shared."""
    products = (states[:, :, None] * states[:, None, :]).flatten(1)
    return 0.5 * W.flatten(-2) @ products.T + b @ states.T


def moments(states, weights):
    """<s sᵀ> (..., n, n) and <s> (..., n) of `states` (K, n) under `weights` (..., K)."""
    if weights.dim() == 1:
        return states.T @ (states * weights.unsqueeze(1)), weights @ states
    products = (states[:, :, None] * states[:, None, :]).flatten(1)  # many machines share this table: one matmul
    return (weights @ products).unflatten(-1, states.shape[1:] * 2), weights @ states


def off_diagonal(matrix):
    """`matrix` (..., n, n) with zeros on the diagonal: no unit has a weight to itself."""
    return matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))


def exact_gradient(W, b, states, p_data):
    """Eq. (3) by enumeration, at T = 1: gradients of the mean log likelihood in each pair's weight and in each bias."""
    p_model = boltzmann(states, W, b) if W.dim() == 2 else machine_log_weights(states, W, b).softmax(-1)
    correlation, mean = moments(states, p_data - p_model)
    return off_diagonal(correlation), mean


def pseudo_likelihood_gradient(W, b, patterns, weights):
    """Gradient of <Σ_i log p(s_i | rest)>_data (Besag 1975), in each pair's weight and in each bias, for ±1 `patterns`
    (K, n) with `weights` (..., K); equal patterns may stand there once."""
    residual = weights.unsqueeze(-1) * (patterns - torch.tanh(patterns @ W + b.unsqueeze(-2)))
    gradient = residual.mT @ patterns
    return off_diagonal(gradient + gradient.mT), residual.sum(-2)


def persistent_gradient(chains, correlation_data, mean_data):
    """Eq. (3) with the model's moments from Gibbs chains (M, B, n) that take one sweep at each call, and are kept."""

    def gradient(W, b):
        nonlocal chains
        chains = gibbs_sweep(chains, W, b)
        return off_diagonal(correlation_data - chains.mT @ chains / chains.shape[-2]), mean_data - chains.mean(-2)

    return gradient


def ascend(gradient, W, b, n_steps, rate, label="learning"):
    """Gradient ascent with momentum 0.9 and a rate that falls linearly to 0, which averages a noisy gradient."""
    step_W, step_b = torch.zeros_like(W), torch.zeros_like(b)
    for step in Progress(range(n_steps), label):
        grad_W, grad_b = gradient(W, b)
        step_W = 0.9 * step_W + rate * (1 - step / n_steps) * grad_W
        step_b = 0.9 * step_b + rate * (1 - step / n_steps) * grad_b
        W, b = W + step_W, b + step_b
    must_be_finite(label, W, b)
    return W, b


def naive_mean_field(correlation, mean, diagonal=True):
    """Kappen & Rodriguez (1998): weights and biases from moments (..., n, n), (..., n), ±1 units, T = 1. Without its
    `diagonal` it is what is often called by its name."""
    inverse = torch.linalg.pinv(correlation - mean.unsqueeze(-1) * mean.unsqueeze(-2), hermitian=True)
    W = torch.diag_embed(1 / (1 - mean**2)) - inverse if diagonal else off_diagonal(-inverse)
    return off_diagonal(W), torch.atanh(mean) - (W @ mean.unsqueeze(-1)).squeeze(-1)


def tap_mean_field(correlation, mean):
    """Tanaka (1998): as above with Onsager's reaction term. Where the quadratic has no root, its vertex is taken."""
    product = mean.unsqueeze(-1) * mean.unsqueeze(-2)
    inverse = torch.linalg.pinv(correlation - product, hermitian=True)
    root = (1 - 8 * product * inverse).clamp(min=0).sqrt()
    W = off_diagonal(-2 * inverse / (1 + root))  # = (root - 1)/(4 m_i m_j), and finite at m = 0
    variance = 1 - mean**2
    reaction = mean * (W**2 @ variance.unsqueeze(-1)).squeeze(-1)
    return W, torch.atanh(mean) - (W @ mean.unsqueeze(-1)).squeeze(-1) + reaction


def theory_wilks_kl(n_units, n_data):
    """The mean KL(truth || fit), in nats, of maximum likelihood on n_data patterns, for large n_data (as derived above)."""
    return n_units * (n_units + 1) / 2 / (2 * n_data)


def exact_autograd_gradient(W, b, states, p_data):
    """Eq. (3)'s left side by autograd through log Z, with one parameter a pair: upper triangle (n, n), and (n,)."""
    W, b = W.detach().requires_grad_(), b.detach().requires_grad_()
    energies = machine_energy(states, W.triu(1) + W.triu(1).T, b)
    return torch.autograd.grad(-(p_data @ energies) - torch.logsumexp(-energies, 0), (W, b))


def measure_autograd_error(n, generator):
    """Largest difference of `exact_gradient` from autograd, on a random machine and random data, float64."""
    machine, states = [array.double() for array in random_machine((), n, generator=generator)], enumerate_states(n).double()
    p_data = torch.softmax(torch.randn(len(states), generator=generator).double(), 0)
    (grad_W, grad_b), (auto_W, auto_b) = (f(*machine, states, p_data) for f in (exact_gradient, exact_autograd_gradient))
    return max((auto_W - grad_W.triu(1)).abs().max(), (auto_b - grad_b).abs().max()).item()


def as_good_as_the_best(values):
    """The name with the largest mean of {name: (instances,)}, then those whose paired difference from it may be chance, by
    Student's t at one false alarm in 100, shared by all comparisons."""
    best = max(values, key=lambda name: values[name].mean())
    names, n = [best], len(values[best])
    width = scipy.stats.t.isf(0.01 / 2 / (len(values) - 1), n - 1) if n > 1 else math.inf
    for name in values:
        mean, sem = mean_and_sem(values[best] - values[name])
        if name != best and (n == 1 or mean <= width * sem):
            names.append(name)
    return names


FITS = {  # marker, colour and line
    "independent units": ("v", "tab:gray", "-"),
    "mean field, no diagonal": ("s", "yellowgreen", ":"),
    "mean field": ("s", "tab:green", "-"),
    "TAP": ("^", "darkkhaki", "-"),
    "Gibbs": ("D", "tab:orange", "-"),
    "pseudo-likelihood": ("P", "tab:purple", "-"),
    "exact learning": ("o", "tab:blue", "-"),
}


def fit_by_every_method(states, p_data, n_steps, generator):
    """Fit one machine to each row of `p_data` (M, 2^n), by each method: name -> (W, b) in float64."""
    correlation, mean = moments(states.double(), p_data)
    limit = 1 - 1e-3  # a unit that never moved would have no finite bias
    mean = mean.clamp(-limit, limit)
    zeros, p = (torch.zeros(correlation.shape), torch.zeros(mean.shape)), p_data.float()
    chains = random_spins(len(p), 200, states.shape[1], generator=generator)
    gibbs = persistent_gradient(chains, correlation.float(), mean.float())
    fits = [
        (torch.zeros_like(correlation), torch.atanh(mean)),
        naive_mean_field(correlation, mean, diagonal=False),
        naive_mean_field(correlation, mean),
        tap_mean_field(correlation, mean),
        ascend(gibbs, *zeros, n_steps, 0.05, "learning by Gibbs"),
        ascend(lambda W, b: pseudo_likelihood_gradient(W, b, states, p), *zeros, n_steps, 0.05, "pseudo-likelihood"),
        ascend(lambda W, b: exact_gradient(W, b, states, p), *zeros, n_steps, 0.1, "exact learning"),
    ]
    return {name: (W.double(), b.double()) for name, (W, b) in zip(FITS, fits, strict=True)}


INVERSIONS = ("mean field, no diagonal", "mean field", "TAP")
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the teachers; at 1 the infinite machine becomes a spin glass


class Learnt(NamedTuple):
    """KL(teacher || fit) of each method, name -> (strengths, teachers), in nats; minus the teachers' entropies, the
    ceiling of any test likelihood (strengths, teachers); and the largest gradient left by exact learning, up to 1."""

    kl: dict[str, torch.Tensor]
    ceiling: torch.Tensor
    left: float


def compare_learning(n_teachers, n_data, n_steps, generator, n=10):
    """Teachers of each strength draw `n_data` patterns each, exactly; every method fits a machine to them, and the
    teacher, an infinite test set, judges it."""
    W, b = random_machine((len(STRENGTHS), n_teachers), n, generator=generator)
    W, b = (W * torch.tensor(STRENGTHS).view(-1, 1, 1, 1)).flatten(0, 1), b.flatten(0, 1)
    states = enumerate_states(n)
    p_true = torch.softmax(machine_log_weights(states.double(), W.double(), b.double()), -1)
    drawn = torch.multinomial(p_true, n_data, replacement=True, generator=generator)
    p_data = torch.zeros_like(p_true).scatter_add_(1, drawn, torch.ones(drawn.shape).double()) / n_data
    ceiling, kl = torch.special.xlogy(p_true, p_true).sum(1), {}
    for name, (W, b) in fit_by_every_method(states, p_data, n_steps, generator).items():
        log_p = torch.log_softmax(machine_log_weights(states.double(), W, b), -1)
        kl[name] = (ceiling - (p_true * log_p).sum(1)).view(-1, n_teachers)
    mild = slice(4 * n_teachers)  # strengths up to 1
    left = max(each.abs().max().item() for each in exact_gradient(W[mild], b[mild], states.double(), p_data[mild]))
    return Learnt(kl, ceiling.view(-1, n_teachers), left)


SIZES = (6, 8, 10, 12, 14, 16, 18)  # units of the machines whose gradients are timed


def time_gradients(n_data, generator, n_calls=3):
    """Milliseconds of one gradient at each of SIZES: exact, and pseudo-likelihood on `n_data` patterns, two lists."""
    times = [], []
    for n in SIZES:
        W, b = random_machine((), n, generator=generator)
        patterns = enumerate_states(n), random_spins(n_data, n, generator=generator)
        for gradient, x, kept in zip((exact_gradient, pseudo_likelihood_gradient), patterns, times, strict=True):
            p, seconds = torch.full((len(x),), 1 / len(x)), []
            for _ in range(n_calls):
                start = time.perf_counter()
                gradient(W, b, x, p)
                seconds.append(time.perf_counter() - start)
            kept.append(1e3 * min(seconds))
    return times


def draw_learnt(found, times, n_data, price):
    """KL to the teacher against its strength; the time of a gradient against the number of units."""
    fig, (ax, ax2) = plt.subplots(1, 2, figsize=(12, 5), gridspec_kw={"width_ratios": [1.5, 1]}, layout="constrained")
    for name, (marker, colour, line) in FITS.items():
        points = map(to_numpy, mean_and_sem(found.kl[name].T))
        ax.errorbar(STRENGTHS, *points, fmt=marker + line, ms=6, color=colour, label=name)
    ax.axhline(price, color="k", ls="--", label="theory of exact fits: d/(2n)")
    ax.set(yscale="log", xlabel="coupling strength of the teacher", ylabel="KL(teacher || fit), nats")
    without, mean_field = (found.kl[name][3].mean() for name in ("mean field, no diagonal", "mean field"))
    ax.set_title(f"At strength 1, mean field is {without:.2g} nats off without its diagonal, {mean_field:.2g} with it")
    for name, ms in zip(("exact learning", "pseudo-likelihood"), times, strict=True):
        marker, colour, line = FITS[name]
        ax2.plot(SIZES, ms, marker + line, color=colour)
    ax2.annotate(
        "$2^N$ states", (SIZES[-2], times[0][-2]), (-10, 4), textcoords="offset points", color="tab:blue", ha="right"
    )
    ax2.text(0.97, 0.05, f"{n_data} patterns", color="tab:purple", ha="right", transform=ax2.transAxes)
    ax2.set(yscale="log", xlabel="number of units N", ylabel="one gradient, ms")
    ax2.set_ylim(min(times[0] + times[1]) / 4, 3 * max(times[0] + times[1]))
    ax2.set_title(f"N = {SIZES[-1]}: one exact gradient costs {times[0][-1] / times[1][-1]:.0f} of the other")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, columnspacing=1.2, frameon=False)
    return fig


def section_learning(run):
    """Learning matches the moments of data and model; pseudo-likelihood needs no model average and loses little."""
    config, generator = run.config, torch.Generator().manual_seed(run.seed)
    require(config, n_data=100)
    run.metric("gradient minus autograd's", measure_autograd_error(8, generator), None, ("exact", 0), 1e-12)
    found = compare_learning(config.n_teachers, config.n_data, config.n_learn_steps, generator)
    price, exact, ceiling = theory_wilks_kl(10, config.n_data), found.kl["exact learning"], found.ceiling[3].mean()
    for name, kl in found.kl.items():
        mean, sem = mean_and_sem(kl[3])  # the spread of the KL, not of the ceilings
        run.metric(f"{name}: test nats at 1", ceiling - mean, sem, ("-teacher's entropy", ceiling))
        run.metric(f"{name}: KL at 1.5 (nats)", *mean_and_sem(kl[5]), ("exact learning", exact[5].mean()))
    if found.left < 0.03 / config.n_data**0.5 and config.n_data >= 1000:  # far below the data's own noise; a large n
        record(run, "exact learning: KL over d/2n, up to 1", (exact[:4] / price).flatten(), "theory for large n", 1)
    else:
        run.say(
            f"not judged by d/2n: fewer than 1,000 patterns, or {found.left:.1g} of the gradient left: more --n-learn-steps"
        )
    times = time_gradients(config.n_data, generator)
    for name, ms in zip(("exact gradient", "pseudo-likelihood"), times, strict=True):
        run.metric(f"{name}, {SIZES[-1]} units (ms)", ms[-1])
    run.figure(draw_learnt(found, times, config.n_data, price), "methods")
    run.say(f"KL at 1: pseudo-likelihood {found.kl['pseudo-likelihood'][3].mean():.4f} nats, exact {exact[3].mean():.4f}")
    first, *ties = as_good_as_the_best({name: -found.kl[name][5].log() for name in INVERSIONS})
    run.say(f"inversions at 1.5, by log KL: {first} first; not to be told from it: {', '.join(ties) or 'none'}")


# %% 3. Pairs of pixels
# Real data are no machine's. What does a fully visible machine make of handwritten digits? Binary 8x8 images have 2^64
# states, so Z cannot be summed; pseudo-likelihood does without. Its weights are kept small by a penalty λ/2 Σ W_ij² over
# pairs, with λ chosen on validation images. (The pseudo-likelihood of a machine is no likelihood: only for independent
# units are they one number. Module 04 estimates Z.)
#
# Schneidman et al. (2006) asked of neurons in a retina whether pairs explain what larger groups do, and found that they
# explain about 90 % of it. So let the machine be sampled, and compare with images that nobody has learnt from:
#     covariances   <(s_i - m_i)(s_j - m_j)>                 which likelihood would match, on training images;
#     triplets      <(s_i - m_i)(s_j - m_j)(s_k - m_k)>      which it was never shown.
# For independent pixels both are 0. As in part 1, r is blind to a common factor: the slope stands beside it. Test images are
# few, so what training images reach is as good as it gets. And pseudo-likelihood, penalised, does not quite match the
# covariances. So a second machine goes on from the first along eq. (3), with Gibbs chains that start at training images:
# what its triplets lack when its covariances are right, pairs do not hold.


def digit_spins():
    """8x8 digits as ±1 units (N, 64): for training, for choosing, for the score; on where more than half of the maximum."""
    x, y = load_digits(return_X_y=True)
    x_rest, x_test, y_rest, _ = train_test_split(x > 8, y, test_size=0.2, stratify=y, random_state=0)
    x_train, x_valid = train_test_split(x_rest, test_size=0.15, stratify=y_rest, random_state=0)
    return [2 * torch.tensor(part, dtype=torch.float32) - 1 for part in (x_train, x_valid, x_test)]


def smoothed_mean(x):
    """Mean (n,) of ±1 patterns x (N, n), half a count added to either side: no bias is infinite."""
    return x.sum(0) / (len(x) + 1)


def pseudo_log_likelihood(x, W, b):
    """Σ_i log p(s_i | rest) of each pattern x (N, n), in nats: (N,)."""
    return torch.nn.functional.logsigmoid(2 * x * (x @ W + b)).sum(1)


def fit_pairs(x, penalty, n_steps):
    """Maximise the pseudo-likelihood of x (N, n) minus penalty/2 Σ W_ij² over pairs, from independent units: W, b."""
    weights = torch.full((len(x),), 1 / len(x))

    def gradient(W, b):
        grad_W, grad_b = pseudo_likelihood_gradient(W, b, x, weights)
        return grad_W - penalty * W, grad_b

    n = x.shape[1]
    return ascend(gradient, torch.zeros(n, n), torch.atanh(smoothed_mean(x)), n_steps, 0.03, "pairs of pixels")


def match_moments(W, b, x, n_steps, n_chains=500):
    """From W, b on, match means and covariances of x (N, n) by eq. (3), with Gibbs chains that start at patterns of x."""
    chains = x[torch.randint(len(x), (n_chains,))]
    gradient = persistent_gradient(chains, x.T @ x / len(x), smoothed_mean(x))
    return ascend(gradient, W, b, n_steps, 0.003, "pairs by Gibbs")  # a small rate: 500 chains are a noisy gradient


def connected(x):
    """Over patterns x (N, n): <(s_i - m_i)(s_j - m_j)> of all i < j, and the same of three of all i < j < k."""
    x, units = x - x.mean(0), torch.arange(x.shape[1])
    third = ((x[:, :, None] * x[:, None, :]).flatten(1).T @ x / len(x)).unflatten(0, (len(units),) * 2)
    return (x.T @ x / len(x))[tuple(torch.combinations(units, 2).T)], third[tuple(torch.combinations(units, 3).T)]


PENALTIES = (0.3, 0.1, 0.03, 0.01)


class Pixels(NamedTuple):
    """The machine of 64 pixels that validation images chose, its samples, and how it does on test images."""

    penalty: float
    test: torch.Tensor  # pseudo-log-likelihood of each test image
    independent: torch.Tensor  # and under independent pixels
    samples: dict[str, torch.Tensor]  # by how the machine was fitted
    coins: torch.Tensor  # samples of independent pixels


def model_digits(x_train, x_valid, x_test, n_steps, n_samples=2000, n_sweeps=200):
    """Fit pairs at each penalty, choose on x_valid, score on x_test, match moments; sample by Gibbs from fair coins."""
    fits = {penalty: fit_pairs(x_train, penalty, n_steps) for penalty in PENALTIES}
    penalty = max(fits, key=lambda penalty: pseudo_log_likelihood(x_valid, *fits[penalty]).mean())
    (W, b), alone = fits[penalty], torch.atanh(smoothed_mean(x_train))
    coins = gibbs_sweep(random_spins(n_samples, x_train.shape[1]), 0 * W, alone)  # without weights one sweep is enough
    samples = {}
    for name, machine in (("pseudo-likelihood", (W, b)), ("Gibbs", match_moments(W, b, x_train, n_steps))):
        samples[name] = random_spins(n_samples, x_train.shape[1])
        for _ in range(n_sweeps):
            samples[name] = gibbs_sweep(samples[name], *machine)
    test, independent = pseudo_log_likelihood(x_test, W, b), pseudo_log_likelihood(x_test, 0 * W, alone)
    return Pixels(penalty, test, independent, samples, coins)


def draw_pairs(found, x_test, test, fits):
    """Test images, samples of pairs and of independent pixels; covariances and triplets against those of test images."""
    fig, axes = plt.subplots(1, 5, figsize=(12, 3.3), layout="constrained")
    pictures = (
        ("test images", x_test),
        ("samples: pairs, Gibbs", found.samples["Gibbs"]),
        ("independent pixels", found.coins),
    )
    for ax, (title, x) in zip(axes, pictures, strict=False):
        tiles = torch.nn.functional.pad(x[:36].view(6, 6, 8, 8), (1, 1, 1, 1), value=0)
        ax.imshow(to_numpy(tiles.transpose(1, 2).reshape(60, 60)), cmap="gray", vmin=-1, vmax=1)
        ax.set(title=title, xticks=[], yticks=[])
    for k, (ax, words) in enumerate(zip(axes[3:], ("covariances", "triplets"), strict=True)):
        ends = 1.05 * torch.cat([test[k], *(values[k] for values in fits.values())]).abs().max().item() * np.array([-1, 1])
        for name, values in fits.items():
            ax.plot(*map(to_numpy, (test[k], values[k])), ".", ms=2, alpha=0.3, color=FITS[name][1])
            ax.plot([], [], "o", color=FITS[name][1], label=f"fitted by {name}")
        ax.plot(ends, ends, "k--", lw=1)
        ax.set(xlabel="of test images", ylabel="of samples: pairs", aspect="equal", xlim=ends, ylim=ends)
        slopes = " and ".join(f"{slope_through_0(test[k], values[k]):.2f}" for values in fits.values())
        ax.set_title(f"{words}: slopes {slopes}", fontsize=11)
    fig.legend(*axes[4].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    return fig


def section_pairs(run):
    """A machine of pairs, fitted to real digits without Z: what it gets right, and what it was never shown."""
    x_train, x_valid, x_test = digit_spins()
    found = model_digits(x_train, x_valid, x_test, run.config.n_learn_steps)
    beside = ("independent pixels", found.independent.mean())
    run.metric("pairs: test pseudo-log-likelihood (nats)", *mean_and_sem(found.test), beside)
    run.metric("penalty chosen on validation images", found.penalty)
    test, train = connected(x_test), connected(x_train)
    fits, reached = {name: connected(x) for name, x in found.samples.items()}, {}
    for k, words in enumerate(("covariances", "triplets")):
        for name, values in fits.items():
            for measure, of in (("test r", correlation), ("test slope", slope_through_0)):
                value, most = (float(of(test[k], each[k])) for each in (values, train))
                run.metric(f"{words}, {name}: {measure}", value, None, ("training images", most))
                reached[words, name] = value, most
    run.figure(draw_pairs(found, x_test, test, fits), "samples")
    for words in ("covariances", "triplets"):
        (value, most), (matched, _) = (reached[words, name] for name in ("pseudo-likelihood", "Gibbs"))
        run.say(f"{words}: slope {value:.2f} by pseudo-likelihood, {matched:.2f} by Gibbs, {most:.2f} of training images")


# %% 4. Hidden units earn their keep
# A fully visible machine knows pairs, and nothing else. Two tasks show where that ends, and what hidden units add.
#
# Parity: the patterns are the ±1 vectors of 4 units whose product is +1, all equally likely. Every single mean and
# every pair's correlation is 0, as if the units were fair coins. Since maximum likelihood matches just these moments,
# and its maximum is unique, and W = 0, b = 0 matches them: the best fully visible machine *is* the fair coins, -4 ln 2
# nats; the data's entropy allows -3 ln 2. Summing one hidden unit out of (1) leaves log 2cosh(w·v + c), which contains
# all products of visible units.
#
# The 4-2-4 encoder (Ackley, Hinton & Sejnowski 1985): of each of two groups V1 and V2 of four 0/1 units one is on, the
# k-th of both: 4 patterns, -ln 4 nats. V1 and V2 share no weight, so only the hidden units connect them:
#     q(k, k) = Σ_h q(h) q₁(k|h) q₂(k|h).
# For any r(h|k), by Jensen's inequality,
#     <log q> >= <Σ_h r(h|k) [log q(h) + log q₁(k|h) + log q₂(k|h) - log r(h|k)]>,  with equality at the posterior.
# The best q for a given r is r's own, q(h) = r(h) and q₁ = q₂ = r(k|h), which makes the right side
#     -H(h) - 2 H(k|h) + H(h|k) = -2 ln 4 + I(h; k),    as H(k|h) = ln 4 - I  and  H(h) - H(h|k) = I.
# So the best is -2 ln 4 + max I: -2 ln 4 without hidden units, and since m of them hold at most m ln 2 nats about k,
#     best <log p> = -2 ln 4 + min(m ln 2, ln 4):    two hidden units are just enough, if they become a binary code.
# (With weights between V1 and V2 no hidden unit would be needed: it is the wiring that asks for a code.)
#
# The gradient is (3) again, with the hidden units filled in by the machine wherever data do not say:
#     log p(v) = log Σ_h exp(-E(v, h)) - log Z,
#     ∂/∂W_ij = Σ_v p_data(v) Σ_h p(h|v) s_i s_j - Σ_vh p(v, h) s_i s_j = <s_i s_j>_clamped - <s_i s_j>_free.
# It is no longer concave: restarts differ, so we train many as one batch and count those that succeed. Most of those
# that fail at the 4-2-4 encoder give two patterns one code, I = ln 4 - ½ ln 2, and no small uphill step leads out of it.
#
# That is a property of smooth ascent, not of the machine. The rule of 1985 was another: all weights change by the same
# fixed amount, up or down by the sign of a difference of two noisy counts, and the patterns are clamped with noise (a unit
# that is on is switched off with probability 0.15, one that is off is switched on with 0.05), which keeps the weights
# small. It walks about at random until all four codes are in use: in all of 250 tests, after 110 learning cycles in the
# median and 1,810 at most. Below it is run again, with and without the noise on the patterns. (Its samples are drawn from
# the enumerated distribution, those of 1985 came from short annealings: if ours find the code less often, that may be why.)
# To have met a code once means little, for a walk without any data sometimes does, and loses it again: what is compared
# with smooth ascent is who has a code for each pattern at the end.


def visible_log_likelihood(W, b, states, p_data, n_hidden):
    """<log p(v)>_data by enumeration, (M,): `states` of visible, then hidden units; p_data (2^n_visible,)."""
    log_weights = machine_log_weights(states, W, b)
    log_visible = log_weights.unflatten(-1, (-1, 2**n_hidden)).logsumexp(-1)
    return (log_visible - log_weights.logsumexp(-1, keepdim=True)) @ p_data


def two_phases_of_states(W, b, states, p_data, n_hidden):
    """The distributions over `states` whose moments are compared: clamped p_data(v) p(h | v), and free p(v, h), (M, K)."""
    log_weights = machine_log_weights(states, W, b)
    posterior = log_weights.unflatten(-1, (-1, 2**n_hidden)).softmax(-1)
    return (p_data.unsqueeze(-1) * posterior).flatten(-2), log_weights.softmax(-1)


def clamped_gradient(W, b, states, p_data, n_hidden):
    """Gradient of `visible_log_likelihood` in each pair's weight and in each bias: clamped minus free moments."""
    clamped, free = two_phases_of_states(W, b, states, p_data, n_hidden)
    correlation, mean = moments(states, clamped - free)
    return off_diagonal(correlation), mean


def encoder_task(n_hidden):
    """The 4-H-4 encoder in 0/1 units: joint states, p_data (256,), and which pairs may have a weight."""
    n = 8 + n_hidden
    states, p_data = enumerate_states(n, off=0), torch.zeros(256)
    for k in range(4):
        p_data[2 ** (7 - k) + 2 ** (3 - k)] = 0.25  # unit k of V1 and unit k of V2 are on
    wired = 1 - torch.eye(n)
    wired[:4, 4:8] = wired[4:8, :4] = 0
    return states, p_data, wired


def parity_task(n_hidden, n_visible=4):
    """Even parity in ±1 units: joint states, p_data (2^n_visible,), and which pairs may have a weight."""
    p_data = (enumerate_states(n_visible).prod(1) > 0).float()
    return enumerate_states(n_visible + n_hidden), p_data / p_data.sum(), 1 - torch.eye(n_visible + n_hidden)


def train_restarts(task, n_hidden, n_restarts, n_steps, rate, generator):
    """Train `n_restarts` machines from random weights, as one batch; their log likelihoods (M,), W and b."""
    states, p_data, wired = task(n_hidden)
    n = states.shape[1]
    W, b = random_machine((n_restarts,), n, strength=0.5 * n**0.5, bias=0.1, generator=generator)

    def gradient(W, b):
        grad_W, grad_b = clamped_gradient(W, b, states, p_data, n_hidden)
        return grad_W * wired, grad_b

    W, b = ascend(gradient, W * wired, b, n_steps, rate, f"{n_hidden} hidden units")
    return visible_log_likelihood(W.double(), b.double(), states.double(), p_data.double(), n_hidden), W, b


def noisy_patterns(p_data, p_off=0.15, p_on=0.05):
    """The distribution (2^n,) of 0/1 patterns from p_data after each unit that is on has been switched off with
    probability p_off, and each that is off has been switched on with p_on."""
    n = p_data.numel().bit_length() - 1
    kernel, p = p_data.new_tensor([[1 - p_on, p_on], [p_off, 1 - p_off]]), p_data.view([2] * n)
    for i in range(n):
        p = torch.tensordot(p, kernel, ([i], [0])).movedim(-1, i)
    return p.reshape(-1)


def drawn_shares(p, n_samples):
    """Shares of the states among n_samples draws from each row of p (M, K)."""
    drawn = torch.multinomial(p, n_samples, replacement=True)
    return torch.zeros_like(p).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / n_samples))


def uses_all_codes(W, b):
    """Whether each of the four patterns has a most likely code of its own in the 4-2-4 encoder, (M,)."""
    states, p_data, _ = encoder_task(2)
    joint = two_phases_of_states(W, b, states, p_data, 2)[0].unflatten(-1, (-1, 4))
    codes = joint[:, p_data > 0].argmax(-1)
    return (codes.sort(1).values.diff(dim=1) > 0).all(1)


def learn_as_in_1985(n_restarts, n_cycles, noise=(0.15, 0.05), step=0.2, n_samples=80):
    """Ackley, Hinton & Sejnowski's rule (their steps of 2 at T = 10 are 0.2 at T = 1), with units of the patterns switched
    off and on by `noise`: every tenth cycle and the last (K,), and which machines use all codes then (K, M)."""
    states, p_data, wired = encoder_task(2)
    noisy, W, b = noisy_patterns(p_data, *noise), torch.zeros(n_restarts, 10, 10), torch.zeros(n_restarts, 10)
    cycles, found = [], []
    for cycle in Progress(range(1, n_cycles + 1), "the rule of 1985"):
        clamped, free = (drawn_shares(p, n_samples) for p in two_phases_of_states(W, b, states, noisy, 2))
        correlation, mean = moments(states, clamped - free)
        W, b = W + step * off_diagonal(correlation).sign() * wired, b + step * mean.sign()
        if cycle % 10 == 0 or cycle == n_cycles:
            cycles.append(cycle)
            found.append(uses_all_codes(W, b))
    return torch.tensor(cycles), torch.stack(found)


def first_cycle(cycles, found):
    """The first of `cycles` (K,) at which each of the machines found (K, M) used all codes, inf if never: (M,)."""
    return torch.where(found, cycles[:, None].double(), math.inf).amin(0)


def theory_best(task, n_hidden):
    """The supremum of `task`'s mean log likelihood over all machines with n_hidden hidden units (derived above)."""
    if task is encoder_task:
        return -2 * math.log(4) + min(n_hidden * math.log(2), math.log(4))
    return -4 * math.log(2) if n_hidden == 0 else -3 * math.log(2)


class Restarts(NamedTuple):
    """What restarts reached (M,), in nats, the exact best, which got to within 0.1 nats of it (M,), and which of the 4-2-4
    encoder's use all codes (M,)."""

    reached: torch.Tensor
    best: float
    succeeded: torch.Tensor
    all_codes: torch.Tensor | None


TASKS = {"encoder": (encoder_task, 0.3), "parity": (parity_task, 0.1)}  # and the learning rate
EXACT = {"color": "tab:blue"}  # exact gradients, here as in part 2


def compare_hidden(n_restarts, n_steps, generator):
    """{(task, hidden units): Restarts} by ascent along the exact gradient."""
    found = {}
    for name, (task, rate) in TASKS.items():
        for n_hidden in range(4):
            reached, W, b = train_restarts(task, n_hidden, n_restarts, n_steps, rate, generator)
            best, codes = theory_best(task, n_hidden), uses_all_codes(W, b) if (name, n_hidden) == ("encoder", 2) else None
            found[name, n_hidden] = Restarts(reached, best, (reached > best - 0.1).double(), codes)
    return found


def draw_hidden(found, walks, generator):
    """What restarts reach at each task; how many machines have the code, by the rule of 1985 and without its noise."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained")
    for (name, n_hidden), each in found.items():
        ax = axes[list(TASKS).index(name)]
        x = n_hidden + 0.3 * torch.rand(len(each.reached), generator=generator) - 0.15
        ax.plot(*map(to_numpy, (x, each.reached)), "o", alpha=0.4, ms=4, mew=0, **EXACT)
        ax.plot([n_hidden - 0.4, n_hidden + 0.4], [each.best] * 2, "k--")
        ax.text(n_hidden, 0.93, f"{each.succeeded.mean():.0%}", ha="center", transform=ax.get_xaxis_transform())
        ax.set(xticks=range(4), xlabel="hidden units (top: restarts that succeed)", ylabel="log likelihood, nats")
        lowest, span = found[name, 0].best, found[name, 3].best - found[name, 0].best
        ax.set_ylim(lowest - 0.1 * span, lowest + 1.25 * span)
    axes[0].plot([1.6, 3.4], [-2.5 * math.log(2)] * 2, "k:")
    axes[0].set_title("4-H-4 encoder, exact ascent\n(dashed: best; dotted: a shared code)", fontsize=11)
    coins = found["parity", 0].reached.max() / math.log(2)
    axes[1].set_title(f"Parity, exact ascent: the best visible\nmachine, {coins:.2f} ln 2, is coins", fontsize=11)
    for (words, (cycles, codes)), line in zip(walks.items(), ("-", ":"), strict=True):
        axes[2].plot(*map(to_numpy, (cycles, codes.double().mean(1))), line, color="teal", label=words)
    axes[2].axhline(to_numpy(found["encoder", 2].all_codes.double().mean()), label="exact ascent, at its end", **EXACT)
    axes[2].set(xlabel="learning cycles", ylim=(0, 1.05), ylabel="share of machines with four codes")
    ends = (f"{codes[-1].double().mean():.0%}" for _, codes in walks.values())
    axes[2].set_title("4-2-4, at the end: {} have the code,\n{} without noise on the patterns".format(*ends), fontsize=11)
    axes[2].legend(frameon=False, loc="upper left", fontsize=9)
    return fig


def section_hidden(run):
    """A visible machine holds pairs and no more; hidden units hold parity, and carry a code between two groups."""
    config, generator = run.config, torch.Generator().manual_seed(run.seed)
    found = compare_hidden(config.n_restarts, config.n_hidden_steps, generator)
    for (name, n_hidden), each in found.items():
        run.metric(f"{name}, {n_hidden} hidden: best (nats)", each.reached.max(), None, ("exact best", each.best))
    above = sum((each.reached > each.best + 1e-9).sum().item() for each in found.values())
    run.metric("restarts above the exact best", above, None, ("theorem", 0), 0)
    for name, n_hidden in (("encoder", 2), ("encoder", 3), ("parity", 1), ("parity", 2), ("parity", 3)):
        run.metric(f"{name}, {n_hidden} hidden: restarts that succeed", *mean_and_sem(found[name, n_hidden].succeeded))
    with_noise = learn_as_in_1985(config.n_restarts, config.n_cycles)
    without = learn_as_in_1985(config.n_restarts, config.n_cycles, noise=(0.0, 0.0))
    first = first_cycle(*with_noise)
    run.metric("rule of 1985: found the code at some time", *mean_and_sem(first.isfinite()), ("250 tests in 1985", 1))
    if first.median().isfinite():
        run.metric("rule of 1985: median cycle", first.median(), None, ("250 tests in 1985", 110))
    ends = [mean_and_sem(codes) for codes in (with_noise[1][-1], without[1][-1], found["encoder", 2].all_codes)]
    for words, end in zip(("rule of 1985", "1985 without noise", "exact ascent"), ends, strict=True):
        run.metric(f"{words}: have the code at the end", *end)
    walks = {"rule of 1985": with_noise, "without its noise": without}
    run.figure(draw_hidden(found, walks, generator), "restarts")
    shares = [f"{share:.0%}" for share, _ in ends]
    run.say("the code at the end: {} by the rule of 1985, {} without its noise, {} by exact ascent".format(*shares))


# %% 5. Ising
# All weights 1 between neighbours on an L x L torus, no biases: the machine that physicists solved. Onsager (1944) found
# its free energy, Yang (1952) its magnetisation, eq. (4), Kaufman (1949) the partition function of every finite torus:
#     Z = ½ (2 sinh 2K)^(L²/2) [Π 2cosh(½Lγ_odd) + Π 2sinh(½Lγ_odd) + Π 2cosh(½Lγ_even) + Π 2sinh(½Lγ_even)],
#     cosh γ_l = cosh²2K / sinh 2K - cos(πl/L),  l = 0 ... 2L-1,  K = 1/T,
# except γ_0 = 2K + ln tanh K, which is negative above Tc. The energy per site is -∂ log Z/∂K / L². Products of L numbers
# overflow, so we take logarithms, and write sinh = cosh tanh to keep the signs:
#     log Z = ½L² log(2 sinh 2K) - log 2 + log[C_odd (1 + Π tanh_odd) + C_even (1 + Π tanh_even)],  C = Π 2cosh.
# Is a check against Kaufman a check at all? It is where a much larger lattice's energy would fail it: on small lattices
# near Tc. So it is made there, and the distance from the energy at L = 1000 stands beside it.
#
# Sampling. On a chessboard, a black site's four neighbours are white: all black sites are independent given the white
# ones and can be updated at once, then all white ones. Each colour is its own array (n_temps, n_lattices, L, L/2):
# black site c of row i is column 2c + i mod 2; its neighbours are site c of the white rows above, below and i, and one
# more of row i: c - 1 in even rows, c + 1 in odd ones. With k of its neighbours up, h = 2k - 4, and (2) reads
#     P(up) = σ(2(2k - 4)/T):    five numbers for each temperature.
# So a uniform 16-bit integer r is compared with five thresholds t_k such that r < t_k with probability P(up | k). Since
# t_k grows with k, r < t_k exactly if at most k of the thresholds are <= r: no float is needed in the inner loop.
# (At T = 1.5 the rarest is σ(-8/T) = 0.0048, and half of 2⁻¹⁶ is 0.16 % of that. So t_k is rounded up or down at random,
# anew for each half-sweep: right on average.)
#
# How far to trust it: a mean over n correlated sweeps is worth n/τ independent ones, where
#     τ = 1 + 2 Σ_{t>=1} ρ(t),    the integrated autocorrelation time of module 01,
# and the sum is cut at the first W >= 2.5 τ(W) (Sokal 1989, whose τ is half of this one): beyond it there is only noise.
# All lattices start ordered, and the first quarter of the sweeps is discarded. From random spins about a third of the
# cold lattices would freeze into stripes (Spirin, Krapivsky & Redner 2001). At Tc a quarter of the run is just a few times
# the memory τ/2, as a metric says: enough to forget the start. The snapshots are of twice the side, where part 6 lets us
# expect 2^2.17 = 4.5 times the memory, after the whole run, four times as long. (Larger ones would still show the start.)

T_C = 2 / math.log(1 + 2**0.5)


def up_neighbours(other, shift):
    """How many of each site's four neighbours, all in the array `other` (..., L, L/2) of 0/1, are up.
    Rows of parity `shift` find their fourth neighbour one column to the left, the others one to the right."""
    k = other.roll(1, -2)
    k += other.roll(-1, -2)
    k += other
    wide = torch.cat([other[..., -1:], other, other[..., :1]], -1)
    k[..., shift::2, :] += wide[..., shift::2, :-2]
    k[..., 1 - shift :: 2, :] += wide[..., 1 - shift :: 2, 2:]
    return k


def ising_thresholds(temperature):
    """Random t_k, k = 0 ... 4, with P(r < t_k) = σ(2(2k - 4)/T) for r uniform over the 16-bit integers and t_k rounded
    at random to a neighbouring integer: int16 (5, n_temps, 1, 1, 1) for temperatures (n_temps,)."""
    field = 2.0 * torch.arange(5, device=temperature.device)[:, None] - 4
    level = 65536 * torch.sigmoid(2 * field / temperature) - 32768
    return (level + torch.rand_like(level)).floor().clamp(max=32767).to(torch.int16)[..., None, None, None]


def simulate_ising(side, temperature, n_lattices, n_sweeps):
    """Chessboard Gibbs sampling from the ordered state: magnetisation and energy per site after each sweep,
    (n_temps, n_lattices, n_sweeps), on the CPU, and the last lattices (n_temps, n_lattices, L, L) of 0/1."""
    black = torch.ones(len(temperature), n_lattices, side, side // 2, dtype=torch.int8, device=temperature.device)
    white = black.clone()
    words = torch.empty((black.numel() + 3) // 4, dtype=torch.int64, device=temperature.device)
    r = words.view(torch.int16)[: black.numel()].view(black.shape)  # 64 random bits make four 16-bit integers
    level, above = torch.empty_like(r), torch.empty_like(r)
    trace = torch.empty(2, n_sweeps, len(temperature), n_lattices)
    for sweep in Progress(range(n_sweeps), f"Ising {side}"):
        for shift, colour, other in ((0, black, white), (1, white, black)):
            k = up_neighbours(other, shift)
            words.random_(-(2**63), None)  # None: up to the largest integer
            level.zero_()
            for threshold in ising_thresholds(temperature):
                level += torch.ge(r, threshold, out=above)
            torch.le(level, k, out=colour)
        bonds = (2 * white - 1) * (k - 2)  # s h / 2 of each white site; each bond has one white end
        trace[0, sweep] = 2 / side**2 * (black + white).flatten(2).float().sum(-1) - 1
        trace[1, sweep] = -2 / side**2 * bonds.flatten(2).float().sum(-1)
    lattices = torch.stack([black, white], -1)  # even rows: black, white, black ...; odd rows: white, black ...
    lattices[:, :, 1::2] = lattices[:, :, 1::2].flip(-1)
    return *trace.permute(0, 2, 3, 1), lattices.flatten(-2)


def integrated_time(chains, common_mean=True):
    """τ in draws, and its standard error over chains, of `chains` (..., n_chains, n_draws) (Sokal 1989).
    The chains share one mean if they sample one distribution; each has its own if that is in doubt."""
    x = chains.double()
    x = x - x.mean((-2, -1) if common_mean else -1, keepdim=True)
    n = x.shape[-1]
    spectrum = torch.fft.rfft(x, 2 * n).abs() ** 2
    covariance = torch.fft.irfft(spectrum, 2 * n)[..., :n] / torch.arange(n, 0, -1)
    pooled = covariance.mean(-2, keepdim=True)
    rho = covariance / pooled[..., :1].clamp(min=1e-30)  # a chain that never moves gets 1
    tau = 1 + 2 * rho[..., 1:].cumsum(-1)
    lag = torch.arange(1, n)
    window = torch.where(lag >= 2.5 * tau.mean(-2, keepdim=True), lag, n - 1).amin(-1, keepdim=True)
    each = tau.gather(-1, (window - 1).expand(*tau.shape[:-1], 1)).squeeze(-1)
    tau, sem = mean_and_sem(each.movedim(-1, 0))
    return tau.clamp(min=1 / n), sem  # in a few draws noise may leave a sum below 0


def exact_magnetisation(temperature):
    """Spontaneous magnetisation of the infinite lattice (Yang 1952)."""
    return (1 - torch.sinh(2 / temperature) ** -4).clamp(min=0) ** 0.125


def exact_ising_log_z(coupling, side):
    """log Z of the side x side torus at K = `coupling` (n_temps,), float64 (Kaufman 1949)."""
    l = torch.arange(1, 2 * side, dtype=torch.float64)
    c = torch.cosh(2 * coupling) ** 2 / torch.sinh(2 * coupling)
    gamma = torch.acosh(c[:, None] - torch.cos(math.pi * l / side))
    gamma = torch.cat([(2 * coupling + torch.tanh(coupling).log())[:, None], gamma], 1)
    terms = []
    for x in (0.5 * side * gamma[:, 1::2], 0.5 * side * gamma[:, 0::2]):
        log_cosh = torch.logaddexp(x, -x).sum(1)
        terms.append(log_cosh + torch.log1p(torch.tanh(x).prod(1).clamp(min=-1 + 1e-15)))
    return 0.5 * side**2 * torch.log(2 * torch.sinh(2 * coupling)) - math.log(2) + torch.logaddexp(*terms)


def exact_ising_energy(temperature, side):
    """Energy per site of the side x side torus, -∂ log Z/∂K / L², at each temperature (n_temps,)."""
    coupling = (1 / temperature.double()).requires_grad_()
    (slope,) = torch.autograd.grad(exact_ising_log_z(coupling, side).sum(), coupling)
    return -slope / side**2


class Lattices(NamedTuple):
    """Time averages of lattices of one side after the start is discarded: |m| and energy per site (n_lattices, n_temps),
    and the autocorrelation time of |m| with its standard error (n_temps,)."""

    m: torch.Tensor
    energy: torch.Tensor
    tau: torch.Tensor
    tau_sem: torch.Tensor


TEMPERATURES = T_C + 0.8 * torch.linspace(-1, 1, 13) * torch.linspace(-1, 1, 13).abs()  # dense around Tc, in the middle
COLD, MIDDLE = 3, 6


def measure_lattices(sides, n_lattices, n_sweeps, device="cpu"):
    """{side: Lattices} at TEMPERATURES."""
    found = {}
    for side in sides:
        m, energy, _ = simulate_ising(side, TEMPERATURES.to(device), n_lattices, n_sweeps)
        m, energy = m[..., n_sweeps // 4 :].abs().double(), energy[..., n_sweeps // 4 :].double()
        found[side] = Lattices(m.mean(-1).T, energy.mean(-1).T, *integrated_time(m))
    return found


def worst_in_errors(values, exact):
    """The largest distance of a mean of `values` (n, K) from `exact` (K,), in standard errors (1e-6: float32's rounding)."""
    mean, sem = mean_and_sem(values)
    return ((mean - exact).abs() / (sem + 1e-6)).max().item()


def slower(lattices):
    """How many times longer τ is at Tc than at the highest temperature, with its standard error if there is one: text."""
    tau, sem = lattices.tau[[MIDDLE, -1]], lattices.tau_sem[[MIDDLE, -1]]
    ratio, error = tau[0] / tau[1], ((sem / tau) ** 2).sum() ** 0.5 * tau[0] / tau[1]
    return f"{ratio:.0f}" + (f" +- {error:.0f}" if error.isfinite() else "")


def draw_lattices(found):
    """|m|, energy and autocorrelation time against temperature, at three sizes."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.5), layout="constrained")
    fine = torch.linspace(float(TEMPERATURES[0]), float(TEMPERATURES[-1]), 400)
    axes[0].plot(*map(to_numpy, (fine, exact_magnetisation(fine))), "k--", label="exact: Yang, $L = \\infty$")
    for (side, each), shade, marker in zip(found.items(), (0.4, 0.6, 0.9), "v^o", strict=True):
        style = {"color": plt.cm.Oranges(shade), "label": f"Gibbs, L = {side}"}
        axes[1].plot(*map(to_numpy, (fine, exact_ising_energy(fine, side))), "k-", lw=0.7)
        for ax, values in zip(axes, (mean_and_sem(each.m), mean_and_sem(each.energy)), strict=False):
            ax.errorbar(*map(to_numpy, (TEMPERATURES, *values)), fmt=marker, ms=5, **style)
        axes[2].errorbar(*map(to_numpy, (TEMPERATURES, each.tau, each.tau_sem)), fmt=f"{marker}-", ms=5, **style)
    largest = max(found)
    axes[1].plot([], [], "k-", lw=0.7, label="exact: Kaufman, each L")
    axes[0].set(title="Large lattices meet Yang's curve", ylabel="|m|")
    axes[1].set(title="Every size has its own exact energy", ylabel="energy per site")
    axes[2].set(yscale="log", ylabel="autocorrelation time of |m|, sweeps")
    axes[2].set_title(f"L = {largest}, Tc: {slower(found[largest])} times slower than hot")
    for ax in axes:
        ax.axvline(T_C, color="k", ls=":", lw=1)
        ax.set_xlabel("temperature T (dotted: Tc)")
    axes[0].legend(frameon=False, fontsize=9, loc="lower left")
    axes[1].legend(*(pair[:1] for pair in axes[1].get_legend_handles_labels()), frameon=False, fontsize=9)
    return fig


def draw_snapshots(lattices, indices):
    """One lattice (n_temps, 1, L, L) at each of three temperatures."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
    for ax, i, lattice, text in zip(axes, indices, lattices, ("below", "at", "above"), strict=True):
        ax.imshow(to_numpy(lattice[0]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        m = (2 * lattice[0].float().mean() - 1).abs()
        ax.set(xticks=[], yticks=[], title=f"T = {TEMPERATURES[i]:.2f}, {text} Tc: |m| = {m:.2f}")
    return fig


def lattice_sides(config):
    """A quarter, a half and all of the largest side."""
    require(config, n_ising_sweeps=20)
    if config.lattice % 8:
        sys.exit(f"--lattice must be a multiple of 8, not {config.lattice}")
    return config.lattice // 4, config.lattice // 2, config.lattice


def section_ising(run):
    """The Ising machine follows Yang's magnetisation and, at every size, Kaufman's energy; near Tc sampling is slowest."""
    config, sides = run.config, lattice_sides(run.config)
    n, side = config.n_lattices, sides[-1]
    found = measure_lattices(sides, n, config.n_ising_sweeps, run.device)
    at_tc, cold = f"Kaufman, T = {T_C:.3f}", f"Yang, T = {TEMPERATURES[COLD]:.3f}"
    exact_energy, exact_m = exact_ising_energy(TEMPERATURES, side), exact_magnetisation(TEMPERATURES)
    record(run, f"L = {side}: energy per site at Tc", found[side].energy[:, MIDDLE], at_tc, exact_energy[MIDDLE])
    record(run, f"L = {side}: |m|, cold", found[side].m[:, COLD], cold, exact_m[COLD])
    for each in sides[:2] if n > 1 else ():
        worst = worst_in_errors(found[each].energy, exact_ising_energy(TEMPERATURES, each))
        within = tolerance(1, n, len(TEMPERATURES))
        run.metric(f"L = {each}: worst energy, in std. errors off", worst, None, ("Kaufman", 0), within)
        blind = worst_in_errors(found[each].energy, exact_ising_energy(TEMPERATURES, 1000))
        run.metric(f"L = {each}: same, from Kaufman at L = 1000", blind, None, ("refused above", within))
    tau = found[side].tau[MIDDLE]
    run.metric(f"L = {side}: autocorrelation time at Tc (sweeps)", tau, found[side].tau_sem[MIDDLE])
    run.metric("e-foldings discarded at Tc", config.n_ising_sweeps // 4 * 2 / tau)
    run.metric("temperature where the sampler is slowest", TEMPERATURES[found[side].tau.argmax()], None, ("Tc", T_C))
    run.figure(draw_lattices(found), "exact")
    shown = TEMPERATURES[[COLD, MIDDLE, -1]].to(run.device)
    snapshots = simulate_ising(2 * side, shown, 1, config.n_ising_sweeps)[-1]
    run.figure(draw_snapshots(snapshots, (COLD, MIDDLE, -1)), "snapshots")
    run.say(f"L = {side}: {slower(found[side])} times slower at Tc than at T = {TEMPERATURES[-1]:.2f}")


# %% 6. Critical slowing down, and its cure
# At Tc patches of every size form, and a rule that turns one spin at a time has to walk their borders across the lattice:
#     τ ~ L^z,    z = 2.17 for local rules that do not conserve m (Nightingale & Blote 1996): *critical slowing down*.
# That is the exponent of large lattices; 0.1 is allowed for what those of a few dozen sites a side lack.
#
# The cure turns whole patches. Wolff's (1989) update:
# 1. between neighbours that are equal, lay a bond with probability p = 1 - exp(-2/T);
# 2. choose a site at random, and flip all sites that bonds connect with it.
# Why is it right? Let a cluster C go from s to s'. Inside C nothing changes; at its border, the pairs that were equal and
# had no bond (n of them) become unequal, and those that were unequal (n') become equal. The way there needs n pairs
# without a bond, (1-p)^n, the way back n': the ratio of the two is (1-p)^(n-n') = exp(-2(n-n')/T). And E(s') - E(s) =
# 2(n - n'). So p(s) P(s -> s') = p(s') P(s' -> s): detailed balance, and never a rejection.
# One update turns a share <|C|>/L² of the lattice; its τ is counted in sweeps, τ_steps <|C|>/L², to be fair.
#
# With draws that fast, Tc itself can be measured, without knowing it. Binder's (1981) cumulant
#     U = 1 - <m⁴> / (3 <m²>²)
# is 2/3 in perfect order and 0 in disorder. At Tc it depends on L hardly at all, and goes to 0.61069 (Kamieniarz & Blote
# 1993): the curves of two sizes cross there. Each is fitted by a parabola, and their crossing has its error from the
# *jackknife*: leave out one lattice at a time, n times; the variance is (n-1)/n Σ (value without i - their mean)².


def wolff_step(s, temperature):
    """One cluster of each lattice of s (B, L, L), ±1, is flipped: new s, and the clusters' sizes (B,). temperature (B,)."""
    n, side, _ = s.shape
    p_bond = 1 - torch.exp(-2 / temperature).view(-1, 1, 1)
    right = (s == s.roll(-1, 2)) & (torch.rand(s.shape, device=s.device) < p_bond)  # a bond with the neighbour to the right
    down = (s == s.roll(-1, 1)) & (torch.rand(s.shape, device=s.device) < p_bond)
    seed = torch.randint(side**2, (n, 1), device=s.device)
    cluster = torch.zeros(n, side**2, dtype=torch.bool, device=s.device).scatter_(1, seed, True).view(s.shape)
    size, before = 1, 0
    while size > before:  # grow along bonds until nothing is added; the lattices of a batch wait for the slowest
        for _ in range(4):
            cluster = cluster | (cluster & right).roll(1, 2) | (cluster.roll(-1, 2) & right)
            cluster = cluster | (cluster & down).roll(1, 1) | (cluster.roll(-1, 1) & down)
        before, size = size, int(cluster.sum())
    return torch.where(cluster, -s, s), cluster.flatten(1).sum(1)


def simulate_wolff(side, temperature, n_steps):
    """Wolff updates of one lattice at each temperature (B,), from the ordered state: magnetisation and energy per site
    (B, n_steps) after each step, float64 on the CPU, and the mean share of a lattice in a cluster (B,)."""
    s = torch.ones(len(temperature), side, side, dtype=torch.int8, device=temperature.device)
    m, energy, sizes = [], [], []
    for _ in Progress(range(n_steps), f"Wolff {side}"):
        s, size = wolff_step(s, temperature)
        m.append(s.flatten(1).float().mean(1))
        energy.append(-(s * (s.roll(1, 1) + s.roll(1, 2))).flatten(1).float().mean(1))
        sizes.append(size / side**2)
    m, energy, sizes = (torch.stack(values, 1).cpu().double() for values in (m, energy, sizes))
    return m, energy, sizes.mean(1)


def weighted_slope(x, y, error):
    """Slope of the line through points (x, y) whose y have standard errors `error`, all (K,), and its own standard error.
    If an error is unknown or 0, all points count alike, and the slope's is unknown (nan)."""
    known = bool(((error > 0) & error.isfinite()).all())
    precision = error**-2 if known else torch.ones_like(error)
    weight = precision / precision.sum()
    centred = x - weight @ x
    slope = (weight * centred) @ y / ((weight * centred) @ centred)
    return slope, ((precision * centred) @ centred) ** -0.5 if known else slope * math.nan


def binder_cumulant(m2, m4):
    """U from <m²> and <m⁴>."""
    return 1 - m4 / (3 * m2**2)


def parabolas_cross(x, y1, y2):
    """Where parabolas fitted to (x, y1) and to (x, y2), all (K,), cross, nearest to the middle of x; nan if nowhere."""
    centre = x.mean().item()  # the difference of two least-squares parabolas is the parabola of the difference
    roots = np.roots(np.polyfit(to_numpy(x) - centre, to_numpy(y1 - y2), 2))
    return centre + float(min(roots[roots.imag == 0].real, key=abs, default=math.nan))


def leave_one_out(estimate, n):
    """estimate(which), of all n repeats and with one left out at a time: the value, and its standard error."""
    everyone = torch.arange(n)
    if n < 2:
        return estimate(everyone), math.nan
    left = torch.tensor([estimate(everyone[everyone != i]) for i in range(n)], dtype=torch.float64)
    return estimate(everyone), ((n - 1) * left.var(correction=0)).sqrt().item()


class Slowing(NamedTuple):
    """Autocorrelation times of |m| at Tc, in sweeps, and their standard errors, at each side (K,): chessboard Gibbs, Wolff;
    and Wolff's mean energies per site at the largest side, one a lattice."""

    sides: tuple[int, ...]
    gibbs: torch.Tensor
    gibbs_sem: torch.Tensor
    wolff: torch.Tensor
    wolff_sem: torch.Tensor
    energy: torch.Tensor


def measure_slowing(sides, n_lattices, n_sweeps, n_steps, device="cpu"):
    """Both samplers at Tc, n_lattices lattices of each side; 3 n_sweeps at the largest, in proportion at the others."""
    t_c, found = torch.full((n_lattices,), T_C, device=device), []
    for side in sides:
        length = max(3 * n_sweeps * side // sides[-1], 20)
        gibbs = integrated_time(simulate_ising(side, t_c[:1], n_lattices, length)[0][0, :, length // 4 :].abs())
        m, energy, size = simulate_wolff(side, t_c, n_steps)
        wolff = integrated_time(m[:, n_steps // 10 :].abs())
        found.append([*gibbs, *(value * size.mean() for value in wolff)])
    return Slowing(sides, *torch.tensor(found, dtype=torch.float64).T, energy[:, n_steps // 10 :].mean(1))


class Binder(NamedTuple):
    """U of two sides, side -> (lattices, temperatures) of <m²> and <m⁴>; where the curves cross, and its standard error."""

    temperature: torch.Tensor
    moments: dict[int, tuple[torch.Tensor, torch.Tensor]]
    crossing: float
    sem: float


def measure_binder(sides, n_lattices, n_steps, device="cpu"):
    """The crossing of U of two sides between T = 2.23 and 2.33, whose middle is not Tc."""
    temperature, kept = torch.linspace(2.23, 2.33, 5), {}
    for side in sides:
        m, _, _ = simulate_wolff(side, temperature.repeat(n_lattices).to(device), n_steps)
        m = m[:, n_steps // 10 :].view(n_lattices, 5, -1)
        kept[side] = (m**2).mean(-1), (m**4).mean(-1)

    def estimate(which):
        return parabolas_cross(
            temperature.double(), *(binder_cumulant(m2[which].mean(0), m4[which].mean(0)) for m2, m4 in kept.values())
        )

    return Binder(temperature, kept, *leave_one_out(estimate, n_lattices))


def draw_slowing(found, z, sem, cumulant):
    """Autocorrelation times against the side, and Binder's cumulants against temperature."""
    fig, (ax, ax2) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    sides = torch.tensor(found.sides).double()
    ax.errorbar(*map(to_numpy, (sides, found.gibbs, found.gibbs_sem)), fmt="o", color="tab:orange", label="Gibbs")
    guide = found.gibbs[1] * (sides / sides[1]) ** 2.1665
    ax.plot(*map(to_numpy, (sides, guide)), "k--", label="slope 2.17, Nightingale & Blote")
    ax.errorbar(*map(to_numpy, (sides, found.wolff, found.wolff_sem)), fmt="s-", color="navy", label="Wolff clusters")
    ax.set(xscale="log", yscale="log", xlabel="side L", ylabel="autocorrelation time at Tc, sweeps")
    ax.set_title(f"Gibbs slows down as $L^z$, z = {z:.2f} ± {sem:.2f}")
    ax.set_xticks(found.sides, found.sides)
    ax.minorticks_off()
    ax.legend(frameon=False)
    for (side, (m2, m4)), marker, shade in zip(cumulant.moments.items(), "^o", (0.5, 0.9), strict=True):
        points = cumulant.temperature, binder_cumulant(m2.mean(0), m4.mean(0)), mean_and_sem(binder_cumulant(m2, m4))[1]
        style = {"fmt": f"{marker}-", "color": plt.cm.Blues(shade), "label": f"Wolff, L = {side}"}
        ax2.errorbar(*map(to_numpy, points), **style)
    ax2.axvline(T_C, color="k", ls=":", label="exact Tc")
    ax2.axhline(0.61069, color="k", ls="--", lw=1, label="U at Tc, $L = \\infty$")
    ax2.set(xlabel="temperature T", ylabel="Binder's cumulant U")
    ax2.set_title(f"The curves cross at {cumulant.crossing:.4f} ± {cumulant.sem:.4f}")
    ax2.legend(frameon=False, loc="lower left")
    return fig


def section_clusters(run):
    """At Tc single spins need L^2.17 sweeps to forget; clusters need a few, and so show where Tc is."""
    config, sides, n = run.config, lattice_sides(run.config), 8 * run.config.n_lattices
    require(config, n_cluster_steps=20)
    found = measure_slowing(sides, n, config.n_ising_sweeps, config.n_cluster_steps, run.device)
    for side, *times in zip(*found[:5], strict=True):
        run.metric(f"L = {side}: Gibbs, autocorr. time (sweeps)", *times[:2])
        run.metric(f"L = {side}: Wolff, autocorr. time (sweeps)", *times[2:], ("Gibbs", times[0]))
    log_sides = torch.tensor(sides).double().log()
    z, sem = weighted_slope(log_sides, found.gibbs.log(), found.gibbs_sem / found.gibbs)
    run.metric("dynamic exponent z, Gibbs", z, sem, ("Nightingale & Blote (1996)", 2.1665), tolerance(sem, n) + 0.1)
    z_wolff = weighted_slope(log_sides, found.wolff.log(), found.wolff_sem / found.wolff)
    run.metric("dynamic exponent z, Wolff", *z_wolff, ("Gibbs", z))
    exact = exact_ising_energy(torch.tensor([T_C]), sides[-1])[0]
    record(run, f"L = {sides[-1]}: Wolff, energy per site at Tc", found.energy, "Kaufman", exact)
    cumulant = measure_binder(sides[::2], 2 * config.n_lattices, config.n_cluster_steps, run.device)
    if math.isfinite(cumulant.crossing):
        within = tolerance(cumulant.sem, 2 * config.n_lattices)
        run.metric("Tc where Binder's cumulants cross", cumulant.crossing, cumulant.sem, ("Onsager", T_C), within)
    run.figure(draw_slowing(found, z, sem, cumulant), "times")
    run.say(f"at L = {sides[-1]} clusters forget with {found.gibbs[-1] / found.wolff[-1]:.0f} times fewer spins turned")


# %% 7. Annealing
# Low energies are likely at low temperature, but a cold Gibbs sampler is a greedy one and sits in the first valley. Two
# remedies. *Annealing* starts hot and cools: if it cools for ever more slowly, it ends in the ground state. Geman & Geman
# (1984) prove it for T(t) = NΔ/ln t after t single-unit updates, Δ = max E - min E: the first metric of this section says
# what that costs. *Parallel tempering* (Swendsen & Wang 1986; Hukushima & Nemoto 1996) runs K replicas at K temperatures
# and exchanges neighbours:
#     the pair (x at T_i, y at T_j) has p(x, y) ∝ exp(-E(x)/T_i - E(y)/T_j); exchanged, (y at T_i, x at T_j),
#     p(y, x)/p(x, y) = exp(-E(y)/T_i - E(x)/T_j + E(x)/T_i + E(y)/T_j) = exp((1/T_i - 1/T_j)(E(x) - E(y))),
# and accepting with probability min(1, this ratio) keeps p (Metropolis). Low energies move to low temperatures.
#
# The test: spin glasses of 20 units, whose ground states enumeration knows. Each method has the same number of
# single-unit updates (parallel tempering pays for all its replicas), and succeeds if it *met* the ground state. And the
# honest baseline: greedy descent from a random state, again and again, for as many updates. (On large machines nobody knows
# the ground state for certain: there the lowest energies found are compared.)
#
# Two habits decide what such a comparison is worth. Temperatures matter more than the shape of the cooling: T = c/ln(1 + t)
# is the worst of all with the wrong c, and as good as any with the right one. So each method chooses its temperatures, and
# tempering its number of replicas, on spin glasses that serve for nothing else, of 20 and of 160 units. And all methods
# run on the same spin glasses, so two of them are compared by their difference on each: who differs from the best by less
# than Student's t allows at one false alarm in 100, shared by all comparisons, is called as good.


def spin_glasses(n_instances, n, generator):
    """Sherrington & Kirkpatrick (1975): symmetric couplings N(0, 1/n), (n_instances, n, n)."""
    return random_machine((n_instances,), n, generator=generator)[0]


def schedule(kind, n_sweeps, hot=1.0, cold=0.2):
    """Temperatures (n_sweeps,): "geometric" goes from hot to cold; "logarithmic" is hot ln 2/ln(1 + t)."""
    t = torch.arange(1, n_sweeps + 1)
    if kind == "geometric":
        return hot * (cold / hot) ** ((t - 1) / max(n_sweeps - 1, 1))
    return hot * math.log(2) / torch.log(1.0 + t)


def anneal(W, temperatures, n_runs):
    """Simulated annealing, one sweep at each temperature; the lowest energies met, (n_instances, n_runs)."""
    b = torch.zeros(W.shape[:-1])
    s = random_spins(len(W), n_runs, W.shape[-1])
    best = machine_energy(s, W, b)
    for temperature in temperatures:
        s = gibbs_sweep(s, W, b, temperature)
        best = torch.minimum(best, machine_energy(s, W, b))
    return best


def quench_restarts(W, n_sweeps, n_runs):
    """Greedy descent, restarted at random as soon as a sweep changes nothing; lowest energies (n_instances, n_runs)."""
    b = torch.zeros(W.shape[:-1])
    s = random_spins(len(W), n_runs, W.shape[-1])
    best = machine_energy(s, W, b)
    for _ in range(n_sweeps):
        new = gibbs_sweep(s, W, b, temperature=1e-9)
        best = torch.minimum(best, machine_energy(new, W, b))
        stuck = (new == s).all(-1, keepdim=True)
        s = torch.where(stuck, random_spins(*s.shape), new)
    return best


def swap_probability(energy_i, energy_j, temperature_i, temperature_j):
    """min(1, exp((1/T_i - 1/T_j)(E_i - E_j))): the chance that replicas i and j exchange their states."""
    return torch.exp((1 / temperature_i - 1 / temperature_j) * (energy_i - energy_j)).clamp(max=1)


def swap_replicas(s, energies, ladder, first):
    """Offer the pairs (first, first + 1), (first + 2, first + 3) ... of replicas s (..., K, n) an exchange."""
    i = torch.arange(first, len(ladder) - 1, 2)
    p_swap = swap_probability(energies[..., i], energies[..., i + 1], ladder[i], ladder[i + 1])
    swapped = torch.rand(p_swap.shape) < p_swap
    order = torch.arange(len(ladder)).expand(energies.shape).clone()
    order[..., i], order[..., i + 1] = torch.where(swapped, i + 1, i), torch.where(swapped, i, i + 1)
    return s.gather(-2, order.unsqueeze(-1).expand(s.shape))


def parallel_tempering(W, ladder, n_sweeps, n_runs):
    """`n_sweeps` sweeps of replicas at the temperatures `ladder` (K,), each followed by exchanges of neighbours, the even
    and the odd pairs in turn; lowest energies (n_instances, n_runs)."""
    W, b = W[:, None], torch.zeros(len(W), 1, W.shape[-1])
    s = random_spins(len(W), n_runs, len(ladder), W.shape[-1])
    best = machine_energy(s, W, b).amin(-1)
    for sweep in range(n_sweeps):
        s = gibbs_sweep(s, W, b, ladder)
        energies = machine_energy(s, W, b)
        best = torch.minimum(best, energies.amin(-1))
        s = swap_replicas(s, energies, ladder, sweep % 2)
    return best


def temper_on_ladder(W, n_sweeps, n_runs, n_replicas, hot, cold):
    """Parallel tempering with a geometric ladder, for a budget that all its replicas share."""
    return parallel_tempering(W, schedule("geometric", n_replicas, hot, cold), n_sweeps // n_replicas, n_runs)


METHODS = {  # name -> f(W, n_sweeps, n_runs, *setting), the lowest energies met (n_instances, n_runs), and settings to try
    "restarted descent": (quench_restarts, [()]),
    "parallel tempering": (temper_on_ladder, [(3, 0.8, 0.3), (4, 0.6, 0.2), (4, 0.8, 0.3)]),
    "geometric": (
        lambda W, n, runs, *ends: anneal(W, schedule("geometric", n, *ends), runs),
        [(0.7, 0.3), (1, 0.2), (1.5, 0.1)],
    ),
    "logarithmic": (
        lambda W, n, runs, hot: anneal(W, schedule("logarithmic", n, hot), runs),
        [(1.0,), (2.5,), (3.25,)],
    ),
}
STYLES = dict(zip(METHODS, (("o", "black"), ("P", "crimson"), ("s", "deeppink"), ("v", "slategray")), strict=True))


def choose_settings(size, n_sweeps, generator, n_instances=5, n_runs=10):
    """Each method's setting with the lowest mean energy on spin glasses that serve for nothing else: name -> setting."""
    W = spin_glasses(n_instances, size, generator)
    chosen = {}
    for name, (method, grid) in METHODS.items():
        means = [method(W, n_sweeps, n_runs, *each).mean().item() for each in grid] if len(grid) > 1 else [0.0]
        chosen[name] = grid[means.index(min(means))]
    return chosen


def exact_ground_energies(W):
    """The minimum of -½ sᵀWs over ±1 units, for each W of (n_instances, n, n), by enumeration in two halves."""
    n = W.shape[-1]
    left, right = enumerate_states(n // 2 - 1), enumerate_states(n - n // 2)
    left = torch.cat([torch.ones(len(left), 1), left], 1)  # s and -s have one energy: fix s_0 = 1
    half, lowest = n // 2, []
    for w in W:  # an instance at a time: the table has 2^(n-1) entries
        inner_left = machine_energy(left, w[:half, :half], torch.zeros(half))
        inner_right = machine_energy(right, w[half:, half:], torch.zeros(n - half))
        lowest.append((inner_left[:, None] + inner_right - left @ w[:half, half:] @ right.T).min())
    return torch.stack(lowest)


def theory_log10_updates(W, ground, temperature):
    """Geman & Geman (1984), theorem B: log10 of the updates t at which NΔ/ln t has come down to `temperature`."""
    span = -exact_ground_energies(-W) - ground  # max E - min E
    return W.shape[-1] * span / temperature / math.log(10)


class Annealed(NamedTuple):
    """Each method's share of runs that met the ground state, name -> (budgets, instances), and its lowest energy a unit
    above the best of all methods, name -> (sizes, instances); the settings chosen on 20 and on 160 units, name -> setting;
    and Geman & Geman's log10 updates (instances,)."""

    budgets: list[int]
    success: dict[str, torch.Tensor]
    sizes: list[int]
    large_budget: int
    excess: dict[str, torch.Tensor]
    settings: tuple[dict[str, tuple], dict[str, tuple]]
    theorem: torch.Tensor


def compare_annealing(n_instances, n_runs, n_budget, generator):
    """All methods on the same spin glasses: of 20 units, at each budget; of up to 160 units, at one budget."""
    W = spin_glasses(n_instances, 20, generator)
    ground = exact_ground_energies(W)
    budgets, sizes, large_budget = [2**k for k in range(3, 20) if 2**k <= n_budget], [20, 40, 80, 160], min(256, n_budget)
    large = [spin_glasses((n_instances + 1) // 2, size, generator) for size in sizes]
    settings = choose_settings(20, budgets[len(budgets) // 2], generator, 20), choose_settings(160, large_budget, generator)
    success, found = {}, {}
    for name, (method, _) in METHODS.items():
        met = [method(W, budget, n_runs, *settings[0][name]) < ground[:, None] + 1e-4 for budget in budgets]
        success[name] = torch.stack(met).double().mean(2)
        found[name] = [method(each, large_budget, 10, *settings[1][name]).double() for each in large]
    lowest = [torch.stack([found[name][k].amin(1) for name in METHODS]).amin(0) for k in range(len(sizes))]
    excess = {
        name: torch.stack([(found[name][k].mean(1) - lowest[k]) / size for k, size in enumerate(sizes)]) for name in METHODS
    }
    return Annealed(budgets, success, sizes, large_budget, excess, settings, theory_log10_updates(W, ground, 0.2))


def draw_success(found, winners):
    """Success against the budget on 20 units; the excess energy against the number of units."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.9), layout="constrained")
    for name, (marker, colour) in STYLES.items():
        for ax, x, rows in zip(axes, (found.budgets, found.sizes), (found.success[name], found.excess[name]), strict=True):
            ax.errorbar(x, *map(to_numpy, mean_and_sem(rows.T)), fmt=f"{marker}-", color=colour, label=name)
            ax.set_xscale("log", base=2)
            ax.set_xticks(x, x)
    middle = found.budgets[len(found.budgets) // 2]
    axes[0].set(xlabel=f"sweeps of 20 units (settings chosen at {middle})", ylabel="share of runs that met the ground state")
    axes[1].set(xlabel="number of units (settings chosen at 160)", ylabel="lowest energy per unit, above the best run's")
    titles = (
        f"20 units, {middle} sweeps",
        f"{found.sizes[-1]} units, {found.large_budget} sweeps",
    )
    for ax, title, (best, *ties) in zip(axes, titles, winners, strict=True):
        ax.set_title(f"{title}: {best} first" + (f"\n(as good: {', '.join(ties)})" if ties else "\n(alone)"), fontsize=11)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return fig


def section_annealing(run):
    """Annealing is judged at equal updates, against restarted descent and tempering, on small and on large machines."""
    config, generator = run.config, torch.Generator().manual_seed(run.seed)
    require(config, n_budget=8)
    found = compare_annealing(config.n_instances, config.n_runs, config.n_budget, generator)
    beside = ("log10 of the updates given here", math.log10(found.budgets[-1] * 20))
    run.metric("theorem: log10 of updates to T = 0.2", *mean_and_sem(found.theorem), beside)
    middle = len(found.budgets) // 2
    for name in METHODS:
        run.metric(f"20 units, {found.budgets[middle]} sweeps, {name}", *mean_and_sem(found.success[name][middle]))
    for name in METHODS:
        run.metric(f"160 units, excess energy, {name}", *mean_and_sem(found.excess[name][-1]), ("best run", 0))
    small = as_good_as_the_best({name: shares[middle] for name, shares in found.success.items()})
    large = as_good_as_the_best({name: -excess[-1] for name, excess in found.excess.items()})
    run.figure(draw_success(found, (small, large)), "success")
    chosen = "; ".join(f"{name} {', '.join(map(str, setting))}" for name, setting in found.settings[1].items() if setting)
    run.say(f"chosen on other spin glasses, of 160 units: {chosen}")
    for words, (best, *ties) in ((f"20 units, {found.budgets[middle]} sweeps", small), ("160 units", large)):
        run.say(f"{words}: {best} first; not to be told from it: {', '.join(ties) or 'nobody'}")


# %% 8. Diagnostics
# Module 01 met split R-hat, the effective sample size and the autocorrelation time. What do they know of a chain that
# is stuck? A machine of 10 units that all want to agree has two modes, all up and all down, and a small bias makes
# "up" the heavier one. At T = 1 the way between them leads through states so improbable that Gibbs sampling needs
# millions of sweeps. How many, enumeration tells: with the matrix K of a sweep, F of part 1 and the magnetisation f,
# centred,
#     Σ_{t>=0} <f(s_0) f(s_t)> = Σ_{t>=0} (p∘f)ᵀ K^t f = (p∘f)ᵀ F f,    so    τ = 2 (p∘f)ᵀ F f / pᵀf² - 1.
# The effective sample size is here simply the number of draws over τ.


# Copied from 01_ebm_foundations.py: split
def split(chains):
    """Chains (n_chains, n_draws) cut in two, (2 n_chains, n_draws // 2): a drift then looks like a disagreement."""
    half = chains.shape[1] // 2
    return torch.cat([chains[:, :half], chains[:, -half:]])


# Copied from 01_ebm_foundations.py: split_r_hat
def split_r_hat(chains):
    """Split R-hat of chains (n_chains, n_draws): Gelman et al. (2013), p. 284; Vehtari et al. (2021), before ranks."""
    halves = split(chains)
    if (halves == halves[:, :1]).all():  # no chain moves; compared exactly, since a mean's rounding would hide it
        return halves.new_tensor(1.0 if (halves == halves[0, 0]).all() else math.inf)
    n, within = halves.shape[1], halves.var(1).mean()
    return ((n - 1) / n + halves.mean(1).var() / within).sqrt()


def gibbs_chains(s, W, b, temperature, n_draws):
    """The magnetisation of each chain of s (n_chains, n) after each of `n_draws` sweeps, (n_chains, n_draws)."""
    draws = []
    for _ in range(n_draws):
        s = gibbs_sweep(s, W, b, temperature)
        draws.append(s.mean(-1))
    return torch.stack(draws, 1).double()


def exact_time(kernel, p, f):
    """Integrated autocorrelation time of the function f (K,) along the stationary chain `kernel` (K, K), in draws."""
    f = f - p @ f
    summed = torch.linalg.solve(torch.eye(len(p), dtype=p.dtype) - kernel + p, f)  # F f
    return 2 * (p * f) @ summed / (p @ f**2) - 1


CASES = {  # name -> temperature, and how many of the 8 chains start in the lower mode
    "T = 1, all up": (1.0, 0),
    "T = 1, half down": (1.0, 4),
    "T = 4, half down": (4.0, 4),
}


class Diagnosis(NamedTuple):
    """What can be said of chains (n_chains, n_draws) without knowing what they sample, and how many of them never moved."""

    chains: torch.Tensor
    r_hat: float
    ess: float
    tau: float
    tau_sem: float
    switches: int
    n_modes: int
    n_stuck: int


def diagnose_chains(chains):
    """The Diagnosis of magnetisations `chains` (n_chains, n_draws). If no chain moves, each is worth one draw."""
    stuck = (chains == chains[:, :1]).all(1)
    common = chains.numel() / integrated_time(chains)[0].item()  # τ about one common mean: disagreement lowers the ESS
    r_hat, ess = float(split_r_hat(chains)), float(len(chains)) if stuck.all() else common
    switches = sum(int((chain[chain != 0].sign().diff() != 0).sum()) for chain in chains)  # a stop at 0 does not hide one
    n_modes = int((chains > 0).any()) + int((chains < 0).any())
    tau, tau_sem = map(float, integrated_time(chains, common_mean=False))
    return Diagnosis(chains, r_hat, ess, tau, tau_sem, switches, n_modes, int(stuck.sum()))


def diagnose_cases(n_draws, n=10, n_chains=8):
    """Of a machine of n units that want to agree: {case: (Diagnosis, exact mean magnetisation, its exact τ)}."""
    W, b = 0.45 * (1 - torch.eye(n)), torch.full((n,), 0.05)
    states, found = enumerate_states(n).double(), {}
    for name, (temperature, n_down) in CASES.items():
        p, m = boltzmann(states, W.double(), b.double(), temperature), states.mean(1)
        start = torch.ones(n_chains, n)
        start[:n_down] = -1
        tau = exact_time(gibbs_kernel(W.double(), b.double(), temperature), p, m).item()
        found[name] = diagnose_chains(gibbs_chains(start, W, b, temperature, n_draws)), (p @ m).item(), tau
    return found


def alarms(found, exact_tau):
    """Rows (text, whether it is an alarm): Vehtari et al. (2021) ask for R-hat < 1.01 and ESS > 400, Sokal (1989) for
    draws by far more than τ. The last row is what only enumeration knows."""
    n_chains, n_draws = found.chains.shape
    return [
        (f"split R-hat {found.r_hat:.3f}", found.r_hat > 1.01),
        (f"ESS {found.ess:,.0f} of {n_chains * n_draws:,}", found.ess < 400),
        (f"autocorrelation time {found.tau:.1f}", found.tau > n_draws / 50),
        (f"traces: modes {found.n_modes}, switches {found.switches:,}", found.n_modes == 2 and found.switches == 0),
        (f"chains that never moved: {found.n_stuck} of {n_chains}", found.n_stuck > 0),
        (f"exact autocorr. time {exact_tau:.2g}", exact_tau > n_draws / 50),
    ]


def draw_cases(cases):
    """Traces, and below them each diagnostic's verdict."""
    fig, axes = plt.subplots(2, 3, figsize=(12, 5.2), layout="constrained")
    for (name, (found, mean, exact_tau)), (ax, table) in zip(cases.items(), axes.T, strict=True):
        ax.plot(to_numpy(found.chains[:, :300].T), lw=0.8, alpha=0.8)
        ax.axhline(mean, color="k", ls="--")
        ax.set_title(f"{name}; exact mean {mean:.2f} (dashed)", fontsize=11)
        ax.set(ylim=(-1.15, 1.15), xlabel="sweep", yticks=[-1, 0, 1])
        table.axis("off")
        for row, (text, alarm) in enumerate(alarms(found, exact_tau)):
            y = 0.93 - 0.16 * row - 0.06 * (row == 5)
            table.text(0.0, y, text, weight="bold" if row == 5 else None, transform=table.transAxes)
            style = {"ha": "right", "weight": "bold", "color": "tab:red" if alarm else "tab:green"}
            table.text(1.0, y, "ALARM" if alarm else "fine", transform=table.transAxes, **style)
    axes[0, 0].set_ylabel("magnetisation, 8 chains")
    return fig


def section_diagnostics(run):
    """No diagnostic notices a mode that no chain has visited; chains started in both modes are given away by R-hat."""
    require(run.config, n_draws=20)
    cases = diagnose_cases(run.config.n_draws)
    for name, (found, exact_mean, exact_tau) in cases.items():
        run.metric(f"{name}: chains that never moved", found.n_stuck, None, ("alarm above", 0))
        if math.isfinite(found.r_hat):
            run.metric(f"{name}: split R-hat", found.r_hat, None, ("alarm above", 1.01))
        else:
            run.say(f"{name}: split R-hat is infinite, since the chains do not move, and do not agree")
        run.metric(f"{name}: effective sample size", found.ess, None, ("alarm below", 400))
        mean, sem = mean_and_sem(found.chains.mean(1))
        is_long = exact_tau < run.config.n_draws / 50  # only then are the errors to be believed
        within = [tolerance(error, len(found.chains)) if is_long else None for error in (found.tau_sem, sem)]
        run.metric(f"{name}: autocorrelation time", found.tau, found.tau_sem, ("exact", exact_tau), within[0])
        run.metric(f"{name}: mean magnetisation", mean, sem, ("exact", exact_mean), within[1])
    run.figure(draw_cases(cases), "stuck")
    for name, (found, _, exact_tau) in cases.items():
        *seen, exact = (alarm for _, alarm in alarms(found, exact_tau))
        verdict = "too short" if exact else "long enough"
        run.say(f"{name}: {sum(seen)} alarms of {len(seen)}; by the exact time the run is {verdict}")


SECTIONS = {
    "units": section_units,
    "learning": section_learning,
    "pairs": section_pairs,
    "hidden": section_hidden,
    "ising": section_ising,
    "clusters": section_clusters,
    "annealing": section_annealing,
    "diagnostics": section_diagnostics,
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
