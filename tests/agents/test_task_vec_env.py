"""`TaskVecEnv`: what single environments do, in the form that Stable-Baselines3 expects."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from metarl.agents.task_vec_env import TaskVecEnv
from metarl.envs import Navigation
from metarl.envs.cart_pole import CartPoleGoal

TASKS = {
    "navigation": (Navigation(horizon=6), {"goal": np.array([0.1, 0.05], np.float32)}),
    "cart_pole_goal": (CartPoleGoal(horizon=30), None),
}


@pytest.mark.parametrize("name", TASKS)
def test_it_is_sb3s_own_vector_environment(name: str) -> None:
    tasks, task = TASKS[name]
    task = task or {key: values[0] for key, values in tasks.sample(1, np.random.default_rng(0)).items()}
    ours: Any = TaskVecEnv(tasks, task, 3, seed=7)
    theirs = DummyVecEnv([lambda: tasks.make(task)] * 3)
    theirs.seed(7)  # environment i has the seed plus i in both
    np.testing.assert_allclose(ours.reset(), theirs.reset(), rtol=1e-6)
    rng, ended = np.random.default_rng(0), 0
    for step in range(60):
        if name == "navigation":  # the first walks to the goal and terminates, the others are cut at the horizon
            actions = np.clip(rng.normal(size=(3, 2)), -0.2, 0.2).astype(np.float32)
            actions[0] = [0.5, 0.25] if step < 2 else actions[0]
        else:
            actions = rng.integers(0, 2, 3)
        one, other = ours.step(actions), theirs.step(actions)
        for mine, wanted in zip(one[1:3], other[1:3], strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-5)
        for i in np.flatnonzero(one[2]):
            ended += 1
            np.testing.assert_allclose(
                one[3][i]["terminal_observation"], other[3][i]["terminal_observation"], rtol=1e-5
            )
            assert one[3][i]["TimeLimit.truncated"] == other[3][i]["TimeLimit.truncated"]
        running = ~one[2] if name == "cart_pole_goal" else slice(None)  # later first states are random
        np.testing.assert_allclose(one[0][running], other[0][running], rtol=1e-4, atol=1e-6)
        if name == "cart_pole_goal" and one[2].any():
            break
    assert ended
    ours.close()


def test_ppo_learns_with_it() -> None:
    tasks, task = TASKS["navigation"]
    model = PPO("MlpPolicy", TaskVecEnv(tasks, task, 4), n_steps=6, batch_size=12, device="cpu", seed=0)
    assert model.learn(48).num_timesteps == 48


def test_single_environments_are_not_there() -> None:
    tasks, task = TASKS["navigation"]
    env = TaskVecEnv(tasks, task, 2)
    assert env.get_attr("render_mode") == [None, None]
    assert env.env_is_wrapped(object) == [False, False]  # type: ignore[arg-type]
    for call in (lambda: env.set_attr("x", 1), lambda: env.env_method("x")):
        with pytest.raises(ValueError, match="single environments are not there"):
            call()
    with pytest.raises(ValueError, match="number must be"):
        TaskVecEnv(tasks, task, 0)
