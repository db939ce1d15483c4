"""Module 04 - Restricted Boltzmann machines: train them on real digits, and find out how good they really are.

Visible units v ∈ {0,1}^d, hidden units h ∈ {0,1}^m, and no connection within a layer:

    E(v, h) = -v·W h - b·v - c·h,                  p(v, h) = exp(-E(v, h)) / Z           (1)
    P(h_j = 1 | v) = σ(c_j + (v W)_j),             P(v_i = 1 | h) = σ(b_i + (W h)_i)     (2)
    F(v) = -b·v - Σ_j log(1 + exp(c_j + (v W)_j)),         p(v) = exp(-F(v)) / Z         (3)
    ∂ log p(v)/∂W = v ĥ(v)ᵀ - E_{v'~p}[v' ĥ(v')ᵀ],        ĥ(v) = P(h = 1 | v)            (4)

Run      python 04_restricted_boltzmann_machines.py                    all sections, about 3 min on two CPU cores
         python 04_restricted_boltzmann_machines.py --section likelihood --show
         python 04_restricted_boltzmann_machines.py --dataset mnist --n-hidden 500 --learning-rate 0.05 --section likelihood
Writes   outputs/04_restricted_boltzmann_machines/*.png and metrics.json
Before   module 03        Exercises  ex04_1, ex04_2, ex04_3, ex04_4, o1
Sources  Smolensky (1986); Younes (1989, 1999); Hinton (2002, 2012); Welling, Rosen-Zvi & Hinton (2005); Hinton, Osindero &
         Teh (2006); Larochelle & Bengio (2008); Salakhutdinov & Murray (2008); Tieleman (2008); Grosse, Ghahramani & Adams
         (2015); Decelle, Fissore & Furtlehner (2017); Decelle, Furtlehner & Seoane (2021)
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
from typing import Annotated, Literal, NamedTuple, get_args, get_type_hints

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: on a busy machine scikit-learn's small fits crawl on several

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import BernoulliRBM
from sklearn.svm import SVC
from torch.nn.functional import one_hot, softplus
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    dataset: Annotated[Literal["digits", "mnist"], "digits: 8x8, embedded; mnist: 28x28, torchvision"] = "digits"
    n_hidden: Annotated[int, "hidden units of the large machine"] = 128
    n_small: Annotated[int, "hidden units of the small one, whose 2^n states are enumerated; at most 20"] = 16
    n_updates: Annotated[int, "parameter updates a training"] = 20000
    batch_size: Annotated[int, "images, and chains, an update"] = 100
    learning_rate: Annotated[float, "learning rate at the start; it falls linearly to 0"] = 0.3
    weight_decay: Annotated[float, "pull of the weights to 0, per unit of learning rate"] = 1e-3
    n_seeds: Annotated[int, "trainings behind each mean likelihood"] = 3
    n_ais_chains: Annotated[int, "annealed importance sampling: chains"] = 300
    n_ais_temps: Annotated[int, "annealed importance sampling: temperatures"] = 2000
    n_gibbs: Annotated[int, "Gibbs sweeps behind a fantasy or a completion"] = 500
    n_patches: Annotated[int, "image patches, for training and for testing"] = 20000
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1

    def __post_init__(self):
        if self.n_small > 20:
            sys.exit(f"--n-small must be at most 20, since 2^n states are enumerated, not {self.n_small}")
        if self.learning_rate > 1e30:
            sys.exit(
                f"--learning-rate must be at most 1e30, the end of single precision being near, not {self.learning_rate}"
            )
        if self.learning_rate * self.weight_decay >= 1:
            sys.exit("--learning-rate times --weight-decay must be below 1: beyond, decay turns the weights' signs")
        if self.n_patches < 400:
            sys.exit(f"--n-patches must be at least 400, to estimate the covariance of 64 pixels, not {self.n_patches}")


SMOKE = {"n_hidden": 24, "n_small": 8, "n_updates": 60, "n_seeds": 2, "n_gibbs": 10, "n_patches": 1000}
SMOKE |= {"n_ais_chains": 20, "n_ais_temps": 30}


# %% 0. Data
# An RBM's pixels are binary. The 8x8 digits are cut at half of the maximum; MNIST's grey levels are taken as
# probabilities and sampled once, as in the paper that we compare with. Likelihoods of the two kinds do not compare.


def load_images(dataset):
    """Real handwritten digits: grey levels in [0, 1] and labels as x_train (N, d), x_test, y_train, y_test."""
    if dataset == "digits":
        x, y = load_digits(return_X_y=True)
        return train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=0)
    try:
        from torchvision.datasets import MNIST  # here, since it does not import beside every build of torch

        train, test = (MNIST("data", train=is_train, download=True) for is_train in (True, False))
        return train.data.flatten(1).numpy() / 255, test.data.flatten(1).numpy() / 255, train.targets, test.targets
    except Exception as error:  # torchvision raises many kinds
        cause = " ".join((str(error) or repr(error)).split())[
            -400:
        ]  # torchvision names the cause last, on a line of its own
        cure = "install a torchvision that fits torch" if "torchvision" in cause else "delete data/MNIST and try again"
        sys.exit(f"cannot load MNIST ({cause}): {cure}, or use --dataset digits")


@functools.cache
def binary_images(run):
    """The run's data set: binary x_train (N, d), x_test on its device, y_train, y_test (numpy)."""
    config, (x_train, x_test, y_train, y_test) = run.config, load_images(run.config.dataset)
    n_epochs = config.n_updates * config.batch_size / len(x_train)
    if n_epochs < 100:  # 128 hidden units on the digits: 100 epochs end 1.7 nats below 1,400
        echo(f"  note: {n_epochs:.0f} epochs are few; likelihoods are likely to rise with --n-updates")
    if config.dataset == "mnist" and config.learning_rate > 0.1:
        echo("  note: on 784 pixels --learning-rate 0.05 does better than the digits' default")
    rng = np.random.default_rng(0)
    cut = (lambda x: x > 0.5) if config.dataset == "digits" else (lambda x: rng.random(x.shape) < x)
    x_train, x_test = (torch.tensor(cut(x), dtype=torch.float32, device=run.device) for x in (x_train, x_test))
    return x_train, x_test, np.asarray(y_train), np.asarray(y_test)


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


def seeds_from(seed, n):
    """n seeds from `seed` on, within what NumPy and scikit-learn take."""
    return [(seed + i) % 2**32 for i in range(n)]


