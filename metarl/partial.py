"""Inner steps of some parameters only: ANIL (Raghu et al., 2020) and CAVIA (Zintgraf et al., 2019).

    w_{j+1}[S] = rule(w_j[S], grad_S f(w_j; D_j)),    w_{j+1}[F] = w_j[F]

S are the adapted parameters and F the frozen ones. The outer step moves both. For `w - alpha g` the pull-back of v is

    v_j = v_{j+1} - alpha H(w_j; D_h)[:, S] v_{j+1}[S]

so the frozen parameters get everything that flows through the adapted ones: the cross terms H[F, S]. Gradients in the
inner loop are taken with respect to S alone.

Patterns name S. A pattern is the name of a parameter or a layer, with `*` and `?` as in file names, or one of two
words: `head` is the last layer of the network, in the order in which the network defines its layers. `context` is the
parameter of `metarl.context.WithContext`, which is zero at the start of every adaptation (CAVIA).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TypeAlias

import torch

from metarl.errors import check_type, did_you_mean, shorten
from metarl.learned_rules import META, PER_STEP, FixedSgd, LearnedRule, PerStepNorm, as_learned, layer
from metarl.types import Inner, MetaGrad, OuterUpdate, Params, Rule, ScoreRule, TaskBatch

Patterns: TypeAlias = str | Sequence[str]
"""Which parameters inner steps adapt."""

HEAD, CONTEXT = "head", "context"


@dataclass(frozen=True)
class Partial:
    """A rule for the parameters that match `patterns`; the others stay as they are.

    Args:
        rule: of the adapted parameters, such as `metarl.inner.sgd(0.1)`.
        patterns: see `metarl.partial`.
    """

    rule: Rule
    patterns: tuple[str, ...]

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        return {**params, **self.rule(*self.own(params, params, grads, anchor))}

    def names(self, params: Params) -> tuple[str, ...]:
        """The names of the adapted parameters.

        Raises:
            ValueError: for a pattern that matches none of `params`.
        """
        return matching(self.patterns, tuple(params))

    def own(self, params: Params, *trees: Params) -> list[Params]:
        """What the rule gets of `trees`: the adapted ones of `params`, and the meta-parameters.

        Gradients may have the adapted ones alone.
        """
        adapted = self.names(params)
        return [{k: leaf for k, leaf in tree.items() if k in adapted or k.startswith(META)} for tree in trees]

    def with_step_size(self, step_size: float) -> Rule:
        """The same step of `FixedSgd`; the learned step sizes, if there are any, are ignored."""
        return Partial(FixedSgd(step_size), self.patterns)


@dataclass(frozen=True)
class LearnedPartial(Partial):
    """`Partial` of a rule with meta-parameters, such as `LearnedSgd`: these exist for the adapted parameters alone."""

    rule: LearnedRule

    def initial_meta(self, params: Params, batch_norm: Collection[str] = ()) -> Params:
        (own,) = self.own(params, params)
        return self.rule.initial_meta(own, batch_norm)

    def at_step(self, step: int) -> Rule:
        return Partial(self.rule.at_step(step), self.patterns)

    def with_step_size(self, step_size: float) -> Rule:
        return Partial(self.rule.with_step_size(step_size), self.patterns)

    def describe(self, params: Params) -> dict[str, float]:
        (own,) = self.own(params, params)
        return self.rule.describe(own)


@dataclass(frozen=True)
class ScorePartial(Partial):
    """`Partial` of a rule that moves by scores."""

    rule: ScoreRule

    def move(
        self, tasks: TaskBatch, params: Params, at: Params, label: tuple[int, ...], names: tuple[str, ...] | None = None
    ) -> Params:
        return self.rule.move(tasks, params, at, label, self.names(params) if names is None else names)


def check_patterns(adapt: object) -> tuple[str, ...]:
    """The patterns as a tuple.

    Raises:
        ValueError: unless it is one pattern, or several different ones.
    """
    given = (adapt,) if isinstance(adapt, str) else adapt
    check_type("adapt", given, Sequence, "'head', 'context' or patterns of parameter names")
    assert isinstance(given, Sequence)
    if not given or not all(isinstance(pattern, str) and pattern for pattern in given) or len(set(given)) < len(given):
        wanted = "adapt must be 'head', 'context', or different patterns of parameter names"
        raise ValueError(f"{wanted}, got {shorten(adapt)}")
    return tuple(given)


@lru_cache
def matching(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that match a pattern, in their order.

    Raises:
        ValueError: naming a pattern that matches none.

    Example:
        >>> matching(("head", "log_*"), ("log_std", "body.weight", "out.weight", "out.bias"))
        ('log_std', 'out.weight', 'out.bias')
    """
    names = tuple(name for name in names if not name.startswith(META))
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if _matches(pattern, name, names)}
        if not matches:
            raise ValueError(_no_match(pattern, names))
        found |= matches
    return tuple(name for name in names if name in found)


