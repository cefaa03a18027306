"""Meta-train on a task distribution, then evaluate on held-out tasks and draw what was learned.

    python -m experiments.train --env navigation --outer maml --iterations 150 --seed 0 --log-dir runs --name nav
    python -m experiments.train --resume runs/nav --iterations 300

The run's folder gets `config.json`, `metrics.jsonl` (a line per iteration), TensorBoard events, `checkpoint.pt` and, at
the end, `evaluation.json`, `adaptation.png` and `trajectories.png`. Ctrl-C or SIGTERM finishes the iteration and saves.
"""

import dataclasses
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from experiments.config import TrainConfig, build_learner, from_json, load_run, step_sizes, to_json
from experiments.evaluate import Curves, held_out_curves, print_table
from experiments.figures import adaptation_figure, trajectory_figure
from metarl import MetaLearner
from metarl.callbacks import Callback, Checkpointing, HeldOutEvaluation, ProgressBar
from metarl.checkpoint import write_atomically, write_json
from metarl.logging import RunLog
from metarl.rl import ReinforcementLearning

EVALUATION_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Arguments(TrainConfig):
    """Settings of one training run."""

    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with the run in this folder, up to --iterations; its other settings stay as they are."""


@dataclass(frozen=True)
class Run:
    """A training run, checked and ready to go."""

    config: TrainConfig
    learner: MetaLearner
    folder: Path


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "experiments.train", __doc__)
    folder = given.resume
    if folder is None:
        run = cli.prepared(lambda: fresh(settings_of(given)))
    else:  # read again over the run's own settings: what then differs from them was really given
        saved = cli.prepared(lambda: from_json(folder / "config.json"))
        own = Arguments(**{**vars(saved), "resume": folder})
        changed = settings_of(cli.parse(Arguments, arguments, "experiments.train", __doc__, default=own))
        run = cli.prepared(lambda: resumed(folder, saved, changed))
    with cli.one_line_errors(f"; the last good checkpoint is {run.folder / 'checkpoint.pt'}"):
        train(run)


def settings_of(given: Arguments) -> TrainConfig:
    """The settings of a run without the arguments that only this call is about."""
    return TrainConfig(**{field.name: getattr(given, field.name) for field in dataclasses.fields(TrainConfig)})


def fresh(config: TrainConfig) -> Run:
    """A new run; its folder is made last, when all settings have been checked.

    Raises:
        ValueError: naming the setting that cannot work, or the folder that exists.
    """
    if config.anneal_iterations is None:  # settled now: a run that is resumed for longer keeps its schedule
        config = dataclasses.replace(config, anneal_iterations=config.iterations)
    learner = build_learner(config)
    name = config.name or f"{config.env}-{config.outer}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = new_folder(config.log_dir, name)
    config = dataclasses.replace(config, name=name)
    write_json(folder / "config.json", to_json(config))
    learner.save(folder / "checkpoint.pt")
    return Run(config, learner, folder)


def new_folder(log_dir: Path, name: str) -> Path:
    """Make the folder `name` in `log_dir`.

    Raises:
        ValueError: when the name is not one, the folder exists, or it cannot be made.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be the name of a folder without a path, got {name!r}")
    folder = log_dir / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(f"{folder} exists; choose another --name, or go on with it: --resume {folder}") from None
    except OSError as error:
        raise ValueError(f"log_dir must be writable, got {log_dir} ({error.strerror})") from None
    return folder


def resumed(folder: Path, saved: TrainConfig, given: TrainConfig) -> Run:
    """The run in `folder`, whose settings are `saved`, at its last checkpoint, with those that are `given` now.

    Raises:
        ValueError: when the folder is not a run's, or a setting was given that a resumed run cannot change.
    """
    changes = {name: value for name, value in vars(given).items() if value != getattr(saved, name)}
    for name, value in changes.items():
        if name not in CHANGEABLE:
            kept = getattr(saved, name)
            raise ValueError(f"{name} cannot change when a run is resumed: it is {kept!r}, got {value!r}")
    config, learner = load_run(folder, **changes)
    done, evaluated = learner.iterations, (folder / "evaluation.json").exists()
    if config.iterations < done or (config.iterations == done and evaluated):
        raise ValueError(f"iterations must be more than the {done} that {folder} has, got {config.iterations}")
    write_json(folder / "config.json", to_json(config))
    return Run(config, learner, folder)


CHANGEABLE = ("iterations", "device", "eval_every", "eval_tasks", "eval_seed", "save_every", "plugins")
"""Settings that a resumed run may change, because the training they belong to stays the same."""


def train(run: Run) -> None:
    """Train to the end, evaluate on held-out tasks, and leave everything in the run's folder."""
    config, learner, folder = run.config, run.learner, run.folder
    print(f"{folder}: {config.outer} on {config.env}, {config.iterations - learner.iterations} iterations to go")
    log = RunLog(folder, {"configuration": f"```json\n{json.dumps(to_json(config), indent=2)}\n```"})
    sizes = step_sizes(learner, EVALUATION_STEPS, "halved")
    callbacks: list[Callback] = [
        HeldOutEvaluation(config.eval_every, None, config.eval_tasks, sizes, config.eval_seed),
        log,
        ProgressBar(),
        Checkpointing(folder / "checkpoint.pt", config.save_every),
    ]
    if learner.iterations < config.iterations:
        learner.learn(config.iterations - learner.iterations, callbacks)
    if learner.stopped_by is not None:
        print(
            f"stopped by {learner.stopped_by}, saved after iteration {learner.iterations}; to go on: --resume {folder}"
        )
        raise SystemExit(cli.SIGNAL_BASE + signal.Signals[learner.stopped_by])
    report(run, log)
    print(f"curves, pictures and the checkpoint are in {folder}; watch them with: tensorboard --logdir {folder.parent}")


def report(run: Run, log: RunLog) -> None:
    """The held-out evaluation as numbers and pictures."""
    config, learner, folder = run.config, run.learner, run.folder
    assert isinstance(learner.source, ReinforcementLearning)
    curves: Curves = held_out_curves(learner, learner.source, steps=EVALUATION_STEPS)
    write_json(folder / "evaluation.json", curves.summary())
    print_table(curves)
    rules = learner.rules(step_sizes(learner, EVALUATION_STEPS, "halved"))
    figures = {
        "adaptation": adaptation_figure(curves.by_label(), f"{config.env}, {config.outer}: held-out tasks"),
        "trajectories": trajectory_figure(learner.source, learner.params, rules, num_tasks=4, seed=config.eval_seed),
    }
    for name, figure in figures.items():
        write_atomically(folder / f"{name}.png", figure.savefig)
        log.figure(f"figures/{name}", figure, learner.iterations)
    log.close()


if __name__ == "__main__":
    main()
