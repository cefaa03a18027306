"""Whose memory a result lies in, who may write there, and when."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metarl.engine import Engine, RepeatedFunction, calls
from metarl.engine.graph import trace
from metarl.engine.memory import NotRecordableError
from metarl.engine.program import Plan, Program
from metarl.engine.recorder import record_operations
from metarl.engine.runners import PlainRunner, repeat

aten = torch.ops.aten

VIEWS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "chunk": lambda x: x.chunk(2, -1),
    "split": lambda x: x.split([1, 3], -1),
    "unbind": lambda x: x.unbind(-1),
    "tensor_split": lambda x: x.tensor_split(3, -1),
    "unsafe_chunk": lambda x: x.unsafe_chunk(2, -1),
    "unsafe_split": lambda x: x.unsafe_split(3, -1),
    "hsplit": lambda x: x.hsplit(2),
    "of_a_view": lambda x: [y.mT for y in x.mT.chunk(2, 0)],
    "views_of_pieces": lambda x: [y.unsqueeze(0)[0] for y in x.chunk(2, -1)],
    "expand": lambda x: [x[:, :1].expand(4, 4), x.expand(4, 4)],
    "reshape": lambda x: [x.reshape(2, 8), x.mT.reshape(16)],
    "maybe_a_copy": lambda x: [x.contiguous(), x.to(x.dtype), x.mT.contiguous(), x.flatten()],
    "diagonal": lambda x: [x.diagonal(), x.diagonal(1)],
    "unfold": lambda x: [x.unfold(-1, 3, 1)],
    "narrow": lambda x: [x.narrow(1, 1, 2), x[1:], x[:, ::2], x[2]],
    "movedim": lambda x: [x.movedim(0, 1), x.squeeze(), x.view(2, 2, 4).permute(2, 0, 1)],
    "complex": lambda x: [*torch.view_as_real(torch.view_as_complex(x.view(4, 2, 2))).unbind(-1)],
    "conjugate": lambda x: [torch.complex(x, x + 1).conj().real, torch.complex(x, x + 1).conj().imag],
    "bits": lambda x: [x.view(torch.int32).view(torch.float32)],
    "nothing": lambda x: [x[:0], x[:, :0].expand(4, 0), x.chunk(4, -1)[2]],
    "hidden": lambda x: [aten._unsafe_view(x, [2, 8]), *aten.unsafe_split.Tensor(x, 3, 1)],
}


def used_late(views: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> list[Tensor]:
    """Pieces of a tensor that nothing else holds, used after other tensors were made."""
    pieces = views(x * 3 + 1)
    other = [(x - i).exp() for i in range(4)]
    once = [piece.sin() for piece in pieces]
    return [*once, sum(other[1:], other[0]), *(piece * 2 + 1 for piece in pieces), *pieces]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", VIEWS)
def test_views_keep_their_memory(name: str) -> None:
    def function(x: Tensor) -> list[Tensor]:
        return used_late(VIEWS[name], x)

    for first in (torch.zeros(4, 4), torch.ones(4, 4)):
        program = Program(Plan(trace(function, [first]).graph))
        for seed in range(2):
            x = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
            same(program.run([x]), function(x))


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: [x, x, y],
        lambda x, y: [y, x],
        lambda x, y: [y[1:], (x + 1).mT, x],
        lambda x, y: [z := x + 1, z, z.mT, z * 1.0],
        lambda x, y: [x[:0], x[:0] + 1, x.sum(), x[:0].sum()],
        lambda x, y: [x.expand(2, 4, 4) * 2 + y, x[:, :1].expand(4, 4).mul(y).add(x[:, :1])],
        lambda x, y: [(x.expand(2, 4, 4).exp()).reshape(32), (y[:1].expand(4, 4) + 1).view(16)],
        lambda x, y: [torch.view_as_complex(x[:1, :2].expand(4, 2).exp()).imag],
        lambda x, y: [torch.add(x, y, out=torch.empty(4, 4)), torch.sum(x, 0, out=torch.empty(4))],
    ],
)
def test_results_that_share_memory(function: Callable[..., list[Tensor]]) -> None:
    program = Program(Plan(trace(function, [torch.zeros(4, 4), torch.zeros(4, 4)]).graph))
    x, y = torch.randn(2, 4, 4)
    same(program.run([x, y]), function(x, y))


@pytest.mark.parametrize("given_twice", [True, False])
def test_one_tensor_given_twice_when_recorded(given_twice: bool) -> None:
    x = torch.ones(3)
    program = Program(Plan(trace(lambda a, b: [a - 2 * b], [x, x if given_twice else x.view(3)]).graph))
    assert program.run([torch.ones(3), torch.zeros(3)])[0].tolist() == [1.0] * 3
    with program_of(lambda a, b: [a - 2 * b], [x], [x]) as runner:
        runner.bind([torch.ones(3)])
        assert runner.run([torch.zeros(3)])[0].tolist() == [1.0] * 3


@contextmanager
def program_of(
    function: Callable[..., list[Tensor]], constants: list[Tensor], inputs: list[Tensor]
) -> Iterator[Program]:
    """The program itself: the first two runners compare their steps with the function."""
    engine, repeated = Engine(), RepeatedFunction("steps", function, constants, (function,), None)
    for _ in range(2):
        with engine.bind(repeated, inputs):
            pass
    with engine.bind(repeated, inputs) as runner:
        assert isinstance(runner, Program)
        yield runner


STEPS: dict[str, Callable[..., list[Tensor]]] = {
    "exchanged": lambda c, a, b, runs, n: [b, a, runs, a + n * c],
    "crossed": lambda c, a, b, runs, n: [b * c + 1, a * c + 2, runs, a + n],
    "moved_on": lambda c, a, b, runs, n: [b, b + c + n, runs, a],
    "views": lambda c, a, b, runs, n: [b.flip(0), torch.stack([a, b]).unbind(0)[0], runs, n * c],
    "twice": lambda c, a, b, runs, n: [z := a + b * c, z, runs, n],
    "over": lambda c, a, b, runs, n: [b, a, (a * c > 0) & runs, a - n],
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", STEPS)
def test_what_is_carried_is_read_before_it_is_written(name: str) -> None:
    carried = [torch.tensor([1.0, 2.0]), torch.tensor([-10.0, 20.0]), torch.ones(2, dtype=torch.bool)]
    noise, factor = torch.randn(5, 2), torch.ones(())
    plain = PlainRunner(STEPS[name])
    plain.bind([factor])
    with program_of(STEPS[name], [factor], [*carried, noise[0]]) as runner:
        for found, wanted in zip(repeat(runner, carried, [noise]), repeat(plain, carried, [noise]), strict=True):
            same(found, wanted)


def writes_into_a_piece(x: Tensor) -> list[Tensor]:
    y = x * 2
    first, second = y.chunk(2, -1)
    first.add_(1)
    second.copy_(first.exp())
    y[0] = 7.0
    return [y, first * second]


def writes_by_several(x: Tensor) -> list[Tensor]:
    y, z = x + 1, x * 2
    torch._foreach_add_([y, z], 1.0)  # type: ignore[no-untyped-call]
    return [y * z]


def writes_into_a_constant_made_here(x: Tensor) -> list[Tensor]:
    total = torch.tensor([0.0, 1.0, 2.0, 3.0])
    for row in x.unbind(0):
        total += row
    return [total]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("over_tasks", [True, False])
@pytest.mark.parametrize("function", [writes_into_a_piece, writes_by_several, writes_into_a_constant_made_here])
def test_writes_into_what_was_made(function: Callable[[Tensor], list[Tensor]], over_tasks: bool) -> None:
    if over_tasks and function is not writes_into_a_piece:
        pytest.skip("vmap refuses to write what depends on the task into what does not")
    wanted: Callable[..., list[Tensor]] = vmap(function) if over_tasks else function
    shape = (3, 4, 4) if over_tasks else (4, 4)
    program = Program(Plan(trace(wanted, [torch.zeros(shape)]).graph))
    x = torch.randn(shape)
    same(program.run([x]), wanted(x))


BUFFER = torch.zeros(3)


@pytest.mark.parametrize(
    ("function", "owner"),
    [
        (lambda x: [x.add_(1)], "an argument"),
        (lambda x: [x.view(3)[1:].mul_(2)], "an argument"),
        (lambda x: [torch.add(x, 1, out=x)], "an argument"),
        (lambda x: [BUFFER.add_(1) + x], "refers to"),
        (lambda x: [BUFFER.add_(x)], "refers to"),
        (lambda x: [BUFFER[:1].copy_(x[:1]) + x], "refers to"),
    ],
)
def test_writes_into_what_was_there_are_refused(function: Callable[[Tensor], list[Tensor]], owner: str) -> None:
    x = torch.ones(3)
    with pytest.raises(NotRecordableError, match=owner):
        trace(function, [x])
    assert x.tolist() == [1.0] * 3  # and have not happened
    assert BUFFER.tolist() == [0.0] * 3


def test_hidden_views_are_not_written_into() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x + 1
        z = aten._unsafe_view(y, [3, 1])  # a view that is not declared to be one
        return [z.add_(1), y]

    with pytest.raises(NotRecordableError, match="_unsafe_view"):
        trace(function, [torch.ones(3)])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [(x * 2).data + 1],
        lambda x: [torch.from_dlpack(torch.utils.dlpack.to_dlpack(x)) + 1],
        lambda x: [x.data.view(3) * x],
    ],
)
def test_tensors_in_disguise(function: Callable[[Tensor], list[Tensor]]) -> None:
    """They are found by their memory, and not taken for constants."""
    program = Program(Plan(trace(function, [torch.zeros(3)]).graph))
    x = torch.randn(3)
    same(program.run([x]), function(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x.as_strided((2,), (1,))],
        lambda x: [torch.tensor_split(x, x.long())[0]],
        lambda x: [torch.tensor(x.untyped_storage().tolist())],
        lambda x: [x + x.data_ptr() % 2],
    ],
)
def test_memory_is_not_read_in_passing(function: Callable[[Tensor], list[Tensor]]) -> None:
    function(torch.ones(3))
    with pytest.raises(NotRecordableError):
        record_operations(function, [torch.ones(3)])


def operations_that_write_over_their_arguments() -> list[str]:
    """Elementwise ones, of one and two tensors, with a variant that writes its result into a given tensor."""
    found = []
    for name in dir(aten):
        for overload in getattr(getattr(aten, name), "overloads", list)():
            operation = getattr(getattr(aten, name), overload)
            pointwise = torch.Tag.pointwise in operation.tags and not operation._schema.is_mutable
            if pointwise and len(operation._schema.returns) == 1 and calls._out_variant(operation):
                found.append(f"{name}.{overload}")
    return found


def test_elementwise_operations_may_write_over_any_argument() -> None:
    """As the plan lets them, which takes torch's tag for it."""
    tried = 0
    x, y = torch.rand(1003) + 0.1, torch.rand(1003) + 0.1
    for name in operations_that_write_over_their_arguments():
        packet, overload = name.split(".")
        operation = getattr(getattr(aten, packet), overload)
        kinds = [str(a.type) for a in operation._schema.arguments if not a.has_default_value() and not a.kwarg_only]
        if kinds not in (["Tensor"], ["Tensor", "Tensor"], ["Tensor", "Tensor", "Tensor"]):
            continue
        out, key = calls._out_variant(operation) or ("", "")
        for i in range(len(kinds)):
            given = [x.clone(), y.clone(), (x * y).clone()][: len(kinds)]
            try:
                wanted = operation(*given)
            except (RuntimeError, TypeError):
                continue  # not for floating point numbers
            if wanted.dtype != x.dtype:
                continue
            out(*given, **{key: given[i]})
            torch.testing.assert_close(given[i], wanted, rtol=0, atol=0, equal_nan=True, msg=name)
            tried += 1
    assert tried > 100
