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
