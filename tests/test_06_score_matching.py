"""Module 06: every sign, factor and temperature against closed forms, autograd, quadrature or enumeration."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import torch
from conftest import load
from torch.nn.functional import softplus

m = load("06")


def quadratic(a):
    """E = xᵀAx/2 with a symmetric A (d, d); score -Ax, Laplacian tr A."""
    return lambda x: 0.5 * (x @ a * x).sum(-1)


def symmetric(d):
    a = torch.randn(d, d).double()
    return a + a.T


# 1. and 2. The objectives


def test_explicit_matching_is_half_the_squared_error_of_scores():
    a, x, score = symmetric(3), torch.randn(7, 3).double(), torch.randn(7, 3).double()
    expected = 0.5 * (score - (-x @ a)).square().sum(1)
    torch.testing.assert_close(m.explicit_matching(quadratic(a), x, score), expected)


def test_slope_leaves_the_callers_points_and_their_graph_alone():
    x = torch.randn(7, 3).double()
    leaf, gradient = m.slope(quadratic(torch.eye(3).double()), x)
    assert not x.requires_grad
    assert leaf.requires_grad
    torch.testing.assert_close(gradient, x)


def test_implicit_matching_is_half_the_squared_slope_minus_the_laplacian():
    a, x = symmetric(3), torch.randn(7, 3).double()
    torch.testing.assert_close(m.implicit_matching(quadratic(a), x), 0.5 * (x @ a).square().sum(1) - a.trace())


@pytest.mark.parametrize("reduced", [True, False])
def test_sliced_matching_is_exact_for_each_projection(reduced):
    a, x, v = symmetric(3), torch.randn(7, 3).double(), torch.randn(7, 3).double()
    g = x @ a
    norm = g.square().sum(1) if reduced else (v * g).sum(1) ** 2
    expected = 0.5 * norm - (v @ a * v).sum(1)
    torch.testing.assert_close(m.sliced_matching(quadratic(a), x, v, reduced), expected)


def test_sliced_matching_averages_to_the_implicit_one_with_the_stated_variance():
    a, x, n = symmetric(4), torch.randn(1, 4).double(), 200_000
    g, exact = x @ a, m.implicit_matching(quadratic(a), x)
    for reduced, form in ((True, a), (False, 0.5 * g.T @ g - a)):
        values = m.sliced_matching(quadratic(a), x.expand(n, 4), torch.randn(n, 4).double(), reduced)
        variance = 2 * form.square().sum()
        assert abs(values.mean() - exact) < 5 * (variance / n).sqrt()
        torch.testing.assert_close(values.var(), variance, rtol=0.05, atol=0)


def test_the_denoising_target_points_from_the_noisy_to_the_clean_point():
    x, noise, sigma = torch.randn(5, 2).double(), torch.randn(5, 2).double(), 0.3

    def perfect(y):  # a slope that carries each noisy point straight back: -grad E = (x - y) / sigma²
        return (y - x).square().sum(-1) / (2 * sigma**2)

    assert m.denoising_matching(perfect, x, noise, sigma).max() < 1e-20
    assert m.denoising_matching(lambda y: -perfect(y), x, noise, sigma).min() > 0
    expected = 0.5 * (sigma * (x + sigma * noise) - noise).square().sum(1)
    torch.testing.assert_close(m.denoising_matching(quadratic(torch.eye(2).double()), x, noise, sigma), expected)


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_denoising_learns_the_variance_of_the_blurred_gaussian(sigma):
    x, noise = 0.7 * torch.randn(400_000, 1).double(), torch.randn(400_000, 1).double()
    at = [m.denoising_matching(quadratic(k * torch.eye(1).double()), x, noise, sigma).mean() for k in (0, 1, 2)]
    assert 1 / m.vertex(*at).item() == pytest.approx(0.49 + sigma**2, rel=0.03)


def test_implicit_and_sliced_learn_a_gaussians_variance_and_unit_vectors_d_times_it():
    x, v = 0.7 * torch.randn(100_000, 3).double(), torch.randn(100_000, 3).double()
    eye, second = torch.eye(3).double(), x.square().mean()
    for objective, expected in (
        (lambda e: m.implicit_matching(e, x), second),
        (lambda e: m.sliced_matching(e, x, v.sign()), second),
        (lambda e: m.sliced_matching(e, x, v / v.norm(dim=1, keepdim=True)), 3 * second),
    ):
        at = [objective(quadratic(k * eye)).mean() for k in (0, 1, 2)]
        torch.testing.assert_close(1 / m.vertex(*at), expected, rtol=1e-9, atol=0)


def test_vertex_finds_the_minimum_of_a_parabola():
    assert m.vertex(*(3 * (t + 0.4) ** 2 - 7 for t in (0, 1, 2))) == pytest.approx(-0.4)


def test_two_modes_is_normalised_and_its_score_is_its_slope():
    def density(t):
        return math.exp(m.two_modes(torch.tensor(t).double(), 0.7, 1.1, 0.5)[0])

    assert scipy.integrate.quad(density, -8, 8)[0] == pytest.approx(1)
    assert scipy.integrate.quad(density, -8, 0)[0] == pytest.approx(0.7, abs=0.01)
    x = torch.randn(9).double().requires_grad_(True)
    log_p, score = m.two_modes(x, 0.7, 1.1, 0.5)
    torch.testing.assert_close(torch.autograd.grad(log_p.sum(), x)[0], score)


# 3. NCE


def test_nce_gradient_is_that_of_logistic_regression():
    log_p, log_q, ratio = torch.randn(1, 12).double().requires_grad_(True), torch.randn(1, 12).double(), 2
    is_data = torch.arange(12)[None] < 4
    g = log_p - log_q - math.log(ratio)
    loss = softplus(-g)[is_data].mean() + ratio * softplus(g)[~is_data].mean()
    (expected,) = torch.autograd.grad(loss, log_p)
    torch.testing.assert_close(m.nce_gradient(log_p.detach(), log_q, is_data, ratio), -expected)


def test_nce_fit_is_a_stationary_point_and_finds_a_gaussian_with_its_constant():
    n, ratio = 40_000, 2
    x = torch.cat([0.5 + 0.8 * torch.randn(1, n), 2 * torch.randn(1, ratio * n)], 1).double()
    features, log_q = torch.stack([x, x**2, torch.ones_like(x)], -1), torch.distributions.Normal(0.0, 2.0).log_prob(x)
    is_data = torch.arange(3 * n)[None] < n
    theta = m.nce_fit(features, log_q, is_data, ratio, torch.tensor([[0, 0.5, 1.0]]).double())
    weight = m.nce_gradient(-(features @ theta[..., None])[..., 0], log_q, is_data, ratio)
    assert (features.mT @ weight[..., None]).abs().max() < 1e-10
    exact = torch.tensor([[-0.5 / 0.64, 0.5 / 0.64, 0.25 / 1.28 + math.log(0.8 * math.sqrt(2 * math.pi))]]).double()
    torch.testing.assert_close(theta, exact, rtol=0, atol=0.05)


def test_nce_covariance_with_the_data_as_noise_is_the_cramer_rao_bound_times_one_plus_one_over_ratio():
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    dx, p = x[1] - x[0], (-(x**2) / 2).exp() / math.sqrt(2 * math.pi)
    features = torch.stack([x**2, torch.ones_like(x)], 1)
    covariance = m.nce_covariance(features, p, p, 3, dx)
    assert covariance[0, 0].item() == pytest.approx((1 + 1 / 3) / 2, rel=1e-6)  # Var x² = 2
    assert m.nce_covariance(features[:, 1:], p, p, 3, dx).item() == pytest.approx(0, abs=1e-9)  # nothing to tell apart


# 4. Networks and trainers


def networks(n=2, d=2, depth=3):
    nets = m.Networks(n, d, 16, depth, 3.0)
    for p in nets.parameters:
        p.normal_(0, 0.5)
    return nets


def test_a_fresh_network_is_the_gaussian_it_starts_from():
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(m.Networks(2, 3, 16, 2, 1.5).energy(x), x.square().sum(-1) / (2 * 1.5**2))


def test_gradients_by_hand_equal_autograd():
    nets, x, a = networks(), torch.randn(2, 9, 2), torch.randn(2, 9)
    energy, slope = nets.passes(x)
    torch.testing.assert_close(energy, nets.energy(x))
    torch.testing.assert_close(slope, m.slope(nets.energy, x)[1].detach())
    by_hand = nets.weigh(nets.signals(x)[2], a)
    expected = m.by_autograd(nets, lambda energy: 9 * a * energy(x))
    expected[-1] = a.sum(1)[:, None, None]
    for one, other in zip(by_hand, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_phases_are_the_gradient_of_the_negative_log_likelihood():
    nets, x, grid = networks(), torch.randn(2, 5, 2), torch.randn(2, 30, 2)

    def loss(energy):  # mean over its 30 columns: E(data) + log Z up to a constant
        return (energy(x).mean(1) + (-energy(grid)).logsumexp(1))[:, None].expand(-1, 30)

    expected = m.by_autograd(nets, loss)
    for one, other in zip(m.phases(nets, x, grid)[:-1], expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_noise_phases_are_the_gradient_of_the_nce_loss():
    nets, x, noise = networks(), torch.randn(2, 6, 2), torch.randn(2, 12, 2)

    def loss(energy):
        g = [-energy(y) + 1.3 - math.log(2) for y in (x, noise)]
        return (softplus(-g[0]).mean(1) + 2 * softplus(g[1]).mean(1))[:, None]

    ours = m.noise_phases(nets, x, noise, lambda y: torch.full_like(y[..., 0], -1.3))
    for one, other in zip(ours[:-1], m.by_autograd(nets, loss), strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_adam_equals_torch():
    ours, theirs = torch.randn(1, 3, 2), torch.nn.Parameter(torch.zeros(1, 3, 2))
    theirs.data.copy_(ours)
    adam, reference = m.Adam([ours]), torch.optim.Adam([theirs], lr=0.05, betas=(0.9, 0.99))
    for _ in range(5):
        theirs.grad = torch.randn(1, 3, 2)
        adam.step([theirs.grad.clone()], 0.05)
        reference.step()
    torch.testing.assert_close(ours, theirs.data)


@pytest.mark.parametrize("name", ["8_gaussians", "2_spirals", "4_squares"])
def test_the_toy_densities_are_normalised_and_their_samples_fit(name):
    data = m.toy_sets("cpu")[name]
    middle = (torch.arange(240) + 0.5) / 240 * 12 - 6
    log_p = data.log_density(torch.cartesian_prod(middle, middle)).double()
    p = log_p.exp() * (12 / 240) ** 2
    assert p.sum().item() == pytest.approx(1, abs=1e-3)
    entropy = -torch.where(p > 0, p * log_p, 0.0).sum()
    sampled = data.log_density(data.sample(20_000))
    assert abs(-sampled.mean() - entropy) < 5 * sampled.std() / 20_000**0.5 + 1e-3


@pytest.mark.parametrize("name", ["8_gaussians", "2_spirals"])
def test_the_score_of_a_mixture_is_the_slope_of_its_log_density(name):
    data = m.toy_sets("cpu")[name]
    x = data.sample(200).requires_grad_(True)
    (slope,) = torch.autograd.grad(data.log_density(x).sum(), x)
    torch.testing.assert_close(data.score(x.detach()), slope, rtol=1e-3, atol=2e-3)


def test_score_on_grid_knows_the_kl_and_the_fisher_divergence_of_gaussians():
    class Gaussian:
        def log_density(self, x):
            return -x.square().sum(-1) / (2 * 0.64) - math.log(2 * math.pi * 0.64)

        def score(self, x):
            return -x / 0.64

    kl, fisher, log_z, density = m.score_on_grid(m.Networks(1, 2, 8, 1, 1.2), Gaussian(), 120)
    assert kl == pytest.approx(math.log(1.44 / 0.64) + 0.64 / 1.44 - 1, abs=1e-4)
    assert fisher == pytest.approx(0.5 * 2 * 0.64 * (1 / 0.64 - 1 / 1.44) ** 2, rel=1e-3)
    assert log_z == pytest.approx(math.log(2 * math.pi * 1.44), abs=1e-4)
    assert density.sum().item() * (12 / 120) ** 2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kernel", [m.mala_step, m.hmc_step])
def test_the_chain_kernels_leave_their_target_alone(kernel):
    """E = x⁴/4 in each coordinate: E x⁴ = 1 exactly, from starts that are already exact, at a coarse step."""

    def forces(x):
        return x.pow(4).sum(-1) / 4, x**3

    draws = (4 * torch.distributions.Gamma(0.25, 1.0).sample((1, 40_000, 2))) ** 0.25
    x = draws * torch.randn_like(draws).sign()
    for _ in range(15):
        x, energy, gradient, accepted = kernel(forces, x, *forces(x), 1.0)
    torch.testing.assert_close(energy, forces(x)[0])
    torch.testing.assert_close(gradient, forces(x)[1])
    assert 0.3 < accepted < 0.98
    assert x.pow(4).mean().item() == pytest.approx(1, abs=5 * math.sqrt(4 / 80_000))
    assert x.square().mean().item() == pytest.approx(2 * math.gamma(0.75) / math.gamma(0.25), abs=0.02)


def test_denoising_targets_are_the_mean_noise_of_the_batch(monkeypatch):
    """Each noisy point stays where it is; its clean point becomes E[x | noisy] over the batch, by a plain sum."""
    seen, batch = {}, torch.randn(1, 8, 2)

    def spy(energy, clean, noise, sigma):
        seen.update(clean=clean, noise=noise, sigma=sigma)
        return torch.ones(1, 16)

    monkeypatch.setattr(m, "denoising_matching", spy)
    monkeypatch.setattr(m, "by_autograd", lambda networks, loss: loss(None))
    for progress, falling in ((0.0, 2.0), (0.8, 0.05), (1.0, 0.05)):
        weight = m.blurred_gradient(None, batch, progress)
        sigma = seen["sigma"][0, :, 0]
        noisy = seen["clean"] + seen["sigma"] * seen["noise"]
        torch.testing.assert_close(noisy[:, :8] + noisy[:, 8:], 2 * batch)  # pairs at x + σn and x - σn
        odds = (-(noisy[0, :, None] - batch).square().sum(2) / (2 * sigma[:, None] ** 2)).exp()
        torch.testing.assert_close(seen["clean"][0], odds @ batch[0] / odds.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sigma[4:8], torch.full((4,), falling))
        assert ((sigma[:4] >= min(falling, 0.3)) & (sigma[:4] <= max(falling, 1.5))).all()
        expected = torch.where(sigma > falling, 0.15 * (falling / sigma) ** 2, 1.0)
        torch.testing.assert_close(weight[0], expected)


def test_a_large_batch_is_denoised_in_parts_of_a_thousand(monkeypatch):
    """All pairs' distances in a batch of 10,000 took minutes and gigabytes."""
    seen, batch = {}, torch.randn(1, 1100, 2)

    def spy(energy, clean, noise, sigma):
        seen.update(c=clean, n=noise, s=sigma)
        return torch.ones(1, 2200)

    monkeypatch.setattr(m, "denoising_matching", spy)
    monkeypatch.setattr(m, "by_autograd", lambda networks, loss: loss(None))
    m.blurred_gradient(None, batch, 0.0)
    noisy = seen["c"] + seen["s"] * seen["n"]
    torch.testing.assert_close(noisy[:, :1100] + noisy[:, 1100:], 2 * batch)
    for row, pool in ((1099, batch[0, 1000:]), (2199, batch[0, 1000:]), (999, batch[0, :1000]), (1100, batch[0, :1000])):
        odds = (-(noisy[0, row] - pool).square().sum(1) / (2 * seen["s"][0, row] ** 2)).softmax(0)
        torch.testing.assert_close(seen["c"][0, row], odds @ pool, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sigma", "floor"), [(0.05, 0.032), (0.1, 0.064)])
def test_what_blurring_alone_costs_on_the_squares(sigma, floor):
    """The floor in blurred_gradient's docstring: an axis is uniform on ±[0.75, 3.75]; blurred, a difference of Φ's."""
    x = (torch.arange(3000).double() + 0.5) / 1000 + 0.75
    edges = [torch.special.ndtr((x - edge) / sigma) for edge in (-3.75, -0.75, 0.75, 3.75)]
    blurred = (edges[0] - edges[1] + edges[2] - edges[3]) / 6
    assert -2 * (6 * blurred).log().mean().item() == pytest.approx(floor, abs=5e-4)


@pytest.mark.parametrize(("kernel", "factor"), [(m.mala_step, 1), (m.hmc_step, 2**2)])
def test_on_a_flat_energy_the_kernels_diffuse_by_their_step_size(kernel, factor):
    """MALA's noise has variance step_size at T = 1; HMC's two leapfrog steps of length √step_size go twice as far."""

    def flat(x):
        return torch.zeros(x.shape[:2]), torch.zeros_like(x)

    x = torch.zeros(1, 40_000, 2)
    moved, _, _, accepted = kernel(flat, x, *flat(x), 0.3)
    assert accepted == 1
    assert moved.var().item() == pytest.approx(0.3 * factor, rel=0.03)


def test_resampling_is_systematic():
    log_w = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    counts = torch.stack([m.resample(log_w).bincount(minlength=4) for _ in range(4000)]).float()
    assert (counts - 4 * log_w.exp()).abs().max() <= 1 + 1e-5
    torch.testing.assert_close(counts.mean(0), 4 * log_w.exp(), rtol=0, atol=0.04)


def test_weights_follow_a_moving_energy_without_any_move(monkeypatch):
    """Freeze the chains: their weighted mean must still be that of the model, log Z that of the grid."""
    config = m.Config(n_chains=4000, batch_size=200, width=16)
    still = lambda forces, x, energy, gradient, step_size: (x, energy, gradient, 1.0)  # noqa: E731
    still.__name__ = "still_step"
    monkeypatch.setattr(m, "resample", lambda log_w: torch.arange(len(log_w)))
    nets, data = m.Networks(1, 2, 16, 3, 3.0), m.toy_sets("cpu")["4_squares"]
    monkeypatch.setattr(m.Adam, "use_average", lambda self: None)
    x, log_w, log_z = m.train_by_chains(nets, data, config, 8, still, 1, 0.6, rate=5e-3)
    _, _, exact, density = m.score_on_grid(nets, data, 120)
    weights = (-nets.energy(x[None])[0] + x.square().sum(1) / 18).softmax(0)  # importance weights from the start
    torch.testing.assert_close(log_w.softmax(0), weights, rtol=5e-4, atol=1e-8)
    assert log_z == pytest.approx(exact, abs=0.1)


def test_resampled_chains_keep_their_energies_and_log_z(monkeypatch):
    """A short real training: at each move E and its slope are those of x; log Z and E|x|² are the model's on a grid."""
    calls, resample = [], m.resample
    monkeypatch.setattr(m, "resample", lambda log_w: calls.append(len(log_w)) or resample(log_w))
    monkeypatch.setattr(m.Adam, "use_average", lambda self: None)

    def checked_step(forces, x, energy, gradient, step_size):
        for kept, fresh in zip((energy, gradient), forces(x), strict=True):
            torch.testing.assert_close(kept, fresh, rtol=1e-3, atol=1e-3)
        return m.mala_step(forces, x, energy, gradient, step_size)

    nets, data = m.Networks(1, 2, 16, 3, 3.0), m.toy_sets("cpu")["4_squares"]
    config = m.Config(n_chains=2000, batch_size=200)
    x, log_w, log_z = m.train_by_chains(nets, data, config, 100, checked_step, 1, 0.6, rate=0.03)
    _, _, exact, density = m.score_on_grid(nets, data, 120)
    assert len(calls) >= 2
    assert log_z == pytest.approx(exact, abs=0.3)  # the few updates' own bias; a sign or a lost term is off by more
    model = m.draw(density, 20_000).square().sum(1).mean().item()
    assert (log_w.softmax(0) * x.square().sum(1)).sum().item() == pytest.approx(model, rel=0.1)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_chains_gradient_is_that_of_the_likelihood_with_weighted_chains(monkeypatch, weighted):
    """Two steps with frozen chains: the second gradient is E(data) - Σ share E(chains), share from the moving energy."""
    seen, batches, data = [], [], m.toy_sets("cpu")["4_squares"]
    nets, config, step = m.Networks(1, 2, 16, 3, 3.0), m.Config(n_chains=60, batch_size=20), m.Adam.step
    nets.weights[-1].normal_(0, 0.3)
    data.sample = lambda n, sample=data.sample: batches.append(sample(n)) or batches[-1]

    def spy(adam, gradients, rate):
        seen.append(([p.clone() for p in nets.parameters], gradients))
        step(adam, gradients, rate)

    still = lambda forces, x, energy, gradient, step_size: (x, energy, gradient, 1.0)  # noqa: E731
    still.__name__ = "still_step"
    monkeypatch.setattr(m.Adam, "step", spy)
    monkeypatch.setattr(m.Adam, "use_average", lambda self: None)
    start = [p.clone() for p in nets.parameters]  # log w counts from here
    chains, _, _ = m.train_by_chains(nets, data, config, 2, still, 1, 0.6, weighted, rate=0.1)

    def energy_at(parameters, x):
        for p, value in zip(nets.parameters, parameters, strict=True):
            p.copy_(value)
        return nets.energy(x)

    moved = energy_at(start, chains[None]) - energy_at(seen[1][0], chains[None])
    share = moved.softmax(1) if weighted else torch.full((1, 60), 1 / 60)
    expected = m.by_autograd(nets, lambda e: (e(batches[1][None]).mean(1) - (share * e(chains[None])).sum(1))[:, None])
    for one, other in zip(seen[1][1][:-1], expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_draws_follow_the_density_on_the_grid():
    density = torch.zeros(4, 4)
    density[0, 3], density[2, 1] = 0.75, 0.25
    x = m.draw(density, 4000)
    corner = (x[:, 0] < -3) & (x[:, 1] > 3)
    assert corner.float().mean().item() == pytest.approx(0.75, abs=0.04)
    rest = x[~corner]
    assert ((rest[:, 0] > 0) & (rest[:, 0] < 3) & (rest[:, 1] > -3) & (rest[:, 1] < 0)).all()


def test_mode_shares_add_up_and_know_elsewhere():
    x = torch.tensor([[0.1, 0.0], [4.0, 0.2], [9.0, 9.0], [0.0, -0.1]])
    shares = m.mode_shares(x, torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([[0.0, 0.0], [4.0, 0.0]]), 1.2)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.2, 0.3]))


