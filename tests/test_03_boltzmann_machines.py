"""Module 03: every sign, factor and temperature of its methods, against enumeration, autograd and closed forms; every
experiment on planted answers; every section against what it must compare with."""

import itertools
import json
import math
import re
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import scipy.stats
import torch
from conftest import load

m = load("03")
T = 0.7  # never 1: a forgotten temperature must show
Entry = namedtuple("Entry", "value sem against within")


class Notes:
    """Stands in for a Run: keeps what a section records, says and draws."""

    def __init__(self, **settings):
        self.config, self.seed, self.device = replace(m.Config(), **(m.SMOKE | settings)), 0, torch.device("cpu")
        self.metrics, self.said, self.figures = {}, [], {}

    def metric(self, name, value, sem=None, against=None, within=None):
        assert name not in self.metrics
        assert len(name) <= 44
        sem, within = (None if x is None else float(x) for x in (sem, within))
        self.metrics[name] = Entry(float(value), sem, against and (against[0], float(against[1])), within)

    def say(self, sentence):
        assert sentence.isascii()
        self.said.append(sentence)

    def figure(self, fig, name):
        fig.draw_without_rendering()
        self.figures[name] = [(ax.get_title(), [line.get_xydata() for line in ax.lines]) for ax in fig.axes]
        plt.close(fig)


def width(sem, n, n_compared=1):
    """Student's t at one false alarm in 10,000, by its distribution function."""
    t = sem * scipy.stats.t(n - 1).ppf(1 - 1e-4 / 2 / n_compared)
    return pytest.approx(float(t), rel=1e-6)


def machine(n, *shape, seed=1, strength=1.0, bias=0.4):
    """A random machine in float64."""
    generator = torch.Generator().manual_seed(seed)
    return (a.double() for a in m.random_machine(shape, n, strength, bias, generator))


def histogram(s):
    """Share of each of the 2^n states among the rows of s (B, n), on where s > 0."""
    n = s.shape[-1]
    powers = 2 ** torch.arange(n - 1, -1, -1)
    return torch.bincount(((s > 0).long() * powers).sum(-1), minlength=2**n) / len(s)


# 1. Units


def test_the_states_are_all_there_and_the_last_unit_changes_fastest():
    expected = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    assert torch.equal(m.enumerate_states(3, off=0), expected)
    assert torch.equal(m.enumerate_states(3), 2 * expected - 1)


def test_the_energy_counts_each_pair_once_and_each_bias():
    W, b = machine(4)
    for s in m.enumerate_states(4, off=0).double():
        pairs = sum(W[i, j] * s[i] * s[j] for i in range(4) for j in range(i))
        assert torch.isclose(m.machine_energy(s[None], W, b)[0], -pairs - b @ s)
    states = m.enumerate_states(4).double()
    assert torch.allclose(m.machine_log_weights(states, W, b), -m.machine_energy(states, W, b))


def test_random_machines_are_symmetric_have_no_self_weights_and_the_strength_asked_for():
    W, b = machine(40, 20, strength=2.0, bias=0.3)
    assert torch.equal(W, W.mT)
    assert W.diagonal(dim1=1, dim2=2).abs().max() == 0
    i, j = torch.triu_indices(40, 40, 1)
    upper = W[:, i, j]
    assert abs(upper.std() * 40**0.5 - 2) < 0.05
    assert abs(b.std() - 0.3) < 0.03


@pytest.mark.parametrize(("off", "factor"), [(-1, 2), (0, 1)])
def test_a_single_unit_is_on_with_the_probability_of_its_kind(off, factor):
    s = m.gibbs_sweep(torch.ones(200_000, 1), torch.zeros(1, 1), torch.tensor([0.4]), T, off)
    assert set(s.unique().tolist()) == {float(off), 1.0}
    assert abs((s > 0).float().mean() - 1 / (1 + math.exp(-factor * 0.4 / T))) < 0.005


@pytest.mark.parametrize("off", [-1, 0])
def test_gibbs_sampling_draws_from_the_enumerated_distribution(off):
    W, b = (a.float() for a in machine(4))
    W, b = (W, b) if off else (3 * W, b)
    p = m.boltzmann(m.enumerate_states(4, off), W, b, T)
    assert torch.isclose(p.sum(), torch.tensor(1.0))
    s = m.random_spins(50_000, 4).clamp(min=off)
    for _ in range(30):
        s = m.gibbs_sweep(s, W, b, T, off)
    assert 0.5 * (histogram(s) - p).abs().sum() < 2 * m.theory_tv(p, 50_000)


def test_gibbs_chains_may_each_have_their_own_temperature_and_machine():
    W, b = (a.float() for a in machine(1, 2))
    temperature = torch.tensor([0.5, 2.0]).repeat_interleave(50_000)
    s = m.gibbs_sweep(torch.ones(2, 100_000, 1), W, b, temperature).view(2, 2, -1)
    expected = torch.sigmoid(2 * b / torch.tensor([0.5, 2.0]))  # (machine, temperature)
    assert torch.allclose((s > 0).float().mean(-1), expected, atol=0.01)


def test_the_kernel_is_what_a_sweep_does():
    W, b = machine(3)
    kernel = m.gibbs_kernel(W, b, T)
    assert torch.allclose(kernel.sum(1), torch.ones(8).double())
    start = m.enumerate_states(3)[2].expand(100_000, 3)
    assert torch.allclose(histogram(m.gibbs_sweep(start, W.float(), b.float(), T)), kernel[2].float(), atol=0.008)


def test_the_right_rule_keeps_p_at_t_and_the_mistake_keeps_p_at_2t():
    W, b = machine(5)
    states = m.enumerate_states(5).double()
    for gap, temperature in ((2, T), (1, 2 * T)):
        p = m.boltzmann(states, W, b, temperature)
        assert torch.allclose(p @ m.gibbs_kernel(W, b, T, gap), p, atol=1e-14)
    assert 0.5 * (m.boltzmann(states, W, b, T) - p).abs().sum() > 0.1


def test_the_same_machine_in_0_1_units_has_the_same_distribution():
    W, b = machine(5)
    p = m.boltzmann(m.enumerate_states(5).double(), W, b, T)
    assert torch.allclose(m.boltzmann(m.enumerate_states(5, off=0).double(), *m.to_binary_units(W, b), T), p)


def test_the_expected_total_variation_is_that_of_independent_draws():
    p = torch.softmax(torch.randn(16).double(), 0)
    counts = torch.distributions.Multinomial(2000, p).sample((2000,))
    measured = 0.5 * (counts / 2000 - p).abs().sum(1).mean()
    assert abs(measured / m.theory_tv(p, 2000) - 1) < 0.03


def test_the_expected_total_variation_is_that_of_a_slow_chain():
    kernel = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()  # ρ(t) = 0.7^t, so v = p(1-p)(1.7/0.3)
    p = torch.tensor([2 / 3, 1 / 3]).double()
    independent = m.theory_tv(p, 50)
    assert torch.isclose(m.theory_tv(p, 50, kernel), independent * (1.7 / 0.3) ** 0.5)


def test_measured_total_variation_meets_theory():
    W, b = (a.float() for a in machine(3))
    p = m.boltzmann(m.enumerate_states(3), W, b)
    n_draws, tv = m.sampled_tv(W, b, -1, 2, p, n_repeats=60, n_sweeps=128)
    assert n_draws.tolist() == [4096, 8192]
    expected = m.theory_tv(p.double(), 8192, m.gibbs_kernel(W.double(), b.double()))
    mean, sem = m.mean_and_sem(tv)
    assert abs(mean[1] - expected) < 5 * sem[1]


def test_slopes_errors_and_widths():
    x = torch.tensor([1.0, 10, 100]).double()
    assert torch.allclose(m.log_slope(x, torch.stack([3 * x**-0.5, x**2])), torch.tensor([-0.5, 2]).double())
    mean, sem = m.mean_and_sem([1.0, 2.0, 3.0, 4.0])
    assert (float(mean), float(sem)) == pytest.approx((2.5, (5 / 3) ** 0.5 / 2))
    assert m.tolerance(0.5, 8, 13) == width(0.5, 8, 13)
    assert m.tolerance(0.5, 1) is None
    assert m.correlation(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 1, 0])) == pytest.approx(-1)


def test_correlations_of_the_mistake_are_those_at_2t():
    W, b = machine(4)
    states = m.enumerate_states(4).double()
    p = m.boltzmann(states, W, b, T)
    by_hand = [sum(p[k] * states[k, i] * states[k, j] for k in range(16)) for i in range(4) for j in range(i + 1, 4)]
    assert torch.allclose(m.exact_correlations(W, b, T), torch.stack(by_hand))
    x, y, r, slope = m.compare_correlations(torch.Generator().manual_seed(3), n=4)
    W, b = (array.double() for array in m.random_machine((), 4, 0.5, 0.0, torch.Generator().manual_seed(3)))
    assert torch.allclose(x, m.exact_correlations(W, b))
    assert torch.allclose(y, m.exact_correlations(W / 2, b / 2))
    assert slope == pytest.approx(float((x * y).sum() / (x * x).sum()))
    assert 0.9 < r < 1


def test_each_rule_is_held_against_what_it_samples():
    """The mistakes: theory of independent draws, p at 2T for p at T, the noise of one for the other."""
    found = m.measure_units(3, 128, torch.Generator().manual_seed(3))
    W, b = (array.double() for array in m.random_machine((), 5, 1.0, 0.3, torch.Generator().manual_seed(3)))
    p, p_double = (m.boltzmann(m.enumerate_states(5).double(), W, b, temperature) for temperature in (1, 2))
    assert found.floor == pytest.approx(float((p - p_double).abs().sum() / 2))
    assert max(found.moved) < 1e-12
    assert found.noise == pytest.approx(float(m.theory_tv(p_double, 8192, m.gibbs_kernel(W, b, 2.0))))
    assert torch.allclose(found.expected[-1], m.theory_tv(p, 8192, m.gibbs_kernel(W, b)))
    for name, tv in found.distances.items():
        assert tv.shape == (3, 2)
        assert (tv.mean() < 0.06) == (name != m.MISTAKE)


