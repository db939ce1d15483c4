"""What a check says of a value: one sentence about the first thing that is wrong with it.

A check calls `expect(function, inputs, want, wrong)`, where `wrong` holds the mistakes that its exercise knows, each with
the sentence that it deserves. The rest is tried for every exercise alike: form, inputs that changed, two calls that differ,
and factors, offsets and orders that can be recognised anywhere.
"""

import copy
import inspect
from typing import NamedTuple

import torch


class NotYet(Exception):
    """A wrong answer; its text says what was mistaken."""


class Draws:
    """Random float64 tensors for a check, the same for the same seed; all sizes of an exercise should differ."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def bits(self, *shape):
        return torch.randint(2, shape, generator=self.generator).double()

    def signs(self, *shape):
        return 2 * self.bits(*shape) - 1


def states(n, off=0):
    """All 2^n states of n units that are `off` or 1, (2^n, n): what an exact sum runs over."""
    bits = (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()
    return off + (1 - off) * bits


def same(got, want, rtol=1e-6):
    """Whether two values agree, entry by entry, to `rtol` (or, near 0, to a thousandth of that of the largest entry)."""
    got, want = (torch.as_tensor(value).detach() for value in (got, want))
    if got.shape != want.shape or got.is_complex():
        return False
    got, want = got.double(), want.double()
    largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
    return torch.allclose(got, want, rtol=rtol, atol=1e-3 * rtol * largest, equal_nan=True)


def described(value):
    """A value's type in words."""
    if torch.is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{len(value)} values" if isinstance(value, tuple | list) else f"of type {type(value).__name__}"


class Part(NamedTuple):
    """One value of an answer: its name, what was got, what is right, and wrong values with what to say of them."""

    name: str
    got: object
    want: object
    wrong: dict

    def own_sentence(self, rtol=1e-6):
        """What the exercise itself says about this wrong value, if it knows it."""
        known = (sentence for sentence, value in self.wrong.items() if same(self.got, value, rtol))
        return "".join(f"\n{sentence}" for sentence in known)

    def check_form(self):
        """None, type, shape, dtype, nan: before any entry is looked at."""
        name, got, want = self.name, self.got, self.want
        if got is None:
            raise NotYet(f"{name} is None: is there a return?")
        if torch.is_tensor(want) and not torch.is_tensor(got):
            raise NotYet(f"{name} is {described(got)}, but should be a torch.Tensor of shape {tuple(want.shape)}")
        is_number = isinstance(got, int | float) and not isinstance(got, bool)
        if not torch.is_tensor(want) and not is_number and not (torch.is_tensor(got) and got.ndim == 0):
            raise NotYet(f"{name} is {described(got)}, but should be a number")
        if torch.is_tensor(want) and got.shape != want.shape:
            why = "\nIt is transposed." if got.ndim == 2 and same(got.T, want) else self.own_sentence()
            raise NotYet(f"{name} has shape {tuple(got.shape)}, but should have {tuple(want.shape)}{why}")
        if torch.is_tensor(want) and got.dtype != want.dtype:
            raise NotYet(f"{name} is {got.dtype}, but should be {want.dtype}")
        n_nan = int(torch.as_tensor(got).isnan().sum())
        if n_nan:
            many = f" in {n_nan} of {got.numel()} entries" if torch.is_tensor(got) and got.ndim else ""
            raise NotYet(f"{name} is nan{many}{self.own_sentence()}")

    def check_values(self, inputs, scales, rtol):
        """The values: known mistakes by name, else what was got and what is right."""
        got, want = torch.as_tensor(self.got).detach().double(), torch.as_tensor(self.want).double()
        if same(got, want, rtol):
            return
        sentence, fact = self.own_sentence(rtol), recognised(got, want, inputs, scales, rtol)
        if fact is None and not sentence and same(got, want, 1e-4):
            fact = "it is right to 1e-4 only: is something computed in float32?"
        if fact is None:
            at = (got - want).abs().nan_to_num(torch.inf).argmax().item()
            place = f" at {[int(i) for i in torch.unravel_index(torch.tensor(at), want.shape)]}" if want.ndim else ""
            fact = f"got {got.flatten()[at].item():.8g}, want {want.flatten()[at].item():.8g}{place}"
            sentence = (
                sentence or "\nThis check does not know that mistake. If you are sure of your answer, please report it."
            )
        raise NotYet(f"{self.name}: {fact}.{sentence}")


