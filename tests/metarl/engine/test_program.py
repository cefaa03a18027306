"""Recorded programs against the functions they were recorded from."""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarl.engine import Engine, RepeatedFunction, calls, records
from metarl.engine.calls import CallList
from metarl.engine.graph import trace
from metarl.engine.program import Arena, NotPlannableError, Plan, Program
from metarl.engine.runners import PlainRunner, repeat
from metarl.engine.threads import over_threads

Function = Callable[..., Sequence[Tensor]]

both_ways = pytest.mark.usefixtures("way")


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


@both_ways
@pytest.mark.parametrize("function", FUNCTIONS)
def test_is_the_function(function: Function) -> None:
    program = Program(Plan(trace(function, inputs()).graph))
    for given in (inputs(), [2 * x for x in inputs()]):  # nothing of the first run is left in the second
        before = [x.clone() for x in given]
        same(program.run(given), function(*given))
        same(given, before)


@both_ways
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("constants", [1, 2])
def test_with_some_inputs_bound(function: Function, constants: int) -> None:
    first = inputs()
    program = Program(Plan(trace(function, first).graph, constants))
    for fixed in (inputs(), inputs()):
        program.bind(fixed[:constants])
        for rest in (inputs()[constants:], inputs()[constants:]):
            same(program.run(rest), function(*fixed[:constants], *rest))


def refuse(source: str) -> None:
    raise RuntimeError("no compiler today")


def warn(source: str) -> Any:
    warnings.warn("TorchScript is deprecated", DeprecationWarning, stacklevel=2)
    return torch._C.CompilationUnit(source)


def without_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "jit")


MISSING: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no compiler today": lambda patch: patch.setattr(torch.jit, "CompilationUnit", refuse),
    "module 'torch' has no attribute 'jit'": without_jit,
    "module 'torch.jit' has no attribute 'optimized_execution'": lambda patch: patch.delattr(
        torch.jit, "optimized_execution"
    ),
}


@pytest.mark.parametrize("reason", MISSING)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_called_one_by_one_where_torchscript_is_missing(
    function: Function, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph = trace(function, inputs()).graph
    program, given = Program(Plan(graph)), inputs()
    wanted = function(*given)
    MISSING[reason](monkeypatch)
    calls.compile_script.cache_clear()
    with caplog.at_level(logging.INFO):
        found = [[x.clone() for x in program.run(given)] for _ in range(2)]
    monkeypatch.undo()
    for results in found:
        same(results, wanted)
    assert [r.message for r in caplog.records] == [f"operations are called one by one: {reason}"]


def test_warnings_that_torchscript_is_deprecated_are_no_errors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.jit, "CompilationUnit", warn)
    calls.compile_script.cache_clear()
    with caplog.at_level(logging.INFO):
        Program(Plan(trace(layer, inputs()).graph)).run(inputs())
    assert not caplog.records


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_can_be_compiled_is(function: Function, caplog: pytest.LogCaptureFixture) -> None:
    calls.compile_script.cache_clear()
    with caplog.at_level(logging.INFO):
        Program(Plan(trace(function, inputs()).graph)).run(inputs())
    assert not caplog.records
    assert calls.compile_script.cache_info().currsize == 1


@both_ways
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
    same(Program(Plan(trace(gradients, given).graph)).run(given), gradients(*given))


def test_random_numbers_are_not_planned() -> None:
    def noisy(x: Tensor) -> list[Tensor]:
        return [x + torch.rand_like(x), x + torch.rand_like(x)]

    graph = trace(noisy, [torch.zeros(50)])
    first, second = graph(torch.zeros(50))
    assert not torch.equal(first, second)  # nor are two draws taken for one
    with pytest.raises(NotPlannableError, match="random numbers"):
        Plan(graph.graph)


@both_ways
def test_places_are_used_again() -> None:
    def chain(x: Tensor) -> list[Tensor]:
        for _ in range(20):
            x = (x @ x).tanh()
        return [x]

    x = torch.randn(64, 64) / 64
    plan = Plan(trace(chain, [x]).graph)
    assert plan.nbytes <= 4 * x.numel() * x.element_size()
    same(Program(plan).run([x]), chain(x))


@both_ways
def test_programs_that_share_their_memory() -> None:
    arena = Arena()
    programs = [(f, Program(Plan(trace(f, inputs()).graph), arena)) for f in FUNCTIONS]
    for _ in range(2):
        for function, program in programs:
            given = inputs()
            same(program.run(given), function(*given))


def test_the_fast_hyperbolic_tangent() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e-8, 100.0, -100.0, torch.inf, -torch.inf])])
    (found,) = Program(Plan(trace(lambda x: [torch.tanh(x)], [x]).graph)).run([x])
    assert float((found.double() - x.double().tanh()).abs().max()) < 2e-7
    (exact,) = Program(Plan(trace(lambda x: [torch.tanh(x)], [x.double()]).graph)).run([x.double()])
    assert torch.equal(exact, x.double().tanh())


def test_duplicates_are_computed_once() -> None:
    graph = trace(lambda x: [x.exp() + x.exp(), x * 1.0 + x * 1], [torch.rand(3)]).graph
    assert len(graph.find_nodes(op="call_function", target=torch.ops.aten.exp.default)) == 1