# 2. Learning


def test_the_exact_gradient_is_autograd_through_log_z():
    assert m.measure_autograd_error(6, torch.Generator().manual_seed(5)) < 1e-12


def test_the_exact_gradient_is_the_slope_of_the_log_likelihood():
    W, b = machine(4)
    states, p_data = m.enumerate_states(4).double(), torch.softmax(torch.randn(16).double(), 0)
    grad_W, grad_b = m.exact_gradient(W, b, states, p_data)

    def log_likelihood(W, b):
        return p_data @ m.boltzmann(states, W, b).log()

    dW, db, eps = torch.zeros(4, 4).double(), torch.zeros(4).double(), 1e-5
    dW[0, 2] = dW[2, 0] = db[1] = eps
    slope = (log_likelihood(W + dW, b) - log_likelihood(W - dW, b)) / (2 * eps)
    assert torch.isclose(slope, grad_W[0, 2], atol=1e-8)
    slope = (log_likelihood(W, b + db) - log_likelihood(W, b - db)) / (2 * eps)
    assert torch.isclose(slope, grad_b[1], atol=1e-8)
    assert grad_W.diagonal().abs().max() == 0


def test_the_pseudo_likelihood_gradient_is_autograd_of_the_pseudo_likelihood():
    W, b = (a.requires_grad_() for a in machine(4))
    states, p_data = m.enumerate_states(4).double(), torch.softmax(torch.randn(16).double(), 0)
    symmetric = W.triu(1) + W.triu(1).T
    total = 0
    for i in range(4):  # log p(s_i | rest) by the definition of a conditional probability
        energies = m.machine_energy(states, symmetric, b)
        flipped = states.clone()
        flipped[:, i] *= -1
        total = total - p_data @ torch.log1p(torch.exp(energies - m.machine_energy(flipped, symmetric, b)))
    auto_W, auto_b = torch.autograd.grad(total, (W, b))
    grad_W, grad_b = m.pseudo_likelihood_gradient(W.detach(), b.detach(), states, p_data)
    assert torch.allclose(auto_W, grad_W.triu(1))
    assert torch.allclose(grad_W, grad_W.T)
    assert torch.allclose(auto_b, grad_b)


def test_the_gibbs_gradient_is_the_exact_one_on_average():
    W, b = (a.float() for a in machine(4, 1))
    states, p_data = m.enumerate_states(4), torch.softmax(torch.randn(1, 16), 1)
    gradient = m.persistent_gradient(m.random_spins(1, 50_000, 4), *m.moments(states, p_data))
    for _ in range(20):
        grad_W, grad_b = gradient(W, b)
    exact_W, exact_b = m.exact_gradient(W, b, states, p_data)
    assert torch.allclose(grad_W, exact_W, atol=0.025)
    assert torch.allclose(grad_b, exact_b, atol=0.025)


def test_ascent_climbs_to_the_top_and_its_rate_ends_at_zero():
    target = torch.randn(3, 3), torch.randn(3)
    W, b = m.ascend(lambda W, b: (target[0] - W, target[1] - b), torch.zeros(3, 3), torch.zeros(3), 300, 0.1)
    assert torch.allclose(W, target[0], atol=1e-4)
    assert torch.allclose(b, target[1], atol=1e-4)
    rates = []
    m.ascend(lambda W, b: (rates.append(W.item()) or torch.ones(1), torch.zeros(1)), torch.zeros(1), torch.zeros(1), 4, 1.0)
    assert rates == pytest.approx([0, 1, 1 + 0.9 + 0.75, 2.65 + 1.65 * 0.9 + 0.5])


def test_exact_learning_and_pseudo_likelihood_recover_a_teacher_from_its_own_distribution():
    W_true, b_true = (a.float() for a in machine(5, 1, strength=0.7))
    states = m.enumerate_states(5)
    p = torch.softmax(m.machine_log_weights(states, W_true, b_true), -1)
    for gradient in (m.exact_gradient, m.pseudo_likelihood_gradient):
        W, b = m.ascend(lambda W, b, g=gradient: g(W, b, states, p), 0 * W_true, 0 * b_true, 500, 0.1)
        assert torch.allclose(W, W_true, atol=1e-3)
        assert torch.allclose(b, b_true, atol=1e-3)


def inversion_errors(inversion, **options):
    """Largest errors of W and b inferred from exact moments, at weights of strength 0.1 and 0.05."""
    errors = []
    for strength in (0.1, 0.05):
        W, b = machine(6, strength=strength, bias=0.5)
        states = m.enumerate_states(6).double()
        W_fit, b_fit = inversion(*m.moments(states, m.boltzmann(states, W, b)), **options)
        errors.append([(W_fit - W).abs().max(), (b_fit - b).abs().max()])
    return torch.tensor(errors)


def test_mean_field_inverts_to_first_order_and_tap_to_second():
    tap = inversion_errors(m.tap_mean_field)
    for diagonal in (True, False):
        naive = inversion_errors(m.naive_mean_field, diagonal=diagonal)
        assert torch.allclose(
            (naive[0] / naive[1]).log2(), torch.tensor([2.0, 2.0]).to(naive), atol=0.3
        )  # errors of order W²
    assert ((tap[0] / tap[1]).log2() > 2.7).all()  # errors of order W³
    assert (tap[0] < naive[0] / 5).all()


def test_mean_fields_diagonal_is_kappen_and_rodriguezs():
    """Their equation, means and covariances exactly as in the data, with the self-weights that it asks for."""
    W, b = machine(5)
    states = m.enumerate_states(5).double()
    correlation, mean = m.moments(states, m.boltzmann(states, W, b))
    W_fit, b_fit = m.naive_mean_field(correlation, mean)
    inverse = torch.linalg.inv(correlation - mean[:, None] * mean)
    self_weight = 1 / (1 - mean**2) - inverse.diag()
    assert W_fit.diag().abs().max() == 0
    assert torch.allclose(W_fit, -(inverse - inverse.diag().diag()))
    assert torch.allclose(torch.tanh(W_fit @ mean + self_weight * mean + b_fit), mean)


def test_tap_is_finite_without_magnetisation_and_where_its_quadratic_has_no_root():
    correlation = torch.eye(3).double() + 0.2 * (1 - torch.eye(3).double())
    W, b = m.tap_mean_field(correlation, torch.zeros(3).double())
    assert torch.allclose(W, m.naive_mean_field(correlation, torch.zeros(3).double())[0])
    assert b.abs().max() == 0
    mean = torch.tensor([0.6, -0.6, 0.6]).double()
    W, b = m.tap_mean_field(mean[:, None] * mean + 0.64 * (0.55 * torch.eye(3) + 0.45), mean)
    assert W.isfinite().all()
    assert b.isfinite().all()


def test_moments_are_expectations_of_one_machine_and_of_many():
    states, p = m.enumerate_states(3).double(), torch.softmax(torch.randn(2, 8).double(), 1)
    correlation, mean = m.moments(states, p)
    assert torch.allclose(correlation, torch.einsum("mk,ki,kj->mij", p, states, states))
    assert torch.allclose(mean, torch.einsum("mk,ki->mi", p, states))
    assert torch.allclose(m.moments(states, p[1])[0], correlation[1])
    (W, b), p = machine(3, 2), p.flip(0)
    many, one = m.exact_gradient(W, b, states, p), m.exact_gradient(W[1], b[1], states, p[1])
    assert torch.allclose(many[0][1], one[0])
    assert torch.allclose(many[1][1], one[1])


def test_teachers_are_met_where_data_are_plenty_and_wilks_counts_parameters():
    """The mistakes: a KL with its sign, or from the data; strengths, or teachers and strengths, mixed up."""
    found = m.compare_learning(3, 10**6, 300, torch.Generator().manual_seed(1), n=4)
    kl = {name: values.mean(1) for name, values in found.kl.items()}
    assert all((values > 0).all() for values in found.kl.values())
    assert (kl["exact learning"] < 3e-4).all()
    assert (kl["pseudo-likelihood"] < 3e-4).all()
    assert (kl["Gibbs"][:4] < 0.01).all()
    assert (kl["mean field"][:4] < kl["mean field, no diagonal"][:4]).all()
    W, b = m.random_machine((6, 3), 4, generator=torch.Generator().manual_seed(1))
    states = m.enumerate_states(4).double()
    p = m.boltzmann(states, 0.75 * W[2, 1].double(), b[2, 1].double())
    assert found.ceiling[2, 1] == pytest.approx(float((p * p.log()).sum()), rel=1e-5)
    mean = p @ states
    independent = torch.special.entr((1 + mean) / 2) + torch.special.entr((1 - mean) / 2)
    assert found.kl["independent units"][2, 1] == pytest.approx(float(independent.sum() + (p * p.log()).sum()), abs=2e-3)
    assert found.left < 1e-3
    assert m.theory_wilks_kl(10, 2000) == 55 / 4000


def test_gradients_are_timed_on_all_states_and_on_the_patterns(monkeypatch):
    seen = []
    monkeypatch.setattr(m, "SIZES", (3, 5))
    monkeypatch.setattr(m, "exact_gradient", lambda W, b, x, p: seen.append(("exact", len(x), float(p.sum()))))
    monkeypatch.setattr(m, "pseudo_likelihood_gradient", lambda W, b, x, p: seen.append(("pseudo", len(x), float(p.sum()))))
    times = m.time_gradients(70, torch.Generator(), n_calls=1)
    assert [(name, n) for name, n, _ in seen] == [("exact", 8), ("pseudo", 70), ("exact", 32), ("pseudo", 70)]
    assert [total for *_, total in seen] == pytest.approx([1] * 4)
    assert [len(kept) for kept in times] == [2, 2]


