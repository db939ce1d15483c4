"""Module 02 - Hopfield networks: memories are the minima of an energy.

N units, each +1 or -1, pull on each other through symmetric couplings W. Write memories into W, start the net near one,
let every unit follow the others, and the memory comes back: recall is downhill motion on an energy. It was the first
energy-based model with theorems, and here every curve stands beside the theory that predicts it.

One convention in the whole module: N units, P patterns X (P, N) of ±1, load α = P/N, and

    E(s) = -½ sᵀWs,        W = Wᵀ,  Wᵢᵢ = 0                                           (1)
    h = Ws,                sᵢ <- sign(hᵢ), one unit at a time; hᵢ = 0 leaves sᵢ alone  (2)
    W = XᵀX/N              off the diagonal (Hebb's rule)                             (3)
    P(sᵢ = +1 | rest) = σ(2hᵢ/T)       at temperature T (Glauber); T -> 0 is (2)       (4)
    E(ξ) = -lse(β, Xξ) + ½|ξ|²,        ξ <- Xᵀ softmax(βXξ)    (modern, ξ real)        (5)

Run      python 02_hopfield_networks.py                  all sections, about three minutes on one CPU core
         python 02_hopfield_networks.py --section spurious --show
Writes   outputs/02_hopfield_networks/*.png and metrics.json
Before   module 01        Exercises  ex02_1 ... ex02_4
Sources  Amari (1972) and Little (1974), who had the net; Hopfield (1982, 1984), who gave it the energy; Amit, Gutfreund &
         Sompolinsky (1985a, b; 1987); McEliece, Posner, Rodemich & Venkatesh (1987); Personnaz, Guyon & Dreyfus (1986);
         Storkey (1997); Cover (1965); Gardner (1988); Krauth & Mezard (1987); Binder (1981); Steffan & Kuehn (1994);
         Krotov & Hopfield (2016); Demircigil et al. (2017); Ramsauer et al. (2020)
"""

import argparse
import contextlib
import errno
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections import namedtuple
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar, nnls
from scipy.special import entr, erf, erfc, gammaln, ndtr, ndtri, stdtrit
from scipy.stats import binom
from sklearn.datasets import load_digits
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_runs: Annotated[int, "descent: random runs of each kind of net"] = 1000
    n_sets: Annotated[int, "memories: sets of ten digits, and of ten random patterns"] = 30
    capacity_units: Annotated[int, "capacity: units of the largest net, at least 320; others a half, a quarter, ..."] = 2000
    capacity_nets: Annotated[int, "capacity: nets of the largest size; 4, 16 and 64 times as many of the others"] = 12
    enumerated_units: Annotated[int, "spurious: units of the enumerated nets (even: no ties)"] = 16
    enumerated_nets: Annotated[int, "spurious: nets per number of patterns"] = 40
    rule_units: Annotated[int, "rules: units"] = 64
    rule_nets: Annotated[int, "rules: nets per load"] = 12
    n_epochs: Annotated[int, "rules: passes of the perceptron rule, at most"] = 300
    n_labellings: Annotated[int, "rules: pattern sets behind each share of units that any rule can train"] = 400
    glauber_units: Annotated[int, "noise: units of the largest net; others a half, a quarter"] = 500
    glauber_sweeps: Annotated[int, "noise: sweeps, the first third thrown away"] = 120
    n_chains: Annotated[int, "noise: chains per temperature, and nets per load"] = 24
    modern_units: Annotated[int, "modern: units of the largest net with wells x^4, 64 to 200"] = 128
    modern_nets: Annotated[int, "modern: nets per size of the polynomial energies"] = 24
    n_cues: Annotated[int, "modern: digits to be recalled"] = 300
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1


SMOKE = {"n_runs": 100, "n_sets": 2, "capacity_units": 320, "capacity_nets": 2, "enumerated_units": 8}
SMOKE |= {"enumerated_nets": 3, "rule_units": 16, "rule_nets": 3, "n_epochs": 10, "n_labellings": 20, "glauber_units": 40}
SMOKE |= {"glauber_sweeps": 6, "n_chains": 4, "modern_units": 64, "modern_nets": 2, "n_cues": 10}

COLORS = {"Hebb": "tab:gray", "Storkey": "tab:green", "pseudo-inverse": "tab:blue", "perceptron": "tab:orange"}
COLORS |= {"perceptron, margin": "tab:red", "softmax": "tab:purple"}  # of the rules, in all figures
SIZES = plt.cm.viridis(np.linspace(0.85, 0.0, 4))  # colours of nets of growing size


def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


def means_and_sems(rows):
    """Means and standard errors of some rows of repeats, (2, rows)."""
    return np.array([mean_and_sem(row) for row in rows]).T


# Differs from 01_ebm_foundations.py: tolerance - none where the repeats show no spread either
def tolerance(sem, n, n_compared=1):
    """How far a mean of n independent repeats may lie from its exact value: Student's t with n - 1 degrees of freedom at one
    false alarm in 10,000 (shared by `n_compared` comparisons), times sem. None where the repeats show no spread."""
    return -stdtrit(n - 1, 1e-4 / (2 * n_compared)) * sem if n > 1 and sem > 0 else None


# %% 1. Energy descends
# Why does the net ever come to rest? Flip unit i, sᵢ -> -sᵢ, and collect the terms of (1) that contain it. Row i gives
# -½ sᵢhᵢ, column i by symmetry the same, and the zero diagonal keeps sᵢ itself out of hᵢ. So E = -sᵢhᵢ + (the rest), and
#     ΔE = 2 sᵢhᵢ.
# Rule (2) flips only if sᵢhᵢ < 0, so ΔE < 0: every flip lowers E. There are finitely many states, so the net stops, and
# it stops where no single flip would help: in a local minimum. This is Hopfield's (1982) step. Amari (1972) had studied
# the same couplings with all units moving at once, and Little (1974) added noise to that.
# If all units move at once, each counts on the others to stand still. They do not, and the argument is gone. What
# falls instead is L(t) = -s(t)ᵀ W s(t+1). W is symmetric, so L(t-1) = -s(t)ᵀ W s(t-1): the same s(t) with another partner,
# and none is better for it than s(t+1) = sign(W s(t)). So L(t) ≤ L(t-1). It stops at s(t+1) = s(t-1): a fixed point or a
# two-cycle, nothing longer (Goles-Chacc, Fogelman-Soulie & Pellegrin 1985).
# Arithmetic: N is a power of two here and N·W whole numbers, so float32 makes no rounding error, and a rise of E is
# E(after) > E(before) with no tolerance. Odd N·W and even N also make hᵢ = 0 impossible.


def random_patterns(*shape):
    """Fair ±1 coins, float32."""
    return torch.randint(2, shape).float() * 2 - 1


def agreements(patterns):
    """N·W of eq. (3): in how many patterns i and j agree, less those in which they differ. (..., P, N) -> (..., N, N).

    Whole numbers: float32 adds them without error below 2²⁴, so that fields, and ties, come out exactly."""
    couplings = patterns.mT @ patterns
    couplings.diagonal(dim1=-2, dim2=-1).zero_()
    return couplings


def hebb(patterns):
    """Eq. (3) in one matrix product, Hopfield (1982). (..., P, N) -> (..., N, N)."""
    return agreements(patterns).mul_(1 / patterns.shape[-1])


def energy(W, s):
    """Eq. (1): W (..., N, N), s (..., B, N) -> (..., B)."""
    return -0.5 * ((s @ W) * s).sum(-1)


def asynchronous_path(W, s, order):
    """Eq. (2), unit by unit in the given order: all states on the way, (len(order) + 1, ..., B, N)."""
    path = [s]
    for unit in order:
        field = (s @ W[..., unit, :, None]).squeeze(-1)
        s = s.clone()
        s[..., unit] = torch.where(field == 0, s[..., unit], field.sign())
        path.append(s)
    return torch.stack(path)


def synchronous_path(W, s, n_steps):
    """Eq. (2) for all units at once, which need not descend: (n_steps + 1, ..., B, N)."""
    path = [s]
    for _ in range(n_steps):
        field = path[-1] @ W
        path.append(torch.where(field == 0, path[-1], field.sign()))
    return torch.stack(path)


def random_couplings(n_nets, n):
    """Symmetric couplings without a diagonal, N·W odd numbers of both signs: (n_nets, n, n)."""
    upper = torch.triu((torch.randint(4, (n_nets, n, n)) * 2 + 1) * random_patterns(n_nets, n, n), 1) / n
    return upper + upper.mT


# From random starts. One unit at a time: updates, rises of E among them, share of runs that end where no unit wants to
# flip. All at once: share of each net's runs that end in a two-cycle (nets,), longer cycles, rises of L, share of each net's
# runs in which E rises (nets,). Then E/N of some runs, one at a time and all at once, (steps, runs).
Descent = namedtuple("Descent", "n_updates rises at_rest cycling n_longer n_pair_rises rising alone together")


def measure_descent(W, per_net, n_sweeps=25, n_steps=100):
    """`per_net` random starts in each net W (nets, N, N): sweeps in random orders, and steps of all units."""
    nets, n = W.shape[:2]
    s = random_patterns(nets, per_net, n).to(W.device)
    together, falling = synchronous_path(W, s, n_steps), [energy(W, s)[None]]
    for _ in range(n_sweeps):
        path = asynchronous_path(W, s, torch.randperm(n).tolist())
        falling.append(energy(W, path[1:]))
        s = path[-1]
    falling, climbing = torch.cat(falling), energy(W, together)
    pairs = -(together[:-1] * (together[1:] @ W)).sum(-1)  # L(t)
    return Descent(
        n_updates=falling[1:].numel(),
        rises=(falling.diff(dim=0) > 0).sum().item(),
        at_rest=(s * (s @ W) > 0).all(-1).float().mean().item(),
        cycling=(together[-1] != together[-2]).any(-1).float().mean(1).cpu(),
        n_longer=(together[-1] != together[-3]).any(-1).sum().item(),
        n_pair_rises=(pairs.diff(dim=0) > 0).sum().item(),
        rising=(climbing.diff(dim=0) > 0).any(0).float().mean(1).cpu(),
        alone=(falling[:, 0, :12] / n).cpu(),
        together=(climbing[:, 0, :12] / n).cpu(),
    )


def draw_descent(found):
    """Energies of some runs in random couplings, one unit at a time and all at once."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    left.plot(to_numpy(found.alone[:320]), color="teal", alpha=0.7)
    left.set(xlabel="unit updates", ylabel="energy per unit, E / N")
    left.set_title(f"Random couplings, one unit at a time: {found.rises} rises of E")
    right.plot(to_numpy(found.together[:20]), color="goldenrod", alpha=0.7, marker=".")
    right.set(xlabel="steps of the whole net", xticks=range(0, 20, 5))
    right.set_title(f"All units at once: {found.cycling.mean().item():.1%} of runs end in a two-cycle")
    return fig


def section_descent(run):
    """One unit at a time the energy never rises; all at once it may, and runs can end in a cycle of two states."""
    n, nets, per_net = 64, max(2, run.config.n_runs // 50), min(50, run.config.n_runs)
    cycling = {}
    for name, W in {"Hebb": hebb(random_patterns(nets, 7, n)), "random": random_couplings(nets, n)}.items():
        found = measure_descent(W.to(run.device), per_net)
        run.metric(f"{name}, one by one: rises of E", found.rises, None, (f"theorem, {found.n_updates} updates", 0), 0)
        run.metric(f"{name}, one by one: share of runs at rest", found.at_rest, None, ("theorem", 1), 0)
        run.metric(f"{name}, at once: share of two-cycles", *mean_and_sem(found.cycling), ("one by one", 0))
        run.metric(f"{name}, at once: longer cycles", found.n_longer, None, ("theorem", 0), 0)
        run.metric(f"{name}, at once: rises of L", found.n_pair_rises, None, ("theorem", 0), 0)
        run.metric(f"{name}, at once: share of runs where E rises", *mean_and_sem(found.rising), ("one by one", 0))
        cycling[name] = found.cycling.mean().item()
    run.figure(draw_descent(found), "energy")
    shares = ", ".join(f"{share:.1%} with {name} couplings" for name, share in cycling.items())
    run.say(f"all at once, runs end in a two-cycle: {shares}")


# %% 2. Memories
# Put a pattern, s = ξ, into (2) with Hebb's couplings (3):
#     hᵢ = (1/N) Σ_ν ξᵢ^ν Σ_{j≠i} ξⱼ^ν ξⱼ  =  ξᵢ (N-1)/N + (1/N) Σ_{other ν} ξᵢ^ν Σ_{j≠i} ξⱼ^ν ξⱼ.
# The first term is the memory holding itself up. The second, the crosstalk, is a sum over its *overlaps* with the
# others. Random patterns overlap by about 1/√N; handwritten digits by far more, since each is ink in the middle of an
# empty frame. Then it is correlation, more than number, that breaks Hebb's rule. Two rules take it into account:
#   Storkey (1997)  one pass over the patterns, local, but each is corrected for what is stored already. With the field
#       that i would feel from all but j, hᵢⱼ = Σ_{k≠i,j} Wᵢₖ ξₖ = hᵢ - Wᵢⱼξⱼ,
#           Wᵢⱼ += (ξᵢξⱼ - ξᵢhⱼᵢ - hᵢⱼξⱼ)/N   =   (ξᵢξⱼ - ξᵢhⱼ - hᵢξⱼ + 2Wᵢⱼ)/N.
#   Pseudo-inverse  (Personnaz, Guyon & Dreyfus 1986): demand W ξ = ξ for all patterns. W = X⁺X, the projector on their
#       span, leaves every pattern as it is, however correlated they are. We take out its diagonal Dᵢᵢ to keep
#       (1); then ξᵢhᵢ = 1 - Dᵢᵢ on a pattern, which is positive as long as P < N (unless a unit vector lies in the span).
#
# Speed. Near a memory most units stay, so `recall` jumps to the next unit that does flip, in the order of the plain loop
# (unit 0 to N-1, over and over): the same path and the same end, exactly. The first sweep, with many flips, goes block
# by block, so that what a block's flips do to the rest of the net is one matrix product.


def storkey(patterns):
    """Storkey's (1997) rule, one pattern after another. (..., P, N) -> (..., N, N)."""
    W = torch.zeros_like(patterns.mT @ patterns)
    for x in patterns[..., None].unbind(-3):  # (..., N, 1)
        cross = x @ (W @ x).mT
        W = W + (x @ x.mT - cross - cross.mT + 2 * W) / patterns.shape[-1]
        W.diagonal(dim1=-2, dim2=-1).zero_()
    return W


