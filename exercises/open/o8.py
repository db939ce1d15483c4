"""o8 Is it better than one Gaussian? (module 07, section digits; about 40 minutes)

Train an energy on the 8x8 digits (digits() of exercises/tables.py), and draw 300 images *from noise*, three seeds. Beside it
stands the simplest model of all: one Gaussian with the training images' mean and full covariance, clipped to [-1, 1].

Score both by the Frechet distance to the 360 test images, twice: on the pixels themselves, and on the ten class scores of
judge() in exercises/tables.py, a classifier in closed form. And by the shares of the judge's ten classes: the entropy of its
predictions over log 10. Predict first: which of the two distances can a Gaussian not lose, and why?

Answer   {"seeds": [3 or more], "images": [for each seed 300 texts, by as_text() of exercises/tables.py],
          "pixels": [one a seed], "features": [one a seed], "entropy": [one a seed],
          "better": {"pixels": "energy", "gaussian" or "neither", "features": ...}: t tests of your seeds against as many
          draws of the Gaussian, 5 %}
Checked  all from the images; that they are no training images; better, against Gaussians of the check's own.
"""

import math

import torch

from compare import NotYet
from tables import better, digits, frechet, from_text, judge, must_agree, must_claim, must_differ, numbers, seeds


def scores(x, x_test, features, predictions):
    """(pixels, features, entropy) of images x."""
    shares = torch.bincount(predictions(x), minlength=10).double() / len(x)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum().item() / math.log(10)
    return torch.tensor([frechet(x, x_test), frechet(features(x), features(x_test)), entropy], dtype=torch.float64)


def one_gaussian(x_train, seed, n=300):
    """n draws of the Gaussian that has the training images' moments."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(x_train.T.cov() + 1e-6 * torch.eye(64).double())
    return (x_train.mean(0) + torch.randn(n, 64, generator=generator, dtype=torch.float64) @ root.T).clamp(-1, 1)


def check(answer):
    n_seeds, (x_train, x_test, _, _), judged = len(seeds(answer, 3)), digits(), judge()
    images = [from_text(rows, 300) for rows in answer["images"]]
    if len(images) != n_seeds:
        raise NotYet(f"images: {len(images)} sets for {n_seeds} seeds")
    must_differ("images", images)
    copies = max((torch.cdist(x, x_train).amin(1) < 0.3).double().mean().item() for x in images)
    if copies > 0.05:
        raise NotYet(f"images: {copies:.0%} of a set are training images, pixel by pixel: they should come from noise")
    right = torch.stack([scores(x, x_test, *judged) for x in images])
    for i, key in enumerate(("pixels", "features", "entropy")):
        must_agree(key, numbers(answer, key, n_seeds), right[:, i], 1e-3)
    gaussian = torch.stack([scores(one_gaussian(x_train, seed), x_test, *judged) for seed in range(n_seeds)])
    for i, key in enumerate(("pixels", "features")):
        winner = {1: "energy", -1: "gaussian", 0: "neither"}[better(-right[:, i], -gaussian[:, i])]
        because = f"energy {right[:, i].mean():.3g}, Gaussian {gaussian[:, i].mean():.3g}"
        must_claim(f"better, {key}", answer["better"][key], winner, because)
