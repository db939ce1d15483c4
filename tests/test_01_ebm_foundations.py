"""Module 01: every method against a closed form, enumeration, quadrature, finite differences or a second implementation."""

import json
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from conftest import load

m = load("01")


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
    assert m.exact_autocorrelation_time(k, torch.tensor([0.0, 1.0], dtype=torch.float64)).item() == pytest.approx(4.0)
    assert m.relaxation_time(k, pi).item() == pytest.approx(2.5)


@pytest.mark.parametrize(("best", "power"), [(0.574, 2 / 3), (0.651, 1 / 2), (0.234, 2)])
def test_acceptance_at_peak_finds_the_published_optimum_on_the_theorys_curve(best, power):
    z = torch.linspace(0.05, 3, 400, dtype=torch.float64)  # acceptance 2 Phi(-z), step z^(power)
    a, step = torch.special.erfc(z / 2**0.5), z**power
    pick = np.argsort(np.abs(a.numpy()[None] - np.linspace(0.05, 0.95, 14)[:, None]), 1)[:, 0][::-1]
    assert m.acceptance_at_peak(step.numpy()[pick], a.numpy()[pick], (a * step).numpy()[pick]) == pytest.approx(
        best, abs=0.02
    )


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


# --- settings


def run_of(tmp_path, *arguments):
    """The metrics of a smoke run with these arguments."""
    m.main(["--smoke", "--out", str(tmp_path), *arguments])
    return json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"]


def test_one_repeat_has_a_mean_and_no_standard_error(tmp_path):
    """The mistake: the spread of one number is not 0, it is unknown, and nothing can be checked against it."""
    found = run_of(tmp_path, "--section", "partition", "--n-repeats", "1")["partition/ais_log_z_d20"]
    assert set(found) == {"value", "against", "reference"}


def test_samplers_that_never_move_are_said_to_be_stuck_and_end_no_run(tmp_path, monkeypatch, capsys):
    """The mistake: an infinite R-hat taken for a run that diverged."""

    def stuck(energy, x, n_steps, *args, keep=None, **kwargs):
        for _ in range(n_steps):
            keep(x)
        return x, torch.zeros(len(x))

    monkeypatch.setattr(m, "mala", stuck)
    monkeypatch.setattr(m, "optimal_scaling", lambda *_: None)
    monkeypatch.setattr(m, "animate_settling", lambda _: (0.5, 0.5))
    found = run_of(tmp_path, "--section", "sampling")
    assert "no chain moved (wells, mala; banana, mala)" in capsys.readouterr().out
    assert "sampling/worst_split_r_hat" in found
    assert "ok" not in found["sampling/wells_mala_crossings_per_1000"]  # no spread: nothing to judge by


def test_a_sampler_that_diverges_says_so(tmp_path, monkeypatch):
    def diverging(energy, x, n_steps, *args, keep=None, **kwargs):
        for _ in range(n_steps):
            keep(x * math.nan)
        return x

    monkeypatch.setattr(m, "langevin", diverging)
    with pytest.raises(SystemExit, match=r"\[sampling\] ula diverged"):
        run_of(tmp_path, "--section", "sampling")


def test_a_long_film_is_not_an_endless_one(tmp_path, monkeypatch):
    """The mistake: steps that grow by 16 % a frame, so that 400 frames would take 10^26 of them."""
    total = []
    monkeypatch.setattr(m, "langevin", lambda energy, x, n_steps, *_: total.append(n_steps) or x)
    monkeypatch.setattr(m.PillowWriter, "grab_frame", lambda self, **_: None)
    monkeypatch.setattr(m.PillowWriter, "finish", lambda self: self.outfile.touch())
    for n_frames in (48, 400):
        total.clear()
        run = m.Run(m.Config(n_frames=n_frames), 0, "cpu", tmp_path, False)
        m.animate_settling(run)
        assert len(total) == n_frames
        assert 7_000 < sum(total) < 80_000


@pytest.mark.parametrize(
    ("section", "flag", "value"), [("partition", "--n-particles", "1"), ("sampling", "--n-draws", "19")]
)
def test_settings_that_cannot_work_are_named(section, flag, value, tmp_path):
    with pytest.raises(SystemExit, match=flag):
        run_of(tmp_path, "--section", section, flag, value)


def test_the_largest_seed_runs(tmp_path):
    for section in ("probability", "forces", "stepsize"):
        run_of(tmp_path, "--section", section, "--seed", str(2**32 - 1))
