"""Rollouts, and how vector environments that are not functions are stepped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl.engine import one_torch_thread
from metarl.rl.actions import make_clipper
from metarl.rl.advantages import Episodes
from metarl.rl.distributions import ActionDistribution, DistParams
from metarl.rl.incoming import Incoming, check_actions_finite, env_name
from metarl.types import HasThreads

NOISE_STEPS = 256
"""Random numbers are drawn for this many steps at a time; arrays have at least this length, or the horizon."""

Forward: TypeAlias = Callable[[Tensor], DistParams]


class Rollout(NamedTuple):
    """Observations, rewards, actions and log-probabilities of one episode in each environment."""

    episodes: Episodes
    actions: Tensor  # [T, E, H, *action]
    log_probs: Tensor  # [T, E, H], of the policy that acted
    success: Tensor | None = None  # [T, E], bool: reported after any step of the episode


class Noise(NamedTuple):
    """Everything random in a rollout; the numbers of later steps are drawn when they are needed."""

    actions: Tensor  # [T, h, E, ...], of the first h steps
    initial: Tensor  # [T, E, k], of functional environments
    transitions: Tensor  # [T, h, E, k], likewise
    seed: int  # of other environments
    missing: int = 0  # steps up to the horizon, after the first h
    more: Callable[[int], tuple[Tensor, Tensor]] | None = None  # numbers of n more steps: of actions, of transitions

    @property
    def horizon(self) -> int:
        """H."""
        return self.actions.shape[1] + self.missing

    def with_most_likely_actions(self) -> "Noise":
        """The same numbers, but zeros for the actions: distributions then give their mode."""
        later = self.more

        def more(steps: int) -> tuple[Tensor, Tensor]:
            assert later is not None
            actions, transitions = later(steps)
            return torch.zeros_like(actions), transitions

        return self._replace(actions=torch.zeros_like(self.actions), more=None if later is None else more)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The noise of the steps, some at a time: of actions `[T, h, E, ...]`, of transitions `[T, h, E, k]`."""
        yield self.actions, self.transitions
        for done in range(0, self.missing, NOISE_STEPS):
            assert self.more is not None
            yield self.more(min(NOISE_STEPS, self.missing - done))

    def steps(self) -> Iterator[Tensor]:
        """The noise of the actions of one step after the other, `[T, E, ...]`."""
        for actions, _ in self.blocks():
            yield from actions.unbind(1)


def sequences(actions: Tensor, transitions: Tensor) -> list[Tensor]:
    """A block of noise step by step: of actions `[h, T, E, ...]`, of N environments `[h, N, k]`."""
    return [actions.transpose(0, 1), transitions.transpose(0, 1).flatten(1, 2)]


class Steps(NamedTuple):
    """A rollout step by step."""

    columns: Sequence[Tensor]  # [h, T, E, ...] each: obs, reward, running before the step, action, *parameters
    last_obs: Tensor  # [T, E, *obs]
    terminated: Tensor  # [T, E], bool
    success: Tensor | None = None  # [T, E], bool; None if the environments did not report it


def step_through(
    vec: VectorEnv[Any, Any, Any],
    forward: Forward,
    distribution: ActionDistribution,
    noise: Noise,
    dtype: torch.dtype,
    actions: str = "clip",
) -> Steps:
    """One episode in each environment of `vec`; all are stepped until all have ended.

    Args:
        vec: T x E environments in task-major order, autoreset disabled, in numpy or torch.
        forward: the policy, `[T, E, *obs]` to the parameters of `distribution`; results are valid until the next call.
        distribution: of actions.
        noise: `vec` is seeded from it.
        dtype: of observations and rewards.
        actions: how they are sent (`metarl.rl.actions`).

    Raises:
        ValueError: `vec` does not return what it promised (`metarl.rl.incoming`).
        NonFiniteError: an action is NaN or infinite.
    """
    tasks, _, episodes = noise.actions.shape[:3]
    per_task, device = (tasks, episodes), noise.actions.device
    incoming = Incoming(vec, per_task, device, dtype)
    result = vec.reset(seed=noise.seed)
    obs = incoming.first(result)
    in_torch = isinstance(result[0], Tensor)
    clip = make_clipper(vec.single_action_space, device, actions)
    running = torch.ones(per_task, dtype=torch.bool, device=device)
    terminated, success = torch.zeros_like(running), None
    columns = []
    # torch's threads would spin between operations while the threads of the environments need the cores
    with one_torch_thread() if isinstance(vec, HasThreads) and vec.threads > 1 else nullcontext():
        for t, numbers in enumerate(noise.steps()):
            parameters = forward(obs)
            action = distribution.sample(parameters, numbers)
            if not in_torch or device.type == "cpu":  # elsewhere this would cost a synchronisation
                check_actions_finite(env_name(vec), obs, action, running, t + 1)
            sent = clip(action.flatten(0, 1))
            found = incoming.next(vec.step(sent if in_torch else sent.cpu().numpy()))
            columns.append((obs, found.reward, running, action, *[x.clone() for x in parameters]))
            obs = found.obs
            terminated = terminated | (found.terminated & running)
            if found.success is not None:
                success = (found.success & running) | (False if success is None else success)
            running = running & ~(found.terminated | found.truncated)
            asked = device.type == "cpu" or (t + 1) % NOISE_STEPS == 0  # elsewhere it costs a synchronisation
            if asked and not running.any():
                break
    return Steps([torch.stack(column) for column in zip(*columns, strict=True)], obs, terminated, success)


