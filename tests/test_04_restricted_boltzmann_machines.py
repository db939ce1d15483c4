"""Module 04: every sign, factor and temperature against enumeration, autograd, quadrature or a library."""

import itertools
import math
import struct
import sys

import numpy as np
import pytest
import torch
from conftest import import_torchvision, load
from scipy.integrate import dblquad
from torch.nn.functional import softplus

m = load("04")


def random_rbm(d, n_hidden, scale=1.0):
    return m.RBM(*(scale * torch.randn(shape).double() for shape in ((d, n_hidden), (d,), (n_hidden,))))


def states(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).double()


def enumerated(rbm):
    """The joint p(v, h) of eq. (1) as a (2^d, 2^m) table by plain loops, and log Z."""
    minus_e = torch.tensor([[v @ rbm.W @ h + rbm.b @ v + rbm.c @ h for h in states(len(rbm.c))] for v in states(len(rbm.b))])
    return (minus_e - minus_e.logsumexp((0, 1))).exp(), minus_e.logsumexp((0, 1))


# 1. The bipartite trick


def test_energy_is_minus_the_bilinear_form():
    rbm = random_rbm(4, 3)
    v, h = states(4)[5:6], states(3)[6:7]
    assert rbm.energy(v, h) == pytest.approx(-(v[0] @ rbm.W @ h[0] + rbm.b @ v[0] + rbm.c @ h[0]).item())


def test_conditionals_free_energy_and_log_z_equal_enumeration():
    rbm = random_rbm(5, 3)
    joint, log_z = enumerated(rbm)
    v, h = states(5), states(3)
    torch.testing.assert_close(rbm.p_hidden(v), joint @ h / joint.sum(1, keepdim=True))
    torch.testing.assert_close(rbm.p_visible(h), joint.T @ v / joint.sum(0).unsqueeze(1))
    torch.testing.assert_close((-rbm.free_energy(v) - log_z).exp(), joint.sum(1))
    torch.testing.assert_close(m.exact_log_z(rbm), log_z)


@pytest.mark.parametrize(("d", "n_hidden"), [(3, 7), (7, 3), (4, 4)])
def test_log_z_enumerates_either_layer(d, n_hidden):
    rbm = random_rbm(d, n_hidden)
    torch.testing.assert_close(m.exact_log_z(rbm), enumerated(rbm)[1])


def test_log_z_refuses_what_cannot_be_enumerated():
    with pytest.raises(ValueError, match="too many"):
        m.exact_log_z(random_rbm(30, 25))


def test_all_states_are_all_and_distinct():
    assert len({tuple(state) for state in m.all_states(7).tolist()}) == 2**7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_has_the_right_mean_and_is_binary(dtype):
    p = torch.tensor([0.0, 1e-3, 0.25, 0.5, 0.9, 1.0], dtype=dtype)
    draws = m.bernoulli(p.repeat(200_000, 1))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    tolerance = 4 * (p * (1 - p) / 200_000).sqrt() + 2**-16
    assert ((draws.mean(0) - p).abs() <= tolerance).all()
    assert (draws[:, 0] == 0).all()
    assert (
        m.bernoulli(torch.ones(1000, 1000, dtype=dtype)) == 1
    ).all()  # certain units are certain: once in 2^16 would be a door out of any deep mode


def test_bernoulli_units_are_independent_and_fill_out_in_place():
    p = torch.full((50_000, 6), 0.3)  # four units share a 64-bit draw
    out = torch.empty_like(p)
    assert m.bernoulli(p, out=out) is out
    correlation = out.T.corrcoef() - torch.eye(6)
    assert correlation.abs().max() < 5 / 50_000**0.5
    assert m.bernoulli(torch.full((3, 5), 0.5)).shape == (3, 5)  # 15 units: not a multiple of four


def test_gibbs_leaves_the_model_distribution_invariant():
    rbm = random_rbm(4, 3, 1.5)
    p_v = enumerated(rbm)[0].sum(1)
    start = states(4)[torch.multinomial(p_v, 100_000, replacement=True)]
    counts = torch.bincount((m.gibbs(rbm, start, 1) @ torch.tensor([8.0, 4, 2, 1]).double()).long(), minlength=16)
    assert ((counts / 1e5 - p_v).abs() <= 4.5 * (p_v * (1 - p_v) / 1e5).sqrt() + 3e-5).all()


def test_product_probabilities_are_those_of_independent_units():
    p = torch.rand(2, 3).double()
    for a, (s, state) in itertools.product(range(2), enumerate(states(3))):
        expected = math.prod((p[a, i] if state[i] else 1 - p[a, i]).item() for i in range(3))
        assert m.product_probabilities(p, states(3))[a, s] == pytest.approx(expected)


# 2. Contrastive divergence


def test_gradient_is_that_of_the_log_likelihood():
    """By finite differences, so that a flipped phase or a forgotten factor cannot hide."""
    rbm, x, v = random_rbm(4, 3), states(4)[[1, 5, 12]], states(4)
    weight = (-rbm.free_energy(v)).softmax(0)
    gradient = m.likelihood_gradient(rbm, x, v, weight)
    for part, place in ((0, (2, 1)), (1, (3,)), (2, (0,))):
        values = []
        for step in (1e-5, -1e-5):
            moved = [parameter.clone() for parameter in rbm]
            moved[part][place] += step
            moved = m.RBM(*moved)
            values.append((-moved.free_energy(x).mean() - m.exact_log_z(moved)).item())
        assert gradient[part][place].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def expected_step(rbm, x, v_model, rate):
    gradient = m.likelihood_gradient(rbm, x, v_model)
    return [parameter + rate * change for parameter, change in zip(rbm, gradient, strict=True)]


@pytest.mark.parametrize("settings", [{}, {"k": 3}, {"persistent": False}, {"persistent": False, "k": 2}])
def test_step_climbs_the_gradient_by_hand(settings):
    """The fused update equals eq. (4) on the data and on the chains that it holds afterwards."""
    rbm = m.RBM(*(parameter.float() for parameter in random_rbm(6, 5)))
    before = m.RBM(*(parameter.clone() for parameter in rbm))
    trainer, x = m.ContrastiveDivergence(rbm, 40, **settings), (torch.rand(40, 6) < 0.3).float()
    trainer.step(x, 0.1)
    for new, expected in zip(rbm, expected_step(before, x, trainer.v[40:], 0.1), strict=True):
        torch.testing.assert_close(new, expected, atol=1e-5, rtol=1e-5)


def test_cd_chains_start_at_the_data_and_persistent_chains_do_not():
    strong = m.RBM(60 * torch.eye(8), torch.full((8,), -30.0), torch.full((8,), -30.0))  # h copies v, v copies h
    x = (torch.rand(50, 8) < 0.5).float()
    for persistent in (False, True):
        trainer = m.ContrastiveDivergence(strong, 50, persistent=persistent)
        chains = trainer.h.clone()
        trainer.step(x, 0.0)
        torch.testing.assert_close(trainer.v[50:], chains if persistent else x)
        torch.testing.assert_close(trainer.h, trainer.v[50:])  # the hidden state belongs to the visible one


@pytest.mark.parametrize("k", [1, 2, 4])
def test_cd_k_takes_k_sweeps_from_the_data(k):
    """Against powers of the exact Gibbs kernel, from v = 0 and with strong weights, so that each sweep shows."""
    rbm, v, h = random_rbm(4, 3, 2.0), states(4), states(3)
    kernel = m.product_probabilities(rbm.p_hidden(v), h) @ m.product_probabilities(rbm.p_visible(h), v)
    expected = torch.linalg.matrix_power(kernel, k)[0]
    trainer = m.ContrastiveDivergence(rbm, 50_000, k=k, persistent=False)
    trainer.step(torch.zeros(50_000, 4).double(), 0.0)
    counts = torch.bincount((trainer.v[50_000:] @ torch.tensor([8.0, 4, 2, 1]).double()).long(), minlength=16)
    assert ((counts / 5e4 - expected).abs() <= 4.5 * (expected * (1 - expected) / 5e4).sqrt() + 3e-5).all()


def test_persistent_chains_reach_the_model_distribution():
    rbm = m.RBM(*(parameter.float() for parameter in random_rbm(4, 3, 1.5)))
    trainer = m.ContrastiveDivergence(rbm, 50_000)
    for _ in range(50):
        trainer.step(torch.zeros(50_000, 4), 0.0)
    p_v = enumerated(m.RBM(*(parameter.double() for parameter in rbm)))[0].sum(1)
    counts = torch.bincount((trainer.v[50_000:] @ torch.tensor([8.0, 4, 2, 1])).long(), minlength=16)
    assert ((counts / 5e4 - p_v).abs() <= 4.5 * (p_v * (1 - p_v) / 5e4).sqrt() + 3e-5).all()


def test_weight_decay_momentum_and_sparsity_do_what_they_say():
    torch.manual_seed(1)
    start = m.RBM(*(parameter.float() for parameter in random_rbm(6, 5)))
    x = (torch.rand(40, 6) < 0.3).float()

    def one_step(steps=1, weight_decay=0.0, **settings):
        torch.manual_seed(2)
        rbm = m.RBM(*(parameter.clone() for parameter in start))
        trainer = m.ContrastiveDivergence(rbm, 40, **settings)
        for _ in range(steps):
            trainer.step(x, 0.1, weight_decay)
        return rbm

    plain, decayed = one_step(), one_step(weight_decay=0.5)
    torch.testing.assert_close(decayed.W, plain.W - 0.1 * 0.5 * start.W)
    torch.testing.assert_close(decayed.b, plain.b)  # biases do not decay
    sparse = one_step(sparsity=(0.1, 2.0))
    torch.testing.assert_close(sparse.c, plain.c + 0.1 * 2.0 * (0.1 - start.p_hidden(x).mean(0)))
    torch.testing.assert_close(one_step(momentum=0.9).W, plain.W)  # the first step has no past
    trainer = m.ContrastiveDivergence(m.RBM(*(torch.zeros_like(parameter) for parameter in start)), 40, momentum=0.5)
    trainer.velocity.b.fill_(1.0)
    trainer.step(torch.zeros(40, 6), 0.0)
    torch.testing.assert_close(trainer.rbm.b, torch.full((6,), 0.5))


