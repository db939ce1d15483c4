"""ex06_2 Denoising score matching (level 2, 25 minutes)

Blur a clean point, x~ = x + sigma n with n ~ N(0, I), and ask the score s at the blurred point to point back to the clean
one (module 06, eq. 4, written with s = -grad E):

    J = mean over the rows of  |sigma s(x~) + n|^2 / 2.

Its minimiser is the score of the data *blurred by sigma*: from data of variance v it learns v + sigma^2.

Shapes   score a function (B, d) -> (B, d); x, noise (B, d) float64, noise ~ N(0, I); sigma a number
         -> a tensor with one number
Source   Vincent (2011)
Read     06_score_matching.py, section objectives
"""

import torch


def dsm_loss(score, x, noise, sigma):
    """The denoising score matching loss, a mean over the rows."""
    raise NotImplementedError
