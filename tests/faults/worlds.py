"""Environments that do harm at a chosen moment: a plug-in for the scripts, and imported by workers."""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from metarl.envs import ENVS
from metarl.envs.gym_distribution import GymDistribution

VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


class Walk(gymnasium.Env[Any, Any]):
    """A point on a line that is to reach `goal`; `harm` as `reward nan`, `observation inf`, `raise`, `hang`, `exit`.

    The harm is done at the step `at` of the environment's life, and only while the file `armed` exists.
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, goal: float = 0.0, harm: str = "", at: int = 0, armed: str = "") -> None:
        self.goal, self.harm, self.at, self.armed = goal, harm, at, armed
        self.place, self.taken = 0.0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-0.1, 0.1))
        return self.observed(), {}

    def observed(self) -> Any:
        return np.array([self.place, 1.0], np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        self.place += 0.3 * float(np.clip(action[0], -1, 1))
        observation, reward = self.observed(), -abs(self.place - self.goal)
        if self.harm and self.taken == self.at and (not self.armed or Path(self.armed).exists()):
            observation, reward = self.do_harm(observation, reward)
        return observation, reward, False, False, {}

    def do_harm(self, observation: Any, reward: float) -> tuple[Any, float]:
        what, _, value = self.harm.partition(" ")
        if what == "raise":
            raise RuntimeError("the simulator has lost its state")
        if what == "hang":
            time.sleep(3600)
        if what == "exit":
            os._exit(7)
        if what == "reward":
            return observation, VALUES[value]
        return np.full_like(observation, VALUES[value]), reward


class Walks(GymDistribution):
    """Tasks that differ in the goal."""

    def __init__(
        self, workers: int = 0, harm: str = "", at: int = 0, armed: str = "", horizon: int = 5, timeout: float = 60.0
    ) -> None:
        space = gymnasium.spaces.Dict({"goal": Box(-1.0, 1.0, (), np.float32)})
        given = {"harm": harm, "at": at, "armed": armed}
        super().__init__(
            Walk, space, horizon=horizon, set_task=set_goal, env_kwargs=given, workers=workers, timeout=timeout
        )


def set_goal(env: Any, task: Any) -> None:
    env.goal = float(task["goal"])


ENVS["walk"] = Walks
