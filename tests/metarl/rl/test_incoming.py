"""Return values of users' vector environments: errors name what is wrong, and where a NaN or an infinity came in."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl import MetaLearner, NonFiniteError
from metarl.agents import make_policy
from metarl.envs import FunctionalDistribution, FunctionalEnv, GymDistribution
from metarl.envs.vector import AUTORESET
from metarl.processes import Processes
from metarl.rl import ReinforcementLearning
from tests.envs.toy_envs import LENGTH, Answering, set_length

pytestmark = pytest.mark.usefixtures("unrecorded")

T, E, H = 3, 2, 6
FLOATS, BYTES, CHOICE = Box(-9.0, 9.0, (2,), np.float32), Box(0, 255, (2,), np.uint8), Discrete(4)


class Vec(VectorEnv[Any, Any, Any]):
    """Correct return values, after `change(step, values)`; step 0 is `reset`."""

    metadata = AUTORESET
    single_action_space = Discrete(2)

    def __init__(self, number: int, space: Any, change: Callable[[int, list[Any]], Any], as_torch: bool) -> None:
        self.num_envs, self.single_observation_space = number, space
        self.change, self.as_torch, self.steps = change, as_torch, 0

    def answer(self) -> Any:
        n, space = self.num_envs, self.single_observation_space
        last = self.steps >= H
        parts: list[Any] = [np.ones((n, *space.shape), space.dtype)]
        if self.steps:
            parts += [np.ones(n), np.zeros(n, bool), np.full(n, last)]
        if self.as_torch:
            parts = [torch.from_numpy(part) for part in parts]
        return self.change(self.steps, [*parts, {}])

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.steps = 0
        return self.answer()

    def step(self, actions: Any) -> Any:
        self.steps += 1
        return self.answer()


class VecTasks:
    space, action_space, horizon = spaces.Dict({"x": Box(0, 1, (), np.float32)}), Discrete(2), H

    def __init__(self, observation_space: Any, change: Callable[[int, list[Any]], Any], as_torch: bool = False) -> None:
        self.observation_space, self.change, self.as_torch = observation_space, change, as_torch

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"x": rng.random(num_tasks).astype(np.float32)}

    def make(self, task: Any) -> Any:
        raise NotImplementedError

    def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Vec:
        return Vec(len(task["x"]) * episodes, self.observation_space, self.change, self.as_torch)


def learner(tasks: Any, **kwargs: Any) -> MetaLearner:
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    source = ReinforcementLearning(tasks, policy, episodes=E, baseline="time")
    return MetaLearner(source, "maml", meta_batch_size=T, inner_lr=0.1, **kwargs)


def at(step: int, place: int, value: Any) -> Callable[[int, list[Any]], Any]:
    """At `step`, replace one of the returned values by `value`, or by `value(returned)`."""

    def change(now: int, parts: list[Any]) -> Any:
        if now == step:
            parts[place] = value(parts[place]) if callable(value) else value
        return tuple(parts)

    return change


def leave(now: int, parts: list[Any]) -> Any:
    return tuple(parts)


N = T * E
BAD = [
    (FLOATS, at(0, 0, lambda x: x[:, :1]), r"observations must be elements of Box.*\(6, 2\), got float32 of shape"),
    (FLOATS, lambda now, parts: parts[0] if now == 0 else tuple(parts), r"reset must return.*got ndarray"),
    (FLOATS, lambda now, parts: tuple(parts[:4]) if now else tuple(parts), r"step 1: step must return.*tuple of 4"),
    (FLOATS, at(2, 0, lambda x: x[0]), r"Vec, step 2: observations must.*got float32 of shape \(2,\)"),
    (FLOATS, at(2, 0, None), "step 2: observations must.*got a NoneType"),
    (FLOATS, at(2, 1, np.ones((N, 1))), r"step 2: rewards must be .* of shape \(6,\), got float64 of shape \(6, 1\)"),
    (FLOATS, at(2, 1, 1.0), r"rewards must be numbers of shape \(6,\), got float64 of shape \(\)"),
    (FLOATS, at(2, 1, None), "rewards must be numbers.*got a NoneType"),
    (FLOATS, at(2, 1, ["1"] * N), "rewards must be numbers.*got <U1"),
    (FLOATS, at(2, 1, [[1.0], [1.0, 2.0]]), "rewards must be numbers.*got a list"),
    (FLOATS, at(2, 2, None), "terminated must be booleans"),
    (FLOATS, at(2, 3, np.zeros(N)), "truncated must be booleans.*got float64"),
    (FLOATS, at(2, 3, np.full(N, 2)), r"truncated must be booleans, got \[2\]"),
    (FLOATS, at(2, 3, False), r"truncated must be booleans of shape \(6,\), got bool of shape \(\)"),
    (BYTES, at(3, 0, np.full((N, 2), 0.5)), "got float64 of shape.*multiply images in \\[0, 1\\] by 255"),
    (BYTES, at(1, 0, np.tile([[300, -1]], (N, 1))), r"inside Box.*got \[300, -1\] in task 0, episode 0"),
    (CHOICE, at(4, 0, np.array([0, 1, 2, 4, 3, 1])), r"step 4: observations must lie.*Discrete\(4\), got 4 in task 1"),
    (CHOICE, at(4, 0, np.zeros(N)), "observations must.*got float64"),
]


@pytest.mark.parametrize(("space", "change", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_wrong_return_values_are_named(space: Any, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner(VecTasks(space, change)).learn(1)


@pytest.mark.parametrize("as_torch", [True, False])
@pytest.mark.parametrize("space", [FLOATS, BYTES, CHOICE])
def test_correct_return_values_and_lossless_types(space: Any, as_torch: bool) -> None:
    """Rewards of integers and flags of 0 and 1 are the same as floats and booleans."""

    def integers(now: int, parts: list[Any]) -> Any:
        if now:
            parts[1:4] = [part.to(torch.int64) if as_torch else part.astype(int) for part in parts[1:4]]
        return tuple(parts)

    trained = [learner(VecTasks(space, change, as_torch)).learn(2).params for change in (leave, integers)]
    assert all(torch.equal(trained[0][name], leaf) for name, leaf in trained[1].items())


def test_arrays_may_be_views() -> None:
    """Flipped arrays have negative strides, which torch does not support."""
    learner(VecTasks(FLOATS, at(2, 0, lambda x: x[::-1, ::-1]))).learn(1)


def test_floats_outside_their_bounds_warn() -> None:
    with pytest.warns(UserWarning, match=r"Vec: observations should lie inside Box\(-9"):
        learner(VecTasks(FLOATS, at(1, 0, lambda x: x + 20))).learn(1)


def put(env: int, value: float) -> Callable[[Any], Any]:
    """`value` in one environment."""

    def change(part: Any) -> Any:
        part[env] = value
        return part

    return change


STEP_SIZE = "smaller inner or outer step size"


@pytest.mark.parametrize("as_torch", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("place", "what", "step"), [(1, "reward", 4), (0, "observation", 3), (0, "observation", H)])
def test_non_finite_values_name_their_origin(place: int, what: str, step: int, value: float, as_torch: bool) -> None:
    tasks = VecTasks(FLOATS, at(step, place, put(3, value)), as_torch)  # environment 3 is episode 1 of task 1
    with pytest.raises(NonFiniteError) as caught:
        learner(tasks).learn(1)
    message = f"in the {what} of Vec in iteration 1, task 1, episode 1, step {step}; check the environment"
    assert message in str(caught.value)
    assert STEP_SIZE not in str(caught.value)


def test_the_first_non_finite_value_is_named() -> None:
    """A NaN in a reward at step 2 is named, not that in an observation at step 3, nor the actions that follow."""

    def change(now: int, parts: list[Any]) -> Any:
        return at(3, 0, put(0, np.nan))(now, list(at(2, 1, put(5, np.nan))(now, parts)))

    with pytest.raises(NonFiniteError, match="reward of Vec in iteration 1, task 2, episode 1, step 2"):
        learner(VecTasks(FLOATS, change)).learn(1)


def test_the_environment_is_named_by_its_class() -> None:
    step = (np.zeros(2, np.float32), np.nan, False, False, {})
    kwargs = {"space": FLOATS, "good": (np.zeros(2, np.float32), {}), "on_reset": None, "on_step": step}
    tasks = GymDistribution(Answering, LENGTH, horizon=9, set_task=set_length, env_kwargs=kwargs)
    with pytest.raises(NonFiniteError, match="reward of Answering in iteration 1, task 0, episode 0, step 3; check"):
        learner(tasks).learn(1)


def test_values_after_the_end_are_ignored() -> None:
    def with_end(junk: float) -> Callable[[int, list[Any]], Any]:
        def change(now: int, parts: list[Any]) -> Any:
            if now >= 2:
                parts[2][0] = True
            if now >= 3:
                parts[0][0] = parts[1][0] = junk
            return tuple(parts)

        return change

    trained = [learner(VecTasks(FLOATS, with_end(value))).learn(2).params for value in (0.0, np.nan)]
    assert all(torch.equal(trained[0][name], leaf) for name, leaf in trained[1].items())


class Faulty(FunctionalEnv):
    """Observes and pays x, the number of the step, but NaN at step `at`."""

    def __init__(self, space: Any, at: int = 3, what: str = "reward") -> None:
        self.observation_space, self.action_space = space, Box(-1.0, 1.0, (1,), np.float32)
        self.at, self.what = at, what

    def initial(self, task: Any, noise: Tensor) -> Tensor:
        return torch.zeros(len(task["x"]), 1)

    def transition(self, state: Tensor, action: Tensor, task: Any, noise: Tensor) -> Tensor:
        return state + 1

    def spoil(self, what: str, state: Tensor) -> Tensor:
        return torch.where(state == self.at, torch.nan, state) if what == self.what else state

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: Any) -> Tensor:
        return self.spoil("reward", next_state)[:, 0]

    def observation(self, state: Tensor, task: Any) -> Tensor:
        if isinstance(self.observation_space, Discrete):
            return state[:, 0].long()
        return self.spoil("observation", state)


LINE = Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_functional_environments_too(what: str) -> None:
    tasks = FunctionalDistribution(Faulty(LINE, 3, what), VecTasks.space, H)
    with pytest.raises(NonFiniteError, match=f"the {what} of Faulty in iteration 1, task 0, episode 0, step 3; check"):
        learner(tasks).learn(1)


def test_functional_environments_outside_their_space() -> None:
    message = r"Faulty, step 2: observations must lie inside Discrete\(2\), got 2 in task 0"
    with pytest.raises(ValueError, match=message):
        learner(FunctionalDistribution(Faulty(Discrete(2)), VecTasks.space, H)).learn(1)


@pytest.mark.parametrize("kind", ["functional", "numpy"])
def test_actions_that_are_not_finite_are_named_before_they_are_sent(kind: str) -> None:
    name = {"functional": "Faulty", "numpy": "PendulumEnv"}[kind]
    gravity = spaces.Dict({"g": Box(5.0, 15.0, (), np.float32)})
    functional = FunctionalDistribution(Faulty(LINE, at=99), VecTasks.space, H)
    one = learner(functional if kind == "functional" else GymDistribution("Pendulum-v1", gravity, horizon=3))
    bias = next(leaf for key, leaf in one.params.items() if key.endswith("action_net.bias"))
    bias.fill_(3e38)
    log_std = next(leaf for key, leaf in one.params.items() if key.endswith("log_std"))
    log_std.fill_(88.0)  # the sum of the two overflows
    with pytest.raises(NonFiniteError, match=rf"the policy's action in {name} in iteration 1.*{STEP_SIZE}"):
        one.learn(1)


def test_tasks_are_numbered_over_all_processes() -> None:
    """The second of three processes has the second of three tasks."""
    tasks = VecTasks(FLOATS, at(4, 1, put(1, np.nan)))
    source = learner(tasks).source
    shard = source.sample(T, np.random.default_rng(0)).shard(1, 2)  # type: ignore[attr-defined]
    params = {name: leaf[None] for name, leaf in source.initial_params().items()}
    with pytest.raises(NonFiniteError, match="task 1, episode 1, step 4") as caught:
        shard.draw(params, "inner")
    assert (caught.value.task, caught.value.episode, caught.value.step) == (1, 1, 4)
    assert Processes().is_first


def test_numbers_that_overflow_later_do_not_blame_the_step_size() -> None:
    """Rewards of 1e38 are finite, but their sum is not."""

    def large(now: int, parts: list[Any]) -> Any:
        return at(now, 1, np.full(N, 3e38))(now, parts) if now else tuple(parts)

    with pytest.raises(NonFiniteError, match="it came from the data") as caught:
        learner(VecTasks(FLOATS, large)).learn(1)
    assert STEP_SIZE not in str(caught.value)


def test_parameters_and_gradients_keep_the_advice() -> None:
    assert STEP_SIZE in str(NonFiniteError("loss", 3, 7))
    error = NonFiniteError("the reward of X", 1, episode=2, step=3, advice="check").at(iteration=4, first_task=10)
    assert str(error) == "NaN or infinity in the reward of X in iteration 4, task 11, episode 2, step 3; check"
    assert (error.quantity, error.task, error.iteration) == ("the reward of X", 11, 4)


def test_gymnasium_s_own_vector_environments_pass() -> None:
    class Sync(VecTasks):
        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            made = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=H)] * (len(task["x"]) * episodes)
            return gymnasium.vector.SyncVectorEnv(made, **AUTORESET)

    with gymnasium.make("CartPole-v1") as env:
        tasks = Sync(env.observation_space, leave)
    assert learner(tasks).learn(1).iterations == 1
