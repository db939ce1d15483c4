"""Module 05 - Contrastive divergence: five ways to train the same machine, each held against the exact answer.

The gradient of the log likelihood needs the model's own statistics; contrastive divergence puts in their place what k
Gibbs sweeps from the data give. With v in rows, ĥ(v) = P(h = 1 | v), and the statistics φ(v) = (v ĥ(v)ᵀ, v, ĥ(v)):

    ∂ log p/∂θ  =  E_data[φ] - E_p[φ],             θ = (W, b, c)                         (1)
    CD-k        =  E_data[φ] - E_{data K^k}[φ],    K(v, v') = Σ_h p(h | v) p(v' | h)     (2)
    ‖bias of CD-k‖  <=  λ₂^k χ(data ‖ p) √(Σ Var_p φ)                                    (3)

λ₂ is the second eigenvalue of the Gibbs kernel K, and χ² = Σ (data - p)² / p over all states. Nearly everything here is
small enough to be summed exactly: 4x4 bars and stripes has 30 patterns, so no model of it can do better than
-ln 30 = -3.401 nats a pattern.

Run      python 05_contrastive_divergence.py                    all sections, two minutes on two CPU cores
         python 05_contrastive_divergence.py --section chains --show
         python 05_contrastive_divergence.py --n-sweeps 100000 --section convergence
Writes   outputs/05_contrastive_divergence/*.png and metrics.json
Before   module 04        Exercises   ex05_1 ... ex05_4, o2, o3
Sources  Younes (1989, 1999); Diaconis & Stroock (1991); Hinton (2002); Carreira-Perpinan & Hinton (2005); Tieleman (2008);
         Tieleman & Hinton (2009); Desjardins et al. (2010); Cho, Raiko & Ilin (2010); Fischer & Igel (2010, 2011);
         Cover & Thomas (2006)
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
from torch.nn.functional import softplus
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_machines: Annotated[int, "random machines behind each exact bias"] = 20
    n_hidden: Annotated[int, "hidden units for bars and stripes; their 2^n states are enumerated; at most 16"] = 12
    n_sweeps: Annotated[int, "Gibbs sweeps of each of the 30 chains in a training, whatever the method"] = 12000
    n_seeds: Annotated[int, "machines behind each mean likelihood"] = 6
    n_tuning: Annotated[int, "other machines, on which each learning rate is chosen"] = 3
    digits_hidden: Annotated[int, "hidden units for the digits"] = 64
    digits_sweeps: Annotated[int, "Gibbs sweeps of each of 100 chains in a training on digits, then as many updates"] = 1500
    n_ais_chains: Annotated[int, "annealed importance sampling: chains"] = 200
    n_ais_temps: Annotated[int, "annealed importance sampling: temperatures"] = 500
    n_lag_updates: Annotated[int, "updates over which the chains' lag is measured"] = 2000
    n_draws: Annotated[int, "sweeps of the chains that are diagnosed"] = 3000
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1

    def __post_init__(self):
        if self.n_hidden > 16:
            sys.exit(f"--n-hidden must be at most 16, since 2^n states are enumerated, not {self.n_hidden}")
        if self.n_draws < 11:
            sys.exit(f"--n-draws must be at least 11, since chains are compared over ten sweeps, not {self.n_draws}")


SMOKE = {"n_machines": 3, "n_hidden": 6, "n_sweeps": 216, "n_seeds": 2, "n_tuning": 1, "digits_hidden": 8}
SMOKE |= {"digits_sweeps": 20, "n_ais_chains": 20, "n_ais_temps": 30, "n_lag_updates": 20, "n_draws": 60}


# %% 0. Many machines at once
# Every claim below is a mean over machines, so all machines of a comparison are trained side by side: each parameter has
# a leading axis of S machines, and each product of module 04 becomes one batched product. Module 04's functions that
# only call methods of the RBM, such as `gibbs`, work as they stand.


# Differs from 04_restricted_boltzmann_machines.py: RBM - S machines side by side, at inverse temperatures beta
class RBM(NamedTuple):
    """S machines E(v, h) = -v·W h - b·v - c·h. v is (S, B, d), h is (S, B, m); beta is a number or (B, 1)."""

    W: torch.Tensor  # (S, d, m)
    b: torch.Tensor  # (S, 1, d)
    c: torch.Tensor  # (S, 1, m)

    @property
    def upside_down(self):
        """The same machines with v and h in each other's place."""
        return RBM(self.W.mT, self.c, self.b)

    def field(self, v):
        """c + v W, (S, B, m): the log odds of the hidden units."""
        return torch.baddbmm(self.c, v, self.W)

    def p_hidden(self, v, beta=1.0):
        """P(h_j = 1 | v) under exp(-beta E), (S, B, m)."""
        return self.field(v).mul_(beta).sigmoid_()

    def p_visible(self, h, beta=1.0):
        """P(v_i = 1 | h) under exp(-beta E), (S, B, d)."""
        return self.upside_down.p_hidden(h, beta)

    def energy(self, v, h):
        """E(v, h), (S, B)."""
        return -(self.field(v) * h).sum(-1) - (v * self.b).sum(-1)

    def mean_energy(self, v):
        """E(v, h) averaged over p(h | v), (S, B)."""
        field = self.field(v)
        return -(field.sigmoid() * field).sum(-1) - (v * self.b).sum(-1)

    def free_energy(self, v):
        """F(v) = -log Σ_h exp(-E(v, h)), (S, B)."""
        return -softplus(self.field(v)).sum(-1) - (v * self.b).sum(-1)