# 3. Pairs of pixels


def test_digits_are_split_three_ways_and_are_1_where_ink_is():
    parts = m.digit_spins()
    assert [len(x) for x in parts] == [1221, 216, 360]
    assert all(set(x.unique().tolist()) == {-1.0, 1.0} for x in parts)
    assert parts[0][:, 0].max() == -1  # a corner
    assert parts[0].mean() < -0.3
    assert m.smoothed_mean(torch.tensor([[1.0], [1.0], [1.0]])) == 0.75


def test_pairs_are_fitted_to_the_penalised_pseudo_likelihood():
    x = 2.0 * (torch.rand(400, 4) < torch.rand(4)) - 1
    x[:, 1] *= torch.where(torch.rand(400) < 0.6, x[:, 0], torch.ones(400))
    W, b = (array.double().requires_grad_() for array in m.fit_pairs(x, 0.2, 600))
    pair = W.triu(1)
    loss = m.pseudo_log_likelihood(x.double(), pair + pair.T, b).mean() - 0.1 * (pair**2).sum()
    for gradient in torch.autograd.grad(loss, (W, b)):
        assert gradient.abs().max() < 1e-3
    assert pair.abs().max() > 0.05
    states = m.enumerate_states(4)
    p = torch.softmax(m.machine_log_weights(states.double(), (pair + pair.T).detach(), b.detach()), 0)
    flipped = [
        [(states == states[k] * (1 - 2 * torch.eye(4)[i])).all(1).nonzero().item() for i in range(4)] for k in range(16)
    ]
    by_hand = torch.stack([sum((p[k] / (p[k] + p[f])).log() for f in flipped[k]) for k in range(16)])
    assert torch.allclose(m.pseudo_log_likelihood(states.double(), pair + pair.T, b), by_hand)


def test_the_penalty_is_chosen_on_validation_and_scored_on_test_images(monkeypatch):
    train, valid, test = (2.0 * (torch.rand(n, 3) < 0.7) - 1 for n in (90, 50, 40))

    def fit(x, penalty, n_steps):
        assert x is train
        return penalty * (1 - torch.eye(3)), torch.zeros(3)

    real = m.pseudo_log_likelihood
    scores = {float(penalty): score for penalty, score in zip(m.PENALTIES, (1.0, 4.0, 2.0, 3.0), strict=True)}

    def score(x, W, b):
        assert x is not train
        return torch.full((1,), scores[round(W[0, 1].item(), 5)]) if x is valid else real(x, W, b)

    def match(W, b, x, n_steps):
        assert (x is train, n_steps) == (True, 1)
        return 0 * W, torch.tensor([9.0, -9.0, 9.0])

    monkeypatch.setattr(m, "fit_pairs", fit)
    monkeypatch.setattr(m, "match_moments", match)
    monkeypatch.setattr(m, "pseudo_log_likelihood", score)
    found = m.model_digits(train, valid, test, 1, n_samples=4000, n_sweeps=5)
    assert found.penalty == m.PENALTIES[1]
    assert torch.allclose(found.test, real(test, 0.1 * (1 - torch.eye(3)), torch.zeros(3)))
    mean = m.smoothed_mean(train)
    assert torch.allclose(found.independent, (((1 + test * mean) / 2).log()).sum(1), atol=1e-5)
    assert torch.allclose(found.coins.mean(0), mean, atol=0.07)
    assert found.samples["pseudo-likelihood"].mean().abs() < 0.07
    assert torch.equal(found.samples["Gibbs"].mean(0), torch.tensor([1.0, -1, 1]))


def test_matched_moments_are_those_of_the_patterns():
    """The mistakes: the gradient's sign, or another's moments."""
    x = 2.0 * (torch.rand(600, 3) < torch.tensor([0.3, 0.5, 0.6])) - 1
    x[:, 1] = torch.where(torch.rand(600) < 0.7, x[:, 0], x[:, 1])
    W, b = m.match_moments(torch.zeros(3, 3), torch.zeros(3), x, 1500, n_chains=2000)
    states = m.enumerate_states(3)
    correlation, mean = m.moments(states, m.boltzmann(states, W, b))
    assert torch.allclose(mean, x.mean(0), atol=0.03)
    assert torch.allclose(correlation, x.T @ x / len(x), atol=0.03)
    assert (x.T @ x / len(x) - x.mean(0)[:, None] * x.mean(0))[0, 1] > 0.3


def test_connected_moments_by_loops():
    x = torch.randn(50, 4)
    second, third = m.connected(x)
    y = x - x.mean(0)
    assert torch.allclose(second, torch.stack([(y[:, i] * y[:, j]).mean() for i, j in itertools.combinations(range(4), 2)]))
    triples = [(y[:, i] * y[:, j] * y[:, k]).mean() for i, j, k in itertools.combinations(range(4), 3)]
    assert torch.allclose(third, torch.stack(triples))


# 4. Hidden units


def test_the_gradient_with_hidden_units_is_autograd_of_the_visible_log_likelihood():
    W, b = (a.requires_grad_() for a in machine(5, 2))
    states, p_data = m.enumerate_states(5, off=0).double(), torch.softmax(torch.randn(8).double(), 0)
    log_likelihood = m.visible_log_likelihood(W.triu(1) + W.triu(1).mT, b, states, p_data, 2)
    auto_W, auto_b = torch.autograd.grad(log_likelihood.sum(), (W, b))
    grad_W, grad_b = m.clamped_gradient(W.detach(), b.detach(), states, p_data, 2)
    assert torch.allclose(auto_W, grad_W.triu(1))
    assert torch.allclose(auto_b, grad_b)


def test_the_visible_log_likelihood_sums_hidden_units_out():
    W, b = machine(5)
    p = m.boltzmann(m.enumerate_states(5).double(), W, b).view(8, 4).sum(1)
    p_data = torch.softmax(torch.randn(8).double(), 0)
    got = m.visible_log_likelihood(W, b, m.enumerate_states(5).double(), p_data, 2)
    assert torch.isclose(got, p_data @ p.log())


def test_no_visible_machine_does_better_at_parity_than_coins():
    states, p_data, _ = m.parity_task(0)
    assert torch.equal(p_data > 0, states.prod(1) > 0)
    grad_W, grad_b = m.clamped_gradient(torch.zeros(4, 4), torch.zeros(4), states, p_data, 0)
    assert grad_W.abs().max() < 1e-6  # the likelihood is concave: a zero gradient is the maximum
    assert grad_b.abs().max() < 1e-6


def test_the_encoder_shows_one_unit_of_each_group_and_wires_the_groups_through_hidden_units():
    states, p_data, wired = m.encoder_task(2)
    visible = m.enumerate_states(8, off=0)[p_data > 0]
    assert torch.equal(visible[:, :4], visible[:, 4:])
    assert torch.equal(visible[:, :4].sum(0), torch.ones(4))
    assert torch.equal(p_data[p_data > 0], torch.full((4,), 0.25))
    assert wired[:4, 4:8].sum() == wired[4:8, :4].sum() == wired.diagonal().sum() == 0
    assert wired.sum() == 10 * 9 - 32
    assert states.shape == (1024, 10)


def test_trained_restarts_respect_the_wiring_and_stay_below_the_bound():
    generator = torch.Generator().manual_seed(0)
    for n_hidden, bound in ((0, 4), (1, 3)):
        reached, W, _ = m.train_restarts(m.encoder_task, n_hidden, 5, 200, 0.3, generator)
        assert W[:, :4, 4:8].abs().max() == 0
        assert torch.equal(W, W.mT)
        assert reached.max() < -bound * math.log(2)
    assert reached.max() > -3.5 * math.log(2)


def encoder(codes):
    """An encoder with large weights, in which pattern k has the code codes[k]: W (1, 10, 10), b (1, 10)."""
    W, b = torch.zeros(10, 10), torch.full((10,), -10.0)
    W[:4, :4] = W[4:8, 4:8] = -30 * (1 - torch.eye(4))  # one unit of each group at a time
    for k, code in enumerate(codes):
        for j, on in enumerate(code):
            for unit in (k, k + 4):
                W[unit, 8 + j] = 20.0 if on else -20.0
                b[unit] -= 20.0 * on
        b[k] += 20
        b[k + 4] += 20
    W[8:, :8] = W[:8, 8:].T
    b[8:] = 0
    return W[None], b[None]


def test_the_best_encoder_is_reached_by_a_binary_code_and_not_by_a_shared_one():
    states, p_data, _ = m.encoder_task(2)
    for codes, best in (([(0, 0), (0, 1), (1, 0), (1, 1)], -2), ([(0, 0), (0, 1), (1, 0), (1, 0)], None)):
        W, b = encoder(codes)
        assert m.uses_all_codes(W, b).tolist() == [best is not None]
        if best:
            assert m.visible_log_likelihood(W, b, states, p_data, 2).item() == pytest.approx(best * math.log(2), abs=1e-3)
    ln2 = math.log(2)
    assert [m.theory_best(m.encoder_task, h) / ln2 for h in range(4)] == pytest.approx([-4, -3, -2, -2])
    assert [m.theory_best(m.parity_task, h) / ln2 for h in range(3)] == pytest.approx([-4, -3, -3])


def test_noisy_patterns_are_switched_unit_by_unit():
    p = torch.softmax(torch.randn(8), 0)
    states, noisy = m.enumerate_states(3, off=0), torch.zeros(8)
    for k, l in itertools.product(range(8), range(8)):
        chance = [
            ({1: 0.15, 0: 0.85} if a else {1: 0.05, 0: 0.95})[int(a != b)] for a, b in zip(states[k], states[l], strict=True)
        ]
        noisy[l] += p[k] * math.prod(chance)
    assert torch.allclose(m.noisy_patterns(p), noisy)