def pseudo_inverse(patterns):
    """The projection rule with its diagonal removed: W = X⁺X for i ≠ j. (..., P, N) -> (..., N, N)."""
    projector = torch.linalg.pinv(patterns) @ patterns
    projector = (projector + projector.mT) / 2  # rounding must neither break the symmetry ...
    projector[projector.abs() < 1e-5] = 0  # ... nor pass for a coupling, when X⁺X is the identity
    projector.diagonal(dim1=-2, dim2=-1).zero_()
    return projector


RULES = {"Hebb": hebb, "Storkey": storkey, "pseudo-inverse": pseudo_inverse}


def flip_in_order(W, nets, s, field, start, around, max_flips):
    """In each row of s (R, K): flip the next unstable unit at or after `start`, go on behind it, until none is left.

    Row r has couplings W[nets[r]] (K, K), fields field[r] (R, K) and start[r] (R, 1). `around`: behind the last unit
    comes the first again. Writes into `s` and `field`, returns `s`."""
    index = torch.arange(s.shape[1], device=s.device)
    for flip in range(max_flips):
        unstable = (s * field < 0).byte()
        unit = (unstable * (1 + (index >= start).byte())).argmax(1, keepdim=True)  # the first 2, or else the first 1
        flips = unstable.gather(1, unit).bool() & (around | (unit >= start))
        rows = flips.squeeze(1).nonzero().squeeze(1)
        if len(rows) <= len(s) // 2:  # half of the rows are done: go on with the others alone
            if len(rows):
                rest = W, nets[rows], s[rows], field[rows], start[rows], around, max_flips - flip
                s[rows] = flip_in_order(*rest)
            return s
        change = -2 * s.gather(1, unit) * flips
        s.scatter_add_(1, unit, change)
        field += change * W[nets, unit.squeeze(1)]
        start = torch.where(flips, unit + 1, start)
    return s


def recall(W, s, block=100, max_flips=100_000):
    """Asynchronous dynamics (2), units in order, until nothing changes: exactly the plain loop's fixed points.

    W (N, N) with s (B, N), or a net each: W (nets, N, N) with s (nets, B, N). Couplings that are not symmetric (W[j, i]
    acts from j on i) may never come to rest: `max_flips` per row stops them."""
    n, shape = W.shape[-1], s.shape
    W = W.reshape(-1, n, n)
    s = s.reshape(len(W), -1, n).clone()
    field = s @ W
    nets = torch.arange(len(W), device=s.device).repeat_interleave(s.shape[1])
    start = torch.zeros(len(nets), 1, dtype=torch.long, device=s.device)
    for first in range(0, n, block):
        mine = slice(first, first + block)
        old = s[..., mine].clone()
        new, inside = old.flatten(0, 1).clone(), field[..., mine].flatten(0, 1).clone()
        s[..., mine] = flip_in_order(W[:, mine, mine], nets, new, inside, start, False, max_flips).reshape(old.shape)
        field += (s[..., mine] - old) @ W[:, mine]
    return flip_in_order(W, nets, s.flatten(0, 1), field.flatten(0, 1), start, True, max_flips).reshape(shape)


def flipped(patterns, share):
    """Cues: in each pattern (..., N) the given share of units, chosen at random, is turned over."""
    ranks = torch.rand(patterns.shape).argsort(-1).argsort(-1).to(patterns.device)
    return torch.where(ranks < round(share * patterns.shape[-1]), -patterns, patterns)


def occluded(patterns, blank=-1.0):
    """Cues: the upper half of each picture (..., N) is blank."""
    upper = torch.arange(patterns.shape[-1], device=patterns.device) < patterns.shape[-1] // 2
    return torch.where(upper, blank, patterns)


def recalled_share(W, patterns, cues):
    """How often patterns come back with at most 5 % of their units wrong (overlap 0.9), from cues (K, nets, P, N).

    W (nets, N, N), patterns (nets, P, N) -> (nets, P)."""
    ends = recall(W, cues.transpose(0, 1).flatten(1, 2)).unflatten(1, (len(cues), -1))  # (nets, K, P, N)
    return ((ends * patterns[:, None]).mean(-1) >= 0.9).float().mean(1)


LETTERS = """
    ########..  ###.......  ....##....  ##......##
    #########.  ###.......  ...####...  ###....###
    ##.....###  ###.......  ...####...  .###..###.
    ##.....###  ###.......  ..##..##..  ..######..
    #########.  ###.......  ..##..##..  ...####...
    ########..  ###.......  .########.  ....##....
    ##........  ###.......  .########.  ....##....
    ##........  ##########  .##....##.  ....##....
    ##........  ##########  ##......##  ....##....
    ##........  ##########  ##......##  ....##....
"""


def read_letters(art):
    """Pictures drawn side by side -> patterns (letters, pixels), +1 where there is ink."""
    letters = ["".join(rows) for rows in zip(*map(str.split, art.strip().splitlines()), strict=True)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in letter] for letter in letters])


@functools.cache
def digits():
    """All 1,797 digits of scikit-learn as patterns (1797, 64), +1 where a pixel has over half of full ink; classes."""
    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels > 8).float() * 2 - 1, torch.tensor(classes)


def one_of_each(n_sets):
    """Sets of ten digits, a random one from each class: (n_sets, 10, 64)."""
    pictures, classes = digits()
    members = [(classes == c).nonzero().squeeze(1) for c in range(10)]
    return torch.stack([pictures[own[torch.randint(len(own), (n_sets,))]] for own in members], 1)


def exact_mean_overlap(n):
    """E|x·y|/n of two random patterns: n - x·y is twice a number of heads among n fair coins."""
    heads = np.arange(n + 1)
    return np.abs(n - 2 * heads) @ binom.pmf(heads, n, 0.5) / n


# Cues of 25 % flipped pixels, then of hidden upper halves: targets (cues, 100), path (updates + 1, cues, 100), energy a unit
# and overlap on it; how often each letter comes back (letters,), and {the half that is seen: share that comes back}.
Letters = namedtuple("Letters", "targets path energy overlap from_flipped halves")


def measure_letters(letters, n_cues=250):
    """Hebb's net of some letters (P, 100): two sweeps from a damaged cue each, and how often letters come back."""
    W, targets = hebb(letters), letters.repeat(2, 1)
    path = asynchronous_path(W, torch.cat([flipped(letters, 0.25), occluded(letters)]), list(range(100)) * 2)
    many = torch.stack([flipped(letters[None], 0.25) for _ in range(n_cues)])
    halves = {"lower": occluded(letters), "upper": occluded(letters.flip(1)).flip(1)}
    return Letters(
        targets, path, energy(W, path) / 100, (path * targets).mean(-1), recalled_share(W, letters[None], many)[0],
        {half: (recall(W, cue) == letters).all(1).float().mean().item() for half, cue in halves.items()},
    )  # fmt: skip


FLIPS = tuple(0.05 * k for k in range(10))  # shares of flipped pixels in the cues


# Shares of each set's patterns (S,) that are fixed and that come back from their lower halves; in between, those that come
# back for each of FLIPS, set and pattern (10, S, P).
Basins = namedtuple("Basins", "fixed recalled from_half")


def measure_basins(x, n_cues=20):
    """{rule: Basins} on sets of patterns x (S, P, N), the same cues for all rules."""
    cues, found = [torch.stack([flipped(x, share) for _ in range(n_cues)]) for share in FLIPS], {}
    for name, rule in RULES.items():
        W = rule(x)
        recalled = to_numpy(torch.stack([recalled_share(W, x, cue) for cue in cues]))
        from_half = recalled_share(W, x, occluded(x)[None]).mean(1).cpu()
        found[name] = Basins((x * (x @ W) > 0).all(-1).float().mean(1).cpu(), recalled, from_half)
    return found


def lost_on_digits(shares):
    """Rules of {kind: {rule: shares (sets,)}} that recall less than half as much of digits as of random patterns, and those
    of which three standard errors do not say on which side of the half they are."""
    lost, open_ = [], []
    for rule, own in shares["digits"].items():
        (mean, sem), (random_mean, random_sem) = mean_and_sem(own), mean_and_sem(shares["random"][rule])
        gap, error = mean - random_mean / 2, math.hypot(sem, random_sem / 2)
        if not abs(gap) > 3 * error:
            open_.append(rule)
        elif gap < 0:
            lost.append(rule)
    return lost, open_


def mean_overlaps(x):
    """Mean |overlap| of different patterns in each set of x (S, P, N), (S,)."""
    p, n = x.shape[1:]
    return (((x @ x.mT).abs().sum((1, 2)) / n - p) / (p * (p - 1))).cpu()


