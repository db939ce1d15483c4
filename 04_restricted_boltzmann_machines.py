"""Module 04 - Restricted Boltzmann machines: train them on real digits, and find out how good they really are.

Visible units v ∈ {0,1}^d, hidden units h ∈ {0,1}^m, and no connection within a layer:

    E(v, h) = -v·W h - b·v - c·h,                  p(v, h) = exp(-E(v, h)) / Z           (1)
    P(h_j = 1 | v) = σ(c_j + (v W)_j),             P(v_i = 1 | h) = σ(b_i + (W h)_i)     (2)
    F(v) = -b·v - Σ_j log(1 + exp(c_j + (v W)_j)),         p(v) = exp(-F(v)) / Z         (3)
    ∂ log p(v)/∂W = v ĥ(v)ᵀ - E_{v'~p}[v' ĥ(v')ᵀ],        ĥ(v) = P(h = 1 | v)            (4)

Run      python 04_restricted_boltzmann_machines.py                    all sections, about 2 min on two CPU cores
         python 04_restricted_boltzmann_machines.py --section likelihood --show
         python 04_restricted_boltzmann_machines.py --dataset mnist --n-hidden 500 --section likelihood
Writes   outputs/04_restricted_boltzmann_machines/*.png and metrics.json
Before   module 03
Sources  Smolensky (1986); Hinton (2002); Hinton, Osindero & Teh (2006); Larochelle & Bengio (2008);
         Salakhutdinov & Murray (2008); Tieleman (2008)
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
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA
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
    n_ais_chains: Annotated[int, "annealed importance sampling: chains"] = 500
    n_ais_temps: Annotated[int, "annealed importance sampling: temperatures"] = 2000
    n_gibbs: Annotated[int, "Gibbs sweeps behind a fantasy or a completion"] = 500
    n_patches: Annotated[int, "image patches, for training and for testing"] = 20000
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1

    def __post_init__(self):
        if self.n_small > 20:
            sys.exit(f"--n-small must be at most 20, since 2^n states are enumerated, not {self.n_small}")


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
        reason = (str(error) or repr(error)).splitlines()[0]
        sys.exit(f"cannot load MNIST ({reason}): repair torchvision, the network or data/MNIST; or --dataset digits")


@functools.cache
def binary_images(run):
    """The run's data set: binary x_train (N, d), x_test on its device, y_train, y_test (numpy)."""
    x_train, x_test, y_train, y_test = load_images(run.config.dataset)
    if run.config.batch_size > len(x_train):
        sys.exit(f"--batch-size must be at most {len(x_train)}, the number of training images")
    rng = np.random.default_rng(0)
    cut = (lambda x: x > 0.5) if run.config.dataset == "digits" else (lambda x: rng.random(x.shape) < x)
    x_train, x_test = (torch.tensor(cut(x), dtype=torch.float32, device=run.device) for x in (x_train, x_test))
    return x_train, x_test, np.asarray(y_train), np.asarray(y_test)


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


def show_images(ax, images, n_columns, title, **imshow):
    """Draw images (N, d) on one axis, a mosaic of `n_columns` columns with a gap between the tiles."""
    side = math.isqrt(images.shape[1])
    tiles = torch.nn.functional.pad(images.cpu().reshape(-1, side, side), (0, 1, 0, 1), value=float("nan"))
    rows = [torch.cat(list(row), 1) for row in tiles.split(n_columns) if len(row) == n_columns]
    ax.imshow(torch.cat(rows)[:-1, :-1].numpy(), **({"cmap": "gray_r", "vmin": 0, "vmax": 1} | imshow))
    ax.set_title(title)
    ax.axis("off")


# %% 1. The bipartite trick
# Collect in E all that concerns h_j: -h_j (c_j + (v W)_j). Given v, the hidden units do not meet: p(h | v) is a product
# of the logistic factors of eq. (2), and a whole layer is sampled at once. Summing each h_j out of exp(-E) gives
#     Σ_h exp(-E(v, h)) = exp(b·v) Π_j (1 + exp(c_j + (v W)_j)) = exp(-F(v)),
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
    """Units that are 1 with probability p, to within 2^-16, in the shape of p.

    Much of an RBM's training time goes into random numbers: here one 64-bit draw serves four units, instead of a float for
    each; a loop also hands in `out` and a `buffer` = coin_buffer(p) to be used again.
    """
    out = torch.empty_like(p) if out is None else out
    words, coins = coin_buffer(p) if buffer is None else buffer
    words.random_(-(2**63), None)
    out.copy_(coins)  # whole numbers from -2^15 to 2^15 - 1
    return torch.add(p, out, alpha=2**-16, out=out).round_()  # is p + u > 1/2, u uniform on [-1/2, 1/2)?


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


def product_probabilities(p, states):
    """Probability of each state (S, n) under each row of independent units p (A, n), (A, S)."""
    return (p.log() @ states.T + (1 - p).log() @ (1 - states).T).exp()


