"""Module 07: energies, Langevin, buffer, trainer and scores against closed forms; checkpoints; two processes."""

import copy
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import import_torchvision, load
from torch import nn
from torch.nn.functional import silu

m = load("07")
D = 6


def tiny(**changes):
    return replace(m.Config(), **(m.SMOKE | changes))


@pytest.fixture
def run(tmp_path):
    return a_run(tmp_path)


def a_run(folder, **changes):
    return m.Run(tiny(**changes), 0, "cpu", folder, False)


class Entry(NamedTuple):
    """What a section recorded under a name."""

    value: float
    sem: float | None
    against: tuple | None
    within: float | None


class Notes(m.Run):
    """A Run that keeps what a section records, says and draws."""

    def __init__(self, folder, **changes):
        super().__init__(tiny(**changes), 0, "cpu", folder, False)
        self.said, self.titles = [], {}

    def metric(self, name, value, sem=None, against=None, within=None):
        assert name not in self.metrics
        self.metrics[name] = Entry(float(value), sem, against, within)

    def say(self, sentence):
        self.said.append(sentence)

    def figure(self, fig, name):
        self.titles[name] = [ax.get_title() for ax in fig.axes]
        plt.close(fig)


def rough(energy, std=0.4):
    """The same energy with all its weights random: fresh ones begin as a Gaussian."""
    for p in energy.parameters():
        nn.init.normal_(p, std=std)
    return energy


def autoencoder(n=1, n_labels=1):
    return rough(m.AutoEncoderEnergy(n, D, 10, 0.7, n_labels))


def fresh_trainer(energy, x=None, y=None, temperature=1.0, **changes):
    return m.Trainer(energy, torch.rand(40, D) * 2 - 1 if x is None else x, tiny(**changes), y, temperature)


class Gaussian(nn.Module):
    """E = a|x|²/2. Its slope carries a graph to a, which nobody may follow; `asked` keeps the classes it was given."""

    def __init__(self, a):
        super().__init__()
        self.a, self.asked = nn.Parameter(torch.tensor(a)), []

    def forward(self, x, y=None):
        return self.a * x.square().sum(-1) / 2

    def slope(self, x, y=None):
        self.asked.append(y)
        return self.a * x


# The data, and a judge