def show_pictures(ax, rows, side, labels, title):
    """Rows of pictures, each a (columns, side²) tensor, with a label each; ink (+1) is black."""
    pictures = torch.stack([row.cpu().unflatten(1, (side, side)) for row in rows])
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=math.nan).permute(0, 2, 1, 3)
    ax.imshow(to_numpy(padded.flatten(0, 1).flatten(1)), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_yticks([(side + 2) * (row + 0.5) - 0.5 for row in range(len(rows))], labels)
    ax.set(xticks=[], title=title)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def draw_letters(found):
    """Stored, cue and recalled, and the energy and the overlap on the way."""
    fig = plt.figure(figsize=(13, 3.6))
    grid = fig.add_gridspec(2, 3, hspace=0.12, wspace=0.3)
    for column, title in enumerate(["25 % of the pixels flipped", "upper half hidden"]):
        mine = slice(4 * column, 4 * column + 4)
        rows, labels = [found.targets[mine], found.path[0, mine], found.path[-1, mine]], ["stored", "cue", "recalled"]
        show_pictures(fig.add_subplot(grid[:, column]), rows, 10, ["", "", ""] if column else labels, title)
    for row, (label, trace) in enumerate({"energy E / N": found.energy, "overlap m": found.overlap}.items()):
        ax, trace = fig.add_subplot(grid[row, 2]), to_numpy(trace)
        lines = ax.plot(trace[:, :4], color="teal") + ax.plot(trace[:, 4:], color="goldenrod")
        ax.set_ylabel(label)
        ax.tick_params(labelbottom=bool(row))
    fig.axes[2].set_title(f"{(found.overlap[-1] == 1).sum()} of {found.overlap.shape[1]} cues end at their letter")
    ax.set_xlabel("unit updates, two sweeps")
    ax.legend([lines[0], lines[-1]], ["flipped", "hidden"], loc="lower right")
    return fig


def recall_one_set(x):
    """{name: pictures (10, 64)}: ten patterns x (10, 64), the same with 10 % flipped, and what each rule makes of these."""
    cue = flipped(x, 0.1)
    return {"stored": x, "cue, 10 %\nflipped": cue} | {name: recall(rule(x), cue) for name, rule in RULES.items()}


def draw_basins(found, pictures):
    """Recall against corruption, found {kind of patterns: {rule: Basins}}; and one set's pictures {name: (10, 64)}."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.7), width_ratios=(1.25, 1), layout="constrained")
    for kind, line in (("random", ":"), ("digits", "-")):
        for i, (rule, basins) in enumerate(found[kind].items()):
            place, label = np.array(FLIPS) + 0.003 * (i - 1), f"{rule}, {'random patterns' if kind == 'random' else kind}"
            rows = means_and_sems(basins.recalled.mean(2))
            left.errorbar(place, *rows, ls=line, marker="o", ms=4, capsize=2, color=COLORS[rule], label=label)
    left.set(xlabel="share of the cue's pixels flipped", ylabel="recalled (at most 5 % of pixels wrong)")
    shares = ", ".join(f"{rule} {basins.recalled[2].mean():.2f}" for rule, basins in found["digits"].items())
    left.set_title(f"Ten digits from 10 % flipped: {shares}")
    fig.legend(loc="outside lower left", ncols=3, fontsize=9)
    show_pictures(right, list(pictures.values()), 8, list(pictures), "One of the sets")
    return fig


def record_basins(run, kind, found):
    """The metrics of {rule: Basins} on one kind of patterns."""
    for rule, basins in found.items():
        theorem = {"against": ("theorem, P < N", 1), "within": 0} if rule == "pseudo-inverse" else {}
        run.metric(f"{kind}, {rule}: share fixed", *mean_and_sem(basins.fixed), **theorem)
        run.metric(f"{kind}, {rule}: from 10 % flipped", *mean_and_sem(basins.recalled[2].mean(1)), ("all", 1))
        run.metric(f"{kind}, {rule}: from the lower half", *mean_and_sem(basins.from_half), ("all", 1))


def section_memories(run):
    """Most damaged letters come back; digits resemble each other, which hurts Hebb's rule more than those that heed it."""
    letters = measure_letters(read_letters(LETTERS).to(run.device))
    run.metric("letters: from 25 % flipped", letters.from_flipped.mean().item(), None, ("all", 1))  # these four: no sample
    for half, share in letters.halves.items():
        run.metric(f"letters: from the {half} half", share, None, ("all", 1))
    run.figure(draw_letters(letters), "letters")
    sets, found, exact = {"digits": one_of_each(run.config.n_sets).to(run.device)}, {}, exact_mean_overlap(64)
    sets["random"] = random_patterns(*sets["digits"].shape).to(run.device)
    for kind, x in sets.items():
        mean, sem = mean_and_sem(mean_overlaps(x))
        within = tolerance(sem, len(x)) if kind == "random" else None
        run.metric(f"{kind}: mean overlap of two patterns", mean, sem, ("random patterns, exactly", exact), within)
        found[kind] = measure_basins(x)
        record_basins(run, kind, found[kind])
    run.figure(draw_basins(found, recall_one_set(sets["digits"][0])), "basins")
    shares = {kind: {rule: own.recalled[2].mean(1) for rule, own in rules.items()} for kind, rules in found.items()}
    said = ", ".join(f"{rule} {share.mean():.0%}" for rule, share in shares["digits"].items())
    run.say(f"of ten digits with 10 % of their pixels flipped come back: {said}")
    lost, undecided = (", ".join(rules) or "none" for rules in lost_on_digits(shares))
    run.say(
        f"digits cost more than half of what comes back of random patterns: {lost}; too close to half to tell: {undecided}"
    )


# %% 3. Capacity
# How many random patterns fit? There are three answers to three questions.
# (a) One unit, one step. By the field above, N ξᵢhᵢ = (N-1) + a sum of (P-1)(N-1) fair coins (each has its own ξⱼ^ν, so
#     they are independent). Its error rate is a binomial tail, exactly, and with N and P large
#         P(error) = ½ erfc(√(N/(2P))).
# (b) A whole pattern without error, almost surely: N·P(error) -> 0. The tail is about exp(-N/(2P)), so P = N/(2 ln N);
#     for all P patterns at once N/(4 ln N) (McEliece et al. 1987). At finite N, if units erred independently, a share
#     (1 - P(error))^N of the patterns would be fixed. They do not: the units of one pattern share its overlaps with the
#     others, so they err together, and more patterns stay without any error than independence says.
# (c) Errors allowed, as long as the state stays close while errors breed errors. Mean-field theory at T = 0, with
#     crosstalk of variance αr around the field m of the pattern (Amit, Gutfreund & Sompolinsky 1985b):
#         m = erf(m/√(2αr)),   √r = 1/(1-C),   C = √(2/(παr)) exp(-m²/(2αr)).
#     The first is (a) again: the share of units with the right sign, less the others, at signal m and noise √(αr). C is how
#     much a unit's mean output answers a small field, the average of d sign(h)/dh = 2δ(h) over that noise. So a chance
#     overlap with another pattern, 1/√N, acts as a field, is answered by C times itself, and so on: it is amplified by
#     1 + C + C² + ... = 1/(1-C), which is √r.
#     With y = m/√(2αr) they become one line:  √(2α) = erf(y)/y - (2/√π) exp(-y²),   m = erf(y).
#     Its right side has a maximum: beyond α_c = 0.138 there is no solution, and m falls from 0.967 at once. (Not 0.15:
#     that was the estimate of 1982. The theory takes all copies of the net to be alike, "replica symmetry"; without that
#     α_c is 0.1382, Steffan & Kuehn 1994, who also quote what simulations had given, 0.145 ± 0.009.)
# A finite net does better than that. Let α_½(N) be the load at which half of the patterns are still retained. What is the
# law by which it approaches α_c? The width of the fall, net to net, is that of an average over N units, N^(-1/2). Its
# middle moves by another law. Close to α_c the retrieval state is about to disappear: the overlap x, measured from its
# last value, drifts as dx/dt = (α - α_c) + x² in suitable units, and an average over N units carries it along by chance.
# Balance the two terms, α - α_c ~ x², against the noise, which moves x by √(t/N) in the time t ~ 1/x that the drift
# takes: x ~ (1/(xN))^(1/2), so x ~ N^(-1/3), and
#     α_½ - α_c ~ N^(-2/3).
# The argument is rough, so the data must say: sizes N, 2N, 4N, 8N give the exponent, log₂ of the ratio of two drifts. A line
# in N^(-2/3) then leads to α_c. How far its end moves if the exponent is off by one standard error is its systematic error.


def keeps_sign(patterns):
    """Which units of which patterns stay in one step of Hebb's net: N ξᵢhᵢ ≥ 0, (..., P, N) booleans.

    N h = (XXᵀ)X - PX needs the P x P overlaps only, which for P < N is cheaper than W; whole numbers, so exact."""
    return patterns * (patterns @ patterns.mT @ patterns) >= patterns.shape[-2]


def overlaps_at_rest(n, p, n_nets, n_starts, device="cpu"):
    """Random nets started *at* stored patterns and left to settle: their overlaps with these, (n_nets, n_starts)."""
    together = max(1, 4_000_000 // n**2)  # nets at a time, by memory
    overlaps = []
    for first in range(0, n_nets, together):
        x = random_patterns(min(together, n_nets - first), p, n).to(device)
        start = x[:, :n_starts]
        overlaps.append((recall(agreements(x), start, block=n) * start).mean(-1))
    return torch.cat(overlaps).cpu()


def load_at_half(loads, shares):
    """The load at which a falling share is one half: loads as a parabola in z, where Φ(z) = share (its probit), at z = 0."""
    z = ndtri(np.clip(shares, 0.005, 0.995))
    return np.linalg.lstsq(np.stack([z**0, z, z**2], 1), loads, rcond=None)[0][0]


def jackknife(estimate, repeats):
    """`estimate(repeats)` and its standard error, from leaving out one of the repeats (R, ...) at a time; nan if R is 1."""
    n, whole = len(repeats), np.asarray(estimate(repeats))
    if n < 2:
        return whole, whole * math.nan
    without = np.array([estimate(np.delete(repeats, r, 0)) for r in range(n)])
    return whole, without.std(0) * math.sqrt(n - 1)


def limit_of(values, sizes, power):
    """Where a straight line through values against sizes^(-power) ends at infinite size."""
    return np.polyfit(np.asarray(sizes, dtype=float) ** -power, values, 1)[1]


def drift_exponent(values):
    """x, if values at four sizes, each twice the one before, approach a limit as N^(-x); nan if they do not approach one."""
    ratio = (values[0] - values[2]) / (values[1] - values[3])
    return math.log2(ratio) if ratio > 0 else math.nan


def theory_load(y):
    """The load α at which y = m/√(2αr) solves the equations of (c)."""
    return 0.5 * (erf(y) / y - 2 / math.sqrt(math.pi) * np.exp(-(y**2))) ** 2


def theory_critical_load():
    """α_c, the largest such load, and its y."""
    best = minimize_scalar(lambda y: -theory_load(y), bounds=(1, 3), method="bounded", options={"xatol": 1e-9})
    return -best.fun, best.x


def theory_overlap(load):
    """The overlap m of the retrieval state at a load below α_c, for N to infinity."""
    return erf(brentq(lambda y: theory_load(y) - load, theory_critical_load()[1], 20))


def theory_bit_error(load):
    """(a) for N to infinity."""
    return erfc(np.sqrt(1 / (2 * load))) / 2


def exact_bit_error(n, p):
    """(a), exactly: P(N ξᵢhᵢ < 0), that is, a sum of (P-1)(N-1) fair ±1 coins falls below -(N-1)."""
    coins = (p - 1) * (n - 1)
    return binom.cdf(math.ceil((coins - (n - 1)) / 2) - 1, coins, 0.5)


# Sizes, five loads each (4, 5), shares retained (repeats, 4, 5), {load: the largest nets' overlap with patterns retained}.
Retrieval = namedtuple("Retrieval", "sizes loads shares kept")


def measure_retrieval(largest, n_repeats, device, n_starts=16):
    """Shares retained around the fall at each size, and overlaps well below it. 0.7 is in the gap from 0.97 to 0.35."""
    sizes, loads, shares = [largest // 2**k for k in (3, 2, 1, 0)], [], []
    for n in sizes:  # the window is where the fall was seen to be: `load_at_half` does not know it
        loads.append([round((0.14 + 2.6 * n ** (-2 / 3) + k / n**0.5) * n) / n for k in (-0.8, -0.4, 0, 0.4, 0.8)])
    for n, load in Progress([(n, load) for n, row in zip(sizes, loads, strict=True) for load in row], "capacity"):
        m = overlaps_at_rest(n, round(load * n), n_repeats * (largest // n) ** 2, n_starts, device)  # small nets are cheap
        shares.append(to_numpy((m > 0.7).double().unflatten(0, (n_repeats, -1)).mean((1, 2))))
    kept = {}
    for load in (0.08, 0.1, 0.12):
        m = overlaps_at_rest(largest, round(load * largest), n_repeats, n_starts, device).double()
        kept[load] = (m * (m > 0.7)).sum(1) / (m > 0.7).sum(1).clamp(min=1)
    return Retrieval(sizes, np.array(loads), np.stack(shares, 1).reshape(n_repeats, 4, 5), kept)


# Pairs (value, standard error): α_½ of each size (2, 4); α_c by N^(-2/3) from all sizes, and without the smallest; α_c by
# N^(-1/2), the law of the width; the exponent of the drift.
Critical = namedtuple("Critical", "halves limit without_smallest by_root exponent")


def find_critical_load(found):
    """Extrapolate the loads at which half of the patterns are retained."""

    def estimate(shares):
        halves = [load_at_half(*rows) for rows in zip(found.loads, shares.mean(0), strict=True)]
        limits = [limit_of(halves, found.sizes, 2 / 3), limit_of(halves[1:], found.sizes[1:], 2 / 3)]
        return [*halves, *limits, limit_of(halves, found.sizes, 1 / 2), drift_exponent(halves)]

    both = np.array(jackknife(estimate, found.shares))
    return Critical(both[:, :4], *both[:, 4:].T)


def law_error(found, critical):
    """How far the line's end moves if the exponent is one standard error less than 2/3; nan if no exponent was found."""
    power = 2 / 3 - critical.exponent[1]
    return abs(limit_of(critical.halves[0], found.sizes, power) - critical.limit[0]) if power > 0 else math.nan


def say_limit(found, critical):
    """Which of two loads the end of the line allows, chance and law together: the theory's, and the estimate of 1982."""
    (limit, sem), law = critical.limit, law_error(found, critical)
    reach = (tolerance(sem, len(found.shares)) or math.nan) + law
    loads = {"the 0.138 of theory": theory_critical_load()[0], "the 0.15 of 1982": 0.15}
    verdicts = [f"{'allows' if abs(limit - load) <= reach else 'excludes'} {name}" for name, load in loads.items()]
    return f"{limit:.4f} +- {reach:.4f} N in the limit: {', '.join(verdicts)}" if reach > 0 else "too few nets for a limit"


def measure_bit_errors(n, n_nets, device):
    """{load: share of units that err in one step from a pattern, of each net (n_nets,)}."""

    def share(load):
        return 1 - keeps_sign(random_patterns(round(load * n), n).to(device)).double().mean()

    return {load: torch.stack([share(load) for _ in range(n_nets)]) for load in (0.105, 0.138, 0.185)}


RATIOS = (0.5, 0.75, 1, 1.25, 1.5, 2, 2.5)  # numbers of patterns in units of N / (2 ln N)


# Nets of n units: share of patterns without any error, (2, RATIOS), mean and standard error, and (1 - P(error))^N.
ErrorFree = namedtuple("ErrorFree", "n measured independent")


def measure_error_free(n, n_nets, device):
    """`ErrorFree` of nets of n units."""
    counts = [max(2, round(ratio * n / (2 * math.log(n)))) for ratio in RATIOS]
    shares = [[keeps_sign(random_patterns(p, n).to(device)).all(1).float().mean() for _ in range(n_nets)] for p in counts]
    return ErrorFree(n, means_and_sems(shares), np.array([(1 - exact_bit_error(n, p)) ** n for p in counts]))


def draw_retrieval(found, critical):
    """Shares retained against load, and the loads at half against N^(-2/3)."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    theory, sizes = theory_critical_load()[0], np.array(found.sizes, dtype=float)
    for k, (n, color) in enumerate(zip(found.sizes, SIZES, strict=True)):
        rows = means_and_sems(found.shares[:, k].T)
        left.errorbar(found.loads[k], *rows, color=color, marker="o", ms=4, capsize=2, label=f"N = {n}")
        right.errorbar(sizes[k] ** (-2 / 3), *critical.halves[:, k], color=color, marker="o", capsize=3)
    left.axvline(theory, color="k", ls="--", label=f"theory, $\\alpha_c$ = {theory:.4f}")
    left.set(xlabel="load $\\alpha$ = P / N", ylabel="share of patterns retained (m > 0.7)")
    ends = critical.halves[0, [0, -1]]
    left.set_title(f"The smallest retain half at {ends[0]:.3f} N, the largest at {ends[1]:.3f} N", fontsize=11)
    left.legend()
    line = np.linspace(0, sizes[0] ** (-2 / 3), 100)
    for power, label, style in ((2 / 3, "line in $N^{-2/3}$", "-"), (1 / 2, "line in $N^{-1/2}$", ":")):
        slope, start = np.polyfit(sizes**-power, critical.halves[0], 1)
        right.plot(line, start + slope * line ** (1.5 * power), "0.4", ls=style, label=label, zorder=0)
    right.plot(0, theory, "k*", ms=12, label="theory", clip_on=False)
    right.set(xlabel="$N^{-2/3}$", ylabel="load at which half are retained", xlim=(0, None))
    law = law_error(found, critical)
    right.set_title(f"$\\alpha_c$ = {critical.limit[0]:.4f} ± {critical.limit[1]:.4f} (chance) ± {law:.4f} (law)")
    right.legend()
    return fig


def draw_errors(errors, n, free):
    """One-step errors {load: (nets,)} of nets of n units beside the tail; patterns without error, a list of ErrorFree."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    mean, sem = means_and_sems(errors.values())
    left.errorbar(list(errors), mean, 3 * sem, color=SIZES[-1], marker="o", ls="", capsize=3, label=f"N = {n}, 3 s.e.")
    line = np.linspace(0.08, 0.2, 100)
    left.plot(line, theory_bit_error(line), "k--", label="$\\frac{1}{2}$ erfc $\\sqrt{N/(2P)}$")
    left.set(yscale="log", xlabel="load $\\alpha$ = P / N", ylabel="units wrong after one step from a pattern")
    left.set_title("One step: the error rate beside the Gaussian tail")
    left.legend()
    for found, color in zip(free, SIZES[1:], strict=True):
        right.errorbar(RATIOS, *found.measured, color=color, marker="o", ls="", capsize=3, label=f"N = {found.n}")
        right.plot(RATIOS, found.independent, "--", color=color, lw=1)
    right.plot([], [], "k--", lw=1, label="if units erred independently")
    right.axvline(1, color="k", ls=":")
    right.set(xlabel="P in units of N / (2 ln N)", ylabel="share of patterns without any error", ylim=(0, 1.03))
    gap = (free[-1].measured[0] / free[-1].independent)[4] - 1
    right.set_title(f"At 1.5 times the edge independence is off by {gap:.0%}")
    right.legend()
    return fig


def record_retrieval(run, found, critical):
    """The metrics of `Retrieval` and of `Critical`."""
    repeats, theory = len(found.shares), ("Amit, Gutfreund, Sompolinsky", theory_critical_load()[0])
    for n, value, sem in zip(found.sizes, *critical.halves, strict=True):
        run.metric(f"N = {n}: load at which half are retained", value, sem, theory)
    within, systematic = tolerance(critical.limit[1], repeats), law_error(found, critical)
    known = within is not None and math.isfinite(systematic)
    run.metric("alpha_c: line in N^(-2/3)", *critical.limit, theory, within + systematic if known else None)
    run.metric("alpha_c: line without the smallest nets", *critical.without_smallest, theory)
    run.metric("alpha_c: line in N^(-1/2), law of the width", *critical.by_root, theory)
    if math.isfinite(critical.exponent[0]):
        run.metric("exponent of the drift", *critical.exponent, ("argument above", 2 / 3))
    for load, overlaps in found.kept.items():
        mean, sem = mean_and_sem(overlaps)
        reference = ("theory, N to infinity", theory_overlap(round(load * found.sizes[-1]) / found.sizes[-1]))
        run.metric(f"load {load}: overlap of patterns retained", mean, sem, reference, tolerance(sem, repeats))


def section_capacity(run):
    """Near 0.138 N random patterns Hebb's memory breaks down; recall without error ends at N / (2 ln N)."""
    largest, n_nets = run.config.capacity_units, run.config.capacity_nets
    if largest < 320:
        sys.exit("[capacity] --capacity-units must be at least 320: smaller nets leave nothing to fit")
    found = measure_retrieval(largest, n_nets, run.device)
    critical = find_critical_load(found)
    record_retrieval(run, found, critical)
    run.figure(draw_retrieval(found, critical), "retrieval")
    errors = measure_bit_errors(largest, 2 * n_nets, run.device)
    for load, shares in errors.items():
        (mean, sem), exact = mean_and_sem(shares), exact_bit_error(largest, round(load * largest))
        reference, within = ("binomial, exactly", exact), tolerance(sem, 2 * n_nets)
        run.metric(f"load {load}: units wrong after one step", mean, sem, reference, within)
        run.metric(f"load {load}: the same for infinite nets", exact, None, ("erfc(sqrt(N/2P))/2", theory_bit_error(load)))
    free = [measure_error_free(n, n_nets * largest // n, run.device) for n in found.sizes[1:]]
    for k in (2, 4):
        (mean, sem), guess = free[-1].measured[:, k], free[-1].independent[k]
        run.metric(f"no error, P = {RATIOS[k]:g} N/(2 ln N): share", mean, sem, ("if units were independent", guess))
    run.figure(draw_errors(errors, largest, free), "errors")
    half = critical.halves[0, -1]
    run.say(f"half of the patterns are kept up to {half:.3f} N by {largest} units, {say_limit(found, critical)}")


# %% 4. Spurious states
# The net has minima that nobody stored. With 16 units all 65,536 states can be visited, so they are counted, not sampled:
#   stored      the patterns that are minima;
#   mirrored    their negatives. E(-s) = E(s): as legitimate as the patterns, and *not* called spurious;
#   mixtures    sign(±ξ¹ ± ξ² ± ξ³): overlap ½ with each of three patterns, and E/N near -3/8 where a pattern has -1/2
#               (Amit, Gutfreund & Sompolinsky 1985a). A blend of two is no minimum: half of its units are undecided;
#   others      minima that blend more patterns, or none: the first of the spin-glass states that take over at high load.
# P odd and N even make every N hᵢ odd, so that ties cannot happen.
# For three patterns the mean counts can be summed exactly. Turn every unit so that pattern 1 is all +1: nothing changes
# but names. A unit's column (ξᵢ¹, ξᵢ², ξᵢ³) is then one of four, and with m_ν = ξ^ν·s its field is
#     N hᵢ = Σ_ν ξᵢ^ν m_ν - 3 sᵢ.
# Units with equal columns feel the same sum, and a unit is stable if it has the sum's sign and |sum| ≥ 3: so in a minimum
# all units of a class have one sign. That leaves 2⁴ candidates, decided by the sizes k₁ ... k₄ of the four classes alone,
# and these have the probabilities N!/(k₁! k₂! k₃! k₄!) / 4^N.


def all_states(n):
    """Every state of n units: (2ⁿ, n)."""
    return ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).float() * 2 - 1


def is_minimum(W, states):
    """No single flip lowers the energy: sᵢhᵢ ≥ 0 for all i. W (N, N), states (B, N) -> booleans (B,)."""
    return (states * (states @ W) >= 0).all(-1)


def three_mixtures(patterns):
    """sign(±ξᵃ ± ξᵇ ± ξᶜ) for every three patterns and all signs: (P, N), P ≥ 3 -> (8·binom(P, 3), N)."""
    signs = torch.tensor(list(product((1.0, -1.0), repeat=3)), device=patterns.device)
    return torch.cat([(signs @ patterns[list(triple)]).sign() for triple in combinations(range(len(patterns)), 3)])


def classify(states, patterns):
    """0 stored, 1 mirrored, 2 three-mixture, 3 none of these; the first that fits. (B, N), (P, N) -> (B,)."""
    n, kind = states.shape[1], torch.full((len(states),), 3, device=states.device)
    if len(patterns) >= 3:
        kind[(states @ three_mixtures(patterns).T == n).any(1)] = 2
    kind[(states @ patterns.T == -n).any(1)] = 1
    kind[(states @ patterns.T == n).any(1)] = 0
    return kind


KINDS = {"stored": "teal", "mirrored": "paleturquoise", "mixtures": "goldenrod", "others": "0.55"}


def exact_minima_of_three(n):
    """Mean number of minima of each of KINDS in n units with three random patterns, by the classes above: (4,)."""
    patterns, counts = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1]]), np.zeros(4)
    for size in product(range(n + 1), repeat=3):
        k = torch.tensor([*size, n - sum(size)])
        if k[3] < 0:
            continue
        units, there = patterns.repeat_interleave(k, 1), k > 0
        states = all_states(4)[:, there].unique(dim=0).repeat_interleave(k[there], 1)
        minima = states[is_minimum(agreements(units), states)]
        weight = math.exp(gammaln(n + 1) - gammaln(k.numpy() + 1).sum() - n * math.log(4))
        counts += weight * torch.bincount(classify(minima, units), minlength=4).numpy()
    return counts


# Numbers of each of KINDS (nets, 4), shares of all states that flow to each (some nets, 4); nets in which some stored
# minimum has no mirror; runs that end where there is no minimum.
Minima = namedtuple("Minima", "counts caught n_unpaired n_outside")


def measure_minima(p, n, n_nets, device):
    """Enumerate the minima of `n_nets` nets; in a quarter of them, let all states flow."""
    states, counts, caught, unpaired, outside = all_states(n).to(device), [], [], 0, 0
    for net in range(n_nets):
        patterns = random_patterns(p, n).to(device)
        W = agreements(patterns)
        minima = states[is_minimum(W, states)]
        counts.append(torch.bincount(classify(minima, patterns), minlength=4))
        unpaired += (classify(-minima, patterns) == 0).sum().item() != counts[-1][0].item()
        if net < max(2, n_nets // 4):
            ends = recall(W, states)
            outside += (~is_minimum(W, ends)).sum().item()
            caught.append(torch.bincount(classify(ends, patterns), minlength=4) / len(states))
    return Minima(torch.stack(counts).cpu().double(), torch.stack(caught).cpu().double(), unpaired, outside)


def first_outnumbered(found):
    """The first P of {P: Minima} with more spurious minima than others, by three standard errors at least; or None."""
    gaps = {p: mean_and_sem(minima.counts @ torch.tensor([-1.0, -1, 1, 1]).double()) for p, minima in found.items()}
    return next((p for p, (gap, sem) in gaps.items() if gap > 3 * sem), None)


def draw_minima(found, n):
    """Numbers of minima and the shares of the states that they catch; found {P: Minima} of nets of n units."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for ax, name in zip(axes, ("counts", "caught"), strict=True):
        rows = torch.stack([getattr(minima, name).mean(0) for minima in found.values()]).T.numpy()  # (kinds, loads)
        for kind, (label, color) in enumerate(KINDS.items()):
            ax.bar([str(p) for p in found], rows[kind], 0.65, rows[:kind].sum(0), color=color, label=label)
        ax.set_xlabel(f"patterns stored in {n} units, P")
    axes[0].set(ylabel="minima per net", title=f"The minima among all {2**n:,} states")
    axes[0].legend(loc="upper left")
    axes[1].set(ylabel="share of all states", ylim=(0, 1))
    axes[1].set_title(f"Where they flow: {rows[2:, -1].sum():.0%} to spurious minima at P = {max(found)}")
    return fig


def record_minima(run, p, minima, exact):
    """The metrics of one number of patterns; exact (4,) mean counts or None."""
    for kind, name in enumerate(KINDS):
        mean, sem = mean_and_sem(minima.counts[:, kind])
        against, within = (("patterns", p), None) if kind < 2 else (None, None)
        if exact is not None:
            against, within = ("exactly", exact[kind]), tolerance(sem, len(minima.counts), 4) if exact[kind] else 0
        run.metric(f"P = {p}: {name}", mean, sem, against, within)
    run.metric(f"P = {p}: states caught by spurious minima", *mean_and_sem(minima.caught[:, 2:].sum(1)))


def section_spurious(run):
    """Counting all minima of a small net: those that nobody stored outnumber the memories once the load is high enough."""
    n, nets = run.config.enumerated_units, run.config.enumerated_nets
    if n > 20:
        sys.exit(f"[spurious] --enumerated-units must be at most 20: {n} have 2^{n} states, and all of them are visited")
    found = {p: measure_minima(p, n, nets, run.device) for p in (1, 3, 5, 7, 9)}
    for p, minima in found.items():
        record_minima(run, p, minima, exact_minima_of_three(n) if p == 3 else None)
    unpaired, outside = (sum(minima[k] for minima in found.values()) for k in (2, 3))
    run.metric("nets with unequal mirrors", unpaired, None, ("E(-s) = E(s)", 0), 0)
    run.metric("runs that end outside the list", outside, None, (f"theorem, all {2**n} states", 0), 0)
    run.figure(draw_minima(found, n), "minima")
    first = first_outnumbered(found)
    ratio = (first or 0) / n / theory_critical_load()[0]
    where = f"from P = {first} on, {ratio:.1f} times the critical load of large nets" if first else "at none of these P"
    run.say(f"spurious minima outnumber the patterns and their mirrors {where}")


# %% 5. Better rules
# Hebb's rule wastes the couplings. Beside the three rules of section 2, on the same patterns, with the same zero diagonal:
#   Perceptron          unit i is a perceptron with N-1 inputs and P examples. Whenever ξᵢhᵢ ≤ 0: Wᵢⱼ += ξᵢξⱼ/N. It finds
#                       couplings if there are any, in time. The price: Wᵢⱼ ≠ Wⱼᵢ, so (1) is no energy for it.
#   Perceptron, margin  the same whenever ξᵢhᵢ ≤ K. The first rule stops as soon as every sign is right, however barely, and
#                       a cue with one unit turned over may undo it. A larger K asks for more.
# On a pattern ξᵢhᵢ/|Wᵢ| is the distance from unit i's plane. The least over the patterns is the unit's *stability* κᵢ.
# Let κ* be the largest that any couplings have. Each correction moves Wᵢ by at least κ*/N along the best direction, and
# since it is made at ξᵢhᵢ ≤ K only, it adds at most (2K + 1)/N to |Wᵢ|². After n of them, from W = 0,
#     nκ*/N ≤ |Wᵢ|,   |Wᵢ|² ≤ n(2K + 1)/N,   so   |Wᵢ| ≤ (2K + 1)/κ*   and, once all ξᵢhᵢ > K,   κ > κ* K/(2K + 1).
# At K = 0 that promises nothing, at a large K one half; what is reached is measured below. (Hebb's sum, where the rule
# starts, counts as P corrections: its |Wᵢ|², P(N-1)/N² in the mean, is below P(2K + 1)/N.) All of κ*, as K grows, is
# reached by minover, which learns each unit's *least stable* pattern only (Krauth & Mezard 1987).
# For N to infinity Gardner (1988) computed κ*: P = αN random patterns can have stability κ if and only if
#     1/α > ∫_{-κ}^∞ (t + κ)² φ(t) dt  =  (1 + κ²) Φ(κ) + κ φ(κ),         so α = 2 at κ = 0.
# Is the most stable net the best at recall? Turn over a share ρ of a pattern's units, at random. In the mean ξᵢhᵢ shrinks to
# 1 - 2ρ of what it was, and it spreads by 2√(ρ(1-ρ)) |Wᵢ|. If it is normal, unit i is wrong after one step with probability
#     Φ(-(1-2ρ)/(2√(ρ(1-ρ))) ξᵢhᵢ/|Wᵢ|),     ρ = 0.1:  Φ(-4/3 of the distance).
# So *all* distances count, each pattern's own, and the least of them is only one: a net may be less stable and recall more.
# For given patterns the largest stability is a convex problem: minimise |W| under ξᵢ^μ (Wᵢ·ξ^μ) ≥ 1; then κ = 1/|W|. With
# V the rows ξᵢ^μ ξ^μ (unit i left out), solve the non-negative least squares min |Vᵀλ|² + (1 - Σλ)²: from its residual r
# = (Vᵀλ, Σλ - 1), W = -r_V/r_1 (Lawson & Hanson 1974, ch. 23). No residual means no couplings: a convex combination of the
# rows is zero (Gordan's theorem).
# How many units can be trained at all? Of the 2^P ways to label P points in general position in N-1 dimensions,
#     C = 2 Σ_{k<N-1} binom(P-1, k)
# can be cut off by a plane through the origin (Cover 1965). So a unit can be trained with probability C/2^P =
# Pr[Binomial(P-1, ½) ≤ N-2]: one half at P = 2(N-1) and, as N grows, a step at α = 2. (Patterns of ±1 are in general
# position but for accidents, such as two equal ones, of a chance near P² 2⁻ᴺ.)
# Storkey's rule keeps N/√(2 ln N) patterns without any error for large N; half of them survive well beyond that.


def perceptron(patterns, n_epochs, margin=0.0):
    """The perceptron rule from Hebb's couplings on, for all units of all nets: (nets, P, N) -> (nets, N, N).

    W[..., j, i] acts from j on i. Stops when all units have ξᵢhᵢ > margin on all patterns, or after `n_epochs` passes."""
    W = agreements(patterns)  # N W stays whole, so "exactly zero" is no matter of rounding
    own = W.diagonal(dim1=-2, dim2=-1)  # a view: the rule below writes to it too, so the field leaves it out
    for _ in range(n_epochs):
        mistakes = 0
        for x in patterns.unbind(1):  # (nets, N)
            wrong = x * (W @ x[..., None]).squeeze(-1) - own <= margin * patterns.shape[-1]
            mistakes = mistakes + wrong.sum()
            W.baddbmm_((x * wrong)[..., None], x[:, None])
        if not mistakes:
            break
    own.zero_()
    return W.mT.contiguous().mul_(1 / patterns.shape[-1])


def distances(W, patterns):
    """ξᵢhᵢ/|Wᵢ| of each unit on patterns (nets, P, N), the same shape; 0 for a unit without couplings."""
    return (patterns * (patterns @ W)) / W.norm(dim=1, keepdim=True).clamp(min=1e-9)


def stabilities(W, patterns):
    """κ of each unit, the least of its distances: (nets, N)."""
    return distances(W, patterns).amin(1)


def theory_next_error(distance, share):
    """Share of units wrong a step after a `share` of each pattern is flipped, fields normal: (nets, P, N) -> (nets,)."""
    spread = 2 * math.sqrt(share * (1 - share))
    return torch.special.ndtr(-(1 - 2 * share) * distance / max(spread, 1e-9)).mean((1, 2))  # 1e-9: nothing was flipped


def exact_stability(patterns, unit):
    """The largest stability that any couplings give `unit` on patterns (P, N), numpy: 0 if it cannot be trained."""
    vectors = np.delete(patterns * patterns[:, [unit]], unit, 1)
    system = np.vstack([vectors.T, np.ones(len(vectors))])
    weights, residual = nnls(system, np.eye(len(system))[-1])
    if residual < 1e-6:
        return 0.0
    rest = system @ weights - np.eye(len(system))[-1]
    return 1 / np.linalg.norm(rest[:-1] / rest[-1])


def exact_trainable(n_inputs, p):
    """Share of the labellings of p points in general position that a perceptron without threshold can learn (Cover)."""
    return binom.cdf(n_inputs - 1, p - 1, 0.5)


def theory_stability(load):
    """The largest stability at a load below 2 for N to infinity (Gardner 1988)."""

    def excess(k):
        return (1 + k**2) * ndtr(k) + k * math.exp(-(k**2) / 2) / math.sqrt(2 * math.pi) - 1 / load

    return brentq(excess, -5, 50)


def allowed_share(share, n):
    """How far a share found in n independent trials may lie from its exact value: the binomial's own, one false alarm in
    10,000."""
    low, high = binom.ppf(5e-5, n, share) / n, binom.isf(5e-5, n, share) / n
    return max(share - low, high - share)


def crosses_half(loads, shares):
    """The load at which a falling curve first goes below one half, by straight lines between the points."""
    below = np.flatnonzero(np.asarray(shares) < 0.5)
    if not len(below) or not below[0]:
        return loads[below[0] if len(below) else -1]
    (x0, x1), (y0, y1) = loads[below[0] - 1 : below[0] + 1], shares[below[0] - 1 : below[0] + 1]
    return x0 + (y0 - 0.5) * (x1 - x0) / (y0 - y1)


LOADS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 1, 1.25, 1.5, 1.75, 2, 2.25)
MARGIN = 4.0  # K: a larger one takes more passes, for little more stability
STABLE_UNITS = 4  # whose stability is looked at in each net: units of one net are not independent
MARGIN_LOADS = LOADS[: LOADS.index(0.9) + 1]  # beyond, this margin takes more and more passes


# One rule at some loads: shares of patterns fixed and of cues recalled, of units right on all patterns, (loads, nets); and
# the stability of each net's first STABLE_UNITS, (loads, nets, units). Units wrong one step after the cues, and by theory.
Learned = namedtuple("Learned", "loads fixed recalled trained stability wrong expected")


def measure_rule(rule, patterns, cues, max_flips):
    """A row of `Learned`: one rule at one load, on patterns and cues (nets, P, N)."""
    W = rule(patterns)
    right = patterns * (patterns @ W) > 1e-5  # beyond rounding: W = 0 stores nothing
    recalled = ((recall(W, cues, max_flips=max_flips) * patterns).mean(-1) >= 0.9).float().mean(1)
    rows = right.all(-1).float().mean(1), recalled, right.all(1).float().mean(1), stabilities(W, patterns)[:, :STABLE_UNITS]
    wrong = (patterns * (cues @ W) <= 1e-5).float().mean((1, 2))
    share = (cues != patterns).double().mean().item()  # of 64 units 6 are turned over
    return [to_numpy(row) for row in (*rows, wrong, theory_next_error(distances(W, patterns), share))]


def measure_rules(n, n_nets, n_epochs, device):
    """{rule: Learned} on the same patterns; and the best couplings' stabilities, (loads, nets, units)."""
    rules = RULES | {"perceptron": functools.partial(perceptron, n_epochs=n_epochs)}
    rules["perceptron, margin"] = functools.partial(perceptron, n_epochs=n_epochs, margin=MARGIN)
    rows, best = {name: [] for name in rules}, []
    for load in Progress(LOADS, "rules"):
        x = random_patterns(n_nets, max(2, round(load * n)), n).to(device)
        cues, sets = flipped(x, 0.1), x.cpu().double().numpy()
        if load in MARGIN_LOADS:
            best.append([[exact_stability(one, unit) for unit in range(min(n, STABLE_UNITS))] for one in sets])
        for name, rule in rules.items():
            if name != "perceptron, margin" or load in MARGIN_LOADS:
                rows[name].append(measure_rule(rule, x, cues, 20 * n))
    found = {name: Learned(LOADS[: len(own)], *map(np.array, zip(*own, strict=True))) for name, own in rows.items()}
    return found, np.array(best)


def most_of(values):
    """Who has most of {name: values of the same nets (nets,)}, in words: the largest mean, and all within three standard
    errors of it, by differences net by net."""
    first = max(values, key=lambda name: values[name].mean())
    gaps = {name: mean_and_sem(values[first] - own) for name, own in values.items() if name != first}
    return " or ".join([first, *(name for name, (gap, sem) in gaps.items() if not gap > 3 * sem)])


def best_rules(found):
    """`most_of` of {rule: Learned} at a load of 0.5: in recall, in stability, and in units right after one step."""
    at = LOADS.index(0.5)
    recalled = most_of({name: own.recalled[at] for name, own in found.items()})
    firm = most_of({name: own.stability[at].mean(1) for name, own in found.items()})
    return recalled, firm, most_of({name: -own.wrong[at] for name, own in found.items()})


def measure_trainable(n, n_sets):
    """{load: share of `n_sets` independent sets of patterns on which a unit can be trained at all}."""
    shares = {}
    for load in LOADS[LOADS.index(1.25) :]:
        sets = random_patterns(n_sets, max(2, round(load * n)), n).double().numpy()
        shares[load] = np.mean([exact_stability(patterns, 0) > 0 for patterns in sets])
    return shares


def draw_loads(found, n):
    """Patterns that are fixed points, and patterns that come back, against the load; found {rule: Learned}."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.9), layout="constrained")
    for name, learned in found.items():
        for ax, shares in zip(axes, (learned.fixed, learned.recalled), strict=True):
            ax.errorbar(learned.loads, *means_and_sems(shares), fmt="o-", ms=4, capsize=2, color=COLORS[name], label=name)
    axes[0].set(xlabel="load $\\alpha$ = P / N", ylabel=f"share of patterns that are fixed points, N = {n}", title="Stored")
    axes[1].set(xlabel="load $\\alpha$ = P / N", ylabel="share recalled, 10 % of units flipped", xlim=(0, 1.3))
    axes[1].set_title(f"Recalled: at a load of 0.5 most by {best_rules(found)[0]}")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def draw_units(found, best, trainable, n, n_sets):
    """Units that a rule and that any rule trains, beside Cover; stabilities beside the largest, beside Gardner."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.9), layout="constrained")
    patterns, shares = np.arange(n, round(2.25 * n) + 1), np.array(list(trainable.values()))
    left.plot(patterns / n, exact_trainable(n - 1, patterns), "k--", label="any rule, Cover exactly")
    bars = np.sqrt(shares * (1 - shares) / n_sets)
    left.errorbar(list(trainable), shares, bars, fmt="kx", capsize=2, label="any rule, decided by least squares")
    loads, rows = LOADS[-len(shares) :], means_and_sems(found["perceptron"].trained[-len(shares) :])
    left.errorbar(loads, *rows, fmt="o-", ms=4, capsize=2, color=COLORS["perceptron"], label="perceptron")
    left.set(xlabel="load $\\alpha$ = P / N", ylabel=f"share of units right on all patterns, N = {n}")
    left.set_title(f"At a load of 1.75 trained: {rows[0, 2]:.0%}, trainable: {shares[2]:.0%}")
    left.legend(loc="lower left")
    for name, own in found.items():
        rows = means_and_sems(own.stability[: len(best)].mean(2))
        right.errorbar(MARGIN_LOADS, *rows, fmt="o-", ms=4, color=COLORS[name], label=name)
    right.errorbar(MARGIN_LOADS, *means_and_sems(best.mean(2)), fmt="kx", label="best couplings, exactly")
    line = np.linspace(0.15, 0.95, 50)
    right.plot(line, [theory_stability(load) for load in line], "k--", label="Gardner, N to infinity")
    right.set(xlabel="load $\\alpha$ = P / N", ylabel=f"stability $\\kappa$, mean of {best[0].size} units")
    right.set(xlim=(0.12, 0.95), ylim=(-1.5, 3), title="How firmly the patterns are held")
    right.legend(ncols=2, fontsize=9)
    return fig


def record_rules(run, found, best, n):
    """Loads at which half of the patterns are fixed in nets of n units; recall and stability at some loads."""
    references = {"pseudo-inverse": ("theorem, P < N", 1), "perceptron": ("Gardner, any rule", 2)}
    references["Storkey"] = ("no error, 1/sqrt(2 ln N)", (2 * math.log(n)) ** -0.5)
    for name, learned in found.items():
        if name != "perceptron, margin":
            halves = [crosses_half(learned.loads, curve) for curve in learned.fixed.T]
            run.metric(f"{name}: load with half fixed", *mean_and_sem(halves), references.get(name))
    for load, (name, learned) in product((0.4, 0.5, 0.6), found.items()):
        run.metric(f"load {load}, {name}: recalled", *mean_and_sem(learned.recalled[LOADS.index(load)]), ("all", 1))
    at = LOADS.index(0.5)
    for name, learned in found.items():
        row = mean_and_sem(learned.stability[at].mean(1))
        run.metric(f"load 0.5, {name}: stability", *row, ("best couplings", best[at].mean()))
        row, expected = mean_and_sem(learned.wrong[at]), ("all distances, normal", learned.expected[at].mean())
        run.metric(f"load 0.5, {name}: wrong, 1 step", *row, expected)
    reference = ("Gardner, N to infinity", theory_stability(0.5))
    run.metric("load 0.5, best couplings: stability", *mean_and_sem(best[at].mean(1)), reference)
    beyond = sum((own.stability[: len(best)] > best + 1e-3).sum() for own in found.values())
    run.metric("units more stable than the best couplings", beyond, None, ("theorem", 0), 0)


def section_rules(run):
    """On the same patterns other rules store more than Hebb's; a margin lets the perceptron's come back when damaged."""
    config, n = run.config, run.config.rule_units
    if n < 2:
        sys.exit("[rules] --rule-units must be at least 2: a unit alone has no couplings")
    found, best = measure_rules(n, config.rule_nets, config.n_epochs, run.device)
    record_rules(run, found, best, n)
    trainable = measure_trainable(n, config.n_labellings)
    for load, share in trainable.items():
        exact = exact_trainable(n - 1, max(2, round(load * n)))
        within = allowed_share(exact, config.n_labellings) if n >= 16 else None  # fewer units: not in general position
        run.metric(f"load {load}: units that any rule can train", share, None, ("Cover, exactly", exact), within)
        trained = mean_and_sem(found["perceptron"].trained[LOADS.index(load)])
        run.metric(f"load {load}: units that the perceptron trained", *trained, ("Cover, any rule", exact))
    run.figure(draw_loads(found, n), "loads")
    run.figure(draw_units(found, best, trainable, n, config.n_labellings), "units")
    shares = {name: learned.recalled[LOADS.index(0.5)].mean() for name, learned in found.items()}
    said = "; ".join(f"{name} {share:.0%}" for name, share in shares.items())
    recalled, firm, right = best_rules(found)
    run.say(f"at a load of 0.5 most patterns come back by the rule {recalled} ({said})")
    run.say(f"there the largest stability has {firm}; fewest units are wrong one step after the cue by {right}")


# %% 6. Noise
# At temperature T a unit obeys its field only on average. Its two states differ by E(-) - E(+) = 2hᵢ, so
#     P(+)/P(-) = exp(2hᵢ/T),   P(+) = σ(2hᵢ/T),   <sᵢ> = 2σ(2hᵢ/T) - 1 = tanh(hᵢ/T).       (σ(h/T) is the usual slip)
# At low load the field near a pattern ξ is hᵢ = mξᵢ. Average over the units:  m = tanh(m/T). Expanded for small m,
# m = m/T - m³/(3T³): a solution with m > 0 exists only below T = 1. There memory melts.
# For P = 1 all is exact at any N: count σᵢ = sᵢξᵢ, M = Σσᵢ; then E = -(M² - N)/(2N), and every mean is a sum over N+1 values
# of M. Where does a finite net melt? Binder's (1981) cumulant U = 1 - <m⁴>/(3<m²>²) is 2/3 where |m| has one value and 0
# where m is Gaussian. The larger the net the steeper it falls in between, and the curves of two sizes cross near the
# temperature of infinite nets: that measures T = 1 without knowing it.
# At a load α the other patterns add a Gaussian noise of variance αr (Amit, Gutfreund & Sompolinsky 1987), z ~ N(0, 1):
#     m = <tanh((m + √(αr) z)/T)>,    q = <tanh²((m + √(αr) z)/T)>,    r = q/(1-C)²,    C = (1-q)/T,
# which is section 3(c) at T = 0 and m = tanh(m/T) at α = 0. It has a solution with m > 0 in a corner of the plane of α and
# T, bounded by a line from (0, 1) to (0.138, 0): the phase diagram of memory.
# Hopfield (1984) met the same equation without chance. Units with inputs u and graded outputs V = tanh(βu),
#     du/dt = -u + WV,    L = -½ VᵀWV + Σᵢ ∫₀^Vᵢ (artanh v)/β dv,    dL/dt = -Σᵢ V'(uᵢ) (duᵢ/dt)² ≤ 0,
# descend in continuous time, and in Euler's steps dt that are short (dt = 1 moves all units at once, as in section 1).
# They rest where V = tanh(βWV), the mean-field equation at T = 1/β. For one pattern, V = mξ with m = tanh(β(1 - 1/N)m).


def glauber(W, s, temperature, n_sweeps=1):
    """Eq. (4), unit after unit: W (..., N, N), s (..., B, N), temperature a number or (B,) -> the last states."""
    s = s.clone()
    for _ in range(n_sweeps):
        for unit, coin in enumerate(torch.rand(s.shape[-1], *s.shape[:-1]).to(s.device)):
            field = (s @ W[..., unit, :, None]).squeeze(-1)
            s[..., unit] = torch.where(coin < torch.sigmoid(2 * field / temperature), 1.0, -1.0)
    return s


def graded_path(W, u, gain, n_steps, dt=0.1):
    """Euler steps of du/dt = -u + W tanh(gain u), Hopfield (1984): all u, (n_steps + 1, B, N)."""
    path = [u]
    for _ in range(n_steps):
        path.append(path[-1] + dt * (torch.tanh(gain * path[-1]) @ W - path[-1]))
    return torch.stack(path)


def graded_energy(W, u, gain):
    """Hopfield's (1984) L at V = tanh(gain u), (..., B, N) -> (..., B); ∫ artanh = V·gain·u - ln cosh(gain u)."""
    V, x = torch.tanh(gain * u), (gain * u).abs()
    log_cosh = x + torch.nn.functional.softplus(-2 * x) - math.log(2)
    return energy(W, V) + (V * u - log_cosh / gain).sum(-1)


def binder(m2, m4):
    """U = 1 - <m⁴>/(3<m²>²)."""
    return 1 - m4 / (3 * m2**2)


def exact_moment(n, temperature, power):
    """<|m|^power> for P = 1: sum over M = -n ... n of |M/n|^power with weight binom(n, (n+M)/2) exp((M² - n)/(2nT))."""
    up = np.arange(n + 1)
    m = 2 * up / n - 1
    log_weight = n * m**2 / (2 * temperature) - gammaln(up + 1) - gammaln(n - up + 1)
    weight = np.exp(log_weight - log_weight.max())
    return np.abs(m) ** power @ weight / weight.sum()


def theory_low_load_overlap(temperature):
    """The stable solution of m = tanh(m/T): positive below T = 1, zero from there on."""
    return brentq(lambda m: m - math.tanh(m / temperature), 1e-9, 1) if temperature < 1 - 1e-9 else 0.0


def theory_noisy_overlap(load, temperature, n_steps=400):
    """m of the retrieval state at a load and a temperature (arrays), by iteration from m = q = 1."""
    z = np.linspace(-7, 7, 201)  # narrow enough for the steps that tanh makes at low temperature
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    load, temperature = np.broadcast_arrays(np.asarray(load, dtype=float), np.asarray(temperature, dtype=float))
    m, q = np.ones(load.shape), np.ones(load.shape)
    for _ in range(n_steps):
        r = q / np.maximum(1 - (1 - q) / temperature, 1e-9) ** 2
        outputs = np.tanh((m[..., None] + np.sqrt(load * r)[..., None] * z) / temperature[..., None])
        m, q = outputs @ weight, outputs**2 @ weight
    return m


def theory_melting(loads):
    """The highest temperature at which there is a retrieval state, for each of some loads, by bisection."""
    low, high = np.full(len(loads), 0.02), np.full(len(loads), 1.1)
    for _ in range(12):
        middle = (low + high) / 2
        there = theory_noisy_overlap(loads, middle) > 0.1
        low, high = np.where(there, middle, low), np.where(there, high, middle)
    return (low + high) / 2


def observe(W, first, starts, temperatures, n_sweeps, label):
    """Overlap with the pattern `first` (nets, N) of nets W (nets, N, N), where `starts` chains a net and temperature start.

    Sweep by sweep, (sweeps, nets, starts, temperatures), the first third of the sweeps thrown away."""
    target = first[:, None]
    s, burn, path = target.repeat(1, starts * len(temperatures), 1), n_sweeps // 3, []
    each = torch.tensor(temperatures, device=W.device).repeat(starts)
    for sweep in Progress(range(n_sweeps), label):
        s = glauber(W, s, each)
        if sweep >= burn:
            path.append((s * target).mean(-1).unflatten(1, (starts, -1)))
    return torch.stack(path).double().cpu()


def nets_of_loads(counts, n_nets, n, device):
    """`n_nets` nets for each number of patterns in `counts`: Hebb's couplings (nets, N, N), and first patterns (nets, N)."""
    sets = [random_patterns(n_nets, p, n).to(device) for p in counts]
    return torch.cat([hebb(x) for x in sets]), torch.cat([x[:, 0] for x in sets])


ONE_TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5)
BINDER_TEMPERATURES = (0.9, 0.95, 1.0, 1.05, 1.1)


# One pattern in n units: <|m|> of each chain (chains, ONE_TEMPERATURES). For two sizes: Binder's cumulants of groups of
# chains, (groups, 2, BINDER_TEMPERATURES), and the exact ones.
Melting = namedtuple("Melting", "n overlap sizes cumulants exact")


def crossing(cumulants):
    """Where two sizes' cumulants (2, BINDER_TEMPERATURES) cross, by a line through their difference; nan if it is level."""
    slope, start = np.polyfit(BINDER_TEMPERATURES, cumulants[1] - cumulants[0], 1)
    return -start / slope if slope else math.nan


def measure_melting(n, n_chains, n_sweeps, device, n_groups=12):
    """Nets with one pattern: overlaps at N = n; Binder's cumulants at n/8 and n/2, from `n_groups` groups of chains."""
    nets, sizes, cumulants = nets_of_loads([1], 1, n, device), [max(4, n // 8), max(8, n // 2)], []
    overlap = observe(*nets, n_chains, ONE_TEMPERATURES, n_sweeps, "one pattern").abs().mean(0)[0]
    for size in sizes:
        nets = nets_of_loads([1], n_groups, size, device)
        m = observe(*nets, n_chains // 4 + 1, BINDER_TEMPERATURES, 2 * n_sweeps, f"crossing, N = {size}")
        cumulants.append(to_numpy(binder((m**2).mean((0, 2)), (m**4).mean((0, 2)))))
    exact = [[binder(exact_moment(size, t, 2), exact_moment(size, t, 4)) for t in BINDER_TEMPERATURES] for size in sizes]
    return Melting(n, overlap, sizes, np.stack(cumulants, 1), np.array(exact))


POINT_LOADS, POINT_TEMPERATURES = (0.02, 0.04), (0.2, 0.3, 0.4)  # well inside the phase of memory
GRID_LOADS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15, 0.17)
GRID_TEMPERATURES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.05)


# {(load, temperature): (overlap of each net, theory)}, where the two sizes have one load; the grid's loads, its mean
# overlaps (loads, GRID_TEMPERATURES), and the same for N to infinity.
Phases = namedtuple("Phases", "points loads grid theory")


def measure_points(n, n_nets, n_sweeps, device):
    """Overlaps from nets of n/2 and of n units, extrapolated in 1/N, as in `Phases`."""
    points, both = {}, []
    for size in (n // 2, n):
        nets = nets_of_loads([max(1, round(load * size)) for load in POINT_LOADS], n_nets, size, device)
        overlaps = observe(*nets, 1, POINT_TEMPERATURES, n_sweeps, f"noise, N = {size}").mean((0, 2))
        both.append(overlaps.unflatten(0, (len(POINT_LOADS), -1)))
    for k, load in enumerate(POINT_LOADS):
        p = round(load * n)
        if 2 * round(load * (n // 2)) == p > 0 and n % 2 == 0:
            theory = theory_noisy_overlap(p / n, POINT_TEMPERATURES)
            rows = zip(POINT_TEMPERATURES, (2 * both[1] - both[0])[k].T, theory, strict=True)
            points |= {(load, t): (overlaps, reference) for t, overlaps, reference in rows}
    return points


def measure_phases(n, n_nets, n_sweeps, device):
    """`Phases`: a quarter as many nets on the grid, of n/2 units."""
    points, size = measure_points(n, n_nets, n_sweeps, device), n // 2
    counts, each = sorted({max(1, round(load * size)) for load in GRID_LOADS}), n_nets // 4 + 1
    found = observe(*nets_of_loads(counts, each, size, device), 1, GRID_TEMPERATURES, n_sweeps // 2 + 1, "phases")
    grid, loads = found.mean((0, 2)).unflatten(0, (len(counts), each)).mean(1), np.array(counts) / size
    return Phases(points, loads, to_numpy(grid), theory_noisy_overlap(loads[:, None], GRID_TEMPERATURES))


GAINS = (0.5, 1.5, 3.0, 10.0)


def measure_graded(n=100, n_runs=50, n_steps=400):
    """{gain: (rises of L in runs with five patterns, where a net of one pattern rests)}, float64 on the CPU."""
    five, one, found = hebb(random_patterns(5, n).double()), random_patterns(1, n).double(), {}
    for gain in GAINS:
        path = graded_path(five, 0.2 * torch.randn(n_runs, n, dtype=torch.float64), gain, n_steps)
        rises = (graded_energy(five, path, gain).diff(dim=0) > 1e-10).sum().item()  # 1e-10: rounding in sums of about 100
        outputs = torch.tanh(gain * graded_path(hebb(one), 0.1 * one, gain, 1000)[-1])
        found[gain] = rises, (outputs * one).mean().item()
    return found


def draw_melting(found):
    """One pattern: overlap against temperature, and the cumulants of two sizes, which cross where it melts."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    fine = np.linspace(0.15, 1.5, 200)
    left.plot(fine, [theory_low_load_overlap(t) for t in fine], "k--", label="m = tanh(m/T), N to infinity")
    left.plot(fine, [exact_moment(found.n, t, 1) for t in fine], "k:", label=f"exact, N = {found.n}")
    rows = means_and_sems(found.overlap.T)
    left.errorbar(ONE_TEMPERATURES, *rows, color="teal", fmt="o", ms=5, capsize=2, label=f"Glauber, N = {found.n}")
    left.set(xlabel="temperature T", ylabel="overlap |m| with the pattern", title="One pattern: memory fades towards T = 1")
    left.legend()
    for k, (size, color) in enumerate(zip(found.sizes, (SIZES[1], SIZES[3]), strict=True)):
        rows = means_and_sems(found.cumulants[:, k].T)
        right.errorbar(BINDER_TEMPERATURES, *rows, color=color, fmt="o", ms=5, capsize=2, label=f"Glauber, N = {size}")
        right.plot(BINDER_TEMPERATURES, found.exact[k], ":", color=color, label=f"exact, N = {size}")
    right.axvline(1, color="k", ls="--", label="T = 1")
    right.set(xlabel="temperature T", ylabel="Binder's cumulant U")
    right.set_title(f"The two sizes cross at T = {np.mean([crossing(one) for one in found.cumulants]):.3f}")
    right.legend()
    return fig


def draw_phase_diagram(phases, agree):
    """The plane of load and temperature: what nets keep, beside the line of the theory."""
    fig, ax = plt.subplots(figsize=(7.5, 5), layout="constrained")
    mesh = ax.pcolormesh(phases.loads, GRID_TEMPERATURES, phases.grid.T, cmap="magma", vmin=0, vmax=1, shading="nearest")
    fig.colorbar(mesh, ax=ax, label="overlap with the pattern, measured")
    line = theory_critical_load()[0] * (1 - np.cos(np.linspace(0.1, 1, 16) * math.pi)) / 2  # dense at both ends
    ax.plot(line, theory_melting(line), "w-", lw=3, label="theory: memory below this line")
    ax.set(xlabel="load $\\alpha$ = P / N", ylabel="temperature T")
    ax.set_title(f"Where memory lives: {agree:.0%} of the cells as theory has them")
    ax.legend(loc="upper right", facecolor="0.3", labelcolor="w")
    return fig


def record_melting(run, found):
    """The metrics of one pattern, beside exact sums at the same N."""
    for k, t in enumerate(ONE_TEMPERATURES):
        (mean, sem), exact = mean_and_sem(found.overlap[:, k]), exact_moment(found.n, t, 1)
        run.metric(f"P = 1, T = {t}: overlap", mean, sem, ("exact at this N", exact), tolerance(sem, len(found.overlap)))
    crossings, exact = [crossing(one) for one in found.cumulants], crossing(found.exact)
    mean, sem = mean_and_sem(crossings)
    if not math.isfinite(mean):
        return run.say("cumulants of two sizes that are alike do not cross: raise --glauber-units or --glauber-sweeps")
    run.metric("T at which Binder's cumulants cross", mean, sem, ("exact sums", exact), tolerance(sem, len(crossings)))
    return run.metric("the same from exact sums", exact, None, ("mean field, N to infinity", 1))


def section_noise(run):
    """With temperature T the overlap follows m = tanh(m/T), and other patterns add their own noise: a phase diagram."""
    n, n_chains, n_sweeps = run.config.glauber_units, run.config.n_chains, run.config.glauber_sweeps
    if n < 4:
        sys.exit(f"[noise] --glauber-units must be at least 4, since nets of a half are compared, not {n}")
    melting = measure_melting(n, n_chains, n_sweeps, run.device)
    record_melting(run, melting)
    run.figure(draw_melting(melting), "melting")
    phases = measure_phases(n, n_chains, n_sweeps, run.device)
    for (load, t), (overlaps, theory) in phases.points.items():
        (mean, sem), reference = mean_and_sem(overlaps), ("Amit, Gutfreund, Sompolinsky", theory)
        run.metric(f"load {load}, T = {t}: overlap, 1/N to 0", mean, sem, reference, tolerance(sem, n_chains))
    agree = np.mean((phases.grid > 0.5) == (phases.theory > 0.5))
    run.metric("cells of the phase diagram as in theory", agree, None, ("all", 1))
    run.figure(draw_phase_diagram(phases, agree), "phases")
    for gain, (rises, overlap) in measure_graded().items():
        reference = ("m = tanh(0.99 gain m)", theory_low_load_overlap(1 / (0.99 * gain)))
        run.metric(f"graded units, gain {gain:g}: overlap", overlap, None, reference, 1e-6)
        run.metric(f"graded units, gain {gain:g}: rises of L", rises, None, ("theorem, 20000 steps", 0), 0)
    run.say(f"{agree:.0%} of the cells of the phase diagram lie on the side of m = 1/2 that theory gives them")


# %% 7. Modern Hopfield networks
# Up to a constant Hebb's energy is -(1/(2N)) Σ_μ (ξ^μ·s)²: each memory digs a parabola, so wide that the tails of many
# drown the one. Sharper wells hold more (Krotov & Hopfield 2016):
#     E(s) = -Σ_μ F(ξ^μ·s),  F(x) = xⁿ,    sᵢ <- sign Σ_μ [F(c_μ + ξᵢ^μ) - F(c_μ - ξᵢ^μ)],    c_μ = Σ_{j≠i} ξⱼ^μ sⱼ.
# At a pattern, it contributes Nⁿ - (N-2)ⁿ ≈ 2n Nⁿ⁻¹; each other one a random sign times G(c) = (c+1)ⁿ - (c-1)ⁿ, with c a sum
# of N-1 coins, of variance E[G²] ≈ 4n² (2n-3)!! Nⁿ⁻¹. A given error rate is reached at P proportional to Nⁿ⁻¹.
# Exactly: the noise is a sum of P-1 independent terms ±G(c_μ), with the characteristic function φ(t)^(P-1), where
# φ(t) = E cos(tG(c)) is a sum over N values of c. Gil-Pelaez's inversion gives the error rate,
#     P(noise < -a) + ½ P(noise = -a) = ½ - (1/π) ∫₀^∞ sin(ta) φ(t)^(P-1) dt/t,      a = Nⁿ - (N-2)ⁿ.
# With exponential wells, F(x) = eˣ, P may grow exponentially: random patterns come back in one step from a share ρ of
# flipped units, with probability 1 as N grows, if P = exp(αN) and α < I(1-2ρ)/2 (Demircigil et al. 2017), where
#     I(x) = ½ ((1+x) ln(1+x) + (1-x) ln(1-x)).
# For real-valued states the exponential wells are (5), with
#     lse(β, z) = (1/β) log Σ_μ exp(βz_μ).
# Its update can only descend: lse is convex, so it lies above its tangent at ξ; replace it by the tangent, and minimise
#     -ξ'ᵀ Xᵀ softmax(βXξ) + ½|ξ'|²     over ξ':     ξ' = Xᵀ softmax(βXξ).
# Call ξ the query, X the keys and the values, β = 1/√d: this is the attention of transformers (Ramsauer et al. 2020).
# The price is plain: X itself is kept, P·N numbers, and for β -> ∞ one step is a search for the nearest neighbour.
# But nearest in the sense of the largest x·ξ, and patterns of unequal length are not equal before a dot product: the long
# ones win. Since -½|x - ξ|² = x·ξ - ½|x|² - ½|ξ|², the term -½|x|² inside the softmax makes it a matter of distance.


def polynomial_energy(patterns, s, degree):
    """-Σ_μ (ξ^μ·s/N)ⁿ, over N to keep float32 in range: patterns (P, N), s (B, N) -> (B,)."""
    return -((s @ patterns.T / patterns.shape[1]) ** degree).sum(1)


def polynomial_field(patterns, s, degree):
    """E(sᵢ = -1) - E(sᵢ = +1) of `polynomial_energy` for every unit: (P, N), (B, N) -> (B, N).

    With o = ξ^μ·s and a = ξᵢ^μ sᵢ = ±1, c_μ is o - a, and sᵢ times the field is Σ_μ a G(o-a): linear in a,
    ½ Σ [G(o-1) - G(o+1)] + ½ Σ a [G(o-1) + G(o+1)]. One matrix product serves all units."""
    n, overlap = patterns.shape[1], s @ patterns.T
    below = (overlap / n) ** degree - ((overlap - 2) / n) ** degree  # G(o-1)
    above = ((overlap + 2) / n) ** degree - (overlap / n) ** degree  # G(o+1)
    return 0.5 * s * (below - above).sum(1, keepdim=True) + 0.5 * (below + above) @ patterns


def exponential_field(patterns, s):
    """The same for F(x) = exp(x), over exp(N) to keep it in range: with c = o - a it is Σ_μ a exp(o - a - N) 2 sinh 1."""
    overlap = s @ patterns.T
    own = overlap.unsqueeze(-1) - patterns * s.unsqueeze(1)  # c for each state, pattern and unit: (B, P, N)
    return (patterns * (own - patterns.shape[1]).exp()).sum(1) * 2 * math.sinh(1)


def softmax_energy(patterns, state, beta):
    """Eq. (5), plus the constant (log P)/β + ½ max|x|² that makes it ≥ 0; Ramsauer et al. (2020). (P, d), (B, d) -> (B,)."""
    constant = math.log(len(patterns)) / beta + 0.5 * patterns.square().sum(1).max()
    return -(beta * state @ patterns.T).logsumexp(1) / beta + 0.5 * state.square().sum(1) + constant


def softmax_update(patterns, state, beta):
    """One step of eq. (5), a softmax-weighted mean of the patterns: (P, d), (B, d) -> (B, d)."""
    return (beta * state @ patterns.T).softmax(1) @ patterns


def distance_update(patterns, state, beta):
    """The same by distance, softmax of -β|x - ξ|²/2: for patterns of unequal length. (P, d), (B, d) -> (B, d)."""
    return (beta * (state @ patterns.T - 0.5 * patterns.square().sum(1))).softmax(1) @ patterns


def settle(patterns, state, beta, max_steps=200):
    """`softmax_update` until it moves by less than 1e-4: (P, d), (B, d) -> (B, d)."""
    for _ in range(max_steps):
        before, state = state, softmax_update(patterns, state, beta)
        if (state - before).abs().max() < 1e-4:
            break
    return state


def crosstalk(n, degree):
    """The terms ±G(c)/Nⁿ of the noise, (N,), the probabilities of c, and the pattern's own term."""
    c = 2.0 * np.arange(n) - (n - 1)
    return ((c + 1) / n) ** degree - ((c - 1) / n) ** degree, binom.pmf(np.arange(n), n - 1, 0.5), 1 - (1 - 2 / n) ** degree


def exact_polynomial_error(n, degree, p):
    """Share of units that one step from a pattern gets wrong, ties half: Gil-Pelaez's integral up to 12 standard deviations
    of the characteristic function (beyond, it repeats itself and speaks of the lattice only). p may be no whole number."""
    terms, weight, own = crosstalk(n, degree)
    t = (np.arange(1500) + 0.5) * 12 / 1500 / math.sqrt((p - 1) * (weight @ terms**2))
    phi = np.cos(np.outer(t, terms)) @ weight
    return 0.5 - (np.sin(t * own) / t * np.sign(phi) * np.abs(phi) ** (p - 1)).sum() * 2 * t[0] / math.pi


@functools.cache
def exact_polynomial_load(n, degree, error):
    """The P at which `exact_polynomial_error` is `error`, sought around that of Gaussian noise of the same variance."""
    terms, weight, own = crosstalk(n, degree)
    start = math.log(1 + (own / ndtri(error)) ** 2 / (weight @ terms**2))
    return math.exp(brentq(lambda x: exact_polynomial_error(n, degree, math.exp(x)) - error, start - 0.5, start + 0.5))


def theory_exponential_rate(share):
    """The α up to which exp(αN) patterns come back from a `share` of flipped units (Demircigil et al. 2017, theorem 3)."""
    x = 1 - 2 * share
    return ((1 + x) * math.log(1 + x) - entr(1 - x)) / 4


WELLS = {2: ("tab:gray", (1, 2, 4, 8)), 3: ("tab:cyan", (0.375, 0.5, 0.75, 1, 1.5)), 4: ("tab:pink", (0.375, 0.5, 0.75, 1))}
ERROR = 0.01  # share of units wrong that defines a load


# Patterns at which one step gets ERROR of the units wrong: sizes, measured loads (nets, sizes), exact ones (sizes,), and the
# exponents of both, (nets,) and a number.
Wells = namedtuple("Wells", "sizes loads exact exponents exact_exponent")


def measured_load(n, degree, device="cpu"):
    """The load of one net. A tie is half wrong, and Gaussian noise makes probit(error) ~ -1/√P: a line through five points
    (log -probit, log P)."""
    counts = [max(4, round(factor * exact_polynomial_load(n, degree, ERROR))) for factor in (0.5, 0.7, 1, 1.4, 2)]
    patterns, logs = random_patterns(counts[-1], n).to(device), []
    for p in counts:
        start = patterns[: min(p, 100, max(10, 5_200_000 // counts[-1]))]  # by time
        pull = polynomial_field(patterns[:p], start, degree) * start
        wrong = 0.5 * ((pull < 0).double() + (pull <= 0).double()).mean().item()
        logs.append(math.log(-ndtri(min(max(wrong, 0.5 / start.numel()), 0.45))))
    return math.exp(np.polyval(np.polyfit(logs, np.log(counts), 1), math.log(-ndtri(ERROR))))


def measure_wells(n_units, n_nets, device):
    """{degree: Wells} at sizes up to some times n_units."""
    found = {}
    for degree, (_, factors) in WELLS.items():
        sizes = [round(factor * n_units) for factor in factors]
        loads = np.array([[measured_load(n, degree, device) for n in sizes] for _ in range(n_nets)])
        exact = np.array([exact_polynomial_load(n, degree, ERROR) for n in sizes])
        found[degree] = Wells(sizes, loads, exact, *(np.polyfit(np.log(sizes), np.log(p).T, 1)[0] for p in (loads, exact)))
    return found


def measure_exponential(sizes, n_nets, device, share=0.1):
    """{N: (P, units wrong with exponential wells (nets,), with Hebb's (nets,))}: one step from a `share` of flipped units.

    P = exp(αN) at nine tenths of the rate of Demircigil et al.; 20 cues a net."""
    found = {}
    for n in sizes:
        p, wrong = round(math.exp(0.9 * theory_exponential_rate(share) * n)), []
        for _ in range(n_nets):
            patterns = random_patterns(p, n).to(device)
            stored = patterns[:20]
            cues = flipped(stored, share)
            fields = exponential_field(patterns, cues), polynomial_field(patterns, cues, 2)
            wrong.append([(field * stored <= 0).double().mean().item() for field in fields])
        found[n] = p, *np.array(wrong).T
    return found


def check_attention(keys, queries):
    """Largest gap to torch's attention on keys (P, d), queries (B, d); rises of E and steps on random keys, float64."""
    attention = torch.nn.functional.scaled_dot_product_attention(queries[None], keys[None], keys[None])[0]
    gap = (softmax_update(keys, queries, keys.shape[1] ** -0.5) - attention).abs().max().item()
    keys, rises, betas = torch.randn(50, 20, dtype=torch.float64), 0, (0.05, 0.3, 1.0, 10.0)
    for beta in betas:
        state = torch.randn(500, 20, dtype=torch.float64)
        for _ in range(20):
            before, state = state, softmax_update(keys, state, beta)
            rises += (softmax_energy(keys, state, beta) > softmax_energy(keys, before, beta) + 1e-12).sum().item()
    return gap, rises, 500 * 20 * len(betas)


SHOWN_BETAS = (0, 9, 10, 12, 13, 20)
# All digits in 64 units: how many; {(kind of cue, rule): which cues come back (cues,)}; {kind: share whose nearest neighbour
# is right}; betas, and patterns in the mean at rest, exp(entropy of the weights) (betas, cues); pictures of eight cues:
# stored, cue, what three rules recall; and at rest at SHOWN_BETAS, each (8, 64).
ManyDigits = namedtuple("ManyDigits", "n hits nearest betas blended pictures at_rest")


def measure_digits(x, n_cues):
    """`ManyDigits` of different pictures x (P, 64)."""
    chosen = x[torch.randperm(len(x))[:n_cues].to(x.device)]
    cues, unknown = flipped(chosen, 0.1), occluded(chosen, 0.0)  # a real-valued state may say "I do not know"; a net of ±1
    hits, nearest, ends = {}, {}, {}  # starts from blank
    for kind, cue, start in (("10 % flipped", cues, cues), ("half hidden", unknown, occluded(chosen))):
        nearest[kind] = (x[(cue @ x.T).argmax(1)] == chosen).all(1).double().mean().item()
        ends = {name: recall(RULES[name](x), start) for name in ("Hebb", "pseudo-inverse")}
        ends["softmax"] = softmax_update(x, cue, 4.0).sign()
        hits |= {(kind, rule): (end == chosen).all(1).cpu() for rule, end in ends.items()}
    betas = torch.logspace(-1.5, 0.5, 21)
    rest = [settle(x, cues[:100], beta.item()) for beta in betas]
    weights = torch.stack([(beta * state @ x.T).softmax(1) for beta, state in zip(betas.tolist(), rest, strict=True)])
    blended = to_numpy(torch.special.entr(weights).sum(-1).exp())
    pictures = [picture[:8] for picture in (chosen, unknown, *ends.values())]
    return ManyDigits(len(x), hits, nearest, betas.numpy(), blended, pictures, [rest[k][:8] for k in SHOWN_BETAS])


def measure_grey(n_cues, device, noise=0.2):
    """{by: which noisy grey digits come back (cues,)}, and how long the dot product's choices are, in means of all |x|."""
    x = torch.tensor(load_digits().data, dtype=torch.float32, device=device).div(16).unique(dim=0)
    chosen = torch.randperm(len(x))[:n_cues].to(device)
    cues = x[chosen] + noise * torch.randn(len(chosen), 64).to(device)
    hits, winners = {}, {}
    for by, update in (("dot product", softmax_update), ("distance", distance_update)):
        winners[by] = torch.cdist(update(x, cues, 100.0), x).argmin(1)
        hits[by] = (winners[by] == chosen).cpu()
    return hits, (x[winners["dot product"]].norm(dim=1).mean() / x.norm(dim=1).mean()).item()


def draw_capacity(wells, digits_found):
    """Loads against N for three wells, and how many patterns the softmax step blends."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for (degree, found), (color, _) in zip(wells.items(), WELLS.values(), strict=True):
        mean, sem = mean_and_sem(found.exponents)
        left.plot(found.sizes, found.exact, "k--", lw=1, label="exactly" if degree == 2 else None)
        rows, label = means_and_sems(found.loads.T), f"$x^{degree}$: exponent {mean:.2f} ± {sem:.2f}"
        left.errorbar(found.sizes, *rows, fmt="o", color=color, capsize=3, label=label)
    left.set(xscale="log", yscale="log", xlabel="units N", ylabel="patterns at 1 % of units wrong, P")
    left.set_xticks([64, 128, 256, 512, 1024], ["64", "128", "256", "512", "1024"])
    left.minorticks_off()
    left.set_title("Sharper wells: capacity grows as $N^{n-1}$")
    left.legend(fontsize=9, loc="upper right")
    betas, blended = digits_found.betas, digits_found.blended
    right.plot(betas, np.median(blended, 1), "o-", ms=4, color=COLORS["softmax"], label="median cue")
    band = np.quantile(blended, (0.1, 0.9), axis=1)
    right.fill_between(betas, *band, color=COLORS["softmax"], alpha=0.2, lw=0, label="10-90 % of cues")
    for level in (1, digits_found.n):
        right.axhline(level, color="k", ls="--", lw=1)
    right.set(xscale="log", yscale="log", xlabel="inverse temperature $\\beta$", ylabel="patterns blended, exp(entropy)")
    ends = np.median(blended, 1)[[0, -1]]
    right.set_title(f"Blended at rest: {ends[0]:.0f} patterns, at last {ends[1]:.2g}")
    right.legend()
    return fig


def draw_digits(found):
    """What three rules make of half a digit, and what the softmax step rests at."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6))
    labels = ["stored", "cue", "Hebb", "pseudo-\ninverse", "softmax,\none step"]
    show_pictures(left, found.pictures, 8, labels, f"{found.n} digits in 64 units, upper half unknown")
    labels = [f"$\\beta$ = {found.betas[k]:.2g}" for k in SHOWN_BETAS]
    show_pictures(right, found.at_rest, 8, labels, "At rest: mean, clusters, single digits")
    return fig


def record_wells(run, wells, exponential):
    """Exponents beside the exact ones at the same N, and beside n - 1; and exponential wells beside Hebb's."""
    for degree, found in wells.items():
        (mean, sem), exact = mean_and_sem(found.exponents), found.exact_exponent
        run.metric(
            f"wells x^{degree}: exponent of N", mean, sem, ("exactly, same N", exact), tolerance(sem, len(found.loads))
        )
        run.metric(f"wells x^{degree}: exact exponent", exact, None, ("N to infinity", degree - 1))
    for n, (p, wells_wrong, hebb_wrong) in exponential.items():
        reference = ("Hebb, same cues", hebb_wrong.mean())
        run.metric(f"wells e^x, N = {n}, P = {p}: units wrong", *mean_and_sem(wells_wrong), reference)


def record_recall(run, found, grey, brightness):
    """Recall among all digits beside nearest neighbours, and among grey ones by two measures."""
    for (kind, rule), hits in found.hits.items():
        run.metric(f"{kind}, {rule}: recalled", *mean_and_sem(hits), ("nearest neighbour", found.nearest[kind]))
    run.metric("patterns blended at the smallest beta", *mean_and_sem(found.blended[0]), ("all of them", found.n))
    run.metric("patterns blended at the largest beta", *mean_and_sem(found.blended[-1]), ("one", 1))
    for by, hits in grey.items():
        run.metric(f"grey digits by {by}: recalled", *mean_and_sem(hits), ("all", 1))
    run.metric("grey digits: length of the product's choice", brightness, None, ("mean length", 1))


def section_modern(run):
    """Sharper wells hold about N^(n-1) patterns; a softmax well recalls in one step, and that step is attention."""
    nets, config = run.config.modern_nets, run.config
    if not 64 <= config.modern_units <= 200:
        sys.exit("[modern] --modern-units must be 64 to 200: smaller nets hold too few patterns, larger ones too many")
    wells = measure_wells(config.modern_units, nets, run.device)
    exponential = measure_exponential((20, 35, 50), nets, run.device)
    record_wells(run, wells, exponential)
    x = digits()[0].unique(dim=0).to(run.device)
    gap, rises, n_steps = check_attention(x.cpu().double(), flipped(x[: config.n_cues], 0.1).cpu().double())
    run.metric("softmax step: largest gap to attention", gap, None, ("torch's own", 0), 1e-12)
    run.metric("softmax step: rises of E", rises, None, (f"theorem, {n_steps} updates", 0), 0)
    found, (grey, brightness) = measure_digits(x, config.n_cues), measure_grey(config.n_cues, run.device)
    record_recall(run, found, grey, brightness)
    run.figure(draw_capacity(wells, found), "capacity")
    run.figure(draw_digits(found), "digits")
    shares = {rule: hits.double().mean().item() for (kind, rule), hits in found.hits.items() if kind == "10 % flipped"}
    said = ", ".join(f"{rule} {share:.0%}" for rule, share in shares.items())
    run.say(f"of {found.n} digits in 64 units come back from 10 % flipped: {said}")
    by_dot, by_distance = (hits.double().mean().item() for hits in grey.values())
    run.say(f"grey digits, which differ in length: {by_dot:.0%} by dot product, {by_distance:.0%} by distance")


SECTIONS = {
    "descent": section_descent,
    "memories": section_memories,
    "capacity": section_capacity,
    "spurious": section_spurious,
    "rules": section_rules,
    "noise": section_noise,
    "modern": section_modern,
}


# %% Running the module: the same lines in all ten


# Copied from 01_ebm_foundations.py: in_notebook
def in_notebook():
    """Whether this file runs as cells: a kernel is there, whose command line is not ours and which shows figures itself."""
    return "ipykernel" in sys.modules or "__file__" not in globals()


# Copied from 01_ebm_foundations.py: echo
def echo(line=""):
    """Print a line at once; a reader that went away (`| head`) ends the printing and not the run."""
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL: a broken pipe on Windows
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress(tqdm):
    """A bar on a terminal; elsewhere (a pipe, a file) a line about every 20 seconds."""

    def __init__(self, iterable, label, **options):
        super().__init__(iterable, desc=label, disable=None, **options)
        self.label, self.first = label, options.get("initial", 0)

    def __iter__(self):
        last = time.monotonic()
        for done, item in enumerate(super().__iter__(), self.first + 1):
            yield item
            if self.disable and time.monotonic() - last > 20:
                echo(f"  ... {self.label}: {done} of {self.total}")
                last = time.monotonic()


# Copied from 01_ebm_foundations.py: to_numpy
def to_numpy(x):
    """A tensor as matplotlib, SciPy and scikit-learn want it: without gradient, on the CPU, a NumPy array."""
    return torch.as_tensor(x).detach().cpu().numpy()


# Copied from 01_ebm_foundations.py: must_be_finite
def must_be_finite(what, *values):
    """End the run in one line if numbers that leave a training or a sampler are not finite."""
    if not all(torch.as_tensor(value).isfinite().all() for value in values):
        sys.exit(f"{what} diverged: not every number is finite; a smaller learning rate or step size may cure it")


# Copied from 01_ebm_foundations.py: put_in_place
def put_in_place(partial, path):
    """Rename a file that is written whole; where a scanner holds it for a moment (Windows), wait up to 1.5 seconds."""
    for patience in (0.1, 0.2, 0.4, 0.8):
        with contextlib.suppress(PermissionError):
            partial.replace(path)
            return
        time.sleep(patience)
    partial.replace(path)


# Copied from 01_ebm_foundations.py: Run
class Run:
    """One run: its settings, what it measured, and the folder `out` that figures and metrics go to."""

    def __init__(self, config, seed, device, out, show):
        self.config, self.seed, self.device, self.out, self.show = config, seed, torch.device(device), out, show
        self.section, self.metrics, self.section_seconds = "", {}, {}

    def begin(self, section, sentence):
        """Open a section: what the lecture says in it, and the head of its table."""
        self.section = section
        echo(f"\n[{section}] {sentence}\n  {'':<44}{'measured':>12}{'std. error':>12}   beside it")

    def metric(self, name, value, sem=None, against=None, within=None):
        """Print and record a number: `sem`, its standard error over repeats; `against` = (label, reference), what
        stands beside it; `within`, how close to the reference it must be. One repeat has a sem of nan: none is shown."""
        sem, within = (None if x is None or math.isnan(x) else x for x in (sem, within))
        entry = {"value": float(value)} | ({} if sem is None else {"sem": float(sem)})
        line = f"  {name:<44}{entry['value']:>12.5g}" + (" " * 12 if sem is None else f"{entry['sem']:>12.2g}")
        if against is not None:
            entry |= {"against": against[0], "reference": float(against[1])}
            line += f"   {against[0]}: {entry['reference']:.5g}"
        if within is not None:
            entry |= {"within": float(within), "ok": abs(entry["value"] - entry["reference"]) <= float(within)}
            line += f" (within {entry['within']:.2g}: {'ok' if entry['ok'] else 'OFF'})"
        echo(line.rstrip())
        if not all(math.isfinite(number) for number in entry.values() if not isinstance(number, str)):
            sys.exit(f"[{self.section}] {name} is not finite: the run diverged; a smaller step or rate may cure it")
        self.metrics[f"{self.section}/{name}"] = entry

    def say(self, sentence):
        """Print what the numbers decide, in words."""
        echo(f"  => {sentence}")

    @contextlib.contextmanager
    def whole(self, name):
        """A path to write to, which becomes `out`/`name` once it is written whole, and never before."""
        partial = self.out / f".partial-{name}"
        try:
            yield partial
            put_in_place(partial, self.out / name)
        finally:
            partial.unlink(missing_ok=True)

    def figure(self, fig, name):
        """Save a figure as <section>_<name>.png; with --show, open it and go on when its window is closed."""
        with self.whole(f"{self.section}_{name}.png") as path:
            fig.savefig(path, dpi=120, bbox_inches="tight")
        if self.show:
            plt.show()
        plt.close(fig)

    def save(self):
        """Write metrics.json: the settings, and every number so far."""
        record = {"config": asdict(self.config), "seed": self.seed, "device": str(self.device), "torch": torch.__version__}
        record |= {"seconds": sum(self.section_seconds.values()), "section_seconds": self.section_seconds}
        with self.whole("metrics.json") as path:
            path.write_text(json.dumps(record | {"metrics": self.metrics}, indent=2), encoding="utf-8")
        echo(f"\n{record['seconds']:.1f} s; figures and metrics.json are in {self.out}")


# Copied from 01_ebm_foundations.py: working_device
def working_device(name):
    """The device to compute on; `auto`: the GPU if it really computes, else the CPU. ValueError if `name` cannot."""
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.ones(2, 2, device=wanted).mm(torch.ones(2, 2, device=wanted)).sum().item()
    except (RuntimeError, AssertionError) as error:  # no such device, or one that this build of torch has no code for
        if name != "auto":
            raise ValueError(f"no {name} device here that computes; try --device cpu") from None
        echo(f"a GPU is seen and cannot compute ({str(error).splitlines()[0]}): the CPU goes on without it")
        return "cpu"
    return wanted


# Copied from 01_ebm_foundations.py: parse_args
def parse_args(argv=None):
    """The flags that every module has, and one for each field of Config. Returns the flags and the Config."""
    here = Path(globals().get("__file__", "notebook.py"))  # a notebook has no file
    sections = "\n".join(f"  {name:<14}{section.__doc__}" for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(here.name, description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.epilog, parser.formatter_class = f"sections:\n{sections}", argparse.RawDescriptionHelpFormatter
    parser.error = lambda message: sys.exit(f"{here.name}: {message}")  # one line, without the usage
    parser.add_argument("--section", default="all", choices=["all", *SECTIONS], help="run one section only")
    parser.add_argument("--smoke", action="store_true", help="tiny settings: seconds, not results")
    parser.add_argument("--show", action="store_true", help="also open each figure in a window")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="auto: cuda, else cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs", here.stem), help="folder for what it writes")
    for name, hint in get_type_hints(Config, include_extras=True).items():
        flag, default, choices = f"--{name.replace('_', '-')}", getattr(Config, name), get_args(hint.__origin__) or None
        help_text = f"{hint.__metadata__[0]} (default {default})"
        parser.add_argument(flag, type=type(default), choices=choices, help=help_text)
    args = parser.parse_args([] if argv is None and in_notebook() else argv)

    given = {name: value for name, value in vars(args).items() if hasattr(Config, name) and value is not None}
    for name, value in given.items():
        if not isinstance(value, str) and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be positive and finite, not {value}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed must be between 0 and 2^32 - 1, not {args.seed}")
    if args.show and plt.get_backend().lower() == "agg":
        parser.error("--show needs a display, and there is none here")
    try:
        args.device = working_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write to {args.out}: {error.strerror}")
    suited = globals().get("SUITED", {}).get(given.get("dataset"), {})  # what a data set wants otherwise
    return args, replace(Config(), **(suited | (SMOKE if args.smoke else {}) | given))


# Copied from 01_ebm_foundations.py: main
def main(argv=None):
    """Run the chosen sections; their figures and metrics.json go to the output folder."""
    args, config = parse_args(argv)
    backend, threads = plt.get_backend(), torch.get_num_threads()
    run = Run(config, args.seed, args.device, args.out, args.show or (in_notebook() and backend.lower() != "agg"))
    for function in list(globals().values()):  # what an earlier run trained is not needed any more
        getattr(function, "cache_clear", int)()
    try:
        torch.set_num_threads(config.threads)
        if not run.show:
            plt.switch_backend("agg")
        for name in SECTIONS if args.section == "all" else [args.section]:
            run.begin(name, SECTIONS[name].__doc__)
            torch.manual_seed(args.seed)
            start = time.perf_counter()
            SECTIONS[name](run)
            run.section_seconds[name] = time.perf_counter() - start
        run.save()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        sys.exit(f"[{run.section}] needs more memory than there is: smaller settings, please")
    finally:  # a notebook goes on as it was
        torch.set_num_threads(threads)
        with contextlib.suppress(ImportError):
            plt.switch_backend(backend)


# Copied from 01_ebm_foundations.py: __main__
if __name__ == "__main__" and not in_notebook():  # in a notebook, call main(["--section", "..."]) yourself
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # a console that cannot print a folder's name
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except OSError as error:  # a full disk, a folder that vanished
        sys.exit(f"cannot go on: {error}")
