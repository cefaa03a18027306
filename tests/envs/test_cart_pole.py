"""CartPole with other poles, carts and a hidden goal."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from metarl.envs.cart_pole import CartPole, CartPoleGoal
from metarl.envs.gym_distribution import GymDistribution
from metarl.envs.rendering import DARK, GOAL

DEFAULT = {"length": 0.5, "masspole": 0.1, "masscart": 1.0}
OTHER = {"length": 1.25, "masspole": 0.4, "masscart": 0.75}
BOTH = pytest.mark.parametrize("make", [CartPole, CartPoleGoal])


@BOTH
def test_space_and_horizon(make: Any) -> None:
    tasks = make()
    ranges = {name: (float(box.low), float(box.high)) for name, box in tasks.space.items()}
    dynamics = {"length": (0.25, 1.5), "masspole": (0.05, 0.5), "masscart": (0.5, 2.0)}
    low, high = np.float32([0.25, 0.05, 0.5]), np.float32([1.5, 0.5, 2.0])
    assert ranges.keys() == (dynamics.keys() if make is CartPole else {*dynamics, "goal"})
    np.testing.assert_array_equal([ranges[name] for name in dynamics], np.stack([low, high], 1))
    assert ranges.get("goal", (-1.0, 1.0)) == (-1.0, 1.0)
    assert (tasks.horizon, tasks.workers, make(horizon=7).horizon) == (200, 0, 7)
    with pytest.raises(ValueError, match="horizon must be an integer"):
        make(horizon=0)


def with_goal(tasks: GymDistribution, task: dict[str, float]) -> dict[str, float]:
    return {**task, "goal": 0.0} if "goal" in tasks.space.spaces else task


@BOTH
def test_with_gymnasiums_parameters_it_is_gymnasiums_cart_pole(make: Any) -> None:
    ours, theirs = make().make(with_goal(make(), DEFAULT)), gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    terminated = False
    while not terminated:
        seen, reward, terminated, truncated, _ = ours.step(1)
        expected = theirs.step(1)
        np.testing.assert_allclose(seen, expected[0], rtol=1e-6, atol=1e-7)  # 0.1 in float32 is not 0.1
        assert (terminated, truncated) == expected[2:4]
        assert reward == (1.0 if make is CartPole else pytest.approx(1.0 - abs(seen[0]), abs=1e-6))


@BOTH
@pytest.mark.parametrize("task", [DEFAULT, OTHER])
@pytest.mark.parametrize("reused", [False, True])
def test_accelerations_are_those_of_the_equations(make: Any, task: dict[str, float], reused: bool) -> None:
    """Barto, Sutton and Anderson (1983), at rest but for the pole's angular velocity."""
    tasks = make()
    if reused:
        tasks.make_vec({name: [value, value] for name, value in with_goal(tasks, DEFAULT).items()}, 1).reset()
    vec = tasks.make_vec({name: [value] for name, value in with_goal(tasks, task).items()}, 1)
    vec.reset(seed=0)
    angle, speed, force = 0.1, 0.5, -10.0
    vec._stepper._envs[0].unwrapped.state = np.array([0.0, 0.0, angle, speed])
    seen = vec.step(np.array([0]))[0][0]
    length, pole, total = task["length"], task["masspole"], task["masspole"] + task["masscart"]
    push = -force - pole * length * speed**2 * math.sin(angle)
    turn = 9.8 * math.sin(angle) + math.cos(angle) * push / total
    turn /= length * (4 / 3 - pole * math.cos(angle) ** 2 / total)
    move = (force + pole * length * (speed**2 * math.sin(angle) - turn * math.cos(angle))) / total
    expected = [0.0, 0.02 * move, angle + 0.02 * speed, speed + 0.02 * turn]
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-7)


def test_the_goal_is_rewarded_and_not_observed() -> None:
    task = {**{name: [value] * 4 for name, value in DEFAULT.items()}, "goal": [0.0, 0.5, -0.5, 3.0]}
    vec = CartPoleGoal().make_vec(task, 1)
    vec.reset(seed=0)
    for env in vec._stepper._envs:
        env.unwrapped.state = np.array([0.25, 0.0, 0.0, 0.0])  # the position changes by the old velocity: not at all
    seen, rewards, *_ = vec.step(np.ones(4, dtype=int))
    np.testing.assert_allclose(rewards, [0.75, 0.75, 0.25, 0.0], rtol=0, atol=1e-7)
    assert (seen == seen[0]).all()


@BOTH
def test_pictures(make: Any) -> None:
    tasks = make()
    env = tasks.make(with_goal(tasks, OTHER), render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()
    env.reset(seed=0)
    frames = []
    for angle in (0.0, 0.2):
        env.unwrapped.state = np.array([0.6, 0.0, angle, 0.0])
        frames.append(env.render())
    upright, tilted = (np.argwhere((frame == DARK).all(-1)) for frame in frames)  # rows and columns of the pole
    assert (frames[0].shape, frames[0].dtype) == ((256, 256, 3), np.uint8)
    metre = 256 / 4.8
    assert np.ptp(upright[:, 0]) == pytest.approx(2.5 * metre, abs=3)
    assert upright[:, 1].mean() == pytest.approx(3.0 * metre, abs=2)
    assert tilted[:, 1].max() - upright[:, 1].max() == pytest.approx(2.5 * math.sin(0.2) * metre, abs=3)
    assert (frames[0] == GOAL).all(-1).any() == (make is CartPoleGoal)
    assert tasks.make(with_goal(tasks, OTHER)).render() is None
    with pytest.raises(ValueError, match=r"render_mode must be one of \['rgb_array'\], got 'human'"):
        tasks.make(with_goal(tasks, OTHER), render_mode="human")


def test_poles_fall_sooner_when_they_are_short() -> None:
    lengths = np.array([0.25, 0.5, 1.5])
    vec = CartPole().make_vec({**{k: [v] * 3 for k, v in DEFAULT.items()}, "length": lengths}, 20)
    vec.reset(seed=0)
    steps = np.zeros(60)
    for _ in range(200):
        steps += vec.step(np.ones(60, dtype=int))[1]
    assert (np.diff(steps.reshape(3, 20).mean(1)) > 0.5).all()
