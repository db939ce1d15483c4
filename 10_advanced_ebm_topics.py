"""Module 10 - Advanced topics: where energies meet the rest of generative modelling.

Diffusion, flows, latent variables and composition look like other families of models. Each is an energy in disguise, or
needs one, and each bridge is held here by an exact number:

    y = x + σ n, n ~ N(0, I):     E[x | y] = y + σ² ∇log p_σ(y)            the score of a noise level denoises,       (1)
    dx/dσ = -σ ∇log p_σ(x)                                                 and moves samples from level to level,     (2)
    p(x | y) ∝ exp(-E(x) - |x - y|²/(2s²))                                 recovery: easy where -log of it is convex, (3)
    log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|                         a flow f, whose Z is 1.                    (4)

Run      python 10_advanced_ebm_topics.py                 all sections, about four minutes on two CPU cores
         python 10_advanced_ebm_topics.py --section diffusion --show
Writes   outputs/10_advanced_ebm_topics/*.png and metrics.json
Before   modules 06, 07   Exercises  ex10_1 ... ex10_4, o12
Sources  Robbins (1956); Vincent (2011); Song & Ermon (2019); Song et al. (2021); Karras et al. (2022);
         Bakry & Émery (1985); Bengio et al. (2013); Gao et al. (2021); Dinh, Sohl-Dickstein & Bengio (2017);
         Gutmann & Hyvärinen (2012); Gao et al. (2020); Pang et al. (2020); Kingma & Welling (2014);
         Cuturi & Blondel (2017); Du et al. (2023); Skreta et al. (2025); those of part 6 are named where they are used
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args, get_type_hints

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: scikit-learn's small fits are faster on one

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from scipy.integrate import quad
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.svm import SVC
from torch import nn
from torch.nn.functional import cross_entropy, embedding, silu, softplus
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    split: Annotated[Literal["test", "validation"], "score on the test images, or choose settings without them"] = "test"
    n_repeats: Annotated[int, "independent repeats behind each exact comparison"] = 20
    n_points: Annotated[int, "points in each of these repeats"] = 2000
    n_samples: Annotated[int, "images drawn from each model of digits"] = 1000
    batch_size: Annotated[int, "images or points in a batch"] = 128
    width: Annotated[int, "hidden units of the networks on digits"] = 512
    n_clusters: Annotated[int, "clusters of digits, each with hidden biases of its own"] = 32
    learning_rate: Annotated[float, "Adam's, after the warm-up; it falls linearly to 0"] = 2e-3
    n_plane: Annotated[int, "updates of the networks of the three hills"] = 1500
    n_denoiser: Annotated[int, "updates of the energy of noisy digits"] = 6000
    n_heun: Annotated[int, "steps of the probability flow from noise to digits"] = 20
    n_recovery: Annotated[int, "updates of the recovery likelihood of digits"] = 1500
    n_flow: Annotated[int, "updates of each flow"] = 600
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1
    n_vae: Annotated[int, "updates of the variational auto-encoder"] = 3000
    n_prior: Annotated[int, "updates of the energy of its codes"] = 1000
    n_latents: Annotated[int, "dimensions of its codes"] = 16
    n_latent_components: Annotated[int, "Gaussians of the mixture of its codes"] = 80
    n_latent_steps: Annotated[int, "Langevin steps from noise to a code"] = 200
    vae_noise: Annotated[float, "standard deviation of its pixels given a code"] = 0.25
    n_levels: Annotated[int, "noise levels of the composed samplers"] = 400
    n_small: Annotated[int, "updates of each small network among the directions"] = 1000
    n_descent: Annotated[int, "steps down a static field"] = 25_000
    n_solve: Annotated[int, "Langevin steps that solve a linear system"] = 2000

    def __post_init__(self):
        for wrong, complaint in (
            (self.n_repeats < 2, f"--n-repeats must be at least 2, to have a spread, not {self.n_repeats}"),
            (self.n_points < 50, f"--n-points must be at least 50, not {self.n_points}"),
            (self.n_samples < 40, f"--n-samples must be at least 40, to be scored in four parts, not {self.n_samples}"),
            (self.n_heun < 2, f"--n-heun must be at least 2, not {self.n_heun}"),
            (self.n_clusters > 200, f"--n-clusters must be at most 200, not {self.n_clusters}"),
            (self.n_levels < 30, f"--n-levels must be at least 30, for steps that are stable, not {self.n_levels}"),
        ):
            if wrong:
                sys.exit(complaint)


SMOKE = {"n_repeats": 3, "n_points": 100, "n_samples": 40, "batch_size": 16, "width": 16, "n_clusters": 4}
SMOKE |= {"n_plane": 4, "n_denoiser": 6, "n_heun": 2, "n_recovery": 3, "n_flow": 6}
SMOKE |= {"n_vae": 6, "n_prior": 4, "n_latents": 3, "n_latent_components": 2, "n_latent_steps": 5}
SMOKE |= {"n_levels": 40, "n_small": 6, "n_descent": 30, "n_solve": 20}


# %% 0. What all sections use
# Digits are 8x8 images in [-1, 1], flat, (N, 64), split as in modules 07 to 09. Samples are judged as there: a classifier
# that no model has seen gives features, whose Fréchet distance to those of the test images is the score; an SVM tries to
# tell samples from real images; the entropy of the classes shows what is missing, and the distance to the nearest training
# image what is copied. A mixture of Gaussians stands beside, of which everything is known at every noise level.


# Copied from 09_ebm_applications.py: Images
class Images(NamedTuple):
    """Images (N, 64) in [-1, 1], float64 on the CPU, and labels (N,), to learn from and to be scored on."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


# Copied from 09_ebm_applications.py: split_images
def split_images(x, y, share):
    """Images whose test part is this share, even in the classes; always the same one."""
    x, x_test, y, y_test = train_test_split(np.asarray(x), np.asarray(y), test_size=share, stratify=y, random_state=0)
    return Images(*(torch.as_tensor(part) for part in (x, y, x_test, y_test)))


# Copied from 09_ebm_applications.py: images
@functools.cache
def images(run):
    """The run's images; with --split validation a quarter of the training images plays the test's part."""
    x, y = load_digits(return_X_y=True)
    digits = split_images(x / 8 - 1, y, 0.2)
    return digits if run.config.split == "test" else split_images(digits.x, digits.y, 0.25)


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


CURES = "a smaller --learning-rate may cure it"


# Copied from 09_ebm_applications.py: Learner
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


# Copied from 07_neural_ebms.py: in_float64
def in_float64(x):
    """A tensor as SciPy and scikit-learn judge it: their answers to float32 differ from processor to processor."""
    return to_numpy(x).astype(float)


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


# Copied from 07_neural_ebms.py: find_clusters
def find_clusters(x, n_clusters, seed):
    """Labels (N,) of K-means on images (N, d); where they are many, its centres are found on 5,000 of them."""
    if n_clusters == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    seen, n_starts = in_float64(x), 10 if len(x) <= 5000 else 1
    means = KMeans(n_clusters, n_init=n_starts, random_state=seed).fit(seen[:5000])
    return torch.as_tensor(means.predict(seen), dtype=torch.int64, device=x.device)


# Copied from 07_neural_ebms.py: shared_out
def shared_out(y, n_blocks, n):
    """Labels (n_blocks, n) for chains: among all, and nearly in each block, every label has its share of the labels y (N,).
    In random order within a block."""
    share = (2 * torch.arange(n_blocks * n, device=y.device) + 1) * len(y) // (2 * n_blocks * n)
    blocks = y.sort().values[share].view(n, n_blocks).T
    return blocks.gather(1, torch.rand(n_blocks, n, device=y.device).argsort(1))


# Copied from 07_neural_ebms.py: Labelled
class Labelled:
    """Draws rows of a data set by their labels y (N,)."""

    def __init__(self, y):
        self.rows, self.count = y.argsort(), torch.bincount(y)
        self.first = self.count.cumsum(0) - self.count

    def like(self, y):
        """For each label of y (B,) the number of a random row that bears it, (B,)."""
        return self.rows[self.first[y] + (torch.rand(len(y), device=y.device) * self.count[y]).long()]


# Differs from 07_neural_ebms.py: judge - of 8x8 digits, and without its accuracy
@functools.cache
@torch.enable_grad()
@own_random_stream
def judge(run):
    """The independent classifier x (N, 64) -> logits (N, 10), trained on noisy images; its last 32 features are net[:4]."""
    torch.manual_seed(run.seed)
    x, y = images(run).x.float().to(run.device), images(run).y.to(run.device)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 10)).to(run.device)
    learner = Learner(net, 2e-3, n_updates=1200 if run.config.n_denoiser > 100 else 60)
    for _ in range(learner.n_updates):
        batch = torch.randint(len(x), (64,), device=run.device)
        noisy = x[batch] + 0.2 * torch.randn(64, 64, device=run.device)
        learner.down(cross_entropy(net(noisy), y[batch], label_smoothing=0.1))
    return net.requires_grad_(False)


# Copied from 07_neural_ebms.py: frechet_distance
def frechet_distance(a, b):
    """|m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½) of two sets of features (N, k) (Dowson & Landau 1982), in float64."""
    (m1, c1), (m2, c2) = ((f.mean(0), np.cov(f.T)) for f in (np.asarray(a, float), np.asarray(b, float)))
    root = np.sqrt(np.maximum(scipy.linalg.eigvals(c1 @ c2).real, 0)).sum()  # C₁C₂ is similar to a positive matrix
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * root


# Differs from 07_neural_ebms.py: frechet_to_test - of float64 images
def frechet_to_test(run, x):
    """Fréchet distance of images (N, 64) to the test images, on the judge's features."""
    parts = (images(run).x, images(run).x_test, x.clamp(-1, 1))
    train, test, ours = (in_float64(judge(run)[:4](part.float().to(run.device))) for part in parts)
    return frechet_distance(ours / train.std(0), test / train.std(0))


# Copied from 08_cooperative_training.py: in_greys
def in_greys(x):
    """Images clipped to [-1, 1] and rounded to the 17 grey levels of the data: else an SVM need only look for fractions."""
    return ((x.clamp(-1, 1) + 1) * 8).round() / 8 - 1


# Copied from 08_cooperative_training.py: two_sample_accuracy
def two_sample_accuracy(x, real):
    """How often an SVM tells images (N, d) from as many real ones, cross-validated: mean and its standard error."""
    n = min(len(x), len(real))
    both = np.concatenate([in_float64(in_greys(x[:n])), in_float64(real[:n])])
    folds = StratifiedKFold(5 if n > 100 else 2, shuffle=True, random_state=0)
    return mean_and_sem(cross_val_score(SVC(), both, np.arange(2 * n) < n, cv=folds))


# Copied from 08_cooperative_training.py: class_entropy
def class_entropy(labels):
    """Entropy of labels (N,) out of ten classes, in units of ln 10: 1 if all are equally frequent."""
    return torch.special.entr(torch.bincount(labels, minlength=10) / len(labels)).sum().item() / math.log(10)


# Copied from 07_neural_ebms.py: nearest_distances
def nearest_distances(x, x_train):
    """Euclidean distance (N,) from each image (N, d) to the nearest of x_train (M, d)."""
    return torch.cat([torch.cdist(part, x_train).amin(1) for part in x.split(500)])


# Differs from 08_cooperative_training.py: DigitScores - without copies
class DigitScores(NamedTuple):
    """What samples are worth."""

    frechet: float
    frechet_sem: float  # from four quarters of the samples
    told: float  # two-sample accuracy
    told_sem: float
    entropy: float  # of the classes
    nearest: float  # median distance to the nearest training image


def nearest_of(scores):
    """Names of {name: DigitScores} that are not told apart from the nearest, which comes first: their Fréchet distances lie
    within two standard errors of the difference."""
    best, *others = sorted(scores, key=lambda name: scores[name].frechet)
    near = scores[best]
    limits = {name: 2 * math.hypot(scores[name].frechet_sem, near.frechet_sem) for name in others}
    return [best, *(name for name in others if scores[name].frechet - near.frechet <= limits[name])]


def in_words(names):
    """The first name, and how many are not told apart from it."""
    return names[0] + (f", {len(names) - 1} not told apart" if names[1:] else "")


@own_random_stream
def floor_of_training_images(run):
    """Fréchet distance of as many training images as samples are drawn."""
    torch.manual_seed(run.seed)
    x = images(run).x
    return frechet_to_test(run, x[torch.randperm(len(x))[: run.config.n_samples]])


# Differs from 08_cooperative_training.py: score_images - of float64 images, without copies
def score_images(run, x):
    """DigitScores of images x (N, 64); ends the run if they are lost: clipped, they would look like images."""
    if not (x.abs() < 1000).all():
        sys.exit(f"the sampling diverged: {CURES}")
    x = x.detach().double().cpu()
    quarters = [frechet_to_test(run, part) for part in x.tensor_split(4)]
    classes = judge(run)(x.clamp(-1, 1).float().to(run.device)).argmax(1)
    scores = frechet_to_test(run, x), mean_and_sem(quarters)[1], *two_sample_accuracy(x, images(run).x)
    return DigitScores(*scores, class_entropy(classes), nearest_distances(x, images(run).x).median().item())


# Copied from 09_ebm_applications.py: Gaussians
class Gaussians(NamedTuple):
    """K Gaussians in d dimensions, float64."""

    weights: torch.Tensor  # (K,)
    means: torch.Tensor  # (K, d)
    covariances: torch.Tensor  # (K, d, d)


