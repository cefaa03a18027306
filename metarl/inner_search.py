"""Which inner step size? Try a few at the present parameters, before any training."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from metarl.derivatives import scores
from metarl.diagnostics import Diagnose
from metarl.errors import NonFiniteError, check_int, check_real
from metarl.evaluation import ScoreBefore
from metarl.inner import adapt_stepwise
from metarl.learner import MetaLearner
from metarl.processes import share_of
from metarl.random import Stream, stream_generator
from metarl.wrappers import CheckFinite


class Trial(NamedTuple):
    """One inner step of one size, means over tasks; NaN where something was not finite."""

    inner_lr: float
    before: float  # the score
    after: float  # the score, on another draw
    kl: float | None  # KL(before, after) of the policies, in nats; None without policies


def try_inner_step_sizes(
    learner: MetaLearner, sizes: Sequence[float], *, num_tasks: int = 20, seed: int = 1000
) -> list[Trial]:
    """One inner step of each size from the learner's parameters, always on the same held-out tasks.

    Args:
        learner: of any method; training is not affected.
        sizes: the inner step sizes.
        num_tasks: held-out tasks.
        seed: of the tasks and of everything random in them.

    Raises:
        ValueError: for bad arguments, naming them.

    Example:
        >>> import torch
        >>> from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, b: (w["x"] - b["c"]) ** 2, {"c": torch.tensor([1.0, 2.0])})
        >>> learner = MetaLearner(FiniteSumSource(tasks, {"x": torch.tensor(0.0)}), meta_batch_size=2)
        >>> [round(trial.after, 2) for trial in try_inner_step_sizes(learner, [0.1, 0.5, 1.0], num_tasks=2)]
        [-1.6, 0.0, -2.5]
    """
    check_int("num_tasks", num_tasks)
    check_int("seed", seed, minimum=0)
    return [_try(learner, check_real("sizes", size), num_tasks, seed) for size in sizes]


def _try(learner: MetaLearner, size: float, num_tasks: int, seed: int) -> Trial:
    tasks = learner.source.sample(num_tasks, stream_generator(seed, Stream.HELD_OUT_TASKS))
    noted = Diagnose(tasks)
    first = ScoreBefore(CheckFinite(noted))
    after, kl = math.nan, None
    with learner.engine.current():
        try:
            *_, end = adapt_stepwise(learner.params, first, learner.rules([size]))
            after = float(scores(tasks, end, first.draw(end, "outer")).double().mean())
            kl = noted.values(share_of(tasks)).get("policy/kl")
        except NonFiniteError:  # far too large a step
            pass
        return Trial(size, first.total_score / num_tasks, after, kl)
