"""`ObserveTask`: the observation is the environment's own and the task, in every way of stepping it."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from metarl.agents import make_policy
from metarl.envs import EnvDistribution, GridWorld, LinearGaussian, Navigation, ObserveTask, PointVelocity, TabularMDP
from metarl.envs.cart_pole import CartPoleGoal
from metarl.envs.observe_task import show_task
from metarl.rl import ReinforcementLearning
from metarl.tree import broadcast
from metarl.types import TaskParams

T, E = 3, 2


def goal_scaled(task: TaskParams) -> np.ndarray:
    return np.asarray(task["goal"]).reshape(len(task["goal"]), -1) / 0.5


def speed_scaled(task: TaskParams) -> np.ndarray:
    return task["goal"][:, None] - 1.0  # from [0, 2]


def one_hot_goal(task: TaskParams) -> np.ndarray:
    return np.eye(5)[task["goal"]].reshape(-1, 10)


def tables(task: TaskParams) -> np.ndarray:
    """Rewards have no bounds, so they stay; probabilities are scaled. The keys come in the space's order."""
    parts = {"rewards": task["rewards"], "transitions": 2 * task["transitions"] - 1}
    return np.concatenate([parts[key].reshape(T, -1) for key in TabularMDP().space], -1)


ROWS = {
    "navigation": (Navigation(horizon=4), goal_scaled),
    "point_velocity": (PointVelocity(horizon=4), speed_scaled),
    "grid_world": (GridWorld(horizon=4), one_hot_goal),
    "tabular_mdp": (TabularMDP(), tables),
    "cart_pole_goal": (CartPoleGoal(horizon=4), None),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_observation_is_its_own_and_the_task(name: str) -> None:
    plain, shown = ROWS[name]
    tasks = ObserveTask(plain)
    task = tasks.sample(T, np.random.default_rng(0))
    same = plain.sample(T, np.random.default_rng(0))
    assert all((task[key] == same[key]).all() for key in same)

    vec, own = tasks.make_vec(task, E), plain.make_vec(task, E)
    first, before = (np.asarray(env.reset(seed=3)[0]) for env in (vec, own))
    flat = np.eye(plain.observation_space.n)[before] if isinstance(plain.observation_space, Discrete) else before
    width = flat.reshape(len(before), -1).shape[1]
    assert first.dtype == np.float32
    assert first.shape == (T * E, *tasks.observation_space.shape)
    np.testing.assert_allclose(first[:, :width], flat.reshape(len(before), -1), rtol=1e-6)
    if shown is not None:
        np.testing.assert_allclose(first[:, width:], shown(task).repeat(E, 0), rtol=1e-5, atol=1e-6)

    actions = [np.zeros(plain.action_space.shape, plain.action_space.dtype) for _ in range(T * E)]
    results = [env.step(np.stack(actions)) for env in (vec, own)]
    assert np.array_equal(np.asarray(results[0][1]), np.asarray(results[1][1]))
    for i in range(T):
        one = tasks.make({key: value[i] for key, value in task.items()})
        obs, _ = one.reset(seed=0)
        assert tasks.observation_space.contains(obs)
        np.testing.assert_allclose(obs[width:], first[i * E, width:], rtol=1e-6)


@pytest.mark.parametrize("plain", [Navigation(horizon=4), LinearGaussian(horizon=4)])
def test_rollouts_of_functions_show_the_task_at_every_step(plain: EnvDistribution) -> None:
    tasks = ObserveTask(plain)
    policy = make_policy(tasks.observation_space, tasks.action_space)
    source = ReinforcementLearning(tasks, policy, episodes=E)
    batch = source.sample(T, np.random.default_rng(0))
    obs = batch.draw(broadcast(source.initial_params(), T), "outer")["obs"]  # [T, E, H, obs]
    task = {key: torch.as_tensor(value) for key, value in batch.task.items()}
    wanted = show_task(plain.space, task)[:, None, None].expand(*obs.shape[:3], -1)
    running = obs[..., : -wanted.shape[-1]].abs().sum(-1) >= 0
    assert bool(running.all())
    assert torch.equal(obs[..., -wanted.shape[-1] :], wanted)
    again = tasks.make_functional(batch.task, E)
    assert again is not None
    assert again.env is tasks.make_functional(batch.task, E).env  # type: ignore[union-attr]  # records are reused


def test_other_tasks_keep_the_scale() -> None:
    ring = ObserveTask(Navigation()).out_of_distribution()
    task = ring.sample(4, np.random.default_rng(0))
    seen = np.asarray(ring.make_vec(task, 1).reset(seed=0)[0])[:, 2:]
    np.testing.assert_allclose(seen, task["goal"] / 0.5, rtol=1e-6)  # the square's scale, not the ring's
    assert np.abs(seen).max() > 1


def test_whole_numbers_become_one_hot_vectors() -> None:
    space = gymnasium.spaces.Dict({"arm": Discrete(3, start=1), "cell": MultiDiscrete([2, 2]), "x": Box(2.0, 2.0)})
    task = {"arm": torch.tensor([3]), "cell": torch.tensor([[1, 0]]), "x": torch.tensor([[2.0]])}
    assert show_task(space, task).tolist() == [[0, 0, 1, 0, 1, 1, 0, 2]]  # nothing to scale in [2, 2]


def test_episodes_are_drawn_without_the_task() -> None:
    drawn = []

    class Seen(Navigation):
        def plot_episode(self, ax, observations, **line_kwargs):  # type: ignore[no-untyped-def]
            drawn.append(observations)

    tasks = ObserveTask(Seen())
    tasks.plot_episode(None, np.ones((5, 4)))  # type: ignore[arg-type]
    assert drawn[0].shape == (5, 2)


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="distribution must have observations that are a vector"):
        ObserveTask(GridWorld(image=True))
    with pytest.raises(ValueError, match="distribution must be a task distribution"):
        ObserveTask(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]
