"""Mistakes planted in module 03 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

GIBBS = "test_a_single_unit_is_on_with_the_probability_of_its_kind"
RULES = "test_each_rule_is_held_against_what_it_samples"
TEACHERS = "test_teachers_are_met_where_data_are_plenty_and_wilks_counts_parameters"
DIAGONAL = "test_mean_fields_diagonal_is_kappen_and_rodriguezs"
PENALTY = "test_the_penalty_is_chosen_on_validation_and_scored_on_test_images"
RULE_1985 = "test_the_rule_of_1985_takes_fixed_steps_and_notes_who_has_the_code"
WOLFF = "test_wolff_meets_enumeration_on_4x4"
SAMPLERS = "test_both_samplers_run_at_tc_and_wolffs_time_is_in_sweeps"
BINDER = "test_binders_cumulant_its_crossing_and_the_jackknife"
ON_GLASSES = "test_methods_meet_on_the_same_spin_glasses"
IN_UNITS = "test_section_units_compares_with_theory_and_with_2t"
IN_LEARNING = "test_section_learning_compares_with_entropy_exact_learning_and_wilks"
IN_PAIRS = "test_section_pairs_compares_samples_with_test_images_and_these_with_training_images"
IN_HIDDEN = "test_section_hidden_compares_with_the_exact_best_and_with_1985"
IN_ISING = "test_section_ising_compares_with_yang_and_kaufman_of_each_size"
IN_CLUSTERS = "test_section_clusters_compares_with_published_exponents_kaufman_and_onsager"
IN_ANNEALING = "test_section_annealing_ranks_at_the_middle_budget_and_on_the_largest_machines"
IN_DIAGNOSTICS = "test_section_diagnostics_promises_only_where_the_chains_are_long"

MUTANTS = [
    # units
    (
        "gap = 1 - off if gap is None else gap",
        "gap = 1 if gap is None else gap",
        "the 2 of +-1 units forgotten",
        f"{GIBBS}[-1-2]",
    ),
    (
        "torch.logit(torch.rand_like(units)) * temperature / gap",
        "torch.logit(torch.rand_like(units)) / temperature / gap",
        "a temperature for its inverse",
        f"{GIBBS}[-1-2]",
    ),
    (
        "return -(0.5 * (s @ W) * s).sum(-1)",
        "return -((s @ W) * s).sum(-1)",
        "each pair counted twice",
        "test_the_energy_counts_each_pair_once_and_each_bias",
    ),
    (
        "return 4 * W, 2 * b - 2 * W.sum(-1)",
        "return 4 * W, 2 * b + 2 * W.sum(-1)",
        "the bias of 0/1 units moved the wrong way",
        "test_the_same_machine_in_0_1_units_has_the_same_distribution",
    ),
    (
        "v = 2 * p * (fundamental_matrix(kernel, p).diag() - p) - v",
        "v = p * (fundamental_matrix(kernel, p).diag() - p)",
        "lags of one side only",
        "test_the_expected_total_variation_is_that_of_a_slow_chain",
    ),
    (
        "return None if n < 2 else scipy.stats.t.isf(1e-4 / (2 * n_compared), n - 1) * sem",
        "return None if n < 2 else scipy.stats.t.isf(1e-4 / (2 * n_compared), n) * sem",
        "Student's t with a degree of freedom too many",
        "test_slopes_errors_and_widths",
    ),
    (
        "theory_tv(p_double, n_draws[-1], wrong_kernel)",
        "theory_tv(p, n_draws[-1], kernel)",
        "the noise of the right sampler for the mistake's",
        RULES,
    ),
    (
        "theory_tv(p, n, kernel) for n in n_draws",
        "theory_tv(p, n) for n in n_draws",
        "correlated draws called independent",
        RULES,
    ),
    (
        "for temperature in (1.0, 2.0))\n    return x, y",
        "for temperature in (1.0, 0.5))\n    return x, y",
        "the mistake called a colder machine",
        "test_correlations_of_the_mistake_are_those_at_2t",
    ),
    (
        "(label, exact), tolerance(sem, len(values)))",
        "(label, exact), 0.1 * abs(mean))",
        "a tolerance that is a share of what is measured",
        IN_UNITS,
    ),
    ("found.floor)  # at most", "mean)  # at most", "the mistake held against itself", IN_UNITS),
    # learning
    (
        "correlation, mean = moments(states, p_data - p_model)",
        "correlation, mean = moments(states, p_model - p_data)",
        "the gradient's sign",
        "test_the_exact_gradient_is_the_slope_of_the_log_likelihood",
    ),
    (
        "return states.T @ (states * weights.unsqueeze(1)), weights @ states",
        "return states.T @ states / len(states), weights @ states",
        "moments of all states alike",
        "test_moments_are_expectations_of_one_machine_and_of_many",
    ),
    (
        "return off_diagonal(gradient + gradient.mT), residual.sum(-2)",
        "return off_diagonal(gradient), residual.sum(-2)",
        "half of a pair's gradient",
        "test_the_pseudo_likelihood_gradient_is_autograd_of_the_pseudo_likelihood",
    ),
    (
        "off_diagonal(correlation_data - chains.mT @ chains",
        "off_diagonal(correlation_data + chains.mT @ chains",
        "two positive phases",
        "test_the_gibbs_gradient_is_the_exact_one_on_average",
    ),
    (
        "W = torch.diag_embed(1 / (1 - mean**2)) - inverse if diagonal",
        "W = off_diagonal(-inverse) if diagonal",
        "mean field without its diagonal",
        DIAGONAL,
    ),
    (
        "W = torch.diag_embed(1 / (1 - mean**2)) - inverse if diagonal",
        "W = torch.diag_embed(1 - mean**2) - inverse if diagonal",
        "a variance for its inverse",
        DIAGONAL,
    ),
    (
        "root = (1 - 8 * product * inverse)",
        "root = (1 + 8 * product * inverse)",
        "TAP's other sign",
        "test_mean_field_inverts_to_first_order_and_tap_to_second",
    ),
    (
        "return n_units * (n_units + 1) / 2 / (2 * n_data)",
        "return n_units * (n_units - 1) / 2 / (2 * n_data)",
        "Wilks without the biases",
        TEACHERS,
    ),
    (
        "kl[name] = (ceiling - (p_true * log_p).sum(1))",
        "kl[name] = (ceiling - (p_data * log_p).sum(1))",
        "judged by the training patterns",
        TEACHERS,
    ),
    (
        "W, b = (W * torch.tensor(STRENGTHS).view(-1, 1, 1, 1)).flatten(0, 1)",
        "W, b = (W * torch.tensor(STRENGTHS).flip(0).view(-1, 1, 1, 1)).flatten(0, 1)",
        "strong teachers called weak",
        TEACHERS,
    ),
    (
        "ceiling - mean, sem",
        "ceiling + mean, sem",
        "a fit better than the teacher",
        IN_LEARNING,
    ),
    (
        "found.left < 0.03 / config.n_data**0.5 and config.n_data >= 1000",
        "config.n_data >= 1000",
        "its price promised before learning has arrived",
        IN_LEARNING,
    ),
    (
        "found.left < 0.03 / config.n_data**0.5 and config.n_data >= 1000",
        "found.left < 0.03 / config.n_data**0.5",
        "a theory of many patterns promised for few",
        IN_LEARNING,
    ),
    (
        "({name: -found.kl[name][5].log() for name in INVERSIONS})",
        "({name: found.kl[name][5].log() for name in INVERSIONS})",
        "the worst inversion called first",
        IN_LEARNING,
    ),
    (
        "(exact[:4] / price).flatten()",
        "(exact / exact.mean()).flatten()[:8]",
        "the price measured in itself",
        IN_LEARNING,
    ),
    # pairs of pixels
    (
        "return grad_W - penalty * W, grad_b",
        "return grad_W - 2 * penalty * W, grad_b",
        "twice the penalty",
        "test_pairs_are_fitted_to_the_penalised_pseudo_likelihood",
    ),
    (
        "logsigmoid(2 * x * (x @ W + b))",
        "logsigmoid(x * (x @ W + b))",
        "the 2 of +-1 units forgotten",
        "test_pairs_are_fitted_to_the_penalised_pseudo_likelihood",
    ),
    (
        "pseudo_log_likelihood(x_valid, *fits[penalty]).mean()",
        "pseudo_log_likelihood(x_test, *fits[penalty]).mean()",
        "the penalty chosen on test images",
        PENALTY,
    ),
    (
        "x_train, x_valid = train_test_split(x_rest, test_size=0.15",
        "x_valid, x_train = train_test_split(x_rest, test_size=0.15",
        "training on the validation images",
        "test_digits_are_split_three_ways_and_are_1_where_ink_is",
    ),
    (
        "    x, units = x - x.mean(0), torch.arange(x.shape[1])",
        "    x, units = x - 0 * x.mean(0), torch.arange(x.shape[1])",
        "moments that are not connected",
        "test_connected_moments_by_loops",
    ),
    (
        "test, train = connected(x_test), connected(x_train)",
        "train, test = connected(x_test), connected(x_train)",
        "samples held against the images they were trained on",
        IN_PAIRS,
    ),
    (
        "return y @ x / (x @ x)",
        "return y @ x / (y @ y)",
        "the slope of x on y",
        IN_PAIRS,
    ),
    (
        "persistent_gradient(chains, x.T @ x / len(x), smoothed_mean(x))",
        "persistent_gradient(chains, x.T @ x / len(x), 0 * smoothed_mean(x))",
        "the means of coins",
        "test_matched_moments_are_those_of_the_patterns",
    ),
    (
        "match_moments(W, b, x_train, n_steps)",
        "match_moments(W, b, x_valid, n_steps)",
        "training on the validation images",
        PENALTY,
    ),
    # hidden units
    (
        "return (p_data.unsqueeze(-1) * posterior).flatten(-2)",
        "return (p_data.unsqueeze(-1) / posterior.shape[-1] + 0 * posterior).flatten(-2)",
        "hidden units filled in by coins",
        "test_the_gradient_with_hidden_units_is_autograd_of_the_visible_log_likelihood",
    ),
    (
        "wired[:4, 4:8] = wired[4:8, :4] = 0",
        "wired[:4, 4:8] = 0",
        "the groups wired one way",
        "test_the_encoder_shows_one_unit_of_each_group_and_wires_the_groups_through_hidden_units",
    ),
    (
        "[[1 - p_on, p_on], [p_off, 1 - p_off]]",
        "[[1 - p_off, p_off], [p_on, 1 - p_on]]",
        "on and off switched",
        "test_noisy_patterns_are_switched_unit_by_unit",
    ),
    (
        "step * off_diagonal(correlation).sign() * wired",
        "step * off_diagonal(correlation) * wired",
        "steps in proportion to the gradient",
        RULE_1985,
    ),
    (
        "cycles[:, None].double(), math.inf).amin(0)",
        "cycles[:, None].double(), -math.inf).amax(0)",
        "the last success for the first",
        RULE_1985,
    ),
    (
        "for codes in (with_noise[1][-1], without[1][-1],",
        "for codes in (with_noise[1].any(0), without[1].any(0),",
        "once met called kept",
        IN_HIDDEN,
    ),
    (
        "config.n_cycles, noise=(0.0, 0.0))",
        "config.n_cycles)",
        "a control with the noise that it is to lack",
        IN_HIDDEN,
    ),
    (
        "return -2 * math.log(4) + min(n_hidden * math.log(2), math.log(4))",
        "return -2 * math.log(4) + n_hidden * math.log(2)",
        "a hidden unit that holds more than there is",
        "test_the_best_encoder_is_reached_by_a_binary_code_and_not_by_a_shared_one",
    ),
    (
        "(each.reached > each.best + 1e-9)",
        "(each.reached > each.reached.max())",
        "a bound that nothing can exceed",
        IN_HIDDEN,
    ),
    # ising
    (
        "level = 65536 * torch.sigmoid(2 * field / temperature) - 32768",
        "level = 65536 * torch.sigmoid(field / temperature) - 32768",
        "the 2 of +-1 units forgotten",
        "test_the_thresholds_are_the_right_probabilities_on_average",
    ),
    (
        "return (1 - torch.sinh(2 / temperature) ** -4)",
        "return (1 - torch.sinh(2 / temperature) ** -2)",
        "Yang's exponent",
        "test_yang_magnetisation",
    ),
    (
        "gamma = torch.cat([(2 * coupling + torch.tanh(coupling).log())",
        "gamma = torch.cat([(2 * coupling + torch.tanh(coupling).log()).abs()",
        "Kaufman's gamma_0 positive above Tc",
        "test_kaufman_is_brute_force_on_4x4",
    ),
    (
        "trace[1, sweep] = -2 / side**2",
        "trace[1, sweep] = -1 / side**2",
        "each bond counted by half",
        "test_the_recorded_magnetisation_and_energy_are_those_of_the_lattice",
    ),
    (
        "tau = 1 + 2 * rho[..., 1:].cumsum(-1)",
        "tau = 1 + rho[..., 1:].cumsum(-1)",
        "lags of one side only",
        "test_the_autocorrelation_time_of_a_known_chain",
    ),
    (
        "m, energy = m[..., n_sweeps // 4 :].abs().double(), energy[..., n_sweeps // 4 :].double()",
        "m, energy = m[..., n_sweeps // 4 :].double().abs(), energy.double()",
        "the start not discarded",
        "test_lattices_are_averaged_after_the_first_quarter",
    ),
    (
        "exact_ising_energy(TEMPERATURES, each))\n        within = tolerance(1, n, len(TEMPERATURES))",
        "exact_ising_energy(TEMPERATURES, side))\n        within = tolerance(1, n, len(TEMPERATURES))",
        "small lattices held against the large one's energy",
        IN_ISING,
    ),
    (
        "within = tolerance(1, n, len(TEMPERATURES))",
        "within = tolerance(1, n)",
        "the worst of thirteen judged as one",
        IN_ISING,
    ),
    (
        "((sem / tau) ** 2).sum() ** 0.5 * tau[0] / tau[1]",
        "(sem / tau).sum() * tau[0] / tau[1]",
        "errors of a ratio added up",
        IN_ISING,
    ),
    (
        "simulate_ising(2 * side, shown, 1, config.n_ising_sweeps)",
        "simulate_ising(4 * side, shown, 1, config.n_ising_sweeps // 3)",
        "a snapshot of the start",
        IN_ISING,
    ),
    # clusters
    (
        "p_bond = 1 - torch.exp(-2 / temperature)",
        "p_bond = 1 - torch.exp(-1 / temperature)",
        "bonds for another temperature",
        WOLFF,
    ),
    (
        "down = (s == s.roll(-1, 1)) & (",
        "down = (s == s.roll(1, 1)) & (",
        "bonds laid with the neighbour above and used below",
        WOLFF,
    ),
    (
        "found.append([*gibbs, *(value * size.mean() for value in wolff)])",
        "found.append([*gibbs, *wolff])",
        "cluster updates called sweeps",
        SAMPLERS,
    ),
    (
        "length = max(3 * n_sweeps * side // sides[-1], 20)",
        "length = max(3 * n_sweeps, 20)",
        "small lattices run as long as the large",
        SAMPLERS,
    ),
    ("return 1 - m4 / (3 * m2**2)", "return 1 - m4 / m2**2", "Binder's 3 forgotten", BINDER),
    (
        "return estimate(everyone), ((n - 1) * left.var(correction=0)).sqrt().item()",
        "return estimate(everyone), (left.var(correction=0) / n).sqrt().item()",
        "the jackknife taken for repeats",
        BINDER,
    ),
    (
        'z, sem, ("Nightingale & Blote (1996)", 2.1665), tolerance(sem, n)',
        'z, sem, ("Nightingale & Blote (1996)", 2.1665), 1.5',
        "an exponent that passes from 0.7 to 3.6",
        IN_CLUSTERS,
    ),
    (
        "found.gibbs.log(), found.gibbs_sem / found.gibbs)",
        "found.gibbs.log(), found.gibbs_sem)",
        "errors of a time for those of its logarithm",
        IN_CLUSTERS,
    ),
    (
        'cumulant.sem, ("Onsager", T_C), within)',
        'cumulant.sem, ("Onsager", cumulant.crossing), within)',
        "the crossing held against itself",
        IN_CLUSTERS,
    ),
    # annealing
    (
        "p_swap = swap_probability(energies[..., i], energies[..., i + 1], ladder[i], ladder[i + 1])",
        "p_swap = swap_probability(energies[..., i + 1], energies[..., i], ladder[i], ladder[i + 1])",
        "exchange with the ratio upside down",
        "test_swapping_keeps_each_replica_at_its_temperature[0]",
    ),
    (
        "cold), n_sweeps // n_replicas, n_runs)",
        "cold), n_sweeps, n_runs)",
        "tempering's replicas come for free",
        "test_every_method_finds_ground_states_within_its_budget[parallel tempering]",
    ),
    (
        "return W.shape[-1] * span / temperature / math.log(10)",
        "return span / temperature / math.log(10)",
        "the theorem without its N",
        "test_what_geman_and_gemans_theorem_asks_for",
    ),
    (
        "lowest = [torch.stack([found[name][k].amin(1) for name in METHODS]).amin(0)",
        "lowest = [torch.stack([found[name][k].amin(1) for name in METHODS]).amax(0)",
        "above the worst of the best",
        ON_GLASSES,
    ),
    (
        "mean, sem = mean_and_sem(values[best] - values[name])",
        "mean, sem = mean_and_sem(values[name])",
        "compared without pairing",
        "test_who_is_as_good_as_the_best_is_told_by_paired_differences",
    ),
    (
        "grid[means.index(min(means))]",
        "grid[means.index(max(means))]",
        "the worst setting chosen",
        "test_settings_are_chosen_by_the_lowest_mean_energy_on_glasses_of_their_own",
    ),
    (
        "isf(0.01 / 2 / (len(values) - 1), n - 1)",
        "isf(0.01 / 2, n - 1)",
        "several comparisons judged as one",
        "test_who_is_as_good_as_the_best_is_told_by_paired_differences",
    ),
    (
        "*settings[1][name]).double()",
        "*settings[0][name]).double()",
        "large machines with the settings of the small",
        ON_GLASSES,
    ),
    (
        "{name: -excess[-1] for name, excess in found.excess.items()}",
        "{name: excess[-1] for name, excess in found.excess.items()}",
        "the highest energies called the lowest",
        IN_ANNEALING,
    ),
    # diagnostics
    (
        "(chain[chain != 0].sign().diff() != 0)",
        "(chain.sign().diff().abs() > 1)",
        "a switch by way of 0 overlooked",
        "test_chains_that_do_not_move_are_diagnosed_as_stuck",
    ),
    (
        "return 2 * (p * f) @ summed / (p @ f**2) - 1",
        "return (p * f) @ summed / (p @ f**2)",
        "lags of one side only",
        "test_the_exact_autocorrelation_time_of_a_two_state_chain",
    ),
    (
        "is_long = exact_tau < run.config.n_draws / 50",
        "is_long = found.tau < run.config.n_draws / 50",
        "errors believed where the chain is stuck",
        IN_DIAGNOSTICS,
    ),
    (
        'f"exact autocorr. time {exact_tau:.2g}", exact_tau > n_draws / 50',
        'f"exact autocorr. time {exact_tau:.2g}", found.tau > n_draws / 50',
        "the exact verdict from the chains",
        "test_cases_are_held_against_enumeration_and_alarms_ring_where_they_should",
    ),
]
