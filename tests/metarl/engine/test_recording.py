"""What is written down while a function runs is what it does to any other tensors, too."""

import gc
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, fx
from torch.func import functionalize, grad, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.engine.memory import NotRecordableError
from metarl.engine.recorder import record_operations

FACTOR = torch.tensor([2.0, 3.0, 4.0])
ONE = torch.tensor(1.5)


def loss(w: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(torch.tanh(x @ w) * FACTOR).square().mean()


def second_derivatives(w: Tensor, x: Tensor, u: Tensor) -> list[Tensor]:
    def product(w: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return vjp(lambda v: grad(loss)(v, x), w)[1](u)[0]

    return [vmap(product)(w, x, u), vmap(loss)(w, x)]


def in_one_place(w: Tensor, x: Tensor, u: Tensor) -> list[Tensor]:
    y = (w * u).clone()
    y += ONE
    y[0].mul_(2)
    return [y, y.sum()]


def several_results(w: Tensor, x: Tensor, u: Tensor) -> list[Tensor]:
    values, rows = (w + u).sort(-1)
    first, *rest = values.unbind(0)
    return [first * rest[-1], values.gather(-1, rows), x[:, torch.tensor([1, 0])], x.new_ones(3) * float(ONE)]


def inputs(seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g) for shape in ((4, 2, 3), (4, 6, 2), (4, 2, 3))]


def run(graph: fx.Graph) -> Callable[..., Sequence[Tensor]]:
    assert graph.owning_module is not None
    return fx.GraphModule(graph.owning_module, graph)


@pytest.mark.parametrize("function", [second_derivatives, several_results, functionalize(in_one_place)])
def test_the_record_is_the_function_on_other_tensors(function: Callable[..., list[Tensor]]) -> None:
    replay = run(record_operations(function, inputs(0)))
    for got, wanted in zip(replay(*inputs(1)), function(*inputs(1)), strict=True):
        assert torch.equal(got, wanted)


def test_the_operations_are_those_that_torch_traces() -> None:
    silent = {"detach", "lift_fresh", "lift_fresh_copy", "_unsafe_view", "view", "clone"}  # what tracing makes of them

    def names(graph: fx.Graph) -> list[str]:
        found = [str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"]
        return [name for name in found if name not in silent]

    traced = make_fx(second_derivatives, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs(0))
    assert names(record_operations(second_derivatives, inputs(0))) == names(traced.graph)


def test_every_result_is_described() -> None:
    graph = record_operations(lambda w, x, u: [w.mT[:, 1:] @ x.mT, w.to(torch.float64)], inputs(0))
    like = {node.name: node.meta["val"] for node in graph.nodes if node.op != "output"}
    shapes = [(x.shape, x.stride(), x.dtype) for x in like.values()]
    transposed = next(x for name, x in like.items() if name.startswith("slice"))
    assert ((4, 2, 6), (12, 6, 1), torch.float32) in shapes
    assert ((4, 2, 3), (6, 3, 1), torch.float64) in shapes
    assert (transposed.stride(), transposed.storage_offset()) == ((6, 1, 3), 1)
    assert {x.device.type for x in like.values()} == {"meta"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x * float(x.sum())],
        lambda x: [x if x.sum() > 0 else -x],
        lambda x: [x * torch.as_tensor(x.numpy())],
        lambda x: [x * torch.as_tensor(np.asarray(x))],
        lambda x: [x * torch.tensor(x.tolist())],
        lambda x: [x[x > 0]],
        lambda x: [x[: int(x.argmax())]],
        lambda x: [x * float(torch.rand(()))],
    ],
)
def test_values_are_refused(function: Callable[[Tensor], list[Tensor]]) -> None:
    function(torch.rand(3))
    with pytest.raises(NotRecordableError, match="values"):
        record_operations(function, [torch.rand(3)])


def test_values_that_are_always_the_same_are_given() -> None:
    replay = run(record_operations(lambda x: [x * float(ONE) + torch.as_tensor(FACTOR.numpy())], [torch.zeros(3)]))
    assert torch.equal(replay(torch.ones(3))[0], ONE + FACTOR)


def test_tensors_are_referred_to() -> None:
    factor = torch.ones(3)
    replay = run(record_operations(lambda x: [x * factor], [torch.ones(3)]))
    factor.fill_(7.0)
    assert replay(torch.ones(3))[0].tolist() == [7.0] * 3


def test_nothing_is_kept_that_the_function_lets_go_of() -> None:
    made: list[weakref.ref[Tensor]] = []

    def function(x: Tensor) -> list[Tensor]:
        alive = []
        for _ in range(5):
            x = x * 2.0
            made.append(weakref.ref(x))
            alive.append(sum(ref() is not None for ref in made))
        assert alive == [1] * 5
        return [x]

    record_operations(function, [torch.ones(3)])
    gc.collect()
    assert [ref() for ref in made] == [None] * 5