def test_minibatches_visit_each_image_once_an_epoch():
    x = torch.arange(10.0).unsqueeze(1)
    batches = list(itertools.islice(m.minibatches(x, 5), 4))
    for epoch in (batches[:2], batches[2:]):
        assert sorted(torch.cat(epoch).flatten().tolist()) == x.flatten().tolist()
    assert len(list(itertools.islice(m.minibatches(x, 4), 5))[4]) == 4


def test_training_learns_a_small_distribution():
    """Two patterns and nothing else: the exact likelihood comes near -log 2, from -6 log 2."""
    x = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0.0, 0, 0, 1, 1, 1]]).repeat(200, 1)
    config = m.replace(m.Config(), n_updates=2000, batch_size=100, learning_rate=0.1, weight_decay=1e-4)
    history = []
    rbm = m.train_rbm(m.fresh_rbm(x, 4), x, config, history)
    assert (-rbm.free_energy(x).mean() - m.exact_log_z(rbm)).item() > -math.log(2) - 0.3
    assert [update for update, _ in history] == [round(200 * i) for i in range(11)]
    torch.testing.assert_close(history[-1][1].W, rbm.W, atol=1e-6, rtol=1e-4)  # the last rate is 0


def test_fresh_biases_give_each_pixel_its_rate():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(m.log_odds(x).sigmoid(), torch.tensor([3.5 / 4, 1.5 / 4]))


# 4. Likelihood


def test_ais_weights_average_to_z():
    """E[w] = Z at any number of temperatures, also very few; and the standard error tells how far off it may be."""
    rbm = m.RBM(*(parameter.float() for parameter in random_rbm(6, 4, 0.8)))
    log_z = m.exact_log_z(rbm).item()
    for n_temps in (1, 3, 30):
        estimate, sem, ess = m.log_z_from_weights(m.ais(rbm, 0.5 * torch.randn(6), 50_000, n_temps))
        assert abs(estimate - log_z) < 4 * sem + 1e-4
    assert ess > 0.8 * 50_000
    assert sem < 0.01


def test_ais_is_exact_where_the_model_is_the_base():
    rbm = m.RBM(torch.zeros(5, 3), torch.randn(5), torch.zeros(3))
    log_w = m.ais(rbm, rbm.b, 10, 4)
    torch.testing.assert_close(log_w, torch.full((10,), (3 * math.log(2) + softplus(rbm.b).sum()).item()))


def test_mixture_of_one_is_independent_pixels_and_more_components_fit_clusters():
    x = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0.0, 0, 0, 1, 1, 1]]).repeat(100, 1)
    for n_components, nats, error in ((1, -6 * math.log(2), 1e-3), (4, -math.log(2), 0.2)):
        mixture = m.mixture_of_bernoullis(x, n_components)
        assert mixture.log_joint(x).logsumexp(1).mean().item() == pytest.approx(nats, abs=error)


def test_sklearns_machine_is_read_the_right_way_round_and_its_rate_falls(monkeypatch):
    x, rates = torch.tensor([[1.0, 1, 0, 0], [0.0, 0, 1, 1]]).repeat(50, 1), []
    fit = m.BernoulliRBM.partial_fit
    monkeypatch.setattr(m.BernoulliRBM, "partial_fit", lambda self, x: rates.append(self.learning_rate) or fit(self, x))
    rbm = m.sklearn_rbm(x, 3, 0.2, 50, 0, 10)
    np.testing.assert_allclose(rates, 0.2 * (1 - np.arange(50) / 50))
    peer = m.BernoulliRBM(3)
    peer.components_, peer.intercept_hidden_, peer.intercept_visible_ = rbm.W.T.numpy(), rbm.c.numpy(), rbm.b.numpy()
    np.testing.assert_allclose(rbm.free_energy(x).numpy(), peer._free_energy(x.numpy()), rtol=1e-5)


# 5. Features


def test_class_probabilities_equal_free_energies_of_the_joint():
    rbm, x = random_rbm(5 + 3, 4), states(5)
    joint = torch.stack([-rbm.free_energy(torch.cat([x, torch.eye(3)[[y] * len(x)]], 1)) for y in range(3)], 1)
    torch.testing.assert_close(m.class_log_probs(rbm, x, 3), joint.log_softmax(1))


def test_discriminative_training_raises_the_probability_of_the_labels():
    x = states(4).repeat(20, 1).float()
    y = ((x[:, 0] + x[:, 1]) == 1).long()  # exclusive or: not linearly separable
    start = m.RBM(*(parameter.float() for parameter in random_rbm(4 + 2, 8)))
    rbm = m.train_discriminatively(start, x, y, 1000)
    assert m.class_log_probs(rbm, x, 2)[torch.arange(len(y)), y].exp().mean() > 0.9


# 6. Filling in


def test_exact_completion_equals_enumeration_of_the_missing_pixels():
    rbm, known = random_rbm(6, 4), torch.tensor([True, False, True, False, True, False])
    x, v = states(6)[[7, 50]], states(6)
    for row, completed in zip(x, m.exact_completion(rbm, x, known), strict=True):
        agrees = (v[:, known] == row[known]).all(1)
        weight = (-rbm.free_energy(v[agrees])).softmax(0)
        torch.testing.assert_close(completed, weight @ v[agrees])


def test_gibbs_completion_approaches_the_exact_one_and_keeps_what_is_known():
    rbm, known = random_rbm(6, 4), torch.tensor([True, False, True, False, True, False])
    x = states(6)[[7]].repeat(4000, 1)
    mean, v = m.inpaint_by_gibbs(rbm, x, known, 40)
    torch.testing.assert_close(v[:, known], x[:, known])
    torch.testing.assert_close(mean.mean(0), m.exact_completion(rbm, x[:1], known)[0], atol=0.02, rtol=0)
    torch.testing.assert_close(v.mean(0), m.exact_completion(rbm, x[:1], known)[0], atol=0.04, rtol=0)


# 7. Gaussian units


def random_gaussian_rbm():
    return m.GaussianRBM(*(0.7 * torch.randn(shape).double() for shape in ((2, 3), (2,), (3,), ())))


def test_gaussian_free_energy_and_log_z_equal_sums_and_quadrature():
    rbm = random_gaussian_rbm()
    variance, v = math.exp(rbm.log_variance), torch.randn(4, 2).double()
    joint = torch.tensor(
        [[((x - rbm.b) ** 2).sum() / (2 * variance) - x @ rbm.W @ h / variance - rbm.c @ h for h in states(3)] for x in v]
    )
    torch.testing.assert_close(rbm.free_energy(v), -(-joint).logsumexp(1))

    def density(y, x):
        return math.exp(-rbm.free_energy(torch.tensor([[x, y]]).double()).item() - rbm.exact_log_z().item())

    assert dblquad(density, -9, 9, -9, 9, epsabs=1e-4)[0] == pytest.approx(1, abs=1e-3)


