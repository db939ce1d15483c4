"""Solution of ex07_4."""


def recipe_temperature(alpha, noise_std):
    """The temperature at which the recipe samples exp(-E/T)."""
    step_size = 2 * alpha
    return noise_std**2 / step_size


MUTANTS = [
    ("2 * alpha", "alpha", "half of e already"),
    ("2 * alpha", "alpha / 2", "the other way round"),
    ("noise_std**2", "noise_std", "square it"),
    ("noise_std**2 / step_size", "step_size / noise_std**2", "That is 1/T"),
    ("/ step_size", "* step_size", "*divided*"),
    (" / step_size", "", "The step is missing"),
]