def recognised(got, want, inputs, scales, rtol=1e-6):
    """What can be said of a wrong value anywhere, or None: zeros, a factor, an input, an offset, an order."""
    many = want.numel() > 1
    entry = "every entry" if many else "it"
    if not got.any():
        return f"{entry} is 0"
    factors = {"-1": -1.0, "2": 2.0, "1/2": 0.5}
    for label, value in scales.items():
        factors |= {label: value, f"1/{label}": 1 / value}
    for label, factor in factors.items():
        if same(got, factor * want, rtol):
            return f"{entry} is {label} times the right value"
    for label, value in inputs.items():
        if torch.is_tensor(value) and same(got, value, rtol):
            return f"it is the argument {label}, unchanged"
    if many and got.isfinite().all() and same(got, want + (got - want).mean(), rtol):
        return f"every entry is off by the same {(got - want).mean().item():.6g}"
    if many and got.ndim == 2 and same(got.T, want, rtol):
        return "it is transposed"
    if many and any(same(got.flip(axis), want, rtol) for axis in range(want.ndim)):
        return "these are the right values in reversed order"
    return None


def untouched(value, before):
    """Whether an argument, or each tensor in a tuple of them, is what it was."""
    if isinstance(value, tuple):
        return all(untouched(*pair) for pair in zip(value, before, strict=True))
    return not torch.is_tensor(value) or torch.equal(value, before)


def expect(function, inputs, want, wrong=None, scales=None, names=None, rtol=1e-6, name=None):
    """Raise NotYet unless the learner's function gives `want` (a tensor, a number, or a tuple of these) on the inputs.

    `wrong`: {sentence: the wrong value that it explains}; `scales`: {"N": 30}, factors to recognise; `names` of a tuple.
    """
    name, wrong, scales = name or getattr(function, "__name__", "it"), wrong or {}, scales or {}

    def parts(got):
        if not isinstance(want, tuple):
            return [Part(name, got, want, wrong)]
        if got is not None and (not isinstance(got, tuple | list) or len(got) != len(want)):
            raise NotYet(f"{name} is {described(got)}, but should be {len(want)} values")
        got = [None] * len(want) if got is None else got
        labels = names or [f"{name}[{i}]" for i in range(len(want))]
        each = ({sentence: value[i] for sentence, value in wrong.items()} for i in range(len(want)))
        return [Part(*four) for four in zip(labels, got, want, each, strict=True)]

    kept = copy.deepcopy(inputs)
    first = parts(function(*inputs))
    for part in first:
        part.check_form()
    labels = list(inspect.signature(function).parameters) if inspect.isroutine(function) else []
    labels = [*labels, *(f"number {i + 1}" for i in range(len(labels), len(inputs)))][: len(inputs)]
    for label, value, before in zip(labels, inputs, kept, strict=True):
        if not untouched(value, before):
            raise NotYet(f"{name} changes its argument {label}: work on a copy, as in x = x + step instead of x += step")
    for part, again in zip(first, parts(function(*kept)), strict=True):
        if not same(part.got, again.got, 1e-9):
            why = "It draws random numbers of its own, or keeps something from the first call."
            raise NotYet(f"{name}: two calls with the same arguments differ. {why}")
        part.check_values(dict(zip(labels, kept, strict=True)), scales, rtol)


def trainable(loss, theta, slope):
    """Raise NotYet unless the learner's loss(theta) can be differentiated in a model's parameter, with this slope."""
    leaf = theta.clone().requires_grad_()
    value = loss(leaf)
    if not value.requires_grad:
        raise NotYet("The loss has no graph, so nothing can be trained by it. Was something detached?")
    try:
        (got,) = torch.autograd.grad(value, leaf)
    except RuntimeError:
        raise NotYet("The loss cannot be differentiated again: torch.autograd.grad(..., create_graph=True)") from None
    why = "Its value is right, but a part has lost its graph: torch.autograd.grad(..., create_graph=True), and no detach."
    if not same(got, slope):
        raise NotYet(f"The loss's slope in the model's parameter is {got.item():.6g}, want {slope.item():.6g}.\n{why}")
