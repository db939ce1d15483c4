"""Module 05: every sign, factor and temperature against enumeration, autograd or what a theorem says."""

import itertools
import math

import pytest
import torch
from conftest import load

m = load("05")


def random_rbms(n, d, n_hidden, scale=1.0):
    return m.RBM(*(scale * torch.randn(shape).double() for shape in ((n, d, n_hidden), (n, 1, d), (n, 1, n_hidden))))


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
    p_h_given_v = (-table).softmax(2)
    torch.testing.assert_close(rbm.mean_energy(v), (p_h_given_v * table).sum(2))
    torch.testing.assert_close(m.exact_mean_energy(rbm), (probabilities(rbm) * table).sum((1, 2)))
    x = states(4)[[3, 7, 7]]
    p = probabilities(rbm).sum(2)
    torch.testing.assert_close(m.exact_log_likelihood(rbm, x), p[:, [3, 7, 7]].log().mean(1))


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


def test_the_spectrum_is_the_kernels_and_not_negative():
    rbm = random_rbms(2, 4, 3)
    p = (-rbm.free_energy(m.all_states(4).double().expand(2, -1, -1))).softmax(1)
    kernel = m.gibbs_kernels(rbm)
    spectrum = m.reversible_spectrum(kernel, p)
    plain = torch.linalg.eigvals(kernel).real.sort(1, descending=True).values
    torch.testing.assert_close(spectrum, plain, atol=1e-7, rtol=0)
    assert spectrum[:, 0] == pytest.approx(1)
    assert spectrum.min() > -1e-12


def random_data(n, d):
    return (4 * torch.rand(n, 2**d).double()).softmax(1)


def test_cd_bias_starts_as_autograds_gradient_and_moves_by_the_kernel():
    rbm, q = random_rbms(2, 4, 3), random_data(2, 4)
    v = m.all_states(4).double().expand(2, -1, -1)
    path = m.cd_bias(rbm, q, 3)
    leaves = m.RBM(*(parameter.clone().requires_grad_() for parameter in rbm))
    log_p = (-leaves.free_energy(v)).log_softmax(1)
    gradients = torch.autograd.grad((q * log_p).sum(), leaves)
    torch.testing.assert_close(path[0], torch.cat([g.flatten(1) for g in gradients], 1))
    p, kernel = log_p.exp().detach(), m.gibbs_kernels(rbm)
    r = (q.unsqueeze(1) @ torch.linalg.matrix_power(kernel, 3)).squeeze(1) - p
    torch.testing.assert_close(path[3], (r.unsqueeze(1) @ m.statistics(rbm, v)).squeeze(1))


def test_the_bound_of_eq_3_is_computed_as_stated_and_holds():
    rbm, q = random_rbms(3, 4, 3, 2.0), random_data(3, 4)
    v = m.all_states(4).double().expand(3, -1, -1)
    path, spectrum = m.cd_bias(rbm, q, 20), m.reversible_spectrum(m.gibbs_kernels(rbm), m.visible_states(rbm)[1])
    bound = m.theory_bias_bound(rbm, q, spectrum[:, 1], 20)
    p, phi = (-rbm.free_energy(v)).softmax(1), m.statistics(rbm, v)
    chi = ((q - p) ** 2 / p).sum(1).sqrt()
    variance = torch.stack([torch.cov(phi[s].T, correction=0, aweights=p[s]).trace() for s in range(3)])
    torch.testing.assert_close(bound[5], spectrum[:, 1] ** 5 * chi * variance.sqrt())
    assert (path.norm(dim=2) <= bound * (1 + 1e-9)).all()


def test_the_bias_decays_at_the_second_eigenvalue():
    bias = m.measure_bias(random_rbms(3, 4, 3), random_data(3, 4), 60)
    assert bias.decay == pytest.approx(bias.second, rel=1e-3)


# 2. The methods


