"""MAML++: step sizes, several losses and batch normalisation together, against autograd through the whole loop."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarl import Inner, MetaGrad, MetaLearner, Method, make_method
from metarl.derivatives import gradients, hessian_vector_products
from metarl.engine import Engine
from metarl.errors import StateError
from metarl.inner import adaptation_path, rule_pull_back, rules, sgd
from metarl.learned_rules import (
    META,
    PER_STEP,
    FixedSgd,
    LearnedRule,
    LearnedSgd,
    PerStepNorm,
    hide_meta,
    layer,
    visible,
)
from metarl.outer import Annealing, outer_gradient
from metarl.outer.maml_plus_plus import loss_weights
from metarl.schedules import Cosine, as_data, from_data
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.class_sets import ClassSet
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import TransductiveBatchNorm, conv4, mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import add, tree_map
from metarl.types import Batch, OuterUpdate, Params, TaskBatch
from metarl.wrappers import CountCost, RecordDraws
from tests.reference.checks import assert_near, one, ravel
from tests.reference.problems import PROBLEMS

N, E, FIRST = 3, 40, 10  # inner steps, iterations with several losses, the first one with Hessians
OPTIONS: dict[str, Any] = {"multi_step_iterations": E, "second_order_from": FIRST}
PHASES = (0, FIRST - 1, FIRST, E - 1, E)


# The problem: a network with batch normalisation, written out here.


def normalized(params: Params, x: Tensor) -> Tensor:
    """A tanh network whose hidden units are normalised over the batch, `[n, 1]` to `[n]`."""
    hidden = x @ params["first.weight"]
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    return torch.tanh(hidden * params["norm.weight"] + params["norm.bias"]) @ params["head.weight"]


def loss(params: Params, batch: Batch) -> Tensor:
    return (normalized(params, batch["x"]) - batch["y"]).square().mean()


def problem() -> tuple[FiniteSumTaskBatch, Params]:
    """Three tasks; initial parameters and meta-parameters that differ everywhere, so that none is taken for another."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    support, query = ({"x": rand(3, n, 1), "y": rand(3, n)} for n in (6, 8))
    shapes = {"first.weight": (1, 3), "norm.weight": (3,), "norm.bias": (3,), "head.weight": (3,)}
    params = {name: rand(*shape) for name, shape in shapes.items()}
    meta = method().learned_rule.initial_meta(params, ["norm.weight", "norm.bias"])  # type: ignore[union-attr]
    spread = {k: 0.1 + 0.1 * rand(*v.shape).abs() if "inner_lr" in k else v + rand(*v.shape) for k, v in meta.items()}
    return FiniteSumTaskBatch(loss, support, query), {**params, **spread}


def method(**options: Any) -> Method:
    return make_method("maml_plus_plus", 0.1, N, **{**OPTIONS, **options})


# The reference: the schedule as the paper has it, and autograd.


def weights(iteration: int) -> list[float]:
    """Non-final weights lose 1/(N E) in each iteration, to 0.03/N; the final one gains (N-1)/(N E), to the rest."""
    if iteration >= E:
        return [0.0] * (N - 1) + [1.0]
    earlier = max(1 / N - iteration / (N * E), 0.03 / N)
    final = min(1 / N + iteration * (N - 1) / (N * E), 1 - (N - 1) * 0.03 / N)
    return [earlier] * (N - 1) + [final]


def unrolled(params: Params, tasks: FiniteSumTaskBatch, task: int, iteration: int) -> Params:
    """Autograd of the weighted losses, with respect to parameters, step sizes and rows."""
    support, query = one(tasks.support, task), one(tasks.query, task)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    w, total = {k: leaves[k] for k in visible(params)}, torch.zeros((), dtype=torch.float64)
    for step in range(N):
        g = torch.autograd.grad(loss(w, support), list(w.values()), create_graph=iteration >= FIRST)
        moved = dict(zip(w, g, strict=True))
        for name in w:
            row = leaves.get(f"{PER_STEP}{name}")
            alpha = leaves.get(f"{META}inner_lr/{layer(name)}")
            moved[name] = row[step] if row is not None else w[name] - alpha[step] * moved[name]  # type: ignore[index]
        w = moved
        total = total + weights(iteration)[step] * loss(w, query)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(leaves.items(), found, strict=True)}


