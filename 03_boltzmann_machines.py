"""Module 03 - Boltzmann machines: binary units that sample, learn, hide, freeze and get stuck.

N binary units s with symmetric weights (no self-weights) and biases have the energy and the distribution

    E(s) = -½ Σ_ij W_ij s_i s_j - Σ_i b_i s_i,        p(s) = exp(-E(s)/T) / Z.                     (1)

Given all others, a unit sees only its field h_i = Σ_j W_ij s_j + b_i, and is on with probability

    P(s_i = on | rest) = σ((s_on - s_off) h_i / T) = σ(h_i/T) for 0/1,  σ(2h_i/T) for ±1 units.    (2)

Learning raises the likelihood by comparing correlations, those of the data and those of the machine:

    ∂ <log p>_data / ∂W_ij = (<s_i s_j>_data - <s_i s_j>_model) / T.                               (3)

With all weights equal and on a square grid, (1) is the Ising model, whose magnetisation is known exactly:

    |m| = (1 - sinh(2/T)⁻⁴)^(1/8) below Tc = 2/ln(1+√2) = 2.269,  and 0 above.                     (4)

Run      python 03_boltzmann_machines.py               all six sections, about 80 s on one CPU core
         python 03_boltzmann_machines.py --section ising --lattice 128
         (--device serves `units` and `ising`; the machines of the other sections are too small to gain by it)
Writes   outputs/03_boltzmann_machines/*.png and metrics.json
Before   modules 01 (sampling, R-hat) and 02 (the same energy, without noise)        Exercises  ex03_1 ... ex03_4
Sources  Ackley, Hinton & Sejnowski (1985); Hinton & Sejnowski (1983, 1986); Geman & Geman (1984); Besag (1975);
         Kappen & Rodriguez (1998); Tanaka (1998); Onsager (1944); Kaufman (1949); Yang (1952); Sokal (1989)
"""

import argparse
import contextlib
import errno
import itertools
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
import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_repeats: Annotated[int, "units: independent experiments, each with 64 chains"] = 40
    n_draw_sweeps: Annotated[int, "units: Gibbs sweeps of an experiment"] = 4096
    n_data: Annotated[int, "learning: patterns in a training set"] = 2000
    n_teachers: Annotated[int, "learning: machines to learn from, at each coupling strength"] = 10
    n_learn_steps: Annotated[int, "learning: gradient steps"] = 1000
    n_restarts: Annotated[int, "hidden: random initialisations, trained as one batch"] = 100
    n_hidden_steps: Annotated[int, "hidden: gradient steps"] = 800
    lattice: Annotated[int, "ising: side of the largest lattice, a multiple of 8"] = 64
    n_lattices: Annotated[int, "ising: independent lattices at each temperature"] = 12
    n_ising_sweeps: Annotated[int, "ising: sweeps, of which the first quarter is discarded"] = 8000
    n_instances: Annotated[int, "annealing: spin glasses"] = 20
    n_runs: Annotated[int, "annealing: runs of each method on each spin glass"] = 50
    n_budget: Annotated[int, "annealing: largest budget, in sweeps of single-spin updates"] = 512
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
    "lattice": 16,
    "n_lattices": 3,
    "n_ising_sweeps": 80,
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
# How good is a sampler? Count how often each of the 2^N states came up in n draws and compare with p:
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
    u = torch.rand_like(units)
    for i in range(units.shape[-2]):
        field = W[..., i : i + 1, :] @ units + b[..., i, None, None]
        on = u[..., i : i + 1, :] < torch.sigmoid(gap * field / temperature)
        units[..., i : i + 1, :] = on * (1.0 - off) + off
    return units.mT


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


def expected_tv(p, n_draws, kernel=None):
    """The expected total variation distance of n draws from p, independent or from the chain `kernel`."""
    v = p * (1 - p)
    if kernel is not None:
        v = 2 * p * (fundamental_matrix(kernel, p).diag() - p) - v
    return 0.5 * (2 * v / math.pi / n_draws).sqrt().sum()


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


def log_slope(x, y):
    """Least-squares slopes of log y (R, K) against log x (K,): (R,)."""
    log_x = x.log() - x.log().mean()
    return y.log() @ log_x / (log_x @ log_x)


def random_machine(shape, n, strength=1.0, bias=0.3, generator=None):
    """Symmetric weights N(0, strength²/n) without self-weights, and biases N(0, bias²): (*shape, n, n), (*shape, n)."""
    W = torch.randn(*shape, n, n, generator=generator).triu(1) * strength / n**0.5
    return W + W.mT, bias * torch.randn(*shape, n, generator=generator)


def random_spins(*shape, generator=None):
    """Fair ±1 coins."""
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


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


