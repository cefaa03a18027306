"""The inner loop: how the parameters of a task move, and the path they take.

Every rule is a function of ONE task, `rule(params, grads, anchor) -> params`; `adapt` applies it to all tasks.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch.func import vmap

from metarl.derivatives import gradients
from metarl.errors import check_real
from metarl.learned_rules import FixedSgd, LearnedSgd, StepSizes, as_learned, hide_meta, visible
from metarl.partial import Partial, adapted, start
from metarl.tree import broadcast, tree_map
from metarl.types import Batch, Inner, Params, Rule, ScoreRule, TaskBatch

ADAPTATION = 0
"""First number of the labels of directions in adaptation; outer updates have others for their own."""

Adjoint: TypeAlias = Callable[[Params], tuple[Params, Params, Params | None]]
"""From the cotangent of a rule's result to those of its three arguments; `None` for zero."""


@dataclass(frozen=True)
class Elementwise:
    """A rule that acts on every number separately, so it works on stacked tasks without vmap.

    If it is linear in its arguments, `adjoint` replaces autograd in `rule_pull_back`.
    """

    rule: Rule
    adjoint: Adjoint | None = None

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        return self.rule(params, grads, anchor)


def sgd(learning_rate: float) -> Rule:
    """`w - alpha g`, the inner step of MAML (Finn et al., 2017)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)

    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: params[k] - alpha * grads[k] for k in params}

    return Elementwise(rule, lambda v: (v, tree_map(lambda x: -alpha * x, v), None))


def make_sgd(learning_rate: float, steps: int, learn: StepSizes | None) -> Rule:
    """`sgd`, or with `learn` the same step with a learned step size that starts at `learning_rate`."""
    return sgd(learning_rate) if learn is None else LearnedSgd(learn, learning_rate, steps)


def rules(inner: Inner, steps: int | None = None) -> list[Rule]:
    """The rule of each step; a learned rule may differ from step to step."""
    number, learned = inner.steps if steps is None else steps, as_learned(inner.rule)
    return [inner.rule] * number if learned is None else [learned.at_step(j) for j in range(number)]


def sign_sgd(learning_rate: float) -> Rule:
    """`w - alpha sign(g)` with `sign(0) = 0`, the inner step of Sign-MAML (Fan, Ram, Liu, 2021)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)

    @Elementwise
    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: params[k] - alpha * torch.sign(grads[k]) for k in params}

    return rule


def prox_sgd(learning_rate: float, lam: float) -> Rule:
    """`w - alpha (g + lam (w - anchor))`: a gradient step on `f(w) + lam/2 |w - anchor|^2` (iMAML, 2019)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)
    lam = check_real("lam", lam, open_low=False)

    @Elementwise
    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: params[k] - alpha * (grads[k] + lam * (params[k] - anchor[k])) for k in params}

    return rule


def restart_sgd(learning_rate: float) -> Rule:
    """`anchor - alpha g`, always from the starting point: the step of FO-MuML (Mishchenko et al., 2023)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)

    @Elementwise
    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: anchor[k] - alpha * grads[k] for k in params}

    return rule


class AdaptationPath(NamedTuple):
    """The path of adaptation: N + 1 points and, if kept, the batches and gradients of the N steps."""

    params: list[Params]  # w_0 ... w_N, stacked
    batches: list[Batch]  # D_0 ... D_{N-1}
    grads: list[Params]  # g_j = grad f(w_j; D_j)


def inner_step(rule: Rule, params: Params, grads: Params, anchor: Params) -> Params:
    """One step of `rule` for every task: stacked in, stacked out."""
    if isinstance(rule, Partial):
        return {**params, **inner_step(rule.rule, *rule.own(params, params, grads, anchor))}
    stacked: Rule = rule if isinstance(rule, Elementwise | LearnedSgd | FixedSgd) else vmap(rule)
    return stacked(params, grads, anchor)


def rule_pull_back(
    rule: Rule, params: Params, grads: Params | None, anchor: Params, cotangent: Params
) -> tuple[Params, Params, Params | None]:
    """The vector-Jacobian products of one inner step with respect to its three arguments; no loss is involved.

    For `w - alpha g` they are `(v, -alpha v, 0)`; for `w - alpha sign(g)` they are `(v, 0, 0)`. The last one may be
    `None` for zero. `grads` is not needed if `has_adjoint(rule)`. The second one has only the adapted parameters.
    """
    if isinstance(rule, Partial):
        return _pull_back_partial(rule, params, grads, anchor, cotangent)
    if isinstance(rule, Elementwise) and rule.adjoint is not None:
        return rule.adjoint(cotangent)
    if grads is None:
        raise ValueError("grads must be given for a rule without its own adjoint, got None")
    if isinstance(rule, LearnedSgd):
        return *rule.pull_back(params, grads, cotangent), None
    with torch.enable_grad():
        arguments = [tree_map(lambda x: x.detach().requires_grad_(), x) for x in (params, grads, anchor)]
        moved = {k: v for k, v in inner_step(rule, *arguments).items() if v.requires_grad}
        leaves = [leaf for argument in arguments for leaf in argument.values()]
        pulled = torch.autograd.grad(
            list(moved.values()),
            leaves,
            [cotangent[k] for k in moved],
            create_graph=any(leaf.requires_grad for leaf in cotangent.values()),
            allow_unused=True,
        )
    values = iter(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, pulled, strict=True))
    through_w, through_g, to_anchor = ({k: next(values) for k in argument} for argument in arguments)
    return through_w, through_g, to_anchor