def check(update: OuterUpdate, iteration: int, inner: Inner | None = None) -> None:
    tasks, params = problem()
    found = update(params, hide_meta(tasks, params), inner or method().inner).grads
    assert found.keys() == params.keys()
    for task in range(tasks.num_tasks):
        wanted = unrolled(params, tasks, task, iteration)
        for name in params:
            assert_near(found[name][task], wanted[name], 1e-9, f"{name}, task {task}")


@pytest.mark.parametrize("iteration", PHASES)
@pytest.mark.parametrize("hessian_data", ["fresh", "reuse"])
def test_meta_gradient_is_autograd_through_the_inner_loop(iteration: int, hessian_data: str) -> None:
    """Fresh data are the same data on a finite sum."""
    check(method(hessian_data=hessian_data).at(iteration), iteration)


@pytest.mark.parametrize("engine", [Engine(record=False, chunk_size=1), Engine(), Engine(chunk_size=2)], ids=str)
def test_engines(engine: Engine) -> None:
    with engine.current():
        for _ in range(2):
            check(method().at(FIRST), FIRST)


# Mutants: the same update with one screw turned. `mutant` is right with its defaults.


def mutant(
    iteration: int,
    weigh: Callable[[list[float]], list[float]] = lambda v: v,
    second_order: bool = True,
    backwards: bool = True,
    late: int = 0,
    at: str = "outer",
) -> OuterUpdate:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        path = adaptation_path(params, tasks, inner)
        own = weigh(weights(iteration))
        data = [tasks.draw(w, at) for w in path.params[1:]]  # type: ignore[arg-type]
        g = [
            tree_map(lambda x, v=v: v * x, gradients(tasks, w, d))
            for v, w, d in zip(own, path.params[1:], data, strict=True)
        ]
        v = g[-1]
        for place, j in enumerate(reversed(range(N)) if backwards else range(N)):
            through_w, through_g, _ = rule_pull_back(rules(inner)[j], path.params[j], path.grads[j], path.params[0], v)
            w = path.params[j]
            product = hessian_vector_products(tasks, w, path.batches[j], through_g)
            v = add(through_w, product) if second_order else through_w
            earlier = N - 2 - place + late
            if 0 <= earlier < N - 1:
                v = add(v, g[earlier])
        return outer_gradient(tasks, path.params[-1])._replace(grads=v)

    return update


class WrongRow(PerStepNorm):
    """The rows one step too late."""

    def at_step(self, step: int) -> PerStepNorm:
        return dataclasses.replace(super().at_step(step), step=max(step - 1, 0))


MUTANTS: dict[str, tuple[OuterUpdate, int]] = {
    "the final loss only": (mutant(0, lambda v: [0.0, 0.0, 1.0]), 0),
    "the sum of the losses, not their mean": (mutant(0, lambda v: [1.0, 1.0, 1.0]), 0),
    "weights that do not sum to one": (mutant(20, lambda v: [*v[:-1], 1 / N]), 20),
    "weights in the wrong order": (mutant(20, lambda v: v[::-1]), 20),
    "weights of another iteration": (mutant(21), 20),
    "weights without a floor": (mutant(39, lambda v: [1 / (N * E), 1 / (N * E), 1 - 2 / (N * E)]), 39),
    "several losses after the last iteration with them": (mutant(E - 1), E),
    "pulled back in the wrong order": (mutant(20, backwards=False), 20),
    "earlier gradients join one step too early": (mutant(20, late=1), 20),
    "earlier gradients join one step too late": (mutant(20, late=-1), 20),
    "first order instead of second": (mutant(20, second_order=False), 20),
    "second order instead of first": (mutant(0), 0),
    "losses of the support set": (mutant(20, at="inner"), 20),
}


