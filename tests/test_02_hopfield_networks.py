"""Module 02 against enumeration, plain loops, finite differences and closed forms: every sign, factor and temperature."""

import itertools
import json
import math
from dataclasses import replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import load
from scipy.optimize import linprog, minimize
from scipy.special import erf
from scipy.stats import norm, t

m = load("02")


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


def plain_energy(W, s):
    """Eq. (1) written out."""
    return -0.5 * sum(W[i, j] * s[i] * s[j] for i in range(len(s)) for j in range(len(s)))


def plain_recall(W, cues):
    """Eq. (2) as a plain loop, units in order."""
    cues = cues.clone()
    for s in cues:
        before = None
        while before is None or not torch.equal(before, s):
            before = s.clone()
            for i in range(len(s)):
                field = W[i] @ s
                if field != 0:
                    s[i] = field.sign()
    return cues


def boltzmann(W, temperature):
    """All states and their exact probabilities."""
    states = m.all_states(len(W))
    weights = torch.tensor([-plain_energy(W, s) / temperature for s in states]).softmax(0)
    return states, weights


# Section 1


def test_energy_is_the_double_sum_over_pairs():
    W, s = m.hebb(m.random_patterns(3, 7)), m.random_patterns(4, 7)
    torch.testing.assert_close(m.energy(W, s), torch.stack([plain_energy(W, each) for each in s]))


def test_one_stored_pattern_has_energy_minus_half_of_n_minus_one():
    x = m.random_patterns(1, 20)
    assert m.energy(m.hebb(x), x).item() == pytest.approx(-0.5 * (20 - 1))


def test_hebb_is_the_mean_of_outer_products_without_diagonal_for_one_net_and_for_many():
    x = m.random_patterns(2, 3, 5)
    for one, W in zip(x, m.hebb(x), strict=True):
        expected = sum(torch.outer(pattern, pattern) for pattern in one) / 5
        torch.testing.assert_close(W, expected.fill_diagonal_(0))
        torch.testing.assert_close(m.agreements(one), 5 * expected)


def test_flipping_a_unit_costs_twice_its_state_times_its_field():
    W, s = m.hebb(m.random_patterns(3, 8)), m.random_patterns(1, 8)
    for i in range(8):
        other = s.clone()
        other[0, i] *= -1
        change = 2 * s[0, i] * (W @ s[0])[i]
        torch.testing.assert_close((m.energy(W, other) - m.energy(W, s))[0], change)


def test_asynchronous_path_follows_the_plain_rule_one_unit_at_a_time():
    W, s, order = m.agreements(m.random_patterns(2, 3, 9)), m.random_patterns(2, 4, 9), [4, 0, 8, 4, 2]
    path = m.asynchronous_path(W, s, order)
    for step, unit in enumerate(order):
        for net in range(2):
            expected = path[step, net].clone()
            field = expected @ W[net][:, unit]
            expected[:, unit] = torch.where(field == 0, expected[:, unit], field.sign())
            assert torch.equal(path[step + 1, net], expected)


def test_a_tie_leaves_the_unit_as_it_is_in_all_dynamics():
    W = torch.zeros(3, 3)
    s = torch.tensor([[1.0, -1.0, 1.0]])
    assert torch.equal(m.asynchronous_path(W, s, [0, 1, 2])[-1], s)
    assert torch.equal(m.synchronous_path(W, s, 2)[-1], s)
    assert torch.equal(m.recall(W, s), s)
    assert m.is_minimum(W, s).all()


def test_two_units_that_repel_swap_for_ever_when_updated_together_and_settle_one_by_one():
    W = torch.tensor([[0.0, -1.0], [-1.0, 0.0]])
    s = torch.tensor([[1.0, 1.0]])
    together = m.synchronous_path(W, s, 4)[:, 0]
    assert together.tolist() == [[1, 1], [-1, -1], [1, 1], [-1, -1], [1, 1]]
    assert m.recall(W, s).tolist() == [[-1, 1]]


