"""Module 10, latents, composition, directions and map: closed forms, enumeration, quadrature, planted answers."""

import ast
import itertools
import json
import math
import re
from collections import namedtuple
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from conftest import MODULES, load

m = load("10")

Entry = namedtuple("Entry", "value sem against within")


class Notes:
    """Stands in for a Run: keeps what a section records, says and draws."""

    def __init__(self, out=None, **settings):
        self.config, self.seed, self.device = replace(m.Config(), **(m.SMOKE | settings)), 0, torch.device("cpu")
        self.metrics, self.said, self.titles, self.out, self.section_seconds = {}, [], {}, out, {}

    def metric(self, name, value, sem=None, against=None, within=None):
        assert name not in self.metrics
        assert len(name) <= 44
        self.metrics[name] = Entry(float(value), sem, against, within)

    def say(self, sentence):
        self.said.append(sentence)

    def figure(self, fig, name):
        self.titles[name] = [ax.get_title() for ax in fig.axes]
        plt.close(fig)


def agrees(values, exact):
    """Whether the mean of independent repeats is what it should be."""
    mean, sem = m.mean_and_sem(values)
    return abs(mean - exact) <= m.tolerance(sem, len(values))


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# 4. Latent-variable energies


def test_the_linear_density_is_the_quadratures():
    """The mistakes: W A W', s for s², b for A⁻¹b, a decoder's noise without its constant."""
    w, b, x, s = normal(3, 2) / 2, normal(2), normal(7, 3), 0.4
    a = torch.eye(2).double() + torch.ones(2, 2).double() / 2

    def prior(z):
        return ((z @ a) * z).sum(-1) / 2 - z @ b

    by_grid = m.quadrature_log_density(x, prior, lambda z: z @ w.T, s, m.latent_grid(2, 10.0, 200))
    torch.testing.assert_close(by_grid, m.exact_linear_log_density(x, a, b, w, s), atol=1e-8, rtol=0)


def test_slopes_of_the_latent_loss_are_minus_those_of_log_p_for_prior_and_decoder():
    """The mistakes: phases exchanged, 2s² without its 2, a decoder that learns from the prior's draws."""
    z, x, s = m.latent_grid(1, 3.0, 500), normal(6, 2), 0.5
    parameters = torch.tensor([1.2, 0.7], dtype=torch.float64, requires_grad=True)

    def prior(z):
        return m.wells(z, parameters[0])

    def decoder(z):
        return parameters[1] * m.curve(z)

    exact = torch.autograd.grad(m.quadrature_log_density(x, prior, decoder, s, z).mean(), parameters)[0]
    with torch.no_grad():
        posterior = -m.posterior_energy(prior, decoder, s, x[:, None])(z)
    found = []
    for _ in range(10):
        k = 2000
        drawn, of_prior = z[m.draws_on_grid(posterior, k)].flatten(0, 1), z[m.draws_on_grid(-prior(z).detach(), 6 * k)]
        loss = m.latent_loss(prior, decoder, s, x.repeat_interleave(k, 0), drawn, of_prior)
        found.append(-torch.autograd.grad(loss, parameters)[0])
    assert all(agrees(torch.stack(found)[:, i], exact[i].item()) for i in range(2))


def test_the_steps_add_to_the_slope_in_w_what_their_own_stationary_variance_adds():
    """The mistakes: the step's share of the curvature, the sign, a factor s²; the variance is iterated step by step."""
    w, s, size = normal(3, 2) / 2, 0.5, 0.08
    root = normal(2, 2)
    a = torch.eye(2, dtype=torch.float64) + root @ root.T / 4
    h, variance = a + w.T @ w / s**2, torch.zeros(2, 2, dtype=torch.float64)
    keep = torch.eye(2, dtype=torch.float64) - size * h / 2
    for _ in range(2000):
        variance = keep @ variance @ keep + size * torch.eye(2)
    expected = -w @ (variance - torch.linalg.inv(h)) / s**2
    torch.testing.assert_close(m.theory_step_error(a, w, s, size), expected)