@pytest.mark.parametrize(("update", "iteration"), MUTANTS.values(), ids=MUTANTS)
def test_rejects(update: OuterUpdate, iteration: int) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        check(update, iteration)


@pytest.mark.parametrize("rule", [WrongRow(LearnedSgd("layer-step", 0.1, N), N), FixedSgd(0.1)], ids=str)
def test_rejects_a_wrong_rule(rule: Any) -> None:
    """Rows of another step, and a rule that does not know of rows."""
    with pytest.raises(AssertionError, match="relative error"):
        check(method().at(20), 20, Inner(rule, N))


@pytest.mark.parametrize("iteration", [20, 39])
def test_the_mutants_are_right_but_for_the_mutation(iteration: int) -> None:
    check(mutant(iteration), iteration)
    check(mutant(0, second_order=False), 0)


# Weights, costs, types.


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_weights_are_the_papers(steps: int) -> None:
    for iteration in range(101):
        found = loss_weights(steps, iteration / 100)
        assert len(found) == steps
        assert sum(found) == pytest.approx(1, abs=1e-12)
        earlier = max(1 / steps - iteration / (steps * 100), 0.03 / steps) if iteration < 100 else 0.0
        final = min(1 / steps + iteration * (steps - 1) / (steps * 100), 1 - (steps - 1) * 0.03 / steps)
        assert found[:-1] == pytest.approx([earlier] * (steps - 1), abs=1e-12)
        assert found[-1] == pytest.approx(final if iteration < 100 else 1.0, abs=1e-12)


COSTS = {  # iteration: roles of the draws after the inner ones, and Hessian-vector products of a task
    0: (["outer"] * N, 0),
    FIRST: (["outer"] * N + ["hessian"] * N, N),
    E: (["outer"] + ["hessian"] * N, N),
}


@pytest.mark.parametrize("iteration", COSTS)
@pytest.mark.parametrize("name", ["regression", "navigation"])
def test_what_an_iteration_costs(name: str, iteration: int) -> None:
    """Every loss has its own draw, also in reinforcement learning."""
    tasks, params = PROBLEMS[name]()
    params = {**params, **method().learned_rule.initial_meta(params)}  # type: ignore[union-attr]
    recording = RecordDraws(CountCost(tasks))
    method().at(iteration)(params, hide_meta(recording, params), method().inner)
    roles, products = COSTS[iteration]
    assert [draw.role for draw in recording.draws] == ["inner"] * N + roles
    counts = recording.tasks.counts  # type: ignore[attr-defined]
    assert counts["gradients"] == (N + roles.count("outer")) * tasks.num_tasks
    assert counts["hessian_vector_products"] == products * tasks.num_tasks


