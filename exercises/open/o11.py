"""o11 An energy for each class: a classifier, and a painter (modules 07, 08, sections conditional, jem; about 45 minutes)

Train an energy E(x, y) of digits and classes together (digits() of exercises/tables.py), by any method: JEM (ex08_1), or an
energy with biases of its own for each class (module 07). It classifies by the class of least energy, and it paints: draw 10
images of each class from noise. Beside it, as a classifier, put the same kind of network trained by cross entropy, and the
same again with noise on its training images, as a careful user would add it. Three seeds.

Predict first: who classifies best? And what does the energy know that would let it fail here while its pictures are good?

Answer   {"seeds": [3 or more],
          "predictions": {"energy": [for each seed the 360 test images' labels], "plain": ..., "augmented": ...},
          "accuracy": {"energy": [one a seed], ...},
          "images": [for each seed 100 texts, by as_text() of exercises/tables.py: ten 0, ten 1, ... ten 9],
          "judged": [for each seed the share of these whose class judge() of exercises/tables.py recognises],
          "best": the classifier with the highest mean accuracy, "clear": true or false: is it clear of the second, by a t
          test over the seeds, 5 %}
Checked  accuracy from predictions and true labels; judged from the images, which must be no training images; best, clear.
"""

import torch

from compare import NotYet
from tables import better, digits, from_text, judge, must_agree, must_claim, must_differ, numbers, seeds

CLASSIFIERS = ("energy", "plain", "augmented")


def check(answer):
    n_seeds, (x_train, _, _, y_test), right = len(seeds(answer, 3)), digits(), {}
    for name in CLASSIFIERS:
        told = numbers(answer["predictions"], name, n_seeds, len(y_test))
        if ((told < 0) | (told > 9) | (told != told.round())).any():
            raise NotYet(f"predictions of {name}: labels are whole numbers from 0 to 9")
        right[name] = (told == y_test).double().mean(1)
        must_agree(f"accuracy of {name}", numbers(answer["accuracy"], name, n_seeds), right[name], 1e-3)
    must_differ("predictions of energy", numbers(answer["predictions"], "energy", n_seeds, len(y_test)))
    images = [from_text(rows, 100) for rows in answer["images"]]
    if len(images) != n_seeds:
        raise NotYet(f"images: {len(images)} sets for {n_seeds} seeds")
    must_differ("images", images)
    if max((torch.cdist(x, x_train).amin(1) < 0.3).double().mean() for x in images) > 0.05:
        raise NotYet("images: some are training images, pixel by pixel: they should come from noise")
    wanted, predictions = torch.arange(10).repeat_interleave(10), judge()[1]
    recognised = torch.stack([(predictions(x) == wanted).double().mean() for x in images])
    must_agree("judged", numbers(answer, "judged", n_seeds), recognised, 1e-3)
    if recognised.mean() < 0.5:
        raise NotYet(
            f"images: {recognised.mean():.0%} are recognised as what they should be; a conditional energy does better"
        )
    ranked = sorted(CLASSIFIERS, key=lambda name: -right[name].mean())
    must_claim("best", answer["best"], ranked[0], "the mean over the seeds")
    must_claim("clear", answer["clear"], better(right[ranked[0]], right[ranked[1]]) == 1, f"a t test against {ranked[1]}")
