"""From sampled actions to what environments take: against Python's own integers, numpy and numerical integration."""

import math
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box
from torch import Tensor, nn

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs import ENVS, FunctionalDistribution, FunctionalEnv, GymDistribution, make_distribution
from metarl.experiments.film import actor as film_actor
from metarl.rl import ReinforcementLearning, SquashedGaussian
from metarl.rl.actions import ACTIONS, make_clipper, warn_of_action_range
from metarl.rl.distributions import distribution_for
from tests.envs.toy_envs import LENGTH, Countdown, set_length

pytestmark = pytest.mark.usefixtures("unrecorded")

CPU = torch.device("cpu")
SAMPLED = [-math.inf, -1e30, -200.0, -1.5, -0.5, -0.2, 0.5, 0.6, 1.5, 2.5, 4.9, 200.0, 7e4, 1e30, math.inf]
BEYOND = 2**53 + 1  # which neither float32 nor float64 has

INTEGERS = [
    *(Box(0, 5, (1,), dtype) for dtype in (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32)),
    Box(-10, 10, (1,), np.int8),
    Box(-np.inf, np.inf, (1,), np.int8),
    Box(-np.inf, 3, (1,), np.int64),
    Box(-np.inf, np.inf, (1,), np.int64),
    Box(-BEYOND, BEYOND, (1,), np.int64),
    Box(0, 2**24 + 1, (1,), np.int64),
    Box(0, 2**64 - 1, (1,), np.uint64),
    Box(0, 1, (1,), bool),
]


def exactly(x: float, low: int, high: int) -> int:
    """The nearest integer inside the bounds, in Python's integers."""
    if math.isinf(x):
        return high if x > 0 else low
    return min(max(round(x), low), high)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("space", INTEGERS, ids=str)
def test_integer_boxes_get_the_nearest_integer_inside(space: Box, dtype: torch.dtype) -> None:
    sampled = torch.tensor(SAMPLED, dtype=dtype)
    sent = make_clipper(space, CPU)(sampled[:, None]).numpy()
    assert sent.dtype == space.dtype
    wanted = [exactly(x, int(space.low[0]), int(space.high[0])) for x in sampled.tolist()]
    assert [int(x) for x in sent[:, 0]] == wanted
    assert all(space.contains(row) for row in sent)


def test_bounds_of_each_dimension() -> None:
    low, high = np.array([0, -3, -128], np.int8), np.array([5, -1, 127], np.int8)
    sent = make_clipper(Box(low, high, dtype=np.int8), CPU)(torch.tensor([[9.0, 9.0, 200.0], [-300.0, -300.0, -300.0]]))
    assert sent.tolist() == [[5, -1, 127], [0, -3, -128]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_boxes_of_floats_are_clipped_as_numpy_clips(dtype: Any) -> None:
    sampled = torch.tensor(SAMPLED, dtype=torch.float64)[:, None]
    for low, high in ((-1.0, 1.0), (20.0, 30.0), (-np.inf, 2.0), (-1.0, np.inf)):
        sent = make_clipper(Box(low, high, (1,), dtype), CPU)(sampled).numpy()
        most = np.finfo(dtype).max
        wanted = np.clip(sampled.numpy(), max(low, -most), min(high, most)).astype(dtype)
        np.testing.assert_array_equal(sent, wanted)


def test_a_box_of_single_numbers() -> None:
    sent = make_clipper(Box(0, 5, (), np.int16), CPU)(torch.tensor([-3.0, 2.6, 9.0]))
    assert (sent.tolist(), sent.dtype) == ([0, 3, 5], torch.int16)


def test_rescaled_and_squashed() -> None:
    space = Box(np.array([20.0, -1.0], np.float32), np.array([30.0, 3.0], np.float32))
    sampled = torch.tensor([[-5.0, -1.0], [-1.0, 0.0], [0.5, 0.5], [1.0, 7.0]])
    wanted = [[20.0, -1.0], [20.0, 1.0], [27.5, 2.0], [30.0, 3.0]]
    assert make_clipper(space, CPU, "rescale")(sampled).tolist() == wanted
    squashed = make_clipper(space, CPU, "squash")(sampled).numpy()
    np.testing.assert_allclose(squashed, [25, 1] + np.tanh(sampled.numpy()) * [5, 2], rtol=1e-6)
    sent = make_clipper(Box(0, 10, (1,), np.uint8), CPU, "rescale")(torch.tensor([[-9.0], [-0.4], [9.0]]))
    assert sent.tolist() == [[0], [3], [10]]


REFUSED = [
    (Box(-1, np.inf, (1,)), "rescale", "finite bounds"),
    (spaces.Discrete(3), "squash", "needs a Box with finite bounds, got Discrete"),
    (Box(-1, 1, (1,)), "squish", "did you mean 'squash'"),
    (Box(-1, 1, (1,)), None, "actions must be one of"),
    (Box(-1, 1, ()), "clip", "one-dimensional Box"),
    (spaces.MultiDiscrete([[2, 3]]), "clip", "one-dimensional Box, a Discrete"),
    (spaces.MultiDiscrete([2, 3]), "rescale", "needs a Box with finite bounds"),
    (spaces.MultiBinary((2, 2)), "clip", "MultiBinary of one dimension, got"),
    (spaces.Discrete(3, start=1), "clip", "starts at 0"),
]


@pytest.mark.parametrize(("space", "actions", "message"), REFUSED)
def test_unsupported_spaces_are_refused(space: Any, actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distribution_for(space, actions)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.3, 0.4), (-4.0, 2.0)])
def test_the_squashed_density_integrates_to_the_probability(loc: float, scale: float) -> None:
    """Over the actions in (-1, 1): the trapezoidal rule against normal probabilities."""
    parameters = (torch.tensor([loc], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64))
    distribution = SquashedGaussian(1)
    for low, high in ((-0.9, 0.9), (-0.5, 0.99), (0.2, 0.3)):
        a = torch.linspace(low, high, 200_001, dtype=torch.float64)
        density = distribution.log_prob(parameters, a.atanh()[:, None]).exp()
        ends = (np.arctanh([low, high]) - loc) / (scale * math.sqrt(2))
        wanted = 0.5 * (math.erf(ends[1]) - math.erf(ends[0]))
        assert float(torch.trapezoid(density, a)) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_the_squashed_log_probability_where_tanh_is_rounded_to_one() -> None:
    """log(1 - tanh^2 u) tends to log 4 - 2 |u|; several dimensions add up."""
    parameters = (torch.zeros(2, dtype=torch.float64), torch.full((2,), 30.0, dtype=torch.float64))
    u = torch.tensor([30.0, -40.0], dtype=torch.float64)
    normal = sum(-0.5 * (x / 30) ** 2 - math.log(30) - 0.5 * math.log(2 * math.pi) for x in (30.0, 40.0))
    got = SquashedGaussian(2).log_prob(parameters, u)
    assert float(got) == pytest.approx(normal + 2 * (30 + 40) - 2 * math.log(4), rel=1e-12)


