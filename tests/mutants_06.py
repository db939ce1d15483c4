"""Mistakes planted in module 06 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

GRADIENT = "test_the_chains_gradient_is_that_of_the_likelihood_with_weighted_chains"
KERNELS = "test_the_chain_kernels_leave_their_target_alone"
OBJECTIVES = "test_section_objectives_holds_each_variance_against_its_own_theory"
DISCREPANCY = "test_energy_discrepancy_is_its_formula_and_its_fast_gradient_autograds"
SCORES = "test_exact_scores_know_the_kl_and_the_fisher_divergence_of_gaussians"
AWAY = "test_away_knows_gaussians_in_any_dimension"
IN_NCE = "test_section_nce_holds_the_constant_against_log_z_and_its_error_against_theory"
BLURRED = "test_denoising_targets_are_the_mean_noise_of_the_batch"
MIXTURE = "test_a_mixture_with_axes_is_that_of_torch"
CHAINS = "test_resampled_chains_keep_their_energies_and_log_z"

MUTANTS = [
    # objectives
    (
        "return 0.5 * (data_score + slope(energy, x)[1]).square().sum(-1)",
        "return 0.5 * (data_score - slope(energy, x)[1]).square().sum(-1)",
        "explicit matching to the score of an energy turned upside down",
        "test_explicit_matching_is_half_the_squared_error_of_scores",
    ),
    (
        "return 0.5 * gradient.square().sum(-1) - sum(row[..., i] for i, row in enumerate(rows))",
        "return 0.5 * gradient.square().sum(-1) + 2 * sum(row[..., i] for i, row in enumerate(rows))",
        "the published slip: plus two Laplacians",
        "test_implicit_matching_is_half_the_squared_slope_minus_the_laplacian",
    ),
    (
        "return 0.5 * norm - (row * v).sum(-1)",
        "return norm - (row * v).sum(-1)",
        "sliced matching without its half",
        "test_sliced_matching_is_exact_for_each_projection",
    ),
    (
        "(sigma * slope(energy, x + sigma * noise)[1] - noise)",
        "(sigma * slope(energy, x + sigma * noise)[1] + noise)",
        "denoising that points away from the clean point",
        "test_the_denoising_target_points_from_the_noisy_to_the_clean_point",
    ),
    (
        "(sigma * slope(energy, x + sigma * noise)[1] - noise)",
        "(sigma * slope(energy, x)[1] - noise)",
        "denoising whose slope is taken at the clean point",
        "test_denoising_learns_the_variance_of_the_blurred_gaussian",
    ),
    (
        "return unit_vectors_in * variance + sigma**2",
        "return unit_vectors_in * variance",
        "a theory in which denoising learns the clean data",
        OBJECTIVES,
    ),
    (
        "unit = v / v.norm(dim=-1, keepdim=True)",
        "unit = v",
        "the mistake of unit vectors that is none",
        OBJECTIVES,
    ),
    (
        "return (2 * form.square().sum((-2, -1))).expand(len(gradient))",
        "return form.square().sum((-2, -1)).expand(len(gradient))",
        "a variance of slicing without its factor 2",
        "test_the_variance_of_slicing_is_exact",
    ),
    (
        "return 0.5 * (slope_right - slope_left)",
        "return slope_right - slope_left",
        "the uniform density taken for 1 on [-1, 1]",
        "test_section_identity_and_its_references",
    ),
    (
        "return 0.5 * precision**2 * variance + laplacian * precision",
        "return precision**2 * variance + laplacian * precision",
        "a reference without its half",
        "test_section_identity_and_its_references",
    ),
    # noise-contrastive estimation
    (
        'posterior = (model_log_p - noise_log_p - math.log(ratio)).sigmoid()  # "this is data"',
        'posterior = (model_log_p - noise_log_p).sigmoid()  # "this is data"',
        "NCE that forgets how much noise there is",
        "test_nce_gradient_is_that_of_logistic_regression",
    ),
    (
        "return inverse - (1 + 1 / ratio) * torch.outer(b, b)",
        "return inverse - torch.outer(b, b)",
        "the asymptotic covariance as if noise were free",
        "test_nce_covariance_with_the_data_as_noise_is_the_cramer_rao_bound_times_one_plus_one_over_ratio",
    ),
    (
        "log_z, off = exact_log_z_on_axis(theta[:, :3]), theta[:, 3] - exact_log_z_on_axis(theta[:, :3])",
        "log_z, off = exact_log_z_on_axis(theta[:, :3]), theta[:, 3] - exact_log_z_on_axis(TRUTH)",
        "the constant held against the truth's log Z and not its own model's",
        IN_NCE,
    ),
    (
        "return (-theta @ nce_features(AXIS)[:, :3].T).logsumexp(-1) + math.log(DX)",
        "return (-theta @ nce_features(AXIS)[:, :3].T).logsumexp(-1) - math.log(DX)",
        "the width of a cell on the wrong side",
        IN_NCE,
    ),
    (
        "return softplus(-log_odds).mean(-1) + ratio * softplus(odds_of_noise).mean(-1)",
        "return softplus(-log_odds).mean(-1) + softplus(odds_of_noise).mean(-1)",
        "the plain NCE loss with noise of another share than its odds say",
        "test_the_plain_nce_loss_is_logistic_regression",
    ),
    (
        "ratio, theta, n_newton=15):",
        "ratio, theta, n_newton=1):",
        "Newton's method stopped after its first step",
        "test_nce_fit_is_a_stationary_point_and_finds_a_gaussian_with_its_constant",
    ),
    (
        "return exact * max(1 - low, high - 1)",
        "return exact * 3 * max(1 - low, high - 1)",
        "a tolerance that nothing can leave",
        "test_the_tolerance_of_a_root_mean_square_is_rarely_left_and_no_wider_than_it_must_be",
    ),
    # the trainers
    (
        "return energy(x).mean(-1) - energy(x_model.detach()).mean(-1)",
        "return energy(x_model.detach()).mean(-1) - energy(x).mean(-1)",
        "likelihood that falls",
        "test_the_plain_likelihood_loss_has_the_gradient_of_the_two_phases_and_leaves_the_samples_alone",
    ),
    (
        "return energy(x).mean(-1) - energy(x_model.detach()).mean(-1)",
        "return energy(x).mean(-1) - energy(x_model).mean(-1)",
        "samples that are not detached",
        "test_the_plain_likelihood_loss_has_the_gradient_of_the_two_phases_and_leaves_the_samples_alone",
    ),
    (
        "blurred = x + sigma * torch.randn_like(x)",
        "blurred = x",
        "rivals around the datum, which the datum always beats",
        "test_energy_discrepancy_is_least_at_the_data",
    ),
    (
        "return (stable.logsumexp(-1) - math.log(n_rivals)).mean(-1)",
        "return -(stable.logsumexp(-1) - math.log(n_rivals)).mean(-1)",
        "energy discrepancy with its sign flipped",
        DISCREPANCY,
    ),
    (
        "differences = energy(x)[..., None] - energy(others",
        "differences = energy(x)[..., None] + energy(others",
        "rivals whose energy is pushed down with the datum's",
        DISCREPANCY,
    ),
    (
        "return networks.weigh(layers, torch.cat([kept.sum(-1), -kept.flatten(1)], 1))",
        "return networks.weigh(layers, torch.cat([torch.full_like(kept.sum(-1), 1 / b), -kept.flatten(1)], 1))",
        "the fast discrepancy without what w takes off the datum",
        DISCREPANCY,
    ),
    (
        "return rate * 0.5 * (1 + math.cos(math.pi * progress))",
        "return rate * 0.5 * (1 + math.cos(0.5 * math.pi * progress))",
        "a rate that does not fall to 0",
        "test_the_rate_falls_along_half_a_cosine",
    ),
    (
        "precision * centres**2 / 2",
        "precision * centres**2",
        "a component's density without the half of its square",
        MIXTURE,
    ),
    (
        "self.slopes = torch.cat([precision * centres, -precision], 1).mT",
        "self.slopes = torch.cat([precision * centres, -precision / 2], 1).mT",
        "half the stiffness in the mixture's score",
        MIXTURE,
    ),
    (
        "log_z = d * math.log(std * math.sqrt(2 * math.pi))",
        "log_z = math.log(std * math.sqrt(2 * math.pi))",
        "a start that is normalised in one dimension only",
        "test_a_fresh_network_is_the_normalised_gaussian_it_starts_from",
    ),
    (
        "a = torch.cat([torch.full_like(positive, 1 / x_data.shape[1]), -(-negative).softmax(1)], 1)",
        "a = torch.cat([torch.full_like(positive, 1 / x_data.shape[1]), -negative.softmax(1)], 1)",
        "the negative phase under exp(+E)",
        "test_phases_are_the_gradient_of_the_negative_log_likelihood",
    ),
    (
        "torch.full_like(y[..., 0], -2 * math.log(2 * noise))",
        "torch.full_like(y[..., 0], -2 * math.log(noise))",
        "uniform noise whose density does not integrate to 1",
        "test_the_noises_have_the_densities_that_nce_is_told",
    ),
    (
        "lambda y: gaussian_log_density(y, noise))",
        "lambda y: gaussian_log_density(y))",
        "Gaussian noise whose density is that of another width",
        "test_the_noises_have_the_densities_that_nce_is_told",
    ),
    (
        "nearness = -torch.cdist(noisy[:, both], x[:, rows]).square() / (2 * sigma[:, both] ** 2)",
        "nearness = -torch.cdist(noisy[:, both], x[:, rows]).square() / sigma[:, both] ** 2",
        "the posterior over clean points at half the temperature",
        BLURRED,
    ),
    (
        "noisy = x.repeat(1, 2, 1) + sigma * torch.cat([n, -n], 1)",
        "noisy = x.repeat(1, 2, 1) + sigma * torch.cat([n, n], 1)",
        "pairs of noise that do not cancel",
        BLURRED,
    ),
    (
        "return max(narrowest, widest * (narrowest / widest) ** (progress / 0.8))",
        "return max(narrowest, widest * (narrowest / widest) ** progress)",
        "noise that has not fallen when it should stay",
        "test_score_matching_sees_data_blurred_by_its_noise_and_denoising_the_clean_ones",
    ),
    # chains
    (
        "self.log_w += self.energy - energy",
        "self.log_w += energy - self.energy",
        "weights that grow where the energy rose",
        GRADIENT,
    ),
    (
        "self.log_w[i] = 0.0",
        "pass",
        "weights that are kept beside the resampling that they paid for",
        CHAINS,
    ),
    (
        "self.log_z = torch.where(uneven, self.mean_log_z(), self.log_z)",
        "self.log_z = self.log_z + 0.0",
        "a mean weight that is lost at each resampling",
        CHAINS,
    ),
    (
        "for state in (self.x, self.energy, self.gradient):",
        "for state in (self.x,):",
        "resampled chains with the energies of others",
        CHAINS,
    ),
    (
        "        if how.move_first:\n            chains.move(networks)\n        adam.step",
        "        adam.step",
        "chains that never move",
        GRADIENT,
    ),
    (
        "layers = networks.signals(torch.cat([x, chains.x], 1))[2]",
        "pass",
        "an order that is the same twice",
        GRADIENT,
    ),
    (
        "log_ratio = energy - e_new - back.square().sum(-1) / (2 * step_size) + noise.square().sum(-1) / 2",
        "log_ratio = energy - e_new",
        "MALA without its proposals' densities",
        KERNELS,
    ),
    (
        "return keep_or_move(start - e_new - p.square().sum(-1) / 2, (y, e_new, g_new), (x, energy, gradient))",
        "return keep_or_move(energy - e_new, (y, e_new, g_new), (x, energy, gradient))",
        "HMC that forgets the kinetic energy",
        KERNELS,
    ),
    (
        "        chains.move(old)\n        chains.weigh(*new.passes(chains.x))",
        "        chains.weigh(*new.passes(chains.x))\n        chains.resample_if_uneven()\n        chains.move(old)",
        "onlookers that move under the energy that they were weighed away from",
        "test_few_onlookers_estimate_z_without_bias",
    ),
    (
        'errors["onlookers"] = log_z_of_onlookers([*path, networks], n_chains',
        'errors["onlookers"] = log_z_of_onlookers(path, n_chains',
        "onlookers that stop before the last network",
        "test_the_onlookers_follow_the_first_ones_path_to_its_end",
    ),
    (
        'ratios = order.errors["onlookers"].double().exp()',
        'ratios = order.errors["move first"].double().exp()',
        "the identity claimed of chains that learning has looked at",
        "test_section_order_holds_the_onlookers_alone_against_the_identity",
    ),
    (
        "m = np.floor(n * shares) + 1",
        "m = np.floor(n * shares)",
        "De Moivre's m one too small",
        "test_scatter_of_independent_points_is_the_mean_over_the_binomial",
    ),
    # how good
    (
        "log_z = (-energy).logsumexp(1) + log_area",
        "log_z = (-energy).logsumexp(1)",
        "log Z without the area of a cell",
        SCORES,
    ),
    (
        "off = score + gradient",
        "off = score - gradient",
        "a Fisher divergence to the model turned upside down",
        SCORES,
    ),
    (
        "return log_p + networks.passes(x)[0] + log_z[:, None]",
        "return log_p + networks.passes(x)[0] - log_z[:, None]",
        "log model = -E + log Z",
        SCORES,
    ),
    (
        "log_q = torch.logaddexp(data.log_density(points), gaussian_log_density(points)) - math.log(2)",
        "log_q = torch.logaddexp(data.log_density(points), gaussian_log_density(points))",
        "a mixture of two densities that integrates to 2",
        AWAY,
    ),
    (
        "return self.ess.min().item() >= 0.1",
        "return self.ess.max().item() >= 0.01",
        "log Z trusted from a hundredth of the draws",
        "test_no_gap_is_given_where_log_z_rests_on_few_draws",
    ),
    (
        "price = 4 / (d + 2) if trainer.gradient is matching_phases else 1",
        "price = 1",
        "the exact Laplacian at the price of one projection",
        "test_the_exact_laplacian_pays_for_its_passes_in_steps",
    ),
    # blindness, efficiency, tables
    (
        "x = x - 0.5 * step * sigma**2 * gradient + (step * sigma**2) ** 0.5 * torch.randn_like(x)",
        "x = x - step * sigma**2 * gradient + (step * sigma**2) ** 0.5 * torch.randn_like(x)",
        "Langevin at half the temperature",
        "test_annealed_langevin_samples_a_gaussian_at_temperature_one",
    ),
    (
        "return math.exp(-(m**2) / (2 * s**2)) * m / s**3",
        "return math.exp(-(m**2) / s**2) * m / s**3",
        "a Fisher divergence that dies twice as fast",
        "test_the_price_of_a_wrong_weight_is_eq_8_at_any_distance_and_its_kl_that_of_the_weights_at_a_large_one",
    ),
    (
        "values = a.exp() * torch.stack([a - b, 0.5 * (score_a - score_b) ** 2])",
        "values = b.exp() * torch.stack([a - b, 0.5 * (score_a - score_b) ** 2])",
        "divergences averaged over the wrong density",
        "test_the_price_of_a_wrong_weight_is_that_of_quadrature",
    ),
    (
        "return ((p * psi**2).sum() / (p * slope_of_psi).sum() ** 2).item()",
        "return ((p * psi**2).sum() / (p * slope_of_psi).sum()).item()",
        "a sandwich with one slice of bread",
        "test_power_variances_against_gamma_functions",
    ),
    (
        "return 1 / (x**a).mean(1), (a - 1) * (x ** (a - 2)).mean(1) / (x ** (2 * a - 2)).mean(1)",
        "return 1 / (x**a).mean(1), (a - 1) / (x ** (2 * a - 2)).mean(1)",
        "score matching's estimator for a = 2 at every a",
        "test_score_matching_and_likelihood_of_a_power_are_their_formulas_and_one_at_two",
    ),
    (
        "log_det = -0.5 * np.log(values).sum() - np.log(scale).sum()",
        "log_det = -0.5 * np.log(values).sum() + np.log(scale).sum()",
        "a change of units that is taken back twice",
        "test_whitening_gives_the_density_of_the_original_units",
    ),
    (
        "nats[name] -= to_numpy(values)",
        "nats[name] += to_numpy(values)",
        "log p = -E + log Z on the tables",
        "test_wine_is_scored_in_its_own_units_and_energies_by_their_log_z",
    ),
    (
        "roc_auc_score(np.arange(len(s)) >= len(s) - len(malignant), -s)",
        "roc_auc_score(np.arange(len(s)) >= len(s) - len(malignant), s)",
        "an anomaly score with its sign flipped",
        "test_malignant_tumours_are_the_unlikely_ones",
    ),
]
