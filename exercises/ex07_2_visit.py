"""ex07_2 A visit to the replay buffer (level 2, 25 minutes)

A replay buffer keeps N chains. At each update some of them, `index`, are visited: each of these for which `restart` is True
begins anew at its own row of `noise`; then all of them move, and are written back to where they came from:

    chains       = buffer[index], or noise where restart,
    moved        = move(chains),
    new buffer   = buffer with moved in rows index.

Here the buffer itself is left as it was, and a new one returned, so that the check can compare both.

Shapes   buffer (N, d), index (B,) of different integers, restart (B,) bool, noise (B, d) float64;
         move a function (B, d) -> (B, d) -> (moved (B, d), new buffer (N, d))
Source   Tieleman (2008); Du & Mordatch (2019), section 3
Read     07_neural_ebms.py, section loop (ReplayBuffer)
"""

import torch


def visit(buffer, index, restart, noise, move):
    """(moved, new buffer) after one visit."""
    raise NotImplementedError
