"""Baselines of held-out evaluation, with the same accounting of environment steps for all.

    result = run_baseline("oracle", TrainConfig(env="navigation"), seed=0, folder=Path("runs/oracle-0"))
    result.scores, result.env_steps  # [tasks, points] and [points]

Every baseline is scored on the held-out tasks that a run of `metarl train` is scored on at its end, in the same order,
so differences can be taken task by task. `env_steps` counts the environment steps of adaptation before each point, for
all tasks together, without the episodes that measure the scores; `train_env_steps` those of training before.

The result stays in `folder` as `baseline.json`. A second call with the same settings reads it, or continues an
interrupted call from its last checkpoint. It is refused if the run or the model that it starts from has changed.

| name | module | points |
| --- | --- | --- |
| `random`, `multitask` | `policy_gradient` | gradient steps 0, 1, 2, ... |
| `oracle` | `policy_gradient` | 0 |
| `rl2` | `rl2` | episodes 1, 2, ... of a trial |
| `ppo` | `ppo` | 0 and multiples of the adaptation budget |
| `sb3` | `policy_gradient` | gradient steps 0, 1, 2, ... |
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from metarl.errors import check_choice, check_int, check_type
from metarl.experiments.baselines.policy_gradient import run_multitask, run_oracle, run_random, run_sb3
from metarl.experiments.baselines.ppo import run_ppo, starting_config
from metarl.experiments.baselines.result import BaselineResult, make_result, read_result, write_result
from metarl.experiments.baselines.rl2 import run_rl2
from metarl.experiments.baselines.runs import fingerprint
from metarl.experiments.common import cli
from metarl.experiments.common.config import settings
from metarl.experiments.train import TrainConfig

__all__ = ["BASELINES", "Baseline", "BaselineResult", "make_result", "read_result", "run_baseline", "write_result"]

Baseline: TypeAlias = Callable[..., BaselineResult]
"""`baseline(config, folder, env_steps, **options)`: trains for `env_steps` at most, adapts and scores."""

BASELINES: dict[str, Baseline] = {
    "random": run_random,
    "multitask": run_multitask,
    "oracle": run_oracle,
    "rl2": run_rl2,
    "ppo": run_ppo,
    "sb3": run_sb3,
}
"""The baselines by name. `config.seed` is the seed; files of training go to `folder`."""


def run_baseline(
    name: str, config: TrainConfig, seed: int, folder: Path, env_steps: int = 12_000_000, **options: Any
) -> BaselineResult:
    """Train the baseline `name` if it needs training, adapt it to the held-out tasks and score it.

    Args:
        name: a key of `BASELINES`.
        config: the environment, the policy and the sizes of draws. What a baseline does not use is ignored, such as
            the outer update of `config` and its options.
        seed: of training and of initial weights; it replaces that of `config`.
        folder: for the result, and for the run folder of those that train.
        env_steps: environment steps of training, at most; `random`, `ppo` and `sb3` do not train before they see a
            task.
        options: of the baseline: see its function.

    Raises:
        ValueError: for settings that cannot work, or when `folder` has another baseline or run.
    """
    check_choice("name", name, BASELINES)
    check_type("folder", folder, Path, "a pathlib.Path")
    cli.import_plugins(config.plugins)
    config = dataclasses.replace(config, seed=check_int("seed", seed, minimum=0))
    made_by = describe(name, config, check_int("env_steps", env_steps), options)
    found = read_result(folder, made_by)
    if found is None:
        found = BASELINES[name](config, folder, env_steps, **options)
        write_result(folder, found, made_by)
    return found


def describe(name: str, config: TrainConfig, env_steps: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on, for JSON: settings, options with their defaults, and the contents of files."""
    parameters = inspect.signature(BASELINES[name]).parameters.values()
    own = {**{p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}, **options}
    own |= {f"{key}_sha256": fingerprint(path) for key, path in own.items() if isinstance(path, Path)}
    if options.get("start") is not None:
        config = starting_config(config, options["start"])
    where = ("log_dir", "name", "iterations", "save_every", "plugins")
    of_config = {key: value for key, value in settings(config).items() if key not in where}
    first = {"name": name, **own}  # a difference in these explains others
    return {**first, **of_config, "env_steps": env_steps, **first}
