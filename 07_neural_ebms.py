"""Module 07 - Neural energy-based models: a deep network as an energy, and digits drawn from pure noise.

Any network with one output is an energy, p(x) = exp(-E(x))/Z. Maximum likelihood pushes E down on data and up on samples
of the model (module 01), and Langevin dynamics draws those samples, from chains that a replay buffer keeps alive:

    ∇ log p(x) = -∇E(x) + E_{x'~p}[∇E(x')]            ∇ in the parameters: two phases,                         (1)
    x <- x - ½ ε ∇E(x) + √(ε T) n,   n ~ N(0, I)      ∇ in x; T = 1 is the model, T << 1 another one,          (2)
    E(x) = |x - g(x)|²/(2σ²)                          g a small network: the shape that learns fastest here,   (3)
    p(x) = Σₖ πₖ exp(-E(x, k))/Zₖ                     clusters k of the data, and the share πₖ of each.        (4)

Run      python 07_neural_ebms.py                 all sections, about four minutes on two CPU cores
         python 07_neural_ebms.py --section digits --show
         python 07_neural_ebms.py --section digits --dataset mnist --checkpoint mnist.pt
         torchrun --nproc_per_node=2 07_neural_ebms.py      the section digits, each process with its own chains
Writes   outputs/07_neural_ebms/*.png, digits_from_noise.gif and metrics.json
Before   modules 05 and 06        Exercises  ex07_1 ... ex07_5, o6, o7, o8, o9, o13
Sources  Du & Mordatch (2019); Nijkamp et al. (2019, 2020); Tieleman (2008); Carbone et al. (2023); Zhao, Mathieu &
         LeCun (2017); Yoon, Noh & Park (2021); Heusel et al. (2017); Lopez-Paz & Oquab (2017); Song & Kingma (2021).
"""

import argparse
import contextlib
import copy
import errno
import functools
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
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
import torch
from matplotlib.animation import PillowWriter
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.svm import SVC
from torch import nn
from torch.nn.functional import cross_entropy, one_hot, silu
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

try:
    import torch.distributed as dist
except ImportError:  # torch can be built without it
    dist = None


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    dataset: Annotated[Literal["digits", "mnist", "fashion_mnist", "cifar10"], "images to learn, each with its settings"] = (
        "digits"
    )
    split: Annotated[Literal["test", "validation"], "score on the test images, or choose settings without them"] = "test"
    architecture: Annotated[
        Literal["autoencoder", "conv_autoencoder", "mlp", "conv", "residual"], "the energy of digits"
    ] = "autoencoder"
    precision: Annotated[Literal["float32", "bfloat16"], "numbers in which convolutions are differentiated"] = "float32"
    width: Annotated[int, "hidden units of the auto-encoder and of the MLP"] = 512
    sigma: Annotated[float, "the auto-encoder's unit of error, eq. (3)"] = 0.2
    n_clusters: Annotated[int, "clusters whose proportions the energy is given, eq. (4); 1: none"] = 32
    n_updates: Annotated[int, "updates of the energy of digits"] = 4000
    batch_size: Annotated[int, "images in a batch, and chains moved between two updates"] = 64
    n_chains: Annotated[int, "chains in the replay buffer"] = 512
    n_langevin: Annotated[int, "Langevin steps between two updates"] = 20
    step_size: Annotated[float, "the Langevin step, eps in eq. (2)"] = 0.01
    reinit: Annotated[float, "chance that a chain restarts from noise when it is visited"] = 0.01
    start: Annotated[Literal["normal", "pixels"], "that noise: N(0, I), or as spread as its cluster's pixels"] = "normal"
    data_noise: Annotated[float, "standard deviation of the noise added to the data"] = 0.2
    learning_rate: Annotated[float, "Adam's, after the warm-up; it falls linearly to 0"] = 4e-3
    warm_up: Annotated[int, "updates over which the learning rate rises"] = 200
    energy_l2: Annotated[float, "weight of the squared energies in the loss"] = 1e-5
    ema: Annotated[float, "memory of the average of the weights"] = 0.999
    n_samples: Annotated[int, "images drawn where samples are scored"] = 1000
    n_from_noise: Annotated[int, "Langevin steps from noise to such an image"] = 1000
    n_long: Annotated[int, "Langevin steps of the long run"] = 5000
    n_short: Annotated[int, "updates of the short trainings: architectures, loop, ablations"] = 400
    n_curve: Annotated[int, "updates of each energy on the curve over clusters"] = 350
    n_2d: Annotated[int, "updates in two dimensions"] = 300
    n_seeds: Annotated[int, "networks trained side by side in the ablations, and mixtures fitted"] = 3
    n_components: Annotated[int, "Gaussians in the mixture to compare with, chosen on validation images"] = 60
    n_a_class: Annotated[int, "Gaussians a class in the mixture that knows the labels, chosen likewise"] = 6
    checkpoint: Annotated[str, "write the training of digits to this file as it goes"] = ""
    checkpoint_every: Annotated[int, "updates between two such writes"] = 500
    resume: Annotated[str, "go on from this checkpoint"] = ""
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1
    processes: Annotated[Literal[1, 2], "2: digits, longrun and proportions run ahead in a second one"] = 2


SMOKE = {"width": 32, "n_updates": 6, "batch_size": 16, "n_chains": 32, "n_langevin": 3, "n_samples": 40, "n_seeds": 2}
SMOKE |= {"n_clusters": 4, "n_from_noise": 6, "n_long": 20, "n_short": 6, "n_curve": 4, "n_2d": 6, "checkpoint_every": 2}
SMOKE |= {"n_components": 4, "n_a_class": 1}

# For images of 784 pixels in place of 64, chosen on 5,000 of MNIST. Chains start near their images and go 500 steps: further
# on they drift (`longrun` shows it), an energy of this size not being right so far from data. More Gaussians come nearer
# there, until they copy: those of the mixture are as many as keep as far from the training images as new images are.
LARGE = {"sigma": 0.3, "data_noise": 0.3, "step_size": 0.02, "n_clusters": 64, "start": "pixels", "threads": 2}
LARGE |= {"learning_rate": 3e-3, "n_updates": 5000, "n_from_noise": 500, "n_components": 300, "n_a_class": 30}
SUITED = {"mnist": LARGE, "fashion_mnist": LARGE}  # what a data set wants otherwise


# %% The data, and a judge
# Images live in [-1, 1], flat: x is (..., d). The judge is a classifier that no energy has seen. Its 32 last hidden
# features, scaled to variance 1 on the training images, measure the distance of two sets of images (Heusel et al. 2017):
#
#     Fréchet distance = |m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½)      of the features' means and covariances.
#
# Finite sets have a distance too: real training images against real test images are the floor. tanh bounds the features
# and the distance saturates, so far off it says "bad" and not how bad. A second test trains an SVM to tell samples from
# real images (Lopez-Paz & Oquab 2017): 0.5 is perfect. Samples are first rounded to the grey levels that real pixels have:
# else the SVM sees the rounding and not the digits. And a sample much nearer to a training image than a new real image
# would be is a copy.


# Differs from 04_restricted_boltzmann_machines.py: load_images - grey levels in [-1, 1], and more data sets
def load_images(dataset):
    """Real images as flat float arrays in [-1, 1] and labels: x_train (N, d), x_test, y_train, y_test."""
    if dataset == "digits":
        x, y = load_digits(return_X_y=True)
        return train_test_split(x / 8 - 1, y, test_size=0.2, stratify=y, random_state=0)
    name = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}[dataset]
    try:
        import torchvision.datasets  # here, since it does not import beside every build of torch

        sets = [getattr(torchvision.datasets, name)("data", train=t, download=True) for t in (True, False)]
        pixels = [np.asarray(part.data).reshape(len(part), *SHAPES[dataset][::-1]) for part in sets]  # (N, H, W, C)
        x_train, x_test = (np.moveaxis(x, -1, 1).reshape(len(x), -1) / 127.5 - 1 for x in pixels)
        return x_train, x_test, *(np.asarray(part.targets) for part in sets)
    except Exception as error:  # torchvision raises many kinds, and names the cause on the last of several lines
        reason = " ".join((str(error) or repr(error)).split())
        cure = f"repair torchvision or the network, delete what data/ holds of {name} if a download broke off"
        sys.exit(f"cannot load {name} ({reason}): {cure}; or --dataset digits")


SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
N_LEVELS = {"digits": 17, "mnist": 256, "fashion_mnist": 256, "cifar10": 256}  # of grey, from -1 to 1


@functools.cache
def check_settings(run):
    """End the run in one line if its settings make no sense, before any work; and say whom --resume serves."""
    config = run.config
    kept, resumed = Path(config.checkpoint), Path(config.resume)
    for wrong, complaint in (
        (config.n_chains % config.batch_size > 0, "--n-chains must be a multiple of --batch-size"),
        (config.n_clusters > config.n_chains, "--n-clusters must be at most --n-chains: each needs a chain of its own"),
        (config.reinit > 1, "--reinit is a probability: at most 1"),
        (config.ema >= 1, "--ema must be below 1"),
        (config.n_samples < 40, "--n-samples must be at least 40, to be scored in four parts"),
        (config.resume and not resumed.exists(), f"--resume: there is no file {resumed}"),
        (config.checkpoint and kept.is_dir(), f"--checkpoint: {kept} is a folder, not a file"),
        *((number > 1e30, f"--{name.replace('_', '-')} must be at most 1e30") for name, number in numbers(config)),
    ):
        if wrong:
            sys.exit(complaint)
    if config.checkpoint:
        try:
            tempfile.TemporaryFile(dir=kept.resolve().parent).close()
        except OSError as error:
            sys.exit(f"--checkpoint: cannot write to {kept.resolve().parent}: {error.strerror}")
    if (config.checkpoint or config.resume) and run.section not in ("digits", "longrun", "proportions"):
        echo("  --checkpoint and --resume serve digits, longrun and proportions; other sections train from the beginning")


def numbers(config):
    """The names and values of the settings that are numbers."""
    return [(name, value) for name, value in asdict(config).items() if not isinstance(value, str)]


@functools.cache
def images(run):
    """The run's images on its device, x_train (N, d), x_test, and labels y_train, y_test; with --split validation a
    quarter of the training images plays the test's part."""
    check_settings(run)
    config = run.config
    x, x_test, y, y_test = load_images(config.dataset)
    if config.split == "validation":
        x, x_test, y, y_test = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
    for name in ("n_clusters", "n_components"):
        if getattr(config, name) > len(x) // 4:
            sys.exit(f"--{name.replace('_', '-')} must be at most a quarter of the {len(x)} training images")
    x, x_test = (torch.as_tensor(part, dtype=torch.float32, device=run.device) for part in (x, x_test))
    return x, x_test, *(torch.as_tensor(part, dtype=torch.int64, device=run.device) for part in (y, y_test))


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
@torch.enable_grad()
@own_random_stream
def judge(run):
    """The independent classifier x (N, d) -> logits (N, 10), trained on noisy images so that a little noise tells it
    nothing; and its accuracy on the test images."""
    torch.manual_seed(run.seed)
    x, x_test, y, y_test = images(run)
    net = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 10))
    net, n_updates = net.to(run.device), 1200 if run.config.n_updates > 100 else 60
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(n_updates):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / n_updates)
        batch = torch.randint(len(x), (64,), device=run.device)
        optimiser.zero_grad()
        noisy = x[batch] + 0.2 * torch.randn(64, x.shape[1], device=run.device)
        cross_entropy(net(noisy), y[batch], label_smoothing=0.1).backward()
        optimiser.step()
    net.requires_grad_(False)
    return net, (net(x_test).argmax(1) == y_test).float().mean().item()


def in_float64(x):
    """A tensor as SciPy and scikit-learn judge it: their answers to float32 differ from processor to processor."""
    return to_numpy(x).astype(float)


def as_pixels(x, n_levels):
    """x clamped and rounded to what real pixels hold: `n_levels` even grey levels from -1 to 1."""
    return ((x.clamp(-1, 1) + 1) * (n_levels - 1) / 2).round() * 2 / (n_levels - 1) - 1


def frechet_distance(a, b):
    """|m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½) of two sets of features (N, k) (Dowson & Landau 1982), in float64."""
    (m1, c1), (m2, c2) = ((f.mean(0), np.cov(f.T)) for f in (np.asarray(a, float), np.asarray(b, float)))
    root = np.sqrt(np.maximum(scipy.linalg.eigvals(c1 @ c2).real, 0)).sum()  # C₁C₂ is similar to a positive matrix
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * root


def frechet_to_test(run, x):
    """Fréchet distance of images (N, d) to the test images, on the judge's features."""
    x_train, x_test, _, _ = images(run)
    train, test, ours = (in_float64(judge(run)[0][:4](part)) for part in (x_train, x_test, x.clamp(-1, 1)))
    return frechet_distance(ours / train.std(0), test / train.std(0))


def frechet_and_sem(run, x):
    """The distance of all images, and what four quarters of them say of its standard error."""
    return frechet_to_test(run, x), mean_and_sem([frechet_to_test(run, part) for part in x.tensor_split(4)])[1]


def frechet_floor(run):
    """The distance of as many training images as are drawn: what finite sets of real images have."""
    x = images(run)[0]
    return frechet_to_test(run, x[torch.randperm(len(x), device=run.device)[: run.config.n_samples]])


def two_sample_accuracy(run, x):
    """How often an SVM tells images (N, d) from as many training images, cross-validated: mean and its standard error."""
    real = in_float64(images(run)[0][: len(x)])
    x = in_float64(as_pixels(x[: len(real)], N_LEVELS[run.config.dataset]))
    folds = StratifiedKFold(5 if len(x) > 100 else 2, shuffle=True, random_state=0)
    return mean_and_sem(cross_val_score(SVC(), np.concatenate([x, real]), np.arange(2 * len(x)) < len(x), cv=folds))


def classes(run, x):
    """The class (N,) of each image (N, d), by the judge."""
    return judge(run)[0](x.clamp(-1, 1)).argmax(1)


def class_entropy(run, x):
    """Entropy of the classes among images (N, d), by the judge, in units of ln 10: 1 if all ten are equally frequent."""
    share = torch.bincount(classes(run, x), minlength=10) / len(x)
    return torch.special.entr(share).sum().item() / math.log(10)


def even_classes(run, x):
    """The first images (M, d) of each class, by the judge, as many of each as the rarest has (and four at least)."""
    labels = classes(run, x)
    rank = one_hot(labels, 10).cumsum(0).gather(1, labels[:, None])[:, 0]
    return x[rank <= max(torch.bincount(labels, minlength=10).min().item(), 4)]


