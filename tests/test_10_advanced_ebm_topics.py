"""Module 10: scores, flows, rungs and tilts against closed forms, quadrature, differences and autograd."""

import math
from dataclasses import replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from conftest import load

m = load("10")


def tiny(**changes):
    return replace(m.Config(), **(m.SMOKE | changes))


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
        assert len(name) <= 44
        self.metrics[name] = Entry(float(value), sem, against, within)

    def say(self, sentence):
        self.said.append(sentence)

    def figure(self, fig, name):
        self.titles[name] = [ax.get_title() for ax in fig.axes]
        plt.close(fig)


def noted(section, folder, **changes):
    torch.manual_seed(0)
    run = Notes(folder, **changes)
    m.SECTIONS[section](run)
    return run


def random_mixture(k=3, d=2):
    """Gaussians drawn fresh."""
    a = torch.randn(k, d, d, dtype=torch.float64)
    weights = torch.rand(k, dtype=torch.float64) + 0.2
    return m.Gaussians(weights / weights.sum(), torch.randn(k, d, dtype=torch.float64), a @ a.mT / d + 0.3 * torch.eye(d))


def rough(net, std=0.5):
    """The same network with all its weights random, float64."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=std)
    return net.double()


def noisy_net(is_energy=True, d=3, width=5, n_labels=2):
    net = rough(m.NoisyEnergy(torch.randn(d), 0.7, width, n_labels, is_energy=is_energy))
    n = 4
    sigma = 0.1 + 2 * torch.rand(n, 1, dtype=torch.float64)
    return net, torch.randn(n, d, dtype=torch.float64), sigma, torch.randint(n_labels, (n,))


# 0. What all sections use


def test_samples_are_scored_beside_test_images_and_lost_ones_end_the_run(tmp_path):
    """The mistake: a distance to the training images, or samples at infinity that clipping makes look like images."""
    run = Notes(tmp_path)
    x = m.images(run).x[:200]
    scores, test = m.score_images(run, x), m.score_images(run, m.images(run).x_test)
    assert test.frechet == pytest.approx(0, abs=1e-4)
    assert scores.frechet > 0.01
    assert scores.nearest == pytest.approx(0, abs=1e-6)
    assert test.nearest > 1.5
    with pytest.raises(SystemExit):
        m.score_images(run, x * 1e5)


# 1. Diffusion


def test_score_and_laplacian_of_a_mixture_are_its_derivatives():
    mixture, x = random_mixture(), torch.randn(6, 2, dtype=torch.float64)
    score, laplacian = m.mixture_slopes(mixture, x)
    for i in range(6):
        hessian = torch.autograd.functional.hessian(lambda z: m.mixture_log_density(mixture, z[None])[0], x[i])
        slope = torch.autograd.functional.jacobian(lambda z: m.mixture_log_density(mixture, z[None])[0], x[i])
        assert torch.allclose(score[i], slope)
        assert laplacian[i].item() == pytest.approx(hessian.trace().item())
    assert torch.equal(m.mixture_score(mixture, x), score)


def test_the_denoiser_is_the_mean_of_the_clean_point_by_quadrature():
    p, s = scipy.stats.norm(0.3, 0.8), 0.6
    for y in (-1.0, 0.4, 2.0):
        x = np.linspace(-6, 6, 4001)
        weight = p.pdf(x) * np.exp(-((y - x) ** 2) / (2 * s**2))
        guess = m.denoise(torch.tensor([[y]], dtype=torch.float64), lambda z: -(z - 0.3) / (0.64 + s**2), s)
        assert guess.item() == pytest.approx((weight * x).sum() / weight.sum(), abs=1e-9)


def test_levels_fall_from_high_to_low_and_end_at_zero_as_the_paper_spaces_them():
    levels = m.noise_levels(5, 0.1, 3.0)
    assert levels[0] == pytest.approx(3.0)
    assert levels[4] == pytest.approx(0.1)
    assert levels[5] == 0
    assert levels[2] == pytest.approx(((3.0 ** (1 / 7) + 0.1 ** (1 / 7)) / 2) ** 7)


@pytest.mark.parametrize("name", list(m.SAMPLERS))
def test_each_sampler_has_the_variance_that_theory_follows_and_the_right_limit(name):
    """The mistake: a noise without its root, a step without its half, an evaluation that is not counted."""
    s, low, high, n, asked = 0.6, 0.01, 4.0, 21, []

    def score(x, sigma):
        asked.append(sigma)
        return -x / (s**2 + sigma**2)

    x = (s**2 + high**2) ** 0.5 * torch.randn(20, 4000, dtype=torch.float64)
    mean, sem = m.mean_and_sem(m.SAMPLERS[name](score, x, low, high, n).var(1))
    assert abs(mean - m.theory_sampled_variance(name, s, low, high, n)) < m.tolerance(sem, 20)
    assert len(asked) == n
    if name != "annealed Langevin":
        assert m.theory_sampled_variance(name, s, low, high, 2001) == pytest.approx(s**2, rel=0.01)
    else:  # its stationary variance at the last level, ULA's v/(1 - step/(4 v)), then the mean
        v, step = s**2 + low**2, m.STRIDE * low**2
        assert m.theory_sampled_variance(name, s, low, high, 40_001) == pytest.approx(
            s**4 / v / (1 - step / (4 * v)), rel=0.1
        )


def test_the_flow_has_its_half_and_without_it_ends_at_s4_over_u():
    s, high, fine = 0.7, 3.0, m.noise_levels(800, 1e-3, 3.0)
    x = torch.ones(1, 1, dtype=torch.float64) * (s**2 + high**2) ** 0.5
    for factor, variance in ((1, s**2), (2, s**4 / (s**2 + high**2))):
        end = m.heun_flow(lambda x, t, f=factor: f * m.flow_velocity(lambda x, t: -x / (s**2 + t**2), x, t), x, fine)
        assert end.square().item() == pytest.approx(variance, rel=2e-3)
        assert m.theory_flow_variance(s, high, factor) == pytest.approx(variance)


def test_the_flows_density_is_the_mixtures():
    mixture, x = random_mixture(), torch.randn(50, 2, dtype=torch.float64)
    levels = m.noise_levels(80, 0.05, 30.0)[-2::-1]
    wide = m.blurred(mixture, 30.0)
    found = m.flow_log_density(
        lambda z, s: m.mixture_slopes(m.blurred(mixture, s), z), x, levels, lambda z: m.mixture_log_density(wide, z)
    )
    assert torch.allclose(found, m.mixture_log_density(m.blurred(mixture, 0.05), x), atol=0.01)


@pytest.mark.parametrize("is_energy", [True, False])
def test_score_and_divergence_of_the_network_are_derivatives_and_the_energy_has_no_curl(is_energy):
    net, x, sigma, c = noisy_net(is_energy)
    x.requires_grad_(True)
    score, divergence = net.slopes(x, sigma, c)
    if is_energy:
        (slope,) = torch.autograd.grad(net(x, sigma, c).sum(), x)
        assert torch.allclose(net.score(x, sigma, c), -slope)
    assert torch.allclose(net.score(x, sigma, c), score)
    jacobian = torch.autograd.functional.jacobian(lambda z: net.slopes(z, sigma, c)[0].sum(0), x.detach()).movedim(1, 0)
    assert torch.allclose(jacobian.diagonal(dim1=1, dim2=2).sum(1), divergence)
    curl = m.antisymmetry(lambda z: net.score(z, sigma, c).detach(), x.detach())
    exact = (jacobian - jacobian.mT).flatten(1).norm(dim=1) / (2 * jacobian.flatten(1).norm(dim=1))
    assert curl == pytest.approx(exact.mean().item(), abs=1e-6)
    assert (curl < 1e-6) == is_energy


def test_the_gradient_written_by_hand_is_autograds():
    """The mistake: a factor or a path through h that the hand forgot."""
    net, x, sigma, c = noisy_net()
    noise, w = torch.randn_like(x), (net.sd**2 + sigma**2) ** 0.5
    by_hand = torch.autograd.grad(m.denoising_loss(net, x, sigma, noise, c), list(net.parameters()))
    y = (x + sigma * noise).requires_grad_(True)
    (slope,) = torch.autograd.grad(net(y, sigma, c).sum(), y, create_graph=True)
    guess = y - sigma**2 * slope
    plain = (w**2 / (sigma * net.sd) ** 2 * (guess - x) ** 2).mean()  # Karras et al.'s weights
    assert m.denoising_loss(net, x, sigma, noise, c).item() == pytest.approx(plain.item())
    for ours, theirs in zip(by_hand, torch.autograd.grad(plain, list(net.parameters())), strict=True):
        assert torch.allclose(ours, theirs)


def test_a_fresh_network_is_the_gaussian_of_every_level():
    net, sigma = m.NoisyEnergy(torch.ones(3), 0.7, 5), torch.full((2, 1), 0.4)
    x = torch.randn(2, 3)
    assert torch.allclose(net.score(x, sigma, torch.zeros(2, dtype=torch.int64)), -(x - 1) / (0.49 + 0.16), atol=1e-6)


def test_no_constant_of_a_level_or_a_cluster_reaches_the_loss():
    """Energies of different levels do not compare: b2's part of E that does not depend on x is free."""
    net, x, sigma, c = noisy_net()
    shifted = lambda *args: net(*args) + 7 * args[1][:, 0] + args[2]  # noqa: E731
    z = x.clone().requires_grad_(True)
    slopes = [torch.autograd.grad(e(z, sigma, c).sum(), z)[0] for e in (net, shifted)]
    assert torch.allclose(*slopes)