@pytest.mark.parametrize("iteration", PHASES)
def test_float32(iteration: int) -> None:
    tasks, params = problem()
    exact = method().at(iteration)(params, hide_meta(tasks, params), method().inner).grads
    support, query = ({k: v.float() for k, v in data.items()} for data in (tasks.support, tasks.query))
    small, single = FiniteSumTaskBatch(loss, support, query), {k: v.float() for k, v in params.items()}
    found = method().at(iteration)(single, hide_meta(small, single), method().inner).grads
    assert all(leaf.dtype == torch.float32 for leaf in found.values())
    assert_near(ravel(found).double(), ravel(exact), 1e-4)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"multi_step_iterations": -1}, "multi_step_iterations must be an integer of at least 0, got -1"),
        ({"second_order_from": 2.5}, r"second_order_from must be an integer of at least 0, got 2\.5"),
        ({"per_step_norm": 1}, "per_step_norm must be True or False, got 1"),
        ({"hessian_data": "outer"}, "hessian_data must be one of"),
        ({"learn_inner_lr": "steps"}, "learn_inner_lr must be one of"),
    ],
)
def test_bad_options(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method("maml_plus_plus", **chosen)


# Annealing, by the learner.


def learner(outer: str = "maml_plus_plus", **options: Any) -> MetaLearner:
    chosen = {"multi_step_iterations": 4, "second_order_from": 2, **options}
    return MetaLearner(
        Sinusoids(), outer, inner_lr=0.01, inner_steps=2, meta_batch_size=3, outer_options=chosen, schedule=Cosine(6)
    )


def test_the_update_of_each_iteration() -> None:
    plain = Method(lambda *given: None, Inner(sgd(0.1)))  # type: ignore[arg-type, return-value]
    assert plain.at(0) is plain.at(7) is plain.update
    numbered = dataclasses.replace(plain, annealing=Annealing(2, lambda iteration: iteration))  # type: ignore[arg-type, return-value]
    assert [numbered.at(i) for i in range(4)] == [0, 1, plain.update, plain.update]
    assert copy.copy(numbered).at(1) == 1
    for changed in ({"multi_step_iterations": 0}, {"second_order_from": 0}):
        annealing = method(**changed).annealing
        assert annealing is not None
        assert annealing.iterations == max({**OPTIONS, **changed}.values())


def test_without_annealing_it_is_maml_with_learned_step_sizes() -> None:
    off = learner(multi_step_iterations=0, second_order_from=0).learn(3)
    maml = MetaLearner(
        Sinusoids(),
        inner_lr=0.01,
        inner_steps=2,
        meta_batch_size=3,
        outer_options={"learn_inner_lr": "layer-step"},
        schedule=Cosine(6),
    )
    maml.learn(3)
    for name, leaf in maml.params.items():
        assert torch.equal(off.params[name], leaf)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_resuming_goes_on_with_the_annealing(stop: int, tmp_path: Path) -> None:
    """Bit for bit on either side of both boundaries; in a copy, too."""
    whole, half = learner().learn(6), learner().learn(stop)
    half.save(tmp_path / "checkpoint.pt")
    resumed = MetaLearner.load(tmp_path / "checkpoint.pt", Sinusoids()).learn(6 - stop)
    copies = [copy.deepcopy(half), pickle.loads(pickle.dumps(half))]
    for other in (resumed, *(c.learn(6 - stop) for c in copies)):
        assert other.counts == whole.counts
        for name, leaf in whole.params.items():
            assert torch.equal(other.params[name], leaf)
    fresh = learner()  # a learner that does not know its iteration
    fresh.load_state_dict({**half.state_dict(), "iterations": 0})
    fresh.learn(6 - stop)
    assert any(not torch.equal(fresh.params[k], leaf) for k, leaf in whole.params.items())


# Batch normalisation.


def images(per_step_norm: bool = True) -> MetaLearner:
    generator = torch.Generator().manual_seed(0)
    classes = ClassSet(tuple("abcd"), tuple(torch.rand(4, 1, 16, 16, generator=generator) for _ in range(4)))
    few = FewShot(classes, conv4(1, 16, 3, filters=4).double(), ways=3, shots=1, queries=2)
    options = {"per_step_norm": per_step_norm, "second_order_from": 1}
    return MetaLearner(few, "maml_plus_plus", inner_lr=0.1, inner_steps=2, meta_batch_size=2, outer_options=options)


def test_each_step_has_its_own_normalisation() -> None:
    trained = images().learn(2)
    names = [f"norm{i}.{leaf}" for i in range(1, 5) for leaf in ("weight", "bias")]
    assert sorted(k.removeprefix(PER_STEP) for k in trained.params if k.startswith(PER_STEP)) == sorted(names)
    assert not any(k.startswith(f"{META}inner_lr/norm") for k in trained.params)  # a step size of nothing
    tasks = trained.source.sample(2, np.random.default_rng(0))
    for steps in range(5):
        adapted = trained.adapt(tasks, steps)
        for name in names:
            rows = trained.params[f"{PER_STEP}{name}"]
            wanted = trained.params[name] if steps == 0 else rows[min(steps, 2) - 1]
            assert torch.equal(adapted[name][0], wanted)
            assert torch.equal(adapted[name][1], wanted)
        assert steps == 0 or not torch.equal(adapted["head.weight"][0], trained.params["head.weight"])
    for name in names:  # all have moved, and apart
        before, rows = trained.method.initial_params(trained.source)[name], trained.params[f"{PER_STEP}{name}"]
        points = [before, trained.params[name], *rows]
        assert all(not torch.equal(a, b) for i, a in enumerate(points) for b in points[:i])


def test_given_step_sizes_keep_the_rows() -> None:
    trained = images().learn(1)
    tasks = trained.source.sample(2, np.random.default_rng(0))
    path = list(trained.rules([0.5, None, 0.5]))
    assert [(rule.step, type(rule.rule).__name__) for rule in path] == [  # type: ignore[attr-defined]
        (0, "FixedSgd"),
        (1, "LearnedSgd"),
        (1, "FixedSgd"),
    ]
    own, given = (trained.evaluate(num_tasks=3, steps=2, step_sizes=sizes, warn=False) for sizes in (None, [0.5, 0.5]))
    assert np.array_equal(own.scores[..., 0], given.scores[..., 0])
    assert tasks.num_tasks == 2


def test_switched_off_they_are_adapted() -> None:
    plain = images(per_step_norm=False).learn(1)
    assert not any(k.startswith(PER_STEP) for k in plain.params)
    tasks = plain.source.sample(2, np.random.default_rng(0))
    assert not torch.equal(plain.adapt(tasks, 1)["norm1.bias"][0], plain.params["norm1.bias"])


def test_which_parameters_belong_to_batch_normalisation() -> None:
    def names(network: nn.Module) -> list[str]:
        classes = ClassSet(tuple("abc"), tuple(torch.rand(4, 3) for _ in range(3)))
        return FewShot(classes, network, ways=3, shots=1, queries=2).batch_norm_params

    assert names(mlp(3, 3)) == []
    assert names(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3))) == []
    norms = [nn.BatchNorm1d(3, track_running_stats=False), TransductiveBatchNorm(3), nn.BatchNorm1d(3).eval()]
    assert names(nn.Sequential(nn.Linear(3, 3), *norms)) == [
        f"{i}.{leaf}" for i in (1, 2, 3) for leaf in ("weight", "bias")
    ]
    assert names(nn.Sequential(nn.BatchNorm1d(3, affine=False, track_running_stats=False), nn.Linear(3, 3))) == []
    assert names(TransductiveBatchNorm(3)) == ["weight", "bias"]