# 5. to 7.


def test_annealed_langevin_samples_a_gaussian_at_temperature_one():
    """With E = x²/(2·2²) at all levels, unadjusted Langevin of step ε has variance s²/(1 - ε/(4 s²))."""
    nets = m.Networks(2, 2, 8, 1, 2.0)
    x = m.annealed_langevin(nets, 20_000, [3.0, 2.0], 60)
    exact = 4 / (1 - 0.2 * 4 / 16)
    torch.testing.assert_close(x.var(1)[:, 0], torch.full((2,), exact), rtol=0.05, atol=0)


def test_power_variances_against_gamma_functions():
    def moment(a, k):  # E|x|^k under exp(-|x|^a/a)
        return a ** (k / a) * math.gamma((k + 1) / a) / math.gamma(1 / a)

    for a in (1.7, 2.0, 4.0):
        psi = moment(a, 4 * a - 4) - 2 * (a - 1) * moment(a, 3 * a - 4) + (a - 1) ** 2 * moment(a, 2 * a - 4)
        likelihood, matching = m.power_variances(a)
        assert likelihood == a
        assert matching == pytest.approx(psi / moment(a, 2 * a - 2) ** 2, rel=1e-3)
    assert m.power_variances(2.0)[1] == pytest.approx(2, rel=1e-6)


