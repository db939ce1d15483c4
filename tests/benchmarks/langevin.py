"""Langevin steps of module 06 beside a plain autograd loop and the bare floor: python tests/benchmarks/langevin.py

10,000 chains, float32, one thread, the three interleaved in one process. Each round gives a ratio, and their median
counts: what slows the machine for a while slows all three. Milliseconds are the least of all rounds. The floor is what a
step cannot do without, in bare tensor operations on the same parts of the chains: the matrix products, the exponentials of
the softmax or of SiLU and its slope, the noise, and the move. Nearness to it is asked for: measured in the same run, it
means the same on every processor. `plain` is the usual textbook loop: energy.sum(), autograd, a new tensor at each step.
How far it lies behind depends on the processor, and is only printed.
"""

import os
import sys
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before torch loads
sys.path.insert(0, str(Path(__file__).parent.parent))

import time

import numpy as np
import torch
from conftest import load
from torch import nn
from torch.nn.functional import silu

CHAINS, STEP, ROUNDS, CHUNK = 10_000, 1e-3, 40, 500
ALLOWED = {"2-D mixture": 1.5, "MLP 2-128-128-128-1": 1.5}  # times the floor


def plain_gradient(energy, x):
    """x as a leaf, and ∇E(x) by autograd."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    return x, gradient


def plain_step(energy, x):
    x, gradient = plain_gradient(energy, x)
    return x - 0.5 * STEP * gradient + STEP**0.5 * torch.randn_like(x)


def mixture_case(module):
    """(ours, plain, floor) as functions without arguments, on the eight Gaussians."""
    data = module.toy_sets("cpu")["8 Gaussians"]
    x, s = data.sample(CHAINS), data.std[0, 0]
    chains, noise = x.clone(), torch.empty(CHAINS, 2)

    def energy(y):
        distance = (y[:, None] - data.centres).square().sum(-1)
        return -(-distance / (2 * s**2)).logsumexp(1)

    def ours():
        chains.add_(data.score(chains), alpha=0.5 * STEP).add_(noise.normal_(), alpha=STEP**0.5)

    def floor():
        noise.normal_()
        score = (data.centres @ chains.T).softmax(0).T @ data.centres  # points last: several times as fast
        chains.add_(score, alpha=0.0).add_(noise, alpha=0.0)  # the cost of a move, and no move

    torch.testing.assert_close(-plain_gradient(energy, x)[1], data.score(x), rtol=1e-3, atol=1e-2)
    return ours, lambda: plain_step(energy, x), floor


def network_case(module):
    networks = module.Networks(1, 2, 128, 3, 3.0)
    networks.weights[-1].normal_(0, 0.1)
    layers = []
    for w, b in zip(networks.weights, networks.biases, strict=True):
        layers += [nn.Linear(w.shape[1], w.shape[2]), nn.SiLU()]
        layers[-2].weight.data.copy_(w[0].T)
        layers[-2].bias.data.copy_(b[0, 0])
    mlp = nn.Sequential(*layers[:-1])
    x = torch.randn(CHAINS, 2)
    chains, noise = x.clone(), torch.empty(CHAINS, 2)

    def energy(y):
        return mlp(y)[:, 0] + y.square().sum(1) / 18

    def ours():
        noise.normal_()
        for part, xi in zip(chains.split(CHUNK), noise.split(CHUNK), strict=True):  # activations stay in the cache
            _, gradient = networks.passes(part[None])
            part.add_(gradient[0], alpha=-0.5 * STEP).add_(xi, alpha=STEP**0.5)

    weights, slope_of_silu = [w[0] for w in networks.weights], torch.ops.aten.silu_backward

    def floor():
        noise.normal_()
        for part, xi in zip(chains.split(CHUNK), noise.split(CHUNK), strict=True):
            h, before = part, []
            for w in weights[:-1]:
                before.append(h @ w)
                h = silu(before[-1])
            h @ weights[-1]
            g = weights[-1].T.expand_as(h)
            for w, z in zip(weights[-2::-1], before[::-1], strict=True):
                g = slope_of_silu(g, z) @ w.T
            part.add_(g, alpha=0.0).add_(xi, alpha=0.0)

    torch.testing.assert_close(plain_gradient(energy, x)[1], networks.passes(x[None])[1][0], rtol=1e-3, atol=1e-4)
    return ours, lambda: plain_step(energy, x), floor


def timings(functions):
    """Seconds (ROUNDS, functions) of each function, called in turn."""
    rounds = []
    for _ in range(ROUNDS + 2):
        times = [time.perf_counter()]
        for function in functions:
            function()
            times.append(time.perf_counter())
        rounds.append(np.diff(times))
    return np.array(rounds[2:])  # the first two warm up


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, missed = load("06"), []
    print(f"{CHAINS} chains, ms a step    module 06   plain loop   floor   ours / floor (allowed)   plain / ours")
    for (name, allowed), case in zip(ALLOWED.items(), (mixture_case, network_case), strict=True):
        seconds = timings(case(module))
        over_floor, behind = np.median(seconds[:, :2] / seconds[:, [2, 0]], axis=0)
        ours, plain, floor = 1e3 * seconds.min(0)
        print(f"{name:<28}{ours:>9.2f}{plain:>13.2f}{floor:>8.2f}{over_floor:>13.2f} ({allowed}){behind:>20.2f}")
        missed += [name] if over_floor > allowed else []
    sys.exit(f"too far from the floor: {', '.join(missed)}" if missed else None)


if __name__ == "__main__":
    main()
