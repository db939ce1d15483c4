"""Module 07 - Neural energy-based models: a deep network as an energy, and digits drawn from pure noise.

Any network with one output is an energy, p(x) = exp(-E(x))/Z. Maximum likelihood pushes E down on data and up on samples
of the model (module 01), and Langevin dynamics draws those samples, from chains that a replay buffer keeps alive:

    ∇ log p(x) = -∇E(x) + E_{x'~p}[∇E(x')]            ∇ in the parameters: two phases,                         (1)
    x <- x - ½ ε ∇E(x) + √(ε T) n,   n ~ N(0, I)      ∇ in x; T = 1 is the model, T << 1 another one,          (2)
    E(x) = |x - g(x)|²/(2σ²)                          g a small network: the shape that learns fastest here.   (3)

Run      python 07_neural_ebms.py                 all sections, about 5 min on one CPU core
         python 07_neural_ebms.py --section digits --show
         python 07_neural_ebms.py --section digits --dataset mnist --width 1024 --checkpoint mnist.pt
         torchrun --nproc_per_node=2 07_neural_ebms.py      the section digits, each process with its own chains
Writes   outputs/07_neural_ebms/*.png, digits_from_noise.gif and metrics.json
Before   modules 05 and 06
Sources  Du & Mordatch (2019); Nijkamp et al. (2019, 2020); Tieleman (2008); Carbone et al. (2023); Zhao, Mathieu &
         LeCun (2017); Yoon, Noh & Park (2021); Heusel et al. (2017); Lopez-Paz & Oquab (2017).
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
from typing import Annotated, Literal, get_args, get_type_hints

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: scikit-learn's small fits are faster on one

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import torch
from matplotlib.animation import PillowWriter
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

    dataset: Annotated[Literal["digits", "mnist", "fashion_mnist", "cifar10"], "images to learn"] = "digits"
    split: Annotated[Literal["test", "validation"], "score on the test images, or choose settings without them"] = "test"
    architecture: Annotated[Literal["autoencoder", "mlp", "conv", "residual"], "the energy of digits"] = "autoencoder"
    precision: Annotated[Literal["float32", "bfloat16"], "numbers in which convolutions are differentiated"] = "float32"
    width: Annotated[int, "hidden units of the auto-encoder and of the MLP"] = 512
    sigma: Annotated[float, "the auto-encoder's unit of error, eq. (3)"] = 0.2
    n_updates: Annotated[int, "updates of the energy of digits"] = 10_000
    batch_size: Annotated[int, "images in a batch, and chains moved between two updates"] = 64
    n_chains: Annotated[int, "chains in the replay buffer"] = 512
    n_langevin: Annotated[int, "Langevin steps between two updates"] = 20
    step_size: Annotated[float, "the Langevin step, eps in eq. (2)"] = 0.01
    reinit_young: Annotated[float, "chance that a visited chain restarts from noise: the youngest chains'"] = 0.02
    reinit_old: Annotated[float, "the same for the oldest; the others lie between"] = 0.004
    data_noise: Annotated[float, "standard deviation of the noise added to the data"] = 0.2
    learning_rate: Annotated[float, "Adam's, at first; it falls linearly to 0"] = 1e-3
    energy_l2: Annotated[float, "weight of the squared energies in the loss"] = 1e-5
    max_gradient: Annotated[float, "longer gradients are shortened to this norm"] = 5.0
    ema: Annotated[float, "memory of the average of the weights"] = 0.999
    n_samples: Annotated[int, "images drawn where samples are scored"] = 1000
    n_from_noise: Annotated[int, "Langevin steps from noise to such an image"] = 1500
    n_long: Annotated[int, "Langevin steps of the long run"] = 10_000
    n_short: Annotated[int, "updates of the short trainings: loop, architectures"] = 600
    n_2d: Annotated[int, "updates in two dimensions"] = 800
    n_seeds: Annotated[int, "networks trained side by side in the ablations"] = 3
    checkpoint: Annotated[str, "write the training of digits to this file as it goes"] = ""
    checkpoint_every: Annotated[int, "updates between two such writes"] = 500
    resume: Annotated[str, "go on from this checkpoint"] = ""
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1


SMOKE = {"width": 32, "n_updates": 6, "batch_size": 16, "n_chains": 32, "n_langevin": 3, "n_samples": 40, "n_seeds": 2}
SMOKE |= {"n_from_noise": 6, "n_long": 20, "n_short": 6, "n_2d": 6, "checkpoint_every": 2}


# %% The data, and a judge
# Images live in [-1, 1], flat: x is (..., d). The judge is a classifier that no energy has seen. Its 32 last hidden
# features, scaled to variance 1 on the training images, measure the distance of two sets of images (Heusel et al. 2017):
#
#     Fréchet distance = |m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½)      of the features' means and covariances.
#
# Finite sets have a distance too: real training images against real test images are the floor. tanh bounds the features
# and the distance saturates, so far off it says "bad" and not how bad. A second test trains an SVM to tell samples from
# real images (Lopez-Paz & Oquab 2017): 0.5 is perfect. And a sample much nearer to a training image than a new real image
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


@functools.cache
def check_settings(run):
    """End the run in one line if its settings make no sense, before any work; and say whom --resume serves."""
    config = run.config
    kept, resumed = Path(config.checkpoint), Path(config.resume)
    for wrong, complaint in (
        (config.n_chains % config.batch_size > 0, "--n-chains must be a multiple of --batch-size"),
        (max(config.reinit_young, config.reinit_old) > 1, "--reinit-young and --reinit-old are probabilities: at most 1"),
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
    if (config.checkpoint or config.resume) and run.section not in ("digits", "longrun"):
        echo("  --checkpoint and --resume serve the sections digits and longrun; all others train from the beginning")


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


def two_sample_accuracy(run, x):
    """How often an SVM tells images (N, d) from as many training images, cross-validated: mean and its standard error."""
    real = in_float64(images(run)[0][: len(x)])
    x = in_float64(x[: len(real)].clamp(-1, 1))
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


# %% 1. Architectures
# A scalar network E(x) = |x|²/2 + f(x) must invent everything that is wrong with an image, pixel by pixel. The
# auto-encoder's shape (3) is told what to look at: the error of a reconstruction, d numbers a time instead of one (Zhao,
# Mathieu & LeCun 2017; as a normalised density Yoon, Noh & Park 2021: the error falls on data and rises on chains). The
# quadratic term holds the far field; with g's last layer 0 at first, E = |x|²/(2σ²) is a Gaussian.
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


class Energy(nn.Module):
    """x (n, B, d) -> E (n, B), from a network `trunk` on (M, d): eq. (3) if it returns (M, d), |x|²/2 + f(x) if (M, 1)."""

    def __init__(self, trunk, sigma=1.0, precision=torch.float32):
        super().__init__()
        self.trunk, self.sigma, self.precision = trunk, sigma, precision

    def forward(self, x, y=None):
        out = self.trunk(x.flatten(0, 1)).float().reshape(*x.shape[:-1], -1)
        if out.shape[-1] == 1:
            return x.square().sum(-1) / 2 + out[..., 0]
        return (x - out).square().sum(-1) / (2 * self.sigma**2)

    def slope(self, x, y=None):
        """∇ₓE (n, B, d) in `precision`, by one backward pass to x alone: the weights' gradients are not touched."""
        mixed = torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32)
        with torch.enable_grad(), mixed:
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(self(x, y).sum(), x)[0]