def test_the_weight_of_far_modes_is_easy_for_likelihood_and_hopeless_for_score_matching():
    near, far = m.weight_variances(1.0, 0.3), m.weight_variances(4.0, 0.3)
    assert far[0] == pytest.approx(0.3 * 0.7, rel=1e-3)  # every label is visible: Bernoulli
    assert near[1] > near[0]
    assert far[1] / far[0] > 100 * near[1] / near[0]


def test_weight_variance_of_score_matching_is_what_replications_show():
    rng, w, mode, n = np.random.default_rng(0), 0.4, 1.2, 2000
    right = rng.random((200, n)) > w
    x = torch.from_numpy(np.where(right, mode, -mode) + rng.standard_normal((200, n)))

    def loss(weight):  # mean of ½ score² + score' by the module's own score and autograd
        y = x.clone().requires_grad_(True)
        shift = 0.5 * torch.log((1 - weight) / weight)
        score = -y + mode * torch.tanh(mode * y + shift)
        (change,) = torch.autograd.grad(score.sum(), y)
        return (0.5 * score.detach() ** 2 + change).mean(1)

    grid = torch.linspace(0.2, 0.6, 41).double()
    values = torch.stack([loss(t) for t in grid])
    i = values.argmin(0).clamp(1, 39)
    a, b, c = (values.gather(0, (i + k)[None])[0] for k in (-1, 0, 1))
    estimate = grid[i] + 0.01 * 0.5 * (a - c) / (a - 2 * b + c)
    assert n * estimate.var().item() == pytest.approx(m.weight_variances(mode, w)[1], rel=0.35)


