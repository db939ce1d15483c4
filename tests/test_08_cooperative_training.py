"""Module 08: every closed form against autograd, enumeration, another solver or a simulation; every training against what it
must hand to whom; every section against what it must compare with."""

import math
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.optimize
import torch
from conftest import load
from sklearn.metrics import roc_auc_score
from torch import nn

m = load("08")

Entry = namedtuple("Entry", "value sem against within")


class Notes:
    """Stands in for a Run: keeps what a section records, says and draws."""

    def __init__(self, **settings):
        self.config, self.seed, self.device = replace(m.Config(), **(m.SMOKE | settings)), 0, torch.device("cpu")
        self.metrics, self.said, self.titles = {}, [], {}

    def metric(self, name, value, sem=None, against=None, within=None):
        assert name not in self.metrics
        assert len(name) <= 44
        self.metrics[name] = Entry(float(value), sem, against, within)

    def say(self, sentence):
        assert sentence.isascii()
        self.said.append(sentence)

    def figure(self, fig, name):
        self.titles[name] = [ax.get_title() for ax in fig.axes]
        plt.close(fig)


def rough(net, std=0.4):
    """The same network with all its weights random: some begin at 0."""
    for p in net.parameters():
        nn.init.normal_(p, std=std)
    return net


def numerical_slope(f, x, h=1e-5):
    """Central differences of f (B, d) -> (B,) at x (B, d) in float64."""
    columns = [(f(x + h * e) - f(x - h * e)) / (2 * h) for e in torch.eye(x.shape[1]).to(x)]
    return torch.stack(columns, 1)


# 0. What all sections use


def test_networks_side_by_side_are_the_same_networks_apart():
    together, x = rough(m.Net((3, 5, 5, 2), (2,))), torch.randn(2, 7, 3)
    for i in range(2):
        alone = m.Net((3, 5, 5, 2))
        with torch.no_grad():
            for mine, theirs in zip([*alone.weights, *alone.biases], [*together.weights, *together.biases], strict=True):
                mine.copy_(theirs[i])
            alone.shift.copy_(together.shift[i])
        torch.testing.assert_close(alone(x[i]), together(x)[i])


def test_a_cluster_shifts_its_own_examples_only():
    net, x = rough(m.Net((3, 5, 2), n_clusters=3)), torch.randn(4, 3)
    before = net(x, torch.tensor([0, 1, 2, 1]))
    with torch.no_grad():
        net.shift[1] += 1
    moved = (net(x, torch.tensor([0, 1, 2, 1])) - before).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, True]


def test_langevin_has_the_stationary_variance_of_its_step_and_temperature_1():
    eps = 0.4
    x = m.langevin(lambda x: x, torch.randn(200_000).double(), 40, eps)
    assert x.var().item() == pytest.approx(m.theory_stationary_variance(eps), rel=0.015)
    assert m.theory_stationary_variance(eps) == pytest.approx(eps / (1 - (1 - eps / 2) ** 2))
    start = torch.full((200_000,), 3.0).double()
    assert m.langevin(lambda x: x, start, 2, eps).mean().item() == pytest.approx(3 * (1 - eps / 2) ** 2, abs=0.01)


def test_a_slope_is_finite_differences_and_leaves_the_weights_alone():
    net, x = rough(m.Net((3, 5, 1))).double(), torch.randn(4, 3).double()
    f = lambda x: net(x)[..., 0].square()  # noqa: E731
    torch.testing.assert_close(m.slope_of(f)(x), numerical_slope(f, x), atol=1e-7, rtol=1e-6)
    assert all(p.grad is None for p in net.parameters())


def test_descent_goes_down_at_a_falling_rate_and_keeps_an_average():
    net = m.Net((1, 2, 1))
    descent, rates = m.Descent([net], 0.1, 4), []
    for _ in range(4):
        start = net.biases[1].item()
        descent.down(net.biases[1].sum())
        rates.append(start - net.biases[1].item())
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025], rel=1e-3)
    average, b = 0.0, 0.0
    for step, rate in enumerate(rates, 1):
        b -= rate
        average += (b - average) * (1 - min(0.999, step / (10 + step)))
    assert descent.average[0].biases[1].item() == pytest.approx(average, rel=1e-3)


def test_the_rate_of_descent_rises_over_its_warm_up():
    net, starts = m.Net((1, 2, 1)), []
    descent = m.Descent([net], 0.1, 8, warm_up=4)
    for _ in range(8):
        starts.append(net.biases[1].item())
        descent.down(net.biases[1].sum())
    rates = -np.diff([*starts, net.biases[1].item()])
    assert rates == pytest.approx([0.1 * min(1, (i + 1) / 4) * (1 - i / 8) for i in range(8)], rel=1e-3)


def test_a_loss_that_is_not_finite_is_a_divergence_and_touches_no_weight():
    net = rough(m.Net((1, 2, 1)))
    before = [p.clone() for p in net.parameters()]
    descent = m.Descent([net], 0.1, 4)
    with pytest.raises(m.Diverged, match="diverged at update 1"):
        descent.down(net(torch.full((1, 1), math.inf)).sum())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


# 1. CoopNets in closed form


def test_the_theory_of_three_lessons_is_the_closed_forms():
    w, s, k, eps, rounds = 1.7, 0.4, 7, 0.2, 9
    rho, v = 1 - eps / 2, 1 / (1 - eps / 4)
    settings = {"w": w, "s": s, "n_steps": k, "step_size": eps}
    own = m.theory_cooperation("own z", rounds, **settings)
    assert own == pytest.approx([w * rho ** (k * r) for r in range(rounds + 1)])
    likely = m.theory_cooperation("likelihood", rounds, **settings)
    start = w**2 + s**2
    assert likely**2 + s**2 == pytest.approx([v + rho ** (2 * k * r) * (start - v) for r in range(rounds + 1)])
    inferred = m.theory_cooperation("inferred z", 400, **settings)
    assert inferred[-1] ** 2 == pytest.approx(v - s**2)


@pytest.mark.parametrize("lesson", m.LESSONS)
def test_a_lesson_by_samples_follows_its_theory(lesson):
    settings = {"w": 1.5, "s": 0.6, "n_steps": 4, "step_size": 0.3}
    path = m.cooperate(m.LESSONS[lesson], 3, n_repeats=40, n=20_000, **settings)
    theory = m.theory_cooperation(lesson, 3, **settings)
    assert path.shape == (4, 40)
    for measured, exact in zip(path, theory, strict=True):
        mean, sem = m.mean_and_sem(measured)
        assert abs(mean - exact) <= 5 * sem + 1e-12
        assert sem < 0.004


def test_inferred_z_is_a_draw_from_the_posterior():
    """One EM round by quadrature over z, where the data's variance is not the model's."""
    w, s, variance = 0.8, 0.5, 2.3
    z, x = torch.linspace(-8, 8, 801).double(), torch.linspace(-12, 12, 801).double()
    joint = (-(z**2) / 2 - (x[:, None] - w * z) ** 2 / (2 * s**2)).softmax(1)  # p(z | x) in each row
    p = (-(x**2) / (2 * variance)).softmax(0)[:, None] * joint
    exact = (p * x[:, None] * z).sum() / (p * z**2).sum()
    data = variance**0.5 * torch.randn(20, 100_000).double()
    mean, sem = m.mean_and_sem(m.inferred_z(data, None, torch.full((20, 1), w).double(), s)[:, 0])
    assert abs(mean - exact.item()) < 5 * sem
    assert sem < 0.002


def test_posterior_draws_have_the_posteriors_mean_and_variance():
    a, s, x = 1.3, 0.5, torch.tensor([[0.7]]).expand(20_000, 1)
    linear = type("Linear", (), {"weights": [torch.zeros(1, 1)], "__call__": lambda self, z: a * z})()
    z = torch.cat([m.posterior_draws(linear, x[:1000], s) for _ in range(20)])
    v = a**2 + s**2
    assert z.mean().item() == pytest.approx(a * 0.7 / v, abs=0.03)
    assert z.var().item() == pytest.approx(s**2 / v, abs=0.02)


def test_log_likelihoods_are_those_of_a_gaussian():
    x, centres = torch.randn(3, 2).double(), torch.randn(4, 2).double()
    normal = torch.distributions.MultivariateNormal(torch.zeros(2).double(), 0.49 * torch.eye(2).double())
    torch.testing.assert_close(m.log_likelihoods(x, centres, 0.7), normal.log_prob(x[:, None] - centres))


def test_the_kl_on_the_grid_is_that_of_two_gaussians():
    s, t = 0.6, 0.9
    at_centre = lambda z: torch.tensor([0.3, 0.0]).expand(len(z), 2)  # noqa: E731
    kl, q = m.kl_to_energy(at_centre, lambda x: x.square().sum(1) / (2 * t**2), s, n=160, n_bank=10)
    assert kl == pytest.approx(2 * math.log(t / s) + s**2 / t**2 - 1 + 0.09 / (2 * t**2), abs=1e-4)
    assert q.sum().item() * (8 / 160) ** 2 == pytest.approx(1)