def test_gaussian_gibbs_has_the_moments_of_the_mixture():
    rbm = random_gaussian_rbm()
    h, variance = states(3), math.exp(rbm.log_variance)
    means = rbm.b + h @ rbm.W.T
    weight = (h @ rbm.c + (means.square().sum(1) - rbm.b.square().sum()) / (2 * variance)).softmax(0)
    v = rbm.gibbs(torch.zeros(100_000, 2).double(), 60)
    mean = weight @ means
    covariance = variance * torch.eye(2).double() + (means - mean).T @ torch.diag(weight) @ (means - mean)
    torch.testing.assert_close(v.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(v.T.cov(), covariance, atol=0.06, rtol=0)


def test_gaussian_rbm_learns_two_clusters_and_their_width():
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    x = centres[torch.randint(2, (4000,))] + 0.5 * torch.randn(4000, 2)
    rbm = m.train_gaussian_rbm(x, 2, 2000)
    entropy = math.log(2) + math.log(2 * math.pi * math.e * 0.25)
    assert (-rbm.free_energy(x).mean() - rbm.exact_log_z()).item() == pytest.approx(-entropy, abs=0.15)
    assert (rbm.log_variance / 2).exp().item() == pytest.approx(0.5, abs=0.08)


def test_patches_are_standardised_dequantised_textured_and_test_patches_come_from_elsewhere(monkeypatch):
    """Two striped pictures: their left two thirds are brighter than 100, the right third is darker."""
    stripes = np.zeros((90, 120, 3)) + np.where(np.arange(120) < 80, 200, 20)[None, :, None]
    stripes[:45, ::2] += 30  # the upper half has contrast
    monkeypatch.setattr(m, "load_sample_images", lambda: type("Pictures", (), {"images": [stripes, stripes]}))
    train, test = m.natural_patches(4, 400, 0)
    assert train.shape == test.shape == (400, 16)
    assert train.dtype == torch.float64
    assert train.mean().item() == pytest.approx(0, abs=1e-9)
    assert train.std().item() == pytest.approx(1, abs=1e-9)
    assert test.max() < train.min()
    assert len(train.unique()) > 6000  # whole grey levels would be four values
    textured, _ = m.natural_patches(4, 400, 0, 8.0)
    assert 100 < len(textured) < 300
    assert (textured.std(1) > 0.5).all()


# 8. Deep belief network


def test_bound_is_tight_for_every_sample_where_the_top_is_the_first_upside_down():
    first = random_rbm(5, 3)
    top, v = m.RBM(first.W.T, first.c, first.b), states(5)
    expected = -first.free_energy(v) - m.exact_log_z(first)
    torch.testing.assert_close(m.dbn_bound(first, top, m.exact_log_z(top), v), expected)


def test_likelihood_of_the_network_sums_to_one_and_lies_above_the_bound():
    first, top, v = random_rbm(5, 3), random_rbm(3, 4), states(5)
    exact = m.exact_dbn_log_likelihood(first, top, v)
    torch.testing.assert_close(exact.exp().sum(), torch.tensor(1.0).double())
    bound = torch.stack([m.dbn_bound(first, top, m.exact_log_z(top), v) for _ in range(4000)]).mean(0)
    assert (bound < exact + 1e-6).all()


# Rooms: references against something else, experiments on planted truths, sections by a stub run


class StubRun:
    """Records what a section compares with what: {name: (value, sem, against, within)}, and its sentences."""

    def __init__(self, seed=5, **settings):
        small = {"n_hidden": 6, "n_small": 4, "n_updates": 20, "n_seeds": 2, "n_ais_chains": 20, "n_ais_temps": 20}
        self.config = m.replace(m.Config(), **(small | {"n_gibbs": 5, "batch_size": 10, "n_patches": 400} | settings))
        self.seed, self.device, self.metrics, self.sentences = seed, torch.device("cpu"), {}, []
        self.titles = ""

    def metric(self, name, value, sem=None, against=None, within=None):
        assert len(name) <= 44, name
        assert name.isascii()
        self.metrics[name] = (float(value), sem, against, within)

    def say(self, sentence):
        self.sentences.append(sentence)

    def figure(self, fig, name):
        self.titles += "".join(f"{ax.get_title()}|" for ax in fig.axes)
        m.plt.close(fig)


@pytest.fixture
def planted(monkeypatch):
    """Binary images whose train (30) and test (16) differ recognisably: 9 pixels, the test's last one is always on."""
    x = (torch.rand(46, 9) < 0.4).float()
    x[30:, 8], x[:30, 8] = 1, 0
    data = x[:30], x[30:], np.arange(30) % 3, np.arange(16) % 3
    monkeypatch.setattr(m, "binary_images", lambda run: data)
    return data


def tiny(**settings):
    return StubRun(**settings).config


# 1.


def test_counting_error_is_that_of_binomial_counts():
    """By enumeration of all counts of 3 draws, and for a point mass."""
    p, n = torch.tensor([0.3, 0.7]).double(), 3
    pmf = [math.comb(n, k) * 0.3**k * 0.7 ** (n - k) for k in range(n + 1)]
    expected = sum(weight * abs(k / n - 0.3) for k, weight in enumerate(pmf))  # both halves of the total variation agree
    assert m.theory_counting_error(p, n) == pytest.approx(expected)
    assert m.theory_counting_error(torch.tensor([1.0, 0.0]), 10) == pytest.approx(0)


def test_joint_and_kernel_equal_enumeration_and_the_kernel_keeps_p():
    rbm = random_rbm(4, 3, 1.5)
    joint, log_z = m.exact_joint(rbm)
    torch.testing.assert_close(log_z, enumerated(rbm)[1])
    p_v = (-rbm.free_energy(m.all_states(4).double()) - log_z).exp()
    torch.testing.assert_close(joint.sum(1), p_v)
    kernel = m.exact_gibbs_kernel(rbm)
    torch.testing.assert_close(kernel.sum(1), torch.ones(16).double())
    torch.testing.assert_close(p_v @ kernel, p_v)
    assert not torch.allclose(kernel, p_v.expand(16, 16), atol=0.05)


def test_shares_and_total_variation():
    v = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
    states_of_two = m.all_states(2)
    shares = m.state_shares(v)[0]
    assert shares[states_of_two.tolist().index([1.0, 0.0])] == 0.5
    assert m.total_variation(shares, torch.tensor([0.25] * 4)) == pytest.approx(0.25)


def test_two_modes_mirror_each_other():
    rbm = m.two_mode_rbm(5, 3)
    v = m.all_states(5)
    torch.testing.assert_close(rbm.free_energy(v), rbm.free_energy(1 - v), atol=1e-4, rtol=1e-4)
    assert rbm.W.std() > 1


def test_closed_forms_are_checked_and_a_wrong_one_shows(monkeypatch):
    rbm = random_rbm(5, 3)
    right = m.check_closed_forms(rbm)
    assert right.log_z == pytest.approx(right.joint_log_z)
    assert max(right.p_hidden_error, right.free_energy_error) < 1e-9
    monkeypatch.setattr(m.RBM, "p_hidden", lambda self, v: torch.sigmoid(2 * (v @ self.W + self.c)))
    assert m.check_closed_forms(rbm).p_hidden_error > 0.01


def test_forgetting_starts_at_zero_and_ends_within_counting_error():
    found = m.forget_the_start(m.two_mode_rbm(4, 3), 20, 40, 500)
    mean, sem = m.mean_and_sem(found.group_errors)
    assert abs(mean - found.expected_error) <= m.tolerance(sem, 40)
    assert found.exact == sorted(found.exact, reverse=True)
    assert found.exact[0] > 3 * found.exact[10]
    assert found.measured[0] == pytest.approx(found.exact[0], abs=0.02)
    assert len(found.group_errors) == 40


def test_section_bipartite_compares_with_the_kernels_power(monkeypatch):
    run = StubRun()
    found = m.Forgetting(torch.ones(4) / 4, torch.ones(4) / 4, [0.5, 0.2], [0.5, 0.1], torch.tensor([0.1, 0.3]), 0.15)
    monkeypatch.setattr(m, "forget_the_start", lambda rbm, n_sweeps: found if n_sweeps == 30 else None)
    m.section_bipartite(run)
    value, sem, against, within = run.metrics["2,000 chains, 30 sweeps: total variation"]
    assert (value, against[1]) == (pytest.approx(0.2), 0.15)
    assert within == pytest.approx(m.tolerance(sem, 2))
    assert run.metrics["log Z, one layer summed out (nats)"][3] == 1e-4
    assert "0.2" in run.sentences[0]  # 0.1 of 0.5 is left
    assert run.sentences[0].endswith("the chains agree")
    assert run.titles == "After 2 sweeps of block Gibbs sampling|0.2 of the distance is left|"
    found = found._replace(group_errors=torch.tensor([0.3, 0.3]))
    m.section_bipartite(run)
    assert run.sentences[1].endswith("the chains do not agree")


@pytest.mark.parametrize(("n", "errors"), [(32, 4.46), (12, 5.92), (8, 7.9), (5, 15.54)])
def test_tolerance_is_students(n, errors):
    assert m.tolerance(2.0, n) == pytest.approx(2 * errors, rel=0.01)
    assert m.tolerance(2.0, n, 10) > m.tolerance(2.0, n)
    assert m.tolerance(2.0, 1) is None


# 2.


def test_plain_cd_climbs_the_gradient_from_chains_at_the_data(monkeypatch):
    calls = []
    monkeypatch.setattr(m, "gibbs", lambda rbm, v, n: calls.append((v, n)) or 1 - v)
    rbm, x = random_rbm(4, 3), [states(4)[:5], states(4)[5:10]]
    trained = m.train_by_cd(rbm, x, [0.1, 0.2], k=3)
    expected = rbm
    for batch, rate in zip(x, (0.1, 0.2), strict=True):
        expected = m.RBM(*expected_step(expected, batch, 1 - batch, rate))
    for got, want in zip(trained, expected, strict=True):
        torch.testing.assert_close(got, want)
    assert [n for _, n in calls] == [3, 3]
    assert calls[1][0] is x[1]
    m.train_by_cd(rbm, x, [0.1], start=lambda x: 0 * x)
    assert calls[2][0].sum() == 0


def test_plain_pcd_goes_on_with_its_chains(monkeypatch):
    monkeypatch.setattr(m, "gibbs", lambda rbm, v, n: v + n)
    rbm, x = random_rbm(4, 3), [states(4)[:5], states(4)[5:10]]
    trained, expected = m.train_by_pcd(rbm, x, [0.1, 0.2], states(4)[3:6], k=2), rbm
    for step, (batch, rate) in enumerate(zip(x, (0.1, 0.2), strict=True), 1):
        expected = m.RBM(*expected_step(expected, batch, states(4)[3:6] + 2 * step, rate))
    torch.testing.assert_close(trained.W, expected.W)


def test_fast_and_plain_cd_agree_where_chance_plays_no_part():
    """Saturated units: chains copy the data, so that both trainers must make the same machine."""
    strong = m.RBM(60 * torch.eye(8), torch.full((8,), -30.0), torch.full((8,), -30.0))
    batches = [(torch.rand(20, 8) < 0.5).float() for _ in range(4)]
    plain, fast = m.train_by_cd(strong, batches, [0.1] * 4, 2), m.RBM(*(parameter.clone() for parameter in strong))
    trainer = m.ContrastiveDivergence(fast, 20, k=2, persistent=False)
    for batch in batches:
        trainer.step(batch, 0.1)
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_agree_with_autograd_and_cosines_rise():
    found = m.compare_gradients(4, (1, 64), d=5, m=3, n_data=40, n_chains=2000)
    assert max(found.exact_error, found.cd_error) < 1e-9
    assert (found.cosines[:, 1] > 0.98).all()
    assert (found.cosines[:, 0] < found.cosines[:, 1]).float().mean() >= 0.75
    torch.testing.assert_close(found.phases[0] - found.phases[1], found.phases[2])
    assert found.phases[0].min() >= 0


def test_exact_gradient_is_zero_where_data_are_the_model():
    rbm = random_rbm(3, 2)
    v = states(3)
    p = (-rbm.free_energy(v)).softmax(0)
    counts = (p * 2000).round().long()
    gradient = m.exact_likelihood_gradient(rbm, v.repeat_interleave(counts, 0))
    assert gradient.W.abs().max() < 2e-3
    by_autograd = m.exact_autograd(lambda rbm: m.exact_log_likelihood(rbm, v), rbm)
    torch.testing.assert_close(m.exact_likelihood_gradient(rbm, v).c, by_autograd.c)


def test_section_cd_judges_both_gradients_against_autograd(monkeypatch):
    run, cosines = StubRun(), torch.tensor([[0.5, 0.6, 0.7, 0.8, 0.9]] * 3).double()
    cosines[:, 4] = 0.1
    images = tuple(torch.ones(2, 2) for _ in range(3))
    monkeypatch.setattr(m, "compare_gradients", lambda n, ks: m.Gradients(1e-9, 2e-9, cosines, images))
    m.section_cd(run)
    assert run.metrics["exact gradient: largest error"][1:] == (None, ("autograd through log Z", 0), 1e-6)
    assert run.metrics["CD-1 gradient: largest error"][0] == 2e-9
    assert run.metrics["CD-16: cosine with the exact gradient"][0] == pytest.approx(0.1)
    assert "75%" in run.sentences[0]


# 3.


def recorded_steps(monkeypatch):
    """Makes every trainer record instead of train; returns the list of (trainer, batch, rate, weight decay)."""
    steps = []
    monkeypatch.setattr(
        m.ContrastiveDivergence, "step", lambda self, x, rate, decay=0.0: steps.append((self, x, rate, decay))
    )
    return steps


def test_the_rate_falls_to_zero_or_stays_and_the_decay_arrives(monkeypatch):
    steps, x = recorded_steps(monkeypatch), torch.ones(10, 4)
    config = tiny(learning_rate=0.5, weight_decay=0.01, batch_size=5, n_updates=10)
    m.train_rbm(m.fresh_rbm(x, 2), x, config)
    np.testing.assert_allclose([rate for _, _, rate, _ in steps], 0.5 * (1 - np.arange(11) / 10))
    assert {decay for *_, decay in steps} == {0.01}
    steps.clear()
    history = []
    m.train_rbm(m.fresh_rbm(x, 2), x, config, history, [0, 3], falling=False, k=7, persistent=False)
    assert {rate for _, _, rate, _ in steps} == {0.5}
    assert (steps[0][0].k, steps[0][0].persistent) == (7, False)
    assert [update for update, _ in history] == [0, 3]


def test_trained_machines_depend_on_their_seed_alone(planted):
    run = StubRun(n_updates=30)
    state = torch.get_rng_state()
    first, _ = m.trained_rbm(run, 4, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(m.trained_rbm(StubRun(n_updates=30), 4, 1)[0].W, first.W)
    assert not torch.equal(m.trained_rbm(StubRun(n_updates=30), 4, 2)[0].W, first.W)


def test_every_recipe_trains_on_train_at_its_own_rate_and_is_scored_on_test(planted, monkeypatch):
    x_train, x_test, *_ = planted
    calls = []

    def fake(rbm, x, config, history=None, **settings):
        assert x is x_train
        calls.append((config.learning_rate, config.n_updates, settings))
        history += [(0, rbm), (config.n_updates, m.RBM(rbm.W, rbm.b + 1, rbm.c))]

    monkeypatch.setattr(m, "train_rbm", fake)
    found = m.compare_recipes(x_train, x_test, tiny(n_updates=40, learning_rate=0.5))
    assert list(found) == list(m.RECIPES)
    assert [settings for *_, settings in calls[::2]] == [settings for settings, _ in m.RECIPES.values()]
    np.testing.assert_allclose([rate for rate, *_ in calls[::2]], [0.5 * factor for _, factor in m.RECIPES.values()])
    assert {n for _, n, _ in calls} == {10}
    curves = found["PCD-1"]
    assert curves.updates == [0, 10]
    assert curves.nats.shape == (2, 2)
    near = m.RBM(torch.zeros(9, 4), m.log_odds(x_train), torch.zeros(4))
    assert curves.nats[0, 0] == pytest.approx(m.exact_log_likelihood(near, x_test).item(), abs=0.1)
    assert curves.nats[0, 0] < m.exact_log_likelihood(near, x_train).item() - 1  # not the training images


def test_recipes_are_what_their_names_say():
    assert m.RECIPES["CD-1"][0] == {"persistent": False}
    assert m.RECIPES["CD-10"][0] == {"persistent": False, "k": 10}
    assert m.RECIPES["PCD-1"][0] == {}
    assert m.RECIPES["PCD-1, constant rate"][0] == {"falling": False}
    assert m.RECIPES["PCD-1, momentum"][0] == {"momentum": 0.9}
    strong, weak = (m.RECIPES[f"PCD-1, {name} sparsity"][0]["sparsity"] for name in ("strong", "weak"))
    assert strong[0] == weak[0]
    assert strong[1] > weak[1]
    assert set(m.RECIPES) == set(m.COLORS)


def test_independent_pixels_by_hand_and_their_gap():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    expected = np.mean([math.log(3.5 / 4) + math.log(2.5 / 4)] * 2 + [math.log(3.5 / 4) + math.log(1.5 / 4)])
    assert m.independent_pixels(x, x) == pytest.approx(expected)
    assert m.independent_pixels(x, 1 - x) < m.independent_pixels(x, x)


def test_overfitting_is_test_minus_train_at_two_decays(planted, monkeypatch):
    x_train, x_test, *_ = planted
    decays = []

    def fake(rbm, x, config, history):
        assert x is x_train
        decays.append(config.weight_decay)
        history.append((7, m.RBM(0 * rbm.W, m.log_odds(x_train), rbm.c)))

    monkeypatch.setattr(m, "train_rbm", fake)
    found = m.watch_overfitting(x_train, x_test, tiny(weight_decay=0.5))
    assert decays == [0.5, pytest.approx(0.005)]
    gap = m.independent_pixels(x_train, x_train) - m.independent_pixels(x_train, x_test)
    assert found[0.5].gaps == [pytest.approx(gap, rel=1e-4)]
    assert gap > 1
    assert found[0.5].nats == [pytest.approx(m.independent_pixels(x_train, x_test), rel=1e-4)]
    assert found[0.5].updates == [7]


def test_section_training_compares_with_independent_pixels(planted, monkeypatch):
    run, (x_train, x_test, *_) = StubRun(), planted
    nats = {name: -20.0 - i for i, name in enumerate(m.RECIPES)}
    curves = {name: m.Curves([0, 5], np.array([[-30.0, end], [-30.0, end]]), 3.0 + end) for name, end in nats.items()}
    over = {0.1: m.Overfitting([0, 5], [0.0, 2.0], [-9.0, -8.0]), 0.001: m.Overfitting([0, 5], [0.0, 4.0], [-9.0, -8.5])}
    monkeypatch.setattr(m, "compare_recipes", lambda *_: curves)
    monkeypatch.setattr(m, "watch_overfitting", lambda a, b, c: over if (a is x_train and b is x_test) else None)
    m.section_training(run)
    chance = m.independent_pixels(x_train, x_test)
    for name, end in nats.items():
        assert run.metrics[f"test nats, {name}"] == (end, 0, ("independent pixels", chance), None)
    assert run.metrics["CD-10: time of a training (s)"][:3] == (-18.0, None, ("CD-1", -17.0))
    value, _, (_, gap), _ = run.metrics["F(test) - F(train), decay 0.1 (nats)"]
    assert (value, gap) == (2.0, pytest.approx(m.independent_pixels(x_train, x_train) - chance))
    assert run.metrics["test nats by AIS, decay 0.001"][0] == -8.5
    assert "within 2.00 nats" in run.sentences[0]
    assert "constant one: +1.00 +- 0.00" in run.sentences[0]
    assert "The gap ends at 2.00 and 4.00 nats,\nthat of pixels is" in run.titles
    nats = {name: np.array([-9.0, -8.0]) for name in m.RECIPES} | {"PCD-1, constant rate": np.array([-9.0, -9.0])}
    assert "constant one: +0.50 +- 0.50" in m.sentence_on_recipes(nats)
    assert "a falling rate is worth 1.00 nats" in run.titles
    assert "Weight decay is worth\n0.50 nats" in run.titles


def test_noise_edge_and_the_checklist():
    edge = m.theory_noise_edge(300, 500, 0.01)
    assert torch.linalg.svdvals(0.01 * torch.randn(300, 500))[0].item() == pytest.approx(edge, rel=0.03)
    x = (torch.rand(30, 9) < 0.4).float()
    seen = m.watch_training(x, tiny(n_updates=64, learning_rate=0.4))
    assert seen.updates == [0, 1, 2, 4, 8, 16]
    assert seen.singular_values.shape == (6, 6)
    assert seen.update_sizes[-1] == 0  # the rate has fallen to 0
    assert seen.update_sizes[0] > seen.update_sizes[4] > 0
    assert seen.activities.shape == (30, 6)
    activities = np.array([[0.0, 1.0, 0.5, 0.02], [0.001, 1.0, 0.5, 0.02]])
    assert m.Checklist([], None, [], [], activities).dead == 0.5


def test_the_checklist_sees_the_update_that_was_made_and_the_axis_of_the_data(monkeypatch):
    """Update n of this trainer adds n + 1 to row 3 of W, and the images vary most in pixel 3."""
    x = torch.zeros(40, 9)
    x[::2, 3], x[:3, 5], x[::7, 1] = 1, 1, 1
    count = itertools.count(1)
    monkeypatch.setattr(m.ContrastiveDivergence, "step", lambda self, *_: self.rbm.W[3].add_(next(count)))
    seen = m.watch_training(x, tiny(n_updates=32))
    assert seen.updates == [0, 1, 2, 4, 8]
    np.testing.assert_allclose(seen.update_sizes, [seen.update_sizes[0], 2, 3 / 3, 5 / 10, 0], atol=0.05)
    assert seen.update_sizes[0] > 20  # a whole 1 on weights of 0.01
    np.testing.assert_allclose(seen.cosines[1:], 1, atol=0.05)
    assert seen.cosines[0] < 0.95
    values = np.array([[1.0, 0.9], [1.1, 1], [1.5, 1], [1, 1]])
    assert m.first_out(m.Checklist([], values, [], [], None), 1.0) == 2
    assert m.first_out(m.Checklist([], values, [], [], None), 2.0) == 3


def test_section_checklist_compares_rates_and_names_the_edge(planted, monkeypatch):
    run, rates = StubRun(n_hidden=16), []

    def fake(x, config):
        rates.append(config.learning_rate)
        values = 0.07 * np.ones((6, 9)) * np.array([1, 0.9, 1.1, 1.1, 2, 3])[:, None]
        cosines = [0.1, 0.2, 0.3, 0.4, 0.5 + 0.4 * (config.learning_rate < 0.1), 0.6]
        return m.Checklist([0, 1, 2, 4, 8, 13], values, cosines, [0.5, 0.4, 0.3, 0.1, 0.2, 0.0], np.full((4, 16), 0.5))

    monkeypatch.setattr(m, "watch_training", fake)
    m.section_checklist(run)
    np.testing.assert_allclose(rates, np.multiply(run.config.learning_rate, [1, 1 / 30, 10]))
    assert run.metrics["rate as set: update / W, halfway"] == (0.2, None, ("Hinton (2012)", 1e-3), None)
    assert run.metrics["30 times lower: first direction (cosine)"][:3] == (0.9, None, ("the data's principal axis", 1))
    assert run.metrics["largest singular value of W at the start"][2][1] == pytest.approx(0.01 * (3 + 4))
    assert run.metrics["30 times lower: values out, update 4"][0] == 0
    assert "rate as set, by update 8 at cosine 0.50; 30 times lower, by update 8 at cosine 0.90" in run.sentences[0]
    monkeypatch.setattr(m, "theory_noise_edge", lambda *_: 1.0)
    m.section_checklist(run)
    assert "rate as set, not by update 13 at cosine 0.60" in run.sentences[1]
    assert run.titles.startswith(
        "rate as set: 0% of the units dead|an update is 0.2 of W, halfway|9 directions left the noise|"
    )


def test_pair_moments_of_the_model_equal_enumeration():
    rbm = random_rbm(4, 3)
    v, p_v = states(4), enumerated(rbm)[0].sum(1)
    torch.testing.assert_close(m.exact_pair_moments(rbm), (v * p_v.unsqueeze(1)).T @ v)
    torch.testing.assert_close(m.pair_moments(v), v.T @ v / 16)
    assert m.moment_error(m.pair_moments(v) + 0.5, v) == pytest.approx(0.5)


def test_steps_start_at_noise_and_end_in_the_exact_equilibrium(planted, monkeypatch):
    x_train, x_test, *_ = planted
    seen = []
    monkeypatch.setattr(m, "train_rbm", lambda rbm, x, config, **settings: seen.append((config.n_updates, settings)) or rbm)
    by_cd = m.train_by_cd
    rates = []
    monkeypatch.setattr(
        m, "train_by_cd", lambda rbm, b, r, k, start: rates.append((r, k, start)) or by_cd(rbm, b, r, k, start)
    )
    sweeps, gibbs = [], m.gibbs
    monkeypatch.setattr(m, "gibbs", lambda rbm, v, n: (len(v) == 20_000 and sweeps.append(n)) or gibbs(rbm, v, n))
    found = m.follow_samples(x_train, x_test, tiny(n_updates=40, learning_rate=0.2, n_gibbs=6), n_chains=20_000, k=3)
    assert sweeps == [1, 2, 7] * 6
    assert list(found) == ["CD-3 from noise", "CD-3", "PCD-1"]
    assert seen == [(5, {"persistent": False, "k": 3})] * 2 + [(5, {})] * 2
    np.testing.assert_allclose(rates[0][0], 0.2 * (1 - np.arange(5) / 5))
    assert rates[0][1:] == (3, m.noise_like)
    steps = found["PCD-1"]  # untrained: independent pixels, whose chains are in equilibrium at once
    assert (steps.errors.shape, steps.sweeps) == ((2, 3), [1, 3, 10])
    np.testing.assert_allclose(steps.errors, steps.equilibrium[:, None] * np.ones(3), atol=0.01)
    assert steps.equilibrium[0] > 0.1  # the training images' pixels, judged on test images


def test_noise_is_fair_coins():
    assert m.noise_like(torch.zeros(4000, 5)).mean().item() == pytest.approx(0.5, abs=0.02)


def test_section_steps_reads_the_right_columns(planted, monkeypatch):
    run, (x_train, x_test, *_) = StubRun(), planted
    errors = np.array([[9.0, 8, 0.5, 7, 6, 0.4, 4]] * 2)
    sweeps = [1, 3, 10, 30, 100, 300, 1000]
    found = {name: m.Steps(sweeps, errors, np.array([3.0, 3.0])) for name in ("CD-10 from noise", "CD-10", "PCD-1")}
    monkeypatch.setattr(
        m, "follow_samples", lambda a, b, config, k: found if (a is x_train and b is x_test and k == 10) else 0
    )
    m.section_steps(run)
    floor = ("training images", m.moment_error(m.pair_moments(x_train), x_test))
    assert run.metrics["PCD-1: moment error, 10 sweeps"] == (0.5, 0, floor, None)
    assert run.metrics["PCD-1: moment error, 1000 sweeps"][0] == 4
    assert run.metrics["PCD-1: in equilibrium, exact"][0] == 3
    assert "best after 300 sweeps" in run.sentences[0]
    assert "10.0 times" in run.sentences[0]
    assert run.titles.startswith("Trained 10 sweeps from noise, best after 300")


# 4.


def test_reverse_weights_average_to_one_over_z():
    rbm = m.RBM(*(parameter.float() for parameter in random_rbm(6, 4, 0.8)))
    v = m.all_states(6)
    samples = v[torch.multinomial((-rbm.free_energy(v)).softmax(0), 50_000, replacement=True)]
    base_b = 0.5 * torch.randn(6)
    for n_temps in (1, 3, 30):
        minus_log_z, sem, _ = m.log_z_from_weights(-m.reverse_ais(rbm, base_b, samples, n_temps))
        assert abs(-minus_log_z - m.exact_log_z(rbm)) < 4 * sem + 1e-4
    assert sem < 0.01


def test_sandwich_holds_log_z_and_few_temperatures_open_it():
    rbm = m.RBM(*(parameter.float() for parameter in random_rbm(6, 4, 2.0)))
    v, log_z = m.all_states(6), m.exact_log_z(rbm).item()
    samples = v[torch.multinomial((-rbm.free_energy(v)).softmax(0), 500, replacement=True)]
    narrow, wide = (m.sandwich_log_z(rbm, torch.zeros(6), samples, 500, n) for n in (100, 1))
    assert narrow.low - 0.2 < log_z < narrow.high + 0.2
    assert wide.high - wide.low > narrow.high - narrow.low
    assert 0 < wide.share < narrow.share <= 1


def test_a_sandwich_averages_inverse_weights_on_its_upper_side(monkeypatch):
    monkeypatch.setattr(m, "ais", lambda *_: torch.tensor([0.0, math.log(3)]))
    monkeypatch.setattr(m, "reverse_ais", lambda *_: torch.tensor([0.0, math.log(3)]))
    low, high, share = m.sandwich_log_z(None, None, None, 2, 1)
    assert (low, high) == (pytest.approx(math.log(2)), pytest.approx(math.log(1.5)))
    assert share == pytest.approx(16 / 10 / 2)


def test_the_trap_is_sprung():
    """AIS agrees with itself, and is wrong by all of the mode that no chain has met; walked back it says so."""
    found = m.sandwich_log_z(m.trap(), torch.zeros(64), torch.ones(50, 64), 50, 200)
    assert m.exact_log_z(m.trap()).item() == pytest.approx(m.theory_trap_log_z(), abs=0.01)
    assert m.theory_trap_log_z() == pytest.approx(60, abs=0.01)
    assert m.theory_trap_log_z(3, 1.0, -2.0) == pytest.approx(math.log((1 + math.e) ** 3 * math.exp(-2) + 8))
    assert found.low == pytest.approx(64 * math.log(2), abs=0.2)
    assert found.share > 0.9
    assert found.high > 60


def test_both_sandwiches_take_samples_of_their_own_model(planted, monkeypatch):
    calls = []

    def fake(rbm, base_b, samples, n_chains, n_temps):
        calls.append((rbm, base_b, samples, n_chains, n_temps))
        return m.Sandwich(0.0, 1.0, 0.5)

    monkeypatch.setattr(m, "sandwich_log_z", fake)
    monkeypatch.setattr(m, "gibbs", lambda rbm, v, n: v + n)
    x_train, rbm = planted[0], m.fresh_rbm(planted[0], 6)
    found = m.sandwich_both(rbm, x_train, tiny(n_ais_chains=20, n_ais_temps=30, n_gibbs=50))
    assert list(found) == ["6 hidden", "the trap"]
    torch.testing.assert_close(calls[0][1], m.log_odds(x_train))
    assert (calls[0][2].shape, calls[0][3:]) == ((20, 9), (20, 30))
    assert calls[0][2].min() == 50  # long chains from data
    assert (calls[0][2][:, 8] == 50).all()  # from training images
    assert (calls[1][2] == 11).all()  # all ones, ten sweeps


def test_pseudo_count_pulls_probabilities_to_a_half():
    x = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    mixture = m.mixture_of_bernoullis(x, 1, 1, pseudo_count=0.25)
    torch.testing.assert_close(mixture.p, torch.tensor([[10.25 / 10.5, 0.25 / 10.5]]))
    torch.testing.assert_close(mixture.log_joint(states(2).float()).exp().sum(), torch.tensor(1.0))
    assert m.mixture_of_bernoullis.__defaults__ == (60, 0.25)  # chosen on validation images: rbm_tuning.py


def test_score_is_exact_for_few_units_and_annealed_for_many():
    x = (torch.rand(40, 9) < 0.4).float()
    rbm = m.RBM(torch.zeros(9, 5), m.log_odds(x), torch.zeros(5))
    exact = m.score(rbm, x, m.log_odds(x), tiny(n_small=5))
    assert exact == (pytest.approx(m.independent_pixels(x, x), rel=1e-4), 0, 1)
    annealed = m.score(rbm, x, m.log_odds(x), tiny(n_small=4))
    assert annealed.nats == pytest.approx(exact.nats, rel=1e-4)
    assert annealed.share == pytest.approx(1)
    assert annealed.share <= 1.0001


def test_the_peer_gets_its_updates_and_both_are_scored_on_test(planted, monkeypatch):
    x_train, x_test, *_ = planted
    calls, scored, seeds = [], [], []
    theirs = m.RBM(torch.zeros(9, 4), torch.zeros(9), torch.ones(4))
    monkeypatch.setattr(m, "sklearn_rbm", lambda x, *a: calls.append((x, *a)) or theirs)
    monkeypatch.setattr(m, "trained_rbm", lambda run, n, seed: seeds.append(seed) or (m.fresh_rbm(x_train, n), 4.0))
    monkeypatch.setattr(
        m, "score", lambda rbm, x, base_b, config: scored.append((x, base_b)) or m.Scored(rbm.c.mean(), 0.0, 1.0)
    )
    found = m.compare_with_sklearn(StubRun(seed=2**32 - 1, learning_rate=0.2, n_updates=60), 4)
    assert [call[1:] for call in calls] == [(4, 0.2, 24, 2**32 - 1, 10), (4, 0.2, 24, 0, 10)]
    assert seeds == [2**32 - 1, 0]
    assert all(x is x_test for x, _ in scored)
    torch.testing.assert_close(scored[0][1], m.log_odds(x_train))
    assert all(x is x_train for x, *_ in calls)
    assert found.seconds == 4.0
    assert [scored.nats for scored in found.sklearns + found.ours] == [1, 1, 0, 0]


def test_flattery_groups_ten_chains_and_knows_the_exact_value():
    x = (torch.rand(40, 9) < 0.4).float()
    rbm = m.RBM(torch.zeros(9, 4), m.log_odds(x), torch.zeros(4))
    found = m.flatter(rbm, x, m.log_odds(x), tiny(n_ais_temps=600))
    assert found.n_temps == [2, 6, 20, 60, 200, 600]
    assert found.exact == pytest.approx(m.independent_pixels(x, x), rel=1e-4)
    assert [mean for mean, _ in found.nats] == [pytest.approx(found.exact, rel=1e-4)] * 6
    torch.testing.assert_close(found.ratios, torch.ones(20), atol=1e-3, rtol=0)
    np.testing.assert_allclose(found.shares, 1, rtol=1e-4)
    assert m.flatter(rbm, x, m.log_odds(x), tiny(n_small=3)).exact is None


def test_section_likelihood_refuses_few_chains_and_judges_the_weights(planted, monkeypatch, capsys):
    run, (x_train, x_test, *_) = StubRun(n_ais_chains=8), planted
    peers = {
        4: m.Peers([m.Scored(-9.0, 0, 1)] * 2, [m.Scored(-10.0, 0, 1)] * 2, 3.0, 5.0),
        6: m.Peers([m.Scored(-7.0, 0.1, 0.9), m.Scored(-8.0, 0.2, 0.8)], [m.Scored(-6.0, 0.1, 0.05)] * 2, 3.0, 5.0),
    }
    monkeypatch.setattr(m, "compare_with_sklearn", lambda run, n: peers[n])
    ratios = torch.tensor([1.0, 1.2, 0.8, 1.1])
    flattery = m.Flattery([1], [(-8.0, 0.1)], [0.5], -9.0, -9.0, ratios)
    monkeypatch.setattr(m, "flatter", lambda rbm, x, base_b, config: flattery if x is x_test else None)
    monkeypatch.setattr(m, "sandwich_both", lambda *_: {"the trap": m.Sandwich(44.4, 95.0, 0.999)})
    m.section_likelihood(run)
    chance = ("independent pixels", m.independent_pixels(x_train, x_test))
    assert run.metrics["test nats, 4 hidden, this module"][:3] == (-9.0, 0, chance)
    assert run.metrics["test nats, 4 hidden, scikit-learn"][0] == -10.0
    assert run.metrics["test nats, 6 hidden, this module"][:3] == (-7.5, pytest.approx(0.5), chance)
    assert "test nats, 6 hidden, scikit-learn" not in run.metrics
    assert "refused" in capsys.readouterr().out
    assert run.metrics["6 hidden, this module: effective chains"][0] == 0.8
    assert run.metrics["6 hidden, this module: AIS error (nats)"][0] == 0.2
    assert run.metrics["6 hidden, this module: AIS error (nats)"][2][1] == pytest.approx(0.5**0.5)
    value, sem, against, within = run.metrics["AIS, 4 hidden: mean weight / Z"]
    assert (value, against[1]) == (pytest.approx(1.025), 1)
    assert within == pytest.approx(m.tolerance(sem, 4))
    assert run.metrics["log Z by AIS, the trap (nats)"][:3] == (44.4, None, ("by reverse AIS", 95.0))
    assert run.metrics["log Z of the trap, one layer summed out"][3] == 0.01
    assert "16 nats" in run.sentences[0]
    assert "do not see" in run.sentences[0]
    assert "highest mean: this module, 6 hidden (AIS)" in run.titles
    assert "1 temperatures flatter by 1.0 nats" in run.titles


def test_the_published_value_stands_beside_its_own_machine_only():
    for dataset, n_hidden, label in (
        ("mnist", 500, "Salakhutdinov"),
        ("mnist", 400, "independent"),
        ("digits", 500, "indep"),
    ):
        run, scored = StubRun(dataset=dataset, n_hidden=n_hidden), [m.Scored(-90.0, 0.1, 0.5)] * 2
        m.record_peers(run, n_hidden, m.Peers(scored, scored, 1.0, 1.0), -200.0)
        against = run.metrics[f"test nats, {n_hidden} hidden, this module"][2]
        assert label in against[0]
        assert against[1] == (-86.34 if label == "Salakhutdinov" else -200.0)


def test_settings_are_the_tuned_ones():
    """Chosen on validation images: tests/benchmarks/rbm_tuning.py."""
    config = m.Config()
    assert (config.learning_rate, config.weight_decay, config.n_updates, config.batch_size) == (0.3, 1e-3, 20000, 100)
    assert [factor for _, factor in m.RECIPES.values()] == [3, 3, 3, 0.3, 0.1, 3, 3]
    assert (config.n_small, config.n_hidden, config.n_seeds) == (16, 128, 3)


def test_ten_chains_cannot_be_refused_and_the_run_says_so(capsys):
    for n_chains, said in ((10, True), (11, False)):
        run = StubRun(n_ais_chains=n_chains)
        flattery = m.Flattery([1], [(-8.0, 0.1)], [0.5], None, -9.0, torch.ones(4))
        m.record_ais(run, flattery, {"the trap": m.Sandwich(44.4, 95.0, 0.999)})
        assert ("cannot refuse" in capsys.readouterr().out) == said


# 5.


def test_accuracy_counts_both_sources_of_error():
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)
    mean, sem = m.accuracy_and_sem(right)
    by_training = np.std([0.5, 0.75], ddof=1) / 2**0.5
    by_image = np.std([1, 1, 0.5, 0], ddof=1) / 2
    assert (mean, sem) == (0.625, pytest.approx(math.hypot(by_training, by_image)))
    assert m.verdict(1.0, math.nan, 1) == "not better and not worse"  # one repeat shows nothing
    assert m.accuracy_and_sem(right[0])[1] == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)


