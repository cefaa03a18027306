"""The learner on problems with known answers, its metrics, its errors and its determinism."""

import functools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import Inner, MetaGrad, MetaLearner, Method, NonFiniteError, make_method
from metarl.agents import make_policy
from metarl.callbacks import Callback, HeldOutEvaluation, Metrics
from metarl.envs import Navigation
from metarl.inner import sgd
from metarl.rl import ReinforcementLearning
from metarl.step import OptimizerStep, Stepped
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.types import Batch, Params, TaskBatch

pytestmark = pytest.mark.usefixtures("unrecorded")

SLOPES, CENTRES = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
SGD = torch.optim.SGD


def quadratic(params: Params, batch: Batch) -> Tensor:
    return 0.5 * batch["a"] * (params["w"] - batch["c"]) ** 2


def p1(start: float = 0.0, **batch: Tensor) -> FiniteSumSource:
    """Two 1-D quadratics."""
    tasks = FiniteSumTaskBatch(quadratic, {"a": SLOPES, "c": CENTRES, **batch})
    return FiniteSumSource(tasks, {"w": torch.tensor(start, dtype=torch.float64)})


METHOD = make_method("maml", 0.1)


def make(outer: Any = "maml", source: Any = None, **arguments: Any) -> MetaLearner:
    return MetaLearner(source or p1(), outer, **{"meta_batch_size": 2, "inner_lr": 0.25, **arguments})


def of_parts(method: Any, outer_step: Any = None, **arguments: Any) -> MetaLearner:
    return MetaLearner.from_parts(p1(), method, outer_step, **{"meta_batch_size": 2, **arguments})


@functools.cache
def navigation_source() -> ReinforcementLearning:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    return ReinforcementLearning(tasks, policy, episodes=2)


def navigation(seed: int = 0, **arguments: Any) -> MetaLearner:
    return make(source=navigation_source(), seed=seed, **arguments)


class Log(Callback):
    def __init__(self) -> None:
        self.metrics: list[Metrics] = []

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.metrics.append(metrics)


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("outer", "fixed_point"), [("fo_maml", -1 / 7), ("maml", 1 / 17), ("hf_maml", 1 / 17), ("multi_step_maml", 1 / 17)]
)
def test_learns_to_the_fixed_point(outer: str, fixed_point: float) -> None:
    learner = make(outer, inner_steps=1, optimizer=SGD, learning_rate=1.5).learn(40)
    assert float(learner.params["w"]) == pytest.approx(fixed_point, abs=1e-8)


def test_one_iteration_by_hand() -> None:
    """w = 0: w_1 = (1/4, -1/2), gradients (-3/4, 1), pulled back (-9/16, 1/2); mean -1/32, spread 17/32."""
    log = Log()
    learner = make(optimizer=SGD, learning_rate=0.2).learn(1, [log])
    (metrics,) = log.metrics
    assert float(learner.params["w"]) == pytest.approx(0.2 / 32)
    times = {name: metrics.pop(f"time/{name}_seconds") for name in ("iteration", "sampling", "learning")}
    assert metrics.pop("time/iteration_cpu_seconds") > 0
    assert times["iteration"] == pytest.approx(times["sampling"] + times["learning"])
    assert min(times.values()) > 0
    assert metrics == pytest.approx(
        {
            "iteration": 1,
            "rollout/minus_loss_before": -(0.5 + 1.0) / 2,
            "rollout/minus_loss_after": -(0.5 * 0.75**2 + 0.5**2) / 2,
            "rollout/minus_loss_gain": (0.5 + 1.0) / 2 - (0.5 * 0.75**2 + 0.5**2) / 2,
            "train/inner_loss": (0.5 + 1.0) / 2,
            "train/outer_loss": (0.5 * 0.75**2 + 0.5**2) / 2,
            "train/inner_grad_norm": (1.0 + 2.0) / 2,
            "train/outer_grad_norm": (0.75 + 1.0) / 2,
            "train/inner_lr": 0.25,
            "train/meta_grad_norm": 1 / 32,
            "train/meta_grad_spread": 17 / 32,
            "train/learning_rate": 0.2,
            "oracle/gradients": 4,
            "oracle/hessian_vector_products": 2,
            "oracle/samples": 6,
        }
    )