def test_training_a_denoiser_learns_the_score_of_a_gaussian_mixture():
    torch.manual_seed(0)
    config = tiny(batch_size=256, learning_rate=1e-2)
    net = m.NoisyEnergy(torch.zeros(1), 1.0, 32, 2)

    def draw(n):
        c = torch.randint(2, (n,))
        return (2.0 * c[:, None] - 1) * 0.9 + 0.2 * torch.randn(n, 1), c

    net = m.train_denoiser(net, draw, config, 300, "test").double()
    x, c, sigma = torch.linspace(-1, 1, 11).double()[:, None], torch.ones(11, dtype=torch.int64), torch.full((11, 1), 0.6)
    exact = -(x - 0.9) / (0.04 + 0.36)
    assert (net.score(x, sigma.double(), c) - exact).square().mean().sqrt() < 0.25


def test_bits_of_a_uniform_over_the_cells_are_log2_of_the_levels():
    """The mistake: the offset of log2 8 = 3 bits left out, or nats for bits."""
    log_p = torch.full((2,), -64 * math.log(17 / 8), dtype=torch.float64)  # even over 17 cells, each 1/8 wide
    assert m.bits_per_dimension(log_p)[0].item() == pytest.approx(math.log2(17))
    x = m.in_cells(torch.zeros(5000, 4, dtype=torch.float64))
    assert x.abs().max() <= 1 / 16
    assert x.std().item() == pytest.approx(1 / 8 / 12**0.5, rel=0.03)


