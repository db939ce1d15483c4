"""Planted mistakes of module 08: (old text, new text, what mistake it is, the test that notices it)."""

THEORY = "test_the_theory_of_three_lessons_is_the_closed_forms"
HANDS = "test_coopnets_hand_the_generators_samples_to_the_energy_and_the_revised_ones_to_both"
BY_HAND = "test_the_energy_is_the_error_over_two_sigma_squared_and_its_slope_by_hand_is_autograds"
LOSS = "test_the_loss_lowers_the_energy_of_data_and_raises_that_of_samples"
PLAYERS = "test_an_ebgan_lowers_each_players_own_loss"
BOUND = "test_the_entropys_bound_is_exact_minus_its_gap"
LINEAR = "test_the_linear_slope_is_autograds_and_its_fixed_point_the_covariance"
AMORTISED = "test_an_amortised_generator_descends_energy_minus_the_bound_and_feeds_the_energy_detached"
LANGEVIN = "test_langevin_has_the_stationary_variance_of_its_step_and_temperature_1"
PCA = "test_the_slope_of_a_pca_critic_and_the_one_with_its_target_detached"

MUTANTS = [
    ("alpha=-step_size / 2).add_(", "alpha=-step_size).add_(", "a Langevin step that is twice too long", LANGEVIN),
    (
        "torch.randn_like(x), alpha=step_size**0.5)",
        "torch.randn_like(x), alpha=step_size)",
        "noise of the step, not of its root",
        LANGEVIN,
    ),
    ("return 1 / (1 - step_size / 4)", "return 1 / (1 - step_size / 2)", "another stationary variance", LANGEVIN),
    (
        "z = w * x / v + (s**2 / v).sqrt() * torch.randn_like(x)",
        "z = w * x / v",
        "the posterior's mean in place of a draw",
        "test_inferred_z_is_a_draw_from_the_posterior",
    ),
    (
        "z = w * x / v + (s**2 / v).sqrt()",
        "z = w * x / v + (s / v).sqrt()",
        "a posterior with another width",
        "test_inferred_z_is_a_draw_from_the_posterior",
    ),
    (
        "after = keep**2 * before + (1 - keep**2) * v",
        "after = keep * before + (1 - keep) * v",
        "variance that decays as the mean",
        THEORY,
    ),
    (
        "moved = w * after / before / (w**2 * after / before**2 + s**2 / before)",
        "moved = before / w",
        "EM's reference without the posterior's variance",
        THEORY,
    ),
    ('{"own z": keep * w,', '{"own z": keep**2 * w,', "a reference that collapses twice as fast", THEORY),
    (
        "return (x.square().mean(1, keepdim=True) - s**2).clamp(min=0).sqrt()",
        "return x.square().mean(1, keepdim=True).sqrt()",
        "a likelihood that forgets the generator's noise",
        "test_a_lesson_by_samples_follows_its_theory",
    ),
    (
        "/ (2 * s**2) - x.shape[1] / 2 * math.log(2 * math.pi * s**2)",
        "/ (2 * s**2) - math.log(2 * math.pi * s**2) / 2",
        "a Gaussian normalised for one dimension",
        "test_log_likelihoods_are_those_of_a_gaussian",
    ),
    (
        "z = posterior_draws(generator, x, s) if infers else z",
        "z = z if infers else posterior_draws(generator, x, s)",
        "the lessons exchanged",
        "test_a_generator_on_the_ring_is_taught_by_its_own_or_by_inferred_z",
    ),
    (
        "return torch.xlogy(q, q).sum().item() - (q * log_p).sum().item()",
        "return torch.xlogy(q, q).sum().item() + (q * log_p).sum().item()",
        "a KL with a wrong sign",
        "test_the_kl_on_the_grid_is_that_of_two_gaussians",
    ),
    (
        "c = self.y[self.rows.rows[at.long().clamp(max=len(self.x) - 1)]]",
        "c = torch.randint(self.n, (n,), device=at.device)",
        "clusters drawn evenly",
        "test_clusters_are_drawn_by_their_share_and_data_come_from_them",
    ),
    (
        "else -self.logits(x).logsumexp(1)",
        "else self.logits(x).logsumexp(1)",
        "JEM's energy with the sign of log p",
        "test_logits_are_class_scores_minus_the_error_and_minus_their_logsumexp_is_the_energy",
    ),
    (
        "back += self.head(h).softmax(1) @ self.head.weight",
        "back -= self.head(h).softmax(1) @ self.head.weight",
        "the classes' force with a wrong sign",
        BY_HAND,
    ),
    (
        "r = (x - self.b2 - h @ self.w2) / self.sigma**2",
        "r = (x - self.b2 - h @ self.w2) / self.sigma",
        "a slope over sigma, not its square",
        BY_HAND,
    ),
    (
        "return r - torch.ops.aten.silu_backward(back, z) @ self.w1.T",
        "return r + torch.ops.aten.silu_backward(back, z) @ self.w1.T",
        "the Jacobian's part with a wrong sign",
        BY_HAND,
    ),
    ("gap = e_data.mean() - e_model.mean()", "gap = e_model.mean() - e_data.mean()", "phases exchanged", LOSS),
    (
        "if not gap.abs() < 100 * x_data.shape[1]:",
        "if gap.abs() > 100 * x_data.shape[1]:",
        "a divergence to nan that passes",
        LOSS,
    ),
    (
        "(mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2",
        "(mean.square() + log_var.exp() - 1 + log_var).sum(1) / 2",
        "a KL of Gaussians with a wrong sign",
        "test_minus_the_lower_bound_is_minus_log_q_where_the_reader_is_the_posterior",
    ),
    (
        "pupil.down((generator.minus_bound(x, c) if infers else",
        "pupil.down((generator.minus_bound(x, c) if not infers else",
        "CoopNets' lessons exchanged",
        HANDS,
    ),
    (
        "x = revised(energy, x, c, config)\n        if from_noise:\n",
        "revised(energy, x, c, config)\n        if from_noise:\n",
        "the generator learns from itself",
        HANDS,
    ),
    (
        "return x - DATA_NOISE**2 * energy.slope(x, c)",
        "return x - DATA_NOISE * energy.slope(x, c)",
        "Tweedie without the square",
        "test_chains_in_parts_keep_their_clusters_and_images_are_cleaned_by_tweedie",
    ),
    (
        "return (within(generator.mean(generator.prior(n), c), c).trace() /",
        "return (within(generator.draw(generator.prior(n), c), c).trace() /",
        "variance kept that counts the noise",
        "test_the_variance_kept_is_the_generators_share_within_clusters",
    ),
    (
        "(eigenvalues[:n_latent] + noise**2 - s**2)",
        "(eigenvalues[:n_latent] - s**2)",
        "a linear generator that pays for the images' noise too",
        "test_a_linear_generator_keeps_what_the_likelihood_leaves_it",
    ),
    (
        "torch.linalg.eigvalsh(covariance.double()).flip(0)",
        "torch.linalg.eigvalsh(covariance.double())",
        "the smallest components in place of the largest",
        "test_a_linear_generator_keeps_what_the_likelihood_leaves_it",
    ),
    (
        "return x.T @ x / (len(x) - len(c.unique()))",
        "return x.T @ x / len(x)",
        "a variance within clusters that is biased",
        "test_the_variance_within_clusters_is_that_about_each_clusters_mean",
    ),
    (
        "share = math.log(before[1] / goal) / math.log(before[1] / distance)",
        "share = math.log(goal / distance) / math.log(before[1] / distance)",
        "steps counted back from the later mark",
        "test_steps_needed_lie_between_the_marks_around_the_goal",
    ),
    (
        "min(1, (self.step + 1) / self.warm_up) * self.left()",
        "min(1, (self.step + 1) / self.warm_up)",
        "a rate that does not fall",
        "test_the_rate_of_descent_rises_over_its_warm_up",
    ),
    (
        "generator.misfit(x[:n_born], z, c[:n_born])",
        "generator.misfit(x[-n_born:], z, c[-n_born:])",
        "own z beside the chains from noise",
        HANDS,
    ),
    ("chains.keep(x[n_born:])", "chains.keep(x[:n_born])", "the buffer keeps the generator's chains", HANDS),
    (
        "(-squares / (2 * spread**2)).logsumexp(-1) - math.log(5 *",
        "(-squares / (2 * spread**2)).logsumexp(-1) - math.log(25 *",
        "a product of densities normalised twice",
        "test_the_25_gaussians_density_integrates_to_one_and_matches_its_samples",
    ),
    (
        "x = generator(torch.randn(*copies, batch, n_latent, device=x_data.device), c)",
        "x = generator(torch.randn(*copies, batch, n_latent, device=x_data.device))",
        "a generator that is not told the cluster",
        "test_a_knowing_ebgan_has_one_cluster_for_data_and_samples",
    ),
    (
        "slope = p - q * (table < margin)",
        "slope = p - q",
        "a critic without a margin",
        "test_the_best_value_is_that_of_a_linear_programme",
    ),
    (
        "return margin * (1 - (p - q).abs().sum(-1) / 2)",
        "return margin * (1 - (p - q).abs().sum(-1))",
        "TV without its half",
        "test_the_best_value_is_that_of_a_linear_programme",
    ),
    (
        "return (q[1:-1] * (table[2:] - table[:-2]) / 2).sum()",
        "return (q[1:-1] * (table[:-2] - table[2:]) / 2).sum()",
        "a shift to the left",
        "test_the_generators_slope_is_what_a_shift_changes",
    ),
    (
        "log_q = (log_q - rate * (table + (log_q if with_entropy else 0))).log_softmax(0)",
        "log_q = (log_q - rate * table).log_softmax(0)",
        "the game without the entropy",
        "test_the_game_ends_at_a_constant_and_with_the_entropy_at_the_density",
    ),
    (
        "return math.log(len(p)) - torch.special.entr(p).sum().item()",
        "return math.log(len(p)) + torch.special.entr(p).sum().item()",
        "a gap with the entropy's sign flipped",
        "test_gaps_are_kl_divergences",
    ),
    ("target = x.detach() if detaches else x", "target = x", "the detached target that is not", PCA),
    ("return 2 * (x - x @ basis @ basis.T)", "return 2 * (x @ basis @ basis.T)", "the slope within the components", PCA),
    (
        "((unit @ unit.mT).square().sum((-2, -1)) - n) / (n * (n - 1))",
        "((unit @ unit.mT).square().sum((-2, -1)) - n) / (n * n)",
        "pulling away averaged over too many pairs",
        "test_pulling_away_is_the_mean_squared_cosine_of_different_samples",
    ),
    (
        "(margin - critic(x.detach(), c)).relu().mean(-1)",
        "(margin - critic(x.detach(), c).mean(-1)).relu()",
        "one margin for the whole batch",
        PLAYERS,
    ),
    (
        "(margin - critic(x.detach(), c)).relu()",
        "(margin - critic(x, c)).relu()",
        "the critic's step moves the generator",
        PLAYERS,
    ),
    (
        "upper.down((critic(x, c).mean(-1) + pull *",
        "upper.down((critic(x, c).mean(-1) - pull *",
        "a term that pulls together",
        PLAYERS,
    ),
    (
        "return 1 - math.exp(-4.5)",
        "return math.erf(3 / 2**0.5)",
        "three standard deviations of a line",
        "test_coverage_of_a_perfect_sampler_and_of_planted_points",
    ),
    (
        "return 24 / (2 * n)",
        "return 25 / n",
        "another floor of the KL",
        "test_coverage_of_a_perfect_sampler_and_of_planted_points",
    ),
    (
        "energy = -logits.logsumexp(1)\n",
        "energy = logits.logsumexp(1)\n",
        "a density upside down",
        "test_the_losses_at_the_mixtures_own_logits_are_its_entropies",
    ),
    (
        "loss = cross + marginal if is_joint else cross",
        "loss = cross",
        "a JEM that is cross entropy",
        "test_jem_recovers_the_density_and_cross_entropy_only_the_posterior",
    ),
    (
        "x = torch.where(fresh, torch.randn_like(self.x[self.part]), self.x[self.part])",
        "x = torch.where(fresh, self.x[self.part], torch.randn_like(self.x[self.part]))",
        "chains that nearly all restart",
        "test_chains_restart_keep_their_clusters_and_are_visited_in_turn",
    ),
    (
        "return gaps.scatter_add_(-1, which, right - confidence).abs().sum(-1)",
        "return gaps.scatter_add_(-1, which, (right - confidence).abs()).sum(-1)",
        "absolute errors before the bins",
        "test_the_calibration_error_is_the_one_by_hand",
    ),
    (
        "(2 / math.pi * variance).sqrt()",
        "variance.sqrt()",
        "a standard deviation for a mean deviation",
        "test_the_null_of_calibration_has_the_mean_that_theory_says",
    ),
    (
        '"JEM, -E": lambda x: -jem(x),',
        '"JEM, -E": lambda x: jem(x),',
        "an OOD score with its sign flipped",
        "test_ood_scores_are_high_inside",
    ),
    (
        "roc_auc_score(np.arange(len(scores)) < len(inside), scores)",
        "roc_auc_score(np.arange(len(scores)) >= len(inside), scores)",
        "AUROC of the outside",
        "test_auroc_is_high_where_the_inside_scores_higher",
    ),
    (
        "(torch.linalg.inv(A).T if with_entropy else 0)",
        "(torch.linalg.inv(A) if with_entropy else 0)",
        "an inverse that is not transposed",
        LINEAR,
    ),
    ("- rate * precision, n_steps) @ A", "+ rate * precision, n_steps) @ A", "a reference that grows", LINEAR),
    (
        "(height * rate * (1 - step.square())).sum(1)).log()",
        "(height * (1 - step.square())).sum(1)).log()",
        "a derivative without its inner one",
        "test_stairs_rise_and_know_their_derivative",
    ),
    (
        "log_q = -z.square().sum(1) / 2 - math.log(2 * math.pi) - log_det",
        "log_q = -z.square().sum(1) / 2 - math.log(2 * math.pi) + log_det",
        "a density that grows where the map stretches",
        "test_the_reverse_kl_of_a_known_map",
    ),
    (
        "+ (log_det if with_entropy else 0)).mean())",
        "- (log_det if with_entropy else 0)).mean())",
        "a generator that flees from entropy",
        "test_the_plane_generator_descends_the_energy_minus_its_entropy",
    ),
    (
        "return d / 2 * math.log(2 * math.pi * math.e * s**2) +",
        "return d / 2 * math.log(2 * math.pi * s**2) +",
        "an entropy without its half a dimension",
        BOUND,
    ),
    (
        "(-log_var).exp() + log_var + math.log(2 * math.pi)",
        "(-log_var).exp() - log_var + math.log(2 * math.pi)",
        "a reader that is rewarded for being vague",
        BOUND,
    ),
    (
        "return 0.5 * (covariance.diagonal().log().sum() - torch.logdet(covariance)).item()",
        "return 0.5 * (torch.logdet(covariance) - covariance.diagonal().log().sum()).item()",
        "a gap below 0",
        BOUND,
    ),
    (
        "pupil.down((energy(x, c) - noisy_entropy_bound(",
        "pupil.down((energy(x, c) + noisy_entropy_bound(",
        "a generator that loses its entropy",
        AMORTISED,
    ),
    (
        "noisy(clusters.data(c)), x.detach(), c))",
        "noisy(clusters.data(c)), x, c))",
        "an energy's step through the generator",
        AMORTISED,
    ),
]
