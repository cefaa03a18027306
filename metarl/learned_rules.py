"""Inner rules with meta-parameters: learned step sizes, and batch normalisation of each step.

    w_{j+1} = w_j - alpha g_j,    dL/dalpha = -sum_j <v_{j+1}, g_j>

v_{j+1} is the meta-gradient at w_{j+1}. Alpha may be one number or one for each number of w (Meta-SGD; Li, Zhou, Chen,
Li, 2017), one for each layer, or one for each layer and step (MAML++; Antoniou, Edwards, Storkey, 2019).

A meta-parameter is a leaf of the parameters whose name starts with `meta/`. So the outer step moves it, a checkpoint
holds it, and pulling back through the rule gives its gradient. Tasks must not see it: a loss that adds weight decay
sums over all leaves. `hide_meta` keeps it from them.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from metarl.errors import check_choice, check_int, check_real
from metarl.types import Batch, Loss, Params, Role, Rule, TaskBatch
from metarl.wrappers import TaskWrapper

META = "meta/"
PER_STEP = f"{META}per_step/"

StepSizes: TypeAlias = Literal["scalar", "layer", "parameter", "layer-step"]
STEP_SIZES = ("scalar", "layer", "parameter", "layer-step")


@runtime_checkable
class LearnedRule(Protocol):
    """A rule with meta-parameters. It leaves them as they are, and does not use their gradients."""

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params: ...

    def initial_meta(self, params: Params, batch_norm: Collection[str] = ()) -> Params:
        """The meta-parameters before training, for a network's `params`; every name starts with `META`.

        `batch_norm` names the weights and biases of batch normalisation in `params`.
        """

    def at_step(self, step: int) -> Rule:
        """The rule of one step, counted from 0; the steps after the last one of training use its values."""

    def with_step_size(self, step_size: float) -> Rule:
        """A rule with this fixed step size, which ignores the learned ones."""

    def describe(self, params: Params) -> dict[str, float]:
        """Values for the log, by name."""


def as_learned(rule: Rule) -> LearnedRule | None:
    """`rule` if it has meta-parameters, else `None`."""
    # one method is looked for first: most rules lack it, and a look for all methods is slow
    return rule if hasattr(rule, "at_step") and isinstance(rule, LearnedRule) else None


@dataclass(frozen=True)
class LearnedSgd:
    """`w - alpha g` with a learned alpha, for one task or for stacked tasks.

    Args:
        kind: `scalar`, `layer`, `parameter` or `layer-step`. The parameters of one module are a layer, and so is each
            parameter without a module, such as a policy's `log_std`.
        learning_rate: the initial alpha.
        steps: the inner steps of training.
        step: the step that this rule takes.
    """

    kind: StepSizes
    learning_rate: float
    steps: int = 1
    step: int = 0

    def __post_init__(self) -> None:
        check_choice("learn_inner_lr", self.kind, STEP_SIZES)
        check_real("inner_lr", self.learning_rate, open_low=False)
        check_int("inner_steps", self.steps)

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        return {**params, **{k: params[k] - self._alpha(params, k) * grads[k] for k in visible(params)}}

    def pull_back(self, params: Params, grads: Params, cotangent: Params) -> tuple[Params, Params]:
        """The vector-Jacobian products of a step of stacked tasks with respect to its parameters and its gradients.

        With the cotangent v they are `v`, and `-<v, g>` for alpha; and `-alpha v`.
        """
        through_w, through_g = dict(cotangent), {k: torch.zeros_like(leaf) for k, leaf in params.items()}
        for name in reversed(visible(params)):  # autograd adds in this order, too
            alpha, minus_v = self._alpha(params, name), -cotangent[name]
            through_g[name] = minus_v * alpha
            total = through_w[self._name(name)].clone()
            total[self._entry] += (minus_v * grads[name]).sum_to_size(alpha.shape).reshape(total[self._entry].shape)
            through_w[self._name(name)] = total
        return through_w, through_g

    def initial_meta(self, params: Params, batch_norm: Collection[str] = ()) -> Params:
        shape = {"parameter": None, "layer-step": (self.steps,)}.get(self.kind, ())
        return {
            self._name(name): torch.full_like(leaf, self.learning_rate)
            if shape is None
            else leaf.new_full(shape, self.learning_rate)
            for name, leaf in params.items()
        }

    def at_step(self, step: int) -> "LearnedSgd":
        return replace(self, step=min(step, self.steps - 1))

    def with_step_size(self, step_size: float) -> Rule:
        return FixedSgd(step_size)

    def describe(self, params: Params) -> dict[str, float]:
        """The step sizes; of each number its layer's mean, of each layer and step the step counted from 1."""
        values: dict[str, float] = {}
        for name, alpha in params.items():
            if not name.startswith(META):
                continue
            if self.kind == "layer-step":
                values.update({f"{name.removeprefix(META)}/{j}": float(a) for j, a in enumerate(alpha, 1)})
            else:
                values[name.removeprefix(META)] = float(alpha.mean())
        return values

    def _alpha(self, params: Params, name: str) -> Tensor:
        """The step size of the parameter `name` in this step, with as many dimensions as the parameter."""
        alpha = params[self._name(name)][self._entry]
        return alpha.reshape((*alpha.shape, *[1] * (params[name].ndim - alpha.ndim)))

    @property
    def _entry(self) -> Any:
        """The index of this step in a meta-parameter."""
        return (..., self.step) if self.kind == "layer-step" else ...

    def _name(self, name: str) -> str:
        """The meta-parameter with the step size of the parameter `name`."""
        if self.kind == "scalar":
            return f"{META}inner_lr"
        return f"{META}inner_lr/{name if self.kind == 'parameter' else layer(name)}"


