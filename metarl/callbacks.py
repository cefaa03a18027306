"""Callbacks of `MetaLearner.learn`: progress, checkpoints, held-out evaluation. Logging is in `metarl.logging`.

They are called in the given order. Put `Checkpointing` last, so that it saves the state of the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias

from tqdm import tqdm

from metarl import checkpoint, tree
from metarl.adaptation_curve import AdaptationCurve
from metarl.errors import check_int, check_source, check_step_sizes, check_type, shorten
from metarl.files import write_json
from metarl.statistics import Interval
from metarl.step import Stepped
from metarl.types import TaskSource

if TYPE_CHECKING:  # types only: the learner imports this module
    from metarl.learner import MetaLearner

Metrics: TypeAlias = dict[str, float]
"""The numbers of one iteration by tag; a callback may add numbers for the callbacks after it."""


class Callback:
    """A hook into `MetaLearner.learn`. This base class does nothing: override what you need."""

    first_process_only: ClassVar[bool] = False
    """Whether only the first of several processes runs it: for output, not for computations that all must share."""

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        """Called before the first iteration; `total_iterations` includes the iterations done earlier."""

    def on_untrained(self, learner: "MetaLearner", metrics: Metrics) -> None:
        """Called once, before the very first iteration of a learner, with `{"iteration": 0}` to add to."""

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        """Called after every iteration; `learner.stop()` ends training after it."""

    def on_end(self, learner: "MetaLearner") -> None:
        """Called after the last iteration, also when a signal or a callback ended training; not after an error."""

    def close(self) -> None:
        """Called last in any case, also after errors."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to continue exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""


def check_callbacks(callbacks: object) -> list[Callback]:
    """The callbacks as a list.

    Raises:
        ValueError: for a single callback instead of a list, or for objects that are not callbacks.
    """
    if not isinstance(callbacks, Iterable):
        raise ValueError(f"callbacks must be a list of callbacks, got {shorten(callbacks)}")
    given = list(callbacks)
    for callback in given:
        refuse_sb3(callback)
        check_type("callbacks", callback, Callback, "objects of subclasses of metarl.callbacks.Callback")
    return given


INSTEAD = {
    "EvalCallback": "HeldOutEvaluation",
    "CheckpointCallback": "Checkpointing",
    "ProgressBarCallback": "ProgressBar",
}
"""Callbacks of Stable-Baselines3, and those of this module with the same purpose."""


def refuse_sb3(callback: object) -> None:
    """Refuse a callback of Stable-Baselines3, and say what to use.

    Raises:
        ValueError: for a `BaseCallback`.
    """
    bases = {f"{base.__module__}.{base.__name__}": base.__name__ for base in type(callback).__mro__}
    if "stable_baselines3.common.callbacks.BaseCallback" in bases:
        known = [INSTEAD[name] for name in bases.values() if name in INSTEAD]
        use = f"use metarl.callbacks.{known[0]}" if known else "write a metarl.callbacks.Callback with on_iteration"
        raise ValueError(
            f"callbacks must be of metarl, got {type(callback).__name__} of Stable-Baselines3, which follows the"
            f" environment steps of one algorithm in one environment, but an iteration adapts to many tasks; {use}"
        )


def collect_metrics(
    iteration: int,
    score: str,
    score_before: float,
    stepped: Stepped,
    counts: Mapping[str, int],
    diagnostics: Mapping[str, float],
) -> Metrics:
    """The metrics of an iteration, which docs/scalars.md explains.

    Args:
        iteration: its number.
        score: the score's name.
        score_before: its mean before adaptation.
        stepped: the result of the outer step.
        counts: totals of the whole training.
        diagnostics: from `metarl.diagnostics`.
    """
    meta_grad = stepped.meta_grad
    return {
        "iteration": iteration,
        f"rollout/{score}_before": score_before,
        f"rollout/{score}_after": meta_grad.score,
        f"rollout/{score}_gain": meta_grad.score - score_before,
        **diagnostics,
        "train/meta_grad_norm": float(tree.norm(meta_grad.grads)),
        "train/meta_grad_spread": meta_grad.spread,
        **{f"train/{key}": value for key, value in meta_grad.info.items()},
        **{f"train/{key}": value for key, value in stepped.info.items()},
        **{f"oracle/{key}": value for key, value in sorted(counts.items())},
    }