def test_k_means_code_is_of_the_training_images():
    train = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 9.0)]) + 0.1 * np.random.default_rng(0).normal(size=(40, 2))
    code, test_code = m.k_means_code(train, np.array([[0.0, 0.0], [9.0, 9.0]]), 2, 0)
    assert code.shape == (40, 2)
    assert ((code > 0).sum(1) == 1).all()  # one of two centres is nearer than on average
    nearest = m.KMeans(2, n_init=1, random_state=0).fit(train).predict
    np.testing.assert_array_equal(code.argmax(1), nearest(train))
    np.testing.assert_array_equal(test_code.argmax(1), nearest(np.array([[0.0, 0.0], [9.0, 9.0]])))
    assert test_code.max() == pytest.approx(9 / 2**0.5, rel=0.05)


def test_codes_are_learned_on_train_and_judged_on_test():
    y_train, y_test = np.arange(600) % 3, np.arange(30) % 3
    good, useless = np.eye(3)[y_train], np.zeros((600, 3))
    found = m.compare_codes({"good": (good, np.eye(3)[y_test]), "none": (useless, np.eye(3)[y_test])}, y_train, y_test, 0, 2)
    assert found["good"][0].shape == (2, 30)
    assert np.mean(found["good"]) == 1
    assert np.mean(found["none"]) == pytest.approx(1 / 3)
    assert len(found["good"]) == len(m.LABELS_A_CLASS)


