"""What the checker says of action bounds, of environments that remember, and which checks can be waived."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from metarl.checker import TaskDistributionError, check_task_distribution
from metarl.checker.action_range import warn_of_action_range
from metarl.checker.episodes import random_actions
from metarl.envs import ENVS, GymDistribution, make_distribution

RANGES = [
    (Box(20.0, 30.0, (2,)), r"100% of N\(0, 1\).*dimension 0.*is clipped. Pass actions='rescale'"),
    (Box(np.float32([-1, 20]), np.float32([1, np.inf])), r"100% of N\(0, 1\).*dimension 1.*TransformAction"),
    (Box(-0.01, 0.01, (1,)), r"99% of N\(0, 1\)"),
    (Box(-np.inf, -5.0, (1,)), r"100% of N\(0, 1\)"),
    (Box(-100.0, 100.0, (1,)), r"is 200 wide in dimension 0, but policies start within \[-2, 2\]. Pass actions"),
    (Box(0, 5, (1,), np.uint8), "is of integers.*use a Discrete"),
    (Box(-1, 1, (3,), np.int64), "is of integers"),
    (Box(0, 1, (1,), bool), "is of integers"),
]


@pytest.mark.parametrize(("space", "message"), RANGES)
def test_bounds_that_policies_do_not_meet(space: Box, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        warn_of_action_range(space)


def test_usual_bounds_are_fine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for space in (Box(-1.0, 1.0, (6,)), Box(-2.0, 2.0, (1,)), Box(0.0, 1.0, (1,)), Box(-np.inf, np.inf, (2,))):
            warn_of_action_range(space)
        for name in ENVS:
            warn_of_action_range(make_distribution(name).action_space)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_random_integer_actions_reach_both_bounds(dtype: Any) -> None:
    space = Box(1, 4, (2,), dtype)
    actions = random_actions(space, (200,), np.random.default_rng(0))
    assert actions.dtype == dtype
    assert set(np.unique(actions)) == {1, 2, 3, 4}


class Far(gymnasium.Env[Any, Any]):
    """A walk with costs; the task is a goal that random actions do not reach in an episode."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,), np.float32), Box(20.0, 30.0, (1,), np.float32)

    def __init__(self, goal: float = 0.0) -> None:
        self.goal, self.episodes = goal, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = np.zeros(1, np.float32)
        self.episodes += 1
        return self.x.copy(), {}

    def step(self, action: Any) -> Any:
        self.x = self.x + np.float32(0.001) * (action - 25)
        reached = bool(self.x[0] > self.goal)
        return self.x.copy(), 1.0 if reached else -float(abs(self.x[0])), reached, False, {}


GOALS = Dict({"goal": Box(50.0, 90.0, (), np.float32)})


def test_tasks_that_differ_only_at_the_goal_have_a_waiver() -> None:
    tasks = GymDistribution(Far, GOALS, horizon=60)
    with pytest.raises(
        TaskDistributionError, match=r"depend on the task.*waive=\['tasks_make_a_difference'\]"
    ) as caught:
        check_task_distribution(tasks)
    assert len(caught.value.problems) == 1
    with pytest.warns(UserWarning, match=r"100% of N\(0, 1\)"):  # nothing else is wrong, but the actions
        check_task_distribution(tasks, waive=["tasks_make_a_difference"])


def test_waivers_are_of_checks_that_there_are() -> None:
    tasks = make_distribution("navigation", horizon=3)
    with pytest.raises(ValueError, match=r"waive must be one of.*did you mean 'tasks_make_a_difference'"):
        check_task_distribution(tasks, waive=["tasks_make_difference"])
    with pytest.raises(ValueError, match=r"waive must be a collection of names, such as \['space_is_a_dict'\]"):
        check_task_distribution(tasks, waive="space_is_a_dict")
    check_task_distribution(tasks, waive={"space_is_a_dict", "survives_pickling"})


def remember(env: Any, task: dict[str, Any]) -> None:
    env.goal = task["goal"]


class Tired(Far):
    """Pays less with every episode since it was made."""

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward - 0.1 * self.episodes, *rest


class Drifting(Far):
    """Begins where the last episode ended, unless it is new."""

    x = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        kept = self.x
        super().reset(seed=seed)
        self.x = kept
        return self.x.copy(), {}


class Mixture(Far):
    """A set_task that leaves something of the task before."""

    before = 0.0

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward - 0.01 * self.before, *rest


def remember_the_last(env: Any, task: dict[str, Any]) -> None:
    env.before, env.goal = env.goal, task["goal"]


def made_up() -> gymnasium.Env[Any, Any]:
    """A wrapper whose function has a state."""
    total = [0.0]

    def transform(reward: Any) -> float:
        total[0] += 0.001
        return float(reward) + total[0]

    return gymnasium.wrappers.TransformReward(Far(), transform)


@pytest.mark.parametrize(
    ("env", "set_task"),
    [(Tired, remember), (Drifting, remember), (Mixture, remember_the_last), (made_up, remember)],
)
def test_environments_that_remember_are_noticed(env: Any, set_task: Any) -> None:
    """Evaluation would change training: the same seed and task must give the same, whatever was done before."""
    tasks = GymDistribution(env, GOALS, horizon=30, set_task=set_task)
    with pytest.raises(TaskDistributionError, match=r"same seed and actions|make_vec must behave as make"):
        check_task_distribution(tasks, waive=["tasks_make_a_difference"])