def test_the_rings_energy_is_a_gaussian_in_the_radius():
    x = torch.tensor([[2.0, 0.0], [0.0, -2.3], [0.6, 0.8]])
    assert m.ring_energy(x).tolist() == pytest.approx([0, 0.5, 1 / 0.18])


@pytest.mark.parametrize("infers", [True, False])
def test_a_generator_on_the_ring_is_taught_by_its_own_or_by_inferred_z(infers, monkeypatch):
    """The generator learns from z as it should, and the chains begin at the generator's noisy samples."""
    asked, starts, seen = [], [], []
    monkeypatch.setattr(m, "posterior_draws", lambda g, x, s: asked.append((x, s)) or torch.zeros(len(x), 2))
    monkeypatch.setattr(m, "langevin", lambda slope, x, n, eps: starts.append((slope(x), x, n, eps)) or x + 5)
    forward = m.Net.forward
    monkeypatch.setattr(m.Net, "forward", lambda self, z, c=None: seen.append(z) or forward(self, z, c))
    m.train_on_ring(infers, 1, s=0.1)
    slope, x, n, eps = starts[0]
    torch.testing.assert_close(slope, m.slope_of(m.ring_energy)(x), atol=1e-4, rtol=1e-4)
    assert (n, eps) == (20, 0.02)
    assert bool((seen[1] == 0).all()) == infers
    assert infers or torch.equal(seen[0], seen[1])
    assert not infers or (torch.equal(asked[0][0], x + 5) and asked[0][1] == 0.1)


# 2. CoopNets on digits


def test_digits_span_minus_one_to_one_and_validation_images_come_from_the_training_set():
    digits = m.digits_of(Notes())
    assert (len(digits.x), len(digits.x_test), digits.x.min(), digits.x.max()) == (1437, 360, -1, 1)
    inner = m.digits_of(Notes(split="validation"))
    assert (len(inner.x), len(inner.x_test)) == (1077, 360)
    assert torch.cdist(torch.cat([inner.x, inner.x_test]), digits.x).amin(1).max() == 0


def some_clusters(n=50):
    """Two far clusters, 30 and 70 in a hundred."""
    x = torch.cat([torch.randn(3 * n, 4) - 9, torch.randn(7 * n, 4) + 9])
    return m.Clusters(x[torch.randperm(len(x))], 2, 0)


def test_clusters_are_drawn_by_their_share_and_data_come_from_them():
    clusters = some_clusters()
    low = clusters.data(torch.arange(2)).mean(1).argmin().item()
    c = clusters.draw(100)
    assert (c == low).sum().item() in (29, 30, 31)
    assert not torch.equal(c, c.sort().values)
    assert torch.equal(clusters.data(c).mean(1) < 0, c == low)
    assert len(clusters.data(torch.full((2000,), low)).unique(dim=0)) > 140  # of 150


def test_the_variance_within_clusters_is_that_about_each_clusters_mean():
    c = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    x = torch.randn(7, 3).double()
    parts = [x[c == k] for k in (0, 2)]
    by_hand = sum((len(part) - 1) * np.cov(part.numpy().T) for part in parts) / 5
    assert m.within(x, c).numpy() == pytest.approx(by_hand)


def energies(n_clusters=3):
    plain = rough(m.AutoEncoderEnergy(5, 8, 0.7, n_clusters)).double()
    head = rough(m.AutoEncoderEnergy(5, 8, 0.7, n_classes=4)).double()
    return [(plain, torch.tensor([0, 2, 1, 1])), (plain, None), (head, None)]


def test_the_energy_is_the_error_over_two_sigma_squared_and_its_slope_by_hand_is_autograds():
    x = torch.randn(4, 5).double()
    for energy, c in energies():
        torch.testing.assert_close(energy.slope(x, c), m.slope_of(lambda x, e=energy, c=c: e(x, c))(x))
    energy, c = energies()[0]
    g = torch.nn.functional.silu(x @ energy.w1 + energy.b1[c]) @ energy.w2 + energy.b2
    torch.testing.assert_close(energy(x, c), (x - g).square().sum(1) / (2 * 0.49))


def test_logits_are_class_scores_minus_the_error_and_minus_their_logsumexp_is_the_energy():
    energy, x = energies()[2][0], torch.randn(4, 5).double()
    error = energy.error(x, energy.hidden(x, None))
    torch.testing.assert_close(energy.logits(x), energy.class_scores(x) - error[:, None])
    torch.testing.assert_close(energy(x), error - energy.class_scores(x).logsumexp(1))
    torch.testing.assert_close(energy.logits(x).softmax(1), energy.class_scores(x).softmax(1))


def test_the_loss_lowers_the_energy_of_data_and_raises_that_of_samples():
    energy = lambda x, c: (x * c).sum(1)  # noqa: E731
    x_data, x_model, c = torch.ones(2, 3), torch.full((2, 3), -2.0), torch.full((2, 1), 0.5).requires_grad_()
    loss = m.phases_loss(energy, x_data, x_model, c)
    assert loss.item() == pytest.approx(1.5 + 3 + 1e-5 * (1.5**2 + 3**2))
    with pytest.raises(m.Diverged, match="energies"):
        m.phases_loss(energy, x_data, 1e4 * x_model, c)
    with pytest.raises(m.Diverged):
        m.phases_loss(energy, x_data * math.nan, x_model, c)


def linear_generator(A, s, covariance=None):
    """A Generator whose mean is A z and whose reader is the exact posterior (independent z)."""
    generator = m.Generator(len(A), 1, s, A.shape[1], 4)
    del generator.mean, generator.reader
    generator.mean = lambda z, c: z @ A.T
    generator.read = lambda x, c: m.gaussian_reader(A, s, x)
    return generator


def test_minus_the_lower_bound_is_minus_log_q_where_the_reader_is_the_posterior():
    A, s = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 0.0]]).double(), 0.6  # orthogonal columns: z independent given x
    x = torch.randn(3, 3).double()
    generator = linear_generator(A, s)
    bound = torch.stack([generator.minus_bound(x, None) for _ in range(20_000)]).mean(0)
    q = torch.distributions.MultivariateNormal(torch.zeros(3).double(), A @ A.T + s**2 * torch.eye(3).double())
    torch.testing.assert_close(bound + 1.5 * math.log(2 * math.pi * s**2), -q.log_prob(x), atol=0.05, rtol=0)


def test_a_generator_draws_its_mean_and_noise():
    A = torch.tensor([[2.0], [0.0]]).double()
    x = linear_generator(A, 0.3).draw(torch.ones(50_000, 1).double(), None)
    assert x.mean(0).tolist() == pytest.approx([2, 0], abs=0.01)
    assert x.std(0).tolist() == pytest.approx([0.3, 0.3], abs=0.01)


@pytest.mark.parametrize(("infers", "from_noise"), [(True, True), (True, False), (False, False), (False, True)])
def test_coopnets_hand_the_generators_samples_to_the_energy_and_the_revised_ones_to_both(infers, from_noise, monkeypatch):
    config, calls, clusters = Notes().config, [], some_clusters()
    zs, lessons, phases, kept = [], [], [], []
    draw = m.Generator.draw
    monkeypatch.setattr(m.Generator, "draw", lambda self, z, c: zs.append((z, c, draw(self, z, c))) or zs[-1][2])
    monkeypatch.setattr(m, "langevin", lambda slope, x, n, eps: calls.append((x, n, eps, slope)) or x + 1)
    misfit, bound = m.Generator.misfit, m.Generator.minus_bound
    monkeypatch.setattr(m.Generator, "misfit", lambda self, x, z, c: lessons.append((x, z, c)) or misfit(self, x, z, c))
    monkeypatch.setattr(m.Generator, "minus_bound", lambda self, x, c: lessons.append((x, None, c)) or bound(self, x, c))
    monkeypatch.setattr(m, "phases_loss", lambda e, a, b, c: phases.append((a, b, c)) or e(b, c).mean())
    monkeypatch.setattr(m.Chains, "next", lambda self, n: (torch.full((n, 4), 7.0), torch.ones(n, dtype=torch.long)))
    monkeypatch.setattr(m.Chains, "keep", lambda self, x: kept.append(x))
    coop = m.train_coopnets(clusters, config, 1, infers, from_noise)
    (x, n, eps, slope), (z, c_born, born), (x_data, x_model, c) = calls[0], zs[0], phases[0]
    n_born = config.n_pairs
    assert not x.requires_grad
    assert (n, eps) == (config.n_langevin, config.step_size)
    assert slope.keywords["c"] is c
    assert torch.equal(x[:n_born], born)
    assert torch.equal(c[:n_born], c_born)
    assert len(x) == (2 * n_born if from_noise else n_born)
    assert (x[n_born:] == 7).all()
    assert (c[n_born:] == 1).all()
    assert [len(part) for part in kept] == ([n_born] if from_noise else [])
    assert all((part == 8).all() for part in kept)
    assert torch.equal(x_model, x + 1)
    assert torch.equal(lessons[0][0], x + 1 if infers else born + 1)
    assert torch.equal(lessons[0][2], c if infers else c_born)
    assert (lessons[0][1] is None) == infers
    assert infers or lessons[0][1] is z
    low = clusters.data(torch.arange(2)).mean(1).argmin().item()
    assert torch.equal(x_data.mean(1) < 0, c == low)
    assert 0.1 < torch.cdist(x_data, clusters.x).amin(1).mean() < 0.6  # noise, 0.2 in each of four directions
    assert coop.generator.s == m.DATA_NOISE


