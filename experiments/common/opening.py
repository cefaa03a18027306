"""Runs of the command line, opened from Python: `metarl.load` calls this."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metarl import MetaLearner
from metarl.errors import check_choice
from metarl.experiments.common.config import TRAIN
from metarl.experiments.common.recorded import read_object, saved_config
from metarl.experiments.common.run import Recipe, check_changeable, load
from metarl.experiments.train_supervised import FINITE_SUM
from metarl.processes import Processes

RECIPES: Mapping[str, Recipe[Any]] = {"env": TRAIN, "problem": FINITE_SUM}
"""What may be opened, by the setting that only these runs have."""


def opened(folder: Path, changes: Mapping[str, Any], plugins: Iterable[str], processes: Processes) -> MetaLearner:
    """The learner of the run in `folder` at its last checkpoint.

    Raises:
        ValueError: when the folder is not a run's, or something in it cannot be used.
    """
    recipe = recipe_of(folder)
    saved = saved_config(recipe, folder)
    for name in changes:
        check_choice("changes", name, vars(saved))
    check_changeable(saved, changes)
    allowed = tuple(plugins)
    if unknown := [name for name in saved.plugins if name not in {*allowed, *sys.modules}]:
        raise ValueError(f"plugins must name what the run imports, if you trust it: {unknown} of {folder}")
    return load(recipe, folder, {"plugins": allowed, **changes}, processes).learner


def recipe_of(folder: Path) -> Recipe[Any]:
    """Which script made the run in `folder`.

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
    for setting, recipe in RECIPES.items():
        if setting in found:
            return recipe
    raise ValueError(f"run must be the folder of a run; {path} has none of the settings {list(RECIPES)}")