def test_the_flow_of_digits_is_a_share_of_the_sum_over_clusters(tmp_path):
    run = Notes(tmp_path)
    x = m.images(run).x_test[:5]
    one, four = (m.flow_of_digits(run, x, n_nearest=n, n_steps=10) for n in (1, 4))
    assert (four >= one).all()
    net, (_, c) = m.digit_networks(run)["energy"], m.clusters_of_digits(run)
    assert len(net.by_label) == 4
    assert (one < 0).all() or one.isfinite().all()
    shares = torch.bincount(c) / len(c)
    assert shares.sum().item() == pytest.approx(1)


def test_section_diffusion_holds_every_exact_claim_and_names_the_best_by_the_numbers(tmp_path):
    run = noted("diffusion", tmp_path)
    for name, entry in run.metrics.items():
        assert entry.within is None or abs(entry.value - entry.against[1]) <= entry.within, name
    assert run.metrics["three hills, free network: antisymmetry"].value > 1e-4
    exact = run.metrics["without its half: variance"].against[1]
    assert exact == pytest.approx(0.5**4 / (0.25 + 25))
    best = min(m.SAMPLERS, key=lambda name: run.metrics[f"{name}: Frechet distance"].value)
    assert f"{best} comes nearest" in run.said[0]


# 2. Recovery likelihood


