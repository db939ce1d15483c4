"""Mistakes planted in module 10, second half: (old, new text, what mistake, the test that notices); for mutants_10.py."""

FILE = "test_second_half_of_10.py::"
LATENT = FILE + "test_slopes_of_the_latent_loss_are_minus_those_of_log_p_for_prior_and_decoder"
PATHS = FILE + "test_alignment_by_recursion_is_that_of_all_paths"
BOUND = FILE + "test_the_bound_of_a_vae_is_log_p_where_its_encoder_is_the_posterior"
CODES = FILE + "test_priors_of_codes_are_where_the_codes_are"
SAMPLERS = FILE + "test_samplers_have_the_variance_that_their_steps_say"
FINE = FILE + "test_fine_steps_reach_the_variances_in_theory"
UNEQUAL = FILE + "test_weights_repair_unequal_factors_too"
BLOBS = FILE + "test_blobs_have_the_score_the_product_and_the_cells_of_their_density"
TOKENS = FILE + "test_tokens_drawn_one_by_one_have_the_energys_law"
DUAL = FILE + "test_both_slopes_of_minus_log_p_are_where_the_dual_losses_are_least"
FIELD = FILE + "test_the_static_field_is_the_mean_of_c_times_noise_minus_data"
DESCENT = FILE + "test_descent_changes_the_entropy_by_the_logarithm_of_the_maps_slope"
NO_DATA = FILE + "test_the_score_without_data_is_the_slope_of_the_diffused_density_and_its_bias_is_known"
ROOTS = FILE + "test_descent_finds_both_roots_and_contracts_as_the_curvature_says"
TRAINED = FILE + "test_regression_is_trained_to_the_mean_and_an_energy_to_both_roots"
NUDGED = FILE + "test_nudged_equilibria_give_the_gradient_with_errors_of_first_and_second_order"
CHAIN = FILE + "test_the_law_of_a_linear_chain_is_exact"
VIEWS = FILE + "test_whitened_embeddings_reach_the_canonical_optimum_and_others_collapse"
MAP = FILE + "test_the_map_reads_runs_and_names_what_was_not_run"
CLAIMS = FILE + "test_sections_record_claims_beside_exact_values"

MUTANTS = [
    # 4. latent energies
    (
        "return error + prior(z_posterior.detach()).mean() - prior(z_prior.detach()).mean()",
        "return error + prior(z_prior.detach()).mean() - prior(z_posterior.detach()).mean()",
        "the prior's phases exchanged",
        LATENT,
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
        FILE + "test_the_linear_density_is_the_quadratures",
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
        SAMPLERS,
    ),
    (
        "x = x + dt * sum(scores(x, t)) + dt.sqrt() * torch.randn_like(x)",
        "x = x + dt / 2 * sum(scores(x, t)) + dt.sqrt() * torch.randn_like(x)",
        "the reverse SDE with the flow's drift",
        SAMPLERS,
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
        'within = tolerance(sem, len(values))\n            run.metric(f"n = {n}, {name}: variance", mean, sem, ("these steps, exactly", exact[n][name]), within)',
        'within = None\n            run.metric(f"n = {n}, {name}: variance", mean, sem, ("these steps, exactly", exact[n][name]), within)',
        "composed variances that nothing holds to their exact values",
        CLAIMS,
    ),
]
