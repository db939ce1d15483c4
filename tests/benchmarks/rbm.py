"""Images per second of module 04's training step beside scikit-learn's BernoulliRBM: python tests/benchmarks/rbm.py

Both do persistent contrastive divergence, batch 100, float32, one thread, interleaved in one process; medians of 7
rounds. The floor is the time of the three matrix products that a step cannot do without.
"""

import os
import sys
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before numpy loads
sys.path.insert(0, str(Path(__file__).parent.parent))

import time

import numpy as np
import torch
from conftest import load
from sklearn.neural_network import BernoulliRBM

ROUNDS, BATCH = 7, 100
REQUIRED = {(64, 16): 1.8, (64, 128): 2.1, (64, 500): 2.7, (784, 500): 1.7}


def images_per_second(function, n_images):
    start = time.perf_counter()
    function()
    return n_images / (time.perf_counter() - start)


def compare(d, n_hidden, seconds=0.4):
    """Median images per second of (module 04, scikit-learn, the matrix products alone)."""
    module = load("04")
    x = (torch.rand(1500, d) < 0.3).float()
    batches = x.split(BATCH)
    rbm = module.fresh_rbm(x, n_hidden)
    trainer = module.ContrastiveDivergence(rbm, BATCH)
    h, v, p, out, outer = trainer.h, trainer.v, trainer.p, torch.empty(BATCH, d), torch.empty(d, n_hidden)

    def ours(epochs):
        for _ in range(epochs):
            for batch in batches:
                trainer.step(batch, 0.01, 1e-3)

    def sklearns(epochs):
        BernoulliRBM(n_hidden, learning_rate=0.01, batch_size=BATCH, n_iter=epochs, random_state=0).fit(x.numpy())

    def products(epochs):
        for _ in range(epochs * len(batches)):
            torch.mm(h, rbm.W.T, out=out)
            torch.mm(v, rbm.W, out=p)
            torch.mm(v.T, p, out=outer)

    functions = (ours, sklearns, products)
    epochs = [max(int(seconds * images_per_second(lambda f=f: f(2), 2 * len(x)) / len(x)), 1) for f in functions]
    rounds = [
        [images_per_second(lambda f=f, n=n: f(n), n * len(x)) for f, n in zip(functions, epochs, strict=True)]
        for _ in range(ROUNDS)
    ]
    return np.median(rounds, axis=0)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("images/s     module 04   scikit-learn   ratio (required)   products alone   time / time of products")
    missed = []
    for (d, n_hidden), required in REQUIRED.items():
        ours, sklearns, floor = compare(d, n_hidden)
        ratio = ours / sklearns
        row = f"{d}x{n_hidden:<9}{ours:>9,.0f}{sklearns:>15,.0f}{ratio:>8.2f} ({required})"
        print(f"{row}{floor:>21,.0f}{floor / ours:>16.2f}")
        missed += [f"{d}x{n_hidden}"] if ratio < required else []
    sys.exit(f"below the required ratio: {', '.join(missed)}" if missed else None)


if __name__ == "__main__":
    main()