def test_classification_rbms_see_the_training_labels_and_predict_test_images(planted):
    y_train, y_test = np.arange(60) % 3, np.arange(30) % 3
    x_train, x_test = (torch.eye(3)[torch.tensor(y)].repeat(1, 3) for y in (y_train, (y_test + 1) % 3))
    config = tiny(n_updates=2000, batch_size=20, n_hidden=8)
    found = m.compare_classification_rbms(x_train, y_train, x_test, (y_test + 1) % 3, config, 3)
    assert {name: right.shape for name, right in found.items()} == dict.fromkeys(found, (2, 30))
    assert found["generative first"].mean() > 0.95
    assert found["discriminative"].mean() > 0.95


def test_peers_use_their_own_inputs():
    y_train, y_test = np.arange(60) % 3, np.arange(30) % 3
    good, bad = (np.eye(3)[y_train], np.eye(3)[y_test]), (np.eye(3)[y_train], np.eye(3)[(y_test + 1) % 3])
    found = m.classify_pixels(bad, good, y_train, y_test)
    assert {name: right.mean() for name, right in found.items()} == {
        "logistic regression": 0,
        "3-NN": 0,
        "SVM": 0,
        "SVM, grey levels": 1,
    }


def test_section_features_pairs_codes_with_pixels(monkeypatch, planted):
    run, (x_train, x_test, y_train, y_test) = StubRun(), planted
    planted_scores = {"pixels": 0.25, "RBM features": 1.0, "k-means": 0.5}
    monkeypatch.setattr(m, "load_images", lambda name: (x_train.numpy() / 2, x_test.numpy() / 2, y_train, y_test))

    def fake(codes, train_labels, test_labels, seed):
        assert list(codes) == list(planted_scores)
        assert seed == 5
        assert all(len(train) == 30 and len(test) == 16 and train.dtype == np.float64 for train, test in codes.values())
        assert train_labels is not test_labels
        found = {
            name: [np.arange(16)[None] < 16 * share for _ in m.LABELS_A_CLASS] for name, share in planted_scores.items()
        }
        found["pixels"][2] = np.arange(16)[None] < 8
        return found

    monkeypatch.setattr(m, "compare_codes", fake)
    right = {name: np.ones((2, 16)) for name in ("generative", "discriminative", "generative first")}
    monkeypatch.setattr(m, "compare_classification_rbms", lambda *_: right)
    monkeypatch.setattr(
        m,
        "classify_pixels",
        lambda p, g, *_: (
            {"SVM": np.zeros(16), "SVM, grey levels": np.ones(16)}
            | ({} if g[0].max() == 0.5 and p[0].max() == 1 else {"wrong": 1})
        ),
    )
    m.section_features(run)
    value, sem, against, _ = run.metrics["RBM features, 10 labels a class: accuracy"]
    assert (value, against) == (1.0, ("same, on pixels", 0.5))
    assert run.metrics["k-means, 1 labels a class: accuracy"][0] == 0.5
    assert run.metrics["RBM classifier, generative: accuracy"][2] == ("SVM on the same pixels", 0.0)
    assert run.metrics["SVM on grey levels: accuracy"][2] == ("on binary pixels", 0.0)
    assert "+0.500" in run.sentences[0]
    assert "better" in run.sentences[0]


