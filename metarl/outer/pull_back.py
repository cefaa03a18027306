"""The meta-gradient is the gradient at the end of the path, pulled back along it.

    g_N = grad f(w_N; D_o),     g_j = (d w_{j+1} / d w_j)^T g_{j+1},     j = N-1, ..., 0

For `w_{j+1} = rule(w_j, grad f(w_j; D_j), anchor)` the adjoint of one step has three parts: through the rule's direct
dependence on `w_j`, through the gradient (where the Hessian enters), and through the anchor, which is `w_0`. The
methods differ only in how they multiply by the Hessian. Only one step's graph is in memory at a time.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch

from metarl.derivatives import gradients_and_scores
from metarl.errors import check_choice
from metarl.inner import AdaptationPath, rule_pull_back, rule_push_forward, rules
from metarl.partial import contexts
from metarl.tree import add, tree_map
from metarl.types import Batch, Inner, MetaGrad, Params, TaskBatch

HessianData: TypeAlias = Literal["fresh", "reuse"]
"""The Hessian's data D_h: a fresh batch, as in the theory, or the inner step's batch, which costs no samples."""

Multiply: TypeAlias = Callable[[TaskBatch, Params, Batch, Params], Params]
"""`(tasks, w, D_h, u) -> H(w; D_h) u` for every task."""


def outer_gradient(tasks: TaskBatch, params: Params) -> MetaGrad:
    """The gradient and the score at adapted parameters on a fresh D_o."""
    batch = tasks.draw(params, "outer")
    return MetaGrad(*gradients_and_scores(tasks, params, batch))


def pull_back(
    tasks: TaskBatch,
    path: AdaptationPath,
    inner: Inner,
    cotangent: Params,
    multiply: Multiply | None,
    hessian_data: HessianData,
    on_the_way: Mapping[int, Params] = MappingProxyType({}),
) -> Params:
    """The gradient at `w_N` pulled back to `w_0`: the factor of the *last* step acts first.

    `on_the_way` has gradients at earlier points `w_j`, by j: each is added where the pull-back arrives at its point.
    Without `multiply` the Hessian counts as zero: the first-order gradient, also of the rule's meta-parameters.
    `path` must have its batches if `hessian_data` is `reuse`, and its gradients if the rule has no adjoint.
    """
    anchor = path.params[0]
    through_anchor: Params | None = None
    for j, rule in reversed(list(enumerate(rules(inner, len(path.params) - 1)))):
        w, g = path.params[j], path.grads[j] if path.grads else None
        # through the rule, without the loss
        through_w, through_g, to_anchor = rule_pull_back(rule, w, g, anchor, cotangent)
        # through the gradient, on a fresh batch or on the step's own
        cotangent = through_w
        if multiply is not None:
            data = tasks.draw(w, "hessian") if hessian_data == "fresh" else path.batches[j]
            cotangent = add(through_w, multiply(tasks, w, data, through_g))
        if j in on_the_way:
            cotangent = add(cotangent, on_the_way[j])
        if to_anchor is not None:
            through_anchor = to_anchor if through_anchor is None else add(through_anchor, to_anchor)
    return _fix_contexts(inner, cotangent if through_anchor is None else add(cotangent, through_anchor))


def push_forward(
    tasks: TaskBatch, path: AdaptationPath, inner: Inner, tangent: Params, multiply: Multiply | None
) -> Params:
    """How `w_N` moves if `w_0` moves by `tangent`: the transpose of `pull_back`, so the *first* step acts first.

        t_{j+1} = rule'(w_j, g_j, anchor) (t_j, H(w_j; D_h) t_j, t_0)

    The batches of `path` are the Hessian's data. Without `multiply` the Hessian counts as zero.
    """
    tangent = _fix_contexts(inner, tangent)
    at_start, anchor = tangent, path.params[0]
    for j, rule in enumerate(rules(inner, len(path.params) - 1)):
        w, g = path.params[j], path.grads[j] if path.grads else None
        if multiply is None:
            of_gradient = tree_map(torch.zeros_like, tangent)
        else:
            of_gradient = multiply(tasks, w, path.batches[j], tangent)
        tangent = rule_push_forward(rule, w, g, anchor, (tangent, of_gradient, at_start))
    return tangent


def _fix_contexts(inner: Inner, tangent: Params) -> Params:
    """Zero for context parameters: adaptation starts at zero there, whatever the parameters are."""
    zero = {name: torch.zeros_like(tangent[name]) for name in contexts(inner.rule, tangent)}
    return {**tangent, **zero} if zero else tangent


def check_hessian_data(value: str) -> HessianData:
    """`value` if it is `fresh` or `reuse`, else a `ValueError`."""
    return "fresh" if check_choice("hessian_data", value, ("fresh", "reuse")) == "fresh" else "reuse"
