"""ex10_1 The score denoises (level 1, 5 minutes)

A clean x is blurred: y = x + sigma n, n ~ N(0, I). The mean of x given y follows from the score of the *blurred* density,
s(y) = grad log p_sigma(y) (Tweedie's formula):

    E[x | y] = y + sigma^2 s(y).

No clean density is needed, and no sampling. Return it.

Shapes   y (B, d) float64; score a function (B, d) -> (B, d); sigma a number -> (B, d)
Source   Robbins (1956); Efron (2011)
Read     10_advanced_ebm_topics.py, section diffusion; 06_score_matching.py, section objectives
"""

import torch


def denoise(y, score, sigma):
    """The posterior mean (B, d) of the clean x."""
    raise NotImplementedError