# Copied from 09_ebm_applications.py: fit_gaussians
def fit_gaussians(x, n_components, seed, reg=1e-3):
    """A mixture of Gaussians with full covariances, fitted to x (N, d) by EM, after K-means."""
    fit = GaussianMixture(min(n_components, len(x) // 4), reg_covar=reg, random_state=seed, max_iter=60, tol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a little early is good enough
        fit.fit(to_numpy(x).astype(float))
    return Gaussians(*(torch.as_tensor(a) for a in (fit.weights_, fit.means_, fit.covariances_)))


# Copied from 09_ebm_applications.py: log_parts
def log_parts(mixture, x):
    """log weight + log density of each Gaussian at x (N, d): (N, K)."""
    root = torch.linalg.cholesky(mixture.covariances)
    u = torch.linalg.solve_triangular(root, (x[:, None] - mixture.means).permute(1, 2, 0), upper=False)  # (K, d, N)
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mixture.weights.log() - log_det - x.shape[1] / 2 * math.log(2 * math.pi) - u.square().sum(1).T / 2


# Copied from 09_ebm_applications.py: mixture_log_density
def mixture_log_density(mixture, x):
    """log p(x) (N,)."""
    return log_parts(mixture, x).logsumexp(1)


# Copied from 09_ebm_applications.py: blurred
def blurred(mixture, s):
    """The mixture of x + s n, n ~ N(0, I)."""
    return mixture._replace(covariances=mixture.covariances + s**2 * torch.eye(mixture.means.shape[1]).to(mixture.means))


# Copied from 09_ebm_applications.py: Posterior
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


# Copied from 09_ebm_applications.py: given_noisy
def given_noisy(mixture, y, s):
    """p(x | y) for y = x + s n (N, d)."""
    wide = blurred(mixture, s)
    gain = torch.linalg.solve(wide.covariances, mixture.covariances).mT  # C (C + s²)⁻¹
    means = mixture.means + torch.einsum("kij,nkj->nki", gain, y[:, None] - mixture.means)
    covariances = mixture.covariances - gain @ mixture.covariances
    return Posterior(log_parts(wide, y).softmax(1), means, (covariances + covariances.mT) / 2)


# Copied from 09_ebm_applications.py: draw_gaussians
def draw_gaussians(mixture, n):
    """n samples (n, d) of a mixture."""
    d = mixture.means.shape[1]
    return Posterior(mixture.weights[None], mixture.means[None], mixture.covariances).draws(n).reshape(n, d)


# Copied from 09_ebm_applications.py: show_images
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


# %% 1. Diffusion is score matching at many noise levels
# Blur the data, y = x + σ n with n ~ N(0, I). The density p_σ of y is an average over the clean points, and so is its score:
#
#     ∇log p_σ(y) = ∫ p(x) ∇N(y; x, σ² I) dx / p_σ(y) = E[(x - y)/σ² | y].
#
# Solved for the mean, this is Tweedie's formula, eq. (1): who knows the score of a noise level can denoise it, and who
# guesses the clean x by least squares learns the score. That is module 06's denoising score matching; diffusion does it
# at *all* levels, with one network that is told σ. What joins the levels is the heat equation in τ = σ²,
#
#     ∂p/∂τ = Δp/2,      so after dividing by p      ∂log p/∂τ = (Δlog p + |∇log p|²)/2.                           (5)
#
# Points that flow with the velocity -½∇log p per unit of τ make the same densities, for ∂p/∂τ = -∇·(p·(-½∇log p)) = Δp/2.
# With dτ = 2σ dσ this is eq. (2), the probability flow: integrate it down from wide noise and it makes samples. The half is
# easily lost. On N(0, s²), with v(σ) = s² + σ² and U = v(σ_max), the score is -x/v, so
#
#     dx/dσ = σ x/v:   x shrinks by (s²/U)^½, its variance from U to s²;
#     without the half, dx/dσ = 2σ x/v:   x shrinks by s²/U, its variance to s⁴/U.
#
# Twice the drift is right only with noise: x <- x + δ ∇log p + √δ ξ for a fall of τ by δ, the reverse SDE. For drift ∇log p
# and noise of variance 1 change p by -∇·(p ∇log p) + ½Δp = -½Δp: the heat equation, backwards. Last, a flow knows its
# density: along a path log p_σ changes by minus the divergence of the velocity, σ Δlog p, so
#
#     log p₀(x₀) = log p_σmax(x_σmax) - ∫ σ Δlog p_σ(x_σ) dσ.                                                      (6)


def mixture_score(mixture, x):
    """∇log p(x) (N, d) of a mixture: each Gaussian's pull towards its mean, weighed by its share of x."""
    return mixture_slopes(mixture, x)[0]


def mixture_slopes(mixture, x):
    """∇log p(x) (N, d) and Δlog p(x) (N,) of a mixture, in closed form."""
    shares, inverse = log_parts(mixture, x).softmax(1), torch.linalg.inv(mixture.covariances)
    pulls = torch.einsum("kij,nkj->nki", inverse, mixture.means - x[:, None])  # (N, K, d)
    score = torch.einsum("nk,nki->ni", shares, pulls)
    curved = pulls.square().sum(-1) - inverse.diagonal(dim1=-2, dim2=-1).sum(-1)  # Δp/p of each Gaussian
    return score, (shares * curved).sum(1) - score.square().sum(1)


def denoise(y, score, sigma):
    """The posterior mean (N, d) of the clean x given y = x + σ n, by the score of y's density: eq. (1)."""
    return y + sigma**2 * score(y)


def flow_velocity(score, x, sigma):
    """dx/dσ (N, d) of the probability flow, eq. (2); score(x, σ) is ∇log p_σ(x)."""
    return -sigma * score(x, sigma)


def noise_levels(n, low, high, power=7):
    """n levels from high to low, close together where they are small, and 0 after them (Karras et al. 2022, eq. 5)."""
    steps = np.linspace(high ** (1 / power), low ** (1 / power), n)
    return [*(steps**power).tolist(), 0.0]


def heun_flow(velocity, x, levels):
    """Points (N, d) at the last level, carried from the first by dx/dσ = velocity(x, σ): Heun's steps, Euler's to σ = 0."""
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        first = velocity(x, a)
        x_new = x + (b - a) * first
        x = x_new if b == 0 else x + (b - a) * (first + velocity(x_new, b)) / 2
    return x


def reverse_sde(score, x, levels):
    """The same journey with noise: x + δ ∇log p_σ + √δ ξ for a fall of σ² by δ; the last step, to σ = 0, is the mean."""
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        fall = a**2 - b**2
        x = x + fall * score(x, a)
        if b > 0:
            x = x + fall**0.5 * torch.randn_like(x)
    return x


# Differs from 06_score_matching.py: annealed_langevin - of any score, with the mean at the end
def annealed_langevin(score, x, levels, n_steps, stride):
    """n_steps Langevin steps of size stride·σ² at each level but the last, then the mean at 0 (Song & Ermon 2019)."""
    for sigma in levels[:-1]:
        size = stride * sigma**2
        for _ in range(n_steps):
            x = x + size / 2 * score(x, sigma) + size**0.5 * torch.randn_like(x)
    return x + levels[-2] ** 2 * score(x, levels[-2])


def flow_log_density(slopes, x, levels, log_start):
    """log density (N,) at x (N, d) of what the flow makes: eq. (6) by Heun's steps, up the levels (rising, none of them 0)
    to a start of log density `log_start`; slopes(x, σ) is the score (N, d) and its divergence (N,)."""
    change = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        score, divergence = slopes(x, a)
        x_new = x - (b - a) * a * score
        score_new, divergence_new = slopes(x_new, b)
        x = x - (b - a) * (a * score + b * score_new) / 2
        change = change + (b - a) * (a * divergence + b * divergence_new) / 2
    return log_start(x) - change


SAMPLERS = {
    "probability flow": lambda score, x, low, high, n: heun_flow(
        functools.partial(flow_velocity, score), x, noise_levels((n + 1) // 2, low, high)
    ),
    "reverse SDE": lambda score, x, low, high, n: reverse_sde(score, x, noise_levels(n, low, high)),
    "annealed Langevin": lambda score, x, low, high, n: annealed_langevin(
        score, x, noise_levels(n // 2, low, high), 2, STRIDE
    ),
}


STRIDE = 1.0  # of the annealed Langevin steps; chosen on validation images


# What stands beside the samplers: on N(0, s²) every one of them is linear, so its variance is followed step by step. It
# begins at U, which is what noise of σ_max leaves of the data.


def theory_flow_variance(s, high, factor=1):
    """Variance of N(0, s²)'s flow at σ = 0, from U = s² + high²: s², and s⁴/U where the velocity is doubled (factor 2)."""
    wide = s**2 + high**2
    return wide * (s**2 / wide) ** factor


def theory_sampled_variance(name, s, low, high, n):
    """Variance (exact) of what a sampler of SAMPLERS makes of N(0, s²) in n evaluations of its score."""
    variance = s**2 + high**2
    levels = noise_levels({"probability flow": (n + 1) // 2, "reverse SDE": n}.get(name, n // 2), low, high)
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        pull, pull_b, fall = 1 / (s**2 + a**2), 1 / (s**2 + b**2), a**2 - b**2
        if name == "probability flow":
            first = a * pull * (b - a)
            second = b * pull_b * (b - a) * (1 + first)
            variance *= (1 + (first if b == 0 else (first + second) / 2)) ** 2
        elif name == "reverse SDE":
            variance = (1 - fall * pull) ** 2 * variance + (fall if b > 0 else 0)
        else:
            for _ in range(2):
                variance = (1 - STRIDE * a**2 * pull / 2) ** 2 * variance + STRIDE * a**2
    if name == "annealed Langevin":
        variance *= (s**2 / (s**2 + levels[-2] ** 2)) ** 2  # the mean at the end
    return variance


# Now a network. It sees x through u = (x - m)/w, w² = sd² + σ², m and sd the data's mean and standard deviation, and is
#
#     E(x, σ, c) = |u|²/2 - (sd/σ) φ,      φ = u·h - |h|²/2,      h = silu(W₁'u + b(c) + b(σ)) W₂ + b₂,            (7)
#
# with W₂ = 0 at first, when E is the energy of a Gaussian at every level. (u·h - |h|²/2 = (|u|² - |u - h|²)/2: an
# auto-encoder's error again, module 07's energy.) Put -∇E into eq. (1): the denoiser is
#
#     D = m + (sd²/w) u + (σ sd/w) F,      F = ∇ᵤφ = h + J'(u - h),      J = ∂h/∂u,                                 (8)
#
# Karras et al.'s preconditioning (2022), in which F has to guess (σ u - w n)/sd, a target of the same size at every level.
# The *free* network has F = h: as many weights, half the arithmetic, and no energy need exist of which it is the gradient:
# its Jacobian need not be symmetric. The label c is the cluster of module 07, by K-means: without it, one hidden layer has
# to say everything at once.
#
# The constant that could be added to E at each level has no gradient, so the training never sees it: energies of different
# levels, or clusters, do not compare. Nor does the lowest level's own exp(-E)/Z inherit what the wide levels know: between
# two modes nothing tells a narrow noise how high they are (module 06, section blindness). The flow passes through all
# levels and has the modes' shares from the wide ones: one network, and two densities, of which the flow's is the better.


def fourier(sigma, low, high, n=8):
    """cos(π j t) (B, n), j = 0 ... n - 1, of the level's place t between the lowest and the highest, in logarithms."""
    t = (sigma / low).log() / math.log(high / low)
    return torch.cos(math.pi * t * torch.arange(n, device=sigma.device))


class FieldByHand(torch.autograd.Function):
    """F = ∇ᵤφ (B, d) of eq. (8), and its gradients in the biases b (B, H) and in the weights, written out; none in u."""

    @staticmethod
    def forward(ctx, u, b, w1, w2, b2):
        z = torch.addmm(b, u, w1)
        s = z.sigmoid()
        q = z * s  # silu(z)
        slope = s + q * (1 - s)  # silu'(z)
        r = u - torch.addmm(b2, q, w2)
        p = r @ w2.T
        back = p * slope
        ctx.save_for_backward(u, z, s, q, slope, r, p, back, w1, w2)
        return torch.addmm(u - r, back, w1.T)

    @staticmethod
    def backward(ctx, g):
        u, z, s, q, slope, r, p, back, w1, w2 = ctx.saved_tensors
        d_back = g @ w1
        d_p = d_back * slope
        d_h = g - d_p @ w2
        bend = s * (1 - s) * (2 + z * (1 - 2 * s))  # silu''(z)
        d_z = (d_h @ w2.T).mul_(slope).add_(d_back.mul_(p).mul_(bend))
        return None, d_z, u.T @ d_z + g.T @ back, q.T @ d_h + d_p.T @ r, d_h.sum(0)


class NoisyEnergy(nn.Module):
    """E(x, σ, c) of eq. (7) for x (B, d), levels σ (B, 1) and clusters c (B,): its gradient is a score at every level."""

    def __init__(self, mean, sd, width, n_labels=1, low=0.05, high=5.0, is_energy=True):
        super().__init__()
        d = len(mean)
        self.w1, self.w2 = nn.Parameter(torch.randn(d, width) / d**0.5), nn.Parameter(torch.zeros(width, d))
        self.by_label, self.by_level = nn.Parameter(torch.zeros(n_labels, width)), nn.Parameter(torch.zeros(8, width))
        self.b2 = nn.Parameter(torch.zeros(d))
        self.register_buffer("mean", mean)
        self.sd, self.low, self.high, self.is_energy = sd, low, high, is_energy

    def biases(self, sigma, c):
        """b(c) + b(σ), (B, H)."""
        return torch.addmm(embedding(c, self.by_label), fourier(sigma, self.low, self.high), self.by_level)

    def h(self, u, b):
        """The hidden layer and what it says, eq. (7)."""
        return silu(b + u @ self.w1) @ self.w2 + self.b2

    def forward(self, x, sigma, c):
        """E (B,); the free network has none."""
        w = (self.sd**2 + sigma**2) ** 0.5
        u = (x - self.mean) / w
        h = self.h(u, self.biases(sigma, c))
        phi = (u * h).sum(1) - h.square().sum(1) / 2
        return u.square().sum(1) / 2 - self.sd / sigma[:, 0] * phi

    def field(self, u, b):
        """F (B, d) of eq. (8)."""
        return FieldByHand.apply(u, b, self.w1, self.w2, self.b2) if self.is_energy else self.h(u, b)

    def score(self, x, sigma, c):
        """-∇E (B, d), or the free network's score."""
        w = (self.sd**2 + sigma**2) ** 0.5
        u = (x - self.mean) / w
        return (self.sd / sigma * self.field(u, self.biases(sigma, c)) - u) / w

    def slopes(self, x, sigma, c):
        """The score and its divergence (B,), exactly: with one hidden layer it costs little more than the score alone."""
        w = (self.sd**2 + sigma**2) ** 0.5
        u = (x - self.mean) / w
        z = self.biases(sigma, c) + u @ self.w1
        s = z.sigmoid()
        slope, field = s * (1 + z * (1 - s)), (z * s) @ self.w2 + self.b2
        trace = slope @ (self.w1 * self.w2.T).sum(0)  # tr J
        if self.is_energy:  # Δφ = 2 tr J + (u - h)·Δh - |J|²
            p = (u - field) @ self.w2.T
            bend = s * (1 - s) * (2 + z * (1 - 2 * s))
            squares = (slope @ ((self.w1.T @ self.w1) * (self.w2 @ self.w2.T)) * slope).sum(1)
            trace = 2 * trace + (bend * p) @ self.w1.square().sum(0) - squares
            field = field + (p * slope) @ self.w1.T
        ratio = self.sd / sigma
        return (ratio * field - u) / w, (ratio[:, 0] * trace - x.shape[1]) / w[:, 0] ** 2


def denoising_loss(net, x, sigma, noise, c):
    """Mean of |F - target|²/d over a batch: D of eq. (8) guesses x from x + σ noise, with Karras et al.'s weights."""
    w = (net.sd**2 + sigma**2) ** 0.5
    u = (x - net.mean + sigma * noise) / w
    return (net.field(u, net.biases(sigma, c)) - (sigma * u - w * noise) / net.sd).square().mean()


@contextlib.contextmanager
def no_subnormals():
    """silu of far negative numbers is subnormal, on which a CPU is several times slower: here it is 0."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@no_subnormals()
@torch.enable_grad()
def train_denoiser(net, draw, config, n_updates, label):
    """Train on batches draw(B) -> x (B, d), c (B,) and levels even in log σ; returns the averaged network."""
    learner = Learner(net, config.learning_rate, n_updates)
    for _ in Progress(range(n_updates), label):
        x, c = draw(config.batch_size)
        sigma = net.low * (net.high / net.low) ** torch.rand(len(x), 1, device=x.device)
        learner.down(denoising_loss(net, x, sigma, torch.randn_like(x), c))
    must_be_finite(label, *learner.average.parameters())
    return learner.average


class Blurring(NamedTuple):
    """Largest errors, at random points of a random mixture, of what one score says."""

    denoiser: float
    heat: float


def measure_blurring(run, n=200, sigma=0.7, h=1e-4):
    """Eq. (1) beside the posterior mean, and eq. (5) beside differences in τ, for a mixture drawn from the seed."""
    torch.manual_seed(run.seed)
    root = torch.randn(3, 2, 2, dtype=torch.float64)
    shares = torch.rand(3, dtype=torch.float64) + 0.2
    mixture = Gaussians(shares / shares.sum(), torch.randn(3, 2).double() * 2, root @ root.mT + 0.1 * torch.eye(2))
    y = draw_gaussians(blurred(mixture, sigma), n)
    score, laplacian = mixture_slopes(blurred(mixture, sigma), y)
    guess = denoise(y, functools.partial(mixture_score, blurred(mixture, sigma)), sigma)
    up, down = (mixture_log_density(blurred(mixture, (sigma**2 + change) ** 0.5), y) for change in (h, -h))
    heat = (up - down) / (2 * h) - (laplacian + score.square().sum(1)) / 2
    return Blurring((guess - given_noisy(mixture, y, sigma).mean()).abs().max().item(), heat.abs().max().item())


def n_evaluations(config):
    """Evaluations of the score behind each sample, for all samplers: Heun's steps ask twice, the last one once."""
    return 2 * config.n_heun - 1


class Lines(NamedTuple):
    """Variances (R,) of repeated samplings of N(0, s²), and what they are exactly: {name: ...}."""

    found: dict
    exact: dict


def measure_line(run, s=0.5, low=0.05, high=5.0):
    """Each sampler on N(0, s²), with its exact score, and the flow with its half and without it, in many steps."""
    torch.manual_seed(run.seed)
    shape, n, fine = (
        (run.config.n_repeats, run.config.n_points),
        n_evaluations(run.config),
        noise_levels(300, low / 50, high),
    )

    def score(x, sigma):
        return -x / (s**2 + sigma**2)

    def start():
        return (s**2 + high**2) ** 0.5 * torch.randn(shape, dtype=torch.float64)

    found = {name: sampler(score, start(), low, high, n).var(1) for name, sampler in SAMPLERS.items()}
    exact = {name: theory_sampled_variance(name, s, low, high, n) for name in SAMPLERS}
    for name, factor in (("the flow in 300 steps", 1), ("without its half", 2)):
        velocity = functools.partial(lambda factor, x, sigma: factor * flow_velocity(score, x, sigma), factor)
        found[name] = heun_flow(velocity, start(), fine).var(1)
        exact[name] = theory_flow_variance(s, high, factor)
    return Lines(found, exact)


def three_hills():
    """The mixture of the plane on which networks meet a density that is known at every level."""
    means = torch.tensor([[-2.0, -1.0], [2.0, -0.5], [0.3, 2.0]]).double()
    covariances = torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.2, 0.0], [0.0, 0.8]], [[0.6, -0.2], [-0.2, 0.15]]]).double()
    return Gaussians(torch.tensor([0.5, 0.35, 0.15]).double(), means, covariances)


def at_levels(net, c=None):
    """(score, slopes) of a network, each a function of x (N, d) and a number σ."""

    def spread(x, sigma):
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device) if c is None else c
        return x, x.new_full((len(x), 1), sigma), labels

    return (lambda x, sigma: net.score(*spread(x, sigma))), (lambda x, sigma: net.slopes(*spread(x, sigma)))


def at_level(net, x, sigma):
    """E (N,) of a network without clusters at x (N, d) and a number σ."""
    return net(x, x.new_full((len(x), 1), sigma), torch.zeros(len(x), dtype=torch.int64, device=x.device))


def gaussian_start(net):
    """The flow's start: log density of N(m, (sd² + σ_max²) I) at x (N, d)."""
    variance = net.sd**2 + net.high**2
    return lambda x: -(x - net.mean).square().sum(1) / (2 * variance) - x.shape[1] / 2 * math.log(2 * math.pi * variance)


def antisymmetry(score, x, h=1e-4):
    """|J - J'|/(2 |J|) of the Jacobian J of score (N, d) -> (N, d) by central differences, on average over x (N, d)."""
    steps = h * torch.eye(x.shape[1], dtype=x.dtype)
    j = torch.stack([(score(x + step) - score(x - step)) / (2 * h) for step in steps], 2)
    return ((j - j.mT).flatten(1).norm(dim=1) / (2 * j.flatten(1).norm(dim=1))).mean().item()


class Hills(NamedTuple):
    """What two networks know of the three hills: gaps in nats of log p_low on fresh points (N,), and more."""

    gaps: dict  # {who: exact log density minus theirs (N,)}
    integrals: dict  # {who: integral of the flow's density over the window}
    log_z: dict  # {level: log Z of exp(-E), by the grid}
    antisymmetry: dict
    densities: list  # (n, n) each: exact, of the energy's flow, and exp(-E)/Z


@functools.cache
@own_random_stream
def hill_networks(run):
    """{name: network} of the three hills, float64: an energy, and a free network given as long."""
    config = run.config
    config = replace(config, learning_rate=5 * config.learning_rate, batch_size=4 * config.batch_size)  # the plane is easy
    torch.manual_seed(run.seed)
    pool, nets = draw_gaussians(three_hills(), 20_000).float().to(run.device), {}

    def draw(n):
        return pool[torch.randint(len(pool), (n,), device=run.device)], torch.zeros(n, dtype=torch.int64, device=run.device)

    for name, share in (("energy", 1.0), ("free network", FREE_SHARE)):
        net = NoisyEnergy(pool.mean(0), pool.std(0).mean().item(), run.config.width // 4, is_energy=share == 1)
        n_updates = max(int(share * config.n_plane), 1)
        nets[name] = train_denoiser(net.to(run.device), draw, config, n_updates, name).cpu().double()
    return nets


def log_z_of_level(net, grid, cell, sigma, reach=6.0):
    """log Z of exp(-E) at a level, on a grid (N, 2) of [-reach, reach]² stretched to five standard deviations."""
    stretch = 5 * (net.sd**2 + sigma**2) ** 0.5 / reach
    return ((-at_level(net, net.mean + stretch * grid, sigma)).logsumexp(0) + math.log(cell * stretch**2)).item()


@torch.no_grad()
def measure_hills(run, n=48, reach=6.0):
    """The flow's likelihood by the exact score, by a trained energy and by a free network; the energy's own by a grid."""
    nets = hill_networks(run)
    net = nets["energy"]
    torch.manual_seed(run.seed)
    truth, levels = blurred(three_hills(), net.low), noise_levels(40, net.low, net.high)[-2::-1]
    axis, x = (torch.arange(n).double() + 0.5) * 2 * reach / n - reach, draw_gaussians(truth, run.config.n_points // 2)
    grid, cell, exact = torch.cartesian_prod(axis, axis), (2 * reach / n) ** 2, mixture_log_density(truth, x)

    ways = {"exact score": lambda z, sigma: mixture_slopes(blurred(three_hills(), sigma), z)}
    ways |= {name: at_levels(net)[1] for name, net in nets.items()}
    logs = {who: flow_log_density(slopes, torch.cat([x, grid]), levels, gaussian_start(net)) for who, slopes in ways.items()}
    gaps, integrals = {who: exact - log_p[: len(x)] for who, log_p in logs.items()}, {}
    for who, log_p in logs.items():
        integrals[who] = (log_p[len(x) :].exp().sum() * cell).item()
    log_z = {sigma: log_z_of_level(net, grid, cell, sigma, reach) for sigma in levels[::4]}
    gaps["energy, by the grid"] = exact + at_level(net, x, net.low) + log_z[levels[0]]
    twisted = {who: antisymmetry(lambda z, slopes=slopes: slopes(z, 0.5)[0], x[:100]) for who, slopes in ways.items()}
    own = -at_level(net, grid, net.low) - log_z[levels[0]]
    shown = [mixture_log_density(truth, grid), logs["energy"][len(x) :], own]
    return Hills(gaps, integrals, log_z, twisted, [log_p.exp().reshape(n, n) for log_p in shown])


# Digits. The label is the cluster of module 07: K-means on the training pixels, no labels; a sample's cluster is drawn by
# its share. Beside the long training stand three shorter ones of equal time: the energy, the energy without clusters, and
# the free network, which makes more updates in it. Every sample costs as many evaluations of the score, whoever draws.
#
# What is the flow's likelihood worth on images of 17 grey levels? Spread each pixel evenly over its cell, 1/8 wide: then
# P(image) >= exp(E log p(x + u) + 64 log(1/8)) (Jensen), so a density of log2 p is at most
#
#     bits a dimension = -E log2 p(x + u)/64 + log2 8                                                              (9)
#
# of code: three bits more than its own unit says. p(x) = Σ π_c p(x | c); a sum over fewer clusters is a lower bound.


FREE_SHARE = 1.6  # updates of the free network for one of the energy, at equal time


@functools.cache
def clusters_of_digits(run):
    """The training images (N, 64) in float32 on the run's device, and their clusters (N,)."""
    x = images(run).x
    return x.float().to(run.device), find_clusters(x, min(run.config.n_clusters, len(x) // 4), run.seed).to(run.device)


@own_random_stream
def learn_digits(run, n_updates, label, with_clusters=True, is_energy=True):
    """A NoisyEnergy of the training images, trained for so long."""
    torch.manual_seed(run.seed)
    x, clusters = clusters_of_digits(run)
    clusters = clusters if with_clusters else torch.zeros_like(clusters)
    net = NoisyEnergy(
        x.mean(0), (x - x.mean(0)).std().item(), run.config.width, clusters.max().item() + 1, is_energy=is_energy
    )

    def draw(n):
        rows = torch.randint(len(x), (n,), device=x.device)
        return x[rows], clusters[rows]

    return train_denoiser(net.to(run.device), draw, run.config, n_updates, label)


@functools.cache
def digit_networks(run):
    """{name: network}: the long training, and three short ones of equal time."""
    long, short = run.config.n_denoiser, max(run.config.n_denoiser // 5, 1)
    free = max(int(FREE_SHARE * short), 1)
    return {
        "energy": learn_digits(run, long, "energy"),
        "a fifth: energy": learn_digits(run, short, "a fifth"),
        "a fifth: without clusters": learn_digits(run, short, "no clusters", with_clusters=False),
        "a fifth: free network": learn_digits(run, free, "free network", is_energy=False),
    }


@torch.no_grad()
def sample_digits(run, net, sampler):
    """Images (n_samples, 64) from noise, each cluster by its share."""
    n, clusters = run.config.n_samples, clusters_of_digits(run)[1]
    torch.manual_seed(run.seed)
    c = shared_out(clusters, 1, n)[0] if len(net.by_label) > 1 else torch.zeros(n, dtype=torch.int64, device=run.device)
    x = net.mean + (net.sd**2 + net.high**2) ** 0.5 * torch.randn(n, 64, device=run.device)
    return SAMPLERS[sampler](at_levels(net, c)[0], x, net.low, net.high, n_evaluations(run.config))


def in_cells(x):
    """Images of 17 grey levels spread evenly over the cells of their pixels, 1/8 wide."""
    return x + (torch.rand_like(x) - 0.5) / 8


def bits_per_dimension(log_density, d=64, cell=1 / 8):
    """Eq. (9) for log densities (N,) in nats: (N,)."""
    return -log_density / (d * math.log(2)) - math.log2(cell)


@torch.no_grad()
def flow_of_digits(run, x, n_nearest=4, n_steps=60):
    """log p(x) (N,) by the flow in each of the nearest clusters of x (N, 64): a lower bound of the sum over all."""
    net, (pixels, clusters) = copy.deepcopy(digit_networks(run)["energy"]).cpu().double(), clusters_of_digits(run)
    pixels, clusters = pixels.cpu().double(), clusters.cpu()
    centres = torch.stack([pixels[clusters == k].mean(0) for k in range(len(net.by_label))])
    near = torch.cdist(x, centres).argsort(1)[:, :n_nearest]
    share, levels = torch.bincount(clusters).double() / len(clusters), noise_levels(n_steps, net.low, net.high)[-2::-1]
    slopes = at_levels(net, near.flatten())[1]
    log_p = flow_log_density(slopes, x.repeat_interleave(near.shape[1], 0), levels, gaussian_start(net))
    return (log_p.view(near.shape) + share[near].log()).logsumexp(1)


@functools.cache
@own_random_stream
def tuned_mixture(run):
    """A mixture of spread images, its size and regularisation chosen on a part of the training images."""
    torch.manual_seed(run.seed)
    x, _, held, _ = split_images(in_cells(images(run).x), images(run).y, 0.25)
    settings = [(size, reg) for size in (3, 5, 7, 10, 20) for reg in (1e-3, 2e-3, 3e-3, 1e-2)]

    def loss(setting):
        return -mixture_log_density(fit_gaussians(x, setting[0], run.seed, setting[1]), held).mean()

    size, reg = min(settings, key=loss)
    return fit_gaussians(in_cells(images(run).x), size, run.seed, reg)


class DenoisedDigits(NamedTuple):
    """What was drawn and measured on digits."""

    samples: dict  # {name: images}
    scores: dict  # {name: DigitScores}
    bits: dict  # {name: bits a dimension (N,) of the test images}
    antisymmetry: dict
    floor: float  # Fréchet distance of as many training images
    nearest: float  # median distance of test images to the nearest training image


@functools.cache
@own_random_stream
def measure_diffused_digits(run):
    """Samplers, networks and the mixture, on samples; the flow's bits beside the mixture's; who has a curl."""
    nets = digit_networks(run)
    drawn = {sampler: sample_digits(run, nets["energy"], sampler) for sampler in SAMPLERS}
    drawn |= {name: sample_digits(run, net, "probability flow") for name, net in nets.items() if name != "energy"}
    torch.manual_seed(run.seed)
    drawn["mixture"] = draw_gaussians(fit_gaussians(images(run).x, 60, run.seed), run.config.n_samples).clamp(-1, 1)
    scores = {name: score_images(run, x) for name, x in drawn.items()}
    x = in_cells(images(run).x_test)
    bits = {"flow": flow_of_digits(run, x), "mixture": mixture_log_density(tuned_mixture(run), x)}
    noisy, twisted = x[:20] + 0.5 * torch.randn(20, 64, dtype=torch.float64), {}
    for name in ("a fifth: energy", "a fifth: free network"):
        score = at_levels(copy.deepcopy(nets[name]).cpu().double())[0]
        twisted[name] = antisymmetry(lambda z, score=score: score(z, 0.5), noisy)
    bits = {name: bits_per_dimension(log_p) for name, log_p in bits.items()}
    near = nearest_distances(images(run).x_test, images(run).x).median().item()
    return DenoisedDigits(drawn, scores, bits, twisted, floor_of_training_images(run), near)


def draw_line(line, s=0.5, high=5.0):
    """Left, how the flow shrinks noise to the data's variance, with its half and without; right, three samplers."""
    fig, (ax, bars) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    sigma, wide = np.geomspace(0.02, high, 200), s**2 + high**2
    for name, path, colour in (
        ("the flow in 300 steps", s**2 + sigma**2, "C0"),
        ("without its half", (s**2 + sigma**2) ** 2 / wide, "C3"),
    ):
        ax.loglog(sigma, path, colour, label=f"{name}, theory")
        ax.plot(0.02, line.found[name].mean(), "o", c=colour, ms=9, label="measured at the end", clip_on=False)
    ax.axhline(s**2, c="k", ls="--", label="the data's variance $s^2$")
    ax.set(xlabel="noise level $\\sigma$ (noise is right, data left)", ylabel="variance of the points")
    ax.set_title(f"without its half the flow ends at {line.found['without its half'].mean() / s**2:.1%} of the variance")
    ax.legend(fontsize=8)
    names = list(SAMPLERS)
    means, sems = zip(*(mean_and_sem(line.found[name]) for name in names), strict=True)
    bars.bar(names, means, yerr=sems, color="C0", label="measured")
    bars.plot(names, [line.exact[name] for name in names], "kx", ms=10, label="exact, for these steps")
    bars.axhline(s**2, c="k", ls="--", label="the data's variance $s^2$")
    best = min(names, key=lambda name: abs(line.found[name].mean() - s**2))
    bars.set(ylabel="variance of the samples", title=f"with as many evaluations, the {best} is nearest")
    bars.legend(fontsize=8)
    return fig


def draw_hills(hills):
    """The hills, two densities of one trained network, and the constants of its energies."""
    fig, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
    gap, own = (hills.gaps[who].mean().item() for who in ("energy", "energy, by the grid"))
    titles = (
        "exact density, the lowest level",
        f"the network's flow: {gap:.2f} nats off",
        f"its exp(-E)/Z: {own:.2f} nats off",
    )
    for ax, p, title in zip(axes, hills.densities, titles, strict=False):
        ax.imshow(to_numpy(p.T), origin="lower", extent=(-6, 6, -6, 6), cmap="magma", vmax=hills.densities[0].max().item())
        ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$", xlim=(-4, 4), ylim=(-4, 4))
    axes[3].semilogx(list(hills.log_z), list(hills.log_z.values()), "o-")
    reach = max(hills.log_z.values()) - min(hills.log_z.values())
    axes[3].set(xlabel="noise level $\\sigma$", ylabel="log Z (nats)", title=f"log Z differs by {reach:.1f} nats")
    return fig


def draw_diffused_digits(run, found):
    """Samples, and how far from test images they are."""
    fig, (ax, bars) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained", width_ratios=(1.5, 1))
    rows = {"real": images(run).x_test[:14]} | {name: x[:14] for name, x in found.samples.items()}
    show_images(ax, rows, "digits from noise: a row a sampler (energy), a network or a rival")
    names = list(found.scores)[::-1]
    values, sems = [found.scores[name].frechet for name in names], [found.scores[name].frechet_sem for name in names]
    bars.errorbar(values, names, xerr=sems, fmt="o", ms=9)
    bars.axvline(found.floor, c="k", ls="--", label="real training images")
    bars.set(xlabel="Fréchet distance to test images", xscale="log", title=f"nearest: {in_words(nearest_of(found.scores))}")
    bars.legend()
    return fig


def record_levels(run, blurring, line, hills):
    """The exact half: what every score says, what samplers make of it, and what a flow is worth."""
    run.metric("denoiser by the score: largest error", blurring.denoiser, None, ("posterior mean", 0), 1e-10)
    run.metric("d log p/d sigma^2: largest error", blurring.heat, None, ("eq. (5)", 0), 1e-4)
    for name, variances in line.found.items():
        mean, sem = mean_and_sem(variances)
        run.metric(f"{name}: variance", mean, sem, ("exact", line.exact[name]), tolerance(sem, len(variances)))
    for who, gaps in hills.gaps.items():
        mean, sem = mean_and_sem(gaps)
        within = 0.005 + tolerance(sem, len(gaps)) if who == "exact score" else None  # 0.005: the solver's steps
        run.metric(f"three hills, {who}: gap (nats)", mean, sem, ("exact density", 0), within)
    for who, integral in hills.integrals.items():
        run.metric(f"three hills, {who}: integral", integral, None, ("a flow's", 1), 0.01)
    for who, share in hills.antisymmetry.items():
        within = None if who == "free network" else 1e-6
        run.metric(f"three hills, {who}: antisymmetry", share, None, ("an energy's", 0), within)


def record_denoiser(run, found):
    """Samples beside real images, and the flow's code length beside the mixture's."""
    for name, scores in found.scores.items():
        run.metric(f"{name}: Frechet distance", scores.frechet, scores.frechet_sem, ("real images", found.floor))
    for name in ("probability flow", "mixture"):
        scores = found.scores[name]
        run.metric(f"{name}: told from real", scores.told, scores.told_sem, ("a coin", 0.5))
        run.metric(f"{name}: nearest training image", scores.nearest, None, ("test images", found.nearest))
    run.metric("probability flow: class entropy (ln 10)", found.scores["probability flow"].entropy, None, ("even", 1))
    bits = {name: mean_and_sem(values) for name, values in found.bits.items()}
    run.metric("flow: bits a dimension", *bits["flow"], ("mixture tuned for bits", bits["mixture"][0]))
    for name, share in found.antisymmetry.items():
        run.metric(f"{name}: antisymmetry", share, None, ("an energy's", 0), None if "free" in name else 1e-6)


def section_diffusion(run):
    """Noise of many levels, a score for each: an energy that changes with the level makes samples out of noise."""
    line, hills = measure_line(run), measure_hills(run)
    record_levels(run, measure_blurring(run), line, hills)
    run.figure(draw_line(line), "half")
    run.figure(draw_hills(hills), "hills")
    found = measure_diffused_digits(run)
    record_denoiser(run, found)
    run.figure(draw_diffused_digits(run, found), "digits")
    run.say(diffusion_sentence(found))


def diffusion_sentence(found):
    """Which sampler, whether clusters pay, whether freedom does, and who codes images in fewer bits."""
    distance = {name: scores.frechet for name, scores in found.scores.items()}
    best, *ties = nearest_of({name: found.scores[name] for name in SAMPLERS})
    others = f", not told apart from {' and '.join(ties)}" if ties else ""
    energy, bare, free = (distance[f"a fifth: {name}"] for name in ("energy", "without clusters", "free network"))
    gain, sem = mean_and_sem(found.bits["mixture"] - found.bits["flow"])
    codes = "as many bits as" if abs(gain) < 2 * sem else "fewer bits than" if gain > 0 else "more bits than"
    return (
        f"{best} comes nearest to real digits ({distance[best]:.2f}{others}; a mixture of 60 {distance['mixture']:.2f}); "
        f"in a fifth of the time the energy reaches {energy:.2f}, without clusters {bare:.2f}, the free network {free:.2f}; "
        f"the flow codes test images in {codes} a mixture tuned for that ({gain:+.3f} +- {sem:.3f} a pixel saved)"
    )


# %% 2. Recovery likelihood
# A sampler for p must cross every barrier of p. Recovery likelihood (Bengio et al. 2013, Gao et al. 2021) learns another
# density instead: blur x to y = x + s n, and learn to *recover* x,
#
#     p(x | y) = exp(-E(x) - |x - y|²/(2s²)) / Z(y).
#
# By Bayes this is exactly the posterior if exp(-E)/Z is p, so the same E solves both problems; but the quadratic term
# holds x near y, and a short chain gives the slope of each log Z(y). The gradient has the two phases of module 01, one for
# each y:
#
#     ∇_θ log p(x | y) = -∇_θ E(x) + E_{x'~p(x'|y)}[∇_θ E(x')].
#
# When is it easy? Where E(x) + |x - y|²/(2s²) is convex, Langevin mixes at least as fast as its curvature κ (Bakry & Émery
# 1985). Take two points ±m under noise σ: E = x²/(2σ²) - log cosh(mx/σ²) + const, whose curvature is least at x = 0. So
#
#     κ = 1/s² + 1/σ² - m²/σ⁴ >= 0      if and only if      s² <= σ⁴/(m² - σ²)    (always where σ >= m).           (10)
#
# And what does it cost? Where the wells' shares are the parameter, p(x) = w N(m, σ²) + (1 - w) N(-m, σ²), log p(x | y) has
# the slope ψ(x) - E[ψ | y] in log(w/(1 - w)), with ψ = P(right well | x). Its mean square is the Fisher information, E
# Var(ψ | y): a part of Var ψ, which is what the likelihood of x itself has. As s -> 0 it vanishes: y tells the well, and
# recovery, like score matching (module 06), is blind to shares. Hence a *ladder*: the rung above, x + s n, is data of noise
# (σ² + s²)^½, and has an energy of its own. Sampling climbs down: draw the top, then each rung given the one above. Only
# the rungs at which wells still touch know their shares, and there σ is so wide that s may be wide too.


def widest_easy_rung(m, sigma):
    """The largest s for which p(x | y) of two points ±m under noise σ is log-concave at every y: eq. (10)."""
    return math.inf if sigma >= m else sigma**2 / (m**2 - sigma**2) ** 0.5


def easy_ladder(m, sigma):
    """Noise levels from σ up, each as far from the last as eq. (10) allows, until the two points are one hill."""
    levels = [sigma]
    while levels[-1] < m:
        levels.append((levels[-1] ** 2 + min(widest_easy_rung(m, levels[-1]), m) ** 2) ** 0.5)
    return levels


def recovery_gradient(energy_slope, energy, x, y, sigma, axis):
    """Gradient (P,) of the mean log p(x | y) over pairs (N,), 1-D, blur sigma: energy(x) (n,), its dE/dθ energy_slope(x)
    (P, n); every p(x | y) is summed over an even axis (n,)."""
    p = (-energy(axis) - (axis - y[:, None]) ** 2 / (2 * sigma**2)).softmax(1)  # (N, n)
    return (energy_slope(axis) @ p.T).mean(1) - energy_slope(x).mean(1)


def recovery_chains(score, x, y, s, step_size, n_steps):
    """n_steps Langevin steps of p(x | y) from x (B, d): module 01's, with a pull to y; s and step_size (B, 1) or numbers."""
    for _ in range(n_steps):
        pull = score(x) + (y - x) / s**2
        x = x + step_size / 2 * pull + step_size**0.5 * torch.randn_like(x)
    return x


def wells_energy(x, m, sigma):
    """E(x), up to a constant, of two points ±m under noise σ."""
    a = (m * x / sigma**2).abs()
    return x**2 / (2 * sigma**2) - a - torch.log1p((-2 * a).exp())


def wells_score(x, m, sigma):
    """-E'(x)."""
    return (m * (m * x / sigma**2).tanh() - x) / sigma**2


def exact_crossed(m, sigma, s, start, step_size, n_steps, y=0.0, n=800, reach=6.0):
    """The share of Langevin chains of p(x | y) left of 0 after n_steps from `start`: by powers of the chain's own kernel."""
    x = (torch.arange(n, dtype=torch.float64) + 0.5) * 2 * reach / n - reach

    def arrives(z):  # density of the next point, a row for each z
        mean = z + step_size / 2 * (wells_score(z, m, sigma) + (y - z) / s**2)
        return (-((x - mean[:, None]) ** 2) / (2 * step_size)).exp() / (2 * math.pi * step_size) ** 0.5

    kernel, p = arrives(x) * (2 * reach / n), arrives(torch.tensor([start], dtype=torch.float64))
    for _ in range(n_steps - 1):
        p = p @ kernel
    return (p[0, : n // 2].sum() * 2 * reach / n).item()


def exact_information_share(m, sigma, s, n=600):
    """E Var(ψ | y)/Var ψ of two equal wells: what p(x | y) still tells of their shares, by sums over grids of x and y."""
    x = torch.linspace(-m - 8 * sigma, m + 8 * sigma, n, dtype=torch.float64)
    y = torch.linspace(-m - 8 * (sigma + s), m + 8 * (sigma + s), n, dtype=torch.float64)
    p, psi = (-wells_energy(x, m, sigma)).softmax(0), (2 * m * x / sigma**2).sigmoid()
    joint = p * (-((y[:, None] - x) ** 2) / (2 * s**2)).exp()  # (y, x)
    posterior = joint / joint.sum(1, keepdim=True).clamp(min=1e-300)
    variance = posterior @ psi**2 - (posterior @ psi) ** 2
    return ((joint.sum(1) * variance).sum() / joint.sum() / (p @ psi**2 - (p @ psi) ** 2)).item()


class Wells(NamedTuple):
    """Chains of p(x | y = 0) of two points ±m under noise σ, for rungs s around the widest convex one."""

    s: list
    found: list  # shares (R,) of chains that have crossed
    exact: list  # of the same chains, by their kernel
    information: list  # share of the information about the wells' shares
    curvature: list  # κ of eq. (10)
    slope: torch.Tensor  # (R, 3): the recovery gradient at the truth, where it is 0 on average
    quadrature: float  # its largest difference from differences of log p(x | y), normalised by quadrature


TRUTH = (0.3, -2.0, 0.5)  # E = 0.3 x - 2 x² + x⁴/2, two wells of unequal depth


def quartic_slopes(x):
    """dE/dθ (3, n) of E = θ·(x, x², x⁴)."""
    return torch.stack([x, x**2, x**4])


def measure_gradient(run, s=0.6):
    """The recovery gradient (R, 3) at the truth, and its largest difference from quadrature at a wrong θ."""
    axis, truth = torch.linspace(-5, 5, 1001, dtype=torch.float64), torch.tensor(TRUTH, dtype=torch.float64)
    n_pairs, rows = min(run.config.n_points, 500), []
    for _ in range(run.config.n_repeats):
        which = torch.multinomial((-(truth @ quartic_slopes(axis))).softmax(0), n_pairs, replacement=True)
        x = axis[which]
        y = x + s * torch.randn(n_pairs, dtype=torch.float64)
        rows.append(recovery_gradient(quartic_slopes, lambda z: truth @ quartic_slopes(z), x, y, s, axis))
    wrong, x, y = truth + 0.3 * torch.randn(3, dtype=torch.float64), x[:3], y[:3]
    by_sum = recovery_gradient(quartic_slopes, lambda z: wrong @ quartic_slopes(z), x, y, s, axis)
    by_quad = [
        (exact_recovery(wrong + h, x, y, s) - exact_recovery(wrong - h, x, y, s)) / 2e-4
        for h in 1e-4 * torch.eye(3).double()
    ]
    return torch.stack(rows), (by_sum - torch.tensor(by_quad)).abs().max().item()


def exact_recovery(theta, x, y, s):
    """The mean log p(x | y) of E = θ·(x, x², x⁴) over pairs (N,), each Z(y) by quadrature."""
    t = theta.tolist()

    def minus(z, at):
        return -(t[0] * z + t[1] * z**2 + t[2] * z**4) - (z - at) ** 2 / (2 * s**2)

    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    return np.mean(
        [minus(a, b) - math.log(quad(lambda z, b=b: math.exp(minus(z, b)), -6, 6, epsabs=1e-12)[0]) for a, b in pairs]
    )


@functools.cache
@own_random_stream
def measure_rungs(run, m=2.0, sigma=0.6, n_steps=20):
    """Who crosses in n_steps: rungs from half the widest convex one to eight times it, chains that start in one well."""
    torch.manual_seed(run.seed)
    widest = widest_easy_rung(m, sigma)
    rungs = [share * widest for share in (0.5, 1.0, 2.0, 4.0, 8.0)]
    found, exact = [], []
    for s in rungs:
        start, size = m * s**2 / (s**2 + sigma**2), 0.5 / (1 / sigma**2 + 1 / s**2)
        x = torch.full((run.config.n_repeats, run.config.n_points), start, dtype=torch.float64)
        x = recovery_chains(lambda z: wells_score(z, m, sigma), x, 0.0, s, size, n_steps)
        found.append((x < 0).double().mean(1))
        exact.append(exact_crossed(m, sigma, s, start, size, n_steps))
    curvature = [1 / s**2 + 1 / sigma**2 - m**2 / sigma**4 for s in rungs]
    return Wells(
        rungs, found, exact, [exact_information_share(m, sigma, s) for s in rungs], curvature, *measure_gradient(run)
    )


# On digits the rungs are six, each 1.65 times as wide as the one below, in one network of eq. (7), whose levels they are.
# Strict convexity for every y between two neighbouring images would take many more (the section counts them); but y is
# hardly ever midway between two images. Two habits help. Chains start at the clean x (those of Gao et al. start at y): if
# the model were right, x would be a sample of p(x | y) already, so nothing moves on average, and what differs between the
# phases is little noise (contrastive divergence, module 05, whose bias is small where chains mix in a few steps). And a
# rung's two energies are weighed by σ/sd, which makes the slopes of all rungs alike, as in eq. (8).
#
# With one rung and s = ∞ recovery is maximum likelihood, chains wandering over all of p from a buffer: module 07's loop.
# It stands beside, with the same network and time; its rate did best on validation images.

N_RUNGS, RUNG_STEPS, LEARNING_STEPS = 6, 20, 4  # rungs; Langevin steps a rung when sampling, and when learning
STRETCH = 4.0  # of the learning rate, beside the denoiser's; chosen on validation images, as were the rungs


def rungs_of(net):
    """Noise levels (N_RUNGS + 1,) from the network's lowest to its highest, at equal ratios."""
    return net.low * (net.high / net.low) ** (torch.arange(N_RUNGS + 1, device=net.mean.device) / N_RUNGS)


def rung_step(sigma, s):
    """The Langevin step of a rung: half of its stiffest curve's inverse."""
    return 0.5 / (1 / sigma**2 + 1 / s**2)


def recovery_loss(net, x, x_model, sigma, c):
    """Minus eq. (3)'s likelihood, to descend: energies of data minus those of the model's samples, weighed by σ/sd."""
    data, model = net(x, sigma, c), net(x_model, sigma, c)
    return (sigma[:, 0] / net.sd * (data - model)).mean()


@no_subnormals()
@torch.enable_grad()
def train_recovery(net, draw, config, n_updates):
    """Recovery likelihood at all rungs; each image of a batch has a rung of its own."""
    learner, rungs = Learner(net, STRETCH * config.learning_rate, n_updates), rungs_of(net)
    for _ in Progress(range(n_updates), "recovery"):
        x, c = draw(config.batch_size)
        rung = torch.randint(N_RUNGS, (len(x), 1), device=x.device)
        sigma, s = rungs[rung], (rungs[rung + 1] ** 2 - rungs[rung] ** 2).sqrt()
        x = x + sigma * torch.randn_like(x)
        y = x + s * torch.randn_like(x)
        with torch.no_grad():
            score = functools.partial(net.score, sigma=sigma, c=c)
            x_model = recovery_chains(score, x, y, s, rung_step(sigma, s), LEARNING_STEPS)
        learner.down(recovery_loss(net, x, x_model, sigma, c))
    must_be_finite("recovery", *learner.average.parameters())
    return learner.average


@no_subnormals()
@torch.enable_grad()
def train_without_rungs(net, x, clusters, config, n_updates, n_blocks=4):
    """Module 07's loop on the lowest level: chains from a buffer, 1 % of them new from noise, RUNG_STEPS steps an update."""
    learner, sigma = Learner(net, 2 * config.learning_rate, n_updates), rungs_of(net)[:1].expand(config.batch_size, 1)
    labels, rows = shared_out(clusters, n_blocks, config.batch_size), Labelled(clusters)  # chains keep their clusters
    chains = net.mean + torch.randn(n_blocks, config.batch_size, x.shape[1], device=x.device)
    for step in Progress(range(n_updates), "no rungs"):
        chain, c = chains[step % n_blocks], labels[step % n_blocks]
        fresh = torch.rand(len(c), 1, device=x.device) < 0.01
        chain.copy_(torch.where(fresh, net.mean + torch.randn_like(chain), chain))
        with torch.no_grad():
            score = functools.partial(net.score, sigma=sigma, c=c)
            chain.copy_(recovery_chains(score, chain, 0.0, math.inf, rung_step(sigma, math.inf), RUNG_STEPS))
        data = x[rows.like(c)]
        learner.down(recovery_loss(net, data + sigma * torch.randn_like(data), chain, sigma, c))
    must_be_finite("no rungs", *learner.average.parameters())
    return learner.average


def rungs_down(net):
    """(σ, s) of each rung, the widest first: its level, and how much wider the level above it is."""
    levels = rungs_of(net).flip(0).tolist()
    return [(low, (high**2 - low**2) ** 0.5) for high, low in zip(levels[:-1], levels[1:], strict=True)]


@torch.no_grad()
def climb_down(run, net, rungs, width, n_steps=RUNG_STEPS):
    """Images (n_samples, 64) from noise of standard deviation `width`: n_steps Langevin steps at each rung, then the mean
    at the end. Where s is infinite the chain is not pulled anywhere."""
    n, clusters = run.config.n_samples, clusters_of_digits(run)[1]
    torch.manual_seed(run.seed)
    c = shared_out(clusters, 1, n)[0]
    x = net.mean + width * torch.randn(n, 64, device=run.device)
    score = at_levels(net, c)[0]
    for sigma, s in rungs:
        x = recovery_chains(functools.partial(score, sigma=sigma), x, x, s, rung_step(sigma, s), n_steps)
    return denoise(x, functools.partial(score, sigma=net.low), net.low)


class Recovered(NamedTuple):
    """Digits by recovery likelihood, and by module 07's loop."""

    samples: dict  # {name: images}
    scores: dict  # {name: DigitScores}
    n_convex: int  # rungs that eq. (10) would take between two neighbouring images
    floor: float  # Fréchet distance of as many training images


@functools.cache
@own_random_stream
def measure_recovery(run):
    """Two trainings of equal time, their samples in as many steps, and those of the loop in more."""
    torch.manual_seed(run.seed)
    x, clusters = clusters_of_digits(run)
    nets = [
        NoisyEnergy(x.mean(0), (x - x.mean(0)).std().item(), run.config.width, clusters.max().item() + 1, low=0.2, high=4.0)
        for _ in range(2)
    ]
    nets = [net.to(run.device) for net in nets]

    def draw(n):
        rows = torch.randint(len(x), (n,), device=x.device)
        return x[rows], clusters[rows]

    nets[0] = train_recovery(nets[0], draw, run.config, run.config.n_recovery)
    nets[1] = train_without_rungs(nets[1], x, clusters, run.config, max(run.config.n_recovery // 3, 1))
    rungs, wide = rungs_down(nets[0]), (nets[0].sd ** 2 + nets[0].high ** 2) ** 0.5
    samples = {
        "six rungs, 120 steps": climb_down(run, nets[0], rungs, wide),
        "no rungs, 120 steps": climb_down(run, nets[1], [(nets[1].low, math.inf)] * N_RUNGS, 1.0),
        "six rungs, 400 steps": climb_down(run, nets[0], rungs, wide, 400 // N_RUNGS),
        "no rungs, 400 steps": climb_down(run, nets[1], [(nets[1].low, math.inf)] * 20, 1.0),
    }
    near = torch.cdist(images(run).x, images(run).x).fill_diagonal_(math.inf).amin(1).median().item()
    n_convex = len(easy_ladder(near / 2, nets[0].low)) - 1
    return Recovered(
        samples, {name: score_images(run, each) for name, each in samples.items()}, n_convex, floor_of_training_images(run)
    )


def draw_rungs(wells, m=2.0, sigma=0.6):
    """Crossings and information against the width of the rung, and where p(x | y) stops being convex."""
    fig, (ax, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    means, sems = zip(*(mean_and_sem(found) for found in wells.found), strict=True)
    widest = widest_easy_rung(m, sigma)
    ax.errorbar(wells.s, means, yerr=sems, fmt="o", ms=8, label="measured, 20 Langevin steps")
    ax.plot(wells.s, wells.exact, "kx--", label="exact, by the chain's kernel")
    ax.axhline(0.5, c="C2", label="a chain that mixes")
    crossed = means[wells.s.index(widest)] if widest in wells.s else math.nan
    ax.set(
        ylabel="chains that crossed",
        ylim=(0, 0.75),
        title=f"at the widest convex rung {crossed:.0%} have crossed, at the last {means[-1]:.0%}",
    )
    right.plot(wells.s, wells.information, "o-C0")
    right.set(ylabel="information about the shares (1: likelihood)", ylim=(0, 1))
    at_widest = wells.information[wells.s.index(widest)] if widest in wells.s else math.nan
    right.set_title(f"at the widest convex rung {at_widest:.1%} of the information is left")
    for each in (ax, right):
        each.set(xlabel="width of the rung s", xscale="log")
        each.axvline(widest, c="C3", ls=":", label="convex to the left: eq. (10)")
    ax.legend(fontsize=8)
    return fig


def draw_recovered(run, found):
    """Samples of both trainings below real images."""
    fig, ax = plt.subplots(figsize=(10, 2.6), layout="constrained")
    rows = {"real": images(run).x_test[:20]}
    rows |= {f"{name}: {found.scores[name].frechet:.2f}": x[:20] for name, x in found.samples.items()}
    show_images(ax, rows, "digits by Langevin steps from noise, and their Fréchet distance to real ones")
    return fig


def record_rungs(run, wells):
    """Gradient, crossings and information, each beside quadrature."""
    run.metric("recovery gradient: from quadrature", wells.quadrature, None, ("difference", 0), 1e-5)
    for name, column in zip(("x", "x^2", "x^4"), wells.slope.T, strict=True):
        mean, sem = mean_and_sem(column)
        run.metric(f"gradient at the truth, {name}", mean, sem, ("zero", 0), tolerance(sem, len(column), 3))
    rungs = zip(wells.s, wells.found, wells.exact, wells.information, wells.curvature, strict=True)
    for s, found, exact, share, curvature in rungs:
        mean, sem = mean_and_sem(found)
        run.metric(
            f"rung {s:.2f}: crossed in 20 steps", mean, sem, ("kernel", exact), tolerance(sem, len(found), len(wells.s))
        )
        run.metric(f"rung {s:.2f}: information about shares", share, None, ("likelihood", 1))
        run.metric(f"rung {s:.2f}: least curvature", curvature, None, ("convex from", 0))


def section_recovery(run):
    """Recover x from a noisy y: easy where p(x | y) is log-concave, and a ladder of such steps turns noise to data."""
    wells, found = measure_rungs(run), measure_recovery(run)
    record_rungs(run, wells)
    run.figure(draw_rungs(wells), "wells")
    run.metric("rungs that convexity would take on digits", found.n_convex, None, ("used", N_RUNGS))
    for name, scores in found.scores.items():
        run.metric(f"{name}: Frechet distance", scores.frechet, scores.frechet_sem, ("real images", found.floor))
        run.metric(f"{name}: told from real", scores.told, scores.told_sem, ("a coin", 0.5))
    run.figure(draw_recovered(run, found), "digits")
    distances = ", ".join(f"{name} {scores.frechet:.2f}" for name, scores in found.scores.items())
    crossed = [values.mean().item() for values in wells.found]
    run.say(
        f"a convex rung lets {crossed[1]:.0%} of the chains cross and keeps {wells.information[1]:.1%} of the information, "
        f"one eight times as wide {crossed[-1]:.0%} and {wells.information[-1]:.0%}; digits by {distances}; "
        f"nearest: {in_words(nearest_of(found.scores))}"
    )


# %% 3. Flows
# A flow f maps data to noise, invertibly, and pays for every volume that it stretches: eq. (4) is a density with Z = 1,
# exactly. RealNVP's coupling layer (Dinh, Sohl-Dickstein & Bengio 2017) leaves one half of x as it is and moves the other,
#
#     x₁ = z₁,        x₂ = z₂ exp(scale(x₁)) + shift(x₁),        log |det ∂z/∂x| = -Σ scale(x₁),
#
# where scale and shift may be any networks: nothing inverts them. But a smooth invertible map cannot tear a Gaussian into
# separate islands: bridges remain. An energy can cut them. Tilt the flow's density q,
#
#     p(x) = q(x) exp(g(x) - log Z),      Z = E_q[exp g],                                                         (11)
#
# and learn g and log Z by NCE (module 06) with q as the noise: the classifier's logit is log p - log q = g - log Z. In the
# plane even noise serves as well, for it is everywhere; in 64 dimensions it would never meet the data, and NCE's noise has
# to resemble them. Two averages give Z back: Z = E_q[exp g], whose logarithm comes out too low on
# average (Jensen), and 1/Z = E_p[exp(-g)], which makes log Z too high, *if* its points are samples of p. Data are not:
# they come from the data's density, so the two numbers would enclose log Z on average if it were p, and bound nothing: both
# may lie on one side.
#
# Flow-contrastive estimation (Gao et al. 2020) lets the flow learn as well, against the classifier. NCE ascends V = E_data
# log σ(logit) + E_q log(1 - σ(logit)), which at the best logit is V = 2 JS(data, q) - 2 log 2, so the flow, descending V,
# approaches the data in Jensen-Shannon divergence, and its samples stay hard to tell from data.


def coupling_log_prob(x, scale, shift):
    """log p(x) (N,) of one coupling layer over N(0, I) in the plane: scale and shift are functions (N,) -> (N,)."""
    log_stretch = scale(x[:, 0])
    z = torch.stack([x[:, 0], (x[:, 1] - shift(x[:, 0])) * (-log_stretch).exp()], 1)
    return -z.square().sum(1) / 2 - math.log(2 * math.pi) - log_stretch


class Flow(nn.Module):
    """Coupling layers between x (N, d) and z ~ N(0, I), each with a random half of its own; x is standardised first."""

    def __init__(self, mean, std, width, n_layers):
        super().__init__()
        d = len(mean)
        orders = [torch.arange(d).roll(i) if d < 4 else torch.randperm(d) for i in range(n_layers)]
        self.register_buffer("kept", torch.stack([order[: d // 2] for order in orders]))
        self.register_buffer("moved", torch.stack([order[d // 2 :] for order in orders]))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.nets = nn.ModuleList(self.network(d // 2, d - d // 2, width) for _ in orders)

    @staticmethod
    def network(n_in, n_moved, width):
        """(N, n_in) -> scale and shift (N, 2 n_moved), both 0 at first."""
        net = nn.Sequential(
            nn.Linear(n_in, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * n_moved)
        )
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)
        return net

    def halves(self, i, x):
        """What layer i moves of x, and its (scale, shift) from what it keeps; no scale is larger than 2."""
        scale, shift = self.nets[i](x.index_select(1, self.kept[i])).chunk(2, 1)
        return x.index_select(1, self.moved[i]), 2 * torch.tanh(scale / 2), shift

    def to_noise(self, x):
        """z (N, d) and log |det ∂z/∂x| (N,)."""
        x, log_det = (x - self.mean) / self.std, -self.std.log().sum()
        for i in range(len(self.nets)):
            moved, scale, shift = self.halves(i, x)
            x = x.index_copy(1, self.moved[i], (moved - shift) * (-scale).exp())
            log_det = log_det - scale.sum(1)
        return x, log_det

    def from_noise(self, z):
        """x (N, d): the layers backwards."""
        for i in reversed(range(len(self.nets))):
            moved, scale, shift = self.halves(i, z)
            z = z.index_copy(1, self.moved[i], moved * scale.exp() + shift)
        return z * self.std + self.mean

    def log_density(self, x):
        """log q(x) (N,), eq. (4)."""
        z, log_det = self.to_noise(x)
        return log_det - z.square().sum(1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi)

    def sample(self, n):
        """n points (n, d)."""
        return self.from_noise(torch.randn(n, len(self.mean), dtype=self.mean.dtype, device=self.mean.device))


# Differs from 06_score_matching.py: nce_loss - of logits, with as many points of noise as of data
def nce_loss(logit_data, logit_noise):
    """Minus NCE's value V: logits log p - log q of data and of as many points of the noise q."""
    return softplus(-logit_data).mean() + softplus(logit_noise).mean()


def log_z_from_both_sides(g_noise, g_data):
    """log Z of eq. (11) by importance: from points of q, and from points that should be p's and are data."""
    return g_noise.logsumexp(0) - math.log(len(g_noise)), math.log(len(g_data)) - (-g_data).logsumexp(0)


class Uniform:
    """Even noise over the window [-reach, reach]² of the plane: what module 06's NCE starts from."""

    def __init__(self, reach, device):
        self.reach, self.device = reach, device

    def log_density(self, x):
        return torch.full_like(x[:, 0], -2 * math.log(2 * self.reach))

    def sample(self, n):
        return self.reach * (2 * torch.rand(n, 2, device=self.device) - 1)


class Tilt(nn.Module):
    """g(x) - log Z of eq. (11): (N, d) -> (N,); the last bias is -log Z, which NCE learns with the rest."""

    def __init__(self, mean, std, width):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.net = nn.Sequential(
            nn.Linear(len(mean), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1), nn.Flatten(0)
        )

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


@torch.enable_grad()
def train_flow(flow, draw, config, n_updates, label):
    """Maximum likelihood on batches draw(B) (B, d)."""
    learner = Learner(flow, config.learning_rate, n_updates)
    for _ in Progress(range(n_updates), label):
        learner.down(-flow.log_density(draw(config.batch_size)).mean())
    must_be_finite(label, *learner.average.parameters())
    return learner.average


@torch.enable_grad()
def train_tilt(tilt, noise, draw, config, n_updates, label):
    """Noise-contrastive estimation of eq. (11) against `noise`, which stays as it is."""
    learner = Learner(tilt, config.learning_rate, n_updates)
    for _ in Progress(range(n_updates), label):
        with torch.no_grad():
            points = noise.sample(config.batch_size)
        learner.down(nce_loss(tilt(draw(config.batch_size)), tilt(points)))
    must_be_finite(label, *learner.average.parameters())
    return learner.average


@torch.enable_grad()
def train_together(flow, start, tilt, draw, config, n_updates):
    """Flow-contrastive estimation: the energy log p = log start + tilt ascends V, the flow descends it; both averaged."""
    teacher, pupil = Learner(tilt, config.learning_rate / 4, n_updates), Learner(flow, config.learning_rate / 4, n_updates)
    for _ in Progress(range(n_updates), "together"):
        x, z = draw(config.batch_size), torch.randn(config.batch_size, len(flow.mean), device=flow.mean.device)
        points = flow.from_noise(z)  # with a path back to the flow
        loss = nce_loss(*(start.log_density(v) + tilt(v) - flow.log_density(v) for v in (x, points)))
        pupil.down(-loss)
        points = points.detach()
        ratio = [start.log_density(v).detach() - flow.log_density(v).detach() for v in (x, points)]
        teacher.down(nce_loss(ratio[0] + tilt(x), ratio[1] + tilt(points)))
    must_be_finite("together", *teacher.average.parameters(), *pupil.average.parameters())
    return pupil.average, teacher.average


def four_islands():
    """Four round Gaussians of standard deviation 0.4, one on each half axis at distance 2, whose density is known."""
    means = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    return Gaussians(torch.full((4,), 1 / 4).double(), means, 0.16 * torch.eye(2).double().expand(4, 2, 2))


WINDOW = 4.0  # of the plane, [-4, 4]²


class Islands(NamedTuple):
    """Models of four islands, on an even grid: log densities as their owners normalise them."""

    log_density: dict  # {name: (n²,)}
    gaps: dict  # {name: KL(data || model) in nats, the model normalised by the grid}
    integrals: dict  # {name: integral over the window}
    log_z: tuple  # of the tilt: from the noise's side, from the data's side, by the grid
    js: dict  # {flow: Jensen-Shannon divergence (nats) from the data}: before, after more likelihood, after contrast
    bridges: dict  # {name: share of the mass at sea, on no island}


def grid_of(n, reach):
    """Midpoints (n², 2) of an even grid on [-reach, reach]², and the area of a cell."""
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * 2 * reach / n - reach
    return torch.cartesian_prod(axis, axis), (2 * reach / n) ** 2


def exact_divergences(log_p, log_q, cell):
    """KL(p || q) and the Jensen-Shannon divergence, in nats, of two densities on a grid, normalised there."""
    log_p, log_q = (values - values.logsumexp(0) - math.log(cell) for values in (log_p, log_q))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    p, q = log_p.exp() * cell, log_q.exp() * cell
    return (p * (log_p - log_q)).sum().item(), ((p * (log_p - log_m)).sum() + (q * (log_q - log_m)).sum()).item() / 2


def share_off_islands(log_p, points, islands, reach=3.0):
    """The share of a density exp(log_p) (N,) on an even grid of points (N, 2) that lies farther than `reach` standard
    deviations from every round Gaussian of `islands`."""
    far = torch.cdist(points, islands.means).amin(1) > reach * islands.covariances[0, 0, 0].sqrt()
    return log_p.softmax(0)[far].sum().item()


def theory_share_off_island(reach=3.0):
    """The share of a round Gaussian of the plane beyond `reach` standard deviations: exp(-reach²/2) (Rayleigh's law)."""
    return math.exp(-(reach**2) / 2)


@functools.cache
@own_random_stream
def models_of_islands(run):
    """{name: model}: flows, a tilt of the flow, an energy by NCE from even noise, and a flow and an
    energy that have learnt from each other."""
    torch.manual_seed(run.seed)
    config, n = run.config, run.config.n_flow
    config = replace(config, learning_rate=5 * config.learning_rate, batch_size=2 * config.batch_size)  # the plane is easy
    pool = draw_gaussians(four_islands(), 20_000).float().to(run.device)
    mean, std = pool.mean(0), pool.std(0)

    def draw(n):
        return pool[torch.randint(len(pool), (n,), device=run.device)]

    def new_tilt():
        return Tilt(mean, std, 128).to(run.device)

    flow = train_flow(Flow(mean, std, 64, 6).to(run.device), draw, config, n, "flow")
    # an update of both takes as long as six of the flow; what the tilt took before is not counted
    longer = train_flow(copy.deepcopy(flow).requires_grad_(True), draw, config, max(3 * n // 4, 1), "flow, longer")
    tilt = train_tilt(new_tilt(), flow, draw, config, n, "tilted flow")
    even = train_tilt(new_tilt(), Uniform(WINDOW, run.device), draw, config, n, "energy, even noise")
    pupil = copy.deepcopy(flow).requires_grad_(True)
    pupil, teacher = train_together(pupil, flow, copy.deepcopy(tilt).requires_grad_(True), draw, config, max(n // 8, 1))
    models = {"flow": flow, "longer": longer, "tilt": tilt, "even": even, "pupil": pupil, "teacher": teacher}
    return {name: model.cpu().double() for name, model in models.items()}


@torch.no_grad()
def measure_islands(run, n=160, reach=10.0):
    """Each model's density on a grid beside the exact one, log Z from both sides, and what contrast does to the flow."""
    models, (grid, cell), exact = models_of_islands(run), grid_of(n, reach), four_islands()
    inside = grid.abs().amax(1) < WINDOW  # where even noise has been, and all data
    log_q, truth = models["flow"].log_density(grid), mixture_log_density(exact, grid)
    log_density = {
        "flow": log_q,
        "flow, longer": models["longer"].log_density(grid),
        "tilted flow": log_q + models["tilt"](grid),
        "energy, even noise": models["even"](grid) - 2 * math.log(2 * WINDOW),
        "flow after contrast": models["pupil"].log_density(grid),
        "energy after contrast": log_q + models["teacher"](grid),
    }
    divergences = {name: exact_divergences(truth[inside], log_p[inside], cell) for name, log_p in log_density.items()}
    integrals = {name: (log_p.exp().sum() * cell).item() for name, log_p in log_density.items()}
    torch.manual_seed(run.seed)
    size = run.config.n_repeats * run.config.n_points
    g = [models["tilt"](x) for x in (models["flow"].sample(size), draw_gaussians(exact, size))]
    log_z = *(value.item() for value in log_z_from_both_sides(*g)), math.log(integrals["tilted flow"])
    js = {name: divergences[name][1] for name in ("flow", "flow, longer", "flow after contrast")}
    bridges = {name: share_off_islands(log_p[inside], grid[inside], exact) for name, log_p in log_density.items()}
    return Islands(log_density, {name: kl for name, (kl, _) in divergences.items()}, integrals, log_z, js, bridges)


# On digits the flow learns pixels that are spread over their cells, as eq. (9) wants it; its density is exact, so its bits
# need no solver. Left to itself it soon knows the training images by heart: a little noise, 0.1, is added to what it learns
# from, and the updates are few (both chosen on validation images). The tilt learns by NCE with the flow as its noise, and
# log Z comes from both sides. A sample of the tilt is one of many of the flow's, drawn in proportion to exp g.


class FlowDigits(NamedTuple):
    """The flow and the tilted flow on digits."""

    samples: dict
    scores: dict
    bits: dict  # {name: bits a dimension (N,) of the test images}
    log_z: tuple  # from the noise's side, from the data's side
    ess: float  # effective share of the flow's points under the weights exp g
    log_det: float  # largest difference from the determinant that autograd gives


def log_det_error(flow, x):
    """Largest difference of the log-determinant at x (N, d) from slogdet of autograd's Jacobian."""
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.to_noise(v)[0].sum(0), x).movedim(1, 0)
    return (torch.linalg.slogdet(jacobian)[1] - flow.to_noise(x)[1]).abs().max().item()


@functools.cache
@own_random_stream
def measure_flow_digits(run):
    """Flow and tilt on spread images beside the tuned mixture of them; their samples beside the mixture's."""
    torch.manual_seed(run.seed)
    config, images_ = run.config, images(run)
    x = images_.x.float().to(run.device)
    mean, std = in_cells(x).mean(0), in_cells(x).std(0).clamp(min=0.2)  # else pixels that are always white are cliffs

    def draw(n):
        spread = in_cells(x[torch.randint(len(x), (n,), device=x.device)])
        return spread + 0.1 * torch.randn_like(spread)

    config = replace(config, learning_rate=2 * config.learning_rate)
    flow = train_flow(Flow(mean, std, config.width // 4, 8).to(run.device), draw, config, config.n_flow, "flow of digits")
    tilt = Tilt(mean, std, config.width // 4).to(run.device)
    tilt = train_tilt(tilt, flow, draw, config, max(config.n_flow // 2, 1), "tilted flow of digits")
    with torch.no_grad():
        pool = flow.sample(10 * config.n_samples)
        g = tilt(pool).cpu().double()
        g_data = tilt(in_cells(images_.x_test.float().to(run.device))).cpu().double()
        picked = torch.multinomial(g.softmax(0), config.n_samples, replacement=True).to(run.device)
    mixture, x_test = tuned_mixture(run), in_cells(images_.x_test)
    samples = {
        "flow": pool[: config.n_samples],
        "tilted flow": pool[picked],
        "mixture of 60": draw_gaussians(fit_gaussians(images_.x, 60, run.seed), config.n_samples).clamp(-1, 1),
        "mixture": draw_gaussians(mixture, config.n_samples),  # tuned for its bits, which its samples pay for
    }
    log_z = [value.item() for value in log_z_from_both_sides(g, g_data)]
    exact, tilted = flow.cpu().double(), tilt.cpu().double()
    with torch.no_grad():
        log_q = exact.log_density(x_test)
        log_p = {
            "flow": log_q,
            "tilted flow": log_q + tilted(x_test) - log_z[0],  # of the noise's side, which has not seen the test images
            "mixture": mixture_log_density(mixture, x_test),
        }
    scores = {name: score_images(run, each) for name, each in samples.items()}
    ess = (2 * g.logsumexp(0) - (2 * g).logsumexp(0)).exp().item() / len(g)
    bits = {name: bits_per_dimension(values) for name, values in log_p.items()}
    return FlowDigits(samples, scores, bits, tuple(log_z), ess, log_det_error(exact, x_test[:5]))


def draw_islands(islands):
    """Densities of four islands, and their gaps."""
    shown = ("flow", "tilted flow", "energy, even noise", "flow after contrast")
    fig, axes = plt.subplots(1, 4, figsize=(14, 3.9), layout="constrained", sharey=True)
    for ax, name in zip(axes, shown, strict=True):
        log_p = islands.log_density[name]
        side = math.isqrt(len(log_p))
        ax.imshow(
            to_numpy(log_p.exp().reshape(side, side).T), origin="lower", extent=(-10, 10, -10, 10), cmap="magma", vmax=0.25
        )
        title = f"{name}: {islands.gaps[name]:.3f} nats off,\n{islands.bridges[name]:.1%} of it at sea"
        ax.set(title=title, xlabel="$x_1$", xlim=(-WINDOW, WINDOW), ylim=(-WINDOW, WINDOW))
    axes[0].set_ylabel("$x_2$")
    return fig


def draw_flow_digits(run, found):
    """Samples of flow, tilt and mixture below real images; their code lengths and distances."""
    fig, (ax, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained", width_ratios=(1.6, 1))
    show_images(ax, {"real": images(run).x_test[:14]} | {name: x[:14] for name, x in found.samples.items()})
    bits = {name: mean_and_sem(values) for name, values in found.bits.items()}
    for name, (mean, sem) in bits.items():
        scores = found.scores[name]
        right.errorbar(mean, scores.frechet, scores.frechet_sem, sem, "o", ms=9, label=name)
    right.set(xlabel="bits a dimension (fewer is better)", ylabel="Fréchet distance")
    right.set_title(f"nearest: {in_words(nearest_of(found.scores))}")
    right.axhline(found.scores["mixture of 60"].frechet, color="k", ls="--", label="mixture of 60")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=9, columnspacing=1)
    return fig


def record_islands(run, islands):
    """The plane's models beside the grid."""
    for name, gap in islands.gaps.items():
        run.metric(f"islands, {name}: gap (nats)", gap, None, ("the data's density", 0))
    for name, share in islands.bridges.items():
        run.metric(f"islands, {name}: mass at sea", share, None, ("the data's", theory_share_off_island()))
    for name in ("flow", "flow, longer", "flow after contrast"):
        run.metric(f"islands, {name}: integral", islands.integrals[name], None, ("a density's", 1), 0.01)
    for side, value in zip(("noise", "data"), islands.log_z, strict=False):
        run.metric(f"islands, tilt: log Z from the {side}", value, None, ("grid", islands.log_z[2]))
    for name, js in islands.js.items():
        run.metric(f"islands, {name}: JS (nats)", js, None, ("the flow before", islands.js["flow"]))


def section_flows(run):
    """A flow's Z is 1, but it leaves bridges between islands: an energy that tilts it cuts them."""
    islands, found = measure_islands(run), measure_flow_digits(run)
    record_islands(run, islands)
    run.figure(draw_islands(islands), "islands")
    run.metric("digits: log-det, largest error", found.log_det, None, ("autograd", 0), 1e-8)
    for name, values in found.bits.items():
        run.metric(f"digits, {name}: bits a dimension", *mean_and_sem(values), ("mixture", found.bits["mixture"].mean()))
    beside = "mixture of 60", found.scores["mixture of 60"].frechet
    for name, scores in found.scores.items():
        run.metric(f"digits, {name}: Frechet distance", scores.frechet, scores.frechet_sem, beside)
    for side, value in zip(("noise", "data"), found.log_z, strict=True):
        run.metric(f"digits, tilt: log Z from the {side}", value, None, ("learnt", 0))
    run.metric("digits, tilt: effective share of points", found.ess, None, ("all equal", 1))
    run.figure(draw_flow_digits(run, found), "digits")
    run.say(flows_sentence(islands, found))


def flows_sentence(islands, found):
    """What the tilt is worth in the plane, what contrast does to the flow (one training each), and who codes digits best."""
    gaps, bridges = islands.gaps, islands.bridges
    js = [islands.js[name] for name in ("flow", "flow after contrast", "flow, longer")]
    saved, error = mean_and_sem(found.bits["flow"] - found.bits["tilted flow"])
    codes = "as many bits as" if abs(saved) < 2 * error else "fewer bits than" if saved > 0 else "more bits than"
    distance = {name: scores.frechet for name, scores in found.scores.items()}
    return (
        f"the tilt takes {bridges['flow']:.3f} of the mass at sea to {bridges['tilted flow']:.3f} (the data's "
        f"{theory_share_off_island():.3f}), and {gaps['flow']:.3f} nats to {gaps['tilted flow']:.3f} (with even noise "
        f"{gaps['energy, even noise']:.3f}); contrast takes the flow's JS from {js[0]:.3f} to {js[1]:.3f}, as much time of "
        f"likelihood to {js[2]:.3f}; on digits the tilted flow needs {codes} the flow, its distance is "
        f"{distance['tilted flow']:.2f} for {distance['flow']:.2f}, a mixture's {distance['mixture of 60']:.2f}"
    )


# %% 4. Latent-variable energies
# A generator alone says x = g(z) + s n with z ~ N(0, I). Pang et al. (2020) give it an energy for a prior:
#     p(z) = exp(-f(z))/Z,        p(x | z) = N(g(z), s² I),        p(x) = ∫ p(z) p(x | z) dz.
# The slope of log p(x) in the parameters of f has two phases, as for any energy, of which the first is the posterior's:
#     ∂ log p(x) = -E[∂f(z) | x] + E[∂f(z)],        and in those of g:        ∂ log p(x) = E[∂ log p(x | z) | x].       (12)
# Both expectations take Langevin chains, but in the few dimensions of z, where chains mix that would not mix in pixels.
# Where all is linear, f = z'Az/2 - b'z and g = W z, the prior is N(A⁻¹b, A⁻¹) and
#     p(x) = N(x; W A⁻¹ b, W A⁻¹ W' + s² I).
# In one or two latent dimensions z can be summed on a grid, whatever f and g are.


# Copied from 09_ebm_applications.py: langevin
@torch.no_grad()
def langevin(slope, x, n_steps, step_size):
    """n_steps of x <- x - (ε/2) ∇E(x) + √ε ξ from x (..., d), T = 1; slope(x) is ∇E."""
    for _ in range(n_steps):
        x = torch.add(x, slope(x), alpha=-step_size / 2).add_(torch.randn_like(x), alpha=step_size**0.5)
    return x


def latent_loss(prior, decoder, s, x, z_posterior, z_prior):
    """Its slopes in the parameters: minus eq. (12), averaged over x (B, d): z_posterior (B, m) given x, z_prior (N, m)."""
    error = (x - decoder(z_posterior.detach())).square().sum(-1).mean() / (2 * s**2)
    return error + prior(z_posterior.detach()).mean() - prior(z_prior.detach()).mean()


def slope_by_autograd(energy):
    """x -> ∇E(x), by autograd."""

    def slope(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(energy(x).sum(), x)[0]

    return slope


def posterior_energy(prior, decoder, s, x):
    """z -> f(z) + |x - g(z)|²/(2s²): minus the log posterior up to a constant."""
    return lambda z: prior(z) + (x - decoder(z)).square().sum(-1) / (2 * s**2)


def exact_linear_log_density(x, a, b, w, s):
    """log p(x) (B,) of the linear case; A (m, m), b (m,), W (d, m)."""
    mean, inverse = w @ torch.linalg.solve(a, b), torch.linalg.inv(a)
    covariance = w @ inverse @ w.T + s**2 * torch.eye(len(w), dtype=w.dtype)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


def theory_step_error(a, w, s, step_size):
    """What Langevin steps of this size add to the slope in W (d, m): along a curvature h of the posterior they leave the
    variance 1/(h (1 - εh/4)) and not 1/h (module 01, section stepsize), and the slope holds -W Var(z | x)/s²."""
    h = a + w.T @ w / s**2
    too_wide = torch.linalg.inv(h @ (torch.eye(len(a), dtype=a.dtype) - step_size * h / 4)) - torch.linalg.inv(h)
    return -w @ too_wide / s**2


def latent_grid(m, box, n):
    """Midpoints (n^m, m) of cells of [-box, box]^m."""
    axis = box * ((2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1)
    return torch.cartesian_prod(*[axis] * m).view(-1, m)


def quadrature_log_density(x, prior, decoder, s, z):
    """log p(x) (B,) with z summed on a grid (G, m): log ∫ exp(-f) N(x; g, s²) - log ∫ exp(-f); the cells' volume cancels."""
    minus_f, d = -prior(z), x.shape[1]
    log_x = -torch.cdist(x, decoder(z)).square() / (2 * s**2) - d / 2 * math.log(2 * math.pi * s**2)
    return (minus_f + log_x).logsumexp(1) - minus_f.logsumexp(0)


class LinearLatent(NamedTuple):
    """How far quadrature is from the closed form; slopes in the first entries of b and W by chains (R, 2), exactly (2,), and
    what the chains' steps add to them (2,)."""

    gap: float
    slopes: torch.Tensor
    exact: torch.Tensor
    step_error: torch.Tensor


def measure_linear_latent(run, s=0.5, step_size=0.08, n_steps=200):
    """Three observed and two latent dimensions, all linear: the density, and slopes of its log by Langevin."""
    w, root = torch.randn(3, 2, dtype=torch.float64) / 2, torch.randn(2, 2, dtype=torch.float64)
    a, b = torch.eye(2, dtype=torch.float64) + root @ root.T / 4, torch.tensor([0.8, -0.5], dtype=torch.float64)
    x = torch.randn(20, 3, dtype=torch.float64) + torch.tensor([1.0, 0.0, -1.0])
    b.requires_grad_()
    w.requires_grad_()

    def prior(z):
        return ((z @ a) * z).sum(-1) / 2 - z @ b

    def decoder(z):
        return z @ w.T

    def slope(log_p):
        in_b, in_w = torch.autograd.grad(log_p, (b, w))
        return torch.stack([in_b[0], in_w[0, 0]])

    exact = exact_linear_log_density(x, a, b, w, s)
    gap = (quadrature_log_density(x, prior, decoder, s, latent_grid(2, 9.0, 240)) - exact).abs().max().item()
    slopes, n = [], max(run.config.n_points // len(x), 1)
    for _ in range(run.config.n_repeats):
        many = x.repeat(n, 1)
        start = torch.randn(2, len(many), 2, dtype=torch.float64)
        z = langevin(slope_by_autograd(posterior_energy(prior, decoder, s, many)), start[0], n_steps, step_size)
        z_prior = langevin(slope_by_autograd(prior), start[1], n_steps, step_size)
        slopes.append(-slope(latent_loss(prior, decoder, s, many, z, z_prior)))
    step_error = torch.stack([torch.zeros(()).double(), theory_step_error(a, w.detach(), s, step_size)[0, 0]])
    return LinearLatent(gap, torch.stack(slopes), slope(exact.mean()), step_error)


def wells(z, height):
    """f of a latent z (N, 1): two wells at -1 and 1, the left one lower."""
    return height * (z[:, 0].square() - 1).square() + z[:, 0] / 2


def curve(z):
    """g: a bent line in the plane, (N, 1) -> (N, 2)."""
    return torch.stack([1.5 * z[:, 0], (2 * z[:, 0]).sin()], 1)


class Curve(NamedTuple):
    """The integral of p over the plane; slopes of log p in the wells' height by draws (R,), and exactly; p on a grid."""

    integral: float
    slopes: torch.Tensor
    exact: float
    density: torch.Tensor


def draws_on_grid(log_p, n):
    """Indices (..., n) drawn in proportion to exp(log_p) (..., G)."""
    return torch.multinomial(log_p.softmax(-1), n, replacement=True)


def measure_curve(run, s=0.25, height=1.5, box=3.5, n=141):
    """One latent dimension behind two observed: an energy with two wells is bent into the plane."""
    height = torch.tensor(height, dtype=torch.float64, requires_grad=True)

    def prior(z):
        return wells(z, height)

    z, k = latent_grid(1, 3.0, 600), max(run.config.n_points // 20, 1)
    axis = torch.linspace(-box, box, n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = quadrature_log_density(points, prior, curve, s, z).exp()
        x = curve(z[draws_on_grid(-prior(z), 20)]) + s * torch.randn(20, 2, dtype=torch.float64)
        log_prior, log_posterior = -prior(z), -posterior_energy(prior, curve, s, x[:, None])(z)
    (exact,), slopes = torch.autograd.grad(quadrature_log_density(x, prior, curve, s, z).mean(), height), []
    for _ in range(run.config.n_repeats):
        z_posterior = z[draws_on_grid(log_posterior, k)].flatten(0, 1)
        z_prior = z[draws_on_grid(log_prior, len(z_posterior))]
        loss = latent_loss(prior, curve, s, x.repeat_interleave(k, 0), z_posterior, z_prior)
        slopes.append(-torch.autograd.grad(loss, height)[0])
    integral = density.sum().item() * (axis[1] - axis[0]).item() ** 2
    return Curve(integral, torch.stack(slopes), exact.item(), density.view(n, n))


# A latent may be a path. Two sequences are aligned by a path through the table c of their distances, from corner to corner,
# by steps down, right or both. Its energy is the sum of c along it, and all paths together have the free energy
#     F = -(1/β) log Σ_paths exp(-β E(path)).
# There are exponentially many, but the recursion
#     F_ij = c_ij - (1/β) log(exp(-β F_{i-1,j}) + exp(-β F_{i,j-1}) + exp(-β F_{i-1,j-1}))
# sums them cell by cell (Cuturi & Blondel 2017; Rabiner 1989 for hidden Markov models). The slope ∂F/∂c_ij is the
# probability that a path visits the cell, as -∂ log Z/∂(βE) always is a mean. For β -> ∞ log-sum-exp becomes a maximum and
# F the best path's energy: Viterbi. It lies at most log(number of paths)/β below.


def soft_alignment(cost, beta):
    """F of all paths through cost (n, m), by the forward recursion."""
    table = {}
    for i, row in enumerate(cost):
        for j, c in enumerate(row):
            before = [table[cell] for cell in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if cell in table]
            table[i, j] = c - (-beta * torch.stack(before)).logsumexp(0) / beta if before else c
    return table[i, j]


def path_marginals(cost, beta):
    """The probability (n, m) that a path visits each cell: ∂F/∂cost."""
    cost = cost.detach().requires_grad_()
    return torch.autograd.grad(soft_alignment(cost, beta), cost)[0]


def all_paths(n, m):
    """Every path from (0, 0) to (n - 1, m - 1), as masks (P, n, m)."""
    paths, done = [[(0, 0)]], []
    while paths:
        path = paths.pop()
        i, j = path[-1]
        if (i, j) == (n - 1, m - 1):
            done.append(path)
        paths += [[*path, (a, b)] for a, b in ((i + 1, j), (i, j + 1), (i + 1, j + 1)) if a < n and b < m]
    masks = torch.zeros(len(done), n, m, dtype=torch.float64)
    for mask, path in zip(masks, done, strict=True):
        mask[tuple(zip(*path, strict=True))] = 1
    return masks


def exact_alignment(cost, beta):
    """(F, marginals, the best path's energy, how many paths there are), with every path in turn."""
    masks = all_paths(*cost.shape)
    energies = (masks * cost).sum((1, 2))
    p = (-beta * energies).softmax(0)
    return -(-beta * energies).logsumexp(0) / beta, (p[:, None, None] * masks).sum(0), energies.min(), len(masks)


class Alignment(NamedTuple):
    """Largest errors of F and of the marginals; F at a large β, the best path, and how far they may be apart; marginals of
    two longer sequences at two β."""

    free_energy: float
    marginals: float
    cold: float
    best: float
    allowed: float
    shown: dict


def two_sequences(n, m):
    """A wave, and the same wave slowed down at first, both noisy: their squared distances (n, m)."""
    a, b = (torch.linspace(0, 1, k, dtype=torch.float64) for k in (n, m))
    a, b = ((2 * math.pi * t).sin() + 0.1 * torch.randn_like(t) for t in (a, b**1.7))
    return (a[:, None] - b).square()


def measure_alignment(run, beta=2.0, cold=200.0):
    """The recursion beside every path, on a small table; and what it says of a larger one."""
    cost = two_sequences(6, 7)
    exact, marginals, best, n_paths = exact_alignment(cost, beta)
    long = two_sequences(40, 40)
    return Alignment(
        free_energy=(soft_alignment(cost, beta) - exact).abs().item(),
        marginals=(path_marginals(cost, beta) - marginals).abs().max().item(),
        cold=soft_alignment(cost, cold).item(),
        best=best.item(),
        allowed=math.log(n_paths) / cold,
        shown={b: path_marginals(long, b) for b in (2.0, 50.0)},
    )


# Digits. A variational auto-encoder (Kingma & Welling 2014) learns g and an encoder together, by the bound
#     log p(x) >= E_q[log p(x | z)] - KL(q(z | x) | N(0, I)).
# Taken together its codes are not N(0, I): the prior has holes where no image was ever encoded, and samples from there look
# like nothing. So a second model is fitted to the codes, a mixture of Gaussians or an energy. (Pang et al. train both at
# once and need chains for every image's posterior; here the encoder spares them.) The energy is a Gaussian's and a network,
# f(z | c) = |z|²/2 + u(z, c), on codes scaled to variance 1, learnt by module 07's loop: clusters c of the images, each with
# hidden biases, hold the proportions that chains do not find. Settings were chosen with --split validation: the components
# of the mixture, the clusters of the energy, and the VAE's noise and latents for both: the VAE alone has no settings
# of its own here (--vae-noise and --n-latents change them), so its distance is not the best that a VAE can do.


class Vae(nn.Module):
    """Encoder (N, d) -> mean and log standard deviation (N, m), decoder (N, m) -> (N, d), noise of scale s."""

    def __init__(self, d, m, width, s):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(d, width), nn.SiLU(), nn.Linear(width, 2 * m))
        self.decoder = nn.Sequential(nn.Linear(m, width), nn.SiLU(), nn.Linear(width, d))
        self.s = s

    def codes(self, x):
        """A draw z from q(z | x), (N, m), and KL(q | N(0, I)) (N,)."""
        mean, log_sd = self.encoder(x).chunk(2, -1)
        kl = (mean.square() + (2 * log_sd).exp() - 1).sum(-1) / 2 - log_sd.sum(-1)
        return mean + log_sd.exp() * torch.randn_like(mean), kl

    def bound(self, x):
        """A draw of the bound on log p(x), (N,)."""
        z, kl = self.codes(x)
        log_x = -(x - self.decoder(z)).square().sum(-1) / (2 * self.s**2)
        return log_x - x.shape[-1] / 2 * math.log(2 * math.pi * self.s**2) - kl


def fit_vae(x, config, width=256, batch=128):
    """A VAE of images x (N, d), averaged over its updates."""
    vae = Vae(x.shape[1], config.n_latents, width, config.vae_noise).to(x.device)
    learner = Learner(vae, 2e-3, config.n_vae)
    for _ in Progress(range(config.n_vae), "VAE"):
        learner.down(-vae.bound(x[torch.randint(len(x), (batch,), device=x.device)]).mean())
    return learner.average


class LatentEnergy(nn.Module):
    """f(z | c) (N,) = |z|²/2 + u(z, c) of codes z (N, m) in clusters c (N,): each has hidden biases; u is 0 at first."""

    def __init__(self, m, n_clusters, width=128):
        super().__init__()
        self.first, self.biases = nn.Linear(m, width), nn.Embedding(n_clusters, width)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.biases.weight)
        nn.init.zeros_(self.rest[-1].weight)

    def forward(self, z, c):
        return z.square().sum(-1) / 2 + self.rest(self.first(z) + self.biases(c)).squeeze(-1)


def train_latent_energy(vae, x, y, config, n_chains=512, batch=128, n_langevin=10, step_size=0.1):
    """The energy of a VAE's codes of x (N, d) in clusters y (N,), and their mean and scale (m,)."""
    with torch.no_grad():
        z, _ = vae.codes(x)
        middle, scale = z.mean(0), z.std(0)
    learner = Learner(LatentEnergy(config.n_latents, y.max().item() + 1).to(x.device), 3e-3, config.n_prior)
    blocks, rows = shared_out(y, n_chains // batch, batch), Labelled(y)
    chains = torch.randn(*blocks.shape, config.n_latents, device=x.device)
    for step in Progress(range(config.n_prior), "energy of codes"):
        c, chain = blocks[step % len(blocks)], chains[step % len(blocks)]
        with torch.no_grad():
            z = (vae.codes(x[rows.like(c)])[0] - middle) / scale
        fresh = torch.rand(batch, 1, device=x.device) < 0.01  # chains that begin again from noise
        chain.copy_(torch.where(fresh, torch.randn_like(chain), chain))
        chain.copy_(langevin(slope_by_autograd(lambda z, c=c: learner.net(z, c)), chain, n_langevin, step_size))
        learner.down(phase_gap(learner.net(z, c), learner.net(chain, c)))
    return learner.average, middle, scale


def phase_gap(e_data, e_model):
    """Mean energy of data minus that of samples: its slope is minus the likelihood's; and a little of their squares."""
    return (e_data - e_model + 1e-5 * (e_data.square() + e_model.square())).mean()


def draws_of_codes(vae, x, config, seed):
    """{model: n_samples images}, decoded from the prior, from a mixture of the codes and from their energy."""
    n, m, device = config.n_samples, config.n_latents, x.device
    y = find_clusters(x, config.n_clusters, seed)
    energy, middle, scale = train_latent_energy(vae, x, y, config)
    c = shared_out(y, 1, n)[0]
    with torch.no_grad():
        codes = torch.cat([vae.codes(x)[0] for _ in range(4)])
        must_be_finite("the codes", codes)
        mixture = fit_gaussians(codes, config.n_latent_components, seed)
        z = langevin(slope_by_autograd(lambda z: energy(z, c)), torch.randn(n, m, device=device), config.n_latent_steps, 0.1)
        latents = {"VAE": torch.randn(n, m, device=device)}
        latents["VAE + mixture"] = draw_gaussians(mixture, n).float().to(device)
        latents["VAE + energy"] = middle + scale * z
        return {name: vae.decoder(z) for name, z in latents.items()}


def measure_latent_digits(run):
    """{model: (DigitScores, images)} of three priors behind one decoder."""
    x = images(run).x.float().to(run.device)
    found = draws_of_codes(fit_vae(x, run.config), x, run.config, run.seed)
    return {name: (score_images(run, drawn), drawn) for name, drawn in found.items()}


def draw_exact_latents(curve_found, alignment):
    """The density of a bent line, and which cells paths visit."""
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    axes[0].imshow(to_numpy(curve_found.density).T, origin="lower", extent=(-3.5, 3.5, -3.5, 3.5), cmap="magma")
    axes[0].set(title=f"One latent dimension: integral {curve_found.integral:.6f}", xlabel="$x_1$", ylabel="$x_2$")
    for ax, (beta, marginals) in zip(axes[1:], alignment.shown.items(), strict=True):
        ax.imshow(to_numpy(marginals), cmap="magma", vmin=0, vmax=1)
        surest = marginals.amax(1).mean().item()
        ax.set(title=f"$\\beta$ = {beta:g}: a row's likeliest cell has {surest:.2f}", xlabel="time in the second sequence")
    axes[1].set_ylabel("time in the first sequence")
    return fig


def draw_latent_digits(found, x_test, n=12):
    """Digits from each prior, above real ones."""
    fig, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
    rows = {f"{name}\n{scores.frechet:.2f}": drawn[:n] for name, (scores, drawn) in found.items()}
    title = f"One decoder, three priors: nearest is {in_words(nearest_of({name: each[0] for name, each in found.items()}))}"
    show_images(ax, rows | {"test images": x_test[:n]}, title)
    return fig


def record_slopes(run, linear, bent):
    """Slopes of log p by chains and by draws, beside what they are exactly; and how much of the chains' is their steps'."""
    rows = zip("bW", linear.slopes.T, linear.exact + linear.step_error, strict=True)
    slopes = {f"linear: slope in {which}, chains": (found, ("these steps, exactly", exact)) for which, found, exact in rows}
    slopes["curve: slope in the height, draws"] = bent.slopes, ("exact", bent.exact)
    for name, (found, reference) in slopes.items():
        mean, sem = mean_and_sem(found)
        run.metric(name, mean, sem, reference, tolerance(sem, len(found)))
    with_error = (linear.exact + linear.step_error)[1]
    run.metric("linear: slope in W, these steps, exactly", with_error, None, ("of log p itself", linear.exact[1]))


def record_latent_digits(run, digits):
    """Scores of each prior; the distance to the nearest training image beside that of new real images."""
    real = nearest_distances(images(run).x_test, images(run).x).median()
    for name, (scores, _) in digits.items():
        run.metric(f"{name}: Frechet distance", scores.frechet, scores.frechet_sem, ("VAE alone", digits["VAE"][0].frechet))
        run.metric(f"{name}: two-sample accuracy", scores.told, scores.told_sem, ("told apart by chance", 0.5))
        run.metric(f"{name}: nearest training image", scores.nearest, None, ("new real images", real))


def latent_sentence(scores):
    """What a prior for the codes is worth, and whether the energy and the mixture can be told apart."""
    alone, mixture, energy = (scores[name] for name in ("VAE", "VAE + mixture", "VAE + energy"))
    gap, error = energy.frechet - mixture.frechet, math.hypot(energy.frechet_sem, mixture.frechet_sem)
    who = "no better and no worse than" if abs(gap) < 2 * error else "better than" if gap < 0 else "worse than"
    return (
        f"with its Gaussian prior the decoder draws digits at {alone.frechet:.2f} from real ones, with an energy at "
        f"{energy.frechet:.2f}; that is {who} a mixture of Gaussians ({mixture.frechet:.2f}; {gap:+.2f} +- {error:.2f})"
    )


def section_latent(run):
    """Behind a generator, an energy for its latents: exact where they can be summed, and tried on digits."""
    linear, bent, paths = measure_linear_latent(run), measure_curve(run), measure_alignment(run)
    run.metric("linear: largest gap of log p to quadrature", linear.gap, None, ("closed form", 0), 1e-8)
    run.metric("curve: integral of p over the plane", bent.integral, None, ("density", 1), 1e-6)
    record_slopes(run, linear, bent)
    run.metric("alignment: error of F", paths.free_energy, None, ("every path", 0), 1e-10)
    run.metric("alignment: error of the marginals", paths.marginals, None, ("every path", 0), 1e-10)
    half = paths.allowed / 2  # F lies between the best path and log(paths)/beta below it
    middle = "best path, less half of that", paths.best - half
    run.metric("alignment, beta = 200: F", paths.cold, None, middle, half + 1e-12)
    run.figure(draw_exact_latents(bent, paths), "exact")
    digits = measure_latent_digits(run)
    record_latent_digits(run, digits)
    run.figure(draw_latent_digits(digits, images(run).x_test), "digits")
    run.say(latent_sentence({name: scores for name, (scores, _) in digits.items()}))


# %% 5. Composition revisited
# Module 09 composed energies: they add. A diffusion model has scores, and scores add too, so it is tempting to add the
# scores of every noise level and to run the sampler as before. Du et al. (2023) showed that this samples something else.
# Write t = σ² for the variance of the noise, and p_i(x, t) for the density of p_i with noise of variance t. At t = 0
#     Σ_i ∇log p_i(x, 0) = ∇log Π_i p_i(x)             is the score of the product, as it should be. But at t > 0
#     Σ_i ∇log p_i(x, t)                               is the score of q_t ∝ Π_i p_i(x, t), and q_t is *not* q_0 with noise.
# A sampler of diffusion models follows the path "q_0 with noise", so with these scores it ends elsewhere. n equal Gaussians
# N(0, s²) show it in closed form. Their product is N(0, s²/n). With a = s² + t and U = s² + t_max each score is -x/a, the
# sum is -n x/a, and x begins at the variance U/n. Let v be the variance of x while a falls from U to s²:
#     flow        dx = ½ n x/a da                       v' = n v/a               v = (U/n) (s²/U)^n, nearly 0
#     reverse SDE dx = n x/a da + noise                 v' = 2n v/a - 1          v = s²/(2n - 1), and a rest (s²/U)^2n
#     MCMC        Langevin on the sum at every level    q_t itself               v = s²/n
# So two Gaussians give s²/3 in place of s²/2. The scores are right, the sampler is not. It can be repaired in two ways. MCMC
# at every level needs no path. Or the SDE carries weights (Skreta et al. 2025). For the density of p_i at level t,
#     ∂ₜ log p_i = ½ (Δ log p_i + |s_i|²)                    the heat equation,
# so, as t falls, the unnormalised q_t changes by -½ Σ_i (∇·s_i + |s_i|²) times itself. The SDE with drift S = Σ s_i changes
# it by -∇·(S q) + ½Δq = -½Δq, that is by -½ (∇·S + |S|²) times itself, since ∇log q = S. What is missing are the mixed
# products, and they become weights:
#     d log w = ½ (|S|² - Σ_i |s_i|²) |dt| = Σ_{i<j} <s_i, s_j> |dt|.                                                   (13)


# Copied from 09_ebm_applications.py: cells
def cells(x, box=3.0, n=12):
    """Counts (n, n) of points (N, 2) in a grid of [-box, box]^2, and one number of those outside."""
    at = ((x + box) * n / (2 * box)).floor().long()
    inside = ((at >= 0) & (at < n)).all(1)
    counts = torch.bincount(at[inside] @ torch.tensor([n, 1]), minlength=n * n)
    return torch.cat([counts, (~inside).sum()[None]])


# Copied from 09_ebm_applications.py: cell_distance
def cell_distance(p, q):
    """Σ |p - q|/2."""
    return (p - q).abs().sum().item() / 2


# Copied from 05_contrastive_divergence.py: mean_and_sem_rows
def mean_and_sem_rows(rows):
    """Means and standard errors of some rows of repeats, (2, K)."""
    return np.array([mean_and_sem(row) for row in rows], dtype=float).T


def noise_variances(v, n_levels, t_max=24.0):
    """Variances t of the noise, (n_levels + 1,), from t_max to 0, such that v + t falls by the same factor each time."""
    t = (v + t_max) * (v / (v + t_max)) ** torch.linspace(0, 1, n_levels + 1, dtype=torch.float64) - v
    t[-1] = 0
    return t


def by_flow(scores, x, times):
    """Euler's steps of the probability flow from x (..., d); scores(x, t) lists the factors' scores (..., d)."""
    for t, dt in zip(times[:-1], -times.diff(), strict=True):
        x = x + dt / 2 * sum(scores(x, t))
    return x


def by_sde(scores, x, times):
    """Euler's steps of the reverse SDE with the summed score."""
    for t, dt in zip(times[:-1], -times.diff(), strict=True):
        x = x + dt * sum(scores(x, t)) + dt.sqrt() * torch.randn_like(x)
    return x


def mcmc_steps(times, v, n, n_steps=10):
    """Every n_steps-th level, and the last, each with a Langevin step for n factors of variance v: [(t, step size)]."""
    return [(t, 0.2 * (v + t) / n) for t in times.flip(0)[:-1:n_steps].flip(0).tolist()]


def by_mcmc(scores, x, times, v, n_steps=10):
    """n_steps of Langevin at every n_steps-th level: as many scores as the others ask for. v is the narrowest variance."""
    for t, step_size in mcmc_steps(times, v, len(scores(x[:1], times[0])), n_steps):
        x = langevin(lambda z, t=t: -sum(scores(z, t)), x, n_steps, step_size)
    return x


# Differs from 06_score_matching.py: resample - rows of weights side by side, (R, N)
def resample(log_w):
    """Indices (R, N) by systematic resampling (N even strides a row) in proportion to exp(log_w) (R, N)."""
    n, cumulative = log_w.shape[1], log_w.softmax(1).cumsum(1)
    strides = (torch.arange(n) + torch.rand(len(log_w), 1, dtype=log_w.dtype)) / n
    return torch.searchsorted(cumulative, strides).clamp(max=n - 1)


def by_weights(scores, x, times):
    """The reverse SDE with the weights of eq. (13) from x (R, N, d); a row is resampled when its effective number of points
    falls below half."""
    log_w = torch.zeros(x.shape[:2], dtype=x.dtype)
    for t, dt in zip(times[:-1], -times.diff(), strict=True):
        parts = scores(x, t)
        drift = sum(parts)
        log_w = log_w + dt / 2 * (drift.square().sum(2) - sum(s.square().sum(2) for s in parts))
        x = x + dt * drift + dt.sqrt() * torch.randn_like(x)
        few = 1 / log_w.softmax(1).square().sum(1) < x.shape[1] / 2
        if few.any():
            x[few] = x[few].take_along_dim(resample(log_w[few])[..., None], 1)
            log_w[few] = 0
    return x.take_along_dim(resample(log_w)[..., None], 1)


COMPOSERS = {"flow": by_flow, "reverse SDE": by_sde, "MCMC": by_mcmc, "weights": by_weights}


def theory_composed(n, s2, t_max):
    """{sampler: variance} for n factors N(0, s2), in the limit of fine steps; the truth is s2/n."""
    top = s2 + t_max
    rest = (top / n - top / (2 * n - 1)) * (s2 / top) ** (2 * n)
    return {"flow": top / n * (s2 / top) ** n, "reverse SDE": s2 / (2 * n - 1) + rest, "MCMC": s2 / n, "weights": s2 / n}


def exact_chain_variance(sampler, n, s2, times, n_steps=10):
    """The variance that a sampler's steps leave, however coarse: x <- r x + noise takes v to r² v + the noise's variance,
    and a weight exp(c x²) takes 1/v to 1/v - 2c."""
    v, times = (s2 + times[0].item()) / n, times.tolist()
    if sampler == "MCMC":
        for t, step_size in mcmc_steps(torch.tensor(times), s2, n, n_steps):
            for _ in range(n_steps):
                v = (1 - step_size * n / (2 * (s2 + t))) ** 2 * v + step_size
        return v
    for t, dt in ((t, t - after) for t, after in zip(times[:-1], times[1:], strict=True)):
        a = s2 + t
        if sampler == "weights":
            v = 1 / (1 / v - dt * n * (n - 1) / a**2)
        v = (1 - dt * n / (2 * a)) ** 2 * v if sampler == "flow" else (1 - dt * n / a) ** 2 * v + dt
    return v


def measure_composed_gaussians(n, config, s2=1.0):
    """{sampler: variances (R,)} of repeats with n factors N(0, s2)."""
    r, times = config.n_repeats, noise_variances(s2, config.n_levels)

    def scores(x, t):
        return [-x / (s2 + t)] * n

    found = {}
    for name, sampler in COMPOSERS.items():
        options = {"v": s2} if name == "MCMC" else {}
        start = torch.randn(r, config.n_points, 1, dtype=torch.float64) * ((s2 + times[0]) / n).sqrt()
        found[name] = sampler(scores, start, times, **options).square().mean((1, 2))
    must_be_finite("composition", *found.values())
    return found


# Two shapes in the plane: a ring of eight Gaussians, and a cross of eighteen. Their product is known:
# of two Gaussians with variances v and v' it is one with variance v v'/(v + v') and mean (v' m + v m')/(v + v'), and its
# weight has the factor N(m - m'; 0, v + v').


class Blobs(NamedTuple):
    """K round Gaussians of one variance in the plane."""

    weights: torch.Tensor  # (K,)
    means: torch.Tensor  # (K, 2)
    variance: float

    def score(self, x, t):
        """∇log p(x, t) (..., 2), with noise of variance t."""
        a = self.variance + t
        shares = (self.weights.log() + (x @ self.means.T - self.means.square().sum(1) / 2) / a).softmax(-1)
        return (shares @ self.means - x) / a

    def draws(self, n):
        """n samples (n, 2)."""
        k = torch.multinomial(self.weights, n, replacement=True)
        return self.means[k] + self.variance**0.5 * torch.randn(n, 2, dtype=torch.float64)


def product_of_blobs(p, q):
    """The normalised product of two mixtures of round Gaussians, K K' of them."""
    total = p.variance + q.variance
    distance = torch.cdist(p.means, q.means).square()
    weights = (p.weights.log()[:, None] + q.weights.log() - distance / (2 * total)).flatten().softmax(0)
    means = (q.variance * p.means[:, None] + p.variance * q.means) / total
    return Blobs(weights, means.flatten(0, 1), p.variance * q.variance / total)


def ring_and_cross():
    """Eight Gaussians on a ring, and a slanted cross whose arms are not equally heavy."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = Blobs(torch.full((8,), 1 / 8).double(), 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.1)
    along = torch.linspace(-3, 3, 9, dtype=torch.float64)
    arms = torch.cat([torch.stack([along, 0.3 * along], 1), torch.stack([-0.3 * along, along], 1)])
    heavy = torch.cat([2 + along / 3, 2 - along / 2])
    return ring, Blobs(heavy / heavy.sum(), arms, 0.2)


def exact_blob_cells(blobs, box=3.0, n=12):
    """The share of a mixture in each of n² cells of [-box, box]², and outside, by the normal distribution function."""
    edges = torch.linspace(-box, box, n + 1, dtype=torch.float64)
    first, second = (torch.special.ndtr((edges - m[:, None]) / blobs.variance**0.5).diff() for m in blobs.means.T)
    p = torch.einsum("k,ki,kj->ij", blobs.weights, first, second).flatten()
    return torch.cat([p, (1 - p.sum())[None].clamp(min=0)])


def measure_composed_shapes(config, n_repeats=4):
    """{sampler: (total variations to the product, the last ends)}, and of exact draws."""
    parts = ring_and_cross()
    truth, v, n = product_of_blobs(*parts), max(p.variance for p in parts), config.n_points
    exact, times = exact_blob_cells(truth), noise_variances(0.05, config.n_levels, 100.0)

    def scores(x, t):
        return [p.score(x, t) for p in parts]

    found = {}
    for name, sampler in {**COMPOSERS, "exact draws": None}.items():
        options = {"v": min(p.variance for p in parts)} if name == "MCMC" else {}
        start = torch.randn(n_repeats, n, 2, dtype=torch.float64) * ((v + times[0]) / 2).sqrt()
        ends = sampler(scores, start, times, **options) if sampler else truth.draws(n_repeats * n).view_as(start)
        must_be_finite("composition", ends)
        found[name] = [cell_distance(cells(x) / n, exact) for x in ends], ends[-1]
    return found


def draw_composed_gaussians(found, theory, exact, s2=1.0):
    """Measured variances beside what theory says, for each number of factors."""
    fig, axes = plt.subplots(1, len(found), figsize=(11, 4.6), layout="constrained")
    for ax, (n, variances) in zip(axes, found.items(), strict=True):
        names = list(variances)
        means, sems = mean_and_sem_rows(variances.values())
        ax.bar(names, means, yerr=2 * sems, color="tab:orange", capsize=4, label="measured, 2 standard errors")
        ax.plot(names, [exact[n][name] for name in names], "k_", ms=46, mew=2, label="these steps, exactly")
        ax.plot(names, [theory[n][name] for name in names], "x", color="tab:blue", ms=10, mew=2, label="fine steps")
        ax.axhline(s2 / n, color="tab:red", ls="--", label=f"truth, 1/{n}")
        ax.set(title=f"{n} factors: the SDE gives {means[1]:.3f}, not {s2 / n:.3f}", ylim=(0, 0.7))
    axes[0].set_ylabel("variance of the samples")
    axes[0].legend(fontsize=9, markerscale=0.4, loc="upper left")
    return fig


def draw_composed_shapes(found):
    """Where each sampler's points end, and how far that is from the product."""
    fig, axes = plt.subplots(1, len(found), figsize=(15, 3.9), layout="constrained")
    truth, axis = product_of_blobs(*ring_and_cross()), torch.linspace(-3, 3, 121, dtype=torch.float64)
    r2 = torch.cdist(torch.cartesian_prod(axis, axis), truth.means).square()
    p = ((-r2 / (2 * truth.variance)).exp() @ truth.weights).view(121, 121)
    for ax, (name, (distances, ends)) in zip(axes, found.items(), strict=True):
        ax.imshow(to_numpy(p).T, origin="lower", extent=(-3, 3, -3, 3), cmap="magma")
        ax.scatter(*to_numpy(ends[:500]).T, s=3, c="white", alpha=0.7)
        ax.set(title=f"{name}\ndistance {np.mean(distances):.3f}", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
    fig.suptitle("ring AND cross: the product's density (colours) and 500 samples (white); total variation on 144 cells")
    return fig


# Differs from 09_ebm_applications.py: section_composition - of scores, and of the samplers that use them
def section_composition(run):
    """Scores add, samplers do not: the reverse SDE of summed scores misses the product, MCMC or weights repair it."""
    config, found, theory, exact = run.config, {}, {}, {}
    times = noise_variances(1.0, config.n_levels)
    for n in (2, 3):
        found[n], theory[n] = measure_composed_gaussians(n, config), theory_composed(n, 1.0, times[0].item())
        exact[n] = {name: exact_chain_variance(name, n, 1.0, times) for name in COMPOSERS}
        for name, values in found[n].items():
            mean, sem = mean_and_sem(values)
            within = tolerance(sem, len(values)) if name != "weights" else None  # resampling is biased by O(1/n_points)
            run.metric(f"n = {n}, {name}: variance", mean, sem, ("these steps, exactly", exact[n][name]), within)
            run.metric(f"n = {n}, {name}: variance in theory", theory[n][name], None, ("truth", 1 / n))
    shapes = measure_composed_shapes(config)
    floor = mean_and_sem(shapes["exact draws"][0])[0]
    for name in COMPOSERS:
        run.metric(f"shapes, {name}: total variation", *mean_and_sem(shapes[name][0]), ("exact draws", floor))
    run.figure(draw_composed_gaussians(found, theory, exact), "gaussians")
    run.figure(draw_composed_shapes(shapes), "shapes")
    run.say(
        f"two factors of variance 1 have 1/2, and the SDE of the summed scores {found[2]['reverse SDE'].mean():.3f}, "
        f"MCMC, with these steps, {found[2]['MCMC'].mean():.3f}; "
        f"total variation on shapes: {', '.join(f'{k} {np.mean(shapes[k][0]):.3f}' for k in COMPOSERS)}, "
        f"exact draws {floor:.3f}"
    )


# %% 6. Directions
# Nine ideas of the last years, each as a small experiment with a number beside its reference, and with what is not settled.
# A `Side` of networks (several trained at once) serves two of them.


class Side(nn.Module):
    """S perceptrons side by side, one hidden layer each of them twice: x (S, B, d) -> (S, B), or (S, B, n_out)."""

    def __init__(self, n_networks, d, width=32, n_out=1):
        super().__init__()
        sizes = [d, width, width, n_out]
        self.weights = nn.ParameterList(
            torch.randn(n_networks, a, b) / a**0.5 for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.biases = nn.ParameterList(torch.zeros(n_networks, 1, b) for b in sizes[1:])

    def forward(self, x):
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(b, x, w)
            x = silu(x) if i < 2 else x
        return x.squeeze(-1)


# Autoregressive models are energies (Blondel et al. 2025). A model of strings s = (s₁ ... s_n) that draws token after token
# has p(s) = Π_i p(s_i | s_<i). Any energy can be written so. Give each prefix the *soft value*
#     V(s) = -E(s) for whole strings,        V(prefix) = log Σ_token exp V(prefix + token),
# which is the soft Bellman equation. Then exp V(prefix) sums exp(-E) over all that may follow, the logits of the next
# token are V(prefix + token), and the product of the softmaxes telescopes to exp(-E(s) - V(empty)), with V(empty) = log Z.
# A temperature is another matter: softmaxes of V/T are not exp(-E/T), since log-sum-exp was taken at T = 1.


def soft_values(energy):
    """V of all prefixes, from energies (2^n,) of bit strings, the first bit the highest: [(1,), (2,), ..., (2^n,)]."""
    values = [-energy]
    while len(values[0]) > 1:
        values.insert(0, values[0].view(-1, 2).logsumexp(1))
    return values


def token_by_token(values, temperature=1.0):
    """log probability of each string (2^n,) if every bit is drawn by softmax(V/T)."""
    log_p = torch.zeros(1, dtype=values[0].dtype)
    for v in values[1:]:
        log_p = (log_p[:, None] + (v.view(-1, 2) / temperature).log_softmax(1)).flatten()
    return log_p


def measure_tokens(run, n=8):
    """{temperature: (largest gap of log p, total variation)} between bits one by one and the energy's Boltzmann law."""
    bits = 2.0 * (torch.arange(2**n)[:, None] >> torch.arange(n - 1, -1, -1) & 1).double() - 1
    energy = ((bits @ torch.randn(n, n, dtype=torch.float64)) * bits).sum(1) / 2
    found = {}
    for temperature in (2.0, 1.0, 0.5, 0.25, 0.125):
        ours, exact = token_by_token(soft_values(energy), temperature), (-energy / temperature).log_softmax(0)
        found[temperature] = (ours - exact).abs().max().item(), (ours.exp() - exact.exp()).abs().sum().item() / 2
    return found


def record_tokens(run, found):
    """The gap at T = 1, and the distance at T = 1/2."""
    run.metric("tokens: largest gap of log p at T = 1", found[1.0][0], None, ("enumeration", 0), 1e-10)
    run.metric("tokens: total variation at T = 0.5", found[0.5][1], None, ("if softmaxes were enough", 0))


def draw_tokens(ax, found):
    """Total variation against the temperature."""
    ax.semilogx(list(found), [tv for _, tv in found.values()], "o-", color="tab:orange")
    title = f"Tokens: off by {found[1.0][1]:.0e} at T = 1, by {found[0.5][1]:.2f} at T = 1/2"
    ax.set(title=title, xlabel="temperature of the softmaxes", ylabel="total variation")
    ax.set_xticks(list(found), [f"{t:g}" for t in found])
    ax.minorticks_off()


# Dual score matching (Guth et al. 2025). An energy U(y, t) of all noise variances t is fitted to *both* slopes of
# -log p(y | x): in y, (y - x)/t, as ever; and in t, d/(2t) - |y - x|²/(2t²). Each is a conditional mean, so that the minimum
# is U = -log p(y, t) + const with *one* constant for all levels. Slopes in y alone cannot weigh modes that are far
# apart (module 06's blindness), and leave a constant at each level. Slopes in t join the modes where the noise joins them.


def dual_losses(energy, x, y, t):
    """Squared errors of both slopes of U, each in units in which it is of order 1: y, t (S, B), energy(y, log t)."""
    y, log_t = y.requires_grad_(), t.log().requires_grad_()
    slope, slope_t = torch.autograd.grad(energy(y, log_t).sum(), (y, log_t), create_graph=True)
    u = (y - x) / t.sqrt()
    return (t.sqrt() * slope - u).square(), (slope_t - (1 - u.square()) / 2).square()


LEFT_SHARE = 0.8  # of two modes at -3 and 3, each of standard deviation 0.3


def far_modes(shape):
    """Draws from the two modes."""
    return torch.where(torch.rand(shape) < LEFT_SHARE, -3.0, 3.0) + 0.3 * torch.randn(shape)


class EnergyOfLevels(nn.Module):
    """U(y, log t) of S networks: a Gaussian's -log p as wide as data and noise, and a network."""

    def __init__(self, n_networks, variance=9.0):
        super().__init__()
        self.net, self.variance = Side(n_networks, 3), variance

    def forward(self, y, log_t):
        wide, near = self.variance + log_t.exp(), 0.1 + log_t.exp()
        inputs = torch.stack([y / wide.sqrt(), y / (1 + near).sqrt(), log_t / 3], -1)
        return y.square() / (2 * wide) + wide.log() / 2 + 2 * self.net(inputs)


def train_levels(n_networks, n_updates, weight_of_time, rate=5e-3, t_range=(0.01, 1000.0), batch=128):
    """n_networks energies of levels, fitted to slopes in y and, if weight_of_time > 0, in t."""
    learner = Learner(EnergyOfLevels(n_networks), rate, n_updates)
    low, high = (math.log(t) for t in t_range)
    for _ in range(n_updates):
        x, t = far_modes((n_networks, batch)), (low + (high - low) * torch.rand(n_networks, batch)).exp()
        in_space, in_time = dual_losses(learner.net, x, x + t.sqrt() * torch.randn_like(x), t)
        learner.down((in_space + weight_of_time * in_time).mean(1).sum())
    return learner.average


def share_and_constants(energy, n_networks, t_range=(0.01, 1000.0), n=4000):
    """The left mode's share (S,) at the lowest level, and log Z at each of 6 levels from 0.01 to 1000 (S, 6): on a grid."""
    log_t = torch.linspace(math.log(t_range[0]), math.log(t_range[1]), 6)
    log_z = []
    for lt in log_t:
        reach = 6 * (9 + lt.exp()) ** 0.5
        y = torch.linspace(-reach, reach, n).expand(n_networks, n)
        minus_u = -energy(y, lt.expand_as(y)).detach().double()
        log_z.append(minus_u.logsumexp(1) + math.log(2 * reach / n))
        if len(log_z) == 1:
            share = (minus_u.softmax(1) * (y < 0)).sum(1)
    return share, torch.stack(log_z, 1)


def measure_dual(run, n_networks=4):
    """{"y alone" or "y and t": (shares (S,), spreads of log Z over the levels (S,))}."""
    found = {}
    for name, weight in (("y alone", 0.0), ("y and t", 1.0)):
        energy = train_levels(n_networks, run.config.n_small, weight)
        share, log_z = share_and_constants(energy, n_networks)
        must_be_finite("dual score matching", share, log_z)
        found[name] = share, log_z.amax(1) - log_z.amin(1)
    return found


def record_dual(run, found):
    """How wrong the modes' shares and the constants are."""
    for name, (share, spread) in found.items():
        error = (share - LEFT_SHARE).abs()
        run.metric(f"slopes in {name}: error of a mode's share", *mean_and_sem(error), ("truth", 0))
        run.metric(f"slopes in {name}: spread of log Z", *mean_and_sem(spread), ("truth", 0))


def draw_dual(ax, found):
    """The shares that the networks give."""
    for i, (share, _) in enumerate(found.values()):
        ax.plot(i + 0.1 * np.linspace(-1, 1, len(share)), to_numpy(share), "o", color="tab:orange", ms=8)
    ax.axhline(LEFT_SHARE, color="tab:red", ls="--", label="truth")
    means = [(share - LEFT_SHARE).abs().mean().item() for share, _ in found.values()]
    ax.set(title=f"Dual scores: share off by {means[0]:.2f} and {means[1]:.2f}", ylabel="left mode's share", ylim=(0, 1.05))
    ax.set_xticks(range(len(found)), [f"slopes in {name}" for name in found])
    ax.set_xlim(-0.5, len(found) - 0.5)
    ax.legend()


# Equilibrium matching (Wang & Du 2025). A field without noise level, f(y) = E[c(γ) (n - x) | y], where y = γ x + (1 - γ) n
# has a random share γ of data, n ~ N(0, I), and c(γ) falls to 0 at γ = 1; samples descend it, y <- y - η f(y), from noise.
# For data from a mixture f is known: given γ and the Gaussian, y ~ N(γ m, V), V = γ² v + (1 - γ)², so that
#     E[x | y] = m + γ v (y - γ m)/V,        E[n | y] = (1 - γ) (y - γ m)/V.
# A map y - η f(y) changes the entropy by E log |1 - η f'(y)|, exactly where η f' < 1. If the descent goes
# on, what is left of it?


def equilibrium_field(y, means, variance, scale=4.0, flat_until=0.8, n=400):
    """f (B,) at y (B,), for equal Gaussians in one dimension, by a midpoint rule in γ."""
    g = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]  # (n, 1) beside means (1, K)
    wide = g**2 * variance + (1 - g) ** 2
    off = y[:, None, None] - g * means
    log_w = -(off.square()) / (2 * wide) - wide.log() / 2
    c = scale * ((1 - g) / (1 - flat_until)).clamp(max=1)
    target = c * ((1 - g) / wide * off - means - g * variance / wide * off)
    return (log_w.flatten(1).softmax(1) * target.flatten(1)).sum(1)


def descend_field(axis, field, y, n_steps, rate=0.003):
    """Descend a field, given on an even axis and linear in between: (ends, entropy after each step, nats), from N(0, 1)."""
    slopes, entropy = np.diff(field) / np.diff(axis), [0.5 * math.log(2 * math.pi * math.e)]
    for _ in range(n_steps):
        cell = np.clip(((y - axis[0]) / (axis[1] - axis[0])).astype(int), 0, len(slopes) - 1)
        entropy.append(entropy[-1] + np.log(np.abs(1 - rate * slopes[cell])).mean())
        y = y - rate * (field[cell] + slopes[cell] * (y - axis[cell]))
    return y, np.array(entropy)


def exact_mixture_entropy(means, variance):
    """Entropy (nats) of equal Gaussians in one dimension, by quadrature."""
    y = torch.linspace(means.min() - 9 * variance**0.5, means.max() + 9 * variance**0.5, 20001, dtype=torch.float64)
    log_p = (-(y[:, None] - means).square() / (2 * variance)).logsumexp(1)
    log_p = log_p - math.log(len(means)) - math.log(2 * math.pi * variance) / 2
    return -torch.trapezoid(log_p.exp() * log_p, y).item()


class Descended(NamedTuple):
    """Entropies (nats) by step, and of the data; the share of ends within 0.001 of a stable zero of the field; the zeros."""

    entropy: np.ndarray
    data: float
    at_rest: float
    zeros: np.ndarray
    distance: float  # Kolmogorov-Smirnov, of samples at the step at which their entropy is nearest the data's
    allowed: float  # what exact samples keep below with 95 %


def measure_equilibrium(run, means=(-1.0, 1.0), variance=0.04):
    """Samples descend the exact field for a hundred times the usual number of steps."""
    means, axis = torch.tensor(means, dtype=torch.float64), np.linspace(-6, 6, 6001)
    field = to_numpy(torch.cat([equilibrium_field(part, means, variance) for part in torch.as_tensor(axis).split(500)]))
    ends, entropy = descend_field(axis, field, to_numpy(torch.randn(500, dtype=torch.float64)), run.config.n_descent)
    rising = (field[:-1] < 0) & (field[1:] >= 0)
    zeros = (axis[:-1] - field[:-1] * np.diff(axis) / np.diff(field))[rising]
    at_rest = (np.abs(ends[:, None] - zeros).min(1) < 1e-3).mean()
    data, starts = exact_mixture_entropy(means, variance), to_numpy(torch.randn(4000, dtype=torch.float64))
    nearest = descend_field(axis, field, starts, int(np.abs(entropy - data).argmin()))[0]

    def cdf(y):
        return scipy.stats.norm.cdf(y[:, None], to_numpy(means), variance**0.5).mean(1)

    distance, allowed = scipy.stats.kstest(nearest, cdf).statistic, scipy.stats.kstwo.ppf(0.95, len(nearest))
    return Descended(entropy, data, at_rest, zeros, distance, allowed)


def record_equilibrium(run, found):
    """Entropy after the usual number of steps and after all."""
    soon, late = min(250, len(found.entropy) - 1), len(found.entropy) - 1
    for n in dict.fromkeys((soon, late)):
        run.metric(f"descent, {n} steps: entropy (nats)", found.entropy[n], None, ("data", found.data))
    run.metric(f"descent, {late} steps: share at a zero", found.at_rest, None, ("all", 1))
    run.metric("descent, entropy nearest: distance (KS)", found.distance, None, ("exact samples, 95 %", found.allowed))


def draw_equilibrium(ax, found):
    """Entropy against steps."""
    ax.semilogx(np.arange(1, len(found.entropy)), found.entropy[1:], color="tab:orange", label="samples")
    ax.axhline(found.data, color="tab:red", ls="--", label="data")
    best = np.abs(found.entropy - found.data).argmin()
    ax.set(title=f"A static field: entropy nearest at step {best}, samples {found.distance:.2f} off (KS)", xlabel="steps")
    ax.set(ylabel="entropy (nats)", yscale="symlog")
    ax.legend()


# Energy matching (Balcerak et al. 2025). One potential V is to do two things: far from the data its slope is a velocity that
# brings noise there in unit time, and at the data exp(-V/ε) is their density. With x₁ the optimal-transport partner of the
# noise x₀ (in one dimension the one of the same quantile) and t uniform in [0, 1],
#     J(V) = E|V'(x_t) + x₁ - x₀|² + λ (E V(x₁)/ε + log ∫ exp(-V/ε) dx),        x_t = (1 - t) x₀ + t x₁,
# which is flow matching without a clock (so even arrival is not exact), and the negative log likelihood at temperature ε.
# Both are convex in V: at λ = 0 the best slope is -E[x₁ - x₀ | x_t], for large λ the best V is -ε log p. On a grid it is
# found for every λ, and no network blurs the picture. Does one V do both?


def uneven_pair(f):
    """f, a function of scipy.stats.norm such as its cdf, of .3 N(-2, .25²) + .7 N(1.5, .35²): y (B,) -> (B,)."""
    return lambda y: f(np.asarray(y)[:, None], (-2.0, 1.5), (0.25, 0.35)) @ (0.3, 0.7)


def transport_slopes(axis, x0, x1, n_times=100):
    """For each cell of an even axis (N + 1,) the chance (N,) that x_t is in it, and the mean there of x₀ - x₁ (N,), for
    partners x0 (n,) and x1 (n,)."""
    t = (np.arange(n_times)[:, None] + 0.5) / n_times
    at, back = ((1 - t) * x0 + t * x1).ravel(), np.tile(x0 - x1, n_times)
    count, total = np.histogram(at, axis)[0], np.histogram(at, axis, weights=back)[0]
    return count / len(at), total / np.maximum(count, 1)


def matching_loss(slopes, width, share, target, p, weight, epsilon):
    """J, but for a constant, and its gradient in the slopes (N,) of V in cells of this width; p (N + 1,) is the data's mass
    at the axis' points, `share` and `target` (N,) are those of transport_slopes, and `weight` is λ."""
    v, off = np.r_[0, width * slopes.cumsum()], slopes - target
    log_q = -v / epsilon - scipy.special.logsumexp(-v / epsilon)
    push = weight * (p - np.exp(log_q)) / epsilon  # in V at each point, which is a sum of the slopes before it
    return share @ off**2 - weight * p @ log_q, 2 * share * off + width * push[::-1].cumsum()[::-1][1:]


def arrive_and_stay(axis, slopes, n, epsilon, n_steps, step_size=6e-4):
    """Ends (n,) of even quantiles of N(0, 1) after unit time along -V', and after Langevin steps on V/ε from there."""
    middle, y = (axis[1:] + axis[:-1]) / 2, scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)
    for _ in range(100):
        y = y - np.interp(y, middle, slopes) / 100
    arrived = y
    for noise in to_numpy(torch.randn(n_steps, n, dtype=torch.float64)):
        y = y - step_size / 2 * np.interp(y, middle, slopes) / epsilon + step_size**0.5 * noise
    return arrived, y


class Matched(NamedTuple):
    """A potential: KL (nats) from the data to exp(-V/ε); how far samples are off (Kolmogorov-Smirnov) that arrived, and that
    then moved by Langevin; and what exact samples keep below with 95 %."""

    kl: float
    arrived: float
    stayed: float
    allowed: float


def measure_matching(run, weights=(0, 0.01, 0.1, 1, 10), epsilon=0.1, n=4000):
    """{λ: Matched}, each with the best V on a grid."""
    axis, fine, quantiles = np.linspace(-4, 4, 161), np.linspace(-5, 5, 20001), (np.arange(1000) + 0.5) / 1000
    cdf, p = uneven_pair(scipy.stats.norm.cdf), uneven_pair(scipy.stats.norm.pdf)(axis)
    x0, x1 = scipy.stats.norm.ppf(quantiles), np.interp(quantiles, cdf(fine), fine)
    (share, target), p, width, found = transport_slopes(axis, x0, x1), p / p.sum(), axis[1] - axis[0], {}
    for weight in weights:
        settings, options = (width, share, target, p, weight, epsilon), {"maxiter": run.config.n_small}
        slopes = scipy.optimize.minimize(matching_loss, target, settings, "L-BFGS-B", jac=True, options=options).x
        kl = matching_loss(slopes, width, 0 * share, target, p, 1, epsilon)[0] - scipy.stats.entropy(p)
        ends = arrive_and_stay(axis, slopes, n, epsilon, run.config.n_descent // 25)
        off = [scipy.stats.kstest(y, cdf).statistic for y in ends]
        found[weight] = Matched(kl, *off, scipy.stats.kstwo.ppf(0.95, n))
    return found


def record_matching(run, found):
    """Transport alone, and the one with the most of the likelihood."""
    for weight in (min(found), max(found)):
        name, m = f"matching, weight {weight}", found[weight]
        run.metric(f"{name}: KL (nats)", m.kl, None, ("the data", 0))
        for when, off in (("arrived", m.arrived), ("later", m.stayed)):
            run.metric(f"{name}, {when}: KS distance", off, None, ("exact samples, 95 %", m.allowed))


def draw_matching(ax, found):
    """How far samples are off, on arrival and later, against the weight of the likelihood."""
    places, names = range(len(found)), {"arrived": "after unit time along -V'", "stayed": "and Langevin steps at ε"}
    for (field, name), colour in zip(names.items(), ("tab:blue", "tab:orange"), strict=True):
        ax.semilogy(places, [getattr(m, field) for m in found.values()], "o-", color=colour, label=name)
    ax.axhline(found[0].allowed, color="k", ls="--", label="exact samples, 95 %")
    ax.set_xticks(places, [f"{weight:g}" for weight in found])
    most = max(found)
    title = f"Energy matching: {found[0].arrived:.2f} off on arrival at weight 0, later {found[most].stayed:.2f} at {most}"
    ax.set(title=title, xlabel="weight λ of the likelihood", ylabel="samples off (KS)")
    ax.legend()


# Samplers without data (iDEM, Akhound-Sadegh et al. 2024). Where only E is known, the score of its diffused density is
#     ∇log p_t(y) = E[w ∇(-E)]/E[w],    w = exp(-E(y + √t n)),    n ~ N(0, I),
# and K draws estimate it. A ratio of means is biased: to first order in 1/K, with S the score,
#     bias = (S E[w²] - E[w² ∇(-E)])/(K E[w]²).


def tilted_wells(x):
    """E(x) and -E'(x) of two wells at -1 and 1, the right one lower."""
    return 4 * (x.square() - 1).square() - x, -16 * x * (x.square() - 1) + 1


def monte_carlo_score(y, t, k, n):
    """n estimates (n,) of the diffused score at y, each from K = k draws."""
    e, force = tilted_wells(y + t**0.5 * torch.randn(n, k, dtype=torch.float64))
    return ((-e).softmax(1) * force).sum(1)


def exact_score_and_bias(y, t, n=20001, reach=12.0):
    """(the diffused score, K times its estimate's bias for large K, the estimate's mean at K = 1), by quadrature."""
    u = torch.linspace(-reach, reach, n, dtype=torch.float64)
    e, force = tilted_wells(y + t**0.5 * u)
    normal, w = (-u.square() / 2).exp(), (-e).exp()
    mean = [((normal * f).sum() / normal.sum()).item() for f in (w, w * force, w**2, w**2 * force, force)]
    score = mean[1] / mean[0]
    return score, (score * mean[2] - mean[3]) / mean[0] ** 2, mean[4]


class OfK(NamedTuple):
    """Biases (R,) by K; the exact bias at K = 1; K times the bias at large K, in theory."""

    bias: dict
    exact_one: float
    theory: float


def measure_without_data(run, y=0.3, t=0.5, ks=(1, 4, 16, 64)):
    """The Monte Carlo score's bias against the number of draws."""
    (score, slope, one), r, n = exact_score_and_bias(y, t), run.config.n_repeats, 4 * run.config.n_points
    bias = {k: torch.stack([monte_carlo_score(y, t, k, n).mean() - score for _ in range(r)]) for k in ks}
    return OfK(bias, one - score, slope)


def record_without_data(run, found):
    """The bias at K = 1, and K times the bias."""
    mean, sem = mean_and_sem(found.bias[1])
    within = tolerance(sem, len(found.bias[1]))
    run.metric("no data, K = 1: bias of the score", mean, sem, ("exact", found.exact_one), within)
    for k in list(found.bias)[-2:]:
        run.metric(f"no data, K = {k}: K times the bias", *mean_and_sem(k * found.bias[k]), ("large K", found.theory))


def draw_without_data(ax, found):
    """The bias against K."""
    k = np.array(list(found.bias))
    means, sems = mean_and_sem_rows(found.bias.values())
    ax.errorbar(k, np.abs(means), 2 * sems, fmt="o", color="tab:orange", label="measured, 2 standard errors")
    ax.loglog(k, abs(found.theory) / k, "k--", label="theory for large K")
    title = f"Without data: {k[-1]} draws leave a bias of {abs(means[-1]):.3f}, theory {abs(found.theory) / k[-1]:.3f}"
    ax.set(title=title, xlabel="draws K", ylabel="|bias| of the score")
    ax.legend()


# Reasoning as descent (Du et al. 2022; Gladstone et al. 2025). The task y² = x has two answers. A network that is trained by
# squared error answers with their mean, 0. An energy E(x, y), trained by the exact likelihood on a grid of y, has a well at
# each; from a random start, y <- y - η ∂E/∂y finds one of them. Near a well the error shrinks by |1 - η λ| a step, λ = E''.


def train_roots(energy, n_updates, noise=0.1, batch=16, rate=5e-3):
    """Fit S energies E(x, y) (or, with one input, S regressions) to y = ±√x + noise; the averaged networks."""
    learner, grid = Learner(energy, rate, n_updates), torch.linspace(-1.8, 1.8, 73)
    n_networks, n_inputs = energy.weights[0].shape[:2]
    for _ in range(n_updates):
        x = 0.2 + 0.8 * torch.rand(n_networks, batch, 1)
        y = x.sqrt() * (2 * torch.randint(2, x.shape) - 1) + noise * torch.randn(x.shape)
        if n_inputs == 1:
            learner.down((energy(x) - y[..., 0]).square().mean(1).sum())
            continue
        every = torch.stack(torch.broadcast_tensors(x, grid), -1).flatten(1, 2)
        log_z = (-energy(every)).view(n_networks, batch, -1).logsumexp(2)
        learner.down((energy(torch.cat([x, y], 2)) + log_z).mean(1).sum())
    return learner.average


def energy_slope(energy, x, y):
    """∂E/∂y and ∂²E/∂y² at x, y (S, B)."""
    y = y.detach().requires_grad_()
    (slope,) = torch.autograd.grad(energy(torch.stack([x, y], -1)).sum(), y, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), y)
    return slope.detach(), curvature


class Roots(NamedTuple):
    """Mean absolute answers of the regression (S,), of √x; the share of descents that end at a root (S,), of those at the
    positive one (S,); and for the wells that were reached, the shrinking of an error by 10 steps and |1 - η λ|^10."""

    regression: torch.Tensor
    at_root: torch.Tensor
    positive: torch.Tensor
    shrinking: torch.Tensor
    theory: torch.Tensor


def measure_roots(run, n_networks=4, rate=0.002, n=400, away=1e-5):
    """Regression and descent on the same task; in float64 where the contraction is judged."""
    regression = train_roots(Side(n_networks, 1), run.config.n_small)
    energy = train_roots(Side(n_networks, 2), run.config.n_small).double()
    x = 0.2 + 0.8 * torch.rand(n_networks, n, dtype=torch.float64)
    y = 3.6 * torch.rand_like(x) - 1.8
    for _ in range(400):
        y = y - rate * energy_slope(energy, x, y)[0]
    at_root = (y.abs() - x.sqrt()).abs() < 0.15
    for _ in range(20):  # to the bottom, by Newton's method, where there is one: for the contraction
        slope, curvature = energy_slope(energy, x, y)
        y = y - torch.where(curvature > 1, slope / curvature.clamp(min=1), 0)
    slope, curvature = energy_slope(energy, x, y)
    found, moved = at_root & (slope.abs() < 1e-9) & (curvature > 1), y + away
    for _ in range(10):
        moved = moved - rate * energy_slope(energy, x, moved)[0]
    answers = regression(x.float()[..., None]).abs().mean(1)
    shrinking, theory = ((moved - y) / away)[found], ((1 - rate * curvature) ** 10)[found]
    positive = ((y > 0) & at_root).double().sum(1) / at_root.sum(1).clamp(min=1)
    return Roots(answers, at_root.double().mean(1), positive, shrinking, theory)


def record_roots(run, found):
    """What regression and descent answer, and the contraction."""
    run.metric("y^2 = x, regression: mean |answer|", *mean_and_sem(found.regression), ("mean of the roots", 0))
    share, sem = mean_and_sem(found.at_root)
    run.metric("y^2 = x, descent: share at a root", share, sem or None, ("all", 1))
    run.metric("y^2 = x, descent: share at the positive", *mean_and_sem(found.positive), ("even", 0.5))
    gap = (found.shrinking - found.theory).abs().max() if len(found.theory) else 1.0  # no root, no claim
    run.metric("y^2 = x: contraction of 10 steps, off by", gap, None, ("|1 - eta lambda|^10", 0), 1e-3)


def draw_roots(ax, found):
    """Contraction, measured and in theory."""
    ax.plot(to_numpy(found.theory), to_numpy(found.shrinking), ".", color="tab:orange", ms=3)
    ends = ax.get_xlim()
    ax.plot(ends, ends, "k--", lw=1, label="equal")
    title = f"Descent finds a root ({found.at_root.mean():.0%}); regression says {found.regression.mean():.2f}"
    ax.set(title=title, xlabel="$|1 - \\eta\\lambda|^{10}$", ylabel="what 10 steps leave of an error")
    ax.legend()


# Equilibrium propagation (Scellier & Bengio 2017). A network is an energy E(s; θ); it answers with its minimum s*. Its cost
# C(s*) has a gradient that needs no backward pass: nudge the answer, E + β C, let it settle at s_β, and
#     dC/dθ = lim (∂E/∂θ(s_β) - ∂E/∂θ(s_0))/β         error of order β,
#     dC/dθ = lim (∂E/∂θ(s_β) - ∂E/∂θ(s_-β))/(2β)      error of order β² (Laborieux et al. 2021),
# since d/dβ of min(E + β C) is C (the envelope theorem), and its second derivatives in β and θ commute.


def layered_energy(s, x, params, n_hidden=6):
    """E (B,) of hidden and output units s (B, n_hidden + n_out) with inputs x (B, n_in); params = (W1, W2)."""
    h, out = s[:, :n_hidden].tanh(), s[:, n_hidden:].tanh()
    return s.square().sum(1) / 2 - ((x @ params[0]) * h).sum(1) - ((h @ params[1]) * out).sum(1)


def settle_units(x, target, params, beta=0.0, n_steps=120, rate=0.5, keep_graph=False):
    """The minimum (B, units) of E + β |out - target|²/2 by descent; with its graph for backpropagation through the steps."""
    n_hidden = params[1].shape[0]
    s = torch.zeros(len(x), sum(params[1].shape), dtype=x.dtype, requires_grad=True)
    for _ in range(n_steps):
        total = layered_energy(s, x, params).sum() + beta * (s[:, n_hidden:] - target).square().sum() / 2
        s = s - rate * torch.autograd.grad(total, s, create_graph=keep_graph)[0]
        s = s if keep_graph else s.detach().requires_grad_()
    return s


def equilibrium_gradient(x, target, params, beta, symmetric):
    """Estimates of dC/dθ, flat, from two equilibria."""
    params = [p.detach().requires_grad_() for p in params]
    ends = [settle_units(x, target, params, b).detach() for b in ((-beta, beta) if symmetric else (0.0, beta))]
    slopes = [torch.autograd.grad(layered_energy(s, x, params).sum(), params) for s in ends]
    low, high = (torch.cat([g.flatten() for g in slope]) for slope in slopes)
    return (high - low) / (2 * beta if symmetric else beta)


def exact_backprop_gradient(x, target, params):
    """dC/dθ, flat, by backpropagation through all the steps of settling."""
    params = [p.detach().requires_grad_() for p in params]
    out = settle_units(x, target, params, keep_graph=True)[:, params[1].shape[0] :]
    return torch.cat([g.flatten() for g in torch.autograd.grad((out - target).square().sum() / 2, params)])


def measure_nudging(run, betas=(0.08, 0.04, 0.02, 0.01, 0.005)):
    """{one-sided or symmetric: relative errors (5,) by β}, and the slopes of their logarithms."""
    x, target = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64) / 2
    params = [torch.randn(shape, dtype=torch.float64) for shape in ((4, 6), (6, 3))]
    params = [0.6 * p / torch.linalg.matrix_norm(p, 2) for p in params]  # so weak that there is one minimum
    exact, errors = exact_backprop_gradient(x, target, params), {}
    for name, symmetric in (("one-sided", False), ("symmetric", True)):
        estimates = [equilibrium_gradient(x, target, params, beta, symmetric) for beta in betas]
        errors[name] = np.array([((g - exact).norm() / exact.norm()).item() for g in estimates])
    slopes = {name: np.polyfit(np.log(betas[2:]), np.log(e[2:]), 1)[0] for name, e in errors.items()}
    return betas, errors, slopes


def record_nudging(run, found):
    """The order in β of both errors."""
    for (name, slope), order in zip(found[2].items(), (1, 2), strict=True):
        run.metric(f"nudging, {name}: order of the error", slope, None, ("theory", order), 0.1)
    run.metric("nudging, symmetric, 0.005: relative error", found[1]["symmetric"][-1], None, ("backpropagation", 0))


def draw_nudging(ax, found):
    """Relative errors against β."""
    for (name, errors), marker in zip(found[1].items(), "os", strict=True):
        ax.loglog(found[0], errors, f"{marker}-", label=name)
    orders = " and ".join(f"{slope:.2f}" for slope in found[2].values())
    ax.set(title=f"Nudging: errors of order {orders} in beta", xlabel="nudge $\\beta$", ylabel="relative error")
    ax.set_xticks(found[0], [f"{beta:g}" for beta in found[0]])
    ax.minorticks_off()
    ax.legend()


# Thermodynamic linear algebra (Aifer et al. 2024). Langevin dynamics in E(x) = x'Ax/2 - b'x solves A x = b: its mean is
# A⁻¹b, and its covariance A⁻¹ inverts A as well. In an eigendirection a of A a step of size ε is x <- (1 - εa/2) x + √ε ξ:
# an AR(1) chain of r = 1 - εa/2 with variance
#     1/(a (1 - εa/4)),  while the mean over T steps has variance 4/(ε a² T) for long T, whatever the step:
# the answer's error depends on the physical time εT alone, and hardware that *is* this system pays time in place of work.


def random_system(d):
    """A (d, d), positive definite with eigenvalues from 0.5 to 5, and b (d,)."""
    q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(0.5, 5, d, dtype=torch.float64)) @ q.T, torch.randn(d, dtype=torch.float64)


def solve_by_noise(a, b, x, n_steps, step_size):
    """Time averages of x (R, d) and of the squared deviations (R, d, d) from A⁻¹b, over n_steps of Langevin from x."""
    mean, square, solution = torch.zeros_like(x), 0.0, torch.linalg.solve(a, b)
    for _ in range(n_steps):
        x = langevin(lambda z: z @ a - b, x, 1, step_size)
        mean += x / n_steps
        off = x - solution
        square = square + off[:, :, None] * off[:, None] / n_steps
    return mean, square


def exact_ar1(a, n_steps, step_size):
    """(covariance (d, d) of a stationary chain, expected squared error of its mean over n_steps)."""
    eigen, q = torch.linalg.eigh(a)
    r, variance = 1 - step_size * eigen / 2, 1 / (eigen * (1 - step_size * eigen / 4))
    of_mean = variance / n_steps * ((1 + r) / (1 - r) - 2 * r * (1 - r**n_steps) / (n_steps * (1 - r) ** 2))
    return q @ torch.diag(variance) @ q.T, of_mean.sum().item()


class Solved(NamedTuple):
    """Over R chains: squared errors of the time averages by number of steps, and the expected; traces of the covariance."""

    errors: dict
    expected: dict
    traces: torch.Tensor
    exact_trace: float
    inverse_trace: float


def measure_linear_algebra(run, d=8, step_size=0.2):
    """A x = b by the time average of stationary chains."""
    a, b = random_system(d)
    covariance, _ = exact_ar1(a, 1, step_size)
    solution, root, errors, expected = torch.linalg.solve(a, b), torch.linalg.cholesky(covariance), {}, {}
    for n_steps in (max(run.config.n_solve // 4**k, 1) for k in (3, 2, 1, 0)):
        start = solution + torch.randn(run.config.n_repeats * 10, d, dtype=torch.float64) @ root.T
        mean, square = solve_by_noise(a, b, start, n_steps, step_size)
        errors[n_steps], expected[n_steps] = (mean - solution).square().sum(1), exact_ar1(a, n_steps, step_size)[1]
    traces = square.diagonal(dim1=1, dim2=2).sum(1)
    return Solved(errors, expected, traces, covariance.trace().item(), torch.linalg.inv(a).trace().item())


def record_linear_algebra(run, found):
    """Covariance and error of the longest run."""
    n, (mean, sem) = len(found.traces), mean_and_sem(found.traces)
    run.metric("Ax = b: trace of the covariance", mean, sem, ("these steps, exactly", found.exact_trace), tolerance(sem, n))
    run.metric("Ax = b: trace of A^-1", found.inverse_trace, None, ("these steps, exactly", found.exact_trace))
    steps = max(found.errors)
    mean, sem = mean_and_sem(found.errors[steps])
    run.metric("Ax = b: squared error of the mean", mean, sem, ("theory", found.expected[steps]), tolerance(sem, n))


def draw_linear_algebra(ax, found):
    """Squared errors against the number of steps."""
    means, sems = mean_and_sem_rows(found.errors.values())
    ax.errorbar(list(found.errors), means, 2 * sems, fmt="o", color="tab:orange", label="measured, 2 standard errors")
    ax.loglog(list(found.expected), list(found.expected.values()), "k--", label="theory")
    steps = max(found.errors)
    title = f"Ax = b by noise: squared error {found.errors[steps].mean():.3f}, theory {found.expected[steps]:.3f}"
    ax.set(title=title, xlabel="Langevin steps", ylabel="squared error")
    ax.legend()


# Joint embeddings as an energy (LeCun 2022). Two views of a thing are mapped to W₁x₁ and W₂x₂, whose squared distance is the
# energy; no sample is generated. Without a constraint W = 0 is best: collapse. With each embedding whitened, of k features,
#     E |W₁x₁ - W₂x₂|² = 2k - 2 tr(W₁ C₁₂ W₂') >= 2 (k - ρ₁ - ... - ρ_k),
# where ρ are the canonical correlations (Hotelling 1936), the singular values of C₁^{-1/2} C₁₂ C₂^{-1/2}.


def two_views(n, d=8, rho=(0.95, 0.8, 0.6, 0.3)):
    """Two views (n, d) of each thing, with these canonical correlations, each mixed at random."""
    common = torch.randn(n, d, dtype=torch.float64)
    r = torch.zeros(d, dtype=torch.float64)
    r[: len(rho)] = torch.tensor(rho, dtype=torch.float64)
    second = r * common + (1 - r**2).sqrt() * torch.randn_like(common)
    turns = [torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0] for _ in range(2)]
    scales = torch.linspace(0.5, 2, d, dtype=torch.float64)
    return common @ turns[0] * scales, second @ turns[1] * scales


def whitened(z):
    """z (N, k), centred, such that its covariance is I."""
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / len(z)), z.T, upper=False).T


def join_embeddings(x1, x2, k, whiten, n_steps, rate=0.05):
    """Embeddings (N, k) of both views, fitted by Adam to the least squared distance; and that distance by step."""
    weights = [(torch.randn(x.shape[1], k, dtype=torch.float64) / x.shape[1] ** 0.5).requires_grad_() for x in (x1, x2)]
    adam, path = torch.optim.Adam(weights, rate), []
    for step in range(n_steps):
        z1, z2 = (whitened(x @ w) if whiten else x @ w for x, w in zip((x1, x2), weights, strict=True))
        loss = (z1 - z2).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = rate * (1 - step / n_steps)
        adam.step()
        path.append(loss.item())
    return z1.detach(), z2.detach(), path


def exact_canonical(x1, x2):
    """The canonical correlations (d,) of two views, by SVD of the product of their orthonormal bases."""
    q1, q2 = (torch.linalg.qr(x - x.mean(0))[0] for x in (x1, x2))
    return torch.linalg.svdvals(q1.T @ q2)


class Joined(NamedTuple):
    """Distances by step with and without whitening, the best possible, and the variance that is left without."""

    whitened: list
    plain: list
    best: float
    left: float


def measure_joining(run, k=3):
    """Two linear encoders, with and without whitening."""
    x1, x2 = two_views(max(run.config.n_points, 50))
    n_steps = max(run.config.n_small // 3, 1)
    path = join_embeddings(x1, x2, k, True, n_steps)[2]
    z, _, plain = join_embeddings(x1, x2, k, False, n_steps)
    best = 2 * (k - exact_canonical(x1, x2)[:k].sum().item())
    return Joined(path, plain, best, z.var(0).sum().item())


def record_joining(run, found):
    """The optimum and the collapse."""
    run.metric("two views, whitened: distance", found.whitened[-1], None, ("2 (k - sum rho)", found.best), 1e-3)
    run.metric("two views, plain: distance", found.plain[-1], None, ("collapse", 0))
    run.metric("two views, plain: variance left", found.left, None, ("collapse", 0))


def draw_joining(ax, found):
    """Both distances while they are learnt."""
    ax.semilogy(found.whitened, color="tab:orange", label="whitened")
    ax.semilogy(np.maximum(found.plain, 1e-12), color="tab:blue", label="not whitened")
    ax.axhline(found.best, color="tab:red", ls="--", label="best, by canonical correlations")
    title = f"Joint embeddings: {found.whitened[-1]:.3f}, best {found.best:.3f}; unwhitened {found.plain[-1]:.0e}"
    ax.set(title=title, xlabel="updates", ylabel="squared distance")
    ax.legend()


class Direction(NamedTuple):
    """An experiment, how its numbers are recorded and drawn, its paper, and what is not settled."""

    measure: object
    record: object
    draw: object
    paper: str
    open_question: str


DIRECTIONS = {
    "tokens": Direction(
        measure_tokens, record_tokens, draw_tokens, "Blondel et al. 2025",
        "V sums over all that may follow; how well a network of fixed depth can hold it is not known",
    ),
    "dual scores": Direction(
        measure_dual, record_dual, draw_dual, "Guth et al. 2025",
        "the slope in t has a variance that grows with the dimension; how far its log p can be trusted on images is open",
    ),
    "a static field": Direction(
        measure_equilibrium, record_equilibrium, draw_equilibrium, "Wang & Du 2025",
        "when to stop is part of the model; what density its samples then have is open",
    ),
    "energy matching": Direction(
        measure_matching, record_matching, draw_matching, "Balcerak et al. 2025",
        "how to weigh carrying to the data against holding them there, and where, is open",
    ),
    "no data": Direction(
        measure_without_data, record_without_data, draw_without_data, "Akhound-Sadegh et al. 2024",
        "the weights degenerate as dimension and noise grow; molecules of practical size are beyond it so far",
    ),
    "reasoning": Direction(
        measure_roots, record_roots, draw_roots, "Du et al. 2022; Gladstone et al. 2025",
        "whether more descent steps help on problems harder than those trained on is disputed",
    ),
    "nudging": Direction(
        measure_nudging, record_nudging, draw_nudging, "Scellier & Bengio 2017; Laborieux et al. 2021",
        "settling costs many steps on digital machines, and analogue ones do not settle exactly",
    ),
    "linear algebra": Direction(
        measure_linear_algebra, record_linear_algebra, draw_linear_algebra, "Aifer et al. 2024",
        "whether a device with its own errors beats a digital solver at the precision that is needed",
    ),
    "joint embeddings": Direction(
        measure_joining, record_joining, draw_joining, "LeCun 2022; Bardes et al. 2022",
        "what an embedding must keep is set by the views that one chooses, and no likelihood checks it",
    ),
}  # fmt: skip


def section_directions(run):
    """Nine ideas of the last years, each with one number beside its reference and with what is not settled."""
    figures = [plt.subplots(rows, 2, figsize=(11, 4 * rows), layout="constrained") for rows in (2, 3)]
    *axes, spare = (ax for _, grid in figures for ax in grid.flat)
    spare.remove()
    for ax, direction in zip(axes, DIRECTIONS.values(), strict=True):
        found = direction.measure(run)
        direction.record(run, found)
        direction.draw(ax, found)
        run.say(f"{ax.get_title()} ({direction.paper}); not settled: {direction.open_question}")
    for (fig, _), name in zip(figures, ("models", "machines"), strict=True):
        run.figure(fig, name)


# %% 7. A map of the course
# Which method for which problem? The answer below is made from numbers that runs of the ten modules left in their folders
# beside this module's, and from nothing else: for each method what it reached, what stands beside that number, a number to
# watch (where it, or what one would do instead, may fail), and the seconds of the whole section, rivals included. A module
# that was not run is named. One sentence before the table: an energy gives *differences* of log p for nothing, samples for
# a chain, and log p itself only for the price of Z; whoever needs just one of these should not pay for the others.


class Route(NamedTuple):
    """A way through the course: module and metric of what a method reaches, and of what to watch."""

    problem: str
    method: str
    module: str
    reaches: str
    fails: str
    how: str  # what to watch, in words


ROUTES = (
    Route("likelihood", "sum all states (small RBM)", "04", "likelihood/test nats, 16 hidden, this module",
          "likelihood/the trap: effective chains", "AIS between far models: effective chains"),
    Route("likelihood", "tempered chains (RBM)", "05", "methods/bars, tempering: log likelihood (nats)",
          "bias/large weights, CD-10: bias / gradient", "CD-10, large weights: bias"),
    Route("likelihood", "noise contrast", "06", "nce/noise 1.5: KL to the data (nats)",
          "nce/noise 20 times: RMS error of c", "noise 20 times as wide: error of log Z"),
    Route("likelihood", "weighted chains (2-D)", "07", "truth2d/weighted: gap (nats)",
          "truth2d/20 steps, restarts: gap (nats)", "unweighted chains: gap"),
    Route("samples", "Langevin, HMC on a known energy", "01", "sampling/HMC: effective per 1,000 evaluations",
          "sampling/worst split R-hat", "worst R-hat between wells"),
    Route("samples", "energy of digits, from noise", "07", "digits/energy: Frechet distance",
          "longrun/after 5000 steps: Frechet distance", "after 5,000 steps"),
    Route("samples", "generator and energy", "08", "coopnets/generator + 30 steps: Frechet distance",
          "coopnets/met its own, brief: Frechet, 500 from noise", "its energy, from noise"),
    Route("samples", "noise levels (diffusion)", "10", "diffusion/probability flow: Frechet distance",
          "diffusion/a fifth: without clusters: Frechet distance", "without clusters"),
    Route("samples", "energy of a VAE's codes", "10", "latent/VAE + energy: Frechet distance",
          "latent/VAE: Frechet distance", "its Gaussian prior"),
    Route("scores", "denoise by the energy's slope", "09", "denoising/noise 0.3: energy (dB)",
          "denoising/known digits: energy, dB below", "below the best possible"),
    Route("scores", "energy as an alarm", "09", "ood/a digit left out (brief): energy, AUROC",
          "ood/true energy, narrower: AUROC", "the true density on narrower data: AUROC"),
    Route("scores", "score matching", "06", "efficiency/power 4: efficiency",
          "efficiency/weight of modes 6 std apart: data needed", "far modes: times the data"),
    Route("scores", "classifier and energy (JEM)", "08", "jem/five labels a class: JEM", "jem/JEM: ECE", "its ECE"),
    Route("constraints", "recall from a part", "02", "modern/half hidden, softmax: recalled",
          "modern/half hidden, Hebb: recalled", "the same by Hebb's rule"),
    Route("constraints", "optimise with many minima", "03", "annealing/160 units, excess energy, geometric",
          "annealing/160 units, excess energy, restarted descent", "restarted descent"),
    Route("constraints", "hold what is seen", "09", "inpainting/centre: energy (dB)",
          "inpainting/noise drawn each step: coverage", "noise drawn anew each step: coverage"),
    Route("constraints", "two demands at once", "09", "composition/class, bold, sum: success",
          "composition/NOT, a = 5: mean of x^2", "NOT, too strong: mean of x^2"),
    Route("constraints", "add scores, with MCMC", "10", "composition/n = 2, MCMC: variance",
          "composition/n = 2, reverse SDE: variance", "added in a reverse SDE"),
    Route("constraints", "least change", "09", "beyond/fairness: price (nats a patient)",
          "beyond/a mode that no sample saw: Z", "a mode that no sample saw: Z"),
)  # fmt: skip


def records_beside(out):
    """{module: record} of the metrics.json in the folders beside `out` that are named as modules are."""
    records = {}
    for path in sorted(out.absolute().parent.glob("[0-9][0-9]_*/metrics.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # half a file, or another one's
            record = json.loads(path.read_text(encoding="utf-8"))
            records[path.parent.name[:2]] = {"metrics": dict(record["metrics"]), "seconds": dict(record["section_seconds"])}
    return records


def find_entry(record, name):
    """(name, entry) of a metric, or None."""
    entry = record["metrics"].get(name)
    return entry and (name, entry)


class Signpost(NamedTuple):
    """A line of the map, in words: problem, method and module, what it reaches, beside, seconds, what to watch."""

    problem: str
    method: str
    reaches: str
    beside: str
    seconds: str
    fails: str


def read_map(records):
    """The map's lines from {module: record}; where a record or a number in it is missing, it says which module to run."""
    lines = []
    for route in ROUTES:
        method, record = f"{route.method} ({route.module})", records.get(route.module)
        found = record and find_entry(record, route.reaches)
        if not found:
            lines.append(Signpost(route.problem, method, f"run module {route.module}", "", "", ""))
            continue
        (name, entry), failure = found, find_entry(record, route.fails)
        section, _, words = name.partition("/")
        lines.append(
            Signpost(
                route.problem,
                method,
                f"{words}: {entry['value']:.3g}",
                f"{entry['against']}: {entry['reference']:.3g}" if "against" in entry else "",
                f"{record['seconds'].get(section, math.nan):.0f}",
                f"{route.how}: {failure[1]['value']:.3g}" if failure else "",
            )
        )
    return lines


def draw_map(lines, n_modules):
    """The map as a table, the problems in colours."""
    fig, ax = plt.subplots(figsize=(17, 0.6 + 0.36 * len(lines)), layout="constrained")
    ax.axis("off")
    tints = {"likelihood": "#dbe9f6", "samples": "#fde7d2", "scores": "#e0f2df", "constraints": "#efe3f3"}
    table = ax.table(
        cellText=[list(line) for line in lines],
        colLabels=["for", "method (module)", "reaches", "beside", "section, s", "what to watch"],
        cellColours=[[tints[line.problem]] * 6 for line in lines],
        colWidths=[0.08, 0.2, 0.27, 0.19, 0.05, 0.21],
        cellLoc="left",
        loc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9.5)
    table.scale(1, 1.55)
    ax.set_title(f"A map of the course, by the runs of {n_modules} of its ten modules")
    return fig


def section_map(run):
    """Which method for which problem, what it costs and what to watch: from the numbers that runs of the modules left."""
    records = records_beside(run.out)
    n_others = len(records.keys() - {"10"})
    run.metric("other modules whose numbers are here", n_others, against=("all", 9))
    own = records.get("10", {"metrics": {}, "seconds": {}})  # of an earlier run, renewed by what this one has measured
    records["10"] = {"metrics": own["metrics"] | run.metrics, "seconds": own["seconds"] | run.section_seconds}
    lines = read_map(records)
    run.figure(draw_map(lines, len(records)), "course")
    for line in lines:
        words = (", beside ", line.beside), ("; ", line.seconds and f"{line.seconds} s"), ("; watch: ", line.fails)
        after = "".join(before + each for before, each in words if each)
        run.say(f"{line.problem}, {line.method}: {line.reaches}{after}")
    missing = sum(line.reaches.startswith("run module") for line in lines)
    run.say(f"{len(lines) - missing} of {len(lines)} lines have a number here; the others wait for a run of their module")


SECTIONS = {
    "diffusion": section_diffusion,
    "recovery": section_recovery,
    "flows": section_flows,
    "latent": section_latent,
    "composition": section_composition,
    "directions": section_directions,
    "map": section_map,
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