class AutoEncoderEnergy(Energy):
    """Eq. (3) with one hidden layer: n networks side by side, (n, B, d) -> (n, B), and ∇ₓE by hand.

    With n_classes > 0 each class y (B,) has hidden biases of its own: E(x | y), eq. (5).
    """

    def __init__(self, n_networks, d, width, sigma, n_classes=0):
        super().__init__(None, sigma)
        self.w1 = nn.Parameter(torch.randn(n_networks, d, width) / d**0.5)
        self.w2 = nn.Parameter(torch.zeros(n_networks, width, d))
        self.b1 = nn.Parameter(torch.zeros(n_networks, max(n_classes, 1), width))
        self.b2 = nn.Parameter(torch.zeros(n_networks, 1, d))

    def before(self, x, y):
        return torch.baddbmm(self.b1 if y is None else self.b1[:, y], x, self.w1)

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


def conv(shape, activation=nn.SiLU, norm=lambda layer: layer, pool=nn.AvgPool2d, between=nn.Identity):
    """Convolutions on images of shape (C, H, W), flat: (M, C·H·W) -> (M, 1). `between` may be nn.BatchNorm2d."""
    channels, layers = (shape[0], 32, 64), [nn.Unflatten(1, shape)]
    for a, b in zip(channels, channels[1:], strict=False):
        bn = between(b) if between is nn.BatchNorm2d else between()
        layers += [norm(nn.Conv2d(a, b, 3, padding=1)), bn, activation(), pool(2)]
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
    return nn.Sequential(nn.Unflatten(1, shape), stem, Residual(32), pool, Residual(32), pool, nn.Flatten(), last)


def build(config):
    """The energy that --architecture names, for the data set's shape."""
    shape = SHAPES[config.dataset]
    if config.precision == "bfloat16" and config.architecture in ("autoencoder", "mlp"):
        sys.exit("--precision bfloat16 serves convolutions: --architecture conv or residual")
    if config.architecture == "autoencoder":
        return AutoEncoderEnergy(1, math.prod(shape), config.width, config.sigma)
    if config.architecture == "mlp":
        return Energy(mlp(math.prod(shape), config.width))
    trunk = conv(shape) if config.architecture == "conv" else residual(shape)
    energy = Energy(trunk, precision=getattr(torch, config.precision))
    return energy.to(memory_format=torch.channels_last if config.precision == "bfloat16" else torch.contiguous_format)


# %% 2. The training loop
# Phase by phase. *Positive*: a batch of data with a little noise, which gives the model's density a width that Langevin's
# step can follow (module 01: stable only for ε < 4 s² where a mode has standard deviation s). *Negative*: chains from the
# replay buffer, moved by eq. (2) with the weights held still. They are data for the loss: nothing is differentiated
# through them. *Loss*: mean E(data) - mean E(chains) + λ mean E². Its gradient is minus eq. (1); its value hovers near 0
# whatever the model is worth, since both terms move together.
#
# The buffer is persistent CD (Tieleman 2008; module 05), with one change: a chain restarts from noise with some probability
# at each visit (Du & Mordatch 2019). Without it the model is never asked what lies between noise and digits, and puts
# rubbish there; with too much of it no chain grows old, and the model is never asked where its chains end. So each chain
# has a chance of its own, from 2 % to 0.4 %: chains of all ages, from no steps to thousands.
#
# T = 1 is a promise: eq. (2) then samples exp(-E), up to its step. The popular *cold* recipe, a step α on E and noise of
# standard deviation η with η² << 2α, is eq. (2) with
#
#     ε = 2α,    T = η²/(2α):       α = 10, η = 0.005 gives T = 1.25e-6.
#
# In theory it fits exp(-E/T), so E is no log density; and its chains, which nearly descend, do not reach exp(-E/T) either.
# One number shows both: x - s² ∇E(x) removes noise of standard deviation s as well as anything can if exp(-E) is the density
# of the noisy data (module 06). Below T = 0.01 stands for the colder ones, and is tried with ∇E and with ∇E/T.


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


class ReplayBuffer:
    """Persistent chains in one tensor (n_blocks, n, B, d), visited block after block: no list, no copies."""

    def __init__(self, n_blocks, n_networks, batch_size, d, reinit, device):
        """reinit = (young, old): the chance to restart, in even ratios from the first chain of a block to the last."""
        self.chains, self.at = torch.randn(n_blocks, n_networks, batch_size, d, device=device), -1
        share = torch.linspace(0, 1, batch_size, device=device).repeat(n_networks)
        self.reinit = reinit[0] ** (1 - share) * reinit[1] ** share

    def next(self):
        """The next block, a view (n, B, d) to be moved in place; chains restart from N(0, I) with their own chance."""
        self.at = (self.at + 1) % len(self.chains)
        block = self.chains[self.at]
        fresh = (torch.rand_like(self.reinit) < self.reinit).nonzero()[:, 0]
        block.view(-1, block.shape[-1]).index_copy_(0, fresh, block.new_empty(len(fresh), block.shape[-1]).normal_())
        return block


CURES = "try a smaller --step-size or --learning-rate, more --n-langevin, smoother activations (SiLU, not ReLU), a larger "
CURES += "--energy-l2, or an earlier checkpoint"


