"""Names for methods: a name selects an outer update together with the inner rule of its definition."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from metarl.errors import HessianWarning, check_at_least, check_int, check_real, check_type, did_you_mean
from metarl.inner import rules
from metarl.learned_rules import LearnedRule, as_learned
from metarl.memory import check_fits
from metarl.partial import Patterns, adapt_only, check_patterns, check_start, fix_contexts
from metarl.types import (
    ChecksSecondDerivatives,
    ChecksSize,
    HasBatchNorm,
    HasEpisodes,
    HasHessianWarning,
    HasParticles,
    Inner,
    OuterUpdate,
    Params,
    Rule,
    TaskSource,
)


class Recipe(NamedTuple):
    """The arguments of `make_method`: a checkpoint holds them, and they make the same method again."""

    name: str
    inner_lr: float
    inner_steps: int
    options: Mapping[str, Any]
    adapt: tuple[str, ...] | None = None

    def make(self) -> "Method":
        """The method."""
        return make_method(self.name, self.inner_lr, self.inner_steps, adapt=self.adapt, **self.options)


class Annealing(NamedTuple):
    """Other updates in the first iterations of training."""

    iterations: int  # how many
    update: Callable[[int], OuterUpdate]  # of an iteration, counted from 0


@dataclass(frozen=True, eq=False)
class Method:
    """A published algorithm: an outer update and the inner loop of its definition.

    Example, first-order in the first ten iterations:
        >>> fo_maml, maml = make_method("fo_maml"), make_method("maml")
        >>> method = Method(maml.update, maml.inner, annealing=Annealing(10, lambda iteration: fo_maml.update))
        >>> method.at(9) is fo_maml.update, method.at(10) is maml.update
        (True, True)
    """

    update: OuterUpdate
    inner: Inner
    min_tasks: int = 1  # in a batch: more than one if the update compares tasks
    min_episodes: int = 1  # of each task in a draw: more than one if the update compares episodes
    needs_hessian: bool = False  # of the tasks' loss, exactly or by differences of gradients
    differentiates_twice: bool = False  # takes exact Hessian-vector products, of any loss
    annealing: Annealing | None = None  # other updates in the first iterations
    follows_adapted_loss: bool = True  # the meta-gradient is that of the outer loss at the end of the inner steps
    replays: bool = False  # right on draws made at other parameters too, through the likelihood ratios of the losses
    trains_frozen_params: bool = True  # its meta-gradient moves parameters that no inner step adapts
    adapts: bool = True  # in training; if not, the meta-gradient follows the outer loss at the parameters themselves
    needs_particles: bool = False  # parameters [M, ...], of `metarl.supervised.particles.Particles`
    recipe: Recipe | None = field(default=None, init=False)  # set by `make_method`; a method of your own has none

    def at(self, iteration: int) -> OuterUpdate:
        """The update of an iteration, counted from 0."""
        early = self.annealing
        return self.update if early is None or iteration >= early.iterations else early.update(iteration)

    @property
    def inner_in_training(self) -> Inner:
        """The inner loop as training uses it: without a step unless the method `adapts`."""
        return self.inner if self.adapts else self.inner._replace(steps=0)

    @property
    def learned_rule(self) -> LearnedRule | None:
        """The inner rule if it has meta-parameters."""
        return as_learned(self.inner.rule)

    def initial_params(self, source: TaskSource) -> Params:
        """The parameters before training: the source's and the inner rule's meta-parameters.

        Raises:
            ValueError: for parameters that the inner rule cannot adapt.
        """
        params, rule = source.initial_params(), self.learned_rule
        check_start(self.inner.rule, params)
        if rule is None:
            return params
        batch_norm = source.batch_norm_params if isinstance(source, HasBatchNorm) else []
        return {**params, **rule.initial_meta(params, batch_norm)}

    def make_rules(self, step_sizes: Sequence[float | None]) -> list[Rule]:
        """The inner rule of each step with another step size; `None` means as in training.

        Raises:
            ValueError: when the method was not made by its name.
        """
        own = rules(self.inner, len(step_sizes))
        return [rule if size is None else self._fixed(rule, size) for rule, size in zip(own, step_sizes, strict=True)]

    def _fixed(self, rule: Rule, step_size: float) -> Rule:
        if isinstance(rule, LearnedRule):
            return rule.with_step_size(step_size)
        if self.recipe is None:
            raise ValueError("step_sizes need a method made by its name, such as make_method('maml')")
        return self.recipe._replace(inner_lr=step_size).make().inner.rule

    def __reduce__(self) -> tuple[Any, ...]:
        """For `copy.deepcopy` and `pickle`: a named method is made again, because its functions cannot be pickled."""
        if self.recipe is not None:
            return Recipe.make, (self.recipe,)
        return Method, tuple(getattr(self, name.name) for name in dataclasses.fields(self) if name.init)


Builder = TypeVar("Builder", bound=Callable[..., Method])

OUTER: dict[str, Callable[..., Method]] = {}
"""Every registered builder, by name."""


def register(name: str) -> Callable[[Builder], Builder]:
    """Register a builder `(inner_lr=..., inner_steps=..., *, option=...) -> Method` under `name`.

    The defaults of the builder's parameters are the method's defaults; its keyword-only parameters are the options.

    Raises:
        ValueError: when the name is taken, or the builder's parameters are different or have no defaults.
    """

    check_type("name", name, str, "a word")

    def enter(builder: Builder) -> Builder:
        if name in OUTER:
            raise ValueError(f"name {name!r} is taken by {OUTER[name].__module__}; choose another one")
        parameters = inspect.signature(builder).parameters
        bare = [key for key, p in parameters.items() if p.default is p.empty]
        if bare or list(parameters)[:2] != ["inner_lr", "inner_steps"] or "adapt" in parameters:
            raise ValueError(
                f"the builder of {name!r} must have the parameters (inner_lr=..., inner_steps=..., *, option=...), "
                f"all with defaults, and none called adapt, got {inspect.signature(builder)}"
            )
        OUTER[name] = builder
        return builder

    return enter


def builder(name: str) -> Callable[..., Method]:
    """The builder registered as `name`.

    Raises:
        ValueError: for an unknown name; suggests the nearest one.
    """
    if not isinstance(name, str) or name not in OUTER:
        raise ValueError(f"outer must be one of {sorted(OUTER)}, got {name!r}{did_you_mean(name, OUTER)}")
    return OUTER[name]


def options(name: str) -> dict[str, Any]:
    """The options of the method `name` with their defaults."""
    return {p.name: p.default for p in _parameters(name).values() if p.kind is p.KEYWORD_ONLY}


def inner_defaults(name: str) -> tuple[float, int]:
    """The default inner step size and number of inner steps of the method `name`."""
    parameters = _parameters(name)
    return parameters["inner_lr"].default, parameters["inner_steps"].default


def without_particles() -> list[str]:
    """The registered methods that train one network, on every source: all that do not need particles."""
    return [name for name, build in OUTER.items() if not build().needs_particles]


def make_method(
    name: str,
    inner_lr: float | None = None,
    inner_steps: int | None = None,
    *,
    adapt: Patterns | None = None,
    **chosen: Any,
) -> Method:
    """The method registered as `name`.

    Args:
        name: one of `OUTER`.
        inner_lr: the inner step size alpha; default: the method's own.
        inner_steps: N; default: the method's own.
        adapt: which parameters the inner steps move: `head`, `context` or patterns (`metarl.partial`); default: all.
        chosen: options of the method, such as `hessian_data="reuse"` for `maml`.

    Raises:
        ValueError: for an unknown name or option, or a number that does not fit.

    Example:
        >>> make_method("moreau", inner_lr=0.1, inner_steps=3).inner.steps
        3
        >>> make_method("mamel", inner_lr=0.1)
        Traceback (most recent call last):
        ValueError: outer must be one of [...], got 'mamel'; did you mean 'maml'?
    """
    default_lr, default_steps = inner_defaults(name)
    inner_lr = default_lr if inner_lr is None else check_real("inner_lr", inner_lr)
    inner_steps = default_steps if inner_steps is None else check_int("inner_steps", inner_steps)
    known = options(name)
    for option in chosen:
        if option not in known:
            near = did_you_mean(option, known)
            raise ValueError(f"outer {name!r} has the options {sorted(known)}, got {option!r}{near}")
    method = dataclasses.replace(OUTER[name](inner_lr, inner_steps, **chosen))  # a copy without a recipe
    patterns = None if adapt is None else check_patterns(adapt)
    if patterns is not None:
        method = _adapt_only(method, patterns, name)
    object.__setattr__(method, "recipe", Recipe(name, inner_lr, inner_steps, chosen, patterns))
    return method


def _adapt_only(method: Method, patterns: tuple[str, ...], name: str) -> Method:
    """`method` with inner steps of the parameters that match `patterns`.

    Raises:
        ValueError: when it would never train the others.
    """
    if not method.trains_frozen_params:
        raise ValueError(
            f"adapt does not apply to {name!r}: its meta-gradient is zero for parameters that no inner step adapts, so "
            f"they would never be trained; remove it, got {list(patterns)}"
        )
    rule, early = adapt_only(method.inner.rule, patterns), method.annealing
    return dataclasses.replace(
        method,
        update=fix_contexts(method.update),
        inner=method.inner._replace(rule=rule),
        annealing=None if early is None else early._replace(update=lambda i: fix_contexts(early.update(i))),
    )


def check_method(method: Method, source: object, num_tasks: int, stacklevel: int) -> None:
    """Check that `method` can be trained on `num_tasks` tasks of `source`, as far as the source can tell.

    Gives a `HessianWarning`, at `stacklevel` above here, if the loss's Hessian is not the objective's.

    Raises:
        ValueError: for too few tasks or episodes, parameters that are not particles, or a loss that cannot be
            differentiated twice.
    """
    if isinstance(source, ChecksSize):
        source.check_size(num_tasks, "meta_batch_size")
    check_fits(f"inner_steps = {method.inner.steps}", method.inner.steps, bytes_each=8)  # one rule each
    check_at_least("meta_batch_size", num_tasks, method.min_tasks, "this outer update")
    if isinstance(source, HasEpisodes):
        check_at_least("episodes", source.episodes, method.min_episodes, "this outer update")
    if method.needs_particles and not isinstance(source, HasParticles):
        raise ValueError(
            "source must have particles for this outer update: wrap Sinusoids or FewShot in "
            f"metarl.supervised.particles.Particles, got {type(source).__name__}"
        )
    if method.differentiates_twice and isinstance(source, ChecksSecondDerivatives):
        source.check_second_derivatives()
    reason = source.hessian_warning if isinstance(source, HasHessianWarning) else None
    if method.needs_hessian and reason is not None:
        name = "this outer update" if method.recipe is None else repr(method.recipe.name)
        warnings.warn(f"{name} uses the loss's Hessian, but {reason}", HessianWarning, stacklevel=stacklevel + 1)


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(builder(name)).parameters)