class ProgressBar(Callback):
    """A progress bar with the scores before and after adaptation and the environment steps per second."""

    first_process_only = True

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        self._bar = tqdm(total=total_iterations, initial=learner.iterations, unit="it", dynamic_ncols=True)

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        assert self._bar is not None
        name = learner.source.score_name
        numbers = {when: f"{metrics[f'rollout/{name}_{when}']:.4g}" for when in ("before", "after")}
        if "time/env_steps_per_second" in metrics:
            numbers["steps/s"] = f"{metrics['time/env_steps_per_second']:.3g}"
        self._bar.set_postfix(numbers, refresh=False)
        self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Checkpointing(Callback):
    """Saves to `path` every `every` iterations and at the end; a crash while saving keeps the previous file."""

    first_process_only = True

    def __init__(self, path: Path, every: int = 10) -> None:
        check_type("path", path, (str, Path), "a path")
        self.path = Path(path)
        self.every = check_int("every", every)

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        checkpoint.check(learner.state_dict())  # an error now, not after hours of training

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        if learner.iterations % self.every == 0:
            learner.save(self.path)

    def on_end(self, learner: "MetaLearner") -> None:
        learner.save(self.path)


class HeldOutEvaluation(Callback):
    """Adds `eval/<score>_step_k` to the metrics every `every` iterations, always on the same held-out tasks.

    `eval_ci95/<score>_step_k` is half the width of its 95 % interval over the tasks, if there are several. It also
    evaluates before the first iteration and after the last planned one, whatever `every` is.

    Args:
        every: iterations between two evaluations.
        source: of the tasks; default: that of training.
        num_tasks: the number of held-out tasks.
        step_sizes: an inner step size for each step; `None` means as in training.
        seed: of the tasks and everything random in them.
        path: a JSON file for the latest curve, with the tasks it scored and `iteration`
            (`metarl.AdaptationCurve.from_json` reads it); the first of several processes writes it.

    Attributes:
        curve: the latest evaluation, with the tasks it scored; `None` before the first one.
    """

    def __init__(
        self,
        every: int = 10,
        source: TaskSource | None = None,
        num_tasks: int = 20,
        step_sizes: Sequence[float | None] = (None, None, None),
        seed: int = 1000,
        path: str | Path | None = None,
    ) -> None:
        self.curve: AdaptationCurve | None = None
        self.path = None if path is None else Path(path)
        self.every = check_int("every", every)
        if source is not None:
            check_source(source)
        self.source = source
        self.num_tasks = check_int("num_tasks", num_tasks)
        self.step_sizes = check_step_sizes(step_sizes)
        self.seed = check_int("seed", seed, minimum=0)
        self._last = 0

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        self._last = total_iterations

    def on_untrained(self, learner: "MetaLearner", metrics: Metrics) -> None:
        self.on_iteration(learner, metrics)

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        if learner.iterations % self.every == 0 or learner.iterations == self._last:
            curve = learner.evaluate(
                self.source,
                num_tasks=self.num_tasks,
                steps=len(self.step_sizes),
                step_sizes=self.step_sizes,
                seed=self.seed,
                warn=False,  # early in training the curve may still fall
            )
            self.curve = curve
            if self.path is not None and learner.processes.is_first:
                write_json(self.path, {"iteration": learner.iterations, **curve.to_dict()})
            add_scores(metrics, f"{learner.source.score_name}_step", range(curve.steps + 1), curve.mean, curve.ci95)


def add_scores(
    metrics: Metrics, name: str, points: Iterable[int], means: Iterable[float], ci95: Iterable[Interval | None]
) -> None:
    """Add `eval/<name>_<point>`, and in `eval_ci95/...` half the width of its interval, if it is known."""
    for point, mean, interval in zip(points, means, ci95, strict=True):
        metrics[f"eval/{name}_{point}"] = mean
        if interval is not None:
            metrics[f"eval_ci95/{name}_{point}"] = (interval[1] - interval[0]) / 2