def test_the_rule_of_1985_takes_fixed_steps_and_notes_who_has_the_code(monkeypatch):
    seen, answers = [], [[False, False], [True, False], [False, False], [True, False]]
    monkeypatch.setattr(m, "uses_all_codes", lambda W, b: seen.append((W, b)) or torch.tensor(answers[len(seen) - 1]))
    cycles, found = m.learn_as_in_1985(2, 35)
    assert cycles.tolist() == [10, 20, 30, 35]
    assert found.tolist() == answers
    assert m.first_cycle(cycles, found).tolist() == [20, math.inf]
    W, b = seen[0]
    assert torch.allclose(W / 0.2, (W / 0.2).round(), atol=1e-4)
    assert 0 < W.abs().max() <= 2.001  # ten steps
    assert W[:, :4, 4:8].abs().max() == 0
    assert b[:, :8].mean() < -0.2  # one unit of four is on: coins are on too often
    assert W[:, 0, 1].max() < 0  # and two of a group never


def test_the_control_has_no_noise_on_its_patterns(monkeypatch):
    noises = []
    monkeypatch.setattr(m, "noisy_patterns", lambda p, off, on: noises.append((off, on)) or p)
    for options in ({}, {"noise": (0.0, 0.0)}):
        m.learn_as_in_1985(2, 1, **options)
    assert noises == [(0.15, 0.05), (0.0, 0.0)]  # a unit that is on is switched off more often


def test_restarts_succeed_within_a_tenth_of_a_nat(monkeypatch):
    nats = torch.tensor([-9.0, -2.19, -2.17])
    monkeypatch.setattr(m, "train_restarts", lambda task, n_hidden, *_: (nats, task, n_hidden))
    monkeypatch.setattr(m, "uses_all_codes", lambda W, b: (W, b) == (m.encoder_task, 2))
    found = m.compare_hidden(3, 1, None)
    assert list(found) == [(task, h) for task in ("encoder", "parity") for h in range(4)]
    assert found["parity", 1].succeeded.tolist() == [0, 0, 1]  # the best is -2.079
    assert found["parity", 1].best == m.theory_best(m.parity_task, 1)
    assert [each.all_codes for each in found.values()] == [None, None, True] + [None] * 5


# 5. Ising


def test_kaufman_is_brute_force_on_4x4():
    s = m.enumerate_states(16).double().view(-1, 4, 4)
    bonds = (s * (s.roll(1, 1) + s.roll(1, 2))).sum((1, 2))
    coupling = torch.tensor([0.05, 0.3, 0.5 * math.log(1 + 2**0.5), 0.7, 1.5]).double()
    log_weights = coupling[:, None] * bonds
    assert torch.allclose(m.exact_ising_log_z(coupling, 4), log_weights.logsumexp(1), atol=1e-9)
    energy = -(log_weights.softmax(1) @ bonds) / 16
    assert torch.allclose(m.exact_ising_energy(1 / coupling, 4), energy, atol=1e-9)


def test_kaufman_is_the_transfer_matrix_on_8x8():
    rows = m.enumerate_states(8).double()
    inside = (rows * rows.roll(1, 1)).sum(1)
    for coupling in (0.3, 0.44, 0.6):
        transfer = torch.exp(coupling * (rows @ rows.T + 0.5 * (inside[:, None] + inside)))
        log_z = torch.linalg.eigvalsh(transfer).pow(8).sum().log()
        assert torch.isclose(m.exact_ising_log_z(torch.tensor([coupling]).double(), 8)[0], log_z, atol=1e-8)


def test_kaufman_survives_large_lattices_and_all_temperatures():
    energy = m.exact_ising_energy(torch.tensor([0.3, 50.0]), 256)
    coupling = 1 / 50  # high-temperature series per site: -2 (v + 2 v^3 (1 - v^2)...), v = tanh K
    v = math.tanh(coupling)
    assert energy.tolist() == pytest.approx([-2, -2 * (v + 2 * v**3 * (1 - v**2))], rel=1e-5)


def test_yang_magnetisation():
    cold, two, below, above, hot = m.exact_magnetisation(torch.tensor([0.5, 2.0, 2.269, 2.2692, 5.0]).double()).tolist()
    assert (cold, two) == pytest.approx((1, 0.911319), abs=1e-6)  # 0.911319: Yang's formula, as tabulated
    assert below > 0.3
    assert above == hot == 0  # Tc = 2.26919


def full_lattice(black, white):
    """Lattices (..., L, L) from the two colours, by the words of the module's comment."""
    lattice = torch.empty(*black.shape[:-1], 2 * black.shape[-1], dtype=black.dtype)
    for i in range(black.shape[-2]):
        lattice[..., i, i % 2 :: 2], lattice[..., i, 1 - i % 2 :: 2] = black[..., i, :], white[..., i, :]
    return lattice


def test_the_neighbours_on_the_chessboard_are_those_of_the_torus():
    black, white = (torch.randint(0, 2, (2, 3, 6, 3)).to(torch.int8) for _ in range(2))
    lattice = full_lattice(black, white)
    around = sum(lattice.roll(step, axis) for step in (1, -1) for axis in (-1, -2))
    expected = full_lattice(m.up_neighbours(white, 0), m.up_neighbours(black, 1))
    assert torch.equal(expected, around)


def test_the_thresholds_are_the_right_probabilities_on_average():
    temperature = torch.tensor([1.0, 2.5])
    mean = torch.stack([m.ising_thresholds(temperature).double() for _ in range(4000)]).mean(0).view(5, 2)
    field = 2 * torch.arange(5.0) - 4
    expected = torch.sigmoid(2 * field[:, None] / temperature)
    assert torch.allclose((mean + 32768) / 65536, expected.double(), atol=1e-6)  # 16 bits alone: 8e-6


def test_the_ising_sampler_meets_enumeration_on_4x4():
    s = m.enumerate_states(16).view(-1, 4, 4)
    energies = -(s * (s.roll(1, 1) + s.roll(1, 2))).sum((1, 2)) / 16
    temperature = torch.tensor([2.0, 3.5])
    magnetisation, energy, _ = m.simulate_ising(4, temperature, 400, 220)
    p = torch.softmax(-16 * energies / temperature[:, None], 1)
    for trace, exact in ((energy, p @ energies), (magnetisation.abs(), p @ s.mean((1, 2)).abs())):
        mean, sem = m.mean_and_sem(trace[..., 20:].mean(-1).T)
        assert ((mean - exact).abs() < 5 * sem).all()
        assert (sem < 0.02).all()


def test_the_recorded_magnetisation_and_energy_are_those_of_the_lattice():
    magnetisation, energy, lattices = m.simulate_ising(8, torch.tensor([2.3, 5.0]), 5, 6)
    last = 2.0 * lattices - 1
    assert torch.allclose(last.mean((2, 3)), magnetisation[..., -1], atol=1e-6)
    last_energy = -(last * (last.roll(1, 2) + last.roll(1, 3))).mean((2, 3))
    assert torch.allclose(last_energy, energy[..., -1], atol=1e-6)


def test_the_ising_sampler_starts_from_the_ordered_state():
    magnetisation, energy, _ = m.simulate_ising(8, torch.tensor([0.3]), 2, 3)
    assert torch.equal(magnetisation, torch.ones(1, 2, 3))
    assert torch.equal(energy, -2 * torch.ones(1, 2, 3))


def test_the_autocorrelation_time_of_a_known_chain():
    rho, n = 0.8, 10_000
    x = torch.empty(n, 2, 10).double()
    x[0] = torch.randn(2, 10)
    for t in range(1, n):
        x[t] = rho * x[t - 1] + (1 - rho**2) ** 0.5 * torch.randn(2, 10)
    tau, sem = m.integrated_time(x.permute(1, 2, 0))
    assert tau.shape == sem.shape == (2,)
    assert (abs(tau - (1 + rho) / (1 - rho)) < 4 * sem + 0.1).all()
    assert ((sem > 0.1) & (sem < 0.9)).all()  # 9 (2 (2W + 1)/n)^(1/2) = 0.9 a chain (Sokal 1989), 0.27 for ten
    shifted = x.permute(1, 2, 0) + torch.arange(10)[:, None]  # chains that disagree
    assert (m.integrated_time(shifted, common_mean=False)[0] < 10).all()
    assert (m.integrated_time(shifted)[0] > 100).all()
    assert m.integrated_time(torch.ones(3, 50))[0] == 1


def test_lattices_are_averaged_after_the_first_quarter(monkeypatch):
    def simulate(side, temperature, n_lattices, n_sweeps):
        assert torch.equal(temperature, m.TEMPERATURES)
        trace = torch.arange(float(n_sweeps)).expand(13, n_lattices, -1)
        return -trace, 2 * trace, None  # |m| forgets the sign

    monkeypatch.setattr(m, "simulate_ising", simulate)
    found = m.measure_lattices((8, 16), 3, 40)
    assert list(found) == [8, 16]
    assert found[8].m.shape == (3, 13)
    assert (found[8].m == (10 + 39) / 2).all()
    assert (found[8].energy == 10 + 39).all()
    assert m.TEMPERATURES[m.MIDDLE] == pytest.approx(m.T_C)
    exact = torch.tensor([1.0, 2.0])
    values = exact + torch.tensor([[0.1, 0.6], [0.3, 0.2]])
    assert m.worst_in_errors(values, exact) == pytest.approx(2, rel=1e-4)  # 0.2 by 0.1; 0.4 by 0.2


# 6. Clusters


