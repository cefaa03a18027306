"""Trials of RL^2: K episodes of one task, one after the other, as one long episode of a recurrent policy.

A batch has T tasks with E trials each. Steps after the end of an episode are left out, so the L steps of a trial lie
side by side, and advantages go on from episode to episode: what is explored in one pays off in the next.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.agents.rl2.policy import Outputs, RecurrentPolicy, entropy
from metarl.devices import pick_device
from metarl.engine import RepeatedFunction, current_engine
from metarl.errors import check_has, check_int, check_real, check_type
from metarl.functional_call import call
from metarl.memory import check_fits
from metarl.rl.actions import make_clipper
from metarl.rl.advantages import generalized_advantages
from metarl.rl.distributions import DistParams
from metarl.rl.incoming import Incoming, check_actions_finite, env_name
from metarl.rl.streams import Streams
from metarl.settings import FixedSettings
from metarl.types import Batch, HasThreads, Params, Role, TaskBatch, TaskDistribution, TaskParams
from metarl.wrappers import unwrap

DECAY = 0.9
"""How much of the value targets' statistics an iteration keeps."""

EPSILON = 1e-6


class Trials(NamedTuple):
    """What happened in E trials of each of T tasks, without the steps after the end of an episode."""

    inputs: Tensor  # [T, E, L, I], as the policy saw them
    actions: Tensor  # [T, E, L, *action]
    log_probs: Tensor  # [T, E, L]
    values: Tensor  # [T, E, L], as the policy's head gave them
    rewards: Tensor  # [T, E, L]
    mask: Tensor  # [T, E, L]: 1 for the steps that happened, which come first
    hidden: Tensor  # [T, E, U], after the last step
    returns: Tensor  # [T, E, K], undiscounted, of each episode
    lengths: Tensor  # [T, E, K], steps of each episode


