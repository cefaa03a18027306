"""iMAML (Rajeswaran et al., 2019): the implicit gradient at the end of proximal adaptation.

    phi = argmin f(phi') + lam/2 |phi' - w|^2,    (I + H(phi; D_h) / lam) d = grad f(phi; D_o),    G(w) = d

Conjugate gradients solve the system for all tasks at once; the path to phi is not needed. `cg_residual` is logged,
|residual| / |right-hand side|: 0 means solved, 1 means no progress. The matrix is positive definite where lam exceeds
the most negative curvature; when CG meets negative curvature in a task, that task keeps its last iterate.

If adaptation moves only the parameters S and leaves F alone, phi_S solves grad_S f(phi_S, w_F) + lam (phi_S - w_S) = 0,
and its derivatives with respect to w_S and w_F give

    (I + H[S, S] / lam) d[S] = grad_S f(phi; D_o),    d[F] = grad_F f(phi; D_o) - H[F, S] d[S] / lam
"""

from collections.abc import Callable

import torch
from torch import Tensor

from metarl import tree
from metarl.derivatives import hessian_vector_products
from metarl.errors import check_int, check_real
from metarl.inner import adapt, prox_sgd
from metarl.outer.pull_back import outer_gradient
from metarl.outer.registry import Method, register
from metarl.partial import adapted
from metarl.types import Inner, MetaGrad, Params, TaskBatch


def conjugate_gradients(multiply: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Solve `A_i x_i = b_i` for all rows i at once, starting from zero.

    Args:
        multiply: `[T, P] -> [T, P]`, the symmetric positive definite A_i times row i.
        b: right-hand sides, `[T, P]`.
        steps: iterations; more than P do not help.

    Returns:
        x `[T, P]` and the relative residual |b - A x| / |b| `[T]` (zero where b is zero). A row stops when it is
        solved to rounding or meets negative curvature.
    """
    x, r, p = torch.zeros_like(b), b, b
    rr = (r * r).sum(1)
    enough = rr * torch.finfo(b.dtype).eps ** 2
    moves = torch.ones_like(rr, dtype=torch.bool)
    for _ in range(steps):
        # rows that are not solved yet; a row that has stopped never starts again
        ap = multiply(p)
        curvature = (p * ap).sum(1)
        moves = moves & (curvature > 0) & (rr > enough)
        # to the minimum along p: a step of zero for the rows that have stopped
        step = torch.where(moves, rr / torch.where(moves, curvature, 1.0), 0.0)
        x = x + step[:, None] * p
        r = r - step[:, None] * ap
        # the next direction, conjugate to all before
        rr_new = (r * r).sum(1)
        p = r + torch.where(moves, rr_new / torch.where(moves, rr, 1.0), 0.0)[:, None] * p
        rr = rr_new
    size = (b * b).sum(1)
    return x, torch.where(size > 0, rr / torch.where(size > 0, size, 1.0), 0.0).sqrt()


@register("imaml")
def imaml(inner_lr: float = 0.1, inner_steps: int = 5, *, lam: float = 2.0, cg_steps: int = 5) -> Method:
    """iMAML; `lam` is the strength of the proximal term, `cg_steps` the conjugate gradient iterations.

    The inner rule is `prox_sgd`: it converges for `inner_lr < 2 / (lam + L)`.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = imaml(inner_lr=0.25, inner_steps=1)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # grad f(0.5) / (1 + 2 / lam)
        tensor([-0.5000])
    """
    check_real("lam", lam)
    check_int("cg_steps", cg_steps)

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        phi = adapt(params, tasks, inner)
        end = outer_gradient(tasks, phi)
        batch = tasks.draw(phi, "hessian")
        own = adapted(inner.rule, phi) or tuple(phi)

        def multiply(rows: Tensor) -> Tensor:
            u = tree.unflatten(rows, {k: phi[k] for k in own})
            products = hessian_vector_products(tasks, phi, batch, u)
            return rows + tree.flatten({k: products[k] for k in own}) / lam

        rows, residual = conjugate_gradients(multiply, tree.flatten({k: end.grads[k] for k in own}), cg_steps)
        d = tree.unflatten(rows, {k: phi[k] for k in own})
        if len(own) < len(phi):  # the frozen parameters: through the adapted ones
            products = hessian_vector_products(tasks, phi, batch, d)
            d = {k: d[k] if k in d else end.grads[k] - products[k] / lam for k in phi}
        return end._replace(grads=d, info={"cg_residual": residual})

    inner = Inner(prox_sgd(inner_lr, lam), inner_steps)
    return Method(update, inner, needs_hessian=True, differentiates_twice=True, follows_adapted_loss=False)
