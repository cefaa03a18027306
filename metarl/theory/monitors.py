"""Callbacks that log the quantities of the convergence theorems: `|grad F(w)|`, stationary points, alpha L.

They add `theory/...` to the metrics, so a `RunLog` placed after them writes it to `metrics.jsonl` and to TensorBoard,
beside the cumulative counts `oracle/...`. They have their own draws: the same tasks with the same random numbers every
time, made again from a seed. These draws are not counted and do not use the streams of training, so a resumed run is
equal bit for bit.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metarl import tree
from metarl.callbacks import Callback, Metrics
from metarl.derivatives import over_tasks
from metarl.errors import check_choice, check_int, check_real
from metarl.learned_rules import step_sizes, visible
from metarl.outer import OUTER, Method, make_method, options
from metarl.partial import adapted
from metarl.random import Stream, stream_generator, torch_generator
from metarl.state_dict import check_like
from metarl.theory import AdaptiveStep, estimate_smoothness, warn_if_too_large
from metarl.types import Params, TaskBatch, TaskSource
from metarl.wrappers import CheckFinite, RecordDraws, RecordedDraw, check_finite

if TYPE_CHECKING:
    from metarl.learner import MetaLearner


class StationarityMonitor(Callback):
    """How stationary w is: `|grad F(w)|` of an objective, and the distances to known stationary points.

    On a finite sum, with a source of all tasks and all data, the gradient is exact. On sampled data it is that of one
    large batch with the same random numbers every time: smooth in time, but never below its own noise, which falls with
    the size of the batch (`dataclasses.replace(source, episodes=200)`).

    It logs, below `theory/` or `theory/<label>/`,
    - `grad_norm`;
    - `loss_after` and `<score>_after`, the means after adaptation: for MAML on a finite sum the loss is F itself; in
      reinforcement learning it is the surrogate's, which has no meaning;
    - `distance_<name>` to each of `points`.

    Args:
        source: of the monitored tasks.
        num_tasks: their number; for a finite sum, all.
        every: iterations between two evaluations.
        objective: the method whose update is the objective's gradient: `maml`, or `moreau` with enough inner steps to
            converge to the envelope's gradient; or a `Method`.
        inner_lr: of a named objective; default: the learner's, and of learned step sizes their current values.
        inner_steps: of a named objective; default: the learner's.
        points: stationary points by name.
        label: distinguishes several monitors of one run.
        seed: of the tasks and their data.

    Example:
        >>> from metarl import MetaLearner
        >>> from metarl.theory.quadratics import quadratic_source, quadratics_1d
        >>> source = quadratic_source(quadratics_1d())
        >>> monitor = StationarityMonitor(source, num_tasks=2, every=1)
        >>> MetaLearner(source, "maml", meta_batch_size=2).learn(1, [monitor]).iterations
        1
    """

    def __init__(
        self,
        source: TaskSource,
        num_tasks: int,
        *,
        every: int = 10,
        objective: str | Method = "maml",
        inner_lr: float | None = None,
        inner_steps: int | None = None,
        points: Mapping[str, Params] = MappingProxyType({}),
        label: str | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.num_tasks = check_int("num_tasks", num_tasks)
        self.every = check_int("every", every)
        self.inner_lr = None if inner_lr is None else check_real("inner_lr", inner_lr)
        self.inner_steps = None if inner_steps is None else check_int("inner_steps", inner_steps)
        if isinstance(objective, Method):
            if inner_lr is not None or inner_steps is not None:
                raise ValueError("inner_lr and inner_steps go with an objective's name; a Method has its own")
        else:
            check_choice("objective", objective, OUTER)
        self.objective = objective
        self.points = dict(points)
        self.prefix = "theory/" if label is None else f"theory/{label}/"
        self.seed = check_int("seed", seed, minimum=0)

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        """Find bad settings before the first iteration."""
        self._method(learner)
        shapes = _shapes(visible(learner.params))
        for name, point in self.points.items():
            if _shapes(point) != shapes:
                raise ValueError(f"point {name!r} must have the parameters' shapes {shapes}, got {_shapes(point)}")

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        if learner.iterations % self.every:
            return
        method = self._method(learner)
        tasks = self.source.sample(self.num_tasks, stream_generator(self.seed, Stream.STATIONARITY))
        recording = RecordDraws(CheckFinite(tasks))
        params = visible(learner.params) if method.learned_rule is None else learner.params
        found = method.update(params, recording, method.inner)
        grads = visible(found.grads)
        check_finite(grads, "gradient of the monitored objective")
        metrics[f"{self.prefix}grad_norm"] = float(tree.norm(tree.mean(grads)))
        drawn = next((draw for draw in recording.draws if draw.role == "outer"), None)
        if drawn is not None:  # a user's method may draw none
            metrics[f"{self.prefix}loss_after"] = _loss(recording, drawn)
        metrics[f"{self.prefix}{self.source.score_name}_after"] = float(found.score.mean())
        for name, point in self.points.items():
            offset = {key: leaf - point[key].to(leaf) for key, leaf in visible(learner.params).items()}
            metrics[f"{self.prefix}distance_{name}"] = float(tree.norm(offset))

    def _method(self, learner: "MetaLearner") -> Method:
        if isinstance(self.objective, Method):
            return self.objective
        own = learner.method
        steps = own.inner.steps if self.inner_steps is None else self.inner_steps
        adapt = None if own.recipe is None else own.recipe.adapt
        if self.inner_lr is None and own.learned_rule is not None and "learn_inner_lr" in options(self.objective):
            # the objective's update along the learner's inner steps
            named = make_method(self.objective, inner_steps=steps, adapt=adapt)
            return dataclasses.replace(named, inner=own.inner._replace(steps=steps))
        return make_method(self.objective, _find_inner_lr(self.inner_lr, learner), steps, adapt=adapt)


class SmoothnessMonitor(Callback):
    """Estimates L and warns, once in a run, when alpha L is outside the range that the theory of the method covers.

    It estimates before and after the first iteration, then every `every` iterations; logs `theory/L` and
    `theory/alpha_L`. The range is `metarl.theory.alpha_range`; a method without a range gets no warning, and a `Method`
    without a name is taken for multi-step MAML. Nor is there a warning if the outer step's rule gave it already.

    Args:
        every: iterations between two estimates.
        source: of the tasks; default: the learner's. With larger batches, noise inflates L less.
        num_tasks: their number.
        inner_lr: alpha; default: the learner's, and of learned step sizes the longest.
        iterations: Hessian-vector products per estimate; more come closer to L, from below.
        seed: of the tasks, their data and the power iteration.

    Example:
        >>> SmoothnessMonitor(every=5, num_tasks=4).every
        5
    """

    def __init__(
        self,
        every: int = 10,
        source: TaskSource | None = None,
        num_tasks: int = 20,
        *,
        inner_lr: float | None = None,
        iterations: int = 20,
        seed: int = 0,
    ) -> None:
        self.every = check_int("every", every)
        self.source = source
        self.num_tasks = check_int("num_tasks", num_tasks)
        self.inner_lr = None if inner_lr is None else check_real("inner_lr", inner_lr)
        self.iterations = check_int("iterations", iterations)
        self.seed = check_int("seed", seed, minimum=0)
        self.warned = False

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        alpha = _find_inner_lr(self.inner_lr, learner)
        if isinstance(learner.outer_step, AdaptiveStep):
            self.warned = self.warned or not learner.outer_step.rule.in_range
        if learner.iterations == 0:  # a resumed run was checked before
            self._warn_once(alpha, self._smoothness(learner), learner)

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        if learner.iterations > 1 and learner.iterations % self.every:
            return
        alpha, smoothness = _find_inner_lr(self.inner_lr, learner), self._smoothness(learner)
        metrics.update({"theory/L": smoothness, "theory/alpha_L": alpha * smoothness})
        self._warn_once(alpha, smoothness, learner)

    def state_dict(self) -> dict[str, Any]:
        return {"warned": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_like(state, self.state_dict())
        self.warned = state["warned"]

    def _smoothness(self, learner: "MetaLearner") -> float:
        rng = stream_generator(self.seed, Stream.SMOOTHNESS)
        tasks = CheckFinite((self.source or learner.source).sample(self.num_tasks, rng))
        params, names = visible(learner.params), adapted(learner.method.inner.rule, learner.params)
        return float(estimate_smoothness(params, tasks, torch_generator(rng), self.iterations, names).max())

    def _warn_once(self, alpha: float, smoothness: float, learner: "MetaLearner") -> None:
        if not self.warned:
            recipe, steps = learner.method.recipe, learner.method.inner.steps
            name = "multi_step_maml" if recipe is None else recipe.name
            self.warned = warn_if_too_large(alpha, smoothness, steps, name)


def _loss(tasks: TaskBatch, drawn: RecordedDraw) -> float:
    """The tasks' mean loss on a recorded draw, at the parameters of the draw."""
    losses: Tensor = over_tasks("losses", tasks.loss, drawn.params, drawn.batch)
    return float(losses.mean())


def _find_inner_lr(given: float | None, learner: "MetaLearner") -> float:
    if given is not None:
        return given
    if learned := step_sizes(learner.params):
        return max(float(sizes.abs().max()) for sizes in learned.values())
    if learner.method.recipe is None:
        raise ValueError("inner_lr must be given if the learner's outer is a Method, which does not tell its own")
    return learner.method.recipe.inner_lr


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {key: tuple(leaf.shape) for key, leaf in params.items()}
