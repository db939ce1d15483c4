"""Mistakes planted in module 01 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

LEVELS = "test_two_level_system_has_the_textbook_energy_entropy_and_heat_capacity"
GRID = "test_log_z_shares_and_weights_of_the_double_well_are_those_of_a_grid"
IN_PARTITION = "test_section_partition_and_ais_judge_the_ratio_that_is_unbiased"
IN_CHAIN = "test_section_chain_compares_with_the_matrix"
IN_SAMPLING = "test_section_sampling_holds_exact_samplers_to_p_and_ula_to_its_own_limit"
IN_SCALING = "test_section_scaling_holds_limits_and_measurements_to_exact_values"
IN_STEPSIZE = "test_section_stepsize_holds_temperature_and_growth"
PLAIN = "test_the_plain_chain_is_the_vectorised_one"
WALK = "test_the_walk_agrees_with_its_matrix_and_dropping_refusals_is_wrong_as_computed"
EXACT = "test_adjusted_samplers_leave_exact_draws_exact_at_any_step_and_temperature"
KERNEL = "test_hmc_matrices_are_mala_for_one_step_and_the_sampler_for_more"
AIS = "test_ais_is_unbiased_in_every_dimension_and_its_path_ends_where_it_should"
GAUSSIAN = "test_acceptance_and_jump_on_a_gaussian_are_exact_in_any_dimension"
RANK = "test_theory_ranks_by_the_slower_of_x_and_its_square"
MEANS = "test_cost_by_the_variance_of_means_is_that_of_an_autoregression"
ADAM = "test_adam_by_hand_is_torchs_with_its_bias_correction"

MUTANTS = [
    # 1. probability
    (".sum(1) / temperatures**2", ".sum(1) / temperatures", "a heat capacity over T, not T squared", LEVELS),
    ("entropy = -(p * log_p).sum(1)", "entropy = (p * log_p).sum(1)", "an entropy below zero", LEVELS),
    (
        "hottest = t[swept.naive.isinf()].max()",
        "hottest = t[swept.naive.isinf()].min()",
        "the coldest temperature for the hottest",
        "test_section_probability_holds_identities_limits_and_overflow",
    ),
    # 2. partition
    ("return -energy(x) - proposal.log_prob(x)", "return -energy(x) + proposal.log_prob(x)", "weights times q", GRID),
    ("math.exp(-2 * double_well(", "math.exp(-double_well(", "the mean weight for its square", GRID),
    (
        "return log_sum - math.log(n), (",
        "return log_sum, (",
        "a sum of weights for their mean",
        "test_log_z_error_bar_and_ess_are_those_of_a_weighted_mean",
    ),
    (
        "return -(1 / share - 1) / (2 * n)",
        "return -(1 / share - 1) / n",
        "Jensen's shift without its one half",
        "test_jensens_shortfall_is_what_small_estimates_lose",
    ),
    (
        "return self.error.square().mean(-1).sqrt()",
        "return self.error.std(-1)",
        "a spread for an error: it forgets the bias",
        "test_estimates_are_errors_claims_and_shares_of_the_right_dimension",
    ),
    (
        '("unbiased", 1), tolerance(sem, config.n_repeats))',
        '("unbiased", 1), 10 * tolerance(sem, config.n_repeats))',
        "a width that nothing can miss",
        IN_PARTITION,
    ),
    # 3. landscapes
    (
        '("closed form", math.log(2 * math.pi * 0.5))',
        '("closed form", math.log(2 * math.pi * 0.25))',
        "a variance for a standard deviation",
        "test_landscapes_integrals_stationary_points_and_mass",
    ),
    (
        "minus_e = -energy(points).detach() / temperature",
        "minus_e = -energy(points).detach() * temperature",
        "a temperature upside down",
        "test_gaussian_density_on_a_grid_has_its_covariance_times_temperature",
    ),
    # 4. a chain that walks
    ("        path.append(x)  # also if", "            path.append(x)  # also if", "refused moves that are dropped", PLAIN),
    ("x, e, n_accepted = proposal, e_new,", "x, e, n_accepted = proposal, e,", "an energy that is not renewed", PLAIN),
    (
        "yes, x, e = accept((e - e_new) / temperature",
        "yes, x, e = accept((e_new - e) / temperature",
        "uphill moves accepted for certain",
        EXACT,
    ),
    (
        "return k + torch.diag(1 - rate), rate  # what",
        "return k / rate[:, None], rate  # what",
        "a matrix without its refused moves",
        "test_transition_matrices_are_stochastic_and_the_adjusted_ones_reversible",
    ),
    (
        "(draws[:, burn_in + 1 :] != draws[:, burn_in:-1])",
        "(draws[:, burn_in + 1 :] == draws[:, burn_in:-1])",
        "the stays for the moves",
        WALK,
    ),
    ("rows.append(rows[-1] @ k)", "rows.append(k @ rows[-1])", "a function pushed where a crowd should be", WALK),
    (
        "arrivals = (walk.p * walk.rate) @ WELL_AXIS / (walk.p @ walk.rate)",
        "arrivals = wrong",
        "a reference that is the measured value",
        IN_CHAIN,
    ),
    ("tolerance(sem, n, len(MARKS)))", "tolerance(sem, 3))", "a width as of three repeats", IN_CHAIN),
    # 5. sampling
    (
        "+ log_q(x, proposal, grad_new) - log_q(proposal, x, grad)",
        "",
        "Metropolis' ratio for a proposal that is not symmetric",
        EXACT,
    ),
    ("v = v + 0.5 * step_size * grad_new  # the last", "v = v + 0.0 * grad_new  # the last", "half a kick too much", EXACT),
    (
        "v = temperature**0.5 * torch.randn_like(x)\n        kinetic",
        "v = torch.randn_like(x)\n        kinetic",
        "a momentum of another temperature",
        EXACT,
    ),
    ("weight * (1 - place + left)", "weight * (place - left)", "shares of two grid points exchanged", KERNEL),
    (
        "return math.inf if trouble else",
        "return 0.0 if trouble else",
        "a chain that never moves and is perfect",
        "test_a_point_that_a_chain_never_leaves_makes_tau_infinite_and_ends_no_run",
    ),
    (
        "tau = max(exact_autocorrelation_time(k, f, pi) for f in (axis, axis**2))",
        "tau = min(exact_autocorrelation_time(k, f, pi) for f in (axis, axis**2))",
        "the better of x and its square",
        "test_the_sweep_takes_the_worse_of_x_and_its_square_and_every_best_lies_inside_it",
    ),
    (
        "1000 * ess / n / effort",
        "1000 * ess / n",
        "evaluations that are not counted",
        "test_cost_counts_evaluations_and_the_worse_function",
    ),
    (
        'run.metric("ULA: mean of x beside its own limit", mean, sem, ("exact kernel", own @ wide)',
        'run.metric("ULA: mean of x beside its own limit", mean, sem, ("exact kernel", pi @ axis)',
        "a biased sampler held to p",
        IN_SAMPLING,
    ),
    (
        "if config.n_settling >= SETTLED else None",
        "if config.n_settling >= 1 else None",
        "a film too short is judged",
        IN_SAMPLING,
    ),
    # 6. AIS
    (
        "return (1 - beta) * 0.5 * (x**2 + math.log(2 * math.pi))",
        "return (1 - beta) * 0.5 * (x**2)",
        "a start whose Z is not 1",
        AIS,
    ),
    (
        "log_w = log_w + energy(x, last) - energy(x, beta)",
        "log_w = log_w + energy(x, beta) - energy(x, last)",
        "weights upside down",
        "test_ais_finds_a_gaussians_normaliser_with_exact_and_with_mala_moves",
    ),
    # 7. scaling
    (
        "2 * scipy.special.betainc(d / 2, d / 2, (1 - t",
        "2 * scipy.special.betainc(d / 2, d / 2, (1 + t",
        "up for down",
        GAUSSIAN,
    ),
    (
        "betainc(d / 2 + i, d / 2 + 1 - i, s)",
        "betainc(d / 2, d / 2, s)",
        "a jump that does not know how far it goes",
        GAUSSIAN,
    ),
    (
        "return math.cos(angle), math.sin(angle) / (1 - h**2 / 4) ** 0.5",
        "return math.cos(angle), math.sin(angle)",
        "the exact motion for leapfrog",
        "test_leapfrog_on_a_gaussian_turns_by_its_angle",
    ),
    ("for rate in (change, change * (1 + c)))", "for rate in (change,))", "half a turn taken for perfect", RANK),
    (".square().mean(1) / 2  # x²", ".square().mean(1)  # x²", "the variance of x squared", MEANS),
    ("return 1000 / tau / effort,", "return 1000 / tau,", "the trajectory's cost forgotten", MEANS),
    (
        '("published", published), 5e-4)',
        '("published", published), 0.1)',
        "a width that passes any published value",
        IN_SCALING,
    ),
    # 8. stepsize
    (
        "return 2 * temperature / (2 - a * step_size / 2)",
        "return 2 * temperature / (2 - a * step_size)",
        "h for step_size",
        IN_STEPSIZE,
    ),
    (
        "x = x.detach() - 0.5 * step_size * grad + (step_size * temperature)",
        "x = x.detach() - 0.5 * step_size * grad + (2 * step_size * temperature)",
        "the other form's noise",
        "test_one_langevin_step_moves_by_half_the_step_downhill_with_noise_of_the_temperature",
    ),
    # 9. forces
    ("p += rate * (m / (1 - betas[0] ** step))", "p += rate * m", "Adam without its bias correction", ADAM),
    (
        "negative = torch.autograd.grad((p * e_grid).sum(), parameters)",
        "negative = torch.autograd.grad(-(p * e_grid).sum(), parameters)",
        "a negative phase with the sign of the positive one",
        "test_phases_are_the_finite_difference_slope_of_the_log_likelihood",
    ),
    (
        "p = (-e_grid).softmax(1).detach()",
        "p = (-e_grid).softmax(1)",
        "a missing detach: p differentiated too",
        "test_phases_are_the_finite_difference_slope_of_the_log_likelihood",
    ),
    # 10. covering
    (
        "(0.48, 3 * u - 1.5)",
        "(0.24, 3 * u - 1.5)",
        "mixed pairs counted once",
        "test_lines_between_data_have_the_density_of_their_points",
    ),
    (
        "return (p * gap).sum(), -(np.exp(log_q) * gap).sum()",
        "return -(np.exp(log_q) * gap).sum(), (p * gap).sum()",
        "the directions exchanged",
        "test_forward_kl_covers_and_reverse_kl_seeks",
    ),
    (
        "np.log(factor / slowest)",
        "np.log(1 / factor / slowest)",
        "ten times slower for ten times faster",
        "test_section_covering_holds_moments_and_modes_and_prices_the_penalties",
    ),
]
