"""The grid world against what is worked out by hand."""

import gymnasium
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs import make_env
from metarl.envs.functional import FunctionalGymEnv
from metarl.envs.grid_world import DOWN, LEFT, RIGHT, STAY, UP, GridWorld
from metarl.rl import ReinforcementLearning

pytestmark = pytest.mark.usefixtures("unrecorded")

MOVES = {UP: (0, 1), DOWN: (0, -1), LEFT: (-1, 0), RIGHT: (1, 0), STAY: (0, 0)}


def position(env: FunctionalGymEnv, observation: np.ndarray) -> tuple[int, int]:
    """Where the agent is, from what is observed: the one that is 1, or the middle of the white pixels."""
    size = env.functional.size
    if observation.ndim == 1:
        assert sorted(set(observation)) == [0.0, 1.0]
        assert observation.sum() == 1.0
        y, x = divmod(int(observation.argmax()), size)
        return x, y
    rows, columns = np.nonzero(observation[0] == 255)
    return int(columns.mean() * size / 40), int((39 - rows.mean()) * size / 40)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 7, 20])
def test_a_long_walk_follows_a_plain_loop(size: int, image: bool) -> None:
    goal = (size - 1, 0)
    env = GridWorld(size, horizon=200, image=image).make({"goal": np.array(goal)})
    x, y = size // 2, size // 2
    assert position(env, env.reset(seed=0)[0]) == (x, y)
    for action in np.random.default_rng(0).integers(5, size=200):
        observation, reward, terminated, *_ = env.step(action)
        x, y = (min(max(a + b, 0), size - 1) for a, b in zip((x, y), MOVES[action], strict=True))
        assert position(env, observation) == (x, y)
        assert reward == pytest.approx(-(abs(x - goal[0]) + abs(y - goal[1])) / (2 * (size - 1)))
        assert not terminated


def test_returns_of_walking_straight_there_and_of_never_moving() -> None:
    env = GridWorld().make({"goal": np.array([0, 4])})  # two left of the middle, two up: 8 are between corners
    for actions, expected in [([LEFT, LEFT, UP, UP] + [STAY] * 16, -(3 + 2 + 1) / 8), ([STAY] * 20, -20 * 4 / 8)]:
        env.reset(seed=0)
        steps = [env.step(action) for action in actions]
        assert sum(step[1] for step in steps) == pytest.approx(expected)
        assert [step[2:4] for step in steps] == [(False, False)] * 19 + [(False, True)]


@pytest.mark.parametrize("size", [2, 4, 5])
def test_goals_are_uniform_over_the_cells_other_than_the_start(size: int) -> None:
    draws = 24_000
    goals = GridWorld(size).sample(draws, np.random.default_rng(0))["goal"]
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, tuple(goals.T), 1)
    assert counts[size // 2, size // 2] == 0
    share = 1 / (size**2 - 1)
    others = np.delete(counts.ravel(), (size + 1) * (size // 2))
    assert np.abs(others - draws * share).max() < 4 * np.sqrt(draws * share * (1 - share))


def test_the_picture() -> None:
    tasks = GridWorld(image=True)
    picture = tasks.make({"goal": np.array([4, 4])}).reset(seed=0)[0]
    assert (picture.dtype, picture.shape) == (np.uint8, (1, 40, 40))
    inside = np.zeros((40, 40), dtype=bool)
    inside[16:24, 16:24] = True
    assert (picture[0][inside] == 255).all()
    assert set(picture[0][~inside]) == {0, 64}
    assert picture[0, 1:7, 1:8].max() == 0  # a cell's inside
    assert (picture[0, 7::8][:, [0, 39]] == 64).all()  # an edge below every row of cells, from side to side
    assert (picture[0, :16, ::8] == 64).all()  # and one to the left of every column


@pytest.mark.parametrize("image", [False, True])
def test_the_goal_is_not_seen(image: bool) -> None:
    tasks = GridWorld(image=image)
    env = tasks.make_vec({"goal": np.array([[0, 0], [4, 1]])}, 1)
    first, _ = env.reset(seed=0)
    second, rewards, *_ = env.step(torch.tensor([UP, UP]))
    assert torch.equal(first[0], first[1])
    assert torch.equal(second[0], second[1])
    assert rewards.tolist() == [-5 / 8, -4 / 8]


@pytest.mark.parametrize("image", [False, True])
def test_plots_the_cells_that_were_visited(image: bool) -> None:
    tasks = GridWorld(image=image)
    env = tasks.make({"goal": np.array([1, 3])})
    seen = [env.reset(seed=0)[0], *(env.step(action)[0] for action in (UP, UP, UP, LEFT, DOWN))]
    ax = Figure().subplots()
    tasks.plot_task(ax, {"goal": np.array([1, 3])})
    tasks.plot_episode(ax, np.stack(seen))
    goal, path = ([tuple(map(int, point)) for point in line.get_xydata()] for line in ax.lines)
    assert goal == [(1, 3)]
    assert path == [(2, 2), (2, 3), (2, 4), (2, 4), (1, 4), (1, 3)]
    assert ax.get_xlim() == ax.get_ylim() == (-0.5, 4.5)


def test_render_shows_goal_and_agent() -> None:
    env = make_env("grid_world", goal=(0, 4), render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame is not None
    assert frame[128, 128].tolist() == [31, 119, 180]  # the agent in the middle
    assert frame[25, 25].tolist() == [44, 160, 44]  # the goal at the upper left
    assert frame[230, 230].tolist() == [255, 255, 255]


def test_sizes_are_equal_spaces() -> None:
    assert GridWorld(4).space == gymnasium.spaces.Dict({"goal": gymnasium.spaces.MultiDiscrete([4, 4])})
    assert GridWorld(4).observation_space.shape == (16,)
    assert GridWorld(4, image=True).observation_space.shape == (1, 40, 40)


def test_a_cnn_trains_on_the_pictures() -> None:
    tasks = GridWorld(horizon=3, image=True)
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": []}
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs=kwargs)
    source = ReinforcementLearning(tasks, policy, episodes=2, baseline="time")
    learner = MetaLearner(source, "maml", inner_lr=0.5, meta_batch_size=2, learning_rate=1e-3)
    before = {name: leaf.clone() for name, leaf in learner.params.items()}
    learner.learn(1)
    assert all(not torch.equal(before[name], leaf) for name, leaf in learner.params.items())


@pytest.mark.slow
def test_one_step_of_twenty_episodes_finds_the_goal() -> None:
    tasks = GridWorld()
    policy = make_policy(tasks.observation_space, tasks.action_space)
    learner = MetaLearner(ReinforcementLearning(tasks, policy), "maml", inner_lr=0.5, learning_rate=3e-3)
    before = learner.evaluate(num_tasks=40, steps=1).mean
    after = learner.learn(25).evaluate(num_tasks=40, steps=1).mean
    print(f"grid world: {before} before training, {after} after")
    # the best that is possible is -0.3; of a random policy -7.8; 5 s
    assert before[1] < -6.5  # measured -7.3
    assert after[1] > -4.0  # measured -2.9
    assert after[0] < -6.5  # the goal cannot be known before: measured -8.1
