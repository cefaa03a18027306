"""Outer steps that a command line names, and learners that take them.

make_learner("alpha_maml", source, learning_rate=0.01, step_options={"floor": None}, outer="maml", ...)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from metarl import MetaLearner, Method, make_method
from metarl.checkpoint.learner_state import make_step
from metarl.errors import check_real, did_you_mean
from metarl.experiments.common import options
from metarl.step import HypergradientStep, OuterStep, ProximalStep, TrustRegionStep
from metarl.types import Params, TaskSource

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


NO_OPTIONS = ("params", "method", "optimizer", "schedule")
"""Arguments of outer steps that are not read from name=value."""


class NamedStep(NamedTuple):
    """An outer step with its own class, unlike the optimisers, which share one."""

    kind: Callable[..., OuterStep]
    """The class: `kind(params, **options)` or `kind(params, method, **options)`."""
    settings: Mapping[str, str] = MappingProxyType({})
    """Settings of every run that apply to it, and the arguments they give."""
    anneals: bool = False
    """Whether the settings of annealing apply to it, too, as its `schedule`."""
    replays: bool = False
    """Whether it takes several points on the same draws: D_h is then D_in again by default, if the update has both."""

    @property
    def applicable(self) -> tuple[str, ...]:
        """All settings of a run that apply to it."""
        return (*self.settings, "step_options", *(("anneal_iterations", "anneal") if self.anneals else ()))

    @property
    def options(self) -> list[str]:
        """Its other arguments, which `step_options` gives."""
        return [name for name in self._arguments if name not in self.settings.values()]

    @property
    def has_learning_rate(self) -> bool:
        """Whether it takes the setting `learning_rate`."""
        return "learning_rate" in self.settings

    @property
    def _arguments(self) -> list[str]:
        return [name for name in inspect.signature(self.kind).parameters if name not in NO_OPTIONS]


STEPS = {
    "alpha_maml": NamedStep(HypergradientStep, {"learning_rate": "outer_lr", "max_grad_norm": "max_grad_norm"}),
    "proximal": NamedStep(
        ProximalStep,
        {name: name for name in ("learning_rate", "max_grad_norm", "inner_lr_rate")},
        anneals=True,
        replays=True,
    ),
    "trust_region": NamedStep(TrustRegionStep, replays=True),
}
"""Every outer step with its own class, by name."""

APPLY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OPTIMIZERS, ("learning_rate", "max_grad_norm", "inner_lr_rate", "anneal_iterations", "anneal")),
    **{name: step.applicable for name, step in STEPS.items()},
    **dict.fromkeys(("fallah", "ji"), ("step_tasks",)),
}
"""Settings that apply to an outer step; those of the others must be left alone."""

UNSET: Mapping[str, Sequence[Any]] = {
    **{"learning_rate": (None,), "max_grad_norm": (None,), "anneal_iterations": (None, 0), "anneal": ("linear",)},
    **{"step_tasks": (20,), "step_options": ((),), "inner_lr_rate": (None,)},
}
"""Values of these settings that leave them alone."""


def read_step_options(step: str, entries: Sequence[str]) -> dict[str, Any]:
    """The options of a step in `STEPS` from name=value.

    Raises:
        ValueError: for a name that it does not have, or a value of another type.
    """
    found, known = options.read("step_options", entries, STEPS[step].kind), STEPS[step].options
    for name in found:
        if name not in known:
            near = did_you_mean(name, known)
            raise ValueError(f"step_options must be some of {sorted(known)}, got {name!r}{near}")
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
    make_named_method(arguments)
    if step in STEPS:
        method = make_named_method({**arguments, "adapt": None})  # whose parameters are not known yet
        tiny = {"w": torch.zeros(1)}
        meta = {} if method.learned_rule is None else method.learned_rule.initial_meta(tiny)
        make_named_step(step, {**tiny, **meta}, method, given["step_options"], given["learning_rate"], arguments)


def make_named_method(arguments: Mapping[str, Any]) -> Method:
    """The method of the arguments of `MetaLearner`."""
    named = (arguments[name] for name in ("outer", "inner_lr", "inner_steps"))
    return make_method(*named, adapt=arguments["adapt"], **arguments["outer_options"])


def make_learner(
    step: str, source: TaskSource, entries: Sequence[str], learning_rate: float | None, arguments: Mapping[str, Any]
) -> MetaLearner:
    """A learner with an optimiser or a step of `STEPS`; `entries` are the step's own options as name=value.

    `arguments` are those of `MetaLearner`, from `learner_arguments`, and `meta_batch_size`.
    """
    if step in OPTIMIZERS:
        assert learning_rate is not None
        return MetaLearner(source, optimizer=OPTIMIZERS[step], learning_rate=learning_rate, **arguments)
    method = make_named_method(arguments)
    params = method.initial_params(source)
    outer_step = make_named_step(step, params, method, entries, learning_rate, arguments)
    shared = {name: arguments[name] for name in ("meta_batch_size", "seed", "processes")}
    return MetaLearner.from_parts(source, method, outer_step, **shared)


def make_named_step(
    step: str,
    params: Params,
    method: Method,
    entries: Sequence[str],
    learning_rate: float | None,
    arguments: Mapping[str, Any],
) -> OuterStep:
    """A step of `STEPS` with its own options and the settings of every run that it takes."""
    named = STEPS[step]
    settings = {**arguments}
    if named.has_learning_rate:
        settings["learning_rate"] = check_real("learning_rate", learning_rate)
    own = {argument: settings[name] for name, argument in named.settings.items()}
    own.update({"schedule": arguments["schedule"]} if named.anneals else {})
    return make_step(named.kind, params, method, {**own, **read_step_options(step, entries)})
