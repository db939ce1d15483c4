"""Solution of ex08_3."""


def generator_loss(generator, z, x_revised):
    """The generator's loss; its gradient reaches the generator through g(z) alone."""
    return 0.5 * (generator(z) - x_revised.detach()).square().sum(1).mean()


MUTANTS = [
    ("x_revised.detach()", "x_revised", "back through the chains"),
    ("generator(z) - x_revised.detach()", "generator(z).detach() - x_revised", "other way round"),
    ("generator(z) - x_revised.detach()", "generator(z).detach() - x_revised.detach()", "has no graph"),
    ("0.5 * ", "", "A half is missing"),
    (".sum(1).mean()", ".mean()", "over the components too"),
    (".mean()", ".sum()", "The rows are summed"),
    (".square().sum(1)", ".norm(dim=1)", "The distance is squared"),
]
