"""Speed of module 02: learning in one matrix product, and recall that visits only the units that flip.

python tests/benchmarks/hopfield.py       N = 1000, 100 patterns, one thread, medians of interleaved repeats

Learning is compared with a loop of outer products, recall of 100 patterns (20 % of their units flipped) with the plain
asynchronous loop: pattern by pattern, unit by unit in a fixed order, until a sweep changes nothing. Both recalls must end in
the same states, bit for bit. The floor is the one matrix product that any recall has to compute, the fields of all cues.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import load

LEARNING_FACTOR, RECALL_FACTOR = 50, 3  # what this file promises; it exits non-zero if either is missed


def plain_learning(patterns):
    """Hebb's rule as textbooks write it, numpy: W = sum over patterns of x x' / N, term by term."""
    n = patterns.shape[1]
    W = np.zeros((n, n), patterns.dtype)
    for x in patterns:
        W += np.outer(x, x) / n
    np.fill_diagonal(W, 0)
    return W


def lean_learning(patterns):
    """The same loop by somebody who counts memory traffic, torch: rank-one updates in place, one division."""
    W = torch.zeros(patterns.shape[1], patterns.shape[1])
    for x in patterns:
        W.addr_(x, x)
    return W.fill_diagonal_(0).mul_(1 / patterns.shape[1])


def plain_recall(W, cues):
    """Asynchronous dynamics as textbooks write it, numpy: (N, N), (B, N) -> (B, N)."""
    states = cues.copy()
    for s in states:
        changed = True
        while changed:
            changed = False
            for i in range(len(s)):
                if (W[i] @ s) * s[i] < 0:
                    s[i] = -s[i]
                    changed = True
    return states


def unit_loop_recall(W, cues):
    """The same, with all patterns in one batch: a loop over the units only, torch."""
    s = cues.T.contiguous()  # (N, B): a unit's states lie together
    while True:
        before = s.clone()
        for i in range(len(s)):
            field = W[i] @ s
            s[i] = torch.where(field == 0, s[i], field.sign())
        if torch.equal(s, before):
            return s.T.contiguous()


def seconds(jobs, repeats):
    """Median time of each job, all of them taking turns, so that a slow moment of the machine hits all alike."""
    times = {name: [] for name in jobs}
    for _ in range(repeats + 1):  # the first round warms up
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main(n=1000, p=100, repeats=9):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = load("02")
    x = module.random_patterns(p, n)
    cues = module.flipped(x, 0.2)
    W = module.agreements(x)  # whole numbers: no rounding, so the comparison of the end states is exact
    ends = module.recall(W, cues)
    assert np.array_equal(ends.numpy(), plain_recall(W.numpy(), cues.numpy())), "recall differs from the plain loop"
    assert torch.equal(ends, unit_loop_recall(W, cues)), "recall differs from the loop over units"
    np.testing.assert_allclose(module.hebb(x).numpy(), plain_learning(x.numpy()), atol=1e-5)

    jobs = {
        "learning, loop of outer products": lambda: plain_learning(x.numpy()),
        "learning, lean loop, in place": lambda: lean_learning(x),
        "learning, module 02": lambda: module.hebb(x),
        "learning, floor: X'X alone": lambda: x.T @ x,
        "recall, plain loop": lambda: plain_recall(W.numpy(), cues.numpy()),
        "recall, loop over units, batched": lambda: unit_loop_recall(W, cues),
        "recall, module 02": lambda: module.recall(W, cues),
        "recall, floor: the fields once": lambda: cues @ W,
    }
    times = seconds(jobs, repeats)
    print(f"N = {n}, P = {p}, {repeats} repeats; recalled exactly {(ends == x).all(1).float().mean():.0%}")
    for name, value in times.items():
        print(f"  {name:<36}{1000 * value:>10.2f} ms")
    learning = times["learning, loop of outer products"] / times["learning, module 02"]
    lean = times["learning, lean loop, in place"] / times["learning, module 02"]
    recall = times["recall, plain loop"] / times["recall, module 02"]
    batched = times["recall, loop over units, batched"] / times["recall, module 02"]
    print(f"learning {learning:.0f}x (promised {LEARNING_FACTOR}x); against the lean loop {lean:.0f}x")
    print(f"recall {recall:.1f}x (promised {RECALL_FACTOR}x); against the batched loop over units {batched:.1f}x")
    return 0 if learning >= LEARNING_FACTOR and recall >= RECALL_FACTOR else 1


if __name__ == "__main__":
    sys.exit(main())
