"""A policy that acts in many environments at once.

This file defines one step; the current `metarl.engine.Engine` repeats it. Environments that are functions are part of
the step, so the engine can record whole rollouts. Any other vector environment is stepped as it is, between forwards of
the policy.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.engine import RepeatedFunction, current_engine
from metarl.functional_env import UNIFORM_LOW, FunctionalEnvs, FunctionalTaskDistribution, functional_step
from metarl.rl.actions import make_clipper
from metarl.rl.distributions import ActionDistribution, DistParams
from metarl.rl.incoming import check_finite_episodes, check_functional, env_name
from metarl.rl.one_env import OneEnv, split
from metarl.rl.policy import shared_state, stacked_forward
from metarl.rl.rollout import (
    NOISE_STEPS,
    Forward,
    Noise,
    Rollout,
    Steps,
    build_rollout,
    join_episodes,
    sequences,
    step_through,
)
from metarl.rl.streams import Streams
from metarl.tree import float_leaf, tree_map
from metarl.types import HasThreads, Params, TaskDistribution, TaskParams

Environments: TypeAlias = FunctionalEnvs | VectorEnv[Any, Any, Any]
"""T x E environments in task-major order: as functions, or stepped with autoreset disabled, in numpy or torch."""


def make_environments(
    distribution: TaskDistribution, task: TaskParams, episodes: int, device: torch.device | str
) -> Environments:
    """T x `episodes` environments: as functions where the distribution offers these, else a vector environment."""
    if isinstance(distribution, FunctionalTaskDistribution):
        functional = distribution.make_functional(task, episodes, device)
        if functional is not None:
            return functional
    vec = distribution.make_vec(task, episodes, device)
    if isinstance(vec, HasThreads):
        vec.threads = torch.get_num_threads()
    return vec


class Actor:
    """A policy and the distribution of its actions.

    Args:
        policy: a module whose `forward(obs [B, ...])` returns the parameters of the action distribution.
        distribution: of its actions.
        actions: how they are sent to environments (`metarl.rl.actions`).
    """

    def __init__(self, policy: nn.Module, distribution: ActionDistribution, actions: str = "clip") -> None:
        self.policy, self.distribution, self.actions = policy, distribution, actions

    @contextmanager
    def bind(self, params: Params, obs: Tensor) -> Iterator[Forward]:
        """The forward of all tasks at these parameters, for observations `[T, E, ...]` that look like `obs`.

        It takes no gradients. Its results are valid until its next call.
        """
        with current_engine().bind(self._forward(params), [obs]) as runner:
            yield lambda o: tuple(runner.run([o]))

    def noise(
        self, environments: Environments, streams: Streams, horizon: int, episodes: int, dtype: torch.dtype
    ) -> Noise:
        """The random numbers of a rollout in such environments, drawn from a stream for each task."""
        initial, transitions = 0, 0
        if isinstance(environments, FunctionalEnvs):
            initial, transitions = environments.env.initial_noise, environments.env.transition_noise

        def uniform(streams: Streams, *shape: int) -> Tensor:
            return streams.draw(lambda n, g: torch.rand(n, *shape, generator=g, device=g.device)).clamp_(UNIFORM_LOW)

        def of_actions(streams: Streams, steps: int) -> Tensor:
            return streams.draw(lambda n, g: self.distribution.noise((n, steps, episodes), g, dtype))

        # the order of these draws must not change: it fixes the numbers of a seed
        first = min(horizon, NOISE_STEPS)
        noise = Noise(
            of_actions(streams, first),
            uniform(streams, episodes, initial),
            uniform(streams, first, episodes, transitions),
            streams.seed(episodes),
        )
        if horizon == first:
            return noise
        # a long horizon: later noise is drawn in blocks, when it is needed, from separate streams
        later = functools.cache(streams.later())  # the same ones for the whole rollout

        def more(steps: int) -> tuple[Tensor, Tensor]:
            return of_actions(later(), steps), uniform(later(), steps, episodes, transitions)

        return noise._replace(missing=horizon - first, more=more)

    @torch.no_grad()
    def rollout(self, environments: Environments, params: Params, noise: Noise) -> Rollout:
        """One episode in each of the T x E environments, each task acted in at its own parameters.

        Actions are clipped to the action space on their way to the environment (or as `actions` says); the
        log-probability is that of the action the policy took. What environments return after their end is masked.

        Args:
            environments: to act in.
            params: stacked `[T, ...]`.
            noise: see `noise`.

        Raises:
            ValueError: environments return something else than they promised (`metarl.rl.incoming`).
            NonFiniteError: an observation, an action or a reward is NaN or infinite.
        """
        if isinstance(environments, FunctionalEnvs):
            rollout = build_rollout(self._repeat_step(environments, params, noise), self.distribution, noise.horizon)
            check_functional(environments.env, rollout.episodes.obs, rollout.episodes.mask)
            name = type(environments.env).__name__
        else:
            # one environment runs its episodes one after the other
            parts = split(noise) if isinstance(environments, OneEnv) else [noise]
            dtype, send = _dtype(params), self.actions
            with self.bind(params, _like_obs(environments, params, parts[0])) as forward:
                steps = [step_through(environments, forward, self.distribution, x, dtype, send) for x in parts]
            rollout = join_episodes([build_rollout(x, self.distribution, noise.horizon) for x in steps])
            name = env_name(environments)
        check_finite_episodes(name, rollout.episodes, rollout.actions, rollout.log_probs)
        return rollout

    def _repeat_step(self, environments: FunctionalEnvs, params: Params, noise: Noise) -> Steps:
        env, task = environments
        step = self._step(environments, params)
        state = env.initial(task, noise.initial.flatten(0, 1))
        carried = [state, torch.ones(len(state), dtype=torch.bool, device=state.device)]
        # repeat the step until all episodes have ended
        blocks = []
        for block in noise.blocks():
            carried, kept = current_engine().repeat(step, carried, sequences(*block))
            blocks.append(kept)
            if noise.missing and not carried[-1].any():
                break
        columns = blocks[0] if len(blocks) == 1 else [torch.cat(column) for column in zip(*blocks, strict=True)]

        (state, running), (seen, reward, ran, *rest) = carried, columns
        per_task = seen.shape[1:3]
        last = env.observation(state, task)
        last = last.view(*per_task, *last.shape[1:]).to(seen.dtype)
        return Steps([seen, reward, ran.view(-1, *per_task), *rest], last, ~running.view(per_task))

    def _forward(self, params: Params) -> RepeatedFunction:
        """The policy's forward: `obs [T, E, ...]` to the parameters of the distribution."""
        params, shared = self._split(params)

        def forward(*leaves: Tensor) -> DistParams:
            own, common = _name_leaves([params, shared], leaves)
            return stacked_forward(self.policy, own, common, leaves[-1])

        constants = [*params.values(), *shared.values()]
        return RepeatedFunction("the policy", forward, constants, (self.policy,), (*params, None, *shared))

    def _step(self, environments: FunctionalEnvs, params: Params) -> RepeatedFunction:
        """One step of all environments.

        Inputs are the state `[N, S]`, which environments run `[N]`, and the noise of actions `[T, E, ...]` and of
        transitions `[N, k]`. Results are the next state, which environments still run, and the columns of a rollout.
        """
        (env, task), dtype, (params, shared) = environments, _dtype(params), self._split(params)
        groups = [list(group) for group in (params, shared, task)]
        # functional environments take float32 for a Box of any type
        clip = make_clipper(env.action_space, next(iter(task.values())).device, self.actions, torch.float32)

        def step(*leaves: Tensor) -> list[Tensor]:
            params, shared, task = _name_leaves(groups, leaves)
            state, running, action_noise, transition_noise = leaves[-4:]
            per_task = action_noise.shape[:2]
            seen = env.observation(state, task)
            seen = seen.view(*per_task, *seen.shape[1:]).to(dtype)
            parameters = stacked_forward(self.policy, params, shared, seen)
            action = self.distribution.sample(parameters, action_noise)
            made = functional_step(env, task, state, clip(action.flatten(0, 1)), transition_noise, running)
            reward = made.reward.to(seen.dtype).view(per_task)
            return [made.state, running & ~made.terminal, seen, reward, running, action, *parameters]

        functions = (env.observation, env.transition, env.reward, env.terminal)
        reads = (self.policy, self.distribution, *functions, _space_key(env.action_space))
        key = (dtype, self.actions, *params, None, *shared, None, *task)
        constants = [*params.values(), *shared.values(), *task.values()]
        return RepeatedFunction("steps of the environments", step, constants, reads, key)

    def _split(self, params: Params) -> tuple[Params, Params]:
        """What differs between tasks, and what they share: all parameters before adaptation, which are read once."""
        shared = shared_state(self.policy, params)
        if all(leaf.stride(0) == 0 for leaf in params.values()):
            return {}, {**shared, **tree_map(lambda leaf: leaf[0], params)}
        return params, shared


def _space_key(space: spaces.Space[Any]) -> tuple[Any, ...]:
    """The properties of an action space that a record of steps freezes."""
    if isinstance(space, spaces.Box):
        return "Box", space.shape, str(space.dtype), space.low.tobytes(), space.high.tobytes()
    return (repr(space),)


def _like_obs(vec: VectorEnv[Any, Any, Any], params: Params, noise: Noise) -> Tensor:
    """A tensor that looks like observations, `[T, E, *obs]`."""
    size = (*noise.initial.shape[:2], *(vec.single_observation_space.shape or ()))
    return torch.zeros(size, dtype=_dtype(params), device=noise.actions.device)


def _name_leaves(groups: Sequence[Iterable[str]], leaves: Sequence[Tensor]) -> list[Params]:
    rest = iter(leaves)
    return [{name: next(rest) for name in group} for group in groups]


def _dtype(params: Mapping[str, Tensor]) -> torch.dtype:
    return float_leaf(params).dtype