def test_the_frechet_distance_is_that_of_two_gaussians():
    a = np.random.default_rng(0).normal(size=(200_000, 2)) * [1.0, 2.0]
    b = np.random.default_rng(1).normal(size=(200_000, 2)) * [1.5, 0.5] + [1.0, 0.0]
    assert m.frechet_distance(a, b) == pytest.approx(1 + 0.25 + 2.25, abs=0.06)


def test_an_svm_cannot_tell_images_by_fractions_of_grey():
    greys = m.in_greys(torch.tensor([[-3.0, -0.99, 0.06, 0.07, 2.0]]))
    assert greys.tolist() == [[-1, -1, 0, 0.125, 1]]
    digits = m.digits_of(Notes())
    half = len(digits.x) // 2
    blurred = digits.x[half:] + 0.05 * (torch.rand(len(digits.x) - half, 64) - 0.5)
    told, _ = m.two_sample_accuracy(blurred[:300], digits.x[:300])
    assert told < 0.6
    assert m.two_sample_accuracy(-digits.x[:300], digits.x[:300])[0] > 0.95


def test_class_entropy_is_1_for_even_classes_and_0_for_one():
    assert m.class_entropy(torch.arange(10).repeat(3)) == pytest.approx(1)
    assert m.class_entropy(torch.zeros(9, dtype=torch.long)) == 0
    assert m.class_entropy(torch.arange(20) % 2) == pytest.approx(math.log10(2))


def test_scores_of_copies_and_of_lost_images():
    run = Notes()
    digits = m.digits_of(run)
    scores = m.score_images(run, digits.x[:100])
    assert scores.nearest == 0
    assert scores.copies == 1
    assert m.score_images(run, digits.x_test).copies == pytest.approx(0.01, abs=0.006)
    assert m.score_images(run, digits.x_test).frechet == pytest.approx(0, abs=1e-6)
    with pytest.raises(m.Diverged, match="sampling diverged"):
        m.score_images(run, digits.x[:100] * 2000)


class Quadratic(nn.Module):
    """E = a|x - c|²/2 for clusters c, which are positions."""

    def __init__(self, a, d=4):
        super().__init__()
        self.a, self.w1 = a, torch.zeros(d, 1)

    def forward(self, x, c=None):
        return self.a * (x if c is None else x - c[:, None]).square().sum(1) / 2

    def slope(self, x, c=None):
        return self.a * (x if c is None else x - c[:, None])


def test_chains_in_parts_keep_their_clusters_and_images_are_cleaned_by_tweedie():
    c = torch.arange(600) % 2 * 6.0
    x = m.run_chains(Quadratic(20.0), torch.zeros(600, 4), c, 100, 0.01)
    assert (x - c[:, None]).mean().item() == pytest.approx(0, abs=0.03)
    clean = m.clean_mean(Quadratic(20.0), x, c)
    torch.testing.assert_close(clean, x - 0.2**2 * 20 * (x - c[:, None]))
    assert m.run_chains(Quadratic(1.0), torch.zeros(3, 4), None, 1, 0.01).shape == (3, 4)


def test_samples_of_coopnets_are_means_or_revised_and_cleaned(monkeypatch):
    config, clusters = Notes().config, some_clusters()
    coop = m.Coop(Quadratic(1.0), m.Generator(4, 2, 0.3))
    monkeypatch.setattr(m, "run_chains", lambda energy, x, c, n, eps: x + n)
    monkeypatch.setattr(m, "clean_mean", lambda energy, x, c: x * 100)
    monkeypatch.setattr(m.Generator, "draw", lambda self, z, c: torch.ones(len(z), 4))
    monkeypatch.setattr(m.Net, "forward", lambda self, z, c=None: torch.zeros(len(z), 4))
    assert (m.draw_coopnets(coop, clusters, config, 5, 0) == 0).all()
    assert (m.draw_coopnets(coop, clusters, config, 5, 3) == 400).all()


def test_the_way_from_noise_is_one_chain_with_marks_and_inf_where_it_is_lost(monkeypatch):
    run, steps = Notes(), []
    monkeypatch.setattr(m, "run_chains", lambda energy, x, c, n, eps: steps.append(n) or x * (1 if n < 50 else 1e9))
    monkeypatch.setattr(m, "clean_mean", lambda energy, x, c: x)
    monkeypatch.setattr(m, "frechet_to_test", lambda run, x: x.std().item())
    found = m.frechet_from_noise(run, Quadratic(1.0, 64), (10, 30, 100))
    assert steps == [10, 20, 70]
    assert list(found) == [10, 30, 100]
    assert found[10] == pytest.approx(1, abs=0.1)
    assert found[100] == math.inf


def test_the_variance_kept_is_the_generators_share_within_clusters():
    clusters = some_clusters(400)
    generator = SimpleNamespace(prior=lambda n: torch.randn(n, 4), mean=lambda z, c: 0.5 * z + 100.0 * c[:, None])
    share = m.variance_kept(generator, clusters, 20_000)
    assert share == pytest.approx(0.25 * 4 / m.within(clusters.x, clusters.y).trace().item(), rel=0.05)


def test_a_linear_generator_keeps_what_the_likelihood_leaves_it():
    """Against maximum likelihood by an optimiser: log N(x; 0, W Wᵀ + s²) for images with noise, W (4, 2)."""
    root, s, noise = torch.randn(4, 4).double(), 0.5, 0.3
    covariance = root @ root.T / 4
    noisy = covariance + noise**2 * torch.eye(4).double()
    W = torch.randn(4, 2).double().requires_grad_()
    optimiser = torch.optim.LBFGS([W], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        q = W @ W.T + s**2 * torch.eye(4).double()
        loss = (torch.logdet(q) + torch.linalg.solve(q, noisy).trace()) / 2
        loss.backward()
        return loss

    optimiser.step(closure)
    share = (W @ W.T).trace().item() / covariance.trace().item()
    assert m.exact_linear_share(covariance, 2, s, noise) == pytest.approx(share, rel=1e-3)
    assert m.exact_linear_share(covariance, 4, noise, noise) == pytest.approx(1)


def test_an_energy_that_diverged_is_lost_from_noise(monkeypatch):
    def diverge(clusters, config, n_updates, **options):
        assert (n_updates, options) == (3, {"from_noise": False})
        raise m.Diverged("lost")

    monkeypatch.setattr(m, "clusters_of", lambda run: None)
    monkeypatch.setattr(m, "train_coopnets", diverge)
    assert m.try_coopnets(Notes(), 3, from_noise=False) is None
    assert m.from_noise_or_lost(Notes(), None) == dict.fromkeys(m.NOISE_MARKS, math.inf)
    assert "is lost: it diverged" in m.coop_sentences(planted_coopnets(lost=(math.inf,) * 7))[1]
    monkeypatch.setattr(m, "frechet_from_noise", lambda run, energy, marks: (energy, marks))
    assert m.from_noise_or_lost(Notes(), m.Coop("energy", None)) == ("energy", m.NOISE_MARKS)


def test_lessons_and_their_control_are_trained_on_the_same_terms(monkeypatch):
    """The mistakes: one lesson learns from more chains than the other, or a control that is trained longer."""
    made = []

    def train(clusters, config, n_updates, infers=True, from_noise=True):
        made.append((n_updates, infers, from_noise))
        return m.Coop(m.AutoEncoderEnergy(64, 4, 0.2, 3), m.Generator(64, 3))

    run = Notes(n_cooperation=8, n_samples=40, n_clusters=3, n_langevin=2)
    run.seed, run.device = 0, torch.device("cpu")
    monkeypatch.setattr(m, "train_coopnets", train)
    monkeypatch.setattr(m, "clusters_of", lambda run: m.Clusters(torch.randn(60, 64), 3, 0))
    monkeypatch.setattr(m, "frechet_to_test", lambda run, x: 1.0)
    monkeypatch.setattr(m, "score_images", lambda run, x: planted_scores(1.0))
    monkeypatch.setattr(m, "real_floor", lambda run: 0.1)
    found = m.measure_coopnets(run)
    assert made == [(8, True, True), (2, False, False), (2, True, False), (2, True, True)]
    assert set(found.kept) == {"own z", "inferred z", "trained long"}
    assert list(found.untrained) == [2, 6]


def test_the_untrained_start_has_the_clusters_means_and_the_covariance_within_them(monkeypatch):
    x = torch.randn(6000, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.7]])
    clusters = m.Clusters(x, 2, 0)
    run, seen = Notes(n_samples=20_000, step_size=0.01), []
    monkeypatch.setattr(m, "clusters_of", lambda run: clusters)
    monkeypatch.setattr(m, "run_chains", lambda energy, x, c, n, step: seen.append((x, c, n)) or x)
    monkeypatch.setattr(m, "clean_mean", lambda energy, x, c: x)
    monkeypatch.setattr(m, "frechet_to_test", lambda run, x: 0.7)
    assert m.from_cluster_gaussians(run, "energy", 5) == 0.7
    ((start, c, n),) = seen
    assert n == 5
    for k in range(2):
        assert torch.allclose(start[c == k].mean(0), x[clusters.y == k].mean(0), atol=0.05)
    wanted = m.within(x, clusters.y) + m.DATA_NOISE**2 * torch.eye(3)
    assert torch.allclose(m.within(start, c), wanted, atol=0.05)


