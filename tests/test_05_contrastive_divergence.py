"""Module 05: every sign, factor and temperature against enumeration, autograd or what a theorem says; every experiment on
planted answers; every section against what it must compare with."""

import itertools
import math
from collections import namedtuple
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import load
from sklearn.datasets import load_digits

m = load("05")

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
        self.said.append(sentence)

    def figure(self, fig, name):
        self.titles[name] = [ax.get_title() for ax in fig.axes]
        plt.close(fig)


def random_rbms(n, d, n_hidden, scale=1.0):
    return m.RBM(*(scale * torch.randn(shape).double() for shape in ((n, d, n_hidden), (n, 1, d), (n, 1, n_hidden))))


def single(rbm):
    return m.RBM(*(parameter.float() for parameter in rbm))


def states(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).double()


def joint_energy(rbm, s):
    """E(v, h) of machine s as a (2^d, 2^m) table by plain loops."""
    W, b, c = (parameter[s] for parameter in rbm)
    return -torch.tensor([[v @ W @ h + b[0] @ v + c[0] @ h for h in states(W.shape[1])] for v in states(W.shape[0])])


def probabilities(rbm, beta=1.0):
    """The joint distribution (S, 2^d, 2^m) under exp(-beta E)."""
    minus_e = torch.stack([-beta * joint_energy(rbm, s) for s in range(len(rbm.W))])
    return minus_e.flatten(1).softmax(1).view_as(minus_e)


def every(n, rbm):
    """All states of a layer of n units, once for each machine."""
    return states(n).expand(len(rbm.W), -1, -1)


def pixels(n_machines, *odds):
    """Machines without couplings: independent pixels, all with the log odds of the machine."""
    b = torch.tensor(odds).view(-1, 1, 1).expand(n_machines, 1, 16).clone()
    return m.RBM(torch.zeros(n_machines, 16, 2), b, torch.zeros(n_machines, 1, 2))


# 0. Many machines at once


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_conditionals_equal_enumeration_at_each_temperature(beta):
    rbm = random_rbms(2, 4, 3)
    joint, v, h = probabilities(rbm, beta), every(4, rbm), every(3, rbm)
    torch.testing.assert_close(rbm.p_hidden(v, beta), joint @ h / joint.sum(2, keepdim=True))
    torch.testing.assert_close(rbm.p_visible(h, beta), joint.mT @ v / joint.sum(1).unsqueeze(2))


def test_energies_and_log_z_equal_enumeration():
    rbm = random_rbms(2, 4, 3)
    table = torch.stack([joint_energy(rbm, s) for s in range(2)])
    v, h = every(4, rbm), every(3, rbm)
    torch.testing.assert_close(rbm.energy(v, h[:, 5:6]), table[:, :, 5])
    torch.testing.assert_close(rbm.free_energy(v), -(-table).logsumexp(2))
    torch.testing.assert_close(m.exact_log_z(rbm), (-table).logsumexp((1, 2)))
    torch.testing.assert_close(rbm.mean_energy(v), ((-table).softmax(2) * table).sum(2))
    torch.testing.assert_close(m.exact_mean_energy(rbm), (probabilities(rbm) * table).sum((1, 2)))
    p = probabilities(rbm).sum(2)
    torch.testing.assert_close(m.exact_log_likelihood(rbm, states(4)[[3, 7, 7]]), p[:, [3, 7, 7]].log().mean(1))


def test_exact_samples_follow_the_model():
    rbm = random_rbms(2, 4, 3, 1.5)
    v = m.exact_samples(rbm, 40_000)
    index = (v @ 2.0 ** torch.arange(3, -1, -1).double()).long()
    counts = torch.stack([torch.bincount(row, minlength=16) for row in index]) / 40_000
    assert (counts - probabilities(rbm).sum(2)).abs().max() < 0.012


def test_there_are_30_bars_and_stripes_each_once():
    x = m.bars_and_stripes()
    images = x.view(-1, 4, 4)
    assert x.shape == (30, 16)
    assert len(x.unique(dim=0)) == 30
    assert ((images == images[:, :1]).flatten(1).all(1) | (images == images[:, :, :1]).flatten(1).all(1)).all()


def test_the_best_possible_is_minus_the_entropy_and_no_model_beats_it():
    x = m.bars_and_stripes()
    _, counts = x.unique(dim=0, return_counts=True)
    p = counts.double() / len(x)
    assert m.theory_best_log_likelihood(x) == pytest.approx((p * p.log()).sum().item())
    small = m.bars_and_stripes(2)  # 6 of the 16 images: a machine that holds them has nearly -ln 6
    table = m.RBM(*(p.float() for p in random_rbms(1, 4, 6)))
    table.W[:], table.b[:], table.c[:] = 40 * (small.T - 0.5), 0.0, -40 * (small.sum(1) / 2 + 0.5 * small.sum(1) - 1) + 20
    assert m.exact_log_likelihood(table, small) <= m.theory_best_log_likelihood(small)


def test_the_independent_baseline_has_the_training_rates_and_the_test_images():
    x_train, x_test = m.bernoulli(torch.full((50, 3), 0.7)), m.bernoulli(torch.full((20, 3), 0.2))
    rate = (x_train.sum(0) + 0.5) / 51
    log_p = torch.where(x_test == 1, rate, 1 - rate).log().sum(1).mean()
    assert m.exact_independent_log_likelihood(x_train, x_test) == pytest.approx(log_p.item(), rel=1e-5)


# 1. The bias


def test_the_gibbs_kernel_is_that_of_the_conditionals_reversible_and_keeps_p():
    rbm = random_rbms(2, 4, 3)
    joint = probabilities(rbm)
    p, kernel = joint.sum(2), m.gibbs_kernels(rbm)
    order = (states(4) @ 2.0 ** torch.arange(4).double()).long()  # all_states counts from the first unit
    kernel = kernel[:, order][:, :, order]
    by_hand = (joint / p.unsqueeze(2)) @ (joint / joint.sum(1, keepdim=True)).mT
    torch.testing.assert_close(kernel, by_hand)
    flow = p.unsqueeze(2) * kernel
    torch.testing.assert_close(flow, flow.mT)
    v, p_of_v = m.visible_states(rbm)
    torch.testing.assert_close(p_of_v[:, order], p)
    assert (v[:, order] == states(4)).all()


def test_the_spectrum_is_the_kernels_and_not_negative():
    rbm = random_rbms(2, 4, 3)
    kernel = m.gibbs_kernels(rbm)
    spectrum = m.reversible_spectrum(kernel, m.visible_states(rbm)[1])
    plain = torch.linalg.eigvals(kernel).real.sort(1, descending=True).values
    torch.testing.assert_close(spectrum, plain, atol=1e-7, rtol=0)
    assert spectrum[:, 0] == pytest.approx(1)
    assert spectrum.min() > -1e-12


def some_data(n, d):
    return (4 * torch.rand(n, 2**d).double()).softmax(1)


def gradient_by_autograd(rbm, q):
    """Of Σ q log p, as an RBM."""
    leaves = m.RBM(*(parameter.clone().requires_grad_() for parameter in rbm))
    return torch.autograd.grad((q * (-leaves.free_energy(m.visible_states(rbm)[0])).log_softmax(1)).sum(), leaves)


def test_cd_bias_starts_as_autograds_gradient_and_moves_by_the_kernel():
    rbm, q = random_rbms(2, 4, 3), some_data(2, 4)
    path = m.cd_bias(rbm, q, 3)
    torch.testing.assert_close(path[0], torch.cat([g.flatten(1) for g in gradient_by_autograd(rbm, q)], 1))
    v, p = m.visible_states(rbm)
    r = (q.unsqueeze(1) @ torch.linalg.matrix_power(m.gibbs_kernels(rbm), 3)).squeeze(1) - p
    torch.testing.assert_close(path[3], (r.unsqueeze(1) @ m.statistics(rbm, v)).squeeze(1))


