"""Mistakes planted in module 07 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

PLAIN = "test_the_plain_loop_and_the_fast_trainer_learn_the_same_weights_from_the_same_draws"
SLOPE = "test_the_slope_by_hand_equals_autograd_and_finite_differences"
EQUATION_3 = "test_the_autoencoders_energy_is_equation_3"
UPDATE = "test_an_update_is_one_step_down_on_data_and_up_on_chains_with_small_energies"
COLD = "test_a_training_made_cold_takes_the_same_steps"
RECIPES = "test_recipes_start_alike_and_are_judged_at_their_own_temperature"
PLANE = "test_exact_gap_is_0_for_the_datas_own_energy_and_the_known_one_for_a_gaussian"
WEIGHTS = "test_chains_carry_the_weight_that_the_changing_energy_gives_them"
MIXTURE = "test_a_mixture_is_drawn_with_its_moments_each_gaussian_by_its_share_or_at_random"
CURVATURE = "test_the_stiffest_curvature_is_the_hessians_largest_eigenvalue"
BLOCKS = "test_the_buffer_visits_its_blocks_in_turn_and_what_moves_stays_moved"
CHECKPOINT = "test_labels_come_back_with_the_checkpoint"
IN_LOOP = "test_section_loop_compares_each_recipe_with_the_noise_and_the_kept_update_with_the_saved"
IN_DIGITS = "test_section_digits_holds_the_energy_beside_the_mixture_and_the_mixture_beside_real_images"
IN_PROPORTIONS = "test_section_proportions_compares_at_equal_nearness"
IN_CONDITIONAL = "test_section_conditional_holds_it_beside_the_judge_and_the_mixture_that_knows_the_labels"
START = "test_chains_start_from_standard_noise_or_from_that_of_their_clusters_pixels"
TILT = "test_a_tilted_mixture_is_its_network_less_the_log_density_of_the_noisy_mixture"

MUTANTS = [
    # the judge
    (
        "np.trace(c1) + np.trace(c2) - 2 * root",
        "np.trace(c1) + np.trace(c2) - root",
        "a Frechet distance with half of its cross term",
        "test_frechet_distance_is_that_of_gaussians_and_0_for_equal_sets",
    ),
    (
        "frechet_distance(ours / train.std(0), test / train.std(0))",
        "frechet_distance(ours / train.std(0), train / train.std(0))",
        "a distance to the training images",
        "test_frechet_to_test_measures_clamped_images_in_units_of_the_training_features",
    ),
    (
        "x = in_float64(as_pixels(x[: len(real)], N_LEVELS[run.config.dataset]))",
        "x = in_float64(x[: len(real)].clamp(-1, 1))",
        "samples that are told by what lies between the grey levels",
        "test_samples_are_rounded_to_pixels_before_they_are_told_from_real_images",
    ),
    (
        "return x[rank <= max(torch.bincount(labels",
        "return x[rank < max(torch.bincount(labels",
        "even classes with one image too few",
        "test_classes_are_made_even_by_the_first_of_each",
    ),
    # energies
    (
        "return (x - self.g(x)).square().sum(1) / (2 * self.sigma**2)",
        "return (x - self.g(x)).square().sum(1) / self.sigma**2",
        "the plain energy at half the temperature",
        EQUATION_3,
    ),
    (
        "return (x - out).square().sum(-1) / (2 * self.sigma**2)",
        "return (x - out).square().mean(-1) / (2 * self.sigma**2)",
        "a mean over pixels in the place of a sum",
        EQUATION_3,
    ),
    (
        "return self.error(x, self.before(x, y)).square().sum(-1) / (2 * self.sigma**2)",
        "return self.error(x, self.before(x, y)).square().sum(-1) / (2 * self.sigma)",
        "sigma that is not squared",
        EQUATION_3,
    ),
    (
        "return torch.baddbmm(r, back, self.w1.mT, alpha=-1).div_(self.sigma**2)",
        "return torch.baddbmm(r, back, self.w1.mT).div_(self.sigma**2)",
        "the slope's second term with the wrong sign",
        SLOPE,
    ),
    (
        "torch.ops.aten.silu_backward(torch.bmm(r, self.w2.mT), z)",
        "torch.bmm(r, self.w2.mT) * z.sigmoid()",
        "the derivative of silu without its second term",
        SLOPE,
    ),
    (
        "z = z + self.biases.index_select(0, y.repeat(len(x)))",
        "z = z + self.biases.index_select(0, y.repeat_interleave(len(x)))",
        "labels of other images when networks stand side by side",
        "test_labels_have_biases_of_their_own_after_the_first_layer",
    ),
    (
        "(part.var(0, correction=0) + config.data_noise**2).sqrt()",
        "part.var(0, correction=0) + config.data_noise**2",
        "chains that start with a variance for a spread",
        START,
    ),
    (
        "(part.var(0, correction=0) + config.data_noise**2).sqrt()",
        "part.std(0, correction=0)",
        "chains that start in the clean pixels' spread",
        START,
    ),
    (
        "self.y_now().repeat(len(block))[fresh]",
        "self.y_now().repeat_interleave(len(block))[fresh]",
        "restarts from the pixels of other chains' clusters",
        START,
    ),
    (
        "self.buffer.start = Start(self.config, self.x, y_data)",
        "pass",
        "after --resume chains start from clusters of another seed",
        START,
    ),
    (
        "start = Start(replace(trainer.config, data_noise=0.0), trainer.x, trainer.y)",
        "start = Start(trainer.config, trainer.x, trainer.y)",
        "the start judged with noise that its images do not have",
        "test_where_chains_start_is_judged_without_the_noise_of_the_data_and_in_the_datas_shares",
    ),
    (
        "parts = [x] if y_data is None else",
        "parts = [x] if True else",
        "chains that start from the pixels of all images",
        START,
    ),
    (
        "self.start(flat.new_empty(len(fresh), flat.shape[1]).normal_(), y)",
        "flat.new_empty(len(fresh), flat.shape[1]).normal_()",
        "restarts from other noise than samples",
        START,
    ),
    (
        "is_better = one - scores[best][0] > 2 * math.hypot(error, scores[best][1])",
        "is_better = one > scores[best][0]",
        "a temperature called best by chance",
        "test_a_temperature_is_better_only_beyond_two_standard_errors",
    ),
    # the tilted mixture
    (
        "return super().forward(x, y) - self.log_q(x)",
        "return super().forward(x, y) + self.log_q(x)",
        "a mixture upside down",
        TILT,
    ),
    (
        "torch.as_tensor(mixture.covariances) + noise**2 * torch.eye",
        "torch.as_tensor(mixture.covariances) + noise * torch.eye",
        "a mixture widened by a spread",
        TILT,
    ),
    (
        "+ root.diagonal(dim1=1, dim2=2).log().sum(1)",
        "- root.diagonal(dim1=1, dim2=2).log().sum(1)",
        "Gaussians weighed by their volume",
        TILT,
    ),
    (
        "found[mark], done = frechet_and_sem(run, denoised(run, trainer.average, chains)), mark",
        "found[mark] = frechet_and_sem(run, denoised(run, trainer.average, chains))",
        "steps counted twice",
        "test_a_tilt_starts_at_the_noisy_mixture_and_ends_after_its_marks",
    ),
    # the plain loop
    (
        "x = x - step_size / 2 * slope + step_size**0.5 * torch.randn_like(x)",
        "x = x - step_size * slope + step_size**0.5 * torch.randn_like(x)",
        "plain Langevin at half the temperature",
        "test_plain_langevin_is_the_fast_one",
    ),
    (
        "return x.detach()\n\n\ndef plain_training",
        "return x\n\n\ndef plain_training",
        "plain chains that carry their graph into the loss",
        "test_plain_langevin_is_the_fast_one",
    ),
    (
        "chains = buffer[visited] = plain_langevin(",
        "chains = plain_langevin(",
        "plain chains that are not written back",
        PLAIN,
    ),
    (
        "loss = e_data.mean() - e_chains.mean() + 1e-5",
        "loss = e_chains.mean() - e_data.mean() + 1e-5",
        "a plain loss upside down",
        PLAIN,
    ),
    (
        "fresh, chains = torch.rand(batch_size) < 0.01, buffer[visited]",
        "fresh, chains = torch.rand(batch_size) < 0.99, buffer[visited]",
        "plain chains that nearly always restart",
        PLAIN,
    ),
    (
        'adam.param_groups[0]["lr"] = 4e-3 * (1 - update / n_updates) *',
        'adam.param_groups[0]["lr"] = 4e-3 *',
        "a plain rate that does not fall",
        PLAIN,
    ),
    (
        "data = data + data_noise * torch.randn_like(data)",
        "data = data + data_noise**2 * torch.randn_like(data)",
        "plain data with the variance for the standard deviation",
        PLAIN,
    ),
    # the fast loop
    (
        "x.sub_(energy.slope(x, y), alpha=step_size / 2)",
        "x.sub_(energy.slope(x, y), alpha=step_size)",
        "Langevin at half the temperature",
        "test_langevin_has_the_variance_that_step_and_temperature_give_it",
    ),
    (
        "alpha=math.sqrt(step_size * temperatures[step])",
        "alpha=math.sqrt(step_size) * temperatures[step]",
        "a temperature outside of the root",
        "test_langevin_has_the_variance_that_step_and_temperature_give_it",
    ),
    (
        "self.at = (self.at + 1) % len(self.chains)\n        block = self.chains[self.at]",
        "self.at = (self.at + 1) % len(self.chains)\n        block = self.chains[self.at].clone()",
        "chains that are moved in a copy",
        BLOCKS,
    ),
    (
        "device=flat.device) < self.reinit).nonzero()",
        "device=flat.device) > self.reinit).nonzero()",
        "chains that restart when they should go on",
        "test_visited_chains_restart_from_noise_with_the_chance_given",
    ),
    (
        "share = (2 * torch.arange(n_blocks * n, device=y.device) + 1) * len(y) // (2 * n_blocks * n)",
        "share = torch.arange(n_blocks * n, device=y.device) * len(y.unique()) // (n_blocks * n)",
        "labels that do not come by their shares",
        "test_every_class_has_its_share_of_the_chains",
    ),
    (
        "self.rows[self.first[y] + (torch.rand(len(y), device=y.device) * self.count[y]).long()]",
        "self.rows[self.first[y] + (torch.rand(len(y), device=y.device) * self.count.min()).long()]",
        "images that are never drawn, where a label has more than another",
        "test_rows_are_drawn_evenly_among_those_with_the_label",
    ),
    (
        "rows = self.labelled.like(y.repeat(shape[0]))",
        "rows = torch.randint(len(self.x), (shape[0] * shape[1],), device=self.x.device)",
        "data whose labels are not those of the chains",
        "test_positives_are_noisy_images_with_the_labels_of_the_chains_beside_them",
    ),
    (
        "(e_data.mean(1) - e_model.mean(1) + size).sum().backward()",
        "(e_model.mean(1) - e_data.mean(1) + size).sum().backward()",
        "a loss upside down",
        UPDATE,
    ),
    (
        "y = None if y is None else y.repeat(2)  # the same",
        "y = None if y is None else torch.cat([y, y.flip(0)])  # the same",
        "chains that are judged by other labels in the loss",
        UPDATE,
    ),
    (
        "size = self.config.energy_l2 * (e_data.square().mean(1) + e_model.square().mean(1))",
        "size = self.config.energy_l2 * (e_data.mean(1).square() + e_model.mean(1).square())",
        "the square of a mean for the mean of squares",
        UPDATE,
    ),
    (
        "list(self.energy.parameters()), 1 - memory)",
        "list(self.energy.parameters()), memory)",
        "an average that forgets what it should keep",
        "test_the_average_remembers_little_at_first_and_ema_later",
    ),
    (
        "self.update(self.config.learning_rate * warm * (1 - step / n_updates))",
        "self.update(self.config.learning_rate * warm)",
        "a rate that does not fall",
        "test_the_rate_rises_then_falls_to_0_and_checkpoints_come_in_time",
    ),
    (
        "clean = (x - run.config.data_noise**2 / temperature * energy.slope(x, y))[0]",
        "clean = (x - run.config.data_noise / temperature * energy.slope(x, y))[0]",
        "Tweedie's formula with the standard deviation",
        "test_denoising_is_tweedies_formula",
    ),
    # temperature
    (
        "sigma, step_size = config.sigma / temperature**0.5, config.step_size / temperature",
        "sigma, step_size = config.sigma * temperature**0.5, config.step_size / temperature",
        "a cold sigma that shrinks",
        COLD,
    ),
    (
        "energy_l2=config.energy_l2 / temperature)",
        "energy_l2=config.energy_l2)",
        "a cold training with another weight of small energies",
        COLD,
    ),
    (
        'temperature=1 if name == "less noise" else temperature)',
        "temperature=1)",
        "cold samples denoised by E instead of E/T",
        RECIPES,
    ),
    (
        "return 20 * math.log10(2 / level)",
        "return 20 * math.log10(1 / level)",
        "decibels of grey levels that span 1",
        "test_noise_and_free_diffusion_have_their_textbook_size",
    ),
    (
        "return math.sqrt(n_steps * step_size * temperature)",
        "return math.sqrt(2 * n_steps * step_size * temperature)",
        "a diffusion twice as fast",
        "test_noise_and_free_diffusion_have_their_textbook_size",
    ),
    (
        'proper, within = ("E at T = 1", found["T = 1"].db_over_t)',
        'proper, within = ("E at T = 1", recipe.db)',
        "the cold recipe held against itself",
        IN_LOOP,
    ),
    # the plane
    (
        "- math.log(8 * 2 * math.pi * 0.1**2)",
        "- math.log(2 * math.pi * 0.1**2)",
        "eight Gaussians that are normalised one by one",
        "test_eight_gaussians_are_normalised_and_their_samples_fit",
    ),
    (
        "log_model = -e - (-e).logsumexp(0) - log_area",
        "log_model = -e - (-e).logsumexp(0)",
        "probabilities of cells for densities",
        PLANE,
    ),
    (
        "log_w += before - flat(x)",
        "log_w -= before - flat(x)",
        "weights with the wrong sign",
        WEIGHTS,
    ),
    (
        "loss = flat(data).mean() - (log_w.softmax(0) * flat(x)).sum()",
        "loss = flat(data).mean() - flat(x).mean()",
        "a negative phase without its weights",
        WEIGHTS,
    ),
    (
        '"20 steps, restarts": Way(20, 0.02),',
        '"20 steps, restarts": Way(4, 0.02),',
        "short chains blamed on their restarts",
        "test_plain_chains_make_the_steps_and_restarts_that_their_name_says",
    ),
    (
        "for name, way in WAYS.items():\n        torch.manual_seed(run.seed)",
        "for name, way in WAYS.items():\n        torch.manual_seed(run.seed + way.n_steps)",
        "ways that start from other numbers",
        "test_every_way_starts_from_the_same_numbers",
    ),
    (
        "trace.rows[len(trace.rows) // 2 :, 2].mean())",
        "trace.rows[:, 2].mean())",
        "a loss beside the gap of other updates",
        "test_section_truth2d_puts_every_loss_beside_the_gap_of_the_same_updates",
    ),
    # digits
    (
        "weights = np.concatenate([share * fit.weights_ for fit, share in fits])",
        "weights = np.concatenate([fit.weights_ / len(fits) for fit, share in fits])",
        "classes that all have the same share",
        "test_a_mixture_with_labels_is_one_for_each_class_weighed_by_their_shares",
    ),
    (
        "even = (rng.random() + np.arange(n)) / n",
        "even = rng.random(n)",
        "Gaussians at random where they should come by their shares",
        MIXTURE,
    ),
    (
        "noise = noise * np.sqrt(spread[k]) if spread.ndim == 2",
        "noise = noise * spread[k] if spread.ndim == 2",
        "a variance for a standard deviation",
        MIXTURE,
    ),
    (
        "energy.slope(x - size * direction, y)) / (2 * size)",
        "energy.slope(x - size * direction, y)) / size",
        "a curvature twice as stiff",
        CURVATURE,
    ),
    (
        "return 4 / step_size",
        "return 2 / step_size",
        "the limit of gradient descent for that of eq. (2)",
        "test_langevin_explodes_beyond_4_over_the_step",
    ),
    (
        'y = shared_out(trainer.y, 1, config.n_samples)[0]\n    drawn = {\n        "energy"',
        'y = trainer.y[torch.randint(len(trainer.y), (config.n_samples,))]\n    drawn = {\n        "energy"',
        "clusters at random where the rival's come by their shares",
        "test_the_energy_is_drawn_with_the_clusters_shares_and_scored_beside_its_rivals",
    ),
    (
        'beside, other = ("mixture", scores["mixture"]) if name == "energy" else ("real images", real)',
        'beside, other = ("mixture", real) if name == "energy" else ("real images", real)',
        "the mixture's accuracy that is not the mixture's",
        IN_DIGITS,
    ),
    # the long run
    (
        "data = trainer.x[trainer.labelled.like(y)]  # of",
        "data = trainer.x[: len(y)]  # of",
        "energies of other clusters, with other Z's",
        "test_the_long_run_compares_energies_of_the_same_clusters",
    ),
    (
        "clean = (x - config.data_noise**2 * energy.slope(x, y)).nan_to_num(1.0, 1.0, -1.0)",
        "clean = (x + config.data_noise**2 * energy.slope(x, y)).nan_to_num(1.0, 1.0, -1.0)",
        "small networks' samples that are made noisier",
        "test_small_networks_are_scored_after_each_mark_from_noise_and_denoised",
    ),
    (
        'kinds = {"buffer": {}, "no buffer": {"reinit": 1.0}}',
        'kinds = {"buffer": {}, "no buffer": {"reinit": 0.0}}',
        "no buffer for a buffer without restarts",
        "test_the_buffer_is_compared_with_chains_that_always_restart",
    ),
    # proportions
    (
        "line = sorted((p.nearest, p.told) for p in points.values())\n    return",
        "line = [(p.nearest, p.told) for p in points.values()]\n    return",
        "an interpolation over points out of order",
        "test_a_mixtures_accuracy_is_read_between_its_points",
    ),
    (
        'beside = ("mixtures as near", told_at(mixtures, p.nearest))',
        'beside = ("mixtures as near", told_at(energies, p.nearest))',
        "a rival that is the energy itself",
        IN_PROPORTIONS,
    ),
    (
        "for seed in range(run.seed, run.seed + run.config.n_seeds):",
        "for seed in range(run.config.n_seeds):",
        "mixtures that are the same for every seed",
        "test_both_families_walk_over_their_sizes_from_the_runs_seed",
    ),
    # ablations, classes, scale
    (
        "w.mul_((limit / torch.linalg.matrix_norm(w, 2)).clamp(max=1)[:, None, None])",
        "w.mul_((limit / torch.linalg.matrix_norm(w, 2))[:, None, None])",
        "weights below the limit that grow to it",
        "test_shrink_projects_each_network_to_the_largest_singular_value_allowed",
    ),
    (
        '"no restarts": {"reinit": 0.0},',
        '"no restarts": {"reinit": 0.0, "n_langevin": 5},',
        "an ablation of two things at once",
        "test_each_ablation_changes_the_small_recipe_by_one_thing",
    ),
    (
        "reshape(n_classes, len(x)).argmin(0)",
        "reshape(n_classes, len(x)).argmax(0)",
        "the class of the highest energy",
        "test_the_lowest_energy_is_looked_for_among_all_classes",
    ),
    (
        "rival = train_with_classes(run), mixture_samples(run, config.n_samples, with_labels=True)",
        "rival = train_with_classes(run), mixture_samples(run, config.n_samples)",
        "a rival that does not know the labels",
        IN_CONDITIONAL,
    ),
    (
        'trainer.label(saved["y"].to(trainer.y))',
        "trainer.label(trainer.y)",
        "biases of clusters that are not theirs after --resume",
        CHECKPOINT,
    ),
    (
        'trainer.buffer.y.copy_(own["y_chains"])',
        "pass",
        "chains of other clusters after --resume",
        CHECKPOINT,
    ),
    (
        "x[Labelled(labels).like(shared_out(labels, 1, n)[0])]",
        "x[torch.randperm(len(x), device=run.device)[:n]]",
        "a floor whose classes are less even than those of the samples above it",
        "test_real_images_stand_beside_samples_in_the_clusters_shares",
    ),
    (
        "limits = {name: 2 * math.hypot(found[best].told_sem, found[name].told_sem) for name in others}",
        "limits = {name: 0 for name in others}",
        "a winner within the noise",
        "test_section_architectures_compares_with_the_clusters_alone_and_with_real_images",
    ),
    # a second process
    (
        "    run.section, run.metrics = name, {}\n    torch.manual_seed(run.seed)",
        "    run.section, run.metrics = name, {}",
        "other numbers in a whole run than in a section alone",
        "test_what_runs_ahead_draws_from_its_own_seed_and_an_error_ends_it",
    ),
    (
        "    if error:\n        raise error\n",
        "",
        "an error of the second process that nobody hears of",
        "test_what_ran_before_its_turn_is_printed_and_recorded_in_it",
    ),
    (
        "    run.metrics |= metrics\n",
        "",
        "numbers that are printed and not recorded",
        "test_what_ran_before_its_turn_is_printed_and_recorded_in_it",
    ),
]