def test_so_many_labels_of_each_class_are_used(monkeypatch):
    sizes = []

    class Fake:
        def fit(self, x, y):
            sizes.append(np.bincount(y).tolist())
            return self

        def predict(self, x):
            return np.zeros(len(x))

    monkeypatch.setattr(m, "LogisticRegression", lambda **_: Fake())
    y = np.arange(600) % 3
    m.compare_codes({"a": (np.zeros((600, 2)), np.zeros((9, 2)))}, y, y[:9], 0, 2)
    assert sizes == [[n] * 3 for n in (1, 3, 10, 30, 100) for _ in range(2)]


def test_classification_rbms_get_the_same_budget(planted, monkeypatch):
    x_train, x_test, y_train, y_test = planted
    calls = []
    monkeypatch.setattr(m, "train_rbm", lambda rbm, x, config: calls.append(("CD", x.shape, config.n_updates)) or rbm)
    monkeypatch.setattr(
        m, "train_discriminatively", lambda rbm, x, y, n, batch: calls.append((x is x_train, n, batch)) or rbm
    )
    m.compare_classification_rbms(x_train, y_train, x_test, y_test, tiny(n_updates=400, n_seeds=1), 3)
    assert calls == [(True, 20, 10), ("CD", (30, 12), 100), (True, 20, 10)]


