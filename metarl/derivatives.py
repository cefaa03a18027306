"""First and second derivatives of the tasks' losses.

Every outer update takes its derivatives here and nowhere else, for all tasks at once. That gives one place to count
them, to check them, and to decide how they are computed.
"""

from typing import cast

from torch import Tensor
from torch.func import grad, grad_and_value, vjp, vmap

from metarl.oracles import report
from metarl.types import Batch, Params, Rule, Tasks


def gradients(tasks: Tasks, params: Params, batch: Batch) -> Params:
    """The gradient of every task's loss at its own parameters: stacked in, stacked out."""
    grads: Params
    grads, losses = vmap(grad_and_value(tasks.loss))(params, batch)
    report(tasks, "gradients", grads, losses)
    return grads


def hessian_vector_products(tasks: Tasks, params: Params, batch: Batch, vectors: Params) -> Params:
    """`H_i(w_i; D_i) u_i` for every task, exactly: reverse over reverse, without forming H."""

    def product(w: Params, data: Batch, u: Params) -> Params:
        pull = vjp(lambda v: grad(tasks.loss)(v, data), w)[1]
        return cast(Params, pull(u)[0])

    products: Params = vmap(product)(params, batch, vectors)
    report(tasks, "hessian_vector_products", products)
    return products


def rule_pull_back(
    rule: Rule, params: Params, grads: Params, anchor: Params, cotangent: Params
) -> tuple[Params, Params, Params]:
    """The vector-Jacobian products of one inner step with respect to its three arguments; no loss is involved.

    For `w - alpha g` they are `(v, -alpha v, 0)`; for `w - alpha sign(g)` they are `(v, 0, 0)`.
    """

    def pull(w: Params, g: Params, a: Params, v: Params) -> tuple[Params, Params, Params]:
        return cast(tuple[Params, Params, Params], vjp(rule, w, g, a)[1](v))

    through_w, through_g, to_anchor = vmap(pull)(params, grads, anchor, cotangent)
    return through_w, through_g, to_anchor


def scores(tasks: Tasks, params: Params, batch: Batch) -> Tensor:
    """The score of every task, `[T]`."""
    return vmap(tasks.score)(params, batch).detach()