class Knob(gymnasium.Env[Any, Any]):
    """Rewards actions near 27; records the actions."""

    got: list[np.ndarray] = []  # noqa: RUF012

    def __init__(self, length: int = 3, space: Any = None) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(20.0, 30.0, (1,), np.float32) if space is None else space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.got.append(np.array(action))
        return np.zeros(1, np.float32), -abs(float(action[0]) - 27), False, False, {}


def set_nothing(env: Any, task: Any) -> None:
    pass


def learner(actions: str, space: Any = None, horizon: int = 5, **kwargs: Any) -> MetaLearner:
    Knob.got.clear()
    tasks = GymDistribution(Knob, LENGTH, horizon=horizon, set_task=set_nothing, env_kwargs={"space": space})
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    source = ReinforcementLearning(tasks, policy, episodes=10, actions=actions, baseline="time")
    return MetaLearner(source, "maml", meta_batch_size=2, **kwargs)


def test_clipping_all_actions_warns() -> None:
    with pytest.warns(UserWarning, match=r"100% of the first actions in dimension 0.*Box\(20.*actions='rescale'"):
        learner("clip").learn(1)


@pytest.mark.parametrize("actions", ["rescale", "squash"])
def test_learning_in_a_distant_box(actions: str) -> None:
    """From 25 on average to near 27: as the mean over all actions sent in the first and the last iterations."""
    one = learner(actions, learning_rate=0.05)
    before = one.evaluate(num_tasks=4, steps=0).mean[0]
    one.learn(30)
    assert one.evaluate(num_tasks=4, steps=0).mean[0] > before + 2


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint64, np.int64])
def test_integer_boxes_in_training(dtype: Any, actions: str) -> None:
    learner(actions, Box(0, 3, (1,), dtype)).learn(1)
    assert {x.dtype for x in Knob.got} == {np.dtype(dtype)}
    assert {int(x[0]) for x in Knob.got} == {0, 1, 2, 3}


class Dial(FunctionalEnv):
    """Observes the action it got."""

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Box(-1, 2, (1,), np.int8)

    def initial(self, task: Any, noise: Tensor) -> Tensor:
        return torch.zeros(len(task["x"]), 1)

    def transition(self, state: Tensor, action: Tensor, task: Any, noise: Tensor) -> Tensor:
        return 1.0 * action

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: Any) -> Tensor:
        return next_state[:, 0] / 2

    def observation(self, state: Tensor, task: Any) -> Tensor:
        return state


