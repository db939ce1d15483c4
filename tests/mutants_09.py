"""Mistakes planted in module 09 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

EQUATION = "test_the_energy_is_the_squared_error_over_two_sigma_squared_with_biases_by_label"
SLOPE = "test_the_slope_by_hand_equals_autograd_with_and_without_a_graph_and_can_be_differentiated"
POOLS = "test_pools_draw_rows_of_the_label_and_never_a_hidden_one"
LEADERS = "test_a_leader_is_named_with_those_that_pairs_do_not_tell_from_it"
NOISY = "test_the_posterior_under_noise_is_bayes_rule_on_a_grid_and_its_draws_have_its_moments"
MISSING = "test_the_conditional_of_what_is_missing_is_the_joint_over_the_marginal"
PERFECT = "test_perfect_scores_have_their_closed_forms"
OUTSIDE = "test_every_score_is_higher_outside"
LEFT_OUT = "test_a_left_out_digit_is_never_seen_and_scored_by_the_network_that_missed_it"
MMSE = "test_the_mmse_is_the_mean_posterior_variance"
DENOISER = "test_the_energys_denoiser_is_exact_where_the_energy_is_of_noisy_gaussian_data"
HALF = "test_the_average_leaves_out_the_first_half_of_a_chain_and_ends_with_its_end"
CLASSICAL = "test_classical_denoisers_have_their_closed_forms"
TWO_PIXELS = "test_the_two_pixel_chains_have_the_law_and_the_coverage_that_theory_says"
COVERAGE = "test_the_exact_coverage_is_what_direct_draws_cover"
COMPLETIONS = "test_completions_of_a_gaussian_have_its_conditional_and_one_noise_for_all_19"
FILLERS = "test_what_fills_in_is_chosen_by_its_error_on_validation_images"
WORST = "test_the_attack_stays_within_its_size_and_reaches_the_worst_point_of_a_linear_rule"
FULL = "test_the_full_gradient_passes_all_langevin_steps_and_bpda_passes_none"
SMOOTHED = "test_a_smoothed_linear_rules_radius_is_the_distance_and_the_certified_one_is_below"
JEM = "test_jems_energy_is_minus_logsumexp_and_low_on_data"
ORDER = "test_the_order_of_attacks_is_judged_by_paired_errors"
PRODUCT = "test_the_product_of_mixtures_is_the_normalised_product_of_their_densities"
CHAIN_LAW = "test_a_chains_law_on_the_cells_is_the_normal_one_of_a_linear_chain"
CLAIMS = "test_sections_inpainting_composition_and_beyond_record_claims_beside_exact_values"
OR = "test_or_mixes_in_proportion_to_z_until_it_is_repaired"
NOT = "test_not_has_a_density_up_to_its_limit_and_the_chains_the_mean_square_of_theory"
ADDED = "test_energies_are_added_averaged_or_divided"
RARE = "test_passage_time_and_committor_have_their_closed_forms_on_slopes"
KRAMERS = "test_kramers_is_the_curvatures_and_the_barrier_and_right_for_high_ones"
WORK = "test_work_in_one_step_is_the_difference_of_energies_and_slow_driving_wastes_less"
SHIFT = "test_shifting_a_groups_odds_reaches_the_rate_at_the_formulas_price"
FAIR = "test_fairness_is_fitted_on_other_patients_and_its_price_is_the_formulas"
HOLES = "test_holes_are_filled_by_conditionals_neighbours_and_chains"

MUTANTS = [
    # what all sections use
    (
        "return self.error(x, self.before(x, y)).square().sum(-1) / (2 * self.sigma**2)",
        "return self.error(x, self.before(x, y)).square().sum(-1) / self.sigma**2",
        "an energy at half the temperature",
        EQUATION,
    ),
    ("return a * s * (1 + z * (1 - s))", "return a * s * (1 + z * s)", "a wrong derivative of silu", SLOPE),
    (
        "return torch.baddbmm(r, back, self.w1.mT, alpha=-1) / self.sigma**2",
        "return torch.baddbmm(r, back, self.w1.mT) / self.sigma**2",
        "the slope's second term with the wrong sign",
        SLOPE,
    ),
    (
        "alpha=-step_size / 2)",
        "alpha=-step_size)",
        "Langevin at half the temperature",
        "test_langevin_halves_the_slope_and_adds_noise_of_variance_step_size",
    ),
    (
        "self.first = self.count.cumsum(1) - self.count + (labels < 0).sum(1, keepdim=True)",
        "self.first = self.count.cumsum(1) - self.count",
        "networks that see what is hidden from them",
        POOLS,
    ),
    (
        "(e_data - e_model + 1e-5",
        "(e_model - e_data + 1e-5",
        "energies that rise on the data",
        "test_the_loss_falls_with_the_datas_energy_and_rises_with_the_chains",
    ),
    (
        "return mixture.weights.log() - log_det - x.shape[1]",
        "return mixture.weights.log() - log_det / 2 - x.shape[1]",
        "half of the log determinant of a Cholesky factor",
        "test_a_mixture_has_scipys_density_and_the_moments_of_its_draws",
    ),
    (
        "return Posterior(log_parts(wide, y).softmax(1), means",
        "return Posterior(log_parts(mixture, y).softmax(1), means",
        "shares of the clean density at a noisy point",
        NOISY,
    ),
    (
        "covariances = mixture.covariances - gain @ mixture.covariances",
        "covariances = mixture.covariances - gain @ wide.covariances",
        "a posterior without its spread",
        NOISY,
    ),
    (
        "shares = log_parts(Gaussians(mixture.weights, mixture.means[:, seen], c_ss), x[:, seen]).softmax(1)",
        "shares = mixture.weights.expand(len(x), -1)",
        "a conditional that keeps the prior's shares",
        MISSING,
    ),
    (
        "return 10 * math.log10(4 / mean_square)",
        "return 10 * math.log10(1 / mean_square)",
        "decibels of grey levels that span 1",
        "test_decibels_are_for_grey_levels_that_span_2",
    ),
    (
        "lead = {name: mean_and_sem(found[best] - right) for",
        "lead = {name: ((found[best] - right).mean(), mean_and_sem(right)[1]) for",
        "a ranking on the same images as if they were others",
        LEADERS,
    ),
    ("and mean <= 2 * sem)]", "and mean <= 0)]", "a winner by argmin alone", LEADERS),
    (
        "2 * math.hypot(row[best].errors[0], other.errors[0])",
        "2 * row[best].errors[0]",
        "a rival's error that is left out",
        LEADERS,
    ),
    # out-of-distribution detection
    (
        "return scipy.stats.norm.cdf(shift / 2**0.5)",
        "return scipy.stats.norm.cdf(shift / 2)",
        "Phi(d/2), which is an accuracy",
        PERFECT,
    ),
    ("scipy.stats.ncx2(d, shift**2)", "scipy.stats.ncx2(d, shift)", "a noncentrality that is not squared", PERFECT),
    (
        "return scipy.stats.f.sf(1 / variance, d, d)",
        "return scipy.stats.f.sf(variance, d, d)",
        "the wrong side of F",
        PERFECT,
    ),
    (
        "return -(log_p - np.log(slope)",
        "return -(log_p + np.log(slope)",
        "the Jacobian with the wrong sign",
        "test_the_density_after_the_change_of_variables_is_one_everywhere",
    ),
    ('"KDE": lambda z: -kernel_log', '"KDE": lambda z: kernel_log', "a score with its sign flipped", OUTSIDE),
    ('"softmax": lambda z: -logits', '"softmax": lambda z: logits', "confidence taken for a sign of the outside", OUTSIDE),
    ('"free energy": lambda z: -logits', '"free energy": lambda z: logits', "free energy with its sign flipped", OUTSIDE),
    ("forest.score_samples(to_numpy(z)),", "forest.score_samples(to_numpy(z)) * 0,", "a forest that says nothing", OUTSIDE),
    ("labels = -(y == torch.arange", "labels = -(y != torch.arange", "networks that see one digit only", LEFT_OUT),
    (
        "split = [(row[rows][y[rows] != k], row[rows][y[rows] == k]) for k",
        "split = [(row[rows][y[rows] == k], row[rows][y[rows] != k]) for k",
        "inside and outside exchanged",
        LEFT_OUT,
    ),
    (
        "lambda h: -kernel_log_density(held, x, h)",
        "lambda h: -kernel_log_density(x, x, h)",
        "a bandwidth chosen on the images it was fitted to",
        "test_settings_are_chosen_on_images_that_were_not_learnt_from",
    ),
    (
        "return squared_distances(x, x_train).amin(1).sqrt()",
        "return squared_distances(x, x_train).mean(1).sqrt()",
        "a distance to all in place of the nearest",
        "test_kernel_density_and_neighbours_are_scikit_learns",
    ),
    # denoising
    (
        "return (y + s**2 * score).detach()",
        "return (y - s**2 * score).detach()",
        "Tweedie's formula with the wrong sign",
        "test_tweedie_is_the_posterior_mean",
    ),
    ("return d * s**2 - s**4 * j", "return d * s**2 - s**2 * j", "a score that is not in units of the noise", MMSE),
    ("/ wide\n    return d * s**2", "/ spread**2\n    return d * s**2", "the Fisher information of the clean density", MMSE),
    (
        "return mmse * (1 + 1 / k)",
        "return mmse / k",
        "samples that are all averaged away",
        "test_samples_cost_one_plus_one_over_k",
    ),
    (
        "extra, n, done, z = s**2 - config.data_noise**2,",
        "extra, n, done, z = s**2,",
        "noise that is counted twice",
        DENOISER,
    ),
    (
        "return energy.slope(z[None])[0] + (z - start) / extra",
        "return energy.slope(z[None])[0] + 2 * (z - start) / extra",
        "a factor 2 in the data term",
        DENOISER,
    ),
    ("return z - level**2 * energy.slope", "return z - level * energy.slope", "a step of s in place of s squared", DENOISER),
    (
        "total, n_kept = total + clean.mean(0), n_kept + 1",
        "total, n_kept = clean.mean(0), 1",
        "chains of which only the ends are averaged",
        DENOISER,
    ),
    (
        "range(n, n // 2, -KEPT_EVERY)[::-1]",
        "range(n, 0, -KEPT_EVERY)[::-1]",
        "an average over the way from the noisy image",
        HALF,
    ),
    (
        "return total / n_kept, clean[0]",
        "return total / n_kept, total / n_kept",
        "a mean that is called one chain",
        DENOISER,
    ),
    ("return means + bandwidth**2 / wide * (y - means)", "return means", "a kernel density without its kernel", CLASSICAL),
    (
        "gx[:, :-1], gy[:, :, :-1] = u.diff(dim=1), u.diff(dim=2)",
        "gx[:, :-1], gy[:, :, :-1] = u.diff(dim=1), u.diff(dim=2) * 0",
        "total variation of columns only",
        "test_total_variation_finds_the_minimum_of_its_objective",
    ),
    (
        "best = given_noisy(truth, estimates",
        "best = given_noisy(blurred(truth, s), estimates",
        "a ceiling that is not the truth's",
        "test_the_ceiling_is_the_posterior_mean_of_the_truth_that_drew_the_images",
    ),
    # inpainting
    (
        "return 1 - 2 / (n + 1)",
        "return 1 - 1 / (n + 1)",
        "an interval open to one side",
        "test_an_interval_of_19_samples_covers_nine_tenths_if_the_samples_are_right",
    ),
    (
        "(step_size / 2 * p[0, 1] * sigma) ** 2",
        "(step_size / 2 * p[0, 1] * sigma)",
        "a standard deviation for a variance",
        TWO_PIXELS,
    ),
    (
        "w = c[0, 0] + sigma**2 - 2 * a * c[0, 1]",
        "w = c[0, 0] - 2 * a * c[0, 1]",
        "coverage of a clean pixel",
        COVERAGE,
    ),
    (
        "ratio, normal = 1 - step_size * p / 4",
        "ratio, normal = 1 + step_size * p / 4",
        "Langevin's step that narrows",
        COVERAGE,
    ),
    (
        "        if redraw:\n            held = x",
        "        if True:\n            held = x",
        "noise that is drawn anew each step",
        "test_held_pixels_keep_their_noise_unless_it_is_redrawn",
    ),
    (
        "flat = held.repeat(N_COMPLETIONS, 1)",
        "flat = (held + config.data_noise * torch.randn_like(held)).repeat(N_COMPLETIONS, 1)",
        "held pixels that are noisy twice",
        COMPLETIONS,
    ),
    (
        "return k, key\n",
        "return k, next(iter(fitted))\n",
        "a rival whose settings nobody has chosen",
        FILLERS,
    ),
    (
        "fit_gaussians(x, n, seed, reg) for n, reg in settings",
        "fit_gaussians(x, n, seed) for n, reg in settings",
        "a choice that changes nothing",
        FILLERS,
    ),
    (
        "mixture_draws = given_seen(blurry, noisy",
        "mixture_draws = given_seen(clear, noisy",
        "intervals for clean pixels held beside noisy ones",
        "test_intervals_of_the_mixture_are_for_noisy_pixels_as_the_energys_are",
    ),
    # robustness
    ("way = slope.sign() if norm", "way = -slope.sign() if norm", "an attack that helps", WORST),
    ("return delta.clamp(-size, size)", "return delta.clamp(-size / 2, size / 2)", "an attack of half its size", WORST),
    (
        "return highest(torch.cat(points), torch.cat(losses))[0]",
        "return torch.cat(points)[-1]",
        "the last point in place of the worst",
        "test_the_attack_keeps_the_highest_loss_that_it_saw",
    ),
    (
        'loss = size * (w.abs().sum() if norm == "Linf" else w.norm())',
        "loss = size * w.norm()",
        "an L-inf attack in L2",
        "test_the_exact_accuracy_is_that_under_the_explicit_worst_point",
    ),
    (
        "scipy.stats.beta.ppf((1 - confidence) / 2, votes, n - votes + 1)",
        "scipy.stats.beta.ppf(1 - confidence, votes, n - votes + 1)",
        "a winner chosen by the votes that certify it, at the whole error for one",
        SMOOTHED,
    ),
    (
        "z = z - self.step_size / 2 * self.energy.slope(z) +",
        "z = z - self.step_size / 2 * self.energy.slope(z).detach() +",
        "a full gradient that stops at the first slope",
        FULL,
    ),
    ("clean = self.clean(x.detach()).detach()", "clean = self.clean(x)", "BPDA that adds to the full gradient", FULL),
    ("return -self(x).logsumexp(1)", "return self(x).logsumexp(1)", "JEM's energy with the wrong sign", JEM),
    (
        "two_phase_loss(-logits.logsumexp(1)[None], jem",
        "two_phase_loss(logits.logsumexp(1)[None], jem",
        "JEM's data pushed up",
        JEM,
    ),
    (
        "mean, sem = mean_and_sem(strong - weak)",
        "mean, sem = mean_and_sem(weak - strong)",
        "the order of attacks reversed",
        ORDER,
    ),
    (
        "strongest(row) for name",
        'row["none"] for name',
        "defences ranked without an attack",
        ORDER,
    ),
    (
        "if strong is not weak]",
        "if True]",
        "an order allowed more for comparing an attack with itself",
        ORDER,
    ),
    (
        "return highest(found, margins)[0]",
        "return highest(found, -margins)[0]",
        "the weaker of two attacks",
        "test_the_worst_point_is_within_two_grey_levels_and_takes_the_larger_margin",
    ),
    (
        "N_KEPT, N_JUDGED = 3, 8",
        "N_KEPT, N_JUDGED = 3, 1",
        "a point that is the worst by luck",
        "test_a_point_whose_loss_was_high_by_luck_is_not_the_worst",
    ),
    (
        "found[name] = {kind: judged.get(kind, full) for kind in ATTACKS}",
        "found[name] = {kind: judged.get(kind, full).clone() for kind in ATTACKS}",
        "one attack under two names counted as two",
        "test_attacks_that_are_one_by_construction_share_one_judgement",
    ),
    # composition
    ("weights.append(w * w2 * overlap)", "weights.append(w * w2)", "a product's weights without the overlap", PRODUCT),
    (
        "middle, edges = points - step_size / 2 * slope(points)",
        "middle, edges = points - step_size * slope(points)",
        "a chain's law at half the temperature",
        CHAIN_LAW,
    ),
    (
        "second = (torch.special.ndtr((edges - m[:, None]) / h).diff() for m in middle.T)",
        "second = (torch.special.ndtr((edges - m[:, None]) / h).diff() for m in middle.T.flip(0))",
        "a law with its axes exchanged",
        CHAIN_LAW,
    ),
    (
        "bias = cell_distance(exact_chain_cells(slope, step_size, n_steps), share)",
        "bias = cell_distance(exact_chain_cells(slope, step_size, 2), share)",
        "a tolerance that excuses chains which are too short",
        "test_chains_on_the_sum_are_as_near_to_the_product_as_exact_samples",
    ),
    (
        "mean_and_sem(np.subtract(found.chains, found.exact_samples))[1], len(found.chains))",
        "mean_and_sem(found.first_alone)[1], len(found.chains))",
        "a tolerance of something else",
        CLAIMS,
    ),
    (
        'list(found.chain.values()), "kx"',
        'list(found.exact.values()), "kx"',
        "a chain's time drawn where the equation's is",
        "test_a_rare_events_figure_shows_the_chains_exact_times",
    ),
    (
        "return or_energy(left(x) + z1, right_(x) + z2)",
        "return or_energy(left(x) - z1, right_(x) - z2)",
        "log Z with the wrong sign",
        OR,
    ),
    ("return s2**2 / s1**2", "return s1**2 / s2**2", "the limit upside down", NOT),
    ("x / s1**2 - a * x / s2**2", "x / s1**2 + a * x / s2**2", "NOT that is AND", NOT),
    ("total - (len(used) - 1) * whole", "total - len(used) * whole", "one division too many", ADDED),
    ("return total / len(used)", "return total / 2", "a mean of two", ADDED),
    (
        "torch.where(values > high, 1, torch.where(values < low, 0, -1))",
        "torch.where(values > high, 0, torch.where(values < low, 1, -1))",
        "bold and thin exchanged",
        "test_attributes_are_measured_and_split_in_the_middle",
    ),
    (
        "every = at_once(torch.cat([y[None], attributes_of(x, x)]))",
        "every = at_once(torch.cat([y[None], clear_attributes(x)]))",
        "a rival that learns from the clear images only",
        "test_the_fourth_energy_learns_from_every_image_by_its_side_of_the_medians",
    ),
    (
        "return (~torch.isin(at_once(asked), at_once(known)))",
        "return (~torch.isin(at_once(known), at_once(asked)))",
        "training images that nobody asks for",
        "test_requests_are_uniform_and_chance_is_what_ignoring_them_gives",
    ),
    (
        "return (found == labels)[list(used)].all(0)",
        "return (found == labels)[list(used)].any(0)",
        "success that is content with one label",
        "test_success_asks_the_classifier_for_the_class_and_measures_the_rest",
    ),
    (
        'config.data_noise**2 / (n if way == "sum" else 1)',
        "config.data_noise**2",
        "a product of densities cleaned of the noise of one",
        "test_composed_images_have_the_spread_of_their_composition",
    ),
    (
        "n * config.n_chain_steps, config.step_size / n)",
        "n * config.n_chain_steps, config.step_size)",
        "steps that are too wide for stiffer wells",
        "test_composed_images_have_the_spread_of_their_composition",
    ),
    # beyond
    (
        "return 2 * quad(below, start, end",
        "return quad(below, start, end",
        "time in units of the wrong Langevin equation",
        RARE,
    ),
    ("math.exp(energy(y)), a, end", "math.exp(-energy(y)), a, end", "a committor with the density in its place", RARE),
    ("return 4 * math.pi * math.exp(height)", "return 2 * math.pi * math.exp(height)", "Kramers' time to the top", KRAMERS),
    (
        "scipy.special.expit(f - w0).sum() - scipy.special.expit(w1 - f).sum()",
        "scipy.special.expit(f - w0).sum() - scipy.special.expit(f - w1).sum()",
        "Bennett's equation with one sign flipped",
        "test_all_three_free_energies_are_unbiased",
    ),
    ("work += after(x) - before(x)", "work += before(x) - after(x)", "work with the wrong sign", WORK),
    (
        "return w.sum() ** 2 / (w**2).sum() / len(w)",
        "return w.sum() / (w**2).sum() / len(w)",
        "an effective size that depends on the scale",
        WORK,
    ),
    (
        "return -l * k - math.log(p @ np.exp(-l * c))",
        "return l * k - math.log(p @ np.exp(-l * c))",
        "a price with its multiplier's sign flipped",
        "test_the_least_change_is_what_a_general_optimiser_finds",
    ),
    ("return theta * rate - np.log1p(", "return theta * rate + np.log1p(", "a price that is no divergence", SHIFT),
    (
        "shift_to_rate(p_train[group[train] == g], p_train.mean())",
        "shift_to_rate(before[test][group[test] == g], before[test].mean())",
        "a shift that is fitted on the patients it is judged on",
        FAIR,
    ),
    (
        "return np.where(truth, p, 1 - p)",
        "return ((p > 0.5) == truth).astype(float)",
        "the accuracy of decisions other than those whose rates are made even",
        FAIR,
    ),
    (
        "out[i, ~seen[i]] = x_train[nearest][:, ~seen[i]].mean(0)",
        "out[i] = x_train[nearest].mean(0)",
        "seen entries that are replaced",
        HOLES,
    ),
]