def test_phase_with_signed_weights_is_the_likelihood_gradient():
    rbm, q = random_rbms(2, 4, 3), random_data(1, 4)[0]
    v = m.all_states(4).double().expand(2, -1, -1)
    leaves = m.RBM(*(parameter.clone().requires_grad_() for parameter in rbm))
    log_p = (-leaves.free_energy(v)).log_softmax(1)
    expected = torch.autograd.grad((q * log_p).sum(), leaves)
    got = m.phase(rbm, v, (q - log_p.exp().detach()).unsqueeze(2))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


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
    rbm, n, betas = m.RBM(*(p.float() for p in random_rbms(1, 3, 2, 2.0))), 40_000, torch.tensor([1.0, 0.5, 0.0])
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
        trainer = m.Trainer(m.RBM(*(p.float() for p in random_rbms(2, 4, 3))), m.METHODS[name], 5)
        chains = trainer.chains
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
    trainer = m.Trainer(m.RBM(*(p.float() for p in random_rbms(1, 4, 3))), method, 500)
    trainer.rbm.b.fill_(20.0)  # at beta = 1 all units are on, at beta = 0 half of them
    trainer.rbm.W.zero_()
    v = trainer.negatives(None)
    assert v.shape == (1, 500, 4)
    assert v.mean() > 0.99
    assert trainer.chains[:, -500:].mean() < 0.65
    assert trainer.betas.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_a_step_climbs_by_the_rate_and_fast_weights_forget_a_twentieth():
    trainer = m.Trainer(m.RBM(*(p.float() for p in random_rbms(2, 4, 3))), m.METHODS["fast PCD"], 6)
    for fast in trainer.fast:
        fast.normal_()
    old, old_fast = ([p.clone() for p in group] for group in (trainer.rbm, trainer.fast))
    x, rates = m.bernoulli(torch.full((2, 6, 4), 0.5)), torch.tensor([0.1, 0.0]).view(2, 1, 1)
    trainer.step(x, rates)
    both = torch.cat([x, trainer.chains], 1)
    weight = torch.tensor([1 / 6] * 6 + [-1 / 6] * 6).unsqueeze(1)
    gradient = m.phase(m.RBM(*old), both, weight)
    for new, before, fast, fast_before, g in zip(trainer.rbm, old, trainer.fast, old_fast, gradient, strict=True):
        torch.testing.assert_close(new, before + rates * g)
        torch.testing.assert_close(fast, 0.95 * fast_before + 0.3 * g)


class Recorder:
    """Stands in for a Trainer: notes the rates, and writes them into the machines' weights."""

    def __init__(self, rbm, method=None, n_chains=3):
        self.rbm, self.n, self.rates = rbm, n_chains, []

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


def test_a_method_is_tuned_on_other_machines_and_pays_for_its_sweeps(monkeypatch):
    made = []
    monkeypatch.setattr(m, "Trainer", lambda *args: made.append(Recorder(*args)) or made[-1])

    def score(rbm):
        value = -(rbm.W.mean((1, 2)) * 2 - 0.3).abs()  # the last of two updates is at half of the rate
        return torch.where(rbm.W.mean((1, 2)) > 0.4, torch.nan, value)

    result = m.tune_and_train(torch.ones(3, 4), 3, 2, m.METHODS["CD-10"], m.updates_for(m.METHODS["CD-10"], 20), 2, 5, score)
    assert result.rate == 0.3
    assert len(result.rbm.W) == 5
    assert [len(trainer.rates) for trainer in made] == [2, 2]
    assert made[0].rates[0] == pytest.approx([rate for rate in m.RATES for _ in range(2)])
    assert made[1].rates[0] == pytest.approx([0.3] * 5)


def test_pcd_learns_a_small_distribution():
    x = torch.tensor([[0.0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0]])
    rbm = m.fresh_rbms(x, 4, 4)
    m.climb(m.Trainer(rbm, m.METHODS["PCD"], 3), x, torch.full((4,), 0.3), 1500)
    assert m.exact_log_likelihood(rbm, x).mean() > -math.log(3) - 0.25


def test_budgets_are_thirds():
    assert m.budgets(m.Config(n_sweeps=270)) == [10, 30, 90, 270]


def test_ais_finds_log_z_of_each_machine():
    rbm = m.RBM(*(p.float() for p in random_rbms(3, 6, 4)))
    log_z, sem, ess = m.log_z_from_weights(m.ais(rbm, torch.randn(6), 2000, 200))
    assert ((log_z - m.exact_log_z(rbm)).abs() < 4 * sem + 1e-3).all()
    assert sem.max() < 0.05
    assert ess.min() > 500


def test_ais_without_steps_weighs_the_base_alone():
    rbm, base_b = m.RBM(*(0 * p.float() for p in random_rbms(1, 3, 2))), torch.tensor([0.3, -1.0, 2.0])
    exact = math.log(2**2 * 2**3)
    rates = m.log_z_from_weights(m.ais(m.RBM(rbm.W, base_b.view(1, 1, 3), rbm.c), base_b, 10, 3))[0]
    assert rates.item() == pytest.approx(m.exact_log_z(m.RBM(rbm.W, base_b.view(1, 1, 3), rbm.c)).item(), abs=1e-4)
    assert m.exact_log_z(rbm).item() == pytest.approx(exact, abs=1e-4)