def test_the_widest_easy_rung_is_where_the_posterior_stops_being_convex():
    for mean, sigma in ((2.0, 0.6), (1.3, 0.9)):
        x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
        for share, convex in ((0.99, True), (1.01, False)):
            s = share * m.widest_easy_rung(mean, sigma)
            curvature = torch.gradient(-m.wells_score(x, mean, sigma), spacing=(x,))[0] + 1 / s**2
            assert (curvature.min() > 0).item() == convex
    assert m.widest_easy_rung(1.0, 1.0) == math.inf
    ladder = m.easy_ladder(1.3, 0.9)
    assert ladder[1] ** 2 - ladder[0] ** 2 == pytest.approx(min(m.widest_easy_rung(1.3, 0.9), 1.3) ** 2)
    assert ladder[-2] < 1.3 <= ladder[-1]


def test_wells_are_two_blurred_points():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_(True)
    p = ((-((x - 1.4) ** 2) / (2 * 0.49)).exp() + (-((x + 1.4) ** 2) / (2 * 0.49)).exp()) / 2
    offset = m.wells_energy(x, 1.4, 0.7) + p.log()
    assert torch.allclose(offset, offset[0].expand(13))
    (slope,) = torch.autograd.grad(p.log().sum(), x)
    assert torch.allclose(m.wells_score(x, 1.4, 0.7), slope)


def test_recovery_chains_sample_the_posterior_and_their_steps_are_langevins():
    """The mistake: a pull towards y with the wrong sign or scale, or a noise that is not the step's."""
    s, step, y = 0.8, 0.05, 1.1
    x = m.recovery_chains(lambda z: -z / 0.5, torch.zeros(20, 4000, dtype=torch.float64), y, s, step, 300)
    curvature = 1 / 0.5 + 1 / s**2
    variance = 1 / curvature / (1 - step * curvature / 4)
    for values, exact in ((x.mean(1), y / s**2 / curvature), (x.var(1), variance)):
        mean, sem = m.mean_and_sem(values)
        assert abs(mean - exact) < m.tolerance(sem, 20)


def test_crossings_by_the_kernel_are_the_chains():
    args = {"m": 1.0, "sigma": 0.5}
    x = torch.full((20, 4000), 0.8, dtype=torch.float64)
    x = m.recovery_chains(lambda z: m.wells_score(z, 1.0, 0.5), x, 0.3, 0.9, 0.05, 30)
    mean, sem = m.mean_and_sem((x < 0).double().mean(1))
    assert abs(mean - m.exact_crossed(**args, s=0.9, start=0.8, step_size=0.05, n_steps=30, y=0.3)) < m.tolerance(sem, 20)


def test_information_share_is_the_likelihoods_for_wide_rungs_and_none_for_narrow_ones():
    wide, narrow = (m.exact_information_share(2.0, 0.6, s) for s in (60.0, 0.01))
    assert wide == pytest.approx(1, abs=2e-3)
    assert narrow < 1e-4
    rng = np.random.default_rng(0)  # by simulation: E (ψ - E[ψ | y])² over E (ψ - ½)², two independent posteriors of one y
    x = rng.choice([-2, 2], 200_000) + 0.6 * rng.standard_normal(200_000)
    y = x + 1.5 * rng.standard_normal(200_000)
    grid = np.linspace(-6, 6, 600)
    p = np.exp(-((grid - 2) ** 2) / 0.72) + np.exp(-((grid + 2) ** 2) / 0.72)
    psi = lambda z: 1 / (1 + np.exp(-2 * 2 * z / 0.36))  # noqa: E731
    post = p * np.exp(-((y[:400, None] - grid) ** 2) / 4.5)
    post /= post.sum(1, keepdims=True)
    variance = post @ psi(grid) ** 2 - (post @ psi(grid)) ** 2
    assert m.exact_information_share(2.0, 0.6, 1.5) == pytest.approx(
        variance.mean() / psi(x).var(), abs=4 * variance.std() / 20 * 4
    )


