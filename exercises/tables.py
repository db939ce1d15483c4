"""What the checks of the open experiments share: tables of numbers, and claims that these must bear out."""

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