def test_the_bound_of_eq_3_is_computed_as_stated():
    rbm, q = random_rbms(3, 4, 3, 2.0), some_data(3, 4)
    v, p = m.visible_states(rbm)
    phi, second = m.statistics(rbm, v), torch.tensor([0.5, 0.8, 0.9]).double()
    chi = ((q - p) ** 2 / p).sum(1).sqrt()
    variance = torch.stack([torch.cov(phi[s].T, correction=0, aweights=p[s]).trace() for s in range(3)])
    bound = m.theory_bias_bound(rbm, q, second, 5)
    torch.testing.assert_close(bound[0], chi * variance.sqrt())
    torch.testing.assert_close(bound[5], second**5 * bound[0])


def test_a_measured_bias_is_relative_to_the_gradient_and_decays_at_the_second_eigenvalue(monkeypatch):
    rbm, q = random_rbms(3, 4, 3), some_data(3, 4)
    path, bias = m.cd_bias(rbm, q, 60), m.measure_bias(rbm, q, 60)
    norms, update = path.norm(dim=2), path[0] - path[2]
    second = m.reversible_spectrum(m.gibbs_kernels(rbm), m.visible_states(rbm)[1])[:, 1]
    assert bias.relative == pytest.approx((norms / norms[0]).numpy())
    assert bias.bound == pytest.approx((m.theory_bias_bound(rbm, q, second, 60) / norms[0]).numpy())
    assert bias.cosine.shape == (60, 3)
    assert bias.cosine[1] == pytest.approx(((update * path[0]).sum(1) / update.norm(dim=1) / norms[0]).numpy())
    assert bias.second == pytest.approx(second.numpy())
    assert bias.decay == pytest.approx(((norms[60] / norms[30]) ** (1 / 30)).numpy())
    assert bias.decay == pytest.approx(bias.second, rel=1e-3)
    assert bias.n_beyond == 0
    assert abs(bias.least) < 1e-12  # of 16 eigenvalues at most 2^3 are not 0
    monkeypatch.setattr(m, "theory_bias_bound", lambda *_: norms * torch.tensor([0.9, 1.1, 1.1]))
    assert m.measure_bias(rbm, q, 60).n_beyond == 61


def test_random_machines_balance_and_random_data_are_25_draws():
    rbm = m.random_machines(400, 2.0)
    assert rbm.W.shape == (400, 7, 5)
    assert rbm.W.std().item() == pytest.approx(2, rel=0.03)
    torch.testing.assert_close(rbm.b + 0.5 * rbm.W.sum(2).unsqueeze(1), torch.zeros(400, 1, 7).double())
    assert (rbm.c + 0.5 * rbm.W.sum(1, keepdim=True)).std().item() == pytest.approx(0.5, rel=0.1)
    q = m.random_data(6)
    assert q.shape == (6, 128)
    assert q.sum(1) == pytest.approx(1)
    torch.testing.assert_close(25 * q, (25 * q).round())
    assert not torch.equal(q[0], q[1])


def test_cd_1_by_chains_is_eq_2_of_the_first_machine_along_its_gradient():
    rbm, q = random_rbms(2, 4, 3, 0.5), some_data(2, 4)
    step = m.measure_cd_1_by_chains(rbm, q, 40, 500)
    path = m.cd_bias(rbm, q, 1)[:, 0]
    assert step.groups.shape == (40,)
    assert step.exact == pytest.approx(((path[0] - path[1]) @ path[0] / path[0].norm()).item())
    mean, sem = m.mean_and_sem(step.groups)
    assert abs(mean - step.exact) < 4 * sem
    assert sem < 0.1 * abs(path[1].norm())  # the gradient itself, one sweep away, would be noticed


# 2. The methods


def test_phase_with_signed_weights_is_the_likelihood_gradient():
    rbm, q = random_rbms(2, 4, 3), some_data(1, 4)[0]
    v, p = m.visible_states(rbm)
    for a, b in zip(m.phase(rbm, v, (q - p).unsqueeze(2)), gradient_by_autograd(rbm, q), strict=True):
        torch.testing.assert_close(a, b)


