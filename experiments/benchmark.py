"""Measure the speed of the parts on this machine: rollouts, and one meta-iteration of every outer update.

    python -m experiments.benchmark [--quick] [--json]

2-D navigation, 20 tasks x 20 episodes x 100 steps, a 2 x 100 tanh policy; sinusoid regression, 32 tasks of 10 + 10
points, 2 x 40 units, exact MAML; four convolutions on 28 x 28 images, 8 tasks of 20 ways with 1 + 15 images, 5 inner
steps, exact MAML, so many tasks at a time, each in a process of its own for its peak memory. Medians over the
repetitions. The rate of a batched matrix product of the policy's shapes, measured in the same run, says how fast this
machine is. With the extra `mujoco`: the rates of `experiments.mujoco_rates`, and exact MAML on half-cheetah goal
velocity, 40 tasks x 20 episodes x 100 steps.
"""

import dataclasses
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments import cli
from experiments.config import TrainConfig, build_learner
from experiments.mujoco_rates import Size, mujoco_rates
from experiments.mujoco_rates import meta_iteration as mujoco_iteration
from experiments.run import device_name, versions
from experiments.tables import markdown_table
from metarl import MetaLearner
from metarl.errors import check_int
from metarl.execution import Execution
from metarl.outer import OUTER
from metarl.rl import RLTasks
from metarl.supervised.class_sets import ClassSet
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import conv4
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import stack


@dataclass(frozen=True)
class Arguments:
    """Settings of a benchmark."""

    quick: bool = False
    """Few tasks, one repetition: whether it runs, not how fast it is."""
    json: bool = False
    """Print one JSON object instead of a table."""
    repetitions: int = 7
    """Timed repetitions of each part, after one that is not counted."""
    device: str = "cpu"
    """Where to run."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "experiments.benchmark", __doc__)
    size = {"meta_batch_size": 4, "episodes": 4, "horizon": 20} if given.quick else {}
    config = TrainConfig(device=given.device, **size)  # type: ignore[arg-type]  # a dict of int
    cli.prepared(lambda: (check_int("repetitions", given.repetitions), build_learner(config)))
    results = measure(
        config, 1 if given.quick else given.repetitions, ImageWork(2, 5, 8) if given.quick else ImageWork()
    )
    if find_spec("mujoco") is not None:
        results |= mujoco_part(config, 1 if given.quick else min(given.repetitions, 3), given.quick)
    print(json.dumps(results) if given.json else table(results))


class ImageWork(NamedTuple):
    """The size of a meta-iteration with four convolutions."""

    tasks: int = 8
    ways: int = 20
    filters: int = 32


def measure(config: TrainConfig, repetitions: int, images: ImageWork) -> dict[str, Any]:
    """Every measurement."""
    chunks = [None, *(size for size in (4, 2, 1) if size < images.tasks)]
    return {
        "device": device_name(config.device),
        "versions": versions(),
        "tasks x episodes x steps": [config.meta_batch_size, config.episodes, config.horizon or 100],
        "matrix_product_gflops": matrix_product_rate(config, repetitions),
        "rollout": rollout_rate(config, repetitions),
        "meta_iteration": {outer: meta_iteration(config, outer, repetitions) for outer in OUTER},
        "maml_reusing_d_in": meta_iteration(dataclasses.replace(config, hessian_data="inner"), "maml", repetitions),
        "sinusoid": {str(steps): sinusoid_iteration(config.device, steps, repetitions) for steps in (1, 5)},
        "conv4": {
            str(chunk or "all"): alone(conv4_iteration, config.device, chunk, images, min(repetitions, 3))
            for chunk in chunks
        },
        "peak_memory_mb": peak_memory(),
    }


def mujoco_part(config: TrainConfig, repetitions: int, quick: bool) -> dict[str, Any]:
    """Rates of stepping, and an iteration of exact MAML on half-cheetah goal velocity, 40 tasks."""
    tasks = config.meta_batch_size if quick else 40
    cheetah = dataclasses.replace(
        config, env="half_cheetah_velocity", meta_batch_size=tasks, horizon=config.horizon or 100
    )
    return {
        "mujoco": mujoco_rates(Size((4,), 40, 1) if quick else Size()),
        "half_cheetah_velocity": {
            str(data): mujoco_iteration(dataclasses.replace(cheetah, hessian_data=data), repetitions)
            for data in (None, "inner")
        },
    }


def matrix_product_rate(config: TrainConfig, repetitions: int) -> float:
    """GFLOP/s of the hidden layer's product for all tasks, episodes and steps."""
    rows, width = config.episodes * (config.horizon or 100), config.hidden[-1]
    a = torch.randn(config.meta_batch_size, rows, width, device=config.device)
    b = torch.randn(config.meta_batch_size, width, width, device=config.device)
    seconds = timed(lambda: [torch.bmm(a, b) for _ in range(10)], repetitions)["seconds"] / 10
    return 2e-9 * a.numel() * width / seconds


