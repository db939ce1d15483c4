"""Module 09 - Applications: what an energy is good for, and where a simpler score is better.

An energy orders points, pulls them, and adds up. Each application below starts from a case whose best possible answer is
known, and only then meets digits, beside simpler rivals; the winner is marked, whoever it is:

    E[x | y] = y + s² ∇log p_s(y)                     denoising by the score of the noisy density p_s,         (1)
    MMSE = d s² - s⁴ E|∇log p_s|²                     what no denoiser can be better than,                     (2)
    E(x | seen) = E(x) + const                        inpainting: hold what is seen, sample the rest,          (3)
    E(x | a and b) = E(x | a) + E(x | b) - E(x)       composition, if x decides a and b independently,         (4)
    q(x) = p(x) exp(-λ c(x))/Z                        the least change of p that makes E[c] what it should be. (5)

Run      python 09_ebm_applications.py                 all sections, about five minutes on two CPU cores
         python 09_ebm_applications.py --section robustness --show
Writes   outputs/09_ebm_applications/*.png and metrics.json
Before   module 07        Exercises  ex09_1 ... ex09_3
Sources  Le Lan & Dinh (2021); Liu et al. (2020); Serra et al. (2020); Robbins (1956); Blau & Michaeli (2018);
         Chambolle (2004); Madry et al. (2018); Cohen, Rosenfeld & Kolter (2019); Athalye, Carlini & Wagner (2018);
         Grathwohl et al. (2020); Hill, Mitchell & Zhu (2021); Du, Li & Mordatch (2020); Kramers (1940);
         Jarzynski (1997); Bennett (1976); Jaynes (1957)
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
import warnings
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args, get_type_hints

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: scikit-learn's small fits are faster on one

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from scipy.integrate import quad
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_sample_image
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import nn
from torch.nn.functional import cross_entropy, silu
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    split: Annotated[Literal["test", "validation"], "score on the test images, or choose settings without them"] = "test"
    n_repeats: Annotated[int, "independent repeats behind each exact comparison"] = 20
    n_points: Annotated[int, "points in each of these repeats"] = 2000
    width: Annotated[int, "hidden units of the energies and classifiers"] = 512
    sigma: Annotated[float, "the energies' unit of error"] = 0.2
    data_noise: Annotated[float, "standard deviation of the noise added to the energies' data"] = 0.2
    batch_size: Annotated[int, "images in a batch, and chains moved between two updates; at most 512"] = 64
    n_langevin: Annotated[int, "Langevin steps between two updates"] = 20
    step_size: Annotated[float, "the Langevin step on images"] = 0.01
    learning_rate: Annotated[float, "Adam's, after the warm-up; it falls linearly to 0"] = 4e-3
    n_updates: Annotated[int, "updates of the energy of digits"] = 2500
    n_left_out: Annotated[int, "updates of each of the ten energies that miss a digit"] = 200
    n_ceiling: Annotated[int, "updates of the energy whose best denoiser is known"] = 1000
    n_jem: Annotated[int, "updates of JEM"] = 800
    n_composed: Annotated[int, "updates of each of the energies that are composed"] = 600
    n_classifier: Annotated[int, "updates of each classifier"] = 1200
    n_table: Annotated[int, "updates of the energy of a table"] = 600
    n_images: Annotated[int, "test images where the cost is many chains or attacks an image"] = 120
    n_chain_steps: Annotated[int, "Langevin steps to a denoised, completed or composed image"] = 300
    n_attack: Annotated[int, "steps of an attack"] = 20
    n_boot: Annotated[int, "bootstrap samples behind an AUROC's error"] = 100
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1

    def __post_init__(self):
        for wrong, complaint in (
            (self.n_repeats < 2, f"--n-repeats must be at least 2, to have a spread, not {self.n_repeats}"),
            (self.n_points < 50, f"--n-points must be at least 50, not {self.n_points}"),
            (self.n_boot < 2, f"--n-boot must be at least 2, to have a spread, not {self.n_boot}"),
            (self.n_images < 20, f"--n-images must be at least 20, not {self.n_images}"),
            (
                self.data_noise > 0.3,
                f"--data-noise must be at most 0.3, the least noise that is removed, not {self.data_noise}",
            ),
            (self.batch_size > 512, f"--batch-size must be at most 512, the chains in the buffer, not {self.batch_size}"),
        ):
            if wrong:
                sys.exit(complaint)


SMOKE = {"n_repeats": 3, "n_points": 100, "width": 16, "batch_size": 16, "n_langevin": 2, "n_updates": 6, "n_left_out": 3}
SMOKE |= {"n_ceiling": 4, "n_jem": 4, "n_composed": 4, "n_classifier": 20, "n_table": 4, "n_images": 20}
SMOKE |= {"n_chain_steps": 5, "n_attack": 3, "n_boot": 10}


# %% 0. What all sections use
# Digits are 8x8 images in [-1, 1], flat, (N, 64); one grey level of the 16 is 1/8. A quarter of the training images serves
# to choose settings of the rivals that name a list of them; with what is chosen they are fitted to all training images.
#
# Methods meet the same test images, so they are compared in pairs: whose mean loss is within two standard errors of the
# *difference* to the best is named in brackets behind it, "mixture (or k-NN)": these images do not tell them apart.
#
# The energy is module 07's, E(x, y) = |x - g(x, y)|²/(2σ²), an auto-encoder g whose hidden biases may depend on a label y,
# trained by its loop: data a little noisy, chains from a replay buffer, twenty Langevin steps an update. Two things are new.
# Several networks are trained side by side, each with its own labels; and a label of -1 says that this network must not see
# this example, so ten networks that each miss a digit are one training. Where only one label is used there is one unknown
# Z, so E is -log p up to *one* constant: that is what a score, a denoiser or a purifier needs, so there are no clusters.
#
# Beside it stands a mixture of Gaussians, of which everything is known: density, posterior under noise, conditionals.


class Images(NamedTuple):
    """Images (N, 64) in [-1, 1], float64 on the CPU, and labels (N,), to learn from and to be scored on."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def split_images(x, y, share):
    """Images whose test part is this share, even in the classes; always the same one."""
    x, x_test, y, y_test = train_test_split(np.asarray(x), np.asarray(y), test_size=share, stratify=y, random_state=0)
    return Images(*(torch.as_tensor(part) for part in (x, y, x_test, y_test)))


# Differs from 07_neural_ebms.py: images - float64 on the CPU, in a NamedTuple
@functools.cache
def images(run):
    """The run's images; with --split validation a quarter of the training images plays the test's part."""
    x, y = load_digits(return_X_y=True)
    digits = split_images(x / 8 - 1, y, 0.2)
    return digits if run.config.split == "test" else split_images(digits.x, digits.y, 0.25)


@functools.cache
def tuning(run):
    """The training images split again: rivals' settings are chosen on what is its test part."""
    return split_images(images(run).x, images(run).y, 0.25)


def best_setting(settings, loss):
    """The setting (or tuple) with the lowest loss(setting)."""
    return min(settings, key=loss)


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


def silu_times(a, z):
    """a · silu'(z), which autograd can differentiate."""
    s = z.sigmoid()
    return a * s * (1 + z * (1 - s))


# Differs from 07_neural_ebms.py: AutoEncoderEnergy - n networks, each with labels of its own; its slope has a graph
class AutoEncoderEnergy(nn.Module):
    """n networks side by side, E(x, y) = |x - g(x, y)|²/(2σ²): x (n, B, d), y (n, B) -> (n, B), and ∇ₓE by hand."""

    def __init__(self, n_networks, d, width, sigma, n_labels=1):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(n_networks, d, width) / d**0.5)
        self.w2 = nn.Parameter(torch.zeros(n_networks, width, d))
        self.b1 = nn.Parameter(torch.zeros(n_networks, n_labels, width))
        self.b2 = nn.Parameter(torch.zeros(n_networks, 1, d))
        self.sigma = sigma

    def before(self, x, y=None):
        """z, the hidden layer before its activation."""
        if y is None or self.b1.shape[1] == 1:
            return torch.baddbmm(self.b1[:, :1], x, self.w1)
        return torch.baddbmm(self.b1.gather(1, y[..., None].expand(-1, -1, self.b1.shape[2])), x, self.w1)

    def error(self, x, z):
        """r = x - g(x)."""
        return torch.baddbmm(x - self.b2, silu(z), self.w2, alpha=-1)

    def forward(self, x, y=None):
        return self.error(x, self.before(x, y)).square().sum(-1) / (2 * self.sigma**2)

    def slope(self, x, y=None):
        """∇ₓE = (r - Jᵀr)/σ² (n, B, d); unlike module 07's it can be differentiated once more, by an attack."""
        z = self.before(x, y)
        r, times = self.error(x, z), torch.ops.aten.silu_backward  # in one sweep, but without a derivative of its own
        back = (silu_times if torch.is_grad_enabled() else times)(torch.bmm(r, self.w2.mT), z)
        return torch.baddbmm(r, back, self.w1.mT, alpha=-1) / self.sigma**2

    def one(self, i):
        """The i-th network alone."""
        alone = copy.copy(self)
        alone._parameters = {name: nn.Parameter(p[i : i + 1].detach(), False) for name, p in self._parameters.items()}
        return alone


# Differs from 01_ebm_foundations.py: langevin - by a slope, which may be written by hand
@torch.no_grad()
def langevin(slope, x, n_steps, step_size):
    """n_steps of x <- x - (ε/2) ∇E(x) + √ε ξ from x (..., d), T = 1; slope(x) is ∇E."""
    for _ in range(n_steps):
        x = torch.add(x, slope(x), alpha=-step_size / 2).add_(torch.randn_like(x), alpha=step_size**0.5)
    return x


class Pools:
    """Rows of a data set by network and label: labels (n, N), of which -1 hides a row from a network."""

    def __init__(self, labels, n_labels):
        self.order = labels.argsort(1)
        self.count = torch.stack([torch.bincount(row[row >= 0], minlength=n_labels) for row in labels])
        self.first = self.count.cumsum(1) - self.count + (labels < 0).sum(1, keepdim=True)

    def shares(self, n_chains):
        """Labels (n, n_chains) in which each label has its share of the network's data, in random order."""
        seen = self.count.sum(1, keepdim=True)
        place = (2 * torch.arange(n_chains, device=seen.device) + 1) * seen // (2 * n_chains)
        labels = torch.searchsorted(self.count.cumsum(1), place, right=True)
        return labels.gather(1, torch.rand(labels.shape, device=seen.device).argsort(1))

    def like(self, y):
        """For each label of y (n, B) the number of a random row that bears it, (n, B)."""
        count = self.count.gather(1, y)
        place = (torch.rand(y.shape, device=y.device) * count).long().clamp(max=count - 1)
        return self.order.gather(1, self.first.gather(1, y) + place)


CURES = "a smaller --step-size or --learning-rate or a larger --sigma may cure it"


def two_phase_loss(e_data, e_model):
    """Mean energies (n, B) of data minus chains, and a little of their squares, summed over networks; module 07."""
    return (e_data - e_model + 1e-5 * (e_data.square() + e_model.square())).mean(1).sum()


