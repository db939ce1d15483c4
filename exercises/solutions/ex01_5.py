"""Solution of ex01_5."""


def sghmc_step(x, v, noisy_grad, h, friction, grad_var, T, xi):
    """(x', v') after one step, whose noise makes up for the gradient's own."""
    missing = 2 * friction * h * T - h**2 * grad_var
    v = v - h * (noisy_grad + friction * v) + missing**0.5 * xi
    return x + h * v, v


MUTANTS = [
    (" - h**2 * grad_var", "", "too hot by h grad_var/(2 friction)"),
    ("h**2 * grad_var", "h * grad_var", "so their variance by h^2"),
    ("h**2 * grad_var", "(h * grad_var)**2", "a variance already"),
    ("- h**2 * grad_var", "+ h**2 * grad_var", "must add up"),
    ("(noisy_grad + friction * v)", "noisy_grad", "Friction is missing"),
    (
        "return x + h * v, v",
        "return x + h * (v - missing**0.5 * xi + h * noisy_grad) / (1 - h * friction), v",
        "not by the old one",
    ),
    ("missing**0.5 * xi", "missing * xi", "take the root"),
]