@dataclass
class RecurrentTrials(FixedSettings):
    """A source of tasks for RL^2: a distribution of environments, and the recurrent policy that acts in them.

    Args:
        distribution: the tasks.
        policy: its parameters are only the starting point and never change.
        trials: E, trials for each task and draw.
        episodes: K, episodes of a trial.
        discount: gamma, over the whole trial.
        gae_lambda: lambda of generalised advantage estimation, over the whole trial.
        clip: eps of the clipped ratios.
        value_coefficient: weight of the value's squared error, in units of the variance of its targets.
        entropy_coefficient: weight of the policy's entropy.
        truncate: steps of truncated backpropagation through time; `None`: the whole trial.
        device: of the parameters and environments.

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> from metarl.envs import Navigation
        >>> tasks = Navigation(horizon=10)
        >>> policy = RecurrentPolicy(tasks.observation_space, tasks.action_space, units=8)
        >>> source = RecurrentTrials(tasks, policy, trials=2, episodes=3)
        >>> source.sample(4, np.random.default_rng(0)).rollout(source.initial_params()).returns.shape
        torch.Size([4, 2, 3])
    """

    distribution: TaskDistribution
    policy: RecurrentPolicy
    _: KW_ONLY
    trials: int = 5
    episodes: int = 5
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    truncate: int | None = None
    device: torch.device | str = "cpu"
    score_name: ClassVar[str] = "return"
    live: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        methods = ("sample", "make_vec", "observation_space", "action_space", "horizon")
        check_has("distribution", self.distribution, methods, "a task distribution, such as envs.Navigation()")
        check_type("policy", self.policy, RecurrentPolicy, "a RecurrentPolicy")
        for name in ("trials", "episodes"):
            check_int(name, getattr(self, name))
        for name in ("discount", "gae_lambda"):
            check_real(name, getattr(self, name), high=1.0, open_low=False)
        check_real("clip", self.clip)
        for name in ("value_coefficient", "entropy_coefficient"):
            check_real(name, getattr(self, name), open_low=False)
        if self.truncate is not None:
            check_int("truncate", self.truncate)
        self._set_fixed(device=pick_device(self.device))
        self.policy.to(self.device)
        self._targets = torch.zeros(3, dtype=torch.float64)  # weight, sum and sum of squares of the value's targets
        self._unroll = _Unroll(self.policy, self.truncate)
        self._fix_settings()

    def initial_params(self) -> Params:
        """The policy's own parameters."""
        return {name: leaf.detach().clone() for name, leaf in self.policy.named_parameters()}

    def check_size(self, num_tasks: int, argument: str = "num_tasks") -> None:
        """Raise a `ValueError` that names `argument` if a draw for `num_tasks` tasks cannot fit into memory."""
        steps = self.episodes * self.distribution.horizon
        numbers = self.policy.seen + self.policy.acted + 5 * self.policy.units + 10
        sizes = f"{argument} x trials x episodes x horizon = {num_tasks} x {self.trials} x {self.episodes}"
        check_fits(f"{sizes} x {self.distribution.horizon}", num_tasks * self.trials * steps * numbers)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> "TrialBatch":
        """`num_tasks` tasks of the distribution."""
        check_type("rng", rng, np.random.Generator, "a numpy.random.Generator")
        return self.tasks(self.distribution.sample(check_int("num_tasks", num_tasks), rng), rng)

    def tasks(self, task: TaskParams, rng: np.random.Generator) -> "TrialBatch":
        """The given tasks, every array `[T, ...]`; `rng` seeds their randomness."""
        number = len(next(iter(task.values())))
        return TrialBatch(self, task, Streams(int(rng.integers(2**63)), number, self.device))

    # The statistics of the value's targets: its head learns them with mean 0 and variance 1.

    def value_scale(self, first: Tensor | None = None) -> tuple[float, float]:
        """Mean and standard deviation of the value's targets so far; before training, those of `first`, or 0 and 1."""
        known = bool(self._targets[0] > 0)
        if not known and first is None:
            return 0.0, 1.0
        weight, total, squares = (self._targets if known else first).tolist()  # type: ignore[union-attr]
        mean = total / weight
        return mean, max(squares / weight - mean**2, 0.0) ** 0.5 + EPSILON

    def learn_from(self, tasks: TaskBatch, sum_everywhere: Callable[[Tensor], Tensor]) -> None:
        """Update the statistics with those of the tasks' targets."""
        drawn = unwrap(tasks)
        if isinstance(drawn, TrialBatch) and drawn.targets is not None:
            self._targets = DECAY * self._targets + (1 - DECAY) * sum_everywhere(drawn.targets).cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics."""
        return {"targets": self._targets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: when it does not fit.
        """
        found = state.get("targets")
        good = isinstance(found, Tensor) and found.shape == (3,) and found.dtype == torch.float64
        if not good or not bool(torch.isfinite(found).all()):  # type: ignore[arg-type]
            raise ValueError(f"targets must be three finite numbers in float64, got {found!r:.80}")
        self._targets = found.cpu().clone()  # type: ignore[union-attr]

    # The functions of one task, or of any trials: leaves of the batch are `[E, L, ...]`.

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """PPO's loss (Schulman et al., 2017, eq. 7 and 9), the mean over the steps of all trials.

        - min(ratio A, clip(ratio) A) + c_v (V - target)^2 - c_e entropy
        """
        found = self.outputs(params, batch)
        mask, advantages = batch["mask"], batch["advantages"]
        ratios = torch.exp(
            (self.policy.distribution.log_prob(found.action, batch["actions"]) - batch["log_probs"]) * mask
        )
        gain = torch.minimum(ratios * advantages, ratios.clamp(1 - self.clip, 1 + self.clip) * advantages)
        error = (found.value - batch["targets"]).square()
        each = -gain + self.value_coefficient * error - self.entropy_coefficient * entropy(found.action)
        return (each * mask).sum() / mask.sum()

    def outputs(self, params: Params, batch: Batch) -> Outputs:
        """The policy's outputs at every step, `[E, L, ...]`, from the start of each trial."""
        found: Outputs = call(self._unroll, {f"policy.{name}": leaf for name, leaf in params.items()}, batch["inputs"])
        return found

    def score(self, params: Params, batch: Batch) -> Tensor:
        """The mean undiscounted return of the first episode, before anything is known of the task."""
        return batch["returns"][:, 0].mean()


