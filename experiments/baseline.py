"""Run a baseline of held-out evaluation: metarl baseline NAME, with the options of metarl baseline NAME --help.

    metarl baseline random --env navigation
    metarl baseline multitask --env navigation --env-steps 12000000 --seed 0 --name multitask-0
    metarl baseline oracle --env navigation --env-steps 12000000 --options="--hidden 64 64"

The table has the mean return on held-out tasks after each step of adaptation. The folder keeps it as `baseline.json`;
the same command again prints it, or continues an interrupted run. For rl2, `--resume RUN` continues a run.
"""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from metarl.errors import check_int, did_you_mean
from metarl.experiments.baselines import BaselineResult, ppo, rl2, run_baseline
from metarl.experiments.baselines.result import describe, steps_to
from metarl.experiments.common import cli
from metarl.experiments.train import TrainConfig

ABOUT = {
    "random": "the untrained policy, then the same adaptation",
    "multitask": "pretraining on all tasks at once, then the same adaptation",
    "oracle": "a policy that sees the task's parameters; no adaptation",
    "rl2": "a recurrent policy that adapts within a trial of several episodes",
    "ppo": "PPO of Stable-Baselines3 on each task, from scratch or from a run",
    "sb3": "your own PPO or A2C model of Stable-Baselines3, then the same adaptation",
}
"""What each baseline is, for the list of them."""

SB3_ABOUT = """Adapt a PPO or A2C model that Stable-Baselines3 saved to the held-out tasks, as a run would be.

    metarl baseline sb3 model.zip --env navigation
    metarl baseline sb3 model.zip --algorithm a2c --env navigation --options="--inner-lr 0.05"

The policy of the model takes the gradient steps of the evaluation at the end of `metarl train`; the file does not
change. SB3 unpickles a part of the file, which can run any code: only open files you trust.
"""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Settings of every baseline of this script."""

    options: str = ""
    """Options of metarl train, as one text: --options="--hidden 64 64"."""
    log_dir: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Parent folder of the baseline's folder."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """Settings of a baseline that adapts by policy-gradient steps."""

    env: str = "navigation"
    """Task distribution."""
    env_steps: int = 12_000_000
    """Environment steps of training, at most; random does not train."""
    seed: int = 0
    """Seed of training and of the initial weights."""
    name: str | None = None
    """Name of the baseline's folder. Default: baseline, environment and seed."""


@dataclass(frozen=True, kw_only=True)
class PPOArguments(Output):
    """Settings of PPO on single tasks."""

    env: str | None = None
    """Task distribution. Default: navigation, or that of the run."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Run of metarl train, or package of one, whose policy is fine-tuned. Default: from scratch."""
    tasks: int = 20
    """Number of held-out tasks: the first tasks of the evaluation at the end of metarl train."""
    budgets: tuple[float, ...] = (1.0, 10.0)
    """Budgets of environment steps, in multiples of a whole adaptation."""
    reach: float | None = None
    """Also print how many environment steps tasks took to reach this return, at the precision of the budgets."""
    seed: int = 0
    """Seed; task i has the seed plus i."""
    ppo_options: tuple[str, ...] = ()
    """Arguments of Stable-Baselines3's PPO as name=value: learning_rate=1e-3, n_epochs=5, ..."""
    name: str | None = None
    """Name of the baseline's folder. Default: ppo, environment or run, and seed."""


