"""The functional base classes, on an environment that is random and has discrete actions; and all that is refused."""

from collections import Counter
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from matplotlib.figure import Figure
from torch import Tensor

from metarl.envs import FunctionalDistribution, FunctionalEnv, Navigation, PointVelocity, TorchVectorEnv
from metarl.envs.functional import normal
from metarl.functional_env import Frame, TaskTensors

RNG = np.random.default_rng(0)


class NoisyWalk(FunctionalEnv):
    """Position += slope * (action - 1) + noise; random start; ends beyond 3."""

    initial_noise = 1
    transition_noise = 1

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Discrete(3)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        assert action.dtype == torch.int64
        return state + task["slope"][:, None] * (action[:, None] - 1) + 0.01 * normal(noise)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        return (next_state - state).squeeze(-1)

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        return state

    def terminal(self, state: Tensor, task: TaskTensors) -> Tensor:
        return state.squeeze(-1).abs() > 3.0

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        return np.zeros((2, 2, 3), dtype=np.uint8)


def walks(slope: gymnasium.Space[Any] | None = None) -> FunctionalDistribution:
    space = gymnasium.spaces.Dict({"slope": slope or Box(0.5, 2.0, (), np.float32)})
    return FunctionalDistribution(NoisyWalk(), space, horizon=10)


def episode(env: TorchVectorEnv, seed: int | None) -> Tensor:
    start, _ = env.reset(seed=seed)
    return torch.stack([start, *(env.step(torch.full((env.num_envs,), 2))[0] for _ in range(4))])


def test_same_seed_same_numbers() -> None:
    env = walks().make_vec({"slope": np.ones(3)}, 2)
    first, unseeded, again, other = (episode(env, seed) for seed in (5, None, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, unseeded)
    assert not torch.equal(first, other)
    assert len(first[0].unique()) == 6  # every environment has its own start


def test_one_environment_is_the_vector_of_one() -> None:
    tasks = walks()
    alone, together = tasks.make({"slope": 1.0}), tasks.make_vec({"slope": [1.0]}, 1)
    np.testing.assert_array_equal(alone.reset(seed=5)[0], together.reset(seed=5)[0][0])
    terminated = False
    while not terminated:
        observation, reward, terminated, truncated, _ = alone.step(2)
        expected = together.step(np.array([2]))
        np.testing.assert_array_equal(observation, expected[0][0])
        assert (reward, terminated, truncated) == tuple(x.item() for x in expected[1:4])


def test_unseeded_environments_differ() -> None:
    tasks = walks()
    a, b = (tasks.make_vec({"slope": np.ones(3)}, 2).reset()[0] for _ in range(2))
    assert not torch.equal(a, b)
    assert tasks.make({"slope": 1.0}).reset()[0] != tasks.make({"slope": 1.0}).reset()[0]


def test_partial_reset_of_a_random_start_with_a_seed() -> None:
    env = walks().make_vec({"slope": np.ones(3)}, 2)
    before, _ = env.reset(seed=1)
    mask = np.array([True, False] * 3)
    after, _ = env.reset(seed=2, options={"reset_mask": mask})
    fresh, _ = env.reset(seed=2)
    assert torch.equal(after[mask], fresh[mask])
    assert torch.equal(after[~mask], before[~mask])


def test_rows_are_task_major() -> None:
    env = walks().make_vec({"slope": np.array([1.0, 2.0])}, 3)
    env.reset(seed=0)
    reward = env.step(torch.full((6,), 2))[1]
    torch.testing.assert_close(reward, torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]), rtol=0, atol=0.06)


def test_terminated_on_the_last_step_is_not_truncated() -> None:
    tasks = Navigation(horizon=2)
    goal = {"goal": np.array([[0.2, 0.0], [0.4, 0.0]])}
    env, right = tasks.make_vec(goal, 1), torch.tensor([[1.0, 0.0]]).repeat(2, 1)
    env.reset(seed=0)
    env.step(right)
    _, _, terminated, truncated, _ = env.step(right)
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])
    alone = tasks.make({"goal": goal["goal"][0]})
    alone.reset(seed=0)
    alone.step(right[0].numpy())
    assert alone.step(right[0].numpy())[2:4] == (True, False)


def test_goals_outside_the_space_are_allowed() -> None:
    env = Navigation().make({"goal": (5.0, 5.0)})
    env.reset(seed=0)
    assert env.step(np.ones(2, np.float32))[1] == pytest.approx(-4.9 * np.sqrt(2), rel=1e-5)
    assert Navigation().make_vec({"goal": [(5.0, 5.0)]}, 1).num_envs == 1


def test_defaults_of_a_distribution_without_more() -> None:
    tasks = walks()
    with pytest.raises(ValueError, match="FunctionalDistribution defines no out-of-distribution tasks"):
        tasks.out_of_distribution()
    ax = Figure().subplots()
    tasks.plot_task(ax, {"slope": np.asarray(0.25)})
    tasks.plot_episode(ax, np.zeros((2, 3)))
    assert ax.get_xlabel() == "slope 0.25"
    assert len(ax.lines) == 3
    for unbounded in (Box(-np.inf, np.inf, (), np.float32), MultiBinary(3)):
        with pytest.raises(ValueError, match=r"space\['slope'\] must be a bounded Box"):
            walks(unbounded).sample(2, RNG)