class _Unroll(torch.nn.Module):
    """`policy.unroll` as a forward, which can be called at other parameters."""

    def __init__(self, policy: RecurrentPolicy, truncate: int | None) -> None:
        super().__init__()
        self.policy, self.truncate = policy, truncate

    def forward(self, x: Tensor) -> Outputs:
        return self.policy.unroll(x, self.truncate)


class TrialBatch:
    """A batch of tasks: T x E environments, each for a trial of K episodes at a draw."""

    def __init__(self, source: RecurrentTrials, task: TaskParams, streams: Streams) -> None:
        self.num_tasks, self.task = len(next(iter(task.values()))), task
        self.loss, self.score = source.loss, source.score
        self.targets: Tensor | None = None  # [T, 3]: of all draws, for the statistics of the value's targets
        self._source, self._streams = source, streams

    def draw(self, params: Params, role: Role) -> Batch:
        """Trials at `params`, which all tasks share; leaves are `[T, E, L, ...]`.

        Raises:
            ValueError: for parameters that differ between tasks.
        """
        source = self._source
        if any(len(leaf) > 1 and leaf.stride(0) != 0 for leaf in params.values()):
            raise ValueError("params must be the same for all tasks: RL^2 adapts by its hidden state, not by gradients")
        trials = self.rollout({name: leaf[0] for name, leaf in params.items()})

        # advantages and targets of the value, over whole trials
        mean, scale = source.value_scale()
        mask, last = trials.mask, torch.zeros_like(trials.mask[..., 0])  # no value after the last episode
        values = (trials.values * scale + mean) * mask
        credit = generalized_advantages(trials.rewards, values, last, mask, source.discount, source.gae_lambda)
        targets = (credit + values) * mask
        own = torch.stack([mask, targets, targets.square()], -1).double().sum((1, 2))  # [T, 3]
        self.targets = own if self.targets is None else self.targets + own
        mean, scale = source.value_scale(own.sum(0))

        # the policy's advantages with mean 0 and standard deviation 1 over the batch
        number = mask.sum()
        centred = (credit - (credit * mask).sum() / number) * mask
        advantages = centred / ((centred.square().sum() / number).sqrt() + 1e-8)
        return {
            **{name: getattr(trials, name) for name in ("inputs", "actions", "log_probs", "values", "mask", "returns")},
            "advantages": advantages,
            "targets": (targets - mean) / scale * mask,
        }

    def cost(self, batch: Batch) -> Mapping[str, int]:
        """Samples are episodes; environment steps are their steps."""
        mask = batch["mask"]
        episodes = mask.shape[0] * mask.shape[1] * self._source.episodes
        return {"samples": episodes, "env_steps": int(mask.sum(dtype=torch.float64).item())}

    @torch.no_grad()
    def rollout(self, params: Params) -> Trials:
        """A trial in each of the T x E environments at `params`, not stacked.

        Raises:
            ValueError: environments return something else than they promised (`metarl.rl.incoming`).
            NonFiniteError: an action is NaN or infinite.
        """
        source = self._source
        vec = source.distribution.make_vec(self.task, source.trials, source.device)
        if isinstance(vec, HasThreads):
            vec.threads = torch.get_num_threads()
        with contextlib.closing(vec):
            recorder = _Rollout(source, vec, self._streams, params)
            policy, number = source.policy, self.num_tasks * source.trials
            hidden = next(iter(params.values())).new_zeros(number, policy.units)
            last = policy.begin(number)
            for _ in range(source.episodes):
                hidden, last = recorder.run_episode(hidden, last)
        return recorder.collect(hidden)


