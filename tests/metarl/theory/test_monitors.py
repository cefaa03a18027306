"""The monitors against closed forms and plain autograd; and that training does not notice them."""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import Inner, MetaGrad, MetaLearner, Method, NonFiniteError, make_method
from metarl.callbacks import Callback
from metarl.inner import sgd
from metarl.logging import RunLog
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch
from metarl.theory import AdaptiveStep, TheoryWarning, fallah_rule
from metarl.theory.logistic import (
    logistic_loss,
    logistic_source,
    logistic_tasks,
    six_logistic_tasks,
    smoothness,
)
from metarl.theory.monitors import SmoothnessMonitor, StationarityMonitor
from metarl.theory.quadratics import (
    fixed_point,
    maml_matrix,
    mean_gradient,
    moreau_matrix,
    quadratic_source,
    quadratic_tasks,
    random_quadratics,
    resampled_quadratics,
)
from metarl.types import Params, TaskBatch
from tests.keep import Keep
from tests.reference import problems

pytestmark = pytest.mark.usefixtures("unrecorded")

PROBLEM = random_quadratics(np.random.default_rng(6), 4, 3)
ALPHA = 0.2


def make_source() -> FiniteSumSource:
    return quadratic_source(PROBLEM)


def make(outer: str = "maml", **arguments: Any) -> MetaLearner:
    return MetaLearner(make_source(), outer, meta_batch_size=2, inner_lr=ALPHA, learning_rate=0.1, **arguments)


def watch(learner: MetaLearner, iterations: int, *monitors: Callback) -> Keep:
    keep = Keep()
    learner.learn(iterations, [*monitors, keep])
    return keep


# Stationarity


@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_norm_and_distance_are_the_closed_forms(steps: int) -> None:
    matrices = maml_matrix(PROBLEM.curvatures, ALPHA, steps)
    goal = fixed_point(PROBLEM, matrices)
    points = {"maml": {"w": goal}, "zero": {"w": torch.zeros_like(goal)}}
    monitor = StationarityMonitor(make_source(), 4, every=2, points=points)
    keep = watch(make("fo_maml", inner_steps=steps), 6, monitor)
    for iteration, (metrics, params) in enumerate(zip(keep.metrics, keep.params, strict=True), 1):
        if iteration % 2:
            assert not any(tag.startswith("theory/") for tag in metrics)
            continue
        w = params["w"]
        exact = mean_gradient(PROBLEM, matrices, w).norm().item()
        assert metrics["theory/grad_norm"] == pytest.approx(exact, rel=1e-12)
        assert metrics["theory/distance_maml"] == pytest.approx((w - goal).norm().item(), rel=1e-12)
        assert metrics["theory/distance_zero"] == pytest.approx(w.norm().item(), rel=1e-12)