def test_discriminative_steps_have_momentum_and_a_falling_rate(monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, parameters: [torch.ones_like(p) for p in parameters])
    rbm = m.RBM(torch.zeros(6, 2), torch.zeros(6), torch.zeros(2))
    trained = m.train_discriminatively(rbm, torch.zeros(20, 4), torch.zeros(20).long(), 2, 10, 0.1, 0.9)
    torch.testing.assert_close(trained.W, torch.full((6, 2), -0.1 - (0.9 * 0.1 + 0.05)))
    assert rbm.W.abs().sum() == 0  # the start is not touched


def test_verdicts_need_three_standard_errors_and_more_of_few_trainings():
    assert m.verdict(0.31, 0.1, 1000) == "better"
    assert m.verdict(-0.31, 0.1, 1000) == "worse"
    assert m.verdict(0.29, 0.1, 1000) == m.verdict(-0.29, 0.1, 1000) == "not better and not worse"
    assert m.verdict(1.9, 0.1, 3) == m.verdict(-1.9, 0.1, 3) == "not better and not worse"
    assert m.verdict(1.93, 0.1, 3) == "better"


# 6.


def test_a_mixture_completes_by_its_conditional():
    mixture = m.BernoulliMixture(torch.rand(3, 5).double(), torch.tensor([0.2, 0.3, 0.5]).double().log())
    known = torch.tensor([True, False, True, False, False])
    x, v = states(5)[[3, 20]], states(5)
    weight = mixture.log_joint(v).logsumexp(1).exp()
    for row, completed in zip(x, m.complete_by_mixture(mixture, x, known), strict=True):
        agrees = (v[:, known] == row[known]).all(1)
        torch.testing.assert_close(completed, weight[agrees] @ v[agrees] / weight[agrees].sum())


def test_completions_use_training_images_and_their_noise_is_taken_off(planted):
    x_train, x_test, *_ = planted
    small, large = (m.RBM(*(p.float() for p in random_rbm(9, n, 0.5))) for n in (3, 5))
    known = torch.tensor([True] * 4 + [False] * 5)
    other = m.RBM(*(p.float() for p in random_rbm(9, 5, 0.5)))
    found = m.complete_images(small, [large, other], x_train, x_test.repeat(40, 1), known, 40)
    mean, sem = m.mean_and_sem(found.bias)
    assert abs(mean) <= m.tolerance(sem, len(found.bias))
    assert sem < 1e-3
    expected = (x_train.mean(0) - x_test)[:, 4:].square().mean().item()
    assert found.squared["pixel means"].mean() == pytest.approx(expected, rel=1e-4)
    exact = (m.exact_completion(small, x_test, known) - x_test)[:, 4:].square().mean().item()
    assert found.squared["RBM, 3 hidden, exact"].mean() == pytest.approx(exact, rel=1e-4)
    by_large = [(m.exact_completion(rbm, x_test, known) - x_test)[:, 4:].square().mean().item() for rbm in (large, other)]
    np.testing.assert_allclose(found.squared["RBM, 5 hidden, Gibbs"].mean(1), by_large, rtol=0.05)
    assert found.squared["mixture of 80, exact"].shape == (2, 640)
    assert (np.diff(found.squared["mixture of 80, exact"], axis=0) != 0).any()  # fitted anew
    assert found.squared["10 neighbours"].shape == (1, 640)


def test_section_inpainting_clamps_the_left_half_of_test_images_and_pairs(planted, monkeypatch):
    run, (x_train, x_test, *_) = StubRun(), planted
    squared = {
        "pixel means": np.array([[4.0, 6]]),
        "10 neighbours": np.array([[2.0, 3]]),
        "mixture of 80, exact": np.array([[1.0, 2], [1.0, 2.2]]),
    }
    squared["RBM, 6 hidden, Gibbs"] = np.array([[1.0, 1.5], [1.0, 1.5]])

    def fake(small, larges, train, x, known, n_sweeps):
        assert train is x_train
        assert torch.equal(x, x_test)
        assert known.reshape(3, 3).tolist() == [[True, False, False]] * 3
        assert ([len(rbm.c) for rbm in (small, *larges)], n_sweeps) == ([4, 6, 6], 5)
        assert not torch.equal(larges[0].W, larges[1].W)
        return m.Completions(np.array([0.1, -0.3]), squared, {"a": x_test, "b": x_test})

    monkeypatch.setattr(m, "complete_images", fake)
    m.section_inpainting(run)
    value, sem, against, within = run.metrics["Gibbs minus exact, squared, less its noise"]
    assert (value, against[1]) == (pytest.approx(-0.1), 0)
    assert within == pytest.approx(m.tolerance(sem, 2))
    assert run.metrics["squared error, 10 neighbours"][2] == ("pixel means", 5.0)
    by_training, by_image = np.std([0.25, 0.35], ddof=1) / 2**0.5, np.std([0, 0.6], ddof=1) / 2**0.5
    expected = (pytest.approx(0.3), pytest.approx(math.hypot(by_training, by_image)))
    assert run.metrics["mixture of 80, exact minus the RBM, paired"][:2] == expected
    assert run.metrics["10 neighbours minus the RBM, paired"][0] == 1.25


def test_completions_average_the_last_three_quarters(monkeypatch):
    sweeps = itertools.count()
    monkeypatch.setattr(m.RBM, "p_visible", lambda self, h: torch.full((len(h), 4), next(sweeps) / 10))
    mean, _ = m.inpaint_by_gibbs(
        m.fresh_rbm(torch.rand(9, 4), 3), torch.ones(2, 4), torch.tensor([True, False, False, False]), 8
    )
    torch.testing.assert_close(mean, torch.tensor([[1.0, 0.45, 0.45, 0.45]] * 2))  # sweeps 2 to 7


# 7.


def test_adam_by_hand_takes_falling_steps_of_its_rate(monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, parameters: [torch.ones_like(p) for p in parameters])
    x = torch.randn(40, 3)
    rbm = m.train_gaussian_rbm(x, 2, 4, 10, learning_rate=0.1)
    torch.testing.assert_close(rbm.c, torch.full((2,), -2 - 0.1 * (1 + 0.75 + 0.5 + 0.25)))
    torch.testing.assert_close(rbm.b, x.mean(0) - 0.25)