def test_the_recovery_gradient_climbs_log_p_of_x_given_y():
    x, y = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    axis, theta = torch.linspace(-5, 5, 2001, dtype=torch.float64), torch.tensor([0.2, -1.0, 0.6], dtype=torch.float64)
    found = m.recovery_gradient(m.quartic_slopes, lambda z: theta @ m.quartic_slopes(z), x, y, 0.7, axis)
    for i in range(3):
        h = 1e-5 * torch.eye(3).double()[i]
        by_difference = (m.exact_recovery(theta + h, x, y, 0.7) - m.exact_recovery(theta - h, x, y, 0.7)) / 2e-5
        assert found[i].item() == pytest.approx(by_difference, abs=1e-5)
    one = -(theta @ m.quartic_slopes(x[:1])).item() - (x[0] - y[0]).item() ** 2 / 0.98
    z = scipy.integrate.quad(lambda t: math.exp(-(0.2 * t - t**2 + 0.6 * t**4) - (t - y[0].item()) ** 2 / 0.98), -6, 6)[0]
    assert m.exact_recovery(theta, x[:1], y[:1], 0.7) == pytest.approx(one - math.log(z))


def test_the_recovery_loss_falls_with_the_datas_energy_weighed_by_the_level():
    net, x, sigma, c = noisy_net()
    z = torch.randn_like(x)
    expected = (sigma[:, 0] / net.sd * (net(x, sigma, c) - net(z, sigma, c))).mean()
    assert m.recovery_loss(net, x, z, sigma, c).item() == pytest.approx(expected.item())


def test_a_ladder_of_a_gaussian_ends_at_the_gaussian(tmp_path):
    """The mistake: s of the wrong rung, the rungs upwards, or the last mean at another level."""
    run = Notes(tmp_path, n_samples=4000)
    net = m.NoisyEnergy(torch.zeros(64), 0.5, 3, 4, low=0.1, high=2.0)  # fresh: exact for N(0, 0.25)
    levels = m.rungs_of(net).tolist()
    assert levels[0] == pytest.approx(0.1)
    assert levels[-1] == pytest.approx(2.0)
    assert levels[1] / levels[0] == pytest.approx(20 ** (1 / 6))
    x = m.climb_down(run, net, m.rungs_down(net), (0.25 + 4) ** 0.5)
    assert 0.1**2 + sum(s**2 for _, s in m.rungs_down(net)) == pytest.approx(2.0**2)  # variances add
    variance = 0.25 + 4
    for sigma, s in m.rungs_down(net):  # a chain that starts at y and is pulled to y: linear, so followed exactly
        step, curvature = m.rung_step(sigma, s), 1 / s**2 + 1 / (0.25 + sigma**2)
        kept = (1 - step * curvature / 2) ** m.RUNG_STEPS
        gain = kept + (1 - kept) / (s**2 * curvature)
        variance = gain**2 * variance + (1 - kept**2) / curvature / (1 - step * curvature / 4)
    assert x.var().item() == pytest.approx(variance * (0.25 / 0.26) ** 2, rel=0.02)


def test_recovery_learns_the_score_of_two_clusters():
    torch.manual_seed(0)
    config = tiny(batch_size=256, learning_rate=5e-3)

    def draw(n):
        c = torch.randint(2, (n,))
        return (2.0 * c[:, None] - 1) * 0.9 + 0.2 * torch.randn(n, 1), c

    net = m.train_recovery(m.NoisyEnergy(torch.zeros(1), 1.0, 32, 2, low=0.2, high=4.0), draw, config, 300).double()
    x, c = torch.linspace(-1, 1, 11).double()[:, None], torch.ones(11, dtype=torch.int64)
    sigma = m.rungs_of(net)[2].double().expand(11, 1)
    exact = -(x - 0.9) / (0.04 + sigma**2)
    assert (net.score(x, sigma, c) - exact).square().mean().sqrt() < 0.5 * exact.square().mean().sqrt()


def test_section_recovery_holds_every_exact_claim(tmp_path):
    run = noted("recovery", tmp_path)
    for name, entry in run.metrics.items():
        assert entry.within is None or abs(entry.value - entry.against[1]) <= entry.within, name
    found = m.measure_recovery(run).scores
    assert run.said[0].endswith(f"nearest: {m.in_words(m.nearest_of(found))}")
    assert len(found) == 4


