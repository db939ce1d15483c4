"""ex05_2 One update of persistent CD (level 2, 30 minutes)

Persistent contrastive divergence keeps its chains from update to update. One update, with the uniform numbers given:

    h      = (u_h < P(h = 1 | chains)),        the chains are visible states, C of them
    chains = (u_v < P(v = 1 | h)),             one Gibbs sweep, at the old parameters
    params = params + rate * (averages over x - averages over the new chains).

The averages are those of module 04, eq. (4): of v h', v and h, where h = P(h = 1 | v) (the probabilities; here nothing is
sampled). Return the new parameters, *and the chains*, which go on from there next time.

Shapes   params = (W (d, m), b (d,), c (m,)); chains (C, d), x (B, d), u_h (C, m), u_v (C, d) float64; rate a number
         -> (W, b, c, chains)
Source   Younes (1999); Tieleman (2008)
Read     05_contrastive_divergence.py, section methods (pcd_update)
"""

import torch


def pcd_update(params, chains, x, rate, u_h, u_v):
    """(W, b, c, chains) after one update."""
    raise NotImplementedError
