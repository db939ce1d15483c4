"""Solution of ex10_4."""


def recovery_gradient(energy_slope, energy, x, y, sigma, axis):
    """The gradient (n_theta,) of the mean log p(x | y), to climb."""
    pull = (axis - y[:, None]) ** 2 / (2 * sigma**2)
    p = (-energy(axis) - pull).softmax(1)  # (N, n): a model for each y
    data, model = energy_slope(x).mean(1), (energy_slope(axis) @ p.T).mean(1)
    return model - data


MUTANTS = [
    ("return model - data", "return data - model", "gradient of the loss"),
    ("-energy(axis) - pull", "-energy(axis) - 0 * pull", "the marginal model's gradient"),
    ("(2 * sigma**2)", "sigma**2", "has 2 sigma^2 below"),
    ("(2 * sigma**2)", "(2 * sigma)", "not sigma^2"),
    ("axis - y[:, None]", "axis - x[:, None]", "in y's place"),
    ("axis - y[:, None]", "axis - y.mean().expand(len(y))[:, None]", "its own normaliser"),
    ("return model - data", "return -data", "negative phase is missing"),
    ("return model - data", "return model + data", "The phases are added"),
    (
        "energy_slope(x).mean(1), (energy_slope(axis) @ p.T).mean(1)",
        "energy_slope(x).sum(1), (energy_slope(axis) @ p.T).sum(1)",
        "The pairs are summed",
    ),
]