class Wide(nn.Module):
    """Actions of standard deviation 3 for any observation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.mean.expand(len(obs), -1)
        return loc, torch.full_like(loc, 3.0)


@pytest.mark.parametrize("actions", ACTIONS)
def test_functional_environments_get_whole_float32_numbers(actions: str) -> None:
    tasks = FunctionalDistribution(Dial(), spaces.Dict({"x": Box(0, 1, (), np.float32)}), horizon=30)
    source = ReinforcementLearning(tasks, Wide(), episodes=6, actions=actions)
    params = {"mean": torch.zeros(2, 1)}
    rollout = source.sample(2, np.random.default_rng(0)).rollout(params)
    sampled, seen = rollout.actions[:, :, :-1, 0].double().numpy(), rollout.episodes.obs[:, :, 1:, 0].numpy()
    inside = {"clip": lambda a: a, "rescale": lambda a: 0.5 + 1.5 * a, "squash": lambda a: 0.5 + 1.5 * np.tanh(a)}
    np.testing.assert_array_equal(seen, np.clip(inside[actions](sampled), -1, 2).round())
    np.testing.assert_array_equal(rollout.episodes.rewards[:, :, :-1].numpy(), seen / 2)
    assert set(np.unique(seen)) == {-1, 0, 1, 2}


def test_films_send_actions_as_training_does() -> None:
    params = {"mean": torch.tensor([200.0])}
    act = film_actor(Wide(), params, Box(-10, 10, (1,), np.int8))
    assert act(np.zeros(1)).tolist() == [10]
    act = film_actor(Wide(), {"mean": torch.tensor([0.5])}, Box(20, 30, (1,)), "rescale")
    assert act(np.zeros(1)).tolist() == [27.5]


def test_vector_environments_refuse_actions_that_would_wrap() -> None:
    kwargs = {"space": Box(-10, 10, (1,), np.int8)}
    tasks = GymDistribution(Knob, LENGTH, horizon=3, set_task=set_nothing, env_kwargs=kwargs)
    vec = tasks.make_vec({"length": [1]}, 1)
    vec.reset(seed=0)
    with pytest.raises(ValueError, match="actions must fit into int8, got 200"):
        vec.step(np.array([[200]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vec.step(np.array([[7]]))


def test_discrete_actions_are_sent_as_they_are() -> None:
    tasks = GymDistribution(Countdown, LENGTH, horizon=3, set_task=set_length)
    action = torch.tensor([0, 1])
    assert make_clipper(tasks.action_space, CPU)(action) is action


def test_a_change_of_actions_reaches_rollouts_and_losses() -> None:
    """Changing `actions` after training gives the same as a source created with them."""
    space = Box(0.0, 4.0, (1,), np.float32)
    one, other = learner("clip", space).learn(1), learner("squash", space)
    other.params = one.params
    one.source.actions = "squash"  # type: ignore[attr-defined]
    params = {name: leaf.expand(2, *leaf.shape) for name, leaf in one.params.items()}
    batches = [x.source.sample(2, np.random.default_rng(0)).draw(params, "inner") for x in (one, other)]
    for name, leaf in batches[0].items():
        assert torch.equal(leaf, batches[1][name]), name
    assert np.array_equal(*(x.evaluate(num_tasks=2, steps=2).scores for x in (one, other)))


RANGES = [
    (Box(20.0, 30.0, (2,)), r"dimension 0, 100% of N\(0, 1\).*outside and clipped. Pass actions='rescale'"),
    (Box(np.float32([-1, 20]), np.float32([1, np.inf])), r"dimension 1, 100% of N\(0, 1\).*TransformAction"),
    (Box(-0.01, 0.01, (1,)), r"99% of N\(0, 1\)"),
    (Box(-np.inf, -5.0, (1,)), r"100% of N\(0, 1\)"),
    (Box(-100.0, 100.0, (1,)), r"is 200 wide in dimension 0, but policies start within \[-2, 2\]. Pass actions"),
    (Box(0, 5, (1,), np.uint8), "is of integers.*Use a Discrete"),
    (Box(-1, 1, (3,), np.int64), "is of integers"),
    (Box(0, 1, (1,), bool), "is of integers"),
]


@pytest.mark.parametrize(("space", "message"), RANGES)
def test_unusual_action_bounds_warn(space: Box, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        warn_of_action_range(space)


def test_usual_bounds_are_fine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for space in (Box(-1.0, 1.0, (6,)), Box(-2.0, 2.0, (1,)), Box(0.0, 1.0, (1,)), Box(-np.inf, np.inf, (2,))):
            warn_of_action_range(space)
        for name in ENVS:
            warn_of_action_range(make_distribution(name).action_space)