class Learner:
    """Adam on a network, the rate rising over a twentieth of the updates and falling to 0; `average` samples best."""

    def __init__(self, net, rate, n_updates):
        self.net, self.rate, self.n_updates, self.step = net, rate, n_updates, 0
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.adam = torch.optim.Adam(net.parameters(), rate, fused=True)

    def down(self, loss):
        """One step down the loss; the run ends in one line where it is not finite."""
        if not math.isfinite(loss.item()):
            sys.exit(f"the training diverged at update {self.step + 1}: {CURES}")
        self.adam.zero_grad()
        loss.backward()
        warm = min(1, (self.step + 1) / max(self.n_updates // 20, 1))
        self.adam.param_groups[0]["lr"] = self.rate * warm * (1 - self.step / self.n_updates)
        self.adam.step()
        self.step += 1
        memory = min(0.999, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - memory)


@torch.enable_grad()
def train_energies(x, labels, config, n_updates, label, n_labels=1, learning_rate=None):
    """Maximum likelihood of rows of x (N, d) under n networks with labels (n, N), by module 07's loop; their average."""
    (n, d), b, pools = (len(labels), x.shape[1]), config.batch_size, Pools(labels, n_labels)
    n_blocks = max(512 // b, 1)
    chains = torch.randn(n_blocks, n, b, d, device=x.device)
    y_chains = pools.shares(n_blocks * b).view(n, n_blocks, b).transpose(0, 1)
    energy = AutoEncoderEnergy(n, d, config.width, config.sigma, n_labels).to(x.device)
    learner = Learner(energy, learning_rate or config.learning_rate, n_updates)
    for step in Progress(range(n_updates), label):
        block, y = chains[step % n_blocks], y_chains[step % n_blocks].contiguous()
        fresh = torch.rand(n, b, 1, device=x.device) < 0.01  # chains that begin again from noise
        block.copy_(torch.where(fresh, torch.randn_like(block), block))
        block.copy_(langevin(lambda z, y=y: energy.slope(z, y), block, config.n_langevin, config.step_size))
        data = x[pools.like(y)]
        data = data + config.data_noise * torch.randn_like(data)
        learner.down(two_phase_loss(energy(data, y), energy(block, y)))
    must_be_finite(label, *learner.average.parameters())
    return learner.average


@functools.cache
@own_random_stream
def digits_energy(run):
    """The energy of digits that most sections share, one network without labels."""
    torch.manual_seed(run.seed)
    x = images(run).x.float().to(run.device)
    return train_energies(
        x, torch.zeros(1, len(x), dtype=torch.int64, device=run.device), run.config, run.config.n_updates, "energy"
    )


# To choose from where a mixture denoises or fills in: how many Gaussians, and what is added to their variances. Without the
# second choice the mixture is a poor rival: many Gaussians of few images each are too narrow to fill in what is missing.
MIXTURES = tuple((n, reg) for n in (10, 20, 40, 60) for reg in (1e-2, 3e-2, 1e-1))


class Gaussians(NamedTuple):
    """K Gaussians in d dimensions, float64."""

    weights: torch.Tensor  # (K,)
    means: torch.Tensor  # (K, d)
    covariances: torch.Tensor  # (K, d, d)


def fit_gaussians(x, n_components, seed, reg=1e-3):
    """A mixture of Gaussians with full covariances, fitted to x (N, d) by EM, after K-means."""
    fit = GaussianMixture(min(n_components, len(x) // 4), reg_covar=reg, random_state=seed, max_iter=60, tol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a little early is good enough
        fit.fit(to_numpy(x).astype(float))
    return Gaussians(*(torch.as_tensor(a) for a in (fit.weights_, fit.means_, fit.covariances_)))


def log_parts(mixture, x):
    """log weight + log density of each Gaussian at x (N, d): (N, K)."""
    root = torch.linalg.cholesky(mixture.covariances)
    u = torch.linalg.solve_triangular(root, (x[:, None] - mixture.means).permute(1, 2, 0), upper=False)  # (K, d, N)
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mixture.weights.log() - log_det - x.shape[1] / 2 * math.log(2 * math.pi) - u.square().sum(1).T / 2


def mixture_log_density(mixture, x):
    """log p(x) (N,)."""
    return log_parts(mixture, x).logsumexp(1)


def blurred(mixture, s):
    """The mixture of x + s n, n ~ N(0, I)."""
    return mixture._replace(covariances=mixture.covariances + s**2 * torch.eye(mixture.means.shape[1]).to(mixture.means))


class Posterior(NamedTuple):
    """For each of N observations a mixture: shares (N, K), means (N, K, m), covariances (K, m, m)."""

    shares: torch.Tensor
    means: torch.Tensor
    covariances: torch.Tensor

    def mean(self):
        """(N, m)."""
        return (self.shares[..., None] * self.means).sum(1)

    def draws(self, n):
        """n samples for each observation, (n, N, m)."""
        k = torch.multinomial(self.shares, n, replacement=True).T  # (n, N)
        root = torch.linalg.cholesky(self.covariances)
        noise = torch.randn(*k.shape, self.means.shape[2], dtype=torch.float64)
        out = self.means[torch.arange(k.shape[1]), k]
        for j in k.unique():
            out[k == j] += noise[k == j] @ root[j].T
        return out


def given_noisy(mixture, y, s):
    """p(x | y) for y = x + s n (N, d)."""
    wide = blurred(mixture, s)
    gain = torch.linalg.solve(wide.covariances, mixture.covariances).mT  # C (C + s²)⁻¹
    means = mixture.means + torch.einsum("kij,nkj->nki", gain, y[:, None] - mixture.means)
    covariances = mixture.covariances - gain @ mixture.covariances
    return Posterior(log_parts(wide, y).softmax(1), means, (covariances + covariances.mT) / 2)


def given_seen(mixture, x, seen):
    """p(x missing | x seen): x (N, d), of which only the entries where seen (d,) is True are read."""
    c, hidden = mixture.covariances, ~seen
    c_ss, c_hs = c[:, seen][:, :, seen], c[:, hidden][:, :, seen]
    gain = torch.linalg.solve(c_ss, c_hs.mT).mT
    means = mixture.means[:, hidden] + torch.einsum("kij,nkj->nki", gain, x[:, None, seen] - mixture.means[:, seen])
    covariances = c[:, hidden][:, :, hidden] - gain @ c_hs.mT
    shares = log_parts(Gaussians(mixture.weights, mixture.means[:, seen], c_ss), x[:, seen]).softmax(1)
    return Posterior(shares, means, (covariances + covariances.mT) / 2)


def draw_gaussians(mixture, n):
    """n samples (n, d) of a mixture."""
    d = mixture.means.shape[1]
    return Posterior(mixture.weights[None], mixture.means[None], mixture.covariances).draws(n).reshape(n, d)


def decibels(mean_square):
    """Peak signal-to-noise ratio of a mean squared error a pixel, for grey levels that span 2."""
    return 10 * math.log10(4 / mean_square)


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


# Copied from 08_cooperative_training.py: leaders
def leaders(found):
    """The best of {name: right (N,)} on the same images, and whoever is not beyond two standard errors of the difference:
    of other images, that is, for the same training and the same draw of labels."""
    best = max(found, key=lambda name: found[name].mean())
    lead = {name: mean_and_sem(found[best] - right) for name, right in found.items()}
    return [best, *(name for name, (mean, sem) in lead.items() if name != best and mean <= 2 * sem)]


def least(errors):
    """The same of {name: errors (N,)}, of which the lowest is best, in words: "a (or b, c)"."""
    return best_of(leaders({name: -values for name, values in errors.items()}))


def best_of(names):
    """The first of names, the others in brackets: "a (or b, c)"."""
    return names[0] + (f" (or {', '.join(names[1:])})" if names[1:] else "")


# Differs from 04_restricted_boltzmann_machines.py: show_images - in [-1, 1], rows with names
def show_images(ax, rows, title=""):
    """Draw {name: images (n, 64)} as rows below each other, each with its name on the left."""
    tiles = torch.cat(
        [
            nn.functional.pad(x.detach().cpu().clamp(-1, 1).reshape(-1, 8, 8), (0, 1, 0, 1), value=-1.0)
            .movedim(0, 1)
            .reshape(9, -1)
            for x in rows.values()
        ]
    )
    ax.imshow(-to_numpy(tiles)[:-1, :-1], cmap="gray", vmin=-1, vmax=1)
    ax.set(frame_on=False, xticks=[], yticks=[9 * i + 3.5 for i in range(len(rows))], yticklabels=list(rows), title=title)


# %% 1. Out-of-distribution detection
# An outside point is told by a score that is higher outside than inside; AUROC is P(score outside > score inside), ties
# count a half. Is the energy, -log p, a good score? Take p itself, without any error of learning, x ~ N(0, I) in d = 64:
#
#     outside N(δ, I), |δ| = 3:   likelihood ratio δ·x ~ N(0, 9) or N(9, 9):      AUROC = Φ(|δ|/√2) = .983
#                                 energy |x|²/2: χ²_d against noncentral χ²_d(9): AUROC = ∫ F_χ² f_ncχ² = .701
#     outside N(0, 0.49 I):       P(.49 χ²_d > χ'²_d) = P(F_{d,d} > 1/.49)        AUROC = .0025
#
# The perfect density puts the second set, which is *more* likely than the data, on the wrong side nearly always. And it is
# not a property of the data: with u = Φ(x), entry by entry, log p_u(u) = log p(x) - Σ log φ(xᵢ) = 0 everywhere, and the
# density says nothing (Le Lan & Dinh 2021), while the ratio, which knows what "outside" is, does not notice the change.


def auroc_of(inside, outside):
    """P(a score outside (..., N) is higher than one inside (..., M)), ties a half; over the last axis, any batch before."""
    m, n = inside.shape[-1], outside.shape[-1]
    ranks = scipy.stats.rankdata(np.concatenate([inside, outside], -1), axis=-1)
    return (ranks[..., m:].sum(-1) - n * (n + 1) / 2) / (m * n)


def aupr_of(inside, outside):
    """Area under precision against recall, outside being what is looked for: mean precision at each that is found."""
    score, truth = np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) >= len(inside)
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # equal scores are accepted together
    found, taken = truth[order].cumsum()[last], np.arange(1, len(score) + 1)[last]
    return (np.diff(found, prepend=0) * found / taken).sum() / len(outside)


def fpr95_of(inside, outside):
    """The share of outside points that pass where 95 % of the inside ones do."""
    return (outside <= np.quantile(inside, 0.95, method="inverted_cdf")).mean()


def exact_ratio_auroc(shift):
    """Φ(|δ|/√2), of the likelihood ratio of N(0, I) and N(δ, I): no score is better (Neyman & Pearson)."""
    return scipy.stats.norm.cdf(shift / 2**0.5)


def exact_energy_auroc_shifted(shift, d):
    """P(χ'²_d(|δ|²) > χ²_d), of the energy of N(0, I) against N(δ, I), by quadrature."""
    inside, outside = scipy.stats.chi2(d), scipy.stats.ncx2(d, shift**2)
    low, high = outside.ppf(1e-13), outside.isf(1e-13)
    return quad(lambda t: inside.cdf(t) * outside.pdf(t), low, high, points=[outside.mean()], epsabs=1e-10)[0]


def exact_energy_auroc_scaled(variance, d):
    """P(v F > 1), F of Fisher's distribution with (d, d): of the energy of N(0, I) against N(0, v I)."""
    return scipy.stats.f.sf(1 / variance, d, d)


def energy_after_change(x):
    """-log density of u = Φ(x) where x ~ N(0, I): (..., d) -> (...). p_u(u) = p(x)/|du/dx|."""
    log_p, left, h = -(x**2 + math.log(2 * math.pi)).sum(-1) / 2, -np.abs(x), 1e-4  # the left tail keeps its digits
    slope = (scipy.special.ndtr(left + h) - scipy.special.ndtr(left - h)) / (2 * h)  # du/dx, by differences
    return -(log_p - np.log(slope).sum(-1)).round(3) + 0.0  # to what differences are good for; and no -0


def measure_perfect_density(run, d=64, shift=3.0, variance=0.49):
    """{what: AUROC (R,) in R independent repeats} of perfect scores, and {what: exact}."""
    rng, shape = np.random.default_rng(run.seed), (run.config.n_repeats, run.config.n_points, d)
    found = {
        "best test, shifted": [],
        "true energy, shifted": [],
        "true energy, narrower": [],
        "true energy after x -> Phi(x)": [],
    }
    for _ in range(shape[0]):
        inside, shifted, narrow = (rng.standard_normal(shape[1:]) for _ in range(3))
        shifted[:, 0] += shift
        narrow *= variance**0.5
        pairs = [(inside[:, 0], shifted[:, 0])]
        pairs += [((inside**2).sum(1) / 2, (x**2).sum(1) / 2) for x in (shifted, narrow)]
        pairs += [(energy_after_change(inside), energy_after_change(shifted))]
        for name, pair in zip(found, pairs, strict=True):
            found[name].append(auroc_of(*pair))
    exact = exact_ratio_auroc(shift), exact_energy_auroc_shifted(shift, d), exact_energy_auroc_scaled(variance, d), 0.5
    return found, dict(zip(found, exact, strict=True))


# Digits, then. Every score is written so that *higher is outside*: energy E; -log p of a mixture and of a kernel density
# estimate (KDE); distance to the nearest training image (1-NN); depth in an isolation forest, shallow is outside; a
# classifier's largest probability, low is outside, and its free energy -log Σ exp logits (Liu et al. 2020); and two that
# know next to nothing: how far the mean grey level, or the bytes that zlib needs (Serra et al. 2020), are from usual.
#
# Inside are test images. Near sets: digits that the training has missed, one at a time; the mean of two images of
# different digits; the same digits by a slanting hand. Far sets: inverted, shuffled, constant, noise, natural patches.
# Bandwidth and the mixture's size are chosen on validation images, by likelihood; neighbours have none to be chosen by, so
# there is one, fixed; the forest and the classifier are as they come. No image that is scored has a say in any setting. The
# ten energies that miss a digit are trained briefly, --n-left-out updates each: their row says so, and is no verdict on
# longer training. Three measures: AUROC; AUPR, the area under precision against recall, for which chance is the share of
# outside images; FPR95, the share of outside images that pass where 95 % of the inside ones do.


class Classifier(nn.Module):
    """x (B, 64) -> logits (B, 10)."""

    def __init__(self, width, d=64):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(d, width), nn.SiLU(), nn.Linear(width, width // 4 + 1), nn.SiLU(), nn.Linear(width // 4 + 1, 10)
        )

    def forward(self, x):
        return self.net(x)


@torch.enable_grad()
def learn_classifier(x, y, config, noise=0.0, disturb=None, n_updates=None):
    """A classifier of x (N, 64) by cross entropy, on images with noise, or as `disturb(net, x, y)` makes them."""
    n_updates = n_updates or config.n_classifier
    learner = Learner(Classifier(config.width).to(x.device), 2e-3, n_updates)
    for _ in range(n_updates):
        rows = torch.randint(len(x), (config.batch_size,), device=x.device)
        batch = x[rows] + noise * torch.randn(config.batch_size, x.shape[1], device=x.device)
        batch = batch if disturb is None else disturb(learner.net, batch, y[rows])
        learner.down(cross_entropy(learner.net(batch), y[rows]))
    must_be_finite("classifier", *learner.average.parameters())
    return learner.average


def squared_distances(a, b):
    """|aᵢ - bⱼ|² (N, M), float64."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def kernel_log_density(x, x_train, bandwidth):
    """log p(x) (N,) of a Gaussian kernel on each row of x_train (M, d)."""
    log_z = math.log(len(x_train)) + x.shape[1] * math.log(bandwidth * math.sqrt(2 * math.pi))
    return (-squared_distances(x, x_train) / (2 * bandwidth**2)).logsumexp(1) - log_z


def neighbour_distance(x, x_train):
    """Distance (N,) to the nearest row of x_train."""
    return squared_distances(x, x_train).amin(1).sqrt()


def zlib_bytes(x):
    """Length (N,) of each image's 64 grey levels, compressed."""
    return torch.tensor(
        [float(len(zlib.compress(row.tobytes(), 9))) for row in to_numpy((x.clamp(-1, 1) * 8 + 8).round().byte())]
    )


def between_digits(x, y):
    """Means of each image and another one of another class: near the digits, and none."""
    other = torch.randperm(len(x))
    return ((x + x[other]) / 2)[y != y[other]]


def slanted(x, shear):
    """Images (N, 64) whose rows are shifted by `shear` pixels a row, the middle staying: another hand."""
    shapes = to_numpy(x).reshape(-1, 8, 8)
    matrix, offset = np.array([[1, 0, 0], [0, 1, 0], [0, shear, 1]]), np.array([0, 0, -3.5 * shear])
    moved = scipy.ndimage.affine_transform(shapes, matrix, offset, order=1, cval=-1.0)
    return torch.as_tensor(moved.reshape(-1, 64))


def photo_patches(n, rng):
    """n patches (n, 64) of a photograph, in grey."""
    grey = load_sample_image("china.jpg").mean(2) / 127.5 - 1
    at = [rng.integers(0, size - 8, n) for size in grey.shape]
    return torch.as_tensor(np.stack([grey[i : i + 8, j : j + 8].ravel() for i, j in zip(*at, strict=True)]))


def outside_sets(x, y, seed):
    """{name: images (M, 64)} made from test images x, or from nothing."""
    rng, n = np.random.default_rng(seed), len(x)
    return {
        "between two digits": between_digits(x, y),
        "slanted hand": slanted(x, 0.25),
        "inverted": -x,
        "shuffled pixels": torch.as_tensor(rng.permuted(to_numpy(x), axis=1)),
        "constant": torch.as_tensor(rng.uniform(-1, 1, (n, 1))).expand(-1, 64).contiguous(),
        "noise": torch.as_tensor(rng.uniform(-1, 1, (n, 64))),
        "natural patches": photo_patches(n, rng),
    }


class Chosen(NamedTuple):
    """The settings of rival scores."""

    bandwidth: float
    n_components: int


def choose_scores(run):
    """Chosen by the likelihood of validation images."""
    x, _, held, _ = tuning(run)
    bandwidth = best_setting((0.15, 0.2, 0.25, 0.3, 0.4, 0.5), lambda h: -kernel_log_density(held, x, h).mean())
    size = best_setting((3, 5, 10, 20), lambda n: -mixture_log_density(fit_gaussians(x, n, run.seed, 1e-2), held).mean())
    return Chosen(bandwidth, size)


def scores_from(run, x, y, energy, chosen, n_updates):
    """{name: function of images (N, 64) -> score (N,), higher outside}, all from training images x, y; energy is the
    network of eq. (1) for them."""
    device, usual, bytes_ = run.device, x.mean(), zlib_bytes(x).mean()
    mixture = fit_gaussians(x, chosen.n_components, run.seed, 1e-2)
    forest = IsolationForest(n_estimators=100, random_state=run.seed).fit(to_numpy(x))
    net = learn_classifier(x.float().to(device), y.to(device), run.config, noise=0.2, n_updates=n_updates)

    def logits(z):
        return net(z.float().to(device)).double().cpu()[:, y.unique()]

    return {
        "energy": lambda z: energy(z.float().to(device)[None])[0].double().cpu(),
        "mixture": lambda z: -mixture_log_density(mixture, z),
        "KDE": lambda z: -kernel_log_density(z, x, chosen.bandwidth),
        "1-NN": lambda z: neighbour_distance(z, x),
        "isolation forest": lambda z: -forest.score_samples(to_numpy(z)),
        "softmax": lambda z: -logits(z).softmax(1).amax(1),
        "free energy": lambda z: -logits(z).logsumexp(1),
        "grey level": lambda z: (z.mean(1) - usual).abs(),
        "zlib": lambda z: (zlib_bytes(z) - bytes_).abs(),
    }


@functools.cache
@own_random_stream
def energies_without(run):
    """Ten networks, each of which has never seen one digit."""
    torch.manual_seed(run.seed + 1)
    y, x = images(run).y.to(run.device), images(run).x.float().to(run.device)
    labels = -(y == torch.arange(10, device=run.device)[:, None]).long()
    return train_energies(x, labels, run.config, run.config.n_left_out, "ten energies")


class Told(NamedTuple):
    """How well a score tells a set: AUROC, AUPR, FPR95, and their bootstrap errors."""

    auroc: float
    aupr: float
    fpr95: float
    errors: np.ndarray  # (3,)


MEASURES = (auroc_of, aupr_of, fpr95_of)


def told(inside, outside, n_boot, rng):
    """Told, from scores (M,) and (N,), each resampled n_boot times."""
    boots = []
    for _ in range(n_boot):
        some = [values[rng.integers(0, len(values), len(values))] for values in (inside, outside)]
        boots.append([measure(*some) for measure in MEASURES])
    return Told(*(measure(inside, outside) for measure in MEASURES), np.std(boots, axis=0, ddof=1))


def told_left_out(scores, y, n_boot, rng):
    """Told, mean over ten digits that were left out: scores (10, N) of all test images by the k-th model, labels y (N,).
    Images are resampled within their class, the same for all ten models."""

    def means(rows):
        split = [(row[rows][y[rows] != k], row[rows][y[rows] == k]) for k, row in enumerate(scores)]
        return [np.mean([measure(*pair) for pair in split]) for measure in MEASURES]

    members, boots = [np.flatnonzero(y == k) for k in range(10)], []
    for _ in range(n_boot):
        boots.append(means(np.concatenate([rng.choice(rows, len(rows)) for rows in members])))
    return Told(*means(np.arange(len(y))), np.std(boots, axis=0, ddof=1))


def measure_scores(run):
    """{set: {score: Told}} on digits, and what was chosen."""
    x, y, x_test, y_test = images(run)
    chosen, n_boot, rng = choose_scores(run), run.config.n_boot, np.random.default_rng(run.seed)
    ten, half = energies_without(run), max(run.config.n_classifier // 2, 1)
    by_digit = [
        {name: to_numpy(f(x_test)) for name, f in scores_from(run, x[y != k], y[y != k], ten.one(k), chosen, half).items()}
        for k in range(10)
    ]
    labels = to_numpy(y_test)
    found = {
        NEAR[0]: {name: told_left_out(np.stack([d[name] for d in by_digit]), labels, n_boot, rng) for name in by_digit[0]}
    }
    scores = scores_from(run, x, y, digits_energy(run), chosen, run.config.n_classifier)
    inside = {name: to_numpy(f(x_test)) for name, f in scores.items()}
    for set_name, outside in outside_sets(x_test, y_test, run.seed).items():
        found[set_name] = {name: told(inside[name], to_numpy(f(outside)), n_boot, rng) for name, f in scores.items()}
    return found, chosen


def leading_scores(row):
    """Of {score: Told} the one with the highest AUROC, and those within two standard errors of it."""
    best = max(row, key=lambda name: row[name].auroc)
    return [best] + [
        name
        for name, other in row.items()
        if name != best and row[best].auroc - other.auroc <= 2 * math.hypot(row[best].errors[0], other.errors[0])
    ]


def draw_perfect(found, exact):
    """Measured and exact AUROC of perfect scores."""
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    means = [np.mean(values) for values in found.values()]
    ax.barh(list(found), means, color="tab:orange", label="measured")
    ax.plot(list(exact.values()), list(exact), "k|", ms=22, mew=2, label="exact")
    for i, mean in enumerate(means):
        ax.text(mean + 0.02, i, f"{mean:.4f}", va="center", fontsize=13)
    ax.axvline(0.5, color="0.5", ls=":")
    ax.set(
        title=f"the true density, no error of learning: from {max(means[1:]):.2f} down to {min(means):.4f}",
        xlabel="AUROC",
        xlim=(0, 1.15),
    )
    ax.invert_yaxis()
    ax.legend(loc="lower right")
    return fig


def draw_scores(found, sets, measures):
    """One table a measure, sets by scores, with errors; the best of a row in bold with a star."""
    fig, axes = plt.subplots(
        len(measures), 1, figsize=(12, 1 + 0.7 * len(sets) * len(measures)), layout="constrained", squeeze=False
    )
    names = list(found[sets[0]])
    for ax, (at, title, sign) in zip(axes[:, 0], measures, strict=True):
        table = np.array([[found[s][name][at] for name in names] for s in sets])
        ax.imshow(table if sign > 0 else 1 - table, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
        best = (sign * table).max(1)
        for i, j in np.ndindex(*table.shape):
            text, wins = f"{table[i, j]:.3f}\n±{found[sets[i]][names[j]].errors[at]:.3f}", sign * table[i, j] == best[i]
            ax.text(j, i, "*" + text if wins else text, ha="center", va="center", weight="bold" if wins else "normal")
        ax.set(title=title, xticks=range(len(names)), xticklabels=names, yticks=range(len(sets)), yticklabels=sets)
    return fig


def record_told(run, found):
    """The energy beside the best of its rivals on each set; on near sets by three measures."""
    for set_name, row in found.items():
        for at, (name, sign) in enumerate(SIGNS.items() if set_name in NEAR else [("AUROC", 1)]):
            rival = max(
                (score for score in row if score != "energy"),
                key=lambda score, sign=sign, at=at, row=row: sign * row[score][at],
            )
            ours, beside = row["energy"], (f"best rival, {rival}", row[rival][at])
            run.metric(f"{set_name}: energy, {name}", ours[at], ours.errors[at], beside)


SIGNS = {"AUROC": 1, "AUPR": 1, "FPR95": -1}  # of what is better
NEAR = ("a digit left out (brief)", "between two digits", "slanted hand")


def section_ood(run):
    """A perfect density can call the outside likelier than the inside; on digits, who tells which set?"""
    perfect, exact = measure_perfect_density(run)
    for name, values in perfect.items():
        mean, sem = mean_and_sem(values)
        run.metric(f"{name}: AUROC", mean, sem, ("exact", exact[name]), tolerance(sem, len(values)))
    run.figure(draw_perfect(perfect, exact), "perfect_density")
    found, chosen = measure_scores(run)
    for name, value in chosen._asdict().items():
        run.metric(f"chosen on validation images: {name}", value)
    record_told(run, found)
    run.figure(draw_scores(found, list(found), [(0, "AUROC (* highest)", 1)]), "scores")
    near = [(1, "near sets: AUPR (* highest)", 1), (2, "FPR95: outside images that pass (* lowest)", -1)]
    run.figure(draw_scores(found, [name for name in NEAR if name in found], near), "near_sets")
    run.say(told_sentence(found))


def told_sentence(found):
    """Who leads on the near sets, and on how many sets the energy does, with and without others beside it."""
    leading = {name: leading_scores(row) for name, row in found.items()}
    near = ", ".join(f"{name}: {best_of(leading[name])}" for name in NEAR if name in found)
    shared = [names for names in leading.values() if "energy" in names]
    return (
        f"near sets are told best by {near}; the energy leads on {len(shared)} of {len(found)} sets, "
        f"on {sum(len(names) == 1 for names in shared)} alone"
    )


# %% 2. Denoising
# y = x + s n, n ~ N(0, I). The estimate with the least mean squared error is E[x | y], and the score of y's density p_s
# gives it without any posterior (Robbins 1956, who has it from Tweedie):
#
#     ∇log p_s(y) = ∫ p(x) N(y; x, s²) (x - y)/s² dx / p_s(y) = (E[x | y] - y)/s²,
#     MMSE = E|x - E[x | y]|² = d s² - s⁴ E|∇log p_s(y)|²:
#
# For the second write y - x = (y - E[x|y]) + (E[x|y] - x). The left side, s n, has mean square d s². Given y the second part
# on the right has mean zero, and the first is fixed, so their mean squares add; the first is s² ∇log p_s, by Tweedie's
# formula. (E|∇log p_s|² is the Fisher information of y about its place.)
#
# A *sample* x' of the posterior has error x - E[x|y], and x' - E[x|y] besides, which are independent given y and have the
# same covariance: exactly twice the MMSE, -3.01 dB. Samples look like data; nothing that does need cost more, and the
# cheapest may cost less (Blau & Michaeli 2018). The mean of K samples costs MMSE (1 + 1/K).


def tweedie(mixture, y, s):
    """E[x | y] (N, d) as y + s² ∇log p_s(y), the score by autograd."""
    y = y.detach().requires_grad_(True)
    (score,) = torch.autograd.grad(mixture_log_density(blurred(mixture, s), y).sum(), y)
    return (y + s**2 * score).detach()


def two_bumps(d, distance=2.0, spread=0.3):
    """Two Gaussians ±distance/2 along a diagonal of d dimensions, variance spread², equally heavy."""
    along = torch.ones(d, dtype=torch.float64) * distance / 2 / d**0.5
    covariances = spread**2 * torch.eye(d, dtype=torch.float64).expand(2, d, d)
    return Gaussians(torch.full((2,), 0.5, dtype=torch.float64), torch.stack([along, -along]), covariances.clone())


def exact_two_bumps_mmse(d, s, distance=2.0, spread=0.3):
    """d s² - s⁴ J by quadrature: along the diagonal J is an integral, across it J = 1/(spread² + s²) a direction."""
    wide, half = spread**2 + s**2, distance / 2

    def information(t):
        right, left = (math.exp(-((t - m) ** 2) / (2 * wide)) / 2 for m in (half, -half))
        slope = -(right * (t - half) + left * (t + half)) / wide
        return slope**2 / (right + left) / math.sqrt(2 * math.pi * wide) if right + left > 0 else 0.0

    reach = half + 12 * wide**0.5
    j = quad(information, -reach, reach, points=[-half, 0, half], epsabs=1e-12, limit=400)[0] + (d - 1) / wide
    return d * s**2 - s**4 * j


def theory_samples_mse(mmse, k):
    """Mean squared error of the mean of k posterior samples: MMSE (1 + 1/k)."""
    return mmse * (1 + 1 / k)


class OnBumps(NamedTuple):
    """On two bumps: the largest gap of Tweedie's formula; mean squared errors (R,) of E[x|y] and of means of K samples."""

    gap: float
    posterior_mean: list
    samples: dict  # {K: (R,)}


def measure_bumps(run, d, s, ks=(1, 4, 16)):
    """OnBumps, in R independent repeats."""
    mixture, gap, means, samples = two_bumps(d), 0.0, [], {k: [] for k in ks}
    for _ in range(run.config.n_repeats):
        x = draw_gaussians(mixture, run.config.n_points)
        y = x + s * torch.randn_like(x)
        posterior = given_noisy(mixture, y, s)
        best = posterior.mean()
        gap = max(gap, (best - tweedie(mixture, y, s)).abs().max().item())
        means.append((best - x).square().sum(1).mean().item())
        for k in ks:
            samples[k].append((posterior.draws(k).mean(0) - x).square().sum(1).mean().item())
    return OnBumps(gap, means, samples)


# Images. An energy that was trained on data with noise σ_d is -log of *that* density, so its score denoises exactly this
# level in one step. More noise, s > σ_d, is noise σ_d and then √(s² - σ_d²) more: with z = x + σ_d n,
#
#     p(z | y) ∝ exp(-E(z) - |y - z|²/(2 (s² - σ_d²))),       E[x | y] = E[z - σ_d² ∇E(z) | y]:
#
# Langevin chains on z, cleaned by one step, and their mean. One cleaned state, E[x | z], is no sample of x but smoother:
# its error is MMSE(s) + (MMSE(s) - MMSE(σ_d)), below twice the MMSE, and the mean of K independent ones pays a K-th of
# that difference, which rivals with an exact mean do not pay. So each of eight chains is averaged over its second half as
# well, every 15th step: eighty states by default, that count for something between eight and eighty independent ones.
# Rivals: median and Gaussian filters, total variation, Wiener (one Gaussian), PCA, the kernel density's and the mixture's
# posterior means.


KEPT_EVERY = 15  # steps between two states of a chain that are averaged


def posterior_chains(energy, y, s, config, n_chains):
    """States (n_chains, N, d) of chains of z given y (N, d), as above, for s > data_noise: of the second half every 15th,
    and the end last."""
    extra, n, done, z = s**2 - config.data_noise**2, config.n_chain_steps, 0, y.repeat(n_chains, 1)
    start = z.clone()

    def slope(z):
        return energy.slope(z[None])[0] + (z - start) / extra

    for stop in range(n, n // 2, -KEPT_EVERY)[::-1]:
        z, done = langevin(slope, z, stop - done, min(config.step_size, extra)), stop
        yield z.view(n_chains, *y.shape)


def one_step(energy, z, level):
    """z - level² ∇E(z), (..., d): eq. (1)."""
    return z - level**2 * energy.slope(z.reshape(1, -1, z.shape[-1])).view(z.shape)


@torch.no_grad()
def posterior_mean(energy, y, s, config, n_chains=8):
    """E[x | y] (N, d), the mean of E[x | z] over chains and over their second halves; and E[x | z] at one chain's end."""
    if s <= config.data_noise:
        return (one_step(energy, y, s),) * 2
    total, n_kept = torch.zeros_like(y), 0
    for z in posterior_chains(energy, y, s, config, n_chains):
        clean = one_step(energy, z, config.data_noise)
        total, n_kept = total + clean.mean(0), n_kept + 1
    return total / n_kept, clean[0]


def energy_denoiser(energy, y, s, config, device):
    """E[x | y] (N, d) by the energy of noisy data, and one cleaned chain: float64 on the CPU."""
    found = posterior_mean(energy, y.float().to(device), s, config)
    must_be_finite("denoising", *found)
    return [part.double().cpu() for part in found]


def tv_denoised(y, weight, n_steps=80):
    """argmin_x |x - y|²/2 + weight Σ |∇x| for images (N, 64), by Chambolle's (2004) dual iteration."""
    y = y.view(-1, 8, 8)
    px, py = torch.zeros_like(y), torch.zeros_like(y)

    def divergence():
        div = torch.zeros_like(y)
        div[:, :-1] += px[:, :-1]
        div[:, 1:] -= px[:, :-1]
        div[:, :, :-1] += py[:, :, :-1]
        div[:, :, 1:] -= py[:, :, :-1]
        return div

    for _ in range(n_steps):
        u = divergence() - y / weight
        gx, gy = torch.zeros_like(y), torch.zeros_like(y)
        gx[:, :-1], gy[:, :, :-1] = u.diff(dim=1), u.diff(dim=2)
        size = 1 + 0.24 * (gx**2 + gy**2).sqrt()
        px, py = (px + 0.24 * gx) / size, (py + 0.24 * gy) / size
    return (y - weight * divergence()).reshape(-1, 64)


def filtered(y, function, size):
    """scipy.ndimage's filter on images (N, 64), each by itself."""
    shapes = to_numpy(y).reshape(-1, 8, 8)
    options = {"sigma": (0, size, size)} if function == "gaussian" else {"size": (1, size, size)}
    return torch.as_tensor(getattr(scipy.ndimage, f"{function}_filter")(shapes, mode="nearest", **options).reshape(-1, 64))


def pca_denoiser(x, y, n):
    """What lies in the n leading directions of x (M, d), nothing of the others."""
    mean = x.mean(0)
    directions = torch.linalg.eigh(x.T.cov())[1][:, -n:]
    return mean + (y - mean) @ directions @ directions.T


def wiener(x, y, s):
    """E[x | y] for the Gaussian with the mean and covariance of x (M, d)."""
    one = Gaussians(
        torch.ones(1).double(), x.mean(0, keepdim=True), x.T.cov(correction=0)[None] + 1e-9 * torch.eye(x.shape[1]).double()
    )
    return given_noisy(one, y, s).mean()


def kernel_denoiser(x, y, s, bandwidth):
    """E[x | y] where x has a Gaussian kernel density on the rows of x (M, d)."""
    wide = s**2 + bandwidth**2
    means = (-squared_distances(y, x) / (2 * wide)).softmax(1) @ x
    return means + bandwidth**2 / wide * (y - means)


# {method: (settings, function(setting, training images, noisy images, s, a mixture fitted to them))}
DENOISERS = {
    "median": ((1, 2, 3, 5), lambda v, x, y, s, m: filtered(y, "median", v)),
    "Gaussian": ((0.3, 0.5, 0.7, 0.9, 1.2, 1.6), lambda v, x, y, s, m: filtered(y, "gaussian", v)),
    "total variation": ((0.1, 0.2, 0.4, 0.7, 1.1, 1.6), lambda v, x, y, s, m: tv_denoised(y, v)),
    "PCA": ((4, 8, 12, 16, 24, 32, 48), lambda v, x, y, s, m: pca_denoiser(x, y, v)),
    "Wiener": ((None,), lambda v, x, y, s, m: wiener(x, y, s)),
    "KDE": ((0.1, 0.2, 0.3, 0.4), lambda v, x, y, s, m: kernel_denoiser(x, y, s, v)),
    "mixture": (MIXTURES, lambda v, x, y, s, m: given_noisy(m[v], y, s).mean()),
}


def mixtures_of(x, seed, settings=MIXTURES):
    """{(number of Gaussians, what is added to their variances): a mixture fitted to x}."""
    return {(n, reg): fit_gaussians(x, n, seed, reg) for n, reg in settings}


@functools.cache
def tuning_mixtures(run):
    """The mixtures of the images that settings are chosen with."""
    return mixtures_of(tuning(run).x, run.seed)


def choose_denoisers(fit, held, fitted, s):
    """{method: setting with the least mean squared error on held-out images with noise s}, learnt from images `fit`."""
    y = held + s * torch.randn_like(held)
    return {
        name: best_setting(settings, lambda v, f=f: (f(v, fit, y, s, fitted) - held).square().mean().item())
        for name, (settings, f) in DENOISERS.items()
    }


def errors_of(estimate, x):
    """Mean squared error a pixel of each image, (N,)."""
    return (estimate - x).square().mean(1)


def denoise_all(digits, energy, s, tuned, fitted, config, device):
    """{method: estimates (N, 64) of the test images from noise s}, with "noisy" and one "energy, one chain"."""
    y = digits.x_test + s * torch.randn_like(digits.x_test)
    found = {"noisy": y} | {name: DENOISERS[name][1](v, digits.x, y, s, fitted) for name, v in tuned.items()}
    found["energy"], found["energy, one chain"] = energy_denoiser(energy, y, s, config, device)
    return found


LEVELS = (0.3, 0.6, 1.0)  # of noise: 2.4, 4.8 and 8 of the 16 grey levels


def measure_denoising(run):
    """{s: {method: estimates}} on test images, and {s: {method: setting}}."""
    digits, split, found, chosen = images(run), tuning(run), {}, {}
    for s in LEVELS:
        chosen[s] = choose_denoisers(split.x, split.x_test, tuning_mixtures(run), s)
        fitted = mixtures_of(digits.x, run.seed, [chosen[s]["mixture"]])
        found[s] = denoise_all(digits, digits_energy(run), s, chosen[s], fitted, run.config, run.device)
    return found, chosen


# How good is that? Nobody knows the MMSE of handwriting. But draw "digits" from a mixture that was fitted to digits, forget
# the mixture, and learn from the draws: now the best denoiser there is is known, and every method's distance to it. (The
# mixture that is fitted to them has an advantage: the truth is of its family.)


@own_random_stream
def measure_ceiling(run, s=0.6):
    """{method: errors (N,)} on draws of a known mixture, learnt from other draws; "the best possible" is its own."""
    torch.manual_seed(run.seed + 2)
    truth = fit_gaussians(images(run).x, 20, run.seed, 1e-2)
    x, held, x_test = (draw_gaussians(truth, n) for n in (1400, 360, 600))
    drawn = Images(x, None, x_test, None)
    labels = torch.zeros(1, len(x), dtype=torch.int64, device=run.device)
    energy = train_energies(x.float().to(run.device), labels, run.config, run.config.n_ceiling, "energy of known digits")
    fitted = mixtures_of(x, run.seed)
    tuned = choose_denoisers(x, held, fitted, s)
    estimates = denoise_all(drawn, energy, s, tuned, fitted, run.config, run.device)
    best = given_noisy(truth, estimates["noisy"], s)
    estimates |= {"the best possible": best.mean(), "its sample": best.draws(1)[0]}
    return {name: errors_of(e, x_test) for name, e in estimates.items()}


def draw_bumps(on_bumps, exact):
    """Mean squared error of the mean of K posterior samples, in units of the MMSE."""
    fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (name, found), colour in zip(on_bumps.items(), ("tab:blue", "tab:orange"), strict=True):
        ks, means = list(found.samples), [np.mean(v) / exact[name] for v in found.samples.values()]
        ax.plot(ks, means, "o", ms=9, color=colour, label=f"{name}: measured")
    grid = np.geomspace(1, 16)
    ax.plot(grid, theory_samples_mse(1, grid), "k--", label="1 + 1/K")
    largest = np.mean([np.mean(found.samples[1]) / exact[name] for name, found in on_bumps.items()])
    ax.axhline(1, color="0.5", ls=":", label="the posterior mean")
    ax.set(
        title=f"one posterior sample costs {largest:.2f} times the least possible error",
        xscale="log",
        xlabel="K, samples averaged",
        ylabel="squared error / MMSE",
        ylim=(0.9, 2.1),
    )
    ax.set_xticks([1, 4, 16], ["1", "4", "16"])
    ax.minorticks_off()
    ax.legend()
    return fig


def draw_denoising(found, x_test, n=10):
    """Test images, noisy and denoised, at the middle level; and every method at every level."""
    fig, axes = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained", width_ratios=(1, 1.15))
    s = LEVELS[1]
    best = max(
        (name for name in found[s] if "energy" not in name), key=lambda name: -errors_of(found[s][name], x_test).mean()
    )
    rows = {"clean": x_test[:n]} | {
        name: found[s][name][:n]
        for name in dict.fromkeys(["noisy", "median", "Wiener", best, "energy", "energy, one chain"])
    }
    show_images(axes[0], rows, f"noise {s}")
    names = [name for name in found[s] if name != "noisy"]
    for i, level in enumerate(LEVELS):
        values = [decibels(errors_of(found[level][name], x_test).mean().item()) for name in names]
        bars = axes[1].bar(np.arange(len(names)) + 0.27 * (i - 1), values, 0.25, label=f"noise {level}")
        top = int(np.argmax(values))
        axes[1].text(top + 0.27 * (i - 1), values[top] + 0.1, "*", ha="center", fontsize=18, color=bars[top].get_facecolor())
    axes[1].set(
        title="* marks the best of each level", ylabel="peak signal-to-noise (dB)", xticks=range(len(names)), ylim=(8, None)
    )
    axes[1].set_xticklabels(names, rotation=40, ha="right")
    axes[1].legend()
    return fig


def draw_ceiling(errors):
    """How far below the best possible each method is, in dB."""
    fig, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    best = decibels(errors["the best possible"].mean().item())
    names = sorted(set(errors) - {"noisy", "the best possible"}, key=lambda name: errors[name].mean().item(), reverse=True)
    below = [best - decibels(errors[name].mean().item()) for name in names]
    ax.barh(
        names,
        below,
        color=["tab:orange" if "energy" in name else "0.5" if name == "its sample" else "tab:blue" for name in names],
    )
    for i, value in enumerate(below):
        ax.text(value + 0.05, i, f"{value:.2f}", va="center")
    nearest = least({name: errors[name] for name in names if name != "its sample"})
    ax.set(
        title=f"nearest to the best possible: {nearest}",
        xlabel="dB below the posterior mean of the truth",
        xlim=(0, 1.1 * max(below)),
    )
    return fig


def db_and_sem(errors):
    """dB of the mean of errors (N,), and its standard error by the delta method."""
    mean, sem = mean_and_sem(errors)
    return decibels(mean), 10 / math.log(10) * sem / mean


def record_bumps(run, on_bumps, exact):
    """Tweedie's formula, the MMSE and the price of samples, each beside its exact value."""
    for name, found in on_bumps.items():
        run.metric(f"{name}: posterior mean - Tweedie, largest", found.gap, against=("exact", 0), within=1e-9)
        mean, sem = mean_and_sem(found.posterior_mean)
        run.metric(
            f"{name}: error of the posterior mean",
            mean,
            sem,
            ("MMSE", exact[name]),
            tolerance(sem, len(found.posterior_mean)),
        )
        for k, values in found.samples.items():
            mean, sem = mean_and_sem(values)
            theory = ("MMSE (1 + 1/K)", theory_samples_mse(exact[name], k))
            run.metric(f"{name}: mean of K = {k} samples", mean, sem, theory, tolerance(sem, len(values)))
        mean, sem = mean_and_sem(10 * np.log10(np.array(found.posterior_mean) / np.array(found.samples[1])))
        run.metric(f"{name}: one sample (dB)", mean, sem, ("-10 lg 2", -10 * math.log10(2)))


def section_denoising(run):
    """The posterior mean is the best denoiser, one posterior sample costs twice its error; on digits with known truth."""
    cases = {"2-D": (2, 0.6), "64-D": (64, 0.6)}
    exact = {name: exact_two_bumps_mmse(d, s) for name, (d, s) in cases.items()}
    on_bumps = {name: measure_bumps(run, d, s) for name, (d, s) in cases.items()}
    record_bumps(run, on_bumps, exact)
    run.figure(draw_bumps(on_bumps, exact), "samples")
    (found, _), x_test, winners = measure_denoising(run), images(run).x_test, {}
    for s, methods in found.items():
        errors = {name: errors_of(e, x_test) for name, e in methods.items()}
        rivals = {name: db_and_sem(e)[0] for name, e in errors.items() if "energy" not in name}
        rival = max(rivals, key=rivals.get)
        for name, e in errors.items():
            run.metric(f"noise {s}: {name} (dB)", *db_and_sem(e), (f"best rival, {rival}", rivals[rival]))
        winners[s] = least(errors)
    run.figure(draw_denoising(found, x_test), "digits")
    ceiling = measure_ceiling(run)
    record_ceiling(run, ceiling)
    run.figure(draw_ceiling(ceiling), "ceiling")
    run.say(denoising_sentence(winners, ceiling))


def record_ceiling(run, errors):
    """Every method's distance (dB) to the best possible, on digits whose density is known; images are paired."""
    best = errors["the best possible"]
    run.metric("known digits: the best possible (dB)", *db_and_sem(best))
    for name, e in errors.items():
        if name not in ("noisy", "the best possible"):
            below = 10 * math.log10(e.mean() / best.mean())
            sem = 10 / math.log(10) * mean_and_sem(e / e.mean() - best / best.mean())[1]
            if name == "its sample":
                run.metric(
                    "known digits: its sample, dB below", below, sem, ("10 lg 2", 10 * math.log10(2)), tolerance(sem, len(e))
                )
            else:
                run.metric(f"known digits: {name}, dB below", below, sem, ("the best possible", 0))


def denoising_sentence(winners, ceiling):
    """The winner of each noise level, and who comes nearest to the ceiling."""
    best = ceiling["the best possible"].mean()
    names = [name for name in ceiling if name not in ("noisy", "the best possible", "its sample")]
    nearest = leaders({name: -ceiling[name] for name in names})
    below = {name: 10 * math.log10(ceiling[name].mean() / best) for name in (nearest[0], "energy")}
    wins = ", ".join(f"{s}: {name}" for s, name in winners.items())
    return (
        f"best at noise {wins}; where the best possible is known {best_of(nearest)} comes nearest, "
        f"{below[nearest[0]]:.2f} dB below it, and the energy is {below['energy']:.2f} dB below"
    )


# %% 3. Inpainting
# p(missing | seen) ∝ exp(-E(missing, seen)): eq. (3), the same chain with some pixels held. But E is the energy of *noisy*
# images z = x + σ n, so what is held must be noisy too, and its noise must be drawn once. Drawn anew each step the chain has
# no joint density. On two pixels with covariance C + σ² I = P⁻¹ of z, hold the second:
#
#     drawn once:     z₁ <- z₁ - (ε/2)(P₁₁ z₁ + P₁₂ z₂) + √ε ξ      p(z₁ | z₂) = N(-P₁₂ z₂/P₁₁, 1/P₁₁),
#     anew:           z₂ = x₂ + σ n', each step another n'          N(-P₁₂ x₂/P₁₁, v),
#                     v = (ε + (ε/2)² P₁₂² σ²)/(1 - (1 - (ε/2) P₁₁)²) -> 1/P₁₁ as ε -> 0:
#
# the second shrinks x₂ and spreads as if it were a noisy pixel, which it is not: its intervals answer no question. They
# tell: of 19 samples and the truth any order is equally likely if the samples are right, so the truth lies between the
# smallest and the largest sample with chance 1 - 2/20 = 90 %, whatever the distribution is.

N_COMPLETIONS = 19  # whose range is a 90 % interval


def covered(truth, samples):
    """Where truth (...) lies between the smallest and the largest of samples (19, ...), a 90 % interval."""
    return ((truth >= samples.amin(0)) & (truth <= samples.amax(0))).double()


def exact_coverage(n):
    """1 - 2/(n + 1): the truth lies within the range of n exchangeable samples."""
    return 1 - 2 / (n + 1)


def complete(slope, x, seen, sigma, n_steps, step_size, redraw=False):
    """Langevin on the entries of z (..., d) that are not seen (d,), from noise; the seen ones are x + σ n, n drawn once
    (or, wrongly, each step). Returns z."""
    held = x + sigma * torch.randn_like(x)
    z = torch.where(seen, held, torch.randn_like(x))
    for _ in range(n_steps):
        if redraw:
            held = x + sigma * torch.randn_like(x)
            z = torch.where(seen, held, z)
        z = torch.where(seen, held, langevin(slope, z, 1, step_size))
    return z


def theory_redrawn(covariance, sigma, step_size):
    """The chain's law with noise drawn anew, the second of two pixels held: slope of its mean in x₂, and its variance."""
    p = np.linalg.inv(np.asarray(covariance) + sigma**2 * np.eye(2))
    rho = 1 - step_size / 2 * p[0, 0]
    return -p[0, 1] / p[0, 0], (step_size + (step_size / 2 * p[0, 1] * sigma) ** 2) / (1 - rho**2)


def exact_redrawn_coverage(covariance, sigma, step_size, n=N_COMPLETIONS):
    """How often z₁ lies within the range of n samples of that chain (of one x₂): z₁ minus their mean is N(0, w), they have
    variance v, and P = 1 - 2 E[Φ(√(w/v) t)ⁿ] over t ~ N(0, 1)."""
    c, (a, v) = np.asarray(covariance), theory_redrawn(covariance, sigma, step_size)
    w = c[0, 0] + sigma**2 - 2 * a * c[0, 1] + a**2 * c[1, 1]
    normal = scipy.stats.norm
    return 1 - 2 * quad(lambda t: normal.cdf((w / v) ** 0.5 * t) ** n * normal.pdf(t), -12, 12, epsabs=1e-12, limit=200)[0]


def exact_held_coverage(covariance, sigma, step_size, n=N_COMPLETIONS):
    """The same where the noise is drawn once and each chain is held at the same z₂: off 90 % only by Langevin's step,
    which widens 1/P₁₁ to 1/(P₁₁ (1 - ε P₁₁/4))."""
    p = np.linalg.inv(np.asarray(covariance) + sigma**2 * np.eye(2))[0, 0]
    ratio, normal = 1 - step_size * p / 4, scipy.stats.norm
    return 1 - 2 * quad(lambda t: normal.cdf(ratio**0.5 * t) ** n * normal.pdf(t), -12, 12, epsabs=1e-12, limit=200)[0]


TWO_PIXELS = ((1.0, 0.95), (0.95, 1.0))


def measure_two_pixels(run, sigma=0.4, step_size=0.04, n_steps=150):
    """{"noise drawn once", "noise drawn each step": coverage (R,)}, and {..: exact}, of z₁ by 19 chains."""
    covariance = torch.tensor(TWO_PIXELS, dtype=torch.float64)
    root, precision = torch.linalg.cholesky(covariance), torch.linalg.inv(covariance + sigma**2 * torch.eye(2))
    seen, n = torch.tensor([False, True]), max(run.config.n_points // 4, 10)
    found = {"noise drawn once": [], "noise drawn each step": []}
    for _ in range(run.config.n_repeats):
        for name in found:
            x = torch.randn(n, 2, dtype=torch.float64) @ root.T
            z = x + sigma * torch.randn_like(x)
            redraw = name != "noise drawn once"
            start, s = (x, sigma) if redraw else (z, 0.0)  # held at one z₂, by all 19
            ends = complete(
                lambda v: v @ precision, start.expand(N_COMPLETIONS, -1, -1), seen, s, n_steps, step_size, redraw
            )
            found[name].append(covered(z[:, 0], ends[..., 0]).mean().item())
    exact = exact_held_coverage, exact_redrawn_coverage
    return found, {name: f(TWO_PIXELS, sigma, step_size) for name, f in zip(found, exact, strict=True)}


# Digits: the centre, or the lower half, is missing. An estimate is the mean of the 19 completions, each cleaned by one step
# (1); intervals are for the noisy pixels z, of which the energy is the density. Rivals: the training images' mean, k nearest
# neighbours by what is seen, and the mixture's exact conditional, both of the clean pixels, which the energy sees only
# through its noise; their settings are chosen on validation images by squared error, which need not make intervals right.


def masks():
    """{name: seen (64,)}."""
    centre, half = torch.ones(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
    centre[2:6, 2:6], half[4:] = False, False
    return {"centre": centre.flatten(), "lower half": half.flatten()}


def neighbour_fill(x_train, x, seen, k):
    """Mean of the missing pixels of the k training images that are nearest by the seen ones."""
    nearest = squared_distances(x[:, seen], x_train[:, seen]).topk(min(k, len(x_train)), largest=False).indices
    return x_train[:, ~seen][nearest].mean(1)


def choose_fillers(run, seen, fitted):
    """The number of neighbours and the key of `fitted` with the least squared error on validation images."""
    split = tuning(run)
    hidden = split.x_test[:, ~seen]
    k = best_setting(
        (1, 3, 5, 8, 12, 20, 40), lambda k: (neighbour_fill(split.x, split.x_test, seen, k) - hidden).square().mean()
    )
    key = best_setting(fitted, lambda key: (given_seen(fitted[key], split.x_test, seen).mean() - hidden).square().mean())
    return k, key


class Filled(NamedTuple):
    """One mask: {method: estimates (N, m)}, the truth (N, m), {method: coverage of each image (N,)}, and the energy's
    cleaned completions (19, N, 64)."""

    estimates: dict
    truth: torch.Tensor
    coverage: dict
    completions: torch.Tensor


@torch.no_grad()
def fill_by_energy(energy, x, seen, config, device):
    """19 samples (19, N, 64) of noisy images z given noisy seen pixels, the noise one for all 19; and those cleaned."""
    held = x.float().to(device) + config.data_noise * torch.randn(x.shape, device=device)
    flat = held.repeat(N_COMPLETIONS, 1)
    z = complete(lambda v: energy.slope(v[None])[0], flat, seen.to(device), 0.0, config.n_chain_steps, config.step_size)
    clean = one_step(energy, z, config.data_noise)
    must_be_finite("inpainting", clean)
    return (part.double().cpu().view(N_COMPLETIONS, *x.shape) for part in (z, clean))


def fill_in(run, seen):
    """Filled, of the first test images."""
    config, digits = run.config, images(run)
    x = digits.x_test[: config.n_images]
    k, (n, reg) = choose_fillers(run, seen, tuning_mixtures(run))
    clear = fit_gaussians(digits.x, n, run.seed, reg)
    blurry = blurred(clear, config.data_noise)
    z, clean = fill_by_energy(digits_energy(run), x, seen, config, run.device)
    noisy = x + config.data_noise * torch.randn_like(x)  # what intervals are for
    mixture_draws = given_seen(blurry, noisy, seen).draws(N_COMPLETIONS)
    estimates = {
        "mean fill": digits.x.mean(0)[~seen].expand(len(x), -1),
        "k-NN": neighbour_fill(digits.x, x, seen, k),
        "mixture": given_seen(clear, x, seen).mean(),
        "energy": clean.mean(0)[:, ~seen],
        "energy, one sample": clean[0][:, ~seen],
    }
    coverage = {"mixture": covered(noisy[:, ~seen], mixture_draws), "energy": covered(noisy[:, ~seen], z[..., ~seen])}
    return Filled(estimates, x[:, ~seen], {name: c.mean(1) for name, c in coverage.items()}, clean)


def draw_two_pixels(found, exact):
    """Coverage of 90 % intervals with the noise drawn once and each step."""
    fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    ax.boxplot(list(found.values()), orientation="horizontal")
    ax.set_yticks([1, 2], list(found))
    ax.plot(list(exact.values()), [1, 2], "k|", ms=26, mew=2, label="exact")
    ax.axvline(0.9, color="tab:red", ls="--", label="what is promised")
    means = [np.mean(v) for v in found.values()]
    ax.set(
        title=f"the held pixel's noise: drawn once {means[0]:.3f}, each step {means[1]:.3f}",
        xlabel="coverage of 90 % intervals",
    )
    ax.legend()
    return fig


def draw_fillings(filled, x, n=6):
    """Images, what is seen of them, estimates, and four completions each; one panel a mask."""
    fig, axes = plt.subplots(1, len(filled), figsize=(13, 8), layout="constrained")
    for ax, (name, found) in zip(axes, filled.items(), strict=True):
        seen, rows = masks()[name], {"image": x[:n], "seen": torch.where(masks()[name], x[:n], 0.0)}
        for method, estimate in found.estimates.items():
            if method != "energy, one sample":
                rows[method] = x[:n].clone()
                rows[method][:, ~seen] = estimate[:n]
        for i in range(4):
            rows[f"sample {i + 1}"] = x[:n].clone()
            rows[f"sample {i + 1}"][:, ~seen] = found.completions[i, :n][:, ~seen]
        errors = {method: errors_of(e, found.truth) for method, e in found.estimates.items()}
        show_images(ax, rows, f"{name} missing, least error:\n{least(errors)}")
    return fig


# Differs from 04_restricted_boltzmann_machines.py: section_inpainting - by an energy of images
def section_inpainting(run):
    """Hold what is seen, sample the rest: do 90 % intervals cover 90 %?"""
    found, exact = measure_two_pixels(run)
    for name, values in found.items():
        mean, sem = mean_and_sem(values)
        run.metric(f"{name}: coverage", mean, sem, ("exact", exact[name]), tolerance(sem, len(values)))
    run.figure(draw_two_pixels(found, exact), "noise_once")
    filled = {name: fill_in(run, seen) for name, seen in masks().items()}
    for name, result in filled.items():
        errors = {method: errors_of(e, result.truth) for method, e in result.estimates.items()}
        best = min((m for m in errors if "energy" not in m), key=lambda m: errors[m].mean().item())
        for method, e in errors.items():
            run.metric(f"{name}: {method} (dB)", *db_and_sem(e), (f"best rival, {best}", db_and_sem(errors[best])[0]))
        for method, values in result.coverage.items():
            run.metric(f"{name}: {method}, coverage", *mean_and_sem(values), ("promised", exact_coverage(N_COMPLETIONS)))
    run.figure(draw_fillings(filled, images(run).x_test), "digits")
    run.say(inpainting_sentence(filled))


def inpainting_sentence(filled):
    """Who fills best, and whose intervals cover what they promise."""
    parts = []
    for name, result in filled.items():
        errors = {method: errors_of(e, result.truth) for method, e in result.estimates.items()}
        cover = ", ".join(f"{method} {c.mean():.2f}" for method, c in result.coverage.items())
        parts.append(f"{name}: least error by {least(errors)}, 90 % intervals cover ({cover})")
    return "; ".join(parts)


# %% 4. Adversarial robustness
# An attack's strength can be known. Labels y = ±1, x ~ N(y μ, σ² I), the rule sign(w·x): within |δ|₂ <= e the margin y w·x
# falls by e |w|₂ at most, within |δ|_∞ <= e by e |w|₁, so no attack can leave less than
#
#     Φ((w·μ - e |w|₂)/(σ |w|₂))        and        Φ((w·μ - e |w|₁)/(σ |w|₂)),
#
# and one that leaves more is too weak. Adding noise and voting certifies a radius, s Φ⁻¹(p_A), p_A the winner's share of the
# votes under N(0, s² I) (Cohen et al. 2019); for this rule it is the distance |w·x|/|w|₂ exactly.


def project(delta, size, norm):
    """The nearest point to delta (B, d) with |delta| <= size, in L2 or L∞."""
    if norm == "Linf":
        return delta.clamp(-size, size)
    return delta * (size / delta.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)


def ascents(loss_and_slope, x, size, norm, n_steps, n_restarts=1, box=None):
    """Projected gradient ascent (Madry et al. 2018) from x (B, d), then from random points: of each its points
    (n_steps + 1, B, d) and their losses (n_steps + 1, B); loss_and_slope(x') is (B,) and (B, d)."""
    for restart in range(n_restarts):
        delta = torch.zeros_like(x) if restart == 0 else project(size * (2 * torch.rand_like(x) - 1), size, norm)
        points, losses = [], []
        for _ in range(n_steps + 1):
            there = x + delta if box is None else (x + delta).clamp(*box)
            loss, slope = loss_and_slope(there)
            points.append(there)
            losses.append(loss)
            way = slope.sign() if norm == "Linf" else slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
            delta = project(there - x + 2.5 * size / n_steps * way, size, norm)
        yield torch.stack(points), torch.stack(losses)


def highest(points, losses, n=1):
    """Of points (T, B, d) the n with the highest losses (T, B), for each of B by itself: (n, B, d)."""
    rows = losses.topk(min(n, len(losses)), 0).indices
    return points.gather(0, rows[..., None].expand(-1, -1, points.shape[2]))


def attack(*ascent, **options):
    """The point (B, d) with the highest loss that such ascents saw: the worst one, if the loss has no noise."""
    points, losses = zip(*ascents(*ascent, **options), strict=True)
    return highest(torch.cat(points), torch.cat(losses))[0]


def linear_loss(w, y):
    """Logistic loss of the rule w (d,) at points (B, d) with labels ±1, and its slope."""

    def loss_and_slope(x):
        margin = y * (x @ w)
        return nn.functional.softplus(-margin), -(y * (-margin).sigmoid())[:, None] * w

    return loss_and_slope


def theory_linear_accuracy(w, mu, sigma, size, norm):
    """Accuracy of sign(w·x) under the best attack."""
    loss = size * (w.abs().sum() if norm == "Linf" else w.norm())
    return scipy.stats.norm.cdf(((w @ mu - loss) / (sigma * w.norm())).item())


def smoothed_radius(rule, x, s, n, confidence=None):
    """s Φ⁻¹(p_A) from n noisy votes of rule(x + s n) (bool) at one point x (d,); with `confidence`, p_A is the lower end of
    its Clopper-Pearson interval, and the radius is certified (Cohen et al. 2019), at half the error for each of the two
    classes: these votes also choose the winner, for which they take others."""
    votes = sum(rule(x + s * torch.randn(5000, len(x), dtype=x.dtype)).sum().item() for _ in range(n // 5000))
    votes = max(votes, n // 5000 * 5000 - votes)
    n = n // 5000 * 5000
    share = votes / n if confidence is None else scipy.stats.beta.ppf((1 - confidence) / 2, votes, n - votes + 1)
    return s * scipy.stats.norm.ppf(min(share, 1 - 1 / (2 * n)))


SIZES = {"L2": (0.5, 1.0), "Linf": (0.05, 0.1)}


class OnTwoGaussians(NamedTuple):
    """{(norm, size): accuracy (R,)}, and {..: theory}; after one small step; certified radii (R,) and their distance."""

    accuracy: dict
    theory: dict
    weak: list
    radii: list  # (R, 2): estimated, certified with 99.9 % confidence
    distance: float


def measure_two_gaussians(run, d=64, sigma=1.0, s=0.5, distance=0.4):
    """OnTwoGaussians, for a rule that is somewhat off the best one."""
    mu = torch.full((d,), 2 / d**0.5, dtype=torch.float64)
    w = mu + 0.1 * torch.randn(d, dtype=torch.float64)
    keys = [(norm, size) for norm, sizes in SIZES.items() for size in sizes]
    accuracy, weak, radii, n = {key: [] for key in keys}, [], [], run.config.n_points
    point = distance / w.norm() * w
    for _ in range(run.config.n_repeats):
        y = (torch.rand(n) < 0.5).double() * 2 - 1
        x = y[:, None] * mu + sigma * torch.randn(n, d, dtype=torch.float64)
        for norm, size in keys:
            hit = attack(linear_loss(w, y), x, size, norm, max(run.config.n_attack, 2))
            accuracy[norm, size].append((y * (hit @ w) > 0).double().mean().item())
        weak.append((y * ((x + SIZES["Linf"][1] * torch.randn_like(x).sign()) @ w) > 0).double().mean().item())
        radii.append([smoothed_radius(lambda z: z @ w > 0, point, s, 20_000, level) for level in (None, 0.999)])
    return OnTwoGaussians(
        accuracy, {key: theory_linear_accuracy(w, mu, sigma, key[1], key[0]) for key in keys}, weak, radii, distance
    )


# Digits, L∞, 2 grey levels of the 16 (0.25). Five defences: nothing; noise on the training images; adversarial training;
# JEM, whose logits f are an energy -log Σ exp f as well (module 08); and *purification*: run Langevin dynamics of the energy
# from the attacked image, clean it by one step (1), classify that (Hill et al. 2021; theirs are long chains, here they take
# ten steps, so that a gradient can pass through all of them). No defence is tuned; each is one setting.
#
# One protocol: 20 steps of 2.5 e/20; by the margin loss and by cross entropy one ascent from the image and one from a random
# point near it. Where a defence is noisy the highest of many losses is high by luck (the winner's curse): so the last point
# and the three highest of each ascent are judged anew, by eight fresh answers, and the worst of them by one more, which
# counts. Three attacks: *transfer*, made on the plain classifier; *BPDA + EOT* (backward pass differentiable approximation,
# expectation over transformation), which passes the purifier backwards as if it were the identity and averages over its
# noise (Athalye et al. 2018); and the *full gradient* through all Langevin steps. For a defence without purifier the last
# two are the same attack, for the plain classifier all three. More knowledge must not hurt: full <= BPDA + EOT <= transfer,
# or an attack was too weak. What a defence is worth is its *smallest* number.


class Jem(nn.Module):
    """Logits f(x) (B, 10) beside an auto-encoder's energy: f_y(x) = h(x)_y - |x - g(x)|²/(2σ²)."""

    def __init__(self, d, width, sigma):
        super().__init__()
        self.body, self.head = AutoEncoderEnergy(1, d, width, sigma), nn.Linear(width, 10)

    def forward(self, x):
        z = self.body.before(x[None])
        return self.head(silu(z))[0] - self.body.error(x[None], z)[0].square().sum(1, keepdim=True) / (
            2 * self.body.sigma**2
        )

    def energy(self, x):
        """-log Σ_y exp f_y(x), (B,)."""
        return -self(x).logsumexp(1)

    @torch.no_grad()
    def slope(self, x):
        """∇E (B, d) by hand: r/σ² - silu'(z) · (r W₂ᵀ/σ² + softmax(h) H) W₁ᵀ, H the head's weights."""
        body, scale = self.body, self.body.sigma**2
        z = body.before(x[None])
        r, share = body.error(x[None], z) / scale, self.head(silu(z)).softmax(-1)
        back = torch.ops.aten.silu_backward(r @ body.w2.mT + share @ self.head.weight, z)
        return (r - back @ body.w1.mT)[0]


@torch.enable_grad()
def train_joint(x, y, config):
    """Cross entropy on noisy images, and the two phases for E = -log Σ exp f (Grathwohl et al. 2020)."""
    learner = Learner(Jem(x.shape[1], config.width, config.sigma).to(x.device), config.learning_rate / 2, config.n_jem)
    b, jem = config.batch_size, learner.net
    chains = torch.randn(max(512 // b, 1), b, x.shape[1], device=x.device)
    for step in Progress(range(config.n_jem), "JEM"):
        block = chains[step % len(chains)]
        fresh = torch.rand(b, 1, device=x.device) < 0.01
        block.copy_(torch.where(fresh, torch.randn_like(block), block))
        block.copy_(langevin(jem.slope, block, config.n_langevin, config.step_size))
        rows = torch.randint(len(x), (b,), device=x.device)
        logits = jem(x[rows] + config.data_noise * torch.randn(b, x.shape[1], device=x.device))
        learner.down(cross_entropy(logits, y[rows]) + two_phase_loss(-logits.logsumexp(1)[None], jem.energy(block)[None]))
    must_be_finite("JEM", *learner.average.parameters())
    return learner.average


def margin_loss(logits, y):
    """The highest other logit minus the right one, (B,): positive where the classifier is wrong."""
    right = nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(right, -math.inf).amax(1) - logits[right]


def through(logits, y, loss):
    """loss_and_slope for `attack`, by autograd through all that logits(x) does."""

    @torch.enable_grad()
    def loss_and_slope(x):
        x = x.detach().requires_grad_(True)
        values = loss(logits(x), y)
        return values.detach(), torch.autograd.grad(values.sum(), x)[0]

    return loss_and_slope


class Purifier(NamedTuple):
    """Langevin steps of an energy from x and one step of cleaning, averaged over `n_draws` of noise in the logits."""

    energy: AutoEncoderEnergy
    classifier: nn.Module
    noise: float
    step_size: float
    n_steps: int = 10
    n_draws: int = 4

    def clean(self, x):
        """x (B, d) -> purified (n_draws B, d); autograd passes through every step."""
        z = x.repeat(self.n_draws, 1)[None]
        for _ in range(self.n_steps):
            z = z - self.step_size / 2 * self.energy.slope(z) + self.step_size**0.5 * torch.randn_like(z)
        return (z - self.noise**2 * self.energy.slope(z))[0]

    def logits_after(self, clean):
        """Mean log probability over the draws, (B, 10)."""
        return self.classifier(clean).log_softmax(1).view(self.n_draws, -1, 10).mean(0)

    def __call__(self, x):
        return self.logits_after(self.clean(x))

    def as_identity(self, x):
        """The same values, but backwards the purifier is the identity: BPDA."""
        clean = self.clean(x.detach()).detach()
        return self.logits_after(clean + (x - x.detach()).repeat(self.n_draws, 1))


def cross_entropies(logits, y):
    """Cross entropy of each image, (B,)."""
    return cross_entropy(logits, y, reduction="none")


EPSILON = 0.25  # L∞, in units of images in [-1, 1]: two of the 16 grey levels


N_KEPT, N_JUDGED = 3, 8  # points of an ascent that are judged anew, besides its last; answers that judge each


def worst_point(logits, x, y, config, n_restarts=2):
    """The worst of what ascents by the margin and by cross entropy found, by the mean margin in fresh answers."""
    found = []
    for loss in (margin_loss, cross_entropies):
        slope = through(logits, y, loss)
        for points, losses in ascents(slope, x, EPSILON, "Linf", config.n_attack, n_restarts, (-1, 1)):
            found += [points[-1:], highest(points, losses, N_KEPT)]
    found = torch.cat(found)
    with torch.no_grad():
        margins = torch.stack([sum(margin_loss(logits(points), y) for _ in range(N_JUDGED)) for points in found])
    return highest(found, margins)[0]


def right(logits, x, y):
    """Where logits(x) name y, (B,)."""
    with torch.no_grad():
        return (logits(x).argmax(1) == y).double().cpu()


def adversarial(net, x, y):
    """`disturb` for `learn_classifier`: five steps of the same attack on the batch (Madry et al. 2018)."""
    return attack(through(net, y, cross_entropies), x, EPSILON, "Linf", 5, 1, (-1, 1))


@functools.cache
@own_random_stream
def defences(run):
    """{name: logits(x)}."""
    torch.manual_seed(run.seed + 3)
    digits, config = images(run), run.config
    x, y = digits.x.float().to(run.device), digits.y.to(run.device)
    plain, noisy = learn_classifier(x, y, config), learn_classifier(x, y, config, noise=0.4)
    trained = learn_classifier(x, y, config, disturb=adversarial)
    purifier = Purifier(digits_energy(run), noisy, config.data_noise, config.step_size)
    return {"plain": plain, "noise": noisy, "adversarial": trained, "JEM": train_joint(x, y, config), "purified": purifier}


ATTACKS = ("none", "transfer", "BPDA + EOT", "full gradient")


def measure_defences(run):
    """{defence: {attack: right (N,)}} on the first test images."""
    config, digits = run.config, images(run)
    x = digits.x_test[: config.n_images].float().to(run.device)
    y, found = digits.y_test[: config.n_images].to(run.device), {}
    transferred = worst_point(defences(run)["plain"], x, y, config)
    for name, logits in defences(run).items():
        points = {"none": x, "transfer": transferred}
        if name != "plain":  # whose full gradient is what is transferred
            points["full gradient"] = worst_point(logits, x, y, config)
        if isinstance(logits, Purifier):  # without it the last two are one
            points["BPDA + EOT"] = worst_point(logits.as_identity, x, y, config)
        judged = {kind: right(logits, point, y) for kind, point in points.items()}
        full = judged.get("full gradient", judged["transfer"])
        found[name] = {kind: judged.get(kind, full) for kind in ATTACKS}
    return found


def out_of_order(found):
    """By how much the order full <= BPDA + EOT <= transfer <= none is broken at most, in accuracy (0: it holds), and what
    so few images may explain. Two names of one attack share one tensor, and are not compared."""
    ways = [(row[weak], row[strong]) for row in found.values() for weak, strong in zip(ATTACKS, ATTACKS[1:], strict=False)]
    ways = [(weak, strong) for weak, strong in ways if strong is not weak]
    broken = []
    for weak, strong in ways:
        mean, sem = mean_and_sem(strong - weak)
        if mean > 0:
            broken.append((mean, tolerance(sem, len(weak), len(ways))))
    return max(broken, key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))  # the one that is nearest to OFF, or beyond


def worth(row):
    """The smallest accuracy under any attack of {attack: right (N,)}."""
    return strongest(row).mean().item()


def strongest(row):
    """right (N,) under the attack that leaves least, of {attack: right (N,)}."""
    return min(row.values(), key=lambda values: values.mean().item())


def kept_most(found):
    """The defences that keep most under their strongest attacks, the best first."""
    return leaders({name: strongest(row) for name, row in found.items()})


def draw_two_gaussians(found):
    """Accuracy under attack beside the formula."""
    fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    names = [f"{norm}, e = {size}" for norm, size in found.accuracy]
    means, sems = zip(*(mean_and_sem(v) for v in found.accuracy.values()), strict=True)
    ax.plot(names, list(found.theory.values()), "k_", ms=26, mew=2, label="the least possible, exact")
    ax.errorbar(names, means, sems, fmt="o", color="tab:orange", label="under attack")
    ax.axhline(np.mean(found.weak), color="tab:blue", ls=":", label="random signs, Linf, e = 0.1: no attack at all")
    gap = np.abs(np.subtract(means, list(found.theory.values()))).max()
    ax.set(
        title=f"an attack whose strength is known: {gap:.3f} off at most", ylabel="accuracy", ylim=(0.5, 1), xlim=(-0.5, 3.5)
    )
    ax.legend(loc="lower left")
    return fig


def draw_defences(found):
    """Accuracy of each defence under each attack."""
    fig, ax = plt.subplots(figsize=(11, 5), layout="constrained")
    for i, kind in enumerate(ATTACKS):
        means, sems = zip(*(mean_and_sem(row[kind]) for row in found.values()), strict=True)
        ax.bar(
            np.arange(len(found)) + 0.2 * (i - 1.5), means, 0.19, yerr=sems, label=kind, color=plt.cm.viridis(0.9 - 0.28 * i)
        )
    best = kept_most(found)
    ax.set(
        title=f"under the strongest attack most is kept by {best_of(best)}: {worth(found[best[0]]):.2f}",
        ylabel="accuracy",
        xticks=range(len(found)),
        xticklabels=list(found),
        ylim=(0, 1.02),
    )
    ax.legend(title="attack, Linf, 2 of 16 grey levels", loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4)
    return fig


def section_robustness(run):
    """An attack must reach the exact bound where there is one; a defence is worth what the strongest attack leaves."""
    found = measure_two_gaussians(run)
    for (norm, size), values in found.accuracy.items():
        mean, sem = mean_and_sem(values)
        theory = ("exact", found.theory[norm, size])
        run.metric(f"two Gaussians, {norm} {size}: accuracy", mean, sem, theory, tolerance(sem, len(values)))
    (mean, sem), certified = (mean_and_sem([pair[i] for pair in found.radii]) for i in (0, 1))
    run.metric("smoothing: radius by votes", mean, sem, ("distance", found.distance), tolerance(sem, len(found.radii)))
    run.metric("smoothing: radius certified to 99.9 %", *certified, ("distance", found.distance))
    run.figure(draw_two_gaussians(found), "two_gaussians")
    table = measure_defences(run)
    for name, row in table.items():
        for kind, values in row.items():
            run.metric(
                f"{name}: accuracy, attack {kind}", *mean_and_sem(values), ("plain", table["plain"][kind].mean().item())
            )
    excess, allowed_excess = out_of_order(table)
    run.metric("order of the attacks broken by", excess, None, ("it holds", 0), allowed_excess)
    run.figure(draw_defences(table), "digits")
    run.say(robustness_sentence(table))


def robustness_sentence(found):
    """Who keeps most under the strongest attack, and what purification seemed to be worth before it."""
    best, row = kept_most(found), found["purified"]
    weak, strong = row["BPDA + EOT"].mean().item(), row["full gradient"].mean().item()
    lower, sem = mean_and_sem(row["BPDA + EOT"] - row["full gradient"])
    taken = "the full gradient takes back a part" if lower > 2 * sem else "no more than chance explains"
    purified = f"purification {weak:.2f} under BPDA + EOT and {strong:.2f} under the full gradient: {taken}"
    return f"most is kept by {best_of(best)}, {worth(found[best[0]]):.2f}; {purified}"


# %% 5. Composition
# Energies add (Du, Li & Mordatch 2020). For each operation there is a case in which the result is known.
#
#     AND:  p₁p₂ ∝ exp(-E₁ - E₂). Of mixtures it is a mixture: N(x; m, C) N(x; m', C') = N(m; m', C + C') N(x; m'', C''),
#           C'' = (C⁻¹ + C'⁻¹)⁻¹, m'' = C''(C⁻¹ m + C'⁻¹ m'), so the weights are π π' N(m; m', C + C'). A chain has steps
#           and an end, so its law π is not quite p₁p₂. Distance is total variation on a grid, TV = Σ |π - p₁p₂|/2 over its
#           cells. Samples of both can be drawn in pairs that fall into different cells with chance TV(π, p₁p₂) only. So the
#           mean distance of the chains' ends to p₁p₂ is that of exact samples up to TV(π, p₁p₂), a number below.
#     OR:   exp(-E₁) + exp(-E₂) = Z₁ p₁ + Z₂ p₂ mixes Z₁ : Z₂ and not 1 : 1. An energy is defined up to a constant, so the
#           answer depends on what nobody chose; E + log Z repairs it, where log Z is known.
#     NOT:  p₁/p₂ᵃ ∝ exp(-E₁ + a E₂). Of N(0, s₁²) and N(0, s₂²) it is a Gaussian of precision λ = 1/s₁² - a/s₂² if and only
#           if λ > 0, that is a < s₂²/s₁². Langevin has variance 1/(λ (1 - ε λ/4)) then; beyond, each step multiplies x by
#           1 + (ε/2)|λ|, and the chain leaves. It may take a while, and a short run looks like a success.


def product_of(p, q):
    """The normalised product of two mixtures, K K' Gaussians."""
    weights, means, covariances = [], [], []
    for w, m, c in zip(*p, strict=True):
        for w2, m2, c2 in zip(*q, strict=True):
            overlap = mixture_log_density(Gaussians(torch.ones(1).double(), m2[None], (c + c2)[None]), m[None]).exp()[0]
            together = torch.linalg.inv(torch.linalg.inv(c) + torch.linalg.inv(c2))
            weights.append(w * w2 * overlap)
            means.append(together @ (torch.linalg.solve(c, m) + torch.linalg.solve(c2, m2)))
            covariances.append(together)
    weights = torch.stack(weights)
    return Gaussians(weights / weights.sum(), torch.stack(means), torch.stack(covariances))


def mixture_slope(mixture, x):
    """∇(-log p) (N, d)."""
    pulls = torch.linalg.solve(mixture.covariances, (x[:, None] - mixture.means).permute(1, 2, 0))  # (K, d, N)
    return torch.einsum("nk,kdn->nd", log_parts(mixture, x).softmax(1), pulls)


def two_mixtures():
    """Two mixtures in the plane that overlap."""
    eye = torch.eye(2, dtype=torch.float64)
    wide, tall = torch.diag(torch.tensor([1.5, 0.4])).double(), torch.diag(torch.tensor([0.4, 1.5])).double()
    p = Gaussians(
        torch.tensor([0.6, 0.4]).double(), torch.tensor([[0.0, 1.0], [0.5, -0.6]]).double(), torch.stack([wide, wide])
    )
    return p, Gaussians(
        torch.tensor([0.3, 0.7]).double(), torch.tensor([[-0.8, 0.0], [1.0, 0.3]]).double(), torch.stack([tall, eye])
    )


def cells(x, box=3.0, n=12):
    """Counts (n, n) of points (N, 2) in a grid of [-box, box]^2, and one number of those outside."""
    at = ((x + box) * n / (2 * box)).floor().long()
    inside = ((at >= 0) & (at < n)).all(1)
    counts = torch.bincount(at[inside] @ torch.tensor([n, 1]), minlength=n * n)
    return torch.cat([counts, (~inside).sum()[None]])


def exact_cells(mixture, box=3.0, n=12, fine=10):
    """The share of a density in each of these cells, by a fine midpoint rule."""
    axis = -box + 2 * box / (n * fine) * (torch.arange(n * fine, dtype=torch.float64) + 0.5)
    p = mixture_log_density(mixture, torch.cartesian_prod(axis, axis)).exp() * (axis[1] - axis[0]) ** 2
    p = p.view(n, fine, n, fine).sum((1, 3)).flatten()
    return torch.cat([p, (1 - p.sum())[None].clamp(min=0)])


def cell_distance(p, q):
    """Σ |p - q|/2."""
    return (p - q).abs().sum().item() / 2


def exact_chain_cells(slope, step_size, n_steps, box=3.0, n=12, reach=4.5):
    """The same for a Langevin chain after n_steps from N(0, I): its kernel is two normal laws, one an axis; by a
    midpoint rule on [-reach, reach]² whose points are √ε apart, the width of the kernel; the last step in closed form."""
    h = step_size**0.5
    axis = h * (torch.arange(-int(reach / h), int(reach / h), dtype=torch.float64) + 0.5)
    points = torch.cartesian_prod(axis, axis)
    middle, edges = points - step_size / 2 * slope(points), torch.linspace(-box, box, n + 1, dtype=torch.float64)
    first, second = ((-(((axis - m[:, None]) / h) ** 2) / 2).exp() / (2 * math.pi) ** 0.5 for m in middle.T)
    p = (-points.square().sum(1) / 2).exp() * h**2 / (2 * math.pi)
    for _ in range(n_steps - 1):
        p = (first.T @ (p[:, None] * second)).flatten()
    first, second = (torch.special.ndtr((edges - m[:, None]) / h).diff() for m in middle.T)
    p = (first.T @ (p[:, None] * second)).flatten()
    return torch.cat([p, (1 - p.sum())[None].clamp(min=0)])


class And(NamedTuple):
    """Largest gap between the product's log density and the sum of the energies, up to a constant; total variation (R,) of
    chains, of exact samples, and of samples of the first factor alone, to the product; of the chain's own law, exactly; and
    some chain ends."""

    gap: float
    chains: list
    exact_samples: list
    first_alone: list
    bias: float
    ends: torch.Tensor


def measure_and(run, step_size=0.02, n_steps=400):
    """Langevin on E₁ + E₂ of two mixtures, from N(0, I), beside their product in closed form."""
    p, q = two_mixtures()
    both, x = product_of(p, q), 2 * torch.randn(500, 2, dtype=torch.float64)
    difference = mixture_log_density(both, x) - mixture_log_density(p, x) - mixture_log_density(q, x)

    def slope(z):
        return mixture_slope(p, z) + mixture_slope(q, z)

    share, n = exact_cells(both), run.config.n_points
    bias = cell_distance(exact_chain_cells(slope, step_size, n_steps), share)
    found = And((difference - difference.mean()).abs().max().item(), [], [], [], bias, None)
    for _ in range(run.config.n_repeats):
        ends = langevin(slope, torch.randn(n, 2, dtype=torch.float64), n_steps, step_size)
        for values, points in (
            (found.chains, ends),
            (found.exact_samples, draw_gaussians(both, n)),
            (found.first_alone, draw_gaussians(p, n)),
        ):
            values.append(cell_distance(cells(points) / n, share))
    return found._replace(ends=ends)


def log_z_by_quadrature(energy):
    """log ∫ exp(-E) of an energy on the line."""
    return math.log(quad(lambda x: math.exp(-energy(x)), -40, 40, points=[-2, 0, 2], epsabs=1e-12, limit=400)[0])


def or_energy(e1, e2):
    """-log(exp(-E₁) + exp(-E₂)), of numbers."""
    return -np.logaddexp(-e1, -e2)


def share_right(energy, middle=0.0):
    """The mass right of `middle` under exp(-E)/Z, by quadrature."""
    z, right_ = (
        quad(lambda x: math.exp(-energy(x)), low, 40, points=[-2, 0.0, 2], epsabs=1e-12, limit=400)[0]
        for low in (-40, middle)
    )
    return right_ / z


class Or(NamedTuple):
    """The mass right of 0 of logsumexp as it stands, and of the repaired one; and what they should be."""

    trap: float
    trap_exact: float
    repaired: float
    repaired_exact: float


def measure_or(narrow=0.2, wide=1.0, at=6.0):
    """N(-6, wide²) or N(6, narrow²), as energies (x ∓ 6)²/(2 s²): Z = s √2π, so the shares are wide : narrow, not 1 : 1."""

    def left(x):
        return (x + at) ** 2 / (2 * wide**2)

    def right_(x):
        return (x - at) ** 2 / (2 * narrow**2)

    def trap(x):
        return or_energy(left(x), right_(x))

    z1, z2 = log_z_by_quadrature(left), log_z_by_quadrature(right_)

    def repaired(x):
        return or_energy(left(x) + z1, right_(x) + z2)

    return Or(share_right(trap), theory_or_share(wide, narrow), share_right(repaired), 0.5)


def theory_or_share(s1, s2):
    """Z₂/(Z₁ + Z₂) of two Gaussian energies x²/(2 s²)."""
    return s2 / (s1 + s2)


def theory_not_limit(s1, s2):
    """The largest a for which N(0, s₁²)/N(0, s₂²)ᵃ can be normalised."""
    return s2**2 / s1**2


def theory_not(a, s1, s2, step_size, n_steps, start):
    """E x² after n_steps of Langevin from N(0, start²): ρ^2n start² + ε (1 - ρ^2n)/(1 - ρ²), ρ = 1 - (ε/2) λ."""
    rho2 = (1 - step_size / 2 * (1 / s1**2 - a / s2**2)) ** 2
    grown = rho2**n_steps
    return grown * start**2 + step_size * (n_steps if rho2 == 1 else (1 - grown) / (1 - rho2))


NOT_WEIGHTS = (0.0, 1.0, 2.0, 3.0, 3.8, 4.0, 4.2, 5.0)


def measure_not(run, s1=1.0, s2=2.0, step_size=0.1, n_steps=400):
    """{a: E x² (R,) after n_steps on E₁ - a E₂}, and {a: theory}; the chains begin as N(0, 1)."""
    measured = {a: [] for a in NOT_WEIGHTS}
    for _ in range(run.config.n_repeats):
        for a, values in measured.items():
            x = torch.randn(run.config.n_points, dtype=torch.float64)
            x = langevin(lambda x, a=a: x / s1**2 - a * x / s2**2, x, n_steps, step_size)
            values.append(x.square().mean().item())
    return measured, {a: theory_not(a, s1, s2, step_size, n_steps, 1.0) for a in NOT_WEIGHTS}


# Digits: three energies, each conditional on one label: the class, and two attributes that are *measured* in any image, so
# they need no judge: bold or thin (mean grey level), leaning or not (correlation of row and column under the ink), each
# split at its median over the training images, and learnt from the outer thirds. What should be added? If the labels are
# independent given the image,
#
#     p(x | a, b) ∝ p(x | a) p(x | b)/p(x),     E = E(x | a) + E(x | b) - E(x):
#
# a NOT with a = 1 for each further label, with the danger above. Without the division, E(x | a) + E(x | b) is p(x) too
# sharp, by a power, and its wells are as many times stiffer, so Langevin takes as many times smaller steps; the mean of the
# energies has the right width. All three are drawn, beside one energy that was trained on the three labels at once, with
# the medians' labels of *all* images: under a half are clear in both. Some combinations have no training image even so. Of
# those that energy knows nothing, their biases stay where they began, while a sum needs examples of each label only: this
# share of the requests is recorded. Requests are uniform, so an image that ignores them succeeds with chance 1/10 for a
# class and 1/2 for each attribute, exactly.


def boldness(x):
    """Mean grey level of images (N, 64)."""
    return x.mean(1)


def leaning(x):
    """Correlation of row and column under the ink of images (N, 64): positive where the top leans left, as in \\."""
    ink = (x.clamp(-1, 1).double() + 1).view(-1, 8, 8) + 1e-9
    ink = ink / ink.sum((1, 2), keepdim=True)
    at = torch.arange(8, dtype=torch.float64, device=x.device)
    rows, columns = at.view(8, 1), at.view(1, 8)
    dr, dc = (a - (ink * a).sum((1, 2), keepdim=True) for a in (rows, columns))
    both, row, column = ((ink * a * b).sum((1, 2)) for a, b in ((dr, dc), (dr, dr), (dc, dc)))
    return both / (row * column).sqrt()


ATTRIBUTES = (boldness, leaning)


def attributes_of(x, x_train):
    """Labels 0 or 1 (2, N) of images x: whether each attribute exceeds its median over x_train."""
    return torch.stack([(f(x) > f(x_train).median()).long() for f in ATTRIBUTES])


def clear_attributes(x):
    """The same over x itself, but -1 in the middle third, where a label says little: energies learn from the outer ones."""
    values = torch.stack([f(x) for f in ATTRIBUTES])
    low, high = (values.quantile(q, 1, keepdim=True) for q in (1 / 3, 2 / 3))
    return torch.where(values > high, 1, torch.where(values < low, 0, -1))


def at_once(labels):
    """One label of 40 for class, bold, leaning (3, N)."""
    return 4 * labels[0] + 2 * labels[1] + labels[2]


def without_example(asked, known):
    """The share of requests `asked` (3, n) whose combination is not one of `known` (3, N)."""
    return (~torch.isin(at_once(asked), at_once(known))).double().mean().item()


@functools.cache
@own_random_stream
def conditional_energies(run):
    """Four networks side by side: E(x | class), E(x | bold), E(x | leaning), and one of all three labels at once."""
    torch.manual_seed(run.seed + 4)
    x, y = images(run).x, images(run).y
    every = at_once(torch.cat([y[None], attributes_of(x, x)]))
    labels = torch.cat([y[None], clear_attributes(x), every[None]])
    return train_energies(
        x.float().to(run.device), labels.to(run.device), run.config, run.config.n_composed, "four energies", 40
    )


@functools.cache
@own_random_stream
def independent_classifier(run):
    """A classifier that no energy has seen, with noise on its images; and its accuracy on test images."""
    torch.manual_seed(run.seed + 5)
    x, y, x_test, y_test = images(run)
    net = learn_classifier(x.float().to(run.device), y.to(run.device), run.config, noise=0.3)
    return net, right(net, x_test.float().to(run.device), y_test.to(run.device)).mean().item()


def requests(n, device):
    """Uniform requests: class, bold, leaning, (3, n)."""
    return torch.stack([torch.arange(n) % 10, torch.arange(n) // 10 % 2, torch.arange(n) // 20 % 2]).to(device)


def composed_slope(energies, whole, labels, used, way):
    """∇E of networks `used` given labels (3, N), by the sum, their mean, or the sum minus all but one E(x) (`whole`); or of
    the network that knows all labels at once."""

    def slope(z):
        if way == "at once":
            return energies[3].slope(z[None], at_once(labels)[None])[0]
        total = sum(energies[i].slope(z[None], labels[i : i + 1])[0] for i in used)
        if way == "mean":
            return total / len(used)
        return total - (len(used) - 1) * whole.slope(z[None])[0] if way == "divided" else total

    return slope


@torch.no_grad()
def draw_composed(run, labels, used, way):
    """Images (N, 64) from noise, cleaned by one step of the same energy."""
    config, energies = run.config, [conditional_energies(run).one(i) for i in range(4)]
    slope, n = composed_slope(energies, digits_energy(run), labels, used, way), len(used) if way in ("sum", "divided") else 1
    z = torch.randn(labels.shape[1], 64, device=run.device)
    z = langevin(slope, z, n * config.n_chain_steps, config.step_size / n)
    return z - config.data_noise**2 / (n if way == "sum" else 1) * slope(z)  # n densities' noise is n times as narrow


def succeeded(run, x, labels, used):
    """Where images (N, 64) are all that was asked for, (N,): class by the independent classifier, attributes measured."""
    x = torch.nan_to_num(x, 0.0, 0.0, 0.0).clamp(-1, 1)
    found = torch.cat(
        [independent_classifier(run)[0](x).argmax(1)[None], attributes_of(x.cpu(), images(run).x).to(x.device)]
    )
    return (found == labels)[list(used)].all(0).double().cpu()


def theory_chance(used):
    """Success of images that ignore a uniform request."""
    return math.prod((0.1, 0.5, 0.5)[i] for i in used)


REQUESTS = {"class": (0,), "bold": (1,), "leaning": (2,), "class, bold": (0, 1), "class, bold, leaning": (0, 1, 2)}
WAYS = ("sum", "mean", "divided", "at once")  # the last only where all three labels are asked for


class Composed(NamedTuple):
    """{(request, way): success (N,)}, {(request, way): share of images that left |x| < 10}, and images {..: (N, 64)}; and
    of real test images whose own labels are the request: success (N,); and the share of requests without an example."""

    success: dict
    lost: dict
    drawn: dict
    real: dict
    unseen: float


@torch.no_grad()
def measure_composed(run, n=200):
    """Composed: every request, by every way."""
    n = n if run.config.n_chain_steps > 20 else 40
    labels, digits = requests(n, run.device), images(run)
    known = torch.cat([digits.y[None], attributes_of(digits.x, digits.x)])
    found = Composed({}, {}, {}, {}, without_example(labels.cpu(), known))
    x_test = digits.x_test.float().to(run.device)
    own = torch.cat([digits.y_test[None], attributes_of(digits.x_test, digits.x)]).to(run.device)
    for name, used in REQUESTS.items():
        found.real[name] = succeeded(run, x_test, own, used)
        for way in WAYS[: (1, 3, 4)[len(used) - 1]]:
            x = draw_composed(run, labels, used, way)
            found.drawn[name, way], found.success[name, way] = x, succeeded(run, x, labels, used)
            found.lost[name, way] = (~(x.abs().amax(1) < 10)).double().mean().item()
    return found


def draw_and(found):
    """The product's density, and where the chains on the sum of the energies ended."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    axis = torch.linspace(-3, 3, 121, dtype=torch.float64)
    p = mixture_log_density(product_of(*two_mixtures()), torch.cartesian_prod(axis, axis)).exp().view(121, 121)
    axes[0].imshow(to_numpy(p).T, origin="lower", extent=(-3, 3, -3, 3), cmap="magma")
    axes[0].scatter(*to_numpy(found.ends[:400]).T, s=4, c="white", alpha=0.6)
    axes[0].set(title="AND: product in closed form, and chains", xlabel="$x_1$", ylabel="$x_2$", xlim=(-3, 3), ylim=(-3, 3))
    names = {"chains on the sum": found.chains, "exact samples": found.exact_samples, "one factor alone": found.first_alone}
    axes[1].barh(
        list(names), [np.mean(v) for v in names.values()], xerr=[np.std(v) for v in names.values()], color="tab:orange"
    )
    axes[1].set(title="total variation to the product", xlabel="on 144 cells; exact samples are the floor")
    return fig


def draw_not(measured, theory, limit):
    """The chains' mean square after 400 steps, against a."""
    fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    ax.plot(list(theory), list(theory.values()), "k_", ms=26, mew=2, label="theory, after 400 steps")
    ax.plot(list(measured), [np.mean(v) for v in measured.values()], "o", color="tab:orange", label="chains")
    ax.axvline(limit, color="tab:red", ls="--", label=f"no density from a = {limit:g} on")
    ax.set(
        title=f"NOT: mean square {np.mean(measured[3.0]):.2g} at a = 3, {np.mean(measured[5.0]):.2g} at a = 5",
        xlabel="a, in $p_1/p_2^a$",
        ylabel="mean of $x^2$",
        yscale="log",
    )
    ax.legend()
    return fig


def draw_composed_digits(found, n=10):
    """Success by request and way beside chance; and images of the three-way request."""
    fig, axes = plt.subplots(1, 2, figsize=(14, 4.6), layout="constrained", width_ratios=(1, 1.1))
    for i, way in enumerate(WAYS):
        names = [name for name in REQUESTS if (name, way) in found.success]
        at = [list(REQUESTS).index(name) + 0.2 * (i - 1.5) for name in names]
        axes[0].bar(at, [found.success[name, way].mean().item() for name in names], 0.19, label=LABELS[way])
    for i, (name, used) in enumerate(REQUESTS.items()):
        axes[0].hlines(theory_chance(used), i - 0.4, i + 0.4, "k", label="chance" if i == 0 else None)
        axes[0].hlines(found.real[name].mean().item(), i - 0.4, i + 0.4, "0.5", ls="--", label="real" if i == 0 else None)
    three = "class, bold, leaning"
    rates = [found.success[three, way].mean().item() for way in ("sum", "at once")]
    title = f"three labels at once: {rates[0]:.0%} by adding energies, {rates[1]:.0%} by one of all"
    axes[0].set(title=title, ylabel="success", xticks=range(len(REQUESTS)), ylim=(0, 1.05))
    axes[0].set_xticklabels([name.replace(", ", ",\n") for name in REQUESTS])
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=6, fontsize=8)
    rows = {
        f"{LABELS[way]}, {part}": found.drawn[three, way][first : first + n]
        for way in WAYS
        for part, first in (("thin", 0), ("bold", 10))
    }
    show_images(axes[1], rows, "digits 0 to 9, thin and bold, tops to the right")
    return fig


LABELS = {"sum": "sum", "mean": "mean", "divided": "sum / p(x)", "at once": "one energy"}


def record_composition(run, found, either, measured, theory):
    """AND, OR and NOT beside their closed forms."""
    run.metric("AND: product - sum of energies, largest", found.gap, against=("exact", 0), within=1e-9)
    run.metric("AND: total variation, the chain's law", found.bias, against=("the product", 0))
    allowed = tolerance(mean_and_sem(np.subtract(found.chains, found.exact_samples))[1], len(found.chains)) + found.bias
    floor = ("exact samples", np.mean(found.exact_samples))
    run.metric("AND: total variation, chains", *mean_and_sem(found.chains), floor, allowed)
    run.metric("AND: one factor alone, total variation", *mean_and_sem(found.first_alone), floor)
    run.metric("OR: second's share as it stands", either.trap, None, ("Z2/(Z1 + Z2)", either.trap_exact), 1e-6)
    run.metric("OR: second's share, repaired", either.repaired, None, ("one half", either.repaired_exact), 1e-6)
    for a, values in measured.items():
        mean, sem = mean_and_sem(values)
        run.metric(f"NOT, a = {a:g}: mean of x^2", mean, sem, ("theory", theory[a]), tolerance(sem, len(values)))


def section_composition(run):
    """Energies add: AND exactly, OR only with Z, NOT only while a density is left; digits by three labels at once."""
    found, either, (measured, theory) = measure_and(run), measure_or(), measure_not(run)
    record_composition(run, found, either, measured, theory)
    run.figure(draw_and(found), "and")
    run.figure(draw_not(measured, theory, theory_not_limit(1.0, 2.0)), "not")
    run.metric("judge: accuracy on real test images", independent_classifier(run)[1])
    digits = measure_composed(run)
    run.metric("requests without a training image (share)", digits.unseen)
    for (name, way), success in digits.success.items():
        run.metric(f"{name}, {way}: success", *mean_and_sem(success), ("chance", theory_chance(REQUESTS[name])))
        if way == "divided":
            run.metric(f"{name}, {way}: images lost", digits.lost[name, way], against=("none", 0))
    run.figure(draw_composed_digits(digits), "digits")
    run.say(composition_sentence(digits))


def composition_sentence(found):
    """The best way of the three-way request, beside chance, and what division does."""
    three = "class, bold, leaning"
    rates = {way: found.success[three, way].mean().item() for way in WAYS}
    best = leaders({way: found.success[three, way] for way in ("sum", "mean", "divided")})
    lost = max(share for (_, way), share in found.lost.items() if way == "divided")
    return (
        f"three labels at once: of three energies the {best_of([LABELS[way] for way in best])} has {rates[best[0]]:.0%}, "
        f"one energy of all three {rates['at once']:.0%}, chance is {theory_chance(REQUESTS[three]):.1%}; "
        f"dividing by p(x) loses up to {lost:.0%}"
    )


# %% 6. Beyond images
# *A rare event.* Langevin dynamics is dx = -½ E'(x) dt + dW in the time t = n ε, with generator L f = ½ (f'' - E' f'), the
# mean rate at which f(x) changes. The mean time τ from x to b solves L τ = -1, τ(b) = 0; the chance q to reach b before a
# solves L q = 0, q(a) = 0, q(b) = 1:
#
#     (e^-E τ')' = -2 e^-E    =>    τ(x) = 2 ∫_x^b e^E(y) ∫_-∞^y e^-E(z) dz dy,
#     (e^-E q')' = 0          =>    q(x) = ∫_a^x e^E / ∫_a^b e^E, the committor.
#
# Where the barrier is high both integrals are Gaussian, and τ ≈ 4π e^ΔE/√(E''(a) |E''(0)|) (Kramers 1940). A simulation has
# steps, and misses a crossing between two of them. So beside it stands τ of the *chain*, which solves τ = ε + K τ with its
# kernel K(x, y) = N(y; x - (ε/2) E'(x), ε) on (-∞, b), by Gauss-Legendre quadrature.


def quartic_wells(height):
    """E = height (x² - 1)² and E' as functions."""
    return (lambda x: height * (x**2 - 1) ** 2), (lambda x: 4 * height * x * (x**2 - 1))


def exact_passage_time(energy, start, end, low=-4.0):
    """τ above by nested quadrature."""

    def below(y):
        return quad(lambda z: math.exp(energy(y) - energy(z)), low, y, epsabs=1e-11, limit=200)[0]

    return 2 * quad(below, start, end, epsabs=1e-9, limit=200)[0]


def exact_committor(energy, x, a, b):
    """The chance to reach b before a from x."""
    up = [quad(lambda y: math.exp(energy(y)), a, end, epsabs=1e-12)[0] for end in (x, b)]
    return up[0] / up[1]


def theory_kramers(height):
    """4π e^ΔE/√(E''(-1) |E''(0)|) for the double well: E'' = 8 height at the wells, -4 height on top."""
    return 4 * math.pi * math.exp(height) / (math.sqrt(32) * height)


def steps_from(x, node, weight, slope, step_size):
    """K(x, y) w(y) (M, n) of the Langevin chain from x (M,) to the nodes y (n,) of a quadrature rule."""
    x = np.atleast_1d(np.asarray(x, float))
    return scipy.stats.norm.pdf(node, (x - step_size / 2 * slope(x))[:, None], step_size**0.5) * weight


def solve_chain(slope, step_size, start, low, high, source):
    """f(start) of f = source + K f on (low, high), K the chain's kernel; source(x) (M,)."""
    node, weight = np.polynomial.legendre.leggauss(500)
    node, weight = (low + high) / 2 + (high - low) / 2 * node, (high - low) / 2 * weight
    f = np.linalg.solve(np.eye(len(node)) - steps_from(node, node, weight, slope, step_size), source(node))
    return (source(np.array([start])) + steps_from(start, node, weight, slope, step_size) @ f).item()


def exact_chain_time(slope, step_size, start, end, low=-3.5):
    """Mean time n ε of the first step n that ends beyond `end`."""
    return solve_chain(slope, step_size, start, low, end, lambda x: np.full(len(x), step_size))


def exact_chain_committor(slope, step_size, x, a, b):
    """The chance that the chain's first step out of (a, b) ends beyond b."""

    def beyond(x):
        return scipy.stats.norm.sf(b, x - step_size / 2 * slope(x), step_size**0.5)

    return solve_chain(slope, step_size, x, a, b, beyond)


def simulate_exit(slope, n, step_size, start, low, high, max_steps):
    """When (n,) and where (n,) chains from `start` first step out of (low, high); nan after max_steps."""
    x, going = torch.full((n,), float(start), dtype=torch.float64), torch.arange(n)
    times, places = torch.full((2, n), math.nan, dtype=torch.float64)
    for step in range(1, max_steps + 1):
        x = langevin(slope, x, 1, step_size)
        out = (x <= low) | (x >= high)
        times[going[out]], places[going[out]] = step * step_size, x[out]
        x, going = x[~out], going[~out]
        if len(x) == 0:
            break
    return times, places


HEIGHTS = (1.0, 2.0, 3.0, 4.0)  # of the barrier, nats


class Rare(NamedTuple):
    """{height: passage times (n,) from -1 to 1}, {height: exact of the chain}, {..: of the equation}, {..: Kramers}; and
    whether chains from a point reach 1 before -1 (n,), exact of the chain, of the equation."""

    times: dict
    chain: dict
    exact: dict
    kramers: dict
    reached: torch.Tensor
    committor_chain: float
    committor: float


def measure_rare(run, step_size=0.01, x=-0.2):
    """Rare."""
    n, found = run.config.n_points, Rare({}, {}, {}, {}, None, 0.0, 0.0)
    for height in HEIGHTS:
        energy, slope = quartic_wells(height)
        found.chain[height] = exact_chain_time(slope, step_size, -1.0, 1.0)
        found.exact[height], found.kramers[height] = exact_passage_time(energy, -1.0, 1.0), theory_kramers(height)
        most = int(40 * found.chain[height] / step_size)  # exp(-40) of the chains are still there
        found.times[height] = simulate_exit(slope, n, step_size, -1.0, -math.inf, 1.0, most)[0]
    _, places = simulate_exit(slope, n, step_size, x, -1.0, 1.0, most)
    chain, exact = exact_chain_committor(slope, step_size, x, -1.0, 1.0), exact_committor(energy, x, -1.0, 1.0)
    return found._replace(reached=(places >= 1).double(), committor_chain=chain, committor=exact)


# *A free-energy difference*, ΔF = F₁ - F₀ = -log Z₁/Z₀, with W = E₁ - E₀, from samples of both ends or of the way between:
#
#     reweighting:  Z₁/Z₀ = E₀[exp(-W)],
#     Jarzynski:    Z₁/Z₀ = E[exp(-work)] over chains that start at E₀ and are driven to E₁ at any speed (1997): each step
#                   first changes the energy, and pays for it, and then moves by a rule that keeps the new density,
#     BAR:          Σ₀ 1/(1 + exp(W - ΔF)) = Σ₁ 1/(1 + exp(ΔF - W)), the least variance from both ends (Bennett 1976).
#
# Driving costs an energy a step, so Jarzynski pays twenty times for each sample here, and BAR takes samples of both ends,
# twice as many. And a warning. The effective sample size (Σw)²/Σw² says how even the weights are, *where samples are*. Two
# wells far apart, all samples in one of them: the weights are equal, the ESS is 100 %, and the estimate is Z/2.


def well_between(t):
    """E at 0 <= t <= 1: a wide well at 0 that becomes a narrow one at 1, lower by half a nat; works on arrays."""
    return lambda x: (1 - t) * (x**2 / 2 + x**4 / 4) + t * (2 * (x - 1) ** 2 + (x - 1) ** 4 - 0.5)


def exact_ratio(e0, e1):
    """Z₁/Z₀ by quadrature."""
    z0, z1 = (quad(lambda x, e=e: math.exp(-e(x)), -12, 12, epsabs=1e-13, limit=200)[0] for e in (e0, e1))
    return z1 / z0


def samples_of(energy, n, rng, low=-6.0, high=8.0):
    """n exact samples on the line, by inverting the distribution function on a fine grid."""
    grid = np.linspace(low, high, 20_001)
    p = np.exp(-energy(grid))
    cumulative = np.concatenate([[0], np.cumsum((p[1:] + p[:-1]) / 2)])
    return np.interp(rng.random(n) * cumulative[-1], cumulative, grid)


def reweighted_ratio(w0):
    """Mean of exp(-W) over samples of E₀ (..., n)."""
    return np.exp(-w0).mean(-1)


def bar_difference(w0, w1):
    """ΔF from W on samples of E₀ and on as many of E₁, (n,) each, by bisection."""

    def gap(f):
        return scipy.special.expit(f - w0).sum() - scipy.special.expit(w1 - f).sum()

    return scipy.optimize.brentq(gap, min(w0.min(), w1.min()) - 50, max(w0.max(), w1.max()) + 50, xtol=1e-12)


def driven_work(x, n_steps, rng, width=0.8):
    """Work (n,) on chains x (n,) from t = 0, driven to t = 1 in n_steps, each followed by a Metropolis step."""
    work = np.zeros_like(x)
    for step in range(n_steps):
        before, after = well_between(step / n_steps), well_between((step + 1) / n_steps)
        work += after(x) - before(x)
        proposal = x + width * rng.standard_normal(len(x))
        x = np.where(np.log(rng.random(len(x))) < after(x) - after(proposal), proposal, x)
    return work


def effective_share(log_w):
    """(Σw)²/Σw²/n, of log weights (n,)."""
    w = np.exp(log_w - log_w.max())
    return w.sum() ** 2 / (w**2).sum() / len(w)


def measure_free_energy(run, n_drive=20):
    """{method: Z₁/Z₀ (R,)}, the exact one; and for two wells with samples in one, ESS and the estimate of Z (1)."""
    rng, n, found = np.random.default_rng(run.seed), run.config.n_points, {"reweighting": [], "Jarzynski": [], "BAR": []}
    e0, e1 = well_between(0), well_between(1)
    for _ in range(run.config.n_repeats):
        x0, x1 = samples_of(e0, n, rng), samples_of(e1, n, rng)
        found["reweighting"].append(reweighted_ratio(e1(x0) - e0(x0)))
        found["Jarzynski"].append(np.exp(-driven_work(x0, n_drive, rng)).mean())
        found["BAR"].append(math.exp(-bar_difference(e1(x0) - e0(x0), e1(x1) - e0(x1))))
    x, normal = 0.5 * rng.standard_normal(n) - 4, scipy.stats.norm
    log_w = np.logaddexp(normal.logpdf(x, -4, 0.5), normal.logpdf(x, 4, 0.5)) - math.log(2) - normal.logpdf(x, -4, 0.5)
    return found, exact_ratio(e0, e1), (effective_share(log_w), np.exp(log_w).mean())


# *A constraint is an energy.* Among all q with E_q[c] = k the one nearest to p has, by a Lagrange multiplier λ, eq. (5), and
#
#     KL(q ‖ p) = E_q[-λ c - log E_p e^(-λ c)] = -λ k - log E_p e^(-λ c).
#
# A die that shows 4.5 on average (Jaynes) is one. Fairness is another: a classifier says p(y = 1 | x), and groups g are to
# get y = 1 equally often, and as often as all did, where decisions are *drawn* with these probabilities. The least change
# adds a number to the log odds of each group, log odds + θ_g, and its price is the mean over the group of θ_g q(x)
# - log(1 + p(x) (e^θ_g - 1)). What it costs is measured as the accuracy of the same decisions, which are right with chance
# q(x) or 1 - q(x). (Whoever decides by q(x) > 1/2 makes others, whose rates nobody has made even.)


def least_change(p, c, k):
    """λ and q (n,) ∝ p exp(-λ c) with E_q[c] = k, for p (n,) and c (n,)."""

    def tilted(l):
        log_q = np.log(p) - l * c
        q = np.exp(log_q - log_q.max())
        return q / q.sum()

    l = scipy.optimize.brentq(lambda l: tilted(l) @ c - k, -50, 50, xtol=1e-13)
    return l, tilted(l)


def theory_price(p, c, k, l):
    """-λ k - log E_p exp(-λ c)."""
    return -l * k - math.log(p @ np.exp(-l * c))


def kl_divergence(q, p):
    """Σ q log q/p, also of arrays of probabilities."""
    return scipy.special.rel_entr(q, p).sum(-1)


def shift_to_rate(p, rate):
    """θ and q = σ(log odds p + θ) (n,) with mean `rate`."""
    odds = scipy.special.logit(p)
    theta = scipy.optimize.brentq(lambda t: scipy.special.expit(odds + t).mean() - rate, -60, 60, xtol=1e-13)
    return theta, scipy.special.expit(odds + theta)


def theory_shift_price(p, rate, theta):
    """Mean KL (nats) of that change: θ rate - mean log(1 + p (e^θ - 1))."""
    return theta * rate - np.log1p(p * np.expm1(theta)).mean()


class Fair(NamedTuple):
    """A table: group (n,), truth (n,), probabilities before and after (n,), price in nats by formula and directly."""

    group: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray
    price: float
    direct: float


def measure_fairness(run):
    """Diabetes patients (scikit-learn's table): does the disease progress more than in the median; groups by age. The shift
    is fitted and applied by cross-validation; its price is that of all patients."""
    x, target = load_diabetes(return_X_y=True)
    truth, group = target > np.median(target), x[:, 0] > np.median(x[:, 0])
    before, after = np.zeros(len(x)), np.zeros(len(x))
    for train, test in StratifiedKFold(10, shuffle=True, random_state=run.seed).split(x, 2 * truth + group):
        fit = LogisticRegression(C=100.0).fit(x[train], truth[train])
        p_train, before[test] = fit.predict_proba(x[train])[:, 1], fit.predict_proba(x[test])[:, 1]
        for g in (False, True):
            theta, _ = shift_to_rate(p_train[group[train] == g], p_train.mean())
            here = test[group[test] == g]
            after[here] = scipy.special.expit(scipy.special.logit(before[here]) + theta)
    price = direct = 0.0
    for g in (False, True):
        p = before[group == g]
        theta, q = shift_to_rate(p, before.mean())
        price += len(p) / len(x) * theory_shift_price(p, before.mean(), theta)
        direct += len(p) / len(x) * kl_divergence(np.stack([q, 1 - q], 1), np.stack([p, 1 - p], 1)).mean()
    return Fair(group, truth, before, after, price, direct)


# *A table with holes.* 569 tumours, 30 measurements (scikit-learn's), a fifth of the test rows' entries hidden at random.
# Energy: section 3 on rows instead of images. Rivals: the column's mean, nearest neighbours by what is there, and the
# exact conditionals of one Gaussian and of a mixture; settings by squared error on validation rows. The energy keeps those
# that it has on images, and sees what is there through noise of a fifth of a standard deviation.


def neighbour_impute(x_train, x, seen, k):
    """x (N, d) with entries that are not seen (N, d) from the k nearest rows by the seen ones."""
    out = x.clone()
    for i in range(len(x)):
        nearest = squared_distances(x[i : i + 1, seen[i]], x_train[:, seen[i]])[0].topk(k, largest=False).indices
        out[i, ~seen[i]] = x_train[nearest][:, ~seen[i]].mean(0)
    return out


def mixture_impute(mixture, x, seen):
    """x with the mixture's conditional mean in place of what is not seen, row by row."""
    out = x.clone()
    for i in range(len(x)):
        out[i, ~seen[i]] = given_seen(mixture, x[i : i + 1], seen[i]).mean()[0]
    return out


@torch.no_grad()
def energy_impute(energy, x, seen, config, device):
    """x with the mean of 19 completions, each cleaned by one step, in place of what is not seen."""
    flat = torch.where(seen, x, 0.0).float().to(device)
    flat = (flat + config.data_noise * torch.randn_like(flat)).repeat(N_COMPLETIONS, 1)
    mask = seen.to(device).repeat(N_COMPLETIONS, 1)
    z = complete(lambda v: energy.slope(v[None])[0], flat, mask, 0.0, config.n_chain_steps, config.step_size)
    clean = one_step(energy, z, config.data_noise)
    must_be_finite("imputation", clean)
    return torch.where(seen, x, clean.view(N_COMPLETIONS, *x.shape).mean(0).double().cpu())


def load_table():
    """The rows (N, 30) to learn from, to choose by, and to be scored on: the logarithms, standardised."""
    x = np.log(load_breast_cancer().data + 0.01)
    x, x_test = train_test_split(x, test_size=0.25, random_state=0)
    x, held = train_test_split(x, test_size=0.25, random_state=0)
    mean, std = x.mean(0), x.std(0)
    return (torch.as_tensor((part - mean) / std) for part in (x, held, x_test))


@own_random_stream
def measure_imputation(run):
    """{method: squared errors (N,), mean over a row's holes} in units of the columns' variance; what was chosen."""
    torch.manual_seed(run.seed + 6)
    x, held, x_test = load_table()
    seen_held, seen = (torch.rand(part.shape) > 0.2 for part in (held, x_test))

    def error(filled, part, mask):
        return ((filled - part).square() * ~mask).sum(1) / (~mask).sum(1).clamp(min=1)

    k = best_setting((1, 2, 3, 5, 8, 12), lambda k: error(neighbour_impute(x, held, seen_held, k), held, seen_held).mean())
    fits = {(n, reg): fit_gaussians(x, n, run.seed, reg) for n in (1, 2, 3, 5) for reg in (1e-4, 1e-3, 1e-2)}
    losses = {key: error(mixture_impute(fit, held, seen_held), held, seen_held).mean() for key, fit in fits.items()}
    one, several = (best_setting([key for key in fits if (key[0] == 1) == alone], losses.get) for alone in (True, False))
    labels = torch.zeros(1, len(x), dtype=torch.int64, device=run.device)
    energy = train_energies(x.float().to(run.device), labels, run.config, run.config.n_table, "energy of a table")
    filled = {
        "column mean": torch.where(seen, x_test, x.mean(0)),
        "k-NN": neighbour_impute(x, x_test, seen, k),
        "Gaussian": mixture_impute(fits[one], x_test, seen),
        "mixture": mixture_impute(fits[several], x_test, seen),
        "energy": energy_impute(energy, x_test, seen, run.config, run.device),
    }
    return {name: error(z, x_test, seen)[(~seen).any(1)] for name, z in filled.items()}


def draw_rare(found):
    """Mean first-passage times against the barrier."""
    fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    heights = list(found.times)
    means, sems = zip(*(mean_and_sem(t) for t in found.times.values()), strict=True)
    ax.errorbar(heights, means, sems, fmt="o", color="tab:orange", label="simulated")
    ax.plot(heights, list(found.chain.values()), "kx", ms=10, label="exact, this chain")
    ax.plot(heights, list(found.exact.values()), "k_", ms=26, mew=2, label="exact, continuous")
    ax.plot(heights, list(found.kramers.values()), "b--", label="Kramers, for high barriers")
    off = found.kramers[heights[-1]] / found.exact[heights[-1]] - 1
    ax.set(
        title=f"a rare event: Kramers is {off:+.0%} off at the highest barrier",
        xlabel="barrier (nats)",
        ylabel="time to cross",
        yscale="log",
        xticks=heights,
    )
    ax.legend()
    return fig


def errors_in_words(found, exact):
    """The root mean square error of each method's estimates (R,), in words."""
    roots = {name: np.mean((np.asarray(values) - exact) ** 2) ** 0.5 for name, values in found.items()}
    return ", ".join(f"{name} {root:.3f}" for name, root in roots.items())


def draw_free_energy(found, exact):
    """Z1/Z0 by three methods."""
    fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    ax.boxplot(list(found.values()), orientation="horizontal")
    ax.set_yticks(range(1, len(found) + 1), list(found))
    ax.axvline(exact, color="k", ls="--", label="quadrature")
    ax.set(title=f"root mean square error: {errors_in_words(found, exact)}", xlabel="$Z_1/Z_0$ in independent repeats")
    ax.legend()
    return fig


def draw_fair_and_filled(fair, holes):
    """Rates of two groups before and after; errors of imputations."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for g, name in ((False, "younger half"), (True, "older half")):
        axes[0].plot([0, 1], [fair.before[fair.group == g].mean(), fair.after[fair.group == g].mean()], "o-", label=name)
    accuracy = [accuracy_of(p, fair.truth).mean() for p in (fair.before, fair.after)]
    axes[0].set(
        title=f"drawn decisions: accuracy {accuracy[0]:.3f} before, {accuracy[1]:.3f} after",
        ylabel="mean probability of y = 1",
        xlim=(-0.3, 1.3),
    )
    axes[0].set_xticks([0, 1], ["before", "after the shift"])
    axes[0].legend()
    names = sorted(holes, key=lambda name: holes[name].mean(), reverse=True)
    means, sems = zip(*(mean_and_sem(holes[name]) for name in names), strict=True)
    axes[1].barh(names, means, xerr=sems, color=["tab:orange" if name == "energy" else "tab:blue" for name in names])
    axes[1].set(title=f"a table with holes, least error: {least(holes)}", xlabel="squared error / variance of the column")
    return fig


def accuracy_of(p, truth):
    """The chance that a decision drawn with probability p is right, (n,)."""
    return np.where(truth, p, 1 - p)


def record_rare(run, found):
    """First-passage times and committor beside the chain's exact values, and the equation's."""
    for height, times in found.times.items():
        mean, sem = mean_and_sem(times)
        run.metric(
            f"barrier {height:g}: time to cross",
            mean,
            sem,
            ("exact, this chain", found.chain[height]),
            tolerance(sem, len(times)),
        )
        run.metric(f"barrier {height:g}: exact, continuous", found.exact[height], against=("Kramers", found.kramers[height]))
    mean, sem = mean_and_sem(found.reached)
    run.metric(
        "committor at -0.2, simulated",
        mean,
        sem,
        ("exact, this chain", found.committor_chain),
        tolerance(sem, len(found.reached)),
    )
    run.metric("committor at -0.2, exact, this chain", found.committor_chain, against=("continuous", found.committor))


def record_changes(run, fair):
    """A die and a table, each beside the price's formula."""
    p, c = np.full(6, 1 / 6), np.arange(1.0, 7.0)
    l, q = least_change(p, c, 4.5)
    run.metric(
        "a die that shows 4.5: price (nats)", kl_divergence(q, p), None, ("formula", theory_price(p, c, 4.5, l)), 1e-9
    )
    run.metric("fairness: price (nats a patient)", fair.direct, None, ("formula", fair.price), 1e-9)
    for name, p in (("before", fair.before), ("after", fair.after)):
        gap = abs(p[fair.group].mean() - p[~fair.group].mean())
        run.metric(f"fairness: gap of the groups' rates, {name}", gap, against=("fair", 0))
    change, sem = mean_and_sem(accuracy_of(fair.after, fair.truth) - accuracy_of(fair.before, fair.truth))
    run.metric("fairness: accuracy before", *mean_and_sem(accuracy_of(fair.before, fair.truth)), ("guessing", 0.5))
    run.metric("fairness: change of accuracy", change, sem, ("no price", 0))


def section_beyond(run):
    """Rare events, free energies, constraints and tables with holes: energies where there are no images."""
    rare = measure_rare(run)
    record_rare(run, rare)
    run.figure(draw_rare(rare), "rare_event")
    found, exact, (ess, z) = measure_free_energy(run)
    for name, values in found.items():
        mean, sem = mean_and_sem(values)
        run.metric(f"two wells, {name}: Z1/Z0", mean, sem, ("quadrature", exact), tolerance(sem, len(values)))
    run.metric("a mode that no sample saw: ESS (share)", ess, None, ("all equal", 1), 1e-9)
    run.metric("a mode that no sample saw: Z", z, None, ("half of Z = 1", 0.5), 1e-9)
    run.figure(draw_free_energy(found, exact), "free_energy")
    fair, holes = measure_fairness(run), measure_imputation(run)
    record_changes(run, fair)
    for name, errors in holes.items():
        run.metric(f"holes, {name}: error (variance)", *mean_and_sem(errors), ("Gaussian", holes["Gaussian"].mean().item()))
    run.figure(draw_fair_and_filled(fair, holes), "tables")
    run.say(beyond_sentence(errors_in_words(found, exact), fair, holes))


def beyond_sentence(off, fair, holes):
    """How far off the free energies are, what fairness cost, and who fills holes best."""
    change, sem = mean_and_sem(accuracy_of(fair.after, fair.truth) - accuracy_of(fair.before, fair.truth))
    felt = "costs accuracy" if change < -2 * sem else "gains accuracy" if change > 2 * sem else "leaves accuracy as it is"
    return (
        f"Z1/Z0 is off by {off} (root mean square); equal rates cost {fair.price:.3f} nats a patient; "
        f"the shift, learnt on other patients, {felt} ({change:+.1%} +- {sem:.1%}); "
        f"the table is filled best by {least(holes)} ({min(e.mean() for e in holes.values()):.3f}, "
        f"the energy {holes['energy'].mean():.3f})"
    )


SECTIONS = {
    "ood": section_ood,
    "denoising": section_denoising,
    "inpainting": section_inpainting,
    "robustness": section_robustness,
    "composition": section_composition,
    "beyond": section_beyond,
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
