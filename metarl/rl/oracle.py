"""The reinforcement-learning oracle: a draw is a rollout, a loss is a surrogate.

Every draw makes a new rollout at its parameters, so D_in, D_o and D_h are independent, and every inner step uses
trajectories of the *current* adapted policy.

`metarl.rl.surrogates` says what the gradient of the loss descends.
"""

import functools
import logging
import math
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.devices import pick_device
from metarl.diagnostics import REPORTED, RESIDUAL, SUCCESS, TOTAL
from metarl.errors import NonFiniteError, check_bool, check_choice, check_has, check_int, check_real, check_type
from metarl.functional_env import FunctionalEnvs
from metarl.memory import check_fits, itemsize, space_numbers
from metarl.network_check import check_second_derivatives
from metarl.rl.actions import warn_if_clipped
from metarl.rl.actor import Actor, Environments, make_environments
from metarl.rl.advantages import (
    Baseline,
    Episodes,
    LinearBaseline,
    ZeroBaseline,
    generalized_advantages,
    normalize,
    residual_variances,
    scale_to_one,
    subtract_other_folds,
)
from metarl.rl.distributions import distribution_for
from metarl.rl.normalization import NormalizedPolicy
from metarl.rl.policy import check_policy, policy_params, probe_observations
from metarl.rl.rollout import Rollout, array_length, lengthen
from metarl.rl.streams import Streams
from metarl.rl.sums import discounted_sums
from metarl.rl.surrogates import Losses, make_surrogate
from metarl.settings import FixedSettings
from metarl.tree import float_leaf
from metarl.types import Batch, Params, Role, TaskBatch, TaskDistribution, TaskParams
from metarl.wrappers import unwrap

log = logging.getLogger(__name__)

BaselineName = Literal["linear", "time", "none"]

BASELINES: dict[BaselineName, Baseline] = {
    "linear": LinearBaseline(),
    "time": LinearBaseline(observations=False),
    "none": ZeroBaseline(),
}

WIDEST = 128
"""If an observation has more numbers, the default baseline uses the time alone."""


_share = functools.partial(check_real, high=1.0, open_low=False)

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "episodes": check_int,
    "discount": _share,
    "gae_lambda": _share,
    **dict.fromkeys(("discount_weights", "cross_fit", "normalize_advantages", "bootstrap"), check_bool),
}
"""Settings that may change later, and their checks."""


