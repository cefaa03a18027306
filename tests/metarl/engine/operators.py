"""Every operator of PyTorch's database through a record, alone and in compositions, against plain `vmap`.

A program is recorded on some data and run on other data. What comes out is one of three words: `equal`, `refused` (with
a reason), `different`; or `plain fails`, where there is nothing to compare with.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils import _pytree as pytree

from metarl.engine.graph import trace
from metarl.engine.memory import NotRecordableError
from metarl.engine.program import NotPlannableError, Plan, Program

TASKS = 3
Function = Callable[..., list[Tensor]]


class Case(NamedTuple):
    """A function over tasks with the data it is recorded on and the data it is run on."""

    name: str
    operator: str
    kind: str  # values, gradient, hvp
    data: str  # recorded on: usual, zeros, equal
    function: Function
    first: list[Tensor]
    then: list[Tensor]


class Outcome(NamedTuple):
    word: str
    reason: str = ""


def outcome(case: Case) -> Outcome:
    """Record, run on other data, compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes, deprecations and complex parts: the operators' own
        warnings.filterwarnings("error", message="An output with one or more elements was resized")
        try:
            with torch.no_grad():
                case.function(*case.first)
                wanted = case.function(*case.then)
        except Exception as error:
            return Outcome("plain fails", str(error)[:80])
        try:
            program = Program(Plan(trace(case.function, case.first).graph))
        except (NotRecordableError, NotPlannableError) as error:
            return Outcome("refused", str(error).split("\n")[0])
        except Exception as error:  # no record either, and the reason is torch's
            return Outcome("refused", f"{type(error).__name__}: {str(error).strip()[:100]}")
        try:
            with torch.no_grad():
                found = program.run(case.then)
            for got, expected in zip(found, wanted, strict=True):
                torch.testing.assert_close(got, expected, rtol=2e-4, atol=1e-5 * _scale(expected), equal_nan=True)
        except Exception as error:
            return Outcome("different", f"{type(error).__name__}: {str(error).strip()[:300]}")
    return Outcome("equal")


def _scale(x: Tensor) -> float:
    numbers = x.abs().double() if x.is_floating_point() or x.is_complex() else x.double().abs()
    finite = numbers[torch.isfinite(numbers)]
    return max(1.0, float(finite.max())) if finite.numel() else 1.0


def cases(operator: Any, dtype: torch.dtype, number: int = 2) -> Iterator[Case]:
    """Of the first samples of an operator in the database."""
    torch.manual_seed(0)
    for i, sample in enumerate(_samples(operator, dtype, number)):
        flat, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [k for k, x in enumerate(flat) if isinstance(x, Tensor)]
        if not places or any(x.numel() > 50_000 or x.layout != torch.strided for x in flat if isinstance(x, Tensor)):
            continue
        call = functools.partial(_call, operator, flat, spec, places)
        leaves = [flat[k].detach() for k in places]
        name = f"{operator.name}{'.' + operator.variant_test_name if operator.variant_test_name else ''}[{i}]"
        yield from _cases_of(name, call, leaves, i, dtype, operator)


def _samples(operator: Any, dtype: torch.dtype, number: int) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = []
        try:
            for sample in operator.sample_inputs("cpu", dtype, requires_grad=False):
                found.append(sample)
                if len(found) == number:
                    break
        except Exception:  # an operator without samples of this type
            return []
    return found


def _call(operator: Any, flat: list[Any], spec: Any, places: list[int], *leaves: Tensor) -> list[Tensor]:
    values = list(flat)
    for k, leaf in zip(places, leaves, strict=True):
        values[k] = leaf
    first, args, kwargs = pytree.tree_unflatten(values, spec)
    return [x for x in pytree.tree_leaves(operator(first, *args, **kwargs)) if isinstance(x, Tensor)]