def shared_out(y, n_blocks, n):
    """Classes (n_blocks, n) for chains: among all, and nearly in each block, every class has its share of the labels y (N,).
    In random order within a block, for a chain's place decides how often it restarts."""
    share = (2 * torch.arange(n_blocks * n, device=y.device) + 1) * len(y) // (2 * n_blocks * n)
    blocks = y.sort().values[share].view(n, n_blocks).T
    return blocks.gather(1, torch.rand(n_blocks, n, device=y.device).argsort(1))


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

    x_data (N, d) in [-1, 1]; y_data (N,) for class-conditional energies, whose chains keep their class.
    """

    def __init__(self, energy, x_data, config, y_data=None, temperature=1.0):
        self.energy, self.x, self.y, self.config, self.temperature = energy, x_data, y_data, config, temperature
        self.model = nn.parallel.DistributedDataParallel(energy) if joined() else energy
        self.average = copy.deepcopy(energy).requires_grad_(False)
        self.optimiser = torch.optim.Adam(energy.parameters(), config.learning_rate, fused=True)
        self.n_networks = getattr(energy, "w1", torch.empty(1)).shape[0]
        b, d, device = config.batch_size, x_data.shape[1], x_data.device
        reinit, n_blocks = (config.reinit_young, config.reinit_old), max(config.n_chains // b, 1)
        self.y_chains = None if y_data is None else shared_out(y_data, n_blocks, b)
        self.buffer = ReplayBuffer(n_blocks, self.n_networks, b, d, reinit, device)
        self.step, self.history = 0, []  # of (E data, E chains, gradient norm, movement), one row an update

    def positives(self):
        """A noisy batch (n, B, d) and its classes (B,)."""
        shape = self.n_networks, self.config.batch_size, self.x.shape[1]
        rows = torch.randint(len(self.x), (shape[0] * shape[1],), device=self.x.device)
        x = self.x.index_select(0, rows).view(shape)
        return torch.randn_like(x).mul_(self.config.data_noise).add_(x), None if self.y is None else self.y[rows]

    def negatives(self):
        """Chains (n, B, d) from the buffer, moved; and how far they went, a root mean square a pixel."""
        c, x = self.config, self.buffer.next()
        start = x.clone()
        langevin(self.energy, x, c.n_langevin, c.step_size, self.temperature, self.y_model())
        return x, (x - start).square().mean().sqrt()

    def y_model(self):
        """The classes (B,) of the chains in the buffer's block of the moment."""
        return None if self.y_chains is None else self.y_chains[self.buffer.at]

    def update(self, rate):
        """Two phases, and one step of Adam at this learning rate."""
        x_model, movement = self.negatives()
        x_data, y_data = self.positives()
        y = None if y_data is None else torch.cat([y_data, self.y_model()])
        self.history.append([*self.learn(x_data, x_model, y, rate), movement.item()])
        self.step += 1

    def learn(self, x_data, x_model, y, rate):
        """One step of Adam on the loss and of the weights' average; returns the row of the history, without movement.
        Raises Diverged before the weights are touched."""
        e_data, e_model = self.model(torch.cat([x_data, x_model], 1), y).split([x_data.shape[1], x_model.shape[1]], 1)
        size = self.config.energy_l2 * (e_data.square().mean(1) + e_model.square().mean(1))
        self.optimiser.zero_grad()
        (e_data.mean(1) - e_model.mean(1) + size).sum().backward()
        row = torch.stack([e_data.mean(), e_model.mean(), self.clip().mean()]).tolist()
        if not all(map(math.isfinite, row)) or abs(row[0] - row[1]) > 100 * self.x.shape[1]:
            raise Diverged(f"the run diverged at update {self.step + 1}: energies {row[0]:.3g} and {row[1]:.3g}; {CURES}")
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        memory = min(self.config.ema, (self.step + 1) / (11 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.energy.parameters()), 1 - memory)
        return row

    def clip(self):
        """Shorten each network's gradient to max_gradient; returns the norms before, (n,)."""
        gradients = [p.grad for p in self.energy.parameters()]  # not reshaped: of channels_last that would be a copy
        norm = sum(g.reshape(self.n_networks, -1).square().sum(1) for g in gradients).sqrt()
        shorter = (self.config.max_gradient / norm).clamp(max=1)
        if self.n_networks > 1:  # stacked along the first axis
            torch._foreach_mul_(gradients, [shorter.view(-1, *[1] * (g.dim() - 1)) for g in gradients])
        else:
            torch._foreach_mul_(gradients, [shorter] * len(gradients))
        return norm

    def run(self, n_updates, label, save=None):
        """Go on to update `n_updates`, the rate falling linearly to 0; save(self) every checkpoint_every updates."""
        bar = Progress(range(self.step, n_updates), label, initial=self.step, total=n_updates)
        for step in bar:
            self.update(self.config.learning_rate * (1 - step / n_updates))
            if step % 50 == 0:
                names = ("data", "chains", "gradient", "moved")
                bar.set_postfix(dict(zip(names, (f"{v:.3g}" for v in self.history[-1]), strict=True)))
            if self.step % self.config.checkpoint_every == 0 or self.step == n_updates:
                if not all(p.isfinite().all() for p in self.energy.parameters()):
                    raise Diverged(f"the run diverged at update {self.step}: weights are not finite; {CURES}")
                if save:
                    save(self)
        return self


# A checkpoint holds everything that the next update depends on: weights, their average, Adam's moments, chains, the random
# state, the step. It is written to a file beside it which is then renamed; a rename happens whole or not at all, so a
# killed run leaves the last checkpoint or the one before it, never half of one. With several processes each has chains and
# a random state of its own; the first collects them.

# a training with another of these is another training; another of those may be meant, and is said
SAME = ("dataset", "split", "architecture", "width", "sigma", "data_noise", "batch_size", "n_chains")
SAID = ("n_updates", "n_langevin", "step_size", "reinit_young", "reinit_old", "learning_rate", "energy_l2", "max_gradient")
SAID += ("ema", "precision")


def joined():
    """Whether several processes train together."""
    return dist is not None and dist.is_available() and dist.is_initialized()


def device_stream(x):
    """What keeps the random numbers of the GPU that x is on, or None."""
    return {"cuda": torch.cuda, "mps": torch.mps}.get(x.device.type)


def save_checkpoint(trainer, path):
    """Write the trainer's state to `path`, whole or not at all; every rank calls it, the first writes."""
    own = {"chains": trainer.buffer.chains, "at": trainer.buffer.at, "random": torch.get_rng_state()}
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
            whole = {"settings": settings, "step": trainer.step, "history": trainer.history, "ranks": ranks}
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
        torch.set_rng_state(own["random"])
        if device_stream(trainer.x) and "random_device" in own:
            device_stream(trainer.x).set_rng_state(own["random_device"])
        others = [(name, value) for name, value in saved["settings"].items() if value != getattr(trainer.config, name)]
        return others + [("seed", torch.initial_seed())] * (torch.initial_seed() != seed)
    except FileNotFoundError:
        sys.exit(f"--resume: there is no file {path}")
    except Exception:  # a truncated or foreign file raises many kinds
        sys.exit(f"--resume: {path} is damaged, or no checkpoint of this module")


@functools.cache
@own_random_stream
def trained(run):
    """The training of `digits`, shared with `longrun`: (the trainer, its seconds), with --checkpoint and --resume."""
    config, rank = run.config, dist.get_rank() if joined() else 0
    torch.manual_seed(run.seed)
    energy = build(config).to(run.device)
    torch.manual_seed(run.seed + 1_000_003 * rank)  # each rank its own data and chains
    trainer = Trainer(energy, images(run)[0], config)
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


