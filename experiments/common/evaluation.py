"""Held-out evaluation as the scripts do it: the trained and the untrained parameters adapt to the same tasks."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from metarl import AdaptationCurve, MetaLearner, evaluate
from metarl.evaluation import held_out_tasks
from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.random import Stream, stream_generator
from metarl.statistics import confidence_interval
from metarl.types import Params, TaskParams, TaskSource

Schedule = Literal["halved", "constant"]


class Curves(NamedTuple):
    """The adaptation curves of the trained and of the untrained parameters on the same tasks."""

    trained: AdaptationCurve
    random_init: AdaptationCurve

    def summary(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**self.trained.to_dict(), "random_init": self.random_init.to_dict()}

    def by_label(self) -> dict[str, AdaptationCurve]:
        """For pictures and tables."""
        return {"meta-trained": self.trained, "random initialisation": self.random_init}

    def table(self, score: str, digits: int) -> str:
        """The mean score and its 95 % interval after each step; successes and environment steps, if any."""
        columns = {
            label: [with_interval(*point, digits) for point in zip(curve.mean, curve.ci95, strict=True)]
            for label, curve in self.by_label().items()
        }
        if self.trained.success is not None:
            columns["success"] = [f"{share:.0%}" for share in self.trained.success.mean((0, 1))]
        if self.trained.env_steps is not None:
            columns["env steps"] = [str(spent) for spent in self.trained.env_steps[0]]
        rows = [[str(step), *cells] for step, cells in enumerate(zip(*columns.values(), strict=True))]
        title = f"{score} on {self.trained.num_tasks} held-out tasks, mean and 95 % interval over tasks"
        return f"{title}\n{markdown_table(['steps', *columns], rows, align=True)}"


def evaluate_held_out(
    learner: MetaLearner,
    source: TaskSource,
    num_tasks: int | None,
    step_sizes: Sequence[float | None],
    seed: int,
    *,
    tasks: TaskParams | None = None,
    deterministic: bool = False,
) -> Curves:
    """Curves on `num_tasks` tasks of `source` that training has not seen, or on the given tasks.

    Several processes share the tasks. `deterministic`: as for `metarl.evaluate`.
    """

    def curve(params: Params) -> AdaptationCurve:
        return evaluate_on(learner, params, source, num_tasks, step_sizes, seed, tasks, deterministic)

    return Curves(curve(learner.params), curve(learner.method.initial_params(learner.source)))


def evaluate_on(
    learner: MetaLearner,
    params: Params,
    source: TaskSource,
    num_tasks: int | None,
    step_sizes: Sequence[float | None],
    seed: int,
    tasks: TaskParams | None = None,
    deterministic: bool = False,
) -> AdaptationCurve:
    """The curve of any parameters with the learner's inner rule; as for `evaluate_held_out`."""
    return evaluate(
        params,
        held_out_tasks(source, stream_generator(seed, Stream.HELD_OUT_TASKS), num_tasks, tasks),
        learner.rules(step_sizes),
        learner.processes,
        learner.engine,
        deterministic=deterministic,
        score_name=source.score_name,
        step_sizes=learner.known_step_sizes(step_sizes),
    )


def summarize_seeds(scores: npt.NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Means of scores `[seeds, tasks, steps + 1]` after each step, with 95 % intervals over seeds and tasks."""
    return {
        "mean": scores.mean((0, 1)).tolist(),
        "ci95": [confidence_interval(scores[..., step]) for step in range(scores.shape[2])],
        "by_seed": scores.mean(1).tolist(),
    }


def compare_pairs(scores: npt.NDArray[np.floating[Any]], reference: npt.NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Mean differences `scores - reference` after each step, both `[seeds, tasks, steps + 1]`, with 95 % intervals.

    Entries with the same indices must come from the same seed and the same task. `ci95` holds over seeds and tasks;
    `over_seeds` and `over_tasks` are Student's t intervals of the means over the other; `None` for a single seed.
    """
    differences = scores.astype(np.float64) - reference
    steps = range(differences.shape[2])
    return {
        **summarize_seeds(differences),
        "over_seeds": [confidence_interval(differences[..., step].mean(1)) for step in steps],
        "over_tasks": [confidence_interval(differences[..., step].mean(0)) for step in steps],
    }


def step_sizes(learner: MetaLearner, steps: int, schedule: Schedule = "halved") -> list[float | None]:
    """Inner step sizes at test time: `constant`, or `halved` after the trained steps (Finn et al., 2017).

    Learned step sizes are used as they are (`None`): steps after the trained ones take those of the last one.
    """
    if learner.method.learned_rule is not None:
        return [None] * steps
    assert learner.inner_lr is not None  # scripts name their method
    trained = learner.method.inner.steps if schedule == "halved" else steps
    return [learner.inner_lr if step < trained else learner.inner_lr / 2 for step in range(steps)]