@pytest.mark.parametrize(
    ("space", "values"),
    [
        (Discrete(3, start=2), {2, 3, 4}),
        (MultiDiscrete([2, 3]), {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}),
        (Box(-1, 1, (), np.int64), {-1, 0, 1}),
    ],
)
def test_uniform_over_what_can_be_counted(space: gymnasium.Space[Any], values: set[Any]) -> None:
    drawn = walks(space).sample(600, np.random.default_rng(0))["slope"]
    assert drawn.dtype == space.dtype
    counts = Counter(tuple(value) if np.ndim(value) else int(value) for value in drawn)
    assert set(counts) == values
    mean = 600 / len(values)
    assert all(abs(count - mean) < 4 * np.sqrt(mean) for count in counts.values())


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_counts_are_positive_integers(value: Any) -> None:
    goals = {"goal": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="horizon must be an integer"):
        Navigation(horizon=value)
    with pytest.raises(ValueError, match="num_tasks must be an integer"):
        PointVelocity().sample(value, RNG)
    with pytest.raises(ValueError, match="episodes must be an integer"):
        Navigation().make_vec(goals, value)


ONE_TASK = [
    ({}, r"task must have the keys \['goal'\], got \[\]"),
    ({"goal": (0.0, 0.0), "wind": 1.0}, r"keys \['goal'\], got \['goal', 'wind'\]"),
    (None, "task must have the keys"),
    ({"goal": 0.5}, r"task\['goal'\] must have shape \(2,\), got \(\)"),
    ({"goal": (0.0, 0.0, 0.0)}, r"shape \(2,\), got \(3,\)"),
    ({"goal": [(0.0, 0.0)]}, r"shape \(2,\), got \(1, 2\)"),
    ({"goal": (0.0, np.nan)}, r"task\['goal'\] must be finite"),
    ({"goal": (np.inf, 0.0)}, "finite"),
    ({"goal": (1e300, 0.0)}, "finite"),
    ({"goal": "north"}, r"task\['goal'\] must be numbers"),
    ({"goal": None}, r"task\['goal'\]"),
]
MANY_TASKS = [
    ({}, "task must have the keys"),
    (None, "task must have the keys"),
    ({"goal": 0.5}, r"task\['goal'\] must have shape \(T, 2\) with T >= 1, got \(\)"),
    ({"goal": np.zeros((0, 2))}, r"T >= 1, got \(0, 2\)"),
    ({"goal": np.zeros(2)}, r"shape \(T, 2\).*got \(2,\)"),
    ({"goal": np.zeros((2, 3))}, r"shape \(T, 2\).*got \(2, 3\)"),
    ({"goal": [(0.0, 0.0), (0.0,)]}, r"task\['goal'\] must be numbers"),
    ({"goal": [(0.0, 0.0), (0.0, np.nan)]}, "finite"),
]


@pytest.mark.parametrize(
    ("together", "task", "message"), [*((False, *row) for row in ONE_TASK), *((True, *row) for row in MANY_TASKS)]
)
def test_bad_tasks(together: bool, task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Navigation().make_vec(task, 2) if together else Navigation().make(task)


def test_leading_sizes_must_agree_and_integers_be_integers() -> None:
    space = gymnasium.spaces.Dict({"slope": Box(0.5, 2.0, (), np.float32), "kind": Discrete(2)})
    tasks = FunctionalDistribution(NoisyWalk(), space, horizon=10)
    assert tasks.make_vec({"slope": np.ones(3), "kind": np.ones(3, dtype=int)}, 2).num_envs == 6
    with pytest.raises(ValueError, match=r"one leading size T, got \{'kind': 2, 'slope': 3\}"):
        tasks.make_vec({"slope": np.ones(3), "kind": np.ones(2, dtype=int)}, 2)
    with pytest.raises(ValueError, match=r"task\['kind'\] must be numbers of type int64"):
        tasks.make_vec({"slope": np.ones(3), "kind": np.full(3, 0.5)}, 2)


def test_other_bad_arguments() -> None:
    goals = {"goal": np.zeros((2, 2))}
    env = Navigation().make_vec(goals, 1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="rng must be a numpy"):
        Navigation().sample(2, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device must be"):
        Navigation().make_vec(goals, 1, device="gpu7")
    with pytest.raises(ValueError, match="render_mode must be one of"):
        Navigation().make({"goal": (0.0, 0.0)}, render_mode="human")
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 2\), got \(2,\)"):
        env.step(torch.zeros(2))
    with pytest.raises(ValueError, match="did you mean 'reset_mask'"):
        env.reset(options={"reset_masks": np.ones(2, dtype=bool)})
    for mask in (np.ones(3, dtype=bool), np.ones(2)):
        with pytest.raises(ValueError, match=r"reset_mask must be bool of shape \(2,\)"):
            env.reset(options={"reset_mask": mask})
    alone = Navigation().make({"goal": (0.0, 0.0)})
    alone.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(2,\), got \(3,\)"):
        alone.step(np.zeros(3))


@pytest.mark.parametrize("together", [True, False])
def test_fractions_are_no_discrete_actions(together: bool) -> None:
    env: Any = walks().make_vec({"slope": [1.0]}, 1) if together else walks().make({"slope": 1.0})
    env.reset(seed=0)
    env.step(np.array([2.0]) if together else 2.0)
    with pytest.raises(ValueError, match=r"actions must be integers for Discrete\(3\), got 1.5"):
        env.step(np.array([1.5]) if together else 1.5)