def test_repeats_of_an_ebgan_do_not_see_each_other():
    """The mistakes: a parameter that all copies share, and one norm over all by which long gradients are shortened."""

    def first(scale):
        torch.manual_seed(0)
        critic, generator = m.Critic(2, 3, 8, copies=(2,)), m.Net((2, 8, 2), (2,))
        data = torch.tensor([1.0, scale])[:, None, None] * torch.randn(2, 16, 2)
        trained = m.train_ebgan(lambda shape: (data, None), critic, generator, 1.0, 1.0, 30, batch=16)
        return trained(torch.ones(2, 1, 2))[0]

    assert torch.allclose(first(1.0), first(0.1), atol=1e-5)


def test_langevin_steps_end_a_little_wider_than_the_modes():
    v, s2, step = m.SPREAD**2, m.SPREAD**2, 0.02
    for _ in range(500):
        v = (1 - step / (2 * s2)) ** 2 * v + step
    assert m.theory_near(step) == pytest.approx(1 - math.exp(-9 * s2 / (2 * v)), abs=1e-9)


def test_whoever_is_not_told_from_the_best_leads_too():
    ones = torch.ones(100)
    a, b, c = ones.clone(), ones.clone(), ones.clone()
    a[:10], b[5:16], c[:40] = 0, 0, 0
    assert m.leaders({"a": a, "b": b, "c": c}) == ["a", "b"]


def test_steps_needed_lie_between_the_marks_around_the_goal():
    way = {10: 8.0, 100: 2.0, 1000: 0.5}
    assert m.steps_needed(way, 2.0) == pytest.approx(100)
    assert m.steps_needed(way, 4.0) == pytest.approx(10**1.5)
    assert m.steps_needed(way, 9.0) == 10
    assert m.steps_needed(way, 0.4) == math.inf
    assert m.steps_needed({10: math.inf, 100: 2.0}, 2.5) == 100


# 3. EBGAN


def some_distributions(n=12):
    return (2 * torch.randn(2, n).double()).softmax(1)


def test_the_best_value_is_that_of_a_linear_programme():
    p, q = some_distributions()
    p[3:5], q[7] = 0, 0
    p, q, n, margin = p / p.sum(), q / q.sum(), 12, 1.7
    cost = torch.cat([p, q]).numpy()  # over (D, u) with u >= m - D, both >= 0
    slack = -np.hstack([np.eye(n), np.eye(n)])
    best = scipy.optimize.linprog(cost, slack, np.full(n, -margin)).fun
    assert m.exact_best_value(p, q, margin).item() == pytest.approx(best)
    assert m.ebgan_value(m.best_table(p, q, margin), p, q, margin).item() == pytest.approx(best)
    assert m.ebgan_value(m.train_table(p, q, margin), p, q, margin).item() == pytest.approx(best, abs=1e-3)


def test_the_critics_loss_has_a_margin_for_each_cell():
    p, q = some_distributions()
    table = 2 * torch.rand(12).double()
    by_hand = sum(p[i] * table[i] + q[i] * max(1.3 - table[i], 0) for i in range(12))
    assert m.ebgan_value(table, p, q, 1.3).item() == pytest.approx(by_hand.item())


def test_the_generators_slope_is_what_a_shift_changes():
    table, q = torch.arange(20).double() ** 2, m.bump(20, 8, 4)
    forward, back = ((table * q.roll(step)).sum() for step in (1, -1))
    assert m.generator_slope(table, q).item() == pytest.approx(((forward - back) / 2).item())
    assert m.generator_slope(m.best_table(m.bump(40, 6), m.bump(40, 30), 1.0), m.bump(40, 30)) == 0


def test_bumps_are_distributions():
    p = m.bump(40, 10)
    assert p.sum().item() == pytest.approx(1)
    assert p.argmax() == 10
    assert (p > 0).sum() == 11


def test_the_game_ends_at_a_constant_and_with_the_entropy_at_the_density():
    p = 0.9 * m.bump(16, 5) + 0.1 / 16
    (constant, moving), (density, last) = (m.play(p, 1.0, with_entropy, 8000) for with_entropy in (False, True))
    assert constant.std() < 0.01 < 0.05 < moving.std()  # both players circle around the equilibrium
    torch.testing.assert_close(last, density, atol=1e-4, rtol=0)
    torch.testing.assert_close((-density).softmax(0), p, atol=1e-4, rtol=0)
    assert m.gap_of_table(constant, p) == pytest.approx(m.exact_gap_of_constant(p), rel=0.01)
    assert m.gap_of_table(density, p) < 1e-4


def test_gaps_are_kl_divergences():
    p, q = some_distributions()
    assert m.gap_of_table(-q.log() + 3, p) == pytest.approx((p * (p / q).log()).sum().item())
    assert m.exact_gap_of_constant(p) == pytest.approx((p * (12 * p).log()).sum().item())


def test_the_slope_of_a_pca_critic_and_the_one_with_its_target_detached():
    x = torch.randn(9, 6).double()
    basis = torch.linalg.qr(torch.randn(6, 2).double()).Q
    energy = lambda x: (x - x @ basis @ basis.T).square().sum(1)  # noqa: E731
    torch.testing.assert_close(m.exact_pca_slope(x, basis), numerical_slope(energy, x), atol=1e-7, rtol=0)
    torch.testing.assert_close(m.reconstruction_slope(x, basis, False), m.exact_pca_slope(x, basis))
    assert m.reconstruction_slope(x, basis, True).abs().max() < 1e-13


def test_the_detached_slopes_are_measured_beside_the_true_one():
    true, exact, detached, off = m.measure_detached(torch.randn(40, 64))
    assert true == pytest.approx(exact)
    assert true > 0.5
    assert max(detached, off) < 1e-12


def test_pulling_away_is_the_mean_squared_cosine_of_different_samples():
    codes = torch.randn(2, 5, 3).double()
    for copy, found in zip(codes, m.pulling_away(codes), strict=True):
        pairs = [(copy[i] @ copy[j] / copy[i].norm() / copy[j].norm()) ** 2 for i in range(5) for j in range(5) if i != j]
        assert found.item() == pytest.approx((sum(pairs) / 20).item())


def test_a_critic_is_a_squared_reconstruction_error():
    critic, x = rough(m.Critic(3, 2, 4)), torch.randn(5, 3)
    torch.testing.assert_close(critic(x), (x - critic.decode(critic.encode(x))).square().sum(1))
    torch.manual_seed(1)
    plain = m.Critic(3, 2, 4)
    torch.manual_seed(1)
    torch.testing.assert_close(m.Critic(3, 2, 4, roughness=5.0).encode.weights[0], 5 * plain.encode.weights[0])
    knowing, c = rough(m.Critic(3, 2, 4, n_clusters=2)), torch.tensor([0, 1, 0, 1, 1])
    torch.testing.assert_close(knowing(x, c), (x - knowing.decode(knowing.encode(x, c), c)).square().sum(1))
    assert (knowing(x, c) != knowing(x, 1 - c)).all()


def test_a_knowing_ebgan_has_one_cluster_for_data_and_samples(monkeypatch):
    c, asked = torch.tensor([0, 1, 1]), []
    forward = m.Net.forward
    monkeypatch.setattr(m.Net, "forward", lambda self, x, of=None: asked.append(of) or forward(self, x, of))
    critic, generator = m.Critic(2, 3, 5, n_clusters=2), m.Net((2, 5, 2), n_clusters=2)
    m.train_ebgan(lambda shape: (torch.ones(*shape, 2), c), critic, generator, 0.7, 1.5, 1, batch=3)
    assert all(of is c for of in asked)


def test_an_ebgan_lowers_each_players_own_loss(monkeypatch):
    """The critic's step knows a margin a sample and leaves the generator alone; the generator's adds pulling away."""
    losses, nets = [], []

    class Recorder:
        def __init__(self, nets_, rate, n_updates, **options):
            nets.append(nets_[0])
            self.parameters, self.average, self.number = list(nets_[0].parameters()), nets_, len(nets)

        def down(self, loss):
            losses.append(loss)
            owner = "critic" if self.number == 1 else "generator"
            gradients = torch.autograd.grad(loss, list(nets[1].parameters()), retain_graph=True, allow_unused=True)
            losses.append((owner, any(g is not None and g.abs().sum() > 0 for g in gradients)))

    monkeypatch.setattr(m, "Descent", Recorder)
    critic, generator, seen = rough(m.Critic(2, 3, 5, copies=(2,))), rough(m.Net((2, 5, 2), (2,))), []
    forward = m.Critic.forward
    monkeypatch.setattr(m.Critic, "forward", lambda self, x, c: seen.append(x) or forward(self, x, c))
    m.train_ebgan(lambda shape: (torch.ones(*shape, 2), None), critic, generator, 0.7, 1.5, 1, batch=6)
    real, fake, again = (forward(critic, x) for x in seen)
    assert seen[0].shape == (2, 6, 2)
    assert torch.equal(seen[1], seen[2])
    torch.testing.assert_close(losses[0], (real.mean(1) + (1.5 - fake).clamp(min=0).mean(1)).sum())
    assert losses[1] == ("critic", False)
    pull = m.pulling_away(critic.encode(seen[2]))
    torch.testing.assert_close(losses[2], (again.mean(1) + 0.7 * pull).sum())
    assert losses[3] == ("generator", True)