def test_measured_latents_agree_with_their_exact_slopes():
    """The mistake: a chain or a grid that samples another posterior than the one whose slope stands beside it."""
    run = Notes(n_repeats=10, n_points=400)
    linear, bent = m.measure_linear_latent(run), m.measure_curve(run)
    assert linear.gap < 1e-8
    assert all(agrees(linear.slopes[:, i], linear.exact[i] + linear.step_error[i]) for i in range(2))
    assert linear.step_error[1].abs() > 0.01
    assert agrees(bent.slopes, bent.exact)
    assert bent.integral == pytest.approx(1, abs=1e-6)


def test_alignment_by_recursion_is_that_of_all_paths():
    """The mistakes: a step left out, β in the wrong place, paths that skip cells."""
    cost = normal(4, 5).abs()
    masks = m.all_paths(4, 5)
    assert len(masks) == len(masks.unique(dim=0)) == 129  # Delannoy's number D(3, 4)
    for beta in (0.3, 2.0):
        free, marginals, best, n_paths = m.exact_alignment(cost, beta)
        assert m.soft_alignment(cost, beta).item() == pytest.approx(free.item(), abs=1e-12)
        step = torch.zeros(4, 5).double()
        step[2, 3] = 1e-5
        rise = (m.soft_alignment(cost + step, beta) - m.soft_alignment(cost - step, beta)) / 2e-5
        assert rise.item() == pytest.approx(marginals[2, 3].item(), abs=1e-8)
        torch.testing.assert_close(m.path_marginals(cost, beta), marginals)
        assert 0 <= best - free <= math.log(n_paths) / beta
    table = cost.clone()  # Viterbi, by dynamic programming
    for i, j in itertools.product(range(4), range(5)):
        before = [table[a, b] for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
        table[i, j] += min(before) if before else 0
    assert best.item() == pytest.approx(table[3, 4].item())


def test_the_bound_of_a_vae_is_log_p_where_its_encoder_is_the_posterior():
    """The mistakes: half of KL, a standard deviation for a variance, noise without its constant."""
    s, w = 0.5, torch.tensor([[1.0], [-0.7]])
    vae = m.Vae(2, 1, 4, s)
    precision = 1 + (w.square().sum() / s**2).item()
    vae.encoder = torch.nn.Linear(2, 2)
    vae.decoder = torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        vae.encoder.weight.copy_(torch.cat([w.T / s**2 / precision, torch.zeros(1, 2)]))
        vae.encoder.bias.copy_(torch.tensor([0.0, -math.log(precision) / 2]))
        vae.decoder.weight.copy_(w)
        x = torch.randn(5, 2)
        bounds = torch.stack([vae.bound(x.repeat(2000, 1)).mean() for _ in range(20)])
    one = torch.ones(1, 1).double()
    exact = m.exact_linear_log_density(x.double(), one, torch.zeros(1).double(), w.double(), s).mean().item()
    assert agrees(bounds, exact)
    mean, sd = torch.tensor([[0.6]]), torch.tensor([[0.3]])
    with torch.no_grad():
        vae.encoder.weight.zero_()
        vae.encoder.bias.copy_(torch.cat([mean, sd.log()], 1)[0])
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, sd), torch.distributions.Normal(0.0, 1.0))
    assert vae.codes(x[:1])[1].item() == pytest.approx(kl.item(), rel=1e-5)


class TwoSpots(torch.nn.Module):
    """Stands in for a VAE: its codes are two spots, where the first pixel says."""

    def codes(self, x):
        return 2 * x[:, :1] + torch.tensor([0.8, 0.9]) * torch.randn(len(x), 2), None

    def decoder(self, z):
        return z