@dataclass(frozen=True)
class FixedSgd:
    """`w - alpha g` for the parameters that a task sees, of one task or of stacked tasks; meta-parameters stay."""

    learning_rate: float

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        return {**params, **{k: params[k] - self.learning_rate * grads[k] for k in visible(params)}}


@dataclass(frozen=True)
class PerStepNorm:
    """A rule for all parameters except those of batch normalisation, which each step has its own of (MAML++).

        w_{j+1}[k] = m_k[j]    for every weight and bias k of batch normalisation,    j = 0, ..., N-1

    The rows m_k `[N, ...]` are meta-parameters, and w_0[k] is the parameter k itself: each point of the path has its
    own values. No inner step adapts them. Steps after those of training take the last row.

    Args:
        rule: of the other parameters, such as `LearnedSgd` or `metarl.inner.sgd`.
        steps: the inner steps of training, N.
        step: the step that this rule takes, j.
    """

    rule: Rule
    steps: int
    step: int = 0

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        rows = {k.removeprefix(PER_STEP): leaf[self.step] for k, leaf in params.items() if k.startswith(PER_STEP)}
        others = {k: leaf for k, leaf in params.items() if k not in rows and not k.startswith(PER_STEP)}
        return {**params, **self.rule(others, grads, anchor), **rows}

    def initial_meta(self, params: Params, batch_norm: Collection[str] = ()) -> Params:
        rows = {f"{PER_STEP}{name}": torch.stack([params[name]] * self.steps) for name in batch_norm}
        if not isinstance(self.rule, LearnedRule):
            return rows
        return {**self.rule.initial_meta({k: leaf for k, leaf in params.items() if k not in batch_norm}), **rows}

    def at_step(self, step: int) -> "PerStepNorm":
        rule = self.rule.at_step(step) if isinstance(self.rule, LearnedRule) else self.rule
        return replace(self, rule=rule, step=min(step, self.steps - 1))

    def with_step_size(self, step_size: float) -> Rule:
        # a rule of some parameters only knows which ones
        fixed = getattr(self.rule, "with_step_size", FixedSgd)(step_size)
        return replace(self, rule=fixed)

    def describe(self, params: Params) -> dict[str, float]:
        """What the rule of the other parameters logs."""
        others = {k: leaf for k, leaf in params.items() if not k.startswith(PER_STEP)}
        return self.rule.describe(others) if isinstance(self.rule, LearnedRule) else {}


def layer(name: str) -> str:
    """The module that a parameter belongs to, or the parameter's own name if it has none."""
    return name.rpartition(".")[0] or name


def visible(params: Params) -> Params:
    """What a task sees: all parameters but the meta-parameters."""
    return {name: leaf for name, leaf in params.items() if not name.startswith(META)}


def step_sizes(params: Params) -> Params:
    """The learned inner step sizes among the meta-parameters."""
    return {name: leaf for name, leaf in params.items() if f"{name}/".startswith(f"{META}inner_lr/")}


def hide_meta(tasks: TaskBatch, params: Params) -> TaskBatch:
    """`tasks` that do not see the meta-parameters in `params`, if there are any."""
    learned = any(name.startswith(META) for name in params)
    return HideMeta(tasks) if learned and not isinstance(tasks, HideMeta) else tasks


class HideMeta(TaskWrapper):
    """Tasks that do not see meta-parameters: gradients with respect to them are zero."""

    @property
    def loss(self) -> Loss:
        return _hidden(self.tasks.loss)

    @property
    def score(self) -> Loss:
        return _hidden(self.tasks.score)

    def draw(self, params: Params, role: Role) -> Batch:
        return self.tasks.draw(visible(params), role)


def _hidden(function: Loss) -> Loss:
    def of_visible(params: Params, batch: Batch) -> Tensor:
        return function(visible(params), batch)

    return of_visible