def nearest_distances(x, x_train):
    """Euclidean distance (N,) from each image (N, d) to the nearest of x_train (M, d)."""
    return torch.cat([torch.cdist(part, x_train).amin(1) for part in x.split(500)])


# Copied from 02_hopfield_networks.py: mean_and_sem
def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


# Differs from 04_restricted_boltzmann_machines.py: show_images - grey or colour, in [-1, 1]
def show_images(ax, x, shape, n_columns, title=""):
    """Draw images x (N, d) of shape (C, H, W) on one axis, a mosaic of `n_columns` columns with a gap between the tiles."""
    tiles = nn.functional.pad(x.detach().cpu().clamp(-1, 1).reshape(-1, *shape), (0, 1, 0, 1), value=-1.0)
    rows = [torch.cat(list(row), 2) for row in tiles.split(n_columns) if len(row) == n_columns]
    mosaic = (torch.cat(rows, 1)[:, :-1, :-1].permute(1, 2, 0).numpy() + 1) / 2
    ax.set_title(title)
    ax.axis("off")
    return ax.imshow(1 - mosaic[..., 0] if shape[0] == 1 else mosaic, cmap="gray", vmin=0, vmax=1)


def show_rows(ax, rows, names, shape, title, label=""):
    """Draw rows of images {(n, d)} below each other, each with its name on the left."""
    show_images(ax, torch.cat(list(rows)), shape, len(rows[0]), title)
    middle = [(shape[1] + 1) * (i + 0.5) - 1 for i in range(len(rows))]
    ax.axis("on")
    ax.set(frame_on=False, xticks=[], yticks=middle, yticklabels=names, ylabel=label)


# %% 1. Architectures
# A scalar network E(x) = |x|²/(2σ²) + f(x) must invent everything that is wrong with an image, pixel by pixel. The
# auto-encoder's shape (3) is told what to look at: the error of a reconstruction, d numbers a time instead of one (Zhao,
# Mathieu & LeCun 2017; as a normalised density Yoon, Noh & Park 2021: the error falls on data and rises on chains). The
# quadratic term holds the far field; with g's last layer 0 at first, E = |x|²/(2σ²) is a Gaussian. g may be convolutional
# too: what learns fast is the shape, and not how g is made.
#
# Langevin needs ∇ₓE twenty times for each gradient in the weights, so it is worth a derivation.
# With r = x - g(x), g(x) = silu(z) W₂ + b₂, z = x W₁ + b₁ and J = ∂g/∂x,
#
#     E = rᵀr/(2σ²)    =>    ∇ₓE = (r - Jᵀr)/σ²,        Jᵀr = (silu'(z) · (r W₂ᵀ)) W₁ᵀ:
#
# four products of matrices, no graph. The other energies below let autograd do it.
#
# Batch norm has no place in an energy. In training mode it makes E(xᵢ) depend on the other images of the batch: then
# E(x) is not a function of x, and the gradient of the sum Σⱼ E(xⱼ) that Langevin follows is not ∇E(xᵢ).


class PlainEnergy(nn.Module):
    """Eq. (3) as one writes it first: x (B, d) -> E (B,)."""

    def __init__(self, d, width, sigma):
        super().__init__()
        self.g, self.sigma = nn.Sequential(nn.Linear(d, width), nn.SiLU(), nn.Linear(width, d)), sigma
        nn.init.zeros_(self.g[2].weight)

    def forward(self, x):
        return (x - self.g(x)).square().sum(1) / (2 * self.sigma**2)


class Energy(nn.Module):
    """x (n, B, d) -> E (n, B), from a network `trunk` on (M, d): eq. (3) if it returns (M, d), |x|²/(2σ²) + f(x) if (M, 1).

    `biases` (n_labels, *hidden), if given, are those that a label y (B,) adds to what the first layer returns: E(x, y).
    """

    def __init__(self, trunk, sigma=1.0, biases=None, precision=torch.float32):
        super().__init__()
        self.trunk, self.sigma, self.precision = trunk, sigma, precision
        self.biases = None if biases is None else nn.Parameter(biases)

    def forward(self, x, y=None):
        z = self.trunk[0](x.flatten(0, 1))
        if y is not None and self.biases is not None:
            z = z + self.biases.index_select(0, y.repeat(len(x)))
        out = self.trunk[1:](z).float().reshape(*x.shape[:-1], -1)
        if out.shape[-1] == 1:
            return x.square().sum(-1) / (2 * self.sigma**2) + out[..., 0]
        return (x - out).square().sum(-1) / (2 * self.sigma**2)

    def slope(self, x, y=None):
        """∇ₓE (n, B, d) in `precision`, by one backward pass to x alone: the weights' gradients are not touched."""
        mixed = torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32)
        with torch.enable_grad(), mixed:
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(self(x, y).sum(), x)[0]


class AutoEncoderEnergy(Energy):
    """Eq. (3) with one hidden layer: n networks side by side, (n, B, d) -> (n, B), and ∇ₓE by hand.

    With n_labels > 1 each label y (B,), a cluster or a class, has hidden biases of its own: E(x, y) of eq. (4).
    """

    def __init__(self, n_networks, d, width, sigma, n_labels=1):
        super().__init__(None, sigma)
        self.w1 = nn.Parameter(torch.randn(n_networks, d, width) / d**0.5)
        self.w2 = nn.Parameter(torch.zeros(n_networks, width, d))
        self.b1 = nn.Parameter(torch.zeros(n_networks, n_labels, width))
        self.b2 = nn.Parameter(torch.zeros(n_networks, 1, d))

    def before(self, x, y):
        """z, the hidden layer before its activation."""
        labelled = y is not None and self.b1.shape[1] > 1
        return torch.baddbmm(self.b1.index_select(1, y) if labelled else self.b1, x, self.w1)  # b1[:, y]: far slower

    def error(self, x, z):
        """r = x - g(x)."""
        return torch.baddbmm(x - self.b2, silu(z), self.w2, alpha=-1)

    def forward(self, x, y=None):
        return self.error(x, self.before(x, y)).square().sum(-1) / (2 * self.sigma**2)

    @torch.no_grad()
    def slope(self, x, y=None):
        z = self.before(x, y)
        r = self.error(x, z)
        back = torch.ops.aten.silu_backward(torch.bmm(r, self.w2.mT), z)  # silu'(z) · (r W₂ᵀ), in one sweep
        return torch.baddbmm(r, back, self.w1.mT, alpha=-1).div_(self.sigma**2)


def mlp(d, width, n_out=1, activation=nn.SiLU, norm=lambda layer: layer, n_hidden=2):
    """`n_hidden` hidden layers and a last one that is zero at first, (M, d) -> (M, n_out)."""
    sizes, last = [d] + n_hidden * [width], nn.Linear(width, n_out)
    nn.init.zeros_(last.weight)
    hidden = [(norm(nn.Linear(a, b)), activation()) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*(part for pair in hidden for part in pair), last)


def on_images(shape, layer):
    """A first layer for flat images (M, C·H·W) of shape (C, H, W)."""
    return nn.Sequential(nn.Unflatten(1, shape), layer)


def conv_autoencoder(shape):
    """A convolutional g for eq. (3) on images of shape (C, H, W), flat: (M, C·H·W) -> (M, C·H·W). H and W are even."""
    last = nn.ConvTranspose2d(32, shape[0], 4, stride=2, padding=1)
    nn.init.zeros_(last.weight)
    first, second = nn.Conv2d(shape[0], 16, 5, stride=2, padding=2), nn.Conv2d(16, 32, 3, padding=1)
    return nn.Sequential(on_images(shape, first), nn.SiLU(), second, nn.SiLU(), last, nn.Flatten())