def _cases_of(
    name: str, call: Function, leaves: list[Tensor], i: int, dtype: torch.dtype, operator: Any
) -> Iterator[Case]:
    then = [_laid_out(_varied(leaf, 1 + k), i + k) for k, leaf in enumerate(leaves)]
    composed = functools.partial(composition, call)
    moving = [k for k, leaf in enumerate(leaves) if leaf.is_floating_point()]
    functions = {("alone", "values"): vmap(call), ("composed", "values"): vmap(composed)}
    if moving and dtype.is_floating_point and operator.supports_autograd:
        gradient = functools.partial(_gradient, composed, moving)
        functions["composed", "gradient"] = vmap(gradient)
        if operator.supports_gradgrad:
            functions["composed", "hvp"] = vmap(functools.partial(_hvp, gradient, moving))
    for data, fill in DATA.items():
        first = [fill(leaf) for leaf in leaves]
        for (way, kind), function in functions.items():
            if data == "usual" or way == "composed":
                yield Case(f"{name} {way}", operator.name, kind, data, function, first, then)


def composition(call: Function, *leaves: Tensor) -> list[Tensor]:
    """The operator's results are used by elementwise operations after other intermediates were made."""
    made = [leaf.clone() for leaf in leaves]
    outs = call(*made)
    other = [_usual(out).sin() for out in outs]  # memory that is free again is taken here
    more = [torch.cos(x + 1) * x for x in other]
    used = [_use(out) for out in outs]
    again = [a * b + c for a, b, c in zip(other, more, used, strict=True)]
    flags = [(out != 0) * 2 + (out == 1) * 1.5 for out in outs]
    return [*again, *(x + a.exp().clamp(max=9) for x, a in zip(used, other, strict=True)), *flags]


def _usual(x: Tensor) -> Tensor:
    """As real numbers of moderate size."""
    if x.is_complex():
        x = torch.view_as_real(x).sum(-1)
    return torch.nn.functional.softsign(x if x.is_floating_point() else x * 0.5)


def _use(x: Tensor) -> Tensor:
    if x.dtype == torch.bool:
        return x * 2 + (x == 2)
    return _usual(x * 2 - 1) * 0.5


def _gradient(composed: Function, moving: Sequence[int], *leaves: Tensor) -> list[Tensor]:
    def loss(*moved: Tensor) -> Tensor:
        given = list(leaves)
        for k, x in zip(moving, moved, strict=True):
            given[k] = x
        return torch.stack([x.sum() for x in composed(*given) if x.is_floating_point()]).sum()

    return list(grad(loss, tuple(range(len(moving))))(*(leaves[k] for k in moving)))


def _hvp(gradient: Function, moving: Sequence[int], *leaves: Tensor) -> list[Tensor]:
    def at(*moved: Tensor) -> tuple[Tensor, ...]:
        given = list(leaves)
        for k, x in zip(moving, moved, strict=True):
            given[k] = x
        return tuple(gradient(*given))

    at_leaves = [leaves[k] for k in moving]
    return list(vjp(at, *at_leaves)[1](tuple(torch.ones_like(x) for x in at_leaves)))


def _same_for_all(leaf: Tensor) -> Tensor:
    return torch.stack([leaf] * TASKS)


def _filled(number: float, leaf: Tensor) -> Tensor:
    return torch.full((TASKS, *leaf.shape), number if leaf.is_floating_point() else 0, dtype=leaf.dtype)


DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": _same_for_all,
    "zeros": functools.partial(_filled, 0.0),
    "equal": functools.partial(_filled, 1.0),
}


def _varied(leaf: Tensor, seed: int) -> Tensor:
    """Other tasks, in the domain of most operators: numbers a little smaller; the same integers."""
    whole = _same_for_all(leaf)
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return whole
    random = torch.Generator().manual_seed(seed)
    return whole * (0.9 + 0.1 * torch.rand(whole.shape, generator=random)).to(whole.real.dtype)


def _laid_out(whole: Tensor, way: int) -> Tensor:
    """Contiguous, not contiguous, or one task's for all."""
    if way % 3 == 1 and whole.ndim > 1:
        return whole.transpose(0, -1).contiguous().transpose(0, -1)
    return whole[:1].expand(whole.shape) if way % 3 == 2 else whole
