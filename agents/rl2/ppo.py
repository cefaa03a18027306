"""PPO (Schulman et al., 2017) on whole trials: several epochs of steps of Adam on minibatches of one draw.

    w <- w - beta Adam(grad L(w; M)),    L: `RecurrentTrials.loss`,  M: a part of the trials, drawn without replacement

Every minibatch unrolls the policy from the start of its trials, at the current parameters.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl import tree
from metarl.agents.rl2.policy import entropy
from metarl.agents.rl2.trials import RecurrentTrials, TrialBatch, explained_variance, log_ratios
from metarl.errors import NonFiniteError, StateError, check_int, check_type
from metarl.random import Stream, generator_state, restore_generator, stream_generator
from metarl.state_dict import check_keys, check_like
from metarl.step import MeanGrad, OptimizerStep, Schedule, Stepped, Update
from metarl.types import Batch, Params, TaskBatch, TaskSource
from metarl.wrappers import unwrap

OF_STEPS = ("inputs", "actions", "log_probs", "advantages", "targets", "mask", "values")
"""The leaves of a batch that have one entry for each step."""


class RecurrentPPO:
    """The outer step of RL^2. It draws once and steps `epochs` times over all trials; the outer update is not used.

    It logs, over the whole draw and at the new parameters, `kl` (the mean of r - 1 - log r, nats), `clip_fraction` (of
    ratios), `entropy`, `value_loss` and `explained_variance` (of the values before the first step), and
    `return_episode_k` for every episode of a trial.

    Args:
        params: the initial parameters, `source.initial_params()`.
        source: the source that is trained on; it has the loss.
        learning_rate: beta, Adam's step size.
        epochs: passes over a draw.
        minibatches: parts of a draw in each pass.
        max_grad_norm: clips the gradient of each step; `None`: no clipping.
        schedule: from the number of finished iterations to a factor of the learning rate.
        seed: of the order of minibatches.

    Raises:
        ValueError: for numbers that cannot work.

    Example:
        >>> from metarl import MetaLearner, make_method
        >>> from metarl.agents.rl2 import RecurrentPolicy
        >>> from metarl.envs import Navigation
        >>> tasks = Navigation(horizon=5)
        >>> policy = RecurrentPolicy(tasks.observation_space, tasks.action_space, units=8)
        >>> source = RecurrentTrials(tasks, policy, trials=2, episodes=2)
        >>> step = RecurrentPPO(source.initial_params(), source, epochs=2, minibatches=2)
        >>> learner = MetaLearner.from_parts(source, make_method("multitask"), step, meta_batch_size=3).learn(2)
        >>> learner.counts["env_steps"]  # 2 x 3 tasks x 2 trials x 2 episodes x 5 steps
        120
    """

    def __init__(
        self,
        params: Params,
        source: RecurrentTrials,
        *,
        learning_rate: float = 1e-3,
        epochs: int = 4,
        minibatches: int = 4,
        max_grad_norm: float | None = 0.5,
        schedule: Schedule | None = None,
        seed: int = 0,
    ) -> None:
        check_type("source", source, RecurrentTrials, "a RecurrentTrials")
        self.source = source
        self.epochs, self.minibatches = check_int("epochs", epochs), check_int("minibatches", minibatches)
        self.optimizer = OptimizerStep(params, torch.optim.Adam, learning_rate, max_grad_norm, schedule)
        self._rng = stream_generator(check_int("seed", seed, minimum=0), Stream.MINIBATCHES)

    def check_source(self, source: TaskSource) -> None:
        """Raise a `ValueError` unless the learner trains on the same source."""
        if source is not self.source:
            raise ValueError("source must be the one that RecurrentPPO was made with")

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """Draw, and step along the gradients of minibatches."""
        batch, iterations = tasks.draw(tree.broadcast(params, tasks.num_tasks), "outer"), self.optimizer.steps
        rows = {name: batch[name].flatten(0, 1) for name in OF_STEPS}  # [n, L, ...]
        number = len(rows["mask"])
        first: MeanGrad | None = None
        for _ in range(self.epochs):
            for chosen in np.array_split(self._rng.permutation(number), min(self.minibatches, number)):
                part = {name: leaf[torch.from_numpy(np.sort(chosen)).to(leaf.device)] for name, leaf in rows.items()}
                self.optimizer.steps = iterations  # the schedule counts iterations, not minibatches
                stepped = self.optimizer(params, tasks, partial(self._gradient, batch=part))
                params, first = stepped.params, first or stepped.meta_grad
        assert first is not None
        returns = batch["returns"].mean((0, 1)).tolist()  # of each episode
        info = {**stepped.info, **self._describe(params, rows)}
        info |= {f"return_episode_{k}": value for k, value in enumerate(returns, 1)}
        return Stepped(params, first._replace(score=returns[-1]), info)

    def _gradient(self, params: Params, tasks: TaskBatch, batch: Batch) -> MeanGrad:
        """The gradient of the loss on some of the trials."""
        w = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
        loss = self.source.loss(w, batch)
        grads = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))
        if not bool(torch.isfinite(loss)) or not all(bool(torch.isfinite(g).all()) for g in grads.values()):
            raise NonFiniteError("the gradient of a minibatch")
        return MeanGrad(grads, float("nan"), float("nan"))  # tasks are mixed: no spread between them

    @torch.no_grad()
    def _describe(self, params: Params, rows: Batch) -> dict[str, float]:
        """Values for the log, at the end."""
        found, mask = self.source.outputs(params, rows), rows["mask"]
        log_ratio, number = log_ratios(self.source, found.action, rows), rows["mask"].sum()

        def mean(x: Tensor) -> float:
            return float((x * mask).sum() / number)

        mean_target, scale = self.source.value_scale()
        raw = rows["targets"] * scale + mean_target, rows["values"] * scale + mean_target
        return {
            "kl": mean(log_ratio.exp() - 1 - log_ratio),
            "clip_fraction": mean(((log_ratio.exp() - 1).abs() > self.source.clip).to(mask.dtype)),
            "entropy": mean(entropy(found.action)),
            "value_loss": mean((found.value - rows["targets"]).square()),
            "explained_variance": explained_variance(raw[1], raw[0], mask),
        }

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, with the number of finished iterations, and the generator of minibatches."""
        return {**self.optimizer.state_dict(), "rng": generator_state(self._rng)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            StateError: when it does not fit, naming the entry.
        """
        where = ("outer_step",)
        found = check_keys(state, self.state_dict(), where)
        rng = found.pop("rng")
        check_like(rng, "", (*where, "rng"))
        try:
            restore_generator(self._rng, rng)
        except ValueError as error:
            raise StateError(f"outer_step.rng does not fit: {error}") from None
        self.optimizer.load_state_dict(found)


def episode_returns(tasks: TaskBatch, params: Params) -> tuple[Tensor, Tensor]:
    """The mean undiscounted return of each episode of a trial, `[T, K]`, and the episodes' mean lengths, `[T, K]`.

    Raises:
        ValueError: for tasks of another source.
    """
    drawn = unwrap(tasks)
    check_type("tasks", drawn, TrialBatch, "tasks of a RecurrentTrials")
    assert isinstance(drawn, TrialBatch)
    trials = drawn.rollout(params)
    return trials.returns.mean(1), trials.lengths.mean(1)
