"""Outer steps along the mean meta-gradient with any optimiser of `torch.optim`.

Learned inner step sizes (`metarl.learned_rules`) have a learning rate of their own, by default that of the parameters
times their first value. Adam changes a number by about its learning rate, whatever its unit: 3e-3 is little for a
weight, and a third of a step size of 0.01.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch

from metarl import tree
from metarl.errors import StateError, check_real
from metarl.learned_rules import step_sizes
from metarl.outer.registry import Method
from metarl.schedules import as_data
from metarl.state_dict import Where, check_count, check_keys, check_like, name_of, skeleton
from metarl.step.mean_grad import MeanGrad
from metarl.types import Params, TaskBatch, TaskSource

OptimizerFactory: TypeAlias = Callable[..., torch.optim.Optimizer]
"""`(leaves, lr=...) -> optimiser`: a class of `torch.optim`, or a `functools.partial` of one."""

Schedule: TypeAlias = Callable[[int], float]
"""From the number of finished iterations to a factor of the learning rate."""


class Stepped(NamedTuple):
    """The result of an outer step."""

    params: Params
    meta_grad: MeanGrad
    info: Mapping[str, float] = MappingProxyType({})  # values of the step for the log


Update: TypeAlias = Callable[[Params, TaskBatch], MeanGrad]
"""From parameters and tasks to the meta-gradient there: an `OuterUpdate`, averaged over all tasks."""


class OuterStep(Protocol):
    """How a meta-gradient moves w. `update` may be called at several points, on the same or on replayed draws.

    With several processes, `tasks` are those of this process, and `update` returns the mean over all processes. A step
    must be the same in all of them, so it must gather all other values (`metarl.processes.share_of`).
    """

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """One outer step from `params`."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, except the parameters."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""


@runtime_checkable
class ChecksSource(Protocol):
    """An outer step that can tell early whether it works on a source of tasks."""

    def check_source(self, source: TaskSource) -> None:
        """Raise a `ValueError` if it does not."""


def check_same_method(step: OuterStep, method: Method) -> None:
    """Check that a step that takes a method has the learner's.

    Raises:
        ValueError: when it has another one: it would adapt in another way than the update.
    """
    own = getattr(step, "method", None)
    if isinstance(own, Method) and own is not method and (own.recipe is None or own.recipe != method.recipe):
        raise ValueError(
            f"outer_step must be made with the learner's method, {method.recipe}, got one made with {own.recipe}"
        )


class OptimizerStep:
    """One step of a `torch.optim` optimiser along the mean meta-gradient, optionally clipped and scheduled.

    Args:
        params: the initial parameters, for their shapes and the first values of learned inner step sizes.
        optimizer: the factory.
        learning_rate: beta, the outer step size.
        max_grad_norm: a longer mean meta-gradient is scaled down to this norm; that of inner step sizes by itself.
        schedule: see `Schedule`; without one the learning rate is constant.
        inner_lr_rate: the outer step size of learned inner step sizes; default: beta times their first mean value.
    """

    def __init__(
        self,
        params: Params,
        optimizer: OptimizerFactory = torch.optim.Adam,
        learning_rate: float = 1e-3,
        max_grad_norm: float | None = None,
        schedule: Schedule | None = None,
        inner_lr_rate: float | None = None,
    ) -> None:
        self.learning_rate = check_real("learning_rate", learning_rate)
        self.max_grad_norm = None if max_grad_norm is None else check_real("max_grad_norm", max_grad_norm)
        self.schedule = schedule
        self.steps = 0
        if not callable(optimizer):
            raise ValueError(f"optimizer must be a class of torch.optim or another factory, got {optimizer!r}")
        if schedule is not None and not callable(schedule):
            raise ValueError(f"schedule must be a function of the number of finished iterations, got {schedule!r}")
        known = isinstance(optimizer, type) and getattr(torch.optim, optimizer.__name__, None) is optimizer
        self.optimizer_name = optimizer.__name__ if known else None  # a checkpoint holds the name
        self._changes_grads = not known or max_grad_norm is not None  # clipping does; torch's own optimisers do not
        self._leaves = tree.detach(params)
        options = {"fused": True} if known and "fused" in inspect.signature(optimizer).parameters else {}
        make = functools.partial(optimizer, lr=self.learning_rate, **options)
        self._structures = _try(optimizer, make, params)
        self._optimizer = make(_groups(self._leaves))
        self.inner_lr_rate = None if inner_lr_rate is None else check_real("inner_lr_rate", inner_lr_rate)
        if inner_lr_rate is not None and not step_sizes(params):
            raise ValueError(
                "inner_lr_rate needs learned inner step sizes: set learn_inner_lr (--learn-inner-lr layer), or leave"
                f" out inner_lr_rate, got {inner_lr_rate}"
            )
        self._first_inner_lr = _mean_inner_lr(params)

    def config(self) -> dict[str, Any]:
        """The settings that a checkpoint holds."""
        return {
            "learning_rate": self.learning_rate,
            "optimizer": self.optimizer_name,
            "max_grad_norm": self.max_grad_norm,
            "scheduled": self.schedule is not None,
            "schedule": as_data(self.schedule),
            "inner_lr_rate": self.inner_lr_rate,
        }

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """Take the meta-gradient at `params` and step."""
        meta_grad = update(params, tasks)
        by_default = self.learning_rate * self._first_inner_lr
        rates = [self.learning_rate, by_default if self.inner_lr_rate is None else self.inner_lr_rate]
        groups = self._optimizer.param_groups
        if self.schedule is not None:
            factor = check_real("schedule must return a factor, which", self.schedule(self.steps), open_low=False)
            rates = [rate * factor for rate in rates]
        for group, rate in zip(groups, rates[: len(groups)], strict=True):
            group["lr"] = rate
        for key, leaf in self._leaves.items():
            leaf.copy_(params[key])
            leaf.grad = meta_grad.grads[key].clone() if self._changes_grads else meta_grad.grads[key]
        if self.max_grad_norm is not None:
            for group in self._optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
        self._optimizer.step()
        self.steps += 1
        return Stepped(tree.detach(self._leaves), meta_grad, {"learning_rate": rates[0]})

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the number of steps taken."""
        first = {"first_inner_lr": self._first_inner_lr} if step_sizes(self._leaves) else {}
        return {"optimizer": self._optimizer.state_dict(), "steps": self.steps, **first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            StateError: when it does not fit this optimiser and these parameters, naming the entry.
        """
        where = ("outer_step",)
        checked = check_keys(state, self.state_dict(), where)
        first = checked.get("first_inner_lr", 1.0)
        check_like(first, 1.0, (*where, "first_inner_lr"))
        if not math.isfinite(first):
            raise StateError(f"{name_of((*where, 'first_inner_lr'))} must be a finite number, found {first}")
        steps = check_count(checked["steps"], (*where, "steps"))
        saved = copy.deepcopy(self._check_state(checked["optimizer"], steps, (*where, "optimizer")))  # changed in place
        self._optimizer.load_state_dict(saved)
        _restore_types(self._optimizer, saved["state"])
        self.steps, self._first_inner_lr = steps, first

    def _check_state(self, found: object, steps: int, where: Where) -> dict[str, Any]:
        """The optimiser's state, if it has the structure of one after so many steps."""
        own = self._optimizer.state_dict()
        saved = check_keys(found, {"state": {}, "param_groups": []}, where)
        groups, wanted = saved["param_groups"], own["param_groups"]
        if isinstance(groups, list) and len(groups) == len(wanted):
            # another version of torch may have saved fewer options: the others keep torch's defaults
            groups = [
                {**mine, **group} if isinstance(group, Mapping) else group
                for mine, group in zip(wanted, groups, strict=True)
            ]
        check_like(groups, wanted, (*where, "param_groups"))
        for i, (group, mine) in enumerate(zip(groups, wanted, strict=True)):
            if group["params"] != mine["params"]:
                name = name_of((*where, "param_groups", i, "params"))
                raise StateError(f"{name} must be {mine['params']!r:.80}, found {group['params']!r:.80}")
        structure = self._structures[min(steps, 1)]
        if not type(self._optimizer).__module__.startswith("torch.optim"):  # its state may grow from step to step
            structure = _common(structure, saved["state"])
        check_like(saved["state"], structure, (*where, "state"))
        return {"state": saved["state"], "param_groups": groups}


