"""Speed of module 02: learning in one matrix product, and recall that visits only the units that flip.

python tests/benchmarks/hopfield.py       N = 1000, 100 patterns, one thread, medians of interleaved repeats

What is asked is nearness to a floor that the same run measures, so that it holds on any processor. Learning: the one
product XᵀX and one copy of it. Recall of 100 patterns (20 % of their units flipped): the fields of all cues, one
product, and for each flip one row of W added to a field, which is memory traffic. The loops that textbooks write stand
beside it, for information: a loop of outer products; the plain asynchronous loop, pattern by pattern, unit by unit in a
fixed order, until a sweep changes nothing. All recalls must end in the same states, bit for bit.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import load

LEARNING, RECALL = 1.5, 5  # times the floor, at most: what this file promises; it exits non-zero if either is missed


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
    """Asynchronous dynamics as textbooks write it, numpy: (N, N), (B, N) -> (B, N), and how many flips it takes."""
    states, n_flips = cues.copy(), 0
    for s in states:
        changed = True
        while changed:
            changed = False
            for i in range(len(s)):
                if (W[i] @ s) * s[i] < 0:
                    s[i] = -s[i]
                    changed = True
                    n_flips += 1
    return states, n_flips


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
    ends, (plain, n_flips) = module.recall(W, cues), plain_recall(W.numpy(), cues.numpy())
    assert np.array_equal(ends.numpy(), plain), "recall differs from the plain loop"
    assert torch.equal(ends, unit_loop_recall(W, cues)), "recall differs from the loop over units"
    np.testing.assert_allclose(module.hebb(x).numpy(), plain_learning(x.numpy()), atol=1e-5)

    def recall_floor():
        fields = cues @ W
        for rows in torch.arange(n_flips).split(p):  # as many rows of W as there are flips, one for each pattern at a time
            fields[: len(rows)] += W[rows % n]

    jobs = {
        "learning, module 02": lambda: module.hebb(x),
        "learning, floor: X'X, one copy": lambda: (x.T @ x).clone(),
        "recall, module 02": lambda: module.recall(W, cues),
        "recall, floor: fields, rows of flips": recall_floor,
    }
    peers = {
        "learning, loop of outer products": lambda: plain_learning(x.numpy()),
        "learning, lean loop, in place": lambda: lean_learning(x),
        "recall, plain loop": lambda: plain_recall(W.numpy(), cues.numpy()),
        "recall, loop over units, batched": lambda: unit_loop_recall(W, cues),
    }
    times = seconds(jobs, repeats) | seconds(peers, 1)
    print(f"N = {n}, P = {p}, {repeats} repeats; recalled exactly {(ends == x).all(1).float().mean():.0%}, {n_flips} flips")
    for name, value in times.items():
        ours = times[f"{name.split(',')[0]}, module 02"]
        print(f"  {name:<38}{1000 * value:>10.2f} ms{value / ours:>8.2f} times module 02")
    learning = times["learning, module 02"] / times["learning, floor: X'X, one copy"]
    recall = times["recall, module 02"] / times["recall, floor: fields, rows of flips"]
    print(f"times the floor: learning {learning:.2f} (at most {LEARNING}), recall {recall:.2f} (at most {RECALL})")
    return 0 if learning <= LEARNING and recall <= RECALL else 1


if __name__ == "__main__":
    sys.exit(main())