def section_units(run):
    """A unit is on with probability sigma((s_on - s_off) h/T); forget the 2 of +-1 units and you sample at 2T."""
    config, n = run.config, 5
    require(config, n_draw_sweeps=128)
    generator = torch.Generator().manual_seed(run.seed)
    W, b = random_machine((), n, strength=1.0, bias=0.3, generator=generator)
    states = enumerate_states(n).double()
    p = boltzmann(states, W.double(), b.double())
    kernel = gibbs_kernel(W.double(), b.double())
    wrong_kernel = gibbs_kernel(W.double(), b.double(), gap=1)
    p_double = boltzmann(states, W.double(), b.double(), temperature=2.0)
    floor = 0.5 * (p - p_double).abs().sum()
    moved = (p @ kernel - p).abs().max(), (p_double @ wrong_kernel - p_double).abs().max()
    run.metric("right_rule_changes_p_at_T_by", moved[0], against=("exact", 0), within=1e-12)
    run.metric("wrong_rule_changes_p_at_2T_by", moved[1], against=("exact", 0), within=1e-12)

    fig, (ax, ax2) = plt.subplots(1, 2, figsize=(11, 4.4), gridspec_kw={"width_ratios": [1.3, 1]})
    kinds = [
        ("pm1", "±1 units, σ(2h/T)", (W, b), -1, 2, "o", "tab:orange"),
        ("01", "0/1 units, σ(h/T)", to_binary_units(W, b), 0, 1, "s", "tab:blue"),
        ("wrong", "±1 units, σ(h/T): the mistake", (W, b), -1, 1, "^", "tab:red"),
    ]
    for name, label, (weights, biases), off, gap, marker, colour in kinds:
        arrays = (weights.to(run.device), biases.to(run.device))
        n_draws, tv = sampled_tv(*arrays, off, gap, p.float().to(run.device), config.n_repeats, config.n_draw_sweeps)
        mean, sem = mean_and_sem(tv)
        ax.errorbar(*map(to_numpy, (n_draws, mean, sem)), fmt=marker, ms=6, color=colour, label=label)
        if name == "wrong":
            noise = expected_tv(p_double, n_draws[-1], wrong_kernel)  # by the triangle inequality, it is no further off
            run.metric("tv_wrong_rule", mean[-1], sem[-1], against=("exact TV(T, 2T)", floor), within=noise)
        else:
            slope, slope_sem = mean_and_sem(log_slope(n_draws, tv))
            against = ("theory", -0.5)
            run.metric(f"slope_{name}", slope, slope_sem, against=against, within=4 * slope_sem)
            expected = expected_tv(p, n_draws[-1], kernel)
            tolerance = 4 * sem[-1] + 0.01 * expected  # the central limit theorem is not yet exact
            run.metric(f"tv_{name}", mean[-1], sem[-1], against=("exact", expected), within=tolerance)
    line = torch.stack([expected_tv(p, n, kernel) for n in n_draws])
    ax.plot(to_numpy(n_draws), to_numpy(line), "k--", label="theory for this chain, slope -1/2")
    ax.axhline(float(floor), color="k", ls=":", label="exact distance of T from 2T")
    ax.set(xscale="log", yscale="log", xlabel="number of draws n", ylabel="total variation to the exact p")
    ax.set_title("Right samplers fall as $n^{-1/2}$, the wrong one stays")
    ax.legend(frameon=False)

    # A scatter plot of correlations, judged by its r, calls the wrong sampler excellent: 2T shrinks all of them alike.
    n = 10
    W, b = random_machine((), n, strength=0.5, bias=0.0, generator=generator)
    states = enumerate_states(n)
    truth = moments(states, boltzmann(states, W, b))[0]
    s, total = random_spins(4000, n), torch.zeros(10, n, n)  # ten groups of chains, for the errors
    for sweep in range(-20, 100):
        s = gibbs_sweep(s, W, b, gap=1)
        group = s.view(10, -1, n)
        total += group.mT @ group / group.shape[1] / 100 * (sweep >= 0)
    i, j = torch.triu_indices(n, n, 1)
    x, y = truth[i, j], total[:, i, j]
    r, r_sem = mean_and_sem(torch.stack([torch.corrcoef(torch.stack([x, each]))[0, 1] for each in y]))
    slope, slope_sem = mean_and_sem(y @ x / (x @ x))
    run.metric("wrong_rule_correlation_r", r, r_sem, against=("a perfect sampler", 1))
    run.metric("wrong_rule_slope", slope, slope_sem, against=("a perfect sampler", 1))
    ax2.plot(to_numpy(x), to_numpy(y.mean(0)), "^", color="tab:red", label="the mistake")
    ax2.axline((0, 0), slope=1, color="k", ls="--", label="truth")
    ax2.set(xlabel="exact $\\langle s_i s_j\\rangle$ at T", ylabel="sampled $\\langle s_i s_j\\rangle$")
    ax2.set_title(f"r = {r:.3f} does not tell that the slope is {slope:.2f}")
    ax2.legend(frameon=False)
    fig.subplots_adjust(left=0, right=1, wspace=0.2)
    run.figure(fig, "total_variation")


# %% 2. Learning
# The log likelihood of one pattern at T = 1 is log p(s) = -E(s) - log Z. Differentiate both terms in the weight of the
# pair (i, j), which occurs twice in ½ΣΣ, as W_ij and as W_ji, and so once in all:
#     ∂(-E)/∂W_ij = s_i s_j,     ∂ log Z/∂W_ij = (1/Z) Σ_s exp(-E(s)) s_i s_j = <s_i s_j>_model.
# Average over data: eq. (3); likewise <s_i>_data - <s_i>_model for b_i. At the maximum the machine has the data's
# moments. (An autograd that treats W_ij and W_ji as two parameters finds half of it for each: the factor 2 that
# readers lose here.)
#
# The Hessian of the log likelihood is minus the covariance of all s_i s_j and s_i: concave, hence one maximum. And by
# Wilks (1938), if the truth is such a machine, maximum likelihood on n patterns with d = N(N+1)/2 parameters ends
#     KL(truth || fit) = d/(2n)      above the truth, on average, for large n: the price of finite data.
#
# What if 2^N is too many? Four ways out, each a different answer to "where do I get <s_i s_j>_model from?":
# - Gibbs: average over chains that go on from step to step while the weights change. It works for as long as they mix.
# - Pseudo-likelihood (Besag 1975): replace log p(s) by Σ_i log p(s_i | rest) = Σ_i log σ(2 s_i h_i). No Z at all. Since
#       ∂ log σ(2 s h)/∂h = 2s σ(-2sh) = s (1 - tanh(sh)) = s - tanh h,
#   the pair's gradient is <(s_i - tanh h_i) s_j + (s_j - tanh h_j) s_i>_data. Its maximum is the truth as n grows.
# - Naive mean field (Kappen & Rodriguez 1998): say m_i = tanh(Σ_j W_ij m_j + b_i). Solve for b and differentiate in m;
#   ∂b/∂m is the inverse of the response ∂m/∂b, which at T = 1 is the covariance C of the data, so
#       (C⁻¹)_ij = ∂b_i/∂m_j = δ_ij/(1 - m_i²) - W_ij:    all weights by one matrix inversion.
# - TAP (Tanaka 1998) adds Onsager's reaction term: m_i = tanh(Σ_j W_ij m_j + b_i - m_i Σ_j W_ij² (1 - m_j²)), and then
#       (C⁻¹)_ij = -W_ij - 2 W_ij² m_i m_j  for i ≠ j:    a quadratic, solved on the branch that vanishes with C⁻¹.


def moments(states, weights):
    """<s sᵀ> (..., n, n) and <s> (..., n) of `states` (K, n) under `weights` (..., K)."""
    products = (states[:, :, None] * states[:, None, :]).flatten(1)
    return (weights @ products).unflatten(-1, states.shape[1:] * 2), weights @ states