def test_whitening_gives_the_density_of_the_original_units():
    x = np.random.default_rng(0).standard_normal((500, 3)) @ np.array([[2, 0, 0], [1, 30, 0], [0, 0, 0.1]])
    train, test, log_det = m.whiten(x, x[:7] * 1.1)
    assert abs(train.mean(0)).max() < 1e-10
    np.testing.assert_allclose(np.cov(train.T), np.eye(3), atol=0.05)
    linear = np.linalg.lstsq(np.c_[x, np.ones(500)], train, rcond=None)[0][:3]
    assert log_det == pytest.approx(np.linalg.slogdet(linear)[1])
    np.testing.assert_allclose((x[:1] * 1.1 - x[:1]) @ linear, test[:1] - train[:1], atol=1e-8)


def test_log_z_by_importance_of_a_gaussian():
    log_z, ess = m.log_z_by_importance(m.Networks(2, 5, 8, 1, 0.9), 20_000)
    torch.testing.assert_close(log_z, torch.full((2,), 2.5 * math.log(2 * math.pi * 0.81)), rtol=0, atol=0.03)
    # E w² / (E w)² of N(0, s²) drawn from N(0, r²): r²/(s √(2r² - s²)) in each dimension
    assert ess.mean().item() == pytest.approx((1.21 / (0.9 * math.sqrt(2 * 1.21 - 0.81))) ** -5, rel=0.05)
    assert m.gaussian_log_density(torch.tensor([[1.0, -2.0]]), 2.0).item() == pytest.approx(
        -5 / 8 - math.log(2 * math.pi * 4)
    )


