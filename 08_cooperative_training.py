"""Module 08 - Cooperative training: generators and energies that teach each other, and what each may forget.

An energy learns by two phases (module 07), and needs samples of its own density. A generator x = g(z), z ~ N(0, I), makes
samples at once, and needs somebody who says what a good one is. Each can be the other's teacher:

    energy      ∇ E_data[E] - ∇ E_g[E] = 0                   the generator supplies the negative phase,             (1)
    CoopNets    g learns from g(z) moved by K Langevin steps of E, *with z inferred again* (Xie et al. 2018),        (2)
    EBGAN       E_data[D] + E_g[(m - D)₊] against E_g[D]     a game, whose D is no log density (Zhao et al. 2017),   (3)
    amortised   log Z >= H(g) - E_g[E]                       equal if and only if g ~ exp(-E)/Z,                      (4)
    JEM         E(x) = -log Σ_y exp f_y(x)                   a classifier is an energy too (Grathwohl et al. 2020).  (5)

Run      python 08_cooperative_training.py                 all sections, four minutes on two CPU cores
         python 08_cooperative_training.py --section ebgan --show
         python 08_cooperative_training.py --section comparison --n-compared 2500 --seed 1
Writes   outputs/08_cooperative_training/*.png and metrics.json
Before   module 07        Exercises  ex08_1 ... ex08_3, o11
Sources  Xie et al. (2018, 2022); Xie, Zheng & Li (2021); Zhao, Mathieu & LeCun (2017); Dai et al. (2017); Grathwohl et al.
         (2020); Kumar et al. (2019); Dieng et al. (2019); Kingma & Welling (2014); Guo et al. (2017); Zhou et al. (2004);
         Dempster, Laird & Rubin (1977); Tipping & Bishop (1999); Lopez-Paz & Oquab (2017); Heusel et al. (2017); Liu et al.
         (2020); DeLong, DeLong & Clarke-Pearson (1988).
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args, get_type_hints

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: scikit-learn's small fits are faster on one

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import scipy.stats
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC
from torch import nn
from torch.nn.functional import cross_entropy, normalize, silu
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    split: Annotated[Literal["test", "validation"], "score on the test images, or choose settings without them"] = "test"
    n_repeats: Annotated[int, "generators side by side on the line"] = 32
    n_ring: Annotated[int, "updates of each generator on the ring"] = 400
    n_clusters: Annotated[int, "clusters of the digits that energy and generator know; at most 200"] = 32
    width: Annotated[int, "hidden units of the energies of digits"] = 512
    sigma: Annotated[float, "the energies' unit of error"] = 0.2
    batch_size: Annotated[int, "images in a batch, and chains moved between two updates"] = 64
    n_pairs: Annotated[int, "chains that CoopNets moves from the generator, and as many from noise, an update"] = 48
    n_langevin: Annotated[int, "Langevin steps between two updates, and from the generator to a sample"] = 10
    step_size: Annotated[float, "the Langevin step on digits"] = 0.01
    learning_rate: Annotated[float, "Adam's for energies of digits, after the warm-up; it falls linearly to 0"] = 4e-3
    generator_rate: Annotated[float, "Adam's for generators of digits, likewise"] = 3e-3
    n_cooperation: Annotated[int, "updates of CoopNets on digits"] = 1500
    n_ebgan: Annotated[int, "updates of each EBGAN in the plane"] = 800
    n_jem: Annotated[int, "updates of JEM on digits"] = 1300
    n_plane: Annotated[int, "updates of the amortised generator in the plane"] = 2500
    n_compared: Annotated[int, "updates of the energy in the comparison; the others get what takes as long"] = 900
    n_from_noise: Annotated[int, "Langevin steps from noise to a sample"] = 500
    n_samples: Annotated[int, "images drawn where samples are scored"] = 1000
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1

    def __post_init__(self):
        for wrong, complaint in (
            (self.n_clusters > 200, f"--n-clusters must be at most 200, not {self.n_clusters}"),
            (self.n_samples < 40, f"--n-samples must be at least 40, to be scored in four parts, not {self.n_samples}"),
            (self.n_repeats < 2, f"--n-repeats must be at least 2, to have a spread, not {self.n_repeats}"),
        ):
            if wrong:
                sys.exit(complaint)


SMOKE = {"n_repeats": 8, "n_ring": 6, "n_clusters": 4, "width": 32, "batch_size": 16, "n_pairs": 8, "n_langevin": 2}
SMOKE |= {"n_cooperation": 8, "n_ebgan": 6, "n_jem": 6, "n_plane": 10, "n_compared": 6, "n_from_noise": 4}
SMOKE |= {"n_samples": 40}


# %% 0. What all sections use
# Networks are small and without batch norm: an energy must not depend on its neighbours in the batch (module 07). `copies`
# puts several networks side by side, for repeats with a spread; `n_clusters` gives each cluster of the data hidden biases.


class Net(nn.Module):
    """A network of SiLU layers, (*copies, B, a) -> (*copies, B, b); clusters c (B,) have biases in the first one."""

    def __init__(self, sizes, copies=(), n_clusters=1):
        super().__init__()
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(torch.randn(*copies, a, b) / a**0.5 for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(*copies, 1, b) for _, b in pairs)
        own = torch.zeros(*copies, 1, sizes[1])  # of each copy: what copies shared would tie their repeats together
        self.shift = nn.Parameter(torch.randn(n_clusters, sizes[1]) / 2 if n_clusters > 1 else own)

    def forward(self, x, c=None):
        x = x @ self.weights[0] + self.biases[0] + (self.shift[..., :1, :] if c is None else self.shift[c])
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            x = silu(x) @ weight + bias
        return x


# Differs from 01_ebm_foundations.py: langevin - by a slope, which may be written by hand
@torch.no_grad()
def langevin(slope, x, n_steps, step_size):
    """n_steps of x <- x - (ε/2) ∇E(x) + √ε ξ from x (..., d), T = 1; slope(x) is ∇E, (..., d)."""
    for _ in range(n_steps):
        x = torch.add(x, slope(x), alpha=-step_size / 2).add_(torch.randn_like(x), alpha=step_size**0.5)
    return x


def slope_of(energy):
    """∇E by autograd, as a function x (..., d) -> (..., d). The weights of E get no gradient from it."""

    @torch.enable_grad()
    def slope(x):
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(energy(x).sum(), x)[0]

    return slope


class Descent:
    """Adam on some networks: the rate rises over `warm_up` updates and falls linearly to 0, long gradients are shortened,
    an average of the weights is kept."""

    def __init__(self, nets, rate, n_updates, warm_up=0, max_norm=5.0, memory=0.999, b1=0.9):
        self.parameters = [p for net in nets for p in net.parameters()]
        self.average = [copy.deepcopy(net).requires_grad_(False) for net in nets]
        self.kept = [p for net in self.average for p in net.parameters()]
        self.adam = torch.optim.Adam(self.parameters, rate, betas=(b1, 0.999), fused=True)
        self.rate, self.n_updates, self.warm_up = rate, n_updates, max(warm_up, 1)
        self.max_norm, self.memory, self.step = max_norm, memory, 0

    def left(self):
        """The share of the updates that is left, from 1 to 0."""
        return 1 - self.step / self.n_updates

    def down(self, loss):
        """One step down the loss; Diverged before the weights are touched, if it is not finite."""
        self.adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        if not math.isfinite(loss.item() + norm.item()):
            raise Diverged(f"the training diverged at update {self.step + 1}: {CURES}")
        self.adam.param_groups[0]["lr"] = self.rate * min(1, (self.step + 1) / self.warm_up) * self.left()
        self.adam.step()
        self.step += 1
        memory = min(self.memory, self.step / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.kept, self.parameters, 1 - memory)


CURES = "try a smaller --step-size or --learning-rate, or a larger --sigma"


# Copied from 07_neural_ebms.py: Diverged
class Diverged(SystemExit):
    """Energies that are not finite, or so far apart that they will not meet again."""


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


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


# %% 1. CoopNets, in closed form
# CoopNets (Xie et al. 2018) let a generator x = g(z) + s n start the chains, K Langevin steps under E revise what it made,
# and the generator learns from the revision. *How* it learns decides whether its variance survives. Everything can be
# followed exactly where E = x²/2 and g(z) = w z. A Langevin step of size ε multiplies x by ρ = 1 - ε/2 and adds noise:
#     x_K = ρ^K x_0 + noise of variance (1 - ρ^(2K)) v,      v = ε/(1 - ρ²) = 1/(1 - ε/4):
# v is the chain's own stationary variance, a little above the true 1. With V = w² + s² the generator's variance:
#
# *Own z*. Regress x_K on the z that x_0 came from: w <- E[x_K z]/E[z²] = ρ^K w. What Langevin's noise did cannot be
# explained by that z, so it is lost: after R rounds w = ρ^(KR), the generator has collapsed.
#
# *Inferred z* (EM: Dempster, Laird & Rubin 1977). Draw z again from p(z | x_K) = N(w x_K/V, s²/V), then regress:
#     w <- E[x z]/E[z²] = (w V'/V) / (w² V'/V² + s²/V),      V' = ρ^(2K) V + (1 - ρ^(2K)) v.
# At a fixed point w² V'/V + s² = V', which V' = V solves, so V = v and w² = v - s². The mean of p(z | x) in place of a
# draw would leave out s²/V, and w would grow.
#
# *Likelihood*: a generator that can be fitted by maximum likelihood (CoopFlow: a flow, Xie et al. 2022) takes on the
# variance of x_K itself: V <- ρ^(2K) V + (1 - ρ^(2K)) v, hence V = v + ρ^(2KR) (V_0 - v). The right end, at a known rate.


def own_z(x, z, w, s):
    """The mistaken lesson: regress x (S, n) on the z (S, n) that it began as."""
    return (x * z).sum(1, keepdim=True) / z.square().sum(1, keepdim=True)


def inferred_z(x, z, w, s):
    """EM's lesson: regress x on a draw of z from p(z | x) under x = w z + s n."""
    v = w**2 + s**2
    z = w * x / v + (s**2 / v).sqrt() * torch.randn_like(x)
    return (x * z).sum(1, keepdim=True) / z.square().sum(1, keepdim=True)


def by_likelihood(x, z, w, s):
    """The w of greatest likelihood under x ~ N(0, w² + s²)."""
    return (x.square().mean(1, keepdim=True) - s**2).clamp(min=0).sqrt()


LESSONS = {"own z": own_z, "inferred z": inferred_z, "likelihood": by_likelihood}


def cooperate(lesson, n_rounds, w=2.0, s=0.5, n_steps=10, step_size=0.1, n_repeats=32, n=8000):
    """w after each round of x_0 = w z + s n, K Langevin steps under E = x²/2, and a lesson; (n_rounds + 1, n_repeats)."""
    w = torch.full((n_repeats, 1), w, dtype=torch.float64)
    path = [w]
    for _ in range(n_rounds):
        z = torch.randn(n_repeats, n, dtype=torch.float64)
        x = langevin(lambda x: x, w * z + s * torch.randn_like(z), n_steps, step_size)
        w = lesson(x, z, w, s)
        path.append(w)
    return torch.cat(path, 1).T


def theory_stationary_variance(step_size):
    """v = 1/(1 - ε/4): what Langevin's chain under E = x²/2 really has (module 01)."""
    return 1 / (1 - step_size / 4)


def theory_cooperation(lesson, n_rounds, w=2.0, s=0.5, n_steps=10, step_size=0.1):
    """w after 0 ... n_rounds rounds with infinitely many samples, by the recursions above."""
    keep, v = (1 - step_size / 2) ** n_steps, theory_stationary_variance(step_size)
    path = [w]
    for _ in range(n_rounds):
        before = w**2 + s**2
        after = keep**2 * before + (1 - keep**2) * v
        moved = w * after / before / (w**2 * after / before**2 + s**2 / before)
        w = {"own z": keep * w, "inferred z": moved, "likelihood": (after - s**2) ** 0.5}[lesson]
        path.append(w)
    return np.array(path)


# In two dimensions p(z | x) has no formula, but a good stand-in: many z from the prior, each weighted by p(x | z), one of
# them drawn for each x. (It is importance sampling: with too few z, or too small an s, it would draw the same z again and
# again.) The same bank of z gives the generator's density, so that its KL divergence to exp(-E)/Z is a sum over a grid.


def log_likelihoods(x, centres, s):
    """log N(x | centre, s² I), x (B, d), centres (M, d) -> (B, M)."""
    return -torch.cdist(x, centres).square() / (2 * s**2) - x.shape[1] / 2 * math.log(2 * math.pi * s**2)


@torch.no_grad()
def posterior_draws(generator, x, s, n_bank=1000):
    """For each x (B, d) one z (B, k), nearly from p(z | x) under x = g(z) + s n, by importance sampling from the prior."""
    z = torch.randn(n_bank, generator.weights[0].shape[0], device=x.device)
    return z[log_likelihoods(x, generator(z), s).softmax(1).multinomial(1)[:, 0]]


def ring_energy(x):
    """A ring of radius 2 and width 0.3: E(x), (..., 2) -> (...)."""
    return (x.norm(dim=-1) - 2).square() / (2 * 0.3**2)


def ring_slope(x):
    """Its slope by hand, (..., 2)."""
    r = x.norm(dim=-1, keepdim=True)
    return (1 - 2 / r) * x / 0.3**2


def train_on_ring(infers, n_updates, s=0.2, n_steps=20, step_size=0.02, batch=256):
    """A generator taught by the ring's energy: its own z, or z inferred again, are regressed on the revised x."""
    generator = Net((2, 64, 64, 2))
    descent = Descent([generator], 3e-3, n_updates)
    for _ in Progress(range(n_updates), "ring, inferred z" if infers else "ring, own z"):
        z = torch.randn(batch, 2)
        with torch.no_grad():
            start = generator(z) + s * torch.randn(batch, 2)
        x = langevin(ring_slope, start, n_steps, step_size)
        z = posterior_draws(generator, x, s) if infers else z
        descent.down((generator(z) - x).square().sum(1).mean() / (2 * s**2))
    return descent.average[0]


