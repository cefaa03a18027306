"""Train several outer updates with equal environment steps and compare how fast they adapt to held-out tasks.

    metarl compare --env navigation --env-steps 12000000 --seeds 0 1 2 --log-dir runs --name comparison
    metarl compare --rows "Adam:" "SGD: --outer-step sgd --learning-rate 0.1" --options="--hidden 64 64"

A row is an update of `--outer`, or a label and options of `metarl train` in `--rows`. The budget of environment steps
gives each row its number of iterations, over which the outer step size is annealed. The folder gets a run folder for
each row and seed, `comparison.json` and `comparison.png`.
"""

import dataclasses
import json
import re
import shlex
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metarl.errors import check_choice, check_int
from metarl.experiments.common import cli
from metarl.experiments.common.budget import count_iterations
from metarl.experiments.common.evaluation import summarize_seeds
from metarl.experiments.common.figures import Curve, adaptation_figure
from metarl.experiments.common.lock import FolderLock
from metarl.experiments.common.options import check_each, check_seeds
from metarl.experiments.common.outer_steps import APPLY
from metarl.experiments.common.run import new_folder, new_run, write_run
from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.experiments.train import TrainConfig, train
from metarl.files import write_atomically, write_json
from metarl.logging import read_metrics
from metarl.outer import OUTER, without_particles


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Settings of a comparison; a run's other settings are `metarl train`'s defaults."""

    env: str = "navigation"
    """Task distribution."""
    outer: tuple[str, ...] = ()
    """Outer updates to compare. Default: all that do not need particles, or none with --rows."""
    rows: tuple[str, ...] = ()
    """More rows, each as one text: a label, a colon, and options of metarl train."""
    options: str = ""
    """Options of metarl train for all rows, as one text: --options="--hidden 64 64"."""
    env_steps: int = 12_000_000
    """Environment steps of each training run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: one run for each."""
    meta_batch_size: int = 20
    """Tasks per iteration."""
    episodes: int = 20
    """Episodes per task and draw."""
    horizon: int = 100
    """Maximum steps per episode."""
    device: str = "cpu"
    """Device to train on."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""
    log_dir: Path = Path("runs")
    """Parent folder of the comparison's folder."""
    name: str = "comparison"
    """Name of the comparison's folder."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl compare", __doc__)
    configs = cli.prepare(lambda: plan(given))
    folder = given.log_dir / given.name
    with FolderLock(folder):
        compare(given, configs, folder)


def compare(given: Arguments, configs: dict[str, list[TrainConfig]], folder: Path) -> None:
    """Train all runs, save the comparison in `folder` and print its table."""
    results = {label: summarize([result_of(config) for config in runs]) for label, runs in configs.items()}
    write_json(folder / "comparison.json", results)
    curves = {label: Curve(row["mean"], row["ci95"]) for label, row in results.items()}
    figure = adaptation_figure(curves, f"{given.env}: held-out tasks after {given.env_steps / 1e6:g} M training steps")
    write_atomically(folder / "comparison.png", figure.savefig)
    print(table(results))


def plan(given: Arguments) -> dict[str, list[TrainConfig]]:
    """The training runs of each row, by its label.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    for name in ("env_steps", "meta_batch_size", "episodes", "horizon"):
        check_int(name, getattr(given, name))
    check_seeds(given.seeds)
    cli.import_plugins(given.plugins)
    runs = {}
    for label, config in read_rows(given).items():
        iterations, stem = iterations_for(config, given.env_steps), label.replace(" ", "_")
        runs[label] = [
            dataclasses.replace(config, seed=seed, iterations=iterations, name=f"{stem}-{seed}") for seed in given.seeds
        ]
        runs[label][0].build_learner()  # every setting is checked before the first run starts
    new_folder(given.log_dir, given.name)
    return runs


