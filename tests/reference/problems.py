"""Small problems in float64, most of them with known answers.

P1 and P2 are the problems whose published-style numbers the tests quote; the others are there to be generic: a network
whose support and query sets differ, and two reinforcement-learning tasks, one with each kind of action.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from metarl import make_method
from metarl.agents import make_policy
from metarl.envs import FunctionalDistribution, FunctionalEnv, Navigation, PointVelocity
from metarl.rl import ReinforcementLearning
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.particles import Particles, ParticleTasks
from metarl.theory import quadratics as library
from metarl.theory.logistic import logistic_tasks, six_logistic_tasks, smoothness
from metarl.theory.quadratics import quadratic_loss, quadratic_tasks, random_quadratics
from metarl.types import Batch, Params, TaskBatch

DOUBLE = torch.float64


class ReferenceProblem(NamedTuple):
    """A batch of tasks, new at every construction, and where their updates start."""

    tasks: TaskBatch
    params: Params


def quadratics_1d(curvatures: list[float], centres: list[float]) -> FiniteSumTaskBatch:
    """P1: `a (w - c)^2 / 2` for every pair."""
    return quadratic_tasks(library.quadratics_1d(curvatures, centres))


def quadratics() -> ReferenceProblem:
    """Three random quadratics in four dimensions, eigenvalues in [0.2, 1], four points; queries with other centres."""
    rng = np.random.default_rng(1)
    problem = random_quadratics(rng, 3, 4, (0.2, 1.0))
    other = problem._replace(centres=torch.as_tensor(rng.normal(size=(3, 4))))
    support, query = (quadratic_tasks(which, points=4, noise=0.5, rng=rng).support for which in (problem, other))
    return ReferenceProblem(
        FiniteSumTaskBatch(quadratic_loss, support, query), {"w": torch.as_tensor(rng.normal(size=4))}
    )


def logistic_smoothness() -> float:
    """P2's L, 0.52758."""
    return smoothness(six_logistic_tasks())


def logistic() -> ReferenceProblem:
    """P2 at a random point: support and query sets are the same."""
    tasks = logistic_tasks(six_logistic_tasks())
    return ReferenceProblem(tasks, {"w": torch.as_tensor(np.random.default_rng(5).normal(size=5))})


def network(params: Params, x: Tensor) -> Tensor:
    """A tanh network with one hidden layer, `[n, 1]` to `[n]`."""
    hidden = torch.tanh(x @ params["weight_1"] + params["bias_1"])
    return hidden @ params["weight_2"] + params["bias_2"]


def network_loss(params: Params, batch: Batch) -> Tensor:
    """The mean squared error."""
    return (network(params, batch["x"]) - batch["y"]).square().mean()


def regression() -> ReferenceProblem:
    """Three sinusoids, a network of ten parameters; five points to adapt on, seven others for the outer loss."""
    rng = np.random.default_rng(2)
    amplitude, phase = rng.uniform(0.5, 2, (3, 1)), rng.uniform(0, 3, (3, 1))

    def data(n: int) -> Batch:
        x = rng.uniform(-2, 2, (3, n))
        y = amplitude * np.sin(x + phase)
        return {"x": torch.as_tensor(x[..., None]), "y": torch.as_tensor(y)}

    shapes = {"weight_1": (1, 3), "bias_1": (3,), "weight_2": (3,), "bias_2": ()}
    params = {k: torch.as_tensor(rng.normal(size=shape), dtype=DOUBLE) for k, shape in shapes.items()}
    return ReferenceProblem(FiniteSumTaskBatch(network_loss, data(5), data(7)), params)


class SignedSteps(FunctionalEnv):
    """A walk on the line, one step left or right; the reward is the position times the task's direction."""

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Discrete(2)

    def initial(self, task, noise):
        return torch.zeros(len(task["direction"]), 1)

    def transition(self, state, action, task, noise):
        return state + 0.2 * (2.0 * action[:, None] - 1.0)

    def reward(self, state, action, next_state, task):
        return next_state[:, 0] * task["direction"]

    def observation(self, state, task):
        return state

    def terminal(self, state, task):
        return state[:, 0].abs() > 0.5


def distribution(name: str) -> FunctionalDistribution:
    """Short-lived environments: one with box actions, one that never ends early, one with discrete actions."""
    if name == "discrete":
        space = gymnasium.spaces.Dict({"direction": Box(-1, 1, (), np.float32)})
        return FunctionalDistribution(SignedSteps(), space, horizon=5)
    return {"navigation": Navigation, "point_velocity": PointVelocity}[name](horizon=5)


@functools.cache
def source(name: str, surrogate: str = "ratio") -> ReinforcementLearning:
    """A source in float64 with a network of about twenty parameters."""
    tasks = distribution(name)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [3]}).double()
    return ReinforcementLearning(tasks, policy, episodes=3, surrogate=surrogate)


def reinforcement_learning(name: str) -> ReferenceProblem:
    """Two tasks; the weights are away from their initialisation, which is nearly flat."""
    rng = np.random.default_rng(3)
    params = {k: v + 0.3 * torch.as_tensor(rng.normal(size=v.shape)) for k, v in source(name).initial_params().items()}
    return ReferenceProblem(source(name).sample(2, rng), params)


def with_particles(new: Callable[[], ReferenceProblem], particles: int) -> Callable[[], ReferenceProblem]:
    """The same tasks for several particles, which start at different points."""

    def made() -> ReferenceProblem:
        tasks, params = new()
        rng = np.random.default_rng(6)
        starts = {k: v + 0.3 * torch.as_tensor(rng.normal(size=(particles, *v.shape))) for k, v in params.items()}
        return ReferenceProblem(ParticleTasks(tasks, particles), starts)

    return made if particles else new


def suit(outer: str, source: Any, particles: int = 3) -> Any:
    """The source itself, or with particles at different points if the update needs them."""
    if not make_method(outer).needs_particles:
        return source
    rng, start = np.random.default_rng(6), source.initial_params()
    starts = [
        {k: v + 0.1 * torch.as_tensor(rng.normal(size=v.shape)).to(v) for k, v in start.items()}
        for _ in range(particles)
    ]
    return Particles(source, starts)


PROBLEMS: dict[str, Callable[[], ReferenceProblem]] = {
    "quadratics": quadratics,
    "logistic": logistic,
    "regression": regression,
    "navigation": functools.partial(reinforcement_learning, "navigation"),
    "discrete": functools.partial(reinforcement_learning, "discrete"),
}
