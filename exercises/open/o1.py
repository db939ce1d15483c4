"""o1 An RBM that classifies, with few labels and with all (module 04, section features; about 40 minutes)

load_digits of scikit-learn, cut at half of the maximum (x / 16 > 0.5), split once:

    train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)

Take an RBM's features with logistic regression on them, or a classification RBM (ex04_3), tuned on a part of the training
images. Beside it put logistic regression on the pixels, *tuned as carefully* (C by cross-validation). Train both on all
training labels, and on five labels a class, drawn anew for each seed, the same for both. The RBM's features may be learned
from all training images, without labels. Three seeds or more. Predict first where the RBM pays.

Answer   {"seeds": [3 or more],
          "predictions": {"rbm": {"few": [a list of the 360 test labels, for each seed], "all": [...]}, "logistic": {...}},
          "accuracy": {"rbm": {"few": [one a seed], "all": [...]}, "logistic": {...}},
          "better": {"few": "rbm", "logistic" or "neither", "all": ...}: by the test below}
Checked  accuracy from the predictions and the true labels; that seeds differ where few labels are drawn; better: is the gap
          of the accuracies beyond 95 % limits of the seeds (t) and of the 360 images (normal) together?
"""

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from compare import NotYet
from tables import must_agree, must_claim, must_differ, numbers, seeds


def true_labels():
    """The labels of the 360 test images."""
    return train_test_split(*load_digits(return_X_y=True), test_size=0.2, stratify=load_digits().target, random_state=0)[3]


def winner(right_rbm, right_logistic):
    """Who is better, from what is right (seeds, images) of both: seeds and images both scatter."""
    gap = right_rbm.double() - right_logistic.double()
    of_seeds, of_images = gap.mean(1).var() / len(gap), gap.mean(0).var() / gap.shape[1]
    clear = gap.mean().abs() > stats.t.isf(0.025, len(gap) - 1) * of_seeds**0.5 + stats.norm.isf(0.025) * of_images**0.5
    return ("rbm" if gap.mean() > 0 else "logistic") if clear else "neither"


def check(answer):
    n_seeds, y, right = len(seeds(answer, 3)), torch.as_tensor(np.asarray(true_labels())), {}
    for who in ("rbm", "logistic"):
        for labels in ("few", "all"):
            told = numbers(answer["predictions"][who], labels, n_seeds, len(y))
            if ((told < 0) | (told > 9) | (told != told.round())).any():
                raise NotYet(f"predictions of {who}, {labels}: labels are whole numbers from 0 to 9")
            if labels == "few":
                must_differ(f"predictions of {who}, few", told)
            right[who, labels] = told == y
            recomputed = right[who, labels].double().mean(1)
            if recomputed.min() > 0.995:
                raise NotYet(
                    f"predictions of {who}, {labels}: nothing of this size reads {recomputed.max():.3f} here. Test labels?"
                )
            must_agree(f"accuracy of {who}, {labels}", numbers(answer["accuracy"][who], labels, n_seeds), recomputed, 1e-3)
    for labels in ("few", "all"):
        because = "gap beyond the scatter of seeds and images"
        must_claim(
            f"better, {labels}", answer["better"][labels], winner(right["rbm", labels], right["logistic", labels]), because
        )
