"""The wrappers around an oracle."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl import NonFiniteError, make_method
from metarl.derivatives import gradients
from metarl.supervised import FiniteSumTaskBatch
from metarl.tree import broadcast
from metarl.types import Batch, Params, TaskBatch
from metarl.wrappers import CheckFinite, CountCost, RecordDraws, ReplayDraws, check_finite
from tests.reference import checks, problems
from tests.reference.checks import run
from tests.reference.problems import PROBLEMS, ReferenceProblem


def stacked(problem: ReferenceProblem) -> Params:
    return broadcast(problem.params, problem.tasks.num_tasks)


def test_recording_keeps_roles_points_and_batches_in_order() -> None:
    problem = PROBLEMS["navigation"]()
    recording = RecordDraws(problem.tasks)
    result = make_method("maml", 0.1, 2).update(problem.params, recording, make_method("maml", 0.1, 2).inner)
    assert [d.role for d in recording.draws] == ["inner", "inner", "outer", "hessian", "hessian"]
    first, second = recording.draws[0], recording.draws[1]
    assert all(torch.equal(first.params[k], v) for k, v in stacked(problem).items())
    stepped = checks.unravel(checks.ravel(second.params), second.params)
    g = gradients(problem.tasks, first.params, first.batch)
    for k, v in stepped.items():
        torch.testing.assert_close(v, first.params[k] - 0.1 * g[k])
    assert all(torch.equal(v, recording.draws[1].params[k]) for k, v in recording.draws[3].params.items())
    torch.testing.assert_close(result.score, recording.draws[2].batch["rewards"].sum(-1).mean(-1))


def test_replaying_returns_the_same_batches_at_other_points() -> None:
    problem = problems.regression()
    draws = checks.record(make_method("fo_maml", 0.1), problem)[1]
    replaying = ReplayDraws(problem.tasks, draws)
    elsewhere = {k: v + 1 for k, v in stacked(problem).items()}
    assert replaying.draw(elsewhere, "inner") is draws[0].batch
    with pytest.raises(LookupError, match="'outer', but 'inner' was requested"):
        replaying.draw(elsewhere, "inner")
    assert replaying.draw(elsewhere, "outer") is draws[1].batch  # the failed call took nothing
    with pytest.raises(LookupError, match="ended, but another 'hessian'"):
        replaying.draw(elsewhere, "hessian")


# Counts for each task: gradients, Hessian-vector products, and draws by role (inner, outer, hessian).
COSTS: dict[str, tuple[dict[str, Any], Any]] = {
    "fo_maml": ({}, lambda n: (n + 1, 0, (n, 1, 0))),
    "sign_maml": ({}, lambda n: (n + 1, 0, (n, 1, 0))),
    "moreau": ({}, lambda n: (n + 1, 0, (n, 1, 0))),
    "maml": ({}, lambda n: (n + 1, n, (n, 1, n))),
    "maml_reuse": ({"hessian_data": "reuse"}, lambda n: (n + 1, n, (n, 1, 0))),
    "multi_step_maml": ({}, lambda n: (n + 1, n, (n, 1, n))),
    "maml_plus_plus": ({}, lambda n: (n + 1, n, (n, 1, n))),
    "hf_maml": ({}, lambda n: (3 * n + 1, 0, (n, 1, n))),
    "hf_maml_reuse": ({"hessian_data": "reuse"}, lambda n: (3 * n + 1, 0, (n, 1, 0))),
    "e_maml": ({}, lambda n: (2 * n + 1, n, (n, 1, 0))),  # a score term is a gradient
    "lsf": ({}, lambda n: (3 * n + 1, n, (n, 1, 0))),  # of every trajectory, and a score term
    "binom_maml": ({"order": 2}, lambda n: (n + 1, 2 * n - 1, (n, 1, n))),  # the last step has one product
    "ggs_maml": ({"directions": 2}, lambda n: (5 * n + 1, 0, (n, 1, n))),
    "multitask": ({}, lambda n: (1, 0, (0, 1, 0))),
    "reptile": ({}, lambda n: (n, 0, (n, 1, 0))),
    "imaml": ({"cg_steps": 4}, lambda n: (n + 1, 4, (n, 1, 1))),
}


def wanted_counts(row: str, steps: int, support: int, query: int, tasks: int) -> dict[str, int]:
    first, second, (inner, outer, hessian) = COSTS[row][1](steps)
    counts = {"gradients": first, "hessian_vector_products": second}
    counts["samples"] = (inner + hessian) * support + outer * query
    return {k: tasks * v for k, v in counts.items() if v}


@pytest.mark.parametrize("row", COSTS)
@pytest.mark.parametrize("steps", [1, 3])
def test_exact_counts(row: str, steps: int) -> None:
    method = make_method(row.removesuffix("_reuse"), 0.1, steps, **COSTS[row][0])
    checks.counts(method, problems.regression, wanted_counts(row, steps, support=5, query=7, tasks=3))
    wanted = wanted_counts(row, steps, support=3, query=3, tasks=2)  # three episodes; five steps, none ends early
    wanted["env_steps"] = 5 * wanted["samples"]
    checks.counts(method, lambda: problems.reinforcement_learning("point_velocity"), wanted)


def test_counters_are_nested_once_and_shared() -> None:
    problem, method = problems.regression(), make_method("maml", 0.1, 2)
    outermost, innermost = Counter(), Counter()
    wrapped = CountCost(CheckFinite(RecordDraws(CountCost(problem.tasks, innermost))), outermost)
    for times in (1, 2):
        run(method, ReferenceProblem(wrapped, problem.params))
        assert outermost == innermost == {k: times * v for k, v in wanted_counts("maml", 2, 5, 7, 3).items()}
    total: Counter[str] = Counter()
    for _ in range(2):
        run(method, ReferenceProblem(CountCost(problem.tasks, total), problem.params))
    assert total == outermost


def test_replayed_draws_count_their_derivatives_and_samples() -> None:
    problem, method = problems.regression(), make_method("hf_maml", 0.1, 2)
    draws = checks.record(method, problem)[1]
    counting = CountCost(ReplayDraws(problem.tasks, draws))
    run(method, ReferenceProblem(counting, problem.params))
    assert counting.counts == wanted_counts("hf_maml", 2, 5, 7, 3)


@pytest.mark.parametrize("problem", ["regression", "navigation"])
def test_layers_in_any_order_change_nothing(problem: str) -> None:
    method, new = make_method("maml", 0.1, 2), PROBLEMS[problem]
    plain = run(method, new())
    for layers in (
        [CountCost, RecordDraws, CheckFinite],
        [CheckFinite, CountCost, RecordDraws],
        [RecordDraws, CheckFinite, CountCost],
    ):
        tasks, params = new()
        for layer in layers:
            tasks = layer(tasks)
        checks.assert_same(run(method, ReferenceProblem(tasks, params)), plain)
        while not isinstance(tasks, CountCost):
            tasks = tasks.tasks
        assert tasks.counts["gradients"] == 3 * tasks.num_tasks


def loss(params: Params, batch: Batch) -> Tensor:
    """Finite at 0, with an infinite gradient; infinite at infinity."""
    return (params["w"] - batch["c"]).abs().sqrt().sum()


def three_tasks(bad: float = 0.0) -> FiniteSumTaskBatch:
    c = torch.ones(3, 1)
    c[2] = bad
    return FiniteSumTaskBatch(loss, {"c": c, "numbers": torch.ones(3, 1, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("w", "bad", "quantity", "task"),
    [
        (float("nan"), 3.0, "parameters the 'inner' batch is drawn at w", 0),
        (2.0, float("nan"), "'inner' batch c", 2),
        (3e38, -3e38, "loss", 2),  # the difference overflows
        (2.0, 2.0, "gradient w", 2),  # the derivative of a square root at zero
    ],
)
def test_checking_names_the_quantity_and_the_task(w: float, bad: float, quantity: str, task: int) -> None:
    with pytest.raises(NonFiniteError) as error:
        run(make_method("fo_maml", 0.1), ReferenceProblem(CheckFinite(three_tasks(bad)), {"w": torch.tensor([w])}))
    assert (error.value.quantity, error.value.task) == (quantity, task)
    assert quantity in str(error.value)
    assert f"task {task}" in str(error.value)


def test_checking_names_later_points_and_second_derivatives() -> None:
    tasks, w = CheckFinite(three_tasks(3.0)), {"w": torch.tensor([2.0])}
    with pytest.raises(NonFiniteError, match="parameters the 'outer' batch is drawn at w"):
        run(make_method("fo_maml", 1e38), ReferenceProblem(tasks, {"w": torch.tensor([0.9999])}))
    cusp = FiniteSumTaskBatch(lambda p, b: ((p["w"] - b["c"]).abs() ** 1.5).sum(), {"c": torch.tensor([[1.0], [2.0]])})
    with pytest.raises(NonFiniteError, match="hessian vector product w, task 1"):
        run(make_method("maml", 0.1), ReferenceProblem(CheckFinite(cusp), w))


def test_checking_ignores_integers_and_empty_trees() -> None:
    check_finite({}, "nothing")
    check_finite({"n": torch.ones(2, 3, dtype=torch.int64)}, "numbers")
    with pytest.raises(NonFiniteError, match="x b, task 1"):
        check_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])}, "x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checking_lets_finite_values_pass_whose_sum_overflows(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    check_finite(
        {"a": torch.full((4,), most, dtype=dtype), "b": torch.full((4, 2), -most, dtype=dtype), "c": torch.ones(3)}, "x"
    )
    for bad in (most * 2, -most * 2, float("nan")):
        with pytest.raises(NonFiniteError, match="x a, task 2"):
            check_finite({"a": torch.tensor([most, most, bad, -most], dtype=dtype)}, "x")


def test_wrappers_are_tasks() -> None:
    problem = problems.regression()
    wrapped: TaskBatch = RecordDraws(CountCost(CheckFinite(problem.tasks)))
    batch = wrapped.draw(stacked(problem), "outer")
    one_w, one_batch = problem.params, checks.one(batch, 0)
    assert wrapped.num_tasks == 3
    assert wrapped.cost(batch) == problem.tasks.cost(batch)
    assert torch.equal(wrapped.loss(one_w, one_batch), problem.tasks.loss(one_w, one_batch))
    assert torch.equal(wrapped.score(one_w, one_batch), -wrapped.loss(one_w, one_batch))