def test_measured_descent_counts_what_couplings_that_have_no_energy_do():
    """The mistakes: cycles of any length counted as two-cycles, a rise that is not seen, shares over the wrong axis."""
    turning, repelling = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]), torch.tensor([[[0.0, -1.0], [-1.0, 0.0]]])
    found = m.measure_descent(turning, 40, n_sweeps=4)
    assert (found.n_longer, found.n_updates, found.at_rest) == (40, 40 * 8, 0)  # cycles of four, and no rest
    found = m.measure_descent(torch.cat([repelling, -repelling]), 40)
    assert found.rises == found.n_pair_rises == found.n_longer == 0
    assert found.at_rest == 1
    assert ((found.cycling > 0.2) & (found.cycling < 0.8)).all()  # equal units swap, or unequal ones: half of the starts
    ramp = torch.tensor(
        [[[0.0, 3.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    )  # not symmetric: unit 0 follows 1, and 1 follows 0
    assert m.measure_descent(ramp, 5).rises == 0
    odd = torch.tensor([[[0.0, -3.0], [0.5, 0.0]]])  # unit 1 flees from unit 0, which follows it: E rises
    assert m.measure_descent(odd, 40).rises > 0


def test_section_descent_claims_the_theorems_only():
    run = Notes(n_runs=4)
    m.section_descent(run)
    for kind, what in itertools.product(
        ("Hebb", "random"), ("one by one: rises of E", "at once: longer cycles", "at once: rises of L")
    ):
        assert run.metrics[f"{kind}, {what}"][::3] == (0, 0)
    assert run.metrics["Hebb, one by one: share of runs at rest"].within == 0
    assert run.metrics["random, at once: share of two-cycles"].within is None
    assert f"{run.metrics['random, at once: share of two-cycles'].value:.1%} with random" in run.said[0]


# Section 2


@pytest.mark.parametrize(("n", "p", "block"), [(40, 3, 100), (97, 30, 10), (60, 12, 7), (128, 40, 128), (50, 8, 1)])
def test_recall_ends_exactly_where_the_plain_loop_ends(n, p, block):
    W, cues = m.agreements(m.random_patterns(p, n)), m.random_patterns(30, n)  # random starts: many flips, ties at odd n
    ends = m.recall(W, cues, block=block)
    assert torch.equal(ends, plain_recall(W, cues))
    assert m.is_minimum(W, ends).all()


def test_recall_of_several_nets_is_the_recall_of_each():
    W, cues = m.agreements(m.random_patterns(3, 9, 40)), m.random_patterns(3, 8, 40)
    together = m.recall(W, cues, block=13)
    for net in range(3):
        assert torch.equal(together[net], plain_recall(W[net], cues[net]))


def test_recall_leaves_its_arguments_alone_and_stops_where_couplings_are_not_symmetric():
    W = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # 0 drives 1 towards itself, 1 drives 0 away: no rest
    cues = torch.tensor([[1.0, 1.0]])
    field_of_1 = (cues @ W)[0, 1]
    assert field_of_1 == 1  # W[j, i] acts from j on i
    m.recall(W, cues, max_flips=9)
    assert cues.tolist() == [[1, 1]]


def test_pseudo_inverse_fixes_correlated_patterns_that_hebb_cannot():
    x = m.one_of_each(1)[0]
    W = m.pseudo_inverse(x)
    projector = x.T @ torch.linalg.solve(x @ x.T, x)
    torch.testing.assert_close(W, projector - projector.diag().diag(), atol=2e-5, rtol=0)
    torch.testing.assert_close(x * (x @ W), 1 - projector.diag().expand(10, 64), atol=1e-4, rtol=0)
    assert (m.recall(W, x) == x).all()
    assert (m.recall(m.hebb(x), x) == x).all(1).sum() <= 2


def test_pseudo_inverse_has_nothing_left_when_there_are_as_many_patterns_as_units():
    assert not m.pseudo_inverse(m.random_patterns(200, 30)).any()


def test_cues_differ_from_the_pattern_exactly_where_they_should():
    x = m.random_patterns(5, 3, 40)
    assert ((m.flipped(x, 0.25) != x).sum(-1) == 10).all()
    assert (m.occluded(x)[..., :20] == -1).all()
    assert (m.occluded(x, 0.0)[..., :20] == 0).all()
    assert torch.equal(m.occluded(x)[..., 20:], x[..., 20:])


def test_letters_and_digits_are_pictures_of_ink():
    letters = m.read_letters(m.LETTERS)
    assert letters.shape == (4, 100)
    assert letters[0, :10].tolist() == [1] * 8 + [-1] * 2  # the top of P
    assert letters[3, -10:].tolist() == [-1] * 4 + [1] * 2 + [-1] * 4  # the foot of Y
    pictures, classes = m.digits()
    assert pictures.shape == (1797, 64)
    assert pictures.unique().tolist() == [-1, 1]
    assert pictures[classes == 0].mean(0).reshape(8, 8)[3:5, 3:5].mean() < -0.5  # the hole of a zero is white
    for column, ten in enumerate(m.one_of_each(3).unbind(1)):
        assert all((pictures[classes == column] == each).all(1).any() for each in ten)


def test_recalled_share_counts_overlaps_from_0_9_on():
    x = m.random_patterns(2, 3, 40)
    still = torch.zeros(2, 40, 40)  # nothing moves: the cue's own errors decide
    cues = torch.stack([m.flipped(x, 0.05), m.flipped(x, 0.05), m.flipped(x, 0.1)])
    torch.testing.assert_close(m.recalled_share(still, x, cues), torch.full((2, 3), 2 / 3))


def test_exact_mean_overlap_is_the_mean_over_all_pairs():
    states = m.all_states(6)
    assert m.exact_mean_overlap(6) == pytest.approx((states @ states.T).abs().mean().item() / 6)
    x = m.random_patterns(2, 3, 6)
    pairs = [abs(float(x[0, a] @ x[0, b])) / 6 for a, b in itertools.combinations(range(3), 2)]
    assert m.mean_overlaps(x)[0].item() == pytest.approx(np.mean(pairs))


def test_measured_basins_are_those_of_each_rule_on_its_own_patterns():
    """The mistakes: one rule's couplings for all; patterns that are fixed counted by units; the upper half seen."""
    x = m.one_of_each(2)
    found = m.measure_basins(x, n_cues=2)
    for name, rule in m.RULES.items():
        W = rule(x)
        fixed = [np.mean([torch.equal(plain_recall(W[k], one[None])[0], one) for one in x[k]]) for k in range(2)]
        assert found[name].fixed.tolist() == pytest.approx(fixed)
        half = [(plain_recall(W[k], m.occluded(x[k])) * x[k]).mean(1) >= 0.9 for k in range(2)]
        assert torch.equal(found[name].from_half, torch.stack(half).float().mean(1))
        assert found[name].recalled.shape == (10, 2, 10)
        still = (x * (x @ W) > 0).all(-1).numpy()
        assert (found[name].recalled[0][still] == 1).all()  # nothing is flipped in the first cues


def test_section_memories_holds_random_patterns_to_the_exact_overlap_and_projections_to_their_theorem(monkeypatch):
    def basins(x):
        shares = (
            {"Hebb": 0.2, "Storkey": 0.5, "pseudo-inverse": 0.9}
            if (x[0, 0] == x[1, 0]).all()
            else dict.fromkeys(m.RULES, 0.8)
        )
        return {
            rule: m.Basins(torch.tensor([0.5, 1.0]), np.full((10, 2, 10), share), torch.tensor([0.5, 0.7]))
            for rule, share in shares.items()
        }

    digits = m.random_patterns(1, 10, 64).repeat(2, 1, 1)
    monkeypatch.setattr(m, "one_of_each", lambda n: digits)
    monkeypatch.setattr(m, "measure_basins", basins)
    run = Notes()
    m.section_memories(run)
    overlap = run.metrics["random: mean overlap of two patterns"]
    assert overlap.against[1] == m.exact_mean_overlap(64)
    assert overlap.within == pytest.approx(overlap.sem * t.isf(5e-5, 1))
    assert run.metrics["digits: mean overlap of two patterns"].within is None
    assert run.metrics["digits, pseudo-inverse: share fixed"][2:] == (("theorem, P < N", 1), 0)
    assert run.metrics["digits, Hebb: share fixed"].within is None
    assert run.metrics["digits, Storkey: from 10 % flipped"].value == 0.5
    assert run.said[0].endswith("Hebb 20%, Storkey 50%, pseudo-inverse 90%")
    assert run.said[1].endswith(": Hebb; too close to half to tell: none")  # all sets alike: no error
    shares = {"random": {"a": [1.0, 1.0], "b": [1.0, 0.6], "c": [0.5, 0.5]}, "digits": {"a": [0.4, 0.5]}}
    shares["digits"] |= {"b": [0.39, 0.39], "c": [0.1, 0.11]}
    assert m.lost_on_digits(shares) == (["c"], ["a", "b"])


# Section 3


def test_critical_load_and_overlap_solve_the_published_equations():
    critical, y = m.theory_critical_load()
    assert critical == pytest.approx(0.137906, abs=1e-6)
    assert erf(y) == pytest.approx(0.967, abs=1e-3)
    for alpha in (0.05, 0.1, 0.13):
        overlap = m.theory_overlap(alpha)
        r = 1.0
        for _ in range(2000):  # the three equations in their original form, iterated
            c = math.sqrt(2 / (math.pi * alpha * r)) * math.exp(-(overlap**2) / (2 * alpha * r))
            r = 1 / (1 - c) ** 2
        assert overlap == pytest.approx(erf(overlap / math.sqrt(2 * alpha * r)), abs=1e-6)
        assert overlap > 0.967


def test_bit_error_is_exact_for_a_net_small_enough_to_enumerate():
    n, p = 4, 3
    bits = m.all_states(n * p).reshape(-1, p, n)  # every possible set of patterns
    wrong = 1 - m.keeps_sign(bits).double().mean().item()
    assert wrong == pytest.approx(m.exact_bit_error(n, p), abs=1e-12)


def test_bit_error_tends_to_the_gaussian_tail():
    for alpha in (0.105, 0.138, 0.185):
        tail = m.theory_bit_error(alpha)
        assert tail == pytest.approx(norm.cdf(-(alpha**-0.5)))  # noise of variance alpha against a signal of 1
        assert m.exact_bit_error(30_000, round(30_000 * alpha)) == pytest.approx(tail, rel=5e-3)


def test_keeps_sign_is_one_step_of_the_net_with_ties_staying():
    x = m.random_patterns(6, 5, 15)
    field = x @ m.agreements(x)
    assert (field == 0).any()
    assert torch.equal(m.keeps_sign(x), x * field >= 0)


def test_overlaps_at_rest_are_those_of_plain_nets():
    torch.manual_seed(3)
    overlaps = m.overlaps_at_rest(60, 12, 3, 5)
    torch.manual_seed(3)
    for x, row in zip(m.random_patterns(3, 12, 60), overlaps, strict=True):
        torch.testing.assert_close(row, (plain_recall(m.agreements(x), x[:5]) * x[:5]).mean(1))


def test_the_load_at_half_is_found_where_the_shares_are_a_probit_and_where_they_say_nothing():
    loads = np.linspace(0.1, 0.2, 5)
    assert m.load_at_half(loads, norm.cdf(-40 * (loads - 0.163))) == pytest.approx(0.163)
    assert m.load_at_half(loads, np.ones(5)) == pytest.approx(0, abs=0.15)  # all kept: no crash


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=(9, 2))
    whole, sem = m.jackknife(lambda rows: rows.mean(0), values)
    assert whole == pytest.approx(values.mean(0))
    assert sem == pytest.approx(values.std(0, ddof=1) / 3)
    assert np.isnan(m.jackknife(lambda rows: rows.mean(0), values[:1])[1]).all()


@pytest.mark.parametrize("power", [0.5, 2 / 3])
def test_a_drift_with_a_known_exponent_and_limit_is_found_again(power):
    """The mistakes: the width's law for the middle's, an exponent of the wrong sign, a fit through the wrong sizes."""
    sizes, repeats = [250, 500, 1000, 2000], 3
    halves = 0.1379 + 2.0 * np.array(sizes) ** -power
    loads = halves[:, None] + np.linspace(-0.02, 0.02, 5)
    shares = norm.cdf(-60 * (loads - halves[:, None]))[None].repeat(repeats, 0)
    found = m.find_critical_load(m.Retrieval(sizes, loads, shares, {}))
    assert found.halves[0] == pytest.approx(halves)
    assert found.exponent == pytest.approx([power, 0], abs=1e-6)
    right, wrong = (found.limit, found.by_root) if power == 2 / 3 else (found.by_root, found.limit)
    assert right == pytest.approx([0.1379, 0], abs=1e-6)
    assert abs(wrong[0] - 0.1379) > 0.005
    assert (found.without_smallest[0] == pytest.approx(0.1379, abs=1e-6)) == (power == 2 / 3)
    assert math.isnan(m.drift_exponent([1, 2, 3, 1]))


def test_measured_retrieval_holds_shares_of_nets_that_keep_their_patterns(monkeypatch):
    """The mistakes: a repeat that mixes sizes, an overlap below 0.7 taken for a pattern that is kept."""
    asked = {}

    def overlaps(n, p, nets, starts, device):
        asked.setdefault(n, nets)
        return torch.full((nets, starts), p / n) + 0.55

    monkeypatch.setattr(m, "overlaps_at_rest", overlaps)
    found = m.measure_retrieval(320, 2, "cpu")
    assert asked == {40: 128, 80: 32, 160: 8, 320: 2}
    assert found.shares.shape == (2, 4, 5)
    assert found.sizes == [40, 80, 160, 320]
    assert np.array_equal(found.shares[0], (found.loads + 0.55 > 0.7).astype(float))
    assert (np.diff(found.loads) > 0).all()
    monkeypatch.setattr(m, "overlaps_at_rest", lambda *_: torch.tensor([[0.9, 0.8, 0.2]] * 2))
    assert m.measure_retrieval(320, 2, "cpu").kept[0.1].numpy() == pytest.approx([0.85, 0.85])


def test_section_capacity_allows_for_both_errors_and_compares_with_exact_tails(monkeypatch):
    """The mistakes: a share of the value as the tolerance; the theory's own error in it; the wrong size's tail."""
    found = m.Retrieval([40, 80, 160, 320], np.zeros((4, 5)), np.zeros((3, 4, 5)), {0.1: torch.tensor([0.9, 0.8, 0.7])})
    pair = np.array([0.14, 0.001])
    critical = m.Critical(
        np.array([[0.2, 0.18, 0.17, 0.16], [0.01] * 4]), pair, pair + [0.002, 0], pair, np.array([0.6, 0.1])
    )
    monkeypatch.setattr(m, "measure_retrieval", lambda *_: found)
    monkeypatch.setattr(m, "find_critical_load", lambda _: critical)
    run = Notes(capacity_nets=3)
    m.section_capacity(run)
    entry = run.metrics["alpha_c: line in N^(-2/3)"]
    law = abs(m.limit_of(critical.halves[0], found.sizes, 2 / 3 - 0.1) - 0.14)
    assert entry.within == pytest.approx(0.001 * t.isf(5e-5, 2) + law)
    assert entry.against[1] == m.theory_critical_load()[0]
    kept = run.metrics["load 0.1: overlap of patterns retained"]
    assert kept.against[1] == m.theory_overlap(0.1)
    assert kept.within == pytest.approx(0.1 / 3**0.5 * t.isf(5e-5, 2))
    for alpha in (0.105, 0.138, 0.185):
        entry = run.metrics[f"load {alpha}: units wrong after one step"]
        assert entry.against[1] == m.exact_bit_error(320, round(alpha * 320))
        assert entry.within == pytest.approx(entry.sem * t.isf(5e-5, 5))
        assert abs(entry.value - entry.against[1]) <= entry.within
    share = run.metrics["no error, P = 1 N/(2 ln N): share"]
    assert share.against[1] == pytest.approx((1 - m.exact_bit_error(320, 28)) ** 320)
    assert share.value > share.against[1] - 4 * share.sem
    assert "up to 0.160 N by 320 units, 0.1400 +- 0.1029 N in the limit: allows the 0.138 of" in run.said[-1]


def test_the_limit_tells_theory_from_the_estimate_of_1982_where_its_error_does(monkeypatch):
    """The mistakes: chance without the law, or the law without chance; a tolerance that would take 0.15 for 0.138."""
    sizes, power = np.array([250.0, 500, 1000, 2000]), -2 / 3
    halves, shares = 0.1415 + 2.4 * sizes**power, np.zeros((12, 4, 5))

    def said(sem, exponent_sem):
        pair = np.array([0.1415, sem])
        critical = m.Critical(np.stack([halves, halves * 0]), pair, pair, pair, np.array([0.66, exponent_sem]))
        return m.say_limit(m.Retrieval(list(sizes), None, shares, {}), critical)

    assert said(0.0005, 0.05).endswith("allows the 0.138 of theory, excludes the 0.15 of 1982")
    assert said(0.0009, 0.1).count("allows") == 2
    assert said(0.0001, 0.01).count("excludes") == 2
    assert "allows the 0.138" in said(0.0008, 0.001)
    assert "too few" in said(math.nan, 0.05)


# Section 4


def test_minima_are_the_states_from_which_no_single_flip_descends():
    n = 10
    W, states = m.agreements(m.random_patterns(3, n)), m.all_states(n)
    assert len(states.unique(dim=0)) == 2**n
    energies = {tuple(s.tolist()): m.energy(W, s[None]).item() for s in states}
    for s, minimum in zip(states, m.is_minimum(W, states), strict=True):
        neighbours = s * (1 - 2 * torch.eye(n))
        own = energies[tuple(s.tolist())]
        assert minimum == all(energies[tuple(other.tolist())] >= own for other in neighbours)


def test_states_are_classified_as_stored_mirrored_mixture_or_other():
    x = m.random_patterns(4, 40)
    mixture = (x[0] - x[1] + x[3]).sign()
    states = torch.stack([x[2], -x[2], mixture, -mixture, m.random_patterns(40), (x[0] + x[1] + x[2]).sign()])
    assert m.classify(states, x).tolist() == [0, 1, 2, 2, 3, 2]
    assert m.three_mixtures(x).shape == (8 * 4, 40)
    assert m.classify(states[:2], x[2:3]).tolist() == [0, 1]  # fewer than three patterns: no mixtures


def test_the_mean_minima_of_three_patterns_are_those_of_all_sets_of_patterns():
    n, counts = 4, np.zeros(4)
    sets = list(itertools.product((-1.0, 1.0), repeat=2 * n))
    for two in sets:  # the first pattern may be all +1
        x = torch.cat([torch.ones(1, n), torch.tensor(two).reshape(2, n)])
        minima = m.all_states(n)[m.is_minimum(m.agreements(x), m.all_states(n))]
        counts += torch.bincount(m.classify(minima, x), minlength=4).numpy() / len(sets)
    assert m.exact_minima_of_three(n) == pytest.approx(counts)


def test_spurious_minima_outnumber_the_others_only_where_three_errors_say_so():
    """The mistakes: the first mean that is larger, however little; the mirrors left out; shares of all nets as one."""
    nets = torch.tensor([[4.0, 4, 8, 1], [4, 4, 7, 2], [4, 4, 9, 1], [4, 4, 5, 2]]).double()
    barely, clearly = nets - torch.tensor([0.0, 0, 0.1, 0]), nets + torch.tensor([0.0, 0, 2, 1])
    found = {p: m.Minima(counts, counts, 0, 0) for p, counts in ((1, nets - 1), (3, barely), (5, clearly))}
    assert barely[:, 2:].sum() > barely[:, :2].sum()
    assert m.first_outnumbered(found) == 5
    assert m.first_outnumbered({1: found[1], 3: found[3]}) is None


def test_section_spurious_compares_three_patterns_with_the_exact_means(monkeypatch):
    """The mistakes: the mirrors counted as spurious; a number of patterns taken for the exact mean."""
    counts = torch.tensor([[3.0, 3, 0, 0], [3, 2, 4, 1], [2, 3, 4, 0]], dtype=torch.float64)
    caught, seen = torch.tensor([[0.5, 0.2, 0.2, 0.1]] * 2, dtype=torch.float64), []
    monkeypatch.setattr(m, "measure_minima", lambda p, *_: seen.append(p) or m.Minima(counts + (p > 5), caught, 1, 2))
    run = Notes()
    m.section_spurious(run)
    exact = m.exact_minima_of_three(run.config.enumerated_units)
    for kind, name in enumerate(m.KINDS):
        value, sem, (_, reference), within = run.metrics[f"P = 3: {name}"]
        assert (value, reference) == (pytest.approx(counts[:, kind].mean().item()), exact[kind])
        assert within == pytest.approx(sem * t.isf(5e-5 / 4, 2) if exact[kind] else 0)  # none can be: one is too many
    assert run.metrics["P = 5: stored"].within is None
    assert run.metrics["P = 5: states caught by spurious minima"].value == pytest.approx(0.3)
    assert run.metrics["nets with unequal mirrors"] == (5, None, ("E(-s) = E(s)", 0), 0)
    assert run.metrics["runs that end outside the list"].value == 10
    assert "at none of these P" in run.said[-1]  # 3 of 5.33 here


# Section 5


def test_storkey_is_his_formula_written_out():
    x, n = m.random_patterns(2, 4, 7), 7
    for net in range(2):
        W = np.zeros((n, n))
        for xi in x[net].numpy():
            old = W.copy()
            for i in range(n):
                for j in range(n):
                    if i != j:
                        h_ij = sum(old[i, k] * xi[k] for k in range(n) if k not in (i, j))
                        h_ji = sum(old[j, k] * xi[k] for k in range(n) if k not in (i, j))
                        W[i, j] = old[i, j] + (xi[i] * xi[j] - xi[i] * h_ji - h_ij * xi[j]) / n
        np.testing.assert_allclose(m.storkey(x)[net].numpy(), W, atol=1e-6)


def test_perceptron_stores_what_hebb_cannot_without_self_couplings():
    x = m.random_patterns(3, 20, 30)
    W = m.perceptron(x, 500)
    assert not W.diagonal(dim1=1, dim2=2).any()
    assert (x * (x @ W) > 0).all()
    assert not (x * (x @ m.hebb(x)) > 0).all()
    assert not torch.allclose(W, W.mT)


def test_one_perceptron_pass_is_the_rule_written_out():
    x = m.random_patterns(1, 9, 6)
    W = m.hebb(x)[0].clone()
    for pattern in x[0]:
        for i in range(6):
            others = torch.arange(6) != i
            if pattern[i] * (W[i, others] @ pattern[others]) <= 0:
                W[i, others] += pattern[i] * pattern[others] / 6
    torch.testing.assert_close(m.perceptron(x, 1)[0], W.T)


def test_exact_trainable_counts_the_labellings_a_perceptron_can_learn():
    # In two dimensions p lines through the origin make 2p regions: 2p of the 2^p labellings.
    assert m.exact_trainable(2, 5) == pytest.approx(10 / 32)
    assert m.exact_trainable(7, 14) == pytest.approx(0.5)
    assert m.exact_trainable(9, 9) == 1


def test_exact_stability_is_what_optimisers_reach_and_zero_where_linear_programming_finds_no_couplings():
    x = m.random_patterns(40, 24, 13).double().numpy()  # p = 2 (n - 1): one half
    found = []
    for k, patterns in enumerate(x):
        y = np.delete(patterns * patterns[:, [3]], 3, 1)
        answer = linprog(np.zeros(12), A_ub=-y, b_ub=-np.ones(24), bounds=(None, None))
        stability = m.exact_stability(patterns, 3)
        assert (stability > 0) == (answer.status == 0)
        found.append(answer.status == 0)
        if stability > 0 and k < 15:
            bound = {"type": "ineq", "fun": lambda w, y=y: y @ w - 1}
            least = minimize(lambda w: w @ w, answer.x, constraints=bound, method="SLSQP", options={"maxiter": 500})
            assert stability == pytest.approx(least.fun**-0.5, rel=1e-4)
    assert abs(np.mean(found) - m.exact_trainable(12, 24)) <= m.allowed_share(0.5, 40)


def test_stabilities_are_the_least_field_over_the_length_of_the_couplings_that_make_it():
    W, x = torch.randn(2, 5, 5), m.random_patterns(2, 3, 5)
    for net in range(2):
        for i in range(5):
            fields = [x[net, p, i] * sum(W[net, j, i] * x[net, p, j] for j in range(5)) for p in range(3)]
            assert m.stabilities(W, x)[net, i].item() == pytest.approx(
                min(fields).item() / W[net, :, i].norm().item(), rel=1e-4
            )


def test_a_margin_makes_patterns_more_stable_never_beyond_the_best():
    x = m.random_patterns(1, 10, 30)
    plain, firm = (m.stabilities(m.perceptron(x, 200, margin), x)[0] for margin in (0.0, 4.0))
    best = torch.tensor([m.exact_stability(x[0].double().numpy(), unit) for unit in range(30)])
    assert (firm <= best + 1e-4).all()
    assert firm.mean() > plain.mean() + 0.2
    for margin in (1.0, 20.0):  # the bound of the comment; and K without end does not make it the best
        reached = m.stabilities(m.perceptron(x, 2000, margin), x)[0] / best
        assert (reached > margin / (2 * margin + 1)).all()
        assert reached.mean() < 0.99
    assert (x * (x @ m.perceptron(x, 200, 4.0)) > 4 - 1e-4).all()


def test_theory_stability_is_gardners_integral_and_two_at_zero():
    for alpha in (0.4, 1.0, 1.9):
        kappa, z = m.theory_stability(alpha), np.linspace(-12, 12, 200_001)
        integral = np.sum(np.clip(z + kappa, 0, None) ** 2 * norm.pdf(z)) * (z[1] - z[0])
        assert 1 / integral == pytest.approx(alpha, rel=1e-4)
    assert m.theory_stability(2 - 1e-9) == pytest.approx(0, abs=1e-8)
    x = m.random_patterns(1, 120, 240)[0].double().numpy()  # a large net is near the limit
    assert m.exact_stability(x, 0) == pytest.approx(m.theory_stability(0.5), abs=0.15)


def test_allowed_share_holds_all_but_one_in_ten_thousand():
    n, share = 400, 0.43
    within, k = m.allowed_share(share, n), np.arange(n + 1)
    outside = np.abs(k / n - share) > within + 1e-12
    assert m.binom.pmf(k, n, share)[outside].sum() <= 1e-4
    assert within < 5 * math.sqrt(share * (1 - share) / n)


def test_crosses_half_interpolates():
    assert m.crosses_half([0.1, 0.2, 0.4], [1, 0.75, 0.25]) == pytest.approx(0.3)
    assert m.crosses_half([0.1, 0.2], [1, 0.9]) == 0.2
    assert m.crosses_half([0.1, 0.2], [0.3, 0.1]) == 0.1


def test_section_rules_holds_shares_to_cover_and_no_rule_beyond_the_best():
    """The mistakes: another load's reference; a binomial share with a tolerance of its own; rules that beat the optimum."""
    run = Notes()
    m.section_rules(run)
    for alpha in (1.25, 1.5, 1.75, 2, 2.25):
        entry = run.metrics[f"load {alpha}: units that any rule can train"]
        exact = m.exact_trainable(15, round(alpha * 16))
        assert entry.against[1] == exact == run.metrics[f"load {alpha}: units that the perceptron trained"].against[1]
        assert entry.within == m.allowed_share(exact, 20)
        assert abs(entry.value - exact) <= entry.within
        assert run.metrics[f"load {alpha}: units that the perceptron trained"].value <= entry.value + 0.4
    assert run.metrics["units more stable than the best couplings"] == (0, None, ("theorem", 0), 0)
    assert run.metrics["load 0.5, best couplings: stability"].against[1] == m.theory_stability(0.5)
    by_rule = {name: run.metrics[f"load 0.5, {name}: recalled"].value for name in m.COLORS if name != "softmax"}
    assert f"the rule {max(by_rule, key=by_rule.get)} " in run.said[-2]


def test_the_best_rules_are_those_that_errors_do_not_tell_apart_and_errors_are_those_of_nets():
    """The mistakes: a winner by its mean alone; nets that are not paired; the units of one net as repeats."""
    nets, at = np.array([0.2, 0.9, 0.5, 0.4]), m.LOADS.index(0.5)
    shares = {"a": nets, "b": nets + 0.05, "c": nets + [0.06, 0.02, 0.05, 0.06]}  # c is behind b by .0025 +- .009, a by .05
    assert m.most_of(shares) == "b or c"
    found, best = m.measure_rules(16, 3, 5, "cpu")
    assert best.shape == (len(m.MARGIN_LOADS), 3, 4) == found["Hebb"].stability[: len(best)].shape
    run = Notes()
    m.record_rules(run, found, best, 16)
    recalled, firm, right = m.best_rules(found)
    assert recalled.startswith(max(found, key=lambda rule: found[rule].recalled[at].mean()))
    assert firm.startswith(max(found, key=lambda rule: found[rule].stability[at].mean()))
    assert right.startswith(min(found, key=lambda rule: found[rule].wrong[at].mean()))
    entry = run.metrics["load 0.5, best couplings: stability"]
    assert entry[:2] == pytest.approx((best[at].mean(), best[at].mean(1).std(ddof=1) / 3**0.5))


def test_one_step_after_the_cue_units_err_as_normal_fields_of_all_distances_say():
    """The mistakes: the least distance for all of them; a spread without its 2; the shrinking forgotten."""
    x = m.random_patterns(1, 60, 200)
    for share, W in ((0.1, m.hebb(x)), (0.25, m.pseudo_inverse(x))):
        cues = torch.stack([m.flipped(x, share) for _ in range(60)])
        wrong = (x * (cues @ W) <= 0).double().mean((1, 2, 3))
        mean, sem = m.mean_and_sem(wrong)
        theory = m.theory_next_error(m.distances(W, x), share).item()
        assert abs(mean - theory) <= m.tolerance(sem, 60) + 0.01 * theory  # 200 units: not quite normal
    torch.manual_seed(4)
    for share in (0.0, 0.1, 0.2):  # the share is the cues' own
        rule = m.measure_rule(m.hebb, x, m.flipped(x, share), 100)
        assert rule[4] == pytest.approx(rule[5], rel=0.05)


# Section 6


def test_glauber_samples_the_boltzmann_distribution_at_its_temperature():
    n, chains = 4, 40_000
    W = m.hebb(m.random_patterns(3, n))
    temperatures = torch.tensor([0.6, 1.7])
    s = m.glauber(W, m.random_patterns(2 * chains, n), temperatures.repeat(chains), 12)
    for k, temperature in enumerate(temperatures.tolist()):
        _, exact = boltzmann(W, temperature)
        codes = ((s[k::2] > 0).long() * 2 ** torch.arange(n)).sum(1)
        found = torch.bincount(codes, minlength=2**n) / chains
        assert (found - exact).abs().sum() / 2 < 0.012  # total variation; 2^4 states, 40,000 chains: 0.007 expected


def test_glauber_serves_several_nets_at_once():
    x = m.random_patterns(2, 1, 30)
    s = m.glauber(m.hebb(x), x.repeat(1, 50, 1), torch.full((50,), 0.05), 3)
    assert torch.equal(s, x.repeat(1, 50, 1))


def test_exact_moments_are_enumerated_averages():
    x = m.random_patterns(1, 8)
    for temperature in (0.5, 1.0, 2.0):
        states, weights = boltzmann(m.hebb(x), temperature)
        for power in (1, 2, 4):
            exact = (weights * (states @ x[0] / 8).abs() ** power).sum().item()
            assert m.exact_moment(8, temperature, power) == pytest.approx(exact, rel=1e-5)


def test_low_load_overlap_solves_its_equation_and_vanishes_at_one():
    assert m.theory_low_load_overlap(0.5) == pytest.approx(0.957504, abs=1e-6)
    assert m.theory_low_load_overlap(1.0) == m.theory_low_load_overlap(1.5) == 0
    assert m.exact_moment(20_000, 0.8, 1) == pytest.approx(m.theory_low_load_overlap(0.8), abs=1e-3)


def test_binder_is_two_thirds_of_one_value_and_zero_of_a_gaussian_and_crosses_at_one():
    assert m.binder(0.25, 0.0625) == pytest.approx(2 / 3)
    assert m.binder(1, 3) == 0
    for sizes, off in (((10, 40), 0.15), ((60, 240), 0.01)):
        sums = [[m.binder(m.exact_moment(n, T, 2), m.exact_moment(n, T, 4)) for T in m.BINDER_TEMPERATURES] for n in sizes]
        assert off / 10 < abs(m.crossing(np.array(sums)) - 1) < off
    assert m.crossing(np.array([[0.6, 0.5, 0.4, 0.3, 0.2], [0.8, 0.6, 0.4, 0.2, 0.0]])) == pytest.approx(1)


def test_the_noisy_theory_has_its_two_limits_and_a_line_between_them():
    """The mistakes: the noise's variance without r, C without the temperature, tanh of h T."""
    temperatures = np.array([0.3, 0.6, 0.9])
    low = m.theory_noisy_overlap(1e-6, temperatures)
    assert low == pytest.approx([m.theory_low_load_overlap(T) for T in temperatures], abs=1e-4)
    assert m.theory_noisy_overlap(0.1, 0.03) == pytest.approx(m.theory_overlap(0.1), abs=1e-3)
    line = m.theory_melting(np.array([1e-4, 0.05, 0.13, 0.137]))
    assert line[0] == pytest.approx(1, abs=0.05)
    assert line[-1] < 0.08  # it ends at 0.138
    assert (np.diff(line) < 0).all()
    assert m.theory_noisy_overlap(0.16, 0.05) < 0.1


def test_observed_overlaps_are_with_the_first_pattern_and_near_the_noisy_theory():
    """Also the mistake: temperatures that are dealt out to the wrong chains."""
    found = m.observe(*m.nets_of_loads([12], 12, 200, "cpu"), 1, (0.2, 0.45), 30, "test")
    assert found.shape == (20, 12, 1, 2)
    mean, sem = m.means_and_sems(found.mean((0, 2)).T)
    assert (np.abs(mean - m.theory_noisy_overlap(0.06, (0.2, 0.45))) < t.isf(5e-5, 11) * sem + 0.005).all()
    assert mean[0] > mean[1] + 0.02


def test_section_noise_compares_with_exact_sums_and_with_theory(monkeypatch):
    """The mistakes: chains of another temperature, U of one size for both, loads of two sizes that are not one."""
    run = Notes(n_chains=8)
    m.section_noise(run)
    for T in m.ONE_TEMPERATURES:
        value, sem, (_, exact), within = run.metrics[f"P = 1, T = {T}: overlap"]
        assert exact == m.exact_moment(40, T, 1)
        assert within is None or within == pytest.approx(sem * t.isf(5e-5, 7))
        assert within is None or abs(value - exact) <= within
    cross, exact = run.metrics["T at which Binder's cumulants cross"], run.metrics["the same from exact sums"]
    sums = [[m.binder(m.exact_moment(n, T, 2), m.exact_moment(n, T, 4)) for T in m.BINDER_TEMPERATURES] for n in (5, 20)]
    assert cross.against[1] == exact.value == pytest.approx(m.crossing(np.array(sums)))
    assert exact.against[1] == 1
    assert cross.within == pytest.approx(cross.sem * t.isf(5e-5, 11))
    for gain, limit in ((0.5, 0), (1.5, 0.852838), (3, 0.994577), (10, 1)):
        entry = run.metrics[f"graded units, gain {gain}: overlap"]
        assert (entry.against[1], entry.within) == (pytest.approx(limit, abs=1e-5), 1e-6)
        assert run.metrics[f"graded units, gain {gain}: rises of L"].value == 0
    assert not any(name.startswith("load 0.02") for name in run.metrics)  # 20 and 40 units cannot both have that load

    def finite(W, first, starts, temperatures, n_sweeps, label):
        return torch.full((1, len(W), 1, 3), 1 / W.shape[1]).double()

    monkeypatch.setattr(m, "observe", finite)
    points = m.measure_points(100, 3, 5, "cpu")
    assert set(points) == set(itertools.product((0.02, 0.04), (0.2, 0.3, 0.4)))
    overlaps, theory = points[0.04, 0.3]
    assert overlaps.tolist() == pytest.approx([0.0, 0.0, 0.0])  # 1/N is extrapolated away
    assert theory == pytest.approx(m.theory_noisy_overlap(0.04, 0.3).item())


def test_graded_energy_is_hopfields_integral_and_its_slope_is_the_dynamics():
    W, gain = m.hebb(m.random_patterns(3, 6)).double(), 1.7
    u = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    V = torch.tanh(gain * u)
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None] * V.detach()
    integral = torch.trapezoid(torch.atanh(grid) / gain, grid, dim=0).sum()
    L = m.graded_energy(W, u, gain)
    assert L.item() == pytest.approx((-0.5 * V @ W @ V.T).item() + integral.item(), abs=1e-7)
    (slope,) = torch.autograd.grad(L.sum(), u)  # dL/du = -V'(u) du/dt
    torch.testing.assert_close(slope, -gain * (1 - V.detach() ** 2) * (-u + V @ W).detach())
    step = m.graded_path(W, u.detach(), gain, 1, dt=0.01)
    torch.testing.assert_close(step[1] - step[0], 0.01 * (-u + V @ W).detach())


def test_graded_units_rest_where_the_mean_field_equation_says():
    one = m.random_patterns(1, 50).double()
    V = torch.tanh(2.0 * m.graded_path(m.hebb(one), 0.1 * one, 2.0, 600)[-1])
    overlap = (V * one).mean().item()
    assert overlap == pytest.approx(math.tanh(2.0 * (1 - 1 / 50) * overlap), abs=1e-6)
    assert overlap > 0.9


# Section 7


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_polynomial_field_is_the_energy_difference_of_the_two_states_of_a_unit(degree):
    x, s = m.random_patterns(5, 9).double(), m.random_patterns(3, 9).double()
    field = m.polynomial_field(x, s, degree)
    for i in range(9):
        up, down = s.clone(), s.clone()
        up[:, i], down[:, i] = 1, -1
        difference = m.polynomial_energy(x, down, degree) - m.polynomial_energy(x, up, degree)
        torch.testing.assert_close(field[:, i], difference)


def test_the_quadratic_well_is_hebbs_net():
    x, s = m.random_patterns(5, 16), m.random_patterns(3, 16)
    torch.testing.assert_close(m.polynomial_energy(x, s, 2), 2 / 16 * m.energy(m.hebb(x), s) - 5 / 16)
    torch.testing.assert_close(m.polynomial_field(x, s, 2), 4 / 16 * s @ m.hebb(x))


def test_exact_polynomial_error_is_the_binomial_tail_at_degree_two_and_what_enumeration_gives():
    for n, p in ((64, 13), (128, 25)):  # P odd: no ties
        assert m.exact_polynomial_error(n, 2, p) == pytest.approx(m.exact_bit_error(n, p), rel=3e-3)
    n, degree, p = 16, 3, 20
    x = m.random_patterns(4000, p, n).double()
    pull = torch.stack(
        [(m.polynomial_field(one, one[:1], degree) * one[:1])[0, 0] for one in x]
    )  # one unit each: independent
    wrong = 0.5 * ((pull < 0).double() + (pull <= 0).double())
    assert abs(wrong.mean().item() - m.exact_polynomial_error(n, degree, p)) < m.tolerance(
        wrong.std().item() / 4000**0.5, 4000
    )


def test_exact_polynomial_load_is_classical_at_degree_two_grows_as_it_should_and_is_what_nets_show():
    assert m.exact_polynomial_load(400, 2, 0.01) == pytest.approx(1 + 399 / 2.326348**2, rel=1e-3)
    large = m.exact_polynomial_load(1600, 3, 0.01) * 3 * 2.326348**2 / 1600**2  # (2n-3)!! = 3
    assert large == pytest.approx(1, abs=5e-3)
    mean, sem = m.mean_and_sem([m.measured_load(48, 3) for _ in range(20)])
    assert abs(mean - m.exact_polynomial_load(48, 3, 0.01)) <= m.tolerance(sem, 20)


def test_exponential_field_is_the_energy_difference_of_the_two_states_of_a_unit():
    x, s = m.random_patterns(5, 9).double(), m.random_patterns(3, 9).double()
    for i in range(9):
        up, down = s.clone(), s.clone()
        up[:, i], down[:, i] = 1, -1
        difference = ((up @ x.T - 9).exp() - (down @ x.T - 9).exp()).sum(1)
        torch.testing.assert_close(m.exponential_field(x, s)[:, i], difference)


def test_the_rate_of_exponential_wells_is_the_published_one():
    assert m.theory_exponential_rate(0) == pytest.approx(math.log(2) / 2)
    assert m.theory_exponential_rate(0.5) == 0
    entropy = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    assert m.theory_exponential_rate(0.1) == pytest.approx((math.log(2) - entropy) / 2)  # I is the coin's rate function


def test_by_distance_a_short_pattern_wins_over_a_long_one_that_points_the_same_way():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.5]])
    cue = torch.tensor([[1.0, 0.1]])
    torch.testing.assert_close(m.distance_update(x, cue, 50.0), x[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(m.softmax_update(x, cue, 50.0), x[1:], atol=1e-4, rtol=0)
    weights = (-0.7 / 2 * torch.cdist(cue, x) ** 2).softmax(1)
    torch.testing.assert_close(m.distance_update(x, cue, 0.7), weights @ x)


def test_softmax_energy_is_its_formula_never_negative_and_zero_at_a_lone_pattern():
    x, state, beta = torch.randn(6, 4).double(), torch.randn(3, 4).double(), 0.7
    lse = (beta * state @ x.T).exp().sum(1).log() / beta
    expected = -lse + 0.5 * (state**2).sum(1) + math.log(6) / beta + 0.5 * (x**2).sum(1).max()
    torch.testing.assert_close(m.softmax_energy(x, state, beta), expected)
    assert m.softmax_energy(x[:1], x[:1], beta).item() == pytest.approx(0, abs=1e-12)
    assert (m.softmax_energy(x, 3 * torch.randn(500, 4).double(), beta) >= 0).all()


def test_softmax_update_is_attention_and_moves_down_the_gradient_of_the_energy():
    x, state = torch.randn(30, 16), torch.randn(8, 16)
    attention = torch.nn.functional.scaled_dot_product_attention(state[None], x[None], x[None])[0]
    torch.testing.assert_close(m.softmax_update(x, state, 16**-0.5), attention, atol=1e-6, rtol=0)
    start = state.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(m.softmax_energy(x.double(), start, 0.8).sum(), start)
    torch.testing.assert_close(m.softmax_update(x.double(), start, 0.8) - start, -gradient)


def test_settle_reaches_a_fixed_point_between_the_mean_and_a_single_pattern():
    x = m.random_patterns(20, 64)
    mean, single = m.settle(x, x[:4], 1e-3), m.settle(x, m.flipped(x[:4], 0.1), 2.0)
    torch.testing.assert_close(mean, x.mean(0).expand(4, 64), atol=0.05, rtol=0)
    torch.testing.assert_close(single, x[:4], atol=1e-4, rtol=0)


def test_exponential_wells_recall_where_hebbs_do_not():
    found = m.measure_exponential((40,), 5, "cpu")
    p, wells, hebb = found[40]
    assert p == round(math.exp(0.9 * 40 * m.theory_exponential_rate(0.1)))
    assert wells.mean() < 0.01 < 0.3 < hebb.mean() < 0.5


def test_measured_digits_are_recalled_as_rules_and_neighbours_say():
    """The mistakes: a rule's cue given to another; hits among other digits than those that were hidden."""
    x = m.digits()[0].unique(dim=0)[:60]
    found = m.measure_digits(x, 30)
    assert found.n == 60
    assert set(found.hits) == set(itertools.product(("10 % flipped", "half hidden"), ("Hebb", "pseudo-inverse", "softmax")))
    assert found.hits["10 % flipped", "softmax"].double().mean() > 0.8
    assert found.hits["10 % flipped", "Hebb"].double().mean() < 0.2
    assert found.nearest["10 % flipped"] >= found.nearest["half hidden"] > 0.5
    assert found.blended[0].min() > 50
    assert found.blended[-1].max() < 2
    assert (found.blended <= 60.01).all()
    hits, length = m.measure_grey(30, "cpu")
    assert hits["distance"].double().mean() > 0.8 > 0.3 > hits["dot product"].double().mean()
    assert length > 1.05  # the longest win


def test_section_modern_compares_exponents_with_exact_ones_and_digits_with_neighbours(monkeypatch):
    wells = {n: m.Wells([64, 128], np.ones((3, 2)), np.ones(2), np.array([n - 1.0, n, n + 1]), n + 0.1) for n in (2, 3, 4)}
    hits = {
        (kind, rule): torch.tensor([True, rule == "softmax"])
        for kind in ("10 % flipped", "half hidden")
        for rule in ("Hebb", "softmax")
    }
    digits = m.ManyDigits(
        9,
        hits,
        {"10 % flipped": 0.9, "half hidden": 0.7},
        m.np.logspace(-1, 0, 21),
        np.ones((21, 3)),
        [torch.ones(8, 64)] * 5,
        [torch.ones(8, 64)] * 6,
    )
    monkeypatch.setattr(m, "measure_wells", lambda *_: wells)
    monkeypatch.setattr(m, "measure_digits", lambda *_: digits)
    monkeypatch.setattr(m, "measure_exponential", lambda *_: {20: (27, np.array([0.1, 0.3]), np.array([0.4, 0.6]))})
    run = Notes(n_cues=20)
    m.section_modern(run)
    for n in (2, 3, 4):
        entry = run.metrics[f"wells x^{n}: exponent of N"]
        assert (entry.value, entry.against[1]) == (n, n + 0.1)
        assert entry.within == pytest.approx(3**-0.5 * t.isf(5e-5, 2))
        assert run.metrics[f"wells x^{n}: exact exponent"].against[1] == n - 1
    assert run.metrics["wells e^x, N = 20, P = 27: units wrong"][::2] == (pytest.approx(0.2), ("Hebb, same cues", 0.5))
    assert run.metrics["half hidden, softmax: recalled"].against[1] == 0.7
    assert (
        run.metrics["softmax step: largest gap to attention"].value
        <= run.metrics["softmax step: largest gap to attention"].within
    )
    assert run.metrics["softmax step: rises of E"][::3] == (0, 0)
    assert "Hebb 50%, softmax 100%" in run.said[0]
    assert "by dot product, 100% by distance" in run.said[1]


def test_mean_and_sem_is_the_mean_and_its_standard_error():
    assert m.mean_and_sem([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, np.std([1, 2, 3, 6], ddof=1) / 2))
    assert m.mean_and_sem(torch.tensor([5])) == pytest.approx((5, np.nan), nan_ok=True)  # one repeat shows no spread


# Settings


def run_of(tmp_path, *arguments):
    """The metrics of a smoke run with these arguments."""
    m.main(["--smoke", "--out", str(tmp_path), *arguments])
    return json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"]


def test_mean_and_sem_is_in_float64_whatever_it_is_given():
    """The mistakes: a list of floats becomes float32; a float64 tensor made on a device that has none."""
    values = [0.1, 0.2, 0.30000001]
    for given in (values, np.array(values), [torch.tensor(value, dtype=torch.float64) for value in values]):
        assert m.mean_and_sem(given) == pytest.approx((np.mean(values), np.std(values, ddof=1) / 3**0.5), rel=1e-12)


def test_allowed_is_students_and_one_repeat_is_judged_by_nothing():
    """The mistakes: normal errors of few repeats; the spread of one number taken for 0, and all claims for wrong."""
    assert m.tolerance(0.0, 9) is m.tolerance(math.nan, 1) is m.tolerance(math.nan, 5) is None
    for n in (2, 12, 24):
        assert m.tolerance(0.2, n) == pytest.approx(0.2 * t.isf(5e-5, n - 1))
    assert m.tolerance(0.2, 12, 4) == pytest.approx(0.2 * t.isf(5e-5 / 4, 11))
    run = Notes()
    m.record_wells(run, {2: m.Wells([64, 128], np.ones((1, 2)), np.ones(2), np.ones(1), 1.1)}, {})
    assert run.metrics["wells x^2: exponent of N"].within is None


def test_minima_come_in_mirrored_pairs_even_where_a_pattern_is_the_mirror_of_another(tmp_path):
    """The mistake: pairs counted by labels, of which such a minimum has two."""
    for n in ("1", "4", "5"):
        found = run_of(tmp_path, "--section", "spurious", "--enumerated-units", n)
        assert found["spurious/nets with unequal mirrors"]["ok"]
        assert found["spurious/runs that end outside the list"]["ok"]


def test_cumulants_that_are_alike_name_no_melting_temperature():
    """The mistake: a level line that is divided by."""
    run = Notes()
    m.record_melting(run, m.Melting(9, torch.ones(2, 9), [4, 8], np.full((2, 2, 5), 0.5), np.full((2, 5), 0.5)))
    assert "raise --glauber-units" in run.said[-1]


@pytest.mark.parametrize(
    ("section", "flag", "value"),
    [
        ("capacity", "--capacity-units", "319"),
        ("spurious", "--enumerated-units", "32"),
        ("rules", "--rule-units", "1"),
        ("noise", "--glauber-units", "3"),
        ("modern", "--modern-units", "63"),
        ("modern", "--modern-units", "201"),
    ],
)
def test_settings_that_cannot_work_are_named(section, flag, value, tmp_path):
    with pytest.raises(SystemExit, match=flag):
        run_of(tmp_path, "--section", section, flag, value)


def test_the_largest_seed_runs(tmp_path):
    run_of(tmp_path, "--section", "descent", "--seed", str(2**32 - 1), "--n-runs", "1")