@dataclass
class ReinforcementLearning(FixedSettings):
    """A source of reinforcement-learning tasks: a distribution of environments, and the policy that acts in them.

    `dataclasses.replace(source, distribution=..., episodes=...)` makes a source with some arguments changed.

    Args:
        distribution: the tasks.
        policy: a module whose `forward(obs [B, ...])` returns the parameters of the action distribution:
            `(loc, scale)`, each `[B, A]`, for Box actions, `(logits [B, A],)` for Discrete, MultiDiscrete and
            MultiBinary ones. Its parameters are only the starting point and never change.
        episodes: E, episodes for each task and draw.
        surrogate: `ratio`, `dice`, `loaded_dice` or `reinforce`: see `metarl.rl.surrogates` for their second
            derivatives.
        dice_lambda: of `loaded_dice`, in [0, 1]: 0 is `ratio`, 1 is `dice`.
        discount: gamma.
        discount_weights: whether the credit of step t gets the weight gamma^t, so that the gradient is that of the
            discounted return, for every surrogate. By default late steps count as much as early ones, as is usual.
        gae_lambda: lambda of generalised advantage estimation.
        baseline: `linear`, `time` (no observations) or `none`; fitted separately for each task and draw. The default is
            `linear`, or `time` if an observation has more than 128 numbers, as images do: the cost of `linear` grows
            with their square.
        cross_fit: whether each episode's baseline is fitted to the task's other episodes (five folds, or one episode
            at a time), so that the policy gradient is unbiased. With a single episode the baseline is then zero.
        normalize_advantages: to mean 0 and standard deviation 1 per task and draw; inner step sizes in the literature
            assume this. With `cross_fit`, advantages are only divided by the root of their mean square, which does not
            change the direction of a draw's gradient. Turn it off if the length must be unbiased, too.
        actions: for environments with a Box: `clip` them to the bounds; `rescale` them, so that [-1, 1] is the whole
            box; or `squash` them by tanh (see `metarl.rl.actions`).
        normalize_observations: by the running mean and variance of the observations in training, which are frozen
            during an iteration and in evaluations and saved with the learner; `policy` becomes a `NormalizedPolicy`.
        bootstrap: whether the time limit only cuts episodes, so that the value of the last observation replaces the
            rest; by default the horizon is part of the task (see `metarl.rl.advantages`).
        device: of the parameters and environments.

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> import numpy as np
        >>> from metarl.agents import make_policy
        >>> from metarl.envs import Navigation
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
    discount_weights: bool = False
    gae_lambda: float = 1.0
    baseline: BaselineName | None = None
    cross_fit: bool = False
    normalize_advantages: bool = True
    bootstrap: bool = False
    actions: str = "clip"
    normalize_observations: bool = False
    device: torch.device | str = "cpu"
    score_name: ClassVar[str] = "return"
    live: ClassVar[frozenset[str]] = frozenset(_CHECKS) | {"actions", "normalize_observations"}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CHECKS:
            _CHECKS[name](name, value)
        super().__setattr__(name, value)

    def __post_init__(self) -> None:
        methods = ("sample", "make_vec", "observation_space", "action_space", "horizon")
        check_has("distribution", self.distribution, methods, "a task distribution, such as envs.Navigation()")
        check_type("policy", self.policy, nn.Module, "a torch.nn.Module, such as agents.make_policy(...)")
        self.surrogate_loss = make_surrogate(self.surrogate, self.dice_lambda)
        self.chosen_baseline = self._choose_baseline()
        self._set_fixed(device=pick_device(self.device), policy=self._normalized_policy())
        actor = self._make_actor()
        self.policy.to(self.device)
        check_policy(self.policy, self.distribution.observation_space, self.distribution.action_space)
        self.actor = actor
        self._losses: Losses | None = None

    def _make_actor(self) -> Actor:
        self._has_acted = False
        distribution = distribution_for(self.distribution.action_space, self.actions)
        return Actor(self.policy, distribution, self.actions)

    @property
    def losses(self) -> Losses:
        """The functions of a task's rollouts; the same object as long as it reads the same things."""
        normalized = isinstance(self.policy, NormalizedPolicy)
        network = self.policy.network if isinstance(self.policy, NormalizedPolicy) else self.policy
        found = Losses(
            network, self.actor.distribution, self.surrogate_loss, self.distribution.horizon, normalized=normalized
        )
        if self._losses != found:
            self._losses = found
        return self._losses

    def _normalized_policy(self) -> nn.Module:
        """The policy with normalised observations if needed; `dataclasses.replace` may pass one that has them."""
        if isinstance(self.policy, NormalizedPolicy) != self.normalize_observations:
            if not self.normalize_observations:
                raise ValueError("normalize_observations must be True for a NormalizedPolicy, got False")
            return NormalizedPolicy(self.policy, self.distribution.observation_space)
        return self.policy

    def learn_from(self, tasks: TaskBatch, sum_everywhere: Callable[[Tensor], Tensor]) -> None:
        """Update the statistics of observations with those of the tasks, if observations are normalised."""
        drawn = unwrap(tasks)
        if isinstance(self.policy, NormalizedPolicy) and isinstance(drawn, RLTaskBatch) and drawn.seen is not None:
            self.policy.learn(sum_everywhere(drawn.seen))

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics of observations, if these are normalised."""
        return self.policy.moments.state_dict() if isinstance(self.policy, NormalizedPolicy) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: for the state of another policy, or if only one of the two normalises observations.
        """
        if bool(state) != self.normalize_observations:
            found = "has observation statistics" if state else "has none"
            raise ValueError(f"normalize_observations is {self.normalize_observations}, but the checkpoint {found}")
        if isinstance(self.policy, NormalizedPolicy):
            self.policy.load_moments(state)

    def _choose_baseline(self) -> BaselineName:
        """The baseline's name."""
        width = math.prod(self.distribution.observation_space.shape or ())
        if self.baseline is None:
            if width > WIDEST:
                log.info("baseline: time, because an observation has %d numbers (linear has at most %d)", width, WIDEST)
            return "time" if width > WIDEST else "linear"
        check_choice("baseline", self.baseline, BASELINES)
        if self.baseline == "linear" and width > WIDEST:
            warnings.warn(
                f"baseline='linear' solves a system of {2 * width + 4} unknowns for each task and draw, because an "
                f"observation has {width} numbers; baseline='time' does not use observations",
                stacklevel=4,  # the caller of the constructor
            )
        return self.baseline

    def initial_params(self) -> Params:
        """The policy's values of the parameters that its actions depend on."""
        return policy_params(self.policy, probe_observations(self.policy, self.distribution.observation_space))

    def check_second_derivatives(self) -> None:
        """Check that the policy can be differentiated twice, for exact Hessian-vector products.

        Raises:
            ValueError: naming the layer without a second derivative.
        """
        obs = probe_observations(self.policy, self.distribution.observation_space)
        check_second_derivatives("policy", self.policy, obs)

    @property
    def hessian_warning(self) -> str | None:
        """The reason if the second derivative of the loss is not the objective's, else `None`."""
        advice = "use 'ratio' or 'dice', or a first-order method"
        return f"surrogate='reinforce' has a wrong Hessian: {advice}" if self.surrogate == "reinforce" else None

    def baseline_values(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """The baseline `[T, E, L]`, and the value after the last step `[T, E]`."""
        return BASELINES[self.chosen_baseline].values(episodes, self.discount, self.bootstrap, self.cross_fit)

    def advantages(self, episodes: Episodes, values: Tensor, last_values: Tensor) -> tuple[Tensor, Tensor]:
        """The credit of each action `[T, E, L]`, and its divisor `[T]`."""
        rewards, mask = episodes.rewards, episodes.mask
        credit = generalized_advantages(rewards, values, last_values, mask, self.discount, self.gae_lambda)
        scale = torch.ones_like(rewards[:, 0, 0])
        if self.normalize_advantages and not self.cross_fit:
            credit, scale = normalize(credit, mask)
        elif self.normalize_advantages:
            credit = subtract_other_folds(credit, mask) if self.chosen_baseline == "none" else credit
            credit, scale = scale_to_one(credit, mask)
        if self.discount_weights:
            credit = credit * self.discount ** torch.arange(credit.shape[-1], dtype=credit.dtype, device=credit.device)
        return credit, scale

    def check_size(self, num_tasks: int, argument: str = "num_tasks") -> None:
        """Raise a `ValueError` that names `argument` if a draw for `num_tasks` tasks cannot fit into memory.

        Episodes may end early, so only a part of a long horizon counts.
        """
        space, horizon = self.distribution.observation_space, self.distribution.horizon
        steps = max(min(horizon, 10_000), horizon // 1000)
        numbers = space_numbers(space) * itemsize(space) + 4 * (space_numbers(self.distribution.action_space) + 4)
        sizes = f"{argument} x episodes x horizon = {num_tasks} x {self.episodes} x {horizon}"
        check_fits(sizes, num_tasks * self.episodes * steps * numbers, bytes_each=1)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> "RLTaskBatch":
        """`num_tasks` tasks of the distribution."""
        check_type("rng", rng, np.random.Generator, "a numpy.random.Generator")
        return self.tasks(self.distribution.sample(check_int("num_tasks", num_tasks), rng), rng)

    def tasks(self, task: TaskParams, rng: np.random.Generator) -> "RLTaskBatch":
        """The given tasks, every array `[T, ...]`; `rng` seeds their randomness."""
        if isinstance(self.policy, NormalizedPolicy) != self.normalize_observations:
            raise ValueError("normalize_observations cannot change later: make another source with dataclasses.replace")
        if self.actions != self.actor.actions:
            self.actor = self._make_actor()
        number = len(next(iter(task.values())))
        return RLTaskBatch(self, task, Streams(int(rng.integers(2**63)), number, self.device))


class RLTaskBatch:
    """A batch of reinforcement-learning tasks: T x E environments and a stream of random numbers for each task."""

    def __init__(self, source: ReinforcementLearning, task: TaskParams, streams: Streams) -> None:
        self.num_tasks = len(next(iter(task.values())))
        self.task = task
        self._source, self._streams = source, streams
        self.seen: Tensor | None = None  # [T, k]: of all draws, for the statistics of observations
        self.deterministic = False  # this and `success`: see metarl.types.EpisodicTaskBatch
        self.success: Tensor | None = None
        self.agree: Callable[[int], int] = lambda length: length
        self._variances: tuple[Tensor, Tensor] | None = None  # [T] each, of the last draw
        # functions of one task (see `Losses`): the source's, so the next batch needs no new record
        losses = source.losses
        self.loss, self.score, self.frozen_loss = losses.loss, losses.score, losses.frozen_loss
        self.log_likelihood, self.objective = losses.log_likelihood, losses.objective
        self.frozen_losses = losses.frozen_losses
        self.kl, self.fisher_product, self.describe = losses.kl, losses.fisher_product, losses.describe
        self.clipped_loss, self.clipped_share = losses.clipped_loss, losses.clipped_share

    @functools.cached_property
    def _environments(self) -> Environments:
        source = self._source
        found = make_environments(source.distribution, self.task, source.episodes, source.device)
        if not isinstance(found, FunctionalEnvs):
            weakref.finalize(self, _close, found)
        return found

    def shard(self, first: int, last: int) -> "RLTaskBatch":
        """The tasks `first` ... `last` - 1, which draw from the start what they draw as part of the whole batch."""
        task = {name: value[first:last] for name, value in self.task.items()}
        return RLTaskBatch(self._source, task, self._streams.shard(first, last))

    def rollout(self, params: Params) -> Rollout:
        """One episode in every environment at stacked `params`."""
        source, actor = self._source, self._source.actor
        horizon, episodes, dtype = source.distribution.horizon, source.episodes, float_leaf(params).dtype
        noise = actor.noise(self._environments, self._streams, horizon, episodes, dtype)
        if self.deterministic:
            noise = noise.with_most_likely_actions()
        try:
            rollout = actor.rollout(self._environments, params, noise)
        except NonFiniteError as error:
            raise error.at(first_task=self._streams.first) from error
        if not source._has_acted:
            source._has_acted = True
            warn_if_clipped(source.distribution.action_space, rollout.actions[rollout.episodes.mask > 0], actor.actions)
        return rollout

    def draw(self, params: Params, role: Role) -> Batch:
        """Roll out at stacked `params` and estimate advantages; leaves are `[T, E, L, ...]`.

        L is the horizon, or less if that is long and all episodes are short (`metarl.rl.rollout.array_length`).
        """
        # one episode in every environment, at the parameters of its task
        source = self._source
        episodes, actions, log_probs, success = self._in_equal_arrays(self.rollout(params))
        self.success = None if success is None else success.double().mean(1)
        obs = episodes.obs

        # the statistics learn from raw observations, baseline and loss get normalised ones
        if isinstance(source.policy, NormalizedPolicy):
            rows = source.policy.observe(obs, episodes.mask)
            self.seen = rows if self.seen is None else self.seen + rows
            normalized_obs, final_obs = map(source.policy.normalize, (obs, episodes.final_obs))
            episodes = episodes._replace(obs=normalized_obs, final_obs=final_obs)

        # the credit of each action, and for E-MAML the objective of each episode in the same units
        values = source.baseline_values(episodes)
        advantages, scale = source.advantages(episodes, *values)
        self._variances = residual_variances(episodes, *values, source.discount)
        returns = discounted_sums(episodes.rewards, source.discount)[..., 0]  # [T, E]
        return {
            "obs": obs,
            **({"normalized_obs": episodes.obs} if source.normalize_observations else {}),
            "actions": actions,
            "log_probs": log_probs,
            "advantages": advantages,
            "mask": episodes.mask,
            "rewards": episodes.rewards,
            "objective": -returns / (source.distribution.horizon * scale[:, None]),
        }

    def _in_equal_arrays(self, rollout: Rollout) -> Rollout:
        """The rollout, padded to the same length in all processes."""
        if array_length(1, self._source.distribution.horizon) == self._source.distribution.horizon:
            return rollout
        return lengthen(rollout, self.agree(rollout.log_probs.shape[2]))

    def statistics(self, batch: Batch) -> dict[str, Tensor]:
        """Of the last draw: mean episode length, successes and whether they were reported, variances of returns."""
        lengths = batch["mask"].sum(2).mean(1)
        reported = torch.full_like(lengths, self.success is not None)
        success = torch.zeros_like(lengths) if self.success is None else self.success
        found = {"rollout/episode_length": lengths, f"rollout/{SUCCESS}": success, f"rollout/{REPORTED}": reported}
        if self._variances is not None:
            residual, total = self._variances
            found.update({f"baseline/{RESIDUAL}": residual, f"baseline/{TOTAL}": total})
        return found

    def excerpt(self, batch: Batch, states: int) -> Batch:
        """The first episodes of every task, at least one."""
        tasks, _, length = batch["mask"].shape
        episodes = max(1, states // (tasks * length))
        return {name: leaf[:, :episodes].clone() for name, leaf in batch.items() if leaf.dim() > 1}

    def cost(self, batch: Batch) -> Mapping[str, int]:
        """Samples are trajectories, as in the theory; environment steps are their steps."""
        mask = batch["mask"]
        return {"samples": mask.shape[0] * mask.shape[1], "env_steps": int(mask.sum(dtype=torch.float64).item())}


def _close(vec: VectorEnv[Any, Any, Any]) -> None:
    """Close the environments of tasks that are garbage, perhaps while another error is raised."""
    try:
        vec.close()
    except Exception as error:  # environments may raise anything
        log.warning("environments could not be closed: %s: %s", type(error).__name__, error)
