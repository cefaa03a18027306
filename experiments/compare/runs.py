"""The runs of a comparison, which are jobs: begun, continued, or recognised by their settings."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from metarl import AdaptationCurve, NonFiniteError
from metarl.experiments.baselines import describe, read_result, run_baseline
from metarl.experiments.common.config import read_config, settings
from metarl.experiments.common.lock import LOCK_FILE
from metarl.experiments.common.run import Run, is_finished, new_run, resume_run, settle, write_run
from metarl.experiments.compare.jobs import Job, Progress
from metarl.experiments.train import TrainConfig, train
from metarl.files import is_temporary, write_json

DIVERGED = "diverged.json"
"""The file of a run that ended in a NaN or an infinity."""

FREE = ("log_dir", "name", "plugins", "save_every", "track", "picture_every")
"""Settings of a run that its results do not depend on."""


class AnyRun(Protocol):
    """A run of a row with one seed."""

    @property
    def config(self) -> TrainConfig:
        """Its settings, the seed among them."""

    @property
    def folder(self) -> Path:
        """Its folder."""

    @property
    def job(self) -> Job:
        """What is to do."""

    def is_done(self) -> bool:
        """Whether nothing is left to do.

        Raises:
            ValueError: when the folder has something else, naming the setting that differs, or a result that cannot
                be read.
        """


@dataclass(frozen=True)
class BaselineRun:
    """A baseline with one seed."""

    name: str
    config: TrainConfig
    folder: Path
    env_steps: int

    @property
    def job(self) -> Job:
        return Job(self.folder.name, self.config.iterations, self)

    def __call__(self, progress: Progress) -> None:
        """Train, adapt and score it, or what is left of that."""
        run_baseline(self.name, self.config, self.config.seed, self.folder, self.env_steps)

    def is_done(self) -> bool:
        return read_result(self.folder, describe(self.name, self.config, self.env_steps, {})) is not None


@dataclass(frozen=True)
class TrainRun:
    """One training run."""

    config: TrainConfig

    @property
    def folder(self) -> Path:
        assert self.config.name is not None
        return self.config.log_dir / self.config.name

    @property
    def job(self) -> Job:
        return Job(self.folder.name, self.config.iterations, self)

    def __call__(self, progress: Progress) -> None:
        """Train from the last checkpoint, or from the beginning. A run that diverges is a result, too."""
        run = open_or_continue(self.config)
        with write_run(run, ""):
            try:
                train(run, progress)
            except NonFiniteError as error:
                write_json(run.folder / DIVERGED, {"error": str(error), "iterations": run.learner.iterations})

    def is_done(self) -> bool:
        if is_bare(self.folder):
            return False
        read_same(self.folder, settle(self.config))
        if (self.folder / DIVERGED).exists():
            return True
        if not is_finished(self.folder, self.config.iterations):
            return False
        try:
            AdaptationCurve.from_json(self.folder / "evaluation.json")
        except ValueError as error:
            raise ValueError(
                f"{error}; if an older version wrote it, remove it: the same call makes it again"
            ) from None
        return True


def is_bare(folder: Path) -> bool:
    """Whether no run has begun in the folder, although it may have been made."""
    if not folder.exists():
        return True
    found = {path.name for path in folder.iterdir() if not is_temporary(path.name)}
    return found <= {"config.json", LOCK_FILE}


def open_or_continue(config: TrainConfig) -> Run[TrainConfig]:
    """The run with these settings, new or at its last checkpoint.

    Raises:
        ValueError: when its folder has a run with other settings.
    """
    assert config.name is not None
    folder = config.log_dir / config.name
    if is_bare(folder):
        if folder.exists():  # its process was killed before it began
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        return new_run(config)
    given = settle(config)
    return resume_run(folder, read_same(folder, given), given)


def read_same(folder: Path, given: TrainConfig) -> TrainConfig:
    """The settings of the run in `folder`, which must be those `given`, except for its place.

    Raises:
        ValueError: naming the setting that differs.
    """
    saved = read_config(TrainConfig, folder)
    before, now = settings(saved), settings(given)
    for name, value in now.items():
        if name not in FREE and before[name] != value:
            raise ValueError(
                f"{name} must be that of the run in {folder}, {before[name]!r}, got {value!r}; choose another folder,"
                f" or remove that run"
            )
    return dataclasses.replace(saved, **{name: now[name] for name in FREE})