def test_the_25_gaussians_density_integrates_to_one_and_matches_its_samples():
    line = torch.linspace(-6, 6, 601).double()
    points = torch.cartesian_prod(line, line)
    assert m.grid_log_density(points).exp().sum().item() * 0.02**2 == pytest.approx(1, abs=1e-4)
    assert m.grid_log_density(points, 0.5).exp().sum().item() * 0.02**2 == pytest.approx(1, abs=1e-2)
    x = m.grid_data((50_000,))
    squares = torch.cdist(x[:9].double(), m.grid_centres().double()).square()
    density = (-squares / 0.18).exp().mean(1) / (2 * math.pi * 0.09)
    torch.testing.assert_close(m.grid_log_density(x[:9].double(), 0.3), density.log())
    entropy = math.log(25) + math.log(2 * math.pi * math.e * 0.04)
    assert -m.grid_log_density(x).mean().item() == pytest.approx(entropy, abs=0.02)
    assert len(m.grid_centres().unique(dim=0)) == 25
    assert torch.pdist(m.grid_centres()).min() == 2


def test_coverage_of_a_perfect_sampler_and_of_planted_points():
    found = [m.coverage(m.grid_data((20_000,))) for _ in range(20)]
    assert all(cover.n_modes == 25 for cover in found)
    assert np.mean([cover.near for cover in found]) == pytest.approx(m.theory_near(), abs=0.001)
    assert np.mean([cover.kl for cover in found]) == pytest.approx(m.theory_kl_floor(20_000), rel=0.3)
    planted = torch.cat([m.grid_centres()[:1].expand(95, 2), m.grid_centres()[7:8].expand(4, 2), torch.ones(1, 2)])
    cover = m.coverage(planted)
    assert (cover.n_modes, cover.near) == (2, pytest.approx(0.99))
    share = torch.tensor([0.95, 0.04, 0.01]).double()
    assert cover.kl == pytest.approx((share * (25 * share).log()).sum().item())


def test_tables_are_measured_at_growing_distances():
    found = m.measure_tables(n_steps=400)
    assert found.tv[0] == 0
    assert (np.diff(found.tv) >= -1e-12).all()
    assert found.tv[-1] == 1
    assert found.value == pytest.approx(found.exact, abs=1e-3)
    assert found.slope_apart == 0
    assert found.slope_overlapping > 0.05
    assert found.p.sum().item() == pytest.approx(1)


# 4. JEM


def test_the_mixture_on_the_line_is_a_joint_distribution():
    x, dx = m.line()
    p = m.mixture_on_line(x).exp()
    assert (p.sum(0) * dx).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)
    assert ((p[:, 1] * x).sum() * dx / 0.3).item() == pytest.approx(0.5, abs=1e-5)
    assert ((p[:, 2] * (x - 2.5) ** 2).sum() * dx / 0.2).item() == pytest.approx(1, abs=1e-4)


def exact_theta():
    """The mixture's own logits as θ_y·(1, x, x²)."""
    weight, mean, std = torch.tensor([[0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.7, 0.5, 1.0]]).double()
    constant = (weight / std).log() - 0.5 * math.log(2 * math.pi) - mean**2 / (2 * std**2)
    return torch.stack([constant, mean / std**2, -1 / (2 * std**2)])


def test_the_losses_at_the_mixtures_own_logits_are_its_entropies():
    x, dx = m.line()
    joint = m.mixture_on_line(x)
    cross, marginal = m.exact_losses(exact_theta() + torch.tensor([[3.0], [0.0], [0.0]]), x, dx, joint)
    p = joint.exp() * dx
    assert cross.item() == pytest.approx(-(p * joint.log_softmax(1)).sum().item())
    assert marginal.item() == pytest.approx(-(p.sum(1) * joint.logsumexp(1)).sum().item(), abs=1e-6)


def test_jem_recovers_the_density_and_cross_entropy_only_the_posterior():
    (x, dx), start = m.line(), torch.randn(3, 3).double() * torch.tensor([[1.0], [0.5], [0.1]]).double()
    joint = m.mixture_on_line(x)
    jem, cross = (m.judge_logits(m.fit_logits(start, x, dx, joint, both), start, x, dx, joint) for both in (True, False))
    assert max(jem.bayes_error, cross.bayes_error) < 1e-5
    assert 0 < jem.density_error < 1e-5 < 0.1 < cross.density_error  # a variance by E[x²] - E[x]² would read 0
    assert cross.drift < 1e-9 < 0.1 < jem.drift
    assert jem.log_density == pytest.approx(joint.logsumexp(1).numpy(), abs=1e-3)
    off = m.judge_logits(exact_theta() + torch.tensor([[0.0, 0.0, 1.0]]).double().T, start, x, dx, joint)
    assert off.density_error == pytest.approx((joint.exp().sum(1) * dx @ (x**4)).item() ** 0.5, rel=0.6)


def test_chains_restart_keep_their_clusters_and_are_visited_in_turn():
    c = torch.arange(8)
    chains = m.Chains(8, 4, c, "cpu", 0.0)
    before = chains.x.clone()
    x, of = chains.next(3)
    assert torch.equal(x, before[:3])
    assert of.tolist() == [0, 1, 2]
    chains.keep(x + 1)
    assert torch.equal(chains.x[:3], before[:3] + 1)
    assert torch.equal(chains.x[3:], before[3:])
    chains.next(3)
    _, of = chains.next(3)
    assert of.tolist() == [6, 7, 0]
    always = m.Chains(8, 4, None, "cpu", 1.0)
    always.x += 100
    x, of = always.next(8)
    assert x.mean().abs() < 3
    assert of is None
    rarely = m.Chains(20_000, 1, None, "cpu")
    rarely.x += 100
    assert (rarely.next(20_000)[0] < 50).float().mean().item() == pytest.approx(0.01, abs=0.004)


def test_chains_are_revised_by_the_steps_of_training(monkeypatch):
    config, c, asked = Notes().config, torch.ones(3), []
    monkeypatch.setattr(m, "langevin", lambda slope, x, n, eps: asked.append((slope.keywords["c"], n, eps)) or x + 1)
    assert (m.revised(Quadratic(1.0), torch.zeros(3, 4), c, config) == 1).all()
    assert asked == [(c, config.n_langevin, config.step_size)]


def test_jem_learns_its_labels_and_all_images_against_its_chains(monkeypatch):
    config, crosses, phases, kept = Notes().config, [], [], []
    x, y = torch.full((20, 4), 3.0), torch.full((20,), 7)
    cross = m.cross_entropy
    monkeypatch.setattr(m, "cross_entropy", lambda logits, y: crosses.append((logits, y)) or cross(logits, y))
    monkeypatch.setattr(m, "phases_loss", lambda e, a, b, c=None: phases.append((a, b)) or e(b).mean() * 0)
    monkeypatch.setattr(m, "revised", lambda energy, x, c, config: kept.append(c) or torch.full_like(x, 9.0))
    monkeypatch.setattr(m.Chains, "keep", lambda self, x: kept.append(x))
    energy = m.train_jem(x, y, torch.full((20, 4), -5.0), config, 4)
    assert (crosses[0][1] == 7).all()
    assert phases[0][0].mean().item() == pytest.approx(-5, abs=0.2)
    assert (phases[0][1] == 9).all()
    assert kept[0] is None
    assert torch.equal(kept[1], phases[0][1])
    assert phases[0][0].std().item() == pytest.approx(m.DATA_NOISE, rel=0.4)
    assert energy.head.weight.shape == (10, config.width)


def test_a_plain_classifier_learns_and_weight_decay_makes_it_small():
    config = Notes(width=16).config
    x = torch.randn(200, 4)
    y = (x[:, 0] > 0).long()
    nets = [m.train_classifier(x, y, config, 150, 0.0, decay, 0.02) for decay in (0.0, 0.1)]
    assert (nets[0].class_scores(x).argmax(1) == y).float().mean() > 0.9
    assert nets[1].head.weight.norm() < 0.7 * nets[0].head.weight.norm()


def test_the_calibration_error_is_the_one_by_hand():
    confidence = torch.tensor([0.95, 0.97, 0.51, 0.52, 1.0]).double()
    right = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]).double()
    gaps = abs(1 + 0 + 1 - 0.95 - 0.97 - 1.0) + abs(2 - 1.03)
    assert m.calibration_error(confidence, right).item() == pytest.approx(gaps / 5)


def test_the_null_of_calibration_has_the_mean_that_theory_says():
    confidence = 0.4 + 0.6 * torch.rand(4000).double()
    null = m.calibration_null(confidence, 400)
    assert null.mean().item() == pytest.approx(m.theory_calibration_floor(confidence), rel=0.03)
    assert null.std() > 0


