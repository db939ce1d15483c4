"""Module 06: every sign, factor and temperature against closed forms, autograd, quadrature or enumeration."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
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


class Notes(m.Run):
    """A run that keeps what it is told, and writes nothing."""

    def __init__(self, **settings):
        super().__init__(m.Config(**(m.SMOKE | settings)), 0, "cpu", None, False)
        self.told, self.said = {}, []

    def metric(self, name, value, sem=None, against=None, within=None):
        assert len(name) <= 44, name
        self.told[name] = (float(value), sem, against and float(against[1]), within)

    def say(self, sentence):
        self.said.append(sentence)

    def figure(self, fig, name):
        fig.draw_without_rendering()
        m.plt.close(fig)


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
    covariance = m.theory_nce_covariance(features, p, p, 3, dx)
    assert covariance[0, 0].item() == pytest.approx((1 + 1 / 3) / 2, rel=1e-6)  # Var x² = 2
    assert m.theory_nce_covariance(features[:, 1:], p, p, 3, dx).item() == pytest.approx(
        0, abs=1e-9
    )  # nothing to tell apart


# 4. Networks and trainers


def networks(n=2, d=2, depth=3):
    nets = m.Networks(n, d, 16, depth, 3.0)
    for p in nets.parameters:
        p.normal_(0, 0.5)
    return nets


def test_a_fresh_network_is_the_normalised_gaussian_it_starts_from():
    x = torch.randn(2, 5, 3)
    exact = -torch.distributions.Normal(0.0, 1.5).log_prob(x).sum(-1)
    torch.testing.assert_close(m.Networks(2, 3, 16, 2, 1.5).energy(x), exact)
    torch.testing.assert_close(-m.gaussian_log_density(x, 1.5), exact)


def test_a_part_of_the_networks_is_a_copy_that_training_does_not_move():
    nets, x = networks(3), torch.randn(1, 5, 2)
    part, before = nets.part(slice(1, 2)), nets.energy(x.expand(3, -1, -1))[1:2]
    for p in nets.parameters:
        p.zero_()
    torch.testing.assert_close(part.energy(x), before)


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
        return m.nce_loss(energy, x, noise, lambda y: torch.full_like(y[..., 0], -1.3))[:, None]

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


@pytest.mark.parametrize("name", ["8 Gaussians", "2 spirals", "4 squares"])
def test_the_toy_densities_are_normalised_and_their_samples_fit(name):
    data = m.toy_sets("cpu")[name]
    middle = (torch.arange(240) + 0.5) / 240 * 12 - 6
    log_p = data.log_density(torch.cartesian_prod(middle, middle)).double()
    p = log_p.exp() * (12 / 240) ** 2
    assert p.sum().item() == pytest.approx(1, abs=1e-3)
    entropy = -torch.where(p > 0, p * log_p, 0.0).sum()
    sampled = data.log_density(data.sample(20_000))
    assert abs(-sampled.mean() - entropy) < 5 * sampled.std() / 20_000**0.5 + 1e-3


@pytest.mark.parametrize("name", ["8 Gaussians", "2 spirals"])
def test_the_score_of_a_mixture_is_the_slope_of_its_log_density(name):
    data = m.toy_sets("cpu")[name]
    x = data.sample(200).requires_grad_(True)
    (slope,) = torch.autograd.grad(data.log_density(x).sum(), x)
    torch.testing.assert_close(data.score(x.detach()), slope, rtol=1e-3, atol=2e-3)


def test_exact_scores_know_the_kl_and_the_fisher_divergence_of_gaussians():
    nets, sets = m.Networks(2, 2, 8, 1, 1.2), [m.Mixture(torch.zeros(1, 2), torch.tensor([[std]])) for std in (0.8, 0.7)]
    nets.biases[-1] += 0.7  # log Z = -0.7
    found = m.exact_scores(nets, sets, 120)
    for i, v in enumerate((0.64, 0.49)):
        assert found.gap[i].item() == pytest.approx(math.log(1.44 / v) + v / 1.44 - 1, abs=1e-4)
        assert found.fisher[i].item() == pytest.approx(0.5 * 2 * v * (1 / v - 1 / 1.44) ** 2, rel=1e-3)
        assert found.log_z[i].item() == pytest.approx(-0.7, abs=1e-4)
        assert found.density[i].sum().item() * (12 / 120) ** 2 == pytest.approx(1, abs=1e-4)
    points = m.gap_on_points(nets, sets, found.log_z, 40_000)
    assert ((points.mean(1) - found.gap).abs() < 5 * points.std(1) / 200).all()


@pytest.mark.parametrize("kernel", [m.mala_step, m.hmc_step])
def test_the_chain_kernels_leave_their_target_alone(kernel):
    """E = x⁴/4 in each coordinate: E x⁴ = 1 exactly, from starts that are already exact, at a coarse step."""

    def forces(x):
        return x.pow(4).sum(-1) / 4, x**3

    draws = (4 * torch.distributions.Gamma(0.25, 1.0).sample((1, 40_000, 2))) ** 0.25
    x = draws * torch.randn_like(draws).sign()
    for _ in range(15):
        x, energy, gradient, accepted = kernel(forces, x, *forces(x), torch.ones(1, 1))
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
    for progress, falling in ((0.0, 2.0), (0.4, math.sqrt(2.0 * 0.05)), (0.8, 0.05), (1.0, 0.05)):
        weight = m.falling_denoising_phases(None, batch, 0.05, progress)
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
    m.falling_denoising_phases(None, batch, 0.05, 0.0)
    noisy = seen["c"] + seen["s"] * seen["n"]
    torch.testing.assert_close(noisy[:, :1100] + noisy[:, 1100:], 2 * batch)
    for row, pool in ((1099, batch[0, 1000:]), (2199, batch[0, 1000:]), (999, batch[0, :1000]), (1100, batch[0, :1000])):
        odds = (-(noisy[0, row] - pool).square().sum(1) / (2 * seen["s"][0, row] ** 2)).softmax(0)
        torch.testing.assert_close(seen["c"][0, row], odds @ pool, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sigma", "floor"), [(0.05, 0.032), (0.1, 0.064)])
def test_what_blurring_alone_costs_on_the_squares(sigma, floor):
    """The floors that falling_denoising_phases names: an axis is uniform on ±[0.75, 3.75]; blurred, it is made of Φ's."""
    x = (torch.arange(3000).double() + 0.5) / 1000 + 0.75
    edges = [torch.special.ndtr((x - edge) / sigma) for edge in (-3.75, -0.75, 0.75, 3.75)]
    blurred = (edges[0] - edges[1] + edges[2] - edges[3]) / 6
    assert -2 * (6 * blurred).log().mean().item() == pytest.approx(floor, abs=5e-4)


