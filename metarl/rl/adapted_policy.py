"""A policy adapted to one task, with the `predict` of Stable-Baselines3's models.

It takes the same gradient steps as evaluations: `metarl.MetaLearner.adapt` calls `adapt_policy`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metarl import tree
from metarl.errors import check_int, shorten
from metarl.functional_call import call
from metarl.random import Stream, stream_generator, torch_generator
from metarl.rl.actions import make_clipper
from metarl.rl.distributions import DistParams
from metarl.rl.one_env import ONE_TASK, OneEnvDistribution
from metarl.rl.oracle import ReinforcementLearning, RLTaskBatch
from metarl.tree import float_leaf
from metarl.types import Params, TaskBatch
from metarl.wrappers import CountCost


class AdaptedPolicy:
    """A policy at the parameters of one task.

    `predict` is that of Stable-Baselines3's models, so its `evaluate_policy(policy, env)` works, too.

    Args:
        source: with the policy, its spaces, and the way actions reach environments.
        params: of one task, not stacked.
        env_steps: the environment steps that adaptation took.
        seed: of the actions of `predict(..., deterministic=False)`.

    Attributes:
        policy: the module; `params` has its parameters by name.
        params: the adapted parameters.
        env_steps: the environment steps that adaptation took.
    """

    def __init__(self, source: ReinforcementLearning, params: Params, env_steps: int = 0, seed: int = 0) -> None:
        self.policy: nn.Module = source.policy
        self.params, self.env_steps, self.actions = params, env_steps, source.actions
        self.observation_space = source.distribution.observation_space
        self.action_space = source.distribution.action_space
        self._distribution, self._device = source.actor.distribution, torch.device(source.device)
        self._send = make_clipper(self.action_space, self._device, self.actions)
        rng = stream_generator(check_int("seed", seed, minimum=0), Stream.ADAPTED_ACTIONS)
        self._generator = torch_generator(rng, self._device)

    @torch.no_grad()
    def predict(
        self,
        observation: npt.ArrayLike,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], None]:
        """The actions for one observation or a batch of them, ready for environments, and no state.

        Args:
            observation: `[*obs_shape]` or `[n, *obs_shape]`, as the environment gives it.
            state: not used, because the policy has no memory; neither is `episode_start`.
            episode_start: not used.
            deterministic: whether to return the mode of the action distribution instead of a sample.

        Raises:
            ValueError: for an observation of another shape.
        """
        obs, single = self._read(observation)
        parameters = call(self.policy, self.params, obs)
        action = self._distribution.mode(parameters) if deterministic else self._sample(parameters)
        sent: npt.NDArray[Any] = self._send(action).cpu().numpy()
        return (sent[0] if single else sent).astype(self.action_space.dtype), None

    def _sample(self, parameters: DistParams) -> Tensor:
        shape = parameters[0].shape[:1]  # n
        noise = self._distribution.noise(shape, self._generator, parameters[0].dtype)
        return self._distribution.sample(parameters, noise)

    def _read(self, observation: npt.ArrayLike) -> tuple[Tensor, bool]:
        """Observations `[n, *obs_shape]` as a tensor, and whether it was a single one."""
        array, shape = np.asarray(observation), self.observation_space.shape or ()
        single = array.shape == shape
        if (not single and array.shape[1:] != shape) or array.dtype.kind not in "biuf" or array.shape[:1] == (0,):
            wanted = f"one of {self.observation_space} or a batch of them"
            raise ValueError(f"observation must be {wanted}, got {array.dtype} of shape {array.shape}")
        obs = torch.as_tensor(array[None] if single else array).to(self._device, float_leaf(self.params).dtype)
        return obs, single


def adapt_policy(
    source: object, task: object, adapt: Callable[[TaskBatch], Params], episodes: int | None, seed: int
) -> AdaptedPolicy:
    """The policy of `source`, adapted to one task by `adapt`, which takes a batch of tasks.

    Raises:
        ValueError: for a source without a policy, and for what `one_task` refuses.
    """
    if not isinstance(source, ReinforcementLearning):
        reason = f"{type(source).__name__} has no policy to adapt"
        raise ValueError(
            f"tasks must be a batch of tasks, such as source.sample(5, rng): {reason}, got {shorten(task)}"
        )
    counting = CountCost(one_task(source, task, episodes, seed))
    params = tree.take(adapt(counting), 0)
    return AdaptedPolicy(source, params, counting.counts["env_steps"], seed)


def one_task(source: ReinforcementLearning, task: object, episodes: int | None, seed: int) -> RLTaskBatch:
    """A batch of one task: an environment, or the parameters of a task of the source's distribution.

    Args:
        source: of training.
        task: a `gymnasium.Env`, or a mapping to arrays without a first dimension for tasks.
        episodes: for each gradient step; default: the source's.
        seed: of everything random.

    Raises:
        ValueError: for anything else, other spaces, or parameters that the distribution does not have.
    """
    rng = stream_generator(check_int("seed", seed, minimum=0), Stream.ADAPTATION)
    number = source.episodes if episodes is None else check_int("episodes", episodes)
    if isinstance(task, Mapping):
        source.distribution.make(dict(task)).close()  # refuses wrong keys, shapes and values
        parameters, distribution = {name: np.asarray(value)[None] for name, value in task.items()}, source.distribution
    else:
        assert isinstance(task, gymnasium.Env)
        parameters, distribution = ONE_TASK, OneEnvDistribution(task, source.distribution)
    own = dataclasses.replace(source, distribution=distribution, episodes=number)
    return own.tasks(parameters, rng)