SPECIAL = torch.tensor([[0.0, -0.0, 1.5], [torch.nan, torch.inf, -torch.inf]])
SIMPLER: dict[str, tuple[Function, set[str]]] = {
    "relu": (lambda x: [torch.relu(x)], {"clamp_min"}),
    "first power": (lambda x: [x**1.0 + 1, x**2], {"add", "pow"}),
    "factor of power 0": (lambda x: [(x - 1) * x**0.0], {"sub"}),
    "factor of another power": (lambda x: [(x - 1) * x**2], {"sub", "pow", "mul"}),
    "ones like what is not needed": (lambda x: [torch.ones_like(x.exp()) - x], {"full", "sub"}),
    "integers": (lambda x: [x.nan_to_num(3, 4, 5).int() ** 1 + 1], {"nan_to_num", "_to_copy", "add"}),
}


@both_ways
@pytest.mark.parametrize("name", SIMPLER)
def test_simpler_operations_give_the_same_bits(name: str) -> None:
    function, left = SIMPLER[name]
    graph = trace(function, [SPECIAL]).graph
    assert {x.target._opname for x in graph.nodes if x.op == "call_function"} == left  # type: ignore[union-attr]
    for found, wanted in zip(Program(Plan(graph)).run([SPECIAL]), function(SPECIAL), strict=True):
        assert found.dtype == wanted.dtype
        assert found.numpy().tobytes() == wanted.numpy().tobytes()  # NaN and the sign of zero, too


def test_products_with_one_column_need_no_copy() -> None:
    a, b = torch.randn(3, 20, 4), torch.randn(3, 4, 1)
    graph = trace(lambda a, b: [a @ b, (a @ b).mT + 1], [a, b]).graph
    assert not graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)
    same(Program(Plan(graph)).run([a, b]), [a @ b, (a @ b).mT + 1])


def counting_down(step: Tensor, state: Tensor, runs: Tensor, noise: Tensor) -> list[Tensor]:
    after = torch.where(runs, state - step, state)
    return [after, runs & (after > 0), after + noise, runs]


@both_ways
@pytest.mark.parametrize("steps", [3, 9])
def test_repeating_is_a_loop(steps: int) -> None:
    state, noise = torch.tensor([2.0, 5.0, 1.0]), torch.randn(steps, 3)
    carried = [state, torch.ones(3, dtype=torch.bool)]
    engine, one = Engine(), torch.ones(())
    step = RepeatedFunction("steps", counting_down, [one], (counting_down,), None)
    plain = PlainRunner(counting_down)
    plain.bind([one])
    for _ in range(2):  # at which the single steps are compared
        same(engine.repeat(step, carried, [noise])[1], repeat(plain, carried, [noise])[1])
    with engine.bind(step, [*carried, noise[0]]) as runner:
        assert isinstance(runner, Program)
        for _ in range(2):
            found, wanted = repeat(runner, carried, [noise]), repeat(plain, carried, [noise])
            same(found[0], wanted[0])
            same(found[1], wanted[1])
            assert len(found[1][0]) == min(steps, 5)  # over when nothing runs on
    assert wanted[1][1][:, 2].tolist() == [True] + [False] * (min(steps, 5) - 1)


@both_ways
def test_programs_in_threads() -> None:
    threads = torch.get_num_threads()
    given = [inputs() for _ in range(40)]
    plan = Plan(trace(gradient_of_a_network, inputs()).graph)
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


def test_a_list_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        CallList([]).run()
    assert not caplog.records  # it is compiled as any other


def squares(params: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    return (batch["x"] @ params["w"]).square().sum()


@pytest.mark.parametrize(
    ("engine", "budget", "size"),
    [(Engine(), 40_000, 3), (Engine(), 1, 1), (Engine(chunk_size=4), records.CACHE, 4), (Engine(), records.CACHE, 7)],
    ids=str,
)
def test_chunks_that_fit_the_memory(engine: Engine, budget: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tasks in chunks of three: the last overlaps the one before."""
    monkeypatch.setattr(records, "memory_budget", lambda device: budget)
    params, batch = {"w": torch.randn(7, 30, 30)}, {"x": torch.randn(7, 30, 30)}
    found = engine.over_tasks("squares", squares, params, batch)
    torch.testing.assert_close(found, vmap(squares)(params, batch))
    (record,) = engine._cache
    assert isinstance(record, records.TaskRecord)
    assert record.chunk_size == size


def test_what_is_differentiated_is_not_recorded() -> None:
    params, batch = {"w": torch.randn(2, 3, 3, requires_grad=True)}, {"x": torch.randn(2, 3, 3)}
    Engine().over_tasks("squares", squares, params, batch).sum().backward()
    assert params["w"].grad is not None


def step_of_a_network(w: Tensor, state: Tensor, runs: Tensor, noise: Tensor) -> list[Tensor]:
    after = torch.tanh(state @ w) + 0.1 * noise
    return [after, runs & (after[:, 0] < 0.99), after.square().sum(1), runs]


def test_both_ways_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A derivative in chunks, and steps that are repeated."""
    params, batch = {"w": torch.randn(7, 30, 30)}, {"x": torch.randn(7, 30, 30)}
    w, noise, carried = torch.randn(4, 4), torch.randn(9, 5, 4), [torch.zeros(5, 4), torch.ones(5, dtype=torch.bool)]

    def run(compiled: bool) -> list[Tensor]:
        monkeypatch.setattr(calls, "use_torchscript", compiled)
        engine = Engine(chunk_size=3)
        step = RepeatedFunction("steps", step_of_a_network, [w], (step_of_a_network,), None)
        for _ in range(3):  # in the third, steps are not compared one by one
            at_end, kept = engine.repeat(step, carried, [noise])
        return [engine.over_tasks("gradients", grad(squares), params, batch)["w"], *at_end, *kept]

    for one, other in zip(run(True), run(False), strict=True):
        assert torch.equal(one, other)