def test_unadjusted_langevin_is_stable_below_a_step_of_four_variances_and_not_above():
    nets = m.Networks(1, 2, 8, 1, 1.0)  # E = x²/2, s = 1
    below, above = (m.annealed_langevin(nets, 500, [1.0], 200, step).square().mean() for step in (3.6, 4.4))
    assert below == pytest.approx(1 / (1 - 3.6 / 4), rel=0.3)
    assert above > 1e6


def test_nce_survives_odds_that_overflow_an_exponential():
    log_p, is_data = torch.tensor([[1e4, -1e4, 1e4, -1e4]]), torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(m.nce_gradient(log_p, torch.zeros(1, 4), is_data, 1), torch.tensor([[0.0, 0.5, -0.5, 0.0]]))


# Flags


@pytest.mark.parametrize(("section", "flag", "least"), [("nce", "n-samples", 50), ("trainers", "n-grid", 12)])
def test_too_few_are_refused_in_one_line(section, flag, least, tmp_path):
    with pytest.raises(SystemExit) as refusal:
        m.main(["--smoke", "--section", section, f"--{flag}", str(least - 1), "--out", str(tmp_path)])
    assert str(refusal.value).startswith(f"{section} needs --{flag} {least} at least")
    assert "\n" not in str(refusal.value)


