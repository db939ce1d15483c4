"""ex02_4 Recall by attention (level 2, 20 minutes)

A modern Hopfield network moves each query to a softmax-weighted mean of the patterns in one step (module 02, eq. 5):

    xi <- X' softmax(beta X xi),        X (P, d) the patterns.

This is attention with queries xi, keys X and values X, and no 1/sqrt(d) but beta. Write it for many queries at once.

Shapes   patterns (P, d), queries (B, d) float64, beta a number -> (B, d)
Source   Ramsauer et al. (2020), eq. 3
Read     02_hopfield_networks.py, section modern
"""

import torch


def attention_recall(patterns, queries, beta):
    """The queries (B, d) after one step."""
    raise NotImplementedError