class _Rollout:
    """Runs the episodes of a batch of trials and keeps their steps; rows are trials, task by task."""

    def __init__(self, source: RecurrentTrials, vec: Any, streams: Streams, params: Params) -> None:
        self.source, self.vec, self.streams, self.params = source, vec, streams, params
        self.name = env_name(vec)
        self.per_task = (streams.last - streams.first, source.trials)
        self.dtype = next(iter(params.values())).dtype
        self.send = make_clipper(vec.single_action_space, torch.device(source.device), source.policy.actions)
        self.columns: list[tuple[Tensor, ...]] = []  # of every step: inputs, action, log-prob, value, reward, running
        self.returns: list[Tensor] = []  # [n] of every episode
        self.lengths: list[Tensor] = []

    def run_episode(self, hidden: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden state and (a, r, d) after one more episode of every trial."""
        source, policy = self.source, self.source.policy
        distribution, horizon = policy.distribution, source.distribution.horizon
        noise = self.streams.draw(lambda n, g: distribution.noise((n, horizon, self.per_task[1]), g, self.dtype))
        incoming = Incoming(self.vec, self.per_task, torch.device(source.device), self.dtype)
        found = self.vec.reset(seed=self.streams.seed(self.per_task[1]))
        in_torch, obs = isinstance(found[0], Tensor), incoming.first(found)  # [T, E, *obs]
        running = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        total = torch.zeros(len(hidden), dtype=self.dtype, device=hidden.device)
        steps = torch.zeros_like(total)
        x = policy.inputs(obs.flatten(0, 1), last)
        with current_engine().bind(self._policy(), [x, hidden]) as runner:
            for t, numbers in enumerate(noise.unbind(1)):  # [T, E, ...]
                x = policy.inputs(obs.flatten(0, 1), last)
                after, value, *parameters = (leaf.clone() for leaf in runner.run([x, hidden]))
                action = distribution.sample(tuple(parameters), numbers.flatten(0, 1))
                check_actions_finite(self.name, obs, self._by_task(action), self._by_task(running), t + 1)
                sent = self.send(action)
                step = incoming.next(self.vec.step(sent if in_torch else sent.cpu().numpy()))
                reward = step.reward.flatten() * running
                log_prob = distribution.log_prob(tuple(parameters), action)
                self.columns.append((x, action, log_prob, value, reward, running))
                total, steps = total + reward, steps + running
                # trials whose episode has ended wait for the others
                hidden = torch.where(running[:, None], after, hidden)
                last = torch.where(running[:, None], policy.remember(sent, reward, ended=False), last)
                obs, running = step.obs, running & ~(step.terminated | step.truncated).flatten()
                if not running.any():
                    break
        self.returns.append(total)
        self.lengths.append(steps)
        ended = torch.zeros_like(last)
        ended[:, -1] = 1
        return hidden, last + ended

    def collect(self, hidden: Tensor) -> Trials:
        """Everything so far as arrays, the steps of a trial side by side."""
        columns = [torch.stack(column, 1) for column in zip(*self.columns, strict=True)]  # [n, S, ...]
        running = columns.pop()
        # the steps that happened first, in their order
        order = (~running).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(running.sum(1).max())]
        rows = torch.arange(len(order), device=order.device)[:, None]
        columns = [column[rows, order] for column in (*columns, running.to(self.dtype))]
        inputs, actions, log_probs, values, rewards, mask = (self._by_task(column) for column in columns)
        returns, lengths = (self._by_task(torch.stack(parts, 1)) for parts in (self.returns, self.lengths))
        return Trials(inputs, actions, log_probs * mask, values, rewards, mask, self._by_task(hidden), returns, lengths)

    def _by_task(self, x: Tensor) -> Tensor:
        """`[n, ...]` as `[T, E, ...]`."""
        return x.reshape(*self.per_task, *x.shape[1:])

    def _policy(self) -> RepeatedFunction:
        """One step of the policy: inputs and hidden state to hidden state, value and the distribution's parameters."""
        policy, names = self.source.policy, list(self.params)

        def step(*leaves: Tensor) -> list[Tensor]:
            w = dict(zip(names, leaves, strict=False))
            after, parameters, value = call(policy, w, leaves[-2], leaves[-1])
            return [after, value, *parameters]

        return RepeatedFunction("the recurrent policy", step, list(self.params.values()), (policy,), tuple(names))


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> float:
    """1 - var(targets - values) / var(targets) over the steps of a batch; NaN if all targets are equal."""
    chosen = mask > 0
    left, spread = (targets - values)[chosen].double().var(), targets[chosen].double().var()
    return float(1 - left / spread)


def log_ratios(source: RecurrentTrials, found: DistParams, batch: Batch) -> Tensor:
    """log pi(a) - log pi_old(a) of every step, zero where the mask is."""
    return (source.policy.distribution.log_prob(found, batch["actions"]) - batch["log_probs"]) * batch["mask"]