def test_the_floor_of_360_images_at_97_percent_is_about_a_hundredth():
    assert m.theory_calibration_floor(torch.full((360,), 0.97).double()) == pytest.approx(
        math.sqrt(2 / math.pi * 0.97 * 0.03 / 360)
    )


def test_grades_of_planted_predictions():
    p = torch.full((4, 10), 0.02)
    p[torch.arange(4), torch.tensor([1, 2, 3, 3])] = 0.82
    graded = m.grade(p.log(), torch.tensor([1, 2, 3, 4]))
    assert graded.right.tolist() == [1, 1, 1, 0]
    assert graded.nll.tolist() == pytest.approx([-math.log(0.82)] * 3 + [-math.log(0.02)])
    assert graded.brier[0].item() == pytest.approx(0.18**2 + 9 * 0.02**2)
    assert graded.brier[3].item() == pytest.approx(0.82**2 + 0.98**2 + 8 * 0.02**2)
    assert graded.ece == pytest.approx(0.07)
    assert 0 < graded.null_mean < graded.null_95


def test_auroc_is_high_where_the_inside_scores_higher():
    assert m.auroc(m.separate(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]))) == (1, 0)
    inside, outside = torch.randn(30) + 1, torch.randn(20).round()
    truth = roc_auc_score([1] * 30 + [0] * 20, torch.cat([inside.round(), outside]).numpy())
    assert m.auroc(m.separate(inside.round(), outside))[0] == pytest.approx(truth)


def test_the_standard_error_of_auroc_and_of_a_difference_is_the_spread_over_fresh_images():
    """The mistakes: an error of one set only, and two scores of the same images taken for independent."""
    single, lead = [], []
    for _ in range(1000):
        inside, outside = torch.randn(40) + 1, torch.randn(90)
        a, b = m.separate(inside, outside), m.separate(inside + torch.randn(40) / 3, outside)
        single.append(m.auroc(a))
        lead.append(m.auroc(a, b))
    for rows in (single, lead):
        values, sems = np.array(rows).T
        assert (sems**2).mean() ** 0.5 == pytest.approx(values.std(), rel=0.1)


def test_images_between_classes_are_means_of_two_of_different_classes():
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    x = torch.nn.functional.one_hot(y, 3).float()
    between = m.between_classes(x, y)
    assert len(between) > 0
    assert ((between == 0.5).sum(1) == 2).all()


def test_few_labels_are_as_many_of_each_class():
    y = torch.arange(10).repeat(9)
    some = m.few_labels(y, 4)
    assert len(some.unique()) == 40
    assert (torch.bincount(y[some]) == 4).all()
    assert not torch.equal(some, m.few_labels(y, 4))


def test_ood_scores_are_high_inside():
    run = Notes()
    digits = m.digits_of(run)
    jem, plain = (m.AutoEncoderEnergy(64, 8, 0.5, n_classes=10) for _ in range(2))
    rough(plain)
    scores = m.ood_scores(run, jem, plain)
    with torch.no_grad():
        x = digits.x[:50]
        torch.testing.assert_close(scores["JEM, -E"](x), jem.logits(x).logsumexp(1))
        torch.testing.assert_close(scores["plain, free energy"](x), plain.class_scores(x).logsumexp(1))
        assert (scores["plain, confidence"](x) <= 1).all()
    assert scores["mixture, log p"](x).mean() > scores["mixture, log p"](-x).mean()


# 5. Amortised negatives


def test_the_linear_slope_is_autograds_and_its_fixed_point_the_covariance():
    root = torch.randn(3, 3).double()
    covariance = root @ root.T + 0.3 * torch.eye(3).double()
    precision, A = torch.linalg.inv(covariance), torch.randn(3, 3).double().requires_grad_()
    for with_entropy in (True, False):
        loss = (A.T @ precision @ A).trace() / 2 - with_entropy * torch.linalg.slogdet(A).logabsdet
        torch.testing.assert_close(m.linear_slope(A.detach(), precision, with_entropy), torch.autograd.grad(loss, A)[0])
    assert m.linear_slope(torch.linalg.cholesky(covariance), precision, True).abs().max() < 1e-9
    short = m.fit_linear(A.detach(), precision, False, 7, 0.01)
    torch.testing.assert_close(short, m.exact_linear_decay(A.detach(), precision, 7, 0.01))
    by_hand = A.detach()
    for _ in range(7):
        by_hand = by_hand - 0.01 * precision @ by_hand
    torch.testing.assert_close(short, by_hand)


def test_stairs_rise_and_know_their_derivative():
    z = torch.linspace(-3, 3, 50).double().requires_grad_()
    parameters = torch.randn(1, 5, 3).double()
    x, log_slope = m.stairs(z, parameters)
    torch.testing.assert_close(torch.autograd.grad(x.sum(), z)[0].log(), log_slope)
    assert (x.diff() > 0).all()


def test_the_triangular_map_knows_its_jacobian():
    generator, z = rough(m.Triangular(4, 8)).double(), torch.randn(6, 2).double()
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: generator(z[None])[0][0], row) for row in z])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, generator(z)[1])
    assert jacobian[:, 0, 1].abs().max() == 0
    assert jacobian[:, 1, 0].abs().max() > 0.01


def test_even_normals_are_normal_and_more_even_than_chance():
    means = torch.stack([m.even_normals(200).square().mean(0) for _ in range(300)])
    assert means.mean(0).tolist() == pytest.approx([1, 1], abs=0.01)
    assert means.std(0).max() < 0.03  # chance: 0.1
    z = torch.cat([m.even_normals(200) for _ in range(100)])
    assert (z[:, 0] * z[:, 1]).mean().abs() < 0.02


def test_the_entropys_bound_is_exact_minus_its_gap():
    A, s, n = torch.tensor([[1.2, 0.4], [0.1, 0.9], [0.3, -0.5]]).double(), 0.5, 40_000
    z = torch.randn(n, 2).double()
    x = z @ A.T + s * torch.randn(n, 3).double()
    mean, sem = m.mean_and_sem(m.noisy_entropy_bound(s, 3, z, *m.gaussian_reader(A, s, x)))
    q = torch.distributions.MultivariateNormal(torch.zeros(3).double(), A @ A.T + s**2 * torch.eye(3).double())
    assert m.exact_linear_entropy(A, s) == pytest.approx(q.entropy().item())
    assert m.exact_reader_gap(A, s) > 0.01
    assert abs(mean - (q.entropy().item() - m.exact_reader_gap(A, s))) < 5 * sem
    assert sem < 0.01


def test_the_reader_is_the_posterior_of_the_joint_gaussian():
    A, s = torch.tensor([[1.2, 0.4], [0.1, 0.9], [0.3, -0.5]]).double(), 0.5
    marginal = A @ A.T + s**2 * torch.eye(3).double()
    gain = A.T @ torch.linalg.inv(marginal)
    torch.testing.assert_close(m.posterior_covariance(A, s), torch.eye(2).double() - gain @ A)
    x = torch.randn(4, 3).double()
    torch.testing.assert_close(m.gaussian_reader(A, s, x)[0], x @ gain.T)
    posterior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), m.posterior_covariance(A, s))
    information = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()).entropy()
    assert m.exact_information(A, s) == pytest.approx((information - posterior.entropy()).item())


def test_the_reverse_kl_of_a_known_map():
    """x = z/5 + a mode: all in one mode of the 25, log 25 nats from them."""
    one_mode = lambda z: (0.2 * z + m.grid_centres()[3], torch.full((len(z),), 2 * math.log(0.2)))  # noqa: E731
    kl, sem = m.reverse_kl(one_mode, 2000)
    assert kl == pytest.approx(math.log(25), abs=5 * sem + 1e-3)


@pytest.mark.parametrize("with_entropy", [True, False])
def test_the_plane_generator_descends_the_energy_minus_its_entropy(with_entropy, monkeypatch):
    losses, given = [], []
    monkeypatch.setattr(m.Descent, "down", lambda self, loss: losses.append((loss.item(), self.rate)))
    forward = m.Triangular.forward
    monkeypatch.setattr(m.Triangular, "forward", lambda self, z: given.append(forward(self, z)) or given[-1])
    m.train_amortised_plane(1, with_entropy, 0.5, 50, 0.8)
    x, log_det = given[0]
    loss = -m.grid_log_density(x, 0.8).mean() - (log_det.mean() if with_entropy else 0)
    assert losses[0] == (pytest.approx(loss.item(), rel=1e-5), 0.5)


