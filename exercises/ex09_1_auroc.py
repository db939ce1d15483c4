"""ex09_1 The area under the curve, by counting pairs (level 1, 10 minutes)

An out-of-distribution score is good if images from inside get higher scores than images from outside. The area under its
ROC curve is a probability over pairs:

    AUROC = P(score of an inside image > score of an outside image) + 1/2 P(they are equal).

Return it from two lists of scores. (A score that is an energy has to be turned round first: that is the caller's task.)

Shapes   inside (N,), outside (M,) float64, with ties -> a number
Source   Hanley & McNeil (1982)
Read     09_ebm_applications.py, section ood
"""

import torch


def auroc(inside, outside):
    """The share of pairs in which the inside image has the higher score; ties count a half."""
    raise NotImplementedError
