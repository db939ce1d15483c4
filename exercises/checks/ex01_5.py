"""The check of ex01_5: the noise from the stationary (Lyapunov) equation of x and v in a well, solved for its variance."""

import numpy as np
import scipy.linalg

from compare import Draws, expect

HINTS = (
    "How much variance do the gradient's errors add to v in one step? They are multiplied by h there.",
    "Var(h e) = h^2 grad_var; the total must stay 2 friction h T.",
    "v' = v - h (noisy_grad + friction v) + sqrt(2 friction h T - h^2 grad_var) xi, then x' = x + h v'.",
)


def noise_variance(h, friction, grad_var, T):
    """What reaches the noise-free gradient's stationary covariance in E = x^2/2, by superposition: it is linear in it."""
    A = np.array([[1 - h * h, h * (1 - h * friction)], [-h, 1 - h * friction]])
    push = np.array([h, 1.0])
    settled = lambda variance: scipy.linalg.solve_discrete_lyapunov(A, variance * np.outer(push, push))[1, 1]
    exact, own = settled(2 * friction * h * T), settled(h**2 * grad_var)
    return (exact - own) / settled(1.0)


def check(learner, seed):
    draws = Draws(seed)
    x, v, grad, xi = (draws.normal(6, 4) for _ in range(4))
    h, friction, grad_var, T = 0.2, 1.7, 1.5, 0.8
    kept = v - h * (grad + friction * v)
    both = lambda v: (x + h * v, v)
    noise = lambda variance: both(kept + variance**0.5 * xi)
    wrong = {
        "The gradient's own noise comes on top: too hot by h grad_var/(2 friction).": noise(2 * friction * h * T),
        "The gradient's errors are multiplied by h, so their variance by h^2.": noise(2 * friction * h * T - h * grad_var),
        "grad_var is a variance already.": noise(2 * friction * h * T - (h * grad_var) ** 2),
        "The variances must add up to 2 friction h T: subtract the gradient's.": noise(
            2 * friction * h * T + h**2 * grad_var
        ),
        "Friction is missing in v.": both(kept + h * friction * v + noise_variance(h, friction, grad_var, T) ** 0.5 * xi),
        "The noise's variance has a factor 2.": noise(friction * h * T - h**2 * grad_var),
        "x moves by the new velocity, not by the old one.": (x + h * v, noise(noise_variance(h, friction, grad_var, T))[1]),
        "xi is multiplied by the standard deviation: take the root.": both(
            kept + noise_variance(h, friction, grad_var, T) * xi
        ),
    }
    inputs = (x, v, grad, h, friction, grad_var, T, xi)
    expect(learner.sghmc_step, inputs, noise(noise_variance(h, friction, grad_var, T)), wrong, names=("x'", "v'"))
