"""Evaluation: scores after 0, 1, 2, ... gradient steps on tasks that were not seen in training."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.derivatives import scores
from metarl.engine import Engine, current_engine
from metarl.errors import MoreStepsWarning
from metarl.inner import adapt_stepwise
from metarl.processes import ALONE, Processes, shard, share_of
from metarl.statistics import confidence_interval
from metarl.tree import total, tree_map
from metarl.types import Batch, Params, Role, Rule, TaskBatch
from metarl.wrappers import CheckFinite, CountCost, TaskWrapper


class Evaluation(NamedTuple):
    """An adaptation curve: the score of every task after 0, 1, 2, ... inner steps."""

    scores: Tensor  # [K + 1, T]
    costs: list[dict[str, int]]  # K + 1: the cost of adaptation up to each step, all tasks together

    @property
    def mean(self) -> list[float]:
        """The mean over tasks after each step."""
        return [float(row) for row in self.scores.double().mean(1)]

    @property
    def ci95(self) -> list[tuple[float, float] | None]:
        """A 95 % interval of each mean over the tasks of this one training run; `None` for a single task."""
        return [confidence_interval(row.numpy()) for row in self.scores]

    def summary(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        steps, tasks = self.scores.shape
        return {
            "steps": list(range(steps)),
            "mean": self.mean,
            "ci95": [None if interval is None else list(interval) for interval in self.ci95],
            "num_tasks": tasks,
            "scores": self.scores.tolist(),
            **{unit: [cost[unit] for cost in self.costs] for unit in self.costs[0]},
        }


def note_if_worse(evaluation: Evaluation, trained: int, score: str) -> str | None:
    """A note if more inner steps than the `trained` ones make the score worse, else `None`.

    Worse means that the mean change since step `trained` is negative by more than two standard errors over tasks.
    """
    steps, tasks = len(evaluation.scores) - 1, evaluation.scores.shape[1]
    if steps <= trained or tasks < 2:
        return None
    change = evaluation.scores[trained + 1 :].double() - evaluation.scores[trained].double()  # paired: the same tasks
    worse = change.mean(1) < -2 * change.std(1) / tasks**0.5
    if not worse.any():
        return None
    step = trained + 1 + int(worse.nonzero()[0])
    return (
        f"{step} inner steps give a worse {score} than the {trained} of training: {evaluation.mean[step]:.4g} after"
        f" {evaluation.mean[trained]:.4g}; use fewer steps, smaller ones after step {trained}, or train with"
        f" inner_steps={step}"
    )


def warn_if_worse(evaluation: Evaluation, trained: int, score: str) -> bool:
    """Give a `MoreStepsWarning`, to the caller's caller, if more inner steps make the score worse; return whether."""
    note = note_if_worse(evaluation, trained, score)
    if note is not None:
        warnings.warn(note, MoreStepsWarning, stacklevel=3)
    return note is not None


def evaluate(
    params: Params, tasks: TaskBatch, rules: Sequence[Rule], processes: Processes = ALONE, engine: Engine | None = None
) -> Evaluation:
    """The scores before the first inner step and after each, on separate data; one rule per step.

    No graph is built, and `params` do not change. Only the data used for adaptation count as its cost.

    Args:
        params: the starting point, not stacked.
        tasks: held-out tasks.
        rules: the inner rule of each step; their step sizes may differ.
        processes: they share the tasks, and each gets the whole evaluation. Fewer tasks than processes are not shared.
        engine: computes derivatives and rollouts; default: the current one (see `metarl.engine`).
    """
    own = shard(tasks, processes) if processes.size <= tasks.num_tasks else tasks
    scoring, counting = CheckFinite(own), CountCost(CheckFinite(own))
    curve, costs = [], []
    with (engine or current_engine()).current():
        for w in adapt_stepwise(tree_map(Tensor.detach, params), counting, rules):
            batch = scoring.draw(w, "outer")
            curve.append(scores(own, w, batch))
            costs.append(Counter({**dict.fromkeys([*own.cost(batch), "gradients"], 0), **counting.counts}))
    share = share_of(own)
    totals = share.processes.sum(torch.tensor([list(cost.values()) for cost in costs])).tolist()
    all_scores = share.gather(torch.stack(curve, 1).cpu()).mT.contiguous()  # [K + 1, T]
    return Evaluation(all_scores, [dict(zip(costs[0], row, strict=True)) for row in totals])


class ScoreBefore(TaskWrapper):
    """Keeps the scores of the first batch: those of the initial parameters, before adaptation.

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