def travel(energy, x, n_steps, step_size, temperature=1.0, y=None):
    """langevin, on a CPU 250 chains (1, N, d) at a time: what they need then stays in the cache."""
    size = 250 if x.device.type == "cpu" else x.shape[1]
    for first in range(0, x.shape[1], size):
        part = slice(first, first + size)
        langevin(energy, x[:, part], n_steps, step_size, temperature, None if y is None else y[part])
    return x


# Differs from 06_score_matching.py: draw - by Langevin dynamics from noise
@torch.no_grad()
def draw(run, energy, n_steps, temperature=1.0, y=None, n=None):
    """Images (N, d) from noise by `n_steps` of eq. (2), and one step of denoising: E[x | noisy x] = noisy x - s² ∇E."""
    x = torch.randn(1, n or run.config.n_samples, math.prod(SHAPES[run.config.dataset]), device=run.device)
    return denoised(run, energy, travel(energy, x, n_steps, run.config.step_size, temperature, y), y)


def denoised(run, energy, x, y=None):
    """x - s² ∇E(x), (1, N, d) -> (N, d): the mean of the clean image given x, if E is right and s the data noise."""
    clean = (x - run.config.data_noise**2 * energy.slope(x, y))[0]
    must_stay_near(x, clean)
    return clean


# %% 1. Architectures: the experiment


