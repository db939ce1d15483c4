"""The check of ex10_3: x_2 given x_1 is N(shift, exp(scale)^2), by torch.distributions; and the integral is 1."""

import math

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "Solve for z first. Then p(x) = N(z; 0, I) |det dz/dx|.",
    "z_2 = (x_2 - shift(x_1)) exp(-scale(x_1)), so log |det dz/dx| = -scale(x_1). A wide x_2 has a *low* density.",
    "-0.5 * (x1**2 + z2**2) - math.log(2 * math.pi) - scale(x1)",
)


def check(learner, seed):
    draws = Draws(seed)
    a, b = draws.normal(2).tolist()
    scale, shift = lambda t: 0.4 + 0.5 * torch.sin(a + t), lambda t: b + t**2 / 4
    x = 1.3 * draws.normal(8, 2)
    normal = lambda mean, std: torch.distributions.Normal(mean, std)
    s, m = scale(x[:, 0]), shift(x[:, 0])
    want = normal(0.0, 1.0).log_prob(x[:, 0]) + normal(m, s.exp()).log_prob(x[:, 1])
    z = (x[:, 1] - m) / s.exp()
    constant = math.log(2 * math.pi)
    wrong = {
        "log det has the wrong sign: where the layer stretches, the density falls.": want + 2 * s,
        "log det is missing.": want + s,
        "The base's constant is missing: log(2 pi), for two dimensions.": want + constant,
        "The base's constant is that of one dimension: there are two.": want + constant / 2,
        "That is the layer itself, not its inverse: z_2 = (x_2 - shift) exp(-scale).": -0.5
        * (x[:, 0] ** 2 + (x[:, 1] * s.exp() + m) ** 2)
        - constant
        - s,
        "shift has the wrong sign in z_2.": want + 0.5 * z**2 - 0.5 * ((x[:, 1] + m) / s.exp()) ** 2,
        "z_2 is to be divided by exp(scale), not by scale.": want + 0.5 * z**2 - 0.5 * ((x[:, 1] - m) / s) ** 2,
        "Subtract shift first, then scale: the reverse of how x_2 was made.": want
        + 0.5 * z**2
        - 0.5 * (x[:, 1] / s.exp() - m) ** 2,
        "x_1 is a coordinate of z too: its density is missing.": normal(m, s.exp()).log_prob(x[:, 1]),
        "A standard normal has x^2/2: the half is missing.": want - 0.5 * (x[:, 0] ** 2 + z**2),
        "The determinant is exp(scale): its logarithm is scale.": want + s - s.exp(),
    }
    call = lambda x: learner.coupling_log_prob(x, scale, shift)
    expect(call, (x,), want, wrong, name="coupling_log_prob")
    axis = torch.linspace(-5.5, 5.5, 221, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, 3 * axis)
    total = call(grid).exp().sum().item() * 3 * 0.05**2
    if abs(total - 1) > 1e-4:
        raise NotYet(f"coupling_log_prob: the density integrates to {total:.4f}")
