"""Run a baseline of held-out evaluation: metarl baseline NAME, with the options of metarl baseline NAME --help.

    metarl baseline random --env navigation
    metarl baseline multitask --env navigation --env-steps 12000000 --seed 0 --name multitask-0
    metarl baseline oracle --env navigation --env-steps 12000000 --options="--hidden 64 64"

The table has the mean return on held-out tasks after each step of adaptation. The folder keeps it as `baseline.json`;
the same command again prints it, or continues a run that was interrupted.
"""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.errors import check_int, did_you_mean
from metarl.experiments.baselines import rl2, run_baseline
from metarl.experiments.baselines.result import describe
from metarl.experiments.common import cli
from metarl.experiments.train import TrainConfig

ABOUT = {
    "random": "the untrained policy, then the same adaptation",
    "multitask": "pretraining on all tasks at once, then the same adaptation",
    "oracle": "a policy that sees the task's parameters; no adaptation",
    "rl2": "a recurrent policy that adapts within a trial of several episodes",
}
"""What each baseline is, for the list of them."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Settings of a baseline that adapts by policy-gradient steps."""

    env: str = "navigation"
    """Task distribution."""
    env_steps: int = 12_000_000
    """Environment steps of training, at most; random does not train."""
    seed: int = 0
    """Seed of training and of the initial weights."""
    options: str = ""
    """Options of metarl train, as one text: --options="--hidden 64 64"."""
    log_dir: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Parent folder of the baseline's folder."""
    name: str | None = None
    """Name of the baseline's folder. Default: baseline, environment and seed."""
    json: bool = False
    """Print one JSON object instead of a table."""


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
    config = cli.prepare(lambda: read_options(given.options, TrainConfig(env=given.env)))
    cli.prepare(lambda: check_int("seed", given.seed, minimum=0))
    folder = given.log_dir / (given.name or f"{name}-{config.env}-{given.seed}")
    result = cli.prepare(lambda: run_baseline(name, config, given.seed, folder, given.env_steps))
    print(json.dumps(result.summary()) if given.json else describe(result))


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


SCRIPTS: dict[str, Callable[[Sequence[str]], None]] = {"rl2": rl2.main}
"""Baselines with settings of their own, which get their words with the name first."""

if __name__ == "__main__":
    main()
