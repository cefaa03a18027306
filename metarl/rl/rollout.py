"""Task-batched rollouts: T tasks x E episodes x H steps, all environments advancing together, one episode each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl.rl.advantages import Episodes
from metarl.rl.distributions import ActionDistribution
from metarl.rl.policy import StackedPolicy
from metarl.types import Params


class Rollout(NamedTuple):
    """What was seen and done."""

    episodes: Episodes
    actions: Tensor  # [T, E, H, *action]
    log_probs: Tensor  # [T, E, H], of the policy that acted


@contextmanager
def _cores_for(vec: VectorEnv[Any, Any, Any]) -> Iterator[None]:
    """One thread for torch while environments step in threads: its threads would spin between operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if getattr(vec, "steps_in_threads", False) else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def rollout(
    vec: VectorEnv[Any, Any, Any],
    policy: StackedPolicy,
    distribution: ActionDistribution,
    params: Params,
    horizon: int,
    generator: torch.Generator,
) -> Rollout:
    """One episode in each of the T x E environments of `vec`, acted by `policy` at each task's own parameters.

    Environments that have ended are stepped on until all have; what they return is masked. Actions are clipped to the
    action space on their way to the environment, while the log-probability is that of the action the policy took.

    Args:
        vec: T x E environments in task-major order, autoreset disabled, speaking numpy or torch.
        policy: the network.
        distribution: of its actions.
        params: stacked `[T, ...]`.
        horizon: H.
        generator: of the action noise; it also seeds `vec`.
    """
    leaf = next(iter(params.values()))
    dtype, device, tasks = leaf.dtype, leaf.device, leaf.shape[0]
    per_task = (tasks, vec.num_envs // tasks)

    def split(x: Any, to: torch.dtype | None = None) -> Tensor:
        """`[T * E, ...]` to `[T, E, ...]`; one copy where x is numpy, whose memory the environment may use again."""
        whole = x.to(device, to) if isinstance(x, Tensor) else torch.tensor(np.asarray(x), dtype=to, device=device)
        return whole.view(*per_task, *whole.shape[1:])

    first = vec.reset(seed=int(torch.randint(2**31 - 1, (), generator=generator, device=device)))[0]
    as_action = _action_converter(vec.single_action_space, device, speaks_torch=isinstance(first, Tensor))
    obs = split(first, dtype)
    noise = distribution.noise((horizon, *per_task), generator, dtype)
    forward = policy.bind(params, obs)

    running = torch.ones(per_task, dtype=torch.bool, device=device)
    terminal = torch.zeros_like(running)
    steps = []
    with _cores_for(vec):
        for t in range(horizon):
            parameters = forward(obs)
            action = distribution.sample(parameters, noise[t])
            result = vec.step(as_action(action.flatten(0, 1)))
            reward, terminated, truncated = map(split, result[1:4], (dtype, None, None))
            steps.append((obs, reward, running, action, *parameters))
            obs = split(result[0], dtype)
            terminal = terminal | (terminated & running)
            running = running & ~(terminated | truncated)
            if device.type == "cpu" and not running.any():  # elsewhere the question would cost a synchronisation
                break

    columns = [torch.stack(column).movedim(0, 2).contiguous() for column in zip(*steps, strict=True)]
    seen, reward, running_before, action = columns[:4]
    mask = running_before.to(dtype)
    log_probs = distribution.log_prob(tuple(columns[4:]), action)
    final_obs = _after_last_step(seen, running_before, obs)
    seen, reward, mask, action, log_probs = (_pad(x, horizon) for x in (seen, reward * mask, mask, action, log_probs))
    return Rollout(Episodes(seen, reward, mask, final_obs, terminal), action, log_probs)


def _after_last_step(seen: Tensor, running: Tensor, last: Tensor) -> Tensor:
    """What each episode saw after its last step, `[T, E, *obs]`: in `seen` `[T, E, h, *obs]`, or `last` at the end."""
    steps = running.sum(2)
    tasks, episodes = (torch.arange(n, device=seen.device) for n in seen.shape[:2])
    inside = seen[tasks[:, None], episodes, steps.clamp(max=seen.shape[2] - 1)]
    ran_on = (steps == seen.shape[2]).view(*steps.shape, *[1] * (last.ndim - 2))
    return torch.where(ran_on, last, inside)


def _pad(x: Tensor, horizon: int) -> Tensor:
    """`[T, E, h, ...]` to `[T, E, H, ...]` with zeros."""
    missing = horizon - x.shape[2]
    return torch.cat([x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])], dim=2) if missing else x


def _action_converter(
    space: spaces.Space[Any], device: torch.device, *, speaks_torch: bool
) -> Callable[[Tensor], Tensor | np.ndarray[Any, Any]]:
    """From what the policy sampled to what the environment takes."""
    if isinstance(space, spaces.Box):
        low, high = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
        clip: Callable[[Tensor], Tensor] = lambda a: a.to(low.dtype).clamp(low, high)  # noqa: E731
    else:
        clip = lambda a: a  # noqa: E731
    return clip if speaks_torch else lambda a: clip(a).cpu().numpy()
