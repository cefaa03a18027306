"""Goal velocity against the closed solution of m dv/dt = F a - c v and a fine numerical integration."""

import math

import numpy as np
import pytest
import torch

from metarl.envs import PointVelocity
from metarl.envs.point_velocity import PointVelocityEnv

NO_TASK = {"goal": torch.zeros(1)}


def transition(position: float, velocity: float, action: float) -> list[float]:
    state, noise = torch.tensor([[position, velocity]]), torch.empty(1, 0)
    result: list[float] = PointVelocityEnv().transition(state, torch.tensor([[action]]), NO_TASK, noise)[0].tolist()
    return result


def test_speeds_up_as_the_closed_solution_says() -> None:
    env = PointVelocity().make({"goal": 1.0})
    env.reset(seed=0)
    speeds = [float(env.step(np.ones(1, dtype=np.float32))[0][0]) for _ in range(40)]
    expected = [4.0 * (1.0 - math.exp(-0.05 * k)) for k in range(1, 41)]  # top speed 4 m/s, time constant 1 s
    np.testing.assert_allclose(speeds, expected, rtol=1e-5)
    assert speeds[13] > 2.0  # after 0.70 s
    assert speeds[27] > 3.0  # after 1.40 s


@pytest.mark.parametrize(("position", "velocity", "action"), [(0.0, 0.0, 1.0), (2.0, 3.0, 0.0), (-1.0, 1.5, -0.7)])
def test_one_step_is_the_exact_integral(position: float, velocity: float, action: float) -> None:
    x, v, dt = position, velocity, 0.05 / 20000
    for _ in range(20000):
        x, v = x + dt * v, v + dt * (4.0 * action - v)
    assert transition(position, velocity, action) == pytest.approx([x, v], abs=1e-5)


def test_actions_are_clipped_in_the_dynamics_and_in_the_cost() -> None:
    assert transition(0.5, 1.0, 7.0) == transition(0.5, 1.0, 1.0)
    assert transition(0.5, 1.0, -7.0) == transition(0.5, 1.0, -1.0)
    env = PointVelocity().make_vec({"goal": np.zeros(2)}, 1)
    env.reset(seed=0)
    reward = env.step(torch.tensor([[7.0], [-1.0]]))[1]
    assert reward[0] == reward[1]


def test_reward_worked_out_by_hand() -> None:
    env = PointVelocity().make({"goal": 1.5})
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(np.array([0.5], dtype=np.float32))
    # v' = 2 (1 - exp(-0.05)) = 0.0975412, so |v' - 1.5| = 1.4024588; the action costs 0.05 * 0.25 = 0.0125
    assert reward == pytest.approx(-1.4149588, abs=1e-6)
    assert (terminated, truncated) == (False, False)


def test_holding_the_goal_costs_only_the_action() -> None:
    env = PointVelocityEnv()
    state, action = torch.tensor([[3.0, 2.0]]), torch.tensor([[0.5]])
    held = env.transition(state, action, NO_TASK, torch.Generator())
    assert held[0].tolist() == pytest.approx([3.1, 2.0], abs=1e-6)  # 2 m/s for 0.05 s
    reward = env.reward(state, action, held, {"goal": torch.tensor([2.0])})
    assert reward.item() == pytest.approx(-0.0125, abs=1e-6)


def test_out_of_distribution_is_faster() -> None:
    faster = PointVelocity(horizon=20).out_of_distribution()
    goal = faster.sample(1000, np.random.default_rng(0))["goal"]
    assert (faster.goal_low, faster.goal_high, faster.horizon) == (2.0, 3.0, 20)
    assert 2.0 <= goal.min() < 2.01
    assert 2.99 < goal.max() <= 3.0
