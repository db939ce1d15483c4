"""What the checks of the open experiments share: tables of numbers, and claims that these must bear out."""

import math

import torch
from scipy import stats

from compare import NotYet


def numbers(answer, key, *shape):
    """answer[key] as float64 of this shape (None: any length), all finite."""
    try:
        value = torch.tensor(answer[key], dtype=torch.float64)
    except (TypeError, ValueError):
        raise NotYet(f"{key}: should be numbers, in lists of equal lengths") from None
    if value.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, value.shape, strict=True)):
        raise NotYet(f"{key} has shape {tuple(value.shape)}, but should have {shape} (None: any length)")
    if not value.isfinite().all():
        raise NotYet(f"{key} is not finite everywhere")
    return value


def seeds(answer, least):
    """The seeds, at least so many different ones."""
    told = answer["seeds"]
    if not isinstance(told, list) or len(set(told)) < least or len(set(told)) != len(told):
        raise NotYet(f"at least {least} different seeds are needed: one seed shows no spread")
    return told


def must_differ(key, columns):
    """Columns (seeds first) that are copies of each other come from one seed."""
    for i, one in enumerate(columns):
        if any(torch.equal(one, other) for other in columns[:i]):
            raise NotYet(f"{key}: two seeds have the same numbers. Does each run use its own seed?")


def must_agree(key, told, recomputed, rtol=1e-4):
    """A table that is told, and the same recomputed from what else is in the answer."""
    off = (told - recomputed).abs() - rtol * (recomputed.abs() + 1e-6)
    if (off > 0).any():
        at = off.argmax().item()
        got, want = told.flatten()[at].item(), recomputed.flatten()[at].item()
        raise NotYet(f"{key}: the table says {got:.6g} where your own parameters give {want:.6g}")


def must_be_likely(key, z, theory, n_fitted=0):
    """Standard scores, less `n_fitted`, must be as large as chance makes them: not far off, and not too near."""
    chi2, n = z.square().sum().item(), z.numel() - n_fitted
    if chi2 > stats.chi2.isf(1e-4, n):
        raise NotYet(
            f"{key}: {theory}, and your numbers are too far from it: {(chi2 / n) ** 0.5:.1f} standard errors on average"
        )
    if chi2 < stats.chi2.ppf(1e-4, n):
        raise NotYet(f"{key}: these are closer to {theory} than any measurement is. Were they measured?")


def better(first, second):
    """1 or -1 if the first or the second column of scores is higher, seed by seed (t test, 5 %); 0 if that is not clear."""
    gap = first - second
    sem = gap.std() / len(gap) ** 0.5
    clear = gap.mean().abs() > stats.t.isf(0.025, len(gap) - 1) * sem
    return int(gap.mean().sign()) if clear else 0


def must_claim(key, told, right, because):
    """A claim in words must say what the table says."""
    if told != right:
        raise NotYet(f"{key}: you claim {told!r}, but your table says {right!r} ({because})")


# %% The plane: eight Gaussians, and small networks as energies

ACTIVATIONS = {"silu": torch.nn.functional.silu, "relu": torch.relu, "tanh": torch.tanh}
SPREAD = 0.5


def network_energy(network, activation="silu", widest=32):
    """E(x) = |x|^2/18 + w3 . f(f(x W1 + b1) W2 + b2), x (n, 2) -> (n,), from its W1, b1, W2, b2, w3 of one width w."""
    W1, W2 = numbers(network, "W1", 2, None), numbers(network, "W2", None, None)
    b1, b2, w3 = (numbers(network, key, W1.shape[1]) for key in ("b1", "b2", "w3"))
    if W2.shape != (len(b1), len(b1)) or len(b1) > widest:
        raise NotYet(f"W2 has shape {tuple(W2.shape)}; the two hidden layers are equally wide, {widest} at most")
    f = ACTIVATIONS[activation]
    return lambda x: x.square().sum(1) / 18 + f(f(x @ W1 + b1) @ W2 + b2) @ w3


def networks(answer, key, n_seeds):
    """The networks of one row, one a seed, no two alike."""
    row = answer["networks"][key]
    if len(row) != n_seeds:
        raise NotYet(f"networks: {key} has {len(row)}, but should have one for each of {n_seeds} seeds")
    must_differ(f"networks of {key}", [numbers(network, "w3", None) for network in row])
    return row


def plane(n=100, box=8.0):
    """The centres of n x n cells of [-box, box]^2, (n^2, 2), and a cell's area."""
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * 2 * box / n - box
    return torch.cartesian_prod(axis, axis), (2 * box / n) ** 2


def centres():
    """The eight centres, at 4 (cos, sin) of multiples of 45 degrees, (8, 2)."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return 4 * torch.stack([angle.cos(), angle.sin()], 1)


def eight_gaussians(x, weights=None):
    """Their log density at x (n, 2), of even or other weights (8,)."""
    weights = torch.full((8,), 1 / 8).double() if weights is None else weights
    squares = (x[:, None] - centres()).square().sum(2) / (2 * SPREAD**2)
    return torch.logsumexp(weights.log() - squares, 1) - math.log(2 * math.pi * SPREAD**2)


def gap_to_data(energy, weights=None):
    """KL(data || model) in nats: how far the best log likelihood is, by a grid."""
    x, area = plane()
    log_p, e = eight_gaussians(x, weights), energy(x)
    return (log_p.exp() * (log_p + e + torch.logsumexp(-e, 0) + math.log(area))).sum() * area


# %% Digits


def digits():
    """load_digits in [-1, 1], split once: x_train (1437, 64), x_test (360, 64), y_train, y_test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    return [torch.as_tensor(part) for part in train_test_split(x / 8 - 1, y, test_size=0.2, stratify=y, random_state=0)]


def as_text(x):
    """Images (n, 64) in [-1, 1] as text, a letter a pixel, a (black) to q: small in JSON."""
    return ["".join(chr(97 + grey) for grey in row) for row in (8 * (x.clamp(-1, 1) + 1)).round().int().tolist()]


def from_text(rows, n):
    """The n images (n, 64) of such text."""
    if len(rows) != n or any(not isinstance(row, str) or len(row) != 64 for row in rows):
        raise NotYet(f"{n} images are asked for, each a text of 64 letters (as_text of exercises/tables.py writes it)")
    x = torch.tensor([[ord(letter) - 97 for letter in row] for row in rows], dtype=torch.float64)
    if ((x < 0) | (x > 16)).any():
        raise NotYet("a pixel's letter is from a, black, to q, white")
    return x / 8 - 1


def frechet(a, b):
    """Frechet distance of two sets of features, (n, k) and (m, k): of the Gaussians that have their moments."""
    (mean_a, cov_a), (mean_b, cov_b) = ((one.mean(0), one.T.cov()) for one in (a, b))
    values = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0)
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * values.sqrt().sum()).item()


def judge():
    """A classifier of the digits in closed form: (features (n, 64) -> (n, 10), predictions (n, 64) -> (n,)).

    Ridge regression of the classes on Gaussian bumps around 500 training images: no training, the same on every machine.
    """
    x, _, y, _ = digits()
    bumps = lambda at: torch.exp(-torch.cdist(at, x[:500]).square() / (2 * 4.0**2))
    ridge = bumps(x).T @ bumps(x) + 1e-2 * torch.eye(500).double()
    weights = torch.linalg.solve(ridge, bumps(x).T @ torch.nn.functional.one_hot(y, 10).double())
    features = lambda at: bumps(at) @ weights
    return features, lambda at: features(at).argmax(1)
