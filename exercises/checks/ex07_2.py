"""The check of ex07_2: chain by chain, in a loop."""

import torch

from compare import Draws, expect

HINTS = (
    "torch.where chooses entry by entry; restart is (B,), the chains are (B, d): which dimension must restart be given?",
    "Restart first, then move, so that a fresh chain is moved too. Clone the buffer before you write into it.",
    "chains = torch.where(restart[:, None], noise, buffer[index]); moved = move(chains); new[index] = moved, new a clone",
)


def check(learner, seed):
    draws, n, b = Draws(seed), 11, 5
    buffer, noise = draws.normal(n, 3), draws.normal(b, 3)
    index, restart = draws.uniform(n).argsort()[:b], torch.tensor([False, True, False, True, False])
    shift = draws.normal(3)
    move = lambda x: 0.5 * x + shift

    def visited(restarts, first="restart", back=None, source=buffer):
        moved, new = torch.empty_like(noise), buffer.clone()
        for i, (row, fresh) in enumerate(zip(index.tolist(), restarts.tolist(), strict=True)):
            old = source[row] if source is buffer else source[i]
            if first == "restart":
                moved[i] = move(noise[i] if fresh else old)
            else:
                moved[i] = noise[i] if fresh else move(old)
            new[row if back is None else back[i]] = moved[i]
        return moved, new

    want = visited(restart)
    moved = want[0]
    not_moved = buffer.clone()
    not_moved[index] = torch.where(restart[:, None], noise, buffer[index])
    not_restarted = buffer.clone()
    not_restarted[index[~restart]] = moved[~restart]
    whole = torch.cat([moved, buffer[b:]])
    wrong = {
        "The moved chains are not written back: the next visit would find the old ones.": (moved, buffer),
        "No chain restarts.": visited(torch.zeros(b, dtype=torch.bool)),
        "All chains restart if any does: restart is decided for each chain.": visited(torch.ones(b, dtype=torch.bool)),
        "restart is reversed: True means noise.": visited(~restart),
        "Fresh chains must be moved too: restart first, then move.": visited(restart, "move"),
        "The buffer gets the chains before they moved.": (moved, not_moved),
        "All visited chains are written back, the restarted ones too.": (moved, not_restarted),
        "The chains are written into the buffer's first rows: they belong back into rows index.": (moved, whole),
        "The first rows are visited: take rows index.": visited(restart, source=buffer[:b].clone()),
        "The chains are not moved.": (torch.where(restart[:, None], noise, buffer[index]), want[1]),  # said of moved only
    }
    inputs = (buffer, index, restart, noise, move)
    expect(learner.visit, inputs, want, wrong, names=("moved", "new buffer"))
