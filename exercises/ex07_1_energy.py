"""ex07_1 An energy for images (level 1, 20 minutes)

Write a convolutional energy for 8x8 grey images: a module without arguments, whose call gives one number an image,

    Energy()(x): (B, 1, 8, 8) -> (B,).

It must be an *energy*: E(x) depends on x alone, not on the other images of the batch (no batch norm), and it does not draw
(no dropout). It must be smooth, so that its slope has a slope (SiLU, softplus or ELU; ReLU has no Hessian), and it must look
at every pixel. Two instances have their own random weights.

Shapes   x (B, 1, 8, 8) float32 -> (B,)
Source   Du & Mordatch (2019)
Read     07_neural_ebms.py, section architectures
"""

import torch
from torch import nn


class Energy(nn.Module):
    """A convolutional energy: (B, 1, 8, 8) -> (B,)."""

    def __init__(self):
        super().__init__()
        raise NotImplementedError

    def forward(self, x):
        """E(x), one number an image."""
        raise NotImplementedError
