"""What every registered task distribution must do; a new one is a new row in `envs.ENVS` and in `STEER`."""

import pickle
from collections.abc import Callable

import gymnasium
import matplotlib as mpl
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from matplotlib.figure import Figure
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from envs import ENVS, FunctionalTasks, TorchVectorEnv, make_distribution
from metarl.types import TaskDistribution

mpl.use("Agg")

UNBOUNDED = pytest.mark.filterwarnings("ignore:.*A Box observation space m[a-z]+ value is -?infinity:UserWarning")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]
T, E, HORIZON = 4, 3, 30


def to_goal(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip((goal - observation) / 0.1, -1.0, 1.0).astype(np.float32)


def to_speed(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip(goal - observation, -1.0, 1.0).astype(np.float32)


STEER: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "navigation": to_goal,
    "navigation_ring": to_goal,
    "point_velocity": to_speed,
}
ENDS_EARLY = {"navigation", "navigation_ring"}

pytestmark = pytest.mark.parametrize("name", sorted(ENVS))


def vec(name: str, horizon: int = HORIZON, device: str = "cpu") -> tuple[FunctionalTasks, TorchVectorEnv]:
    tasks = make_distribution(name, horizon=horizon)
    return tasks, tasks.make_vec(tasks.sample(T, np.random.default_rng(0)), E, device)


def random_actions(env: TorchVectorEnv, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2.0 * torch.randn(steps, *env.action_space.shape, generator=generator)  # [H, N, act], many outside the Box


def test_every_distribution_has_a_row_here(name: str) -> None:
    assert name in STEER


def test_is_a_task_distribution(name: str) -> None:
    tasks: TaskDistribution = make_distribution(name)
    assert (tasks.horizon, set(tasks.space.spaces)) == (100, {"goal"})
    assert pickle.loads(pickle.dumps(tasks)).space == tasks.space


@UNBOUNDED
def test_passes_the_checkers(name: str) -> None:
    tasks = make_distribution(name)
    task = {"goal": tasks.sample(1, np.random.default_rng(0))["goal"][0]}
    check_env(tasks.make(task), skip_render_check=True)  # the render check needs a registered environment
    sb3_check_env(tasks.make(task, render_mode="rgb_array"), warn=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steering", [False, True])
def test_one_by_one_equals_together(name: str, steering: bool, device: str) -> None:
    tasks = make_distribution(name, horizon=HORIZON)
    sampled = tasks.sample(T, np.random.default_rng(0))
    together = tasks.make_vec(sampled, E, device)
    alone = [tasks.make({k: v[t] for k, v in sampled.items()}) for t in range(T) for _ in range(E)]  # task-major
    goals = np.repeat(sampled["goal"], E, axis=0)
    observations = [env.reset(seed=0)[0] for env in alone]
    np.testing.assert_array_equal(together.reset(seed=0)[0].cpu(), np.stack(observations))
    flags = [(False, False)] * len(alone)
    for actions in random_actions(together, HORIZON + 2).numpy():
        if steering:
            actions = np.stack([STEER[name](*pair) for pair in zip(observations, goals, strict=True)])
        rewards = [0.0] * len(alone)
        for i, env in enumerate(alone):
            if not any(flags[i]):
                observations[i], rewards[i], *ends, _ = env.step(actions[i])
                flags[i] = (ends[0], ends[1])
        got = [x.cpu().numpy() for x in together.step(torch.from_numpy(actions).to(device))[:4]]
        np.testing.assert_allclose(got[0], np.stack(observations), rtol=0, atol=1e-6)
        np.testing.assert_allclose(got[1], rewards, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(np.stack(got[2:], axis=1), flags)
    assert all(terminated != truncated for terminated, truncated in flags)
    assert any(terminated for terminated, _ in flags) == (steering and name in ENDS_EARLY)


def test_what_a_vector_environment_says_of_itself(name: str) -> None:
    tasks, env = vec(name)
    if hasattr(gymnasium.vector, "AutoresetMode"):  # from Gymnasium 1.1 on
        assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.DISABLED
    assert env.num_envs == T * E
    assert (env.single_observation_space, env.single_action_space) == (tasks.observation_space, tasks.action_space)
    assert env.observation_space.shape == (T * E, *tasks.observation_space.shape)
    assert env.action_space.shape == (T * E, *tasks.action_space.shape)


def test_step_returns_fresh_tensors_without_gradient(name: str) -> None:
    _, env = vec(name)
    observation, info = env.reset(seed=0)
    actions = random_actions(env, 2).requires_grad_()
    first = env.step(actions[0])
    kept = [x.clone() for x in first[:4]]
    observation.fill_(7.0)
    env.step(actions[1])
    assert info == first[4] == {}
    assert [x.dtype for x in first[:4]] == [torch.float32, torch.float32, torch.bool, torch.bool]
    assert not any(x.requires_grad for x in first[:4])
    assert all(torch.equal(a, b) for a, b in zip(kept, first[:4], strict=True))


def test_what_callers_write_into_an_observation_stays_with_them(name: str) -> None:
    (tasks, written), (_, untouched) = vec(name), vec(name)
    actions = random_actions(written, 2)
    written.reset(seed=0)[0].fill_(7.0)
    untouched.reset(seed=0)
    written.step(actions[0])[0].fill_(7.0)
    untouched.step(actions[0])
    expected = untouched.step(actions[1])[0]
    assert torch.equal(written.step(actions[1])[0], expected)

    alone = tasks.make({"goal": tasks.sample(T, np.random.default_rng(0))["goal"][0]})
    alone.reset(seed=0)[0].fill(7.0)
    alone.step(actions[0, 0].numpy())[0].fill(7.0)
    np.testing.assert_allclose(alone.step(actions[1, 0].numpy())[0], expected[0], rtol=0, atol=1e-6)


def test_numpy_actions_give_the_same(name: str) -> None:
    (_, a), (_, b) = vec(name), vec(name)
    a.reset(seed=0), b.reset(seed=0)
    actions = random_actions(a, 1)[0]
    frozen = actions.double().numpy()
    frozen.flags.writeable = False
    assert torch.equal(a.step(actions)[0], b.step(frozen)[0])


def test_ended_environments_are_frozen(name: str) -> None:
    _, env = vec(name, horizon=2)
    env.reset(seed=0)
    actions = random_actions(env, 3)
    assert not env.step(actions[0])[3].any()
    end = env.step(actions[1])
    after = env.step(torch.full_like(actions[2], torch.nan))
    assert (end[2] | end[3]).all()
    assert (after[1] == 0.0).all()
    assert all(torch.equal(end[i], after[i]) for i in (0, 2, 3))


def test_partial_reset_leaves_the_others(name: str) -> None:
    _, env = vec(name, horizon=3)
    start, _ = env.reset(seed=0)
    actions = random_actions(env, 5)
    before = env.step(actions[0])[0]
    mask = np.arange(T * E) % 2 == 0
    options = {"reset_mask": mask}
    observation, _ = env.reset(options=options)
    assert torch.equal(observation[mask], start[mask])
    assert torch.equal(observation[~mask], before[~mask])
    assert "reset_mask" in options
    env.step(actions[1])
    truncated = env.step(actions[2])[3]
    np.testing.assert_array_equal(truncated, ~mask)  # those that were reset have one step more
    assert env.step(actions[3])[3].all()
    env.reset(options={"reset_mask": torch.from_numpy(mask)})
    np.testing.assert_array_equal(env.step(actions[4])[3], ~mask)


def test_sample_is_inside_the_space_and_reproducible(name: str) -> None:
    tasks = make_distribution(name)
    goal = tasks.sample(500, np.random.default_rng(3))["goal"]
    assert goal.dtype == np.float32
    assert goal.shape == (500, *tasks.space["goal"].shape)
    assert all(tasks.space.contains({"goal": np.asarray(g)}) for g in goal)
    np.testing.assert_array_equal(goal, tasks.sample(500, np.random.default_rng(3))["goal"])


def test_render(name: str) -> None:
    tasks = make_distribution(name)
    task = {"goal": tasks.sample(1, np.random.default_rng(0))["goal"][0]}
    env = tasks.make(task, render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()
    env.reset(seed=0)
    first = env.render()
    assert first is not None
    assert (first.shape, first.dtype) == ((256, 256, 3), np.uint8)
    np.testing.assert_array_equal(first, env.render())
    env.step(np.ones(env.action_space.shape, dtype=np.float32))
    assert not np.array_equal(first, env.render())
    assert tasks.make(task).render() is None


def test_plots(name: str) -> None:
    tasks = make_distribution(name)
    ax = Figure().subplots()
    tasks.plot_task(ax, {"goal": tasks.sample(1, np.random.default_rng(0))["goal"][0]})
    tasks.plot_episode(ax, np.ones((5, *tasks.observation_space.shape)), color="red")
    assert len(ax.lines) == 2
    assert ax.lines[1].get_color() == "red"


def test_step_before_reset_and_after_the_end(name: str) -> None:
    tasks, together = vec(name)
    alone = make_distribution(name, horizon=1).make({"goal": tasks.sample(1, np.random.default_rng(0))["goal"][0]})
    action = np.zeros(tasks.action_space.shape, dtype=np.float32)
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