def read_rows(given: Arguments) -> dict[str, TrainConfig]:
    """The settings of each row, by its label: those of all rows, and then its own.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    plain = TrainConfig(
        env=given.env,
        meta_batch_size=given.meta_batch_size,
        episodes=given.episodes,
        horizon=given.horizon,
        device=given.device,
        plugins=given.plugins,
        log_dir=given.log_dir / given.name,
    )
    shared = read_options("options", given.options, plain)
    updates = given.outer or (() if given.rows else without_particles())
    if given.outer or not given.rows:
        check_each("outer", updates, partial(check_choice, choices=OUTER))
    rows = {outer: dataclasses.replace(shared, outer=outer) for outer in updates}
    for row in given.rows:
        label, colon, own = (part.strip() for part in row.partition(":"))
        if not colon or not re.fullmatch(r"[\w.+()=-][\w .,+()=-]*", label):
            raise ValueError(f"rows must be 'label: options of metarl train', the label of words, got {row!r}")
        if label in rows:
            raise ValueError(f"rows must have different labels, got {label!r} twice")
        rows[label] = read_options("rows", own, shared)
    return rows


def read_options(argument: str, text: str, defaults: TrainConfig) -> TrainConfig:
    """The settings of a run, from options of `metarl train` over `defaults`. Wrong options end the program.

    Raises:
        ValueError: for a setting that the comparison makes itself.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{argument} must be options of metarl train, got {text!r}: {error}") from None
    config = cli.parse(TrainConfig, words, f"metarl compare --{argument}", None, defaults)
    for name in ("iterations", "seed", "anneal_iterations", "log_dir", "name", "resume"):
        if getattr(config, name) != getattr(defaults, name):
            raise ValueError(f"{argument} must not have {name}, which follows from the comparison, got {text!r}")
    return config


def iterations_for(config: TrainConfig, env_steps: int) -> int:
    """The row's iterations within `env_steps`. Tiny iterations count the draws that each one makes."""
    assert config.horizon is not None
    # e_maml needs two episodes; the parameters hardly move
    small = dataclasses.replace(config, meta_batch_size=2, episodes=2, horizon=1)
    if "learning_rate" in APPLY[config.outer_step]:
        small = dataclasses.replace(small, learning_rate=1e-9)
    draws = env_steps // (config.meta_batch_size * config.episodes * config.horizon)
    iterations = count_iterations(small.build_learner(), draws, lambda counts: counts["samples"] // 4)
    if iterations == 0:
        raise ValueError(
            f"env_steps must be enough for an iteration of each update, got {env_steps}, too few for {config.outer}"
        )
    return iterations


def result_of(config: TrainConfig) -> dict[str, Any]:
    """Train one run; its held-out scores, environment steps and seconds per iteration."""
    run = new_run(config)
    with write_run(run, f"; it was in {run.folder}"):
        train(run)
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    lines = read_metrics(run.folder)
    return {
        "scores": evaluation["scores"],
        "env_steps": lines[-1]["oracle/env_steps"],
        "iterations": len(lines),
        "seconds": statistics.median(line["time/iteration_seconds"] or 0.0 for line in lines),
    }


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds and tasks, with 95 % intervals over both."""
    scores = np.asarray([result["scores"] for result in results])  # [seeds, K + 1, tasks]
    return {
        **summarize_seeds(scores),
        "iterations": results[0]["iterations"],
        "env_steps": statistics.mean(result["env_steps"] for result in results),
        "seconds_per_iteration": statistics.median(result["seconds"] for result in results),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    steps = len(next(iter(results.values()))["mean"])
    head = ["row", *(f"step {k}" for k in range(steps)), "iterations", "environment steps", "s / iteration"]
    rows = []
    for label, row in results.items():
        cells = [with_interval(*cell) for cell in zip(row["mean"], row["ci95"], strict=True)]
        spent = [f"{row['iterations']}", f"{row['env_steps'] / 1e6:.3g} M", f"{row['seconds_per_iteration']:.2f}"]
        rows.append([f"`{label}`" if label in OUTER else label, *cells, *spent])
    return markdown_table(head, rows)


if __name__ == "__main__":
    main()