def show_images(ax, images, n_columns, title, **imshow):
    """Draw square images (N, d) on one axis, a mosaic of `n_columns` columns with a gap between the tiles."""
    images, side = to_numpy(images), math.isqrt(images.shape[1])
    if side**2 != images.shape[1]:
        raise ValueError(f"images of {images.shape[1]} pixels are not square")
    n_rows = -(-len(images) // n_columns)
    tiles = np.full((n_rows * n_columns, side + 1, side + 1), np.nan)  # nan: the gaps, and the places that stay empty
    tiles[: len(images), :side, :side] = images.reshape(-1, side, side)
    mosaic = tiles.reshape(n_rows, n_columns, side + 1, side + 1).swapaxes(1, 2).reshape(n_rows * (side + 1), -1)
    ax.imshow(mosaic[:-1, :-1], **({"cmap": "gray_r", "vmin": 0, "vmax": 1} | imshow))
    ax.set_title(title)
    ax.axis("off")


# %% 1. The bipartite trick
# Collect in E all that concerns h_j: -h_j (c_j + (v W)_j). Given v, the hidden units do not meet: p(h | v) is a product
# of the logistic factors of eq. (2), and a whole layer is sampled at once. Summing each h_j out of exp(-E) gives
#     Σ_h exp(-E(v, h)) = exp(b·v) Σ_h Π_j exp(h_j (c_j + (v W)_j))
#                       = exp(b·v) Π_j (1 + exp(c_j + (v W)_j)) = exp(-F(v)),
# which is eq. (3): p(v) without its 2^m hidden states. What is left of the price is Z, a sum over one layer.


class RBM(NamedTuple):
    """The parameters of eq. (1), and all that follows from them in closed form. v is (B, d), h is (B, m)."""

    W: torch.Tensor  # (d, m)
    b: torch.Tensor  # (d,) visible biases
    c: torch.Tensor  # (m,) hidden biases

    def energy(self, v, h):
        """E(v, h) of eq. (1), (B,)."""
        return -((v @ self.W) * h).sum(-1) - v @ self.b - h @ self.c

    def free_energy(self, v):
        """F(v) of eq. (3), (B,)."""
        return -(v @ self.b) - softplus(v @ self.W + self.c).sum(-1)

    def p_hidden(self, v):
        """P(h_j = 1 | v) of eq. (2), (B, m)."""
        return torch.sigmoid(v @ self.W + self.c)

    def p_visible(self, h):
        """P(v_i = 1 | h) of eq. (2), (B, d)."""
        return torch.sigmoid(h @ self.W.T + self.b)


def coin_buffer(p):
    """Memory for the coins of `bernoulli`: 64-bit words, and the same bits as 16-bit integers in the shape of p."""
    words = torch.empty(-(-p.numel() // 4), dtype=torch.int64, device=p.device)
    return words, words.view(torch.int16)[: p.numel()].view(p.shape)


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


def noise_like(v):
    """Fair coins in the shape of v."""
    return bernoulli(torch.full_like(v, 0.5))


def gibbs(rbm, v, n_sweeps):
    """`n_sweeps` sweeps v -> h -> v of block Gibbs sampling from v (B, d); returns the last v, (B, d)."""
    for _ in range(n_sweeps):
        v = bernoulli(rbm.p_visible(bernoulli(rbm.p_hidden(v))))
    return v


# Differs from 02_hopfield_networks.py: all_states - units are 0 or 1 here
def all_states(n):
    """Every binary vector of length n, (2^n, n)."""
    return (torch.arange(2**n).unsqueeze(1) >> torch.arange(n) & 1).float()


def exact_log_z(rbm):
    """log Z: one layer summed out by eq. (3), the smaller one enumerated. ValueError above 2^24 states."""
    d, m = rbm.W.shape
    if d < m:
        return exact_log_z(RBM(rbm.W.T, rbm.c, rbm.b))
    if m > 24:
        raise ValueError(f"2^{m} hidden states are too many to enumerate")
    parts = [-RBM(rbm.W.T, rbm.c, rbm.b).free_energy(h) for h in all_states(m).to(rbm.W).split(2**14)]
    return torch.cat(parts).logsumexp(0)


def exact_log_likelihood(rbm, x):
    """The mean log likelihood (nats) of x (N, d)."""
    return -rbm.free_energy(x).mean() - exact_log_z(rbm)


def exact_joint(rbm):
    """p(v, h) as a table (2^d, 2^m), and log Z, from eq. (1) alone: every state of both layers."""
    v, h = (all_states(len(bias)).to(bias) for bias in (rbm.b, rbm.c))
    minus_e = -torch.stack([rbm.energy(v, state.expand(len(v), -1)) for state in h], 1)
    log_z = minus_e.logsumexp((0, 1))
    return (minus_e - log_z).exp(), log_z


def product_probabilities(p, states):
    """Probability of each state (S, n) under each row of independent units p (A, n), (A, S)."""
    log_p, log_q = (log.clamp(min=-1e4) for log in (p.log(), (-p).log1p()))  # at p = 0 or 1: 0 * inf would be nan
    return (log_p @ states.T + log_q @ (1 - states).T).exp()


def exact_gibbs_kernel(rbm):
    """Block Gibbs as a Markov kernel, (2^d, 2^d): K(v, v') = Σ_h p(h | v) p(v' | h). Its powers say how far a chain is."""
    v, h = (all_states(len(bias)).to(bias) for bias in (rbm.b, rbm.c))
    return product_probabilities(rbm.p_hidden(v), h) @ product_probabilities(rbm.p_visible(h), v)


def total_variation(p, q):
    """Half the sum of |p - q| over the last axis."""
    return (p - q).abs().sum(-1) / 2


def state_shares(v):
    """How often each of the 2^d states of `all_states` occurs among v (groups, N, d), as shares (groups, 2^d)."""
    n_groups, n, d = v.shape
    state = (v @ 2.0 ** torch.arange(d).to(v)).long() + 2**d * torch.arange(n_groups).unsqueeze(1)
    return torch.bincount(state.flatten(), minlength=n_groups * 2**d).reshape(n_groups, 2**d) / n


def theory_counting_error(p, n):
    """Expected total variation between p (S,) and the shares of n independent draws from it.

    A binomial count's mean distance from its mean is 2 k C(n, k) p^k (1 - p)^(n - k + 1), k = floor(n p) + 1 (De Moivre
    1730; Diaconis & Zabell 1991)."""
    p = to_numpy(p).astype(np.float64)
    k = np.floor(n * p) + 1
    return (k * scipy.stats.binom.pmf(k, n, p) * (1 - p)).sum() / n


def two_mode_rbm(d, m):
    """An RBM with random weights that finds v and its mirror image 1 - v equally likely: two modes at least."""
    weights = 2 * torch.randn(d, m)
    return RBM(weights, -weights.sum(1) / 2, -weights.sum(0) / 2)


class Closed(NamedTuple):
    """Eq. (2), eq. (3) and log Z beside the enumerated joint: log Z twice, and the largest errors."""

    log_z: float
    joint_log_z: float
    p_hidden_error: float
    free_energy_error: float


def check_closed_forms(rbm):
    """Whether the closed forms of a small RBM equal sums over all states of both layers."""
    v, h, (joint, log_z) = *(all_states(len(bias)).to(bias) for bias in (rbm.b, rbm.c)), exact_joint(rbm)
    p_hidden = joint @ h / joint.sum(1, keepdim=True)
    free_energy = -joint.sum(1).log() - log_z
    errors = (
        (closed - summed).abs().max().item()
        for closed, summed in ((rbm.p_hidden(v), p_hidden), (rbm.free_energy(v), free_energy))
    )
    return Closed(exact_log_z(rbm).item(), log_z.item(), *errors)


class Forgetting(NamedTuple):
    """Gibbs chains from v = 0: their shares at the end (2^d,), p(v), and total variation to p(v) after each sweep."""

    shares: torch.Tensor
    p_v: torch.Tensor
    measured: list
    exact: list
    group_errors: torch.Tensor  # (groups,) total variation at the end between a group's shares and the kernel's power
    expected_error: float  # of as many independent draws from that power


def forget_the_start(rbm, n_sweeps, n_groups=40, n_chains=2000):
    """Total variation to p(v) of `n_groups` groups of chains from v = 0, counted, and by powers of the exact kernel."""
    p_v, kernel, d = exact_joint(rbm)[0].sum(1), exact_gibbs_kernel(rbm), len(rbm.b)
    chains, row, measured, exact = torch.zeros(n_groups, n_chains, d), torch.eye(2**d)[0], [], []
    for _ in range(n_sweeps):
        chains, row = gibbs(rbm, chains, 1), row @ kernel
        shares = state_shares(chains)  # (groups, 2^d)
        measured.append(total_variation(shares.mean(0), p_v).item())
        exact.append(total_variation(row, p_v).item())
    return Forgetting(
        shares.mean(0), p_v, measured, exact, total_variation(shares, row), theory_counting_error(row, n_chains)
    )


def draw_forgetting(found, n_chains):
    """The shares of the chains beside p(v), and total variation sweep by sweep."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), width_ratios=[1.6, 1], layout="constrained")
    left.bar(range(len(found.p_v)), to_numpy(found.shares), color="tab:orange", label=f"{n_chains:,} Gibbs chains")
    left.plot(to_numpy(found.p_v), "k_", ms=7, mew=2, label="exact, by enumeration")
    left.set(
        title=f"After {len(found.exact)} sweeps of block Gibbs sampling",
        xlabel="visible state (64 of them)",
        ylabel="probability",
    )
    left.legend()
    sweeps, floor = range(1, len(found.measured) + 1), theory_counting_error(found.p_v, n_chains)
    right.semilogy(sweeps, found.measured, "o", color="tab:orange", label="chains, counted")
    right.semilogy(sweeps, found.exact, "k--", label="exact: powers of the kernel")
    right.axhline(floor, color="gray", ls=":", label="perfect sampler, same count")
    share = found.exact[-1] / found.exact[0]
    right.set(title=f"{share:.2g} of the distance is left", xlabel="sweeps", ylabel="total variation to p(v)")
    right.set_ylim(bottom=floor / 3)
    right.legend()
    return fig


def section_bipartite(run):
    """No connection within a layer: conditionals factorise, hidden units sum out, whole layers are sampled at once."""
    rbm = two_mode_rbm(6, 4)
    closed, found = check_closed_forms(rbm), forget_the_start(rbm, 30)
    run.metric("log Z, one layer summed out (nats)", closed.log_z, None, ("all 2^10 states", closed.joint_log_z), 1e-4)
    run.metric("P(h = 1 | v): largest error", closed.p_hidden_error, None, ("enumeration", 0), 1e-4)
    run.metric("free energy: largest error (nats)", closed.free_energy_error, None, ("enumeration", 0), 1e-4)
    mean, sem = mean_and_sem(found.group_errors)
    against, within = ("draws from the kernel's 30th power", found.expected_error), tolerance(sem, len(found.group_errors))
    run.metric("2,000 chains, 30 sweeps: total variation", mean, sem, against, within)
    run.figure(draw_forgetting(found, 80000), "gibbs")
    left = found.exact[-1] / found.exact[0]
    agree = "agree" if abs(mean - found.expected_error) <= within else "do not agree"
    run.say(f"30 sweeps leave {left:.2g} of the distance to p(v) that one sweep leaves: exact, and the chains {agree}")


# %% 2. Contrastive divergence by hand
# log p(v) = -F(v) - log Z. From eq. (3), ∂F/∂W = -v ĥ(v)ᵀ, ∂F/∂b = -v, ∂F/∂c = -ĥ(v); and, as for every energy model,
#     ∂ log Z/∂W = (1/Z) Σ_v ∂ exp(-F(v))/∂W = Σ_v p(v) (-∂F(v)/∂W) = E_{v~p}[v ĥ(v)ᵀ].
# The gradient of the mean log likelihood is a positive phase, averaged over data, minus a negative phase, averaged over
# the model: eq. (4). CD-k (Hinton 2002) puts k Gibbs sweeps from the data in the place of the model. Persistent CD (Younes
# 1989, 1999; for RBMs Tieleman 2008) lets chains of its own run on, while the model changes slowly under them.


def phase(rbm, v, weight=None):
    """The averages of v ĥ(v)ᵀ, v and ĥ(v) over v (B, d), as an RBM of them; `weight` (B,) sums to 1 (None: 1/B)."""
    weight = torch.full_like(v[:, 0], 1 / len(v)) if weight is None else weight
    h = rbm.p_hidden(v)
    return RBM((v * weight.unsqueeze(1)).T @ h, weight @ v, weight @ h)


def likelihood_gradient(rbm, v_data, v_model, weight=None):
    """Positive minus negative phase, eq. (4): the gradient to climb, as an RBM; `weight` is that of the model's v."""
    return RBM(*(plus - minus for plus, minus in zip(phase(rbm, v_data), phase(rbm, v_model, weight), strict=True)))


def train_by_cd(rbm, batches, rates, k=1, start=None):
    """CD-k as it is written in books: climb eq. (4), on a batch x (B, d) at each rate; returns the trained RBM.

    The chains begin at the data, or at start(x), which are not the data, in the last part of section 3."""
    for x, rate in zip(batches, rates, strict=False):
        gradient = likelihood_gradient(rbm, x, gibbs(rbm, start(x) if start else x, k))
        rbm = RBM(*(parameter + rate * change for parameter, change in zip(rbm, gradient, strict=True)))
    return rbm


def train_by_pcd(rbm, batches, rates, chains, k=1):
    """Persistent CD-k: the same, but the chains (B, d) go on from where the last update left them."""
    for x, rate in zip(batches, rates, strict=False):
        chains = gibbs(rbm, chains, k)
        gradient = likelihood_gradient(rbm, x, chains)
        rbm = RBM(*(parameter + rate * change for parameter, change in zip(rbm, gradient, strict=True)))
    return rbm


class ContrastiveDivergence:
    """The same in place, fast: CD-k or persistent CD-k in three matrix products an update (for k = 1, persistent).

    Data and chains share one product v -> h and one signed outer product. A chain rests in its hidden state h, so that
    an update begins with h -> v, and the statistics pair each v with the ĥ(v) that it implies, as eq. (4) asks.
    `momentum` is the heavy ball's; `sparsity` = (target, strength) pulls each unit's mean activity towards a target
    through its bias (Lee, Ekanadham & Ng 2008).
    """

    def __init__(self, rbm, n_chains, k=1, persistent=True, momentum=0.0, sparsity=None):
        d, m = rbm.W.shape
        self.rbm, self.k, self.persistent, self.momentum, self.sparsity = rbm, k, persistent, momentum, sparsity
        self.velocity = RBM(*(torch.zeros_like(parameter) for parameter in rbm))
        self.v, self.p = rbm.b.new_empty(2 * n_chains, d), rbm.b.new_empty(2 * n_chains, m)  # data first, then chains
        self.v_data, self.v_model, self.p_model = self.v[:n_chains], self.v[n_chains:], self.p[n_chains:]  # views
        self.v_t, self.W_t = self.v.T, rbm.W.T
        self.signs = rbm.b.new_tensor([1.0, -1.0]).repeat_interleave(n_chains)
        self.p_v, self.h = rbm.b.new_empty(n_chains, d), bernoulli(rbm.b.new_full((n_chains, m), 0.5))
        self.coins_v, self.coins_h = coin_buffer(self.p_v), coin_buffer(self.h)

    def run_chains(self, x):
        """k half sweeps h -> v, with v -> h between them, from the chains' h, or from h given data x if not persistent."""
        (W, b, c), v_model = self.rbm, self.v_model
        if not self.persistent:
            bernoulli(self.rbm.p_hidden(x), self.h, self.coins_h)
        for sweep in range(self.k):
            if sweep > 0:
                bernoulli(torch.addmm(c, v_model, W, out=self.p_model).sigmoid_(), self.h, self.coins_h)
            bernoulli(torch.addmm(b, self.h, self.W_t, out=self.p_v).sigmoid_(), v_model, self.coins_v)

    def step(self, x, learning_rate, weight_decay=0.0):
        """One update of the RBM by eq. (4) on data x (n_chains, d)."""
        (W, b, c), v, p, keep, rate = self.rbm, self.v, self.p, 1 - learning_rate * weight_decay, learning_rate / len(x)
        self.v_data.copy_(x)
        self.run_chains(x)
        torch.addmm(c, v, W, out=p).sigmoid_()
        bernoulli(self.p_model, self.h, self.coins_h)  # where the chains go on at the next update
        self.p_model.neg_()  # the negative phase
        if self.sparsity:
            c.add_(self.sparsity[0] - p[: len(x)].mean(0), alpha=learning_rate * self.sparsity[1])
        if self.momentum:  # the gradient goes to the velocity, and from there to the parameters
            W.mul_(keep)
            (W, b, c), keep = (velocity.mul_(self.momentum) for velocity in self.velocity), 1
        W.addmm_(self.v_t, p, beta=keep, alpha=rate)
        b.addmv_(self.v_t, self.signs, alpha=rate)
        c.add_(p.sum(0), alpha=rate)
        if self.momentum:
            for parameter, velocity in zip(self.rbm, self.velocity, strict=True):
                parameter.add_(velocity)


def exact_likelihood_gradient(rbm, x):
    """The gradient of the mean log likelihood of x (N, d), its negative phase summed over all 2^d states."""
    v = all_states(len(rbm.b)).to(x)
    return likelihood_gradient(rbm, x, v, (-rbm.free_energy(v)).softmax(0))


def exact_autograd(objective, rbm):
    """The gradient of objective(rbm) in the parameters, by autograd, as an RBM."""
    leaves = RBM(*(parameter.clone().requires_grad_() for parameter in rbm))
    return RBM(*torch.autograd.grad(objective(leaves), leaves))


class Gradients(NamedTuple):
    """Machine by machine: the largest differences from autograd, and the cosine (n, len(ks)) of CD-k with the truth."""

    exact_error: float
    cd_error: float
    cosines: torch.Tensor
    phases: tuple  # of the last machine: data, model, difference, each (d, m)


def compare_gradients(n_machines, ks, d=8, m=5, n_data=200, n_chains=5000):
    """Random machines on data of other random machines: the gradient by hand, by autograd, and by CD-k."""
    shapes, errors, cosines = ((d, m), (d,), (m,)), {"exact": [], "cd": []}, []
    for _ in range(n_machines):
        source = RBM(*(2 * torch.randn(shape).double() for shape in shapes))
        x = gibbs(source, torch.zeros(n_data, d).double(), 100)
        rbm = RBM(*(1.5 * torch.randn(shape).double() for shape in shapes))
        chains = [gibbs(rbm, x.repeat(n_chains // n_data, 1), k) for k in ks]
        by_cd, exact = [likelihood_gradient(rbm, x, x_model) for x_model in chains], exact_likelihood_gradient(rbm, x)
        cosines.append(torch.stack([torch.cosine_similarity(guess.W.flatten(), exact.W.flatten(), 0) for guess in by_cd]))
        autograd = {  # samples are constants to the gap of free energies: no gradient flows through them
            "exact": exact_autograd(lambda rbm, x=x: exact_log_likelihood(rbm, x), rbm),
            "cd": exact_autograd(lambda rbm, x=x, v=chains[0]: rbm.free_energy(v).mean() - rbm.free_energy(x).mean(), rbm),
        }
        for name, by_hand in (("exact", exact), ("cd", by_cd[0])):
            errors[name] += [(a - g).abs().max().item() for a, g in zip(by_hand, autograd[name], strict=True)]
    positive = phase(rbm, x).W
    return Gradients(max(errors["exact"]), max(errors["cd"]), torch.stack(cosines), (positive, positive - exact.W, exact.W))


def draw_phases(found, ks):
    """Both phases of one machine in one colour scale, their difference in its own, and the cosines."""
    fig, axes = plt.subplots(1, 4, figsize=(13.5, 3.6), width_ratios=[1, 1, 1, 1.4], layout="constrained")
    titles = "positive phase:\ndata", "negative phase:\nmodel, exact", "difference:\nthe gradient in W"
    images = [to_numpy(image) for image in found.phases]
    limits = [max(abs(images[0]).max(), abs(images[1]).max())] * 2 + [abs(images[2]).max()]
    for ax, title, image, limit in zip(axes, titles, images, limits, strict=False):
        drawn = ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(title=title, xlabel="hidden unit", ylabel="visible unit")
        fig.colorbar(drawn, ax=ax, shrink=0.8)
    means, sems = zip(*(mean_and_sem(values) for values in found.cosines.T), strict=True)
    axes[3].errorbar(ks, means, sems, fmt="o-", color="tab:orange", label="CD-k")
    axes[3].axhline(1, color="k", ls="--", label="exact gradient")
    axes[3].set(title=f"CD-{ks[0]} is at {means[0]:.3f},\nCD-{ks[-1]} at {means[-1]:.4f}", xlabel="Gibbs sweeps k")
    axes[3].set(ylabel="cosine with the exact gradient", xscale="log", xticks=ks, xticklabels=ks)
    axes[3].minorticks_off()
    axes[3].legend(loc="lower right")
    return fig


def section_cd(run):
    """The gradient by hand equals autograd's, and CD-k turns towards the exact gradient as k grows."""
    ks = (1, 2, 4, 8, 16)
    found = compare_gradients(10, ks)
    run.metric("exact gradient: largest error", found.exact_error, None, ("autograd through log Z", 0), 1e-6)
    run.metric("CD-1 gradient: largest error", found.cd_error, None, ("autograd of the free-energy gap", 0), 1e-6)
    for k, values in zip(ks, found.cosines.T, strict=True):
        run.metric(f"CD-{k}: cosine with the exact gradient", *mean_and_sem(values), against=("exact gradient", 1))
    run.figure(draw_phases(found, ks), "phases")
    rises = (found.cosines.diff(dim=1) > 0).double().mean().item()
    run.say(f"another doubling of k turned the gradient towards the truth in {rises:.0%} of the cases")


# %% 3. Training
# Z cancels from F(test) - F(train), which is therefore exactly the gap between train and test log likelihood: overfitting
# can be watched where no likelihood can be computed. Some gap is no overfitting: even independent pixels have one, since
# train and test are different images. Reconstruction error shows none of this, and is not shown.
# Whoever compares two trainers compares two learning rates: each recipe below runs at its own best one, chosen on
# validation images. What then remains between CD-1, CD-10 and persistent chains is small; a rate that falls to 0 is not:
# at a constant rate the noise of the negative phase keeps the parameters moving about the optimum, at a small one too
# little is learned in the time.


def log_odds(x):
    """Log odds (d,) of each pixel's being 1 in x (N, d), half a count added to either side."""
    return ((x.sum(0) + 0.5) / (len(x) + 1)).logit()


def minibatches(x, batch_size):
    """Endless batches (batch_size, d) of x, shuffled anew each epoch; an epoch's last, smaller batch is left out."""
    if batch_size > len(x):
        sys.exit(f"--batch-size must be at most {len(x)}, the rows to train on here, not {batch_size}")
    while True:
        yield from (part for part in x[torch.randperm(len(x))].split(batch_size) if len(part) == batch_size)


def fresh_rbm(x, n_hidden):
    """An RBM to start from: small random weights, and the biases with which each pixel has its rate in x (N, d)."""
    return RBM(0.01 * torch.randn(x.shape[1], n_hidden, device=x.device), log_odds(x), x.new_zeros(n_hidden))


def even_marks(n_updates):
    """Eleven updates at which to look at a training, evenly spaced."""
    return sorted(set(np.linspace(0, n_updates, 11, dtype=int).tolist()))


def train_rbm(rbm, x, config, history=None, marks=None, falling=True, **settings):
    """Fit `rbm` to x (N, d), in place, by ContrastiveDivergence(**settings); the rate falls linearly to 0 (or does not).

    (update, a copy of the RBM) is appended to `history` at each of the `marks` (None: ten times, and at the end)."""
    trainer, marks = ContrastiveDivergence(rbm, config.batch_size, **settings), marks or even_marks(config.n_updates)
    progress = Progress(range(config.n_updates + 1), f"RBM with {len(rbm.c)} hidden units")  # a falling rate ends at 0
    for update, batch in zip(progress, minibatches(x, config.batch_size), strict=False):
        if history is not None and update in marks:
            history.append((update, RBM(*(parameter.clone() for parameter in rbm))))
        rate = config.learning_rate * (1 - update / config.n_updates if falling else 1)
        trainer.step(batch, rate, config.weight_decay)
    must_be_finite("RBM training", *rbm)
    return rbm


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
def trained_rbm(run, n_hidden, seed):
    """An RBM trained by PCD at the run's settings on its training images, and the seconds that took."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    x_train = binary_images(run)[0]
    rbm = train_rbm(fresh_rbm(x_train, n_hidden), x_train, run.config)
    return rbm, time.perf_counter() - start


RECIPES = {  # name: (settings of `train_rbm`, its best rate on validation images in units of --learning-rate: rbm_tuning.py)
    "CD-1": ({"persistent": False}, 3),
    "CD-10": ({"persistent": False, "k": 10}, 3),
    "PCD-1": ({}, 3),
    "PCD-1, constant rate": ({"falling": False}, 0.3),
    "PCD-1, momentum": ({"momentum": 0.9}, 0.1),
    "PCD-1, weak sparsity": ({"sparsity": (0.2, 0.1)}, 3),
    "PCD-1, strong sparsity": ({"sparsity": (0.2, 1.0)}, 3),
}


class Curves(NamedTuple):
    """Exact test log likelihood (nats) of several trainings (seeds, marks) after so many updates, and seconds a training."""

    updates: list
    nats: np.ndarray
    seconds: float


def compare_recipes(x_train, x_test, config):
    """{recipe: Curves} of the small machine, in a quarter of the updates."""
    found = {}
    for name, (settings, factor) in RECIPES.items():
        recipe = replace(config, n_updates=max(config.n_updates // 4, 1), learning_rate=factor * config.learning_rate)
        nats, start = [], time.perf_counter()
        histories = [[] for _ in range(config.n_seeds)]
        for history in histories:
            train_rbm(fresh_rbm(x_train, config.n_small), x_train, recipe, history, **settings)
        seconds = (time.perf_counter() - start) / config.n_seeds
        nats = [[exact_log_likelihood(rbm, x_test).item() for _, rbm in history] for history in histories]
        found[name] = Curves([update for update, _ in histories[0]], np.array(nats), seconds)
    return found


class Overfitting(NamedTuple):
    """After so many updates: F(test) - F(train), and test log likelihood by AIS (nats)."""

    updates: list
    gaps: list
    nats: list


def watch_overfitting(x_train, x_test, config):
    """{weight decay: Overfitting} of the large machine, at the run's weight decay and at a hundredth of it."""
    found, n_chains, n_temps = {}, min(config.n_ais_chains, 100), max(config.n_ais_temps // 4, 1)
    for decay in (config.weight_decay, config.weight_decay / 100):
        history = []
        train_rbm(fresh_rbm(x_train, config.n_hidden), x_train, replace(config, weight_decay=decay), history)
        gaps = [(rbm.free_energy(x_test).mean() - rbm.free_energy(x_train).mean()).item() for _, rbm in history]
        log_zs = [log_z_from_weights(ais(rbm, log_odds(x_train), n_chains, n_temps))[0] for _, rbm in history]
        nats = [(-rbm.free_energy(x_test).mean() - log_z).item() for (_, rbm), log_z in zip(history, log_zs, strict=True)]
        found[decay] = Overfitting([update for update, _ in history], gaps, nats)
    return found


def independent_pixels(x_train, x_test):
    """Mean log likelihood (nats) of x_test under independent pixels at the rates of x_train."""
    base_b = log_odds(x_train)
    return (x_test @ base_b - softplus(base_b).sum()).mean().item()


COLORS = {  # one colour and one marker for one method, through the module
    "CD-1": ("tab:blue", "s"),
    "CD-10": ("tab:cyan", "D"),
    "PCD-1": ("tab:orange", "o"),
    "PCD-1, constant rate": ("tab:red", "X"),
    "PCD-1, momentum": ("tab:green", "^"),
    "PCD-1, weak sparsity": ("tab:purple", "v"),
    "PCD-1, strong sparsity": ("tab:brown", "P"),
}


def draw_training(recipes, overfitting, pixel_gap, n_hidden):
    """Likelihood of the recipes on the way; gap of free energies, and test likelihood, at two weight decays."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 5.2), width_ratios=[1.4, 1, 1], layout="constrained")
    for name, curves in recipes.items():
        means, sems = zip(*map(mean_and_sem, curves.nats.T), strict=True)
        color, marker = COLORS[name]
        left.errorbar(curves.updates, means, sems, fmt=f"{marker}-", ms=6, color=color, label=name)
    ends = {name: curves.nats[:, -1].mean() for name, curves in recipes.items()}
    left.set_ylim(min(ends.values()) - 1, max(ends.values()) + 0.2)
    gain = ends["PCD-1"] - ends["PCD-1, constant rate"]
    left.set(title=f"{n_hidden} hidden units, each at its best rate:\na falling rate is worth {gain:.2f} nats")
    left.set(xlabel="updates", ylabel="exact test log likelihood (nats)")
    left.legend(fontsize=11, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)
    for (decay, found), fmt in zip(overfitting.items(), ("o-", "X--"), strict=True):
        color = "tab:orange" if fmt == "o-" else "tab:gray"
        thousands = np.divide(found.updates, 1000)
        middle.plot(thousands, found.gaps, fmt, color=color, label=f"weight decay {decay:.3g}")
        right.plot(thousands[1:], found.nats[1:], fmt, color=color, label=f"weight decay {decay:.3g}")
    middle.axhline(pixel_gap, color="k", ls=":", label="independent pixels")
    gaps = " and ".join(f"{found.gaps[-1]:.2f}" for found in overfitting.values())
    middle.set(title=f"The gap ends at {gaps} nats,\nthat of pixels is {pixel_gap:.2f}")
    middle.set(xlabel="updates (thousands)", ylabel="F(test) - F(train) (nats)")
    final = [found.nats[-1] for found in overfitting.values()]
    right.set(title=f"Weight decay is worth\n{final[0] - final[1]:.2f} nats", xlabel="updates (thousands)")
    right.set_ylabel("test log likelihood (nats, AIS)")
    middle.legend(fontsize=11, loc="upper left", bbox_to_anchor=(0, -0.15))
    return fig


def draw_machine(rbm, images, reconstructions, fantasies, n_sweeps):
    """Filters, images, their reconstructions, and samples of the model."""
    fig, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    axes = axes.flatten()
    strongest = rbm.W.norm(dim=0).argsort(descending=True)[:40]
    limit = rbm.W[:, strongest].abs().max().item()
    show_images(axes[0], rbm.W[:, strongest].T, 8, "filters: columns of W", cmap="RdBu_r", vmin=-limit, vmax=limit)
    show_images(axes[1], images, 8, "test images")
    show_images(axes[2], reconstructions, 8, "their reconstructions")
    show_images(axes[3], fantasies, 8, f"fantasies: from noise, {n_sweeps} Gibbs sweeps")
    return fig


def sentence_on_recipes(nats):
    """What {recipe: test nats (seeds,)} says about the negative phase, and about the rate."""
    phases = [nats[name].mean() for name in ("CD-1", "CD-10", "PCD-1")]
    gain, sem = mean_and_sem(nats["PCD-1"] - nats["PCD-1, constant rate"])
    return (
        f"CD-1, CD-10 and PCD-1 lie within {max(phases) - min(phases):.2f} nats of each other; "
        f"a rate that falls to 0 instead of a constant one: {gain:+.2f} +- {sem:.2f}"
    )


def section_training(run):
    """What each ingredient of the training does to the exact likelihood, and overfitting watched without Z."""
    config, (x_train, x_test, *_) = run.config, binary_images(run)
    chance = independent_pixels(x_train, x_test)
    recipes = compare_recipes(x_train, x_test, config)
    for name, curves in recipes.items():
        against = ("independent pixels", chance)
        run.metric(f"test nats, {name}", *mean_and_sem(curves.nats[:, -1]), against=against)
    run.metric("CD-10: time of a training (s)", recipes["CD-10"].seconds, against=("CD-1", recipes["CD-1"].seconds))
    overfitting, pixel_gap = watch_overfitting(x_train, x_test, config), independent_pixels(x_train, x_train) - chance
    for decay, found in overfitting.items():
        against = ("independent pixels", pixel_gap)
        run.metric(f"F(test) - F(train), decay {decay:.3g} (nats)", found.gaps[-1], against=against)
        run.metric(f"test nats by AIS, decay {decay:.3g}", found.nats[-1], against=("independent pixels", chance))
    run.figure(draw_training(recipes, overfitting, pixel_gap, config.n_small), "curves")
    run.say(sentence_on_recipes({name: curves.nats[:, -1] for name, curves in recipes.items()}))
    rbm, _ = trained_rbm(run, config.n_hidden, run.seed)
    fantasies = gibbs(rbm, noise_like(x_test[:40]), config.n_gibbs)
    reconstructions = rbm.p_visible(rbm.p_hidden(x_test[:40]))
    run.figure(draw_machine(rbm, x_test[:40], reconstructions, fantasies, config.n_gibbs), "images")


# Three pictures to look at before any likelihood (Hinton 2012, "A practical guide to training restricted Boltzmann
# machines"): histograms of the hidden units' activities (a unit that is always off, or always on, is dead: it is a bias),
# the size of an update beside the size of the weights (Hinton advises a thousandth), and the singular values of W. The size
# of an update is no sure sign: at a rate that is too low W is smaller as well, and at one that is far too high a single huge
# singular value of W can make it look healthy for hundreds of updates in which nothing is learned.
#
# At first W is noise of deviation σ = 0.01, whose largest singular value is about σ (√d + √m) (Marchenko & Pastur 1967).
# At a low rate, learning lifts one value after the other out of it, the first along the principal axis of the data
# (Decelle, Fissore & Furtlehner 2017). At a high rate what leaves first is noise. While W is small, ĥ is 1/2 for every
# image, so that each column of W moves by the same vector: half the difference between the mean of the batch and the mean
# of the chains. In expectation it is nearly 0; in one update its sampling error alone can lift a value above the edge.


def theory_noise_edge(d, m, sigma):
    """The largest singular value of a (d, m) matrix of independent entries of deviation sigma, for large d and m."""
    return sigma * (d**0.5 + m**0.5)


class Checklist(NamedTuple):
    """A training, mark by mark: updates, singular values of W, |cosine| of the first left singular vector with the data's
    principal axis, size of the next update of W over the size of W; at the end the units' activities on images (N, m)."""

    updates: list
    singular_values: np.ndarray  # (marks, min(d, m))
    cosines: list
    update_sizes: list
    activities: np.ndarray

    @property
    def halfway(self):
        """The size of an update over the size of W at the mark that is nearest to half of the training."""
        return self.update_sizes[int(np.abs(np.subtract(self.updates, self.updates[-1] / 2)).argmin())]

    @property
    def dead(self):
        """The share of hidden units that are on for less than 1 % of the images, or for more than 99 %."""
        mean = self.activities.mean(0)
        return ((mean < 0.01) | (mean > 0.99)).mean()


def watch_training(x, config):
    """A Checklist of the large machine, watched at updates 0, 1, 2, 4, ... of a quarter of the run's."""
    short, history = replace(config, n_updates=max(config.n_updates // 4, 1)), []
    marks = sorted({0, short.n_updates, *(2**i for i in range(short.n_updates.bit_length()))})
    rbm = train_rbm(fresh_rbm(x, config.n_hidden), x, short, history, {*marks, *(mark + 1 for mark in marks)})
    weights, axis = {update: seen.W.cpu() for update, seen in history}, torch.linalg.eigh(x.T.cov().cpu())[1][:, -1]
    values, cosines, sizes = [], [], []
    for mark in marks:
        W, following = weights[mark], weights.get(mark + 1, weights[mark])  # the last update has a rate of 0
        left, singular, _ = torch.linalg.svd(W, full_matrices=False)
        values.append(to_numpy(singular))
        cosines.append(abs(left[:, 0] @ axis).item())
        sizes.append(((following - W).norm() / W.norm()).item())
    return Checklist(marks, np.array(values), cosines, sizes, to_numpy(rbm.p_hidden(x)))


def draw_checklist(found, edge):
    """One row a training, {label: Checklist}: activities, sizes of the updates, singular values."""
    fig, axes = plt.subplots(len(found), 3, figsize=(13, 3.1 * len(found)), layout="constrained", squeeze=False)
    for row, (label, seen) in zip(axes, found.items(), strict=True):
        row[0].hist(seen.activities.mean(0), bins=np.linspace(0, 1, 26), color="tab:orange")
        row[0].set(title=f"{label}: {seen.dead:.0%} of the units dead", xlabel="a unit's mean activity", ylabel="units")
        row[1].loglog(np.add(seen.updates[:-1], 1), seen.update_sizes[:-1], "o-", color="tab:orange")
        row[1].axhline(1e-3, color="k", ls="--", label="a thousandth")
        row[1].set(
            title=f"an update is {seen.halfway:.1g} of W, halfway", xlabel="update", ylabel="|update| / |W|", ylim=(1e-6, 30)
        )
        row[1].legend(loc="lower left")
        row[2].loglog(np.add(seen.updates, 1), seen.singular_values, color="tab:orange", lw=0.7)
        row[2].axhline(edge, color="k", ls="--", label="edge of the initial noise")
        learned = (seen.singular_values[-1] > 1.2 * edge).sum()
        row[2].set(title=f"{learned} directions left the noise", xlabel="update", ylabel="singular values of W")
        row[2].set_ylim(bottom=edge / 30)
        row[2].legend(loc="lower left")
    return fig


def first_out(seen, edge):
    """The mark at which a singular value first stands clearly out of the noise; the last mark if none ever does."""
    out = (seen.singular_values > 1.2 * edge).any(1)
    return int(out.argmax()) if out.any() else len(out) - 1


def section_checklist(run):
    """What to look at while it trains: activities, dead units, sizes of updates, singular values that leave the noise."""
    config, x_train = run.config, binary_images(run)[0]
    edge = theory_noise_edge(x_train.shape[1], config.n_hidden, 0.01)
    rates, found, words = {"rate as set": 1, "30 times lower": 1 / 30, "10 times higher": 10}, {}, []
    for label, factor in rates.items():
        seen = found[label] = watch_training(x_train, replace(config, learning_rate=factor * config.learning_rate))
        first = first_out(seen, edge)
        run.metric(f"{label}: dead units (share)", seen.dead, against=("none", 0))
        run.metric(f"{label}: update / W, halfway", seen.halfway, against=("Hinton (2012)", 1e-3))
        run.metric(f"{label}: first direction (cosine)", seen.cosines[first], against=("the data's principal axis", 1))
        by = "by" if (seen.singular_values[first] > 1.2 * edge).any() else "not by"
        words.append(f"{label}, {by} update {seen.updates[first]} at cosine {seen.cosines[first]:.2f}")
    start = found["rate as set"].singular_values[0, 0]
    run.metric("largest singular value of W at the start", start, against=("edge of the noise", edge))
    seen = found["30 times lower"]
    for update, values in list(zip(seen.updates, seen.singular_values, strict=True))[3::3]:
        run.metric(f"30 times lower: values out, update {update}", (values > 1.2 * edge).sum(), against=("of", len(values)))
    run.figure(draw_checklist(found, edge), "pictures")
    run.say(f"the first value to leave the noise, beside the data's principal axis: {'; '.join(words)}")


# The samples that a machine gives depend on how it was trained *and* on how long its chains run. CD that starts its chains
# at noise, k sweeps an update, matches the data with the distribution after k sweeps: that, and not its equilibrium, is
# what it learns (Decelle, Furtlehner & Seoane 2021; module 07's short-run EBMs are the same). Persistent chains, and chains
# that start at data, come nearer to the equilibrium. With few hidden units the moments E[v_i v_j] of the equilibrium are
# exact, E[v vᵀ] = Σ_h p(h) σ(b + W h) σ(b + W h)ᵀ off the diagonal.


def pair_moments(v):
    """E[v_i v_j] over v (N, d), (d, d)."""
    return v.T @ v / len(v)


def exact_pair_moments(rbm):
    """E[v_i v_j] of the model, (d, d), over all 2^m hidden states."""
    h = all_states(len(rbm.c)).to(rbm.W)
    p_h, p_v = (-RBM(rbm.W.T, rbm.c, rbm.b).free_energy(h)).softmax(0), rbm.p_visible(h)
    moments = (p_v * p_h.unsqueeze(1)).T @ p_v
    return moments.fill_diagonal_(0) + torch.diag(p_h @ p_v)


def moment_error(moments, x):
    """Root mean square difference from the pair moments of x (N, d)."""
    return (moments - pair_moments(x)).square().mean().sqrt().item()


class Steps(NamedTuple):
    """Errors of the pair moments of chains from noise after so many sweeps (seeds, steps), and of the equilibrium."""

    sweeps: list
    errors: np.ndarray
    equilibrium: np.ndarray  # (seeds,)


def follow_samples(x_train, x_test, config, n_chains=2000, k=10):
    """{training: Steps} of small machines trained by CD-k from noise, by CD-k from data, and by PCD-1."""
    short = replace(config, n_updates=max(config.n_updates // 8, 1))
    steps = sorted(n for n in {1, 3, 10, 30, 100, 300, 1000, 3000, k} if n <= max(2 * config.n_gibbs, k))
    rates = [config.learning_rate * (1 - update / short.n_updates) for update in range(short.n_updates)]

    def from_noise(rbm):
        batches = minibatches(x_train, config.batch_size)
        return train_by_cd(rbm, Progress(batches, "CD from noise", total=len(rates)), rates, k, noise_like)

    trainings = {
        f"CD-{k} from noise": from_noise,
        f"CD-{k}": lambda rbm: train_rbm(rbm, x_train, short, persistent=False, k=k),
        "PCD-1": lambda rbm: train_rbm(rbm, x_train, short),
    }
    found = {}
    for name, train in trainings.items():
        errors, equilibrium = [], []
        for _ in range(config.n_seeds):
            rbm = train(fresh_rbm(x_train, config.n_small))
            must_be_finite(f"training by {name}", *rbm)
            v, row = noise_like(x_train.new_empty(n_chains, x_train.shape[1])), []
            for before, after in zip((0, *steps), steps, strict=False):
                v = gibbs(rbm, v, after - before)
                row.append(moment_error(pair_moments(v), x_test))
            errors.append(row)
            equilibrium.append(moment_error(exact_pair_moments(rbm), x_test))
        found[name] = Steps(steps, np.array(errors), np.array(equilibrium))
    return found


def draw_steps(found, floor, k):
    """Error of the samples against the number of sweeps from noise, the equilibrium of each machine beside it."""
    fig, ax = plt.subplots(figsize=(9, 5.6), layout="constrained")
    for name, steps in found.items():
        color, marker = COLORS.get(name, ("tab:pink", "*"))
        means, sems = zip(*map(mean_and_sem, steps.errors.T), strict=True)
        ax.errorbar(steps.sweeps, means, sems, fmt=f"{marker}-", ms=8, color=color, label=name)
        ax.plot(2 * steps.sweeps[-1], steps.equilibrium.mean(), marker, ms=11, mfc="none", color=color)
    ax.axhline(floor, color="k", ls="--", label="training images")
    ax.axvline(k, color="gray", ls=":", label=f"{k} sweeps, as in training")
    best = steps.sweeps[int(found[f"CD-{k} from noise"].errors.mean(0).argmin())]
    ax.set(xscale="log", yscale="log", xlabel="Gibbs sweeps from noise (open: equilibrium, exact)")
    ax.set(ylabel="error of $E[v_i v_j]$ (rms)", title=f"Trained {k} sweeps from noise, best after {best}")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def section_steps(run):
    """How the samples of a CD-trained machine depend on the number of sampling steps, from noise to equilibrium."""
    (x_train, x_test, *_), k = binary_images(run), 10
    found, floor = follow_samples(x_train, x_test, run.config, k=k), moment_error(pair_moments(x_train), x_test)
    against = ("training images", floor)
    for name, steps in found.items():
        at_k, most = steps.errors[:, steps.sweeps.index(k)], steps.sweeps[-1]
        run.metric(f"{name}: moment error, {k} sweeps", *mean_and_sem(at_k), against)
        run.metric(f"{name}: moment error, {most} sweeps", *mean_and_sem(steps.errors[:, -1]), against)
        run.metric(f"{name}: in equilibrium, exact", *mean_and_sem(steps.equilibrium), against)
    run.figure(draw_steps(found, floor, k), "error")
    errors = found[f"CD-{k} from noise"].errors.mean(0)
    run.say(
        f"the machine trained by {k} sweeps from noise is best after {steps.sweeps[int(errors.argmin())]} sweeps; "
        f"{most} sweeps make its error {errors[-1] / errors.min():.1f} times as large"
    )


# %% 4. How good is it really?
# Annealed importance sampling (Neal 2001; for RBMs Salakhutdinov & Murray 2008) walks from independent pixels with
# biases b⁰, whose Z is known, to the RBM along p_β(v) ∝ exp(-F_β(v)), β from 0 to 1,
#     F_β(v) = -(1-β) b⁰·v - β b·v - Σ_j log(1 + exp(β (c_j + (v W)_j))),       Z_0 = 2^m Π_i (1 + exp(b⁰_i)).
# At each β_k a chain adds F_{β_{k-1}}(v) - F_{β_k}(v) to its log weight, which began at log Z_0, and then takes a Gibbs
# sweep at β_k. The mean weight is unbiased for Z; its logarithm is then on average too low (Jensen), and the likelihood
# too high: AIS *flatters* a model, the more so the fewer its effective samples (Σw)²/Σw². A number that rests on a few
# lucky chains is no number: under 10 % effective chains we refuse to give it.
#
# That is a check and no proof: chains that have all missed the same mode agree perfectly. One hidden unit shows it, with
# all weights w and bias c: it is off on 2^d images, and on on about one, all ones, of weight (1 + e^w)^d e^c. Let that one
# be worth a million of the others together: no chain from noise ever meets it, and every chain has the same weight.
# The cure is to walk back (Grosse, Ghahramani & Adams 2015): the Gibbs sweep at β leaves p_β as it is and is its own
# reversal, so from *samples of the model* the same path downwards gives log weights with E[1/w] = 1/Z, and -log mean(1/w)
# is on average too *high*. Between the two estimates lies log Z; where they are far apart, neither is to be believed.
# Samples of the model come from long chains that start at data, where forward chains do not start. Only as far as these
# have reached p is the upper side above: chains that never left a mode of the data make it too low, too.


# Differs from 01_ebm_foundations.py: ais - an RBM's own path: energies and moves share one product v W
def ais(rbm, base_b, n_chains, n_temps):
    """Log weights (n_chains,) whose exponentials average to Z, from biases `base_b` (d,) to the RBM in n_temps steps."""
    W, b, c = rbm
    v = bernoulli(base_b.sigmoid().repeat(n_chains, 1))
    log_w = (softplus(base_b).sum() + len(c) * math.log(2)).repeat(n_chains)
    betas = torch.linspace(0, 1, n_temps + 1).tolist()
    for old, new in zip(betas[:-1], betas[1:], strict=True):
        x = torch.addmm(c, v, W)
        log_w += (new - old) * (v @ (b - base_b)) + (softplus(new * x) - softplus(old * x)).sum(1)
        h = bernoulli(x.mul_(new).sigmoid_())
        v = bernoulli(torch.addmm(torch.lerp(base_b, b, new), h, W.T, alpha=new).sigmoid_())
    return log_w


def reverse_ais(rbm, base_b, v, n_temps):
    """Log weights (n,) of the path walked back from samples v (n, d) of the RBM: their inverses average to 1/Z."""
    W, b, c = rbm
    log_w = (softplus(base_b).sum() + len(c) * math.log(2)).repeat(len(v))
    betas = torch.linspace(1, 0, n_temps + 1).tolist()
    for old, new in zip(betas[:-1], betas[1:], strict=True):  # move at the old temperature, then weigh: the other way round
        h = bernoulli(torch.addmm(c, v, W).mul_(old).sigmoid_())
        v = bernoulli(torch.addmm(torch.lerp(base_b, b, old), h, W.T, alpha=old).sigmoid_())
        x = torch.addmm(c, v, W)
        log_w += (old - new) * (v @ (b - base_b)) + (softplus(old * x) - softplus(new * x)).sum(1)
    return log_w


def trap(d=64, weight=50.0, bias=-3140.0):
    """An RBM whose one hidden unit hides nearly all of Z from chains that come from noise."""
    return RBM(torch.full((d, 1), weight), torch.zeros(d), torch.tensor([bias]))


def theory_trap_log_z(d=64, weight=50.0, bias=-3140.0):
    """log((1 + e^w)^d e^c + 2^d): the unit on, and off."""
    return float(np.logaddexp(d * np.logaddexp(0, weight) + bias, d * math.log(2)))


# Copied from 01_ebm_foundations.py: log_z_from_weights
def log_z_from_weights(log_w):
    """(log Z, its standard error, ESS), each (...), from log importance weights (..., N).

    Standard error by the delta method, std(w) / (mean(w) √N); ESS = (Σw)² / Σw² (Kong 1992), between 1 and N.
    """
    n = log_w.shape[-1]
    log_sum = log_w.logsumexp(-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(-1)).exp()
    return log_sum - math.log(n), ((1 / ess - 1 / n).clamp(min=0) * n / (n - 1)).sqrt(), ess


class BernoulliMixture(NamedTuple):
    """Independent pixels, one set of probabilities a component."""

    p: torch.Tensor  # (K, d)
    log_prior: torch.Tensor  # (K,)

    def log_joint(self, x):
        """log p(x, k), (B, K)."""
        return x @ self.p.log().T + (1 - x) @ (1 - self.p).log().T + self.log_prior


def mixture_of_bernoullis(x, n_components, n_steps=60, pseudo_count=0.25):
    """A BernoulliMixture fitted to x (N, d) by EM, `pseudo_count` added to the ones and to the zeros of each pixel."""
    responsibility = torch.rand(len(x), n_components, device=x.device).mul_(5).softmax(1)
    for _ in range(n_steps):
        size = responsibility.sum(0)
        p = (responsibility.T @ x + pseudo_count) / (size.unsqueeze(1) + 2 * pseudo_count)
        mixture = BernoulliMixture(p, (size / size.sum()).log())
        responsibility = mixture.log_joint(x).softmax(1)
    return mixture


def sklearn_rbm(x, n_hidden, learning_rate, n_updates, seed, batch_size=100):
    """scikit-learn's BernoulliRBM fitted to x (N, d), as an RBM; its rate falls linearly to 0 too, through `partial_fit`."""
    peer = BernoulliRBM(n_hidden, batch_size=batch_size, random_state=seed)
    progress = Progress(range(n_updates), f"scikit-learn's RBM with {n_hidden} hidden units")
    for update, batch in zip(progress, minibatches(x, batch_size), strict=False):
        peer.learning_rate = learning_rate * (1 - update / n_updates)
        peer.partial_fit(to_numpy(batch))
    parameters = peer.components_.T.copy(), peer.intercept_visible_, peer.intercept_hidden_
    return RBM(*(torch.tensor(parameter).to(x) for parameter in parameters))


class Scored(NamedTuple):
    """A machine's mean test log likelihood (nats), the standard error of its log Z, and the effective share of chains."""

    nats: float
    sem: float
    share: float


def score(rbm, x, base_b, config):
    """The mean log likelihood of x (N, d), exact for up to n_small hidden units, by AIS for more."""
    if len(rbm.c) <= config.n_small:
        return Scored(exact_log_likelihood(rbm, x).item(), 0.0, 1.0)
    log_z, sem, ess = log_z_from_weights(ais(rbm, base_b, config.n_ais_chains, config.n_ais_temps))
    return Scored((-rbm.free_energy(x).mean() - log_z).item(), sem.item(), ess.item() / config.n_ais_chains)


class Peers(NamedTuple):
    """One width of machine, trained here and by scikit-learn: lists of Scored, a seed each, and the seconds of both."""

    ours: list
    sklearns: list
    seconds: float
    sklearn_seconds: float


def compare_with_sklearn(run, n_hidden):
    """Peers of `n_hidden` units. scikit-learn gets two fifths of our updates, which take it longer than ours take us."""
    config, (x_train, x_test, *_) = run.config, binary_images(run)
    n_updates, peers = max(config.n_updates * 2 // 5, 1), []
    seeds, start = seeds_from(run.seed, config.n_seeds), time.perf_counter()
    for seed in seeds:
        torch.manual_seed(seed)
        peers.append(sklearn_rbm(x_train, n_hidden, config.learning_rate, n_updates, seed, config.batch_size))
    peer_seconds = (time.perf_counter() - start) / config.n_seeds
    rbms, seconds = zip(*(trained_rbm(run, n_hidden, seed) for seed in seeds), strict=True)
    sklearns, ours = ([score(rbm, x_test, log_odds(x_train), config) for rbm in group] for group in (peers, rbms))
    return Peers(ours, sklearns, float(np.mean(seconds)), peer_seconds)


class Flattery(NamedTuple):
    """Log likelihood by AIS at several numbers of temperatures, and what is right."""

    n_temps: list
    nats: list  # (mean, standard error) over groups of ten chains
    shares: list  # effective chains
    exact: float | None  # nats, where log Z can be enumerated
    best: float  # nats, exact or by all chains at the most temperatures
    ratios: torch.Tensor  # the weights of the most temperatures over exact Z, (n_chains,); else over their mean


def flatter(rbm, x, base_b, config):
    """AIS of ten chains from few temperatures to many."""
    likelihood, n_temps, nats, shares = -rbm.free_energy(x).mean().item(), [], [], []
    for divisor in (300, 100, 30, 10, 3, 1):
        n_temps.append(max(config.n_ais_temps // divisor, 1))
        log_w = ais(rbm, base_b, config.n_ais_chains, n_temps[-1])
        log_z, _, ess = log_z_from_weights(log_w)
        shares.append(ess.item() / len(log_w))
        nats.append(mean_and_sem([likelihood - log_z_from_weights(part)[0] for part in log_w.split(10)]))
    exact = exact_log_z(rbm) if len(rbm.c) <= config.n_small else None
    right = log_z if exact is None else exact
    ratios = (log_w - right).exp()
    return Flattery(n_temps, nats, shares, exact and likelihood - exact.item(), likelihood - right.item(), ratios)


class Sandwich(NamedTuple):
    """log Z (nats) by forward AIS, on average too low, and by reverse AIS, too high; effective share of forward chains."""

    low: float
    high: float
    share: float


def sandwich_log_z(rbm, base_b, samples, n_chains, n_temps):
    """Both estimates; `samples` (n, d) are the model's own."""
    low, _, ess = log_z_from_weights(ais(rbm, base_b, n_chains, n_temps))
    high = -log_z_from_weights(-reverse_ais(rbm, base_b, samples, n_temps))[0]
    return Sandwich(low.item(), high.item(), ess.item() / n_chains)


def sandwich_both(rbm, x_train, config):
    """{name: Sandwich} of a trained machine, its samples from long chains that start at data, and of the trap."""
    n_chains, n_temps = config.n_ais_chains, config.n_ais_temps
    starts = x_train[torch.randint(len(x_train), (n_chains,), device=x_train.device)]
    samples, hidden = gibbs(rbm, starts, config.n_gibbs), trap().p_hidden(torch.ones(1, 64))
    trapped = gibbs(trap(), torch.ones(n_chains, 64) * hidden.round(), 10)
    return {
        f"{len(rbm.c)} hidden": sandwich_log_z(rbm, log_odds(x_train), samples, n_chains, n_temps),
        "the trap": sandwich_log_z(trap(), torch.zeros(64), trapped, n_chains, n_temps),
    }


def draw_models(rows, chance, n_seeds):
    """A bar a model, from independent pixels on; rows are {label: (mean, standard error)}."""
    fig, ax = plt.subplots(figsize=(10, 5), layout="constrained")
    means, sems = zip(*rows.values(), strict=True)
    colors = ["tab:orange" if "this" in label else "tab:gray" for label in rows]
    hatches = ["//" if "this" in label else "" for label in rows]
    ax.barh(range(len(rows)), np.subtract(means, chance), left=chance, xerr=sems, color=colors, hatch=hatches, capsize=4)
    ax.set_yticks(range(len(rows)), rows)
    for row, (mean, sem) in enumerate(rows.values()):
        ax.text(mean + np.nan_to_num(sem), row, f" {mean:.2f}", va="center")
    ax.invert_yaxis()
    ax.margins(x=0.12)
    best = max(rows, key=lambda label: rows[label][0]).replace("\n", " ")
    ax.set(title=f"{n_seeds} trainings each, highest mean: {best}", xlabel="test nats per image (right is better)")
    return fig


def draw_flattery(found):
    """AIS against temperatures, a panel a machine; found is {hidden units: Flattery}."""
    fig, axes = plt.subplots(1, len(found), figsize=(12, 4.6), layout="constrained", squeeze=False)
    for ax, (n_hidden, flattery) in zip(axes[0], found.items(), strict=True):
        for n_temps, (mean, spread), share in zip(flattery.n_temps, flattery.nats, flattery.shares, strict=True):
            fmt, color = ("o", "tab:orange") if share >= 0.1 else ("X", "tab:red")
            ax.errorbar(n_temps, mean, spread, fmt=fmt, ms=8, color=color)
            ax.annotate(f"{share:.0%}", (n_temps, mean), (8, 8), textcoords="offset points")
        label = "all chains, most temperatures" if flattery.exact is None else "exact"
        ax.axhline(flattery.best, color="k", ls="--", label=label)
        ax.set(xscale="log", xlabel="temperatures", ylabel="test log likelihood (nats)")
        excess = flattery.nats[0][0] - flattery.best
        ax.set_title(f"{n_hidden} hidden: {flattery.n_temps[0]} temperatures flatter by {excess:.1f} nats")
        ax.errorbar([], [], fmt="o", color="tab:orange", label="AIS of 10 chains, effective share")
        ax.plot([], [], "X", color="tab:red", label="the same, under 10 %: refused")
        ax.margins(x=0.15, y=0.15)
        ax.legend(loc="upper right")
    return fig


def record_peers(run, n_hidden, peers, chance):
    """The numbers of one width; returns its rows for `draw_models`."""
    rows, annealed = {}, n_hidden > run.config.n_small
    run.metric(f"{n_hidden} hidden: training (s)", peers.seconds, against=("scikit-learn", peers.sklearn_seconds))
    published = run.config.dataset == "mnist" and n_hidden == 500
    for maker, scored in (("scikit-learn", peers.sklearns), ("this module", peers.ours)):
        nats, sems, shares = zip(*scored, strict=True)
        name = f"{n_hidden} hidden, {maker}"
        if annealed:
            run.metric(f"{name}: effective chains", min(shares), against=("refused below", 0.1))
        if min(shares) < 0.1:
            echo(f"  {name}: test log likelihood refused, its AIS rests on too few chains; raise --n-ais-temps")
            continue
        rows[f"{maker},\n{n_hidden} hidden ({'AIS' if annealed else 'exact'})"] = mean_and_sem(nats)
        against = ("CD-25, Salakhutdinov & Murray 2008", -86.34) if published else ("independent pixels", chance)
        run.metric(f"test nats, {name}", *mean_and_sem(nats), against=against)
        if annealed and run.config.n_ais_chains > 1:
            spread = np.std(nats, ddof=min(1, len(nats) - 1))  # 0 for one training
            run.metric(f"{name}: AIS error (nats)", max(sems), against=("spread of the trainings", spread))
    return rows


def record_ais(run, flattery, sandwiches):
    """What AIS says where the answer is known, and from both sides."""
    if flattery.exact is not None:
        mean, sem = mean_and_sem(flattery.ratios)
        n = len(flattery.ratios)
        run.metric(f"AIS, {run.config.n_small} hidden: mean weight / Z", mean, sem, ("unbiased", 1), tolerance(sem, n))
    for name, found in sandwiches.items():
        run.metric(f"log Z by AIS, {name} (nats)", found.low, against=("by reverse AIS", found.high))
    found, exact = sandwiches["the trap"], theory_trap_log_z()
    run.metric("log Z of the trap, one layer summed out", exact_log_z(trap()), None, ("its two states by hand", exact), 0.01)
    run.metric("the trap: effective chains", found.share, against=("refused below", 0.1))
    if run.config.n_ais_chains <= 10:
        echo("  note: of ten chains or fewer at least 10 % are always effective: that rule cannot refuse here")
    seen = "see" if found.share < 0.1 else "do not see"
    run.say(
        f"AIS misses {exact - found.low:.0f} nats of the trap's log Z and its effective chains ({found.share:.1%}) {seen}"
        f" it; from the other side it reads {found.high - found.low:.0f} nats more"
    )


def section_likelihood(run):
    """Exact and annealed test log likelihoods, beside independent pixels, a mixture and scikit-learn's RBM."""
    config, (x_train, x_test, *_) = run.config, binary_images(run)
    base_b, chance = log_odds(x_train), independent_pixels(x_train, x_test)
    mixtures = [mixture_of_bernoullis(x_train, 80) for _ in range(config.n_seeds)]
    mixture = mean_and_sem([mixture.log_joint(x_test).logsumexp(1).mean().item() for mixture in mixtures])
    run.metric("test nats, mixture of 80 Bernoullis", *mixture, against=("independent pixels", chance))
    rows = {"independent pixels": (chance, 0.0), "mixture of 80\nBernoullis": mixture}  # mean and standard error
    widths = config.n_small, config.n_hidden
    for n_hidden in widths:
        rows |= record_peers(run, n_hidden, compare_with_sklearn(run, n_hidden), chance)
    run.figure(draw_models(rows, chance, config.n_seeds), "models")
    large = trained_rbm(run, config.n_hidden, run.seed)[0]
    found = {n: flatter(trained_rbm(run, n, run.seed)[0], x_test, base_b, config) for n in widths}
    record_ais(run, found[config.n_small], sandwich_both(large, x_train, config))
    run.figure(draw_flattery(found), "ais")


# %% 5. Features
# ĥ(v) is a learned code: is it worth more to a classifier than the pixels, or than another code of the same size? (The
# plainest is k-means: how much nearer than on average each centre is; Coates, Ng & Lee 2011.) And an RBM whose visible
# layer holds an image x and its label y, one-hot, is a classifier itself (Larochelle & Bengio 2008): of F only what
# depends on y remains in
#     p(y | x) = softmax_y( b_y + Σ_j log(1 + exp(c_j + (x W)_j + U_yj)) ),       U the label rows of W.
# (Our chains sample the ten label units one by one; Larochelle & Bengio's draw one label. The formula is the same.)
# An accuracy has two sources of error, the trainings and the test images: of 360, one is 0.3 %. Both stand in what follows.


def class_log_probs(rbm, x, n_classes):
    """log p(y | x), (B, n_classes), of an RBM over [x, one-hot y]."""
    d = x.shape[1]
    hidden = (x @ rbm.W[:d] + rbm.c).unsqueeze(1) + rbm.W[d:]  # (B, n_classes, m)
    return (rbm.b[d:] + softplus(hidden).sum(2)).log_softmax(1)


def train_discriminatively(rbm, x, y, n_updates, batch_size=100, learning_rate=0.1, momentum=0.9):
    """Climb log p(y | x) from `rbm` over [x, one-hot y]; x (N, d), y (N,) of int; the rate falls linearly to 0."""
    parameters = [parameter.clone().requires_grad_() for parameter in rbm]
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for update, batch in zip(range(n_updates), minibatches(torch.cat([x, y.unsqueeze(1)], 1), batch_size), strict=False):
        log_probs = class_log_probs(RBM(*parameters), batch[:, :-1], len(rbm.b) - x.shape[1])
        loss = torch.nn.functional.nll_loss(log_probs, batch[:, -1].long())
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity.mul_(momentum).sub_(gradient, alpha=learning_rate * (1 - update / n_updates))
            parameter.data.add_(velocity)
    must_be_finite("training of the classifier", *parameters)
    return RBM(*(parameter.detach() for parameter in parameters))


def float64_arrays(*arrays):
    """Tensors as scikit-learn judges them best: NumPy arrays of float64."""
    return [to_numpy(x).astype(np.float64) for x in arrays]


LABELS_A_CLASS = 1, 3, 10, 30, 100


def accuracy_and_sem(right):
    """Mean of right (trainings, images) and its standard error over trainings *and* images, as if both were drawn anew."""
    right = np.atleast_2d(right).astype(np.float64)
    errors = np.nan_to_num([mean_and_sem(right.mean(axis))[1] for axis in (0, 1)])  # one training shows no spread
    return right.mean(), math.hypot(*errors)


def verdict(difference, sem, n):
    """In words, whether a mean difference of n repeats is more than its noise: what is as rare, by Student's t, as three
    standard errors of a Gaussian (n = 3 trainings: 19 of theirs)."""
    if n < 2 or not abs(difference) > scipy.stats.t.isf(scipy.stats.norm.sf(3), n - 1) * sem:
        return "not better and not worse"
    return "better" if difference > 0 else "worse"


def k_means_code(train, test, k, seed):
    """How much nearer than on average each of k centres is, 0 if it is not (N, k): a code of train and test (N, d)."""
    centres = KMeans(k, n_init=1, random_state=seed).fit(train)
    distances = [centres.transform(x) for x in (train, test)]
    return [np.maximum(z.mean(1, keepdims=True) - z, 0) for z in distances]


def compare_codes(codes, y_train, y_test, seed, n_draws=5):
    """{name: one array (n_draws, images) a number of labels} of what logistic regression on (train, test) gets right."""
    found = {name: [] for name in codes}
    for n_labels in LABELS_A_CLASS:
        splits = StratifiedShuffleSplit(n_draws, train_size=n_labels * len(np.unique(y_train)), random_state=seed)
        draws = [chosen for chosen, _ in splits.split(y_train, y_train)]
        for name, (train, test) in codes.items():
            fitted = [LogisticRegression(max_iter=1000).fit(train[i], y_train[i]) for i in draws]
            found[name].append(np.array([classifier.predict(test) == y_test for classifier in fitted]))
    return found


def compare_classification_rbms(x_train, y_train, x_test, y_test, config, n_classes=10):
    """{training: what is right (seeds, images)} of classification RBMs trained in three ways."""
    y = torch.tensor(y_train, device=x_train.device).long()
    labelled = torch.cat([x_train, one_hot(y, n_classes)], 1)
    short, n_steps = replace(config, n_updates=max(config.n_updates // 4, 1)), max(config.n_updates // 20, 1)
    found = {"generative": [], "discriminative": [], "generative first": []}
    for _ in range(config.n_seeds):
        fresh = fresh_rbm(labelled, config.n_hidden)
        discriminative = train_discriminatively(fresh, x_train, y, n_steps, config.batch_size)
        generative = train_rbm(fresh, labelled, short)
        both = train_discriminatively(generative, x_train, y, n_steps, config.batch_size)
        for values, classifier in zip(found.values(), (generative, discriminative, both), strict=True):
            values.append(to_numpy(class_log_probs(classifier, x_test, n_classes).argmax(1)) == y_test)
    return {name: np.array(values) for name, values in found.items()}


def classify_pixels(pixels, greys, y_train, y_test):
    """{peer: what is right (images,)} of classifiers on binary pixels (train, test), and of the best one on grey levels."""
    peers = {
        "logistic regression": (LogisticRegression(max_iter=1000), pixels),
        "3-NN": (KNeighborsClassifier(3), pixels),
        "SVM": (SVC(), pixels),
        "SVM, grey levels": (SVC(), greys),
    }
    return {name: peer.fit(train, y_train).predict(test) == y_test for name, (peer, (train, test)) in peers.items()}


def draw_accuracy(scores, classifiers, peers):
    """Accuracy against labels a class, and classification RBMs beside classifiers on pixels."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), layout="constrained")
    for (name, values), fmt, color in zip(
        scores.items(), ("s-", "o-", "^-"), ("tab:gray", "tab:orange", "tab:olive"), strict=True
    ):
        means, sems = zip(*map(accuracy_and_sem, values), strict=True)
        left.errorbar(LABELS_A_CLASS, means, sems, fmt=fmt, color=color, label=name)
    first = {name: values[0].mean() for name, values in scores.items()}
    best = max(first, key=first.get)
    left.set(title=f"One label a class: highest mean on {best}", xscale="log", ylabel="test accuracy")
    left.set(xticks=LABELS_A_CLASS, xticklabels=LABELS_A_CLASS, xlabel="labels per class")
    left.legend(loc="lower right")
    for group, fmt, color in ((peers, "s", "tab:gray"), (classifiers, "o", "tab:orange")):
        means, sems = zip(*map(accuracy_and_sem, group.values()), strict=True)
        right.errorbar(means, list(group), xerr=sems, fmt=fmt, ms=10, color=color, capsize=4)
    right.invert_yaxis()
    right.grid(axis="x")
    right.set(title="All labels: classification RBMs (circles) and peers on pixels", xlabel="test accuracy")
    return fig


def section_features(run):
    """What an RBM's features are worth to a classifier with few labels and with many, and an RBM that classifies."""
    x_train, x_test, y_train, y_test = binary_images(run)
    x_train, y_train = x_train[:5000], y_train[:5000]  # enough for the lesson, also on MNIST
    rbm, _ = trained_rbm(run, run.config.n_hidden, run.seed)
    pixels, greys = float64_arrays(x_train, x_test), [x[:5000] for x in load_images(run.config.dataset)[:2]]
    codes = {"pixels": pixels, "RBM features": float64_arrays(rbm.p_hidden(x_train), rbm.p_hidden(x_test))}
    codes["k-means"] = k_means_code(*pixels, run.config.n_hidden, run.seed)
    scores = compare_codes(codes, y_train, y_test, run.seed)
    for i, n_labels in enumerate(LABELS_A_CLASS):
        for name in ("RBM features", "k-means"):
            against = ("same, on pixels", scores["pixels"][i].mean())
            run.metric(f"{name}, {n_labels} labels a class: accuracy", *accuracy_and_sem(scores[name][i]), against)
    right = compare_classification_rbms(x_train, y_train, x_test, y_test, run.config)
    peers = classify_pixels(pixels, greys, y_train, y_test)
    for name, values in right.items():
        against = ("SVM on the same pixels", peers["SVM"].mean())
        run.metric(f"RBM classifier, {name}: accuracy", *accuracy_and_sem(values), against)
    against = ("on binary pixels", peers["SVM"].mean())
    run.metric("SVM on grey levels: accuracy", *accuracy_and_sem(peers["SVM, grey levels"]), against)
    run.figure(draw_accuracy(scores, right, peers), "accuracy")
    gains = accuracy_and_sem(scores["RBM features"][0].astype(float) - scores["k-means"][0])
    words = verdict(*gains, len(y_test))
    run.say(f"RBM features minus k-means, one label a class: {gains[0]:+.3f} +- {gains[1]:.3f}, paired: {words}")


# %% 6. Filling in
# Clamp the pixels that are known and let the others run: Gibbs sampling then draws from p(missing | known). With few
# hidden units this conditional is exact. Given h the missing pixels are independent, and summing them out,
#     p(h | known) ∝ exp(h·c + known·W h + b·known) Π_{i missing} (1 + exp(b_i + (W h)_i)),
# so E[missing | known] = Σ_h p(h | known) σ(b + W h): no other guess has a smaller mean squared error under the model.
# A mixture completes in the same way, by its components' p(k | known). All guesses see the same images: what one gains on
# another is judged image by image, over several trainings of both. One training's luck is as large as what is compared.


def exact_completion(rbm, x, known):
    """E[v | the known pixels of x], (B, d), over all 2^m hidden states; x (B, d), known (d,) of bool."""
    h = all_states(len(rbm.c)).to(x)
    logits = h @ rbm.W.T + rbm.b
    log_p = ((x * known) @ rbm.W) @ h.T + h @ rbm.c + softplus(logits[:, ~known]).sum(1)
    return torch.where(known, x, log_p.softmax(1) @ logits.sigmoid())


def complete_by_mixture(mixture, x, known):
    """E[v | the known pixels of x] under a BernoulliMixture, (B, d): its exact conditional."""
    part = BernoulliMixture(mixture.p[:, known], mixture.log_prior)
    return torch.where(known, x, part.log_joint(x[:, known]).softmax(1) @ mixture.p)


def inpaint_by_gibbs(rbm, x, known, n_sweeps):
    """The mean of P(v = 1 | h) over the last three quarters of `n_sweeps` clamped sweeps, and the last v; (B, d) each."""
    v, total, n_skipped = torch.where(known, x, noise_like(x)), torch.zeros_like(x), n_sweeps // 4
    for sweep in range(n_sweeps):
        p = rbm.p_visible(bernoulli(rbm.p_hidden(v)))
        v = torch.where(known, x, bernoulli(p))
        if sweep >= n_skipped:
            total += p
    return torch.where(known, x, total / (n_sweeps - n_skipped)), v


class Completions(NamedTuple):
    """Gibbs beside exact completions of x (B, d), and the squared errors (trainings or 1, B) of every guess, in NumPy."""

    bias: np.ndarray  # (B,) mean over pixels of (Gibbs - exact)², less what the spread of the repeats explains
    squared: dict
    columns: dict  # what is drawn: {title: images}


def complete_images(small, larges, x_train, x, known, n_sweeps, n_repeats=4):
    """Fill in what is not `known` (d,) of x (B, d) by a small RBM, several trainings of a large one and as many of a
    mixture, nearest neighbours, and the mean image."""
    exact = exact_completion(small, x, known)
    repeated, _ = inpaint_by_gibbs(small, x.repeat(n_repeats, 1), known, n_sweeps)
    repeated = repeated.reshape(n_repeats, *x.shape)
    means, samples = zip(*(inpaint_by_gibbs(rbm, x.repeat(n_repeats, 1), known, n_sweeps) for rbm in larges), strict=True)
    by_large, n_large = torch.stack(means).reshape(-1, n_repeats, *x.shape).mean(1), len(larges[0].c)
    by_mixture = [complete_by_mixture(mixture_of_bernoullis(x_train, 80), x, known) for _ in larges]
    neighbours = KNeighborsRegressor(min(10, len(x_train))).fit(*float64_arrays(x_train[:, known], x_train[:, ~known]))
    guesses = {
        "pixel means": x_train.mean(0)[~known].expand(1, len(x), -1),
        "10 neighbours": torch.tensor(neighbours.predict(*float64_arrays(x[:, known]))).to(x).unsqueeze(0),
        "mixture of 80, exact": torch.stack(by_mixture)[..., ~known],
        f"RBM, {len(small.c)} hidden, exact": exact[None, :, ~known],
        f"RBM, {n_large} hidden, Gibbs": by_large[..., ~known],
    }
    columns = {
        "test image": x,
        "what is known": torch.where(known, x, 0.5),
        f"exact mean,\n{len(small.c)} hidden": exact,
        f"Gibbs mean,\n{len(small.c)} hidden": repeated.mean(0),
        f"Gibbs mean,\n{n_large} hidden": by_large[0],
        f"one sample,\n{n_large} hidden": samples[0][: len(x)],
    }
    bias = (repeated.mean(0) - exact).square() - repeated.var(0) / n_repeats
    squared = {name: to_numpy((guess - x[:, ~known]).square().mean(-1)) for name, guess in guesses.items()}
    return Completions(to_numpy(bias[:, ~known].mean(1)), squared, columns)


def draw_completions(columns):
    """Fifteen images a column."""
    fig, axes = plt.subplots(1, len(columns), figsize=(14, 5.2), layout="constrained")
    for ax, (title, images) in zip(axes, columns.items(), strict=True):
        show_images(ax, images[:15], 3, title)
    return fig


def section_inpainting(run):
    """Clamped Gibbs sampling fills in missing pixels, checked against the exact conditional mean."""
    x_train, x_test, *_ = binary_images(run)
    side, config = math.isqrt(x_train.shape[1]), run.config
    known = (torch.arange(side**2, device=run.device) % side) < side // 2  # the left half
    small = trained_rbm(run, config.n_small, run.seed)[0]
    larges = [trained_rbm(run, config.n_hidden, seed)[0] for seed in seeds_from(run.seed, config.n_seeds)]
    found = complete_images(small, larges, x_train, x_test[:1000], known, config.n_gibbs)
    mean, sem = mean_and_sem(found.bias)
    within = tolerance(sem, len(found.bias))
    run.metric("Gibbs minus exact, squared, less its noise", mean, sem, ("the same expectation", 0), within)
    for name, values in found.squared.items():
        run.metric(f"squared error, {name}", *accuracy_and_sem(values), ("pixel means", found.squared["pixel means"].mean()))
    *_, ours = found.squared
    words = []
    for name in ("mixture of 80, exact", "10 neighbours"):
        gain = accuracy_and_sem(found.squared[name] - found.squared[ours])  # counts trainings and images
        words.append(f"{verdict(*gain, len(found.bias))} than {name}")
        run.metric(f"{name} minus the RBM, paired", *gain, ("as good", 0))
    run.figure(draw_completions(found.columns), "completions")
    run.say(f"the large RBM completes the images: {'; '.join(words)}")


# %% 7. Real-valued data
# Grey levels are not binary. Gaussian visible units of variance s² (Welling, Rosen-Zvi & Hinton 2005) keep the hidden layer:
#     E(v, h) = |v - b|²/(2 s²) - v·W h/s² - c·h,       p(v | h) = N(v; b + W h, s² I),
#     F(v) = |v - b|²/(2 s²) - Σ_j log(1 + exp(c_j + (v W)_j/s²)),
#     Z = (2π s²)^{d/2} Σ_h exp(c·h + (|b + W h|² - |b|²)/(2 s²)):
# a mixture of 2^m Gaussians of one common variance whose means are sums of columns of W. On raw grey levels, where nearly
# all variance is brightness, that is a poor tool: binary units climb a continuum in steps. Whitened data, v = A (x - μ)
# with covariance I, start it where a Gaussian ends: with W = 0 it *is* the Gaussian of the data's mean and covariance;
# log p(x) = log p(v) + log |det A| keeps the numbers comparable. What W then adds is little, and the cause is s²: patches
# of sky and patches of roof differ in *contrast*, and one variance serves neither. Two mixtures show it: 16 Gaussians of
# one covariance, though it is a full one, gain as little, and 16 spheres, each with a variance of its own, have what is
# missing. (Grey levels are whole numbers: a density could grow without bound by narrowing about them. So we dequantise: add
# uniform noise of one level.)


class GaussianRBM(NamedTuple):
    """Gaussian visible units v (B, d), binary hidden units h (B, m)."""

    W: torch.Tensor  # (d, m)
    b: torch.Tensor  # (d,)
    c: torch.Tensor  # (m,)
    log_variance: torch.Tensor  # () log s²

    def free_energy(self, v):
        """F(v), (B,)."""
        variance = self.log_variance.exp()
        return (v - self.b).square().sum(1) / (2 * variance) - softplus(self.c + v @ self.W / variance).sum(1)

    def gibbs(self, v, n_sweeps):
        """`n_sweeps` sweeps v -> h -> v from v (B, d); returns the last v, (B, d)."""
        variance = self.log_variance.exp()
        for _ in range(n_sweeps):
            h = bernoulli(torch.sigmoid(self.c + v @ self.W / variance))
            v = self.b + h @ self.W.T + variance.sqrt() * torch.randn_like(v)
        return v

    def exact_log_z(self):
        """log Z by enumeration of the 2^m hidden states."""
        h, variance = all_states(len(self.c)).to(self.W), self.log_variance.exp()
        means = self.b + h @ self.W.T
        exponent = h @ self.c + (means.square().sum(1) - self.b.square().sum()) / (2 * variance)
        return exponent.logsumexp(0) + len(self.b) / 2 * (math.log(2 * math.pi) + self.log_variance)

    def log_density(self, v):
        """log p(v) (nats), (B,)."""
        return -self.free_energy(v) - self.exact_log_z()


def natural_patches(side, n_patches, seed, least_contrast=0.0):
    """Grey patches (n, side²), float64, of two photographs, train from their left, test from their right.

    Dequantised, in units of the train's standard deviation around its mean. With `least_contrast`, patches whose own
    standard deviation is less than so many of the 256 grey levels are left out."""
    rng, parts = np.random.default_rng(seed), ([], [])
    for image in load_sample_images().images:
        grey, cut = image.mean(2).round(), image.shape[1] * 2 // 3
        for part, region in zip(parts, (grey[:, :cut], grey[:, cut:]), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(region, (side, side))
            rows, columns = (rng.integers(size, size=n_patches // 2) for size in windows.shape[:2])
            patches = windows[rows, columns].reshape(-1, side * side)
            part.append(patches + rng.random(patches.shape))
    train, test = (torch.tensor(np.concatenate(part)) for part in parts)
    mean, deviation = train.mean(), train.std()
    return tuple((x[x.std(1) >= least_contrast] - mean) / deviation for x in (train, test))


class Whitening(NamedTuple):
    """v = (x - mean) @ matrix has covariance I; log p(x) = log p(v) + log_det."""

    mean: torch.Tensor
    matrix: torch.Tensor
    log_det: float

    def __call__(self, x):
        return (x - self.mean) @ self.matrix


def whitening(x):
    """The symmetric Whitening (ZCA) of x (N, d): white patches still look like patches."""
    variances, axes = torch.linalg.eigh(x.T.cov())
    return Whitening(x.mean(0), axes / variances.sqrt() @ axes.T, -variances.log().sum().item() / 2)


def train_gaussian_rbm(x, n_hidden, n_updates, batch_size=100, learning_rate=0.01):
    """A GaussianRBM fitted to x (N, d) by PCD: Adam on F(data) - F(chains), at a rate that falls linearly to 0."""
    weights, c = 0.1 * torch.randn(x.shape[1], n_hidden), torch.full((n_hidden,), -2.0)  # most units off at first
    parameters = [weights, x.mean(0), c, x.var().log()]
    rbm = GaussianRBM(*(parameter.to(x).requires_grad_() for parameter in parameters))
    moments = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in rbm]
    chains = x[:batch_size].clone()
    for update, batch in zip(Progress(range(n_updates), "Gaussian RBM"), minibatches(x, batch_size), strict=False):
        with torch.no_grad():
            chains = rbm.gibbs(chains, 1)
        gradients = torch.autograd.grad(rbm.free_energy(batch).mean() - rbm.free_energy(chains).mean(), rbm)
        with torch.no_grad():  # Adam by hand: the first torch.optim object costs a second of imports
            for parameter, gradient, (first, second) in zip(rbm, gradients, moments, strict=True):
                first.lerp_(gradient, 0.1)
                second.lerp_(gradient**2, 0.001)
                mean, square = first / (1 - 0.9 ** (update + 1)), second / (1 - 0.999 ** (update + 1))
                parameter.sub_(mean / (square.sqrt() + 1e-8), alpha=learning_rate * (1 - update / n_updates))
    must_be_finite("Gaussian RBM training", *rbm)
    return GaussianRBM(*(parameter.detach() for parameter in rbm))


class Patches(NamedTuple):
    """Test log densities (nats) under each model, {name: (N,)}, and the RBM on white patches."""

    nats: dict
    rbm: GaussianRBM


def theory_no_weights(d):
    """The GaussianRBM of white data with W = 0: one standard Gaussian."""
    return GaussianRBM(*(torch.zeros(shape, dtype=torch.float64) for shape in ((d, 1), d, 1, ())))


def compare_densities(x_train, x_test, n_hidden, n_updates, batch_size, seed, device="cpu", raw=True):
    """Patches of float64 (N, d): a Gaussian, RBMs on white patches and (if `raw`) on raw ones, and mixtures."""
    white = whitening(x_train)
    w_train, w_test = white(x_train), white(x_test)

    def rbm_on(x):
        return GaussianRBM(*(p.cpu() for p in train_gaussian_rbm(x.float().to(device), n_hidden, n_updates, batch_size)))

    on_raw = {"RBM on raw patches": rbm_on(x_train).log_density(x_test.float())} if raw else {}
    white_rbm = rbm_on(w_train)
    spheres = GaussianMixture(16, covariance_type="spherical", tol=0.01, max_iter=500, random_state=seed).fit(
        w_train.numpy()
    )
    tied = GaussianMixture(16, covariance_type="tied", tol=0.01, max_iter=500, random_state=seed).fit(w_train.numpy())
    ellipses = GaussianMixture(4, tol=0.01, max_iter=500, reg_covar=1e-4, random_state=seed).fit(x_train.numpy())
    nats = on_raw | {
        "one Gaussian": multivariate_normal(white.mean.numpy(), x_train.T.cov().numpy()).logpdf(x_test.numpy()),
        "RBM with W = 0": theory_no_weights(w_test.shape[1]).log_density(w_test) + white.log_det,
        "RBM on white patches": white_rbm.log_density(w_test.float()) + white.log_det,
        "16 of one covariance": tied.score_samples(w_test.numpy()) + white.log_det,
        "16 spheres": spheres.score_samples(w_test.numpy()) + white.log_det,
        "4 Gaussians": ellipses.score_samples(x_test.numpy()),
    }
    return Patches({name: to_numpy(values).astype(np.float64) for name, values in nats.items()}, white_rbm)


def draw_patches(found, patches):
    """Patches, filters of the RBM on white patches, and a bar a model; found is {kind of patches: Patches}."""
    fig, panels = plt.subplots(1, 4, figsize=(15, 4.2), width_ratios=[1, 1, 1.4, 1.4], layout="constrained")
    show_images(panels[0], patches[:16], 4, "test patches: sky and roof", vmin=-2, vmax=2, cmap="gray")
    weights = next(iter(found.values())).rbm.W
    limit = weights.abs().max().item()
    show_images(panels[1], weights.T, 4, "filters, white patches", vmin=-limit, vmax=limit, cmap="RdBu_r")
    for ax, (kind, result) in zip(panels[2:], found.items(), strict=True):
        nats = {name: values.mean() for name, values in result.nats.items() if name != "RBM with W = 0"}
        colors = ["tab:orange" if "RBM" in name else "tab:gray" for name in nats]
        hatches = ["//" if "RBM" in name else "" for name in nats]
        bars = ax.barh(list(nats), list(nats.values()), color=colors, hatch=hatches)
        ax.bar_label(bars, fmt=" %.1f ")
        ax.margins(x=0.3)
        ax.axvline(0, color="k", lw=0.8)
        ax.invert_yaxis()
        gain = nats["RBM on white patches"] - nats["one Gaussian"]
        ax.set(title=f"{kind}: weights add {gain:.1f} nats", xlabel="test log density (nats)")
    return fig


def section_gaussian(run):
    """Natural image patches: what a Gaussian RBM's weights add to one Gaussian, and what a variance of one's own adds."""
    config, found = run.config, {}
    n_updates = max(config.n_updates // 4, 1)
    for kind, least_contrast in (("all patches", 0.0), ("textured", 8.0)):
        train, test = natural_patches(8, config.n_patches, run.seed, least_contrast)
        if min(len(train) - 64, len(test)) <= 0:
            sys.exit(f"--n-patches must be larger than {config.n_patches}: too few of them are {kind}")
        settings = config.n_small, n_updates, config.batch_size, run.seed, run.device, kind == "all patches"
        found[kind] = compare_densities(train, test, *settings)
        gaussian = found[kind].nats["one Gaussian"]
        for name, values in found[kind].nats.items():
            within = 1e-4 if name == "RBM with W = 0" else None
            run.metric(f"{kind}, {name} (nats)", *mean_and_sem(values), ("one Gaussian", gaussian.mean()), within)
    run.figure(draw_patches(found, natural_patches(8, 200, run.seed)[1]), "patches")
    weights, tied, spheres = (
        found["all patches"].nats[name].mean() - found["all patches"].nats["one Gaussian"].mean()
        for name in ("RBM on white patches", "16 of one covariance", "16 spheres")
    )
    run.say(f"weights add {weights:.1f} nats to one Gaussian, 16 of one covariance {tied:.1f}, 16 spheres {spheres:.1f}")


# %% 8. Deep belief network
# Stack a second RBM on samples of h given data (Hinton, Osindero & Teh 2006). The first RBM's p₁(v | h) stays, the second
# takes the place of its p₁(h): p(v) = Σ_h p₁(v | h) p₂(h). With q(h | v) = p₁(h | v), Jensen's inequality gives
#     log p(v) >= E_q[log p₁(v | h) + log p₂(h) - log q(h | v)].
# Start the second RBM as the first upside down, W₂ = W₁ᵀ: then p₂(h) = p₁(h), and by Bayes' rule the bracket equals
# log p₁(v) for every single h. From there each gain of p₂'s likelihood on samples of h raises the bound by as much. With
# a first layer of 16 units nothing is left to believe: bound, log p(v) and both Zs can be enumerated. So can the rival
# that depth has: the same layer, a little wider. The theorem promises a gain, and not that it is worth its parameters.


def dbn_bound(first, top, log_z_top, v):
    """The bracket above for one h ~ q(h | v) each, (B,): its mean bounds the network's log likelihood from below."""
    a = v @ first.W + first.c
    h = bernoulli(a.sigmoid())
    logits = h @ first.W.T + first.b
    log_q = (h * a - softplus(a)).sum(1)
    return (v * logits - softplus(logits)).sum(1) - top.free_energy(h) - log_z_top - log_q


def exact_dbn_log_likelihood(first, top, v):
    """log p(v) = log Σ_h p₁(v | h) p₂(h), (B,), over all states of the layer between the two RBMs."""
    total = torch.full_like(v[:, 0], -math.inf)
    for h in all_states(len(first.c)).to(v).split(2**13):
        logits = h @ first.W.T + first.b
        log_joint = v @ logits.T - softplus(logits).sum(1) - top.free_energy(h)
        total = torch.logaddexp(total, log_joint.logsumexp(1))
    return total - exact_log_z(top)


class Stack(NamedTuple):
    """Two layers, and mean test log likelihoods (nats): of the first, two bounds, and the exact one of both."""

    first: RBM
    top: RBM
    one_layer: float
    bound_untrained: float
    bound: float
    exact: float


def stack(first, x_train, x_test, config):
    """Train a second RBM on samples of the first's hidden layer, from the first upside down."""
    top, log_z = RBM(first.W.T.clone(), first.c.clone(), first.b.clone()), exact_log_z(first)
    untrained = dbn_bound(first, top, log_z, x_test).mean().item()
    h_train = bernoulli(first.p_hidden(x_train.repeat(10, 1)))
    train_rbm(top, h_train, replace(config, learning_rate=config.learning_rate / 4))
    bound = dbn_bound(first, top, exact_log_z(top), x_test.repeat(10, 1)).mean().item()  # ten samples of h an image
    exact = exact_dbn_log_likelihood(first, top, x_test).mean().item()
    return Stack(first, top, exact_log_likelihood(first, x_test).item(), untrained, bound, exact)


def stack_codes(layers, x_train, x_test, y_train, y_test):
    """Test accuracy of logistic regression on the pixels and on the code of each layer."""
    codes = [(x_train, x_test)]
    for layer in layers:
        codes.append(tuple(layer.p_hidden(code) for code in codes[-1]))
    pairs = [float64_arrays(*pair) for pair in codes]
    return [LogisticRegression(max_iter=2000).fit(train, y_train).score(test, y_test) for train, test in pairs]


def n_parameters(rbm):
    """How many numbers an RBM has."""
    return sum(parameter.numel() for parameter in rbm)


def draw_stack(stacks, wider, images, samples):
    """Test images, samples from the top, and what the second layer adds beside what two more units add."""
    fig, axes = plt.subplots(1, 3, figsize=(14, 5.6), width_ratios=[1, 1, 1.4], layout="constrained")
    show_images(axes[0], images, 5, "test images")
    show_images(axes[1], samples, 5, "from the top RBM, one step down")
    names = "bound,\ntop untrained", "bound,\ntop trained", "two layers,\nexact", "one layer,\n2 units more"
    gains = np.array([[*found[3:], nats] for found, nats in zip(stacks, wider, strict=True)])
    gains -= np.array([[found.one_layer] for found in stacks])
    for row in gains:
        axes[2].plot(names, row, "o", ms=8, color="tab:orange", alpha=0.7)
    axes[2].axhline(0, color="k", ls="--")
    depth, width = gains[:, 2].mean(), gains[:, 3].mean()
    axes[2].set(title=f"Depth adds {depth:.2f} nats, two units {width:.2f}", ylabel="gain on one layer (nats)")
    return fig


def section_dbn(run):
    """A second layer improves the first a little, in the bound as the theorem says and in exact likelihood."""
    config, (x_train, x_test, y_train, y_test) = run.config, binary_images(run)
    seeds = seeds_from(run.seed, config.n_seeds)
    stacks = [stack(trained_rbm(run, config.n_small, seed)[0], x_train, x_test, config) for seed in seeds]
    wider = [trained_rbm(run, config.n_small + 2, seed)[0] for seed in seeds]
    wider_nats = np.array([exact_log_likelihood(rbm, x_test).item() for rbm in wider])
    one_layer, untrained, bound, exact = np.transpose([found[2:] for found in stacks])
    run.metric("test log likelihood, one layer (nats)", *mean_and_sem(one_layer))
    run.metric("gain in the bound, untrained (nats)", *mean_and_sem(untrained - one_layer), ("theorem", 0), 1e-3)
    run.metric("gain in the bound (nats)", *mean_and_sem(bound - one_layer), against=("one layer", 0))
    depth, width = mean_and_sem(exact - one_layer), mean_and_sem(wider_nats - one_layer)
    run.metric("exact gain of a second layer (nats)", *depth, against=("its parameters", n_parameters(stacks[0].top)))
    extra = n_parameters(wider[0]) - n_parameters(stacks[0].first)
    run.metric("exact gain of two more units (nats)", *width, against=("their parameters", extra))
    first, top = stacks[-1][:2]
    accuracies = stack_codes((first, top), x_train[:5000], x_test, y_train[:5000], y_test)
    for layer in (1, 2):
        run.metric(f"accuracy on the code of layer {layer}", accuracies[layer], against=("on pixels", accuracies[0]))
    from_top = gibbs(top, bernoulli(x_test.new_full((40, len(top.b)), 0.5)), config.n_gibbs)
    run.figure(draw_stack(stacks, wider_nats, x_test[:40], first.p_visible(from_top)), "samples")
    more = mean_and_sem(wider_nats - exact)
    run.say(f"two more units minus a second layer: {more[0]:+.2f} +- {more[1]:.2f} nats, {verdict(*more, config.n_seeds)}")


SECTIONS = {
    "bipartite": section_bipartite,
    "cd": section_cd,
    "training": section_training,
    "checklist": section_checklist,
    "steps": section_steps,
    "likelihood": section_likelihood,
    "features": section_features,
    "inpainting": section_inpainting,
    "gaussian": section_gaussian,
    "dbn": section_dbn,
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
