"""The beginning of a reference run: the same settings and annealing, up to the first evaluation after iteration 0."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl.callbacks import Callback
from metarl.experiments import train
from metarl.experiments.baselines import rl2
from metarl.experiments.baselines.policy_gradient import observing, pretraining
from metarl.experiments.baselines.rl2 import RL2Config
from metarl.experiments.common.config import LoopConfig
from metarl.experiments.common.run import Run, new_run, settle, train_run, write_run
from metarl.experiments.compare.jobs import Job, Progress
from metarl.experiments.compare.runs import AnyRun, BaselineRun
from metarl.experiments.reports.reproduce.plan import ReferenceRun
from metarl.experiments.reports.reproduce.result import Evaluation, Result, read_evaluations
from metarl.experiments.train import TrainConfig
from metarl.logging import read_metrics

FOLDER = "quick"

CONFIGS: dict[str, Any] = {"multitask": pretraining, "oracle": observing, "rl2": rl2.make_config}
"""The settings of the baselines that train, from those of the row and the budget."""


def first_evaluation(committed: Result) -> Evaluation | None:
    """The evaluation that a quick run is compared with; `None` for a baseline that is not evaluated in training."""
    return next((found for found in committed.evaluations if found.iteration > 0), None)


@dataclass(frozen=True)
class QuickRun:
    """The first `iterations` of a run, in a new folder."""

    name: str
    config: LoopConfig
    folder: Path

    @property
    def job(self) -> Job:
        return Job(self.name, self.config.iterations, self)

    def __call__(self, progress: Progress) -> None:
        """Train without the evaluation at the end of a run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        run = new_run(dataclasses.replace(self.config, log_dir=self.folder.parent, name=self.folder.name))
        with write_run(run, ""):
            train_run(run, [make_evaluation(run)], progress=progress)

    def read(self, result: Result) -> Evaluation:
        """The last evaluation."""
        return read_evaluations(read_metrics(self.folder), result.axis, result.points)[-1]


def make_quick(reference: ReferenceRun, training: AnyRun, iterations: int) -> QuickRun:
    """The first iterations of a run."""
    if isinstance(training, BaselineRun):
        whole: LoopConfig = CONFIGS[training.name](training.config, training.env_steps)
    else:
        whole = training.config
    config = first_iterations(settle(whole), iterations)
    return QuickRun(reference.title, config, reference.place / FOLDER / reference.stem)


def first_iterations(config: LoopConfig, iterations: int) -> LoopConfig:
    """The settings with fewer iterations and the annealing of the whole run."""
    if isinstance(config, RL2Config):  # its iterations follow from the environment steps
        each = config.env_steps // config.iterations
        return dataclasses.replace(config, env_steps=iterations * each, iterations=iterations)
    return dataclasses.replace(config, iterations=iterations)


def make_evaluation(run: Run[Any]) -> Callback:
    """The evaluation during training."""
    if isinstance(run.config, RL2Config):
        return rl2.make_evaluation(run.config)
    assert isinstance(run.config, TrainConfig)
    return train.make_evaluation(run)