def _matches(pattern: str, name: str, names: tuple[str, ...]) -> bool:
    if pattern == HEAD:
        return "." in name and layer(name) == _last_layer(names)
    if pattern == CONTEXT:
        return name.rpartition(".")[2] == CONTEXT
    return fnmatchcase(name, pattern) or fnmatchcase(layer(name), pattern)


def _last_layer(names: tuple[str, ...]) -> str | None:
    """The layer that the network defines last; a parameter without a layer, such as `log_std`, is none."""
    return next((layer(name) for name in reversed(names) if "." in name), None)


def _no_match(pattern: str, names: tuple[str, ...]) -> str:
    if pattern == HEAD:
        return f"adapt 'head' needs a network with layers, got the parameters {shorten(list(names))}"
    if pattern == CONTEXT:
        return (
            "adapt 'context' needs a network with context inputs, from metarl.context.WithContext (--context-size 5), "
            f"got the parameters {shorten(list(names))}"
        )
    near = did_you_mean(pattern, [*names, *dict.fromkeys(map(layer, names)), HEAD, CONTEXT])
    return f"adapt must match parameters, but {pattern!r} matches none of {shorten(list(names))}{near}"


def adapt_only(rule: Rule, patterns: tuple[str, ...]) -> Rule:
    """`rule` for the parameters that match `patterns`.

    The rows of `PerStepNorm` stay: no inner step adapts them.
    """
    if isinstance(rule, PerStepNorm):
        return replace(rule, rule=adapt_only(rule.rule, patterns))
    if isinstance(rule, ScoreRule):
        return ScorePartial(rule, patterns)
    learned = as_learned(rule)
    return Partial(rule, patterns) if learned is None else LearnedPartial(learned, patterns)


def adapted(rule: Rule, params: Params) -> tuple[str, ...] | None:
    """The names of the parameters that `rule` adapts; `None` for all."""
    if isinstance(rule, PerStepNorm):
        rows = {name.removeprefix(PER_STEP) for name in params if name.startswith(PER_STEP)}
        return adapted(rule.rule, {name: leaf for name, leaf in params.items() if name not in rows})
    return rule.names(params) if isinstance(rule, Partial) else None


def contexts(rule: Rule, params: Params) -> list[str]:
    """The names of the context parameters, which start at zero, if `rule` adapts `context`."""
    if isinstance(rule, PerStepNorm):
        return contexts(rule.rule, params)
    if not isinstance(rule, Partial) or CONTEXT not in rule.patterns:
        return []
    return list(matching((CONTEXT,), tuple(params)))


def start(rule: Rule, params: Params) -> Params:
    """Where adaptation starts: at `params`, with context parameters at zero."""
    zero = {name: torch.zeros_like(params[name]) for name in contexts(rule, params)}
    return {**params, **zero} if zero else params


def fix_contexts(update: OuterUpdate) -> OuterUpdate:
    """`update` with a meta-gradient of zero for context parameters, because adaptation does not depend on their values.

    They are zero before training, so no optimiser moves them: momentum and weight decay of zero are zero.
    """

    def fixed(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        found = update(params, tasks, inner)
        zero = {name: torch.zeros_like(found.grads[name]) for name in contexts(inner.rule, params)}
        return found._replace(grads={**found.grads, **zero})

    return fixed


def check_start(rule: Rule, params: Params) -> None:
    """Check that `rule` can adapt a network with these initial parameters.

    Raises:
        ValueError: for a pattern that matches none of them, and for a context that is not zero.
    """
    adapted(rule, params)
    for name in contexts(rule, params):
        if bool(params[name].any()):
            raise ValueError(
                f"{name} must be zero before training, because adapt 'context' starts every adaptation at 0"
            )