def test_wolff_meets_enumeration_on_4x4():
    """The mistakes: bonds of 1 - exp(-1/T), bonds between unequal spins, a cluster that does not close around the torus."""
    s = m.enumerate_states(16).view(-1, 4, 4)
    energies = -(s * (s.roll(1, 1) + s.roll(1, 2))).sum((1, 2)) / 16
    temperature = torch.tensor([2.0, 3.5])
    magnetisation, energy, share = m.simulate_wolff(4, temperature.repeat_interleave(300), 120)
    p = torch.softmax(-16 * energies / temperature[:, None], 1)
    for trace, exact in ((energy, p @ energies), (magnetisation**2, p @ s.mean((1, 2)) ** 2)):
        mean, sem = m.mean_and_sem(trace[:, 20:].mean(1).view(2, 300).T)
        assert ((mean - exact).abs() < 5 * sem).all()
        assert (sem < 0.02).all()
    mean, sem = m.mean_and_sem(share.view(2, 300).T)  # <|C|>/N = <m²> (Wolff 1989)
    assert ((mean - p @ s.mean((1, 2)) ** 2).abs() < 5 * sem + 0.01).all()  # the start is ordered


def test_a_cluster_is_one_connected_patch_of_equal_spins():
    s = 2 * torch.randint(0, 2, (40, 6, 6)).to(torch.int8) - 1
    new, size = m.wolff_step(s, torch.full((40,), 1e-3))  # cold: every bond is laid
    for before, after, n in zip(s, new, size, strict=True):
        changed = before != after
        assert changed.sum() == n
        assert before[changed].unique().numel() == 1
        around = sum(changed.roll(step, axis).int() for step in (1, -1) for axis in (0, 1)) > 0
        assert not (around & ~changed & (before == before[changed][0])).any()  # nothing alike is left at the border
    assert (m.wolff_step(s, torch.full((40,), 1e6))[1] == 1).all()  # hot: no bond


def test_binders_cumulant_its_crossing_and_the_jackknife():
    m2, m4 = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 12.0])  # one value of |m|; a Gaussian of variance 2
    assert m.binder_cumulant(m2, m4).tolist() == pytest.approx([2 / 3, 0])
    x = torch.linspace(1, 3, 5).double()
    assert m.parabolas_cross(x, x**2, 2 * x + 1) == pytest.approx(1 + 2**0.5)
    assert math.isnan(m.parabolas_cross(x, x**2 + 1, 0 * x))
    values = torch.randn(9).double()
    value, sem = m.leave_one_out(lambda which: values[which].mean().item(), 9)
    assert (value, sem) == pytest.approx(tuple(x.item() for x in m.mean_and_sem(values)))
    assert math.isnan(m.leave_one_out(lambda which: 1.0, 1)[1])


def test_both_samplers_run_at_tc_and_wolffs_time_is_in_sweeps(monkeypatch):
    lengths = []

    def gibbs(side, temperature, n_lattices, n_sweeps):
        lengths.append((side, n_sweeps, n_lattices))
        assert temperature.tolist() == pytest.approx([m.T_C])
        return torch.randn(1, n_lattices, n_sweeps) + 5, None, None

    def wolff(side, temperature, n_steps):
        assert torch.allclose(temperature, torch.full((6,), m.T_C))
        m_trace = torch.randn(6, n_steps).repeat_interleave(2, 1)[:, :n_steps].double() - 9
        return m_trace, torch.arange(float(n_steps)).expand(6, -1), torch.full((6,), 0.25)

    monkeypatch.setattr(m, "simulate_ising", gibbs)
    monkeypatch.setattr(m, "simulate_wolff", wolff)
    found = m.measure_slowing((8, 16, 32), 6, 400, 2000)
    assert lengths == [(8, 300, 6), (16, 600, 6), (32, 1200, 6)]
    assert found.gibbs.tolist() == pytest.approx([1] * 3, abs=0.4)
    assert found.wolff.tolist() == pytest.approx([2 / 4] * 3, abs=0.06)  # each value twice: τ = 2 steps of a quarter sweep
    assert found.energy.tolist() == [(200 + 1999) / 2] * 6


