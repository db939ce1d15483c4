"""Where the time of module 07 goes: a training step, its buffer, its Langevin: python tests/benchmarks/neural.py

Default settings, digits, float32, one thread, interleaved in one process, the median of many rounds. In a training step
sampling is Langevin on one block; the network's part is all that touches weights: forward, backward, Adam and the
average; bookkeeping is the rest: batches, buffer, diagnostics. What is asked for is nearness to a floor that the same run
measures on the same processor. The floor of a Langevin step is its four products of matrices, the activation and its
derivative, and the normal numbers; that of a visit to the buffer is what it must draw, a uniform number for each chain and a
normal one for each pixel that restarts, and their copy. The ratios to the peers are only printed: Langevin with autograd's
gradient; and the list of tutorials, at their size: draw images from a list of 8192, join them, put the new ones in front,
cut the list.
"""

import os
import random
import sys
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before torch loads
sys.path.insert(0, str(Path(__file__).parent.parent))

import time

import numpy as np
import torch
from conftest import load
from torch.nn.functional import silu

ROUNDS = 150


def milliseconds(*functions, calls=1):
    """Milliseconds of each function, called in turn, `calls` times each: the median of the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        times = [time.process_time()]
        for function in functions:
            for _ in range(calls):
                function()
            times.append(time.process_time())
        rounds.append(np.diff(times))
    return 1e3 * np.median(rounds, axis=0) / calls


def step_parts(m, config, trainer):
    """Milliseconds of (a training step, its sampling, its network)."""
    x, block = trainer.positives(), trainer.buffer.chains[0].clone()
    chains, other = block.clone(), m.Trainer(m.build(config), trainer.x, config)
    return milliseconds(
        lambda: trainer.update(config.learning_rate),
        lambda: m.langevin(trainer.energy, chains, config.n_langevin, config.step_size),
        lambda: other.learn(x, x, None, config.learning_rate),  # no gap: it never diverges
    )


def buffers(m, config, n_images, batch_size, d):
    """Milliseconds of a visit to (module 07's buffer, a list of images, the draws and copies that it cannot do without)."""
    rng = np.random.default_rng(0)
    ours = m.ReplayBuffer(n_images // batch_size, 1, batch_size, d, config.reinit, "cpu")
    images = [torch.randn(1, d) for _ in range(n_images)]
    block, which = ours.chains[0, 0].clone(), torch.zeros(1, dtype=torch.int64)

    def visit_list():
        nonlocal images
        n_new = rng.binomial(batch_size, 0.05)
        batch = torch.cat([torch.randn(n_new, d), torch.cat(random.choices(images, k=batch_size - n_new))])
        images = list(batch.chunk(batch_size)) + images  # moved before that, in a training
        images = images[:n_images]

    def floor():
        (torch.rand(batch_size) < 0.01).nonzero()
        block.index_copy_(0, which, torch.empty(1, d).normal_())

    return milliseconds(ours.next, visit_list, floor, calls=10)


def gradients(m, config, energy, x):
    """Milliseconds of (a Langevin step, the same with autograd's gradient, its products, activations and noise alone)."""
    by_autograd, noise, hidden = m.Energy(None), torch.empty_like(x), x.bmm(energy.w1)
    by_autograd.forward = energy.forward
    out = hidden.bmm(energy.w2)

    @torch.no_grad()
    def floor():
        torch.bmm(x, energy.w1, out=hidden)
        torch.bmm(silu(hidden), energy.w2, out=out)
        back = torch.ops.aten.silu_backward(torch.bmm(x, energy.w2.mT), hidden)
        torch.bmm(back, energy.w1.mT, out=out)
        noise.normal_()

    torch.testing.assert_close(by_autograd.slope(x), energy.slope(x), rtol=1e-3, atol=1e-2)
    chains, n = x.clone(), config.n_langevin
    hidden, out = hidden.detach(), out.detach()
    ours, autograd, bare = milliseconds(
        lambda: m.langevin(energy, chains, n, config.step_size),
        lambda: m.langevin(by_autograd, chains, n, config.step_size),
        lambda: [floor() for _ in range(n)],
    )
    return ours / n, autograd / n, bare / n


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    m = load("07")
    config = m.Config()
    x = m.images(m.Run(config, 0, "cpu", Path(), False))[0]
    trainer = m.Trainer(m.build(config), x, config)
    for _ in range(20):
        trainer.update(config.learning_rate)

    step, sampling, network = step_parts(m, config, trainer)
    rest = 1 - (sampling + network) / step
    print(f"training step {step:.2f} ms = sampling {sampling:.2f} + network {network:.2f} + bookkeeping {rest:.1%}")
    for n_images, batch_size, d in ((config.n_chains, config.batch_size, x.shape[1]), (8192, 128, 784)):
        ours, lists, least = buffers(m, config, n_images, batch_size, d)
        print(
            f"{batch_size} of {n_images} images of {d} pixels: buffer {1e3 * ours:.0f} us, draws and copies alone"
            f" {1e3 * least:.0f}, list {1e3 * lists:.0f} ({lists / ours:.1f} times the buffer)"
        )
    hand, autograd, floor = gradients(m, config, trainer.energy, trainer.buffer.chains[0].clone())
    print(
        f"Langevin step {1e3 * hand:.0f} us, products, activations and noise alone {1e3 * floor:.0f}"
        f" ({hand / floor:.2f} times their time), by autograd {1e3 * autograd:.0f} ({autograd / hand:.2f} times ours)"
    )
    required = {
        "bookkeeping at most 5 %": rest <= 0.05,
        "a visit to the buffer at most twice its draws and copies": ours <= 2 * least,
        "Langevin at most 1.5 times its products, activations and noise": hand <= 1.5 * floor,
    }
    missed = [name for name, ok in required.items() if not ok]
    sys.exit(f"missed: {'; '.join(missed)}" if missed else None)


if __name__ == "__main__":
    main()
