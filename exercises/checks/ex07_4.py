"""The check of ex07_4: in E = x^2/2 with a small alpha, x settles to the variance T: its recursion, iterated."""

from compare import Draws, expect

HINTS = (
    "Match the two updates term by term: what is e, if alpha = e/2?",
    "e = 2 alpha, and noise_std^2 = e T.",
    "noise_std**2 / (2 * alpha)",
)


def settled(alpha, noise_std):
    """The variance of x under the recipe in E = x^2/2, times the step's known bias: v (1 - alpha/2) = T."""
    v = 0.0
    for _ in range(3000):
        v = (1 - alpha) ** 2 * v + noise_std**2
    return v * (1 - alpha / 2)


def check(learner, seed):
    draws = Draws(seed)
    for alpha, noise in ((0.02 + 0.01 * draws.uniform(1).item(), 0.3), (1.0, 0.01)):
        want = settled(alpha, noise)
        wrong = {
            "alpha is half of e already: e = 2 alpha.": noise**2 / alpha,
            "That is with e = alpha/2: it is the other way round, alpha = e/2.": 2 * noise**2 / alpha,
            "The noise is a standard deviation: square it.": noise / (2 * alpha),
            "That is the root of T.": want**0.5,
            "That is 1/T.": 1 / want,
            "T is the noise's variance *divided* by the step.": noise**2 * 2 * alpha,
            "The step is missing: at half the step the same noise is twice as hot.": noise**2,
        }
        expect(learner.recipe_temperature, (alpha, noise), want, wrong)