def test_the_plain_gradient_is_the_fast_one_and_autograds():
    rbm, x, x_model = (
        random_rbms(2, 4, 3),
        states(4)[None, [1, 5, 5]].repeat(2, 1, 1),
        states(4)[None, [2, 9, 14]].repeat(2, 1, 1),
    )
    gradient = m.likelihood_gradient(rbm, x, x_model)
    leaves = m.RBM(*(parameter.clone().requires_grad_() for parameter in rbm))
    gap = (leaves.free_energy(x_model) - leaves.free_energy(x)).mean(1).sum()
    weight = torch.tensor([1.0] * 3 + [-1.0] * 3).double().unsqueeze(1) / 3
    fast = m.phase(rbm, torch.cat([x, x_model], 1), weight)
    for a, b, c in zip(gradient, torch.autograd.grad(gap, leaves), fast, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def plain_update(name, state, x, rate):
    """One update by the plain functions: the machine, and what the method keeps, go in and come out."""
    rbm, kept, method = *state, m.METHODS[name]
    if name in ("CD-1", "CD-10"):
        return m.cd_update(rbm, x, rate, method.sweeps), kept
    if name == "PCD":
        return m.pcd_update(rbm, kept, x, rate)
    if name == "fast PCD":
        rbm, *kept = m.fast_pcd_update(rbm, *kept, x, rate, method.fast_rate)
        return rbm, kept
    return m.tempering_update(rbm, kept, torch.linspace(1, 0, method.n_replicas).tolist(), x, rate)


@pytest.mark.parametrize("name", m.METHODS)
def test_the_fast_trainer_equals_the_plain_update(name):
    """Same coins, same machines: with sizes divisible by 4, `bernoulli` spends as many on parts as on the whole."""
    rbm, x = random_rbms(1, 8, 4), m.bernoulli(torch.full((6, 1, 4, 8), 0.4).double())
    trainer = m.Trainer(m.RBM(*(parameter.clone() for parameter in rbm)), m.METHODS[name], 4)
    chains, fast = trainer.chains.clone(), m.RBM(*(0 * parameter for parameter in rbm))
    kept = {"PCD": chains, "fast PCD": (fast, chains), "tempering": list(chains.split(4, 1))}.get(name)
    torch.manual_seed(1)
    for batch in x:
        trainer.step(batch, 0.5)
    torch.manual_seed(1)
    state = rbm, kept
    for batch in x:
        state = plain_update(name, state, batch, 0.5)
    for a, b in zip(trainer.rbm, state[0], strict=True):
        torch.testing.assert_close(a, b)
    assert (trainer.rbm.W - rbm.W).abs().max() > 0.1


def test_exchange_accepts_by_the_ratio_of_joint_probabilities():
    energies, betas, n = (-1.0, 0.5, -0.8), torch.tensor([1.0, 0.6, 0.1]), 100_000
    energy = torch.tensor(energies).view(1, 3, 1).repeat(1, 1, n)
    v = torch.arange(3.0).view(1, 3, 1, 1).repeat(1, 1, n, 1)
    m.exchange(v, energy, betas)
    torch.testing.assert_close(energy, torch.tensor(energies)[v[..., 0].long()])  # an energy moves with its state
    first = min(1, math.exp((1.0 - 0.6) * (energies[0] - energies[1])))  # then its pair 1, 2, whoever is there by now
    kept, moved = (min(1, math.exp((0.6 - 0.1) * (energies[i] - energies[2]))) for i in (1, 0))
    assert (v[0, 0, :, 0] == 1).float().mean().item() == pytest.approx(first, abs=0.008)
    assert (v[0, 1, :, 0] == 2).float().mean().item() == pytest.approx((1 - first) * kept + first * moved, abs=0.008)


def test_tempering_leaves_every_replicas_distribution_alone():
    rbm, n, betas = single(random_rbms(1, 3, 2, 2.0)), 40_000, torch.tensor([1.0, 0.5, 0.0])
    p = [probabilities(m.RBM(*(x.double() for x in rbm)), beta).sum(2)[0] for beta in betas.tolist()]
    v = torch.cat([states(3).float()[torch.multinomial(row, n, replacement=True)] for row in p]).unsqueeze(0)
    for _ in range(4):
        v = m.temper(rbm, v, betas)
    index = (v.view(3, n, 3) @ torch.tensor([4.0, 2.0, 1.0])).long()
    counts = torch.stack([torch.bincount(row, minlength=8) for row in index]) / n
    assert (counts - torch.stack(p)).abs().max() < 0.012


def test_each_method_starts_its_chains_where_it_should(monkeypatch):
    calls = []
    monkeypatch.setattr(m, "gibbs", lambda rbm, v, k: calls.append((rbm, v, k)) or 1 - v)
    x = m.bernoulli(torch.full((2, 5, 4), 0.5))
    for name, sweeps, restarts in (("CD-1", 1, True), ("CD-10", 10, True), ("PCD", 1, False), ("fast PCD", 1, False)):
        trainer = m.Trainer(single(random_rbms(2, 4, 3)), m.METHODS[name], 5)
        chains = trainer.chains
        assert 0.2 < chains.mean() < 0.8  # coins
        for fast in trainer.fast:
            fast += 0.5
        assert (trainer.negatives(x) == 1 - (x if restarts else chains)).all()
        rbm, _, k = calls[-1]
        assert k == sweeps == m.METHODS[name].sweeps
        assert (rbm.W - trainer.rbm.W).mean().item() == pytest.approx(0.5 if name == "fast PCD" else 0)
        trainer.negatives(x)
        assert (calls[-1][1] == (x if restarts else 1 - chains)).all()


def test_tempering_pays_for_its_replicas_and_trains_on_those_at_beta_1():
    method = m.METHODS["tempering"]
    assert method.sweeps == method.n_replicas
    trainer = m.Trainer(single(random_rbms(1, 4, 3)), method, 500)
    trainer.rbm.b.fill_(20.0)  # at beta = 1 all units are on, at beta = 0 half of them
    trainer.rbm.W.zero_()
    v = trainer.negatives(None)
    assert v.shape == (1, 500, 4)
    assert v.mean() > 0.99
    assert trainer.chains[:, -500:].mean() < 0.65
    assert trainer.betas.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_a_step_climbs_by_the_rate_and_fast_weights_forget_a_twentieth():
    trainer = m.Trainer(single(random_rbms(2, 4, 3)), m.METHODS["fast PCD"], 6)
    for fast in trainer.fast:
        fast.normal_()
    old, old_fast = ([p.clone() for p in group] for group in (trainer.rbm, trainer.fast))
    x, rates = m.bernoulli(torch.full((2, 6, 4), 0.5)), torch.tensor([0.1, 0.0]).view(2, 1, 1)
    trainer.step(x, rates)
    gradient = m.likelihood_gradient(m.RBM(*old), x, trainer.chains)
    for new, before, fast, fast_before, g in zip(trainer.rbm, old, trainer.fast, old_fast, gradient, strict=True):
        torch.testing.assert_close(new, before + rates * g)
        torch.testing.assert_close(fast, 0.95 * fast_before + 0.3 * g)


def test_fresh_machines_know_each_pixels_rate():
    x = m.bernoulli(torch.tensor([0.9, 0.5, 0.1]).expand(200, -1))
    rbm = m.fresh_rbms(x, 50, 40)
    assert (rbm.b == m.log_odds(x)).all()
    assert (rbm.c == 0).all()
    assert rbm.W.std().item() == pytest.approx(0.1, rel=0.05)


class Recorder:
    """Stands in for a Trainer: notes the rates, and writes them into the machines' weights."""

    def __init__(self, rbm, method=None, n_chains=3):
        self.rbm, self.method, self.n, self.rates = rbm, method, n_chains, []

    def step(self, x, rate):
        self.rates.append(rate.flatten().tolist())
        self.rbm.W[:] = rate


def test_the_rate_falls_linearly_to_zero_or_stays():
    x, rates = torch.ones(3, 4), torch.tensor([1.0, 2.0])
    falling, constant = (Recorder(m.fresh_rbms(x, 2, 3)) for _ in range(2))
    kept = m.climb(falling, x, rates, 4, marks=(0, 2))
    m.climb(constant, x, rates, 4, anneal=False)
    assert falling.rates == [[1, 2], [0.75, 1.5], [0.5, 1], [0.25, 0.5]]
    assert constant.rates == [[1, 2]] * 4
    assert list(kept) == [0, 2]
    assert kept[2].W[1].unique().tolist() == [1.5]  # a copy, as it was after two updates


def test_minibatches_are_drawn_per_machine():
    x, seen = torch.eye(50), []
    recorder = Recorder(m.fresh_rbms(x, 2, 3), n_chains=20)
    recorder.step = lambda batch, rate: seen.append(batch)
    m.climb(recorder, x, torch.ones(2), 1)
    assert seen[0].shape == (2, 20, 50)
    assert not torch.equal(seen[0][0], seen[0][1])


def test_a_method_is_tuned_on_other_machines_by_the_mean_score(monkeypatch):
    made = []
    monkeypatch.setattr(m, "Trainer", lambda *args: made.append(Recorder(*args)) or made[-1])

    def score(rbm):
        reached = rbm.W.mean((1, 2)) * 2  # the last of two updates is at half of the rate
        value = -(reached - 0.3).abs()
        value[1::2] += torch.where(reached[1::2] == 1.0, 1.0, 0.0)  # one lucky machine at rate 1: the mean stays worse
        return torch.where(reached > 2, torch.nan, value)

    result = m.tune_and_train(torch.ones(3, 4), 3, 2, m.METHODS["CD-10"], 2, 2, 5, score)
    assert result.rate == 0.3
    assert len(result.rbm.W) == 5
    assert [len(trainer.rates) for trainer in made] == [2, 2]
    assert made[0].rates[0] == pytest.approx([rate for rate in m.RATES for _ in range(2)])
    assert made[1].rates[0] == pytest.approx([0.3] * 5)
    assert [trainer.method for trainer in made] == [m.METHODS["CD-10"]] * 2
    assert result.seconds >= 0


def test_no_rate_is_chosen_where_ais_trusts_none():
    def score(rbm):
        return torch.full((len(rbm.W),), torch.nan)

    with pytest.raises(SystemExit, match="--n-ais-temps"):
        m.tune_and_train(m.bars_and_stripes(), 30, 2, m.METHODS["PCD"], 1, 1, 1, score)


def test_pcd_learns_a_small_distribution():
    x = torch.tensor([[0.0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0]])
    rbm = m.fresh_rbms(x, 4, 4)
    m.climb(m.Trainer(rbm, m.METHODS["PCD"], 3), x, torch.full((4,), 0.3), 1500)
    assert m.exact_log_likelihood(rbm, x).mean() > -math.log(3) - 0.25


def test_budgets_are_thirds_and_an_update_costs_its_sweeps():
    assert m.budgets(m.Config(n_sweeps=270)) == [10, 30, 90, 270]
    assert [m.updates_for(method, 100) for method in m.METHODS.values()] == [100, 10, 100, 100, 20]
    assert m.updates_for(m.METHODS["CD-10"], 9) == 1


def test_bars_are_trained_at_every_budget_and_scored_exactly(monkeypatch):
    calls, x = {}, m.bars_and_stripes()

    def tune(*args):
        (name,) = [name for name, method in m.METHODS.items() if method is args[3]]
        calls[name, args[4]] = args
        return args

    monkeypatch.setattr(m, "tune_and_train", tune)
    results = m.trained_on_bars(Notes(n_sweeps=270, n_hidden=5, n_tuning=2, n_seeds=4))
    assert list(results) == [(name, sweeps) for sweeps in (10, 30, 90, 270) for name in m.METHODS]
    assert results["CD-10", 90][4] == 9
    assert results["tempering", 270][4] == 54
    for data, n_chains, n_hidden, _, _, n_tuning, n_seeds, score in results.values():
        assert torch.equal(data, x)
        assert (n_chains, n_hidden, n_tuning, n_seeds) == (30, 5, 2, 4)
        rbm = single(random_rbms(2, 16, 3))
        assert torch.equal(score(rbm), m.exact_log_likelihood(rbm, x))


def test_ais_finds_log_z_of_each_machine():
    rbm = single(random_rbms(3, 6, 4))
    log_z, sem, ess = m.log_z_from_weights(m.ais(rbm, torch.randn(6), 2000, 200))
    assert ((log_z - m.exact_log_z(rbm)).abs() < 4 * sem + 1e-3).all()
    assert sem.max() < 0.05
    assert ess.min() > 500


def test_ais_without_steps_weighs_the_base_alone():
    rbm, base_b = single(m.RBM(*(0 * p for p in random_rbms(1, 3, 2)))), torch.tensor([0.3, -1.0, 2.0])
    moved = m.RBM(rbm.W, base_b.view(1, 1, 3), rbm.c)
    assert m.log_z_from_weights(m.ais(moved, base_b, 10, 3))[0].item() == pytest.approx(
        m.exact_log_z(moved).item(), abs=1e-4
    )
    assert m.exact_log_z(rbm).item() == pytest.approx(math.log(2**2 * 2**3), abs=1e-4)


def test_ais_scores_images_and_says_what_share_of_its_chains_counts(monkeypatch):
    rbm, x = single(random_rbms(2, 6, 4)), m.bernoulli(torch.full((9, 6), 0.5))
    nats, share = m.log_likelihood_by_ais(rbm, torch.zeros(6), x, 1000, 200)
    torch.testing.assert_close(nats, m.exact_log_likelihood(rbm, x), atol=0.05, rtol=0)
    assert ((share > 0.3) & (share <= 1)).all()
    alone = torch.full((2, 4), -1e9).index_fill_(1, torch.tensor([0]), 0.0)  # one chain of four has all the weight
    monkeypatch.setattr(m, "ais", lambda *_: alone)
    assert m.log_likelihood_by_ais(rbm, torch.zeros(6), x, 4, 1)[1].tolist() == pytest.approx([0.25, 0.25])


def test_what_rests_on_few_chains_is_not_trusted():
    nats = m.trusted(torch.tensor([-1.0, -2.0]), torch.tensor([0.09, 0.11]))
    assert nats[0].isnan()
    assert nats[1] == -2
    assert m.OnDigits(0.1, nats, torch.tensor([0.5, 0.11])).is_trusted
    assert not m.OnDigits(0.1, nats, torch.tensor([0.5, 0.09])).is_trusted


def test_digits_are_binary_and_split_three_ways():
    parts = m.binary_digits("cpu")
    assert [len(part) for part in parts] == [1221, 216, 360]
    images = sorted((load_digits().data > 8).astype(int).tolist())
    assert sorted(torch.cat(parts).int().tolist()) == images  # each image once, in one of the three


def planted_digits(_):
    """Training, validation and test images that tell themselves apart by their number."""
    return [m.bernoulli(torch.full((n, 64), 0.3)) for n in (110, 7, 5)]


def test_digits_are_tuned_on_validation_and_scored_on_test_images(monkeypatch):
    scored, tuned = [], []

    def tune(*args):
        tuned.append(args)
        args[7](m.fresh_rbms(args[0], 2, 3))
        return m.Result(0.3, m.fresh_rbms(args[0], args[6], 3), 0.0)

    def score(rbm, base_b, x, n_chains, n_temps):
        scored.append((len(rbm.W), base_b, len(x), n_chains, n_temps))
        return torch.full((len(rbm.W),), -float(len(x))), torch.ones(len(rbm.W))

    monkeypatch.setattr(m, "binary_digits", planted_digits)
    monkeypatch.setattr(m, "tune_and_train", tune)
    monkeypatch.setattr(m, "log_likelihood_by_ais", score)
    results = m.trained_on_digits(Notes(digits_sweeps=40, n_seeds=4, n_tuning=3, n_ais_chains=10, n_ais_temps=60))
    names = [("CD-1", 40), ("CD-10", 4), ("PCD", 40), ("fast PCD", 40), ("tempering", 8), ("CD-10", 40), ("tempering", 40)]
    assert list(results) == names
    assert [(len(args[0]), args[1], args[4], args[5], args[6]) for args in tuned] == [(110, 100, n, 3, 4) for _, n in names]
    assert [args[3] for args in tuned] == [m.METHODS[name] for name, _ in names]
    torch.manual_seed(0)
    base_b = m.log_odds(tuned[0][0])
    for validation, test in zip(scored[::2], scored[1::2], strict=True):
        assert validation[2] == 7
        assert test[0] == 4
        assert test[2:] == (5, 10, 60)
        assert torch.equal(test[1], base_b)
    assert all((scored.nats == -5).all() for scored in results.values())


def test_digits_meet_at_equal_sweeps_and_at_equal_updates():
    results = {(name, n): m.OnDigits(0.1, torch.tensor([float(n)]), torch.ones(1)) for name in m.METHODS for n in (4, 8, 40)}
    results["PCD", 40] = m.OnDigits(0.1, torch.zeros(1), torch.tensor([0.01]))
    sweeps, updates = m.digits_compared(results, 40)
    assert {name: nats.item() for name, nats in sweeps.items()} == {"CD-1": 40, "CD-10": 4, "fast PCD": 40, "tempering": 8}
    assert set(updates) == {"CD-1", "CD-10", "fast PCD", "tempering"}
    assert all(nats.item() == 40 for nats in updates.values())
    assert m.spread(sweeps) == 36
    assert m.spread({}) == 0


def test_ais_is_checked_on_a_machine_that_learnt_and_can_be_summed():
    x = m.bernoulli(torch.full((150, 6), 0.3))
    found = m.check_ais(x, 4, 30, 800, 200)
    assert found.n_chains == 800
    assert abs(found.log_z - found.exact) < 5 * found.sem + 1e-3
    untrained = m.exact_log_z(m.fresh_rbms(x, 1, 4)).item()
    assert abs(found.exact - untrained) > 10 * found.sem


def test_samples_that_are_no_pattern_are_marked():
    x = m.bars_and_stripes()
    drawn = m.draw_exactly("PCD", pixels(2, -0.5, 9.0), x)
    wrong = [not any(torch.equal(v, pattern) for pattern in x) for v in drawn.v]
    assert drawn.v.mean() < 0.8  # the first machine's
    assert drawn.is_wrong.tolist() == wrong
    assert sum(wrong) > 20


# 3. What misleads


def test_reconstruction_error_is_in_pixels():
    x = m.bars_and_stripes()
    blind = m.RBM(torch.zeros(1, 16, 2), torch.zeros(1, 1, 16), torch.zeros(1, 1, 2))
    assert m.reconstruction_error(blind, x).item() == pytest.approx(16 / 4)
    sure = m.RBM(100 * torch.eye(16).unsqueeze(0), torch.full((1, 1, 16), -50.0), torch.full((1, 1, 16), -50.0))
    assert m.reconstruction_error(sure, x).item() == pytest.approx(0, abs=1e-6)


def test_cd_1_is_watched_at_a_constant_rate_and_peaks_where_the_mean_does(monkeypatch):
    trainers, x, levels = [], m.bars_and_stripes(), iter([-9.0, -4.0, -6.0, *[-8.0] * 50])
    monkeypatch.setattr(m, "Trainer", lambda *args: trainers.append(Recorder(*args)) or trainers[-1])
    monkeypatch.setattr(m, "exact_log_likelihood", lambda rbm, _: next(levels) + torch.tensor([0.0, 1.0]))
    monkeypatch.setattr(m, "reconstruction_error", lambda rbm, _: rbm.W.mean((1, 2)))
    watched = m.watch_cd_1(x, 3, 2, 100)
    assert (watched.marks[0], watched.marks[-1]) == (10, 100)
    assert trainers[0].method == m.METHODS["CD-1"]
    assert trainers[0].n == 30
    assert np.ravel(trainers[0].rates) == pytest.approx([0.3] * 200)
    assert watched.peak == 1
    assert watched.nats[:3, 1].tolist() == [-8, -3, -5]
    assert watched.errors == pytest.approx(0.3)


# 4. Chains


def test_last_pattern_knows_patterns_and_remembers():
    x = m.bars_and_stripes()
    assert m.last_pattern(x, x, torch.tensor(-1)).tolist() == list(range(30))
    broken = x.clone()
    broken[:, 5] = 1 - broken[:, 5]
    assert (m.last_pattern(broken, x, torch.full((30,), 7)) == 7).all()


def test_barness_is_positive_for_bars_and_turns_with_the_image():
    x = m.bars_and_stripes()
    values = m.barness(x)
    assert (values[1:15] > 0).all()
    assert (values[16:] < 0).all()
    torch.testing.assert_close(m.barness(x.view(-1, 4, 4).mT.flatten(1)), -values)
    assert values[5] == pytest.approx(1 / 3)  # two of four columns on, apart or not: variance of (1, 0, 1, 0)


def test_exact_barness_of_independent_pixels_is_their_means_and_variances():
    b = torch.randn(2, 1, 16)
    rbm = m.RBM(torch.zeros(2, 16, 1), b, torch.zeros(2, 1, 1))
    p = b.sigmoid().view(2, 4, 4)
    noise = (p * (1 - p)).sum((1, 2)) / 16 / 4  # of the mean of four pixels, averaged over the four columns, or rows
    columns, rows = (p.mean(axis).var(1) + noise for axis in (1, 2))
    torch.testing.assert_close(m.exact_mean_barness(rbm), columns - rows, atol=1e-5, rtol=0)


def test_switches_count_each_new_pattern_once():
    x = torch.eye(3)
    counter = m.SwitchCounter(x)
    for v in (x[[0]], 1 - x[[0]], x[[0]], x[[1]], x[[1]], x[[2]], 1 - x[[2]]):
        counter.see(v.unsqueeze(0))
    assert counter.per_1000().tolist() == pytest.approx([1000 * 2 / 7])


def test_only_the_replica_at_beta_1_is_diagnosed(monkeypatch):
    x, seen = m.bars_and_stripes(), []
    monkeypatch.setattr(m, "temper", lambda rbm, v, betas: seen.append((v, betas.tolist())) or v)
    start = x[[3, 20]].unsqueeze(0)
    draws, switches = m.diagnose(None, start, x, 5, 3)
    assert seen[0][0].shape == (1, 6, 16)
    assert seen[0][1] == [1, 0.5, 0]
    assert draws.shape == (1, 2, 5)
    assert draws[0, 0].tolist() == pytest.approx([m.barness(x[3]).item()] * 5)
    assert switches.tolist() == [0]


def test_chains_that_never_move_are_called_stuck_and_do_not_end_a_run():
    alike, apart = torch.ones(3, 8), torch.arange(3.0).view(3, 1).expand(3, 8)
    assert m.split_r_hat(alike) == 1
    assert m.split_r_hat(apart) == math.inf
    run = Notes()
    mixing = m.Mixing(torch.tensor([1.0, math.inf]), *torch.ones(4, 2), apart, 0.0)
    m.record_mixing(run, "stuck", mixing)
    assert "infinite" in run.said[0]
    assert "stuck: R-hat" not in run.metrics


def test_mixing_is_measured_against_the_exact_mean_and_charged_for_replicas(monkeypatch):
    x, draws = m.bars_and_stripes(), torch.randn(2, 28, 600)
    monkeypatch.setattr(m, "diagnose", lambda *_: (draws, torch.tensor([3.0, 4.0])))
    monkeypatch.setattr(m, "exact_mean_barness", lambda _: torch.tensor([0.5, -0.25]))
    found = m.measure_mixing(None, None, x, 600, 4)
    assert found.error.tolist() == pytest.approx([abs(draws[0].mean().item() - 0.5), abs(draws[1].mean().item() + 0.25)])
    assert found.r_hat.tolist() == pytest.approx([m.split_r_hat(chains).item() for chains in draws])
    ess = [m.effective_sample_size(chains).item() for chains in draws]
    rho = [m.autocorrelation(chains)[3].item() for chains in draws]  # three rounds of four replicas: ten sweeps are paid
    assert found.rho.tolist() == pytest.approx(rho)
    assert found.ess.tolist() == pytest.approx([1000 * value / (28 * 600 * 4) for value in ess])
    assert found.switches.tolist() == [0.75, 1]
    assert torch.equal(found.trace, draws[0, [0, 13, 26], :300])
    assert found.exact == 0.5


def test_chains_lag_above_a_machine_that_learns_and_not_above_a_frozen_one():
    x = m.bars_and_stripes(2).repeat(20, 1)
    rbm = single(random_rbms(40, 4, 4, 3.0))
    lag, switches = m.lag_while_learning(rbm, x, torch.tensor([0.0] * 20 + [2.0] * 20), 200)
    assert lag.shape == (40, 120)
    assert abs(lag[:20].mean()) < 0.06
    assert lag[20:].mean() > 0.15
    assert ((switches >= 0) & (switches <= 1000)).all()


def test_the_chains_whose_lag_is_measured_begin_as_exact_samples():
    rbm = single(random_rbms(60, 8, 6, 4.0))
    lag, _ = m.lag_while_learning(rbm, m.all_states(8), torch.zeros(60), 1)
    assert abs(lag.mean()) < 0.2  # from coins, one sweep leaves it far above


def test_the_lag_is_above_the_model_and_of_the_second_half(monkeypatch):
    class Drifting(Recorder):
        """One bias that grows by 1 an update, and chains in which all four units are on."""

        def step(self, x, rate):
            self.rbm.b.add_(1.0)
            self.chains = torch.ones(1, 3, 4)

    monkeypatch.setattr(m, "Trainer", lambda rbm, method, n, chains: Drifting(rbm, method, n))
    monkeypatch.setattr(m, "exact_mean_energy", lambda rbm: torch.tensor([-100.0]))
    rbm = m.RBM(torch.zeros(1, 4, 2), torch.zeros(1, 1, 4), torch.zeros(1, 1, 2))
    lag, switches = m.lag_while_learning(rbm, m.bars_and_stripes(2)[:3], torch.ones(1), 20, every=5)
    assert lag.tolist() == [[100 - 4 * (15 + 20) / 2] * 3]  # after updates 15 and 20
    assert switches.tolist() == [0]


def test_frozen_machines_stay_and_their_switches_are_those_of_gibbs_sampling():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    free = m.RBM(torch.zeros(1, 2, 1), torch.zeros(1, 1, 2), torch.zeros(1, 1, 1))
    stuck = m.RBM(torch.full((1, 2, 1), 60.0), torch.full((1, 1, 2), -30.0), torch.full((1, 1, 1), -60.0))
    both = m.RBM(*(torch.cat(pair) for pair in zip(free, stuck, strict=True)))
    before = [parameter.clone() for parameter in both]
    switches = m.switches_frozen(both, x.repeat(200, 1), 100)
    assert all(torch.equal(a, b) for a, b in zip(both, before, strict=True))
    assert switches[0].item() == pytest.approx(250, abs=12)  # every second sweep is at a pattern, half of these at the other
    assert switches[1].item() == 0


def test_the_frozen_control_is_the_machine_at_the_end(monkeypatch):
    rbm, x, seen = pixels(2, -1.0, 1.0), m.bars_and_stripes(), {}

    def learn(machines, many, rates, n_updates):
        seen["learn"] = rates.tolist(), len(many), n_updates
        machines.b.add_(rates.view(-1, 1, 1))
        return torch.arange(12.0).unsqueeze(1).expand(-1, len(many)), torch.arange(12.0)

    def freeze(machines, many, n_sweeps):
        seen["freeze"] = machines.b[:, 0, 0].tolist(), len(many), n_sweeps
        return 100 + torch.arange(12.0)

    monkeypatch.setattr(m, "lag_while_learning", learn)
    monkeypatch.setattr(m, "switches_frozen", freeze)
    found = m.measure_learning(rbm, x, 77)
    rates = [rate for rate in m.LEARNING_RATES for _ in range(2)]
    assert list(found) == list(m.LEARNING_RATES)
    assert seen["learn"] == (pytest.approx(rates), 90, 77)
    assert seen["freeze"] == (pytest.approx([rate + level for rate, level in zip(rates, [-1, 1] * 6, strict=True)]), 90, 77)
    assert found[0.3].lag[:, 5].tolist() == [10, 11]
    assert found[0.3].switches.tolist() == [10, 11]
    assert found[0.3].frozen.tolist() == [110, 111]
    torch.testing.assert_close(found[0.3].nats, m.exact_log_likelihood(pixels(2, -0.7, 1.3), x))
    assert rbm.b[:, 0, 0].tolist() == [-1, 1]  # copies learn


# 5. Convergence


def test_the_choice_names_the_best_and_all_that_are_as_good():
    best = torch.tensor([1.0, 1.1, 0.9, 1.0])
    candidates = {"worse": best - 1, "best": best, "close": best - 0.05}
    assert m.best_and_ties(candidates) == ("best", ["close"])
    sem = best.double().std() / 2
    assert m.best_and_ties({"a": best, "b": best - 2.9 * sem})[1] == []  # 2.9 > 2 sqrt(2)
    assert m.best_and_ties({"a": best, "b": best - 2.7 * sem})[1] == ["b"]
    assert m.recommend({"now": candidates}) == [("now", "best", 1.0, ["close"])]
    assert m.best_and_ties({"a": best[:1], "b": best[:1] - 9}) == ("a", ["b"])  # one repeat: nothing is known to be worse
    assert (m.in_brackets(["b", "c"]), m.in_brackets([])) == (" (as good: b, c)", "")


def test_a_situation_holds_what_its_budget_can_pay_for():
    nats, seconds = {}, {}
    for i, name in enumerate(m.METHODS):  # the later, the better and the slower
        for sweeps in (9, 90):
            nats[name, sweeps], seconds[name, sweeps] = torch.tensor([float(sweeps + i)]), float(sweeps + 10 * i)
    found = m.situations(nats, seconds, {"PCD": torch.zeros(1)})
    assert list(found) == ["9 sweeps", "90 sweeps", "10 seconds", "90 seconds", "digits, test (AIS)"]
    assert {name: value.item() for name, value in found["9 sweeps"].items()} == {
        name: 9 + i for i, name in enumerate(m.METHODS)
    }
    assert {name: value.item() for name, value in found["10 seconds"].items()} == {"CD-1": 9}
    expected = {"CD-1": 90, "CD-10": 10, "PCD": 11, "fast PCD": 12, "tempering": 13}  # only CD-1 is done in 90 seconds
    assert {name: value.item() for name, value in found["90 seconds"].items()} == expected
    assert "digits, test (AIS)" not in m.situations(nats, seconds, {})


# Figures show what was measured, under its own name


def heights(ax):
    """{label: y} of the lines of a panel that have a label."""
    return {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in ax.lines if line.get_label()[0] != "_"} | {
        bars.get_label(): np.asarray(bars[0].get_ydata()).tolist() for bars in ax.containers
    }


def test_draw_decay_shows_medians_bounds_and_directions():
    bias = m.measure_bias(random_rbms(3, 4, 3), some_data(3, 4), 10)
    fig = m.draw_decay({"small": bias, "large": bias._replace(cosine=0.5 * bias.cosine, decay=bias.decay + 0.34)})
    left, middle, right = fig.axes
    assert heights(left)["large weights"] == pytest.approx(np.median(bias.relative[1:], 1))
    assert left.lines[1].get_ydata() == pytest.approx(np.median(bias.bound[1:], 1))
    assert middle.containers[0][0].get_ydata() == pytest.approx(bias.cosine.mean(1))
    assert f"{0.5 * bias.cosine[0].mean():.2f}" in middle.get_title()
    assert right.lines[0].get_xdata() == pytest.approx(1 - bias.second)
    assert right.lines[0].get_ydata() == pytest.approx(1 - bias.decay)
    assert right.get_title().endswith(f"to {(bias.decay + 0.34 - bias.second).max():.1g}")  # the worst of all
    plt.close(fig)


def test_draw_likelihoods_shows_each_machine_in_its_methods_colour():
    nats = {"PCD": torch.tensor([-5.0, -3.0]), "CD-1": torch.tensor([-9.0, -8.0])}
    fig = m.draw_likelihoods([("bars", "a pattern", nats, -3.4), ("a", "an image", nats, None), ("b", "an image", {}, None)])
    dots, line, *_, best = fig.axes[0].lines
    assert dots.get_ydata().tolist() == [-5, -3]
    assert dots.get_color() == m.METHODS["PCD"].color
    assert list(line.get_ydata()) == [-4, -4]
    assert list(best.get_ydata()) == [-3.4, -3.4]
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["PCD", "CD-1"]
    plt.close(fig)


def test_draw_samples_marks_what_is_wrong_in_red():
    x = m.bars_and_stripes()
    fig = m.draw_samples(x, [m.Drawn("CD-1", x, torch.arange(30) < 4), m.Drawn("PCD", x, torch.zeros(30, dtype=torch.bool))])
    assert [ax.get_title()[:13] for ax in fig.axes[1:]] == ["CD-1: 4 of 30", "PCD: 0 of 30 "]
    red = [(np.ptp(np.asarray(ax.images[0].get_array()), axis=2) > 0.5).sum() for ax in fig.axes]
    assert red == [0, x[:4].sum(), 0]
    plt.close(fig)


def test_draw_watched_shows_the_error_left_and_the_likelihood_right():
    nats, errors = torch.tensor([[-9.0, -7.0], [-4.0, -4.0]]), torch.tensor([[3.0, 1.0], [0.5, 0.1]])
    fig = m.draw_watched(m.Watched([10, 20], nats, errors, 1), -3.4, ["left", "right"])
    for ax, values in zip(fig.axes, (errors, nats), strict=True):
        assert ax.lines[2].get_ydata() == pytest.approx(values.mean(1).numpy())
        assert ax.lines[3].get_xdata() == [20, 20]
    assert heights(fig.axes[1])["the best possible"] == [-3.4, -3.4]
    plt.close(fig)


def test_draw_learning_shows_lag_likelihood_and_switches():
    def learning(i):
        return m.Learning(
            1.0 + i + torch.tensor([[-1.0], [1.0]]).expand(2, 3),
            torch.full((2,), -4.0 - i),
            torch.full((2,), 6.0 * i),
            torch.full((2,), 2.0),
        )

    fig = m.draw_learning({rate: learning(i) for i, rate in enumerate((0.0, 0.1, 0.3))}, -3.4)
    lag, nats, switches = (heights(ax) for ax in fig.axes)
    assert lag["while it learns"] == [2, 3]
    ends = fig.axes[0].containers[0][2][0].get_segments()[0][:, 1]
    assert ends == pytest.approx([1, 3])  # the standard error of two machines, not of six chains
    assert lag["rate 0"] == [1, 1]
    assert nats["at the end"] == [-5, -6]
    assert nats["before"] == [-4, -4]
    assert switches == {"while it learns": [6, 12], "the end machine, frozen": [2, 2]}
    assert [ax.get_title() for ax in fig.axes][1:] == ["Rate 0.3 un-learns 2.0 nats", "Switches: 6 times the frozen"]
    plt.close(fig)


def test_draw_traces_shows_three_chains_and_the_exact_mean():
    mixing = m.Mixing(*(torch.tensor([1.5, 2.5]),) * 5, torch.arange(6.0).view(3, 2), 0.25)
    fig = m.draw_traces({"a case": mixing, "another": mixing})
    assert [line.get_ydata().tolist() for line in fig.axes[0].lines[:3]] == mixing.trace.tolist()
    assert list(fig.axes[0].lines[3].get_ydata()) == [0.25, 0.25]
    assert fig.axes[0].get_title() == "a case\nR-hat 2.00, error 2.000"
    plt.close(fig)


def test_draw_curves_has_sweeps_left_and_seconds_right():
    nats = {(name, sweeps): torch.tensor([-i - 1.0, -i - 3.0]) for i, name in enumerate(m.METHODS) for sweeps in (9, 90)}
    fig = m.draw_curves(nats, {key: key[1] / 4 for key in nats}, -3.4)
    for ax, x in zip(fig.axes, ([9, 90], [2.25, 22.5]), strict=True):
        for i, (name, bars) in enumerate(zip(m.METHODS, ax.containers, strict=True)):
            assert bars.get_label() == name
            assert bars[0].get_color() == m.METHODS[name].color
            assert bars[0].get_xdata().tolist() == x
            assert bars[0].get_ydata().tolist() == [-i - 2, -i - 2]
    plt.close(fig)


# The sections: what stands beside what


def test_a_method_that_ais_cannot_judge_is_named_and_has_no_number():
    run = Notes()
    m.record_digits(run, {("PCD", 20): m.OnDigits(0.1, torch.zeros(2), torch.tensor([0.9, 0.05]))}, -24.0)
    assert set(run.metrics) == {"digits, PCD, 20 updates: AIS share"}
    assert run.metrics["digits, PCD, 20 updates: AIS share"].value == pytest.approx(0.05)
    assert "--n-ais-temps" in run.said[0]
    assert len(run.said) == 1
    few = Notes(n_ais_chains=10)
    m.record_digits(few, {}, -24.0)
    assert "nothing is refused" in few.said[0]


def test_section_bias_compares_with_theory_and_eq_2(monkeypatch):
    run, scales, step = Notes(n_machines=2), [], m.ChainStep(torch.arange(40.0), 19.0)
    bias = m.measure_bias(random_rbms(2, 4, 3), some_data(2, 4))
    kinds = iter([bias._replace(relative=bias.relative + i, n_beyond=i, least=-i * 1e-13) for i in range(3)])
    monkeypatch.setattr(m, "random_machines", lambda n, scale: scales.append((n, scale)))
    monkeypatch.setattr(m, "measure_bias", lambda rbm, q: next(kinds))
    monkeypatch.setattr(m, "measure_cd_1_by_chains", lambda rbm, q: step)
    m.section_bias(run)
    assert scales == [(2, 0.5), (2, 1.5), (2, 3.0)]
    for i, name in enumerate(("small", "medium", "large")):
        for k in (1, 10, 100):
            relative, cosine = (run.metrics[f"{name} weights, CD-{k}: {what}"] for what in ("bias / gradient", "cosine"))
            assert relative.value == pytest.approx(bias.relative[k].mean() + i)
            assert cosine.value == pytest.approx(bias.cosine[k - 1].mean())
            assert (relative.against[1], cosine.against[1]) == (0, 1)
            assert (relative.within, cosine.within) == (None, None)  # no theory says how close
    assert run.metrics["biases beyond the bound of eq. (3)"] == (3, None, ("theorem", 0), 0)
    value, _, (_, reference), within = run.metrics["smallest eigenvalue of a Gibbs kernel"]
    assert (value, reference, within) == (-2e-13, 0, 1e-10)
    mean, sem = m.mean_and_sem(step.groups)
    assert run.metrics["CD-1 step along the gradient, 40 groups"] == (
        mean,
        sem,
        ("eq. (2), summed", 19.0),
        m.tolerance(sem, 40),
    )
    assert "not enough" in run.said[-1]


def planted_bars(run):
    """Results whose machines differ: the better, the later the method stands, and the more sweeps it had."""
    return {
        (name, sweeps): m.Result(
            0.1 * i if i < 4 else 0.01, pixels(2, -2.15 + 0.3 * i + 0.1 * j, -1.85 + 0.3 * i + 0.1 * j), 1.0 + i
        )
        for j, sweeps in enumerate(m.budgets(run.config))
        for i, name in enumerate(m.METHODS)
    }


def planted_scores(run):
    jobs = [(name, n) for name in m.METHODS for n in {m.updates_for(m.METHODS[name], 20), 20}]
    return {
        (name, n): m.OnDigits(0.1 if name == "PCD" else 0.3, torch.tensor([-n - 1.0, -n + 1.0]), torch.tensor([0.5, 0.4]))
        for name, n in jobs
    }


def test_section_methods_compares_with_the_best_possible_the_baseline_and_the_exact_log_z(monkeypatch):
    run, x, check = Notes(), m.bars_and_stripes(), m.AISCheck(50.0, 0.01, 100, 50.01)
    asked, digits = [], planted_digits(None)
    monkeypatch.setattr(m, "binary_digits", lambda _: digits)
    monkeypatch.setattr(m, "trained_on_bars", planted_bars)
    monkeypatch.setattr(m, "trained_on_digits", planted_scores)
    monkeypatch.setattr(m, "check_ais", lambda *args: asked.append(args) or check)
    m.section_methods(run)
    sweeps = m.budgets(run.config)[-1]
    for name in m.METHODS:
        value, _, (_, reference), within = run.metrics[f"bars, {name}: log likelihood (nats)"]
        assert value == pytest.approx(m.exact_log_likelihood(planted_bars(run)[name, sweeps].rbm, x).mean().item())
        assert (reference, within) == (pytest.approx(-math.log(30)), None)
        value, sem, (_, reference), within = run.metrics[f"digits, {name}, 20 updates: nats"]
        assert (value, sem, within) == (-20, 1, None)
        assert reference == pytest.approx(m.exact_independent_log_likelihood(digits[0], digits[2]))
        assert run.metrics[f"digits, {name}, 20 updates: AIS share"].value == pytest.approx(0.4)
    assert run.metrics["8 hidden units: log Z by AIS"] == (50.0, 0.01, ("exact", 50.01), m.tolerance(0.01, 100))
    assert (len(asked[0][0]), *asked[0][1:]) == (110, 8, 20, 100, 30)
    assert "18.00 nats apart" in run.titles["likelihoods"][1]
    assert " 0.00 nats apart" in " " + run.titles["likelihoods"][2].replace("\n", " ")
    assert run.titles["samples"][1].startswith("CD-1")
    assert run.said[0].startswith("bars: tempering (as good: fast PCD) comes nearest")


def test_a_fall_from_the_best_of_many_marks_is_clear_beyond_three_standard_errors():
    noise = torch.tensor([-1.0, 1.0, -1.0, 1.0]) / math.sqrt(4 / 3) * 2  # a standard deviation of 2, a standard error of 1
    assert m.clearly_falls(noise - 3.1)
    assert not m.clearly_falls(noise - 2.9)
    assert not m.clearly_falls(noise + 3.1)
    assert not m.clearly_falls(torch.tensor([-9.0]))  # one machine shows no spread


def test_section_misleading_says_what_happened_since_the_peak(monkeypatch):
    run, x = Notes(n_seeds=2), m.bars_and_stripes()
    for errors, nats, ending in (
        ([3.0, 2.0, 1.0], [-9.0, -4.0, -6.0], "is misled"),
        ([3.0, 1.0, 2.0], [-9.0, -4.0, -6.0], "nobody"),
    ):
        both = [torch.tensor(row).unsqueeze(1).expand(3, 2) for row in (nats, errors)]
        asked = []
        monkeypatch.setattr(
            m, "watch_cd_1", lambda *args, found=both, asked=asked: asked.append(args) or m.Watched([1, 2, 3], *found, 1)
        )
        run = Notes(n_seeds=2)
        m.section_misleading(run)
        assert torch.equal(asked[0][0], x)
        assert asked[0][1:] == (run.config.n_hidden, 2, run.config.n_sweeps)
        assert run.metrics["likelihood (nats) at its peak"].value == -4
        assert run.metrics["likelihood (nats): change since"].value == -2
        assert run.metrics["reconstruction (pixels): change since"].value == errors[2] - errors[1]
        assert ending in run.said[-1]
        assert ("does not clearly" in run.titles["reconstruction"][0]) == (ending == "nobody")


def test_section_chains_holds_lag_zero_only_where_nothing_learns_and_compares_with_the_frozen_end(monkeypatch):
    run, x, asked = Notes(n_seeds=2), m.bars_and_stripes(), []
    lag = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])
    learning = {
        rate: m.Learning(
            lag * (1 + rate), torch.tensor([-5.0, -4.0]) - rate, torch.tensor([4.0, 6.0]), torch.tensor([1.0, 2.0]) + rate
        )
        for rate in m.LEARNING_RATES
    }
    mixing = m.Mixing(*torch.ones(5, 2), torch.zeros(3, 9), 0.0)
    results = planted_bars(run)
    monkeypatch.setattr(m, "trained_on_bars", lambda _: results)
    monkeypatch.setattr(m, "measure_learning", lambda *args: asked.append(args) or learning)
    monkeypatch.setattr(
        m, "measure_mixing", lambda *args: asked.append(args) or mixing._replace(r_hat=torch.full((2,), len(asked) / 2))
    )
    m.section_chains(run)
    sweeps = m.budgets(run.config)
    early, trained = results["PCD", sweeps[0]].rbm, results["tempering", sweeps[-1]].rbm
    assert [args[0] for args in asked] == [trained, early, trained, trained, trained]
    assert (torch.equal(asked[0][1], x), asked[0][2]) == (True, run.config.n_lag_updates)
    assert all(torch.equal(asked[i][1], x.expand(2, -1, -1)) for i in (1, 3, 4))
    assert torch.equal(asked[2][1], x[3].expand(2, 30, -1))  # all at one bar
    assert [args[4:] for args in asked[1:]] == [(), (), (), (5,)]
    mean, sem = m.mean_and_sem(lag.flatten())
    assert run.metrics["rate 0: lag (nats)"] == (mean, sem, ("exact samples", 0), m.tolerance(sem, 6))
    assert run.metrics["rate 0.1: lag (nats)"] == (pytest.approx(4.4), pytest.approx(2.2), ("no lag", 0), None)
    assert run.metrics["rate 0.1: likelihood at the end (nats)"].value == pytest.approx(-4.6)
    assert run.metrics["rate 0.1: likelihood at the end (nats)"].against == ("before", -4.5)
    assert run.metrics["rate 0.1: switches in 1,000"].against == ("end machine, frozen", pytest.approx(1.6))
    assert "trained, one start; trained, all starts; trained, tempering" in run.said[-1]
    assert "loses 0.30 nats" in run.said[1]


