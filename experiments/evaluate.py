"""Evaluate a trained policy after 0, 1, 2, ... gradient steps on held-out tasks.

    metarl evaluate runs/nav --tasks 40 --steps 3 --episodes 40 --seed 1000 --json

The untrained policy adapts to the same tasks. `env_steps` counts the environment steps of adaptation up to each step,
for all tasks together, without the episodes that measure the scores. The run folder is not changed.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl import MetaLearner
from metarl.envs.base import EnvDistribution
from metarl.errors import check_int
from metarl.evaluation import note_if_worse
from metarl.experiments.common import cli
from metarl.experiments.common.evaluation import Schedule, evaluate_held_out, step_sizes
from metarl.experiments.common.run import load_run
from metarl.experiments.train import TrainConfig
from metarl.rl import ReinforcementLearning

MOST_STEPS = 10_000  # each takes an entry in a list


@dataclass(frozen=True)
class Arguments:
    """Settings of an evaluation."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    tasks: int = 40
    """Held-out tasks."""
    steps: int = 3
    """Gradient steps."""
    episodes: int = 40
    """Episodes per task and step."""
    seed: int = 1000
    """Seed of the tasks and of all randomness in them."""
    step_schedule: Schedule = "halved"
    """Inner step size at test time, unless learned: halved after the trained steps (Finn et al., 2017), or constant."""
    ood: bool = False
    """Use tasks outside the training distribution, if the environment defines them."""
    device: str | None = None
    """Device. Default: the run's."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""
    json: bool = False
    """Print one JSON object instead of a table."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl evaluate", __doc__)
    learner, source = cli.prepare(lambda: prepare(given))
    sizes = step_sizes(learner, given.steps, given.step_schedule)
    curves = evaluate_held_out(learner, source, given.tasks, sizes, given.seed)
    if given.json:
        settings = {"run": str(given.run), "seed": given.seed, "step_schedule": given.step_schedule, "ood": given.ood}
        print(json.dumps({**curves.summary(), **settings, "iterations": learner.iterations}))
        return
    print(curves.table("return", digits=2))
    trained = learner.method.inner.steps
    if learner.iterations and (note := note_if_worse(curves.trained, trained, "return")) is not None:
        print(f"note: {note}", file=sys.stderr)


def prepare(given: Arguments) -> tuple[MetaLearner, ReinforcementLearning]:
    """The trained learner and the source of held-out tasks.

    Raises:
        ValueError: naming what cannot work.
    """
    for name in ("tasks", "episodes"):
        check_int(name, getattr(given, name))
    for name in ("steps", "seed"):
        check_int(name, getattr(given, name), minimum=0)
    cli.import_plugins(given.plugins)
    learner = load_run(TrainConfig, given.run, {} if given.device is None else {"device": given.device})
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    assert isinstance(source.distribution, EnvDistribution)
    try:
        distribution = source.distribution.out_of_distribution() if given.ood else source.distribution
    except ValueError as error:
        raise ValueError(f"ood does not apply to {given.run}: {error}; remove it") from None
    source = dataclasses.replace(source, distribution=distribution, episodes=given.episodes)
    source.check_size(given.tasks, "tasks")
    if given.steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {given.steps}")
    return learner, source


if __name__ == "__main__":
    main()