@pytest.mark.filterwarnings("ignore::metarl.theory.TheoryWarning")  # they become longer than the bound
def test_learned_step_sizes_are_the_current_ones() -> None:
    """|grad F| is mean_i P_i A_i P_i (w - c_i) with P_i = (I - a_1 A_i) (I - a_2 A_i), alpha L that of the longest."""
    learner = make(inner_steps=2, outer_options={"learn_inner_lr": "layer-step"})
    learner.params = {**learner.params, "meta/inner_lr/w": torch.tensor([0.1, 0.3], dtype=torch.float64)}
    monitors = StationarityMonitor(make_source(), 4, every=1), SmoothnessMonitor(1, make_source(), 4, iterations=300)
    keep = watch(learner, 3, *monitors)
    for metrics, params in zip(keep.metrics, keep.params, strict=True):
        sizes, A = params["meta/inner_lr/w"], PROBLEM.curvatures
        assert len(set(sizes.tolist())) == 2
        P = torch.eye(3, dtype=A.dtype).expand(4, 3, 3)
        for alpha in sizes:
            P = P @ (torch.eye(3, dtype=A.dtype) - alpha * A)
        gradient = torch.einsum("tij,tj->ti", P @ A @ P, params["w"] - PROBLEM.centres).mean(0)
        assert metrics["theory/grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-10)
        assert metrics["theory/alpha_L"] == pytest.approx(metrics["theory/L"] * sizes.abs().max().item(), rel=1e-10)


def test_gradient_norm_is_that_of_the_loss() -> None:
    """On P2: plain autograd through `loss_after`, which is MAML's objective; the score is another thing."""
    problem, losses = six_logistic_tasks(), logistic_loss()
    data = [{"X": x, "y": y} for x, y in zip(problem.x, problem.y, strict=True)]
    source = logistic_source(problem)
    learner = MetaLearner(source, "sign_maml", inner_lr=0.01, meta_batch_size=3, learning_rate=0.3)
    keep = watch(learner, 2, StationarityMonitor(source, 6, every=1, inner_lr=0.5, inner_steps=2))
    for metrics, params in zip(keep.metrics, keep.params, strict=True):
        w = params["w"].clone().requires_grad_()

        def adapted_loss(batch: dict[str, Tensor], w: Tensor = w) -> Tensor:
            for _ in range(2):
                w = w - 0.5 * torch.autograd.grad(losses({"w": w}, batch), w, create_graph=True)[0]
            return losses({"w": w}, batch)

        objective = torch.stack([adapted_loss(batch) for batch in data]).mean()
        exact = torch.autograd.grad(objective, w)[0].norm().item()
        assert metrics["theory/loss_after"] == pytest.approx(objective.item(), rel=1e-12)
        assert metrics["theory/grad_norm"] == pytest.approx(exact, rel=1e-10)
        assert 0.5 < metrics["theory/accuracy_after"] <= 1


def test_two_objectives_and_their_points() -> None:
    """Where the Moreau envelope is stationary MAML's objective is not; labels keep them apart."""
    goal = {"w": fixed_point(PROBLEM, moreau_matrix(PROBLEM.curvatures, ALPHA))}
    tasks = quadratic_tasks(PROBLEM)
    source = FiniteSumSource(tasks, goal)
    monitors = [
        StationarityMonitor(source, 4, every=1, objective="moreau", inner_steps=40, label="moreau"),
        StationarityMonitor(source, 4, every=1, label="maml"),
        StationarityMonitor(source, 4, every=1, objective=make_method("fo_maml", ALPHA, 1), label="fo"),
    ]
    still = MetaLearner(source, inner_lr=ALPHA, meta_batch_size=2, learning_rate=1e-30)
    (metrics,) = watch(still, 1, *monitors).metrics
    assert metrics["theory/moreau/grad_norm"] < 1e-12
    exact = mean_gradient(PROBLEM, maml_matrix(PROBLEM.curvatures, ALPHA), goal["w"]).norm().item()
    assert metrics["theory/maml/grad_norm"] == pytest.approx(exact, rel=1e-12)
    assert metrics["theory/fo/grad_norm"] > 1e-3
    assert "theory/grad_norm" not in metrics


class Resampled:
    """The problem's tasks with fresh points at every draw."""

    score_name = "minus_loss"

    def initial_params(self) -> Params:
        return {"w": torch.zeros(3, dtype=torch.float64)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskBatch:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return resampled_quadratics(PROBLEM, generator, BatchSizes(50, 50, 50))


def test_sampled_data_are_the_same_at_every_look() -> None:
    """Without movement nothing changes; another seed has other noise around the same gradient."""
    still = MetaLearner(Resampled(), inner_lr=ALPHA, meta_batch_size=4, learning_rate=1e-30)
    monitors = [StationarityMonitor(Resampled(), 4, every=1, label=str(seed), seed=seed) for seed in range(20)]
    keep = watch(still, 2, *monitors)
    first, second = ({k: v for k, v in m.items() if k.startswith("theory/")} for m in keep.metrics)
    assert first == second
    norms = np.asarray([first[f"theory/{seed}/grad_norm"] for seed in range(20)])
    assert len(set(norms)) == 20
    w = torch.zeros(3, dtype=torch.float64)
    exact = mean_gradient(PROBLEM, maml_matrix(PROBLEM.curvatures, ALPHA), w).norm().item()
    assert abs(norms.mean() - exact) < 4 * norms.std(ddof=1) / math.sqrt(20) + 0.01  # noise adds a little to a norm


def test_reinforcement_learning() -> None:
    source = problems.source("navigation")
    large = dataclasses.replace(source, episodes=6)
    learner = MetaLearner(source, inner_lr=0.1, meta_batch_size=2)
    (metrics,) = watch(learner, 1, StationarityMonitor(large, 3, every=1), SmoothnessMonitor(1, large, 2)).metrics
    assert metrics["theory/grad_norm"] > 0
    assert metrics["theory/return_after"] < 0
    assert metrics["theory/alpha_L"] == pytest.approx(0.1 * metrics["theory/L"])


def test_a_method_of_ones_own_without_an_outer_draw() -> None:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        return MetaGrad({"w": torch.full((4, 3), 2.0)}, torch.zeros(4))

    monitor = StationarityMonitor(make_source(), 4, every=1, objective=Method(update, Inner(sgd(0.1))))
    (metrics,) = watch(make(), 1, monitor).metrics
    assert metrics["theory/grad_norm"] == pytest.approx(math.sqrt(12))
    assert "theory/loss_after" not in metrics


def test_a_gradient_that_is_not_finite() -> None:
    broken = FiniteSumTaskBatch(lambda p, b: (p["w"] * b["x"]).sum(), {"x": torch.full((1, 3), math.nan)})
    monitor = StationarityMonitor(FiniteSumSource(broken, {"w": torch.zeros(3)}), 1, every=1)
    with pytest.raises(NonFiniteError):
        watch(make(), 1, monitor)


# Smoothness


def test_smoothness_is_logged_at_the_first_iteration_and_every_few() -> None:
    exact = torch.linalg.eigvalsh(PROBLEM.curvatures).abs().max().item()
    monitor = SmoothnessMonitor(3, make_source(), num_tasks=4, iterations=100)
    keep = watch(make(), 7, monitor)
    assert [m["iteration"] for m in keep.metrics if "theory/L" in m] == [1, 3, 6]
    for metrics in keep.metrics:
        if "theory/L" in metrics:
            assert metrics["theory/L"] == pytest.approx(exact, rel=1e-3)
            assert metrics["theory/alpha_L"] == pytest.approx(ALPHA * metrics["theory/L"], rel=1e-12)


def test_with_partial_adaptation_it_is_that_of_the_adapted_block() -> None:
    """f = 2 body^2 + 0.5 head^2 + 3 body head: the whole Hessian has norm 5.9, the block of the head 1."""

    def loss(w: Params, batch: Params) -> Tensor:
        body, head = w["body.weight"], w["head.weight"]
        return 2 * body**2 + head**2 / 2 + 3 * body * head + 0 * batch["x"].sum()

    start = {name: torch.tensor(1.0, dtype=torch.float64) for name in ("body.weight", "head.weight")}
    source = FiniteSumSource(FiniteSumTaskBatch(loss, {"x": torch.zeros(2, 1, 1)}), start)
    whole, block = (
        watch(
            MetaLearner(source, meta_batch_size=2, inner_lr=0.1, adapt=adapt), 1, SmoothnessMonitor(1, num_tasks=2)
        ).metrics[0]["theory/L"]
        for adapt in (None, "head")
    )
    exact = torch.linalg.eigvalsh(torch.tensor([[4.0, 3.0], [3.0, 1.0]], dtype=torch.float64)).abs().max().item()
    assert (whole, block) == (pytest.approx(exact, rel=1e-3), pytest.approx(1.0))


def test_it_follows_the_parameters() -> None:
    """Logistic tasks are flatter away from the origin: the dense Hessians at each look, found from below."""
    problem, losses = six_logistic_tasks(), logistic_loss()
    source = logistic_source(problem)
    learner = MetaLearner(source, inner_lr=0.5, meta_batch_size=6, learning_rate=0.5)
    keep = watch(learner, 4, SmoothnessMonitor(2, num_tasks=6, iterations=60))
    found = []
    for metrics, params in zip(keep.metrics, keep.params, strict=True):
        if "theory/L" in metrics:
            hessians = [
                torch.autograd.functional.hessian(lambda w, x=x, y=y: losses({"w": w}, {"X": x, "y": y}), params["w"])
                for x, y in zip(problem.x, problem.y, strict=True)
            ]
            exact = torch.linalg.eigvalsh(torch.stack(hessians)).max().item()
            assert 0.999 * exact < metrics["theory/L"] <= exact + 1e-12
            found.append(exact)
    assert smoothness(problem) > found[0] > found[1] > 0
    assert len(found) == 3


def test_one_warning_in_a_run(tmp_path: Path) -> None:
    """Before the first iteration; not again when the run goes on from a checkpoint."""
    monitor = SmoothnessMonitor(1, num_tasks=4)
    learner = make("maml", inner_steps=5)  # the bound is 0.07; alpha L is about 0.2
    with pytest.warns(
        TheoryWarning, match=r"inner_lr = 0\.2 .* for 5 inner steps theory needs less than 0\.07177"
    ) as w:
        learner.learn(3, [monitor])
    assert len(w) == 1
    learner.save(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = MetaLearner.load(tmp_path / "saved", make_source())
        again.learn(2, [SmoothnessMonitor(1, num_tasks=4)])
        make("maml", inner_steps=1).learn(2, [SmoothnessMonitor(1, num_tasks=4)])  # the bound is 0.41


def test_the_warning_comes_before_any_iteration() -> None:
    learner = make("maml", inner_steps=5)
    with pytest.warns(TheoryWarning):
        SmoothnessMonitor(num_tasks=4).on_start(learner, 10)
    assert learner.iterations == 0


def test_a_resumed_run_has_been_looked_at() -> None:
    learner = make("maml", inner_steps=5).learn(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SmoothnessMonitor(num_tasks=4).on_start(learner, 10)


@pytest.mark.parametrize(
    ("outer", "steps", "largest"),
    [
        ("maml", 1, 1.0),
        ("fo_maml", 1, 0.1),
        ("hf_maml", 1, 1 / 6),
        ("multi_step_maml", 3, 0.12246),
        ("moreau", 3, 1.0),
        ("sign_maml", 1, math.inf),
    ],
)
@pytest.mark.parametrize("factor", [0.98, 1.05])
def test_the_range_is_that_of_the_method(outer: str, steps: int, largest: float, factor: float) -> None:
    L = torch.linalg.eigvalsh(PROBLEM.curvatures).abs().max().item()
    alpha = factor * largest / L if largest < math.inf else 100.0
    learner = MetaLearner(
        make_source(), outer, meta_batch_size=2, inner_lr=alpha, inner_steps=steps, learning_rate=1e-3
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.learn(3, [SmoothnessMonitor(1, num_tasks=4, iterations=100)])
    expected = 1 if factor > 1 and largest < math.inf else 0
    assert [w.category for w in caught] == [TheoryWarning] * expected


def test_no_second_warning_after_that_of_the_outer_step() -> None:
    source = make_source()
    with pytest.warns(TheoryWarning):
        step = AdaptiveStep(fallah_rule("fo_maml", 1.0, 0.0, 0.2), source, num_tasks=2)
    learner = MetaLearner.from_parts(source, make_method("fo_maml", 0.2), step, meta_batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.learn(2, [SmoothnessMonitor(1, num_tasks=4)])
    covered = AdaptiveStep(fallah_rule("fo_maml", 0.01, 0.0, 0.2), source, num_tasks=2)  # with a wrong L
    learner = MetaLearner.from_parts(source, make_method("fo_maml", 0.2), covered, meta_batch_size=2)
    with pytest.warns(TheoryWarning, match="fo_maml needs at most 0.1"):
        learner.learn(2, [SmoothnessMonitor(1, num_tasks=4)])


# Training does not notice


def minibatch_learner() -> MetaLearner:
    tasks = logistic_tasks(six_logistic_tasks(), batch_sizes=BatchSizes(4, 4, 4), generator=torch.Generator())
    source = FiniteSumSource(tasks, {"w": torch.zeros(5, dtype=torch.float64)})
    return MetaLearner(source, inner_lr=0.2, meta_batch_size=6, learning_rate=0.1)


def reinforcement_learner() -> MetaLearner:
    return MetaLearner(problems.source("navigation"), inner_lr=0.01, meta_batch_size=2)


def monitors_of(learner: MetaLearner) -> list[Callback]:
    return [StationarityMonitor(learner.source, 2, every=1), SmoothnessMonitor(1, num_tasks=2, iterations=2)]


@pytest.mark.parametrize("new", [minibatch_learner, reinforcement_learner])
def test_training_is_the_same_with_and_without(new: Callable[[], MetaLearner]) -> None:
    watched, alone = new(), new()
    watched.learn(3, monitors_of(watched))
    alone.learn(3)
    for key, leaf in alone.params.items():
        assert torch.equal(leaf, watched.params[key])
    assert alone.counts == watched.counts
    assert alone.state_dict()["rng"] == watched.state_dict()["rng"]


def untimed(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


@pytest.mark.parametrize("new", [minibatch_learner, reinforcement_learner])
def test_a_resumed_run_logs_the_same(tmp_path: Path, new: Callable[[], MetaLearner]) -> None:
    straight, half = new(), new()
    straight.learn(4, [*monitors_of(straight), RunLog(tmp_path / "straight")])
    half.learn(2, [*monitors_of(half), RunLog(tmp_path / "resumed")]).save(tmp_path / "checkpoint")
    resumed = MetaLearner.load(tmp_path / "checkpoint", new().source)
    resumed.learn(2, [*monitors_of(resumed), RunLog(tmp_path / "resumed")])
    lines = untimed(tmp_path / "straight")
    assert lines == untimed(tmp_path / "resumed")
    tags = {"theory/grad_norm", "theory/L", "oracle/gradients", "oracle/hessian_vector_products", "oracle/samples"}
    assert all(tags <= set(line) for line in lines)


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"objective": "mamel"}, "did you mean 'maml'"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"every": 0}, "every"),
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"seed": -1}, "seed"),
        ({"objective": make_method("maml"), "inner_lr": 0.1}, "a Method has its own"),
    ],
)
def test_bad_arguments_of_stationarity(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StationarityMonitor(make_source(), **{"num_tasks": 4, **arguments})


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"num_tasks": 0}, {"inner_lr": -0.1}, {"iterations": 0}, {"seed": 1.5}]
)
def test_bad_arguments_of_smoothness(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SmoothnessMonitor(**arguments)


@pytest.mark.parametrize("point", [{"w": torch.zeros(2)}, {"v": torch.zeros(3)}])
def test_points_of_another_shape(point: Params) -> None:
    learner = make()
    monitor = StationarityMonitor(make_source(), 4, points={"maml": point})
    with pytest.raises(ValueError, match=r"point 'maml' must have the parameters' shapes \{'w': \(3,\)\}"):
        learner.learn(1, [monitor])
    assert learner.iterations == 0


@pytest.mark.parametrize("monitor", [StationarityMonitor(make_source(), 4), SmoothnessMonitor(num_tasks=4)])
def test_a_method_does_not_tell_its_step_size(monitor: Callback) -> None:
    named = make_method("maml", ALPHA)
    learner = MetaLearner.from_parts(make_source(), Method(named.update, named.inner), meta_batch_size=2)
    with pytest.raises(ValueError, match="inner_lr must be given"):
        learner.learn(1, [monitor])
    assert learner.iterations == 0
    learner.learn(
        1, [StationarityMonitor(learner.source, 4, inner_lr=0.1), SmoothnessMonitor(1, None, 4, inner_lr=0.1)]
    )
