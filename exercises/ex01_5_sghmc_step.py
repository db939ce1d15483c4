"""ex01_5 Stochastic-gradient HMC with a gradient that is noisy (level 2, 25 minutes)

A step of SGHMC with step h moves the velocity, and then the position by the *new* velocity:

    v' = v - h (grad + friction v) + noise,        x' = x + h v'.

With an exact gradient the noise has the variance 2 friction h T in each coordinate. But a minibatch's gradient brings noise
of its own, of variance grad_var in each coordinate, and h times it enters v. The two variances add: give v only what is
still missing, so that the total is right. (2 friction T > h grad_var here.)

Shapes   x, v, noisy_grad, xi (B, d) float64, xi ~ N(0, I); h, friction, grad_var, T positive numbers -> (x', v')
Source   Chen, Fox & Guestrin (2014), eq. 15
Read     01_ebm_foundations.py, section sampling (sghmc)
"""

import torch


def sghmc_step(x, v, noisy_grad, h, friction, grad_var, T, xi):
    """(x', v') after one step, whose noise makes up for the gradient's own."""
    raise NotImplementedError