def machine_log_weights(states, W, b):
    """-E of all `states` (K, n) in many machines at once, (..., K): one matmul, as the products s_i s_j are shared."""
    products = (states[:, :, None] * states[:, None, :]).flatten(1)
    return 0.5 * W.flatten(-2) @ products.T + b @ states.T


def off_diagonal(matrix):
    """`matrix` (..., n, n) with zeros on the diagonal: no unit has a weight to itself."""
    return matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))


def exact_gradient(W, b, states, p_data):
    """Eq. (3) by enumeration, at T = 1: gradients of the mean log likelihood in each pair's weight and in each bias."""
    p_model = torch.softmax(machine_log_weights(states, W, b), -1)
    correlation, mean = moments(states, p_data - p_model)
    return off_diagonal(correlation), mean


def pseudo_likelihood_gradient(W, b, states, p_data):
    """Gradient of <Σ_i log p(s_i | rest)>_data (Besag 1975), ±1 units: in each pair's weight and in each bias."""
    residual = p_data.unsqueeze(-1) * (states - torch.tanh(states @ W + b.unsqueeze(-2)))
    gradient = residual.mT @ states
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
    return W, b


def naive_mean_field(correlation, mean):
    """Kappen & Rodriguez (1998): weights and biases from moments (..., n, n), (..., n), ±1 units, T = 1."""
    inverse = torch.linalg.pinv(correlation - mean.unsqueeze(-1) * mean.unsqueeze(-2), hermitian=True)
    W = off_diagonal(-inverse)
    return W, torch.atanh(mean) - (W @ mean.unsqueeze(-1)).squeeze(-1)


def tap_mean_field(correlation, mean):
    """Tanaka (1998): as above with Onsager's reaction term. Where the quadratic has no root, its vertex is taken."""
    product = mean.unsqueeze(-1) * mean.unsqueeze(-2)
    inverse = torch.linalg.pinv(correlation - product, hermitian=True)
    root = (1 - 8 * product * inverse).clamp(min=0).sqrt()
    W = off_diagonal(-2 * inverse / (1 + root))  # = (root - 1)/(4 m_i m_j), and finite at m = 0
    variance = 1 - mean**2
    reaction = mean * (W**2 @ variance.unsqueeze(-1)).squeeze(-1)
    return W, torch.atanh(mean) - (W @ mean.unsqueeze(-1)).squeeze(-1) + reaction


def autograd_error(n, generator):
    """Largest difference of `exact_gradient` from autograd through log Z, one parameter a pair, (float64)."""
    states = enumerate_states(n).double()
    W, b = (a.double().requires_grad_() for a in random_machine((), n, generator=generator))
    p_data = torch.softmax(torch.randn(len(states), generator=generator).double(), 0)
    energies = machine_energy(states, W.triu(1) + W.triu(1).T, b)
    log_likelihood = -(p_data @ energies) - torch.logsumexp(-energies, 0)
    auto_W, auto_b = torch.autograd.grad(log_likelihood, (W, b))
    grad_W, grad_b = exact_gradient(W.detach(), b.detach(), states, p_data)
    return max((auto_W - grad_W.triu(1)).abs().max(), (auto_b - grad_b).abs().max())


def fit_by_every_method(states, p_data, n_steps, generator):
    """Fit one machine to each row of `p_data` (M, 2^n), by each method: name -> (W, b, seconds for all M)."""
    correlation, mean = moments(states.double(), p_data)
    limit = 1 - 1e-3  # a unit that never moved would have no finite bias
    mean = mean.clamp(-limit, limit)
    zeros, p = (torch.zeros(correlation.shape), torch.zeros(mean.shape)), p_data.float()
    chains = random_spins(len(p), 200, states.shape[1], generator=generator)
    gibbs = persistent_gradient(chains, correlation.float(), mean.float())
    fits = {
        "independent": lambda: (zeros[0].double(), torch.atanh(mean)),
        "naive_mean_field": lambda: naive_mean_field(correlation, mean),
        "TAP": lambda: tap_mean_field(correlation, mean),
        "Gibbs": lambda: ascend(gibbs, *zeros, n_steps, 0.05),
        "pseudo_likelihood": lambda: ascend(lambda W, b: pseudo_likelihood_gradient(W, b, states, p), *zeros, n_steps, 0.05),
        "exact": lambda: ascend(lambda W, b: exact_gradient(W, b, states, p), *zeros, n_steps, 0.1),
    }
    fitted = {}
    for name, fit in fits.items():
        start = time.perf_counter()
        W, b = fit()
        must_be_finite(f"learning by {name.replace('_', ' ')}", W, b)
        fitted[name] = W, b, time.perf_counter() - start
    return fitted


def gradient_seconds(n, n_data, generator, n_calls=2):
    """Seconds of one exact and of one pseudo-likelihood gradient of a machine of n units on `n_data` patterns."""
    W, b = random_machine((), n, generator=generator)
    states, patterns = enumerate_states(n), random_spins(n_data, n, generator=generator)
    seconds = []
    for gradient, x in ((exact_gradient, states), (pseudo_likelihood_gradient, patterns)):
        p = torch.full((len(x),), 1 / len(x))
        times = []
        for _ in range(n_calls):
            start = time.perf_counter()
            gradient(W, b, x, p)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds


def section_learning(run):
    """Learning matches the moments of data and model; pseudo-likelihood needs no model average and loses little."""
    config, n = run.config, 10
    require(config, n_data=100)
    generator = torch.Generator().manual_seed(run.seed)
    run.metric("gradient_minus_autograd", autograd_error(8, generator), against=("zero", 0), within=1e-5)

    # Teachers at six strengths (at 1 the infinite machine becomes a spin glass), several of each, as one batch of
    # machines. A teacher draws n_data patterns, exactly. Two judges: the teacher itself, an infinite test set, whose
    # ceiling is minus the teacher's entropy; and the patterns, whose ceiling is minus their empirical entropy, reached
    # by memorising them.
    strengths = torch.linspace(0.25, 1.5, 6)
    W, b = random_machine((6, config.n_teachers), n, generator=generator)
    W, b = (W * strengths[:, None, None, None]).flatten(0, 1), b.flatten(0, 1)
    states = enumerate_states(n)
    p_true = torch.softmax(machine_log_weights(states, W, b).double(), -1)
    drawn = torch.multinomial(p_true, config.n_data, replacement=True, generator=generator)
    p_data = torch.zeros_like(p_true).scatter_add_(1, drawn, torch.ones(drawn.shape).double()) / config.n_data
    fitted = fit_by_every_method(states, p_data, config.n_learn_steps, generator)

    fig, (ax, ax2) = plt.subplots(1, 2, figsize=(12, 4.6), gridspec_kw={"width_ratios": [1.5, 1]})
    at_one = slice(3 * config.n_teachers, 4 * config.n_teachers)  # the teachers of strength 1
    ceiling_test = torch.special.xlogy(p_true, p_true).sum(1)
    ceiling_data = torch.special.xlogy(p_data, p_data).sum(1)
    kl, colours = {}, ["tab:gray", "tab:green", "tab:olive", "tab:red", "tab:purple", "tab:orange"]
    for (name, (W, b, seconds)), marker, colour in zip(fitted.items(), "vs^DPo", colours, strict=True):
        log_p = torch.log_softmax(machine_log_weights(states.double(), W.double(), b.double()), -1)
        test, train = (p_true * log_p).sum(1), (p_data * log_p).sum(1)
        kl[name] = (ceiling_test - test).view(6, -1)
        loss_sem = mean_and_sem(kl[name][3])[1]  # the spread of the distance to the ceiling, not of the ceilings
        against = ("-teacher's entropy", ceiling_test[at_one].mean())
        run.metric(f"test_{name.lower()}", test[at_one].mean(), loss_sem, against)
        loss_sem = mean_and_sem((ceiling_data - train)[at_one])[1]
        against = ("-data's entropy", ceiling_data[at_one].mean())
        run.metric(f"train_{name.lower()}", train[at_one].mean(), loss_sem, against)
        run.metric(f"fit_{name.lower()}_seconds", seconds)
        label = name.replace("_", " ")
        points = map(to_numpy, (strengths, *mean_and_sem(kl[name].T)))
        ax.errorbar(*points, marker=marker, ms=6, color=colour, label=label)
    price = n * (n + 1) / 4 / config.n_data  # d/(2n), d = 55 parameters
    mild = (kl["exact"][:4] / price).flatten()
    # 2n KL is chi-squared with d degrees of freedom, so KL/(d/2n) has variance 2/d for each teacher
    tolerance = 4 * (4 / (n * (n + 1)) / len(mild)) ** 0.5
    run.metric("exact_kl_over_d_2n", *mean_and_sem(mild), against=("Wilks (1938)", 1), within=tolerance)
    loss, loss_sem = mean_and_sem(kl["pseudo_likelihood"][3] / kl["exact"][3])
    run.metric("pseudo_kl_over_exact_kl", loss, loss_sem, against=("exact", 1))
    ax.axhline(price, color="k", ls="--", label="theory of exact fits: d/(2n)")
    ax.set(yscale="log", xlabel="coupling strength of the teacher", ylabel="KL(teacher || fit), nats")
    ax.set_title("Pseudo-likelihood matches exact learning;\nmean field fails where couplings are strong")
    ax.legend(frameon=False)

    sizes = [6, 8, 10, 12, 14, 16]
    exact, pseudo = zip(*(gradient_seconds(size, config.n_data, generator) for size in sizes), strict=True)
    run.metric("exact_gradient_16_units_seconds", exact[-1])
    run.metric("pseudo_gradient_16_units_seconds", pseudo[-1])
    ax2.plot(sizes, [1e3 * t for t in exact], "o-", color="tab:orange", label="exact: $2^N$ states")
    label = f"pseudo-likelihood: {config.n_data} patterns"
    ax2.plot(sizes, [1e3 * t for t in pseudo], "P-", color="tab:purple", label=label)
    ax2.set(yscale="log", xlabel="number of units N", ylabel="one gradient, ms")
    ax2.set_title("Exact learning's price\nexplodes with N")
    ax2.legend(frameon=False)
    fig.subplots_adjust(left=0, right=1, wspace=0.17)
    run.figure(fig, "methods")


# %% 3. Hidden units earn their keep
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
# that fail at the 4-2-4 encoder give two patterns one code, I = ln 4 - ½ ln 2, and no small step leads out of it.


def visible_log_likelihood(W, b, states, p_data, n_hidden):
    """<log p(v)>_data by enumeration, (M,): `states` of visible, then hidden units; p_data (2^n_visible,)."""
    log_weights = machine_log_weights(states, W, b)
    log_visible = log_weights.unflatten(-1, (-1, 2**n_hidden)).logsumexp(-1)
    return (log_visible - log_weights.logsumexp(-1, keepdim=True)) @ p_data


def clamped_gradient(W, b, states, p_data, n_hidden):
    """Gradient of `visible_log_likelihood` in each pair's weight and in each bias: clamped minus free moments."""
    log_weights = machine_log_weights(states, W, b)
    p_hidden = log_weights.unflatten(-1, (-1, 2**n_hidden)).softmax(-1)  # p(h | v)
    clamped = (p_data.unsqueeze(-1) * p_hidden).flatten(-2)
    correlation, mean = moments(states, clamped - log_weights.softmax(-1))
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
    reached = visible_log_likelihood(W, b, states, p_data, n_hidden).double()
    must_be_finite("learning with hidden units", reached)
    return reached, W, b