@torch.no_grad()
def kl_to_energy(generator, energy, s, box=4.0, n=50, n_bank=10_000):
    """KL(q || exp(-E)/Z) in nats for x = g(z) + s n in the plane, by a sum over a grid of n² cells; and q (n, n) there."""
    middle = ((torch.arange(n) + 0.5) / n * 2 - 1) * box
    points, centres = torch.cartesian_prod(middle, middle), generator(torch.randn(n_bank, 2))
    log_q = torch.cat([log_likelihoods(part, centres, s).logsumexp(1) for part in points.split(800)]).double()
    log_q, log_p = log_q.log_softmax(0), (-energy(points).double()).log_softmax(0)
    q = log_q.exp()
    return torch.xlogy(q, q).sum().item() - (q * log_p).sum().item(), (q / (2 * box / n) ** 2).view(n, n)


class OnLine(NamedTuple):
    """A lesson in one dimension: w after each round (R + 1, S), and what theory says (R + 1,)."""

    w: torch.Tensor
    theory: np.ndarray


class OnRing(NamedTuple):
    """Generators taught on the ring: their KL divergences to the energy (nats), (n,), and the first one's density."""

    kl: list
    q: torch.Tensor


def measure_lessons(n_rounds, n_repeats):
    """{lesson: OnLine} in one dimension."""
    return {
        name: OnLine(cooperate(lesson, n_rounds, n_repeats=n_repeats), theory_cooperation(name, n_rounds))
        for name, lesson in LESSONS.items()
    }


def measure_on_ring(n_updates, s=0.2, n_generators=3):
    """{lesson: OnRing} in two dimensions."""
    found = {}
    for name in ("own z", "inferred z"):
        trained = [train_on_ring(name == "inferred z", n_updates, s) for _ in range(n_generators)]
        kls, qs = zip(*(kl_to_energy(generator, ring_energy, s) for generator in trained), strict=True)
        found[name] = OnRing(kls, qs[0])
    return found


# %% 2. CoopNets on digits
# The energy is module 07's auto-encoder, with hidden biases of its own for each of 32 clusters of the images (K-means); the
# generator gets such biases too. Each update draws clusters by their share, chains and data from the same ones, so neither
# has to learn, or may forget, how frequent what is: both phases are matched.
# A chain begins at the generator, x = g(z, c) + s n, and is moved K steps. Then z is inferred again: a second network
# reads a Gaussian r(z | x, c) off the revised x, and both learn by the evidence lower bound (Kingma & Welling 2014; as a
# lesson for CoopNets: Xie, Zheng & Li 2021), which is EM with r in the place of the posterior:
#     log q(x) >= E_r[log N(x; g(z), s² I)] - KL(r || N(0, I)).
# s, the generator's noise, is what it need not explain: here the noise of the data, which the energy learns too. A larger s
# costs variance: the linear generator g = W z + mean(c) of greatest likelihood has W Wᵀ with the eigenvalues
#     (λ_i - s²)₊ of the k largest λ_i,      λ the eigenvalues of x's covariance within the clusters
# (probabilistic PCA: Tipping & Bishop 1999). With s² = noise² it keeps all that k components hold; g may bend and keep more.
#
# An energy that meets only chains from the generator learns what is wrong *near the generator*: farther out nobody has ever
# looked, and a chain from noise arrives nowhere. So as many chains more are born of noise, and persist (module 07). Then one
# energy serves both starts, and what the generator saves is a number of Langevin steps. (Inferred z does not ask where
# x came from, so the generator learns from these chains too; its own z it could not have.)

DATA_NOISE = 0.2  # standard deviation of the noise added to the data: it gives the density a width


class Digits(NamedTuple):
    """Real 8x8 digits, grey levels in [-1, 1], flat, and their labels."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


@functools.cache
def digits_of(run):
    """The run's images, on its device; with --split validation a quarter of the training images plays the test's part."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x / 8 - 1, y, test_size=0.2, stratify=y, random_state=0)
    if run.config.split == "validation":
        x, x_test, y, y_test = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
    x, x_test = (torch.as_tensor(part, dtype=torch.float32, device=run.device) for part in (x, x_test))
    return Digits(x, torch.as_tensor(y, device=run.device), x_test, torch.as_tensor(y_test, device=run.device))


def noisy(x):
    """Images with the noise that energies are trained on."""
    return x + DATA_NOISE * torch.randn_like(x)


# Copied from 07_neural_ebms.py: find_clusters
def find_clusters(x, n_clusters, seed):
    """Labels (N,) of K-means on images (N, d); where they are many, its centres are found on 5,000 of them."""
    if n_clusters == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    seen, n_starts = in_float64(x), 10 if len(x) <= 5000 else 1
    means = KMeans(n_clusters, n_init=n_starts, random_state=seed).fit(seen[:5000])
    return torch.as_tensor(means.predict(seen), dtype=torch.int64, device=x.device)


# Copied from 07_neural_ebms.py: Labelled
class Labelled:
    """Draws rows of a data set by their labels y (N,)."""

    def __init__(self, y):
        self.rows, self.count = y.argsort(), torch.bincount(y)
        self.first = self.count.cumsum(0) - self.count

    def like(self, y):
        """For each label of y (B,) the number of a random row that bears it, (B,)."""
        return self.rows[self.first[y] + (torch.rand(len(y), device=y.device) * self.count[y]).long()]


class Clusters:
    """Clusters of images x (N, d): which to draw, in proportion to their sizes, and images from them."""

    def __init__(self, x, n_clusters, seed):
        self.x, self.y = x, find_clusters(x, n_clusters, seed)
        self.rows, self.n = Labelled(self.y), n_clusters

    def draw(self, n):
        """n clusters (n,), systematically (each as often as its share says, to within one), in random order."""
        at = (torch.arange(n, device=self.x.device) + torch.rand(1, device=self.x.device)) * (len(self.x) / n)
        c = self.y[self.rows.rows[at.long().clamp(max=len(self.x) - 1)]]
        return c[torch.randperm(n, device=c.device)]

    def data(self, c):
        """One image of each cluster c (n,), (n, d)."""
        return self.x[self.rows.like(c)]


def within(x, c):
    """Covariance (d, d) of images x (N, d) within their clusters c (N,)."""
    n = c.max() + 1
    mean = x.new_zeros(n, x.shape[1]).index_add_(0, c, x) / torch.bincount(c).clamp(min=1)[:, None]
    x = x - mean[c]
    return x.T @ x / (len(x) - len(c.unique()))


# Differs from 07_neural_ebms.py: AutoEncoderEnergy - one network, biases a cluster, and a classifier's head (part 4)
class AutoEncoderEnergy(nn.Module):
    """E(x | c) = |x - g(x)|²/(2σ²), and - log Σ_y exp u_y(x) where there are classes; x (B, d) -> (B,), ∇ₓE by hand.

    g(x) = silu(z) W₂ + b₂ with z = x W₁ + b₁(c); u = silu(z) U + b_u.
    """

    def __init__(self, d, width, sigma, n_clusters=1, n_classes=0):
        super().__init__()
        self.sigma = sigma
        self.w1 = nn.Parameter(torch.randn(d, width) / d**0.5)
        self.w2 = nn.Parameter(torch.zeros(width, d))
        self.b1 = nn.Parameter(torch.zeros(n_clusters, width))
        self.b2 = nn.Parameter(torch.zeros(d))
        self.head = nn.Linear(width, n_classes) if n_classes else None

    def hidden(self, x, c):
        return torch.addmm(self.b1[0] if c is None else self.b1[c], x, self.w1)

    def class_scores(self, x):
        """u_y(x), (B, n_classes)."""
        return self.head(silu(self.hidden(x, None)))

    def logits(self, x):
        """f_y(x) = u_y(x) - |x - g(x)|²/(2σ²), (B, n_classes): softmax is the classifier, -logsumexp the energy, eq. (5)."""
        z = self.hidden(x, None)
        return self.head(silu(z)) - self.error(x, z).unsqueeze(1)

    def error(self, x, z):
        return (x - self.b2 - silu(z) @ self.w2).square().sum(1) / (2 * self.sigma**2)

    def forward(self, x, c=None):
        return self.error(x, self.hidden(x, c)) if self.head is None else -self.logits(x).logsumexp(1)

    @torch.no_grad()
    def slope(self, x, c=None):
        """∇ₓE = (r - Jᵀr)/σ² - Σ_y p(y | x) ∇u_y, with r = x - g(x) and J = ∂g/∂x."""
        z = self.hidden(x, c)
        h = silu(z)
        r = (x - self.b2 - h @ self.w2) / self.sigma**2
        back = r @ self.w2.T
        if self.head is not None:
            back += self.head(h).softmax(1) @ self.head.weight
        return r - torch.ops.aten.silu_backward(back, z) @ self.w1.T


def phases_loss(energy, x_data, x_model, c=None):
    """E(data) - E(samples): the gradient of a likelihood, with a little weight on large energies; (), or Diverged."""
    e_data, e_model = (energy(x, c) for x in (x_data, x_model))
    gap = e_data.mean() - e_model.mean()
    if not gap.abs() < 100 * x_data.shape[1]:
        raise Diverged(f"the training diverged: energies {e_data.mean():.3g} and {e_model.mean():.3g}; {CURES}")
    return gap + 1e-5 * (e_data.square().mean() + e_model.square().mean())


class Generator(nn.Module):
    """x = g(z, c) + s n for clusters c (B,), and a Gaussian r(z | x, c) that says which z may have made x."""

    def __init__(self, d, n_clusters, s=DATA_NOISE, n_latent=32, width=256):
        super().__init__()
        self.s, self.n_latent, self.d = s, n_latent, d
        self.mean = Net((n_latent, width, width, d), n_clusters=n_clusters)
        self.reader = Net((d, width, 2 * n_latent), n_clusters=n_clusters)
        with torch.no_grad():  # what z does is to be learnt: that of random weights is noise, and passes for variance
            for net in (self.mean, self.reader):
                net.weights[-1].mul_(0.1)

    def prior(self, n):
        """z (n, n_latent)."""
        return torch.randn(n, self.n_latent, device=self.mean.biases[0].device)

    def draw(self, z, c):
        """x (B, d)."""
        mean = self.mean(z, c)
        return mean + self.s * torch.randn_like(mean)

    def misfit(self, x, z, c):
        """|x - g(z)|²/(2 s²), (B,): -log p(x | z), up to a constant."""
        return (x - self.mean(z, c)).square().sum(1) / (2 * self.s**2)

    def read(self, x, c):
        """Mean and log variance of r(z | x, c), each (B, k)."""
        return self.reader(x, c).chunk(2, 1)

    def minus_bound(self, x, c):
        """Minus the evidence lower bound, one draw of z for each x, up to a constant: (B,) nats."""
        mean, log_var = self.read(x, c)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        return self.misfit(x, z, c) + (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2


class Coop(NamedTuple):
    """What a cooperative training leaves: averages of the energy and of its generator."""

    energy: AutoEncoderEnergy
    generator: Generator


class Chains:
    """Persistent chains (n, d), visited in turn; each keeps its cluster c (n,), or has none, and may restart from noise."""

    def __init__(self, n, d, c, device, restart=0.01):
        self.x, self.c, self.restart = torch.randn(n, d, device=device), c, restart
        self.part = torch.arange(0, device=device)

    def next(self, batch):
        """The next chains (batch, d), and their clusters (batch,) or None."""
        first = self.part[-1] + 1 if len(self.part) else 0
        self.part = (torch.arange(batch, device=self.x.device) + first) % len(self.x)
        fresh = torch.rand(batch, 1, device=self.x.device) < self.restart
        x = torch.where(fresh, torch.randn_like(self.x[self.part]), self.x[self.part])
        return x, None if self.c is None else self.c[self.part]

    def keep(self, x):
        """Where the chains of the moment went."""
        self.x[self.part] = x


def revised(energy, x, c, config):
    """The Langevin steps between two updates, from x (B, d) with clusters c (B,) or None."""
    return langevin(functools.partial(energy.slope, c=c), x, config.n_langevin, config.step_size)


WARM_UP = 150  # updates; much shorter ones let brief trainings diverge


def train_coopnets(clusters, config, n_updates, infers=True, from_noise=True):
    """CoopNets: the generator starts chains, learns from where they went, and the energy learns from them; with
    `from_noise` as many chains more are persistent and born of noise, and both learn from these too."""
    d, device, n_born = clusters.x.shape[1], clusters.x.device, config.n_pairs
    energy, generator = AutoEncoderEnergy(d, config.width, config.sigma, clusters.n), Generator(d, clusters.n)
    teacher = Descent([energy.to(device)], config.learning_rate, n_updates, WARM_UP)
    pupil = Descent([generator.to(device)], config.generator_rate, n_updates, WARM_UP)
    chains = Chains(8 * n_born, d, clusters.draw(8 * n_born), device)
    for _ in Progress(range(n_updates), f"CoopNets, {'inferred' if infers else 'own'} z"):
        c, z = clusters.draw(n_born), generator.prior(n_born)
        with torch.no_grad():
            x = generator.draw(z, c)
        if from_noise:
            old, c_old = chains.next(n_born)
            x, c = torch.cat([x, old]), torch.cat([c, c_old])
        x = revised(energy, x, c, config)
        if from_noise:
            chains.keep(x[n_born:])
        pupil.down((generator.minus_bound(x, c) if infers else generator.misfit(x[:n_born], z, c[:n_born])).mean())
        teacher.down(phases_loss(energy, noisy(clusters.data(c)), x, c))
    return Coop(teacher.average[0], pupil.average[0])


# Samples are judged as in module 07: a classifier that no energy has seen gives features, whose Fréchet distance to those of
# real test images is the score (Heusel et al. 2017); an SVM tries to tell samples from real images (Lopez-Paz & Oquab 2017);
# the classes' entropy shows what is missing, and the distance to the nearest training image what is copied.


# Copied from 07_neural_ebms.py: in_float64
def in_float64(x):
    """A tensor as SciPy and scikit-learn judge it: their answers to float32 differ from processor to processor."""
    return to_numpy(x).astype(float)


# Differs from 07_neural_ebms.py: judge - of 8x8 digits, and without its accuracy
@functools.cache
@torch.enable_grad()
@own_random_stream
def judge(run):
    """The independent classifier x (N, d) -> logits (N, 10), trained on noisy images; its last 32 features are net[:4]."""
    torch.manual_seed(run.seed)
    digits = digits_of(run)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 10)).to(run.device)
    descent = Descent([net], 2e-3, n_updates=1200 if run.config.n_cooperation > 100 else 60)
    for _ in range(descent.n_updates):
        batch = torch.randint(len(digits.x), (64,), device=run.device)
        descent.down(cross_entropy(net(noisy(digits.x[batch])), digits.y[batch], label_smoothing=0.1))
    return net.requires_grad_(False)


