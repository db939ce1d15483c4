"""Images per second of module 04's training step beside scikit-learn's BernoulliRBM: python tests/benchmarks/rbm.py

Both do persistent contrastive divergence, batch 100, float32, one thread, interleaved in one process; medians of 7
rounds. Asked for is nearness to the floor that the same run measures, what a step cannot do without: its three matrix
products, the random numbers of its units, their logistic functions, and the copies of the data. The ratio to
scikit-learn, which is another one on every processor, is only printed.
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
AT_MOST = {(64, 16): 1.8, (64, 128): 1.5, (64, 500): 1.4, (784, 500): 1.2}  # times the floor


def images_per_second(function, n_images):
    start = time.perf_counter()
    function()
    return n_images / (time.perf_counter() - start)


def compare(d, n_hidden, seconds=0.4):
    """Median images per second of (module 04, scikit-learn, the floor)."""
    module = load("04")
    x = (torch.rand(1500, d) < 0.3).float()
    batches = x.split(BATCH)
    rbm = module.fresh_rbm(x, n_hidden)
    trainer = module.ContrastiveDivergence(rbm, BATCH)
    h, v, p = (torch.rand_like(x) for x in (trainer.h, trainer.v, trainer.p))
    v_model, p_model, out, outer = v[BATCH:], p[BATCH:], torch.empty(BATCH, d), torch.empty(d, n_hidden)
    coins_v, coins_h = module.coin_buffer(v_model), module.coin_buffer(h)

    def ours(epochs):
        for _ in range(epochs):
            for batch in batches:
                trainer.step(batch, 0.01, 1e-3)

    def sklearns(epochs):
        BernoulliRBM(n_hidden, learning_rate=0.01, batch_size=BATCH, n_iter=epochs, random_state=0).fit(x.numpy())

    def floor(epochs):
        for _ in range(epochs):
            for batch in batches:
                v[:BATCH].copy_(batch)
                torch.mm(h, rbm.W.T, out=out).sigmoid_()
                torch.mm(v, rbm.W, out=p).sigmoid_()
                torch.mm(v.T, p, out=outer)
                for units, (words, coins) in ((v_model, coins_v), (p_model, coins_h)):
                    words.random_(-(2**63), None)
                    units.copy_(coins)
                v_model.fill_(0.5)

    functions = (ours, sklearns, floor)
    epochs = [max(int(seconds * images_per_second(lambda f=f: f(2), 2 * len(x)) / len(x)), 1) for f in functions]
    rounds = [
        [images_per_second(lambda f=f, n=n: f(n), n * len(x)) for f, n in zip(functions, epochs, strict=True)]
        for _ in range(ROUNDS)
    ]
    return np.median(rounds, axis=0)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("images/s     module 04   scikit-learn   ratio        floor   time / time of the floor (at most)")
    missed = []
    for (d, n_hidden), most in AT_MOST.items():
        ours, sklearns, floor = compare(d, n_hidden)
        row = f"{d}x{n_hidden:<9}{ours:>9,.0f}{sklearns:>15,.0f}{ours / sklearns:>8.2f}{floor:>13,.0f}"
        print(f"{row}{floor / ours:>14.2f} ({most})")
        missed += [f"{d}x{n_hidden}"] if floor / ours > most else []
    sys.exit(f"too far from the floor: {', '.join(missed)}" if missed else None)


if __name__ == "__main__":
    main()