@pytest.mark.parametrize(("kernel", "factor"), [(m.mala_step, 1), (m.hmc_step, 2**2)])
def test_on_a_flat_energy_the_kernels_diffuse_by_their_step_size(kernel, factor):
    """MALA's noise has variance step_size at T = 1; HMC's two leapfrog steps of length √step_size go twice as far."""

    def flat(x):
        return torch.zeros(x.shape[:2]), torch.zeros_like(x)

    x = torch.zeros(2, 40_000, 2)  # two energies, a step size each
    moved, _, _, accepted = kernel(flat, x, *flat(x), torch.tensor([[0.3], [1.2]]))
    assert (accepted == 1).all()
    torch.testing.assert_close(moved.var((1, 2)), factor * torch.tensor([0.3, 1.2]), rtol=0.03, atol=0)


def test_resampling_is_systematic():
    log_w = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    counts = torch.stack([m.resample(log_w).bincount(minlength=4) for _ in range(4000)]).float()
    assert (counts - 4 * log_w.exp()).abs().max() <= 1 + 1e-5
    torch.testing.assert_close(counts.mean(0), 4 * log_w.exp(), rtol=0, atol=0.04)


def squares(n):
    """sample(B) -> (n, B, 2): four squares for n networks."""
    return lambda b: m.sample_each([m.toy_sets("cpu")["4 squares"]] * n, b)


def still_step(forces, x, energy, gradient, step_size):
    return x, energy, gradient, torch.ones(len(x), 1)


def shift_step(forces, x, energy, gradient, step_size):
    return x + 0.5, *forces(x + 0.5), torch.ones(len(x), 1)


def test_weights_follow_a_moving_energy_without_any_move(monkeypatch):
    """Freeze the chains: their weights must be those of importance sampling from the start, log Z that of the grid."""
    monkeypatch.setattr(m, "resample", lambda log_w: torch.arange(len(log_w)))
    monkeypatch.setattr(m.Adam, "use_average", lambda self: None)
    nets = m.Networks(2, 2, 16, 3, 3.0)
    chains = m.train_by_chains(nets, squares(2), m.ByChains(still_step), 8, 4000, 200, 5e-3)
    exact = m.exact_scores(nets, [m.toy_sets("cpu")["4 squares"]] * 2, 120).log_z
    weights = (-nets.energy(chains.x) - m.gaussian_log_density(chains.x, 3.0)).softmax(1)
    torch.testing.assert_close(chains.share(), weights, rtol=5e-4, atol=1e-8)
    torch.testing.assert_close(chains.mean_log_z(), exact, rtol=0, atol=0.1)


def test_resampled_chains_keep_their_energies_and_log_z(monkeypatch):
    """A short real training: at each move E and its slope are those of x; log Z and E|x|² are the model's on a grid."""
    calls, resample = [], m.resample
    monkeypatch.setattr(m, "resample", lambda log_w: calls.append(len(log_w)) or resample(log_w))
    monkeypatch.setattr(m.Adam, "use_average", lambda self: None)

    def checked_step(forces, x, energy, gradient, step_size):
        for kept, fresh in zip((energy, gradient), forces(x), strict=True):
            torch.testing.assert_close(kept, fresh, rtol=1e-3, atol=1e-3)
        return m.mala_step(forces, x, energy, gradient, step_size)

    nets = m.Networks(2, 2, 16, 3, 3.0)
    chains = m.train_by_chains(nets, squares(2), m.ByChains(checked_step, 1), 100, 2000, 200, 0.03)
    found = m.exact_scores(nets, [m.toy_sets("cpu")["4 squares"]] * 2, 120)
    assert len(calls) >= 4
    torch.testing.assert_close(chains.mean_log_z(), found.log_z, rtol=0, atol=0.3)  # a lost term is off by more
    model = torch.stack([m.draw(density, 20_000).square().sum(1).mean() for density in found.density])
    torch.testing.assert_close((chains.share() * chains.x.square().sum(2)).sum(1), model, rtol=0.1, atol=0)
    assert 0.4 < chains.step_size.min() <= chains.step_size.max() <= 1


@pytest.mark.parametrize("move_first", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_chains_gradient_is_that_of_the_likelihood_with_weighted_chains(monkeypatch, weighted, move_first):
    """Two steps whose moves shift all chains: E(data) - Σ share E(chains) before the second move or after it, with shares
    from the energy that moved between the two steps, at the points of the first move."""
    seen, batches, step, sample = [], [], m.Adam.step, squares(1)
    nets = m.Networks(1, 2, 16, 3, 3.0)
    nets.weights[-1].normal_(0, 0.3)

    def spy(adam, gradients, rate):
        seen.append((nets.part(slice(None)), gradients))
        step(adam, gradients, rate)

    monkeypatch.setattr(m.Adam, "step", spy)
    monkeypatch.setattr(m.Adam, "use_average", lambda self: None)
    how = m.ByChains(shift_step, 1, weighted=weighted, move_first=move_first)
    chains = m.train_by_chains(nets, lambda b: batches.append(sample(b)) or batches[-1], how, 2, 60, 20, 0.1)
    once = chains.x - 0.5
    share = (seen[0][0].energy(once) - seen[1][0].energy(once)).softmax(1) if weighted else torch.full((1, 60), 1 / 60)
    x = once if move_first else chains.x
    expected = m.by_autograd(seen[1][0], lambda e: (e(batches[1]).mean(1) - (share * e(x)).sum(1))[:, None])
    for one, other in zip(seen[1][1][:-1], expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_few_onlookers_estimate_z_without_bias():
    """Five chains along a path of narrowing Gaussians, 4,000 times: E[mean w] = Z/Z_start, however unevenly they weigh."""
    first, path = m.Networks(4000, 2, 1, 1, 1.0), []
    for std in (1.0, 0.7, 0.45, 0.3):
        path.append(first.part(slice(None)))
        path[-1].std = std
    how = m.ByChains(n_moves=1)
    z = m.log_z_of_onlookers(path, 5, how, 0.02).exp()
    assert (z.mean() - 0.09).abs() < 5 * z.std() / 4000**0.5 < 0.02
    assert z.log().mean() < math.log(0.09) - 0.02  # Jensen


def test_the_onlookers_follow_the_first_ones_path_to_its_end(monkeypatch):
    paths = []
    monkeypatch.setattr(m, "log_z_of_onlookers", lambda path, *rest: paths.append((path, *rest)) or torch.zeros(2))
    config = m.Config(**(m.SMOKE | {"n_order_steps": 3}))
    found = m.compare_orders(config, 20, "cpu")
    ((path, n_chains, how, _),) = paths
    assert (len(path), n_chains, how.move_first) == (4, 20, True)
    x = torch.randn(2, 5, 2)
    torch.testing.assert_close(path[0].energy(x), -m.gaussian_log_density(x, 3.0))
    exact = m.exact_scores(path[-1], [m.toy_sets("cpu")["8 Gaussians"]] * 2, config.n_grid)
    torch.testing.assert_close(found.errors["onlookers"], -exact.log_z)
    torch.testing.assert_close(found.gaps["move first"], exact.gap)


def test_section_order_holds_the_onlookers_alone_against_the_identity(monkeypatch):
    errors = {"move first": torch.tensor([-0.3, -0.2, -0.4]), "update first": torch.tensor([-1.0, -0.8, -0.9])}
    errors["onlookers"] = torch.tensor([0.1, -0.1, 0.05])
    gaps = {name: torch.tensor([0.1, 0.2, 0.3]) for name in ("move first", "update first")}
    monkeypatch.setattr(m, "compare_orders", lambda config, n, device: m.Order(n, errors, gaps))
    run = Notes(n_chains=80, n_grid=240)
    m.section_order(run)
    mean, sem = m.mean_and_sem(errors["onlookers"].double().exp())
    assert run.told["onlookers, 10 chains: Z / exact"] == pytest.approx((mean, sem, 1, m.tolerance(sem, 3)))
    assert run.told["update first, 40 chains: log Z off"][0] == pytest.approx(-0.9)
    assert [name for name, told in run.told.items() if told[3] is not None] == [
        f"onlookers, {n} chains: Z / exact" for n in (10, 40)
    ]
    assert "-0.30 if they move first, -0.90 if not, +0.02 for onlookers" in run.said[0]


def test_draws_follow_the_density_on_the_grid():
    density = torch.zeros(4, 4)
    density[0, 3], density[2, 1] = 0.75, 0.25
    x = m.draw(density, 4000)
    corner = (x[:, 0] < -3) & (x[:, 1] > 3)
    assert corner.float().mean().item() == pytest.approx(0.75, abs=0.04)
    rest = x[~corner]
    assert ((rest[:, 0] > 0) & (rest[:, 0] < 3) & (rest[:, 1] > -3) & (rest[:, 1] < 0)).all()


def test_mode_shares_add_up_and_know_elsewhere():
    x = torch.tensor([[0.1, 0.0], [4.0, 0.2], [9.0, 9.0], [0.0, -0.1]]).expand(2, -1, -1)
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    shares = m.mode_shares(x, weights, torch.tensor([[0.0, 0.0], [4.0, 0.0]]), 1.2)
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.3, 0.2]]))


