"""Properties of an outer update, as functions that raise `AssertionError`: true methods pass them, mutants must not."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metarl import Method
from metarl.learned_rules import hide_meta
from metarl.outer.directions import normal_directions
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.particles import ParticleTasks
from metarl.types import Batch, MetaGrad, Params, SampledTaskBatch, TaskBatch
from metarl.wrappers import CountCost, RecordDraws, RecordedDraw, ReplayDraws, TaskWrapper
from tests.reference.problems import ReferenceProblem
from tests.reference.updates import Answer, Data, Function, Sampled

NewProblem = Callable[[], ReferenceProblem]
Reference = Callable[[Tensor, Data], Answer]


def ravel(params: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([params[k].reshape(-1) for k in params])


def unravel(flat: Tensor, like: Mapping[str, Tensor]) -> Params:
    pieces = flat.split([v.numel() for v in like.values()])
    return {k: piece.reshape(v.shape) for (k, v), piece in zip(like.items(), pieces, strict=True)}


def one(stacked: Mapping[str, Tensor], task: int) -> dict[str, Tensor]:
    return {k: v[task] for k, v in stacked.items()}


def assert_near(got: Tensor, wanted: Tensor, rtol: float, what: object = "") -> None:
    """`|got - wanted| <= rtol |wanted|`; false for NaN."""
    error, size = (got - wanted).norm().item(), wanted.norm().item()
    assert error <= rtol * size, f"{what}: relative error {error / max(size, 1e-300):.1e}, allowed {rtol:.0e}"


def assert_same(a: MetaGrad, b: MetaGrad) -> None:
    """Bit for bit."""
    assert torch.equal(a.score, b.score)
    for k in a.grads:
        assert torch.equal(a.grads[k], b.grads[k]), k


def run(method: Method, problem: ReferenceProblem) -> MetaGrad:
    """The update, with the initial meta-parameters of the method's rule, if it has any."""
    meta = {} if method.learned_rule is None else method.learned_rule.initial_meta(problem.params)
    params = {**problem.params, **meta}
    return method.update(params, hide_meta(problem.tasks, params), method.inner)


def record(method: Method, problem: ReferenceProblem) -> tuple[MetaGrad, list[RecordedDraw]]:
    recording = RecordDraws(problem.tasks)
    return run(method, problem._replace(tasks=recording)), recording.draws


def function(tasks: TaskBatch, like: Params, batch: Batch, task: int) -> Function:
    data = one(batch, task)
    return lambda flat: tasks.loss(unravel(flat, like), data)


def mean_gradient(method: Method, tasks: TaskBatch, like: Params, flat: Tensor) -> Tensor:
    """What moves the meta-parameters, as a function of the flat vector."""
    result = method.update(unravel(flat, like), tasks, method.inner)
    return ravel({k: v.mean(0) for k, v in result.grads.items()})


# The checks. Those that need the data of every step in advance take a finite sum.


def finite_sum_data(problem: ReferenceProblem, steps: int, task: int) -> Data:
    tasks = problem.tasks
    base = tasks.tasks if isinstance(tasks, ParticleTasks) else tasks
    assert isinstance(base, FiniteSumTaskBatch)
    support, query = (function(tasks, problem.params, x, task) for x in (base.support, base.query))
    n, queries = (len(next(iter(one(data, task).values()))) for data in (base.support, base.query))
    nothing = torch.zeros(n, dtype=torch.float64)  # the data do not depend on the parameters
    others = torch.zeros(max(tasks.num_tasks - 1, 1))
    sampled = Sampled(
        [support] * steps, [lambda w: nothing] * steps, [nothing] * steps, nothing.sum(), others, [[]] * steps
    )
    earlier, normal = [query] * (steps - 1), directions(problem, task)

    def score(role: str, w: Tensor) -> float:
        return float(
            tasks.score(unravel(w, problem.params), one(base.query if role == "outer" else base.support, task))
        )

    known = sampled, earlier, layout(problem), (n, queries), score, normal
    return Data([support] * steps, query, [support] * steps, *known)


def directions(problem: ReferenceProblem, task: int) -> Callable[..., Tensor]:
    """The random directions of one task by their labels, for all parameters or for the first ones."""

    def normal(*label: int, like: int | None = None) -> Tensor:
        numbers = sum(v.numel() for v in problem.params.values()) if like is None else like
        flat = {"": torch.zeros(1, numbers, dtype=torch.float64)}
        return normal_directions(problem.params, label, range(task, task + 1), flat)[""][0]

    return normal


