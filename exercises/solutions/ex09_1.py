"""Solution of ex09_1."""


def auroc(inside, outside):
    """The share of pairs in which the inside image has the higher score; ties count a half."""
    gap = inside[:, None] - outside
    return ((gap > 0).double() + 0.5 * (gap == 0).double()).mean()


MUTANTS = [
    ("inside[:, None] - outside", "outside - inside[:, None]", "inside is to score higher"),
    (" + 0.5 * (gap == 0).double()", "", "Ties are left out"),
    ("0.5 * (gap == 0)", "(gap == 0)", "Ties count as wins"),
    (".mean()", ".sum()", "the number of pairs"),
    ("((gap > 0).double() + 0.5 * (gap == 0).double()).mean()", "gap.sign().mean()", "wins and losses"),
    ("((gap > 0).double() + 0.5 * (gap == 0).double())", "gap", "compares the means"),
    ("((gap > 0).double() + 0.5 * (gap == 0).double()).mean()", "(gap[gap != 0] > 0).double().mean()", "denominator"),
]
