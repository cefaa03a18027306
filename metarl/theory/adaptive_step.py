"""The outer step of the theory: plain descent with a new beta_k at every w (Fallah et al., 2020; Ji et al., 2022).

    w_{k+1} = w_k - beta_k mean_i G_i(w_k),    beta_k = c / (constant + slope mean_{j in B'} |g_j(w_k; D_beta^j)|)

B' and D_beta are independent of the tasks and the batches of the direction, as the theorems require.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch.func import vmap

from metarl import tree
from metarl.derivatives import gradients
from metarl.errors import check_int
from metarl.processes import share_of
from metarl.random import Stream, generator_state, restore_generator, stream_generator
from metarl.state_dict import check_like
from metarl.step.optimizer import Stepped, Update
from metarl.theory.step_sizes import StepSizeRule
from metarl.types import Params, TaskBatch, TaskSource
from metarl.wrappers import wrap_like


class AdaptiveStep:
    """A step `w - beta G` with beta from a rule and the gradients of its own tasks.

    Its draws and gradients are counted in the run's counts; several processes share its tasks, too.

    Args:
        rule: `metarl.theory.fallah_rule(...)` or `ji_rule(...)`.
        source: where B' comes from. D_beta is an inner draw of its tasks.
        num_tasks: |B'|.
        seed: of B' and D_beta.

    Example:
        >>> import torch
        >>> from metarl import MetaLearner, make_method
        >>> from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
        >>> from metarl.theory import fallah_rule
        >>> tasks = FiniteSumTaskBatch(lambda w, b: (w["x"] - b["c"]) ** 2 / 2, {"c": torch.tensor([0.0, 1.0])})
        >>> source = FiniteSumSource(tasks, {"x": torch.tensor(2.0)})
        >>> step = AdaptiveStep(fallah_rule("maml", L=1.0, rho=0.0, inner_lr=0.1), source, num_tasks=1)
        >>> MetaLearner.from_parts(source, make_method("maml"), step, meta_batch_size=2).learn(3).iterations
        3
    """

    def __init__(self, rule: StepSizeRule, source: TaskSource, num_tasks: int, seed: int = 0) -> None:
        self.rule = rule
        self.source = source
        self.num_tasks = check_int("num_tasks", num_tasks)
        self._rng = stream_generator(check_int("seed", seed, minimum=0), Stream.OUTER_STEP_SIZE)

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """Choose beta at `params`, take the meta-gradient there and step; `info` has beta and the denominator."""
        mean_norm = self._mean_gradient_norm(params, tasks)
        beta = self.rule.step_size(mean_norm)
        meta_grad = update(params, tasks)
        stepped = tree.add_scaled(params, -beta, meta_grad.grads)
        return Stepped(stepped, meta_grad, {"outer_lr": beta, "smoothness": self.rule.smoothness(mean_norm)})

    def state_dict(self) -> dict[str, Any]:
        """The rule, |B'|, and the state of its random generator."""
        return {**self.rule._asdict(), "num_tasks": self.num_tasks, "rng": generator_state(self._rng)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: when the rule or the number of tasks was another.
        """
        constants = {name: float(value) for name, value in self.rule._asdict().items()}
        check_like(state, {**constants, "num_tasks": self.num_tasks, "rng": ""}, ("outer_step",))
        for name, own in {**constants, "num_tasks": self.num_tasks}.items():
            # an estimated constant may differ in its last digits on another machine
            if not math.isclose(own, state[name], rel_tol=1e-6):
                raise ValueError(f"{name} of the adaptive step is {own}, but was {state[name]} in training")
        restore_generator(self._rng, state["rng"])

    def _mean_gradient_norm(self, params: Params, counted_with: TaskBatch) -> float:
        tasks = wrap_like(self.source.sample(self.num_tasks, self._rng), counted_with)
        w = tree.broadcast(params, tasks.num_tasks)
        grads = gradients(tasks, w, tasks.draw(w, "inner"))
        return float(share_of(tasks).mean(vmap(tree.norm)(grads)))