@dataclass(frozen=True, kw_only=True)
class SB3Arguments(Output):
    """Settings of the adaptation of a model of Stable-Baselines3."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A file that SB3 saved, such as model.zip. SB3 unpickles it, which can run any code: only open files you trust."""
    algorithm: Literal["ppo", "a2c"] = "ppo"
    """The algorithm that saved it."""
    env: str = "navigation"
    """Task distribution, with the model's observations and actions."""
    name: str | None = None
    """Name of the baseline's folder. Default: sb3, the file's name and environment."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the baseline that the first argument names; exit code 2 for an unknown name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(
            f"usage: metarl baseline NAME [OPTIONS]\n\n{table()}\n\nmetarl baseline NAME --help explains the options."
        )
    elif given[0] in ABOUT:
        SCRIPTS.get(given[0], run_named)(given)
    else:
        near = did_you_mean(given[0], ABOUT)
        print(f"error: the baseline must be one of {', '.join(ABOUT)}, got {given[0]!r}{near}", file=sys.stderr)
        raise SystemExit(cli.BAD_INPUT)


def table() -> str:
    """The names of the baselines and what they are."""
    width = max(map(len, ABOUT))
    return "\n".join(f"  {name:{width}}  {what}" for name, what in ABOUT.items())


@cli.one_line_errors()
def run_named(words: Sequence[str]) -> None:
    """A baseline of `run_baseline` without options, its name first."""
    name, *rest = words
    given = cli.parse(Arguments, rest, f"metarl baseline {name}", __doc__)
    cli.prepare(lambda: check_int("seed", given.seed, minimum=0))
    config = cli.prepare(lambda: read_options(given.options, TrainConfig(env=given.env)))
    folder = given.log_dir / (given.name or f"{name}-{config.env}-{given.seed}")
    show(cli.prepare(lambda: run_baseline(name, config, given.seed, folder, given.env_steps)), given.json)


@cli.one_line_errors("; the same command goes on with the next task")
def run_ppo(words: Sequence[str]) -> None:
    """PPO on single tasks."""
    given = cli.parse(PPOArguments, words[1:], "metarl baseline ppo", ppo.__doc__)
    cli.prepare(lambda: check_int("seed", given.seed, minimum=0))
    config = cli.prepare(lambda: read_ppo_options(given))
    folder = given.log_dir / (given.name or f"ppo-{given.run.name if given.run else config.env}-{given.seed}")
    chosen: dict[str, Any] = {name: getattr(given, name) for name in ("tasks", "budgets", "ppo_options")}
    result = cli.prepare(lambda: run_baseline("ppo", config, given.seed, folder, start=given.run, **chosen))
    show(result, given.json)
    if given.reach is not None and not given.json:
        taken = steps_to(result, given.reach)
        there, median = int(np.isfinite(taken).sum()), float(np.median(taken))
        said = f"{median:.0f}" if np.isfinite(median) else "more than were tried"
        print(f"{there} of {len(taken)} tasks reach {given.reach:g}; environment steps of the median task: {said}")


@cli.one_line_errors()
def run_sb3(words: Sequence[str]) -> None:
    """Adapt a model of Stable-Baselines3."""
    given = cli.parse(SB3Arguments, words[1:], "metarl baseline sb3", SB3_ABOUT)
    config = cli.prepare(lambda: read_options(given.options, TrainConfig(env=given.env)))
    folder = given.log_dir / (given.name or f"sb3-{given.model.stem}-{config.env}")
    chosen: dict[str, Any] = {"model": given.model, "algorithm": given.algorithm}
    show(cli.prepare(lambda: run_baseline("sb3", config, config.seed, folder, **chosen)), given.json)


def show(result: BaselineResult, as_json: bool) -> None:
    """Print the result."""
    print(json.dumps(result.summary()) if as_json else describe(result))


def read_ppo_options(given: PPOArguments) -> TrainConfig:
    """The settings of PPO's environment and network; with a run, only its plug-ins and device.

    Raises:
        ValueError: as `read_options`, and for settings that the run has already.
    """
    defaults = TrainConfig(env=given.env or "navigation")
    config = read_options(given.options, defaults)
    if given.run is not None:
        if given.env is not None:
            raise ValueError(f"env must not be given with a run, which has its own, got {given.env!r}")
        for name, value in vars(config).items():
            if name not in ("plugins", "device") and value != getattr(defaults, name):
                raise ValueError(f"options must not have {name} with a run, which has its own, got {given.options!r}")
    return config


def read_options(text: str, defaults: TrainConfig) -> TrainConfig:
    """The settings in options of `metarl train`, over `defaults`.

    Raises:
        ValueError: for a text with open quotes, and for settings that the baseline makes itself.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"options must be options of metarl train, got {text!r}: {error}") from None
    config = cli.parse(TrainConfig, words, "metarl baseline --options", None, defaults)
    for name in ("env", "outer", "iterations", "seed", "log_dir", "name", "resume", "observe_task"):
        if getattr(config, name) != getattr(defaults, name):
            raise ValueError(f"options must not have {name}, which the baseline sets itself, got {text!r}")
    return config


SCRIPTS: dict[str, Callable[[Sequence[str]], None]] = {"rl2": rl2.main, "ppo": run_ppo, "sb3": run_sb3}
"""Baselines with settings of their own, which get their words with the name first."""

if __name__ == "__main__":
    main()