def rollout_rate(config: TrainConfig, repetitions: int) -> dict[str, float]:
    """Environment steps a second with the policy in the loop."""
    learner = build_learner(config)
    tasks = learner.source.sample(config.meta_batch_size, np.random.default_rng(0))
    assert isinstance(tasks, RLTasks)
    params = stack(learner.params, config.meta_batch_size)
    figures = timed(lambda: tasks.rollout(params), repetitions)
    steps = config.meta_batch_size * config.episodes * (config.horizon or 100)
    return {**figures, "env_steps_per_second": steps / figures["seconds"]}


def meta_iteration(config: TrainConfig, outer: str, repetitions: int) -> dict[str, float]:
    """One iteration of `MetaLearner.learn`, everything included."""
    learner = build_learner(dataclasses.replace(config, outer=outer))
    figures = timed(lambda: cli.learn(learner, 1), repetitions)
    return {**figures, "inner_steps": learner.method.inner.steps}


def sinusoid_iteration(device: str, steps: int, repetitions: int) -> dict[str, float]:
    """One iteration of exact MAML; so short that ten times the repetitions are taken."""
    learner = MetaLearner(Sinusoids(device=device), "maml", inner_lr=0.01, inner_steps=steps, meta_batch_size=32)
    return {**timed(lambda: cli.learn(learner, 1), 10 * repetitions), "inner_steps": steps}


def conv4_iteration(device: str, chunk: int | None, work: ImageWork, repetitions: int) -> dict[str, float]:
    """One iteration of exact MAML, `chunk` tasks at a time, and how far it raised this process's peak memory."""
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.rand(16, 1, 28, 28, generator=generator) for _ in range(work.ways))
    classes = ClassSet(tuple(map(str, range(work.ways))), images)
    network = conv4(1, 28, work.ways, filters=work.filters)
    source = FewShot(classes, network, ways=work.ways, execution=Execution(chunk_size=chunk), device=device)
    learner = MetaLearner(source, "maml", inner_lr=0.1, inner_steps=5, meta_batch_size=work.tasks)
    before = peak_memory()
    return {**timed(lambda: cli.learn(learner, 1), repetitions), "inner_steps": 5, "memory_mb": peak_memory() - before}


def alone(work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """`work(*arguments)` in a new process, whose peak memory is its own."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:  # spawn would count this one's memory
        return pool.apply(work, arguments)


def peak_memory() -> float:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work: Callable[[], object], repetitions: int) -> dict[str, float]:
    """Median, least and greatest seconds of `work()`, which has been run once before."""
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    del seconds[0]
    return {"seconds": statistics.median(seconds), "least": min(seconds), "greatest": max(seconds)}


def table(results: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    lines = [f"{results['device']}; batched matrix product {results['matrix_product_gflops']:.0f} GFLOP/s", ""]
    rate = f"{results['rollout']['env_steps_per_second']:,.0f} environment steps / s"
    parts = {
        "rollout": {**results["rollout"], "note": rate},
        **results["meta_iteration"],
        "maml, D_in again as D_h": results["maml_reusing_d_in"],
        **{
            f"half_cheetah_velocity, maml{', D_in again' if data == 'inner' else ''}": {
                **part,
                "note": f"{part['draws']:.0f} draws: {part['draw_seconds']:.2f} s",
            }
            for data, part in results.get("half_cheetah_velocity", {}).items()
        },
        **{f"sinusoid, maml, {steps} steps": part for steps, part in results["sinusoid"].items()},
        **{
            f"4-conv, maml, tasks at a time: {chunk}": {**part, "note": f"{part['memory_mb']:.0f} MB"}
            for chunk, part in results["conv4"].items()
        },
    }
    rows = []
    for name, part in parts.items():
        cells = [name, str(part.get("inner_steps", "")), f"{part['seconds']:.4f}"]
        cells += [f"{part['least']:.4f} - {part['greatest']:.4f}", part.get("note", "")]
        rows.append(cells)
    parts_table = markdown_table(["part", "inner steps", "seconds (median)", "least - greatest", ""], rows)
    lines += [parts_table, "", f"peak memory {results['peak_memory_mb']:.0f} MB"]
    return "\n".join([*lines, *mujoco_table(results.get("mujoco", []))])


def mujoco_table(rows: list[dict[str, Any]]) -> list[str]:
    """Environment steps a second, as the lines of a Markdown table."""
    if not rows:
        return []
    columns = ("whole", "physics", "Sync", "Async", "envpool")
    cells = []
    for row in rows:
        figures = [f"{row[c]:,.0f}" if c in row else "" for c in columns]
        cells.append([row["env"], str(row["environments"]), *figures, f"{row['whole / physics']:.2f}"])
    head = ["environment steps / s", "environments", *columns, "whole / physics"]
    return ["", markdown_table(head, cells)]


if __name__ == "__main__":
    main()
