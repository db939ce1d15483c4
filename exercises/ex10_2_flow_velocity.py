"""ex10_2 The probability flow (level 2, 25 minutes)

Blur with rising sigma: x + sigma n has the density p_sigma. The same densities are also reached *without* noise, if every
point flows along (Song et al. 2021, for a variance of sigma^2)

    dx/dsigma = -sigma s(x, sigma),        s = grad log p_sigma.

Starting from noise and integrating down to sigma = 0 makes samples. Return this velocity.

Shapes   score a function (x (B, d), sigma) -> (B, d); x (B, d) float64; sigma a number -> dx/dsigma (B, d)
Source   Song et al. (2021), eq. 13; Karras et al. (2022), eq. 1
Read     10_advanced_ebm_topics.py, section diffusion
"""

import torch


def flow_velocity(score, x, sigma):
    """dx/dsigma (B, d) of the probability-flow ODE."""
    raise NotImplementedError
