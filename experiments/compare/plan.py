"""What a comparison trains: a row for each update, label or cell of a grid, and a run for each of its seeds."""

import dataclasses
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from metarl.errors import check_choice, check_int, did_you_mean
from metarl.experiments.baselines import BASELINES
from metarl.experiments.common import cli, options
from metarl.experiments.common.budget import count_iterations
from metarl.experiments.common.lock import LOCK_FILE
from metarl.experiments.common.options import check_each, check_seeds
from metarl.experiments.common.outer_steps import APPLY
from metarl.experiments.compare.runs import AnyRun, BaselineRun, TrainRun
from metarl.experiments.train import TrainConfig
from metarl.outer import OUTER, without_particles

Grid = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Settings of a comparison; a run's other settings are `metarl train`'s defaults."""

    env: str = "navigation"
    """Task distribution."""
    outer: tuple[str, ...] = ()
    """Outer updates to compare. Default: all that do not need particles, or none with --rows."""
    rows: tuple[str, ...] = ()
    """More rows, each as one text: a label, a colon, and options of metarl train."""
    baselines: tuple[str, ...] = ()
    """Rows to compare with: random, multitask, oracle, rl2, ppo (docs/baselines.md), at the same budget."""
    options: str = ""
    """Options of metarl train for all rows, as one text: --options="--hidden 64 64"."""
    set: tuple[str, ...] = ()
    """Settings of metarl train as name=value, for all rows or for one: learning_rate=0.01 maml.inner_lr=0.5."""
    sweep: Annotated[
        tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME VALUE ...")
    ] = ()
    """A setting of metarl train and its values: every row becomes one for each value. Give it twice for a grid."""
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
    jobs: int | None = None
    """Runs at a time, each in a process with one thread; the results do not depend on it. Default: one per core."""
    out: Path = Path("runs/comparison")
    """Folder of the comparison. The same call continues it where it was stopped."""


FOLLOW = ("iterations", "seed", "anneal_iterations", "log_dir", "name", "resume", "find_inner_lr")
"""Settings of a run that the comparison makes itself, and other uses of `metarl train`."""

SHARED = ("env", "outer", "device", "plugins")
"""Settings that have their own option, for all rows."""

COMPARED = tuple(name for name in BASELINES if name != "sb3")
"""Baselines that need no options; sb3 needs the file of a model."""

RESULTS, RUNS, BASELINE_RUNS = "comparison.json", "runs", "baselines"
"""In the folder of a comparison: the file that makes it one, and the folders of its runs."""


class Row(NamedTuple):
    """One row: a training configuration, with a run for each seed."""

    label: str
    runs: tuple[AnyRun, ...]
    group: str  # the update or the label, without the settings of the sweep
    cell: Mapping[str, str]  # the settings of the sweep
    baseline: bool = False

    @property
    def config(self) -> TrainConfig:
        """The settings of its first run."""
        return self.runs[0].config


def plan(given: Arguments) -> list[Row]:
    """The rows of a comparison, every setting checked, also against the runs that its folder has.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    for name in ("env_steps", "meta_batch_size", "episodes", "horizon"):
        check_int(name, getattr(given, name))
    count_jobs(given)
    check_seeds(given.seeds)
    check_out(given.out)
    cli.import_plugins(given.plugins)
    configs = set_values(given.set, read_rows(given))
    rows = [
        make_row(given, name, group, config, cell)
        for group, base in configs.items()
        if group not in given.baselines
        for name, config, cell in sweep(given, group, base)
    ]
    rows += [make_baseline(given, name, configs[name]) for name in given.baselines]
    folders = [row.runs[0].folder for row in rows]
    if twice := sorted({folder.name for folder in folders if folders.count(folder) > 1}):
        raise ValueError(f"rows must have labels that differ in more than special signs, got {twice[0]!r} twice")
    for row in rows:
        for run in row.runs:
            run.is_done()  # names a setting that differs
    return rows


def count_jobs(given: Arguments) -> int:
    """The number of runs at a time."""
    if given.jobs is not None:
        return check_int("jobs", given.jobs)
    return count_cores()


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_out(folder: Path) -> None:
    """Raise a `ValueError` unless the folder is new, empty or a comparison's, and can be written."""
    cli.check_output_folder("out", folder)
    foreign = folder.is_dir() and not (folder / RESULTS).exists()
    found = [path.name for path in folder.iterdir() if path.name != LOCK_FILE] if foreign else []
    if found:
        raise ValueError(f"out must be a new folder or a comparison's, got {folder}, which has {min(found)}")


def make_row(given: Arguments, label: str, group: str, config: TrainConfig, cell: Mapping[str, str]) -> Row:
    """The row with its iterations and seeds. A learner is built, so that every setting is checked."""
    iterations, stem = iterations_for(config, given.env_steps), file_stem(label)
    whole = dataclasses.replace(config, iterations=iterations, log_dir=given.out / RUNS)
    runs = [TrainRun(dataclasses.replace(whole, seed=seed, name=f"{stem}-{seed}")) for seed in given.seeds]
    runs[0].config.build_learner()
    return Row(label, tuple(runs), group, cell)


def file_stem(label: str) -> str:
    """The label as the beginning of a file's name."""
    return re.sub(r"[^\w.,+()=-]", "_", label)