def test_binders_curves_are_measured_where_they_are_drawn(monkeypatch):
    def wolff(side, temperature, n_steps):
        assert temperature[:5].tolist() == temperature[5:10].tolist()
        spread = 0.5 + side * (temperature - 2.27)  # of |m|: the larger the side, the steeper
        even = torch.arange(n_steps) % 2
        m_trace = torch.where(even == 0, 1.0, 1.0 + spread[:, None]).double()
        m_trace[:, : n_steps // 10] = 77
        return m_trace, None, None

    monkeypatch.setattr(m, "simulate_wolff", wolff)
    found = m.measure_binder((4, 8), 3, 100)
    assert found.crossing == pytest.approx(2.27, abs=3e-3)
    assert found.moments[8][0].shape == (3, 5)
    assert found.sem == pytest.approx(0, abs=1e-9)


# 7. Annealing


@pytest.mark.parametrize("n", [7, 8])
def test_ground_energies_are_the_minimum_over_all_states(n):
    W = m.spin_glasses(3, n, torch.Generator().manual_seed(0))
    energies = m.machine_energy(m.enumerate_states(n), W, torch.zeros(3, n))
    assert torch.allclose(m.exact_ground_energies(W), energies.amin(1), atol=1e-5)


def test_the_schedules_cool_as_their_names_say():
    geometric = m.schedule("geometric", 9, 2.0, 0.5)
    assert torch.allclose(geometric[1:] / geometric[:-1], torch.full((8,), 0.25 ** (1 / 8)))
    assert (float(geometric[0]), float(geometric[-1])) == pytest.approx((2.0, 0.5))
    logarithmic = m.schedule("logarithmic", 9, 2.0)
    assert logarithmic[0] == 2
    assert torch.allclose(logarithmic * torch.log(torch.arange(2.0, 11)), torch.full((9,), 2 * math.log(2)))


def test_swaps_are_in_detailed_balance():
    W, b = machine(4)
    energies = m.machine_energy(m.enumerate_states(4).double(), W, b)
    x, y = energies[:, None], energies[None, :]
    p = torch.exp(-x / 0.6 - y / 1.9)  # x at T = 0.6, y at T = 1.9
    flow = p * m.swap_probability(x, y, 0.6, 1.9)
    assert torch.allclose(flow, flow.T)
    assert m.swap_probability(x, y, 0.6, 1.9).max() == 1
    assert (m.swap_probability(x, y, 0.6, 1.9) + (x < y) >= 1).all()  # lower energies always move to the colder replica


@pytest.mark.parametrize("first", [0, 1])
def test_swapping_keeps_each_replica_at_its_temperature(first):
    W, b = (a.float() for a in machine(3))
    states, ladder = m.enumerate_states(3), torch.tensor([3.0, 1.0, 0.5])
    p = m.boltzmann(states, W, b, ladder[:, None])
    s = states[torch.multinomial(p, 60_000, replacement=True).T]  # (60000, 3 replicas, 3 units), exact draws
    swapped = m.swap_replicas(s, m.machine_energy(s, W, b), ladder, first)
    assert (swapped != s).any(-1).float().mean() > 0.1
    assert torch.equal(swapped[:, 2 * (1 - first)], s[:, 2 * (1 - first)])  # who has no partner stays
    for k in range(3):
        assert 0.5 * (histogram(swapped[:, k]) - p[k]).abs().sum() < 2.5 * m.theory_tv(p[k], 60_000)


@pytest.mark.parametrize("name", list(m.METHODS))
def test_every_method_finds_ground_states_within_its_budget(name, monkeypatch):
    W = m.spin_glasses(4, 10, torch.Generator().manual_seed(0))
    updates, sweep = [], m.gibbs_sweep

    def counted(s, *args, **kwargs):
        updates.append(s.numel())
        return sweep(s, *args, **kwargs)

    monkeypatch.setattr(m, "gibbs_sweep", counted)
    method, settings = m.METHODS[name]
    best = method(W, 60, 25, *settings[-1])
    assert best.shape == (4, 25)
    assert sum(updates) == 60 * W.shape[0] * 25 * 10
    ground = m.exact_ground_energies(W)[:, None]
    assert (best > ground - 1e-4).all()
    assert (best < ground + 1e-4).float().mean() > 0.8


def test_annealing_follows_its_temperatures_and_reports_the_lowest_energy_met():
    W = m.spin_glasses(2, 10, torch.Generator().manual_seed(0))
    hot = m.anneal(W, torch.full((5,), 100.0), 200).mean()
    cold = m.anneal(W, torch.full((5,), 0.1), 200).mean()
    assert cold < hot - 0.5
    longer = m.anneal(W, torch.full((300,), 100.0), 200).mean()  # hot, but given time it meets everything
    assert longer < hot - 0.5


def test_parallel_tempering_samples_at_the_temperatures_of_its_ladder():
    W = m.spin_glasses(2, 30, torch.Generator().manual_seed(0))
    hot, cold = (m.parallel_tempering(W, torch.tensor(ladder), 4, 100).mean() for ladder in ([50.0, 60.0], [0.1, 0.2]))
    mild = m.parallel_tempering(W, torch.tensor([0.9, 1.1]), 4, 100).mean()
    assert cold < mild - 1
    assert mild < hot - 1


def test_restarted_descent_only_descends_until_it_is_stuck(monkeypatch):
    W = m.spin_glasses(3, 12, torch.Generator().manual_seed(0))
    seen, sweep = [], m.gibbs_sweep

    def watched(s, W, b, **kwargs):
        new = sweep(s, W, b, **kwargs)
        seen.append((s, m.machine_energy(s, W, b), new, m.machine_energy(new, W, b)))
        return new

    monkeypatch.setattr(m, "gibbs_sweep", watched)
    best = m.quench_restarts(W, 12, 50)
    assert all((after <= before + 1e-5).all() for _, before, _, after in seen)
    triples = [(a[0], a[2], b[0]) for a, b in itertools.pairwise(seen)]
    previous, new, start = (torch.stack(x) for x in zip(*triples, strict=True))
    stuck = (new == previous).all(-1)
    assert (start == new).all(-1)[~stuck].all()
    assert (start != new).any(-1)[stuck].float().mean() > 0.99
    assert torch.equal(best, torch.stack([after for *_, after in seen] + [seen[0][1]]).amin(0))


def test_what_geman_and_gemans_theorem_asks_for():
    W = m.spin_glasses(2, 7, torch.Generator().manual_seed(0))
    energies = m.machine_energy(m.enumerate_states(7), W, torch.zeros(2, 7))
    ground = m.exact_ground_energies(W)
    span = energies.amax(1) - energies.amin(1)
    assert torch.allclose(m.theory_log10_updates(W, ground, 0.2), 7 * span / 0.2 / math.log(10), rtol=1e-4)


def test_settings_are_chosen_by_the_lowest_mean_energy_on_glasses_of_their_own(monkeypatch):
    """The mistakes: the highest, one method's setting for another's, the instances of the comparison."""
    seen = []

    def method(W, n_sweeps, n_runs, hot):
        seen.append((W, n_sweeps, n_runs, hot))
        return (hot - 2.0) ** 2 + torch.zeros(len(W), n_runs)

    monkeypatch.setattr(m, "METHODS", {"a": (method, [(1.0,), (2.5,), (4.0,)]), "b": (None, [(9.0,)])})
    generator = torch.Generator().manual_seed(0)
    glasses = m.spin_glasses(3, 30, generator)
    assert m.choose_settings(30, 7, generator, n_instances=3) == {"a": (2.5,), "b": (9.0,)}
    assert [(n, runs, hot) for _, n, runs, hot in seen] == [(7, 10, 1.0), (7, 10, 2.5), (7, 10, 4.0)]
    assert all(W.shape == (3, 30, 30) and not torch.equal(W, glasses) for W, *_ in seen)


def test_methods_meet_on_the_same_spin_glasses(monkeypatch):
    """The mistakes: success that any energy is, an excess that is not a unit's, or not above the best of all."""
    calls = []

    def method(offset):
        def lowest(W, n_sweeps, n_runs, *setting):
            calls.append((W.shape[1], n_sweeps, n_runs, setting))
            each = m.exact_ground_energies(W) if n_runs == 5 else torch.full((len(W),), offset)
            return each[:, None] + offset * torch.arange(n_runs)

        return lowest

    def choose(size, n_sweeps, generator, n_instances=5):
        assert not calls
        return dict.fromkeys(m.METHODS, (size, n_sweeps))

    monkeypatch.setattr(m, "METHODS", {"good": (method(0.0), None), "bad": (method(0.3), None)})
    monkeypatch.setattr(m, "choose_settings", choose)
    monkeypatch.setattr(m, "exact_ground_energies", lambda W: torch.arange(float(len(W))))
    found = m.compare_annealing(4, 5, 16, torch.Generator().manual_seed(0))
    assert found.budgets == [8, 16]
    assert found.success["good"].tolist() == [[1] * 4] * 2
    assert found.success["bad"].tolist() == [pytest.approx([0.2] * 4)] * 2
    assert found.excess["good"].abs().max() == 0
    assert found.excess["bad"][:, 0].tolist() == pytest.approx([0.3 * 5.5 / size for size in (20, 40, 80, 160)])
    assert calls[0] == (20, 8, 5, (20, 16))
    assert calls[-1] == (160, 16, 10, (160, 16))
    assert found.settings[1] == {"good": (160, 16), "bad": (160, 16)}


def test_who_is_as_good_as_the_best_is_told_by_paired_differences():
    best = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    noise = torch.tensor([0.1, -0.1, 0.1, -0.1]).double()
    values = {"worse": best - 0.2 + noise / 4, "best": best, "close": best - 0.05 + noise}
    assert m.as_good_as_the_best(values) == ["best", "close"]
    edge = scipy.stats.t(3).ppf(1 - 0.0025) * float((noise / 4).std()) / 2  # two comparisons at 1 % in all
    for share, is_tied in ((0.99, True), (1.01, False)):
        values = {"best": best, "other": best - share * edge + noise / 4, "far": best - 5}
        assert (m.as_good_as_the_best(values) == ["best", "other"]) == is_tied
    assert m.as_good_as_the_best({"one": best[:1], "two": best[:1] - 1}) == ["one", "two"]  # nobody knows


# 8. Diagnostics


def test_the_exact_autocorrelation_time_of_a_two_state_chain():
    kernel = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
    p = torch.tensor([2 / 3, 1 / 3]).double()
    tau = m.exact_time(kernel, p, torch.tensor([5.0, -1.0]).double())
    assert tau == pytest.approx(1 + 2 * 0.7 / 0.3)  # ρ(t) = 0.7^t


def test_gibbs_chains_record_the_magnetisation_after_each_sweep():
    W, b = 0.3 * (1 - torch.eye(3)), torch.full((3,), 0.1)
    draws = m.gibbs_chains(torch.ones(2000, 3), W, b, T, 30)
    assert draws.shape == (2000, 30)
    p = m.boltzmann(m.enumerate_states(3), W, b, T)
    assert abs(draws[:, 10:].mean() - p @ m.enumerate_states(3).mean(1)) < 0.02


def test_split_r_hat_by_hand():
    chains = torch.tensor([[0.0, 1, 0, 1], [2, 3, 2, 3]])  # halves of variance 1/2, with means 0.5, 0.5, 2.5, 2.5
    assert m.split_r_hat(chains) == pytest.approx((1 / 2 + (4 / 3) / (1 / 2)) ** 0.5)


def test_diagnostics_are_blind_to_a_mode_that_no_chain_visits_and_see_chains_that_disagree():
    W, b = 0.45 * (1 - torch.eye(10)), torch.full((10,), 0.05)
    start = torch.ones(4, 10)
    draws = m.gibbs_chains(start, W, b, 1.0, 400)
    assert m.split_r_hat(draws) < 1.01
    assert m.diagnose_chains(draws).ess > 400
    start[:2] = -1
    draws = m.gibbs_chains(start, W, b, 1.0, 400)
    assert m.split_r_hat(draws) > 2
    assert m.diagnose_chains(draws).ess < 10
    assert m.integrated_time(draws, common_mean=False)[0] < 2


def test_chains_that_do_not_move_are_diagnosed_as_stuck():
    """0/0 ended a run: R-hat of constants is 1 if they agree and infinite if not, and each is worth one draw."""
    agree, disagree = (
        m.diagnose_chains(torch.ones(4, 50).double()),
        m.diagnose_chains(torch.tensor([[1.0], [-1.0]]).expand(2, 50).double()),
    )
    assert (agree.r_hat, agree.ess, agree.n_stuck) == (1, 4, 4)
    assert (disagree.r_hat, disagree.ess, disagree.n_stuck) == (math.inf, 2, 2)
    moving = torch.randn(3, 50).double()
    moving[1] = 0.7
    found = m.diagnose_chains(moving)
    assert found.n_stuck == 1
    assert found.r_hat == float(m.split_r_hat(moving))
    assert found.ess == pytest.approx(150 / float(m.integrated_time(moving)[0]))
    assert m.diagnose_chains(torch.tensor([[1.0, 0, -1, 0, -1, 1], [1, 0, 1, 0, 1, 1]]).double()).switches == 2


def test_no_seed_ends_the_diagnostics():
    """With seed 3 no chain of the second case moves in 100 sweeps."""
    torch.manual_seed(3)
    run = Notes()
    m.section_diagnostics(run)
    assert run.metrics["T = 1, half down: chains that never moved"].value == 8
    assert "T = 1, half down: split R-hat is infinite, since the chains do not move, and do not agree" in run.said
    assert "T = 1, half down: effective sample size" in run.metrics


def test_cases_are_held_against_enumeration_and_alarms_ring_where_they_should():
    cases = m.diagnose_cases(60, n=3, n_chains=4)
    W, b = 0.45 * (1 - torch.eye(3)).double(), torch.full((3,), 0.05).double()
    states = m.enumerate_states(3).double()
    for (found, mean, tau), (temperature, n_down) in zip(cases.values(), m.CASES.values(), strict=True):
        p = m.boltzmann(states, W, b, temperature)
        assert mean == pytest.approx(float(p @ states.mean(1)))
        kernel, f = m.gibbs_kernel(W, b, temperature), states.mean(1) - mean
        rho = [float((p * f) @ torch.matrix_power(kernel, t) @ f / (p @ f**2)) for t in range(1, 400)]
        assert tau == pytest.approx(1 + 2 * sum(rho))
        assert found.chains.shape == (4, 60)
        assert (found.chains[: min(n_down, 4), 0] < 1).any() == (n_down > 0)
    fine = m.Diagnosis(torch.zeros(8, 1000), 1.0, 900.0, 3.0, 0.1, 4, 2, 0)
    assert [alarm for _, alarm in m.alarms(fine, 3.0)] == [False] * 6
    assert [alarm for _, alarm in m.alarms(fine, 30.0)] == [False] * 5 + [True]
    ill = m.Diagnosis(torch.zeros(8, 1000), 1.02, 300.0, 30.0, 0.1, 0, 2, 1)
    assert [alarm for _, alarm in m.alarms(ill, 30.0)] == [True] * 6


# Sections: planted results, and what stands beside them


def noted(section, monkeypatch, planted, **settings):
    """Run a section on planted results of its experiments; what it recorded."""
    for name, result in planted.items():
        monkeypatch.setattr(m, name, lambda *_, result=result: result)
    run = Notes(**settings)
    m.SECTIONS[section](run)
    return run


def test_section_units_compares_with_theory_and_with_2t(monkeypatch):
    n_draws = torch.tensor([4096.0, 8192.0]).double()
    tv = torch.tensor([[0.04, 0.02], [0.04, 0.03], [0.04, 0.04]]).double()
    distances = dict(zip(m.RULES, (tv, tv / 2, tv * 6), strict=True))
    found = m.Units([1e-16, 2e-16], 0.2, n_draws, distances, torch.tensor([0.05, 0.035]).double(), 0.01)
    planted = {"measure_units": found, "compare_correlations": (torch.randn(6), torch.randn(6), 0.98, 0.4)}
    run = noted("units", monkeypatch, planted, n_repeats=3)
    sem = 0.01 / 3**0.5
    assert run.metrics["+-1 units: distance to p at the last n"][2:] == (("theory", pytest.approx(0.035)), width(sem, 3))
    assert run.metrics["0/1 units: distance to p at the last n"].value == pytest.approx(0.015)
    assert run.metrics["+-1 units: slope of distance in log n"].against == ("theory", -0.5)
    assert run.metrics["+-1 units: slope of distance in log n"].value == pytest.approx(
        math.log2(3 / 4) / 3 - 1 / 3, abs=1e-6
    )
    assert run.metrics["the mistake: distance to p at the last n"].value == pytest.approx(0.18)
    assert run.metrics["the mistake: distance to p at the last n"][2:] == (("exact distance of T from 2T", 0.2), 0.01)
    assert run.metrics["a sweep changes p at 2T by, the mistake"] == (2e-16, None, ("exact", 0), 1e-12)
    assert "60% too weak" in run.said[0]


def test_section_learning_compares_with_entropy_exact_learning_and_wilks(monkeypatch):
    price = m.theory_wilks_kl(10, 1000)
    kl = {name: (k + 1) * torch.linspace(1, 2, 12).view(6, 2).double() for k, name in enumerate(m.FITS)}
    kl["exact learning"] = price * torch.linspace(0.9, 1.2, 12).view(6, 2).double()
    planted = {"compare_learning": m.Learnt(kl, torch.full((6, 2), -3.0).double(), 0.0009), "measure_autograd_error": 1e-16}
    planted |= {"time_gradients": ([1.0] * 6 + [30.0], [2.0] * 6 + [3.0])}
    run = noted("learning", monkeypatch, planted, n_teachers=2, n_data=1000)
    assert run.metrics["TAP: test nats at 1"].value == pytest.approx(-3 - kl["TAP"][3].mean().item())
    assert run.metrics["TAP: test nats at 1"].against == ("-teacher's entropy", -3)
    assert run.metrics["TAP: KL at 1.5 (nats)"].value == pytest.approx(kl["TAP"][5].mean().item())
    assert run.metrics["TAP: KL at 1.5 (nats)"].against == ("exact learning", kl["exact learning"][5].mean().item())
    mild = (kl["exact learning"][:4] / price).flatten()
    wilks = run.metrics["exact learning: KL over d/2n, up to 1"]
    assert (wilks.value, wilks.within) == (pytest.approx(mild.mean().item()), width(mild.std() / 8**0.5, 8))
    assert wilks.against == ("theory for large n", 1)
    assert run.metrics["exact gradient, 18 units (ms)"].value == 30
    assert run.metrics["pseudo-likelihood, 18 units (ms)"].value == 3
    first, *ties = m.as_good_as_the_best(
        {name: -kl[name][5].log() for name in ("mean field, no diagonal", "mean field", "TAP")}
    )
    nats = (kl[name][3].mean() for name in ("pseudo-likelihood", "exact learning"))
    assert run.said[0].startswith("KL at 1: pseudo-likelihood {:.4f} nats, exact {:.4f}".format(*nats))
    assert run.said[1].endswith("first; not to be told from it: none") == (len(ties) == 0)
    assert run.said[1].startswith(f"inversions at 1.5, by log KL: {first} first")
    assert "costs 10 of the other" in run.figures["methods"][1][0]
    monkeypatch.undo()
    planted["compare_learning"] = planted["compare_learning"]._replace(left=0.01)  # not arrived: nothing is promised
    run = noted("learning", monkeypatch, planted, n_teachers=2, n_data=1000)
    assert "exact learning: KL over d/2n, up to 1" not in run.metrics
    assert "0.01 of the gradient left" in run.said[0]
    planted["compare_learning"] = planted["compare_learning"]._replace(left=1e-5)  # too few patterns for its theory
    run = noted("learning", monkeypatch, planted, n_teachers=2, n_data=999)
    assert "exact learning: KL over d/2n, up to 1" not in run.metrics


def test_section_pairs_compares_samples_with_test_images_and_these_with_training_images(monkeypatch):
    train, valid, test = (2.0 * (torch.rand(n, 64) < 0.5) - 1 for n in (60, 20, 50))
    samples = {"pseudo-likelihood": train[:40], "Gibbs": train[20:]}
    found = m.Pixels(0.03, torch.tensor([-4.0, -6.0]), torch.tensor([-9.0, -9.0]), samples, test)
    run = noted("pairs", monkeypatch, {"digit_spins": (train, valid, test), "model_digits": found})
    assert run.metrics["pairs: test pseudo-log-likelihood (nats)"][:3] == (-5, 1, ("independent pixels", -9))
    for (k, words), (name, x) in itertools.product(enumerate(("covariances", "triplets")), samples.items()):
        there, here, most = (m.connected(each)[k] for each in (test, x, train))
        r, slope = (run.metrics[f"{words}, {name}: test {of}"] for of in ("r", "slope"))
        assert r.value == pytest.approx(m.correlation(there, here))
        assert r.against == ("training images", pytest.approx(m.correlation(there, most)))
        assert slope.value == pytest.approx(float((there * here).sum() / (there**2).sum()), rel=1e-4)
        assert slope.against == ("training images", pytest.approx(float((there * most).sum() / (there**2).sum()), rel=1e-4))
        title, lines = run.figures["samples"][3 + k]
        drawn = torch.tensor(lines[0 if name == "pseudo-likelihood" else 2]).float()
        assert torch.allclose(drawn, torch.stack([there, here], 1))
        assert f"{slope.value:.2f}" in title
        assert f"{slope.value:.2f} by {name}" in run.said[k]


def test_section_hidden_compares_with_the_exact_best_and_with_1985(monkeypatch):
    found = {}
    for (task, h), low in zip(itertools.product(("encoder", "parity"), range(4)), range(8), strict=True):
        reached = torch.tensor([-9.0, -5.0 + low / 10]).double()
        found[task, h] = m.Restarts(reached, -3.0 - (h == 0), torch.tensor([0.0, 1.0 if h == 2 else 0.0]).double(), None)
    found["encoder", 2] = found["encoder", 2]._replace(all_codes=torch.tensor([True, True, False, False, False]))
    found["parity", 3].reached[0] = -2.9
    codes = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]]).bool()
    walks = iter([(torch.tensor([10, 20, 30]), codes), (torch.tensor([10, 20, 30]), codes & codes[0])])
    asked = []
    monkeypatch.setattr(m, "learn_as_in_1985", lambda *_, noise=None: asked.append(noise) or next(walks))
    run = noted("hidden", monkeypatch, {"compare_hidden": found}, n_cycles=30)
    assert asked == [None, (0.0, 0.0)]
    assert run.metrics["encoder, 2 hidden: best (nats)"][::2] == (pytest.approx(-4.8), ("exact best", -3))
    assert run.metrics["restarts above the exact best"] == (1, None, ("theorem", 0), 0)
    assert run.metrics["encoder, 2 hidden: restarts that succeed"].value == 0.5
    assert run.metrics["rule of 1985: found the code at some time"][::2] == (0.75, ("250 tests in 1985", 1))
    assert run.metrics["rule of 1985: median cycle"] == (20, None, ("250 tests in 1985", 110), None)
    ends = [
        run.metrics[f"{rule}: have the code at the end"] for rule in ("rule of 1985", "1985 without noise", "exact ascent")
    ]
    assert [end.value for end in ends] == [0.5, 0, pytest.approx(0.4)]
    assert run.said == ["the code at the end: 50% by the rule of 1985, 0% without its noise, 40% by exact ascent"]
    with_noise, without, ascent = run.figures["restarts"][2][1]
    assert with_noise.tolist() == [[10, 0.25], [20, 0.5], [30, 0.5]]
    assert without[:, 1].tolist() == [0.25, 0.25, 0]
    assert ascent[0, 1] == pytest.approx(0.4)