# Copied from 07_neural_ebms.py: frechet_distance
def frechet_distance(a, b):
    """|m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½) of two sets of features (N, k) (Dowson & Landau 1982), in float64."""
    (m1, c1), (m2, c2) = ((f.mean(0), np.cov(f.T)) for f in (np.asarray(a, float), np.asarray(b, float)))
    root = np.sqrt(np.maximum(scipy.linalg.eigvals(c1 @ c2).real, 0)).sum()  # C₁C₂ is similar to a positive matrix
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * root


# Differs from 07_neural_ebms.py: frechet_to_test - of named images
def frechet_to_test(run, x):
    """Fréchet distance of images (N, d) to the test images, on the judge's features."""
    digits = digits_of(run)
    train, test, ours = (in_float64(judge(run)[:4](part)) for part in (digits.x, digits.x_test, x.clamp(-1, 1)))
    return frechet_distance(ours / train.std(0), test / train.std(0))


def in_greys(x):
    """Images clipped to [-1, 1] and rounded to the 17 grey levels of the data: else an SVM need only look for fractions."""
    return ((x.clamp(-1, 1) + 1) * 8).round() / 8 - 1


# Differs from 07_neural_ebms.py: two_sample_accuracy - of images rounded to the data's grey levels
def two_sample_accuracy(x, real):
    """How often an SVM tells images (N, d) from as many real ones, cross-validated: mean and its standard error."""
    n = min(len(x), len(real))
    both = np.concatenate([in_float64(in_greys(x[:n])), in_float64(real[:n])])
    folds = StratifiedKFold(5 if n > 100 else 2, shuffle=True, random_state=0)
    return mean_and_sem(cross_val_score(SVC(), both, np.arange(2 * n) < n, cv=folds))


# Differs from 07_neural_ebms.py: class_entropy - of labels
def class_entropy(labels):
    """Entropy of labels (N,) out of ten classes, in units of ln 10: 1 if all are equally frequent."""
    return torch.special.entr(torch.bincount(labels, minlength=10) / len(labels)).sum().item() / math.log(10)


# Copied from 07_neural_ebms.py: nearest_distances
def nearest_distances(x, x_train):
    """Euclidean distance (N,) from each image (N, d) to the nearest of x_train (M, d)."""
    return torch.cat([torch.cdist(part, x_train).amin(1) for part in x.split(500)])


class DigitScores(NamedTuple):
    """What samples are worth."""

    frechet: float
    frechet_sem: float  # from four quarters: too much, as clusters are dealt evenly to all the samples, not to a quarter
    told: float  # two-sample accuracy
    told_sem: float
    entropy: float  # of the classes
    nearest: float  # median distance to the nearest training image
    copies: float  # share of samples nearer to one than 99 % of new real images are


def score_images(run, x):
    """DigitScores of images x (N, d); ends the run if they are lost: clipped, they would look like images."""
    if not (x.abs() < 1000).all():
        raise Diverged(f"the sampling diverged: {CURES}")
    digits, quarters = digits_of(run), [frechet_to_test(run, part) for part in x.tensor_split(4)]
    entropy = class_entropy(judge(run)(x.clamp(-1, 1)).argmax(1))
    nearest = nearest_distances(x, digits.x)
    copies = (nearest < nearest_distances(digits.x_test, digits.x).quantile(0.01)).float().mean().item()
    frechet = frechet_to_test(run, x), mean_and_sem(quarters)[1]
    return DigitScores(*frechet, *two_sample_accuracy(x, digits.x), entropy, nearest.median().item(), copies)


@torch.no_grad()
def run_chains(energy, x, c, n_steps, step_size):
    """langevin under E(x | c) on chains (N, d), on a CPU 250 at a time: what they need then stays in the cache."""
    size = 250 if x.device.type == "cpu" else len(x)
    pairs = zip(x.split(size), [None] * len(x) if c is None else c.split(size), strict=c is not None)
    return torch.cat([langevin(functools.partial(energy.slope, c=ci), xi, n_steps, step_size) for xi, ci in pairs])


def clean_mean(energy, x, c=None):
    """E[clean image | noisy x] = x - noise² ∇E(x), if E is right (Tweedie's formula, module 06), (N, d)."""
    return x - DATA_NOISE**2 * energy.slope(x, c)


class CoopOnDigits(NamedTuple):
    """CoopNets on digits."""

    scores: dict  # {Langevin steps from the generator: DigitScores}
    from_noise: dict  # {Langevin steps from noise: Fréchet distance}
    control: dict  # the same after a fourth of the updates
    lost: dict  # and for an energy that has met the generator's chains only: as many updates, of half as many chains
    untrained: dict  # {Langevin steps from Gaussians of the clusters: Fréchet distance}
    kept: dict  # {lesson: what share of the images' variance within clusters g(z) has}
    linear: float  # that share for the best linear generator
    images: dict  # {steps: 40 images}
    floor: float  # Fréchet distance of as many real training images


@functools.cache
def clusters_of(run):
    """The clusters of the run's training images."""
    return Clusters(digits_of(run).x, run.config.n_clusters, run.seed)


@torch.no_grad()
def draw_coopnets(coop, clusters, config, n, n_steps):
    """n images (n, d): the generator's, moved n_steps under the energy and denoised; with no steps g(z, c) itself."""
    c, z = clusters.draw(n), coop.generator.prior(n)
    if n_steps == 0:
        return coop.generator.mean(z, c)
    x = run_chains(coop.energy, coop.generator.draw(z, c), c, n_steps, config.step_size)
    return clean_mean(coop.energy, x, c)


def frechet_from_noise(run, energy, marks):
    """{steps: Fréchet distance} of chains that begin at noise, denoised; inf once they are lost."""
    c, found = clusters_of(run).draw(run.config.n_samples), {}
    x = torch.randn(len(c), energy.w1.shape[0], device=run.device)
    for before, steps in zip([0, *marks], marks, strict=False):
        x = run_chains(energy, x, c, steps - before, run.config.step_size)
        clean = clean_mean(energy, x, c)
        found[steps] = frechet_to_test(run, clean) if (clean.abs() < 1000).all() else math.inf
    return found


@torch.no_grad()
def variance_kept(generator, clusters, n=4000):
    """The variance of g(z, c) within clusters, as a share of that of the images."""
    c = clusters.draw(n)
    return (within(generator.mean(generator.prior(n), c), c).trace() / within(clusters.x, clusters.y).trace()).item()


def exact_linear_share(covariance, n_latent, s, noise):
    """`variance_kept` of the linear generator of greatest likelihood with noise s, for images of this covariance (d, d)
    that bear noise: Σ (λ_i + noise² - s²)₊ over the n_latent largest λ, over Σ λ_i."""
    eigenvalues = torch.linalg.eigvalsh(covariance.double()).flip(0)
    return ((eigenvalues[:n_latent] + noise**2 - s**2).clamp(min=0).sum() / eigenvalues.sum()).item()


def worth_of(found, k):
    """What k steps from the generator are worth: their Fréchet distance, and its standard error on top. That error is
    generous (see DigitScores), so this goal is an easy one: noise reaches it sooner than the distance itself."""
    return found.scores[k].frechet + found.scores[k].frechet_sem


def steps_needed(from_noise, goal):
    """Langevin steps from noise to a Fréchet distance `goal`, between two marks by a line in the logarithms of both; inf
    where no mark is so near. from_noise: {steps: distance}."""
    before = None
    for steps, distance in from_noise.items():
        if distance <= goal:
            if before is None or not math.isfinite(before[1]):
                return float(steps)
            share = math.log(before[1] / goal) / math.log(before[1] / distance)
            return before[0] * (steps / before[0]) ** share
        before = steps, distance
    return math.inf


def steps_in_words(n_steps):
    """A number of steps from noise."""
    return f"{n_steps:.0f}" if math.isfinite(n_steps) else f"more than {NOISE_MARKS[-1]}"


NEAR, NEAR_LABEL = 0.3, "steps from noise to Frechet 0.3"
NOISE_MARKS = (10, 20, 30, 50, 100, 200, 500)


def try_coopnets(run, n_updates, **options):
    """A brief training of CoopNets on the run's digits, or None if it diverged."""
    with contextlib.suppress(Diverged):
        return train_coopnets(clusters_of(run), run.config, n_updates, **options)


def from_noise_or_lost(run, coop):
    """Its `frechet_from_noise`; inf everywhere of a training that diverged."""
    return dict.fromkeys(NOISE_MARKS, math.inf) if coop is None else frechet_from_noise(run, coop.energy, NOISE_MARKS)


@torch.no_grad()
def from_cluster_gaussians(run, energy, n_steps):
    """Fréchet distance of n_steps from a start that nobody trains: noise with the mean of each cluster and the covariance
    within clusters."""
    clusters, n = clusters_of(run), run.config.n_samples
    c = clusters.draw(n)
    means = torch.stack([clusters.x[clusters.y == k].mean(0) for k in range(clusters.n)])
    covariance = within(clusters.x, clusters.y) + DATA_NOISE**2 * torch.eye(means.shape[1], device=means.device)
    x = means[c] + torch.randn(n, means.shape[1], device=means.device) @ torch.linalg.cholesky(covariance).T
    return frechet_to_test(run, clean_mean(energy, run_chains(energy, x, c, n_steps, run.config.step_size), c))


