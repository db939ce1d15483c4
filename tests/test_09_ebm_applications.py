"""Module 09: scores, denoisers, completions, attacks and compositions against closed forms, quadrature and enumeration."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from conftest import load
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KernelDensity, NearestNeighbors
from torch import nn

m = load("09")
normal = scipy.stats.norm


def tiny(**changes):
    return replace(m.Config(), **(m.SMOKE | changes))


def a_run(folder, seed=0, **changes):
    return m.Run(tiny(**changes), seed, "cpu", folder, False)


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


def noted(section, folder, **changes):
    torch.manual_seed(0)
    run = Notes(folder, **changes)
    m.SECTIONS[section](run)
    return run


class Quadratic(nn.Module):
    """E = a|x|²/2 for x (n, B, d), as an energy of section 0 has it."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x, y=None):
        return self.a * x.square().sum(-1) / 2

    def slope(self, x, y=None):
        return self.a * x


def rough(energy, std=0.5):
    """The same energy with all its weights random, float64."""
    for p in energy.parameters():
        nn.init.normal_(p, std=std)
    return energy.double()


def random_mixture(k=3, d=2, spread=1.0):
    """Gaussians drawn fresh."""
    a = torch.randn(k, d, d, dtype=torch.float64)
    weights = torch.rand(k, dtype=torch.float64) + 0.2
    return m.Gaussians(
        weights / weights.sum(), spread * torch.randn(k, d, dtype=torch.float64), a @ a.mT / d + 0.3 * torch.eye(d)
    )


def scipy_density(mixture, x):
    parts = zip(*(p.numpy() for p in mixture), strict=True)
    return sum(w * scipy.stats.multivariate_normal(mean, cov).pdf(x) for w, mean, cov in parts)


# 0. What all sections use


def test_the_energy_is_the_squared_error_over_two_sigma_squared_with_biases_by_label():
    energy, x, y = rough(m.AutoEncoderEnergy(2, 5, 7, 0.6, 3)), torch.randn(2, 4, 5).double(), torch.randint(3, (2, 4))
    for i in range(2):
        for j in range(4):
            z = x[i, j] @ energy.w1[i] + energy.b1[i, y[i, j]]
            g = z * torch.sigmoid(z) @ energy.w2[i] + energy.b2[i, 0]
            assert energy(x, y)[i, j].item() == pytest.approx(((x[i, j] - g).square().sum() / (2 * 0.6**2)).item())
            assert energy.one(i)(x[i : i + 1], y[i : i + 1])[0, j].item() == pytest.approx(energy(x, y)[i, j].item())


def test_the_slope_by_hand_equals_autograd_with_and_without_a_graph_and_can_be_differentiated():
    energy, y = rough(m.AutoEncoderEnergy(2, 5, 7, 0.6, 3)), torch.randint(3, (2, 4))
    x = torch.randn(2, 4, 5).double().requires_grad_(True)
    (slope,) = torch.autograd.grad(energy(x, y).sum(), x)
    assert torch.allclose(energy.slope(x, y), slope)
    with torch.no_grad():
        assert torch.allclose(energy.slope(x, y), slope)
    assert torch.autograd.gradcheck(lambda x: energy.slope(x, y), (x,))


def test_langevin_halves_the_slope_and_adds_noise_of_variance_step_size():
    start, noise = torch.randn(3, 2), []
    torch.manual_seed(5)
    noise = [torch.randn(3, 2) for _ in range(2)]
    by_hand = start
    for n in noise:
        by_hand = by_hand - 0.3 / 2 * (4 * by_hand) + 0.3**0.5 * n
    torch.manual_seed(5)
    assert torch.allclose(m.langevin(lambda x: 4 * x, start, 2, 0.3), by_hand)


def test_pools_draw_rows_of_the_label_and_never_a_hidden_one():
    labels = torch.tensor([[0, 1, -1, 1, 2, 0, 2, 2], [-1, 0, 0, -1, 1, 1, 1, 1]])
    pools = m.Pools(labels, 3)
    assert pools.count.tolist() == [[2, 2, 3], [2, 4, 0]]
    y = torch.stack([torch.arange(300) % 3, torch.arange(300) % 2])
    rows = pools.like(y)
    assert torch.equal(labels.gather(1, rows), y)
    for i, k in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        assert set(rows[i][y[i] == k].tolist()) == set((labels[i] == k).nonzero()[:, 0].tolist())
    shares = pools.shares(600)
    assert torch.bincount(shares[0], minlength=3).tolist() == pytest.approx([171, 171, 257], abs=1)
    assert torch.bincount(shares[1], minlength=3).tolist() == [200, 400, 0]
    assert not torch.equal(shares, shares.sort(1).values)