def conv(shape, activation=nn.SiLU, norm=lambda layer: layer, pool=nn.AvgPool2d, between=nn.Identity):
    """Convolutions on images of shape (C, H, W), flat: (M, C·H·W) -> (M, 1). `between` may be nn.BatchNorm2d."""
    first, second = norm(nn.Conv2d(shape[0], 32, 3, padding=1)), norm(nn.Conv2d(32, 64, 3, padding=1))
    layers = []
    for layer, channels in ((on_images(shape, first), 32), (second, 64)):
        layers += [layer, between(channels) if between is nn.BatchNorm2d else between(), activation(), pool(2)]
    last = nn.Linear(64 * (shape[1] // 4) * (shape[2] // 4), 1)
    nn.init.zeros_(last.weight)
    return nn.Sequential(*layers, nn.Flatten(), last)


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution 0 at first (He et al. 2016; no batch norm)."""

    def __init__(self, channels):
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.branch = nn.Sequential(nn.SiLU(), first, nn.SiLU(), last)

    def forward(self, x):
        return x + self.branch(x)


def residual(shape):
    """A residual network on images of shape (C, H, W), flat: (M, C·H·W) -> (M, 1)."""
    last = nn.Linear(32 * (shape[1] // 4) * (shape[2] // 4), 1)
    nn.init.zeros_(last.weight)
    stem, pool = nn.Conv2d(shape[0], 32, 3, padding=1), nn.AvgPool2d(2)
    return nn.Sequential(on_images(shape, stem), Residual(32), pool, Residual(32), pool, nn.Flatten(), last)


def label_biases(trunk, d, n_labels):
    """Biases of n_labels labels for a `trunk` of images (d,), zero at first: (n_labels, *hidden); for one label None."""
    return torch.zeros(n_labels, *trunk[0](torch.zeros(1, d)).shape[1:]) if n_labels > 1 else None


def build(config, n_labels=1):
    """The energy that --architecture names, for the data set's shape."""
    shape, width = SHAPES[config.dataset], config.width
    d = math.prod(shape)
    if config.precision == "bfloat16" and config.architecture in ("autoencoder", "mlp"):
        sys.exit("--precision bfloat16 serves convolutions: --architecture conv_autoencoder, conv or residual")
    if config.architecture == "autoencoder":
        return AutoEncoderEnergy(1, d, width, config.sigma, n_labels)
    makers = {"mlp": lambda shape: mlp(d, width), "conv_autoencoder": conv_autoencoder, "conv": conv, "residual": residual}
    trunk = makers[config.architecture](shape)
    energy = Energy(trunk, config.sigma, label_biases(trunk, d, n_labels), getattr(torch, config.precision))
    return energy.to(memory_format=torch.channels_last if config.precision == "bfloat16" else torch.contiguous_format)


class Contender(NamedTuple):
    """An energy to compare, its number of updates, and what its training wants otherwise."""

    energy: Energy
    n_updates: int
    changes: dict


def contenders(config):
    """{name: Contender}, each with biases for every cluster. For digits on a CPU the seconds are similar, but that the
    convolutional auto-encoder, which learns as well and more slowly, gets several times as many. Scalar networks want a
    lower rate, and convolutions make do with fewer steps an update."""
    shape, sigma, n = SHAPES[config.dataset], config.sigma, config.n_short
    d, half, few = math.prod(shape), max(config.width // 2, 1), {"n_langevin": max(config.n_langevin // 2, 1)}
    scalar = {"learning_rate": config.learning_rate / 4}

    def contender(trunk, share, sigma, changes):
        energy = Energy(trunk, sigma, label_biases(trunk, d, config.n_clusters)).to(memory_format=torch.channels_last)
        return Contender(energy, max(int(share * n), 2), changes)

    return {
        "auto-encoder": Contender(AutoEncoderEnergy(1, d, config.width, sigma, config.n_clusters), n, {}),
        "auto-encoder, ReLU": contender(mlp(d, config.width, d, nn.ReLU, n_hidden=1), 0.7, sigma, {}),
        "conv. auto-encoder": contender(conv_autoencoder(shape), 2.0, 1.5 * sigma, few),
        "MLP": contender(mlp(d, half), 0.3, 1.0, scalar),
        "MLP, ReLU": contender(mlp(d, half, activation=nn.ReLU), 0.3, 1.0, scalar),
        "MLP, spectral norm": contender(mlp(d, half, norm=spectral_norm), 0.25, 1.0, scalar),
        "conv.": contender(conv(shape), 0.16, 1.0, scalar | few),
        "conv., max pool": contender(conv(shape, pool=nn.MaxPool2d), 0.16, 1.0, scalar | few),
        "residual": contender(residual(shape), 0.08, 1.0, scalar | few),
    }


class Contest(NamedTuple):
    """What an architecture reached: its seconds, samples (n, d), their Fréchet distance and two-sample accuracy, each with
    its standard error, and its updates."""

    seconds: float
    drawn: torch.Tensor
    frechet: float
    sem: float
    told: float
    told_sem: float
    n_updates: int


def compare_architectures(run):
    """{name: Contest}: each trained alike, and sampled from noise."""
    config, x, found = run.config, images(run)[0], {}
    labels = find_clusters(x, config.n_clusters, run.seed)
    y = shared_out(labels, 1, config.n_samples // 4)[0]
    for name, (energy, n_updates, changes) in contenders(config).items():
        start, changed = time.perf_counter(), replace(brief(config, n_updates), **changes)
        trainer = Trainer(energy.to(run.device), x, changed, labels).run(n_updates, name)
        seconds, n_steps = time.perf_counter() - start, max(config.n_from_noise // 6, 1)
        drawn = own_random_stream(draw)(run, trainer, n_steps, y=y, n=len(y))
        found[name] = Contest(seconds, drawn, *frechet_and_sem(run, drawn), *two_sample_accuracy(run, drawn), n_updates)
    return found


def clusters_alone(run, n):
    """n images (n, d) of a round Gaussian for each cluster: what the clusters know without any energy."""
    x = images(run)[0]
    labels = find_clusters(x, run.config.n_clusters, run.seed)
    parts = [in_float64(x[labels == k]) for k in labels.unique()]
    variances = [np.full(x.shape[1], part.var(0).mean() + 1e-6) for part in parts]
    mixture = MixtureOfGaussians(
        np.array([len(p) for p in parts]) / len(x), np.stack([p.mean(0) for p in parts]), np.stack(variances)
    )
    return draw_mixture(mixture, n, np.random.default_rng(run.seed)).to(run.device)


def real_images_by_share(run, n):
    """n training images (n, d), of each cluster by its share, as samples are drawn: at random a few would be uneven."""
    x = images(run)[0]
    labels = find_clusters(x, run.config.n_clusters, run.seed)
    return x[Labelled(labels).like(shared_out(labels, 1, n)[0])]


def batch_norm_leak(energy, x):
    """By how much E(xᵢ) changes when the other images of the batch change, root mean square over i; x (1, 2B, d)."""
    half = x.shape[1] // 2
    together, apart = energy(x)[:, :half], energy(x[:, :half])
    return (together - apart).square().mean().sqrt().item()


def measure_leaks(run):
    """{with or without batch norm: the leak, in standard deviations of the energy}, of fresh convolutional energies."""
    x, leaks = images(run)[0][:64], {}
    torch.manual_seed(run.seed)
    for name, between in (("with", nn.BatchNorm2d), ("without", nn.Identity)):
        energy = Energy(conv(SHAPES[run.config.dataset], between=between)).to(run.device)
        nn.init.normal_(energy.trunk[-1].weight, std=0.1)
        leaks[name] = batch_norm_leak(energy, x[None]) / energy.trunk(x).std().item()
    return leaks


def hardest_to_tell(found):
    """Names of {name: Contest}, the one with the least two-sample accuracy first, and those within two standard errors."""
    best, *others = sorted(found, key=lambda name: found[name].told)
    limits = {name: 2 * math.hypot(found[best].told_sem, found[name].told_sem) for name in others}
    return [best, *(name for name in others if found[name].told - found[best].told <= limits[name])]


def draw_architectures(found, alone, floor, shape):
    """Every architecture's distance and two-sample accuracy, and samples of each kind and of the one hardest to tell."""
    fig, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained", width_ratios=(1, 1, 1.1))
    names = sorted(found, key=lambda name: found[name].told, reverse=True)
    means, errors = zip(*((found[name].frechet, found[name].sem) for name in names), strict=True)
    axes[0].barh(names, means, xerr=errors, color="tab:orange")
    nearer = sum(mean < alone.frechet for mean in means)
    axes[0].set(
        title=f"nearer than the clusters alone: {nearer} of {len(found)}",
        xlabel="Fréchet distance of samples from noise",
        xscale="log",
    )
    best, *others = hardest_to_tell(found)
    means, errors = zip(*((found[name].told, found[name].told_sem) for name in names), strict=True)
    axes[1].barh(names, means, xerr=np.nan_to_num(errors), color="tab:orange")
    axes[1].set(
        title=f"hardest to tell: {best}" + (f"\n(not told from it: {len(others)} more)" if others else ""),
        xlabel="two-sample accuracy (0.5: alike)",
        xlim=(0.5, 1),
        yticks=[],
    )
    for ax, value, real in ((axes[0], alone.frechet, floor), (axes[1], alone.told, 0.5)):
        ax.axvline(value, color="0.5", ls=":", label=f"the clusters alone, {value:.2f}")
        ax.axvline(real, color="k", ls="--", label=f"real images, {real:.2f}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
    kinds = {"auto-encoder", "conv. auto-encoder", "MLP", "conv.", "residual", names[-1]}
    shown = [name for name in names[::-1] if name in kinds]
    show_rows(axes[2], [found[name].drawn[:10] for name in shown], shown, shape, "their samples from noise")
    return fig


def section_architectures(run):
    """What some seconds on a CPU buy each shape: energies that reconstruct, and scalar networks that have hardly begun."""
    config, n = run.config, run.config.n_samples // 4  # as many images of each: the distance depends on it
    noise = frechet_to_test(run, torch.randn(n, images(run)[0].shape[1], device=run.device))
    floor, alone = frechet_to_test(run, real_images_by_share(run, n)), scores_of(run, clusters_alone(run, n))
    run.metric("pure noise: Frechet distance", noise, against=("real images", floor))
    run.metric("clusters alone: Frechet distance", alone.frechet, alone.sem, ("real images", floor))
    run.metric("clusters alone: two-sample accuracy", alone.told, alone.told_sem, ("alike", 0.5))
    found = compare_architectures(run)
    for name, contest in found.items():
        run.metric(f"{name}: training (s)", contest.seconds)
        run.metric(f"{name}: Frechet distance", contest.frechet, contest.sem, ("clusters alone", alone.frechet))
        run.metric(f"{name}: two-sample accuracy", contest.told, contest.told_sem, ("clusters alone", alone.told))
    for name, leak in measure_leaks(run).items():
        run.metric(f"neighbours move E, {name} batch norm (std)", leak, against=("a function of x alone", 0))
    run.figure(draw_architectures(found, alone, floor, SHAPES[config.dataset]), "frechet")
    scalar = min((name for name in found if "auto" not in name), key=lambda name: found[name].told)
    best = " or ".join(hardest_to_tell(found))
    run.say(f"hardest to tell: {best}, {min(contest.told for contest in found.values()):.2f}; of the scalar networks, after "
            f"{found[scalar].n_updates} updates, {scalar}, {found[scalar].told:.2f}")  # fmt: skip


# %% 2. The training loop
# Phase by phase. *Positive*: a batch of data with a little noise, which gives the model's density a width that Langevin's
# step can follow (module 01: stable only for ε < 4 s² where a mode has standard deviation s). *Negative*: chains from the
# replay buffer, moved by eq. (2) with the weights held still. They are data for the loss: nothing is differentiated through
# them. *Loss*: mean E(data) - mean E(chains) + λ mean E². Its gradient, but for the last term, is minus eq. (1); its value
# hovers near 0 whatever the model is worth, since both terms move together. *Adam* divides a gradient by its own running
# size, so shortening gradients that are always longer than the limit (clipping at 5 here) only normalises what is
# normalised anyway. Against divergence at a high rate helps a warm-up: else Adam steps at full length from the first
# update, while chains are still noise.
#
# The buffer is persistent CD (Tieleman 2008; module 05), with one change: a chain restarts from noise with some probability
# at each visit (Du & Mordatch 2019). Without it the model is never asked what lies between noise and digits, and puts
# rubbish there; with too much of it no chain grows old, and the model is never asked where its chains end. At 1 % there are
# chains of all ages, from no steps to thousands.
#
# First the whole of it, plainly: with `PlainEnergy` above this is a program. All that follows it is faster, or watches.


def plain_langevin(energy, x, n_steps, step_size):
    """Eq. (2) at T = 1 from x (B, d); returns the last points, detached."""
    for _ in range(n_steps):
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(energy(x).sum(), x)
        x = x - step_size / 2 * slope + step_size**0.5 * torch.randn_like(x)
    return x.detach()


def plain_training(energy, x, n_updates=4000, n_chains=512, batch_size=64, n_langevin=20, step_size=0.01, data_noise=0.2):
    """Maximum likelihood of images x (N, d) in [-1, 1], eq. (1); returns the average of the weights."""
    adam, average = torch.optim.Adam(energy.parameters()), copy.deepcopy(energy)
    buffer = torch.randn(n_chains, x.shape[1])  # chains begin as noise
    for update in range(n_updates):
        visited = torch.arange(batch_size) + update * batch_size % n_chains
        fresh, chains = torch.rand(batch_size) < 0.01, buffer[visited]
        chains[fresh] = torch.randn(int(fresh.sum()), x.shape[1])
        chains = buffer[visited] = plain_langevin(energy, chains, n_langevin, step_size)
        data = x[torch.randint(len(x), (batch_size,))]
        data = data + data_noise * torch.randn_like(data)
        e_data, e_chains = energy(data), energy(chains)
        loss = e_data.mean() - e_chains.mean() + 1e-5 * (e_data.square().mean() + e_chains.square().mean())
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = 4e-3 * (1 - update / n_updates) * min(1, (update + 1) / 200)  # a warm-up, then down
        adam.step()
        memory = min(0.999, (update + 1) / (update + 11))  # little at first
        for mean, weight in zip(average.parameters(), energy.parameters(), strict=True):
            mean.data.lerp_(weight.data, 1 - memory)
    return average


# The same, faster: the gradient by hand, chains moved in place, several networks side by side, and everything watched.


# Differs from 01_ebm_foundations.py: langevin - moves x in place, by energy.slope
@torch.no_grad()
def langevin(energy, x, n_steps, step_size, temperature=1.0, y=None, keep=None):
    """Move chains x (n, B, d), in place, by eq. (2); y are their classes. `temperature` may be a list, one a step."""
    noise, temperatures = torch.empty_like(x), np.broadcast_to(temperature, n_steps)
    for step in range(n_steps):
        x.sub_(energy.slope(x, y), alpha=step_size / 2)
        x.add_(noise.normal_(), alpha=math.sqrt(step_size * temperatures[step]))
        if keep:
            keep(step + 1, x)
    return x


class Start:
    """The noise that chains start from, made of standard noise z (..., d) for labels y (...): z itself, or with the mean and
    the spread that each pixel has among the images x (N, d) of that label y_data (N,), and the noise added to them, as if
    pixels were independent (`--start pixels`)."""

    def __init__(self, config, x, y_data=None):
        self.mean, self.spread = torch.zeros_like(x[:1]), torch.ones_like(x[:1])
        if config.start == "pixels":
            parts = [x] if y_data is None else [x[y_data == k] for k in range(int(y_data.max()) + 1)]
            self.mean = torch.stack([part.mean(0) for part in parts])
            self.spread = torch.stack([(part.var(0, correction=0) + config.data_noise**2).sqrt() for part in parts])

    def __call__(self, z, y=None):
        label = 0 if len(self.mean) == 1 else y
        return self.mean[label] + self.spread[label] * z


class ReplayBuffer:
    """Persistent chains in one tensor (n_blocks, n, B, d), visited block after block: no list, no copies. They have labels y
    (n_blocks, B) or none, the same for all networks; `start` makes the noise that they start from of standard noise."""

    def __init__(self, n_blocks, n_networks, batch_size, d, reinit, device, start=lambda z, y: z, y=None):
        noise = torch.randn(n_blocks, n_networks, batch_size, d, device=device)
        self.chains, self.at = start(noise, None if y is None else y[:, None]), -1
        self.reinit, self.start, self.y = reinit, start, y

    def y_now(self):
        """The labels (B,) of the chains in the block of the moment."""
        return None if self.y is None else self.y[self.at]

    def next(self):
        """The next block, a view (n, B, d) to be moved in place; a chain restarts from noise with chance `reinit`."""
        self.at = (self.at + 1) % len(self.chains)
        block = self.chains[self.at]
        flat = block.view(-1, block.shape[-1])
        fresh = (torch.rand(len(flat), device=flat.device) < self.reinit).nonzero()[:, 0]
        y = None if self.y is None else self.y_now().repeat(len(block))[fresh]
        flat.index_copy_(0, fresh, self.start(flat.new_empty(len(fresh), flat.shape[1]).normal_(), y))
        return block


# Labels: where an energy is conditional, on classes (part 8) or on clusters (part 4), chains keep the label that they were
# born with, and *both phases carry the same labels*: the data of an update are drawn for its chains, image by image. Else
# the gap would hold a difference of labels, which no energy can close.


def shared_out(y, n_blocks, n):
    """Labels (n_blocks, n) for chains: among all, and nearly in each block, every label has its share of the labels y (N,).
    In random order within a block."""
    share = (2 * torch.arange(n_blocks * n, device=y.device) + 1) * len(y) // (2 * n_blocks * n)
    blocks = y.sort().values[share].view(n, n_blocks).T
    return blocks.gather(1, torch.rand(n_blocks, n, device=y.device).argsort(1))


class Labelled:
    """Draws rows of a data set by their labels y (N,)."""

    def __init__(self, y):
        self.rows, self.count = y.argsort(), torch.bincount(y)
        self.first = self.count.cumsum(0) - self.count

    def like(self, y):
        """For each label of y (B,) the number of a random row that bears it, (B,)."""
        return self.rows[self.first[y] + (torch.rand(len(y), device=y.device) * self.count[y]).long()]


def brief(config, n_updates):
    """Settings for a training of so few updates that the warm-up would take most of them: a tenth is enough."""
    return replace(config, warm_up=max(min(config.warm_up, n_updates // 10), 1))


CURES = "try a smaller --step-size or --learning-rate, more --n-langevin, smoother activations (SiLU, not ReLU), a larger "
CURES += "--energy-l2, or an earlier checkpoint"


class Diverged(SystemExit):
    """Energies that are not finite, or so far apart that they will not meet again."""


def must_stay_near(*images):
    """End the run in one line if sampled images, whose grey levels belong into [-1, 1], are lost: clipped before they are
    scored, they would look like images."""
    if not all((x.abs() < 1000).all() for x in images):  # nan is not less either
        sys.exit(f"sampling diverged: {CURES}")


# Differs from 05_contrastive_divergence.py: Trainer - of a deep energy, and all that a checkpoint holds
class Trainer:
    """A training and its whole state: energy, optimiser, average of the weights, chains, history.

    x_data (N, d) in [-1, 1]; y_data (N,) for conditional energies, whose chains keep their label.
    """

    def __init__(self, energy, x_data, config, y_data=None, temperature=1.0):
        self.energy, self.x, self.config, self.temperature = energy, x_data, config, temperature
        self.model = nn.parallel.DistributedDataParallel(energy) if joined() else energy
        self.average = copy.deepcopy(energy).requires_grad_(False)
        self.optimiser = torch.optim.Adam(energy.parameters(), config.learning_rate, fused=True)
        self.n_networks = getattr(energy, "w1", torch.empty(1)).shape[0]
        b, d, device = config.batch_size, x_data.shape[1], x_data.device
        n_blocks = max(config.n_chains // b, 1)
        y = None if y_data is None else shared_out(y_data, n_blocks, b)
        self.buffer = ReplayBuffer(n_blocks, self.n_networks, b, d, config.reinit, device, Start(config, x_data, y_data), y)
        self.label(y_data)
        self.step, self.history = 0, []  # of (E data, E chains, gradient norm, movement), one row an update

    def label(self, y_data):
        """Give the data their labels (N,), or none, and chains the start that goes with them."""
        self.y, self.labelled = y_data, None if y_data is None else Labelled(y_data)
        self.buffer.start = Start(self.config, self.x, y_data)

    def starts(self, n, y=None):
        """Noise (n_networks, n, d) that n chains, of labels y (n,), start from."""
        return self.buffer.start(torch.randn(self.n_networks, n, self.x.shape[1], device=self.x.device), y)

    def positives(self):
        """A noisy batch (n, B, d) of data, with the labels of the chains of the moment."""
        shape, y = (self.n_networks, self.config.batch_size, self.x.shape[1]), self.buffer.y_now()
        if y is None:
            rows = torch.randint(len(self.x), (shape[0] * shape[1],), device=self.x.device)
        else:
            rows = self.labelled.like(y.repeat(shape[0]))
        x = self.x.index_select(0, rows).view(shape)
        return torch.randn_like(x).mul_(self.config.data_noise).add_(x)

    def negatives(self):
        """Chains (n, B, d) from the buffer, moved; and how far they went, a root mean square a pixel."""
        c, x = self.config, self.buffer.next()
        start = x.clone()
        langevin(self.energy, x, c.n_langevin, c.step_size, self.temperature, self.buffer.y_now())
        return x, (x - start).square().mean().sqrt()

    def update(self, rate):
        """Two phases, and one step of Adam at this learning rate."""
        x_model, movement = self.negatives()
        row = self.learn(self.positives(), x_model, self.buffer.y_now(), rate)
        self.history.append([*row, movement.item()])
        self.step += 1

    def learn(self, x_data, x_model, y, rate):
        """One step of Adam on the loss and of the weights' average; returns the row of the history, without movement.
        Raises Diverged before the weights are touched."""
        y = None if y is None else y.repeat(2)  # the same labels in both phases
        e_data, e_model = self.model(torch.cat([x_data, x_model], 1), y).chunk(2, 1)
        size = self.config.energy_l2 * (e_data.square().mean(1) + e_model.square().mean(1))
        self.optimiser.zero_grad()
        (e_data.mean(1) - e_model.mean(1) + size).sum().backward()
        row = torch.stack([e_data.mean(), e_model.mean(), self.gradient_norm()]).tolist()
        if not all(map(math.isfinite, row)) or abs(row[0] - row[1]) > 100 * self.x.shape[1]:
            raise Diverged(f"the run diverged at update {self.step + 1}: energies {row[0]:.3g} and {row[1]:.3g}; {CURES}")
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        memory = min(self.config.ema, (self.step + 1) / (11 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.energy.parameters()), 1 - memory)
        return row

    def gradient_norm(self):
        """The length of each network's gradient, their mean."""
        squares = torch._foreach_norm([p.grad for p in self.energy.parameters()])
        return torch.stack(squares).norm() / self.n_networks**0.5

    def run(self, n_updates, label, save=None):
        """Go on to update `n_updates`, the rate rising at first and falling linearly to 0; save(self) every checkpoint_every
        updates."""
        bar = Progress(range(self.step, n_updates), label, initial=self.step, total=n_updates)
        for step in bar:
            warm = min(1, (step + 1) / self.config.warm_up)
            self.update(self.config.learning_rate * warm * (1 - step / n_updates))
            if step % 50 == 0:
                names = ("data", "chains", "gradient", "moved")
                bar.set_postfix(dict(zip(names, (f"{v:.3g}" for v in self.history[-1]), strict=True)))
            if self.step % self.config.checkpoint_every == 0 or self.step == n_updates:
                if not all(p.isfinite().all() for p in self.energy.parameters()):
                    raise Diverged(f"the run diverged at update {self.step}: weights are not finite; {CURES}")
                if save:
                    save(self)
        return self


def travel(energy, x, n_steps, step_size, temperature=1.0, y=None):
    """langevin, on a CPU 250 chains (1, N, d) at a time: what they need then stays in the cache."""
    size = 250 if x.device.type == "cpu" else x.shape[1]
    for first in range(0, x.shape[1], size):
        part = slice(first, first + size)
        langevin(energy, x[:, part], n_steps, step_size, temperature, None if y is None else y[part])
    return x


def denoised(run, energy, x, y=None, temperature=1.0):
    """x - s² ∇E(x)/T, (1, N, d) -> (N, d): the mean of the clean image given x, if exp(-E/T) is the density of noisy data
    and s the noise (module 06, Tweedie's formula)."""
    clean = (x - run.config.data_noise**2 / temperature * energy.slope(x, y))[0]
    must_stay_near(x, clean)
    return clean


# Differs from 06_score_matching.py: draw - by Langevin dynamics from noise
@torch.no_grad()
def draw(run, trainer, n_steps, temperature=1.0, y=None, n=None):
    """Images (N, d) from noise by `n_steps` of eq. (2), and one step of denoising."""
    energy, x = trainer.average, trainer.starts(n or run.config.n_samples, y)
    return denoised(run, energy, travel(energy, x, n_steps, trainer.config.step_size, temperature, y), y)


# T = 1 is a promise: eq. (2) then samples exp(-E), up to its step. The popular *cold* recipe, a step α on E and noise of
# standard deviation η with η² << 2α, is eq. (2) with
#
#     ε = 2α,    T = η²/(2α):       α = 10, η = 0.005 gives T = 1.25e-6.
#
# It fits exp(-E/T), so E is no log density; and if only the noise is made smaller, its chains, which nearly descend, do not
# reach exp(-E/T) either. But the same training has a cold form: with E' = T E, that is σ' = σ/√T in eq. (3), and ε' = ε/T,
#
#     ½ ε' ∇E' = ½ ε ∇E,      ε' T = ε,
#
# every step of eq. (2) is what it was, and the loss is T times the loss, which Adam does not see. Then E'/T is as good a log
# density as E. One number shows all this: x - s² ∇E(x) removes noise of standard deviation s as well as anything can if
# exp(-E) is the density of the noisy data (module 06).


def made_cold(config, temperature):
    """Settings of the same training at another temperature: E' = T E, ε' = ε/T, λ' = λ/T, so that λ' E'² = T λ E²."""
    sigma, step_size = config.sigma / temperature**0.5, config.step_size / temperature
    return replace(config, sigma=sigma, step_size=step_size, energy_l2=config.energy_l2 / temperature)


def denoising_db(run, energy, level, temperature=1.0):
    """Peak signal-to-noise ratio (dB) of the mean squared error, over test images, after one step x - level² ∇E(x)/T from
    noise of that level."""
    clean = images(run)[1][: run.config.n_samples]
    noisy = clean + level * torch.randn_like(clean)
    error = (noisy - level**2 * energy.slope(noisy[None])[0] / temperature - clean).square().mean(1)
    return (10 * (4 / error.mean()).log10()).item()  # grey levels span 2


def theory_noisy_db(level):
    """Peak signal-to-noise ratio (dB) of noise of standard deviation `level` on grey levels that span 2."""
    return 20 * math.log10(2 / level)


def theory_free_diffusion(n_steps, step_size, temperature=1.0):
    """Root mean square (a pixel) that a chain moves in `n_steps` of eq. (2) where E is flat."""
    return math.sqrt(n_steps * step_size * temperature)


class Tempered(NamedTuple):
    """A training at a temperature: its history (n, 4), samples' Fréchet distance and error, denoising (dB) by E and E/T."""

    temperature: float
    history: np.ndarray
    frechet: float
    sem: float
    db: float
    db_over_t: float


def compare_temperatures(run, cold=0.01):
    """{recipe: Tempered}: at T = 1, with less noise only, and at that temperature with σ and ε to match."""
    config, x, found = brief(run.config, run.config.n_short), images(run)[0], {}
    recipes = {"T = 1": (config, 1.0), "less noise": (config, cold), "cold, consistent": (made_cold(config, cold), cold)}
    for name, (changed, temperature) in recipes.items():
        torch.manual_seed(run.seed)  # the same weights, chains, data and noise for all
        energy = AutoEncoderEnergy(1, x.shape[1], config.width, changed.sigma).to(run.device)
        trainer = Trainer(energy, x, changed, temperature=temperature).run(config.n_short, name)
        ends = trainer.starts(config.n_samples)
        travel(trainer.average, ends, config.n_from_noise // 3, changed.step_size, temperature)
        clean = denoised(run, trainer.average, ends, temperature=1 if name == "less noise" else temperature)
        dbs = [denoising_db(run, trainer.average, config.data_noise, t) for t in (1, temperature)]
        found[name] = Tempered(temperature, np.array(trainer.history), *frechet_and_sem(run, clean), *dbs)
    return found


class Divergence(NamedTuple):
    """When a step too wide was set, at which update it was noticed (or None), and the update that was kept (-1: spoilt)."""

    set_at: int
    noticed_at: int | None
    kept: int


def provoke_divergence(run, path):
    """A training that is sound for a while, saved to `path`, and then steps far beyond the 4 s² of module 01."""
    config, warm = run.config, min(50, run.config.n_short // 2)
    doomed = Trainer(build(config).to(run.device), images(run)[0], config).run(warm, "sound")
    save_checkpoint(doomed, path)
    doomed.config, noticed_at = replace(config, step_size=100 * config.step_size), None
    try:
        doomed.run(config.n_short, "too wide")
    except Diverged:
        noticed_at = doomed.step + 1
    load_checkpoint(doomed, path)
    sound = all(p.isfinite().all() for p in doomed.energy.parameters())
    return Divergence(warm, noticed_at, doomed.step if sound else -1)


def draw_diagnostics(found, free):
    """What to watch: energies, their gap, the gradient's length, and how far chains move; {recipe: Tempered}."""
    fig, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained", sharex=True)
    energies, gap, gradient, movement = axes.flat
    for (name, recipe), colour in zip(found.items(), ("tab:orange", "tab:blue"), strict=False):
        e_data, e_model, norm, moved = recipe.history.T
        energies.plot(e_data, color=colour, label=f"{name}: data")
        energies.plot(e_model, color=colour, alpha=0.4, label=f"{name}: chains")
        for ax, values in ((gap, e_data - e_model), (gradient, norm), (movement, moved)):
            ax.plot(values, color=colour, lw=1, label=name)
    energies.set(title="energies of data and chains", ylabel="E (nats)", yscale="symlog")
    gap.axhline(0, color="k", ls="--", lw=1)
    gap.set(title="their gap: around 0 once chains keep up", ylabel="data minus chains (nats)", yscale="symlog")
    gradient.set(title="the gradient's length: Adam divides by it", xlabel="update", ylabel="norm", yscale="log")
    movement.axhline(free, color="k", ls="--", label="free diffusion at T = 1")
    movement.set(title="how far chains move between updates", xlabel="update", ylabel="rms a pixel")
    for ax in axes.flat:
        ax.legend()
    return fig


def record_temperatures(run, found):
    """The metrics of {recipe: Tempered}: E beside no denoising, E/T beside E at T = 1, which it is if all is consistent."""
    none = ("noise left as it is", theory_noisy_db(run.config.data_noise))
    for name, recipe in found.items():
        gap = np.subtract(*recipe.history.T[:2])
        run.metric(f"{name}: Frechet distance", recipe.frechet, recipe.sem)
        run.metric(f"{name}: denoising by E (dB)", recipe.db, against=none)
        if recipe.temperature != 1:
            proper, within = ("E at T = 1", found["T = 1"].db_over_t), 0.05 if "consistent" in name else None  # rounding
            run.metric(f"{name}: denoising by E/T (dB)", recipe.db_over_t, None, proper, within)
        run.metric(f"{name}: late gap, mean (nats)", gap[len(gap) // 2 :].mean(), against=("chains that keep up", 0))


def section_loop(run):
    """One loop: data down, chains up; its energies, gap, gradient and chains are watched, and a divergence is stopped."""
    config, found = run.config, compare_temperatures(run)
    record_temperatures(run, found)
    stopped = provoke_divergence(run, run.out / "loop_last_good.pt")
    if stopped.noticed_at is not None:
        run.metric("divergence noticed at update", stopped.noticed_at, against=("step too wide after", stopped.set_at))
    run.metric("last good state: update", stopped.kept, None, ("written at", stopped.set_at), 0)
    run.figure(draw_diagnostics(found, theory_free_diffusion(config.n_langevin, config.step_size)), "diagnostics")
    lost = {name: found["T = 1"].db_over_t - recipe.db_over_t for name, recipe in found.items()}
    apart = f"with sigma and step to match {abs(lost['cold, consistent']):.2f} dB apart"
    run.say(f"less noise alone: E/T denoises {lost['less noise']:.1f} dB worse than E does at T = 1; {apart}")


# %% 3. In two dimensions, where truth is known
# On a grid Z is a sum, so log p is exact at every moment of the training. The contrastive loss is not a likelihood: it is
# a difference of two averages that a good trainer brings to 0 long before it is done, and a bad one too.
#
# What does the image recipe lack here? Between two updates a chain must reach where the model has its mass *now*, and with
# few steps it does not. Restarts help and do not suffice: they bring chains to all modes, but in the proportions in which
# noise falls into them, not in the model's; chains that never restart stay in the modes that they found first. Module 06's
# repair: chains start from the model's own first density, with weights,
#
#     log w <- log w + E_old(x) - E_new(x)      at every update of the energy, then x moves by MALA under E_new,       (5)
#
# and a new set is drawn from them when the effective sample size falls under half (Carbone et al. 2023).

BOX = 2.0  # the plane's window [-2, 2]²


def eight_gaussians(n, device="cpu"):
    """n points (n, 2) from eight Gaussians, std 0.1, on a circle of radius 4/3."""
    angle = torch.randint(8, (n,), device=device) * (math.pi / 4)
    return 4 / 3 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2, device=device)


# Copied from 01_ebm_foundations.py: energy_and_grad
def energy_and_grad(energy, x):
    """E(x) (B,) and ∇E(x) (B, ...), both detached."""
    x = x.detach().requires_grad_(True)
    e = energy(x)
    (grad,) = torch.autograd.grad(e.sum(), x)  # of the sum: rows do not see each other
    return e.detach(), grad


# Copied from 01_ebm_foundations.py: accept
def accept(log_ratio, new, old):
    """Metropolis' test, chain by chain: (accepted (B,), each tensor of `new` where accepted and of `old` elsewhere)."""
    yes = torch.rand_like(log_ratio).log() < log_ratio  # a nan is a no
    return yes, *(torch.where(yes.reshape(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True))


# Copied from 01_ebm_foundations.py: mala
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


# Copied from 06_score_matching.py: resample
def resample(log_w):
    """Indices (N,) by systematic resampling (one uniform number, N even strides) in proportion to exp(log_w) (N,)."""
    n, cumulative = len(log_w), log_w.softmax(0).cumsum(0)
    strides = (torch.arange(n, device=log_w.device) + torch.rand(1, device=log_w.device)) / n
    return torch.searchsorted(cumulative, strides).clamp(max=n - 1)


def plane_energy(device):
    """E (n, B) of points (n, B, 2): in two dimensions a network is smooth unless it starts rough."""
    trunk = mlp(2, 128)
    nn.init.normal_(trunk[0].weight, std=3.0)
    return Energy(trunk).to(device)


class Way(NamedTuple):
    """How chains follow the energy: MALA with the weights of eq. (5), or Langevin steps and a chance to restart."""

    n_steps: int
    restart: float = 0.0
    is_weighted: bool = False


WAYS = {
    "weighted": Way(4, is_weighted=True),
    "20 steps, restarts": Way(20, 0.02),
    "20 steps, no restarts": Way(20),
    "4 steps, restarts": Way(4, 0.02),
    "4 steps, no restarts": Way(4),
}


class Trace(NamedTuple):
    """A training in the plane: its average energy, and rows (update, contrastive loss, exact gap)."""

    energy: Energy
    rows: np.ndarray


def train_in_2d(way, n_updates, n_chains, device, label):
    """Maximum likelihood on eight Gaussians, all chains moved between two updates."""
    energy, x, log_w = plane_energy(device), torch.randn(n_chains, 2, device=device), torch.zeros(n_chains, device=device)
    average, rows = copy.deepcopy(energy).requires_grad_(False), []
    optimiser = torch.optim.Adam(energy.parameters(), 3e-3, betas=(0.9, 0.99))

    def flat(y):
        return energy(y[None])[0]

    for step in Progress(range(n_updates), label):
        data, optimiser.param_groups[0]["lr"] = eight_gaussians(400, device), 3e-3 * (1 - step / n_updates)
        loss = flat(data).mean() - (log_w.softmax(0) * flat(x)).sum()
        optimiser.zero_grad()
        loss.backward()
        if (
            way.is_weighted
        ):  # eq. (5)'s move, one turn later: the last E_new. The gradient has not seen where it will be weighed
            x, _ = mala(flat, x, way.n_steps, 0.01)
        with torch.no_grad():
            before = flat(x)
            nn.utils.clip_grad_norm_(energy.parameters(), 1.0)
            optimiser.step()
            torch._foreach_lerp_(list(average.parameters()), list(energy.parameters()), 0.02)
            if way.is_weighted:
                log_w += before - flat(x)
                if (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp() < n_chains / 2:
                    x, log_w = x[resample(log_w)], torch.zeros_like(log_w)
            else:
                fresh = torch.rand(n_chains, 1, device=device) < way.restart
                x = langevin(energy, torch.where(fresh, torch.randn_like(x), x)[None], way.n_steps, 0.01)[0]
        if step % max(n_updates // 40, 1) == 0:
            rows.append((step, loss.item(), exact_gap(energy, 100)[0]))
    return Trace(average, np.array(rows))


def eight_gaussians_log_density(x):
    """The exact log density of `eight_gaussians`, x (N, 2) -> (N,)."""
    angle = torch.arange(8, device=x.device) * (math.pi / 4)
    distance = (x[:, None] - 4 / 3 * torch.stack([angle.cos(), angle.sin()], 1)).square().sum(-1)
    return (-distance / (2 * 0.1**2)).logsumexp(1) - math.log(8 * 2 * math.pi * 0.1**2)


@torch.no_grad()
def exact_gap(energy, n=160):
    """KL(data || model) in nats, by an n² midpoint grid on the window (mass outside it is not seen), and the model's
    density (n, n)."""
    middle = ((torch.arange(n, device=next(energy.parameters()).device) + 0.5) / n * 2 - 1) * BOX
    points, log_area = torch.cartesian_prod(middle, middle), 2 * math.log(2 * BOX / n)
    log_p, e = eight_gaussians_log_density(points), energy(points[None])[0]
    log_model = -e - (-e).logsumexp(0) - log_area
    return ((log_p + log_area).exp() * (log_p - log_model)).sum().item(), log_model.exp().reshape(n, n)


def train_all_ways(run):
    """{way: Trace}, each from the same random numbers."""
    traces = {}
    for name, way in WAYS.items():
        torch.manual_seed(run.seed)
        traces[name] = train_in_2d(way, run.config.n_2d, run.config.n_samples // 4, run.device, name)
    return traces


def draw_ways(traces, gaps):
    """Loss and exact gap of every way, and the density that the first one ends with."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=(1, 1, 0.8))
    for (name, trace), colour in zip(traces.items(), ("tab:orange", "tab:blue", "tab:green", "0.6", "k"), strict=True):
        axes[0].plot(trace.rows[:, 0], trace.rows[:, 1], color=colour, lw=1)
        axes[1].plot(trace.rows[:, 0], trace.rows[:, 2], color=colour, lw=2, label=f"{name}: {gaps[name]:.2f}")
    axes[0].axhline(0, color="k", ls="--", lw=1)
    axes[0].set(title="the contrastive loss", xlabel="update", ylabel="contrastive loss (nats)", yscale="symlog")
    axes[1].set(title="the exact gap tells who learns", xlabel="update", ylabel="KL(data || model), nats", yscale="log")
    fig.legend(loc="outside lower left", ncols=5, title="averaged weights at the end, nats")
    first = next(iter(traces))
    density = to_numpy(exact_gap(traces[first].energy)[1])
    axes[2].imshow(density.T, origin="lower", cmap="magma", extent=(-BOX, BOX, -BOX, BOX))
    axes[2].set(title=f"density, {first}: {gaps[first]:.2f} nats", xlabel="$x_1$", ylabel="$x_2$")
    return fig


def section_truth2d(run):
    """A contrastive loss near 0 says nothing: the exact likelihood tells which chains teach."""
    check_settings(run)
    traces = train_all_ways(run)
    gaps = {name: exact_gap(trace.energy)[0] for name, trace in traces.items()}
    losses = {name: mean_and_sem(trace.rows[len(trace.rows) // 2 :, 1]) for name, trace in traces.items()}
    for name, trace in traces.items():
        run.metric(f"{name}: gap (nats)", gaps[name], against=("the data's own log density", 0))
        beside = ("its gap, same updates", trace.rows[len(trace.rows) // 2 :, 2].mean())
        run.metric(f"{name}: late loss (nats)", *losses[name], against=beside)
    run.figure(draw_ways(traces, gaps), "likelihood")
    best, *others = sorted(gaps, key=gaps.get)
    calm = min(others, key=lambda name: abs(losses[name][0]))
    run.say(f"{best}: {gaps[best]:.2f} nats from the data at a late loss of {losses[best][0]:+.2f}")
    run.say(f"{calm}: {gaps[calm]:.2f} nats at a loss of {losses[calm][0]:+.2f}: a loss near 0 is no likelihood")


# %% 4. Digits from noise
# Start chains at N(0, I), follow eq. (2), and clean the result once: the data had noise of standard deviation s added, so
# x - s² ∇E(x) is the mean of the clean image given the noisy one (module 06, Tweedie's formula).
#
# Langevin draws good digits long before it draws them in good proportions: hardly a chain turns from one kind of digit into
# another, so nothing ever tells the energy how much mass each kind has. But proportions are easy to have without an energy:
# split the training images into clusters by K-means (no labels), count, and write
#
#     p(x) = Σₖ πₖ exp(-E(x, k))/Zₖ,        πₖ the share of cluster k in the data,                               (4)
#
# where the clusters share all weights but the hidden biases. The likelihood of each p(x | k) is climbed as before, with
# data and chains of the same cluster in both phases; every Zₖ stays unknown, and is not needed: a sample's cluster is drawn
# by share. Three things make the recipe of part 2 one of eq. (4), and they can be copied: `find_clusters` for the data,
# `shared_out` for chains and samples, `Labelled` for batches.


def find_clusters(x, n_clusters, seed):
    """Labels (N,) of K-means on images (N, d); where they are many, its centres are found on 5,000 of them."""
    if n_clusters == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    seen, n_starts = in_float64(x), 10 if len(x) <= 5000 else 1
    means = KMeans(n_clusters, n_init=n_starts, random_state=seed).fit(seen[:5000])
    return torch.as_tensor(means.predict(seen), dtype=torch.int64, device=x.device)


class MixtureOfGaussians(NamedTuple):
    """K Gaussians: their weights (K,), means (K, d), and covariances (K, d, d), or variances (K, d)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


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


def draw_mixture(mixture, n, rng, by_share=True):
    """n images (n, d) of a mixture, clamped to [-1, 1]: of each Gaussian as many as its weight says, or at random."""
    k = rng.choice(len(mixture.weights), n, p=mixture.weights)
    if by_share:
        even = (rng.random() + np.arange(n)) / n
        k = rng.permutation(np.minimum(mixture.weights.cumsum().searchsorted(even), len(mixture.weights) - 1))
    noise, spread = rng.standard_normal((n, mixture.means.shape[1])), mixture.covariances
    noise = noise * np.sqrt(spread[k]) if spread.ndim == 2 else (np.linalg.cholesky(spread)[k] @ noise[..., None])[..., 0]
    return torch.as_tensor((mixture.means[k] + noise).clip(-1, 1), dtype=torch.float32)


@functools.cache
def mixture_of_run(run, with_labels):
    """The mixture fitted to the training images, to 20,000 of them where they are more, without or with their labels."""
    x, y = (part[:20_000] for part in images(run)[::2])
    size, labels = (run.config.n_a_class, y) if with_labels else (run.config.n_components, None)
    return fit_mixture(x, size, run.seed, labels)


def mixture_samples(run, n, with_labels=False, by_share=True):
    """n images (n, d) from the tuned mixture."""
    return draw_mixture(mixture_of_run(run, with_labels), n, np.random.default_rng(run.seed), by_share).to(run.device)


@functools.cache
@own_random_stream
def trained(run):
    """The training of `digits`, shared with two sections: (the trainer, its seconds), with --checkpoint and --resume."""
    config, rank = run.config, dist.get_rank() if joined() else 0
    torch.manual_seed(run.seed)
    energy = build(config, config.n_clusters).to(run.device)
    labels = find_clusters(images(run)[0], config.n_clusters, run.seed)
    torch.manual_seed(run.seed + 1_000_003 * rank)  # each rank its own data and chains
    trainer = Trainer(energy, images(run)[0], config, labels)
    if config.resume:
        others = load_checkpoint(trainer, config.resume)
        said = [f"--{name.replace('_', '-')} was {value}" for name, value in others]
        said += ["the training goes on with the random numbers of the old seed"] * ("seed" in dict(others))
        said += [f"--n-updates {config.n_updates} leaves nothing to train"] * (trainer.step >= config.n_updates)
        echo("; ".join([f"  {config.resume} goes on after update {trainer.step}", *said]))
    start, save = time.perf_counter(), (lambda t: save_checkpoint(t, config.checkpoint)) if config.checkpoint else None
    try:
        trainer.run(config.n_updates, config.dataset, save)
    except Diverged as error:
        written = config.checkpoint and trainer.step >= config.checkpoint_every
        sys.exit(f"{error}; {config.checkpoint} is the last good state" if written else str(error))
    return trainer, time.perf_counter() - start


def stiffest_curvature(energy, x, y=None, n_iterations=20):
    """The largest eigenvalue (n, B) of E's second derivative at x (n, B, d), by power iteration on differences of slopes."""
    direction, size = torch.randn_like(x), 1e-2
    for _ in range(n_iterations):
        direction = direction / direction.norm(dim=-1, keepdim=True)
        direction = (energy.slope(x + size * direction, y) - energy.slope(x - size * direction, y)) / (2 * size)
    return direction.norm(dim=-1)


def measure_curvature(trainer, n=100):
    """The stiffest curvature (nats per squared grey level) of the average energy at noisy training images and at noise,
    where chains start."""
    noise = torch.randn_like(trainer.x[:n])
    points = trainer.x[:n] + trainer.config.data_noise * noise, trainer.buffer.start(noise, trainer.y[:n])
    return [stiffest_curvature(trainer.average, x[None], trainer.y[:n]).max().item() for x in points]


def theory_stiffest(step_size):
    """4/ε: along a curvature beyond it every step of eq. (2) overshoots by more than it came, and the chain explodes."""
    return 4 / step_size


class Scores(NamedTuple):
    """How good a set of images is: Fréchet distance (standard error; with classes made even), two-sample accuracy (and its
    error), entropy of the classes, median distance to the nearest training image."""

    frechet: float
    sem: float
    even: float
    told: float
    told_sem: float
    entropy: float
    nearest: float


def scores_of(run, x):
    """Scores of images (N, d)."""
    even, nearest = frechet_to_test(run, even_classes(run, x)), nearest_distances(x, images(run)[0]).median().item()
    return Scores(*frechet_and_sem(run, x), even, *two_sample_accuracy(run, x), class_entropy(run, x), nearest)


def sample_and_score(run):
    """Images of the trained energy, of its two rivals and of the test set, {name: (N, d)}, and {name: Scores}."""
    config, (trainer, _) = run.config, trained(run)
    y = shared_out(trainer.y, 1, config.n_samples)[0]
    drawn = {
        "energy": draw(run, trainer, config.n_from_noise, y=y),
        "mixture": mixture_samples(run, config.n_samples),
        "labelled mixture": mixture_samples(run, config.n_samples, with_labels=True),
        "real images": images(run)[1],
    }
    return drawn, {name: scores_of(run, x) for name, x in drawn.items()}


def drawn_at_random(run):
    """{model: Fréchet distance} of samples whose clusters, or Gaussians, are drawn at random: what even shares are worth."""
    config, (trainer, _) = run.config, trained(run)
    y = trainer.y[torch.randint(len(trainer.y), (config.n_samples,), device=run.device)]
    drawn = {"energy": draw(run, trainer, config.n_from_noise, y=y)}
    drawn["mixture"] = mixture_samples(run, config.n_samples, by_share=False)
    return {name: frechet_to_test(run, x) for name, x in drawn.items()}


def start_alone(trainer, n):
    """n images (n, d) of the Gaussians that chains start from, without the data's noise: all that they know."""
    y = shared_out(trainer.y, 1, n)[0]
    start = Start(replace(trainer.config, data_noise=0.0), trainer.x, trainer.y)
    return start(torch.randn(n, trainer.x.shape[1], device=trainer.x.device), y).clamp(-1, 1)


def animate(run, trainer, name, n_frames=40):
    """GIF of 25 chains on their way from noise to digits, the later frames further apart."""
    shape, steps, y = SHAPES[run.config.dataset], 0, shared_out(trainer.y, 1, 25)[0]
    x = trainer.starts(25, y)
    fig, ax = plt.subplots(figsize=(3.6, 3.9), layout="tight")
    writer = PillowWriter(fps=6)
    with run.whole(name) as path:
        writer.setup(fig, path, dpi=70)  # not `saving`: interrupted before the first frame it hides why
        for mark in sorted({0, *np.geomspace(1, run.config.n_from_noise, n_frames).astype(int).tolist()}):
            langevin(trainer.average, x, mark - steps, run.config.step_size, y=y)
            must_stay_near(x)
            steps = mark
            ax.clear()
            show_images(ax, x[0], shape, 5, f"{steps} Langevin steps")
            writer.grab_frame()
        writer.finish()
    plt.close(fig)


def draw_mosaics(drawn, scores, shape):
    """Real images, and 64 of each model."""
    fig, axes = plt.subplots(1, 4, figsize=(14, 4), layout="constrained")
    for ax, name in zip(axes, ("real images", "energy", "mixture", "labelled mixture"), strict=True):
        distance = "" if name == "real images" else f": Fréchet {scores[name].frechet:.2f}"
        show_images(ax, drawn[name][:64], shape, 8, name + distance)
    return fig


def draw_copies_and_classes(run, drawn):
    """Samples above their nearest training images; how near those are; and how often each class is drawn."""
    fig, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    x, picks = images(run)[0], drawn["energy"][:24]
    nearest = x[torch.cdist(picks, x).argmin(1)]
    pairs = torch.stack([picks.unflatten(0, (-1, 8)), nearest.unflatten(0, (-1, 8))], 1).flatten(0, 2)
    show_images(axes[0], pairs, SHAPES[run.config.dataset], 8, "samples; below each, the nearest training image")
    colours = {"energy": "tab:orange", "mixture": "0.6", "real images": "tab:blue"}
    for i, (name, colour) in enumerate(colours.items()):
        distances = to_numpy(nearest_distances(drawn[name], x))
        axes[1].hist(distances, 25, density=True, histtype="step", lw=2, color=colour, label=name)
        share = to_numpy(torch.bincount(classes(run, drawn[name]), minlength=10) / len(drawn[name]))
        axes[2].bar(np.arange(10) + 0.28 * (i - 1), share, 0.26, color=colour)
    axes[1].set(title="copies would pile up at 0", xlabel="distance to the nearest training image", ylabel="density")
    axes[2].set(title="how often each class is drawn", xlabel="class", ylabel="share", xticks=range(10))
    fig.legend(loc="outside lower right", ncols=3)
    return fig


def record_scores(run, scores):
    """The metrics of {name: Scores}: the energy's beside the mixture's, and those beside real images."""
    real, floor = scores["real images"], frechet_floor(run)
    for name, s in scores.items():
        if name != "real images":
            beside, other = ("mixture", scores["mixture"]) if name == "energy" else ("real images", real)
            run.metric(f"{name}: Frechet distance", s.frechet, s.sem, ("real images", floor))
            run.metric(f"{name}: Frechet, classes made even", s.even, against=("real images", floor))
            run.metric(f"{name}: two-sample accuracy", s.told, s.told_sem, (beside, other.told))
            run.metric(f"{name}: class entropy (ln 10)", s.entropy, against=("real images", real.entropy))
            run.metric(f"{name}: nearest training image", s.nearest, against=("new real images", real.nearest))


def section_digits(run):
    """Digits from pure noise, in the proportions of the data, held against real images, copies and tuned mixtures."""
    trainer, seconds = trained(run)
    run.metric("training (s)", seconds)
    run.metric("the judge: accuracy", judge(run)[1], against=("guessing", 0.1))
    drawn, scores = sample_and_score(run)
    record_scores(run, scores)
    random = drawn_at_random(run)
    run.metric("energy, clusters at random: Frechet", random["energy"], against=("mixture, likewise", random["mixture"]))
    buffer = denoised(run, trainer.average, trainer.buffer.chains[:, :1].flatten(0, 2)[None], trainer.buffer.y.flatten())
    run.metric("chains of the buffer: Frechet distance", frechet_to_test(run, buffer))
    if run.config.start == "pixels":
        start = frechet_to_test(run, start_alone(trainer, run.config.n_samples))
        run.metric("where chains start: Frechet distance", start, against=("energy", scores["energy"].frechet))
    beyond = ("4/step: beyond it a step overshoots", theory_stiffest(run.config.step_size))
    for where, curvature in zip(("data", "noise"), measure_curvature(trainer), strict=True):
        run.metric(f"stiffest curvature of E at {where}", curvature, against=beyond)
    animate(run, trainer, "digits_from_noise.gif")
    run.figure(draw_mosaics(drawn, scores, SHAPES[run.config.dataset]), "samples")
    run.figure(draw_copies_and_classes(run, drawn), "copies_and_classes")
    ranked = sorted(("energy", "mixture", "labelled mixture"), key=lambda name: scores[name].frechet)
    run.say("by Frechet distance: " + ", ".join(f"{name} {scores[name].frechet:.2f}" for name in ranked))


# %% 5. The long run
# Samples that look right after some hundred steps prove that some hundred steps make digits, not that exp(-E) has its mass
# there. Trained with chains that always restart, a network becomes a generator: its samples are good after as many steps as
# in training, and further steps lead anywhere (Nijkamp et al. 2019, 2020). Chains of many ages in the buffer teach what is
# good after any number of steps. What still drifts without clusters shows when samples are judged twice, as they are and
# with their classes made even: digits stay digits, and the classes' shares are what the energy forgets (part 6).


def small(config):
    """Settings of small networks that train in seconds, several side by side."""
    config = replace(config, width=max(config.width // 4, 16))
    return replace(config, batch_size=max(config.batch_size // 2, 1), n_chains=max(config.n_chains // 4, 1))


def nothing(energy):
    """What is done to an energy before and after each step of Adam, unless told otherwise."""


def small_training(run, label, n_updates, n_clusters=1, before_step=nothing, after_step=nothing, **changes):
    """Train n_seeds small networks side by side with these settings changed, and something done to the energy before or
    after each step of Adam; returns the trainer, diverged or not."""
    config, x = replace(brief(small(run.config), n_updates), **changes), images(run)[0]
    torch.manual_seed(run.seed)
    labels = find_clusters(x, n_clusters, run.seed)
    energy = AutoEncoderEnergy(config.n_seeds, x.shape[1], config.width, config.sigma, n_clusters).to(run.device)
    trainer = Trainer(energy, x, config, labels)
    trainer.optimiser.register_step_pre_hook(lambda *_: before_step(energy))
    trainer.optimiser.register_step_post_hook(lambda *_: after_step(energy))
    with contextlib.suppress(Diverged):  # its samples will show it
        trainer.run(n_updates, label)
    return trainer


def small_scores(run, trainer, marks):
    """Fréchet distances (len(marks), n_seeds) of the networks' samples after so many Langevin steps from noise."""
    config, energy, rows, done = trainer.config, trainer.average, [], 0
    y = shared_out(trainer.y, 1, config.n_samples // 4)[0]
    x = trainer.starts(len(y), y)
    for mark in marks:
        langevin(energy, x, mark - done, config.step_size, y=y)
        clean = (x - config.data_noise**2 * energy.slope(x, y)).nan_to_num(1.0, 1.0, -1.0)
        rows.append([frechet_to_test(run, part) for part in clean])
        done = mark
    return np.array(rows)


def marks_up_to(n_steps):
    """Numbers of Langevin steps at which chains are looked at, about evenly on a logarithmic axis."""
    return sorted({max(int(n_steps * share), 1) for share in (0.004, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)})


def with_and_without_buffer(run):
    """{name: distances (n_marks, n_seeds)} at `marks`: chains kept in a buffer, and chains that always restart."""
    marks = sorted({*marks_up_to(run.config.n_long // 4), run.config.n_langevin})
    n_updates = run.config.n_short
    kinds = {"buffer": {}, "no buffer": {"reinit": 1.0}}
    return marks, {
        name: small_scores(run, small_training(run, name, n_updates, **changes), marks) for name, changes in kinds.items()
    }


class Mark(NamedTuple):
    """Chains after so many steps: Fréchet distance, its error, with classes made even; entropy; energy above the data's."""

    step: int
    frechet: float
    sem: float
    even: float
    entropy: float
    drift: float


def run_on(run):
    """[Mark] of the trained energy's chains, and twelve of them at each mark."""
    config, (trainer, _), rows, shown = run.config, trained(run), [], []
    energy, y = trainer.average, shared_out(trainer.y, 1, config.n_samples)[0]
    data = trainer.x[trainer.labelled.like(y)]  # of the same clusters: their energies have unknown Z's
    data = (data + config.data_noise * torch.randn_like(data))[None]
    x, done = trainer.starts(config.n_samples, y), 0
    for step in marks_up_to(config.n_long):
        clean = denoised(run, energy, travel(energy, x, step - done, config.step_size, y=y), y)
        drift = (energy(x, y).mean() - energy(data, y).mean()).item()
        even = frechet_to_test(run, even_classes(run, clean))
        rows.append(Mark(step, *frechet_and_sem(run, clean), even, class_entropy(run, clean), drift))
        shown.append(clean[:12])
        done = step
    return rows, shown


def try_temperatures(run):
    """{schedule: (Fréchet distance, its error)} of samples at other temperatures than that of the training."""
    n_steps, (trainer, _) = run.config.n_from_noise, trained(run)
    half = n_steps // 2
    cooled = np.r_[np.ones(n_steps - half), np.linspace(1, 0, half)]
    schedules, found = {"T = 1": 1.0, "T = 0.3": 0.3, "T = 1.5": 1.5, "1, then to 0": cooled}, {}
    for name, temperature in schedules.items():
        y = shared_out(trainer.y, 1, run.config.n_samples // 2)[0]
        found[name] = frechet_and_sem(run, draw(run, trainer, n_steps, temperature, y, len(y)))
    return found


def say_temperature(scores):
    """Which schedule of {name: (distance, its error)} is better than T = 1 by two standard errors, if any is."""
    (one, error), best = scores["T = 1"], min(scores, key=lambda name: scores[name][0])
    is_better = one - scores[best][0] > 2 * math.hypot(error, scores[best][1])
    return f"best temperature: {best}" if is_better else "no temperature is clearly better than T = 1"


def draw_long_run(rows, shown, scores, shape, n_from_noise):
    """Quality against the chains' length, the chains themselves, and other temperatures."""
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    steps, frechet, sem, even, *_ = np.array(rows).T
    axes[0].errorbar(steps, frechet, sem, fmt="o-", color="tab:orange", label="samples")
    axes[0].plot(steps, even, "s-", color="tab:green", label="the same, classes made even")
    axes[0].axvline(n_from_noise, color="k", ls=":", label="where samples are taken")
    axes[0].set(title=f"after {steps[-1]:.0f} steps: {frechet[-1]:.2f}", xlabel="Langevin steps from noise", xscale="log")
    axes[0].set(ylabel="Fréchet distance", yscale="log")
    axes[0].legend(loc="upper right")
    show_rows(axes[1], shown, [f"{step:.0f}" for step in steps], shape, "twelve chains", "Langevin steps from noise")
    means, errors = zip(*scores.values(), strict=True)
    axes[2].barh(list(scores), means, xerr=errors, color="tab:orange")
    axes[2].set(title=say_temperature(scores), xlabel="Fréchet distance")
    return fig


def draw_buffer(marks, found, n_langevin):
    """Quality against sampling length, of energies trained with and without a buffer."""
    fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for (name, distances), colour in zip(found.items(), ("tab:orange", "tab:blue"), strict=True):
        ax.plot(marks, distances, color=colour, alpha=0.35, lw=1)
        ax.plot(marks, distances.mean(1), "o-", color=colour, lw=2, label=f"{name}: mean of networks, and each")
    ax.axvline(n_langevin, color="k", ls=":", label="the steps of a training update")
    ax.set(xscale="log", yscale="log", xlabel="Langevin steps from noise", ylabel="Fréchet distance")
    best = {name: marks[distances.mean(1).argmin()] for name, distances in found.items()}
    ax.set(title=f"with a buffer best after {best['buffer']} steps, without one after {best['no buffer']}")
    ax.legend()
    return fig


def section_longrun(run):
    """Run the chains on and on: a density stays where it is; a short run's energy is good at its own length only."""
    config, (rows, shown) = run.config, run_on(run)
    for row in rows:
        run.metric(f"after {row.step} steps: Frechet distance", row.frechet, row.sem, ("its classes made even", row.even))
        run.metric(f"after {row.step} steps: class entropy", row.entropy, against=("equal classes", 1))
        run.metric(f"after {row.step} steps: energy above data (nats)", row.drift, against=("if the model is right", 0))
    scores, (marks, found) = try_temperatures(run), with_and_without_buffer(run)
    for name, (frechet, sem) in scores.items():
        run.metric(f"{name}: Frechet distance", frechet, sem, ("T = 1", scores["T = 1"][0]))
    for name, distances in found.items():
        for mark, row in zip(marks, distances, strict=True):
            run.metric(f"{name}, {mark} steps: Frechet distance", *mean_and_sem(row))
    run.figure(draw_long_run(rows, shown, scores, SHAPES[config.dataset], config.n_from_noise), "drift")
    run.figure(draw_buffer(marks, found, config.n_langevin), "short_run")
    best = {name: marks[distances.mean(1).argmin()] for name, distances in found.items()}
    run.say(f"the energy of the buffer is best after {best['buffer']} steps, that without one after {best['no buffer']}")


# %% 6. Proportions: what the clusters take over
# With one cluster the energy must find the proportions by itself, and fails slowly: the longer its chains run, the further
# they drift. With more clusters less is left to drift, and what is left of the energy is smaller too: in the limit of a
# cluster for each image p(x) would be a kernel density, which copies. So nearness to the training images is the price, and
# two families are to be compared at equal nearness. A mixture of Gaussians walks along the same frontier, more components
# being nearer and harder to tell from data: a cluster with a covariance in place of an energy.
#
# Or let the mixture take over everything that it can, and the energy mend the rest: tilt it,
#
#     p(x) ∝ q(x) exp(-f(x)),        E(x) = f(x) - log q(x),                                                       (6)
#
# with q the tuned mixture, as wide as the data's noise makes it, and f a network that is 0 at first. Chains start at images
# of q. Module 10 tilts a flow so, by NCE; here the tilt is trained as all energies are. Does it mend anything?

CURVE = (1, 4, 16, 32, 64, 128)  # clusters of the energy; for the mixture, components
GAUSSIANS = (10, 20, 40, 60, 80, 120)


class Point(NamedTuple):
    """A model on the frontier: Fréchet distance soon and after a long run, two-sample accuracy, nearest training image."""

    frechet: float
    late: float
    told: float
    nearest: float


def point(run, soon, late):
    """The Point of images drawn soon (N, d) and of those after a long run."""
    nearest = nearest_distances(soon, images(run)[0]).median().item()
    return Point(frechet_to_test(run, soon), frechet_to_test(run, late), two_sample_accuracy(run, soon)[0], nearest)


def sizes_for(run, sizes):
    """Those sizes that the data and the chains can fill."""
    most = min(run.config.n_chains, len(images(run)[0]) // 4)
    return [size for size in sizes if size <= most]


def energy_curve(run):
    """{clusters: Point} of energies trained alike, for `n_curve` updates."""
    config, x, points = run.config, images(run)[0], {}
    for k in sizes_for(run, CURVE):
        torch.manual_seed(run.seed)
        energy = AutoEncoderEnergy(1, x.shape[1], config.width, config.sigma, k).to(run.device)
        labels, changed = find_clusters(x, k, run.seed), brief(config, config.n_curve)
        points[k] = run_to_two_marks(run, Trainer(energy, x, changed, labels).run(config.n_curve, f"{k} clusters"))
    return points


def run_to_two_marks(run, trainer):
    """The Point of a training: its chains after a third of n_from_noise steps, and after a fifth of n_long."""
    config, y = run.config, shared_out(trainer.y, 1, run.config.n_samples // 2)[0]
    first, last = max(config.n_from_noise // 3, 1), max(config.n_long // 5, 1)
    x = trainer.starts(len(y), y)
    soon = denoised(run, trainer.average, travel(trainer.average, x, first, config.step_size, y=y), y)
    late = denoised(run, trainer.average, travel(trainer.average, x, max(last - first, 0), config.step_size, y=y), y)
    return point(run, soon, late)


def mixture_curve(run):
    """{components: Point} of Gaussian mixtures, each the mean of n_seeds fits."""
    points, n = {}, run.config.n_samples // 2
    for k in sizes_for(run, GAUSSIANS):
        fits = []
        for seed in range(run.seed, run.seed + run.config.n_seeds):
            drawn = draw_mixture(fit_mixture(images(run)[0], k, seed), n, np.random.default_rng(seed)).to(run.device)
            fits.append(point(run, drawn, drawn))
        points[k] = Point(*np.mean(fits, 0).tolist())
    return points


class TiltedMixture(Energy):
    """E(x) = f(x) - log q(x), eq. (6): a network f = trunk (M, d) -> (M, 1), and a mixture q of Gaussians with full
    covariances, widened by noise."""

    def __init__(self, trunk, mixture, noise):
        super().__init__(trunk, sigma=math.inf)
        means, d = torch.as_tensor(mixture.means), mixture.means.shape[1]
        precision = torch.linalg.inv(torch.as_tensor(mixture.covariances) + noise**2 * torch.eye(d, dtype=means.dtype))
        root = torch.linalg.cholesky(precision)  # |rootᵀ (x - m)|² is the squared distance
        log_weight = torch.as_tensor(mixture.weights).log() + root.diagonal(dim1=1, dim2=2).log().sum(1)
        for name, value in (("root", root), ("shift", (means[:, None] @ root)[:, 0]), ("log_weight", log_weight)):
            self.register_buffer(name, value.float())

    def log_q(self, x):
        """log q (n, B) at x (n, B, d), without its (2π)^(-d/2)."""
        u = torch.einsum("...d,kde->...ke", x, self.root) - self.shift
        return (self.log_weight - u.square().sum(-1) / 2).logsumexp(-1)

    def forward(self, x, y=None):
        return super().forward(x, y) - self.log_q(x)


def tilt_mixture(run):
    """{steps: (Fréchet distance, its error)} of chains from the mixture's images, after so many steps of its tilt."""
    x, n_updates = images(run)[0], max(run.config.n_short // 2, 1)
    config = brief(run.config, n_updates)
    config = replace(config, learning_rate=config.learning_rate / 4, n_langevin=max(config.n_langevin // 2, 1))
    mixture, rng = mixture_of_run(run, False), np.random.default_rng(run.seed)

    def start(z, _):
        drawn = draw_mixture(mixture, z[..., 0].numel(), rng, by_share=False).to(run.device)
        return drawn.view(z.shape) + config.data_noise * z

    torch.manual_seed(run.seed)
    energy = TiltedMixture(mlp(x.shape[1], config.width), mixture, config.data_noise).to(run.device)
    trainer = Trainer(energy, x, config)
    trainer.buffer.start, trainer.buffer.chains = start, start(torch.randn_like(trainer.buffer.chains), None)
    trainer.run(n_updates, "tilted mixture")
    found, done = {}, 0
    chains = mixture_samples(run, config.n_samples // 2)[None]
    chains = chains + config.data_noise * torch.randn_like(chains)
    for mark in (0, max(config.n_from_noise // 10, 1), max(config.n_from_noise // 4, 2)):
        travel(trainer.average, chains, mark - done, config.step_size)
        found[mark], done = frechet_and_sem(run, denoised(run, trainer.average, chains)), mark
    return found


def told_at(points, nearest):
    """The two-sample accuracy that {size: Point} reaches at this nearness, between its points by straight lines."""
    line = sorted((p.nearest, p.told) for p in points.values())
    return float(np.interp(nearest, *zip(*line, strict=True)))


def draw_frontier(energies, mixtures, whole, n_clusters):
    """Left: quality and drift against the number of clusters. Right: what it costs in nearness. A star for the Point `whole`
    of the energy of `digits`."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for field, style, name in (("frechet", "o-", "energy, soon"), ("late", "s--", "energy, after a long run")):
        axes[0].plot(list(energies), [getattr(p, field) for p in energies.values()], style, color="tab:orange", label=name)
    axes[0].plot(list(mixtures), [p.frechet for p in mixtures.values()], "^-", color="0.5", label="Gaussian mixture")
    for ax, at in ((axes[0], (n_clusters, whole.frechet)), (axes[1], (whole.nearest, whole.told))):
        ax.plot(*at, "*", color="tab:red", ms=14, label="energy, all updates", zorder=3)
    axes[0].set(xscale="log", yscale="log", xlabel="clusters, or Gaussians", ylabel="Fréchet distance")
    axes[0].set(title="clusters take over the proportions")
    axes[0].legend()
    for points, style, name in ((energies, "o-", "energy"), (mixtures, "^-", "Gaussian mixture")):
        line = sorted((p.nearest, p.told, k) for k, p in points.items())
        axes[1].plot(
            [p[0] for p in line], [p[1] for p in line], style, color="tab:orange" if "energy" in name else "0.5", label=name
        )
        for i, (nearest, told, k) in enumerate(line):  # every other size below: near points would hide each other's
            axes[1].annotate(str(k), (nearest, told), textcoords="offset points", xytext=(4, -13 if i % 2 else 5))
    axes[1].axhline(0.5, color="k", ls="--", label="cannot be told apart")
    axes[1].set(title="the frontier: nearer is a copy, lower is better")
    axes[1].set(xlabel="distance to the nearest training image", ylabel="two-sample accuracy")
    axes[1].legend()
    return fig


def say_frontier(run, energies, mixtures, whole):
    """How many clusters are best, and on which side of the mixtures the energies lie."""
    best, other = (min(points, key=lambda k: points[k].frechet) for points in (energies, mixtures))
    run.say(f"lowest Frechet distance: the energy with {best} clusters, the mixture with {other} Gaussians")
    above = sum(p.told > told_at(mixtures, p.nearest) for p in energies.values())
    updates, near = f"after {run.config.n_curve} updates", told_at(mixtures, whole.nearest)
    run.say(f"{updates} {above} of {len(energies)} energies are told more easily than mixtures as near")
    run.say(f"after {run.config.n_updates} updates the energy is told at {whole.told:.2f}, mixtures as near at {near:.2f}")


def record_tilt(run, found):
    """The tilted mixture's images after some steps beside the mixture's own, and whether the tilt mends it."""
    (mean, sem), *later = found.values()
    for mark, row in found.items():
        run.metric(f"tilted mixture, {mark} steps: Frechet distance", *row, ("the mixture, denoised", mean))
    last, error = later[-1][0], 2 * math.hypot(sem, later[-1][1])
    verdict = "no better and no worse" if abs(last - mean) <= error else "better" if last < mean else "worse"
    run.say(f"tilted by an energy the tuned mixture is {verdict}: {mean:.2f} before its chains move, {last:.2f} after")


def section_proportions(run):
    """What K-means takes over from the energy is the proportions: quality and copies, against the number of clusters."""
    energies, mixtures = energy_curve(run), mixture_curve(run)
    whole = run_to_two_marks(run, trained(run)[0])
    for name, p in ({f"{k} clusters": p for k, p in energies.items()} | {"all updates": whole}).items():
        run.metric(f"{name}: Frechet distance", p.frechet, against=("after a long run", p.late))
        beside = ("mixtures as near", told_at(mixtures, p.nearest))
        run.metric(f"{name}: two-sample accuracy", p.told, against=beside)
        run.metric(f"{name}: nearest training image", p.nearest)
    for k, p in mixtures.items():
        for what, value in (("Frechet distance", p.frechet), ("two-sample accuracy", p.told), ("nearest image", p.nearest)):
            run.metric(f"{k} Gaussians: {what}", value)
    run.figure(draw_frontier(energies, mixtures, whole, run.config.n_clusters), "frontier")
    say_frontier(run, energies, mixtures, whole)
    if len(images(run)[0].T) < 100:  # larger images have mixtures without covariances
        record_tilt(run, tilt_mixture(run))


# %% 7. Ablations
# One change each, the same number of updates, several networks side by side in one batch of matrix products. Small networks
# trained briefly, so the order matters and not the level; and not every order carries over: a wider step wins here, where
# time is short. Each is sampled with the step it was trained with, for the same number of steps from noise.


def shrink(energy, limit=1.0):
    """Project both weights of an AutoEncoderEnergy to spectral norm at most `limit`, in place."""
    with torch.no_grad():
        for w in (energy.w1, energy.w2):
            w.mul_((limit / torch.linalg.matrix_norm(w, 2)).clamp(max=1)[:, None, None])


def clip(energy, longest=5.0):
    """Shorten the weights' gradient to this length."""
    nn.utils.clip_grad_norm_(energy.parameters(), longest)


def changes_to_try(config):
    """{name: what is changed in a small training}."""
    return {
        "as it is": {},
        "no clusters": {"n_clusters": 1},
        "no buffer": {"reinit": 1.0},
        "no restarts": {"reinit": 0.0},
        "restart 20 %": {"reinit": 0.2},
        "5 Langevin steps": {"n_langevin": max(config.n_langevin // 4, 1)},
        "step / 4": {"step_size": config.step_size / 4},
        "step x 3": {"step_size": 3 * config.step_size},
        "gradients clipped at 5": {"before_step": clip},
        "energy L2 x 1000": {"energy_l2": 1000 * config.energy_l2},
        "spectral norm 1": {"after_step": shrink},
    }


def ablate(run):
    """{name: Fréchet distances (n_seeds,)}, one change each."""
    n_updates, mark, found = run.config.n_short, max(run.config.n_from_noise // 3, 1), {}
    for name, change in changes_to_try(run.config).items():
        n_clusters = min(run.config.n_clusters, small(run.config).n_chains)
        trainer = small_training(run, name, n_updates, **({"n_clusters": n_clusters} | change))
        found[name] = small_scores(run, trainer, [mark])[0]
    return found


def draw_ablations(found, n_updates):
    """A bar for each change, its error over networks."""
    fig, ax = plt.subplots(figsize=(10, 4.8), layout="constrained")
    means, errors = zip(*(mean_and_sem(distances) for distances in found.values()), strict=True)
    colours = ["tab:blue"] + ["tab:orange"] * (len(found) - 1)
    ax.barh(list(found), means, xerr=np.nan_to_num(errors), color=colours, capsize=4)
    ax.axvline(means[0], color="tab:blue", ls=":")
    ax.invert_yaxis()
    ax.set(title=f"one change each, {n_updates} updates", xlabel="Fréchet distance of samples from noise")
    return fig


def section_ablations(run):
    """Change one thing at a time, on small networks in a short training: what breaks it, and what hardly matters?"""
    found = ablate(run)
    base = found["as it is"].mean()
    for name, distances in found.items():
        run.metric(f"{name}: Frechet distance", *mean_and_sem(distances), against=("as it is", base))
    run.figure(draw_ablations(found, run.config.n_short), "changes")
    worst = sorted(found, key=lambda name: found[name].mean(), reverse=True)[:3]
    run.say("what costs most: " + ", ".join(f"{name} ({found[name].mean():.1f}, not {base:.1f})" for name in worst))


# %% 8. Class-conditional energies
# Classes are clusters with a name: eq. (4) with the classes y in the place of k, and so is all that it needs. Two phases
# *within each class*: were data and chains not matched, the gap would hold E(x, 3) of a batch with more threes, and each
# update would lift or sink whole classes, at random.
#
# Every Z(y) stays unknown, so argmin E(x, y) is no classifier by right: Bayes' rule needs the Z's, and nothing fixes their
# ratios. Matched phases at least do not drive them apart. Asked for even classes, the model is spared what an
# unconditional one must find out: hold it against a mixture that knows the classes, too.


class Conditional(NamedTuple):
    """A class-conditional energy: images (n, d), the classes asked of them, and whether each obeyed, (n,); and for the test
    images whether the class of lowest energy is the right one, (N,)."""

    drawn: torch.Tensor
    asked: torch.Tensor
    obeyed: torch.Tensor
    lowest_is_right: torch.Tensor


def train_with_classes(run):
    """Conditional: trained on the labels, then asked for ten classes in equal numbers."""
    config, (x, x_test, y, y_test) = run.config, images(run)
    torch.manual_seed(run.seed)
    energy = AutoEncoderEnergy(1, x.shape[1], config.width, config.sigma, 10).to(run.device)
    n_updates = max(config.n_updates // 5, 2)
    trainer = Trainer(energy, x, brief(config, n_updates), y).run(n_updates, "conditional")
    asked = torch.arange(config.n_samples, device=run.device) % 10
    drawn = draw(run, trainer, config.n_from_noise, y=asked)
    return Conditional(drawn, asked, classes(run, drawn) == asked, lowest_energy(trainer.average, x_test) == y_test)


@torch.no_grad()
def lowest_energy(energy, x, n_classes=10):
    """The class (N,) with the lowest E(x, y) of each image (N, d)."""
    every = torch.arange(n_classes, device=x.device).repeat_interleave(len(x))
    return energy(x.repeat(n_classes, 1)[None], every).reshape(n_classes, len(x)).argmin(0)


def draw_classes(found, accuracy, shape):
    """Samples, one class a column, and how often an independent classifier agrees."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained")
    show_images(axes[0], found.drawn[:100], shape, 10, "samples, one class a column")
    share = [found.obeyed[found.asked == k].float().mean().item() for k in range(10)]
    axes[1].bar(range(10), share, color="tab:orange", label="samples in the class asked for")
    axes[1].axhline(accuracy, color="k", ls="--", label="the judge on real test images")
    axes[1].set(title=f"{found.obeyed.float().mean():.1%} are what was asked for", xlabel="class", ylabel="share")
    axes[1].set(xticks=range(10), ylim=(0, 1.05))
    fig.legend(loc="outside lower right", ncols=2)
    return fig


def section_conditional(run):
    """One more input asks for a class, and an independent classifier checks that the samples obey."""
    config, accuracy = run.config, judge(run)[1]
    if config.n_chains < 10:
        sys.exit("--n-chains must be at least 10 here: each class needs chains of its own")
    found, rival = train_with_classes(run), mixture_samples(run, config.n_samples, with_labels=True)
    run.metric("asked class is drawn", *mean_and_sem(found.obeyed), against=("the judge on real images", accuracy))
    frechet, told = frechet_to_test(run, rival), two_sample_accuracy(run, rival)[0]
    run.metric("Frechet distance", *frechet_and_sem(run, found.drawn), against=("mixture with labels", frechet))
    run.metric("two-sample accuracy", *two_sample_accuracy(run, found.drawn), against=("mixture with labels", told))
    right = mean_and_sem(found.lowest_is_right)
    run.metric("lowest energy is the right class", *right, against=("the judge", accuracy))
    run.figure(draw_classes(found, accuracy, SHAPES[config.dataset]), "classes")
    run.say(f"the lowest energy names the right class of {right[0]:.1%}, though no Z is known; the judge of {accuracy:.1%}")


# %% 9. Scale
# The same file on a GPU: --device auto. Numbers of half the width (bfloat16) on convolutions, with the channels last in
# memory, and only for ∇ₓE, whose error then hides under Langevin's noise; the weights' gradients stay in float32. Whether
# that is faster is the processor's affair: with units made for it by several times, without them it is many times slower.
# So it is measured first. Larger images want other settings, too (`SUITED`): a hidden unit that sees more pixels bends E
# more, so σ and the data's noise grow with the images. Most of all it bends E at noise, where no image has ever been: a step
# wider than 4 over a curvature overshoots (`digits` prints both), and at 28x28 chains from N(0, I) start where E is hundreds
# of times too stiff for their step; most of their way is that of the paper, which they have to turn white. So they start
# from noise that has the mean and the spread of each pixel in their cluster, `--start pixels`: with --start normal the same
# settings diverge. That is a Gaussian for each cluster, and knows something already: `digits` prints how much.
# What to expect of a GPU (an estimate, not measured here): an update is some 300 small operations one after another, which
# at 28x28 take less time than their launch, about 5 µs each. So it should take 1 to 2 ms, whatever the width, and 5,000
# updates ten seconds at most; chains are nearly free there, so the first thing to raise is --batch-size.
#
# A checkpoint holds everything that the next update depends on: weights, their average, Adam's moments, chains, labels, the
# random state, the step. It is written to a file beside it which is then renamed; a rename happens whole or not at all, so
# a killed run leaves the last checkpoint or the one before it, never half of one.
#
# Under torchrun each process moves chains of its own, and DistributedDataParallel averages the gradients: since the loss is
# a mean over the batch, that is the gradient of the joined batch. The first process collects all chains for a checkpoint.

# a training with another of these is another training; another of those may be meant, and is said
SAME = ("dataset", "split", "architecture", "width", "sigma", "n_clusters", "data_noise", "start", "batch_size", "n_chains")
SAID = ("n_updates", "n_langevin", "step_size", "reinit", "learning_rate", "warm_up", "energy_l2", "ema", "precision")


def joined():
    """Whether several processes train together."""
    return dist is not None and dist.is_available() and dist.is_initialized()


def device_stream(x):
    """What keeps the random numbers of the GPU that x is on, or None."""
    return {"cuda": torch.cuda, "mps": torch.mps}.get(x.device.type)


def save_checkpoint(trainer, path):
    """Write the trainer's state to `path`, whole or not at all; every rank calls it, the first writes."""
    own = {"chains": trainer.buffer.chains, "at": trainer.buffer.at, "random": torch.get_rng_state()}
    own |= {"y_chains": trainer.buffer.y}
    if device_stream(trainer.x):
        own["random_device"] = device_stream(trainer.x).get_rng_state()
    ranks = [own]
    if joined():
        ranks = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(own, ranks)
    if ranks is None:
        return
    parts = {name: getattr(trainer, name).state_dict() for name in ("energy", "average", "optimiser")}
    settings = {name: getattr(trainer.config, name) for name in SAME + SAID}
    partial = Path(path).with_name(f".partial-{Path(path).name}")
    try:
        with open(partial, "wb") as file:  # a full disk is an OSError here
            whole = {"settings": settings, "step": trainer.step, "history": trainer.history, "ranks": ranks, "y": trainer.y}
            torch.save(parts | whole, file)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(trainer, path):
    """Put the trainer into the state saved at `path`; returns what was set otherwise until then, a list of (name, value).
    Ends the run with one line if that cannot be done."""
    n_ranks, rank = (dist.get_world_size(), dist.get_rank()) if joined() else (1, 0)
    seed = torch.initial_seed()
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # numbers only: no code from a stranger's file
        for name, ours in [(name, getattr(trainer.config, name)) for name in SAME]:
            if saved["settings"][name] != ours:
                sys.exit(f"--resume: {path} was trained with {name} {saved['settings'][name]}, not {ours}")
        if len(saved["ranks"]) != n_ranks:
            sys.exit(f"--resume: {path} was trained by {len(saved['ranks'])} processes, not {n_ranks}")
        own = saved["ranks"][rank]
        for name in ("energy", "average", "optimiser"):
            getattr(trainer, name).load_state_dict(saved[name])
        trainer.step, trainer.history, trainer.buffer.at = saved["step"], saved["history"], own["at"]
        trainer.buffer.chains.copy_(own["chains"])
        if trainer.y is not None:  # clusters found with another seed bear other numbers
            trainer.label(saved["y"].to(trainer.y))
            trainer.buffer.y.copy_(own["y_chains"])
        torch.set_rng_state(own["random"])
        if device_stream(trainer.x) and "random_device" in own:
            device_stream(trainer.x).set_rng_state(own["random_device"])
        others = [(name, value) for name, value in saved["settings"].items() if value != getattr(trainer.config, name)]
        return others + [("seed", torch.initial_seed())] * (torch.initial_seed() != seed)
    except FileNotFoundError:
        sys.exit(f"--resume: there is no file {path}")
    except Exception:  # a truncated or foreign file raises many kinds
        sys.exit(f"--resume: {path} is damaged, or no checkpoint of this module")


def seconds_of(job, n=5):
    """The fastest of n runs of job(), in seconds, after one to warm up; job returns a tensor."""
    job().sum().item()
    times = [time.perf_counter()]
    for _ in range(n):
        job().sum().item()  # a GPU is done with it only when a number is asked for
        times.append(time.perf_counter())
    return np.diff(times).min()


class Precision(NamedTuple):
    """Seconds of an input gradient, and its relative error beside float32."""

    seconds: float
    error: float


def compare_precisions(device, n):
    """{numbers: Precision} of the slope of a convolutional energy on n colour images of 32x32 pixels."""
    shape = (3, 32, 32)
    x, plain = torch.randn(1, n, math.prod(shape), device=device), Energy(conv(shape)).to(device)
    nn.init.normal_(plain.trunk[-1].weight, std=0.05)
    exact, found = plain.slope(x) - x, {}
    for name, precision, layout in (
        ("float32", torch.float32, torch.contiguous_format),
        ("bfloat16", torch.bfloat16, torch.contiguous_format),
        ("bfloat16, channels last", torch.bfloat16, torch.channels_last),
    ):
        energy = copy.deepcopy(plain).to(memory_format=layout)
        energy.precision = precision
        error = (energy.slope(x) - x - exact).norm() / exact.norm()
        found[name] = Precision(seconds_of(lambda energy=energy: energy.slope(x)), error.item())
    return found


def stop_and_go_on(run, path):
    """The largest difference of averaged weights between a training of eight updates and one that stopped after four."""
    config = replace(run.config, n_langevin=5, checkpoint_every=2)

    def short(n_updates, resume=False):
        torch.manual_seed(run.seed)
        trainer = Trainer(build(config).to(run.device), images(run)[0], config)
        if resume:
            load_checkpoint(trainer, path)
        return trainer.run(n_updates, "resumed" if resume else "whole", lambda t: t.step == 4 and save_checkpoint(t, path))

    pairs = zip(short(8).average.parameters(), short(8, True).average.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def draw_precisions(found, n):
    """A bar for each kind of number."""
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    ax.barh(list(found), [1e3 * p.seconds for p in found.values()], color="tab:orange")
    ratio = found["float32"].seconds / found["bfloat16, channels last"].seconds
    said = f"{ratio:.1f} times as fast" if ratio > 1 else f"{1 / ratio:.1f} times slower"
    ax.set(title=f"bfloat16 on this processor: {said}")
    ax.set(xlabel=f"input gradient of a convolutional energy, {n} colour images (milliseconds)")
    return fig


def section_scale(run):
    """The same file grows: numbers of half the width where they pay here, and checkpoints that go on bit for bit."""
    n = 16 if run.config.n_short < 100 else 48
    found = compare_precisions(run.device, n)
    for name, precision in found.items():
        run.metric(f"{name}: slope (ms)", 1e3 * precision.seconds)
        if name != "float32":
            run.metric(f"{name}: relative error", precision.error, None, ("float32", 0), 0.02)
    difference = stop_and_go_on(run, run.out / "scale_checkpoint.pt")
    run.metric("resumed minus uninterrupted", difference, None, ("bit for bit", 0), 0)
    run.figure(draw_precisions(found, n), "precision")
    fastest = min(found, key=lambda name: found[name].seconds)
    run.say(f"fastest here: {fastest}; so --precision {'bfloat16' if 'bf' in fastest else 'float32'} for convolutions")


SECTIONS = {
    "architectures": section_architectures,
    "loop": section_loop,
    "truth2d": section_truth2d,
    "digits": section_digits,
    "longrun": section_longrun,
    "proportions": section_proportions,
    "ablations": section_ablations,
    "conditional": section_conditional,
    "scale": section_scale,
}

AHEAD = ("digits", "longrun", "proportions")  # they share a training: a second process runs them from the beginning
MEANWHILE = ("ablations", "conditional")  # what the first one does while it waits for them


def quietly(run, name):
    """Run a section out of its turn. Its report: what it printed, its metrics, and the error that ended it, or None."""
    text, error, turn = io.StringIO(), None, (run.section, run.metrics)
    run.section, run.metrics = name, {}
    torch.manual_seed(run.seed)
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            SECTIONS[name](run)
        except (Exception, SystemExit) as end:
            error = end
    metrics, (run.section, run.metrics) = run.metrics, turn
    return text.getvalue(), metrics, error


def go_ahead(pipe, config, seed, device, out):
    """The second process: send the reports of the sections AHEAD, up to one that an error ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the first process, and that one this, by a
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # SIGTERM: no half a file stays behind
    first = multiprocessing.parent_process()
    threading.Thread(target=lambda: first.join() or os._exit(1), daemon=True).start()  # should the first be killed
    torch.set_num_threads(config.threads)
    plt.switch_backend("agg")
    run = Run(config, seed, device, out, show=False)
    for name in AHEAD:
        report = quietly(run, name)
        pipe.send(report)
        if report[-1]:
            return


def in_turn(name, section, pipe, early, run):
    """A section's turn: where it ran before, print and record its report, from the `pipe` or among the `early` ones."""
    if name in AHEAD:
        for other in MEANWHILE:
            if other not in early and not pipe.poll():
                early[other] = quietly(run, other)
        try:
            early[name] = pipe.recv()
        except (EOFError, OSError):
            sys.exit("the second process was ended from outside; --processes 1 does without it")
    if name not in early:
        section(run)
        return
    text, metrics, error = early[name]
    echo(text.rstrip("\n"))
    run.metrics |= metrics
    if error:
        raise error


@contextlib.contextmanager
def second_process():
    """Where all sections run on a CPU, share them out between two processes. Each section has its own seed, so all numbers
    are what one process finds, and stand where they would."""
    args, config = parse_args()
    if args.section != "all" or args.device != "cpu" or args.show or config.processes == 1 or not set(AHEAD) < set(SECTIONS):
        yield
        return
    context = multiprocessing.get_context("spawn")  # as on every platform
    ours, theirs = context.Pipe(duplex=False)
    other = context.Process(target=go_ahead, args=(theirs, config, args.seed, args.device, args.out), daemon=True)
    heed = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a Ctrl-C while it starts is not for it either
    other.start()
    signal.signal(signal.SIGINT, heed)
    theirs.close()
    early = {}
    for name in AHEAD + MEANWHILE:
        turn = functools.partial(in_turn, name, SECTIONS[name], ours, early)
        SECTIONS[name] = functools.update_wrapper(turn, SECTIONS[name])
    try:
        yield
    finally:
        other.terminate()
        other.join()


@contextlib.contextmanager
def joined_ranks():
    """Under torchrun: join the other processes for the section `digits`; all but the first are silent and throw away what
    they write. A WORLD_SIZE alone, left over from something else, joins nobody."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun's mark
    if not launched or os.environ["WORLD_SIZE"] == "1":
        if not launched and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            echo("WORLD_SIZE is set, but it was not torchrun that started this process: it runs alone")
        yield
        return
    n_gpus = torch.cuda.device_count()
    if n_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % n_gpus)
    own = n_gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # nccl wants a GPU for each process
    dist.init_process_group("cpu:gloo,cuda:nccl" if own else "gloo")
    for name in set(SECTIONS) - {"digits"}:
        del SECTIONS[name]
    with contextlib.ExitStack() as stack:
        if dist.get_rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            sys.argv += ["--out", stack.enter_context(tempfile.TemporaryDirectory())]  # the last one counts
        try:
            yield
        finally:
            dist.destroy_process_group()


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


# Differs from 01_ebm_foundations.py: __main__ - under torchrun the processes train together, else a second one helps
if __name__ == "__main__" and not in_notebook():  # in a notebook, call main(["--section", "..."]) yourself
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # a console that cannot print a folder's name
    try:
        with joined_ranks(), second_process():
            main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except OSError as error:  # a full disk, a folder that vanished
        sys.exit(f"cannot go on: {error}")
