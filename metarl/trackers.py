"""Trackers: callbacks that send the metrics of a run somewhere else. `metarl train --track wandb`, or your own.

A tracker is a class of callbacks that is made with the run's folder and its settings. docs/callbacks.md has one of ten
lines.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from metarl.callbacks import Callback, Metrics
from metarl.errors import check_choice, did_you_mean
from metarl.learner import MetaLearner

TrackerFactory: TypeAlias = Callable[[Path, Mapping[str, Any]], Callback]
"""`(folder, settings) -> callback`: usually a class."""


class WandbTracker(Callback):
    """Sends the metrics of every iteration to Weights & Biases, under the same names as in TensorBoard.

    A resumed run continues the same run of W&B. Whether it sends or keeps them in the folder is W&B's choice: set the
    environment variable `WANDB_MODE` to `online`, `offline` or `disabled`, and `WANDB_PROJECT` to the project's name.

    Args:
        folder: the run's; W&B writes its files there.
        settings: of the run.

    Raises:
        ImportError: wandb is not installed.
    """

    first_process_only = True

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._folder, self._settings = folder, dict(settings)
        self._id: str | None = None
        self._run: Any = None

    def on_start(self, learner: MetaLearner, total_iterations: int) -> None:
        names = {"name": self._folder.name, "id": self._id, "resume": "allow"}
        self._run = self._wandb.init(dir=str(self._folder), config=self._settings, **names)
        self._id = str(self._run.id)

    def on_untrained(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.on_iteration(learner, metrics)

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        numbers = {tag: value for tag, value in metrics.items() if tag != "iteration" and math.isfinite(value)}
        if numbers:
            self._run.log(numbers, step=learner.iterations)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def state_dict(self) -> dict[str, Any]:
        """The run's number at W&B."""
        return {} if self._id is None else {"id": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the same run."""
        self._id = state.get("id")


TRACKERS: dict[str, TrackerFactory] = {"wandb": WandbTracker}
"""Trackers by name, which is that of the package they need."""


def find_tracker(name: str) -> TrackerFactory:
    """The tracker called `name` in `TRACKERS`, or your own: `module:Class`, whose module is imported.

    Raises:
        ValueError: an unknown name, a package or a module that cannot be imported, or a module without the class.
    """
    if ":" not in name:
        check_choice("track", name, [*TRACKERS, "module:Class"])
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"track {name} needs the package {name}: pip install {name}")
        return TRACKERS[name]
    module, _, attribute = name.partition(":")
    try:
        found = vars(importlib.import_module(module))
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"track must name a module, but {module!r} cannot be imported: {error}") from error
    factory = found.get(attribute)
    if not callable(factory):
        near = did_you_mean(attribute, found)
        raise ValueError(f"track must be module:Class, but {module} has no class {attribute!r}{near}")
    if isinstance(factory, type) and not issubclass(factory, Callback):
        raise ValueError(f"track: {name} must be a class of metarl.callbacks.Callback, got {factory!r}")
    made: TrackerFactory = factory
    return made