def test_the_loss_falls_with_the_datas_energy_and_rises_with_the_chains():
    e = [torch.randn(2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = m.two_phase_loss(*e)
    expected = sum(e[0][i].mean() - e[1][i].mean() + 1e-5 * (e[0][i] ** 2 + e[1][i] ** 2).mean() for i in range(2))
    assert loss.item() == pytest.approx(expected.item())
    data, chains = torch.autograd.grad(loss, e)
    assert (data > 0).all()
    assert (chains < 0).all()


def test_a_training_puts_each_labels_data_where_its_energy_is_low():
    y = torch.arange(400) % 2
    x = torch.where(y[:, None] == 1, 0.8, -0.8) + 0.1 * torch.randn(400, 2)
    config = tiny(width=32, batch_size=64, n_langevin=10, sigma=0.5, step_size=0.05)
    energy = m.train_energies(x, y[None], config, 150, "test", 2)
    right, wrong = energy(x[None], y[None]).mean(), energy(x[None], 1 - y[None]).mean()
    assert wrong - right > 0.5
    hidden = torch.where(y == 1, 0, -1)[None]
    one = m.train_energies(x, hidden, config, 150, "test")
    assert one(x[None])[0, y == 1].mean() < one(x[None])[0, y == 0].mean() - 0.5


def test_a_mixture_has_scipys_density_and_the_moments_of_its_draws():
    mixture, x = random_mixture(), torch.randn(6, 2, dtype=torch.float64)
    assert m.mixture_log_density(mixture, x).exp().numpy() == pytest.approx(scipy_density(mixture, x.numpy()))
    assert m.mixture_log_density(m.blurred(mixture, 0.7), x).exp().numpy() == pytest.approx(
        scipy_density(mixture._replace(covariances=mixture.covariances + 0.49 * torch.eye(2)), x.numpy())
    )
    n = 40_000
    draws = m.draw_gaussians(mixture, n)
    for f in (lambda z: z[:, 0], lambda z: z[:, 1] ** 2, lambda z: z[:, 0] * z[:, 1]):
        grid = np.linspace(-14, 14, 281)
        points = torch.cartesian_prod(torch.tensor(grid), torch.tensor(grid))
        exact = (f(points) * m.mixture_log_density(mixture, points).exp()).sum().item() * 0.1**2
        mean, sem = m.mean_and_sem(f(draws))
        assert abs(mean - exact) < m.tolerance(sem, n, 3)


def grid_posterior(mixture, log_weight):
    """Mean and covariance of p(x) exp(log_weight(x)) on a plane's grid."""
    axis = torch.arange(-12, 12, 0.06, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    p = (m.mixture_log_density(mixture, points) + log_weight(points)).softmax(0)
    mean = p @ points
    return mean, (points - mean).T @ (p[:, None] * (points - mean))


def test_the_posterior_under_noise_is_bayes_rule_on_a_grid_and_its_draws_have_its_moments():
    mixture, y, s = random_mixture(), torch.randn(1, 2, dtype=torch.float64), 0.8
    mean, covariance = grid_posterior(mixture, lambda x: -(x - y).square().sum(1) / (2 * s**2))
    posterior = m.given_noisy(mixture, y, s)
    assert torch.allclose(posterior.mean()[0], mean, atol=1e-6)
    draws = posterior.draws(40_000)[:, 0]
    for i, j in ((0, 0), (0, 1), (1, 1)):
        value, sem = m.mean_and_sem((draws - mean)[:, i] * (draws - mean)[:, j])
        assert abs(value - covariance[i, j].item()) < m.tolerance(sem, 40_000, 3)


def test_the_conditional_of_what_is_missing_is_the_joint_over_the_marginal():
    mixture, x, seen = random_mixture(d=3), torch.randn(1, 3, dtype=torch.float64), torch.tensor([True, False, True])
    axis = torch.arange(-15, 15, 0.01, dtype=torch.float64)
    points = x.repeat(len(axis), 1)
    points[:, 1] = axis
    p = m.mixture_log_density(mixture, points).softmax(0)
    posterior = m.given_seen(mixture, x, seen)
    assert posterior.mean().item() == pytest.approx((p @ axis).item(), abs=1e-6)
    spread = (
        posterior.shares * (posterior.covariances[:, 0, 0] + posterior.means[..., 0] ** 2)
    ).sum() - posterior.mean() ** 2
    assert spread.item() == pytest.approx((p @ (axis - p @ axis) ** 2).item(), abs=1e-6)


def test_decibels_are_for_grey_levels_that_span_2():
    assert m.decibels(0.04) == pytest.approx(20)
    error = torch.tensor([0.01, 0.03, 0.05, 0.07])
    mean, sem = m.db_and_sem(error)
    assert mean == pytest.approx(20)
    step = 1e-6
    slope = (m.decibels(0.04 - step) - m.decibels(0.04 + step)) / (2 * step)
    assert sem == pytest.approx(slope * m.mean_and_sem(error)[1])


def test_a_leader_is_named_with_those_that_pairs_do_not_tell_from_it():
    hard, even = torch.linspace(1, 9, 100).double(), torch.linspace(-1, 1, 100).double()
    losses = {"worse": hard + 0.1, "best": hard, "as good": hard + even.flip(0) + 0.05}
    assert m.least(losses) == "best (or as good)"  # .1 is told from 0 in pairs alone, .05 is not
    mean, sem = m.mean_and_sem(even)
    assert m.leaders({"a": hard, "b": hard + even - mean - 1.9 * sem}) == ["a", "b"]
    assert m.leaders({"a": hard, "b": hard + even - mean - 2.1 * sem}) == ["a"]
    assert [m.best_of(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a (or b)", "a (or b, c)"]
    told = [
        m.Told(auroc, 0.5, 0.5, np.array([error, 1.0, 1.0])) for auroc, error in ((0.9, 0.03), (0.8, 0.04), (0.79, 0.04))
    ]
    assert m.leading_scores(dict(zip("abc", told, strict=True))) == ["a", "b"]  # .05 is their error together


# 1. Out-of-distribution detection


def test_the_three_measures_are_scikit_learns_also_with_ties():
    rng = np.random.default_rng(1)
    inside, outside = rng.integers(0, 8, 60).astype(float), rng.integers(2, 10, 45).astype(float)
    truth = np.arange(105) >= 60
    score = np.concatenate([inside, outside])
    assert m.auroc_of(inside, outside) == pytest.approx(roc_auc_score(truth, score))
    assert m.auroc_of(inside[None].repeat(2, 0), outside[None].repeat(2, 0)) == pytest.approx(roc_auc_score(truth, score))
    assert m.aupr_of(inside, outside) == pytest.approx(average_precision_score(truth, score))
    inside, outside = np.arange(100.0), np.array([50.0, 94.0, 94.5, 99.0])
    assert m.fpr95_of(inside, outside) == 0.5  # 94 lets 95 of 100 pass


def test_perfect_scores_have_their_closed_forms():
    for shift in (0.5, 2.0):  # d = 1: (z + δ)² - z'² is a product of two independent normals
        p = normal.cdf(shift / 2**0.5)
        assert m.exact_energy_auroc_shifted(shift, 1) == pytest.approx(p**2 + (1 - p) ** 2, abs=1e-5)
        assert m.exact_ratio_auroc(shift) == pytest.approx(p)
    assert m.exact_energy_auroc_shifted(1e-9, 10) == pytest.approx(0.5, abs=1e-6)
    assert m.exact_energy_auroc_scaled(0.3, 2) == pytest.approx(0.3 / 1.3)  # exponentials: v/(1 + v)
    published = m.exact_ratio_auroc(3), m.exact_energy_auroc_shifted(3, 64), m.exact_energy_auroc_scaled(0.49, 64)
    assert published == pytest.approx((0.983, 0.701, 0.0025), abs=5e-4)


def test_the_density_after_the_change_of_variables_is_one_everywhere():
    x = np.random.default_rng(2).standard_normal((20, 5))
    assert (m.energy_after_change(x) == 0).all()


def test_perfect_scores_are_measured_within_their_errors(tmp_path):
    found, exact = m.measure_perfect_density(a_run(tmp_path, n_repeats=10, n_points=400))
    for name, values in found.items():
        mean, sem = m.mean_and_sem(values)
        assert abs(mean - exact[name]) <= m.tolerance(sem, 10, 4), name


def test_kernel_density_and_neighbours_are_scikit_learns():
    x, train = torch.randn(7, 3).double(), torch.randn(30, 3).double()
    theirs = KernelDensity(bandwidth=0.4).fit(train).score_samples(x)
    assert m.kernel_log_density(x, train, 0.4).numpy() == pytest.approx(theirs)
    theirs = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(x)[0][:, 0]
    assert m.neighbour_distance(x, train).numpy() == pytest.approx(theirs)


def test_every_score_is_higher_outside(tmp_path, monkeypatch):
    """The mistake: a sign; an AUROC of .05 in place of .95."""
    x = torch.rand(300, 64).double() * 0.2 - 0.9
    y, weights = torch.arange(300) % 10, torch.randn(10, 64)
    monkeypatch.setattr(m, "learn_classifier", lambda *_, **__: lambda z: z @ weights.T)
    scores = m.scores_from(a_run(tmp_path), x, y, Quadratic(1.0), m.Chosen(0.3, 2), 1)
    outside = torch.rand(50, 64).double() * 2 - 1
    for name in ("mixture", "KDE", "1-NN", "isolation forest", "grey level", "zlib"):
        assert (
            m.auroc_of(
                scores[name](x).numpy() if torch.is_tensor(scores[name](x)) else scores[name](x),
                np.asarray(scores[name](outside)),
            )
            > 0.9
        ), name
    logits = outside.float() @ weights.T
    assert scores["softmax"](outside).numpy() == pytest.approx(-logits.softmax(1).amax(1).numpy(), rel=1e-4)
    assert scores["free energy"](outside).numpy() == pytest.approx(-logits.logsumexp(1).numpy(), rel=1e-4)
    assert scores["energy"](outside).numpy() == pytest.approx(outside.square().sum(1).numpy() / 2, rel=1e-4)


def test_a_left_out_digit_is_never_seen_and_scored_by_the_network_that_missed_it(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(m, "train_energies", lambda x, labels, *_: kept.update(labels=labels))
    run = a_run(tmp_path)
    m.energies_without.cache_clear()
    m.energies_without(run)
    m.energies_without.cache_clear()
    y = m.images(run).y
    for k in range(10):
        assert torch.equal(kept["labels"][k] == -1, y == k)
    labels = np.arange(60) % 10
    scores = np.random.default_rng(3).standard_normal((10, 60))
    told = m.told_left_out(scores, labels, 20, np.random.default_rng(0))
    by_hand = [roc_auc_score(labels == k, scores[k]) for k in range(10)]
    assert told.auroc == pytest.approx(np.mean(by_hand))
    assert told.aupr == pytest.approx(np.mean([average_precision_score(labels == k, scores[k]) for k in range(10)]))


def test_the_bootstrap_error_is_the_spread_over_fresh_data():
    rng = np.random.default_rng(4)
    fresh = np.std([m.auroc_of(rng.standard_normal(100), rng.standard_normal(100) + 1) for _ in range(400)])
    one = np.mean([m.told(rng.standard_normal(100), rng.standard_normal(100) + 1, 100, rng).errors[0] for _ in range(10)])
    assert one == pytest.approx(fresh, rel=0.15)
    labels = np.arange(400) % 10
    scores = rng.standard_normal((10, 400)) + (labels == np.arange(10)[:, None])
    error = m.told_left_out(scores, labels, 200, np.random.default_rng(0)).errors[0]
    fresh = np.std(
        [np.mean([m.auroc_of(rng.standard_normal(360), rng.standard_normal(40) + 1) for _ in range(10)]) for _ in range(200)]
    )
    assert error == pytest.approx(fresh, rel=0.25)


def test_sets_are_what_they_are_called(tmp_path):
    digits = m.images(a_run(tmp_path))
    x, y = digits.x_test, digits.y_test
    mixed = m.between_digits(torch.arange(20.0)[:, None], torch.arange(20) % 2)
    assert 0 < len(mixed) <= 20
    assert ((2 * mixed[:, 0]).long() % 2 == 1).all()  # one even, one odd: two classes
    line = torch.full((8, 8), -1.0)
    line[:, 3:5] = 1
    ink = (m.slanted(line.double().reshape(1, 64), 0.5).view(8, 8) + 1) / 2
    columns = (ink * torch.arange(8)).sum(1) / ink.sum(1)
    assert columns.diff().numpy() == pytest.approx(np.full(7, -0.5), abs=1e-9)
    sets = m.outside_sets(x, y, 0)
    assert torch.equal(sets["shuffled pixels"].sort(1).values, x.sort(1).values)
    assert torch.equal(sets["inverted"], -x)
    assert all((z.abs() <= 1).all() for z in sets.values())


def test_settings_are_chosen_on_images_that_were_not_learnt_from(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    split, seen = m.tuning(run), []
    monkeypatch.setattr(
        m, "kernel_log_density", lambda x, train, h: seen.append((x, train)) or -((h - 0.25) ** 2) * torch.ones(1)
    )
    fit = m.fit_gaussians
    monkeypatch.setattr(m, "fit_gaussians", lambda x, *rest: seen.append((split.x_test, x)) or fit(x, *rest))
    monkeypatch.setattr(m, "mixture_log_density", lambda mixture, x: -((len(mixture.weights) - 10.0) ** 2) * torch.ones(1))
    monkeypatch.setattr(m, "outside_sets", None)
    monkeypatch.setattr(m, "between_digits", None)  # no outside image has a say
    assert m.choose_scores(run) == (0.25, 10)
    assert len(seen) == 10
    assert all(torch.equal(x, split.x_test) and torch.equal(train, split.x) for x, train in seen)
    rows = {tuple(row) for row in split.x.tolist()}
    assert sum(tuple(row) in rows for row in split.x_test.tolist()) < 5  # a twin or two


# 2. Denoising


def test_tweedie_is_the_posterior_mean():
    mixture, y = random_mixture(d=4), torch.randn(9, 4, dtype=torch.float64)
    assert torch.allclose(m.tweedie(mixture, y, 0.6), m.given_noisy(mixture, y, 0.6).mean(), atol=1e-12)


@pytest.mark.parametrize(("d", "s"), [(1, 0.5), (3, 1.1)])
def test_the_mmse_is_the_mean_posterior_variance(d, s):
    v, half = 0.3**2, 1.0
    gain = v / (v + s**2)

    def integrand(y):
        p = [normal.pdf(y, c, (v + s**2) ** 0.5) / 2 for c in (half, -half)]
        means = [c + gain * (y - c) for c in (half, -half)]
        mean = sum(a * b for a, b in zip(p, means, strict=True)) / sum(p)
        return sum(a * (b - mean) ** 2 for a, b in zip(p, means, strict=True)) + sum(p) * gain * s**2

    along = scipy.integrate.quad(integrand, -10, 10, limit=200)[0]
    assert m.exact_two_bumps_mmse(d, s) == pytest.approx(along + (d - 1) * gain * s**2, abs=1e-8)
    bumps = m.two_bumps(d)
    assert (bumps.means[0] - bumps.means[1]).norm().item() == pytest.approx(2)


def test_samples_cost_one_plus_one_over_k(tmp_path):
    found = m.measure_bumps(a_run(tmp_path, n_repeats=12, n_points=1500), 2, 0.6, ks=(1, 3))
    exact = m.exact_two_bumps_mmse(2, 0.6)
    for values, factor in ((found.posterior_mean, 1), (found.samples[1], 2), (found.samples[3], 4 / 3)):
        mean, sem = m.mean_and_sem(values)
        assert abs(mean - factor * exact) < m.tolerance(sem, 12, 3)
    assert m.theory_samples_mse(exact, 3) == pytest.approx(4 / 3 * exact)


def test_the_energys_denoiser_is_exact_where_the_energy_is_of_noisy_gaussian_data():
    """float64; the chain on a Gaussian is linear, so the scatter of its average has a closed form as well."""
    v, noise, s, n, step, n_steps, n_chains = 0.5, 0.3, 0.8, 6000, 0.05, 300, 2
    config = tiny(data_noise=noise, step_size=step, n_chain_steps=n_steps)
    energy, y = Quadratic(1 / (v + noise**2)), torch.tensor([[1.0, -2.0]]).double().repeat(n, 1)
    mean, sample = m.posterior_mean(energy, y, s, config, n_chains)
    assert mean.dtype == torch.float64
    precision, gain = 1 / (v + noise**2) + 1 / (s**2 - noise**2), v / (v + noise**2)
    stationary = gain**2 / (precision * (1 - step * precision / 4))  # of E[x | z] along a chain
    kept = np.arange(165, 301, 15)
    together = ((1 - step / 2 * precision) ** np.abs(kept[:, None] - kept)).mean()
    for estimate, variance in ((mean, stationary * together / n_chains), (sample, stationary)):
        away = estimate - y * v / (v + s**2)
        for i in range(2):
            for values, exact in ((away[:, i], 0.0), (away[:, i] ** 2, variance)):
                value, sem = m.mean_and_sem(values)
                assert abs(value - exact) < m.tolerance(sem, n, 8)
    mean, _ = m.posterior_mean(energy, y[:1], 0.2, config)
    assert mean[0].numpy() == pytest.approx(y[0].numpy() * (1 - 0.04 / (v + noise**2)))


def test_the_average_leaves_out_the_first_half_of_a_chain_and_ends_with_its_end():
    """A slow chain still comes from y in its first half: what is averaged says when it was seen."""
    n_steps, a, extra, step = 40, 0.1, 0.6, 0.02
    config = tiny(data_noise=0.2, step_size=step, n_chain_steps=n_steps)
    y, s = torch.full((20_000, 1), 5.0).double(), (extra + 0.04) ** 0.5
    mean, end = m.posterior_mean(Quadratic(a), y, s, config, 1)
    precision = a + 1 / extra
    goal = 5 / extra / precision
    at = [(goal + (1 - step / 2 * precision) ** t * (5 - goal)) * (1 - 0.04 * a) for t in (25, 40)]
    for estimate, exact in ((mean, sum(at) / 2), (end, at[1])):
        value, sem = m.mean_and_sem(estimate[:, 0])
        assert abs(value - exact) < m.tolerance(sem, 20_000, 2)


def test_total_variation_finds_the_minimum_of_its_objective():
    y, weight = torch.randn(2, 64, dtype=torch.float64), 0.4

    def objective(x):
        z = torch.as_tensor(x).view(-1, 8, 8)
        gx, gy = torch.zeros_like(z), torch.zeros_like(z)
        gx[:, :-1], gy[:, :, :-1] = z.diff(dim=1), z.diff(dim=2)
        return (torch.as_tensor(x) - y).square().sum(1) / 2 + weight * (gx**2 + gy**2).sqrt().sum((1, 2))

    x = m.tv_denoised(y, weight, 3000)
    for _ in range(20):
        assert (objective(x) <= objective(x + 0.02 * torch.randn_like(x)) + 1e-3).all()
    assert (objective(x) < objective(y) - 1).all()
    flat = m.tv_denoised(y, 1e3, 4000)
    assert flat[0].numpy() == pytest.approx(np.full(64, y[0].mean().item()), abs=0.05)


def test_classical_denoisers_have_their_closed_forms():
    x = torch.randn(500, 64).double() * torch.linspace(0.2, 2, 64)
    y, s = torch.randn(3, 64).double(), 0.7
    cov = np.cov(x.numpy().T, bias=True)
    by_hand = x.mean(0).numpy() + (y - x.mean(0)).numpy() @ np.linalg.inv(cov + s**2 * np.eye(64)) @ cov
    assert m.wiener(x, y, s).numpy() == pytest.approx(by_hand, abs=1e-6)
    kernel = m.Gaussians(torch.full((500,), 1 / 500).double(), x, 0.09 * torch.eye(64).double().expand(500, 64, 64))
    assert torch.allclose(m.kernel_denoiser(x, y, s, 0.3), m.given_noisy(kernel, y, s).mean())
    projected = m.pca_denoiser(x, y, 5)
    assert torch.allclose(m.pca_denoiser(x, projected, 5), projected)
    assert torch.linalg.matrix_rank(projected - x.mean(0)) <= 3
    assert torch.allclose(m.pca_denoiser(x, y, 64), y)
    assert torch.equal(m.filtered(y, "median", 1), y)


def test_denoisers_settings_have_the_least_error_on_held_out_images():
    fit, held = torch.randn(60, 64).double(), 0.2 * torch.randn(40, 64).double()
    fitted = {key: m.fit_gaussians(fit, 2, 0) for key in m.MIXTURES}
    torch.manual_seed(2)
    chosen = m.choose_denoisers(fit, held, fitted, 0.5)
    torch.manual_seed(2)
    y = held + 0.5 * torch.randn_like(held)
    for name, (settings, f) in m.DENOISERS.items():
        errors = [(f(v, fit, y, 0.5, fitted) - held).square().mean().item() for v in settings]
        assert chosen[name] == settings[int(np.argmin(errors))], name
    assert chosen["Gaussian"] == 1.6


def test_the_ceiling_is_the_posterior_mean_of_the_truth_that_drew_the_images(tmp_path, monkeypatch):
    truth = m.Gaussians(torch.ones(1).double(), torch.zeros(1, 64).double(), 0.25 * torch.eye(64).double()[None])
    monkeypatch.setattr(m, "fit_gaussians", lambda *_: truth)
    monkeypatch.setattr(m, "train_energies", lambda *_: Quadratic(1.0))
    errors = m.measure_ceiling(a_run(tmp_path), s=0.5)
    mean, sem = m.mean_and_sem(errors["the best possible"])
    assert abs(mean - 0.125) < m.tolerance(sem, 600)
    mean, sem = m.mean_and_sem(errors["its sample"])
    assert abs(mean - 0.25) < m.tolerance(sem, 600)


# 3. Inpainting


def test_an_interval_of_19_samples_covers_nine_tenths_if_the_samples_are_right():
    draws = torch.randn(20, 20_000)
    mean, sem = m.mean_and_sem(m.covered(draws[0], draws[1:]))
    assert abs(mean - m.exact_coverage(19)) < m.tolerance(sem, 20_000)
    assert m.exact_coverage(19) == pytest.approx(0.9)
    assert m.exact_coverage(3) == pytest.approx(0.5)


def test_held_pixels_keep_their_noise_unless_it_is_redrawn():
    seen, x = torch.tensor([True, True, False]), torch.zeros(5, 3)
    states = []
    m.complete(lambda z: states.append(z.clone()) or torch.zeros_like(z), x, seen, 0.5, 3, 0.1)
    assert torch.equal(states[0][:, :2], states[2][:, :2])
    assert not torch.equal(states[0][:, 2], states[2][:, 2])
    assert states[0][:, :2].std() > 0.2
    states.clear()
    end = m.complete(lambda z: states.append(z.clone()) or torch.zeros_like(z), x, seen, 0.5, 3, 0.1, redraw=True)
    assert not torch.equal(states[0][:, :2], states[2][:, :2])
    assert torch.equal(m.complete(lambda z: z, x + 1, seen, 0.0, 2, 0.1)[:, :2], x[:, :2] + 1)
    assert end.shape == x.shape


@pytest.mark.parametrize("redraw", [False, True])
def test_the_two_pixel_chains_have_the_law_and_the_coverage_that_theory_says(redraw):
    covariance, sigma, step, n = ((1.0, 0.6), (0.6, 1.3)), 0.5, 0.2, 60_000
    p = torch.linalg.inv(torch.tensor(covariance).double() + sigma**2 * torch.eye(2))
    x = torch.tensor([[0.0, 1.5]]).double().expand(n, 2)
    if redraw:
        ends = m.complete(lambda z: z @ p, x, torch.tensor([False, True]), sigma, 60, step, redraw=True)[:, 0]
        slope, variance = m.theory_redrawn(covariance, sigma, step)
    else:
        ends = m.complete(lambda z: z @ p, x, torch.tensor([False, True]), 0.0, 60, step)[:, 0]
        slope, variance = -(p[0, 1] / p[0, 0]).item(), 1 / (p[0, 0] * (1 - step * p[0, 0] / 4)).item()
    mean, sem = m.mean_and_sem(ends)
    assert abs(mean - 1.5 * slope) < m.tolerance(sem, n)
    value, sem = m.mean_and_sem((ends - mean) ** 2)
    assert abs(value - variance) < m.tolerance(sem, n)


@pytest.mark.parametrize("which", ["exact_held_coverage", "exact_redrawn_coverage"])
def test_the_exact_coverage_is_what_direct_draws_cover(which):
    covariance, sigma, step, n = np.array([[1.0, 0.6], [0.6, 1.3]]), 0.5, 0.3, 40_000
    rng = np.random.default_rng(5)
    x = rng.multivariate_normal((0, 0), covariance, n)
    z = x + sigma * rng.standard_normal((n, 2))
    p = np.linalg.inv(covariance + sigma**2 * np.eye(2))
    slope, variance = m.theory_redrawn(covariance, sigma, step)
    centre = slope * x[:, 1]
    if which == "exact_held_coverage":
        centre, variance = -p[0, 1] / p[0, 0] * z[:, 1], 1 / (p[0, 0] * (1 - step * p[0, 0] / 4))
    draws = centre + variance**0.5 * rng.standard_normal((19, n))
    mean, sem = m.mean_and_sem(m.covered(torch.as_tensor(z[:, 0]), torch.as_tensor(draws)))
    assert abs(mean - getattr(m, which)(covariance, sigma, step)) < m.tolerance(sem, n)
    assert m.exact_held_coverage(covariance, sigma, 1e-9) == pytest.approx(0.9, abs=1e-6)


def test_completions_of_a_gaussian_have_its_conditional_and_one_noise_for_all_19():
    noise, v = 0.3, 0.6
    config, x = tiny(data_noise=noise, step_size=0.05, n_chain_steps=150), torch.full((300, 64), 0.5).double()
    seen = torch.arange(64) < 60
    z, clean = m.fill_by_energy(Quadratic(1 / (v + noise**2)), x, seen, config, torch.device("cpu"))
    assert z.shape == (19, 300, 64)
    assert torch.equal(z[0][:, seen], z[18][:, seen])
    assert (z[0][:, seen] - 0.5).std().item() == pytest.approx(noise, rel=0.03)
    hidden = z[..., ~seen].flatten()
    exact = (v + noise**2) / (1 - 0.05 / (4 * (v + noise**2)))
    assert hidden.var().item() == pytest.approx(exact, rel=0.04)
    assert torch.allclose(clean, z * (1 - noise**2 / (v + noise**2)), atol=1e-5)


def test_intervals_of_the_mixture_are_for_noisy_pixels_as_the_energys_are(tmp_path, monkeypatch):
    truth = m.Gaussians(torch.ones(1).double(), torch.zeros(1, 64).double(), 0.04 * torch.eye(64).double()[None])
    x = m.draw_gaussians(truth, 500)
    monkeypatch.setattr(m, "images", lambda run: m.Images(x, None, x, None))
    monkeypatch.setattr(m, "tuning_mixtures", lambda run: {(1, 0.1): truth})
    monkeypatch.setattr(m, "choose_fillers", lambda *_: (3, (1, 0.1)))
    monkeypatch.setattr(m, "fit_gaussians", lambda *_: truth)
    config = {"data_noise": 0.3, "step_size": 0.02, "n_chain_steps": 40, "n_images": 500}
    monkeypatch.setattr(m, "digits_energy", lambda run: Quadratic(1 / (0.04 + 0.09)))
    filled = m.fill_in(a_run(tmp_path, **config), m.masks()["centre"])
    for name, covered in filled.coverage.items():
        mean, sem = m.mean_and_sem(covered)
        assert abs(mean - 0.9) < m.tolerance(sem, 500) + 0.005, name  # a chain's step widens a little
    assert torch.equal(filled.truth, x[:, ~m.masks()["centre"]])


def test_neighbours_fill_with_the_mean_of_the_nearest_by_what_is_seen():
    train, x, seen = torch.randn(40, 64).double(), torch.randn(6, 64).double(), m.masks()["lower half"]
    rows = NearestNeighbors(n_neighbors=4).fit(train[:, seen]).kneighbors(x[:, seen])[1]
    assert torch.allclose(m.neighbour_fill(train, x, seen, 4), train[:, ~seen][torch.as_tensor(rows)].mean(1))
    assert [int((~mask).sum()) for mask in m.masks().values()] == [16, 32]
    assert not m.masks()["centre"].view(8, 8)[2:6, 2:6].any()


def test_what_fills_in_is_chosen_by_its_error_on_validation_images(tmp_path):
    run, seen = a_run(tmp_path), m.masks()["centre"]
    split, rng = m.tuning(run), torch.Generator().manual_seed(4)
    means = torch.randn(5, 1, 64, generator=rng).double() * torch.tensor([3, 2, 0.5, 1, 2]).view(5, 1, 1)
    c = split.x.T.cov() + 0.05 * torch.eye(64)
    fitted = {f"at {i}": m.Gaussians(torch.ones(1).double(), mean, c[None]) for i, mean in enumerate(means)}
    hidden = split.x_test[:, ~seen]
    by_hand = [(m.given_seen(f, split.x_test, seen).mean() - hidden).square().mean().item() for f in fitted.values()]
    k, key = m.choose_fillers(run, seen, fitted)
    assert key == f"at {np.argmin(by_hand)}"
    errors = {
        k: (m.neighbour_fill(split.x, split.x_test, seen, k) - hidden).square().mean() for k in (1, 3, 5, 8, 12, 20, 40)
    }
    assert k == min(errors, key=errors.get)
    fits = m.mixtures_of(split.x[:100], 0, [(2, 0.01), (2, 0.1)])  # what is added is in every direction
    lowest = [torch.linalg.eigvalsh(f.covariances).min().item() for f in fits.values()]
    assert lowest == pytest.approx([0.01, 0.1], abs=1e-6)


# 4. Adversarial robustness


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_the_attack_stays_within_its_size_and_reaches_the_worst_point_of_a_linear_rule(norm):
    w, y = torch.randn(9).double(), (torch.rand(30) < 0.5).double() * 2 - 1
    x = torch.randn(30, 9).double()
    hit = m.attack(m.linear_loss(w, y), x, 0.3, norm, 10, n_restarts=2)
    delta = hit - x
    size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert (size <= 0.3 + 1e-9).all()
    worst = 0.3 * (w.abs().sum() if norm == "Linf" else w.norm())
    assert torch.allclose(y * (hit @ w), y * (x @ w) - worst)
    boxed = m.attack(m.linear_loss(w, y), x.clamp(-1, 1), 0.3, norm, 10, 1, (-1, 1))
    assert boxed.abs().max() <= 1


def test_the_attack_keeps_the_highest_loss_that_it_saw():
    def falls(x):  # a loss that is highest where it starts, and whose slope points away
        return -(x.square().sum(1)), torch.ones_like(x)

    x = torch.zeros(4, 3)
    assert torch.equal(m.attack(falls, x, 0.5, "L2", 5), x)


def test_the_exact_accuracy_is_that_under_the_explicit_worst_point():
    w, mu, sigma, n = torch.tensor([1.0, -0.5, 0.2]).double(), torch.tensor([0.8, -0.1, 0.4]).double(), 0.7, 60_000
    y = (torch.rand(n) < 0.5).double() * 2 - 1
    x = y[:, None] * mu + sigma * torch.randn(n, 3).double()
    for norm, way in (("L2", w / w.norm()), ("Linf", w.sign())):
        hit = x - 0.3 * y[:, None] * way
        mean, sem = m.mean_and_sem((y * (hit @ w) > 0).double())
        assert abs(mean - m.theory_linear_accuracy(w, mu, sigma, 0.3, norm)) < m.tolerance(sem, n)


def test_attacks_on_two_gaussians_are_as_strong_as_they_can_be(tmp_path):
    found = m.measure_two_gaussians(a_run(tmp_path, n_repeats=8, n_points=500, n_attack=10))
    for key, values in found.accuracy.items():
        mean, sem = m.mean_and_sem(values)
        assert abs(mean - found.theory[key]) < m.tolerance(sem, 8, 4), key
        assert found.theory[key] < normal.cdf(2)
    certified = [pair[1] for pair in found.radii]
    assert max(certified) < found.distance


def test_a_smoothed_linear_rules_radius_is_the_distance_and_the_certified_one_is_below():
    w, x, s = torch.tensor([3.0, 4.0]).double(), torch.tensor([-0.1, -0.2]).double(), 0.4  # distance 1.1/5
    radii = [m.smoothed_radius(lambda z: z @ w > 0, x, s, 20_000) for _ in range(20)]
    mean, sem = m.mean_and_sem(radii)
    assert abs(mean - 0.22) < m.tolerance(sem, 20)
    torch.manual_seed(3)
    certified = m.smoothed_radius(lambda z: z @ w > 0, x, s, 20_000, 0.999)
    torch.manual_seed(3)
    votes = sum(((x + s * torch.randn(5000, 2, dtype=torch.float64)) @ w <= 0).sum().item() for _ in range(4))
    lower = scipy.optimize.brentq(lambda p: scipy.stats.binom.sf(votes - 1, 20_000, p) - 0.0005, 0.4, 0.9)
    assert certified == pytest.approx(s * normal.ppf(lower), abs=1e-6)


def test_margin_loss_and_its_slope():
    logits, y = torch.tensor([[2.0, 5.0, 1.0], [3.0, 0.0, 4.0]]), torch.tensor([1, 0])
    assert m.margin_loss(logits, y).tolist() == [-3.0, 1.0]
    weights, x = torch.randn(6, 3).double(), torch.randn(2, 6).double()
    loss, slope = m.through(lambda z: z @ weights, y, m.cross_entropies)(x)
    step = 1e-6 * torch.randn_like(x)
    both = [m.cross_entropies((x + sign * step) @ weights, y) for sign in (1, -1)]
    assert torch.allclose(both[0] - both[1], 2 * (slope * step).sum(1), atol=1e-12)
    assert torch.allclose(loss, m.cross_entropies(x @ weights, y))


def a_purifier(n_steps=3, n_draws=4):
    energy = rough(m.AutoEncoderEnergy(1, 6, 8, 0.8), 0.4)
    classifier = nn.Sequential(nn.Linear(6, 10)).double()
    return m.Purifier(energy, classifier, 0.2, 0.05, n_steps, n_draws)


def test_the_full_gradient_passes_all_langevin_steps_and_bpda_passes_none():
    purifier, x, y = a_purifier(), torch.randn(3, 6).double(), torch.tensor([1, 5, 7])

    def seeded(f):
        def values(x):
            torch.manual_seed(7)
            return f(x)

        return values

    loss, slope = m.through(seeded(purifier), y, m.cross_entropies)(x)
    step = 1e-5 * torch.randn_like(x)
    both = [m.cross_entropies(seeded(purifier)(x + sign * step), y) for sign in (1, -1)]
    assert torch.allclose(both[0] - both[1], 2 * (slope * step).sum(1), rtol=1e-4)
    passed, bpda = m.through(seeded(purifier.as_identity), y, m.cross_entropies)(x)
    assert torch.allclose(passed, loss)
    torch.manual_seed(7)
    clean = purifier.clean(x).detach().requires_grad_(True)
    (at_clean,) = torch.autograd.grad(m.cross_entropies(purifier.logits_after(clean), y).sum(), clean)
    assert torch.allclose(bpda, at_clean.view(4, 3, 6).sum(0))
    assert not torch.allclose(bpda, slope, rtol=1e-2)


def test_purification_is_langevin_and_one_cleaning_step_averaged_over_draws():
    purifier = m.Purifier(Quadratic(2.0), nn.Linear(6, 10).double(), 0.3, 0.1, 2, 3)
    x = torch.randn(4, 6).double()
    torch.manual_seed(9)
    logits = purifier(x)
    torch.manual_seed(9)
    z = m.langevin(lambda z: 2 * z, x.repeat(3, 1)[None], 2, 0.1)[0] * (1 - 0.09 * 2)
    assert torch.allclose(logits, purifier.classifier(z).log_softmax(1).view(3, 4, 10).mean(0))


def test_the_worst_point_is_within_two_grey_levels_and_takes_the_larger_margin():
    torch.manual_seed(1)
    net, x, y = nn.Linear(64, 10), torch.rand(20, 64) * 2 - 1, torch.arange(20) % 10
    config = tiny(n_attack=8)
    point = m.worst_point(net, x, y, config)
    assert (point - x).abs().max() <= m.EPSILON + 1e-6
    assert point.abs().max() <= 1
    assert m.EPSILON == 2 / 8
    with torch.no_grad():
        margins = m.margin_loss(net(point), y)
        torch.manual_seed(1)
        for loss in (m.margin_loss, m.cross_entropies):
            other = m.attack(m.through(net, y, loss), x, m.EPSILON, "Linf", 8, 2, (-1, 1))
            assert (margins >= m.margin_loss(net(other), y) - 0.05).all()
    assert m.right(net, point, y).mean() < m.right(net, x, y).mean() + 1e-9


def test_a_point_whose_loss_was_high_by_luck_is_not_the_worst():
    """The winner's curse: a margin that is noisy on the way, and highest, without noise, where each ascent ends."""
    n, w = 200, torch.randn(64).sign()
    x, y, top = torch.rand(n, 64) - 0.5, torch.zeros(n, dtype=torch.long), 0.25 * 64

    def logits(z):
        margin = (z - x) @ w
        margin = margin + 14 * torch.randn(n) * (margin < 0.6 * top)
        return torch.stack([torch.zeros(n), margin], 1)

    def true_margin(point):
        return ((point - x) @ w).mean()

    lucky = m.attack(m.through(logits, y, m.margin_loss), x, m.EPSILON, "Linf", 20, 2, (-1, 1))
    assert true_margin(lucky) < 0.6 * top
    assert true_margin(m.worst_point(logits, x, y, tiny(n_attack=20))) > 0.85 * top


def test_attacks_that_are_one_by_construction_share_one_judgement(tmp_path, monkeypatch):
    net = nn.Linear(64, 10)
    purifier = m.Purifier(Quadratic(1.0), net, 0.2, 0.05, 2, 2)
    monkeypatch.setattr(m, "defences", lambda run: {"plain": net, "noise": nn.Linear(64, 10), "purified": purifier})
    found = m.measure_defences(a_run(tmp_path))
    assert found["plain"]["full gradient"] is found["plain"]["BPDA + EOT"] is found["plain"]["transfer"]
    assert found["noise"]["full gradient"] is found["noise"]["BPDA + EOT"] is not found["noise"]["transfer"]
    assert len({id(values) for values in found["purified"].values()}) == 4
    assert all(list(row) == list(m.ATTACKS) for row in found.values())


def test_adversarial_training_disturbs_upwards():
    net, x, y = nn.Linear(64, 10), torch.rand(30, 64) * 2 - 1, torch.arange(30) % 10
    disturbed = m.adversarial(net, x, y)
    assert (disturbed - x).abs().max() <= m.EPSILON + 1e-6
    assert (m.cross_entropies(net(disturbed), y) >= m.cross_entropies(net(x), y)).all()


def test_jems_energy_is_minus_logsumexp_and_low_on_data():
    jem = m.Jem(6, 8, 0.5)
    for p in jem.parameters():
        nn.init.normal_(p, std=0.4)
    x = torch.randn(5, 6)
    g = x - jem.body.error(x[None], jem.body.before(x[None]))[0]
    h = torch.nn.functional.silu(jem.body.before(x[None]))[0]
    logits = jem.head(h) - (x - g).square().sum(1, keepdim=True) / (2 * 0.25)
    assert torch.allclose(jem(x), logits, atol=1e-5)
    assert torch.allclose(jem.energy(x), -logits.exp().sum(1).log(), atol=1e-4)
    free = x.clone().requires_grad_(True)
    assert torch.allclose(jem.slope(x), torch.autograd.grad(jem.energy(free).sum(), free)[0], atol=1e-4)
    y = torch.arange(300) % 2
    data = torch.where(y[:, None] == 1, 0.8, -0.8) * torch.ones(2) + 0.1 * torch.randn(300, 2)
    jem = m.train_joint(data, y, tiny(width=32, batch_size=64, n_langevin=10, sigma=0.5, step_size=0.05, n_jem=200))
    assert (jem(data).argmax(1) == y).float().mean() > 0.95
    between = torch.tensor([[0.8, -0.8], [-0.8, 0.8]])
    assert jem.energy(data).mean() < jem.energy(between).mean() - 0.3


def test_the_order_of_attacks_is_judged_by_paired_errors():
    one, two = torch.tensor([1.0, 1, 1, 0, 1, 0]), torch.tensor([1.0, 1, 0, 0, 1, 0])
    good = {"a": {"none": one, "transfer": one, "BPDA + EOT": two, "full gradient": two}}
    assert m.out_of_order(good)[0] == 0
    bad = {"a": {"none": one, "transfer": two, "BPDA + EOT": two, "full gradient": one}}
    excess, allowed = m.out_of_order(bad)
    assert excess == pytest.approx(1 / 6)
    assert allowed == pytest.approx(m.tolerance(m.mean_and_sem(one - two)[1], 6, 2))  # two names of one attack
    assert m.worth(bad["a"]) == pytest.approx(0.5)
    some = {"b": {"none": one, "transfer": torch.zeros(6)}, "c": {"none": two, "transfer": one}, "d": {"none": one}}
    assert m.kept_most(some) == ["d", "c"]  # under each one's own strongest attack, pairwise


# 5. Composition


def test_the_product_of_mixtures_is_the_normalised_product_of_their_densities():
    p, q = random_mixture(2), random_mixture(3)
    axis = torch.arange(-12, 12, 0.06, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    log_product = m.mixture_log_density(p, points) + m.mixture_log_density(q, points)
    exact = log_product - log_product.logsumexp(0) - 2 * math.log(0.06)
    ours = m.mixture_log_density(m.product_of(p, q), points)
    near = exact > -20
    assert torch.allclose(ours[near], exact[near], atol=1e-6)


def test_the_mixtures_slope_is_minus_the_score():
    mixture, x = random_mixture(), torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(m.mixture_log_density(mixture, x).sum(), x)
    assert torch.allclose(m.mixture_slope(mixture, x.detach()), -score)


def test_cells_of_a_density_and_of_its_samples_agree():
    mixture = random_mixture()
    share, n = m.exact_cells(mixture), 50_000
    assert share.sum().item() == pytest.approx(1)
    counts = m.cells(m.draw_gaussians(mixture, n))
    assert counts.sum() == n
    spread = (share * (1 - share) * n).sqrt().clamp(min=1)
    assert ((counts - n * share).abs() < 5.5 * spread).all()
    assert m.cell_distance(torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8])) == pytest.approx(0.3)


@pytest.mark.parametrize("n_steps", [3, 40])
def test_a_chains_law_on_the_cells_is_the_normal_one_of_a_linear_chain(n_steps):
    step, precisions = 0.03, (1.5, 3.0)
    law = m.exact_chain_cells(lambda x: x * torch.tensor(precisions).double(), step, n_steps)
    edges, shares = np.linspace(-3, 3, 13), []
    for precision in precisions:
        variance = 1.0
        for _ in range(n_steps):
            variance = (1 - step / 2 * precision) ** 2 * variance + step
        shares.append(np.diff(normal.cdf(edges / variance**0.5)))
    exact = np.outer(*shares).flatten()
    assert law[:-1].numpy() == pytest.approx(exact, abs=1e-5)
    assert law.sum().item() == pytest.approx(1)
    axis = np.linspace(-3, 3, 13)  # the same cells as of points
    assert m.cells(torch.tensor([[axis[4] + 0.1, axis[9] + 0.1]]))[4 * 12 + 9] == 1


def test_a_rare_events_figure_shows_the_chains_exact_times(tmp_path):
    ones = {h: torch.tensor([1.0, 2.0]) for h in (1.0, 2.0)}
    rare = m.Rare(ones, {1.0: 1.6, 2.0: 1.7}, {1.0: 1.4, 2.0: 1.5}, {1.0: 1.1, 2.0: 1.2}, None, 0.5, 0.5)
    fig = m.draw_rare(rare)
    drawn = {line.get_label(): list(line.get_ydata()) for line in fig.axes[0].lines}
    plt.close(fig)
    assert drawn["exact, this chain"] == [1.6, 1.7]
    assert drawn["exact, continuous"] == [1.4, 1.5]
    assert drawn["Kramers, for high barriers"] == [1.1, 1.2]


def test_chains_on_the_sum_are_as_near_to_the_product_as_exact_samples(tmp_path):
    found = m.measure_and(a_run(tmp_path, n_repeats=5, n_points=1000))
    assert found.gap < 1e-9
    mean, sem = m.mean_and_sem(np.subtract(found.chains, found.exact_samples))
    assert abs(mean) < m.tolerance(sem, 5) + found.bias
    assert 0 < found.bias < 0.02
    assert min(found.first_alone) > max(found.chains)


def test_or_mixes_in_proportion_to_z_until_it_is_repaired():
    for narrow, wide in ((0.2, 1.0), (0.5, 0.3)):
        found = m.measure_or(narrow, wide)
        assert found.trap == pytest.approx(narrow / (narrow + wide), abs=1e-7)
        assert found.trap == pytest.approx(found.trap_exact, abs=1e-7)
        assert found.repaired == pytest.approx(0.5, abs=1e-7)
    assert m.log_z_by_quadrature(lambda x: x**2 / 8) == pytest.approx(math.log(2 * math.sqrt(2 * math.pi)))


def test_not_has_a_density_up_to_its_limit_and_the_chains_the_mean_square_of_theory(tmp_path):
    s1, s2 = 0.8, 1.7
    limit = m.theory_not_limit(s1, s2)
    assert 1 / s1**2 - limit / s2**2 == pytest.approx(0)
    for a in (0.9 * limit, limit, 1.1 * limit):
        variance = 0.7**2
        for _ in range(30):
            variance = (1 - 0.1 / 2 * (1 / s1**2 - a / s2**2)) ** 2 * variance + 0.1
        assert m.theory_not(a, s1, s2, 0.1, 30, 0.7) == pytest.approx(variance)
    stationary = 1 / s1**2 - 0.5 / s2**2
    assert m.theory_not(0.5, s1, s2, 0.1, 10_000, 1.0) == pytest.approx(1 / (stationary * (1 - 0.1 * stationary / 4)))
    measured, theory = m.measure_not(a_run(tmp_path, n_repeats=8, n_points=500))
    for a, values in measured.items():
        mean, sem = m.mean_and_sem(values)
        assert abs(mean - theory[a]) < m.tolerance(sem, 8, len(measured)), a
    assert theory[5.0] > 1000 * theory[3.0]


def test_attributes_are_measured_and_split_in_the_middle():
    x = torch.rand(90, 64) * 2 - 1
    assert torch.equal(m.boldness(x), x.mean(1))
    line = torch.full((8, 8), -1.0)
    line[:, 4] = 1
    leans = m.leaning(torch.cat([m.slanted(line.double().reshape(1, 64), shear) for shear in (-0.4, 0.4)]))
    assert leans[0] > 0.8
    assert leans[1] < -0.8
    ink = np.repeat(np.argwhere(np.ones((8, 8))), ((x[0].numpy() + 1) * 5000).astype(int), 0)
    assert m.leaning(x[:1]).item() == pytest.approx(np.corrcoef(ink.T)[0, 1], abs=1e-3)
    labels, clear = m.attributes_of(x, x), m.clear_attributes(x)
    assert labels.sum(1).tolist() == [45, 45]
    for i in range(2):
        assert [(clear[i] == k).sum().item() for k in (-1, 0, 1)] == pytest.approx([30, 30, 30], abs=2)
        assert torch.equal(clear[i][clear[i] >= 0], labels[i][clear[i] >= 0])


def test_requests_are_uniform_and_chance_is_what_ignoring_them_gives():
    labels = m.requests(400, torch.device("cpu"))
    assert torch.bincount(m.at_once(labels)).tolist() == [10] * 40
    assert m.at_once(torch.tensor([[3, 3], [1, 0], [0, 1]])).tolist() == [14, 13]
    assert m.without_example(labels, labels[:, (labels[0] > 1) | (labels[1] == 1)]) == pytest.approx(0.1)
    fixed = torch.tensor([[7], [1], [0]])
    for used in m.REQUESTS.values():
        share = (labels == fixed)[list(used)].all(0).double().mean().item()
        assert share == pytest.approx(m.theory_chance(used))


def test_the_fourth_energy_learns_from_every_image_by_its_side_of_the_medians(tmp_path, monkeypatch):
    kept, run = {}, a_run(tmp_path)
    monkeypatch.setattr(m, "train_energies", lambda x, labels, *_: kept.update(labels=labels))
    m.conditional_energies.cache_clear()
    m.conditional_energies(run)
    m.conditional_energies.cache_clear()
    x, y = m.images(run).x, m.images(run).y
    sides = [(f(x) > f(x).median()).long() for f in m.ATTRIBUTES]
    assert torch.equal(kept["labels"][3], 4 * y + 2 * sides[0] + sides[1])
    assert torch.equal(kept["labels"][0], y)
    assert torch.equal(kept["labels"][1:3], m.clear_attributes(x))


def test_energies_are_added_averaged_or_divided():
    energies, z = [Quadratic(a) for a in (1.0, 2.0, 4.0, 9.0)], torch.randn(5, 3)
    labels, whole = torch.zeros(3, 5, dtype=torch.int64), Quadratic(0.5)
    for used, way, factor in (
        ((0, 1), "sum", 3),
        ((0, 1, 2), "mean", 7 / 3),
        ((0, 1, 2), "divided", 6),
        ((0, 1, 2), "at once", 9),
    ):
        assert torch.allclose(m.composed_slope(energies, whole, labels, used, way)(z), factor * z)


@pytest.mark.parametrize(("way", "sharper", "finer"), [("sum", 3, 3), ("mean", 1, 1), ("divided", 1, 3), ("at once", 1, 1)])
def test_composed_images_have_the_spread_of_their_composition(way, sharper, finer, tmp_path, monkeypatch):
    """Three equal Gaussians under noise: their sum is thrice as precise, and so is its noise; the chain's step is finer."""
    v, noise, step = 0.3, 0.3, 0.3
    a = 1 / (v + noise**2)
    monkeypatch.setattr(m, "conditional_energies", lambda run: SimpleNamespace(one=lambda i: Quadratic(a)))
    monkeypatch.setattr(m, "digits_energy", lambda run: Quadratic(a))
    run = a_run(tmp_path, data_noise=noise, step_size=step, n_chain_steps=60)
    x = m.draw_composed(run, m.requests(400, run.device), (0, 1, 2), way).flatten()
    precision = sharper * a
    exact = (1 - noise**2 * a) ** 2 / (precision * (1 - step / finer * precision / 4))
    value, sem = m.mean_and_sem(x.square())
    assert abs(value - exact) < m.tolerance(sem, len(x), 4)


def test_success_asks_the_classifier_for_the_class_and_measures_the_rest(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    x = m.images(run).x[:50].float()
    monkeypatch.setattr(
        m, "independent_classifier", lambda run: (lambda z: nn.functional.one_hot(torch.full((len(z),), 3), 10), 1.0)
    )
    own = torch.cat([torch.full((1, 50), 3), m.attributes_of(x.double(), m.images(run).x)])
    assert m.succeeded(run, x, own, (0, 1, 2)).all()
    wrong = own.clone()
    wrong[2] = 1 - wrong[2]
    assert not m.succeeded(run, x, wrong, (0, 1, 2)).any()
    assert m.succeeded(run, x, wrong, (0, 1)).all()
    assert not m.succeeded(run, torch.full_like(x, math.nan), own + 1, (0,)).any()


# 6. Beyond images


def test_passage_time_and_committor_have_their_closed_forms_on_slopes():
    c, low = 1.3, -4.0
    exact = 2 / c * ((1 - 0.2) - math.exp(c * low) * (math.exp(-c * 0.2) - math.exp(-c)) / c)
    assert m.exact_passage_time(lambda x: -c * x, 0.2, 1.0) == pytest.approx(exact)
    assert m.exact_committor(lambda x: 0.0, 0.3, -1, 1) == pytest.approx(0.65)
    assert m.exact_committor(lambda x: x, 0.0, -1, 1) == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))


def test_kramers_is_the_curvatures_and_the_barrier_and_right_for_high_ones():
    energy, slope = m.quartic_wells(6.0)
    step = 1e-4
    curve = [(energy(x + step) + energy(x - step) - 2 * energy(x)) / step**2 for x in (-1.0, 0.0)]
    assert m.theory_kramers(6.0) == pytest.approx(
        4 * math.pi * math.exp(energy(0) - energy(-1)) / math.sqrt(-curve[0] * curve[1]), rel=1e-6
    )
    assert (energy(0.3 + step) - energy(0.3 - step)) / (2 * step) == pytest.approx(slope(0.3))
    off = [abs(m.theory_kramers(h) / m.exact_passage_time(m.quartic_wells(h)[0], -1.0, 1.0) - 1) for h in (3.0, 6.0, 12.0)]
    assert off[2] < off[1] < off[0]
    assert off[2] < 0.05


def test_the_chains_time_solves_its_equation_on_another_grid_and_tends_to_the_continuous_one():
    energy, slope = m.quartic_wells(1.5)
    grid = -3.5 + 4.5 * (np.arange(1500) + 0.5) / 1500  # midpoints
    kernel = normal.pdf(grid, (grid - 0.04 / 2 * slope(grid))[:, None], 0.2) * 4.5 / 1500
    tau = np.linalg.solve(np.eye(1500) - kernel, np.full(1500, 0.04))
    assert m.exact_chain_time(slope, 0.04, -1.0, 1.0) == pytest.approx(np.interp(-1.0, grid, tau), rel=2e-3)
    exact = m.exact_passage_time(energy, -1.0, 1.0)
    gaps = [abs(m.exact_chain_time(slope, e, -1.0, 1.0) - exact) for e in (0.01, 0.0006)]
    assert gaps[1] < 0.5 * gaps[0] < 0.006 * exact
    q = m.exact_committor(energy, 0.1, -1, 1)
    assert all(abs(m.exact_chain_committor(slope, e, 0.1, -1, 1) - q) < 0.002 for e in (0.04, 0.01, 0.0025))


def test_simulated_exits_are_the_chains(tmp_path):
    _, slope = m.quartic_wells(1.0)
    times, places = m.simulate_exit(slope, 3000, 0.05, 0.3, -1.0, 1.0, 5000)
    mean, sem = m.mean_and_sem((places >= 1).double())
    assert abs(mean - m.exact_chain_committor(slope, 0.05, 0.3, -1.0, 1.0)) < m.tolerance(sem, 3000)
    assert ((places >= 1) | (places <= -1)).all()
    times, _ = m.simulate_exit(slope, 3000, 0.05, -1.0, -math.inf, 1.0, 50_000)
    mean, sem = m.mean_and_sem(times)
    assert abs(mean - m.exact_chain_time(slope, 0.05, -1.0, 1.0)) < m.tolerance(sem, 3000)
    assert m.simulate_exit(slope, 3, 0.001, 0.0, -1.0, 1.0, 2)[0].isnan().all()


def test_all_three_free_energies_are_unbiased(tmp_path):
    found, exact, (ess, z) = m.measure_free_energy(a_run(tmp_path, n_repeats=10, n_points=1000))
    for name, values in found.items():
        mean, sem = m.mean_and_sem(values)
        assert abs(mean - exact) < m.tolerance(sem, 10, 3), name
    assert np.std(found["BAR"]) < np.std(found["reweighting"])
    assert (ess, z) == pytest.approx((1, 0.5))
    assert m.errors_in_words({"a": [1.0, 2.0], "b": [1.5, 1.5]}, 1.0) == "a 0.707, b 0.500"


def test_bar_solves_bennetts_equation_and_is_exact_for_shifted_gaussians():
    rng = np.random.default_rng(6)
    w0, w1 = rng.normal(1.5, 1, 400), rng.normal(0.5, 1, 400)
    f = m.bar_difference(w0, w1)
    assert (1 / (1 + np.exp(w0 - f))).sum() == pytest.approx((1 / (1 + np.exp(f - w1))).sum())
    assert f == pytest.approx(1.0, abs=0.2)  # W ~ N(ΔF ± 1/2, 1): ΔF = 1


def test_work_in_one_step_is_the_difference_of_energies_and_slow_driving_wastes_less():
    rng = np.random.default_rng(7)
    x = m.samples_of(m.well_between(0), 4000, rng)
    assert m.driven_work(x, 1, rng) == pytest.approx(m.well_between(1)(x) - m.well_between(0)(x))
    assert m.driven_work(x, 40, rng).mean() < m.driven_work(x, 1, rng).mean()
    exact = scipy.integrate.quad(lambda t: t**2 * math.exp(-m.well_between(0)(t)), -9, 9)[0]
    exact /= scipy.integrate.quad(lambda t: math.exp(-m.well_between(0)(t)), -9, 9)[0]
    mean, sem = m.mean_and_sem(torch.as_tensor(x**2))
    assert abs(mean - exact) < m.tolerance(sem, 4000)
    assert m.exact_ratio(lambda t: t**2 / 2, lambda t: t**2 / 8) == pytest.approx(2)
    assert m.effective_share(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6 / 3)


def test_the_least_change_is_what_a_general_optimiser_finds():
    rng = np.random.default_rng(8)
    p, c = rng.dirichlet(np.ones(5)), rng.standard_normal(5)
    k = 0.7 * (p @ c) + 0.3 * c.max()
    l, q = m.least_change(p, c, k)
    assert q @ c == pytest.approx(k)
    rules = [{"type": "eq", "fun": lambda q: q.sum() - 1}, {"type": "eq", "fun": lambda q: q @ c - k}]
    best = scipy.optimize.minimize(
        lambda q: (q * np.log(q / p)).sum(),
        p,
        constraints=rules,
        bounds=[(1e-9, 1)] * 5,
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert m.kl_divergence(q, p) == pytest.approx(best.fun, abs=1e-6)
    assert m.theory_price(p, c, k, l) == pytest.approx(m.kl_divergence(q, p))


def test_shifting_a_groups_odds_reaches_the_rate_at_the_formulas_price():
    p = np.random.default_rng(9).uniform(0.05, 0.9, 50)
    theta, q = m.shift_to_rate(p, 0.6)
    assert q.mean() == pytest.approx(0.6)
    assert q / (1 - q) == pytest.approx(np.exp(theta) * p / (1 - p))
    direct = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean()
    assert m.theory_shift_price(p, 0.6, theta) == pytest.approx(direct)


def test_fairness_is_fitted_on_other_patients_and_its_price_is_the_formulas(tmp_path, monkeypatch):
    shift, sizes = m.shift_to_rate, []
    monkeypatch.setattr(m, "shift_to_rate", lambda p, rate: sizes.append(len(p)) or shift(p, rate))
    fair = m.measure_fairness(a_run(tmp_path))
    assert len(sizes) == 22
    assert min(sizes) > 0.85 * 0.48 * len(fair.truth)  # nine tenths of a group, not one
    gaps = [abs(p[fair.group].mean() - p[~fair.group].mean()) for p in (fair.before, fair.after)]
    assert gaps[0] > 0.05 > 0.03 > gaps[1]
    assert fair.direct == pytest.approx(fair.price)
    assert fair.price > 0
    assert abs(fair.truth.mean() - 0.5) < 0.02
    drawn = np.random.default_rng(1).random((4000, len(fair.truth))) < fair.after
    right = (drawn == fair.truth).mean(1)  # of decisions of which as many are yes as the rates say
    mean, sem = m.mean_and_sem(right)
    assert abs(m.accuracy_of(fair.after, fair.truth).mean() - mean) < m.tolerance(sem, 4000)


def test_holes_are_filled_by_conditionals_neighbours_and_chains():
    mixture, x = random_mixture(2, 4), torch.randn(5, 4).double()
    seen = torch.rand(5, 4) > 0.4
    seen[0] = torch.tensor([True, True, False, True])
    filled = m.mixture_impute(mixture, x, seen)
    assert torch.equal(filled[seen], x[seen])
    assert filled[0, 2].item() == pytest.approx(m.given_seen(mixture, x[:1], seen[0]).mean().item())
    train = torch.randn(30, 4).double()
    filled = m.neighbour_impute(train, x, seen, 3)
    assert torch.equal(filled[seen], x[seen])
    nearest = ((train - x[0])[:, seen[0]] ** 2).sum(1).argsort()[:3]
    assert filled[0, 2].item() == pytest.approx(train[nearest, 2].mean().item())
    config = tiny(data_noise=0.2, step_size=0.05, n_chain_steps=100)
    x = torch.full((200, 4), 9.0).double()
    filled = m.energy_impute(Quadratic(2.0), x, torch.arange(4).expand(200, 4) > 0, config, torch.device("cpu"))
    assert torch.equal(filled[:, 1:], x[:, 1:])
    mean, sem = m.mean_and_sem(filled[:, 0])
    assert abs(mean) < m.tolerance(sem, 200)


def test_the_tables_parts_are_apart_and_measured_in_the_first_ones_units():
    x, held, x_test = m.load_table()
    assert (len(x), len(held), len(x_test)) == (319, 107, 143)
    assert x.mean(0).abs().max() < 1e-9
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-9
    assert held.mean(0).abs().max() > 1e-3


# What the sections say


def test_section_ood_holds_perfect_scores_beside_their_formulas(tmp_path, monkeypatch):
    told = m.Told(0.9, 0.8, 0.2, np.array([0.01, 0.02, 0.03]))
    found = {name: {"energy": told, "1-NN": told._replace(auroc=0.95), "KDE": told} for name in (*m.NEAR, "noise")}
    monkeypatch.setattr(m, "measure_scores", lambda run: (found, m.Chosen(0.3, 5)))
    run = noted("ood", tmp_path)
    entry = run.metrics["true energy, narrower: AUROC"]
    assert entry.against == ("exact", m.exact_energy_auroc_scaled(0.49, 64))
    assert entry.within == pytest.approx(m.tolerance(entry.sem, 3))
    assert run.metrics["a digit left out (brief): energy, AUROC"].against == ("best rival, 1-NN", 0.95)
    assert run.metrics["slanted hand: energy, FPR95"][:2] == (0.2, 0.03)
    assert "a digit left out (brief): 1-NN, between" in run.said[0]
    assert "on 0 of 4 sets, on 0 alone" in run.said[0]
    found["noise"]["energy"] = told._replace(auroc=0.99)
    assert "on 1 of 4 sets, on 1 alone" in m.told_sentence(found)
    found["noise"]["1-NN"] = told._replace(auroc=0.98)
    assert "on 1 of 4 sets, on 0 alone" in m.told_sentence(found)


def test_section_denoising_marks_the_winner_of_each_level_and_the_distance_to_the_ceiling(tmp_path, monkeypatch):
    run = Notes(tmp_path)
    x = m.images(run).x_test
    better = {s: {"noisy": x + s, "Wiener": x + 0.2, "energy": x + (0.1 if s < 0.5 else 0.3)} for s in m.LEVELS}
    for methods in better.values():
        methods |= {"energy, one chain": methods["energy"] + 0.1, "median": x + 0.4}
    ceiling = {
        "noisy": 1.0,
        "Wiener": 0.2,
        "energy": 0.4,
        "energy, one chain": 0.5,
        "the best possible": 0.1,
        "its sample": 0.2,
    }
    monkeypatch.setattr(m, "measure_denoising", lambda run: (better, {}))
    monkeypatch.setattr(
        m, "measure_ceiling", lambda run: {name: v * torch.linspace(0.9, 1.1, 50).double() for name, v in ceiling.items()}
    )
    m.section_denoising(run)
    assert run.metrics["2-D: mean of K = 4 samples"].against[1] == pytest.approx(1.25 * m.exact_two_bumps_mmse(2, 0.6))
    assert run.metrics["noise 0.3: energy (dB)"].against == ("best rival, Wiener", pytest.approx(m.decibels(0.04)))
    assert run.metrics["known digits: energy, dB below"].value == pytest.approx(10 * math.log10(4))
    assert run.metrics["known digits: its sample, dB below"].against[1] == pytest.approx(10 * math.log10(2))
    assert run.metrics["known digits: its sample, dB below"].within is not None
    assert "0.3: energy, 0.6: Wiener, 1.0: Wiener" in run.said[0]
    assert "Wiener comes nearest, 3.01 dB below it, and the energy is 6.02 dB below" in run.said[0]


def test_section_robustness_holds_attacks_beside_the_formula_and_says_who_keeps_most(tmp_path, monkeypatch):
    def row(*accuracies):
        return {kind: (torch.arange(100) < 100 * a).double() for kind, a in zip(m.ATTACKS, accuracies, strict=True)}

    table = {"plain": row(0.9, 0.3, 0.3, 0.3), "adversarial": row(0.9, 0.8, 0.6, 0.6), "purified": row(0.95, 0.9, 0.8, 0.5)}
    monkeypatch.setattr(m, "measure_defences", lambda run: table)
    run = noted("robustness", tmp_path)
    entry = run.metrics["two Gaussians, Linf 0.1: accuracy"]
    assert entry.against[0] == "exact"
    assert entry.within == pytest.approx(m.tolerance(entry.sem, 3))
    assert run.metrics["order of the attacks broken by"].within == 0
    assert run.said[0].startswith("most is kept by adversarial, 0.60; purification 0.80 under BPDA + EOT and 0.50")
    assert "takes back" in run.said[0]


def test_sections_inpainting_composition_and_beyond_record_claims_beside_exact_values(tmp_path, monkeypatch):
    run = noted("inpainting", tmp_path)
    assert run.metrics["noise drawn each step: coverage"].against == (
        "exact",
        m.exact_redrawn_coverage(m.TWO_PIXELS, 0.4, 0.04),
    )
    assert run.metrics["centre: energy, coverage"].against == ("promised", pytest.approx(0.9))
    assert "?" in m.section_inpainting.__doc__  # a question: coverage on digits is measured, not judged
    monkeypatch.setattr(
        m, "measure_and", lambda run: m.And(0.0, [0.2, 0.3, 0.7], [0.1, 0.4, 0.5], [0.9] * 3, 0.01, torch.ones(3, 2))
    )
    run = noted("composition", tmp_path)
    entry = run.metrics["AND: total variation, chains"]
    assert entry.against == ("exact samples", pytest.approx(1 / 3))
    assert entry.within == pytest.approx(m.tolerance(np.std([0.1, -0.1, 0.2], ddof=1) / 3**0.5, 3) + 0.01)
    assert run.metrics["NOT, a = 5: mean of x^2"].against == ("theory", pytest.approx(m.theory_not(5, 1, 2, 0.1, 400, 1)))
    assert run.metrics["class, bold, sum: success"].against == ("chance", pytest.approx(0.05))
    run = noted("beyond", tmp_path, n_points=60)
    exact = m.exact_chain_time(m.quartic_wells(2.0)[1], 0.01, -1.0, 1.0)
    assert run.metrics["barrier 2: time to cross"].against == ("exact, this chain", pytest.approx(exact))
    ratio = m.exact_ratio(m.well_between(0), m.well_between(1))
    assert run.metrics["two wells, BAR: Z1/Z0"].against == ("quadrature", pytest.approx(ratio))