def layout(problem: ReferenceProblem) -> Tensor | None:
    """Where each particle's numbers are in the flat parameters, `[M, P]`."""
    if not isinstance(problem.tasks, ParticleTasks):
        return None
    flat = ravel(problem.params)
    places = unravel(torch.arange(len(flat)), problem.params)
    return torch.cat([place.reshape(problem.tasks.particles, -1) for place in places.values()], 1)


def sampled_data(problem: ReferenceProblem, draws: list[RecordedDraw], task: int) -> Sampled | None:
    """What the oracle says about how its data were sampled, if it does."""
    tasks, like = problem.tasks, problem.params
    if not isinstance(tasks, SampledTaskBatch) or isinstance(tasks, ParticleTasks):
        return None
    inner = [one(d.batch, task) for d in draws if d.role == "inner"]
    outer = next(d.batch for d in draws if d.role == "outer")

    def single(n: int, b: Batch) -> Function:  # a batch with one trajectory
        return lambda w: tasks.frozen_loss(unravel(w, like), {k: v[n : n + 1] for k, v in b.items()})

    outcomes = torch.stack([tasks.objective(one(outer, i)).mean() for i in range(tasks.num_tasks)])
    return Sampled(
        [lambda w, b=b: tasks.frozen_loss(unravel(w, like), b) for b in inner],
        [lambda w, b=b: tasks.log_likelihood(unravel(w, like), b) for b in inner],
        [tasks.objective(b) for b in inner],
        outcomes[task],
        torch.cat([outcomes[:task], outcomes[task + 1 :]]),
        [[single(n, b) for n in range(len(tasks.objective(b)))] for b in inner],
    )


def equals_reference(method: Method, reference: Reference, new: NewProblem, rtol: float = 1e-9) -> None:
    """Every task's meta-gradient is the reference's, on a finite sum."""
    problem = new()
    grads = run(method, problem).grads
    for i in range(problem.tasks.num_tasks):
        wanted = reference(ravel(problem.params), finite_sum_data(problem, method.inner.steps, i)).gradient
        assert_near(ravel(one(grads, i)), wanted, rtol, f"task {i}")


def equals_reference_on_its_draws(
    method: Method,
    reference: Reference,
    new: NewProblem,
    rtol: float = 1e-9,
    at_rtol: float = 1e-9,
    inner_draws: int | None = None,
) -> None:
    """The data were drawn where the paper draws them, and given them the meta-gradient is the reference's."""
    problem = new()
    result, draws = record(method, problem)
    w = ravel(problem.params)
    at = {role: [d.params for d in draws if d.role == role] for role in ("inner", "outer", "hessian")}
    for i in range(problem.tasks.num_tasks):
        f = {
            role: [function(problem.tasks, problem.params, d.batch, i) for d in draws if d.role == role] for role in at
        }
        wanted_draws = method.inner.steps if inner_draws is None else inner_draws
        assert len(f["inner"]) == wanted_draws, f"{len(f['inner'])} inner draws"
        assert f["outer"], "no outer draw"
        inner, outer = (next(d.batch for d in draws if d.role in ("outer", role)) for role in ("inner", "outer"))
        sizes = (len(next(iter(inner.values()))[i]), len(next(iter(outer.values()))[i]))
        sampled, earlier = sampled_data(problem, draws, i), f["outer"][:-1]
        known = sampled, earlier, layout(problem), sizes
        data = Data(f["inner"], f["outer"][-1], f["hessian"][::-1], *known, normal=directions(problem, i))
        answer = reference(w, data)
        outer_at = answer.outer_at or answer.points[-1:]
        points = {"inner": answer.points[:-1], "outer": outer_at, "hessian": answer.hessian_at}
        for role, wanted in points.items():
            assert len(at[role]) == len(wanted), f"{len(at[role])} {role} draws, not {len(wanted)}"
            for j, (p, q) in enumerate(zip(at[role], wanted, strict=True)):
                assert_near(ravel(one(p, i)), q, at_rtol, f"parameters of {role} draw {j}, task {i}")
        assert_near(ravel(one(result.grads, i)), answer.gradient, rtol, f"task {i}")