def test_section_convergence_shows_every_training_beside_the_best_possible(monkeypatch):
    run, x = Notes(), m.bars_and_stripes()
    monkeypatch.setattr(m, "trained_on_bars", planted_bars)
    monkeypatch.setattr(m, "trained_on_digits", planted_scores)
    m.section_convergence(run)
    for (name, sweeps), result in planted_bars(run).items():
        value, _, (_, reference), within = run.metrics[f"{name}, {sweeps:,} sweeps: likelihood (nats)"]
        assert value == pytest.approx(m.exact_log_likelihood(result.rbm, x).mean().item())
        assert (reference, within) == (pytest.approx(-math.log(30)), None)
    assert run.metrics["PCD, 216 sweeps: training (s)"].value == pytest.approx(3)
    at_an_end = run.metrics["learning rates chosen at an end of the grid"].value
    assert at_an_end == 4 + 1  # tempering's on bars, planted 0.01, at four budgets; PCD's on digits, 0.1
    assert run.said[0].startswith("with 8 sweeps choose tempering")
    assert run.said[-1].startswith("with digits, test (AIS) choose CD-10, -2.00")  # at equal sweeps


# Settings


def test_what_makes_no_sense_is_refused_by_name():
    for flag, value in (("n_hidden", 17), ("n_draws", 10)):
        with pytest.raises(SystemExit, match="--" + flag.replace("_", "-")):
            m.Config(**{flag: value})


