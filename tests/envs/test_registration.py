"""Names: `make_distribution` and Gymnasium's registry."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from metarl.envs import (
    ENVS,
    FUNCTIONAL_IDS,
    MUJOCO,
    GaussianBandit,
    LinearGaussian,
    Navigation,
    NavigationRing,
    PointVelocity,
    TabularMDP,
    make_distribution,
    make_env,
)

IDS = [f"metarl/{name}-v0" for name in FUNCTIONAL_IDS]
UNBOUNDED_ACTIONS = ("metarl/GaussianBandit-v0", "metarl/LinearGaussian-v0")  # Stable-Baselines3 takes no such


def test_names() -> None:
    exact = {"gaussian_bandit": GaussianBandit, "tabular_mdp": TabularMDP, "linear_gaussian": LinearGaussian}
    walks = {"navigation": Navigation, "navigation_ring": NavigationRing, "point_velocity": PointVelocity}
    others = {"grid_world", "grid_world_image", "cart_pole", "cart_pole_goal", *MUJOCO}
    assert {name: ENVS[name] for name in (*walks, *exact)} == {**walks, **exact}
    assert set(ENVS) == {*walks, *exact, *others}
    assert make_distribution("grid_world_image").observation_space.shape == (1, 40, 40)
    tasks = make_distribution("navigation", horizon=7, squared_distance=True)
    assert isinstance(tasks, Navigation)
    assert (tasks.horizon, tasks.squared_distance) == (7, True)


def test_one_environment_by_name() -> None:
    env, like = make_env("tabular_mdp", task_seed=3, num_states=3, horizon=2), TabularMDP(num_states=3, horizon=2)
    task = {key: values[0] for key, values in like.sample(1, np.random.default_rng(3)).items()}
    assert env.reset(seed=0)[0] == like.make(task).reset(seed=0)[0] == 0
    assert all(np.array_equal(env.unwrapped.task[key][0], value) for key, value in task.items())  # type: ignore[attr-defined]
    assert make_env("linear_gaussian", b=2.0).unwrapped.task == {"a": np.float32(0.9), "b": 2.0}  # type: ignore[attr-defined]
    assert make_env("cart_pole", horizon=7).spec is None
    with pytest.raises(ValueError, match="did you mean 'task_seed'"):
        gymnasium.make("metarl/TabularMDP-v0", task_sead=3)
    with pytest.raises(ValueError, match="task_seed must be an integer of at least 0, got -1"):
        make_env("navigation_ring", task_seed=-1)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'navigation', 'navigation_ring', 'point_velocity', .*'point_velocity'\?"):
        make_distribution("point_velocty")


@pytest.mark.filterwarnings("ignore:.*A Box (action|observation) space m[a-z]+ value is -?infinity:UserWarning")
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space:UserWarning")
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.parametrize("name", IDS)
def test_checkers(name: str, render_mode: str | None) -> None:
    check_env(gymnasium.make(name, render_mode=render_mode, horizon=5).unwrapped)
    if name not in UNBOUNDED_ACTIONS:
        sb3_check_env(gymnasium.make(name, render_mode=render_mode, horizon=5), warn=True)


@pytest.mark.parametrize(
    ("name", "horizon"),
    [
        *((name, horizon) for name in IDS for horizon in (1, 5, 130)),
        *((f"metarl/{name}-v0", 3) for name in MUJOCO.values()),
    ],
)
def test_truncates_once_at_the_horizon(name: str, horizon: int) -> None:
    env = gymnasium.make(name, horizon=horizon)
    assert not isinstance(env, TimeLimit)
    assert env.spec is not None
    assert env.spec.max_episode_steps is None
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, env.action_space.dtype)
    ends = [env.step(action)[2:4] for _ in range(horizon)]
    assert ends == [(False, False)] * (horizon - 1) + [(False, True)]
    env.close()


def test_goal_and_reward_can_be_chosen() -> None:
    def first_reward(name: str, **kwargs: Any) -> float:
        env = gymnasium.make(name, **kwargs)
        env.reset(seed=0)
        return float(env.step(np.zeros(env.action_space.shape, dtype=np.float32))[1])

    assert first_reward("metarl/Navigation-v0") == pytest.approx(-0.25 * 2**0.5)
    assert first_reward("metarl/Navigation-v0", goal=(0.3, -0.4)) == pytest.approx(-0.5)
    assert first_reward("metarl/Navigation-v0", goal=(0.3, -0.4), squared_distance=True) == pytest.approx(-0.25)
    assert first_reward("metarl/PointVelocity-v0") == pytest.approx(-1.0)
    assert first_reward("metarl/PointVelocity-v0", goal=2.5) == pytest.approx(-2.5)


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        *(("Navigation", goal) for goal in (0.3, (0.1, 0.2, 0.3), (0.1, float("nan")), "home")),
        *(("PointVelocity", goal) for goal in ((1.0, 2.0), float("inf"))),
        *(("GridWorld", goal) for goal in (1, (0.5, 1.0), (1, 2, 3), "home")),
    ],
)
def test_bad_goal(name: str, goal: Any) -> None:
    with pytest.raises(ValueError, match=r"task\['goal'\] must"):
        gymnasium.make(f"metarl/{name}-v0", goal=goal)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("navigation", {"goal_low": 0.5, "goal_high": 0.5}, "goal_high"),
        ("navigation", {"goal_low": math.nan}, "goal_low"),
        ("navigation", {"goal_high": math.inf}, "goal_high"),
        ("navigation", {"goal_low": "a"}, "goal_low"),
        ("navigation", {"squared_distance": 1}, "squared_distance"),
        ("navigation_ring", {"radius_low": -0.1}, "radius_low"),
        ("navigation_ring", {"radius_low": 1.0}, "radius_high"),
        ("navigation_ring", {"radius_high": math.inf}, "radius_high"),
        ("point_velocity", {"goal_low": 2.0}, "goal_high"),
        ("point_velocity", {"goal_low": math.inf}, "goal_low"),
        ("grid_world", {"size": 1}, "size must be an integer of at least 2, got 1"),
        ("grid_world", {"size": 2.5}, "size must be an integer"),
        ("grid_world", {"size": 21}, "size must be at most 20"),
        ("grid_world", {"image": 1}, "image must be True or False, got 1"),
        ("grid_world", {"horizon": 0}, "horizon must be an integer"),
        ("half_cheetah_velocity", {"goal_high": -1.0}, "goal_high must be a finite number above 0, got -1.0"),
        ("half_cheetah_velocity", {"goal_low": "x"}, "goal_low must be a finite number"),
        ("half_cheetah_velocity", {"ctrl_cost_weight": -0.1}, "ctrl_cost_weight must be a finite number at least 0"),
        ("half_cheetah_velocity", {"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ("half_cheetah_velocity", {"horizon": 0}, "horizon must be an integer of at least 1, got 0"),
        ("half_cheetah_velocity", {"gaol_high": 3}, "option must be one of .* did you mean 'goal_high'"),
        ("ant_goal", {"region": "circle"}, "region must be one of"),
        ("ant_goal", {"radius": 0}, "radius must be a finite number above 0"),
        ("ant_velocity", {"terminate_when_unhealthy": 1}, "terminate_when_unhealthy must be True or False, got 1"),
        ("humanoid_direction", {"forward_reward_weight": math.nan}, "forward_reward_weight must be a finite"),
        ("hopper_random_parameters", {"base": 1.0}, "base must be a finite number above 1"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_distribution(name, **options)


def test_two_environments_in_gymnasiums_own_vector() -> None:
    env = gymnasium.make_vec("metarl/Navigation-v0", num_envs=2, vectorization_mode="sync", goal=(0.3, 0.4))
    env.reset(seed=0)
    np.testing.assert_allclose(env.step(np.zeros((2, 2), dtype=np.float32))[1], [-0.5, -0.5])