@own_random_stream
def measure_coopnets(run):
    """CoopOnDigits: CoopNets trained long; and for a fourth of that both lessons on the generator's chains only, and, to
    compare their energy with, CoopNets once more."""
    torch.manual_seed(run.seed)
    config, clusters, n = run.config, clusters_of(run), run.config.n_samples
    coop = train_coopnets(clusters, config, config.n_cooperation)
    images = {k: draw_coopnets(coop, clusters, config, n, k) for k in (0, config.n_langevin, 3 * config.n_langevin)}
    brief = -(-config.n_cooperation // 4)
    options = {name: {"infers": name == "inferred z", "from_noise": False} for name in ("own z", "inferred z")}
    lessons = {name: try_coopnets(run, brief, **option) for name, option in options.items()}
    kept = {name: variance_kept(lesson.generator, clusters) for name, lesson in lessons.items() if lesson}
    return CoopOnDigits(
        scores={k: score_images(run, x) for k, x in images.items()},
        from_noise=frechet_from_noise(run, coop.energy, NOISE_MARKS),
        control=from_noise_or_lost(run, try_coopnets(run, brief)),
        lost=from_noise_or_lost(run, lessons["inferred z"]),
        untrained={k: from_cluster_gaussians(run, coop.energy, k) for k in images if k},
        kept=kept | {"trained long": variance_kept(coop.generator, clusters)},
        linear=exact_linear_share(within(clusters.x, clusters.y), coop.generator.n_latent, coop.generator.s, DATA_NOISE),
        images={k: x[:40] for k, x in images.items()},
        floor=real_floor(run),
    )


def real_floor(run):
    """Fréchet distance of real training images, as many as samples are drawn, to the test images."""
    x = digits_of(run).x
    return frechet_to_test(run, x[torch.randperm(len(x), device=x.device)[: run.config.n_samples]])


LESSON_STYLES = {"own z": ("tab:red", "o"), "inferred z": ("tab:blue", "s"), "likelihood": ("tab:green", "^")}


def draw_lessons(lessons, on_ring):
    """w against rounds beside theory, and what the generators of the plane became."""
    fig, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained", width_ratios=(1.3, 1, 1))
    for name, found in lessons.items():
        color, marker = LESSON_STYLES[name]
        axes[0].plot(found.w.mean(1).numpy(), marker, color=color, label=f"{name}: measured", markevery=3)
        axes[0].plot(found.theory, "-", color=color, lw=1)
    axes[0].plot([], [], "-", color="0.4", lw=1, label="lines: theory")
    axes[0].set(
        title="A line: who learns from its own z collapses", xlabel="rounds", ylabel="w of the generator", ylim=(0, 3.4)
    )
    axes[0].legend(loc="upper right")
    for ax, (name, found) in zip(axes[1:], on_ring.items(), strict=True):
        ax.imshow(found.q.T.numpy(), origin="lower", extent=(-4, 4, -4, 4), cmap="magma")
        ax.add_patch(plt.Circle((0, 0), 2, fill=False, color="w", ls="--"))
        ax.set(title=f"{name}: {found.kl[0]:.2f} nats\nfrom the ring (dashed)", xlabel="$x_1$", ylabel="$x_2$")
    return fig


# Differs from 07_neural_ebms.py: show_images - 8x8 in grey
def show_images(ax, x, n_columns, title=""):
    """Draw images x (N, 64) in [-1, 1] on one axis, a mosaic of `n_columns` columns with a gap between the tiles."""
    tiles = nn.functional.pad(x.detach().cpu().clamp(-1, 1).reshape(-1, 8, 8), (0, 1, 0, 1), value=-1.0)
    rows = [torch.cat(list(row), 1) for row in tiles.split(n_columns) if len(row) == n_columns]
    ax.imshow(-torch.cat(rows)[:-1, :-1].numpy(), cmap="gray", vmin=-1, vmax=1)
    ax.set_title(title)
    ax.axis("off")


def way(k):
    """The name of a way of sampling: k Langevin steps from the generator."""
    return f"generator + {k} steps" if k else "generator alone"


def draw_coopnets_on_digits(found):
    """Samples of each way, and two energies' ways from noise beside them."""
    fig, axes = plt.subplots(1, 4, figsize=(13, 4.8), layout="constrained", width_ratios=(1, 1, 1, 1.8))
    for ax, (k, x) in zip(axes, found.images.items(), strict=False):
        show_images(ax, x, 5, f"{way(k)}:\nFréchet {found.scores[k].frechet:.2f}")
    ax, starts = axes[-1], {k: scores.frechet for k, scores in found.scores.items() if k}
    for row, style, label in (
        (found.lost, "o-r", "its energy met generator's chains only, briefly"),
        (found.control, "o:k", "it met both, as briefly"),
        (found.from_noise, "o-k", "it met both"),
    ):
        steps = [step for step, distance in row.items() if math.isfinite(distance)]
        ax.plot(steps, [row[step] for step in steps], style, label=f"from noise; {label}")
    ax.plot(list(found.untrained), list(found.untrained.values()), "D-", color="tab:green", label="from clusters' Gaussians")
    ax.plot(list(starts), list(starts.values()), "s-", color="tab:blue", label="from the generator")
    ax.axhline(found.floor, color="k", ls="--", label="real images")
    k = min(starts)
    ax.axhline(worth_of(found, k), color="tab:blue", ls=":", label=f"generator + {k} steps, a standard error above")
    needed = steps_in_words(steps_needed(found.from_noise, worth_of(found, k)))
    title = f"{k} steps from the generator do (to their\nstandard error) what {needed} do from noise"
    ax.set(title=title, xscale="log", yscale="log", xlabel="Langevin steps", ylabel="Fréchet distance to test images")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def record_lessons(run, lessons, on_ring):
    """The metrics of both, beside theory."""
    for name, found in lessons.items():
        for at in dict.fromkeys((2, len(found.theory) - 1)):  # where the rate shows, and where the end
            (mean, sem), n = mean_and_sem(found.w[at]), found.w.shape[1]
            run.metric(f"line, {name}: w after {at} rounds", mean, sem, ("theory", found.theory[at]), tolerance(sem, n))
    for name, found in on_ring.items():
        run.metric(f"ring, {name}: KL to the energy (nats)", *mean_and_sem(found.kl), ("the energy itself", 0))


def record_digit_scores(run, name, scores, floor):
    """The metrics of DigitScores, under a name."""
    run.metric(f"{name}: Frechet distance", scores.frechet, scores.frechet_sem, ("real images", floor))
    run.metric(f"{name}: told from real", scores.told, scores.told_sem, ("cannot be told", 0.5))
    run.metric(f"{name}: class entropy", scores.entropy, against=("even classes", 1))
    run.metric(f"{name}: copies", scores.copies, against=("new real images", 0.01))


def section_coopnets(run):
    """On a line own z makes a generator collapse, inferred z does not; on digits a generator saves the energy the way."""
    config = run.config
    lessons, on_ring = measure_lessons(60, config.n_repeats), measure_on_ring(config.n_ring)
    record_lessons(run, lessons, on_ring)
    run.figure(draw_lessons(lessons, on_ring), "lessons")
    found = measure_coopnets(run)
    record_coopnets(run, found)
    run.figure(draw_coopnets_on_digits(found), "digits")
    own, inferred = (mean_and_sem(on_ring[name].kl)[0] for name in ("own z", "inferred z"))
    run.say(f"ring: own z ends {own:.2f} nats from the energy, inferred z {inferred:.2f}, a mean of three")
    for sentence in coop_sentences(found):
        run.say(sentence)


def record_coopnets(run, found):
    """The metrics of CoopOnDigits."""
    for k, scores in found.scores.items():
        record_digit_scores(run, way(k), scores, found.floor)
    k = min(k for k in found.scores if k)
    same = f"steps from noise to the Frechet of {k}", found.scores[k].frechet
    for label, goal in ((f"steps from noise that do as much as {k}", worth_of(found, k)), same, (NEAR_LABEL, NEAR)):
        if math.isfinite(needed := steps_needed(found.from_noise, goal)):
            steps = min((k for k, scores in found.scores.items() if scores.frechet <= goal), default=math.inf)
            run.metric(label, needed, against=("from the generator", steps) if math.isfinite(steps) else None)
    for k, distance in found.untrained.items():
        run.metric(f"cluster Gaussian + {k} steps: Frechet", distance, against=("generator", found.scores[k].frechet))
    rows = {"met both": found.from_noise, "met both, brief": found.control, "met its own, brief": found.lost}
    for name, row in rows.items():
        for steps, distance in list(row.items())[-3::2]:
            if math.isfinite(distance):
                run.metric(f"{name}: Frechet, {steps} from noise", distance, against=("real images", found.floor))
    for name, share in found.kept.items():
        run.metric(f"digits, {name}: variance kept", share, against=("linear, greatest likelihood", found.linear))


def coop_sentences(found):
    """What the numbers of CoopOnDigits decide."""
    k = min(k for k in found.scores if k)
    alone, revised = found.scores[0].frechet, found.scores[k].frechet
    needed, never = (steps_needed(row, worth_of(found, k)) for row in (found.from_noise, found.lost))
    exact = steps_in_words(steps_needed(found.from_noise, revised))
    far = f"that takes {exact}, to a standard error above it {steps_in_words(needed)}"
    end = list(found.lost.values())[-1]
    nowhere = f"ends at {end:.2f}" if math.isfinite(end) else "is lost: it diverged"
    control = list(found.control.values())[-1]
    both = f"one that met both (as many updates, twice the chains) at {control:.2f}"
    other = both if math.isfinite(control) else "so is its control"
    start = f"from Gaussians of the clusters, untrained, {k} steps reach {found.untrained[k]:.2f}"
    said = [
        f"{k} steps take the generator's images from {alone:.2f} to {revised:.2f}; from noise {far}; {start}",
        f"from noise, a brief energy that met the generator's chains only "
        f"{'gets there too' if math.isfinite(never) else nowhere}, {other}",
    ]
    if {"own z", "inferred z"} <= found.kept.keys():
        own, inferred, linear = found.kept["own z"], found.kept["inferred z"], found.linear
        better = "more" if inferred > own else "no more"
        said += [
            f"of the digits' variance inferred z reaches {better} than own z: {inferred:.2f}, {own:.2f}; linear {linear:.2f}"
        ]
    return said


# %% 3. Energy-based GAN
# An EBGAN's critic D >= 0 is low on data and at least m on what the generator makes; the generator wants its samples low
# (Zhao, Mathieu & LeCun 2017), eq. (3). The margin acts sample by sample: (m - mean D)₊ would let one high sample pay for
# many low ones. What is D, once the game is over? With a table for D, cell i of a grid pays p_i D_i + q_i (m - D_i)₊: least
# at D_i = m where p_i < q_i, and at 0 where p_i > q_i. Hence, TV = Σ |p - q|/2,
#     best value = m Σ min(p_i, q_i) = m (1 - TV(p, q)).
# Three things follow. Where p and q do not meet, D = m wherever the generator is: its slope is 0 and it learns nothing.
# At q = p any constant D is an equilibrium: exp(-D) is then the uniform density, whatever the data are. (Gradient steps of
# two players circle around it and do not come to rest: what arrives is their average over time.) And a term that
# rewards the generator's entropy repairs it, if the margin goes too, since D in [0, m] holds no log density that spans more
# (Dai et al. 2017): against E_q[D] - H(q) the best q is exp(-D)/Z, so that D's slope p - q is maximum likelihood's, and
# exp(-D) becomes the data's density.


def ebgan_value(table, p, q, margin):
    """The critic's loss in eq. (3), in expectation over cells with probabilities p and q, (..., n) -> (...)."""
    return (p * table + q * (margin - table).relu()).sum(-1)


def train_table(p, q, margin, n_steps=4000, rate=2.0):
    """A table D >= 0 (..., n) that descends `ebgan_value` with a falling rate, from m/2."""
    table = torch.full_like(q, margin / 2)
    for step in range(n_steps):
        slope = p - q * (table < margin)
        table = (table - rate * (1 - step / n_steps) * slope).clamp(min=0)
    return table


def exact_best_value(p, q, margin):
    """m (1 - TV(p, q))."""
    return margin * (1 - (p - q).abs().sum(-1) / 2)


def best_table(p, q, margin):
    """The best D (..., n); where neither p nor q is, D is free, and m here."""
    return margin * (p <= q).to(q)


def generator_slope(table, q):
    """What moving all of q (n,) to the right by a cell would change of E_q[D], a cell: central differences, D (n,)."""
    return (q[1:-1] * (table[2:] - table[:-2]) / 2).sum()


def bump(n, centre, width=6):
    """A triangle of probabilities on n cells, 0 beyond `width` cells from its centre."""
    height = (1 - (torch.arange(n, dtype=torch.float64) - centre).abs() / width).clamp(min=0)
    return height / height.sum()


def play(p, margin, with_entropy, n_steps=20_000, rate=0.2):
    """The game on n cells, both by gradient steps from D = m/2 and uniform q: D (n,) averaged over the second half of the
    game, and D at its end."""
    table, log_q, total = torch.full_like(p, margin / 2), torch.full_like(p, -math.log(len(p))), 0
    for step in range(n_steps):
        q = log_q.exp()
        table = (table - rate * (p - q * (1 if with_entropy else table < margin))).clamp(
            min=-math.inf if with_entropy else 0
        )
        log_q = (log_q - rate * (table + (log_q if with_entropy else 0))).log_softmax(0)
        if step >= n_steps // 2:
            total = total + table / (n_steps - n_steps // 2)
    return total, table


def gap_of_table(table, p):
    """KL(p || exp(-D)/Z) in nats."""
    return (torch.xlogy(p, p) - p * (-table).log_softmax(0)).sum().item()


def exact_gap_of_constant(p):
    """KL(p || uniform) = log n - H(p): what any constant D leaves."""
    return math.log(len(p)) - torch.special.entr(p).sum().item()


# The detached target. A critic that is an auto-encoder has D(x) = |x - r(x)|², and x stands in it twice. Code that hands
# r(x) and x.detach() to a mean squared error, as is usual for training an auto-encoder, lets the generator see only r(x).
# For PCA, r(x) = P x with a projection P, both slopes have a closed form:
#     ∇ |x - P x|² = 2 (I - P)ᵀ(I - P) x = 2 (I - P) x,      and with x detached      2 Pᵀ(P x - x) = 0.
# The generator would be told nothing at all.


def reconstruction_slope(x, basis, detaches):
    """The slope of |x - P x|² in x (B, d) by autograd, P = basis basisᵀ (d, k); `detaches` holds the target still."""
    x = x.detach().requires_grad_(True)
    target = x.detach() if detaches else x
    return torch.autograd.grad((target - x @ basis @ basis.T).square().sum(), x)[0]


def exact_pca_slope(x, basis):
    """2 (I - P) x."""
    return 2 * (x - x @ basis @ basis.T)


# Pulling away. Nothing in E_g[D] asks the samples of a batch to differ. The pulling-away term does: the mean squared cosine
# between the codes of different samples, in the critic's own code space. It is no entropy, and has no value in nats.


class Critic(nn.Module):
    """D(x) = |x - decode(encode(x))|², (*copies, B, d) -> (*copies, B); clusters c (B,) have biases."""

    def __init__(self, d, n_code, width=128, copies=(), roughness=1.0, n_clusters=1):
        super().__init__()
        self.encode, self.decode = Net((d, width, n_code), copies, n_clusters), Net((n_code, width, d), copies, n_clusters)
        with torch.no_grad():
            self.encode.weights[0].mul_(roughness)  # in the plane a network is smooth unless it starts rough

    def forward(self, x, c=None):
        return (x - self.decode(self.encode(x, c), c)).square().sum(-1)


def pulling_away(codes):
    """Mean squared cosine of codes i != j, (*copies, n, k) -> (*copies)."""
    unit, n = normalize(codes, dim=-1), codes.shape[-2]
    return ((unit @ unit.mT).square().sum((-2, -1)) - n) / (n * (n - 1))


def train_ebgan(draw_data, critic, generator, pull, margin, n_updates, rates=(3e-3, 1e-3), b1=0.5, batch=128):
    """An EBGAN; draw_data(shape) gives data (*copies, batch, d), and their clusters or None. Returns the generator's
    average. `rates` are the critic's and the generator's."""
    copies, n_latent = generator.weights[0].shape[:-2], generator.weights[0].shape[-2]
    nets = zip((critic, generator), rates, strict=True)
    longest = math.inf if copies else 5.0  # one norm over all copies would let each shorten the others' gradients
    lower, upper = (Descent([net], rate, n_updates, max_norm=longest, memory=0.99, b1=b1) for net, rate in nets)
    for _ in Progress(range(n_updates), f"EBGAN, pulling away {pull:g}"):
        x_data, c = draw_data((*copies, batch))
        x = generator(torch.randn(*copies, batch, n_latent, device=x_data.device), c)
        loss = critic(x_data, c).mean(-1) + (margin - critic(x.detach(), c)).relu().mean(-1)
        lower.down(loss.sum())
        upper.down((critic(x, c).mean(-1) + pull * pulling_away(critic.encode(x, c))).sum())
    return upper.average[0]


# 25 Gaussians: a 5x5 grid of spacing 2, standard deviation 0.2.

SPREAD = 0.2


def grid_centres():
    """(25, 2)."""
    line = torch.arange(5) * 2.0 - 4
    return torch.cartesian_prod(line, line)


def grid_data(shape):
    """Points (*shape, 2)."""
    return grid_centres()[torch.randint(25, shape)] + SPREAD * torch.randn(*shape, 2)


def grid_log_density(x, spread=SPREAD):
    """log p(x), (..., 2) -> (...): the grid is a product, so its density is one of two densities with five modes each."""
    squares = (x.unsqueeze(-1) - torch.arange(-4.0, 5.0, 2.0)).square()
    return ((-squares / (2 * spread**2)).logsumexp(-1) - math.log(5 * math.sqrt(2 * math.pi) * spread)).sum(-1)


class Coverage(NamedTuple):
    """How points cover the 25 Gaussians."""

    n_modes: int  # that get at least a tenth of their share, counted within three standard deviations
    kl: float  # of the shares of the nearest modes to even ones, nats
    near: float  # share within three standard deviations of a mode


def coverage(x):
    """Coverage of points (N, 2)."""
    distance, nearest = torch.cdist(x, grid_centres()).min(1)
    is_near = distance < 3 * SPREAD
    count, share = torch.bincount(nearest[is_near], minlength=25), torch.bincount(nearest, minlength=25).double() / len(x)
    kl = (torch.xlogy(share, share).sum() + math.log(25) * share.sum()).item()
    return Coverage((count >= 0.1 * len(x) / 25).sum().item(), kl, is_near.float().mean().item())


def theory_near(step_size=0.0):
    """The share of a plane Gaussian within three standard deviations: 1 - exp(-9/2); where Langevin steps of this size end,
    it is wider by 1/(1 - ε/(4 s²)), s = 0.2 (module 01)."""
    return 1 - math.exp(-4.5 * (1 - step_size / (4 * SPREAD**2)))


def theory_kl_floor(n):
    """What the KL of shares of 25 even modes is on average for n perfect samples: (25 - 1)/(2n) (a chi-square over 2n)."""
    return 24 / (2 * n)


class Tabular(NamedTuple):
    """EBGAN on tables: trained values beside exact ones, the generator's slopes, and what D is a density of."""

    tv: np.ndarray
    value: np.ndarray
    exact: np.ndarray
    slope_apart: float
    slope_overlapping: float
    p: torch.Tensor
    tables: dict  # {"margin" or "entropy": D averaged over the second half of the game}
    ends: dict  # {the same: D at the end of the game}


MARGIN = 1.0


def measure_tables(n=40, n_steps=20_000):
    """Tabular, on a line of n cells: data in the middle of its left half, and a generator at growing distances."""
    p = bump(n, n // 4)
    q = torch.stack([bump(n, n // 4 + shift) for shift in range(n // 2)])
    value = ebgan_value(train_table(p, q, MARGIN), p, q, MARGIN)
    far = q[n // 2 - 1] * torch.linspace(0.5, 1.5, n)  # lopsided: what is symmetric has no slope under any symmetric D
    slopes = [generator_slope(best_table(p, x, MARGIN), x).item() for x in (far / far.sum(), q[3])]
    both = 0.6 * bump(n, n // 4) + 0.3 * bump(n, 3 * n // 4) + 0.1 / n
    games = {name: play(both, MARGIN, name == "entropy", n_steps) for name in ("margin", "entropy")}
    tables, ends = ({name: game[i] for name, game in games.items()} for i in (0, 1))
    tv = (p - q).abs().sum(1) / 2
    return Tabular(*(to_numpy(row) for row in (tv, value, exact_best_value(p, q, MARGIN))), *slopes, both, tables, ends)


def measure_pulling(n_updates, n_copies=3, weights=(0.0, 1.0)):
    """{weight of the pulling-away term: points (n_copies, 4000, 2)} of EBGANs on the 25 Gaussians."""
    points = {}
    for weight in weights:
        critic, generator = Critic(2, 8, copies=(n_copies,), roughness=5.0), Net((2, 128, 128, 2), (n_copies,))
        generator = train_ebgan(lambda shape: (grid_data(shape), None), critic, generator, weight, MARGIN, n_updates)
        with torch.no_grad():
            points[weight] = generator(torch.randn(n_copies, 4000, 2))
    return points


def measure_detached(x, n_components=16):
    """Root mean squares of the critic's slope at images x (N, 64) for PCA: true, by its formula, and with the target
    detached; and of what the first two differ by."""
    x = x.double() - x.double().mean(0)
    basis = torch.linalg.svd(x, full_matrices=False).Vh[:n_components].T
    true, detached = (reconstruction_slope(x, basis, detaches) for detaches in (False, True))
    exact = exact_pca_slope(x, basis)
    return [part.square().mean().sqrt().item() for part in (true, exact, detached, true - exact)]


def draw_tables(found):
    """The critic's value against TV, and what D is a density of."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    axes[0].plot(found.tv, found.exact, "k-", lw=1, label="theory: m (1 - TV)")
    axes[0].plot(found.tv, found.value, "o", color="tab:orange", label="trained tables")
    axes[0].set(title="The critic measures total variation", xlabel="TV(p, q)", ylabel="value of the best critic")
    axes[0].legend()
    cells = range(len(found.p))
    axes[1].bar(cells, found.p.numpy(), color="0.8", label="data p")
    for table, label, style in (
        (found.ends["margin"], "exp(-D)/Z, EBGAN, last step", ":r"),
        (found.tables["margin"], "exp(-D)/Z, EBGAN, average", "--b"),
        (found.tables["entropy"], "exp(-D)/Z, with entropy", "-b"),
    ):
        axes[1].plot(cells, (-table).softmax(0).numpy(), style, lw=2, label=label)
    axes[1].set(title="Only with an entropy term is exp(-D)\nthe data's density", xlabel="cell", ylabel="probability")
    axes[1].legend()
    return fig


def draw_plane(columns, title):
    """Points of several generators on the 25 Gaussians; columns: {label: points (N, 2)}."""
    fig, axes = plt.subplots(1, len(columns), figsize=(3.4 * len(columns), 3.9), layout="constrained", sharey=True)
    for ax, (label, x) in zip(axes, columns.items(), strict=True):
        ax.scatter(*x[:3000].T.numpy(), s=2, color="tab:orange", alpha=0.5)
        ax.scatter(*grid_centres().T.numpy(), s=40, marker="+", color="k", lw=1)
        ax.set(title=label, xlabel="$x_1$", xlim=(-5.5, 5.5), ylim=(-5.5, 5.5))
    axes[0].set_ylabel("$x_2$ (crosses: the modes)")
    fig.suptitle(title)
    return fig


def record_tables(run, found):
    """The metrics of Tabular."""
    off = np.abs(found.value - found.exact).max()
    run.metric("value - m (1 - TV), at most, 20 generators", off, None, ("theory", 0), 1e-3)
    run.metric("generator's slope, disjoint supports", found.slope_apart, None, ("theory", 0), 0)
    run.metric("generator's slope, overlapping", found.slope_overlapping, against=("disjoint", found.slope_apart))
    constant = exact_gap_of_constant(found.p)
    gap = {name: gap_of_table(table, found.p) for name, table in found.tables.items()}
    moving, still = (tables["margin"].std() for tables in (found.ends, found.tables))
    run.metric("EBGAN's game: D's sd over cells, at its end", moving, against=("averaged over time", still))
    run.metric("gap of exp(-D), EBGAN (nats)", gap["margin"], None, ("a constant D", constant), 1e-3)
    run.metric("gap of exp(-D), entropy added (nats)", gap["entropy"], None, ("theory", 0), 1e-6)
    return gap


def section_ebgan(run):
    """An EBGAN's critic measures total variation, a constant at equilibrium; an entropy term makes it a density."""
    found, config = measure_tables(), run.config
    gap = record_tables(run, found)
    run.figure(draw_tables(found), "tables")
    true, exact, detached, off = measure_detached(digits_of(run).x)
    run.metric("PCA critic: rms slope", true, against=("2 (I - P) x", exact))
    run.metric("PCA critic: slope - 2 (I - P) x, rms", off, None, ("theory", 0), 1e-12)
    run.metric("PCA critic: rms slope, target detached", detached, None, ("theory", 0), 1e-12)
    points = measure_pulling(config.n_ebgan)
    covered = {weight: [coverage(x) for x in copies] for weight, copies in points.items()}
    for weight, rows in covered.items():
        for name, key, reference in (("modes of 25", "n_modes", 25), ("share within 3 sd", "near", theory_near())):
            label = f"pulling away {weight:g}: {name}"
            run.metric(label, *mean_and_sem([float(getattr(row, key)) for row in rows]), ("a perfect sampler", reference))
    columns = {
        f"pulling away {weight:g}:\n{', '.join(str(row.n_modes) for row in covered[weight])} modes": copies[0]
        for weight, copies in points.items()
    }
    run.figure(draw_plane(columns, "EBGANs on 25 Gaussians: modes of three generators, points of the first"), "plane")
    run.say(f"exp(-D), D's average, is {gap['margin']:.3f} nats from the data by EBGAN, {gap['entropy']:.1g} with entropy")
    run.say(pulling_sentence(*(torch.tensor([float(row.n_modes) for row in covered[weight]]) for weight in (0.0, 1.0))))


def pulling_sentence(without, with_it):
    """What pulling away did to numbers of modes (S,) each, by Student's t: of three generators, two standard errors are
    crossed by chance at 12 %."""
    (a, sem_a), (b, sem_b) = mean_and_sem(without), mean_and_sem(with_it)
    if not abs(b - a) > scipy.stats.t.isf(0.025, 2 * len(without) - 2) * math.hypot(sem_a, sem_b):
        return f"pulling away: {a:.1f} modes without, {b:.1f} with it: no difference at the 5 % level"
    return f"pulling away {'gains' if b > a else 'loses'} modes: {a:.1f} without, {b:.1f} with it"


# %% 4. JEM
# A classifier's logits are free by a function of x: softmax f(x) = softmax (f(x) + c(x)). JEM (Grathwohl et al. 2020) spends
# that freedom, log p(x) = log Σ_y exp f_y(x) - log Z, so that log p(x, y) = f_y(x) - log Z, and learns both:
#     log p(x, y) = log p(y | x) + log p(x):      cross entropy, and the two phases of eq. (1) for E = -log Σ_y exp f_y.
# On a line with quadratic logits, f_y(x) = θ_y·(1, x, x²), a mixture of three Gaussians is f_y(x) = log p(x, y) exactly.
# JEM must find p(y | x) *and* log p(x) + const. Cross entropy must find p(y | x), and nothing more: its slopes in the θ_y
# sum to 0, since Σ_y (softmax f - one-hot) = 0, so Σ_y θ_y stays where it began, whatever the data are.


def mixture_on_line(x):
    """log p(x, y) of three Gaussians that differ in weight, mean and width, x (N,) -> (N, 3)."""
    weight, mean, std = torch.tensor([[0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.7, 0.5, 1.0]]).double()
    return weight.log() - 0.5 * ((x[:, None] - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)


def line(n=400, box=8.0):
    """The middles of n cells of [-box, box], and the width of a cell."""
    return ((torch.arange(n).double() + 0.5) / n * 2 - 1) * box, 2 * box / n


def exact_losses(theta, x, dx, log_joint):
    """Cross entropy and -log p(x) of logits θ_y·(1, x, x²), in expectation over p(x, y) on a grid, nats; θ (3, classes)."""
    logits, p = torch.stack([torch.ones_like(x), x, x**2], 1) @ theta, log_joint.exp() * dx
    energy = -logits.logsumexp(1)
    log_z = (-energy).logsumexp(0) + math.log(dx)
    return -(p * logits.log_softmax(1)).sum(), (p.sum(1) * energy).sum() + log_z


def fit_logits(theta, x, dx, log_joint, is_joint):
    """θ that minimises cross entropy, plus -log p(x) if is_joint, by L-BFGS from θ (3, classes)."""
    theta = theta.clone().requires_grad_(True)
    options = {"max_iter": 2000, "tolerance_grad": 1e-10, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS([theta], history_size=20, **options)

    def closure():
        optimiser.zero_grad()
        cross, marginal = exact_losses(theta, x, dx, log_joint)
        loss = cross + marginal if is_joint else cross
        loss.backward()
        return loss

    optimiser.step(closure)
    return theta.detach()


class OnMixture(NamedTuple):
    """Logits on the line, fitted, beside the mixture's own."""

    bayes_error: float  # mean over p(x) of the total variation between p(y | x) and Bayes'
    density_error: float  # standard deviation over p(x) of logsumexp f(x) - log p(x), nats
    drift: float  # how far Σ_y θ_y moved
    log_density: np.ndarray  # logsumexp f on the grid, less its mean distance from log p


def judge_logits(theta, start, x, dx, log_joint):
    """OnMixture of θ that began as `start`."""
    logits, p = torch.stack([torch.ones_like(x), x, x**2], 1) @ theta, log_joint.exp().sum(1) * dx
    apart = (logits.softmax(1) - log_joint.softmax(1)).abs().sum(1) / 2
    off = logits.logsumexp(1) - log_joint.logsumexp(1)
    shift = (p * off).sum() / p.sum()
    spread = (p * (off - shift) ** 2).sum().sqrt()
    log_density = (logits.logsumexp(1) - shift).numpy()
    return OnMixture((p * apart).sum().item(), spread.item(), (theta - start).sum(1).abs().max().item(), log_density)


def measure_on_mixture():
    """{"JEM", "cross entropy", "another start" of it: OnMixture}."""
    (x, dx), found = line(), {}
    starts = [torch.randn(3, 3).double() * torch.tensor([[1.0], [0.5], [0.1]]).double() for _ in range(2)]
    cases = (("JEM", 0, True), ("cross entropy", 0, False), ("another start", 1, False))
    for name, start, is_joint in cases:
        theta = fit_logits(starts[start], x, dx, mixture_on_line(x), is_joint)
        found[name] = judge_logits(theta, starts[start], x, dx, mixture_on_line(x))
    return found


# On digits f_y(x) = u_y(x) - |x - g(x)|²/(2σ²): the freedom c(x) holds the auto-encoder that learns so fast in module 07,
# and softmax f = softmax u is an ordinary network of one hidden layer. So three rivals are one network: by cross entropy,
# by cross entropy with the noise and the weight decay that did best on validation images, and by JEM.
#
# A reliability diagram groups predictions by confidence; ECE is the mean gap between confidence and accuracy. It cannot be
# 0 on finite data. If each prediction i were right with exactly its confidence p_i, a bin's sum of gaps would be a sum of
# independent terms of variance p_i (1 - p_i), whose mean absolute value is √(2/π) times its standard deviation:
#     E[ECE | perfect] ≈ Σ_bins √((2/π) Σ_{i in bin} p_i (1 - p_i)) / N.
# What is below the 95 % quantile of ECE under that null says nothing against calibration. Beside it stand the mean of
# -log p(y | x) (NLL) and the Brier score, the mean of Σ_y (p_y - 1[y is right])²: both are least for the true p(y | x).
#
# An energy may also say which images are no digits ("out of distribution"): here means of two digits of different classes,
# which lie near, and inverted digits, which lie far. AUROC is the chance that a digit scores higher than such an image, ties
# counted a half. A plain classifier's logsumexp serves as a score too (Liu et al. 2020), though nothing has taught it p(x).


def train_jem(x, y, x_all, config, n_updates):
    """JEM on labelled images x, y, and on x_all without their labels."""
    energy = AutoEncoderEnergy(x.shape[1], config.width, config.sigma, n_classes=10).to(x.device)
    descent = Descent([energy], config.learning_rate, n_updates, WARM_UP)
    chains = Chains(8 * config.batch_size, x.shape[1], None, x.device)
    for _ in Progress(range(n_updates), "JEM"):
        x_model = revised(energy, chains.next(config.batch_size)[0], None, config)
        chains.keep(x_model)
        some = torch.randint(len(x), (config.batch_size,), device=x.device)
        cross = cross_entropy(energy.logits(noisy(x[some])), y[some])
        some = torch.randint(len(x_all), (config.batch_size,), device=x.device)
        descent.down(cross + phases_loss(energy, noisy(x_all[some]), x_model))
    return descent.average[0]


def train_classifier(x, y, config, n_updates, noise, decay, rate=1e-3):
    """The same network by cross entropy, on images with noise, with weight decay (of L2 kind, on the matrices)."""
    energy = AutoEncoderEnergy(x.shape[1], config.width, config.sigma, n_classes=10).to(x.device)
    descent = Descent([energy], rate, n_updates)
    for _ in range(n_updates):
        some = torch.randint(len(x), (config.batch_size,), device=x.device)
        size = energy.w1.square().sum() + energy.head.weight.square().sum()
        logits = energy.logits(x[some] + noise * torch.randn_like(x[some]))
        descent.down(cross_entropy(logits, y[some]) + decay * size)
    return descent.average[0]


N_BINS = 15


def calibration_error(confidence, right):
    """ECE: Σ_bins |Σ (right - confidence)|/N over 15 equal bins of confidence (..., N) (Guo et al. 2017), (...)."""
    which = (confidence * N_BINS).long().clamp(max=N_BINS - 1)
    gaps = torch.zeros(*confidence.shape[:-1], N_BINS, dtype=confidence.dtype)
    return gaps.scatter_add_(-1, which, right - confidence).abs().sum(-1) / confidence.shape[-1]


def calibration_null(confidence, n_draws=2000):
    """ECE (n_draws,) of a perfectly calibrated classifier with these confidences (N,): right with just that chance."""
    confidence = confidence.expand(n_draws, -1)
    return calibration_error(confidence, (torch.rand_like(confidence) < confidence).to(confidence))


def theory_calibration_floor(confidence):
    """The mean of `calibration_null`, by the normal approximation above."""
    which = (confidence * N_BINS).long().clamp(max=N_BINS - 1)
    variance = torch.zeros(N_BINS, dtype=confidence.dtype).scatter_add_(0, which, confidence * (1 - confidence))
    return ((2 / math.pi * variance).sqrt().sum() / len(confidence)).item()


class Graded(NamedTuple):
    """A classifier on test images."""

    right: torch.Tensor  # (N,)
    nll: torch.Tensor  # nats, (N,)
    brier: torch.Tensor  # Σ_y (p_y - 1[y])², (N,)
    ece: float
    null_mean: float
    null_95: float  # 95 % quantile of ECE if perfectly calibrated
    floor: float  # by theory


def grade(log_p, y):
    """Graded, from log p(y | x) (N, 10) and labels (N,)."""
    log_p, y = log_p.detach().double().cpu(), y.cpu()
    confidence, chosen = log_p.exp().clamp(max=1).max(1)
    right = (chosen == y).double()
    brier = (log_p.exp() - nn.functional.one_hot(y, 10)).square().sum(1)
    null = calibration_null(confidence)
    ece = calibration_error(confidence, right).item()
    floor = theory_calibration_floor(confidence)
    return Graded(
        right, -log_p.gather(1, y[:, None])[:, 0], brier, ece, null.mean().item(), null.quantile(0.95).item(), floor
    )


def between_classes(x, y):
    """Mean images of each x (N, d) and another one of another class (M, d): near the digits, and none."""
    other = torch.randperm(len(x), device=x.device)
    return ((x + x[other]) / 2)[y != y[other]]


class Separation(NamedTuple):
    """How a score that is high inside tells images inside from images outside; the mean of either is AUROC."""

    inside: np.ndarray  # of each image inside, the share of those outside that score less, (N,)
    outside: np.ndarray  # of each image outside, the share of those inside that score more, (M,)


def separate(inside, outside):
    """Separation by a score's values inside (N,) and outside (M,); ties count a half."""
    inside, outside = in_float64(inside)[:, None], in_float64(outside)
    above = (inside > outside) + (inside == outside) / 2
    return Separation(above.mean(1), above.mean(0))


def auroc(found, less=None):
    """AUROC of a Separation and its standard error (DeLong, DeLong & Clarke-Pearson 1988), as if the images inside and
    outside were independent; with `less`, of another score on the same images, the difference of the two."""
    inside, outside = found if less is None else (a - b for a, b in zip(found, less, strict=True))
    return inside.mean(), math.hypot(mean_and_sem(inside)[1], mean_and_sem(outside)[1])


def few_labels(y, n_each):
    """Indices of n_each random examples a class."""
    order = torch.randperm(len(y), device=y.device)
    return torch.cat([order[y[order] == k][:n_each] for k in range(10)])


class OnLabels(NamedTuple):
    """JEM and its rivals on digits."""

    classified: dict  # {method: Graded}
    scores: DigitScores  # of JEM's samples
    images: torch.Tensor  # some of them
    ood: dict  # {(set, score): Separation}
    few: dict  # {method: right (N,) with five labels a class}
    floor: float


# Chosen by the negative log likelihood of validation images (--split validation), seeds 0 and 1, among noise 0, 0.2, 0.4
# and 0.6 and decay 0, 1e-4 and 1e-3: noise helps most, decay never did. JEM's settings were chosen by its samples (part 6),
# not by this likelihood; as much noise on its labelled images did not help it (seed 0). With five labels a class both keep
# these settings, while the SVM and label spreading have some that were chosen for five.
REGULARISED = {"noise": 0.4, "decay": 0.0}


def ood_scores(run, jem, plain):
    """{score: function of images (N, d), high inside}: of JEM, of the plain classifier, and of a mixture."""
    x = in_float64(digits_of(run).x)
    mixture = GaussianMixture(N_COMPONENTS, reg_covar=1e-3, random_state=run.seed).fit(x)
    return {
        "JEM, -E": lambda x: -jem(x),
        "plain, confidence": lambda x: plain.class_scores(x).softmax(1).amax(1),
        "plain, free energy": lambda x: plain.class_scores(x).logsumexp(1),
        "mixture, log p": lambda x: torch.as_tensor(mixture.score_samples(in_float64(x))),
    }


# Copied from 07_neural_ebms.py: MixtureOfGaussians
class MixtureOfGaussians(NamedTuple):
    """K Gaussians: their weights (K,), means (K, d), and covariances (K, d, d), or variances (K, d)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


# Copied from 07_neural_ebms.py: fit_mixture
def fit_mixture(x, n_components, seed, y=None):
    """A mixture fitted to images x (N, d), or one for each label of y (N,), weighed by the labels' shares. Covariances are
    full, but where they have too many entries."""
    kind, parts = "full" if x.shape[1] < 100 else "diag", [x] if y is None else [x[y == k] for k in y.unique()]
    fits = [GaussianMixture(n_components, covariance_type=kind, reg_covar=1e-3, random_state=seed) for _ in parts]
    fits = [(fit.fit(in_float64(part)), len(part) / len(x)) for fit, part in zip(fits, parts, strict=True)]
    weights = np.concatenate([share * fit.weights_ for fit, share in fits])
    return MixtureOfGaussians(
        weights, *(np.concatenate([getattr(f, name) for f, _ in fits]) for name in ("means_", "covariances_"))
    )


# Copied from 07_neural_ebms.py: draw_mixture
def draw_mixture(mixture, n, rng, by_share=True):
    """n images (n, d) of a mixture, clamped to [-1, 1]: of each Gaussian as many as its weight says, or at random."""
    k = rng.choice(len(mixture.weights), n, p=mixture.weights)
    if by_share:
        even = (rng.random() + np.arange(n)) / n
        k = rng.permutation(np.minimum(mixture.weights.cumsum().searchsorted(even), len(mixture.weights) - 1))
    noise, spread = rng.standard_normal((n, mixture.means.shape[1])), mixture.covariances
    noise = noise * np.sqrt(spread[k]) if spread.ndim == 2 else (np.linalg.cholesky(spread)[k] @ noise[..., None])[..., 0]
    return torch.as_tensor((mixture.means[k] + noise).clip(-1, 1), dtype=torch.float32)


@torch.no_grad()
def classify_few(run, n_updates, n_each=5):
    """{method: right (N,)} on test images, from n_each labels a class; some also see all images without labels."""
    digits, config = digits_of(run), run.config
    some = few_labels(digits.y, n_each)
    x, y, known = digits.x[some], digits.y[some], torch.full_like(digits.y, -1)
    known[some] = y
    with torch.enable_grad():
        jem = train_jem(x, y, digits.x, config, n_updates)
        plain = train_classifier(x, y, config, 2 * n_updates, **REGULARISED)
    svm = SVC(C=10).fit(in_float64(x), to_numpy(y))  # C and neighbours: best on validation images, eight draws of labels
    spread = LabelSpreading(kernel="knn", n_neighbors=12, max_iter=1000).fit(in_float64(digits.x), to_numpy(known))
    chosen = {"JEM": jem.class_scores(digits.x_test).argmax(1), "cross entropy": plain.class_scores(digits.x_test).argmax(1)}
    for name, model in (("SVM", svm), ("label spreading", spread)):
        with np.errstate(invalid="ignore"):  # an image that no label reaches: 0/0, and class 0
            labels = model.predict(in_float64(digits.x_test))
        chosen[name] = torch.as_tensor(labels, device=run.device)
    return {name: (labels == digits.y_test).double().cpu() for name, labels in chosen.items()}


@own_random_stream
def measure_jem(run):
    """OnLabels."""
    torch.manual_seed(run.seed)
    digits, config = digits_of(run), run.config
    models = {
        "JEM": train_jem(digits.x, digits.y, digits.x, config, config.n_jem),
        "cross entropy": train_classifier(digits.x, digits.y, config, 2 * config.n_jem, 0.0, 0.0),
        "regularised": train_classifier(digits.x, digits.y, config, 2 * config.n_jem, **REGULARISED),
    }
    with torch.no_grad():
        classified = {
            name: grade(net.class_scores(digits.x_test).log_softmax(1), digits.y_test) for name, net in models.items()
        }
        sets = {"between classes": between_classes(digits.x_test, digits.y_test), "inverted": -digits.x_test}
        scores = ood_scores(run, models["JEM"], models["cross entropy"])
        ood = {(name, kind): separate(f(digits.x_test), f(x)) for name, x in sets.items() for kind, f in scores.items()}
    jem = models["JEM"]
    x = torch.randn(config.n_samples, digits.x.shape[1], device=run.device)
    x = clean_mean(jem, run_chains(jem, x, None, config.n_from_noise, config.step_size))
    few = classify_few(run, config.n_jem)
    return OnLabels(classified, score_images(run, x), x[:40], ood, few, real_floor(run))


def draw_on_mixture(found):
    """logsumexp f as a density: JEM's and those of cross entropy, beside the mixture."""
    (x, _), fig = line(), plt.figure(figsize=(8, 4), layout="constrained")
    ax = fig.subplots()
    ax.plot(x, mixture_on_line(x).logsumexp(1), color="0.7", lw=6, label="the mixture's log p(x)")
    for (name, fitted), style in zip(found.items(), ("-", "--", ":"), strict=True):
        ax.plot(x, fitted.log_density, style, color="tab:blue" if name == "JEM" else "tab:red", lw=2, label=name)
    ax.set(title="Cross entropy leaves p(x) to its start", xlabel="x", ylabel="logsumexp f(x), shifted (nats)")
    ax.set(ylim=(-25, 15), xlim=(-5.5, 5.5))
    ax.legend(loc="lower center")
    return fig


METHOD_COLORS = {"JEM": "tab:blue", "cross entropy": "tab:red", "regularised": "tab:green"}


def draw_jem(found):
    """Calibration beside its null, samples, and what five labels a class are worth."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained", width_ratios=(1.2, 0.8, 1.2))
    for i, (name, row) in enumerate(found.classified.items()):
        axes[0].bar(i, row.null_95, 0.7, color="0.85", label="calibrated: up to here in 95 %" if i == 0 else None)
        axes[0].plot(i, row.ece, "o", ms=11, color=METHOD_COLORS[name])
    beyond = [name for name, row in found.classified.items() if row.ece > row.null_95]
    axes[0].set_xticks(range(len(found.classified)), list(found.classified))
    axes[0].set(title=f"Miscalibrated beyond chance:\n{', '.join(beyond) or 'none'}", ylabel="calibration error (ECE)")
    axes[0].set_ylim(0, 1.35 * max(max(row.ece, row.null_95) for row in found.classified.values()))
    axes[0].legend(loc="upper right")
    show_images(axes[1], found.images, 5, f"JEM's samples:\nFréchet {found.scores.frechet:.2f}")
    rows = {name: mean_and_sem(right) for name, right in found.few.items()}
    means, sems = zip(*rows.values(), strict=True)
    axes[2].barh(list(rows), means, xerr=2 * np.array(sems), color="tab:orange")
    axes[2].set(
        title=f"Five labels a class, best:\n{', '.join(leaders(found.few))}",
        xlabel="test accuracy (bars: 2 standard errors)",
        xlim=(0.5, 1),
    )
    return fig


def record_on_mixture(run, found):
    """The metrics of `measure_on_mixture`."""
    for name, fitted in found.items():
        run.metric(f"{name}: TV to Bayes", fitted.bayes_error, None, ("theory", 0), 1e-4)
        joint = name == "JEM"
        run.metric(f"{name}: logsumexp", fitted.density_error, None, ("log p(x) + const", 0), 1e-3 if joint else None)
        if not joint:
            run.metric(f"{name}: sum of theta moved", fitted.drift, None, ("theory", 0), 1e-9)


def record_classified(run, found):
    """The metrics of the classifiers, each beside the regularised one, and of their calibration beside its null."""
    rival = found.classified["regularised"]
    for name, row in found.classified.items():
        for label, key in (("accuracy", "right"), ("NLL (nats)", "nll"), ("Brier score", "brier")):
            beside = None if row is rival else ("regularised", getattr(rival, key).mean())
            run.metric(f"{name}: {label}", *mean_and_sem(getattr(row, key)), beside)
        run.metric(f"{name}: ECE", row.ece, against=("95 % of calibrated ones below", row.null_95))
        run.metric(f"{name}: ECE if calibrated", row.null_mean, against=("theory", row.floor))


def section_jem(run):
    """A classifier's logits leave p(x) free; JEM spends the freedom: what it gains, and what a careful rival gains too."""
    on_mixture, found = measure_on_mixture(), measure_jem(run)
    record_on_mixture(run, on_mixture)
    run.figure(draw_on_mixture(on_mixture), "freedom")
    record_classified(run, found)
    record_digit_scores(run, "JEM's samples", found.scores, found.floor)
    for (name, kind), separation in found.ood.items():
        run.metric(f"AUROC, {name}: {kind}", *auroc(separation), ("chance", 0.5))
    for name, right in found.few.items():
        spread = found.few["label spreading"].mean()
        run.metric(f"five labels a class: {name}", *mean_and_sem(right), ("label spreading", spread))
    run.figure(draw_jem(found), "digits")
    for sentence in jem_sentences(found):
        run.say(sentence)


def leaders(found):
    """The best of {name: right (N,)} on the same images, and whoever is not beyond two standard errors of the difference:
    of other images, that is, for the same training and the same draw of labels."""
    best = max(found, key=lambda name: found[name].mean())
    lead = {name: mean_and_sem(found[best] - right) for name, right in found.items()}
    return [best, *(name for name, (mean, sem) in lead.items() if name != best and mean <= 2 * sem)]


def jem_sentences(found):
    """Where JEM wins and where it does not, by this run's numbers."""
    jem, rival = found.classified["JEM"], found.classified["regularised"]
    sentences = []
    for label, key, sign in (("accuracy", "right", 1), ("NLL", "nll", -1)):
        mean, sem = mean_and_sem(sign * (getattr(jem, key) - getattr(rival, key)))
        word = "no different" if not abs(mean) > 2 * sem else "better" if mean > 0 else "worse"
        sentences.append(
            f"{label}: JEM is {word} beside regularised cross entropy ({sign * mean:+.3f}, standard error {sem:.3f})"
        )
    for name in dict.fromkeys(name for name, _ in found.ood):
        row = {kind: separation for (other, kind), separation in found.ood.items() if other == name}
        best = max(row, key=lambda kind: auroc(row[kind])[0])
        lead = {kind: auroc(row[best], separation) for kind, separation in row.items()}
        first = ", ".join(f"{kind} {auroc(row[kind])[0]:.3f}" for kind, (mean, sem) in lead.items() if mean <= 2 * sem)
        sentences.append(f"images {name}: told best, or not beyond two standard errors, by {first}")
    few = ", ".join(f"{name} {found.few[name].mean():.3f}" for name in leaders(found.few))
    return [
        *sentences,
        f"five labels a class, this draw of them: best or not told from it: {few}; JEM {found.few['JEM'].mean():.3f}",
    ]


# %% 5. Amortised negatives
# A generator q can be the sampler of eq. (1)'s negative phase, if it follows the energy. For any q (Gibbs' inequality)
#     log Z = log ∫ exp(-E) = H(q) - E_q[E] + KL(q || exp(-E)/Z)  >=  H(q) - E_q[E].
# So q minimises E_q[E] - H(q): without H it would sit down in the deepest point. For x = A z and E = xᵀΣ⁻¹x/2 the
# objective is tr(AᵀΣ⁻¹A)/2 - log|det A| + const, whose slope Σ⁻¹A - A⁻ᵀ is 0 where A Aᵀ = Σ; without the entropy it is
# Σ⁻¹A, and gradient steps of size η make A <- (I - η Σ⁻¹) A: to 0, at a known rate.


def linear_slope(A, precision, with_entropy):
    """∇_A of E_z[E(A z)] - H, E = xᵀ precision x/2, by hand, (d, d)."""
    return precision @ A - (torch.linalg.inv(A).T if with_entropy else 0)


def fit_linear(A, precision, with_entropy, n_steps, rate):
    """A after n_steps of gradient descent."""
    for _ in range(n_steps):
        A = A - rate * linear_slope(A, precision, with_entropy)
    return A


def exact_linear_decay(A, precision, n_steps, rate):
    """(I - η Σ⁻¹)^n A: gradient descent without the entropy."""
    return torch.linalg.matrix_power(torch.eye(len(A)).to(A) - rate * precision, n_steps) @ A


# H of a generator. Where g maps as many dimensions as it has, and is one to one, H(x) = H(z) + E log|det ∂g/∂z| exactly.
# (Not one to one, the formula counts twice where two z meet, and a free network learns to fold.) A triangular map is
# one to one by construction, and its Jacobian's determinant is a product: x_1 = f(z_1), x_2 = f(z_2; x_1), each f rising,
#     f(z) = a z + b + Σ_k h_k tanh(r_k (z - t_k)),      a, h_k, r_k > 0:      stairs, as steep as they need to be.
# Two things go at different speeds. The thresholds t_k decide the modes' shares, and are right while the modes overlap;
# once they are apart a share hardly feels its neighbours, and thresholds that still move fast wander off. The
# steepness has to grow all the while. So the rate of learning falls with the width's power 3.5, and steepness is exp(4 θ):
# its logarithm moves four times as fast.


def stairs(z, parameters):
    """f(z) and log f'(z), each (B,), for parameters (B or 1, K + 1, 3): (log a/4, b, -), then (log h_k, log r_k/4, t_k)."""
    height, rate = parameters[:, 1:, 0].exp(), (4 * parameters[:, 1:, 1]).exp()
    slope, step = (4 * parameters[:, 0, 0]).exp(), torch.tanh(rate * (z.unsqueeze(1) - parameters[:, 1:, 2]))
    x = slope * z + parameters[:, 0, 1] + (height * step).sum(1)
    return x, (slope + (height * rate * (1 - step.square())).sum(1)).log()


class Triangular(nn.Module):
    """z (B, 2) -> x (B, 2), one to one, and log|det ∂x/∂z| (B,)."""

    def __init__(self, n_steps=12, width=64):
        super().__init__()
        start = torch.zeros(1, n_steps + 1, 3)
        start[0, 1:] = torch.tensor([-1.0, 0.125, 0.0])
        start[0, 1:, 2] = torch.linspace(-2, 2, n_steps)
        self.first, self.second = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        self.net = Net((1, width, width, start.numel()))
        nn.init.zeros_(self.net.weights[-1])

    def forward(self, z):
        x_1, log_1 = stairs(z[:, 0], self.first)
        shape = len(z), *self.second.shape[1:]
        x_2, log_2 = stairs(z[:, 1], self.second + self.net(x_1.unsqueeze(1)).view(shape))
        return torch.stack([x_1, x_2], 1), log_1 + log_2


def even_normals(n):
    """n points (n, 2) that fill N(0, I) more evenly than chance: a lattice, shifted at random, through Φ⁻¹. Each point alone
    is N(0, I), so means stay unbiased, and their noise falls: the modes' masses drift by that noise."""
    i, golden = torch.arange(n).double(), (5**0.5 - 1) / 2
    uniform = (torch.stack([i / n, i * golden], 1) + torch.rand(2).double()) % 1
    return torch.special.ndtri(uniform.clamp(1e-7, 1 - 1e-7)).float()


def train_amortised_plane(n_updates, with_entropy=True, rate=8e-3, batch=1600, widest=1.0):
    """A triangular generator by E_q[E] - H on the 25 Gaussians, whose standard deviation narrows from `widest` to 0.2 in
    four fifths of the updates: a generator that begins broad finds all of them, and the rate falls with the width."""
    generator = Triangular()
    descent = Descent([generator], rate, n_updates, max_norm=10.0, memory=0.998)
    for _ in Progress(range(n_updates), f"25 Gaussians, {'with' if with_entropy else 'no'} entropy"):
        left = descent.left()
        spread = max(widest * (SPREAD / widest) ** ((1 - left) / 0.8), SPREAD)
        descent.rate = rate * (spread / widest) ** 3.5 * min(1 / left, 5)  # so that it falls to 0 only in the last fifth
        x, log_det = generator(even_normals(batch))
        descent.down(-(grid_log_density(x, spread) + (log_det if with_entropy else 0)).mean())
    return descent.average[0]


def reverse_kl(generator, n):
    """KL(q || 25 Gaussians) in nats and its standard error from n points: both densities are exact."""
    z = torch.randn(n, 2)
    with torch.no_grad():
        x, log_det = generator(z)
    log_q = -z.square().sum(1) / 2 - math.log(2 * math.pi) - log_det
    return mean_and_sem(log_q - grid_log_density(x))


# Where g has fewer dimensions, or folds, H must be bounded. With noise, x = g(z) + s n, and any r(z | x),
#     H(x) = H(x | z) + H(z) - H(z | x)  >=  (d/2) log(2πe s²) + H(z) + E log r(z | x),
# equal if and only if r is the posterior (noise for that reason: Dieng et al. 2019). Without noise I(x; z) = H(z) - H(z | x)
# is infinite, and E log r(z | x) has no upper limit: what then keeps z recognisable from x, such as the estimate of I(x; z)
# that Kumar et al. (2019) maximise, is a regulariser, and its value is no entropy in nats.


def noisy_entropy_bound(s, d, z, mean, log_var):
    """The right-hand side above (B,), a sample of it in each row, for r = N(mean, exp(log_var)); z, mean, log_var (B, k)."""
    log_r = -((z - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(1) / 2
    return d / 2 * math.log(2 * math.pi * math.e * s**2) + z.shape[1] / 2 * math.log(2 * math.pi * math.e) + log_r


def exact_linear_entropy(A, s):
    """H of x = A z + s n: log det(2πe (A Aᵀ + s² I))/2 nats, A (d, k)."""
    covariance = A @ A.T + s**2 * torch.eye(len(A)).to(A)
    return 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()


def exact_information(A, s):
    """I(x; z) of x = A z + s n, nats: log det(I + A Aᵀ/s²)/2, without limit as s goes to 0."""
    return 0.5 * torch.logdet(torch.eye(len(A)).to(A) + A @ A.T / s**2).item()


def posterior_covariance(A, s):
    """Of z given x = A z + s n: (I + AᵀA/s²)⁻¹, (k, k)."""
    return torch.linalg.inv(torch.eye(A.shape[1]).to(A) + A.T @ A / s**2)


def gaussian_reader(A, s, x):
    """Mean and log variance (B, k) of the best r(z | x) with independent z for x = A z + s n: the posterior's own."""
    covariance = posterior_covariance(A, s)
    return x @ A @ covariance / s**2, covariance.diagonal().log().expand(len(x), -1)


def exact_reader_gap(A, s):
    """How far that r leaves the bound below H: (Σ log C_ii - log det C)/2 nats, C the posterior's covariance."""
    covariance = posterior_covariance(A, s)
    return 0.5 * (covariance.diagonal().log().sum() - torch.logdet(covariance)).item()


def train_amortised(clusters, config, n_updates):
    """An energy of digits whose negatives a generator makes; it learns from E - H, H by its bound.

    The generator begins as a VAE of half the updates, and its rate rises over half the others: at first E is a Gaussian, and
    a generator that follows it at once shrinks to grey before E has learnt anything. Adam without
    momentum (b1 = 0): in a game it would circle.
    """
    d, device, half = clusters.x.shape[1], clusters.x.device, -(-n_updates // 2)
    energy = AutoEncoderEnergy(d, config.width, config.sigma, clusters.n).to(device)
    generator, rate = train_vae(clusters, config, half), 0.1 * config.generator_rate
    teacher = Descent([energy], rate, half, half // 10, b1=0.0)
    pupil = Descent([generator.requires_grad_(True)], rate, half, half // 2, b1=0.0)
    for _ in Progress(range(half), "amortised"):
        c, z = clusters.draw(config.batch_size), generator.prior(config.batch_size)
        x = generator.draw(z, c)
        pupil.down((energy(x, c) - noisy_entropy_bound(generator.s, d, z, *generator.read(x, c))).mean())
        teacher.down(phases_loss(energy, noisy(clusters.data(c)), x.detach(), c))
    return Coop(teacher.average[0], pupil.average[0])


class Linear(NamedTuple):
    """A linear generator under a quadratic energy."""

    with_entropy: float  # |A Aᵀ - Σ|/|Σ|
    without: float  # |A|
    decay: float  # |A| by theory
    off: float  # |A - theory's A|


def measure_linear(d=4, n_steps=2000, n_short=60, rate=0.05):
    """Linear, for a random Σ."""
    root = torch.randn(d, d).double()
    covariance = root @ root.T / d + 0.3 * torch.eye(d).double()
    precision, A = torch.linalg.inv(covariance), torch.randn(d, d).double() / 2 + torch.eye(d).double()
    fitted, short = fit_linear(A, precision, True, n_steps, rate), fit_linear(A, precision, False, n_short, rate)
    decay = exact_linear_decay(A, precision, n_short, rate)
    error = (fitted @ fitted.T - covariance).norm() / covariance.norm()
    return Linear(*(number.item() for number in (error, short.norm(), decay.norm(), (short - decay).norm())))


class Bounded(NamedTuple):
    """The entropy's bound for x = A z + s n, a mean over samples with its standard error, beside what is exact."""

    s: float
    bound: float
    sem: float
    n: int
    expected: float  # the exact entropy minus the gap of independent z in r
    entropy: float
    information: float


def measure_bound(scales=(1.0, 0.1, 0.01), n=20_000):
    """[Bounded] in the plane."""
    A, rows = torch.tensor([[1.5, 0.8], [-0.3, 0.7]]).double(), []
    for s in scales:
        z = torch.randn(n, 2).double()
        x = z @ A.T + s * torch.randn(n, 2).double()
        bound = mean_and_sem(noisy_entropy_bound(s, 2, z, *gaussian_reader(A, s, x)))
        entropy = exact_linear_entropy(A, s)
        rows.append(Bounded(s, *bound, n, entropy - exact_reader_gap(A, s), entropy, exact_information(A, s)))
    return rows


PLANE_STEP = 0.01  # of the Langevin steps that repair the filaments


class OnPlane(NamedTuple):
    """Generators on the 25 Gaussians."""

    points: dict  # {name: points (20,000, 2)}
    covered: dict  # {name: Coverage}
    kl: tuple  # KL(q || p) in nats with the entropy, and its standard error


@own_random_stream
def measure_plane(run, n=20_000):
    """OnPlane: with the entropy, with it and 20 Langevin steps, and without it."""
    torch.manual_seed(run.seed)
    generator = train_amortised_plane(run.config.n_plane)
    greedy = train_amortised_plane(-(-run.config.n_plane // 8), with_entropy=False)
    with torch.no_grad():
        x, falls = generator(torch.randn(n, 2))[0], greedy(torch.randn(n, 2))[0]
    repaired = langevin(slope_of(lambda x: -grid_log_density(x)), x, 20, PLANE_STEP)
    points = {"with entropy": x, "+ 20 steps": repaired, "without": falls}
    must_be_finite("the training on 25 Gaussians", *points.values())
    return OnPlane(points, {name: coverage(part) for name, part in points.items()}, reverse_kl(generator, n))


def record_linear(run, found, rows):
    """The metrics of Linear and of [Bounded]."""
    run.metric("linear: |A A' - Sigma| / |Sigma|", found.with_entropy, None, ("theory", 0), 1e-6)
    run.metric("linear, no entropy: |A|, 60 steps", found.without, against=("theory", found.decay))
    run.metric("linear, no entropy: |A - theory's|", found.off, None, ("theory", 0), 1e-12)
    for row in rows:
        name = f"noise {row.s:g}: bound of H (nats)"
        run.metric(name, row.bound, row.sem, ("H - its gap", row.expected), tolerance(row.sem, row.n))
        run.metric(f"noise {row.s:g}: H (nats)", row.entropy, against=("I(x; z)", row.information))


def section_amortised(run):
    """A generator samples for the energy, if its entropy is rewarded; without that it shrinks, and misses modes."""
    linear, rows, found = measure_linear(), measure_bound(), measure_plane(run)
    record_linear(run, linear, rows)
    n = len(found.points["without"])
    for name, covered in found.covered.items():
        run.metric(f"{name}: modes of 25", covered.n_modes, against=("all", 25))
        run.metric(f"{name}: KL of shares (nats)", covered.kl, against=("a perfect sampler", theory_kl_floor(n)))
        own = ("Langevin's own", theory_near(PLANE_STEP)) if name == "+ 20 steps" else ("a perfect sampler", theory_near())
        run.metric(f"{name}: share within 3 sd", covered.near, against=own)
    run.metric("with entropy: KL(q || p) (nats)", *found.kl, ("a perfect sampler", 0))
    labels = {
        f"{name}:\n{found.covered[name].n_modes} modes, {found.covered[name].near:.3f} near": x
        for name, x in found.points.items()
    }
    run.figure(
        draw_plane(labels, f"25 Gaussians: a perfect sampler has {theory_near():.3f} within three standard deviations"),
        "plane",
    )
    for sentence in plane_sentences(found.covered):
        run.say(sentence)


def plane_sentences(covered):
    """What the entropy is worth, and what the filaments between modes hold."""
    alone, repaired, greedy = covered.values()
    return [
        f"with the entropy {alone.n_modes} modes, their shares {alone.kl:.4f} nats off; "
        f"without it, in an eighth of the updates, {greedy.n_modes}",
        f"filaments between modes: {1 - alone.near:.3f} of the points lie beyond three standard deviations, "
        f"after 20 Langevin steps {1 - repaired.near:.3f}, of a perfect sampler's {1 - theory_near():.3f}",
    ]


# %% 6. Side by side
# One data set, one judge, one computer, the same time for each. Times are not measured to decide when to stop, for then no
# two runs would be alike: each model gets a number of updates that took as long as the others' on one computer, and its
# seconds are reported. Whoever can be told the cluster is told it (all but JEM and the mixture).


def train_ebm(clusters, config, n_updates):
    """Module 07's energy by its recipe: persistent chains from noise, which keep their clusters, and data from the same."""
    d, device = clusters.x.shape[1], clusters.x.device
    energy = AutoEncoderEnergy(d, config.width, config.sigma, clusters.n).to(device)
    chains = Chains(8 * config.batch_size, d, clusters.draw(8 * config.batch_size), device)
    descent = Descent([energy], config.learning_rate, n_updates, WARM_UP)
    for _ in Progress(range(n_updates), "energy alone"):
        x, c = chains.next(config.batch_size)
        x = revised(energy, x, c, config)
        chains.keep(x)
        descent.down(phases_loss(energy, noisy(clusters.data(c)), x, c))
    return descent.average[0]


def train_vae(clusters, config, n_updates):
    """The same generator without an energy: the evidence lower bound on data."""
    generator = Generator(clusters.x.shape[1], clusters.n).to(clusters.x.device)
    descent = Descent([generator], config.generator_rate, n_updates, WARM_UP)
    for _ in range(n_updates):
        c = clusters.draw(config.batch_size)
        descent.down(generator.minus_bound(noisy(clusters.data(c)), c).mean())
    return descent.average[0]


# What each model's training and sampling are: (run, clusters, n_updates) -> a function n -> images (n, d).


def images_from_noise(run, energy, c, n):
    """n images (n, 64) from noise, denoised; c (n,) or None are their clusters."""
    x = run_chains(energy, torch.randn(n, 64, device=run.device), c, run.config.n_from_noise, run.config.step_size)
    return clean_mean(energy, x, c)


def make_ebm(run, clusters, n_updates):
    """The energy alone, from noise."""
    energy = train_ebm(clusters, run.config, n_updates)
    return lambda n: images_from_noise(run, energy, clusters.draw(n), n)


def make_coopnets(run, clusters, n_updates):
    """The generator, and three times as many Langevin steps as in training."""
    coop = train_coopnets(clusters, run.config, n_updates)
    return lambda n: draw_coopnets(coop, clusters, run.config, n, 3 * run.config.n_langevin)


def make_ebgan(run, clusters, n_updates):
    """An EBGAN with the pulling-away term, whose critic and generator know the cluster."""
    critic = Critic(64, 32, 256, n_clusters=clusters.n).to(run.device)
    generator = Net((32, 256, 256, 64), n_clusters=clusters.n).to(run.device)

    def data(shape):
        c = clusters.draw(*shape)
        return clusters.data(c), c

    generator = train_ebgan(data, critic, generator, 0.1, 10.0, n_updates, batch=run.config.batch_size)
    return lambda n: generator(torch.randn(n, 32, device=run.device), clusters.draw(n))


def make_jem(run, clusters, n_updates):
    """JEM, from noise."""
    digits = digits_of(run)
    jem = train_jem(digits.x, digits.y, digits.x, run.config, n_updates)
    return lambda n: images_from_noise(run, jem, None, n)


def make_amortised(run, clusters, n_updates):
    """The generator of an amortised energy; it began as a VAE of half the updates."""
    coop = train_amortised(clusters, run.config, n_updates)
    return lambda n: draw_coopnets(coop, clusters, run.config, n, 0)


def make_vae(run, clusters, n_updates):
    """The means g(z, c) of a VAE."""
    generator = train_vae(clusters, run.config, n_updates)
    return lambda n: draw_coopnets(Coop(None, generator), clusters, run.config, n, 0)


def make_mixture(run, clusters, n_updates):
    """A mixture of Gaussians, drawn by share as the others' clusters are; it takes a fraction of the others' time."""
    mixture, rng = (
        fit_mixture(clusters.x, min(N_COMPONENTS, len(clusters.x) // 4), run.seed),
        np.random.default_rng(run.seed),
    )
    return lambda n: draw_mixture(mixture, n, rng).to(run.device)


class Rival(NamedTuple):
    """A model in the comparison: its maker, and how many updates take the time of one of the energy's."""

    make: callable
    pace: float


# Chosen on validation images (--split validation), mostly of seed 0, and not with equal care: about thirty settings of
# the amortised generator, twenty of CoopNets, twelve of EBGAN, five of JEM, four of the energy, two of the VAE. EBGAN: b1
# 0.5 and 0.9, margins 3, 10, 20, pulling away 0.1 and 1, rates 5e-4 to 3e-3, told the cluster or not. Amortised: b1 0,
# 0.5, 0.9, sigma 0.2 to 1, rates 1e-4 to 3e-3, one to three updates of the generator for one of the energy, a penalty on
# slopes, beginnings at random and as a VAE, warm-ups. JEM: rates 1e-3 to 4e-3; it depends on its seed more than on these.
# VAE: rates 1e-3 and 3e-3. Energy and CoopNets: rates 1e-3 to 4e-3, 10 and 20 Langevin steps. The mixture's Gaussians: as
# many as module 07 found.
N_COMPONENTS = 60
RIVALS = {
    "energy (07)": Rival(make_ebm, 1.0),
    "CoopNets": Rival(make_coopnets, 0.5),
    "EBGAN": Rival(make_ebgan, 0.9),
    "JEM": Rival(make_jem, 0.8),
    "amortised": Rival(make_amortised, 1.6),
    "VAE": Rival(make_vae, 1.7),
    "mixture": Rival(make_mixture, 1.0),
}


class Entry(NamedTuple):
    """A line of the table."""

    scores: DigitScores
    training: float  # seconds
    sampling: float  # seconds for 1,000 images
    images: torch.Tensor  # some of them


@own_random_stream
def compare(run):
    """{name: Entry} of the models that did not diverge, and the names of those that did."""
    entries, lost = {}, []
    clusters = clusters_of(run)
    for name, rival in RIVALS.items():
        torch.manual_seed(run.seed)
        try:
            start = time.perf_counter()
            draw = rival.make(run, clusters, max(int(rival.pace * run.config.n_compared), 1))
            middle = time.perf_counter()
            with torch.no_grad():
                x = draw(run.config.n_samples)
            sampling = (time.perf_counter() - middle) * 1000 / len(x)
            entries[name] = Entry(score_images(run, x), middle - start, sampling, x[:30])
        except Diverged:
            lost.append(name)
    return entries, lost


HEADER = ("model", "Fréchet", "told from real", "class entropy", "nearest", "copies", "training (s)", "sampling (s)")


def draw_comparison(entries, floor):
    """The table, and samples of each model."""
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(11, 6.4), layout="constrained", height_ratios=(1, 1.1))
    ranked = sorted(entries, key=lambda name: entries[name].scores.frechet)
    rows = []
    for name in ranked:
        s = entries[name].scores
        numbers = (f"{s.frechet:.2f}", f"{s.told:.2f}", f"{s.entropy:.3f}", f"{s.nearest:.2f}", f"{s.copies:.3f}")
        rows.append((name, *numbers, f"{entries[name].training:.1f}", f"{entries[name].sampling:.3f}"))
    table = top.table(rows, colLabels=HEADER, cellLoc="center", loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(12)
    table.scale(1, 1.8)
    first = ", ".join(as_good(entries, "frechet"))
    fig.suptitle(
        f"Nearest to real digits on this seed, or within two standard errors: {first}\n"
        f"(real images: {floor:.2f}; sampling: seconds for 1,000 images)"
    )
    top.axis("off")
    show_images(bottom, torch.cat([entries[name].images for name in ranked]), 30)
    bottom.set(frame_on=False, xticks=[], yticks=[9 * i + 4 for i in range(len(ranked))], yticklabels=ranked)
    bottom.axis("on")
    bottom.tick_params(labelsize=12, length=0)
    return fig


def section_comparison(run):
    """Seven models of the same digits after seconds of training, by one judge: what they are worth, what a sample costs."""
    (entries, lost), floor = compare(run), real_floor(run)
    for name, entry in entries.items():
        record_digit_scores(run, name, entry.scores, floor)
        run.metric(f"{name}: training (s)", entry.training)
        run.metric(f"{name}: 1,000 samples (s)", entry.sampling)
    run.metric("models that diverged", len(lost), against=("none", 0))
    run.figure(draw_comparison(entries, floor), "table")
    for sentence in comparison_sentences(entries, lost):
        run.say(sentence)


def as_good(entries, key):
    """The model whose score of this name is least, and whoever is not beyond two standard errors of the difference. Those
    are of the samples (generous ones for Fréchet distances, see DigitScores), not of another training (--seed)."""
    row = {name: (getattr(entry.scores, key), getattr(entry.scores, f"{key}_sem")) for name, entry in entries.items()}
    best, sem = min(row.values(), default=(0, 0))
    return [name for name in sorted(row, key=row.get) if row[name][0] - best <= 2 * math.hypot(row[name][1], sem)]


def comparison_sentences(entries, lost):
    """Who is nearest to real digits, who is told from them least, whether an energy helps a VAE, who was lost."""
    said = []
    for label, key in (("nearest to real digits", "frechet"), ("told from real images least", "told")):
        first = ", ".join(f"{name} {getattr(entries[name].scores, key):.2f}" for name in as_good(entries, key))
        said.append(f"{label}, or not beyond two standard errors: {first}")
    if {"amortised", "VAE"} <= entries.keys():  # the one began as the other: did the energy add anything?
        with_energy, vae = (entries[name].scores for name in ("amortised", "VAE"))
        gain, error = vae.frechet - with_energy.frechet, math.hypot(vae.frechet_sem, with_energy.frechet_sem)
        word = "no better" if not gain > 2 * error else "better"
        said.append(f"amortised, which began as a VAE, is {word} than a VAE: {with_energy.frechet:.2f}, {vae.frechet:.2f}")
    return said + ([f"diverged: {', '.join(lost)}"] if lost else [])


SECTIONS = {
    "coopnets": section_coopnets,
    "ebgan": section_ebgan,
    "jem": section_jem,
    "amortised": section_amortised,
    "comparison": section_comparison,
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