def test_section_ising_compares_with_yang_and_kaufman_of_each_size(monkeypatch):
    noise = torch.tensor([-1.0, 1.0, 0.0]).double()[:, None]
    found = {}
    for side in (4, 8, 16):
        energy = m.exact_ising_energy(m.TEMPERATURES, side) + 1e-3 * side * noise
        tau = torch.linspace(1, 13, 13).double()
        found[side] = m.Lattices(m.exact_magnetisation(m.TEMPERATURES) + 0.01 * noise, energy, tau, 0.1 * tau)
    asked, lattices = [], (torch.arange(3 * 64) % 8 == 0).view(3, 1, 8, 8)
    monkeypatch.setattr(m, "simulate_ising", lambda *args: asked.append(args) or (None, None, lattices))
    run = noted("ising", monkeypatch, {"measure_lattices": found}, n_ising_sweeps=70)
    assert asked[0][::2] == (32, 1)  # a snapshot of twice the side, after the whole run
    assert asked[0][3] == 70
    exact = float(m.exact_ising_energy(m.TEMPERATURES, 16)[6])
    entry = run.metrics["L = 16: energy per site at Tc"]
    assert entry[::2] == (pytest.approx(exact), ("Kaufman, T = 2.269", pytest.approx(exact)))
    assert entry.within == width(0.016 / 3**0.5, 3)
    yang = float(m.exact_magnetisation(m.TEMPERATURES)[3])
    assert run.metrics["L = 16: |m|, cold"][::2] == (pytest.approx(yang), ("Yang, T = 2.069", pytest.approx(yang)))
    for side in (4, 8):
        worst, blind = (
            run.metrics[f"L = {side}: {words}"]
            for words in ("worst energy, in std. errors off", "same, from Kaufman at L = 1000")
        )
        assert worst[::2] == (pytest.approx(0, abs=1e-6), ("Kaufman", 0))
        assert worst.within == width(1, 3, 13)
        far = (m.exact_ising_energy(m.TEMPERATURES, side) - m.exact_ising_energy(m.TEMPERATURES, 1000)).abs().max()
        assert blind.value == pytest.approx(float(far) / (1e-3 * side / 3**0.5 + 1e-6))
    assert run.metrics["e-foldings discarded at Tc"].value == pytest.approx(2 * 17 / 7)
    assert run.metrics["temperature where the sampler is slowest"].value == pytest.approx(m.T_C + 0.8)
    assert run.said == ["L = 16: 1 +- 0 times slower at Tc than at T = 3.07"]
    tau = torch.tensor([0.0] * 6 + [60] + [0] * 5 + [3])
    assert m.slower(m.Lattices(None, None, tau, 0.1 * tau)) == "20 +- 3"  # 0.1 of either: 20 (0.01 + 0.01)^(1/2)
    assert run.figures["snapshots"][1][0] == "T = 2.27, at Tc: |m| = 0.75"
    yang_line, *means = run.figures["exact"][0][1]
    assert yang_line[0, 1] == pytest.approx(float(m.exact_magnetisation(m.TEMPERATURES[0])))
    assert means[0][3] == pytest.approx([m.TEMPERATURES[3].item(), yang], rel=1e-6)