def test_priors_of_codes_are_where_the_codes_are():
    """The mistakes: phases exchanged, draws that keep the scale in which the energy was learnt, clusters in even shares."""
    run = Notes(n_prior=250, n_latents=2, n_clusters=2, n_samples=600, n_latent_components=2, n_latent_steps=200)
    x = torch.where(torch.arange(900) % 3 == 0, -1.0, 1.0)[:, None].expand(900, 64)
    drawn = m.draws_of_codes(TwoSpots(), x, run.config, 0)
    for name in ("VAE + mixture", "VAE + energy"):
        z = drawn[name]
        assert ((z[:, 0].abs() - 2).abs() < 2).float().mean() > 0.9, name
        assert (z[:, 0] > 0).float().mean() == pytest.approx(2 / 3, abs=0.06), name
        assert (z[:, 1] - (z[:, 0].sign() * 2)).abs().median() < 1, name
        assert z.std(0).tolist() == pytest.approx([2.05, 2.09], abs=0.2), name
    assert drawn["VAE"].std() == pytest.approx(1, abs=0.1)


def test_the_sentence_on_priors_knows_what_an_error_is():
    """The mistake: a winner by less than the standard error of the difference."""

    def scores(frechet, sem):
        return m.DigitScores(frechet, sem, 0.8, 0.01, 1.0, 2.0)

    for energy, sem, expected in ((0.2, 0.05, "no better and no worse"), (0.1, 0.01, "better"), (0.4, 0.01, "worse")):
        rows = {"VAE": scores(3.0, 0.1), "VAE + mixture": scores(0.22, sem), "VAE + energy": scores(energy, sem)}
        assert f"that is {expected} than" in m.latent_sentence(rows)


# 5. Composition


def test_variances_in_theory_solve_their_differential_equations():
    """The mistakes: 1/2 of the flow forgotten, a start at U in place of U/n."""
    s2, top = 0.7, 9.7
    for n in (2, 3):
        slopes = {"flow": lambda a, v, n=n: n * v / a, "reverse SDE": lambda a, v, n=n: 2 * n * v / a - 1}
        for name, slope in slopes.items():
            end = scipy.integrate.solve_ivp(slope, (top, s2), [top / n], rtol=1e-10, atol=1e-14).y[0, -1]
            assert m.theory_composed(n, s2, top - s2)[name] == pytest.approx(end, rel=1e-6)


def test_fine_steps_reach_the_variances_in_theory():
    """The mistake: steps whose limit is another process; halved steps halve what is left."""
    for n, name in itertools.product((2, 3), ("flow", "reverse SDE", "weights")):
        theory = m.theory_composed(n, 1.0, 24.0)[name]
        off = [m.exact_chain_variance(name, n, 1.0, m.noise_variances(1.0, k)) - theory for k in (2000, 4000)]
        assert abs(off[1]) < 2e-3
        assert abs(off[1]) < 0.55 * abs(off[0]) + 1e-12
    times = m.noise_variances(1.0, 50)
    assert (times[0].item(), times[-1].item(), len(times)) == (pytest.approx(24), 0, 51)
    torch.testing.assert_close((1 + times[1:]) / (1 + times[:-1]), torch.full((50,), 25 ** (-1 / 50)).double())


@pytest.mark.parametrize("name", list(m.COMPOSERS))
def test_samplers_have_the_variance_that_their_steps_say(name):
    """The mistakes: half a step, noise of another size, weights of the wrong sign or size."""
    config = replace(m.Config(), n_repeats=20, n_points=1000, n_levels=60)
    found = m.measure_composed_gaussians(2, config)[name]
    assert agrees(found, m.exact_chain_variance(name, 2, 1.0, m.noise_variances(1.0, 60)))


def test_weights_repair_unequal_factors_too():
    """The mistakes: weights that are right for equal factors only, counted twice, or with the factors' own squares.
    From little noise, where few points are lost and the spread is small."""
    means, variances, times = (0.0, 1.0), (1.0, 2.0), m.noise_variances(1.0, 200, 1.0)

    def scores(x, t):
        return [(mean - x) / (v + t) for mean, v in zip(means, variances, strict=True)]

    a, b = (v + times[0] for v in variances)
    middle, width = (means[0] * b + means[1] * a) / (a + b), (a * b / (a + b)).sqrt()
    ends = m.by_weights(scores, middle + width * normal(20, 4000, 1), times)[..., 0]
    assert m.mean_and_sem(ends.var(1))[1] < 0.01
    assert agrees(ends.mean(1), 1 / 3)
    assert agrees(ends.var(1), 2 / 3)