def _groups(leaves: Params) -> Any:
    """What an optimiser is made of: the leaves, or two groups, of which the second has the inner step sizes."""
    learned = step_sizes(leaves)
    if not learned:
        return list(leaves.values())
    rest = [leaf for name, leaf in leaves.items() if name not in learned]
    return [{"params": rest}, {"params": list(learned.values())}]


def _mean_inner_lr(params: Params) -> float:
    """The mean of the learned inner step sizes; 1 if it is 0, or if there are none."""
    learned = step_sizes(params)
    return float(torch.cat([leaf.flatten() for leaf in learned.values()]).mean()) or 1.0 if learned else 1.0


def _common(structure: Any, found: Any) -> Any:
    """`structure` if `found` has tensors under the same keys, and `found` everywhere else."""
    if isinstance(structure, Mapping) and isinstance(found, Mapping):
        return {key: _common(structure[key], entry) if key in structure else entry for key, entry in found.items()}
    return structure if isinstance(structure, torch.Tensor) else found


def _try(optimizer: OptimizerFactory, make: OptimizerFactory, params: Params) -> tuple[Any, Any]:
    """Take one step of the optimiser on copies of `params`, with zero gradients.

    Returns the structure of the optimiser's state before the step and after it.

    Raises:
        ValueError: naming the optimiser and the reason why it cannot take an outer step.
    """
    name = getattr(optimizer, "__name__", repr(optimizer))
    leaves = tree.detach(params)
    for leaf in leaves.values():
        leaf.grad = torch.zeros_like(leaf)
    try:
        # an error at construction, a wrong type, or a step that cannot work is found here
        trial = make(_groups(leaves))
        if not isinstance(trial, torch.optim.Optimizer):
            raise TypeError(f"it makes a {type(trial).__name__}")
        closure = inspect.signature(type(trial).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise TypeError("its step evaluates the loss again, but a meta-gradient is one draw")
        before = skeleton(trial.state_dict()["state"])
        trial.step()
        return before, skeleton(trial.state_dict()["state"])
    except Exception as error:  # a factory may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"optimizer must take steps with the gradients of all parameters, like Adam or SGD; {name} cannot: {reason}"
        ) from error


def _restore_types(optimizer: torch.optim.Optimizer, saved: Mapping[int, Mapping[str, Any]]) -> None:
    """Restore the saved dtypes of the state: torch casts it to the parameters' dtype, such as NAdam's `mu_product`."""
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    for i, values in saved.items():
        state = optimizer.state[leaves[i]]
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and state[key].dtype != value.dtype:
                state[key] = value.detach().clone().to(state[key].device)