def test_nce_without_a_minimum_ends_in_one_line(monkeypatch, tmp_path):
    def singular(*arguments):
        return torch.linalg.solve(torch.zeros(2, 2), torch.ones(2))

    monkeypatch.setattr(m, "nce_fit", singular)
    with pytest.raises(SystemExit, match="more --n-samples may cure it$"):
        m.main(["--smoke", "--section", "nce", "--out", str(tmp_path)])


@pytest.mark.parametrize(("section", "flag"), [("objectives", "n-repeats"), ("nce", "n-repeats"), ("blindness", "n-seeds")])
def test_one_repeat_claims_no_spread_and_matplotlib_gets_no_tensor(section, flag, tmp_path, monkeypatch):
    """A standard error of one repeat, and a tolerance beside it; tensors that only one version of NumPy converts."""
    monkeypatch.setattr(torch.Tensor, "__array__", lambda *_: pytest.fail("a tensor is handed to NumPy as it is"))
    m.main(["--smoke", "--section", section, f"--{flag}", "1", "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert len(metrics) > 4
    assert not [name for name, entry in metrics.items() if "sem" in entry]
    bounded = {name for name, entry in metrics.items() if "within" in entry}
    of_theory = {"variance_exponent_plain", "variance_exponent_reduced", "rms_error_noise_good"}  # need no repeats
    assert bounded <= {f"{section}/{name}" for name in (*of_theory, "kl_of_wrong_weight", "fisher_decay_rate")}


def test_mixtures_of_the_tables_find_the_clusters_that_one_gaussian_blurs():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 2)) * 0.3 + 2.0 * (rng.integers(2, size=(300, 1)) * 2 - 1)
    run = m.Run(m.Config(n_samples=200, n_table_steps=2), 0, "cpu", None, False)
    scores, _ = m.table_scores(run, [(z[:200], z[200:])])
    assert list(scores) == ["gaussian", "mixture_diag", "mixture_tied", "nce", "dsm"]
    exact = math.log(0.5) - 1 - math.log(2 * math.pi * 0.09)  # minus the entropy of two far round clusters
    for kind in ("diag", "tied"):
        assert scores[f"mixture_{kind}"][0].mean() == pytest.approx(exact, abs=0.3)
    assert scores["gaussian"][0].mean() < exact - 2


