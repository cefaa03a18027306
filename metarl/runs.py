"""Runs of the command line, opened from Python."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metarl.errors import check_type
from metarl.learner import MetaLearner
from metarl.processes import ALONE, Processes


def load(run: str | Path, *, plugins: Iterable[str] = (), processes: Processes = ALONE, **changes: Any) -> MetaLearner:
    """The learner of a run of `metarl train` or `metarl train-supervised` at its last checkpoint.

        metarl.load("runs/nav").evaluate(num_tasks=40)
        metarl.load("runs/nav", device="cpu", learning_rate=1e-4).learn(100).save("further.pt")

    The tasks, the policy and the schedule are made from the settings in the run's `config.json`; nothing in the folder
    is executed or changed. Further training continues with the run's schedule, which stays constant after its end.

    Args:
        run: the run's folder.
        plugins: modules that the run needs, such as one that registers an outer update. Modules named in the folder
            are only imported if they are listed here.
        processes: the processes that train together.
        changes: settings that a resumed run may change: `device`, `learning_rate`, `anneal_iterations`.

    Raises:
        ValueError: when the folder is not a run's, or a file in it is missing, damaged, or does not fit.
    """
    check_type("run", run, (str, Path), "the folder of a run")
    check_type("processes", processes, Processes, "the processes from metarl.processes.joined()")
    try:
        opening = importlib.import_module("metarl.experiments.common.opening")
    except ModuleNotFoundError as error:
        raise ValueError(f"run needs metarl.experiments, which cannot be imported: {error}") from error
    learner = opening.open_learner(Path(run), changes, plugins, processes)
    assert isinstance(learner, MetaLearner)
    return learner
