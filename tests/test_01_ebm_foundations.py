"""Module 01: every method against a closed form, enumeration, quadrature, finite differences or a second implementation."""

import json
import math
from dataclasses import replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
import torch
from conftest import load

m = load("01")


class Entry(NamedTuple):
    """What a section recorded under one name."""

    value: float
    sem: float | None
    against: tuple | None
    within: float | None


class Notes:
    """Stands in for a Run: keeps what a section records, says and draws."""

    def __init__(self, **settings):
        self.config, self.seed, self.device = replace(m.Config(), **(m.SMOKE | settings)), 0, torch.device("cpu")
        self.metrics, self.said, self.figures = {}, [], {}

    def metric(self, name, value, sem=None, against=None, within=None):
        assert name not in self.metrics
        assert len(name) <= 44
        self.metrics[name] = Entry(float(value), sem, against, within)

    def say(self, sentence):
        self.said.append(sentence)

    def figure(self, fig, name):
        self.figures[name] = fig
        plt.close(fig)

    def judged(self, name):
        """(reference, within) of a metric."""
        return float(self.metrics[name].against[1]), self.metrics[name].within


def errors_allowed(name, run, n, n_compared=1):
    """Whether a metric's width is Student's t of n repeats times its own standard error."""
    t = scipy.stats.t.isf(1e-4 / 2 / n_compared, n - 1)
    return run.metrics[name].within == pytest.approx(t * run.metrics[name].sem)


def skewed(x):
    """A smooth, bounded-below, asymmetric energy in one dimension with unequal wells, x (B, 1) -> (B,)."""
    return m.double_well(x, barrier=1.5, tilt=0.6)


def exact_draws(energy, n, temperature=1.0):
    """n exact draws (n, 1) from exp(-E/T) by inverting the distribution function on a fine grid."""
    axis = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    p = (-energy(axis[:, None]) / temperature).softmax(0)
    x = np.interp(torch.rand(n, dtype=torch.float64).numpy(), p.cumsum(0).numpy() - p.numpy() / 2, axis.numpy())
    return torch.tensor(x).float()[:, None]


def exact_mean(energy, f, temperature=1.0):
    """<f> under exp(-E/T), one dimension, by quadrature."""
    weight = lambda x: math.exp(-energy(torch.tensor([[x]])).item() / temperature)  # noqa: E731
    return scipy.integrate.quad(lambda x: f(x) * weight(x), -4, 4)[0] / scipy.integrate.quad(lambda x: weight(x), -4, 4)[0]


def ar1(phi, n_chains, n_draws):
    """Stationary chains x' = phi x + noise with unit variance."""
    x, draws = torch.randn(n_chains), []
    for _ in range(n_draws):
        x = phi * x + (1 - phi**2) ** 0.5 * torch.randn(n_chains)
        draws.append(x)
    return torch.stack(draws, 1)


# --- 1. probability


def test_two_level_system_has_the_textbook_energy_entropy_and_heat_capacity():
    t = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    log_z, u, s, f, c, p = m.thermodynamics(torch.tensor([0.0, 1.0], dtype=torch.float64), t)
    upper = 1 / (1 + (1 / t).exp())
    assert torch.allclose(p[:, 1], upper)
    assert torch.allclose(u, upper)
    assert torch.allclose(log_z, (1 + (-1 / t).exp()).log())
    assert torch.allclose(f, -t * (1 + (-1 / t).exp()).log())
    assert torch.allclose(s, -upper * upper.log() - (1 - upper) * (1 - upper).log())
    assert torch.allclose(c, upper * (1 - upper) / t**2)  # Schottky


def test_heat_capacity_is_the_slope_of_the_energy():
    energies, t = torch.randn(7, dtype=torch.float64), torch.tensor([0.7 - 1e-5, 0.7, 0.7 + 1e-5], dtype=torch.float64)
    _, u, _, _, c, _ = m.thermodynamics(energies, t)
    assert abs((u[2] - u[0]) / 2e-5 - c[1]) < 1e-7


def test_thermodynamics_does_not_overflow_in_float32():
    log_z, u, s, *_ = m.thermodynamics(torch.tensor([-50.0, -50.0, 50.0]), torch.tensor([0.01]))
    assert torch.allclose(log_z, torch.tensor(5000 + math.log(2)))
    assert torch.allclose(u, torch.tensor(-50.0))
    assert torch.allclose(s, torch.tensor(math.log(2)), atol=1e-3)


# --- 2. partition


def test_double_well_has_its_wells_barrier_and_tilt_and_adds_over_coordinates():
    x = torch.tensor([[-1.0], [0.0], [1.0], [2.0]])
    assert torch.allclose(m.double_well(x, barrier=3.0, tilt=0.5), torch.tensor([-0.5, 3.0, 0.5, 28.0]))
    assert torch.allclose(m.double_well(torch.tensor([[2.0, 0.0]]), barrier=3.0, tilt=0.5), torch.tensor([31.0]))


def test_log_z_error_bar_and_ess_are_those_of_a_weighted_mean():
    w = torch.rand(3, 50, dtype=torch.float64)
    log_z, sem, ess = m.log_z_from_weights(w.log() + 500)  # far beyond exp's range
    assert torch.allclose(log_z, w.mean(1).log() + 500)
    assert torch.allclose(sem, w.std(1) / w.mean(1) / 50**0.5)
    assert torch.allclose(ess, w.sum(1) ** 2 / (w**2).sum(1))


