"""Learned inner step sizes, against autograd through the whole inner loop and dense Hessians."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vjp, vmap

from metarl import MetaLearner, make_method
from metarl.callbacks import Callback, Metrics
from metarl.engine import Engine
from metarl.inner import adapt, inner_step, rule_pull_back
from metarl.learned_rules import META, STEP_SIZES, LearnedSgd, hide_meta, layer, visible
from metarl.outer import OUTER
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import Batch, Params
from metarl.wrappers import CountCost, RecordDraws
from tests.reference.checks import function, one, ravel
from tests.reference.problems import PROBLEMS, ReferenceProblem

LEARNING = ("maml", "fo_maml", "hf_maml", "multi_step_maml", "maml_plus_plus")
STEPS = 3


def start(name: str, kind: Any, problem: ReferenceProblem, **options: Any) -> tuple[Any, Params]:
    """The method with different step sizes everywhere, so that none can be taken for another."""
    method = make_method(name, 0.1, STEPS, learn_inner_lr=kind, **options)
    meta = method.learned_rule.initial_meta(problem.params)
    generator = torch.Generator().manual_seed(0)
    spread = {k: 0.05 + 0.2 * torch.rand(v.shape, generator=generator, dtype=v.dtype) for k, v in meta.items()}
    return method, {**problem.params, **spread}


def alpha_of(params: Params, kind: str, name: str, step: int) -> Tensor:
    """The step size of a parameter, found without the library's rule."""
    if kind == "scalar":
        return params[f"{META}inner_lr"]
    if kind == "parameter":
        return params[f"{META}inner_lr/{name}"]
    own = params[f"{META}inner_lr/{layer(name)}"]
    return own[step] if kind == "layer-step" else own


def unrolled(params: Params, problem: ReferenceProblem, kind: str, task: int, first_order: bool) -> Params:
    """Autograd through all inner steps, with respect to parameters and step sizes."""
    tasks = problem.tasks
    assert isinstance(tasks, FiniteSumTaskBatch)
    support, query = one(tasks.support, task), one(tasks.query, task)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    w = {k: leaves[k] for k in problem.params}
    for step in range(STEPS):
        grads = torch.autograd.grad(tasks.loss(w, support), list(w.values()), create_graph=not first_order)
        w = {k: w[k] - alpha_of(leaves, kind, k, step) * g for (k, g) in zip(w, grads, strict=True)}
    return dict(zip(leaves, torch.autograd.grad(tasks.loss(w, query), list(leaves.values())), strict=True))