def section_hidden(run):
    """A visible machine holds pairs and no more; hidden units hold parity, and carry a code between two groups."""
    config, log2, tolerance = run.config, math.log(2), 0.1
    generator = torch.Generator().manual_seed(run.seed)
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.4), gridspec_kw={"width_ratios": [1, 1, 0.7]})
    tasks = [
        ("encoder", encoder_task, 0.3, [-4 * log2 + min(n_hidden, 2) * log2 for n_hidden in range(4)]),
        ("parity", parity_task, 0.1, [-4 * log2, -3 * log2, -3 * log2, -3 * log2]),
    ]
    for ax, (name, task, rate, best) in zip(axes, tasks, strict=False):
        for n_hidden in range(4):
            settings = config.n_restarts, config.n_hidden_steps, rate, generator
            reached, W, b = train_restarts(task, n_hidden, *settings)
            against = ("exact supremum", best[n_hidden])
            run.metric(f"{name}_{n_hidden}_hidden_best", reached.max(), against=against, within=tolerance)
            success, success_sem = mean_and_sem((reached > best[3] - tolerance).double())
            if best[n_hidden] == best[3]:
                run.metric(f"{name}_{n_hidden}_hidden_success", success, success_sem)
            x = n_hidden + 0.3 * torch.rand(len(reached), generator=generator) - 0.15
            ax.plot(to_numpy(x), to_numpy(reached), "o", color="tab:orange", alpha=0.4, ms=4, mew=0)
            label = None if n_hidden else "exact best of any weights"
            ax.plot([n_hidden - 0.4, n_hidden + 0.4], [best[n_hidden]] * 2, "k--", label=label)
            ax.text(n_hidden, 0.93, f"{success:.0%}", ha="center", transform=ax.get_xaxis_transform())
            if name == "encoder" and n_hidden == 2:
                winner = reached.argmax()
                log_weights = machine_log_weights(encoder_task(2)[0], W[winner], b[winner]).unflatten(-1, (-1, 4))
                p_hidden = log_weights.softmax(-1)[encoder_task(2)[1] > 0]  # (4 patterns, 4 codes)
                codes = p_hidden @ enumerate_states(2, off=0)
        ax.set(xticks=range(4), xlabel="hidden units (at the top: restarts that succeed)", ylabel="log likelihood, nats")
        ax.set_ylim(top=best[3] + 0.25 * (best[3] - best[0]))
    axes[0].plot([1.6, 3.4], [-2.5 * log2] * 2, "k:", label="two patterns share a code")
    axes[0].legend(frameon=False, loc="lower right")
    axes[1].legend(frameon=False, loc="center")
    axes[0].set_title("4-H-4 encoder: two hidden units suffice,\nbut few restarts find the code")
    axes[1].set_title("Parity of 4 units: no visible machine\nbeats coins, one hidden unit does")
    axes[2].imshow(to_numpy(codes), cmap="gray", vmin=0, vmax=1)
    for k, j in itertools.product(range(4), range(2)):
        colour = "black" if codes[k, j] > 0.5 else "white"
        axes[2].text(j, k, f"{codes[k, j]:.2f}", ha="center", va="center", color=colour)
    axes[2].set(xticks=[0, 1], yticks=range(4), yticklabels=range(1, 5), xlabel="hidden unit", ylabel="pattern")
    axes[2].set_title("The best machine's code:\nP(hidden unit on | pattern)")
    fig.subplots_adjust(left=0, right=1, wspace=0.24)
    run.figure(fig, "restarts")


# %% 4. Ising
# All weights 1 between neighbours on an L x L torus, no biases: the machine that physicists solved. Onsager (1944) found
# its free energy, Yang (1952) its magnetisation, eq. (4), Kaufman (1949) the partition function of every finite torus:
#     Z = ½ (2 sinh 2K)^(L²/2) [Π 2cosh(½Lγ_odd) + Π 2sinh(½Lγ_odd) + Π 2cosh(½Lγ_even) + Π 2sinh(½Lγ_even)],
#     cosh γ_l = cosh²2K / sinh 2K - cos(πl/L),  l = 0 ... 2L-1,  K = 1/T,
# except γ_0 = 2K + ln tanh K, which is negative above Tc. The energy per site is -∂ log Z/∂K / L². Products of L numbers
# overflow, so we take logarithms, and write sinh = cosh tanh to keep the signs:
#     log Z = ½L² log(2 sinh 2K) - log 2 + log[C_odd (1 + Π tanh_odd) + C_even (1 + Π tanh_even)],  C = Π 2cosh.
#
# Sampling. On a chessboard, a black site's four neighbours are white: all black sites are independent given the white
# ones and can be updated at once, then all white ones. Each colour is its own array (n_temps, n_lattices, L, L/2):
# black site c of row i is column 2c + i mod 2; its neighbours are site c of the white rows above, below and i, and one
# more of row i: c - 1 in even rows, c + 1 in odd ones. With k of its neighbours up, h = 2k - 4, and (2) reads
#     P(up) = σ(2(2k - 4)/T):    five numbers for each temperature.
# So a uniform 16-bit integer r is compared with five thresholds t_k such that r < t_k with probability P(up | k). Since
# t_k grows with k, r < t_k exactly if at most k of the thresholds are <= r: no float is needed in the inner loop.
# (Rounding P to 16 bits moves the energy at T = 1.5 by 1e-4, three standard errors, as Kaufman's value told us. So t_k
# is rounded up or down at random, anew for each half-sweep: right on average.)
#
# How far to trust it: a mean over n correlated sweeps is worth n/τ independent ones, where
#     τ = 1 + 2 Σ_{t>=1} ρ(t),    the integrated autocorrelation time of module 01,
# and the sum is cut at the first W >= 2.5 τ(W) (Sokal 1989, whose τ is half of this one): beyond it there is only noise.
# At Tc τ grows as L^z, with z = 2.17 for local rules that do not conserve m (Nightingale & Blote 1996): *critical slowing
# down*. All lattices start ordered, and the first quarter of the sweeps is discarded. From random spins about a third of
# the cold lattices would freeze into stripes (Spirin, Krapivsky & Redner 2001). Near Tc a quarter of the run is just a few
# times the memory τ/2, as a metric says: enough to forget the start, but few independent samples, as the error bars show.


def onsager_yang(temperature):
    """Spontaneous magnetisation of the infinite lattice (Yang 1952)."""
    return (1 - torch.sinh(2 / temperature) ** -4).clamp(min=0) ** 0.125


def kaufman_log_z(coupling, side):
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


def kaufman_energy(temperature, side):
    """Exact energy per site of the side x side torus, -∂ log Z/∂K / L², at each temperature (n_temps,)."""
    coupling = (1 / temperature.double()).requires_grad_()
    (slope,) = torch.autograd.grad(kaufman_log_z(coupling, side).sum(), coupling)
    return -slope / side**2


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