def section_bipartite(run):
    """No connection within a layer: conditionals factorise, hidden units sum out, whole layers are sampled at once."""
    d, m, n_chains, n_sweeps = 6, 4, 20000, 30
    weights = 2 * torch.randn(d, m)
    rbm = RBM(weights, -weights.sum(1) / 2, -weights.sum(0) / 2)  # as likely as its mirror image: two modes at least
    v, h = all_states(d), all_states(m)

    minus_e = -torch.stack([rbm.energy(v, state.expand(len(v), m)) for state in h], 1)  # the whole joint, (2^d, 2^m)
    log_z = minus_e.logsumexp((0, 1))
    p_joint = (minus_e - log_z).exp()
    p_v = p_joint.sum(1)
    p_hidden = p_joint @ h / p_v.unsqueeze(1)
    run.metric("log_z", exact_log_z(rbm), against=("sum over all 2^10 states", log_z), within=1e-4)
    run.metric("p_hidden_max_error", (rbm.p_hidden(v) - p_hidden).abs().max(), against=("exact", 0), within=1e-4)
    free_energy_error = rbm.free_energy(v) + minus_e.logsumexp(1)
    run.metric("free_energy_max_error", free_energy_error.abs().max(), against=("exact", 0), within=1e-4)

    # Block Gibbs as a Markov kernel K(v, v') = Σ_h p(h | v) p(v' | h): its powers say how far a chain has come.
    kernel = product_probabilities(rbm.p_hidden(v), h) @ product_probabilities(rbm.p_visible(h), v)
    start = torch.eye(2**d)[:1]  # all chains begin at v = 0
    chains, row, exact_tv, measured_tv = torch.zeros(n_chains, d), start, [], []
    for _ in range(n_sweeps):
        chains, row = gibbs(rbm, chains, 1), row @ kernel
        counts = torch.bincount((chains @ 2.0 ** torch.arange(d)).long(), minlength=2**d)
        measured_tv.append((counts / n_chains - p_v).abs().sum().item() / 2)
        exact_tv.append((row[0] - p_v).abs().sum().item() / 2)
    perfect = torch.multinomial(p_v, 50 * n_chains, replacement=True).reshape(50, n_chains)
    perfect = torch.stack([(torch.bincount(draws, minlength=2**d) / n_chains - p_v).abs().sum() / 2 for draws in perfect])
    floor = perfect.mean()
    run.metric("gibbs_total_variation", measured_tv[-1], None, ("perfect sampler", floor), 4 * perfect.std())

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=[1.6, 1])
    left.bar(range(2**d), counts.numpy() / n_chains, color="tab:orange", label=f"{n_chains:,} Gibbs chains")
    left.plot(p_v.numpy(), "k_", ms=7, mew=2, label="exact, by enumeration")
    left.set(title="Block Gibbs sampling draws from p(v)", xlabel="visible state (64 of them)", ylabel="probability")
    left.legend()
    sweeps = range(1, n_sweeps + 1)
    right.semilogy(sweeps, measured_tv, "o", color="tab:orange", label="chains, counted")
    right.semilogy(sweeps, exact_tv, "k--", label="exact: powers of the kernel")
    right.axhline(floor.item(), color="gray", ls=":", label="perfect sampler, same count")
    right.set(title="The start is forgotten geometrically", xlabel="sweeps", ylabel="total variation to p(v)")
    right.set_ylim(bottom=floor.item() / 3)
    right.legend()
    run.figure(fig, "gibbs")


# %% 2. Contrastive divergence by hand
# log p(v) = -F(v) - log Z. From eq. (3), ∂F/∂W = -v ĥ(v)ᵀ, ∂F/∂b = -v, ∂F/∂c = -ĥ(v); and, as for every energy model,
#     ∂ log Z/∂W = Σ_v' p(v') (-∂F(v')/∂W) = E_{v'~p}[v' ĥ(v')ᵀ].
# The gradient of the mean log likelihood is a positive phase, averaged over data, minus a negative phase, averaged over
# the model: eq. (4). CD-k (Hinton 2002) puts k Gibbs sweeps from the data in the place of the model; persistent CD
# (Tieleman 2008) lets chains of its own run on from update to update, while the model changes slowly under them.


def phase(rbm, v, weight=None):
    """The averages of v ĥ(v)ᵀ, v and ĥ(v) over v (B, d), as an RBM of them; `weight` (B,) sums to 1 (None: 1/B)."""
    weight = torch.full_like(v[:, 0], 1 / len(v)) if weight is None else weight
    h = rbm.p_hidden(v)
    return RBM((v * weight.unsqueeze(1)).T @ h, weight @ v, weight @ h)


def likelihood_gradient(rbm, v_data, v_model, weight=None):
    """Positive minus negative phase, eq. (4): the gradient to climb, as an RBM; `weight` is that of the model's v."""
    return RBM(*(plus - minus for plus, minus in zip(phase(rbm, v_data), phase(rbm, v_model, weight), strict=True)))