def test_it_is_a_learned_rule() -> None:
    rule = method().learned_rule
    assert isinstance(rule, PerStepNorm)
    assert isinstance(rule, LearnedRule)
    tasks, params = problem()
    assert tasks.num_tasks == 3
    assert set(rule.describe(params)) == {f"inner_lr/{name}/{j}" for name in ("first", "head") for j in (1, 2, 3)}
    fixed = method(learn_inner_lr=None).learned_rule
    assert fixed is not None
    assert fixed.describe(params) == {}
    assert set(fixed.initial_meta(visible(params), ["norm.bias"])) == {f"{PER_STEP}norm.bias"}


# The cosine schedule.


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=2.0 * 0.2)
    ours = Cosine(7, end=0.2)
    for iteration in range(8):
        assert 2.0 * ours(iteration) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()
    assert ours(100) == pytest.approx(0.2)


def test_a_schedule_as_data() -> None:
    assert as_data(Cosine(7, 0.2)) == {"name": "cosine", "iterations": 7, "end": 0.2}
    again = from_data(as_data(Cosine(7, 0.2)))
    assert type(again) is Cosine
    assert vars(again) == vars(Cosine(7, 0.2))
    assert as_data(lambda n: 1.0) is from_data(None) is None
    with pytest.raises(StateError, match=r"config.schedule.name must be one of \['linear', 'cosine'\], found 'step'"):
        from_data({"name": "step", "iterations": 7, "end": 0.2})
    for wrong in ((0, 0.1), (1.5, 0.1), (3, 1.5), (3, -0.1)):
        with pytest.raises(ValueError, match="must be"):
            Cosine(*wrong)  # type: ignore[arg-type]