def test_ess_runs_from_one_to_n_and_the_error_bar_from_zero_to_one():
    equal, single = torch.zeros(20, dtype=torch.float64), torch.full((20,), -1e3, dtype=torch.float64)
    single[3] = 0
    log_z, sem, ess = m.log_z_from_weights(torch.stack([equal, single]))
    assert torch.allclose(ess, torch.tensor([20.0, 1.0], dtype=torch.float64))
    assert torch.allclose(sem, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(log_z, torch.tensor([0.0, -math.log(20)], dtype=torch.float64))


def narrowing(x, beta):
    """E = (1 + 3 beta) |x|²/2: Z falls by 4^(-d/2) along the path."""
    return (1 + 3 * beta) * (x**2).sum(1) / 2


def test_ais_in_one_jump_is_importance_sampling_at_the_starting_points():
    x = torch.randn(100, 2)
    log_w, moved = m.ais(narrowing, lambda x, beta: x + 1, x, [0.0, 1.0])
    assert torch.allclose(log_w, -1.5 * (x**2).sum(1), atol=1e-5)
    assert torch.allclose(moved, x + 1)


def test_ais_finds_a_gaussians_normaliser_with_exact_and_with_mala_moves():
    betas, exact = torch.linspace(0, 1, 21).tolist(), -math.log(4)  # d = 2
    fresh = lambda x, beta: torch.randn_like(x) / (1 + 3 * beta) ** 0.5  # noqa: E731
    langevin = lambda x, beta: m.mala(lambda y: narrowing(y, beta), x, 1, 0.3)[0]  # noqa: E731
    for transition in (fresh, langevin):
        log_w, _ = m.ais(narrowing, transition, torch.randn(20_000, 2), betas)
        log_z, sem, ess = m.log_z_from_weights(log_w)
        assert abs(log_z - exact) < 4 * sem
        assert sem < 0.01
        assert ess > 5000


# --- 3. landscapes


def test_mueller_brown_is_the_published_surface():
    x = torch.tensor([[-0.558, 1.442], [0.623, 0.028], [-0.050, 0.467], [-0.822, 0.624], [0.212, 0.293]])
    published = torch.tensor([-146.700, -108.167, -80.768, -40.665, -72.249])
    assert torch.allclose(m.mueller_brown(x.double()), published.double(), atol=2e-3)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gaussian_density_on_a_grid_has_its_covariance_times_temperature(temperature):
    log_z, log_p, x, area = m.grid_density(m.gaussian, (-9, 9, -9, 9), 300, temperature)
    p = log_p.exp().flatten() * area
    cov = (p[:, None, None] * x[:, :, None] * x[:, None]).sum(0)
    assert torch.allclose(cov, temperature * torch.tensor([[1, 0.9], [0.9, 1]]), atol=1e-3)
    assert abs(log_z - math.log(2 * math.pi * temperature * math.sqrt(0.19))) < 1e-4


def test_grid_density_integrates_to_one_over_a_box_that_is_not_square_and_indexes_x_first():
    log_z, log_p, x, area = m.grid_density(m.two_wells, (-2.5, 2.5, -5, 5), 100)
    assert abs(log_p.exp().sum() * area - 1) < 1e-5
    z = scipy.integrate.quad(lambda x: math.exp(-m.double_well(torch.tensor([x])).item()), -3, 3)[0]
    assert abs(log_z - math.log(z * math.sqrt(2 * math.pi))) < 1e-4
    i = 7 * 100 + 60
    assert torch.allclose(log_p[7, 60] - log_p[8, 60], m.two_wells(x[[i + 100]]) - m.two_wells(x[[i]]), atol=1e-4)
    assert x[i + 100, 0] > x[i, 0]


def test_banana_ring_and_mixture_have_the_moments_that_they_claim():
    _, log_p, x, area = m.grid_density(m.banana, (-6, 6, -4, 20), 500)
    p = log_p.exp().flatten() * area
    assert abs((p * x[:, 0] ** 2).sum() - 1) < 1e-3
    assert abs((p * x[:, 1]).sum() - 0.5) < 1e-3
    assert abs((p * (x[:, 1] - x[:, 0] ** 2 / 2) ** 2).sum() - 0.25) < 1e-3
    assert m.ring(torch.tensor([[0.0, 2.3]])).item() == pytest.approx(0.5, abs=1e-4)
    log_z, log_p, x, area = m.grid_density(m.mixture, (-4, 4, -4, 4), 300)
    assert abs(log_z) < 1e-4
    p = log_p.exp().flatten() * area
    share = [(p * inside).sum() for inside in ((x[:, 0] < 0) & (x[:, 1] < 0.3), (x[:, 0] > 0) & (x[:, 1] < 0.3))]
    assert torch.allclose(torch.stack(share), torch.tensor([0.5, 0.3]), atol=1e-2)


# --- 4. samplers

ADJUSTED = {
    "metropolis": lambda *a, **k: m.metropolis(*a, step_size=1.5, **k),
    "mala": lambda *a, **k: m.mala(*a, step_size=0.2, **k),
    "hmc": lambda *a, **k: m.hmc(*a, step_size=0.4, n_leapfrog=4, **k),
}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", ADJUSTED)
def test_adjusted_samplers_leave_exact_draws_exact_at_any_step_and_temperature(name, temperature):
    n = 40_000
    x, acceptance = ADJUSTED[name](skewed, exact_draws(skewed, n, temperature), 12, temperature=temperature)
    assert 0.1 < acceptance.mean() < 0.97  # wide steps: the test must be doing something
    for f in (lambda x: x, lambda x: x**2, lambda x: x**4):
        values = f(x[:, 0])
        assert abs(values.mean() - exact_mean(skewed, f, temperature)) < 4 * values.std() / n**0.5


@pytest.mark.parametrize("name", ADJUSTED)
def test_adjusted_samplers_find_the_density_from_elsewhere(name):
    x, _ = ADJUSTED[name](skewed, torch.full((5000, 1), 1.0), 300)
    assert abs(x.mean() - exact_mean(skewed, lambda x: x)) < 4 * x.std() / 5000**0.5


def test_metropolis_acceptance_on_a_gaussian_is_the_closed_form():
    for temperature in (1.0, 0.25):  # in units of the width both have the same step
        x = temperature**0.5 * torch.randn(20_000, 1)
        _, acceptance = m.metropolis(m.standard_gaussian, x, 10, 2.0, temperature)
        assert abs(acceptance.mean() - 2 / math.pi * math.atan(2 / 2**0.5)) < 4 * acceptance.std() / 20_000**0.5


def test_one_leapfrog_step_of_hmc_is_mala_at_the_square_of_the_step():
    x, h, t = torch.randn(500, 3), 0.7, 0.6
    torch.manual_seed(1)
    by_mala, a = m.mala(m.double_well, x, 5, h**2, temperature=t)
    torch.manual_seed(1)
    by_hmc, b = m.hmc(m.double_well, x, 5, h, n_leapfrog=1, temperature=t)
    same = (a - b).abs() < 1e-6  # a rounding error may turn a single decision
    assert same.float().mean() > 0.99
    assert torch.allclose(by_mala[same], by_hmc[same], atol=1e-3)


def test_leapfrog_comes_back_and_conserves_energy_to_second_order():
    x = torch.randn(300, 4)
    errors = [1 - m.hmc(m.double_well, x, 1, h, n_leapfrog=round(0.8 / h))[1].mean() for h in (0.2, 0.02)]
    assert errors[1] <= errors[0]
    assert errors[1] < 0.02


def test_one_langevin_step_moves_by_half_the_step_downhill_with_noise_of_the_temperature():
    x = m.langevin(lambda x: 3 * x.sum(1), torch.ones(100_000, 1), 1, 0.4, temperature=0.5)
    assert abs(x.mean() - (1 - 0.2 * 3)) < 4 * (0.2 / 100_000) ** 0.5
    assert abs(x.var() / (0.4 * 0.5) - 1) < 4 * (2 / 100_000) ** 0.5


def test_langevin_in_a_well_is_too_hot_by_the_formula():
    a, step_size, temperature = 3.0, 0.5, 0.7
    x = m.langevin(lambda x: a * (x**2).sum(1) / 2, torch.zeros(50_000, 1), 40, step_size, temperature)
    assert abs(a * x.var() / m.langevin_temperature(a, step_size, temperature) - 1) < 4 * (2 / 50_000) ** 0.5
    h, v = step_size / 2, 0.0
    for _ in range(200):  # the variance's own recursion
        v = (1 - a * h) ** 2 * v + 2 * h * temperature
    assert m.langevin_temperature(a, step_size, temperature) == pytest.approx(a * v)


def test_underdamped_is_exact_in_a_well_even_with_a_wide_step():
    a, t = 2.0, 0.6
    x = m.underdamped(lambda x: a * (x**2).sum(1) / 2, torch.zeros(40_000, 1), 80, 0.8, friction=1.5, temperature=t)
    assert abs(a * x.var() / t - 1) < 4 * (2 / 40_000) ** 0.5


def test_free_underdamped_particle_diffuses_as_its_friction_says():
    h, gamma, t, n = 0.3, 0.8, 0.5, 6
    x = m.underdamped(lambda x: 0 * x.sum(1), torch.zeros(100_000, 1), n, h, gamma, t)
    a = np.array([[1, h / 2 * (1 + math.exp(-gamma * h))], [0, math.exp(-gamma * h)]])  # (x, v) -> (x, v)
    b, cov = np.array([[h / 2], [1]]), np.diag([0, t])
    for _ in range(n):
        cov = a @ cov @ a.T + t * (1 - math.exp(-2 * gamma * h)) * b @ b.T
    assert abs(x.var() / cov[0, 0] - 1) < 4 * (2 / 100_000) ** 0.5


def test_sghmc_in_a_well_has_the_variance_of_its_linear_recursion():
    a, h, gamma, t = 2.0, 0.4, 1.2, 0.7
    x = m.sghmc(lambda x: a * (x**2).sum(1) / 2, torch.zeros(40_000, 1), 80, h, gamma, t)
    step = np.array([[1 - h * h * a, h * (1 - h * gamma)], [-h * a, 1 - h * gamma]])
    noise = 2 * gamma * h * t * np.array([[h * h, h], [h, 1]])
    exact = scipy.linalg.solve_discrete_lyapunov(step, noise)[0, 0]
    assert abs(exact * a / t - 1) > 0.05  # the bias is there to be seen
    assert abs(x.var() / exact - 1) < 4 * (2 / 40_000) ** 0.5


def test_a_refused_move_stays_and_is_kept_as_a_draw():
    for name, sampler in ADJUSTED.items():
        draws = []
        wall = lambda x: 1e6 * ((x - 0.5) ** 2).sum((1, 2))  # noqa: E731  nearly nothing is accepted
        x, acceptance = sampler(wall, torch.full((3, 2, 2), 0.5), 7, keep=draws.append)
        assert len(draws) == 7, name
        assert torch.equal(draws[-1], x)
        assert torch.equal(x, torch.full((3, 2, 2), 0.5))
        assert torch.equal(acceptance, torch.zeros(3))


def test_step_size_may_differ_from_chain_to_chain():
    x, steps = exact_draws(skewed, 20_000), torch.tensor([0.01, 4.0]).repeat_interleave(10_000)[:, None]
    for sampler in (m.metropolis, m.mala, m.hmc):
        acceptance = sampler(skewed, x, 3, steps)[1]
        alone = [sampler(skewed, x[:10_000], 3, s)[1].mean() for s in (0.01, 4.0)]
        assert abs(acceptance[:10_000].mean() - alone[0]) < 0.03
        assert abs(acceptance[10_000:].mean() - alone[1]) < 0.03


def test_accept_takes_every_tensor_of_the_accepted_with_the_right_probability_and_refuses_nan():
    n = 30_000
    ratio = torch.tensor([0.5, 0.2, 2.0, math.nan]).log().repeat_interleave(n)
    yes, a, b = m.accept(ratio, (torch.ones(4 * n, 2, 3), torch.ones(4 * n)), (torch.zeros(4 * n, 2, 3), torch.zeros(4 * n)))
    rate = yes.float().reshape(4, n).mean(1)
    assert torch.allclose(rate, torch.tensor([0.5, 0.2, 1.0, 0.0]), atol=0.015)
    assert torch.equal(a[:, 1, 2], yes.float())
    assert torch.equal(b, yes.float())


def test_energy_and_grad_are_detached_and_right():
    x = torch.randn(5, 3, dtype=torch.float64)
    e, grad = m.energy_and_grad(m.double_well, x)
    assert not e.requires_grad
    assert torch.allclose(e, m.double_well(x))
    assert torch.allclose(grad, 8 * x * (x**2 - 1) + 0.5)


# --- 4. diagnostics


def ess_by_loops(chains):
    """Vehtari et al. (2021) written out over lags and chains, from the definition."""
    half = chains.shape[1] // 2
    halves = np.concatenate([chains[:, :half], chains[:, -half:]]).astype(float)
    within = halves.var(1, ddof=1).mean()
    total = (half - 1) / half * within + halves.mean(1).var(ddof=1)
    centred = halves - halves.mean(1, keepdims=True)
    rho = [1 - (within - (centred[:, : half - t] * centred[:, t:]).sum(1).mean() / (half - 1)) / total for t in range(half)]
    tau, last = -1.0, math.inf
    for k in range(half // 2):
        pair = rho[2 * k] + rho[2 * k + 1]
        if pair <= 0:
            break
        last = min(last, pair)
        tau += 2 * last
    return halves.size / tau


def test_split_r_hat_is_the_textbook_formula_and_sees_drift_and_disagreement():
    chains = torch.randn(4, 101, dtype=torch.float64)
    halves = np.concatenate([chains.numpy()[:, :50], chains.numpy()[:, -50:]])
    within, between = halves.var(1, ddof=1).mean(), 50 * halves.mean(1).var(ddof=1)
    assert m.split_r_hat(chains).item() == pytest.approx(((49 / 50 * within + between / 50) / within) ** 0.5)
    assert abs(m.split_r_hat(torch.randn(50, 1000)) - 1) < 0.003
    assert m.split_r_hat(torch.randn(4, 1000) + torch.linspace(0, 3, 1000)) > 1.2  # one drift, shared by all
    assert m.split_r_hat(torch.randn(4, 1000) + torch.tensor([[0.0], [0.0], [0.0], [3.0]])) > 1.3


@pytest.mark.parametrize("phi", [0.9, 0.5, -0.4])
def test_effective_sample_size_of_an_autoregression_is_the_closed_form(phi):
    chains = ar1(phi, 50, 4000)
    assert m.effective_sample_size(chains) / chains.numel() == pytest.approx((1 - phi) / (1 + phi), rel=0.08)
    lags = torch.arange(6)
    assert torch.allclose(m.autocorrelation(chains)[:6], torch.tensor(phi) ** lags, atol=0.02)


@pytest.mark.parametrize("shape", [(3, 60), (2, 201), (8, 31)])
def test_effective_sample_size_is_that_of_the_definition_written_in_loops(shape):
    chains = ar1(0.7, *shape).double()
    assert m.effective_sample_size(chains).item() == pytest.approx(ess_by_loops(chains.numpy()), rel=1e-6)


def test_chains_that_disagree_are_worth_few_draws_and_antithetic_ones_at_most_the_limit():
    apart = torch.randn(4, 1000) + torch.tensor([[0.0], [5.0], [0.0], [5.0]])
    assert m.effective_sample_size(apart) < 20
    flipping = torch.tensor([1.0, -1.0]).repeat(4, 500) + 1e-3 * torch.randn(4, 1000)
    assert m.effective_sample_size(flipping) == pytest.approx(4000 * math.log10(4000), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chains_that_never_move_are_worth_one_draw_each_and_their_r_hat_is_defined(dtype):
    """The mistakes: 0/0, and a variance of rounding errors only (the mean of many 0.1 is not 0.1)."""
    apart = torch.tensor([[0.1], [0.7], [0.1]], dtype=dtype).repeat(1, 101)
    together = torch.full((3, 101), 0.1, dtype=dtype)
    assert m.split_r_hat(apart) == math.inf
    assert m.split_r_hat(together) == 1
    assert m.split_r_hat(together).dtype == dtype
    for chains in (apart, together):
        assert torch.equal(m.autocorrelation(chains), torch.ones(101, dtype=dtype))
        assert m.effective_sample_size(chains).item() == pytest.approx(3, rel=0.02)
    apart[0, 70:] = 0.2  # one chain moved once: the usual formulas again
    assert 1 < m.split_r_hat(apart) < math.inf
    assert m.effective_sample_size(apart).isfinite()


def kernels(step_size=0.1):
    axis = torch.linspace(-2.2, 2.2, 441, dtype=torch.float64)
    e, grad = m.energy_and_grad(skewed, axis[:, None])
    args = {"metropolis": {}, "mala": {"gradients": grad[:, 0]}, "ula": {"gradients": grad[:, 0], "adjust": False}}
    return axis, e, grad[:, 0], {k: m.transition_matrix(axis, e, step_size, **v) for k, v in args.items()}


def test_transition_matrices_are_stochastic_and_the_adjusted_ones_reversible():
    _, e, _, found = kernels()
    pi = (-e).softmax(0)
    for name, (k, rate) in found.items():
        assert torch.allclose(k.sum(1), torch.ones_like(e))
        assert (k > -1e-12).all()
        if name != "ula":
            assert torch.allclose(pi[:, None] * k, (pi[:, None] * k).T, atol=1e-12)
            assert torch.allclose(m.stationary(k), pi, atol=1e-9)
            assert (rate < 1 + 1e-9).all()


def test_transition_matrices_take_the_samplers_own_steps():
    axis, _, grad, found = kernels()
    k = found["ula"][0]
    assert torch.allclose((k @ axis)[150:-150], (axis - 0.05 * grad)[150:-150], atol=1e-5)
    assert torch.allclose((k @ axis**2 - (k @ axis) ** 2)[150:-150], torch.tensor(0.1, dtype=torch.float64), atol=1e-4)
    x = axis[150].float().expand(100_000, 1)
    for name, sampler in (("metropolis", m.metropolis), ("mala", m.mala)):
        to, accepted = sampler(skewed, x, 1, 0.1)
        exact, rate = found[name][0][150] @ axis, found[name][1][150]
        assert abs(to.mean() - exact) < 4 * to.std() / 100_000**0.5
        assert abs(accepted.mean() - rate) < 4 * accepted.std() / 100_000**0.5 + 1e-6


def test_autocorrelation_and_relaxation_times_of_a_two_state_chain_are_closed_forms():
    k = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)  # second eigenvalue 0.6
    pi = m.stationary(k)
    assert torch.allclose(pi, torch.tensor([0.75, 0.25], dtype=torch.float64))
    assert m.exact_autocorrelation_time(k, torch.tensor([0.0, 1.0], dtype=torch.float64)) == pytest.approx(4.0)
    assert m.relaxation_time(k, pi).item() == pytest.approx(2.5)


# --- 6. forces


def test_phases_are_the_finite_difference_slope_of_the_log_likelihood():
    weights = [p.double().requires_grad_(True) for p in m.network_parameters(2, 5)]
    x, axis = torch.randn(2, 30, dtype=torch.float64), torch.linspace(-12, 12, 801, dtype=torch.float64)
    positive, negative = m.two_phases(m.network_energy, weights, x, axis)
    for i, (up, down) in enumerate(zip(positive, negative, strict=True)):
        where = torch.randn_like(weights[i])
        ends = [[p.detach() + (s * where if i == j else 0) for j, p in enumerate(weights)] for s in (1e-5, -1e-5)]
        rise = sum((2 * k - 1) * m.log_likelihood(m.network_energy, e, x, axis).sum() for k, e in enumerate(ends[::-1]))
        assert abs(((up + down) * where).sum() - rise / 2e-5) < 1e-6


def test_log_likelihood_of_a_gaussian_energy_is_that_of_the_gaussian():
    x, axis = torch.randn(1, 40, dtype=torch.float64), torch.linspace(-15, 15, 2001, dtype=torch.float64)
    found = m.log_likelihood(lambda p, x: (x - p[0]) ** 2 / 2, [torch.tensor([[0.3]]).double()], x, axis)
    assert torch.allclose(found, torch.distributions.Normal(0.3, 1.0).log_prob(x).mean(1))


def test_for_a_moving_gaussian_the_positive_phase_is_mean_minus_theta_and_the_negative_phase_nothing():
    x, axis = torch.randn(1, 50, dtype=torch.float64), torch.linspace(-15, 15, 2001, dtype=torch.float64)
    theta = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    (up,), (down,) = m.two_phases(lambda p, x: (x - p[0]) ** 2 / 2, [theta], x, axis)
    assert torch.allclose(up.squeeze(), x.mean() - 2)
    assert abs(down.item()) < 1e-9


def test_networks_side_by_side_are_independent_and_their_square_confines():
    weights, x = m.network_parameters(3, 4), torch.randn(3, 6)
    together = m.network_energy(weights, x)
    for i in range(3):
        assert torch.allclose(together[i], m.network_energy([w[[i]] for w in weights], x[[i]])[0], atol=1e-5)
    assert torch.allclose(m.network_energy([0 * w for w in weights], x), x**2 / 18)


def test_data_density_integrates_to_one_with_its_mean_and_variance():
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    p = m.peaks(x) * (x[1] - x[0])
    assert torch.allclose(torch.stack([p.sum(), p @ x, p @ x**2]), torch.tensor([1, -0.3, 0.4**2 + 1.5**2]).double())


# --- 7. covering


def test_kl_divergences_between_gaussians_are_the_closed_forms():
    axis = np.linspace(-15, 15, 3001)
    p = np.exp(-((axis - 1) ** 2) / (2 * 1.5**2)) / (1.5 * math.sqrt(2 * math.pi))
    closed = lambda m1, s1, m2, s2: math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5  # noqa: E731
    forward, reverse = m.kl_divergences(-0.5, 0.8, p, axis)
    assert forward == pytest.approx(closed(1, 1.5, -0.5, 0.8), rel=1e-6)
    assert reverse == pytest.approx(closed(-0.5, 0.8, 1, 1.5), rel=1e-6)


def test_forward_kl_covers_and_reverse_kl_seeks():
    axis = np.linspace(-8, 8, 1601)
    p = m.peaks(torch.tensor(axis)).numpy()
    assert m.fit_gaussian(p, axis, 0, 1.0)[:2] == pytest.approx((-0.3, (0.16 + 2.25 - 0.09) ** 0.5), abs=1e-4)
    mean, std, kl = m.fit_gaussian(p, axis, 1, 1.5)
    assert (mean, std, kl) == pytest.approx((1.5, 0.4, -math.log(0.4)), abs=5e-3)


def test_penalised_energies_are_stationary_points_and_follow_the_data_without_penalty():
    axis = torch.linspace(-3, 3, 61, dtype=torch.float64)
    p_data, weight = m.peaks(axis) / m.peaks(axis).sum(), torch.rand(60, dtype=torch.float64)
    strengths = [1e-8, 1e-2, 0.1]
    for strength, e in zip(strengths, m.penalised_energies(p_data, weight, axis, strengths), strict=True):
        e = e.clone().requires_grad_(True)
        loss = p_data @ e + (-e).logsumexp(0) + strength * (weight * ((e[1:] - e[:-1]) / 0.1) ** 2).sum()
        assert torch.autograd.grad(loss, e)[0].abs().max() < 1e-9
        if strength == 1e-8:
            assert torch.allclose((-e).softmax(0), p_data, atol=1e-5)


# --- each part's references, experiments and sections


def test_means_errors_and_tolerance():
    """The mistakes: a spread of one repeat that is 0, five normal errors of a few repeats."""
    assert m.mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(m.mean_and_error(torch.tensor([1.0]))[1])
    assert m.tolerance(2.0, 4) == pytest.approx(2 * scipy.stats.t.ppf(1 - 5e-5, 3))
    assert m.tolerance(2.0, 4, 10) == pytest.approx(2 * scipy.stats.t.ppf(1 - 5e-6, 3))
    assert m.tolerance(2.0, 1) is None


def test_log_z_slopes_decimals_and_overflow_are_those_of_two_levels():
    energies, t = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    upper = 1 / (1 + (1 / t).exp())
    slope, curvature = m.exact_log_z_slopes(energies, t)
    assert torch.allclose(slope, -upper)
    assert torch.allclose(curvature, upper * (1 - upper))
    assert m.exact_log_z_by_decimals(energies, 0.5) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-14)
    assert m.theory_overflow_temperature(energies - 5) == pytest.approx(5 / 88.722839, rel=1e-5)
    assert m.naive_log_z((energies - 5).float(), torch.tensor([0.056, 0.057])).isinf().tolist() == [True, False]


def test_section_probability_holds_identities_limits_and_overflow():
    run = Notes()
    m.section_probability(run)
    for name in ("F - (U - TS), largest (energy)", "dlogZ/dbeta + U, largest (energy)"):
        assert run.judged(name) == (0, 1e-9)
    assert run.judged("entropy at T = 0.01 (nats)")[0] == pytest.approx(math.log(2))
    assert run.judged("entropy at T = 100 (nats)")[0] == pytest.approx(math.log(5))
    reference, within = run.judged("naive sum infinite up to temperature")
    assert reference == pytest.approx(3 / (88.722839 - math.log(2)), rel=1e-4)
    assert within == pytest.approx(reference * (10 ** (4 / 399) - 1))
    assert run.judged("log-sum-exp: log Z at T = 0.01 (nats)")[0] == pytest.approx(300 + math.log(2), abs=1e-6)
    assert run.said == ["cold, 2.0 states share the probability, hot, 5.0 of 5"]
    assert all(abs(e.value - e.against[1]) <= e.within for e in run.metrics.values())


@pytest.mark.parametrize("name", m.PROPOSALS)
def test_log_z_shares_and_weights_of_the_double_well_are_those_of_a_grid(name):
    """The mistakes: a proposal's density left out, weights upside down, rho not squared, one coordinate too few."""
    x, q = torch.linspace(-2.999, 2.999, 20001, dtype=torch.float64), m.PROPOSALS[name][0]
    dx, log_q = x[1] - x[0], q.log_prob(x)
    z = (-m.double_well(x[:, None])).exp().sum() * dx
    assert m.exact_well_log_z(3) == pytest.approx(3 * z.log().item(), abs=1e-9)
    assert m.trapezoid_log_z(m.double_well, x).item() == pytest.approx(z.log().item())
    square = (-2 * m.double_well(x[:, None]) - log_q).exp().sum() * dx
    assert m.exact_ess_share(name, 2) == pytest.approx((z**2 / square).item() ** 2, rel=1e-5)
    log_w = m.growing_log_weights(m.double_well, q, (4, 20_000), (1, 3))
    plain = m.importance_log_weights(m.double_well, q, 80_000, 3)
    for weights, d in ((log_w[0], 1), (log_w[1], 3), (plain.reshape(4, -1), 3)):
        ratio = (weights.flatten() - d * z.log()).exp()
        assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 80_000**0.5
        assert m.log_z_from_weights(weights.flatten())[2] / 80_000 == pytest.approx(m.exact_ess_share(name, d), rel=0.1)


def test_jensens_shortfall_is_what_small_estimates_lose():
    """The mistake: the sign, or a missing factor 2."""
    shape = (20_000, 100)
    log_z = m.log_z_from_weights(m.growing_log_weights(m.double_well, m.PROPOSALS["importance"][0], shape, (1,))[0])[0]
    lost, sem = m.mean_and_error(log_z - m.exact_well_log_z())
    theory = m.theory_jensen(m.exact_ess_share("importance", 1), 100)
    assert abs(lost - theory) < 4 * sem + 0.05 * abs(theory)  # the second order
    assert lost < -5 * sem


def test_estimates_are_errors_claims_and_shares_of_the_right_dimension():
    log_w = torch.randn(6, 3, 50, dtype=torch.float64)
    found = m.estimates_of(log_w)
    log_z, claimed, ess = m.log_z_from_weights(log_w[4])
    assert torch.allclose(found.at(20).error, log_z - m.exact_well_log_z(20))
    assert torch.equal(found.at(20).claimed, claimed)
    assert torch.allclose(found.at(20).share, ess / 50)
    assert found.at(20).rms().item() == pytest.approx(found.at(20).error.square().mean().item() ** 0.5)


def test_section_partition_and_ais_judge_the_ratio_that_is_unbiased():
    """The mistakes: log Z judged, which Jensen biases; an error bar instead of the spread of repeats."""
    run = Notes(n_points=2000)
    m.section_partition(run)
    assert run.judged("one dimension: log Z, 41 points (nats)") == (m.exact_well_log_z(), 1e-8)
    for name in m.PROPOSALS:
        assert run.judged(f"{name}, d = 2: Z / exact")[0] == 1
        assert errors_allowed(f"{name}, d = 2: Z / exact", run, 4)
        assert run.judged(f"{name}, d = 20: log Z (nats)") == (pytest.approx(20 * m.exact_well_log_z()), None)
        assert run.judged(f"{name}, d = 20: ESS / samples")[0] == pytest.approx(m.exact_ess_share(name, 20))
        claimed = run.metrics[f"{name}, d = 20: claimed error (nats)"]
        assert claimed.value < 1 < claimed.against[1]  # 1 nat is the most that it can claim
    assert errors_allowed("importance, d = 5, few points: Z / exact", run, 5)  # five times 1,600 of 4 times 2,000
    shortfall = m.theory_jensen(m.exact_ess_share("importance", 5), 1600)
    assert run.judged("the same: log Z - exact (nats)")[0] == pytest.approx(shortfall)
    m.section_ais(run := Notes())
    assert run.judged("AIS, d = 5: Z / exact") == (1, None)  # ten steps: not judged
    m.section_ais(run := Notes(n_particles=100, n_betas=200))
    for d in (5, 20):
        assert run.judged(f"AIS, d = {d}: Z / exact")[0] == 1
        assert errors_allowed(f"AIS, d = {d}: Z / exact", run, 4, 2)


def test_ais_is_unbiased_in_every_dimension_and_its_path_ends_where_it_should():
    """The mistakes: a path that starts at an energy with Z = (2 pi)^(d/2), a move at the temperature before."""
    x = torch.randn(5, 3, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    assert torch.allclose(m.well_path(x, 0.0), -normal)
    assert torch.allclose(m.well_path(x, 1.0), m.double_well(x))
    found = m.anneal_by_dimension(12, 200, 25)
    for d in (1, 5, 10):
        ratio, sem = m.mean_and_error(found.at(d).error.exp())
        assert abs(ratio - 1) < m.tolerance(sem, 12, 3)
    still = m.anneal_by_dimension(4, 200, 25, move=lambda x, beta: x)  # without moves: importance sampling
    assert still.at(10).share.mean() < 0.5 * found.at(10).share.mean()


def test_landscapes_integrals_stationary_points_and_mass():
    """The mistakes: a closed form's missing factor, a point that is none, a density cut off by its figure."""
    for name, (_, log_z) in m.exact_landscape_log_z().items():
        energy, box, _ = m.LANDSCAPES[name]
        assert m.grid_density(energy, tuple(1.5 * end for end in box), 700)[0].item() == pytest.approx(log_z, abs=2e-4)
    for name, (x, energy) in m.stationary_points().items():
        e, grad = m.energy_and_grad(m.mueller_brown, torch.tensor(x)[None])
        assert grad.abs().max() < 1e-6
        assert e.item() == pytest.approx(energy)
        hessian = torch.autograd.functional.hessian(lambda x: m.mueller_brown(x[None])[0], torch.tensor(x))
        assert (torch.linalg.eigvalsh(hessian) < 0).sum() == ("saddle" in name)
    inside = m.mass_inside(lambda x: (x**2).sum(1) / 2, (-1, 1, -9, 9), 4.0, wide=(-14, 14, -14, 14))
    assert inside == pytest.approx(math.erf(0.5 / 2**0.5), abs=8e-3)
    _, log_p, x, area = m.grid_density(m.mueller_brown, (-4, 4, -3, 5), 500, 30.0)
    assert m.upper_basin_share(30.0) == pytest.approx((log_p.exp().flatten()[x[:, 1] > 0.8]).sum().item() * area, abs=6e-3)


def test_section_landscapes_compares_with_published_and_exact_values():
    m.section_landscapes(run := Notes())
    assert run.judged("Mueller-Brown, saddle 1: energy") == (-40.665, 1e-3)
    assert run.judged("banana: log Z on a grid (nats)") == (pytest.approx(math.log(math.pi)), 1e-4)
    assert run.judged("Mueller-Brown, T = 30: mass in the figure") == (1, 0.005)
    assert all(abs(e.value - e.against[1]) <= e.within for e in run.metrics.values())


# --- 4. a chain that walks


def test_the_plain_chain_is_the_vectorised_one():
    """The mistakes: a refused move that is not kept, an energy that is not renewed, a temperature in one of two places."""
    for t in (1.0, 0.4):
        torch.manual_seed(3)
        path, n_accepted = m.metropolis_walk(m.double_well, torch.tensor([0.3, -1.0]), 60, 0.8, t)
        torch.manual_seed(3)
        draws = []
        x, rate = m.metropolis(m.double_well, torch.tensor([[0.3, -1.0]]), 60, 0.8, t, keep=draws.append)
        assert torch.allclose(path[1:], torch.cat(draws))
        assert n_accepted == round(60 * rate.item())
        assert 5 < n_accepted < 58


def test_a_crowd_follows_the_matrix_and_burn_in_ends_for_good():
    k = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    crowd = m.exact_crowd(k, 1, 30)
    assert torch.allclose(crowd[2], torch.linalg.matrix_power(k, 2)[1])
    steps, gaps = m.burn_in_steps(crowd, torch.tensor([0.75, 0.25], dtype=torch.float64))
    assert torch.allclose(gaps, 0.75 * 0.6 ** torch.arange(31, dtype=torch.float64))  # the second eigenvalue is 0.6
    assert gaps[steps - 1] > 0.01 >= gaps[steps]


def test_the_walk_agrees_with_its_matrix_and_dropping_refusals_is_wrong_as_computed():
    walk = m.watch_walk(400, 400)
    for step, x in zip(m.MARKS, walk.positions, strict=True):
        mean, sem = m.mean_and_error(x)
        assert abs(mean - walk.crowd[step] @ m.WELL_AXIS) < m.tolerance(sem, 400, 4)
    exact, arrivals = walk.p @ m.WELL_AXIS, (walk.p * walk.rate) @ m.WELL_AXIS / (walk.p @ walk.rate)
    for values, reference in ((walk.kept, exact), (walk.dropped, arrivals)):
        mean, sem = m.mean_and_error(values)
        assert abs(mean - reference) < m.tolerance(sem, 400)
    assert arrivals - exact > 0.05
    assert walk.path[0] == m.WALK_START
    assert abs(walk.acceptance - walk.p @ walk.rate) < 0.1


def test_section_chain_compares_with_the_matrix():
    run = Notes(n_chains=40)
    run.whole = m.Run.whole.__get__(run)
    drawn = []
    m_animate, m.animate_walk = m.animate_walk, lambda run, path, p: drawn.append((len(path), p.sum().item()))
    try:
        m.section_chain(run)
    finally:
        m.animate_walk = m_animate
    axis, p = m.WELL_AXIS, (-m.double_well(m.WELL_AXIS[:, None])).softmax(0)
    k, rate = m.transition_matrix(axis, m.double_well(axis[:, None]), m.WALK_STEP)
    start = (axis - 2.0).abs().argmin()
    for step in m.MARKS:
        name = f"all chains after {step} steps: mean of x"
        assert run.judged(name)[0] == pytest.approx((torch.linalg.matrix_power(k, step)[start] @ axis).item())
        assert errors_allowed(name, run, 40, 4)
    assert run.judged("all draws after burn-in: mean of x")[0] == pytest.approx((p @ axis).item())
    name = "refused moves not counted: mean of x"
    assert run.judged(name)[0] == pytest.approx(((p * rate) @ axis / (p @ rate)).item())
    assert errors_allowed(name, run, 40)
    burn_in = run.metrics["burn-in until within 1 % of p (steps)"].value
    assert run.said[0].startswith(f"after {burn_in:.0f} steps")
    assert drawn == [(101, pytest.approx(1))]
    bars = run.figures["walk"].axes[2].patches
    assert len(bars) > 40  # a histogram of few and one of all draws


# --- 5. sampling: exact kernels and costs


def test_hmc_matrices_are_mala_for_one_step_and_the_sampler_for_more():
    """The mistakes: a kick too many, a move off the grid that is lost, the acceptance upside down."""
    axis = torch.linspace(-2.0, 2.0, 201, dtype=torch.float64)
    e, grad = m.energy_and_grad(skewed, axis[:, None])
    both = m.hmc_matrices(skewed, axis, 0.4, 3)
    mala, rate = m.transition_matrix(axis, e, 0.16, grad[:, 0])
    middle = slice(30, -30)
    assert torch.allclose((both[0][0] @ axis)[middle], (mala @ axis)[middle], atol=2e-3)
    assert torch.allclose(both[0][1][middle], rate[middle], atol=2e-3)
    x = axis[60].float().expand(50_000, 1)
    to, accepted = m.hmc(skewed, x, 1, 0.4, n_leapfrog=3)
    for values, exact in ((to[:, 0], both[2][0][60] @ axis), (accepted, both[2][1][60])):
        assert abs(values.mean() - exact) < 4.5 * values.std() / 50_000**0.5 + 1e-3
    for k, _ in both:
        assert torch.allclose(k.sum(1), torch.ones_like(axis))
    pi = (-e).softmax(0)
    assert torch.allclose(pi @ both[2][0], pi, atol=2e-4)


def test_a_point_that_a_chain_never_leaves_makes_tau_infinite_and_ends_no_run():
    """The mistake: a singular matrix that crashes; MALA's tails are traps, and the box decides what one sees of them."""
    k = torch.block_diag(torch.eye(1), torch.tensor([[0.5, 0.5], [0.5, 0.5]])).double()
    pi = torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64)
    assert m.exact_autocorrelation_time(k, torch.tensor([0.0, 1.0, 3.0]).double(), pi) > 1e6
    trapped = m.exact_trap(0.4)
    assert trapped[1.7] > 20 > 1 > trapped[1.9]
    harmless = m.exact_trap(0.1)
    assert harmless[1.7] == pytest.approx(harmless[1.9], rel=0.01)


def test_the_sweep_takes_the_worse_of_x_and_its_square_and_every_best_lies_inside_it():
    axis, pi, swept = m.exact_sweep()
    best = {name: max(settings, key=lambda setting: setting.per_1000) for name, settings in swept.items()}
    for name, setting in best.items():
        steps = [s.step_size for s in swept[name]]
        assert min(steps) < setting.step_size < max(steps)  # a sweep that ends at its best has not found it
        tau = max(m.exact_autocorrelation_time(setting.k, f, pi) for f in (axis, axis**2))
        assert setting.per_1000 == pytest.approx(1000 / tau / setting.n_leapfrog)
    assert best["Metropolis"].n_leapfrog == best["MALA"].n_leapfrog == 1 < best["HMC"].n_leapfrog


def test_cost_counts_evaluations_and_the_worse_function():
    chains = torch.stack([ar1(0.5, 40, 1000), ar1(0.9, 40, 1000)], 2).double()
    mean, sem = m.per_1000(chains, effort=5)
    assert abs(mean - 1000 * 0.1 / 1.9 / 5) < 5 * sem + 0.5
    assert sem < 2
    assert m.per_1000(chains[..., :1], effort=1)[0] > 4 * mean  # tau 3 of x, 1.67 of its square


def test_ulas_own_limit_and_the_film_settle():
    axis, pi = m.exact_ula()
    assert pi @ axis**2 < exact_mean(m.double_well, lambda x: x**2) - 0.05  # too much of it on the barrier
    film = m.pour(4, 30, n_particles=50)
    assert [steps for steps, _ in film] == [0, 1, 5, 30]
    assert film[-1][1].shape == (50, 2)
    assert len(m.pour(400, 30, n_particles=5)) <= 32  # more frames than steps: no frame twice
    assert m.Config().n_settling >= m.SETTLED


def test_section_sampling_holds_exact_samplers_to_p_and_ula_to_its_own_limit(monkeypatch):
    monkeypatch.setattr(m, "animate_settling", lambda *_: None)
    m.section_sampling(run := Notes(n_chains=12))
    mean = exact_mean(m.double_well, lambda x: x)
    for name in ("Metropolis", "MALA", "HMC"):
        assert run.judged(f"{name}: mean of x")[0] == pytest.approx(mean, abs=1e-3)
        assert errors_allowed(f"{name}: mean of x", run, 12)
        assert errors_allowed(f"{name}: acceptance rate", run, 12)
        assert run.judged(f"{name}: effective per 1,000 evaluations")[1] is None
    for name in ("ULA", "underdamped", "SGHMC"):
        assert run.judged(f"{name}: mean of x") == (pytest.approx(mean, abs=1e-3), None)
    axis, own = m.exact_ula()
    assert run.judged("ULA: mean of x beside its own limit")[0] == pytest.approx((own @ axis).item())
    assert errors_allowed("ULA: mean of x beside its own limit", run, 12)
    settled = run.judged("settled in the upper basin (share)")
    assert settled == (pytest.approx(m.upper_basin_share(20.0)), None)  # 30 steps settle nothing: not judged
    labels = [text.get_text() for text in run.figures["wells"].axes[1].get_legend().get_texts()]
    assert labels == ["Metropolis", "MALA", "HMC", "ULA", "underdamped", "SGHMC"]
    assert "+0.074" in run.said[-1]


# --- 7. scaling


def simulated(d, c, b, scale, n=400_000):
    """(acceptance, squared jump per coordinate), each with its error, where dH = scale (|x'|^2 - |x|^2)."""
    x = torch.randn(n, d, dtype=torch.float64)
    new = c * x + b * torch.randn_like(x)
    a = (-scale * ((new**2).sum(1) - (x**2).sum(1))).exp().clamp(max=1)
    return m.mean_and_error(a), m.mean_and_error(a * (new - x).square().mean(1))


@pytest.mark.parametrize(("name", "d", "step", "n"), [("Metropolis", 3, 1.0, 1), ("MALA", 4, 1.2, 1), ("HMC", 2, 0.9, 3)])
def test_acceptance_and_jump_on_a_gaussian_are_exact_in_any_dimension(name, d, step, n):
    """The mistakes: chi-squared with the wrong degrees of freedom, one half, eigenvalues exchanged, the limit's formula."""
    c, b = m.linear_proposal(name, step, n)
    h2 = step**2 if name == "HMC" else step
    scale = 0.5 if name == "Metropolis" else h2 / 8
    for (mean, sem), exact in zip(
        simulated(d, c, b, scale), (m.exact_gaussian_acceptance(d, c, b), m.exact_gaussian_jump(d, c, b)), strict=True
    ):
        assert abs(mean - exact) < m.tolerance(sem, 400_000, 6)
    _, rates, jumps = m.run_on_gaussian(name, (step, n), 2000, 5, d=d)  # and the samplers themselves
    for values, exact in ((rates, m.exact_gaussian_acceptance(d, c, b)), (jumps, m.exact_gaussian_jump(d, c, b))):
        mean, sem = m.mean_and_error(values)
        assert abs(mean - exact) < m.tolerance(sem, 2000, 6)


def test_acceptance_in_one_dimension_is_the_textbook_arc_tangent():
    for step in (0.5, 4.0):
        found = m.exact_gaussian_acceptance(1, *m.linear_proposal("Metropolis", step))
        assert found == pytest.approx(2 / math.pi * math.atan(2 / step**0.5))


def test_leapfrog_on_a_gaussian_turns_by_its_angle():
    """The mistake: the continuous motion's cosine instead of leapfrog's."""
    x, p, h = 0.7, -0.4, 0.6
    for n in (1, 2, 5):
        y, q = x, p
        for _ in range(n):
            q -= h / 2 * y
            y += h * q
            q -= h / 2 * y
        c, b = m.linear_proposal("HMC", h, n)
        assert y == pytest.approx(c * x + b * p)
    assert m.linear_proposal("MALA", h**2) == pytest.approx(m.linear_proposal("HMC", h, 1))


@pytest.mark.parametrize("name", m.PUBLISHED_ACCEPTANCE)
def test_best_acceptance_tends_to_the_published_limit_and_is_the_best(name):
    published = m.PUBLISHED_ACCEPTANCE[name]
    far, near = m.exact_best_acceptance(name, 10**12), m.exact_best_acceptance(name, 400)
    assert far == pytest.approx(published, abs=5e-4)
    assert near != pytest.approx(published, abs=1e-4)
    rate, gain, _ = m.theory_curve(name, 400)
    assert rate[gain.argmax()] == pytest.approx(near, abs=0.03)
    assert gain.max() == 1


def test_theory_ranks_by_the_slower_of_x_and_its_square():
    """The mistake: half a turn, which reverses x and never changes its square, taken for a perfect sampler."""
    h = 0.3
    half = math.pi / (2 * math.asin(h / 2))
    assert m.theory_per_1000(400, *m.linear_proposal("HMC", h, half), half) == pytest.approx(0, abs=1e-6)
    tuned = m.tune_by_theory(400)
    order = sorted(tuned, key=lambda name: -tuned[name].per_1000)
    assert order == ["HMC", "MALA", "Metropolis"]
    c, b = m.linear_proposal("MALA", tuned["MALA"].step_size)
    rho = 1 - m.exact_gaussian_jump(400, c, b) / 2
    assert tuned["MALA"].per_1000 == pytest.approx(1000 * (1 - rho) / (1 + rho))


def test_cost_by_the_variance_of_means_is_that_of_an_autoregression():
    """The mistakes: the variance of x^2 (2), the mean of x^2 (1), the effort of a draw."""
    chains = ar1(0.8, 20 * 60, 2000).reshape(20, 60, 2000).double()
    mean, sem = m.per_1000_by_means(chains, 4)
    assert abs(mean - 1000 * 0.2 / 1.8 / 4) < 5 * sem
    flipped = ar1(-0.8, 20 * 60, 2000).reshape(20, 60, 2000).double()  # x forgets faster than fast, its square slowly
    mean, sem = m.per_1000_by_means(flipped, 1)
    assert abs(mean - 1000 * 0.36 / 1.64) < 5 * sem


def test_section_scaling_holds_limits_and_measurements_to_exact_values():
    m.section_scaling(run := Notes())
    tuned = m.tune_by_theory(400)
    for name, published in m.PUBLISHED_ACCEPTANCE.items():
        assert run.judged(f"{name}, d = 10^12: best acceptance") == (published, 5e-4)
        proposal = m.linear_proposal(name, *tuned[name][:2])
        assert run.judged(f"{name}, tuned: acceptance rate")[0] == pytest.approx(m.exact_gaussian_acceptance(400, *proposal))
        assert errors_allowed(f"{name}, tuned: acceptance rate", run, 16, 6)
        assert run.judged(f"{name}, tuned: squared jump")[0] == pytest.approx(m.exact_gaussian_jump(400, *proposal))
        assert run.judged(f"{name}: effective per 1,000 evaluations") == (pytest.approx(tuned[name].per_1000), None)
    ranked = sorted(m.PUBLISHED_ACCEPTANCE, key=lambda name: -run.metrics[f"{name}: effective per 1,000 evaluations"].value)
    assert " before ".join(ranked) in run.said[0]
    assert ranked[0] in run.figures["acceptance"].axes[1].get_title()


# --- 8 to 10


def test_section_stepsize_holds_temperature_and_growth(monkeypatch):
    m.section_stepsize(run := Notes())
    for t in (1.0, 0.5):
        for width in m.WIDTHS:
            name = f"T = {t:g}, step ah = {width:.1f}: found T"
            assert run.judged(name)[0] == pytest.approx(2 * t / (2 - width))
            assert errors_allowed(name, run, m.N_WELLS, 8)
    assert run.judged("step ah = 2.5: growth a step") == (1.5, 2e-3)
    assert run.judged("step ah = 0.5: growth a step") == (0.5, 2e-3)
    assert run.judged("a cold recipe: T found (millionths)")[0] == pytest.approx(100)
    assert all(e.within is None or abs(e.value - e.against[1]) <= e.within for e in run.metrics.values())


def test_adam_by_hand_is_torchs_with_its_bias_correction():
    """The mistakes: no correction (the first steps are too short or too long), a descent, one moment for the other."""
    a, b = torch.randn(4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    theirs = [a.clone().requires_grad_(True), b.clone().requires_grad_(True)]
    optimiser = torch.optim.Adam(theirs, lr=0.05, betas=(0.9, 0.99), maximize=True)
    ours, moments = [a.clone(), b.clone()], [(0 * a, 0 * a), (0 * b, 0 * b)]
    for step in range(1, 6):
        gradients = [torch.randn_like(p) for p in ours]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.clone()
        optimiser.step()
        m.adam_uphill(ours, gradients, moments, step, 0.05)
    assert all(torch.allclose(p, q) for p, q in zip(ours, theirs, strict=True))


def test_entropies_and_data_of_the_peaks():
    x = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    p = m.peaks(x)
    assert m.exact_peaks_entropy() == pytest.approx((-(p * p.log()).sum() * (x[1] - x[0])).item(), abs=1e-6)
    draws = m.draw_peaks(2, 100_000, torch.Generator().manual_seed(1)).flatten()
    assert abs(draws.mean() + 0.3) < 4 * (m.PEAKS_VARIANCE / 200_000) ** 0.5
    assert draws.var() == pytest.approx(m.PEAKS_VARIANCE, rel=0.01)
    assert m.theory_gaussian_nll(2.0) == pytest.approx(torch.distributions.Normal(0.0, 2**0.5).entropy().item())


def test_networks_fitted_by_the_exact_gradient_come_down_to_the_entropy():
    x = m.draw_peaks(2, 4000, torch.Generator().manual_seed(1))
    fitted = m.fit_networks(x, 150)
    assert fitted.nll.shape == (151, 2)
    gap = fitted.nll[-1] - m.exact_peaks_entropy()
    assert (gap > -1e-3).all()
    assert (gap < 0.02).all()
    assert set(fitted.shown) == {5, 150}
    slope, difference = m.slope_two_ways(x[:1].double())
    assert slope == pytest.approx(difference, abs=1e-6)


def test_section_forces_compares_with_the_mean_the_differences_and_the_entropy():
    m.section_forces(run := Notes())
    x = m.draw_peaks(4, 4000, torch.Generator().manual_seed(0))[0].double()
    assert run.judged("moving Gaussian: positive phase") == (pytest.approx(x.mean().item() - 0.7), 1e-9)
    assert run.judged("moving Gaussian: negative phase") == (0, 1e-9)
    assert run.judged("network: slope along a direction")[1] == 1e-5
    assert run.judged("networks: negative log likelihood (nats)") == (pytest.approx(m.exact_peaks_entropy()), None)
    assert run.metrics["one Gaussian: negative log likelihood (nats)"].value == pytest.approx(
        m.theory_gaussian_nll(m.PEAKS_VARIANCE)
    )


def test_lines_between_data_have_the_density_of_their_points():
    """The mistakes: a pair's weight, a missing factor 2 for mixed pairs, an unnormalised Gaussian."""
    axis = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    p = m.between_weight(axis) * (axis[1] - axis[0])
    a, b = m.draw_peaks(2, 200_000, torch.Generator().manual_seed(2)).double()
    u = torch.rand(200_000, dtype=torch.float64)
    x = u * a + (1 - u) * b
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    for f in (lambda x: x, lambda x: x**2, lambda x: (x.abs() < 0.5).double()):
        assert abs(f(x).mean() - p @ f(axis)) < 4.5 * f(x).std() / 200_000**0.5 + 2e-3


def test_section_covering_holds_moments_and_modes_and_prices_the_penalties():
    m.section_covering(run := Notes())
    assert run.judged("forward KL: mean") == (-0.3, 1e-4)
    assert run.judged("forward KL: standard deviation") == (pytest.approx((0.16 + 2.25 - 0.09) ** 0.5), 1e-4)
    assert run.judged("reverse KL from +1.5: its least (nats)") == (pytest.approx(-math.log(0.4)), 1e-3)
    assert all(e.within is None or abs(e.value - e.against[1]) <= e.within for e in run.metrics.values())
    prices = [run.metrics[f"tenfold speed, {name}: price (nats)"].value for name in ("at the data", "between data")]
    mobility = m.Mobility(torch.tensor([0.0, 0.1, 0.4]), torch.tensor([1000.0, 100.0, 1.0]), None)
    assert m.price_of_speed(mobility, 1000.0) == pytest.approx(0.1)
    assert m.price_of_speed(mobility, 1000.0, 10**1.5) == pytest.approx(0.1 + 0.3 * 0.25)
    assert f"{min(prices):.3f} nats" in run.said[0]


# --- settings


def run_of(tmp_path, *arguments):
    """The metrics of a smoke run with these arguments."""
    m.main(["--smoke", "--out", str(tmp_path), *arguments])
    return json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"]


def test_one_repeat_has_a_mean_and_no_standard_error(tmp_path):
    """The mistake: the spread of one number is not 0, it is unknown, and nothing can be checked against it."""
    found = run_of(tmp_path, "--section", "ais", "--n-repeats", "1")
    assert set(found["ais/AIS, d = 20: log Z (nats)"]) == {"value", "against", "reference"}
    assert set(found["ais/AIS, d = 20: Z / exact"]) == {"value", "against", "reference"}


def test_samplers_that_never_move_are_said_to_be_stuck_and_end_no_run(capsys):
    """The mistake: an infinite R-hat taken for a run that diverged."""
    run = Notes()
    stuck = torch.arange(4.0)[:, None].expand(4, 50)
    m.say_mixing(run, {"MALA": stuck, "HMC": torch.randn(4, 50)})
    assert "no chain moved (MALA)" in run.said[0]
    assert run.metrics["worst split R-hat"].against[0].startswith("of HMC")
    m.say_mixing(run := Notes(), {"MALA": stuck})
    assert run.metrics == {}


def test_a_sampler_that_diverges_says_so(monkeypatch):
    def diverging(energy, x, n_steps, *args, keep=None, **kwargs):
        for _ in range(n_steps):
            keep(x * math.nan)
        return x

    monkeypatch.setitem(m.SAMPLERS, "ULA", diverging)
    with pytest.raises(SystemExit, match=r"\[sampling\] ULA diverged"):
        m.run_sampler("ULA", m.double_well, 1, (0.1, 1), 8, 20)


@pytest.mark.parametrize(("flag", "value"), [("--n-particles", "1"), ("--n-draws", "19"), ("--n-chains", "7")])
def test_settings_that_cannot_work_are_named(flag, value, tmp_path):
    with pytest.raises(SystemExit, match=flag):
        run_of(tmp_path, "--section", "probability", flag, value)


def test_the_largest_seed_runs(tmp_path):
    run_of(tmp_path, "--section", "forces", "--seed", str(2**32 - 1))
