"""The check of ex07_1: what an energy must not depend on, by trying it."""

import torch

from compare import NotYet, Part

HINTS = (
    "nn.Sequential of two or three nn.Conv2d with nn.SiLU between, then nn.Flatten and nn.Linear to one number.",
    "8x8 becomes 4x4 by nn.Conv2d(1, 16, 4, stride=2, padding=1), and 2x2 by another. nn.Linear gives (B, 1): drop the 1.",
    "self.net = nn.Sequential(conv, nn.SiLU(), conv, nn.SiLU(), nn.Flatten(), nn.Linear(128, 1)); return self.net(x)[:, 0]",
)


def check(learner, seed):
    torch.manual_seed(seed)
    energy, x = learner.Energy(), torch.randn(6, 1, 8, 8)
    if not isinstance(energy, torch.nn.Module):
        raise NotYet("Energy should be a torch.nn.Module: class Energy(nn.Module), and super().__init__() first")
    if not list(energy.parameters()):
        raise NotYet("Energy has no parameters: layers must be attributes of self, made in __init__")
    before, e = x.clone(), energy(x)
    column = "One number an image: remove the last dimension, as in [:, 0] or .squeeze(1)."
    Part("Energy", e, torch.zeros(6), {column: e} if torch.is_tensor(e) and e.shape == (6, 1) else {}).check_form()
    if not torch.equal(x, before):
        raise NotYet("Energy changes its argument x: an activation with inplace=True?")
    if not e.isfinite().all():
        raise NotYet("Energy is nan or infinite on unit noise")
    if not e.requires_grad:
        raise NotYet("Energy has no graph: no detach, no no_grad; Langevin follows its slope")
    if not any(isinstance(part, torch.nn.Conv2d) for part in energy.modules()):
        raise NotYet("There is no nn.Conv2d in it: a convolutional energy is asked for")
    check_function_of_x(energy, x, e.detach())
    check_slopes(energy, x)
    if torch.allclose(learner.Energy()(x), e):
        raise NotYet("Two instances have the same weights: each should start at random")


def check_function_of_x(energy, x, e):
    """E(x) is the same again, alone, in another order, and in evaluation mode."""
    if not torch.allclose(energy(x), e, atol=1e-5):
        raise NotYet("Two calls with the same images differ: dropout, or noise, has no place in an energy")
    if not torch.allclose(torch.cat([energy(x[i : i + 2])[:1] for i in range(5)]), e[:5], atol=1e-5, rtol=1e-4):
        raise NotYet("E(x) depends on the other images of the batch: no batch norm, and no sum or mean over the batch")
    energy.eval()
    if not torch.allclose(energy(x), e, atol=1e-5, rtol=1e-4):
        raise NotYet("train() and eval() give different energies: which one is the model?")
    energy.train()
    if e.std() < 1e-6:
        raise NotYet("All images have the same energy")


def check_slopes(energy, x):
    """Every pixel matters, and the slope has a slope of its own."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    blind = int((slope.abs().amax(0) == 0).sum())
    if blind:
        raise NotYet(f"{blind} of 64 pixels do not matter to E: do the strides leave them out?")
    if not slope.requires_grad:
        raise NotYet("The Hessian is zero: E is linear in x, an activation is missing")
    (curvature,) = torch.autograd.grad((slope * torch.randn_like(x)).sum(), x, allow_unused=True)
    if curvature is None or curvature.abs().max() < 1e-10:
        raise NotYet("The Hessian is zero: ReLU (and LeakyReLU) is flat between its kinks; take SiLU, softplus or ELU")
