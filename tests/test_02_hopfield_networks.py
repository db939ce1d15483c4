"""Module 02 against enumeration, plain loops, finite differences and closed forms: every sign, factor and temperature."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import load
from scipy.optimize import linprog
from scipy.special import erf

m = load("02")


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


# Section 3


def test_critical_load_and_overlap_solve_the_published_equations():
    critical, y = m.ags_critical()
    assert critical == pytest.approx(0.137906, abs=1e-6)
    assert erf(y) == pytest.approx(0.967, abs=1e-3)
    for alpha in (0.05, 0.1, 0.13):
        overlap = m.ags_overlap(alpha)
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
    assert wrong == pytest.approx(m.bit_error(n, p), abs=1e-12)


def test_bit_error_tends_to_the_gaussian_tail():
    for alpha in (0.105, 0.138, 0.185):
        tail = 0.5 * math.erfc(math.sqrt(1 / (2 * alpha)))
        assert m.bit_error(30_000, round(30_000 * alpha)) == pytest.approx(tail, rel=5e-3)


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


def test_the_fit_recovers_the_critical_load_it_was_given():
    inputs = np.array([(n, load) for n in (1000, 2000, 4000) for load in (0.12, 0.14, 0.16)]).T
    shares = m.retained_model(inputs, 0.137, 1.7, 1.8, 0.1)
    fit, _ = m.curve_fit(m.retained_model, inputs, shares, (0.15, 1, 1, 0))
    assert fit == pytest.approx([0.137, 1.7, 1.8, 0.1], abs=1e-4)
    assert m.retained_model((1000, 0.2), 0.137, 1.7, 1.8, 0.1) < m.retained_model((1000, 0.1), 0.137, 1.7, 1.8, 0.1)


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


def test_cover_counts_the_labellings_a_perceptron_can_learn():
    # In two dimensions p lines through the origin make 2p regions: 2p of the 2^p labellings.
    assert m.cover(2, 5) == pytest.approx(10 / 32)
    assert m.cover(7, 14) == pytest.approx(0.5)
    assert m.cover(9, 9) == 1


def test_can_store_agrees_with_linear_programming_and_with_cover():
    x = m.random_patterns(40, 24, 13).double().numpy()  # p = 2 (n - 1): one half
    found = []
    for patterns in x:
        y = np.delete(patterns * patterns[:, [3]], 3, 1)
        answer = linprog(np.zeros(12), A_ub=-y, b_ub=-np.ones(24), bounds=(None, None))
        assert m.can_store(patterns, 3) == (answer.status == 0)
        found.append(answer.status == 0)
    assert np.mean(found) == pytest.approx(m.cover(12, 24), abs=0.25)


def test_load_at_half_interpolates():
    assert m.load_at_half([0.1, 0.2, 0.4], [1, 0.75, 0.25]) == pytest.approx(0.3)
    assert m.load_at_half([0.1, 0.2], [1, 0.9]) == 0.2
    assert m.load_at_half([0.1, 0.2], [0.3, 0.1]) == 0.1


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


def test_one_pattern_overlap_is_the_enumerated_average():
    x = m.random_patterns(1, 8)
    for temperature in (0.5, 1.0, 2.0):
        states, weights = boltzmann(m.hebb(x), temperature)
        exact = (weights * (states @ x[0] / 8).abs()).sum().item()
        assert m.one_pattern_overlap(8, temperature) == pytest.approx(exact, rel=1e-5)


def test_mean_field_overlap_solves_its_equation_and_vanishes_at_one():
    assert m.mean_field_overlap(0.5) == pytest.approx(0.957504, abs=1e-6)
    assert m.mean_field_overlap(1.0) == m.mean_field_overlap(1.5) == 0
    assert m.one_pattern_overlap(20_000, 0.8) == pytest.approx(m.mean_field_overlap(0.8), abs=1e-3)


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


def test_polynomial_load_is_the_classical_one_at_degree_two_and_what_nets_show():
    assert m.polynomial_load(400, 2, 0.01) == pytest.approx(1 + 399 / 2.326348**2, rel=1e-5)
    large = m.polynomial_load(4000, 3, 0.01) * 3 * 2.326348**2 / 4000**2  # (2n-3)!! = 3
    assert large == pytest.approx(1, abs=2e-3)
    loads = [m.measured_load(48, 3, 0.01) for _ in range(20)]
    assert np.mean(loads) == pytest.approx(m.polynomial_load(48, 3, 0.01), rel=0.06)


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


def test_mean_and_sem_is_the_mean_and_its_standard_error():
    assert m.mean_and_sem([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, np.std([1, 2, 3, 6], ddof=1) / 2))
    assert m.mean_and_sem(torch.tensor([5])) == (5, 0)


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


def test_one_repeat_is_judged_by_nothing(tmp_path):
    """The mistake: the spread of one number taken for 0, and every claim with it for wrong."""
    assert m.allowed(0.0, 0.1) is m.allowed(math.nan) is None
    assert m.allowed(0.2, 0.1) == pytest.approx(0.7)
    found = run_of(tmp_path, "--section", "modern", "--modern-nets", "1", "--n-cues", "1")
    assert "ok" not in found["modern/exponent_n2"]


def test_minima_come_in_mirrored_pairs_even_where_a_pattern_is_the_mirror_of_another(tmp_path):
    """The mistake: pairs counted by labels, of which such a minimum has two."""
    for n in ("1", "3", "5"):
        found = run_of(tmp_path, "--section", "spurious", "--enumerated-units", n)
        assert found["spurious/nets_with_unequal_mirrors"]["ok"]
        assert found["spurious/runs_ending_outside_the_list"]["ok"]


def test_overlaps_of_one_name_no_melting_temperature(tmp_path, capsys):
    """The mistake: artanh(1), an infinity that looks like a run that diverged."""
    found = run_of(tmp_path, "--section", "noise", "--glauber-units", "1", "--glauber-sweeps", "1", "--n-chains", "1")
    assert "noise/melting_temperature" not in found
    assert "raise --glauber-units" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "flag", "value"),
    [
        ("capacity", "--capacity-units", "319"),
        ("spurious", "--enumerated-units", "32"),
        ("rules", "--rule-units", "1"),
        ("modern", "--modern-units", "63"),
    ],
)
def test_settings_that_cannot_work_are_named(section, flag, value, tmp_path):
    with pytest.raises(SystemExit, match=flag):
        run_of(tmp_path, "--section", section, flag, value)


def test_the_largest_seed_runs(tmp_path):
    for section in ("descent", "memories"):
        run_of(tmp_path, "--section", section, "--seed", str(2**32 - 1))
