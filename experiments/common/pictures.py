"""Pictures of trajectories in TensorBoard while training goes on."""

from collections.abc import Sequence
from pathlib import Path

from metarl import MetaLearner
from metarl.callbacks import Callback, Metrics
from metarl.errors import check_int
from metarl.experiments.common.figures import trajectory_figure
from metarl.logging import RunLog
from metarl.rl import ReinforcementLearning

TASKS = 4
"""Tasks in a picture."""


class TrajectoryPictures(Callback):
    """Adds `pictures/trajectories` to TensorBoard every `every` iterations: the same held-out tasks each time.

    Args:
        folder: of the events.
        every: iterations between two pictures.
        step_sizes: an inner step size for each step of adaptation; `None` as in training.
        seed: of the tasks and of all randomness in them; training is not affected.
    """

    first_process_only = True

    def __init__(self, folder: Path, every: int, step_sizes: Sequence[float | None], seed: int) -> None:
        self.every, self.step_sizes, self.seed = check_int("picture_every", every), tuple(step_sizes), seed
        self._log = RunLog(folder)

    def on_untrained(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.on_iteration(learner, metrics)

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        if learner.iterations % self.every == 0:
            assert isinstance(learner.source, ReinforcementLearning)
            rules = learner.rules(self.step_sizes)
            figure = trajectory_figure(learner.source, learner.params, rules, TASKS, self.seed)
            self._log.figure("pictures/trajectories", figure, learner.iterations)

    def close(self) -> None:
        self._log.close()