# 4c. and 4e. The comparisons


def test_the_plain_nce_loss_is_logistic_regression():
    x, noise = torch.randn(6, 2).double(), torch.randn(18, 2).double()
    log_odds = [-y.square().sum(1) + 1.3 - math.log(3) for y in (x, noise)]
    expected = -log_odds[0].sigmoid().log().mean() - 3 * (1 - log_odds[1].sigmoid()).log().mean()
    ours = m.nce_loss(lambda y: y.square().sum(-1), x, noise, lambda y: torch.full_like(y[..., 0], -1.3))
    torch.testing.assert_close(ours, expected)


def test_the_plain_likelihood_loss_has_the_gradient_of_the_two_phases_and_leaves_the_samples_alone():
    nets, x, chains = networks(), torch.randn(2, 5, 2), torch.randn(2, 8, 2, requires_grad=True)
    loss = m.likelihood_loss(nets.energy, x, chains)
    assert not loss.requires_grad
    a = torch.cat([torch.full((2, 5), 1 / 5), torch.full((2, 8), -1 / 8)], 1)
    by_hand = nets.weigh(nets.signals(torch.cat([x, chains.detach()], 1))[2], a)
    expected = m.by_autograd(nets, lambda energy: m.likelihood_loss(energy, x, chains)[:, None])
    for one, other in zip(by_hand[:-1], expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rivals_are_blurred_twice_and_share_the_first_blur():
    x = torch.zeros(1, 50_000, 1)
    others = m.rivals(x, 0.5, 2)[0, :, :, 0]
    torch.testing.assert_close(others.T.cov(), torch.tensor([[0.5, 0.25], [0.25, 0.5]]), rtol=0, atol=0.015)


@pytest.mark.parametrize("w", [1.0, 0.5])
def test_energy_discrepancy_is_its_formula_and_its_fast_gradient_autograds(w):
    nets, x, others = networks(), torch.randn(2, 6, 2), torch.randn(2, 6, 3, 2)
    e, e_others = nets.energy(x), torch.stack([nets.energy(others[:, :, j]) for j in range(3)], 2)
    expected = (w / 3 + (e[..., None] - e_others).exp().sum(2) / 3).log().mean(1)
    torch.testing.assert_close(m.discrepancy_loss(nets.energy, x, others, w), expected)
    by_autograd = m.by_autograd(nets, lambda energy: m.discrepancy_loss(energy, x, others, w)[:, None])
    for one, other in zip(m.rival_phases(nets, x, others, w)[:-1], by_autograd, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_energy_discrepancy_is_least_at_the_data():
    """E = λx²/2 on N(0, 0.7²): the loss is least at λ = 1/0.49, whatever the blur and the number of rivals.

    The mistake: w = 0, with which few rivals prefer too narrow a density.
    """
    x = 0.7 * torch.randn(100_000, 1).double()

    def slope_at(precision, n_rivals, sigma, w):
        k = torch.tensor(precision, dtype=torch.float64, requires_grad=True)
        loss = m.discrepancy_loss(lambda y: 0.5 * k * y[..., 0] ** 2, x, m.rivals(x, sigma, n_rivals), w)
        return torch.autograd.grad(loss.sum(), k)[0].item()

    for n_rivals, sigma in ((1, 0.4), (4, 0.4), (4, 1.5)):
        assert slope_at(0.97 / 0.49, n_rivals, sigma, 1.0) < 0 < slope_at(1.03 / 0.49, n_rivals, sigma, 1.0)
    assert slope_at(1.2 / 0.49, 4, 0.4, 1e-9) < 0


def log_q_of_a_flat_noise(y):
    return torch.full_like(y[..., 0], -3.0)


MEANS = torch.cat([torch.full((1, 20), 1 / 20), torch.full((1, 40), -1 / 40)], 1)
LOSSES = {  # objective: the plain loss of energy, data, other points and noise, and the fast gradient of it
    "NCE": (
        lambda energy, x, other, n: m.nce_loss(energy, x, other, log_q_of_a_flat_noise),
        lambda nets, x, other, n: m.noise_phases(nets, x, other, log_q_of_a_flat_noise),
    ),
    "energy discrepancy": (
        lambda energy, x, other, n: m.discrepancy_loss(energy, x, other.unflatten(1, (20, 2))),
        lambda nets, x, other, n: m.rival_phases(nets, x, other.unflatten(1, (20, 2))),
    ),
    "likelihood": (
        lambda energy, x, other, n: m.likelihood_loss(energy, x, other),
        lambda nets, x, other, n: nets.weigh(nets.signals(torch.cat([x, other], 1))[2], MEANS),
    ),
    "score matching": (
        lambda energy, x, other, n: m.implicit_matching(energy, x).mean(-1),
        lambda nets, x, other, n: m.by_autograd(nets, lambda energy: m.implicit_matching(energy, x)),
    ),
    "sliced": (
        lambda energy, x, other, n: m.sliced_matching(energy, x, n).mean(-1),
        lambda nets, x, other, n: m.by_autograd(nets, lambda energy: m.sliced_matching(energy, x, n)),
    ),
    "denoising": (
        lambda energy, x, other, n: m.denoising_matching(energy, x, n, 0.4).mean(-1),
        lambda nets, x, other, n: m.by_autograd(nets, lambda energy: m.denoising_matching(energy, x, n, 0.4)),
    ),
}


@pytest.mark.parametrize("objective", LOSSES)
def test_the_plain_loop_equals_the_fast_one(objective, monkeypatch):
    """The same network by plain_fit and torch's Adam, and by train, on the same points. The mistakes: a gradient by hand
    that is another loss's, a sum for a mean, a loop with another rate or memory."""
    monkeypatch.setattr(m.Adam, "use_average", lambda self: None)
    fast, (loss, gradient) = networks(1), LOSSES[objective]
    plain, batch = fast.part(slice(None)), (torch.randn(1, 20, 2), torch.randn(1, 40, 2), torch.randn(1, 20, 2))
    m.train(fast, lambda nets, progress: gradient(nets, *batch), 5, 0.01, "fast")
    parameters = [p.requires_grad_(True) for p in plain.parameters]
    m.plain_fit(parameters, lambda: loss(plain.energy, *batch).sum(), 5, 0.01)
    counts = len(parameters) if objective == "NCE" else -1  # the others do not see the energy's constant
    for one, other in zip(fast.parameters[:counts], parameters[:counts], strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-3, atol=1e-5)


def test_the_rate_falls_along_half_a_cosine():
    assert [m.annealed(2.0, t) for t in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.0, 0.0])
    assert m.annealed(1.0, 1 / 3) == pytest.approx(0.75)


def test_the_noises_have_the_densities_that_nce_is_told(monkeypatch):
    seen = []
    monkeypatch.setattr(m, "noise_phases", lambda nets, x, noise, log_q: seen.append((noise, log_q)))
    x = torch.zeros(2, 3000, 2)
    m.uniform_noise_phases(None, x, 4.0, 0.0)
    m.gaussian_noise_phases(None, x, 1.5, 0.0)
    (uniform, log_u), (gaussian, log_g) = seen
    assert uniform.shape == gaussian.shape == (2, 12_000, 2)
    assert uniform.abs().max() <= 4
    assert uniform.var() == pytest.approx(64 / 12, rel=0.03)
    torch.testing.assert_close(log_u(uniform), torch.full((2, 12_000), -math.log(64.0)))
    assert gaussian.std() == pytest.approx(1.5, rel=0.02)
    torch.testing.assert_close(log_g(gaussian), torch.distributions.Normal(0.0, 1.5).log_prob(gaussian).sum(-1))


def test_score_matching_sees_data_blurred_by_its_noise_and_denoising_the_clean_ones(monkeypatch):
    seen = {}
    monkeypatch.setattr(m, "by_autograd", lambda nets, loss: loss(None))
    monkeypatch.setattr(m, "implicit_matching", lambda energy, x: seen.update(implicit=x))
    monkeypatch.setattr(m, "sliced_matching", lambda energy, x, v: seen.update(sliced=x, v=v))
    monkeypatch.setattr(m, "denoising_matching", lambda energy, x, n, sigma: seen.update(clean=x, n=n, sigma=sigma))
    x = torch.ones(1, 20_000, 2)
    m.matching_phases(None, x, 0.3, 0.0)
    m.with_falling(m.sliced_phases)(None, x, 0.2, 0.4)  # half way, in logarithms, from 2 to 0.2
    m.denoising_phases(None, x, 0.4, 0.0)
    assert seen["implicit"].std() == pytest.approx(0.3, rel=0.03)
    assert seen["sliced"].std() == pytest.approx(math.sqrt(2 * 0.2), rel=0.03)
    torch.testing.assert_close(seen["v"].flatten().unsqueeze(0).cov(), torch.tensor(1.0), rtol=0.03, atol=0)
    assert seen["clean"] is x
    assert (seen["sigma"], seen["n"].std().item()) == pytest.approx((0.4, 1.0), rel=0.03)
    assert [m.falling(t, 0.1) for t in (0.0, 0.8, 1.0)] == pytest.approx([2.0, 0.1, 0.1])


def test_a_jittered_grid_has_one_point_in_each_cell():
    x = m.jittered_grid(5, "cpu")[0]
    torch.testing.assert_close(((x + 6) / 12 * 5).floor(), torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)))
    assert ((x + 6) / 12 * 5).frac().std() == pytest.approx(12**-0.5, rel=0.25)