def contenders(config):
    """Energies to compare: {name: (energy, its share of n_short updates)}. For digits on a CPU the shares make the seconds
    about equal. Step, noise and learning rate are those that suit the auto-encoder."""
    shape, width, sigma = SHAPES[config.dataset], config.width, config.sigma
    d, half = math.prod(shape), max(width // 2, 1)
    return {
        "autoencoder": (AutoEncoderEnergy(1, d, width, sigma), 1.0),
        "autoencoder_relu": (Energy(mlp(d, width, d, nn.ReLU, n_hidden=1), sigma), 0.7),
        "mlp": (Energy(mlp(d, half)), 0.6),
        "mlp_relu": (Energy(mlp(d, half, activation=nn.ReLU)), 0.6),
        "mlp_spectral": (Energy(mlp(d, half, norm=spectral_norm)), 0.4),
        "conv": (Energy(conv(shape)), 0.1),
        "conv_max_pool": (Energy(conv(shape, pool=nn.MaxPool2d)), 0.1),
        "residual": (Energy(residual(shape)), 0.05),
    }


def batch_norm_leak(energy, x):
    """By how much E(xᵢ) changes when the other images of the batch change, root mean square over i; x (1, 2B, d)."""
    half = x.shape[1] // 2
    together, apart = energy(x)[:, :half], energy(x[:, :half])
    return (together - apart).square().mean().sqrt().item()


def section_architectures(run):
    """In a few seconds on a CPU energies shaped like an auto-encoder are far ahead; convolutions have hardly begun."""
    config, shape = run.config, SHAPES[run.config.dataset]
    x, drawn, scores = images(run)[0], {}, {}
    n = config.n_samples // 4
    noise = frechet_to_test(run, torch.randn(n, x.shape[1], device=run.device))
    floor = frechet_to_test(run, x[torch.randperm(len(x), device=run.device)[:n]])
    run.metric("pure_noise_frechet", noise, against=("real images", floor))
    for name, (energy, share) in contenders(config).items():
        start = time.perf_counter()
        trainer = Trainer(energy.to(run.device), x, config).run(max(int(share * config.n_short), 2), name)
        run.metric(f"{name}_seconds", time.perf_counter() - start)
        drawn[name] = own_random_stream(draw)(run, trainer.average, config.n_from_noise // 5, n=n)
        scores[name] = frechet_and_sem(run, drawn[name])
        run.metric(f"{name}_frechet", *scores[name])
    torch.manual_seed(run.seed)
    for name, between in (("with", nn.BatchNorm2d), ("without", nn.Identity)):
        energy = Energy(conv(shape, between=between)).to(run.device)
        nn.init.normal_(energy.trunk[-1].weight, std=0.1)
        leak = batch_norm_leak(energy, x[None, :64]) / energy.trunk(x[:64]).std().item()
        run.metric(f"neighbours_matter_{name}_batch_norm", leak, against=("a function of x alone", 0))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(1, 1))
    names = sorted(scores, key=lambda name: scores[name][0], reverse=True)
    means, errors = zip(*(scores[name] for name in names), strict=True)
    axes[0].barh([name.replace("_", " ") for name in names], means, xerr=errors, color="tab:orange")
    axes[0].axvline(noise, color="0.5", ls=":", label="pure noise")
    axes[0].axvline(floor, color="k", ls="--", label="real images")
    axes[0].set(title="the auto-encoder's shape learns fast (equal time)", xlabel="Fréchet distance of samples from noise")
    axes[0].legend(loc="upper right")
    best = [name for name in names[::-1] if name in ("autoencoder", "mlp", "conv", "residual")]
    show_images(axes[1], torch.cat([drawn[name][:10] for name in best]), shape, 10, "their samples from noise")
    middle = [(shape[1] + 1) * (i + 0.5) - 1 for i in range(len(best))]
    axes[1].set(frame_on=False, xticks=[], yticks=middle, yticklabels=best)
    axes[1].axis("on")
    run.figure(fig, "frechet")


# %% 2. The training loop: the experiment


def denoising_db(run, energy, level, temperature=1.0):
    """Peak signal-to-noise ratio (dB, mean over test images) after one step x - level² ∇E(x)/T from noise of that level."""
    clean = images(run)[1][: run.config.n_samples]
    noisy = clean + level * torch.randn_like(clean)
    error = (noisy - level**2 * energy.slope(noisy[None])[0] / temperature - clean).square().mean(1)
    return (10 * (4 / error).log10()).mean().item()  # grey levels span 2


def section_loop(run):
    """One loop: data down, chains up; its energies, gap, gradient and chains are watched, and a divergence is stopped."""
    config, x = run.config, images(run)[0]
    trainers = {}
    for name, temperature in (("proper", 1.0), ("cold", 0.01)):
        torch.manual_seed(run.seed)
        trainers[name] = Trainer(build(config).to(run.device), x, config, temperature=temperature)
        trainers[name].run(config.n_short, name)
        energy = trainers[name].average
        run.metric(f"{name}_frechet", *frechet_and_sem(run, draw(run, energy, config.n_from_noise // 5, temperature)))
        none = ("no denoising", -20 * math.log10(config.data_noise / 2))
        run.metric(f"{name}_denoising_db", denoising_db(run, energy, config.data_noise), against=none)
        if temperature != 1:
            scaled = denoising_db(run, energy, config.data_noise, temperature)
            run.metric(f"{name}_denoising_db_of_e_over_t", scaled, against=none)
        gap = np.subtract(*np.array(trainers[name].history).T[:2])
        run.metric(f"{name}_mean_gap", gap[len(gap) // 2 :].mean(), against=("chains that keep up", 0))

    path, warm = run.out / "loop_last_good.pt", min(50, config.n_short // 2)
    doomed = Trainer(build(config).to(run.device), x, config).run(warm, "sound")
    save_checkpoint(doomed, path)
    doomed.config = replace(config, step_size=100 * config.step_size)  # far beyond the 4 s² of module 01
    try:
        doomed.run(config.n_short, "too wide")
        run.metric("updates_without_divergence", doomed.step)
    except Diverged:
        run.metric("diverged_at_update", doomed.step + 1, against=("the step became too wide after", warm))
        load_checkpoint(doomed, path)
        finite = all(p.isfinite().all() for p in doomed.energy.parameters())
        run.metric("last_good_update_is_kept", doomed.step if finite else -1, against=("written at", warm), within=0)

    fig, axes = plt.subplots(2, 2, figsize=(12, 7), layout="tight", sharex=True)
    energies, gap, gradient, movement = axes.flat
    for (name, trainer), colour in zip(trainers.items(), ("tab:orange", "tab:blue"), strict=True):
        e_data, e_model, norm, moved = np.array(trainer.history).T
        energies.plot(e_data, color=colour, label=f"{name}: data")
        energies.plot(e_model, color=colour, alpha=0.4, label=f"{name}: chains")
        for ax, values in ((gap, e_data - e_model), (gradient, norm), (movement, moved)):
            ax.plot(values, color=colour, lw=1, label=name)
    energies.set(title="energies of data and chains", ylabel="E (nats)", yscale="symlog")
    gap.axhline(0, color="k", ls="--", lw=1)
    gap.set(title="their gap: around 0 once chains keep up", ylabel="data minus chains (nats)", yscale="symlog")
    gradient.set(title="gradient norm, before clipping", xlabel="update", yscale="log")
    free = math.sqrt(config.n_langevin * config.step_size)
    movement.axhline(free, color="k", ls="--", label="free diffusion at T = 1")
    movement.set(title="how far chains move between updates", xlabel="update", ylabel="rms a pixel")
    for ax in axes.flat:
        ax.legend()
    run.figure(fig, "diagnostics")


# %% 3. In two dimensions, where truth is known
# On a grid Z is a sum, so log p is exact at every moment of the training. The contrastive loss is not a likelihood: it is
# a difference of two averages that a good trainer brings to 0 long before it is done, and a bad one too. And the image
# recipe does not carry over: restarts put chains where noise falls, not where the model's mass is, so the masses of
# separated modes are never set right. Module 06's repair: chains start from the model's own first density, with weights,
#
#     log w <- log w + E_old(x) - E_new(x)      at every update of the energy, then x moves by MALA under E_new,       (4)
#
# and a new set is drawn from them when the effective sample size falls under half (Carbone et al. 2023).

BOX = 2.0  # the plane's window [-2, 2]²


def eight_gaussians(n, device="cpu"):
    """n points (n, 2) from eight Gaussians, std 0.1, on a circle of radius 4/3."""
    angle = torch.randint(8, (n,), device=device) * (math.pi / 4)
    return 4 / 3 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2, device=device)


def eight_gaussians_log_density(x):
    """Its exact log density, x (N, 2) -> (N,)."""
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


def train_in_2d(run, weighted):
    """Maximum likelihood on eight Gaussians by chains, all moved between two updates: weighted as in eq. (4), or plain with
    restarts from noise. Returns the energy, and rows (update, contrastive loss, exact gap)."""
    config, n, rows = run.config, run.config.n_samples, []
    trunk = mlp(2, 128)
    nn.init.normal_(trunk[0].weight, std=3.0)  # in two dimensions a network is smooth unless it starts rough
    energy = Energy(trunk).to(run.device)
    average, x, log_w = copy.deepcopy(energy).requires_grad_(False), torch.randn(n, 2, device=run.device), torch.zeros(n)
    optimiser, log_w = torch.optim.Adam(energy.parameters(), 3e-3, betas=(0.9, 0.99)), log_w.to(run.device)

    def flat(y):
        return energy(y[None])[0]

    for step in Progress(range(config.n_2d), "weighted" if weighted else "restarts"):
        data, optimiser.param_groups[0]["lr"] = eight_gaussians(400, run.device), 3e-3 * (1 - step / config.n_2d)
        loss = flat(data).mean() - (log_w.softmax(0) * flat(x)).sum()
        optimiser.zero_grad()
        loss.backward()
        if weighted:  # eq. (4)'s move, one turn later: the last E_new. The gradient has not seen where it will be weighed
            x, _ = mala(flat, x, 4, 0.01)
        with torch.no_grad():
            before = flat(x)
            nn.utils.clip_grad_norm_(energy.parameters(), 1.0)
            optimiser.step()
            torch._foreach_lerp_(list(average.parameters()), list(energy.parameters()), 0.02)
            if weighted:
                log_w += before - flat(x)
                if (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp() < n / 2:
                    x, log_w = x[resample(log_w)], torch.zeros_like(log_w)
            else:
                fresh = torch.rand(n, 1, device=run.device) < 0.02
                x = langevin(energy, torch.where(fresh, torch.randn_like(x), x)[None], 4, 0.01)[0]
        if step % max(config.n_2d // 40, 1) == 0:
            rows.append((step, loss.item(), exact_gap(energy, 100)[0]))
    return average, np.array(rows)


def section_truth2d(run):
    """A contrastive loss near 0 says nothing: the exact likelihood tells that weighted chains learn and restarts fail."""
    check_settings(run)
    fig, axes = plt.subplots(1, 4, figsize=(14, 3.9), layout="constrained")
    for i, (name, label, colour) in enumerate(
        (("weighted", "weighted chains, eq. (4)", "tab:orange"), ("restarts", "restarts from noise", "tab:blue"))
    ):
        torch.manual_seed(run.seed)
        energy, rows = train_in_2d(run, name == "weighted")
        gap, density = exact_gap(energy)
        within = 0.15 if name == "weighted" else None
        run.metric(f"{name}_gap", gap, against=("the data's own log density", 0), within=within)
        for part, half in (("early", rows[: (len(rows) + 1) // 2]), ("late", rows[len(rows) // 2 :])):
            beside = ("its gap, same updates", half[:, 2].mean())
            run.metric(f"{name}_loss_{part}", *mean_and_sem(half[:, 1]), against=beside)
        axes[0].plot(rows[:, 0], rows[:, 1], color=colour, lw=1)
        axes[1].plot(rows[:, 0], rows[:, 2], color=colour, lw=2, label=label)
        axes[i + 2].imshow(density.T.cpu().numpy(), origin="lower", cmap="magma")
        axes[i + 2].set(title=f"{name}, averaged: {gap:.2f} nats", xticks=[], yticks=[])
    axes[0].axhline(0, color="k", ls="--")
    axes[0].set(title="the loss: both end near 0", xlabel="update", ylabel="contrastive loss")
    axes[1].set(title="the exact gap tells who learns", xlabel="update", ylabel="KL(data || model), nats", yscale="log")
    axes[1].legend(loc="lower left")
    run.figure(fig, "likelihood")


# %% 4. Digits from noise
# Start chains at N(0, I), follow eq. (2), and clean the result once: the data had noise of standard deviation s added, so
# x - s² ∇E(x) is the mean of the clean image given the noisy one (module 06, Tweedie's formula). Every number stands
# between two others: what real images score, and what a Gaussian mixture scores that was fitted in a blink.


def mixture_samples(run, n):
    """n images (n, d) from a Gaussian mixture with 40 components fitted to the training images."""
    x = in_float64(images(run)[0])
    shape = "full" if x.shape[1] < 100 else "diag"
    fitted = GaussianMixture(min(40, len(x) // 10), covariance_type=shape, reg_covar=1e-3, random_state=run.seed).fit(x)
    drawn, _ = fitted.sample(n)  # in the order of the components
    drawn = np.random.default_rng(run.seed).permutation(drawn)
    return torch.as_tensor(drawn, dtype=torch.float32, device=run.device).clamp(-1, 1)


def animate(run, energy, name, n_frames=40):
    """GIF of 25 chains on their way from noise to digits, the later frames further apart."""
    shape, steps = SHAPES[run.config.dataset], 0
    x = torch.randn(1, 25, math.prod(shape), device=run.device)
    fig, ax = plt.subplots(figsize=(3.6, 3.9), layout="tight")
    writer = PillowWriter(fps=6)
    with run.whole(name) as path:
        writer.setup(fig, path, dpi=70)  # not `saving`: interrupted before the first frame it hides why
        for mark in sorted({0, *np.geomspace(1, run.config.n_from_noise, n_frames).astype(int).tolist()}):
            langevin(energy, x, mark - steps, run.config.step_size)
            must_stay_near(x)
            steps = mark
            ax.clear()
            show_images(ax, x[0], shape, 5, f"{steps} Langevin steps")
            writer.grab_frame()
        writer.finish()
    plt.close(fig)


def section_digits(run):
    """Digits from pure noise, held against real images, copies and a Gaussian mixture: fitted in a blink, and no worse."""
    config, (x, x_test, _, _) = run.config, images(run)
    trainer, seconds = trained(run)
    run.metric("training_seconds", seconds)
    run.metric("classifier_accuracy", judge(run)[1], against=("guessing", 0.1))
    drawn = draw(run, trainer.average, config.n_from_noise)
    start = time.perf_counter()
    mixture = mixture_samples(run, config.n_samples)
    run.metric("mixture_seconds", time.perf_counter() - start)
    floor = frechet_to_test(run, x[torch.randperm(len(x), device=run.device)[: config.n_samples]])
    run.metric("frechet_real", floor, against=("the same images", 0))
    frechet = frechet_and_sem(run, drawn)
    run.metric("frechet_from_noise", *frechet, against=("real images", floor))
    buffer = denoised(run, trainer.average, trainer.buffer.chains.flatten(0, 2)[None])
    run.metric("frechet_buffer", frechet_to_test(run, buffer), against=("from noise", frechet[0]))
    run.metric("frechet_mixture", frechet_to_test(run, mixture), against=("from noise", frechet[0]))
    for name, part in (("from_noise", drawn), ("mixture", mixture)):
        even = frechet_to_test(run, even_classes(run, part))
        run.metric(f"frechet_{name}_even_classes", even, against=("real images", floor))
    for name, part in (("", drawn), ("_mixture", mixture), ("_real", x_test)):
        run.metric("two_sample_accuracy" + name, *two_sample_accuracy(run, part), against=("cannot be told apart", 0.5))
    run.metric("class_entropy", class_entropy(run, drawn), against=("real images", class_entropy(run, x_test)))
    distances = {name: nearest_distances(part, x) for name, part in (("from noise", drawn), ("new real images", x_test))}
    held_out = distances["new real images"].median()
    run.metric("nearest_training_image", distances["from noise"].median(), against=("new real images", held_out))

    animate(run, trainer.average, "digits_from_noise.gif")
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="tight")
    distance = frechet_to_test(run, mixture)
    names = ("real images", f"from noise, Fréchet {frechet[0]:.2f}", f"Gaussian mixture, Fréchet {distance:.2f}")
    for ax, part, name in zip(axes, (x_test, drawn, mixture), names, strict=True):
        show_images(ax, part[:64], SHAPES[config.dataset], 8, name)
    run.figure(fig, "samples")

    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="tight")
    picks = drawn[:24]
    nearest = x[torch.cdist(picks, x).argmin(1)]
    pairs = torch.stack([picks.unflatten(0, (-1, 8)), nearest.unflatten(0, (-1, 8))], 1).flatten(0, 2)
    show_images(axes[0], pairs, SHAPES[config.dataset], 8, "samples; below each, the nearest training image")
    for (name, values), colour in zip(distances.items(), ("tab:orange", "tab:blue"), strict=True):
        axes[1].hist(values.cpu().numpy(), 25, density=True, histtype="step", lw=2, color=colour, label=name)
    axes[1].set(title="copies would pile up at 0", xlabel="distance to the nearest training image", ylabel="density")
    axes[1].legend()
    for i, (part, label) in enumerate(((x_test, "real images"), (drawn, "from noise"), (mixture, "mixture"))):
        share = torch.bincount(classes(run, part), minlength=10) / len(part)
        colour = ("tab:blue", "tab:orange", "0.6")[i]
        axes[2].bar(np.arange(10) + 0.28 * (i - 1), share.cpu().numpy(), 0.26, color=colour, label=label)
    axes[2].set(title="what is off: the classes' shares", xlabel="class", ylabel="share", xticks=range(10))
    axes[2].set_ylim(0, 1.5 * axes[2].get_ylim()[1])
    axes[2].legend()
    run.figure(fig, "copies_and_classes")


# %% 5. The long run
# Samples that look right after some hundred steps prove that some hundred steps make digits, not that exp(-E) has its mass
# there. Trained with short chains only, a network becomes a generator whose further steps lead anywhere (Nijkamp et al.
# 2019, 2020). Chains of many ages in the buffer keep the long run to digits here. What still drifts shows when the samples
# are judged twice, as they are and with their classes made even: digits stay digits, but a chain rarely turns from one
# class into another, so the classes' shares are the last thing that the energy learns and the first that it forgets.


def section_longrun(run):
    """Run the chains on and on: digits stay digits, their proportions drift; and T = 1, as in training, is best."""
    config, (trainer, _) = run.config, trained(run)
    energy, shape, rows = trainer.average, SHAPES[config.dataset], []
    marks = sorted({max(int(config.n_long * share), 1) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)})
    some = torch.randperm(len(images(run)[0]), device=run.device)[: config.n_samples]
    data = images(run)[0][some][None]
    data = data + config.data_noise * torch.randn_like(data)
    x, shown = torch.randn(1, config.n_samples, data.shape[-1], device=run.device), []
    for before, step in zip([0, *marks], marks, strict=False):
        clean = denoised(run, energy, travel(energy, x, step - before, config.step_size))
        drift = (energy(x).mean() - energy(data).mean()).item()
        even = frechet_to_test(run, even_classes(run, clean))
        rows.append((step, *frechet_and_sem(run, clean), even))
        shown.append(clean[:12])
        run.metric(f"frechet_after_{step}", *rows[-1][1:3], against=("its classes made even", even))
        run.metric(f"class_entropy_after_{step}", class_entropy(run, clean), against=("equal classes", 1))
        run.metric(f"energy_above_data_after_{step}", drift, against=("if the model is right", 0))
    n_steps = config.n_from_noise
    half = n_steps // 2
    schedules = {
        "temperature_1": 1.0,
        "temperature_0.3": 0.3,
        "temperature_1.5": 1.5,
        "annealed_to_0": np.r_[np.ones(n_steps - half), np.linspace(1, 0, half)],
    }
    scores = {}
    for name, temperature in schedules.items():
        scores[name] = frechet_and_sem(run, draw(run, energy, n_steps, temperature, n=config.n_samples // 2))
        run.metric(f"frechet_{name}", *scores[name], against=("T = 1", scores["temperature_1"][0]))

    steps, frechet, sem, even = np.array(rows).T
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    axes[0].errorbar(steps, frechet, sem, fmt="o-", color="tab:orange", label="samples")
    axes[0].plot(steps, even, "s-", color="tab:green", label="the same, classes made even")
    axes[0].axvline(config.n_from_noise, color="k", ls=":", label="where samples are taken")
    axes[0].set(title="what drifts is the classes", xlabel="Langevin steps from noise", xscale="log")
    axes[0].set(ylabel="Fréchet distance", ylim=(0, 1.6 * max(frechet)))
    axes[0].legend(loc="upper center")
    show_images(axes[1], torch.cat(shown), shape, 12, "twelve chains")
    middle = [(shape[1] + 1) * (i + 0.5) - 1 for i in range(len(marks))]
    axes[1].set(frame_on=False, xticks=[], yticks=middle, yticklabels=marks, ylabel="Langevin steps from noise")
    axes[1].axis("on")
    means, errors = zip(*scores.values(), strict=True)
    axes[2].barh([name.replace("_", " ") for name in scores], means, xerr=errors, color="tab:orange")
    axes[2].set(title=f"T = 1, as in training, is best ({n_steps} steps)", xlabel="Fréchet distance")
    run.figure(fig, "drift")


# %% 6. Ablations
# One change each, the same number of updates, several networks side by side in one batch of matrix products. Small networks
# trained briefly, so the order matters and not the level; and not every order carries over: a wider step wins here, where
# time is short. Each is sampled with the step it was trained with, for the same number of steps from noise.


def shrink(energy, limit=1.0):
    """Project both weights of an AutoEncoderEnergy to spectral norm at most `limit`, in place."""
    with torch.no_grad():
        for w in (energy.w1, energy.w2):
            w.mul_((limit / torch.linalg.matrix_norm(w, 2)).clamp(max=1)[:, None, None])


def section_ablations(run):
    """Change one thing at a time: without the buffer, its restarts or a network free to bend, nothing works."""
    config = replace(run.config, width=max(run.config.width // 4, 16))
    config = replace(config, batch_size=max(config.batch_size // 2, 1), n_chains=config.n_chains // 4)
    config, n_updates = replace(config, learning_rate=2 * config.learning_rate), 4 * config.n_short // 3
    changes = {
        "as it is": {},
        "no buffer": {"reinit_young": 1.0, "reinit_old": 1.0},
        "no restarts": {"reinit_young": 0.0, "reinit_old": 0.0},
        "restart 20 %": {"reinit_young": 0.2, "reinit_old": 0.2},
        "5 Langevin steps": {"n_langevin": max(config.n_langevin // 4, 1)},
        "step / 4": {"step_size": config.step_size / 4},
        "step x 3": {"step_size": 3 * config.step_size},
        "energy L2 x 1000": {"energy_l2": 1000 * config.energy_l2},
        "spectral norm 1": {},
    }
    x, d, scores = images(run)[0], images(run)[0].shape[1], {}
    for name, change in changes.items():
        torch.manual_seed(run.seed)
        changed = replace(config, **change)
        energy = AutoEncoderEnergy(config.n_seeds, d, config.width, config.sigma).to(run.device)
        trainer = Trainer(energy, x, changed)
        if name == "spectral norm 1":
            trainer.optimiser.register_step_post_hook(lambda *_, energy=energy: shrink(energy))
        with contextlib.suppress(Diverged):  # its samples will show it
            trainer.run(n_updates, name)
        noise = torch.randn(config.n_seeds, config.n_samples // 2, d, device=run.device)
        ends = langevin(trainer.average, noise, max(config.n_from_noise // 3, 1), changed.step_size)
        clean = (ends - changed.data_noise**2 * trainer.average.slope(ends)).nan_to_num(1.0, 1.0, -1.0)
        key = name.replace(" ", "_").replace("/", "by").replace("%", "percent")
        scores[name] = mean_and_sem([frechet_to_test(run, part) for part in clean])
        run.metric(f"frechet_{key}", *scores[name], against=("as it is", scores["as it is"][0]))

    fig, ax = plt.subplots(figsize=(10, 4.8), layout="tight")
    means, errors = zip(*scores.values(), strict=True)
    colours = ["tab:blue"] + ["tab:orange"] * (len(scores) - 1)
    ax.barh(list(scores), means, xerr=errors, color=colours, capsize=4)
    ax.axvline(means[0], color="tab:blue", ls=":")
    ax.invert_yaxis()
    title = f"one change each ({config.n_seeds} networks, {n_updates} updates): some break it, some hardly matter"
    ax.set(title=title, xlabel="Fréchet distance of samples from noise")
    run.figure(fig, "changes")


# %% 7. Class-conditional energies
# Give each class hidden biases of its own and let the rest be shared:
#
#     p(x | y) = exp(-E(x, y))/Z(y)            two phases within each class: chains keep the class they were born with.  (5)
#
# Every Z(y) stays unknown, so argmin E(x, y) is no classifier: Bayes' rule needs the Z's, and nothing fixes their ratios. On
# one seed it may do as well as the judge, on the next far worse (try --seed 1). And asked for even classes, the model is
# spared what the unconditional one gets wrong: hold it against a mixture whose classes are made even, too.


def section_conditional(run):
    """One more input asks for a class, and an independent classifier checks that the samples obey."""
    config, (x, x_test, y, y_test) = run.config, images(run)
    if config.n_chains < 10:
        sys.exit("--n-chains must be at least 10 here: each class needs chains of its own")
    torch.manual_seed(run.seed)
    energy = AutoEncoderEnergy(1, x.shape[1], config.width, config.sigma, 10).to(run.device)
    trainer = Trainer(energy, x, config, y).run(max(int(0.25 * config.n_updates), 2), "conditional")
    asked = torch.arange(config.n_samples, device=run.device) % 10
    drawn = draw(run, trainer.average, config.n_from_noise, y=asked)
    accuracy = judge(run)[1]
    obeyed = (classes(run, drawn) == asked).float()
    run.metric("asked_class_is_drawn", *mean_and_sem(obeyed.cpu()), against=("the judge on real images", accuracy))
    mixture = mixture_samples(run, config.n_samples)
    even = frechet_to_test(run, even_classes(run, mixture))
    run.metric("frechet", *frechet_and_sem(run, drawn), against=("the mixture, classes made even", even))
    told = two_sample_accuracy(run, mixture)[0]
    run.metric("two_sample_accuracy", *two_sample_accuracy(run, drawn), against=("the mixture", told))
    with torch.no_grad():
        n = len(x_test)
        energies = trainer.average(x_test.repeat(10, 1)[None], torch.arange(10, device=run.device).repeat_interleave(n))
    lowest = energies.reshape(10, n).argmin(0)
    run.metric("accuracy_of_lowest_energy", *mean_and_sem((lowest == y_test).cpu()), against=("the judge", accuracy))

    fig, axes = plt.subplots(1, 2, figsize=(12, 5), layout="tight")
    show_images(axes[0], drawn[:100], SHAPES[config.dataset], 10, "samples, one class a column")
    share = [obeyed[asked == k].mean().item() for k in range(10)]
    axes[1].bar(range(10), share, color="tab:orange", label="samples that the judge puts in the class asked for")
    axes[1].axhline(accuracy, color="k", ls="--", label="the judge on real test images")
    axes[1].set(title="it draws what it is asked for", xlabel="class", ylabel="share", ylim=(0, 1.3), xticks=range(10))
    axes[1].legend()
    run.figure(fig, "classes")


# %% 8. Scale
# The same file on a GPU: --device auto. Numbers of half the width (bfloat16) where they pay: on convolutions, with the
# channels last in memory, and only for ∇ₓE, whose error then hides under Langevin's noise; the weights' gradients stay in
# float32. A checkpoint goes on as if nothing had happened. And under torchrun each process moves chains of its own, and
# DistributedDataParallel averages the gradients: since the loss is a mean over the batch, that is the gradient of the joined
# batch.


def seconds_of(job, n=5):
    """The fastest of n runs of job(), in seconds, after one to warm up; job returns a tensor."""
    job().sum().item()
    times = [time.perf_counter()]
    for _ in range(n):
        job().sum().item()  # a GPU is done with it only when a number is asked for
        times.append(time.perf_counter())
    return np.diff(times).min()


def section_scale(run):
    """The same file grows: numbers of half the width where they pay, and checkpoints that go on bit for bit."""
    config, shape = run.config, (3, 32, 32)
    n = 16 if config.n_short < 100 else 128
    x = torch.randn(1, n, math.prod(shape), device=run.device)
    plain = Energy(conv(shape)).to(run.device)
    nn.init.normal_(plain.trunk[-1].weight, std=0.05)
    energies = {"float32": plain, "bfloat16": copy.deepcopy(plain), "bfloat16_channels_last": copy.deepcopy(plain)}
    for name in ("bfloat16", "bfloat16_channels_last"):
        energies[name].precision = torch.bfloat16
    energies["bfloat16_channels_last"].to(memory_format=torch.channels_last)
    exact, seconds = plain.slope(x) - x, {}
    for name, energy in energies.items():
        seconds[name] = seconds_of(lambda energy=energy: energy.slope(x))
        run.metric(f"conv_slope_{name}_seconds", seconds[name])
        if energy is not plain:
            error = (energy.slope(x) - x - exact).norm() / exact.norm()
            run.metric(f"conv_slope_{name}_error", error, against=("float32", 0), within=0.02)

    def short(n_updates, path=None, resume=None):
        torch.manual_seed(run.seed)
        trainer = Trainer(build(tiny).to(run.device), images(run)[0], tiny)
        if resume:
            load_checkpoint(trainer, resume)
        save = (lambda t: t.step == 4 and save_checkpoint(t, path)) if path else None
        return trainer.run(n_updates, "resumed" if resume else "whole", save)

    tiny, path = replace(config, n_langevin=5, checkpoint_every=2), run.out / "scale_checkpoint.pt"
    whole, resumed = short(8, path), short(8, resume=path)
    pairs = zip(whole.average.parameters(), resumed.average.parameters(), strict=True)
    difference = max((a - b).abs().max().item() for a, b in pairs)
    run.metric("resumed_minus_uninterrupted", difference, against=("bit for bit", 0), within=0)

    fig, ax = plt.subplots(figsize=(8, 4), layout="tight")
    ax.barh([name.replace("_", " ") for name in seconds], [1e3 * s for s in seconds.values()], color="tab:orange")
    faster = seconds["float32"] / seconds["bfloat16_channels_last"]
    ax.set(title=f"convolutions at half the width: {faster:.1f} times as fast here")
    ax.set(xlabel=f"input gradient of a convolutional energy, {n} colour images (milliseconds)")
    run.figure(fig, "precision")


SECTIONS = {
    "architectures": section_architectures,
    "loop": section_loop,
    "truth2d": section_truth2d,
    "digits": section_digits,
    "longrun": section_longrun,
    "ablations": section_ablations,
    "conditional": section_conditional,
    "scale": section_scale,
}


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


# Differs from 01_ebm_foundations.py: __main__ - under torchrun the processes train together
if __name__ == "__main__" and not in_notebook():  # in a notebook, call main(["--section", "..."]) yourself
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # a console that cannot print a folder's name
    try:
        with joined_ranks():
            main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except OSError as error:  # a full disk, a folder that vanished
        sys.exit(f"cannot go on: {error}")