@pytest.mark.parametrize("train", [m.trained_on_bars, m.trained_on_digits], ids=lambda train: train.__name__)
def test_a_training_has_a_random_stream_of_its_own_from_the_runs_seed(train, monkeypatch):
    monkeypatch.setattr(m, "tune_and_train", lambda *args: m.Result(torch.rand(1).item(), None, 0.0))
    monkeypatch.setattr(m, "log_likelihood_by_ais", lambda *args: (torch.zeros(2), torch.ones(2)))

    def rates(seed):
        run = Notes()
        run.seed = seed
        return [result.rate for result in train(run).values()]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = rates(0)
    assert torch.equal(torch.rand(3), expected)
    assert rates(0) == first
    assert rates(1) != first


def test_the_grids_of_rates_are_wide():
    assert (m.RATES[0], m.RATES[-1]) == (0.01, 10)
    assert (m.DIGITS_RATES[0], m.DIGITS_RATES[-1]) == (0.1, 2)


@pytest.mark.parametrize("section", m.SECTIONS)
def test_the_largest_seed_and_single_machines_run(section, tmp_path):
    names = "n-machines", "n-seeds", "n-tuning", "n-hidden", "n-sweeps", "digits-hidden", "digits-sweeps", "n-lag-updates"
    least = [f"--{name}=1" for name in names] + ["--n-draws=11"]
    m.main(["--smoke", "--section", section, "--seed", str(2**32 - 1), "--out", str(tmp_path), *least])