def test_digits_are_binary_and_split_three_ways():
    parts = m.binary_digits("cpu")
    assert sum(map(len, parts)) == 1797
    assert [len(part) for part in parts] == [1221, 216, 360]
    assert torch.cat(parts).unique().tolist() == [0, 1]


# 3. What misleads


def test_reconstruction_error_is_in_pixels():
    x = m.bars_and_stripes()
    blind = m.RBM(torch.zeros(1, 16, 2), torch.zeros(1, 1, 16), torch.zeros(1, 1, 2))
    assert m.reconstruction_error(blind, x).item() == pytest.approx(16 / 4)
    sure = m.RBM(100 * torch.eye(16).unsqueeze(0), torch.full((1, 1, 16), -50.0), torch.full((1, 1, 16), -50.0))
    assert m.reconstruction_error(sure, x).item() == pytest.approx(0, abs=1e-6)


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


def test_switches_count_each_new_pattern_once():
    x = torch.eye(3)
    path = iter([x[[0]], 1 - x[[0]], x[[0]], x[[1]], x[[1]], x[[2]], 1 - x[[2]]])
    original, m.temper = m.temper, lambda *_: next(path).unsqueeze(0)
    barness, m.barness = m.barness, lambda v: v[..., 0]
    try:
        draws, switches = m.diagnose(None, x[None, [0]], x, 7, 1)
    finally:
        m.temper, m.barness = original, barness
    assert draws.shape == (1, 1, 7)
    assert switches.item() == pytest.approx(2 / 7)


def test_chains_lag_above_a_machine_that_learns_and_not_above_a_frozen_one():
    x = m.bars_and_stripes(2).repeat(20, 1)
    rbm = m.RBM(*(p.float() for p in random_rbms(40, 4, 4, 3.0)))
    lag, switches = m.lag_while_learning(rbm, x, torch.tensor([0.0] * 20 + [2.0] * 20), 200)
    assert abs(lag[:20].mean()) < 0.06
    assert lag[20:].mean() > 0.15
    assert ((switches >= 0) & (switches <= 1)).all()


def test_the_chains_whose_lag_is_measured_begin_as_exact_samples():
    rbm = m.RBM(*(p.float() for p in random_rbms(60, 8, 6, 4.0)))
    lag, _ = m.lag_while_learning(rbm, m.all_states(8), torch.zeros(60), 1)
    assert abs(lag.mean()) < 0.2  # from coins, one sweep leaves it far above


def test_chains_that_never_move_are_called_stuck_and_do_not_end_a_run():
    alike, apart = torch.ones(3, 8), torch.arange(3.0).view(3, 1).expand(3, 8)
    assert m.r_hat_or_stuck(alike) == 1
    assert m.r_hat_or_stuck(apart) == math.inf
    moving = torch.randn(3, 8)
    assert m.r_hat_or_stuck(moving) == m.split_r_hat(moving)


# 5. Convergence


def test_the_choice_names_the_best_and_all_that_are_as_good():
    best = torch.tensor([1.0, 1.1, 0.9, 1.0])
    candidates = {"worse": best - 1, "best": best, "close": best - 0.05}
    assert m.best_and_ties(candidates) == ("best", ["close"])
    sem = best.double().std() / 2
    assert m.best_and_ties({"a": best, "b": best - 2.9 * sem})[1] == []  # 2.9 > 2 sqrt(2)
    assert m.best_and_ties({"a": best, "b": best - 2.7 * sem})[1] == ["b"]


# Settings


def test_what_makes_no_sense_is_refused_by_name():
    for flag, value in (("n_hidden", 17), ("n_draws", 3)):
        with pytest.raises(SystemExit, match="--" + flag.replace("_", "-")):
            m.Config(**{flag: value})


def test_no_rate_is_chosen_where_ais_trusts_none():
    def score(rbm):
        return torch.full((len(rbm.W),), torch.nan)

    with pytest.raises(SystemExit, match="--n-ais-temps"):
        m.tune_and_train(m.bars_and_stripes(), 30, 2, m.METHODS["PCD"], 1, 1, 1, score)


@pytest.mark.parametrize("section", m.SECTIONS)
def test_the_largest_seed_and_single_machines_run(section, tmp_path):
    names = "n-machines", "n-seeds", "n-tuning", "n-hidden", "n-sweeps", "digits-hidden", "digits-sweeps", "n-lag-updates"
    least = [f"--{name}=1" for name in names] + ["--n-draws=4"]
    m.main(["--smoke", "--section", section, "--seed", str(2**32 - 1), "--out", str(tmp_path), *least])
