"""The check of ex08_3: a linear generator, whose gradient is -(x_revised - z A)' z / B in closed form."""

import torch

from compare import Draws, NotYet, expect

HINTS = (
    "Which of the two in the difference is a target, a number as far as the loss is concerned?",
    "x_revised.detach(). Sum the squares over the components, and take the mean over the rows.",
    "0.5 * (generator(z) - x_revised.detach()).square().sum(1).mean()",
)


def check(learner, seed):
    draws = Draws(seed)
    z, A, target = draws.normal(7, 2), draws.normal(2, 3), draws.normal(7, 3)
    off = z @ A - target
    want = 0.5 * (off**2).sum() / 7
    wrong = {
        "A half is missing.": 2 * want,
        "That is a mean over the components too (as F.mse_loss is): sum over them.": want / 3,
        "That is F.mse_loss: a half, and a sum over components, is asked for.": 2 * want / 3,
        "The rows are summed: take their mean.": 7 * want,
        "The distance is squared.": 0.5 * off.norm(dim=1).mean(),
        "g(z) and x_revised are compared by their means: compare row by row.": 0.5 * (off.mean(0) ** 2).sum(),
    }
    call = lambda z, x: learner.generator_loss(lambda z: z @ A, z, x)
    expect(call, (z, target), want, wrong, {"B": 7, "d": 3}, name="generator_loss")
    leaf, rho = A.clone().requires_grad_(), 0.4
    made = z @ leaf
    revised = (1 - rho) * made + draws.normal(7, 3)  # Langevin in E = x^2/2: linear in what was made
    loss = learner.generator_loss(lambda z: z @ leaf, z, revised)
    if not loss.requires_grad:
        raise NotYet("generator_loss has no graph: detach x_revised, not g(z)")
    (got,) = torch.autograd.grad(loss, leaf)
    fixed = z.T @ (made - revised).detach() / 7
    sentences = {
        "The gradient reaches back through the chains: x_revised.detach().": rho * fixed,
        "The generator is detached, the chains are not: it is the other way round.": -(1 - rho) * fixed,
    }
    if not torch.allclose(got, fixed, rtol=1e-6):
        why = next((sentence for sentence, value in sentences.items() if torch.allclose(got, value, rtol=1e-6)), "")
        raise NotYet(f"generator_loss: its value is right, but its gradient is not.\n{why}")