class ContrastiveDivergence:
    """CD-k or persistent CD-k on an RBM, in place, in three matrix products an update (for k = 1, persistent).

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


def section_cd(run):
    """The gradient by hand equals autograd's, and CD-k turns towards the exact gradient as k grows."""
    d, m, n_machines, n_data, n_chains, ks = 8, 5, 10, 200, 5000, (1, 2, 4, 8, 16)
    v, errors, cosines = all_states(d).double(), {"exact": [], "cd": []}, []
    for _ in range(n_machines):
        shapes = (d, m), (d,), (m,)
        x = gibbs(RBM(*(2 * torch.randn(shape).double() for shape in shapes)), v[:1].repeat(n_data, 1), 100)
        rbm = RBM(*(1.5 * torch.randn(shape).double() for shape in shapes))
        chains = [gibbs(rbm, x.repeat(n_chains // n_data, 1), k) for k in ks]
        by_cd = [likelihood_gradient(rbm, x, x_model) for x_model in chains]
        p_model = (-rbm.free_energy(v)).softmax(0)
        exact = likelihood_gradient(rbm, x, v, p_model)
        cosines.append([torch.cosine_similarity(gradient.W.flatten(), exact.W.flatten(), 0) for gradient in by_cd])

        leaves = RBM(*(parameter.requires_grad_() for parameter in rbm))
        log_likelihood = -leaves.free_energy(x).mean() - (-leaves.free_energy(v)).logsumexp(0)
        gap = leaves.free_energy(chains[0]).mean() - leaves.free_energy(x).mean()  # samples are constants: no gradient
        for name, by_hand, objective in (("exact", exact, log_likelihood), ("cd", by_cd[0], gap)):
            by_autograd = torch.autograd.grad(objective, leaves)
            errors[name] += [(a - g).abs().max().item() for a, g in zip(by_hand, by_autograd, strict=True)]
    run.metric("exact_gradient_error", max(errors["exact"]), against=("autograd through log Z", 0), within=1e-6)
    run.metric("cd_gradient_error", max(errors["cd"]), against=("autograd of the free-energy gap", 0), within=1e-6)
    cosines = [mean_and_sem(values) for values in zip(*cosines, strict=True)]
    for k, (mean, sem) in zip(ks, cosines, strict=True):
        run.metric(f"cosine_cd_{k}", mean, sem, against=("exact gradient", 1))

    fig, axes = plt.subplots(1, 4, figsize=(13.5, 3.6), width_ratios=[1, 1, 1, 1.4], layout="constrained")
    phases = {
        "positive phase:\ndata": phase(rbm, x).W,
        "negative phase:\nmodel, exact": phase(rbm, v, p_model).W,
        "difference:\nthe gradient in W": exact.W,
    }
    for ax, (title, image) in zip(axes, phases.items(), strict=False):
        limit = image.abs().max().item()
        drawn = ax.imshow(image.detach().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(title=title, xlabel="hidden unit", ylabel="visible unit")
        fig.colorbar(drawn, ax=ax, shrink=0.8)
    axes[3].errorbar(ks, *zip(*cosines, strict=True), fmt="o-", color="tab:orange", label="CD-k")
    axes[3].axhline(1, color="k", ls="--", label="exact gradient")
    axes[3].set(title="CD-k turns towards\nthe exact gradient", xlabel="Gibbs sweeps k", ylabel="cosine with it")
    axes[3].legend()
    run.figure(fig, "phases")


# %% 3. Training
# Z cancels from F(test) - F(train), which is therefore exactly the gap between train and test log likelihood: overfitting
# can be watched where no likelihood can be computed. Reconstruction error cannot show it, and is not shown.


def log_odds(x):
    """Log odds (d,) of each pixel's being 1 in x (N, d), half a count added to either side."""
    return ((x.sum(0) + 0.5) / (len(x) + 1)).logit()


def minibatches(x, batch_size):
    """Endless batches (batch_size, d) of x, shuffled anew each epoch; an epoch's last, smaller batch is left out."""
    while True:
        yield from (part for part in x[torch.randperm(len(x))].split(batch_size) if len(part) == batch_size)


def fresh_rbm(x, n_hidden):
    """An RBM to start from: small random weights, and the biases with which each pixel has its rate in x (N, d)."""
    return RBM(0.01 * torch.randn(x.shape[1], n_hidden, device=x.device), log_odds(x), x.new_zeros(n_hidden))


def train_rbm(rbm, x, config, history=None, **settings):
    """Fit `rbm` to x (N, d), in place, by ContrastiveDivergence(**settings); the rate falls linearly to 0.

    (update, a copy of the RBM) is appended to the list `history` ten times on the way, and at the end."""
    trainer = ContrastiveDivergence(rbm, config.batch_size, **settings)
    marks = set(np.linspace(0, config.n_updates, 11, dtype=int).tolist())
    progress = Progress(range(config.n_updates + 1), f"RBM with {len(rbm.c)} hidden units")  # the last rate is 0
    for update, batch in zip(progress, minibatches(x, config.batch_size), strict=False):
        if history is not None and update in marks:
            history.append((update, RBM(*(parameter.clone() for parameter in rbm))))
        trainer.step(batch, config.learning_rate * (1 - update / config.n_updates), config.weight_decay)
    return rbm


@functools.cache
@torch.random.fork_rng()  # sections print the same numbers alone and after the others
def trained_rbm(run, n_hidden, seed):
    """An RBM trained by PCD at the run's settings on its training images, and the seconds that took."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    x_train = binary_images(run)[0]
    rbm = train_rbm(fresh_rbm(x_train, n_hidden), x_train, run.config)
    return rbm, time.perf_counter() - start


def section_training(run):
    """What each ingredient of the training does to the exact likelihood, and overfitting watched without Z."""
    config, (x_train, x_test, *_) = run.config, binary_images(run)
    short = replace(config, n_updates=max(config.n_updates // 4, 1))
    recipes = {  # name: (settings, factor on the learning rate: momentum 0.9 multiplies the rate by 10)
        "CD-1": ({"persistent": False}, 1.0),
        "CD-10": ({"persistent": False, "k": 10}, 1.0),
        "PCD-1": ({}, 1.0),
        "PCD-1 + momentum": ({"momentum": 0.9}, 0.1),
        "PCD-1 + sparsity": ({"sparsity": (0.2, 1.0)}, 1.0),
    }
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4))
    for name, (settings, factor) in recipes.items():
        curves = []
        for _ in range(config.n_seeds):
            history, recipe = [], replace(short, learning_rate=factor * short.learning_rate)
            train_rbm(fresh_rbm(x_train, config.n_small), x_train, recipe, history, **settings)
            curves.append([(-rbm.free_energy(x_test).mean() - exact_log_z(rbm)).item() for _, rbm in history])
        means, sems = zip(*map(mean_and_sem, zip(*curves, strict=True)), strict=True)
        left.errorbar([update for update, _ in history], means, sems, fmt="o-", ms=4, label=name)
        metric = "test_nats_" + name.lower().replace("-", "").replace(" + ", "_")
        run.metric(metric, means[-1], sems[-1], against=("independent pixels", means[0]))
    left.set(title=f"{config.n_small} hidden units: exact likelihood of five recipes", xlabel="updates")
    left.set_ylabel("test log likelihood (nats)")
    left.legend(fontsize=9)

    for decay, color in ((config.weight_decay, "tab:blue"), (config.weight_decay / 100, "tab:red")):
        history = []
        train_rbm(fresh_rbm(x_train, config.n_hidden), x_train, replace(config, weight_decay=decay), history)
        gaps = [(rbm.free_energy(x_test).mean() - rbm.free_energy(x_train).mean()).item() for _, rbm in history]
        right.plot([update / 1000 for update, _ in history], gaps, "o-", ms=4, color=color, label=f"weight decay {decay:g}")
        run.metric(f"free_energy_gap_decay_{decay:g}", gaps[-1], against=("no overfitting", 0))
    right.axhline(0, color="k", ls="--", label="no overfitting")
    right.set(title="Weight decay holds the overfitting down", xlabel="updates (thousands)")
    right.set_ylabel("F(test) - F(train) (nats)")
    right.legend()
    run.figure(fig, "curves")

    rbm, _ = trained_rbm(run, config.n_hidden, run.seed)
    shown = x_test[:40]
    fantasies = gibbs(rbm, bernoulli(torch.full_like(shown, 0.5)), config.n_gibbs)
    fig, axes = plt.subplots(1, 4, figsize=(13, 3.6))
    strongest = rbm.W.norm(dim=0).argsort(descending=True)[:40]
    limit = rbm.W[:, strongest].abs().max().item()
    show_images(axes[0], rbm.W[:, strongest].T, 8, "filters: columns of W", cmap="RdBu_r", vmin=-limit, vmax=limit)
    show_images(axes[1], shown, 8, "test images")
    show_images(axes[2], rbm.p_visible(rbm.p_hidden(shown)), 8, "their reconstructions")
    show_images(axes[3], fantasies, 8, f"fantasies: from noise,\n{config.n_gibbs} Gibbs sweeps")
    run.figure(fig, "images")


# %% 4. How good is it really?
# Annealed importance sampling (Neal 2001; for RBMs Salakhutdinov & Murray 2008) walks from independent pixels with
# biases b⁰, whose Z is known, to the RBM along p_β(v) ∝ exp(-F_β(v)), β from 0 to 1,
#     F_β(v) = -(1-β) b⁰·v - β b·v - Σ_j log(1 + exp(β (c_j + (v W)_j))),       Z_0 = 2^m Π_i (1 + exp(b⁰_i)).
# At each β_k a chain adds F_{β_{k-1}}(v) - F_{β_k}(v) to its log weight, which began at log Z_0, and then takes a Gibbs
# sweep at β_k. The mean weight is unbiased for Z; its logarithm is then on average too low (Jensen), and the likelihood
# too high: AIS *flatters* a model, the more so the fewer its effective samples (Σw)²/Σw². A number that rests on a few
# lucky chains is no number: under 10 % effective chains we refuse to give it.


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


# Copied from 01_ebm_foundations.py: log_z_from_weights
def log_z_from_weights(log_w):
    """(log Z, its standard error, ESS), each (...), from log importance weights (..., N).

    Standard error by the delta method, std(w) / (mean(w) √N); ESS = (Σw)² / Σw² (Kong 1992), between 1 and N.
    """
    n = log_w.shape[-1]
    log_sum = log_w.logsumexp(-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(-1)).exp()
    return log_sum - math.log(n), ((1 / ess - 1 / n).clamp(min=0) * n / (n - 1)).sqrt(), ess


def mixture_of_bernoullis(x_train, x_test, n_components, n_steps=60):
    """Mean test log likelihood (nats) of a mixture of independent pixels, fitted by EM, one pseudo-count a pixel."""
    responsibility = torch.rand(len(x_train), n_components, device=x_train.device).mul_(5).softmax(1)
    for _ in range(n_steps):
        size = responsibility.sum(0)
        p = (responsibility.T @ x_train + 0.5) / (size.unsqueeze(1) + 1)
        log_prior = (size / size.sum()).log()

        def log_joint(x, p=p, log_prior=log_prior):
            return x @ p.log().T + (1 - x) @ (1 - p).log().T + log_prior

        responsibility = log_joint(x_train).softmax(1)
    return log_joint(x_test).logsumexp(1).mean().item()


def sklearn_rbm(x, n_hidden, learning_rate, batch_size, n_epochs, seed):
    """scikit-learn's BernoulliRBM fitted to x (N, d), as an RBM."""
    peer = BernoulliRBM(n_hidden, learning_rate=learning_rate, batch_size=batch_size, n_iter=n_epochs, random_state=seed)
    peer.fit(x.cpu().numpy())
    parameters = peer.components_.T.copy(), peer.intercept_visible_, peer.intercept_hidden_
    return RBM(*(torch.tensor(parameter, device=x.device) for parameter in parameters))


def section_likelihood(run):
    """Exact and annealed test log likelihoods, beside independent pixels, a mixture and scikit-learn's RBM."""
    config, (x_train, x_test, *_) = run.config, binary_images(run)
    base_b = log_odds(x_train)
    chance = (x_test @ base_b - softplus(base_b).sum()).mean().item()

    def log_z_of(rbm):
        """log Z, its standard error, and the effective share of the chains behind it."""
        if len(rbm.c) <= config.n_small:
            return exact_log_z(rbm).item(), 0.0, 1.0
        log_z, sem, ess = log_z_from_weights(ais(rbm, base_b, config.n_ais_chains, config.n_ais_temps))
        return log_z.item(), sem.item(), ess.item() / config.n_ais_chains

    # scikit-learn's settings were chosen on validation data, as ours (tests/benchmarks/rbm_tuning.py); it gets the epochs
    # that fit into our training time (tests/benchmarks/rbm.py), rounded in its favour.
    n_epochs = config.n_updates * config.batch_size / len(x_train)
    mixture = mean_and_sem([mixture_of_bernoullis(x_train, x_test, 80) for _ in range(config.n_seeds)])
    run.metric("test_nats_mixture", *mixture, against=("independent pixels", chance))
    rows = {"independent pixels": (chance, 0.0), "mixture of 80\nBernoullis": mixture}  # mean and standard error
    for n_hidden, slowness in ((config.n_small, 1.8), (config.n_hidden, 2.5)):
        seeds, start = range(run.seed, run.seed + config.n_seeds), time.perf_counter()
        peers = [sklearn_rbm(x_train, n_hidden, 0.03, 50, max(int(n_epochs / slowness), 1), seed) for seed in seeds]
        peer_seconds = (time.perf_counter() - start) / config.n_seeds
        ours, seconds = zip(*(trained_rbm(run, n_hidden, seed) for seed in seeds), strict=True)
        run.metric(f"training_{n_hidden}_hidden_seconds", np.mean(seconds), against=("scikit-learn", peer_seconds))
        for maker, rbms in (("scikit-learn", peers), ("this module", ours)):
            name = f"{n_hidden}_hidden" + ("_sklearn" if maker == "scikit-learn" else "")
            log_zs, errors, shares = zip(*map(log_z_of, rbms), strict=True)
            if n_hidden > config.n_small:
                run.metric(f"ais_effective_share_{name}", min(shares), against=("refused below", 0.1))
            if min(shares) < 0.1:
                echo(f"  test_nats_{name}: refused, its AIS rests on too few chains; raise --n-ais-temps")
                continue
            nats = [(-rbm.free_energy(x_test).mean()).item() - log_z for rbm, log_z in zip(rbms, log_zs, strict=True)]
            rows[f"{maker},\n{n_hidden} hidden ({'AIS' if n_hidden > config.n_small else 'exact'})"] = mean_and_sem(nats)
            published = config.dataset == "mnist" and n_hidden == 500
            against = ("CD-25, Salakhutdinov & Murray 2008", -86.34) if published else ("independent pixels", chance)
            run.metric(f"test_nats_{name}", *mean_and_sem(nats), against=against)
            if n_hidden > config.n_small:
                run.metric(f"ais_standard_error_{name}", max(errors), against=("spread of the trainings", np.std(nats)))

    fig, ax = plt.subplots(figsize=(9, 4.6))
    means, sems = zip(*rows.values(), strict=True)
    colors = ["tab:orange" if "this" in label else "tab:gray" for label in rows]
    ax.barh(range(len(rows)), np.subtract(means, chance), left=chance, xerr=sems, color=colors, capsize=4)
    ax.set_yticks(range(len(rows)), rows)
    for row, (mean, sem) in enumerate(rows.values()):
        ax.text(mean + sem, row, f" {mean:.2f}", va="center")
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(title=f"Test log likelihood, mean of {config.n_seeds} trainings", xlabel="nats per image (right is better)")
    run.figure(fig, "models")

    # The estimator: right where the answer is known, and flattering where few temperatures leave few effective chains.
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.2))
    for ax, n_hidden in zip(axes, (config.n_small, config.n_hidden), strict=True):
        rbm, _ = trained_rbm(run, n_hidden, run.seed)
        likelihood = -rbm.free_energy(x_test).mean().item()
        for divisor in (300, 100, 30, 10, 3, 1):
            n_temps = max(config.n_ais_temps // divisor, 1)
            log_w = ais(rbm, base_b, config.n_ais_chains, n_temps)
            log_z, sem, ess = log_z_from_weights(log_w)
            share = ess.item() / len(log_w)
            mean, spread = mean_and_sem([likelihood - log_z_from_weights(part)[0] for part in log_w.split(10)])
            ax.errorbar(n_temps, mean, spread, fmt="o", color="tab:orange" if share >= 0.1 else "tab:red")
            ax.annotate(f"{share:.0%}", (n_temps, mean), (7, 7), textcoords="offset points")
        best = likelihood - log_z.item()
        if n_hidden <= config.n_small:
            run.metric(f"ais_log_z_{n_hidden}_hidden", log_z, sem, ("exact", exact_log_z(rbm)), max(4 * sem, 1e-3))
            best = likelihood - exact_log_z(rbm).item()
        ax.axhline(
            best, color="k", ls="--", label="exact" if n_hidden <= config.n_small else "all chains, most temperatures"
        )
        ax.set(xscale="log", xlabel="temperatures", ylabel="test log likelihood (nats)")
        ax.set_title(f"{n_hidden} hidden units: few temperatures flatter")
        ax.errorbar([], [], fmt="o", color="tab:orange", label="AIS of 10 chains (red: refused), effective share")
        ax.legend(loc="upper right")
    run.figure(fig, "ais")


# %% 5. Features
# ĥ(v) is a learned code: is it worth more to a classifier than the pixels? And an RBM whose visible layer holds an image
# x and its label y, one-hot, is a classifier itself (Larochelle & Bengio 2008): of F only what depends on y remains in
#     p(y | x) = softmax_y( b_y + Σ_j log(1 + exp(c_j + (x W)_j + U_yj)) ),       U the label rows of W.


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
    return RBM(*(parameter.detach() for parameter in parameters))


def section_features(run):
    """What an RBM's features are worth to a classifier with few labels and with many, and an RBM that classifies."""
    config, (x_train, x_test, y_train, y_test) = run.config, binary_images(run)
    x_train, y_train, n_classes = x_train[:5000], y_train[:5000], 10  # enough for the lesson, also on MNIST
    rbm, _ = trained_rbm(run, config.n_hidden, run.seed)
    codes = {"pixels": (x_train, x_test), "RBM features": (rbm.p_hidden(x_train), rbm.p_hidden(x_test))}
    codes = {name: (train.cpu().numpy(), test.cpu().numpy()) for name, (train, test) in codes.items()}
    sizes, n_draws, scores = (1, 3, 10, 30, 100), 5, {name: [] for name in codes}
    for n_labels in sizes:
        splits = StratifiedShuffleSplit(n_draws, train_size=n_labels * n_classes, random_state=run.seed)
        draws = [chosen for chosen, _ in splits.split(x_train.cpu(), y_train)]
        for name, (train, test) in codes.items():
            fitted = [LogisticRegression(max_iter=1000).fit(train[i], y_train[i]) for i in draws]
            scores[name].append(mean_and_sem([classifier.score(test, y_test) for classifier in fitted]))
    for n_labels, (mean, sem), (on_pixels, _) in zip(sizes, scores["RBM features"], scores["pixels"], strict=True):
        run.metric(f"accuracy_{n_labels}_labels_a_class", mean, sem, against=("same, on pixels", on_pixels))

    y = torch.tensor(y_train, device=run.device).long()
    labelled = torch.cat([x_train, one_hot(y, n_classes)], 1)
    short = replace(config, n_updates=max(config.n_updates // 4, 1))
    n_steps = max(config.n_updates // 20, 1)
    accuracies = {"generative": [], "discriminative": [], "generative first": []}
    for _ in range(config.n_seeds):
        fresh = fresh_rbm(labelled, config.n_hidden)
        discriminative = train_discriminatively(fresh, x_train, y, n_steps)
        generative = train_rbm(fresh, labelled, short)
        both = train_discriminatively(generative, x_train, y, n_steps)
        for values, classifier in zip(accuracies.values(), (generative, discriminative, both), strict=True):
            predicted = class_log_probs(classifier, x_test, n_classes).argmax(1).cpu().numpy()
            values.append(np.mean(predicted == y_test))
    accuracies = {name: mean_and_sem(values) for name, values in accuracies.items()}
    peers = {"logistic regression": LogisticRegression(max_iter=1000), "3-NN": KNeighborsClassifier(3), "SVM": SVC()}
    train, test = codes["pixels"]
    peers = {name: (peer.fit(train, y_train).score(test, y_test), 0.0) for name, peer in peers.items()}
    for name, (mean, sem) in accuracies.items():
        metric = f"classification_rbm_{name.replace(' ', '_')}"
        run.metric(metric, mean, sem, against=("SVM on the same pixels", peers["SVM"][0]))

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for (name, values), color in zip(scores.items(), ("tab:blue", "tab:orange"), strict=True):
        left.errorbar(sizes, *zip(*values, strict=True), fmt="o-", color=color, label=name)
    left.set(title="Logistic regression on pixels and on features", xscale="log", xticks=sizes, xticklabels=sizes)
    left.set(xlabel="labels per class", ylabel="test accuracy")
    left.legend()
    for group, color, label in ((accuracies, "tab:orange", "classification RBM"), (peers, "tab:gray", "on pixels")):
        means, sems = zip(*group.values(), strict=True)
        right.errorbar(means, list(group), xerr=sems, fmt="o", ms=10, color=color, label=label)
    right.invert_yaxis()
    right.grid(axis="x")
    right.legend(loc="lower left")
    right.set(title="An RBM as a classifier, all labels", xlabel="test accuracy")
    run.figure(fig, "accuracy")


# %% 6. Filling in
# Clamp the pixels that are known and let the others run: Gibbs sampling then draws from p(missing | known). With few
# hidden units this conditional is exact. Given h the missing pixels are independent, and summing them out,
#     p(h | known) ∝ exp(h·c + known·W h + b·known) Π_{i missing} (1 + exp(b_i + (W h)_i)),
# so E[missing | known] = Σ_h p(h | known) σ(b + W h): no other guess has a smaller mean squared error under the model.


def inpaint_exactly(rbm, x, known):
    """E[v | the known pixels of x], (B, d), over all 2^m hidden states; x (B, d), known (d,) of bool."""
    h = all_states(len(rbm.c)).to(x)
    logits = h @ rbm.W.T + rbm.b
    log_p = ((x * known) @ rbm.W) @ h.T + h @ rbm.c + softplus(logits[:, ~known]).sum(1)
    return torch.where(known, x, log_p.softmax(1) @ logits.sigmoid())


def inpaint_by_gibbs(rbm, x, known, n_sweeps):
    """The mean of P(v = 1 | h) over the last three quarters of `n_sweeps` clamped sweeps, and the last v; (B, d) each."""
    v, total, n_skipped = torch.where(known, x, bernoulli(torch.full_like(x, 0.5))), torch.zeros_like(x), n_sweeps // 4
    for sweep in range(n_sweeps):
        p = rbm.p_visible(bernoulli(rbm.p_hidden(v)))
        v = torch.where(known, x, bernoulli(p))
        if sweep >= n_skipped:
            total += p
    return torch.where(known, x, total / (n_sweeps - n_skipped)), v


def section_inpainting(run):
    """Clamped Gibbs sampling fills in missing pixels, checked against the exact conditional mean."""
    x_train, x_test, *_ = binary_images(run)
    side, x, n_repeats = math.isqrt(x_train.shape[1]), x_test[:100], 10
    known = (torch.arange(side**2, device=run.device) % side) < side // 2  # the left half
    small, large = (trained_rbm(run, n_hidden, run.seed)[0] for n_hidden in (run.config.n_small, run.config.n_hidden))

    exact = inpaint_exactly(small, x, known)
    repeated, _ = inpaint_by_gibbs(small, x.repeat(n_repeats, 1), known, run.config.n_gibbs)
    repeated = repeated.reshape(n_repeats, *x.shape)[..., ~known]
    error = (repeated.mean(0) - exact[:, ~known]).square().mean().sqrt()
    expected = (repeated.var(0) / n_repeats).mean().sqrt()
    run.metric("gibbs_minus_exact_rms", error, against=("expected of the chains' spread", expected), within=expected / 2)

    by_large, sample = inpaint_by_gibbs(large, x.repeat(n_repeats, 1), known, run.config.n_gibbs)
    by_large = by_large.reshape(n_repeats, *x.shape).mean(0)
    neighbours = KNeighborsRegressor(10).fit(x_train[:, known].cpu(), x_train[:, ~known].cpu())
    guesses = {
        "pixel_means": x_train.mean(0)[~known].expand(len(x), -1),
        "nearest_neighbours": torch.tensor(neighbours.predict(x[:, known].cpu()), device=run.device),
        f"exact_{run.config.n_small}_hidden": exact[:, ~known],
        f"gibbs_{run.config.n_hidden}_hidden": by_large[:, ~known],
    }
    squared = {name: (guess - x[:, ~known]).square().mean(1) for name, guess in guesses.items()}
    for name, values in squared.items():
        run.metric(f"squared_error_{name}", *mean_and_sem(values), ("pixel means", squared["pixel_means"].mean()))

    fig, axes = plt.subplots(1, 6, figsize=(13, 3.2))
    hidden = torch.where(known, x, 0.5)
    columns = {
        "test image": x,
        "what is known": hidden,
        f"exact mean,\n{run.config.n_small} hidden": exact,
        f"Gibbs mean,\n{run.config.n_small} hidden": torch.where(known, x, 0).masked_scatter(~known, repeated.mean(0)),
        f"Gibbs mean,\n{run.config.n_hidden} hidden": by_large,
        f"one sample,\n{run.config.n_hidden} hidden": sample[: len(x)],
    }
    for ax, (title, images) in zip(axes, columns.items(), strict=True):
        show_images(ax, images[:20], 4, title)
    run.figure(fig, "completions")


# %% 7. Real-valued data
# Grey levels are not binary. Gaussian visible units of variance s² (Welling, Rosen-Zvi & Hinton 2005) keep the hidden layer:
#     E(v, h) = |v - b|²/(2 s²) - v·W h/s² - c·h,       p(v | h) = N(v; b + W h, s² I),
#     F(v) = |v - b|²/(2 s²) - Σ_j log(1 + exp(c_j + (v W)_j/s²)),
#     Z = (2π s²)^{d/2} Σ_h exp(c·h + (|b + W h|² - |b|²)/(2 s²)):
# a mixture of 2^m Gaussians of one common variance whose means are sums of columns of W. On raw grey levels, where nearly
# all variance is brightness, that is a poor tool: binary units climb a continuum in steps. Whitened data, v = A (x - μ)
# with covariance I, leave it what a Gaussian cannot have; log p(x) = log p(v) + log |det A| keeps the numbers comparable.


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


def natural_patches(side, n_patches, seed):
    """Grey patches (n, side²) of two photographs, train from their left, test from their right, in units of the train's
    standard deviation around its mean."""
    rng, parts = np.random.default_rng(seed), ([], [])
    for image in load_sample_images().images:
        grey, cut = image.mean(2), image.shape[1] * 2 // 3
        for part, region in zip(parts, (grey[:, :cut], grey[:, cut:]), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(region, (side, side))
            rows, columns = (rng.integers(size, size=n_patches // 2) for size in windows.shape[:2])
            part.append(windows[rows, columns].reshape(-1, side * side))
    train, test = (torch.tensor(np.concatenate(part), dtype=torch.float32) for part in parts)
    return (train - train.mean()) / train.std(), (test - train.mean()) / train.std()


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
    return GaussianRBM(*(parameter.detach() for parameter in rbm))


def section_gaussian(run):
    """Natural image patches: a Gaussian RBM fails on raw grey levels, works once they are white, and loses to a mixture."""
    side = 8
    raw, raw_test = (x.to(run.device) for x in natural_patches(side, run.config.n_patches, run.seed))
    mean, covariance = raw.mean(0), raw.T.cov()
    variances, axes = torch.linalg.eigh(covariance)
    whitener = axes / variances.sqrt() @ axes.T  # the symmetric one (ZCA): white patches still look like patches
    white, white_test = ((x - mean) @ whitener for x in (raw, raw_test))

    log_det = -variances.log().sum().item() / 2  # of the map from raw to white

    n_small, n_updates = run.config.n_small, max(run.config.n_updates // 4, 1)
    rbms = {"raw": train_gaussian_rbm(raw, n_small, n_updates), "white": train_gaussian_rbm(white, n_small, n_updates)}
    train, test, center = raw.cpu().numpy(), raw_test.cpu().numpy(), mean.cpu().numpy()
    nats = {
        "RBM, raw": (-rbms["raw"].free_energy(raw_test) - rbms["raw"].exact_log_z()).cpu(),
        "RBM, white": (-rbms["white"].free_energy(white_test) - rbms["white"].exact_log_z()).cpu() + log_det,
        "independent pixels": norm(center, train.std(0)).logpdf(test).sum(1),
        f"PCA, {n_small} axes": PCA(n_small).fit(train).score_samples(test),
        "one Gaussian": multivariate_normal(center, covariance.cpu().numpy()).logpdf(test),
        "mixture of 4 Gaussians": GaussianMixture(4, reg_covar=1e-4, random_state=run.seed).fit(train).score_samples(test),
    }
    nats = dict(sorted(((name, mean_and_sem(values)) for name, values in nats.items()), key=lambda row: row[1][0]))
    for name, (value, sem) in nats.items():
        metric = "test_nats_" + name.lower().replace(", ", "_").replace(" ", "_")
        run.metric(metric, value, sem, against=("one Gaussian", nats["one Gaussian"][0]))

    fig, panels = plt.subplots(1, 4, figsize=(14, 3.8), width_ratios=[1, 1, 1, 1.7], layout="constrained")
    show_images(panels[0], raw_test[:16], 4, "patches", vmin=-2, vmax=2, cmap="gray")
    for ax, (name, rbm) in zip(panels[1:], rbms.items(), strict=False):
        limit = rbm.W.abs().max().item()
        show_images(ax, rbm.W.T, 4, f"filters, {name} data", vmin=-limit, vmax=limit, cmap="RdBu_r")
    colors = ["tab:orange" if "RBM" in name else "tab:gray" for name in nats]
    bars = panels[3].barh(list(nats), [value for value, _ in nats.values()], color=colors)
    panels[3].bar_label(bars, fmt=" %.1f")
    panels[3].margins(x=0.2)
    panels[3].set(title="White data help the RBM;\na small mixture beats it by far", xlabel="test log density (nats)")
    run.figure(fig, "patches")


# %% 8. Deep belief network
# Stack a second RBM on samples of h given data (Hinton, Osindero & Teh 2006). The first RBM's p₁(v | h) stays, the second
# takes the place of its p₁(h): p(v) = Σ_h p₁(v | h) p₂(h). With q(h | v) = p₁(h | v), Jensen's inequality gives
#     log p(v) >= E_q[log p₁(v | h) + log p₂(h) - log q(h | v)].
# Start the second RBM as the first upside down, W₂ = W₁ᵀ: then p₂(h) = p₁(h), and by Bayes' rule the bracket equals
# log p₁(v) for every single h. From there each gain of p₂'s likelihood on samples of h raises the bound by as much. With
# a first layer of 16 units nothing is left to believe: bound, log p(v) and both Zs can be enumerated.


def dbn_bound(first, top, log_z_top, v):
    """The bracket above for one h ~ q(h | v) each, (B,): its mean bounds the network's log likelihood from below."""
    a = v @ first.W + first.c
    h = bernoulli(a.sigmoid())
    logits = h @ first.W.T + first.b
    log_q = (h * a - softplus(a)).sum(1)
    return (v * logits - softplus(logits)).sum(1) - top.free_energy(h) - log_z_top - log_q


def dbn_log_likelihood(first, top, v):
    """log p(v) = log Σ_h p₁(v | h) p₂(h), (B,), over all states of the layer between the two RBMs."""
    total = torch.full_like(v[:, 0], -math.inf)
    for h in all_states(len(first.c)).to(v).split(2**13):
        logits = h @ first.W.T + first.b
        log_joint = v @ logits.T - softplus(logits).sum(1) - top.free_energy(h)
        total = torch.logaddexp(total, log_joint.logsumexp(1))
    return total - exact_log_z(top)


def section_dbn(run):
    """A second layer improves the first a little, in the bound as the theorem says and in exact likelihood."""
    config, (x_train, x_test, y_train, y_test) = run.config, binary_images(run)
    nats = {"one layer": [], "bound,\ntop untrained": [], "bound,\ntop trained": [], "two layers,\nexact": []}
    for seed in range(run.seed, run.seed + config.n_seeds):
        first, _ = trained_rbm(run, config.n_small, seed)
        top = RBM(first.W.T.clone(), first.c.clone(), first.b.clone())
        log_z = exact_log_z(first)
        nats["one layer"].append((-first.free_energy(x_test).mean() - log_z).item())
        nats["bound,\ntop untrained"].append(dbn_bound(first, top, log_z, x_test).mean().item())
        h_train = bernoulli(first.p_hidden(x_train.repeat(10, 1)))
        train_rbm(top, h_train, replace(config, learning_rate=config.learning_rate / 4))
        many = x_test.repeat(10, 1)  # ten samples of h for each image
        nats["bound,\ntop trained"].append(dbn_bound(first, top, exact_log_z(top), many).mean().item())
        nats["two layers,\nexact"].append(dbn_log_likelihood(first, top, x_test).mean().item())
    gains = {name: np.subtract(values, nats["one layer"]) for name, values in nats.items()}
    run.metric("test_nats_one_layer", *mean_and_sem(nats["one layer"]))
    untrained, bound, exact = (mean_and_sem(values) for values in list(gains.values())[1:])
    run.metric("gain_bound_untrained", *untrained, against=("theorem", 0), within=1e-3)
    run.metric("gain_bound", *bound, against=("one layer", 0))
    run.metric("gain_exact", *exact, against=("one layer", 0))

    codes = [(x_train[:5000], x_test)]
    for layer in (first, top):
        codes.append(tuple(layer.p_hidden(code) for code in codes[-1]))
    accuracies = []
    for train, test in codes:
        classifier = LogisticRegression(max_iter=2000).fit(train.cpu(), y_train[:5000])
        accuracies.append(classifier.score(test.cpu(), y_test))
    for name, accuracy in zip(("layer_1", "layer_2"), accuracies[1:], strict=True):
        run.metric(f"accuracy_{name}", accuracy, against=("on pixels", accuracies[0]))

    fig, axes = plt.subplots(1, 3, figsize=(12.5, 3.8), width_ratios=[1, 1, 1.3], layout="constrained")
    from_top = gibbs(top, bernoulli(torch.full_like(h_train[:40], 0.5)), config.n_gibbs)
    show_images(axes[0], x_test[:40], 8, "test images")
    show_images(axes[1], first.p_visible(from_top), 8, "from the top RBM, one step down")
    for values, color in zip(zip(*gains.values(), strict=True), ("tab:blue", "tab:orange", "tab:green"), strict=False):
        axes[2].plot(list(gains), values, "o-", color=color)
    axes[2].axhline(0, color="k", ls="--")
    axes[2].set(title="What the second layer adds, a line a training", ylabel="gain on one layer (nats)")
    run.figure(fig, "samples")


SECTIONS = {
    "bipartite": section_bipartite,
    "cd": section_cd,
    "training": section_training,
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
    return args, replace(Config(), **((SMOKE if args.smoke else {}) | given))


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