def assert_equal(found: Params, wanted: Params, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


def check(name: str, kind: Any, wanted: Callable[..., Params] = unrolled) -> None:
    problem = PROBLEMS["regression"]()
    method, params = start(name, kind, problem)
    found = method.update(params, hide_meta(problem.tasks, params), method.inner).grads
    for task in range(problem.tasks.num_tasks):
        answer = wanted(params, problem, kind, task, name == "fo_maml")
        assert_equal(one(found, task), answer, 1e-6 if name == "hf_maml" else 1e-11)


@pytest.mark.parametrize("kind", STEP_SIZES)
@pytest.mark.parametrize("name", LEARNING)
def test_meta_gradient_is_autograd_through_the_inner_loop(name: str, kind: Any) -> None:
    check(name, kind)


@pytest.mark.parametrize("name", LEARNING)
def test_a_wrong_answer_is_rejected(name: str) -> None:
    """The step sizes' gradient without later steps' Hessians, and for `fo_maml` with them."""
    with pytest.raises(AssertionError):
        check(name, "layer-step", lambda *given: unrolled(*given[:4], not given[4]))


@pytest.mark.parametrize("engine", [Engine(record=False), Engine(record=True)])
@pytest.mark.parametrize("kind", STEP_SIZES)
def test_on_sampled_episodes_with_fresh_hessian_data(kind: Any, engine: Engine) -> None:
    """v_j = v_{j+1} - H(w_j; D_h) (alpha v_{j+1}) and dL/dalpha = -<v_{j+1}, g_j>, from the draws of the update."""
    problem = PROBLEMS["discrete"]()
    method, params = start("maml", kind, problem)
    recording = RecordDraws(problem.tasks)
    with engine.current():
        found = method.update(params, hide_meta(recording, params), method.inner).grads
    assert all(draw.params.keys() == problem.params.keys() for draw in recording.draws)
    draws = {role: [d for d in recording.draws if d.role == role] for role in ("inner", "outer", "hessian")}

    def derivatives(draw: Any, task: int, vector: Tensor | None = None) -> Tensor:
        f = function(problem.tasks, problem.params, draw.batch, task)
        w = ravel(one(draw.params, task))
        g = torch.autograd.functional.jacobian(f, w)
        return g if vector is None else torch.autograd.functional.hessian(f, w) @ vector

    for task in range(problem.tasks.num_tasks):
        v = derivatives(draws["outer"][0], task)
        answer = {k: torch.zeros_like(x) for k, x in params.items()}
        leaves = {k: x.clone().requires_grad_() for k, x in params.items()}
        for step in reversed(range(STEPS)):
            sizes = torch.cat(
                [alpha_of(leaves, kind, k, step).expand(x.shape).reshape(-1) for k, x in problem.params.items()]
            )
            partial = -(v * derivatives(draws["inner"][step], task))
            pulled = torch.autograd.grad(sizes, list(leaves.values()), partial, allow_unused=True)
            for k, g in zip(leaves, pulled, strict=True):
                answer[k] = answer[k] if g is None else answer[k] + g
            v = v - derivatives(draws["hessian"][STEPS - 1 - step], task, sizes.detach() * v)
        own = {k: found[k][task] for k in problem.params}
        torch.testing.assert_close(ravel(own), v, rtol=1e-9, atol=1e-12)
        meta = {k: x for k, x in answer.items() if k.startswith(META)}
        assert_equal({k: found[k][task] for k in meta}, meta, 1e-9)


@pytest.mark.parametrize("name", LEARNING)
def test_float32(name: str) -> None:
    problem = PROBLEMS["regression"]()
    assert isinstance(problem.tasks, FiniteSumTaskBatch)
    method, params = start(name, "layer-step", problem)
    exact = method.update(params, hide_meta(problem.tasks, params), method.inner).grads
    support, query = ({k: v.float() for k, v in data.items()} for data in (problem.tasks.support, problem.tasks.query))
    tasks = FiniteSumTaskBatch(problem.tasks.loss, support, query)
    single = {k: v.float() for k, v in params.items()}
    found = method.update(single, hide_meta(tasks, single), method.inner).grads
    assert all(leaf.dtype == torch.float32 for leaf in found.values())
    size = 2e-2 if name == "hf_maml" else 1e-4  # hf_maml's probe is longer in float32
    wanted = torch.cat([exact[k].flatten() for k in exact])
    error = torch.cat([found[k].flatten().double() for k in exact]) - wanted
    assert error.norm() <= size * wanted.norm()


@pytest.mark.parametrize("kind", STEP_SIZES)
def test_stacked_tasks_need_neither_vmap_nor_autograd(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (3, 4), "a.bias": (4,), "b.weight": (2,), "scale": ()}
    first = LearnedSgd(kind, 0.1, STEPS)
    params = {k: torch.zeros(shape) for k, shape in shapes.items()}
    params |= first.initial_meta(params)
    w, grads, cotangent = (
        {k: torch.randn(5, *leaf.shape, generator=generator) for k, leaf in params.items()} for _ in range(3)
    )
    rule = first.at_step(1)
    assert_equal(inner_step(rule, w, grads, w), vmap(rule)(w, grads, w), 0.0)
    found = rule_pull_back(rule, w, grads, w, cotangent)
    wanted = vjp(vmap(lambda w, g: rule(w, g, w)), w, grads)[1](cotangent)
    for mine, reference in zip(found, wanted, strict=False):
        assert mine is not None
        assert_equal(mine, reference, 1e-6)
    assert found[2] is None  # a step does not depend on where adaptation started


def test_equal_step_sizes_are_the_fixed_rule() -> None:
    problem = PROBLEMS["regression"]()
    fixed = make_method("maml", 0.1, STEPS)
    wanted = fixed.update(problem.params, problem.tasks, fixed.inner).grads
    for kind in STEP_SIZES:
        method = make_method("maml", 0.1, STEPS, learn_inner_lr=kind)
        params = {**problem.params, **method.learned_rule.initial_meta(problem.params)}  # type: ignore[union-attr]
        counting = CountCost(problem.tasks)
        found = method.update(params, hide_meta(counting, params), method.inner).grads
        assert counting.counts["hessian_vector_products"] == STEPS * problem.tasks.num_tasks
        assert_equal({k: found[k] for k in wanted}, wanted, 1e-12)


def test_first_order_draws_no_hessian_data() -> None:
    problem = PROBLEMS["discrete"]()
    method, params = start("fo_maml", "layer", problem)
    recording = RecordDraws(problem.tasks)
    method.update(params, hide_meta(recording, params), method.inner)
    assert [draw.role for draw in recording.draws] == ["inner"] * STEPS + ["outer"]


@pytest.mark.parametrize("name", [*LEARNING, "maml_plus_plus"])
def test_tasks_do_not_see_step_sizes(name: str) -> None:
    """Weight decay over all parameters is the kind of loss that would take them for weights."""
    seen: list[set[str]] = []

    def decayed(params: Params, batch: Batch) -> Tensor:
        seen.append(set(params))
        return sum(((x - batch["c"]) ** 2).sum() for x in params.values())

    tasks = FiniteSumTaskBatch(decayed, {"c": torch.tensor([1.0, 2.0])})
    method = make_method(name, 0.1, 2, learn_inner_lr="scalar")
    params = {"x": torch.tensor(0.0), "meta/inner_lr": torch.tensor(0.1)}
    method.at(0)(params, tasks, method.inner)  # as a user calls it
    assert adapt(params, tasks, method.inner).keys() == {"x"}
    assert seen
    assert all(names == {"x"} for names in seen)


def learner(kind: Any = "layer-step", **options: Any) -> MetaLearner:
    given = {"inner_lr": 0.01, "inner_steps": 2, "meta_batch_size": 4, "outer_options": {"learn_inner_lr": kind}}
    return MetaLearner(Sinusoids(), "maml", **{**given, **options})


@pytest.mark.parametrize("kind", STEP_SIZES)
def test_training_moves_logs_and_resumes_them(kind: Any, tmp_path: Path) -> None:
    class Keep(Callback):
        def __init__(self) -> None:
            self.metrics: list[dict[str, Any]] = []

        def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
            self.metrics.append(dict(metrics))

    keep, whole, half = Keep(), learner(kind), learner(kind)
    initial = {k: v.clone() for k, v in whole.params.items() if k.startswith(META)}
    assert all(bool((v == 0.01).all()) for v in initial.values())
    whole.learn(4, [keep])
    assert all(not torch.equal(whole.params[k], v) for k, v in initial.items())
    logged = [name for name in keep.metrics[-1] if name.startswith("train/inner_lr")]
    assert len(logged) == {"scalar": 1, "layer": 3, "parameter": 6, "layer-step": 6}[kind]
    half.learn(2).save(tmp_path / "checkpoint.pt")
    resumed = MetaLearner.load(tmp_path / "checkpoint.pt", Sinusoids()).learn(2)
    copied = copy.deepcopy(half).learn(2)
    for name, value in whole.params.items():
        assert torch.equal(resumed.params[name], value)
        assert torch.equal(copied.params[name], value)


def test_evaluation_uses_them_and_step_sizes_replace_them() -> None:
    trained = learner("layer-step").learn(3)
    own = trained.evaluate(num_tasks=3, steps=4, warn=False)
    assert len(own.mean) == 5
    fixed = trained.evaluate(num_tasks=3, steps=2, step_sizes=[0.01, 0.01], warn=False)
    source = Sinusoids()
    plain = MetaLearner(source, "maml", inner_lr=0.01, inner_steps=2, meta_batch_size=4)
    plain.params = visible(trained.params)
    assert np.array_equal(fixed.scores, plain.evaluate(num_tasks=3, steps=2, warn=False).scores)
    assert not np.array_equal(fixed.scores, own.scores[..., :3])
    # the third step takes the second one's sizes
    last = trained.method.make_rules([None] * 3)[2]
    assert last == trained.method.make_rules([None] * 2)[1]
    assert trained.inner_lr is None
    assert trained.adapt(source.sample(2, np.random.default_rng(0))).keys() == plain.params.keys()


@pytest.mark.parametrize("name", sorted(set(OUTER) - set(LEARNING)))
def test_others_refuse(name: str) -> None:
    with pytest.raises(ValueError, match=f"outer '{name}' has the options .*, got 'learn_inner_lr'"):
        make_method(name, learn_inner_lr="scalar")


def test_bad_kind() -> None:
    with pytest.raises(ValueError, match=r"learn_inner_lr must be one of .*, got 'layers'; did you mean 'layer'"):
        make_method("maml", learn_inner_lr="layers")
