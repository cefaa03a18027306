"""The environments together, one by one, and Gymnasium's own: the same numbers, bit for bit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest

from metarl.envs import MUJOCO, make_distribution
from metarl.types import TaskParams

STEPS, T, E = 200, 3, 2


Objective = Callable[[dict[str, Any], Any], float]


class Case(NamedTuple):
    """A distribution, and Gymnasium's environment with the reward the definition asks for, from its public info."""

    name: str
    plain: str
    objective: Objective
    ctrl: float
    options: dict[str, Any]
    plain_kwargs: dict[str, Any]
    survive: float = 1.0  # times `reward_survive`, which an ant's info has as 1 while it has not fallen
    ends: bool = True  # under random actions within the horizon, in some environment

    def reward(self, info: dict[str, Any], action: np.ndarray, task: Any) -> float:
        """`reward_contact` is minus the contact cost; cheetahs and planar bodies have none."""
        costs = self.ctrl * float((action.astype(np.float64) ** 2).sum()) - info.get("reward_contact", 0.0)
        return self.objective(info, task) + self.survive * info.get("reward_survive", 0.0) - costs


def velocity(info: dict[str, Any], task: Any) -> float:
    return -abs(info["x_velocity"] - task["goal"])


def direction(info: dict[str, Any], task: Any) -> float:
    return task["direction"] * info["x_velocity"]


def angle(info: dict[str, Any], task: Any) -> float:
    return np.cos(task["angle"]) * info["x_velocity"] + np.sin(task["angle"]) * info["y_velocity"]


def place(info: dict[str, Any], task: Any) -> float:
    return -abs(info["x_position"] - task["goal"][0]) - abs(info["y_position"] - task["goal"][1])


def forward(info: dict[str, Any], task: Any) -> float:
    return info["x_velocity"]


ANT: dict[str, Any] = {"include_cfrc_ext_in_observation": False}
ANT_STAYS = {"include_cfrc_ext_in_observation": True, "terminate_when_unhealthy": False}
ANT_WITH_PLACE = {**ANT, "exclude_current_positions_from_observation": False}
FREE = {**ANT, "contact_cost_weight": 0.0}
PROMP = {"healthy_reward": 1.0, "ctrl_cost_weight": 0.5, "contact_cost_weight": 0.0}
PLANAR = {"log_scale": 1e-9, "horizon": 100}
STAYS = {"contact_forces": True, "terminate_when_unhealthy": False}
FAST = {"ctrl_cost_weight": 0.0, "goal_high": 3.0}

CASES = [
    Case("half_cheetah_velocity", "HalfCheetah-v5", velocity, 0.05, {}, {}, ends=False),
    Case("half_cheetah_velocity", "HalfCheetah-v5", velocity, 0.0, FAST, {}, ends=False),
    Case("half_cheetah_direction", "HalfCheetah-v5", direction, 0.05, {}, {}, ends=False),
    Case("ant_velocity", "Ant-v5", velocity, 0.005, {}, ANT, survive=1.05),
    Case("ant_velocity", "Ant-v5", velocity, 0.005, STAYS, ANT_STAYS, survive=1.05, ends=False),
    Case("ant_direction", "Ant-v5", direction, 0.005, {}, ANT, survive=0.05),
    Case("ant_direction", "Ant-v5", direction, 0.5, PROMP, FREE),
    Case("ant_direction_2d", "Ant-v5", angle, 0.5, {}, FREE),
    Case("ant_goal", "Ant-v5", place, 0.005, {"region": "disc"}, ANT_WITH_PLACE, survive=4.05),
    Case("humanoid_direction", "Humanoid-v5", lambda info, task: 1.25 * angle(info, task), 0.1, {}, {}),
    Case("walker2d_random_parameters", "Walker2d-v5", forward, 0.001, PLANAR, {}),
    Case("hopper_random_parameters", "Hopper-v5", forward, 0.001, PLANAR, {}),
]
IDS = [f"{case.name}{'-options' if case.options else ''}" for case in CASES]


def one(tasks: TaskParams, t: int) -> TaskParams:
    return {key: value[t] for key, value in tasks.items()}


def actions_of(space: gymnasium.spaces.Box, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(space.low, space.high, (T * E, *space.shape)).astype(np.float32)


def test_every_distribution_has_a_case() -> None:
    assert {case.name for case in CASES} == set(MUJOCO)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_together_equals_one_by_one_bit_for_bit(case: Case) -> None:
    options = {**case.options, "log_scale": 3.0} if "log_scale" in case.options else case.options
    tasks = make_distribution(case.name, **options)
    rng = np.random.default_rng(0)
    sampled = tasks.sample(T, rng)
    together = tasks.make_vec(sampled, E)
    alone = [tasks.make(one(sampled, t)) for t in range(T) for _ in range(E)]
    seen = [env.reset(seed=7 + i)[0] for i, env in enumerate(alone)]
    np.testing.assert_array_equal(together.reset(seed=7)[0], np.stack(seen))
    flags = np.zeros((T * E, 2), dtype=bool)
    for _ in range(STEPS):
        actions, rewards = actions_of(tasks.action_space, rng), np.zeros(T * E)  # type: ignore[arg-type]
        for i in np.flatnonzero(~flags.any(1)):
            seen[i], rewards[i], *flags[i], _ = alone[i].step(actions[i])
        got = together.step(actions)
        np.testing.assert_array_equal(got[0], np.stack(seen))
        np.testing.assert_array_equal(got[1], rewards)
        np.testing.assert_array_equal(np.stack(got[2:4], axis=1), flags)
    assert flags.any(1).all()
    assert flags[:, 0].any() == case.ends
    together.close()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gymnasium_s_own_environment_gives_the_same(case: Case) -> None:
    """The unchanged environment beside ours: the same observations bit for bit; our reward from its info."""
    tasks = make_distribution(case.name, **case.options)
    rng = np.random.default_rng(1)
    task = {key: np.zeros_like(v) if "log_scale" in case.options else v for key, v in tasks.sample(1, rng).items()}
    together = tasks.make_vec(task, 1)
    plain = gymnasium.make(case.plain, **case.plain_kwargs).unwrapped
    np.testing.assert_array_equal(together.reset(seed=3)[0][0], plain.reset(seed=3)[0])
    for _ in range(tasks.horizon):
        action = actions_of(tasks.action_space, rng)[0]  # type: ignore[arg-type]
        observation, _, terminated, _, info = plain.step(action)
        got = together.step(action[None])
        np.testing.assert_array_equal(got[0][0], observation)
        assert got[1][0] == pytest.approx(case.reward(info, action, one(task, 0)), rel=1e-6, abs=1e-6)
        assert got[2][0] == terminated
        if terminated:
            break


def test_the_number_of_threads_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    runs = []
    actions = rng.uniform(-1, 1, (20, 7, 8)).astype(np.float32)
    for threads in (1, 2, 5):
        tasks = make_distribution("ant_velocity", threads=threads)
        together = tasks.make_vec(tasks.sample(7, np.random.default_rng(0)), 1)
        together.reset(seed=0)
        runs.append(np.concatenate([np.column_stack(together.step(a)[:2]) for a in actions]))
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
