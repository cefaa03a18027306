"""Recorded programs against the functions they were recorded from."""

import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarl.engine import Execution, calls
from metarl.engine.calls import Script
from metarl.engine.program import Arena, NotPlannableError, Plan, Program
from metarl.engine.repeated import Operations, Repeated, repeat
from metarl.engine.threads import over_threads
from metarl.engine.tracing import traced

Function = Callable[..., Sequence[Tensor]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layer(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    return [torch.tanh(x @ w + b)]


def gradient_of_a_network(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    def loss(w: Tensor, b: Tensor) -> Tensor:
        return (torch.tanh(x @ w + b).softmax(-1).log() * x[..., :1]).mean()

    return list(grad(loss, argnums=(0, 1))(w, b))


def views(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    y = (x * 2).transpose(0, 1)
    return [y, y[1:], x, x, (y + 1).flatten(), b.expand(3, 4) + 1]


def writes_into_what_it_made(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    y = x.clone()
    y[0] += 1
    return [y.mul_(3), y.sum().reshape(1)]


def mixed(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    flags = (x > 0) & ~(x > 1)
    chosen = torch.where(flags, x, torch.tensor(7.0))
    order = x.argsort(-1)
    return [chosen, x.gather(-1, order), flags, x[order[:, 0], 1], (x + 1).int() * 3 / 2, x.amax(0), 1 - x, x / 3 - 0.5]


def shadowed(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    """Elementwise operations in a row, of which some inputs are needed later."""
    a = x + 1
    c = a * a
    d = c - a
    return [d.exp() * c + a, (d + x).abs().sqrt()]


FUNCTIONS = [layer, gradient_of_a_network, views, writes_into_what_it_made, mixed, shadowed]


def inputs() -> list[Tensor]:
    return [torch.randn(5, 3), torch.randn(3, 4), torch.randn(4)]


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_is_the_function(function: Function) -> None:
    program = Program(Plan(traced(function, inputs()).graph))
    for given in (inputs(), [2 * x for x in inputs()]):  # nothing of the first run is left in the second
        before = [x.clone() for x in given]
        same(program.run(given), function(*given))
        same(given, before)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("constants", [1, 2])
def test_with_some_inputs_bound(function: Function, constants: int) -> None:
    first = inputs()
    program = Program(Plan(traced(function, first).graph, constants))
    for fixed in (inputs(), inputs()):
        program.bind(fixed[:constants])
        for rest in (inputs()[constants:], inputs()[constants:]):
            same(program.run(rest), function(*fixed[:constants], *rest))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_called_one_by_one_where_it_cannot_be_compiled(
    function: Function, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(source: str) -> None:
        raise RuntimeError("no compiler today")

    graph = traced(function, inputs()).graph
    monkeypatch.setattr(torch.jit, "CompilationUnit", refuse)
    calls._compiled.cache_clear()
    program, given = Program(Plan(graph)), inputs()
    with caplog.at_level(logging.INFO):
        same(program.run(given), function(*given))
        same(program.run(given), function(*given))
    assert [r.message for r in caplog.records] == ["operations are called one by one: no compiler today"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_can_be_compiled_is(function: Function, caplog: pytest.LogCaptureFixture) -> None:
    calls._compiled.cache_clear()
    with caplog.at_level(logging.INFO):
        Program(Plan(traced(function, inputs()).graph)).run(inputs())
    assert not caplog.records
    assert calls._compiled.cache_info().currsize == 1


def test_convolutions_and_normalisation() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers)
    params = {name: leaf.detach().double() for name, leaf in network.named_parameters()}

    def loss(*leaves: Tensor) -> Tensor:
        out: Tensor = functional_call(network, dict(zip(params, leaves, strict=False)), (leaves[-1],))
        return out.square().mean()

    def gradients(*leaves: Tensor) -> list[Tensor]:
        return list(vmap(grad(loss, argnums=tuple(range(len(params)))))(*leaves))

    given = [torch.stack([leaf, leaf + 0.1]) for leaf in params.values()] + [torch.randn(2, 6, 1, 9, 9).double()]
    same(Program(Plan(traced(gradients, given).graph)).run(given), gradients(*given))


def test_random_numbers_are_not_planned() -> None:
    def noisy(x: Tensor) -> list[Tensor]:
        return [x + torch.rand_like(x), x + torch.rand_like(x)]

    graph = traced(noisy, [torch.zeros(50)])
    first, second = graph(torch.zeros(50))
    assert not torch.equal(first, second)  # nor are two draws taken for one
    with pytest.raises(NotPlannableError, match="random numbers"):
        Plan(graph.graph)


def test_places_are_used_again() -> None:
    def chain(x: Tensor) -> list[Tensor]:
        for _ in range(20):
            x = (x @ x).tanh()
        return [x]

    x = torch.randn(64, 64) / 64
    plan = Plan(traced(chain, [x]).graph)
    assert plan.nbytes <= 4 * x.numel() * x.element_size()
    same(Program(plan).run([x]), chain(x))


def test_programs_that_share_their_memory() -> None:
    arena = Arena()
    programs = [(f, Program(Plan(traced(f, inputs()).graph), arena)) for f in FUNCTIONS]
    for _ in range(2):
        for function, program in programs:
            given = inputs()
            same(program.run(given), function(*given))
    with pytest.raises(ValueError, match="arena must be None for a plan with constants"):
        Program(Plan(traced(layer, inputs()).graph, 1), arena)


def test_the_fast_hyperbolic_tangent() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e-8, 100.0, -100.0, torch.inf, -torch.inf])])
    (found,) = Program(Plan(traced(lambda x: [torch.tanh(x)], [x]).graph)).run([x])
    assert float((found.double() - x.double().tanh()).abs().max()) < 2e-7
    (exact,) = Program(Plan(traced(lambda x: [torch.tanh(x)], [x.double()]).graph)).run([x.double()])
    assert torch.equal(exact, x.double().tanh())


def test_duplicates_are_computed_once() -> None:
    graph = traced(lambda x: [x.exp() + x.exp(), x * 1.0 + x * 1], [torch.rand(3)]).graph
    assert len(graph.find_nodes(op="call_function", target=torch.ops.aten.exp.default)) == 1


def counting_down(step: Tensor, state: Tensor, runs: Tensor, noise: Tensor) -> list[Tensor]:
    after = torch.where(runs, state - step, state)
    return [after, runs & (after > 0), after + noise, runs]


@pytest.mark.parametrize("steps", [3, 9])
def test_repeating_is_a_loop(steps: int) -> None:
    state, noise = torch.tensor([2.0, 5.0, 1.0]), torch.randn(steps, 3)
    carried = [state, torch.ones(3, dtype=torch.bool)]
    record = Repeated("steps", counting_down)
    plain = Operations(counting_down)
    plain.bind([torch.ones(())])
    for _ in range(2):  # at which the single steps are compared
        with record.bound([torch.ones(())], [*carried, noise[0]]) as runner:
            same(repeat(runner, carried, [noise])[1], repeat(plain, carried, [noise])[1])
    with record.bound([torch.ones(())], [*carried, noise[0]]) as runner:
        assert isinstance(runner, Program)
        for _ in range(2):
            found, wanted = repeat(runner, carried, [noise]), repeat(plain, carried, [noise])
            same(found[0], wanted[0])
            same(found[1], wanted[1])
            assert len(found[1][0]) == min(steps, 5)  # over when nothing runs on
    assert wanted[1][1][:, 2].tolist() == [True] + [False] * (min(steps, 5) - 1)


def test_programs_in_threads() -> None:
    threads = torch.get_num_threads()
    given = [inputs() for _ in range(40)]
    plan = Plan(traced(gradient_of_a_network, inputs()).graph)
    idle = [Program(plan) for _ in range(3)]

    def work(i: int) -> list[Tensor]:
        program = idle.pop()
        results = [x.clone() for x in program.run(given[i])]
        idle.append(program)
        return results

    try:
        torch.set_num_threads(3)
        found = over_threads(work, range(40))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for i in range(40):
        same(found[i], gradient_of_a_network(*given[i]))


def test_an_error_in_a_thread_is_raised() -> None:
    threads = torch.get_num_threads()

    def work(i: int) -> int:
        if i == 7:
            raise KeyError(i)
        return i

    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError, match="7"):
            over_threads(work, range(20))
        assert over_threads(work, range(7)) == list(range(7))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_no_graph_is_built_in_threads() -> None:
    w = torch.ones(3, requires_grad=True)
    assert not any(x.requires_grad for x in over_threads(lambda i: w * i, range(4)))


def test_a_script_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Script([]).once()
    assert not caplog.records  # it is compiled as any other


def squares(params: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    return (batch["x"] @ params["w"]).square().sum()


@pytest.mark.parametrize(
    ("execution", "size"),
    [
        (Execution(trace=True, memory_budget=40_000), 3),
        (Execution(trace=True, memory_budget=1), 1),
        (Execution(trace=True, chunk_size=4), 4),
        (Execution(trace=True), 7),
    ],
    ids=str,
)
def test_chunks_from_a_budget(execution: Execution, size: int) -> None:
    """Seven tasks in chunks of three: the last overlaps the one before."""
    params, batch = {"w": torch.randn(7, 30, 30)}, {"x": torch.randn(7, 30, 30)}
    found = execution.over_tasks("squares", squares, params, batch)
    torch.testing.assert_close(found, vmap(squares)(params, batch))
    (recorded,) = execution._kept
    assert recorded.record is not None
    assert recorded.record.chunk_size == size


def test_what_is_differentiated_is_not_recorded() -> None:
    params, batch = {"w": torch.randn(2, 3, 3, requires_grad=True)}, {"x": torch.randn(2, 3, 3)}
    Execution(trace=True).over_tasks("squares", squares, params, batch).sum().backward()
    assert params["w"].grad is not None


def test_bad_budget() -> None:
    with pytest.raises(ValueError, match="memory_budget must be an integer of at least 1, got 0"):
        Execution(memory_budget=0)