def draws_are_independent(method: Method, new: NewProblem) -> None:
    """No two batches of one update share their random numbers (for tasks that resample)."""
    first = [
        next(iter(d.batch.values())) if "actions" not in d.batch else d.batch["actions"]
        for d in record(method, new())[1]
    ]
    for i, a in enumerate(first):
        assert not any(torch.equal(a, b) for b in first[:i]), f"draw {i} repeats an earlier one"


def replays_bit_for_bit(method: Method, new: NewProblem) -> None:
    problem = new()
    result, draws = record(method, problem)
    again = run(method, ReferenceProblem(ReplayDraws(problem.tasks, draws), problem.params))
    assert_same(result, again)


def is_deterministic(method: Method, new: NewProblem) -> None:
    assert_same(run(method, new()), run(method, new()))


class OneTask(TaskWrapper):
    """A stacked oracle's loss for a batch of one task; its data come from a recording."""

    num_tasks = 1


def stacked_equals_loop(method: Method, new: NewProblem, rtol: float = 1e-9) -> None:
    """Many tasks at once give what each of them gives alone."""
    problem = new()
    result, draws = record(method, problem)
    assert all(len(g) == problem.tasks.num_tasks for g in result.grads.values()), "not one gradient per task"
    for i in range(problem.tasks.num_tasks):
        own = [RecordedDraw(d.role, {}, {k: v[i : i + 1] for k, v in d.batch.items()}) for d in draws]
        alone = run(method, ReferenceProblem(ReplayDraws(OneTask(problem.tasks), own), problem.params))
        assert_near(ravel(one(result.grads, i)), ravel(one(alone.grads, 0)), rtol, f"task {i}")
        assert_near(result.score[i], alone.score[0], rtol, f"score of task {i}")


def leaves_parameters_alone(method: Method, new: NewProblem) -> None:
    problem = new()
    before = {k: v.clone() for k, v in problem.params.items()}
    result = run(method, problem)
    for k, v in problem.params.items():
        assert torch.equal(v, before[k]), f"{k} has changed"
        assert not result.grads[k].requires_grad, f"{k} carries a graph"
    assert not result.score.requires_grad


def close_in_float32(method: Method, new: NewProblem, rtol: float) -> None:
    """On the same data, rounded."""
    problem = new()
    result, draws = record(method, problem)
    as_float = {k: v.float() for k, v in problem.params.items()}
    rounded = [
        RecordedDraw(d.role, {}, {k: v.float() if v.is_floating_point() else v for k, v in d.batch.items()})
        for d in draws
    ]
    small = run(method, ReferenceProblem(ReplayDraws(problem.tasks, rounded), as_float))
    for k, v in small.grads.items():
        assert v.dtype == torch.float32, k
        assert v.isfinite().all(), k
    assert_near(ravel(small.grads).double(), ravel(result.grads), rtol)


def finite_difference(objective: Function, w: Tensor, step: float = 1e-5) -> Tensor:
    shifts = step * torch.eye(len(w), dtype=w.dtype)
    return torch.stack([(objective(w + e) - objective(w - e)) / (2 * step) for e in shifts])


def is_gradient_of(method: Method, objective: Callable[[Tensor, Data], Tensor], new: NewProblem, rtol: float) -> None:
    """Every task's meta-gradient is the finite-difference gradient of that task's objective."""
    problem = new()
    grads = run(method, problem).grads
    for i in range(problem.tasks.num_tasks):
        data = finite_sum_data(problem, method.inner.steps, i)
        wanted = finite_difference(lambda w, data=data: objective(w, data), ravel(problem.params))
        assert_near(ravel(one(grads, i)), wanted, rtol, f"task {i}")


def coincide(a: Method, b: Method, new: NewProblem, rtol: float) -> None:
    """Equal meta-gradients; bit for bit when `rtol` is zero."""
    x, y = run(a, new()), run(b, new())
    if rtol == 0:
        assert_same(x, y)
    assert_near(ravel(x.grads), ravel(y.grads), rtol)


def differ(a: Method, b: Method, new: NewProblem, by: float = 1e-6) -> None:
    """Meta-gradients further apart than rounding explains."""
    x, y = (ravel({k: run(method, new()).grads[k] for k in new().params}) for method in (a, b))
    assert (x - y).norm() > by * y.norm(), "the results are the same"


def counts(method: Method, new: NewProblem, wanted: Mapping[str, Any]) -> None:
    problem = new()
    counting = CountCost(problem.tasks)
    run(method, ReferenceProblem(counting, problem.params))
    assert dict(counting.counts) == dict(wanted)
