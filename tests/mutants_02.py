"""Mistakes planted in module 02 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

NEXT = "test_one_step_after_the_cue_units_err_as_normal_fields_of_all_distances_say"
BEST = "test_the_best_rules_are_those_that_errors_do_not_tell_apart_and_errors_are_those_of_nets"
DRIFT = "test_a_drift_with_a_known_exponent_and_limit_is_found_again"
IN_CAPACITY = "test_section_capacity_allows_for_both_errors_and_compares_with_exact_tails"
IN_MEMORIES = "test_section_memories_holds_random_patterns_to_the_exact_overlap_and_projections_to_their_theorem"
IN_RULES = "test_section_rules_holds_shares_to_cover_and_no_rule_beyond_the_best"
IN_NOISE = "test_section_noise_compares_with_exact_sums_and_with_theory"
IN_SPURIOUS = "test_section_spurious_compares_three_patterns_with_the_exact_means"
LEARNS = "test_perceptron_stores_what_hebb_cannot_without_self_couplings"
PATH = "test_asynchronous_path_follows_the_plain_rule_one_unit_at_a_time"
LIMIT = "test_the_limit_tells_theory_from_the_estimate_of_1982_where_its_error_does"
NOISY = "test_the_noisy_theory_has_its_two_limits_and_a_line_between_them"
POLYNOMIAL = "test_exact_polynomial_error_is_the_binomial_tail_at_degree_two_and_what_enumeration_gives"
OUTNUMBER = "test_spurious_minima_outnumber_the_others_only_where_three_errors_say_so"
STABLE = "test_exact_stability_is_what_optimisers_reach_and_zero_where_linear_programming_finds_no_couplings"

MUTANTS = [
    # 1. Descent
    (
        "return -0.5 * ((s @ W) * s).sum(-1)",
        "return -((s @ W) * s).sum(-1)",
        "each pair counted twice in the energy",
        "test_energy_is_the_double_sum_over_pairs",
    ),
    (
        "return agreements(patterns).mul_(1 / patterns.shape[-1])",
        "return agreements(patterns).mul_(1 / patterns.shape[-2])",
        "Hebb's rule over the number of patterns",
        "test_hebb_is_the_mean_of_outer_products_without_diagonal_for_one_net_and_for_many",
    ),
    (
        "    couplings.diagonal(dim1=-2, dim2=-1).zero_()\n",
        "",
        "units that couple to themselves",
        "test_hebb_is_the_mean_of_outer_products_without_diagonal_for_one_net_and_for_many",
    ),
    (
        "field = (s @ W[..., unit, :, None]).squeeze(-1)\n        s = s.clone()",
        "field = (path[0] @ W[..., unit, :, None]).squeeze(-1)\n        s = s.clone()",
        "one unit at a time, but by the fields of the start",
        PATH,
    ),
    (
        "path.append(torch.where(field == 0, path[-1], field.sign()))",
        "path.append(torch.where(field >= 0, 1.0, -1.0))",
        "a tie that sets a unit to +1",
        "test_a_tie_leaves_the_unit_as_it_is_in_all_dynamics",
    ),
    (
        "n_longer=(together[-1] != together[-3])",
        "n_longer=(together[-1] != together[-5])",
        "cycles of four taken for cycles of two",
        "test_measured_descent_counts_what_couplings_that_have_no_energy_do",
    ),
    # 2. Memories
    (
        "W = W + (x @ x.mT - cross - cross.mT + 2 * W) / patterns.shape[-1]",
        "W = W + (x @ x.mT - cross - cross.mT) / patterns.shape[-1]",
        "Storkey's rule with fields that count the pair itself",
        "test_storkey_is_his_formula_written_out",
    ),
    (
        "around | (unit >= start)",
        "around | (unit > start)",
        "recall that leaves out the unit it is to begin with",
        "test_recall_ends_exactly_where_the_plain_loop_ends",
    ),
    (
        "field += (s[..., mine] - old) @ W[:, mine]",
        "field += (s[..., mine] - old) @ W[:, mine] / 2",
        "half of a block's change passed on",
        "test_recall_ends_exactly_where_the_plain_loop_ends",
    ),
    (
        "mean(-1) >= 0.9).float().mean(1)\n\n\nLETTERS",
        "mean(-1) > 0.95).float().mean(1)\n\n\nLETTERS",
        "another threshold than the one that is said",
        "test_recalled_share_counts_overlaps_from_0_9_on",
    ),
    (
        "return np.abs(n - 2 * heads) @ binom.pmf(heads, n, 0.5) / n",
        "return np.abs(n - heads) @ binom.pmf(heads, n, 0.5) / n",
        "an overlap in which a differing unit costs one instead of two",
        "test_exact_mean_overlap_is_the_mean_over_all_pairs",
    ),
    (
        'within = tolerance(sem, len(x)) if kind == "random" else None',
        'within = tolerance(sem, len(x)) if kind == "digits" else None',
        "digits held to the overlap of random patterns",
        IN_MEMORIES,
    ),
    (
        'mean_and_sem(own), mean_and_sem(shares["random"][rule])',
        'mean_and_sem(own), mean_and_sem(shares["digits"][rule])',
        "a rule compared with itself on the same digits",
        IN_MEMORIES,
    ),
    (
        "if not abs(gap) > 3 * error:",
        "if not abs(gap) > 0:",
        "a loss of half that lies within the noise",
        IN_MEMORIES,
    ),
    # 3. Capacity
    (
        "return 0.5 * (erf(y) / y - 2 / math.sqrt(math.pi) * np.exp(-(y**2))) ** 2",
        "return 0.5 * (erf(y) / y - 1 / math.sqrt(math.pi) * np.exp(-(y**2))) ** 2",
        "the derivative of erf without its 2",
        "test_critical_load_and_overlap_solve_the_published_equations",
    ),
    (
        "coins = (p - 1) * (n - 1)",
        "coins = p * (n - 1)",
        "a pattern that disturbs itself",
        "test_bit_error_is_exact_for_a_net_small_enough_to_enumerate",
    ),
    (
        "@ patterns.mT @ patterns) >= patterns.shape[-2]",
        "@ patterns.mT @ patterns) >= 0",
        "the diagonal left in the one-step rule",
        "test_keeps_sign_is_one_step_of_the_net_with_ties_staying",
    ),
    (
        "return whole, without.std(0) * math.sqrt(n - 1)",
        "return whole, without.std(0) / math.sqrt(n)",
        "the jackknife's values taken for independent ones",
        "test_the_jackknife_of_a_mean_is_its_standard_error",
    ),
    (
        "** -power, values, 1)[1]",
        "** power, values, 1)[1]",
        "a line that leads to size zero",
        DRIFT,
    ),
    (
        "ratio = (values[0] - values[2]) / (values[1] - values[3])",
        "ratio = (values[0] - values[1]) / (values[1] - values[3])",
        "two drifts over different factors of size",
        DRIFT,
    ),
    (
        "limit_of(halves, found.sizes, 1 / 2), drift",
        "limit_of(halves, found.sizes, 1 / 3), drift",
        "another law under the name of the width's",
        DRIFT,
    ),
    (
        "kept[load] = (m * (m > 0.7)).sum(1) / (m > 0.7).sum(1).clamp(min=1)",
        "kept[load] = m.mean(1)",
        "patterns that were lost in the overlap of those that are kept",
        "test_measured_retrieval_holds_shares_of_nets_that_keep_their_patterns",
    ),
    (
        "power = 2 / 3 - critical.exponent[1]",
        "power = 2 / 3",
        "no allowance for the law of the drift",
        IN_CAPACITY,
    ),
    (
        "reach = (tolerance(sem, len(found.shares)) or math.nan) + law",
        "reach = tolerance(sem, len(found.shares)) or math.nan",
        "a limit said without the error of its law",
        LIMIT,
    ),
    (
        "reach = (tolerance(sem, len(found.shares)) or math.nan) + law",
        "reach = sem * 0 + law",
        "a limit said without the error of chance",
        LIMIT,
    ),
    (
        "n_repeats * (largest // n) ** 2, n_starts",
        "n_repeats * largest // n, n_starts",
        "small nets, which are cheap, as few as large ones",
        "test_measured_retrieval_holds_shares_of_nets_that_keep_their_patterns",
    ),
    # 4. Spurious states
    (
        "return (states * (states @ W) >= 0).all(-1)",
        "return (states * (states @ W) >= 0).any(-1)",
        "a minimum for one stable unit",
        "test_minima_are_the_states_from_which_no_single_flip_descends",
    ),
    (
        "    kind[(states @ patterns.T == -n).any(1)] = 1\n",
        "",
        "mirrors of patterns called spurious",
        "test_states_are_classified_as_stored_mirrored_mixture_or_other",
    ),
    (
        "gammaln(k.numpy() + 1).sum() - n * math.log(4))",
        "gammaln(k.numpy() + 1).sum() - n * math.log(8))",
        "eight kinds of columns where turning leaves four",
        "test_the_mean_minima_of_three_patterns_are_those_of_all_sets_of_patterns",
    ),
    (
        "tolerance(sem, len(minima.counts), 4)",
        "tolerance(sem, len(minima.counts)) and 0.1 * exact[kind]",
        "a tolerance that is a share of the value",
        IN_SPURIOUS,
    ),
    (
        "torch.tensor([-1.0, -1, 1, 1]).double()",
        "torch.tensor([-1.0, 0, 1, 1]).double()",
        "the mirrors left out where memories are counted",
        OUTNUMBER,
    ),
    (
        "if gap > 3 * sem), None)",
        "if gap > 0), None)",
        "spurious minima in front by less than their error",
        OUTNUMBER,
    ),
    (
        "4) if exact[kind] else 0",
        "4)",
        "a count that cannot be, judged by its own spread",
        IN_SPURIOUS,
    ),
    # 5. Rules
    (
        "- own <= margin * patterns.shape[-1]",
        "- own < margin * patterns.shape[-1]",
        "a field of zero taken for right",
        "test_one_perceptron_pass_is_the_rule_written_out",
    ),
    (
        "- own <= margin * patterns.shape[-1]",
        "- own <= 0",
        "a margin that is not used",
        "test_a_margin_makes_patterns_more_stable_never_beyond_the_best",
    ),
    (
        "    own.zero_()\n    return W.mT.contiguous()",
        "    return W.mT.contiguous()",
        "a perceptron that keeps its self-couplings",
        LEARNS,
    ),
    (
        "/ W.norm(dim=1, keepdim=True).clamp(min=1e-9)",
        "/ W.norm(dim=2).unsqueeze(1).clamp(min=1e-9)",
        "fields over the length of what goes out of a unit",
        "test_stabilities_are_the_least_field_over_the_length_of_the_couplings_that_make_it",
    ),
    (
        "return 1 / np.linalg.norm(rest[:-1] / rest[-1])",
        "return np.linalg.norm(rest[:-1] / rest[-1])",
        "the length of the couplings in place of the stability",
        STABLE,
    ),
    (
        "return binom.cdf(n_inputs - 1, p - 1, 0.5)",
        "return binom.cdf(n_inputs, p, 0.5)",
        "Cover's count for one point and one input more",
        "test_exact_trainable_counts_the_labellings_a_perceptron_can_learn",
    ),
    (
        "return (1 + k**2) * ndtr(k) + k * math.exp",
        "return (1 + k**2) * ndtr(-k) - k * math.exp",
        "Gardner's integral from the wrong side",
        "test_theory_stability_is_gardners_integral_and_two_at_zero",
    ),
    (
        "beyond = sum((own.stability[: len(best)] > best + 1e-3).sum() for own in found.values())",
        "beyond = sum((own.stability[: len(best)] > best - 0.5).sum() for own in found.values())",
        "units counted as better than the best that are not",
        IN_RULES,
    ),
    (
        "if not gap > 3 * sem)])",
        "if not gap > 0)])",
        "a winner by its mean alone",
        BEST,
    ),
    (
        "gaps = {name: mean_and_sem(values[first] - own)",
        "gaps = {name: mean_and_sem(values[first] - own.mean())",
        "rules on the same nets compared as if on others",
        BEST,
    ),
    (
        "spread = 2 * math.sqrt(share * (1 - share))",
        "spread = math.sqrt(share * (1 - share))",
        "a flip that moves a field by one instead of two",
        NEXT,
    ),
    (
        "ndtr(-(1 - 2 * share) * distance",
        "ndtr(-distance",
        "a cue with errors that pulls like the pattern itself",
        NEXT,
    ),
    (
        "theory_next_error(distances(W, patterns), share)",
        "theory_next_error(distances(W, patterns).amin(1, keepdim=True), share)",
        "the least distance taken for all of them",
        NEXT,
    ),
    (
        "most_of({name: -own.wrong[at] for",
        "most_of({name: own.wrong[at] for",
        "most units wrong taken for fewest",
        BEST,
    ),
    (
        "*mean_and_sem(best[at].mean(1)), reference)",
        "*mean_and_sem(best[at].ravel()), reference)",
        "units of one net taken for independent ones",
        BEST,
    ),
    # 6. Noise
    (
        "torch.sigmoid(2 * field / temperature)",
        "torch.sigmoid(field / temperature)",
        "the usual slip: twice the temperature",
        "test_glauber_samples_the_boltzmann_distribution_at_its_temperature",
    ),
    (
        "log_weight = n * m**2 / (2 * temperature) -",
        "log_weight = n * m**2 / temperature -",
        "the energy of one pattern without its 1/2",
        "test_exact_moments_are_enumerated_averages",
    ),
    (
        "return 1 - m4 / (3 * m2**2)",
        "return 1 - m4 / m2**2",
        "Binder's cumulant without its 3",
        "test_binder_is_two_thirds_of_one_value_and_zero_of_a_gaussian_and_crosses_at_one",
    ),
    (
        "r = q / np.maximum(1 - (1 - q) / temperature, 1e-9) ** 2",
        "r = q",
        "the other patterns' noise without its feedback",
        NOISY,
    ),
    (
        "return energy(W, V) + (V * u - log_cosh / gain).sum(-1)",
        "return energy(W, V) + (V * u + log_cosh / gain).sum(-1)",
        "the integral of artanh with a wrong sign",
        "test_graded_energy_is_hopfields_integral_and_its_slope_is_the_dynamics",
    ),
    (
        "(2 * both[1] - both[0])[k].T",
        "(2 * both[0] - both[1])[k].T",
        "an extrapolation towards small nets",
        IN_NOISE,
    ),
    (
        "exact = mean_and_sem(found.overlap[:, k]), exact_moment(found.n, t, 1)",
        "exact = mean_and_sem(found.overlap[:, k]), theory_low_load_overlap(t)",
        "a finite net held to the infinite one",
        IN_NOISE,
    ),
    # 7. Modern
    (
        "return 0.5 * s * (below - above).sum(1, keepdim=True) + 0.5",
        "return 0.5",
        "polynomial fields that count the unit itself",
        "test_polynomial_field_is_the_energy_difference_of_the_two_states_of_a_unit",
    ),
    (
        "own = overlap.unsqueeze(-1) - patterns * s.unsqueeze(1)",
        "own = overlap.unsqueeze(-1) - 0 * patterns * s.unsqueeze(1)",
        "exponential fields that count the unit itself",
        "test_exponential_field_is_the_energy_difference_of_the_two_states_of_a_unit",
    ),
    (
        "np.abs(phi) ** (p - 1)).sum()",
        "np.abs(phi) ** p).sum()",
        "the pattern among its own disturbers",
        POLYNOMIAL,
    ),
    (
        "return ((1 + x) * math.log(1 + x) - entr(1 - x)) / 4",
        "return ((1 + x) * math.log(1 + x) - entr(1 - x)) / 2",
        "exponential wells credited with the square of what they hold",
        "test_the_rate_of_exponential_wells_is_the_published_one",
    ),
    (
        "(state @ patterns.T - 0.5 * patterns.square().sum(1))",
        "(state @ patterns.T - patterns.square().sum(1))",
        "lengths that count twice in the distance",
        "test_by_distance_a_short_pattern_wins_over_a_long_one_that_points_the_same_way",
    ),
    (
        "return (beta * state @ patterns.T).softmax(1) @ patterns",
        "return (beta * state @ patterns.T).softmax(0) @ patterns",
        "a softmax over the queries",
        "test_softmax_update_is_attention_and_moves_down_the_gradient_of_the_energy",
    ),
    # judging
    (
        "return -stdtrit(n - 1, 1e-4 / (2 * n_compared)) * sem if n > 1 and sem > 0 else None",
        "return -ndtri(1e-4 / (2 * n_compared)) * sem if n > 1 and sem > 0 else None",
        "few repeats judged by normal errors",
        "test_allowed_is_students_and_one_repeat_is_judged_by_nothing",
    ),
]
