"""How much of an inner gradient is signal? Compare ways to give credit at a trained policy, without any training.

    metarl signal runs/cheetah
    metarl signal runs/cheetah --tries gae_lambda=0.95 gae_lambda=0.9,discount=0.95 baseline=time episodes=40

For each way the policy gradient of some held-out tasks is drawn again and again at the run's parameters. Signal / noise
is |E g|^2 / tr Cov(g) of one draw, both averaged over tasks: draws needed in proportion to its inverse. Direction is
the cosine between E g and that of the run's own settings: less variance is worth little if the gradient points
elsewhere. Both are corrected for the number of draws, so a direction may come out a little above 1, and the signal
below 0. The direction is left out where the draws are too few to know it.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from metarl import MetaLearner, tree
from metarl.derivatives import gradients
from metarl.errors import check_int
from metarl.experiments.common import cli, options
from metarl.experiments.common.run import load_run
from metarl.experiments.common.tables import markdown_table
from metarl.experiments.train import TrainConfig
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning
from metarl.types import Params, TaskParams

NAMES = ("episodes", "discount", "discount_weights", "gae_lambda", "baseline", "cross_fit", "normalize_advantages")
"""Settings of `ReinforcementLearning` that can be tried."""


@dataclass(frozen=True)
class Arguments:
    """Settings of the measurement."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    tries: tuple[str, ...] = (
        *("gae_lambda=0.98", "gae_lambda=0.95", "gae_lambda=0.9", "gae_lambda=0.8"),
        *("discount=0.95", "discount=0.9", "baseline=time", "baseline=none", "cross_fit=true"),
    )
    """What to try beside the run's own settings: name=value, or several of them with commas."""
    tasks: int = 10
    """Held-out tasks."""
    draws: int = 20
    """Draws of each task, in each try."""
    seed: int = 1000
    """Seed of the tasks and of all draws."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own environment."""
    json: bool = False
    """Print one JSON object instead of a table."""


class Signal(NamedTuple):
    """The gradients of one try."""

    ratio: float  # |E g|^2 / tr Cov(g)
    length: float  # |E g|, the root of the mean square over tasks
    direction: float  # the cosine to the run's own E g, the mean over tasks
    halves: Tensor  # [2, T, P]: means of the draws with even and with odd numbers


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl signal", __doc__)
    learner, sources = cli.prepare(lambda: prepare(given))
    tasks = stream_generator(given.seed, Stream.HELD_OUT_TASKS)
    task = next(iter(sources.values())).distribution.sample(given.tasks, tasks)
    own: Signal | None = None
    found: dict[str, Signal] = {}
    with learner.engine.current():
        for name, source in tqdm(sources.items(), unit="try", disable=None):
            found[name] = measure(source, learner.params, task, given.draws, given.seed, own)
            own = own or found[name]
    if given.json:
        rows = {
            name: {"ratio": one.ratio, "length": one.length, "direction": known(one.direction)}
            for name, one in found.items()
        }
        print(json.dumps({"run": str(given.run), "tasks": given.tasks, "draws": given.draws, "tries": rows}))
        return
    cells = [
        [name, f"{one.ratio:.3f}", f"{one.length:.3g}", "" if math.isnan(one.direction) else f"{one.direction:.3f}"]
        for name, one in found.items()
    ]
    print(f"policy gradients of {given.tasks} held-out tasks, {given.draws} draws each")
    print(markdown_table(["credit", "signal / noise", "length of the mean", "direction"], cells, align=True))


def known(value: float) -> float | None:
    """The number, or `None` for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def prepare(given: Arguments) -> tuple[MetaLearner, dict[str, ReinforcementLearning]]:
    """The trained learner, and a source for its own settings and for each try.

    Raises:
        ValueError: naming what cannot work.
    """
    check_int("tasks", given.tasks)
    check_int("draws", given.draws, minimum=4)
    check_int("seed", given.seed, minimum=0)
    options.check_distinct("tries", given.tries)
    cli.import_plugins(given.plugins)
    learner = load_run(TrainConfig, given.run)
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    sources = {"the run's own": source}
    for text in given.tries:
        changes = options.read("tries", text.split(","), ReinforcementLearning)
        if foreign := sorted(set(changes) - set(NAMES)):
            raise ValueError(f"tries must change some of {', '.join(NAMES)}, got {foreign[0]!r}")
        sources[text] = dataclasses.replace(source, **changes)
        sources[text].check_size(given.tasks, "tasks")
    return learner, sources


def measure(
    source: ReinforcementLearning, params: Params, task: TaskParams, draws: int, seed: int, own: Signal | None = None
) -> Signal:
    """The signal of the gradients at `params` `[...]`, of tasks with leaves `[T, ...]`; `own` is compared with."""
    batches = source.tasks(task, stream_generator(seed, Stream.SIGNAL))
    stacked = tree.broadcast(params, batches.num_tasks)

    def draw() -> Tensor:
        return tree.flatten(gradients(batches, stacked, batches.draw(stacked, "inner"))).double()

    drawn = torch.stack([draw() for _ in range(draws)])  # [draws, T, P]
    variance = drawn.var(0).sum(-1)  # [T]
    square = drawn.mean(0).square().sum(-1) - variance / draws
    halves = torch.stack([drawn[0::2].mean(0), drawn[1::2].mean(0)])
    return Signal(
        ratio=float(square.mean() / variance.mean()),
        length=math.sqrt(max(0.0, float(square.mean()))),
        direction=1.0 if own is None else cosine(halves, own.halves),
        halves=halves,
    )


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """The cosine between means, averaged over tasks, from products of independent halves `[2, T, P]` alone.

    NaN where the estimate of a mean's squared length is not positive.
    """

    def across(one: Tensor, other: Tensor) -> Tensor:
        return ((one[0] * other[1]).sum(-1) + (one[1] * other[0]).sum(-1)).mean() / 2

    mine, others = float(across(ours, ours)), float(across(theirs, theirs))
    if mine <= 0 or others <= 0:  # too few draws: two halves of the same draws do not even agree on the direction
        return math.nan
    return float(across(ours, theirs)) / math.sqrt(mine * others)


if __name__ == "__main__":
    main()