def test_an_amortised_generator_descends_energy_minus_the_bound_and_feeds_the_energy_detached(monkeypatch):
    config, clusters, losses, phases = Notes().config, some_clusters(), [], []
    down = m.Descent.down
    monkeypatch.setattr(m.Descent, "down", lambda self, loss: losses.append(loss.item()) or down(self, loss))
    monkeypatch.setattr(m, "phases_loss", lambda e, a, b, c: phases.append((a, b, c)) or e(b, c).mean())
    monkeypatch.setattr(m.AutoEncoderEnergy, "forward", lambda self, x, c=None: x.sum(1) + 0 * self.b2.sum())
    drawn, bounds = [], []
    draw, bound = m.Generator.draw, m.noisy_entropy_bound
    monkeypatch.setattr(m.Generator, "draw", lambda self, z, c: drawn.append((draw(self, z, c), z, c)) or drawn[-1][0])
    monkeypatch.setattr(m, "noisy_entropy_bound", lambda *args: bounds.append((args, bound(*args))) or bounds[-1][1])
    begun, vae = [], m.train_vae
    monkeypatch.setattr(m, "train_vae", lambda *args: begun.append(args) or vae(*args))
    m.train_amortised(clusters, config, 2)
    assert begun == [(clusters, config, 1)]
    losses.pop(0)  # the VAE's
    (x, z, c), (args, value), (x_data, x_model, c_phase) = drawn[0], bounds[0], phases[0]
    assert len(drawn) == 1
    assert losses[0] == pytest.approx((x.sum(1) - value).mean().item(), rel=1e-5)
    assert args[1] == 4
    assert args[2] is z
    assert args[3].requires_grad
    assert torch.equal(x_model, x)
    assert not x_model.requires_grad
    assert c_phase is c
    low = clusters.data(torch.arange(2)).mean(1).argmin().item()
    assert torch.equal(x_data.mean(1) < 0, c == low)


def test_an_amortised_energy_learns_before_its_generator_follows_and_neither_has_momentum(monkeypatch):
    made = []

    class Spy(m.Descent):
        def __init__(self, nets, rate, n_updates, warm_up=0, **options):
            super().__init__(nets, rate, n_updates, warm_up, **options)
            made.append((nets[0], n_updates, self.warm_up, self.adam.param_groups[0]["betas"][0]))

    monkeypatch.setattr(m, "Descent", Spy)
    run = Notes()
    m.train_amortised(m.clusters_of(run), run.config, 40)
    (_, n_vae, _, _), (energy, *of_energy), (generator, *of_generator) = made
    assert (n_vae, of_energy, of_generator) == (20, [20, 2, 0.0], [20, 10, 0.0])
    assert isinstance(energy, m.AutoEncoderEnergy)
    assert isinstance(generator, m.Generator)
    assert all(p.requires_grad for p in generator.parameters())


# 6. Side by side


def test_the_energy_alone_learns_within_the_clusters_of_its_chains(monkeypatch):
    config, clusters, phases = Notes().config, some_clusters(), []
    monkeypatch.setattr(m, "phases_loss", lambda e, a, b, c: phases.append((a, b, c)) or e(b, c).mean())
    m.train_ebm(clusters, config, 2)
    low = clusters.data(torch.arange(2)).mean(1).argmin().item()
    for x_data, x_model, c in phases:
        assert torch.equal(x_data.mean(1) < 0, c == low)
        assert not x_model.requires_grad


@pytest.mark.parametrize("name", m.RIVALS)
def test_every_rival_draws_finite_images(name):
    run = Notes()
    torch.manual_seed(3)
    draw = m.RIVALS[name].make(run, m.clusters_of(run), 2)
    with torch.no_grad():
        x = draw(50)
    assert x.shape == (50, 64)
    assert x.isfinite().all()
    assert len(x.unique(dim=0)) == 50


def test_a_comparison_counts_who_diverged_and_gives_each_its_pace(monkeypatch):
    asked = []

    def good(run, clusters, n_updates):
        asked.append(n_updates)
        return lambda n: m.digits_of(run).x[:n]

    def lost(run, clusters, n_updates):
        raise m.Diverged("lost")

    rivals = {"a": m.Rival(good, 0.5), "b": m.Rival(lost, 1.0), "c": m.Rival(good, 0.01)}
    monkeypatch.setattr(m, "RIVALS", rivals)
    run = Notes(n_compared=20)
    entries, diverged = m.compare(run)
    assert (list(entries), diverged, asked) == (["a", "c"], ["b"], [10, 1])
    assert entries["a"].scores.nearest == 0
    m.section_comparison(run)
    assert run.metrics["models that diverged"].value == 1
    assert "diverged: b" in run.said
    planted = {
        name: m.Entry(planted_scores(f)._replace(told=t), 1, 1, None)
        for name, f, t in (("x", 2, 0.6), ("y", 1, 0.62), ("z", 1.02, 0.9))  # each with a standard error of 0.01
    }
    assert m.comparison_sentences(planted, []) == [
        "nearest to real digits, or not beyond two standard errors: y 1.00, z 1.02",
        "told from real images least, or not beyond two standard errors: x 0.60, y 0.62",
    ]
    for distance, word in ((0.98, "no better"), (0.9, "better")):  # beside 1.00
        pair = {"amortised": planted["y"]._replace(scores=planted_scores(distance)), "VAE": planted["y"]}
        assert f"which began as a VAE, is {word} than a VAE" in m.comparison_sentences(pair, [])[-1]
    images = torch.zeros(30, 64)
    run.figure(m.draw_comparison({name: entry._replace(images=images) for name, entry in planted.items()}, 0.1), "table")


# The sections: what stands beside what


def planted_scores(frechet):
    return m.DigitScores(frechet, 0.01, 0.7, 0.01, 0.99, 2.0, 0.01)


def planted_coopnets(revised=0.2, far=(9.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0), lost=(9.0,) * 7, kept=(0.5, 0.9)):
    ways = {0: 0.5, 2: revised, 6: 0.15}
    return m.CoopOnDigits(
        scores={k: planted_scores(frechet) for k, frechet in ways.items()},
        from_noise=dict(zip(m.NOISE_MARKS, far, strict=True)),
        control=dict(zip(m.NOISE_MARKS, far, strict=True)),
        lost=dict(zip(m.NOISE_MARKS, lost, strict=True)),
        untrained={k: 0.4 for k in ways if k},
        kept=dict(zip(("own z", "inferred z"), kept, strict=True)),
        linear=0.7,
        images={k: torch.zeros(40, 64) for k in ways},
        floor=0.1,
    )


def test_section_coopnets_holds_the_lessons_to_their_theory_and_digits_to_real_images(monkeypatch):
    run, lessons = (
        Notes(),
        {name: m.OnLine(torch.rand(4, 5), np.array([2.0, 1.0, i, i / 2])) for i, name in enumerate(m.LESSONS)},
    )
    rings = {name: m.OnRing((kl, kl + 1, kl + 2), torch.rand(4, 4)) for name, kl in (("own z", 2.0), ("inferred z", 0.3))}
    monkeypatch.setattr(m, "measure_lessons", lambda *_: lessons)
    monkeypatch.setattr(m, "measure_on_ring", lambda *_: rings)
    monkeypatch.setattr(m, "measure_coopnets", lambda _: planted_coopnets())
    m.section_coopnets(run)
    for name, found in lessons.items():
        for at in (2, 3):
            mean, sem = m.mean_and_sem(found.w[at])
            beside = ("theory", found.theory[at]), m.tolerance(sem, 5)
            assert run.metrics[f"line, {name}: w after {at} rounds"] == (mean, sem, *beside)
    assert run.metrics["cluster Gaussian + 2 steps: Frechet"] == (0.4, None, ("generator", 0.2), None)
    assert run.metrics["ring, own z: KL to the energy (nats)"] == (3, 1 / 3**0.5, ("the energy itself", 0), None)
    assert run.metrics["generator + 2 steps: Frechet distance"] == (0.2, 0.01, ("real images", 0.1), None)
    assert run.metrics["generator + 2 steps: told from real"].against[1] == 0.5
    assert run.metrics["met both: Frechet, 500 from noise"] == (2, None, ("real images", 0.1), None)
    assert run.metrics["met its own, brief: Frechet, 100 from noise"].value == 9
    assert "steps from noise that do as much as 2" not in run.metrics
    assert run.metrics["digits, own z: variance kept"].against == ("linear, greatest likelihood", 0.7)
    assert run.titles["digits"][-1].endswith("what more than 500 do from noise")
    assert run.said[0] == "ring: own z ends 3.00 nats from the energy, inferred z 1.30, a mean of three"
    assert "from 0.50 to 0.20" in run.said[1]
    assert "from noise that takes more than 500, to a standard error above it more than 500" in run.said[1]
    assert "ends at 9.00" in run.said[2]
    assert "reaches more" in run.said[3]


def test_section_coopnets_says_how_many_steps_a_generator_saves(monkeypatch):
    far, run = (9.0, 5.0, 0.2, 0.1, 0.1, 0.1, 0.1), Notes()
    found = planted_coopnets(0.2, far, far, (0.9, 0.5))
    m.record_coopnets(run, found)
    as_much, near = (20 * 1.5 ** (math.log(5 / goal) / math.log(5 / 0.2)) for goal in (0.21, 0.3))
    assert run.metrics["steps from noise that do as much as 2"] == (
        pytest.approx(as_much),
        None,
        ("from the generator", 2),
        None,
    )
    assert run.metrics[m.NEAR_LABEL] == (pytest.approx(near), None, ("from the generator", 2), None)
    said = m.coop_sentences(found)
    assert "from noise that takes 30, to a standard error above it 30" in said[0]
    assert run.metrics["steps from noise to the Frechet of 2"].value == pytest.approx(30)
    dear = found._replace(scores=found.scores | {2: planted_scores(0.2)._replace(frechet_sem=4.8)})
    assert "from noise that takes 30, to a standard error above it 20" in m.coop_sentences(dear)[0]
    assert "gets there too" in said[1]
    assert "reaches no more" in said[2]
    run.figure(m.draw_coopnets_on_digits(found), "digits")
    assert run.titles["digits"][-1].endswith("what 30 do from noise")


