"""A policy that acts in many environments at once, without Python's overhead in every operation.

Environments that are pure functions of tensors are recorded together with the policy: one step of all of them is one
list of operations in memory of its own on a CPU, a whole rollout is one CUDA graph on a GPU. Any other vector
environment is stepped as it is, between the recorded forwards of the policy.
"""

import functools
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor, fx, nn

from metarl.engine import Execution
from metarl.engine.cuda import CudaGraph
from metarl.engine.kept import Kept
from metarl.engine.repeated import Operations, Repeated, repeat
from metarl.rl.actions import clipper
from metarl.rl.distributions import ActionDistribution, DistParams
from metarl.rl.incoming import check_finite_episodes, check_functional, env_name
from metarl.rl.policy import shared_state, stacked_forward
from metarl.rl.rollout import NOISE_STEPS, Forward, Noise, Rollout, Steps, finished, sequences, step_through
from metarl.rl.streams import Streams
from metarl.tree import float_leaf, tree_map
from metarl.types import Params, PureEnv

UNIFORM_LOW = 2.0**-25
"""Random numbers of environments lie between this and 1, so that their logarithms are finite."""


log = logging.getLogger(__name__)


class Actor:
    """A policy, the distribution of its actions, and the records of what it does.

    Args:
        policy: a module whose `forward(obs [B, ...])` returns the parameters of the action distribution.
        distribution: of its actions.
        actions: how they are sent to environments (`metarl.rl.actions`).
        execution: with `trace=False`, nothing is recorded.
    """

    def __init__(
        self,
        policy: nn.Module,
        distribution: ActionDistribution,
        actions: str = "clip",
        execution: Execution | None = None,
    ) -> None:
        self.policy, self.distribution, self.actions = policy, distribution, actions
        self._execution = Execution(trace=True) if execution is None else execution
        self._records: Kept[Repeated] = Kept()
        self._replays: Kept[CudaGraph | None] = Kept()

    def forward(self, params: Params, obs: Tensor) -> DistParams:
        """The plain forward of all tasks: `params [T, ...], obs [T, E, ...] -> parameters [T, E, ...]`."""
        return stacked_forward(self.policy, params, shared_state(self.policy, params), obs)

    @contextmanager
    def bound(self, params: Params, obs: Tensor) -> Iterator[Forward]:
        """The recorded forward at these parameters, for observations that look like `obs`, without gradients.

        Its results hold until its next call.
        """
        record, constants = self._forward(params)
        with record.bound(constants, [obs]) as runner:
            yield lambda o: tuple(runner.run([o]))

    def noise(
        self, vec: VectorEnv[Any, Any, Any], streams: Streams, horizon: int, episodes: int, dtype: torch.dtype
    ) -> Noise:
        """The random numbers of a rollout in environments like `vec`, drawn from a stream for each task."""
        initial, transitions = 0, 0
        if (env := pure_env(vec)) is not None:
            initial, transitions = env.initial_noise, env.transition_noise

        def uniform(streams: Streams, *shape: int) -> Tensor:
            return streams.draw(lambda n, g: torch.rand(n, *shape, generator=g, device=g.device)).clamp_(UNIFORM_LOW)

        def of_actions(streams: Streams, steps: int) -> Tensor:
            return streams.draw(lambda n, g: self.distribution.noise((n, steps, episodes), g, dtype))

        first = min(horizon, NOISE_STEPS)
        noise = Noise(
            of_actions(streams, first),
            uniform(streams, episodes, initial),
            uniform(streams, first, episodes, transitions),
            streams.seed(episodes),
        )
        if horizon == first:
            return noise
        later = functools.cache(streams.later())  # one for the whole rollout

        def more(steps: int) -> tuple[Tensor, Tensor]:
            return of_actions(later(), steps), uniform(later(), steps, episodes, transitions)

        return noise._replace(missing=horizon - first, more=more)

    @torch.no_grad()
    def rollout(self, vec: VectorEnv[Any, Any, Any], params: Params, noise: Noise) -> Rollout:
        """One episode in each of the T x E environments of `vec`, each task acted in at its own parameters.

        Actions are clipped to the action space on their way to the environment (or as `actions` says), while the
        log-probability is that of the action the policy took. What environments return after their end is masked.

        Args:
            vec: T x E environments in task-major order, autoreset disabled, speaking numpy or torch.
            params: stacked `[T, ...]`.
            noise: see `noise`.

        Raises:
            ValueError: environments return something else than they promised (`metarl.rl.incoming`).
            NonFiniteError: an observation, an action or a reward is NaN or infinite.
        """
        if (env := pure_env(vec)) is None:
            with self.bound(params, _first_obs(vec, params, noise)) as forward:
                steps = step_through(vec, forward, self.distribution, noise, _dtype(params), self.actions)
        else:
            steps = self._in_pure_env(env, vec, params, noise)
        rollout = finished(steps, self.distribution, noise.horizon)
        if env is not None:
            check_functional(vec, rollout.episodes.obs, rollout.episodes.mask)
        check_finite_episodes(env_name(vec), *rollout)
        return rollout

    def _in_pure_env(self, env: PureEnv, vec: Any, params: Params, noise: Noise) -> Steps:
        record, constants = self._step(env, vec, params)
        inputs = _first_inputs(env, vec, noise)
        carried, parts = inputs[:2], []
        for block in noise.blocks():
            carried, kept = self._repeated(record, constants, inputs, carried, sequences(*block))
            parts.append(kept)
            if noise.missing and not carried[-1].any():
                break
        columns = parts[0] if len(parts) == 1 else [torch.cat(column) for column in zip(*parts, strict=True)]
        return _steps(env, vec.task, carried, columns)

    def _repeated(
        self,
        record: Repeated,
        constants: list[Tensor],
        inputs: list[Tensor],
        carried: list[Tensor],
        steps: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What is carried after these steps, and what they leave; `inputs` are those of the first step of all."""
        if inputs[0].device.type == "cuda" and (graph := record.graph(constants, inputs)) is not None:
            with self._replays.lock:
                results = self._replayed(graph, constants, carried, steps)
            if results is not None:
                return results
        with record.bound(constants, inputs) as runner:
            return repeat(runner, carried, steps)

    def _replayed(
        self, graph: fx.GraphModule, constants: list[Tensor], carried: list[Tensor], steps: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """All steps on the device, without waiting for the host in between; `None` where that cannot be had."""
        inputs = [*carried, *steps]

        def whole(*leaves: Tensor) -> list[Tensor]:
            step = Operations(graph.forward)
            step.bind(leaves[: len(constants)])
            first = len(constants) + len(carried)
            at_last, kept = repeat(step, leaves[len(constants) : first], leaves[first:])
            return at_last + kept

        def record() -> CudaGraph | None:
            try:
                return CudaGraph(whole, constants, inputs)
            except RuntimeError as error:  # such as a constant of the environment that is not on the device
                log.warning("rollouts are no single CUDA graph and run step by step: %s", str(error).split("\n")[0])
                return None

        found = self._replays.get("rollouts", (), (graph, steps[0].shape), record)
        if found is None:
            return None
        found.bind(constants)
        results = [x.clone() for x in found.run(inputs)]
        return results[: len(carried)], results[len(carried) :]

    def _forward(self, params: Params) -> tuple[Repeated, list[Tensor]]:
        """What repeats the policy's forward, and what stays the same in it."""
        params, shared = self._apart(params)

        def forward(*leaves: Tensor) -> DistParams:
            own, common = _named([params, shared], leaves)
            return stacked_forward(self.policy, own, common, leaves[-1])

        record = self._recorded("the policy", (self.policy,), (*params, None, *shared), forward)
        return record, [*params.values(), *shared.values()]

    def _step(self, env: PureEnv, vec: Any, params: Params) -> tuple[Repeated, list[Tensor]]:
        """What repeats a step of all environments, and what stays the same in it."""
        dtype, (params, shared) = _dtype(params), self._apart(params)
        functions = (env.observation, env.transition, env.reward, env.terminal)
        reads = (self.policy, self.distribution, *functions, space_key(vec.single_action_space))
        function = self._step_function(env, vec, [params, shared, vec.task], dtype)
        key = (dtype, self.actions, *params, None, *shared, None, *vec.task)
        record = self._recorded("steps of the environments", reads, key, function)
        return record, [*params.values(), *shared.values(), *vec.task.values()]

    def _recorded(
        self, name: str, reads: tuple[Any, ...], key: Hashable, function: Callable[..., Sequence[Tensor]]
    ) -> Repeated:
        """What repeats a function; another one as soon as what it reads has changed."""
        trace = self._execution.trace
        return self._records.get(name, reads, (trace, key), lambda: Repeated(name, function, trace))

    def _apart(self, params: Params) -> tuple[Params, Params]:
        """What differs between tasks, and what they share: all, before adaptation, and then products are one."""
        shared = shared_state(self.policy, params)
        if all(leaf.stride(0) == 0 for leaf in params.values()):
            return {}, {**shared, **tree_map(lambda leaf: leaf[0], params)}
        return params, shared

    def _step_function(
        self, env: PureEnv, vec: Any, names: Sequence[Iterable[str]], dtype: torch.dtype
    ) -> Callable[..., list[Tensor]]:
        space, device = vec.single_action_space, torch.device(vec.device)
        # functional environments take float32 for a Box of any type
        clip = clipper(space, device, self.actions, torch.float32)
        names = [list(group) for group in names]

        def step(*leaves: Tensor) -> list[Tensor]:
            params, shared, task = _named(names, leaves)
            state, running, action_noise, transition_noise = leaves[-4:]
            per_task = action_noise.shape[:2]
            seen = env.observation(state, task)
            seen = seen.view(*per_task, *seen.shape[1:]).to(dtype)
            parameters = stacked_forward(self.policy, params, shared, seen)
            action = self.distribution.sample(parameters, action_noise)
            sent = clip(action.flatten(0, 1))
            proposed = env.transition(state, sent, task, transition_noise)
            reward = env.reward(state, sent, proposed, task).to(seen.dtype).view(per_task)
            after = torch.where(running[:, None], proposed, state)  # what has ended stays as it is
            going = running & ~env.terminal(after, task)
            return [after, going, seen, reward, running, action, *parameters]

        return step


def space_key(space: spaces.Space[Any]) -> tuple[Any, ...]:
    """What a record of steps freezes of an action space."""
    if isinstance(space, spaces.Box):
        return "Box", space.shape, str(space.dtype), space.low.tobytes(), space.high.tobytes()
    return (repr(space),)


def pure_env(vec: VectorEnv[Any, Any, Any]) -> PureEnv | None:
    """The functions behind a vector environment whose steps are nothing but these, if it has any."""
    found: PureEnv | None = getattr(vec, "pure", None)
    return found


def _first_obs(vec: VectorEnv[Any, Any, Any], params: Params, noise: Noise) -> Tensor:
    """Something that looks like observations, `[T, E, *obs]`."""
    size = (*noise.initial.shape[:2], *(vec.single_observation_space.shape or ()))
    return torch.zeros(size, dtype=_dtype(params), device=noise.actions.device)


def _first_inputs(env: PureEnv, vec: Any, noise: Noise) -> list[Tensor]:
    """What the first step takes beside its constants."""
    state = env.initial(vec.task, noise.initial.flatten(0, 1))
    return [
        state,
        torch.ones(len(state), dtype=torch.bool, device=state.device),
        *[x[0] for x in sequences(noise.actions, noise.transitions)],
    ]


def _steps(env: PureEnv, task: Mapping[str, Tensor], at_last: Sequence[Tensor], kept: Sequence[Tensor]) -> Steps:
    (state, running), (seen, reward, ran, *rest) = at_last, kept
    per_task = seen.shape[1:3]
    last = env.observation(state, task)
    last = last.view(*per_task, *last.shape[1:]).to(seen.dtype)
    return Steps([seen, reward, ran.view(-1, *per_task), *rest], last, ~running.view(per_task))


def _named(names: Sequence[Iterable[str]], leaves: Sequence[Tensor]) -> list[Params]:
    rest = iter(leaves)
    return [{name: next(rest) for name in group} for group in names]


def _dtype(params: Params) -> torch.dtype:
    return float_leaf(params).dtype
