"""The reinforcement-learning oracle: a draw is a rollout, a loss is a surrogate.

Every draw rolls out afresh with the parameters it is given, so D_in, D_o and D_h are independent and every inner step
uses trajectories of the *current* adapted policy.
"""

import functools
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import NoneType
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.errors import check_choice, check_has, check_int, check_real, check_type
from metarl.execution import Execution
from metarl.functional import call
from metarl.memory import check_fits, itemsize, space_numbers
from metarl.rl.actor import Actor
from metarl.rl.advantages import (
    Baseline,
    LinearBaseline,
    ZeroBaseline,
    discounted_sums,
    generalized_advantages,
    normalized,
)
from metarl.rl.distributions import distribution_for
from metarl.rl.policy import policy_params
from metarl.rl.rollout import Rollout
from metarl.rl.streams import Streams
from metarl.rl.surrogates import Surrogate, make_surrogate, reinforce
from metarl.types import Batch, Params, Role, Task, TaskDistribution

BASELINES: dict[str, Baseline] = {
    "linear": LinearBaseline(),
    "time": LinearBaseline(observations=False),
    "none": ZeroBaseline(),
}


@dataclass
class ReinforcementLearning:
    """Where reinforcement-learning tasks come from: a distribution of environments, and the policy that acts in them.

    `dataclasses.replace(source, distribution=..., episodes=...)` gives the same with something changed.

    Args:
        distribution: the tasks.
        policy: a module whose `forward(obs [B, ...])` returns the parameters of the action distribution:
            `(loc, scale)`, each `[B, A]`, for Box actions, `(logits [B, A],)` for Discrete ones. Its parameters are
            only the starting point; they are never changed.
        episodes: E, episodes for each task and draw.
        surrogate: `ratio`, `dice`, `loaded_dice` or `reinforce`: see `metarl.rl.surrogates` for their second
            derivatives.
        dice_lambda: of `loaded_dice`, in [0, 1]: 0 is `ratio`, 1 is `dice`.
        discount: gamma.
        gae_lambda: lambda of generalised advantage estimation.
        baseline: `linear`, `time` (no observations: for images) or `none`; fitted per task and draw, never across.
        normalize_advantages: to mean 0 and standard deviation 1 per task and draw. Inner step sizes of the literature
            assume it; turn it off (and the baseline) where estimates must be unbiased.
        bootstrap: whether the time limit only cuts episodes off, so that the value of the last observation stands for
            the rest; by default the horizon is part of the task (see `metarl.rl.advantages`).
        device: where parameters live and environments run.
        execution: how derivatives are computed (see `metarl.execution`); by default they are traced.

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> import numpy as np
        >>> from agents import make_policy
        >>> from envs import Navigation
        >>> tasks = Navigation(horizon=10)
        >>> policy = make_policy(tasks.observation_space, tasks.action_space)
        >>> source = ReinforcementLearning(tasks, policy, episodes=2)
        >>> source.sample(3, np.random.default_rng(0)).num_tasks
        3
    """

    distribution: TaskDistribution
    policy: nn.Module
    _: KW_ONLY
    episodes: int = 20
    surrogate: str = "ratio"
    dice_lambda: float | None = None
    discount: float = 0.99
    gae_lambda: float = 1.0
    baseline: str = "linear"
    normalize_advantages: bool = True
    bootstrap: bool = False
    device: torch.device | str = "cpu"
    execution: Execution | None = None
    score_name: ClassVar[str] = "return"

    def __post_init__(self) -> None:
        methods = ("sample", "make_vec", "observation_space", "action_space", "horizon")
        check_has("distribution", self.distribution, methods, "a task distribution, as envs.Navigation()")
        check_type("policy", self.policy, nn.Module, "a torch.nn.Module, as agents.make_policy gives")
        check_type("execution", self.execution, (Execution, NoneType), "a metarl.execution.Execution or None")
        check_int("episodes", self.episodes)
        self.surrogate_loss = make_surrogate(self.surrogate, self.dice_lambda)
        check_choice("baseline", self.baseline, BASELINES)
        check_real("discount", self.discount, high=1.0, open_low=False)
        check_real("gae_lambda", self.gae_lambda, high=1.0, open_low=False)
        self.policy.to(self.device)
        self.actor = Actor(self.policy, distribution_for(self.distribution.action_space))
        self._execution = self.execution or Execution(trace=True)

    def initial_params(self) -> Params:
        """The policy's own values of the parameters its actions depend on."""
        leaf = next(self.policy.parameters())
        space = self.distribution.observation_space
        obs = np.zeros(space.shape or (), space.dtype)
        return policy_params(self.policy, torch.as_tensor(obs).to(leaf)[None])

    def check_size(self, num_tasks: int, argument: str = "num_tasks") -> None:
        """Raise a `ValueError` where a draw for so many tasks cannot fit into memory; `argument` is their name.

        Episodes may end early, so of long horizons only a part counts.
        """
        space, horizon = self.distribution.observation_space, self.distribution.horizon
        steps = max(min(horizon, 10_000), horizon // 1000)
        numbers = space_numbers(space) * itemsize(space) + 4 * (space_numbers(self.distribution.action_space) + 4)
        sizes = f"{argument} x episodes x horizon = {num_tasks} x {self.episodes} x {horizon}"
        check_fits(sizes, num_tasks * self.episodes * steps * numbers, bytes_each=1)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> "RLTasks":
        """`num_tasks` tasks of the distribution."""
        check_type("rng", rng, np.random.Generator, "a numpy.random.Generator")
        return self.tasks(self.distribution.sample(check_int("num_tasks", num_tasks), rng), rng)

    def tasks(self, task: Task, rng: np.random.Generator) -> "RLTasks":
        """The given tasks, every array `[T, ...]`; `rng` seeds their randomness."""
        number = len(next(iter(task.values())))
        return RLTasks(self, task, Streams(int(rng.integers(2**63)), number, self.device))


class RLTasks:
    """A batch of reinforcement-learning tasks: T x E environments and a stream of random numbers for each task."""

    def __init__(self, source: ReinforcementLearning, task: Task, streams: Streams) -> None:
        self.num_tasks = len(next(iter(task.values())))
        self.task = task
        self.execution, self.execution_key = source._execution, source.actor
        self._source, self._streams = source, streams

    @functools.cached_property
    def _vec(self) -> VectorEnv[Any, Any, Any]:
        source = self._source
        vec = source.distribution.make_vec(self.task, source.episodes, source.device)
        if hasattr(vec, "threads"):
            vec.threads = torch.get_num_threads()
        return vec

    def shard(self, first: int, last: int) -> "RLTasks":
        """Tasks `first` to `last` - 1, which draw what they would have drawn as part of the whole, from the start."""
        task = {name: value[first:last] for name, value in self.task.items()}
        return RLTasks(self._source, task, self._streams.shard(first, last))

    def rollout(self, params: Params) -> Rollout:
        """One episode in every environment at stacked `params`."""
        source, actor = self._source, self._source.actor
        horizon, episodes, dtype = source.distribution.horizon, source.episodes, next(iter(params.values())).dtype
        noise = actor.noise(self._vec, self._streams, horizon, episodes, dtype)
        return actor.rollout(self._vec, params, noise)

    def draw(self, params: Params, role: Role) -> Batch:
        """Roll out at stacked `params` and estimate advantages; leaves are `[T, E, H, ...]`."""
        source = self._source
        episodes, actions, log_probs = self.rollout(params)
        values, last_values = BASELINES[source.baseline].values(episodes, source.discount, source.bootstrap)
        advantages = generalized_advantages(
            episodes.rewards, values, last_values, episodes.mask, source.discount, source.gae_lambda
        )
        scale = torch.ones_like(episodes.rewards[:, 0, 0])  # [T]
        if source.normalize_advantages:
            advantages, scale = normalized(advantages, episodes.mask)
        returns = discounted_sums(episodes.rewards, source.discount)[..., 0]  # [T, E]
        return {
            "obs": episodes.obs,
            "actions": actions,
            "log_probs": log_probs,
            "advantages": advantages,
            "mask": episodes.mask,
            "rewards": episodes.rewards,
            "objective": -returns / (source.distribution.horizon * scale[:, None]),
        }

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The surrogate loss of one task, per step of the horizon: minus the return's gradient at first order."""
        return self._surrogate_loss(self._source.surrogate_loss, params, batch)

    def frozen_loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss whose gradient is the inner step's with its data held fixed: log-probabilities times advantages."""
        return self._surrogate_loss(reinforce, params, batch)

    def log_likelihood(self, params: Params, batch: Batch) -> Tensor:
        """The log-probability of each of one task's episodes `[E]`, up to what does not depend on `params`."""
        return (self._log_probs(params, batch) * batch["mask"]).sum(-1)

    def objective(self, batch: Batch) -> Tensor:
        """What the loss's gradient descends, sampled by each of one task's episodes `[E]`.

        Minus the discounted return per step of the horizon; in units of the advantages' standard deviation where they
        are normalised.
        """
        return batch["objective"]

    def _surrogate_loss(self, surrogate: Surrogate, params: Params, batch: Batch) -> Tensor:
        log_probs = self._log_probs(params, batch)
        return surrogate(log_probs, batch["log_probs"], batch["advantages"], batch["mask"])

    def _log_probs(self, params: Params, batch: Batch) -> Tensor:
        """Of the actions of one task, `[E, H]`."""
        number, horizon = batch["mask"].shape
        outputs = call(self._source.policy, params, batch["obs"].flatten(0, 1))
        outputs = tuple(x.view(number, horizon, *x.shape[1:]) for x in outputs)
        return self._source.actor.distribution.log_prob(outputs, batch["actions"])

    def score(self, params: Params, batch: Batch) -> Tensor:
        """The mean undiscounted return of one task's episodes."""
        return batch["rewards"].sum(-1).mean()

    def cost(self, batch: Batch) -> Mapping[str, int]:
        """Samples are trajectories, as in the theory; environment steps are what they took."""
        mask = batch["mask"]
        return {"samples": mask.shape[0] * mask.shape[1], "env_steps": int(mask.sum(dtype=torch.float64).item())}
