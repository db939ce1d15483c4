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

Run      python 02_hopfield_networks.py                  all sections, about 90 s on one CPU core
         python 02_hopfield_networks.py --section spurious --show
Writes   outputs/02_hopfield_networks/*.png and metrics.json
Before   module 01        Exercises  ex02_1 ... ex02_4
Sources  Hopfield (1982, 1984); Amit, Gutfreund & Sompolinsky (1985a, b); McEliece, Posner, Rodemich & Venkatesh (1987);
         Personnaz, Guyon & Dreyfus (1986); Storkey (1997); Cover (1965); Gardner (1988); Krotov & Hopfield (2016);
         Ramsauer et al. (2020)
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
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

if os.environ.get("MPLBACKEND", "").startswith("module://") and "ipykernel" not in sys.modules:
    del os.environ["MPLBACKEND"]  # a notebook's, inherited by what it starts

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import brentq, curve_fit, minimize_scalar, nnls
from scipy.special import erf, erfc, gammaln, ndtr, ndtri
from scipy.stats import binom
from sklearn.datasets import load_digits
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What you may want to change; every field is a command-line flag."""

    n_runs: Annotated[int, "descent: random runs of each kind of net"] = 1000
    n_sets: Annotated[int, "memories: sets of ten digits, and of ten random patterns"] = 30
    capacity_units: Annotated[int, "capacity: units of the largest net, at least 320; others a half, a quarter, ..."] = 4000
    capacity_nets: Annotated[int, "capacity: nets of the largest size; of the smaller ones, more"] = 6
    enumerated_units: Annotated[int, "spurious: units of the enumerated nets (even: no ties)"] = 16
    enumerated_nets: Annotated[int, "spurious: nets per number of patterns"] = 40
    rule_units: Annotated[int, "rules: units"] = 64
    rule_nets: Annotated[int, "rules: nets per load"] = 12
    n_epochs: Annotated[int, "rules: passes of the perceptron rule, at most"] = 300
    glauber_units: Annotated[int, "noise: units"] = 500
    glauber_sweeps: Annotated[int, "noise: sweeps, the first third thrown away"] = 120
    n_chains: Annotated[int, "noise: chains per temperature"] = 24
    modern_units: Annotated[int, "modern: units of the largest net with wells x^4, at least 64"] = 128
    modern_nets: Annotated[int, "modern: nets per size of the polynomial energies"] = 16
    n_cues: Annotated[int, "modern: digits to be recalled"] = 300
    threads: Annotated[int, "CPU threads: small matrices run no faster on several"] = 1


SMOKE = {"n_runs": 100, "n_sets": 2, "capacity_units": 320, "capacity_nets": 2, "enumerated_units": 8}
SMOKE |= {"enumerated_nets": 3, "rule_units": 16, "rule_nets": 3, "n_epochs": 10, "glauber_units": 40}
SMOKE |= {"glauber_sweeps": 6, "n_chains": 4, "modern_units": 64, "modern_nets": 2, "n_cues": 10}


def mean_and_sem(values):
    """Mean of independent repeats, and its standard error: nan of one repeat, which shows no spread."""
    values = values.cpu().double() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan


def allowed(sem, known=0.0):
    """How far a mean may lie from its reference, which is itself off by `known`; None where repeats show no spread."""
    return 3 * sem + known if sem > 0 else None


# %% 1. Energy descends
# Why does the net ever come to rest? Flip unit i, sᵢ -> -sᵢ, and collect the terms of (1) that contain it. Row i gives
# -½ sᵢhᵢ, column i by symmetry the same, and the zero diagonal keeps sᵢ itself out of hᵢ. So E = -sᵢhᵢ + (the rest), and
#     ΔE = 2 sᵢhᵢ.
# Rule (2) flips only if sᵢhᵢ < 0, so ΔE < 0: every flip lowers E. There are finitely many states, so the net stops, and
# it stops where no single flip would help: in a local minimum.
# If all units move at once, each counts on the others to stand still. They do not, and the argument is gone. What
# falls instead is L(t) = -s(t)ᵀ W s(t+1), since s(t+1) = sign(W s(t)) is the best partner that s(t) can have. It stops
# at s(t+2) = s(t): a fixed point or a two-cycle, nothing longer (Goles-Chacc, Fogelman-Soulie & Pellegrin 1985).
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


def section_descent(run):
    """One unit at a time the energy never rises; all at once it may, and runs can end in a cycle of two states."""
    n, nets, per_net = 64, max(2, run.config.n_runs // 50), min(50, run.config.n_runs)
    upper = torch.triu((torch.randint(4, (nets, n, n)) * 2 + 1) * random_patterns(nets, n, n), 1) / n
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for name, W in {"hebb": hebb(random_patterns(nets, 7, n)), "random": upper + upper.mT}.items():
        W, s = W.to(run.device), random_patterns(nets, per_net, n).to(run.device)
        together, falling = synchronous_path(W, s, 100), [energy(W, s)[None]]
        for _ in range(25):  # sweeps, each in a random order of its own
            path = asynchronous_path(W, s, torch.randperm(n).tolist())
            falling.append(energy(W, path[1:]))
            s = path[-1]
        falling = torch.cat(falling)
        rises = (falling.diff(dim=0) > 0).sum()
        run.metric(f"{name}_async_rises", rises, None, (f"theorem, in {falling[1:].numel()} updates", 0), 0)
        run.metric(f"{name}_async_at_rest", (s * (s @ W) > 0).all(-1).float().mean(), None, ("theorem", 1), 0)
        share = (together[-1] != together[-2]).any(-1).float().mean(1)  # over the runs of each net
        run.metric(f"{name}_sync_two_cycles", *mean_and_sem(share), ("one at a time", 0))
        longer = (together[-1] != together[-3]).any(-1).sum()
        run.metric(f"{name}_sync_longer_cycles", longer, None, ("theorem", 0), 0)
        pairs = -(together[:-1] * (together[1:] @ W)).sum(-1)  # L(t)
        run.metric(f"{name}_sync_rises_of_L", (pairs.diff(dim=0) > 0).sum(), None, ("theorem", 0), 0)
        rising = energy(W, together)
        run.metric(f"{name}_sync_runs_with_rises_of_E", *mean_and_sem((rising.diff(dim=0) > 0).any(0).float().mean(1)))
    axes[0].plot(to_numpy(falling[: 5 * n, 0, :12] / n), color="tab:blue", alpha=0.7)
    axes[0].set(
        xlabel="unit updates", ylabel="energy per unit, E / N", title="Random couplings, one unit at a time: E only falls"
    )
    axes[1].plot(to_numpy(rising[:20, 0, :12] / n), color="tab:orange", alpha=0.7, marker=".")
    axes[1].set(xlabel="steps of the whole net", xticks=range(0, 20, 5))
    axes[1].set_title(f"All units at once: {share.mean().item():.0%} of runs end in a two-cycle")
    run.figure(fig, "energy")


# %% 2. Memories
# Put a pattern, s = ξ, into (2) with Hebb's couplings (3):
#     hᵢ = (1/N) Σ_ν ξᵢ^ν Σ_{j≠i} ξⱼ^ν ξⱼ  =  ξᵢ (N-1)/N + (1/N) Σ_{other ν} ξᵢ^ν Σ_{j≠i} ξⱼ^ν ξⱼ.
# The first term is the memory holding itself up. The second, the crosstalk, is a sum over its *overlaps* with the
# others. Random patterns overlap by about 1/√N; handwritten digits by far more, since each is ink in the middle of an
# empty frame. It is correlation, more than number, that breaks Hebb's rule on real data.
# The cure of Personnaz, Guyon & Dreyfus (1986): demand W ξ = ξ for all patterns. W = X⁺X, the projector on their span,
# does it for any linearly independent patterns, however correlated. We take out its diagonal Dᵢᵢ to keep (1); then
# ξᵢhᵢ = 1 - Dᵢᵢ on a pattern, which is positive as long as P < N (unless a unit vector lies in the span).
#
# Speed. Near a memory most units stay, so `recall` jumps to the next unit that does flip, in the order of the plain loop
# (unit 0 to N-1, over and over): the same path and the same end, exactly. The first sweep, with many flips, goes block
# by block, so that what a block's flips do to the rest of the net is one matrix product.


def pseudo_inverse(patterns):
    """The projection rule with its diagonal removed: W = X⁺X for i ≠ j. (..., P, N) -> (..., N, N)."""
    projector = torch.linalg.pinv(patterns) @ patterns
    projector = (projector + projector.mT) / 2  # rounding must neither break the symmetry ...
    projector[projector.abs() < 1e-5] = 0  # ... nor pass for a coupling, when X⁺X is the identity
    projector.diagonal(dim1=-2, dim2=-1).zero_()
    return projector


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


def recalled_share(W, patterns, cues):
    """How often patterns come back with at most 5 % of their units wrong (overlap 0.9), from cues (K, nets, P, N).

    W (nets, N, N), patterns (nets, P, N) -> (nets, P)."""
    ends = recall(W, cues.transpose(0, 1).flatten(1, 2)).unflatten(1, (len(cues), -1))  # (nets, K, P, N)
    return ((ends * patterns[:, None]).mean(-1) >= 0.9).float().mean(1)


def show_pictures(ax, rows, side, labels, title):
    """Rows of pictures, each a (columns, side²) tensor, with a label each; ink (+1) is black."""
    pictures = torch.stack([row.cpu().unflatten(1, (side, side)) for row in rows])
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=math.nan).permute(0, 2, 1, 3)
    ax.imshow(to_numpy(padded.flatten(0, 1).flatten(1)), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_yticks([(side + 2) * (row + 0.5) - 0.5 for row in range(len(rows))], labels)
    ax.set(xticks=[], title=title)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def section_memories(run):
    """A damaged letter comes back; real digits resemble each other, which defeats Hebb's rule, not the pseudo-inverse."""
    letters = read_letters(LETTERS).to(run.device)
    W, targets = hebb(letters), letters.repeat(2, 1)
    cues = torch.cat([flipped(letters, 0.25), occluded(letters)])
    path = asynchronous_path(W, cues, list(range(100)) * 2)
    fig = plt.figure(figsize=(13, 3.6))
    grid = fig.add_gridspec(2, 3, hspace=0.12, wspace=0.3)
    for column, title in enumerate(["25 % of the pixels flipped", "upper half hidden"]):
        rows, labels = [each[4 * column :][:4] for each in (targets, cues, path[-1])], ["stored", "cue", "recalled"]
        show_pictures(fig.add_subplot(grid[:, column]), rows, 10, ["", "", ""] if column else labels, title)
    traces = {"energy E / N": energy(W, path) / 100, "overlap m": (path * targets).mean(-1)}
    for row, (label, trace) in enumerate(traces.items()):
        ax = fig.add_subplot(grid[row, 2])
        trace = to_numpy(trace)
        lines = ax.plot(trace[:, :4], color="tab:blue") + ax.plot(trace[:, 4:], color="tab:orange")
        ax.set(ylabel=label, title="" if row else "E falls to the memory")
        ax.tick_params(labelbottom=bool(row))
    ax.set_xlabel("unit updates, two sweeps")
    ax.legend([lines[0], lines[-1]], ["flipped", "hidden"], loc="lower right")
    run.figure(fig, "letters")
    many = recalled_share(W, letters[None], torch.stack([flipped(letters[None], 0.25) for _ in range(250)]))
    run.metric("letters_from_25pc_flipped", *mean_and_sem(many[0]), ("all", 1))
    for name, cue in {"lower": occluded(letters), "upper": occluded(letters.flip(1)).flip(1)}.items():
        run.metric(f"letters_from_{name}_half", (recall(W, cue) == letters).all(1).float().mean(), None, ("all", 1))

    sets = {"digits": one_of_each(run.config.n_sets).to(run.device)}
    sets["random"] = random_patterns(*sets["digits"].shape).to(run.device)
    expected = np.abs(64 - 2 * np.arange(65)) @ binom.pmf(np.arange(65), 64, 0.5) / 64
    shares, curves = np.arange(10) * 0.05, {}
    for name, x in sets.items():
        overlap = ((x @ x.mT).abs().sum((1, 2)) / 64 - 10) / 90
        run.metric(f"{name}_overlap", *mean_and_sem(overlap), ("random patterns, exactly", expected))
        cues = [torch.stack([flipped(x, share) for _ in range(20)]) for share in shares]
        for rule in (hebb, pseudo_inverse):
            W, label = rule(x), f"{name}_{rule.__name__}"
            theorem = {"against": ("theorem, P < N", 1), "within": 0} if rule is pseudo_inverse else {}
            run.metric(f"{label}_fixed", *mean_and_sem((x * (x @ W) > 0).all(-1).float().mean(1)), **theorem)
            curves[label] = to_numpy(torch.stack([recalled_share(W, x, cue) for cue in cues]))  # (shares, sets, 10)
            run.metric(f"{label}_from_10pc_flipped", *mean_and_sem(curves[label][2].mean(1)))
            run.metric(f"{label}_from_lower_half", *mean_and_sem(recalled_share(W, x, occluded(x)[None]).mean(1)))

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=(1, 1.15))
    styles = {"random_hebb": "tab:gray", "digits_hebb": "tab:orange", "digits_pseudo_inverse": "tab:blue"}
    for label, color in styles.items():
        left.plot(shares, curves[label].mean((1, 2)), "o-", color=color, label=label.replace("_", ", ", 1).replace("_", "-"))
        band = np.quantile(curves[label], (0.1, 0.9), axis=(1, 2))
        left.fill_between(shares, *band, color=color, alpha=0.15, lw=0)
    left.set(xlabel="share of the cue's pixels flipped", ylabel="recalled (at most 5 % of pixels wrong)")
    left.set_title("Ten patterns in 64 units: digits defeat Hebb's rule")
    left.legend(title="mean, 10-90 % band", fontsize=9, borderaxespad=0.2)
    x = sets["digits"][0]
    cue = flipped(x, 0.1)
    rows = [x, cue, recall(hebb(x), cue), recall(pseudo_inverse(x), cue)]
    labels = ["stored", "cue, 10 %\nflipped", "Hebb", "pseudo-\ninverse"]
    show_pictures(right, rows, 8, labels, "Hebb's rule blends what it has seen")
    run.figure(fig, "basins")


# %% 3. Capacity
# How many random patterns fit? There are three answers to three questions.
# (a) One unit, one step. By the field above, N ξᵢhᵢ = (N-1) + a sum of (P-1)(N-1) fair coins (each has its own ξⱼ^ν, so
#     they are independent). Its error rate is a binomial tail, exactly, and with N and P large
#         P(error) = ½ erfc(√(N/(2P))).
# (b) A whole pattern without error, almost surely: N·P(error) -> 0. The tail is about exp(-N/(2P)), so P = N/(2 ln N);
#     for all P patterns at once N/(4 ln N) (McEliece et al. 1987). At finite N, as if units erred independently,
#     (1 - P(error))^N of the patterns are fixed points.
# (c) Errors allowed, as long as the state stays close while errors breed errors. Mean-field theory at T = 0, with
#     crosstalk of variance αr around the field m of the pattern (Amit, Gutfreund & Sompolinsky 1985b):
#         m = erf(m/√(2αr)),   √r = 1/(1-C),   C = √(2/(παr)) exp(-m²/(2αr)).
#     With y = m/√(2αr) they become one line:  √(2α) = erf(y)/y - (2/√π) exp(-y²),   m = erf(y).
#     Its right side has a maximum: beyond α_c = 0.138 there is no solution, and m falls from 0.967 at once. (Not 0.15:
#     that was the estimate of 1982. Replica symmetry breaking moves it to 0.1382, Steffan & Kuehn 1994.)
# A finite net blurs the jump: the load at which it fails varies from net to net by about 1/√N. Then the share of
# patterns retained depends on N and α through x = √N(α - α_c) alone, and α_c is where the curves of all sizes cross. We
# fit share = Φ(a - bx + cx²), in which nothing knows of 0.138. Smaller nets put the crossing lower, so this uses N >= 1000.


def ags_load(y):
    """The load α at which y = m/√(2αr) solves the equations of (c)."""
    return 0.5 * (erf(y) / y - 2 / math.sqrt(math.pi) * np.exp(-(y**2))) ** 2


def ags_critical():
    """α_c, the largest such load, and its y."""
    best = minimize_scalar(lambda y: -ags_load(y), bounds=(1, 3), method="bounded", options={"xatol": 1e-9})
    return -best.fun, best.x


def ags_overlap(load):
    """The overlap m of the retrieval state at a load below α_c, for N to infinity."""
    return erf(brentq(lambda y: ags_load(y) - load, ags_critical()[1], 20))


def bit_error(n, p):
    """(a), exactly: P(N ξᵢhᵢ < 0), that is, a sum of (P-1)(N-1) fair ±1 coins falls below -(N-1)."""
    coins = (p - 1) * (n - 1)
    return binom.cdf(math.ceil((coins - (n - 1)) / 2) - 1, coins, 0.5)


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


def retained_model(inputs, critical, a, b, c):
    """Share of patterns retained as one curve in x = √N(α - α_c); inputs = (N, α)."""
    x = np.sqrt(inputs[0]) * (inputs[1] - critical)
    return ndtr(a - b * x + c * x**2)


def section_capacity(run):
    """Beyond 0.138 N random patterns Hebb's memory breaks down at once; recall without error ends at N / (2 ln N)."""
    largest, n_nets = run.config.capacity_units, run.config.capacity_nets
    if largest < 320:
        sys.exit("[capacity] --capacity-units must be at least 320: smaller nets leave nothing to fit")
    sizes, loads = [largest // 2**k for k in (4, 3, 2, 1, 0)], [0.1, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18]
    inputs, shares, overlaps = np.array([(n, round(load * n) / n) for n in sizes for load in loads]).T, [], []
    for n, load in Progress(inputs.T, "capacity"):
        n_repeats = n_nets * min(8, largest // round(n))
        m = overlaps_at_rest(round(n), round(load * n), n_repeats, 16, run.device)
        mean, sem = mean_and_sem((m > 0.7).float().mean(1))  # 0.7: in the gap between about 0.97 and 0.35
        shares.append((mean, math.hypot(sem, 1 / m.numel())))  # an error of zero would be too sure
        overlaps.append(mean_and_sem(m.mean(1)))
    shares, overlaps = np.array(shares), np.array(overlaps)
    theory, y_critical = ags_critical()
    fits = {}
    for name, of in {"alpha_c_of_the_smaller_nets": inputs[0] <= sizes[2], "alpha_c": inputs[0] >= sizes[2]}.items():
        guess, data = (0.15, 1, 1, 0), (inputs[:, of], *shares[of].T)
        fits[name], covariance = curve_fit(retained_model, data[0], data[1], guess, data[2], absolute_sigma=True)
        sem = covariance[0, 0] ** 0.5
        within = allowed(sem) if name == "alpha_c" else None
        run.metric(name, fits[name][0], sem, ("Amit, Gutfreund, Sompolinsky", theory), within)
    for k in (-7, -6):
        predicted = ags_overlap(inputs[1, k])
        run.metric(f"overlap_at_load_{loads[k]}", *overlaps[k], ("theory, N to infinity", predicted))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    colors, y = plt.cm.Blues(np.linspace(0.35, 1, len(sizes))), np.linspace(y_critical, 4, 200)
    axes[0].plot(np.r_[theory, ags_load(y)], np.r_[0.2, erf(y)], "k--", label="theory, $N \\to \\infty$")
    for n, color in zip(sizes, colors, strict=True):
        of, bars = inputs[0] == n, {"color": color, "marker": "o", "ms": 4, "capsize": 2, "label": f"N = {n}"}
        axes[0].errorbar(inputs[1, of], *overlaps[of].T, **bars)
        axes[1].errorbar(n**0.5 * (inputs[1, of] - fits["alpha_c"][0]), *shares[of].T, ls="", **bars)
    axes[0].set(xlim=(0.098, 0.182), xlabel="load $\\alpha$ = P / N", ylabel="overlap with the pattern, at rest")
    axes[0].set_title(f"Memory breaks down at $\\alpha_c$ = {theory:.3f}, sharper as N grows")
    axes[0].legend(loc="lower left")
    line = np.linspace(-2.5, 3, 200)
    axes[1].plot(line, retained_model((1, line), 0, *fits["alpha_c"][1:]), "tab:orange", label="fit", zorder=0)
    axes[1].axvline(0, color="k", ls=":")
    axes[1].set(xlabel="$\\sqrt{N}\\,(\\alpha - \\alpha_c)$", ylabel="share of patterns retained (m > 0.7)")
    axes[1].set_title(f"N ≥ {sizes[2]} share one curve with $\\alpha_c$ = {fits['alpha_c'][0]:.4f} ± {sem:.4f}")
    run.figure(fig, "retrieval")

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for load in (0.105, 0.138, 0.185):
        p = round(load * largest)
        stays = [keeps_sign(random_patterns(p, largest).to(run.device)).float().mean() for _ in range(4 * n_nets)]
        error, sem = mean_and_sem(1 - torch.stack(stays))
        exact, limit = bit_error(largest, p), erfc(math.sqrt(largest / (2 * p))) / 2
        run.metric(f"bit_error_at_load_{load}", error, sem, ("binomial tail, exactly", exact), allowed(sem))
        known = allowed(sem, abs(exact - limit))  # the limit's own error at this N
        run.metric(f"bit_error_limit_{load}", error, sem, ("erfc(sqrt(N/2P))/2", limit), known)
        label = f"measured, N = {largest}, 3 s.e." if load == 0.105 else None
        axes[0].errorbar(load, error, 3 * sem, color="tab:orange", marker="o", ls="", capsize=3, label=label)
    line = np.linspace(0.08, 0.2, 100)
    axes[0].plot(line, erfc(np.sqrt(1 / (2 * line))) / 2, "k--", label="$\\frac{1}{2}$ erfc $\\sqrt{N/(2P)}$")
    axes[0].set(yscale="log", xlabel="load $\\alpha$ = P / N", ylabel="units wrong after one step from a pattern")
    axes[0].set_title("One step: the error rate is a Gaussian tail")
    axes[0].legend()
    ratios = [0.5, 0.75, 1, 1.25, 1.5, 2, 2.5]
    for n, color in zip(sizes[::2], colors[::2], strict=True):
        counts, repeats = [max(2, round(ratio * n / (2 * math.log(n)))) for ratio in ratios], 2 * n_nets * largest // n
        free = [
            [keeps_sign(random_patterns(p, n).to(run.device)).all(1).float().mean() for _ in range(repeats)] for p in counts
        ]
        mean, sem = np.array([mean_and_sem(shares) for shares in free]).T
        predicted = [(1 - bit_error(n, p)) ** n for p in counts]
        axes[1].errorbar(ratios, mean, sem, color=color, marker="o", ls="", capsize=3, label=f"N = {n}")
        axes[1].plot(ratios, predicted, "k--", lw=1, label="if units erred independently" if n == largest else None)
    run.metric("error_free_at_N_over_2lnN", mean[2], sem[2], ("units independent", predicted[2]), allowed(sem[2]))
    axes[1].axvline(1, color="k", ls=":")
    axes[1].set(xlabel="P in units of N / (2 ln N)", ylabel="share of patterns without any error", ylim=(0, 1.03))
    axes[1].set_title("No error at all: the edge at N / (2 ln N) forms slowly")
    axes[1].legend()
    run.figure(fig, "errors")


# %% 4. Spurious states
# The net has minima that nobody stored. With 16 units all 65,536 states can be visited, so they are counted, not sampled:
#   stored      the patterns that are minima;
#   mirrored    their negatives. E(-s) = E(s): as legitimate as the patterns, and *not* called spurious;
#   mixtures    sign(±ξ¹ ± ξ² ± ξ³): overlap ½ with each of three patterns, and E/N near -3/8 where a pattern has -1/2
#               (Amit, Gutfreund & Sompolinsky 1985a). A blend of two is no minimum: half of its units are undecided;
#   others      minima that blend more patterns, or none: the first of the spin-glass states that take over at high load.
# P odd and N even make every N hᵢ odd, so that ties cannot happen.


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


def section_spurious(run):
    """Counting all minima of a small net, the spurious ones soon outnumber the memories and catch most of the states."""
    n, nets, names = run.config.enumerated_units, run.config.enumerated_nets, ["stored", "mirrored", "mixtures", "others"]
    if n > 20:
        sys.exit(f"[spurious] --enumerated-units must be at most 20: {n} have 2^{n} states, and all of them are visited")
    states, loads, heights, outside, unpaired = all_states(n).to(run.device), [1, 3, 5, 7], [], 0, 0
    for p in loads:
        counts, caught = [], []
        for net in range(nets):
            patterns = random_patterns(p, n).to(run.device)
            W = agreements(patterns)
            minima = states[is_minimum(W, states)]
            counts.append(torch.bincount(classify(minima, patterns), minlength=4))
            unpaired += (classify(-minima, patterns) == 0).sum() != counts[-1][0]
            if net < max(2, nets // 4):  # and where does each of the 2^N states flow?
                ends = recall(W, states)
                outside += (~is_minimum(W, ends)).sum()
                caught.append(torch.bincount(classify(ends, patterns), minlength=4) / len(states))
        counts, caught = torch.stack(counts).cpu(), torch.stack(caught).cpu()
        for kind, name in enumerate(names):
            reference = ("patterns", p) if kind < 2 else None
            run.metric(f"{name}_P{p}", *mean_and_sem(counts[:, kind]), reference)
        run.metric(f"states_caught_by_spurious_P{p}", *mean_and_sem(caught[:, 2:].sum(1)))
        heights.append((counts.double().mean(0).numpy(), caught.double().mean(0).numpy()))
    run.metric("nets_with_unequal_mirrors", unpaired, None, ("E(-s) = E(s)", 0), 0)
    run.metric("runs_ending_outside_the_list", outside, None, (f"theorem, all {2**n} states", 0), 0)

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for ax, data in zip(axes, zip(*heights, strict=True), strict=True):
        stacked = np.stack(data).T  # (kinds, loads)
        for kind, color in enumerate(["tab:blue", "lightskyblue", "tab:orange", "tab:gray"]):
            ax.bar([str(p) for p in loads], stacked[kind], 0.65, stacked[:kind].sum(0), color=color, label=names[kind])
        ax.set_xlabel(f"patterns stored in {n} units, P")
    axes[0].set(ylabel="minima per net", title=f"The minima among all {2**n:,} states")
    axes[0].legend(loc="upper left")
    axes[1].set(
        ylabel="share of all states", title=f"Where they flow: {stacked[2:, -1].sum():.0%} to spurious minima at P = 7"
    )
    run.figure(fig, "minima")


# %% 5. Better rules
# Hebb's rule wastes the couplings. On the same patterns, with the same zero diagonal:
#   Hebb            one pass, local.
#   Storkey (1997)  one pass, local, but each pattern is corrected for what is stored already: with the field that i
#                   would feel from all but j, hᵢⱼ = Σ_{k≠i,j} Wᵢₖ ξₖ = hᵢ - Wᵢⱼξⱼ,
#                       Wᵢⱼ += (ξᵢξⱼ - ξᵢhⱼᵢ - hᵢⱼξⱼ)/N   =   (ξᵢξⱼ - ξᵢhⱼ - hᵢξⱼ + 2Wᵢⱼ)/N.
#                   N/√(2 ln N) patterns without any error for large N; half of the patterns survive well beyond that.
#   Pseudo-inverse  section 2: stores P < N patterns. At P = N it is W = 1, and without the diagonal nothing.
#   Perceptron      unit i is a perceptron with N-1 inputs and P examples. Whenever ξᵢhᵢ ≤ 0: Wᵢⱼ += ξᵢξⱼ/N. It finds
#                   couplings if there are any, in time. The price: Wᵢⱼ ≠ Wⱼᵢ, so (1) is no energy for it.
# How much can *any* rule store? Of the 2^P ways to label P points in general position in N-1 dimensions,
#     C = 2 Σ_{k<N-1} binom(P-1, k)
# can be cut off by a plane through the origin (Cover 1965). So a unit can be trained with probability C/2^P =
# Pr[Binomial(P-1, ½) ≤ N-2]: one half at P = 2(N-1) and, as N grows, a step at α = 2, Gardner's (1988) bound.
# Whether a unit can be trained is decided without training (Gordan's theorem): it cannot if and only if some convex
# combination of the vectors ξᵢξ (unit i left out), one for each pattern, is zero: non-negative least squares.


def storkey(patterns):
    """Storkey's (1997) rule, one pattern after another. (..., P, N) -> (..., N, N)."""
    W = torch.zeros_like(patterns.mT @ patterns)
    for x in patterns[..., None].unbind(-3):  # (..., N, 1)
        cross = x @ (W @ x).mT
        W = W + (x @ x.mT - cross - cross.mT + 2 * W) / patterns.shape[-1]
        W.diagonal(dim1=-2, dim2=-1).zero_()
    return W


def perceptron(patterns, n_epochs):
    """The perceptron rule from Hebb's couplings on, for all units of all nets: (nets, P, N) -> (nets, N, N).

    W[..., j, i] acts from j on i. Stops when all units are right on all patterns, or after `n_epochs` passes."""
    W = agreements(patterns)  # N W stays whole, so "exactly zero" is no matter of rounding
    own = W.diagonal(dim1=-2, dim2=-1)  # a view: the rule below writes to it too, so the field leaves it out
    for _ in range(n_epochs):
        mistakes = 0
        for x in patterns.unbind(1):  # (nets, N)
            wrong = x * (W @ x[..., None]).squeeze(-1) - own <= 0
            mistakes = mistakes + wrong.sum()
            W.baddbmm_((x * wrong)[..., None], x[:, None])
        if not mistakes:
            break
    own.zero_()
    return W.mT.contiguous().mul_(1 / patterns.shape[-1])


def cover(n_inputs, p):
    """Share of the labellings of p points in general position that a perceptron without threshold can learn."""
    return binom.cdf(n_inputs - 1, p - 1, 0.5)


def can_store(patterns, unit):
    """Whether any couplings make `unit` right in all patterns (P, N), numpy: exact, by Gordan's theorem."""
    vectors = np.delete(patterns * patterns[:, [unit]], unit, 1)
    system = np.vstack([vectors.T, np.ones(len(vectors))])  # Σ λ ξᵢξ = 0 and Σ λ = 1 with λ ≥ 0: solvable?
    return nnls(system, np.eye(len(system))[-1])[1] > 1e-6


def load_at_half(loads, shares):
    """The load at which a falling curve first goes below one half, by straight lines between the points."""
    below = np.flatnonzero(np.asarray(shares) < 0.5)
    if not len(below) or not below[0]:
        return loads[below[0] if len(below) else -1]
    (x0, x1), (y0, y1) = loads[below[0] - 1 : below[0] + 1], shares[below[0] - 1 : below[0] + 1]
    return x0 + (y0 - 0.5) * (x1 - x0) / (y0 - y1)


def section_rules(run):
    """On the same patterns Storkey stores more than Hebb, the pseudo-inverse N, the perceptron towards 2 N, the bound."""
    n, nets, n_epochs = run.config.rule_units, run.config.rule_nets, run.config.n_epochs
    if n < 2:
        sys.exit("[rules] --rule-units must be at least 2: a unit alone has no couplings")
    loads = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 1, 1.25, 1.5, 1.75, 2, 2.25]
    rules = {"hebb": hebb, "storkey": storkey, "pseudo_inverse": pseudo_inverse}
    rules["perceptron"] = functools.partial(perceptron, n_epochs=n_epochs)
    fixed, healed, trained, possible = {name: [] for name in rules}, {name: [] for name in rules}, {}, {}
    for load in Progress(loads, "rules"):
        x = random_patterns(nets, max(2, round(load * n)), n).to(run.device)
        cues = flipped(x, 0.1)
        for name, rule in rules.items():
            W = rule(x)
            right = x * (x @ W) > 1e-5  # beyond rounding: W = 0 stores nothing
            fixed[name].append(right.all(-1).float().mean(1).cpu().numpy())
            ends = recall(W, cues, max_flips=20 * n)
            healed[name].append(((ends * x).mean(-1) >= 0.9).float().mean().item())
        if load > 1.1:
            trained[load] = right.all(1).float().mean(1)
            numbers = x.cpu().double().numpy()
            possible[load] = mean_and_sem([np.mean([can_store(one, unit) for unit in range(n)]) for one in numbers])
    references = {"hebb": None, "storkey": ("no error, 1/sqrt(2 ln N)", (2 * math.log(n)) ** -0.5)}
    references |= {"pseudo_inverse": ("theorem, P < N", 1), "perceptron": ("Gardner, any rule", 2)}
    for name, reference in references.items():
        halves = [load_at_half(loads, curve) for curve in np.array(fixed[name]).T]
        run.metric(f"load_half_fixed_{name}", *mean_and_sem(halves), reference)
    for load, (mean, sem) in possible.items():
        exact = cover(n - 1, round(load * n))
        rare = math.sqrt(exact * (1 - exact) / (nets * n))  # where all nets agree, their spread says too little
        run.metric(f"units_trainable_at_{load}", mean, sem, ("Cover, exactly", exact), 3 * max(sem, rare))
        run.metric(f"units_trained_at_{load}", *mean_and_sem(trained[load]), ("Cover, any rule", exact))

    fig, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    names = ["Hebb", "Storkey", "pseudo-inverse", f"perceptron, {n_epochs} passes"]
    for name, label, color in zip(rules, names, ("tab:gray", "tab:green", "tab:blue", "tab:orange"), strict=True):
        curve = [share.mean() for share in fixed[name]]
        axes[0].plot(loads, curve, "o-", ms=4, color=color)
        axes[0].text(load_at_half(loads, curve) - 0.05, 0.35, label, rotation=90, color=color, ha="right", va="center")
        axes[1].plot(loads, healed[name], "o-", ms=4, color=color, label=label)
    line = np.arange(n, round(2.25 * n) + 1)
    axes[0].plot(line / n, cover(n - 1, line), "k--")
    axes[0].errorbar(list(possible), *zip(*possible.values(), strict=True), fmt="kx")
    axes[0].text(1.93, 0.3, "units any rule can train", rotation=90, ha="right", va="center")
    axes[0].set(xlabel="load $\\alpha$ = P / N", ylabel=f"share of patterns that are fixed points, N = {n}")
    axes[0].set_title("Stored: each rule beats the one before")
    axes[1].set(xlabel="load $\\alpha$ = P / N", ylabel="share recalled, 10 % of units flipped", xlim=(0, 1.3))
    axes[1].set_title("Recalled: to store is not yet to correct")
    axes[1].legend()
    run.figure(fig, "loads")


# %% 6. Noise
# At temperature T a unit obeys its field only on average. Its two states differ by E(-) - E(+) = 2hᵢ, so
#     P(+)/P(-) = exp(2hᵢ/T),   P(+) = σ(2hᵢ/T),   <sᵢ> = 2σ(2hᵢ/T) - 1 = tanh(hᵢ/T).       (σ(h/T) is the usual slip)
# At low load the field near a pattern ξ is hᵢ = mξᵢ. Average over the units:  m = tanh(m/T). Expanded for small m,
# m = m/T - m³/(3T³): a solution with m > 0 exists only below T = 1. There memory melts.
# For P = 1 it is exact at any N: count σᵢ = sᵢξᵢ, M = Σσᵢ; then E = -(M² - N)/(2N), and <|m|> is a sum over N+1 values of M.
# Hopfield (1984) met the same equation without chance. Units with inputs u and graded outputs V = tanh(βu),
#     du/dt = -u + WV,    L = -½ VᵀWV + Σᵢ ∫₀^Vᵢ (artanh v)/β dv,    dL/dt = -Σᵢ V'(uᵢ) (duᵢ/dt)² ≤ 0,
# rest where V = tanh(βWV), the mean-field equation at T = 1/β. For one pattern, V = mξ with m = tanh(β(1 - 1/N)m).


def glauber(W, s, temperature, n_sweeps=1):
    """Eq. (4), unit after unit: W (..., N, N), s (..., B, N), temperature a number or (B,) -> the last states."""
    s = s.clone()
    for _ in range(n_sweeps):
        for unit, coin in enumerate(torch.rand(s.shape[-1], *s.shape[:-1]).to(s.device)):
            field = (s @ W[..., unit, :, None]).squeeze(-1)
            s[..., unit] = torch.where(coin < torch.sigmoid(2 * field / temperature), 1.0, -1.0)
    return s


def one_pattern_overlap(n, temperature):
    """Exact <|m|> for P = 1: sum over M = -n ... n of |M|/n with weight binom(n, (n+M)/2) exp((M² - n)/(2nT))."""
    up = np.arange(n + 1)
    m = 2 * up / n - 1
    log_weight = n * m**2 / (2 * temperature) - gammaln(up + 1) - gammaln(n - up + 1)
    weight = np.exp(log_weight - log_weight.max())
    return np.abs(m) @ weight / weight.sum()


def mean_field_overlap(temperature):
    """The stable solution of m = tanh(m/T): positive below T = 1, zero from there on."""
    return brentq(lambda m: m - math.tanh(m / temperature), 1e-9, 1) if temperature < 1 - 1e-9 else 0.0


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


def section_noise(run):
    """With temperature T the overlap follows m = tanh(m/T): memory melts at T = 1; graded units obey the same equation."""
    n, n_chains, sweeps = run.config.glauber_units, run.config.n_chains, run.config.glauber_sweeps
    temperatures, means = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.8], {}
    for p, nets in ((1, 1), (5, max(2, n_chains // 4))):
        x, per_net = random_patterns(nets, p, n).to(run.device), math.ceil(n_chains / nets)
        s, W, total, burn = x[:, :1].repeat(1, per_net * len(temperatures), 1), hebb(x), 0, sweeps // 3
        each = torch.tensor(temperatures, device=run.device).repeat(per_net)
        for sweep in Progress(range(sweeps), f"noise, P = {p}"):
            s = glauber(W, s, each)
            if sweep >= burn:  # the largest overlap: in a small net chains do visit other patterns, and the mirror
                total = total + (s @ x.mT / n).abs().amax(-1) / (sweeps - burn)
        chains = total.unflatten(1, (per_net, -1))  # independent are the nets, or the chains of the one net
        means[p] = np.array([mean_and_sem(t) for t in (chains[0] if nets == 1 else chains.mean(1)).unbind(-1)]).T
    exact = [one_pattern_overlap(n, t) for t in temperatures]
    for t in (0.4, 0.6, 0.8, 0.9, 1.0, 1.2):
        k, limit = temperatures.index(t), mean_field_overlap(t)
        mean, sem = means[1][:, k]
        run.metric(f"overlap_P1_T{t}", mean, sem, ("exact at this N", exact[k]), allowed(sem))
        known = allowed(sem, abs(exact[k] - limit))  # the limit's own error at this N
        run.metric(f"overlap_P1_T{t}_limit", mean, sem, ("m = tanh(m/T)", limit), known)
        run.metric(f"overlap_P5_T{t}", *means[5][:, k], ("m = tanh(m/T)", limit))
    # m = tanh(m T_c/T) solved for T_c: every overlap in the cold phase is an estimate of where the hot one begins.
    t, m, sem, truth = np.array(temperatures)[2:5], *means[1][:, 2:5], np.array(exact)[2:5]
    if min(m) > 0 and max(*m, *truth) < 1 - 1e-6:
        slope = t * (1 / (m * (1 - m**2)) - np.arctanh(m) / m**2)  # dT_c/dm
        sem, finite = np.linalg.norm(slope * sem) / 3, (t * np.arctanh(truth) / truth).mean()
        critical = (t * np.arctanh(m) / m).mean()
        run.metric("melting_temperature", critical, sem, ("mean field", 1), allowed(sem, abs(finite - 1)))
    else:
        run.say("overlaps of 0 or 1 name no melting temperature: raise --glauber-units or --glauber-sweeps")

    five, one, rises, traces = random_patterns(5, 100).double(), random_patterns(1, 100).double(), 0, {}
    for gain in (0.5, 1.5, 3.0, 10.0):
        u = 0.2 * torch.randn(100, 100, dtype=torch.float64)
        traces[gain] = graded_energy(hebb(five), graded_path(hebb(five), u, gain, 400), gain)
        rises += (traces[gain].diff(dim=0) > 1e-12 * 100).sum()  # what rounding can do to sums of this size
        m = brentq(lambda m, gain=gain: m - math.tanh(0.99 * gain * m), 1e-6, 1) if gain > 1.02 else 0
        V = torch.tanh(gain * graded_path(hebb(one), 0.1 * one, gain, 1000)[-1])
        run.metric(f"graded_overlap_gain{gain:g}", (V * one).mean(), None, ("m = tanh(0.99 gain m)", m), 1e-6)
    run.metric("graded_rises_of_L", rises, None, (f"theorem, in {4 * 100 * 400} steps", 0), 0)

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    m = np.linspace(1 - 1e-9, 1e-3, 2000)
    left.plot(np.r_[m / np.arctanh(m), 1.9], np.r_[m, 0], "k--", label="m = tanh(m/T)")
    fine = np.linspace(0.15, 1.9, 80)
    left.plot(fine, [one_pattern_overlap(n, t) for t in fine], "k:", label=f"exact, P = 1, N = {n}")
    for p, color in ((1, "tab:blue"), (5, "tab:orange")):
        left.errorbar(temperatures, *means[p], color=color, fmt="o", ms=5, capsize=2, label=f"Glauber, P = {p}")
    left.set(xlabel="temperature T", ylabel="largest overlap |m| with a pattern", title="Memory melts at T = 1")
    left.legend()
    for gain, color in ((1.5, "tab:blue"), (3.0, "tab:orange"), (10.0, "tab:gray")):
        lines = right.plot(0.1 * np.arange(151), traces[gain][:151, :8] / 100, color=color, alpha=0.7)
        lines[0].set_label(f"gain {gain:g}, T = {1 / gain:.2g}")
    right.set(xlabel="time", ylabel="L per unit", title="Graded units: L only falls")
    right.legend()
    run.figure(fig, "melting")


# %% 7. Modern Hopfield networks
# Up to a constant Hebb's energy is -(1/(2N)) Σ_μ (ξ^μ·s)²: each memory digs a parabola, so wide that the tails of many
# drown the one. Sharper wells hold more (Krotov & Hopfield 2016):
#     E(s) = -Σ_μ F(ξ^μ·s),  F(x) = xⁿ,    sᵢ <- sign Σ_μ [F(c_μ + ξᵢ^μ) - F(c_μ - ξᵢ^μ)],    c_μ = Σ_{j≠i} ξⱼ^μ sⱼ.
# At a pattern, it contributes Nⁿ - (N-2)ⁿ ≈ 2n Nⁿ⁻¹; each other one a random sign times G(c) = (c+1)ⁿ - (c-1)ⁿ, with c a sum
# of N-1 coins, of variance E[G²] ≈ 4n² (2n-3)!! Nⁿ⁻¹. A given error rate is reached at P proportional to Nⁿ⁻¹.
# With exponential wells P may grow exponentially. For real-valued states that is (5), with
#     lse(β, z) = (1/β) log Σ_μ exp(βz_μ).
# Its update can only descend: lse is convex, so it lies above its tangent at ξ; replace it by the tangent, and minimise
#     -ξ'ᵀ Xᵀ softmax(βXξ) + ½|ξ'|²     over ξ':     ξ' = Xᵀ softmax(βXξ).
# Call ξ the query, X the keys and the values, β = 1/√d: this is the attention of transformers (Ramsauer et al. 2020).
# The price is plain: X itself is kept, P·N numbers, and for β -> ∞ one step is a search for the nearest neighbour.


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


def polynomial_load(n, degree, error):
    """The P at which one step from a pattern gets a share `error` of units wrong: Gaussian noise, exact moments."""
    c = 2.0 * np.arange(n) - (n - 1)
    variance = binom.pmf(np.arange(n), n - 1, 0.5) @ ((c + 1) ** degree - (c - 1) ** degree) ** 2
    return 1 + ((n**degree - (n - 2.0) ** degree) / ndtri(error)) ** 2 / variance


def measured_load(n, degree, error, device="cpu"):
    """`polynomial_load` measured on one net. A tie is half wrong, and Gaussian noise makes probit(error) ~ -1/√P: a line
    through five points (log -probit, log P)."""
    counts = [max(4, round(factor * polynomial_load(n, degree, error))) for factor in (0.5, 0.7, 1, 1.4, 2)]
    patterns, logs = random_patterns(counts[-1], n).to(device), []
    for p in counts:
        start = patterns[: min(p, 50)]
        pull = polynomial_field(patterns[:p], start, degree) * start
        wrong = 0.5 * ((pull < 0).float() + (pull <= 0).float()).mean().item()
        logs.append(math.log(-ndtri(min(max(wrong, 0.5 / start.numel()), 0.45))))
    return math.exp(np.polyval(np.polyfit(logs, np.log(counts), 1), math.log(-ndtri(error))))


def softmax_energy(patterns, state, beta):
    """Eq. (5), plus the constant (log P)/β + ½ max|x|² that makes it ≥ 0; Ramsauer et al. (2020). (P, d), (B, d) -> (B,)."""
    constant = math.log(len(patterns)) / beta + 0.5 * patterns.square().sum(1).max()
    return -(beta * state @ patterns.T).logsumexp(1) / beta + 0.5 * state.square().sum(1) + constant


def softmax_update(patterns, state, beta):
    """One step of eq. (5), a softmax-weighted mean of the patterns: (P, d), (B, d) -> (B, d)."""
    return (beta * state @ patterns.T).softmax(1) @ patterns


def settle(patterns, state, beta, max_steps=200):
    """`softmax_update` until it moves by less than 1e-4: (P, d), (B, d) -> (B, d)."""
    for _ in range(max_steps):
        before, state = state, softmax_update(patterns, state, beta)
        if (state - before).abs().max() < 1e-4:
            break
    return state


def section_modern(run):
    """Sharper wells hold about N^(n-1) patterns; a softmax well recalls in one step, and that step is attention."""
    nets, error, n_cues = run.config.modern_nets, 0.01, run.config.n_cues
    if run.config.modern_units < 64:
        sys.exit("[modern] --modern-units must be at least 64: smaller nets hold too few patterns to count")
    factors = {2: (1, 2, 4, 8), 3: (0.375, 0.5, 0.75, 1, 1.5), 4: (0.375, 0.5, 0.75, 1)}
    sizes = {degree: [round(factor * run.config.modern_units) for factor in row] for degree, row in factors.items()}
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for (degree, ns), color in zip(sizes.items(), ("tab:gray", "tab:blue", "tab:orange"), strict=True):
        loads = np.array([[measured_load(n, degree, error, run.device) for n in ns] for _ in range(nets)])
        exact = [polynomial_load(n, degree, error) for n in ns]
        mean, sem = mean_and_sem(np.polyfit(np.log(ns), np.log(loads).T, 1)[0])  # one exponent per set of nets
        finite = np.polyfit(np.log(ns), np.log(exact), 1)[0]
        known = allowed(sem, abs(finite - (degree - 1)))  # the limit's own error at these N
        run.metric(f"exponent_n{degree}", mean, sem, ("n - 1", degree - 1), known)
        run.metric(f"exponent_n{degree}_finite", mean, sem, ("exact moments, same N", finite), allowed(sem))
        left.plot(ns, exact, "k--", label="theory" if degree == 2 else None)
        left.plot(ns, loads.mean(0), "o", color=color, label=f"$x^{degree}$: exponent {mean:.2f} ± {sem:.2f}")
    left.set(xscale="log", yscale="log", xlabel="units N", ylabel="patterns at 1 % of units wrong, P")
    left.set_xticks([64, 128, 256, 512, 1024], ["64", "128", "256", "512", "1024"])
    left.minorticks_off()
    left.set_title("Sharper wells: capacity grows as $N^{n-1}$")
    left.legend(fontsize=9, loc=(0.51, 0.36))

    x = digits()[0].unique(dim=0).to(run.device)
    chosen = x[torch.randperm(len(x))[:n_cues].to(run.device)]
    cues = flipped(chosen, 0.1)
    query, keys = cues.cpu().double(), x.cpu().double()
    attention = torch.nn.functional.scaled_dot_product_attention(query[None], keys[None], keys[None])[0]
    gap = (softmax_update(keys, query, 64**-0.5) - attention).abs().max()
    run.metric("largest_gap_to_attention", gap, None, ("scaled_dot_product_attention", 0), 1e-6)
    keys, rises = torch.randn(50, 20, dtype=torch.float64), 0
    for beta in (0.05, 0.3, 1.0, 10.0):
        state = torch.randn(500, 20, dtype=torch.float64)
        for _ in range(20):
            before, state = state, softmax_update(keys, state, beta)
            rises += (softmax_energy(keys, state, beta) > softmax_energy(keys, before, beta) + 1e-12).sum()
    run.metric("softmax_rises_of_E", rises, None, ("theorem, in 40000 updates", 0), 0)
    unknown = occluded(chosen, 0.0)  # a real-valued state may say "I do not know"; a net of ±1 starts from blank
    for name, cue, start in (("flipped", cues, cues), ("hidden", unknown, occluded(chosen))):
        nearest = (x[(cue @ x.T).argmax(1)] == chosen).all(1).float().mean()
        ends = {"hebb": recall(hebb(x), start), "pseudo_inverse": recall(pseudo_inverse(x), start)}
        for rule, end in (ends | {"softmax": softmax_update(x, cue, 4.0).sign()}).items():
            hits = mean_and_sem((end == chosen).all(1))
            run.metric(f"{name}_digits_recalled_{rule}", *hits, ("nearest neighbour", nearest))

    betas = torch.logspace(-1.5, 0.5, 21)
    rest = [settle(x, cues[:100], beta.item()) for beta in betas]
    weights = torch.stack([(beta * state @ x.T).softmax(1) for beta, state in zip(betas.tolist(), rest, strict=True)])
    blended, betas = to_numpy(torch.special.entr(weights).sum(-1).exp()), betas.numpy()  # (betas, cues)
    run.metric("patterns_blended_at_small_beta", *mean_and_sem(blended[0]), ("all of them", len(x)))
    run.metric("patterns_blended_at_large_beta", *mean_and_sem(blended[-1]), ("one", 1))
    right.plot(betas, np.median(blended, 1), "o-", ms=4, color="tab:orange", label="median cue")
    band = np.quantile(blended, (0.1, 0.9), axis=1)
    right.fill_between(betas, *band, color="tab:orange", alpha=0.2, lw=0, label="10-90 % of cues")
    for level in (1, len(x)):
        right.axhline(level, color="k", ls="--", lw=1)
    right.set(xscale="log", yscale="log", xlabel="inverse temperature $\\beta$", ylabel="patterns blended, exp(entropy)")
    right.set_title(f"From the mean of all {len(x)} patterns to one of them")
    right.legend()
    run.figure(fig, "capacity")

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6))
    blank, some = occluded(chosen[:8]), unknown[:8]
    ends = [recall(hebb(x), blank), recall(pseudo_inverse(x), blank), softmax_update(x, some, 4.0)]
    labels = ["stored", "cue", "Hebb", "pseudo-\ninverse", "softmax,\none step"]
    show_pictures(left, [chosen[:8], some, *ends], 8, labels, f"{len(x)} digits in 64 units, upper half unknown")
    shown = [0, 9, 10, 12, 13, 20]
    labels = [f"$\\beta$ = {betas[k]:.2g}" for k in shown]
    show_pictures(right, [rest[k][:8] for k in shown], 8, labels, "At rest: mean, clusters, single digits")
    run.figure(fig, "digits")


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