# 3. Flows


def random_flow(d=4, width=5, n_layers=3):
    return rough(m.Flow(torch.randn(d), torch.rand(d) + 0.5, width, n_layers), 0.7)


def test_a_coupling_layers_density_is_normalised_and_its_points_are_its_samples():
    """The mistake: a log-determinant with the wrong sign, or left out."""
    scale, shift = (lambda u: 0.8 * torch.sin(2 * u)), (lambda u: u**2 / 3)

    def density(b, a):
        return m.coupling_log_prob(torch.tensor([[a, b]], dtype=torch.float64), scale, shift).exp().item()

    total = scipy.integrate.dblquad(density, -5, 5, -16, 25, epsabs=1e-5, epsrel=1e-5)[0]
    assert total == pytest.approx(1, abs=1e-4)
    z = torch.randn(3, 2, dtype=torch.float64)
    x = torch.stack([z[:, 0], z[:, 1] * scale(z[:, 0]).exp() + shift(z[:, 0])], 1)
    exact = -z.square().sum(1) / 2 - math.log(2 * math.pi) - scale(z[:, 0])
    assert torch.allclose(m.coupling_log_prob(x, scale, shift), exact)


def test_a_flow_is_inverted_and_its_log_determinant_is_autograds():
    flow = random_flow()
    z = torch.randn(6, 4, dtype=torch.float64)
    x = flow.from_noise(z)
    assert torch.allclose(flow.to_noise(x)[0], z)
    assert m.log_det_error(flow, x.detach()) < 1e-10
    exact = scipy.stats.multivariate_normal(np.zeros(4)).logpdf(z) + flow.to_noise(x)[1].detach().numpy()
    assert np.allclose(flow.log_density(x).detach().numpy(), exact)
    assert not all(torch.equal(flow.kept[0], half) for half in flow.kept)


def test_a_one_layer_flow_is_the_coupling_layer():
    flow = rough(m.Flow(torch.zeros(2), torch.ones(2), 5, 1), 0.7)
    x = torch.randn(5, 2, dtype=torch.float64)
    parts = lambda u, i: flow.halves(0, torch.stack([u, u], 1))[i][:, 0]  # noqa: E731
    found = m.coupling_log_prob(x, lambda u: parts(u, 1), lambda u: parts(u, 2))
    assert torch.allclose(found, flow.log_density(x))


def test_nce_is_the_cross_entropy_of_data_and_noise():
    a, b = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    expected = -(a.sigmoid().log().mean() + (1 - b.sigmoid()).log().mean())
    assert m.nce_loss(a, b).item() == pytest.approx(expected.item())


def test_log_z_from_both_sides_is_exact_for_gaussians_and_they_err_in_opposite_directions():
    """q = N(0, 1), g = -a x²/2: Z = (1 + a)^-½, and p = N(0, 1/(1 + a))."""
    a, n = 0.5, 200_000
    noise = torch.randn(n, dtype=torch.float64)
    found = m.log_z_from_both_sides(-a * noise**2 / 2, -a * (noise / (1 + a) ** 0.5) ** 2 / 2)
    assert [v.item() for v in found] == pytest.approx([-math.log(1 + a) / 2] * 2, abs=0.01)
    few = torch.randn(4000, 5, dtype=torch.float64)
    sides = [m.log_z_from_both_sides(-a * row**2 / 2, -a * (row / (1 + a) ** 0.5) ** 2 / 2) for row in few]
    low, high = (torch.stack(side).mean().item() for side in zip(*sides, strict=True))
    assert low < -math.log(1 + a) / 2 < high


def test_divergences_on_a_grid_are_those_of_gaussians():
    grid, cell = m.grid_of(120, 8.0)
    log_p, log_q = (-(grid - shift).square().sum(1) / 2 for shift in (0.0, torch.tensor([1.0, 0.5])))
    kl, js = m.exact_divergences(log_p, log_q, cell)
    assert kl == pytest.approx(1.25 / 2, abs=1e-6)
    far = -(grid + 6).square().sum(1) / 2, -(grid - 6).square().sum(1) / 2
    assert m.exact_divergences(*far, cell)[1] == pytest.approx(math.log(2), abs=1e-3)
    assert 0 < js < kl


