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
    assert draws[:, 0].sum() == 0


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


def test_sklearns_machine_is_read_the_right_way_round():
    x = torch.tensor([[1.0, 1, 0, 0], [0.0, 0, 1, 1]]).repeat(50, 1)
    rbm = m.sklearn_rbm(x, 3, 0.1, 10, 100, 0)
    peer = m.BernoulliRBM(3, learning_rate=0.1, batch_size=10, n_iter=100, random_state=0).fit(x.numpy())
    np.testing.assert_allclose(rbm.p_hidden(x).numpy(), peer.transform(x.numpy()), rtol=1e-5)
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
    rbm = m.train_gaussian_rbm(x, 2, 3000)
    entropy = math.log(2) + math.log(2 * math.pi * math.e * 0.25)
    assert (-rbm.free_energy(x).mean() - rbm.exact_log_z()).item() == pytest.approx(-entropy, abs=0.15)
    assert (rbm.log_variance / 2).exp().item() == pytest.approx(0.5, abs=0.08)


def test_patches_are_standardised_and_test_patches_come_from_elsewhere():
    train, test = m.natural_patches(4, 500, 0)
    assert train.shape == test.shape == (500, 16)
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-5)


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
        ("--section gaussian --n-patches 99", "--n-patches must be at least 200"),
        ("--section gaussian --n-patches 200 --batch-size 250", "--batch-size must be at most 200"),
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
        "--section gaussian --n-small 3 --n-patches 200",
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
