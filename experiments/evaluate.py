"""How good is a trained run after 0, 1, 2, ... gradient steps on tasks it has never seen?

    metarl evaluate runs/nav --tasks 40 --steps 3 --episodes 40 --seed 1000 --json

The untrained policy is put through the same. `env_steps` is what adaptation up to each step took, all tasks together;
the episodes the scores are measured on come on top. Nothing in the run's folder is changed.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from metarl import Evaluation, MetaLearner, evaluate
from metarl.envs.base import EnvDistribution
from metarl.errors import check_int
from metarl.evaluation import note_if_worse
from metarl.experiments.common import cli
from metarl.experiments.common.config import TRAIN
from metarl.experiments.common.run import load, step_sizes
from metarl.experiments.common.tables import with_interval
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning

MOST_STEPS = 10_000
"""A list of them is made."""

Schedule = Literal["halved", "constant"]


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
    """Seed of the tasks and of everything random in them."""
    step_schedule: Schedule = "halved"
    """Inner step size at test time: halved after the steps that were trained (Finn et al., 2017), or constant."""
    ood: bool = False
    """Tasks from outside the training distribution instead, where the environment defines them."""
    device: str | None = None
    """Device; default: the run's own."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, such as one that registers your own outer update."""
    json: bool = False
    """Print one JSON object instead of a table."""


class Curves(NamedTuple):
    """The adaptation curves of a trained and of an untrained policy on the same tasks."""

    trained: Evaluation
    random_init: Evaluation

    def summary(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**self.trained.summary(), "random_init": self.random_init.summary()}

    def by_label(self) -> dict[str, Evaluation]:
        """For pictures and tables."""
        return {"meta-trained": self.trained, "random initialisation": self.random_init}


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl evaluate", __doc__)
    learner, source = cli.prepared(lambda: prepare(given))
    curves = held_out_curves(learner, source, given.tasks, given.steps, given.episodes, given.seed, given.step_schedule)
    if given.json:
        settings = {"run": str(given.run), "seed": given.seed, "step_schedule": given.step_schedule, "ood": given.ood}
        print(json.dumps({**curves.summary(), **settings, "iterations": learner.iterations}))
    else:
        print_table(curves)
        note = note_if_worse(curves.trained, learner.method.inner.steps, "return") if learner.iterations else None
        if note is not None:
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
    learner = load(TRAIN, given.run, {} if given.device is None else {"device": given.device}).learner
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    assert isinstance(source.distribution, EnvDistribution)
    try:
        distribution = source.distribution.out_of_distribution() if given.ood else source.distribution
    except ValueError as error:
        raise ValueError(f"ood cannot be asked of {given.run}: {error}") from None
    source = dataclasses.replace(source, distribution=distribution, episodes=given.episodes)
    source.check_size(given.tasks, "tasks")
    if given.steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {given.steps}")
    return learner, source


def held_out_curves(
    learner: MetaLearner,
    source: ReinforcementLearning,
    tasks: int = 40,
    steps: int = 3,
    episodes: int = 40,
    seed: int = 1000,
    step_schedule: Schedule = "halved",
) -> Curves:
    """Adaptation curves on tasks of `source` that training has not seen, for the trained and the untrained policy."""
    source = dataclasses.replace(source, episodes=episodes)
    rules = learner.rules(step_sizes(learner, steps, step_schedule))

    def curve(params: dict[str, Any]) -> Evaluation:
        return evaluate(
            params, source.sample(tasks, stream_generator(seed, Stream.HELD_OUT_TASKS)), rules, learner.processes
        )

    return Curves(curve(learner.params), curve(source.initial_params()))


def print_table(curves: Curves) -> None:
    """Mean return with its 95 % interval after each step."""
    tasks = len(curves.trained.scores[0])
    print(f"return on {tasks} held-out tasks, mean and 95 % interval over tasks")
    print(f"{'steps':>5} {'meta-trained':>27} {'random initialisation':>27} {'env steps':>11}")
    columns = [zip(curve.mean, curve.ci95, strict=True) for curve in curves]
    for step, (costs, *row) in enumerate(zip(curves.trained.costs, *columns, strict=True)):
        cells = [with_interval(mean, interval, "9.2f", "7.2f") for mean, interval in row]
        print(f"{step:>5} {cells[0]:>27} {cells[1]:>27} {costs['env_steps']:>11}")


if __name__ == "__main__":
    main()
