"""Outer steps that a command line names, and learners that take them.

make_learner("alpha_maml", source, learning_rate=0.01, step_options={"floor": None}, outer="maml", ...)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metarl import MetaLearner, Method, make_method
from metarl.errors import check_real, did_you_mean
from metarl.experiments.common import options
from metarl.step import HypergradientStep
from metarl.types import Params, TaskSource

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}

APPLY = {
    **dict.fromkeys(OPTIMIZERS, ("learning_rate", "max_grad_norm", "anneal_iterations", "anneal")),
    "alpha_maml": ("learning_rate", "max_grad_norm", "step_options"),
    **dict.fromkeys(("fallah", "ji"), ("step_tasks",)),
}
"""Settings that apply to an outer step; those of the others must be left alone."""

UNSET: Mapping[str, Sequence[Any]] = {
    **{"learning_rate": (None,), "max_grad_norm": (None,), "anneal_iterations": (None, 0), "anneal": ("linear",)},
    **{"step_tasks": (20,), "step_options": ((),)},
}
"""Values of these settings that leave them alone."""

STEP_OPTIONS = ("hyper_lr_alpha", "hyper_lr_beta", "floor")
"""Options of `alpha_maml`; its other arguments are settings of every run."""


def read_step_options(entries: Sequence[str]) -> dict[str, Any]:
    """The options of `alpha_maml` from name=value.

    Raises:
        ValueError: for a name that it does not have, or a value of another type.
    """
    found = options.read("step_options", entries, HypergradientStep)
    for name in found:
        if name not in STEP_OPTIONS:
            near = did_you_mean(name, STEP_OPTIONS)
            raise ValueError(f"step_options must be some of {sorted(STEP_OPTIONS)}, got {name!r}{near}")
    return found


def check_step(step: str, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Check everything that can be checked without a source, which may take long to make.

    Args:
        step: the outer step.
        given: the settings of the run, by name.
        arguments: as for `make_learner`.

    Raises:
        ValueError: naming the setting that does not apply to the outer step, or cannot work.
    """
    for name, unset in UNSET.items():
        if name in given and name not in APPLY[step] and given[name] not in unset:
            raise ValueError(f"{name} does not apply to outer step {step!r}; remove it")
    method = make_named_method(arguments)
    if step == "alpha_maml":
        tiny = {"w": torch.zeros(1)}
        meta = {} if method.learned_rule is None else method.learned_rule.initial_meta(tiny)
        make_alpha_maml({**tiny, **meta}, given["step_options"], given["learning_rate"], arguments)


def make_named_method(arguments: Mapping[str, Any]) -> Method:
    """The method of the arguments of `MetaLearner`."""
    named = (arguments[name] for name in ("outer", "inner_lr", "inner_steps"))
    return make_method(*named, **arguments["outer_options"])


def make_learner(
    step: str, source: TaskSource, entries: Sequence[str], learning_rate: float, arguments: Mapping[str, Any]
) -> MetaLearner:
    """A learner with the outer step `adam`, `sgd` or `alpha_maml`; `entries` are its options as name=value.

    `arguments` are those of `MetaLearner`, from `learner_arguments`, and `meta_batch_size`.
    """
    if step in OPTIMIZERS:
        return MetaLearner(source, optimizer=OPTIMIZERS[step], learning_rate=learning_rate, **arguments)
    method = make_named_method(arguments)
    outer_step = make_alpha_maml(method.initial_params(source), entries, learning_rate, arguments)
    shared = {name: arguments[name] for name in ("meta_batch_size", "seed", "processes")}
    return MetaLearner.from_parts(source, method, outer_step, **shared)


def make_alpha_maml(
    params: Params, entries: Sequence[str], learning_rate: float, arguments: Mapping[str, Any]
) -> HypergradientStep:
    """The outer step `alpha_maml`; the learning rate is its initial one."""
    own = {"max_grad_norm": arguments["max_grad_norm"], **read_step_options(entries)}
    return HypergradientStep(params, check_real("learning_rate", learning_rate), **own)
