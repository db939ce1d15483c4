"""ex06_4 Data or noise? (level 1, 10 minutes)

Noise-contrastive estimation tells data from noise: for every datum, `ratio` points come from a density q that is known. With
an unnormalised model log p(x) = -E(x) - c, the log odds of "this point is a datum" are

    log [ p(x) / (ratio q(x)) ],

and logistic regression on them learns c = log Z like any other weight. Return the log odds from the two log densities.

Shapes   log_model, log_noise (n,) float64; ratio a positive number -> (n,)
Source   Gutmann & Hyvarinen (2010, 2012)
Read     06_score_matching.py, section nce
"""

import torch


def nce_logit(log_model, log_noise, ratio):
    """The log odds (n,) that a point is a datum and not noise."""
    raise NotImplementedError