def test_resampling_keeps_shares_row_by_row():
    log_w = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.2, 0.0]]).double().log()
    counts = torch.stack([torch.nn.functional.one_hot(m.resample(log_w), 4).sum(1) for _ in range(4000)]).double().mean(0)
    torch.testing.assert_close(counts, 4 * log_w.exp(), atol=0.05, rtol=0)


def test_blobs_have_the_score_the_product_and_the_cells_of_their_density():
    """The mistakes: weights of the product without the overlap, means weighted the wrong way round."""

    def log_p(blobs, x, t=0.0):
        a = blobs.variance + t
        return (blobs.weights.log() - torch.cdist(x, blobs.means) ** 2 / (2 * a)).logsumexp(1) - math.log(2 * math.pi * a)

    p, q = m.ring_and_cross()
    both, x = m.product_of_blobs(p, q), normal(50, 2).requires_grad_()
    (slope,) = torch.autograd.grad(log_p(q, x, 0.3).sum(), x)
    torch.testing.assert_close(q.score(x, 0.3), slope)
    difference = log_p(both, x) - log_p(p, x) - log_p(q, x)
    assert (difference - difference[0]).abs().max() < 1e-9
    assert both.weights.sum().item() == pytest.approx(1)
    fine = torch.linspace(-3, 3, 241, dtype=torch.float64)[:-1] + 0.0125
    cells = log_p(both, torch.cartesian_prod(fine, fine)).exp().view(12, 20, 12, 20).sum((1, 3)).flatten() * 0.025**2
    exact = m.exact_blob_cells(both)
    torch.testing.assert_close(exact[:-1], cells, atol=1e-3, rtol=0)
    assert m.cell_distance(m.cells(both.draws(20_000)) / 20_000, exact) < 0.04


# 6. Directions


def test_tokens_drawn_one_by_one_have_the_energys_law():
    """The mistakes: a sign, a value that forgets a branch; at another temperature the laws differ."""
    energy = 2 * normal(16)
    p = (-energy).softmax(0)
    by_hand = p.view(2, 8).sum(1)[1] * p.view(4, 4).sum(1)[2] / p.view(2, 8).sum(1)[1]  # P(1) P(0 | 1)
    values = m.soft_values(energy)
    assert m.token_by_token(values[:3]).exp()[2].item() == pytest.approx(by_hand.item())
    torch.testing.assert_close(m.token_by_token(values), p.log())
    found = m.measure_tokens(Notes())
    assert found[1.0][0] < 1e-10
    assert min(tv for t, (_, tv) in found.items() if t != 1) > 1e-4


def test_both_slopes_of_minus_log_p_are_where_the_dual_losses_are_least():
    """The mistakes: (y - x)/t with its sign flipped, d/2t without its 2, a slope in t for one in log t."""
    v, n = 0.6, 200_000
    x, t = math.sqrt(v) * normal(n), (3 * torch.rand(n, dtype=torch.float64) - 1.5).exp()
    y = x + t.sqrt() * normal(n)
    bends = (lambda y, u: y**2 / (1 + u.exp()), lambda y, u: u, lambda y, u: y**2 * u / 5, lambda y, u: (2 * y).cos())
    for bend in bends:

        def energy(y, u, size, bend=bend):
            return y**2 / (2 * (v + u.exp())) + (v + u.exp()).log() / 2 + size * bend(y, u)

        up, down = (m.dual_losses(lambda y, u, s=s: energy(y, u, s), x, y.detach().clone(), t) for s in (0.01, -0.01))
        for a, b in zip(up, down, strict=True):
            assert agrees((a - b).detach().view(100, -1).mean(1), 0)


def test_shares_and_constants_of_a_known_energy():
    def energy(y, log_t):
        a = 0.09 + log_t.exp()
        modes = torch.stack([math.log(0.7) - (y + 3) ** 2 / (2 * a), math.log(0.3) - (y - 3) ** 2 / (2 * a)])
        return -modes.logsumexp(0) + a.log() / 2 + log_t

    share, log_z = m.share_and_constants(energy, 2)
    assert share.tolist() == pytest.approx([0.7, 0.7], abs=1e-4)
    expected = math.log(2 * math.pi) / 2 - torch.linspace(math.log(0.01), math.log(1000), 6)
    torch.testing.assert_close(log_z[0], expected.double(), atol=1e-3, rtol=0)


