"""Small task distributions for the checker: a walk on a line, good as it is, with any part replaced by a faulty one."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv

from metarl.checker import TaskDistributionError, check_task_distribution
from metarl.envs.vector import AUTORESET

Change: TypeAlias = Callable[..., Any] | None
"""Takes an environment and what `step` or `reset` returned, and gives what is returned instead."""

HORIZON = 12
OBSERVATIONS = spaces.Box(-3.0, 3.0, (1,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)


class WalkEnv(gymnasium.Env[Any, Any]):
    """A walk on the line to a goal, where it ends; it begins near 0, or exactly there."""

    observation_space, action_space = OBSERVATIONS, ACTIONS
    x: Any

    def __init__(self, goal: Any, noise: float = 0.0) -> None:
        self.goal, self.noise = goal, noise

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.steps = np.full(1, self.noise * self.np_random.normal(), np.float32), 0
        return self.x.copy(), {}

    def step(self, action: Any) -> Any:
        self.x = self.x + np.float32(0.1) * action
        self.steps += 1
        distance = abs(self.x - self.goal)[0]
        terminated = bool(distance < 0.02)
        return self.x.copy(), -float(distance), terminated, self.steps >= HORIZON and not terminated, {}


class WalkVec(VectorEnv[Any, Any, Any]):
    """Many of them."""

    metadata = AUTORESET
    single_observation_space, single_action_space = OBSERVATIONS, ACTIONS

    def __init__(self, goal: Any, noise: float = 0.0) -> None:
        self.goal, self.noise, self.num_envs = goal, noise, len(goal)
        self.x = np.zeros((len(goal), 1), np.float32)
        self.steps, self.ended = np.zeros(len(goal), int), np.zeros(len(goal), bool)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if seed is not None:
            self.generators = [seeding.np_random(seed + i)[0] for i in range(self.num_envs)]
        self.x = np.where(mask[:, None], self.starts(), self.x)
        self.steps, self.ended = np.where(mask, 0, self.steps), self.ended & ~mask
        return self.x.copy(), {}

    def starts(self) -> Any:
        return np.array([[self.noise * generator.normal()] for generator in self.generators], np.float32)

    def step(self, action: Any) -> Any:
        self.x = np.where(self.ended[:, None], self.x, self.x + np.float32(0.1) * action)
        self.steps = self.steps + 1
        distance = abs(self.x[:, 0] - self.goal[:, 0])
        reward = np.where(self.ended, 0.0, -distance)
        terminated = distance < 0.02
        truncated = (self.steps >= HORIZON) & ~terminated
        self.ended = terminated | truncated
        return self.x.copy(), reward, terminated, truncated, {}


class Walk:
    """Goals between -1 and 1."""

    env: Any = WalkEnv
    vec: Any = WalkVec
    noise = 0.0

    def __init__(self) -> None:
        self.space: Any = spaces.Dict({"goal": spaces.Box(-1.0, 1.0, (1,), np.float32)})
        self.observation_space: Any = OBSERVATIONS
        self.action_space: Any = ACTIONS
        self.horizon: Any = HORIZON

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"goal": rng.uniform(-1.0, 1.0, (num_tasks, 1)).astype(np.float32)}

    def make(self, task: Any) -> Any:
        return self.env(np.array(task["goal"]), self.noise)

    def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
        return self.vec(np.repeat(task["goal"], episodes, axis=0), self.noise)


class NoisyWalk(Walk):
    """Begins near 0, environment i of `reset(seed=s)` as one alone with s + i."""

    noise = 0.05


class SharedGeneratorVec(WalkVec):
    """One generator for all: random as those alone, but with other numbers."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def starts(self) -> Any:
        return self.noise * self.generator.normal(size=(self.num_envs, 1)).astype(np.float32)


class SharedGeneratorWalk(NoisyWalk):
    vec = SharedGeneratorVec


def walk(base: type[Walk] = Walk, **parts: Any) -> Any:
    """A walk with other `parts`: attributes, methods (without `self`), or the classes `env` and `vec`."""
    tasks = base()
    for name, part in parts.items():
        setattr(tasks, name, part)
    return tasks


def changed(env: type[Any], step: Change = None, reset: Change = None) -> type[Any]:
    """An environment class whose results are changed."""

    class Changed(env):
        def reset(self, **kwargs: Any) -> Any:
            result = super().reset(**kwargs)
            return reset(self, *result) if reset else result

        def step(self, action: Any) -> Any:
            result = super().step(action)
            return step(self, *result) if step else result

    return Changed


def env(step: Change = None, reset: Change = None, base: type[Walk] = Walk) -> Any:
    """A walk whose single environments return something else."""
    return walk(base, env=changed(base.env, step, reset))


def vec(step: Change = None, reset: Change = None, base: type[Walk] = Walk) -> Any:
    """A walk whose vector environments return something else."""
    return walk(base, vec=changed(base.vec, step, reset))


Fault: TypeAlias = tuple[Any, str]
"""A distribution with one fault, and parts of the message on it, in order and with " ~ " between them."""


def check_fault(fault: Fault, **kwargs: Any) -> None:
    """The fault is named and nothing else: what was wanted, what was found, how to fix it."""
    distribution, parts = fault
    with pytest.raises(TaskDistributionError) as caught:
        check_task_distribution(distribution, **kwargs)
    (found,) = caught.value.problems
    assert re.search(".*".join(map(re.escape, parts.split(" ~ "))), found), found
    assert re.match(r".* must .*; got .*\. Fix: .*\.$", found), found
