"""Sigmoid and softplus against 50 digits, their derivatives too, at any place in memory."""

from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metarl.elementwise import sigmoid, softplus

Function = Callable[[Tensor], Tensor]
POINTS = [
    0.0,
    -0.0,
    *(sign * 10.0**k for k in range(-8, 3) for sign in (1, -1)),
    0.7,
    -0.7,
    3.5,
    -3.5,
    17.0,
    -17.0,
    40.0,
    -40.0,
]


def exactly(order: int, x: float) -> float:
    """The derivative of softplus: 0 itself, 1 the sigmoid s, 2 s (1 - s), 3 s (1 - s) (1 - 2 s)."""
    with mpmath.workdps(80):
        z = mpmath.mpf(x)
        s = 1 / (1 + mpmath.exp(-z))
        rest = 1 / (1 + mpmath.exp(z))
        return float([mpmath.log1p(mpmath.exp(z)), s, s * rest, s * rest * (rest - s)][order])


def derivative(function: Function, order: int) -> Function:
    for _ in range(order):
        function = grad(function)
    return function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("function", "first", "order"), [(f, n, k) for f, n in ((softplus, 0), (sigmoid, 1)) for k in (0, 1, 2)]
)
def test_every_derivative_has_all_its_digits(function: Function, first: int, order: int, dtype: torch.dtype) -> None:
    x = torch.tensor(POINTS, dtype=dtype)
    got = vmap(derivative(function, order))(x).double()
    wanted = torch.tensor([exactly(first + order, point) for point in x.tolist()], dtype=torch.float64)
    info = torch.finfo(dtype)
    # s (1 - s) (1 - 2 s) crosses zero at 0: there it has the error of its terms
    allowed = 8 * info.eps * torch.where(x.abs() < 1, wanted.abs().max(), wanted.abs()) + 8 * info.tiny
    if first + order < 3:
        allowed = 8 * info.eps * wanted.abs() + 8 * info.tiny
    assert ((got - wanted).abs() <= allowed).all(), (got - wanted).abs() / allowed


@pytest.mark.parametrize("function", [sigmoid, softplus])
def test_at_infinity_and_nan(function: Function) -> None:
    x = torch.tensor([-torch.inf, torch.inf, torch.nan])
    values, slopes = function(x), vmap(grad(function))(x)
    assert values.tolist()[:2] == [0.0, 1.0 if function is sigmoid else torch.inf]
    assert slopes.tolist()[:2] == [0.0, 0.0 if function is sigmoid else 1.0]
    assert values[2].isnan()
    assert slopes[2].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("function", [sigmoid, softplus])
def test_the_place_in_memory_changes_no_bit(function: Function, order: int, dtype: torch.dtype) -> None:
    x = 3 * torch.randn(160, generator=torch.Generator().manual_seed(0), dtype=dtype)
    mapped = vmap(derivative(function, order))
    whole = mapped(x)
    for size in (1, 3, 8, 20):
        assert torch.equal(torch.cat([mapped(part.clone()) for part in x.split(size)]), whole)
