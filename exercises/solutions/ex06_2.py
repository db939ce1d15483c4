"""Solution of ex06_2."""


def dsm_loss(score, x, noise, sigma):
    """The denoising score matching loss, a mean over the rows."""
    blurred = x + sigma * noise
    return 0.5 * (sigma * score(blurred) + noise).square().sum(1).mean()


MUTANTS = [
    ("score(blurred) + noise", "score(blurred) - noise", "*away*"),
    ("score(blurred)", "score(x)", "at the clean point"),
    ("score(blurred) + noise", "score(blurred) + sigma * noise", "against sigma n"),
    ("return 0.5 * ", "return ", "A half is missing"),
    (".sum(1).mean()", ".sum(1).mean() / sigma**2", "off by sigma^2"),
    ("(sigma * score", "(score", "not multiplied by sigma"),
    (".sum(1).mean()", ".sum()", "summed over the rows"),
    (".sum(1).mean()", ".mean()", "over the components"),
    ("x + sigma * noise", "x + sigma**2 * noise", "blurred by sigma^2"),
]
