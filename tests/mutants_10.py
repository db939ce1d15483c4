"""Mistakes planted in module 10 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

SLOPES = "test_score_and_laplacian_of_a_mixture_are_its_derivatives"
DENOISER = "test_the_denoiser_is_the_mean_of_the_clean_point_by_quadrature"
SAMPLERS = "test_each_sampler_has_the_variance_that_theory_follows_and_the_right_limit"
HALF = "test_the_flow_has_its_half_and_without_it_ends_at_s4_over_u"
FLOW_DENSITY = "test_the_flows_density_is_the_mixtures"
NETWORK = "test_score_and_divergence_of_the_network_are_derivatives_and_the_energy_has_no_curl"
BY_HAND = "test_the_gradient_written_by_hand_is_autograds"
BITS = "test_bits_of_a_uniform_over_the_cells_are_log2_of_the_levels"
RUNG = "test_the_widest_easy_rung_is_where_the_posterior_stops_being_convex"
CHAINS = "test_recovery_chains_sample_the_posterior_and_their_steps_are_langevins"
LADDER = "test_a_ladder_of_a_gaussian_ends_at_the_gaussian"
RECOVERY = "test_the_recovery_gradient_climbs_log_p_of_x_given_y"
INVERSE = "test_a_flow_is_inverted_and_its_log_determinant_is_autograds"
SIDES = "test_log_z_from_both_sides_is_exact_for_gaussians_and_they_err_in_opposite_directions"
CONTRAST = "test_by_contrast_a_flow_moves_towards_the_data"

MUTANTS = [
    # diffusion
    (
        "(shares * curved).sum(1) - score.square().sum(1)",
        "(shares * curved).sum(1)",
        "the Laplacian of p over p for that of log p",
        SLOPES,
    ),
    (
        "    return y + sigma**2 * score(y)",
        "    return y + sigma**2 / 2 * score(y)",
        "Langevin's half in Tweedie's formula",
        DENOISER,
    ),
    (
        "    return y + sigma**2 * score(y)",
        "    return y - sigma**2 * score(y)",
        "further into the noise",
        DENOISER,
    ),
    (
        "    return -sigma * score(x, sigma)",
        "    return -2 * sigma * score(x, sigma)",
        "the reverse SDE's drift without its noise",
        HALF,
    ),
    (
        "x = x_new if b == 0 else x + (b - a) * (first + velocity(x_new, b)) / 2",
        "x = x_new if b == 0 else x + (b - a) * (first + velocity(x, b)) / 2",
        "Heun's second slope at the old point",
        SAMPLERS,
    ),
    (
        "        fall = a**2 - b**2\n        x = x + fall * score(x, a)",
        "        fall = a**2 - b**2\n        x = x + fall / 2 * score(x, a)",
        "the flow's half in the reverse SDE",
        SAMPLERS,
    ),
    (
        "x = x + fall**0.5 * torch.randn_like(x)",
        "x = x + (a - b) * torch.randn_like(x)",
        "noise by the fall of sigma, not of its square",
        SAMPLERS,
    ),
    (
        "x = x + size / 2 * score(x, sigma) + size**0.5 * torch.randn_like(x)",
        "x = x + size * score(x, sigma) + size**0.5 * torch.randn_like(x)",
        "Langevin without its half, at half the temperature",
        SAMPLERS,
    ),
    (
        "    return x + levels[-2] ** 2 * score(x, levels[-2])",
        "    return x + levels[-2] * score(x, levels[-2])",
        "a last mean with sigma for its square",
        SAMPLERS,
    ),
    (
        "    return log_start(x) - change",
        "    return log_start(x) + change",
        "the divergence with the wrong sign",
        FLOW_DENSITY,
    ),
    (
        "        x = x - (b - a) * (a * score + b * score_new) / 2",
        "        x = x + (b - a) * (a * score + b * score_new) / 2",
        "the density's path leaves for the wrong side",
        FLOW_DENSITY,
    ),
    (
        "bend = s * (1 - s) * (2 + z * (1 - 2 * s))  # silu''(z)",
        "bend = s * (1 - s) * (1 + z * (1 - 2 * s))  # silu''(z)",
        "the second derivative of silu",
        BY_HAND,
    ),
    (
        "d_h = g - d_p @ w2",
        "d_h = g",
        "the hand forgets that u - h holds h",
        BY_HAND,
    ),
    (
        "u.T @ d_z + g.T @ back",
        "u.T @ d_z",
        "the hand forgets the way back through W1",
        BY_HAND,
    ),
    (
        "(sigma * u - w * noise) / net.sd",
        "(sigma * u + w * noise) / net.sd",
        "the target with the noise's sign flipped",
        BY_HAND,
    ),
    (
        "trace = 2 * trace + (bend * p) @ self.w1.square().sum(0) - squares",
        "trace = trace + (bend * p) @ self.w1.square().sum(0) - squares",
        "the cross term of the Laplacian once",
        NETWORK,
    ),
    (
        "phi = (u * h).sum(1) - h.square().sum(1) / 2",
        "phi = (u * h).sum(1) - h.square().sum(1)",
        "an energy whose gradient the score is not",
        NETWORK,
    ),
    (
        "/ (2 * j.flatten(1).norm(dim=1))",
        "/ j.flatten(1).norm(dim=1)",
        "twice the antisymmetric part",
        NETWORK,
    ),
    (
        "return -log_density / (d * math.log(2)) - math.log2(cell)",
        "return -log_density / (d * math.log(2))",
        "the three bits of the cells left out",
        BITS,
    ),
    (
        "return x + (torch.rand_like(x) - 0.5) / 8",
        "return x + (torch.rand_like(x) - 0.5) / 16",
        "pixels spread over half of their cells",
        BITS,
    ),
    # recovery
    (
        "sigma**2 / (m**2 - sigma**2) ** 0.5",
        "sigma / (m**2 - sigma**2) ** 0.5",
        "the widest rung with sigma for its square",
        RUNG,
    ),
    (
        "pull = score(x) + (y - x) / s**2",
        "pull = score(x) + (y - x) / (2 * s**2)",
        "half a pull",
        CHAINS,
    ),
    (
        "p = (-energy(axis) - (axis - y[:, None]) ** 2 / (2 * sigma**2)).softmax(1)",
        "p = (-energy(axis) - (axis - x[:, None]) ** 2 / (2 * sigma**2)).softmax(1)",
        "the clean point in the place of the noisy one",
        RECOVERY,
    ),
    (
        "return (energy_slope(axis) @ p.T).mean(1) - energy_slope(x).mean(1)",
        "return energy_slope(x).mean(1) - (energy_slope(axis) @ p.T).mean(1)",
        "the likelihood descends",
        RECOVERY,
    ),
    (
        "return (sigma[:, 0] / net.sd * (data - model)).mean()",
        "return (sigma[:, 0] / net.sd * (model - data)).mean()",
        "the phases exchanged",
        "test_the_recovery_loss_falls_with_the_datas_energy_weighed_by_the_level",
    ),
    (
        "return [(low, (high**2 - low**2) ** 0.5) for high, low",
        "return [(low, high - low) for high, low",
        "noises that add instead of their variances",
        LADDER,
    ),
    (
        "variance = posterior @ psi**2 - (posterior @ psi) ** 2",
        "variance = posterior @ psi**2",
        "the second moment for the variance",
        "test_information_share_is_the_likelihoods_for_wide_rungs_and_none_for_narrow_ones",
    ),
    # flows
    (
        "> reach * islands.covariances[0, 0, 0].sqrt()",
        "> reach * islands.covariances[0, 0, 0]",
        "a radius in variances",
        "test_the_share_off_the_islands_is_rayleighs",
    ),
    (
        "return math.exp(-(reach**2) / 2)",
        "return 2 * scipy.stats.norm.sf(reach)",
        "the law of one dimension",
        "test_the_share_off_the_islands_is_rayleighs",
    ),
    (
        "log_det = log_det - scale.sum(1)",
        "log_det = log_det + scale.sum(1)",
        "the log-determinant of the inverse",
        INVERSE,
    ),
    (
        "log_det = (x - self.mean) / self.std, -self.std.log().sum()",
        "log_det = (x - self.mean) / self.std, 0 * self.std.log().sum()",
        "the standardisation's volume left out",
        INVERSE,
    ),
    (
        "return -z.square().sum(1) / 2 - math.log(2 * math.pi) - log_stretch",
        "return -z.square().sum(1) / 2 - math.log(2 * math.pi) + log_stretch",
        "a coupling layer whose density is not normalised",
        "test_a_coupling_layers_density_is_normalised_and_its_points_are_its_samples",
    ),
    (
        "return softplus(-logit_data).mean() + softplus(logit_noise).mean()",
        "return softplus(logit_data).mean() + softplus(-logit_noise).mean()",
        "data and noise exchanged in NCE",
        "test_nce_is_the_cross_entropy_of_data_and_noise",
    ),
    (
        "math.log(len(g_data)) - (-g_data).logsumexp(0)",
        "g_data.logsumexp(0) - math.log(len(g_data))",
        "the noise's average taken over data",
        SIDES,
    ),
    (
        "pupil.down(-loss)",
        "pupil.down(loss)",
        "a flow that helps the classifier",
        CONTRAST,
    ),
]


# Latents, composition, directions and the map

SECOND_HALF = "test_second_half_of_10.py::"
LATENT = SECOND_HALF + "test_slopes_of_the_latent_loss_are_minus_those_of_log_p_for_prior_and_decoder"
PATHS = SECOND_HALF + "test_alignment_by_recursion_is_that_of_all_paths"
BOUND = SECOND_HALF + "test_the_bound_of_a_vae_is_log_p_where_its_encoder_is_the_posterior"
CODES = SECOND_HALF + "test_priors_of_codes_are_where_the_codes_are"
COMPOSERS = SECOND_HALF + "test_samplers_have_the_variance_that_their_steps_say"
FINE = SECOND_HALF + "test_fine_steps_reach_the_variances_in_theory"
UNEQUAL = SECOND_HALF + "test_weights_repair_unequal_factors_too"
BLOBS = SECOND_HALF + "test_blobs_have_the_score_the_product_and_the_cells_of_their_density"
TOKENS = SECOND_HALF + "test_tokens_drawn_one_by_one_have_the_energys_law"
DUAL = SECOND_HALF + "test_both_slopes_of_minus_log_p_are_where_the_dual_losses_are_least"
FIELD = SECOND_HALF + "test_the_static_field_is_the_mean_of_c_times_noise_minus_data"
DESCENT = SECOND_HALF + "test_descent_changes_the_entropy_by_the_logarithm_of_the_maps_slope"
CARRIED = SECOND_HALF + "test_the_potential_of_transport_has_the_mean_velocity_of_those_who_pass"
MATCHING = SECOND_HALF + "test_the_loss_of_energy_matching_is_j_and_has_its_gradient"
STAYED = SECOND_HALF + "test_samples_arrive_along_the_slope_and_stay_as_temperature_says"
NO_DATA = SECOND_HALF + "test_the_score_without_data_is_the_slope_of_the_diffused_density_and_its_bias_is_known"
ROOTS = SECOND_HALF + "test_descent_finds_both_roots_and_contracts_as_the_curvature_says"
TRAINED = SECOND_HALF + "test_regression_is_trained_to_the_mean_and_an_energy_to_both_roots"
NUDGED = SECOND_HALF + "test_nudged_equilibria_give_the_gradient_with_errors_of_first_and_second_order"
CHAIN = SECOND_HALF + "test_the_law_of_a_linear_chain_is_exact"
VIEWS = SECOND_HALF + "test_whitened_embeddings_reach_the_canonical_optimum_and_others_collapse"
MAP = SECOND_HALF + "test_the_map_reads_runs_and_names_what_was_not_run"
CLAIMS = SECOND_HALF + "test_sections_record_claims_beside_exact_values"

MUTANTS += [
    # 4. latent energies
    (
        "return error + prior(z_posterior.detach()).mean() - prior(z_prior.detach()).mean()",
        "return error + prior(z_prior.detach()).mean() - prior(z_posterior.detach()).mean()",
        "the prior's phases exchanged",
        LATENT,
    ),
    (
        "- step_size * h / 4))",
        "- step_size * h / 2))",
        "twice the step's share of the curvature",
        SECOND_HALF + "test_the_steps_add_to_the_slope_in_w_what_their_own_stationary_variance_adds",
    ),
    (
        "error = (x - decoder(z_posterior.detach())).square().sum(-1).mean() / (2 * s**2)",
        "error = (x - decoder(z_posterior.detach())).square().sum(-1).mean() / s**2",
        "the decoder's error without its half",
        LATENT,
    ),
    (
        "return lambda z: prior(z) + (x - decoder(z)).square().sum(-1) / (2 * s**2)",
        "return lambda z: prior(z) + (x - decoder(z)).square().sum(-1) / (2 * s)",
        "a standard deviation for a variance in the posterior",
        LATENT,
    ),
    (
        "covariance = w @ inverse @ w.T + s**2 * torch.eye",
        "covariance = w @ a @ w.T + s**2 * torch.eye",
        "the prior's precision for its covariance",
        SECOND_HALF + "test_the_linear_density_is_the_quadratures",
    ),
    (
        "for cell in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if cell in table]",
        "for cell in ((i - 1, j), (i, j - 1)) if cell in table]",
        "an alignment without diagonal steps",
        PATHS,
    ),
    (
        "c - (-beta * torch.stack(before)).logsumexp(0) / beta if before",
        "c - (-beta * torch.stack(before)).logsumexp(0) if before",
        "a free energy that is not divided by beta",
        PATHS,
    ),
    (
        "kl = (mean.square() + (2 * log_sd).exp() - 1).sum(-1) / 2 - log_sd.sum(-1)",
        "kl = (mean.square() + log_sd.exp() - 1).sum(-1) / 2 - log_sd.sum(-1)",
        "a standard deviation for a variance in KL",
        BOUND,
    ),
    (
        "return (e_data - e_model + 1e-5",
        "return (e_model - e_data + 1e-5",
        "the phases of the codes' energy exchanged",
        CODES,
    ),
    # 5. composition
    (
        "x = x + dt / 2 * sum(scores(x, t))",
        "x = x + dt * sum(scores(x, t))",
        "the flow without its half",
        COMPOSERS,
    ),
    (
        "x = x + dt * sum(scores(x, t)) + dt.sqrt() * torch.randn_like(x)",
        "x = x + dt / 2 * sum(scores(x, t)) + dt.sqrt() * torch.randn_like(x)",
        "the reverse SDE with the flow's drift",
        COMPOSERS,
    ),
    (
        "log_w = log_w + dt / 2 * (drift",
        "log_w = log_w + dt * (drift",
        "weights that count each pair twice",
        UNEQUAL,
    ),
    (
        "- sum(s.square().sum(2) for s in parts))",
        ")",
        "weights that keep the factors' own squares",
        UNEQUAL,
    ),
    (
        "v = 1 / (1 / v - dt * n * (n - 1) / a**2)",
        "v = 1 / (1 / v - dt * n**2 / a**2)",
        "the reference's weights with the squares in it",
        FINE,
    ),
    (
        "means = (q.variance * p.means[:, None] + p.variance * q.means) / total",
        "means = (p.variance * p.means[:, None] + q.variance * q.means) / total",
        "a product's means weighed the wrong way round",
        BLOBS,
    ),
    # 6. directions
    (
        "values = [-energy]",
        "values = [energy]",
        "a soft value with the energy's sign flipped",
        TOKENS,
    ),
    (
        "return (t.sqrt() * slope - u).square(), (slope_t - (1 - u.square()) / 2).square()",
        "return (t.sqrt() * slope + u).square(), (slope_t - (1 - u.square()) / 2).square()",
        "denoising score matching with its sign flipped",
        DUAL,
    ),
    (
        "(slope_t - (1 - u.square()) / 2).square()",
        "(slope_t - (1 - u.square())).square()",
        "the slope in the level without its half",
        DUAL,
    ),
    (
        "target = c * ((1 - g) / wide * off - means - g * variance / wide * off)",
        "target = c * (means + g * variance / wide * off - (1 - g) / wide * off)",
        "a static field that points from data to noise",
        FIELD,
    ),
    (
        "np.log(np.abs(1 - rate * slopes[cell])).mean()",
        "np.log(np.abs(1 + rate * slopes[cell])).mean()",
        "the entropy of a map that climbs",
        DESCENT,
    ),
    (
        "np.tile(x0 - x1, n_times)",
        "np.tile(x1 - x0, n_times)",
        "a potential whose slope carries data to noise",
        CARRIED,
    ),
    (
        "push = weight * (p - np.exp(log_q)) / epsilon",
        "push = weight * (np.exp(log_q) - p) / epsilon",
        "a potential that is low where there is no data",
        MATCHING,
    ),
    (
        "np.interp(y, middle, slopes) / epsilon + step_size**0.5",
        "np.interp(y, middle, slopes) + step_size**0.5",
        "samples of exp(-V) for exp(-V/epsilon)",
        STAYED,
    ),
    (
        "scipy.stats.entropy(p)\n",
        "0\n",
        "a cross entropy for a divergence",
        SECOND_HALF + "test_one_potential_arrives_without_likelihood_and_stays_with_much_of_it",
    ),
    (
        "tilted_wells(y + t**0.5 * torch.randn(n, k, dtype=torch.float64))",
        "tilted_wells(y + t * torch.randn(n, k, dtype=torch.float64))",
        "a variance for a standard deviation in the draws",
        NO_DATA,
    ),
    (
        "return score, (score * mean[2] - mean[3]) / mean[0] ** 2, mean[4]",
        "return score, (mean[3] - score * mean[2]) / mean[0] ** 2, mean[4]",
        "the bias with its sign flipped",
        NO_DATA,
    ),
    (
        "((1 - rate * curvature) ** 10)[found]",
        "((1 - rate * curvature / 2) ** 10)[found]",
        "a contraction by half of the curvature",
        ROOTS,
    ),
    (
        "learner.down((energy(torch.cat([x, y], 2)) + log_z).mean(1).sum())",
        "learner.down((energy(torch.cat([x, y], 2)) - log_z).mean(1).sum())",
        "log Z with its sign flipped",
        TRAINED,
    ),
    (
        "return (high - low) / (2 * beta if symmetric else beta)",
        "return (high - low) / beta",
        "two nudges divided by one",
        NUDGED,
    ),
    (
        "variance = 1 - step_size * eigen / 2, 1 / (eigen * (1 - step_size * eigen / 4))",
        "variance = 1 - step_size * eigen / 2, 1 / (eigen * (1 - step_size * eigen / 2))",
        "a step's bias twice as large",
        CHAIN,
    ),
    (
        "(1 - r) - 2 * r * (1 - r**n_steps)",
        "(1 - r) - r * (1 - r**n_steps)",
        "the ends of a time average counted half",
        CHAIN,
    ),
    (
        "torch.linalg.cholesky(z.T @ z / len(z)), z.T",
        "torch.linalg.cholesky(z.T @ z), z.T",
        "a whitening that shrinks by the number of points",
        VIEWS,
    ),
    # 7. the map
    (
        "found = record and find_entry(record, route.reaches)",
        "found = record and find_entry(record, route.fails)",
        "a map that shows where a method fails as what it reaches",
        MAP,
    ),
    (
        "with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # half",
        "with contextlib.suppress(OSError):  # half",
        "a broken file that ends the run",
        MAP,
    ),
    (
        'within = tolerance(sem, len(values)) if name != "weights" else None',
        "within = None",
        "composed variances that nothing holds to their exact values",
        CLAIMS,
    ),
]