def test_section_clusters_compares_with_published_exponents_kaufman_and_onsager(monkeypatch):
    sides = torch.tensor([4.0, 8.0, 16.0]).double()
    energy = torch.tensor([-1.4, -1.5, -1.45, -1.45] * 6).double()
    found = m.Slowing((4, 8, 16), 2 * sides**2, 0.02 * sides**2, sides**0.5, 0.1 * sides**0.5, energy)
    spread = torch.rand(3, 5).double()
    cumulant = m.Binder(
        torch.linspace(2.23, 2.33, 5), {8: (spread + 1, spread + 2), 16: (spread + 1, spread + 3)}, 2.26, 0.004
    )
    run = noted("clusters", monkeypatch, {"measure_slowing": found, "measure_binder": cumulant})
    assert run.metrics["L = 8: Gibbs, autocorr. time (sweeps)"][:2] == (128, pytest.approx(1.28))
    assert run.metrics["L = 8: Wolff, autocorr. time (sweeps)"][::2] == (pytest.approx(8**0.5), ("Gibbs", 128))
    z = run.metrics["dynamic exponent z, Gibbs"]
    error = 0.01 / (2**0.5 * math.log(2))
    assert z[:3] == (pytest.approx(2), pytest.approx(error), ("Nightingale & Blote (1996)", 2.1665))
    assert z.within - 0.1 == width(error, 24)
    assert run.metrics["dynamic exponent z, Wolff"].value == pytest.approx(0.5)
    exact = float(m.exact_ising_energy(torch.tensor([m.T_C]), 16))
    entry = run.metrics["L = 16: Wolff, energy per site at Tc"]
    assert entry[::2] == (pytest.approx(-1.45), ("Kaufman", pytest.approx(exact)))
    assert entry.within == width(energy.std() / 24**0.5, 24)
    crossed = run.metrics["Tc where Binder's cumulants cross"]
    assert crossed[:3] == (2.26, 0.004, ("Onsager", pytest.approx(2.269185, abs=1e-6)))
    assert crossed.within == width(0.004, 6)
    assert run.said == ["at L = 16 clusters forget with 128 times fewer spins turned"]
    assert run.figures["times"][0][0] == "Gibbs slows down as $L^z$, z = 2.00 ± 0.01"
    times, binders = (lines for _, lines in run.figures["times"])
    assert times[0][:, 1].tolist() == [32, 128, 512]
    assert times[2][:, 1].tolist() == pytest.approx([2, 8**0.5, 4])
    assert binders[1][:, 1] == pytest.approx((1 - (spread.mean(0) + 3) / (3 * (spread.mean(0) + 1) ** 2)).tolist())


def test_section_annealing_ranks_at_the_middle_budget_and_on_the_largest_machines(monkeypatch):
    jitter = torch.tensor([0.0, 0.1, 0.0]).double()
    success = {name: torch.stack([0 * jitter, 0.1 * k + jitter, 1 - 0.1 * k + jitter]) for k, name in enumerate(m.METHODS)}
    excess = {name: torch.stack([0.1 * k + jitter] * 3 + [abs(2.2 - k) + 0 * jitter]) for k, name in enumerate(m.METHODS)}
    excess["logarithmic"][-1] = excess["geometric"][-1] + torch.tensor([0.1, -0.1, 0.06]).double()
    settings = {"restarted descent": ()}, {"restarted descent": (), "geometric": (1, 0.2), "logarithmic": (2.5,)}
    theorem = torch.tensor([1000.0, 1100.0])
    found = m.Annealed([8, 16, 32], success, [20, 40, 80, 160], 32, excess, settings, theorem)
    run = noted("annealing", monkeypatch, {"compare_annealing": found}, n_budget=32)
    beside = ("log10 of the updates given here", math.log10(640))
    assert run.metrics["theorem: log10 of updates to T = 0.2"][::2] == (1050, beside)
    assert run.metrics["20 units, 16 sweeps, geometric"].value == pytest.approx(0.2 + 0.1 / 3)
    assert run.metrics["160 units, excess energy, geometric"].value == pytest.approx(0.2)
    assert run.said[0].endswith("of 160 units: geometric 1, 0.2; logarithmic 2.5")
    assert run.said[1] == "20 units, 16 sweeps: logarithmic first; not to be told from it: nobody"
    assert run.said[2] == "160 units: geometric first; not to be told from it: logarithmic"
    assert [title for title, _ in run.figures["success"]] == [
        "20 units, 16 sweeps: logarithmic first\n(alone)",
        "160 units, 32 sweeps: geometric first\n(as good: logarithmic)",
    ]


def test_section_diagnostics_promises_only_where_the_chains_are_long(monkeypatch):
    chains = torch.randn(8, 500).double()
    found = m.Diagnosis(chains, 1.5, 300.0, 3.0, 0.2, 4, 2, 0)
    run = noted(
        "diagnostics",
        monkeypatch,
        {"diagnose_cases": {"long": (found, 0.1, 9.0), "short": (found, 0.2, 11.0), "third": (found, 0.2, 11.0)}},
        n_draws=500,
    )
    sem = chains.mean(1).std() / 8**0.5
    assert run.metrics["long: autocorrelation time"] == (3, 0.2, ("exact", 9), width(0.2, 8))
    assert run.metrics["long: mean magnetisation"][2:] == (("exact", 0.1), width(sem, 8))
    assert run.metrics["short: mean magnetisation"][2:] == (("exact", 0.2), None)
    assert run.metrics["short: autocorrelation time"].within is None
    assert run.said[0] == "long: 2 alarms of 5; by the exact time the run is long enough"
    assert run.said[1].endswith("too short")


# Settings and plumbing


def test_the_weighted_slope_and_its_error_by_hand():
    x, y, error = torch.tensor([0.0, 1, 2]), torch.tensor([0.0, 1, 5]), torch.tensor([1.0, 1, 1e-4])
    slope, sem = m.weighted_slope(x, y, torch.ones(3))
    assert (float(slope), float(sem)) == pytest.approx((2.5, 0.5**0.5))
    assert m.weighted_slope(x.double(), y.double(), error.double())[0] == pytest.approx((2 * 5 + 4) / 5)  # through (2, 5)
    for unknown in (torch.full((3,), math.nan), torch.tensor([1.0, 0, 1])):
        slope, sem = m.weighted_slope(x, y, unknown)
        assert slope == 2.5
        assert sem.isnan()


ONE = {
    "units": "n_repeats",
    "learning": "n_teachers",
    "hidden": "n_restarts",
    "ising": "n_lattices",
    "clusters": "n_lattices",
    "annealing": "n_instances",
}
OF_MORE = (
    "theory for large n",
    "Nightingale",
    "Gibbs",
    "Kaufman",
    "Onsager",
)  # beside what is of more repeats: strengths, lattices at Tc


@pytest.mark.parametrize("section", ONE)
def test_one_repeat_has_no_standard_error_and_matplotlib_gets_no_tensor(section, tmp_path, monkeypatch):
    """One of n repeats: nan ended the run. And NumPy's conversion of tensors warns in one version, fails in a coming one."""
    monkeypatch.setattr(torch.Tensor, "__array__", lambda *_: pytest.fail("a tensor is handed to NumPy as it is"))
    monkeypatch.setattr(m, "SIZES", (3, 4, 5))
    m.main(["--smoke", "--section", section, f"--{ONE[section].replace('_', '-')}", "1", "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    spread = {name for name, entry in metrics.items() if "sem" in entry}
    assert not [n for n in spread if not str(metrics[n].get("against")).startswith(OF_MORE) and "Gibbs, autocorr" not in n]


def test_float64_is_made_on_the_cpu_only():
    """Apple's GPUs have none."""
    source = Path(m.__file__).read_text(encoding="utf-8")
    assert not re.findall(
        r'\.double\(\)\.(?:cpu|to)\(|float64[^#\n]*device=(?!"cpu")|device=(?!"cpu")[^#\n]*float64', source
    )
