"""Evaluate a trained policy after 0, 1, 2, ... gradient steps on held-out tasks.

    metarl evaluate runs/nav --tasks 40 --steps 3 --episodes 40 --seed 1000 --json
    metarl evaluate runs/nav --tasks-from goals.csv --csv returns.csv --heat-map hard_goals.png

The untrained policy adapts to the same tasks. `env_steps` counts the environment steps of adaptation up to each step,
for all tasks together, without the episodes that measure the scores. The run folder is not changed.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from metarl import MetaLearner
from metarl.envs.base import EnvDistribution
from metarl.errors import check_int
from metarl.evaluation import note_if_worse
from metarl.experiments.common import cli
from metarl.experiments.common.evaluation import Schedule, evaluate_held_out, evaluate_on, step_sizes
from metarl.experiments.common.figures import check_format, save_figure
from metarl.experiments.common.heat_map import SIZE, Grid, heat_map_figure, make_grid
from metarl.experiments.common.run import load_run
from metarl.experiments.common.task_files import read_task_file
from metarl.experiments.train import TrainConfig
from metarl.rl import ReinforcementLearning
from metarl.types import TaskParams

MOST_STEPS = 10_000  # each takes an entry in a list


@dataclass(frozen=True)
class Arguments:
    """Settings of an evaluation."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    tasks: int | None = None
    """Held-out tasks to sample. Default: 40."""
    tasks_from: Path | None = None
    """CSV file with the tasks instead: a line for each, the columns are its parameters, such as goal[0],goal[1]."""
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
    deterministic: bool = False
    """Score the policy's most likely actions. The episodes of adaptation sample actions in any case."""
    csv: Path | None = None
    """Write a table here: the return of the trained policy for each task and step, and the task's parameters."""
    heat_map: Path | None = None
    """Draw a picture here: the return on a grid of tasks after each step, for task spaces of two numbers."""
    heat_map_size: int = SIZE
    """Tasks along each side of the grid."""
    device: str | None = None
    """Device. Default: the run's."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""
    json: bool = False
    """Print one JSON object instead of a table."""


class Setup(NamedTuple):
    """What is evaluated on what."""

    learner: MetaLearner
    source: ReinforcementLearning
    tasks: TaskParams | None
    grid: Grid | None


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl evaluate", __doc__)
    setup = cli.prepare(lambda: prepare(given))
    learner, sizes = setup.learner, step_sizes(setup.learner, given.steps, given.step_schedule)
    curves = evaluate_held_out(
        learner, setup.source, given.tasks, sizes, given.seed, tasks=setup.tasks, deterministic=given.deterministic
    )
    if given.csv is not None:
        curves.trained.to_csv(given.csv)
    if given.heat_map is not None and setup.grid is not None:
        draw_heat_map(given, setup, given.heat_map, setup.grid)
    if given.json:
        names = ("seed", "step_schedule", "ood", "deterministic")
        settings = {"run": str(given.run), **{name: getattr(given, name) for name in names}}
        print(json.dumps({**curves.summary(), **settings, "iterations": learner.iterations}))
        return
    print(curves.table("return", digits=2))
    trained = learner.method.inner.steps
    if learner.iterations and (note := note_if_worse(curves.trained, trained)) is not None:
        print(f"note: {note}", file=sys.stderr)


def draw_heat_map(given: Arguments, setup: Setup, path: Path, grid: Grid) -> None:
    """Evaluate the trained policy on the grid and save the picture."""
    learner, tasks = setup.learner, grid.tasks
    sizes = step_sizes(learner, given.steps, given.step_schedule)
    curve = evaluate_on(
        learner, learner.params, setup.source, None, sizes, given.seed, tasks, deterministic=given.deterministic
    )
    figure = heat_map_figure(curve, grid, f"{given.run.name}: return at each task after 0, 1, ... gradient steps")
    save_figure(figure, path)


def prepare(given: Arguments) -> Setup:
    """The trained learner, the source of held-out tasks, and the tasks that were chosen.

    Raises:
        ValueError: naming what cannot work.
    """
    for name in ("tasks", "episodes", "heat_map_size"):
        if getattr(given, name) is not None:
            check_int(name, getattr(given, name))
    for name in ("steps", "seed"):
        check_int(name, getattr(given, name), minimum=0)
    for name in ("tasks", "ood"):
        if given.tasks_from is not None and getattr(given, name):
            raise ValueError(f"{name} does not apply to the tasks of tasks_from; remove it")
    if given.heat_map is None and given.heat_map_size != SIZE:
        raise ValueError("heat_map_size does not apply without heat_map; remove it")
    if given.heat_map is not None:
        check_format("heat_map", given.heat_map)
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
    tasks = None if given.tasks_from is None else read_task_file(given.tasks_from, distribution.space)
    grid = None if given.heat_map is None else make_grid(distribution.space, given.heat_map_size)
    source.check_size(num_tasks(tasks) if tasks is not None else 40 if given.tasks is None else given.tasks, "tasks")
    if grid is not None:
        source.check_size(num_tasks(grid.tasks), "heat_map_size squared")
    if given.steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {given.steps}")
    return Setup(learner, source, tasks, grid)


def num_tasks(tasks: TaskParams) -> int:
    """T."""
    return len(next(iter(tasks.values())))


if __name__ == "__main__":
    main()
