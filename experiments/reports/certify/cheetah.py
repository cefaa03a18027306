"""The relative standard deviation of meta-gradients on half-cheetah forward/backward: DiCE against LVC.

ProMP's paper (Rothfuss et al., 2019) reports that DiCE's is on average about twice LVC's. Both are MAML with the inner
batch reused, with the surrogate `dice` and with `ratio`. They get the same draws: their first derivatives are equal, so
both adapt to the same parameters. The policies are untrained, one for each seed, or that of a trained run.

    relative std = sqrt(tr Cov[G]) / |E G|    of ONE task's meta-gradient, for each of the two tasks

With both tasks together E G would be near zero: forward and backward pull in opposite directions. |E G|^2 is estimated
by |mean|^2 minus the variance of that mean.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl import load, tree
from metarl.agents import make_policy
from metarl.engine import Engine
from metarl.envs import make_distribution
from metarl.experiments.common.tables import with_interval
from metarl.experiments.reports.columns import Columns, number, table, text
from metarl.learned_rules import visible
from metarl.outer import make_method
from metarl.rl import ReinforcementLearning
from metarl.statistics import confidence_interval
from metarl.types import Params, TaskParams
from metarl.wrappers import RecordDraws, ReplayDraws

COPIES, EPISODES, HORIZON = 40, 20, 100  # of each task in a draw; of the paper's code
ALPHAS = (0.1, 1.0)  # the paper's code has 0.1
DIRECTIONS = {"forward": 1.0, "backward": -1.0}
SEEDS, BATCHES = 3, 5
SURROGATES = ("ratio", "dice")


class PolicyAt(NamedTuple):
    """A source and the parameters of its policy."""

    source: ReinforcementLearning
    params: Params


COLUMNS: Columns = {
    "alpha": text("alpha"),
    "seed": text("seed"),
    "task": text("task"),
    "LVC: relative std": number("ratio", ".3f"),
    "DiCE: relative std": number("dice", ".3f"),
    "DiCE / LVC": number("quotient", ".2f"),
    "of the std alone": number("quotient_of_std", ".2f"),
}


def measure_cheetah(policies: Sequence[PolicyAt], batches: int = BATCHES) -> list[dict[str, Any]]:
    """A row for each inner step size, policy and task: of `batches` draws of `COPIES` copies."""
    cases = itertools.product(ALPHAS, enumerate(policies), DIRECTIONS)
    return [measure(policy, alpha, seed, task, batches) for alpha, (seed, policy), task in cases]


def measure(policy: PolicyAt, alpha: float, seed: int, task: str, batches: int) -> dict[str, Any]:
    """The relative standard deviations at one policy."""
    (source, params), rng = policy, np.random.default_rng([seed, len(task)])
    sources = {name: replace(source, surrogate=name) for name in SURROGATES}
    copies = {"direction": np.full((COPIES,), DIRECTIONS[task], np.float32)}
    with Engine().current():
        draws = [meta_gradients(sources, params, copies, alpha, rng) for _ in range(batches)]
    rows = {name: torch.cat([found[name] for found in draws]) for name in SURROGATES}
    (std, relative), (dice_std, dice_relative) = (spread(rows[name]) for name in SURROGATES)
    return {
        "alpha": alpha,
        "seed": seed,
        "task": task,
        "samples": batches * COPIES,
        "ratio": relative,
        "dice": dice_relative,
        "quotient": dice_relative / relative if math.isfinite(relative) else math.nan,
        "quotient_of_std": dice_std / std,
    }


def untrained(seed: int) -> PolicyAt:
    """Half-cheetah forward/backward with the paper's policy."""
    tasks = make_distribution("half_cheetah_direction", horizon=HORIZON)
    policy = make_policy(tasks.observation_space, tasks.action_space, seed=seed, policy_kwargs={"net_arch": [64, 64]})
    source = ReinforcementLearning(tasks, policy, episodes=EPISODES)
    return PolicyAt(source, source.initial_params())


def trained(run: Path) -> PolicyAt:
    """The policy of a run on the same tasks.

    Raises:
        ValueError: for a run that cannot be opened, or of other tasks.
    """
    learner = load(run)
    source, wanted = learner.source, make_distribution("half_cheetah_direction")
    if not isinstance(source, ReinforcementLearning) or type(source.distribution) is not type(wanted):
        raise ValueError(f"cheetah_run must be a run on half_cheetah_direction, got {run}")
    return PolicyAt(replace(source, episodes=EPISODES), visible(learner.params))


def meta_gradients(
    sources: dict[str, ReinforcementLearning],
    params: Params,
    copies: TaskParams,
    alpha: float,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """The meta-gradients of all copies with each surrogate, `[T, P]` each, on the same draws."""
    method = make_method("maml", alpha, hessian_data="reuse")
    recording = RecordDraws(sources["ratio"].tasks(copies, rng))
    found = {"ratio": method.update(params, recording, method.inner).grads}
    replay = ReplayDraws(sources["dice"].tasks(copies, rng), recording.draws)
    found["dice"] = method.update(params, replay, method.inner).grads
    return {name: tree.flatten(grads).double() for name, grads in found.items()}


def spread(rows: Tensor) -> tuple[float, float]:
    """The standard deviation of one task's meta-gradient `[n, P]`, all components together, and the relative one."""
    variance, mean = float(rows.var(0).sum()), float(rows.mean(0).square().sum())
    length = mean - variance / len(rows)
    return math.sqrt(variance), math.sqrt(variance / length) if length > 0 else math.inf


def cheetah_table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and the mean quotients with their intervals over seeds."""
    lines = [table(COLUMNS, rows)]
    for alpha in dict.fromkeys(row["alpha"] for row in rows):
        for what, key in (("relative standard deviations", "quotient"), ("standard deviations", "quotient_of_std")):
            seeds = [[row[key] for row in rows if (row["alpha"], row["seed"]) == (alpha, seed)] for seed in range(99)]
            means = [float(np.mean(values)) for values in seeds if values]
            interval = confidence_interval(means) if len(means) > 1 and all(map(math.isfinite, means)) else None
            lines.append(f"alpha {alpha}: DiCE / LVC, {what}: {with_interval(float(np.mean(means)), interval, 2)}")
    return "\n\n".join(lines)
