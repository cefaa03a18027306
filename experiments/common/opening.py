"""Runs of the command line, opened from Python: `metarl.load` calls this."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metarl import MetaLearner
from metarl.errors import check_choice
from metarl.experiments.common.config import RunConfig, read_config, read_object, settings
from metarl.experiments.common.run import check_changeable, load_run
from metarl.experiments.train import TrainConfig
from metarl.experiments.train_supervised import SupervisedConfig
from metarl.processes import Processes

KINDS: Mapping[str, type[RunConfig]] = {"env": TrainConfig, "problem": SupervisedConfig}
"""What may be opened, by the setting that only these runs have."""


def open_learner(folder: Path, changes: Mapping[str, Any], plugins: Iterable[str], processes: Processes) -> MetaLearner:
    """The learner of the run in `folder` at its last checkpoint.

    Raises:
        ValueError: when the folder is not a run's, or something in it cannot be used.
    """
    kind = find_kind(folder)
    saved = read_config(kind, folder)
    before = settings(saved)
    for name in changes:
        check_choice("changes", name, before)
    check_changeable(before, changes)
    allowed = tuple(plugins)
    if unknown := [name for name in saved.plugins if name not in {*allowed, *sys.modules}]:
        raise ValueError(f"plugins must name what the run imports, if you trust it: {unknown} of {folder}")
    return load_run(kind, folder, {"plugins": allowed, **changes}, processes)


def find_kind(folder: Path) -> type[RunConfig]:
    """The settings of the script that made the run in `folder`.

    Raises:
        ValueError: when no script did.
    """
    path = folder / "config.json"
    try:
        found = read_object(path)
    except OSError as error:
        raise ValueError(f"run must be the folder of a run; {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"run must be the folder of a run; {path} is not its configuration: {error}") from None
    for setting, kind in KINDS.items():
        if setting in found:
            return kind
    raise ValueError(f"run must be the folder of a run; {path} has none of the settings {list(KINDS)}")
