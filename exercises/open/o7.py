"""o7 A digit never seen: MLP, convolution, or no network at all (module 07, section architectures; about 40 minutes)

Out-of-distribution detection where it is hard: train on the digits 0 to 8 of the training images (digits() of
exercises/tables.py), and tell the *nines* of the test images from the other test images by -E(x). Train two energies, an MLP
and a convolutional one, as long as each other in *seconds*, by any method (denoising score matching is quick, ex06_2), three
seeds. Beside them stands a score that needs no training: minus the distance to the nearest training image of 0 to 8.

Give each AUROC (ex09_1; the known digits score higher). Predict first whether the networks beat the distance.

Answer   {"seeds": [3 or more],
          "scores": {"mlp": [for each seed 360 scores, of the test images in their order], "conv": ...},
          "auroc": {"mlp": [one a seed], "conv": [...], "nearest": one number},
          "better": "mlp", "conv" or "neither" (t test over the seeds, 5 %),
          "beats_nearest": [which of "mlp", "conv" are above it by a one-sample t test, 5 %; may be empty]}
          Four digits are enough for scores.
Checked  auroc from the scores and the true labels, the distance by the check itself; seeds; both claims.
"""

import torch

from compare import NotYet
from tables import better, digits, must_agree, must_claim, must_differ, numbers, seeds


def auroc(scores, is_known):
    """Share of pairs (known, nine) in which the known digit scores higher; ties a half."""
    gap = scores[is_known][:, None] - scores[~is_known]
    return ((gap > 0).double() + 0.5 * (gap == 0).double()).mean()


def check(answer):
    n_seeds, (x_train, x_test, y_train, y_test) = len(seeds(answer, 3)), digits()
    is_known, right = y_test != 9, {}
    for name in ("mlp", "conv"):
        scores = numbers(answer["scores"], name, n_seeds, len(x_test))
        must_differ(f"scores of {name}", scores)
        right[name] = torch.stack([auroc(one, is_known) for one in scores])
        if right[name].mean() < 0.5:
            raise NotYet(
                f"scores of {name}: AUROC {right[name].mean():.3f}. The known digits are to score higher: -E, not E"
            )
        if right[name].max() > 0.9999:
            raise NotYet(f"scores of {name}: perfect, which no score of this size is. Were labels used?")
        must_agree(f"auroc of {name}", numbers(answer["auroc"], name, n_seeds), right[name], 1e-3)
    nearest = auroc(-torch.cdist(x_test, x_train[y_train != 9]).amin(1), is_known)
    must_agree("auroc of nearest", torch.tensor(float(answer["auroc"]["nearest"])).double(), nearest, 1e-3)
    winner = {1: "mlp", -1: "conv", 0: "neither"}[better(right["mlp"], right["conv"])]
    must_claim("better", answer["better"], winner, "a t test over the seeds")
    above = [name for name, values in right.items() if better(values, nearest.expand(n_seeds)) == 1]
    must_claim("beats_nearest", sorted(answer["beats_nearest"]), sorted(above), f"the distance has {nearest:.3f}")
