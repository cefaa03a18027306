"""Evaluation: scores after 0, 1, 2, ... gradient steps on tasks that were not seen in training."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metarl.adaptation_curve import AdaptationCurve
from metarl.derivatives import scores
from metarl.engine import Engine, current_engine
from metarl.errors import MoreStepsWarning, check_int
from metarl.inner import adapt_stepwise
from metarl.processes import ALONE, Processes, shard, share_of
from metarl.task_params import read_tasks
from metarl.tree import total, tree_map
from metarl.types import (
    Batch,
    ChoosesTasks,
    EpisodicTaskBatch,
    HasTaskParams,
    Params,
    Role,
    Rule,
    TaskBatch,
    TaskSource,
)
from metarl.wrappers import CheckFinite, CountCost, TaskWrapper, unwrap


def note_if_worse(curve: AdaptationCurve, trained: int) -> str | None:
    """A note if more inner steps than the `trained` ones make the score worse, else `None`.

    Worse means that the mean change since step `trained` is negative by more than two standard errors over tasks.
    """
    if curve.steps <= trained or curve.num_tasks < 2:
        return None
    by_task = curve.scores.mean(0)  # [tasks, steps + 1]
    change = by_task[:, trained + 1 :] - by_task[:, trained, None]  # paired: the same tasks
    worse = change.mean(0) < -2 * change.std(0, ddof=1) / curve.num_tasks**0.5
    if not worse.any():
        return None
    step = trained + 1 + int(worse.argmax())
    return (
        f"{step} inner steps give a worse {curve.score_name} than the {trained} of training: {curve.mean[step]:.4g}"
        f" after {curve.mean[trained]:.4g}; use fewer steps, smaller ones after step {trained}, or train with"
        f" inner_steps={step}"
    )


def warn_if_worse(curve: AdaptationCurve, trained: int) -> bool:
    """Give a `MoreStepsWarning`, to the caller's caller, if more inner steps make the score worse; return whether."""
    note = note_if_worse(curve, trained)
    if note is not None:
        warnings.warn(note, MoreStepsWarning, stacklevel=3)
    return note is not None


def held_out_tasks(
    source: TaskSource, rng: np.random.Generator, num_tasks: int | None = None, tasks: object = None
) -> TaskBatch:
    """The tasks to evaluate on: `num_tasks` (default: 40) of `source`, or chosen ones.

    Args:
        source: of the tasks.
        rng: of sampled tasks, and of everything random in them.
        num_tasks: only without `tasks`.
        tasks: parameters as for `metarl.task_params.read_tasks`.

    Raises:
        ValueError: for both of them, and for tasks that the source does not have.
    """
    if tasks is None:
        return source.sample(40 if num_tasks is None else check_int("num_tasks", num_tasks), rng)
    if num_tasks is not None:
        raise ValueError(f"num_tasks must be left out if tasks are given, got {num_tasks!r}")
    if not isinstance(source, ChoosesTasks):
        raise ValueError(f"tasks must be left out for {type(source).__name__}, whose tasks have no parameters")
    return source.tasks(read_tasks(source.distribution.space, tasks), rng)


def evaluate(
    params: Params,
    tasks: TaskBatch,
    rules: Sequence[Rule],
    processes: Processes = ALONE,
    engine: Engine | None = None,
    *,
    deterministic: bool = False,
    score_name: str = "score",
    step_sizes: Sequence[float | None] = (),
) -> AdaptationCurve:
    """The scores before the first inner step and after each, on separate data; one rule per step.

    No graph is built, and `params` do not change. Only the data used for adaptation count as its cost.

    Args:
        params: the starting point, not stacked.
        tasks: held-out tasks.
        rules: the inner rule of each step; their step sizes may differ.
        processes: they share the tasks, and each gets the whole evaluation. Fewer tasks than processes are not shared.
        engine: computes derivatives and rollouts; default: the current one (see `metarl.engine`).
        deterministic: whether the policy takes its most likely actions in the episodes that measure the scores.
            Adaptation samples actions in any case, with the same random numbers.
        score_name: of the curve.
        step_sizes: of the curve, for each step.

    Raises:
        ValueError: for `deterministic` where there is no policy.
    """
    own = shard(tasks, processes) if processes.size <= tasks.num_tasks else tasks
    scoring, counting = CheckFinite(own), CountCost(CheckFinite(own))
    points, costs = [], []
    with (engine or current_engine()).current():
        for w in adapt_stepwise(tree_map(Tensor.detach, params), counting, rules):
            batch = _draw_to_score(scoring, w, deterministic)
            points.append(torch.stack([scores(own, w, batch).cpu().double(), _successes(own)], 1))
            costs.append(Counter({**dict.fromkeys([*own.cost(batch), "gradients"], 0), **counting.counts}))

    # all processes get the numbers of all tasks
    share = share_of(own)
    totals = share.processes.sum(torch.tensor([list(cost.values()) for cost in costs])).numpy()  # [K + 1, units]
    gathered = share.gather(torch.stack(points, 1)).numpy()[None]  # [1, T, K + 1, 2]
    success = gathered[..., 1]
    whole = unwrap(tasks)
    return AdaptationCurve(
        gathered[..., 0].copy(),
        score_name,
        dict(whole.task) if isinstance(whole, HasTaskParams) else {},
        None if np.isnan(success).all() else np.nan_to_num(success, nan=0.0),
        {unit: totals[None, :, i] for i, unit in enumerate(costs[0])},
        tuple(step_sizes),
    )


def _draw_to_score(tasks: TaskBatch, params: Params, deterministic: bool) -> Batch:
    """A draw that measures the scores; with the policy's most likely actions if it is `deterministic`."""
    if not deterministic:
        return tasks.draw(params, "outer")
    inside = unwrap(tasks)
    if not isinstance(inside, EpisodicTaskBatch):
        raise ValueError(f"deterministic must be False for tasks without a policy, such as {type(inside).__name__}")
    inside.deterministic = True
    try:
        return tasks.draw(params, "outer")
    finally:
        inside.deterministic = False


def _successes(tasks: TaskBatch) -> Tensor:
    """The share of episodes of the last draw that succeeded, `[t]`; NaN where that is not reported."""
    inside = unwrap(tasks)
    if isinstance(inside, EpisodicTaskBatch) and inside.success is not None:
        return inside.success.cpu().double()
    return torch.full((tasks.num_tasks,), math.nan, dtype=torch.float64)


class ScoreBefore(TaskWrapper):
    """Keeps the scores of the first batch, which the initial parameters drew, before adaptation.

    The first gradient computes them, too. If no gradient is taken there, `total_score` computes them.
    """

    def __init__(self, tasks: TaskBatch) -> None:
        super().__init__(tasks)
        self._scores: Tensor | None = None  # [t]
        self._first: tuple[Params, Batch] | None = None  # until its scores are known

    def draw(self, params: Params, role: Role) -> Batch:
        batch = super().draw(params, role)
        if self._first is None and self._scores is None:
            self._first = params, batch
        return batch

    def wants_scores(self, params: Params, batch: Batch) -> bool:
        if self._first is None:
            return False
        at, data = self._first  # another wrapper may have hidden some of the parameters
        return batch is data and all(params.get(name) is leaf for name, leaf in at.items())

    def on_scores(self, scores: Tensor) -> None:
        self._scores, self._first = scores, None

    @property
    def total_score(self) -> float:
        """The sum over tasks; NaN before the first draw."""
        if self._first is not None:
            self.on_scores(scores(self, *self._first))
        return math.nan if self._scores is None else float(total(self._scores.cpu().double()))