# Copied from 04_restricted_boltzmann_machines.py: coin_buffer
def coin_buffer(p):
    """Memory for the coins of `bernoulli`: 64-bit words, and the same bits as 16-bit integers in the shape of p."""
    words = torch.empty(-(-p.numel() // 4), dtype=torch.int64, device=p.device)
    return words, words.view(torch.int16)[: p.numel()].view(p.shape)


# Copied from 04_restricted_boltzmann_machines.py: bernoulli
def bernoulli(p, out=None, buffer=None):
    """Units that are 1 with probability p, to within 2^-16 (at 0 and 1 exactly), in the shape of p.

    Much of an RBM's training time goes into random numbers: here one 64-bit draw serves four units, instead of a float for
    each; a loop also hands in `out` and a `buffer` = coin_buffer(p) to be used again.
    """
    out = torch.empty_like(p) if out is None else out
    words, coins = coin_buffer(p) if buffer is None else buffer
    words.random_(-(2**63), None)
    out.copy_(coins)  # whole numbers from -2^15 to 2^15 - 1
    return torch.add(p, out, alpha=2**-16 - 2**-36, out=out).round_()  # is p + u > 1/2, u uniform within (-1/2, 1/2)?


# Copied from 04_restricted_boltzmann_machines.py: gibbs
def gibbs(rbm, v, n_sweeps):
    """`n_sweeps` sweeps v -> h -> v of block Gibbs sampling from v (B, d); returns the last v, (B, d)."""
    for _ in range(n_sweeps):
        v = bernoulli(rbm.p_visible(bernoulli(rbm.p_hidden(v))))
    return v


# Copied from 04_restricted_boltzmann_machines.py: all_states
def all_states(n):
    """Every binary vector of length n, (2^n, n)."""
    return (torch.arange(2**n).unsqueeze(1) >> torch.arange(n) & 1).float()


# Copied from 04_restricted_boltzmann_machines.py: product_probabilities
def product_probabilities(p, states):
    """Probability of each state (S, n) under each row of independent units p (A, n), (A, S)."""
    log_p, log_q = (log.clamp(min=-1e4) for log in (p.log(), (-p).log1p()))  # at p = 0 or 1: 0 * inf would be nan
    return (log_p @ states.T + log_q @ (1 - states).T).exp()


# Copied from 04_restricted_boltzmann_machines.py: log_odds
def log_odds(x):
    """Log odds (d,) of each pixel's being 1 in x (N, d), half a count added to either side."""
    return ((x.sum(0) + 0.5) / (len(x) + 1)).logit()


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


def mean_and_sem_rows(rows):
    """Means and standard errors of some rows of repeats, (2, K)."""
    return np.array([mean_and_sem(row) for row in rows], dtype=float).T


# The references of this part: everything that follows is held against them. With m hidden units Z has 2^m terms once the
# visible layer is summed out by hand, Z = Σ_h exp(-F'(h)), where F' is the free energy of the machine upside down.


def hidden_states(rbm):
    """All hidden states of S machines (S, 2^m, m), and their probabilities under the model (S, 2^m)."""
    h = all_states(rbm.W.shape[2]).to(rbm.W).expand(len(rbm.W), -1, -1)
    return h, (-rbm.upside_down.free_energy(h)).softmax(1)


# Differs from 04_restricted_boltzmann_machines.py: exact_log_z - S machines side by side
def exact_log_z(rbm):
    """log Z (S,): the visible layer summed out, the hidden one enumerated."""
    return (-rbm.upside_down.free_energy(hidden_states(rbm)[0])).logsumexp(1)


# Differs from 04_restricted_boltzmann_machines.py: exact_log_likelihood - S machines side by side
def exact_log_likelihood(rbm, x):
    """Mean log likelihood (S,) of patterns x (N, d), in nats a pattern."""
    return -rbm.free_energy(x.expand(len(rbm.W), -1, -1)).mean(1) - exact_log_z(rbm)


def exact_samples(rbm, n):
    """n independent draws of v from each machine, (S, n, d): h from its enumerated distribution, then v given h."""
    h, p = hidden_states(rbm)
    chosen = torch.multinomial(p, n, replacement=True)
    return bernoulli(rbm.p_visible(h.gather(1, chosen.unsqueeze(2).expand(-1, -1, h.shape[2]))))


def theory_best_log_likelihood(x):
    """The highest mean log likelihood that any model can give to equally likely, different patterns x (N, d): -log N nats.

    It is minus their entropy: no p beats the data's own distribution (Gibbs' inequality, Cover & Thomas 2006, th. 2.6.3).
    """
    return -math.log(len(x))


def exact_independent_log_likelihood(x_train, x_test):
    """Mean log likelihood of x_test (N, d) under independent pixels with the rates of x_train: the baseline."""
    odds = log_odds(x_train)
    return (x_test @ odds - softplus(odds).sum()).mean().item()


def bars_and_stripes(side=4):
    """Each row on or off, or each column: the 2 (2^side) - 2 distinct patterns (N, side²). All-off and all-on are both
    bars and stripes: they stand here once."""
    lines = all_states(side)
    bars = lines.unsqueeze(1).expand(-1, side, -1).flatten(1)  # columns on or off
    stripes = lines.unsqueeze(2).expand(-1, -1, side).flatten(1)  # rows on or off
    return torch.cat([bars, stripes[1:-1]])


# %% 1. The bias, exactly
# Write the data as a probability vector q₀ over the 2^d states, and the model as p. A Gibbs sweep is the matrix K of
# eq. (2), k sweeps turn q₀ into q₀ K^k, and p K = p. With r₀ = q₀ - p and r_k = r₀ K^k:
#     the gradient, eq. (1)   = Σ_v r₀(v) φ(v)
#     the update, eq. (2)     = Σ_v (r₀ - r_k)(v) φ(v)
#     the bias of CD-k        = - Σ_v r_k(v) φ(v).
# K is reversible, p(v) K(v, v') = p(v') K(v', v), so √p K /√p is symmetric and has real eigenvalues. None is negative,
# since K is "to h and back": Σ_v p f (K f) = E[E[f | h]²] >= 0 for every f. So 1 = λ₁ > λ₂ >= ... >= 0 (below,
# K goes from 2^7 states to 2^5 and back: its rank is at most 2^5, and its least eigenvalue is 0), and
#     Σ r_k² / p  <=  λ₂^(2k) Σ r₀² / p          (r₀ has no part along λ₁: Σ r₀ = 0).
# Cauchy and Schwarz turn this into eq. (3), since (Σ r_k φ)² = (Σ r_k (φ - E_p φ))² <= (Σ r_k²/p) Var_p φ, with
# χ² = Σ r₀²/p. (Diaconis & Stroock 1991 bound a chain's distance from p so. Fischer & Igel 2011 bound the same bias without
# a spectrum, by the number of units and the largest change of energy that one unit can make.)
# As k grows, what is left of r_k points along the second eigenvector: the bias *decays as* λ₂^k, CD's bias is a power
# iteration. Large weights mean λ₂ near 1, and no affordable k is then large.


def statistics(rbm, v):
    """φ(v) of eq. (1) as a row for each state, (S, B, d m + d + m); v (S, B, d)."""
    h = rbm.p_hidden(v)
    return torch.cat([(v.unsqueeze(3) * h.unsqueeze(2)).flatten(2), v, h], 2)


def visible_states(rbm):
    """All visible states of S machines (S, 2^d, d), and their probabilities under the model (S, 2^d)."""
    v = all_states(rbm.W.shape[1]).to(rbm.W).expand(len(rbm.W), -1, -1)
    return v, (-rbm.free_energy(v)).softmax(1)


def gibbs_kernels(rbm):
    """K of eq. (2), (S, 2^d, 2^d), for one sweep v -> h -> v of each machine, by enumeration."""
    n, d, m = rbm.W.shape
    v, h = all_states(d).to(rbm.W), all_states(m).to(rbm.W)
    to_h = product_probabilities(rbm.p_hidden(v.expand(n, -1, -1)), h)
    return to_h @ product_probabilities(rbm.p_visible(h.expand(n, -1, -1)), v)


def cd_bias(rbm, q, n_sweeps):
    """Σ r_k φ for data q (S, 2^d) and k = 0 ... n_sweeps, (k, S, parameters): the gradient, then minus CD-k's biases."""
    v, p = visible_states(rbm)
    phi, kernel, r, path = statistics(rbm, v), gibbs_kernels(rbm), q - p, []
    for _ in range(n_sweeps + 1):
        path.append((r.unsqueeze(1) @ phi).squeeze(1))
        r = (r.unsqueeze(1) @ kernel).squeeze(1)
        r = r - r.sum(1, keepdim=True) * p  # rounding must not leave a little of p in r: it would not decay
    return torch.stack(path)


def reversible_spectrum(kernel, p):
    """Eigenvalues (S, n), falling, of kernels (S, n, n) that are reversible with respect to p (S, n)."""
    root = p.sqrt()
    symmetric = root.unsqueeze(2) * kernel / root.unsqueeze(1)
    return torch.linalg.eigvalsh((symmetric + symmetric.mT) / 2).flip(1)


def theory_bias_bound(rbm, q, second, n_sweeps):
    """Eq. (3)'s right-hand side for k = 0 ... n_sweeps, (k, S); q (S, 2^d), λ₂ = second (S,)."""
    v, p = visible_states(rbm)
    phi = statistics(rbm, v)
    variance = (p.unsqueeze(2) * (phi - p.unsqueeze(1) @ phi) ** 2).sum((1, 2))
    size = (variance * ((q - p) ** 2 / p).sum(1)).sqrt()
    return second ** torch.arange(n_sweeps + 1).to(p).unsqueeze(1) * size


class Bias(NamedTuple):
    """What CD-k's bias is on S machines, k = 0 ... K."""

    relative: np.ndarray  # |bias| / |gradient|, (K + 1, S)
    bound: np.ndarray  # what eq. (3) allows it to be, (K + 1, S)
    cosine: np.ndarray  # of update and gradient, (K, S), from k = 1 on
    second: np.ndarray  # λ₂, (S,)
    decay: np.ndarray  # measured: what a sweep leaves of the bias, over the second half of the sweeps, (S,)
    n_beyond: int  # how many biases are larger than eq. (3) allows
    least: float  # the smallest eigenvalue


def random_machines(n_machines, scale, d=7, m=5):
    """Machines with weights of one scale, whose units' fields balance on average: large weights then mean few deep modes."""
    W = scale * torch.randn(n_machines, d, m).double()
    return RBM(W, -W.sum(2).unsqueeze(1) / 2, -W.sum(1, keepdim=True) / 2 + torch.randn(n_machines, 1, m).double() / 2)


def random_data(n_machines, n_data=25, d=7, m=5):
    """`n_data` draws from each of some random machines, as probabilities of the states, (S, 2^d)."""
    teacher = RBM(*(1.5 * torch.randn(n_machines, *shape).double() for shape in ((d, m), (1, d), (1, m))))
    p = visible_states(teacher)[1]
    drawn = torch.multinomial(p, n_data, replacement=True)
    return torch.zeros_like(p).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / n_data).double())


