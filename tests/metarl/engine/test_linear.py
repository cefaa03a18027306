"""Functions with fixed arguments and many vectors: the numbers of the whole function, with a part of its work."""

import gc
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from metarl.engine import Engine, RecordWarning, linear
from metarl.engine.graph import trace
from metarl.engine.linear import FixedFunction
from metarl.engine.program import Arena, Plan, Program
from metarl.types import Params

TASKS = 6


def loss(w: Params, x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ w["first"])
    hidden = torch.tanh(hidden @ w["second"] + w["bias"])
    return (hidden.softmax(-1) * hidden.exp()).mean()


def product(w: Params, x: Tensor, u: Params) -> Params:
    result: Params = vjp(lambda v: grad(loss)(v, x), w)[1](u)[0]
    return result


def arguments(seed: int, tasks: int = TASKS) -> tuple[Params, Tensor, Params]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"first": (3, 12), "second": (12, 12), "bias": (12,)}
    w, u = ({k: torch.randn(tasks, *shape, generator=g) for k, shape in shapes.items()} for _ in range(2))
    return w, torch.randn(tasks, 30, 3, generator=g), u


def same(found: Params, wanted: Params) -> None:
    for name, leaf in wanted.items():
        torch.testing.assert_close(found[name], leaf, rtol=1e-4, atol=1e-6)


def fixed(multiply: Callable[..., Any]) -> FixedFunction:
    """What a product that has been used keeps."""
    (kept,) = inspect.getclosurevars(multiply).nonlocals["made"]
    assert isinstance(kept, FixedFunction)
    return kept


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("chunk_size", "threads"),
    [(None, 1), (1, 2), (4, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((None, 2), (1, 1), (4, 2)))],
)
def test_products_of_several_points_at_the_same_time(chunk_size: int | None, threads: int) -> None:
    """Each keeps its own numbers, also after another one has ended and its memory is used again."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engine = Engine(chunk_size=chunk_size)
        points = [arguments(seed)[:2] for seed in range(3)]
        products = [engine.linearize("products", product, *point) for point in points[:2]]
        for seed in range(3):
            u = arguments(10 + seed)[2]
            for point, multiply in zip(points, products, strict=False):
                same(multiply(u), vmap(product)(*point, u))
        assert fixed(products[0]) is not fixed(products[1])
        del products[0], multiply
        gc.collect()
        products.append(engine.linearize("products", product, *points[2]))
        for seed in range(2):
            u = arguments(20 + seed)[2]
            for point, one in zip(points[1:], products, strict=True):
                same(one(u), vmap(product)(*point, u))
    finally:
        torch.set_num_threads(before)


def test_a_vector_costs_a_part_of_the_calls() -> None:
    w, x, u = arguments(0)
    leaves = [*w.values(), x, *u.values()]

    def function(*inputs: Tensor) -> list[Tensor]:
        one = dict(zip(w, inputs[:3], strict=True))
        return list(vmap(product)(one, inputs[3], dict(zip(w, inputs[4:], strict=True))).values())

    graph = trace(function, leaves).graph
    program, whole = Program(Plan(graph, 4)), Program(Plan(graph))
    assert len(program.once) + len(program.always) == len(whole.always)
    assert len(program.always) < 0.7 * len(whole.always)
    # what only fixed values need does not keep its place
    plan = Plan(graph, 4)
    made = [node for node in plan.nodes if node not in plan.varying and plan.place.get(node) is not None]
    assert len(plan.fixed_places) < len(made)
    assert plan.fixed_bytes < plan.nbytes


def test_programs_with_constants_share_the_rest() -> None:
    def function(a: Tensor, b: Tensor) -> list[Tensor]:
        return [(a.exp() @ b).tanh() @ a.exp()]

    graph, arena = trace(function, [torch.zeros(4, 4)] * 2).graph, Arena()
    constants = [torch.randn(4, 4) for _ in range(3)]
    programs = [Program(Plan(graph, 1), arena) for _ in constants]
    for program, constant in zip(programs, constants, strict=True):
        program.bind([constant])
    for _ in range(2):
        for program, constant in zip(programs, constants, strict=True):
            given = torch.randn(4, 4)
            torch.testing.assert_close(program.run([given])[0], function(constant, given)[0])


def test_a_wrong_record_is_noticed() -> None:
    w, x, u = arguments(0)
    multiply = Engine().linearize("products", product, w, x)
    same(multiply(u), vmap(product)(w, x, u))
    found = fixed(multiply)
    for group in found._programs:
        for program in group:
            program.bind([torch.zeros_like(leaf[: found._record.chunk_size]) for leaf in found._leaves])
    with pytest.warns(RecordWarning, match="products for many vectors is wrong at use 2"):
        same(multiply(u), vmap(product)(w, x, u))
    same(multiply(u), vmap(product)(w, x, u))


@pytest.mark.parametrize("why", ["no record", "too large", "differentiated"])
def test_without_a_record_it_is_the_whole_function(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x, u = arguments(0)
    if why == "too large":
        monkeypatch.setattr(linear, "KEPT", 1000)
    if why == "differentiated":
        u = {k: v.requires_grad_() for k, v in u.items()}
    multiply = Engine(record=why != "no record").linearize("products", product, w, x)
    found = multiply(u)
    same(found, vmap(product)(w, x, u))
    assert found["bias"].requires_grad == (why == "differentiated")