def test_section_ebgan_holds_tables_and_slopes_to_theory_and_pulling_to_a_perfect_sampler(monkeypatch):
    run, found = Notes(), m.measure_tables(n_steps=400)
    monkeypatch.setattr(m, "measure_tables", lambda: found)
    monkeypatch.setattr(m, "measure_detached", lambda x: (2.0, 2.0, 0.5, 0.25))
    one = m.grid_centres()[:1].expand(3, 4000, 2)
    monkeypatch.setattr(m, "measure_pulling", lambda n: {0.0: one, 1.0: m.grid_data((3, 4000))})
    m.section_ebgan(run)
    off = run.metrics["value - m (1 - TV), at most, 20 generators"]
    assert (off.value, off.within) == (np.abs(found.value - found.exact).max(), 1e-3)
    assert run.metrics["generator's slope, disjoint supports"] == (0, None, ("theory", 0), 0)
    constant = m.exact_gap_of_constant(found.p)
    gap = run.metrics["gap of exp(-D), EBGAN (nats)"]
    assert (gap.value, gap.against[1], gap.within) == (
        m.gap_of_table(found.tables["margin"], found.p),
        constant,
        1e-3,
    )
    entropy = run.metrics["gap of exp(-D), entropy added (nats)"]
    assert entropy.value == m.gap_of_table(found.tables["entropy"], found.p)
    assert (entropy.against[1], entropy.within) == (0, 1e-6)
    assert run.metrics["PCA critic: rms slope, target detached"] == (0.5, None, ("theory", 0), 1e-12)
    assert run.metrics["PCA critic: slope - 2 (I - P) x, rms"] == (0.25, None, ("theory", 0), 1e-12)
    assert run.metrics["pulling away 0: modes of 25"].value == 1
    assert run.metrics["pulling away 1: modes of 25"].value == 25
    assert run.metrics["pulling away 1: share within 3 sd"].against[1] == m.theory_near()
    spread = run.metrics["EBGAN's game: D's sd over cells, at its end"]
    assert (spread.value, spread.against[1]) == (found.ends["margin"].std(), found.tables["margin"].std())
    assert "gains modes: 1.0 without, 25.0 with it" in run.said[-1]
    assert "no difference" in m.pulling_sentence(torch.tensor([20.0, 22.0]), torch.tensor([21.0, 23.0]))
    apart = [torch.tensor([-1.0, 0.0, 1.0]) + shift for shift in (0, 2.1, 2.4)]  # the standard error is 0.816; t 2.78
    assert "no difference" in m.pulling_sentence(*apart[:2])
    assert "gains modes" in m.pulling_sentence(*apart[::2])


def planted_labels(jem=0.9, rival=0.95):
    graded = {}
    for name, p in (("JEM", jem), ("cross entropy", 0.93), ("regularised", rival)):
        right = (torch.arange(100) < 100 * p).double()
        graded[name] = m.Graded(right, 1 - right, 2 - 2 * right, 0.02, 0.01, 0.015, 0.011)
    ood = {
        ("between classes", name): m.separate(torch.arange(99.0) + shift, torch.arange(99.0))
        for name, shift in (("JEM, -E", 10), ("mixture, log p", 50), ("plain, confidence", 49))
    }
    few = {"JEM": torch.ones(9), "label spreading": torch.zeros(9)}
    return m.OnLabels(graded, planted_scores(1.0), torch.zeros(40, 64), ood, few, 0.1)


def test_section_jem_says_where_jem_wins_and_where_not(monkeypatch):
    run = Notes()
    fitted = m.OnMixture(1e-7, 2.0, 1e-12, np.zeros(400))
    monkeypatch.setattr(m, "measure_on_mixture", lambda: {"JEM": fitted, "cross entropy": fitted, "another start": fitted})
    monkeypatch.setattr(m, "measure_jem", lambda _: planted_labels())
    m.section_jem(run)
    assert run.metrics["JEM: TV to Bayes"] == (1e-7, None, ("theory", 0), 1e-4)
    assert run.metrics["JEM: logsumexp"] == (2.0, None, ("log p(x) + const", 0), 1e-3)
    assert run.metrics["cross entropy: logsumexp"].within is None
    assert run.metrics["another start: sum of theta moved"] == (1e-12, None, ("theory", 0), 1e-9)
    assert run.metrics["JEM: accuracy"].against == ("regularised", pytest.approx(0.95))
    assert run.metrics["JEM: ECE"].against[1] == 0.015
    assert run.metrics["JEM: ECE if calibrated"].against[1] == 0.011
    assert run.metrics["five labels a class: JEM"].against == ("label spreading", 0)
    assert "accuracy: JEM is worse" in run.said[0]
    assert "NLL: JEM is worse" in run.said[1]
    assert run.said[2].endswith("not beyond two standard errors, by mixture, log p 0.878")
    mean, sem = m.auroc(planted_labels().ood["between classes", "JEM, -E"])
    assert run.metrics["AUROC, between classes: JEM, -E"] == (mean, sem, ("chance", 0.5), None)
    assert "not told from it: JEM 1.000; JEM 1.000" in run.said[3]
    better = m.jem_sentences(planted_labels(0.95, 0.9))
    assert "accuracy: JEM is better" in better[0]
    assert "NLL: JEM is better" in better[1]
    assert "no different" in m.jem_sentences(planted_labels(0.95, 0.95))[0]


def test_section_amortised_compares_with_theory_and_a_perfect_sampler(monkeypatch):
    run, x = Notes(), m.grid_data((5000,))
    points = {"with entropy": x, "+ 20 steps": x, "without": m.grid_centres()[:1].expand(5000, 2)}
    found = m.OnPlane(points, {name: m.coverage(part) for name, part in points.items()}, (0.1, 0.01))
    monkeypatch.setattr(m, "measure_linear", lambda: m.Linear(1e-9, 0.3, 0.3, 1e-15))
    monkeypatch.setattr(m, "measure_bound", lambda: [m.Bounded(0.1, 2.8, 0.01, 100, 2.81, 3.0, 4.0)])
    monkeypatch.setattr(m, "measure_plane", lambda _: found)
    m.section_amortised(run)
    assert run.metrics["linear: |A A' - Sigma| / |Sigma|"] == (1e-9, None, ("theory", 0), 1e-6)
    assert run.metrics["linear, no entropy: |A|, 60 steps"].against == ("theory", 0.3)
    assert run.metrics["linear, no entropy: |A - theory's|"] == (1e-15, None, ("theory", 0), 1e-12)
    within = m.tolerance(0.01, 100)
    assert run.metrics["noise 0.1: bound of H (nats)"] == (2.8, 0.01, ("H - its gap", 2.81), within)
    assert run.metrics["noise 0.1: H (nats)"].against == ("I(x; z)", 4.0)
    assert run.metrics["with entropy: KL of shares (nats)"].against[1] == 24 / 10_000
    assert run.metrics["with entropy: share within 3 sd"].against[1] == m.theory_near()
    assert "25 modes" in run.said[0]
    assert run.said[0].endswith("eighth of the updates, 1")
    assert run.said[1].endswith("of a perfect sampler's 0.011")


def test_measured_linear_generators_reach_the_covariance_or_decay():
    found = m.measure_linear()
    assert found.with_entropy < 1e-6
    assert found.without == pytest.approx(found.decay)
    assert found.off < 1e-12
    assert found.without < 1.5


def test_measured_bounds_are_within_their_tolerance_and_information_grows():
    rows = m.measure_bound()
    for row in rows:
        assert abs(row.bound - row.expected) < m.tolerance(row.sem, row.n)
        assert row.expected < row.entropy
    assert rows[0].information < rows[1].information - 2 < rows[2].information - 4


# Settings


@pytest.mark.parametrize(("name", "value"), [("n_clusters", 201), ("n_samples", 39), ("n_repeats", 1)])
def test_what_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(SystemExit, match="--" + name.replace("_", "-")):
        m.Config(**{name: value})


@pytest.mark.parametrize(
    "measure", [m.measure_coopnets, m.measure_jem, m.measure_plane, m.compare], ids=lambda f: f.__name__
)
def test_a_measurement_has_a_random_stream_of_its_own(measure, monkeypatch):
    monkeypatch.setattr(m, "RIVALS", {"VAE": m.RIVALS["VAE"]})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(Notes())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("section", m.SECTIONS)
def test_the_largest_seed_and_least_settings_run(section, tmp_path):
    names = (
        "n-ring",
        "n-clusters",
        "width",
        "batch-size",
        "n-pairs",
        "n-langevin",
        "n-cooperation",
        "n-ebgan",
        "n-jem",
        "n-plane",
    )
    least = [f"--{name}=1" for name in (*names, "n-compared", "n-from-noise")] + ["--n-repeats=2", "--n-samples=40"]
    m.main(["--smoke", "--section", section, "--seed", str(2**32 - 1), "--out", str(tmp_path), *least])