def test_the_share_off_the_islands_is_rayleighs():
    """The mistakes: a radius in other units, the mass on the islands, an island forgotten."""
    (grid, _), islands = m.grid_of(400, 4.0), m.four_islands()
    share = m.share_off_islands(m.mixture_log_density(islands, grid), grid, islands)
    assert share == pytest.approx(m.theory_share_off_island(), rel=0.03)
    assert m.theory_share_off_island(2.0) == pytest.approx(scipy.stats.chi2.sf(4.0, 2))


def test_a_tilt_learns_the_log_ratio_and_its_constant():
    torch.manual_seed(0)
    config = tiny(batch_size=512, learning_rate=1e-2)
    noise = m.Flow(torch.zeros(2), torch.ones(2), 3, 1)  # fresh: N(0, I)
    tilt = m.Tilt(torch.zeros(2), torch.ones(2), 16)
    tilt = m.train_tilt(tilt, noise, lambda n: 0.7 * torch.randn(n, 2) + 0.3, config, 300, "test")
    x = 0.7 * torch.randn(500, 2) + 0.3
    exact = -(x - 0.3).square().sum(1) / (2 * 0.49) - 2 * math.log(0.7) + x.square().sum(1) / 2
    assert (tilt(x) - exact).square().mean().sqrt() < 0.25


def test_by_contrast_a_flow_moves_towards_the_data():
    """The mistake: a flow that climbs NCE's value, away from the data."""
    torch.manual_seed(0)
    config = tiny(batch_size=256, learning_rate=2e-2)
    start, tilt = (
        m.Flow(torch.zeros(2), torch.ones(2), 8, 2).requires_grad_(False),
        m.Tilt(torch.zeros(2), torch.ones(2), 16),
    )
    draw = lambda n: torch.randn(n, 2) + torch.tensor([1.0, 0.0])  # noqa: E731
    tilt = m.train_tilt(tilt, start, draw, config, 100, "test").requires_grad_(True)
    pupil = m.Flow(torch.zeros(2), torch.ones(2), 8, 2)
    pupil, _ = m.train_together(pupil, start, tilt, draw, config, 120)
    assert pupil.sample(2000).mean(0)[0].item() > 0.4


def test_section_flows_holds_every_exact_claim(tmp_path):
    run = noted("flows", tmp_path)
    for name, entry in run.metrics.items():
        assert entry.within is None or abs(entry.value - entry.against[1]) <= entry.within, name
    js = m.measure_islands(run).js
    assert run.metrics["islands, flow after contrast: JS (nats)"].against == ("the flow before", js["flow"])
    assert f"JS from {js['flow']:.3f} to {js['flow after contrast']:.3f}" in run.said[0]
    found = m.measure_flow_digits(run)
    assert found.bits["flow"].mean() > found.bits["mixture"].mean()  # after six updates


@pytest.mark.parametrize("sigma", [0.05, 1.0, 4.0])
def test_log_z_of_a_level_is_a_gaussians_before_training(sigma):
    """The mistake: one window for all levels, which cuts off the wide ones."""
    net = m.NoisyEnergy(torch.tensor([0.4, -0.3]), 1.7, 8).double()
    grid, cell = m.grid_of(48, 6.0)
    with torch.no_grad():
        found = m.log_z_of_level(net, grid, cell, sigma)
    assert found == pytest.approx(math.log(2 * math.pi * (1.7**2 + sigma**2)), abs=1e-4)


def test_those_within_two_standard_errors_are_as_near_as_the_nearest():
    """The mistake: to crown whoever is least, inside the noise."""
    far = {"a": (0.3, 0.01), "b": (0.1, 0.03), "c": (0.17, 0.03)}
    scores = {
        name: m.DigitScores(*(value if at == 0 else sem for at in range(len(m.DigitScores._fields))))
        for name, (value, sem) in far.items()
    }
    assert m.nearest_of(scores) == ["b", "c"]
    assert m.in_words(["b", "c"]) == "b, 1 not told apart"
    assert m.in_words(["b"]) == "b"