def measure_bias(rbm, q, n_sweeps=100):
    """The bias of CD-k on data q (S, 2^d) for k up to n_sweeps, beside what the kernel's spectrum says of it."""
    path, spectrum = cd_bias(rbm, q, n_sweeps), reversible_spectrum(gibbs_kernels(rbm), visible_states(rbm)[1])
    norms, bound = path.norm(dim=2), theory_bias_bound(rbm, q, spectrum[:, 1], n_sweeps)
    return Bias(
        relative=to_numpy(norms / norms[0]),
        bound=to_numpy(bound / norms[0]),
        cosine=to_numpy(torch.cosine_similarity(path[0] - path[1:], path[:1], 2)),
        second=to_numpy(spectrum[:, 1]),
        decay=to_numpy((norms[n_sweeps] / norms[n_sweeps // 2]) ** (2 / n_sweeps)),
        n_beyond=(norms > bound * (1 + 1e-9)).sum().item(),
        least=spectrum.min().item(),
    )


class ChainStep(NamedTuple):
    """CD-1's update along the gradient's direction: from groups of chains, and as eq. (2) says."""

    groups: torch.Tensor
    exact: float


def measure_cd_1_by_chains(rbm, q, n_groups=40, n_chains=5000):
    """Does CD-1 as it is run agree with eq. (2)? The first machine's update along its gradient, from `n_groups` groups."""
    rbm, q = RBM(*(parameter[:1] for parameter in rbm)), q[:1]
    v, (gradient, left) = visible_states(rbm)[0], cd_bias(rbm, q, 1)[:, 0]
    direction = gradient / gradient.norm()
    chains = gibbs(rbm, v[:, torch.multinomial(q[0], n_groups * n_chains, replacement=True)], 1)
    model = statistics(rbm, chains).view(n_groups, n_chains, -1).mean(1)
    return ChainStep((q @ statistics(rbm, v)[0] - model) @ direction, ((gradient - left) @ direction).item())


# The sizes of the weights that are compared: scale, and colour, line and marker.
WEIGHTS = {"small": (0.5, "goldenrod", ":", "o"), "medium": (1.5, "sienna", "--", "s"), "large": (3.0, "black", "-", "^")}


def compare_weights(n_machines):
    """{size of the weights: Bias}, all on the same data, and CD-1 by chains where weights are largest."""
    q, found = random_data(n_machines), {}
    for name, (scale, *_) in WEIGHTS.items():
        rbm = random_machines(n_machines, scale)
        found[name] = measure_bias(rbm, q)
    return found, measure_cd_1_by_chains(rbm, q)


def draw_decay(found):
    """Bias and direction against k, and each machine's decay beside its λ₂; found: {size of the weights: Bias}."""
    fig, axes = plt.subplots(1, 3, figsize=(10, 4.3), layout="constrained")
    for name, bias in found.items():
        _, color, line, marker = WEIGHTS[name]
        k = np.arange(1, len(bias.relative))
        axes[0].semilogy(k, np.median(bias.relative[1:], 1), line, color=color, lw=2.5, label=f"{name} weights")
        axes[0].semilogy(k, np.median(bias.bound[1:], 1), line, color=color, lw=0.8)
        axes[1].errorbar(k, *mean_and_sem_rows(bias.cosine), fmt=line, color=color, lw=2.5, elinewidth=1)
        axes[2].loglog(1 - bias.second, 1 - bias.decay, marker, color=color, fillstyle="none")
    axes[0].plot([], [], color="0.3", lw=0.8, label="thin: the bound of eq. (3)")
    axes[0].set(title="The bias dies out as $\\lambda_2^k$", xlabel="Gibbs sweeps k", ylabel="bias / gradient (median)")
    axes[0].set_ylim(1e-8, 1e3)
    axes[1].axhline(1, color="0.6")
    axes[1].set(
        title=f"Large weights: cosine {found['large'].cosine[0].mean():.2f} at k = 1", xscale="log", xlabel="Gibbs sweeps k"
    )
    axes[1].set_ylabel("cosine of update and gradient")
    ends, worst = np.array(axes[2].get_xlim()), max(np.abs(bias.decay - bias.second).max() for bias in found.values())
    axes[2].loglog(ends, ends, "--", color="0.4", lw=1, label="dashed: equal")
    axes[2].set(title=f"Each decays by its own $\\lambda_2$, to {worst:.1g}", xlabel="spectral gap $1 - \\lambda_2$")
    axes[2].set_ylabel("measured: 1 - (decay a sweep)")
    fig.legend(loc="outside lower center", ncols=5, columnspacing=1.2)
    return fig


def section_bias(run):
    """CD-k has a bias; it decays as the Gibbs kernel's second eigenvalue to the k, slowly where weights are large."""
    found, step = compare_weights(run.config.n_machines)
    for name, bias in found.items():
        for k in (1, 10, 100):
            run.metric(f"{name} weights, CD-{k}: bias / gradient", *mean_and_sem(bias.relative[k]), ("exact gradient", 0))
            run.metric(f"{name} weights, CD-{k}: cosine", *mean_and_sem(bias.cosine[k - 1]), ("the gradient's direction", 1))
    run.metric("biases beyond the bound of eq. (3)", sum(bias.n_beyond for bias in found.values()), None, ("theorem", 0), 0)
    least = min(bias.least for bias in found.values())
    run.metric("smallest eigenvalue of a Gibbs kernel", least, None, ("theorem: 0, since rank <= 2^5", 0), 1e-10)
    worst = max(np.abs(bias.decay - bias.second).max() for bias in found.values())
    run.metric("decay a sweep, off lambda_2 by at most", worst, None, ("in the limit", 0))
    mean, sem = mean_and_sem(step.groups)
    within = tolerance(sem, len(step.groups))
    run.metric("CD-1 step along the gradient, 40 groups", mean, sem, ("eq. (2), summed", step.exact), within)
    run.figure(draw_decay(found), "decay")
    small, large = (100 * found[name].relative[10].mean() for name in ("small", "large"))
    run.say(f"after ten sweeps the bias is {small:.2g} % of the gradient at small weights, {large:.2g} % at large")
    run.say(f"so ten sweeps are {'enough' if large < 1 else 'not enough'} for 1 % where weights are large")


# %% 2. The methods: five ways to come by the negative phase
# CD-k restarts its chains at the data at every update: cheap, biased, eq. (3). *Persistent* CD never restarts them: the
# machine changes little from update to update, and the chains follow. That is stochastic approximation, which Younes
# (1989, 1999) proved to converge as the rate falls, and which Tieleman (2008) brought to RBMs and named PCD. *Fast PCD*
# (Tieleman & Hinton 2009) runs the chains on W + W_fast, where W_fast learns fast and forgets fast (19/20 an update): it
# raises the energy where chains sit and so drives them on. *Parallel tempering* (Desjardins et al. 2010; Cho et al. 2010)
# keeps R replicas, a ladder of inverse temperatures β₁ = 1 > ... > β_R = 0; exchanging the states of neighbours r and r+1
# with probability
#     min(1, exp((β_r - β_{r+1}) (E_r - E_{r+1})))
# leaves each exp(-β_r E) invariant: its ratio of joint probabilities before and after is that exponential. At β = 0 the
# units are coins: new states are made there at every sweep, and the exchanges that are accepted bring them up to β = 1.
# Here they are, an update each, to copy: x are the data (S, n, d), the machines go in and come out.


# Differs from 04_restricted_boltzmann_machines.py: likelihood_gradient - of S machines
def likelihood_gradient(rbm, x, x_model):
    """Eq. (1) from data and from the model's samples, both (S, n, d): as an RBM, to climb."""
    h, h_model, n = rbm.p_hidden(x), rbm.p_hidden(x_model), x.shape[1]  # probabilities: samples of h would only add noise
    W = (x.mT @ h - x_model.mT @ h_model) / n
    return RBM(W, (x - x_model).mean(1, keepdim=True), (h - h_model).mean(1, keepdim=True))


def moved(rbm, direction, rate=1.0):
    """The machines after a step of `rate` along `direction`."""
    return RBM(*(parameter + rate * change for parameter, change in zip(rbm, direction, strict=True)))


def cd_update(rbm, x, rate, k):
    """CD-k: k sweeps from the data (Hinton 2002)."""
    return moved(rbm, likelihood_gradient(rbm, x, gibbs(rbm, x, k)), rate)


def pcd_update(rbm, chains, x, rate):
    """PCD: the chains (S, n, d) go on from where the last update left them; whoever drops them runs CD from noise."""
    chains = gibbs(rbm, chains, 1)
    return moved(rbm, likelihood_gradient(rbm, x, chains), rate), chains


def fast_pcd_update(rbm, fast, chains, x, rate, fast_rate):
    """Fast PCD: the chains see W + W_fast, the statistics and the slow weights do not; `fast` begins at 0."""
    chains = gibbs(moved(rbm, fast), chains, 1)
    gradient = likelihood_gradient(rbm, x, chains)
    fast = RBM(*(19 / 20 * old + fast_rate * g for old, g in zip(fast, gradient, strict=True)))
    return moved(rbm, gradient, rate), fast, chains


def tempering_update(rbm, replicas, betas, x, rate):
    """Parallel tempering: `replicas` is a list of chains (S, n, d), one for each of `betas`, which fall from 1."""
    h = [bernoulli(rbm.p_hidden(v, beta)) for v, beta in zip(replicas, betas, strict=True)]
    v = [bernoulli(rbm.p_visible(h_r, beta)) for h_r, beta in zip(h, betas, strict=True)]
    energy = [rbm.energy(v_r, h_r) for v_r, h_r in zip(v, h, strict=True)]
    for r in (*range(0, len(betas) - 1, 2), *range(1, len(betas) - 1, 2)):  # pairs (0, 1), (2, 3) ..., then (1, 2) ...
        log_ratio = (betas[r] - betas[r + 1]) * (energy[r] - energy[r + 1])
        swap = torch.rand_like(log_ratio).log() < log_ratio
        for state, mask in ((energy, swap), (v, swap.unsqueeze(2))):
            state[r], state[r + 1] = torch.where(mask, state[r + 1], state[r]), torch.where(mask, state[r], state[r + 1])
    return moved(rbm, likelihood_gradient(rbm, x, v[0]), rate), v


# The same, fast: one product for the data and the samples, with signed weights; all replicas in one product; all in place.


class Method(NamedTuple):
    """How the negative phase is drawn, and how the method is drawn in figures."""

    color: str
    marker: str
    sweeps: int = 1  # Gibbs sweeps of a chain in one update
    persistent: bool = True
    fast_rate: float = 0.0
    n_replicas: int = 1


METHODS = {
    "CD-1": Method("tab:red", "o", persistent=False),
    "CD-10": Method("tab:orange", "s", sweeps=10, persistent=False),
    "PCD": Method("tab:green", "^"),
    "fast PCD": Method("tab:blue", "D", fast_rate=0.3),
    "tempering": Method("tab:purple", "v", sweeps=5, n_replicas=5),
}
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # wide enough that none is chosen at an end: section 5 counts
DIGITS_RATES = (0.1, 0.25, 0.5, 1.0, 2.0)


# Differs from 04_restricted_boltzmann_machines.py: phase - of S machines, with weights of both signs
def phase(rbm, v, weight):
    """Σ weight φ(v) over v (S, B, d), as an RBM. Data weigh +1/n and samples -1/n: then it is eq. (1); weight (B, 1)."""
    h, v = rbm.p_hidden(v), v * weight
    return RBM(v.mT @ h, v.sum(1, keepdim=True), (h * weight).sum(1, keepdim=True))


def exchange(v, energy, betas):
    """Swap states of neighbouring replicas, in place: v (S, R, N, d), energy (S, R, N), betas (R,) falling."""
    n_replicas = len(betas)
    for first in (0, 1):  # pairs (0, 1), (2, 3), ... and then (1, 2), (3, 4), ...
        a, b = slice(first, n_replicas - 1, 2), slice(first + 1, n_replicas, 2)
        log_ratio = (betas[a] - betas[b]).unsqueeze(1) * (energy[:, a] - energy[:, b])
        swap = (torch.rand_like(log_ratio).log() < log_ratio).to(v)
        for state, mask in ((energy, swap), (v, swap.unsqueeze(3))):
            change = mask * (state[:, b] - state[:, a])
            state[:, a] += change
            state[:, b] -= change


def temper(rbm, v, betas):
    """One sweep of every replica, v (S, R N, d) with the R = len(betas) replicas one after another, then exchanges."""
    rows = betas.repeat_interleave(v.shape[1] // len(betas)).unsqueeze(1)
    h = bernoulli(rbm.p_hidden(v, rows))
    v = bernoulli(rbm.p_visible(h, rows))
    apart = len(v), len(betas), -1
    exchange(v.view(*apart, v.shape[2]), rbm.energy(v, h).view(apart), betas)
    return v


class Trainer:
    """S machines that learn side by side, in place, each with n chains of its own."""

    def __init__(self, rbm, method, n_chains, chains=None):
        n_machines, d, _ = rbm.W.shape
        self.rbm, self.method, self.n = rbm, method, n_chains
        self.fast = RBM(*(torch.zeros_like(parameter) for parameter in rbm))
        self.betas = torch.linspace(1, 0, method.n_replicas, device=rbm.W.device)
        start = rbm.W.new_full((n_machines, method.n_replicas * n_chains, d), 0.5)
        self.chains = bernoulli(start) if chains is None else chains
        self.weight = rbm.W.new_tensor([1.0, -1.0]).repeat_interleave(n_chains).unsqueeze(1) / n_chains

    def negatives(self, x):
        """Samples for the negative phase, (S, n, d)."""
        if not self.method.persistent:
            self.chains = x
        if self.method.n_replicas > 1:
            self.chains = temper(self.rbm, self.chains, self.betas)
        elif self.method.fast_rate:
            self.chains = gibbs(moved(self.rbm, self.fast), self.chains, 1)
        else:
            self.chains = gibbs(self.rbm, self.chains, self.method.sweeps)
        return self.chains[:, : self.n]  # the replicas at beta = 1 come first

    def step(self, x, rate):
        """One update on x (S, n, d); rate is a number or (S, 1, 1)."""
        gradient = phase(self.rbm, torch.cat([x, self.negatives(x)], 1), self.weight)
        for slow, fast, g in zip(self.rbm, self.fast, gradient, strict=True):
            slow += rate * g
            if self.method.fast_rate:
                fast.mul_(19 / 20).add_(g, alpha=self.method.fast_rate)


def fresh_rbms(x, n_machines, n_hidden):
    """Machines to start from: small random weights, and each pixel's rate in x (N, d) in its bias."""
    weights = 0.1 * torch.randn(n_machines, x.shape[1], n_hidden, device=x.device)
    return RBM(weights, log_odds(x).repeat(n_machines, 1, 1), x.new_zeros(n_machines, 1, n_hidden))


def climb(trainer, x, rates, n_updates, marks=(), anneal=True):
    """Climb eq. (1) on x (N, d): all of x at each update if it is as many as the chains, else minibatches. rates (S,)
    fall linearly to 0, or stay. Returns {update: a copy of the machines} at `marks`."""
    rates, everything, kept = rates.view(-1, 1, 1), x.expand(len(rates), -1, -1), {}
    for update in range(n_updates + 1):  # the annealed rate ends at 0, so the last turn only keeps
        if update in marks:
            kept[update] = RBM(*(parameter.clone() for parameter in trainer.rbm))
        batch = everything if trainer.n == len(x) else x[torch.randint(len(x), (len(rates), trainer.n), device=x.device)]
        if update < n_updates:
            trainer.step(batch, rates * (1 - update / n_updates) if anneal else rates)
    return kept


# What is equal here: the *sweeps per chain*. One update costs CD-1 and (F)PCD one sweep, CD-10 ten, parallel tempering
# one for each replica: out of the same budget it makes 1/R of the updates. Each method, at each budget, gets the learning
# rate that does best on machines of their own (out of the same grid), falling linearly to 0; then other machines count.
# Only the rate is tuned: fast PCD's fast rate and the number of replicas are one choice for every budget, so that a small
# lead of one of these two over the other says little.
# A fair price is not the only fair comparison: on the digits, far from converged, whoever makes fewer updates has learnt
# less, whatever their samples are worth. There the methods meet twice, at equal sweeps and at equal *updates*.


class Result(NamedTuple):
    """A method's outcome at one budget: the rate chosen, the machines trained with it, and the seconds that took."""

    rate: float
    rbm: RBM
    seconds: float


def chosen_rate(x, n_chains, n_hidden, method, n_updates, n_tuning, score, grid):
    """The rate of `grid` with the best mean score (S,) over `n_tuning` machines of its own."""
    rates = torch.tensor(grid, device=x.device).repeat_interleave(n_tuning)
    rbm = fresh_rbms(x, len(rates), n_hidden)
    climb(Trainer(rbm, method, n_chains), x, rates, n_updates)
    means = score(rbm).view(len(grid), n_tuning).mean(1)
    if not means.isfinite().any():
        sys.exit("no learning rate leaves a machine whose AIS can be trusted: more --n-ais-temps or --n-ais-chains")
    return grid[means.nan_to_num(-math.inf).argmax()]  # a rate with which a machine blew up is not chosen


def tune_and_train(x, n_chains, n_hidden, method, n_updates, n_tuning, n_seeds, score, grid=RATES):
    """Choose the rate on `n_tuning` machines; with it, train `n_seeds` others on x (N, d)."""
    rate = chosen_rate(x, n_chains, n_hidden, method, n_updates, n_tuning, score, grid)
    rbm, start = fresh_rbms(x, n_seeds, n_hidden), time.perf_counter()
    climb(Trainer(rbm, method, n_chains), x, torch.full((n_seeds,), rate, device=x.device), n_updates)
    must_be_finite("the training", *rbm)
    return Result(rate, rbm, time.perf_counter() - start)


def updates_for(method, n_sweeps):
    """How many updates a budget of Gibbs sweeps a chain pays for."""
    return max(n_sweeps // method.sweeps, 1)


def budgets(config):
    """Sweeps per chain of the trainings that are compared, the last one the full budget."""
    return [max(config.n_sweeps // 3**power, 1) for power in (3, 2, 1, 0)]


# Copied from 04_restricted_boltzmann_machines.py: own_random_stream
def own_random_stream(train):
    """Decorator: what `train(run, ...)` draws leaves the random streams of the CPU and of the run's device as they were."""

    @functools.wraps(train)
    def trained(run, *args, **options):
        device, others = run.device, {"devices": []}
        if device.type != "cpu":
            here = torch.cuda.current_device() if device == torch.device("cuda") else device.index or 0
            others = {"devices": [here], "device_type": device.type}
        with torch.random.fork_rng(**others):
            return train(run, *args, **options)

    return trained


@functools.cache
@own_random_stream  # sections print the same numbers alone and after the others
def trained_on_bars(run):
    """{(method, sweeps): Result} on 4x4 bars and stripes."""
    config, x = run.config, bars_and_stripes().to(run.device)
    torch.manual_seed(run.seed)
    results, jobs = {}, [(name, sweeps) for sweeps in budgets(config) for name in METHODS]
    for name, sweeps in Progress(jobs, "bars and stripes"):
        results[name, sweeps] = tune_and_train(
            x, len(x), config.n_hidden, METHODS[name], updates_for(METHODS[name], sweeps), config.n_tuning, config.n_seeds,
            lambda rbm: exact_log_likelihood(rbm, x),
        )  # fmt: skip
    return results


# Digits, with more hidden units than can be summed, are scored by annealed importance sampling, as in module 04: its
# mean weight is unbiased for Z, its log too low and the likelihood flattered when the effective sample is small.


# Differs from 04_restricted_boltzmann_machines.py: ais - S machines side by side
def ais(rbm, base_b, n_chains, n_temps):
    """Log weights (S, n_chains) whose exponentials average to Z, from biases base_b (d,) to the RBM in n_temps steps."""
    W, b, c = rbm
    v = bernoulli(base_b.sigmoid().repeat(len(W), n_chains, 1))
    log_w = (softplus(base_b).sum() + c.shape[2] * math.log(2)).repeat(len(W), n_chains)
    betas = torch.linspace(0, 1, n_temps + 1).tolist()
    for old, new in zip(betas[:-1], betas[1:], strict=True):
        x = rbm.field(v)
        log_w += (new - old) * (v * (b - base_b)).sum(-1) + (softplus(new * x) - softplus(old * x)).sum(-1)
        h = bernoulli(x.mul_(new).sigmoid_())
        v = bernoulli(torch.baddbmm(torch.lerp(base_b.expand_as(b), b, new), h, W.mT, alpha=new).sigmoid_())
    return log_w


# Copied from 01_ebm_foundations.py: log_z_from_weights
def log_z_from_weights(log_w):
    """(log Z, its standard error, ESS), each (...), from log importance weights (..., N).

    Standard error by the delta method, std(w) / (mean(w) √N); ESS = (Σw)² / Σw² (Kong 1992), between 1 and N.
    """
    n = log_w.shape[-1]
    log_sum = log_w.logsumexp(-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(-1)).exp()
    return log_sum - math.log(n), ((1 / ess - 1 / n).clamp(min=0) * n / (n - 1)).sqrt(), ess


def log_likelihood_by_ais(rbm, base_b, x, n_chains, n_temps):
    """Mean log likelihood (S,) of x (N, d), and the effective share (S,) of the AIS chains: can it be trusted?"""
    log_z, _, ess = log_z_from_weights(ais(rbm, base_b, n_chains, n_temps))
    return -rbm.free_energy(x.expand(len(rbm.W), -1, -1)).mean(1) - log_z, ess / n_chains


def trusted(nats, share):
    """nan in place of what rests on too few chains, where AIS flatters: no rate is chosen by such a number."""
    return nats.where(share >= 0.1, torch.nan)


def binary_digits(device):
    """Binary 8x8 digits (N, 64): for training, for choosing rates, for the final score."""
    x, y = load_digits(return_X_y=True)
    x_rest, x_test, y_rest, _ = train_test_split(x > 8, y, test_size=0.2, stratify=y, random_state=0)
    x_train, x_valid = train_test_split(x_rest, test_size=0.15, stratify=y_rest, random_state=0)
    return [torch.tensor(part, dtype=torch.float32, device=device) for part in (x_train, x_valid, x_test)]


class OnDigits(NamedTuple):
    """A method's rate on the digits, its machines' test log likelihood (S,), and AIS's effective share (S,)."""

    rate: float
    nats: torch.Tensor
    share: torch.Tensor

    @property
    def is_trusted(self):
        """Whether AIS says something about every machine."""
        return self.share.min().item() >= 0.1


@functools.cache
@own_random_stream
def trained_on_digits(run):
    """{(method, updates): OnDigits} on digits, at equal sweeps and at equal updates: rates chosen on the validation images,
    scores on the test images."""
    config, (x_train, x_valid, x_test) = run.config, binary_digits(run.device)
    torch.manual_seed(run.seed)
    base_b, few, results = log_odds(x_train), (config.n_ais_chains // 2 + 1, config.n_ais_temps // 3 + 1), {}
    jobs = [(name, updates_for(METHODS[name], config.digits_sweeps)) for name in METHODS]
    jobs += [(name, config.digits_sweeps) for name in METHODS if METHODS[name].sweeps > 1]
    for name, n_updates in Progress(jobs, "digits"):
        result = tune_and_train(
            x_train, 100, config.digits_hidden, METHODS[name], n_updates, config.n_tuning, config.n_seeds,
            lambda rbm: trusted(*log_likelihood_by_ais(rbm, base_b, x_valid, *few)), DIGITS_RATES,
        )  # fmt: skip
        scores = log_likelihood_by_ais(result.rbm, base_b, x_test, config.n_ais_chains, config.n_ais_temps)
        results[name, n_updates] = OnDigits(result.rate, *(values.cpu() for values in scores))
    return results


def digits_compared(results, n_sweeps):
    """Two times {method: test nats (S,)}, at equal sweeps and at equal updates, of the {(method, updates): OnDigits} that
    AIS can be trusted with."""
    sweeps = {name: results[name, updates_for(METHODS[name], n_sweeps)] for name in METHODS}
    updates = {name: results[name, n_sweeps] for name in METHODS}
    return [{name: scored.nats for name, scored in half.items() if scored.is_trusted} for half in (sweeps, updates)]


def spread(nats):
    """The best mean minus the worst, of {method: nats (S,)}."""
    means = [values.mean().item() for values in nats.values()]
    return max(means, default=0.0) - min(means, default=0.0)


def best_and_ties(candidates):
    """The best of {name: values (S,)} by mean, and the others that are not two standard errors of the difference below."""
    rows = {name: mean_and_sem(values) for name, values in candidates.items()}
    best = max(rows, key=lambda name: rows[name][0])
    mean, sem = rows[best]  # of one repeat sem is nan: then no other is known to be worse
    return best, [name for name in rows if name != best and not mean - rows[name][0] > 2 * math.hypot(sem, rows[name][1])]


def in_brackets(ties):
    """In words, which others are as good as the best."""
    return f" (as good: {', '.join(ties)})" if ties else ""


class AISCheck(NamedTuple):
    """log Z of one machine by AIS, its standard error, the number of chains behind it, and the exact one."""

    log_z: float
    sem: float
    n_chains: int
    exact: float


def check_ais(x, n_hidden, n_updates, n_chains, n_temps):
    """Is AIS right? log Z of a machine trained on x (N, d) whose `n_hidden` units can be summed."""
    rbm = fresh_rbms(x, 1, n_hidden)
    climb(Trainer(rbm, METHODS["PCD"], 100), x, torch.full((1,), 0.3, device=x.device), n_updates)
    log_z, sem, _ = log_z_from_weights(ais(rbm, log_odds(x), n_chains, n_temps))
    return AISCheck(log_z.item(), sem.item(), n_chains, exact_log_z(rbm).item())


class Drawn(NamedTuple):
    """30 exact samples (30, 16) of a method's first machine, and which of them are no bars or stripes (30,)."""

    name: str
    v: torch.Tensor
    is_wrong: torch.Tensor


def draw_exactly(name, rbm, patterns):
    """What a method's machine believes in, by exact samples: no chain stands between the machine and the picture."""
    v = exact_samples(rbm, 30)
    return Drawn(name, v[0].cpu(), (last_pattern(v, patterns, torch.tensor(-1, device=v.device)) < 0)[0].cpu())


def draw_likelihoods(panels):
    """Each machine a dot, each mean a line; panels: (title, unit, {method: nats (S,)}, the best possible or None)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(10, 4.2), layout="constrained")
    for ax, (title, unit, nats, best) in zip(axes, panels, strict=True):
        for i, (name, values) in enumerate(nats.items()):
            style = {"color": METHODS[name].color, "marker": METHODS[name].marker, "ls": ""}
            ax.plot(i + np.linspace(-0.15, 0.15, len(values)), values.numpy(), alpha=0.6, **style)
            ax.plot([i - 0.3, i + 0.3], [values.mean().item()] * 2, color=METHODS[name].color, lw=3)
        ax.set_xticks(range(len(nats)), list(nats), rotation=30, ha="right", rotation_mode="anchor")
        ax.set(title=title, ylabel=f"log likelihood (nats {unit})")
        if best is not None:
            ax.axhline(best, color="k", ls="--", label=f"dashed: the best possible, {best:.3f}")
    fig.legend(loc="outside lower left")
    axes[-1].sharey(axes[-2])  # the digits, twice
    axes[-2].autoscale(axis="y")
    return fig


def show_patterns(ax, v, title, is_wrong=None):
    """Draw 30 patterns (30, 16) as 5 rows of 6; those marked in `is_wrong` (30,) in red."""
    ink = torch.zeros(30, 1, 1, 3) if is_wrong is None else is_wrong.view(-1, 1, 1, 1) * torch.tensor([0.84, 0.15, 0.16])
    tiles = torch.where(v.view(-1, 4, 4, 1) > 0.5, ink, 0.9)
    tiles = torch.nn.functional.pad(tiles, (0, 0, 0, 1, 0, 1), value=1.0)  # a white gap
    ax.imshow(tiles.view(5, 6, 5, 5, 3).permute(0, 2, 1, 3, 4).reshape(25, 30, 3).numpy())
    ax.set_title(title)
    ax.axis("off")


def draw_samples(patterns, drawn):
    """All patterns, and beside them what the worst and the best machine believe in."""
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    show_patterns(axes[0], patterns, "all 30 bars and stripes")
    for ax, (name, v, is_wrong) in zip(axes[1:], drawn, strict=True):
        show_patterns(ax, v, f"{name}: {int(is_wrong.sum())} of 30 exact\nsamples wrong (red)", is_wrong)
    return fig


def record_bars(run, results, nats, best):
    """The metrics of {method: Result}, whose exact likelihoods are {method: nats (S,)}, beside the best possible."""
    for name, values in nats.items():
        run.metric(f"bars, {name}: log likelihood (nats)", *mean_and_sem(values), against=("best: -ln 30", best))
        run.metric(f"bars, {name}: learning rate", results[name].rate)


def record_digits(run, results, chance):
    """The metrics of {(method, updates): OnDigits}, beside independent pixels."""
    for (name, n_updates), scored in results.items():
        title = f"digits, {name}, {n_updates:,} updates"
        run.metric(f"{title}: AIS share", scored.share.min(), against=("refused below", 0.1))
        if scored.is_trusted:
            run.metric(f"{title}: nats", *mean_and_sem(scored.nats), against=("independent pixels", chance))
            run.metric(f"{title}: rate", scored.rate)
        else:
            run.say(f"{title}: no likelihood, its AIS rests on too few chains; raise --n-ais-temps")
    if run.config.n_ais_chains <= 10:  # one chain that has all the weight is a tenth of ten
        run.say("with ten AIS chains or fewer that share cannot fall below 0.1: nothing is refused; raise --n-ais-chains")


def record_ais_check(run, x_train):
    """The metric of `check_ais`, on a machine small enough."""
    config = run.config
    n_hidden = min(14, config.digits_hidden)
    found = check_ais(x_train, n_hidden, config.digits_sweeps, 5 * config.n_ais_chains, config.n_ais_temps)
    within = tolerance(found.sem, found.n_chains)
    run.metric(f"{n_hidden} hidden units: log Z by AIS", found.log_z, found.sem, ("exact", found.exact), within)


def section_methods(run):
    """Five ways to draw the negative phase, at equal numbers of Gibbs sweeps and at equal numbers of updates."""
    config, x, (x_train, _, x_test) = run.config, bars_and_stripes().to(run.device), binary_digits(run.device)
    sweeps, best = budgets(config)[-1], theory_best_log_likelihood(x)
    results = {name: trained_on_bars(run)[name, sweeps] for name in METHODS}
    nats = {name: exact_log_likelihood(result.rbm, x).cpu() for name, result in results.items()}
    record_bars(run, results, nats, best)
    record_digits(run, trained_on_digits(run), exact_independent_log_likelihood(x_train, x_test))
    record_ais_check(run, x_train)
    equal_sweeps, equal_updates = digits_compared(trained_on_digits(run), config.digits_sweeps)
    ranked = sorted(nats, key=lambda name: nats[name].mean())
    drawn = [draw_exactly(name, results[name].rbm, x) for name in (ranked[0], ranked[-1])]
    apart = [f"{spread(values):.2f} nats apart" for values in (nats, equal_sweeps, equal_updates)]
    panels = [
        (f"Bars, {sweeps:,} sweeps each:\n{apart[0]}", "a pattern, exact", nats, best),
        (f"Digits, {config.digits_sweeps:,} sweeps each:\n{apart[1]}", "an image, AIS", equal_sweeps, None),
        (f"Digits, {config.digits_sweeps:,} updates each:\n{apart[2]}", "an image, AIS", equal_updates, None),
    ]
    run.figure(draw_likelihoods(panels), "likelihoods")
    run.figure(draw_samples(x.cpu(), drawn), "samples")
    nearest, ties = best_and_ties(nats)
    gap = best - nats[nearest].mean()
    run.say(f"bars: {nearest}{in_brackets(ties)} comes nearest to the best possible, {gap:.2f} nats below it")
    run.say(f"digits: at equal sweeps the methods are {apart[1]}, at equal updates {apart[2]}")


# %% 3. What misleads
# Reconstruction error, |x - E[v | h]|² with h ~ p(h | x), asks whether *one sweep* stays near the data. A machine whose
# chains cannot move reconstructs everything, whatever else it believes in; and CD-1 trains chains not to move away in
# one sweep. Spurious modes far from the data are never visited, so nothing ever raises their energy (Fischer & Igel 2010).


def reconstruction_error(rbm, x, n_draws=20):
    """Squared error (S,) of one sweep from patterns x (N, d), in pixels a pattern."""
    x = x.repeat(n_draws, 1).expand(len(rbm.W), -1, -1)
    return (x - rbm.p_visible(bernoulli(rbm.p_hidden(x)))).square().sum(2).mean(1)


class Watched(NamedTuple):
    """A training as it goes on: K marks (in updates), what was measured there, and the mark where the likelihood peaks."""

    marks: list
    nats: torch.Tensor  # exact mean log likelihood, (K, S)
    errors: torch.Tensor  # reconstruction error, (K, S)
    peak: int


def watch_cd_1(x, n_hidden, n_machines, n_updates, rate=0.3):
    """CD-1 on patterns x (N, d) at a constant rate: what is usually watched, and what counts."""
    marks = sorted(set(np.geomspace(10, max(n_updates, 20), 40).astype(int).tolist()))
    rbm, rates = fresh_rbms(x, n_machines, n_hidden), torch.full((n_machines,), rate, device=x.device)
    kept = climb(Trainer(rbm, METHODS["CD-1"], len(x)), x, rates, marks[-1], marks, anneal=False)
    nats = torch.stack([exact_log_likelihood(machines, x) for machines in kept.values()]).cpu()
    errors = torch.stack([reconstruction_error(machines, x) for machines in kept.values()]).cpu()
    return Watched(marks, nats, errors, nats.mean(1).argmax().item())


def clearly_falls(change):
    """Whether the mean of each machine's change (S,) is three standard errors below 0. Two would be few: the peak that the
    change is counted from was picked as the best of many marks, so noise alone makes the mean negative."""
    mean, sem = mean_and_sem(change)
    return mean < -3 * sem


def draw_watched(watched, best, titles):
    """Reconstruction error and likelihood of each machine and of their mean, against updates."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    for ax, title, values, color in zip(axes, titles, (watched.errors, watched.nats), ("0.4", "tab:red"), strict=True):
        ax.plot(watched.marks, values.numpy(), color=color, alpha=0.3, lw=1)
        ax.plot(watched.marks, values.mean(1).numpy(), color=color, lw=3)
        ax.axvline(watched.marks[watched.peak], color="k", ls=":", label="the likelihood's peak")
        ax.set(title=title, xscale="log", xlabel="updates of CD-1 at a constant rate")
    axes[0].set(ylabel="reconstruction error (pixels a pattern)", yscale="log")
    axes[1].axhline(best, color="k", ls="--", label="the best possible")
    axes[1].set(ylabel="log likelihood (nats a pattern)")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def section_misleading(run):
    """Under CD-1 the reconstruction error keeps falling while the exact likelihood falls too."""
    config, x = run.config, bars_and_stripes().to(run.device)
    watched = watch_cd_1(x, config.n_hidden, config.n_seeds, config.n_sweeps)
    changes = []
    for name, values in (("likelihood (nats)", watched.nats), ("reconstruction (pixels)", watched.errors)):
        changes.append(values[-1] - values[watched.peak])
        run.metric(f"{name} at its peak", *mean_and_sem(values[watched.peak]))
        run.metric(f"{name}: change since", *mean_and_sem(changes[-1]), against=("the peak", 0))
    falls, improves = (clearly_falls(change) for change in changes)
    titles = [
        f"What is watched {'improves' if improves else 'does not clearly improve'} ...",
        f"... while the likelihood {'falls' if falls else 'does not clearly fall'}",
    ]
    run.figure(draw_watched(watched, theory_best_log_likelihood(x), titles), "reconstruction")
    ending = "who watches it is misled" if improves and falls else "in this run nobody is misled"
    run.say(f"after update {watched.marks[watched.peak]:,} the error changes by {changes[1].mean():.2g} pixels a pattern")
    run.say(f"and the likelihood by {changes[0].mean():.2f} nats: {ending}")


# %% 4. Chains
# A persistent chain is always late: it samples machines of some updates ago. But lateness pushes. Where chains are too
# many, their energy is raised until they leave (Tieleman & Hinton 2009). Three numbers tell what learning does to chains:
# - the *lag*, the chains' mean energy above the model's own, which is summed exactly. The chains begin as exact samples,
#   so that at rate 0 it must be 0;
# - the chains' mode switches while the machine learns, beside those of the *same end machine, frozen*: its parameters
#   are kept, exact samples are its chains, and nothing but Gibbs sampling moves them;
# - the end machine's exact likelihood: a constant rate that is too high drives the chains on and *un-learns* the data.
# The frozen machine shows what a stuck chain looks like: a flat line. Its *autocorrelation* over ten sweeps is near 1, its
# effective sample size (ESS) near 0. R-hat (module 01: how much wider the chains are together than each alone) finds out if
# the chains start in *different* modes: they do not agree. What the mean over such chains says is only where they were put.


def last_pattern(v, patterns, last):
    """Which of the patterns (N, d) each v (..., d) is; where it is none, what it was last (...)."""
    agreement, which = (v @ (2 * patterns - 1).T - patterns.sum(1)).max(-1)
    return torch.where(agreement == 0, which, last)


def barness(v):
    """(variance of the column means - variance of the row means) of 4x4 images (..., 16): > 0 for bars, < 0 for stripes."""
    images = v.unflatten(-1, (4, 4))
    return images.mean(-2).var(-1) - images.mean(-1).var(-1)


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


# Copied from 01_ebm_foundations.py: effective_sample_size
def effective_sample_size(chains):
    """Number of independent draws worth as much as chains (n_chains, n_draws) for a mean: Geyer's initial monotone
    sequence on the split chains (Geyer 1992; Vehtari et al. 2021)."""
    halves = split(chains)
    rho = autocorrelation(halves)
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(1)
    positive = (pairs > 0).cumprod(0)  # up to the first pair that is not
    tau = 2 * (positive * pairs.cummin(0).values).sum() - 1
    return halves.numel() / tau.clamp(min=1 / math.log10(halves.numel()))  # draws that alternate about the mean can beat N


class SwitchCounter:
    """Counts how often chains come to another of `patterns` (N, d) than the one where they were last."""

    def __init__(self, patterns):
        self.patterns, self.last, self.switches, self.n_sweeps = patterns, torch.tensor(-1, device=patterns.device), -1, 0

    def see(self, v):
        """Chains v (S, n, d) after another sweep."""
        last = last_pattern(v, self.patterns, self.last)
        self.switches, self.last, self.n_sweeps = self.switches + (last != self.last), last, self.n_sweeps + 1

    def per_1000(self):
        """Switches of a chain in 1,000 sweeps, (S,); the pattern that it comes to first is none."""
        return 1000 * self.switches.clamp(min=0).float().mean(1) / self.n_sweeps


def diagnose(rbm, start, patterns, n_draws, n_replicas):
    """Chains of S machines from `start` (S, n, 16), tempered or not: barness (S, n, n_draws), mode switches a 1,000 (S,)."""
    n, betas, counter, draws = start.shape[1], torch.linspace(1, 0, n_replicas).to(start), SwitchCounter(patterns), []
    v = start.repeat(1, n_replicas, 1)
    for _ in range(n_draws):
        v = temper(rbm, v, betas)
        counter.see(v[:, :n])
        draws.append(barness(v[:, :n]))
    return torch.stack(draws, 2), counter.per_1000()


def exact_mean_energy(rbm):
    """E_p[E(v, h)], (S,), by enumeration of the hidden states."""
    h, p = hidden_states(rbm)
    return (p * rbm.upside_down.mean_energy(h)).sum(1)


def exact_mean_barness(rbm):
    """E_p[barness(v)], (S,), by enumeration of the 2^16 images."""
    v, p = visible_states(rbm)
    return (p * barness(v)).sum(1)


def lag_while_learning(rbm, x, rates, n_updates, every=50):
    """PCD on x (N, d), in place, at constant rates (S,), from exact samples. Returns each chain's mean energy above the
    model's own, over the second half of the updates, (S, N), and mode switches in 1,000 sweeps (S,)."""
    trainer = Trainer(rbm, METHODS["PCD"], len(x), exact_samples(rbm, len(x)))
    counter, batch, lags = SwitchCounter(x), x.expand(len(rates), -1, -1), []
    for update in Progress(range(n_updates), "lag"):
        trainer.step(batch, rates.view(-1, 1, 1))
        counter.see(trainer.chains)
        if update >= n_updates // 2 and (n_updates - 1 - update) % every == 0:
            lags.append(rbm.mean_energy(trainer.chains) - exact_mean_energy(rbm).unsqueeze(1))
    return torch.stack(lags).mean(0), counter.per_1000()


def switches_frozen(rbm, x, n_sweeps):
    """Mode switches in 1,000 sweeps (S,) of len(x) chains of machines that do not change, from exact samples."""
    v, counter = exact_samples(rbm, len(x)), SwitchCounter(x)
    for _ in range(n_sweeps):
        v = gibbs(rbm, v, 1)
        counter.see(v)
    return counter.per_1000()


class Learning(NamedTuple):
    """S machines that go on learning by PCD at one constant rate."""

    lag: torch.Tensor  # nats, of each chain, (S, N)
    nats: torch.Tensor  # the end machines' exact log likelihood, (S,)
    switches: torch.Tensor  # in 1,000 sweeps while learning, (S,)
    frozen: torch.Tensor  # in 1,000 sweeps of the end machines, frozen, (S,)


LEARNING_RATES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)


def measure_learning(rbm, x, n_updates, n_copies=3):
    """{learning rate: Learning} for copies of S machines that go on learning x (N, d), with n_copies N chains each."""
    rates, many = torch.tensor(LEARNING_RATES, device=x.device).repeat_interleave(len(rbm.W)), x.repeat(n_copies, 1)
    machines = RBM(*(parameter.repeat(len(LEARNING_RATES), 1, 1) for parameter in rbm))
    lag, switches = lag_while_learning(machines, many, rates, n_updates)
    found = lag, exact_log_likelihood(machines, x), switches, switches_frozen(machines, many, n_updates)
    rows = zip(*(values.cpu().unflatten(0, (len(LEARNING_RATES), -1)) for values in found), strict=True)
    return {rate: Learning(*row) for rate, row in zip(LEARNING_RATES, rows, strict=True)}


class Mixing(NamedTuple):
    """What the chains of S machines look like."""

    r_hat: torch.Tensor  # (S,)
    rho: torch.Tensor  # autocorrelation over ten sweeps, (S,)
    ess: torch.Tensor  # independent draws that 1,000 sweeps are worth, (S,)
    switches: torch.Tensor  # mode switches of a chain in 1,000 sweeps, its replicas' counted, (S,)
    error: torch.Tensor  # |mean over all chains - exact mean| of barness, (S,)
    trace: torch.Tensor  # the first machine's barness in three chains, (3, up to 300)
    exact: float  # its exact mean


def measure_mixing(rbm, start, patterns, n_draws, n_replicas=1):
    """Chains of S machines from `start` (S, n, 16), and what the diagnostics say of them; tempered if n_replicas > 1."""
    draws, switches = (values.cpu() for values in diagnose(rbm, start, patterns, n_draws, n_replicas))
    exact, ten = exact_mean_barness(rbm).cpu(), -(-10 // n_replicas)  # rounds; each costs a sweep of every replica
    return Mixing(
        r_hat=torch.stack([split_r_hat(chains) for chains in draws]),
        rho=torch.stack([autocorrelation(chains)[ten] for chains in draws]),
        ess=1000 * torch.stack([effective_sample_size(chains) for chains in draws]) / (draws[0].numel() * n_replicas),
        switches=switches / n_replicas,
        error=(draws.mean((1, 2)) - exact).abs(),
        trace=draws[0, ::13, :300],
        exact=exact[0].item(),
    )


def draw_learning(found, best):
    """Lag, likelihood and mode switches against the learning rate; found: {rate: Learning}, 0 among the rates."""
    fig, axes = plt.subplots(1, 3, figsize=(10, 4.3), layout="constrained")
    rates, names = [rate for rate in found if rate], ("lag", "nats", "switches")
    found_by = {name: [getattr(learning, name) for learning in found.values()] for name in Learning._fields}
    found_by["lag"] = [chains.mean(1) for chains in found_by["lag"]]  # those of one machine that learns go together
    rows = {name: mean_and_sem_rows(values) for name, values in found_by.items()}
    for ax, name, label in zip(axes, names, ("while it learns", "at the end", "while it learns"), strict=True):
        ax.errorbar(rates, *rows[name][:, 1:], fmt="^-", color=METHODS["PCD"].color, label=label)
        ax.set(xscale="log", xlabel="learning rate")
    axes[0].axhline(rows["lag"][0, 0], color="0.4", ls=":", label="rate 0")
    axes[1].axhline(rows["nats"][0, 0], color="0.4", ls=":", label="before")
    axes[1].axhline(best, color="k", ls="--", label="the best possible")
    axes[2].errorbar(rates, *rows["frozen"][:, 1:], fmt="x--", color="k", label="the end machine, frozen")
    change, times = rows["nats"][0, -1] - rows["nats"][0, 0], rows["switches"][0, -1] / max(rows["frozen"][0, -1], 1e-9)
    axes[0].set(title=f"Chains lag by up to {rows['lag'][0].max():.1f} nats", ylabel="energy above the model's (nats)")
    axes[1].set(title=f"Rate {rates[-1]:g} {'un-learns' if change < 0 else 'gains'} {abs(change):.1f} nats")
    axes[1].set_ylabel("log likelihood (nats a pattern)")
    frozen = f"{times:.0f} times the frozen" if times < 1e6 else "none when frozen"
    axes[2].set(title=f"Switches: {frozen}", ylabel="mode switches in 1,000 sweeps")
    for ax in axes:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    return fig


def draw_traces(found):
    """Three chains of each case beside the exact mean; found: {case: Mixing}."""
    fig, axes = plt.subplots(1, len(found), figsize=(10, 3.4), sharey=True, layout="constrained")
    for ax, (name, mixing) in zip(axes, found.items(), strict=True):
        for trace, color in zip(mixing.trace.numpy(), ("black", "peru", "0.6"), strict=True):
            ax.plot(trace, color=color, lw=0.9)
        ax.axhline(mixing.exact, color="tab:cyan", ls="--", lw=2, label="exact mean")
        r_hat, error = mixing.r_hat.mean(), mixing.error.mean()
        ax.set(title=f"{name}\nR-hat {r_hat:.2f}, error {error:.3f}", xlabel="sweeps at $\\beta = 1$")
    axes[0].set_ylabel("stripes < 0 < bars (3 chains)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center")
    return fig


def record_mixing(run, name, mixing):
    """The metrics of one case of `measure_mixing`."""
    if mixing.r_hat.isfinite().all():
        run.metric(f"{name}: R-hat", *mean_and_sem(mixing.r_hat), against=("agreed", 1))
    else:
        run.say(f"{name}: R-hat is infinite, since no chain moved and they stand in different places")
    run.metric(f"{name}: autocorr. in 10 sweeps", *mean_and_sem(mixing.rho), against=("independent", 0))
    run.metric(f"{name}: ESS of 1,000 sweeps", *mean_and_sem(mixing.ess), against=("independent", 1000))
    run.metric(f"{name}: switches in 1,000", *mean_and_sem(mixing.switches))
    run.metric(f"{name}: error of the mean", *mean_and_sem(mixing.error), against=("exact mean", 0))


def record_learning(run, found):
    """The metrics of `measure_learning`, and what they say."""
    before = found[0.0].nats.mean()
    for rate, learning in found.items():
        if rate == 0:  # chains of a frozen machine are independent: each is a repeat, and theory promises that none lags
            mean, sem = mean_and_sem(learning.lag.flatten())
            run.metric("rate 0: lag (nats)", mean, sem, ("exact samples", 0), tolerance(sem, learning.lag.numel()))
        else:
            run.metric(f"rate {rate:g}: lag (nats)", *mean_and_sem(learning.lag.mean(1)), ("no lag", 0))
        run.metric(f"rate {rate:g}: likelihood at the end (nats)", *mean_and_sem(learning.nats), ("before", before))
        against = "end machine, frozen", learning.frozen.mean()
        run.metric(f"rate {rate:g}: switches in 1,000", *mean_and_sem(learning.switches), against)
    change, moving, still = learning.nats.mean() - before, learning.switches.mean(), learning.frozen.mean()
    run.say(
        f"at rate {rate:g} a chain switches {moving:.2g} times in 1,000 sweeps, in the same end machine frozen {still:.2g}"
    )
    run.say(f"and meanwhile that machine {'gains' if change > 0 else 'loses'} {abs(change):.2f} nats")


def section_chains(run):
    """Persistent chains lag behind a machine that learns, and move because it learns; frozen, they are stuck."""
    config, x, results = run.config, bars_and_stripes().to(run.device), trained_on_bars(run)
    trained, early = results["tempering", budgets(config)[-1]].rbm, results["PCD", budgets(config)[0]].rbm
    learning = measure_learning(trained, x, config.n_lag_updates)
    record_learning(run, learning)
    run.figure(draw_learning(learning, theory_best_log_likelihood(x)), "lag")
    apart, alike = x.expand(config.n_seeds, -1, -1), x[3].expand(config.n_seeds, len(x), -1)
    found = {
        "early machine": measure_mixing(early, apart, x, config.n_draws),
        "trained, one start": measure_mixing(trained, alike, x, config.n_draws),
        "trained, all starts": measure_mixing(trained, apart, x, config.n_draws),
        "trained, tempering": measure_mixing(trained, apart, x, config.n_draws, METHODS["tempering"].n_replicas),
    }
    for name, mixing in found.items():
        record_mixing(run, name, mixing)
    run.figure(draw_traces(found), "traces")
    stuck = [name for name, mixing in found.items() if not mixing.r_hat.mean() < 1.1]
    run.say(f"R-hat says that these disagree (1.1 or more): {'; '.join(stuck) or 'none'}")


# %% 5. Convergence
# Every point below is a training of its own, tuned and finished at its budget: stopping a long training early would
# show a rate that has not fallen yet. The table makes its choices from these numbers, and names all that are as good.
# Its rows of seconds take, of each method, the best training that ended in time. They are the crudest: the seconds are
# measured once, on this computer, and whoever just misses the limit is judged by the next budget below, a third.


class Choice(NamedTuple):
    """What to take in one situation."""

    situation: str
    best: str
    nats: float
    ties: list


def situations(nats, seconds, digits):
    """{situation: {method: nats (S,)}} from {(method, sweeps): nats (S,)}, their seconds, and the digits' {method: nats}."""
    steps = sorted({sweeps for _, sweeps in nats})
    found = {f"{sweeps:,} sweeps": {name: nats[name, sweeps] for name in METHODS} for sweeps in steps}
    fastest = min(seconds[name, steps[-1]] for name in METHODS)
    for limit in (fastest / 9, fastest):
        affordable = [key for key in sorted(nats, key=lambda key: nats[key].mean()) if seconds[key] <= limit]
        if affordable:  # the best of each method comes last, and stays in the dictionary
            found[f"{limit:.2g} seconds"] = {name: nats[name, sweeps] for name, sweeps in affordable}
    return found | ({"digits, test (AIS)": digits} if digits else {})


def recommend(found):
    """A Choice for each of {situation: {method: nats (S,)}}."""
    picks = {situation: best_and_ties(candidates) for situation, candidates in found.items()}
    return [Choice(name, best, found[name][best].mean().item(), ties) for name, (best, ties) in picks.items()]


def draw_curves(nats, seconds, best):
    """Likelihood against sweeps and against seconds; both keyed by (method, sweeps)."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for name, method in METHODS.items():
        keys = [key for key in nats if key[0] == name]
        rows = mean_and_sem_rows([nats[key] for key in keys])
        for ax, axis in zip(axes, ([sweeps for _, sweeps in keys], [seconds[key] for key in keys]), strict=True):
            ax.errorbar(axis, *rows, fmt=f"{method.marker}-", color=method.color, label=name)
    for ax, label in zip(axes, ("Gibbs sweeps of each chain", "seconds for all machines"), strict=True):
        ax.axhline(best, color="k", ls="--", label="the best possible")
        ax.set(xscale="log", xlabel=label)
    axes[0].set(title="Bars and stripes against sweeps ...", ylabel="log likelihood (nats a pattern)")
    axes[1].set(title="... and against time on this computer")
    axes[0].legend()
    return fig


HEADER = ("with", "choose", "nats", "as good (within 2 standard errors)")


def draw_table(choices):
    """The table of what to choose when."""
    rows = [(choice.situation, choice.best, f"{choice.nats:.2f}", ", ".join(choice.ties) or "none") for choice in choices]
    fig, ax = plt.subplots(figsize=(10, 0.42 * len(rows) + 1), layout="constrained")
    table = ax.table(rows, colLabels=HEADER, cellLoc="left", loc="center", colWidths=(0.25, 0.15, 0.12, 0.48))
    table.auto_set_font_size(False)
    table.set_fontsize(11)
    table.scale(1, 1.7)
    ax.set_title("What to choose when, by this run's own numbers")
    ax.axis("off")
    return fig


def section_convergence(run):
    """What to choose depends on the budget: likelihood against sweeps and against seconds, and a table made from them."""
    x, results = bars_and_stripes().to(run.device), trained_on_bars(run)
    best = theory_best_log_likelihood(x)
    nats = {key: exact_log_likelihood(result.rbm, x).cpu() for key, result in results.items()}
    seconds = {key: result.seconds for key, result in results.items()}
    digits, _ = digits_compared(trained_on_digits(run), run.config.digits_sweeps)
    for name in METHODS:
        for sweeps in budgets(run.config):
            row = mean_and_sem(nats[name, sweeps])
            run.metric(f"{name}, {sweeps:,} sweeps: likelihood (nats)", *row, against=("best: -ln 30", best))
        run.metric(f"{name}, {sweeps:,} sweeps: training (s)", seconds[name, sweeps])
    chosen = [(RATES, results), (DIGITS_RATES, trained_on_digits(run))]
    at_an_end = sum(result.rate in (grid[0], grid[-1]) for grid, trained in chosen for result in trained.values())
    run.metric("learning rates chosen at an end of the grid", at_an_end, against=("none", 0))
    run.figure(draw_curves(nats, seconds, best), "curves")
    choices = recommend(situations(nats, seconds, digits))
    run.figure(draw_table(choices), "table")
    for choice in choices:
        run.say(f"with {choice.situation} choose {choice.best}, {choice.nats:.2f} nats{in_brackets(choice.ties)}")


SECTIONS = {
    "bias": section_bias,
    "methods": section_methods,
    "misleading": section_misleading,
    "chains": section_chains,
    "convergence": section_convergence,
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


# Copied from 01_ebm_foundations.py: tolerance
def tolerance(sem, n, n_compared=1):
    """How far the mean of n independent repeats may lie from its exact value: Student's t with n - 1 degrees of freedom at
    one false alarm in 10,000, shared by the `n_compared` of which the worst is judged, times sem. None for n < 2."""
    return None if n < 2 else scipy.stats.t.isf(1e-4 / (2 * n_compared), n - 1) * sem


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