def weighted_slope(x, y, error):
    """Slope of the line through points (x, y) whose y have standard errors `error`, all (K,), and its own standard error.
    If an error is unknown or 0, all points count alike, and the slope's is unknown (nan)."""
    known = bool(((error > 0) & error.isfinite()).all())
    precision = error**-2 if known else torch.ones_like(error)
    weight = precision / precision.sum()
    centred = x - weight @ x
    slope = (weight * centred) @ y / ((weight * centred) @ centred)
    return slope, ((precision * centred) @ centred) ** -0.5 if known else slope * math.nan


def section_ising(run):
    """The Ising machine follows Yang's magnetisation and Kaufman's energy; at Tc the sampler itself slows down."""
    config, t_c = run.config, 2 / math.log(1 + 2**0.5)
    require(config, n_ising_sweeps=20)
    if config.lattice % 8:
        sys.exit(f"--lattice must be a multiple of 8, not {config.lattice}")
    u = torch.linspace(-1, 1, 13)
    temperature = t_c + 0.8 * u * u.abs()  # dense around Tc, which is in the middle
    burn_in, middle = config.n_ising_sweeps // 4, len(u) // 2
    sides, times = [config.lattice // 4, config.lattice // 2, config.lattice], []
    for side in sides:
        start = time.perf_counter()
        m, e, lattices = simulate_ising(side, temperature.to(run.device), config.n_lattices, config.n_ising_sweeps)
        seconds = time.perf_counter() - start
        m, e = m[..., burn_in:].abs().double(), e[..., burn_in:].double()
        times.append(integrated_time(m))
    run.metric("site_updates_per_second", side**2 * len(u) * config.n_lattices * config.n_ising_sweeps / seconds)

    # The last, largest lattices, each one independent of the others, against theory; errors are errors over lattices.
    (m, m_sem), (e, e_sem) = mean_and_sem(m.mean(-1).T), mean_and_sem(e.mean(-1).T)
    exact_m, exact_e = onsager_yang(temperature), kaufman_energy(temperature, side)
    cold, hot = 3, -4
    for i, where in ((cold, "cold"), (middle, "at_tc"), (hot, "hot")):
        against = (f"Kaufman, T = {temperature[i]:.3f}", exact_e[i])
        run.metric(f"energy_{where}", e[i], e_sem[i], against=against, within=5 * e_sem[i])
    against = (f"Yang, T = {temperature[cold]:.3f}", exact_m[cold])
    run.metric("magnetisation_cold", m[cold], m_sem[cold], against=against, within=5 * m_sem[cold])
    if config.n_lattices > 1:
        worst = ((e - exact_e).abs() / (e_sem + 1e-6)).max()  # over all temperatures
        run.metric("worst_energy_error_in_sem", worst, against=("exact", 0), within=5)

    tau, tau_sem = torch.stack([t[0] for t in times]), torch.stack([t[1] for t in times])  # (3 sides, n_temps)
    peak = temperature[tau[-1].argmax()]
    run.metric("tau_at_tc", tau[-1, middle], tau_sem[-1, middle])
    run.metric("tau_hottest", tau[-1, -1], tau_sem[-1, -1])
    foldings = 2 * burn_in / tau[-1, middle]  # the start is forgotten by a factor exp(-this)
    run.metric("discarded_e_foldings_at_tc", foldings, foldings * tau_sem[-1, middle] / tau[-1, middle])
    # A finite lattice's peak lies about Tc/L away from Tc, and the grid of temperatures is 0.022 wide there.
    tolerance = t_c / side + temperature[middle + 1] - t_c
    run.metric("tau_peak_temperature", peak, against=("Tc", t_c), within=tolerance)
    z, z_sem = weighted_slope(torch.tensor(sides).double().log(), tau[:, middle].log(), tau_sem[:, middle] / tau[:, middle])
    against = ("Nightingale & Blote (1996)", 2.1665)
    run.metric("dynamic_exponent_z", z, z_sem, against=against, within=4 * z_sem)

    fig, axes = plt.subplots(1, 3, figsize=(12, 4))
    fine = torch.linspace(float(temperature[0]), float(temperature[-1]), 400)
    axes[0].plot(to_numpy(fine), to_numpy(onsager_yang(fine)), "k--", label="Yang, $L = \\infty$")
    axes[0].errorbar(*map(to_numpy, (temperature, m, m_sem)), fmt="o", color="tab:orange", label=f"Gibbs, L = {side}")
    axes[0].set(title="Magnetisation meets Yang's curve below Tc", ylabel="|m|")
    axes[1].plot(to_numpy(fine), to_numpy(kaufman_energy(fine, side)), "k--", label=f"Kaufman, L = {side}")
    axes[1].errorbar(*map(to_numpy, (temperature, e, e_sem)), fmt="o", color="tab:orange", label=f"Gibbs, L = {side}")
    axes[1].set(title="Energy meets Kaufman's, at every T", ylabel="energy per site")
    for row, colour in enumerate(["tab:green", "tab:blue", "tab:orange"]):
        points = map(to_numpy, (temperature, tau[row], tau_sem[row]))
        axes[2].errorbar(*points, fmt="o-", ms=4, color=colour, label=f"L = {sides[row]}")
    axes[2].set(yscale="log", title="The sampler slows down at Tc", ylabel="autocorrelation time of |m|, sweeps")
    for ax in axes:
        ax.axvline(t_c, color="k", ls=":", lw=1)
        ax.set_xlabel("temperature T")
        ax.legend(frameon=False, fontsize=9)
    fig.subplots_adjust(left=0, right=1, wspace=0.24)
    run.figure(fig, "exact")

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.3))
    for ax, i, text in zip(axes, (cold, middle, -1), ("order", "patches of every size", "disorder"), strict=True):
        ax.imshow(to_numpy(lattices[i, 0]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=f"T = {temperature[i]:.2f}: {text}")
    run.figure(fig, "snapshots")


# %% 5. Annealing
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
# single-unit updates (parallel tempering pays for all its replicas) and succeeds if it *met* the ground state. And the
# honest baseline: greedy descent from a random state, again and again, for as many updates. On 20 units that is hard to
# beat. (On large machines nobody knows the ground state for certain: there the lowest energies found are compared.)


def spin_glasses(n_instances, n, generator):
    """Sherrington & Kirkpatrick (1975): symmetric couplings N(0, 1/n), (n_instances, n, n)."""
    return random_machine((n_instances,), n, generator=generator)[0]


def ground_energies(W):
    """The exact minimum of -½ sᵀWs over ±1 units, for each W of (n_instances, n, n), by enumeration in two halves."""
    n = W.shape[-1]
    left, right = enumerate_states(n // 2 - 1), enumerate_states(n - n // 2)
    left = torch.cat([torch.ones(len(left), 1), left], 1)  # s and -s have one energy: fix s_0 = 1
    half, lowest = n // 2, []
    for w in W:  # an instance at a time: the table has 2^(n-1) entries
        inner_left = machine_energy(left, w[:half, :half], torch.zeros(half))
        inner_right = machine_energy(right, w[half:, half:], torch.zeros(n - half))
        lowest.append((inner_left[:, None] + inner_right - left @ w[:half, half:] @ right.T).min())
    return torch.stack(lowest)


def schedule(kind, n_sweeps, hot=1.5, cold=0.2):
    """Temperatures (n_sweeps,): "geometric" and "linear" go from hot to cold; "logarithmic" is hot ln 2/ln(1 + t)."""
    t = torch.arange(1, n_sweeps + 1)
    progress = (t - 1) / max(n_sweeps - 1, 1)
    if kind == "geometric":
        return hot * (cold / hot) ** progress
    if kind == "linear":
        return hot + (cold - hot) * progress
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


LADDER = 1.5 * (0.2 / 1.5) ** torch.linspace(0, 1, 6)  # the temperatures of parallel tempering, hot to cold
METHODS = {  # name -> lowest energy met by each run, (n_instances, n_runs), on couplings W with a budget of n_sweeps
    "restarted descent": quench_restarts,
    "parallel tempering": lambda W, n_sweeps, n_runs: parallel_tempering(W, LADDER, n_sweeps // len(LADDER), n_runs),
    "geometric": lambda W, n_sweeps, n_runs: anneal(W, schedule("geometric", n_sweeps), n_runs),
    "linear": lambda W, n_sweeps, n_runs: anneal(W, schedule("linear", n_sweeps), n_runs),
    "logarithmic": lambda W, n_sweeps, n_runs: anneal(W, schedule("logarithmic", n_sweeps), n_runs),
}


def section_annealing(run):
    """Annealing is judged at equal updates: on 20 units greedy restarts win, on 160 units annealing does."""
    config, n = run.config, 20
    require(config, n_budget=8)
    generator = torch.Generator().manual_seed(run.seed)
    W = spin_glasses(config.n_instances, n, generator)
    ground = ground_energies(W)
    budgets = [2**k for k in range(3, 20) if 2**k <= config.n_budget]
    constant = n * (-ground_energies(-W) - ground)  # N (max E - min E), Geman & Geman (1984), theorem B
    against = ("updates given here", math.log10(budgets[-1] * n))
    updates, updates_sem = mean_and_sem(constant / 0.2 / math.log(10))
    run.metric("theorem_log10_updates_to_T_0.2", updates, updates_sem, against=against)

    fig, (ax, ax2) = plt.subplots(1, 2, figsize=(12, 4.6))
    shown = budgets[len(budgets) // 2]
    sizes, large_budget = [20, 40, 80, 160], min(256, config.n_budget)
    found = {name: [] for name in METHODS}
    for size in sizes:
        large = spin_glasses((config.n_instances + 1) // 2, size, generator)
        for name, method in METHODS.items():
            found[name].append(method(large, large_budget, 10).double() / size)
    for (name, method), marker in zip(METHODS.items(), "oPs^v", strict=True):
        met = [method(W, budget, config.n_runs) < ground[:, None] + 1e-4 for budget in budgets]
        success = torch.tensor([mean_and_sem(share.double().mean(1)) for share in met])  # (budgets, 2)
        met_shown, met_sem = success[budgets.index(shown)]
        run.metric(f"success_{shown}_{name.replace(' ', '_')}", met_shown, met_sem)
        colour = "k" if name == "restarted descent" else None
        ax.errorbar(budgets, *to_numpy(success.T), fmt=f"{marker}-", color=colour, label=name)
        lowest = [torch.stack([found[other][k].amin(1) for other in METHODS]).amin(0) for k in range(len(sizes))]
        excess = torch.tensor([mean_and_sem(found[name][k].mean(1) - lowest[k]) for k in range(len(sizes))])
        ax2.errorbar(sizes, *to_numpy(excess.T), fmt=f"{marker}-", color=colour, label=name)
        run.metric(f"excess_energy_{sizes[-1]}_{name.replace(' ', '_')}", excess[-1, 0], excess[-1, 1])
    ax.set(xscale="log", xlabel="budget, sweeps of 20 single-unit updates", ylabel="runs that met the ground state")
    ax.set_title("20 units: greedy restarts win")
    ax2.set(xscale="log", xlabel="number of units", ylabel="lowest energy per unit, above the best run's")
    ax2.set_xticks(sizes, sizes)
    ax2.minorticks_off()
    ax2.set_title(f"{large_budget} sweeps: at {sizes[-1]} units cooling wins")
    ax.legend(frameon=False)
    fig.subplots_adjust(left=0, right=1, wspace=0.2)
    run.figure(fig, "success")


# %% 6. Diagnostics
# Module 01 met split R-hat, the effective sample size and the autocorrelation time. What do they know of a chain that
# is stuck? A machine of 10 units that all want to agree has two modes, all up and all down, and a small bias makes
# "up" the heavier one. At T = 1 the way between them leads through states so improbable that Gibbs sampling needs
# millions of sweeps. How many, enumeration tells: with the matrix K of a sweep, F of part 1 and the magnetisation f,
# centred,
#     Σ_{t>=0} <f(s_0) f(s_t)> = Σ_{t>=0} (p∘f)ᵀ K^t f = (p∘f)ᵀ F f,    so    τ = 2 (p∘f)ᵀ F f / pᵀf² - 1.


def exact_time(kernel, p, f):
    """Integrated autocorrelation time of the function f (K,) along the stationary chain `kernel` (K, K), in draws."""
    f = f - p @ f
    summed = torch.linalg.solve(torch.eye(len(p), dtype=p.dtype) - kernel + p, f)  # F f
    return 2 * (p * f) @ summed / (p @ f**2) - 1


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


# Copied from 01_ebm_foundations.py: autocorrelation
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


# Copied from 01_ebm_foundations.py: effective_sample_size
def effective_sample_size(chains):
    """Number of independent draws worth as much as chains (n_chains, n_draws) for a mean: Geyer's initial monotone
    sequence on the split chains (Geyer 1992; Vehtari et al. 2021)."""
    halves = split(chains)
    rho = autocorrelation(halves)
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(1)
    positive = (pairs > 0).cumprod(0)  # up to the first pair that is not
    tau = 2 * (positive * pairs.cummin(0).values).sum() - 1
    return halves.numel() / tau.clamp(min=1 / math.log10(halves.numel()))  # antithetic chains: Stan's limit


def gibbs_chains(s, W, b, temperature, n_draws):
    """The magnetisation of each chain of s (n_chains, n) after each of `n_draws` sweeps, (n_chains, n_draws)."""
    draws = []
    for _ in range(n_draws):
        s = gibbs_sweep(s, W, b, temperature)
        draws.append(s.mean(-1))
    return torch.stack(draws, 1).double()


class Diagnosis(NamedTuple):
    """What can be said of chains without knowing what they sample, and how many of them never moved."""

    r_hat: float
    ess: float
    tau: float
    tau_sem: float
    switches: int
    n_modes: int
    n_stuck: int


def diagnose_chains(chains):
    """The Diagnosis of magnetisations `chains` (n_chains, n_draws). If no chain moves, R-hat and ESS are 0/0, and mean this:
    R-hat is 1 if the chains agree and infinite if they do not, and a chain is worth one draw."""
    stuck = (chains == chains[:, :1]).all(1)
    r_hat, ess = float(split_r_hat(chains)), float(effective_sample_size(chains))
    if stuck.all():
        r_hat, ess = 1.0 if (chains == chains[0, 0]).all() else math.inf, float(len(chains))
    switches = int((chains.sign().diff(dim=1).abs() > 1).sum())
    n_modes = int((chains > 0).any()) + int((chains < 0).any())
    tau, tau_sem = map(float, integrated_time(chains, common_mean=False))
    return Diagnosis(r_hat, ess, tau, tau_sem, switches, n_modes, int(stuck.sum()))


def section_diagnostics(run):
    """No diagnostic notices a mode that no chain has visited; chains started in both modes are given away by R-hat."""
    config, n, n_chains = run.config, 10, 8
    require(config, n_draws=20)
    W, b = 0.45 * (1 - torch.eye(n)), torch.full((n,), 0.05)
    states = enumerate_states(n).double()
    cases = [  # name, title, temperature, number of chains that start in the lower mode
        ("one_mode", "T = 1, all chains start up", 1.0, 0),
        ("both_modes", "T = 1, half of the chains start down", 1.0, 4),
        ("mixing", "T = 4, half of the chains start down", 4.0, 4),
    ]
    fig, axes = plt.subplots(2, 3, figsize=(12, 5), height_ratios=[1, 1])
    for (name, title, temperature, n_down), (ax, table) in zip(cases, axes.T, strict=True):
        p = boltzmann(states, W.double(), b.double(), temperature)
        mean = p @ states.mean(1)
        tau_exact = exact_time(gibbs_kernel(W.double(), b.double(), temperature), p, states.mean(1))
        start = torch.ones(n_chains, n)
        start[:n_down] = -1
        m = gibbs_chains(start, W, b, temperature, config.n_draws)
        r_hat, ess, tau, tau_sem, switches, n_modes, n_stuck = diagnose_chains(m)
        healthy = name == "mixing"
        run.metric(f"{name}_chains_that_never_moved", n_stuck, against=("alarm above", 0))
        if n_stuck:
            run.say(f"{n_stuck} of {n_chains} chains never moved in {config.n_draws} sweeps: they have sampled nothing")
        if math.isfinite(r_hat):
            run.metric(f"{name}_split_r_hat", r_hat, against=("alarm above", 1.01))
        else:
            run.say("split R-hat is infinite: the chains do not move, and do not agree")
        run.metric(f"{name}_ess", ess, against=("alarm below", 400))
        run.metric(f"{name}_tau", tau, tau_sem, ("exact", tau_exact), 5 * tau_sem if healthy else None)
        run.metric(f"{name}_switches", switches)
        error = m.mean(1).std() / n_chains**0.5
        run.metric(f"{name}_mean", m.mean(), error, ("exact", mean), 5 * error if healthy else None)

        ax.plot(to_numpy(m[:, :300].T), lw=0.8, alpha=0.8)
        ax.axhline(float(mean), color="k", ls="--", label=f"exact mean {mean:.2f}")
        ax.set(title=title, ylim=(-1.15, 1.15), xlabel="sweep", yticks=[-1, 0, 1])
        ax.legend(loc="lower right" if name == "one_mode" else "center right")
        lines = [  # alarms: Vehtari et al. (2021) ask for R-hat < 1.01 and ESS > 400, Sokal (1989) for n >> τ
            (f"split R-hat {r_hat:.3f}", r_hat > 1.01),
            (f"ESS {ess:,.0f} of {m.numel():,}", ess < 400),
            (f"autocorrelation time {tau:.1f}", tau > config.n_draws / 50),
            (f"traces: modes {n_modes}, switches {switches:,}", n_modes == 2 and switches == 0),
            (f"chains that never moved: {n_stuck} of {n_chains}", n_stuck > 0),
            (f"exact autocorr. time {tau_exact:.2g}", tau_exact > config.n_draws / 50),
        ]
        table.axis("off")
        for row, (text, alarm) in enumerate(lines):
            y = 0.93 - 0.17 * row - 0.06 * (row == 5)
            table.text(0.0, y, text, weight="bold" if row == 5 else None, transform=table.transAxes)
            style = {"ha": "right", "weight": "bold", "color": "tab:red" if alarm else "tab:green"}
            table.text(1.0, y, "ALARM" if alarm else "fine", transform=table.transAxes, **style)
    axes[0, 0].set_ylabel("magnetisation, 8 chains")
    fig.subplots_adjust(left=0, right=1, wspace=0.14, hspace=0.35)
    run.figure(fig, "stuck")


SECTIONS = {
    "units": section_units,
    "learning": section_learning,
    "hidden": section_hidden,
    "ising": section_ising,
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
