"""What every registered task distribution must do; a new one is a new row in `metarl.envs.ENVS` and in `ROWS`."""

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import matplotlib as mpl
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import VectorEnv
from matplotlib.figure import Figure
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from metarl.envs import ENVS, MUJOCO, EnvDistribution, make_distribution
from metarl.types import TaskDistribution

mpl.use("Agg")

UNBOUNDED = pytest.mark.filterwarnings(
    "ignore:.*A Box (observation|action) space m[a-z]+ value is -?infinity:UserWarning",
    "ignore:.*we recommend using a symmetric and normalized space:UserWarning",
    "ignore:.*We recommend you to use a symmetric and normalized Box action space:UserWarning",
)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]
T, E, HORIZON = 4, 3, 30


def to_goal(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip((goal - observation) / 0.1, -1.0, 1.0).astype(np.float32)


def to_speed(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip(goal - observation, -1.0, 1.0).astype(np.float32)


class Row(NamedTuple):
    """What differs between the distributions."""

    keys: set[str]
    horizon: int = 100
    steer: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # towards task["goal"]
    ends_early: bool = False  # when steered
    random: bool = False  # transitions are: environments alone do not repeat those together
    bounded: bool = True  # actions are; Stable-Baselines3 knows no others
    speaks: str = "torch"
    falls: bool = False  # may end early under random actions
    seen: type[np.number] = np.float32  # type of the observations
    starts_anywhere: bool = False  # the first state is random


MUJOCO_ROW: dict[str, Any] = {"horizon": 200, "speaks": "numpy", "seen": np.float64, "starts_anywhere": True}
CART_POLE = {"length", "masspole", "masscart"}
SCALED = {"body_mass", "body_inertia", "dof_damping", "geom_friction"}

ROWS = {
    "navigation": Row({"goal"}, steer=to_goal, ends_early=True),
    "navigation_ring": Row({"goal"}, steer=to_goal, ends_early=True),
    "point_velocity": Row({"goal"}, steer=to_speed),
    "gaussian_bandit": Row({"centre"}, horizon=1, bounded=False),
    "tabular_mdp": Row({"transitions", "rewards"}, horizon=3, random=True),
    "linear_gaussian": Row({"a", "b"}, horizon=20, random=True, bounded=False),
    "grid_world": Row({"goal"}, horizon=20),
    "grid_world_image": Row({"goal"}, horizon=20, seen=np.uint8),
    "cart_pole": Row(CART_POLE, horizon=200, speaks="numpy", falls=True, starts_anywhere=True),
    "cart_pole_goal": Row(CART_POLE | {"goal"}, horizon=200, speaks="numpy", falls=True, starts_anywhere=True),
    "half_cheetah_velocity": Row({"goal"}, **MUJOCO_ROW),
    "half_cheetah_direction": Row({"direction"}, **MUJOCO_ROW),
    "ant_velocity": Row({"goal"}, **MUJOCO_ROW, falls=True),
    "ant_direction": Row({"direction"}, **MUJOCO_ROW, falls=True),
    "ant_direction_2d": Row({"angle"}, **MUJOCO_ROW, falls=True),
    "ant_goal": Row({"goal"}, **MUJOCO_ROW, falls=True),
    "humanoid_direction": Row({"angle"}, **MUJOCO_ROW, falls=True),
    "walker2d_random_parameters": Row(SCALED, **MUJOCO_ROW, falls=True),
    "hopper_random_parameters": Row(SCALED, **MUJOCO_ROW, falls=True),
}

pytestmark = pytest.mark.parametrize("name", sorted(ENVS))


class Together:
    """A vector environment that is spoken to in torch, and answers in numpy, whatever it speaks."""

    def __init__(self, env: VectorEnv[Any, Any, Any], speaks: str, device: str) -> None:
        self.env, self.speaks, self.device = env, speaks, device

    def reset(self, **kwargs: Any) -> np.ndarray:
        return self._said(self.env.reset(**kwargs)[0])

    def step(self, actions: torch.Tensor) -> list[np.ndarray]:
        spoken = actions.to(self.device) if self.speaks == "torch" else actions.detach().numpy()
        return [self._said(x) for x in self.env.step(spoken)[:4]]

    def _said(self, x: Any) -> np.ndarray:
        assert isinstance(x, {"torch": torch.Tensor, "numpy": np.ndarray}[self.speaks])
        return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def vec(name: str, horizon: int = HORIZON, device: str = "cpu") -> tuple[EnvDistribution, Together]:
    tasks = make_distribution(name, horizon=horizon)
    env = tasks.make_vec(tasks.sample(T, np.random.default_rng(0)), E, device)
    return tasks, Together(env, ROWS[name].speaks, device)


def one_task(tasks: EnvDistribution) -> dict[str, Any]:
    return {key: value[0] for key, value in tasks.sample(T, np.random.default_rng(0)).items()}


def random_actions(together: Together, steps: int) -> torch.Tensor:
    env, generator = together.env, torch.Generator().manual_seed(1)
    if isinstance(env.single_action_space, Discrete):
        return torch.randint(int(env.single_action_space.n), (steps, env.num_envs), generator=generator)
    return 2.0 * torch.randn(steps, *env.action_space.shape, generator=generator)  # [H, N, act], many outside the Box


def test_is_a_task_distribution(name: str) -> None:
    tasks: TaskDistribution = make_distribution(name)
    assert (tasks.horizon, set(tasks.space.spaces)) == (ROWS[name].horizon, ROWS[name].keys)
    assert pickle.loads(pickle.dumps(tasks)).space == tasks.space


@UNBOUNDED
def test_passes_the_checkers(name: str) -> None:
    tasks = make_distribution(name, horizon=HORIZON)
    task = one_task(tasks)
    check_env(tasks.make(task).unwrapped, skip_render_check=True)  # the render check needs a registered environment
    if ROWS[name].bounded:
        sb3_check_env(tasks.make(task, render_mode="rgb_array"), warn=True, skip_render_check=name in MUJOCO)


@pytest.mark.parametrize("device", DEVICES)
def test_one_by_one_equals_together(name: str, device: str) -> None:
    if ROWS[name].random:
        pytest.skip("transitions are random")
    for steering in (False, True) if ROWS[name].steer else (False,):
        assert_one_by_one_equals_together(name, steering, device)


def assert_one_by_one_equals_together(name: str, steering: bool, device: str) -> None:
    row = ROWS[name]
    tasks, together = vec(name, device=device)
    sampled = tasks.sample(T, np.random.default_rng(0))
    alone = [tasks.make({k: v[t] for k, v in sampled.items()}) for t in range(T) for _ in range(E)]  # task-major
    observations = [env.reset(seed=5 + i)[0] for i, env in enumerate(alone)]
    np.testing.assert_array_equal(together.reset(seed=5), np.stack(observations))
    flags = [(False, False)] * len(alone)
    for actions in random_actions(together, HORIZON + 2).numpy():
        if steering and row.steer is not None:
            goals = np.repeat(sampled["goal"], E, axis=0)
            actions = np.stack([row.steer(*pair) for pair in zip(observations, goals, strict=True)])
        rewards = [0.0] * len(alone)
        for i, env in enumerate(alone):
            if not any(flags[i]):
                observations[i], rewards[i], *ends, _ = env.step(actions[i])
                flags[i] = (ends[0], ends[1])
        got = together.step(torch.from_numpy(actions))
        np.testing.assert_allclose(got[0], np.stack(observations), rtol=0, atol=1e-6)
        np.testing.assert_allclose(got[1], rewards, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(np.stack(got[2:], axis=1), flags)
    assert all(terminated != truncated for terminated, truncated in flags)
    assert row.falls or any(terminated for terminated, _ in flags) == (steering and row.ends_early)


def test_what_a_vector_environment_says_of_itself(name: str) -> None:
    tasks, together = vec(name)
    env = together.env
    if hasattr(gymnasium.vector, "AutoresetMode"):  # from Gymnasium 1.1 on
        assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.DISABLED
    assert env.num_envs == T * E
    assert (env.single_observation_space, env.single_action_space) == (tasks.observation_space, tasks.action_space)
    assert env.observation_space.shape == (T * E, *tasks.observation_space.shape)
    assert env.action_space.shape == (T * E, *tasks.action_space.shape)


def test_step_returns_fresh_arrays_without_gradient(name: str) -> None:
    _, together = vec(name)
    env = together.env
    observation, info = env.reset(seed=0)
    actions = random_actions(together, 2)
    spoken = actions.numpy() if together.speaks == "numpy" else actions
    if actions.is_floating_point() and together.speaks == "torch":
        actions.requires_grad_()
    first = env.step(spoken[0])
    kept = [np.asarray(x).copy() for x in first[:4]]
    observation[:] = 7
    env.step(spoken[1])
    assert info == first[4] == {}
    seen = np.int64 if isinstance(env.single_observation_space, Discrete) else ROWS[name].seen
    reward = {"torch": np.float32, "numpy": np.float64}[together.speaks]
    assert [x.dtype for x in kept] == [seen, reward, bool, bool]
    assert not any(getattr(x, "requires_grad", False) for x in first[:4])
    assert all(np.array_equal(a, b) for a, b in zip(kept, first[:4], strict=True))


def test_what_callers_write_into_an_observation_stays_with_them(name: str) -> None:
    (tasks, written), (_, untouched) = vec(name), vec(name)
    actions = random_actions(written, 2)
    written.reset(seed=0).fill(7)
    untouched.reset(seed=0)
    written.step(actions[0])[0].fill(7)
    untouched.step(actions[0])
    expected = untouched.step(actions[1])[0]
    np.testing.assert_array_equal(written.step(actions[1])[0], expected)

    if ROWS[name].random:
        return
    alone = tasks.make(one_task(tasks))
    alone.reset(seed=0)[0].fill(7.0)
    alone.step(actions[0, 0].numpy())[0].fill(7.0)
    np.testing.assert_allclose(alone.step(actions[1, 0].numpy())[0], expected[0], rtol=0, atol=1e-6)


def test_numpy_actions_give_the_same(name: str) -> None:
    (_, a), (_, b) = vec(name), vec(name)
    a.reset(seed=0), b.reset(seed=0)
    actions = random_actions(a, 1)[0]
    frozen = actions.numpy().copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(a.step(actions)[0], np.asarray(b.env.step(frozen)[0]))


def test_ended_environments_are_frozen(name: str) -> None:
    _, env = vec(name, horizon=2)
    env.reset(seed=0)
    actions = random_actions(env, 3)
    assert not env.step(actions[0])[3].any()
    end = env.step(actions[1])
    broken = torch.full_like(actions[2], torch.nan) if actions.is_floating_point() else actions[2]
    after = env.step(broken)
    assert (end[2] | end[3]).all()
    assert (after[1] == 0.0).all()
    assert all(np.array_equal(end[i], after[i]) for i in (0, 2, 3))


def test_partial_reset_leaves_the_others(name: str) -> None:
    _, env = vec(name, horizon=3)
    start = env.reset(seed=0)
    actions = random_actions(env, 5)
    before = env.step(actions[0])[0]
    mask = np.arange(T * E) % 2 == 0
    options = {"reset_mask": mask}
    observation = env.reset(options=options)
    np.testing.assert_array_equal(observation[~mask], before[~mask])
    if not ROWS[name].starts_anywhere:
        np.testing.assert_array_equal(observation[mask], start[mask])
    assert not np.array_equal(observation[mask], before[mask]) or name in ("gaussian_bandit", "tabular_mdp")
    assert "reset_mask" in options
    env.step(actions[1])
    truncated = env.step(actions[2])[3]
    np.testing.assert_array_equal(truncated, ~mask)  # those that were reset have one step more
    assert env.step(actions[3])[3].all()
    env.reset(options={"reset_mask": torch.from_numpy(mask)})
    np.testing.assert_array_equal(env.step(actions[4])[3], ~mask)


def test_sample_is_inside_the_space_and_reproducible(name: str) -> None:
    tasks = make_distribution(name)
    drawn, again = (tasks.sample(500, np.random.default_rng(3)) for _ in range(2))
    for key, values in drawn.items():
        assert values.dtype == tasks.space[key].dtype
        assert values.shape == (500, *tasks.space[key].shape)
        np.testing.assert_array_equal(values, again[key])
    assert all(tasks.space.contains({key: np.asarray(v[i]) for key, v in drawn.items()}) for i in range(500))


def test_render(name: str) -> None:
    if name in MUJOCO:
        pytest.skip("MuJoCo draws: see tests/envs/mujoco")
    tasks = make_distribution(name)
    task = one_task(tasks)
    env = tasks.make(task, render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()
    env.reset(seed=0)
    first = env.render()
    assert first is not None
    assert (first.shape, first.dtype) == ((256, 256, 3), np.uint8)
    np.testing.assert_array_equal(first, env.render())
    env.step(np.ones(env.action_space.shape, dtype=env.action_space.dtype))
    if name != "tabular_mdp":  # which may stay where it was
        assert not np.array_equal(first, env.render())
    assert tasks.make(task).render() is None


def test_plots(name: str) -> None:
    tasks = make_distribution(name)
    ax = Figure().subplots()
    tasks.plot_task(ax, one_task(tasks))
    assert len(ax.lines) + len(ax.get_xlabel()) > 0
    tasks.plot_episode(ax, np.ones((5, *tasks.observation_space.shape)), color="red")
    assert ax.lines[-1].get_color() == "red"


def test_step_before_reset_and_after_the_end(name: str) -> None:
    tasks, together = vec(name)
    alone = make_distribution(name, horizon=1).make(one_task(tasks))
    action = np.zeros(tasks.action_space.shape, dtype=tasks.action_space.dtype)
    with pytest.raises(ResetNeeded, match="reset"):
        together.step(random_actions(together, 1)[0])
    with pytest.raises(ResetNeeded, match="first reset"):
        together.reset(options={"reset_mask": np.ones(T * E, dtype=bool)})
    with pytest.raises(ResetNeeded, match="reset"):
        alone.step(action)
    alone.reset(seed=0)
    assert alone.step(action)[3]
    with pytest.raises(ResetNeeded, match="ended"):
        alone.step(action)
