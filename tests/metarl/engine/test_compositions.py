"""Random programs of views, writes and elementwise operations: recorded on some data, run on other data."""

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from metarl.engine import calls
from metarl.engine.graph import trace
from metarl.engine.program import Plan, Program

N = 4  # every tensor in the pool is [N, N], so that all operations fit

Pool: TypeAlias = list[Tensor]
Step: TypeAlias = tuple[str, int, int, int]

MAKE: dict[str, Callable[[Tensor, Tensor, int], list[Tensor]]] = {
    "sin": lambda x, y, k: [x.sin()],
    "tanh": lambda x, y, k: [x.tanh()],
    "add": lambda x, y, k: [x + y],
    "add_twice": lambda x, y, k: [torch.add(x, y, alpha=k)],
    "mul": lambda x, y, k: [x * y * 0.5],
    "number": lambda x, y, k: [x * k - 0.0, (-0.0 * k) + x],
    "zero": lambda x, y, k: [torch.atan2(x * (0.0 if k % 2 else -0.0), y)],
    "counted": lambda x, y, k: [(x > y) * k + ((x == y) + 1), (x >= 0) * 0.5],
    "where": lambda x, y, k: [torch.where(x > y, x, k)],
    "product": lambda x, y, k: [(x @ y).clamp(-5, 5) / N, torch.tanh(x @ y[:, :1] + y[0])],
    "layer": lambda x, y, k: [torch.tanh(x @ y + y[0])],
    "sum": lambda x, y, k: [x.sum(0, keepdim=True).expand(N, N) / N, x.mean() + y],
    "cat": lambda x, y, k: [torch.cat([x, y])[k : k + N]],
    "stack": lambda x, y, k: [z.clamp(-9, 9) for z in torch.stack([x, y], -1).unbind(-1)],
    "chunk": lambda x, y, k: [torch.cat(x.chunk(2, -1), -1), *[z.repeat(1, 2) for z in x.chunk(2, -1)]],
    "split": lambda x, y, k: [a.expand(N, N) for a in x.split(1, 0)],
    "unbind": lambda x, y, k: [row.expand(N, N) for row in y.unbind(k % 2)],
    "transpose": lambda x, y, k: [x.mT, y.flip(0)],
    "diagonal": lambda x, y, k: [x.diagonal().expand(N, N), y.reshape(2, 8)[k % 2].reshape(2, N).repeat(2, 1)],
    "expand": lambda x, y, k: [x[:, k % N : k % N + 1].expand(N, N).exp().clamp(max=9), y[:1].expand(N, N) * 2],
    "reshape": lambda x, y, k: [x.mT.reshape(-1).view(N, N), y.reshape(N // 2, -1).reshape(N, N)],
    "complex": lambda x, y, k: [(torch.complex(x, y) * (k + 0.5)).imag, torch.complex(x, y).conj().real],
    "integers": lambda x, y, k: [(x.clamp(-9, 9).int() * k / 2).float(), (y > 0).long() * 1.5],
    "sort": lambda x, y, k: [x.sort(-1).values, x.gather(-1, y.argsort(-1))],
    "clone": lambda x, y, k: [x.clone(), y * 1.0, x.contiguous()],
}

WRITE: dict[str, Callable[[Tensor, Tensor, int], Any]] = {
    "add_": lambda x, y, k: x.add_(y),
    "mul_": lambda x, y, k: x.mul_(0.5),
    "row": lambda x, y, k: x[k % N].copy_(y[0]),
    "column": lambda x, y, k: x[:, k % N].add_(y[:, 0]),
    "piece": lambda x, y, k: x[:, k % 2 :: 2].mul_(2).sub_(1),
    "transposed": lambda x, y, k: x.mT.add_(y),
    "set": lambda x, y, k: x.__setitem__((slice(None), k % N), float(k)),
}


def run(steps: list[Step], *leaves: Tensor) -> Pool:
    pool = [leaf + 0 for leaf in leaves]  # what is written into was made here
    for name, i, j, k in steps:
        x, y = pool[i % len(pool)], pool[j % len(pool)]
        if name in MAKE:
            pool += MAKE[name](x, y, k)
        else:
            own = x.clone()
            WRITE[name](own, y, k)
            later = own.view(N, N)
            WRITE[name](later, y, k + 1)
            pool += [own, later.mT]
    return [x.clamp(-50, 50) for x in pool[-12:]]


STEPS = st.lists(
    st.tuples(st.sampled_from([*MAKE, *WRITE]), st.integers(0, 30), st.integers(0, 30), st.integers(0, 3)),
    min_size=2,
    max_size=8,
)
RECORDED_ON = {"zeros": torch.zeros, "equal": torch.ones, "random": torch.randn}


def check(steps: list[Step], recorded_on: str, derivative: bool) -> None:
    torch.manual_seed(0)

    def function(*leaves: Tensor) -> Pool:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([z.sin().sum() for z in run(steps, x, y) if z.is_floating_point()]).sum()

        if derivative:
            return list(vmap(grad(loss, (0, 1)))(*leaves))
        return list(vmap(lambda x, y: run(steps, x, y))(*leaves))

    first = [RECORDED_ON[recorded_on](3, N, N) for _ in range(2)]
    then = [torch.randn(3, N, N).mT, torch.randn(1, N, N).expand(3, N, N)]
    try:
        function(*first)
        expected = function(*then)
    except RuntimeError:  # torch refuses it, as a product of integers with floats
        reject()
    program = Program(Plan(trace(function, first).graph))
    for _ in range(2):
        for found, wanted in zip(program.run(then), expected, strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, equal_nan=True)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS, st.sampled_from(sorted(RECORDED_ON)), st.booleans())
def test_random_compositions(steps: list[Step], recorded_on: str, derivative: bool) -> None:
    check(steps, recorded_on, derivative)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS, st.sampled_from(sorted(RECORDED_ON)))
def test_random_compositions_called_one_by_one(steps: list[Step], recorded_on: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "use_torchscript", False)
        check(steps, recorded_on, derivative=False)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS, st.sampled_from(sorted(RECORDED_ON)), st.booleans())
def test_many_random_compositions(steps: list[Step], recorded_on: str, derivative: bool) -> None:
    check(steps, recorded_on, derivative)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", [*MAKE, *WRITE])
def test_every_step_alone(name: str) -> None:
    for recorded_on in RECORDED_ON:
        check([(name, 0, 1, 1), (name, 2, 0, 2), ("sin", 3, 0, 0)], recorded_on, derivative=recorded_on == "zeros")