def build_rollout(steps: Steps, distribution: ActionDistribution, horizon: int) -> Rollout:
    """The rollout in arrays `[T, E, L, ...]`, padded with zeros; see `array_length` for L."""
    columns = [column.movedim(0, 2).contiguous() for column in steps.columns]
    seen, reward, running_before, action = columns[:4]
    mask = running_before.to(reward.dtype)
    log_probs = distribution.log_prob(tuple(columns[4:]), action)
    final_obs = _after_last_step(seen, running_before, steps.last_obs)
    length = array_length(seen.shape[2], horizon)
    seen, reward, mask, action, log_probs = (_pad(x, length) for x in (seen, reward * mask, mask, action, log_probs))
    return Rollout(Episodes(seen, reward, mask, final_obs, steps.terminated), action, log_probs, steps.success)


def _after_last_step(seen: Tensor, running: Tensor, last: Tensor) -> Tensor:
    """The observation after the last step of each episode, `[T, E, *obs]`: from `seen` `[T, E, h, *obs]`, or `last`."""
    steps = running.sum(2)
    tasks, episodes = (torch.arange(n, device=seen.device) for n in seen.shape[:2])
    inside = seen[tasks[:, None], episodes, steps.clamp(max=seen.shape[2] - 1)]
    ran_on = (steps == seen.shape[2]).view(*steps.shape, *[1] * (last.ndim - 2))
    return torch.where(ran_on, last, inside)


def array_length(steps: int, horizon: int) -> int:
    """The length of arrays for `steps` steps: the horizon, or a smaller power of two of at least 256.

    There are few such lengths, because each new one needs a new record of the derivatives.
    """
    return min(horizon, max(NOISE_STEPS, 1 << (steps - 1).bit_length()))


def lengthen(rollout: Rollout, length: int) -> Rollout:
    """The rollout, padded to `length` steps if it has fewer."""
    episodes, actions, log_probs, success = rollout
    longer = {name: _pad(getattr(episodes, name), length) for name in ("obs", "rewards", "mask")}
    return Rollout(episodes._replace(**longer), _pad(actions, length), _pad(log_probs, length), success)


def join_episodes(rollouts: Sequence[Rollout]) -> Rollout:
    """The episodes of several rollouts of the same tasks in one rollout."""
    if len(rollouts) == 1:
        return rollouts[0]
    longest = max(rollout.log_probs.shape[2] for rollout in rollouts)
    equal = [lengthen(rollout, longest) for rollout in rollouts]
    episodes = Episodes(*(torch.cat(leaves, dim=1) for leaves in zip(*(x.episodes for x in equal), strict=True)))
    actions, log_probs = (torch.cat([getattr(x, k) for x in equal], dim=1) for k in ("actions", "log_probs"))
    reported = [x.success for x in equal if x.success is not None]
    return Rollout(episodes, actions, log_probs, torch.cat(reported, dim=1) if len(reported) == len(equal) else None)


def _pad(x: Tensor, length: int) -> Tensor:
    """`[T, E, h, ...]` to `[T, E, L, ...]` with zeros."""
    missing = length - x.shape[2]
    return torch.cat([x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])], dim=2) if missing else x