@pytest.mark.parametrize(
    "wrong",
    [{"n_chains": 33}, {"reinit": 1.1}, {"ema": 1.0}, {"n_samples": 39}, {"sigma": 1e31}, {"resume": "no-such-file"}]
    + [{"checkpoint": "."}, {"checkpoint": "no-such-folder/c.pt"}, {"n_clusters": 33}, {"n_components": 360}]
    + [{"n_clusters": 400, "n_chains": 400}],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(wrong, tmp_path):
    with pytest.raises(SystemExit, match=f"--{next(iter(wrong)).replace('_', '-')}") as stop:
        m.images(a_run(tmp_path, **wrong))
    assert "\n" not in stop.value.code


def test_two_dimensions_too_refuse_what_makes_no_sense(tmp_path):
    with pytest.raises(SystemExit, match="--resume: there is no file"):
        m.main(["--smoke", "--section", "truth2d", "--resume", str(tmp_path / "c.pt"), "--out", str(tmp_path)])


def test_digits_span_minus_one_to_one_and_validation_images_come_from_the_training_set(tmp_path):
    x, x_test, y, y_test = m.images(a_run(tmp_path))
    assert (len(x), len(x_test), x.min(), x.max()) == (1437, 360, -1, 1)
    x_inner, x_validation, _, _ = m.images(a_run(tmp_path, split="validation"))
    assert (len(x_inner), len(x_validation)) == (1077, 360)
    assert torch.cdist(torch.cat([x_inner, x_validation]), x).amin(1).max() == 0
    assert abs(torch.bincount(y) / 1437 - torch.bincount(y_test) / 360).max() < 0.01


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """An empty working folder's data/, without a network, and with torchvision made to load beside a CPU torch."""
    monkeypatch.chdir(tmp_path)
    datasets = import_torchvision()
    for data in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(data, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_and_fashion_mnist_go_through_torchvision(data_folder, name, folder):
    (data_folder / folder / "raw").mkdir(parents=True)
    kept = {}
    for part, n in (("train", 30), ("t10k", 20)):
        kept[part] = np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8)
        header = struct.pack(">IIII", 0x803, n, 28, 28)
        (data_folder / folder / "raw" / f"{part}-images-idx3-ubyte").write_bytes(header + kept[part].tobytes())
        labels = struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        (data_folder / folder / "raw" / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    x, x_test, y, y_test = m.load_images(name)
    np.testing.assert_allclose(x, kept["train"].reshape(30, 784) / 127.5 - 1)
    np.testing.assert_allclose(x_test, kept["t10k"].reshape(20, 784) / 127.5 - 1)
    assert (list(y), list(y_test)) == ([i % 10 for i in range(30)], [i % 10 for i in range(20)])


def test_cifar10_goes_through_torchvision_with_the_channels_first(data_folder, monkeypatch):
    CIFAR10 = import_torchvision().CIFAR10
    folder, rng = data_folder / CIFAR10.base_folder, np.random.default_rng(0)
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    kept = [rng.integers(0, 256, (20, 3072), np.uint8) for _ in range(2)]
    lists = [[write(f"batch_{i}", {"data": part, "labels": [k % 10 for k in range(20)]})] for i, part in enumerate(kept)]
    meta = write("meta", {"label_names": list("0123456789")})
    monkeypatch.setattr(CIFAR10, "train_list", lists[0])
    monkeypatch.setattr(CIFAR10, "test_list", lists[1])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    x, x_test, y, _ = m.load_images("cifar10")
    np.testing.assert_allclose(x, kept[0] / 127.5 - 1)  # the files hold (channel, row, column) too
    np.testing.assert_allclose(x_test, kept[1] / 127.5 - 1)
    assert list(y[:11]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert m.SHAPES["cifar10"] == (3, 32, 32)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_missing_data_set_is_one_clear_line(data_folder, name):
    with pytest.raises(SystemExit, match=r"^cannot load \w+ \(.*--dataset digits$") as stop:
        m.main(["--smoke", "--dataset", name, "--section", "digits", "--out", "out"])
    assert stop.value.code.count("\n") == 0
    assert name == "cifar10" or "refused" in stop.value.code or "127.0.0.1" in stop.value.code


def test_a_failed_download_names_its_cause_which_stands_on_the_last_line(data_folder, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried http://a/b, got:\n<urlopen error no route>")

    monkeypatch.setattr(import_torchvision(), "MNIST", fail)
    with pytest.raises(
        SystemExit, match=r"\(Error downloading .* got: <urlopen error no route>\): .*delete what data/ holds"
    ):
        m.load_images("mnist")


def test_the_judge_knows_digits_and_leaves_the_random_state_alone(run):
    state = torch.get_rng_state()
    net, accuracy = m.judge(m.Run(m.Config(), 0, "cpu", run.out, False))
    assert torch.equal(state, torch.get_rng_state())
    assert 0.96 < accuracy < 1
    assert net[:4](m.images(run)[1]).abs().max() <= 1
    assert not any(p.requires_grad for p in net.parameters())


def with_moments(mean, covariance, n=50):
    """n points whose sample mean and covariance are exactly these."""
    x = torch.randn(n, len(mean)).double().numpy()
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return mean + x @ np.linalg.cholesky(covariance).T


def test_frechet_distance_is_that_of_gaussians_and_0_for_equal_sets():
    (m1, m2), (s1, s2) = np.random.default_rng(0).normal(size=(2, 3)), (np.array([1.0, 2, 3]), np.array([2.0, 1, 0.5]))
    a, b = with_moments(m1, np.diag(s1**2)), with_moments(m2, np.diag(s2**2))
    assert m.frechet_distance(a, b) == pytest.approx(((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum())
    assert m.frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    c1, c2 = (x.T @ x + np.eye(3) for x in np.random.default_rng(1).normal(size=(2, 4, 3)))  # do not commute
    expected = np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert m.frechet_distance(with_moments(m1, c1), with_moments(m1, c2)) == pytest.approx(expected)


@pytest.fixture
def toy_images(monkeypatch):
    """Images of five pixels, many of them black or white, and a judge whose features are the images."""
    x_train, x_test = torch.randn(400, 5).clamp(-1, 1), 0.3 * torch.randn(300, 5) + 0.1
    monkeypatch.setattr(m, "images", lambda run: (x_train, x_test, None, None))
    monkeypatch.setattr(m, "judge", lambda run: (nn.Sequential(*[nn.Identity()] * 5), 1.0))
    return x_train, x_test


def test_frechet_to_test_measures_clamped_images_in_units_of_the_training_features(toy_images):
    (x_train, x_test), x = toy_images, torch.randn(200, 5)
    scale = x_train.numpy().std(0)
    expected = m.frechet_distance(x.clamp(-1, 1).numpy() / scale, x_test.numpy() / scale)
    assert m.frechet_to_test(None, x) == pytest.approx(expected, rel=1e-5)


def test_the_standard_error_of_a_distance_comes_from_four_quarters(toy_images):
    x = torch.randn(42, 5)
    value, sem = m.frechet_and_sem(None, x)
    assert value == m.frechet_to_test(None, x)
    quarters = [m.frechet_to_test(None, part.clone()) for part in x.tensor_split(4)]
    assert sem == pytest.approx(np.std(quarters, ddof=1) / 2)
    assert math.isfinite(m.frechet_and_sem(None, x[:10])[1])


def test_two_sample_accuracy_is_a_half_for_like_sets_and_1_for_far_ones(monkeypatch):
    run, grey = types.SimpleNamespace(config=tiny()), m.as_pixels(torch.randn(800, 3), 17)
    monkeypatch.setattr(m, "images", lambda run: (grey[:400], None, None, None))
    accuracy, sem = m.two_sample_accuracy(run, grey[400:] + (torch.rand(400, 3) - 0.5) / 9)
    assert abs(accuracy - 0.5) < 0.08
    assert 0 < sem < 0.05
    assert m.two_sample_accuracy(run, 0.9 + 0.1 * torch.randn(400, 3))[0] > 0.9


def test_samples_are_rounded_to_pixels_before_they_are_told_from_real_images(monkeypatch):
    """The mistake: to leave them as they are; what lies between the grey levels gives them away."""
    seen, run = [], types.SimpleNamespace(config=tiny())
    monkeypatch.setattr(m, "images", lambda run: (torch.zeros(50, 3), None, None, None))
    monkeypatch.setattr(m, "cross_val_score", lambda svm, x, y, cv: seen.append((x, y)) or np.ones(2))
    x = torch.randn(50, 3)
    m.two_sample_accuracy(run, x)
    ((both, is_sample),) = seen
    np.testing.assert_allclose(both[is_sample], m.as_pixels(x, 17))
    assert (both[~is_sample] == 0).all()


def test_pixels_have_even_grey_levels_from_black_to_white():
    levels = m.as_pixels(torch.linspace(-2, 2, 5001), 17).unique()
    torch.testing.assert_close(levels, torch.arange(17) / 8 - 1)
    x = 2 * torch.rand(1000) - 1
    assert (m.as_pixels(x, 256) - x).abs().max() <= 1 / 255 + 1e-6
    real = m.load_images("digits")[0]
    np.testing.assert_allclose(m.as_pixels(torch.tensor(real), m.N_LEVELS["digits"]), real)


def test_class_entropy_is_1_for_equal_shares_and_0_for_one_class(monkeypatch):
    monkeypatch.setattr(m, "judge", lambda run: (nn.Identity(), 1.0))
    eye = torch.eye(10)
    assert m.class_entropy(None, eye.repeat(7, 1)) == pytest.approx(1)
    assert m.class_entropy(None, eye[:5].repeat(2, 1)) == pytest.approx(math.log10(5))
    assert m.class_entropy(None, eye[3:4].repeat(9, 1)) == 0


def test_nearest_distances_equal_brute_force():
    x, x_train = torch.randn(600, 3), torch.randn(50, 3)
    torch.testing.assert_close(m.nearest_distances(x, x_train), (x[:, None] - x_train).norm(dim=2).amin(1))


def test_images_are_shown_in_rows_grey_ones_dark_on_white():
    x = torch.linspace(-1, 1, 4)[:, None].expand(4, 6)
    grey = m.show_images(plt.figure().gca(), x, (1, 2, 3), 2).get_array()
    assert grey.shape == (2 * 3 - 1, 2 * 4 - 1)
    np.testing.assert_allclose(grey[[0, 0, 3, 3], [0, 4, 0, 4]], [1, 2 / 3, 1 / 3, 0], atol=1e-6)
    colour = m.show_images(plt.figure().gca(), torch.tensor([[-1.0, 0.0, 1.0]]), (3, 1, 1), 1).get_array()
    np.testing.assert_allclose(colour[0, 0], [0, 0.5, 1])


# 1. Architectures


@pytest.mark.parametrize(("n", "n_labels"), [(1, 1), (3, 1), (1, 4), (2, 4)])
def test_the_slope_by_hand_equals_autograd_and_finite_differences(n, n_labels):
    energy, x = autoencoder(n, n_labels).double(), torch.randn(n, 5, D).double()
    y = torch.tensor([0, 3, 1, 3, 2]) if n_labels > 1 else None
    slope = energy.slope(x, y)
    assert not slope.requires_grad
    torch.testing.assert_close(slope, m.Energy.slope(energy, x, y))
    h = 1e-5
    for i, direction in enumerate(h * torch.eye(D).double()):
        difference = (energy(x + direction, y) - energy(x - direction, y)) / (2 * h)
        torch.testing.assert_close(slope[..., i], difference.detach(), rtol=1e-6, atol=1e-7)


def test_networks_side_by_side_are_the_single_ones():
    energy, x = autoencoder(3), torch.randn(3, 5, D)
    for i in range(3):
        single = m.AutoEncoderEnergy(1, D, 10, 0.7)
        single.load_state_dict({name: w[i : i + 1] for name, w in energy.state_dict().items()})
        torch.testing.assert_close(energy(x)[i], single(x[i : i + 1])[0])
        torch.testing.assert_close(energy.slope(x)[i], single.slope(x[i : i + 1])[0])


def test_the_autoencoders_energy_is_equation_3():
    energy, x, y = autoencoder(n_labels=4), torch.randn(1, 3, D), torch.tensor([2, 0, 3])
    g = silu(x[0] @ energy.w1[0] + energy.b1[0, y]) @ energy.w2[0] + energy.b2[0]
    torch.testing.assert_close(energy(x, y)[0], (x[0] - g).square().sum(1) / (2 * 0.7**2))
    trunk = rough(m.mlp(D, 8, D))
    expected = (x[0] - trunk(x[0])).square().sum(1) / (2 * 0.7**2)
    torch.testing.assert_close(m.Energy(trunk, 0.7)(x)[0], expected)
    plain = rough(m.PlainEnergy(D, 8, 0.7))
    torch.testing.assert_close(plain(x[0]), (x[0] - plain.g(x[0])).square().sum(1) / (2 * 0.7**2))


@pytest.mark.parametrize("trunk", [m.mlp(64, 8), m.mlp(64, 8, 64), m.conv_autoencoder((1, 8, 8)), m.residual((1, 8, 8))])
def test_labels_have_biases_of_their_own_after_the_first_layer(trunk):
    rough(trunk, 0.1)
    biases, x, y = m.label_biases(trunk, 64, 3), torch.randn(2, 4, 64), torch.tensor([2, 0, 2, 1])
    assert m.label_biases(trunk, 64, 1) is None
    assert biases.shape[1:] == trunk[0](x[0]).shape[1:]
    energy, bare = m.Energy(trunk, 0.7, torch.randn_like(biases)), m.Energy(trunk, 0.7)
    torch.testing.assert_close(energy(x), bare(x))
    torch.testing.assert_close(energy.slope(x), bare.slope(x))
    for i in range(2):
        z = trunk[0](x[i]) + torch.stack([energy.biases[k] for k in y])
        out = trunk[1:](z)
        scalar = x[i].square().sum(1) / (2 * 0.7**2) + out[:, 0]
        expected = scalar if out.shape[1] == 1 else (x[i] - out).square().sum(1) / (2 * 0.7**2)
        torch.testing.assert_close(energy(x, y)[i], expected)


def test_a_scalar_network_is_added_to_half_the_square():
    trunk, x = rough(m.mlp(D, 8)), torch.randn(2, 3, D)
    expected = x.square().sum(-1) / 2 + torch.stack([trunk(part)[:, 0] for part in x])
    torch.testing.assert_close(m.Energy(trunk)(x), expected)


def test_fresh_energies_are_gaussians():
    x, none = torch.randn(1, 7, 64), torch.zeros(1, 7, 64)
    for energy, sigma in (
        (m.AutoEncoderEnergy(1, 64, 8, 0.3), 0.3),
        (m.Energy(m.conv_autoencoder((1, 8, 8)), 0.3), 0.3),
        (m.Energy(m.conv((1, 8, 8))), 1),
        (m.Energy(m.residual((1, 8, 8))), 1),
        (m.Energy(m.mlp(64, 8)), 1),
    ):
        middle = energy.slope(none)  # the last layer's biases may move it
        torch.testing.assert_close(energy.slope(x) - middle, x / sigma**2, rtol=1e-4, atol=1e-4)
        expected = x.square().sum(-1) / (2 * sigma**2) + (middle * x).sum(-1)
        torch.testing.assert_close(energy(x) - energy(none), expected, rtol=1e-4, atol=1e-3)


def test_the_slope_by_autograd_is_the_gradient_and_leaves_those_of_the_weights_alone():
    energy, x = m.Energy(rough(m.mlp(D, 8))), torch.randn(2, 3, D, requires_grad=True)
    (expected,) = torch.autograd.grad(energy(x).sum(), x)
    with torch.no_grad():
        slope = energy.slope(x)
    torch.testing.assert_close(slope, expected)
    assert not slope.requires_grad
    assert all(p.grad is None for p in energy.parameters())


def test_the_gradients_length_is_a_mean_over_networks_wherever_the_channels_are():
    config = tiny(architecture="conv", precision="bfloat16")
    for trainer in (m.Trainer(rough(m.build(config), 0.1), torch.randn(9, 64), config), fresh_trainer(autoencoder(3))):
        trainer.update(1e-3)
        n = trainer.n_networks
        squares = sum(p.grad.reshape(n, -1).square().sum(1) for p in trainer.energy.parameters())
        assert trainer.gradient_norm().item() == pytest.approx(squares.mean().sqrt().item(), rel=1e-5)
        assert trainer.history[0][2] == trainer.gradient_norm().item()


@pytest.mark.parametrize("architecture", ["conv", "residual", "conv_autoencoder"])
def test_half_precision_is_for_the_slope_of_convolutions_only(architecture):
    half = m.build(tiny(architecture=architecture, precision="bfloat16"), 3)
    rough(half, 0.1)
    exact, x, y = m.Energy(half.trunk, half.sigma, half.biases.detach()), torch.randn(1, 9, 64), torch.arange(9) % 3
    torch.testing.assert_close(half(x, y), exact(x, y), rtol=0, atol=0)  # the weights learn in float32
    assert half.slope(x, y).dtype == torch.float32
    outer = x / half.sigma**2 if architecture in ("conv", "residual") else 0
    error = (half.slope(x, y) - exact.slope(x, y)).norm() / (exact.slope(x, y) - outer).norm()
    assert 1e-5 < error < 0.03


def test_half_precision_elsewhere_is_refused():
    with pytest.raises(SystemExit, match="--precision bfloat16 serves convolutions"):
        m.build(tiny(precision="bfloat16"))


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
@pytest.mark.parametrize("architecture", ["autoencoder", "conv_autoencoder", "mlp", "conv", "residual"])
def test_every_architecture_fits_every_data_set_and_knows_labels(architecture, dataset):
    d = math.prod(m.SHAPES[dataset])
    energy = rough(m.build(tiny(architecture=architecture, dataset=dataset), 3), 0.1)
    x, y = torch.randn(1, 1, d).expand(1, 2, d), torch.tensor([0, 2])
    assert energy.slope(x, y).shape == (1, 2, d)
    e = energy(x, y)
    assert e.shape == (1, 2)
    assert e[0, 0] != e[0, 1]


def test_a_residual_block_is_the_identity_at_first():
    block, x = m.Residual(4), torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    nn.init.normal_(block.branch[-1].weight)
    inner = block.branch[3](silu(block.branch[1](silu(x))))
    torch.testing.assert_close(block(x), x + inner)


def test_images_reach_the_convolutions_row_by_row_channel_by_channel():
    trunk = rough(m.conv((3, 8, 8), pool=nn.MaxPool2d))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(trunk(x.flatten(1)), trunk[1:](trunk[0][1](x)))
    assert [type(layer) for layer in trunk].count(nn.MaxPool2d) == 2


def test_spectral_norm_bounds_every_layer_but_the_last():
    for trunk in (m.mlp(64, 8, norm=m.spectral_norm), m.conv((1, 8, 8), norm=m.spectral_norm)):
        layers = [layer for layer in trunk.modules() if hasattr(layer, "parametrizations")]
        for _ in range(200):
            trunk(torch.randn(2, 64))  # each pass is one power iteration
        assert len(layers) == 2
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_only_batch_norm_lets_neighbours_matter():
    x, leak = torch.randn(1, 16, 64), {}
    for between in (nn.BatchNorm2d, nn.Identity):
        energy = m.Energy(rough(m.conv((1, 8, 8), between=between)))
        leak[between] = m.batch_norm_leak(energy, x)
    assert leak[nn.BatchNorm2d] > 0.02
    assert leak[nn.Identity] < 1e-5


def test_every_contender_is_trained_as_its_row_says_and_scored_by_samples_from_noise(run, monkeypatch):
    energies, trained = m.contenders(run.config), []

    class Fake(types.SimpleNamespace):
        def __init__(self, energy, x, config, labels):
            super().__init__(average=energy)
            self.config = config

        def run(self, n_updates, label):
            trained.append((label, n_updates, self.config))
            return self

    def drawn(run, trainer, n_steps, y, n):
        assert (n_steps, n, len(y)) == (1, 10, 10)
        return trainer.average, trainer.config.step_size

    monkeypatch.setattr(m, "contenders", lambda config: energies)
    monkeypatch.setattr(m, "Trainer", Fake)
    monkeypatch.setattr(m, "draw", drawn)
    monkeypatch.setattr(m, "frechet_and_sem", lambda run, drawn: (2.0, 0.1))
    monkeypatch.setattr(m, "two_sample_accuracy", lambda run, drawn: (0.8, 0.2))
    found = m.compare_architectures(run)
    expected = [(name, c.n_updates, replace(m.brief(run.config, c.n_updates), **c.changes)) for name, c in energies.items()]
    assert trained == expected
    for (name, _, config), (ours, contest) in zip(expected, found.items(), strict=True):
        assert name == ours
        assert contest.drawn == (energies[name].energy, config.step_size)
        assert contest[2:] == (2.0, 0.1, 0.8, 0.2, energies[name].n_updates)


def test_clusters_alone_are_round_gaussians_with_the_clusters_shares(run):
    x = m.clusters_alone(run, 4000)
    labels = m.find_clusters(m.images(run)[0], run.config.n_clusters, run.seed)
    assert x.shape == (4000, 64)
    nearest = torch.cdist(x, torch.stack([m.images(run)[0][labels == k].mean(0) for k in range(4)])).argmin(1)
    shares = torch.bincount(nearest, minlength=4) / 4000
    assert (shares - torch.bincount(labels) / len(labels)).abs().max() < 0.02


def test_real_images_stand_beside_samples_in_the_clusters_shares(run):
    """The mistake: a floor of a few images at random, whose uneven classes put it above what it is a floor of."""
    x = m.real_images_by_share(run, 200)
    labels = m.find_clusters(m.images(run)[0], run.config.n_clusters, run.seed)
    assert torch.cdist(x, m.images(run)[0]).amin(1).max() < 1e-3
    mine = labels[torch.cdist(x, m.images(run)[0]).argmin(1)]
    assert (torch.bincount(mine) - 200 * torch.bincount(labels) / len(labels)).abs().max() <= 1


def test_section_architectures_compares_with_the_clusters_alone_and_with_real_images(tmp_path, monkeypatch):
    run, alone = Notes(tmp_path), m.Scores(0.15, 0.02, 0.1, 0.99, 0.01, 1.0, 2.0)
    names = {"auto-encoder": 0.5, "conv. auto-encoder": 0.4, "MLP": 3.0, "conv.": 2.0, "residual": 4.0}
    contests = {name: m.Contest(1.0, torch.zeros(10, 64), value, 0.1, value / 5, 0.02, 7) for name, value in names.items()}
    monkeypatch.setattr(m, "real_images_by_share", lambda run, n: m.images(run)[1] if n == 10 else math.nan)  # as samples
    monkeypatch.setattr(m, "compare_architectures", lambda run: contests)
    monkeypatch.setattr(m, "scores_of", lambda run, x: alone)
    monkeypatch.setattr(m, "measure_leaks", lambda run: {"with": 0.3, "without": 0.0})
    m.section_architectures(run)
    noise = run.metrics["pure noise: Frechet distance"]
    assert noise.against[1] < noise.value
    assert run.metrics["clusters alone: Frechet distance"] == (0.15, 0.02, ("real images", noise.against[1]), None)
    for name, value in names.items():
        assert run.metrics[f"{name}: Frechet distance"] == (value, 0.1, ("clusters alone", 0.15), None)
        assert run.metrics[f"{name}: two-sample accuracy"] == (value / 5, 0.02, ("clusters alone", 0.99), None)
    assert run.said[0].startswith("hardest to tell: conv. auto-encoder or auto-encoder, 0.08")  # .02 apart, errors .02
    assert run.said[0].endswith("after 7 updates, conv., 0.40")


# 2. The training loop


@pytest.fixture
def float64():
    """Tensors are made in float64, as where something is judged."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_plain_loop_and_the_fast_trainer_learn_the_same_weights_from_the_same_draws(float64):
    """Langevin, buffer, restarts, batches, loss, Adam, its rate and the average of the weights, all at once."""
    x = torch.rand(50, D) * 2 - 1
    plain, fast = m.PlainEnergy(D, 10, 0.2), m.AutoEncoderEnergy(1, D, 10, 0.2)
    with torch.no_grad():
        for parameter, value in zip(fast.parameters(), (plain.g[0].weight, plain.g[2].weight, 0, 0), strict=True):
            parameter.copy_(value.T[None] if torch.is_tensor(value) else 0)
        plain.g[0].bias.zero_()
        plain.g[2].bias.zero_()
    torch.manual_seed(1)
    average = m.plain_training(plain, x, 40, n_chains=48, batch_size=16)
    torch.manual_seed(1)
    trainer = m.Trainer(fast, x, replace(m.Config(), n_chains=48, batch_size=16)).run(40, "fast")
    for ours, theirs in ((trainer.energy, plain), (trainer.average, average)):
        torch.testing.assert_close(ours.w1[0], theirs.g[0].weight.T, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.w2[0], theirs.g[2].weight.T, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.b1[0, 0], theirs.g[0].bias, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.b2[0, 0], theirs.g[2].bias, rtol=1e-6, atol=1e-6)
    assert trainer.energy.w2.abs().max() > 1e-3
    assert not torch.isclose(trainer.energy.w2, trainer.average.w2).all()


def test_plain_langevin_is_the_fast_one():
    energy = autoencoder()
    torch.manual_seed(1)
    fast = m.langevin(energy, torch.ones(1, 5, D), 6, 0.1)[0]
    torch.manual_seed(1)
    plain = m.plain_langevin(lambda x: energy(x[None])[0], torch.ones(5, D), 6, 0.1)
    torch.testing.assert_close(plain, fast)
    assert not plain.requires_grad


def test_the_whole_plain_program_has_at_most_forty_lines():
    parts = (m.PlainEnergy, m.plain_langevin, m.plain_training)
    lines = [line.strip() for part in parts for line in inspect.getsource(part).splitlines()]
    assert len([line for line in lines if line and not line.startswith('"""')]) <= 40


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_langevin_has_the_variance_that_step_and_temperature_give_it(temperature):
    a, step = 2.0, 0.5
    x = m.langevin(Gaussian(a), torch.zeros(2, 20_000, 4), 30, step, temperature)
    expected = temperature / a * 2 / (2 - a * step / 2)
    assert x.var().item() == pytest.approx(expected, rel=0.02)
    assert abs(x.mean()) < 5 * (expected / x.numel()) ** 0.5


def test_langevin_moves_in_place_keeps_every_step_and_follows_no_gradient():
    x, kept, energy = torch.ones(1, 2, 3), [], Gaussian(1.0)
    moved = m.langevin(energy, x, 4, 0.1, y="classes", keep=lambda step, now: kept.append((step, now.clone())))
    assert moved is x
    assert not moved.requires_grad
    assert energy.asked == ["classes"] * 4
    assert [step for step, _ in kept] == [1, 2, 3, 4]
    assert torch.equal(kept[-1][1], x)
    assert not torch.equal(kept[0][1], kept[1][1])


def test_langevin_takes_a_temperature_for_each_step():
    steps = [torch.full((1, 5000, 4), 2.0)]
    m.langevin(Gaussian(1.0), steps[0].clone(), 3, 0.4, [0, 1.0, 9.0], keep=lambda _, x: steps.append(x.clone()))
    for before, after, temperature in zip(steps, steps[1:], (0, 1, 9), strict=False):
        assert (after - 0.8 * before).var().item() == pytest.approx(0.4 * temperature, rel=0.05, abs=1e-9)


def test_the_cold_recipe_is_langevin_at_another_temperature():
    alpha, eta, energy, x = 10.0, 0.005, autoencoder(), torch.randn(1, 4, D)
    torch.manual_seed(1)
    expected = x - alpha * energy.slope(x) + eta * torch.randn_like(x)
    torch.manual_seed(1)
    torch.testing.assert_close(m.langevin(energy, x, 1, 2 * alpha, eta**2 / (2 * alpha)), expected)


def test_a_training_made_cold_takes_the_same_steps(float64):
    """E' = T E, eps' = eps/T, lambda' = lambda/T. The mistake: to forget one of the three."""
    x, temperature, trainers = torch.rand(50, D) * 2 - 1, 0.01, []
    config = tiny(n_langevin=5, sigma=0.3, energy_l2=1e-2, warm_up=1)
    for changed, t in ((config, 1.0), (m.made_cold(config, temperature), temperature)):
        torch.manual_seed(2)
        energy = m.AutoEncoderEnergy(1, D, 10, changed.sigma)
        trainers.append(m.Trainer(energy, x, changed, temperature=t).run(12, ""))
    proper, cold = trainers
    torch.testing.assert_close(cold.energy.w2, proper.energy.w2, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(cold.buffer.chains, proper.buffer.chains, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cold.energy(x[None]), temperature * proper.energy(x[None]), rtol=1e-3, atol=1e-4)
    assert proper.energy.w2.abs().max() > 1e-3


def test_recipes_start_alike_and_are_judged_at_their_own_temperature(run, monkeypatch):
    seen, travelled, cleaned = [], [], []

    class Fake(types.SimpleNamespace):
        def __init__(self, energy, x, config, temperature):
            super().__init__(average=energy, history=[[0.0] * 4], starts=lambda n: torch.randn(1, n, 64))
            seen.append((energy.w1.detach().clone(), energy.sigma, config, temperature))

        def run(self, n_updates, label):
            return self

    monkeypatch.setattr(m, "Trainer", Fake)
    monkeypatch.setattr(m, "travel", lambda energy, x, n, step, t: travelled.append((step, t)))
    monkeypatch.setattr(m, "denoised", lambda run, energy, x, temperature: cleaned.append(temperature) or x[0])
    monkeypatch.setattr(m, "denoising_db", lambda run, energy, level, t: (energy.sigma, t))
    found = m.compare_temperatures(run, 0.04)
    (w, sigma, config, _), *others = seen
    assert all(torch.equal(w, other[0]) for other in others)
    assert [s for _, s, _, _ in seen] == pytest.approx([sigma, sigma, 5 * sigma])
    assert [t for *_, t in seen] == [1, 0.04, 0.04]
    step = config.step_size
    assert travelled == [(step, 1), (step, 0.04), (pytest.approx(25 * step), 0.04)]
    assert cleaned == [1, 1, 0.04]
    assert [(r.db[1], r.db_over_t[1]) for r in found.values()] == [(1, 1), (1, 0.04), (1, 0.04)]


def test_noise_and_free_diffusion_have_their_textbook_size():
    clean = torch.zeros(1, 100_000)
    noisy = clean + 0.25 * torch.randn_like(clean)
    assert m.theory_noisy_db(0.25) == pytest.approx(10 * math.log10(2**2 / noisy.square().mean()), abs=0.05)
    x = m.langevin(Gaussian(0.0), torch.zeros(1, 1000, 50), 7, 0.3, 0.5)
    assert m.theory_free_diffusion(7, 0.3, 0.5) == pytest.approx(x.square().mean().sqrt().item(), rel=0.02)


def test_a_provoked_divergence_is_noticed_and_the_last_good_state_kept(run):
    found = m.provoke_divergence(a_run(run.out, n_short=200), run.out / "c.pt")
    assert (found.set_at, found.kept) == (50, 50)
    assert found.noticed_at > 50


def test_section_loop_compares_each_recipe_with_the_noise_and_the_kept_update_with_the_saved(tmp_path, monkeypatch):
    run = Notes(tmp_path)
    history = np.array([[4.0, 1.0, 9.0, 0.2], [3.0, 1.0, 9.0, 0.2]])
    recipes = {"T = 1": (1.0, 22.0, 22.5), "less noise": (0.01, 20.0, 6.0), "cold, consistent": (0.01, 20.1, 22.4)}
    found = {name: m.Tempered(t, history, 1.0, 0.1, *dbs) for name, (t, *dbs) in recipes.items()}
    monkeypatch.setattr(m, "compare_temperatures", lambda run: found)
    monkeypatch.setattr(m, "provoke_divergence", lambda run, path: m.Divergence(50, 53, 49))
    m.section_loop(run)
    none = ("noise left as it is", m.theory_noisy_db(run.config.data_noise))
    assert run.metrics["less noise: denoising by E (dB)"] == (20.0, None, none, None)
    proper = ("E at T = 1", 22.5)
    assert run.metrics["cold, consistent: denoising by E/T (dB)"] == (22.4, None, proper, 0.05)
    assert run.metrics["less noise: denoising by E/T (dB)"] == (6.0, None, proper, None)
    assert run.metrics["T = 1: late gap, mean (nats)"].value == 2
    assert run.metrics["divergence noticed at update"].against[1] == 50
    assert run.metrics["last good state: update"] == (49, None, ("written at", 50), 0)
    assert "16.5 dB worse" in run.said[0]


def test_the_buffer_visits_its_blocks_in_turn_and_what_moves_stays_moved():
    buffer = m.ReplayBuffer(3, 2, 4, D, 0.0, "cpu")
    before = buffer.chains.clone()
    assert before.var().item() == pytest.approx(1, abs=0.5)
    for visit in range(7):
        block = buffer.next()
        assert block.shape == (2, 4, D)
        assert torch.equal(block, before[visit % 3])
        block += 1
        before[visit % 3] += 1
        assert torch.equal(buffer.chains, before)


def test_chains_start_from_standard_noise_or_from_that_of_their_clusters_pixels():
    """The mistakes: the data's added noise forgotten, a variance for a spread, another cluster's pixels, restarts from other
    noise than samples."""
    y = torch.arange(8000) % 3 // 2  # of two labels, one twice as often
    x = torch.randn(8000, D) * torch.linspace(0.1, 2, D) * (1 + y[:, None]) + torch.arange(D) - 4 * y[:, None]
    some = {"batch_size": 1000, "n_chains": 3000, "data_noise": 0.5, "reinit": 1.0}
    trainer = fresh_trainer(autoencoder(2, 2), x, y, start="pixels", **some)
    first, labels = trainer.buffer.chains.clone(), trainer.buffer.y
    again = torch.stack([trainer.buffer.next().clone() for _ in range(3)])
    assert not torch.equal(first, again)
    for z in (first, again, torch.stack([trainer.starts(1000, some) for some in labels])):
        for k in (0, 1):
            chains, images = z.transpose(1, 2)[labels == k].flatten(0, 1), x[y == k]
            torch.testing.assert_close(chains.mean(0), images.mean(0), rtol=0, atol=0.3)
            torch.testing.assert_close(chains.std(0), (images.var(0) + 0.25).sqrt(), rtol=0.1, atol=0)
    trainer.label(1 - y)  # labels of a checkpoint are other labels
    assert (trainer.starts(1000, torch.zeros(1000, dtype=int)).mean((0, 1)) - x[y == 1].mean(0)).abs().max() < 0.5
    plain = fresh_trainer(autoencoder(2))
    torch.manual_seed(0)
    noise = plain.starts(7)
    torch.manual_seed(0)
    assert torch.equal(noise, torch.randn(2, 7, D))


def test_where_chains_start_is_judged_without_the_noise_of_the_data_and_in_the_datas_shares():
    y = torch.arange(900) % 3 // 2
    x = (torch.randn(900, D) * 0.1).clamp(-0.4, 0.4) + y[:, None] * 0.7
    trainer = fresh_trainer(autoencoder(1, 2), x, y, start="pixels", data_noise=0.5)
    images = m.start_alone(trainer, 3000)
    assert images.max() == 1  # clamped, as images are
    shown = images.mean(1) > 0.35
    assert shown.sum() == 1000
    torch.testing.assert_close(images[~shown].std(0), x[y == 0].std(0), rtol=0.1, atol=0)


def test_visited_chains_restart_from_noise_with_the_chance_given():
    buffer, share, n_visits = m.ReplayBuffer(2, 100, 40, D, 0.05, "cpu"), 0.05, 40
    fresh = []
    for _ in range(n_visits):
        buffer.chains.fill_(7)
        new = buffer.next() != 7
        assert torch.equal(new.any(-1), new.all(-1))  # the whole image or none of it
        fresh.append(buffer.chains[buffer.at][new])
        assert (buffer.chains[1 - buffer.at] == 7).all()
    fresh, n = torch.cat(fresh), n_visits * 4000
    assert abs(len(fresh) / D / n - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert abs(fresh.mean()) < 0.02
    assert fresh.var().item() == pytest.approx(1, abs=0.03)


def test_as_many_chains_as_asked_for_start_as_noise():
    trainer = fresh_trainer(autoencoder(2), n_chains=70, batch_size=16, reinit=0.3)
    assert trainer.buffer.chains.shape == (4, 2, 16, D)
    assert trainer.buffer.reinit == 0.3


def test_positives_are_noisy_images_with_the_labels_of_the_chains_beside_them():
    """The mistake: data with labels of their own, whose shares differ from the chains': no energy can close that gap."""
    y = torch.arange(40) % 5
    images = y[:, None].expand(40, D).float()
    trainer = fresh_trainer(autoencoder(2, 5), images, y, data_noise=0.1, batch_size=1000, n_chains=2000)
    for block in (0, 1, 0):
        trainer.negatives()
        x = trainer.positives()
        assert x.shape == (2, 1000, D)
        assert torch.equal(x.mean(2).round(), trainer.buffer.y[block].float().expand(2, -1))
    assert (x - trainer.buffer.y_now()[:, None]).std().item() == pytest.approx(0.1, rel=0.03)
    assert not torch.equal(x[0], x[1])
    x = fresh_trainer(autoencoder(2), data_noise=0.1).positives()
    assert x.shape == (2, 16, D)
    assert not torch.equal(x[0], x[1])


def test_rows_are_drawn_evenly_among_those_with_the_label():
    y = torch.tensor([2, 0, 1, 2, 2, 0])
    rows = m.Labelled(y).like(torch.tensor([2, 0]).repeat(6000))
    assert set(rows[::2].tolist()) == {0, 3, 4}
    assert set(rows[1::2].tolist()) == {1, 5}
    for row, share in ((0, 1 / 3), (3, 1 / 3), (4, 1 / 3)):
        assert abs((rows[::2] == row).float().mean() - share) < 5 * (share * (1 - share) / 6000) ** 0.5


def test_negatives_are_the_buffers_chains_moved_at_the_trainers_temperature():
    settings = {"n_langevin": 1, "step_size": 0.3, "batch_size": 4000, "n_chains": 4000, "reinit": 1e-30}
    trainer = fresh_trainer(Gaussian(1.0), temperature=0.5, **settings)
    before = trainer.buffer.chains.clone()
    x, movement = trainer.negatives()
    assert x.data_ptr() == trainer.buffer.chains.data_ptr()
    assert (x - 0.85 * before[0]).var().item() == pytest.approx(0.3 * 0.5, rel=0.03)
    torch.testing.assert_close(movement, (x - before[0]).square().mean().sqrt())


def recorded(trainer):
    """What the trainer's positives() and negatives() return, kept."""
    kept = {}
    for name in ("positives", "negatives"):
        method = getattr(trainer, name)
        setattr(trainer, name, lambda method=method, name=name: kept.setdefault(name, method()))
    return kept


@pytest.mark.parametrize("kind", ["one", "side by side", "classes", "by autograd"])
def test_an_update_is_one_step_down_on_data_and_up_on_chains_with_small_energies(kind):
    y = torch.arange(40) % 3 if kind == "classes" else None
    energy = autoencoder(2 if kind == "side by side" else 1, 3 if kind == "classes" else 1)
    energy = m.Energy(rough(m.mlp(D, 8))) if kind == "by autograd" else energy
    trainer, old, penalty = fresh_trainer(energy, y=y, energy_l2=0.05), copy.deepcopy(energy), 0.05
    kept = recorded(trainer)
    trainer.update(0.01)
    x_data, (x_model, movement) = kept["positives"], kept["negatives"]
    assert (trainer.buffer.y_now() is None) == (y is None)
    assert not x_model.requires_grad
    loss, energies = 0, []
    for x, sign in ((x_data, 1), (x_model, -1)):
        energies.append(old(x, trainer.buffer.y_now()))  # chains are data here: nothing comes from before them
        loss = loss + ((sign + 2 * penalty * energies[-1].detach()) * energies[-1]).mean(1).sum()
    expected = torch.autograd.grad(loss, old.parameters())
    for p, before, gradient in zip(energy.parameters(), old.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-4)
        moved = gradient.abs() > 1e-3
        torch.testing.assert_close((p - before)[moved], -0.01 * gradient.sign()[moved], rtol=1e-2, atol=1e-6)
    norm = sum(g.reshape(trainer.n_networks, -1).square().sum(1) for g in expected).mean().sqrt()
    row = torch.stack([energies[0].mean(), energies[1].mean(), norm, movement]).tolist()
    assert trainer.history == [pytest.approx(row, rel=1e-4)]
    assert trainer.step == 1


def test_updates_do_not_add_up_their_gradients():
    trainer = fresh_trainer(autoencoder())
    for _ in range(2):
        old, kept = copy.deepcopy(trainer.energy), recorded(trainer)
        trainer.update(0.01)
    loss = old(kept["positives"]).mean() - old(kept["negatives"][0]).mean()
    expected = torch.autograd.grad(loss, old.w1)[0]
    torch.testing.assert_close(trainer.energy.w1.grad, expected, rtol=0.02, atol=0.02)


def test_the_average_remembers_little_at_first_and_ema_later():
    trainer = fresh_trainer(autoencoder(), ema=0.12)
    for memory in (1 / 11, 0.12, 0.12):  # step / (10 + step) or ema, whichever is less
        before = trainer.average.w1.clone()
        trainer.update(0.05)
        torch.testing.assert_close(trainer.average.w1, memory * before + (1 - memory) * trainer.energy.w1.detach())
    assert not any(p.requires_grad for p in trainer.average.parameters())


def test_a_brief_training_warms_up_over_a_tenth_of_it():
    config = replace(m.Config(), warm_up=200)
    assert [m.brief(config, n).warm_up for n in (5, 400, 4000)] == [1, 40, 200]


def test_the_rate_rises_then_falls_to_0_and_checkpoints_come_in_time():
    trainer, rates, saves = fresh_trainer(autoencoder(), learning_rate=2.0, warm_up=5, checkpoint_every=4), [], []
    trainer.history.append([0.0] * 4)

    def update(rate):
        rates.append(rate)
        trainer.step += 1

    trainer.update, trainer.step = update, 3  # as after --resume
    assert trainer.run(10, "", lambda t: saves.append(t.step)) is trainer
    np.testing.assert_allclose(rates, 2.0 * np.linspace(1, 0, 11)[3:10] * [0.8, 1, 1, 1, 1, 1, 1])
    assert saves == [4, 8, 10]


@pytest.mark.parametrize(
    ("data", "chains", "diverges"),
    [(13.9, 0, False), (14.3, 0, True), (0, 14.3, True), (float("nan"), 0, True), (1, float("inf"), True)],
)
def test_a_divergence_is_noticed_before_it_reaches_the_weights(data, chains, diverges):
    """E = |x|²/2 at first, so images of grey level c have c²/2 a pixel: the limit, 100 a pixel, lies at 14.14."""
    trainer = fresh_trainer(m.AutoEncoderEnergy(1, D, 10, 1.0))
    trainer.positives = lambda: torch.full((1, 16, D), float(data))
    trainer.negatives = lambda: (torch.full((1, 16, D), float(chains)), torch.tensor(0.0))
    if not diverges:
        trainer.update(0.1)
        return
    old = copy.deepcopy(trainer.energy.state_dict())
    with pytest.raises(m.Diverged, match="diverged at update 1"):
        trainer.update(0.1)
    assert (trainer.step, trainer.history) == (0, [])
    for net in (trainer.energy, trainer.average):
        assert all(torch.equal(value, old[name]) for name, value in net.state_dict().items())


def test_conditional_chains_keep_their_class_while_they_move_and_in_the_loss():
    asked, energy = [], autoencoder(1, 3)
    trainer = fresh_trainer(energy, y=torch.arange(40) % 3)
    assert trainer.buffer.y.shape == (2, 16)
    slope = energy.slope
    energy.slope = lambda x, y: asked.append(y) or slope(x, y)
    for visit in range(4):
        trainer.negatives()
        assert all(torch.equal(y, trainer.buffer.y[visit % 2]) for y in asked)
        assert len(asked) == trainer.config.n_langevin
        asked.clear()


@pytest.mark.parametrize(("n_blocks", "n"), [(8, 64), (1, 64), (6, 4), (3, 7), (1, 10)])
def test_every_class_has_its_share_of_the_chains(n_blocks, n):
    """The mistake: arange(B) % 10, which gives classes 0 to 3 a chain more than the others, and none at all beyond B."""
    y = torch.arange(500)[torch.randperm(500)] % 10
    classes = m.shared_out(y, n_blocks, n)
    assert classes.shape == (n_blocks, n)
    assert (torch.bincount(classes.flatten(), minlength=10) - n_blocks * n / 10).abs().max() < 1
    assert all((torch.bincount(block, minlength=10) - n / 10).abs().max() < 2 for block in classes)
    y = torch.cat([torch.zeros(300), torch.ones(100)]).long()  # shares that differ
    assert torch.bincount(m.shared_out(y, 2, 20).flatten()).tolist() == [30, 10]


def test_labels_come_in_random_order():
    """The mistake: in order, so that the first samples are all of one cluster."""
    classes = m.shared_out(torch.arange(400) % 2, 500, 10)
    first = classes[:, :5].float().mean().item()
    assert abs(first - 0.5) < 5 * 0.5 / (500 * 5) ** 0.5


def test_fewer_chains_than_classes_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="--n-chains must be at least 10"):
        m.section_conditional(a_run(tmp_path, batch_size=4, n_chains=8))


def test_a_run_that_diverges_ends_with_one_line_and_its_last_good_state(tmp_path, capsys):
    flags = ["--smoke", "--section", "digits", "--n-updates", "300", "--learning-rate", "0.5", "--checkpoint-every", "1"]
    with pytest.raises(SystemExit, match="diverged at update .* is the last good state") as stop:
        m.main([*flags, "--checkpoint", str(tmp_path / "c.pt"), "--out", str(tmp_path)])
    assert stop.value.code.count("\n") == 0
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert f"diverged at update {saved['step'] + 1}:" in stop.value.code
    assert all(value.isfinite().all() for value in saved["energy"].values())


@pytest.mark.parametrize("section", ["architectures", "loop", "conditional"])
def test_a_section_that_diverges_ends_with_one_line(section, tmp_path, capsys):
    with pytest.raises(SystemExit, match="diverged") as stop:
        m.main(["--smoke", "--section", section, "--learning-rate", "1e5", "--n-updates", "40", "--out", str(tmp_path)])
    assert str(stop.value).count("\n") == 0
    assert capsys.readouterr().err == ""


def test_weights_that_are_not_finite_are_no_last_good_state():
    trainer, saves = fresh_trainer(autoencoder(), checkpoint_every=2), []

    def update(rate):
        trainer.step += 1
        trainer.history.append([0.0] * 4)
        if trainer.step == 4:
            trainer.energy.w1.data[0, 0, 0] = math.inf

    trainer.update = update
    with pytest.raises(m.Diverged, match="at update 4: weights are not finite"):
        trainer.run(9, "", lambda t: saves.append(t.step))
    assert saves == [2]


ADVICE = ["smaller --step-size", "more --n-langevin", "smoother activations", "larger --energy-l2", "earlier checkpoint"]


def test_a_sampling_that_diverges_says_so_with_advice(tmp_path, capsys):
    flags = ["--step-size", "0.2", "--n-updates", "4", "--n-langevin", "1", "--n-from-noise", "400"]
    with pytest.raises(SystemExit, match="^sampling diverged: ") as stop:
        m.main(["--smoke", "--section", "digits", *flags, "--out", str(tmp_path)])
    assert all(words in stop.value.code for words in ADVICE)
    assert stop.value.code.count("\n") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("lost", [math.nan, math.inf, -2000.0])
def test_lost_chains_are_no_images(lost):
    """The mistake: clipped to [-1, 1] they are scored as if they were; and the step of denoising may take them home."""
    x = torch.zeros(1, 3, D)
    m.must_stay_near(x, x + 999)
    x[0, 1, 2] = lost
    with pytest.raises(SystemExit, match="sampling diverged"):
        m.denoised(a_run(None, data_noise=0.5), Gaussian(4.0), x)


# 3. In two dimensions


def test_eight_gaussians_are_normalised_and_their_samples_fit():
    h = 4 / 200
    middle = (torch.arange(200).double() + 0.5) * h - 2
    log_p = m.eight_gaussians_log_density(torch.cartesian_prod(middle, middle))
    assert (log_p.exp().sum() * h**2).item() == pytest.approx(1, abs=1e-6)
    x = m.eight_gaussians(20_000)
    surprise = -m.eight_gaussians_log_density(x)
    entropy = math.log(8) + 1 + math.log(2 * math.pi * 0.01)  # the modes are ten standard deviations apart
    assert abs(surprise.mean() - entropy) < 5 * surprise.std() / 20_000**0.5
    mode = (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).round().long() % 8
    assert (torch.bincount(mode) / 20_000 - 1 / 8).abs().max() < 5 * (7 / 64 / 20_000) ** 0.5


def test_exact_gap_is_0_for_the_datas_own_energy_and_the_known_one_for_a_gaussian():
    energy = Gaussian(1.0)
    energy.forward = lambda x: 3 - m.eight_gaussians_log_density(x[0])[None]
    assert m.exact_gap(energy)[0] == pytest.approx(0, abs=1e-4)
    s2 = 0.6
    log_z = 2 * math.log(math.sqrt(2 * math.pi * s2) * math.erf(2 / math.sqrt(2 * s2)))  # on the window
    expected = -math.log(8) - 1 - math.log(2 * math.pi * 0.01) + (16 / 9 + 0.02) / (2 * s2) + log_z
    gap, density = m.exact_gap(Gaussian(1 / s2))
    assert gap == pytest.approx(expected, abs=1e-4)
    assert density.sum().item() * (4 / 160) ** 2 == pytest.approx(1, abs=1e-5)
    energy.forward = lambda x: (x - torch.tensor([1.0, -1.0])).square().sum(-1)
    i, j = divmod(m.exact_gap(energy, 100)[1].argmax().item(), 100)
    assert (i, j) in itertools.product((74, 75), (24, 25))  # x first


def test_chains_carry_the_weight_that_the_changing_energy_gives_them(monkeypatch):
    """Chains that do not move: log w telescopes to E_first - E_now until they are drawn anew, then again."""
    data, energies, losses, drawn, n = 1.2 * m.eight_gaussians(400), [], [], [], 300

    def still(flat, x, n_steps, step_size):
        energies.append(flat(x).detach())
        log_w = energies[drawn[-1][0] if drawn else 0] - energies[-1]
        losses.append((flat(data).mean() - (log_w.softmax(0) * energies[-1]).sum()).item())
        still.now = lambda: flat(x).detach()
        return x, None

    def redraw(log_w):
        drawn.append((len(energies), log_w.clone(), still.now()))
        return torch.arange(n)

    monkeypatch.setattr(m, "eight_gaussians", lambda n, device: data)
    monkeypatch.setattr(m, "exact_gap", lambda energy, n: (0.0, None))
    monkeypatch.setattr(m, "mala", still)
    monkeypatch.setattr(m, "resample", redraw)
    torch.manual_seed(0)
    rows = m.train_in_2d(m.WAYS["weighted"], 79, n, "cpu", "").rows
    assert len(drawn) > 1
    first = 0
    for update, log_w, now in drawn:
        torch.testing.assert_close(log_w, energies[first] - now, rtol=1e-3, atol=1e-3)
        assert 1 / log_w.softmax(0).square().sum() < n / 2
        first = update
    np.testing.assert_allclose(rows[:, 1], losses, rtol=1e-4, atol=1e-4)


def test_the_weighted_chains_learn_eight_gaussians():
    torch.manual_seed(0)
    rows = m.train_in_2d(m.WAYS["weighted"], 120, 400, "cpu", "").rows
    assert rows[-1, 2] < 0.5 * rows[0, 2]


@pytest.mark.parametrize(("name", "n_steps", "restart"), [("20 steps, restarts", 20, 0.02), ("4 steps, no restarts", 4, 0)])
def test_plain_chains_make_the_steps_and_restarts_that_their_name_says(name, n_steps, restart, monkeypatch):
    starts = []
    monkeypatch.setattr(m, "exact_gap", lambda energy, n: (0.0, None))
    monkeypatch.setattr(m, "langevin", lambda energy, x, steps, step_size: starts.append((steps, x[0])) or x)
    m.train_in_2d(m.WAYS[name], 60, 400, "cpu", "")
    assert {steps for steps, _ in starts} == {n_steps}
    share = np.mean([(a != b).all(1).float().mean() for (_, a), (_, b) in itertools.pairwise(starts)])
    assert share == pytest.approx(restart, abs=4 * (restart / 59 / 400) ** 0.5)


def test_section_truth2d_puts_every_loss_beside_the_gap_of_the_same_updates(tmp_path, monkeypatch):
    run = Notes(tmp_path)
    energies = {name: Gaussian(1 / (0.5 + 0.1 * i)) for i, name in enumerate(m.WAYS)}
    rows = np.array([[0, 9.0, 9.0], [1, 8.0, 3.0], [2, 0.1, 2.0], [3, 0.3, 1.0]])
    monkeypatch.setattr(m, "train_all_ways", lambda run: {name: m.Trace(e, rows) for name, e in energies.items()})
    m.section_truth2d(run)
    for name, energy in energies.items():
        gap = run.metrics[f"{name}: gap (nats)"]
        assert (gap.value, gap.against[1]) == (pytest.approx(m.exact_gap(energy)[0]), 0)
        late = run.metrics[f"{name}: late loss (nats)"]
        assert (late.value, late.against[1]) == (pytest.approx(0.2), 1.5)


def test_every_way_starts_from_the_same_numbers(run, monkeypatch):
    monkeypatch.setattr(m, "train_in_2d", lambda way, *rest: (way, torch.randn(1).item(), *rest))
    found = m.train_all_ways(run)
    assert {name: entry[0] for name, entry in found.items()} == m.WAYS
    assert len({entry[1:-1] for entry in found.values()}) == 1


# 4. and 5. Samples


def test_clusters_are_those_of_k_means_and_one_is_everybody(monkeypatch):
    centres = torch.randn(5, 64)
    y = torch.arange(200) % 5
    found = m.find_clusters(centres[y] + 0.01 * torch.randn(200, 64), 5, 0)
    assert all(len(found[y == k].unique()) == 1 for k in range(5))
    assert len(found.unique()) == 5
    assert m.find_clusters(torch.randn(7, 3), 1, 0).tolist() == [0] * 7
    x = torch.cat([torch.zeros(5000, 2), torch.ones(10, 2)]) + 0.01 * torch.randn(5010, 2)
    x[:2500] += 1
    assert len(m.find_clusters(x, 2, 0)) == 5010


def test_the_stiffest_curvature_is_the_hessians_largest_eigenvalue(float64):
    energy, x, y = autoencoder(n_labels=3), torch.randn(1, 4, D), torch.tensor([0, 2, 1, 2])
    exact = [
        torch.linalg.eigvalsh(
            torch.autograd.functional.hessian(lambda v, i=i: energy(v[None, None], y[i : i + 1]).sum(), x[0, i])
        )
        for i in range(4)
    ]
    expected = torch.stack(exact).abs().amax(1)
    torch.testing.assert_close(m.stiffest_curvature(energy, x, y, 400)[0], expected, rtol=1e-2, atol=0)
    trainer = fresh_trainer(Gaussian(3.0), y=torch.arange(40) % 3)
    assert m.measure_curvature(trainer, 7) == pytest.approx([3, 3], rel=1e-4)


@pytest.mark.parametrize(("share", "explodes"), [(0.98, False), (1.02, True)])
def test_langevin_explodes_beyond_4_over_the_step(share, explodes):
    step = 0.2
    x = m.langevin(Gaussian(share * m.theory_stiffest(step)), torch.randn(1, 100, 3), 600, step)
    assert (x.abs().max() > 1e3) == explodes


def test_scores_are_of_the_images_they_are_named_for(run, monkeypatch):
    names = ("frechet_and_sem", "frechet_to_test", "two_sample_accuracy", "class_entropy")
    for name, value in zip(names, ((1.0, 2.0), 3.0, (4.0, 5.0), 6.0), strict=True):
        monkeypatch.setattr(m, name, lambda run, x, value=value: value)
    x = m.images(run)[0]
    scores = m.scores_of(run, x[:40] + 0.5)
    assert scores[:6] == (1, 2, 3, 4, 5, 6)
    assert scores.nearest == pytest.approx(m.nearest_distances(x[:40] + 0.5, x).median().item())


def planted_scores(**changes):
    """Scores of the four sets that `digits` compares, all different."""
    names = ("energy", "mixture", "labelled mixture", "real images")
    base = {name: m.Scores(*(0.1 * i + 0.01 * j for j in range(7))) for i, name in enumerate(names, 1)}
    return base | changes


def test_section_digits_holds_the_energy_beside_the_mixture_and_the_mixture_beside_real_images(tmp_path, monkeypatch):
    run, scores = Notes(tmp_path), planted_scores()
    drawn = {name: torch.rand(80, 64) * 2 - 1 for name in scores}
    monkeypatch.setattr(m, "sample_and_score", lambda run: (drawn, scores))
    monkeypatch.setattr(m, "frechet_floor", lambda run: 0.07)
    monkeypatch.setattr(m, "drawn_at_random", lambda run: {"energy": 0.5, "mixture": 0.6})
    monkeypatch.setattr(m, "animate", lambda *_: None)
    m.section_digits(run)
    e, mixture, real = scores["energy"], scores["mixture"], scores["real images"]
    assert run.metrics["energy: Frechet distance"] == (e.frechet, e.sem, ("real images", 0.07), None)
    assert run.metrics["mixture: Frechet distance"] == (mixture.frechet, mixture.sem, ("real images", 0.07), None)
    assert run.metrics["energy: two-sample accuracy"][:3] == (e.told, e.told_sem, ("mixture", mixture.told))
    assert run.metrics["mixture: two-sample accuracy"][:3] == (mixture.told, mixture.told_sem, ("real images", real.told))
    assert run.metrics["energy: class entropy (ln 10)"].against == ("real images", real.entropy)
    assert run.metrics["energy: nearest training image"][:3] == (e.nearest, None, ("new real images", real.nearest))
    assert run.metrics["energy, clusters at random: Frechet"].against == ("mixture, likewise", 0.6)
    assert run.metrics["stiffest curvature of E at noise"].against[1] == 4 / run.config.step_size
    assert run.said[0].startswith("by Frechet distance: energy 0.10, mixture 0.20")


def test_the_energy_is_drawn_with_the_clusters_shares_and_scored_beside_its_rivals(run, monkeypatch):
    asked, trainer = [], types.SimpleNamespace(average="average", y=torch.arange(100) % 4)
    monkeypatch.setattr(m, "trained", lambda run: (trainer, 0.0))
    monkeypatch.setattr(
        m, "draw", lambda run, trainer, n, y: asked.append((trainer.average, n, y)) or torch.zeros(len(y), 64)
    )
    monkeypatch.setattr(m, "scores_of", lambda run, x: len(x))
    drawn, scores = m.sample_and_score(run)
    ((energy, n_steps, y),) = asked
    assert (energy, n_steps) == ("average", run.config.n_from_noise)
    assert torch.bincount(y).tolist() == [10] * 4
    assert scores == {"energy": 40, "mixture": 40, "labelled mixture": 40, "real images": 360}
    assert torch.equal(drawn["real images"], m.images(run)[1])


def test_denoising_is_tweedies_formula():
    v, s, x = 0.5, 0.3, torch.randn(1, 7, D)
    clean = m.denoised(a_run(None, data_noise=s), Gaussian(1 / (v + s**2)), x)
    torch.testing.assert_close(clean, x[0] * v / (v + s**2))


def test_images_are_drawn_from_noise_by_langevin_and_denoised_once(run):
    a, step, s = 2.0, 0.5, 0.4
    config = {"n_samples": 700, "step_size": step, "data_noise": s}
    for temperature, n in ((1.0, None), (0.25, 300)):
        energy, y = Gaussian(a), torch.arange(n or 700)
        trainer = fresh_trainer(energy, torch.zeros(40, 64), **config)
        x = m.draw(a_run(run.out, **config), trainer, 30, temperature, y, n)
        assert x.shape == (len(y), 64)
        parts = y.split(250)  # chains travel in parts, each with its own classes; then all are denoised at once
        for asked, part in zip(trainer.average.asked, [*(part for part in parts for _ in range(30)), y], strict=True):
            torch.testing.assert_close(asked, part)
        expected = temperature / a * 2 / (2 - a * step / 2) * (1 - s**2 * a) ** 2
        assert x.var().item() == pytest.approx(expected, rel=0.04)
    still = m.draw(a_run(run.out, **config), fresh_trainer(Gaussian(a), torch.zeros(40, 64), **config), 0)
    assert (still / (1 - s**2 * a)).var().item() == pytest.approx(1, rel=0.03)  # chains begin as N(0, I)


def test_chains_that_travel_in_parts_all_move_and_nothing_else():
    x, energy = torch.randn(1, 600, 3), Gaussian(1.0)
    expected = 0.75**2 * x
    assert m.travel(energy, x, 2, 0.5, temperature=0.0) is x
    torch.testing.assert_close(x, expected)


def test_classes_are_made_even_by_the_first_of_each(monkeypatch):
    x = torch.cat([torch.eye(10), torch.eye(10).repeat(5, 1)[torch.randperm(50)], torch.eye(10)[:3].repeat(4, 1)])
    monkeypatch.setattr(m, "judge", lambda run: (lambda x: x, 1.0))
    even = m.even_classes(None, x)
    assert even.sum(0).tolist() == [6] * 10
    torch.testing.assert_close(even[:10], torch.eye(10))


def test_denoising_gains_what_the_exact_posterior_mean_gains(monkeypatch):
    v, s = 0.5, 0.6
    monkeypatch.setattr(m, "images", lambda run: (None, v**0.5 * torch.randn(40, 4000), None, None))
    for a, error in ((1e-9, s**2), (1 / (v + s**2), v * s**2 / (v + s**2))):
        expected = pytest.approx(10 * math.log10(2**2 / error), abs=0.05)
        assert m.denoising_db(a_run(None), Gaussian(a), s) == expected
        assert m.denoising_db(a_run(None), Gaussian(0.1 * a), s, temperature=0.1) == expected  # ∇E/T


def test_a_mixture_with_labels_is_one_for_each_class_weighed_by_their_shares():
    y = torch.tensor([1] * 30 + [0] * 10)
    x = 0.1 * torch.randn(40, 3) + y[:, None]
    one, two = (m.fit_mixture(x[y == k], 2, 0) for k in (0, 1))
    whole = m.fit_mixture(x, 2, 0, y)
    np.testing.assert_allclose(whole.weights, np.concatenate([one.weights / 4, two.weights * 3 / 4]))
    for ours, parts in zip(whole[1:], zip(one[1:], two[1:], strict=True), strict=True):
        np.testing.assert_allclose(ours, np.concatenate(parts))


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_a_mixture_is_drawn_with_its_moments_each_gaussian_by_its_share_or_at_random(kind):
    rng = np.random.default_rng(0)
    weights, means, n = np.array([0.5, 0.3, 0.2]), 0.3 * np.eye(3)[:, :2], 20_000
    roots = 0.05 * rng.normal(size=(3, 2, 2))
    covariances = roots @ roots.swapaxes(1, 2) + 1e-4 * np.eye(2) if kind == "full" else roots[:, 0] ** 2
    for by_share in (True, False):
        x = m.draw_mixture(m.MixtureOfGaussians(weights, means, covariances), n, rng, by_share).double().numpy()
        full = covariances if kind == "full" else np.stack([np.diag(c) for c in covariances])
        centre = weights @ means
        spread = np.einsum("k,kij->ij", weights, full + np.einsum("ki,kj->kij", means - centre, means - centre))
        np.testing.assert_allclose(x.mean(0), centre, atol=5 * 0.15 / n**0.5)
        np.testing.assert_allclose(np.cov(x.T), spread, atol=6e-4)
    tight, counts = m.MixtureOfGaussians(weights, means, np.full((3, 2), 1e-12)), {True: [], False: []}
    for by_share, seen in counts.items():
        for _ in range(40):
            x = m.draw_mixture(tight, 1000, rng, by_share).numpy()
            seen.append([(abs(x - mean).max(1) < 0.1).sum() for mean in means])
        assert by_share or np.std(seen, 0) == pytest.approx(np.sqrt(1000 * weights * (1 - weights)), rel=0.5)
        assert (abs(np.diff((abs(x - means[0]).max(1) < 0.1).astype(int))).sum()) > 100  # in random order
    assert abs(np.array(counts[True]) - 1000 * weights).max() < 1


@pytest.mark.parametrize("with_labels", [False, True])
def test_the_mixture_to_compare_with_resembles_the_images(run, with_labels):
    x, train, labels = m.mixture_samples(run, 500, with_labels), m.images(run)[0], m.images(run)[2]
    assert x.shape == (500, 64)
    assert x.abs().max() <= 1
    assert (x.mean(0) - train.mean(0)).abs().max() < 0.2
    assert torch.bincount(labels[torch.cdist(x, train).argmin(1)][:100], minlength=10).min() > 0


def test_scikit_learn_and_scipy_are_handed_float64(run, monkeypatch):
    """In float32 a mixture's covariances lose their definiteness on some processors, and its samples with them."""
    handed = []

    class Mixture(m.GaussianMixture):
        def fit(self, x):
            handed.append(x.dtype)
            return super().fit(x)

    class Means(m.KMeans):
        def fit(self, x):
            handed.append(x.dtype)
            return super().fit(x)

    monkeypatch.setattr(m, "GaussianMixture", Mixture)
    monkeypatch.setattr(m, "KMeans", Means)
    monkeypatch.setattr(m, "cross_val_score", lambda svm, x, y, cv: handed.append(x.dtype) or np.ones(2))
    monkeypatch.setattr(m, "frechet_distance", lambda a, b: handed.extend((a.dtype, b.dtype)))
    x = m.mixture_samples(run, 40)
    assert x.dtype == torch.float32
    m.find_clusters(x, 2, 0)
    m.two_sample_accuracy(run, x)
    m.frechet_to_test(run, x)
    assert handed == [np.float64] * 5


# 5. The long run


def test_the_long_run_compares_energies_of_the_same_clusters(run, monkeypatch):
    """The mistake: data and chains of different clusters, whose unknown log Z's would pass for a drift."""

    class Watched(Gaussian):
        def forward(self, x, y=None):
            seen.append((x[0].mean(1) - y).abs().max().item())
            return super().forward(x)

    seen, y = [], torch.arange(100) % 4
    trainer = fresh_trainer(Watched(1.0), y[:, None].expand(100, 64).float(), y)
    monkeypatch.setattr(m, "trained", lambda run: (trainer, 0.0))
    rows, shown = m.run_on(run)
    assert [row.step for row in rows] == m.marks_up_to(run.config.n_long)
    assert max(seen[1::2]) < 0.2  # data: each image says which cluster it is of
    assert [part.shape for part in shown] == [(12, 64)] * len(rows)


def test_other_temperatures_are_tried_on_the_trained_energy(run, monkeypatch):
    tried, trainer = [], types.SimpleNamespace(average=None, y=torch.arange(100) % 4)
    monkeypatch.setattr(m, "trained", lambda run: (trainer, 0.0))
    monkeypatch.setattr(m, "draw", lambda run, energy, n, t, y, size: tried.append((n, t)))
    monkeypatch.setattr(m, "frechet_and_sem", lambda run, x: (0.0, 0.0))
    assert list(m.try_temperatures(run)) == ["T = 1", "T = 0.3", "T = 1.5", "1, then to 0"]
    assert [t for _, t in tried[:3]] == [1.0, 0.3, 1.5]
    np.testing.assert_allclose(tried[3][1], [1, 1, 1, 1, 0.5, 0])
    assert {n for n, _ in tried} == {run.config.n_from_noise}


def test_small_networks_are_scored_after_each_mark_from_noise_and_denoised(run, monkeypatch):
    """E = |x|^2/2 at first: without noise chains shrink by 1 - eps/2 a step, and once by 1 - s^2."""
    seen, config = [], replace(m.small(run.config), n_seeds=2, step_size=0.1, data_noise=0.5, n_samples=40)
    trainer = m.Trainer(m.AutoEncoderEnergy(2, 64, 16, 1.0), m.images(run)[0], config, torch.zeros(1437).long())
    monkeypatch.setattr(m, "frechet_to_test", lambda run, x: seen.append(x.std().item()) or len(seen))
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self: self.zero_())
    rows = m.small_scores(run, trainer, [3, 10])
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4]])
    expected = [0.95**n * 0.75 for n in (3, 3, 10, 10)]
    assert seen == pytest.approx(expected, rel=0.05)


def test_a_small_training_changes_what_it_is_told_and_nothing_else(run):
    before, after = [], []
    trainer = m.small_training(run, "", 3, 4, before.append, after.append, reinit=1.0)
    assert (trainer.step, trainer.config.reinit, len(before), len(after)) == (3, 1.0, 3, 3)
    assert trainer.y.max() == 3
    assert trainer.config == replace(m.small(run.config), reinit=1.0, warm_up=1)
    lost = m.small_training(run, "", 3, 1, step_size=1e20)
    assert lost.step < 3  # a divergence is a result here


@pytest.mark.parametrize(
    ("error", "words"), [(0.01, "best temperature: T = 1.5"), (0.05, "no temperature is clearly better")]
)
def test_a_temperature_is_better_only_beyond_two_standard_errors(error, words):
    assert m.say_temperature({"T = 1": (0.2, error), "T = 0.3": (0.4, 0.0), "T = 1.5": (0.1, 0.02)}).startswith(words)


def test_the_buffer_is_compared_with_chains_that_always_restart(run, monkeypatch):
    kinds = []
    monkeypatch.setattr(m, "small_training", lambda run, name, n, **changes: kinds.append((name, changes)))
    monkeypatch.setattr(m, "small_scores", lambda run, trainer, marks: marks)
    marks, found = m.with_and_without_buffer(run)
    assert kinds == [("buffer", {}), ("no buffer", {"reinit": 1.0})]
    assert run.config.n_langevin in marks
    assert max(marks) == run.config.n_long // 4
    assert found == {"buffer": marks, "no buffer": marks}


def test_section_longrun_records_every_mark(tmp_path, monkeypatch):
    run = Notes(tmp_path)
    rows = [m.Mark(step, 0.1 * step, 0.01, 0.2, 0.9, -3.0) for step in (1, 5)]
    monkeypatch.setattr(m, "run_on", lambda run: (rows, [torch.zeros(12, 64)] * 2))
    monkeypatch.setattr(m, "try_temperatures", lambda run: {"T = 1": (0.3, 0.01), "T = 0.3": (0.2, 0.01)})
    found = {"buffer": np.array([[3.0, 2], [1, 1]]), "no buffer": np.array([[1.0, 1], [5, 7]])}
    monkeypatch.setattr(m, "with_and_without_buffer", lambda run: ([20, 400], found))
    m.section_longrun(run)
    assert run.metrics["after 5 steps: Frechet distance"] == (0.5, 0.01, ("its classes made even", 0.2), None)
    assert run.metrics["after 5 steps: energy above data (nats)"].against[1] == 0
    assert run.metrics["T = 0.3: Frechet distance"].against == ("T = 1", 0.3)
    assert run.metrics["no buffer, 400 steps: Frechet distance"][:2] == (6, 1)
    assert run.said == ["the energy of the buffer is best after 400 steps, that without one after 20"]
    assert run.titles["drift"][2] == "best temperature: T = 0.3"


# 6. Proportions


def test_a_mixtures_accuracy_is_read_between_its_points():
    points = {k: m.Point(0.0, 0.0, told, nearest) for k, told, nearest in ((60, 0.6, 1.9), (10, 0.8, 2.3), (20, 0.7, 2.1))}
    assert m.told_at(points, 2.2) == pytest.approx(0.75)
    assert m.told_at(points, 2.0) == pytest.approx(0.65)


def test_the_curves_have_only_sizes_that_data_and_chains_can_fill(run):
    assert m.sizes_for(run, (1, 32, 33, 400)) == [1, 32]
    assert m.sizes_for(a_run(run.out, n_chains=512), (128, 359, 360)) == [128, 359]


def test_a_point_on_the_curve_is_drawn_early_and_scored_again_late(run, monkeypatch):
    y, config = torch.arange(100) % 4, run.config
    travelled, trainer = [], fresh_trainer(Gaussian(1.0), torch.zeros(100, 64), y)
    monkeypatch.setattr(m, "travel", lambda energy, x, n, step, y: travelled.append((n, y)) or x)
    monkeypatch.setattr(m, "denoised", lambda run, energy, x, y: f"after {sum(n for n, _ in travelled)}")
    monkeypatch.setattr(m, "point", lambda run, soon, late: (soon, late))
    assert m.run_to_two_marks(run, trainer) == (f"after {config.n_from_noise // 3}", f"after {config.n_long // 5}")
    assert torch.bincount(travelled[0][1]).tolist() == [5] * 4


def test_both_families_walk_over_their_sizes_from_the_runs_seed(run, monkeypatch):
    fits = []
    monkeypatch.setattr(
        m, "fit_mixture", lambda x, k, seed: fits.append((k, seed)) or m.MixtureOfGaussians(None, None, None)
    )
    monkeypatch.setattr(m, "draw_mixture", lambda mixture, n, rng: torch.full((n, 64), float(fits[-1][1])))
    monkeypatch.setattr(m, "point", lambda run, soon, late: m.Point(*[soon.mean().item()] * 4))
    run.seed = 3
    assert m.mixture_curve(run) == {10: m.Point(*[3.5] * 4), 20: m.Point(*[3.5] * 4)}
    assert fits == [(10, 3), (10, 4), (20, 3), (20, 4)]
    monkeypatch.setattr(m, "run_to_two_marks", lambda run, trainer: (trainer.y.max().item() + 1, trainer.step))
    assert m.energy_curve(run) == {k: (k, run.config.n_curve) for k in (1, 4, 16, 32)}


def test_section_proportions_compares_at_equal_nearness(tmp_path, monkeypatch):
    run = Notes(tmp_path)
    energies = {1: m.Point(0.9, 2.0, 0.8, 2.2), 32: m.Point(0.1, 0.15, 0.7, 2.0)}
    mixtures = {10: m.Point(0.3, 0.3, 0.9, 2.4), 60: m.Point(0.2, 0.2, 0.3, 1.8)}
    monkeypatch.setattr(m, "energy_curve", lambda run: energies)
    monkeypatch.setattr(m, "mixture_curve", lambda run: mixtures)
    monkeypatch.setattr(m, "trained", lambda run: ("the energy of digits", 0.0))
    monkeypatch.setattr(m, "run_to_two_marks", lambda run, trainer: m.Point(0.1, 0.12, 0.65, 2.1))
    monkeypatch.setattr(m, "tilt_mixture", lambda run: {0: (0.2, 0.01), 5: (0.3, 0.9), 9: (0.1, 0.02)})
    m.section_proportions(run)
    assert run.metrics["1 clusters: Frechet distance"] == (0.9, None, ("after a long run", 2.0), None)
    assert run.metrics["32 clusters: two-sample accuracy"].against[1] == pytest.approx(0.5)
    assert run.metrics["32 clusters: two-sample accuracy"].against[0] == "mixtures as near"
    assert run.metrics["all updates: two-sample accuracy"][:3] == (0.65, None, ("mixtures as near", pytest.approx(0.6)))
    assert "energy with 32 clusters" in run.said[0]
    assert "2 of 2 energies are told more easily" in run.said[1]
    assert run.metrics["tilted mixture, 9 steps: Frechet distance"] == (0.1, 0.02, ("the mixture, denoised", 0.2), None)
    assert run.said[2].endswith("updates the energy is told at 0.65, mixtures as near at 0.60")
    assert "is better: 0.20 before its chains move, 0.10 after" in run.said[3]


@pytest.mark.parametrize(("last", "verdict"), [(0.22, "no better and no worse"), (0.26, "worse")])
def test_a_tilt_is_judged_by_two_standard_errors(last, verdict, tmp_path):
    run = Notes(tmp_path)
    m.record_tilt(run, {0: (0.2, 0.012), 3: (last, 0.016)})
    assert f"is {verdict}: " in run.said[0]


def test_a_tilted_mixture_is_its_network_less_the_log_density_of_the_noisy_mixture(float64):
    """The mistakes: a covariance without the noise, a spread for a variance, log q with another sign, a weight left out."""
    root = torch.randn(3, D, D)
    mixture = m.MixtureOfGaussians(
        np.array([0.5, 0.3, 0.2]), torch.randn(3, D).numpy(), (root @ root.mT + 0.1 * torch.eye(D)).numpy()
    )
    trunk = m.mlp(D, 8)
    torch.nn.init.normal_(trunk[-1].weight)
    energy, x = m.TiltedMixture(trunk, mixture, 0.4).double(), torch.randn(1, 9, D)
    parts = torch.distributions.MultivariateNormal(
        torch.as_tensor(mixture.means), torch.as_tensor(mixture.covariances) + 0.16 * torch.eye(D)
    )
    q = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.as_tensor(mixture.weights)), parts)
    off = energy(x) - (trunk(x[0])[None, :, 0] - q.log_prob(x))
    torch.testing.assert_close(off, torch.full_like(off, -D / 2 * math.log(2 * math.pi)), rtol=0, atol=1e-4)


def test_a_tilt_starts_at_the_noisy_mixture_and_ends_after_its_marks(run, monkeypatch):
    """The mistakes: chains that start from noise, marks counted twice, samples without the noise that E expects."""
    looked, moved = [], []
    monkeypatch.setattr(m, "travel", lambda energy, x, n, size: moved.append(n))
    monkeypatch.setattr(m, "denoised", lambda run, energy, x: looked.append(x.clone()) or x[0])
    real, kept = m.Trainer.run, []
    monkeypatch.setattr(m.Trainer, "run", lambda self, *rest: kept.append(self.buffer.chains.clone()) or real(self, *rest))
    found = m.tilt_mixture(run)
    assert list(found) == np.cumsum(moved).tolist()
    assert moved[0] == 0
    plain = m.mixture_samples(run, run.config.n_samples // 2)
    noise = looked[0][0] - plain
    assert noise.std().item() == pytest.approx(run.config.data_noise, rel=0.1)
    spread = m.mixture_samples(run, 1000).var(0) + run.config.data_noise**2
    assert kept[0].flatten(0, 2).var(0).mean().item() == pytest.approx(spread.mean().item(), rel=0.25)


# 7. Ablations


def test_each_ablation_changes_the_small_recipe_by_one_thing(run, monkeypatch):
    trained, base = {}, {"n_clusters": 4}
    monkeypatch.setattr(m, "small_training", lambda run, name, n, **changes: trained.setdefault(name, changes))
    monkeypatch.setattr(m, "small_scores", lambda run, trainer, marks: [(marks, trainer)])
    found = m.ablate(run)
    assert trained.pop("as it is") == base
    assert trained.pop("no clusters") == {"n_clusters": 1}
    assert all(len(changes.items() - base.items()) == 1 for changes in trained.values())
    assert found["no buffer"] == ([2], {"n_clusters": 4, "reinit": 1.0})


def test_section_ablations_compares_with_the_recipe_as_it_is(tmp_path, monkeypatch):
    run, values = Notes(tmp_path), {"as it is": np.array([1.0, 2]), "a": np.array([5.0, 5]), "b": np.array([9.0, 8])}
    monkeypatch.setattr(m, "ablate", lambda run: values)
    m.section_ablations(run)
    assert run.metrics["a: Frechet distance"].against == ("as it is", 1.5)
    assert run.said[0].startswith("what costs most: b (8.5, not 1.5), a")


def test_clipping_shortens_the_whole_gradient():
    energy = autoencoder()
    energy(torch.randn(1, 5, D)).sum().backward()
    m.clip(energy, 0.3)
    assert math.hypot(*(p.grad.norm() for p in energy.parameters())) == pytest.approx(0.3, rel=1e-4)


def test_shrink_projects_each_network_to_the_largest_singular_value_allowed():
    energy = autoencoder(2)
    with torch.no_grad():
        energy.w1[0] *= 0.01
    old = copy.deepcopy(energy)
    m.shrink(energy, 0.8)
    assert torch.equal(energy.w1[0], old.w1[0])
    for w, before in ((energy.w1[1], old.w1[1]), (energy.w2[0], old.w2[0]), (energy.w2[1], old.w2[1])):
        assert torch.linalg.matrix_norm(w, 2).item() == pytest.approx(0.8, rel=1e-5)
        torch.testing.assert_close(w / w.norm(), before / before.norm())


# 8. Class-conditional energies


def test_the_lowest_energy_is_looked_for_among_all_classes(float64):
    class Wells(nn.Module):
        def forward(self, x, y):
            return (x[0] - 3.0 * y[:, None]).square().sum(1)[None]

    y = torch.tensor([2, 0, 4, 1, 1])
    assert torch.equal(m.lowest_energy(Wells(), 3.0 * y[:, None] + torch.randn(5, 2) * 0.1, 5), y)


def test_a_conditional_energy_is_trained_on_the_labels_and_asked_for_each_class(run, monkeypatch):
    x, x_test, y, y_test = m.images(run)
    asked, trainer = [], types.SimpleNamespace(average="average")
    monkeypatch.setattr(
        m, "Trainer", lambda energy, x, config, labels: asked.append((energy.b1.shape[1], labels)) or trainer
    )
    trainer.run = lambda n, label: trainer
    monkeypatch.setattr(m, "draw", lambda run, energy, n, y: y)
    monkeypatch.setattr(m, "classes", lambda run, drawn: torch.where(drawn == 3, 5, drawn))
    monkeypatch.setattr(m, "lowest_energy", lambda energy, x: torch.where(y_test == 1, 0, y_test))
    found = m.train_with_classes(run)
    assert asked[0][0] == 10
    assert torch.equal(asked[0][1], y)
    assert torch.equal(found.obeyed, found.asked != 3)
    assert torch.equal(found.lowest_is_right, y_test != 1)
    assert torch.bincount(found.asked).tolist() == [4] * 10


def test_section_conditional_holds_it_beside_the_judge_and_the_mixture_that_knows_the_labels(tmp_path, monkeypatch):
    run, rivals = Notes(tmp_path), []
    found = m.Conditional(torch.zeros(100, 64), torch.arange(100) % 10, torch.arange(100) > 9, torch.arange(50) > 9)
    monkeypatch.setattr(m, "train_with_classes", lambda run: found)
    monkeypatch.setattr(m, "judge", lambda run: (None, 0.97))
    monkeypatch.setattr(m, "mixture_samples", lambda run, n, **how: rivals.append(how) or "rival")
    for name in ("frechet_to_test", "frechet_and_sem", "two_sample_accuracy"):
        both = {"frechet_to_test": 0.1, "frechet_and_sem": (0.3, 0.01), "two_sample_accuracy": (0.7, 0.02)}[name]
        monkeypatch.setattr(m, name, lambda run, x, both=both: (0.6, 0.0) if x == "rival" and both == (0.7, 0.02) else both)
    m.section_conditional(run)
    assert rivals == [{"with_labels": True}]
    assert run.metrics["asked class is drawn"].value == pytest.approx(0.9)
    assert run.metrics["asked class is drawn"].against[1] == 0.97
    assert run.metrics["Frechet distance"] == (0.3, 0.01, ("mixture with labels", 0.1), None)
    assert run.metrics["two-sample accuracy"] == (0.7, 0.02, ("mixture with labels", 0.6), None)
    assert run.metrics["lowest energy is the right class"].value == pytest.approx(0.8)


# 9. Scale


def test_a_data_set_brings_its_settings_and_the_command_line_the_last_word(tmp_path):
    """The mistake: 64 pixels' settings on 784, which diverge; or a flag that is overruled."""
    flags = ["--out", str(tmp_path), "--dataset", "mnist"]
    assert m.parse_args(flags)[1] == replace(m.Config(), dataset="mnist", **m.LARGE)
    assert m.parse_args([*flags, "--sigma", "0.2"])[1].sigma == 0.2
    assert m.parse_args([*flags, "--smoke"])[1].n_updates == m.SMOKE["n_updates"]
    assert m.parse_args(["--out", str(tmp_path)])[1] == m.Config()


def test_section_scale_says_what_was_fastest_here(tmp_path, monkeypatch):
    run = Notes(tmp_path)
    for slow, said in ((9.0, "--precision float32"), (0.1, "--precision bfloat16")):
        found = {"float32": (1.0, 0.0), "bfloat16": (slow, 0.01), "bfloat16, channels last": (slow / 2, 0.02)}
        found = {name: m.Precision(*values) for name, values in found.items()}
        monkeypatch.setattr(m, "compare_precisions", lambda device, n, found=found: found)
        monkeypatch.setattr(m, "stop_and_go_on", lambda run, path: 0.5)
        run.metrics.clear()
        m.section_scale(run)
        assert said in run.said[-1]
        assert ("slower" in run.titles["precision"][0]) == (slow > 1)
        assert run.metrics["bfloat16: relative error"] == (0.01, None, ("float32", 0), 0.02)
        assert run.metrics["resumed minus uninterrupted"] == (0.5, None, ("bit for bit", 0), 0)


def test_labels_come_back_with_the_checkpoint(tmp_path):
    """The mistake: clusters found anew with another seed, whose numbers mean others than those that were learnt."""
    trainers = [fresh_trainer(autoencoder(1, 3), torch.rand(40, D), y=torch.randint(3, (40,))) for _ in range(2)]
    m.save_checkpoint(trainers[0], tmp_path / "c.pt")
    assert not torch.equal(trainers[0].y, trainers[1].y)
    m.load_checkpoint(trainers[1], tmp_path / "c.pt")
    assert torch.equal(trainers[0].y, trainers[1].y)
    assert torch.equal(trainers[0].buffer.y, trainers[1].buffer.y)
    assert torch.equal(trainers[0].labelled.rows, trainers[1].labelled.rows)


# 9. Scale: checkpoints


def train_digits(*flags):
    """The section digits on tiny settings."""
    m.main(["--smoke", "--section", "digits", *map(str, flags)])


def same(a, b):
    """Are two nests of dicts, lists, tensors and numbers equal, bit for bit?"""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_resumed_training_ends_in_the_same_state_bit_for_bit(tmp_path, monkeypatch):
    save, path = m.save_checkpoint, tmp_path / "whole.pt"

    def save_and_copy(trainer, to):
        save(trainer, to)
        shutil.copy(to, f"{to}.{trainer.step}")

    monkeypatch.setattr(m, "save_checkpoint", save_and_copy)
    train_digits("--out", tmp_path / "a", "--n-updates", 7, "--checkpoint", path, "--checkpoint-every", 3)
    assert sorted(tmp_path.glob("whole*")) == [tmp_path / f"whole.pt{end}" for end in ("", ".3", ".6", ".7")]
    other = tmp_path / "resumed.pt"
    train_digits("--out", tmp_path / "b", "--n-updates", 7, "--checkpoint", other, "--resume", f"{path}.3")
    whole, resumed = (torch.load(file, weights_only=True) for file in (path, other))
    assert set(whole) == {"energy", "average", "optimiser", "settings", "step", "history", "ranks", "y"}
    assert (whole["step"], len(whole["history"]), len(whole["optimiser"]["state"])) == (7, 7, 4)
    assert set(whole["ranks"][0]) == {"chains", "at", "y_chains", "random"}  # the next random numbers too
    assert same(whole, resumed)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))["metrics"] for name in "ab"]
    assert all(metrics[0][name] == metrics[1][name] for name in metrics[0] if not name.endswith("(s)"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of a checkpoint of tiny settings, after two updates."""
    folder = tmp_path_factory.mktemp("checkpoint")
    trainer = m.trained(a_run(folder, n_updates=2, checkpoint=str(folder / "c.pt")))[0]
    assert trainer.step == 2
    return (folder / "c.pt").read_bytes()


SETTINGS = [
    "dataset",
    "split",
    "architecture",
    "width",
    "sigma",
    "n_clusters",
    "data_noise",
    "batch_size",
    "n_chains",
]  # else it is another training


class Code:
    """A pickle that runs a command when it is read."""

    def __reduce__(self):
        return os.mkdir, ("code-has-run",)


def bad_checkpoint(kind, good, path):
    """Write a file that cannot be resumed from, and return what the complaint must name."""
    if kind == "missing":
        return "there is no file"
    if kind == "a folder":
        path.mkdir()
        return "is a folder"
    if kind in ("empty", "text", "cut short", "the end is missing"):
        contents = {"empty": b"", "text": b"hello\n", "cut short": good[: len(good) // 2], "the end is missing": good[:-9]}
        path.write_bytes(contents[kind])
        return "damaged, or no checkpoint"
    path.write_bytes(good)
    saved = torch.load(path, weights_only=True)
    if kind in SETTINGS:
        was = saved["settings"][kind]
        saved["settings"][kind] = "another" if isinstance(was, str) else was + 1
        torch.save(saved, path)
        return f"was trained with {kind} {saved['settings'][kind]}, not {was}"
    if kind == "two processes":
        torch.save(saved | {"ranks": saved["ranks"] * 2}, path)
        return "was trained by 2 processes, not 1"
    if kind == "a part is missing":
        torch.save({name: part for name, part in saved.items() if name != "optimiser"}, path)
        return "damaged, or no checkpoint"
    others = {"code": {"settings": Code()}, "other numbers": {"x": torch.ones(2)}, "a list": [1, 2]}
    torch.save(others.get(kind, {"settings": 1, "ranks": 2}), path)
    return "damaged, or no checkpoint"


@pytest.mark.parametrize(
    "kind",
    ["missing", "a folder", "empty", "text", "cut short", "the end is missing", "code", "other numbers", "a list"]
    + ["two numbers", "a part is missing", "two processes", *SETTINGS],
)
def test_what_cannot_be_resumed_is_one_clear_line_and_stays_as_it_was(kind, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    expected = bad_checkpoint(kind, checkpoint, path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(SystemExit, match=expected) as stop:
        train_digits("--resume", path, "--checkpoint", path, "--out", tmp_path / "out")
    assert str(path) in stop.value.code
    assert stop.value.code.count("\n") == 0
    assert capsys.readouterr().err == ""
    assert (path.read_bytes() if path.is_file() else None) == before
    assert {entry.name for entry in tmp_path.iterdir()} <= {"c.pt", "out"}
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("flag", "value"), [("width", 16), ("architecture", "mlp"), ("batch_size", 8), ("n_chains", 64)])
def test_another_network_or_buffer_than_the_checkpoints_is_one_clear_line(flag, value, checkpoint, tmp_path):
    (tmp_path / "c.pt").write_bytes(checkpoint)
    with pytest.raises(SystemExit, match=f"was trained with {flag} .*, not {value}$"):
        train_digits("--resume", tmp_path / "c.pt", f"--{flag.replace('_', '-')}", value, "--out", tmp_path / "out")
    assert (tmp_path / "c.pt").read_bytes() == checkpoint


def test_a_checkpoint_in_no_folder_fails_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(m.Trainer, "update", None)
    with pytest.raises(SystemExit, match="--checkpoint: cannot write to .*: No such file"):
        train_digits("--checkpoint", tmp_path / "nowhere" / "c.pt", "--out", tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_a_checkpoint_that_fails_half_way_leaves_the_old_one(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    path.write_bytes(checkpoint)

    def half(content, to):
        to.write(checkpoint[:100])
        assert path.read_bytes() == checkpoint  # whoever is killed here loses nothing
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="the disk is full"):
        train_digits("--resume", path, "--checkpoint", path, "--out", tmp_path / "out")
    assert path.read_bytes() == checkpoint
    assert {entry.name for entry in tmp_path.iterdir()} == {"c.pt", "out"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is always full")
def test_a_full_disk_is_an_os_error_that_the_last_lines_of_the_module_know(checkpoint, tmp_path, monkeypatch):
    """The mistake: torch.save to a path turns it into a RuntimeError."""
    monkeypatch.setattr(m, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        train_digits("--checkpoint", tmp_path / "c.pt", "--out", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_is_put_in_place_however_long_a_scanner_holds_the_old_one(tmp_path, monkeypatch):
    replace_file, refused = Path.replace, []

    def refuse_once(self, to):
        if not refused:
            refused.append(to)
            raise PermissionError
        return replace_file(self, to)

    monkeypatch.setattr(Path, "replace", refuse_once)
    m.save_checkpoint(fresh_trainer(autoencoder()), tmp_path / "c.pt")
    assert refused == [tmp_path / "c.pt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize(
    ("seed", "changes", "said"),
    [
        (0, {}, ""),
        (5, {}, "; --seed was 0; the training goes on with the random numbers of the old seed"),
        (0, {"learning_rate": 0.002}, "; --learning-rate was 0.004"),
        (0, {"n_updates": 3}, "; --n-updates was 2"),
        (0, {"n_updates": 1}, "; --n-updates was 2"),
    ],
)
def test_what_a_resumed_training_does_otherwise_is_said_in_one_line(seed, changes, said, checkpoint, tmp_path, capsys):
    path, n = tmp_path / "c.pt", changes.get("n_updates", 2)
    path.write_bytes(checkpoint)
    run = m.Run(tiny(**({"n_updates": n, "resume": str(path)} | changes)), seed, "cpu", tmp_path, False)
    run.section = "digits"
    assert m.trained(run)[0].step == max(n, 2)
    end = f"; --n-updates {n} leaves nothing to train" if n < 3 else ""
    assert capsys.readouterr().out == f"  {path} goes on after update 2{said}{end}\n"


@pytest.mark.parametrize(("section", "times"), [("conditional", 1), ("longrun", 0), ("digits", 0)])
def test_a_section_that_trains_nothing_from_a_checkpoint_says_so_once(section, times, checkpoint, tmp_path, capsys):
    (tmp_path / "c.pt").write_bytes(checkpoint)
    run = a_run(tmp_path, resume=str(tmp_path / "c.pt"))
    run.section = section
    for _ in range(2):
        m.images(run)
    assert capsys.readouterr().out.count("serve digits, longrun and proportions") == times


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills in another way")
def test_a_killed_run_always_leaves_a_checkpoint_to_go_on_from(tmp_path):
    path, step, rng = tmp_path / "c.pt", 0, random.Random(0)
    command = [sys.executable, "-I", m.__file__, "--smoke", "--section", "digits", "--width", "16", "--n-updates", "1000000"]
    command += ["--checkpoint", str(path), "--checkpoint-every", "1", "--out", str(tmp_path / "out")]
    for kind in (signal.SIGKILL, signal.SIGTERM):
        resume = ["--resume", str(path)] if step else []
        last = path.stat().st_mtime_ns if step else None
        with subprocess.Popen(command + resume, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while not path.exists() or path.stat().st_mtime_ns == last:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(kind)
            process.wait(20)
        assert process.returncode == -kind
        saved = torch.load(path, weights_only=True)
        assert saved["step"] == len(saved["history"]) > step
        step = saved["step"]


# 9. Scale: one process where there might be more


@pytest.mark.parametrize("dist", [None, types.SimpleNamespace(is_available=lambda: False)], ids=["no import", "not built"])
def test_a_torch_without_distributed_trains_and_keeps_checkpoints(dist, tmp_path, monkeypatch):
    monkeypatch.setattr(m, "dist", dist)
    file = str(tmp_path / "c.pt")
    assert m.trained(a_run(tmp_path, n_updates=2, checkpoint=file))[0].step == 2
    assert m.trained(a_run(tmp_path, n_updates=3, resume=file))[0].step == 3


def test_the_module_loads_where_distributed_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    spec = importlib.util.spec_from_file_location("without_distributed", m.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.dist is None
    assert not module.joined()


@pytest.mark.parametrize(("size", "said"), [("2", True), ("", False), ("1", False), ("x", True), (None, False)])
def test_a_world_size_that_something_else_left_behind_joins_nobody(size, said, monkeypatch, capsys):
    """The mistake: to take WORLD_SIZE alone for torchrun, and end in a traceback, --help included."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    sections = dict(m.SECTIONS)
    with m.joined_ranks():
        assert not m.joined()
        assert sections == m.SECTIONS
    assert ("it runs alone" in capsys.readouterr().out) == said


# Running ahead in a second process


def test_what_runs_ahead_draws_from_its_own_seed_and_an_error_ends_it(tmp_path, monkeypatch):
    """The mistakes: a stream or metrics that go on from one section to the next, and work after an end."""

    def section(run):
        run.metric("drawn", torch.rand(()))

    def lost(run):
        m.echo("so far")
        sys.exit("lost")

    monkeypatch.setattr(m, "SECTIONS", {"digits": section, "longrun": section, "proportions": lost})
    monkeypatch.setattr(m, "AHEAD", ("digits", "longrun", "proportions", "never reached"))
    monkeypatch.setattr(m.signal, "signal", lambda *_: None)
    monkeypatch.setattr(m.multiprocessing, "parent_process", lambda: types.SimpleNamespace(join=lambda: True))
    ours, theirs = m.multiprocessing.Pipe(duplex=False)
    with torch.random.fork_rng():
        m.go_ahead(theirs, tiny(), 5, "cpu", tmp_path)
        drawn = torch.manual_seed(5) and torch.rand(()).item()
    for name in ("digits", "longrun"):
        text, metrics, error = ours.recv()
        assert metrics == {f"{name}/drawn": {"value": drawn}}
        assert text.startswith("  drawn ")
        assert error is None
    text, metrics, error = ours.recv()
    assert (text, metrics, str(error)) == ("so far\n", {}, "lost")


def test_what_ran_before_its_turn_is_printed_and_recorded_in_it(run, capsys, monkeypatch):
    """The mistakes: an error of the second process that nobody hears of, a section that runs twice, or out of its place."""
    (ours, theirs), early, ran = m.multiprocessing.Pipe(duplex=False), {}, []

    def conditional(run):
        ran.append(run.section)
        run.metric("c", torch.rand(()))

    def take_turn(name):
        run.section = name
        m.in_turn(name, conditional, ours, early, run)

    monkeypatch.setattr(m, "MEANWHILE", ("conditional", "ablations"))
    monkeypatch.setattr(
        m, "SECTIONS", {"conditional": conditional, "ablations": lambda _: theirs.send(("  late", {}, None))}
    )
    torch.manual_seed(run.seed)
    drawn = torch.rand(()).item()
    with torch.random.fork_rng():
        take_turn("longrun")  # which arrives only when both others are done
        assert (ran, capsys.readouterr().out, run.metrics) == (["conditional"], "  late\n", {})
        assert set(early) == {*m.MEANWHILE, "longrun"}
        theirs.send(("  a line\n", {"digits/b": {"value": 2.0}}, None))
        take_turn("digits")
        take_turn("conditional")
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[0], lines[1][:4], ran) == (2, "  a line", "  c ", ["conditional"])
    assert run.metrics == {"digits/b": {"value": 2.0}, "conditional/c": {"value": drawn}}
    assert list(run.metrics) == ["digits/b", "conditional/c"]
    theirs.send(("", {}, SystemExit("lost")))
    theirs.close()
    with pytest.raises(SystemExit, match="^lost$"):
        take_turn("digits")
    with pytest.raises(SystemExit, match="--processes 1"):
        take_turn("digits")


def test_what_did_not_run_before_its_turn_runs_in_it(run):
    """The mistake: a section that is left out where the second process was faster."""
    (ours, theirs), ran = m.multiprocessing.Pipe(duplex=False), []
    theirs.send(("", {}, None))
    m.in_turn("digits", ran.append, ours, {}, run)
    assert ran == []
    m.in_turn("ablations", ran.append, ours, {}, run)
    assert ran == [run]


@pytest.mark.parametrize("alone", [["--section", "digits"], ["--processes", "1"], ["torchrun"]])
def test_no_second_process_where_it_has_nothing_to_do(alone, tmp_path, monkeypatch):
    if alone == ["torchrun"]:
        monkeypatch.setattr(m, "SECTIONS", {"digits": m.section_digits})
        alone = []
    monkeypatch.setattr(sys, "argv", ["07", "--device", "cpu", "--out", str(tmp_path), *alone])
    monkeypatch.setattr(m.multiprocessing, "get_context", lambda _: pytest.fail("it starts one"))
    sections = dict(m.SECTIONS)
    with m.second_process():
        assert sections == m.SECTIONS


# 9. Scale: two processes

WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, torch.distributed as dist
from test_07_neural_ebms import autoencoder, fresh_trainer, m, recorded

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, folder, data = dist.get_rank(), sys.argv[2], torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
torch.manual_seed(rank)  # their first weights differ too: those of the first process count
trainer = fresh_trainer(autoencoder(), data, energy_l2=0.05)
saved, kept = {"first": {name: p.clone() for name, p in trainer.energy.state_dict().items()}}, recorded(trainer)
trainer.update(0.01)
saved["batches"] = kept["positives"].clone(), kept["negatives"][0].clone()
saved["gradient"] = [p.grad.clone() for p in trainer.energy.parameters()]
del trainer.positives, trainer.negatives
for name in ("whole", "resumed"):
    if name == "resumed":
        torch.manual_seed(99)
        trainer = fresh_trainer(autoencoder(), data, energy_l2=0.05)
        m.load_checkpoint(trainer, f"{folder}/c.pt")
    for _ in range(2):
        trainer.update(0.01)
        if trainer.step == 2:
            m.save_checkpoint(trainer, f"{folder}/c.pt")
            dist.barrier()
    if name == "whole":
        trainer.update(0.01)
    parts = {part: getattr(trainer, part).state_dict() for part in ("energy", "average", "optimiser")}
    saved[name] = parts | {"chains": trainer.buffer.chains, "step": trainer.step, "next": torch.randn(3)}
torch.save(saved, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


NOTED = """
import os, runpy, sys
from pathlib import Path

replace = Path.replace

def noted(self, to):
    with open(f"written-{os.environ['RANK']}", "a", encoding="utf-8") as file:
        print(to, file=file)
    return replace(self, to)

Path.replace, sys.argv = noted, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


no_torchrun = pytest.mark.skipif(sys.platform == "win32", reason="torch for Windows comes without what torchrun needs")


def torchrun(folder, *command):
    """Two processes of a Python file, in a folder."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launch, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@no_torchrun
def test_two_processes_make_the_steps_that_one_makes_on_the_joined_batch_and_resume_bit_for_bit(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    process = torchrun(tmp_path, "worker.py", Path(__file__).parent, tmp_path)
    assert process.returncode == 0, process.stderr
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same([a["first"], a["gradient"]], [b["first"], b["gradient"]])
    for name in ("energy", "average", "optimiser"):
        assert same(a["whole"][name], b["whole"][name]), name
    assert not torch.isclose(a["whole"]["chains"], b["whole"]["chains"]).any()
    assert a["whole"]["step"] == 4
    assert same(a["whole"], a["resumed"])
    assert same(b["whole"], b["resumed"])

    energy = autoencoder()
    energy.load_state_dict(a["first"])
    e_data, e_chains = (energy(torch.cat([x, y], 1)) for x, y in zip(a["batches"], b["batches"], strict=True))
    loss = e_data.mean() - e_chains.mean() + 0.05 * (e_data.square().mean() + e_chains.square().mean())
    for ours, expected in zip(a["gradient"], torch.autograd.grad(loss, energy.parameters()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@no_torchrun
def test_torchrun_trains_digits_and_prints_and_writes_once(tmp_path):
    (tmp_path / "noted.py").write_text(NOTED, encoding="utf-8")
    process = torchrun(tmp_path, "noted.py", m.__file__, "--smoke", "--out", "out", "--checkpoint", tmp_path / "c.pt")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    record = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert list(record["section_seconds"]) == ["digits"]
    first, second = ((tmp_path / f"written-{rank}").read_text(encoding="utf-8").splitlines() for rank in (0, 1))
    assert {Path(name).parent for name in first} == {Path("out"), tmp_path}
    assert all(Path(name).is_absolute() and not Path(name).is_relative_to(tmp_path) for name in second)
    assert not any(Path(name).exists() for name in second)
    head, *names = [line[2:46].strip() for line in process.stdout.splitlines() if line.startswith("  ")]
    assert head == ""
    assert [name for name in names if not name.startswith("=>")] == [name[7:] for name in record["metrics"]]

    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(SystemExit, match=r"was trained by 2 processes, not 1$"):
        train_digits("--resume", tmp_path / "c.pt", "--checkpoint", tmp_path / "c.pt", "--out", tmp_path / "out")
    assert (tmp_path / "c.pt").read_bytes() == before
    first, second = torch.load(tmp_path / "c.pt", weights_only=True)["ranks"]
    assert not torch.equal(first["random"], second["random"])
    assert not torch.isclose(first["chains"], second["chains"]).any()