def rule_push_forward(
    rule: Rule, params: Params, grads: Params | None, anchor: Params, tangents: tuple[Params, Params, Params]
) -> Params:
    """The Jacobian-vector product of one inner step: how its result moves with its three arguments.

    It is the transpose of `rule_pull_back`, which is linear in its cotangent; `t_w - alpha t_g` for `w - alpha g`.
    """
    with torch.enable_grad():
        cotangent = tree_map(lambda leaf: torch.zeros_like(leaf, requires_grad=True), tangents[0])
        pulled = rule_pull_back(rule, params, grads, anchor, cotangent)
        pairs = [(x[k], t[k]) for x, t in zip(pulled, tangents, strict=True) if x is not None for k in x]
        moving = [(x, t) for x, t in pairs if x.requires_grad]
        found = torch.autograd.grad(
            [x for x, _ in moving], list(cotangent.values()), [t for _, t in moving], allow_unused=True
        )
    values = zip(cotangent.items(), found, strict=True)
    return {k: torch.zeros_like(leaf) if t is None else t for (k, leaf), t in values}


def _pull_back_partial(
    rule: Partial, params: Params, grads: Params | None, anchor: Params, cotangent: Params
) -> tuple[Params, Params, Params | None]:
    """`rule_pull_back`: that of the adapted parameters, and the identity for the frozen ones."""
    own, at, v = rule.own(params, params, anchor, cotangent)
    step = None if grads is None else rule.own(params, grads)[0]
    through_w, through_g, to_anchor = rule_pull_back(rule.rule, own, step, at, v)
    if to_anchor is not None:
        to_anchor = {k: to_anchor[k] if k in to_anchor else torch.zeros_like(leaf) for k, leaf in params.items()}
    return {**cotangent, **through_w}, {k: through_g[k] for k in rule.names(params)}, to_anchor


def has_adjoint(rule: Rule) -> bool:
    """Whether a rule has its own adjoint, which does not depend on the gradient."""
    if isinstance(rule, Partial):
        return has_adjoint(rule.rule)
    return isinstance(rule, Elementwise) and rule.adjoint is not None


def adapt_stepwise(params: Params, tasks: TaskBatch, rules: Iterable[Rule]) -> Iterator[Params]:
    """Adapt `params` (not stacked) to every task with one rule per step.

    Yields the stacked parameters before the first step and after each, without meta-parameters.
    """
    tasks, steps = hide_meta(tasks, params), list(rules)
    w = anchor = broadcast(start(steps[0], params) if steps else params, tasks.num_tasks)
    yield visible(w)
    for j, rule in enumerate(steps):
        if hasattr(rule, "move") and isinstance(rule, ScoreRule):  # the first look is fast
            w = rule.move(tasks, w, params, (ADAPTATION, j))
        else:
            grads = gradients(tasks, w, tasks.draw(w, "inner"), adapted(rule, w))
            w = inner_step(rule, w, grads, anchor)
            del grads  # free the memory before the next step
        yield visible(w)


def adapt(params: Params, tasks: TaskBatch, inner: Inner) -> Params:
    """`params` (not stacked: all tasks start at the same point) adapted to every task, stacked `[T, ...]`."""
    return deque(adapt_stepwise(params, tasks, rules(inner)), maxlen=1).pop()


def adaptation_path(
    params: Params, tasks: TaskBatch, inner: Inner, *, batches: bool = True, grads: bool = True
) -> AdaptationPath:
    """The path of adaptation to the result of `adapt`; `batches` and `grads`, which take most memory, are optional."""
    path = AdaptationPath([broadcast(start(inner.rule, params), tasks.num_tasks)], [], [])
    extend_path(path, tasks, rules(inner), batches=batches, grads=grads)
    return path


def extend_path(
    path: AdaptationPath, tasks: TaskBatch, rules: Iterable[Rule], *, batches: bool = True, grads: bool = True
) -> None:
    """Continue `path` by one step of each rule."""
    w, anchor = path.params[-1], path.params[0]
    for rule in rules:
        batch = tasks.draw(w, "inner")  # at the current parameters of every task
        step = gradients(tasks, w, batch, adapted(rule, w))
        w = inner_step(rule, w, step, anchor)
        path.params.append(w)
        path.batches.extend([batch] if batches else [])
        path.grads.extend([step] if grads else [])
        del batch, step  # free the memory before the next step
