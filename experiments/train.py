"""Meta-train on a task distribution, then evaluate on held-out tasks and draw what was learned.

    metarl train --env navigation --outer maml --iterations 150 --seed 0 --log-dir runs --name nav
    metarl train --resume runs/nav --iterations 300
    torchrun --nproc-per-node 4 -m metarl.experiments.train --env navigation --name nav4

The run's folder gets `config.json`, `metrics.jsonl` (a line per iteration), TensorBoard events, `checkpoint.pt` and, at
the end, `evaluation.json`, `adaptation.png` and `trajectories.png`. Ctrl-C or SIGTERM finishes the iteration and saves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.callbacks import HeldOutEvaluation
from metarl.checkpoint import write_atomically, write_json
from metarl.experiments.common import cli, run
from metarl.experiments.common.config import TRAIN, TrainConfig
from metarl.experiments.common.figures import adaptation_figure, trajectory_figure
from metarl.experiments.common.run import Run, step_sizes
from metarl.experiments.evaluate import Curves, held_out_curves, print_table
from metarl.logging import RunLog
from metarl.rl import ReinforcementLearning

EVALUATION_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Arguments(TrainConfig):
    """Settings of one training run."""

    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with the run in this folder, up to --iterations; its other settings stay as they are."""


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    with cli.together() as processes:
        _, asked = run.parsed(TRAIN, Arguments, arguments, __doc__, processes)
        with run.writing(asked), cli.one_line_errors(run.last_good(asked.folder), processes):
            train(asked)


def train(run_: Run[TrainConfig]) -> None:
    """Train to the end, evaluate on held-out tasks, and leave everything in the run's folder."""
    config, folder = run_.config, run_.folder
    sizes = step_sizes(run_.learner, EVALUATION_STEPS, "halved")
    evaluation = HeldOutEvaluation(config.eval_every, None, config.eval_tasks, sizes, config.eval_seed)
    report(run_, run.learn(run_, [evaluation], config.env))
    print(f"curves, pictures and the checkpoint are in {folder}; watch them with: tensorboard --logdir {folder.parent}")


def report(run_: Run[TrainConfig], log: RunLog) -> None:
    """The held-out evaluation, shared by all processes; the first one leaves it as pictures and, last, as numbers."""
    config, learner, folder = run_.config, run_.learner, run_.folder
    assert isinstance(learner.source, ReinforcementLearning)
    curves: Curves = held_out_curves(learner, learner.source, steps=EVALUATION_STEPS)
    if not learner.processes.is_first:
        return
    rules = learner.rules(step_sizes(learner, EVALUATION_STEPS, "halved"))
    with learner.engine.current():
        trajectories = trajectory_figure(learner.source, learner.params, rules, num_tasks=4, seed=config.eval_seed)
    figures = {
        "adaptation": adaptation_figure(curves.by_label(), f"{config.env}, {config.outer}: held-out tasks"),
        "trajectories": trajectories,
    }
    for name, figure in figures.items():
        write_atomically(folder / f"{name}.png", figure.savefig)
        log.figure(f"figures/{name}", figure, learner.iterations)
    log.close()
    write_json(folder / "evaluation.json", {**curves.summary(), "iterations": learner.iterations})  # last: it is done
    print_table(curves)


if __name__ == "__main__":
    main()
