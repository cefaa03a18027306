"""Tabular MDPs, small enough to enumerate all trajectories (see `enumeration`), so that no answer needs sampling.

    J(logits) = V_0(0),    V_t(s) = sum_a pi(a | s) [R(s, a) + gamma sum_s' P(s' | s, a) V_{t+1}(s')],    V_H = 0

with the softmax policy of `policies.TabularSoftmax`. Episodes begin in state 0 and last `horizon` steps.
"""

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from metarl.envs.base import check_rng
from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.envs.rendering import AGENT, GREY, Canvas, Point
from metarl.errors import check_int
from metarl.functional_env import Frame, FunctionalEnv, TaskTensors
from metarl.types import Params, TaskParams


class TabularEnv(FunctionalEnv):
    """The functions; the state is an index `[n, 1]`, observed as an integer `[n]`.

    `task["transitions"]` is P `[n, S, A, S]`, `task["rewards"]` is R `[n, S, A]`. No state is terminal.
    """

    transition_noise = 1

    def __init__(self, num_states: int, num_actions: int) -> None:
        self.num_states = check_int("num_states", num_states)
        self.num_actions = check_int("num_actions", num_actions)
        self.observation_space = Discrete(num_states)
        self.action_space = Discrete(num_actions)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """State 0."""
        return torch.zeros(len(task["rewards"]), 1, device=task["rewards"].device)

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """A next state drawn with the probabilities `P[s, a]`, by inverting their cumulative sum."""
        steps = _row(task["transitions"], state, action).cumsum(-1)[:, :-1]  # [n, S - 1]
        return (noise >= steps).sum(-1, keepdim=True).to(state.dtype)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """`R[s, a]`."""
        return _row(task["rewards"], state, action).float()

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """The state's number, int64."""
        return state[:, 0].long()

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """The states on a circle, the current one in blue."""
        canvas = Canvas(-1.5, 1.5)
        for s in range(self.num_states):
            angle = 2 * math.pi * s / self.num_states
            here = s == int(state)
            canvas.disc(Point(math.cos(angle), math.sin(angle)), 0.2 if here else 0.12, AGENT if here else GREY)
        return canvas.frame()


def _row(table: Tensor, state: Tensor, action: Tensor) -> Tensor:
    return table[torch.arange(len(state), device=state.device), state[:, 0].long(), action]


class TabularMDP(FunctionalDistribution):
    """Random MDPs: transition probabilities uniform on the simplex (Dirichlet), rewards standard normal.

    Args:
        num_states: S.
        num_actions: A.
        horizon: H, steps per episode.

    >>> TabularMDP(num_states=4).sample(2, np.random.default_rng(0))["transitions"].shape
    (2, 4, 2, 4)
    """

    def __init__(self, num_states: int = 2, num_actions: int = 2, horizon: int = 3) -> None:
        env = TabularEnv(num_states, num_actions)
        shape = (num_states, num_actions)
        space: dict[str, gymnasium.Space[Any]] = {
            "transitions": Box(0.0, 1.0, (*shape, num_states), np.float64),
            "rewards": Box(-np.inf, np.inf, shape, np.float64),
        }
        super().__init__(env, gymnasium.spaces.Dict(space), horizon)
        self.num_states, self.num_actions = num_states, num_actions

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """`num_tasks` random MDPs: `transitions` `[T, S, A, S]`, then `rewards` `[T, S, A]`, float64."""
        shape = (check_int("num_tasks", num_tasks), self.num_states, self.num_actions)
        transitions = check_rng(rng).dirichlet(np.ones(self.num_states), size=shape)
        return {"transitions": transitions, "rewards": rng.normal(size=shape)}

    def example(self) -> TaskParams:
        """The fixed two-state problem.

        Raises:
            ValueError: for another number of states or actions.
        """
        if (self.num_states, self.num_actions) != (2, 2):
            raise ValueError(f"task_seed must be given with {self.num_states} states and {self.num_actions} actions")
        return two_state_problem().task

    def expected_return(self, params: Params, task: TaskTensors, discount: float = 1.0) -> Tensor:
        """J of ONE task by dynamic programming, in the precision of `params["logits"]` `[S, A]`."""
        return self.values(params, task, discount)[0][0]

    def values(self, params: Params, task: TaskTensors, discount: float = 1.0) -> list[Tensor]:
        """The values V_t(s) `[S]` for t = 0 ... H; the last ones are zero."""
        policy = params["logits"].softmax(-1)
        rewards, transitions = (task[key].to(policy.dtype) for key in ("rewards", "transitions"))
        found = [policy.new_zeros(self.num_states)]
        for _ in range(self.horizon):
            found.append((policy * (rewards + discount * (transitions @ found[-1]))).sum(-1))
        return found[::-1]

    def policy_gradient(
        self, params: Params, task: TaskTensors, discount: float = 1.0, discount_weights: bool = True
    ) -> Params:
        """`sum_t c_t sum_s P(s_t = s) sum_a Q_t(s, a) grad pi(a | s)` of ONE task, with discounted Q_t.

        With the weights c_t = discount^t this is the gradient of the discounted return (the policy gradient theorem).
        Without them, c_t = 1, this is what most implementations estimate.
        """
        policy = params["logits"].softmax(-1)
        rewards, transitions = (task[key].to(policy.dtype) for key in ("rewards", "transitions"))
        later = self.values(params, task, discount)[1:]
        visits = torch.eye(self.num_states, dtype=policy.dtype)[0]  # P(s_t = s)
        total, weight = torch.zeros_like(policy), 1.0
        for value in later:
            q = rewards + discount * (transitions @ value)  # [S, A]
            advantage = q - (policy * q).sum(-1, keepdim=True)
            total = total + weight * visits[:, None] * policy * advantage  # grad of a softmax
            visits = torch.einsum("s,sa,saz->z", visits, policy, transitions)
            weight *= discount if discount_weights else 1.0
        return {"logits": total}

    def plot_task(self, ax: Any, task: TaskParams) -> None:
        """The rewards as a label, a row for each state; there are too many probabilities to show."""
        ax.set_xlabel(f"rewards {np.round(task['rewards'], 2).tolist()}", fontsize=8)


class TabularProblem(NamedTuple):
    """One MDP and a policy on it."""

    tasks: TabularMDP
    task: TaskParams  # without a leading T
    logits: npt.NDArray[np.float64]  # [S, A]


def two_state_problem() -> TabularProblem:
    """The fixed problem P3 of the certificates: two states, two actions, three steps, a non-uniform policy.

    It is drawn from seed 1: all transitions first, then the rewards, then the logits, half of normal numbers. The
    Hessian of its return has the norm 0.096645.
    """
    rng = np.random.default_rng(1)
    transitions, rewards = rng.dirichlet(np.ones(2), size=(2, 2)), rng.normal(size=(2, 2))
    task: TaskParams = {"transitions": transitions, "rewards": rewards}
    return TabularProblem(TabularMDP(), task, 0.5 * rng.normal(size=4).reshape(2, 2))
