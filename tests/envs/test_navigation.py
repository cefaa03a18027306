"""2-D navigation against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from metarl.envs import Navigation, NavigationRing


def step_once(goal: tuple[float, float], action: tuple[float, float], **kwargs: Any) -> list[Any]:
    env = Navigation(**kwargs).make_vec({"goal": [goal]}, 1)
    env.reset(seed=0)
    return [x[0].tolist() for x in env.step(torch.tensor([action]))[:4]]


def test_starts_at_the_origin() -> None:
    assert Navigation().make_vec({"goal": np.ones((2, 2))}, 3).reset()[0].tolist() == [[0.0, 0.0]] * 6


@pytest.mark.parametrize(
    ("goal", "action", "position", "reward"),
    [
        ((0.3, 0.4), (0.0, 0.0), (0.0, 0.0), -0.5),  # a 3-4-5 triangle
        ((0.4, 0.4), (1.0, 0.0), (0.1, 0.0), -0.5),  # from the new position: 0.3 and 0.4 away
        ((0.4, 0.3), (5.0, -9.0), (0.1, -0.1), -0.5),  # clipped to (1, -1)
        ((0.0, 0.0), (-0.5, 0.0), (-0.05, 0.0), -0.05),
    ],
)
def test_one_step(
    goal: tuple[float, float], action: tuple[float, float], position: tuple[float, float], reward: float
) -> None:
    got = step_once(goal, action)
    assert got[0] == pytest.approx(position, abs=1e-7)
    assert got[1] == pytest.approx(reward, abs=1e-7)
    assert got[2:] == [False, False]
    squared = step_once(goal, action, squared_distance=True)
    assert squared[1] == pytest.approx(-(reward**2), abs=1e-7)


@pytest.mark.parametrize(
    ("goal", "ends"),
    [
        ((0.1, 0.0), True),
        ((0.109, 0.009), True),  # 0.0127 away, more than 0.01, but within 0.01 in each axis
        ((0.111, 0.0), False),
        ((0.1, -0.011), False),
        ((0.0, 0.0), False),  # the start does not count: the end is judged after the move
    ],
)
def test_ends_within_a_hundredth_in_each_axis(goal: tuple[float, float], ends: bool) -> None:
    assert step_once(goal, (1.0, 0.0))[2:] == [ends, False]


def test_goals_fill_the_square() -> None:
    goal = Navigation(goal_low=-2.0, goal_high=1.0).sample(4000, np.random.default_rng(0))["goal"]
    assert goal.min() == pytest.approx(-2.0, abs=0.01)
    assert goal.max() == pytest.approx(1.0, abs=0.01)
    assert np.abs(goal.mean(0) + 0.5).max() < 4 * 3.0 / math.sqrt(12 * 4000)


def test_ring_is_uniform_by_area() -> None:
    goal = NavigationRing().sample(20000, np.random.default_rng(0))["goal"]
    radius, stderr = np.linalg.norm(goal, axis=1), 0.5 / math.sqrt(20000)
    assert radius.min() >= 0.75 - 1e-6
    assert radius.max() <= 1.0 + 1e-6
    halves = np.mean(radius**2 < (0.75**2 + 1.0) / 2)  # half the area; uniform radii would give 0.535
    assert abs(halves - 0.5) < 4 * stderr
    for quadrant in (goal[:, 0] > 0, goal[:, 1] > 0, goal[:, 0] > goal[:, 1]):
        assert abs(quadrant.mean() - 0.5) < 4 * stderr


def test_out_of_distribution_is_the_ring_outside_the_square() -> None:
    ring = Navigation(horizon=20, squared_distance=True).out_of_distribution()
    assert (ring.radius_low, ring.radius_high) == (0.75, 1.0)
    assert (ring.horizon, ring.squared_distance) == (20, True)
    wide = Navigation(goal_low=-3.0, goal_high=2.0).out_of_distribution()
    assert (np.linalg.norm(wide.sample(200, np.random.default_rng(0))["goal"], axis=1) > 3.0 * math.sqrt(2)).all()
    with pytest.raises(ValueError, match="NavigationRing defines no out-of-distribution tasks"):
        ring.out_of_distribution()