def test_rl_metrics_and_counts() -> None:
    log = Log()
    learner = navigation().learn(3, [log])
    assert [m["iteration"] for m in log.metrics] == [1, 2, 3]
    # D_in, D_o and D_h: 2 tasks x 2 episodes x 5 steps each (no goal is this near)
    assert learner.counts == {"gradients": 12, "hessian_vector_products": 6, "samples": 36, "env_steps": 180}
    assert [m["oracle/env_steps"] for m in log.metrics] == [60, 120, 180]
    rate = log.metrics[1]["time/env_steps_per_second"] * log.metrics[1]["time/iteration_seconds"]
    assert rate == pytest.approx(60)
    assert {"rollout/return_before", "rollout/return_after", "train/meta_grad_norm"} < set(log.metrics[0])


def test_info_of_the_method_is_logged() -> None:
    log = Log()
    make("imaml").learn(1, [log])
    assert 0 <= log.metrics[0]["train/cg_residual"] < 1e-6


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"learning_rate": 0.2}, [0.2 / 32]),
        ({"learning_rate": 0.2, "max_grad_norm": 0.01}, [0.002, 0.004]),
        ({"learning_rate": 0.2, "max_grad_norm": 0.01, "schedule": lambda n: 0.5**n}, [0.002, 0.003, 0.0035]),
        (
            {"optimizer": functools.partial(SGD, momentum=0.5), "learning_rate": 0.2, "max_grad_norm": 0.01},
            [0.002, 0.005],
        ),
    ],
)
def test_clipping_schedule_and_custom_optimizers(arguments: dict[str, Any], wanted: list[float]) -> None:
    learner = make(**{"optimizer": SGD, **arguments})
    for value in wanted:
        assert float(learner.learn(1).params["w"]) == pytest.approx(value, rel=1e-4)


def test_learning_in_two_parts_is_learning_in_one() -> None:
    assert same(navigation().learn(2).learn(2).params, navigation().learn(4).params)


@pytest.mark.parametrize("outer", ["maml", "sign_maml"])
def test_same_seed_same_numbers(outer: str) -> None:
    first, second, other = (navigation(seed, outer=outer).learn(3).params for seed in (0, 0, 1))
    assert same(first, second)
    assert not same(first, other)


class HalfStep:
    """An outer step of one's own: along the gradient, half as far every time, and it says how far."""

    def __init__(self) -> None:
        self.size = 1.0

    def __call__(self, params, tasks, update):
        meta_grad, self.size = update(params, tasks), self.size / 2
        moved = {k: params[k] - self.size * meta_grad.grads[k] for k in params}
        return Stepped(moved, meta_grad, {"step_size": self.size})

    def state_dict(self):
        return {"size": self.size}

    def load_state_dict(self, state):
        self.size = state["size"]