def make_baseline(given: Arguments, name: str, config: TrainConfig) -> Row:
    """The row of a baseline; its progress is not counted in iterations."""
    config = dataclasses.replace(config, iterations=1)
    config.build_learner()
    runs = [
        BaselineRun(
            name, dataclasses.replace(config, seed=seed), given.out / BASELINE_RUNS / f"{name}-{seed}", given.env_steps
        )
        for seed in given.seeds
    ]
    return Row(name, tuple(runs), name, {}, baseline=True)


# Rows.


def read_rows(given: Arguments) -> dict[str, TrainConfig]:
    """The settings of each row, by its label: those of all rows, and then its own.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    names = ("env", "meta_batch_size", "episodes", "horizon", "device", "plugins")
    plain = TrainConfig(**{name: getattr(given, name) for name in names})
    shared = read_options("options", given.options, plain)
    updates = given.outer or (() if given.rows else without_particles())
    if given.outer or not given.rows:
        check_each("outer", updates, partial(check_choice, choices=OUTER))
    rows = {outer: dataclasses.replace(shared, outer=outer) for outer in updates}
    for row in given.rows:
        label, colon, own = (part.strip() for part in row.partition(":"))
        if not colon or not label or not label.isprintable():
            raise ValueError(f"rows must be 'label: options of metarl train', got {row!r}")
        if label in rows:
            raise ValueError(f"rows must have different labels, got {label!r} twice")
        rows[label] = read_options("rows", own, shared)
    if given.baselines:
        check_each("baselines", given.baselines, partial(check_choice, choices=COMPARED))
    if twice := sorted(set(given.baselines) & set(rows)):
        raise ValueError(f"baselines must not name a row, got {twice[0]!r}; remove it from --outer or --baselines")
    return rows | dict.fromkeys(given.baselines, shared)


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
    for name in FOLLOW:
        if getattr(config, name) != getattr(defaults, name):
            raise ValueError(f"{argument} must not have {name}, which follows from the comparison, got {text!r}")
    return config


def set_values(entries: Iterable[str], rows: Mapping[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The rows with the settings of `--set`: those of a single row have precedence.

    Raises:
        ValueError: naming the row, the setting or the value that cannot work.
    """
    found: dict[str, dict[str, Any]] = {label: {} for label in ("", *rows)}
    for entry in entries:
        place, equals, text = entry.partition("=")
        label, dot, name = place.rpartition(".")
        if not equals or not name or (dot and not label):
            raise ValueError(f"set must be name=value or row.name=value, got {entry!r}")
        if label:
            check_choice("set: the row", label, rows)
        name, value = read_setting("set", name, text)
        if name in found[label]:
            raise ValueError(f"set must name a setting once, got {place!r} twice")
        found[label][name] = value
    return {label: dataclasses.replace(config, **{**found[""], **found[label]}) for label, config in rows.items()}


def read_setting(argument: str, name: str, text: str) -> tuple[str, Any]:
    """A setting of `metarl train` and its value.

    Raises:
        ValueError: for an unknown setting, one that the comparison makes itself, or a value of another type.
    """
    name = name.replace("-", "_")
    if name in FOLLOW:
        raise ValueError(f"{argument} must not have {name}, which follows from the comparison")
    if name in SHARED:
        raise ValueError(f"{argument} must not have {name}, which is given as --{name}")
    known = {field.name for field in dataclasses.fields(TrainConfig)} - {*FOLLOW, *SHARED}
    if name not in known:
        near = did_you_mean(name, known)
        raise ValueError(f"{argument}: the setting must be one of those in metarl train --help, got {name!r}{near}")
    return name, options.read(argument, [f"{name}={text}"], TrainConfig)[name]


def sweep(given: Arguments, group: str, base: TrainConfig) -> Iterator[tuple[str, TrainConfig, dict[str, str]]]:
    """Each cell of the grid: its label, its settings, and its values of the sweep as they were given."""
    axes = read_sweep(given.sweep)
    names = list(axes)
    for cell in itertools.product(*(axis.items() for axis in axes.values())):
        texts = dict(zip(names, (text for text, _ in cell), strict=True))
        values = dict(zip(names, (value for _, value in cell), strict=True))
        label = " ".join([group, *(f"{name}={text}" for name, text in texts.items())])
        yield label, dataclasses.replace(base, **values), texts


def read_sweep(entries: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The settings of the grid, each with its values by their texts.

    Raises:
        ValueError: for more than two settings, or a setting or value that cannot work.
    """
    axes: dict[str, dict[str, Any]] = {}
    for name, *texts in entries:
        if not texts:
            raise ValueError(f"sweep must be a setting and its values, got only {name!r}")
        pairs = [(*read_setting("sweep", name, text), text) for text in texts]
        axis = {text: value for _, value, text in pairs}
        if pairs[0][0] in axes or any(pairs[i][1] == pairs[j][1] for j in range(len(pairs)) for i in range(j)):
            raise ValueError(f"sweep must name a setting and a value once, got {' '.join([name, *texts])!r}")
        axes[pairs[0][0]] = axis
    if len(axes) > 2:
        raise ValueError(f"sweep must have at most two settings, got {list(axes)}")
    return axes


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
