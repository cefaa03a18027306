"""Comparing a record with the plain function, on the data it is used for.

A record is compared when it is made, and again at its uses 2, 4, 8, 16 and so on, which costs almost nothing in a long
run. If it differs by more than rounding, it is wrong: the plain result is returned, and the record is not used again.
"""

import functools
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Flat: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]

RTOL, ATOL = 1e3, 100.0
"""Tolerances in units in the last place: relative to a number, and to the largest one of its task and tensor."""

MOVED = 8.0
"""Units in the last place by which inputs are moved, to measure the effect of rounding alone."""

MOVES, SLACK = 3, 10.0


class RecordWarning(RuntimeWarning):
    """A record gave other results than the plain function, or had to be made repeatedly."""


class Uses:
    """Counts the uses of a record. After a comparison that shows a difference, the record is given up.

    Args:
        name: of what is computed, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.number, self.given_up = 0, False
        self._name, self._lock = name, threading.Lock()

    @staticmethod
    def is_due(number: int) -> bool:
        """Whether the record is compared at this use, counted from 1."""
        return number & (number - 1) == 0

    def count(self) -> int:
        """The number of this use."""
        with self._lock:
            self.number += 1
            return self.number

    def give_up(self, found: str) -> None:
        """Warn of a difference, and stop using the record."""
        self.given_up = True
        warnings.warn(
            f"the record of {self._name} is wrong at use {self.number} and is not used any more: {found}",
            RecordWarning,
            stacklevel=2,
        )


def difference(found: Sequence[Tensor], function: Flat, inputs: Sequence[Tensor]) -> str | None:
    """How `found` differs from `function(inputs)` by more than rounding; `None` where it does not.

    Each task (the first dimension) of each tensor is compared relative to its own size. That can be too strict: for a
    gradient that is zero up to rounding, or an input next to a kink. Then the function is also computed at inputs that
    are a few units in the last place away, and changes of that size count as rounding.
    """
    # first look: shapes, types, and the distance in units of rounding
    wanted = [*function(inputs)]
    for got, expected in zip(found, wanted, strict=True):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return f"{got.dtype} {list(got.shape)} instead of {expected.dtype} {list(expected.shape)}"
    off = [_distance(got, expected) - _rounding(expected) for got, expected in zip(found, wanted, strict=True)]
    if not any(bool((x > 0).any()) for x in off):
        return None
    # second look: is the function pure, and how much does rounding of its inputs change the results?
    again = [*function(inputs)]
    if any(bool((_distance(a, b) > _rounding(b)).any()) for a, b in zip(again, wanted, strict=True)):
        return "it is not pure: called twice with the same arguments, it gives different results"
    near = [function(_move_inputs(inputs, seed)) for seed in range(MOVES)]
    for number, (got, expected) in enumerate(zip(found, wanted, strict=True)):
        reach = [_distance(other[number], expected, rtol=0) for other in near]
        excess = (off[number] - SLACK * functools.reduce(torch.maximum, reach)).nan_to_num(nan=-1.0)
        if bool((excess > 0).any()):
            row = int(excess.argmax())
            apart = float(_distance(got, expected, rtol=0)[row])
            return f"result {number} of {len(wanted)} is off by {apart:.3g} in row {row}"
    return None


def _distance(found: Tensor, wanted: Tensor, rtol: float = RTOL) -> Tensor:
    """The greatest distance in each row beyond the relative tolerance; infinite where NaN or infinity differ."""
    a, b = _rows(found), _rows(wanted)
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs() - rtol * _eps(wanted) * b.abs())
    return torch.where(apart.isfinite(), apart, math.inf).amax(1, keepdim=False) if a.shape[1] else a.new_zeros(len(a))


def _rounding(wanted: Tensor) -> Tensor:
    """The tolerance of each row without a second look."""
    rows = _rows(wanted)
    size = torch.where(rows.isfinite(), rows.abs(), 0.0)
    return ATOL * _eps(wanted) * (size.amax(1) if rows.shape[1] else rows.new_zeros(len(rows)))


def _rows(x: Tensor) -> Tensor:
    x = x.detach()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x.reshape(len(x) if x.dim() else 1, -1).double() if x.numel() else x.new_zeros((1, 0), dtype=torch.float64)


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if x.is_floating_point() or x.is_complex() else 0.0


def _move_inputs(inputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def move(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
        return x + MOVED * torch.finfo(x.dtype).eps * noise * x

    return [move(x) for x in inputs]