def test_slopes_in_the_noise_level_find_the_share_that_slopes_in_y_miss():
    found = m.measure_dual(Notes(n_small=250), n_networks=3)
    assert found["y and t"][1].mean() < found["y alone"][1].mean() / 4


def test_the_static_field_is_the_mean_of_c_times_noise_minus_data():
    """The mistakes: data minus noise, γ and 1 - γ exchanged, c that does not fall."""
    n, means = 2_000_000, torch.tensor([-1.0, 1.0]).double()
    g, x = torch.rand(n).double(), means[torch.randint(2, (n,))] + 0.3 * normal(n)
    noise = normal(n)
    y, target = g * x + (1 - g) * noise, 4 * ((1 - g) / 0.2).clamp(max=1) * (noise - x)
    for at in (-0.8, 0.35, 1.5):
        inside = (y - at).abs() < 0.03
        parts = target[inside][: inside.sum() // 50 * 50].view(50, -1).mean(1)
        exact = m.equilibrium_field(torch.linspace(at - 0.03, at + 0.03, 21).double(), means, 0.09).mean().item()
        assert agrees(parts, exact)


def test_descent_changes_the_entropy_by_the_logarithm_of_the_maps_slope():
    """The mistakes: 1 + ηf', a start without its entropy, a field that is climbed."""
    axis = np.linspace(-9, 9, 181)
    ends, entropy = m.descend_field(axis, 2 * axis, np.array([1.0, -0.5]), 10, rate=0.1)
    assert ends == pytest.approx(0.8**10 * np.array([1.0, -0.5]))
    assert entropy[0] == pytest.approx(0.5 * math.log(2 * math.pi * math.e))
    assert np.diff(entropy) == pytest.approx(np.full(10, math.log(0.8)))
    one = 0.5 * math.log(2 * math.pi * math.e * 0.04)
    assert m.exact_mixture_entropy(torch.tensor([0.5]).double(), 0.04) == pytest.approx(one, abs=1e-6)
    assert m.exact_mixture_entropy(torch.tensor([-9.0, 9.0]).double(), 0.04) == pytest.approx(one + math.log(2), abs=1e-6)


def test_after_long_a_descent_all_samples_are_at_the_fields_zeros():
    found = m.measure_equilibrium(Notes(n_descent=3000))
    assert found.at_rest == 1
    assert found.entropy[-1] < found.data - 10
    assert found.allowed == pytest.approx(1.358 / 4000**0.5, rel=0.01)
    assert 0.05 < found.distance < 0.2  # an entropy that is right is not yet a density that is
    field = m.equilibrium_field(torch.tensor(found.zeros), torch.tensor([-1.0, 1.0]).double(), 0.04)
    assert field.abs().max() < 1e-4


def test_the_potential_of_transport_has_the_mean_velocity_of_those_who_pass():
    """The mistakes: a velocity that leads back, t and 1 - t exchanged, cells shifted by one."""
    axis, x0 = np.linspace(-4, 4, 81), scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    share, target = m.transport_slopes(axis, x0, x0 + 1.5)  # all move at the same speed
    assert target[share > 0] == pytest.approx(-1.5)
    between = scipy.integrate.quad(lambda t: np.diff(scipy.stats.norm.cdf(axis[[30, 31]] - 1.5 * t)).item(), 0, 1)[0]
    assert share[30] == pytest.approx(between, rel=0.02)
    share, target = m.transport_slopes(axis, x0, 3 * x0)  # x_t = (1 + 2 t) x0 passes x at speed 2 x/(1 + 2 t)
    x = (axis[60] + axis[61]) / 2
    law = lambda t: scipy.stats.norm.pdf(x / (1 + 2 * t)) / (1 + 2 * t)  # noqa: E731
    speed = scipy.integrate.quad(lambda t: law(t) * 2 * x / (1 + 2 * t), 0, 1)[0] / scipy.integrate.quad(law, 0, 1)[0]
    assert target[60] == pytest.approx(-speed, rel=0.01)


def test_the_loss_of_energy_matching_is_j_and_has_its_gradient():
    """The mistakes: a likelihood with its sign flipped, a lost epsilon, a slope that moves the points before it."""
    rng = np.random.default_rng(0)
    slopes, target = rng.normal(size=(2, 12))
    share, p = rng.dirichlet(np.ones(12)), rng.dirichlet(np.ones(13))
    v, settings = np.r_[0, 0.3 * slopes.cumsum()], (0.3, share, target, p, 0.7, 0.4)
    j = (share * (slopes - target) ** 2).sum() + 0.7 * ((p * v).sum() / 0.4 + math.log(np.exp(-v / 0.4).sum()))
    loss, gradient = m.matching_loss(slopes, *settings)
    assert loss == pytest.approx(j)
    assert gradient == pytest.approx(
        scipy.optimize.approx_fprime(slopes, lambda s: m.matching_loss(s, *settings)[0]), abs=1e-6
    )


def test_samples_arrive_along_the_slope_and_stay_as_temperature_says():
    """The mistakes: to climb, noise that is not that of the temperature."""
    axis, n = np.linspace(-6, 6, 241), 4000
    middle = (axis[1:] + axis[:-1]) / 2
    torch.manual_seed(0)
    arrived, stayed = m.arrive_and_stay(axis, 0.5 * middle, n, 0.4, 4000, step_size=0.01)
    assert arrived == pytest.approx(0.995**100 * scipy.stats.norm.ppf((np.arange(n) + 0.5) / n), abs=1e-9)
    curvature = 0.5 / 0.4
    exact = 1 / (curvature * (1 - 0.01 * curvature / 4))  # of Langevin's own stationary law
    chi2 = n * np.mean(stayed**2) / exact
    assert scipy.stats.chi2.ppf(1e-4, n) < chi2 < scipy.stats.chi2.ppf(1 - 1e-4, n)


def test_one_potential_arrives_without_likelihood_and_stays_with_much_of_it():
    mass = scipy.integrate.quad(lambda y: m.uneven_pair(scipy.stats.norm.pdf)([y]).item(), -4, 4, points=(-2, 1.5))[0]
    assert mass == pytest.approx(1)
    found = m.measure_matching(Notes(n_small=500, n_descent=25_000), weights=(0, 10))
    transport, both = found[0], found[10]
    assert transport.arrived < 0.1 < 0.4 < transport.stayed
    assert both.stayed < 0.04 < 0.3 < both.arrived
    assert both.kl < 0.005 < 1 < transport.kl
    assert both.allowed == pytest.approx(1.358 / 4000**0.5, rel=0.01)


def test_the_score_without_data_is_the_slope_of_the_diffused_density_and_its_bias_is_known():
    """The mistakes: E' for -E', t for √t, the bias with its sign flipped or E w² left out."""
    y, t, e = 0.4, 0.3, lambda x: m.tilted_wells(torch.tensor(x))[0].item()

    def density(y):
        return scipy.integrate.quad(lambda x: math.exp(-e(x) - (y - x) ** 2 / (2 * t)), -4, 4, epsabs=1e-13)[0]

    score, bias, one = m.exact_score_and_bias(y, t)
    assert score == pytest.approx((math.log(density(y + 1e-4)) - math.log(density(y - 1e-4))) / 2e-4, abs=1e-5)
    many = [m.monte_carlo_score(y, t, 64, 10_000).mean().item() for _ in range(20)]
    assert agrees([64 * (each - score) for each in many], bias)
    assert abs(bias) > 3 * 64 * m.mean_and_sem(many)[1]
    assert agrees([m.monte_carlo_score(y, t, 1, 20_000).mean().item() for _ in range(20)], one)


class Wells(torch.nn.Module):
    """Stands in for a trained energy: wells at ±√x, as deep as asked."""

    def forward(self, inputs):
        if inputs.shape[-1] == 1:
            return 0 * inputs[..., 0]
        return 20 * (inputs[..., 1].square() - inputs[..., 0]).square()


def test_descent_finds_both_roots_and_contracts_as_the_curvature_says(monkeypatch):
    x, y = torch.rand(1, 5, dtype=torch.float64), normal(1, 5)
    slope, curvature = m.energy_slope(Wells(), x, y)
    torch.testing.assert_close(slope, 80 * y * (y**2 - x))
    torch.testing.assert_close(curvature, 80 * (3 * y**2 - x))
    monkeypatch.setattr(m, "train_roots", lambda *_: Wells())
    found = m.measure_roots(Notes(), n_networks=2)
    assert found.at_root.tolist() == [1, 1]
    assert (found.shrinking - found.theory).abs().max() < 1e-3
    assert found.theory.min() < 0.5
    assert (found.positive - 0.5).abs().max() < 0.15


def test_regression_is_trained_to_the_mean_and_an_energy_to_both_roots():
    x = torch.full((2, 40), 0.49)
    energy = m.train_roots(m.Side(2, 2), 250)
    y = torch.linspace(-1.2, 1.2, 40).expand(2, 40)
    e = energy(torch.stack([x, y], -1)).detach()
    assert (y.gather(1, e.argmin(1, keepdim=True)).abs() - 0.7).abs().max() < 0.2
    assert (e[:, 19] > e.amin(1) + 0.3).all()
    assert m.train_roots(m.Side(2, 1), 250)(x[..., None]).abs().max() < 0.25


def test_nudged_equilibria_give_the_gradient_with_errors_of_first_and_second_order():
    """The mistakes: β for 2β, the nudge with its sign flipped, an equilibrium that is not one."""
    x, target = normal(3, 4), normal(3, 3)
    params = [0.2 * normal(4, 6), 0.2 * normal(6, 3)]
    exact = m.exact_backprop_gradient(x, target, params)

    def cost(at):
        return (m.settle_units(x, target, at)[:, 6:] - target).square().sum().item() / 2

    for i, j in ((0, 5), (1, 4)):
        nudged = [[p.clone() for p in params] for _ in range(2)]
        nudged[0][i].view(-1)[j] += 1e-5
        nudged[1][i].view(-1)[j] -= 1e-5
        at = j + (24 if i else 0)
        assert exact[at].item() == pytest.approx((cost(nudged[0]) - cost(nudged[1])) / 2e-5, abs=1e-7)
    slopes = m.measure_nudging(Notes())[2]
    assert slopes["one-sided"] == pytest.approx(1, abs=0.1)
    assert slopes["symmetric"] == pytest.approx(2, abs=0.1)


def test_the_law_of_a_linear_chain_is_exact():
    """The mistakes: ε/2 for ε/4, an autocovariance that counts twice."""
    a, _ = m.random_system(3)
    covariance, of_mean = m.exact_ar1(a, 7, 0.3)
    step = torch.eye(3).double() - 0.15 * a
    torch.testing.assert_close(step @ covariance @ step.T + 0.3 * torch.eye(3).double(), covariance)
    total = sum((torch.matrix_power(step, abs(i - j)) @ covariance).trace() for i in range(7) for j in range(7)) / 49
    assert of_mean == pytest.approx(total.item())
    found = m.measure_linear_algebra(Notes(n_repeats=8, n_solve=300))
    assert agrees(found.traces, found.exact_trace)
    assert all(agrees(found.errors[k], found.expected[k]) for k in found.errors)


def test_whitened_embeddings_reach_the_canonical_optimum_and_others_collapse():
    """The mistakes: no centring, a constraint on one view only, correlations that are not those planted."""
    x1, x2 = m.two_views(100_000)
    assert m.exact_canonical(x1, x2)[:4].tolist() == pytest.approx([0.95, 0.8, 0.6, 0.3], abs=0.02)
    z = m.whitened(x1[:500] + 3)
    torch.testing.assert_close(z.T @ z / 500, torch.eye(8).double())
    assert z.mean().abs() < 1e-12
    found = m.measure_joining(Notes(n_small=900, n_points=500))
    assert found.whitened[-1] == pytest.approx(found.best, abs=1e-3)
    assert found.best <= min(found.whitened) + 1e-9
    assert found.left < 0.05


# 7. The map


def templates(path):
    """Regular expressions of the f-strings and strings of a module: what its metrics may be called."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in node.values]
            if sum(len(p) for p in parts if p != ".+") > 4:
                found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            found.append(re.escape(node.value))
    return found


@pytest.mark.parametrize("route", m.ROUTES, ids=lambda r: r.method)
def test_the_map_names_sections_and_metrics_that_there_are(route):
    """The mistake: a metric was renamed, and the map looks for the old name for ever."""
    (path,) = (path for path in MODULES if path.name.startswith(route.module))
    known = templates(path)
    for name in (route.reaches, route.fails):
        section, _, words = name.partition("/")
        assert section in load(route.module).SECTIONS
        assert any(re.fullmatch(each, words) for each in known), words


def test_the_map_reads_runs_and_names_what_was_not_run(tmp_path):
    """The mistakes: a number that stands in the code, another folder's runs, a broken file that ends the run."""
    names = {"truth2d/weighted: gap (nats)": 0.0625, "truth2d/20 steps, restarts: gap (nats)": 1.75}
    entries = {name: {"value": value, "against": "the data", "reference": 0.0} for name, value in names.items()}
    for folder, text in (
        ("07_neural_ebms", json.dumps({"metrics": entries, "section_seconds": {"truth2d": 12.4}})),
        ("08_cooperative_training", "{"),
        ("09_ebm_applications", "[]"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metrics.json").write_text(text, encoding="utf-8")
    (tmp_path / "10_here").mkdir()
    records = m.records_beside(tmp_path / "10_here")
    assert set(records) == {"07"}
    (line,) = (line for line in m.read_map(records) if line.method.startswith("weighted chains"))
    assert line.reaches == "weighted: gap (nats): 0.0625"
    assert (line.beside, line.seconds) == ("the data: 0", "12")
    assert line.fails.endswith("1.75")
    (digits,) = (line for line in m.read_map(records) if line.method == "energy of digits, from noise (07)")
    assert digits.reaches == "run module 07"  # of that run only one section
    run = Notes(tmp_path / "10_here")
    m.section_map(run)
    assert run.metrics["other modules whose numbers are here"].value == 1
    assert run.said[-1].startswith(f"1 of {len(m.ROUTES)} lines")
    assert {line.reaches for line in m.read_map({})} == {f"run module {r.module}" for r in m.ROUTES}


# The sections


def test_sections_record_claims_beside_exact_values():
    """The mistake: a number that stands alone, or a promise without a width."""
    latent, composed, directions = Notes(), Notes(), Notes()
    m.section_latent(latent)
    m.section_composition(composed)
    m.section_directions(directions)
    promised = {
        name for notes in (latent, composed, directions) for name, entry in notes.metrics.items() if entry.within is not None
    }
    assert promised >= {f"n = {n}, {name}: variance" for n in (2, 3) for name in m.COMPOSERS if name != "weights"}
    assert promised >= {
        "linear: largest gap of log p to quadrature", "linear: slope in b, chains", "curve: slope in the height, draws",
        "curve: integral of p over the plane", "alignment: error of F", "alignment: error of the marginals",
        "alignment, beta = 200: F", "tokens: largest gap of log p at T = 1", "no data, K = 1: bias of the score",
        "y^2 = x: contraction of 10 steps, off by", "nudging, one-sided: order of the error",
        "nudging, symmetric: order of the error", "Ax = b: trace of the covariance", "Ax = b: squared error of the mean",
        "two views, whitened: distance",
    }  # fmt: skip
    assert composed.metrics["n = 3, reverse SDE: variance in theory"].against == ("truth", 1 / 3)
    assert composed.metrics["shapes, MCMC: total variation"].against[0] == "exact draws"
    assert latent.metrics["VAE + energy: Frechet distance"].against[0] == "VAE alone"
    assert len(directions.said) == len(m.DIRECTIONS) >= 7
    assert all("not settled" in sentence for sentence in directions.said)
