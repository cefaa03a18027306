"""Seconds and environment steps of training until one gradient step on held-out tasks gives a stated return.

Training stops at the first evaluation, every few iterations, whose mean over held-out tasks reaches the return.
Evaluations take neither seconds nor environment steps here. One seed: a few iterations more or less mean nothing.
"""

import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from metarl.experiments.common.evaluation import evaluate_on, step_sizes
from metarl.experiments.compare.plan import read_options
from metarl.experiments.reports.benchmark.limits import synchronize
from metarl.experiments.reports.benchmark.measure import Call
from metarl.experiments.reports.benchmark.workloads import Scale
from metarl.experiments.reports.reproduce import table
from metarl.experiments.train import TrainConfig


class Goal(NamedTuple):
    """A setting, and the mean return after one step on held-out tasks that it is trained to."""

    name: str
    score: float
    config: TrainConfig
    every: int = 5  # iterations between two evaluations
    most: int = 150  # iterations


NAVIGATION = TrainConfig(horizon=100)
POINT = replace(NAVIGATION, env="point_velocity")
GRID = replace(NAVIGATION, env="grid_world", horizon=None, inner_lr=0.5)
# Half-cheetahs before docs/mujoco_settings.md was measured, and with the reference rows' settings.
EARLIER = replace(NAVIGATION, meta_batch_size=40, outer_step="proximal", learning_rate=1e-3)
DIRECTION, VELOCITY = "half_cheetah_direction", "half_cheetah_velocity"
LATER_DIRECTION, LATER_VELOCITY = (
    read_options("options", f"{shared} --outer-step proximal", replace(NAVIGATION, env=env))
    for env, shared in ((DIRECTION, table.DIRECTION), (VELOCITY, table.VELOCITY))
)
NORMALIZED_DIRECTION = replace(LATER_VELOCITY, env=DIRECTION, normalize_observations=True)

GOALS = (
    Goal("adam", -16.0, NAVIGATION),
    Goal("proximal", -16.0, replace(NAVIGATION, outer_step="proximal")),
    Goal("trust_region", -16.0, replace(NAVIGATION, outer_step="trust_region")),
    Goal("adam", -30.0, POINT),
    Goal("proximal", -30.0, replace(POINT, outer_step="proximal")),
    Goal("adam", -3.0, GRID),
    Goal("proximal", -3.0, replace(GRID, outer_step="proximal")),
    Goal("proximal, lambda 1, inner_lr 1, 40 tasks", 20.0, replace(EARLIER, env=DIRECTION, inner_lr=1.0)),
    Goal("proximal, new settings", 20.0, LATER_DIRECTION),
    Goal("proximal, new settings", 150.0, LATER_DIRECTION),
    Goal("proximal, normalised observations", 150.0, NORMALIZED_DIRECTION),
    Goal("proximal, normalised observations", 250.0, NORMALIZED_DIRECTION),
    Goal("proximal, lambda 1, inner_lr 0.5, 40 tasks", -80.0, replace(EARLIER, env=VELOCITY, inner_lr=0.5)),
    Goal("proximal, new settings", -80.0, LATER_VELOCITY),
    Goal("proximal, new settings", -50.0, LATER_VELOCITY),
)
"""What is trained to what."""


def measure_reach(goal: Goal) -> dict[str, Any]:
    """Train until the return is reached, or for `most` iterations."""
    config, learner = goal.config, goal.config.build_learner()
    sizes = step_sizes(learner, 1)
    seconds, found = 0.0, float("-inf")
    while found < goal.score and learner.iterations < goal.most:
        start = time.perf_counter()
        learner.learn(goal.every)
        synchronize(config.device)
        seconds += time.perf_counter() - start
        curve = evaluate_on(learner, learner.params, learner.source, config.eval_tasks, sizes, config.eval_seed)
        found = float(curve.mean[1])
    return {
        "env": config.env,
        "setting": goal.name,
        "score": goal.score,
        "found": found,
        "reached": found >= goal.score,
        "iterations": learner.iterations,
        "env_steps": learner.counts["env_steps"],
        "seconds": seconds,
    }


def plan_reach(scale: Scale) -> list[Call]:
    """Each goal; tiny ones if the scale has tiny tasks."""
    if scale.tiny_first:
        goals = [goal._replace(config=replace(goal.config, device=scale.device)) for goal in GOALS]
        has_mujoco = find_spec("mujoco") is not None
        return [
            partial(measure_reach, goal) for goal in goals if has_mujoco or goal.config.env not in (DIRECTION, VELOCITY)
        ]
    tiny = replace(scale.config, eval_tasks=2)
    return [partial(measure_reach, Goal("adam", score, tiny, every=1, most=2)) for score in (-1e6, 1e6)]