def test_whitening_gives_unit_covariance_and_the_density_of_the_original():
    x = torch.randn(5000, 3).double() @ torch.tensor([[2.0, 0.3, 0], [0, 0.5, 0.1], [0, 0, 1]]).double() + 4
    white = m.whitening(x)
    torch.testing.assert_close(white(x).T.cov(), torch.eye(3).double())
    torch.testing.assert_close(white(x).mean(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    assert white.log_det == pytest.approx(-0.5 * torch.logdet(x.T.cov()).item())
    gaussian = m.multivariate_normal(x.mean(0).numpy(), x.T.cov().numpy()).logpdf(x.numpy())
    by_rbm = m.theory_no_weights(3).log_density(white(x)) + white.log_det
    np.testing.assert_allclose(by_rbm.numpy(), gaussian, rtol=1e-9)


def test_densities_are_learned_on_train_and_read_on_test():
    """Patches of two contrasts: spheres of their own variance must win, and weights add next to nothing."""
    scale = torch.where(torch.rand(3000, 1) < 0.5, 0.2, 2.0).double()
    x = scale * torch.randn(3000, 6).double()
    found = m.compare_densities(x[:2500], x[2500:], 2, 300, 50, 0)
    nats = {name: values.mean() for name, values in found.nats.items()}
    truth = torch.stack([-0.5 * (x[2500:] / s).square().sum(1) - 6 * math.log(s * (2 * math.pi) ** 0.5) for s in (0.2, 2.0)])
    truth = (truth.logsumexp(0) - math.log(2)).mean().item()
    assert nats["16 spheres"] == pytest.approx(truth, abs=0.3)
    assert nats["RBM with W = 0"] == pytest.approx(nats["one Gaussian"], rel=1e-9)
    assert nats["one Gaussian"] < truth - 1
    assert nats["RBM on white patches"] == pytest.approx(nats["one Gaussian"], abs=0.5)
    assert nats["16 of one covariance"] == pytest.approx(nats["one Gaussian"], abs=0.5)
    assert nats["RBM on raw patches"] == pytest.approx(nats["one Gaussian"], abs=0.5)
    assert all(len(values) == 500 for values in found.nats.values())
    moved = m.compare_densities(x[:2500], x[2500:] + 9, 2, 300, 50, 0, raw=False)
    assert all(values.mean() < nats[name] - 5 for name, values in moved.nats.items())
    assert set(nats) - set(moved.nats) == {"RBM on raw patches"}


def test_section_gaussian_takes_both_kinds_of_patches(monkeypatch):
    run, kinds = StubRun(n_small=2), []
    names = "RBM on raw patches", "one Gaussian", "RBM with W = 0", "RBM on white patches", "16 spheres", "4 Gaussians"
    names += ("16 of one covariance",)
    nats = {name: np.array([1.0, 3.0]) + i for i, name in enumerate(names)}

    def fake(train, test, n_hidden, n_updates, batch_size, seed, device, raw):
        assert raw == (not kinds)
        kinds.append(min(train.std(1).min().item(), test.std(1).min().item()))
        assert (n_hidden, n_updates, batch_size, seed) == (2, 5, 10, 5)
        assert not torch.equal(train[:10], test[:10])
        return m.Patches(nats, m.GaussianRBM(torch.randn(64, 2), torch.zeros(64), torch.zeros(2), torch.zeros(())))

    monkeypatch.setattr(m, "compare_densities", fake)
    m.section_gaussian(run)
    assert kinds[0] < 0.03 < 0.1 < kinds[1]
    assert run.metrics["all patches, RBM with W = 0 (nats)"][2:] == (("one Gaussian", 3.0), 1e-4)
    assert run.metrics["textured, RBM on white patches (nats)"][:3] == (5.0, 1.0, ("one Gaussian", 3.0))
    assert run.metrics["textured, 16 spheres (nats)"][3] is None
    assert "add 2.0 nats to one Gaussian, 16 of one covariance 5.0, 16 spheres 3.0" in run.sentences[0]
    assert "textured: weights add 2.0 nats" in run.titles


# 8.


def test_a_stack_trains_its_top_on_codes_of_the_training_images(planted, monkeypatch):
    x_train, x_test, *_ = planted
    first, calls = m.RBM(*(parameter.float() for parameter in random_rbm(9, 3))), []

    def fake(rbm, x, config):
        calls.append((x, config.learning_rate))
        torch.testing.assert_close(rbm.W, first.W.T)
        rbm.b.add_(1.0)

    monkeypatch.setattr(m, "train_rbm", fake)
    found = m.stack(first, x_train, x_test, tiny(learning_rate=0.8))
    (codes, rate), *_ = calls
    assert rate == pytest.approx(0.2)
    assert codes.shape == (300, 3)
    torch.testing.assert_close(codes.mean(0), first.p_hidden(x_train).mean(0), atol=0.15, rtol=0)
    assert found.one_layer == pytest.approx(m.exact_log_likelihood(first, x_test).item(), rel=1e-5)
    assert found.bound_untrained == pytest.approx(found.one_layer, abs=1e-4)
    assert found.exact == pytest.approx(m.exact_dbn_log_likelihood(first, found.top, x_test).mean().item(), rel=1e-5)
    assert found.bound < found.exact + 0.05
    assert abs(found.exact - found.one_layer) > 0.01
    assert m.n_parameters(first) == 9 * 3 + 9 + 3


def test_codes_of_both_layers_are_judged(planted):
    x_train, x_test, y_train, _ = planted
    first, top = m.fresh_rbm(x_train, 4), m.fresh_rbm(torch.rand(5, 4), 9)
    accuracies = m.stack_codes((first, top), x_train, x_train, y_train, y_train)
    assert len(accuracies) == 3
    assert accuracies[0] > max(accuracies[1:])


def test_section_dbn_weighs_depth_against_width(planted, monkeypatch):
    run, (x_train, x_test, *_) = StubRun(), planted
    first, seeds = m.fresh_rbm(x_train, 4), []

    def fake(run, n_hidden, seed):
        seeds.append((n_hidden, seed))
        return m.fresh_rbm(x_train, n_hidden), 1.0

    monkeypatch.setattr(m, "trained_rbm", fake)
    top = m.RBM(first.W.T, first.c, first.b)
    monkeypatch.setattr(m, "stack", lambda *_: m.Stack(first, top, -20.0, -20.0, -19.5, -19.0))
    monkeypatch.setattr(m, "exact_log_likelihood", lambda rbm, x: torch.tensor(-18.5 if x is x_test else 0.0))
    m.section_dbn(run)
    assert seeds == [(4, 5), (4, 6), (6, 5), (6, 6)]
    assert run.metrics["gain in the bound, untrained (nats)"] == (0, 0, ("theorem", 0), 1e-3)
    assert run.metrics["gain in the bound (nats)"][0] == 0.5
    assert run.metrics["exact gain of a second layer (nats)"][:3] == (1.0, 0, ("its parameters", 4 * 9 + 9 + 4))
    assert run.metrics["exact gain of two more units (nats)"][:3] == (1.5, 0, ("their parameters", 2 * 10))
    assert "+0.50" in run.sentences[0]
    assert run.sentences[0].endswith("better")
    assert "Depth adds 1.00 nats, two units 1.50" in run.titles


def test_a_short_budget_and_a_high_rate_are_said(monkeypatch, capsys):
    images = np.zeros((4000, 9)), np.zeros((9, 9)), np.zeros(4000), np.zeros(9)
    monkeypatch.setattr(m, "load_images", lambda name: images)
    m.binary_images(StubRun(n_updates=1000, batch_size=100, dataset="mnist"))
    assert capsys.readouterr().out.count("note:") == 2
    m.binary_images(StubRun(n_updates=4000, batch_size=100, dataset="mnist", learning_rate=0.05))
    assert "note:" not in capsys.readouterr().out


def test_digits_are_cut_at_half_and_mnist_is_sampled(monkeypatch):
    grey = np.full((400, 9), 0.4)
    monkeypatch.setattr(m, "load_images", lambda name: (grey, grey[:9] + 0.2, np.zeros(400), np.zeros(9)))
    x_train, x_test, *_ = m.binary_images(StubRun())
    assert (x_train.sum(), x_test.mean()) == (0, 1)
    assert m.binary_images(StubRun(dataset="mnist"))[0].mean().item() == pytest.approx(0.4, abs=0.03)


def test_every_section_fits_on_a_screen_and_says_something():
    import inspect

    for name, section in m.SECTIONS.items():
        source = inspect.getsource(section)
        assert source.count("\n") <= 32, name
        assert "run.say(" in source or "record_" in source, name


# Data


def test_digits_split_is_stratified_grey_and_reproducible():
    x_train, x_test, y_train, y_test = m.load_images("digits")
    assert (len(x_train), len(x_test), x_train.shape[1]) == (1437, 360, 64)
    assert x_train.min() == 0
    assert x_train.max() == 1
    assert abs(np.bincount(y_train) / 1437 - np.bincount(y_test) / 360).max() < 0.01
    np.testing.assert_array_equal(x_test, m.load_images("digits")[1])


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """The real torchvision loader on small IDX files, in an empty working folder; returns the folder of the files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_torchvision().MNIST, "mirrors", ["http://127.0.0.1:9/"])  # no network in tests
    folder, rng = tmp_path / "data" / "MNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, n in (("train", 300), ("t10k", 60)):
        images = (rng.random((n, 28, 28)) < 0.3) * rng.integers(1, 256, (n, 28, 28))
        header = struct.pack(">IIII", 0x803, n, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
    return folder


def test_mnist_goes_through_torchvision(mnist, tmp_path, capsys):
    x_train, x_test, y_train, _ = m.load_images("mnist")
    assert (x_train.shape, x_test.shape) == ((300, 784), (60, 784))
    assert 0 <= x_train.min() <= x_train.max() <= 1
    assert x_train.max() > 0.9
    assert list(y_train[:12]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    m.main(["--smoke", "--dataset", "mnist", "--section", "inpainting", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "folder"])
def test_a_damaged_or_missing_data_set_is_one_clear_line(mnist, damage):
    path = mnist / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000]) if damage == "truncated" else path.unlink()
    if damage == "folder":
        path.mkdir()
    with pytest.raises(SystemExit) as stop:
        m.load_images("mnist")
    assert str(stop.value.code).startswith("cannot load MNIST (")
    assert str(stop.value.code).count("\n") == 0
    assert "data/MNIST" in str(stop.value.code)
    if damage == "missing":  # the cause, which torchvision prints on a line of its own
        assert "127.0.0.1" in str(stop.value.code) or "refused" in str(stop.value.code)


def test_torchvision_that_does_not_import_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match="cannot load MNIST"):
        m.load_images("mnist")
    assert list(tmp_path.iterdir()) == []


# Settings that make no sense, and those that only look so: one clear line, or a result


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--section training --batch-size 5000", "--batch-size must be at most 1437"),
        ("--section gaussian --n-patches 99", "--n-patches must be at least 400"),
        ("--section gaussian --n-patches 400 --batch-size 450", "--batch-size must be at most 400"),
        ("--section training --learning-rate 1e31", "--learning-rate must be at most"),
        ("--section training --learning-rate 1e6 --weight-decay 1", "times --weight-decay must be below 1"),
        ("--section training --n-small 21", "--n-small must be at most 20"),
    ],
)
def test_what_cannot_work_is_one_clear_line(arguments, line, tmp_path):
    """An endless loop (a batch that never comes), scikit-learn's traceback, an overflow."""
    with pytest.raises(SystemExit, match=line) as stop:
        m.main(["--smoke", *arguments.split(), "--out", str(tmp_path)])
    assert "\n" not in stop.value.code


def test_a_training_that_diverges_says_so(tmp_path, monkeypatch):
    """Before scikit-learn sees the numbers."""
    monkeypatch.setattr(m.ContrastiveDivergence, "step", lambda self, *_: self.rbm.W.fill_(math.inf))
    with pytest.raises(SystemExit, match="RBM training diverged") as stop:
        m.main(["--smoke", "--section", "features", "--out", str(tmp_path)])
    assert "\n" not in stop.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        "--section training --n-hidden 7 --n-small 3",
        "--section gaussian --n-small 3 --n-patches 400",
        "--section likelihood --seed 4294967295 --n-seeds 1 --n-ais-chains 1",
    ],
)
def test_few_units_one_chain_and_the_last_seed_run(arguments, tmp_path):
    """Figures of whatever there is; derived seeds stay in range; a mean of one has no spread."""
    m.main(["--smoke", "--n-updates", "5", *arguments.split(), "--out", str(tmp_path)])


def test_images_that_are_not_square_are_refused_and_a_last_row_is_drawn():
    ax = m.plt.figure().subplots()
    m.show_images(ax, torch.ones(5, 9), 3, "five")
    shown = ax.images[0].get_array()
    assert shown.shape == (7, 11)
    assert (np.nan_to_num(shown.filled(np.nan)) == 1).sum() == 5 * 9
    with pytest.raises(ValueError, match="not square"):
        m.show_images(ax, torch.ones(4, 12), 2, "twelve pixels")
    m.plt.close("all")


def test_product_probabilities_of_certain_units():
    p = torch.tensor([[1.0, 0.0, 0.25]])
    expected = [1.0 * (s[0] == 1) * (s[1] == 0) * (0.25 if s[2] else 0.75) for s in states(3)]
    torch.testing.assert_close(m.product_probabilities(p, states(3).float())[0], torch.tensor([float(e) for e in expected]))
