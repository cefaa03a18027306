"""Runs of the command line, opened from Python: `metarl.load` calls this."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from metarl import MetaLearner
from metarl.errors import check_choice
from metarl.experiments.baselines.rl2 import RL2Config
from metarl.experiments.common.config import LoopConfig, read_config, settings
from metarl.experiments.common.run import check_changeable, load_run
from metarl.experiments.train import TrainConfig
from metarl.experiments.train_supervised import SupervisedConfig
from metarl.processes import Processes

KINDS: Mapping[str, type[LoopConfig]] = {"trial_episodes": RL2Config, "env": TrainConfig, "problem": SupervisedConfig}
"""Kinds of runs that can be opened, by a setting that those after them do not have."""


class AnyConfig(LoopConfig):
    """Settings of a run of any script."""

    script: ClassVar[str] = " or ".join(kind.script for kind in KINDS.values())

    @classmethod
    def choose_kind(cls, found: Mapping[str, Any]) -> type[Any]:
        """The class for the contents of a `config.json`."""
        for setting, kind in KINDS.items():
            if setting in found:
                return kind.choose_kind(found)
        raise ValueError(f"it has none of the settings {list(KINDS)}")


def open_learner(folder: Path, changes: Mapping[str, Any], plugins: Iterable[str], processes: Processes) -> MetaLearner:
    """The learner of the run in `folder` at its last checkpoint.

    Raises:
        ValueError: when the folder is not a run's, or something in it cannot be used.
    """
    saved = read_config(AnyConfig, folder)
    before = settings(saved)
    for name in changes:
        check_choice("changes", name, before)
    check_changeable(before, changes)
    allowed = tuple(plugins)
    if unknown := [name for name in saved.plugins if name not in {*allowed, *sys.modules}]:
        raise ValueError(f"plugins must name the modules {unknown} that {folder} imports, if you trust them")
    return load_run(AnyConfig, folder, {"plugins": allowed, **changes}, processes)
