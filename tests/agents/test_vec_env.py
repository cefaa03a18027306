"""One task for Stable-Baselines3: what its `DummyVecEnv` of `Monitor`s gives, made together."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from metarl.agents import TaskVecEnv
from metarl.envs import GridWorld, GymDistribution, Navigation

GOAL = {"goal": np.array([0.15, 0.0], np.float32)}
LENGTH = Dict({"length": Box(0.3, 0.7, (), np.float32)})


def set_length(env: Any, task: Any) -> None:
    env.length = float(task["length"])


TASKS: dict[str, Any] = {
    "functions": (lambda: Navigation(horizon=7), GOAL),
    "discrete": (lambda: GridWorld(horizon=6), GridWorld().example()),
    "gym": (
        lambda: GymDistribution("CartPole-v1", LENGTH, set_task=set_length, horizon=12),
        {"length": np.float32(0.4)},
    ),
}


@pytest.mark.parametrize("name", ["functions", "discrete"])
def test_it_is_like_single_environments(name: str) -> None:
    make, task = TASKS[name]
    tasks, rng = make(), np.random.default_rng(0)
    ours = TaskVecEnv(tasks, task, 3)
    theirs = DummyVecEnv([lambda: Monitor(tasks.make(task))] * 3)  # type: ignore[list-item]
    same_starts = isinstance(tasks, Navigation)
    if same_starts:
        np.testing.assert_allclose(ours.reset(), theirs.reset())  # type: ignore[arg-type]
    else:
        assert np.shape(ours.reset()) == np.shape(theirs.reset())
    ended, returns, lengths = 0, np.zeros(3), np.zeros(3, int)
    for _ in range(20):
        if name == "functions":  # some reach the goal, some the time limit
            actions: Any = np.stack([[1.0, 0.0], [-1.0, 0.3], rng.normal(size=2)]).clip(-1, 1).astype(np.float32)
        else:
            actions = rng.integers(0, 5, 3)
        one, other = ours.step(actions), theirs.step(actions)
        returns, lengths = returns + one[1], lengths + 1
        for i in np.flatnonzero(one[2]).tolist():
            assert one[3][i]["episode"]["l"] == lengths[i]
            assert one[3][i]["episode"]["r"] == pytest.approx(returns[i], abs=1e-5)
            ended, returns[i], lengths[i] = ended + 1, 0, 0
        if not same_starts:
            assert (lengths < 6).all()  # the horizon
            assert [bool(info) for info in one[3]] == one[2].tolist()
            continue
        for found, wanted in zip(one[:3], other[:3], strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
            assert found.dtype == wanted.dtype  # type: ignore[union-attr]
        for i in np.flatnonzero(one[2]):
            info, like = one[3][i], other[3][i]
            assert info["TimeLimit.truncated"] == like["TimeLimit.truncated"]
            np.testing.assert_allclose(info["terminal_observation"], like["terminal_observation"], rtol=1e-5)
            assert info["episode"]["l"] == like["episode"]["l"]
            assert info["episode"]["r"] == pytest.approx(like["episode"]["r"], abs=1e-5)
    assert ended >= 6


@pytest.mark.parametrize("name", TASKS)
def test_algorithms_learn_in_it(name: str) -> None:
    make, task = TASKS[name]
    env = TaskVecEnv(make(), task, 2)
    model = A2C("MlpPolicy", env, n_steps=5, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu").learn(40)
    assert len(model.ep_info_buffer or ()) >= 2  # as Monitor reports episodes
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2)
    assert np.isfinite(mean)
    env.close()


def test_the_same_seed_gives_the_same_episodes() -> None:
    make, task = TASKS["gym"]
    starts = []
    for seed in (3, 3, 4):
        env = TaskVecEnv(make(), task, 2)
        env.seed(seed)
        starts.append(env.reset())
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0][0], starts[0][1])  # type: ignore[call-overload,index]


def test_bad_input() -> None:
    tasks = Navigation(horizon=5)
    for arguments, message in [
        ((tasks, {"gaol": [0.0, 0.0]}, 2), "keys"),
        ((tasks, [0.0, 0.0], 2), "task must be the parameters of one task"),
        ((tasks, GOAL, 0), "num_envs"),
        ((gymnasium.make("CartPole-v1"), GOAL, 2), "distribution must be a task distribution"),
    ]:
        with pytest.raises(ValueError, match=message):
            TaskVecEnv(*arguments)  # type: ignore[arg-type]
    env = TaskVecEnv(tasks, GOAL, 2)
    for call in (lambda: env.set_attr("task", 3), lambda: env.env_method("reset")):
        with pytest.raises(AttributeError, match="cannot be"):
            call()