def test_an_outer_step_of_ones_own(tmp_path: Path) -> None:
    log = Log()
    method = make_method("maml", 0.25)
    learner = of_parts(method, HalfStep()).learn(2, [log])
    assert [m["train/step_size"] for m in log.metrics] == [0.5, 0.25]
    assert float(of_parts(method, HalfStep()).learn(1).params["w"]) == pytest.approx(0.5 / 32)
    learner.save(tmp_path / "checkpoint.pt")
    again = MetaLearner.load(tmp_path / "checkpoint.pt", p1(), outer_step=HalfStep())
    assert same(again.learn(1).params, learner.learn(1).params)
    with pytest.raises(ValueError, match="outer_step must be given to load this checkpoint"):
        MetaLearner.load(tmp_path / "checkpoint.pt", p1())
    with pytest.raises(ValueError, match="outer_step is None, but the checkpoint was trained with 'HalfStep'"):
        make().load_state_dict(learner.state_dict())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"method": "maml"}, "method must be a metarl.Method"),
        ({"method": METHOD.update}, "method must be a metarl.Method"),
        (
            {"method": METHOD, "outer_step": "adam"},
            "outer_step must be an OuterStep, got 'adam' without",
        ),
        ({"method": METHOD, "meta_batch_size": 0}, "meta_batch_size"),
        ({"method": METHOD, "seed": -1}, "seed"),
    ],
)
def test_bad_parts(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        of_parts(**arguments)


def test_parts_and_names_make_the_same_learner(tmp_path: Path) -> None:
    named, parts = make(learning_rate=1e-3), of_parts(make_method("maml", 0.25))
    assert named.state_dict()["config"] == parts.state_dict()["config"]
    named.learn(2).save(tmp_path / "checkpoint.pt")
    parts.load_state_dict(named.state_dict())
    assert same(MetaLearner.load(tmp_path / "checkpoint.pt", p1()).learn(2).params, parts.learn(2).params)


def test_the_set_of_tasks_follows_from_the_seed() -> None:
    first, second, other = (make(meta_batch_size=1, seed=seed).learn(8).params for seed in (0, 0, 1))
    assert same(first, second)
    assert not same(first, other)


def test_global_random_generators_are_left_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    learner = navigation().learn(2)
    learner.evaluate(num_tasks=2)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1][1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()


def test_global_random_generators_do_not_matter() -> None:
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        runs.append(navigation().learn(2).params)
    assert same(*runs)


def test_evaluation_does_not_disturb_training() -> None:
    plain, evaluated = navigation(), navigation()
    plain.learn(3)
    evaluated.learn(3, [HeldOutEvaluation(every=1, num_tasks=3)])
    evaluated.evaluate(num_tasks=2)
    assert same(plain.params, evaluated.params)
    assert plain.counts == evaluated.counts
    assert same(plain.learn(1).params, evaluated.learn(1).params)


def test_adapt_by_hand() -> None:
    learner = make()
    assert learner.adapt(p1().tasks)["w"].tolist() == pytest.approx([0.25, -0.5])
    assert learner.adapt(p1().tasks, steps=2)["w"].tolist() == pytest.approx([0.4375, -0.75])
    assert learner.adapt(p1().tasks, steps=0)["w"].tolist() == [0.0, 0.0]
    other = FiniteSumTaskBatch(quadratic, {"a": SLOPES[:1], "c": 3 * CENTRES[:1]})
    assert learner.adapt(other)["w"].tolist() == pytest.approx([0.75])
    assert learner.params["w"] == 0.0


class Spoiled:
    """P1, but in the third iteration its data hold `value` at task 1."""

    score_name = "minus_loss"

    def __init__(self, key: str, value: float, loss: Callable[[Params, Batch], Tensor] = quadratic) -> None:
        self.key, self.value, self.loss, self.asked = key, value, loss, 0

    def initial_params(self) -> Params:
        return {"w": torch.tensor(0.4, dtype=torch.float64)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskBatch:
        self.asked += 1
        data = {"a": SLOPES.clone(), "c": CENTRES.clone()}
        if self.asked == 3:
            data[self.key][1] = self.value
        return FiniteSumTaskBatch(self.loss, data)


def root(params: Params, batch: Batch) -> Tensor:
    return ((params["w"] * batch["a"]) ** 2).sqrt()  # at a = 0 the loss is 0 and its gradient NaN


@pytest.mark.parametrize(
    ("spoil", "quantity"),
    [
        (("c", math.nan), "'inner' batch c"),
        (("a", -math.inf), "'inner' batch a"),
        (("c", 1e200), "loss"),
        (("a", 0.0, root), "gradient w"),
    ],
)
def test_names_what_is_not_finite(spoil: Any, quantity: str) -> None:
    source, log = Spoiled(*spoil), Log()
    learner = make(source=source, learning_rate=0.01)
    with pytest.raises(NonFiniteError, match="iteration 3, task 1") as caught:
        learner.learn(5, [log])
    error = caught.value
    assert (error.quantity, error.task, error.iteration) == (quantity, 1, 3)
    good = make(source=Spoiled("a", 1.0, source.loss), learning_rate=0.01).learn(2)
    assert same(learner.params, good.params)
    assert learner.iterations == len(log.metrics) == 2


def test_an_outer_step_that_overflows() -> None:
    learner = make(optimizer=SGD, learning_rate=1e308, inner_lr=1e-3)
    learner.params = {"w": torch.tensor(100.0, dtype=torch.float64)}
    with pytest.raises(NonFiniteError, match="parameters after the outer step w in iteration 1") as caught:
        learner.learn(1)
    assert caught.value.iteration == 1
    assert learner.params["w"] == 100.0


def broken(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    return MetaGrad({"w": torch.tensor([0.0, math.nan], dtype=torch.float64)}, torch.zeros(2))


def test_a_meta_gradient_that_is_not_finite() -> None:
    learner = of_parts(Method(broken, Inner(sgd(0.1))))
    with pytest.raises(NonFiniteError, match="meta-gradient w in iteration 1, task 1"):
        learner.learn(1)
    assert learner.params["w"] == 0.0


def test_a_meta_gradient_that_is_not_finite_does_not_reach_the_optimizer() -> None:
    learner = of_parts(Method(broken, Inner(sgd(0.1))))
    with pytest.raises(NonFiniteError):
        learner.learn(1)
    assert learner.outer_step.steps == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"outer": "mamel"}, "outer must be one of .* did you mean 'maml'"),
        ({"outer": METHOD}, "outer must be the name of a registered method; for a Method use MetaLearner.from_parts"),
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"inner_lr": -1.0}, "inner_lr"),
        ({"inner_lr": math.nan}, "inner_lr"),
        ({"inner_lr": "0.1"}, "inner_lr"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"inner_steps": 1.5}, "inner_steps"),
        ({"inner_steps": True}, "inner_steps"),
        ({"outer_options": {"lam": 1.0}}, "options .* got 'lam'"),
        ({"outer_options": {"hessian_date": "reuse"}}, "did you mean 'hessian_data'"),
        ({"outer_options": {"hessian_data": "old"}}, "hessian_data"),
        ({"meta_batch_size": 0}, "meta_batch_size"),
        ({"meta_batch_size": 2.0}, "meta_batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"optimizer": "adam"}, "optimizer must be a class of torch.optim .* got 'adam'"),
        ({"schedule": 0.5}, "schedule must be a function .* got 0.5"),
        ({"outer": METHOD.update}, "outer must be one of .* got <function"),
        ({"outer": None}, "outer must be one of .* got None"),
        ({"outer_options": {"inner_lr": 2}}, "outer_options must be options of .* got 'inner_lr'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(**arguments)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: x.learn(0), "iterations"),
        (lambda x: x.learn(1.5), "iterations"),
        (lambda x: x.adapt(p1().tasks, steps=-1), "steps"),
        (lambda x: x.evaluate(num_tasks=0), "num_tasks"),
        (lambda x: x.evaluate(num_tasks=3), "num_tasks must be at most 2"),
        (lambda x: x.evaluate(num_tasks=2, steps=-1), "steps"),
        (lambda x: x.evaluate(num_tasks=2, seed=-1), "seed"),
        (lambda x: x.evaluate(num_tasks=2, steps=2, step_sizes=[0.1]), "step_sizes"),
    ],
)
def test_bad_calls(call: Callable[[MetaLearner], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call(make())


def test_a_method_of_ones_own_and_its_step_sizes() -> None:
    named = make_method("maml", 0.25)
    learner = of_parts(Method(named.update, named.inner), OptimizerStep(p1().initial_params(), SGD, 0.2))
    assert same(learner.learn(5).params, make(optimizer=SGD, learning_rate=0.2).learn(5).params)
    assert len(of_parts(named).evaluate(num_tasks=2, steps=1, step_sizes=[0.1]).mean) == 2
    with pytest.raises(ValueError, match="method made by its name"):
        learner.evaluate(num_tasks=2, steps=1, step_sizes=[0.1])