def test_a_mixture_with_axes_is_that_of_torch():
    centres, std = torch.randn(3, 4), torch.rand(3, 4) + 0.3
    kit = torch.distributions
    exact = kit.MixtureSameFamily(kit.Categorical(torch.ones(3)), kit.Independent(kit.Normal(centres, std), 1))
    ours, x = m.Mixture(centres, std), torch.randn(6, 4, requires_grad=True)
    torch.testing.assert_close(ours.log_density(x), exact.log_prob(x), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(exact.log_prob(x).sum(), x)
    torch.testing.assert_close(ours.score(x).detach(), slope, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.sample(50_000).var(0), exact.variance, rtol=0.05, atol=0)


def test_clusters_have_variance_one_along_each_axis_and_twice_the_width():
    data = m.clusters(5, "cpu")
    x = data.sample(50_000)
    torch.testing.assert_close(x.mean(0), torch.zeros(5), rtol=0, atol=0.03)
    torch.testing.assert_close(x.var(0), torch.ones(5), rtol=0.03, atol=0)
    assert (data.std[2] / data.std[0]).tolist() == pytest.approx([2.0] * 5)
    assert (data.centres[0, 0] / data.std[0, 0]).item() == pytest.approx(6.0)


def test_away_knows_gaussians_in_any_dimension():
    """KL(N(0, 0.7²) || N(0, 1)) in three dimensions, a constant added to the energy; and the score's error, (1 - 0.49)²."""
    data, nets = m.Mixture(torch.zeros(1, 3), torch.tensor([[0.7]])), m.Networks(2, 3, 8, 1, 1.0)
    nets.biases[-1][0] += 0.5
    found = m.measure_away(nets, data, m.draws_for(data, 20_000))
    exact = 3 * (-math.log(0.7) + 0.49 / 2 - 0.5)
    assert found.gap.tolist() == pytest.approx([exact] * 2, abs=0.03)
    assert found.log_z.tolist() == pytest.approx([-0.5, 0.0], abs=0.02)
    assert found.score.tolist() == pytest.approx([0.51**2] * 2, rel=1e-3)
    assert (found.ess > 0.5).all()


def test_no_gap_is_given_where_log_z_rests_on_few_draws():
    def away(ess):
        return m.Away(*(torch.tensor([x, x + 0.1]).double() for x in (3.0, 0.2, 0.01, ess, 0.5)))

    found = {("one Gaussian", 2): (away(0.5), 0.0), ("NCE", 2): (away(0.099), 1.0), ("sliced", 2): (away(0.1), 1.0)}
    run = Notes(n_samples=500)
    m.record_dimensions(run, found)
    assert run.told["d = 2: one Gaussian, log Z"] == pytest.approx((0.2, 0.01, 0, m.tolerance(0.01, 1000)))
    assert "d = 2: NCE (nats)" not in run.told
    assert run.told["d = 2: NCE, draws"][0] == pytest.approx(0.099)
    assert run.told["d = 2: sliced (nats)"][0] == pytest.approx(3.05)
    assert run.told["d = 2: one Gaussian (nats)"][1] is None  # copies of one network have no spread
    assert run.told["d = 2: sliced, score"][0] == pytest.approx(0.55)


def test_only_gaps_below_one_gaussians_are_decided_upon():
    """The mistake: to crown a network that has learned nothing, because those that moved cannot be trusted."""

    def away(gap, ess):
        return m.Away(
            *(torch.tensor(pair).double() for pair in ((gap, gap + 0.02), (0, 0), (0.1, 0.1), (ess, ess), (0.5, 0.6)))
        )

    found = {(name, 128): (away(14.9, 0.5), 1.0) for name in ("one Gaussian", *m.WIDE)}
    found["NCE", 128] = away(3.0, 0.05), 1.0
    assert m.decided_in(found, 128).startswith("no gap that can be trusted is below one Gaussian's (one Gaussian 14.90)")
    assert m.decided_in(found, 128).endswith("; no nats for NCE")
    found["sliced", 128] = away(14.8, 0.5), 1.0  # within the errors of both log Z's
    assert m.decided_in(found, 128).startswith("no gap")
    found["sliced", 128] = away(14.0, 0.5), 1.0
    assert m.decided_in(found, 128).startswith("least gap 14.01 nats by sliced")


def test_reach_ends_where_a_trainer_first_keeps_more_than_half_the_error():
    """The score's error of one Gaussian is 0.8; NCE is good to d = 8, sliced in 2 and again in 32, the others nowhere."""
    errors = {"one Gaussian": [0.8] * 4, "NCE": [0.1, 0.3, 0.5, 0.7], "sliced": [0.2, 0.41, 0.1, 0.7]}
    found = {
        (name, d): (m.Away(*[None] * 4, torch.tensor([error, error])), 1.0)
        for name in ("one Gaussian", *m.WIDE)
        for d, error in zip(m.DIMENSIONS, errors.get(name, [0.6] * 4), strict=True)
    }
    others = ", ".join(name for name in m.WIDE if name not in errors)
    assert list(m.reach(found)) == ["up to d = 8 NCE", "up to d = 2 sliced", f"nowhere {others}"]


def test_the_exact_laplacian_pays_for_its_passes_in_steps():
    config = m.Config(n_wide_steps=1000)
    steps = {name: [m.wide_steps(trainer, d, config) for d in (2, 128)] for name, trainer in m.WIDE.items()}
    share = m.WIDE["score matching"].share
    assert steps.pop("score matching") == [int(1000 * share), int(1000 * share * 4 / 130)]
    assert all(few == many for few, many in steps.values())


def test_trainers_get_their_share_of_the_steps():
    config, trainer = m.Config(n_steps=100, n_chain_steps=1000), m.TRAINERS["NCE"]._replace(share=0.5)
    assert m.steps_of(trainer, config) == 50
    assert m.steps_of(trainer, config, 0.25) == 12
    assert m.steps_of(trainer._replace(chains=m.ByChains()), config) == 500


@pytest.mark.parametrize("n", [7, 100])
def test_scatter_of_independent_points_is_the_mean_over_the_binomial(n):
    p, k = np.array([0.5, 0.3, 0.2]), np.arange(n + 1)[:, None]
    mean = (np.abs(k / n - p) * scipy.stats.binom.pmf(k, n, p)).sum(0)
    assert m.exact_scatter(p, n) == pytest.approx(0.5 * mean.sum())


def test_the_time_of_watching_is_not_the_trainers(monkeypatch):
    """The mistake: seconds of a training that hold those of its pictures."""
    clock = [0.0]
    monkeypatch.setattr(m.time, "perf_counter", lambda: clock[0])

    class Slow(m.Watch):
        def look(self, step, networks, chains):
            clock[0] += 7

    data, watch = m.toy_sets("cpu")["8 Gaussians"], Slow(None, 1, 2)
    config = m.Config(**(m.SMOKE | {"n_chains": 20, "batch_size": 10}))
    nets = m.Networks(1, 2, 8, 1, 3.0)
    assert m.train_by("", m.TRAINERS["Langevin, weighted"], nets, [data], config, 5, watch) == 0
    assert watch.seconds == 21


def test_those_within_two_standard_errors_are_as_near_as_the_least():
    values = {"a": (0.3, 0.01), "b": (0.1, 0.03), "c": (0.15, 0.03), "d": (0.2, math.nan)}
    assert m.as_near(values) == ["b", "c"]


def test_a_watch_measures_how_far_the_chains_are_behind():
    """The network is still N(0, 9 I); the chains all sit on the first of the eight modes."""
    data, nets = m.toy_sets("cpu")["8 Gaussians"], m.Networks(2, 2, 8, 1, 3.0)
    chains = m.WeightedChains(nets, 50, m.ByChains())
    chains.x = data.centres[:1].expand(2, 50, 2)
    watch = m.Watch(data, 1, 2)
    for step in range(3):
        watch(step, nets, chains)
    near = ((3.0 * torch.randn(200_000, 2) - data.centres[0]).norm(dim=1) < 1.2).float().mean().item()
    assert watch.steps == [0, 2]
    assert watch.behind[0] == pytest.approx([1 - near], abs=0.01)
    assert watch.gap[0] == pytest.approx(m.exact_scores(nets, [data] * 2, 96).gap[0].item())
    assert np.shape(watch.scatter) == (2, 1)


def trained(gap, fisher=1.0):
    """A Trained whose two networks' gaps are `gap` ± 0.01 on each set."""
    gaps = {key: torch.tensor([gap - 0.01, gap + 0.01]) for key in m.toy_sets("cpu")}
    off = torch.tensor([[0.1, -0.1, 0.2, 0.0]]).double()
    return m.Trained(gaps, {key: torch.tensor([fisher, fisher]) for key in gaps}, {}, off, 3.0, None)


def test_the_trainers_table_and_verdict_say_what_the_gaps_decide():
    gaps = dict(zip(m.TRAINERS, (0.5, 0.04, 0.06, 0.1, 0.12, 0.8, 0.2, 0.6, 0.3, 0.9, 0.7), strict=True))
    found, run = {name: [trained(9.0), trained(gap)] for name, gap in gaps.items()}, Notes(n_grid=240)
    m.record_trainers(run, found)
    value, sem, reference, within = run.told["2 spirals: NCE (nats)"]
    assert (value, sem, reference) == pytest.approx((0.04, 0.01, 0.5), abs=1e-6)
    assert within is None
    mean, sem, zero, within = run.told["gap on fresh points less the grid's (nats)"]
    assert (mean, zero, within) == pytest.approx((0.05, 0, m.tolerance(sem, 4)))
    said = list(m.decided_by_gaps(found))
    assert "NCE, 0.040 nats; then energy discrepancy" in said[0]
    assert said[1].endswith("0.060, place 2")
    assert "denoising, falling, 0.20" in said[2]
    assert [sentence.split(" is ")[1].split(" times")[0] for sentence in said[3:]] == ["3.0", "3.0", "8.0"]


def test_the_chains_lag_is_held_against_independent_points():
    watch, run = m.Watch(None, 2, 1), Notes()
    watch.steps, watch.gap = [0, 1, 2, 3], [np.array([5.0, 5.0])] * 3 + [np.array([1.0, 3.0])]
    watch.behind = [np.array([9.0, 9.0])] * 2 + [np.array([0.1, 0.3]), np.array([0.3, 0.5])]
    watch.scatter = [np.array([9.0, 9.0])] * 2 + [np.array([0.1, 0.1])] * 2
    m.record_chains(run, {"Langevin, plain": watch, "Langevin, hasty": watch})
    assert run.told["Langevin, plain: shares off"][:3] == pytest.approx((0.3, 0.1, 0.1))
    assert run.told["Langevin, hasty: last gap (nats)"][:3] == pytest.approx((2.0, 1.0, 0))
    assert "0.30 behind the model at their own rate, 0.30 at" in run.said[0]
    assert "not measurably nearer to" in run.said[0]
    hasty = m.Watch(None, 2, 1)
    hasty.steps, hasty.gap, hasty.scatter = watch.steps, watch.gap, watch.scatter
    hasty.behind = [np.array([9.0, 9.0])] * 2 + [np.array([0.7, 0.9])] * 2
    again = Notes()
    m.record_chains(again, {"Langevin, plain": watch, "Langevin, hasty": hasty})
    assert "keeps them nearer to" in again.said[0]


def test_hasty_chains_are_plain_ones_at_the_rate_of_the_weighted(monkeypatch):
    seen = []
    monkeypatch.setattr(m, "train_by", lambda name, trainer, networks, sets, *rest: seen.append((trainer, sets)))
    m.watch_hasty_chains(m.Config(**m.SMOKE), "cpu")
    ((trainer, sets),) = seen
    assert not trainer.chains.weighted
    assert trainer.rate == m.TRAINERS["Langevin, weighted"].rate != m.TRAINERS["Langevin, plain"].rate
    assert [len(data.centres) for data in sets] == [8, 8]


def test_networks_side_by_side_are_scored_on_their_own_data(monkeypatch):
    seen = {}
    monkeypatch.setattr(m, "train_by", lambda name, trainer, networks, sets, *rest: seen.update(sets=sets) or 1.0)
    config = m.Config(**(m.SMOKE | {"n_trained": 2, "n_grid": 60}))
    found = m.train_and_score("NCE", config, 1.0, "cpu")
    assert [type(data).__name__ for data in seen["sets"]] == ["Mixture"] * 4 + ["Squares"] * 2
    start = m.Networks(1, 2, 8, 1, m.START_STD)
    for key, data in m.toy_sets("cpu").items():
        exact = m.exact_scores(start, [data], 60)
        torch.testing.assert_close(found.gap[key], exact.gap.expand(2))
        torch.testing.assert_close(found.fisher[key], exact.fisher.expand(2))
    assert found.off.shape == (6, 2000)
    assert found.typical == pytest.approx(math.exp(np.mean([g.mean().log().item() for g in found.gap.values()])))


# Sections: what they hold against what


def test_section_identity_and_its_references():
    lam = torch.linspace(-4, 4, 8001)
    for laplacian, least in ((-1.0, 2.0), (2.0, -4.0)):
        assert lam[m.theory_gaussian_loss(lam, 0.5, laplacian).argmin()].item() == pytest.approx(least, abs=1e-3)
    assert m.theory_edge(-2.0, 5.0) == 3.5
    found = m.compare_identities([0.1, 0.2])
    p = lambda t: math.exp(m.two_modes(torch.tensor(t).double(), 0.6, 1.2, 0.6)[0])  # noqa: E731
    score = lambda t: m.two_modes(torch.tensor(t).double(), 0.6, 1.2, 0.6)[1].item()  # noqa: E731
    slope = lambda t: 0.4 * t * (t**2 - 1.44) + 0.2  # noqa: E731
    explicit = scipy.integrate.quad(lambda t: p(t) * 0.5 * (score(t) + slope(t)) ** 2, -7, 7, limit=200)[0]
    assert found.explicit[0] == pytest.approx(explicit, rel=1e-6)
    run = Notes()
    m.section_identity(run)
    assert run.told["uniform: explicit - implicit"][2:] == (1.0, 1e-9)
    assert all(abs(value - reference) <= within for value, _, reference, within in run.told.values())


def test_section_objectives_holds_each_variance_against_its_own_theory(monkeypatch):
    ratios = {"plain": np.array([[0.9, 1.1], [1.0, 1.0]]).repeat(4, 0)[:7], "reduced": np.full((7, 2), 1.0)}
    price = m.Price(ratios, {k: np.array(m.DIMS) ** q for k, q in (("plain", 2), ("reduced", 1))}, {})
    price = price._replace(seconds={"exact": np.array(m.DIMS) ** 1.0, "sliced": np.ones(7)})
    monkeypatch.setattr(m, "measure_price", lambda *_: price)
    run = Notes(n_repeats=8, n_samples=400)
    m.section_objectives(run)
    exact = {"explicit": 0.64, "implicit": 0.64, "sliced, plain": 0.64, "sliced, reduced": 0.64}
    exact |= {"unit vectors by mistake": 4 * 0.64} | {f"denoising, noise {t:g}": 0.64 + t**2 for t in m.SIGMAS}
    for name, value in exact.items():
        measured, sem, reference, within = run.told[f"{name}: variance"]
        assert reference == pytest.approx(value)
        assert within == pytest.approx(m.tolerance(sem, 8) + 1e-9)
        assert abs(measured - value) < within
    assert run.told["exact: power of d in its seconds"][::2] == pytest.approx((1.0, 1))
    assert run.told["sliced, plain: variance's power of d"][0] == pytest.approx(2, abs=0.05)


def test_the_variance_of_slicing_is_exact():
    a, x = symmetric(3), torch.randn(2, 1, 3).double()
    for reduced in (True, False):
        values = m.sliced_matching(quadratic(a), x.expand(2, 100_000, 3), torch.randn(2, 100_000, 3).double(), reduced)
        exact = m.exact_slicing_variance(x @ a, a, reduced)
        torch.testing.assert_close(values.var(1), exact, rtol=0.05, atol=0)


def test_theory_of_nces_kl_is_half_a_nat_a_parameter_for_an_efficient_estimator():
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    features, p = torch.stack([x, x**2], 1), (-(x**2) / 2).exp() / math.sqrt(2 * math.pi)
    inverse = torch.diag(torch.tensor([1.0, 0.5]).double())  # var x = 1, var x² = 2
    assert m.theory_kl(features, p, inverse / 100, x[1] - x[0]) == pytest.approx(0.5 * 2 / 100, rel=1e-6)


def test_the_tolerance_of_a_root_mean_square_is_rarely_left_and_no_wider_than_it_must_be():
    rms = torch.randn(100_000, 20).square().mean(1).sqrt()
    assert ((rms - 1).abs() > m.rms_tolerance(1.0, 20)).float().mean() < 4e-4
    assert m.rms_tolerance(2.0, 20) == pytest.approx(2 * (math.sqrt(scipy.stats.chi2.ppf(1 - 0.5e-4, 20) / 20) - 1))


def test_section_nce_holds_the_constant_against_log_z_and_its_error_against_theory():
    run = Notes(n_repeats=12, n_samples=1000)
    m.section_nce(run)
    for name in ("noise 1.5 times as wide: c - log Z", "noise 1.5 times: RMS error of c"):
        value, _, reference, within = run.told[name]
        assert abs(value - reference) <= within
    assert run.told["noise 1.5 times as wide: c - log Z"][3] == pytest.approx(
        m.tolerance(run.told["noise 1.5 times as wide: c - log Z"][1], 12)
    )
    kl = run.told["noise 1.5: KL to the data (nats)"]
    assert kl[0] == pytest.approx(kl[2], rel=0.6)
    importance = run.told["noise 1.5: importance sampling's RMS"]
    assert importance[0] == pytest.approx(importance[2], rel=0.6)
    assert m.exact_log_z_on_axis(torch.tensor([0.0, 0.5, 0.0]).double()).item() == pytest.approx(0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("mode", [0.8, 1.6])
def test_the_price_of_a_wrong_weight_is_that_of_quadrature(mode):
    def integrand(t, kind):
        (a, s_a), (b, s_b) = (m.two_modes(torch.tensor(t).double(), w, mode, 0.5) for w in (0.7, 0.4))
        return (a.exp() * ((a - b) if kind == "kl" else 0.5 * (s_a - s_b) ** 2)).item()

    exact = [scipy.integrate.quad(integrand, -6, 6, args=(kind,), limit=200)[0] for kind in ("kl", "fisher")]
    assert m.exact_price(mode, 0.5, 0.7, 0.4) == pytest.approx(exact, rel=1e-6)


def test_the_price_of_a_wrong_weight_is_eq_8_at_any_distance_and_its_kl_that_of_the_weights_at_a_large_one():
    for mode in (0.3, 1.0, 4.0):
        assert m.theory_fisher_of_weights(mode, 0.5, 0.7, 0.4) == pytest.approx(
            m.exact_price(mode, 0.5, 0.7, 0.4)[1], rel=1e-9
        )
    assert m.exact_price(4.0, 0.5, 0.7, 0.4)[0] == pytest.approx(m.theory_kl_of_weights(0.7, 0.4))


def test_section_blindness_shows_weights_beside_the_truth(monkeypatch):
    learned = {name: torch.tensor([0.7, 0.5 + 0.1 * i]) for i, name in enumerate(m.SEEING)}
    axis = torch.linspace(-8, 8, 101)
    monkeypatch.setattr(m, "weights_learned", lambda *_: (learned, {name: torch.ones(2, 101) for name in m.SEEING}, axis))
    run = Notes()
    m.section_blindness(run)
    assert run.told["NCE: weight"][::2] == pytest.approx((0.65, 0.8))
    assert run.told["likelihood: weight, RMS error"][0] == pytest.approx(math.sqrt((0.01 + 0.09) / 2))
    checked = [told for told in run.told.values() if told[3] is not None]
    assert len(checked) == 2
    assert all(abs(value - reference) <= within for value, _, reference, within in checked)


def test_score_matching_and_likelihood_of_a_power_are_their_formulas_and_one_at_two():
    x = torch.rand(3, 50).double() + 0.2
    likelihood, matching = m.fit_power(x, 2.0)
    torch.testing.assert_close(likelihood, matching)
    likelihood, matching = m.fit_power(x, 4.0)
    torch.testing.assert_close(likelihood, 50 / (x**4).sum(1))
    torch.testing.assert_close(matching, 3 * (x**2).sum(1) / (x**6).sum(1))
    ratio, sem = m.variance_ratio(2 * torch.randn(40_000).double(), torch.randn(40_000).double())
    assert ratio == pytest.approx(4, rel=0.05)
    assert sem == pytest.approx(4 * math.sqrt(4 / 40_000), rel=0.05)


def test_section_efficiency_holds_every_shape_against_the_sandwich():
    run = Notes(n_repeats=5)
    m.section_efficiency(run)
    for a in m.SHAPES:
        value, sem, theory, within = run.told[f"power {a:g}: efficiency"]
        likelihood, matching = m.theory_power_variances(a)
        assert theory == pytest.approx(likelihood / matching)
        assert abs(value - theory) <= within
        assert within == (pytest.approx(m.tolerance(sem, 200) + 0.02) if a != 2 else 1e-5)


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
        likelihood, matching = m.theory_power_variances(a)
        assert likelihood == a
        assert matching == pytest.approx(psi / moment(a, 2 * a - 2) ** 2, rel=1e-3)
    assert m.theory_power_variances(2.0)[1] == pytest.approx(2, rel=1e-6)


def test_the_weight_of_far_modes_is_easy_for_likelihood_and_hopeless_for_score_matching():
    near, far = m.theory_weight_variances(1.0, 0.3), m.theory_weight_variances(4.0, 0.3)
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
    assert n * estimate.var().item() == pytest.approx(m.theory_weight_variances(mode, w)[1], rel=0.35)


def test_whitening_gives_the_density_of_the_original_units():
    x = np.random.default_rng(0).standard_normal((500, 3)) @ np.array([[2, 0, 0], [1, 30, 0], [0, 0, 0.1]])
    train, test, log_det = m.whiten(x, x[:7] * 1.1)
    assert abs(train.mean(0)).max() < 1e-10
    np.testing.assert_allclose(np.cov(train.T), np.eye(3), atol=0.05)
    linear = np.linalg.lstsq(np.c_[x, np.ones(500)], train, rcond=None)[0][:3]
    assert log_det == pytest.approx(np.linalg.slogdet(linear)[1])
    np.testing.assert_allclose((x[:1] * 1.1 - x[:1]) @ linear, test[:1] - train[:1], atol=1e-8)


def test_log_z_by_importance_of_a_gaussian():
    nets = m.Networks(2, 5, 8, 1, 0.9)
    nets.biases[-1] -= 0.4
    log_z, ess = m.log_z_by_importance(nets, 20_000)
    torch.testing.assert_close(log_z, torch.full((2,), 0.4), rtol=0, atol=0.03)
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


@pytest.mark.parametrize(
    ("section", "flag"), [("objectives", "n-repeats"), ("nce", "n-repeats"), ("blindness", "n-seeds"), ("order", "n-seeds")]
)
def test_one_repeat_claims_no_spread_and_matplotlib_gets_no_tensor(section, flag, tmp_path, monkeypatch):
    """A standard error of one repeat, and a tolerance beside it; tensors that only one version of NumPy converts."""
    monkeypatch.setattr(torch.Tensor, "__array__", lambda *_: pytest.fail("a tensor is handed to NumPy as it is"))
    m.main(["--smoke", "--section", section, f"--{flag}", "1", "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert len(metrics) > 4
    of_points = ("sliced, plain: variance / 2|B|^2", "sliced, reduced: variance / 2|B|^2")  # their repeats are others
    assert not [name for name, entry in metrics.items() if "sem" in entry and not name.endswith(of_points)]
    bounded = {name.split("/", 1)[1] for name, entry in metrics.items() if "within" in entry}
    assert bounded <= {*of_points, "16 std apart: KL of a wrong weight (nats)", "16 std apart: Fisher / eq. (8)"}


def test_mixtures_of_the_tables_find_the_clusters_that_one_gaussian_blurs():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 2)) * 0.3 + 2.0 * (rng.integers(2, size=(300, 1)) * 2 - 1)
    scores, _ = m.table_scores(Notes(n_table_steps=2), [(z[:200], z[200:])])
    assert list(scores) == ["Gaussian", "mixture, diagonal", "mixture, shared", "NCE", "denoising"]
    exact = math.log(0.5) - 1 - math.log(2 * math.pi * 0.09)  # minus the entropy of two far round clusters
    for kind in ("diagonal", "shared"):
        assert scores[f"mixture, {kind}"][0].mean() == pytest.approx(exact, abs=0.3)
    assert scores["Gaussian"][0].mean() < exact - 2


def test_columns_that_do_not_vary_are_left_out_by_whitening():
    """A division by zero: a measurement that is the same for every training row."""
    x = np.random.default_rng(0).standard_normal((60, 3))
    constant = np.full((60, 1), 0.1)  # its standard deviation is 1e-17, not 0
    found = m.whiten(np.hstack([x[:, :1], constant, x[:, 1:]])[:50], np.hstack([x[:, :1], 7 * constant, x[:, 1:]])[50:])
    for one, other in zip(found, m.whiten(x[:50], x[50:]), strict=True):
        np.testing.assert_allclose(one, other)


def test_columns_that_do_not_vary_in_a_training_fold_are_left_out_of_all_and_said(monkeypatch):
    wine, run, found = m.load_wine(), Notes(), []
    more = np.hstack([wine.data, np.ones((178, 1)), np.arange(178)[:, None] == 3])  # constant, and but for one wine
    for table in (wine.data, more):
        wine.data = table
        monkeypatch.setattr(m, "load_wine", lambda: wine)
        monkeypatch.setattr(m, "table_scores", lambda run, folds: ({"x": [test[:, 0] for _, test in folds]}, {}))
        found.append(m.wine_nats(run)[0]["x"])
    assert run.said == ["wine: 2 of 15 columns do not vary in every training fold, and are left out"]
    np.testing.assert_allclose(*found)


def test_wine_is_scored_in_its_own_units_and_energies_by_their_log_z(monkeypatch):
    scores, log_z = (
        {"Gaussian": [np.zeros(3)] * 5, "NCE": [np.ones(3)] * 5},
        {"NCE": (torch.arange(5.0), torch.rand(5) + 0.2)},
    )
    monkeypatch.setattr(m, "table_scores", lambda run, folds: (scores, log_z))
    nats, ess = m.wine_nats(Notes())
    np.testing.assert_allclose(nats["NCE"], nats["Gaussian"] + 1 - np.arange(5))
    wine = m.load_wine().data
    log_det = [m.whiten(wine[a], wine[b])[2] for a, b in m.KFold(5, shuffle=True, random_state=0).split(wine)]
    np.testing.assert_allclose(nats["Gaussian"], log_det)
    assert ess["NCE"] == pytest.approx(log_z["NCE"][1].min().item())


def test_malignant_tumours_are_the_unlikely_ones(monkeypatch):
    def scores(run, folds):
        assert all(len(test) - 212 + len(train) == 357 for train, test in folds)  # 357 benign, 212 malignant
        return {"x": [np.r_[np.ones(len(test) - 212), np.zeros(212)] for _, test in folds]}, {}

    monkeypatch.setattr(m, "table_scores", scores)
    np.testing.assert_allclose(m.cancer_auroc(Notes())["x"], 1.0)


def test_a_training_that_diverges_says_which():
    nets = m.Networks(1, 2, 8, 1)
    with pytest.raises(SystemExit, match=r"^training \(two moons\) diverged"):
        m.train(nets, lambda nets, progress: [p * math.nan for p in nets.parameters], 2, 1e-3, "two moons")
    with pytest.raises(SystemExit, match="^annealed Langevin sampling diverged"):
        m.annealed_langevin(m.Networks(1, 2, 8, 1, 1.0), 5, [1.0], 100, 40.0)


def test_chains_that_diverge_say_so(monkeypatch):
    monkeypatch.setattr(m.Adam, "step", lambda self, gradients, rate: [p.fill_(math.inf) for p in self.parameters])
    with pytest.raises(SystemExit, match=r"^maximum likelihood by chains \(mala\) diverged"):
        m.train_by_chains(m.Networks(1, 2, 8, 1), squares(1), m.ByChains(), 2, 20, 20, 1e-3)


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