def test_columns_that_do_not_vary_are_left_out_by_whitening():
    """A division by zero: a measurement that is the same for every training row."""
    x = np.random.default_rng(0).standard_normal((60, 3))
    constant = np.full((60, 1), 0.1)  # its standard deviation is 1e-17, not 0
    found = m.whiten(np.hstack([x[:, :1], constant, x[:, 1:]])[:50], np.hstack([x[:, :1], 7 * constant, x[:, 1:]])[50:])
    for one, other in zip(found, m.whiten(x[:50], x[50:]), strict=True):
        np.testing.assert_allclose(one, other)


def test_columns_that_do_not_vary_in_a_training_fold_are_left_out_of_all_and_said(tmp_path, monkeypatch, capsys):
    wine, metrics = m.load_wine(), []
    more = np.hstack([wine.data, np.ones((178, 1)), np.arange(178)[:, None] == 3])  # constant, and but for one wine
    for table in (wine.data, more):
        wine.data = table
        monkeypatch.setattr(m, "load_wine", lambda: wine)
        m.main(["--smoke", "--section", "tabular", "--out", str(tmp_path)])
        metrics.append(json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"])
    assert capsys.readouterr().out.count("2 of 15 columns do not vary in every training fold, and are left out") == 1
    without, with_constants = ([entry["value"] for entry in each.values()] for each in metrics)
    assert with_constants == pytest.approx(without)


def test_a_training_that_diverges_says_which():
    nets = m.Networks(1, 2, 8, 1)
    with pytest.raises(SystemExit, match=r"^training \(two moons\) diverged"):
        m.train(nets, lambda nets, progress: [p * math.nan for p in nets.parameters], 2, 1e-3, "two moons")
    with pytest.raises(SystemExit, match="^annealed Langevin sampling diverged"):
        m.annealed_langevin(m.Networks(1, 2, 8, 1, 1.0), 5, [1.0], 100, 40.0)


def test_chains_that_diverge_say_so(monkeypatch):
    monkeypatch.setattr(m.Adam, "step", lambda self, gradients, rate: [p.fill_(math.inf) for p in self.parameters])
    with pytest.raises(SystemExit, match=r"^maximum likelihood by chains \(mala\) diverged"):
        m.train_by_chains(
            m.Networks(1, 2, 8, 1), m.toy_sets("cpu")["4_squares"], m.Config(**m.SMOKE), 2, m.mala_step, 1, 0.6
        )


def test_nce_that_runs_away_without_an_error_ends_in_the_same_line(monkeypatch, tmp_path):
    monkeypatch.setattr(m, "nce_fit", lambda *arguments: torch.full((4, 4), math.nan).double())
    with pytest.raises(SystemExit, match="more --n-samples may cure it$"):
        m.main(["--smoke", "--section", "nce", "--out", str(tmp_path)])


def test_float64_is_made_on_the_cpu_only():
    """Apple's GPUs have none; NumPy's arrays become float64 tensors where nothing else is said."""
    source = Path(m.__file__).read_text(encoding="utf-8")
    assert not re.findall(
        r'\.double\(\)\.(?:cpu|to)\(|float64[^#\n]*device=(?!"cpu")|device=(?!"cpu")[^#\n]*float64', source
    )
    assert not re.findall(r"(?:as_tensor|from_numpy)\([^#\n]*device=(?!\"cpu\")", source)
