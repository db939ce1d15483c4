"""Mistakes planted in module 05 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

PLAIN = "test_the_fast_trainer_equals_the_plain_update"
BIAS = "test_a_measured_bias_is_relative_to_the_gradient_and_decays_at_the_second_eigenvalue"
DIGITS = "test_digits_are_tuned_on_validation_and_scored_on_test_images"
FROZEN = "test_the_frozen_control_is_the_machine_at_the_end"
IN_BIAS = "test_section_bias_compares_with_theory_and_eq_2"
IN_METHODS = "test_section_methods_compares_with_the_best_possible_the_baseline_and_the_exact_log_z"
IN_CHAINS = "test_section_chains_holds_lag_zero_only_where_nothing_learns_and_compares_with_the_frozen_end"
IN_MISLEADING = "test_section_misleading_says_what_happened_since_the_peak"
IN_CONVERGENCE = "test_section_convergence_shows_every_training_beside_the_best_possible"

MUTANTS = [
    # methods
    (
        "return self.field(v).mul_(beta).sigmoid_()",
        "return self.field(v).div_(beta).sigmoid_()",
        "a temperature in the place of its inverse",
        "test_conditionals_equal_enumeration_at_each_temperature",
    ),
    (
        "return -(field.sigmoid() * field).sum(-1) - (v * self.b).sum(-1)",
        "return -softplus(field).sum(-1) - (v * self.b).sum(-1)",
        "the free energy for the mean energy",
        "test_energies_and_log_z_equal_enumeration",
    ),
    (
        "W = (x.mT @ h - x_model.mT @ h_model) / n",
        "W = (x_model.mT @ h_model - x.mT @ h) / n",
        "the plain gradient of W descends",
        "test_the_plain_gradient_is_the_fast_one_and_autograds",
    ),
    (
        "return moved(rbm, likelihood_gradient(rbm, x, gibbs(rbm, x, k)), rate)",
        "return moved(rbm, likelihood_gradient(rbm, x, gibbs(rbm, x, 1)), rate)",
        "plain CD-k that makes one sweep",
        PLAIN,
    ),
    (
        "return moved(rbm, likelihood_gradient(rbm, x, chains), rate), chains",
        "return moved(rbm, likelihood_gradient(rbm, x, chains), rate), x",
        "plain PCD whose chains restart at the data",
        PLAIN,
    ),
    (
        "fast = RBM(*(19 / 20 * old + fast_rate * g",
        "fast = RBM(*(old + fast_rate * g",
        "plain fast weights that never forget",
        PLAIN,
    ),
    (
        "(*range(0, len(betas) - 1, 2), *range(1, len(betas) - 1, 2))",
        "range(0, len(betas) - 1, 2)",
        "plain tempering in which only the even pairs exchange",
        PLAIN,
    ),
    (
        "log_ratio = (betas[r] - betas[r + 1]) * (energy[r] - energy[r + 1])",
        "log_ratio = (betas[r] - betas[r + 1]) * (energy[r + 1] - energy[r])",
        "plain exchange with the ratio upside down",
        PLAIN,
    ),
    (
        "log_ratio = (betas[a] - betas[b]).unsqueeze(1) * (energy[:, a] - energy[:, b])",
        "log_ratio = (betas[b] - betas[a]).unsqueeze(1) * (energy[:, a] - energy[:, b])",
        "exchange with the ratio upside down",
        "test_exchange_accepts_by_the_ratio_of_joint_probabilities",
    ),
    (
        "for state, mask in ((energy, swap), (v, swap.unsqueeze(3))):",
        "for state, mask in ((v, swap.unsqueeze(3)),):",
        "exchange that leaves the energies where they were",
        "test_exchange_accepts_by_the_ratio_of_joint_probabilities",
    ),
    (
        "torch.linspace(1, 0, method.n_replicas, device=rbm.W.device)",
        "torch.linspace(0, 1, method.n_replicas, device=rbm.W.device)",
        "the training samples come from the hottest replica",
        "test_tempering_pays_for_its_replicas_and_trains_on_those_at_beta_1",
    ),
    (
        "if not self.method.persistent:",
        "if self.method.persistent:",
        "persistent chains restart, those of CD do not",
        "test_each_method_starts_its_chains_where_it_should",
    ),
    (
        "fast.mul_(19 / 20).add_(g, alpha=self.method.fast_rate)",
        "fast.mul_(19 / 20).sub_(g, alpha=self.method.fast_rate)",
        "fast weights that hold the chains back",
        "test_a_step_climbs_by_the_rate_and_fast_weights_forget_a_twentieth",
    ),
    (
        "rates * (1 - update / n_updates) if anneal",
        "rates * (update / n_updates) if anneal",
        "the rate's schedule reversed",
        "test_the_rate_falls_linearly_to_zero_or_stays",
    ),
    (
        "kept[update] = RBM(*(parameter.clone() for parameter in trainer.rbm))",
        "kept[update] = trainer.rbm",
        "every mark holds the last machine",
        "test_the_rate_falls_linearly_to_zero_or_stays",
    ),
    (
        "means = score(rbm).view(len(grid), n_tuning).mean(1)",
        "means = score(rbm).view(len(grid), n_tuning).amax(1)",
        "a rate chosen by its luckiest machine",
        "test_a_method_is_tuned_on_other_machines_by_the_mean_score",
    ),
    (
        "return max(n_sweeps // method.sweeps, 1)",
        "return n_sweeps",
        "equal updates called equal sweeps",
        "test_budgets_are_thirds_and_an_update_costs_its_sweeps",
    ),
    (
        "log_w += (new - old) * (v * (b - base_b)).sum(-1)",
        "log_w += (new - old) * (v * b).sum(-1)",
        "AIS that forgets the base's biases",
        "test_ais_finds_log_z_of_each_machine",
    ),
    (
        "return nats.where(share >= 0.1, torch.nan)",
        "return nats.where(share >= 0.01, torch.nan)",
        "AIS trusted on one chain in a hundred",
        "test_what_rests_on_few_chains_is_not_trusted",
    ),
    (
        "return (x - rbm.p_visible(bernoulli(rbm.p_hidden(x)))).square().sum(2).mean(1)",
        "return (x - rbm.p_visible(bernoulli(rbm.p_hidden(x)))).square().mean((1, 2))",
        "a mean over pixels called pixels a pattern",
        "test_reconstruction_error_is_in_pixels",
    ),
    (
        "return torch.where(agreement == 0, which, last)",
        "return torch.where(agreement >= -1, which, last)",
        "a broken pattern counted as the pattern: noise makes mode switches",
        "test_last_pattern_knows_patterns_and_remembers",
    ),
    (
        "return 1000 * self.switches.clamp(min=0)",
        "return 1000 * (self.switches + 1)",
        "the first pattern counted as a switch",
        "test_switches_count_each_new_pattern_once",
    ),
    # references
    (
        "return -math.log(len(x))",
        "return math.log(len(x))",
        "the entropy for minus the entropy",
        "test_the_best_possible_is_minus_the_entropy_and_no_model_beats_it",
    ),
    (
        "odds = log_odds(x_train)",
        "odds = log_odds(x_test)",
        "the baseline fitted to the test images",
        "test_the_independent_baseline_has_the_training_rates_and_the_test_images",
    ),
    (
        "size = (variance * ((q - p) ** 2 / p).sum(1)).sqrt()",
        "size = (variance * ((q - p) ** 2 / q).sum(1)).sqrt()",
        "chi-squared of the model from the data",
        "test_the_bound_of_eq_3_is_computed_as_stated",
    ),
    (
        "return second ** torch.arange(n_sweeps + 1)",
        "return second ** torch.arange(1, n_sweeps + 2)",
        "the bound one sweep too early",
        "test_the_bound_of_eq_3_is_computed_as_stated",
    ),
    (
        "return (p * rbm.upside_down.mean_energy(h)).sum(1)",
        "return (p * rbm.upside_down.free_energy(h)).sum(1)",
        "the model's mean free energy for its mean energy",
        "test_energies_and_log_z_equal_enumeration",
    ),
    (
        "return (p * barness(v)).sum(1)",
        "return barness(v).mean(1)",
        "the exact mean under coins, not under the model",
        "test_exact_barness_of_independent_pixels_is_their_means_and_variances",
    ),
    # experiments
    (
        "cosine=to_numpy(torch.cosine_similarity(path[0] - path[1:], path[:1], 2))",
        "cosine=to_numpy(torch.cosine_similarity(path[1:], path[:1], 2))",
        "the direction of the bias for that of the update",
        BIAS,
    ),
    (
        "relative=to_numpy(norms / norms[0])",
        "relative=to_numpy(norms / norms[1])",
        "the bias relative to CD-1's bias",
        BIAS,
    ),
    (
        "n_beyond=(norms > bound * (1 + 1e-9)).sum().item()",
        "n_beyond=(norms > bound.amax(0)).sum().item()",
        "each bias held against the bound at k = 0",
        BIAS,
    ),
    (
        "return ChainStep((q @ statistics(rbm, v)[0] - model) @ direction, ((gradient - left) @ direction).item())",
        "return ChainStep((q @ statistics(rbm, v)[0] - model) @ direction, (gradient @ direction).item())",
        "CD-1 held against the exact gradient",
        "test_cd_1_by_chains_is_eq_2_of_the_first_machine_along_its_gradient",
    ),
    (
        "trusted(*log_likelihood_by_ais(rbm, base_b, x_valid, *few))",
        "trusted(*log_likelihood_by_ais(rbm, base_b, x_test, *few))",
        "rates chosen on the test images",
        DIGITS,
    ),
    (
        "log_likelihood_by_ais(result.rbm, base_b, x_test, config.n_ais_chains",
        "log_likelihood_by_ais(result.rbm, base_b, x_train, config.n_ais_chains",
        "training images scored as test images",
        DIGITS,
    ),
    (
        "base_b, few, results = log_odds(x_train)",
        "base_b, few, results = log_odds(x_test)",
        "AIS begins with the rates of the test images",
        DIGITS,
    ),
    (
        "jobs += [(name, config.digits_sweeps) for name in METHODS if METHODS[name].sweeps > 1]",
        "jobs += [(name, config.digits_sweeps) for name in METHODS if METHODS[name].n_replicas > 1]",
        "CD-10 left out of the comparison at equal updates",
        DIGITS,
    ),
    (
        "updates = {name: results[name, n_sweeps] for name in METHODS}",
        "updates = {name: results[name, updates_for(METHODS[name], n_sweeps)] for name in METHODS}",
        "equal sweeps shown twice",
        "test_digits_meet_at_equal_sweeps_and_at_equal_updates",
    ),
    (
        "updates_for(METHODS[name], sweeps), config.n_tuning, config.n_seeds",
        "sweeps, config.n_tuning, config.n_seeds",
        "CD-10 gets ten times the sweeps",
        "test_bars_are_trained_at_every_budget_and_scored_exactly",
    ),
    (
        "lambda rbm: exact_log_likelihood(rbm, x),",
        "lambda rbm: -reconstruction_error(rbm, x),",
        "rates chosen by what misleads",
        "test_bars_are_trained_at_every_budget_and_scored_exactly",
    ),
    (
        "x, rates, marks[-1], marks, anneal=False)",
        "x, rates, marks[-1], marks)",
        "the rate falls where it is said to be constant",
        "test_cd_1_is_watched_at_a_constant_rate_and_peaks_where_the_mean_does",
    ),
    (
        "return Watched(marks, nats, errors, nats.mean(1).argmax().item())",
        "return Watched(marks, nats, errors, errors.mean(1).argmin().item())",
        "the peak of the likelihood taken where the error is least",
        "test_cd_1_is_watched_at_a_constant_rate_and_peaks_where_the_mean_does",
    ),
    (
        'trainer = Trainer(rbm, METHODS["PCD"], len(x), exact_samples(rbm, len(x)))',
        'trainer = Trainer(rbm, METHODS["PCD"], len(x))',
        "chains that begin as coins: at rate 0 they lag too",
        "test_the_chains_whose_lag_is_measured_begin_as_exact_samples",
    ),
    (
        "switches, switches_frozen(machines, many, n_updates)",
        "switches, switches_frozen(RBM(*(p.repeat(len(LEARNING_RATES), 1, 1) for p in rbm)), many, n_updates)",
        "the frozen control is the machine before it learnt",
        FROZEN,
    ),
    (
        "exact_log_likelihood(machines, x), switches",
        "exact_log_likelihood(RBM(*(p.repeat(len(LEARNING_RATES), 1, 1) for p in rbm)), x), switches",
        "the end likelihood is that of the beginning",
        FROZEN,
    ),
    (
        "        v = gibbs(rbm, v, 1)\n        counter.see(v)",
        "        v = exact_samples(rbm, len(x))\n        counter.see(v)",
        "the frozen chains are drawn anew at each sweep",
        "test_frozen_machines_stay_and_their_switches_are_those_of_gibbs_sampling",
    ),
    (
        "return mean < -3 * sem",
        "return mean < 0",
        "a fall that noise makes: the peak was picked",
        "test_a_fall_from_the_best_of_many_marks_is_clear_beyond_three_standard_errors",
    ),
    (
        "(clearly_falls(change) for change in changes)",
        "(clearly_falls(change) for change in changes[::-1])",
        "likelihood and error take each other's verdict",
        IN_MISLEADING,
    ),
    (
        "autocorrelation(chains)[ten] for",
        "autocorrelation(chains)[10] for",
        "ten rounds of tempering called ten sweeps",
        "test_mixing_is_measured_against_the_exact_mean_and_charged_for_replicas",
    ),
    (
        "for chains in draws]) / (draws[0].numel() * n_replicas)",
        "for chains in draws]) / draws[0].numel()",
        "tempering's replicas come for free",
        "test_mixing_is_measured_against_the_exact_mean_and_charged_for_replicas",
    ),
    (
        "switches=switches / n_replicas,",
        "switches=switches,",
        "tempering's mode switches of five times the sweeps",
        "test_mixing_is_measured_against_the_exact_mean_and_charged_for_replicas",
    ),
    (
        "not mean - rows[name][0] > 2 * math.hypot(sem, rows[name][1])]",
        "mean - rows[name][0] <= 2 * math.hypot(sem, rows[name][1])]",
        "one machine each, and the others are called worse",
        "test_the_choice_names_the_best_and_all_that_are_as_good",
    ),
    (
        "error=(draws.mean((1, 2)) - exact).abs()",
        "error=(draws.mean((1, 2)) - draws[:, :, -1].mean(1)).abs()",
        "the chains held against themselves",
        "test_mixing_is_measured_against_the_exact_mean_and_charged_for_replicas",
    ),
    (
        "if seconds[key] <= limit]",
        "if seconds[key] >= limit]",
        "what is too slow is recommended",
        "test_a_situation_holds_what_its_budget_can_pay_for",
    ),
    # sections
    (
        "within = tolerance(sem, len(step.groups))",
        "within = tolerance(sem, 3)",
        "a tolerance as of three repeats",
        IN_BIAS,
    ),
    (
        '("exact gradient", 0))',
        '("exact gradient", 0), bias.relative[k].mean())',
        "a tolerance from the measured value",
        IN_BIAS,
    ),
    (
        "least = min(bias.least for bias in found.values())",
        "least = max(bias.least for bias in found.values())",
        "the best of the smallest eigenvalues",
        IN_BIAS,
    ),
    (
        "exact_independent_log_likelihood(x_train, x_test))",
        "exact_independent_log_likelihood(x_train, x_train))",
        "the baseline on the training images",
        IN_METHODS,
    ),
    (
        "nearest, ties = best_and_ties(nats)",
        "nearest, ties = ranked[-1], []",
        "a winner named within the noise",
        IN_METHODS,
    ),
    (
        "sweeps, best = budgets(config)[-1]",
        "sweeps, best = budgets(config)[0]",
        "the smallest budget shown as the full one",
        IN_METHODS,
    ),
    (
        "for name in (ranked[0], ranked[-1])]",
        "for name in (ranked[-1], ranked[0])]",
        "the worst machine drawn as the best",
        IN_METHODS,
    ),
    (
        'scored.share.min(), against=("refused below", 0.1))',
        'scored.share.max(), against=("refused below", 0.1))',
        "the best machine's share stands for all",
        IN_METHODS,
    ),
    (
        "changes.append(values[-1] - values[watched.peak])",
        "changes.append(values[watched.peak] - values[-1])",
        "a fall called a rise",
        IN_MISLEADING,
    ),
    (
        "tolerance(sem, learning.lag.numel()))",
        "tolerance(sem, len(learning.lag)))",
        "a tolerance as of the machines where each chain is a repeat",
        IN_CHAINS,
    ),
    (
        'against = "end machine, frozen", learning.frozen.mean()',
        'against = "end machine, frozen", found[0.0].frozen.mean()',
        "every rate beside the machine that never learnt",
        IN_CHAINS,
    ),
    (
        "x[3].expand(config.n_seeds, len(x), -1)",
        "x.expand(config.n_seeds, -1, -1)",
        "one start that is all starts",
        IN_CHAINS,
    ),
    (
        "chosen = [(RATES, results), (DIGITS_RATES, trained_on_digits(run))]",
        "chosen = [(RATES, results)]",
        "the digits' grid of rates may be too narrow, unseen",
        IN_CONVERGENCE,
    ),
    (
        "digits, _ = digits_compared(",
        "_, digits = digits_compared(",
        "equal updates in the table of equal sweeps",
        IN_CONVERGENCE,
    ),
    (
        "if run.config.n_ais_chains <= 10:",
        "if run.config.n_ais_chains < 10:",
        "ten chains said to be enough to refuse",
        "test_a_method_that_ais_cannot_judge_is_named_and_has_no_number",
    ),
    # seeds, splits, windows
    (
        "    config, x = run.config, bars_and_stripes().to(run.device)\n    torch.manual_seed(run.seed)",
        "    config, x = run.config, bars_and_stripes().to(run.device)\n    torch.manual_seed(0)",
        "bars trained from one seed, whatever the run's is",
        "test_a_training_has_a_random_stream_of_its_own_from_the_runs_seed[trained_on_bars]",
    ),
    (
        "binary_digits(run.device)\n    torch.manual_seed(run.seed)\n",
        "binary_digits(run.device)\n",
        "digits trained from whatever was drawn before",
        "test_a_training_has_a_random_stream_of_its_own_from_the_runs_seed[trained_on_digits]",
    ),
    (
        "x_train, x_valid = train_test_split(x_rest, test_size=0.15",
        "x_valid, x_train = train_test_split(x_rest, test_size=0.15",
        "training on the validation images",
        "test_digits_are_binary_and_split_three_ways",
    ),
    (
        "if update >= n_updates // 2 and (n_updates - 1 - update) % every == 0:",
        "if update < n_updates // 2 and (n_updates - 1 - update) % every == 0:",
        "the lag of the first half",
        "test_the_lag_is_above_the_model_and_of_the_second_half",
    ),
    (
        "lags.append(rbm.mean_energy(trainer.chains) - exact_mean_energy(rbm).unsqueeze(1))",
        "lags.append(exact_mean_energy(rbm).unsqueeze(1) - rbm.mean_energy(trainer.chains))",
        "the lag's sign",
        "test_the_lag_is_above_the_model_and_of_the_second_half",
    ),
    # figures
    (
        "zip(axes, titles, (watched.errors, watched.nats)",
        "zip(axes, titles, (watched.nats, watched.errors)",
        "likelihood and error under each other's name",
        "test_draw_watched_shows_the_error_left_and_the_likelihood_right",
    ),
    (
        "([sweeps for _, sweeps in keys], [seconds[key] for key in keys])",
        "([seconds[key] for key in keys], [sweeps for _, sweeps in keys])",
        "sweeps and seconds under each other's name",
        "test_draw_curves_has_sweeps_left_and_seconds_right",
    ),
    (
        'axes[2].errorbar(rates, *rows["frozen"][:, 1:]',
        'axes[2].errorbar(rates, *rows["switches"][:, :-1]',
        "the frozen control drawn from the learning machines",
        "test_draw_learning_shows_lag_likelihood_and_switches",
    ),
    (
        '[chains.mean(1) for chains in found_by["lag"]]',
        '[chains.flatten() for chains in found_by["lag"]]',
        "chains of one learning machine counted as independent repeats",
        "test_draw_learning_shows_lag_likelihood_and_switches",
    ),
    (
        "ends, worst = np.array(axes[2].get_xlim()), max(",
        "ends, worst = np.array(axes[2].get_xlim()), min(",
        "the title boasts of the best machines",
        "test_draw_decay_shows_medians_bounds_and_directions",
    ),
    (
        "axes[0].semilogy(k, np.median(bias.bound[1:], 1)",
        "axes[0].semilogy(k, np.median(bias.bound[:-1], 1)",
        "the bound drawn a sweep late",
        "test_draw_decay_shows_medians_bounds_and_directions",
    ),
]
