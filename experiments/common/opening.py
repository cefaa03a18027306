"""Runs of the command line and packages, opened from Python: `metarl.load` calls this."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from metarl import MetaLearner
from metarl.checkpoint import package
from metarl.errors import check_choice
from metarl.experiments.baselines.rl2 import RL2Config
from metarl.experiments.common.config import LoopConfig, read_config, settings
from metarl.experiments.common.packages import MEMBERS, make_package, open_package
from metarl.experiments.common.run import check_changeable, load_run
from metarl.experiments.train import TrainConfig
from metarl.experiments.train_supervised import SupervisedConfig
from metarl.processes import ALONE, Processes

__all__ = ["MEMBERS", "export", "open_learner", "unpack"]

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


def open_learner(path: Path, changes: Mapping[str, Any], plugins: Iterable[str], processes: Processes) -> MetaLearner:
    """The learner of the run in the folder `path` at its last checkpoint, or of the package there.

    Raises:
        ValueError: when it is neither, or something in it cannot be used.
    """
    allowed = tuple(plugins)
    if package.is_package(path):

        def change(config: AnyConfig) -> AnyConfig:
            check_changes(config, path, changes, allowed)
            return dataclasses.replace(config, **{"plugins": allowed, **changes})

        return open_package(path, AnyConfig, change, processes)
    check_changes(read_config(AnyConfig, path), path, changes, allowed)
    return load_run(AnyConfig, path, {"plugins": allowed, **changes}, processes)


def check_changes(saved: LoopConfig, path: Path, changes: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Check that `changes` apply to the saved settings, and that every plug-in is allowed.

    Raises:
        ValueError: naming the setting or the plug-in.
    """
    before = settings(saved)
    for name in changes:
        check_choice("changes", name, before)
    check_changeable(before, changes)
    if unknown := [name for name in saved.modules if name not in {*allowed, *sys.modules}]:
        raise ValueError(f"plugins must name the modules {unknown} that {path} imports, if you trust them")


def export(run: Path, path: Path, plugins: Iterable[str]) -> None:
    """Write a package of a finished run.

    Raises:
        ValueError: when `run` is not a finished run's folder, or `path` exists.
    """
    if path.exists():
        raise ValueError(f"path must be a new file or folder, but {path} exists; remove it, or choose another name")
    if package.is_package(run):
        raise ValueError(f"run must be the folder of a run, got {run}, which is a package")
    make_package(run, open_learner(run, {}, plugins, ALONE), path)


def unpack(path: Path, folder: Path, plugins: Iterable[str]) -> None:
    """Write the package of a finished run, or the checked members of a package, to a new folder.

    Raises:
        ValueError: as for `export`; when the package is damaged.
    """
    if not package.is_package(path):
        export(path, folder, plugins)
        return
    folder.mkdir()
    for name, data in package.read(path).items():
        (folder / name).write_bytes(data)
