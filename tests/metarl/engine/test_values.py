"""Numbers, types and errors of a record are those of the plain function."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from metarl.engine.calls import CallList, OperationCall
from metarl.engine.graph import trace
from metarl.engine.program import Plan, Program

aten = torch.ops.aten

TYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]
NUMBERS = [True, False, 0, 1, 2, -3, 300, 0.1, -0.0, 2.0, math.inf, math.nan, 1e-40, 1 + 2j]
OPERATIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "add": lambda x, n: x + n,
    "alpha": lambda x, n: torch.add(x, n, alpha=2),
    "sub": lambda x, n: x - n,
    "rsub": lambda x, n: n - x,
    "mul": lambda x, n: x * n,
    "div": lambda x, n: x / n,
    "floor": lambda x, n: torch.div(x, n, rounding_mode="floor"),
    "lt": lambda x, n: x < n,
    "eq": lambda x, n: x == n,
    "ne": lambda x, n: x != n,
    "pow": lambda x, n: x**n,
    "where": lambda x, n: torch.where(x == x, n, x),
    "fill": lambda x, n: x.masked_fill(x == x, n),
    "maximum": lambda x, n: x.clamp(min=n),
    "scalar": lambda x, n: aten.add.Scalar(x, n, 3),
}


def run(function: Callable[..., list[Tensor]], first: list[Tensor], then: list[Tensor]) -> list[Tensor]:
    return Program(Plan(trace(function, first).graph)).run(then)


@pytest.mark.usefixtures("way")
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_numbers_beside_tensors(name: str, dtype: torch.dtype) -> None:
    """Bit for bit and type for type, for tensors with dimensions and without."""
    data = torch.tensor([0.0, 1.0, 5.0, 100.3]).to(dtype)
    for number in NUMBERS:
        for x in (data, data[2]):

            def function(x: Tensor, number: Any = number) -> list[Tensor]:
                return [OPERATIONS[name](x, number)]

            try:
                wanted = function(x)[0]
            except (RuntimeError, TypeError, ValueError):
                continue
            (found,) = run(function, [torch.ones_like(x)], [x])
            assert found.dtype == wanted.dtype, number
            torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True, msg=f"{number} {x}")
            if not wanted.is_complex() and wanted.is_floating_point():
                assert torch.equal(found.signbit() & (found == 0), wanted.signbit() & (wanted == 0)), number


@pytest.mark.usefixtures("way")
def test_a_bool_is_counted() -> None:
    def function(w: Tensor) -> list[Tensor]:
        flags = w > 1
        return [(flags * 2).sum(), flags + 1, flags == 2, flags * 2.5, (flags * 1).sum(0)]

    found = run(function, [torch.zeros(3)], [torch.full((3,), 5.0)])
    assert [x.tolist() for x in found] == [6, [2] * 3, [False] * 3, [2.5] * 3, 3]


@pytest.mark.usefixtures("way")
def test_constants_that_are_equal_but_not_the_same() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [
            *(torch.atan2(x * zero, -torch.ones_like(x)) for zero in (0.0, -0.0)),
            *(torch.full_like(x, number).reciprocal() for number in (0.0, -0.0)),
            *(torch.full((2,), number, dtype=None) for number in (1, 1.0, True)),
            *(torch.full((2,), number) for number in (complex(0.0, -0.0), complex(0.0, 0.0))),
            *(torch.full((2,), number) for number in (math.nan, math.inf, -math.inf, 1e-45)),
        ]

    found = run(function, [torch.zeros(2)], [torch.ones(2)])
    for a, b in zip(found, function(torch.ones(2)), strict=True):
        assert a.dtype == b.dtype
        assert a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize(
    "number",
    [
        *(0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, 0.1, 1e22, 1 / 3),
        *(2**63 - 1, -(2**63), True, False, complex(0.0, -0.0), complex(math.inf, -math.nan), complex(1e-45, 1e22)),
        *(np.float64(0.1), np.float32(0.1).item(), np.int64(-3).item()),
    ],
)
def test_the_text_of_a_number_is_exact(number: Any) -> None:
    word = CallList([])._literal(number)
    back = torch.jit.CompilationUnit(f"def run():\n    return {word}\n").run()
    plain = {float: float, complex: complex}.get(type(number), type(number))(number)
    parts = [(back, plain)]
    if isinstance(plain, complex):
        parts = [(back.real, plain.real), (back.imag, plain.imag)]
    for found, wanted in parts:
        assert repr(found) == repr(float(wanted) if isinstance(wanted, float) else wanted).replace("-nan", "nan")


def test_numbers_without_text_are_called_from_python() -> None:
    for number in (2**70, object()):
        try:
            word = CallList([])._literal(number)
        except ValueError:
            continue
        with pytest.raises(RuntimeError, match="out of range"):
            torch.jit.CompilationUnit(f"def run():\n    return {word}\n")


def test_another_operation_of_the_same_name_is_not_taken() -> None:
    x, out = torch.tensor([1.0, 3.0]), torch.empty(1)
    script = CallList([OperationCall(aten.std.correction, (x, [0]), {"keepdim": True, "correction": 0}, None, out)])
    script.run()
    assert out.tolist() == [1.0]
    assert script._functions


CHECKS: dict[str, tuple[Callable[[Tensor], Tensor], Any, Any]] = {
    "cholesky": (lambda a: torch.linalg.cholesky(a), [[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]]),
    "inverse": (lambda a: torch.linalg.inv(a), [[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]),
    "solve": (lambda a: torch.linalg.solve(a, a + 1), [[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]),
    "cross_entropy": (lambda x: functional.binary_cross_entropy(x, x * 0 + 1), [0.5, 0.5], [0.5, 1.5]),
    "division": (lambda x: torch.div(6, x.int(), rounding_mode="floor") * 1.0, [1.0, 2.0], [1.0, 0.0]),
    "gather": (lambda x: x.gather(0, x.long()), [0.0, 1.0], [0.0, 7.0]),
    "index": (lambda x: x[x.long()], [0.0, 1.0], [0.0, 7.0]),
    "nll": (lambda x: functional.nll_loss(x.expand(2, 2), x.long()), [0.0, 1.0], [0.0, 7.0]),
    "embedding": (lambda x: functional.embedding(x.long(), x.view(2, 1)), [0.0, 1.0], [0.0, 7.0]),
}


def asserts(x: Tensor) -> Tensor:
    torch._assert_async((x < 3).all())
    return x * 2


def asserts_with_a_message(x: Tensor) -> Tensor:
    torch._assert_async((x < 3).all(), "x is too large")
    return x * 2


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("wanted", [True, False], ids=["used", "unused"])
@pytest.mark.parametrize("name", [*CHECKS, "asserts", "asserts_with_a_message"])
def test_errors_are_raised_as_without_a_record(name: str, wanted: bool) -> None:
    """Also by what nobody uses, such as the loss itself where its gradient is wanted."""
    own = {"asserts": asserts, "asserts_with_a_message": asserts_with_a_message}
    function, good, bad = (own[name], [1.0, 2.0], [1.0, 5.0]) if name in own else CHECKS[name]

    def checked(x: Tensor) -> list[Tensor]:
        y = function(x)
        return [y.sum() + x.sum()] if wanted else [x.sum() * 2]

    first, then = torch.tensor(good), torch.tensor(bad)
    program = Program(Plan(trace(checked, [first]).graph))
    torch.testing.assert_close(program.run([first]), checked(first))
    with pytest.raises(Exception) as plain:  # noqa: PT011
        checked(then)
    for _ in range(2):
        with pytest.raises(type(plain.value)):
            program.run([then])
        torch.testing.assert_close(program.run([first]), checked(first))


def test_the_check_of_a_loss_stays_in_its_gradient() -> None:
    def loss(x: Tensor) -> Tensor:
        return functional.binary_cross_entropy(x, torch.ones_like(x))

    gradient = vmap(grad(loss))
    program = Program(Plan(trace(lambda x: [gradient(x)], [torch.full((3, 2), 0.5)]).graph))
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        program.run([torch.full((3, 2), 1.5)])


def test_tanh_is_accurate_in_relative_terms() -> None:
    x = torch.cat([torch.logspace(-38, 2, 4001), -torch.logspace(-38, 2, 4001), torch.tensor([0.0, -0.0, 2e-8])])
    (found,) = run(lambda x: [torch.tanh(x)], [torch.ones_like(x)], [x])
    assert torch.equal(found, x.tanh())
    torch.testing.assert_close(found.double(), x.double().tanh(), rtol=1e-6, atol=0)
    slope = vmap(grad(lambda w: torch.log(torch.tanh(w).square()).sum()))
    small = torch.full((2, 3), 2e-8)
    (found,) = run(lambda w: [slope(w)], [torch.ones(2, 3)], [small])
    torch.testing.assert_close(found, slope(small), rtol=1e-5, atol=0)


PLACES = """
import torch
from metarl.engine.program import Plan, Program
from metarl.engine.graph import trace
torch.set_num_threads(1)
def network(x, w):
    y = torch.tanh(x @ w)
    return [y, torch.tanh(y * 3 - 1).square()]
def program(n):
    return Program(Plan(trace(network, [torch.rand(n, 5, 3), torch.rand(n, 3, 7)]).graph))
x, w = torch.randn(12, 5, 3), torch.randn(12, 3, 7)
whole = [y.clone() for y in program(12).run([x, w])]
for n in (1, 2, 3, 4, 6):
    some = program(n)
    for s in range(0, 12, n):
        for a, b in zip(some.run([x[s:s+n], w[s:s+n]]), whole):
            assert torch.equal(a, b[s:s+n]), (n, s)
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_a_network_of_tanh_does_not_depend_on_its_neighbours(capability: str) -> None:
    """Whatever the width of the processor's vectors; where it has no such vectors torch takes shorter ones."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PLACES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
